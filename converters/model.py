"""Turn a finished graph into an ONNX model, in memory or on disk.

Models are written tensor by tensor. Protocol Buffers merges concatenated messages, so a model without weights, followed
by one `ModelProto{graph{initializer}}` fragment per tensor, is the whole model. Weights are copied from the mapped
caffemodel to the file without a message in memory.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters.encoding import contents, length_delimited, replacing, sweep
from converters.errors import ConversionError
from converters.graph import Graph, Node
from converters.shape import Shape, SymbolicDim

SMALL = 1024  # bytes; smaller initializers (shapes, axes) stay in the graph, because shape inference needs them
MAX_MODEL = 2**31 - 2**24  # bytes; Protocol Buffers limits a message to 2**31, including the metadata
_EXTERNAL_ALIGNMENT = 4096  # so that a runtime can map each tensor
_GRAPH_FIELD, _INITIALIZER_FIELD, _RAW_DATA_FIELD = 7, 5, 9  # of ModelProto, GraphProto, TensorProto


@dataclass(frozen=True)
class Draft:
    """A finished graph and its outputs.

    Attributes:
        graph: Nodes, shapes, initializers.
        outputs: The tensors that the model returns.
    """

    graph: Graph
    outputs: tuple[str, ...]

    def header(self) -> onnx.ModelProto:
        """Return the model without its large initializers."""
        graph, names = self.graph, self.graph.axis_names()

        def info(name: str) -> onnx.ValueInfoProto:
            tensor = graph.tensors[name]
            kind = helper.np_dtype_to_tensor_dtype(tensor.dtype)
            return helper.make_tensor_value_info(name, kind, _dims(graph, tensor.shape, names))

        written = [name for node in graph.nodes for name in node.outputs if name]
        outputs = set(self.outputs)
        proto = helper.make_graph(
            [node_proto(node) for node in graph.nodes],
            graph.name or "caffe",
            [info(name) for name in graph.inputs],
            [info(name) for name in self.outputs],
            [_tensor(name, array) for name, array in graph.initializers.items() if array.nbytes <= SMALL],
            value_info=[info(name) for name in written if name not in outputs],
        )
        opsets = [helper.make_opsetid("", graph.opset)]
        model = helper.make_model(proto, opset_imports=opsets, producer_name="camrt converters")
        model.ir_version = helper.find_min_ir_version_for(opsets)
        return model

    def large(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the initializers that the header leaves out."""
        return ((name, array) for name, array in self.graph.initializers.items() if array.nbytes > SMALL)

    def checked_header(self) -> onnx.ModelProto:
        """Return the header, once onnx's checker with strict shape inference has accepted it.

        Raises:
            ConversionError: The checker rejects the model.
        """
        header = self.header()
        skeleton = onnx.ModelProto()
        skeleton.CopyFrom(header)
        for name, array in self.large():  # types and shapes are enough for the checker
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            skeleton.graph.input.append(helper.make_tensor_value_info(name, kind, array.shape))
        try:
            onnx.checker.check_model(skeleton, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ConversionError(f"onnx's checker refuses the converted model: {error}") from error
        return header


def in_memory(draft: Draft, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Return the whole model as a message.

    Raises:
        ConversionError: onnx's checker rejects it.
    """
    model = draft.checked_header()
    for name, array in draft.large():
        _fill(model.graph.initializer.add(), name, array)
    helper.set_model_props(model, dict(metadata))
    return model


def write(
    draft: Draft,
    path: Path,
    metadata: Callable[[], Mapping[str, str]],
    *,
    limit: int = MAX_MODEL,
    advance: Callable[[int], object] = lambda count: None,
) -> int:
    """Write a model. An existing file is replaced atomically.

    Args:
        draft: The model.
        path: The file; missing folders are created. Weights beyond ``limit`` go to ``<path>.data`` beside it, in ONNX's
            external format.
        metadata: Returns its metadata_props. Called last, because they may not be complete when writing begins.
        limit: The maximum size in bytes of a single file.
        advance: Called with the bytes of each tensor that was written.

    Returns:
        The bytes written.

    Raises:
        ConversionError: onnx's checker rejects the model, or the file cannot be written.
    """
    _check_place(path)
    header = draft.checked_header()
    large = [_Large.of_array(name, array) for name, array in draft.large()]

    def properties() -> bytes:
        message = onnx.ModelProto()
        helper.set_model_props(message, dict(metadata()))
        return message.SerializeToString()

    return _write(path, header, large, limit, advance, last=properties)


def save(model: onnx.ModelProto, path: Path, *, limit: int = MAX_MODEL) -> int:
    """Write a model message like `write`.

    Args:
        model: The message with its weights; neither changed nor copied. It may be larger than the limit of Protocol
            Buffers.
        path: The file; missing folders are created. Weights beyond ``limit`` go to ``<path>.data`` beside it, in ONNX's
            external format.
        limit: The maximum size in bytes of a single file.

    Returns:
        The bytes written.

    Raises:
        ConversionError: The file cannot be written.
    """
    _check_place(path)
    header, tensors = split(model)
    return _write(path, header, [_Large.of_tensor(tensor) for tensor in tensors], limit)


def split(model: onnx.ModelProto, small: int = SMALL) -> tuple[onnx.ModelProto, list[TensorProto]]:
    """Split a model into a header and its large initializers, which are not copied.

    Args:
        model: Not changed.
        small: Initializers of up to this many bytes stay in the header.

    Returns:
        The model with only the small initializers, and the other initializers in their order.
    """
    header = onnx.ModelProto()
    _merge(model, header, but="graph")
    _merge(model.graph, header.graph, but="initializer")
    large = []
    for tensor in model.graph.initializer:
        if bytes_of(tensor) <= small:
            header.graph.initializer.append(tensor)
        else:
            large.append(tensor)
    return header, large


# --------------------------------------------------------------------------------------------------------- on the disk


@dataclass(frozen=True)
class _Large:
    """An initializer that is written separately from the header.

    Attributes:
        head: Name, shape and type.
        nbytes: The maximum size of its values in bytes.
        data: Returns the values as in `TensorProto.raw_data`. Called once, because it may have to copy them.
    """

    head: TensorProto
    nbytes: int
    data: Callable[[], memoryview]

    @classmethod
    def of_array(cls, name: str, array: np.ndarray) -> _Large:
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        head = TensorProto(name=name, dims=array.shape, data_type=kind)
        return cls(head, array.nbytes, lambda: contents(array))

    @classmethod
    def of_tensor(cls, tensor: TensorProto) -> _Large:
        def data() -> memoryview:
            if tensor.HasField("raw_data"):
                return memoryview(tensor.raw_data)
            return memoryview(numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data)

        head = TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        return cls(head, bytes_of(tensor), data)


def _check_place(path: Path) -> None:
    if path.is_dir():
        raise ConversionError("is a folder, expected a file name", file=str(path))


def _write(
    path: Path,
    header: onnx.ModelProto,
    large: Sequence[_Large],
    limit: int,
    advance: Callable[[int], object] = lambda count: None,
    last: Callable[[], bytes] = bytes,
) -> int:
    """Write the header, the large initializers and the trailing bytes. Returns the number of bytes."""
    size = header.ByteSize() + sum(one.nbytes + one.head.ByteSize() + 64 for one in large)
    beside = path.with_name(path.name + ".data")
    try:
        with contextlib.ExitStack() as stack:
            sweep(path.parent, path.name)
            # The data file is moved first (the stack unwinds in reverse), so no model is left without its weights.
            stream = stack.enter_context(replacing(path))
            if size <= limit:
                stream.write(header.SerializeToString())
                for one in large:
                    _write_fragment(stream, one)
                    advance(one.nbytes)
            else:
                data = stack.enter_context(replacing(beside))
                header.graph.initializer.extend(_write_external(data, large, beside.name, advance))
                stream.write(header.SerializeToString())
            stream.write(last())
    except OSError as error:
        raise ConversionError(f"cannot be written: {error.strerror or error}", file=str(path)) from error
    return path.stat().st_size + (beside.stat().st_size if size > limit else 0)


def _write_fragment(stream: IO[bytes], one: _Large) -> None:
    """Write an initializer as a `ModelProto{graph{initializer}}` of its own, without copying its data."""
    data = one.data()
    tensor = one.head.SerializeToString() + length_delimited(_RAW_DATA_FIELD, data.nbytes)
    initializer = length_delimited(_INITIALIZER_FIELD, len(tensor) + data.nbytes) + tensor
    stream.write(length_delimited(_GRAPH_FIELD, len(initializer) + data.nbytes) + initializer)
    stream.write(data)


def _write_external(
    stream: IO[bytes], large: Iterable[_Large], location: str, advance: Callable[[int], object]
) -> Iterator[TensorProto]:
    for one in large:
        stream.write(bytes(-stream.tell() % _EXTERNAL_ALIGNMENT))
        data = one.data()
        entries = {"location": location, "offset": str(stream.tell()), "length": str(data.nbytes)}
        stream.write(data)
        advance(one.nbytes)
        tensor = TensorProto(data_location=TensorProto.EXTERNAL)
        tensor.MergeFrom(one.head)
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
        yield tensor


# --------------------------------------------------------------------------------------------------------- as messages


def _merge(source: Any, target: Any, *, but: str) -> None:
    """Copy all fields of a message but one."""
    for field, value in source.ListFields():
        if field.name == but:
            continue
        if hasattr(value, "MergeFrom"):  # a message, or several of something
            getattr(target, field.name).MergeFrom(value)
        else:
            setattr(target, field.name, value)


def bytes_of(tensor: TensorProto) -> int:
    """Return the size of a tensor's values in bytes, without serializing it as ByteSize does. 0 for strings."""
    if tensor.data_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        return 0
    return math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _tensor(name: str, array: np.ndarray) -> TensorProto:
    tensor = TensorProto()
    _fill(tensor, name, array)
    return tensor


def _fill(tensor: TensorProto, name: str, array: np.ndarray) -> None:
    """Fill a tensor in place, because Protocol Buffers would copy a separate one."""
    tensor.name = name
    tensor.dims.extend(array.shape)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor.raw_data = array.tobytes()


def node_proto(node: Node) -> onnx.NodeProto:
    """Return a node as an ONNX message.

    Raises:
        ValueError: ONNX does not support the value of an attribute.
        TypeError: Likewise.
    """
    attributes = {key: _attribute(value) for key, value in node.attributes.items()}
    return helper.make_node(node.op, node.inputs, node.outputs, name=node.name, **attributes)


def _attribute(value: Any) -> Any:
    if isinstance(value, np.dtype):
        return helper.np_dtype_to_tensor_dtype(value)
    if isinstance(value, np.ndarray):
        return _tensor("", value)
    return value


def _dims(graph: Graph, shape: Shape, names: Mapping[str, str]) -> Sequence[int | str]:
    return [graph.dim_name(dim, names) if isinstance(dim, SymbolicDim) else dim for dim in shape]
