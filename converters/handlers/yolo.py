"""Detection layers of YOLO (Redmon and Farhadi 2016, 2018) as ported to Caffe by MobileNet-YOLO."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from converters.graph import Graph
from converters.handlers.detection import counted, found_places, or_placeholders, parts, suppressed
from converters.layer import Layer
from converters.registry import handles
from converters.shape import show

_ROWS = (
    "each image of a batch separately, whereas in the fork the images of a batch suppress each other's boxes and are "
    "all called image 0; nms_threshold between 0 and 1"
)
_OPERATORS = (
    "Reshape Split Sigmoid Add Div Exp Mul Concat ReduceMax ArgMax Transpose TopK GatherND Shape NonMaxSuppression "
    "ConstantOfShape ScatterND Greater NonZero Gather Sub Cast Equal Range Pad"
)


# -------------------------------------------------------------------------------------------------------- detections


@dataclass(frozen=True)
class Map:
    """One feature map of predictions.

    Attributes:
        blob: (N, anchors * (5 + classes), H, W): for each anchor x, y, w, h, object, classes.
        anchors: (A, 2) float32: widths and heights in units of ``image``.
        image: The width and height of the image in units of the anchors, (2,) float32.
    """

    blob: str
    anchors: np.ndarray
    image: np.ndarray


@handles("YoloDetectionOutput", operators=f"{_OPERATORS} Softmax", restrictions=_ROWS, origin="MobileNet-YOLO")
def yolo_detection_output(layer: Layer, graph: Graph) -> None:
    """YOLO 2's detections: boxes from anchors with their best class, after class-agnostic suppression.

    The rows, (1, 1, detections, 7), are image, label (from 1), score, xmin, ymin, xmax, ymax as fractions of the image,
    in descending order of score. If no image has a detection, there is one row per image: its index and six times -1.
    """
    layer.expect(bottoms=range(1, 3), tops=1)
    param = layer.params.yolo_detection_output_param
    if param.coords != 4:
        raise layer.error(f"found coords {param.coords}, expected 4: the fork always reads four")
    anchors = _anchors(layer, param.biases, range(param.num_box))
    maps = []
    for blob in layer.bottoms:
        height, width = _map_size(layer, graph, blob, param.num_box * (5 + param.num_classes))
        if height != width:
            raise layer.error(
                f"found {show(graph.shape(blob))} for the blob {blob!r}, expected a square map: the fork takes its "
                "width for both sides"
            )
        maps.append(Map(blob, anchors, np.array([width, height], np.float32)))
    # The fork keeps scores equal to the threshold; ONNX drops them.
    threshold = np.nextafter(np.float32(param.confidence_threshold), np.float32(-np.inf))
    _detect(layer, graph, maps, param.num_classes, float(threshold), param.nms_threshold)


@handles(
    "Yolov3DetectionOutput", operators=_OPERATORS, restrictions=f"{_ROWS}; no gaussian_box", origin="MobileNet-YOLO"
)
def yolov3_detection_output(layer: Layer, graph: Graph) -> None:
    """YOLO 3's detections: like YOLO 2's, from several maps with separate anchors and sigmoid class scores."""
    param = layer.params.yolov3_detection_output_param
    layer.expect(bottoms=range(1, 1000), tops=1)
    if param.gaussian_box:
        raise layer.error("found gaussian_box, expected none: with it, the fork's CPU code reads beyond its scores")
    count, scales = len(layer.bottoms), list(param.anchors_scale)
    if param.mask_group_num != count or len(scales) < count:
        raise layer.error(
            f"found mask_group_num {param.mask_group_num} and {len(scales)} anchors_scale for {count} bottoms, "
            "expected one of each per bottom"
        )
    # Like the fork, divide the masks into equal groups and take the first num_box of each.
    step = len(param.mask) // count
    maps = []
    for index, blob in enumerate(layer.bottoms):
        height, width = _map_size(layer, graph, blob, param.num_box * (5 + param.num_classes))
        masks = param.mask[index * step : index * step + param.num_box]
        if len(masks) != param.num_box:
            raise layer.error(f"found {len(param.mask)} masks, expected {param.num_box} for each of {count} bottoms")
        image = np.array([width, height], np.float32) * np.float32(scales[index])
        maps.append(Map(blob, _anchors(layer, param.biases, masks), image))
    _detect(layer, graph, maps, param.num_classes, param.confidence_threshold, param.nms_threshold)


def _anchors(layer: Layer, biases: Sequence[float], chosen: Iterable[int]) -> np.ndarray:
    """The chosen anchors: (A, 2) float32."""
    pairs = np.array(biases[: len(biases) // 2 * 2], np.float32).reshape(-1, 2)
    indices = list(chosen)
    if not indices or max(indices) >= len(pairs):
        raise layer.error(
            f"found {len(biases)} biases, expected a width and a height for each of the anchors {indices}"
        )
    return pairs[indices]


def _map_size(layer: Layer, graph: Graph, blob: str, channels: int) -> tuple[int, int]:
    if graph.rank(blob) != 4 or graph.fixed(graph.shape(blob)[1], "the number of channels") != channels:
        raise layer.error(
            f"found {show(graph.shape(blob))} for the blob {blob!r}, expected N x {channels} x H x W: num_box times 5 "
            "and num_classes"
        )
    height, width = graph.fixed_shape(blob, 2, "the map's size")
    return height, width


def _detect(layer: Layer, graph: Graph, maps: Sequence[Map], classes: int, threshold: float, overlap: float) -> None:
    """Add the nodes of a detection layer.

    The boxes of a position are the same for all classes, so the best class suppresses the others: only the best class
    is considered.
    """
    if not 0 < overlap < 1 or classes < 1:
        raise layer.error(
            f"found nms_threshold {overlap:g} and num_classes {classes}, expected a threshold between 0 and 1, and a "
            "class or more"
        )
    decoded = [_decoded(graph, one, classes, by_softmax=layer.type == "YoloDetectionOutput") for one in maps]
    boxes, scores, labels = (
        graph.concat(tensors, 1) if len(tensors) > 1 else tensors[0] for tensors in zip(*decoded, strict=True)
    )
    images, count = graph.shape(scores)
    best, order = graph.new_name("scores"), graph.new_name("order")
    number = graph.constant([int(count)], np.int64)
    graph.node("TopK", [scores, number], [best, order], shapes=[(images, count)] * 2)
    graph.set_dtype(order, np.int64)
    indices = graph.reshape(order, (images, count, 1))
    boxes = graph.node("GatherND", [boxes, indices], shape=(images, count, 4), batch_dims=1)
    labels = graph.node("GatherND", [labels, indices], shape=(images, count), batch_dims=1)
    # The fork suppresses an overlap equal to the threshold; ONNX does not.
    least = float(np.nextafter(np.float32(overlap), np.float32(0)))
    kept = suppressed(graph, boxes, best, overlap=least, threshold=threshold, by_center=True)
    rows, total = or_placeholders(graph, _rows(graph, kept, boxes, labels), boxes)
    graph.reshape(rows, (1, 1, total, 7), layer.tops)


def _decoded(graph: Graph, one: Map, classes: int, *, by_softmax: bool) -> tuple[str, str, str]:
    """The boxes of a map, (N, A * H * W, 4) by center, and their best scores and labels from 1, (N, A * H * W)."""
    images = graph.shape(one.blob)[0]
    height, width = graph.fixed_shape(one.blob, 2, "the map's size")
    anchors, area = len(one.anchors), height * width
    split = graph.reshape(one.blob, (images, anchors, 5 + classes, area))
    shift, stretch, is_object, scores = parts(graph, split, 2, [2, 2, 1, classes])
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)))
    corner = graph.constant(grid.reshape(1, 1, 2, area))
    center = graph.node("Add", [graph.node("Sigmoid", [shift]), corner])
    center = graph.node("Div", [center, graph.constant(np.reshape([width, height], (2, 1)))])
    size = graph.node("Mul", [graph.node("Exp", [stretch]), graph.constant(one.anchors.reshape(1, anchors, 2, 1))])
    size = graph.node("Div", [size, graph.constant(one.image.reshape(2, 1))])
    boxes = graph.transpose(graph.concat([center, size], 2), (0, 1, 3, 2))
    # Sigmoids preserve the order of the classes.
    best = graph.reduce("Max", graph.node("Softmax", [scores], axis=2) if by_softmax else scores, [2])
    best = best if by_softmax else graph.node("Sigmoid", [best])
    best = graph.node("Mul", [graph.node("Sigmoid", [is_object]), best])
    label = graph.node("ArgMax", [scores], shape=graph.shape(best), dtype=np.int64, axis=2)
    label = graph.node("Add", [graph.cast(label, np.float32), graph.constant(1.0)])
    flat = (images, anchors * area)
    return graph.reshape(boxes, (*flat, 4)), graph.reshape(best, flat), graph.reshape(label, flat)


def _rows(graph: Graph, scores: str, boxes: str, labels: str) -> str:
    """The detections, (M, 7): all boxes with a score above the lowest float."""
    images, count = graph.shape(scores)
    positions = found_places(graph, scores)
    found = counted(graph, "detections")
    center, size = parts(graph, boxes, 2, [2, 2])
    half = graph.node("Mul", [size, graph.constant(0.5)])
    columns = [
        *(graph.reshape(tensor, (images, count, 1)) for tensor in (labels, scores)),
        graph.node("Sub", [center, half]),
        graph.node("Add", [center, half]),
    ]
    values = graph.node("GatherND", [graph.concat(columns, 2), positions], shape=(found, 6))
    image = graph.node("Gather", [positions, graph.constant([0], np.int64)], shape=(found, 1), axis=1)
    return graph.node("Concat", [graph.cast(image, np.float32), values], shape=(found, 7), axis=1)
