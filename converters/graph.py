"""The ONNX graph under construction.

Every tensor has a known shape and type, which handlers can query. Weights stay views of the caffemodel until the model
is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from converters.errors import ConversionError
from converters.layer import Layer
from converters.shape import MAX_AXES, MAX_BLOB, Dim, FixedDim, Shape, SymbolicDim, count, product, show, sizes

Array = NDArray[Any]
FLOAT = np.dtype(np.float32)


@dataclass(frozen=True)
class Node:
    """An ONNX node: operator, tensors, attributes as plain Python values and arrays."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Tensor:
    """The shape and type of a tensor."""

    shape: Shape
    dtype: np.dtype[Any]


@dataclass
class Graph:
    """Nodes, initializers and shapes of a model under construction.

    Attributes:
        name: The network's name.
        opset: The version of the ONNX operator set.
        nodes: In the order of execution.
        tensors: Shape and type of every tensor.
        initializers: Constant tensors: weights and small constants.
        inputs: The names of the model's inputs.
        notes: Warnings for the user.
        layers: All layers in the prototxt, for handlers that need the other readers of a blob.
        metadata: What handlers know of the model (`converters.metadata`).
    """

    name: str
    opset: int
    layers: tuple[Layer, ...] = ()
    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    initializers: dict[str, Array] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    _layer: Layer | None = None
    _tops: frozenset[str] = frozenset()  # of the current layer
    _node_names: set[str] = field(default_factory=set)
    _reserved: set[str] = field(default_factory=set)
    _by_memory: dict[tuple[object, ...], str] = field(default_factory=dict)
    _same_axis: dict[str, str] = field(default_factory=dict)
    _numbers: Counter[str] = field(default_factory=Counter)  # the last number given to a name
    _node_numbers: Counter[str] = field(default_factory=Counter)

    # ------------------------------------------------------------------------------------------------------- asking

    def shape(self, tensor: str) -> Shape:
        """The tensor's shape; the batch may be `SymbolicDim`."""
        return self.tensors[tensor].shape

    def rank(self, tensor: str) -> int:
        """The number of axes."""
        return len(self.tensors[tensor].shape)

    def dtype(self, tensor: str) -> np.dtype[Any]:
        """The tensor's element type."""
        return self.tensors[tensor].dtype

    def axis(self, tensor: str, axis: int, *, end: bool = False) -> int:
        """An axis counted from the front; negative ones count from the back, as in Caffe.

        Args:
            tensor: The tensor.
            axis: The axis.
            end: Also allow the position after the last axis.

        Raises:
            ConversionError: The tensor has no such axis.
        """
        rank = self.rank(tensor)
        if not -rank <= axis < rank + end:
            shape, last = show(self.shape(tensor)), rank - 1 + end
            raise self._error(f"found axis {axis} for the blob {tensor!r} of shape {shape}, expected {-rank} to {last}")
        return axis + rank if axis < 0 else axis

    def fixed(self, dim: Dim, reason: str) -> int:
        """A size as a number.

        Raises:
            FixedDim: The size is free. The conversion starts again with that axis fixed.
        """
        if isinstance(dim, int):
            return dim
        raise FixedDim(self._axis_of(dim), f"{self._layer_name()} needs {reason}")

    def fixed_shape(self, tensor: str, first_axis: int, reason: str) -> tuple[int, ...]:
        """The sizes of a tensor from an axis on, as numbers."""
        return tuple(self.fixed(dim, reason) for dim in self.shape(tensor)[first_axis:])

    def expect_images(self, tensor: str) -> None:
        """Check that a tensor is a batch of images, N x C x H x W.

        Raises:
            ConversionError: It does not have four axes.
        """
        if self.rank(tensor) != 4:
            raise self._error(f"found {show(self.shape(tensor))} for the blob {tensor!r}, expected N x C x H x W")

    def image_size(self, tensor: str) -> tuple[int, int]:
        """H and W of a batch of images, as numbers.

        Raises:
            ConversionError: The tensor does not have four axes.
        """
        self.expect_images(tensor)
        height, width = self.fixed_shape(tensor, 2, "the image's size")
        return height, width

    def image_shape(self, tensor: str) -> tuple[Dim, int, int, int]:
        """N, C, H and W of a batch of images; the batch size may be free.

        Raises:
            ConversionError: The tensor does not have four axes.
        """
        self.expect_images(tensor)
        channels, height, width = self.fixed_shape(tensor, 1, "the number of channels and the image's size")
        return self.shape(tensor)[0], channels, height, width

    def same(self, left: Dim, right: Dim) -> bool:
        """Whether two sizes are equal. Free axes of two inputs that must be equal become one.

        Raises:
            FixedDim: A free size must equal a number.
        """
        if isinstance(left, SymbolicDim) and isinstance(right, SymbolicDim):
            if self._axis_of(left) == self._axis_of(right):
                return left.factor == right.factor
            ours = self._axis_of(left) in self.inputs and self._axis_of(right) in self.inputs
            if ours and int(left) == int(right) and left.factor == right.factor:
                self._same_axis[self._axis_of(right)] = self._axis_of(left)
                return True
            return False
        if int(left) != int(right):
            return False
        for dim in (left, right):
            if isinstance(dim, SymbolicDim):
                raise FixedDim(self._axis_of(dim), f"{self._layer_name()} combines it with a fixed size")
        return True

    def same_shape(self, tensors: Sequence[str]) -> Shape:
        """The common shape of tensors.

        Raises:
            ConversionError: Their shapes differ.
        """
        first = self.shape(tensors[0])
        for other in tensors[1:]:
            shape = self.shape(other)
            if len(shape) != len(first) or not all(map(self.same, first, shape)):
                raise self._error(
                    f"found {show(shape)} for the blob {other!r}, expected {show(first)} as for {tensors[0]!r}"
                )
        return first

    def _axis_of(self, dim: SymbolicDim) -> str:
        name = dim.input
        while name in self._same_axis:
            name = self._same_axis[name]
        return name

    # ----------------------------------------------------------------------------------------------------- building

    def input(self, name: str, shape: Shape) -> None:
        """Add a float32 input."""
        self.inputs.append(name)
        self.tensors[name] = Tensor(shape, FLOAT)

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str] | None = None,
        *,
        shape: Sequence[Dim] | None = None,
        shapes: Sequence[Sequence[Dim]] | None = None,
        dtype: DTypeLike | None = None,
        **attributes: Any,
    ) -> str:
        """Add a node of one output, or of several of the same type.

        Args:
            op: The ONNX operator.
            inputs: Tensors; an empty name is an input left out.
            outputs: The tensors that it writes; None for one new tensor.
            shape: The output's shape; by default the inputs', broadcast.
            shapes: The outputs' shapes where there are several.
            dtype: The outputs' type; by default the first input's.
            attributes: The node's attributes; None leaves one out.

        Returns:
            The first output.
        """
        names = tuple(outputs) if outputs is not None else (self.new_name(op),)
        if shapes is None:
            shapes = [shape if shape is not None else self.broadcast([name for name in inputs if name])]
        element = np.dtype(dtype) if dtype is not None else self.dtype(inputs[0])
        for name, one in zip(names, shapes, strict=True):
            if not name:
                continue
            if name in self.tensors:
                raise self._error(f"its handler writes the tensor {name!r}, which exists: expected a new name")
            if len(one) > MAX_AXES:
                raise self._error(f"found {len(one):,} axes for {name!r}, expected at most {MAX_AXES}")
            if count(one) > MAX_BLOB:
                raise self._error(
                    f"found the shape {show(sizes(one))} for {name!r}, expected at most {MAX_BLOB:,} values"
                )
            self.tensors[name] = Tensor(tuple(one), element)
        kept = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(Node(self._node_name(op, names), op, tuple(inputs), names, kept))
        return names[0]

    def set_dtype(self, tensor: str, dtype: DTypeLike) -> None:
        """Set the element type of one output, for nodes whose outputs have different types."""
        self.tensors[tensor] = Tensor(self.shape(tensor), np.dtype(dtype))

    def constant(self, values: object, dtype: DTypeLike = np.float32) -> str:
        """Add a small constant tensor."""
        array = np.asarray(values, dtype)
        name = self.new_name("constant")
        self.initializers[name] = array
        self.tensors[name] = Tensor(array.shape, array.dtype)
        return name

    def weight(self, role: str, array: Array) -> str:
        """Add weights of the current layer as the initializer ``<layer>.<role>``.

        Layers that share an array share the initializer. The array is not copied.
        """
        assert self._layer is not None
        return self.weight_of(self._layer, role, array)

    def weight_of(self, layer: Layer, role: str, array: Array) -> str:
        """Like `weight`, for another layer, such as one that was merged into the current one."""
        memory = (array.__array_interface__["data"][0], array.shape, array.strides, array.dtype.str)
        if array.size and memory in self._by_memory:
            return self._by_memory[memory]
        name = self._unused(f"{layer.name}.{role}")
        self._by_memory[memory] = name
        self.initializers[name] = array
        self.tensors[name] = Tensor(array.shape, array.dtype)
        return name

    def new_name(self, hint: str) -> str:
        """Return an unused tensor name that starts with the name of the current layer."""
        return self._unused(f"{self._layer.name if self._layer else self.name}/{hint}")

    def _unused(self, wanted: str) -> str:
        name = wanted
        while name in self.tensors or name in self._reserved:
            self._numbers[wanted] += 1
            name = f"{wanted}.{self._numbers[wanted] + 1}"
        return name

    def _node_name(self, op: str, outputs: Iterable[str]) -> str:
        """The name of a node: the layer's name if it writes a top, ``<layer>/<op>`` otherwise."""
        layer = self._layer
        is_main = not self._tops.isdisjoint(outputs)
        wanted = (layer.name if is_main else f"{layer.name}/{op}") if layer else op
        name = wanted
        while name in self._node_names:
            self._node_numbers[wanted] += 1
            name = f"{wanted}.{self._node_numbers[wanted] + 1}"
        self._node_names.add(name)
        return name

    def note(self, message: str) -> None:
        """Add a warning about the current layer."""
        self.notes.append(f"{self._layer_name()}: {message}")

    def begin_layer(self, layer: Layer) -> None:
        """Make a layer the owner of the nodes that follow."""
        self._layer = layer
        self._tops = frozenset(layer.tops)  # looked up for every node, and a Split may have thousands

    def reserve(self, names: Iterable[str]) -> None:
        """Reserve the names of blobs, so that no helper tensor uses one before its layer is converted."""
        self._reserved.update(names)

    def broadcast(self, tensors: Sequence[str]) -> Shape:
        """The shape of an elementwise operation, by ONNX's (NumPy's) rules."""
        shapes = [self.shape(name) for name in tensors]
        rank = max(map(len, shapes))
        result: list[Dim] = []
        for axis in range(rank):
            dims = [shape[axis - rank + len(shape)] for shape in shapes if axis - rank + len(shape) >= 0]
            wide = [dim for dim in dims if dim != 1] or [1]
            if not all(self.same(wide[0], dim) for dim in wide[1:]):
                raise self._error(f"found shapes {', '.join(map(show, shapes))}, which do not broadcast")
            result.append(wide[0])
        return tuple(result)

    # ----------------------------------------------------- operators whose form depends on the opset or on free sizes

    def reshape(self, tensor: str, shape: Sequence[Dim], outputs: Sequence[str] | None = None) -> str:
        """Reshape a tensor.

        Raises:
            ConversionError: The number of elements differs.
            FixedDim: The new shape is valid only for the batch size in the prototxt.
        """
        old = self.shape(tensor)
        if count(old) != count(shape):
            raise self._error(
                f"found {show(old)} for the blob {tensor!r}, which cannot become {show(shape)}: expected the same "
                "number of values"
            )
        free = [axis for axis, dim in enumerate(shape) if isinstance(dim, SymbolicDim)]
        before, after = product(old), product(shape)
        if before is None or after is None or not self._same_count(before, after):
            for dim in (*old, *shape):
                self.fixed(dim, "its size to change the shape")
        target = [-1 if axis in free else int(dim) for axis, dim in enumerate(shape)]
        constant = self.constant(target, np.int64)
        return self.node("Reshape", [tensor, constant], outputs, shape=shape)

    def _same_count(self, before: Dim, after: Dim) -> bool:
        if isinstance(before, SymbolicDim) and isinstance(after, SymbolicDim):
            return self.same(before, after)
        return isinstance(before, int) and isinstance(after, int)

    def flatten(self, tensor: str, axis: int, outputs: Sequence[str] | None = None) -> str:
        """Flatten to two axes: those before ``axis``, and those from it on."""
        shape = self.shape(tensor)
        head, tail = product(shape[:axis]), product(shape[axis:])
        if head is None or tail is None:
            raise self._error(f"found {show(shape)} for the blob {tensor!r}, expected at most one free axis")
        return self.node("Flatten", [tensor], outputs, shape=(head, tail), axis=axis)

    def reduce(
        self,
        kind: str,
        tensor: str,
        axes: Sequence[int],
        outputs: Sequence[str] | None = None,
        *,
        keepdims: bool = True,
    ) -> str:
        """Reduce axes with ReduceMean, ReduceSum, ... Opset 18 made the axes an input (ReduceSum: 13)."""
        op = f"Reduce{kind}"
        shape = tuple(
            1 if axis in axes else dim for axis, dim in enumerate(self.shape(tensor)) if keepdims or axis not in axes
        )
        if self.opset >= 18 or kind == "Sum":
            inputs = [tensor, self.constant(list(axes), np.int64)]
            return self.node(op, inputs, outputs, shape=shape, keepdims=int(keepdims))
        return self.node(op, [tensor], outputs, shape=shape, axes=list(axes), keepdims=int(keepdims))

    def slice(
        self,
        tensor: str,
        axis: int,
        start: int,
        end: int | None,
        outputs: Sequence[str] | None = None,
        *,
        step: int = 1,
    ) -> str:
        """``tensor[start:end:step]`` along one axis; an ``end`` of None is the end of the axis."""
        shape = list(self.shape(tensor))
        if end is None and start == 0:
            pass  # the whole axis, perhaps backwards
        else:
            size = self.fixed(shape[axis], "its size to cut it") if end is None else int(shape[axis])
            shape[axis] = len(range(*slice(start, end, step).indices(size)))
        limits = np.iinfo(np.int64)
        last = limits.max if step > 0 else limits.min
        numbers = ([-1 if step < 0 else start], [last if end is None else end], [axis], [step])
        return self.node("Slice", [tensor, *(self.constant(n, np.int64) for n in numbers)], outputs, shape=shape)

    def pad(
        self,
        tensor: str,
        before: Sequence[int],
        after: Sequence[int],
        value: float,
        outputs: Sequence[str] | None = None,
    ) -> str:
        """Pad axes with a constant."""
        shape = [
            dim if not begin and not end else self.fixed(dim, "its size to pad it") + begin + end
            for dim, begin, end in zip(self.shape(tensor), before, after, strict=True)
        ]
        pads = self.constant([*before, *after], np.int64)
        return self.node("Pad", [tensor, pads, self.constant(value)], outputs, shape=shape, mode="constant")

    def cast(self, tensor: str, dtype: DTypeLike, outputs: Sequence[str] | None = None) -> str:
        """Change the element type. Fractions are truncated toward zero, as in C."""
        return self.node("Cast", [tensor], outputs, dtype=dtype, to=np.dtype(dtype))

    def transpose(self, tensor: str, order: Sequence[int], outputs: Sequence[str] | None = None) -> str:
        """Change the order of the axes."""
        shape = self.shape(tensor)
        return self.node("Transpose", [tensor], outputs, shape=[shape[axis] for axis in order], perm=list(order))

    def concat(self, tensors: Sequence[str], axis: int, outputs: Sequence[str] | None = None) -> str:
        """Concatenate tensors along an axis.

        Raises:
            ConversionError: Their other sizes differ.
        """
        first = list(self.shape(tensors[0]))
        total: Dim = first[axis]
        for other in tensors[1:]:
            shape = self.shape(other)
            others = [a for a in range(len(first)) if a != axis]
            if len(shape) != len(first) or not all(self.same(first[a], shape[a]) for a in others):
                raise self._error(
                    f"found {show(shape)} for the blob {other!r}, expected {show(first)} except for axis {axis}"
                )
            total = self._sum(total, shape[axis])
        first[axis] = total
        return self.node("Concat", tensors, outputs, shape=first, axis=axis)

    def _sum(self, left: Dim, right: Dim) -> Dim:
        if (
            isinstance(left, SymbolicDim)
            and isinstance(right, SymbolicDim)
            and self._axis_of(left) == self._axis_of(right)
        ):
            return SymbolicDim(left.input, left.size, left.factor + right.factor)
        if any(isinstance(dim, SymbolicDim) and self._axis_of(dim) not in self.inputs for dim in (left, right)):
            return SymbolicDim(self.new_name("size"), int(left) + int(right))  # one of the sizes depends on the data
        return self.fixed(left, "its size to join") + self.fixed(right, "its size to join")

    # -------------------------------------------------------------------------------------------------------- naming

    def axis_names(self) -> dict[str, str]:
        """Input -> the name of its free axis: N, and N_<input> for further independent ones."""
        names: dict[str, str] = {}
        for name in self.inputs:
            if any(isinstance(dim, SymbolicDim) for dim in self.shape(name)):
                root = self._axis_of(SymbolicDim(name, 0))
                if root not in names:
                    names[root] = "N" if not names else f"N_{name}"
                names[name] = names[root]
        return names

    def dim_name(self, dim: SymbolicDim, names: Mapping[str, str]) -> str:
        """A free size as written to the model: ``N`` or ``4*N``, or a separate name if known only at run time."""
        axis = self._axis_of(dim)
        name = names.get(axis, axis)
        return name if dim.factor == 1 else f"{dim.factor}*{name}"

    def bytes_of_weights(self) -> int:
        """The size of all initializers in bytes."""
        return sum(array.nbytes for array in self.initializers.values())

    def _layer_name(self) -> str:
        return f"the layer {self._layer.name!r} ({self._layer.type})" if self._layer else "the graph"

    def _error(self, message: str) -> ConversionError:
        return self._layer.error(message) if self._layer else ConversionError(message)
