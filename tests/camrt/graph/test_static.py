from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from camrt.errors import CamrtError
from camrt.graph import cuda_graph_obstacles, explain_graph, with_fixed_batch
from camrt.graph.methods import METHODS
from camrt.preprocess import Preprocess
from tests.camrt.classifiers import SIDE, classifier, suited

PREPROCESS = Preprocess(SIDE + 4, SIDE, (104.0, 117.0, 123.0))
# They run the network again and again
LOOPS = (
    "scorecam", "smoothgrad", "integrated-gradients", "gradient-shap", "expected-gradients", "occlusion",
)  # fmt: skip


def run(model: onnx.ModelProto, images: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(["scores", "classes", "heatmaps"], {"image": images})
    return found


@pytest.mark.parametrize("protocol", ["ten-crop", "center", "full"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_and_protocol(method: str, protocol: str) -> None:
    """What ONNX Runtime itself finds without a GPU is printed by scripts/cuda_placement.py: the same."""
    model = explain_graph(suited(method), method, protocol, preprocess=PREPROCESS)
    fixed = with_fixed_batch(model, 3)
    onnx.checker.check_model(fixed, full_check=True)
    assert {value.type.tensor_type.shape.dim[0].dim_value for value in (*fixed.graph.input, *fixed.graph.output)} == {3}
    loops = method in LOOPS or (method, protocol) == ("recipro-cam", "full")  # 100 positions: two runs of 50
    assert {one.reason for one in cuda_graph_obstacles(fixed)} == ({"control flow"} if loops else set())
    images = np.random.default_rng(0).integers(0, 256, (3, SIDE + 4, SIDE + 4, 3), np.uint8)
    for found, expected in zip(run(fixed, images), run(model, images), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "arguments",
    [{"target": [1, 2]}, {"target": "sum"}, {"layer": ["features", "conv"]}, {"top": 1}, {"top": 4}],
    ids=str,
)
def test_every_target(arguments: dict[str, Any]) -> None:
    model = explain_graph(classifier("gemm"), "gradcam", preprocess=PREPROCESS, **arguments)
    assert not cuda_graph_obstacles(with_fixed_batch(model, 2))


@pytest.mark.parametrize("method", ["cam", "gradcam", "guided-backprop"])
def test_a_network_from_pytorch(method: str, reference: Path) -> None:
    model = explain_graph(reference / "squeezenet" / "squeezenet1_1.onnx", method, preprocess="torchvision")
    assert not cuda_graph_obstacles(with_fixed_batch(model, 2))


def graph_of(*nodes: onnx.NodeProto, kind: int = TensorProto.FLOAT, batch: int | str = "N") -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "graph", [value("x", kind, [batch, 4])], [value("y", kind, None)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_what_follows_from_sizes_is_computed() -> None:
    """A mean over all elements but those of the batch, as exporters write it."""
    node = helper.make_node
    model = graph_of(
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "one"], ["columns"]),
        node("Cast", ["columns"], ["number"], to=TensorProto.FLOAT),
        node("ReduceSum", ["x"], ["sum"]),
        node("Div", ["sum", "number"], ["y"]),
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "one"))
    assert [one.reason for one in cuda_graph_obstacles(model)] == ["a size that is computed"]
    fixed = with_fixed_batch(model, 2)
    assert [node.op_type for node in fixed.graph.node] == ["ReduceSum", "Div"]
    assert [tensor.name for tensor in fixed.graph.initializer] == ["number"]
    assert not cuda_graph_obstacles(fixed)


@pytest.mark.parametrize(
    ("operator", "kind", "reason"),
    [
        ("Relu", TensorProto.FLOAT, None),
        ("Relu", TensorProto.INT32, "no kernel for int32 on CUDA"),
        ("Abs", TensorProto.INT64, None),
        ("Mean", TensorProto.FLOAT, "no kernel on CUDA"),
        ("Tan", TensorProto.FLOAT, "no kernel on CUDA"),
    ],
)
def test_kernels(operator: str, kind: int, reason: str | None) -> None:
    model = graph_of(helper.make_node(operator, ["x"], ["y"], "it"), kind=kind, batch=2)
    assert [str(one) for one in cuda_graph_obstacles(model)] == ([f"'it' ({operator}): {reason}"] if reason else [])


def test_wrong_batches() -> None:
    with pytest.raises(CamrtError, match="found a batch of 0, expected at least 1"):
        with_fixed_batch(graph_of(helper.make_node("Relu", ["x"], ["y"])), 0)
    with pytest.raises(CamrtError, match="found the input 'x' for 5 images, expected a free batch or 2"):
        with_fixed_batch(graph_of(helper.make_node("Relu", ["x"], ["y"]), batch=5), 2)
    model = graph_of(helper.make_node("Relu", ["x"], ["y"]))
    before = model.SerializeToString()
    with_fixed_batch(model, 2)
    assert model.SerializeToString() == before
