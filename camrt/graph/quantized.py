"""Quantized networks in one form: floating-point operators between QuantizeLinear and DequantizeLinear.

Tools write int8 networks in two forms. In one, each operator stands between QuantizeLinear and DequantizeLinear (QDQ);
in the other, operators compute with integers (QLinearConv, and in ONNX Runtime's domain QGemm, QLinearAdd, ...). The
second is rewritten to the first, by what those operators are defined to compute. Then features, heads, shapes and
gradients are found in both as in any other network. ONNX Runtime fuses the nodes to integer operators again, so that
this costs no speed; its rounding of a last bit may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import TensorProto, helper

from camrt.graph.view import attributes_of, operator_of

_ORT = "com.microsoft"
_EIGHT_BITS = (TensorProto.UINT8, TensorProto.INT8)
# Operators that give the same for integers as for what they stand for: they move them, or choose among them.
_MOVING = {
    "MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Slice", "Gather",
    "DepthToSpace", "SpaceToDepth", "Expand", "Tile",
}  # fmt: skip
# Of ONNX Runtime's operators of one quantized input: the operator that they compute, and its attributes that are kept.
_OF_ONE: dict[str, tuple[str, Sequence[str]]] = {
    "QLinearSigmoid": ("Sigmoid", ()),
    "QLinearLeakyRelu": ("LeakyRelu", ("alpha",)),
    "QLinearSoftmax": ("Softmax", ("axis",)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", ()),
    "QLinearAveragePool": (
        "AveragePool", ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides"),
    ),
}  # fmt: skip
_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


@dataclass
class _Writer:
    """Writes the nodes in place of one.

    Attributes:
        node: The node that is replaced.
        taken: The names of the graph's tensors; new ones are added.
        scales: Tensor -> the names of its scale and zero point.
        nodes: What has been written.
    """

    node: onnx.NodeProto
    taken: set[str]
    scales: dict[str, tuple[str, str]]
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def float(self, place: int, axis: int | None = None) -> str:
        """The tensor at an input, with its scale and zero point behind it, dequantized."""
        names = [*self.node.input[place : place + 3], "", ""][:3]
        return self.dequantized(names[0], names[1], names[2], axis)

    def dequantized(self, tensor: str, scale: str, zero_point: str = "", axis: int | None = None) -> str:
        inputs = [tensor, scale, zero_point] if zero_point else [tensor, scale]
        attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
        return self.add("DequantizeLinear", inputs, **attributes)

    def bias(self, tensor: str, *scales: str) -> str:
        """An int32 bias, whose scale is the product of those of the data and the weights."""
        return self.dequantized(tensor, self.add("Mul", scales), axis=0)

    def add(self, op: str, inputs: Iterable[str], output: str = "", **attributes: Any) -> str:
        """Add a node; returns its output."""
        output = output or self._new(f"{self.node.output[0]}/{op}")
        name = self.node.name if op not in ("DequantizeLinear", "QuantizeLinear", "Mul") else ""
        self.nodes.append(helper.make_node(op, list(inputs), [output], name, **attributes))
        return output

    def quantize(self, tensor: str, scale: str, zero_point: str) -> None:
        """End in the node's output."""
        output = self.node.output[0]
        self.scales[output] = (scale, zero_point)
        self.add("QuantizeLinear", [tensor, scale, zero_point] if zero_point else [tensor, scale], output)

    def _new(self, hint: str) -> str:
        name, number = hint, 2
        while name in self.taken:
            name, number = f"{hint}.{number}", number + 1
        self.taken.add(name)
        return name


def is_int8(graph: onnx.GraphProto) -> bool:
    """Return whether a graph quantizes activations to 8 bits: a network of one of the forms that `rewritten` gives."""
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}

    def quantizes(node: onnx.NodeProto) -> bool:
        if operator_of(node) == "DynamicQuantizeLinear":
            return True
        if operator_of(node) != "QuantizeLinear" or node.input[0] in kinds:  # of weights
            return False
        zero_point = node.input[2] if len(node.input) > 2 else ""
        return kinds.get(zero_point, TensorProto.UINT8) in _EIGHT_BITS

    return any(map(quantizes, graph.node))


def rewritten(model: onnx.ModelProto) -> bool:
    """Replace operators on integers by floating-point operators between QuantizeLinear and DequantizeLinear.

    Args:
        model: Changed. Its nodes are in topological order.

    Returns:
        Whether there were any.
    """
    graph = model.graph
    if not any(operator_of(node) in _FORMS for node in graph.node):
        return False
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    scales: dict[str, tuple[str, str]] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        writer = _Writer(node, taken, scales)
        nodes.extend(_replaced(writer))
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]  # what was said of tensors that are gone
    return True


def _replaced(writer: _Writer) -> Iterator[onnx.NodeProto]:
    node, kind = writer.node, operator_of(writer.node)
    if kind in _FORMS and not attributes_of(node).get("channels_last", 0):
        _FORMS[kind](writer)
        yield from writer.nodes
    elif kind in _MOVING and len(node.output) == 1 and node.input[0] in writer.scales:
        scale, zero_point = writer.scales[node.input[0]]
        inputs = [writer.dequantized(node.input[0], scale, zero_point), *node.input[1:]]
        writer.quantize(writer.add(kind, inputs, **attributes_of(node)), scale, zero_point)
        yield from writer.nodes
    else:
        if kind == "QuantizeLinear":
            writer.scales[node.output[0]] = (node.input[1], node.input[2] if len(node.input) > 2 else "")
        yield node


def _kept(node: onnx.NodeProto, names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in attributes_of(node).items() if name in names}


def _convolution(writer: _Writer) -> None:
    """QLinearConv: x, its scale and zero point, weights with theirs, the output's, bias."""
    node = writer.node
    inputs = [writer.float(0), writer.float(3, axis=0)]
    if len(node.input) > 8 and node.input[8]:
        inputs.append(writer.bias(node.input[8], node.input[1], node.input[4]))
    writer.quantize(writer.add("Conv", inputs, **_kept(node, _CONV)), node.input[6], node.input[7])


def _product(writer: _Writer) -> None:
    """QLinearMatMul: a and b, each with its scale and zero point, the output's."""
    node = writer.node
    found = writer.add("MatMul", [writer.float(0), writer.float(3, axis=1)])
    writer.quantize(found, node.input[6], node.input[7])


def _gemm(writer: _Writer) -> None:
    """QGemm: alpha (A B + C); without a scale of the output it gives floating-point numbers."""
    node, attributes = writer.node, attributes_of(writer.node)
    alpha = attributes.get("alpha", 1.0)
    inputs = [writer.float(0), writer.float(3, axis=0 if attributes.get("transB", 0) else 1)]
    if len(node.input) > 6 and node.input[6]:
        inputs.append(writer.bias(node.input[6], node.input[1], node.input[4]))
    kept = {**_kept(node, ("transA", "transB")), "alpha": alpha, "beta": alpha}
    if len(node.input) > 7 and node.input[7]:
        found = writer.add("Gemm", inputs, **kept)
        writer.quantize(found, node.input[7], node.input[8] if len(node.input) > 8 else "")
    else:
        writer.add("Gemm", inputs, node.output[0], **kept)


def _of_two(operator: str) -> Callable[[_Writer], None]:
    def write(writer: _Writer) -> None:
        node = writer.node
        found = writer.add(operator, [writer.float(0), writer.float(3)])
        writer.quantize(found, node.input[6], node.input[7] if len(node.input) > 7 else "")

    return write


def _of_one(operator: str, kept: Sequence[str]) -> Callable[[_Writer], None]:
    def write(writer: _Writer) -> None:
        node = writer.node
        found = writer.add(operator, [writer.float(0)], **_kept(node, kept))
        writer.quantize(found, node.input[3], node.input[4] if len(node.input) > 4 else "")

    return write


def _concat(writer: _Writer) -> None:
    """QLinearConcat: the output's scale and zero point, then each input with its own."""
    node = writer.node
    inputs = [writer.float(place) for place in range(2, len(node.input), 3)]
    writer.quantize(writer.add("Concat", inputs, **_kept(node, ("axis",))), node.input[0], node.input[1])


_FORMS: dict[str, Callable[[_Writer], None]] = {
    "QLinearConv": _convolution,
    "QLinearMatMul": _product,
    f"{_ORT}.QGemm": _gemm,
    f"{_ORT}.QLinearAdd": _of_two("Add"),
    f"{_ORT}.QLinearMul": _of_two("Mul"),
    f"{_ORT}.QLinearConcat": _concat,
    **{f"{_ORT}.{name}": _of_one(*form) for name, form in _OF_ONE.items()},
}
