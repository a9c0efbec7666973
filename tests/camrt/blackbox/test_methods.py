"""Each method against an independent implementation: captum, the formula in NumPy, or enumeration."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from camrt.blackbox.baselines import centered, edges, random_map
from camrt.blackbox.kernelshap import kernelshap, over_segments, segmented
from camrt.blackbox.methods import Attribution, Problem, find
from camrt.blackbox.occlusion import occlusion
from camrt.blackbox.rise import random_masks, rise
from camrt.errors import CamrtError
from camrt.graph.methods import BLACK_BOX

SIDE, COUNT = 20, 3
_draw = np.random.default_rng(3)
_WEIGHTS = _draw.standard_normal((COUNT, 3 * SIDE * SIDE)).astype(np.float32) / 20


def score(images: Any) -> Any:
    """A function that is not linear, so that parts of the image act together."""
    return np.tanh(np.square(images.reshape(len(images), -1) @ _WEIGHTS.T))


@pytest.fixture
def problem() -> Problem:
    draw = np.random.default_rng(5)
    image = draw.standard_normal((3, SIDE, SIDE)).astype(np.float32)
    return Problem(image, draw.integers(0, 256, (SIDE, SIDE, 3), np.uint8), score, COUNT, batch=7)


def test_every_name_is_a_method_with_a_source() -> None:
    for name in BLACK_BOX:
        method = find(name)
        assert method.name == name
        assert "Source:\n" in (method.explain.__doc__ or "")


def test_rise_is_the_formula_over_its_masks(problem: Problem) -> None:
    found = rise(problem, masks=50, cells=4, keep=0.3, seed=1)
    masks = np.stack(list(random_masks(50, problem.size, cells=4, keep=0.3, seed=1))).astype(np.float64)
    scores = score(problem.image * masks[:, None])
    each = scores[:, :, None, None] * masks[:, None] / 0.3  # (50, COUNT, h, w): equation 6 is their mean
    np.testing.assert_allclose(found.maps, each.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.standard_errors, each.std(axis=0, ddof=1) / math.sqrt(50), rtol=1e-4)


def test_masks_are_those_of_scikit_image() -> None:
    transform = pytest.importorskip("skimage.transform", reason="scikit-image is not installed")
    height, width, cells = 21, 34, 5
    draw = np.random.default_rng(9)
    for mask in random_masks(20, (height, width), cells=cells, keep=0.5, seed=9):
        grid = (draw.random((cells, cells)) < 0.5).astype(np.float64)
        down, across = math.ceil(height / cells), math.ceil(width / cells)
        # As the authors enlarge them, but for the edge: theirs mirrors the grid around the center of its last cell.
        large = transform.resize(grid, ((cells + 1) * down, (cells + 1) * across), order=1, mode="edge")
        y, x = draw.integers(down), draw.integers(across)
        np.testing.assert_allclose(mask, large[y : y + height, x : x + width], atol=1e-5)


def test_pixels_are_kept_as_often_as_asked() -> None:
    mean = np.mean(list(random_masks(4000, (12, 12), cells=3, keep=0.3, seed=0)), axis=0)
    np.testing.assert_allclose(mean, 0.3, atol=0.03)


@pytest.mark.parametrize("window,stride", [(0.2, 0.1), (0.3, 0.25), (0.35, 0.15), (1.0, 1.0)])  # noqa: PT006
def test_occlusion_is_captums(problem: Problem, window: float, stride: float) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    found = occlusion(problem, window=window, stride=stride)
    method = attr.Occlusion(lambda x: torch.from_numpy(score(x.numpy())))
    side, step = (max(1, round(share * SIDE)) for share in (window, stride))
    for target in range(COUNT):
        expected = method.attribute(
            torch.from_numpy(problem.image[None]), (3, side, side), (3, step, step), target=target
        )
        np.testing.assert_allclose(found.maps[target], expected[0, 0].numpy(), atol=1e-6)


def test_kernelshap_of_all_coalitions_is_exact(problem: Problem) -> None:
    numbers = (np.arange(SIDE) // 5)[:, None] + 4 * (np.arange(SIDE) // 10)  # 8 segments
    found = over_segments(problem, numbers, 254, seed=0)
    np.testing.assert_allclose(found.maps, _shapley(problem, numbers)[:, numbers], atol=1e-5)
    assert found.standard_errors is not None
    assert not found.standard_errors.any()


def test_sampled_kernelshap_comes_near_and_says_how_near(problem: Problem) -> None:
    numbers = (np.arange(SIDE) // 4)[:, None] + 5 * (np.arange(SIDE) // 10)  # 10 segments, 1022 coalitions
    exact = _shapley(problem, numbers)
    runs = [over_segments(problem, numbers, 300, seed) for seed in range(60)]
    values = np.array([_by_segment(run.maps, numbers) for run in runs])
    errors = np.array([_by_segment(run.standard_errors, numbers) for run in runs])
    np.testing.assert_allclose(values.sum(axis=2), np.broadcast_to(exact.sum(axis=1), (60, COUNT)), atol=1e-5)
    spread = values.std(axis=0, ddof=1)
    assert (np.abs(values.mean(axis=0) - exact) < 4 * spread / math.sqrt(60) + 1e-6).all()
    np.testing.assert_allclose(errors.mean(axis=0), spread, rtol=0.35)


def test_kernelshap_of_all_coalitions_is_captums_mean_over_all_orders(problem: Problem) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    numbers = np.broadcast_to((np.arange(SIDE) // 4)[:, None], (SIDE, SIDE))
    found = over_segments(problem, numbers, 30, seed=0)
    method = attr.ShapleyValues(lambda x: torch.from_numpy(score(x.numpy())))
    segments = torch.from_numpy(numbers.copy())[None, None]
    expected = method.attribute(torch.from_numpy(problem.image[None]), feature_mask=segments, target=1)
    np.testing.assert_allclose(found.maps[1], expected[0, 0].numpy(), atol=1e-5)


def test_segments_are_without_gaps(problem: Problem) -> None:
    pytest.importorskip("skimage.segmentation", reason="scikit-image is not installed")
    numbers = segmented(problem.pixels, 12, 10.0)
    assert numbers.shape == problem.size
    assert set(numbers.flat) == set(range(int(numbers.max()) + 1))
    assert kernelshap(problem, segments=12, samples=200).maps.shape == (COUNT, SIDE, SIDE)


def test_an_image_of_one_color_has_a_map_all_the_same(problem: Problem) -> None:
    pytest.importorskip("skimage.segmentation", reason="scikit-image is not installed")
    flat = Problem(problem.image, np.zeros_like(problem.pixels), score, COUNT)
    assert np.isfinite(kernelshap(flat, segments=4, samples=40).maps).all()
    whole = over_segments(flat, np.zeros(problem.size, np.int64), 40, seed=0)
    gain = score(problem.image[None])[0] - score(0 * problem.image[None])[0]
    np.testing.assert_allclose(whole.maps[:, 0, 0], gain, rtol=1e-5)


def test_no_more_than_a_batch_of_masks_is_scored_at_once(problem: Problem) -> None:
    seen, told = [], []

    def counting(images: Any) -> Any:
        seen.append(len(images))
        return score(images)

    rise(Problem(problem.image, problem.pixels, counting, COUNT, 8, lambda *done: told.append(done)), masks=20)
    assert seen == [8, 8, 4]
    assert told == [(8, 20), (16, 20), (20, 20)]


def test_baselines(problem: Problem) -> None:
    first, again = (random_map(problem).maps for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (random_map(problem, seed=1).maps != first).mean() > 0.99
    other = Problem(problem.image, 255 - problem.pixels, score, COUNT)
    assert (random_map(other).maps != first).mean() > 0.99
    assert centered(problem).maps.shape == (COUNT, SIDE, SIDE)
    y, x = np.mgrid[:SIDE, :SIDE]
    squares = ((y - 9.5) ** 2 + (x - 9.5) ** 2) / SIDE**2
    np.testing.assert_allclose(centered(problem, sigma=0.2).maps[0], np.exp(-squares / (2 * 0.2**2)), rtol=1e-5)


def test_edges_are_scipys(problem: Problem) -> None:
    from scipy import ndimage

    gray = np.rint(problem.pixels @ [0.299, 0.587, 0.114])
    expected = np.hypot(*(ndimage.sobel(gray, axis, mode="mirror") for axis in (0, 1)))
    np.testing.assert_allclose(edges(problem).maps[0], expected, atol=6)  # OpenCV's gray is rounded: by 1, times 4


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (lambda p: rise(p, masks=1), "masks=1, expected at least 2"),
        (lambda p: rise(p, cells=21), "cells=21, expected 1 to 20"),
        (lambda p: rise(p, keep=1.0), "keep=1.0, expected 0.01 to 0.99"),
        (lambda p: occlusion(p, window=0.0), "window=0.0"),
        (lambda p: occlusion(p, window=0.2, stride=0.3), "stride=0.3, expected 0.01 to 0.2"),
        (lambda p: over_segments(p, np.arange(400).reshape(20, 20), 100, 0), "at least 800"),
        (lambda p: centered(p, sigma=0.0), "sigma=0.0"),
    ],
)
def test_settings_out_of_range(problem: Problem, run: Any, text: str) -> None:
    with pytest.raises(CamrtError, match=text):
        run(problem)


def test_scores_that_are_no_numbers_are_refused(problem: Problem) -> None:
    broken = Problem(problem.image, problem.pixels, lambda images: np.full((len(images), 1), np.nan))
    with pytest.raises(CamrtError, match="not finite"):
        rise(broken, masks=4)


def _by_segment(maps: Any, numbers: Any) -> Any:
    """Maps (count, h, w) -> (count, segments)."""
    first = np.unique(numbers, return_index=True)[1]
    return np.asarray(maps).reshape(len(maps), -1)[:, first]


def _shapley(problem: Problem, numbers: Any) -> Any:
    """The definition: the mean gain of a segment over all orders, (count, segments)."""
    count = int(numbers.max()) + 1
    sets = list(itertools.product([0.0, 1.0], repeat=count))
    values = {each: score(problem.image[None] * np.array(each, np.float32)[numbers])[0] for each in sets}
    found = np.zeros((COUNT, count))
    for each in sets:
        size = int(sum(each))
        for segment in range(count):
            if not each[segment]:
                joined = (*each[:segment], 1.0, *each[segment + 1 :])
                weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
                found[:, segment] += weight * (values[joined] - values[each])
    return found


def test_an_attribution_needs_no_standard_errors() -> None:
    assert Attribution(np.zeros((1, 2, 2), np.float32)).standard_errors is None
