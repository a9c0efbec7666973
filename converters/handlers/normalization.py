"""Layers that normalize by statistics or neighbors, and layers that scale and shift by learned factors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from converters.graph import Graph
from converters.handlers.pooling import pool, windows_of
from converters.layer import Layer
from converters.registry import handles
from converters.schema.caffe_pb2 import BNParameter, LRNParameter, PoolingParameter
from converters.shape import Shape, show

_LEAST_EPS = 1e-5  # cuDNN's CUDNN_BN_MIN_EPSILON
_SEGNET_EPS = 1e-9  # fixed in SegNet's source
_PSPNET_EPS = 1e-5  # PSPNet's default


@handles(
    "LRN",
    operators="LRN Mul AveragePool GlobalAveragePool Add Pow Div Reshape",
    restrictions="WITHIN_CHANNEL ignores k, as in Caffe",
)
def lrn(layer: Layer, graph: Graph) -> None:
    """Local response normalization across or within channels (Krizhevsky et al. 2012, section 3.3)."""
    bottom, top = layer.ends()
    param = layer.params.lrn_param
    if not param.local_size % 2:
        raise layer.error(f"found local_size {param.local_size}, expected an odd number")
    graph.expect_images(bottom)
    is_across = param.norm_region == LRNParameter.ACROSS_CHANNELS
    if is_across and param.alpha > 0 and param.beta > 0:
        graph.node("LRN", [bottom], top, size=param.local_size, alpha=param.alpha, beta=param.beta, bias=param.k)
        return
    squares = graph.node("Mul", [bottom, bottom])
    mean = (_mean_across if is_across else _mean_within)(layer, graph, squares, param.local_size)
    scaled = graph.node("Mul", [mean, graph.constant(param.alpha)])
    shifted = graph.node("Add", [scaled, graph.constant(param.k if is_across else 1.0)])
    graph.node("Div", [bottom, graph.node("Pow", [shifted, graph.constant(param.beta)])], top)


def _mean_within(layer: Layer, graph: Graph, tensor: str, size: int) -> str:
    """The mean over a window around each pixel, in its channel."""
    sizes = graph.fixed_shape(tensor, 2, "the image's size")
    windows = windows_of(sizes, [size] * 2, (1, 1), [(size - 1) // 2] * 2)
    return pool(layer, graph, PoolingParameter.AVE, tensor, windows)


def _mean_across(layer: Layer, graph: Graph, tensor: str, size: int) -> str:
    """The mean over neighboring channels, padded with zeros: ONNX Runtime's LRN requires positive factors."""
    shape = graph.shape(tensor)
    channels, *image = graph.fixed_shape(tensor, 1, "the number of channels and the image's size")
    stacked = graph.reshape(tensor, (shape[0], 1, channels, image[0] * image[1]))
    windows = windows_of((channels, image[0] * image[1]), (size, 1), (1, 1), ((size - 1) // 2, 0))
    return graph.reshape(pool(layer, graph, PoolingParameter.AVE, stacked, windows), shape)


@handles(
    "BatchNorm",
    operators="BatchNormalization ReduceMean Sub Mul Add Sqrt Div",
    restrictions="stored statistics, or those of the batch with `use_global_stats: false`; merged with a following "
    "Scale layer into one node; NVIDIA's `scale_bias` adds a factor and an offset",
    origin="BVLC, NVIDIA",
)
def batch_norm(layer: Layer, graph: Graph) -> None:
    """(x - mean) / sqrt(variance + eps) per channel (Ioffe and Szegedy 2015), and a following Scale."""
    bottom, top = layer.ends()
    param = layer.params.batch_norm_param
    if graph.rank(bottom) < 2:
        raise layer.error(f"found a blob of {graph.rank(bottom)} axis, expected channels at axis 1")
    channels = graph.fixed(graph.shape(bottom)[1], "the number of channels")
    # In testing, NVIDIA's fork ignores use_global_stats and uses the stored statistics.
    if param.HasField("use_global_stats") and not param.use_global_stats and not _has_scale_bias(layer):
        graph.note("use_global_stats is false, so the layer normalizes by the statistics of each batch, as in Caffe")
        _by_own_statistics(layer, graph, bottom, channels)
        return
    factors = [(channels,)] * (2 if _has_scale_bias(layer) else 0)
    mean, variance, factor, *own = layer.weights((channels,), (channels,), (1,), *factors)
    scale, bias = _scale_after(layer, channels, own)
    # The file holds running sums and their divisor, which is 0 in an untrained layer.
    correction = np.float32(0 if factor[0] == 0 else 1 / factor[0])
    owner = layer.scale or layer
    graph.node(
        "BatchNormalization",
        [
            bottom,
            graph.weight_of(owner, "weight", scale),
            graph.weight_of(owner, "bias", bias),
            graph.weight("mean", mean * correction),
            graph.weight("variance", variance * correction),
        ],
        top,
        shape=graph.shape(bottom),
        epsilon=_epsilon(layer),
    )


def _has_scale_bias(layer: Layer) -> bool:
    """Whether NVIDIA's BatchNorm has a factor and an offset per channel; a filler for either implies both."""
    param = layer.params.batch_norm_param
    return param.scale_bias or param.HasField("scale_filler") or param.HasField("bias_filler")


def _epsilon(layer: Layer) -> float:
    """eps, which NVIDIA's fork raises to cuDNN's minimum."""
    eps = layer.params.batch_norm_param.eps
    return max(eps, _LEAST_EPS) if _has_scale_bias(layer) else eps


def _scale_after(layer: Layer, channels: int, own: Sequence[np.ndarray] = ()) -> tuple[np.ndarray, np.ndarray]:
    """The factors and offsets that follow the normalization; ones and zeros by default.

    Args:
        layer: A BatchNorm, with the Scale layer merged into it, if any.
        channels: The number of channels.
        own: The BatchNorm's own factors and offsets (NVIDIA), each (channels,); applied before the Scale layer's.
    """
    scale, bias = own or (np.ones(channels, np.float32), np.zeros(channels, np.float32))
    if layer.scale is None:
        return scale, bias
    shapes = [(channels,)] * (2 if layer.scale.params.scale_param.bias_term else 1)
    behind, *offset = layer.scale.weights(*shapes)
    if own:
        return scale * behind, bias * behind + (offset[0] if offset else 0)
    return behind, offset[0] if offset else bias


def _by_own_statistics(layer: Layer, graph: Graph, bottom: str, channels: int) -> None:
    axes = [axis for axis in range(graph.rank(bottom)) if axis != 1]
    tops = None if layer.scale else layer.tops
    normal = _standardized(graph, bottom, axes, layer.params.batch_norm_param.eps, tops)
    if layer.scale:
        scale, bias = _scale_after(layer, channels)
        shape = (channels, *(1,) * (graph.rank(bottom) - 2))
        scaled = graph.node("Mul", [normal, graph.weight_of(layer.scale, "weight", scale.reshape(shape))])
        graph.node("Add", [scaled, graph.weight_of(layer.scale, "bias", bias.reshape(shape))], layer.tops)


def _standardized(
    graph: Graph,
    tensor: str,
    axes: Sequence[int],
    eps: float,
    outputs: Sequence[str] | None = None,
    *,
    mean: Sequence[str] | None = None,
    variance: Sequence[str] | None = None,
) -> str:
    """(x - mean) / sqrt(variance + eps), with the statistics of the tensor itself over some axes.

    Args:
        graph: The graph.
        tensor: x.
        axes: The axes that the statistics are taken over.
        eps: Added to the variance.
        outputs: The name of the result; None for a new one.
        mean: The name of the mean, the same way.
        variance: The name of the biased variance, the same way.
    """
    centered = graph.node("Sub", [tensor, graph.reduce("Mean", tensor, axes, mean)])
    spread = graph.reduce("Mean", graph.node("Mul", [centered, centered]), axes, variance)
    deviation = graph.node("Sqrt", [graph.node("Add", [spread, graph.constant(eps)])])
    return graph.node("Div", [centered, deviation], outputs)


@handles(
    "BN",
    operators="Mul Add ReduceMean Sub Sqrt Div BatchNormalization",
    restrictions="with two blobs SegNet's (bn_mode LEARN: the statistics of the batch), with four PSPNet's (stored "
    "statistics)",
    origin="SegNet, PSPNet",
)
def bn(layer: Layer, graph: Graph) -> None:
    """Batch normalization, including factors and offsets."""
    layer.expect(bottoms=1, tops=range(1, 4))
    bottom = layer.bottoms[0]
    graph.expect_images(bottom)
    channels = graph.fixed(graph.shape(bottom)[1], "the number of channels")
    blobs = layer.weights(*[(1, channels, 1, 1)] * (4 if len(layer.blobs) == 4 else 2))
    learns = layer.params.bn_param.bn_mode == BNParameter.LEARN
    if len(layer.tops) > 1 and (len(blobs) == 4 or not learns):
        raise layer.error(f"found {len(layer.tops)} tops, expected 1: only bn_mode LEARN outputs statistics")
    if len(blobs) == 4:
        _with_stored_statistics(layer, graph, blobs)
        return
    mean, variance = (layer.tops[index : index + 1] or None for index in (1, 2))
    normalized = (
        _standardized(graph, bottom, [0, 2, 3], _SEGNET_EPS, mean=mean, variance=variance) if learns else bottom
    )
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


@handles("MVN", operators="ReduceMean Sub Mul Sqrt Add Div Reshape")
def mvn(layer: Layer, graph: Graph) -> None:
    """Mean and variance normalization of each image, per channel or across channels. The top has four axes."""
    bottom, top = layer.ends()
    param = layer.params.mvn_param
    rank = graph.rank(bottom)
    if not 1 <= rank <= 4:
        raise layer.error(f"found a blob of {rank} axes, expected 1 to 4")
    if rank < 4:
        bottom = graph.reshape(bottom, (*graph.shape(bottom), *(1,) * (4 - rank)))
    axes = [1, 2, 3] if param.across_channels else [2, 3]
    mean = graph.reduce("Mean", bottom, axes)
    centered = graph.node("Sub", [bottom, mean], None if param.normalize_variance else top)
    if param.normalize_variance:
        variance = graph.reduce("Mean", graph.node("Mul", [centered, centered]), axes)
        deviation = graph.node("Add", [graph.node("Sqrt", [variance]), graph.constant(param.eps)])
        graph.node("Div", [centered, deviation], top)


@handles(
    "Normalize",
    operators="ReduceSumSquare Add Sqrt Div Mul",
    restrictions='caffe-windows\' (identified by `normalize_param`) with `normalize_type: "L2"`, for vectors',
    origin="SSD, caffe-windows",
    reads="normalize_param",
)
def normalize(layer: Layer, graph: Graph) -> None:
    """L2 normalization of each position or each item, times learned factors (Liu et al. 2015, ParseNet)."""
    bottom, top = layer.ends()
    param = layer.params.norm_param
    rank = graph.rank(bottom)
    if rank < 2:
        raise layer.error(f"found {show(graph.shape(bottom))} for the blob {bottom!r}, expected channels at axis 1")
    squares = graph.reduce("SumSquare", bottom, range(1, rank) if param.across_spatial else [1])
    norm = graph.node("Sqrt", [graph.node("Add", [squares, graph.constant(param.eps)])])
    if "normalize_param" in layer.extra:
        _check_vectors(layer, graph)
        graph.node("Div", [bottom, norm], top)
        return
    channels = graph.fixed(graph.shape(bottom)[1], "the number of channels")
    (scale,) = layer.weights(_scale_shape(layer, channels))
    factors = graph.weight("scale", scale.reshape(-1, *(1,) * (rank - 2)))
    graph.node("Mul", [graph.node("Div", [bottom, norm]), factors], top)


def _check_vectors(layer: Layer, graph: Graph) -> None:
    """Refuse the cases that versions of caffe-windows compute differently: other norms, and spatial maps."""
    given = layer.extra["normalize_param"]
    kind = given.get("normalize_type", "L2") if isinstance(given, dict) else given
    shape = graph.shape(layer.bottoms[0])
    if kind != "L2" or any(dim != 1 for dim in shape[2:]):
        raise layer.error(f"found normalize_type {kind!r} for {show(shape)}, expected 'L2' for N x C, or N x C x 1 x 1")


def _scale_shape(layer: Layer, channels: int) -> tuple[int, ...]:
    """One factor per channel, or one for all, which files store as () or (1,)."""
    if not layer.params.norm_param.channel_shared:
        return (channels,)
    return layer.blobs[0].shape if layer.blobs and layer.blobs[0].size == 1 else ()


@handles("Scale", operators="Mul Add Reshape", restrictions="merged into a preceding BatchNorm if possible")
def scale(layer: Layer, graph: Graph) -> None:
    """x * factor, from an axis on, plus an optional offset. The factor is learned or the second bottom."""
    param = layer.params.scale_param
    _check_operands(layer)
    bottom = layer.bottoms[0]
    if len(layer.bottoms) == 2:
        factor, axis = _second_bottom(layer, graph, param.axis)
        axes = graph.rank(layer.bottoms[1])
        learned = [_operand_shape(layer, graph, axis, axes)] if param.bias_term else []
        offsets = layer.weights(*learned)
    else:
        axis = _first_axis(layer, graph, param.axis, param.num_axes)
        shape = _operand_shape(layer, graph, axis, param.num_axes)
        factors, *offsets = layer.weights(*[shape] * (2 if param.bias_term else 1))
        factor = graph.weight("weight", _aligned(graph, bottom, factors, axis))
    scaled = graph.node("Mul", [bottom, factor], None if param.bias_term else layer.tops, shape=graph.shape(bottom))
    if param.bias_term:
        offset = graph.weight("bias", _aligned(graph, bottom, offsets[0], axis))
        graph.node("Add", [scaled, offset], layer.tops, shape=graph.shape(bottom))


@handles("Bias", operators="Add Reshape")
def bias(layer: Layer, graph: Graph) -> None:
    """x + offset, from an axis on. The offset is learned or the second bottom."""
    param = layer.params.bias_param
    _check_operands(layer)
    bottom = layer.bottoms[0]
    if len(layer.bottoms) == 2:
        offset, _ = _second_bottom(layer, graph, param.axis)
    else:
        axis = _first_axis(layer, graph, param.axis, param.num_axes)
        (values,) = layer.weights(_operand_shape(layer, graph, axis, param.num_axes))
        offset = graph.weight("bias", _aligned(graph, bottom, values, axis))
    graph.node("Add", [bottom, offset], layer.tops, shape=graph.shape(bottom))


def _check_operands(layer: Layer) -> None:
    layer.expect(bottoms=range(1, 3), tops=1)


def _first_axis(layer: Layer, graph: Graph, axis: int, num_axes: int) -> int:
    if num_axes < -1:
        raise layer.error(f"found num_axes {num_axes}, expected -1 (all axes from the first on), 0 (a scalar) or more")
    return graph.axis(layer.bottoms[0], axis)


def _operand_shape(layer: Layer, graph: Graph, axis: int, num_axes: int) -> tuple[int, ...]:
    """The shape of the learned operand: the sizes of the first bottom that it covers."""
    shape = graph.shape(layer.bottoms[0])
    end = len(shape) if num_axes == -1 else axis + num_axes
    if end > len(shape):
        raise layer.error(f"found axis {axis} and num_axes {num_axes}, expected them within {show(shape)}")
    return tuple(graph.fixed(dim, "the size of its weights") for dim in shape[axis:end])


def _aligned(graph: Graph, bottom: str, values: np.ndarray, axis: int) -> np.ndarray:
    """A view of the operand with trailing axes of size 1, so that it broadcasts as in Caffe."""
    if not values.ndim:
        return values.reshape(1)
    behind = graph.rank(bottom) - axis - values.ndim
    return values.reshape(*values.shape, *(1,) * behind)


def _second_bottom(layer: Layer, graph: Graph, axis: int) -> tuple[str, int]:
    """The second bottom, reshaped to broadcast along the first from an axis on, and that axis."""
    bottom, operand = layer.bottoms
    shape: Shape = graph.shape(operand)
    first = graph.axis(bottom, axis) if shape else 0
    covered = graph.shape(bottom)[first : first + len(shape)]
    if len(covered) != len(shape) or not all(map(graph.same, covered, shape)):
        raise layer.error(
            f"found {show(shape)} for the blob {operand!r}, expected the sizes of {bottom!r} "
            f"({show(graph.shape(bottom))}) from axis {first} on"
        )
    behind = graph.rank(bottom) - first - len(shape)
    if not behind or not shape:
        return operand, first
    return graph.reshape(operand, (*shape, *(1,) * behind)), first
