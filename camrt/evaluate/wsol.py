"""Metrics of weakly supervised object localization after Choe et al.: boxes or masks, at every threshold.

Choe, Oh, Lee, Chun, Akata, Shim: Evaluating Weakly Supervised Object Localization Methods Right, CVPR 2020, and the
longer version of 2022 (arXiv:2007.04178), which adds MaxBoxAccV2. Details that the paper leaves open follow the
authors' evaluator:

* A map is scaled to 0..1 by its minimum and maximum, and truncated to 256 gray levels. A constant map, or one with NaN,
  becomes 0.
* A threshold of 0..1 is the gray level ``int(threshold * largest level)``; the foreground is above it.
* A contour's box ends one pixel behind the contour, or at the map's last pixel. Boxes include both ends: their area is
  ``(x2 - x1 + 1) * (y2 - y1 + 1)``. Without foreground, the box is the pixel at 0, 0.
* Contours of holes count too.

Boxes are (M, 4) of x1, y1, x2, y2. All functions are pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camrt.errors import CamrtError

SIDE = 224  # pixels: the maps and boxes of the published evaluator
THRESHOLDS: NDArray[np.float64] = np.arange(0, 1, 0.001)
OVERLAPS = (0.3, 0.5, 0.7)  # of MaxBoxAccV2
LEVELS = 255  # a foreground mask is above one of the gray levels 0 to 254
_MANY = 64  # contours; with as many, one array of all points is faster than OpenCV's functions one by one

Boxes = NDArray[np.int64]


# ------------------------------------------------------------------------------------------------------------ the maps


def normalized(heatmap: NDArray[Any]) -> NDArray[np.float64]:
    """Scale a map so that its minimum is 0 and its maximum is 1.

    Args:
        heatmap: (H, W).

    Returns:
        (H, W) float64; zeros for a constant map and for one with NaN or infinity.
    """
    values = np.asarray(heatmap, np.float64)
    least, largest = values.min(), values.max()
    if not (np.isfinite(least) and np.isfinite(largest) and least < largest):
        return np.zeros_like(values)
    values = values - least
    scaled: NDArray[np.float64] = values / values.max()
    return scaled


def gray_levels(heatmap: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the gray levels of a map of 0..1: (H, W) uint8.

    Raises:
        CamrtError: A value is outside of 0..1 or NaN, or the shape is not (H, W).
    """
    if heatmap.ndim != 2 or not heatmap.size:
        raise CamrtError(f"found a map of shape {heatmap.shape}, expected (H, W)")
    if not (heatmap.min() >= 0 and heatmap.max() <= 1):
        raise CamrtError(
            f"found a map of {heatmap.min()} to {heatmap.max()}, expected 0 to 1: apply `normalized` first"
        )
    levels: NDArray[np.uint8] = (heatmap * 255).astype(np.uint8)
    return levels


def levels_of(thresholds: NDArray[Any] | Sequence[float], largest: int = 255) -> NDArray[np.int64]:
    """Return the gray level of each threshold.

    Args:
        thresholds: (T,), 0..1.
        largest: The largest gray level of the map: 255, unless the map is 0.
    """
    return (np.asarray(thresholds, np.float64) * largest).astype(np.int64)


# ----------------------------------------------------------------------------------------------------------- the boxes


def boxes_above(gray: NDArray[np.uint8], level: int) -> tuple[Boxes, int]:
    """Return the boxes of the contours of the foreground above a gray level.

    Args:
        gray: (H, W) uint8.
        level: 0 to 254.

    Returns:
        (M, 4) int64, one box per contour, including those of holes, in OpenCV's order; and the index of the contour
        with the largest area, the first if there are several.
    """
    return _boxes_above(gray, level, gray.max(axis=1), gray.max(axis=0))


def _boxes_above(
    gray: NDArray[np.uint8], level: int, highest_of_rows: NDArray[np.uint8], highest_of_columns: NDArray[np.uint8]
) -> tuple[Boxes, int]:
    import cv2

    rows, columns = (np.flatnonzero(highest > level) for highest in (highest_of_rows, highest_of_columns))
    if not len(rows):
        return np.zeros((1, 4), np.int64), 0
    # The contours of the part that is not empty are those of the whole map, and take less time to find.
    top, left = int(rows[0]), int(columns[0])
    part = gray[top : rows[-1] + 1, left : columns[-1] + 1]
    _, mask = cv2.threshold(part, level, 255, cv2.THRESH_BINARY)
    contours: Sequence[NDArray[Any]]
    contours = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))[0]
    if len(contours) < _MANY:
        boxes = np.array([cv2.boundingRect(contour) for contour in contours], np.int64)
        boxes[:, 2:] += boxes[:, :2]
        largest = int(np.argmax([cv2.contourArea(contour) for contour in contours])) if len(contours) > 1 else 0
    else:
        boxes, areas = _boxes_of_points(contours)
        largest = int(areas.argmax())
    np.minimum(boxes[:, 2:], (gray.shape[1] - 1, gray.shape[0] - 1), out=boxes[:, 2:])
    return boxes, largest


def _boxes_of_points(contours: Sequence[NDArray[Any]]) -> tuple[Boxes, NDArray[np.int64]]:
    """Return the boxes of polygons (exclusive ends) and twice their areas (shoelace formula), all at once."""
    counts = np.array([len(contour) for contour in contours])
    starts = np.cumsum(counts) - counts
    points = np.concatenate(contours).reshape(-1, 2).astype(np.int64)
    before = np.arange(-1, len(points) - 1)
    before[starts] = starts + counts - 1
    crossed = points[before, 0] * points[:, 1] - points[before, 1] * points[:, 0]
    least, largest = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
    return np.hstack([least, largest + 1]), np.abs(np.add.reduceat(crossed, starts))


def resized_boxes(boxes: NDArray[Any], size: tuple[int, int], side: int = SIDE) -> Boxes:
    """Scale the boxes of an image that is resized to a square, truncated to whole pixels.

    Args:
        boxes: (M, 4) x1, y1, x2, y2 in the image's pixels.
        size: The image's width and height.
        side: The square's side in pixels.

    Returns:
        (M, 4) int64.
    """
    width, height = size
    scaled = np.asarray(boxes, np.float64).reshape(-1, 4) * float(side) / (width, height, width, height)
    return scaled.astype(np.int64)


def overlaps(boxes: NDArray[Any], others: NDArray[Any]) -> NDArray[np.float64]:
    """Return the intersection over union of boxes that include both ends.

    Args:
        boxes: (A, 4) x1, y1, x2, y2.
        others: (B, 4).

    Returns:
        (A, B) float64, 0..1.

    Raises:
        CamrtError: A box ends before it begins.
    """
    first, second = (np.asarray(each).reshape(-1, 4) for each in (boxes, others))
    for each in (first, second):
        if (each[:, 2:] < each[:, :2]).any():
            wrong = each[(each[:, 2:] < each[:, :2]).any(axis=1)][0]
            raise CamrtError(f"found the box {wrong.tolist()}, expected x1 <= x2 and y1 <= y2")
    begin = np.maximum(first[:, None, :2], second[None, :, :2])
    end = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.maximum(end - begin + 1, 0).prod(axis=2)
    areas = [(each[:, 2:] - each[:, :2] + 1).prod(axis=1) for each in (first, second)]
    ious: NDArray[np.float64] = shared / (areas[0][:, None] + areas[1][None, :] - shared)
    return ious


def overlaps_of_levels(gray: NDArray[np.uint8], truth: NDArray[Any]) -> NDArray[np.float64]:
    """Return how well the boxes of a map fit, for every gray level.

    A level that no pixel has gives the same mask as the level below, so that each mask is evaluated once.

    Args:
        gray: (H, W) uint8: `gray_levels` of the map.
        truth: (M, 4) the image's boxes in the map's pixels, M >= 1.

    Returns:
        (2, 255) float64, for the levels 0 to 254: the overlap of the largest contour's box with its best true box, and
        the largest overlap of any contour's box with any true box.
    """
    highest = gray.max(axis=1), gray.max(axis=0)
    present = np.bincount(gray.ravel(), minlength=256) > 0
    present[0] = True
    distinct = np.flatnonzero(present[:LEVELS])
    found = [_boxes_above(gray, level, *highest) for level in distinct.tolist()]
    counts = np.array([len(boxes) for boxes, _ in found])
    starts = np.cumsum(counts) - counts
    best = overlaps(np.concatenate([boxes for boxes, _ in found]), truth).max(axis=1)
    of_largest = best[starts + [largest for _, largest in found]]
    of_all = np.maximum.reduceat(best, starts)
    # Each level gives the mask of the nearest level that is present, at or below it.
    source = np.cumsum(present[:LEVELS]) - 1
    return np.stack([of_largest, of_all])[:, source]


def threshold_overlaps(
    heatmap: NDArray[np.float64], truth: NDArray[Any], thresholds: NDArray[Any] | Sequence[float] = THRESHOLDS
) -> NDArray[np.float64]:
    """Return how well the boxes of a map fit, for every threshold: `overlaps_of_levels` at the thresholds' levels.

    Args:
        heatmap: (H, W) float64, 0..1: a `normalized` map.
        truth: (M, 4) the image's boxes in the map's pixels.
        thresholds: (T,), 0 <= threshold < 1.

    Returns:
        (2, T) float64: for the largest contour, and for all contours.

    Raises:
        CamrtError: The map is not in 0..1, or a box ends before it begins.
    """
    gray = gray_levels(heatmap)
    of_levels = overlaps_of_levels(gray, truth)
    cut: NDArray[np.float64] = of_levels[:, levels_of(thresholds, int(gray.max()))]
    return cut


# ------------------------------------------------------------------------------------------------------------- metrics


def box_accuracy(ious: NDArray[Any], overlap: float = 0.5) -> NDArray[np.float64]:
    """Return the share of images that are localized at each threshold: BoxAcc(τ, δ), equation 2 of Choe et al. 2020.

    Args:
        ious: (N, T) for each image and threshold, from `threshold_overlaps`. Zeros for an image without a map.
        overlap: δ, the least intersection over union that counts.

    Returns:
        (T,) float64, 0..1.
    """
    accuracy: NDArray[np.float64] = (np.asarray(ious) >= np.asarray(overlap, np.asarray(ious).dtype)).mean(axis=0)
    return accuracy


def max_box_acc(ious: NDArray[Any], overlap: float = 0.5) -> float:
    """Return MaxBoxAcc: the box accuracy at the best threshold for the whole dataset (Choe et al. 2020, equation 3).

    With the ``ious`` of the largest contour and an overlap of 0.5, it is GT-known localization at the best threshold.

    Args:
        ious: (N, T).
        overlap: The least intersection over union that counts.

    Returns:
        0..1.
    """
    return float(box_accuracy(ious, overlap).max())


def max_box_acc_v2(ious: NDArray[Any], levels: Sequence[float] = OVERLAPS) -> float:
    """Return MaxBoxAccV2: the mean of `max_box_acc` over overlaps of 0.3, 0.5 and 0.7, each at its best threshold.

    Choe et al. 2022 (arXiv:2007.04178), section 3.3, with the ``ious`` of all contours.

    Args:
        ious: (N, T).
        levels: The overlaps.

    Returns:
        0..1.
    """
    return float(np.mean([max_box_acc(ious, overlap) for overlap in levels]))


def localization_accuracy(
    ious: NDArray[Any], ranks: NDArray[Any] | None = None, best: int | None = None, overlap: float = 0.5
) -> float:
    """Return GT-known, top-1 or top-5 localization at one threshold.

    Russakovsky et al. 2015, section 4.3, as an accuracy. An image counts if its class is among the ``best`` classes and
    the map of its class localizes it. Only the map of the labeled class matters: a guess with another class is wrong
    wherever its box is.

    Args:
        ious: (N,): the overlap of each image at the threshold.
        ranks: (N,): the rank of the labeled class among the scores, 0 for the best; None for GT-known.
        best: The number of classes that may be guessed: 1 or 5; None for GT-known.
        overlap: The least intersection over union that counts.

    Returns:
        0..1.
    """
    localized = np.asarray(ious) >= np.asarray(overlap, np.asarray(ious).dtype)
    if best is not None:
        if ranks is None:
            raise CamrtError(f"found no ranks for top-{best} localization, expected one for each image")
        localized = localized & (np.asarray(ranks) < best)
    return float(localized.mean())


def rank_of(scores: NDArray[Any], label: int) -> int:
    """Return the rank of a class among the scores, 0 for the best. Of equal scores, the lower class comes first.

    Args:
        scores: (K,).
        label: The class.
    """
    own = scores[label]
    if not np.isfinite(own):
        return len(scores) - 1
    return int((scores > own).sum() + (scores[:label] == own).sum())


# --------------------------------------------------------------------------------------------------------------- masks


def merged_masks(
    masks: Iterable[NDArray[Any]], ignored: NDArray[Any] | None = None, side: int | None = SIDE
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Merge the masks of an image.

    Args:
        masks: (H, W) gray or bool, one per object; values above 0.5 are object.
        ignored: (H, W): the region to ignore, except where it is object; None for none.
        side: The side of the square that masks are resized to (nearest pixel); None to keep their size.

    Returns:
        The object and the ignored region: (side, side) bool each, disjoint.

    Raises:
        CamrtError: There are no masks.
    """
    resized = [_resized_mask(mask, side) for mask in masks]
    if not resized:
        raise CamrtError("found no masks, expected at least one")
    found = np.logical_or.reduce(resized)
    without = np.zeros_like(found) if ignored is None else _resized_mask(ignored, side) & ~found
    return found, without


def _resized_mask(mask: NDArray[Any], side: int | None) -> NDArray[np.bool_]:
    import cv2

    levels: NDArray[Any] = np.asarray(mask, np.float32)
    if side is not None:
        levels = cv2.resize(levels, (side, side), interpolation=cv2.INTER_NEAREST)
    above: NDArray[np.bool_] = levels > 0.5
    return above


def pixel_counts(
    heatmap: NDArray[np.float64],
    found: NDArray[np.bool_],
    ignored: NDArray[np.bool_] | None = None,
    thresholds: NDArray[Any] | Sequence[float] = THRESHOLDS,
) -> NDArray[np.int64]:
    """Count the pixels between one threshold and the next, off the object and on it.

    The counts of several images can be added; `pxap` is computed from the sum.

    Args:
        heatmap: (H, W) float64, 0..1: a `normalized` map.
        found: (H, W): the object.
        ignored: (H, W): the region to ignore.
        thresholds: (T,), increasing from 0.

    Returns:
        (2, T + 1) int64: off the object and on it, between two thresholds each; the last column counts values of
        exactly 1.

    Raises:
        CamrtError: The sizes differ.
    """
    if heatmap.shape != found.shape or (ignored is not None and ignored.shape != found.shape):
        shapes = [found.shape] if ignored is None else [found.shape, ignored.shape]
        raise CamrtError(f"found masks of {shapes} for a map of {heatmap.shape}, expected one size")
    edges = np.append(np.asarray(thresholds, np.float64), [1.0, 2.0])  # the last bin counts values of exactly 1
    counted = np.ones_like(found) if ignored is None else ~ignored
    return np.stack([np.histogram(heatmap[counted & (found == on)], edges)[0] for on in (False, True)])


def pxap(counts: NDArray[Any]) -> float:
    """Return PxAP: the area under the curve of pixel precision over recall (Choe et al. 2020, equations 4 to 6).

    Args:
        counts: (2, T + 1): the sum of the images' `pixel_counts`.

    Returns:
        0..1.

    Raises:
        CamrtError: No pixel is on an object.
    """
    off, on = np.asarray(counts)[:, ::-1].cumsum(axis=1)
    if not on[-1]:
        raise CamrtError("found no pixel on an object, expected masks that show one")
    precision, recall = on / np.maximum(on + off, 1), on / on[-1]
    return float((precision * np.diff(recall, prepend=0.0)).sum())


def precision_recall(counts: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the curve of precision over recall; `pxap` is the area under it.

    Args:
        counts: (2, T + 1): the sum of the images' `pixel_counts`.

    Returns:
        Precision and recall at each threshold and, last, at 1: (T + 1,) float64 each. If nothing is above a threshold,
        the precision is 0.
    """
    off, on = np.asarray(counts)[:, ::-1].cumsum(axis=1)
    return (on / np.maximum(on + off, 1))[::-1], (on / max(on[-1], 1))[::-1]
