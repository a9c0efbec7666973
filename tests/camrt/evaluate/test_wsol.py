"""The metrics of Choe et al., against the published evaluator's numbers and by hand."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camrt import CamrtError
from camrt.evaluate import wsol

MASKS = (11, 48, 48)


@pytest.fixture(scope="module")
def published(repository_data: Path) -> dict[str, np.ndarray]:
    with np.load(repository_data / "wsol" / "published.npz") as found:
        return dict(found)


@pytest.fixture(scope="module")
def repository_data(repository: Path) -> Path:
    return repository / "tests" / "data"


# --------------------------------------------------------------------------------------------- the published evaluator


def test_boxes_are_resized_as_published(published: dict[str, np.ndarray]) -> None:
    for image, size in enumerate(published["sizes"].tolist()):
        of_image = published["image"] == image
        found = wsol.resized_boxes(published["boxes"][of_image], tuple(size), 48)
        assert np.array_equal(found, published["resized"][of_image])


def test_overlaps_at_all_thresholds_are_those_published(published: dict[str, np.ndarray]) -> None:
    for image, heatmap in enumerate(published["maps"].astype(np.float64)):
        truth = published["resized"][published["image"] == image]
        assert np.array_equal(wsol.threshold_overlaps(heatmap, truth), published["ious"][image]), image


def test_accuracies_are_those_published(published: dict[str, np.ndarray]) -> None:
    for mode, name in enumerate(("largest", "all")):
        ious = published["ious"][:, mode]
        for place, overlap in enumerate(wsol.OVERLAPS):
            right = published[f"right_{name}"][place]
            assert np.array_equal(wsol.box_accuracy(ious, overlap), right / len(ious))
            assert wsol.max_box_acc(ious, overlap) == pytest.approx(published[f"max_box_acc_{name}"][place] / 100)
        assert wsol.max_box_acc_v2(ious) == pytest.approx(published[f"max_box_acc_{name}"].mean() / 100)


def test_the_journals_precision_is_enough(published: dict[str, np.ndarray]) -> None:
    """Overlaps kept as float32 count the same, at 0.3 and 0.7 too, which float32 does not have."""
    ious = published["ious"][:, 1]
    for overlap in wsol.OVERLAPS:
        assert np.array_equal(wsol.box_accuracy(ious.astype(np.float32), overlap), wsol.box_accuracy(ious, overlap))
    edge = np.array([[3 / 10, 7 / 10, 1 / 2]])
    for kept in (edge, edge.astype(np.float32)):
        assert wsol.box_accuracy(kept, 0.3).tolist() == [1, 1, 1]
        assert wsol.box_accuracy(kept, 0.7).tolist() == [0, 1, 0]


def test_pixels_are_counted_as_published(published: dict[str, np.ndarray]) -> None:
    on, ignored = (np.unpackbits(published[name]).reshape(MASKS).astype(bool) for name in ("on", "ignored"))
    maps = published["maps"].astype(np.float64)
    counts = sum(wsol.pixel_counts(*each) for each in zip(maps, on, ignored, strict=True))
    assert np.array_equal(counts, published["histograms"][:, :-1])
    assert not published["histograms"][:, -1].any()
    assert wsol.pxap(counts) == pytest.approx(float(published["pxap"]) / 100, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), side=st.integers(1, 40), grain=st.integers(1, 12))
def test_all_levels_at_once_are_each_level_by_itself(seed: int, side: int, grain: int) -> None:
    """Against a plain restatement: one threshold after the other, over the whole map."""
    rng = np.random.default_rng(seed)
    heatmap = wsol.normalized(cv2.resize(rng.random((grain, grain)), (side, side + 3), interpolation=cv2.INTER_CUBIC))
    corners = np.sort(rng.integers(0, side, (2, 2, 2)), axis=1)
    truth = np.concatenate([corners[:, 0], corners[:, 1]], axis=1)
    thresholds = [0, 0.001, 0.2, 0.25, 0.5, 0.777, 0.999]
    assert wsol.threshold_overlaps(heatmap, truth, thresholds).tolist() == [
        list(both) for both in zip(*(restated(heatmap, truth, each) for each in thresholds), strict=True)
    ]


def restated(heatmap: np.ndarray, truth: np.ndarray, threshold: float) -> tuple[float, float]:
    grey = (heatmap * 255).astype(np.uint8)
    mask = (grey > int(threshold * grey.max())).astype(np.uint8)
    contours = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_NONE)[0]
    best, areas = [], []
    for contour in contours:
        x1, y1, width, height = cv2.boundingRect(contour)
        box = x1, y1, min(x1 + width, grey.shape[1] - 1), min(y1 + height, grey.shape[0] - 1)
        best.append(max(overlap(box, each) for each in truth.tolist()))
        areas.append(cv2.contourArea(contour))
    if not best:
        nothing = max(overlap((0, 0, 0, 0), each) for each in truth.tolist())
        return nothing, nothing
    return best[int(np.argmax(areas))], max(best)


def overlap(box: tuple[int, ...], other: list[int]) -> float:
    width = min(box[2], other[2]) - max(box[0], other[0]) + 1
    height = min(box[3], other[3]) - max(box[1], other[1]) + 1
    shared = max(width, 0) * max(height, 0)
    both = sum((each[2] - each[0] + 1) * (each[3] - each[1] + 1) for each in (box, other))
    return shared / (both - shared)


# --------------------------------------------------------------------------------------------------------------- maps


def test_a_map_is_scaled_by_its_range() -> None:
    assert wsol.normalized(np.array([[-1.0, 0, 3]])).tolist() == [[0, 0.25, 1]]


@pytest.mark.parametrize("value", [0.0, 5.0, np.nan, np.inf, -np.inf])
def test_a_map_that_says_nothing_is_zero(value: float) -> None:
    heatmap = np.full((2, 3), 0.5)
    heatmap[0, 0] = value
    found = wsol.normalized(heatmap if not np.isfinite(value) else np.full((2, 3), value))
    assert not found.any()
    assert found.shape == (2, 3)


@pytest.mark.parametrize("heatmap", [np.full((2, 2), 1.1), np.full((2, 2), np.nan), np.full((2, 2), -0.1)])
def test_a_map_that_is_not_scaled_is_an_error(heatmap: np.ndarray) -> None:
    with pytest.raises(CamrtError, match="expected 0 to 1"):
        wsol.gray_levels(heatmap)


def test_a_map_of_another_shape_is_an_error() -> None:
    with pytest.raises(CamrtError, match=r"found a map of shape \(2, 2, 1\)"):
        wsol.gray_levels(np.zeros((2, 2, 1)))


# --------------------------------------------------------------------------------------------------------------- boxes


def test_boxes_by_hand() -> None:
    """A 3 x 3 square with a hole, and a longer line, which has no area."""
    grey = np.zeros((10, 12), np.uint8)
    grey[1:4, 2:5] = 100
    grey[2, 3] = 0
    grey[8, 0:12] = 200
    boxes, largest = wsol.boxes_above(grey, 0)
    assert sorted(boxes.tolist()) == [[0, 8, 11, 9], [2, 1, 5, 4], [2, 1, 5, 4]]  # the line, the square, its hole
    assert boxes[largest].tolist() == [2, 1, 5, 4]
    boxes, largest = wsol.boxes_above(grey, 100)
    assert boxes.tolist() == [[0, 8, 11, 9]]
    assert wsol.boxes_above(grey, 200)[0].tolist() == [[0, 0, 0, 0]]


def test_many_contours_are_measured_at_once_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    grey = rng.integers(0, 256, (60, 70)).astype(np.uint8)
    together = [wsol.boxes_above(grey, level) for level in (100, 150, 200, 250)]
    assert max(len(boxes) for boxes, _ in together) > 64
    monkeypatch.setattr(wsol, "_MANY", 10**9)
    for level, (boxes, largest) in zip((100, 150, 200, 250), together, strict=True):
        each, chosen = wsol.boxes_above(grey, level)
        assert np.array_equal(each, boxes)
        assert chosen == largest


def test_overlap_by_hand() -> None:
    found = wsol.overlaps(np.array([[0, 0, 9, 9], [20, 20, 20, 20]]), np.array([[5, 5, 14, 14], [0, 0, 9, 9]]))
    assert found.tolist() == [[25 / 175, 1], [0, 0]]


def test_a_box_that_ends_before_it_begins_is_an_error() -> None:
    with pytest.raises(CamrtError, match=r"found the box \[3, 0, 2, 5\], expected x1 <= x2"):
        wsol.overlaps(np.array([[0, 0, 1, 1]]), np.array([[0, 0, 9, 9], [3, 0, 2, 5]]))


def test_boxes_of_another_image_size_by_hand() -> None:
    # 10 / 100 * 224 = 22.4 and 99 / 100 * 224 = 221.76; a half of it is cut off, not rounded.
    assert wsol.resized_boxes(np.array([[10, 25, 99, 49]]), (100, 50)).tolist() == [[22, 112, 221, 219]]


# ------------------------------------------------------------------------------------------------------------- metrics


def test_accuracy_takes_one_threshold_for_all_images() -> None:
    ious = np.array([[0.6, 0.4, 0.0], [0.0, 0.7, 0.9], [0.5, 0.5, 0.1]])
    assert wsol.box_accuracy(ious).tolist() == [2 / 3, 2 / 3, 1 / 3]
    assert wsol.max_box_acc(ious) == 2 / 3
    assert wsol.max_box_acc(ious, 0.3) == 1
    assert wsol.max_box_acc(ious, 0.7) == 1 / 3
    assert wsol.max_box_acc_v2(ious) == pytest.approx((1 + 2 / 3 + 1 / 3) / 3)


def test_localization_by_hand() -> None:
    ious, ranks = np.array([0.9, 0.8, 0.6, 0.2, 0.5]), np.array([0, 1, 7, 0, 4])
    assert wsol.localization_accuracy(ious) == 4 / 5
    assert wsol.localization_accuracy(ious, ranks, 1) == 1 / 5
    assert wsol.localization_accuracy(ious, ranks, 5) == 3 / 5
    with pytest.raises(CamrtError, match="expected one for each image"):
        wsol.localization_accuracy(ious, best=1)


@pytest.mark.parametrize(
    ("scores", "label", "rank"),
    [([0.1, 0.7, 0.2], 1, 0), ([0.1, 0.7, 0.2], 0, 2), ([0.5, 0.5, 0.5], 1, 1), ([0.5, np.nan, 0.5], 1, 2)],
)
def test_rank(scores: list[float], label: int, rank: int) -> None:
    assert wsol.rank_of(np.array(scores), label) == rank


# --------------------------------------------------------------------------------------------------------------- masks


def test_masks_are_merged_and_what_is_object_is_not_ignored() -> None:
    first, second, ignored = np.zeros((3, 4, 6), np.uint8)
    first[:, :2], second[0], ignored[:, 1:4] = 255, 1, 255
    found, without = wsol.merged_masks([first, second], ignored, side=None)
    assert found.tolist() == [[True] * 6, *[[True, True, False, False, False, False]] * 3]
    assert np.array_equal(without, (ignored > 0) & ~found)
    large, nothing = wsol.merged_masks([first], side=12)
    assert large.shape == (12, 12)
    assert large[:, :4].all()
    assert not large[:, 4:].any()
    assert not nothing.any()


def test_no_masks_is_an_error() -> None:
    with pytest.raises(CamrtError, match="found no masks"):
        wsol.merged_masks([])


def test_pxap_by_hand() -> None:
    heatmap = np.array([[1.0, 0.6, 0.6, 0.2]])
    on = np.array([[True, True, False, True]])
    counts = wsol.pixel_counts(heatmap, on, thresholds=[0, 0.25, 0.5, 0.75])
    assert counts.tolist() == [[0, 0, 1, 0, 0], [1, 0, 1, 0, 1]]
    # Recall 1/3 at precision 1, 2/3 at 2/3, 1 at 3/4.
    assert wsol.pxap(counts) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    precision, recall = wsol.precision_recall(counts)
    assert precision.tolist() == [3 / 4, 2 / 3, 2 / 3, 1, 1]
    assert recall.tolist() == [1, 2 / 3, 2 / 3, 1 / 3, 1 / 3]


def test_ignored_pixels_do_not_count() -> None:
    heatmap, on = np.array([[1.0, 0.9, 0.0]]), np.array([[True, False, False]])
    assert wsol.pxap(wsol.pixel_counts(heatmap, on)) == 1
    ignored = np.array([[False, True, False]])
    assert wsol.pixel_counts(heatmap, on, ignored).sum() == 2


def test_masks_of_another_size_are_an_error() -> None:
    with pytest.raises(CamrtError, match="expected one size"):
        wsol.pixel_counts(np.zeros((4, 4)), np.zeros((4, 5), bool))
    with pytest.raises(CamrtError, match="expected one size"):
        wsol.pixel_counts(np.zeros((4, 4)), np.zeros((4, 4), bool), np.zeros((5, 4), bool))


def test_without_an_object_there_is_no_pxap() -> None:
    with pytest.raises(CamrtError, match="no pixel on an object"):
        wsol.pxap(wsol.pixel_counts(np.eye(3), np.zeros((3, 3), bool)))
