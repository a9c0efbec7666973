from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camrt import CamrtError, Explanation, Style, colors, explanation, render
from camrt.explanation import LINES
from camrt.localize import boxes_from_heatmap
from camrt.matlab import demo_result, imresize
from camrt.render import PLAIN
from tests.tiny_models import photo

SIDE = 32


def blob(y: float, x: float, spread: float) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return (30 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * spread**2))).astype(np.float32)


MAPS = np.stack([blob(10, 20, 4), blob(22, 8, 6) + blob(6, 26, 3), blob(16, 16, 9)])


def example(image: np.ndarray | None = None, source: str = "photos/cat.jpg", maps: np.ndarray = MAPS) -> Explanation:
    return Explanation(
        image=photo(90, 140) if image is None else image,
        source=source,
        classes=np.array([4, 0, 2]),
        scores=np.array([0.7, 0.1, 0.05], np.float32),
        labels=("tabby, <cat>", "Katze mit Hüten", "2"),
        heatmaps=maps,
        all_scores=np.array([0.1, 0.03, 0.05, 0.02, 0.7], np.float32),
    )


# ----------------------------------------------------------------------------------------------------------- the value


def test_it_is_frozen() -> None:
    one = example()
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.source = "other"
    for name in ("image", "classes", "scores", "heatmaps", "all_scores"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(one, name)[0] = 0
    mine = photo(20, 20)
    example(mine)
    assert mine.flags.writeable


def test_repr_is_short() -> None:
    assert repr(example()) == "<Explanation of photos/cat.jpg (140 x 90): 'tabby, <cat>' 0.700 and 2 more>"
    assert len(example()) == 3


def test_it_pickles() -> None:
    one = example()
    other = pickle.loads(pickle.dumps(one))
    for field in dataclasses.fields(Explanation):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))
    assert not other.image.flags.writeable


def test_what_does_not_belong_together() -> None:
    with pytest.raises(CamrtError, match=r"found 3 classes, 3 scores, 3 labels and heatmaps of shape \(2, 32, 32\)"):
        example(maps=MAPS[:2])
    with pytest.raises(CamrtError, match="square heatmaps"):
        example(maps=MAPS[:, :5])


@pytest.mark.parametrize("i", [3, -4])
def test_no_such_class(i: int) -> None:
    one = example()
    for method in (one.heatmap, one.boxes, one.overlay):
        with pytest.raises(CamrtError, match=rf"photos/cat.jpg: found class {i}, expected 0 to 2"):
            method(i)


# ----------------------------------------------------------------------------------------------- maps, boxes, pictures


@pytest.mark.parametrize("shape", [(90, 140), (32, 32), (20, 300)])
def test_heatmaps_are_those_of_ilsvrc_generate_heatmap(shape: tuple[int, int]) -> None:
    one = example(photo(*shape))
    for i, raw in enumerate(MAPS):
        heatmap = one.heatmap(i)
        resized = imresize(raw, shape)
        np.testing.assert_allclose(heatmap, np.clip(resized / resized.max(), 0, 1), atol=1e-7)
        assert (heatmap.dtype, heatmap.shape, heatmap.max()) == (np.float32, shape, 1)
        assert heatmap.min() >= 0


@pytest.mark.parametrize("value", [0, -1, np.nan, np.inf])
def test_a_map_without_a_maximum_is_nothing(value: float) -> None:
    one = example(maps=np.full((3, SIDE, SIDE), value, np.float32))
    assert not one.heatmap(0).any()
    assert one.boxes(0).shape == (0, 4)
    assert one.overlay(0).shape == (90, 140, 3)


def test_boxes_are_those_of_the_heatmap() -> None:
    one = example()
    for i in range(3):
        expected = boxes_from_heatmap(np.floor(one.heatmap(i) * 255 + 0.5).astype(np.uint8), (20, 100, 110))
        np.testing.assert_array_equal(one.boxes(i), expected)
    x, y, width, height = one.boxes(0)[0]
    assert x < 20 / 32 * 140 < x + width
    assert y < 10 / 32 * 90 < y + height
    assert not np.array_equal(one.boxes(0, (10, 20, 200)), one.boxes(0))
    with pytest.raises(CamrtError):
        one.boxes(0, (110, 100, 20))


def test_the_square_picture_is_the_demos() -> None:
    image = photo(90, 140)
    one = example(image)
    expected = demo_result(imresize(image, (SIDE, SIDE)), MAPS)
    np.testing.assert_array_equal(one.demo_picture(), expected)


def test_the_demo_on_its_cached_features(reference: Path) -> None:
    """demo.m's picture, as the original's .m files draw it under Octave."""
    expected = np.load(reference / "matlab_demo" / "expected_img1.npz")
    one = Explanation(
        image=np.asarray(Image.open(reference / "matlab_demo" / "img1.jpg")),
        source="img1.jpg",
        classes=expected["top5_index0"],
        scores=expected["top5_score"],
        labels=tuple("abcde"),
        heatmaps=expected["merged"],
        all_scores=expected["top5_score"],
    )
    difference = np.abs(one.demo_picture().astype(int) - expected["result"])
    assert np.mean(difference <= 1) >= 0.999


def test_pictures() -> None:
    one = example()
    plain = one.picture(PLAIN)
    assert plain.shape == (90, 4 * 140 + 3 * 8, 3)
    np.testing.assert_array_equal(plain[:, :140], one.image)
    np.testing.assert_array_equal(plain[:, 148:288], one.overlay(0))
    assert (plain[:, 140:148] == 255).all()
    boxed = one.picture(Style(boxes="all", caption=False))
    np.testing.assert_array_equal(boxed[:, 148:288], render.draw_boxes(one.overlay(0), one.boxes(0)))
    captioned = one.picture()
    assert captioned.shape[0] > 90
    np.testing.assert_array_equal(captioned[:90, 148:288], one.overlay(0, Style(caption=False)))
    np.testing.assert_array_equal(one.overlay(1, Style(opacity=0, boxes=None, caption=False)), one.image)


def test_overlays_are_drawn_as_the_style_says() -> None:
    one = example()
    expected = render.overlay(one.image, MAPS[1], colormap="inferno", opacity=0.4)
    style = Style("inferno", 0.4, None, caption=False)
    np.testing.assert_array_equal(one.overlay(1, style), expected)
    np.testing.assert_array_equal(one.overlay(1), render.overlay(one.image, MAPS[1]))
    boxed = one.overlay(1, dataclasses.replace(style, boxes="best"))
    np.testing.assert_array_equal(boxed, render.draw_boxes(expected, one.best_box(1)))
    for wrong in ({"colormap": "rainbow"}, {"opacity": 2}, {"boxes": "some"}):
        with pytest.raises(CamrtError, match="found"):
            Style(**wrong)


def test_the_best_box_is_around_the_largest_region_above_half() -> None:
    """A Gaussian is above half of its height within 1.177 standard deviations."""
    one = example()
    (x, y, width, height) = one.best_box(0)[0]
    radius = 4 * np.sqrt(2 * np.log(2))
    expected = np.array([20 - radius, 10 - radius, 20 + radius, 10 + radius]) + 0.5
    found = np.array([x / 140, y / 90, (x + width) / 140, (y + height) / 90]) * SIDE
    np.testing.assert_allclose(found, expected, atol=1)
    (x, y, width, height) = one.best_box(1)[0]
    assert x / 140 * SIDE < 8 < (x + width) / 140 * SIDE, "of two regions, the larger one"
    assert (x + width) / 140 * SIDE < 20
    enlarged = dataclasses.replace(one, original_size=(900, 1400))
    assert np.abs(enlarged.best_box(0) - 10 * one.best_box(0)).max() == 0
    for value in (0, 1, -1, np.nan, np.inf):
        assert example(maps=np.full((3, SIDE, SIDE), value, np.float32)).best_box(0).shape == (0, 4)


def test_captions_say_class_score_and_method(monkeypatch: pytest.MonkeyPatch) -> None:
    said = []

    def keep(width: int, left: str, right: str = "", note: str = "", *, side: int) -> np.ndarray:
        said.append((width, left, right, note, side))
        return np.zeros((5, width, 3), np.uint8)

    monkeypatch.setattr(explanation.captions, "caption", keep)
    one = dataclasses.replace(example(), method="gradcam", protocol="center")
    drawn = one.overlay(0, Style())
    assert drawn.shape == (95, 140, 3)
    np.testing.assert_array_equal(drawn[:90], one.overlay(0, Style(caption=False)))
    one.picture()
    assert said[:2] == [(140, "tabby, <cat>", "70.0%", "gradcam · center", 140), (140, "cat.jpg", "", "140 x 90", 140)]
    one.overlay(2, Style())
    assert said[-1][1] == "class 2", "a class without a name"


# -------------------------------------------------------------------------------------------------------------- saving


def test_as_dict_is_json() -> None:
    facts = example().as_dict("all", (20, 100, 110))
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["source"] == "photos/cat.jpg"
    assert (facts["width"], facts["height"]) == (140, 90)
    assert [one["score"] for one in facts["top"]] == [0.7, 0.1, 0.05]  # not 0.699999988079071
    assert facts["top"][0] == {
        "class": 4,
        "label": "tabby, <cat>",
        "score": 0.7,
        "boxes": example().boxes(0).tolist(),
    }
    assert "boxes" not in example().as_dict()["top"][0]
    assert example().as_dict("best")["top"][1]["boxes"] == example().best_box(1).tolist()
    known = dataclasses.replace(example(), method="cam", protocol="ten-crop").as_dict()
    assert (known["method"], known["protocol"]) == ("cam", "ten-crop")
    broken = dataclasses.replace(example(), scores=np.array([np.nan, np.inf, 0.5], np.float32))
    assert [one["score"] for one in broken.as_dict()["top"]] == [None, None, 0.5]


def test_save(tmp_path: Path) -> None:
    one = example()
    facts = one.save(tmp_path / "new" / "out", maps="png", form="png")
    folder = tmp_path / "new" / "out"
    names = [f"cat_{kind}{i}.png" for i in (1, 2, 3) for kind in ("top", "map")]
    assert facts["files"] == names
    assert sorted(file.name for file in folder.iterdir()) == sorted([*names, LINES])
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "cat_top2.png")), one.overlay(1, Style()))
    with Image.open(folder / "cat_map2.png") as image:
        grey = np.asarray(image)
    assert grey.max() == 65535
    np.testing.assert_allclose(grey / 65535, one.heatmap(1), atol=1e-5)
    assert [json.loads(line) for line in (folder / LINES).read_text(encoding="utf-8").splitlines()] == [facts]
    assert facts["top"][1]["boxes"] == one.best_box(1).tolist()
    assert "Hüten" in (folder / LINES).read_text(encoding="utf-8")


def test_save_what_is_wanted(tmp_path: Path) -> None:
    one = example()
    facts = one.save(tmp_path, stem="n02", overlays=False, maps="npz", style=PLAIN)
    assert facts["files"] == ["n02_maps.npz"]
    assert "boxes" not in facts["top"][0]
    with np.load(tmp_path / "n02_maps.npz") as saved:
        for name in ("classes", "scores", "all_scores"):
            np.testing.assert_array_equal(saved[name], getattr(one, name))
        assert saved["heatmaps"].dtype == np.float16
        np.testing.assert_array_equal(saved["heatmaps"], one.heatmaps.astype(np.float16))
    assert one.save(tmp_path, maps=None, overlays=False)["files"] == []
    assert len((tmp_path / LINES).read_text().splitlines()) == 2


def test_boxes_on_the_overlays_and_files_without_a_line(tmp_path: Path) -> None:
    one = example()
    style = Style(boxes="all", caption=False)
    expected = [render.draw_boxes(one.overlay(i), one.boxes(i)) for i in range(3)]
    assert one.save(tmp_path / "saved", style=style, form="png")["top"][0]["boxes"] == one.boxes(0).tolist()
    files = one.save_files(tmp_path / "files", style=style, form="png")
    assert files == ["cat_top1.png", "cat_top2.png", "cat_top3.png"]
    assert sorted(file.name for file in (tmp_path / "files").iterdir()) == files
    for folder in ("saved", "files"):
        for name, drawn in zip(files, expected, strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / folder / name)), drawn)


@pytest.mark.parametrize(("form", "ending"), [("jpeg", "jpg"), ("webp", "webp")])
def test_lossy_overlays_look_the_same(form: str, ending: str, tmp_path: Path) -> None:
    """Read by Pillow; the picture is without noise, which they leave out."""
    one = example(np.full((60, 80, 3), (40, 120, 90), np.uint8))
    assert one.save_files(tmp_path, style=PLAIN, form=form) == [f"cat_top{i}.{ending}" for i in (1, 2, 3)]
    for i in range(3):
        with Image.open(tmp_path / f"cat_top{i + 1}.{ending}") as image:
            assert image.format == {"jpeg": "JPEG", "webp": "WEBP"}[form]
            found = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(found - one.overlay(i)).mean() < 6


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_a_picture_beyond_its_format_says_what_to_do(form: str, tmp_path: Path) -> None:
    line = example(np.zeros((1, 70_000, 3), np.uint8))
    with pytest.raises(CamrtError, match=r"cannot be written as .*--max-side.*--format png"):
        line.save_files(tmp_path, style=PLAIN, form=form, max_side=None)
    assert line.save_files(tmp_path, style=PLAIN, form="png", max_side=None)


@pytest.mark.parametrize(
    ("peak", "dtype"), [(0.0, np.float16), (9.0, np.float16), (1e-6, np.float32), (1e5, np.float32)]
)
def test_maps_beyond_half_precision_stay_as_they_are(peak: float, dtype: type, tmp_path: Path) -> None:
    one = example()
    maps = one.heatmaps / np.abs(one.heatmaps).max() * np.float32(peak)
    dataclasses.replace(one, heatmaps=maps).save_files(tmp_path, overlays=False, maps="npz")
    with np.load(tmp_path / "cat_maps.npz") as saved:
        assert saved["heatmaps"].dtype == dtype
        np.testing.assert_allclose(saved["heatmaps"], maps, atol=peak * 2**-11)


def test_names_that_are_not_text(tmp_path: Path) -> None:
    facts = example(source=os.fsdecode(b"\xff.jpg")).save(tmp_path, stem="x")
    assert json.loads((tmp_path / LINES).read_text()) == facts


@pytest.mark.parametrize(
    ("source", "stem"), [("a/b/x.tar.png", "x.tar"), ("<array>", "array"), ("<bytes>", "bytes"), ("", "image")]
)
def test_names_of_files(source: str, stem: str, tmp_path: Path) -> None:
    facts = example(source=source).save(tmp_path, maps=None)
    assert facts["files"][0] == f"{stem}_top1.jpg"


def test_save_refuses(tmp_path: Path) -> None:
    for wrong, message in (
        ({"maps": "jpg"}, "found maps='jpg'"),
        ({"form": "gif"}, "found form='gif', expected one of jpeg, webp, png"),
        ({"stem": "a/b"}, "found the stem 'a/b'"),
        ({"stem": ""}, "found the stem ''"),
        ({"style": Style(boxes="all", thresholds=(5, 4, 3))}, "5, 4, 3"),
    ):
        with pytest.raises(CamrtError, match=message):
            example().save(tmp_path / "out", **wrong)
        assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(CamrtError, match="cannot be written to"):
        example().save(tmp_path / "file")


def test_a_failure_leaves_no_half_file_and_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = example()
    one.save(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    made = 0

    def full(*_: object) -> bytes:
        nonlocal made
        made += 1
        if made == 3:
            raise OSError(28, "No space left on device")
        return b"new"

    monkeypatch.setattr(explanation.render, "encode", full)
    with pytest.raises(CamrtError, match="No space left on device"):
        one.save(tmp_path)
    after = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert after[LINES] == before[LINES]
    assert all(after[name] in (before[name], b"new") for name in before)


def test_a_line_that_was_cut_off_is_ended(tmp_path: Path) -> None:
    one = example()
    one.save(tmp_path, maps=None)
    path = tmp_path / LINES
    path.write_bytes(path.read_bytes() + b'{"source": "half')
    one.save(tmp_path, maps=None)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3
    assert json.loads(lines[0]) == json.loads(lines[2])


def test_lines_of_threads_do_not_mix(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: example(source=f"{n}.jpg").save(tmp_path, maps=None, overlays=False), range(60)))
    found = [json.loads(line)["source"] for line in (tmp_path / LINES).read_text(encoding="utf-8").splitlines()]
    assert sorted(found) == sorted(f"{n}.jpg" for n in range(60))


# ------------------------------------------------------------------------------------------------------ large images


def test_pictures_have_a_largest_side_and_boxes_the_images_pixels(tmp_path: Path) -> None:
    """A third of the size: files are as those of the smaller image, boxes three times as large."""
    image = photo(900, 600)
    small = np.asarray(imresize(image, (300, 200)))
    large, expected = example(image), example(small)
    fitted = large.fitted(300)
    np.testing.assert_array_equal(fitted.image, small)
    assert (fitted.original_size, fitted.image.shape) == ((900, 600), (300, 200, 3))
    assert large.fitted(900) is large
    for i in range(3):
        np.testing.assert_array_equal(fitted.overlay(i), expected.overlay(i))
        np.testing.assert_array_equal(fitted.boxes(i), 3 * expected.boxes(i))
        ours, full = fitted.boxes(i)[0], large.boxes(i)[0]
        assert np.abs(ours - full).max() <= 15, "five of the smaller pixels: the generator's own margin"
    style = Style(boxes="all", caption=False)
    facts = large.save(tmp_path / "small", max_side=300, style=style, form="png")
    assert (facts["width"], facts["height"]) == (600, 900)
    assert facts["top"][0]["boxes"] == fitted.boxes(0).tolist()
    for name in facts["files"]:
        assert Image.open(tmp_path / "small" / name).size == (200, 300)
    assert Image.open(tmp_path / "small" / "cat_top1.png").tobytes() == expected.overlay(0, style).tobytes()
    assert large.save(tmp_path / "large", style=style, form="png")["files"]
    assert Image.open(tmp_path / "large" / "cat_top1.png").size == (600, 900)
    assert pickle.loads(pickle.dumps(fitted)).original_size == (900, 600)


def test_boxes_of_a_shrunk_image_are_drawn_where_they_were_found() -> None:
    fitted = example(photo(900, 600)).fitted(300)
    expected = render.draw_boxes(fitted.overlay(0), fitted.boxes(0) // 3)
    np.testing.assert_array_equal(fitted.overlay(0, Style(boxes="all", caption=False)), expected)


@pytest.mark.parametrize(("height", "width"), [(1, 1_000_001), (1_000_001, 1)])
def test_an_image_that_is_one_line_can_be_written(height: int, width: int, tmp_path: Path) -> None:
    """JPEG does not take a million pixels in a line."""
    line = np.zeros((height, width, 3), np.uint8)
    files = example(line).save(tmp_path, style=PLAIN)["files"]
    assert Image.open(tmp_path / files[0]).size in ((1024, 1), (1, 1024))


def test_a_name_that_leaves_no_room_for_endings_is_shortened(tmp_path: Path) -> None:
    names = ["ü" * 122 + "a.jpg", "ü" * 122 + "b.jpg"]  # 249 bytes
    files = [example(source=name).save(tmp_path, maps="png")["files"] for name in names]
    assert len({name for one in files for name in one}) == 12
    for name in (name for one in files for name in one):
        assert (tmp_path / name).exists()
        assert name.startswith("üüüü")


# ------------------------------------------------------------------------------------------------ figures, notebooks


def test_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures are drawn with matplotlib, which is not here")
    one = dataclasses.replace(example(), method="gradcam", labels=("tabby, <cat>", "costs $5 and $6", "2"))
    drawn = one.figure()
    axes = drawn.axes
    assert len(axes) == 5, "the image, three maps, and the color bar"
    assert [axis.get_title() for axis in axes[:4]] == [
        "cat.jpg\ngradcam",
        "tabby, <cat>\n70.0%",
        "costs $5 and $6\n10.0%",
        "2\n5.0%",
    ]
    assert axes[4].get_ylabel() == "share of the largest"
    x, y, width, height = one.best_box(0)[0]
    outline = axes[1].patches[-1]
    assert (*outline.get_xy(), outline.get_width(), outline.get_height()) == (x, y, width, height)
    np.testing.assert_array_equal(axes[0].images[0].get_array(), one.image)
    layer = axes[1].images[1].get_array()
    level = colors.levels(MAPS[0])
    np.testing.assert_array_equal(layer[:, :, :3], colors.color_table("turbo")[level])
    np.testing.assert_allclose(layer[:, :, 3] / 255, colors.opacity_table()[level], atol=0.002)
    for ending in ("png", "pdf", "svg"):
        drawn.savefig(tmp_path / f"figure.{ending}")
        assert (tmp_path / f"figure.{ending}").stat().st_size > 3000
    plain = one.figure(dataclasses.replace(PLAIN, colormap="bwr"))
    assert not plain.axes[1].patches
    assert plain.axes[0].get_title() == ""
    assert plain.axes[4].get_ylim() == (-1, 1)


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.cm", None)
    with pytest.raises(CamrtError, match=r"pip install 'camrt\[figures\]'"):
        example().figure()


def test_a_notebook_shows_an_explanation() -> None:
    one = dataclasses.replace(example(photo(900, 600)), method="gradcam")
    shown = one._repr_html_()
    assert shown.count("<img ") == 4
    assert "tabby, &lt;cat&gt;" in shown
    assert "<cat>" not in shown
    assert "gradcam" in shown
    assert "script" not in shown
    assert len(shown) < 200_000
    shown.encode()
    dataclasses.replace(one, source=os.fsdecode(b"\xff.jpg"), labels=("\ud800", "a", "b"))._repr_html_().encode()
    picture = np.asarray(Image.open(io.BytesIO(one._repr_png_())))
    np.testing.assert_array_equal(picture, one.fitted(256).picture())


def test_notebooks_run(tmp_path: Path) -> None:
    """IPython finds both forms."""
    formatters = pytest.importorskip("IPython.core.formatters", reason="notebooks need IPython, which is not here")
    data, _ = formatters.DisplayFormatter().format(example())
    assert {"text/html", "image/png", "text/plain"} <= set(data)
