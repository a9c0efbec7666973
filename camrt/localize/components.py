"""Boxes around the connected components of a mask."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from camrt.errors import CamrtError


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
