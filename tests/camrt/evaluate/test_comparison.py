"""Methods side by side: the numbers of the metrics, what is left out, and the page."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from typer.testing import CliRunner

import camrt
import camrt.images
from camrt import CamrtError, CamrtWarning
from camrt.blackbox.scorer import Scorer
from camrt.cli import app
from camrt.commands import compare as command
from camrt.evaluate import faithfulness
from camrt.evaluate.comparison import DEFAULT_METHODS, MEASURES, Row, best, means
from camrt.evaluate.comparison_page import page
from tests.tiny_models import photo, tiny_classifier

METHODS = ["gradcam", "rise", "baseline-center"]
FAST = {"rise": {"masks": 20}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    onnx.save(tiny_classifier(), path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"<b>{n}.png" for n in range(2)]
    for n, path in enumerate(paths):
        Image.fromarray(photo(40 + n, 50, n)).save(path)
    return paths


@pytest.fixture(scope="module")
def rows(model: Path, photos: list[Path]) -> list[Row]:
    return camrt.compare(photos, model, METHODS, settings=FAST, providers="cpu")


def test_a_row_for_each_method_and_image(rows: list[Row], photos: list[Path]) -> None:
    assert [(row.method, row.image) for row in rows] == [(name, str(path)) for name in METHODS for path in photos]
    assert all(row.seconds > 0 for row in rows)


def test_all_methods_explain_the_best_class(rows: list[Row], model: Path, photos: list[Path]) -> None:
    explainer = camrt.Explainer(model, top=1, protocol="whole", providers="cpu")
    for row in rows:
        expected = explainer(row.image)
        assert (row.target, row.label) == (expected.classes[0], expected.labels[0])
        np.testing.assert_allclose(row.score, expected.scores[0], rtol=1e-5)


def test_the_numbers_are_those_of_the_metrics(rows: list[Row], model: Path) -> None:
    scorer = Scorer(onnx.load(model), "whole", providers="cpu")
    for row in rows[:3]:
        square = np.asarray(camrt.images.load(row.image, scorer.size).square)
        planes, heatmap = scorer.prepare(square), row.explanation.heatmaps[0]
        insertion = faithfulness.insertion_scores(planes, heatmap, row.target, scorer)
        deletion = faithfulness.deletion_scores(planes, heatmap, row.target, scorer)
        np.testing.assert_allclose(row.insertion, np.trapezoid(insertion) / (len(insertion) - 1), rtol=1e-6)
        np.testing.assert_allclose(row.deletion, np.trapezoid(deletion) / (len(deletion) - 1), rtol=1e-6)
        assert -0.5 <= row.road <= 0.5


def test_a_given_class(model: Path, photos: list[Path]) -> None:
    (row,) = camrt.compare(photos[0], model, ["eigencam"], target="class <3> & co", providers="cpu")
    assert (row.target, row.label) == (3, "class <3> & co")
    assert row.explanation.classes.tolist() == [3]


def test_arrays_are_told_apart(model: Path) -> None:
    rows = camrt.compare([photo(30, 30, 1), photo(30, 30, 2)], model, ["baseline-center"], providers="cpu", step=300)
    assert len({row.image for row in rows}) == 2
    assert len(camrt.compare(photo(30, 30, 1), model, ["baseline-center"], providers="cpu", step=300)) == 1


def test_what_fails_does_not_stop_the_others(model: Path, photos: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("not an image")
    told: list[str] = []
    counted: list[int] = []
    rows = camrt.compare(
        [photos[0], bad, photos[1]], model, ["gradcam", "baseline-center"], settings={"gradcam": {"nothing": 1}},
        on_error=lambda what, error: told.append(f"{what}: {error}"), progress=counted.append, providers="cpu",
    )  # fmt: skip
    assert [row.image for row in rows] == [str(photos[0]), str(photos[1])]
    assert len(told) == 2
    assert "bad.png" in told[0]
    assert "nothing" in told[1]
    assert sum(counted) == 6
    with pytest.warns(CamrtWarning, match=r"bad\.png"):
        assert camrt.compare([bad], model, ["baseline-center"], providers="cpu") == []
    with pytest.raises(CamrtError, match=r"bad\.png"):
        camrt.compare([bad], model, ["baseline-center"], on_error="raise", providers="cpu")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"methods": []}, "expected several"),
        ({"methods": "gradcam"}, "a list of names"),
        ({"settings": {"rise": {}}}, "settings of rise"),
        ({"target": 99}, "99"),
        ({"model": "nothing.onnx"}, "no such file"),
    ],
)
def test_wrong_arguments(model: Path, photos: list[Path], arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(CamrtError, match=text):
        camrt.compare(photos, **{"model": model, "methods": ["gradcam"], "providers": "cpu", **arguments})


def test_means_are_over_the_images_that_all_methods_have(rows: list[Row]) -> None:
    found = means(rows)
    np.testing.assert_allclose(found["rise"]["road"], (rows[2].road + rows[3].road) / 2)
    partial = means(rows[:-1])  # one method lacks the second image
    np.testing.assert_allclose(partial["rise"]["road"], rows[2].road)
    assert means([]) == {}


def test_the_best_by_each_measure() -> None:
    values = {
        "a": {"seconds": 1.0, "insertion": 0.5, "deletion": 0.2, "road": 0.1},
        "b": {"seconds": 2.0, "insertion": 0.5, "deletion": 0.1, "road": -0.1},
    }
    assert best(values) == {"seconds": ["a"], "insertion": ["a", "b"], "deletion": ["b"], "road": ["a"]}


class _Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.best = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attributes)
        self.best += values.get("class") == "best"
        self.sources += [value or "" for name, value in values.items() if name in ("src", "href")]


def test_the_page_is_one_file(rows: list[Row]) -> None:
    html = page(rows, model="<i>tiny", failed=["<u>gone"])
    found = _Page(html)
    assert all(source.startswith("data:image/") for source in found.sources)
    assert {"b", "i", "u", "script"}.isdisjoint(found.tags)  # text is escaped, and there is no script
    assert found.tags.count("img") == 1 + 2 * (1 + len(METHODS))
    assert found.tags.count("tr") == 1 + len(METHODS)
    assert found.best >= len(MEASURES) * 3  # in the table, and for each of two images
    assert _Page(page(rows[:1])).best == 0  # one method is not the best of several


def test_the_command(model: Path, photos: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.html"
    arguments = ["compare", *map(str, photos), "--model", str(model), "--provider", "cpu", "--out", str(out)]
    chosen = ["--methods", "gradcam,rise", "--set", "rise.masks=20", "--step", "200"]
    result = CliRunner().invoke(app, [*arguments, *chosen])
    assert result.exit_code == 0, result.output
    assert "deletion" in result.stdout
    assert out.read_text().startswith("<!DOCTYPE html>") or "<html" in out.read_text()
    result = CliRunner().invoke(app, [*arguments, *chosen, "--json"])
    record = json.loads(result.stdout)
    assert [row["method"] for row in record["rows"]] == ["gradcam", "gradcam", "rise", "rise"]
    assert set(record["means"]["rise"]) == set(record["best"]) == set(MEASURES)


def test_the_command_names_what_it_leaves_out(model: Path, photos: list[Path], tmp_path: Path) -> None:
    arguments = ["compare", str(photos[0]), "gone.png", "--model", str(model), "--out", str(tmp_path / "x.html")]
    result = CliRunner().invoke(app, [*arguments, "--methods", "baseline-center", "--step", "200", "--json"])
    assert result.exit_code == 1
    assert len(json.loads(result.stdout)["rows"]) == 1
    assert "gone.png: there is no such file" in result.stderr


def test_the_command_prints_json_where_nothing_can_be_compared(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.html"
    result = CliRunner().invoke(app, ["compare", "gone.png", "--model", str(model), "--out", str(out), "--json"])
    assert result.exit_code == 1
    record = json.loads(result.stdout)
    assert (record["rows"], record["page"], len(record["failed"])) == ([], None, 1)
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--methods", "gradcam,nothing"],
        ["--methods", "gradcam", "--set", "masks=3"],
        ["--methods", "gradcam", "--set", "rise.masks=3"],
        ["--protocol", "ten-crop"],
    ],
)
def test_wrong_options(model: Path, photos: list[Path], arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["compare", str(photos[0]), "--model", str(model), *arguments])
    assert result.exit_code == 2
    assert "expected" in result.output


def test_the_default_methods_are_the_same_in_python_and_on_the_command_line() -> None:
    assert command._METHODS.split(",") == list(DEFAULT_METHODS)
