"""Reductions along axes. Every slope is a formula of the elements x and their result y, with its axes kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from camrt.graph.rules.registry import vjp
from camrt.graph.values import Value


def reduction(
    operators: str, what: str, slope: Callable[[Value, Value, list[int]], Value | float], *, restrictions: str = ""
) -> None:
    """Register the rule of reductions.

    Args:
        operators: The operators, separated by commas.
        what: What the rule does; for the documentation.
        slope: y with the axes as axes of size 1, x, and the axes -> the slope.
        restrictions: As in `camrt.graph.rules.registry.rule`.
    """

    def reduced(
        g: Value, y: Value, x: Value, axes: Value | Sequence[int] | None = None,
        *, keepdims: int = 1, noop_with_empty_axes: int = 0,
    ) -> Value:  # fmt: skip
        given = axes.known("axes").tolist() if isinstance(axes, Value) else list(axes or ())
        if not given and not noop_with_empty_axes:
            given = list(range(x.rank))
        given = sorted(x.axis(axis) for axis in given) if x.rank else []
        wide = [one if keepdims else one.unsqueeze(*given) for one in (g, y)]
        return wide[0] * slope(wide[1], x, given)

    vjp(operators, what, reduced, restrictions=restrictions)


def _tiny(value: Value) -> float:
    return float(np.finfo(value.dtype).tiny)


def _share(y: Value, x: Value, axes: Sequence[int]) -> Value:
    """1 for the element that was taken; several equal ones share it."""
    taken = x.equals(y).cast(x.kind)
    return taken / taken.sum(*axes, keepdims=True)


reduction("ReduceSum", "The same to every element.", lambda y, x, axes: 1)
reduction("ReduceMean", "The same share to every element.", lambda y, x, axes: 1 / x.count(axes))
reduction("ReduceSumSquare", "The slope is 2 x.", lambda y, x, axes: x * 2)
reduction("ReduceL1", "The slope is the sign of x.", lambda y, x, axes: x.sign())
reduction("ReduceL2", "The slope is x / y; 0 where all are 0.", lambda y, x, axes: x / y.maximum(_tiny(y)))
reduction("ReduceProd", "The slope is y / x.", lambda y, x, axes: y / x, restrictions="no element may be 0")
reduction("ReduceLogSum", "The slope is 1 / sum = e^-y.", lambda y, x, axes: (-y).exp())
reduction("ReduceLogSumExp", "The slope is e^(x - y).", lambda y, x, axes: (x - y).exp())
reduction(
    "ReduceMax, ReduceMin",
    "To the element that was taken; several equal ones share it.",
    _share,
    restrictions="where several are equal, they share the gradient",
)
