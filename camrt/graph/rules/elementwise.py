"""Arithmetic, element by element, with broadcasting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from camrt.graph.rules.registry import rule
from camrt.graph.step import Step


@rule("Add")
def add(step: Step, gradient: str) -> Sequence[str | None]:
    """Each term's slope is 1."""
    return _shared(step, gradient)


def _shared(step: Step, gradient: str) -> Sequence[str | None]:
    return [step.fit(gradient, name) if step.wants(index) else None for index, name in enumerate(step.inputs)]


@rule("Sum")
def sum_(step: Step, gradient: str) -> Sequence[str | None]:
    """Each term's slope is 1."""
    return _shared(step, gradient)


@rule("Mean")
def mean(step: Step, gradient: str) -> Sequence[str | None]:
    """Each term's slope is 1 / their number."""
    return _shared(step, step.node("Div", gradient, len(step.inputs)))


@rule("Sub")
def sub(step: Step, gradient: str) -> Sequence[str | None]:
    """The slopes are 1 and -1."""
    found: list[str | None] = [None, None]
    if step.wants(0):
        found[0] = step.fit(gradient, step.inputs[0])
    if step.wants(1):
        found[1] = step.node("Neg", step.fit(gradient, step.inputs[1]))
    return found


@rule("Mul")
def mul(step: Step, gradient: str) -> Sequence[str | None]:
    """Each factor's slope is the other."""
    found: list[str | None] = [None, None]
    for this, other in ((0, 1), (1, 0)):
        if step.wants(this):
            product = step.times(gradient, step.inputs[other], step.inputs[other])
            found[this] = step.fit(product, step.inputs[this])
    return found


@rule("Div")
def div(step: Step, gradient: str) -> Sequence[str | None]:
    """The slopes are 1 / b and -y / b."""
    a, b = step.inputs
    found: list[str | None] = [None, None]
    if step.wants(0):
        found[0] = step.fit(step.combine("Div", gradient, b, b), a)
    if step.wants(1):
        share = step.node("Neg", step.node("Div", step.output, b))
        found[1] = step.fit(step.times(gradient, share), b)
    return found


@rule("Pow", restrictions="of the exponent only where the base is not negative")
def pow_(step: Step, gradient: str) -> Sequence[str | None]:
    """The slopes are b a^(b - 1) and y log a."""
    a, b = step.inputs
    found: list[str | None] = [None, None]
    if step.wants(0) and (slope := _power_slope(step)) is not None:
        found[0] = step.fit(step.times(gradient, *slope), a)
    if step.wants(1):
        is_zero = step.builder.node("Equal", [a, step.scalar(0, a)])
        growth = step.node("Mul", step.output, step.node("Log", step.where(is_zero, 1, a)))
        found[1] = step.fit(step.times(gradient, growth), b)
    return found


def _power_slope(step: Step) -> tuple[str, str] | None:
    """The slope b a^(b - 1), and the tensor whose shape it has; None where it is zero everywhere."""
    a, exponents = step.inputs[0], step.value(1)
    if exponents is None:
        b = step.builder.node("Cast", [step.inputs[1]], to=step.kind())
        less = step.where(step.node("Equal", b, 0), 1, step.node("Sub", b, 1))
        return step.node("Mul", step.node("Pow", a, less), b), step.output
    if not exponents.any():
        return None
    if exponents.size > 1:
        less = step.constant(np.where(exponents == 0, 1, exponents - 1.0))
        return step.node("Mul", step.node("Pow", a, less), step.constant(exponents)), step.output
    exponent = float(exponents.reshape(()))
    power = a if exponent == 2 else step.node("Pow", a, exponent - 1)
    return step.node("Mul", power, exponent), a


@rule("Max", "Min", restrictions="where several are equal, they share the gradient")
def extremum(step: Step, gradient: str) -> Sequence[str | None]:
    """To the one that was taken; several equal ones share it."""
    taken = [step.mask(step.builder.node("Equal", [name, step.output])) for name in step.inputs]
    number = taken[0] if len(taken) == 1 else step.node("Sum", *taken)
    found: list[str | None] = []
    for index, name in enumerate(step.inputs):
        share = step.node("Div", taken[index], number) if step.wants(index) else None
        found.append(None if share is None else step.fit(step.times(gradient, share), name))
    return found


@rule("Where")
def where(step: Step, gradient: str) -> Sequence[str | None]:
    """To the one that was chosen."""
    condition, *values = step.inputs
    found: list[str | None] = [None, None, None]
    for index, name in enumerate(values, 1):
        if step.wants(index):
            chosen = step.mask(condition if index == 1 else step.builder.node("Not", [condition]))
            found[index] = step.fit(step.times(gradient, chosen, condition), name)
    return found


@rule("Neg")
def neg(step: Step, gradient: str) -> str:
    """The slope is -1."""
    return step.node("Neg", gradient)


@rule("Abs")
def abs_(step: Step, gradient: str) -> str:
    """The slope is the sign of x."""
    return step.times(gradient, step.node("Sign", step.inputs[0]))


@rule("Sqrt")
def sqrt(step: Step, gradient: str) -> str:
    """The slope is 1 / (2 y)."""
    return step.combine("Div", gradient, step.node("Mul", step.output, 2))


@rule("Exp")
def exp(step: Step, gradient: str) -> str:
    """The slope is y."""
    return step.times(gradient, step.output)


@rule("Log")
def log(step: Step, gradient: str) -> str:
    """The slope is 1 / x."""
    return step.combine("Div", gradient, step.inputs[0])


@rule("Reciprocal")
def reciprocal(step: Step, gradient: str) -> str:
    """The slope is -y^2."""
    return step.times(gradient, step.node("Neg", step.node("Mul", step.output, step.output)))


@rule("Sin")
def sin(step: Step, gradient: str) -> str:
    """The slope is cos x."""
    return step.times(gradient, step.node("Cos", step.inputs[0]))


@rule("Cos")
def cos(step: Step, gradient: str) -> str:
    """The slope is -sin x."""
    return step.times(gradient, step.node("Neg", step.node("Sin", step.inputs[0])))


@rule("Atan")
def atan(step: Step, gradient: str) -> str:
    """The slope is 1 / (1 + x^2)."""
    x = step.inputs[0]
    return step.combine("Div", gradient, step.node("Add", step.node("Mul", x, x), 1))


@rule("Floor", "Ceil", "Round", "Sign", restrictions="nothing goes further back")
def flat(step: Step, gradient: str) -> None:
    """The slope is 0."""


@rule("CumSum", restrictions="not along the images' axis with several gradients an image")
def cumsum(step: Step, gradient: str) -> str:
    """The running sum from the other end."""
    axis = int(step.known(1, "axes").reshape(()))
    step.apart([axis])
    attributes = {"exclusive": step.attributes.get("exclusive", 0), "reverse": 1 - step.attributes.get("reverse", 0)}
    return step.builder.node("CumSum", [gradient, step.builder.constant(axis, "axis", np.int64)], **attributes)
