"""Networks whose input is not N x 3 x height x width in single precision, against the same network that has one."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from camrt.errors import CamrtError
from camrt.graph import explain_graph
from camrt.preprocess import Preprocess
from tests.camrt.classifiers import CHANNELS, SIDE, classifier
from tests.camrt.graph.explainers import run

METHODS = ("cam", "gradcam", "scorecam", "input-gradient")
WANTED = {
    channels: Preprocess(SIDE, SIDE, (120.0, 110.0, 100.0), (0.02, 0.03, 0.04), channels) for channels in ("RGB", "BGR")
}
BRIGHTNESS = {"R": 0.299, "G": 0.587, "B": 0.114}


def pixels() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)


def with_kernel(kernel: np.ndarray) -> onnx.ModelProto:
    """A classifier whose first convolution has this kernel."""
    model = classifier("gemm", softmax=False)
    place = next(number for number, one in enumerate(model.graph.initializer) if one.name == "conv.weight")
    model.graph.initializer[place].CopyFrom(numpy_helper.from_array(kernel.astype(np.float32), "conv.weight"))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = kernel.shape[1]
    return model


def same(found: onnx.ModelProto, wanted: onnx.ModelProto, method: str, preprocess: Preprocess) -> None:
    answers = [
        run(explain_graph(one, method, "center", top=1, preprocess=preprocess), {"image": pixels()})
        for one in (found, wanted)
    ]
    assert np.abs(answers[1][2]).max() > 0
    for one, other in zip(*answers, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("channels", WANTED)
@pytest.mark.parametrize("method", METHODS)
def test_gray(method: str, channels: str) -> None:
    """A kernel that reads the brightness is one of three channels, weighted."""
    kernel = np.random.default_rng(0).normal(0, 0.3, (CHANNELS, 1, 3, 3))
    weights = np.reshape([BRIGHTNESS[one] for one in channels], (1, 3, 1, 1))
    same(with_kernel(kernel), with_kernel(kernel * weights), method, WANTED[channels])


def test_opacity() -> None:
    """The scores are those of the network with an image whose fourth channel is 255, prepared by the average."""
    kernel, wanted = np.random.default_rng(0).normal(0, 0.3, (CHANNELS, 4, 3, 3)), WANTED["RGB"]
    model = with_kernel(kernel)
    explainer = explain_graph(model, "gradcam", "center", top=1, preprocess=wanted, scores="logits")
    scores = run(explainer, {"image": pixels()})[0]
    planes = (pixels().astype(np.float32) - wanted.mean) * wanted.scale
    opacity = np.full((*planes.shape[:3], 1), (255 - np.mean(wanted.mean)) * np.mean(wanted.scale))
    data = np.concatenate([planes, opacity], 3).transpose(0, 3, 1, 2).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(scores, session.run(None, {"data": data})[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_channels_last(method: str) -> None:
    """As tf2onnx writes them."""
    model = classifier("gemm", softmax=False)
    model.graph.node.insert(0, helper.make_node("Transpose", ["pixels"], ["data"], "first", perm=[0, 3, 1, 2]))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", SIDE, SIDE, 3]))
    same(model, classifier("gemm", softmax=False), method, WANTED["RGB"])


@pytest.mark.parametrize("method", METHODS)
def test_half_precision(method: str) -> None:
    """The weights are those of half precision, and what is computed with them is not rounded again."""
    model, rounded = (classifier("gemm", softmax=False) for _ in range(2))
    for tensor, other in zip(model.graph.initializer, rounded.graph.initializer, strict=True):
        if tensor.data_type == TensorProto.FLOAT:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
            other.CopyFrom(numpy_helper.from_array(half.astype(np.float32), other.name))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    before = model.SerializeToString()
    same(model, rounded, method, WANTED["RGB"])
    assert model.SerializeToString() == before


@pytest.mark.parametrize("method", ["cam", "gradcam", "scorecam", "recipro-cam", "eigencam", "fullgrad"])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_precision_between_casts(kind: int, method: str) -> None:
    """As converters write it that leave the input and output in single precision."""
    model, rounded = (classifier("gemm", softmax=False) for _ in range(2))
    half = helper.tensor_dtype_to_np_dtype(kind)
    for tensor, other in zip(model.graph.initializer, rounded.graph.initializer, strict=True):
        values = numpy_helper.to_array(tensor).astype(half)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        other.CopyFrom(numpy_helper.from_array(values.astype(np.float32), other.name))
    model.graph.node[0].input[0], model.graph.node[-1].output[0] = "half", "answer"
    model.graph.node.insert(0, helper.make_node("Cast", ["data"], ["half"], "first", to=kind))
    model.graph.node.append(helper.make_node("Cast", ["answer"], ["logits"], "last", to=TensorProto.FLOAT))
    same(model, rounded, method, WANTED["RGB"])


@pytest.mark.parametrize("free", [("h", "w"), ("", "")])
def test_rows_and_columns_of_any_number(free: tuple[str, str]) -> None:
    """They are fixed to what the preprocessing gives."""
    model = classifier("gemm", softmax=False)
    for dim, name in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], free, strict=True):
        dim.Clear()
        dim.dim_param = name
    same(model, classifier("gemm", softmax=False), "gradcam", WANTED["RGB"])


@pytest.mark.parametrize(
    ("shape", "kind", "words"),
    [
        (["n", 2, 16, 16], TensorProto.FLOAT, r"shape n x 2 x 16 x 16 and type FLOAT, expected an image"),
        (["n", 3, 16], TensorProto.FLOAT, r"shape n x 3 x 16 and type FLOAT, expected an image"),
        (["n", 3, 16, 16], TensorProto.INT64, r"type INT64, expected an image, .* of 1, 3 or 4 channels"),
    ],
)
def test_what_is_no_image(shape: list[int | str], kind: int, words: str) -> None:
    model = classifier("gemm", softmax=False)
    model.graph.node.insert(0, helper.make_node("Cast", ["given"], ["cast"], "cast", to=TensorProto.FLOAT))
    model.graph.node.insert(1, helper.make_node("Reshape", ["cast", "sizes"], ["data"], "reshape"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 3, SIDE, SIDE]), "sizes"))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("given", kind, shape))
    with pytest.raises(CamrtError, match=words):
        explain_graph(model, "gradcam", preprocess=WANTED["RGB"])
