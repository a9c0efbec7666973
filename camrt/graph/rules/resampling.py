"""Resize: a linear function of every line of an image, so its gradient is a product with a matrix for each axis."""

from __future__ import annotations

import math

import numpy as np

from camrt.graph.rules.registry import rule
from camrt.graph.step import Step

_SINGLE = np.float32  # runtimes compute coordinates in it, and rounding them decides which pixel is nearest


@rule("Resize", restrictions="constant scales or sizes")
def resize(step: Step, gradient: str) -> str:
    """Each pixel's gradient to those that it was interpolated from."""
    x = step.inputs[0]
    shape = list(step.shape(step.output))
    for axis, (scale, region) in _scales(step).items():
        step.apart([axis])
        (size,), (out,) = step.fixed(x, [axis]), step.fixed(step.output, [axis])
        gradient = step.along(gradient, shape, axis, _matrix(step, size, out, scale, region).T)
    return gradient


def _scales(step: Step) -> dict[int, tuple[float, tuple[float, float]]]:
    """Axis -> the scale and the region of interest, for the axes that are resized."""
    x = step.inputs[0]
    rank = step.rank(x)
    axes = [axis % rank for axis in step.attributes.get("axes") or range(rank)]
    is_crop = step.attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    region = step.known(1, "regions").tolist() if is_crop else [0.0] * len(axes) + [1.0] * len(axes)
    given = step.value(2)
    if given is not None and given.size:
        scales = [float(scale) for scale in given]
    else:
        changed = [axis for axis in axes if not step.sizes.same(x, axis, step.output, axis)]
        by = {axis: step.fixed(step.output, [axis])[0] / step.fixed(x, [axis])[0] for axis in changed}
        policy = step.attributes.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            wanted = dict(zip(axes, step.known(3, "sizes").tolist(), strict=True))
            ratios = [wanted[axis] / step.fixed(x, [axis])[0] for axis in axes]
            by = dict.fromkeys(axes, min(ratios) if policy == "not_larger" else max(ratios))
        scales = [by.get(axis, 1.0) for axis in axes]
    pairs = zip(axes, scales, zip(region[: len(axes)], region[len(axes) :], strict=True), strict=True)
    return {axis: (scale, roi) for axis, scale, roi in pairs if scale != 1 or (is_crop and roi != (0, 1))}


def _matrix(step: Step, size: int, out: int, scale: float, region: tuple[float, float]) -> np.ndarray:
    """What an axis of ``size`` becomes: (out, size)."""
    places, outside = _coordinates(step, size, out, scale, region)
    mode = step.attributes.get("mode", "nearest")
    if mode == "nearest":
        weights = np.ones((out, 1))
        taps = _nearest(step, places)[:, None]
    else:
        spread = max(1.0, 1 / scale) if step.attributes.get("antialias", 0) else 1.0
        taps, weights = _interpolated(step, places, mode, spread, size)
    matrix = np.zeros((out, size))
    np.add.at(matrix, (np.arange(out)[:, None], taps.clip(0, size - 1)), weights)
    matrix[outside] = 0  # there stands a constant
    return matrix


def _coordinates(
    step: Step, size: int, out: int, scale: float, region: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel lies in the original: (out,) float64; and which lie outside a region's image."""
    mode = step.attributes.get("coordinate_transformation_mode", "half_pixel")
    pixel = np.arange(out, dtype=_SINGLE)
    by = _SINGLE(scale)
    outside = np.zeros(out, bool)
    if mode == "align_corners":
        places = pixel * _SINGLE(size - 1) / _SINGLE(out - 1) if out > 1 else np.zeros_like(pixel)
    elif mode == "asymmetric":
        places = pixel / by
    elif mode == "pytorch_half_pixel" and out == 1:
        places = np.zeros_like(pixel)
    elif mode in ("half_pixel", "pytorch_half_pixel"):
        places = (pixel + _SINGLE(0.5)) / by - _SINGLE(0.5)
    elif mode == "half_pixel_symmetric":
        offset = size / 2 * (1 - out / (size * scale))
        places = _SINGLE(offset) + (pixel + _SINGLE(0.5)) / by - _SINGLE(0.5)
    elif mode == "tf_crop_and_resize":
        first, last = region
        if out > 1:
            places = _SINGLE(first * (size - 1)) + pixel * _SINGLE((last - first) * (size - 1) / (out - 1))
        else:
            places = np.full_like(pixel, 0.5 * (first + last) * (size - 1))
        outside = (places < 0) | (places > size - 1)
    else:
        raise step.error(f"found the coordinate_transformation_mode {mode!r}, expected one of ONNX's")
    return places.astype(np.float64), outside


def _nearest(step: Step, places: np.ndarray) -> np.ndarray:
    mode = step.attributes.get("nearest_mode", "round_prefer_floor")
    rounded = {
        "round_prefer_floor": np.ceil(places - 0.5),
        "round_prefer_ceil": np.floor(places + 0.5),
        "floor": np.floor(places),
        "ceil": np.ceil(places),
    }
    return np.asarray(rounded[mode].astype(np.int64))


def _interpolated(step: Step, places: np.ndarray, mode: str, spread: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels that each one is a mean of, and their weights: two times (out, taps). ``spread`` widens the kernel."""
    reach = (1 if mode == "linear" else 2) * spread
    taps = np.floor(places)[:, None].astype(np.int64) + np.arange(-math.ceil(reach) + 1, math.ceil(reach) + 1)
    distance = np.abs(places[:, None] - taps) / spread
    if mode == "linear":
        weights = np.maximum(1 - distance, 0)
    elif mode == "cubic":
        weights = _keys(distance, step.attributes.get("cubic_coeff_a", -0.75))
    else:
        raise step.error(f"found the mode {mode!r}, expected nearest, linear or cubic")
    if step.attributes.get("exclude_outside", 0):
        weights = np.where((taps >= 0) & (taps < size), weights, 0)
    return taps, weights / weights.sum(axis=1, keepdims=True)


def _keys(distance: np.ndarray, a: float) -> np.ndarray:
    """The cubic kernel (Keys 1981, equation 15, with a free coefficient)."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))
