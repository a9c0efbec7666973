from __future__ import annotations

import dataclasses
import io
import json
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from typer.testing import CliRunner

from camrt import CamrtError, Explanation, Style, images, render, report
from camrt.batch import Batch, find_images
from camrt.cli import app
from camrt.explanation import LINES, Refined
from camrt.localize import boxes_from_mask
from camrt.localize.crf import CRF, probability
from camrt.render import PLAIN
from tests.tiny_models import photo, tiny_explainer

SIDE = 32
QUICK = CRF((6, 20, 5), None, 3)


def scene(height: int = 60, width: int = 90) -> np.ndarray:
    """An orange disc on green, (height, width, 3) uint8."""
    image = np.full((height, width, 3), (40, 90, 40), np.uint8)
    image[disc(height, width)] = (220, 150, 30)
    return image


def disc(height: int = 60, width: int = 90) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    inside: np.ndarray = (y - height * 0.5) ** 2 + (x - width * 0.4) ** 2 < (height * 0.3) ** 2
    return inside


def example(image: np.ndarray | None = None) -> Explanation:
    """Two classes: what is on the disc, and what is nowhere."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    on = 20 * np.exp(-((y - 0.5) ** 2 + (x - 0.42) ** 2) / 0.06)
    return Explanation(
        image=scene() if image is None else image,
        source="photos/disc.png",
        classes=np.array([7, 1]),
        scores=np.array([0.8, 0.1], np.float32),
        labels=("orange", "nothing"),
        heatmaps=np.stack([on, np.zeros_like(on)]).astype(np.float32),
        all_scores=np.linspace(0, 1, 8, dtype=np.float32),
    )


# ----------------------------------------------------------------------------------------------------------- the value


def test_the_demo(reference: Path) -> None:
    """The marginals that pydensecrf2 gives for the demo's image and maps."""
    with np.load(reference / "matlab_demo" / "expected_img1.npz") as demo:
        one = Explanation(
            image=np.asarray(Image.open(reference / "matlab_demo" / "img1.jpg")),
            source="img1.jpg",
            classes=demo["top5_index0"],
            scores=demo["top5_score"],
            labels=tuple("abcde"),
            heatmaps=demo["merged"],
            all_scores=demo["top5_score"],
        )
    two = dataclasses.replace(
        one, classes=one.classes[:2], scores=one.scores[:2], labels=("cup", "espresso"), heatmaps=one.heatmaps[:2]
    )
    found = two.refine()
    with np.load(reference / "crf" / "img1.npz") as stored:
        np.testing.assert_allclose(found.marginals, stored["marginal_seed"], atol=1e-5)
        for i, marginal in enumerate(stored["marginal_seed"]):
            np.testing.assert_array_equal(found.mask(i), marginal > 0.5)
            np.testing.assert_array_equal(found.boxes(i), boxes_from_mask(marginal > 0.5))
    x, y, width, height = found.boxes(0)[0]
    # The cup with the rim of its saucer, as the eye sees it.
    np.testing.assert_allclose([x, y, x + width, y + height], [115, 102, 180, 155], atol=12)


def test_the_mask_is_the_disc() -> None:
    one = example()
    rough = one.heatmap() > 0.5
    assert np.mean(rough != disc()) > 0.05
    found = one.refine()
    assert isinstance(found, Refined)
    assert found.marginals.shape == (2, 171, 256)
    assert np.mean(found.mask() != disc()) < 0.01
    rows, columns = disc().nonzero()
    expected = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    np.testing.assert_allclose(found.boxes(), [expected], atol=1)
    assert not found.mask(1).any()
    assert found.boxes(1).shape == (0, 4)


def test_it_is_computed_at_a_bounded_size() -> None:
    image = scene(600, 900)
    found = example(image).refine(crf=QUICK, side=48)
    assert found.marginals.shape == (2, 32, 48)
    small = images.resize(image, (32, 48))
    maps = np.stack([probability(images.resize(heatmap, (32, 48))) for heatmap in found.heatmaps])
    np.testing.assert_array_equal(found.marginals, QUICK.refine(small, maps))
    assert found.mask().shape == (600, 900)
    assert example(image[:1]).refine(crf=QUICK, side=20).marginals.shape == (2, 1, 20)
    assert example(image[:1, :1]).refine(crf=QUICK, side=20).marginals.shape == (2, 20, 20)


def test_what_the_maps_are() -> None:
    found = example().refine(crf=QUICK)
    heatmap = found.heatmap()
    resized = np.clip(images.resize(found.marginals[0], (60, 90)), 0, 1)
    np.testing.assert_array_equal(heatmap, resized)  # not divided by its maximum
    np.testing.assert_array_equal(found.mask(), resized > 0.5)
    np.testing.assert_array_equal(found.overlay(), render.overlay(found.image, found.marginals[0], limits=(0, 1)))
    assert found.heatmap(1).max() < 0.5
    np.testing.assert_array_equal(found.heatmaps, example().heatmaps)
    picture = found.picture(Style(boxes="all", caption=False))
    np.testing.assert_array_equal(picture[:, 98:188], render.draw_boxes(found.overlay(0), found.boxes(0)))
    np.testing.assert_array_equal(found.best_box(0), found.boxes(0)[:1])
    np.testing.assert_array_equal(found.overlay(1), found.image, "nothing is probable, and nothing is shown")
    assert found.demo_picture().shape == (SIDE, 3 * SIDE + 2 * 8, 3)
    for method in (found.heatmap, found.mask, found.boxes, found.best_box, found.overlay):
        with pytest.raises(CamrtError, match=r"photos/disc\.png: found class 2, expected 0 to 1"):
            method(2)


def test_another_image_gives_the_edges(tmp_path: Path) -> None:
    mirrored = scene()[:, ::-1]
    one = example(np.full((60, 90, 3), 90, np.uint8))
    assert np.array_equal(one.refine(scene(), crf=QUICK).marginals, example().refine(crf=QUICK).marginals)
    Image.fromarray(mirrored).save(tmp_path / "mirrored.png")
    found = one.refine(tmp_path / "mirrored.png", crf=QUICK)
    np.testing.assert_array_equal(found.marginals, one.refine(mirrored, crf=QUICK).marginals)
    np.testing.assert_array_equal(found.image, one.image)
    with pytest.raises(CamrtError, match="there is no such file"):
        one.refine(tmp_path / "none.png")


def test_it_is_frozen_and_pickles() -> None:
    found = example().refine(crf=QUICK, side=40)
    with pytest.raises(ValueError, match="read-only"):
        found.marginals[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.crf = CRF()
    other = pickle.loads(pickle.dumps(found))
    assert type(other) is Refined
    assert other.crf == QUICK
    np.testing.assert_array_equal(other.marginals, found.marginals)
    assert repr(found) == "<Explanation of photos/disc.png (90 x 60): 'orange' 0.800 and 1 more>"
    with pytest.raises(CamrtError, match=r"found marginals of shape \(1, 27, 40\), expected \(2, h, w\)"):
        dataclasses.replace(found, marginals=found.marginals[:1])


@pytest.mark.parametrize("side", [0, -1, 2049, 3.5, None])
def test_refused_sizes(side: int) -> None:
    with pytest.raises(CamrtError, match=r"found side=.*, expected an integer from 1 to 2048 pixels"):
        example().refine(side=side)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite(value: float) -> None:
    maps = np.array(example().heatmaps)
    maps[1, 3, 4] = value
    with pytest.raises(CamrtError, match=r"photos/disc\.png: the map of 'nothing' cannot be refined: .*finite"):
        dataclasses.replace(example(), heatmaps=maps).refine()


# -------------------------------------------------------------------------------------------------------------- saving


def test_files(tmp_path: Path) -> None:
    found = example().refine(crf=QUICK)
    facts = found.save(tmp_path, maps="png", form="png")
    assert facts["files"] == [f"disc_{what}{i}.png" for i in (1, 2) for what in ("top", "map", "mask")]
    mask = np.asarray(Image.open(tmp_path / "disc_mask1.png"))
    np.testing.assert_array_equal(mask, np.where(found.mask(), 255, 0))
    grey = np.asarray(Image.open(tmp_path / "disc_map1.png"))
    np.testing.assert_allclose(grey / 65535, found.heatmap(), atol=1e-5)
    line = json.loads((tmp_path / LINES).read_text())
    assert line == facts
    assert line["top"][0]["boxes"] == found.best_box().tolist()
    expected = {"bilateral": [6, 20, 5], "gaussian": None, "iterations": 3, "width": 256, "height": 171}
    assert line["crf"] == expected
    assert found.save_files(tmp_path, maps="npz", overlays=False) == [
        "disc_mask1.png",
        "disc_mask2.png",
        "disc_maps.npz",
    ]
    with np.load(io.BytesIO((tmp_path / "disc_maps.npz").read_bytes())) as maps:
        np.testing.assert_array_equal(maps["marginals"], found.marginals)
        np.testing.assert_array_equal(maps["heatmaps"], found.heatmaps.astype(np.float16))


def test_page() -> None:
    one = example()
    found = one.refine(crf=QUICK)
    assert report.html_card(found) != report.html_card(one)
    assert report.html_card(found, style=PLAIN) != report.html_card(found)


# ------------------------------------------------------------------------------------------------------- many images


@pytest.fixture
def model(tmp_path: Path) -> str:
    onnx.save(tiny_explainer(top=2), tmp_path / "tiny.onnx")
    return str(tmp_path / "tiny.onnx")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate(("a.png", "b.png")):
        Image.fromarray(photo(30, 40, seed)).save(folder / name)
    return folder


def test_other_settings_are_another_run(photos: Path, model: str, tmp_path: Path) -> None:
    out, (found, _) = tmp_path / "out", find_images([str(photos)])

    def explained(crf: CRF | None, side: int = 64) -> int:
        with Batch(out, model, crf=crf, side=side, maps="npz", style=Style(boxes="all")) as batch:
            assert batch.explain(found) == []
        return batch.explained

    assert [explained(QUICK), explained(QUICK), explained(QUICK, 32), explained(CRF((6, 20, 5), (3, 3), 3))] == [
        2,
        0,
        2,
        2,
    ]
    assert (out / "a_mask1.png").exists()
    line = json.loads((out / LINES).read_text().splitlines()[0])
    assert line["settings"]["crf"] == {"bilateral": [6, 20, 5], "gaussian": [3, 3], "iterations": 3, "side": 64}
    assert [explained(None), explained(None)] == [2, 0]
    assert not (out / "a_mask1.png").exists()
    assert "crf" not in json.loads((out / LINES).read_text().splitlines()[0])["settings"]


def test_an_image_that_cannot_be_refined(
    photos: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refine = Explanation.refine

    def broken(self: Explanation, *arguments: object, **named: object) -> Refined:
        spoiled = dataclasses.replace(self, heatmaps=self.heatmaps * np.nan) if "a.png" in self.source else self
        return refine(spoiled, *arguments, **named)

    monkeypatch.setattr(Explanation, "refine", broken)
    found, _ = find_images([str(photos)])
    with Batch(tmp_path / "out", model, crf=QUICK, side=32) as batch:
        ((name, reason),) = batch.explain(found)
        assert name == str(photos / "a.png")
        assert "cannot be refined" in reason
        assert batch.explained == 1
    assert not (tmp_path / "out" / "a_top1.jpg").exists()
    assert (tmp_path / "out" / "b_mask2.png").exists()


def test_command(photos: Path, model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["explain", str(photos), "--model", model, "--out", str(out), "--crf", "--boxes", "all", "--html"]
    command += ["--crf-side", "40", "--crf-iterations", "4", "--crf-gaussian", "3", "2"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    line = json.loads((out / LINES).read_text().splitlines()[0])
    expected = {"bilateral": [10, 20, 10], "gaussian": [3, 2], "iterations": 4, "side": 40}
    assert line["settings"]["crf"] == expected
    mask = np.asarray(Image.open(out / "a_mask1.png")) > 0
    assert line["top"][0]["boxes"] == boxes_from_mask(mask).tolist()
    assert "a.png" in (out / "index.html").read_text()
    again = CliRunner().invoke(app, command)
    assert "0 explained, 2 were done" in again.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--crf-side", "40"], "expected --crf beside it"),
        (["--crf-bilateral", "1", "2", "3"], "expected --crf beside it"),
        (["--crf", "--crf-bilateral", "0", "2", "3"], "found sdims 0 of the bilateral kernel"),
        (["--crf", "--crf-side", "4000"], "--crf-side"),
    ],
)
def test_usage(photos: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["explain", str(photos), *options], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert message in result.output
