"""NVIDIA's DetectNet: clustering of the boxes that grid cells predict (Tao et al. 2016)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from converters.graph import Graph
from converters.handlers.detection import counted, parts
from converters.layer import Layer
from converters.registry import handles
from converters.shape import show

MAX_BOXES = 50  # per image, in the top


@dataclass(frozen=True)
class Clustering:
    """The parameters in a layer's param_str.

    Attributes:
        width: The image's width in pixels.
        height: The image's height.
        stride: The distance between grid cells, in pixels.
        coverage: The minimum coverage of a cell that predicts a box.
        least: Clusters of at most this many boxes are dropped.
        eps: The largest distance between the sides of similar boxes, relative to their sizes.
        least_height: The minimum height of a detection, in pixels.
        classes: The number of classes; each has a top.
    """

    width: int
    height: int
    stride: int
    coverage: float
    least: int
    eps: float
    least_height: int
    classes: int = 1

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return self.height // self.stride, self.width // self.stride

    @property
    def cells(self) -> int:
        """The number of cells."""
        return math.prod(self.grid)


@handles(
    "Python",
    module="caffe.layers.detectnet.clustering",
    layer="ClusterDetections",
    operators="Slice Reshape GreaterOrEqual NonZero Transpose Cast Add GatherND Split Sub Concat Abs Min Max Mul "
    "LessOrEqual ReduceMin Equal And Or MatMul ReduceSum Div Round Less Greater Not Log Gather Shape ConstantOfShape "
    "ScatterND",
    restrictions=f"corners are truncated to whole pixels, as in Python 2; at most {MAX_BOXES} detections per image and "
    "class (the fork fails beyond)",
    origin="NVIDIA DetectNet",
)
def cluster_detections(layer: Layer, graph: Graph) -> None:
    """DetectNet's boxes, with similar ones merged to their mean like OpenCV's groupRectangles.

    Each top, (N, 50, 5), holds a class's boxes as x1, y1, x2, y2 in pixels and the logarithm of the cluster's size, in
    half precision as in the fork; the rest is 0. Source: python/caffe/layers/detectnet/clustering.py of NVIDIA/caffe.
    """
    param = _parameters(layer)
    layer.expect(bottoms=2, tops=param.classes)
    coverage, boxes = layer.bottoms
    for blob, channels in ((coverage, param.classes), (boxes, 4)):
        shape = graph.shape(blob)
        if len(shape) != 4 or shape[1] != channels or any(
            graph.fixed(found, "the grid's size") < cells for found, cells in zip(shape[2:], param.grid, strict=True)
        ):  # fmt: skip
            raise layer.error(
                f"found {show(shape)} for the blob {blob!r}, expected N x {channels} x {show(param.grid)} for the "
                f"image of {param.height} x {param.width}"
            )
    corners = _corners(graph, param, boxes)
    for index, top in enumerate(layer.tops):
        scores = _on_grid(graph, param, graph.slice(coverage, 1, index, index + 1))
        least = graph.constant(param.coverage)
        is_box = graph.node(
            "GreaterOrEqual", [graph.reshape(scores, (graph.shape(coverage)[0], param.cells)), least], dtype=np.bool_
        )
        count = counted(graph, "boxes")
        positions = graph.transpose(graph.node("NonZero", [is_box], shape=(2, count), dtype=np.int64), (1, 0))
        found = graph.node("GatherND", [corners, positions], shape=(count, 4), dtype=np.float64)
        _cluster(graph, param, positions, _rectangles(graph, found), coverage, top)


def _parameters(layer: Layer) -> Clustering:
    """Parse image width and height, stride, coverage, cluster size, eps, minimum height and classes."""
    text = layer.params.python_param.param_str
    try:
        types = (int, int, int, float, int, float, int, int)
        numbers = [item.strip() for item in text.split(",")]
        param = Clustering(*(kind(item) for kind, item in zip(types, numbers, strict=False)))
        is_valid = 7 <= len(numbers) <= 8 and min(param.classes, param.least, param.least_height, *param.grid) > 0
    except (TypeError, ValueError, ZeroDivisionError):
        is_valid = False
    if not is_valid:
        raise layer.error(
            f"found the param_str {text!r}, expected width, height, stride, coverage, cluster size, eps, minimum "
            "height and optionally the number of classes, all positive, such as '1248, 352, 16, 0.6, 3, 0.02, 22, 1'"
        )
    return param


def _on_grid(graph: Graph, param: Clustering, tensor: str) -> str:
    """The part of the map inside the image."""
    for axis, cells in zip((2, 3), param.grid, strict=True):
        if graph.shape(tensor)[axis] != cells:
            tensor = graph.slice(tensor, axis, 0, cells)
    return tensor


def _corners(graph: Graph, param: Clustering, boxes: str) -> str:
    """The boxes of the cells in pixels of the image: (N, cells, 4) float64."""
    rows, columns = param.grid
    y, x = np.meshgrid(np.arange(rows) * param.height / rows, np.arange(columns) * param.width / columns, indexing="ij")
    origins = np.stack([x, y, x, y], axis=-1).reshape(1, param.cells, 4)
    flat = graph.reshape(_on_grid(graph, param, boxes), (graph.shape(boxes)[0], 4, param.cells))
    relative = graph.cast(graph.transpose(flat, (0, 2, 1)), np.float64)
    return graph.node("Add", [relative, graph.constant(origins, np.float64)])


def _rectangles(graph: Graph, corners: str) -> str:
    """x, y, width and height in whole pixels: (K, 4) float64."""
    low, high = parts(graph, corners, 1, [2, 2])
    sized = graph.concat([low, graph.node("Sub", [high, low])], 1)
    return graph.cast(graph.cast(sized, np.int64), np.float64)


def _cluster(graph: Graph, param: Clustering, positions: str, rects: str, like: str, top: str) -> None:
    """The detections of one class from its rectangles, (K, 4), at ``positions``, (K, 2): image and cell.

    OpenCV: cv::partition and cv::groupRectangles in modules/objdetect/src/cascadedetect.cpp. The (K, K)
    matrix of similar rectangles is squared until it is transitive.
    """
    count = graph.shape(positions)[0]
    image, _ = parts(graph, positions, 1, [1, 1])
    stride = graph.constant([[param.cells], [1]], np.int64)
    key = graph.node("MatMul", [positions, stride], shape=(count, 1), dtype=np.int64)
    is_same_image = _compare(graph, "Equal", image, graph.transpose(image, (1, 0)))
    is_earlier = graph.node("And", [is_same_image, _compare(graph, "Less", graph.transpose(key, (1, 0)), key)])
    joined = _joined(graph, param, rects, key, is_same_image)
    size = graph.reduce("Sum", joined, [1])
    first = _none(graph, graph.node("Mul", [joined, graph.cast(is_earlier, np.float32)]))
    total = graph.node("MatMul", [joined, graph.cast(rects, np.float32)], shape=(count, 4), dtype=np.float32)
    mean = graph.node("Round", [graph.node("Mul", [total, graph.node("Div", [graph.constant(1.0), size])])])
    is_cluster = graph.node("And", [first, _compare(graph, "Greater", size, graph.constant(float(param.least)))])
    covers = _covers(graph, param, mean, size, key)
    covers = graph.node("And", [graph.node("And", [covers, is_same_image]), graph.transpose(is_cluster, (1, 0))])
    low, extent = parts(graph, mean, 1, [2, 2])
    _, height = parts(graph, extent, 1, [1, 1])
    is_high = _compare(graph, "GreaterOrEqual", height, graph.constant(float(param.least_height)))
    is_found = graph.node(
        "And", [is_cluster, graph.node("And", [_none(graph, graph.cast(covers, np.float32)), is_high])]
    )
    before = graph.node("And", [is_earlier, graph.transpose(is_found, (1, 0))])
    rank = graph.reduce("Sum", graph.cast(before, np.float32), [1])
    is_found = graph.node("And", [is_found, _compare(graph, "Less", rank, graph.constant(float(MAX_BOXES)))])
    rows = graph.concat([low, graph.node("Add", [low, extent]), graph.node("Log", [size])], 1)
    rows = graph.cast(graph.cast(rows, np.float16), np.float32)
    at = graph.concat([image, graph.cast(rank, np.int64)], 1)
    found = counted(graph, "detections")
    kept = graph.node("NonZero", [graph.reshape(is_found, (count,))], shape=(1, found), dtype=np.int64)
    kept = graph.reshape(kept, (found,))
    at, rows = (
        graph.node("Gather", [tensor, kept], shape=(found, graph.shape(tensor)[1]), axis=0) for tensor in (at, rows)
    )
    images = graph.shape(like)[0]
    sizes = graph.slice(graph.node("Shape", [like], shape=(4,), dtype=np.int64), 0, 0, 1)
    shape = graph.concat([sizes, graph.constant([MAX_BOXES, 5], np.int64)], 0)
    empty = graph.node(
        "ConstantOfShape", [shape], shape=(images, MAX_BOXES, 5), dtype=np.float32, value=np.zeros(1, np.float32)
    )
    graph.node("ScatterND", [empty, at, rows], [top], shape=(images, MAX_BOXES, 5))


def _joined(graph: Graph, param: Clustering, rects: str, key: str, is_same_image: str) -> str:
    """Whether two rectangles are in the same cluster: (K, K) float32, 1 or 0."""
    count = graph.shape(rects)[0]
    low, extent = parts(graph, rects, 1, [2, 2])
    corners = graph.concat([low, graph.node("Add", [low, extent])], 1)
    apart = graph.node(
        "Abs", [graph.node("Sub", [graph.reshape(corners, (count, 1, 4)), graph.reshape(corners, (1, count, 4))])]
    )
    smaller = graph.node("Min", [graph.reshape(extent, (count, 1, 2)), graph.reshape(extent, (1, count, 2))])
    reach = graph.node("Mul", [graph.reduce("Sum", smaller, [2]), graph.constant(param.eps / 2, np.float64)])
    is_close = graph.cast(_compare(graph, "LessOrEqual", apart, reach), np.float32)
    is_similar = _compare(graph, "Greater", graph.reduce("Min", is_close, [2], keepdims=False), graph.constant(0.0))
    is_similar = graph.node("And", [is_similar, is_same_image])
    itself = _compare(graph, "Equal", key, graph.transpose(key, (1, 0)))
    joined = graph.cast(graph.node("Or", [is_similar, itself]), np.float32)
    for _ in range(math.ceil(math.log2(max(param.cells, 2)))):  # each doubles the length of the chains
        paths = graph.node("MatMul", [joined, joined], shape=(count, count))
        joined = graph.node("Min", [paths, graph.constant(1.0)])
    return joined


def _covers(graph: Graph, param: Clustering, mean: str, size: str, key: str) -> str:
    """Whether the cluster of the row is inside that of the column, which is larger: (K, K) bool."""
    count = graph.shape(mean)[0]
    low, extent = parts(graph, mean, 1, [2, 2])
    high = graph.node("Add", [low, extent])
    scaled = graph.node("Mul", [graph.cast(extent, np.float64), graph.constant(param.eps, np.float64)])
    margin = graph.cast(graph.node("Round", [scaled]), np.float32)
    column, row = (count, 1, 2), (1, count, 2)
    is_inside = []
    for op, edge, outer in (("GreaterOrEqual", low, "Sub"), ("LessOrEqual", high, "Add")):
        border = graph.node(outer, [edge, margin])
        within = _compare(graph, op, graph.reshape(edge, column), graph.reshape(border, row))
        every = graph.reduce("Min", graph.cast(within, np.float32), [2], keepdims=False)
        is_inside.append(_compare(graph, "Greater", every, graph.constant(0.0)))
    others = graph.transpose(size, (1, 0))
    is_larger = _compare(graph, "Greater", others, graph.node("Max", [size, graph.constant(3.0)]))
    is_tiny = _compare(graph, "Less", size, graph.constant(3.0))
    is_other = graph.node("Not", [_compare(graph, "Equal", key, graph.transpose(key, (1, 0)))])
    covers = graph.node("And", [graph.node("And", is_inside), graph.node("Or", [is_larger, is_tiny])])
    return graph.node("And", [covers, is_other])


def _compare(graph: Graph, op: str, left: str, right: str) -> str:
    return graph.node(op, [left, right], dtype=np.bool_)


def _none(graph: Graph, matrix: str) -> str:
    """Whether a row of zeros and ones is all zeros: (K, 1) bool."""
    return _compare(graph, "Less", graph.reduce("Sum", matrix, [1]), graph.constant(0.5))
