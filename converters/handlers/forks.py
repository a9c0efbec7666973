"""Small layers, each of which came with the fork of one architecture."""

from __future__ import annotations

import numpy as np

from converters.graph import Graph
from converters.layer import Layer
from converters.registry import handles
from converters.schema.caffe_pb2 import BNParameter
from converters.shape import Dim, show

_SEGNET_EPS = 1e-9  # fixed in its source
_PSPNET_EPS = 1e-5  # its default
MAX_PAIRED = 4096  # pixels: their pairs take 64 MiB
MAX_ITERATIONS = 1000  # CRF-RNN has ten


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


@handles(
    "MultiStageMeanfield",
    operators="Reshape Slice Mul Sub Add Exp ReduceSum Div Softmax MatMul",
    restrictions="up to 4,096 pixels, as it compares all pairs of them: exact Gaussians, which the original "
    "approximates on a permutohedral lattice; for larger images, name the blob before it with `--outputs`; no "
    "detection and superpixel potentials",
    origin="CRF-RNN",
)
def multi_stage_meanfield(layer: Layer, graph: Graph) -> None:
    """Iterations of mean field inference in a dense conditional random field (Zheng et al. 2015, algorithm 1)."""
    layer.expect(bottoms=range(3, 5), tops=range(1, 3))
    param = layer.params.multi_stage_meanfield_param
    unary, scores, image = layer.bottoms[:3]
    batch, classes, height, width = _mean_field_shape(layer, graph)
    pixels = height * width
    flat = (batch, classes, pixels)
    learned = layer.weights(*_mean_field_weights(layer, classes))[:3]
    spatial, bilateral, compatibility = (
        graph.weight(name, blob.reshape(classes, classes))
        for name, blob in zip(("spatial", "bilateral", "compatibility"), learned, strict=True)
    )
    y, x = np.divmod(np.arange(pixels, dtype=np.float32), np.float32(width))
    places = [graph.constant(axis[None]) for axis in (x, y)]
    colors = graph.reshape(image, (batch, 3, pixels))
    channels = [graph.reshape(graph.slice(colors, 1, index, index + 1), (batch, pixels)) for index in range(3)]
    near = _affinities(graph, [(place, param.theta_gamma) for place in places])
    alike = _affinities(
        graph,
        [*((place, param.theta_alpha) for place in places), *((channel, param.theta_beta) for channel in channels)],
    )
    before, current = graph.reshape(unary, flat), graph.reshape(scores, flat)
    for _ in range(param.num_iterations):
        belief = graph.node("Softmax", [current], shape=flat, axis=1)
        messages = [
            graph.node("MatMul", [weights, graph.node("MatMul", [belief, affinity], shape=flat)], shape=flat)
            for weights, affinity in ((spatial, near), (bilateral, alike))
        ]
        passed = graph.node("Add", messages)
        current = graph.node("Sub", [before, graph.node("MatMul", [compatibility, passed], shape=flat)])
    graph.reshape(current, graph.shape(unary), layer.tops[:1])


def _mean_field_shape(layer: Layer, graph: Graph) -> tuple[Dim, int, int, int]:
    """N, classes, height and width, checked."""
    param = layer.params.multi_stage_meanfield_param
    unary, image = layer.bottoms[0], layer.bottoms[2]
    shape = graph.same_shape(layer.bottoms[:2])
    seen = graph.shape(image)
    if len(shape) != 4 or len(seen) != 4 or not all(map(graph.same, seen, (shape[0], 3, *shape[2:]))):
        raise layer.error(
            f"found scores of {show(shape)} and an image of {show(seen)}, expected N x classes x H x W and "
            "N x 3 x H x W"
        )
    classes, height, width = graph.fixed_shape(unary, 1, "the number of classes and the image's size")
    if height * width > MAX_PAIRED:
        raise layer.error(
            f"found an image of {height} x {width}, expected at most {MAX_PAIRED:,} pixels: a graph compares all pairs "
            f"of them. The network up to this layer converts with --outputs {layer.params.bottom[0]}"
        )
    if len(layer.tops) > 1 or min(param.theta_alpha, param.theta_beta, param.theta_gamma) <= 0:
        raise layer.error(
            f"found {len(layer.tops)} top(s), theta_alpha {param.theta_alpha:g}, theta_beta {param.theta_beta:g} and "
            f"theta_gamma {param.theta_gamma:g}, expected one top and positive numbers"
        )
    if not 1 <= param.num_iterations <= MAX_ITERATIONS:
        raise layer.error(f"found num_iterations {param.num_iterations}, expected 1 to {MAX_ITERATIONS}")
    return shape[0], classes, height, width


def _mean_field_weights(layer: Layer, classes: int) -> list[tuple[int, ...]]:
    """Weights of both kernels, compatibilities; later versions store four more, of potentials that are not used."""
    unused = layer.blobs[3:] if len(layer.blobs) == 7 else ()
    return [(classes, classes)] * 3 + [tuple(blob.shape) for blob in unused]


def _affinities(graph: Graph, features: list[tuple[str, float]]) -> str:
    """A Gaussian of the distances between all pairs of pixels, each column divided by its sum: (N, pixels, pixels).

    Args:
        graph: The graph.
        features: Tensors (N, pixels), each with its standard deviation.
    """
    total = ""
    for values, deviation in features:
        batch, pixels = graph.shape(values)
        scaled = graph.node("Mul", [values, graph.constant(1 / (deviation * 2**0.5))])
        away = graph.node("Sub", [graph.reshape(scaled, (batch, pixels, 1)), graph.reshape(scaled, (batch, 1, pixels))])
        square = graph.node("Mul", [away, away])
        total = graph.node("Add", [total, square]) if total else square
    kernel = graph.node("Exp", [graph.node("Sub", [graph.constant(0.0), total])])
    return graph.node("Div", [kernel, graph.reduce("Sum", kernel, [1])])


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
