"""What a detector finds before non-maximum suppression, as a classifier's scores: a box and a row of classes each.

A detector gives its candidates in one of a few layouts. They are brought to one form, from which a detection is chosen
inside the graph: the candidate's score of a class is then one of P * K scores of an image, and everything that explains
a class explains a detection. Neither non-maximum suppression nor the choice has a gradient, and neither needs one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import onnx
from onnx import TensorProto, helper

from camrt.boxes import MOST
from camrt.builder import Builder
from camrt.classes import alike
from camrt.errors import CamrtError
from camrt.graph.rewrite import tensor_names
from camrt.graph.scores import FLOATS, check_tensor
from camrt.graph.scores import shown as _shown
from camrt.graph.sizes import Sizes
from camrt.graph.values import Value, join
from camrt.graph.view import GraphView, attributes_of, operator_of
from converters import metadata as keys

_SAME = {"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Transpose", "Dropout"}
_STRIDES = (8, 16, 32, 64)  # of the grids of YOLO; the last one of its larger networks alone
OVERLAP = 0.45  # intersection over union above which a better detection suppresses another
_KEPT = 1000  # detections of an image, at most
_LOWEST = float(np.finfo(np.float32).min)
_QUERIES_OF_DETR = 100  # whose classes have a Softmax; its successors' have Sigmoids
_APART = 4.0  # how far apart the boxes of two classes are moved, so that they never overlap


@dataclass(frozen=True)
class Layout:
    """How a detector says what it finds.

    Attributes:
        boxes: The tensor of boxes: N x candidates x 4, or N x 4 x candidates. Where ``scores`` is the same tensor, it
            holds both: boxes, perhaps an objectness, classes.
        scores: The tensor of class scores: N x candidates x classes, or N x classes x candidates.
        form: ``"corners"``: left, top, right, bottom; ``"center"``: center, width, height.
        unit: ``"pixels"`` of the network's input, or ``"shares"`` of its sides.
        activation: What makes probabilities of the scores: ``"none"``, ``"sigmoid"`` or ``"softmax"``.
        objectness: Whether a number between the box and its classes multiplies the classes.
        background: The number of the class that stands for nothing; -1 for none.
    """

    boxes: str
    scores: str
    form: str = "corners"
    unit: str = "pixels"
    activation: str = "none"
    objectness: bool = False
    background: int = -1

    def describe(self) -> str:
        """The layout in a phrase."""
        tensors = repr(self.boxes) if self.boxes == self.scores else f"{self.boxes!r} with {self.scores!r}"
        return f"{tensors} (boxes by {self.form} in {self.unit}, scores with {self.activation} to apply)"


# Layouts by the names of the networks; the tensors are the first output.
PRESETS: Mapping[str, Layout] = {
    "yolov5": Layout("", "", "center", "pixels", objectness=True),
    "yolov8": Layout("", "", "center", "pixels"),
    "rtdetr": Layout("", "", "center", "shares"),
}
_CHOICES = {
    "form": ("corners", "center"),
    "unit": ("pixels", "shares"),
    "activation": ("none", "sigmoid", "softmax"),
}
_ADVICE = (
    f"Say what they are: --detections {', '.join(PRESETS)}, or boxes=TENSOR,scores=TENSOR with form=corners|center, "
    "unit=pixels|shares, activation=none|sigmoid|softmax, objectness=yes and background=NUMBER as needed; or use "
    "--method drise, which takes detections behind non-maximum suppression, too"
)


@dataclass(frozen=True)
class Candidates:
    """What a detector finds in an image before non-maximum suppression.

    Attributes:
        boxes: (N, P, 4): left, top, right, bottom as shares of the image's sides.
        scores: (N, P, K): probabilities.
        logits: (N, P, K): what is differentiated: the scores before their activation, where they have one.
        count: P.
        classes: K.
        layout: Where they come from.
    """

    boxes: str
    scores: str
    logits: str
    count: int
    classes: int
    layout: Layout


@dataclass(frozen=True)
class Chosen:
    """The detections that are explained.

    Attributes:
        places: (N, count) int64: the candidate's number times K, plus its class.
        scores: (N, count): their scores; 0 where there is no such detection.
        classes: (N, count) int64.
        boxes: (N, count, 4): left, top, right, bottom as shares of the image's sides.
    """

    places: Value
    scores: Value
    classes: Value
    boxes: Value


def layout_of(view: GraphView, given: str | None, labels: Sequence[str] | None, side: int) -> Layout:
    """Find out how a detector says what it finds.

    Args:
        view: The detector, for images of a known size.
        given: What was said of it: a name of `PRESETS`, or ``"boxes=...,scores=..."``; None for what its metadata say,
            or its outputs tell.
        labels: The names of the classes, where they are known.
        side: The side of the images that it gets.

    Raises:
        CamrtError: Its outputs are those of no known detector, or what was said of it does not fit.
    """
    sizes = Sizes(view)
    if given is not None:
        return _given(view, sizes, given)
    found = _stated(view)
    if found is not None:
        return found
    found = _recognized(view, sizes, None if labels is None else len(labels), side)
    if found is None:
        raise CamrtError(f"found the outputs {_outputs(view, sizes)}, which are those of no known detector. {_ADVICE}")
    return found


def with_candidates(view: GraphView, layout: Layout, side: int) -> tuple[GraphView, Candidates]:
    """Bring what a detector finds to one form.

    Args:
        view: The detector. Not changed.
        layout: How it says what it finds.
        side: The side of the images that it gets.

    Returns:
        The detector with some nodes more, and the tensors that they make.

    Raises:
        CamrtError: The tensors do not have such a form.
    """
    model = onnx.ModelProto()
    model.CopyFrom(view.model)
    builder, sizes = Builder(view.opset, tensor_names(model.graph)), Sizes(view)
    if layout.boxes == layout.scores:
        boxes, scores, logits = _of_one(view, builder, sizes, layout)
    else:
        boxes = _by_candidate(builder, sizes, layout.boxes, width=4)
        count = boxes.fixed(1)[0]
        scores = _by_candidate(builder, sizes, layout.scores, count=count)
        before = _before(view, sizes, layout.scores)
        logits = scores if before is None else _by_candidate(builder, sizes, before, count=count)
    boxes, scores, logits = (one.cast(TensorProto.FLOAT) for one in (boxes, scores, logits))
    if layout.activation != "none":
        logits = scores
        scores = scores.op("Sigmoid") if layout.activation == "sigmoid" else scores.op("Softmax", axis=2)
    count, classes = scores.fixed(1, 2)
    if layout.background >= classes:
        raise CamrtError(f"found the background {layout.background} and {classes} classes, expected one of them")
    if layout.form == "center":
        half = boxes.slice(2, 2) * 0.5
        boxes = join([boxes.slice(2, 0, 2) - half, boxes.slice(2, 0, 2) + half], 2)
    if layout.unit == "pixels":
        boxes = boxes * (1 / side)
    for number, node in enumerate(builder.nodes):
        node.name = f"detections/{number}/{node.op_type}"  # other names than those of the explainer's nodes
    model.graph.node.extend(builder.nodes)
    model.graph.initializer.extend(builder.initializers)
    found = Candidates(boxes.name, scores.name, logits.name, count, classes, layout)
    return GraphView(model, view.renamed), found


def choose(builder: Builder, found: Candidates, boxes: Value, classes: Value) -> Chosen:
    """Choose the detections that are explained: by their overlap with boxes, or by their rank.

    Of a class, or of each candidate's best one, non-maximum suppression leaves the detections. Of these, the one is
    chosen that overlaps a box most (intersection over union); or the one of a rank by its score.

    Args:
        builder: Where the nodes go.
        found: The candidates.
        boxes: (N, count, 4): shares of the image; without an area, its first number is a rank, 0 for the box's place.
        classes: (N, count) int64: the class that detections must have; negative for each candidate's best.
    """
    (places,) = boxes.fixed(1)
    all_boxes = Value(builder, found.boxes, (None, found.count, 4))
    scores = Value(builder, found.scores, (None, found.count, found.classes))
    own, rows = _of_classes(found, scores, classes)
    kept = _suppressed(found, all_boxes, own, rows)
    # By overlap: what is suppressed counts less than nothing.
    overlaps = _overlaps(boxes.unsqueeze(2), all_boxes.unsqueeze(1))
    by_box = (
        (kept > _LOWEST)
        .where(overlaps, -1.0)
        .op("ArgMax", shape=(None, places), kind=TensorProto.INT64, axis=2, keepdims=0)
    )
    # By rank.
    ranks = min(MOST, found.count)
    names = [builder.name("ranked"), builder.name("order")]
    builder.nodes_of("TopK", [kept.name, builder.shape(ranks)], names, axis=2)
    order = Value(builder, names[1], (None, places, ranks), TensorProto.INT64)
    asked = boxes.slice(2, 0, 1).cast(TensorProto.INT64)
    place = builder.constant(np.arange(1, places + 1).reshape(1, places, 1), "places", np.int64)
    rank = (asked > 0).where(asked, Value(builder, place, (1, places, 1), TensorProto.INT64)) - 1
    by_rank = order.op("GatherElements", rank.minimum(ranks - 1), shape=(None, places, 1), axis=2).squeeze(2)
    sides = boxes.slice(2, 2) - boxes.slice(2, 0, 2)
    is_box = sides.min(2) > 0
    candidate = is_box.where(by_box, by_rank).unsqueeze(2)
    one = (None, places, 1)
    number = own.op("GatherElements", candidate, shape=one, axis=2)
    score = kept.op("GatherElements", candidate, shape=one, axis=2).squeeze(2)
    score = is_box.where(score, (rank < ranks).squeeze(2).where(score, 0.0))  # there are not as many candidates
    corners = all_boxes.op("GatherElements", candidate.expand(1, 1, 4), shape=(None, places, 4), axis=1)
    return Chosen(
        (candidate * found.classes + number).squeeze(2), score.maximum(0.0), number.squeeze(2), corners
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- what is told of it


def _given(view: GraphView, sizes: Sizes, text: str) -> Layout:
    """What the user says."""
    if text in PRESETS:
        output = next((name for name in view.outputs if len(sizes.shape(name) or ()) == 3), None)
        if output is None:
            raise CamrtError(
                f"found the outputs {_outputs(view, sizes)}, expected one of three axes, as of {text}. {_ADVICE}"
            )
        return replace(PRESETS[text], boxes=output, scores=output)
    pairs = [each.partition("=") for each in text.split(",")]
    known = {field.name for field in fields(Layout)}
    said: dict[str, object] = {}
    for name, equals, value in pairs:
        if name not in known or not equals or (name in _CHOICES and value not in _CHOICES[name]):
            near = alike(text, PRESETS)
            raise CamrtError(f"found --detections {text!r}, with {name + equals + value!r}{near or '. ' + _ADVICE}")
        said[name] = value
    if not {"boxes", "scores"} <= set(said):
        raise CamrtError(f"found --detections {text!r}, expected boxes=TENSOR and scores=TENSOR in it")
    if "objectness" in said:
        said["objectness"] = said["objectness"] == "yes"
    if "background" in said:
        if not str(said["background"]).isdecimal():
            raise CamrtError(f"found --detections {text!r}, expected background= the number of a class")
        said["background"] = int(str(said["background"]))
    for role in ("boxes", "scores"):
        said[role] = _tensor(view, str(said[role]), role)
    return Layout(**said)  # type: ignore[arg-type]


def _stated(view: GraphView) -> Layout | None:
    """What the metadata say."""
    try:
        said = keys.detections_of(view.metadata)
        if said is None:
            return None
        if any(said[name] not in choices for name, choices in _CHOICES.items()):
            raise ValueError("an unknown value")
    except ValueError as error:
        text = view.metadata[keys.DETECTIONS][:200]
        raise CamrtError(
            f"found the metadata {keys.DETECTIONS} {text!r}, which cannot be used ({error}). {_ADVICE}"
        ) from None
    return Layout(**{**said, **{role: _tensor(view, said[role], role) for role in ("boxes", "scores")}})


def _tensor(view: GraphView, name: str, role: str) -> str:
    name = view.renamed.get(name, name)
    check_tensor(view, name, role)
    return name


def _recognized(view: GraphView, sizes: Sizes, labels: int | None, side: int) -> Layout | None:
    """What the shapes of the outputs tell; None where they tell nothing."""
    outputs = [name for name in view.outputs if view.types.get(name) in FLOATS]
    three = {name: shape for name in outputs if (shape := sizes.shape(name)) is not None and len(shape) == 3}
    if len(three) == 1 and len(outputs) == 1:
        return _of_yolo(*next(iter(three.items())), labels, side)
    for boxes, shape in three.items():
        others = [name for name, other in three.items() if name != boxes and other[1] == shape[1]]
        if shape[2] != 4 or shape[1] is None or len(others) != 1 or three[others[0]][2] is None:
            continue
        if three[others[0]][2] == 4 and "box" not in boxes.lower():
            continue
        return _of_queries(view, boxes, others[0], three[others[0]], labels)
    return None


def _of_yolo(output: str, shape: Sequence[int | None], labels: int | None, side: int) -> Layout | None:
    """YOLOv5's N x candidates x (5 + classes), YOLOv8's N x (4 + classes) x candidates, RT-DETR's N x 300 x ..."""
    first, second = shape[1:]
    if first is None or second is None or min(first, second) < 5:
        return None
    grids = [sum((side // stride) ** 2 for stride in _STRIDES[:number]) for number in (3, 4)]
    if second in grids or (labels is not None and first == 4 + labels):
        return replace(PRESETS["yolov8"], boxes=output, scores=output)
    if first in [3 * cells for cells in grids] or (labels is not None and second == 5 + labels):
        return replace(PRESETS["yolov5"], boxes=output, scores=output)
    if first in (100, 300, 900) and second != 6 and (labels is None or second == 4 + labels):
        return replace(PRESETS["rtdetr"], boxes=output, scores=output)
    return None


def _of_queries(
    view: GraphView, boxes: str, scores: str, shape: Sequence[int | None], labels: int | None
) -> Layout | None:
    """DETR and its kin, whose boxes are the Sigmoid of something: centers and sizes as shares of the image."""
    if _activation(view, boxes) != "Sigmoid":
        return None
    queries, classes = shape[1:]
    if _activation(view, scores) is not None:
        return Layout(boxes, scores, "center", "shares")
    assert classes is not None
    is_soft = classes == labels + 1 if labels is not None else queries == _QUERIES_OF_DETR
    background = classes - 1 if is_soft else -1
    return Layout(boxes, scores, "center", "shares", "softmax" if is_soft else "sigmoid", background=background)


def _activation(view: GraphView, tensor: str) -> str | None:
    """The activation that a tensor is the result of, shapes aside."""
    node = view.producers.get(tensor)
    while node is not None and operator_of(node) in _SAME:
        node = view.producers.get(node.input[0])
    return operator_of(node) if node is not None and operator_of(node) in ("Sigmoid", "Softmax") else None


def _outputs(view: GraphView, sizes: Sizes) -> str:
    old = {new: name for name, new in view.renamed.items()}
    shapes = {name: sizes.shape(name) or view.shapes.get(name) for name in view.outputs}
    return ", ".join(f"{old.get(name, name)!r} {_shown(shape)}" for name, shape in shapes.items())


# ------------------------------------------------------------------------------------------------------- the candidates


def _value(builder: Builder, sizes: Sizes, tensor: str) -> Value:
    return Value(builder, tensor, sizes.shape(tensor), sizes.dtype(tensor) or TensorProto.FLOAT, sizes=sizes)


def _by_candidate(builder: Builder, sizes: Sizes, tensor: str, *, width: int = 0, count: int = 0) -> Value:
    """A tensor of boxes or scores as (N, P, width).

    Args:
        builder: Where the nodes go.
        sizes: The sizes of the tensors.
        tensor: (N, P, width), (N, width, P), (N, P, 1, width) or (N, P * width).
        width: How many numbers a candidate has; 0 where P is known.
        count: P; 0 where the width is known.

    Raises:
        CamrtError: It has another shape.
    """
    value = _value(builder, sizes, tensor)
    shape = [size for size in (value.shape[1:] if value.has_rank else ()) if size != 1]
    if value.has_rank and value.rank > 1 and None not in shape and shape:
        numbers = int(np.prod(value.fixed(*range(1, value.rank))))
        is_last, is_first = (
            (shape[-1] == width and len(shape) <= 2, shape[0] == width and len(shape) == 2)
            if width
            else (shape[0] == count, shape[-1] == count and len(shape) == 2)
        )
        flat = len(shape) == 1 and numbers % (width or count) == 0
        if is_last or flat:
            return value.reshape(-1, count or numbers // width, width or numbers // count)
        if is_first:
            return value.reshape(-1, shape[0], shape[1]).transpose(0, 2, 1)
    wanted = f"N x candidates x {width}" if width else f"N x {count} x classes, as there are boxes"
    found = _shown(value.shape if value.has_rank else None)
    raise CamrtError(f"found {tensor!r} of shape {found}, expected {wanted}. {_ADVICE}")


def _of_one(view: GraphView, builder: Builder, sizes: Sizes, layout: Layout) -> tuple[Value, Value, Value]:
    """Boxes, scores and logits of one tensor: YOLO's and RT-DETR's."""
    value, first = _value(builder, sizes, layout.boxes), 5 if layout.objectness else 4
    if not value.has_rank or value.rank != 3 or None in value.shape[1:] or min(value.fixed(1, 2)) <= first:
        found = _shown(value.shape) if value.has_rank else "unknown"
        raise CamrtError(
            f"found {layout.boxes!r} of shape {found}, expected N x candidates x ({first} + classes), or the last two "
            f"the other way round. {_ADVICE}"
        )
    rows, columns = value.fixed(1, 2)
    is_first = rows < columns  # the candidates are on the last axis: there are more of them
    rows_of = value.transpose(0, 2, 1) if is_first else value
    scores = rows_of.slice(2, first)
    if layout.objectness:
        product = rows_of.slice(2, 4, 5) * scores
        return rows_of.slice(2, 0, 4), product, product
    joined = _joined(view, sizes, layout.boxes, 1 if is_first else 2, min(rows, columns))
    if joined is None:
        return rows_of.slice(2, 0, 4), scores, scores
    before = _before(view, sizes, joined[1])
    apart = [_value(builder, sizes, tensor) for tensor in (joined[0], before or joined[1])]
    boxes, logits = [one.transpose(0, 2, 1) if is_first else one for one in apart]
    return boxes, scores, logits


def _joined(view: GraphView, sizes: Sizes, tensor: str, axis: int, width: int) -> tuple[str, str] | None:
    """The boxes and the scores that a Concat puts into one tensor."""
    node = view.producers.get(tensor)
    if node is None or operator_of(node) != "Concat" or attributes_of(node)["axis"] % 3 != axis:
        return None
    shapes = [sizes.shape(name) for name in node.input]
    widths = [shape[axis] if shape is not None and len(shape) == 3 else None for shape in shapes]
    return (node.input[0], node.input[1]) if widths == [4, width - 4] else None


def _before(view: GraphView, sizes: Sizes, tensor: str) -> str | None:
    """The tensor before the activation of scores, if it has as many numbers in the same order."""
    shape, node = sizes.shape(tensor), view.producers.get(tensor)
    while node is not None and operator_of(node) in _SAME - {"Transpose"}:
        node = view.producers.get(node.input[0])
    if node is None or operator_of(node) not in ("Sigmoid", "Softmax"):
        return None
    before = sizes.shape(node.input[0])
    if before is None or shape is None or None in (*before[1:], *shape[1:]):
        return None
    return str(node.input[0]) if np.prod(before[1:]) == np.prod(shape[1:]) else None  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------- the choice


def _of_classes(found: Candidates, scores: Value, classes: Value) -> tuple[Value, Value]:
    """The class of each candidate for each place, (N, count, P) int64, and its score, (N, count, P)."""
    (places,) = classes.fixed(1)
    is_background = np.arange(found.classes) == found.layout.background
    ranked = scores.minimum(np.where(is_background, -1, np.inf)) if is_background.any() else scores
    best = ranked.op("ArgMax", shape=(None, found.count), kind=TensorProto.INT64, axis=2, keepdims=0).unsqueeze(1)
    highest = ranked.max(2).unsqueeze(1)
    is_open = (classes < 0).unsqueeze(2)
    asked = classes.maximum(0).unsqueeze(2)
    wide = asked.expand(1, 1, found.count)
    columns = scores.transpose(0, 2, 1).op("GatherElements", wide, shape=(None, places, found.count), axis=1)
    return is_open.where(best, wide), is_open.where(highest, columns)


def _suppressed(found: Candidates, boxes: Value, classes: Value, scores: Value) -> Value:
    """The scores of the detections that are left for each place, the lowest float elsewhere: (N, count, P).

    Boxes of different classes do not suppress each other: they are moved apart.
    """
    builder, (places,) = boxes.builder, scores.fixed(1)
    apart = boxes.unsqueeze(1) + (classes.cast(TensorProto.FLOAT) * _APART).unsqueeze(3)
    lists = scores.reshape(-1, found.count)
    limits = [
        builder.shape(min(_KEPT, found.count)),
        builder.constant([OVERLAP], "overlap"),
    ]
    inputs = [apart.reshape(-1, found.count, 4).name, lists.unsqueeze(1).name, *limits]
    kept = builder.node("NonMaxSuppression", inputs)
    at = builder.node("Gather", [kept, builder.shape(0, 2)], axis=1)  # a list each, and of it a candidate
    values = builder.node("GatherND", [lists.name, at])
    left = builder.node("ScatterND", [lists.filled(_LOWEST).name, at, values])
    return Value(builder, left, (None, found.count)).reshape(-1, places, found.count)


def _overlaps(one: Value, other: Value) -> Value:
    """Intersection over union of boxes: (..., 4) each."""
    low = one.slice(3, 0, 2).maximum(other.slice(3, 0, 2))
    high = one.slice(3, 2).minimum(other.slice(3, 2))
    shared = _area(high - low)
    total = _area(one.slice(3, 2) - one.slice(3, 0, 2)) + _area(other.slice(3, 2) - other.slice(3, 0, 2))
    return shared / (total - shared).maximum(1e-12)


def _area(sides: Value) -> Value:
    sides = sides.relu()
    return sides.slice(3, 0, 1).squeeze(3) * sides.slice(3, 1, 2).squeeze(3)


def sized(view: GraphView, side: int) -> GraphView:
    """The network for images of one size, where its input leaves it open. Its weights are shared."""
    value = view.inputs[0]
    dims = value.type.tensor_type.shape.dim
    if all(dim.HasField("dim_value") for dim in dims[2:]):
        return view
    model = onnx.ModelProto()
    model.CopyFrom(view.model)
    del model.graph.value_info[:]
    for one in model.graph.input:
        if one.name == value.name:
            batch = dims[0].dim_value or dims[0].dim_param or "batch"
            one.CopyFrom(helper.make_tensor_value_info(one.name, TensorProto.FLOAT, [batch, 3, side, side]))
    for one in model.graph.output:
        one.type.tensor_type.ClearField("shape")
    return GraphView(model, view.renamed)
