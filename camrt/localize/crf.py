"""Refinement of heatmaps by a dense conditional random field, so that they follow the edges of the image.

P. Krähenbühl, V. Koltun: Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials, NeurIPS 2011.

Each pixel is labeled as object or background. Its unary potential is the probability from the heatmap. Each pair of
pixels with different labels has a cost, which is larger the closer the pixels and the more similar their colors are
(equation 3 of the paper, with Potts compatibility). Mean-field inference (algorithm 1) computes the marginal
probability of each pixel.

With two labels, one number per pixel suffices. Let z be the marginal of the object minus that of the background, and p
the unary probability. Algorithm 1 becomes

    z <- tanh((logit(p) + sum of compat * K z over the kernels) / 2)

where K is the symmetrically normalized kernel, ``K[i, j] / sqrt(sum of row i * sum of row j)``. It filters one value
per pixel instead of two, on a lattice that all maps of an image share (`camrt.localize.permutohedral`).

The reference is pydensecrf2, which wraps the C++ code of the authors, with features from its
``create_pairwise_bilateral`` and ``create_pairwise_gaussian``, in which rows precede columns. The marginals agree to
about 1e-6. Two details of its class ``DenseCRF2D`` are not reproduced: its features have columns before rows, which is
another approximation of the same kernel (on the demo's image, marginals differ by 0.003 on average); and if the number
of pixels is not a multiple of 4, it includes up to three black pixels at the origin (for images of mostly noise,
marginals differ by up to 0.01).
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

CLIP = 0.001  # probabilities are clipped to [CLIP, 1 - CLIP], so that each pixel can be changed by its neighbors
_LARGEST = 1e9  # limit of all settings, so that float32 does not overflow

Kernel = tuple[Lattice, np.float32]


@dataclass(frozen=True)
class CRF:
    """The settings of a dense CRF. By default, it has only the bilateral kernel, and 50 iterations.

    Attributes:
        bilateral: sdims, schan, compat: the standard deviations in pixels and in color levels (0..255), and the weight.
            None for no bilateral kernel.
        gaussian: sdims, compat of a kernel that ignores colors. None for no such kernel.
        iterations: The number of mean-field iterations. With 0, the marginals are the probabilities.

    Raises:
        CamrtError: A standard deviation is not positive, a weight is negative, or a number is too large or NaN.
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
        """Return the settings as JSON types."""
        return {
            "bilateral": list(self.bilateral) if self.bilateral else None,
            "gaussian": list(self.gaussian) if self.gaussian else None,
            "iterations": self.iterations,
        }

    def refine(self, image: NDArray[np.uint8], probabilities: NDArray[Any]) -> NDArray[np.float32]:
        """Compute the marginals. See the function `refine`."""
        image, maps = _checked(image, probabilities)
        height, width = image.shape[:2]
        kernels = self._kernels(image) if self.iterations and maps.size else []
        marginals = np.empty((len(maps), height * width), np.float32)
        for marginal, probability in zip(marginals, maps, strict=True):
            marginal[:] = self._mean_field(kernels, probability)
        return marginals.reshape(probabilities.shape)

    def _kernels(self, image: NDArray[np.uint8]) -> list[Kernel]:
        """Return the symmetrically normalized kernels with a positive weight, and their weights."""
        kernels = []
        if self.bilateral and self.bilateral[2]:
            sdims, schan, compat = self.bilateral
            kernels.append((_normalized(_points(image, sdims, schan)), np.float32(compat)))
        if self.gaussian and self.gaussian[1]:
            sdims, compat = self.gaussian
            kernels.append((_normalized(_points(image, sdims)), np.float32(compat)))
        return kernels

    def _mean_field(self, kernels: Sequence[Kernel], probability: NDArray[np.float64]) -> NDArray[np.float32]:
        """Compute the marginals (N,) of a map (N,)."""
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
    """Compute the marginal probabilities of the object by mean-field inference, independently for each map.

    The image is not resized. An image of 256 x 256 pixels takes 0.1 s, and each map another 0.1 s at 50 iterations.
    Memory is about 300 bytes per pixel, or 1,300 if no two neighbors have similar colors. As `camrt.Explanation.refine`
    does, resize large images first, and images of different sizes for which the settings should have the same effect.

    Args:
        image: (H, W, 3) uint8 RGB.
        probabilities: (..., H, W) floats, 0..1: the probability that a pixel belongs to the object. They are clipped to
            0.001..0.999.
        bilateral: sdims (pixels), schan (color levels, 0..255) and compat (weight) of the bilateral kernel. None for no
            such kernel.
        gaussian: sdims and compat of a kernel that ignores colors. None for no such kernel.
        iterations: The number of mean-field iterations.

    Returns:
        (..., H, W) float32, 0..1.

    Raises:
        CamrtError: The image or the probabilities have a wrong shape, dtype or range, or are not finite; a setting is
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
    """Scale a heatmap to probabilities of the object: its largest value becomes 1, its smallest value 0.

    Negative values, which are evidence against the class, become 0. A constant map and a map without positive values
    become 0 everywhere.

    Args:
        heatmap: (H, W) floats.

    Returns:
        (H, W) float32, 0..1.

    Raises:
        CamrtError: A value is not finite.
    """
    lowest, highest = float(heatmap.min()), float(heatmap.max())
    if not math.isfinite(lowest) or not math.isfinite(highest):
        raise CamrtError(f"found a heatmap with values from {lowest} to {highest}, expected finite values")
    least = max(lowest, 0.0)
    if not highest > least:
        return np.zeros(heatmap.shape, np.float32)
    scaled: NDArray[np.float64] = (heatmap.astype(np.float64) - least) / (highest - least)
    return np.clip(scaled, 0, 1).astype(np.float32)


# ---------------------------------------------------------------------------------------------------- what is given


def _numbers(kernel: str, given: Any, names: Sequence[str]) -> tuple[float, ...]:
    """Check the settings of a kernel, of which the weight is the last."""
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
    """Check the image and the probabilities. Return the latter as (maps, H * W)."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise CamrtError(f"found an image {_described(image)}, expected RGB (H, W, 3) uint8")
    if not isinstance(probabilities, np.ndarray) or not np.issubdtype(probabilities.dtype, np.floating):
        raise CamrtError(f"found probabilities {_described(probabilities)}, expected floats (..., H, W) from 0 to 1")
    height, width = image.shape[:2]
    if probabilities.shape[-2:] != (height, width) or not image.size:
        raise CamrtError(
            f"found probabilities {_described(probabilities)} for an image {_described(image)}, expected the same "
            "height and width: resize one of them"
        )
    maps = probabilities.reshape(math.prod(probabilities.shape[:-2]), height * width).astype(np.float64)
    if maps.size and not (maps.min() >= 0 and maps.max() <= 1):  # also false for NaN
        raise CamrtError(
            f"found probabilities from {maps.min():g} to {maps.max():g}, expected 0 to 1: "
            "convert a heatmap with camrt.localize.crf.probability"
        )
    return image, maps


def _described(found: Any) -> str:
    return f"{found.shape} {found.dtype}" if isinstance(found, np.ndarray) else f"of type {type(found).__name__}"


# --------------------------------------------------------------------------------------------------------- the kernels


def _points(image: NDArray[np.uint8], sdims: float, schan: float | None = None) -> NDArray[np.float32]:
    """Return row, column and color of each pixel, in standard deviations: (2 or 5, N) float32."""
    height, width = image.shape[:2]
    points = np.empty((2 if schan is None else 5, height, width), np.float32)
    points[0] = np.arange(height)[:, None]
    points[1] = np.arange(width)
    with np.errstate(all="ignore"):  # the lattice rejects infinite values
        points[:2] /= np.float32(sdims)
        if schan is not None:
            points[2:] = image.transpose(2, 0, 1)
            points[2:] /= np.float32(schan)
    return points.reshape(len(points), -1)


def _normalized(points: NDArray[np.float32]) -> Lattice:
    """Return the Gaussian kernel between all points, divided by the square roots of its row sums and column sums."""
    try:
        kernel = lattice(points)
    except OverflowError:
        raise CamrtError(
            f"found pixels and colors up to {points.max():g} standard deviations apart, expected fewer: raise sdims or "
            "schan"
        ) from None
    sums = kernel.filter(np.ones(points.shape[1], np.float32))
    return kernel.scaled((1 / np.sqrt(sums)).astype(np.float32))
