from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camrt.localize.permutohedral import lattice


def plainly(points: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The filter as the paper tells it, point by point, with corners as tuples in a dictionary."""
    d = len(points)
    corners: dict[tuple[int, ...], float] = {}
    simplices = []
    for point, value in zip(points.T.astype(float), values, strict=True):
        scaled = point * math.sqrt(2 / 3) * (d + 1) / np.sqrt(np.arange(1, d + 1) * np.arange(2, d + 2))
        elevated = np.array([scaled[i:].sum() - (i * scaled[i - 1] if i else 0) for i in range(d + 1)])
        # Among the points of remainder 0 around it, the nearest one is a corner.
        floor = (np.floor(elevated / (d + 1)) * (d + 1)).astype(int)
        missing = -floor.sum() // (d + 1)
        nearest = floor.copy()
        nearest[np.argsort(-(elevated - floor), kind="stable")[:missing]] += d + 1
        order = np.argsort(-(elevated - nearest), kind="stable")
        shares = (elevated - nearest)[order] / (d + 1)
        weights = [1 - shares[0] + shares[-1], *(shares[:-1] - shares[1:])[::-1]]  # of the remainders 0, 1, ..., d
        simplex = []
        for remainder, weight in enumerate(weights):
            corner = nearest + remainder
            corner[order[d + 1 - remainder :]] -= d + 1
            simplex.append((tuple(corner.tolist()), weight))
        simplices.append(simplex)
        for place, weight in simplex:
            corners[place] = corners.get(place, 0.0) + weight * value
    for axis in range(d + 1):
        step = np.ones(d + 1, int)
        step[axis] = -d
        corners = {
            place: value
            + 0.5 * sum(corners.get(tuple((np.array(place) + sign * step).tolist()), 0.0) for sign in (1, -1))
            for place, value in corners.items()
        }
    return np.array([sum(weight * corners[place] for place, weight in simplex) for simplex in simplices])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 12), st.sampled_from([0.1, 1, 3, 40]), st.integers(0, 10**6))
def test_point_by_point(d: int, n: int, spread: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    points = generator.normal(0, spread, (d, n)).astype(np.float32)
    values = generator.random(n).astype(np.float32)
    np.testing.assert_allclose(lattice(points).filter(values), plainly(points, values), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("d", [1, 2, 3, 5, 7])
def test_weights_are_barycentric(d: int) -> None:
    points = np.random.default_rng(d).normal(0, 3, (d, 200)).astype(np.float32)
    built = lattice(points)
    weights = built.slice.toarray()
    assert weights.min() >= -1e-5
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    assert np.count_nonzero(weights, axis=1).max() <= d + 1
    assert len(built.blurs) == d + 1
    np.testing.assert_array_equal(built.splat.toarray(), weights.T)


def test_a_corner_has_its_weight_for_itself() -> None:
    built = lattice(np.zeros((5, 1), np.float32))
    assert np.count_nonzero(built.slice.toarray()) == 1


@pytest.mark.parametrize("d", [2, 5])
def test_neighbours_are_mutual(d: int) -> None:
    built = lattice(np.random.default_rng(0).normal(0, 2, (d, 300)).astype(np.float32))
    for blur in built.blurs:
        dense = blur.toarray()
        np.testing.assert_array_equal(dense, dense.T)
        np.testing.assert_array_equal(np.diag(dense), 1)
        neighbours = dense == 0.5
        assert neighbours.any()
        assert neighbours.sum(1).max() <= 2
        assert set(np.unique(dense)) == {0, 0.5, 1}


@pytest.mark.parametrize("d", [1, 2, 3])
def test_a_gaussian_of_deviation_one(d: int) -> None:
    """What becomes of one point's value around it, on a lattice without holes; an approximation."""
    generator = np.random.default_rng(d)
    crowd = generator.uniform(-5, 5, (d, 60_000)).astype(np.float32)
    probes = generator.uniform(-2.5, 2.5, (d, 2_000)).astype(np.float32)
    found = np.zeros(probes.shape[1])
    for place in generator.uniform(-1, 1, (d, 8)).astype(np.float32).T:
        moved = probes + place[:, None]
        built = lattice(np.concatenate([place[:, None], moved, crowd], axis=1))
        values = np.zeros(built.slice.shape[0], np.float32)
        values[0] = 1
        found += built.filter(values)[1 : 1 + probes.shape[1]]
    expected = np.exp(-(probes**2).sum(0) / 2)
    found *= (found @ expected) / (found @ found)
    assert np.abs(found - expected).max() < 0.15
    assert np.corrcoef(found, expected)[0, 1] > 0.99


def test_scaled() -> None:
    generator = np.random.default_rng(9)
    built = lattice(generator.normal(0, 1, (5, 50)).astype(np.float32))
    scale, values = generator.random((2, 50)).astype(np.float32)
    expected = scale * built.filter(scale * values)
    np.testing.assert_allclose(built.scaled(scale).filter(values), expected, rtol=1e-5)


@pytest.mark.parametrize("value", [1e7, 1e30, np.inf, np.nan])
def test_too_far_apart(value: float) -> None:
    points = np.zeros((5, 3), np.float32)
    points[0, 1] = value
    with np.errstate(all="raise"), pytest.raises(OverflowError):
        lattice(points)


def test_keys_beyond_64_bits() -> None:
    points = np.random.default_rng(0).uniform(-1e5, 1e5, (5, 9)).astype(np.float32)
    with pytest.raises(OverflowError, match="too far apart"):
        lattice(points)
