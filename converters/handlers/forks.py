"""Small layers, each of which came with the fork of one architecture."""

from __future__ import annotations

import numpy as np

from converters.graph import Graph
from converters.net import Layer
from converters.registry import handles
from converters.schema.caffe_pb2 import BNParameter
from converters.shape import show

_SEGNET_EPS = 1e-9  # fixed in its source
_PSPNET_EPS = 1e-5  # its default


@handles(
    "BN",
    operators="Mul Add ReduceMean Sub Sqrt Div BatchNormalization",
    restrictions="two blobs are SegNet's (bn_mode LEARN: the statistics of the batch), four are PSPNet's (stored "
    "statistics)",
    origin="SegNet, PSPNet",
)
def bn(layer: Layer, graph: Graph) -> None:
    """Batch normalization with its factors and offsets in one layer."""
    layer.expect(bottoms=1, tops=range(1, 4))
    bottom = layer.bottoms[0]
    if graph.rank(bottom) != 4:
        raise layer.error(f"found {show(graph.shape(bottom))} for the blob {bottom!r}, expected N x C x H x W")
    channels = graph.fixed(graph.shape(bottom)[1], "the number of channels")
    blobs = layer.weights(*[(1, channels, 1, 1)] * (4 if len(layer.blobs) == 4 else 2))
    learns = layer.params.bn_param.bn_mode == BNParameter.LEARN
    if len(layer.tops) > 1 and (len(blobs) == 4 or not learns):
        raise layer.error(f"found {len(layer.tops)} tops, expected 1: only bn_mode LEARN has statistics to give out")
    if len(blobs) == 4:
        _with_stored_statistics(layer, graph, blobs)
        return
    normalized = _by_own_statistics(layer, graph, bottom) if learns else bottom
    scaled = graph.node("Mul", [normalized, graph.weight("weight", blobs[0])])
    graph.node("Add", [scaled, graph.weight("bias", blobs[1])], layer.tops[:1])


def _with_stored_statistics(layer: Layer, graph: Graph, blobs: list[np.ndarray]) -> None:
    param = layer.params.bn_param
    names = zip(("weight", "bias", "mean", "variance"), blobs, strict=True)
    graph.node(
        "BatchNormalization",
        [layer.bottoms[0], *(graph.weight(name, blob.reshape(-1)) for name, blob in names)],
        layer.tops,
        shape=graph.shape(layer.bottoms[0]),
        epsilon=param.eps if param.HasField("eps") else _PSPNET_EPS,
    )


def _by_own_statistics(layer: Layer, graph: Graph, bottom: str) -> str:
    """(x - mean) / sqrt(variance + eps) over the batch; mean and variance, (1, C, 1, 1), are further tops."""
    mean_top, variance_top = (layer.tops[index : index + 1] or None for index in (1, 2))
    mean = graph.reduce("Mean", bottom, [0, 2, 3], mean_top)
    centered = graph.node("Sub", [bottom, mean])
    variance = graph.reduce("Mean", graph.node("Mul", [centered, centered]), [0, 2, 3], variance_top)
    deviation = graph.node("Sqrt", [graph.node("Add", [variance, graph.constant(_SEGNET_EPS)])])
    return graph.node("Div", [centered, deviation])


@handles("Axpy", operators="Reshape Mul Add", origin="SENet")
def axpy(layer: Layer, graph: Graph) -> None:
    """Factors for each channel of each item, times x, plus y: the end of a squeeze-and-excitation block."""
    layer.expect(bottoms=3, tops=1)
    factors, x, y = layer.bottoms
    shape = graph.same_shape([x, y])
    found = graph.shape(factors)
    ones = (1,) * (len(shape) - 2)
    fits = len(found) >= 2 and len(shape) >= 2 and all(map(graph.same, shape[:2], found[:2]))
    if not fits or any(dim != 1 for dim in found[2:]):
        raise layer.error(f"found factors of {show(found)}, expected {show((*shape[:2], *ones))}")
    if len(found) != len(shape):
        factors = graph.reshape(factors, (*shape[:2], *ones))
    graph.node("Add", [graph.node("Mul", [factors, x], shape=shape), y], layer.tops)


@handles("ShuffleChannel", operators="Reshape Transpose", origin="ShuffleNet")
def shuffle_channel(layer: Layer, graph: Graph) -> None:
    """The first channel of each group, then the second of each, and so on (Zhang et al. 2018)."""
    bottom, top = layer.ends()
    shape = graph.shape(bottom)
    if len(shape) < 2:
        raise layer.error(f"found {show(shape)} for the blob {bottom!r}, expected channels at axis 1")
    channels = graph.fixed(shape[1], "the number of channels")
    group = layer.params.shuffle_channel_param.group
    if group < 1 or channels % group:
        raise layer.error(f"found group {group} for {channels} channels, expected a divisor of their number")
    rest = shape[2:]
    grouped = graph.reshape(bottom, (shape[0], group, channels // group, *rest))
    shuffled = graph.transpose(grouped, (0, 2, 1, *range(3, 3 + len(rest))))
    graph.reshape(shuffled, shape, top)


@handles("ReLU6", operators="Clip", restrictions="no negative_slope", origin="MobileNet")
def relu6(layer: Layer, graph: Graph) -> None:
    """min(max(x, 0), 6)."""
    bottom, top = layer.ends()
    param = layer.params.relu6_param
    if param.negative_slope or param.threshold <= 0:
        raise layer.error(
            f"found negative_slope {param.negative_slope} and threshold {param.threshold}, expected 0 and more than 0"
        )
    graph.node("Clip", [bottom, graph.constant(0.0), graph.constant(param.threshold)], top)


@handles("Flip", operators="Slice Identity", origin="caffe-windows")
def flip(layer: Layer, graph: Graph) -> None:
    """The image mirrored along its width, its height, or both; along the width by default."""
    bottom, top = layer.ends()
    param = layer.params.flip_param
    if graph.rank(bottom) != 4:
        raise layer.error(f"found {show(graph.shape(bottom))} for the blob {bottom!r}, expected N x C x H x W")
    axes = [axis for axis, flips in ((2, param.flip_height), (3, param.flip_width)) if flips]
    if not axes:
        graph.node("Identity", [bottom], top)
    for axis in axes:
        bottom = graph.slice(bottom, axis, 0, None, top if axis == axes[-1] else None, step=-1)
