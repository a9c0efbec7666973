from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import scipy.io
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from camrt.engines.half import halved
from camrt.graph import explain_graph
from camrt.graph.explain import MAPS
from camrt.preprocess import Preprocess
from converters import zoo
from tests.camrt.classifiers import SIDE, classifier
from tests.released import seeded
from tests.tiny_models import tiny_classifier

PREPROCESS = Preprocess(SIDE + 4, SIDE, (104.0, 117.0, 123.0))
PHOTOGRAPHS = ("squeezenet/cat.jpg", "matlab_demo/img1.jpg", "matlab_demo/img2.jpg")


def run(model: onnx.ModelProto, image: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: image}), strict=True))


def photographs(reference: Path, side: int) -> np.ndarray:
    return np.stack(
        [np.asarray(Image.open(reference / name).convert("RGB").resize((side, side))) for name in PHOTOGRAPHS]
    )


def correlations(found: np.ndarray, expected: np.ndarray) -> list[float]:
    maps = (one.reshape(-1, one.shape[-2] * one.shape[-1]) for one in (found, expected))
    return [float(np.corrcoef(*pair)[0, 1]) for pair in zip(*maps, strict=True)]


def types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return found | {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
    }


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("cam", {}), ("gradcam", {}), ("gradcam++", {}), ("layercam", {}), ("eigencam", {}), ("guided-backprop", {}),
        pytest.param("guided-gradcam", {}, marks=pytest.mark.slow),
        pytest.param("smoothgrad", {"samples": 4}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_maps_of_photographs(method: str, settings: dict[str, int], reference: Path) -> None:
    classifier = reference / "squeezenet" / "squeezenet1_1.onnx"
    model = explain_graph(classifier, method, "center", preprocess="torchvision", settings=settings)
    images = photographs(reference, model.graph.input[0].type.tensor_type.shape.dim[1].dim_value)
    found, expected = run(halved(model), images), run(model, images)
    np.testing.assert_array_equal(found["classes"], expected["classes"])
    assert min(correlations(found["heatmaps"], expected["heatmaps"])) >= 0.999
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16CAM", "alexnetplusCAM"])
def test_maps_of_caffe(name: str, reference: Path, tmp_path: Path) -> None:
    """The CAM networks at full size, ten crops, against real Caffe's maps."""
    facts, expected = zoo.find(name), np.load(reference / "nets" / name / "expected.npz")
    mean = scipy.io.loadmat(reference / "matlab_demo" / "ilsvrc_2012_mean.mat")["mean_data"].astype(np.float32)
    preprocess = Preprocess(
        256, facts.preprocessing.crop, (104.0, 117.0, 123.0), mean_image=mean.transpose(2, 1, 0).copy()
    )
    network = seeded(name, reference, tmp_path)
    for method in ("cam", "gradcam"):
        head = facts.classifier if method == "cam" else None
        model = explain_graph(
            network, method, "ten-crop", features=facts.features, classifier=head, preprocess=preprocess
        )
        model = halved(model)
        model.graph.output.append(onnx.ValueInfoProto(name=MAPS))
        image = cv2.imread(str(reference / "matlab_demo" / "img1.jpg"))[:, :, ::-1]
        found = run(model, np.ascontiguousarray(image[None]))
        assert found["classes"][0].tolist() == expected["top5"].tolist()
        np.testing.assert_allclose(found["scores"][0], expected["scores"].mean(axis=0), rtol=0.01, atol=1e-5)
        maps = expected["cams"] if method == "cam" else np.maximum(expected["cams"], 0)
        assert min(correlations(found[MAPS][0], maps)) >= 0.999


def test_what_stays_in_float32() -> None:
    model = halved(explain_graph(classifier("gemm"), "gradcam", "ten-crop", preprocess=PREPROCESS))
    kinds, seen = types(model), set[str]()
    products = {"Conv", "Gemm"}
    sums = {"Softmax", "GlobalAveragePool", "ReduceMean", "ReduceSum", "ScatterElements"}
    for node in model.graph.node:
        merges = {"camrt/rows", "camrt/columns"} & set(node.input)
        if node.op_type in products | sums or merges:
            expected = TensorProto.FLOAT16 if node.op_type in products else TensorProto.FLOAT
            assert {kinds[name] for name in node.input if kinds[name] != TensorProto.INT64} == {expected}, node.name
            seen |= {node.op_type, *merges}
    assert seen == {*products, *sums, "MatMul", "camrt/rows", "camrt/columns"}


def test_lrn_stays_in_float32() -> None:
    """The squares of its inputs leave float16's range at 256."""
    model = tiny_classifier()
    conv = model.graph.node[0]
    conv.output[0] = "plain"
    model.graph.node.insert(1, helper.make_node("LRN", ["plain"], ["conv"], "norm", size=5, alpha=1e-4))
    image = np.full((1, 3, 28, 28), 250, np.float32)
    changed = halved(model)
    assert types(changed)[changed.graph.node[3].input[0]] == TensorProto.FLOAT
    np.testing.assert_allclose(run(changed, image)["prob"], run(model, image)["prob"], rtol=0.01)


@pytest.mark.parametrize("method", ["cam", "guided-backprop", "scorecam", "smoothgrad", "integrated-gradients"])
def test_the_model_is_valid_and_keeps_its_interface(method: str) -> None:
    model = explain_graph(classifier("gemm"), method, preprocess=PREPROCESS)
    before = model.SerializeToString()
    changed = halved(model)
    assert model.SerializeToString() == before
    onnx.checker.check_model(changed, full_check=True)
    for part in ("input", "output"):
        assert list(getattr(changed.graph, part)) == list(getattr(model.graph, part))
    assert list(changed.metadata_props) == list(model.metadata_props)


def test_weights_are_there_once(reference: Path) -> None:
    model = onnx.load(reference / "squeezenet" / "squeezenet1_1.onnx")
    changed = halved(model)
    assert {tensor.data_type for tensor in changed.graph.initializer if len(tensor.dims) == 4} == {TensorProto.FLOAT16}
    sizes = [sum(len(tensor.raw_data) for tensor in one.graph.initializer) for one in (model, changed)]
    assert sizes[1] <= 0.51 * sizes[0]


def test_weights_beyond_float16() -> None:
    """A node stays in float32 whose weights float16 cannot hold; infinity it can."""
    model = tiny_classifier()
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * np.float32(1e7), "w"))
    changed = halved(model)
    kinds = types(changed)
    conv, gemm = (next(node for node in changed.graph.node if node.op_type == kind) for kind in ("Conv", "Gemm"))
    assert kinds[conv.input[1]] == TensorProto.FLOAT
    assert kinds[gemm.input[1]] == TensorProto.FLOAT16


def test_attention(tmp_path: Path) -> None:
    """LayerNormalization, attention and GELU, as a transformer has them, beside their parts in float32."""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(0, 0.1, (32, 96)), "scale": np.ones(32), "bias": np.zeros(32), "root": np.sqrt([32.0])}
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "bias"], ["n"], "norm", axis=-1),
        helper.make_node("MatMul", ["n", "w"], ["qkv"], "qkv"),
        helper.make_node("Split", ["qkv"], ["q", "k", "v"], "split", axis=-1),
        helper.make_node("Transpose", ["k"], ["kt"], "transpose", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["products"], "products"),
        helper.make_node("Div", ["products", "root"], ["scaled"], "scale"),
        helper.make_node("Softmax", ["scaled"], ["weights"], "softmax", axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["mixed"], "mix"),
        helper.make_node("Add", ["mixed", "x"], ["y"], "residual"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "attention", [value("x", TensorProto.FLOAT, ["N", 9, 32])], [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    changed = halved(model)
    kinds = types(changed)
    by_name = {node.name: kinds[node.input[0]] for node in changed.graph.node}
    assert {by_name[name] for name in ("qkv", "products", "mix", "transpose", "scale")} == {TensorProto.FLOAT16}
    assert by_name["softmax"] == TensorProto.FLOAT
    x = rng.normal(0, 1, (2, 9, 32)).astype(np.float32)
    np.testing.assert_allclose(run(changed, x)["y"], run(model, x)["y"], atol=0.01)


def test_constants_that_are_nodes() -> None:
    """As PyTorch writes the numbers of a GELU: they are weights like others, and the GELU is computed in float16."""
    model = tiny_classifier()
    model.graph.node[0].output[0] = "plain"
    number = numpy_helper.from_array(np.float32(0.5))
    gelu = [
        helper.make_node("Constant", [], ["half"], "constant", value=number),
        helper.make_node("Erf", ["plain"], ["erf"], "erf"),
        helper.make_node("Mul", ["half", "erf"], ["conv"], "mul"),
    ]
    for node in reversed(gelu):
        model.graph.node.insert(1, node)
    changed = halved(model)
    onnx.checker.check_model(changed, full_check=True)
    kinds = types(changed)
    mul = next(node for node in changed.graph.node if node.name == "mul")
    assert {kinds[name] for name in mul.input} == {TensorProto.FLOAT16}
    image = np.random.default_rng(0).normal(0, 50, (2, 3, 28, 28)).astype(np.float32)
    np.testing.assert_allclose(run(changed, image)["prob"], run(model, image)["prob"], atol=1e-3)
