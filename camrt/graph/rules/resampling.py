"""Resize: a linear function of every line of an image, so its gradient is a product with a matrix for each axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from camrt.graph.interpolation import resize_matrix
from camrt.graph.rules.registry import rule
from camrt.graph.values import Value


@rule("Resize", restrictions="constant scales or sizes")
def resize(
    g: Value, y: Value, x: Value, roi: Value | None = None, scales: Value | None = None, sizes: Value | None = None,
    *,
    axes: Sequence[int] = (), keep_aspect_ratio_policy: str = "stretch", **kernel: Any,
) -> Value:  # fmt: skip
    """Each pixel's gradient to those that it was interpolated from."""
    axes = [axis % x.rank for axis in axes or range(x.rank)]
    regions = [(0.0, 1.0)] * len(axes)
    if kernel.get("coordinate_transformation_mode") == "tf_crop_and_resize" and roi is not None:
        regions = list(zip(*roi.known("regions").reshape(2, -1).tolist(), strict=True))
    factors = _factors(x, y, axes, scales, sizes, keep_aspect_ratio_policy)
    for axis, factor, region in zip(axes, factors, regions, strict=True):
        if factor != 1 or region != (0, 1):
            (size,), (out,) = x.fixed(axis), y.fixed(axis)
            matrix = resize_matrix(size, out, factor, region, **kernel)
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
