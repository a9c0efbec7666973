"""Layers that shift and scale: by statistics, by neighbours, by learned factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from camrt.train.layers.pooling import average_pool
from camrt.train.registry import Operation, Place, Shape, Weight, builds, in_full
from converters.handlers.pooling import windows_of
from converters.layer import Layer
from converters.schema.caffe_pb2 import FillerParameter, LRNParameter
from converters.shape import show

ONES = FillerParameter(value=1)

# ------------------------------------------------------------------------------------------------- batch normalization


@builds("BatchNorm")
def batch_norm(place: Place) -> Operation:
    """(x - mean) / sqrt(variance + eps) per channel (Ioffe and Szegedy 2015).

    Its blobs are the moving sums of means and variances, and the sum of their weights. Caffe:
    src/caffe/layers/batch_norm_layer.cpp.
    """
    place.layer.expect(bottoms=1, tops=1)
    normalize = _normalizer(place)
    channels = _channels(place.shapes[0])
    return Operation(
        lambda blobs, bottoms: normalize(bottoms[0], *blobs, None, None),
        [Weight((channels,), learned=False), Weight((channels,), learned=False), Weight((1,), learned=False)],
    )


def can_take_in(scale: Layer) -> bool:
    """Whether a Scale layer has a factor and perhaps an offset a channel, which PyTorch's batch_norm computes too."""
    param = scale.params.scale_param
    return len(scale.bottoms) == 1 and param.axis == 1 and param.num_axes == 1 and not scale.params.propagate_down


def batch_norm_scale(place: Place, has_bias: bool) -> Operation:
    """A BatchNorm and the Scale that follows it, in one pass over the data."""
    normalize = _normalizer(place)

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        mean, variance, count, factor, *offset = blobs
        return normalize(bottoms[0], mean, variance, count, factor, offset[0] if has_bias else None)

    return Operation(forward)


def _channels(shape: Shape) -> int:
    return shape[1] if len(shape) > 1 else 1


def _normalizer(place: Place) -> Callable[..., Tensor]:
    param = place.layer.params.batch_norm_param
    if param.scale_bias or param.HasField("scale_filler") or param.HasField("bias_filler"):
        raise place.error("found scale_bias (NVIDIA's fork), expected a Scale layer behind it, which does the same")
    stored = param.use_global_stats if param.HasField("use_global_stats") else place.phase == "TEST"
    learns = place.phase == "TRAIN"
    eps, fraction = param.eps, param.moving_average_fraction

    def by_stored(x: Tensor, mean: Tensor, variance: Tensor, count: Tensor, factor: Any, offset: Any) -> Tensor:
        correction = torch.where(count == 0, 0, 1 / count)
        return functional.batch_norm(x, mean * correction, variance * correction, factor, offset, False, 0, eps)

    def by_own(x: Tensor, mean: Tensor, variance: Tensor, count: Tensor, factor: Any, offset: Any) -> Tensor:
        own = torch.zeros_like(mean), torch.zeros_like(variance)
        if x.numel() == x.shape[1]:  # a single value is its own mean, and PyTorch would divide its variance by 0
            own[0].copy_(x.detach().flatten())
            y = functional.batch_norm(x.detach(), *own, factor, offset, False, 0, eps) + 0 * x
        else:  # a momentum of 1: the batch's own statistics, the variance unbiased
            y = torch.batch_norm(x, factor, offset, *own, True, 1.0, eps, torch.backends.cudnn.enabled)
        if learns:
            with torch.no_grad():
                mean.mul_(fraction).add_(own[0])
                variance.mul_(fraction).add_(own[1])
                count.mul_(fraction).add_(1)
        return y

    def normalize(x: Tensor, *blobs: Any) -> Tensor:
        rows = x if x.dim() > 1 else x[:, None]
        return (by_stored if stored else by_own)(rows, *blobs).view(x.shape)

    return normalize


@builds("MVN")
def mvn(place: Place) -> Operation:
    """Mean and variance normalization of each image, per channel or across them. The top has four axes, as in Caffe."""
    place.layer.expect(bottoms=1, tops=1)
    param = place.layer.params.mvn_param
    rank = len(place.shapes[0])
    if not 1 <= rank <= 4:
        raise place.error(f"found a blob of {rank} axes, expected 1 to 4")
    axes = (1, 2, 3) if param.across_channels else (2, 3)

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        x = bottoms[0].reshape(*bottoms[0].shape, *(1,) * (4 - rank))
        if not param.normalize_variance:
            return x - x.mean(axes, keepdim=True)
        return _MeanVariance.apply(x, axes, param.eps)

    return Operation(forward)


class _MeanVariance(torch.autograd.Function):
    """(x - mean) / (deviation + eps), and the gradient as Caffe has it: that of a deviation without eps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
        centred = x - x.mean(axes, keepdim=True)
        deviation = centred.square().mean(axes, keepdim=True).sqrt_().add_(eps)
        y = centred.div_(deviation)
        ctx.save_for_backward(y, deviation)
        ctx.axes = axes
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        y, deviation = ctx.saved_tensors
        mean = gradient.mean(ctx.axes, keepdim=True)
        along = (gradient * y).mean(ctx.axes, keepdim=True)
        return (gradient - mean - y * along) / deviation, None, None


# ------------------------------------------------------------------------------------- local response normalization


@builds("LRN")
def lrn(place: Place) -> Operation:
    """Local response normalization across channels or within each (Krizhevsky et al. 2012, section 3.3)."""
    place.layer.expect(bottoms=1, tops=1)
    param = place.layer.params.lrn_param
    size, alpha, beta, k = param.local_size, param.alpha, param.beta, param.k
    if not size % 2:
        raise place.error(f"found local_size {size}, expected an odd number")
    if len(place.shapes[0]) != 4:
        raise place.error(f"found a blob of {len(place.shapes[0])} axes, expected 4: N x C x H x W")
    if param.norm_region == LRNParameter.ACROSS_CHANNELS:
        return Operation(lambda blobs, bottoms: _AcrossChannels.apply(in_full(bottoms[0]), size, alpha / size, beta, k))
    windows = windows_of(place.shapes[0][2:], (size, size), (1, 1), ((size - 1) // 2,) * 2)

    def within(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        x = in_full(bottoms[0])
        return x * (average_pool(x.square(), windows) * alpha + 1).pow(-beta)

    return Operation(within)


class _AcrossChannels(torch.autograd.Function):
    """x / (k + alpha * the sum of the neighbours' squares) ^ beta.

    Written out, as PyTorch's own keeps three tensors more for the gradient and takes several times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
        scale = _window_sum(x.square(), size).mul_(alpha).add_(k)
        y = scale.pow(-beta).mul_(x)
        ctx.save_for_backward(x, scale)
        ctx.numbers = size, alpha, beta
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        x, scale = ctx.saved_tensors
        size, alpha, beta = ctx.numbers
        direct = scale.pow(-beta).mul_(gradient)
        others = _window_sum((direct * x).div_(scale), size)
        return direct.addcmul_(x, others, value=-2 * alpha * beta), None, None, None, None


def _window_sum(x: Tensor, size: int) -> Tensor:
    """The sum of each value's neighbours along the channels, of x (N, C, H, W); zeros beyond the first and last."""
    channels = x.shape[1]
    total = x.clone()
    for distance in range(1, min((size - 1) // 2, channels - 1) + 1):
        total[:, distance:] += x[:, :-distance]
        total[:, :-distance] += x[:, distance:]
    return total


# ------------------------------------------------------------------------------------------------------- scale and bias


@builds("Scale")
def scale(place: Place) -> Operation:
    """X times a factor, learned or a second bottom, from an axis on; and an offset."""
    place.layer.expect(bottoms=range(1, 3), tops=1)
    param = place.layer.params.scale_param
    shape, behind = _operand(place, param.axis, param.num_axes)
    weights = []
    if len(place.shapes) == 1:
        weights.append(Weight(shape, param.filler if param.HasField("filler") else ONES))
    if param.bias_term:
        weights.append(Weight(shape, param.bias_filler))

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        x, *operands = (*bottoms, *blobs)
        factor, *offset = (_laid(operand, behind) for operand in operands)
        return torch.addcmul(offset[0], x, factor) if offset else x * factor

    return Operation(forward, weights)


@builds("Bias")
def bias(place: Place) -> Operation:
    """X plus an offset, learned or a second bottom, from an axis on."""
    place.layer.expect(bottoms=range(1, 3), tops=1)
    param = place.layer.params.bias_param
    shape, behind = _operand(place, param.axis, param.num_axes)
    weights = [Weight(shape, param.filler)] if len(place.shapes) == 1 else []
    return Operation(
        lambda blobs, bottoms: bottoms[0] + _laid(bottoms[1] if len(bottoms) > 1 else blobs[0], behind), weights
    )


def _operand(place: Place, axis: int, num_axes: int) -> tuple[Shape, int]:
    """The shape of what the bottom is combined with, and how many of the bottom's axes lie behind it."""
    shape = place.shapes[0]
    if len(place.shapes) > 1:
        first = place.axis(axis) if place.shapes[1] else 0
        end = first + len(place.shapes[1])
        if shape[first:end] != place.shapes[1]:
            raise place.error(
                f"found {show(place.shapes[1])} for the blob {place.layer.bottoms[1]!r}, expected the sizes of "
                f"{place.layer.bottoms[0]!r} ({show(shape)}) from axis {first} on"
            )
        return place.shapes[1], len(shape) - end if place.shapes[1] else 0
    if num_axes < -1:
        raise place.error(f"found num_axes {num_axes}, expected -1 (all from the axis on), 0 (one number) or more")
    first = place.axis(axis)
    end = len(shape) if num_axes == -1 else first + num_axes
    if end > len(shape):
        raise place.error(f"found axis {axis} and num_axes {num_axes}, expected them within {show(shape)}")
    return shape[first:end], len(shape) - end if num_axes else 0


def _laid(operand: Tensor, behind: int) -> Tensor:
    """With ones for the axes behind it."""
    return operand.reshape((*operand.shape, *(1,) * behind))


@builds("Normalize")
def normalize(place: Place) -> Operation:
    """X by its Euclidean norm over the channels or the whole item, times a learned factor (SSD)."""
    place.layer.expect(bottoms=1, tops=1)
    param = place.layer.params.norm_param
    if len(place.shapes[0]) < 2:
        raise place.error(f"found a blob of {len(place.shapes[0])} axes, expected channels at axis 1")
    shape = () if param.channel_shared else (place.shapes[0][1],)
    axes = tuple(range(1, len(place.shapes[0]))) if param.across_spatial else (1,)
    filler = param.scale_filler if param.HasField("scale_filler") else ONES

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        x = bottoms[0]
        factor = blobs[0] if param.channel_shared else _laid(blobs[0], x.dim() - 2)
        return x * (x.square().sum(axes, keepdim=True) + param.eps).rsqrt() * factor

    return Operation(forward, [Weight(shape, filler)])
