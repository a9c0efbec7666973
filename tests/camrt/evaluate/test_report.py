"""The page of the worst and the best images."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from camrt.cli import app
from camrt.evaluate.dataset import Dataset
from camrt.evaluate.localization import Outcome
from camrt.evaluate.report import worst_and_best
from tests.camrt.evaluate.shapes import write_shapes
from tests.tiny_models import LABELS, tiny_explainer


def outcome(widths: list[int], right: list[int], blacklist: tuple[int, ...] = ()) -> tuple[Outcome, Dataset]:
    """Images whose ground truth is 10 pixels wide, guessed narrower; the guess that has the class."""
    predictions = np.zeros((len(widths), 25))
    for image, (width, guess) in enumerate(zip(widths, right, strict=True)):
        predictions[image, ::5] = 2
        predictions[image, 3::5] = predictions[image, 4::5] = 9
        if guess >= 0:
            predictions[image, 5 * guess : 5 * guess + 5] = 1, 1, 1, width, 10
    boxes = [np.array([[1.0, 1, 1, 10, 10]])] * len(widths)
    names = tuple(f"image {number}" for number in range(len(widths)))
    data = Dataset(names, np.ones(len(widths), np.int64), boxes, (None,) * len(widths), blacklist)
    return Outcome({"bbox1": predictions}, {}, {}, {}), data


def test_worst_and_best() -> None:
    found, data = outcome([5, 9, 1, 3, 7, 8], [0, 2, 4, 1, -1, 0], blacklist=(6,))
    worst, best = worst_and_best(found, data, each=2)
    assert [(case.place, case.guess, case.overlap) for case in worst] == [(2, 4, 0.1), (3, 1, 0.3)]
    assert [(case.place, case.guess, case.overlap) for case in best] == [(1, 2, 0.9), (0, 0, 0.5)]
    worst, best = worst_and_best(found, data, each=12)  # none is in both
    assert ([case.place for case in worst], [case.place for case in best]) == ([2, 3], [1, 0])
    found, data = outcome([5], [0])
    assert [len(cases) for cases in worst_and_best(found, data)] == [1, 0]
    found, data = outcome([5], [-1])
    assert worst_and_best(found, data) == ([], [])


class Reader(HTMLParser):
    """What a page holds, and that its elements are closed as they were opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []
        self.text = ""
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("img", "meta"):
            self.images += [value for name, value in attrs if name == "src" and value]
            return
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open[-1:] == ["td"]:
            self.cells.append(data)


@pytest.mark.parametrize("count", [1, 30])
def test_the_page(tmp_path: Path, count: int) -> None:
    shapes = write_shapes(tmp_path / "shapes", count, labels=LABELS)
    onnx.save(tiny_explainer(), tmp_path / "fast.onnx")
    out = tmp_path / "out"
    options = [*shapes.options, "--model", str(tmp_path / "fast.onnx"), "--out", str(out), "--workers", "0"]
    done = CliRunner().invoke(app, ["evaluate", "ilsvrc", *options, "--html", "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["files"]["page"] == str(out / "index.html")
    reader = Reader()
    reader.feed((out / "index.html").read_text())
    assert reader.open == []
    assert len(reader.cells) == 30
    assert reader.cells[0] == f"{100 * facts['rankings']['bbox1']['localization'][0]:.2f}"
    assert all(image.startswith("data:image/") for image in reader.images)  # one file
    shown = (len(reader.images) - 1) // 2  # beside the colour scale: two of each
    assert reader.text.count("worst ") + reader.text.count("best ") >= shown
    if count == 30:
        assert 2 <= shown <= 24
        assert "class <" in reader.text  # a label with characters of HTML
