#!/usr/bin/env python3
"""Time the conversion of VGG16 at full size (553 MB), loading it in OpenCV 4, and copying the file.

usage: python benchmarks/convert.py [--runs 5] [--folder FOLDER]

Each contender runs in its own process; wall time and peak memory are those of the operating system. The contenders
alternate, so that changes in the machine's speed affect all of them. "known" is a second conversion of a file whose
digest is cached. The weights are random, since their values do not affect the time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from converters import zoo
from converters.conversion import weight_shapes
from converters.net import read_net
from converters.writer import write_caffemodel

OPENCV = """
import sys, time
import cv2
began = time.perf_counter()
cv2.dnn.readNetFromCaffe(sys.argv[1], sys.argv[2])
print(time.perf_counter() - began)
"""
COPY = "import shutil, sys; shutil.copyfile(sys.argv[2], sys.argv[3])"


@dataclass
class Contender:
    """A command to time."""

    name: str
    command: list[str]
    fresh: tuple[Path, ...] = ()  # files to remove before each run
    seconds: list[float] = field(default_factory=list)
    first_line: list[float] = field(default_factory=list)
    inner: list[float] = field(default_factory=list)  # seconds that the command prints
    peak: list[int] = field(default_factory=list)  # bytes

    def run(self, environment: dict[str, str]) -> None:
        """Run the command once, and record its time and memory."""
        for path in self.fresh:
            path.unlink(missing_ok=True)
        began = time.perf_counter()
        process = subprocess.Popen(
            self.command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        if first:
            self.first_line.append(time.perf_counter() - began)
        output = first + process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.seconds.append(time.perf_counter() - began)
        self.peak.append(usage.ru_maxrss * 1024)
        if process.returncode:
            sys.exit(f"{self.name} failed:\n{output}")
        if self.name.startswith("OpenCV"):
            self.inner.append(float(output.split()[-1]))


def write_vgg16(folder: Path) -> tuple[Path, Path]:
    """Write the prototxt of VGG16, and a caffemodel with random weights."""
    prototxt, caffemodel = folder / "vgg16.prototxt", folder / "vgg16.caffemodel"
    prototxt.write_text(zoo.find("vgg16").prototxt())
    if not caffemodel.exists():
        generator = np.random.default_rng(16)
        shapes = weight_shapes(read_net(prototxt))
        layers = {
            name: (generator.standard_normal(shape, np.float32) * np.float32(0.01) for shape in wanted)
            for name, wanted in shapes.items()
        }
        write_caffemodel(caffemodel, layers, name="VGG16")
    return prototxt, caffemodel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each contender, after one warm-up run")
    parser.add_argument("--folder", type=Path, help="the folder of the files, which are kept; by default, temporary")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="camrt-benchmark-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        prototxt, caffemodel = write_vgg16(folder)
        report(measure(prototxt, caffemodel, folder, options.runs), caffemodel.stat().st_size, options.runs)
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


def measure(prototxt: Path, caffemodel: Path, folder: Path, runs: int) -> list[Contender]:
    files = [str(prototxt), str(caffemodel)]
    output, home = folder / "vgg16.onnx", folder / "home"
    convert = [sys.executable, str(REPOSITORY / "scripts" / "convert.py"), *files, "-o", str(output)]
    contenders = [
        Contender("camrt: convert.py", convert, (output, home / "digests.json")),
        Contender("camrt: convert.py, known", convert, (output,)),
        Contender("OpenCV: readNetFromCaffe", [sys.executable, "-c", OPENCV, *files]),
        Contender("copy of the file", [sys.executable, "-c", COPY, *files, str(folder / "copy")], (folder / "copy",)),
    ]
    environment = {**os.environ, "CAMRT_HOME": str(home)}
    for run in range(runs + 1):
        for contender in contenders:
            contender.run(environment)
            if run == 0:  # the warm-up run fills the page cache
                for values in (contender.seconds, contender.first_line, contender.inner, contender.peak):
                    values.clear()
    return contenders


def report(contenders: list[Contender], size: int, runs: int) -> None:
    table = Table(title=f"VGG16, {size / 1e6:.0f} MB, median (minimum) of {runs} runs, {os.cpu_count()} cores")
    for column in ("", "process, s", "load alone, s", "first line, s", "peak memory / file"):
        table.add_column(column, justify="left" if not column else "right")
    for one in contenders:
        table.add_row(
            one.name, _spread(one.seconds), _spread(one.inner), _spread(one.first_line if "camrt" in one.name else []),
            f"{max(one.peak) / size:.2f}",
        )  # fmt: skip
    console = Console(width=110)
    console.print(table)
    first, known, opencv, copy = contenders
    for name, other in (("OpenCV's process", opencv.seconds), ("OpenCV's load alone", opencv.inner)):
        ratios = [f"{_ratio(ours.seconds, other):.2f}" for ours in (first, known)]
        console.print(f"convert.py / {name}: {ratios[0]} (known: {ratios[1]})", highlight=False)
    console.print(f"convert.py / copy: {_ratio(first.seconds, copy.seconds):.2f}", highlight=False)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f})" if values else ""


def _ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the median of the ratios of corresponding runs."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    main()
