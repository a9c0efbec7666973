"""A classifier and an explainer of a few numbers, written node by node: what camrt's run-time tests run on."""

from __future__ import annotations

import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS, CLASSES = 6, 7
LABELS = tuple(f"class <{number}> & co" for number in range(CLASSES))


def tiny_classifier(side: int = 28, *, labels: bool = True) -> onnx.ModelProto:
    """Convolution, ReLU, global average pooling, linear layer, softmax; with camrt's metadata.

    Args:
        side: The side of its input in pixels.
        labels: Whether it carries names of its classes.
    """
    nodes = [
        helper.make_node("Conv", ["data", "w", "b"], ["conv"], "conv", strides=[4, 4], kernel_shape=[4, 4]),
        helper.make_node("Relu", ["conv"], ["relu"], "relu"),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"], "pool"),
        helper.make_node("Flatten", ["pool"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "fc_w", "fc_b"], ["logits"], "fc", transB=1),
        helper.make_node("Softmax", ["logits"], ["prob"], "prob", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["N", 3, side, side])],
        [helper.make_tensor_value_info("prob", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in _weights().items()],
    )
    preprocess = {"size": side + 4, "crop": side, "mean": [104, 117, 123], "scale": 1, "channels": "BGR"}
    properties = {"camrt.preprocess": json.dumps(preprocess), "camrt.features": "relu", "camrt.classifier": "fc"}
    if labels:
        properties["camrt.labels"] = json.dumps(LABELS)
    return _model(graph, properties)


def tiny_explainer(size: int = 32, top: int = 5, *, labels: bool = True) -> onnx.ModelProto:
    """What `camrt.explain_graph` promises: ``image`` in, ``scores``, ``classes`` and ``heatmaps`` out.

    The features are the means of 4 x 4 pixels, times a matrix, rectified; the maps are theirs, each number repeated.

    Args:
        size: The side of its input in pixels, a multiple of 4.
        top: How many classes it explains.
        labels: Whether it carries names of its classes.
    """
    cells = size // 4
    weights = _weights()
    constants = {
        "mean": np.full((1, 3, 1, 1), 110, np.float32),
        "w": weights["w"],
        "b": weights["b"],
        "fc_w": weights["fc_w"],
        "fc_b": weights["fc_b"],
        "top": np.array([top], np.int64),
        "flat_shape": np.array([0, CHANNELS, cells * cells], np.int64),
        "grid_shape": np.array([0, top, cells, cells], np.int64),
        "scales": np.array([1, 1, 4, 4], np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["planes", "mean"], ["data"]),
        helper.make_node("Conv", ["data", "w", "b"], ["conv"], strides=[4, 4], kernel_shape=[4, 4]),
        helper.make_node("Relu", ["conv"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc_w", "fc_b"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
        helper.make_node("TopK", ["scores", "top"], ["best", "classes"], axis=1),
        helper.make_node("Gather", ["fc_w", "classes"], ["chosen"], axis=0),
        helper.make_node("Reshape", ["features", "flat_shape"], ["columns"]),
        helper.make_node("MatMul", ["chosen", "columns"], ["cams"]),
        helper.make_node("Reshape", ["cams", "grid_shape"], ["grids"]),
        helper.make_node("Abs", ["grids"], ["magnitudes"]),
        helper.make_node("Resize", ["magnitudes", "", "scales"], ["heatmaps"], mode="nearest"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny explainer",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", size, size, 3])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", CLASSES]),
            helper.make_tensor_value_info("classes", TensorProto.INT64, ["N", top]),
            helper.make_tensor_value_info("heatmaps", TensorProto.FLOAT, ["N", top, size, size]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    facts = {"method": "cam", "protocol": "center", "top": top, "features": "features", "classifier": "fc_w"}
    properties = {"camrt.explainer": json.dumps({**facts, "size": size}), "camrt.name": "tiny"}
    if labels:
        properties["camrt.labels"] = json.dumps(LABELS)
    return _model(graph, properties)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Colours that change slowly, with noise: (height, width, 3) uint8 RGB."""
    rng = np.random.default_rng([seed, height, width])
    y, x = np.mgrid[:height, :width]
    phase = rng.uniform(0, 6.3, (2, 3))
    waves = np.sin(y[..., None] / height * 5 + phase[0]) + np.cos(x[..., None] / width * 7 + phase[1])
    return np.clip(128 + 55 * waves + rng.normal(0, 12, waves.shape), 0, 255).astype(np.uint8)


def _weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1512)
    shapes = {"w": (CHANNELS, 3, 4, 4), "b": (CHANNELS,), "fc_w": (CLASSES, CHANNELS), "fc_b": (CLASSES,)}
    spread = {"w": 0.02, "b": 4.0, "fc_w": 0.1, "fc_b": 0.1}
    return {name: (rng.normal(0, spread[name], shape)).astype(np.float32) for name, shape in shapes.items()}


def _model(graph: onnx.GraphProto, properties: dict[str, str]) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    helper.set_model_props(model, properties)
    onnx.checker.check_model(model, full_check=True)
    return model
