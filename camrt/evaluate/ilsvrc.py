"""The localization error of the ILSVRC classification and localization task, and the original's three rankings.

Sources: simpleEvaluation.m and compute_overlap.m of the CAM repository, which apply eval_clsloc.m of the ILSVRC 2014
development kit to a matrix of predictions; ILSVRC_evaluate_bbox.m for the rankings (https://github.com/metalbubble/CAM).
The measure is that of Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015, section 4.2.

A guess is five numbers: a class of the devkit, counted from 1, and x1, y1, x2, y2 of a box that includes its last
pixel. The class 0 stands for no guess. `camrt.evaluate.devkit` reads the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from camrt.errors import CamrtError

GUESSES = 5
IOU = 0.5  # the least overlap of a correct box
ANY_CLASS = 1001  # a ground truth that compute_overlap.m compares with the boxes of all classes
RANKINGS = ("bbox1", "bbox2", "bboxCombine")

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def localization_error(
    predictions: npt.ArrayLike,
    ground_truth: npt.ArrayLike,
    boxes: Sequence[npt.ArrayLike],
    blacklist: Iterable[int] = (),
) -> tuple[Floats, Floats]:
    """Return the shares of images that are wrong with 1 to 5 guesses, counted as in simpleEvaluation.m.

    An image is classified if one of the guesses has its class. It is localized if one of these guesses has a box with
    an intersection over union (`overlaps`) of at least 0.5 with a box of that class in the ground truth. The
    classification error counts all images; the localization error leaves out those on the blacklist.

    Two cases differ from simpleEvaluation.m. An image without a box of its class, at which it stops with an error, is
    not localized. A blacklist that names an image twice, or one that does not exist, is an error.

    Args:
        predictions: (N, 25): five guesses per image, the best first: class, x1, y1, x2, y2 in pixels. Further columns
            are ignored; fewer columns are fewer guesses.
        ground_truth: (N,) the images' classes.
        boxes: N arrays (M_i, 5): class, x1, y1, x2, y2 in pixels.
        blacklist: The images that do not count for localization, counted from 1.

    Returns:
        Two arrays (5,): the classification error and the localization error with 1, 2, 3, 4 and 5 guesses.

    Raises:
        CamrtError: The lengths differ, a class or coordinate is invalid, a box ends before it begins, or no image
            is left to count.

    Example:
        >>> right, wrong = [7, 1, 1, 10, 10], [8, 1, 1, 10, 10]
        >>> cls_error, loc_error = localization_error([wrong + right], [7], [[[7, 1, 1, 10, 12]]])
        >>> cls_error.tolist(), loc_error.tolist()
        ([1.0, 0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0])
    """
    classes, _ = guesses(predictions)
    truth = class_numbers(ground_truth, len(classes))
    counted = _counted(blacklist, len(classes))
    found = overlaps(predictions, truth, boxes)
    is_classified = np.logical_or.accumulate(classes == truth[:, None], axis=1)
    is_localized = np.logical_or.accumulate(found >= IOU, axis=1)
    cls_error = (~is_classified).sum(axis=0) / len(classes)
    loc_error = (~is_localized[counted]).sum(axis=0) / counted.sum()
    return cls_error, loc_error


def overlaps(predictions: npt.ArrayLike, ground_truth: npt.ArrayLike, boxes: Sequence[npt.ArrayLike]) -> Floats:
    """Return the overlap of each guess of the right class with the best box of the ground truth (compute_overlap.m).

    Args:
        predictions: As for `localization_error`.
        ground_truth: Likewise.
        boxes: Likewise.

    Returns:
        (N, 5) intersection over union, 0..1, where boxes include their last pixel. 0 if the boxes do not intersect, -1
        if the guess has another class or there is no box of the class.

    Raises:
        CamrtError: As for `localization_error`.
    """
    classes, corners = guesses(predictions)
    truth = class_numbers(ground_truth, len(classes))
    owner, flat = _flattened(boxes, len(classes))
    is_of_class = (flat[:, 0] == truth[owner]) | (truth[owner] == ANY_CLASS)
    owner, flat = owner[is_of_class], flat[is_of_class]
    is_right = classes[owner] == truth[owner, None]
    shared = _iou(corners[owner], flat[:, None, 1:])
    best = np.full(classes.shape, -1.0)
    np.maximum.at(best, owner, np.where(is_right, shared, -1.0))
    return best


def rankings(classes: npt.ArrayLike, boxes: npt.ArrayLike) -> dict[str, Floats]:
    """Return the three rankings of guesses of ILSVRC_evaluate_bbox.m.

    ``bbox1`` guesses the largest box of each of the five classes, ``bbox2`` the second, ``bboxCombine`` both of the
    first class, both of the second, and the largest of the third.

    Args:
        classes: (N, 5) classes, the best first; 0 for none.
        boxes: (N, 5, 2, 4): x1, y1, x2, y2 of the two largest boxes of each class.

    Returns:
        Three arrays (N, 25) of guesses, as for `localization_error`.

    Raises:
        CamrtError: The shapes differ.
    """
    numbers, corners = np.asarray(classes, np.float64), np.asarray(boxes, np.float64)
    if numbers.ndim != 2 or numbers.shape[1] != GUESSES or corners.shape != (*numbers.shape, 2, 4):
        raise CamrtError(
            f"found classes {numbers.shape} and boxes {corners.shape}, expected (N, {GUESSES}) and (N, {GUESSES}, 2, 4)"
        )
    repeated = np.broadcast_to(numbers[..., None, None], (*numbers.shape, 2, 1))
    both = np.concatenate([repeated, corners], axis=3)  # (N, 5, 2, 5)
    number = len(numbers)
    return {
        "bbox1": both[:, :, 0].reshape(number, -1),
        "bbox2": both[:, :, 1].reshape(number, -1),
        "bboxCombine": both.reshape(number, -1)[:, : 5 * GUESSES],
    }


# -------------------------------------------------------------------------------------------------------------- checks


def guesses(predictions: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Check predictions, and split them into classes and boxes.

    Args:
        predictions: (N, 5 * g): as for `localization_error`.

    Returns:
        The classes (N, 5) and the boxes (N, 5, 4); 0 for no guess.

    Raises:
        CamrtError: The shape or a class is invalid, or a box ends before it begins.
    """
    matrix = _numbers(predictions, "predictions")
    if matrix.ndim != 2 or not matrix.size or matrix.shape[1] % 5:
        raise CamrtError(
            f"found predictions of shape {matrix.shape}, expected (N, {5 * GUESSES}): five numbers per guess"
        )
    found = matrix.reshape(len(matrix), -1, 5)[:, :GUESSES]
    if found.shape[1] < GUESSES:
        found = np.pad(found, ((0, 0), (0, GUESSES - found.shape[1]), (0, 0)))
    classes, corners = found[..., 0], found[..., 1:]
    image, guess = _first((classes < 0) | (classes != np.floor(classes)))
    if image is not None:
        raise CamrtError(
            f"found the class {classes[image, guess]:g} in guess {guess + 1} of image {image + 1}, expected 1, 2, ... "
            "or 0 for no guess"
        )
    image, guess = _first((classes > 0) & _ends_before(corners))
    if image is not None:
        raise CamrtError(f"guess {guess + 1} of image {image + 1}: {_reversed(corners[image, guess])}")
    return classes, corners


def class_numbers(ground_truth: npt.ArrayLike, number: int | None = None) -> Integers:
    """Check the classes of the ground truth.

    Args:
        ground_truth: (N,) or (N, 1) whole numbers from 1 on.
        number: The expected number of images, if known.

    Returns:
        (N,) int64.

    Raises:
        CamrtError: There are more or fewer, or a class is invalid.
    """
    values = _numbers(ground_truth, "ground truth")
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise CamrtError(f"found a ground truth of shape {values.shape}, expected (N,): a class for each image")
    if number is not None and len(values) != number:
        raise CamrtError(
            f"found a ground truth for {len(values):,} images, expected {number:,}, as the predictions have"
        )
    image, _ = _first((values < 1) | (values != np.floor(values)))
    if image is not None:
        raise CamrtError(f"found the class {values[image]:g} as ground truth of image {image + 1}, expected 1, 2, ...")
    return values.astype(np.int64)


def _counted(blacklist: Iterable[int], number: int) -> Bools:
    """Return which images count for localization: (N,)."""
    listed = _numbers(list(blacklist), "blacklist").ravel()
    counted = np.ones(number, bool)
    wrong = listed[(listed < 1) | (listed > number) | (listed != np.floor(listed))]
    if wrong.size:
        raise CamrtError(f"found {wrong[0]:g} on the blacklist, expected images from 1 to {number}")
    if len(np.unique(listed)) != len(listed):
        values, times = np.unique(listed, return_counts=True)
        raise CamrtError(f"found image {values[times > 1][0]:g} on the blacklist twice, expected it once")
    counted[listed.astype(np.int64) - 1] = False
    if not counted.any():
        raise CamrtError(f"all {number:,} images are on the blacklist, expected some that count")
    return counted


def _flattened(boxes: Sequence[npt.ArrayLike], number: int) -> tuple[Integers, Floats]:
    """Return the image (M,) of each box, counted from 0, and all boxes in one array (M, 5)."""
    if len(boxes) != number:
        raise CamrtError(f"found boxes of {len(boxes):,} images, expected {number:,}, as the predictions have")
    arrays = [_numbers(array, "boxes") for array in boxes]
    counts = np.zeros(number, np.int64)
    for image, array in enumerate(arrays):
        if array.size:
            if array.ndim != 2 or array.shape[1] != 5:
                raise CamrtError(
                    f"found boxes of shape {array.shape} for image {image + 1}, expected (M, 5): class, x1, y1, x2, y2"
                )
            counts[image] = len(array)
    owner = np.repeat(np.arange(number), counts)
    flat = np.concatenate([array.reshape(-1, 5) for array in arrays]) if number else np.empty((0, 5))
    if not np.isfinite(flat).all():
        raise CamrtError(f"image {owner[_first(~np.isfinite(flat))[0]] + 1}: a box contains NaN or infinity")
    row, _ = _first((flat[:, 0] < 1) | (flat[:, 0] != np.floor(flat[:, 0])))
    if row is not None:
        raise CamrtError(f"found a box of class {flat[row, 0]:g} in image {owner[row] + 1}, expected 1, 2, ...")
    row, _ = _first(_ends_before(flat[:, 1:]))
    if row is not None:
        raise CamrtError(f"ground truth of image {owner[row] + 1}: {_reversed(flat[row, 1:])}")
    return owner, flat


def _numbers(values: Any, name: str) -> Floats:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise CamrtError(f"found {name} that are not an array of numbers ({error})") from None
    if name != "boxes" and not np.isfinite(array).all():  # boxes are checked all at once
        raise CamrtError(f"found {name} with NaN or infinite values, expected numbers")
    return array


def _first(wrong: Bools) -> tuple[Any, Any]:
    """Return the row of the first True, and in two dimensions its column; None if there is none."""
    positions = np.argwhere(wrong)
    if not len(positions):
        return None, None
    return tuple((*positions[0], 0)[:2])


def _ends_before(corners: Floats) -> Bools:
    """Return which of the boxes (..., 4) end before they begin."""
    return np.asarray((corners[..., 2:] < corners[..., :2]).any(axis=-1))


def _reversed(corners: Floats) -> str:
    box = " ".join(f"{value:g}" for value in corners)
    return f"found the box {box}, expected x1 y1 x2 y2 with x1 <= x2 and y1 <= y2"


def _iou(some: Floats, others: Floats) -> Floats:
    """Return the intersection over union of boxes (..., 4) that include their last pixel."""
    begin, end = np.maximum(some[..., :2], others[..., :2]), np.minimum(some[..., 2:], others[..., 2:])
    shared = np.maximum(end - begin + 1, 0).prod(axis=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2] + 1).prod(axis=-1) for boxes in (some, others)]
    return np.asarray(shared / (areas[0] + areas[1] - shared))
