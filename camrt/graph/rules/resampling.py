"""Resize: a linear function of every line of an image, so its gradient is a product with a matrix for each axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from camrt.errors import CamrtError
from camrt.graph.rules.registry import rule
from camrt.graph.values import Value

_SINGLE = np.float32  # runtimes compute coordinates in it, and rounding them decides which pixel is nearest


@rule("Resize", restrictions="constant scales or sizes")
def resize(
    g: Value, y: Value, x: Value, roi: Value | None = None, scales: Value | None = None, sizes: Value | None = None,
    *,
    axes: Sequence[int] = (), keep_aspect_ratio_policy: str = "stretch",
    coordinate_transformation_mode: str = "half_pixel", **kernel: Any,
) -> Value:  # fmt: skip
    """Each pixel's gradient to those that it was interpolated from."""
    axes = [axis % x.rank for axis in axes or range(x.rank)]
    is_crop = coordinate_transformation_mode == "tf_crop_and_resize"
    regions = [(0.0, 1.0)] * len(axes)
    if is_crop and roi is not None:
        regions = list(zip(*roi.known("regions").reshape(2, -1).tolist(), strict=True))
    factors = _factors(x, y, axes, scales, sizes, keep_aspect_ratio_policy)
    for axis, factor, region in zip(axes, factors, regions, strict=True):
        if factor != 1 or region != (0, 1):
            (size,), (out,) = x.fixed(axis), y.fixed(axis)
            places, outside = _coordinates(coordinate_transformation_mode, size, out, factor, region)
            matrix = _matrix(places, size, factor, **kernel)
            matrix[outside] = 0  # there stands a constant
            g = g.along(axis, matrix.T)
    return g


def _factors(
    x: Value, y: Value, axes: Sequence[int], scales: Value | None, sizes: Value | None, policy: str
) -> list[float]:
    """By how much each axis is enlarged."""
    given = scales.constant if scales is not None else None
    if given is not None and given.size:
        return [float(scale) for scale in given]
    if policy != "stretch" and sizes is not None:
        ratios = [want / x.fixed(axis)[0] for axis, want in zip(axes, sizes.known("sizes").tolist(), strict=True)]
        return [min(ratios) if policy == "not_larger" else max(ratios)] * len(axes)
    return [1.0 if x.same(y, axis) else y.fixed(axis)[0] / x.fixed(axis)[0] for axis in axes]


def _matrix(
    places: np.ndarray, size: int, scale: float,
    *,
    mode: str = "nearest", nearest_mode: str = "round_prefer_floor", antialias: int = 0,
    cubic_coeff_a: float = -0.75, exclude_outside: int = 0, **_: object,
) -> np.ndarray:  # fmt: skip
    """The pixels that each one is a mean of, and their weights: (out, size)."""
    if mode not in ("nearest", "linear", "cubic"):
        raise CamrtError(f"found the mode {mode!r}, expected nearest, linear or cubic")
    if mode == "nearest":
        taps, weights = _nearest(places, nearest_mode)[:, None], np.ones((len(places), 1))
    else:
        spread = max(1.0, 1 / scale) if antialias else 1.0  # widens the kernel
        reach = math.ceil((1 if mode == "linear" else 2) * spread)
        taps = np.floor(places)[:, None].astype(np.int64) + np.arange(-reach + 1, reach + 1)
        distance = np.abs(places[:, None] - taps) / spread
        weights = np.maximum(1 - distance, 0) if mode == "linear" else _keys(distance, cubic_coeff_a)
        if exclude_outside:
            weights = np.where((taps >= 0) & (taps < size), weights, 0)
        weights = weights / weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((len(places), size))
    np.add.at(matrix, (np.arange(len(places))[:, None], taps.clip(0, size - 1)), weights)
    return matrix


def _coordinates(
    mode: str, size: int, out: int, scale: float, region: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel lies in the original: (out,) float64; and which lie outside a region's image."""
    pixel, by, half = np.arange(out, dtype=_SINGLE), _SINGLE(scale), _SINGLE(0.5)
    outside = np.zeros(out, bool)
    if mode == "align_corners":
        places = pixel * _SINGLE(size - 1) / _SINGLE(out - 1) if out > 1 else np.zeros_like(pixel)
    elif mode == "asymmetric":
        places = pixel / by
    elif mode == "pytorch_half_pixel" and out == 1:
        places = np.zeros_like(pixel)
    elif mode in ("half_pixel", "pytorch_half_pixel"):
        places = (pixel + half) / by - half
    elif mode == "half_pixel_symmetric":
        places = _SINGLE(size / 2 * (1 - out / (size * scale))) + (pixel + half) / by - half
    elif mode == "tf_crop_and_resize":
        first, last = (bound * (size - 1) for bound in region)
        step = _SINGLE((last - first) / (out - 1)) if out > 1 else 0
        places = _SINGLE(first if out > 1 else (first + last) / 2) + pixel * step
        outside = (places < 0) | (places > size - 1)
    else:
        raise CamrtError(f"found the coordinate_transformation_mode {mode!r}, expected one of ONNX's")
    return places.astype(np.float64), outside


def _nearest(places: np.ndarray, mode: str) -> np.ndarray:
    rounded = {
        "round_prefer_floor": np.ceil(places - 0.5),
        "round_prefer_ceil": np.floor(places + 0.5),
        "floor": np.floor(places),
        "ceil": np.ceil(places),
    }
    return np.asarray(rounded[mode].astype(np.int64))


def _keys(distance: np.ndarray, a: float) -> np.ndarray:
    """The cubic kernel (Keys 1981, equation 15, with a free coefficient)."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))
