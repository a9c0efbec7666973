"""RISE: the mean of random masks, weighted by the scores under them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np

from camrt.blackbox.methods import Attribution, Floats, Problem, black_box, check_range


@black_box("rise", title="RISE", sampled=True)
def rise(problem: Problem, *, masks: int = 2000, cells: int = 7, keep: float = 0.5, seed: int = 0) -> Attribution:
    """``sum_i f(I * M_i) M_i / (N * keep)`` over N random masks.

    The map estimates the expected score where a pixel is kept. It needs many passes: the paper takes 4000 masks for
    VGG16 and 8000 for ResNet-50. The standard error tells whether they were enough; it falls with the square root of
    their number.

    Source:
        Petsiuk, Das, Saenko: RISE: Randomized Input Sampling for Explanation of Black-box Models, BMVC 2018,
        equation 6.

    Args:
        problem: The image and the scores.
        masks: The number of masks.
        cells: A mask is enlarged from so many cells in each direction.
        keep: The probability that a cell is kept.
        seed: The seed of the masks; all images get the same masks.

    Raises:
        CamrtError: A setting is out of range.
    """
    check_range("masks", masks, 2)
    check_range("cells", cells, 1, min(problem.size))
    check_range("keep", keep, 0.01, 0.99)
    first = second = np.zeros((1, 1))
    drawn = random_masks(masks, problem.size, cells=cells, keep=keep, seed=seed)
    for some, scores in problem.scored(drawn, masks):
        flat = some.reshape(len(some), -1)
        first = first + scores.T @ flat  # float64: a sum of thousands
        second = second + (scores**2).T @ flat**2
    mean = first / masks
    variance = np.maximum(second - masks * mean**2, 0) / (masks - 1)
    shape = (-1, *problem.size)
    return Attribution(
        (mean / keep).reshape(shape).astype(np.float32),
        (np.sqrt(variance / masks) / keep).reshape(shape).astype(np.float32),
    )


def random_masks(count: int, size: tuple[int, int], *, cells: int, keep: float, seed: int) -> Iterator[Floats]:
    """Draw the masks of Petsiuk et al. 2018, section 3.2, one at a time.

    A grid of ``cells`` times ``cells`` random bits is enlarged (bilinear) to one cell more than the image in each
    direction, and shifted by a random part of a cell.

    Args:
        count: How many.
        size: Height and width in pixels.
        cells: Of the grid, in each direction.
        keep: The probability of a 1.
        seed: The seed.

    Yields:
        (height, width) float32, 0..1. The expectation of each pixel is ``keep``.
    """
    height, width = size
    down, across = math.ceil(height / cells), math.ceil(width / cells)
    draw = np.random.default_rng(seed)
    for _ in range(count):
        grid = (draw.random((cells, cells)) < keep).astype(np.float32)
        large: Floats = cv2.resize(grid, ((cells + 1) * across, (cells + 1) * down), interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
        y, x = int(draw.integers(down)), int(draw.integers(across))
        yield large[y : y + height, x : x + width]
