"""Activations. Where the output tells the slope, it is taken from there: the input need not be kept for it."""

from __future__ import annotations

import math

import onnx

from camrt.graph.rules.registry import rule
from camrt.graph.step import Step


@rule("Relu")
def relu(step: Step, gradient: str) -> str:
    """The slope is 1 where x > 0, else 0."""
    positive = step.builder.node("Cast", [step.output], to=onnx.TensorProto.BOOL)  # a little faster than Sign
    return step.times(gradient, step.mask(positive))


@rule("LeakyRelu")
def leaky_relu(step: Step, gradient: str) -> str:
    """The slope is 1 where x > 0, else alpha."""
    alpha = step.attributes.get("alpha", 0.01)
    source = step.output if alpha > 0 else step.inputs[0]
    return step.times(gradient, step.where(step.node("Greater", source, 0), 1, alpha))


@rule("PRelu")
def prelu(step: Step, gradient: str) -> list[str | None]:
    """The slope is 1 where x > 0, else what the second input says; that one's is min(x, 0)."""
    x, slope = step.inputs
    found: list[str | None] = [None, None]
    if step.wants(0):
        found[0] = step.times(gradient, step.where(step.node("Greater", x, 0), 1, slope))
    if step.wants(1):
        found[1] = step.fit(step.times(gradient, step.node("Min", x, 0)), slope)
    return found


@rule("ThresholdedRelu")
def thresholded_relu(step: Step, gradient: str) -> str:
    """The slope is 1 where x > alpha, else 0."""
    above = step.node("Greater", step.inputs[0], step.attributes.get("alpha", 1.0))
    return step.times(gradient, step.mask(above))


@rule("Elu")
def elu(step: Step, gradient: str) -> str:
    """The slope is 1 where x > 0, else alpha e^x = y + alpha."""
    below = step.node("Add", step.output, step.attributes.get("alpha", 1.0))
    return step.times(gradient, step.where(step.node("Greater", step.inputs[0], 0), 1, below))


@rule("Selu")
def selu(step: Step, gradient: str) -> str:
    """The slope is gamma where x > 0, else gamma alpha e^x = y + gamma alpha."""
    gamma = step.attributes.get("gamma", 1.0507009873554805)
    below = step.node("Add", step.output, gamma * step.attributes.get("alpha", 1.6732632423543772))
    return step.times(gradient, step.where(step.node("Greater", step.inputs[0], 0), gamma, below))


@rule("Celu")
def celu(step: Step, gradient: str) -> str:
    """The slope is 1 where x > 0, else e^(x / alpha) = y / alpha + 1."""
    below = step.node("Add", step.node("Div", step.output, step.attributes.get("alpha", 1.0)), 1)
    return step.times(gradient, step.where(step.node("Greater", step.inputs[0], 0), 1, below))


@rule("Sigmoid")
def sigmoid(step: Step, gradient: str) -> str:
    """The slope is y (1 - y)."""
    return step.times(gradient, _logistic_slope(step, step.output))


@rule("Tanh")
def tanh(step: Step, gradient: str) -> str:
    """The slope is 1 - y^2."""
    return step.times(gradient, _tanh_slope(step, step.output))


@rule("HardSigmoid")
def hard_sigmoid(step: Step, gradient: str) -> str:
    """The slope is alpha where 0 < y < 1, else 0."""
    inside = step.node("And", step.node("Greater", step.output, 0), step.node("Less", step.output, 1))
    return step.times(gradient, step.where(inside, step.attributes.get("alpha", 0.2), 0))


@rule("HardSwish")
def hard_swish(step: Step, gradient: str) -> str:
    """The slope is 0 below -3, 1 above 3, and x / 3 + 1/2 between."""
    x = step.inputs[0]
    between = step.node("Add", step.node("Div", x, 3), 0.5)
    upper = step.where(step.node("LessOrEqual", x, 3), between, 1)
    return step.times(gradient, step.where(step.node("Less", x, -3), 0, upper))


@rule("Swish")
def swish(step: Step, gradient: str) -> str:
    """The slope is s + alpha x s (1 - s), with s = 1 / (1 + e^(-alpha x))."""
    x, alpha = step.inputs[0], step.attributes.get("alpha", 1.0)
    scaled = step.node("Mul", x, alpha)
    gate = step.node("Sigmoid", scaled)
    return step.times(gradient, step.node("Add", gate, step.node("Mul", scaled, _logistic_slope(step, gate))))


@rule("Mish")
def mish(step: Step, gradient: str) -> str:
    """The slope is t + x s (1 - t^2), with t = tanh(log(1 + e^x)), s = 1 / (1 + e^-x)."""
    x = step.inputs[0]
    squashed = step.node("Tanh", step.node("Softplus", x))
    slope = step.node("Mul", step.node("Sigmoid", x), _tanh_slope(step, squashed))
    return step.times(gradient, step.node("Add", squashed, step.node("Mul", x, slope)))


@rule("Clip", restrictions="of the bounds no gradient; at a bound the slope is 1")
def clip(step: Step, gradient: str) -> str:
    """The slope is 1 between the bounds, else 0."""
    if step.wants(1) or step.wants(2):
        raise step.error("a gradient of the bounds is not supported")
    inside = []
    if step.has(1):
        inside.append(step.node("GreaterOrEqual", step.inputs[0], step.inputs[1]))
    if step.has(2):
        inside.append(step.node("LessOrEqual", step.inputs[0], step.inputs[2]))
    if not inside:
        return gradient
    return step.times(gradient, step.mask(inside[0] if len(inside) == 1 else step.node("And", *inside)))


@rule("Softplus")
def softplus(step: Step, gradient: str) -> str:
    """The slope is 1 / (1 + e^-x)."""
    return step.times(gradient, step.node("Sigmoid", step.inputs[0]))


@rule("Softsign")
def softsign(step: Step, gradient: str) -> str:
    """The slope is 1 / (1 + |x|)^2 = (1 - |y|)^2."""
    rest = step.node("Sub", 1, step.node("Abs", step.output))
    return step.times(gradient, step.node("Mul", rest, rest))


@rule("Erf")
def erf(step: Step, gradient: str) -> str:
    """The slope is 2 / sqrt(pi) e^(-x^2)."""
    x = step.inputs[0]
    bell = step.node("Exp", step.node("Neg", step.node("Mul", x, x)))
    return step.times(gradient, step.node("Mul", bell, 2 / math.sqrt(math.pi)))


@rule("Gelu")
def gelu(step: Step, gradient: str) -> str:
    """The slope is Phi(x) + x phi(x), the normal distribution and its density; or that of the approximation by tanh."""
    x = step.inputs[0]
    square = step.node("Mul", x, x)
    if step.attributes.get("approximate", "none") == "tanh":
        scale, cubic = math.sqrt(2 / math.pi), 0.044715
        inner = step.node("Mul", step.node("Mul", x, scale), step.node("Add", step.node("Mul", square, cubic), 1))
        squashed = step.node("Tanh", inner)
        outer = step.node("Add", step.node("Mul", square, 3 * cubic * scale), scale)
        rest = step.node("Mul", step.node("Mul", x, outer), _tanh_slope(step, squashed))
        return step.times(gradient, step.node("Mul", step.node("Add", step.node("Add", squashed, 1), rest), 0.5))
    normal = step.node("Mul", step.node("Add", step.node("Erf", step.node("Mul", x, math.sqrt(0.5))), 1), 0.5)
    density = step.node("Mul", step.node("Exp", step.node("Mul", square, -0.5)), 1 / math.sqrt(2 * math.pi))
    return step.times(gradient, step.node("Add", normal, step.node("Mul", x, density)))


@rule("Softmax")
def softmax(step: Step, gradient: str) -> str:
    """From g comes y (g - sum of g y along the axis)."""
    axis = step.axis(step.attributes.get("axis", -1))
    step.apart([axis])
    total = step.builder.reduce("Sum", step.times(gradient, step.output), [axis], keepdims=True)
    return step.times(step.node("Sub", gradient, total), step.output)


@rule("LogSoftmax")
def log_softmax(step: Step, gradient: str) -> str:
    """From g comes g - e^y times the sum of g along the axis."""
    axis = step.axis(step.attributes.get("axis", -1))
    step.apart([axis])
    total = step.builder.reduce("Sum", gradient, [axis], keepdims=True)
    share = step.repeated(step.node("Exp", step.output), step.output)
    return step.node("Sub", gradient, step.node("Mul", share, total))


def _logistic_slope(step: Step, gate: str) -> str:
    return step.node("Mul", gate, step.node("Sub", 1, gate))


def _tanh_slope(step: Step, squashed: str) -> str:
    return step.node("Sub", 1, step.node("Mul", squashed, squashed))
