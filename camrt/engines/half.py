"""Half precision: a network's weights and activations in float16, and float32 where that is not enough.

float16 has 11 significant bits, and its numbers end at 65,504. That is enough for what networks spend their time on:
products with weights, whose sums a GPU keeps in float32 anyway, and activations. It is not enough for sums over many
positions, for powers, and for the small numbers of gradients. So `halved` decides node by node:

* products with the network's weights are computed in float16, in the backward pass as well;
* what passes numbers on or combines a few of them (`LAYOUT`, `ELEMENTWISE`) stays in float16 between such products;
* everything else is computed in float32: `Softmax`, `LRN`, reductions and global pooling, `Resize`, `TopK`, scattering,
  powers, roots, exponentials and logarithms, operators that are not listed here, and nodes whose weights float16 cannot
  hold. So is all that camrt adds to a network (preprocessing, scores, methods, the merging of crops), apart from the
  products of the backward pass.

The tools that exist were tried, and ONNX Runtime refuses what they make of an explainer: onnxconverter-common 1.16
gives the cast from uint8 to float32 an output of float16, and onnxruntime.transformers 1.31 names two nodes alike where
several nodes read a tensor that is kept in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from camrt.builder import PREFIX
from converters.model import split

# In a network these always compute in float16: the first of them casts what it reads.
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# In a network these do where all that they read is in float16 already. Their weights are cast.
ELEMENTWISE = frozenset({
    "Add", "Sub", "Mul", "Div", "Sum", "Max", "Min", "Neg", "Abs", "Where", "Relu", "LeakyRelu", "PRelu", "Elu", "Selu",
    "Clip", "Sigmoid", "Tanh", "Erf", "Gelu", "HardSigmoid", "HardSwish", "Softplus", "Softsign", "MaxPool",
    "AveragePool", "BatchNormalization", "InstanceNormalization", "LayerNormalization", "Dropout",
})  # fmt: skip
# Anywhere, these do where all that they read is in float16 already: they compute nothing.
LAYOUT = frozenset({
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Concat", "Slice", "Split", "Expand", "Identity", "Pad",
    "Gather", "Tile", "DepthToSpace", "SpaceToDepth",
    "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal",
})  # fmt: skip
_ANY = frozenset({"Shape", "Size", "Cast"})  # they read either, and give what they say themselves
_LARGEST = float(np.finfo(np.float16).max)
_OURS = f"{PREFIX}/node/"  # what the names of the nodes begin with that camrt adds to a network
_SMALL = 1024  # bytes; larger weights are inputs to shape inference
_STANDARD = ("", "ai.onnx")


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let a model compute in float16 what float16 is enough for.

    Args:
        model: A model of float32, as `camrt.explain_graph` or `converters.convert` make it, with its nodes in
            topological order. Not changed.

    Returns:
        A model with the same inputs and outputs, of the same types. Weights that only float16 reads are there in
        float16 alone.

    Example:
        >>> camrt.engines.half.halved(onnx.load("explainer.onnx"))  # doctest: +SKIP
    """
    header, large = split(model, _SMALL)
    weights = {tensor.name: tensor for tensor in (*header.graph.initializer, *large)}
    del header.graph.value_info[:]  # they hold the old types
    outputs = {value.name for value in header.graph.output}
    hoisted = _hoisted(header.graph, outputs)
    weights |= hoisted
    scope = _Scope(weights, _kinds(header, [*large, *hoisted.values()]), outputs)
    nodes = scope.converted(header.graph.node)
    del header.graph.node[:], header.graph.initializer[:]
    header.graph.node.extend(nodes)
    for name, tensor in weights.items():
        if name in scope.single or tensor.data_type != TensorProto.FLOAT:
            header.graph.initializer.append(tensor)
        if name in scope.weights:
            header.graph.initializer.append(scope.weights[name])
    return header


def _hoisted(graph: onnx.GraphProto, outputs: set[str]) -> dict[str, TensorProto]:
    """Take the constants of float32 out of a graph's nodes: they are weights like others."""
    found = {}
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        value = next((one.t for one in node.attribute if one.name == "value"), None)
        if node.op_type != "Constant" or value is None or value.data_type != TensorProto.FLOAT:
            continue
        if node.output[0] not in outputs:
            tensor = found[node.output[0]] = TensorProto()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
            del graph.node[index]
    return found


def _kinds(header: onnx.ModelProto, large: Iterable[TensorProto]) -> dict[str, int]:
    """Tensor -> its element type, of the graph and of the bodies of its loops."""
    light = onnx.ModelProto()
    light.CopyFrom(header)
    light.graph.input.extend(helper.make_tensor_value_info(one.name, one.data_type, list(one.dims)) for one in large)
    graph = onnx.shape_inference.infer_shapes(light).graph
    kinds = {tensor.name: tensor.data_type for tensor in header.graph.initializer}
    pending = [graph]
    while pending:
        graph = pending.pop()
        for value in (*graph.input, *graph.value_info, *graph.output):
            kinds[value.name] = value.type.tensor_type.elem_type
        pending += [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return kinds


@dataclass
class _Scope:
    """The tensors of a graph, and in which of both types each is there.

    Attributes:
        source: The weights: initializer -> tensor.
        kinds: Tensor -> its element type in the model as it was.
        fixed: Tensors whose type must stay: outputs.
        prefix: What the names of casts begin with; those in a body must not be those of the graph outside.
        halves: Tensor -> its name in float16.
        singles: A tensor that is computed in float16 -> its name in float32.
        weights: Initializer -> it in float16, under another name.
        single: Initializers that are read in float32.
        learned: Tensors that depend on weights of the network and nothing else.
    """

    source: Mapping[str, TensorProto]
    kinds: Mapping[str, int]
    fixed: set[str]
    prefix: str = PREFIX
    halves: dict[str, str] = field(default_factory=dict)
    singles: dict[str, str] = field(default_factory=dict)
    weights: dict[str, TensorProto] = field(default_factory=dict)
    single: set[str] = field(default_factory=set)
    learned: set[str] = field(default_factory=set)
    _fits: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.learned |= {name for name in self.source if not name.startswith(f"{PREFIX}/")}

    def converted(self, nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """The nodes, with casts between those that compute in float16 and the others."""
        return [new for node in nodes for new in self._node(node)]

    def _node(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        read = [name for name in node.input if name]
        if read and self.learned.issuperset(self._numbers(read)) and not self.learned.isdisjoint(read):
            self.learned.update(node.output)
        if any(attribute.HasField("g") for attribute in node.attribute):
            yield from self._control_flow(copy)
        elif node.op_type in _ANY and node.domain in _STANDARD:
            copy.input[:] = [self._at_hand(name) for name in node.input]
            yield copy
        elif self._is_half(node):
            for index, name in enumerate(node.input):
                yield from self._in_half(copy, index, name)
            for name in node.output:
                if self._is_float(name):
                    self.halves[name] = name
            yield copy
        else:
            for index, name in enumerate(node.input):
                yield from self._in_single(copy, index, name)
            yield copy

    def _is_half(self, node: onnx.NodeProto) -> bool:
        """Whether a node computes in float16."""
        numbers = [name for name in node.input if self._is_float(name)]
        if node.domain not in _STANDARD or not numbers or not self.fixed.isdisjoint(node.output):
            return False
        if not all(self._has_room(name) for name in numbers):
            return False
        is_ours = node.name.startswith(_OURS)
        if node.op_type in PRODUCTS:
            return not is_ours or not self.learned.isdisjoint(numbers)
        if node.op_type in LAYOUT or (node.op_type in ELEMENTWISE and not is_ours):
            computed = [name for name in numbers if name not in self.source]
            if not computed:  # weights in another form, for a product
                return self.learned.issuperset(numbers)
            return all(name in self.halves for name in computed)
        return False

    def _control_flow(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """A node with bodies: it and its bodies take and give float32, and convert what is inside."""
        for index, name in enumerate(node.input):
            yield from self._in_single(node, index, name)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                body = attribute.g
                outputs = {value.name for value in body.output}
                inner = _Scope(
                    self.source, self.kinds, outputs, f"{self.prefix}/{node.output[0]}", dict(self.halves),
                    dict(self.singles), self.weights, self.single, set(self.learned), self._fits,
                )  # fmt: skip
                nodes = inner.converted(body.node)
                del body.node[:], body.value_info[:]
                body.node.extend(nodes)
                self.single.update(outputs & self.source.keys())
        yield node

    # ---------------------------------------------------------------------------------------------------- one tensor

    def _is_float(self, name: str) -> bool:
        return bool(name) and self.kinds.get(name) == TensorProto.FLOAT

    def _numbers(self, names: Iterable[str]) -> list[str]:
        """Those that are no constants of integers: shapes, axes."""
        return [name for name in names if self._is_float(name) or name not in self.source]

    def _has_room(self, name: str) -> bool:
        """Whether float16 can hold a weight: its magnitude is not beyond the largest number."""
        if name not in self.source:
            return True
        if name not in self._fits:
            values = numpy_helper.to_array(self.source[name])
            finite = values[np.isfinite(values)] if not np.isfinite(values).all() else values
            self._fits[name] = not finite.size or float(np.abs(finite).max()) <= _LARGEST
        return self._fits[name]

    def _at_hand(self, name: str) -> str:
        """A tensor in the type that it is there in."""
        if name in self.source:
            self.single.add(name)
        return name

    def _in_half(self, node: onnx.NodeProto, index: int, name: str) -> Iterator[onnx.NodeProto]:
        """Let a node read a tensor in float16; a cast where that is not there yet."""
        if not self._is_float(name):
            node.input[index] = self._at_hand(name)
            return
        if name not in self.halves:
            if name in self.source:
                self.halves[name] = self._weight(name)
            else:
                self.halves[name] = f"{self.prefix}/half/{name}"
                yield _cast(name, self.halves[name], TensorProto.FLOAT16)
        node.input[index] = self.halves[name]

    def _weight(self, name: str) -> str:
        """An initializer in float16: one for the graph and all bodies."""
        if name not in self.weights:
            array = numpy_helper.to_array(self.source[name]).astype(np.float16)
            self.weights[name] = numpy_helper.from_array(array, f"{PREFIX}/half/{name}")
        return self.weights[name].name

    def _in_single(self, node: onnx.NodeProto, index: int, name: str) -> Iterator[onnx.NodeProto]:
        """Let a node read a tensor in float32; a cast where it was computed in float16."""
        if self._is_float(name) and self.halves.get(name) == name:
            if name not in self.singles:
                self.singles[name] = f"{self.prefix}/single/{name}"
                yield _cast(name, self.singles[name], TensorProto.FLOAT)
            node.input[index] = self.singles[name]
        else:
            node.input[index] = self._at_hand(name)


def _cast(name: str, new: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [new], name=f"{_OURS}{new}", to=kind)
