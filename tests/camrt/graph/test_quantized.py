"""Networks that ONNX Runtime's tools quantized: heads, features, maps and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from camrt.errors import CamrtError
from camrt.graph import differentiate, explain_graph
from camrt.graph.explain import MAPS, describe
from camrt.graph.opening import open_model
from camrt.graph.view import GraphView, dequantized
from tests.camrt.classifiers import SIDE, classifier
from tests.camrt.graph.explainers import PREPROCESS, images, run, with_output

tools = pytest.importorskip(
    "onnxruntime.quantization", reason="onnxruntime.quantization cannot be imported: quantized networks are not tested"
)
HEADS = ("gemm", "gemm_columns", "matmul", "convolution_after", "convolution_before")
FORMS = ("qdq", "qdq of int8", "qdq a tensor", "operators", "dynamic")


class Calibration(tools.CalibrationDataReader):  # type: ignore[misc]
    """Pixels less their mean."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.batches: Iterator[dict[str, Any]] = iter(
            [{"data": generator.integers(-110, 140, (2, 3, SIDE, SIDE)).astype(np.float32)} for _ in range(4)]
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


def quantize(model: onnx.ModelProto, form: str, folder: Path) -> onnx.ModelProto:
    """A copy of a model, as a tool of ONNX Runtime quantizes it."""
    source, file = onnx.ModelProto(), folder / "quantized.onnx"
    source.CopyFrom(model)
    if form == "dynamic":
        tools.quantize_dynamic(source, file)
    else:
        tools.quantize_static(
            source, file, Calibration(),
            quant_format=tools.QuantFormat.QOperator if form == "operators" else tools.QuantFormat.QDQ,
            per_channel=form != "qdq a tensor",
            activation_type=tools.QuantType.QInt8 if form == "qdq of int8" else tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
        )  # fmt: skip
    return onnx.load(file)


def scale_of(model: onnx.ModelProto, output: str) -> float:
    """The distance of two neighboring values of a dequantized output."""
    view = GraphView(model)
    values = view.constant(view.producers[output].input[1])
    assert values is not None
    return float(values)


def explained(model: onnx.ModelProto, method: str, *tensors: str) -> list[np.ndarray]:
    explainer = explain_graph(model, method, "center", target=[0, 2], preprocess=PREPROCESS)
    return run(with_output(explainer, *tensors), {"image": images(3)})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_the_explainer_says_that_the_network_is_quantized(form: str, tmp_path: Path) -> None:
    model = classifier("gemm")
    assert "precision" not in describe(explain_graph(model, "cam", "center", preprocess=PREPROCESS))
    small = quantize(model, form, tmp_path)
    assert describe(explain_graph(small, "cam", "center", preprocess=PREPROCESS))["precision"] == "int8"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("head", HEADS)
def test_maps_are_those_of_the_network_before(head: str, form: str, tmp_path: Path) -> None:
    """By every method without gradients, and where there are gradients by Grad-CAM."""
    model = classifier(head, metadata={"camrt.features": "features"})
    small = quantize(model, form, tmp_path)
    assert {node.op_type for node in small.graph.node} & {
        "QuantizeLinear", "QLinearConv", "DynamicQuantizeLinear"
    }  # fmt: skip
    for method in ("cam", "eigencam", "scorecam", *(() if form == "dynamic" else ("gradcam",))):
        wanted, found = (explained(one, method)[2] for one in (model, small))
        pairs = zip(wanted.reshape(6, -1), found.reshape(6, -1), strict=True)
        correlations = [np.corrcoef(a, b)[0, 1] for a, b in pairs if a.any()]
        assert correlations
        assert min(correlations) > 0.995, (method, correlations)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["qdq", "qdq of int8", "operators"])
def test_cam_is_made_of_the_dequantized_weights_and_features(form: str, tmp_path: Path) -> None:
    model = classifier("gemm", metadata={"camrt.features": "features"})
    small = quantize(model, form, tmp_path)
    explainer = explain_graph(small, "cam", "center", target=[0, 2], preprocess=PREPROCESS)
    layer = describe(explainer)["features"]
    features, maps = run(with_output(explainer, str(layer), MAPS), {"image": images(3)})[3:]
    assert features.min() == 0  # the bounds of quantization stand for the ReLU
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in small.graph.initializer}
    weights = stored["fc.weight_quantized"].astype(np.float32) * stored["fc.weight_scale"].reshape(-1, 1)
    wanted = np.einsum("kc,nchw->nkhw", weights[[0, 2]], features)
    np.testing.assert_allclose(maps[:, 0], wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("head", ["gemm", "gemm_columns", "matmul", "convolution_before", "flattened"])
def test_operators_on_integers_compute_the_same(head: str, tmp_path: Path) -> None:
    """But for the last bit, where both round."""
    small = quantize(classifier(head, softmax=False), "operators", tmp_path)
    opened = open_model(small).model
    kinds = {node.op_type for node in opened.graph.node}
    assert kinds >= {"QuantizeLinear", "DequantizeLinear", "Conv"}
    assert not any("QLinear" in kind or kind == "QGemm" for kind in kinds)
    batch = {"data": np.random.default_rng(1).integers(-110, 140, (4, 3, SIDE, SIDE)).astype(np.float32)}
    (wanted,), (found,) = run(small, batch), run(opened, batch)
    scale = scale_of(small, "logits")
    assert np.abs(found - wanted).max() <= 1.01 * scale
    assert wanted.std() > 10 * scale


@pytest.mark.filterwarnings("ignore")
def test_a_network_of_blocks(tmp_path: Path) -> None:
    """Sums, products, gates, joined channels and pooling of integers."""
    rng, kernels = np.random.default_rng(2), {}
    for name, shape in {"w1": (4, 3, 3, 3), "w2": (4, 4, 1, 1), "w3": (5, 8, 1, 1)}.items():
        kernels[name] = rng.normal(0, 0.3, shape).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["data", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["b", "w2"], ["c"]),
        helper.make_node("Sigmoid", ["c"], ["d"]),
        helper.make_node("Mul", ["c", "d"], ["e"]),
        helper.make_node("Add", ["e", "b"], ["f"]),
        helper.make_node("LeakyRelu", ["f"], ["g"], alpha=0.1),
        helper.make_node("Concat", ["g", "b"], ["h"], axis=1),
        helper.make_node("AveragePool", ["h"], ["i"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["i", "w3"], ["j"]),
        helper.make_node("GlobalAveragePool", ["j"], ["k"]),
        helper.make_node("Flatten", ["k"], ["logits"]),
    ]
    data = helper.make_tensor_value_info("data", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 5])
    weights = [numpy_helper.from_array(values, name) for name, values in kernels.items()]
    graph = helper.make_graph(nodes, "blocks", [data], [logits], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    small = quantize(model, "operators", tmp_path)
    kinds = {node.op_type for node in small.graph.node}
    assert kinds >= {"QLinearConv", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearSigmoid", "QLinearLeakyRelu",
                     "QLinearAveragePool", "MaxPool"}  # fmt: skip
    opened = open_model(small)
    assert not any(node.domain for node in opened.model.graph.node)
    batch = {"data": rng.integers(-110, 140, (4, 3, SIDE, SIDE)).astype(np.float32)}
    (wanted,), (found,), (whole,) = (run(one, batch) for one in (small, opened.model, model))
    scale = scale_of(small, "logits")
    assert np.abs(found - wanted).max() <= 2.01 * scale
    assert whole.std() > 10 * scale


@pytest.mark.filterwarnings("ignore")
def test_a_gradient_through_a_dynamic_quantizer_is_refused(tmp_path: Path) -> None:
    small = quantize(classifier("gemm"), "dynamic", tmp_path)
    with pytest.raises(CamrtError, match="without a rule: DynamicQuantizeLinear"):
        explain_graph(small, "gradcam", "center", preprocess=PREPROCESS)


@pytest.mark.filterwarnings("ignore")
def test_metadata_of_features_that_are_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = quantize(classifier("gemm", metadata={"camrt.features": "gone"}), "qdq", tmp_path)
    caplog.set_level("INFO")
    explained(small, "cam")
    assert "'gone', which the model does not have" in caplog.text


def test_blockwise_and_transposed_weights_of_a_head() -> None:
    """Against onnx's reference evaluator, which computes these nodes in its own way."""
    generator = np.random.default_rng(3)
    values = generator.integers(-128, 128, (4, 6)).astype(np.int8)
    scales = generator.uniform(0.1, 1, (4, 3)).astype(np.float32)
    points = generator.integers(-5, 5, (4, 3)).astype(np.int8)
    node = helper.make_node("DequantizeLinear", ["x", "s", "z"], ["y"], axis=1, block_size=2)
    evaluator = onnx.reference.ReferenceEvaluator(
        helper.make_model(
            helper.make_graph(
                [node], "", [onnx.ValueInfoProto(name=name) for name in "xsz"], [onnx.ValueInfoProto(name="y")]
            ),
            opset_imports=[helper.make_opsetid("", 21)],
        )
    )
    (wanted,) = evaluator.run(None, {"x": values, "s": scales, "z": points})
    np.testing.assert_allclose(dequantized(values, scales, points, axis=1, block_size=2), wanted, rtol=1e-6)


# ------------------------------------------------------------------------------------------------------------ gradients

torch_cases = [
    ("int8", (), 0), ("uint8", (), 120), ("int8", (4,), 0), ("int8", (4,), 3),
]  # fmt: skip


def fake_quantized(kind: str, scale: np.ndarray, zero_point: np.ndarray) -> onnx.ModelProto:
    """x -> QuantizeLinear -> DequantizeLinear -> y, (N, 4, 5)."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["q"], axis=1),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["y"], axis=1),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4, 5]) for name in "xy"]
    points = numpy_helper.from_array(zero_point.astype(kind), "zero_point")
    graph = helper.make_graph(nodes, "fake", ends[:1], ends[1:], [numpy_helper.from_array(scale, "scale"), points])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("kind", "shape", "zero_point"), torch_cases)
def test_gradient_is_that_of_pytorchs_fake_quantization(kind: str, shape: tuple[int, ...], zero_point: int) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: gradients are not compared with its own")
    generator = np.random.default_rng(4)
    scale = np.asarray(generator.uniform(0.01, 0.03, shape), np.float32)
    points = np.full(shape, zero_point)
    x, seed = (generator.normal(0, 2, (3, 4, 5)).astype(np.float32) for _ in range(2))
    model = differentiate(fake_quantized(kind, scale, points), "y", "x", "seed")
    y, gradient = run(model, {"x": x, "seed": seed}, ["y", "gradient/x"])
    leaf, bounds = torch.from_numpy(x).requires_grad_(), np.iinfo(kind)
    if shape:
        fake = torch.fake_quantize_per_channel_affine(
            leaf, torch.from_numpy(scale), torch.from_numpy(points.astype(np.int32)), 1, bounds.min, bounds.max
        )
    else:
        fake = torch.fake_quantize_per_tensor_affine(leaf, float(scale), zero_point, bounds.min, bounds.max)
    fake.backward(torch.from_numpy(seed))
    np.testing.assert_allclose(y, fake.detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-6)
    assert 0 < np.count_nonzero(gradient) < gradient.size


def test_a_gradient_by_a_scale_is_refused() -> None:
    model = fake_quantized("int8", np.float32(0.1).reshape(()), np.array(0))
    with pytest.raises(CamrtError, match="depends on a quantization's scale"):
        differentiate(model, "y", "scale")


def test_weights_quantized_in_the_graph_are_constants() -> None:
    """As a MatMul's, which are dequantized, transposed, and quantized again."""
    generator = np.random.default_rng(6)
    weights, scale = generator.normal(0, 1, (4, 6)).astype(np.float32), np.float32(0.01)
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["d"]),
        helper.make_node("Transpose", ["d"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["data", "t"], ["logits"], "fc"),
    ]
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(scale, "s")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    wanted = np.clip(np.rint(weights / scale), 0, 255) * scale
    found = GraphView(model).constant("t")
    assert found is not None
    np.testing.assert_allclose(found, wanted.T, rtol=1e-6)
