"""Layers of linear filters: Convolution, Deconvolution, Im2col."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional

from camrt.train.registry import LayerContext, Operation, Shape, Weight, builds
from converters.handlers.convolution import Kernel

_CONVOLVE: dict[int, Callable[..., Tensor]] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_DECONVOLVE: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


@builds("Convolution", "DepthwiseConvolution")
def convolution(context: LayerContext) -> Operation:
    """Convolution. Several bottoms share the weights."""
    channels, kernel = _kernel(context)
    outputs, group = _groups(context, channels)
    spatial = context.shapes[0][context.axis(context.layer.params.convolution_param.axis) + 1 :]
    kernel.convolved(context.layer, spatial)  # raises an error if the image is too small
    convolve = _CONVOLVE[max(1, len(kernel.size))]

    def one(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return convolve(x, weight, bias, kernel.stride or 1, kernel.pad or 0, kernel.dilation or 1, group)

    return _filters(context, (outputs, channels // group, *kernel.size), outputs, one)


@builds("ConvolutionDepthwise")
def convolution_depthwise(context: LayerContext) -> Operation:
    """Depthwise convolution: one filter per channel; `group` and `num_output` are ignored."""
    channels, kernel = _kernel(context)

    def one(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.conv2d(x, weight, bias, kernel.stride, kernel.pad, kernel.dilation, channels)

    return _filters(context, (channels, 1, *kernel.size), channels, one)


@builds("Deconvolution")
def deconvolution(context: LayerContext) -> Operation:
    """Transposed convolution, the gradient of a convolution with respect to its input."""
    channels, kernel = _kernel(context)
    outputs, group = _groups(context, channels)
    deconvolve = _DECONVOLVE[max(1, len(kernel.size))]

    def one(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return deconvolve(x, weight, bias, kernel.stride, kernel.pad, 0, group, kernel.dilation)

    return _filters(context, (channels, outputs // group, *kernel.size), outputs, one)


@builds("Im2col")
def im2col(context: LayerContext) -> Operation:
    """The windows of a convolution, as channels."""
    _, kernel = _kernel(context)
    if len(context.shapes[0]) != 4 or len(kernel.size) != 2:
        raise context.error(f"found a blob of {len(context.shapes[0])} axes, expected 4: N x C x H x W")
    out = kernel.convolved(context.layer, context.shapes[0][2:])

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        windows = functional.unfold(bottoms[0], kernel.size, kernel.dilation, kernel.pad, kernel.stride)
        return windows.unflatten(2, out)

    return Operation(forward)


def _kernel(context: LayerContext) -> tuple[int, Kernel]:
    """Return the number of channels, and the kernel over the axes that follow the channels."""
    if not context.layer.bottoms or len(context.layer.bottoms) != len(context.layer.tops):
        raise context.error(
            f"found {len(context.layer.bottoms)} bottom(s) and {len(context.layer.tops)} top(s), expected one top for "
            "each bottom"
        )
    axis = context.axis(context.layer.params.convolution_param.axis)
    channels, *spatial = context.shapes[0][axis:]
    if len(spatial) > 3:
        raise context.error(f"found {len(spatial)} spatial axes, expected at most 3")
    if any(shape[axis:] != context.shapes[0][axis:] for shape in context.shapes):
        raise context.error("found bottoms of different sizes, expected the same for all")
    return channels, Kernel.of(context.layer, len(spatial))


def _groups(context: LayerContext, channels: int) -> tuple[int, int]:
    param = context.layer.params.convolution_param
    outputs = channels if context.layer.type == "ConvolutionDepthwise" else param.num_output
    if not outputs or not param.group or channels % param.group or outputs % param.group:
        raise context.error(
            f"found num_output {outputs} and group {param.group} for {channels} channels, expected a group that "
            "divides both"
        )
    return outputs, param.group


def _filters(
    context: LayerContext, shape: Shape, outputs: int, one: Callable[[Tensor, Tensor, Tensor | None], Tensor]
) -> Operation:
    """Return the operation that filters each bottom. The axes before the channels count as one batch axis."""
    param = context.layer.params.convolution_param
    axis = context.axis(param.axis)
    has_space = len(context.shapes[0]) > axis + 1
    weights = [Weight(shape, param.weight_filler)]
    if param.bias_term:
        weights.append(Weight((outputs,), param.bias_filler))

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Sequence[Tensor]:
        weight, bias = blobs[0], blobs[1] if len(blobs) > 1 else None
        if has_space and axis == 1:
            return [one(x, weight, bias) for x in bottoms]
        if not has_space:
            weight = weight.unsqueeze(-1)
        tops = []
        for x in bottoms:
            y = one(x.reshape(-1, *(x.shape[axis:] if has_space else (x.shape[axis], 1))), weight, bias)
            tops.append(y.reshape(*x.shape[:axis], outputs, *(y.shape[2:] if has_space else ())))
        return tops

    return Operation(forward, weights)
