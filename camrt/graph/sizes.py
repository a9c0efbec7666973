"""What a tensor's axes are: fixed sizes, the batch, or unknown.

Backward rules have to know which axis of a tensor the images stand along, also behind a Reshape or a Transpose.
Symbolic shape inference loses that, so the shapes are inferred twice, with two sizes of the batch: what does not change
is fixed, what changes in proportion is the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx

from camrt.graph.inference import Inferred, infer
from camrt.graph.view import GraphView, skeleton

_PROBES = (6, 10)  # sizes of the batch to infer shapes with; sizes that depend on both of them are told by proportion
_FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.UNDEFINED,
}
_MOVING = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}  # they change the axes and leave the elements where they are


@dataclass(frozen=True)
class Batch:
    """The axis of a tensor along which the images stand: ``outer * N * inner`` long, in this order.

    Attributes:
        axis: Its place.
        outer: How many blocks of N it holds.
        inner: How many elements an image has in a block.
    """

    axis: int
    outer: int = 1
    inner: int = 1


class Sizes:
    """Sizes, batch axis and element type of each tensor of a graph, as far as they can be inferred."""

    def __init__(self, view: GraphView) -> None:
        self._view = view

    def shape(self, tensor: str) -> tuple[int | None, ...] | None:
        """The fixed sizes; None for the batch and for what is not known. None where even the rank is not known."""
        first, second = (one.shapes.get(tensor) for one in self._inferred)
        if first is None or second is None or len(first) != len(second):
            return None
        return tuple(a if a == b and isinstance(a, int) else None for a, b in zip(first, second, strict=True))

    def named(self, tensor: str) -> tuple[int | str | None, ...]:
        """The sizes as a model declares them: numbers, names of free ones, None for what is not known."""
        shape = self._view.shapes.get(tensor, ())
        fixed = self.shape(tensor) or ()
        if len(shape) != len(fixed):
            return fixed
        return tuple(
            size if size is not None else name if isinstance(name, str) else None
            for size, name in zip(fixed, shape, strict=True)
        )

    def same(self, left: str, left_axis: int, right: str, right_axis: int) -> bool:
        """Whether two axes are as long as each other, as far as that is known."""
        one, other = (self._inferred[0].shapes.get(tensor) for tensor in (left, right))
        return one is not None and other is not None and one[left_axis] == other[right_axis]

    def dtype(self, tensor: str) -> int:
        """The element type (`onnx.TensorProto.DataType`); UNDEFINED where it is not known."""
        return self._inferred[0].types.get(tensor, onnx.TensorProto.UNDEFINED)

    def is_float(self, tensor: str) -> bool:
        """Whether a tensor may hold floating-point numbers."""
        return self.dtype(tensor) in _FLOATS

    def batch(self, tensor: str) -> Batch | None:
        """The axis of the images; None where the tensor does not depend on their number.

        Raises:
            LookupError: They are mixed with something else along an axis.
        """
        if tensor not in self._batches:
            return None
        found = self._batches[tensor]
        if found is None:
            raise LookupError(tensor)
        return found

    def value(self, tensor: str) -> np.ndarray | None:
        """A tensor's value where it depends neither on the data nor on their number, also if nodes compute it."""
        direct = self._view.constant(tensor)
        if direct is not None:
            return direct
        both = self.values(tensor)
        return both[0] if both is not None and np.array_equal(*both) else None

    def values(self, tensor: str) -> tuple[np.ndarray, np.ndarray] | None:
        """What a tensor holds for two sizes of the batch, where it does not depend on the data."""
        first, second = (one.values.get(tensor) for one in self._inferred)
        return None if first is None or second is None else (first, second)

    def takes_all(self, node: onnx.NodeProto) -> bool:
        """Whether a Gather takes all elements of a vector in order: PyTorch's as_strided, which is a Reshape here."""
        if node.op_type != "Gather":
            return False
        indices, shapes = self.values(node.input[1]), [one.shapes.get(node.input[0]) for one in self._inferred]
        return indices is not None and all(
            shape == places.reshape(-1).shape and np.array_equal(places.reshape(-1), np.arange(places.size))
            for places, shape in zip(indices, shapes, strict=True)
        )

    @cached_property
    def has_batch(self) -> bool:
        """Whether the graph takes any number of images."""
        return self._inferred[0] is not self._inferred[1]

    @cached_property
    def _inferred(self) -> tuple[Inferred, Inferred]:
        light = skeleton(self._view.model)
        frees = list(_batch_dims(light, {value.name for value in self._view.inputs}))
        if not frees:
            found = infer(light, self._view.initializers)
            return found, found
        del light.graph.value_info[:]  # written for a free batch
        for output in light.graph.output:
            output.type.tensor_type.ClearField("shape")
        both = []
        for size in _PROBES:
            for dim in frees:
                dim.Clear()
                dim.dim_value = size
            both.append(infer(light, self._view.initializers))
        return both[0], both[1]

    @cached_property
    def _batches(self) -> Mapping[str, Batch | None]:
        """Tensors that depend on the batch -> where it stands, None where that cannot be told."""
        found: dict[str, Batch | None] = {}
        if not self.has_batch:
            return found
        for value in self._view.inputs:
            self._place(value.name, None, found)
        for node in self._view.model.graph.node:
            for output in node.output:
                self._place(output, node, found)
        return found

    def _place(self, tensor: str, node: onnx.NodeProto | None, found: dict[str, Batch | None]) -> None:
        first, second = (one.shapes.get(tensor) for one in self._inferred)
        if first is None or second is None or len(first) != len(second):
            return
        moved = [axis for axis, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
        if not moved:
            return
        axis, (small, large) = moved[0], _PROBES
        a, b = first[axis], second[axis]
        found[tensor] = None
        if len(moved) > 1 or not isinstance(a, int) or not isinstance(b, int) or a * large != b * small or a % small:
            return
        factor = a // small
        if factor == 1:
            found[tensor] = Batch(axis)
        elif node is not None:
            outer = self._outer(node, first[:axis], factor, found)
            if outer is not None:
                found[tensor] = Batch(axis, outer, factor // outer)

    def _outer(
        self, node: onnx.NodeProto, before: Sequence[int | str | None], factor: int, found: Mapping[str, Batch | None]
    ) -> int | None:
        """How many blocks of images an axis of ``factor`` * N holds."""
        if node.op_type == "Concat":
            blocks = [source.outer if source and source.inner == 1 else None for source in map(found.get, node.input)]
            numbers = [block for block in blocks if block is not None]
            if len(numbers) == len(blocks) and sum(numbers) == factor:
                return factor
        for name in node.input:
            source = found.get(name)
            if source is None:
                continue
            if node.op_type not in _MOVING and not self.takes_all(node):
                if source.outer * source.inner == factor:
                    return source.outer
                continue
            # What stands before the images in memory stays before them.
            shape = self._inferred[0].shapes[name]
            left, right = _count(shape[: source.axis]), _count(before)
            if left is not None and right and (left * source.outer) % right == 0:
                outer = left * source.outer // right
                return outer if outer and factor % outer == 0 else None
        return None


def _count(sizes: Sequence[int | str | None]) -> int | None:
    numbers = [size for size in sizes if isinstance(size, int)]
    return math.prod(numbers) if len(numbers) == len(sizes) else None


def _batch_dims(model: onnx.ModelProto, inputs: set[str]) -> Iterator[onnx.TensorShapeProto.Dimension]:
    """The free dimensions of the inputs that count images: the first free one, and those of its name."""
    values = [value for value in model.graph.input if value.name in inputs]
    shapes = [value.type.tensor_type.shape.dim for value in values]
    free = [dim for dims in shapes for dim in dims if not dim.HasField("dim_value")]
    if not free:
        return
    first = next((dim for dims in shapes for dim in dims[:1] if not dim.HasField("dim_value")), free[0])
    name = first.dim_param
    for dims in shapes:
        for axis, dim in enumerate(dims):
            if not dim.HasField("dim_value") and (dim.dim_param == name if name else axis == 0 or dim is first):
                yield dim
