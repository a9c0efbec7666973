"""Normalization by the statistics of a batch, an image, a group of channels, or neighbouring channels."""

from __future__ import annotations

from collections.abc import Sequence

from camrt.graph.rules.registry import rule
from camrt.graph.step import Step


@rule("BatchNormalization", restrictions="not in training mode")
def batch_normalization(step: Step, gradient: str) -> Sequence[str | None]:
    """The slope is scale / sqrt(variance + epsilon), for every pixel of a channel."""
    if step.attributes.get("training_mode", 0):
        raise step.error("found training_mode=1, expected a model for inference: export it in eval mode")
    x, scale, _, average, variance = step.inputs
    rank = step.rank(x)
    inverse = _inverse_root(step, variance, step.attributes.get("epsilon", 1e-5))
    found: list[str | None] = [None] * 5
    if step.wants(0):
        found[0] = step.node("Mul", gradient, _channels(step, step.node("Mul", scale, inverse), rank))
    if not any(step.wants(index) for index in range(1, 5)):
        return found
    step.apart([0])
    others = [0, *range(2, rank)]
    total = step.builder.reduce("Sum", gradient, others)
    centred = step.node("Sub", x, _channels(step, average, rank))
    along = step.builder.reduce("Sum", step.node("Mul", gradient, centred), others)
    found[1] = step.node("Mul", along, inverse)
    found[2] = total
    found[3] = step.node("Neg", step.node("Mul", total, step.node("Mul", scale, inverse)))
    cube = step.node("Mul", inverse, step.node("Mul", inverse, inverse))
    found[4] = step.node("Mul", step.node("Mul", along, step.node("Mul", scale, cube)), -0.5)
    return found


@rule("InstanceNormalization")
def instance_normalization(step: Step, gradient: str) -> Sequence[str | None]:
    """Back through the mean and the variance of each map of each image."""
    x, scale = step.inputs[:2]
    rank = step.rank(x)
    scaled = step.node("Mul", gradient, _channels(step, scale, rank))
    return _normalized(step, gradient, scaled, step.repeated(x), range(2, rank), [0, *range(2, rank)])


@rule("LayerNormalization")
def layer_normalization(step: Step, gradient: str) -> Sequence[str | None]:
    """Back through the mean and the variance along the last axes."""
    x, scale = step.inputs[:2]
    rank = step.rank(x)
    first = step.attributes.get("axis", -1) % rank
    scaled = step.node("Mul", gradient, scale)
    return _normalized(step, gradient, scaled, step.repeated(x), range(first, rank), range(first))


@rule("RMSNormalization")
def rms_normalization(step: Step, gradient: str) -> Sequence[str | None]:
    """Back through the mean square along the last axes."""
    x, scale = step.inputs[:2]
    rank = step.rank(x)
    first = step.attributes.get("axis", -1) % rank
    scaled = step.node("Mul", gradient, scale)
    return _normalized(step, gradient, scaled, step.repeated(x), range(first, rank), range(first), centred=False)


@rule("MeanVarianceNormalization")
def mean_variance_normalization(step: Step, gradient: str) -> Sequence[str | None]:
    """Back through the mean and the variance along some axes."""
    axes = [step.axis(axis) for axis in step.attributes.get("axes", [0, 2, 3])]
    step.apart(axes)
    return _normalized(step, gradient, gradient, step.repeated(step.inputs[0]), axes, [], epsilon=1e-9)[:1]


@rule("GroupNormalization", restrictions="one scale a channel (opset 21)")
def group_normalization(step: Step, gradient: str) -> Sequence[str | None]:
    """Back through the mean and the variance of each group of channels."""
    x, scale = step.inputs[:2]
    rank, groups = step.rank(x), int(step.attributes["num_groups"])
    channels, *sizes = step.fixed(x, range(1, rank))
    if step.fixed(scale, [0])[0] != channels:
        raise step.error("found one scale a group, as in opset 18 to 20, expected one a channel: export with opset 21")
    apart = [-1, groups, channels // groups, *sizes]
    image = step.builder.reshape(step.repeated(x), *apart)
    scaled = step.builder.reshape(step.node("Mul", gradient, _channels(step, scale, rank)), *apart)
    whole = step.builder.reshape(gradient, *apart)
    found = _normalized(step, whole, scaled, image, range(2, rank + 1), [0, *range(3, rank + 1)])
    flat = [step.builder.reshape(one, channels) if one is not None else None for one in found[1:]]
    return [None if found[0] is None else step.reshape_as(found[0], x), *flat]


def _normalized(
    step: Step,
    gradient: str,
    scaled: str,
    x: str,
    axes: Sequence[int],
    others: Sequence[int],
    *,
    centred: bool = True,
    epsilon: float | None = None,
) -> list[str | None]:
    """Gradients at input, scale and bias of ``scale * (x - mean) / sqrt(variance + epsilon) + bias``.

    With u the normalised input and h the gradient times the scale: (h - mean(h) - u mean(h u)) / deviation. Without a
    mean in the forward pass, mean(h) is left out.

    Args:
        step: The node.
        gradient: What comes in.
        scaled: That times the scale.
        x: The input, with a row for each gradient.
        axes: Those that mean and variance are taken along.
        others: Those that the gradients of scale and bias are summed along.
        centred: Whether the mean is subtracted.
        epsilon: Added to the variance; by default the attribute.
    """
    reduce = step.builder.reduce
    if centred:
        x = step.node("Sub", x, reduce("Mean", x, axes, keepdims=True))
    variance = reduce("Mean", step.node("Mul", x, x), axes, keepdims=True)
    inverse = _inverse_root(step, variance, step.attributes.get("epsilon", 1e-5) if epsilon is None else epsilon)
    unit = step.node("Mul", x, inverse)
    found: list[str | None] = [None, None, None]
    if step.wants(0):
        along = reduce("Mean", step.node("Mul", scaled, unit), axes, keepdims=True)
        rest = step.node("Sub", scaled, step.node("Mul", unit, along))
        if centred:
            rest = step.node("Sub", rest, reduce("Mean", scaled, axes, keepdims=True))
        found[0] = step.node("Mul", rest, inverse)
    if step.wants(1):
        step.apart([0])
        found[1] = reduce("Sum", step.node("Mul", gradient, unit), others)
    if step.wants(2):
        step.apart([0])
        found[2] = reduce("Sum", gradient, others)
    return found


def _inverse_root(step: Step, variance: str, epsilon: float) -> str:
    return step.node("Reciprocal", step.node("Sqrt", step.node("Add", variance, epsilon)))


def _channels(step: Step, tensor: str, rank: int) -> str:
    """One value a channel, to be broadcast over an image."""
    return step.builder.reshape(tensor, -1, *[1] * (rank - 2)) if rank > 2 else tensor


@rule("LRN")
def local_response_normalization(step: Step, gradient: str) -> str:
    """From g comes s^-beta g - 2 alpha beta x m(g y / s), where y = x s^-beta, s = bias + alpha m(x^2).

    m is the mean over the channels near by.
    """
    x, size = step.inputs[0], int(step.attributes["size"])
    alpha, beta = step.attributes.get("alpha", 1e-4), step.attributes.get("beta", 0.75)
    base = _over_channels(step, step.node("Mul", x, x), size, front=(size - 1) // 2)
    base = step.node("Add", step.node("Mul", base, alpha), step.attributes.get("bias", 1.0))
    power = step.node("Pow", base, -beta)
    inner = step.times(gradient, step.node("Div", step.node("Mul", x, power), base))
    around = _over_channels(step, inner, size, front=size // 2)  # whose windows hold this channel: the other way round
    back = step.times(around, step.node("Mul", x, 2 * alpha * beta))
    return step.node("Sub", step.times(gradient, power), back)


def _over_channels(step: Step, tensor: str, size: int, front: int) -> str:
    """The sum over ``size`` neighbouring channels, ``front`` of them before each, divided by ``size``."""
    shape = step.shape(step.output)
    (channels,) = step.fixed(step.output, [1])
    flat = step.builder.reshape(tensor, 0, 1, channels, -1)
    mean = step.builder.node(
        "AveragePool",
        [flat],
        kernel_shape=[size, 1],
        pads=[front, 0, size - 1 - front, 0],
        count_include_pad=1,
    )
    if len(shape) == 4 or shape.count(None) <= 1:
        return step.reshape_as(mean, step.output)
    raise step.error(f"found an input of shape {Step.describe(shape)}, expected known sizes")
