"""Pooling.

Averages are the same linear function of every line of an image, so that their gradient is a product with a constant
matrix for each axis, whatever the windows' borders and divisors. Maxima scatter their gradient to where they stood.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from onnx import TensorProto

from camrt.errors import CamrtError
from camrt.graph.rules.registry import rule, vjp
from camrt.graph.values import LAST, SCATTER_ADDS, Value, total
from camrt.graph.windows import Windows

MAX_LOTS = 1 << 10  # lots of windows that are scattered one by one; a window of 32 x 32 pixels


@rule("MaxPool", restrictions="of equal maxima the first gets it all")
def max_pool(g: Value, y: Value, x: Value, *, kernel_shape: Sequence[int], **shape: Any) -> Value:
    """To where each maximum stood."""
    keep = {name: shape.get(name) for name in ("strides", "dilations", "pads", "auto_pad", "ceil_mode")}
    return _to_maxima(g, x, Windows.of(kernel_shape, x, **shape), kernel_shape=kernel_shape, **keep)


@rule("GlobalMaxPool", restrictions="of equal maxima the first gets it all")
def global_max_pool(g: Value, y: Value, x: Value) -> Value:
    """To where the maximum stood."""
    kernel = x.fixed(*range(2, x.rank))
    return _to_maxima(g, x, Windows.of(kernel, x, strides=kernel), kernel_shape=kernel)


def _to_maxima(g: Value, x: Value, windows: Windows, **attributes: object) -> Value:
    """Pool once more, for the maxima's positions in the whole tensor, and add the gradient there."""
    builder = x.builder
    outputs = [builder.name("maxima"), builder.name("positions")]
    _, name = builder.nodes_of("MaxPool", [x.name], outputs, **attributes)
    positions = Value(builder, name, g.shape, TensorProto.INT64)
    zeros = x.reshape(-1).zeros(g.lead)
    if windows.is_disjoint or builder.opset >= SCATTER_ADDS:
        return zeros.scatter(positions.reshape(-1), g.reshape(-1), 0, add=not windows.is_disjoint).reshape_as(x)
    # Every few windows share nothing with each other: such lots are scattered one by one, and added up.
    lots = []
    apart = [-(-(reach + 1) // stride) for reach, stride in zip(windows.reach, windows.strides, strict=True)]
    if math.prod(apart) > MAX_LOTS:
        raise CamrtError(
            f"found {math.prod(apart):,} overlapping windows at a pixel, expected at most {MAX_LOTS:,} in opset "
            f"{builder.opset}: convert the model to opset {SCATTER_ADDS}"
        )
    for first in product(*map(range, apart)):
        cut = [positions, g]
        for axis, (start, step) in enumerate(zip(first, apart, strict=True), 2):
            cut = [one.slice(axis, start, LAST, step) for one in cut]
        lots.append(zeros.scatter(cut[0].reshape(-1), cut[1].reshape(-1), 0))
    return total(lots).reshape_as(x)


@rule("AveragePool")
def average_pool(
    g: Value, y: Value, x: Value, *, kernel_shape: Sequence[int], count_include_pad: int = 0, **shape: Any
) -> Value:
    """Each window's gradient, divided by its divisor, to all of its pixels."""
    windows = Windows.of(kernel_shape, x, **shape)
    for axis, (taps, lengths) in enumerate(_taps(windows, x, y), 2):
        divisors = lengths if count_include_pad else taps.sum(axis=1)
        g = g.along(axis, (taps / np.maximum(divisors, 1)[:, None]).T)
    return g


vjp("GlobalAveragePool", "The same share to every pixel.", lambda g, y, x: g / x.count(range(2, x.rank)))


@rule("LpPool")
def lp_pool(g: Value, y: Value, x: Value, *, kernel_shape: Sequence[int], p: int = 2, **shape: Any) -> Value:
    """The window's gradient times sign(x) |x|^(p-1) y^(1-p)."""
    g = g * _inverse_power(y, p)
    for axis, (taps, _) in enumerate(_taps(Windows.of(kernel_shape, x, **shape), x, y), 2):
        g = g.along(axis, taps.T)
    return g * _signed_power(x, p)


vjp(
    "GlobalLpPool",
    "The gradient times sign(x) |x|^(p-1) y^(1-p).",
    lambda g, y, x, *, p=2: g * _inverse_power(y, p) * _signed_power(x, p),
)


def _inverse_power(y: Value, p: int) -> Value:
    """y^(1-p); 1 where y is 0."""
    return y.equals(0).where(1, y) ** float(1 - p)


def _signed_power(x: Value, p: int) -> Value:
    """sign(x) |x|^(p-1)."""
    if p == 2:
        return x
    return x.sign() if p == 1 else x.sign() * abs(x) ** float(p - 1)


def _taps(windows: Windows, x: Value, y: Value) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each spatial axis: the pixels of each window (out, size), 0 or 1; and the windows' padded lengths (out,)."""
    axes = range(2, x.rank)
    sizes = enumerate(zip(x.fixed(*axes), y.fixed(*axes), strict=True))
    return [(windows.taps(axis, size, out), windows.lengths(axis, size, out)) for axis, (size, out) in sizes]
