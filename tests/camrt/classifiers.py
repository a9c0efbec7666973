"""Small classifiers of each form that a head can have, as exporters write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from camrt.graph.methods import find

SIDE, CHANNELS, CLASSES = 16, 6, 4


def suited(method: str, **options: Any) -> onnx.ModelProto:
    """A classifier that a method can explain."""
    return classifier("attention" if find(method).tokens else "gemm", **options)


def classifier(
    head: str,
    *,
    batch: int | str = "batch",
    side: int = SIDE,
    softmax: bool = True,
    opset: int = 17,
    metadata: dict[str, str] | None = None,
    seed: int = 0,
) -> onnx.ModelProto:
    """A convolution, a ReLU and one of the heads of `HEADS` on top, or ``"attention"``."""
    generator = np.random.default_rng(seed)
    weights = {
        "conv.weight": generator.normal(0, 0.02, (CHANNELS, 3, 3, 3)),
        "conv.bias": generator.normal(0, 0.1, CHANNELS),
    }
    nodes = [
        helper.make_node(
            "Conv", ["data", "conv.weight", "conv.bias"], ["conv"], "conv", pads=[1, 1, 1, 1], strides=[2, 2]
        ),
        helper.make_node("Relu", ["conv"], ["features"], "relu"),
    ]
    nodes += {**HEADS, "attention": _attention}[head](weights, generator, batch, side)
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["prob"], "prob", axis=1))
    graph = helper.make_graph(
        nodes,
        head,
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, [batch, 3, side, side])],
        [helper.make_tensor_value_info("prob" if softmax else "logits", TensorProto.FLOAT, [batch, CLASSES])],
        [numpy_helper.from_array(v if v.dtype == np.int64 else v.astype(np.float32), n) for n, v in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = helper.find_min_ir_version_for(model.opset_import)
    helper.set_model_props(model, metadata or {})
    onnx.checker.check_model(model, full_check=True)
    return model


Nodes = list[onnx.NodeProto]
Weights = dict[str, np.ndarray]


def _matrix(weights: Weights, generator: np.random.Generator, shape: Sequence[int]) -> None:
    weights["fc.weight"] = generator.normal(0, 1, shape)
    weights["fc.bias"] = generator.normal(0, 0.1, CLASSES)


def _gemm(weights: Weights, generator: np.random.Generator, batch: int | str, side: int) -> Nodes:
    _matrix(weights, generator, (CLASSES, CHANNELS))
    return [
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten", axis=1),
        helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["logits"], "fc", transB=1),
    ]


def _gemm_columns(weights: Weights, generator: np.random.Generator, batch: int | str, side: int) -> Nodes:
    """Keras's way: the matrix is (channels, classes); and a Reshape that holds the batch of the export."""
    _matrix(weights, generator, (CHANNELS, CLASSES))
    weights["shape"] = np.array([batch if isinstance(batch, int) else -1, CHANNELS])
    return [
        helper.make_node("AveragePool", ["features"], ["pooled"], "pool", kernel_shape=[side // 2, side // 2]),
        helper.make_node("Reshape", ["pooled", "shape"], ["flat"], "reshape"),
        helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["logits"], "fc"),
    ]


def _matmul(weights: Weights, generator: np.random.Generator, batch: int | str, side: int) -> Nodes:
    """PyTorch's newer exporter: ReduceMean, and a transposed matrix in a MatMul."""
    _matrix(weights, generator, (CLASSES, CHANNELS))
    return [
        helper.make_node("ReduceMean", ["features"], ["flat"], "mean", axes=[2, 3], keepdims=0),
        helper.make_node("Transpose", ["fc.weight"], ["fc.weight.T"], "transpose", perm=[1, 0]),
        helper.make_node("MatMul", ["flat", "fc.weight.T"], ["product"], "matmul"),
        helper.make_node("Add", ["product", "fc.bias"], ["logits"], "add"),
    ]


def _convolution_after(weights: Weights, generator: np.random.Generator, batch: int | str, side: int) -> Nodes:
    _matrix(weights, generator, (CLASSES, CHANNELS, 1, 1))
    return [
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"], "pool"),
        helper.make_node("Conv", ["pooled", "fc.weight", "fc.bias"], ["scored"], "fc"),
        helper.make_node("Flatten", ["scored"], ["logits"], "flatten", axis=1),
    ]


def _convolution_before(weights: Weights, generator: np.random.Generator, batch: int | str, side: int) -> Nodes:
    """SqueezeNet: dropout, a 1x1 convolution with a ReLU, pooling."""
    _matrix(weights, generator, (CLASSES, CHANNELS, 1, 1))
    return [
        helper.make_node("Dropout", ["features"], ["dropped"], "dropout"),
        helper.make_node("Conv", ["dropped", "fc.weight", "fc.bias"], ["scored"], "fc"),
        helper.make_node("Relu", ["scored"], ["positive"], "last_relu"),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["logits"], "flatten", axis=1),
    ]


def _two_layers(weights: Weights, generator: np.random.Generator, batch: int | str, side: int) -> Nodes:
    """VGG, MobileNet v3: another layer between pooling and scores."""
    nodes = _gemm(weights, generator, batch, side)
    nodes[-1].output[0] = "hidden"
    weights["fc2.weight"] = generator.normal(0, 1, (CLASSES, CLASSES))
    return [
        *nodes,
        helper.make_node("Relu", ["hidden"], ["rectified"], "relu2"),
        helper.make_node("Gemm", ["rectified", "fc2.weight"], ["logits"], "fc2", transB=1),
    ]


def _flattened(weights: Weights, generator: np.random.Generator, batch: int | str, side: int) -> Nodes:
    """LeNet: no pooling, every place has weights of its own."""
    _matrix(weights, generator, (CLASSES, CHANNELS * (side // 2) ** 2))
    return [
        helper.make_node("Flatten", ["features"], ["flat"], "flatten", axis=1),
        helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["logits"], "fc", transB=1),
    ]


def _attention(weights: Weights, generator: np.random.Generator, batch: int | str, side: int) -> Nodes:
    """A transformer's block on the positions, without a class token: attention of two heads, and the mean."""
    for name in ("query", "key", "value"):
        weights[name] = generator.normal(0, 1, (CHANNELS, CHANNELS))
    weights |= {
        "tokens": np.array([0, CHANNELS, -1]), "heads": np.array([0, -1, 2, CHANNELS // 2]),
        "joined": np.array([0, -1, CHANNELS]),
    }  # fmt: skip
    _matrix(weights, generator, (CLASSES, CHANNELS))
    nodes = [
        helper.make_node("Reshape", ["features", "tokens"], ["rows"], "rows"),
        helper.make_node("Transpose", ["rows"], ["x"], "columns", perm=[0, 2, 1]),
    ]
    for name in ("query", "key", "value"):
        order = [0, 2, 3, 1] if name == "key" else [0, 2, 1, 3]
        nodes += [
            helper.make_node("MatMul", ["x", name], [f"{name}.all"], name),
            helper.make_node("Reshape", [f"{name}.all", "heads"], [f"{name}.heads"], f"{name}.split"),
            helper.make_node("Transpose", [f"{name}.heads"], [f"{name}.each"], f"{name}.order", perm=order),
        ]
    return [
        *nodes,
        helper.make_node("MatMul", ["query.each", "key.each"], ["alike"], "alike"),
        helper.make_node("Softmax", ["alike"], ["attention"], "attention", axis=-1),
        helper.make_node("MatMul", ["attention", "value.each"], ["seen"], "seen"),
        helper.make_node("Transpose", ["seen"], ["seen.columns"], "seen.order", perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["seen.columns", "joined"], ["seen.all"], "join"),
        helper.make_node("Add", ["x", "seen.all"], ["y"], "residual"),
        helper.make_node("MatMul", ["y", "value"], ["z"], "last"),
        helper.make_node("Transpose", ["z"], ["z.rows"], "back", perm=[0, 2, 1]),
        helper.make_node("GlobalAveragePool", ["z.rows"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten", axis=1),
        helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["logits"], "fc", transB=1),
    ]


HEADS = {
    "gemm": _gemm,
    "gemm_columns": _gemm_columns,
    "matmul": _matmul,
    "convolution_after": _convolution_after,
    "convolution_before": _convolution_before,
    "two_layers": _two_layers,
    "flattened": _flattened,
}
WITH_HEAD = ("gemm", "gemm_columns", "matmul", "convolution_after", "convolution_before")
