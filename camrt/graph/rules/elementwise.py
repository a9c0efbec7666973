"""Arithmetic, element by element, with broadcasting."""

from __future__ import annotations

from camrt.graph.rules.registry import Cotangents, rule, slope, vjp
from camrt.graph.values import Value, total

slope("Neg", "-1", lambda y, x: -1)
slope("Abs", "the sign of x", lambda y, x: x.sign())
slope("Sqrt", "1 / (2 y)", lambda y, x: 0.5 / y)
slope("Exp", "y", lambda y, x: y)
slope("Log", "1 / x", lambda y, x: 1 / x)
slope("Reciprocal", "-y^2", lambda y, x: -(y * y))
slope("Sin", "cos x", lambda y, x: x.op("Cos"))
slope("Cos", "-sin x", lambda y, x: -x.op("Sin"))
slope("Tan", "1 + y^2", lambda y, x: y * y + 1)
slope("Asin", "1 / sqrt(1 - x^2)", lambda y, x: 1 / (1 - x * x).sqrt())
slope("Acos", "-1 / sqrt(1 - x^2)", lambda y, x: -1 / (1 - x * x).sqrt())
slope("Atan", "1 / (1 + x^2)", lambda y, x: 1 / (x * x + 1))
slope("Sinh", "cosh x", lambda y, x: x.op("Cosh"))
slope("Cosh", "sinh x", lambda y, x: x.op("Sinh"))
slope("Asinh", "1 / sqrt(x^2 + 1)", lambda y, x: 1 / (x * x + 1).sqrt())
slope("Acosh", "1 / sqrt(x^2 - 1)", lambda y, x: 1 / (x * x - 1).sqrt())
slope("Atanh", "1 / (1 - x^2)", lambda y, x: 1 / (1 - x * x))


vjp("Add", "Each term's slope is 1.", lambda g, y, a, b: (g, g))
vjp("Sum", "Each term's slope is 1.", lambda g, y, *terms: [g] * len(terms))
vjp("Mean", "Each term's slope is 1 / their number.", lambda g, y, *terms: [g / len(terms)] * len(terms))
vjp("Sub", "The slopes are 1 and -1.", lambda g, y, a, b: (g, -g))
vjp("Mul", "Each factor's slope is the other.", lambda g, y, a, b: (g * b, g * a))
vjp("Div", "The slopes are 1 / b and -y / b.", lambda g, y, a, b: (g / b, g * (-y / b)))


@rule("Pow", restrictions="of the exponent only where the base is not negative")
def pow_(g: Value, y: Value, a: Value, b: Value) -> Cotangents:
    """The slopes are b a^(b - 1) and y log a."""
    return g * _power(a, b) if b.constant is None or b.constant.any() else None, g * y * a.equals(0).where(1, a).log()


def _power(a: Value, b: Value) -> Value:
    """The slope b a^(b - 1), and 0 where b is 0."""
    if b.constant is not None and b.constant.size == 1:
        exponent = float(b.constant.reshape(()))
        return (a if exponent == 2 else a ** (exponent - 1)) * exponent
    b = b.cast(a.kind)
    return a ** b.equals(0).where(1, b - 1) * b


@rule("Max", "Min", restrictions="where several are equal, they share the gradient")
def extremum(g: Value, y: Value, *terms: Value) -> Cotangents:
    """To the one that was taken; several equal ones share it."""
    taken = [each.equals(y).cast(y.kind) for each in terms]
    number = total(taken)
    return [g * (one / number) for one in taken]


vjp(
    "Where",
    "To the one that was chosen.",
    lambda g, y, condition, a, b: (None, condition.where(g, 0), condition.where(0, g)),
)
vjp("Floor, Ceil, Round, Sign", "The slope is 0.", lambda g, y, x: None, restrictions="nothing goes further back")


@rule("CumSum", restrictions="a constant axis")
def cumsum(g: Value, y: Value, x: Value, axis: Value, *, exclusive: int = 0, reverse: int = 0) -> Value:
    """The running sum from the other end."""
    back = g.builder.constant(x.axis(int(axis.known("axes").reshape(()))) - x.rank, "axis", "int64")
    return g.op("CumSum", back, exclusive=exclusive, reverse=1 - reverse)
