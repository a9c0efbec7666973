#!/usr/bin/env python3
"""Write a dataset of cluttered digits, with annotations in all formats of `camrt evaluate`.

usage: python scripts/write_clutter.py OUT [--count 2000] [--source clutter:drawn,seed=3] [--first 0]

    OUT/images/digit_00000001.png    the canvases, 100 x 100 pixels
    OUT/annotations/*.xml            an XML file in VOC format for each image (camrt evaluate ilsvrc --annotations)
    OUT/ground_truth.txt             the class of each image, counted from 1, one per line (--ground-truth)
    OUT/classes.txt                  the names and numbers of the classes (--meta)
    OUT/boxes.csv                    image,class,x1,y1,x2,y2,mask (camrt evaluate wsol --csv)
    OUT/metadata/*.txt               metadata of wsolevaluation with boxes (--metadata)
    OUT/metadata_masks/*.txt         the same with masks
    OUT/masks/digit_00000001.png     the pixels of the digit (--masks)

The same arguments give byte-identical files. --source is a data source as for camrt train, with drawn digits or those
of MNIST, such as clutter:t10k-images-idx3-ubyte.gz,first=8000.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from camrt import render, results
from camrt.errors import CamrtError
from camrt.train.clutter import Clutter
from converters.terminal import bar

SOURCE = "clutter:drawn,seed=3"  # lenetCAM was trained with seed 1, and tested during training with seed 2
_BATCH = 256  # canvases at a time
_XML = """<annotation>
  <folder>images</folder>
  <filename>{name}</filename>
  <size><width>{side}</width><height>{side}</height><depth>3</depth></size>
  <object>
    <name>{label}</name>
    <bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>
  </object>
</annotation>
"""


def write_clutter(out: Path, clutter: Clutter, count: int, first: int = 0) -> None:
    """Write the dataset.

    Args:
        out: The folder. It is created if it does not exist.
        clutter: The generator.
        count: The number of images.
        first: The number of the first canvas.

    Raises:
        CamrtError: A file cannot be written, or the folder contains further images.
    """
    expected = {_name(number) for number in range(1, count + 1)}
    others = sorted({file.stem for file in (out / "annotations").glob("*.xml")} - expected)
    if others:
        raise CamrtError(
            f"contains the annotations of {len(others):,} further images, such as {others[0]}.xml, expected a dataset "
            f"of {count:,} images or an empty folder",
            file=str(out),
        )
    lone = replace(clutter, distractors=0)  # the same digits at the same positions, without clutter
    rows: list[tuple[str, int, list[int]]] = []
    with bar("writing", count, bytes_=False) as advance:
        for start in range(first, first + count, _BATCH):
            indices = np.arange(start, min(start + _BATCH, first + count))
            images, labels, boxes = clutter.batch(indices)
            digits = lone.batch(indices)[0]
            for image, digit, label, box in zip(images, digits, labels.tolist(), boxes.tolist(), strict=True):
                name = _name(len(rows) + 1)
                _write_image(out, name, image, digit, label, box)
                rows.append((name, label, box))
                advance(1)
    _write_lists(out, rows, clutter.size)


def _name(number: int) -> str:
    return f"digit_{number:08d}"


def _write_image(
    out: Path, name: str, image: NDArray[np.uint8], digit: NDArray[np.uint8], label: int, box: list[int]
) -> None:
    x1, y1, x2, y2 = box  # counted from 0, x2 and y2 exclusive; in VOC, counted from 1, and inclusive
    text = _XML.format(name=f"{name}.png", side=len(image), label=label, x1=x1 + 1, y1=y1 + 1, x2=x2, y2=y2)
    results.write(out / "images" / f"{name}.png", render.png(image))
    results.write(out / "masks" / f"{name}.png", render.png(np.where(digit > 0, 255, 0).astype(np.uint8)))
    results.write(out / "annotations" / f"{name}.xml", text.encode())


def _write_lists(out: Path, rows: list[tuple[str, int, list[int]]], side: int) -> None:
    files = {
        "ground_truth.txt": [str(label + 1) for _, label, _ in rows],
        "classes.txt": [f"{label} {label + 1}" for label in range(10)],
        "boxes.csv": [
            "image,class,x1,y1,x2,y2,mask",
            *(f"{name}.png,{label},{_inside(box)},{name}.png" for name, label, box in rows),
        ],
    }
    for folder, localization in (
        ("metadata", [f"{name}.png,{_inside(box)}" for name, _, box in rows]),
        ("metadata_masks", [f"{name}.png,{name}.png," for name, _, _ in rows]),
    ):
        files[f"{folder}/image_ids.txt"] = [f"{name}.png" for name, _, _ in rows]
        files[f"{folder}/class_labels.txt"] = [f"{name}.png,{label}" for name, label, _ in rows]
        files[f"{folder}/image_sizes.txt"] = [f"{name}.png,{side},{side}" for name, _, _ in rows]
        files[f"{folder}/localization.txt"] = localization
    for name, lines in files.items():
        results.write(out / name, "".join(f"{line}\n" for line in lines).encode())


def _inside(box: Iterable[int]) -> str:
    """Format a box as in wsolevaluation: counted from 0, with x2 and y2 inclusive."""
    x1, y1, x2, y2 = box
    return f"{x1},{y1},{x2 - 1},{y2 - 1}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--count", type=int, default=2000, help="the number of images")
    parser.add_argument("--source", default=SOURCE, help="the source of the canvases")
    parser.add_argument("--first", type=int, default=0, help="the number of the first canvas")
    options = parser.parse_args()
    if options.count < 1 or options.first < 0:
        parser.error(f"found --count {options.count} and --first {options.first}, expected at least 1 and 0")
    try:
        write_clutter(options.out, Clutter.parse(options.source), options.count, options.first)
    except CamrtError as error:
        sys.exit(f"error: {error}")
    print(options.out)


if __name__ == "__main__":
    main()
