"""Faithfulness metrics: whether a map marks what the network uses, tested by changing the image and scoring it again.

Images are network inputs: (C, H, W) float32 after mean and scale, so that 0 is the mean image. Maps are (H, W) of the
same size. A score function takes (N, C, H, W) float32 and returns (N, K) scores; it gets a limited number of images at
a time. All functions are pure if the score function is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from camrt.errors import CamrtError

Images: TypeAlias = NDArray[np.float32]
Score: TypeAlias = Callable[[Images], NDArray[Any]]

TOLERANCE = 15.0  # pixels of the image
FRACTIONS = tuple(n / 10 for n in range(1, 10))
NOISE = 0.01
_BATCH = 32
_T = TypeVar("_T")


# ------------------------------------------------------------------------------------------------------- pointing game


def highest_point(heatmap: NDArray[Any], size: tuple[int, int] | None = None) -> tuple[float, float] | None:
    """Return the position of a map's maximum, the first in reading order.

    Args:
        heatmap: (h, w).
        size: Width and height of the image that the map covers; by default, those of the map.

    Returns:
        x and y of the center of the map's pixel, in pixels of the image; the center of the image's first pixel is
        0, 0. None if the map is constant or contains NaN or infinity.
    """
    height, width = heatmap.shape
    values = np.asarray(heatmap)
    if not np.isfinite(values).all() or values.min() == values.max():
        return None
    y, x = divmod(int(values.argmax()), width)
    across, down = (width, height) if size is None else size
    return (x + 0.5) * across / width - 0.5, (y + 0.5) * down / height - 0.5


def pointing_hit(point: tuple[float, float] | None, boxes: NDArray[Any], tolerance: float = TOLERANCE) -> bool:
    """Return whether a point hits an object.

    Zhang et al.: Top-down Neural Attention by Excitation Backprop, ECCV 2016, section 4.1. As in the paper, a point
    near an object is a hit: its distance to the nearest pixel of a box must be less than the tolerance. A point on a
    box is always a hit.

    Args:
        point: x and y, from `highest_point`; None is never a hit.
        boxes: (M, 4) x1, y1, x2, y2 in the same pixels; both ends are inside.
        tolerance: In pixels; 15 in the paper.
    """
    if point is None:
        return False
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    # A point between the centers of two pixels belongs to the nearer one.
    position = np.array(point)
    outside = np.maximum(np.maximum(corners[:, :2] - position, position - corners[:, 2:]), 0)
    distance = np.hypot(*outside.T)
    return bool(((outside <= 0.5).all(axis=1) | (distance < tolerance)).any())


def pointing_accuracy(hits: NDArray[Any], classes: NDArray[Any]) -> float:
    """Return the share of hits of each class, averaged over the classes (Zhang et al. 2016, section 4.1).

    Args:
        hits: (N,) bool.
        classes: (N,): the class of each map.

    Returns:
        0..1.
    """
    _, of = np.unique(np.asarray(classes), return_inverse=True)
    counts = np.bincount(of)
    return float((np.bincount(of, weights=np.asarray(hits, np.float64)) / counts).mean())


# ----------------------------------------------------------------------------------------------- average drop, increase


def shown_through(images: Images, heatmaps: NDArray[Any]) -> Images:
    """Multiply images by their maps, as the input for `average_drop` (Chattopadhay et al. 2018, section 4.1).

    Args:
        images: (N, C, H, W).
        heatmaps: (N, H, W), in 0..1.
    """
    return images * np.asarray(heatmaps, np.float32)[:, None]


def average_drop(before: NDArray[Any], after: NDArray[Any]) -> float:
    """Return the share of the score that is lost if only the part under the map is left. Lower is better.

    Chattopadhay, Sarkar, Howlader, Balasubramanian: Grad-CAM++, WACV 2018, section 4.1: the mean of
    ``max(0, before - after) / before``.

    Args:
        before: (N,) scores of the class for the images.
        after: (N,) for the images `shown_through` their maps. If ``before`` is 0, the drop is 0.

    Returns:
        0..1 (percent in the paper).
    """
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    lost = np.maximum(first - second, 0)
    return float(np.divide(lost, first, out=np.zeros_like(lost), where=first > 0).mean())


def increase_in_confidence(before: NDArray[Any], after: NDArray[Any]) -> float:
    """Return the share of images whose score rises if only the part under the map is left. Higher is better.

    Chattopadhay et al.: Grad-CAM++, WACV 2018, section 4.1.

    Args:
        before: (N,) scores of the class for the images.
        after: (N,) for the images `shown_through` their maps.

    Returns:
        0..1.
    """
    return float((np.asarray(before) < np.asarray(after)).mean())


# -------------------------------------------------------------------------------------------------- insertion, deletion


def by_relevance(heatmap: NDArray[Any]) -> NDArray[np.int64]:
    """Return the flat indices (H * W,) of a map's pixels, highest first; equal ones in reading order."""
    return np.argsort(-np.asarray(heatmap, np.float64), axis=None, kind="stable")


def replaced(start: Images, finish: Images, order: NDArray[np.int64], step: int) -> Iterator[Images]:
    """Turn an image into another one, ``step`` pixels at a time.

    Args:
        start: (C, H, W).
        finish: (C, H, W).
        order: (H * W,) flat indices of the pixels, in the order of replacement.
        step: The number of pixels per step.

    Yields:
        (C, H, W): ``start``, then ceil(H * W / step) images, of which the last is ``finish``. Each is a new array.
    """
    if step < 1:
        raise CamrtError(f"found a step of {step} pixels, expected at least 1")
    channels = len(start)
    current = np.array(start, np.float32).reshape(channels, -1)
    target = np.asarray(finish, np.float32).reshape(channels, -1)
    yield current.reshape(start.shape).copy()
    for begin in range(0, len(order), step):
        positions = order[begin : begin + step]
        current[:, positions] = target[:, positions]
        yield current.reshape(start.shape).copy()


def blurred(image: Images, window: int = 11, sigma: float = 5.0) -> Images:
    """Blur an image beyond recognition, as the authors of RISE do: the start of the insertion metric.

    Args:
        image: (C, H, W). It is padded with zeros.
        window: The side of the kernel in pixels. The kernel is a Gaussian that is reflected at its ends.
        sigma: The standard deviation of the Gaussian, in pixels.
    """
    import cv2

    kernel = _kernel(window, sigma)
    planes = [cv2.sepFilter2D(each, cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_CONSTANT) for each in image]
    return np.stack(planes).astype(np.float32, copy=False)


@functools.cache
def _kernel(window: int, sigma: float) -> NDArray[np.float64]:
    from scipy.ndimage import gaussian_filter1d

    impulse = np.zeros(window)
    impulse[window // 2] = 1
    kernel: NDArray[np.float64] = gaussian_filter1d(impulse, sigma)
    return kernel


def deletion_scores(
    image: Images, heatmap: NDArray[Any], target: int, score: Score, *, step: int | None = None, batch: int = _BATCH
) -> NDArray[np.float64]:
    """Return the score of a class while pixels are set to 0, the most relevant first.

    It should fall early: the metric is the area under the curve (`area_under`), and lower is better. Petsiuk, Das,
    Saenko: RISE, BMVC 2018, section 3.3, algorithm 1.

    Args:
        image: (C, H, W).
        heatmap: (H, W).
        target: The class.
        score: The score function.
        step: The number of pixels that are replaced at a time; by default one row, as in the authors' code.
        batch: The number of images per call of the score function.

    Returns:
        (ceil(H * W / step) + 1,) float64.
    """
    images = replaced(image, np.zeros_like(image), by_relevance(heatmap), step or image.shape[2])
    return scores_of(images, target, score, batch)


def insertion_scores(
    image: Images, heatmap: NDArray[Any], target: int, score: Score, *, step: int | None = None, batch: int = _BATCH
) -> NDArray[np.float64]:
    """Return the score of a class while a blurred image is restored, the most relevant pixels first.

    It should rise early: the metric is the area under the curve (`area_under`), and higher is better. Petsiuk, Das,
    Saenko: RISE, BMVC 2018, section 3.3, algorithm 1.

    Args:
        image: (C, H, W).
        heatmap: (H, W).
        target: The class.
        score: The score function.
        step: The number of pixels that are replaced at a time; by default one row, as in the authors' code.
        batch: The number of images per call of the score function.

    Returns:
        (ceil(H * W / step) + 1,) float64.
    """
    images = replaced(blurred(image), image, by_relevance(heatmap), step or image.shape[2])
    return scores_of(images, target, score, batch)


def area_under(scores: NDArray[Any]) -> float:
    """Return the area under a curve over 0..1 by the trapezoidal rule.

    Args:
        scores: (n + 1,) at equal steps.
    """
    values = np.asarray(scores, np.float64)
    return float((values.sum() - (values[0] + values[-1]) / 2) / max(len(values) - 1, 1))


def scores_of(images: Iterable[Images], target: int, score: Score, batch: int = _BATCH) -> NDArray[np.float64]:
    """Return the scores of a class for images, one batch at a time.

    Args:
        images: (C, H, W) each.
        target: The class.
        score: The score function.
        batch: The number of images per call of the score function.
    """
    return np.concatenate([score(np.stack(some))[:, target] for some in batched(images, batch)]).astype(np.float64)


def batched(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Yield lists of ``size`` items; the last one may be shorter.

    Raises:
        CamrtError: The size is less than 1.
    """
    if size < 1:
        raise CamrtError(f"found a batch of {size}, expected at least 1")
    some: list[_T] = []
    for item in items:
        some.append(item)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some


# ----------------------------------------------------------------------------------------------------------------- ROAD


def imputed(image: Images, removed: NDArray[np.bool_], *, noise: float = NOISE, seed: int | None = 0) -> Images:
    """Impute removed pixels from their neighbors, so that the mask itself carries no information.

    Rong, Leemann, Borisov, Kasneci, Kasneci: A Consistent and Efficient Evaluation Strategy for Attribution Methods,
    ICML 2022, section 4.2. Each removed pixel is the weighted mean of its eight neighbors, with weights of 1/6 for
    direct and 1/12 for diagonal neighbors; neighbors outside the image are left out. Together, these equations are a
    sparse linear system. Noise is added to the solution.

    Args:
        image: (C, H, W).
        removed: (H, W): the pixels to impute. At least one pixel must remain.
        noise: The standard deviation of the noise.
        seed: The seed of the noise.

    Returns:
        (C, H, W) float32.

    Raises:
        CamrtError: No pixel remains, or the sizes differ.
    """
    from scipy.sparse.linalg import splu

    if removed.shape != image.shape[1:]:
        raise CamrtError(f"found a mask of {removed.shape} for an image of {image.shape}, expected the same size")
    if removed.all():
        raise CamrtError("found that all pixels are removed, expected that some are left to fill in from")
    filled = np.array(image, np.float32)
    if not removed.any():
        return filled
    matrix, known = _system(image, removed)
    # The matrix is symmetric and positive definite: no pivoting is needed, and the fill-in halves.
    factors = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    solution = factors.solve(known).T
    if noise:
        solution = solution + noise * np.random.default_rng(seed).standard_normal(solution.shape)
    filled[:, removed] = solution
    return filled


def _system(image: Images, removed: NDArray[np.bool_]) -> tuple[Any, NDArray[np.float64]]:
    """Return the linear system of the removed pixels: the matrix (M, M) and the right-hand side (M, C)."""
    from scipy.sparse import csc_matrix

    height, width = removed.shape
    count = int(removed.sum())
    number = np.full((height + 2, width + 2), -1)  # the index of each pixel's equation; the border is outside the image
    number[1:-1, 1:-1][removed] = np.arange(count)
    beyond = np.ones_like(number, np.bool_)
    beyond[1:-1, 1:-1] = False
    padded = np.pad(np.asarray(image, np.float64), ((0, 0), (1, 1), (1, 1))).transpose(1, 2, 0)
    own, total, known = np.arange(count), np.zeros(count), np.zeros((count, len(image)))
    rows, columns, values = [own], [own], [total]
    y, x = np.nonzero(removed)
    for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)):
        weight = 1 / 12 if down and right else 1 / 6
        neighbor = y + 1 + down, x + 1 + right
        total += weight * ~beyond[neighbor]
        other = number[neighbor]
        unknown = other >= 0
        rows.append(own[unknown])
        columns.append(other[unknown])
        values.append(np.full(len(rows[-1]), -weight))
        known += weight * padded[neighbor] * ~unknown[:, None]
    entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
    return csc_matrix(entries, shape=(count, count)), known


def road_images(
    image: Images,
    heatmap: NDArray[Any],
    fractions: Sequence[float] = FRACTIONS,
    *,
    most_relevant: bool = True,
    noise: float = NOISE,
    seed: int = 0,
) -> Iterator[Images]:
    """Remove and impute an increasing share of an image's pixels (Rong et al. 2022, section 4.3).

    Args:
        image: (C, H, W).
        heatmap: (H, W).
        fractions: The shares to remove, 0 < fraction < 1.
        most_relevant: Remove the most relevant pixels first (MoRF); else the least relevant (LeRF).
        noise: The standard deviation of the noise that is added to imputed pixels.
        seed: The seed of the noise.

    Yields:
        (C, H, W) for each fraction.
    """
    order = by_relevance(heatmap if most_relevant else -np.asarray(heatmap, np.float64))
    for fraction in fractions:
        if not 0 < fraction < 1:
            raise CamrtError(f"found the fraction {fraction}, expected 0 < fraction < 1")
        removed = np.zeros(heatmap.shape, np.bool_)
        removed.flat[order[: round(fraction * len(order))]] = True
        yield imputed(image, removed, noise=noise, seed=seed)


def road_scores(
    image: Images,
    heatmap: NDArray[Any],
    score: Score,
    fractions: Sequence[float] = FRACTIONS,
    *,
    most_relevant: bool = True,
    noise: float = NOISE,
    seed: int = 0,
    batch: int = _BATCH,
) -> NDArray[np.float64]:
    """Return the scores of all classes for `road_images`: (F, K) float64, one row per fraction."""
    images = road_images(image, heatmap, fractions, most_relevant=most_relevant, noise=noise, seed=seed)
    return np.concatenate([score(np.stack(some)) for some in batched(images, batch)]).astype(np.float64)


def road(most_relevant: NDArray[Any], least_relevant: NDArray[Any]) -> float:
    """Combine both orders of Rong et al. 2022 into one number. Higher is better.

    It is half the difference between the mean scores, as in ROADCombined of Gildenblat's pytorch-grad-cam.

    Args:
        most_relevant: The scores of the class without the most relevant pixels, for each fraction (and image).
        least_relevant: The scores without the least relevant pixels.

    Returns:
        -0.5..0.5.
    """
    return float((np.mean(least_relevant) - np.mean(most_relevant)) / 2)
