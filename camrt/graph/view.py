"""Reading an ONNX graph: who makes a tensor, who reads it, its shape, its constant value."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from camrt.errors import CamrtError
from converters.model import split

Shape = tuple[int | str | None, ...]


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operator set."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """The model's metadata_props."""
    return {entry.key: entry.value for entry in model.metadata_props}


def labels_of(metadata: Mapping[str, str]) -> list[str] | None:
    """The names of the classes that a model's metadata hold; None where they hold none that can be read."""
    try:
        labels = json.loads(metadata.get("camrt.labels", ""))
    except ValueError:
        return None
    return [str(label) for label in labels] if isinstance(labels, list) else None


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values."""
    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its large initializers as inputs: all that shape inference and the checker need, and small."""
    light, large = split(model)
    names = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in light.graph.input if value.name not in names]  # old models list weights there, too
    inputs += [onnx.helper.make_tensor_value_info(one.name, one.data_type, list(one.dims)) for one in large]
    del light.graph.input[:]
    light.graph.input.extend(inputs)
    light.graph.name = light.graph.name or "graph"
    return light


class GraphView:
    """An index of a model's main graph. The model is not changed and must not change under it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.producers: dict[str, onnx.NodeProto] = {}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            self.producers.update((name, node) for name in node.output if name)
            for name in node.input:
                self.consumers[name].append(node)
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = [value.name for value in model.graph.output]

    @cached_property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """The model's inputs; initializers that old models list among them are left out."""
        return [value for value in self.model.graph.input if value.name not in self.initializers]

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Tensor -> its shape, as far as it can be inferred.

        Raises:
            CamrtError: The model contradicts itself.
        """
        return self._inferred[0]

    @property
    def types(self) -> Mapping[str, int]:
        """Tensor -> its element type (`onnx.TensorProto.DataType`), as far as it can be inferred.

        Raises:
            CamrtError: The model contradicts itself.
        """
        return self._inferred[1]

    @cached_property
    def _inferred(self) -> tuple[Mapping[str, Shape], Mapping[str, int]]:
        try:
            inferred = onnx.shape_inference.infer_shapes(skeleton(self.model), data_prop=True).graph
        except (onnx.shape_inference.InferenceError, ValueError) as error:
            raise CamrtError(f"the shapes of the model cannot be inferred: {error}") from error
        shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in self.initializers.values()}
        types = {tensor.name: tensor.data_type for tensor in self.initializers.values()}
        for value in (*inferred.input, *inferred.value_info, *inferred.output):
            if value.type.tensor_type.elem_type:
                types[value.name] = value.type.tensor_type.elem_type
            if value.type.tensor_type.HasField("shape"):
                shapes[value.name] = shape_of(value)
        return shapes, types

    def rank(self, tensor: str) -> int | None:
        """The number of axes, where it is known."""
        return len(self.shapes[tensor]) if tensor in self.shapes else None

    def constant(self, tensor: str) -> np.ndarray | None:
        """A tensor's value where it does not depend on the input: an initializer, a Constant, or one transposed."""
        if tensor in self.initializers:
            return numpy_helper.to_array(self.initializers[tensor])
        node = self.producers.get(tensor)
        if node is None:
            return None
        if node.op_type == "Constant":
            value = attributes_of(node).get("value")
            return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else None
        if node.op_type == "Identity":
            return self.constant(node.input[0])
        if node.op_type == "Transpose":
            inner = self.constant(node.input[0])
            return None if inner is None else np.transpose(inner, attributes_of(node).get("perm"))
        return None

    def needed_for(self, outputs: Iterable[str]) -> list[onnx.NodeProto]:
        """The nodes that tensors depend on, in the graph's order."""
        wanted = set(outputs)
        needed = []
        for node in reversed(self.model.graph.node):
            if wanted.intersection(node.output):
                wanted.update(node.input)
                wanted.update(captured(node))
                needed.append(node)
        return needed[::-1]


def captured(node: onnx.NodeProto) -> Iterable[str]:
    """What the bodies of control flow read from outside."""
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                yield from inner.input
                yield from captured(inner)


def shape_of(value: onnx.ValueInfoProto) -> Shape:
    """A tensor's declared shape: numbers, names, or None."""
    dims = value.type.tensor_type.shape.dim
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) if dim.HasField("dim_param") else None
        for dim in dims
    )
