"""The sizes of a tensor's axes: fixed, or free because they depend on the batch.

Exporters compute the targets of Reshape and the like from shapes, and symbolic shape inference does not follow that. So
shapes are inferred twice, with two sizes of the batch: sizes that differ depend on it, all others are fixed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import onnx

from camrt.graph.inference import Inferred, infer
from camrt.graph.view import GraphView, skeleton

_PROBES = (6, 10)  # sizes of the batch to infer shapes with
_FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.UNDEFINED,
}


class Sizes:
    """Shape, element type and constant value of each tensor of a graph, as far as they can be inferred."""

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

    def takes_all(self, tensor: str, indices: str) -> bool:
        """Whether indices name all elements of a vector in order: PyTorch's as_strided, which is a Reshape here."""
        positions, shapes = self.values(indices), [one.shapes.get(tensor) for one in self._inferred]
        return positions is not None and all(
            shape == one.reshape(-1).shape and np.array_equal(one.reshape(-1), np.arange(one.size))
            for one, shape in zip(positions, shapes, strict=True)
        )

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
