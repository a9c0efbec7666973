"""Refinement of heatmaps by a dense conditional random field, so that they follow the image's edges.

P. Krähenbühl, V. Koltun: Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials, NeurIPS 2011.

Each pixel is object or not. Its unary potential is the map's probability; and all pairs of pixels pay for being
different, the more the nearer they are and the more alike their colors (the paper's equation 3, with Potts
compatibility). Mean-field inference (algorithm 1) finds a probability for each pixel on its own, its marginal.

With two labels, one number a pixel says all. Let z be the marginal of the object minus that of the rest. Algorithm 1 is

    z <- tanh((logit(p) + sum of compat * K z over the kernels) / 2)

where K is the kernel, normalized on both sides: ``K[i, j] / sqrt(sum of row i * sum of row j)``. It filters one value a
pixel in place of two, on a lattice that all maps of an image share (`camrt.localize.permutohedral`).

The yardstick is pydensecrf2, which wraps the authors' C++ code, with features from its ``create_pairwise_bilateral``
and ``create_pairwise_gaussian``, where rows go before columns: the marginals agree to some 1e-6. (In its ``DenseCRF2D``
columns go before rows, which is another approximation of the same kernel: on the demo's image, marginals differ from
those by 0.003 on average. And where 4 does not divide the number of pixels, it counts up to three black pixels at the
origin in, which moves marginals by up to 0.01 where an image is mostly noise. Neither is done here.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from camrt.errors import CamrtError
from camrt.localize.permutohedral import Lattice, lattice

CLIP = 0.001  # probabilities are kept between this and 1 - this: no pixel is certain before its neighbors are asked
_LARGEST = 1e9  # of compat, and of pixels or colors: float32 does not overflow

Kernel = tuple[Lattice, np.float32]


@dataclass(frozen=True)
class CRF:
    """The settings of a dense CRF. By default, the bilateral kernel alone and 50 iterations.

    Attributes:
        bilateral: sdims, schan, compat: the standard deviations in pixels and in levels of color (0..255), and the
            weight. None for no such kernel.
        gaussian: sdims, compat of a kernel that does not look at colors. None for no such kernel.
        iterations: Of the mean field. After 0, the marginals are the probabilities.

    Raises:
        CamrtError: A standard deviation is not positive, a weight negative, or a number is not finite.
    """

    bilateral: tuple[float, float, float] | None = (10, 20, 10)
    gaussian: tuple[float, float] | None = None
    iterations: int = 50

    def __post_init__(self) -> None:
        for kernel, names in (("bilateral", ("sdims", "schan", "compat")), ("gaussian", ("sdims", "compat"))):
            if getattr(self, kernel) is not None:
                object.__setattr__(self, kernel, _numbers(kernel, getattr(self, kernel), names))
        if not isinstance(self.iterations, int) or self.iterations < 0:
            raise CamrtError(f"found iterations={self.iterations!r}, expected an integer, 0 or more")

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            "bilateral": list(self.bilateral) if self.bilateral else None,
            "gaussian": list(self.gaussian) if self.gaussian else None,
            "iterations": self.iterations,
        }

    def refine(self, image: NDArray[np.uint8], probabilities: NDArray[Any]) -> NDArray[np.float32]:
        """As `refine`."""
        image, maps = _checked(image, probabilities)
        height, width = image.shape[:2]
        kernels = self._kernels(image) if self.iterations and maps.size else []
        marginals = np.empty((len(maps), height * width), np.float32)
        for marginal, probability in zip(marginals, maps, strict=True):
            marginal[:] = self._mean_field(kernels, probability)
        return marginals.reshape(probabilities.shape)

    def _kernels(self, image: NDArray[np.uint8]) -> list[Kernel]:
        """The kernels that weigh something, normalized on both sides, and their weights."""
        kernels = []
        if self.bilateral and self.bilateral[2]:
            sdims, schan, compat = self.bilateral
            kernels.append((_normalized(_points(image, sdims, schan)), np.float32(compat)))
        if self.gaussian and self.gaussian[1]:
            sdims, compat = self.gaussian
            kernels.append((_normalized(_points(image, sdims)), np.float32(compat)))
        return kernels

    def _mean_field(self, kernels: Sequence[Kernel], probability: NDArray[np.float64]) -> NDArray[np.float32]:
        """The marginals (N,) of a map (N,)."""
        unary = logit(np.clip(probability, CLIP, 1 - CLIP)).astype(np.float32)
        odds = unary
        for _ in range(self.iterations if kernels else 0):
            z = np.tanh(odds * np.float32(0.5))
            odds = unary.copy()
            for kernel, compat in kernels:
                odds += compat * kernel.filter(z)
        marginals: NDArray[np.float32] = expit(odds)
        return marginals


def refine(
    image: NDArray[np.uint8],
    probabilities: NDArray[Any],
    *,
    bilateral: tuple[float, float, float] | None = (10, 20, 10),
    gaussian: tuple[float, float] | None = None,
    iterations: int = 50,
) -> NDArray[np.float32]:
    """The marginals of the object after mean-field inference, for each map by itself.

    The image is taken at its size: one of 256 x 256 takes a tenth of a second, and each map another tenth at 50
    iterations. Memory comes to some 300 bytes a pixel, 1,300 where no two neighbors have about the same color. For
    the settings to mean the same in images of all sizes, and for large ones, resize first, as
    `camrt.Explanation.refine` does.

    Args:
        image: (H, W, 3) uint8 RGB.
        probabilities: (..., H, W) floats, 0..1: of the pixel being of the object. They are clipped to 0.001..0.999.
        bilateral: sdims (pixels), schan (levels of color, 0..255) and compat (weight) of the bilateral kernel. None
            for no such kernel.
        gaussian: sdims and compat of the kernel that does not look at colors. None for no such kernel.
        iterations: Of the mean field.

    Returns:
        (..., H, W) float32, 0..1.

    Raises:
        CamrtError: The image or the probabilities have another shape, type or range, or are not finite; a setting is
            out of range; or the standard deviations are far too small for the image.

    Example:
        >>> image = np.zeros((20, 20, 3), np.uint8)
        >>> image[:, 10:] = 200
        >>> probability = np.full((20, 20), 0.45)
        >>> probability[5:15, 11:18] = 0.9
        >>> (refine(image, probability) > 0.5)[3].nonzero()[0].tolist()
        [10, 11, 12, 13, 14, 15, 16, 17, 18, 19]
    """
    return CRF(bilateral, gaussian, iterations).refine(image, probabilities)


def probability(heatmap: NDArray[Any]) -> NDArray[np.float32]:
    """A heatmap's values as probabilities of the object: its largest value is 1, its least one 0.

    Where values are negative, which speak against the class, 0 is the least. A map that is the same everywhere, or
    nowhere positive, says nothing: it is 0.

    Args:
        heatmap: (H, W) floats.

    Returns:
        (H, W) float32, 0..1.

    Raises:
        CamrtError: A value is not finite.
    """
    lowest, highest = float(heatmap.min()), float(heatmap.max())
    if not math.isfinite(lowest) or not math.isfinite(highest):
        raise CamrtError(f"found a heatmap with values from {lowest} to {highest}, expected finite ones")
    least = max(lowest, 0.0)
    if not highest > least:
        return np.zeros(heatmap.shape, np.float32)
    scaled: NDArray[np.float64] = (heatmap.astype(np.float64) - least) / (highest - least)
    return np.clip(scaled, 0, 1).astype(np.float32)


# ---------------------------------------------------------------------------------------------------- what is given


def _numbers(kernel: str, given: Any, names: Sequence[str]) -> tuple[float, ...]:
    """A kernel's settings, the weight last."""
    try:
        numbers = tuple(float(number) for number in given)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != len(names):
        raise CamrtError(f"found {kernel}={given!r}, expected {len(names)} numbers: {', '.join(names)}")
    for name, number in zip(names, numbers, strict=True):
        least = "0 or more" if name == "compat" else "more than 0"
        if not 0 <= number <= _LARGEST or (number == 0 and name != "compat"):
            raise CamrtError(f"found {name} {number:g} of the {kernel} kernel, expected {least}, at most {_LARGEST:g}")
    return numbers


def _checked(image: NDArray[Any], probabilities: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The image, and the probabilities as (maps, H * W)."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise CamrtError(f"found an image {_described(image)}, expected RGB (H, W, 3) uint8")
    if not isinstance(probabilities, np.ndarray) or not np.issubdtype(probabilities.dtype, np.floating):
        raise CamrtError(f"found probabilities {_described(probabilities)}, expected floats (..., H, W) from 0 to 1")
    height, width = image.shape[:2]
    if probabilities.shape[-2:] != (height, width) or not image.size:
        raise CamrtError(
            f"found probabilities {_described(probabilities)} for an image {_described(image)}, expected one size: "
            "resize the one to the other"
        )
    maps = probabilities.reshape(math.prod(probabilities.shape[:-2]), height * width).astype(np.float64)
    if maps.size and not (maps.min() >= 0 and maps.max() <= 1):  # also where they are not numbers
        raise CamrtError(
            f"found probabilities from {maps.min():g} to {maps.max():g}, expected 0 to 1: "
            "camrt.localize.crf.probability makes them of a heatmap"
        )
    return image, maps


def _described(found: Any) -> str:
    return f"{found.shape} {found.dtype}" if isinstance(found, np.ndarray) else f"of type {type(found).__name__}"


# --------------------------------------------------------------------------------------------------------- the kernels


def _points(image: NDArray[np.uint8], sdims: float, schan: float | None = None) -> NDArray[np.float32]:
    """Where the pixels lie: row, column, and their colors, in standard deviations. (2 or 5, N) float32."""
    height, width = image.shape[:2]
    points = np.empty((2 if schan is None else 5, height, width), np.float32)
    points[0] = np.arange(height)[:, None]
    points[1] = np.arange(width)
    with np.errstate(all="ignore"):  # what is not finite is refused by the lattice
        points[:2] /= np.float32(sdims)
        if schan is not None:
            points[2:] = image.transpose(2, 0, 1)
            points[2:] /= np.float32(schan)
    return points.reshape(len(points), -1)


def _normalized(points: NDArray[np.float32]) -> Lattice:
    """The Gaussian kernel between all points, divided by the square root of the sum over each row and each column."""
    try:
        kernel = lattice(points)
    except OverflowError:
        raise CamrtError(
            f"found pixels and colors up to {points.max():g} standard deviations apart, which are more than can be "
            "numbered. Raise sdims or schan"
        ) from None
    sums = kernel.filter(np.ones(points.shape[1], np.float32))
    return kernel.scaled((1 / np.sqrt(sums)).astype(np.float32))
