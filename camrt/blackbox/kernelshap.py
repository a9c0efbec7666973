"""KernelSHAP: Shapley values of the image's segments, by weighted least squares."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from camrt.blackbox.methods import Attribution, Problem, black_box, check_range
from camrt.errors import CamrtError


@black_box("kernelshap", title="KernelSHAP", sampled=True)
def kernelshap(
    problem: Problem, *, segments: int = 50, samples: int = 1000, compactness: float = 10.0, seed: int = 0
) -> Attribution:
    """Shapley values of SLIC segments: each pixel has its segment's value.

    A coalition is a set of segments that are shown; the others become the mean image. The values add up to the score of
    the image less that of the mean image. Coalitions are drawn in pairs with their complements; where there are no more
    than ``samples``, all are taken, and the values are exact. Needs scikit-image: ``pip install 'camrt[blackbox]'``.

    Source:
        Lundberg, Lee: A Unified Approach to Interpreting Model Predictions, NeurIPS 2017, theorem 2; pairs and standard
        errors: Covert, Lee: Improving KernelSHAP, AISTATS 2021. SLIC: Achanta et al., TPAMI 2012.

    Args:
        problem: The image and the scores.
        segments: About how many segments.
        samples: The number of coalitions.
        compactness: How square the segments are, against how alike their colors.
        seed: The seed of the coalitions.

    Raises:
        CamrtError: A setting is out of range, there are too few samples for the segments, or scikit-image is missing.
    """
    check_range("segments", segments, 2, 10_000)
    check_range("samples", samples, 2)
    numbers = segmented(problem.pixels, segments, compactness)
    return over_segments(problem, numbers, samples, seed)


def segmented(pixels: NDArray[np.uint8], segments: int, compactness: float) -> NDArray[np.int64]:
    """Cut an image into segments of similar colors (SLIC).

    Returns:
        (h, w) int64: the segment of each pixel, from 0 without gaps.

    Raises:
        CamrtError: scikit-image is not installed.
    """
    try:
        from skimage.segmentation import slic
    except ImportError:
        raise CamrtError("kernelshap needs scikit-image: pip install 'camrt[blackbox]'") from None
    found = slic(pixels, n_segments=segments, compactness=compactness, sigma=1, start_label=0)
    return np.unique(found, return_inverse=True)[1].reshape(found.shape)


def over_segments(problem: Problem, numbers: NDArray[np.int64], samples: int, seed: int) -> Attribution:
    """Compute the Shapley values of given segments.

    Args:
        problem: The image and the scores.
        numbers: (h, w): the segment of each pixel, from 0 without gaps.
        samples: The number of coalitions.
        seed: The seed of the coalitions.

    Raises:
        CamrtError: There are fewer than two samples for each segment.
    """
    count = int(numbers.max()) + 1
    coalitions, weights = _coalitions(count, samples, seed)
    shown = itertools.chain([np.ones(count, bool), np.zeros(count, bool)], coalitions)
    masks = (each[numbers].astype(np.float32) for each in shown)
    scores = np.concatenate([found for _, found in problem.scored(masks, len(coalitions) + 2)])
    whole, empty, values = scores[0], scores[1], scores[2:]
    if count == 1:
        shapley, errors = (whole - empty)[None], np.zeros((1, len(whole)))
    else:
        shapley, errors = _solved(coalitions.astype(np.float64), weights, values - empty, whole - empty)
    return Attribution(shapley.T[:, numbers].astype(np.float32), errors.T[:, numbers].astype(np.float32))


def _coalitions(count: int, samples: int, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """The coalitions (n, count) and their weights (n,): all of them, or pairs of a random one and its complement."""
    if 2**count - 2 <= samples:
        everything = np.array(list(itertools.product([False, True], repeat=count))[1:-1], bool).reshape(-1, count)
        sizes = everything.sum(axis=1)
        # Lundberg and Lee 2017, theorem 2.
        kernel = [(count - 1) / (math.comb(count, size) * size * (count - size)) for size in sizes.tolist()]
        return everything, np.array(kernel)
    if samples < 2 * count:
        raise CamrtError(
            f"found samples={samples} for {count} segments, expected at least {2 * count}: --set samples=N, or fewer "
            "segments (--set segments=N)"
        )
    sizes = np.arange(1, count)
    chances = 1 / (sizes * (count - sizes))  # the kernel, of all coalitions of a size together
    draw = np.random.default_rng(seed)
    drawn = draw.choice(sizes, samples // 2, p=chances / chances.sum())
    ranks = draw.permuted(np.tile(np.arange(count), (len(drawn), 1)), axis=1)
    some = ranks < drawn[:, None]
    return np.stack([some, ~some], axis=1).reshape(-1, count), np.ones(2 * len(some))


def _solved(
    coalitions: NDArray[np.float64],
    weights: NDArray[np.float64],
    gains: NDArray[np.float64],
    total: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Solve the weighted least squares, where the values must add up to the total.

    Args:
        coalitions: (n, M), of 0 and 1.
        weights: (n,); all 1 for coalitions that were drawn in pairs.
        gains: (n, count): what each coalition gains over the empty one.
        total: (count,): what all gain together.

    Returns:
        (M, count): the values and their standard errors. These are 0 where nothing was drawn.
    """
    weighted = coalitions * weights[:, None]
    inverse = np.linalg.pinv(weighted.T @ coalitions)
    share = inverse.sum(axis=1) / inverse.sum()
    free = inverse - np.outer(share, inverse.sum(axis=0))  # what is left of it under the constraint
    values = free @ (weighted.T @ gains) + np.outer(share, total)
    if not (weights == 1).all():
        return values, np.zeros_like(values)
    errors = gains - coalitions @ values
    # The sandwich estimator over the pairs, which are independent: (M, count) for each pair.
    moved = np.einsum("psm,psc->pmc", coalitions.reshape(-1, 2, len(values)), errors.reshape(-1, 2, errors.shape[1]))
    changes = np.einsum("km,pmc->pkc", free, moved)
    return values, np.sqrt((changes**2).sum(axis=0))
