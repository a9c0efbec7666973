"""Graphs of a fixed batch size, and what keeps a graph from running as one CUDA graph.

A CUDA graph is a list of kernels that a GPU launches at once. So it needs fixed sizes, no control flow, and a kernel on
the GPU for each node. ONNX Runtime checks this when it loads a model (`camrt.engines.onnxruntime.CudaGraphs` falls back
aloud); here it is checked before, without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from camrt.errors import CamrtError
from camrt.graph.inference import infer
from camrt.graph.view import bodies, captured, described, operator_of, skeleton
from converters.model import split


def with_fixed_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """Fix the number of images, and compute what follows from it.

    Nodes whose results depend on sizes alone become constants: Shape, and what exporters compute from it.

    Args:
        model: An explainer, or another model whose inputs have a free first size. Not changed.
        batch: The number of images.

    Returns:
        A model that takes ``batch`` images, no more and no fewer.

    Raises:
        CamrtError: ``batch`` is below 1, or the inputs have another fixed batch.

    Example:
        >>> camrt.graph.with_fixed_batch(explainer, 16)  # doctest: +SKIP
    """
    if batch < 1:
        raise CamrtError(f"found a batch of {batch}, expected at least 1")
    header, large = split(model)
    graph = header.graph
    names = {tensor.name for tensor in model.graph.initializer}
    free = fix_batch([value for value in graph.input if value.name not in names], batch)
    for value in graph.output:
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in free:
                size.dim_value = batch
    del graph.value_info[:]  # it holds the free size
    graph.initializer.extend(large)
    values = infer(skeleton(header), {tensor.name: tensor for tensor in graph.initializer}).values
    kept = [node for node in graph.node if not _is_known(node, values, {value.name for value in graph.output})]
    read = {name for node in kept for name in (*node.input, *captured(node))}
    made = {name for node in graph.node for name in node.output}
    del graph.node[:]
    graph.node.extend(kept)
    still_made = {name for node in kept for name in node.output}
    known = sorted((read & made) - still_made)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(values[name]), name) for name in known)
    for index in reversed([i for i, tensor in enumerate(graph.initializer) if tensor.name not in read]):
        del graph.initializer[index]
    return header


def fix_batch(inputs: Iterable[onnx.ValueInfoProto], batch: int) -> set[str]:
    """Fix the first size of each input; returns the names that it had."""
    free = set()
    for value in inputs:
        first = value.type.tensor_type.shape.dim[0]
        if first.HasField("dim_value") and first.dim_value != batch:
            raise CamrtError(
                f"found the input {value.name!r} for {first.dim_value} images, expected a free batch or {batch}"
            )
        free.add(first.dim_param)
        first.dim_value = batch
    return free - {""}


def _is_known(node: onnx.NodeProto, values: Mapping[str, np.ndarray], outputs: set[str]) -> bool:
    return all(name in values and name not in outputs for name in node.output if name) and not any(bodies(node))


# --------------------------------------------------------------------------------------------------------- CUDA graphs

_FLOATS = frozenset({"float16", "float", "double"})
_INDICES = _FLOATS | {"int32", "int64"}
_NUMBERS = _INDICES | {"int8", "uint8", "int16", "uint16", "uint32", "uint64", "bfloat16"}
_ALL = _NUMBERS | {"bool"}
# The element types that ONNX Runtime's CUDA provider has kernels for, and the operators, from opset 13 on. The type is
# that of the first input (of Where and OneHot, of what they choose from). After docs/OperatorKernels.md of onnxruntime,
# commit 001d12d (2026); scripts/cuda_placement.py checks our graphs against the kernels of onnxruntime-gpu 1.31.1.
# Left out are bfloat16, unless an operator takes every type, and operators that no classifier has.
_OPERATORS: Sequence[tuple[frozenset[str], str]] = (
    (
        _FLOATS,
        "ArgMax ArgMin AveragePool BatchNormalization Ceil Conv ConvTranspose Cos DepthToSpace Dropout Einsum Elu Erf "
        "Exp Floor Gelu Gemm GlobalAveragePool GlobalMaxPool HardSigmoid HardSwish InstanceNormalization IsNaN LRN "
        "LayerNormalization LeakyRelu Log LogSoftmax MatMul PRelu Reciprocal ReduceLogSum ReduceLogSumExp "
        "ReduceSumSquare Relu Round Selu Sigmoid Sin Softmax Softplus Softsign SpaceToDepth Sqrt Sum Tanh "
        "ThresholdedRelu",
    ),
    (_FLOATS - {"float16"}, "IsInf RoiAlign"),
    (_FLOATS | {"bool"}, "Pad"),
    (_FLOATS | {"bool", "int64"}, "GatherND"),
    (_FLOATS | {"int32"}, "ReduceL1 ReduceL2 ReduceMean ReduceProd"),
    (_FLOATS | {"int32", "uint8"}, "Resize"),
    (_FLOATS | {"int8", "uint8"}, "MaxPool"),
    (_FLOATS | {"int8", "uint8", "int64", "uint64"}, "Clip"),
    (_INDICES, "Pow ReduceMax ReduceSum Tile TopK"),
    (_INDICES | {"uint8"}, "Where"),
    (_INDICES | {"int8", "uint8"}, "ReduceMin"),
    (_INDICES | {"int8", "int16"}, "Neg"),
    (_INDICES | {"uint32", "uint64"}, "CumSum Greater GreaterOrEqual Less LessOrEqual Max Min Mod"),
    (_INDICES | {"bool", "uint32", "uint64"}, "Equal"),
    (_NUMBERS, "Abs Add Div Mul Sign Sub"),
    (frozenset({"bool"}), "And Not Or Xor"),
    (frozenset({"float"}), "GridSample"),
    (frozenset({"float", "float16", "int64"}), "OneHot"),
    (
        _ALL,
        "Cast Concat ConstantOfShape Expand Flatten Gather GatherElements Identity Reshape ScatterElements ScatterND "
        "Slice Split Squeeze Transpose Unsqueeze",
    ),
)
_KERNELS = {operator: types for types, names in _OPERATORS for operator in names.split()}
_TYPED_BY = {"Where": 1, "OneHot": 2}  # the input that chooses the kernel, where it is not the first
# Their kernels are there and stop a CUDA graph: the size of what they give comes from the GPU, or is computed on the
# CPU. In a graph of fixed sizes camrt and most exporters leave none of them.
_COMPUTED = "a size that is computed"
_WAITING = frozenset({"NonZero", "Compress", "Range", "Shape", "Size", "SequenceAt"})


@dataclass(frozen=True)
class Obstacle:
    """A node that keeps a graph from running as one CUDA graph.

    Attributes:
        node: The node, for people.
        reason: Why: ``"control flow"``, ``"no kernel for float on CUDA"``, ``"a size that is computed"``.
    """

    node: str
    reason: str

    def __str__(self) -> str:
        return f"{self.node}: {self.reason}"


def cuda_graph_obstacles(model: onnx.ModelProto) -> list[Obstacle]:
    """Find what keeps a model from running as one CUDA graph on ONNX Runtime.

    Args:
        model: A model of a fixed batch size (`with_fixed_batch`), with its nodes in topological order.

    Returns:
        The nodes at fault, those in bodies of loops included; empty where there is none.
    """
    found = infer(skeleton(model), {tensor.name: tensor for tensor in model.graph.initializer})
    return list(_obstacles(model.graph, found.types))


def _obstacles(graph: onnx.GraphProto, types: Mapping[str, int], *, is_body: bool = False) -> Iterator[Obstacle]:
    for node in graph.node:
        inner = list(bodies(node))
        for body in inner:
            yield from _obstacles(body, {}, is_body=True)
        reason = "control flow" if inner else _reason(node, types)
        if reason and not (is_body and reason == _COMPUTED):  # the loop around it is the obstacle
            yield Obstacle(described(node), reason)


def _reason(node: onnx.NodeProto, types: Mapping[str, int]) -> str:
    operator = operator_of(node)
    if operator == "Constant":
        return ""
    if operator in _WAITING:
        return _COMPUTED
    if operator not in _KERNELS:
        return "no kernel on CUDA"
    index = _TYPED_BY.get(operator, 0)
    name = node.output[0] if operator == "ConstantOfShape" else node.input[index]
    kind = types.get(name, TensorProto.UNDEFINED)
    if kind == TensorProto.UNDEFINED:  # in the body of a loop
        return ""
    spelled = TensorProto.DataType.Name(kind).lower()
    return "" if spelled in _KERNELS[operator] else f"no kernel for {spelled} on CUDA"
