"""Whether a map tells what the network looks at: it is hidden, shown or pointed at, and the score is looked at again.

Images are what the network gets: (C, H, W) float32, after mean and scale, so that 0 is the mean image. Maps are (H, W)
at the same size. A score function takes (N, C, H, W) float32 and gives (N, K) scores; it is asked for a bounded number
of images at a time. Given these, all functions are pure.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from camrt.errors import CamrtError

Images: TypeAlias = NDArray[np.float32]
Score: TypeAlias = Callable[[Images], NDArray[Any]]

TOLERANCE = 15.0  # pixels of the image
FRACTIONS = tuple(n / 10 for n in range(1, 10))
NOISE = 0.01
_BATCH = 32


# ------------------------------------------------------------------------------------------------------- pointing game


def highest_point(heatmap: NDArray[Any], size: tuple[int, int] | None = None) -> tuple[float, float] | None:
    """Where a map is highest, the first such place in reading order.

    Args:
        heatmap: (h, w).
        size: Width and height of the image that the map lies over; the map's own if left out.

    Returns:
        x and y, the middle of the map's pixel in pixels of the image (of the first, the middle is at 0, 0); None where
        the map is constant or holds what is no number: it points nowhere.
    """
    height, width = heatmap.shape
    values = np.asarray(heatmap)
    if not np.isfinite(values).all() or values.min() == values.max():
        return None
    y, x = divmod(int(values.argmax()), width)
    across, down = (width, height) if size is None else size
    return (x + 0.5) * across / width - 0.5, (y + 0.5) * down / height - 0.5


def pointing_hit(point: tuple[float, float] | None, boxes: NDArray[Any], tolerance: float = TOLERANCE) -> bool:
    """Whether a point is on an object (Zhang et al.: Top-down Neural Attention by Excitation Backprop, ECCV 2016, 4.1).

    As there, a point near an object hits it too: its distance from the nearest pixel of a box must be less than the
    tolerance. A point on a box always hits it.

    Args:
        point: x and y, from `highest_point`; None never hits.
        boxes: (M, 4) x1, y1, x2, y2, which hold both their ends, in the same pixels.
        tolerance: In pixels; 15 in the paper.
    """
    if point is None:
        return False
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    # A point between the middles of two pixels belongs to the nearer one.
    place = np.array(point)
    outside = np.maximum(np.maximum(corners[:, :2] - place, place - corners[:, 2:]), 0)
    distance = np.hypot(*outside.T)
    return bool(((outside <= 0.5).all(axis=1) | (distance < tolerance)).any())


def pointing_accuracy(hits: NDArray[Any], classes: NDArray[Any]) -> float:
    """The share of hits of each class, averaged over the classes (Zhang et al. 2016, 4.1).

    Args:
        hits: (N,) bool.
        classes: (N,): the class that each map was made for.

    Returns:
        0..1.
    """
    _, of = np.unique(np.asarray(classes), return_inverse=True)
    counts = np.bincount(of)
    return float((np.bincount(of, weights=np.asarray(hits, np.float64)) / counts).mean())


# ----------------------------------------------------------------------------------------------- average drop, increase


def shown_through(images: Images, heatmaps: NDArray[Any]) -> Images:
    """Images multiplied with their maps: what the network gets for `average_drop` (Chattopadhay et al. 2018, 4.1).

    Args:
        images: (N, C, H, W).
        heatmaps: (N, H, W), each of 0..1.
    """
    return images * np.asarray(heatmaps, np.float32)[:, None]


def average_drop(before: NDArray[Any], after: NDArray[Any]) -> float:
    """How much of the score is lost where only the map's part of the image is left: the lower, the better.

    Chattopadhay, Sarkar, Howlader, Balasubramanian: Grad-CAM++, WACV 2018, section 4.1: the mean of
    ``max(0, before - after) / before``.

    Args:
        before: (N,) scores of the class on the images.
        after: (N,) on the images `shown_through` their maps. Where ``before`` is 0, nothing can drop.

    Returns:
        0..1 (the paper gives it in percent).
    """
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    lost = np.maximum(first - second, 0)
    return float(np.divide(lost, first, out=np.zeros_like(lost), where=first > 0).mean())


def increase_in_confidence(before: NDArray[Any], after: NDArray[Any]) -> float:
    """The share of images whose score rises where only the map's part is left: the higher, the better.

    Chattopadhay et al.: Grad-CAM++, WACV 2018, section 4.1.

    Args:
        before: (N,) scores of the class on the images.
        after: (N,) on the images `shown_through` their maps.

    Returns:
        0..1.
    """
    return float((np.asarray(before) < np.asarray(after)).mean())


# -------------------------------------------------------------------------------------------------- insertion, deletion


def by_relevance(heatmap: NDArray[Any]) -> NDArray[np.int64]:
    """The pixels of a map, the highest first, of equal ones the first in reading order: (H * W,) flat indices."""
    return np.argsort(-np.asarray(heatmap, np.float64), axis=None, kind="stable")


def replaced(start: Images, finish: Images, order: NDArray[np.int64], step: int) -> Iterator[Images]:
    """An image that becomes another one, ``step`` pixels at a time.

    Args:
        start: (C, H, W).
        finish: (C, H, W).
        order: (H * W,): which pixels are replaced first.
        step: How many at a time.

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
        places = order[begin : begin + step]
        current[:, places] = target[:, places]
        yield current.reshape(start.shape).copy()


def blurred(image: Images, window: int = 11, sigma: float = 5.0) -> Images:
    """What an image is inserted into: itself, blurred beyond recognition, as the authors of RISE blur it.

    Args:
        image: (C, H, W).
        window: The side of the kernel in pixels: a Gaussian, folded back at its ends. Beyond the image is 0.
        sigma: Of the Gaussian, in pixels.
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
    """The score of a class while the pixels become 0, the most relevant first: it should fall soon.

    Petsiuk, Das, Saenko: RISE, BMVC 2018, section 3.3, algorithm 1. The area under the curve, `area_under`, is
    the metric: the lower, the better.

    Args:
        image: (C, H, W).
        heatmap: (H, W).
        target: The class.
        score: The network.
        step: How many pixels are replaced at a time; if left out, a row's, as the authors do.
        batch: How many images the score function gets at once.

    Returns:
        (ceil(H * W / step) + 1,) float64.
    """
    images = replaced(image, np.zeros_like(image), by_relevance(heatmap), step or image.shape[2])
    return scores_of(images, target, score, batch)


def insertion_scores(
    image: Images, heatmap: NDArray[Any], target: int, score: Score, *, step: int | None = None, batch: int = _BATCH
) -> NDArray[np.float64]:
    """The score of a class while a blurred image becomes sharp, the most relevant pixels first: it should rise soon.

    Petsiuk, Das, Saenko: RISE, BMVC 2018, section 3.3, algorithm 1. The area under the curve, `area_under`, is
    the metric: the higher, the better.

    Args:
        image: (C, H, W).
        heatmap: (H, W).
        target: The class.
        score: The network.
        step: How many pixels are replaced at a time; if left out, a row's, as the authors do.
        batch: How many images the score function gets at once.

    Returns:
        (ceil(H * W / step) + 1,) float64.
    """
    images = replaced(blurred(image), image, by_relevance(heatmap), step or image.shape[2])
    return scores_of(images, target, score, batch)


def area_under(scores: NDArray[Any]) -> float:
    """The area under a curve over 0..1, by the trapezoidal rule.

    Args:
        scores: (n + 1,) at even steps.
    """
    values = np.asarray(scores, np.float64)
    return float((values.sum() - (values[0] + values[-1]) / 2) / max(len(values) - 1, 1))


def scores_of(images: Iterable[Images], target: int, score: Score, batch: int = _BATCH) -> NDArray[np.float64]:
    """The scores of a class on images, a batch at a time.

    Args:
        images: (C, H, W) each.
        target: The class.
        score: The network.
        batch: How many images it gets at once.
    """
    return np.concatenate([score(np.stack(some))[:, target] for some in _batches(images, batch)]).astype(np.float64)


def _batches(images: Iterable[Images], size: int) -> Iterator[list[Images]]:
    if size < 1:
        raise CamrtError(f"found a batch of {size}, expected at least 1")
    some: list[Images] = []
    for image in images:
        some.append(image)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some


# ----------------------------------------------------------------------------------------------------------------- ROAD


def imputed(image: Images, removed: NDArray[np.bool_], *, noise: float = NOISE, seed: int | None = 0) -> Images:
    """Fills in pixels from those around them, so that where they were does not show.

    Rong, Leemann, Borisov, Kasneci, Kasneci: A Consistent and Efficient Evaluation Strategy for Attribution Methods,
    ICML 2022, section 4.2: each removed pixel is the weighted mean of its eight neighbours, 1/6 each beside it and 1/12
    each at its corners (those beyond the image are left out), and all of them together are a sparse linear system;
    then there is noise.

    Args:
        image: (C, H, W).
        removed: (H, W): what is filled in. Some pixel must be left.
        noise: The standard deviation of what is added.
        seed: Of the noise.

    Returns:
        (C, H, W) float32.

    Raises:
        CamrtError: Nothing is left, or the sizes differ.
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
    # The matrix is symmetric and positive definite, which spares pivoting and half of the fill-in.
    factors = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    solution = factors.solve(known).T
    if noise:
        solution = solution + noise * np.random.default_rng(seed).standard_normal(solution.shape)
    filled[:, removed] = solution
    return filled


def _system(image: Images, removed: NDArray[np.bool_]) -> tuple[Any, NDArray[np.float64]]:
    """The equations of the removed pixels: the matrix (M, M), and what the pixels that are left bring in: (M, C)."""
    from scipy.sparse import csc_matrix

    height, width = removed.shape
    count = int(removed.sum())
    number = np.full((height + 2, width + 2), -1)  # of a pixel's equation; a rim of pixels that are beyond the image
    number[1:-1, 1:-1][removed] = np.arange(count)
    beyond = np.ones_like(number, np.bool_)
    beyond[1:-1, 1:-1] = False
    padded = np.pad(np.asarray(image, np.float64), ((0, 0), (1, 1), (1, 1))).transpose(1, 2, 0)
    own, total, known = np.arange(count), np.zeros(count), np.zeros((count, len(image)))
    rows, columns, values = [own], [own], [total]
    y, x = np.nonzero(removed)
    for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)):
        weight = 1 / 12 if down and right else 1 / 6
        place = y + 1 + down, x + 1 + right
        total += weight * ~beyond[place]
        other = number[place]
        unknown = other >= 0
        rows.append(own[unknown])
        columns.append(other[unknown])
        values.append(np.full(len(rows[-1]), -weight))
        known += weight * padded[place] * ~unknown[:, None]
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
    """An image with a rising part of its pixels removed and filled in (Rong et al. 2022, section 4.3).

    Args:
        image: (C, H, W).
        heatmap: (H, W).
        fractions: How much is removed, 0 < fraction < 1.
        most_relevant: Whether the most relevant pixels go first (MoRF), or the least relevant (LeRF).
        noise: The standard deviation of what is added to what is filled in.
        seed: Of the noise.

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
    """The scores of all classes on `road_images`: (F, K) float64, a row for each fraction that was removed."""
    images = road_images(image, heatmap, fractions, most_relevant=most_relevant, noise=noise, seed=seed)
    return np.concatenate([score(np.stack(some)) for some in _batches(images, batch)]).astype(np.float64)


def road(most_relevant: NDArray[Any], least_relevant: NDArray[Any]) -> float:
    """How much more a class loses with its most relevant pixels than with its least relevant ones.

    Half the difference of the mean scores, as Gildenblat's pytorch-grad-cam (ROADCombined) puts both orders of Rong et
    al. 2022 into one number: the higher, the better.

    Args:
        most_relevant: Scores of the class after the most relevant pixels went, for each fraction (and image).
        least_relevant: After the least relevant ones went.

    Returns:
        -0.5..0.5.
    """
    return float((np.mean(least_relevant) - np.mean(most_relevant)) / 2)
