"""scripts/write_clutter.py: the files are those of the generator, and agree with each other."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from camrt.evaluate import devkit
from camrt.evaluate.datasets import read_csv, read_ilsvrc, read_metadata
from camrt.train.clutter import Clutter

SOURCE = "clutter:drawn,count=50,seed=9"
COUNT = 7


def written(repository: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(repository / "scripts" / "write_clutter.py"), str(out), "--source", SOURCE, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def data(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clutter") / "data"
    done = written(repository, out, "--count", str(COUNT), "--first", "3")
    assert done.returncode == 0, done.stderr
    return out


def test_the_files_hold_what_the_generator_gives(data: Path) -> None:
    images, labels, boxes = Clutter.parse(SOURCE).batch(range(3, 3 + COUNT))
    table = read_csv(data / "boxes.csv")
    assert len(table) == COUNT
    for each, image, label, (x1, y1, x2, y2) in zip(table.images, images, labels.tolist(), boxes.tolist(), strict=True):
        assert np.array_equal(cv2.imread(str(data / "images" / each.image), cv2.IMREAD_UNCHANGED), image)
        assert (each.label, each.boxes) == (label, ((x1, y1, x2 - 1, y2 - 1),))
        mask = cv2.imread(str(data / "masks" / each.masks[0]), cv2.IMREAD_UNCHANGED) > 0
        rows, columns = np.nonzero(mask)
        assert (columns.min(), rows.min(), columns.max(), rows.max()) == each.boxes[0]
        assert (image[mask] > 0).all()
        assert mask.sum() < (image > 0).sum()  # there is clutter beside it


def test_all_annotations_say_the_same(data: Path) -> None:
    table, boxes, masks = (
        read_csv(data / "boxes.csv"), read_metadata(data / "metadata"), read_metadata(data / "metadata_masks"),
    )  # fmt: skip
    assert [(each.image, each.label, each.boxes) for each in boxes.images] == [
        (each.image, each.label, each.boxes) for each in table.images
    ]
    assert [each.masks for each in masks.images] == [each.masks for each in table.images]
    devkits = read_ilsvrc(data / "annotations", data / "ground_truth.txt", meta=data / "classes.txt")
    assert [f"{name}.png" for name in devkits.names] == [each.image for each in table.images]
    assert devkits.sizes == tuple(each.size for each in boxes.images)
    assert devkit.read_synsets(data / "classes.txt") == {str(number): number + 1 for number in range(10)}
    for found, truth, each in zip(devkits.boxes, devkits.truth.tolist(), table.images, strict=True):
        # Counted from 1 there.
        assert found.tolist() == [[int(each.label) + 1, *(corner + 1 for corner in each.boxes[0])]]
        assert truth == int(each.label) + 1


def test_the_same_arguments_write_the_same_bytes(repository: Path, data: Path, tmp_path: Path) -> None:
    assert written(repository, tmp_path / "again", "--count", str(COUNT), "--first", "3").returncode == 0
    assert digest(tmp_path / "again") == digest(data)


def digest(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--count", "2"], "contains the annotations of 5 further images"),
        (["--count", "0"], "expected at least 1"),
        (["--source", "clutter:drawn,count=1"], "expected at least 2"),
        (["--source", "noise"], "found the source 'noise'"),
    ],
)
def test_what_it_refuses(repository: Path, data: Path, options: list[str], message: str) -> None:
    before = digest(data)
    done = written(repository, data, *options)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert digest(data) == before
