#!/usr/bin/env python3
"""Published Caffe networks in OpenCV 4 by readNetFromCaffe, and in OpenCV 5 as ONNX models that camrt converted.

usage: python benchmarks/opencv5.py [--install]

Prints, and writes into docs/opencv5.md, how far both are from Caffe's answers. The networks are those of the reference
data (CAMRT_REFERENCE). OpenCV 5 is in build/peers/camrt-opencv5, where --install puts it; OpenCV 4 is this Python's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.converters import PEERS, ROOT, answers, difference, fill, matched, networks, reference_folder, run
from converters import ConversionWarning

PAGE = ROOT / "docs" / "opencv5.md"
OLD, NEW = "opencv4", "camrt-opencv5"


def table(folder: Path) -> str:
    """Run both, and compare them with Caffe."""
    lines = ["| network | input | OpenCV 4, Caffe | OpenCV 5, ONNX | from one to the other |", "|---|---|---|---|---|"]
    wanted = {folder / str(number): one for number, one in enumerate(networks(["networks"], [], folder), start=1)}
    for each, one in wanted.items():
        one.write(each)
    versions = [run(peer, folder) for peer in (OLD, NEW)]
    if not all(versions):
        raise SystemExit("both versions of OpenCV are needed: --install")
    for each, one in wanted.items():
        old, new = answers(each, OLD), answers(each, NEW)
        errors = [
            max(difference(found[name], values) for name, values in matched(found, expected))
            for found, expected in ((old, one.outputs), (new, one.outputs), (new, old))
        ]
        shape = " x ".join(str(size) for size in next(iter(one.inputs.values())).shape)
        lines.append(f"| {one.name} | {shape} | " + " | ".join(f"{error:.1g}" for error in errors) + " |")
    return "\n".join([*lines, "", f"OpenCV {versions[0]}; camrt {versions[1]}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="install OpenCV 5 into build/peers")
    given = parser.parse_args()
    warnings.simplefilter("ignore", ConversionWarning)
    if reference_folder() is None:
        parser.error("found no reference data, expected them in CAMRT_REFERENCE")
    if given.install:
        PEERS[NEW].install(NEW)
    with tempfile.TemporaryDirectory() as name:
        text = table(Path(name))
    print(text)
    fill(PAGE, "networks", text)


if __name__ == "__main__":
    main()
