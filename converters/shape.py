"""Shapes of tensors, in which the batch size may be symbolic.

A dimension is an `int` or a `SymbolicDim`, a multiple of an input's free axis. Handlers treat both alike. If a
layer needs a number for a symbolic size, it raises `FixedDim`, and the conversion starts again with that axis fixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MAX_AXES = 32  # Caffe's kMaxBlobAxes
MAX_BLOB = 2**31 - 1  # elements; Caffe counts them in an int


@dataclass(frozen=True)
class SymbolicDim:
    """``factor`` times the free axis of an input.

    Attributes:
        input: The input with the axis; or a separate name for a size that is known only at run time.
        size: The size of the axis in the prototxt.
        factor: The multiple of the axis.
    """

    input: str
    size: int
    factor: int = 1

    def __int__(self) -> int:
        return self.size * self.factor


Dim = int | SymbolicDim
Shape = tuple[Dim, ...]


class FixedDim(Exception):
    """A layer needs the size of a free axis as a number.

    Args:
        input: The input with the axis.
        reason: The reason, for the user.
        free_axis: The axis to free instead, or None.
    """

    def __init__(self, input: str, reason: str, free_axis: int | None = None) -> None:
        super().__init__(reason)
        self.input = input
        self.reason = reason
        self.free_axis = free_axis


def times(dim: Dim, factor: int) -> Dim:
    """A size multiplied by a number."""
    return SymbolicDim(dim.input, dim.size, dim.factor * factor) if isinstance(dim, SymbolicDim) else dim * factor


def sizes(shape: Sequence[Dim]) -> tuple[int, ...]:
    """The shape at the batch size of the prototxt."""
    return tuple(int(dim) for dim in shape)


def count(shape: Sequence[Dim]) -> int:
    """The number of elements at the batch size of the prototxt."""
    return math.prod(sizes(shape))


def product(shape: Sequence[Dim]) -> Dim | None:
    """The number of elements; None if it is not a multiple of one free axis."""
    free = [dim for dim in shape if isinstance(dim, SymbolicDim)]
    known = math.prod(dim if isinstance(dim, int) else dim.factor for dim in shape)
    if not free:
        return known
    return SymbolicDim(free[0].input, free[0].size, known) if len(free) == 1 else None


def show(shape: Sequence[Dim]) -> str:
    """Format a shape as ``N x 3 x 224 x 224``, for messages."""
    dims = ["N" if isinstance(dim, SymbolicDim) else str(dim) for dim in shape[:MAX_AXES]]
    return " x ".join(dims) + (" x ..." if len(shape) > MAX_AXES else "") or "()"
