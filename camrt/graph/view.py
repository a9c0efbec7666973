"""Reading an ONNX graph: producers and consumers of tensors, their shapes, their constant values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from camrt.errors import CamrtError
from converters import metadata as keys
from converters.model import bytes_of, split

Shape = tuple[int | str | None, ...]
_LONGEST = 600  # characters of a foreign error that become part of ours: onnx prints whole nodes
_LONG = 100_000  # numbers of a vector whose values onnx's shape inference would follow
_STANDARD = ("", "ai.onnx")
QUANTIZING = ("QuantizeLinear", "DequantizeLinear")
_CONSTANT = ("Identity", "Transpose", *QUANTIZING)  # operators whose output is constant where their inputs are


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operator set."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """The model's metadata_props."""
    return keys.of_model(model)


def labels_of(metadata: Mapping[str, str]) -> list[str] | None:
    """The names of the classes in a model's metadata; None if there are none that can be read."""
    try:
        return keys.labels_of(metadata)
    except ValueError:
        return None


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values."""
    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}


def operator_of(node: onnx.NodeProto) -> str:
    """The name of a standard operator; of another one with its domain, so that it is not taken for a standard one."""
    return node.op_type if node.domain in _STANDARD else f"{node.domain}.{node.op_type}"


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of a control-flow node: what If, Loop and Scan run."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def control_flow(nodes: Iterable[onnx.NodeProto], most: int = 3) -> str:
    """The nodes that are control flow, for people; empty where none is."""
    found = [described(node) for node in nodes if next(bodies(node), None) is not None]
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def captured(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that the bodies of control flow read, those from outside among them."""
    for body in bodies(node):
        yield from (value.name for value in body.output)
        for inner in body.node:
            yield from inner.input
            yield from captured(inner)


def described(node: onnx.NodeProto) -> str:
    """A node for people: its name, or its output's, and its operator."""
    return f"{node.name or next(iter(node.output), '')!r} ({operator_of(node)})"


def shortened(error: Exception) -> str:
    """The text of a foreign error on one line, cut where it is long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its large weights as inputs: small, and enough for shape inference and the checker.

    Args:
        model: Not changed. Its weights are not copied.
    """
    light, large = split(model)
    names = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in light.graph.input if value.name not in names]  # old models list weights there, too
    inputs += [onnx.helper.make_tensor_value_info(one.name, one.data_type, list(one.dims)) for one in large]
    del light.graph.input[:]
    light.graph.input.extend(inputs)
    light.graph.name = light.graph.name or "graph"
    return light


def infer_shapes(model: onnx.ModelProto, *, strict: bool = False) -> onnx.ModelProto:
    """Run onnx's shape inference, which follows the values of shapes as far as that is feasible.

    Args:
        model: A model without large weights (`skeleton`).
        strict: Whether a contradiction is an error.
    """
    inferred = onnx.shape_inference.infer_shapes(model, check_type=strict, strict_mode=strict)
    values = (*inferred.graph.input, *inferred.graph.value_info)
    if any(_is_long_vector(value.type.tensor_type) for value in values):
        return inferred  # onnx would follow each of its numbers, for minutes
    return onnx.shape_inference.infer_shapes(model, check_type=strict, strict_mode=strict, data_prop=True)


def _is_long_vector(kind: onnx.TypeProto.Tensor) -> bool:
    return len(kind.shape.dim) == 1 and kind.shape.dim[0].dim_value > _LONG


def type_name(kind: int) -> str:
    """An element type for people: ``float16``; its number where ONNX has none."""
    return TensorProto.DataType.Name(kind).lower() if kind in TensorProto.DataType.values() else str(kind)


def quoted(name: str) -> str:
    """A name for people, in quotes, and cut where it is long."""
    return repr(name if len(name) <= _LONGEST else f"{name[:_LONGEST]}...")


class GraphView:
    """An index of a model's main graph. The model is not changed and must not change under it.

    Args:
        model: A model whose nodes are in topological order. `camrt.graph.open_model` makes one of any model.
        renamed: Tensors that were renamed when the model was opened: old name -> new name.

    Raises:
        CamrtError: The nodes are not in topological order, or there is a cycle.
    """

    def __init__(self, model: onnx.ModelProto, renamed: Mapping[str, str] | None = None) -> None:
        self.model = model
        self.renamed = dict(renamed or {})
        self.producers: dict[str, onnx.NodeProto] = {}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = [value.name for value in model.graph.output]
        for node in model.graph.node:
            for name in node.input:
                self.consumers[name].append(node)
            for name in node.output:
                if name in self.consumers and name:
                    raise CamrtError(
                        f"found the tensor {name!r}, which is read before {described(node)} makes it, expected nodes "
                        "in topological order: camrt.graph.open_model sorts them"
                    )
                if name:
                    self.producers[name] = node

    @property
    def opset(self) -> int:
        """The version of the standard operator set."""
        return opset_of(self.model)

    @cached_property
    def metadata(self) -> dict[str, str]:
        """The model's metadata_props."""
        return metadata_of(self.model)

    @cached_property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """The model's inputs, without the initializers that old models list among them."""
        return [value for value in self.model.graph.input if value.name not in self.initializers]

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Tensor -> its shape, as far as it can be inferred.

        Raises:
            CamrtError: The shapes of the model contradict each other.
        """
        return self._inferred[0]

    @property
    def types(self) -> Mapping[str, int]:
        """Tensor -> its element type (`onnx.TensorProto.DataType`), as far as it can be inferred.

        Raises:
            CamrtError: The shapes of the model contradict each other.
        """
        return self._inferred[1]

    @cached_property
    def _inferred(self) -> tuple[Mapping[str, Shape], Mapping[str, int]]:
        try:
            inferred = infer_shapes(skeleton(self.model)).graph
        except Exception as error:  # onnx raises whatever its C++ does
            raise CamrtError(f"the shapes of the model cannot be inferred: {shortened(error)}") from error
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

    def is_constant(self, tensor: str) -> bool:
        """Whether `constant` gives a tensor's value, without reading it."""
        nodes, source = self._constant_way(tensor)
        stored = [source, *(name for node in nodes for name in node.input[1:] if name)]
        return all(self._is_stored(name) for name in stored)

    def axes_of(self, node: onnx.NodeProto) -> list[int] | None:
        """The axes of a reduction: an attribute in older operator sets, an input since then; None if computed."""
        axes = attributes_of(node).get("axes")
        if axes is None and len(node.input) > 1:
            axes = self.constant(node.input[1])
        return None if axes is None else [int(axis) for axis in np.reshape(axes, -1)]

    def constant(self, tensor: str) -> np.ndarray | None:
        """A tensor's value where it does not depend on the input.

        It is that of an initializer or a Constant, perhaps transposed, quantized or dequantized.

        Raises:
            CamrtError: The values do not fit the shape.
        """
        nodes, source = self._constant_way(tensor)
        value = self._stored(source)
        for node in reversed(nodes):
            parameters = [self._stored(name) if name else None for name in node.input[1:]]
            if value is None or any(one is None for one, name in zip(parameters, node.input[1:], strict=True) if name):
                return None
            value = _computed(node, value, parameters)
        return value

    def _constant_way(self, tensor: str) -> tuple[list[onnx.NodeProto], str]:
        """The nodes between a tensor and the weights that it may be made of, the last first; and those weights."""
        nodes = []
        while (node := self.producers.get(tensor)) is not None and operator_of(node) in _CONSTANT:
            nodes.append(node)
            tensor = node.input[0]
        return nodes, tensor

    def _is_stored(self, tensor: str) -> bool:
        node = self.producers.get(tensor)
        return tensor in self.initializers or (node is not None and operator_of(node) == "Constant")

    def _stored(self, tensor: str) -> np.ndarray | None:
        """The value of an initializer or a Constant."""
        if not self._is_stored(tensor):
            return None
        if tensor in self.initializers:
            return array_of(self.initializers[tensor], tensor)
        return _value_of(self.producers[tensor])

    def needed_for(self, outputs: Iterable[str]) -> list[onnx.NodeProto]:
        """The nodes that tensors depend on, in the graph's order."""
        return needed_for(self.model.graph, outputs)


def needed_for(graph: onnx.GraphProto, outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes of a graph that tensors depend on, in the graph's order."""
    wanted = set(outputs)
    needed = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            wanted.update(captured(node))
            needed.append(node)
    return needed[::-1]


def _value_of(node: onnx.NodeProto) -> np.ndarray | None:
    """The value of a Constant node; None where it is text or sparse."""
    for name, value in attributes_of(node).items():
        if name == "value":
            return array_of(value, node.output[0])
        if name in ("value_float", "value_floats"):
            return np.asarray(value, np.float32)
        if name in ("value_int", "value_ints"):
            return np.asarray(value, np.int64)
    return None


def _computed(node: onnx.NodeProto, value: np.ndarray, parameters: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """What one of the nodes of `GraphView.constant` makes of a value; None where it cannot be told."""
    kind, attributes = operator_of(node), attributes_of(node)
    if kind == "Transpose":
        perm = attributes.get("perm")
        return np.transpose(value, perm) if perm is None or sorted(perm) == list(range(value.ndim)) else None
    scale, zero_point = [*parameters, None, None][:2]
    if kind == "Identity" or scale is None:
        return value
    try:
        if kind == "QuantizeLinear":
            return quantized(value, scale, zero_point, **attributes)
        return dequantized(value, scale, zero_point, **attributes)
    except ValueError:  # scales that do not fit the shape
        return None


def dequantized(
    x: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    **_: Any,
) -> np.ndarray:
    """What DequantizeLinear gives: (x - zero_point) * scale.

    Args:
        x: The quantized numbers.
        scale: One number; one for each place on ``axis``; or one for each block along it.
        zero_point: Likewise, of the type of ``x``; 0 by default.
        axis: The axis of the scales.
        block_size: How many numbers share a scale, where the scales have as many axes as ``x``.

    Raises:
        ValueError: The scales do not fit the shape.
    """
    shifted = x.astype(np.float64)
    if zero_point is not None:
        shifted -= _spread(zero_point.astype(np.float64), x.shape, axis, block_size)
    return np.asarray(shifted * _spread(scale, x.shape, axis, block_size), scale.dtype)


def quantized(
    x: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    **_: Any,
) -> np.ndarray | None:
    """What QuantizeLinear gives: round(x / scale) + zero_point, cut off at the bounds; arguments as in `dequantized`.

    Returns:
        None for types that are no integers of 8 or 16 bits.
    """
    kind = np.dtype(np.uint8) if zero_point is None else zero_point.dtype
    if kind.kind not in "iu":
        return None
    found = np.rint(x / _spread(scale, x.shape, axis, block_size))
    if zero_point is not None:
        found = found + _spread(zero_point.astype(np.float64), x.shape, axis, block_size)
    return np.asarray(found.clip(np.iinfo(kind).min, np.iinfo(kind).max), kind)


def _spread(values: np.ndarray, shape: tuple[int, ...], axis: int, block_size: int) -> np.ndarray:
    """Scales or zero points, in a shape that broadcasts to ``shape``."""
    if values.size == 1:
        return values.reshape(())
    if block_size:
        return np.repeat(values, block_size, axis)[tuple(map(slice, shape))]
    return values.reshape([-1 if each == axis % len(shape) else 1 for each in range(len(shape))])


def check_values(tensor: TensorProto) -> None:
    """Check that a tensor holds as many values as its shape says.

    Raises:
        CamrtError: It holds more or fewer.
    """
    sized = TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1, TensorProto.STRING  # not whole bytes
    if not tensor.HasField("raw_data") or tensor.data_type in sized:
        array_of(tensor)
    elif len(tensor.raw_data) != bytes_of(tensor):
        raise CamrtError(
            f"found the weights {tensor.name!r} of shape {tuple(tensor.dims)} with {len(tensor.raw_data)} bytes, "
            f"expected {bytes_of(tensor)}"
        )


def array_of(tensor: TensorProto, name: str = "") -> np.ndarray:
    """The values of an initializer or a constant.

    Raises:
        CamrtError: They do not fit the shape.
    """
    try:
        return numpy_helper.to_array(tensor)
    except Exception as error:  # the values are too few or too many: ValueError, TypeError, ...
        raise CamrtError(
            f"found the weights {name or tensor.name!r} of shape {tuple(tensor.dims)}, and values that do not fit it: "
            f"{shortened(error)}"
        ) from error


def shape_of(value: onnx.ValueInfoProto) -> Shape:
    """A tensor's declared shape: numbers, names, or None."""
    dims = value.type.tensor_type.shape.dim
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) if dim.HasField("dim_param") else None
        for dim in dims
    )
