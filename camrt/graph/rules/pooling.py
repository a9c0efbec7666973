"""Pooling.

Averages are the same linear function of every line of an image, so that their gradient is a product with a constant
matrix for each axis, whatever the windows' borders and divisors. Maxima scatter their gradient to where they stood.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from camrt.graph.rules.registry import rule
from camrt.graph.step import Step
from camrt.graph.windows import Windows

SCATTER_ADDS = 16  # the opset from which ScatterElements adds


@rule("MaxPool", restrictions="of equal maxima the first gets it all")
def max_pool(step: Step, gradient: str) -> str:
    """To where each maximum stood."""
    windows = Windows.of(step, step.attributes["kernel_shape"], step.inputs[0])
    keep = ("kernel_shape", "strides", "dilations", "pads", "auto_pad", "ceil_mode")
    return _to_maxima(step, gradient, windows, {key: step.attributes.get(key) for key in keep})


@rule("GlobalMaxPool", restrictions="of equal maxima the first gets it all")
def global_max_pool(step: Step, gradient: str) -> str:
    """To where the maximum stood."""
    kernel = step.fixed(step.inputs[0], range(2, step.rank(step.inputs[0])))
    one = (1,) * len(kernel)
    none = (0,) * len(kernel)
    return _to_maxima(step, gradient, Windows(kernel, kernel, one, none, none), {"kernel_shape": kernel})


def _to_maxima(step: Step, gradient: str, windows: Windows, attributes: dict[str, object]) -> str:
    """Pool once more, for the maxima's places in the whole tensor, and add the gradient there."""
    builder = step.builder
    image = step.repeated(step.inputs[0])
    outputs = [builder.name("maxima"), builder.name("places")]
    _, places = builder.nodes_of("MaxPool", [image], outputs, **attributes)
    size = builder.unsqueeze(builder.node("Size", [image]), 0)
    value = _zero(step)
    zeros = builder.node("ConstantOfShape", [size], value=value)
    if windows.is_disjoint or builder.opset >= SCATTER_ADDS:
        reduction = None if windows.is_disjoint else "add"
        flat = [builder.reshape(each, -1) for each in (places, gradient)]
        found = builder.node("ScatterElements", [zeros, *flat], reduction=reduction)
        return step.reshape_as(found, step.inputs[0])
    # Every few windows share nothing with each other: such lots are scattered one by one, and added up.
    lots = []
    apart = [-(-(reach + 1) // stride) for reach, stride in zip(windows.reach, windows.strides, strict=True)]
    axes = range(2, 2 + len(apart))
    for first in product(*map(range, apart)):
        bounds = [first, [np.iinfo(np.int64).max] * len(apart), axes, apart]
        cut = [builder.node("Slice", [each, *(builder.shape(*one) for one in bounds)]) for each in (places, gradient)]
        lots.append(builder.node("ScatterElements", [zeros, *(builder.reshape(each, -1) for each in cut)]))
    return step.reshape_as(builder.node("Sum", lots), step.inputs[0])


def _zero(step: Step) -> object:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.zeros(1, step.dtype()))


@rule("AveragePool")
def average_pool(step: Step, gradient: str) -> str:
    """Each window's gradient, divided by its divisor, to all of its pixels."""
    windows = Windows.of(step, step.attributes["kernel_shape"], step.inputs[0])
    return _spread(step, gradient, windows, divided=True)


@rule("GlobalAveragePool")
def global_average_pool(step: Step, gradient: str) -> str:
    """The same share to every pixel."""
    x = step.inputs[0]
    return step.expand_as(step.shared_out(gradient, range(2, step.rank(x))), x)


@rule("LpPool")
def lp_pool(step: Step, gradient: str) -> str:
    """The window's gradient times sign(x) |x|^(p-1) y^(1-p)."""
    x, power = step.inputs[0], float(step.attributes.get("p", 2))
    windows = Windows.of(step, step.attributes["kernel_shape"], x)
    is_zero = step.node("Equal", step.output, 0)
    inverse = step.node("Pow", step.where(is_zero, 1, step.output), 1 - power)
    spread = _spread(step, step.times(gradient, inverse), windows, divided=False)
    return step.times(spread, _signed_power(step, x, power - 1), x, of=x)


@rule("GlobalLpPool")
def global_lp_pool(step: Step, gradient: str) -> str:
    """The gradient times sign(x) |x|^(p-1) y^(1-p)."""
    x, power = step.inputs[0], float(step.attributes.get("p", 2))
    is_zero = step.node("Equal", step.output, 0)
    inverse = step.node("Pow", step.where(is_zero, 1, step.output), 1 - power)
    spread = step.expand_as(step.times(gradient, inverse), x)
    return step.times(spread, _signed_power(step, x, power - 1), x, of=x)


def _signed_power(step: Step, x: str, power: float) -> str:
    if power == 1:
        return x
    sign = step.node("Sign", x)
    return sign if power == 0 else step.node("Mul", sign, step.node("Pow", step.node("Abs", x), power))


def _spread(step: Step, gradient: str, windows: Windows, *, divided: bool) -> str:
    """Each window's gradient to its pixels, axis by axis."""
    x = step.inputs[0]
    axes = range(2, step.rank(x))
    sizes, outs = step.fixed(x, axes), step.fixed(step.output, axes)
    shape = list(step.shape(step.output))
    for axis, (size, out) in enumerate(zip(sizes, outs, strict=True)):
        matrix = windows.taps(axis, size, out)
        if divided:
            inside = step.attributes.get("count_include_pad", 0)
            divisors = windows.lengths(axis, size, out) if inside else matrix.sum(axis=1)
            matrix = matrix / np.maximum(divisors, 1)[:, None]
        gradient = step.along(gradient, shape, axis + 2, matrix.T)
    return gradient
