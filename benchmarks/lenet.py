#!/usr/bin/env python3
"""Evaluate lenetCAM: convert it, export an explainer, and measure its accuracy and localization. Without PyTorch.

usage: python benchmarks/lenet.py [CAFFEMODEL] [--model lenetCAM] [--prototxt FILE] [--data clutter:drawn,seed=3]
                                  [--count 10000] [--json]

By default, CAFFEMODEL is the one of --model (lenetCAM or lenetCAM_mnist) that is included with camrt. The caffemodel
and the prototxt (models/lenetCAM/deploy.prototxt) are converted to ONNX and to an explainer graph, which is run on
canvases 0 to count - 1 of the generator --data, such as

    --data clutter:MNIST_FOLDER,first=8000,count=2000,seed=3

The metrics, for the best class of each canvas, are

* accuracy: the fraction of canvases for which it is the digit;
* pointing: the fraction for which the map has its maximum inside the bounding box of the digit;
* IoU >= 0.5: the fraction for which a box of `Explanation.boxes` has this intersection over union with that box.

+- is the standard error, in percentage points.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import converters
from camrt import Explainer, Explanation
from camrt.errors import CamrtError
from camrt.loading import preprocess_of_named
from camrt.train.clutter import Clutter
from converters import metadata, zoo
from converters.terminal import bar

NAME = "lenetCAM"
BATCH = 32


def explainer(caffemodel: Path | None, threads: int, prototxt: Path | None = None, name: str = NAME) -> Explainer:
    """Return the explainer of the named model, or of another file of weights."""
    if caffemodel is None:
        return Explainer(name, top=1, threads=threads)
    model = zoo.find(name)
    classifier = converters.convert(prototxt or zoo.models_folder() / name / "deploy.prototxt", caffemodel)
    facts = {
        metadata.FEATURES: model.features,
        metadata.CLASSIFIER: model.classifier,
        metadata.PROTOCOL: model.protocol,
    }
    onnx.helper.set_model_props(classifier, {key: str(value) for key, value in facts.items()})
    return Explainer(classifier, preprocess=preprocess_of_named(model), top=1, threads=threads)


def points_at(found: Explanation, box: np.ndarray) -> bool:
    """Return whether the maximum of the map is inside the box x1, y1, x2, y2 (x2 and y2 are exclusive)."""
    heatmap = found.heatmap(0)
    y, x = np.unravel_index(int(heatmap.argmax()), heatmap.shape)
    return bool(box[0] <= x < box[2] and box[1] <= y < box[3])


def best_overlap(found: Explanation, box: np.ndarray) -> float:
    """Return the largest intersection over union of a box of the map with the digit's box; 0 without boxes."""
    boxes = found.boxes(0)
    corner, size = boxes[:, :2], boxes[:, 2:]
    shared = np.clip(np.minimum(corner + size, box[2:]) - np.maximum(corner, box[:2]), 0, None).prod(axis=1)
    union = size.prod(axis=1) + (box[2:] - box[:2]).prod() - shared
    return float((shared / union).max(initial=0))


def measure(explain: Explainer, canvases: Clutter, count: int) -> dict[str, float]:
    """Compute the three metrics over canvases 0 to count - 1, and the time."""
    began = time.perf_counter()
    hits = np.zeros(3)
    with bar("explaining", count, bytes_=False) as advance:
        for first in range(0, count, 20 * BATCH):
            images, labels, boxes = canvases.batch(np.arange(first, min(count, first + 20 * BATCH)))
            color = np.repeat(images[..., None], 3, axis=3)
            for found, label, box in zip(explain.map(color, batch=BATCH), labels, boxes, strict=True):
                hits += found.classes[0] == label, points_at(found, box), best_overlap(found, box) >= 0.5
                advance(1)
    shares = dict(zip(("accuracy", "pointing", "iou"), (hits / count).tolist(), strict=True))
    return {**shares, "count": count, "seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the accuracy and the localization of lenetCAM.")
    parser.add_argument("caffemodel", nargs="?", type=Path, help="the weights; by default, those included with camrt")
    parser.add_argument("--model", default=NAME, choices=(NAME, f"{NAME}_mnist"), help="the network")
    parser.add_argument("--prototxt", type=Path, help="the network of the weights; by default, that of lenetCAM")
    parser.add_argument("--data", default="clutter:drawn,seed=3", help="the generator of the canvases")
    parser.add_argument("--count", type=int, default=10_000, help="the number of canvases")
    parser.add_argument("--threads", type=int, default=2, help="the number of threads of ONNX Runtime")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.prototxt and not options.caffemodel:
        parser.error("found --prototxt without CAFFEMODEL, expected both")
    if options.count < 1:
        parser.error(f"found --count {options.count}, expected at least 1")
    try:
        explain = explainer(options.caffemodel, options.threads, options.prototxt, options.model)
        facts = measure(explain, Clutter.parse(options.data), options.count)
    except (CamrtError, converters.ConversionError) as error:
        sys.exit(f"error: {error}")
    if options.json:
        print(json.dumps({"weights": str(options.caffemodel or options.model), "data": options.data, **facts}))
        return
    table = Table(title=f"{options.caffemodel or options.model} on {options.count:,} canvases of {options.data}")
    for column in ("accuracy", "pointing", "IoU >= 0.5"):
        table.add_column(column, justify="right")
    shares = [facts[key] for key in ("accuracy", "pointing", "iou")]
    errors = [(share * (1 - share) / options.count) ** 0.5 for share in shares]
    table.add_row(*(f"{100 * share:.2f}% +- {100 * error:.2f}" for share, error in zip(shares, errors, strict=True)))
    console = Console()
    console.print(table, f"{facts['seconds']} s")


if __name__ == "__main__":
    main()
