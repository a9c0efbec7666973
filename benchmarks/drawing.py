#!/usr/bin/env python3
"""Time the drawing of one class over an image: camrt's overlays, and what other libraries draw.

usage: python benchmarks/drawing.py [--runs 20] [--width 1024] [--height 768] [--threads 0]

The image and the map (224 x 224) are synthetic. The contenders alternate; figures are medians in milliseconds, and
ratios are to camrt's overlay without box and caption. CPU time is that of all cores together; other work on the machine
changes it less. pytorch-grad-cam gets the map at its own size, and resizes it as its examples do; if it is not
installed, its row is left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from camrt import Explanation, Style, images, render
from tests import fitting_torchvision


def explanation(height: int, width: int) -> Explanation:
    """Return an explanation of a smooth image with noise, and a map with two regions."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    image = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    rows, columns = np.mgrid[:224, :224]
    heatmap = np.exp(-((rows - 80) ** 2 + (columns - 90) ** 2) / 1800)
    heatmap += 0.6 * np.exp(-((rows - 170) ** 2 + (columns - 160) ** 2) / 900)
    return Explanation(
        image=image,
        source="photo.jpg",
        classes=np.array([7]),
        scores=np.array([0.9], np.float32),
        labels=("Egyptian cat",),
        heatmaps=heatmap[None].astype(np.float32),
        all_scores=np.array([0.9], np.float32),
        method="gradcam",
    )


def contenders(one: Explanation) -> dict[str, Callable[[], Any]]:
    """Return what is timed, by name."""
    heatmap, size = one.heatmaps[0], one.image.shape[:2]
    found: dict[str, Callable[[], Any]] = {
        "camrt, overlay": lambda: render.overlay(one.image, heatmap),
        "camrt, overlay with box": lambda: one.overlay(0, Style(caption=False)),
        "camrt, overlay with box and caption": lambda: one.overlay(0, Style()),
        "camrt, the original's (demo.m)": lambda: render.demo_overlay(one.image, images.resize(heatmap, size)),
        "camrt, the original's boxes alone": lambda: one.boxes(0),
    }
    fitting_torchvision.install()
    try:
        from pytorch_grad_cam.utils.image import show_cam_on_image
    except ImportError:
        return found
    found["pytorch-grad-cam, show_cam_on_image"] = lambda: show_cam_on_image(
        np.float32(one.image) / 255, cv2.resize(heatmap / heatmap.max(), size[::-1]), use_rgb=True
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--height", type=int, default=768)
    parser.add_argument("--threads", type=int, default=0, help="of OpenCV; 0 for its default")
    options = parser.parse_args()
    if options.threads:
        cv2.setNumThreads(options.threads)
    timed = contenders(explanation(options.height, options.width))
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in timed}
    for run in range(options.runs + 1):
        for name, draw in timed.items():
            began, used = time.perf_counter(), time.process_time()
            draw()
            if run:  # the first one loads
                seconds[name].append(time.perf_counter() - began)
                cpu_seconds[name].append(time.process_time() - used)
    table = Table("", "ms", "CPU ms", "ratio", title=f"{options.width} x {options.height}, one class")
    base = statistics.median(seconds["camrt, overlay"])
    for name, values in seconds.items():
        middle = statistics.median(values)
        used = statistics.median(cpu_seconds[name])
        table.add_row(name, f"{1e3 * middle:.2f}", f"{1e3 * used:.2f}", f"{middle / base:.1f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
