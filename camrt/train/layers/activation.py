"""Elementwise activations, Softmax and Dropout."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from camrt.train.registry import LayerContext, Operation, Weight, builds
from converters.schema.caffe_pb2 import FillerParameter


def _elementwise(context: LayerContext, function: Callable[[Tensor], Tensor]) -> Operation:
    """Return the operation that applies a function to each value of the bottom."""
    context.layer.expect(bottoms=1, tops=1)
    return Operation(lambda blobs, bottoms: function(bottoms[0]))


@builds("ReLU")
def relu(context: LayerContext) -> Operation:
    """max(x, 0) + negative_slope * min(x, 0)."""
    slope, over = context.layer.params.relu_param.negative_slope, context.overwrites
    if slope:
        return _elementwise(context, lambda x: functional.leaky_relu(x, slope, over and slope > 0))
    return _elementwise(context, lambda x: functional.relu(x, over))


@builds("ReLU6")
def relu6(context: LayerContext) -> Operation:
    """min(max(x, 0), 6)."""
    param = context.layer.params.relu6_param
    if param.negative_slope or param.threshold <= 0:
        raise context.error(
            f"found negative_slope {param.negative_slope} and threshold {param.threshold}, expected negative_slope 0 "
            "and a positive threshold"
        )
    return _elementwise(context, lambda x: functional.hardtanh(x, 0.0, param.threshold))


@builds("PReLU")
def prelu(context: LayerContext) -> Operation:
    """ReLU with a learned slope, either per channel or shared by all channels (He et al. 2015)."""
    context.layer.expect(bottoms=1, tops=1)
    param = context.layer.params.prelu_param
    if len(context.shapes[0]) < 2:
        raise context.error(f"found a blob of {len(context.shapes[0])} axis, expected channels at axis 1")
    is_old = bool(context.layer.blobs) and context.layer.blobs[0].shape == (1,)
    shape = ((1,) if is_old else ()) if param.channel_shared else (context.shapes[0][1],)
    filler = param.filler if param.HasField("filler") else FillerParameter(value=0.25)

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        return functional.prelu(bottoms[0], blobs[0].reshape(-1).to(bottoms[0].dtype))

    return Operation(forward, [Weight(shape, filler)])


@builds("ELU")
def elu(context: LayerContext) -> Operation:
    """x where x > 0, else alpha * (e^x - 1)."""
    alpha = context.layer.params.elu_param.alpha
    return _elementwise(context, lambda x: functional.elu(x, alpha))


@builds("Sigmoid")
def sigmoid(context: LayerContext) -> Operation:
    """1 / (1 + e^-x)."""
    return _elementwise(context, torch.sigmoid)


@builds("TanH")
def tanh(context: LayerContext) -> Operation:
    """The hyperbolic tangent."""
    return _elementwise(context, torch.tanh)


@builds("AbsVal")
def absval(context: LayerContext) -> Operation:
    """The absolute value."""
    return _elementwise(context, torch.abs)


@builds("BNLL")
def bnll(context: LayerContext) -> Operation:
    """log(1 + e^x), the binomial normal log likelihood."""
    return _elementwise(context, functional.softplus)


@builds("Swish")
def swish(context: LayerContext) -> Operation:
    """x * sigmoid(beta * x) (Ramachandran et al. 2017)."""
    beta = context.layer.params.swish_param.beta
    return _elementwise(context, functional.silu if beta == 1 else lambda x: x * torch.sigmoid(beta * x))


@builds("Power")
def power(context: LayerContext) -> Operation:
    """(shift + scale * x) ^ power."""
    param = context.layer.params.power_param
    exponent, scale, shift = param.power, param.scale, param.shift

    def one(x: Tensor) -> Tensor:
        if exponent * scale == 0:  # Caffe then ignores x
            return torch.full_like(x, 1.0 if exponent == 0 else shift).pow(exponent)
        if scale != 1:
            x = x * scale
        if shift:
            x = x + shift
        if exponent == 1:
            return x * 1 if scale == 1 and not shift else x
        return x.square() if exponent == 2 else x.pow(exponent)

    return _elementwise(context, one)


@builds("Exp")
def exp(context: LayerContext) -> Operation:
    """base ^ (shift + scale * x). A base of -1 stands for e."""
    param = context.layer.params.exp_param
    log_base = _log_base(context, param.base)
    inner, outer = log_base * param.scale, log_base * param.shift
    return _elementwise(context, lambda x: torch.exp(x * inner + outer))


@builds("Log")
def log(context: LayerContext) -> Operation:
    """The logarithm of shift + scale * x to a base. A base of -1 stands for e."""
    param = context.layer.params.log_param
    factor = 1 / _log_base(context, param.base)
    return _elementwise(context, lambda x: torch.log(x * param.scale + param.shift) * factor)


def _log_base(context: LayerContext, base: float) -> float:
    if base == -1:
        return 1.0
    if base <= 0 or base == 1:
        raise context.error(f"found base {base}, expected -1 (e) or a positive number other than 1")
    return math.log(base)


@builds("Clip")
def clip(context: LayerContext) -> Operation:
    """max(min(x, max), min)."""
    param = context.layer.params.clip_param
    if not param.HasField("min") or not param.HasField("max"):
        raise context.error("found no min or no max, expected both in clip_param")
    return _elementwise(context, lambda x: x.clamp(max=param.max).clamp(min=param.min))


@builds("Threshold")
def threshold(context: LayerContext) -> Operation:
    """1 where x > threshold, else 0. It has no gradient."""
    limit = context.layer.params.threshold_param.threshold
    return _elementwise(context, lambda x: (x > limit).to(x.dtype))


@builds("Softmax")
def softmax(context: LayerContext) -> Operation:
    """e^x / the sum of e^x along an axis."""
    context.layer.expect(bottoms=1, tops=1)
    axis = context.axis(context.layer.params.softmax_param.axis)
    return Operation(lambda blobs, bottoms: functional.softmax(bottoms[0], axis))


@builds("Dropout")
def dropout(context: LayerContext) -> Operation:
    """Random zeros and scaling of the remaining values, in the TRAIN phase only (Srivastava et al. 2014)."""
    ratio = context.layer.params.dropout_param.dropout_ratio
    if not 0 <= ratio < 1:
        raise context.error(f"found dropout_ratio {ratio:g}, expected 0 or more, and less than 1")
    is_training = context.phase == "TRAIN"
    if not context.layer.params.dropout_param.scale_train:  # Faster R-CNN scales in the TEST phase
        keep = 1 - ratio
        return _elementwise(context, lambda x: (functional.dropout(x, ratio) if is_training else x) * keep)
    return _elementwise(context, (lambda x: functional.dropout(x, ratio)) if is_training else (lambda x: x))
