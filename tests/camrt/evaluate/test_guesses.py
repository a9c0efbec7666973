"""From maps to boxes, step by step against what the original's programs do."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from camrt import CamrtError, matlab
from camrt.evaluate.ilsvrc_protocol import BoxRule, Maps, gray_levels, two_largest
from camrt.localize import boxes_from_heatmap, read_boxes

SIZE = (90, 130)  # height and width of the images


def bump(y: float, x: float, side: int = 32) -> np.ndarray:
    """A map with a maximum there, 0..1."""
    rows, columns = np.mgrid[:side, :side] / side
    return np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 0.02).astype(np.float32) * 7


def test_gray_levels_as_matlab_makes_them() -> None:
    for seed in range(3):
        heatmap = np.random.default_rng(seed).random((14, 14)).astype(np.float32) * 30
        resized = matlab.imresize(heatmap, SIZE)
        expected = matlab.im2uint8(resized / resized.max())
        found = gray_levels(heatmap, SIZE)
        assert found.max() == 255
        # im2uint8 computes in double precision, imwrite in the map's: halves may fall to the other side.
        assert np.abs(found.astype(int) - expected).max() <= 1
        assert (found != expected).mean() < 1e-3


@pytest.mark.parametrize(
    "heatmap", [np.zeros((4, 4)), -np.ones((4, 4)), np.full((4, 4), np.nan), np.full((4, 4), np.inf)]
)
def test_maps_that_show_nothing(heatmap: np.ndarray) -> None:
    with np.errstate(invalid="ignore"):
        assert not gray_levels(heatmap.astype(np.float32), SIZE).any()
        _, found = BoxRule()(Maps("a", heatmap.astype(np.float32)[None], SIZE, {}))
    assert found == {"size": [130, 90], "boxes": [[[1, 1, 130, 90]] * 2], "found": [0]}


def test_the_released_heatmap(reference: Path) -> None:
    """Its boxes are read as ILSVRC_evaluate_bbox.m reads them; and it was written with imwrite's quality."""
    with Image.open(reference / "bbox" / "heatmap_6.jpg") as image:
        tables = image.quantization
        levels = np.asarray(image.convert("RGB"))[:, :, 0]
    x, y, width, height = read_boxes((reference / "bbox" / "heatmap_6.txt").read_text()).T
    corners = BoxRule().corners(levels)
    np.testing.assert_array_equal(corners, np.stack([x, y, x + width, y + height], axis=1))
    assert two_largest(corners, levels.shape).tolist() == corners[:2].tolist()
    grey, encoded = BoxRule()._encoded(levels)
    with Image.open(io.BytesIO(encoded)) as ours:
        assert (ours.mode, ours.quantization[0]) == ("L", tables[0])
    # dt_box reads with OpenCV, and the released file has three equal channels: the same pixels.
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE), grey)
    stream = io.BytesIO()
    Image.fromarray(np.repeat(levels[:, :, None], 3, axis=2)).save(stream, "JPEG", quality=75)
    coloured = cv2.imdecode(np.frombuffer(stream.getvalue(), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(coloured, np.repeat(grey[:, :, None], 3, axis=2))


def test_jpeg_and_png() -> None:
    rng = np.random.default_rng(0)
    levels = gray_levels(bump(0.3, 0.6) + rng.random((32, 32)).astype(np.float32), SIZE)
    lossy, lossless = (BoxRule(encoding=encoding)._encoded(levels)[0] for encoding in ("jpeg", "png"))
    np.testing.assert_array_equal(lossless, levels)
    assert 0 < np.abs(lossy.astype(int) - levels).max() < 30


def test_corners_at_the_border_are_ordered() -> None:
    levels = np.zeros(SIZE, np.uint8)
    levels[20:40, -3:] = 255
    plain = boxes_from_heatmap(levels)
    assert (plain[:, 2] < 0).all()  # x y width height of the original
    x, y, width, height = plain.T
    expected = np.stack([x + width, y, x, y + height], axis=1)
    np.testing.assert_array_equal(BoxRule().corners(levels), expected)


def test_fewer_than_two_boxes() -> None:
    first, second, third = [1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 1, 1]
    for boxes, expected in (
        ([first, second, third], [first, second]),
        ([first], [first, first]),
        ([], [[1, 1, 130, 90]] * 2),
    ):
        assert two_largest(np.array(boxes, np.int64).reshape(-1, 4), SIZE).tolist() == expected


def test_threshold_boxes_count_as_the_devkit_does() -> None:
    levels = np.zeros(SIZE, np.uint8)
    levels[10:20, 30:70] = 255
    levels[50:55, 0:4] = 60
    rule = BoxRule("threshold", fraction=0.2)
    assert rule.corners(levels).tolist() == [[31, 11, 70, 20], [1, 51, 4, 55]]
    assert BoxRule("threshold", fraction=0.5).corners(levels).tolist() == [[31, 11, 70, 20]]


def test_an_image(tmp_path: Path) -> None:
    maps = Maps("cat", np.stack([bump(0.3, 0.6), bump(0.7, 0.2)]), SIZE, {"classes": [3, 1]})
    for encoding, ending in (("jpeg", "jpg"), ("png", "png")):
        name, found = BoxRule(encoding=encoding, folder=tmp_path)(maps)
        assert (name, found["size"], found["classes"]) == ("cat", [130, 90], [3, 1])
        for rank, boxes in enumerate(found["boxes"], 1):
            with Image.open(tmp_path / f"top{rank}" / f"cat.{ending}") as image:
                levels = np.asarray(image)
            corners = BoxRule().corners(levels)
            assert (boxes, found["found"][rank - 1]) == (two_largest(corners, SIZE).tolist(), len(corners))
        (x1, y1, x2, y2), _ = found["boxes"][0]
        assert x1 < 0.6 * 130 < x2
        assert y1 < 0.3 * 90 < y2
    assert "folder" not in BoxRule(folder=tmp_path).settings


def test_settings_hold_what_the_boxes_depend_on() -> None:
    assert BoxRule(fraction=0.3).settings == {"boxes": "dt", "thresholds": (20, 100, 110), "encoding": "jpeg"}
    assert BoxRule("threshold", encoding="png").settings == {"boxes": "threshold", "fraction": 0.2, "encoding": "png"}


def test_what_cannot_be(tmp_path: Path) -> None:
    maps = Maps("cat", bump(0.5, 0.5)[None], SIZE, {})
    with pytest.raises(CamrtError, match="thresholds"):
        BoxRule(thresholds=(20, 10, 110))
    with pytest.raises(CamrtError, match=r"found the fraction 1.5"):
        BoxRule("threshold", fraction=1.5)
    (tmp_path / "file").touch()
    with pytest.raises(CamrtError, match="cannot be written"):
        BoxRule(folder=tmp_path / "file")(maps)
    with pytest.raises(CamrtError, match="cannot be written as JPEG"):
        BoxRule()(Maps("cat", bump(0.5, 0.5)[None], (2, 70_000), {}))
