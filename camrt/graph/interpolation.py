"""What Resize does along an axis, as a matrix: the weights of the original's pixels in each new one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from camrt.errors import CamrtError
from camrt.graph.windows import check_matrix

_SINGLE = np.float32  # runtimes compute coordinates in it, and rounding them decides which pixel is nearest


def resize_matrix(
    size: int, out: int, scale: float, region: tuple[float, float],
    *, coordinate_transformation_mode: str = "half_pixel", **kernel: Any,
) -> np.ndarray:  # fmt: skip
    """The matrix of an axis that is resized: (out, size) float64.

    Args:
        size: The pixels of the original.
        out: Those of the result.
        scale: By how much it is enlarged, as the model says it.
        region: Where the region of interest begins and ends, 0..1, for ``tf_crop_and_resize``.
        coordinate_transformation_mode: As Resize's attribute.
        kernel: Resize's other attributes; those of no concern here are ignored.

    Raises:
        CamrtError: A mode is none of ONNX's; the axis is too large for a matrix.
    """
    check_matrix(out, size, "new pixels")
    positions, outside = _coordinates(coordinate_transformation_mode, size, out, scale, region)
    matrix = _matrix(positions, size, scale, **kernel)
    matrix[outside] = 0  # a constant stands there
    return matrix


def _matrix(
    positions: np.ndarray, size: int, scale: float,
    *,
    mode: str = "nearest", nearest_mode: str = "round_prefer_floor", antialias: int = 0,
    cubic_coeff_a: float = -0.75, exclude_outside: int = 0, **_: object,
) -> np.ndarray:  # fmt: skip
    """The pixels that each one is a mean of, and their weights: (out, size)."""
    if mode not in ("nearest", "linear", "cubic"):
        raise CamrtError(f"found the mode {mode!r}, expected nearest, linear or cubic")
    if mode == "nearest":
        taps, weights = _nearest(positions, nearest_mode)[:, None], np.ones((len(positions), 1))
    else:
        spread = max(1.0, 1 / scale) if antialias else 1.0  # widens the kernel
        reach = math.ceil((1 if mode == "linear" else 2) * spread)
        taps = np.floor(positions)[:, None].astype(np.int64) + np.arange(-reach + 1, reach + 1)
        distance = np.abs(positions[:, None] - taps) / spread
        weights = np.maximum(1 - distance, 0) if mode == "linear" else _keys(distance, cubic_coeff_a)
        if exclude_outside:
            weights = np.where((taps >= 0) & (taps < size), weights, 0)
        weights = weights / weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((len(positions), size))
    np.add.at(matrix, (np.arange(len(positions))[:, None], taps.clip(0, size - 1)), weights)
    return matrix


def _coordinates(
    mode: str, size: int, out: int, scale: float, region: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel lies in the original: (out,) float64; and which lie outside a region's image."""
    pixel, by, half = np.arange(out, dtype=_SINGLE), _SINGLE(scale), _SINGLE(0.5)
    outside = np.zeros(out, bool)
    if mode == "align_corners":
        positions = pixel * _SINGLE(size - 1) / _SINGLE(out - 1) if out > 1 else np.zeros_like(pixel)
    elif mode == "asymmetric":
        positions = pixel / by
    elif mode == "pytorch_half_pixel" and out == 1:
        positions = np.zeros_like(pixel)
    elif mode in ("half_pixel", "pytorch_half_pixel"):
        positions = (pixel + half) / by - half
    elif mode == "half_pixel_symmetric":
        positions = _SINGLE(size / 2 * (1 - out / (size * scale))) + (pixel + half) / by - half
    elif mode == "tf_crop_and_resize":
        first, last = (bound * (size - 1) for bound in region)
        step = _SINGLE((last - first) / (out - 1)) if out > 1 else 0
        positions = _SINGLE(first if out > 1 else (first + last) / 2) + pixel * step
        outside = (positions < 0) | (positions > size - 1)
    else:
        raise CamrtError(f"found the coordinate_transformation_mode {mode!r}, expected one of ONNX's")
    return positions.astype(np.float64), outside


def _nearest(positions: np.ndarray, mode: str) -> np.ndarray:
    rounded = {
        "round_prefer_floor": np.ceil(positions - 0.5),
        "round_prefer_ceil": np.floor(positions + 0.5),
        "floor": np.floor(positions),
        "ceil": np.ceil(positions),
    }
    return np.asarray(rounded[mode].astype(np.int64))


def _keys(distance: np.ndarray, a: float) -> np.ndarray:
    """The cubic kernel (Keys 1981, equation 15, with a free coefficient)."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))
