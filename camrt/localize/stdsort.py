"""The order in which libstdc++'s ``std::sort`` leaves equal elements.

``std::sort`` is not stable: the order of equal elements depends on where its pivots fall. The original box generator
sorts boxes by area with it, and drops every second box of a run of overlapping ones. So the order of boxes of equal
area decides which boxes remain, and no other sorting function gives the original's boxes. This module follows the
introsort of libstdc++ (``bits/stl_algo.h``, GCC 4.8.3 and later) step by step: quicksort with the median of three as
pivot, heap sort after too many bad pivots, and one insertion sort at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_SHORT = 16  # up to this length, parts are left to the insertion sort


def order_of_std_sort(areas: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the order in which ``std::sort`` leaves elements sorted by falling area.

    Args:
        areas: (M,) int64.

    Returns:
        (M,) int64: the indices of the elements, the largest area first.
    """
    order = np.array(_partitioned(areas.tolist()), np.int64)
    return order[np.argsort(-areas[order], kind="stable")]  # the insertion sort is stable


def _partitioned(areas: Sequence[int]) -> list[int]:
    """Return the order (M,) after the first half of std::sort: parts of at most 16, none above the one before."""
    order = list(range(len(areas)))
    parts = [(0, len(order), 2 * (len(order).bit_length() - 1))]
    while parts:
        first, last, rounds = parts.pop()
        if last - first <= _SHORT:
            continue
        if rounds == 0:  # too many bad pivots
            order[first:last] = _heap_sorted(order[first:last], areas)
            continue
        cut = _cut(order, areas, first, last)
        parts += [(first, cut, rounds - 1), (cut, last, rounds - 1)]
    return order


def _cut(order: list[int], areas: Sequence[int], first: int, last: int) -> int:
    """Reorder ``order[first:last]`` so that no area from the returned position on is above one before it."""
    pivot = _median(order, areas, first + 1, first + (last - first) // 2, last - 1)
    order[first], order[pivot] = order[pivot], order[first]
    area = areas[order[first]]
    left, right = first + 1, last - 1
    while True:
        while areas[order[left]] > area:
            left += 1
        while areas[order[right]] < area:
            right -= 1
        if left >= right:
            return left
        order[left], order[right] = order[right], order[left]
        left, right = left + 1, right - 1


def _median(order: list[int], areas: Sequence[int], i: int, j: int, k: int) -> int:
    """Return which of three positions has the median area; of equal ones, the one that libstdc++ takes."""
    a, b, c = (areas[order[position]] for position in (i, j, k))
    if a > b:
        return j if b > c else k if a > c else i
    return i if a > c else k if b > c else j


def _heap_sorted(order: list[int], areas: Sequence[int]) -> list[int]:
    """Sort by falling area, with equal areas in the order in which libstdc++'s heap (smallest on top) leaves them."""
    heap = order.copy()
    for top in reversed(range(len(heap) // 2)):
        _sift(heap, areas, top, len(heap), heap[top])
    for end in reversed(range(1, len(heap))):
        item, heap[end] = heap[end], heap[0]
        _sift(heap, areas, 0, end, item)
    return heap


def _sift(heap: list[int], areas: Sequence[int], top: int, end: int, item: int) -> None:
    """Put ``item`` into the free slot ``top``: the slot sinks to a leaf of ``heap[:end]``, then the item rises."""
    slot = top
    while (child := 2 * slot + 1) < end:
        if child + 1 < end and areas[heap[child + 1]] <= areas[heap[child]]:
            child += 1
        heap[slot] = heap[child]
        slot = child
    while slot > top and areas[heap[parent := (slot - 1) // 2]] > areas[item]:
        heap[slot] = heap[parent]
        slot = parent
    heap[slot] = item
