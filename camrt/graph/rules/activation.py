"""Activations. Where the output tells the slope, it is taken from there: the input need not be kept for it."""

from __future__ import annotations

import functools
import math
import operator

from onnx import TensorProto

from camrt.graph.rules.registry import Cotangents, rule, slope, unsupported, vjp
from camrt.graph.values import Value

SELU = {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}  # ONNX's defaults

slope("Relu", "1 where x > 0, else 0", lambda y, x: y.cast(TensorProto.BOOL))  # a little faster than a comparison
slope(
    "LeakyRelu",
    "1 where x > 0, else alpha",
    lambda y, x, alpha=0.01: ((y if alpha > 0 else x) > 0).where(1, alpha),
)
slope("ThresholdedRelu", "1 where x > alpha, else 0", lambda y, x, alpha=1.0: x > alpha)
slope("Shrink", "1 where |x| > lambd, else 0", lambda y, x, lambd=0.5, bias=0.0: abs(x) > lambd)
slope("Elu", "1 where x > 0, else alpha e^x = y + alpha", lambda y, x, alpha=1.0: (x > 0).where(1, y + alpha))
slope(
    "Selu",
    "gamma where x > 0, else gamma alpha e^x = y + gamma alpha",
    lambda y, x, alpha=SELU["alpha"], gamma=SELU["gamma"]: (x > 0).where(gamma, y + gamma * alpha),
)
slope(
    "Celu", "1 where x > 0, else e^(x / alpha) = y / alpha + 1", lambda y, x, alpha=1.0: (x > 0).where(1, y / alpha + 1)
)
slope("Sigmoid", "y (1 - y)", lambda y, x: y * (1 - y))
slope("Tanh", "1 - y^2", lambda y, x: 1 - y * y)
slope(
    "HardSigmoid",
    "alpha where 0 < y < 1, else 0",
    lambda y, x, alpha=0.2, beta=0.5: ((y > 0) & (y < 1)).where(alpha, 0),
)
slope(
    "HardSwish",
    "0 below -3, 1 above 3, and x / 3 + 1/2 between",
    lambda y, x: (x < -3).where(0, (x <= 3).where(x / 3 + 0.5, 1)),
)
slope("Softplus", "1 / (1 + e^-x)", lambda y, x: x.op("Sigmoid"))
slope("Softsign", "1 / (1 + |x|)^2 = (1 - |y|)^2", lambda y, x: (1 - abs(y)) * (1 - abs(y)))
slope("Erf", "2 / sqrt(pi) e^(-x^2)", lambda y, x: (-(x * x)).exp() * (2 / math.sqrt(math.pi)))


vjp(
    "PRelu",
    "The slope is 1 where x > 0, else what the second input says; that one's is min(x, 0).",
    lambda g, y, x, alpha: (g * (x > 0).where(1, alpha), g * x.minimum(0)),
)


@rule("Swish")
def swish(g: Value, y: Value, x: Value, *, alpha: float = 1.0) -> Value:
    """The slope is s + alpha x s (1 - s), with s = 1 / (1 + e^(-alpha x))."""
    z = x * alpha
    s = z.op("Sigmoid")
    return g * (s + z * s * (1 - s))


@rule("Mish")
def mish(g: Value, y: Value, x: Value) -> Value:
    """The slope is t + x s (1 - t^2), with t = tanh(log(1 + e^x)), s = 1 / (1 + e^-x)."""
    t, s = x.op("Softplus").op("Tanh"), x.op("Sigmoid")
    return g * (t + x * s * (1 - t * t))


@rule("Gelu")
def gelu(g: Value, y: Value, x: Value, *, approximate: str = "none") -> Value:
    """The slope is Phi(x) + x phi(x), the normal distribution and its density; or that of the approximation by tanh."""
    square = x * x
    if approximate == "tanh":
        scale, cubic = math.sqrt(2 / math.pi), 0.044715
        t = (x * scale * (square * cubic + 1)).op("Tanh")
        return g * ((t + 1 + x * (square * (3 * cubic * scale) + scale) * (1 - t * t)) * 0.5)
    normal = ((x * math.sqrt(0.5)).op("Erf") + 1) * 0.5
    density = (square * -0.5).exp() * (1 / math.sqrt(2 * math.pi))
    return g * (normal + x * density)


@rule("Clip", restrictions="of the bounds no gradient; at a bound the slope is 1")
def clip(g: Value, y: Value, x: Value, low: Value | None = None, high: Value | None = None) -> Cotangents:
    """The slope is 1 between the bounds, else 0."""
    inside = [x >= low] if low else []
    inside += [x <= high] if high else []
    bound = unsupported("a gradient of the bounds is not supported")
    return g * functools.reduce(operator.and_, inside) if inside else g, bound, bound


vjp(
    "Softmax",
    "From g comes y (g - sum of g y along the axis).",
    lambda g, y, x, *, axis=-1: y * (g - (g * y).sum(axis, keepdims=True)),
)
vjp(
    "LogSoftmax",
    "From g comes g - e^y times the sum of g along the axis.",
    lambda g, y, x, *, axis=-1: g - y.exp() * g.sum(axis, keepdims=True),
)
