"""The permutohedral lattice (Adams, Baek and Davis, Eurographics 2010): Gaussian filtering in many dimensions.

A value at each of N points in d dimensions becomes at each point the sum of all values, weighted by
``exp(-|difference|² / 2)``. All pairs would be N² weights; on the lattice it is three sparse products:

* splat: each point gives its value to the d + 1 corners of the simplex that it lies in, by barycentric weights;
* blur: along each of the d + 1 axes of the lattice, a corner takes half of each of its two neighbors, where they are;
* slice: each point takes from its corners, by the same weights.

The result is an approximation, up to a common factor. Which one it is depends on the order of the dimensions and, for
points between two simplices, on float32 rounding. Both are as in Krähenbühl's implementation of the dense CRF, whose
answers are the yardstick of `camrt.localize.crf`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

_FARTHEST = 1 << 22  # coordinates on the lattice; float32 counts beyond this in steps that are too large for fractions
_KEYS = 1 << 62

Floats = NDArray[np.float32]
Keys = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Lattice:
    """The part of the lattice around some points. M is the number of its corners.

    Attributes:
        splat: (M, N) float32, d + 1 weights a column.
        blurs: d + 1 of (M, M) float32, in the order in which they are applied.
        slice: (N, M) float32, the transpose of ``splat``.
    """

    splat: csr_matrix
    blurs: tuple[csr_matrix, ...]
    slice: csr_matrix

    def filter(self, values: Floats) -> Floats:
        """Sums the values around each point.

        Args:
            values: (N,) float32.

        Returns:
            (N,) float32.
        """
        corners = self.splat @ values
        for blur in self.blurs:
            corners = blur @ corners
        summed: Floats = self.slice @ corners
        return summed

    def scaled(self, scale: Floats) -> Lattice:
        """The lattice whose filter multiplies by ``scale`` (N,) before and after."""
        sliced = self.slice.copy()
        sliced.data *= np.repeat(scale, np.diff(sliced.indptr))
        return Lattice(_transposed(sliced), self.blurs, sliced)


def lattice(points: Floats) -> Lattice:
    """Builds the lattice around points.

    Args:
        points: (d, N) float32, in units of the Gaussian's standard deviation.

    Raises:
        OverflowError: The points lie so far apart that the corners cannot be numbered.
    """
    d, n = points.shape
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
        elevated = _elevated(points)
    if not np.abs(elevated).max() < _FARTHEST:
        raise OverflowError("the points lie too far apart")
    origin, rank = _simplices(elevated)
    order = np.empty((d + 1, n), np.int8)  # the axes, that of the least difference first
    np.put_along_axis(order, (d - rank).astype(np.int64), np.arange(d + 1, dtype=np.int8)[:, None], 0)
    weights = _barycentric(np.take_along_axis((elevated - origin) * np.float32(1 / (d + 1)), order, 0))
    del elevated, rank
    corners, keys, radix = _corners(origin, order)
    sliced = csr_matrix(
        (weights.T.ravel(), corners.T.ravel(), np.arange(0, (d + 1) * n + 1, d + 1)), shape=(n, len(keys))
    )
    steps = [int(radix.sum() - (d + 1) * along) for along in (*radix.tolist(), 0)]
    order_of_keys = np.argsort(keys)
    blurs = tuple(_blur(keys, order_of_keys, step) for step in steps)
    return Lattice(_transposed(sliced), blurs, sliced)


def _elevated(points: Floats) -> Floats:
    """The points (d, N) on the plane in d + 1 dimensions whose coordinates sum up to 0; section 3.1 of the paper.

    The columns of its matrix E are orthogonal; the scale makes the blur's standard deviation 1.
    """
    d = len(points)
    deviation = float(np.float32(math.sqrt(2 / 3) * (d + 1)))
    elevated = np.empty((d + 1, points.shape[1]), np.float32)
    after = np.zeros(points.shape[1], np.float32)
    for axis in range(d, 0, -1):
        scaled = points[axis - 1] * np.float32(1 / math.sqrt(axis * (axis + 1)) * deviation)
        elevated[axis] = after - np.float32(axis) * scaled
        after += scaled
    elevated[0] = after
    return elevated


def _simplices(elevated: Floats) -> tuple[Floats, NDArray[np.int8]]:
    """The simplex that each point lies in.

    Returns:
        Its corner of remainder 0 (d + 1, N), multiples of d + 1; and the rank (d + 1, N) of each coordinate's
        difference to that corner, 0 for the largest.
    """
    size = len(elevated)
    rounded = np.rint(elevated * np.float32(1 / size))
    origin = rounded * np.float32(size)
    difference = elevated - origin
    rank = np.zeros(elevated.shape, np.int8)
    for i in range(size):
        for j in range(i + 1, size):
            is_less = difference[i] < difference[j]
            rank[i] += is_less
            rank[j] += ~is_less
    # Rounding may have left the plane. The coordinates that it moved the farthest go back.
    rank += rounded.sum(0).astype(np.int8)
    back = np.int8(size) * ((rank < 0).astype(np.int8) - (rank >= size))
    rank += back
    origin += back
    return origin, rank


def _barycentric(rising: Floats) -> Floats:
    """The weight of each corner (d + 1, N), by remainder, from the differences as shares of d + 1 in rising order."""
    weights = rising.copy()
    weights[1:] -= rising[:-1]
    weights[0] += 1 - rising[-1]
    return weights


def _corners(origin: Floats, order: NDArray[np.int8]) -> tuple[NDArray[np.int32], Keys, Keys]:
    """Numbers the corners of all simplices.

    A corner is told by its first d coordinates, which are the digits of one integer, its key. From a corner to the next
    one of the simplex, all coordinates grow by 1, but one falls by d; so the key changes by what depends on that axis.

    Returns:
        The corners' numbers (d + 1, N), by remainder; their keys (M,); the digits' values (d,).

    Raises:
        OverflowError: The keys do not fit 64 bits.
    """
    size, n = origin.shape
    base = origin[:-1].astype(np.int64)
    least = base.min(1) - 2 * size  # room for the other corners, and for neighbors
    widths = (base.max(1) + 2 * size - least + 1).tolist()
    if math.prod(widths) >= _KEYS:
        raise OverflowError("the points lie too far apart")
    radix = np.cumprod([1, *widths[:-1]])
    falls = size * np.append(radix, 0)
    key = radix @ (base - least[:, None])
    corners = np.empty((size, n), np.int32)
    found: list[Keys] = []
    count = 0
    for remainder in range(size):  # no corner has two remainders
        if remainder:
            key += radix.sum() - falls[order[remainder - 1]]
        keys, numbers = np.unique(key, return_inverse=True)
        corners[remainder] = numbers.reshape(-1) + count
        found.append(keys)
        count += len(keys)
    return corners, np.concatenate(found), radix


def _blur(keys: Keys, order: NDArray[Any], step: int) -> csr_matrix:
    """Adds half of both neighbors along an axis, whose keys are a step before and behind."""
    count = len(keys)
    place = np.searchsorted(keys, keys + step, sorter=order)
    behind = order[np.minimum(place, count - 1)]
    here = np.flatnonzero(keys[behind] == keys + step)
    behind, itself = behind[here], np.arange(count)
    rows, columns = np.concatenate([itself, here, behind]), np.concatenate([itself, behind, here])
    halves = np.repeat(np.array([1, 0.5], np.float32), [count, 2 * len(here)])
    return csr_matrix((halves, (rows, columns)), shape=(count, count))


def _transposed(matrix: csr_matrix) -> csr_matrix:
    return matrix.T.tocsr()
