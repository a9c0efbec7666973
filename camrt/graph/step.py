"""One step of the backward pass: what a rule gets to know, and what it builds with."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from camrt.errors import CamrtError
from camrt.graph.builder import Builder
from camrt.graph.sizes import Batch, Sizes
from camrt.graph.view import GraphView, attributes_of


class Step:
    """The node whose gradients are wanted, and the graph that they are written to.

    The gradient that comes in has the shape of the node's output, with ``copies`` rows for each image. Tensors of the
    forward pass have one. So a rule multiplies by `times`, which lets the copies share them, or asks for
    `repeated` tensors.

    Attributes:
        proto: The node of the forward pass.
        view: The graph that it stands in.
        sizes: Sizes and types of that graph's tensors.
        builder: Where new nodes go.
        gradients: What comes in at each output; None where nothing does.
        copies: How many gradients each image has.
    """

    def __init__(
        self,
        proto: onnx.NodeProto,
        view: GraphView,
        sizes: Sizes,
        builder: Builder,
        gradients: Sequence[str | None],
        wanted: Collection[str],
        copies: int = 1,
    ) -> None:
        self.proto = proto
        self.view = view
        self.sizes = sizes
        self.builder = builder
        self.gradients = gradients
        self.copies = copies
        self._wanted = wanted

    # ------------------------------------------------------------------------------------------------------- asking

    @property
    def inputs(self) -> Sequence[str]:
        """The node's inputs; empty where one is left out."""
        return self.proto.input

    @property
    def output(self) -> str:
        """The node's first output."""
        return self.proto.output[0]

    @cached_property
    def attributes(self) -> Mapping[str, Any]:
        """The node's attributes; texts as str."""
        found = attributes_of(self.proto)
        return {key: value.decode() if isinstance(value, bytes) else value for key, value in found.items()}

    def wants(self, index: int) -> bool:
        """Whether the gradient at an input is asked for."""
        return index < len(self.inputs) and self.inputs[index] in self._wanted

    def has(self, index: int) -> bool:
        """Whether an optional input is given."""
        return index < len(self.inputs) and bool(self.inputs[index])

    def value(self, index: int) -> np.ndarray | None:
        """The value of an input that does not depend on the data; None where it does or is left out."""
        return self.sizes.value(self.inputs[index]) if self.has(index) else None

    def known(self, index: int, what: str) -> np.ndarray:
        """The value of an input that the rule cannot do without.

        Raises:
            CamrtError: It is computed.
        """
        value = self.value(index)
        if value is None:
            raise self.error(f"found {what} that are computed, expected constants")
        return value

    def shape(self, tensor: str) -> tuple[int | None, ...]:
        """The sizes of a tensor's axes; None for the batch and for what is not known.

        Raises:
            CamrtError: Not even the number of axes is known.
        """
        shape = self.sizes.shape(tensor)
        if shape is None:
            raise self.error(
                f"the shape of {tensor!r} cannot be inferred: give the model's inputs fixed sizes (all but the batch)"
            )
        return shape

    def rank(self, tensor: str) -> int:
        """The number of axes."""
        return len(self.shape(tensor))

    def fixed(self, tensor: str, axes: Sequence[int]) -> tuple[int, ...]:
        """Sizes that the rule cannot do without.

        Raises:
            CamrtError: One of them is not known.
        """
        shape = self.shape(tensor)
        found = [size for size in (shape[axis] for axis in axes) if size is not None]
        if len(found) != len(axes):
            raise self.error(
                f"found {tensor!r} of shape {self.describe(shape)}, expected sizes that are known: give the model's "
                "inputs fixed sizes (all but the batch)"
            )
        return tuple(found)

    def batch(self, tensor: str) -> Batch | None:
        """The axis of the images, or None.

        Raises:
            CamrtError: It cannot be told.
        """
        try:
            return self.sizes.batch(tensor)
        except LookupError:
            raise self.error(
                f"the images' axis in {tensor!r} of shape {self.describe(self.shape(tensor))} cannot be told, and "
                f"{self.copies} gradients an image need it: ask for one at a time"
            ) from None

    def batch_of(self, tensor: str) -> Batch | None:
        """The axis of the images where they have several gradients, so that it matters; else None."""
        return self.batch(tensor) if self.copies > 1 else None

    def alone(self, tensor: str) -> None:
        """A tensor must not hold images when these have several gradients: they would be mixed.

        Raises:
            CamrtError: It does.
        """
        if self.batch_of(tensor) is not None:
            raise self.error(
                f"it mixes the images of {tensor!r}, and {self.copies} gradients an image need each image to itself: "
                "ask for one at a time"
            )

    def axis(self, number: int, tensor: str | None = None) -> int:
        """An axis, counted from the front."""
        return number % max(1, self.rank(tensor or self.inputs[0]))

    def apart(self, axes: Sequence[int], tensor: str | None = None) -> None:
        """Axes that a rule cuts along, or sums over, must not be the images' when these have several gradients.

        Raises:
            CamrtError: One is.
        """
        tensor = tensor or self.inputs[0]
        batch = self.batch_of(tensor)
        if batch is not None and batch.axis in [axis % max(1, self.rank(tensor)) for axis in axes]:
            raise self.error(
                f"it works along the images' axis, and {self.copies} gradients an image need each image to itself: "
                "ask for one at a time"
            )

    def kind(self, tensor: str | None = None) -> int:
        """The element type of a tensor (the output by default), as ONNX numbers it; float32 where it is not known."""
        return self.sizes.dtype(tensor or self.output) or onnx.TensorProto.FLOAT

    def dtype(self, tensor: str | None = None) -> np.dtype[Any]:
        """The same as a NumPy type."""
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.kind(tensor)))

    def error(self, message: str) -> CamrtError:
        """An error that names the node."""
        return CamrtError(f"{describe(self.proto)}: {message}")

    @staticmethod
    def describe(shape: Sequence[int | None]) -> str:
        """A shape for people."""
        return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"

    # ----------------------------------------------------------------------------------------------------- building

    def node(self, op: str, *inputs: str | float, **attributes: Any) -> str:
        """Add a node of one output; numbers among its inputs become constants of the output's element type."""
        names = [self.scalar(one) if isinstance(one, (int, float)) else one for one in inputs]
        return self.builder.node(op, names, **attributes)

    def where(self, condition: str, this: str | float, other: str | float) -> str:
        """Element by element, one of two."""
        return self.node("Where", condition, this, other)

    def mask(self, condition: str) -> str:
        """Truth values as numbers of the output's element type."""
        return self.builder.node("Cast", [condition], to=self.kind())

    def scalar(self, value: float, tensor: str | None = None) -> str:
        """A constant of a tensor's element type (the output's by default)."""
        return self.builder.constant(value, "scalar", self.dtype(tensor))

    def constant(self, values: object, tensor: str | None = None) -> str:
        """Constants of a tensor's element type (the output's by default)."""
        return self.builder.constant(values, "constant", self.dtype(tensor))

    def gradient(self, index: int) -> str:
        """What comes in at an output: zeros where nothing does."""
        found = self.gradients[index]
        return self.zeros(self.proto.output[index]) if found is None else found

    def zeros(self, tensor: str) -> str:
        """Zeros of the shape of a tensor's gradient."""
        shape = self.builder.node("Shape", [self.repeated(tensor)])
        value = onnx.numpy_helper.from_array(np.zeros(1, self.dtype(tensor)))
        return self.builder.node("ConstantOfShape", [shape], value=value)

    def times(self, gradient: str, factor: str, like: str | None = None, *, of: str | None = None) -> str:
        """A gradient times something of the forward pass, which all copies share.

        Args:
            gradient: A gradient.
            factor: A tensor with one row an image, or none.
            like: The tensor of the forward pass whose shape the factor has; by default the output.
            of: The tensor of the forward pass whose shape the gradient has; by default the output.
        """
        return self.combine("Mul", gradient, factor, like, of=of)

    def combine(self, op: str, gradient: str, other: str, like: str | None = None, *, of: str | None = None) -> str:
        """``op(gradient, other)``: see `times`."""
        like, of = like or self.output, of or self.output
        theirs = self.batch_of(like)
        if theirs is None:
            return self.builder.node(op, [gradient, other])
        ours = self.batch(of)
        offset = self.rank(of) - self.rank(like)
        if ours is None or ours != Batch(theirs.axis + offset, theirs.outer, theirs.inner):
            raise self.error(f"the images' axes in {of!r} and {like!r} differ: ask for one gradient at a time")
        apart = self._apart(gradient, of, self.copies)
        result = self.builder.node(op, [apart, self._apart(other, like, 1)])
        return self.reshape_as(result, of)

    def repeated(self, tensor: str, like: str | None = None) -> str:
        """A tensor of the forward pass with its rows repeated for each copy.

        Args:
            tensor: A tensor with one row an image, or none.
            like: The tensor of the forward pass whose shape it has; by default itself.
        """
        like = like or tensor
        batch = self.batch_of(like)
        if batch is None:
            return tensor
        sizes = [1] * len(self._apart_shape(like, self.copies))
        sizes[batch.axis + (2 if batch.outer > 1 else 1)] = self.copies
        expanded = self.builder.node("Expand", [self._apart(tensor, like, 1), self.builder.shape(*sizes)])
        return self.reshape_as(expanded, like)

    def _apart(self, tensor: str, like: str, copies: int) -> str:
        return self.builder.reshape(tensor, *self._apart_shape(like, copies))

    def _apart_shape(self, like: str, copies: int) -> list[int]:
        """The sizes with the images' axis taken apart: ..., (outer,) N, copies, (inner,) ..."""
        batch = self.batch(like)
        assert batch is not None
        rank = self.rank(like)
        before = self.fixed(like, range(batch.axis))
        after = self.fixed(like, range(batch.axis + 1, rank))
        outer = [batch.outer] if batch.outer > 1 else []
        inner = [batch.inner] if batch.inner > 1 else []
        return [*before, *outer, -1, copies, *inner, *after]

    def reshape_as(self, gradient: str, tensor: str) -> str:
        """Give a gradient the shape of a tensor of the forward pass, with all its copies."""
        shape = self.shape(tensor)
        if shape.count(None) <= 1:
            return self.builder.reshape(gradient, *(-1 if size is None else size for size in shape))
        if self.copies > 1:
            self.fixed(tensor, [axis for axis, size in enumerate(shape) if size is None][1:])
        return self.builder.node("Reshape", [gradient, self.builder.node("Shape", [tensor])])

    def expand_as(self, gradient: str, tensor: str) -> str:
        """Repeat a gradient along axes where its size is 1, up to the size of a tensor of the forward pass."""
        shape = self.shape(tensor)
        batch = self.batch_of(tensor)
        if all(size is not None or (batch is not None and axis == batch.axis) for axis, size in enumerate(shape)):
            sizes = [1 if size is None else size for size in shape]
            return self.builder.node("Expand", [gradient, self.builder.shape(*sizes)])
        return self.builder.node("Expand", [gradient, self.builder.node("Shape", [self.repeated(tensor)])])

    def along(self, gradient: str, shape: list[int | None], axis: int, matrix: np.ndarray) -> str:
        """Multiply every line of a tensor along an axis by a matrix.

        Args:
            gradient: The tensor.
            shape: Its sizes, None for the one that may be free; that along ``axis`` becomes the new one.
            axis: The axis.
            matrix: (new size, old size).
        """
        new, old = matrix.shape
        if axis == len(shape) - 1:
            shape[axis] = new
            return self.builder.node("MatMul", [gradient, self.constant(matrix.T)])
        behind = shape[axis + 1 :]
        flat = gradient
        if len(behind) > 1:
            flat = self.builder.reshape(gradient, *_sizes(shape[:axis]), old, math.prod(_sizes(behind)))
        product = self.builder.node("MatMul", [self.constant(matrix), flat])
        shape[axis] = new
        return self.builder.reshape(product, *_sizes(shape)) if len(behind) > 1 else product

    def shared_out(self, gradient: str, axes: Sequence[int]) -> str:
        """A gradient divided by the number of elements of the input along axes."""
        sizes = self.shape(self.inputs[0])
        fixed = [size for size in (sizes[axis] for axis in axes) if size is not None]
        if len(fixed) == len(axes):
            return self.node("Div", gradient, math.prod(fixed))
        counts = [self.mask(self.builder.node("Size", [name])) for name in (self.inputs[0], self.output)]
        return self.node("Div", gradient, self.node("Div", *counts))

    def fit(self, gradient: str, tensor: str, *, of: str | None = None) -> str:
        """Sum a gradient over the axes along which a tensor was broadcast.

        Args:
            gradient: A gradient.
            tensor: The tensor of the forward pass that was broadcast.
            of: The tensor of the forward pass whose shape the gradient has; by default the output.
        """
        of = of or self.output
        ours, theirs = self.shape(of), self.shape(tensor)
        extra = len(ours) - len(theirs)
        axes = list(range(extra))
        for axis, size in enumerate(theirs):
            if size == 1 and ours[axis + extra] != 1:
                axes.append(axis + extra)
        if not axes:
            return gradient
        self.apart(axes, of)
        if axes == list(range(extra)):
            return self.builder.reduce("Sum", gradient, axes)
        summed = self.builder.reduce("Sum", gradient, axes, keepdims=True)
        return self.builder.node("Squeeze", [summed, self.builder.shape(*range(extra))]) if extra else summed


def _sizes(shape: Sequence[int | None]) -> list[int]:
    return [-1 if size is None else size for size in shape]


def describe(node: onnx.NodeProto) -> str:
    """A node for people: its name and operator."""
    domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
    return f"{node.name or next((name for name in node.output if name), '?')!r} ({domain}{node.op_type})"
