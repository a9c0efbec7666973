#!/usr/bin/env python3
"""What each protocol gives for its time: insertion, deletion and milliseconds an image, on photographs.

usage: python benchmarks/protocols.py [--model ONNX] [--method cam] [--step 1000] [--all] [--seconds-only]

The protocols of `camrt.explain_graph`, and two ways to keep the proportions of an image, which camrt does not offer:

* padded: the image is fitted into the network's square, with the mean around it;
* free: the shorter side gets the side of the network's input, and the network runs on a rectangle.

All explain one class of an image: the best one of the judge. Insertion (higher is better) and deletion (lower is
better) are those of RISE (`camrt.evaluate.faithfulness`), as two judges see the image: squeezed to the network's input,
or with its proportions kept. The maps are resized to the judge's view. The photographs are those of scikit-image and of
the reference data, cut to 4:3, 3:4 and 16:9; by default a third of them. Times are medians, one image at a time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from benchmarks.photographs import SQUEEZENET, in_common_shapes
from camrt import Explainer, images
from camrt.evaluate.faithfulness import area_under, deletion_scores, insertion_scores
from camrt.graph.head import find_head
from camrt.graph.view import GraphView
from camrt.preprocess import PRESETS, Preprocess, crops_of, network_input

PROTOCOLS = ("whole", "ten-crop", "full", "center")
Image = NDArray[np.uint8]
Maps = Callable[[Image, int], NDArray[np.float32]]  # of an image and a class: the map over the whole image


class Free:
    """The classifier on images of any height and width.

    Args:
        model: A classifier of convolutions and global pooling.
        preprocess: What it expects.
    """

    def __init__(self, model: onnx.ModelProto, preprocess: Preprocess) -> None:
        freed = onnx.ModelProto.FromString(model.SerializeToString())
        for axis, name in zip((2, 3), ("height", "width"), strict=True):
            freed.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
        head = find_head(GraphView(model))
        freed.graph.output.append(onnx.helper.make_tensor_value_info(head.features, onnx.TensorProto.FLOAT, None))
        self._session = onnxruntime.InferenceSession(freed.SerializeToString(), providers=["CPUExecutionProvider"])
        self._input, self._logits = freed.graph.input[0].name, freed.graph.output[0].name
        self._features, self._weights = head.features, head.weights
        self._preprocess = preprocess

    def planes(self, image: Image) -> NDArray[np.float32]:
        """Resize and normalize an image: (3, h, w), the shorter side that of the network's input."""
        scale = self._preprocess.crop / min(image.shape[:2])
        resized = images.resize(image, (round(image.shape[0] * scale), round(image.shape[1] * scale)))
        mean = np.reshape(self._preprocess.mean, 3).astype(np.float32)
        deviation = np.reshape(self._preprocess.scale, 3).astype(np.float32)
        values = (resized[:, :, :: -1 if self._preprocess.channels == "BGR" else 1] - mean) * deviation
        return np.ascontiguousarray(values.transpose(2, 0, 1))

    def scores(self, planes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the class probabilities of (N, 3, h, w)."""
        (logits,) = self._session.run([self._logits], {self._input: planes})
        return softmax(logits)

    def maps(self, image: Image, target: int) -> NDArray[np.float32]:
        """Compute the class activation map of a class."""
        (features,) = self._session.run([self._features], {self._input: self.planes(image)[None]})
        found: NDArray[np.float32] = np.abs(np.tensordot(self._weights[target], features[0], 1))
        return found.astype(np.float32)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of (N, K) logits."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


class Squeezed:
    """The judge that sees the image squeezed to the network's input."""

    def __init__(self, model: onnx.ModelProto, preprocess: Preprocess) -> None:
        self._wants = preprocess.seeing("whole")
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        self._input, self._logits = model.graph.input[0].name, model.graph.output[0].name

    def planes(self, image: Image) -> NDArray[np.float32]:
        """Resize and normalize an image: (3, side, side)."""
        square = images.prepare(image, self._wants.size)
        return network_input(square[None], crops_of("whole", *[self._wants.size] * 2), self._wants)[0]

    def scores(self, planes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the class probabilities of (N, 3, side, side)."""
        (logits,) = self._session.run([self._logits], {self._input: planes})
        return softmax(logits)


def padded(explainer: Explainer, preprocess: Preprocess) -> Maps:
    """The maps of an image in the middle of a square of the mean color."""
    gray = np.rint(preprocess.mean[:: -1 if preprocess.channels == "BGR" else 1]).astype(np.uint8)

    def maps(image: Image, target: int) -> NDArray[np.float32]:
        height, width = image.shape[:2]
        side = max(height, width)
        y, x = (side - height) // 2, (side - width) // 2
        square = np.broadcast_to(gray, (side, side, 3)).copy()
        square[y : y + height, x : x + width] = image
        found = explainer(square, target).heatmaps[0]
        scale = len(found) / side
        rows, columns = (slice(round(a * scale), round((a + n) * scale)) for a, n in ((y, height), (x, width)))
        return found[rows, columns]

    return maps


def contenders(model: onnx.ModelProto, method: str, preprocess: Preprocess) -> dict[str, Maps]:
    """Each protocol's way from an image to the map of a class."""
    explainers = {
        name: Explainer(model, method, name, 1, "cpu", target="input", preprocess=preprocess) for name in PROTOCOLS
    }
    found: dict[str, Maps] = {
        name: lambda image, target, one=one: one(image, target).heatmaps[0] for name, one in explainers.items()
    }
    found["padded"] = padded(explainers["whole"], preprocess)
    if method == "cam":
        found["free"] = Free(model, preprocess).maps
    return found


def faithfulness(ways: dict[str, Maps], judges: dict[str, Any], photographs: dict[str, Image], step: int) -> Any:
    """(protocol, judge) -> (images, 2): insertion and deletion."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for name, image in photographs.items():
        print(f"  {name}", file=sys.stderr)
        for judge, seen in judges.items():
            planes = seen.planes(image)
            target = int(seen.scores(planes[None]).argmax())
            for protocol, maps in ways.items():
                heatmap = images.resize(maps(image, target), planes.shape[1:])
                scores = [
                    each(planes, heatmap, target, seen.scores, step=step)
                    for each in (insertion_scores, deletion_scores)
                ]
                found.setdefault((protocol, judge), []).append((area_under(scores[0]), area_under(scores[1])))
    return {key: np.array(values) for key, values in found.items()}


def seconds(ways: dict[str, Maps], photographs: list[Image], runs: int) -> dict[str, list[float]]:
    """Seconds an image, decoded before; the protocols take turns."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs + 1):
        image = photographs[run % len(photographs)]
        for name, maps in ways.items():
            began = time.perf_counter()
            maps(image, 0)
            if run:
                spent[name].append(time.perf_counter() - began)
    return spent


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SQUEEZENET, help="a classifier; by default SqueezeNet 1.1")
    parser.add_argument("--preprocess", default="torchvision", choices=list(PRESETS))
    parser.add_argument("--method", default="cam")
    parser.add_argument("--step", type=int, default=1000, help="pixels that are replaced at a time")
    parser.add_argument("--all", action="store_true", help="all photographs in all shapes")
    parser.add_argument("--runs", type=int, default=30, help="of the times")
    arguments = parser.parse_args()
    model, preprocess = onnx.load(arguments.model), PRESETS[arguments.preprocess]
    photographs = in_common_shapes()
    if not arguments.all:
        photographs = {name: photographs[name] for name in list(photographs)[::4]}
    ways = contenders(model, arguments.method, preprocess)
    judges = {"squeezed": Squeezed(model, preprocess), "proportions kept": Free(model, preprocess)}
    areas = faithfulness(ways, judges, photographs, arguments.step)
    spent = seconds(ways, list(photographs.values()), arguments.runs)

    table = Table(title=f"{arguments.model.stem}, {arguments.method}, {len(photographs)} photographs")
    table.add_column("protocol")
    for judge in judges:
        table.add_column(f"insertion, {judge}", justify="right")
        table.add_column(f"deletion, {judge}", justify="right")
    table.add_column("better than whole", justify="right")
    table.add_column("ms", justify="right")
    table.add_column("of whole", justify="right")
    for name in ways:
        means = [f"{value:.3f}" for judge in judges for value in areas[name, judge].mean(axis=0)]
        gains = np.concatenate([(areas[name, j] - areas["whole", j]) @ [1, -1] for j in judges])
        wins = f"{(gains > 0).mean():.0%}" if name != "whole" else ""
        ratio = statistics.median(a / b for a, b in zip(spent[name], spent["whole"], strict=True))
        table.add_row(name, *means, wins, f"{1000 * statistics.median(spent[name]):.1f}", f"{ratio:.2f}")
    Console(width=140).print(table)
    print("better than whole: the share of images and judges where insertion minus deletion is larger")


if __name__ == "__main__":
    main()
