"""Reductions along axes."""

from __future__ import annotations

import numpy as np

from camrt.graph.rules.registry import rule
from camrt.graph.step import Step


@rule("ReduceSum")
def reduce_sum(step: Step, gradient: str) -> str:
    """The same to every element."""
    return step.expand_as(_kept(step, gradient), step.inputs[0])


@rule("ReduceMean")
def reduce_mean(step: Step, gradient: str) -> str:
    """The same share to every element."""
    share = step.shared_out(gradient, _axes(step))
    return step.expand_as(_kept(step, share), step.inputs[0])


@rule("ReduceMax", "ReduceMin", restrictions="where several are equal, they share the gradient")
def reduce_extremum(step: Step, gradient: str) -> str:
    """To the element that was taken; several equal ones share it."""
    x, axes = step.inputs[0], _axes(step)
    taken = step.mask(step.builder.node("Equal", [x, _kept(step, step.output)]))
    number = step.builder.reduce("Sum", taken, axes, keepdims=True) if axes else taken
    return _times(step, gradient, step.node("Div", taken, number))


@rule("ReduceSumSquare")
def reduce_sum_square(step: Step, gradient: str) -> str:
    """The slope is 2 x."""
    return _times(step, gradient, step.node("Mul", step.inputs[0], 2))


@rule("ReduceL1")
def reduce_l1(step: Step, gradient: str) -> str:
    """The slope is the sign of x."""
    return _times(step, gradient, step.node("Sign", step.inputs[0]))


@rule("ReduceL2")
def reduce_l2(step: Step, gradient: str) -> str:
    """The slope is x / y; 0 where all are 0."""
    least = float(np.finfo(step.dtype()).tiny)
    norm = step.node("Max", _kept(step, step.output), least)
    return _times(step, gradient, step.node("Div", step.inputs[0], norm))


@rule("ReduceProd", restrictions="no element may be 0")
def reduce_prod(step: Step, gradient: str) -> str:
    """The slope is y / x."""
    return _times(step, gradient, step.node("Div", _kept(step, step.output), step.inputs[0]))


@rule("ReduceLogSum")
def reduce_log_sum(step: Step, gradient: str) -> str:
    """The slope is 1 / sum = e^-y."""
    share = step.node("Exp", step.node("Neg", _kept(step, step.output)))
    zeros = step.node("Mul", step.inputs[0], 0)
    return _times(step, gradient, step.node("Add", zeros, share))


@rule("ReduceLogSumExp")
def reduce_log_sum_exp(step: Step, gradient: str) -> str:
    """The slope is e^(x - y)."""
    return _times(step, gradient, step.node("Exp", step.node("Sub", step.inputs[0], _kept(step, step.output))))


def _times(step: Step, gradient: str, factor: str) -> str:
    """The gradient for every element, times a factor of the input's shape."""
    x = step.inputs[0]
    return step.times(step.expand_as(_kept(step, gradient), x), factor, x, of=x)


def _axes(step: Step) -> list[int]:
    """The axes that were summed over, in order; not the images' with several gradients an image."""
    rank = step.rank(step.inputs[0])
    given = step.attributes.get("axes")
    if given is None and step.has(1):
        given = step.known(1, "axes").tolist()
    if not given:
        given = [] if step.attributes.get("noop_with_empty_axes", 0) else range(rank)
    axes = sorted(axis % rank for axis in given) if rank else []
    step.apart(axes)
    return axes


def _kept(step: Step, tensor: str) -> str:
    """The output, or its gradient, with the axes that were summed over as axes of size 1."""
    axes = _axes(step)
    return tensor if step.attributes.get("keepdims", 1) or not axes else step.builder.unsqueeze(tensor, *axes)
