"""Smoothing of maps, for every method: as the mean over variants of the image, or as a first principal component.

``"augment"``: the method explains what the network sees as it is and mirrored, each times 1, 0.9 and 1.1. The heatmap
of each variant is mirrored back and scaled to 0..1, and the mean of the six is taken. ``"eigen"``: what a method sums
over the channels becomes its first principal component (`camrt.graph.components`). Both are those of pytorch-grad-cam
(``aug_smooth`` and ``eigen_smooth``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from camrt.builder import Builder
from camrt.errors import CamrtError
from camrt.preprocess import Crop

AUGMENT, EIGEN = "augment", "eigen"
SMOOTHINGS = (AUGMENT, EIGEN)
FACTORS = (1.0, 0.9, 1.1)  # the first variant is what the network sees without smoothing
VARIANTS = 2 * len(FACTORS)
_LEAST = 1e-30


def smoothing_of(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """The smoothings that were asked for, in the order of `SMOOTHINGS`.

    Raises:
        CamrtError: There is none of that name.
    """
    asked = () if given is None else (given,) if isinstance(given, str) else tuple(given)
    for name in asked:
        if name not in SMOOTHINGS:
            raise CamrtError(f"found the smoothing {name!r}, expected {' or '.join(SMOOTHINGS)} (smooth=, --smooth)")
    return tuple(name for name in SMOOTHINGS if name in asked)


def variants_of(crops: Sequence[Crop]) -> list[Crop]:
    """The crops of all variants: those of the first, then those of the second, ..."""
    mirrored = [dataclasses.replace(crop, mirrored=not crop.mirrored) for crop in crops]
    return [*crops, *mirrored] * len(FACTORS)


def add_variants(builder: Builder, crops: str, count: int, side: int, output: str) -> None:
    """Add nodes that make the variants of what the network sees.

    Args:
        builder: Where the nodes go.
        crops: (N * count, 3, side, side): what the network sees without smoothing.
        count: The number of crops of an image.
        side: Their side in pixels.
        output: The tensor that is written: (N * VARIANTS * count, 3, side, side), in the order of `variants_of`.
    """
    planes = builder.reshape(crops, -1, 1, count, 3, side, side)
    both = builder.node("Concat", [planes, builder.flip(planes, 5)], axis=2)
    factors = builder.constant(np.reshape(FACTORS, (-1, 1, 1, 1, 1)), "factors")
    builder.node("Reshape", [builder.node("Mul", [both, factors]), builder.shape(-1, 3, side, side)], output)


def add_mean(builder: Builder, heatmaps: Sequence[str], output: str, *, signed: bool) -> None:
    """Add nodes that average the heatmaps of variants, each scaled by its own values.

    Args:
        builder: Where the nodes go.
        heatmaps: Of each variant (N, top, size, size), mirrored back.
        output: The tensor that is written, of that shape.
        signed: Whether values have a sign: they are divided by the largest magnitude, and 0 stays 0. Other maps are
            brought to 0..1.
    """
    scaled = []
    for one in heatmaps:
        if not signed:
            one = builder.node("Sub", [one, builder.reduce("Min", one, [2, 3], keepdims=True)])
        magnitude = builder.node("Abs", [one]) if signed else one
        largest = builder.reduce("Max", magnitude, [2, 3], keepdims=True)
        scaled.append(builder.node("Div", [one, builder.node("Max", [largest, builder.constant(_LEAST)])]))
    # Mean has no kernel on CUDA.
    builder.node("Mul", [builder.node("Sum", scaled), builder.constant(1 / len(scaled))], output)
