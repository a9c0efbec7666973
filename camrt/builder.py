"""Adding nodes to a graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

PREFIX = "camrt"


class Builder:
    """New nodes and constants, with names that the graph does not have.

    Args:
        opset: The version of the operator set that the nodes are written in, from 13 on.
        taken: Names that are in use.
    """

    def __init__(self, opset: int, taken: Iterable[str] = ()) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._taken = set(taken)
        self._numbers: dict[str, int] = {}  # the next one to try for a name: counting on from there

    def name(self, hint: str) -> str:
        """A new name, after what it is for."""
        name, number = f"{PREFIX}/{hint}", self._numbers.get(hint, 2)
        while name in self._taken:
            name, number = f"{PREFIX}/{hint}.{number}", number + 1
        self._numbers[hint] = number
        self._taken.add(name)
        return name

    def claim(self, name: str) -> bool:
        """Take a name as it is; False where it is in use."""
        if name in self._taken:
            return False
        self._taken.add(name)
        return True

    def node(self, op: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        """Add a node of one output; returns that."""
        return self.nodes_of(op, inputs, [output or self.name(op)], **attributes)[0]

    def nodes_of(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> list[str]:
        """Add a node with the outputs of these names."""
        kept = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(op, inputs, outputs, name=self.name(f"node/{op}"), **kept))
        return list(outputs)

    def constant(self, values: object, hint: str = "constant", dtype: Any = np.float32) -> str:
        """Add an initializer of the shape of ``values`` (a number: without axes); returns its name."""
        name = self.name(hint)
        self.initializers.append(numpy_helper.from_array(np.asarray(values, dtype, order="C"), name))
        return name

    def shape(self, *sizes: int) -> str:
        """A shape, or axes, as Reshape, Unsqueeze and the like take them."""
        return self.constant(sizes, "shape", np.int64)

    def reshape(self, tensor: str, *sizes: int) -> str:
        """Give a tensor another shape; -1 for what is left."""
        return self.node("Reshape", [tensor, self.shape(*sizes)])

    def unsqueeze(self, tensor: str, *axes: int) -> str:
        """Add axes of size 1."""
        return self.node("Unsqueeze", [tensor, self.shape(*axes)])

    def slice(self, tensor: str, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int]) -> str:
        """Cut along axes."""
        return self.node("Slice", [tensor, *(self.shape(*numbers) for numbers in (starts, ends, axes))])

    def flip(self, tensor: str, axis: int) -> str:
        """Turn an axis round."""
        least = np.iinfo(np.int64).min
        return self.node("Slice", [tensor, *(self.shape(number) for number in (-1, least, axis, -1))])

    def reduce(self, kind: str, tensor: str, axes: Sequence[int], *, keepdims: bool = False) -> str:
        """ReduceSum, ReduceMean, ...: axes became an input with opset 18 (ReduceSum: 13)."""
        op = f"Reduce{kind}"
        if self.opset >= 18 or kind == "Sum":
            return self.node(op, [tensor, self.shape(*axes)], keepdims=int(keepdims))
        return self.node(op, [tensor], axes=list(axes), keepdims=int(keepdims))
