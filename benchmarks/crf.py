#!/usr/bin/env python3
"""Time the dense CRF of camrt and of pydensecrf2 in one process.

usage: python benchmarks/crf.py [--runs 5] [--side 256] [--maps 5]

The image is that of the demo if the reference data are available, else a synthetic one, resized to a square. The table
shows seconds for one map and for several maps of the image, and the differences between the marginals. The contenders
alternate; figures are medians, and ratios are those of corresponding runs. pydensecrf2 rebuilds its lattice for each
map. If it is not installed, only the times of camrt are printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from camrt import images
from camrt.localize.crf import CRF, probability
from converters.errors import install

REFERENCE = Path(os.environ.get("CAMRT_REFERENCE", REPOSITORY.parent / "shared" / "reference"))
SETTINGS = {
    "seed: 10 20 10, 50 iterations": CRF(),
    "gauss: 50 13 10, 3 3, 10 iterations": CRF((50, 13, 10), (3, 3), 10),
}


def peer() -> Any:
    """Return the module that runs pydensecrf2, with which the expected results of the tests were computed; or None."""
    path = REPOSITORY / "tests" / "data" / "crf" / "make.py"
    spec = importlib.util.spec_from_file_location("make_crf_answers", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError:
        return None
    return module


def inputs(side: int, maps: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Return the image, the maps and the name of the image."""
    file = REFERENCE / "matlab_demo" / "expected_img1.npz"
    if file.exists():
        with np.load(file) as demo:
            image, heatmaps, name = demo["image256"], demo["merged"], "the demo's image"
    else:
        y, x = np.mgrid[:256, :256] / 256
        waves = [np.sin(7 * x + 3 * y), np.cos(5 * y - 2 * x), np.sin(9 * x * y)]
        noise = np.random.default_rng(0).normal(0, 6, (256, 256, 3))
        image = np.clip(np.stack([127 * (1 + wave) for wave in waves], -1) + noise, 0, 255).astype(np.uint8)
        heatmaps = np.stack([np.exp(-((y - 0.5) ** 2 + (x - at) ** 2) / 0.05) for at in (0.3, 0.4, 0.5, 0.6, 0.7)])
        name = "a drawn image"
    resized = [probability(images.resize(np.asarray(heatmap, np.float32), (side, side))) for heatmap in heatmaps]
    chosen = np.stack([resized[i % len(resized)] for i in range(maps)])
    return images.resize(image, (side, side)), np.clip(chosen, 0.001, 0.999), name


def take_turns(contenders: dict[str, Callable[[], Any]], runs: int) -> dict[str, list[float]]:
    """Return the seconds of all runs of each contender, without one warm-up run."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in range(runs + 1):
        for name, work in contenders.items():
            began = time.perf_counter()
            work()
            if run:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--maps", type=int, default=5)
    options = parser.parse_args()
    image, maps, name = inputs(options.side, options.maps)
    other = peer()
    table = Table(title=f"{name}, {options.side} x {options.side}: seconds, median of {options.runs}, one thread")
    for column in ("", "maps", "camrt", "pydensecrf2", "camrt / pydensecrf2", "equal labels", "mean difference"):
        table.add_column(column, justify="right" if column else "left")
    for title, crf in SETTINGS.items():
        for count in sorted({1, options.maps}):
            some = maps[:count]

            def theirs(crf: CRF = crf, some: np.ndarray = some) -> np.ndarray:
                asked = (image, crf.bilateral, crf.gaussian, crf.iterations)
                return np.stack([other.answer(asked[0], one, *asked[1:]) for one in some])

            def ours(crf: CRF = crf, some: np.ndarray = some) -> np.ndarray:
                return crf.refine(image, some)

            seconds = take_turns({"camrt": ours, **({"pydensecrf2": theirs} if other else {})}, options.runs)
            row = [title, str(count), f"{statistics.median(seconds['camrt']):.3f}"]
            if other:
                found, expected = ours(), theirs()
                ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
                agree = np.mean((found > 0.5) == (expected > 0.5))
                row += [f"{statistics.median(seconds['pydensecrf2']):.3f}", f"{ratio:.2f}", f"{agree:.3%}"]
                row += [f"{np.abs(found - expected).mean():.1e}"]
            table.add_row(*row)
    console = Console(width=150)
    console.print(table)
    if not other:
        console.print(f"pydensecrf2 is not installed: {install('pydensecrf2')}", markup=False)


if __name__ == "__main__":
    main()
