"""Layers of linear filters: Convolution, Deconvolution, Im2col."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional

from camrt.train.registry import Operation, Place, Shape, Weight, builds
from converters.handlers.convolution import Kernel

_CONVOLVE: dict[int, Callable[..., Tensor]] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_DECONVOLVE: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


@builds("Convolution", "DepthwiseConvolution")
def convolution(place: Place) -> Operation:
    """Convolution; several bottoms share the weights."""
    channels, kernel = _kernel(place)
    outputs, group = _groups(place, channels)
    spatial = place.shapes[0][place.axis(place.layer.params.convolution_param.axis) + 1 :]
    kernel.convolved(place.layer, spatial)  # the image is large enough
    convolve = _CONVOLVE[max(1, len(kernel.size))]

    def one(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return convolve(x, weight, bias, kernel.stride or 1, kernel.pad or 0, kernel.dilation or 1, group)

    return _filters(place, (outputs, channels // group, *kernel.size), outputs, one)


@builds("ConvolutionDepthwise")
def convolution_depthwise(place: Place) -> Operation:
    """Convolution with one filter a channel, whatever the layer says of groups and outputs."""
    channels, kernel = _kernel(place)

    def one(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.conv2d(x, weight, bias, kernel.stride, kernel.pad, kernel.dilation, channels)

    return _filters(place, (channels, 1, *kernel.size), channels, one)


@builds("Deconvolution")
def deconvolution(place: Place) -> Operation:
    """Convolution's gradient as a layer: enlarges where convolution shrinks."""
    channels, kernel = _kernel(place)
    outputs, group = _groups(place, channels)
    deconvolve = _DECONVOLVE[max(1, len(kernel.size))]

    def one(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return deconvolve(x, weight, bias, kernel.stride, kernel.pad, 0, group, kernel.dilation)

    return _filters(place, (channels, outputs // group, *kernel.size), outputs, one)


@builds("Im2col")
def im2col(place: Place) -> Operation:
    """The windows that a convolution would see, as channels."""
    _, kernel = _kernel(place)
    if len(place.shapes[0]) != 4 or len(kernel.size) != 2:
        raise place.error(f"found a blob of {len(place.shapes[0])} axes, expected 4: N x C x H x W")
    out = kernel.convolved(place.layer, place.shapes[0][2:])

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        windows = functional.unfold(bottoms[0], kernel.size, kernel.dilation, kernel.pad, kernel.stride)
        return windows.unflatten(2, out)

    return Operation(forward)


def _kernel(place: Place) -> tuple[int, Kernel]:
    """The number of channels, and what slides over the axes behind them."""
    if not place.layer.bottoms or len(place.layer.bottoms) != len(place.layer.tops):
        raise place.error(
            f"found {len(place.layer.bottoms)} bottom(s) and {len(place.layer.tops)} top(s), expected one top for each"
        )
    axis = place.axis(place.layer.params.convolution_param.axis)
    channels, *spatial = place.shapes[0][axis:]
    if len(spatial) > 3:
        raise place.error(f"found {len(spatial)} spatial axes, expected at most 3")
    if any(shape[axis:] != place.shapes[0][axis:] for shape in place.shapes):
        raise place.error("found bottoms of different sizes, expected the same for all")
    return channels, Kernel.of(place.layer, len(spatial))


def _groups(place: Place, channels: int) -> tuple[int, int]:
    param = place.layer.params.convolution_param
    outputs = channels if place.layer.type == "ConvolutionDepthwise" else param.num_output
    if not outputs or not param.group or channels % param.group or outputs % param.group:
        raise place.error(
            f"found num_output {outputs} and group {param.group} for {channels} channels, expected a group that "
            "divides both"
        )
    return outputs, param.group


def _filters(
    place: Place, shape: Shape, outputs: int, one: Callable[[Tensor, Tensor, Tensor | None], Tensor]
) -> Operation:
    """The layer that filters each bottom; axes before the channels are counted as one."""
    param = place.layer.params.convolution_param
    axis = place.axis(param.axis)
    has_space = len(place.shapes[0]) > axis + 1
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
