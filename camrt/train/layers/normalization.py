"""Layers that normalize, scale or shift: BatchNorm, MVN, LRN, Scale, Bias, Normalize."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from camrt.train.layers.pooling import average_pool
from camrt.train.registry import LayerContext, Operation, Shape, Weight, builds, upcast
from converters.handlers.pooling import windows_of
from converters.layer import Layer
from converters.schema.caffe_pb2 import FillerParameter, LRNParameter
from converters.shape import show

ONES = FillerParameter(value=1)

# ------------------------------------------------------------------------------------------------- batch normalization


@builds("BatchNorm")
def batch_norm(context: LayerContext) -> Operation:
    """(x - mean) / sqrt(variance + eps) per channel (Ioffe and Szegedy 2015).

    The blobs are the moving sums of means and variances, and the sum of their weights. Caffe:
    src/caffe/layers/batch_norm_layer.cpp.
    """
    context.layer.expect(bottoms=1, tops=1)
    normalize = _normalizer(context)
    channels = _channels(context.shapes[0])
    return Operation(
        lambda blobs, bottoms: normalize(bottoms[0], *blobs, None, None),
        [Weight((channels,), learned=False), Weight((channels,), learned=False), Weight((1,), learned=False)],
    )


def can_fuse(scale: Layer) -> bool:
    """Return whether PyTorch's batch_norm can compute a Scale layer: one factor, and maybe one offset, per channel."""
    param = scale.params.scale_param
    return len(scale.bottoms) == 1 and param.axis == 1 and param.num_axes == 1 and not scale.params.propagate_down


def batch_norm_scale(context: LayerContext, has_bias: bool) -> Operation:
    """Compute a BatchNorm and the Scale that follows it in one pass over the data."""
    normalize = _normalizer(context)

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        mean, variance, count, factor, *offset = blobs
        return normalize(bottoms[0], mean, variance, count, factor, offset[0] if has_bias else None)

    return Operation(forward)


def _channels(shape: Shape) -> int:
    return shape[1] if len(shape) > 1 else 1


def _normalizer(context: LayerContext) -> Callable[..., Tensor]:
    param = context.layer.params.batch_norm_param
    if param.scale_bias or param.HasField("scale_filler") or param.HasField("bias_filler"):
        raise context.error("found scale_bias (NVIDIA's fork), expected a Scale layer behind it, which does the same")
    stored = param.use_global_stats if param.HasField("use_global_stats") else context.phase == "TEST"
    learns = context.phase == "TRAIN"
    eps, fraction = param.eps, param.moving_average_fraction

    def with_stored_statistics(
        x: Tensor, mean: Tensor, variance: Tensor, count: Tensor, factor: Any, offset: Any
    ) -> Tensor:
        correction = torch.where(count == 0, 0, 1 / count)
        return functional.batch_norm(x, mean * correction, variance * correction, factor, offset, False, 0, eps)

    def with_batch_statistics(
        x: Tensor, mean: Tensor, variance: Tensor, count: Tensor, factor: Any, offset: Any
    ) -> Tensor:
        batch = torch.zeros_like(mean), torch.zeros_like(variance)
        if x.numel() == x.shape[1]:  # a single value is its own mean, and PyTorch would divide its variance by 0
            batch[0].copy_(x.detach().flatten())
            y = functional.batch_norm(x.detach(), *batch, factor, offset, False, 0, eps) + 0 * x
        else:  # with a momentum of 1, PyTorch stores the statistics of the batch, with the unbiased variance
            y = torch.batch_norm(x, factor, offset, *batch, True, 1.0, eps, torch.backends.cudnn.enabled)
        if learns:
            with torch.no_grad():
                mean.mul_(fraction).add_(batch[0])
                variance.mul_(fraction).add_(batch[1])
                count.mul_(fraction).add_(1)
        return y

    def normalize(x: Tensor, *blobs: Any) -> Tensor:
        compute = with_stored_statistics if stored else with_batch_statistics
        # Not a view where none is needed: a ReLU in place on a view would copy its gradient several times.
        return compute(x, *blobs) if x.dim() > 1 else compute(x[:, None], *blobs)[:, 0]

    return normalize


@builds("MVN")
def mvn(context: LayerContext) -> Operation:
    """Normalization of each image to mean 0 and variance 1, per channel or across all. The top has four axes."""
    context.layer.expect(bottoms=1, tops=1)
    param = context.layer.params.mvn_param
    rank = len(context.shapes[0])
    if not 1 <= rank <= 4:
        raise context.error(f"found a blob of {rank} axes, expected 1 to 4")
    axes = (1, 2, 3) if param.across_channels else (2, 3)

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        x = bottoms[0].reshape(*bottoms[0].shape, *(1,) * (4 - rank))
        if not param.normalize_variance:
            return x - x.mean(axes, keepdim=True)
        return _MeanVariance.apply(x, axes, param.eps)

    return Operation(forward)


class _MeanVariance(torch.autograd.Function):
    """(x - mean) / (deviation + eps), with the gradient of Caffe, which ignores eps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
        centered = x - x.mean(axes, keepdim=True)
        deviation = centered.square().mean(axes, keepdim=True).sqrt_().add_(eps)
        y = centered.div_(deviation)
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
def lrn(context: LayerContext) -> Operation:
    """Local response normalization across channels or within each channel (Krizhevsky et al. 2012, section 3.3)."""
    context.layer.expect(bottoms=1, tops=1)
    param = context.layer.params.lrn_param
    size, alpha, beta, k = param.local_size, param.alpha, param.beta, param.k
    if not size % 2:
        raise context.error(f"found local_size {size}, expected an odd number")
    if len(context.shapes[0]) != 4:
        raise context.error(f"found a blob of {len(context.shapes[0])} axes, expected 4: N x C x H x W")
    if param.norm_region == LRNParameter.ACROSS_CHANNELS:
        return Operation(lambda blobs, bottoms: _AcrossChannels.apply(upcast(bottoms[0]), size, alpha / size, beta, k))
    windows = windows_of(context.shapes[0][2:], (size, size), (1, 1), ((size - 1) // 2,) * 2)

    def within(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        x = upcast(bottoms[0])
        return x * (average_pool(x.square(), windows) * alpha + 1).pow(-beta)

    return Operation(within)


class _AcrossChannels(torch.autograd.Function):
    """x / (k + alpha * the sum of squares over neighboring channels) ^ beta.

    PyTorch's local_response_norm keeps three more tensors for the gradient and takes several times as long.
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
    """Sum x (N, C, H, W) over a window of channels around each channel; channels beyond the first and last are 0."""
    channels = x.shape[1]
    total = x.clone()
    for distance in range(1, min((size - 1) // 2, channels - 1) + 1):
        total[:, distance:] += x[:, :-distance]
        total[:, :-distance] += x[:, distance:]
    return total


# ------------------------------------------------------------------------------------------------------- scale and bias


@builds("Scale")
def scale(context: LayerContext) -> Operation:
    """x * factor + offset. The factor is learned or a second bottom, and starts at an axis of x."""
    context.layer.expect(bottoms=range(1, 3), tops=1)
    param = context.layer.params.scale_param
    shape, trailing = _operand(context, param.axis, param.num_axes)
    weights = []
    if len(context.shapes) == 1:
        weights.append(Weight(shape, param.filler if param.HasField("filler") else ONES))
    if param.bias_term:
        weights.append(Weight(shape, param.bias_filler))

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        x, *operands = (*bottoms, *blobs)
        factor, *offset = (_broadcastable(operand, trailing) for operand in operands)
        return torch.addcmul(offset[0], x, factor) if offset else x * factor

    return Operation(forward, weights)


@builds("Bias")
def bias(context: LayerContext) -> Operation:
    """x + offset. The offset is learned or a second bottom, and starts at an axis of x."""
    context.layer.expect(bottoms=range(1, 3), tops=1)
    param = context.layer.params.bias_param
    shape, trailing = _operand(context, param.axis, param.num_axes)
    weights = [Weight(shape, param.filler)] if len(context.shapes) == 1 else []
    return Operation(
        lambda blobs, bottoms: bottoms[0] + _broadcastable(bottoms[1] if len(bottoms) > 1 else blobs[0], trailing),
        weights,
    )


def _operand(context: LayerContext, axis: int, num_axes: int) -> tuple[Shape, int]:
    """Return the shape of a factor or an offset, and the number of axes of the bottom that follow it."""
    shape = context.shapes[0]
    if len(context.shapes) > 1:
        first = context.axis(axis) if context.shapes[1] else 0
        end = first + len(context.shapes[1])
        if shape[first:end] != context.shapes[1]:
            raise context.error(
                f"found {show(context.shapes[1])} for the blob {context.layer.bottoms[1]!r}, expected the sizes of "
                f"{context.layer.bottoms[0]!r} ({show(shape)}) from axis {first} on"
            )
        return context.shapes[1], len(shape) - end if context.shapes[1] else 0
    if num_axes < -1:
        raise context.error(f"found num_axes {num_axes}, expected -1 (all axes from axis on), 0 (a scalar) or more")
    first = context.axis(axis)
    end = len(shape) if num_axes == -1 else first + num_axes
    if end > len(shape):
        raise context.error(f"found axis {axis} and num_axes {num_axes}, expected them within {show(shape)}")
    return shape[first:end], len(shape) - end if num_axes else 0


def _broadcastable(operand: Tensor, trailing: int) -> Tensor:
    """Append axes of size 1, so that the operand broadcasts against the bottom."""
    return operand.reshape((*operand.shape, *(1,) * trailing))


@builds("Normalize")
def normalize(context: LayerContext) -> Operation:
    """factor * x / the L2 norm of x over the channels or the whole item, with a learned factor (SSD)."""
    context.layer.expect(bottoms=1, tops=1)
    param = context.layer.params.norm_param
    if len(context.shapes[0]) < 2:
        raise context.error(f"found a blob of {len(context.shapes[0])} axes, expected channels at axis 1")
    shape = () if param.channel_shared else (context.shapes[0][1],)
    axes = tuple(range(1, len(context.shapes[0]))) if param.across_spatial else (1,)
    filler = param.scale_filler if param.HasField("scale_filler") else ONES

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        x = bottoms[0]
        factor = blobs[0] if param.channel_shared else _broadcastable(blobs[0], x.dim() - 2)
        return x * (x.square().sum(axes, keepdim=True) + param.eps).rsqrt() * factor

    return Operation(forward, [Weight(shape, filler)])
