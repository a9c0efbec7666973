from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from camrt import colors, render
from camrt.matlab import demo_result, im2double, im2uint8, map2jpg
from tests.tiny_models import photo


def heatmap(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (photo(height, width, seed).mean(axis=2) + rng.normal(0, 1, (height, width))).astype(np.float32)


# -------------------------------------------------------------------------------------------------------------- drawing


@pytest.mark.parametrize("weights", [(0.2, 0.7), (0.5, 0.5), (1.0, 1.0), (0.0, 1.0)])
def test_the_demos_overlay_is_map2jpg_over_the_image(weights: tuple[float, float]) -> None:
    """Looked up or computed, the pixels are the same."""
    image, drawn_map = photo(60, 70), heatmap(60, 70)
    drawn = render.demo_overlay(image, drawn_map, image_weight=weights[0], map_weight=weights[1])
    expected = im2uint8(im2double(image) * weights[0] + map2jpg(drawn_map) * weights[1])
    np.testing.assert_array_equal(drawn, expected)


def test_the_demos_overlay_of_all_shades() -> None:
    """Every value of the image with every colour of the map."""
    image = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 256, 3)).copy()
    drawn_map = np.broadcast_to(np.arange(256, dtype=np.float32), (256, 256))
    expected = demo_result(image, drawn_map[None])[:, 264:]
    np.testing.assert_array_equal(render.demo_overlay(image, drawn_map), expected)


def test_the_demos_overlay_of_flat_maps_and_nan() -> None:
    image = photo(8, 9)
    for value in (0, 0.3, 7, -7, np.nan):
        drawn_map = np.full((8, 9), value)
        expected = im2uint8(im2double(image) * 0.2 + map2jpg(drawn_map) * 0.7)
        np.testing.assert_array_equal(render.demo_overlay(image, drawn_map), expected)


def test_the_demos_overlay_with_another_colormap() -> None:
    grey = np.linspace(0, 1, 256)[:, None] * np.ones(3)
    drawn = render.demo_overlay(photo(8, 9), heatmap(8, 9), image_weight=0, map_weight=1, colormap=grey)
    assert (drawn[..., 0] == drawn[..., 1]).all()
    assert (drawn.min(), drawn.max()) == (0, 255)


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(8, 9, 3\) for a heatmap of \(9, 8\)"):
        render.demo_overlay(photo(8, 9), heatmap(9, 8))


@pytest.mark.parametrize("colormap", colors.COLORMAPS)
@pytest.mark.parametrize("opacity", [0.0, 0.3, 0.7, 1.0])
def test_overlay_is_the_formula(colormap: str, opacity: float) -> None:
    """Every shade of the image under every level, against float64."""
    image = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 256, 3)).copy()
    drawn_map = np.broadcast_to(np.arange(256.0) - 100, (256, 256))
    level = colors.levels(drawn_map, colormap)
    share = colors.opacity_table(colormap, opacity)[level][:, :, None]
    expected = (1 - share) * image + share * colors.color_table(colormap)[level]
    drawn = render.overlay(image, drawn_map, colormap=colormap, opacity=opacity)
    assert drawn.dtype == np.uint8
    assert np.abs(drawn - expected).max() <= 1.5
    if opacity == 0:
        np.testing.assert_array_equal(drawn, image)


def test_what_is_not_hot_stays_the_image() -> None:
    image, drawn_map = photo(60, 70), np.zeros((60, 70))
    drawn_map[20:30, 30:40] = 5
    drawn_map[:10] = 0.5
    drawn = render.overlay(image, drawn_map)
    untouched = drawn_map < 1
    np.testing.assert_array_equal(drawn[untouched], image[untouched])
    assert (drawn[25, 35] != image[25, 35]).any()
    for nothing in (0.0, 3.0, -3.0, np.nan):
        np.testing.assert_array_equal(render.overlay(image, np.full((60, 70), nothing)), image)


def test_signed_maps_have_two_colors() -> None:
    image, drawn_map = np.full((40, 60, 3), 128, np.uint8), np.zeros((40, 60))
    drawn_map[:, :20], drawn_map[:, 40:] = -2, 2
    drawn = render.overlay(image, drawn_map, colormap="bwr").astype(int)
    assert drawn[20, 5, 2] > 200 > drawn[20, 5, 0]
    assert drawn[20, 55, 0] > 200 > drawn[20, 55, 2]
    assert (drawn[20, 30] == 128).all()


@pytest.mark.parametrize("side", [4, 33, 200])
def test_a_map_of_any_size_is_resized_to_the_image(side: int) -> None:
    image = np.full((90, 140, 3), 100, np.uint8)
    drawn = render.overlay(image, heatmap(side, side))
    assert drawn.shape == image.shape
    steps = np.abs(np.diff(drawn[:, :, 0].astype(int), axis=1))
    if side == 4:
        assert steps.max() <= 12, "smooth edges: no blocks of 35 pixels"


@pytest.mark.parametrize("colormap", ["turbo", "bwr"])
@pytest.mark.parametrize(("height", "width"), [(7, 7), (40, 31), (90, 140), (300, 200)])
def test_a_small_hot_spot_is_drawn_whole(height: int, width: int, colormap: str) -> None:
    """Only a part of the image is mixed: the rest is as if it were."""
    rng = np.random.default_rng(height)
    image = photo(height, width)
    share, rest = render._mixing_tables(colormap, 0.7)
    for _ in range(30):
        drawn_map = np.zeros((32, 32), np.float32)
        y, x, h, w = rng.integers(0, 28, 2).tolist() + rng.integers(1, 5, 2).tolist()
        drawn_map[y : y + h, x : x + w] = rng.choice([-2, 1], (h, w)) if colormap == "bwr" else rng.random((h, w))
        method = cv2.INTER_AREA if height * width < 32 * 32 else cv2.INTER_LINEAR
        level = cv2.resize(colors.levels(drawn_map, colormap), (width, height), interpolation=method)
        expected = np.rint(image * (rest[level][:, :, None] / 255)) + share[level, 0]
        difference = np.abs(render.overlay(image, drawn_map, colormap=colormap) - expected)
        assert difference.max() <= 1


def test_overlay_of_views_leaves_them_as_they_are() -> None:
    """A mirrored, read-only image, as an explanation may hold it."""
    image = photo(60, 70)[:, ::-1]
    before = image.copy()
    image.flags.writeable = False
    drawn = render.overlay(image, heatmap(60, 70))
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(drawn, render.overlay(before, heatmap(60, 70)))


def test_boxes() -> None:
    image = np.full((40, 60, 3), 100, np.uint8)
    drawn = render.draw_boxes(image, np.array([[10, 5, 20, 30]]), color=(255, 0, 0), edge=None, thickness=2)
    red = (drawn == (255, 0, 0)).all(axis=2)
    expected = np.zeros((40, 60), bool)
    expected[5:35, 10:30] = True
    expected[7:33, 12:28] = False
    np.testing.assert_array_equal(red, expected)
    assert (image == 100).all()
    edged = render.draw_boxes(image, np.array([[10, 5, 20, 30]]), thickness=2)
    assert (edged[4, 9:31] == 0).all()
    assert (edged[5, 10:30] == 255).all()
    assert (edged[7, 12:28] == 0).all()
    assert (edged[8, 13:27] == 100).all()


def test_boxes_beyond_the_image_are_cut_off() -> None:
    image = np.full((40, 60, 3), 100, np.uint8)
    for box in ([-10, -10, 200, 200], [50, 30, 100, 100], [200, 200, 5, 5], [-9, -9, 3, 3], [5, 5, 0, 0], [2, 2, 1, 1]):
        drawn = render.draw_boxes(image, np.array([box]))
        assert drawn.shape == image.shape
    assert (render.draw_boxes(image, np.array([[200, 200, 5, 5]])) == 100).all()
    np.testing.assert_array_equal(render.draw_boxes(image, np.zeros((0, 4), int)), image)
    flipped, straight = ([30, 35, -20, -30], [10, 5, 20, 30])
    np.testing.assert_array_equal(
        render.draw_boxes(image, np.array([flipped])), render.draw_boxes(image, np.array([straight]))
    )


def test_row() -> None:
    one, other = photo(20, 30), photo(20, 10)
    drawn = render.row([one, other])
    np.testing.assert_array_equal(drawn, np.hstack([one, np.full((20, 8, 3), 255, np.uint8), other]))
    np.testing.assert_array_equal(render.row([one]), one)
    for wrong in ([], [one, photo(21, 30)]):
        with pytest.raises(ValueError, match="heights"):
            render.row(wrong)


def test_contact_sheet() -> None:
    pictures = [photo(50, 100), photo(100, 50), photo(10, 10), photo(64, 64), photo(1, 300)]
    sheet = render.contact_sheet(pictures, columns=3, cell=64, bar=4)
    assert sheet.shape == (2 * 68 + 4, 3 * 68 + 4, 3)
    np.testing.assert_array_equal(sheet[72:136, 4:68], pictures[3])
    assert (sheet[:4] == 255).all()
    assert render.contact_sheet(pictures[:1], columns=4, cell=64, bar=0).shape == (64, 64, 3)
    with pytest.raises(ValueError, match="found 0 pictures"):
        render.contact_sheet([])


def test_fit() -> None:
    assert render.fit(photo(300, 200), 30).shape == (30, 20, 3)
    assert render.fit(photo(1, 3000), 30).shape == (1, 30, 3)
    image = photo(20, 10)
    assert render.fit(image, 30) is image
    assert render.fit(image, 30, enlarge=True).shape == (30, 15, 3)


def test_png_is_without_loss() -> None:
    wide = np.random.default_rng(0).integers(0, 65536, (9, 8)).astype(np.uint16)
    for picture in (photo(20, 30), wide, photo(9, 9)[:, :, 0], photo(20, 30)[:, ::2]):
        found = np.asarray(Image.open(io.BytesIO(render.png(picture))))
        np.testing.assert_array_equal(found, picture)
    assert Image.open(io.BytesIO(render.png(wide))).mode in ("I;16", "I")  # "I" before Pillow 10.4
