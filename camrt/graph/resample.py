"""MATLAB's imresize as a constant matrix: it is linear, and works along one axis at a time."""

from __future__ import annotations

import numpy as np

from camrt.matlab import imresize


def enlargement(size: int, larger: int) -> np.ndarray:
    """The matrix that resizes a column bicubically: ``enlargement(h, H) @ column``.

    Args:
        size: The column's length.
        larger: The length that it is resized to.

    Returns:
        (larger, size) float64.
    """
    # What a linear operation does to the columns of the identity is its matrix.
    return np.asarray(imresize(np.eye(size), (larger, size), method="bicubic"))
