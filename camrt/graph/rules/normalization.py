"""Normalization by the statistics of a batch, an image, a group of channels, or neighbouring channels."""

from __future__ import annotations

from collections.abc import Sequence

from camrt.errors import CamrtError
from camrt.graph.rules.registry import Cotangents, rule, vjp
from camrt.graph.values import Value


@rule("BatchNormalization", restrictions="not in training mode")
def batch_normalization(
    g: Value, y: Value, x: Value, scale: Value, bias: Value, mean: Value, variance: Value,
    *, epsilon: float = 1e-5, training_mode: int = 0,
) -> Cotangents:  # fmt: skip
    """The slope is scale / sqrt(variance + epsilon), for every pixel of a channel."""
    if training_mode:
        raise CamrtError("found training_mode=1, expected a model for inference: export it in eval mode")
    inverse = 1 / (variance + epsilon).sqrt()
    to_bias = _per_channel(g)
    moment = _per_channel(g * (x - _channels(mean, x)))
    return (
        g * _channels(scale * inverse, x),
        moment * inverse,
        to_bias,
        -to_bias * (scale * inverse),
        moment * (scale * inverse * inverse * inverse * -0.5),
    )


@rule("InstanceNormalization")
def instance_normalization(
    g: Value, y: Value, x: Value, scale: Value, bias: Value, *, epsilon: float = 1e-5
) -> Cotangents:
    """Back through the mean and the variance of each map of each image."""
    to_x, unit = _normalized(g * _channels(scale, x), x, range(2, x.rank), epsilon)
    return to_x, _per_channel(g * unit), _per_channel(g)


@rule("LayerNormalization")
def layer_normalization(
    g: Value, y: Value, x: Value, scale: Value, bias: Value | None = None, *, axis: int = -1, epsilon: float = 1e-5
) -> Cotangents:
    """Back through the mean and the variance along the last axes."""
    to_x, unit = _normalized(g * scale, x, range(x.axis(axis), x.rank), epsilon)
    return to_x, g * unit, g


@rule("RMSNormalization")
def rms_normalization(
    g: Value, y: Value, x: Value, scale: Value, *, axis: int = -1, epsilon: float = 1e-5
) -> Cotangents:
    """Back through the mean square along the last axes."""
    to_x, unit = _normalized(g * scale, x, range(x.axis(axis), x.rank), epsilon, centred=False)
    return to_x, g * unit


vjp(
    "MeanVarianceNormalization",
    "Back through the mean and the variance along some axes.",
    lambda g, y, x, *, axes=(0, 2, 3): _normalized(g, x, axes, 1e-9)[0],
)


@rule("GroupNormalization", restrictions="one scale a channel (opset 21)")
def group_normalization(
    g: Value, y: Value, x: Value, scale: Value, bias: Value, *, num_groups: int, epsilon: float = 1e-5
) -> Cotangents:
    """Back through the mean and the variance of each group of channels."""
    channels, *sizes = x.fixed(*range(1, x.rank))
    if scale.fixed(0)[0] != channels:
        raise CamrtError("found one scale a group, as in opset 18 to 20, expected one a channel: export with opset 21")
    apart = (None, num_groups, channels // num_groups, *sizes)
    scaled = (g * _channels(scale, x)).reshape(*apart)
    to_x, unit = _normalized(scaled, x.reshape(*apart), range(2, len(apart)), epsilon)
    return to_x.reshape_as(x), _per_channel(g * unit.reshape_as(x)), _per_channel(g)


def _normalized(
    h: Value, x: Value, axes: Sequence[int], epsilon: float, *, centred: bool = True
) -> tuple[Value, Value]:
    """The cotangent at x of ``u = (x - mean) / sqrt(variance + epsilon)``, and u.

    With h the cotangent at u, and s the root: (h - mean(h) - u mean(h u)) / s. Without a mean in the forward pass,
    mean(h) is left out.
    """
    x = x - x.mean(*axes, keepdims=True) if centred else x
    inverse = 1 / ((x * x).mean(*axes, keepdims=True) + epsilon).sqrt()
    u = x * inverse
    rest = h - u * (h * u).mean(*axes, keepdims=True)
    return (rest - h.mean(*axes, keepdims=True) if centred else rest) * inverse, u


def _channels(v: Value, x: Value) -> Value:
    """One value a channel, to be broadcast over an image."""
    return v.reshape(-1, *[1] * (x.rank - 2)) if x.rank > 2 else v


def _per_channel(v: Value) -> Value:
    """The sum for each channel."""
    return v.sum(0, *range(2, v.rank))


@rule("LRN")
def local_response_normalization(
    g: Value, y: Value, x: Value, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Value:
    """From g comes s^-beta g - 2 alpha beta x m(g y / s), where y = x s^-beta, s = bias + alpha m(x^2).

    m is the mean over the channels near by.
    """
    s = _mean_of_channels(x * x, size, (size - 1) // 2) * alpha + bias
    power = s**-beta
    around = _mean_of_channels(g * (x * power / s), size, size // 2)  # whose windows hold this channel
    return g * power - around * (x * (2 * alpha * beta))


def _mean_of_channels(v: Value, size: int, front: int) -> Value:
    """The sum over ``size`` neighbouring channels, ``front`` of them before each, divided by ``size``."""
    (channels,) = v.fixed(1)

    def mean(images: Value) -> Value:
        flat = images.builder.reshape(images.name, 0, 1, channels, -1)
        pads = [front, 0, size - 1 - front, 0]
        pooled = images.builder.node("AveragePool", [flat], kernel_shape=[size, 1], pads=pads, count_include_pad=1)
        return Value(images.builder, pooled, (None, 1, channels, None), images.kind).reshape_as(images)

    return v.per_image(mean)
