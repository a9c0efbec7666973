"""Layers that sample an image at computed, fractional positions by bilinear interpolation."""

from __future__ import annotations

import math

import numpy as np

from converters.graph import Array, Graph
from converters.handlers.convolution import Kernel
from converters.layer import Layer
from converters.registry import handles
from converters.shape import Dim, Shape, product, show

MAX_POSITIONS = 2**24  # output pixels, whose positions the model stores
_OLDEST = 16  # the opset of GridSample
_THETAS = ("theta_1_1", "theta_1_2", "theta_1_3", "theta_2_1", "theta_2_2", "theta_2_3")


def grid_sample(
    layer: Layer, graph: Graph, image: str, grid: str, padding: str, outputs: tuple[str, ...] | None = None
) -> str:
    """Bilinear samples of an image.

    Args:
        layer: The layer, for errors.
        graph: The graph.
        image: (N, C, H, W).
        grid: (N, h, w, 2): x, y; -1 and 1 are the outer edges of the first and last pixels.
        padding: The values beyond the image: ``"zeros"``, or ``"border"`` for those of its outermost pixels.
        outputs: The tensor to write.

    Returns:
        (N, C, h, w).

    Raises:
        ConversionError: The opset has no GridSample.
    """
    if graph.opset < _OLDEST:
        raise layer.error(
            f"found opset {graph.opset}, expected at least {_OLDEST}, which has GridSample: --opset {_OLDEST}"
        )
    batch, channels = graph.shape(image)[:2]
    return graph.node(
        "GridSample",
        [image, grid],
        outputs,
        shape=(batch, channels, *graph.shape(grid)[1:3]),
        mode="bilinear" if graph.opset < 20 else "linear",
        padding_mode=padding,
        align_corners=0,
    )


def within(graph: Graph, y: str, x: str, height: int, width: int) -> str:
    """Whether positions in pixels are inside an image, in [0, size): a bool tensor."""
    zero = graph.constant(0.0)
    checks = []
    for position, size in ((y, height), (x, width)):
        checks.append(graph.node("GreaterOrEqual", [position, zero], dtype=np.bool_))
        checks.append(graph.node("Less", [position, graph.constant(float(size))], dtype=np.bool_))
    inside = checks[0]
    for check in checks[1:]:
        inside = graph.node("And", [inside, check])
    return inside


def sample_inside(
    layer: Layer,
    graph: Graph,
    image: str,
    y: str,
    x: str,
    *,
    fill: float = 0.0,
    outputs: tuple[str, ...] | None = None,
) -> str:
    """Bilinear samples at positions in pixels; a fixed value for positions outside [0, H) x [0, W).

    Between the last pixel and the edge beyond it, the value is that of the last pixel.

    Args:
        layer: The layer, for errors.
        graph: The graph.
        image: (N, C, H, W).
        y: Rows, (N, h, w).
        x: Columns, (N, h, w).
        fill: The value for positions outside the image.
        outputs: The tensor to write.

    Returns:
        (N, C, h, w).
    """
    height, width = (int(size) for size in graph.shape(image)[2:])
    batch, *size = graph.shape(y)
    grid = graph.concat([_as_grid(graph, x, width), _as_grid(graph, y, height)], 3)
    sampled = grid_sample(layer, graph, image, grid, "border")
    inside = graph.reshape(within(graph, y, x, height, width), (batch, 1, *size))
    return graph.node("Where", [inside, sampled, graph.constant(fill)], outputs, dtype=np.float32)


def _as_grid(graph: Graph, position: str, size: int) -> str:
    """Convert positions in pixels, (N, h, w), to GridSample's coordinates: (N, h, w, 1)."""
    scaled = graph.node("Mul", [position, graph.constant(2 / size)])
    shifted = graph.node("Add", [scaled, graph.constant(1 / size - 1)])
    return graph.reshape(shifted, (*graph.shape(position), 1))


# ------------------------------------------------------------------------------------------------- spatial transformer


@handles(
    "SpatialTransformer",
    operators="Flatten Slice Expand Shape Concat Gather Reshape MatMul Transpose Add GridSample",
    restrictions="affine, bilinear; opset 16 or later",
    origin="daerduoCarey/SpatialTransformerLayer",
)
def spatial_transformer(layer: Layer, graph: Graph) -> None:
    """An image transformed by an affine map that the network computes (Jaderberg et al. 2015).

    The map takes positions in the output to positions in the input. Coordinates range from -1 to 1, rows before
    columns.
    """
    layer.expect(bottoms=2, tops=1)
    param = layer.params.st_param
    if (param.transform_type, param.sampler_type) != ("affine", "bilinear"):
        raise layer.error(
            f"found transform_type {param.transform_type!r} and sampler_type {param.sampler_type!r}, expected 'affine' "
            "and 'bilinear'"
        )
    image = layer.bottoms[0]
    batch, _, height, width = graph.image_shape(image)
    out = (param.output_H or height, param.output_W or width)
    if min(out) < 1 or out[0] * out[1] > MAX_POSITIONS:
        raise layer.error(
            f"found output_H {out[0]:,} and output_W {out[1]:,}, expected sizes of at least 1 with at most "
            f"{MAX_POSITIONS:,} pixels"
        )
    rows, columns = (np.arange(size, dtype=np.float32) / np.float32(size) * 2 - 1 for size in out)
    places = np.stack(
        [*(axis.ravel() for axis in np.meshgrid(rows, columns, indexing="ij")), np.ones(out[0] * out[1], np.float32)]
    )
    theta = graph.reshape(_affine(layer, graph, batch), (batch, 2, 3))
    mapped = graph.node("MatMul", [theta, graph.constant(places)], shape=(batch, 2, out[0] * out[1]))
    pairs = graph.transpose(mapped, (0, 2, 1))
    # 0 is the center of the first pixel in the layer; -1 is its outer edge in GridSample.
    shifted = graph.node("Add", [pairs, graph.constant([1 / width, 1 / height])])
    grid_sample(layer, graph, image, graph.reshape(shifted, (batch, *out, 2)), "zeros", layer.tops)


def _affine(layer: Layer, graph: Graph, batch: Dim) -> str:
    """The six numbers of the map, (N, 6): the row for x before that for y. The prototxt may fix some."""
    param, theta = layer.params.st_param, layer.bottoms[1]
    fixed = [getattr(param, name) if param.HasField(name) else None for name in _THETAS]
    items, *numbers = graph.shape(theta) or (0,)
    if product(numbers) != fixed.count(None) or not graph.same(items, batch):
        raise layer.error(
            f"found {show(graph.shape(theta))} for the blob {theta!r} and {6 - fixed.count(None)} theta in the "
            f"prototxt, expected N x {fixed.count(None)}: six numbers together"
        )
    values = graph.flatten(theta, 1) if graph.rank(theta) != 2 else theta
    constants = [value for value in fixed if value is not None]
    if constants:
        values = graph.concat([values, _for_each_item(graph, values, constants)], 1)
    own, stored = iter(range(fixed.count(None))), iter(range(fixed.count(None), 6))
    order = [next(own) if value is None else next(stored) for value in fixed]
    return graph.node("Gather", [values, graph.constant([*order[3:], *order[:3]], np.int64)], shape=(batch, 6), axis=1)


def _for_each_item(graph: Graph, like: str, values: list[float]) -> str:
    """A row of numbers, repeated for each item of a batch: (N, len(values))."""
    batch = graph.shape(like)[0]
    shape = graph.node("Shape", [like], shape=(graph.rank(like),), dtype=np.int64)
    sizes = graph.concat([graph.slice(shape, 0, 0, 1), graph.constant([len(values)], np.int64)], 0)
    return graph.node("Expand", [graph.constant([values]), sizes], shape=(batch, len(values)))


# ---------------------------------------------------------------------------------------------- deformable convolution


@handles(
    "DeformableConvolution",
    operators="Reshape Slice Add Sub Mul Clip GreaterOrEqual Less And Where Cast Concat GridSample Conv DeformConv",
    restrictions="opset 16 or later; one DeformConv from opset 19; a position beyond the image gives 0, as in the "
    "fork; deformable groups divide the channels, as in the paper (the fork divides the height instead)",
    origin="unsky/Deformable-ConvNets-caffe",
)
def deformable_convolution(layer: Layer, graph: Graph) -> None:
    """Convolution whose taps are displaced by offsets that the network computes (Dai et al. 2017)."""
    layer.expect(bottoms=2, tops=1)
    param = layer.params.deformable_convolution_param
    batch, channels, *spatial = graph.image_shape(layer.bottoms[0])
    kernel = Kernel.of(layer, 2, param)
    size = kernel.convolved(layer, spatial)
    groups, group, outputs = param.deformable_group, param.group, param.num_output
    if not group or not groups or not outputs or channels % group or outputs % group or channels % groups:
        raise layer.error(
            f"found num_output {outputs}, group {group} and deformable_group {groups} for {channels} channels, "
            "expected groups that divide the channels, and a group that divides num_output"
        )
    taps = math.prod(kernel.size)
    expected = (batch, 2 * groups * taps, *size)
    offsets = graph.shape(layer.bottoms[1])
    if len(offsets) != 4 or not all(map(graph.same, offsets, expected)):
        raise layer.error(
            f"found {show(offsets)} for the blob {layer.bottoms[1]!r}, expected {show(expected)}: a row and a column "
            "for each tap of each deformable group"
        )
    shapes = [(outputs, channels // group, *kernel.size)] + ([(outputs,)] if param.bias_term else [])
    weight, *bias = layer.weights(*shapes)
    taps_at = _Taps.of(layer, graph, kernel, groups, size)
    emit = _by_operator if graph.opset >= 19 else _by_samples
    emit(layer, graph, kernel, taps_at, weight, bias)


class _Taps:
    """The positions of the taps of a deformable convolution.

    Attributes:
        base: The positions without offsets, two arrays (1, taps, h * w): rows and columns.
        y: Their rows, (N * groups, taps, h * w).
        x: Their columns.
        groups: The number of deformable groups.
        size: h and w of the output.
    """

    def __init__(self, base: tuple[Array, Array], y: str, x: str, groups: int, size: tuple[int, ...]) -> None:
        self.base, self.y, self.x, self.groups, self.size = base, y, x, groups, size

    @classmethod
    def of(cls, layer: Layer, graph: Graph, kernel: Kernel, groups: int, size: tuple[int, ...]) -> _Taps:
        taps, places = math.prod(kernel.size), math.prod(size)
        axes = [
            np.arange(out) * step - pad + (np.arange(length) * dilation)[:, None]  # (length, out)
            for out, step, pad, length, dilation in zip(
                size, kernel.stride, kernel.pad, kernel.size, kernel.dilation, strict=True
            )
        ]
        full = (*kernel.size, *size)
        rows = np.broadcast_to(axes[0][:, None, :, None], full).reshape(1, taps, places).astype(np.float32)
        columns = np.broadcast_to(axes[1][None, :, None, :], full).reshape(1, taps, places).astype(np.float32)
        batch = product((graph.shape(layer.bottoms[1])[0], groups))
        assert batch is not None  # of one axis
        offsets = graph.reshape(layer.bottoms[1], (batch, taps, 2, places))
        positions = []
        for index, base in enumerate((rows, columns)):
            offset = graph.reshape(graph.slice(offsets, 2, index, index + 1), (batch, taps, places))
            positions.append(graph.node("Add", [offset, graph.constant(base)]))
        return cls((rows, columns), positions[0], positions[1], groups, size)


def _by_samples(
    layer: Layer, graph: Graph, kernel: Kernel, taps: _Taps, weight: np.ndarray, bias: list[np.ndarray]
) -> None:
    """The pixels under all taps as channels, followed by a 1 x 1 convolution."""
    image, top = layer.bottoms[0], layer.tops
    batch, channels, *spatial = graph.shape(image)
    groups, count = taps.groups, math.prod(kernel.size)
    grouped = graph.reshape(image, (*graph.shape(taps.y)[:1], int(channels) // groups, *spatial))
    sampled = sample_inside(layer, graph, grouped, taps.y, taps.x)
    columns = graph.reshape(sampled, (batch, int(channels) * count, *taps.size))
    flat = weight.reshape(weight.shape[0], -1, 1, 1)
    graph.node(
        "Conv",
        [columns, graph.weight("weight", flat), *(graph.weight("bias", values) for values in bias)],
        top,
        shape=(batch, weight.shape[0], *taps.size),
        kernel_shape=[1, 1],
        group=layer.params.deformable_convolution_param.group,
    )


def _by_operator(
    layer: Layer, graph: Graph, kernel: Kernel, taps: _Taps, weight: np.ndarray, bias: list[np.ndarray]
) -> None:
    """ONNX's DeformConv, with positions outside the image masked and those near its edge clipped to it.

    By itself, DeformConv lets a position up to one pixel beyond the edge contribute the pixel at the edge.
    """
    image, top = layer.bottoms[0], layer.tops
    batch, _, *spatial = graph.shape(image)
    rows = graph.shape(taps.y)[0]
    count, places = math.prod(kernel.size), math.prod(taps.size)
    inside = within(graph, taps.y, taps.x, int(spatial[0]), int(spatial[1]))
    mask = graph.reshape(graph.cast(inside, np.float32), (batch, taps.groups * count, *taps.size))
    moved = []
    for position, base, size in zip((taps.y, taps.x), taps.base, spatial, strict=True):
        kept = graph.node("Clip", [position, graph.constant(0.0), graph.constant(float(int(size) - 1))],
                          shape=graph.shape(position))  # fmt: skip
        offset = graph.node("Sub", [kept, graph.constant(base)])
        moved.append(graph.reshape(offset, (rows, count, 1, places)))
    offsets = graph.reshape(graph.concat(moved, 2), (batch, 2 * taps.groups * count, *taps.size))
    zeros = bias[0] if bias else np.zeros(weight.shape[0], np.float32)
    graph.node(
        "DeformConv",
        [image, graph.weight("weight", weight), offsets, graph.weight("bias", zeros), mask],
        top,
        shape=(batch, weight.shape[0], *taps.size),
        group=layer.params.deformable_convolution_param.group,
        offset_group=taps.groups,
        **kernel.attributes([int(size) for size in spatial]),
    )


# ------------------------------------------------------------------------------------------------------------ ROIAlign


@handles(
    "ROIAlign",
    operators="Slice Reshape Cast RoiAlign",
    restrictions="at most opset 21: ONNX Runtime has no RoiAlign of opset 22; parameters in roi_align_param: averages "
    "of bilinear samples, as in Mask R-CNN; forks with parameters in roi_pooling_param (maxima, or values at the "
    "corners of a grid) are refused",
    origin="Mask R-CNN ports",
)
def roi_align(layer: Layer, graph: Graph) -> None:
    """RoI align: averages of bilinear samples in the bins of each region (He et al. 2017)."""
    layer.expect(bottoms=2, tops=1)
    if graph.opset >= 22:
        raise layer.error(f"found opset {graph.opset}, expected at most 21: ONNX Runtime has no newer RoiAlign")
    if not layer.params.HasField("roi_align_param"):
        raise layer.error(
            "found no roi_align_param, expected one: forks that describe ROIAlign in roi_pooling_param compute "
            "different things, so write a handler for yours and name it with --plugin"
        )
    features, regions = layer.bottoms
    param = layer.params.roi_align_param
    if not param.pooled_h or not param.pooled_w:
        raise layer.error(
            f"found pooled_h {param.pooled_h} and pooled_w {param.pooled_w}, expected both to be at least 1"
        )
    _, channels, _, _ = graph.image_shape(features)
    count, *rest = graph.shape(regions)
    if math.prod(graph.fixed(dim, "the size of a region") for dim in rest) != 5:
        raise layer.error(f"found {show(graph.shape(regions))} for the blob {regions!r}, expected 5 numbers per region")
    flat = regions if len(rest) == 1 else graph.reshape(regions, (count, 5))
    items = graph.cast(graph.reshape(graph.slice(flat, 1, 0, 1), (count,)), np.int64)
    shape: Shape = (count, channels, param.pooled_h, param.pooled_w)
    graph.node(
        "RoiAlign",
        [features, graph.slice(flat, 1, 1, 5), items],
        layer.tops,
        shape=shape,
        mode="avg",
        output_height=param.pooled_h,
        output_width=param.pooled_w,
        sampling_ratio=max(param.sampling_ratio, 0),
        spatial_scale=param.spatial_scale,
        coordinate_transformation_mode="output_half_pixel" if graph.opset >= 16 else None,
    )
