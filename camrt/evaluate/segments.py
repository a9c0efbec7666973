"""Boxes from a heatmap by one threshold, as the paper describes them.

Source: Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, section 3.2: "we first segment
the regions of which the value is above 20% of the max value of the CAM. Then we take the bounding box that covers the
largest connected component". The released code does something else: see `camrt.localize.boxes`.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from camrt.errors import CamrtError

FRACTION = 0.2


def boxes_of_segments(heatmap: npt.ArrayLike, fraction: float = FRACTION) -> npt.NDArray[np.int64]:
    """Boxes around the connected regions above a part of the maximum, the region of most pixels first.

    Pixels that touch at a corner are connected. Of regions of equal size, the one that begins further up comes first.

    Args:
        heatmap: (H, W) of real numbers.
        fraction: Of the heatmap's maximum, 0 <= fraction < 1. A pixel on the threshold is not above it.

    Returns:
        (M, 4) int64 of x, y, width, height in pixels; none where nothing is above 0.

    Raises:
        CamrtError: The heatmap has another shape, or the fraction is none.

    Example:
        >>> heatmap = np.zeros((6, 8))
        >>> heatmap[1:3, 2:6] = 1
        >>> boxes_of_segments(heatmap).tolist()
        [[2, 1, 4, 2]]
    """
    values = np.asarray(heatmap)
    if values.ndim != 2 or not values.size:
        raise CamrtError(f"found a heatmap of shape {values.shape}, expected (H, W)")
    if not 0 <= fraction < 1:
        raise CamrtError(f"found the fraction {fraction}, expected 0 <= fraction < 1")
    mask = (values > max(fraction * float(values.max()), 0)).view(np.uint8)
    _, _, found, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    found = found[1:]  # without the background
    largest = np.argsort(-found[:, cv2.CC_STAT_AREA], kind="stable")
    return found[largest, :4].astype(np.int64)
