"""Shapes and small values of a graph whose inputs have known sizes, further than onnx's own inference goes.

Exporters compute the targets of Reshape, the bounds of Slice, the indices of Gather and the like in the graph, from the
shapes of tensors. onnx follows a few of those operators. Here each value that depends on nothing but constants and
shapes is computed with onnx's reference evaluator, and given to onnx's inference of the node that reads it. Of
floating-point values only small ones are computed: they are scales, and not weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, TypeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from camrt.graph.view import Shape, attributes_of, infer_shapes, opset_of, shape_of

_MOST = 4096  # elements of a value that is computed
_MOST_INTEGERS = 1 << 22  # of integers: indices of whole tensors, as PyTorch's as_strided has them
_MOST_ALTOGETHER = 1 << 25  # elements of all values that are kept
_INTEGERS = {TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL}
_OPAQUE = {"If", "Loop", "Scan", "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike",
           "Multinomial", "Bernoulli", "Dropout"}  # fmt: skip
_LIKE_INPUT = {"GroupNormalization"}  # their output has the input's shape, which onnx does not infer
_STANDARD = ("", "ai.onnx")


@dataclass
class Inferred:
    """What is known of tensors before they are computed.

    Attributes:
        shapes: Numbers, names of free sizes, or None for those that are not known.
        types: Element types, `onnx.TensorProto.DataType`.
        values: Those that do not depend on the data.
        room: How many more elements of values may be kept.
    """

    shapes: dict[str, Shape] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    room: int = _MOST_ALTOGETHER

    def has_room(self, kind: int, shape: Shape) -> bool:
        """Whether a value of this type and shape may be computed and kept."""
        count = _count(shape)
        return count <= min(self.room, _MOST_INTEGERS if kind in _INTEGERS else _MOST)

    def keep(self, name: str, value: np.ndarray) -> None:
        """Keep the value of a tensor."""
        self.values[name] = value
        self.room -= value.size


def infer(model: onnx.ModelProto, initializers: Mapping[str, TensorProto]) -> Inferred:
    """Infer what can be inferred.

    Args:
        model: The graph; its large initializers may be inputs (`camrt.graph.view.skeleton`).
        initializers: All of them.

    Returns:
        Nothing at all where the shapes contradict each other.
    """
    try:
        graph = infer_shapes(model).graph
    except Exception:  # onnx raises whatever its C++ does
        return Inferred()
    found = Inferred()
    for tensor in initializers.values():
        found.shapes[tensor.name], found.types[tensor.name] = tuple(tensor.dims), tensor.data_type
    for value in (*graph.input, *graph.value_info, *graph.output):
        _learn(found, value.name, value.type)
    for tensor in initializers.values():
        if found.has_room(tensor.data_type, tuple(tensor.dims)):
            found.keep(tensor.name, numpy_helper.to_array(tensor))
    for node in graph.node:
        if node.domain in _STANDARD and node.op_type not in _OPAQUE:
            _visit(model, node, found)
    return found


def _visit(model: onnx.ModelProto, node: onnx.NodeProto, found: Inferred) -> None:
    """Learn what a node tells, when all before it is known."""
    if any(not _is_known(found, name) for name in node.output if name):
        if node.op_type in _LIKE_INPUT:
            found.shapes[node.output[0]] = found.shapes.get(node.input[0], ())
            found.types[node.output[0]] = found.types.get(node.input[0], TensorProto.UNDEFINED)
        else:
            for name, kind in _inferred_alone(model, node, found).items():
                _learn(found, name, kind)
    if node.op_type == "Shape":
        shape, limits = found.shapes.get(node.input[0]), attributes_of(node)
        if shape is not None and all(isinstance(size, int) for size in shape):
            found.keep(node.output[0], np.array(shape, np.int64)[limits.get("start") : limits.get("end")])
    elif all(name in found.values for name in node.input if name) and _is_small(found, node):
        for name, value in zip(node.output, _evaluated(model, node, found), strict=False):
            found.keep(name, value)
            found.shapes[name], found.types[name] = value.shape, helper.np_dtype_to_tensor_dtype(value.dtype)


def _inferred_alone(model: onnx.ModelProto, node: onnx.NodeProto, found: Inferred) -> dict[str, TypeProto]:
    """The inference for one node, with the values of its inputs."""
    types, data = {}, {}
    for name in node.input:
        if name and name in found.types:
            types[name] = helper.make_tensor_type_proto(found.types[name], found.shapes.get(name))
        if name in found.values:
            data[name] = numpy_helper.from_array(found.values[name], name)
    try:
        schema = onnx.defs.get_schema(node.op_type, opset_of(model))
        imports = list(model.opset_import)
        return dict(onnx.shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=imports))
    except Exception:  # it knows no more than before
        return {}


def _evaluated(model: onnx.ModelProto, node: onnx.NodeProto, found: Inferred) -> list[np.ndarray]:
    """A node's outputs, computed."""
    feeds = {name: found.values[name] for name in node.input if name}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feeds.items()
    ]
    graph = helper.make_graph([node], "value", inputs, [onnx.ValueInfoProto(name=name) for name in node.output if name])
    alone = helper.make_model(graph, opset_imports=model.opset_import)
    try:
        values = ReferenceEvaluator(alone).run(None, feeds)
    except Exception:  # an operator that it does not have, or has for other types
        return []
    return [np.asarray(value) for value in values]


def _learn(found: Inferred, name: str, kind: TypeProto) -> None:
    """Keep what a type tells, where it tells more than is known."""
    if not kind.HasField("tensor_type"):
        return
    if kind.tensor_type.elem_type:
        found.types[name] = kind.tensor_type.elem_type
    if kind.tensor_type.HasField("shape"):
        declared = shape_of(onnx.ValueInfoProto(name=name, type=kind))
        shape = tuple(None if isinstance(size, int) and size < 0 else size for size in declared)
        if name not in found.shapes or _unknown(shape) <= _unknown(found.shapes[name]):
            found.shapes[name] = shape


def _is_known(found: Inferred, name: str) -> bool:
    return name in found.shapes and not _unknown(found.shapes[name]) and bool(found.types.get(name))


def _is_small(found: Inferred, node: onnx.NodeProto) -> bool:
    for name in node.output:
        shape = found.shapes.get(name)
        if name and (shape is None or _unknown(shape) or not found.has_room(found.types.get(name, 0), shape)):
            return False
    return True


def _unknown(shape: Shape) -> int:
    return sum(not isinstance(size, int) for size in shape)


def _count(shape: Shape) -> int:
    count = 1
    for size in shape:
        count *= size if isinstance(size, int) else 1
    return count
