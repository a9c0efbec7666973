"""Boxes around the connected components of a mask."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from camrt.errors import CamrtError

BEST_SHARE = 0.5  # of the largest value: what overlays show at nearly full opacity


def boxes_from_mask(mask: npt.ArrayLike, *, least: float = 0.01) -> npt.NDArray[np.int64]:
    """Find boxes around the connected components of a mask, in order of decreasing numbers of pixels.

    Pixels that touch at a corner are connected. Unlike in `boxes_from_heatmap`, boxes are not clipped near the borders.

    Args:
        mask: (H, W) bool.
        least: Components are ignored if they have fewer pixels than this fraction of the largest one.

    Returns:
        (M, 4) int64: x, y, width, height in pixels; (0, 4) for an empty mask.

    Raises:
        CamrtError: The mask has a wrong shape or dtype, or ``least`` is not within 0 to 1.

    Example:
        >>> mask = np.zeros((60, 80), bool)
        >>> mask[10:30, 20:60] = mask[40:50, 5:10] = True
        >>> boxes_from_mask(mask).tolist()
        [[20, 10, 40, 20], [5, 40, 5, 10]]
    """
    found = np.asarray(mask)
    if found.ndim != 2 or not found.size or found.dtype != np.bool_:
        raise CamrtError(f"found a mask of shape {found.shape} and {found.dtype}, expected (H, W) bool")
    if not 0 <= least <= 1:
        raise CamrtError(f"found least={least!r}, expected a fraction from 0 to 1")
    parts = cv2.connectedComponentsWithStats(np.ascontiguousarray(found).view(np.uint8), connectivity=8)[2][1:]
    sizes = parts[:, cv2.CC_STAT_AREA]
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] >= least * sizes.max(initial=0)]
    return parts[order, :4].astype(np.int64)


def best_box(heatmap: npt.NDArray[np.floating], share: float = BEST_SHARE) -> npt.NDArray[np.float64]:
    """Find a box around the best region of a heatmap: of the pixels above a share of its range, the largest component.

    The range is from the smallest value, or 0 where there are negative ones, to the largest, as overlays show it.

    Args:
        heatmap: (h, w) floats. Values that are not finite do not count.
        share: 0 <= share < 1.

    Returns:
        (1, 4) float64: x, y, width, height as parts of the heatmap's width and height, 0..1; (0, 4) where nothing
        stands out.

    Source:
        B. Zhou et al., "Learning deep features for discriminative localization", CVPR 2016, section 3.2, which takes
        the largest connected component above 20% of the largest value. Half of it is closer to what an overlay shows.

    Example:
        >>> heatmap = np.zeros((60, 80))
        >>> heatmap[10:30, 20:60] = 1
        >>> best_box(heatmap).tolist()
        [[0.25, 0.16666666666666666, 0.5, 0.3333333333333333]]
    """
    if not 0 <= share < 1:
        raise CamrtError(f"found share={share!r}, expected a number from 0 to less than 1")
    there = np.isfinite(heatmap)
    finite = heatmap[there]
    low, high = (max(float(finite.min()), 0.0), float(finite.max())) if finite.size else (0.0, 0.0)
    if not high > low:
        return np.zeros((0, 4))
    boxes = boxes_from_mask(there & (heatmap > low + share * (high - low)))[:1]
    return boxes / (heatmap.shape[::-1] * 2)
