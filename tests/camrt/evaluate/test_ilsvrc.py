"""The counting, against the original's numbers and against cases that are counted by hand."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from camrt import CamrtError
from camrt.evaluate.devkit import read_annotations
from camrt.evaluate.ilsvrc import GUESSES, localization_error, overlaps, rankings


@pytest.fixture(scope="module")
def data(repository: Path) -> Path:
    return repository / "tests" / "data" / "ilsvrc"


@pytest.fixture(scope="module")
def boxes(reference: Path) -> list[np.ndarray]:
    """Of the 50,000 validation images."""
    return read_annotations(reference / "ilsvrc" / "cache_groundtruth.mat").boxes


def one(box: list[float], label: int = 1) -> list[list[float]]:
    """A prediction of a single guess."""
    return [[label, *box]]


# ------------------------------------------------------------------------------------------ the original's numbers


def test_visible(data: Path, boxes: list[np.ndarray]) -> None:
    predictions, truth = np.loadtxt(data / "visible_pred.txt"), np.loadtxt(data / "visible_gt.txt")
    expected = np.loadtxt(data / "visible_expected.txt")
    found = localization_error(predictions, truth, boxes[:1500])
    np.testing.assert_allclose(np.column_stack(found), expected, rtol=0, atol=1e-9)


def test_visible_with_a_blacklist(data: Path, boxes: list[np.ndarray]) -> None:
    predictions, truth = np.loadtxt(data / "visible_pred.txt"), np.loadtxt(data / "visible_gt.txt")
    blacklist = np.loadtxt(data / "visible_blacklist.txt", int)
    expected = np.loadtxt(data / "visible_blacklist_expected.txt")
    found = localization_error(predictions, truth, boxes[:1500], blacklist)
    np.testing.assert_allclose(np.column_stack(found), expected, rtol=0, atol=1e-9)


def small(data: Path) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    rows, truth = np.loadtxt(data / "small_boxes.txt"), np.loadtxt(data / "small_gt.txt")
    boxes = [rows[rows[:, 0] == image + 1, 1:] for image in range(len(truth))]
    return np.loadtxt(data / "small_pred.txt"), truth, boxes


def test_overlaps_that_are_exactly_a_half(data: Path) -> None:
    predictions, truth, boxes = small(data)
    found = localization_error(predictions, truth, boxes, np.loadtxt(data / "small_blacklist.txt", int))
    np.testing.assert_allclose(np.column_stack(found), np.loadtxt(data / "small_expected.txt"), rtol=0, atol=1e-9)
    assert (overlaps(predictions, truth, boxes) == 0.5).sum() > 300


def test_fewer_guesses_are_those_of_the_first_columns(data: Path) -> None:
    predictions, truth, boxes = small(data)
    all_five = np.array(localization_error(predictions, truth, boxes))
    two = np.array(localization_error(predictions[:, :10], truth, boxes))
    np.testing.assert_array_equal(two[:, :2], all_five[:, :2])
    np.testing.assert_array_equal(two[:, 2:], np.repeat(two[:, 1:2], 3, axis=1))
    seven = np.hstack([predictions, np.tile([[1, 0, 0, 5, 5]], (len(truth), 2))])
    np.testing.assert_array_equal(np.array(localization_error(seven, truth, boxes)), all_five)


def test_fifty_thousand_images_in_a_moment(boxes: list[np.ndarray]) -> None:
    rng = np.random.default_rng(3)
    truth = np.array([image[0, 0] for image in boxes])
    # Guess j has the class with probability a half, and the first box, moved.
    classes = np.where(rng.random((len(boxes), GUESSES)) < 0.5, truth[:, None], rng.integers(1, 1001, (len(boxes), 1)))
    corners = np.array([image[0, 1:] for image in boxes])[:, None] + rng.integers(0, 40, (len(boxes), GUESSES, 4))
    corners[..., 2:] = np.maximum(corners[..., 2:], corners[..., :2])
    predictions = np.concatenate([classes[..., None], corners], axis=2).reshape(len(boxes), -1)
    begin = time.perf_counter()
    cls_error, loc_error = localization_error(predictions, truth, boxes)
    assert time.perf_counter() - begin < 5  # measured on a busy core: 0.3 s
    assert (np.diff(cls_error) < 0).all()
    assert (loc_error >= cls_error).all()
    assert loc_error[0] < 1


# ------------------------------------------------------------------------------------------ counted by hand


@pytest.mark.parametrize(
    ("guess", "wrong"),
    [
        ([1, 1, 10, 10], False),  # the same
        ([1, 1, 10, 5], False),  # 50 of 100 pixels
        ([1, 1, 10, 4], True),  # 40
        ([1, 1, 20, 10], False),  # 100 of 200
        ([1, 1, 21, 10], True),  # 100 of 210
        ([10, 10, 10, 10], True),  # a single pixel in the corner
        ([11, 1, 20, 10], True),  # beside it
        ([1.0, 1.0, 10.0, 4.99], True),  # coordinates need not be whole: 49.9
    ],
)
def test_one_box(guess: list[float], wrong: bool) -> None:
    cls_error, loc_error = localization_error(one(guess), [1], [[[1, 1, 1, 10, 10]]])
    assert cls_error.tolist() == [0] * 5
    assert loc_error.tolist() == [wrong] * 5


def test_the_best_of_several_boxes_and_only_those_of_the_class() -> None:
    boxes = [[[1, 1, 1, 10, 10], [1, 50, 50, 59, 59], [2, 80, 80, 89, 89]]]
    assert localization_error(one([50, 50, 59, 59]), [1], boxes)[1][0] == 0
    assert localization_error(one([80, 80, 89, 89]), [1], boxes)[1][0] == 1
    np.testing.assert_array_equal(overlaps(one([52, 50, 59, 59]), [1], boxes), [[0.8, -1, -1, -1, -1]])


def test_later_guesses_count_from_their_number_on() -> None:
    wrong_class, wrong_box, right = [2, 1, 1, 10, 10], [1, 30, 30, 39, 39], [1, 1, 1, 10, 10]
    predictions = [[*wrong_class, *wrong_box, *right, *right, *right]]
    cls_error, loc_error = localization_error(predictions, [1], [[[1, 1, 1, 10, 10]]])
    assert cls_error.tolist() == [1, 0, 0, 0, 0]
    assert loc_error.tolist() == [1, 1, 0, 0, 0]


def test_images_without_a_box_or_a_guess_are_wrong() -> None:
    predictions = [[1, 1, 1, 10, 10], [1, 1, 1, 10, 10], [0, 0, 0, 0, 0]]
    boxes = [[], [[2, 1, 1, 10, 10]], [[1, 1, 1, 10, 10]]]
    cls_error, loc_error = localization_error(predictions, [1, 1, 1], boxes)
    assert cls_error[0] == pytest.approx(1 / 3)
    assert loc_error[0] == 1


def test_the_blacklist_is_for_the_localization_alone() -> None:
    predictions = [[1, 1, 1, 10, 10], [2, 1, 1, 10, 10], [1, 30, 30, 39, 39]]
    boxes = [[[1, 1, 1, 10, 10]]] * 3
    for blacklist, expected in (((), 2 / 3), ((2,), 1 / 2), ((2, 3), 0), ([1], 1)):
        cls_error, loc_error = localization_error(predictions, [1, 1, 1], boxes, blacklist)
        assert cls_error[0] == pytest.approx(1 / 3)
        assert loc_error[0] == pytest.approx(expected)


def test_rankings() -> None:
    classes = np.arange(1, 6)[None]
    boxes = np.arange(40).reshape(1, 5, 2, 4)  # box b of class k begins with 8 k + 4 b
    found = rankings(classes, boxes)
    assert list(found) == ["bbox1", "bbox2", "bboxCombine"]
    assert found["bbox1"].reshape(5, 5)[:, :2].tolist() == [[1, 0], [2, 8], [3, 16], [4, 24], [5, 32]]
    assert found["bbox2"].reshape(5, 5)[:, :2].tolist() == [[1, 4], [2, 12], [3, 20], [4, 28], [5, 36]]
    assert found["bboxCombine"].reshape(5, 5)[:, :2].tolist() == [[1, 0], [1, 4], [2, 8], [2, 12], [3, 16]]
    assert found["bboxCombine"][0, 5:10].tolist() == [1, 4, 5, 6, 7]
    with pytest.raises(CamrtError, match=r"expected \(N, 5\)"):
        rankings(classes[:, :4], boxes)


# ------------------------------------------------------------------------------------------ what is no input

GOOD = [[1, 1, 1, 10, 10]]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((GOOD, [1, 1], [GOOD]), "ground truth for 2 images, expected 1"),
        ((GOOD, [1], [GOOD, GOOD]), "boxes of 2 images, expected 1"),
        (([[1, 1, 1, 10]], [1], [GOOD]), r"shape \(1, 4\), expected \(N, 25\)"),
        (([], [], []), "expected"),
        ((GOOD[0], [1], [GOOD]), r"expected \(N, 25\)"),
        (([[1, 10, 1, 1, 10]], [1], [GOOD]), "guess 1 of image 1: found the box 10 1 1 10, expected x1 y1 x2 y2"),
        ((GOOD, [1], [[[1, 1, 10, 10, 1]]]), "ground truth of image 1: found the box 1 10 10 1"),
        (([[-1, 1, 1, 10, 10]], [1], [GOOD]), "class -1 in guess 1 of image 1"),
        (([[1.5, 1, 1, 10, 10]], [1], [GOOD]), "class 1.5"),
        ((GOOD, [0], [GOOD]), "class 0 as ground truth of image 1"),
        ((GOOD, [1.5], [GOOD]), "class 1.5 as ground truth"),
        ((GOOD, [[1, 2]], [GOOD]), r"shape \(1, 2\)"),
        ((GOOD, [1], [[[0, 1, 1, 2, 2]]]), "box of class 0 in image 1"),
        ((GOOD, [1], [[1, 1, 1, 2, 2]]), r"boxes of shape \(5,\) for image 1"),
        ((GOOD, [1], [[[1, 1, 1, 2]]]), r"boxes of shape \(1, 4\) for image 1"),
        ((GOOD, [1], [[[1, 1, 1, 2, np.nan]]]), "image 1: a box contains NaN or infinity"),
        (([[1, 1, 1, np.inf, 10]], [1], [GOOD]), "predictions with NaN or infinite values"),
        ((GOOD, ["cat"], [GOOD]), "not an array of numbers"),
        ((GOOD, [1], [GOOD], [2]), "found 2 on the blacklist, expected images from 1 to 1"),
        ((GOOD, [1], [GOOD], [0]), "found 0 on the blacklist"),
        ((GOOD * 3, [1] * 3, [GOOD] * 3, [2, 2]), "image 2 on the blacklist twice"),
        ((GOOD, [1], [GOOD], [1]), "all 1 images are on the blacklist"),
    ],
)
def test_wrong_input(arguments: tuple[object, ...], text: str) -> None:
    with pytest.raises(CamrtError, match=text):
        localization_error(*arguments)
