#!/usr/bin/env python3
"""What an evaluation over the ILSVRC's 50,000 validation images costs beside the network.

usage: python benchmarks/ilsvrc.py [--images 50000] [--maps 20]

* counting: `localization_error` over all images, with 80,000 boxes in the ground truth, as the validation set has;
* boxes: from five maps of an image of 500 x 375 pixels to what is guessed, in one process: resizing, JPEG, boxes;
* journal: a line an image, written, and read again.

All of it is made up and seeded. Medians of five runs; the journal once.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import ndimage

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from camrt.evaluate.ilsvrc import localization_error
from camrt.evaluate.ilsvrc_protocol import BoxRule, Maps
from camrt.evaluate.journal import Journal, Records

RUNS = 5


def seconds(work: Callable[[], object], runs: int = RUNS) -> float:
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def counting(images: int) -> float:
    rng = np.random.default_rng(0)
    truth = rng.integers(1, 1001, images)
    counts = rng.choice([1, 2, 3, 5], images, p=[0.72, 0.14, 0.08, 0.06])  # 1.6 boxes an image
    boxes = []
    for number, count in zip(truth.tolist(), counts.tolist(), strict=True):
        begin = rng.integers(1, 300, (count, 2))
        boxes.append(np.hstack([np.full((count, 1), number), begin, begin + rng.integers(20, 200, (count, 2))]))
    guesses = np.zeros((images, 5, 5))
    guesses[..., 0] = np.where(rng.random((images, 5)) < 0.4, truth[:, None], rng.integers(1, 1001, (images, 5)))
    guesses[..., 1:] = np.array([one[0, 1:] for one in boxes])[:, None] + rng.integers(0, 20, (images, 1, 1))
    predictions = guesses.reshape(images, -1)
    return seconds(lambda: localization_error(predictions, truth, boxes, range(1, images // 28)))


def boxes(number: int) -> float:
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.random((number, 5, 256, 256)), (0, 0, 24, 24)).astype(np.float32)
    smooth -= smooth.min(axis=(2, 3), keepdims=True)
    rule = BoxRule()
    rule(Maps("warm", smooth[0], (375, 500), {}))
    times = [seconds(lambda heatmaps=heatmaps: rule(Maps("one", heatmaps, (375, 500), {})), 1) for heatmaps in smooth]
    return statistics.median(times)


def journal(images: int) -> tuple[float, float]:
    found = {"classes": [1, 2, 3, 4, 5], "scores": [0.123456] * 5, "boxes": [[[100, 100, 200, 200]] * 2] * 5}
    with tempfile.TemporaryDirectory() as folder:
        with Journal(folder, "guesses", {}) as record:
            write = seconds(lambda: [record.add(f"ILSVRC2012_val_{i:08d}", found, [i, i]) for i in range(images)], 1)
        read = seconds(lambda: sum(1 for _ in Records(folder, "guesses")), 1)
    return write, read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--maps", type=int, default=20)
    options = parser.parse_args()
    write, read = journal(options.images)
    table = Table("what", "of", "time")
    table.add_row("localization_error", f"{options.images:,} images", f"{counting(options.images):.2f} s")
    table.add_row("boxes of five maps, JPEG", "500 x 375 pixels", f"{1000 * boxes(options.maps):.0f} ms")
    table.add_row("journal, written", f"{options.images:,} lines", f"{write:.1f} s")
    table.add_row("journal, read", f"{options.images:,} lines", f"{read:.1f} s")
    Console().print(table)


if __name__ == "__main__":
    main()
