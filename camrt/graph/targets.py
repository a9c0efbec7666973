"""What is explained: the best classes, given ones, a class that comes with each image, or a sum.

Of a network for segmentation, a class's score is the sum of its logits over its mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from onnx import TensorProto

from camrt.boxes import BOX, box_targets
from camrt.builder import Builder
from camrt.classes import class_number
from camrt.errors import CamrtError
from camrt.graph.scores import Scores
from camrt.graph.values import Value

Target: TypeAlias = int | str | Sequence[int | str]
INPUT, ANY, SUM, SEGMENT = "input", "any", "sum", "segment"


@dataclass(frozen=True)
class Targets:
    """What is explained of each image.

    Attributes:
        kind: ``"top"``: the best classes; ``"fixed"``: these ones; ``"input"``: those that come with the image;
            ``"any"``: those that come with the image, where a negative number stands for the best class of that place;
            ``"sum"``: the sum of a tensor's values; ``"box"``: detections (`camrt.graph.detections.choose`).
        count: How many maps an image gets.
        classes: The classes of ``"fixed"``.
        is_segment: Whether there are logits for each pixel, which count where the class has the largest.
        boxes: Of ``"box"``, what is explained where nothing else is said.
    """

    kind: Literal["top", "fixed", "input", "any", "sum", "box"]
    count: int
    classes: tuple[int, ...] = ()
    is_segment: bool = False
    boxes: tuple[str, ...] = ()

    @property
    def fact(self) -> str | list[int] | list[str]:
        """For the model's metadata."""
        if self.kind == "box":
            return self.boxes[0] if len(self.boxes) == 1 else list(self.boxes)
        return list(self.classes) if self.kind == "fixed" else self.kind

    def tensor(self, builder: Builder, scores: str, given: str, output: str) -> str:
        """The classes that are explained: (N, count) int64.

        Args:
            builder: Where the nodes go.
            scores: (N, K) float32.
            given: The graph's input of classes, for ``"input"`` and ``"any"``.
            output: The tensor that is written.
        """
        if self.kind == "top":
            return self._best(builder, scores, output)
        if self.kind == "input":
            return builder.node("Identity", [given], output)
        if self.kind == "any":
            is_open = builder.node("Less", [given, builder.shape(0)])
            return builder.node("Where", [is_open, self._best(builder, scores, builder.name("ranked")), given], output)
        rows = builder.slice(builder.node("Shape", [scores]), [0], [1], [0])
        shape = builder.node("Concat", [rows, builder.shape(self.count)], axis=0)
        fixed = builder.constant([self.classes or (0,)], "classes", np.int64)
        return builder.node("Expand", [fixed, shape], output)

    def _best(self, builder: Builder, scores: str, output: str) -> str:
        builder.nodes_of("TopK", [scores, builder.shape(self.count)], [builder.name("best"), output], axis=1)
        return output

    def seeds(self, classes: Value, crops: int, logits: Value, labels: Value | None = None) -> Value:
        """The cotangent of each class that the backward pass begins with: the derivative of what is explained.

        Args:
            classes: The class of each image: (N,) int64.
            crops: How many crops an image has.
            logits: (N * crops, K), perhaps with axes of size 1 behind; of a segmentation (N * crops, K, h, w).
            labels: Of a segmentation, `label_map`.

        Returns:
            A 1 for the class, of the shape of ``logits``; of a segmentation where the class's mask is.
        """
        if self.kind == "sum":
            return logits.filled(1)
        column = classes.unsqueeze(1, 2).expand(1, crops, 1).reshape(-1, 1)
        if labels is not None:
            numbers = logits.builder.constant(np.arange(*logits.fixed(1)), "numbers", np.int64)
            every = Value(logits.builder, numbers, logits.shape[1:2], TensorProto.INT64)
            of_class = every.gather(column.reshape(-1, 1, 1, 1), 0)  # fails where there is no such class
            channel = every.reshape(1, -1, 1, 1).equals(of_class)
            return channel.cast(logits.kind) * of_class.equals(labels.unsqueeze(1)).cast(logits.kind)
        rows = logits.reshape(-1, math.prod(logits.fixed(*range(1, logits.rank))))
        # Where a class is out of range, ScatterElements fails; OneHot would give zeros, and an empty map.
        hot = rows.zeros(column.lead).scatter(column, column.cast(rows.kind).filled(1, column.lead), 1)
        return hot.reshape_as(logits)


def label_map(logits: Value) -> Value:
    """The class of each pixel.

    Args:
        logits: (N, K, h, w). Of one class, its mask is where they are positive, and the other pixels have the class -1.

    Returns:
        (N, h, w) int64.
    """
    images, classes, height, width = logits.shape
    if classes == 1:
        return (logits > 0).cast(TensorProto.INT64).squeeze(1) - 1
    shape = (images, height, width)
    return logits.op("ArgMax", shape=shape, kind=TensorProto.INT64, axis=1, keepdims=0)


def of_segment(target: Target | None) -> tuple[bool, Target | None]:
    """Whether a target is about segments, and the target without that.

    ``"segment:dog"`` is the class dog, ``"segment"`` the classes with the largest masks; ``"segment:input"`` and
    ``"segment:any"`` come with the images.

    Raises:
        CamrtError: Of several targets, only some are about segments.
    """
    if target is None or isinstance(target, str) or np.ndim(target) == 0:
        name, _, one = str(target).partition(":")
        return (True, one or None) if isinstance(target, str) and name == SEGMENT else (False, target)
    asked = [each.partition(":") if isinstance(each, str) else ("", "", "") for each in target]  # type: ignore[union-attr]
    about = [name == SEGMENT for name, _, _ in asked]
    if not any(about):
        return False, target
    if not all(about):
        raise CamrtError(f"found the targets {target}, expected all or none of the form {SEGMENT}:CLASS")
    return True, [one for _, _, one in asked]


def of_boxes(target: Target | None, top: int | None) -> Targets:
    """Targets that are detections.

    Args:
        target: One, or several, as `camrt.boxes` reads them; None for the best detections.
        top: How many maps an image gets; None for as many as were given.

    Raises:
        CamrtError: One has another form, or there are more than ``top``.
    """
    boxes = [BOX] if target is None else [target] if isinstance(target, str) else list(target)  # type: ignore[arg-type]
    count = len(boxes) if top is None else top
    if count < 1:
        raise CamrtError(f"found top {count}, expected 1 or more")
    box_targets(boxes, count)
    return Targets("box", count, boxes=tuple(map(str, boxes)))


def targets_of(
    target: Target | None, top: int | None, most: int, labels: Sequence[str] | None, scores: Scores | None
) -> Targets:
    """What was asked for.

    Args:
        target: None for the best classes; ``"input"``, ``"any"``, ``"sum"``; a class, or several: numbers, or names
            that the model knows.
        top: How many maps an image gets; None for ``most``, or as many as there are classes or were given.
        most: How many of the best classes the method explains if nothing is said.
        labels: The names of the classes, where they are known.
        scores: What is explained; None for ``"sum"``.

    Raises:
        CamrtError: No such class; the text names those that are called alike. Or ``top`` contradicts it.
    """
    if target == SUM:
        if top not in (None, 1):
            raise CamrtError(f"found top {top} and the target {SUM!r}, expected top 1: a sum has one map")
        return Targets("sum", 1)
    assert scores is not None
    if target in (None, INPUT, ANY):
        count = min(1 if target == INPUT else most, scores.classes) if top is None else top
        if not 1 <= count <= scores.classes:
            raise CamrtError(f"found top {count}, expected 1 to {scores.classes}, the number of classes")
        kinds: Mapping[Target | None, Literal["top", "input", "any"]] = {None: "top", INPUT: "input", ANY: "any"}
        return Targets(kinds[target], count)
    asked = [target] if isinstance(target, str) or np.ndim(target) == 0 else list(target)  # type: ignore[arg-type]
    classes = tuple(class_number(each, labels, scores.classes) for each in asked)
    if not classes:
        raise CamrtError("found no target, expected a class at least")
    if top not in (None, len(classes)):
        raise CamrtError(
            f"found top {top} and {len(classes)} targets, expected one of both: --top is for the best classes"
        )
    return Targets("fixed", len(classes), classes)
