"""Tensors of a graph under construction, as values: ``g * y * (1 - y)`` adds three nodes.

A value may stand for several tensors of one shape, stacked along a leading axis: the cotangents of K scores, or the
maps of K classes. `Value.shape` leaves that axis out, and every operation here maps over it, as `jax.vmap` does. So a
formula is written once, for one score. With K = 1 there is no leading axis, and it costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from camrt.builder import Builder
from camrt.errors import CamrtError
from camrt.graph.sizes import Sizes

Shape = tuple[int | None, ...]
LAST = int(np.iinfo(np.int64).max)


class Value:
    """A tensor of a graph, with Python's operators for ONNX's.

    Numbers among the operands become constants of the tensor's element type. Shapes broadcast as in NumPy.

    Attributes:
        builder: Where new nodes go.
        name: The tensor.
        kind: Its element type, an `onnx.TensorProto.DataType`.
        lead: The size of the leading axis; None where there is none.
        number: The element type of constants beside it: ``kind``; of a comparison, that of what was compared.
        sizes: What is known of the tensors of the graph that is read; None for those that are computed here.
    """

    def __init__(
        self,
        builder: Builder,
        name: str,
        shape: Sequence[int | None] | None,
        kind: int = TensorProto.FLOAT,
        lead: int | None = None,
        *,
        number: int | None = None,
        sizes: Sizes | None = None,
    ) -> None:
        self.builder = builder
        self.name = name
        self.kind = kind
        self.lead = lead
        self.number = number or kind
        self.sizes = sizes
        self._shape = None if shape is None else tuple(shape)
        self._transposed: Value | None = None  # the value that this is the `mT` of
        self._folded: Value | None = None  # the same with the leading axis in that of the images

    # ------------------------------------------------------------------------------------------------------- asking

    __array_ufunc__ = None  # an array on the left leaves the operation to the value

    @property
    def has_rank(self) -> bool:
        """Whether the number of axes is known."""
        return self._shape is not None

    @property
    def shape(self) -> Shape:
        """The sizes without the leading axis; None for the batch and for sizes that are not known.

        Raises:
            CamrtError: Not even the number of axes is known.
        """
        if self._shape is None:
            raise CamrtError(
                f"the shape of {self.name!r} cannot be inferred: give the model's inputs fixed sizes (all but the "
                "batch)"
            )
        return self._shape

    @property
    def rank(self) -> int:
        """The number of axes, without the leading one."""
        return len(self.shape)

    def axis(self, number: int) -> int:
        """An axis, counted from the front."""
        return number % max(1, self.rank)

    def fixed(self, *axes: int) -> tuple[int, ...]:
        """Sizes that must be known; all of them by default.

        Raises:
            CamrtError: One of them is not known.
        """
        wanted = [self.shape[axis] for axis in axes] if axes else self.shape
        found = tuple(size for size in wanted if size is not None)
        if len(found) != len(wanted):
            raise CamrtError(
                f"found {self.name!r} of shape {shown(self.shape)}, expected sizes that are known: give the model's "
                "inputs fixed sizes (all but the batch)"
            )
        return found

    @property
    def constant(self) -> np.ndarray | None:
        """The value of a tensor that does not depend on the data; None where it does."""
        return None if self.sizes is None else self.sizes.value(self.name)

    def known(self, what: str) -> np.ndarray:
        """The value of a tensor that must not depend on the data.

        Raises:
            CamrtError: It does.
        """
        if self.constant is None:
            raise CamrtError(f"found {what} that are computed, expected constants")
        return self.constant

    def same(self, other: Value, axis: int) -> bool:
        """Whether an axis is as long as another tensor's, as far as that is known."""
        if self.sizes is not None and other.sizes is not None:
            return self.sizes.same(self.name, axis, other.name, axis)
        return self.shape[axis] is not None and self.shape[axis] == other.shape[axis]

    def count(self, axes: Sequence[int]) -> int | Value:
        """The number of elements along axes."""
        sizes = [size for size in (self.shape[axis] for axis in axes) if size is not None]
        if len(sizes) == len(axes):
            return math.prod(sizes)
        chosen = self.builder.node("Gather", [self.lengths.name, self.builder.shape(*axes)], axis=0)
        product = self.builder.reduce("Prod", chosen, [0])
        return self._new(self.builder.node("Cast", [product], to=self.number), (), self.number, None)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type as a NumPy type."""
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.number))

    # ----------------------------------------------------------------------------------------------- element by element

    def __add__(self, other: Operand) -> Value:
        return elementwise("Add", self, other)

    def __sub__(self, other: Operand) -> Value:
        return elementwise("Sub", self, other)

    def __rsub__(self, other: Operand) -> Value:
        return elementwise("Sub", other, self)

    def __mul__(self, other: Operand) -> Value:
        """The product; a truth value counts as 1 or 0."""
        if isinstance(other, (int, float)) and other == 1:
            return self
        if isinstance(other, Value) and other.kind == TensorProto.BOOL:
            other = other.cast(self.kind)
        return elementwise("Mul", self, other)

    def __truediv__(self, other: Operand) -> Value:
        return elementwise("Div", self, other)

    def __rtruediv__(self, other: Operand) -> Value:
        return elementwise("Div", other, self)

    def __pow__(self, other: Operand) -> Value:
        return elementwise("Pow", self, other)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Value:
        return self.op("Neg")

    def __abs__(self) -> Value:
        return self.op("Abs")

    def __gt__(self, other: Value | float) -> Value:
        return elementwise("Greater", self, other, kind=TensorProto.BOOL)

    def __ge__(self, other: Value | float) -> Value:
        return elementwise("GreaterOrEqual", self, other, kind=TensorProto.BOOL)

    def __lt__(self, other: Value | float) -> Value:
        return elementwise("Less", self, other, kind=TensorProto.BOOL)

    def __le__(self, other: Value | float) -> Value:
        return elementwise("LessOrEqual", self, other, kind=TensorProto.BOOL)

    def __and__(self, other: Value) -> Value:
        return elementwise("And", self, other, kind=TensorProto.BOOL)

    def __invert__(self) -> Value:
        return self.op("Not")

    def equals(self, other: Operand) -> Value:
        """Whether elements are equal: ``==`` compares values themselves, as Python's containers need it."""
        return elementwise("Equal", self, other, kind=TensorProto.BOOL)

    def where(self, this: Operand, other: Operand) -> Value:
        """Of two values one, as these truth values say."""
        values = [one for one in (this, other) if isinstance(one, Value)]
        return elementwise("Where", self, this, other, kind=values[0].kind if values else self.number)

    def maximum(self, other: Operand) -> Value:
        """The larger one."""
        return elementwise("Max", self, other)

    def minimum(self, other: Operand) -> Value:
        """The smaller one."""
        return elementwise("Min", self, other)

    def exp(self) -> Value:
        """The exponential."""
        return self.op("Exp")

    def log(self) -> Value:
        """The natural logarithm."""
        return self.op("Log")

    def sqrt(self) -> Value:
        """The square root."""
        return self.op("Sqrt")

    def sign(self) -> Value:
        """-1, 0 or 1."""
        return self.op("Sign")

    def relu(self) -> Value:
        """What is positive; 0 elsewhere."""
        # Right behind a convolution: a runtime makes one node of both.
        return self.op("Relu") if self._folded is None else self.per_image(lambda images: images.op("Relu"))

    def cast(self, kind: int) -> Value:
        """The same numbers as another element type."""
        return self if kind == self.kind else self.op("Cast", kind=kind, to=kind)

    # ------------------------------------------------------------------------------------------------- along axes

    def sum(self, *axes: int, keepdims: bool = False) -> Value:
        """The sum along axes; the value itself for none."""
        return self._reduced("Sum", axes, keepdims)

    def mean(self, *axes: int, keepdims: bool = False) -> Value:
        """The mean along axes; the value itself for none."""
        return self._reduced("Mean", axes, keepdims)

    def max(self, *axes: int, keepdims: bool = False) -> Value:
        """The largest along axes; the value itself for none."""
        return self._reduced("Max", axes, keepdims)

    def min(self, *axes: int, keepdims: bool = False) -> Value:
        """The least along axes; the value itself for none."""
        return self._reduced("Min", axes, keepdims)

    def _reduced(self, kind: str, axes: Sequence[int], keepdims: bool) -> Value:
        if not axes:
            return self
        front = {self.axis(axis) for axis in axes}
        sizes = [1 if axis in front else size for axis, size in enumerate(self.shape) if keepdims or axis not in front]
        back = [axis - self.rank for axis in sorted(front)]  # from the end: the leading axis does not count
        return self._new(self.builder.reduce(kind, self.name, back, keepdims=keepdims), sizes)

    @property
    def mT(self) -> Value:  # noqa: N802 - as NumPy and PyTorch call it
        """The matrices along the last two axes, transposed. A product reads them as they stand where it can."""
        if self._transposed is not None:
            return self._transposed
        rank = self.rank
        found = self.transpose(*range(rank - 2), rank - 1, rank - 2)
        found._transposed = self
        return found

    def __matmul__(self, other: Value) -> Value:
        """Matrix products, of stacks that broadcast."""
        depth = self.shape[-1] if self.shape[-1] is not None else other.shape[-2]
        is_matrix = other.rank == 2 and other.lead is None
        if is_matrix and self.rank == 2 and self.lead is None:
            return self._gemm(other)
        if is_matrix and other._transposed is not None and depth is not None:
            # Gemm reads weights as they stand. A Transpose would be folded into a second copy of them.
            rows = self._new(self.builder.reshape(self.name, -1, depth), (None, depth), lead=None)._gemm(other)
            sizes = [*self.shape[:-1], other.shape[-1]]
            return self._in_shape(
                rows.name, sizes, self.lead, lambda: self.lengths.slice(0, 0, -1).joined([], other.fixed(-1))
            )
        stack = _broadcast([self.shape[:-2], other.shape[:-2]])
        rank = max(self.rank, other.rank)
        names = [one._aligned(rank) for one in (self, other)]
        sizes = [*stack, self.shape[-2], other.shape[-1]]
        return self._new(self.builder.node("MatMul", names), sizes, lead=self.lead or other.lead)

    def _gemm(self, other: Value) -> Value:
        left, right = (one._transposed for one in (self, other))
        names = [(left or self).name, (right or other).name]
        found = self.builder.node("Gemm", names, transA=int(left is not None), transB=int(right is not None))
        return self._new(found, (self.shape[0], other.shape[1]))

    def along(self, axis: int, matrix: np.ndarray) -> Value:
        """Every line along an axis multiplied by a matrix (new size, old size)."""
        axis, (new, old) = self.axis(axis), matrix.shape
        sizes = [*self.shape[:axis], new, *self.shape[axis + 1 :]]
        if axis == self.rank - 1:
            return self._new(self.builder.node("MatMul", [self.name, self._constant(matrix.T)]), sizes)
        behind = self.shape[axis + 1 :]
        flat = self
        if len(behind) > 1:
            rest = None if None in behind else math.prod(self.fixed(*range(axis + 1, self.rank)))
            flat = self.reshape(*self.shape[:axis], old, rest)
        product = self._new(
            self.builder.node("MatMul", [self._constant(matrix), flat.name]), [*flat.shape[:-2], new, None]
        )
        return product.reshape(*sizes) if len(behind) > 1 else self._new(product.name, sizes)

    def einsum(self, equation: str, *others: Value) -> Value:
        """Einstein's sum of this and other values; the result has the shape that the equation says."""
        values = (self, *others)
        left, right = equation.split("->")
        terms = left.split(",")
        known = {
            letter: size
            for term, one in zip(terms, values, strict=True)
            for letter, size in zip(term, one.shape, strict=True)
        }
        lead = next((one.lead for one in values if one.lead is not None), None)
        if lead is not None:
            spare = next(letter for letter in "zyxwvutsrqponmlkjihgfedcba" if letter not in equation)
            terms = [term if one.lead is None else spare + term for term, one in zip(terms, values, strict=True)]
            right = spare + right
        names = [one.name for one in values]
        found = self.builder.node("Einsum", names, equation=f"{','.join(terms)}->{right}")
        return self._new(found, [known[letter] for letter in right[lead is not None :]], lead=lead)

    # ----------------------------------------------------------------------------------------------------------- shapes

    @property
    def lengths(self) -> Value:
        """The sizes of all axes but the leading one, as the graph computes them: (rank,) int64."""
        start = None if self.lead is None else 1
        if start and self.builder.opset < 15:
            whole = self.builder.slice(self.builder.node("Shape", [self.name]), [1], [LAST], [0])
        else:
            whole = self.builder.node("Shape", [self.name], start=start)
        return self._new(whole, (None if self._shape is None else self.rank,), TensorProto.INT64, None)

    def reshape(self, *sizes: int | None) -> Value:
        """Another shape; None or -1 for the one size that follows from the others."""
        shape = [None if size == -1 else size for size in sizes]
        if shape.count(None) > 1:
            raise CamrtError(f"found a shape of {shown(shape)}, expected one free size at most")
        lead = [] if self.lead is None else [self.lead]
        found = self.builder.reshape(self.name, *lead, *(-1 if size is None else size for size in shape))
        if None in shape and self._shape is not None and None not in self._shape and 0 not in shape:
            rest = math.prod(self.fixed()) // math.prod(size for size in shape if size is not None)
            shape = [rest if size is None else size for size in shape]
        return self._new(found, shape)

    def reshape_as(self, other: Value) -> Value:
        """The shape of another value, of as many elements."""
        return self._in_shape(self.name, other.shape, self.lead, lambda: other.lengths.name)

    def expand_as(self, other: Value) -> Value:
        """Repeated along axes of size 1, up to the shape of another value."""
        shape = other.shape
        mine = (*[1] * (len(shape) - self.rank), *self.shape)
        free = [size is None and have == 1 for size, have in zip(shape, mine, strict=True)]
        wide = self._aligned(len(shape))
        target = (
            other.lengths.name if any(free) else self.builder.shape(*(1 if size is None else size for size in shape))
        )
        return self._new(self.builder.node("Expand", [wide, target]), shape)

    def expand(self, *sizes: int) -> Value:
        """Repeated along axes of size 1, to these sizes; 1 for those that stay."""
        found = self.builder.node("Expand", [self.name, self.builder.shape(*sizes)])
        return self._new(found, _broadcast([self.shape, sizes]))

    def unsqueeze(self, *axes: int) -> Value:
        """New axes of size 1, at positions counted in the result."""
        if not axes:
            return self
        rank = self.rank + len(axes)
        front = sorted(axis % rank for axis in axes)
        sizes = list(self.shape)
        for axis in front:
            sizes.insert(axis, 1)
        return self._new(self.builder.unsqueeze(self.name, *(axis - rank for axis in front)), sizes)

    def squeeze(self, *axes: int) -> Value:
        """Without some axes, which have size 1."""
        if not axes:
            return self
        front = {self.axis(axis) for axis in axes}
        back = self.builder.shape(*(axis - self.rank for axis in sorted(front)))
        sizes = [size for axis, size in enumerate(self.shape) if axis not in front]
        return self._new(self.builder.node("Squeeze", [self.name, back]), sizes)

    def transpose(self, *order: int) -> Value:
        """The axes in another order."""
        shift = self.lead is not None
        perm = [*range(shift), *(axis + shift for axis in order)]
        return self._new(self.builder.node("Transpose", [self.name], perm=perm), [self.shape[axis] for axis in order])

    def slice(self, axis: int, start: int, end: int = LAST, step: int = 1) -> Value:
        """A part along an axis, bounds as in Python."""
        size, shape = self.shape[self.axis(axis)], list(self.shape)
        shape[self.axis(axis)] = None if size is None else len(range(*slice(start, end, step).indices(size)))
        back = self.axis(axis) - self.rank
        bounds = [self.builder.shape(number) for number in (start, end, back, step)]
        return self._new(self.builder.node("Slice", [self.name, *bounds]), shape)

    def split(self, axis: int, lengths: Sequence[int] | Value) -> list[Value]:
        """Parts along an axis, of lengths that are known, or computed as one tensor."""
        axis = self.axis(axis)
        computed = isinstance(lengths, Value)
        number = lengths.fixed(0)[0] if isinstance(lengths, Value) else len(lengths)
        given = lengths.name if isinstance(lengths, Value) else self.builder.shape(*lengths)
        outputs = [self.builder.name("part") for _ in range(number)]
        self.builder.nodes_of("Split", [self.name, given], outputs, axis=axis - self.rank)
        sizes = [None] * number if computed else list(lengths)  # type: ignore[arg-type]
        before, behind = self.shape[:axis], self.shape[axis + 1 :]
        return [self._new(name, (*before, size, *behind)) for name, size in zip(outputs, sizes, strict=True)]

    def pad(self, borders: Mapping[int, tuple[int, int]]) -> Value:
        """Zeros before and behind: axis -> how many. A negative number cuts."""
        if not any(map(any, borders.values())):
            return self
        rank = self.rank + (self.lead is not None)
        shape, pads = list(self.shape), [0] * 2 * rank
        for axis, (before, after) in borders.items():
            back, size = self.axis(axis) - self.rank, self.shape[axis]
            pads[back - rank], pads[back] = before, after
            shape[axis] = None if size is None else size + before + after
        return self._new(self.builder.node("Pad", [self.name, self.builder.shape(*pads)]), shape)

    def take(self, positions: Sequence[int] | np.ndarray, axis: int) -> Value:
        """The slices at some positions along an axis."""
        shape = list(self.shape)
        shape[self.axis(axis)] = len(positions)
        listed = self.builder.constant(positions, "positions", np.int64)
        return self._new(self.builder.node("Gather", [self.name, listed], axis=self.axis(axis) - self.rank), shape)

    def filled(self, number: float, lead: int | None = None) -> Value:
        """One number in a tensor of this shape and element type, for each of ``lead`` values."""
        value = onnx.numpy_helper.from_array(np.full(1, number, self.dtype))
        lengths = self.lengths.joined([] if lead is None else [lead])
        return self._new(self.builder.node("ConstantOfShape", [lengths], value=value), self._shape, lead=lead)

    def zeros(self, lead: int | None = None) -> Value:
        """Zeros of this shape and element type, for each of ``lead`` values."""
        return self.filled(0, lead)

    def scatter(self, indices: Value, updates: Value, axis: int, *, add: bool = False) -> Value:
        """Updates put at the positions that indices name along an axis, or added there.

        Raises:
            CamrtError: They are to be added, and the operator set has no operator for it.
        """
        expect_scatter_adds(self.builder, wanted=add)
        names = [one.stacked(self.lead or updates.lead).name for one in (self, indices, updates)]
        reduction = "add" if add else None
        found = self.builder.node("ScatterElements", names, axis=self.axis(axis) - self.rank, reduction=reduction)
        return self._new(found, self._shape, lead=self.lead or updates.lead)

    # ------------------------------------------------------------------------------------------------- the leading axis

    def stacked(self, lead: int | None) -> Value:
        """The same for each of ``lead`` values."""
        if lead is None or self.lead is not None:
            return self
        ones = self.builder.shape(lead, *[1] * self.rank)
        return self._new(self.builder.node("Expand", [self.name, ones]), self.shape, lead=lead)

    def gather(self, indices: Value, axis: int) -> Value:
        """The slices that computed indices name along an axis of a value without a leading axis."""
        axis = self.axis(axis)
        found = self.builder.node("Gather", [self.name, indices.name], axis=axis)
        return self._new(found, (*self.shape[:axis], *indices.shape, *self.shape[axis + 1 :]), lead=indices.lead)

    def lead_to(self, axis: int) -> Value:
        """The leading axis as an ordinary one; of size 1 where there is none."""
        if self.lead is None:
            return self.unsqueeze(axis)
        axis %= self.rank + 1
        sizes = [*self.shape[:axis], self.lead, *self.shape[axis:]]
        order = [*range(1, axis + 1), 0, *range(axis + 1, self.rank + 1)]
        return self._new(
            self.name if axis == 0 else self.builder.node("Transpose", [self.name], perm=order), sizes, lead=None
        )

    def lead_from(self, axis: int) -> Value:
        """An ordinary axis as the leading one; none where its size is 1."""
        axis = self.axis(axis)
        (size,) = self.fixed(axis)
        if size == 1:
            return self.squeeze(axis)
        sizes = [*self.shape[:axis], *self.shape[axis + 1 :]]
        order = [axis, *range(axis), *range(axis + 1, self.rank)]
        return self._new(
            self.name if axis == 0 else self.builder.node("Transpose", [self.name], perm=order), sizes, lead=size
        )

    def per_image(self, function: Callable[[Value], Value]) -> Value:
        """Apply a function that treats the first axis as images. The leading axis is folded into that one."""
        if self.lead is None:
            return function(self)
        folded = self._folded or self._in_shape(
            self.name, (None, *self.shape[1:]), None, lambda: self.lengths.slice(0, 1).joined([-1])
        )
        found = function(folded)
        sizes = (self.shape[0], *found.shape[1:])
        apart = found._in_shape(found.name, sizes, self.lead, lambda: found.lengths.slice(0, 1).joined([-1]))
        apart._folded = found
        return apart

    # ---------------------------------------------------------------------------------------------------------- writing

    def op(
        self,
        op_type: str,
        *others: Operand | str,
        shape: Sequence[int | None] | None = None,
        kind: int | None = None,
        **attributes: Any,
    ) -> Value:
        """Add a node of any operator, of one output, that reads this value first.

        Args:
            op_type: The operator.
            others: More inputs; numbers become constants, an empty text leaves one out.
            shape: That of the result, without the leading axis; by default this value's.
            kind: The element type of the result; by default this value's.
            attributes: Those of the node; None leaves one out.
        """
        names = [
            one.name if isinstance(one, Value) else one if isinstance(one, str) else self._constant(one)
            for one in others
        ]
        values = [one for one in (self, *others) if isinstance(one, Value)]
        lead = next((one.lead for one in values if one.lead is not None), None)
        found = self.builder.node(op_type, [self.name, *names], **attributes)
        return self._new(found, self._shape if shape is None else shape, kind, lead)

    def _aligned(self, rank: int) -> str:
        """The tensor with axes of size 1 behind the leading one, so that it broadcasts with larger ranks."""
        if self.lead is None or self._shape is None or self.rank >= rank:
            return self.name
        return self.builder.unsqueeze(self.name, *range(1, 1 + rank - self.rank))

    def _constant(self, values: object) -> str:
        is_number = isinstance(values, (int, float))
        return self.builder.constant(values, "scalar" if is_number else "constant", self.dtype)

    def joined(self, before: Sequence[int], behind: Sequence[int] = ()) -> str:
        """A computed shape with numbers before and behind it."""
        parts = [self.builder.shape(*before)] if before else []
        parts += [self.name, *([self.builder.shape(*behind)] if behind else [])]
        return self.builder.node("Concat", parts, axis=0) if len(parts) > 1 else self.name

    def _in_shape(
        self, tensor: str, sizes: Sequence[int | None], lead: int | None, computed: Callable[[], str]
    ) -> Value:
        """A tensor in another shape, which the graph computes where several sizes are free."""
        front = [] if lead is None else [lead]
        if list(sizes).count(None) <= 1:
            found = self.builder.reshape(tensor, *front, *(-1 if size is None else size for size in sizes))
        else:
            target = Value(self.builder, computed(), None, TensorProto.INT64).joined(front)
            found = self.builder.node("Reshape", [tensor, target])
        return self._new(found, sizes, lead=lead)

    def _new(
        self, name: str, shape: Sequence[int | None] | None, kind: int | None = None, lead: int | str | None = "same"
    ) -> Value:
        kind = self.kind if kind is None else kind
        return Value(self.builder, name, shape, kind, self.lead if isinstance(lead, str) else lead)


Operand = Value | float | np.ndarray


def elementwise(op_type: str, *operands: Operand, kind: int | None = None) -> Value:
    """Add a node of an operator that works element by element, on operands of which one is a value at least."""
    values = [one for one in operands if isinstance(one, Value)]
    numbers = next((one for one in values if one.kind != TensorProto.BOOL), values[0])
    lead = next((one.lead for one in values if one.lead is not None), None)
    shapes = [one._shape if isinstance(one, Value) else np.shape(one) for one in operands]
    known = [shape for shape in shapes if shape is not None]
    rank = max(map(len, known), default=0)
    names = [one._aligned(rank) if isinstance(one, Value) else numbers._constant(one) for one in operands]
    result = values[0].builder.node(op_type, names)
    shape = _broadcast(known) if len(known) == len(shapes) else None
    return Value(
        values[0].builder, result, shape, numbers.kind if kind is None else kind, lead, number=numbers.number
    )  # fmt: skip


def total(values: Sequence[Value]) -> Value:
    """The sum of one value or more."""
    if len(values) == 1:
        return values[0]
    return elementwise("Add" if len(values) == 2 else "Sum", *values)


def join(values: Sequence[Value], axis: int) -> Value:
    """Values one behind the other along an axis."""
    first = values[0]
    lead = next((one.lead for one in values if one.lead is not None), None)
    sizes = [one.shape[first.axis(axis)] for one in values]
    shape = list(first.shape)
    shape[first.axis(axis)] = None if None in sizes else sum(size for size in sizes if size is not None)
    names = [one.stacked(lead).name for one in values]
    found = first.builder.node("Concat", names, axis=first.axis(axis) - first.rank)
    return Value(first.builder, found, shape, first.kind, lead)


def unbroadcast(cotangent: Value, tensor: Value) -> Value:
    """Give a cotangent the shape of its tensor.

    It is summed along axes where the tensor was broadcast, and repeated along those where it is the same everywhere.
    """
    have, want = cotangent.shape, tensor.shape
    extra = max(0, len(have) - len(want))
    axes = list(range(extra))
    if len(have) >= len(want):
        axes += [axis + extra for axis, size in enumerate(want) if size == 1 and have[axis + extra] != 1]
    if len(axes) > extra:
        cotangent = cotangent.sum(*axes, keepdims=True).squeeze(*range(extra))
    else:
        cotangent = cotangent.sum(*axes)
    have = cotangent.shape
    if len(have) < len(want) or any(mine == 1 and size != 1 for mine, size in zip(have, want, strict=True)):
        return cotangent.expand_as(tensor)
    return cotangent


def expect_scatter_adds(builder: Builder, *, wanted: bool = True) -> None:
    """Scattering must be able to add.

    Raises:
        CamrtError: The operator set is too old for that.
    """
    if wanted and builder.opset < SCATTER_ADDS:
        raise CamrtError(
            f"found opset {builder.opset}, expected {SCATTER_ADDS} or later: export the model with a newer one"
        )


SCATTER_ADDS = 16  # the opset from which ScatterElements and ScatterND add


def shown(shape: Sequence[int | None]) -> str:
    """A shape for people."""
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"


def _broadcast(shapes: Sequence[Sequence[int | None]]) -> list[int | None]:
    """The shape that several broadcast to; None where a size is not known."""
    rank = max(map(len, shapes))
    found: list[int | None] = []
    for axis in range(-rank, 0):
        sizes = {shape[axis] for shape in shapes if len(shape) >= -axis} - {1}
        found.append(next((size for size in sizes if size is not None), None) if sizes else 1)
    return found
