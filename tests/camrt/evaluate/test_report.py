"""Tables, curves, and the pages of the images that were localized worst and best."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from camrt import Explanation
from camrt.cli import app
from camrt.evaluate import report, wsol
from camrt.evaluate.datasets import AnnotatedImage, Dataset
from camrt.evaluate.ilsvrc_protocol import LocalizationErrors
from camrt.evaluate.report import ComparedImage, worst_and_best_guesses
from camrt.evaluate.wsol_protocol import MethodMetrics
from tests.camrt.evaluate.shapes import write_shapes
from tests.tiny_models import LABELS, tiny_explainer


def guessed(widths: list[int], right: list[int], blacklist: tuple[int, ...] = ()) -> tuple[LocalizationErrors, Dataset]:
    """Images whose ground truth is 10 pixels wide, guessed narrower; the guess that has the class."""
    predictions = np.zeros((len(widths), 25))
    for image, (width, guess) in enumerate(zip(widths, right, strict=True)):
        predictions[image, ::5] = 2
        predictions[image, 3::5] = predictions[image, 4::5] = 9
        if guess >= 0:
            predictions[image, 5 * guess : 5 * guess + 5] = 1, 1, 1, width, 10
    box = (1.0, 1.0, 10.0, 10.0)
    images = tuple(AnnotatedImage(f"image {number}", 1, "truth", (box,)) for number in range(len(widths)))
    return LocalizationErrors({"bbox1": predictions}, {}, {}, {}), Dataset("list", images, blacklist)


def test_worst_and_best_guesses() -> None:
    found, data = guessed([5, 9, 1, 3, 7, 8], [0, 2, 4, 1, -1, 0], blacklist=(6,))
    worst, best = worst_and_best_guesses(found, data, each=2)
    assert [(case.position, case.guess, case.overlap) for case in worst] == [(2, 4, 0.1), (3, 1, 0.3)]
    assert [(case.position, case.guess, case.overlap) for case in best] == [(1, 2, 0.9), (0, 0, 0.5)]
    worst, best = worst_and_best_guesses(found, data, each=12)  # none is in both
    assert ([case.position for case in worst], [case.position for case in best]) == ([2, 3], [1, 0])
    found, data = guessed([5], [0])
    assert [len(cases) for cases in worst_and_best_guesses(found, data)] == [1, 0]
    found, data = guessed([5], [-1])
    assert worst_and_best_guesses(found, data) == ([], [])


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


# --------------------------------------------------------------------------------------------------- methods compared

IMAGES = tuple(AnnotatedImage(f"{number}.png", 0, "list:1", ((10, 20, 29, 59),)) for number in range(5))


def metrics(method: str, **numbers: float) -> MethodMetrics:
    curve = np.linspace(1, 0, 1000)
    names = [f"{mode} {overlap:g}" for mode in ("largest", "all") for overlap in wsol.OVERLAPS]
    return MethodMetrics(method, 5, 0, {}, numbers, dict.fromkeys([*names, "top-1", "top-5"], curve))


def explanation(name: str = "0.png") -> Explanation:
    heatmap = np.zeros((1, 50, 50), np.float32)
    heatmap[0, 10:30, 5:15] = 1
    pixels = np.zeros((100, 100, 3), np.uint8)
    scores = np.full(1, 0.5, np.float32)
    return Explanation(pixels, name, np.array([0]), scores, ("<cat>",), heatmap, scores)


def test_what_is_missing_of_a_method_is_a_dash() -> None:
    table = report.metric_table([metrics("cam", MaxBoxAcc=0.5, ROAD=-0.1234), metrics("gradcam", PxAP=1)])
    assert table.heads == ["method", "MaxBoxAcc", "PxAP", "ROAD"]
    assert table.rows == [["cam", "50.00", "–", "-0.123"], ["gradcam", "–", "100.00", "–"]]


def test_at_the_best_threshold_gt_known_is_maxboxacc() -> None:
    same = {"MaxBoxAcc": 0.5, "GT-known": 0.5, "threshold": 0.2}
    assert report.metric_table([metrics("cam", **same)]).heads == ["method", "GT-known = MaxBoxAcc", "threshold"]
    other = metrics("cam", **{**same, "GT-known": 0.4})
    assert report.metric_table([other]).heads == ["method", "MaxBoxAcc", "GT-known", "threshold"]


def test_the_sweep_has_a_row_for_each_method_and_threshold() -> None:
    lines = report.sweep_csv([metrics("cam"), metrics("gradcam++")]).splitlines()
    assert lines[0] == "method,threshold,largest 0.3,largest 0.5,largest 0.7,all 0.3,all 0.5,all 0.7,top-1,top-5"
    assert len(lines) == 1 + 2 * 1000
    assert lines[1].startswith("cam,0.000,1.000000,")
    assert lines[-1].startswith("gradcam++,0.999,0.000000,")


def test_images_that_the_first_method_localized_worst_and_best() -> None:
    overlaps = {
        "cam": dict(zip([each.image for each in IMAGES], (0.5, 0.1, 0.9, 0.3, 0.7), strict=True)),
        "b": {"1.png": 0.4},
    }
    shown = report.compared_images(IMAGES, overlaps, each=2)
    assert [(one.heading, one.annotated.image) for one in shown] == [
        ("worst 1", "1.png"), ("worst 2", "3.png"), ("best 1", "2.png"), ("best 2", "4.png"),
    ]  # fmt: skip
    assert [dict(one.overlaps) for one in shown[:2]] == [{"cam": 0.1, "b": 0.4}, {"cam": 0.3, "b": 0.0}]
    few = report.compared_images(IMAGES, {"cam": {"0.png": 0.1, "4.png": 0.2, "2.png": 0.3}}, each=12)
    assert [one.heading for one in few] == ["worst 1", "worst 2", "best 1"]


def test_the_box_of_the_page_is_that_which_was_measured() -> None:
    heatmap = explanation().heatmaps[0]
    grey = wsol.gray_levels(wsol.normalized(heatmap))
    boxes, largest = wsol.boxes_above(grey, int(wsol.levels_of([0.5])[0]))
    assert boxes[largest].tolist() == [5, 10, 15, 30]
    assert report.found_box(heatmap, 0.5, (100, 200), 50).tolist() == [[10, 40, 20, 80]]
    assert report.found_box(heatmap * 0, 0.5, (100, 200), 50).tolist() == [[0, 0, 0, 0]]


def test_the_page_escapes_names_and_draws_both_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[list[float], tuple[int, ...]]] = []
    original = report.render.draw_boxes

    def note(image, boxes, *, color):
        drawn.append((np.asarray(boxes).ravel().tolist(), color))
        return original(image, boxes, color=color)

    monkeypatch.setattr(report.render, "draw_boxes", note)
    shown = [ComparedImage(AnnotatedImage("<i>.png", 0, "list:1", ((10, 20, 29, 59),)), "worst 1", {"cam": 0.25})]
    numbers = {"MaxBoxAcc": 0.5, "threshold": 0.5}
    page = report.comparison_page(shown, {"cam": [explanation()]}, [metrics("cam", **numbers)], side=50, note="a & b")
    assert "worst 1 · &lt;i&gt;.png" in page
    assert "&lt;cat&gt;" in page
    assert "<i>" not in page
    assert "a &amp; b" in page
    assert "IoU 0.250" in page
    true, found = [32, 64, 64, 128], [32, 64, 64, 128]  # 3.2 pixels of the page are one of the image's
    assert drawn == [(true, (60, 220, 90)), (true, (60, 220, 90)), (found, (255, 255, 255))]


# ---------------------------------------------------------------------------------------------------------- the curves


def sweeping(method: str, half: np.ndarray) -> MethodMetrics:
    found = metrics(method)
    return MethodMetrics(method, 5, 0, {}, {}, {**found.sweep, "largest 0.5": half, "largest 0.3": half / 2})


def test_lines_are_where_the_numbers_are() -> None:
    pytest.importorskip("matplotlib", reason="pip install matplotlib")
    first, second = np.linspace(0, 1, 1000) ** 2, np.sin(np.linspace(0, np.pi, 1000))
    figure = report.sweep_figure([sweeping("cam", first), sweeping("gradcam", second)], "title")
    lines = figure.axes[0].get_lines()
    drawn = {(line.get_color(), line.get_linestyle()): line.get_ydata() for line in lines if len(line.get_xdata()) > 1}
    assert len(drawn) == 6  # two methods, three overlaps each
    colors = list(dict.fromkeys(color for color, _ in drawn))
    for color, half in zip(colors, (first, second), strict=True):
        assert np.array_equal(drawn[color, "-"], half)
        assert np.array_equal(drawn[color, ":"], half / 2)
    marks = [(*line.get_xdata(), *line.get_ydata()) for line in lines if len(line.get_xdata()) == 1]
    assert marks == [(0.999, 1.0), (pytest.approx(0.5, abs=0.002), pytest.approx(1, abs=1e-5))]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["cam", "gradcam", "IoU 0.3", "IoU 0.5", "IoU 0.7"]


def test_a_long_legend_makes_the_picture_higher() -> None:
    pytest.importorskip("matplotlib", reason="pip install matplotlib")
    few = report.sweep_picture([sweeping("cam", np.zeros(1000))], "few")
    many = report.sweep_picture([sweeping(f"method {number}", np.zeros(1000)) for number in range(40)], "many")
    assert (few.shape, few.dtype) == ((560, 900, 3), np.uint8)
    assert many.shape[1:] == (900, 3)
    assert many.shape[0] > 560


def test_colors_can_be_told_apart() -> None:
    pytest.importorskip("matplotlib", reason="pip install matplotlib")
    picture = report.sweep_picture([sweeping("cam", np.full(1000, 0.5)), sweeping("b", np.full(1000, 0.75))], "")
    rows = [np.unique(np.nonzero(np.abs(picture[:, 100:600].astype(int) - color).max(axis=2) < 30)[0])
            for color in ((0, 114, 178), (213, 94, 0))]  # fmt: skip
    assert rows[0].min() > rows[1].min()  # the first line is lower
