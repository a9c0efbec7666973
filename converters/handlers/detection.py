"""Layers of detectors: SSD's (Liu et al. 2016) and Fast R-CNN's (Girshick 2015)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from converters import metadata
from converters.graph import Graph
from converters.layer import Layer
from converters.registry import handles
from converters.schema.caffe_pb2 import PriorBoxParameter
from converters.shape import MAX_BLOB, Dim, SymbolicDim, show, times

MAX_PRIORS = 1_000_000  # SSD512 has 24,564; the model stores them, and more are a mistake
MAX_SCORES = 10_000_000  # per image; SSD512 has 1,989,684 for the 80 classes of COCO

_DETECTIONS = "DetectionOutput"
LOWEST = float(np.finfo(np.float32).min)  # the score of boxes that are not detections


# --------------------------------------------------------------------------------------------------------- prior boxes


@handles(
    "PriorBox",
    operators="Identity",
    restrictions="a constant, because it depends only on the sizes of its bottoms; if the convolutions of the same "
    "feature map have outputs for twice the boxes, it is TextBoxes' layer, which repeats each box half a step below",
    origin="SSD, TextBoxes",
)
def prior_box(layer: Layer, graph: Graph) -> None:
    """Prior boxes of given sizes and aspect ratios at each position of a feature map, with their variances."""
    layer.expect(bottoms=2, tops=1)
    param = layer.params.prior_box_param
    grid, sizes = graph.image_size(layer.bottoms[0]), _box_sizes(layer)
    count = grid[0] * grid[1] * len(sizes)
    if count > MAX_PRIORS:
        raise layer.error(f"found {count:,} prior boxes, expected at most {MAX_PRIORS:,}")
    image = np.array(_pair(layer, "img", "img_size") or graph.image_size(layer.bottoms[1]), np.float32)
    step = _pair(layer, "step", "step")
    steps = np.array(step, np.float32) if step else image / np.array(grid, np.float32)
    boxes = _boxes_around(grid, sizes, image, steps, np.float32(param.offset))
    if _has_twice_the_boxes(layer, graph, len(sizes)):
        boxes = _with_boxes_below(grid, sizes, image, steps, boxes)
    if param.clip:
        boxes = boxes.clip(0, 1)
    variances = np.broadcast_to(np.array(_variances(layer), np.float32), boxes.shape)
    values = np.stack([boxes.ravel(), variances.ravel()])[None]
    graph.node("Identity", [graph.constant(values)], layer.tops)


def _has_twice_the_boxes(layer: Layer, graph: Graph, boxes: int) -> bool:
    """Whether the convolutions of the feature map have outputs for twice the boxes, and not for as many.

    TextBoxes (Liao et al. 2017) changed what PriorBox computes, but not its parameters.
    """
    classes = {other.params.detection_output_param.num_classes for other in graph.layers if other.type == _DETECTIONS}
    outputs = {other.params.convolution_param.num_output for other in graph.layers if layer.bottoms[0] in other.bottoms}

    def fit(count: int) -> bool:
        return any({4 * count, number * count} <= outputs for number in classes)

    return fit(2 * boxes) and not fit(boxes)


def _with_boxes_below(
    grid: tuple[int, int], sizes: np.ndarray, image: np.ndarray, step: np.ndarray, boxes: np.ndarray
) -> np.ndarray:
    """Repeat each box with its center at the lower edge of the position: (height, width, 2 * boxes, 4)."""
    lower = _boxes_around(grid, sizes, image, step, np.float32(1))
    below = np.stack([boxes[..., 0], lower[..., 1], boxes[..., 2], lower[..., 3]], axis=-1)
    return np.stack([boxes, below], axis=3).reshape(*boxes.shape[:2], -1, 4)


def _box_sizes(layer: Layer) -> np.ndarray:
    """The sizes of the boxes of one position: (boxes, 2) float32 heights and widths in pixels."""
    param = layer.params.prior_box_param
    smallest, largest = list(param.min_size), list(param.max_size)
    are_sizes = all(0 < size < MAX_BLOB for size in (*smallest, *largest))  # also refuses NaN
    if not smallest or not are_sizes or len(largest) not in (0, len(smallest)):
        raise layer.error(
            f"found {smallest} for min_size and {largest} for max_size, expected one min_size or more, all positive, "
            "and as many max_size, or none"
        )
    if any(large <= small for small, large in zip(smallest, largest, strict=False)):
        raise layer.error(
            f"found {smallest} for min_size and {largest} for max_size, expected each max_size to be the larger"
        )
    ratios = _aspect_ratios(layer)
    sizes: list[tuple[float, float]] = []
    for index, small in enumerate(map(int, smallest)):  # Caffe truncates to whole pixels
        sizes.append((small, small))
        if largest:
            sizes.append((math.sqrt(small * int(largest[index])),) * 2)
        sizes.extend((small / np.sqrt(ratio), small * np.sqrt(ratio)) for ratio in ratios)
    return np.array(sizes, np.float32)


def _aspect_ratios(layer: Layer) -> list[np.float32]:
    """The distinct aspect ratios other than 1, with their inverses if flip is set."""
    param = layer.params.prior_box_param
    ratios = [np.float32(1)]
    for given in param.aspect_ratio:
        if given <= 0:
            raise layer.error(f"found the aspect_ratio {given}, expected a positive one")
        ratio = np.float32(given)
        if all(abs(ratio - other) >= 1e-6 for other in ratios):
            ratios += [ratio, np.float32(1 / given)] if param.flip else [ratio]
    return ratios[1:]


def _variances(layer: Layer) -> list[float]:
    variances = list(layer.params.prior_box_param.variance) or [0.1]
    if len(variances) not in (1, 4) or min(variances) <= 0:
        raise layer.error(f"found the variances {variances}, expected none, one or four, all positive")
    return variances


def _pair(layer: Layer, name: str, both: str) -> tuple[float, float] | None:
    """``<name>_h`` and ``<name>_w``, or ``both`` for the two; None where neither is given."""
    param = layer.params.prior_box_param
    given = {key: getattr(param, key) for key in (both, f"{name}_h", f"{name}_w") if param.HasField(key)}
    if not given:
        return None
    pair = [given[both]] * 2 if list(given) == [both] else [given.get(f"{name}_h", 0), given.get(f"{name}_w", 0)]
    if (both in given and len(given) > 1) or min(pair) <= 0:
        raise layer.error(f"found {given}, expected either {both}, or {name}_h and {name}_w, positive")
    return pair[0], pair[1]


def _boxes_around(
    grid: tuple[int, int], sizes: np.ndarray, image: np.ndarray, step: np.ndarray, offset: np.float32
) -> np.ndarray:
    """The boxes as fractions of the image, with Caffe's roundings.

    Args:
        grid: The feature map's height and width.
        sizes: (boxes, 2) float32: heights and widths in pixels.
        image: (2,) float32: the image's height and width in pixels.
        step: (2,) float32: the vertical and horizontal distance between positions, in pixels.
        offset: The offset of the first position, in steps.

    Returns:
        (height, width, boxes, 4) float32: xmin, ymin, xmax, ymax.
    """
    down, across = ((np.arange(count, dtype=np.float32) + offset) * one for count, one in zip(grid, step, strict=True))
    centers = np.stack(np.broadcast_arrays(across[None, :, None], down[:, None, None]), axis=-1).astype(np.float64)
    half = sizes[:, ::-1].astype(np.float64) / 2
    corners: np.ndarray = np.concatenate([centers - half, centers + half], axis=-1) / np.tile(image[::-1], 2)
    return corners.astype(np.float32)


# ----------------------------------------------------------------------------------------------------------- detections


@dataclass(frozen=True)
class Task:
    """The parameters of a DetectionOutput layer.

    Attributes:
        images: N.
        priors: P, the number of prior boxes.
        classes: The number of classes, including the background.
        labels: The K classes other than the background.
        shared: Whether each prior has one box for all classes, not one per class.
        candidates: k, how many boxes per class enter non-maximum suppression.
        keep: The maximum number of detections per image.
    """

    images: Dim
    priors: int
    classes: int
    labels: tuple[int, ...]
    shared: bool
    candidates: int
    keep: int

    @property
    def columns(self) -> int:
        """K * k, the number of an image's candidates."""
        return len(self.labels) * self.candidates

    @property
    def lists(self) -> Dim:
        """N * K, the number of lists of candidates."""
        return times(self.images, len(self.labels))


@handles(
    "DetectionOutput",
    operators="Reshape Transpose Split Sub Add Mul Exp Concat Gather TopK GatherND Max NonMaxSuppression Shape "
    "ConstantOfShape ScatterND ScatterElements Greater NonZero Div Cast Equal Range Pad",
    restrictions="no nms_param.eta below 1 with an nms_threshold above 0.5; among equal scores, keep_top_k keeps those "
    "of lower class and higher rank; nothing is written to disk (save_output_param, visualize)",
    origin="SSD",
)
def detection_output(layer: Layer, graph: Graph) -> None:
    """SSD's detections: decoded boxes after non-maximum suppression per class and a limit per image.

    The rows, (1, 1, detections, 7), are image, label, score, xmin, ymin, xmax, ymax, ordered by image, label and
    descending score. If no image of the batch has a detection, there is one row per image: its index and six times -1.

    Candidates stay in a dense (N, K, k) tensor until the end, which needs no loop and does not depend on the order of
    NonMaxSuppression's output, which ONNX does not define.
    """
    task = _task(layer, graph)
    scores, priors = _candidates(graph, task, layer.bottoms[1])
    decoded = _decoded(layer, graph, task)
    if task.shared:
        background = next(iter(set(range(task.classes)).difference(task.labels)), -1)
        graph.metadata[metadata.DETECTIONS] = metadata.detections_text(
            boxes=decoded, scores=layer.bottoms[1], unit="shares", background=background
        )
    boxes = _gathered(graph, task, decoded, priors)
    kept = _suppressed(layer, graph, task, boxes, scores)
    if task.keep < task.columns:
        kept = _best(graph, task, kept)
    rows, count = or_placeholders(graph, _rows(graph, task, boxes, kept), boxes)
    graph.reshape(rows, (1, 1, count, 7), layer.tops)


def _task(layer: Layer, graph: Graph) -> Task:
    """Read and check the layer's parameters and the shapes of its bottoms."""
    param = layer.params.detection_output_param
    nms = param.nms_param
    layer.expect(bottoms=range(3, 5), tops=1)  # the fourth is the image that `visualize` draws on
    if param.num_classes <= (0 <= param.background_label_id < param.num_classes):
        raise layer.error(f"found num_classes {param.num_classes}, expected a class besides the background")
    if nms.nms_threshold < 0 or not 0 < nms.eta <= 1:
        raise layer.error(
            f"found nms_threshold {nms.nms_threshold} and eta {nms.eta}, expected at least 0, and more than 0 up to 1"
        )
    if nms.eta < 1 and nms.nms_threshold > 0.5:  # only then does Caffe lower the threshold from box to box
        raise layer.error(f"found eta {nms.eta}, expected 1: ONNX's NonMaxSuppression has a fixed threshold")
    if (nms.HasField("top_k") and nms.top_k == 0) or param.keep_top_k == 0:
        raise layer.error("found top_k or keep_top_k 0, expected -1 (all) or at least 1: 0 finds nothing")
    locations, confidences, priors = layer.bottoms[:3]
    if graph.fixed_shape(priors, 0, "the number of prior boxes")[:2] != (1, 2) or graph.rank(priors) < 3:
        raise layer.error(f"found {show(graph.shape(priors))} for the prior boxes, expected 1 x 2 x (4 for each box)")
    count = math.prod(graph.fixed_shape(priors, 2, "the number of prior boxes")) // 4
    _check_width(layer, graph, locations, "locations", count * 4 * (1 if param.share_location else param.num_classes))
    _check_width(layer, graph, confidences, "confidences", count * param.num_classes)
    images = graph.shape(locations)[0]
    if not graph.same(images, graph.shape(confidences)[0]):
        raise layer.error(
            f"found {show(graph.shape(confidences))} for the confidences, expected {show((images,))} images"
        )
    if count * param.num_classes > MAX_SCORES:
        raise layer.error(
            f"found {count:,} prior boxes of {param.num_classes:,} classes, expected {MAX_SCORES:,} scores"
        )
    labels = tuple(label for label in range(param.num_classes) if label != param.background_label_id)
    top_k = nms.top_k if nms.HasField("top_k") and nms.top_k > 0 else count
    keep = param.keep_top_k if param.keep_top_k > 0 else count * len(labels)
    return Task(images, count, param.num_classes, labels, param.share_location, min(top_k, count), keep)


def _check_width(layer: Layer, graph: Graph, tensor: str, what: str, expected: int) -> None:
    found = math.prod(graph.fixed_shape(tensor, 1, "the number of prior boxes"))
    if found != expected:
        raise layer.error(f"found {found:,} {what} per image, expected {expected:,} for the prior boxes and classes")


def _candidates(graph: Graph, task: Task, confidences: str) -> tuple[str, str]:
    """The k best candidates per class: scores and indices of the priors, (N, K, k) each, best first."""
    by_prior = graph.reshape(confidences, (task.images, task.priors, task.classes))
    by_class = graph.transpose(by_prior, (0, 2, 1))
    if len(task.labels) < task.classes:
        by_class = graph.node(
            "Gather",
            [by_class, graph.constant(task.labels, np.int64)],
            shape=(task.images, len(task.labels), task.priors),
            axis=1,
        )
    # TopK is stable among equal scores, like Caffe.
    shape = (task.images, len(task.labels), task.candidates)
    scores, priors = graph.new_name("scores"), graph.new_name("priors")
    graph.node("TopK", [by_class, graph.constant([task.candidates], np.int64)], [scores, priors], shapes=[shape, shape])
    graph.set_dtype(priors, np.int64)
    return scores, priors


def _decoded(layer: Layer, graph: Graph, task: Task) -> str:
    """The predicted boxes as corners: (N, P, 1 or classes, 4). Decode: src/caffe/util/bbox_util.cpp of the SSD fork."""
    param = layer.params.detection_output_param
    sets = 1 if task.shared else task.classes
    deltas = graph.reshape(layer.bottoms[0], (task.images, task.priors, sets, 4))
    shape = (1, task.priors, 1, 4)
    stacked = graph.reshape(layer.bottoms[2], (2, task.priors, 1, 4))
    priors, variances = parts(graph, stacked, 0, [1, 1])
    if not param.variance_encoded_in_target:
        deltas = graph.node("Mul", [variances, deltas], shape=graph.shape(deltas))
    if param.code_type == PriorBoxParameter.CORNER:
        return graph.node("Add", [priors, deltas])
    low, high = parts(graph, priors, 3, [2, 2])
    size = graph.node("Sub", [high, low])
    if param.code_type == PriorBoxParameter.CORNER_SIZE:
        scaled = graph.node("Mul", [deltas, graph.node("Concat", [size, size], shape=shape, axis=3)])
        return graph.node("Add", [priors, scaled])
    center = graph.node("Mul", [graph.node("Add", [low, high]), graph.constant(0.5)])
    shift, stretch = parts(graph, deltas, 3, [2, 2])
    center = graph.node("Add", [graph.node("Mul", [shift, size]), center])
    half = graph.node("Mul", [graph.node("Mul", [graph.node("Exp", [stretch]), size]), graph.constant(0.5)])
    return graph.concat([graph.node("Sub", [center, half]), graph.node("Add", [center, half])], 3)


def parts(graph: Graph, tensor: str, axis: int, sizes: Sequence[int]) -> list[str]:
    """Split a tensor along an axis into parts of the given sizes."""
    names = [graph.new_name(f"part{index}") for index in range(len(sizes))]
    whole = graph.shape(tensor)
    shapes = [(*whole[:axis], size, *whole[axis + 1 :]) for size in sizes]
    graph.node("Split", [tensor, graph.constant(sizes, np.int64)], names, shapes=shapes, axis=axis)
    return names


def _gathered(graph: Graph, task: Task, boxes: str, priors: str) -> str:
    """The candidates' boxes: (N, K, k, 4)."""
    count = len(task.labels)
    shape = (task.images, count, task.candidates, 4)
    if task.shared:  # all classes select from the same boxes
        boxes = graph.reshape(boxes, (task.images, task.priors, 4))
        indices = graph.reshape(priors, (task.images, task.columns, 1))
        chosen = (task.images, task.columns, 4)
        return graph.reshape(graph.node("GatherND", [boxes, indices], shape=chosen, batch_dims=1), shape)
    by_class = graph.transpose(boxes, (0, 2, 1, 3))
    if count < task.classes:
        labels = graph.constant(task.labels, np.int64)
        by_class = graph.node("Gather", [by_class, labels], shape=(task.images, count, task.priors, 4), axis=1)
    indices = graph.reshape(priors, (*shape[:3], 1))
    return graph.node("GatherND", [by_class, indices], shape=shape, batch_dims=2)


def _suppressed(layer: Layer, graph: Graph, task: Task, boxes: str, scores: str) -> str:
    """The candidates' scores, (N, K * k), or the lowest float if a better box overlaps or the score is too low."""
    param = layer.params.detection_output_param
    kept = suppressed(
        graph,
        graph.reshape(_unflipped(layer, graph, boxes), (task.lists, task.candidates, 4)),
        graph.reshape(scores, (task.lists, task.candidates)),
        overlap=min(param.nms_param.nms_threshold, 1.0),  # no overlap is above 1
        threshold=param.confidence_threshold if param.HasField("confidence_threshold") else LOWEST,
    )
    return graph.reshape(kept, (task.images, task.columns))


def suppressed(
    graph: Graph,
    boxes: str,
    scores: str,
    *,
    overlap: float,
    threshold: float | None,
    keep: int = 0,
    by_center: bool = False,
) -> str:
    """Apply non-maximum suppression to each list of boxes.

    Args:
        graph: The graph.
        boxes: (lists, k, 4): two opposite corners, or center, width and height.
        scores: (lists, k).
        overlap: A box is suppressed if its intersection over union with a better one exceeds this.
        threshold: A box is suppressed unless its score exceeds this; None to keep all.
        keep: The maximum number of boxes kept per list; 0 for all.
        by_center: Whether boxes are given by their centers.

    Returns:
        The scores, (lists, k), with the lowest float for suppressed boxes.
    """
    lists, k = graph.shape(scores)
    inputs = [
        boxes,
        graph.reshape(scores, (lists, 1, k)),
        graph.constant([min(keep or int(k), int(k))], np.int64),
        graph.constant([overlap]),
        *([] if threshold is None else [graph.constant([threshold])]),
    ]
    found = counted(graph, "kept")
    centered = 1 if by_center else None
    kept = graph.node("NonMaxSuppression", inputs, shape=(found, 3), dtype=np.int64, center_point_box=centered)
    # Each list is a batch of one class: the columns are list, 0, candidate. ONNX does not define their order.
    places = graph.node("Gather", [kept, graph.constant([0, 2], np.int64)], shape=(found, 2), axis=1)
    values = graph.node("GatherND", [scores, places], shape=(found,), dtype=np.float32)
    return graph.node("ScatterND", [lowest_like(graph, scores), places, values], shape=(lists, k))


def found_places(graph: Graph, scores: str) -> str:
    """The indices of scores, (lists, k), above the lowest float: (found, 2) int64, in row-major order."""
    found = counted(graph, "found")
    is_found = graph.node("Greater", [scores, graph.constant(LOWEST)], shape=graph.shape(scores), dtype=np.bool_)
    return graph.transpose(graph.node("NonZero", [is_found], shape=(2, found), dtype=np.int64), (1, 0))


def _unflipped(layer: Layer, graph: Graph, boxes: str) -> str:
    """Replace inverted boxes by empty ones: in Caffe they overlap nothing, in ONNX they do."""
    if layer.params.detection_output_param.code_type == PriorBoxParameter.CENTER_SIZE:
        return boxes  # their sizes are powers of e
    low, high = parts(graph, boxes, 3, [2, 2])
    return graph.concat([low, graph.node("Max", [low, high])], 3)


def _best(graph: Graph, task: Task, scores: str) -> str:
    """The scores (N, K * k) with all but the ``keep`` highest of each image set to the lowest float."""
    shape = (task.images, task.keep)
    values, places = graph.new_name("values"), graph.new_name("places")
    graph.node("TopK", [scores, graph.constant([task.keep], np.int64)], [values, places], shapes=[shape, shape])
    graph.set_dtype(places, np.int64)
    nothing = lowest_like(graph, scores)
    return graph.node("ScatterElements", [nothing, places, values], shape=graph.shape(scores), axis=1)


def lowest_like(graph: Graph, tensor: str) -> str:
    """A tensor of the same shape, filled with the lowest float."""
    size = graph.node("Shape", [tensor], shape=(graph.rank(tensor),), dtype=np.int64)
    value = np.array([LOWEST], np.float32)
    return graph.node("ConstantOfShape", [size], shape=graph.shape(tensor), dtype=np.float32, value=value)


def _rows(graph: Graph, task: Task, boxes: str, scores: str) -> str:
    """The detections, (M, 7): all candidates with a score above the lowest float."""
    places = found_places(graph, scores)  # by image, label and rank
    found = graph.shape(places)[0]
    columns = [
        graph.reshape(scores, (task.images, task.columns, 1)),
        graph.reshape(boxes, (task.images, task.columns, 4)),
    ]
    values = graph.node("GatherND", [graph.concat(columns, 2), places], shape=(found, 5))
    image, column = parts(graph, places, 1, [1, 1])
    row = graph.node("Div", [column, graph.constant(task.candidates, np.int64)], shape=(found, 1))
    label = graph.node("Gather", [graph.constant(task.labels), row], shape=(found, 1))
    return graph.node("Concat", [graph.cast(image, np.float32), label, values], shape=(found, 7), axis=1)


def or_placeholders(graph: Graph, rows: str, boxes: str) -> tuple[str, SymbolicDim]:
    """The rows and their number; without rows, one row (i, -1, -1, -1, -1, -1, -1) for each image i."""
    zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
    is_empty = graph.cast(graph.node("Equal", [_size(graph, rows), zero], dtype=np.bool_), np.int64)
    missing = counted(graph, "missing")
    images = graph.node("Mul", [is_empty, _size(graph, boxes)])
    numbers = graph.cast(graph.node("Range", [zero, images, one], shape=(missing,)), np.float32)
    column = graph.reshape(numbers, (missing, 1))
    pads = graph.constant([0, 0, 0, 6], np.int64)
    placeholders = graph.node("Pad", [column, pads, graph.constant(-1.0)], shape=(missing, 7), mode="constant")
    total = counted(graph, "detections")
    return graph.node("Concat", [rows, placeholders], shape=(total, 7), axis=0), total


def counted(graph: Graph, what: str) -> SymbolicDim:
    """A size that depends on the data."""
    name = graph.new_name(what)
    graph.reserve([name])  # two counts in a layer are different sizes
    return SymbolicDim(name, 1)


def _size(graph: Graph, tensor: str) -> str:
    """The size of a tensor's first axis, as a scalar."""
    sizes = graph.node("Shape", [tensor], shape=(graph.rank(tensor),), dtype=np.int64)
    return graph.node("Gather", [sizes, graph.constant(0, np.int64)], shape=(), axis=0)


# -------------------------------------------------------------------------------------------------------------- regions


@handles(
    "ROIPooling",
    operators="MaxRoiPool Reshape",
    restrictions="at most opset 21: ONNX Runtime has no MaxRoiPool of opset 22",
    origin="Fast R-CNN",
)
def roi_pooling(layer: Layer, graph: Graph) -> None:
    """RoI pooling: maxima over the bins of each region."""
    layer.expect(bottoms=2, tops=1)
    if graph.opset >= 22:
        raise layer.error(f"found opset {graph.opset}, expected at most 21: ONNX Runtime has no newer MaxRoiPool")
    features, regions = layer.bottoms
    param = layer.params.roi_pooling_param
    if not param.pooled_h or not param.pooled_w:
        raise layer.error(
            f"found pooled_h {param.pooled_h} and pooled_w {param.pooled_w}, expected both to be at least 1"
        )
    graph.expect_images(features)
    count, *rest = graph.shape(regions)
    if math.prod(graph.fixed(dim, "the size of a region") for dim in rest) != 5:
        raise layer.error(f"found {show(graph.shape(regions))} for the blob {regions!r}, expected 5 numbers per region")
    graph.node(
        "MaxRoiPool",
        [features, regions if len(rest) == 1 else graph.reshape(regions, (count, 5))],
        layer.tops,
        shape=(count, graph.shape(features)[1], param.pooled_h, param.pooled_w),
        pooled_shape=[param.pooled_h, param.pooled_w],
        spatial_scale=param.spatial_scale,
    )
