"""Boxes from a heatmap, identical to those of the original box generator.

Source: bboxgenerator/dt_box.cpp and dt.c of https://github.com/metalbubble/CAM (Hui Li, 2016), the program behind the
localization errors of Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016. The released
program was built with OpenCV 2.4 for x86-64 Linux. This module reproduces its output exactly, including its quirks:

* Contours never touch the image border, since OpenCV 2.4 clears it before it searches for contours.
* A contour near the right or bottom border may give a box with a width or height of 0 or less: x and y are clipped to
  W-5 and H-5, and the width and height to the distance from the original corner to W-5 and H-5.
* Holes are contours too, and give boxes of their own.
* When overlapping boxes are removed, the box after a removed one is skipped. A contour that is the same at all three
  thresholds therefore gives two equal boxes.
* Boxes of equal area are in the order in which libstdc++'s ``std::sort`` leaves them: see `camrt.localize.stdsort`.
* If all pixels are above a threshold, there is no background to measure the distance to, and all pixels are kept.

If nothing is found, the original writes an empty file, and this module returns an array without boxes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from camrt.errors import CamrtError
from camrt.localize import THRESHOLDS
from camrt.localize.stdsort import order_of_std_sort

_DEPTH = 10  # threshold of the distances, scaled to 0..255
_MARGIN = 5  # pixels between a clipped box and the right and bottom borders
_CV2_EXACT = 1 << 20  # largest squared diagonal (pixels²) at which float32 distinguishes all distances

Boxes = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def boxes_from_heatmap(heatmap: npt.ArrayLike, thresholds: Sequence[int] = THRESHOLDS) -> Boxes:
    """Find boxes around the high values of a heatmap, largest first.

    For each threshold, the pixels above it form a mask. Of these, the pixels are kept whose Euclidean distance to the
    background exceeds 10/255 of the largest. All outer contours and holes of the remaining mask give boxes. The boxes
    of all thresholds are sorted by area, and a box is dropped if its overlap with a larger box exceeds half of the
    larger one. See the module docstring for special cases.

    Measured on two busy cores: 4 ms for heatmap_6.jpg (500 x 368), 6 ms for a smooth map of 256 x 256 and 17 ms for one
    of 500 x 500. Removing overlaps takes quadratic time, as in the original: noise of 256 x 256 pixels has 10,000 boxes
    and takes 2 s (the original: 1 s).

    Args:
        heatmap: (H, W) uint8, 0..255; or floats on that scale, which are rounded half up to integers, as MATLAB's
            imwrite does for the original. (H, W, 3) with three equal channels, a gray JPEG that was read as color, is
            used as (H, W).
        thresholds: Three gray levels, 0 < first < second < third < 255. For others, the original silently uses 30, 90,
            150, while this function raises an error.

    Returns:
        (M, 4) int64: x, y, width, height in pixels. Width and height may be 0 or negative near the right and bottom
        borders, and x and y may be negative in images of less than 5 pixels in width or height.

    Raises:
        CamrtError: The heatmap has a wrong shape, dtype or range, or the thresholds do not increase within 1 to 254.

    Example:
        >>> heatmap = np.zeros((60, 80), np.uint8)
        >>> heatmap[10:30, 20:60] = 200
        >>> boxes_from_heatmap(heatmap).tolist()
        [[20, 10, 40, 20], [20, 10, 40, 20]]
    """
    levels = _rising(thresholds)
    gray = np.ascontiguousarray(_gray(heatmap))
    found = [_contour_boxes(_core(gray > level)) for level in levels]
    return _without_overlaps(_largest_first(np.concatenate(found)))


def read_boxes(text: str) -> Boxes:
    """Parse boxes in the format of the original: ``x y width height`` of all boxes on one line.

    Args:
        text: Integers separated by whitespace, four for each box. May be empty.

    Returns:
        (M, 4) int64: x, y, width, height in pixels, in the order of the text.

    Raises:
        CamrtError: The text has a word that is not an integer, or the number of integers is not a multiple of four.

    Example:
        >>> read_boxes("41 145 362 202 102 188 242 126 ").tolist()
        [[41, 145, 362, 202], [102, 188, 242, 126]]
    """
    words = text.split()
    try:
        numbers = np.array([int(word) for word in words], np.int64)
    except (ValueError, OverflowError) as error:
        raise CamrtError(f"found {error}, expected integers: x y width height of each box") from error
    if len(words) % 4:
        raise CamrtError(f"found {len(words)} numbers, expected four for each box: x y width height")
    return numbers.reshape(-1, 4)


def format_boxes(boxes: npt.ArrayLike) -> str:
    """Format boxes as the original does: ``x y width height `` of each box, with a space after each number.

    Args:
        boxes: (M, 4) integers: x, y, width, height in pixels.

    Returns:
        One line without a newline; an empty string for no boxes.

    Raises:
        CamrtError: The boxes have a wrong shape or dtype.

    Example:
        >>> format_boxes([[41, 145, 362, 202], [102, 188, 242, 126]])
        '41 145 362 202 102 188 242 126 '
    """
    numbers = np.asarray(boxes)
    if numbers.size == 0:
        return ""
    if numbers.ndim != 2 or numbers.shape[1] != 4 or not np.issubdtype(numbers.dtype, np.integer):
        raise CamrtError(f"found boxes {_described(numbers)}, expected integers (M, 4): x, y, width, height")
    return "".join(f"{number} " for number in numbers.ravel().tolist())


# ------------------------------------------------------------------------------------------------- what is given


def _rising(thresholds: Sequence[int]) -> tuple[int, ...]:
    """Check that the thresholds are three integers that increase within 1..254."""
    try:
        levels = tuple(operator.index(level) for level in thresholds)
    except TypeError:
        levels = ()
    if len(levels) != 3 or not 0 < levels[0] < levels[1] < levels[2] < 255:
        raise CamrtError(f"found thresholds {thresholds!r}, expected three integers, 0 < first < second < third < 255")
    return levels


def _gray(heatmap: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Return the heatmap as (H, W) uint8."""
    found = np.asarray(heatmap)
    plane = found[..., 0] if found.ndim == 3 and found.shape[2] == 3 else found
    if plane.ndim != 2 or 0 in plane.shape:
        raise CamrtError(f"found a heatmap {_described(found)}, expected (H, W), or (H, W, 3) with equal channels")
    if plane is not found and not (found == plane[..., None]).all():
        raise CamrtError(
            f"found a heatmap {_described(found)} in color, expected equal channels: pass the map, not its overlay"
        )
    if plane.dtype == np.uint8:
        return plane
    if not np.issubdtype(plane.dtype, np.floating):
        raise CamrtError(f"found a heatmap {_described(found)}, expected uint8, or floats from 0 to 255")
    return _rounded(plane)


def _rounded(plane: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Round floats on the scale 0..255 to uint8."""
    least, most = float(plane.min()), float(plane.max())
    if not (least > -0.5 and most < 255.5):  # also false for NaN
        raise CamrtError(f"found a heatmap of floats from {least:g} to {most:g}, expected 0 to 255")
    if 0 < most <= 1:
        raise CamrtError(f"found a heatmap of floats from {least:g} to {most:g}, expected 0 to 255: multiply by 255")
    return np.floor(plane.astype(np.float64) + 0.5).astype(np.uint8)


def _described(array: npt.NDArray[np.generic]) -> str:
    return f"{array.shape} {array.dtype}"


# ------------------------------------------------------------------------------------------------- the core of a mask


def _core(mask: Mask) -> Mask:
    """Keep the pixels of a mask (H, W) whose distance to the background exceeds 10/255 of the largest.

    dt.c scales the distances to 0..255 and rounds them to uint8, and dt_box.cpp keeps those above 10. The arithmetic is
    that of the original, in double precision, so that it rounds identically.
    """
    if mask.all() or not mask.any():  # all distances are equal, and dt.c returns the mask unchanged
        return mask
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    # The distances depend only on the background within one pixel of the mask.
    part = np.s_[max(y - 1, 0) : y + height + 1, max(x - 1, 0) : x + width + 1]
    depth = np.sqrt(_squared_depth(mask[part]))
    core = np.zeros_like(mask)
    core[part] = depth * (255 / depth.max()) + 0.5 >= _DEPTH + 1
    return core


def _squared_depth(mask: Mask) -> npt.NDArray[np.float64]:
    """Compute the exact squared Euclidean distance of each pixel to the background, integers as float64.

    OpenCV is far faster than SciPy, but computes in float32. Its distances are squared and rounded to integers, as long
    as the image is small enough for these to be distinguished.
    """
    height, width = mask.shape
    if height**2 + width**2 <= _CV2_EXACT:
        depth = cv2.distanceTransform(np.ascontiguousarray(mask).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    else:
        depth = ndimage.distance_transform_edt(mask)
    return np.rint(np.square(depth, dtype=np.float64))


# ------------------------------------------------------------------------------------------------- boxes


def _contour_boxes(mask: Mask) -> Boxes:
    """Return the clipped boxes (M, 4) of all contours of a mask (H, W), in the order in which OpenCV finds them."""
    height, width = mask.shape
    inside = np.zeros(mask.shape, np.uint8)
    inside[1:-1, 1:-1] = mask[1:-1, 1:-1]  # OpenCV 2.4 clears the border
    contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    boxes = np.array([cv2.boundingRect(contour) for contour in contours], np.int64).reshape(-1, 4)
    room = np.array([width - _MARGIN, height - _MARGIN])
    corners, sizes = boxes[:, :2], boxes[:, 2:]
    # Corners and sizes are not negative, so only the upper limit matters. It may itself be negative.
    return np.hstack([np.minimum(corners, room), np.minimum(sizes, room - corners)])


def _largest_first(boxes: Boxes) -> Boxes:
    """Sort boxes (M, 4) by decreasing area. Boxes of equal area are in the order of libstdc++'s std::sort."""
    return boxes[order_of_std_sort(boxes[:, 2] * boxes[:, 3])]


# ------------------------------------------------------------------------------------------------- overlaps


def _without_overlaps(boxes: Boxes) -> Boxes:
    """Remove boxes, given largest first, whose overlap with a larger box exceeds half of the larger box's area.

    As in the original, the box after a removed one is skipped. Of consecutive boxes that all overlap, every second one
    therefore stays.
    """
    x, y, width, height = boxes.T
    sides = np.stack([x, y, x + width, y + height, -width * height])  # the last row increases
    i = 0
    while i < sides.shape[1] - 1:
        half = math.trunc(-sides[4, i] / 2)  # a cast to int in C, since areas may be negative
        # The overlap is at most the area of the smaller box, so boxes of at most half the area cannot exceed it.
        end = np.searchsorted(sides[4], -half) if half >= 0 else None
        overlaps = np.flatnonzero(_shared(sides[:, i], sides[:, i + 1 : end]) > half)
        if len(overlaps):
            sides = np.delete(sides, i + 1 + _every_second(overlaps), axis=1)
        i += 1
    return np.stack([*sides[:2], *(sides[2:4] - sides[:2])], axis=1)


def _shared(box: Boxes, others: Boxes) -> Boxes:
    """Return the areas of the intersections of ``box`` and each of ``others``, with x1, y1, x2, y2 in rows."""
    width = np.minimum(others[2], box[2]) - np.maximum(others[0], box[0])
    height = np.minimum(others[3], box[3]) - np.maximum(others[1], box[1])
    return np.asarray(np.maximum(width, 0) * np.maximum(height, 0))


def _every_second(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the first, third, fifth, ... of each run of consecutive numbers among increasing ``positions``."""
    count = np.arange(len(positions))
    begins = np.diff(positions, prepend=-2) != 1
    since = count - np.maximum.accumulate(np.where(begins, count, 0))
    return np.asarray(positions[since % 2 == 0])
