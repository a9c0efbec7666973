"""Position-sensitive region pooling of R-FCN (Dai et al. 2016)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from converters.graph import Graph
from converters.handlers.detection import parts
from converters.layer import Layer
from converters.registry import handles
from converters.shape import product, show


@handles(
    "PSROIPooling",
    operators="Reshape Cast Transpose CumSum Split Abs Floor Sub GreaterOrEqual Greater Sign Mul Add Max Min Ceil "
    "Gather Div",
    origin="R-FCN",
)
def psroi_pooling(layer: Layer, graph: Graph) -> None:
    """Averages over the g x g bins of each region; each bin reads separate channels.

    The sum over a bin comes from four corners of the integral image, so the cost does not grow with the size of the
    regions. Sums are in double precision, so that the differences of large sums keep single precision.
    """
    layer.expect(bottoms=2, tops=1)
    maps, regions = layer.bottoms
    param = layer.params.psroi_pooling_param
    group, outputs = param.group_size, param.output_dim
    if group < 1 or outputs < 1 or not param.spatial_scale > 0:
        raise layer.error(
            f"found group_size {group}, output_dim {outputs} and spatial_scale {param.spatial_scale:g}, expected all "
            "positive"
        )
    if graph.rank(maps) != 4 or graph.fixed(graph.shape(maps)[1], "the number of channels") != outputs * group**2:
        raise layer.error(
            f"found {show(graph.shape(maps))} for the blob {maps!r}, expected N x {outputs * group**2} x H x W: "
            "output_dim times group_size squared"
        )
    count, *rest = graph.shape(regions)
    if math.prod(graph.fixed(dim, "the size of a region") for dim in rest) != 5:
        raise layer.error(f"found {show(graph.shape(regions))} for the blob {regions!r}, expected 5 numbers per region")
    if len(rest) > 1:
        regions = graph.reshape(regions, (count, 5))
    image, low, high = _edges(layer, graph, regions)
    starts, ends = _bins(layer, graph, low, high)
    sums = _bin_sums(layer, graph, image, starts, ends)
    mean = graph.node("Mul", [sums, _weights(graph, starts, ends)])
    graph.transpose(graph.cast(mean, np.float32), (0, 3, 1, 2), layer.tops)


def _edges(layer: Layer, graph: Graph, regions: str) -> tuple[str, str, str]:
    """The image indices of the regions, (R, 1) int64, and their edges on the map, (R, 2) each, x first."""
    image, low, high = parts(graph, regions, 1, [1, 2, 2])
    scale, one = graph.constant(layer.params.psroi_pooling_param.spatial_scale), graph.constant(1.0)
    start = graph.node("Mul", [_rounded(graph, low), scale])
    end = graph.node("Mul", [graph.node("Add", [_rounded(graph, high), one]), scale])
    return graph.cast(image, np.int64), start, end


def _rounded(graph: Graph, tensor: str) -> str:
    """Round like C: halves away from zero. ONNX's Round rounds them to even."""
    size = graph.node("Abs", [tensor])
    floor = graph.node("Floor", [size])
    fraction = graph.node("Sub", [size, floor])
    is_up = graph.node("GreaterOrEqual", [fraction, graph.constant(0.5)], dtype=np.bool_)
    rounded = graph.node("Add", [floor, graph.cast(is_up, np.float32)])
    return graph.node("Mul", [graph.node("Sign", [tensor]), rounded])


def _bins(layer: Layer, graph: Graph, start: str, end: str) -> tuple[list[str], list[str]]:
    """The first position of each bin along x and y, and the one after its last: (R, g) int64 each.

    The fork computes them in single precision, in this order of operations; another order would
    shift some bins by one position.
    """
    group = layer.params.psroi_pooling_param.group_size
    width, height = graph.fixed_shape(layer.bottoms[0], 2, "the map's size")[::-1]
    extent = graph.node("Max", [graph.node("Sub", [end, start]), graph.constant(0.1)])
    bins = graph.node("Div", [extent, graph.constant(float(group))])
    steps = np.arange(group + 1, dtype=np.float32)
    starts: list[str] = []
    ends: list[str] = []
    for one, origin, size in zip(
        parts(graph, bins, 1, [1, 1]), parts(graph, start, 1, [1, 1]), (width, height), strict=True
    ):
        for index, rounding, found in ((steps[:-1], "Floor", starts), (steps[1:], "Ceil", ends)):
            edge = graph.node("Add", [graph.node("Mul", [graph.constant(index[None]), one]), origin])
            inside = graph.node("Max", [graph.node(rounding, [edge]), graph.constant(0.0)])
            found.append(graph.cast(graph.node("Min", [inside, graph.constant(float(size))]), np.int64))
    return starts, ends


def _bin_sums(layer: Layer, graph: Graph, image: str, starts: Sequence[str], ends: Sequence[str]) -> str:
    """The sums over the bins: (R, g, g, outputs) float64."""
    maps = layer.bottoms[0]
    group, outputs = layer.params.psroi_pooling_param.group_size, layer.params.psroi_pooling_param.output_dim
    images = graph.shape(maps)[0]
    height, width = graph.fixed_shape(maps, 2, "the map's size")
    # Channels last, so that a corner is contiguous in memory.
    split = graph.reshape(maps, (images, outputs, group, group, height, width))
    integral = graph.cast(graph.transpose(split, (0, 2, 3, 4, 5, 1)), np.float64)
    for axis in (3, 4):
        integral = graph.node("CumSum", [integral, graph.constant(axis, np.int64)], shape=graph.shape(integral))
    rows = graph.reshape(integral, (product(graph.shape(integral)[:-1]) or 0, outputs))
    (left, top), (right, bottom) = (
        [_before(graph, x, (1, group)), _lines(graph, image, _before(graph, y, (group, 1)), (height, width))]
        for x, y in (starts, ends)
    )
    has_left = _starts_inside(graph, starts[0], (1, group, 1))
    has_top = _starts_inside(graph, starts[1], (group, 1, 1))
    sums = []
    for line in (bottom, top):
        before = graph.node("Mul", [_corner(graph, rows, line, left), has_left])
        sums.append(graph.node("Sub", [_corner(graph, rows, line, right), before]))
    return graph.node("Sub", [sums[0], graph.node("Mul", [sums[1], has_top])])


def _starts_inside(graph: Graph, edge: str, shape: tuple[int, ...]) -> str:
    """1 if there are positions before a bin, 0 at the edge of the map: (R, *shape) float64."""
    start = graph.reshape(edge, (graph.shape(edge)[0], *shape))
    return graph.cast(graph.node("Greater", [start, graph.constant(0, np.int64)], dtype=np.bool_), np.float64)


def _before(graph: Graph, edge: str, shape: tuple[int, ...]) -> str:
    """The last position before an edge, (R, g), at least 0: (R, *shape)."""
    last = graph.node("Sub", [edge, graph.constant(1, np.int64)])
    return graph.reshape(graph.node("Max", [last, graph.constant(0, np.int64)]), (graph.shape(edge)[0], *shape))


def _lines(graph: Graph, image: str, y: str, size: tuple[int, int]) -> str:
    """The offsets of the lines ``y``, (R, g, 1), of the integral image among its rows: (R, g, g) int64."""
    count, group, _ = graph.shape(y)
    planes = int(group) ** 2
    of_image = graph.node("Mul", [graph.reshape(image, (count, 1, 1)), graph.constant(planes, np.int64)])
    channel = graph.constant(np.arange(planes).reshape(1, int(group), int(group)), np.int64)
    plane = graph.node("Mul", [graph.node("Add", [of_image, channel]), graph.constant(size[0], np.int64)])
    return graph.node("Mul", [graph.node("Add", [plane, y]), graph.constant(size[1], np.int64)])


def _corner(graph: Graph, rows: str, line: str, x: str) -> str:
    at = graph.node("Add", [line, x])
    return graph.node("Gather", [rows, at], shape=(*graph.shape(at), graph.shape(rows)[1]), axis=0)


def _weights(graph: Graph, starts: Sequence[str], ends: Sequence[str]) -> str:
    """1 / the number of positions in each bin, 0 for an empty bin: (R, g, g, 1) float64."""
    width, height = (graph.node("Sub", [end, start]) for start, end in zip(starts, ends, strict=True))
    count, group = graph.shape(width)
    down, across = graph.reshape(height, (count, group, 1, 1)), graph.reshape(width, (count, 1, group, 1))
    area = graph.cast(graph.node("Mul", [down, across]), np.float64)
    one = graph.constant(1, np.float64)
    return graph.node("Div", [graph.node("Min", [area, one]), graph.node("Max", [area, one])])
