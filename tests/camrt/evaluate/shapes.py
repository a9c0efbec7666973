"""A dataset of colored rectangles in the devkit's files, and what the tests of both protocols do with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from camrt.cli import app
from tests.tiny_cam import GREY, LABELS

COLORS = {"red": (214, 44, 38), "green": (46, 168, 66), "blue": (42, 84, 216), "yellow": (236, 206, 44)}
NUMBERS = dict(zip(LABELS, (3, 1, 6, 2, 4, 5), strict=True))  # in the ground truth


@dataclass(frozen=True)
class Shapes:
    """Where the files are.

    Attributes:
        images: The folder of the images.
        xml: The folder of the annotations.
        truth: The ground truth.
        mapping: The numbers of the classes.
        names: The images' names.
    """

    images: Path
    xml: Path
    truth: Path
    mapping: Path
    names: tuple[str, ...]

    @property
    def options(self) -> list[str]:
        """Of the command."""
        files = {
            "--images": self.images,
            "--annotations": self.xml,
            "--ground-truth": self.truth,
            "--meta": self.mapping,
        }
        return [str(part) for pair in files.items() for part in pair]


def write_shapes(folder: Path, count: int, *, labels: tuple[str, ...] = LABELS, seed: int = 5) -> Shapes:
    """Writes images of a rectangle each: red, green, blue, yellow, red, ...

    Args:
        folder: Where they go.
        count: How many.
        labels: What the classes are called, in the order of `LABELS`.
        seed: Of sizes and places.
    """
    rng = np.random.default_rng(seed)
    images, xml = folder / "images", folder / "xml"
    images.mkdir(parents=True)
    xml.mkdir()
    called = dict(zip(LABELS, labels, strict=False))
    names, truth = [], []
    for number in range(count):
        color = list(COLORS)[number % len(COLORS)]
        width, height = rng.integers(90, 200, 2)
        w, h = rng.integers(35, 60, 2)
        x, y = rng.integers(0, width - w), rng.integers(0, height - h)
        pixels = np.full((height, width, 3), GREY, np.uint8)
        pixels[y : y + h, x : x + w] = COLORS[color]
        name = f"shape_{number + 1:05}"
        Image.fromarray(pixels).save(images / f"{name}.jpg", quality=95)
        sides = zip(("xmin", "ymin", "xmax", "ymax"), (x + 1, y + 1, x + w, y + h), strict=True)
        box = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
        label = called[color].replace("&", "&amp;").replace("<", "&lt;")
        (xml / f"{name}.xml").write_text(
            f"<annotation><filename>{name}</filename><size><width>{width}</width><height>{height}</height></size>"
            f"<object><name>{label}</name><bndbox>{box}</bndbox></object></annotation>"
        )
        names.append(name)
        truth.append(NUMBERS[color])
    (folder / "truth.txt").write_text("".join(f"{number}\n" for number in truth))
    numbers = [*NUMBERS.values(), *range(len(NUMBERS) + 1, len(labels) + 1)]
    mapping = zip(labels, numbers, strict=True)
    (folder / "map.txt").write_text("".join(f"{label} {number}\n" for label, number in mapping))
    return Shapes(images, xml, folder / "truth.txt", folder / "map.txt", tuple(names))


def write_table(folder: Path, count: int) -> Path:
    """Write images of a colored rectangle each, their masks, and boxes.csv."""
    found = write_shapes(folder, count)
    (folder / "masks").mkdir()
    rows = ["image,class,x1,y1,x2,y2,mask"]
    for number, name in enumerate(found.names):
        color = list(COLORS)[number % len(COLORS)]
        pixels = np.asarray(Image.open(found.images / f"{name}.jpg")).astype(int)
        mask = (np.abs(pixels - COLORS[color]).max(axis=2) < 40).astype(np.uint8)
        y, x = np.nonzero(mask)
        Image.fromarray(mask * 255).save(folder / "masks" / f"{name}.png")
        rows.append(f"{name}.jpg,{color},{x.min()},{y.min()},{x.max()},{y.max()},{name}.png")
    (folder / "boxes.csv").write_text("\n".join(rows) + "\n")
    return folder


def evaluate(*arguments: object) -> tuple[int, str, str]:
    """Runs the command `camrt evaluate`.

    Returns:
        The exit status, stdout and stderr.
    """
    done = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def journal_lines(out: Path, name: str = "*") -> list[dict[str, object]]:
    """The lines of all journals of a folder, without their heads."""
    found = [json.loads(line) for file in sorted(out.glob(f"{name}.jsonl")) for line in file.read_text().splitlines()]
    return [line for line in found if "image" in line]
