#!/usr/bin/env python3
"""The overlaps of a map's boxes at 1000 thresholds, and ROAD's imputation, beside the published evaluators.

usage: python benchmarks/wsol.py [--runs 5] [--wsolevaluation DIR]

Milliseconds a map of 224 x 224, smooth ones (7 x 7 and 14 x 14 numbers, enlarged), of the largest contour and of all
contours together, as `camrt evaluate wsol` needs both:

* camrt: `camrt.evaluate.wsol.threshold_overlaps`;
* wsolevaluation: the same by evaluation.py of a checkout of clovaai/wsolevaluation, named with --wsolevaluation;
* one by one: the same protocol in a plain loop over the thresholds, in this file.

Seconds to impute 10, 50 and 90 % of an image of 224 x 224:

* camrt: `camrt.evaluate.faithfulness.imputed`;
* pytorch-grad-cam: its NoisyLinearImputer, where it is installed.

The contenders take turns; medians, and ratios run by run. One thread. Their answers are compared before.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from camrt.evaluate import faithfulness, wsol

try:
    import torch
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer
except (ImportError, RuntimeError):  # the latter from a torchvision that does not fit torch
    torch = NoisyLinearImputer = None

SIDE = wsol.SIDE
TRUTH = np.array([[60, 50, 150, 170], [10, 10, 40, 60]])
Work = Callable[[], Any]


def take_turns(contenders: dict[str, Work], runs: int) -> dict[str, list[float]]:
    """The seconds of each, after one run that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in range(runs + 1):
        for name, work in contenders.items():
            began = time.perf_counter()
            work()
            if run:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def smooth(rng: np.random.Generator, grain: int) -> np.ndarray:
    enlarged = cv2.resize(rng.random((grain, grain)), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return wsol.normalized(enlarged)


def blob() -> np.ndarray:
    """One object, as a network sees it."""
    y, x = np.mgrid[:SIDE, :SIDE]
    peak = np.exp(-((x - 100) ** 2 + (y - 110) ** 2) / (2 * 40**2))
    return wsol.normalized(peak + 0.05 * smooth(np.random.default_rng(1), 14))


# --------------------------------------------------------------------------------------------------- the contenders


def one_by_one(heatmap: np.ndarray) -> np.ndarray:
    """The protocol, a threshold at a time."""
    grey = (heatmap * 255).astype(np.uint8)
    found = np.empty((2, len(wsol.THRESHOLDS)))
    for place, threshold in enumerate(wsol.THRESHOLDS):
        _, mask = cv2.threshold(grey, int(threshold * grey.max()), 255, cv2.THRESH_BINARY)
        contours = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
        boxes = np.array([cv2.boundingRect(contour) for contour in contours])
        boxes[:, 2:] = np.minimum(boxes[:, :2] + boxes[:, 2:], SIDE - 1)
        best = wsol.overlaps(boxes, TRUTH).max(axis=1)
        found[:, place] = best[np.argmax([cv2.contourArea(contour) for contour in contours])], best.max()
    return found


def published(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The overlaps as the published evaluator finds them; it is run as it is."""
    for name, kind in (("float", float), ("int", int)):  # names that NumPy had when it was written
        setattr(np, name, kind)
    munch = types.ModuleType("munch")
    munch.Munch = dict  # type: ignore[attr-defined]
    sys.modules.setdefault("munch", munch)
    sys.path.insert(0, str(folder))
    import evaluation

    def overlaps(heatmap: np.ndarray) -> np.ndarray:
        found = []
        for every in (False, True):
            boxes, counts = evaluation.compute_bboxes_from_scoremaps(heatmap, list(wsol.THRESHOLDS), every)
            best = evaluation.calculate_multiple_iou(np.concatenate(boxes), TRUTH).max(1)
            found.append([each.max() for each in np.split(best, np.cumsum(counts)[:-1])])
        return np.array(found)

    return overlaps


# ------------------------------------------------------------------------------------------------------- measuring


def measure_overlaps(runs: int, folder: Path | None, console: Console) -> None:
    rng = np.random.default_rng(0)
    maps = {"one object": blob(), "7 x 7": smooth(rng, 7), "14 x 14": smooth(rng, 14)}
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {"camrt": lambda each: wsol.threshold_overlaps(each, TRUTH)}
    if folder is not None:
        ways["wsolevaluation"] = published(folder)
    ways["one by one"] = one_by_one
    table = Table("", *maps, title=f"milliseconds a map, median of {runs}", min_width=80)
    rows: dict[str, list[str]] = {name: [] for name in ways}
    for heatmap in maps.values():
        answers = [way(heatmap) for way in ways.values()]
        assert all(np.array_equal(answers[0], each) for each in answers)
        seconds = take_turns({name: partial(way, heatmap) for name, way in ways.items()}, runs)
        for name, some in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(some, seconds["camrt"], strict=True))
            rows[name].append(f"{1000 * statistics.median(some):.1f} ({ratio:.1f})")
    for name, cells in rows.items():
        table.add_row(name, *cells)
    console.print(table)
    console.print("In brackets: times camrt's. The answers are the same, to the last bit.\n", highlight=False)


def measure_imputation(runs: int, console: Console) -> None:
    rng = np.random.default_rng(0)
    image, heatmap = rng.normal(0, 1, (3, SIDE, SIDE)).astype(np.float32), smooth(rng, 9)
    table = Table("", "10 %", "50 %", "90 %", title=f"seconds to impute, median of {runs}", min_width=80)
    rows: dict[str, list[str]] = {}
    for share in (0.1, 0.5, 0.9):
        removed = heatmap >= np.quantile(heatmap, 1 - share)
        ways: dict[str, Work] = {"camrt": partial(faithfulness.imputed, image, removed, noise=0)}
        if torch is not None:
            left = torch.from_numpy((~removed).astype(np.float32))
            ways["pytorch-grad-cam"] = partial(NoisyLinearImputer(0), torch.from_numpy(image), left)
            assert np.abs(ways["camrt"]() - ways["pytorch-grad-cam"]().numpy()).max() < 1e-5
        seconds = take_turns(ways, runs)
        for name, some in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(some, seconds["camrt"], strict=True))
            rows.setdefault(name, []).append(f"{statistics.median(some):.3f} ({ratio:.2f})")
    for name, cells in rows.items():
        table.add_row(name, *cells)
    console.print(table)
    if torch is None:
        console.print("pytorch-grad-cam: not installed (pip install grad-cam)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--wsolevaluation", type=Path, metavar="DIR", help="a checkout of clovaai/wsolevaluation")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    console = Console(width=110)
    measure_overlaps(options.runs, options.wsolevaluation, console)
    measure_imputation(options.runs, console)


if __name__ == "__main__":
    main()
