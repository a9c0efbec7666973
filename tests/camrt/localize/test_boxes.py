from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from camrt.errors import CamrtError
from camrt.localize import boxes as module
from camrt.localize import boxes_from_heatmap, format_boxes, read_boxes, stdsort

GOLDEN = Path(__file__).resolve().parents[2] / "data" / "boxes"
ANSWERS = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "maps.npz") as maps:
        return dict(maps)


def rectangle(shape: tuple[int, int], *areas: tuple[int, int, int, int, int]) -> np.ndarray:
    """A black heatmap with filled rectangles: x, y, width, height, gray."""
    heatmap = np.zeros(shape, np.uint8)
    for x, y, width, height, gray in areas:
        heatmap[y : y + height, x : x + width] = gray
    return heatmap


# ---------------------------------------------------------------------------------------- the original's answers


def test_released_answer(reference: Path) -> None:
    image = cv2.imread(str(reference / "bbox" / "heatmap_6.jpg"), cv2.IMREAD_GRAYSCALE)
    expected = (reference / "bbox" / "heatmap_6.txt").read_text()
    assert format_boxes(boxes_from_heatmap(image)) == expected == "41 145 362 202 102 188 242 126 "


def test_released_answer_read_as_colour(reference: Path) -> None:
    image = cv2.imread(str(reference / "bbox" / "heatmap_6.jpg"))
    assert image.ndim == 3
    assert boxes_from_heatmap(image).tolist() == [[41, 145, 362, 202], [102, 188, 242, 126]]


def test_reference_maps(reference: Path) -> None:
    folder = reference / "bbox" / "maps"
    expected = json.loads((folder / "expected.json").read_text())
    assert len(expected) == 8
    for name, answer in expected.items():
        image = cv2.imread(str(folder / name), cv2.IMREAD_GRAYSCALE)
        assert boxes_from_heatmap(image, answer["thresholds"]).tolist() == answer["boxes"], name


@pytest.mark.parametrize("name", ANSWERS)
def test_golden(name: str, golden: dict[str, np.ndarray]) -> None:
    answer = ANSWERS[name]
    assert format_boxes(boxes_from_heatmap(golden[name], answer["thresholds"])) == answer["boxes"]


def test_golden_reaches_the_corners(golden: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdsort, "_heap_sorted", lambda order, areas: sorted(order, key=lambda i: -areas[i]))
    assert format_boxes(boxes_from_heatmap(golden["bad_pivots"])) != ANSWERS["bad_pivots"]["boxes"]
    monkeypatch.setattr(stdsort, "_partitioned", lambda areas: list(range(len(areas))))
    assert format_boxes(boxes_from_heatmap(golden["noise_0"])) != ANSWERS["noise_0"]["boxes"]
    assert any(number < 0 for answer in ANSWERS.values() for number in read_boxes(answer["boxes"]).ravel())


# ------------------------------------------------------------------------------------------------- by hand


def test_one_rectangle_comes_twice() -> None:
    # The same contour at three thresholds. The first box drops the second; the third is skipped, and stays.
    heatmap = rectangle((60, 80), (20, 10, 40, 20, 200))
    assert boxes_from_heatmap(heatmap).tolist() == [[20, 10, 40, 20]] * 2


def test_one_threshold_gives_the_box_once() -> None:
    heatmap = rectangle((60, 80), (20, 10, 40, 20, 50))
    assert boxes_from_heatmap(heatmap).tolist() == [[20, 10, 40, 20]]


def test_thresholds_are_exclusive() -> None:
    heatmap = rectangle((60, 80), (20, 10, 40, 20, 50))
    assert len(boxes_from_heatmap(heatmap, (50, 60, 70))) == 0
    assert len(boxes_from_heatmap(heatmap, (49, 60, 70))) == 1


def test_two_apart_largest_first() -> None:
    heatmap = rectangle((60, 100), (5, 5, 20, 20, 50), (40, 10, 30, 30, 50))
    assert boxes_from_heatmap(heatmap).tolist() == [[40, 10, 30, 30], [5, 5, 20, 20]]


def test_rim_is_cut_where_the_inside_is_deep() -> None:
    # The deepest of the 339 x 339 pixels is 170 from the background, and a depth of 7 is 7 * 255 / 170 + 0.5 = 11 > 10,
    # exactly: the six rings outside of it fall.
    heatmap = rectangle((400, 400), (20, 30, 339, 339, 50))
    assert boxes_from_heatmap(heatmap).tolist() == [[26, 36, 327, 327]]


def test_hole_has_a_box_of_its_own() -> None:
    # A hole's contour runs through the pixels around it, so its box is one pixel larger on each side.
    heatmap = rectangle((60, 60), (10, 10, 40, 40, 50), (25, 26, 10, 8, 0))
    assert boxes_from_heatmap(heatmap).tolist() == [[10, 10, 40, 40], [24, 25, 12, 10]]


def test_hole_that_nearly_fills_is_merged() -> None:
    heatmap = rectangle((60, 60), (10, 10, 40, 40, 50), (15, 15, 30, 30, 0))
    assert boxes_from_heatmap(heatmap).tolist() == [[10, 10, 40, 40]]  # 32 * 32 > 40 * 40 / 2


def test_half_is_not_more_than_half() -> None:
    # 40 x 20 inside 40 x 40 shares exactly half of it.
    heatmap = rectangle((60, 60), (10, 10, 40, 40, 50), (10, 20, 40, 20, 105))
    assert boxes_from_heatmap(heatmap).tolist() == [[10, 10, 40, 40], [10, 20, 40, 20]]
    heatmap = rectangle((60, 60), (10, 10, 40, 40, 50), (10, 20, 40, 21, 105))
    assert boxes_from_heatmap(heatmap).tolist() == [[10, 10, 40, 40]]


def test_border_is_cleared_and_kept_free() -> None:
    # Left and top lose the border's pixel; right and bottom end five before the image does.
    heatmap = rectangle((60, 80), (0, 0, 30, 20, 50))
    assert boxes_from_heatmap(heatmap).tolist() == [[1, 1, 29, 19]]
    heatmap = rectangle((60, 80), (50, 40, 30, 20, 50))
    assert boxes_from_heatmap(heatmap).tolist() == [[50, 40, 25, 15]]


def test_corner_gives_a_negative_box() -> None:
    heatmap = rectangle((60, 80), (77, 50, 2, 3, 50))
    assert boxes_from_heatmap(heatmap).tolist() == [[75, 50, -2, 3]]


def test_only_on_the_border() -> None:
    assert boxes_from_heatmap(rectangle((60, 80), (0, 0, 80, 1, 200))).shape == (0, 4)


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (9, 2), (60, 80)])
def test_empty(shape: tuple[int, int]) -> None:
    boxes = boxes_from_heatmap(np.zeros(shape, np.uint8))
    assert boxes.shape == (0, 4)
    assert boxes.dtype == np.int64
    assert format_boxes(boxes) == ""


def test_full() -> None:
    heatmap = np.full((60, 80), 255, np.uint8)
    assert boxes_from_heatmap(heatmap).tolist() == [[1, 1, 74, 54]] * 2


# ------------------------------------------------------------------------------------------------- properties


GREYS = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24), elements=st.sampled_from([0, 60, 105, 255])
)


@settings(deadline=None, max_examples=60)
@given(GREYS)
def test_of_any_map(heatmap: np.ndarray) -> None:
    before = heatmap.copy()
    boxes = boxes_from_heatmap(heatmap)
    assert (heatmap == before).all()
    height, width = heatmap.shape
    x, y, w, h = boxes.T
    assert boxes.dtype == np.int64
    assert (np.diff(w * h) <= 0).all()
    assert (x + w <= width - 5).all()
    assert (y + h <= height - 5).all()
    assert (boxes_from_heatmap(np.asfortranarray(heatmap)) == boxes).all()
    assert (boxes_from_heatmap(np.repeat(heatmap, 2, axis=1)[:, ::2]) == boxes).all()
    assert (boxes_from_heatmap(np.dstack([heatmap] * 3)) == boxes).all()
    assert (boxes_from_heatmap(heatmap.astype(np.float32)) == boxes).all()
    assert (read_boxes(format_boxes(boxes)) == boxes).all()


@settings(deadline=None, max_examples=40)
@given(GREYS, st.integers(0, 9), st.integers(0, 9))
def test_moves_with_the_map(heatmap: np.ndarray, right: int, down: int) -> None:
    height, width = heatmap.shape
    placed = [np.zeros((height + 20, width + 20), np.uint8) for _ in range(2)]
    placed[0][1 : 1 + height, 1 : 1 + width] = heatmap
    placed[1][1 + down : 1 + down + height, 1 + right : 1 + right + width] = heatmap
    boxes, moved = map(boxes_from_heatmap, placed)
    assert (moved - boxes == [right, down, 0, 0]).all()


@settings(deadline=None, max_examples=40)
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24)))
def test_only_the_levels_matter(heatmap: np.ndarray) -> None:
    levels = np.array([0, 21, 101, 255], np.uint8)[np.digitize(heatmap, [20, 100, 110], right=True)]
    assert (boxes_from_heatmap(levels, (20, 100, 110)) == boxes_from_heatmap(heatmap)).all()
    assert (boxes_from_heatmap(levels, (5, 40, 200)) == boxes_from_heatmap(heatmap)).all()


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(*[st.integers(-4, 12)] * 4), max_size=30))
def test_overlaps_as_a_plain_loop_drops_them(rows: list[tuple[int, int, int, int]]) -> None:
    rows = sorted(rows, key=lambda box: -box[2] * box[3])
    kept, i = list(rows), 0
    while i < len(kept):
        x, y, w, h = kept[i]
        j = i + 1
        while j < len(kept):
            u, v, p, q = kept[j]
            wide = max(0, min(x + w, u + p) - max(x, u))
            high = max(0, min(y + h, v + q) - max(y, v))
            if wide * high > int(max(w * h, p * q) * 0.5):
                del kept[j]
            j += 1
        i += 1
    boxes = np.array(rows, np.int64).reshape(-1, 4)
    assert module._without_overlaps(boxes).tolist() == [list(box) for box in kept]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-3, 40), max_size=400))
def test_order_is_one_of_falling_area(areas: list[int]) -> None:
    boxes = np.array([[i, 0, area, 1] for i, area in enumerate(areas)], np.int64).reshape(-1, 4)
    ordered = module._largest_first(boxes)
    assert sorted(ordered[:, 0].tolist()) == list(range(len(areas)))
    assert ordered[:, 2].tolist() == sorted(areas, reverse=True)
    heap = stdsort._heap_sorted(list(range(len(areas))), areas)
    assert sorted(heap) == list(range(len(areas)))
    assert [areas[i] for i in heap] == sorted(areas, reverse=True)
    if len(areas) <= 16:
        assert ordered[:, 0].tolist() == sorted(range(len(areas)), key=lambda i: -areas[i])


@pytest.mark.parametrize("shape", [(40, 50), (300, 200), (700, 740), (20, 1100)])
def test_depth_is_exact(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(shape[1])
    for density in (0.3, 5 / (shape[0] * shape[1])):
        mask = rng.random(shape) >= density
        mask[0, 0] = False
        expected = ndimage.distance_transform_edt(mask, return_distances=False, return_indices=True)
        squared = sum((np.indices(shape)[axis] - expected[axis]) ** 2 for axis in range(2))
        assert (module._squared_depth(mask) == squared).all()


# ------------------------------------------------------------------------------------------------- what is refused


def test_floats_are_rounded_as_matlab_rounds() -> None:
    heatmap = rectangle((60, 80), (20, 10, 40, 20, 50)).astype(np.float64)
    for value, found in ((20.49, 0), (20.5, 1), (255.3, 2)):
        heatmap[heatmap > 0] = value
        assert len(boxes_from_heatmap(heatmap)) == found


@pytest.mark.parametrize(
    ("heatmap", "text"),
    [
        (np.zeros(5, np.uint8), r"\(5,\) uint8, expected \(H, W\)"),
        (np.zeros((0, 5), np.uint8), r"\(0, 5\) uint8, expected"),
        (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\) uint8, expected"),
        (np.arange(27, dtype=np.uint8).reshape(3, 3, 3), "in color, expected equal channels"),
        (np.zeros((4, 4), np.int32), "int32, expected uint8, or floats"),
        (np.zeros((4, 4), bool), "bool, expected uint8, or floats"),
        (np.full((4, 4), "a"), "expected uint8, or floats"),
        (np.full((4, 4), 256.0), "from 256 to 256, expected 0 to 255"),
        (np.full((4, 4), -1.0), "from -1 to -1, expected 0 to 255"),
        (np.array([[1.0, np.nan]]), "nan"),
        (np.array([[0.0, np.inf]]), "to inf, expected 0 to 255"),
        (np.array([[0.0, 1.0]]), "multiply by 255"),
    ],
)
def test_heatmaps_refused(heatmap: np.ndarray, text: str) -> None:
    with pytest.raises(CamrtError, match=text):
        boxes_from_heatmap(heatmap)


@pytest.mark.parametrize(
    "thresholds", [(20, 100), (20, 20, 30), (0, 20, 30), (20, 30, 255), (30, 20, 40), (1.5, 2, 3), 7]
)
def test_thresholds_refused(thresholds: object) -> None:
    with pytest.raises(CamrtError, match="expected three integers, 0 < first < second < third < 255"):
        boxes_from_heatmap(np.zeros((9, 9), np.uint8), thresholds)


def test_text() -> None:
    boxes = read_boxes("41 145 362 202\n-1 2\t-3 4 ")
    assert boxes.tolist() == [[41, 145, 362, 202], [-1, 2, -3, 4]]
    assert boxes.dtype == np.int64
    assert format_boxes(boxes) == "41 145 362 202 -1 2 -3 4 "
    assert read_boxes(" \n").shape == (0, 4)
    assert format_boxes([]) == ""


@pytest.mark.parametrize(
    ("text", "message"), [("1 2 3", "3 numbers"), ("1 2 3 x", "'x'"), (f"1 2 3 {2**64}", "integers")]
)
def test_text_refused(text: str, message: str) -> None:
    with pytest.raises(CamrtError, match=message):
        read_boxes(text)


@pytest.mark.parametrize("boxes", [[1, 2, 3, 4], [[1, 2, 3]], [[1.0, 2.0, 3.0, 4.0]]])
def test_boxes_refused(boxes: object) -> None:
    with pytest.raises(CamrtError, match=r"expected integers \(M, 4\)"):
        format_boxes(boxes)


def test_errors_name_their_file() -> None:
    error = CamrtError("found 3 numbers").in_file("boxes.txt")
    assert str(error) == "boxes.txt: found 3 numbers"
    assert str(error.in_file("other.txt")) == "boxes.txt: found 3 numbers"
    assert str(CamrtError("found 3 numbers")) == "found 3 numbers"
