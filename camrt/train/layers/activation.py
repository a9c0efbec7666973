"""What is done to each value on its own, and Dropout."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from camrt.train.registry import Operation, Place, Weight, builds
from converters.schema.caffe_pb2 import FillerParameter


def _each(place: Place, function: Callable[[Tensor], Tensor]) -> Operation:
    """A layer that changes each value of its bottom."""
    place.layer.expect(bottoms=1, tops=1)
    return Operation(lambda blobs, bottoms: function(bottoms[0]))


@builds("ReLU")
def relu(place: Place) -> Operation:
    """max(x, 0) + negative_slope * min(x, 0)."""
    slope, over = place.layer.params.relu_param.negative_slope, place.overwrites
    if slope:
        return _each(place, lambda x: functional.leaky_relu(x, slope, over and slope > 0))
    return _each(place, lambda x: functional.relu(x, over))


@builds("ReLU6")
def relu6(place: Place) -> Operation:
    """min(max(x, 0), 6)."""
    param = place.layer.params.relu6_param
    if param.negative_slope or param.threshold <= 0:
        raise place.error(
            f"found negative_slope {param.negative_slope} and threshold {param.threshold}, expected 0 and more than 0"
        )
    return _each(place, lambda x: functional.hardtanh(x, 0.0, param.threshold))


@builds("PReLU")
def prelu(place: Place) -> Operation:
    """ReLU with a learned slope, one a channel or one for all (He et al. 2015)."""
    place.layer.expect(bottoms=1, tops=1)
    param = place.layer.params.prelu_param
    if len(place.shapes[0]) < 2:
        raise place.error(f"found a blob of {len(place.shapes[0])} axis, expected channels at axis 1")
    is_old = bool(place.layer.blobs) and place.layer.blobs[0].shape == (1,)
    shape = ((1,) if is_old else ()) if param.channel_shared else (place.shapes[0][1],)
    filler = param.filler if param.HasField("filler") else FillerParameter(value=0.25)

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        return functional.prelu(bottoms[0], blobs[0].reshape(-1).to(bottoms[0].dtype))

    return Operation(forward, [Weight(shape, filler)])


@builds("ELU")
def elu(place: Place) -> Operation:
    """X where positive, else alpha * (e^x - 1)."""
    alpha = place.layer.params.elu_param.alpha
    return _each(place, lambda x: functional.elu(x, alpha))


@builds("Sigmoid")
def sigmoid(place: Place) -> Operation:
    """1 / (1 + e^-x)."""
    return _each(place, torch.sigmoid)


@builds("TanH")
def tanh(place: Place) -> Operation:
    """The hyperbolic tangent."""
    return _each(place, torch.tanh)


@builds("AbsVal")
def absval(place: Place) -> Operation:
    """The absolute value."""
    return _each(place, torch.abs)


@builds("BNLL")
def bnll(place: Place) -> Operation:
    """log(1 + e^x), the binomial normal log likelihood."""
    return _each(place, functional.softplus)


@builds("Swish")
def swish(place: Place) -> Operation:
    """X * sigmoid(beta * x) (Ramachandran et al. 2017)."""
    beta = place.layer.params.swish_param.beta
    return _each(place, functional.silu if beta == 1 else lambda x: x * torch.sigmoid(beta * x))


@builds("Power")
def power(place: Place) -> Operation:
    """(shift + scale * x) ^ power."""
    param = place.layer.params.power_param
    exponent, scale, shift = param.power, param.scale, param.shift

    def one(x: Tensor) -> Tensor:
        if exponent * scale == 0:  # then Caffe does not look at x
            return torch.full_like(x, 1.0 if exponent == 0 else shift).pow(exponent)
        if scale != 1:
            x = x * scale
        if shift:
            x = x + shift
        if exponent == 1:
            return x * 1 if scale == 1 and not shift else x
        return x.square() if exponent == 2 else x.pow(exponent)

    return _each(place, one)


@builds("Exp")
def exp(place: Place) -> Operation:
    """Base ^ (shift + scale * x); a base of -1 is e."""
    param = place.layer.params.exp_param
    log_base = _log_base(place, param.base)
    inner, outer = log_base * param.scale, log_base * param.shift
    return _each(place, lambda x: torch.exp(x * inner + outer))


@builds("Log")
def log(place: Place) -> Operation:
    """The logarithm of shift + scale * x to a base; -1 is e."""
    param = place.layer.params.log_param
    factor = 1 / _log_base(place, param.base)
    return _each(place, lambda x: torch.log(x * param.scale + param.shift) * factor)


def _log_base(place: Place, base: float) -> float:
    if base == -1:
        return 1.0
    if base <= 0 or base == 1:
        raise place.error(f"found base {base}, expected -1 (e) or a positive number other than 1")
    return math.log(base)


@builds("Clip")
def clip(place: Place) -> Operation:
    """max(min(x, max), min)."""
    param = place.layer.params.clip_param
    if not param.HasField("min") or not param.HasField("max"):
        raise place.error("found no min or no max, expected clip_param with both")
    return _each(place, lambda x: x.clamp(max=param.max).clamp(min=param.min))


@builds("Threshold")
def threshold(place: Place) -> Operation:
    """1 where x > threshold, else 0; no gradient."""
    limit = place.layer.params.threshold_param.threshold
    return _each(place, lambda x: (x > limit).to(x.dtype))


@builds("Softmax")
def softmax(place: Place) -> Operation:
    """e^x over the sum of e^x along an axis."""
    place.layer.expect(bottoms=1, tops=1)
    axis = place.axis(place.layer.params.softmax_param.axis)
    return Operation(lambda blobs, bottoms: functional.softmax(bottoms[0], axis))


@builds("Dropout")
def dropout(place: Place) -> Operation:
    """Zeros at random, in training (Srivastava et al. 2014); what is left is scaled then, and not in testing."""
    ratio = place.layer.params.dropout_param.dropout_ratio
    if not 0 <= ratio < 1:
        raise place.error(f"found dropout_ratio {ratio:g}, expected one from 0 on, below 1")
    fork = place.layer.extra.get("dropout_param", {})
    if isinstance(fork, dict) and fork.get("scale_train") is False:  # Faster R-CNN scales in testing
        keep = 1 - ratio
        return _each(
            place, (lambda x: functional.dropout(x, ratio) * keep) if place.phase == "TRAIN" else (lambda x: x * keep)
        )
    return _each(place, (lambda x: functional.dropout(x, ratio)) if place.phase == "TRAIN" else (lambda x: x))
