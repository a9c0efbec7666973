"""What is explained: the best classes, given ones, a class that comes with each image, or a sum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from camrt.builder import Builder
from camrt.classes import class_number
from camrt.errors import CamrtError
from camrt.graph.scores import Scores
from camrt.graph.values import Value

Target: TypeAlias = int | str | Sequence[int | str]
INPUT, ANY, SUM = "input", "any", "sum"


@dataclass(frozen=True)
class Targets:
    """What is explained of each image.

    Attributes:
        kind: ``"top"``: the best classes; ``"fixed"``: these ones; ``"input"``: those that come with the image;
            ``"any"``: those that come with the image, where a negative number stands for the best class of that place;
            ``"sum"``: the sum of a tensor's values.
        count: How many maps an image gets.
        classes: The classes of ``"fixed"``.
    """

    kind: Literal["top", "fixed", "input", "any", "sum"]
    count: int
    classes: tuple[int, ...] = ()

    @property
    def fact(self) -> str | list[int]:
        """For the model's metadata."""
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

    def seeds(self, classes: Value, crops: int, logits: Value) -> Value:
        """The cotangent of each class that the backward pass begins with: the derivative of what is explained.

        Args:
            classes: The class of each image: (N,) int64.
            crops: How many crops an image has.
            logits: (N * crops, K), perhaps with axes of size 1 behind.

        Returns:
            A 1 for the class, of the shape of ``logits``.
        """
        if self.kind == "sum":
            return logits.filled(1)
        column = classes.unsqueeze(1, 2).expand(1, crops, 1).reshape(-1, 1)
        rows = logits.reshape(-1, math.prod(logits.fixed(*range(1, logits.rank))))
        # Where a class is out of range, ScatterElements fails; OneHot would give zeros, and an empty map.
        hot = rows.zeros(column.lead).scatter(column, column.cast(rows.kind).filled(1, column.lead), 1)
        return hot.reshape_as(logits)


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
