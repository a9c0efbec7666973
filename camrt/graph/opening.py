"""The one way into `camrt.graph`: a model is checked and brought into a known form, and only then looked at.

A model may come from anywhere. Everything behind `open_model` can rely on a valid graph without cycles, in topological
order, without functions, in an operator set from 13 on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import onnx
from onnx import TensorProto, helper

from camrt.errors import CamrtError
from camrt.graph import attention, quantized
from camrt.graph.rewrite import check_functions, clashes, inlined, rename_tensors, sort_nodes, tensor_names, upgraded
from camrt.graph.view import GraphView, bodies, check_values, described, metadata_of, shortened, skeleton
from converters.model import bytes_of

ModelLike: TypeAlias = onnx.ModelProto | str | os.PathLike[str]
_CHECKED = 1 << 20  # bytes; weights up to here are read to see whether they are whole
_OLDEST_IR = 4  # before it, initializers had to be inputs as well


def open_model(model: ModelLike, reserved: Collection[str] = ()) -> GraphView:
    """Open a model for everything else in `camrt.graph`.

    Its nodes are sorted, its functions inlined, its operator set is raised to 17 where it is below 13, and operators on
    quantized numbers become floating-point ones between QuantizeLinear and DequantizeLinear.

    Args:
        model: A model or the path of one. Not changed.
        reserved: Names that tensors of the model must not have; one that ends in ``/`` stands for all that begin with
            it. Tensors that have one are renamed: see `GraphView.renamed`.

    Returns:
        The opened model. Where nothing had to be done, its ``model`` is the one that was given, not a copy.

    Raises:
        CamrtError: There is no such file, it is no ONNX model, or the model is not valid: onnx's checker refuses it, it
            has a cycle, or its functions cannot be inlined.

    Example:
        >>> view = open_model("resnet50.onnx")  # doctest: +SKIP
        >>> view.shapes[view.outputs[0]]  # doctest: +SKIP
        ('batch', 1000)
    """
    with naming(model):
        return _opened(model if isinstance(model, onnx.ModelProto) else read_model(model), reserved)


@contextlib.contextmanager
def naming(model: ModelLike) -> Iterator[None]:
    """Name the model's file in the errors of a block, where the model is a path."""
    try:
        yield
    except CamrtError as error:
        if isinstance(model, (str, os.PathLike)):
            raise error.in_file(os.fspath(model)) from error.__cause__
        raise


def read_model(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read an ONNX file, with its external data.

    Raises:
        CamrtError: There is no such file, or it is no ONNX model.
    """
    try:
        file = Path(path)
    except TypeError:
        raise CamrtError(
            f"found a model of type {type(path).__name__}, expected an onnx.ModelProto or a path"
        ) from None
    if file.suffix in (".prototxt", ".caffemodel"):
        raise CamrtError(
            "found a Caffe network, expected an ONNX model: camrt convert deploy.prototxt net.caffemodel -o net.onnx",
            file=str(path),
        )
    if not file.is_file():
        raise CamrtError("there is no such file, expected an ONNX model", file=str(path))
    try:
        return onnx.load(file)
    except Exception as error:  # what protobuf and onnx raise at a broken file has no common base
        raise CamrtError(f"is no ONNX model that can be read ({shortened(error)})", file=str(path)) from error


def check_model(model: onnx.ModelProto, what: str, *, full: bool = True) -> None:
    """Run onnx's checker without the large weights.

    Args:
        model: A model.
        what: What to call it in an error.
        full: Whether the shapes are inferred, and must agree.

    Raises:
        CamrtError: The checker refuses it.
    """
    light = skeleton(model)
    if not full:  # the checker wants outputs to have a shape, which ONNX Runtime does not, and some exporters leave out
        outputs = [value for value in light.graph.output if value.type.tensor_type.HasField("shape")]
        del light.graph.output[:]
        light.graph.output.extend(outputs)
    try:
        onnx.checker.check_model(light, full_check=full)
    except Exception as error:  # ValidationError, InferenceError, and whatever else its C++ raises
        raise CamrtError(f"onnx's checker refuses {what}: {shortened(error)}") from error


def _opened(model: onnx.ModelProto, reserved: Collection[str]) -> GraphView:
    try:
        return _ready(model, reserved)
    except CamrtError:
        raise
    except Exception as error:  # a message that protobuf itself cannot handle: text that is no UTF-8, too deep nesting
        raise CamrtError(f"is no valid ONNX model ({shortened(error)})") from error


def _ready(model: onnx.ModelProto, reserved: Collection[str]) -> GraphView:
    _check_names(model)
    _check_weights(model)
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        _check_splits(nodes)
    light = skeleton(model)
    changed = sort_nodes(light.graph)
    if model.ir_version < _OLDEST_IR:
        light.ir_version, changed = max(_OLDEST_IR, helper.find_min_ir_version_for(light.opset_import, True)), True
    check_functions(light)
    check_model(light, "the model", full=False)
    if light.functions:
        light, changed = inlined(light), True
        sort_nodes(light.graph)
    newer = upgraded(light)
    light, changed = newer, changed or newer is not light
    changed = quantized.rewritten(light) or changed
    changed = attention.unfused(light) or changed
    renamed = clashes(light, reserved)
    if not (changed or renamed):
        return GraphView(model)
    whole = _with_weights(light, model)
    if renamed:
        rename_tensors(whole.graph, renamed)
    return GraphView(whole, renamed)


def _check_names(model: onnx.ModelProto) -> None:
    """Names and metadata must be text: Protocol Buffers reads what is no UTF-8 as bytes."""
    names = [*tensor_names(model.graph), *(text for item in metadata_of(model).items() for text in item)]
    names += [text for node in model.graph.node for text in (node.name, node.op_type, node.domain)]
    for name in names:
        if not isinstance(name, str):
            raise CamrtError(f"found the name {name!r}, expected text in UTF-8")


def _check_splits(nodes: Iterable[onnx.NodeProto]) -> None:
    """A Split must have as many outputs as it says: onnx's shape inference ends the process where it has more."""
    for node in nodes:
        parts = next((one.i for one in node.attribute if one.name == "num_outputs"), len(node.output))
        if node.op_type == "Split" and parts != len(node.output):
            raise CamrtError(
                f"found the node {described(node)} with num_outputs {parts} and {len(node.output)} outputs"
            )
        for body in bodies(node):
            _check_splits(body.node)


def _check_weights(model: onnx.ModelProto) -> None:
    """Weights must be in the message, and their values fit their shapes. The checker does not see the large ones."""
    seen = set[str]()
    for tensor in model.graph.initializer:
        if tensor.name in seen:
            raise CamrtError(f"found two initializers {tensor.name!r}, expected one of each name")
        seen.add(tensor.name)
    constants = [one.t for node in model.graph.node for one in node.attribute if one.HasField("t")]
    for tensor in (*model.graph.initializer, *constants):
        if tensor.data_location == TensorProto.EXTERNAL:
            place = next((entry.value for entry in tensor.external_data if entry.key == "location"), "another file")
            raise CamrtError(
                f"found the weights {tensor.name!r}, whose values are in {place!r} and not loaded, expected a model "
                "with all its weights: give the model's path, or read it with onnx.load"
            )
        if tensor.data_type not in TensorProto.DataType.values() or any(size < 0 for size in tensor.dims):
            raise CamrtError(
                f"found the weights {tensor.name!r} of type {tensor.data_type} and shape {tuple(tensor.dims)}, which "
                "is no type or shape of ONNX"
            )
        if (
            bytes_of(tensor) <= _CHECKED
        ):  # Protocol Buffers copies what is read: large ones are checked where they are used
            check_values(tensor)


def _with_weights(light: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """A rewritten skeleton with the model's large weights as initializers again."""
    present = {tensor.name for tensor in light.graph.initializer}
    large = [tensor for tensor in model.graph.initializer if tensor.name not in present]
    names = {tensor.name for tensor in large}
    inputs = [value for value in light.graph.input if value.name not in names]
    del light.graph.input[:]
    light.graph.input.extend(inputs)
    light.graph.initializer.extend(large)
    return light
