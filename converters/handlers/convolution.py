"""Convolution, Deconvolution and Im2col, in any number of dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from converters.graph import Graph
from converters.layer import Layer
from converters.registry import handles
from converters.schema.caffe_pb2 import ConvolutionParameter, DeformableConvolutionParameter
from converters.shape import Dim, Shape, product, show

_Parameter = ConvolutionParameter | DeformableConvolutionParameter


@dataclass(frozen=True)
class Kernel:
    """A kernel that slides over the spatial axes. Caffe: src/caffe/layers/base_conv_layer.cpp.

    Attributes:
        size: The size along each spatial axis.
        stride: The stride along each.
        pad: The zeros added to both sides of each.
        dilation: The distance between taps along each.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    dilation: tuple[int, ...]

    @classmethod
    def of(cls, layer: Layer, axes: int, param: _Parameter | None = None) -> Kernel:
        """Read the kernel of a layer.

        Args:
            layer: The layer.
            axes: The number of spatial axes.
            param: The message that describes it; by default the layer's convolution_param.

        Raises:
            ConversionError: The size is missing or 0, or there is neither one value for all axes nor one per axis.
        """
        param = param or layer.params.convolution_param
        kernel = cls(
            size=_spatial(layer, param, "kernel", param.kernel_size, axes, None),
            stride=_spatial(layer, param, "stride", param.stride, axes, 1),
            pad=_spatial(layer, param, "pad", param.pad, axes, 0),
            dilation=_spatial(layer, param, "dilation", param.dilation, axes, 1),
        )
        for what in ("size", "stride", "dilation"):
            if 0 in getattr(kernel, what):
                raise layer.error(f"found the kernel's {what} {getattr(kernel, what)}, expected values of at least 1")
        return kernel

    @property
    def pads_pixels(self) -> bool:
        """Whether it sees single pixels, one after the other, of a padded image."""
        return any(self.pad) and {*self.size, *self.stride} == {1}

    def extent(self, axis: int) -> int:
        """The extent of the dilated kernel along each axis."""
        return self.dilation[axis] * (self.size[axis] - 1) + 1

    def room(self, axis: int, size: int) -> int:
        """How far the kernel can move over the padded image; negative if the kernel is larger."""
        return size + 2 * self.pad[axis] - self.extent(axis)

    def convolved(self, layer: Layer, spatial: Sequence[int]) -> tuple[int, ...]:
        """The output's spatial size. C truncates toward zero, so a kernel slightly too large still fits once."""
        rooms = [self.room(axis, size) for axis, size in enumerate(spatial)]
        out = tuple(
            room // stride + 1 if room >= 0 else 1 - (-room // stride)
            for room, stride in zip(rooms, self.stride, strict=True)
        )
        return _positive(layer, spatial, out, self)

    def deconvolved(self, layer: Layer, spatial: Sequence[int]) -> tuple[int, ...]:
        """The output's spatial size of the transposed convolution."""
        out = tuple(
            self.stride[axis] * (size - 1) + self.extent(axis) - 2 * self.pad[axis] for axis, size in enumerate(spatial)
        )
        return _positive(layer, spatial, out, self)

    def attributes(self, spatial: Sequence[int], *, transposed: bool = False) -> dict[str, Any]:
        """The attributes of ONNX's Conv and ConvTranspose for an image of this size."""
        if not spatial:
            return {"kernel_shape": [1]}
        after = [
            pad if transposed else pad + max(0, -self.room(axis, size))
            for axis, (pad, size) in enumerate(zip(self.pad, spatial, strict=True))
        ]
        return {
            "kernel_shape": list(self.size),
            "strides": list(self.stride),
            "pads": [*self.pad, *after],
            "dilations": list(self.dilation),
        }


def _spatial(
    layer: Layer, param: _Parameter, what: str, values: Sequence[int], axes: int, default: int | None
) -> tuple[int, ...]:
    """Read `kernel_size: 3`, one for all axes or one per axis, or `kernel_h` and `kernel_w`."""
    names = (f"{what}_h", f"{what}_w")
    if what != "dilation" and any(param.HasField(name) for name in names):
        if axes != 2 or values:
            raise layer.error(f"found {names[0]} or {names[1]} for {axes} spatial axes, expected 2 and no second form")
        return getattr(param, names[0]), getattr(param, names[1])
    if not values and default is not None:
        return (default,) * axes
    if len(values) not in (1, axes) or not values:
        expected = "one" if axes == 1 else f"one or {axes}"
        raise layer.error(f"found {len(values)} value(s) for the {what}, expected {expected}")
    return tuple(values) * axes if len(values) == 1 else tuple(values)


def _positive(layer: Layer, spatial: Sequence[int], out: tuple[int, ...], kernel: Kernel) -> tuple[int, ...]:
    if any(size < 1 for size in out):
        raise layer.error(
            f"found an input of {show(tuple(spatial))} for a kernel of {show(kernel.size)} (stride {kernel.stride}, "
            f"pad {kernel.pad}, dilation {kernel.dilation}), which leaves an output of {show(out)}: expected at least 1"
        )
    return out


@dataclass(frozen=True)
class _Images:
    """The bottom as a stack of images: the axes before the channels are flattened into one."""

    tensor: str
    leading: Shape
    channels: int
    spatial: tuple[int, ...]

    @classmethod
    def of(cls, layer: Layer, graph: Graph, bottom: str, axis: int) -> _Images:
        channel_axis = graph.axis(bottom, axis)
        shape = graph.shape(bottom)
        channels, *spatial = graph.fixed_shape(bottom, channel_axis, "the number of channels and the image's size")
        tensor = bottom
        if channel_axis != 1 or not spatial:
            # ONNX requires one axis before the channels, and at least one after them.
            batch = product(shape[:channel_axis])
            if batch is None:
                raise layer.error(f"found {show(shape)} for the blob {bottom!r}, expected at most one free axis")
            tensor = graph.reshape(bottom, (batch, channels, *(spatial or (1,))))
        return cls(tensor, shape[:channel_axis], channels, tuple(spatial))

    def padded(self, graph: Graph, pad: Sequence[int]) -> _Images:
        """Pad both sides of each spatial axis with zeros."""
        tensor = graph.pad(self.tensor, (0, 0, *pad), (0, 0, *pad), 0.0)
        return replace(self, tensor=tensor, spatial=tuple(s + 2 * p for s, p in zip(self.spatial, pad, strict=True)))

    def restored(self, graph: Graph, tensor: str, channels: int, spatial: Sequence[int], top: str) -> None:
        """Restore the leading axes of the output."""
        graph.reshape(tensor, (*self.leading, channels, *spatial), [top])

    @property
    def is_plain(self) -> bool:
        return len(self.leading) == 1 and bool(self.spatial)


@handles("Convolution", "DepthwiseConvolution", operators="Conv Pad Reshape", origin="BVLC; depthwise: yonghenglh6")
def convolution(layer: Layer, graph: Graph) -> None:
    """Convolution; several bottoms share the weights."""
    _each_bottom(layer, graph, depthwise=False)


@handles("ConvolutionDepthwise", operators="Conv Pad", origin="BVLC pull request 5665 and its forks")
def convolution_depthwise(layer: Layer, graph: Graph) -> None:
    """Depthwise convolution; ignores the layer's group and num_output."""
    if layer.params.convolution_param.axis != 1:
        raise layer.error(
            f"found axis {layer.params.convolution_param.axis}, expected 1: the channels follow the batch"
        )
    _each_bottom(layer, graph, depthwise=True)


@handles("Deconvolution", operators="ConvTranspose Reshape")
def deconvolution(layer: Layer, graph: Graph) -> None:
    """Transposed convolution (the gradient of a convolution with respect to its input)."""
    _each_bottom(layer, graph, depthwise=False, transposed=True)


def _each_bottom(layer: Layer, graph: Graph, *, depthwise: bool, transposed: bool = False) -> None:
    if not layer.bottoms or len(layer.bottoms) != len(layer.tops):
        raise layer.error(
            f"found {len(layer.bottoms)} bottom(s) and {len(layer.tops)} top(s), expected one top for each"
        )
    param = layer.params.convolution_param
    for bottom, top in zip(layer.bottoms, layer.tops, strict=True):
        images = _Images.of(layer, graph, bottom, param.axis)
        kernel = Kernel.of(layer, len(images.spatial))
        group = images.channels if depthwise else param.group
        outputs = images.channels if depthwise else param.num_output
        if not outputs or not group or images.channels % group or outputs % group:
            raise layer.error(
                f"found num_output {outputs} and group {group} for {images.channels} channels, "
                "expected a group that divides both"
            )
        weights = _weights(layer, graph, images.channels, outputs, group, kernel, transposed=transposed)
        if kernel.pads_pixels and not transposed:
            # OpenCV 5.0.0 reads beyond the image where such a Conv has pads.
            images, kernel = images.padded(graph, kernel.pad), replace(kernel, pad=(0,) * len(kernel.pad))
        spatial = (kernel.deconvolved if transposed else kernel.convolved)(layer, images.spatial)
        op = "ConvTranspose" if transposed else "Conv"
        result = graph.node(
            op,
            [images.tensor, *weights],
            [top] if images.is_plain else None,
            shape=(graph.shape(images.tensor)[0], outputs, *(spatial or (1,))),
            group=group,
            **kernel.attributes(images.spatial, transposed=transposed),
        )
        if not images.is_plain:
            images.restored(graph, result, outputs, spatial, top)


def _weights(
    layer: Layer, graph: Graph, channels: int, outputs: int, group: int, kernel: Kernel, *, transposed: bool
) -> list[str]:
    filters = (channels, outputs // group) if transposed else (outputs, channels // group)
    shapes: list[tuple[int, ...]] = [(*filters, *kernel.size)]
    if layer.params.convolution_param.bias_term:
        shapes.append((outputs,))
    weight, *bias = layer.weights(*shapes)
    if not kernel.size:
        weight = weight[..., None]
    return [graph.weight("weight", weight), *(graph.weight("bias", values) for values in bias)]


@handles("Im2col", operators="Conv Reshape")
def im2col(layer: Layer, graph: Graph) -> None:
    """The values under each position of a kernel, as channels: a convolution whose filters each select one value."""
    bottom, tops = layer.ends()
    images = _Images.of(layer, graph, bottom, layer.params.convolution_param.axis)
    kernel = Kernel.of(layer, len(images.spatial))
    taps = math.prod(kernel.size)
    if taps * taps * images.channels > 2**24:
        raise layer.error(
            f"found a kernel of {show(kernel.size)} over {images.channels} channels, expected a smaller one"
        )
    window = kernel.size or (1,)
    picks = np.eye(taps, dtype=np.float32).reshape(1, taps, 1, *window)
    filters = np.broadcast_to(picks, (images.channels, *picks.shape[1:])).reshape(-1, 1, *window)
    spatial = kernel.convolved(layer, images.spatial)
    shape: list[Dim] = [graph.shape(images.tensor)[0], images.channels * taps, *(spatial or (1,))]
    result = graph.node(
        "Conv",
        [images.tensor, graph.constant(filters)],
        tops if images.is_plain else None,
        shape=shape,
        group=images.channels,
        **kernel.attributes(images.spatial),
    )
    if not images.is_plain:
        images.restored(graph, result, images.channels * taps, spatial, tops[0])
