#!/usr/bin/env python3
"""An explainer in 8 bits beside the one in 32: seconds an image, bytes, and agreement.

usage: python benchmarks/int8.py [--runs 9] [--threads 2] [--calibrate DIR]

SqueezeNet 1.1, trained on ImageNet, of the reference data (CAMRT_REFERENCE, or ../shared/reference), one center crop,
five classes. Without --calibrate the images are 40 parts of the one photograph there, turned and lit differently: they
are alike, so that agreement on other photographs will be lower. 8 of them are held out and compared.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from benchmarks.explain import ratio, take_turns
from camrt.batch import find_images
from camrt.calibration import int8_explainer
from camrt.loading import Request
from camrt.session import Session

METHODS, BATCHES, PARTS = ("cam", "gradcam"), (1, 10), 40


def parts(photo: Path, folder: Path) -> None:
    """Write parts of a photograph."""
    image, generator = cv2.imread(str(photo)), np.random.default_rng(0)
    for number in range(PARTS):
        share = generator.uniform(0.5, 1)
        height, width = (round(share * length) for length in image.shape[:2])
        y, x = (int(generator.uniform(0, 1 - share) * length) for length in image.shape[:2])
        part = image[y : y + height, x : x + width][:, :: -1 if number % 2 else 1]
        part = part * generator.uniform(0.7, 1.3) + generator.uniform(-20, 20)
        cv2.imwrite(str(folder / f"{number:02}.png"), part.clip(0, 255).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calibrate", metavar="DIR", help="photographs to calibrate on and to compare on")
    options = parser.parse_args()
    reference = Path(os.environ.get("CAMRT_REFERENCE", REPOSITORY.parent / "shared" / "reference")) / "squeezenet"
    classifier = onnx.load(reference / "squeezenet1_1.onnx")
    speeds = [f"batch {batch}: fp32, int8 (ratio)" for batch in BATCHES]
    columns = ("", *speeds, "MB: fp32, int8", "correlation (least)", "same best class")
    table = Table(*columns, title=f"SqueezeNet 1.1, seconds an image, median of {options.runs}")
    with tempfile.TemporaryDirectory() as folder:
        if not options.calibrate:
            parts(reference / "cat.jpg", Path(folder))
        images = [image.given for image in find_images([options.calibrate or folder])[0]]
        for method in METHODS:
            request = Request(method=method, protocol="center", top=5, preprocess="torchvision")
            small, found = int8_explainer(
                classifier, request, images, on_error=lambda image, error: print(image, error)
            )
            sessions = [Session(graph, threads=options.threads) for graph in (request.graph(classifier), small)]
            cells = [measured(sessions, batch, options.runs) for batch in BATCHES]
            correlation = f"{found.correlation:.4f} ({found.least_correlation:.4f})"
            sizes = f"{found.fp32_bytes / 1e6:.1f}, {small.ByteSize() / 1e6:.1f}"
            table.add_row(method, *cells, sizes, correlation, f"{found.same_best_class:.0%} of {found.images}")
    Console(width=150).print(table)


def measured(sessions: list[Session], batch: int, runs: int) -> str:
    """The seconds an image of both, in turns."""
    pixels = np.random.default_rng(0).integers(0, 256, (batch, *sessions[0].inputs["image"][1:]), dtype=np.uint8)  # type: ignore[arg-type]
    work = {str(n): lambda one=one: one.run({"image": pixels}) for n, one in enumerate(sessions)}
    exact, small = take_turns(work, runs).values()
    medians = ", ".join(f"{statistics.median(each) / batch:.4f}" for each in (exact, small))
    return f"{medians} (1/{ratio(exact, small):.2f})"


if __name__ == "__main__":
    main()
