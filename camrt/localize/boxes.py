"""Boxes from a heatmap, as the original's generator draws them.

Source: bboxgenerator/dt_box.cpp and dt.c of https://github.com/metalbubble/CAM (Hui Li, 2016), the program behind the
localization errors of Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016. The released
program was built with OpenCV 2.4 for x86-64 Linux; this module gives its answers box for box, the odd ones too:

* Contours never touch the image's border: OpenCV 2.4 cleared it before it looked for them.
* A contour of the last pixels on the right or at the bottom gives a box of no or of negative width or height: x and y
  are clipped to W-5 and H-5, and the width and height to what is left of W-5 and H-5 from the contour's own corner.
* A hole is a contour too, and gives a box of its own.
* Where boxes are merged, the one after a box that was dropped is not looked at. So a contour that is the same at all
  three thresholds gives its box twice.
* Boxes of equal area stand in the order in which libstdc++'s ``std::sort`` leaves them: `camrt.localize.stdsort`.
* Where all pixels are above a threshold, there is no background to be deep inside of, and all of them are kept.

The original writes an empty file where nothing is found. Here that is an array of no boxes.
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
from camrt.localize import THRESHOLDS as THRESHOLDS
from camrt.localize.stdsort import order_of_std_sort

_DEPTH = 10  # the second threshold, on distances scaled to 0..255
_MARGIN = 5  # what the clipping keeps free on the right and at the bottom, in pixels
_CV2_EXACT = 1 << 20  # squared diagonal (pixels²) up to which float32 tells distances apart

Boxes = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def boxes_from_heatmap(heatmap: npt.ArrayLike, thresholds: Sequence[int] = THRESHOLDS) -> Boxes:
    """Boxes around what stands out in a heatmap, largest first.

    For each threshold: the pixels above it; of those, the ones that lie deeper inside than 10/255 of the deepest
    (exact Euclidean distance to the background); the boxes around the contours of what is left, outer ones and holes.
    The boxes of the three thresholds are put in order of area, and of two that share more than half of the larger,
    the smaller is dropped. See the module's text for the corners of it.

    Measured on two busy cores: 4 ms for heatmap_6.jpg (500 x 368), 6 ms for a smooth map of 256 x 256 and 17 ms for one
    of 500 x 500. Merging takes the square of the number of boxes, as in the original: noise of 256 x 256 pixels has
    10,000 and takes 2 s (the original: 1 s).

    Args:
        heatmap: (H, W) uint8, 0..255; or floats on that scale, which are rounded to the nearest integer, halves up, as
            MATLAB's imwrite rounds what the original reads. (H, W, 3) with three equal channels is taken as (H, W):
            a gray JPEG that was read as color.
        thresholds: Three gray levels, 0 < first < second < third < 255. (The original takes 30, 90, 150 without a
            word where they are not; this is an error here.)

    Returns:
        (M, 4) int64 of x, y, width, height in pixels, as the original writes them. Width and height can be 0 or
        negative next to the right and the lower border, and x and y negative in an image narrower or lower than 5.

    Raises:
        CamrtError: The heatmap has another shape, type or range, or the thresholds do not rise from 1 to 254.

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
    """Boxes from the text that the original writes: ``x y width height`` of each box, all on one line.

    Args:
        text: Integers between white space, four a box. May be empty.

    Returns:
        (M, 4) int64 of x, y, width, height in pixels, in the order of the text.

    Raises:
        CamrtError: Something else than an integer, or a number of them that four does not divide.

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
        raise CamrtError(f"found {len(words)} numbers, expected four a box: x y width height")
    return numbers.reshape(-1, 4)


def format_boxes(boxes: npt.ArrayLike) -> str:
    """The text that the original writes for boxes: ``x y width height `` of each, a space behind each number.

    Args:
        boxes: (M, 4) integers x, y, width, height in pixels.

    Returns:
        One line without an end; an empty text for no boxes.

    Raises:
        CamrtError: The boxes have another shape or type.

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
    """The thresholds, if they are three and rise within 1..254."""
    try:
        levels = tuple(operator.index(level) for level in thresholds)
    except TypeError:
        levels = ()
    if len(levels) != 3 or not 0 < levels[0] < levels[1] < levels[2] < 255:
        raise CamrtError(f"found thresholds {thresholds!r}, expected three integers, 0 < first < second < third < 255")
    return levels


def _gray(heatmap: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """The heatmap as (H, W) uint8."""
    found = np.asarray(heatmap)
    plane = found[..., 0] if found.ndim == 3 and found.shape[2] == 3 else found
    if plane.ndim != 2 or 0 in plane.shape:
        raise CamrtError(f"found a heatmap {_described(found)}, expected (H, W), or (H, W, 3) with equal channels")
    if plane is not found and not (found == plane[..., None]).all():
        raise CamrtError(
            f"found a heatmap {_described(found)} in color, expected equal channels: give the map, not its overlay"
        )
    if plane.dtype == np.uint8:
        return plane
    if not np.issubdtype(plane.dtype, np.floating):
        raise CamrtError(f"found a heatmap {_described(found)}, expected uint8, or floats from 0 to 255")
    return _rounded(plane)


def _rounded(plane: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Floats on the scale 0..255 as uint8."""
    least, most = float(plane.min()), float(plane.max())
    if not (least > -0.5 and most < 255.5):  # also where they are not numbers
        raise CamrtError(f"found a heatmap of floats from {least:g} to {most:g}, expected 0 to 255")
    if 0 < most <= 1:
        raise CamrtError(f"found a heatmap of floats from {least:g} to {most:g}, expected 0 to 255: multiply by 255")
    return np.floor(plane.astype(np.float64) + 0.5).astype(np.uint8)


def _described(array: npt.NDArray[np.generic]) -> str:
    return f"{array.shape} {array.dtype}"


# ------------------------------------------------------------------------------------------------- the core of a mask


def _core(mask: Mask) -> Mask:
    """The pixels of a mask (H, W) that lie deeper inside than 10/255 of the deepest.

    dt.c scales the distances to 0..255 and rounds them to uint8; dt_box.cpp keeps what is above 10. The arithmetic here
    is the original's, in doubles, so that it rounds alike.
    """
    if mask.all() or not mask.any():  # all distances are equal, and dt.c leaves the mask as it is
        return mask
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    # One pixel around the mask is all the background that its distances depend on.
    part = np.s_[max(y - 1, 0) : y + height + 1, max(x - 1, 0) : x + width + 1]
    depth = np.sqrt(_squared_depth(mask[part]))
    core = np.zeros_like(mask)
    core[part] = depth * (255 / depth.max()) + 0.5 >= _DEPTH + 1
    return core


def _squared_depth(mask: Mask) -> npt.NDArray[np.float64]:
    """Squared Euclidean distance of each pixel to the nearest one outside the mask, exact: integers as float64.

    OpenCV is far faster than SciPy, but computes in float32: its distances are squared and rounded back to the integers
    that they are roots of, as long as the image is small enough for these to be told apart.
    """
    height, width = mask.shape
    if height**2 + width**2 <= _CV2_EXACT:
        depth = cv2.distanceTransform(np.ascontiguousarray(mask).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    else:
        depth = ndimage.distance_transform_edt(mask)
    return np.rint(np.square(depth, dtype=np.float64))


# ------------------------------------------------------------------------------------------------- boxes


def _contour_boxes(mask: Mask) -> Boxes:
    """The clipped boxes (M, 4) of all contours of a mask (H, W), in the order in which OpenCV finds them."""
    height, width = mask.shape
    inside = np.zeros(mask.shape, np.uint8)
    inside[1:-1, 1:-1] = mask[1:-1, 1:-1]  # OpenCV 2.4 cleared the border
    contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    boxes = np.array([cv2.boundingRect(contour) for contour in contours], np.int64).reshape(-1, 4)
    room = np.array([width - _MARGIN, height - _MARGIN])
    corners, sizes = boxes[:, :2], boxes[:, 2:]
    # Nothing is below 0, so that only the upper limit matters; it may itself be negative.
    return np.hstack([np.minimum(corners, room), np.minimum(sizes, room - corners)])


def _largest_first(boxes: Boxes) -> Boxes:
    """Return the boxes (M, 4) in falling order of area, those of equal area as the original's std::sort leaves them."""
    return boxes[order_of_std_sort(boxes[:, 2] * boxes[:, 3])]


# ------------------------------------------------------------------------------------------------- overlaps


def _without_overlaps(boxes: Boxes) -> Boxes:
    """The boxes (M, 4), largest first, without those that share more than half of a larger one's area with it.

    When a box is dropped, the next one moves into its place and is not looked at: of a run of boxes that all overlap,
    every second one stays.
    """
    x, y, width, height = boxes.T
    sides = np.stack([x, y, x + width, y + height, -width * height])  # the last rises
    i = 0
    while i < sides.shape[1] - 1:
        half = math.trunc(-sides[4, i] / 2)  # as C casts to int: areas can be negative
        # No box shares more than its own area, or than 0. The rest need not be looked at.
        end = np.searchsorted(sides[4], -half) if half >= 0 else None
        overlaps = np.flatnonzero(_shared(sides[:, i], sides[:, i + 1 : end]) > half)
        if len(overlaps):
            sides = np.delete(sides, i + 1 + _every_second(overlaps), axis=1)
        i += 1
    return np.stack([*sides[:2], *(sides[2:4] - sides[:2])], axis=1)


def _shared(box: Boxes, others: Boxes) -> Boxes:
    """The area that each of ``others`` (x1, y1, x2, y2, ... in rows) shares with ``box``."""
    width = np.minimum(others[2], box[2]) - np.maximum(others[0], box[0])
    height = np.minimum(others[3], box[3]) - np.maximum(others[1], box[1])
    return np.asarray(np.maximum(width, 0) * np.maximum(height, 0))


def _every_second(places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The first, third, fifth, ... of each run of consecutive numbers among ``places``, which rise."""
    count = np.arange(len(places))
    begins = np.diff(places, prepend=-2) != 1
    since = count - np.maximum.accumulate(np.where(begins, count, 0))
    return np.asarray(places[since % 2 == 0])
