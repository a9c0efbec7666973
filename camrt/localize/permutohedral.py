"""The permutohedral lattice (Adams, Baek and Davis, Eurographics 2010): Gaussian filtering in many dimensions.

The filter replaces the value at each of N points in d dimensions by the sum of all values, weighted by
``exp(-|difference|² / 2)``. Instead of N² weights, the lattice needs three sparse matrix products:

* splat: distribute the value of each point to the d + 1 corners of its simplex, with barycentric weights;
* blur: along each of the d + 1 axes of the lattice, add half of both neighbors of a corner;
* slice: interpolate the value of each point from its corners, with the same weights.

The result is an approximation, up to a common factor. It depends on the order of the dimensions and, for points between
two simplices, on float32 rounding. Both are as in Krähenbühl's implementation of the dense CRF, the reference of
`camrt.localize.crf`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

_FARTHEST = 1 << 22  # limit of coordinates on the lattice, beyond which float32 is too coarse for fractions
_KEYS = 1 << 62

Floats = NDArray[np.float32]
Keys = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Lattice:
    """The part of the lattice around N points, with M corners.

    Attributes:
        splat: (M, N) float32, d + 1 weights in each column.
        blurs: d + 1 matrices (M, M) float32, in the order in which they are applied.
        slice: (N, M) float32, the transpose of ``splat``.
    """

    splat: csr_matrix
    blurs: tuple[csr_matrix, ...]
    slice: csr_matrix

    def filter(self, values: Floats) -> Floats:
        """Filter the values of the points.

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
        """Return a lattice whose filter multiplies by ``scale`` (N,) before and after filtering."""
        sliced = self.slice.copy()
        sliced.data *= np.repeat(scale, np.diff(sliced.indptr))
        return Lattice(_transposed(sliced), self.blurs, sliced)


def lattice(points: Floats) -> Lattice:
    """Build the lattice around points.

    Args:
        points: (d, N) float32, in standard deviations of the Gaussian.

    Raises:
        OverflowError: The points are so far apart that the keys of the corners overflow.
    """
    d, n = points.shape
    with np.errstate(over="ignore", invalid="ignore"):  # infinite values are rejected below
        elevated = _elevated(points)
    if not np.abs(elevated).max() < _FARTHEST:
        raise OverflowError("the points are too far apart")
    origin, rank = _simplices(elevated)
    order = np.empty((d + 1, n), np.int8)  # the axes in order of increasing differences
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
    """Embed the points (d, N) in the hyperplane of d + 1 dimensions whose coordinates sum to 0 (section 3.1).

    The columns of the matrix E of the paper are orthogonal. They are scaled so that the blur has a standard deviation
    of 1.
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
    """Find the simplex of each point.

    Returns:
        The corners of remainder 0 (d + 1, N), multiples of d + 1; and the ranks (d + 1, N) of the differences between
        the coordinates of the point and that corner, 0 for the largest.
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
    # The rounded point may be off the hyperplane. Move the coordinates with the largest rounding errors back.
    rank += rounded.sum(0).astype(np.int8)
    back = np.int8(size) * ((rank < 0).astype(np.int8) - (rank >= size))
    rank += back
    origin += back
    return origin, rank


def _barycentric(rising: Floats) -> Floats:
    """Return the weights (d + 1, N) of the corners, by remainder, from the sorted differences divided by d + 1."""
    weights = rising.copy()
    weights[1:] -= rising[:-1]
    weights[0] += 1 - rising[-1]
    return weights


def _corners(origin: Floats, order: NDArray[np.int8]) -> tuple[NDArray[np.int32], Keys, Keys]:
    """Number the corners of all simplices.

    A corner is identified by its key, an integer whose digits are its first d coordinates. From a corner to the next
    one of a simplex, all coordinates increase by 1, except one that decreases by d. The change of the key therefore
    depends only on that axis.

    Returns:
        The numbers of the corners (d + 1, N), by remainder; the keys (M,); the place values of the digits (d,).

    Raises:
        OverflowError: The keys do not fit into 64 bits.
    """
    size, n = origin.shape
    base = origin[:-1].astype(np.int64)
    least = base.min(1) - 2 * size  # room for the other corners, and for neighbors
    widths = (base.max(1) + 2 * size - least + 1).tolist()
    if math.prod(widths) >= _KEYS:
        raise OverflowError("the points are too far apart")
    radix = np.cumprod([1, *widths[:-1]])
    falls = size * np.append(radix, 0)
    key = radix @ (base - least[:, None])
    corners = np.empty((size, n), np.int32)
    found: list[Keys] = []
    count = 0
    for remainder in range(size):  # corners of different remainders are distinct
        if remainder:
            key += radix.sum() - falls[order[remainder - 1]]
        keys, numbers = np.unique(key, return_inverse=True)
        corners[remainder] = numbers.reshape(-1) + count
        found.append(keys)
        count += len(keys)
    return corners, np.concatenate(found), radix


def _blur(keys: Keys, order: NDArray[Any], step: int) -> csr_matrix:
    """Return the matrix that adds half of both neighbors along an axis, whose keys differ by ``step``."""
    count = len(keys)
    position = np.searchsorted(keys, keys + step, sorter=order)
    after = order[np.minimum(position, count - 1)]
    before = np.flatnonzero(keys[after] == keys + step)
    after, itself = after[before], np.arange(count)
    rows, columns = np.concatenate([itself, before, after]), np.concatenate([itself, after, before])
    halves = np.repeat(np.array([1, 0.5], np.float32), [count, 2 * len(before)])
    return csr_matrix((halves, (rows, columns)), shape=(count, count))


def _transposed(matrix: csr_matrix) -> csr_matrix:
    return matrix.T.tocsr()
