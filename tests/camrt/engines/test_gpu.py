"""Each provider and precision of a GPU, against the CPU and against real Caffe's answers."""

from __future__ import annotations

import importlib.util
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import scipy.io

from camrt.engines.onnxruntime import CUDA
from camrt.errors import CamrtWarning
from camrt.explainer import Explainer
from camrt.graph import explain_graph
from camrt.graph.explain import MAPS
from camrt.preprocess import Preprocess
from camrt.session import Session
from converters import zoo
from tests.camrt.engines.test_half import correlations, photographs
from tests.released import seeded

HAS_CUDA = CUDA in onnxruntime.get_available_providers()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HAS_CUDA, reason="ONNX Runtime has no CUDA here")]
no_tensorrt = pytest.mark.skipif(importlib.util.find_spec("tensorrt") is None, reason="TensorRT is not installed")
WAYS = [
    ("cuda", "fp32"), ("cuda", "tf32"), ("cuda", "fp16"),
    ("cuda:enable_cuda_graph=1", "fp32"), ("cuda:enable_cuda_graph=1", "fp16"),
    ("cuda:prefer_nhwc=1", "fp32"), ("cuda:prefer_nhwc=1", "fp16"),
    pytest.param("tensorrt", "tf32", marks=no_tensorrt), pytest.param("tensorrt", "fp16", marks=no_tensorrt),
]  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_is_left_aside() -> object:
    """A CUDA graph that is not captured would be another test than the one that was meant."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", CamrtWarning)
        yield


@pytest.mark.parametrize("method", ["cam", "gradcam", "eigencam", "guided-backprop"])
@pytest.mark.parametrize(("provider", "precision"), WAYS)
def test_maps_of_photographs(provider: str, precision: str, method: str, reference: Path) -> None:
    """Batches of several sizes, each more than once: memory and CUDA graphs are used again."""
    model = explain_graph(reference / "squeezenet" / "squeezenet1_1.onnx", method, "center", preprocess="torchvision")
    images = photographs(reference, model.graph.input[0].type.tensor_type.shape.dim[1].dim_value)
    expected = Session(model, providers="cpu").run({"image": images})
    session = Session(model, providers=provider, precision=precision)
    for number in (3, 1, 3, 2, 1):
        found = session.run({"image": images[:number]})
        np.testing.assert_array_equal(found["classes"], expected["classes"][:number])
        assert min(correlations(found["heatmaps"], expected["heatmaps"][:number])) >= 0.999
        exact = precision == "fp32"
        np.testing.assert_allclose(found["scores"], expected["scores"][:number], atol=1e-5 if exact else 5e-3)
        if exact and method != "eigencam":
            largest = np.abs(expected["heatmaps"]).max()
            np.testing.assert_allclose(found["heatmaps"], expected["heatmaps"][:number], atol=1e-3 * largest)


@pytest.mark.parametrize("name", ["vgg16CAM", "alexnetplusCAM"])
@pytest.mark.parametrize(("provider", "precision"), WAYS)
def test_maps_of_caffe(provider: str, precision: str, name: str, reference: Path, tmp_path: Path) -> None:
    """The CAM networks at full size, ten crops, against real Caffe's maps."""
    facts, expected = zoo.find(name), np.load(reference / "nets" / name / "expected.npz")
    mean = scipy.io.loadmat(reference / "matlab_demo" / "ilsvrc_2012_mean.mat")["mean_data"].astype(np.float32)
    preprocess = Preprocess(
        256, facts.preprocessing.crop, (104.0, 117.0, 123.0), mean_image=mean.transpose(2, 1, 0).copy()
    )
    model = explain_graph(
        seeded(name, reference, tmp_path), "cam", "ten-crop", features=facts.features, classifier=facts.classifier,
        preprocess=preprocess,
    )  # fmt: skip
    crops, _, _, rows, columns = (10, 5, 0, *expected["cams"].shape[2:])
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(MAPS, onnx.TensorProto.FLOAT, ["N", crops, 5, rows, columns])
    )
    image = cv2.imread(str(reference / "matlab_demo" / "img1.jpg"))[:, :, ::-1]
    session = Session(model, providers=provider, precision=precision)
    for _ in range(2):
        found = session.run({"image": np.ascontiguousarray(image[None])})
        assert found["classes"][0].tolist() == expected["top5"].tolist()
        assert min(correlations(found[MAPS][0], expected["cams"])) >= 0.999
        if precision == "fp32":
            np.testing.assert_allclose(found[MAPS][0], expected["cams"], atol=1e-4 * np.abs(expected["cams"]).max())


@pytest.mark.parametrize("provider", ["cuda", "cuda:enable_cuda_graph=1"])
def test_threads(provider: str, reference: Path) -> None:
    model = explain_graph(reference / "squeezenet" / "squeezenet1_1.onnx", "gradcam", preprocess="torchvision")
    images = photographs(reference, model.graph.input[0].type.tensor_type.shape.dim[1].dim_value)
    session = Session(model, providers=provider)
    expected = [session.run({"image": images[n : n + 1]})["heatmaps"] for n in range(3)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: session.run({"image": images[n % 3 : n % 3 + 1]})["heatmaps"], range(120)))
    for n, heatmaps in enumerate(found):
        np.testing.assert_allclose(heatmaps, expected[n % 3], rtol=1e-4, atol=1e-5 * expected[n % 3].max())


def test_loops_run_without_a_cuda_graph(reference: Path) -> None:
    model = explain_graph(
        reference / "squeezenet" / "squeezenet1_1.onnx", "scorecam", preprocess="torchvision", settings={"channels": 16}
    )
    images = photographs(reference, model.graph.input[0].type.tensor_type.shape.dim[1].dim_value)
    session = Session(model, providers="cuda:enable_cuda_graph=1")
    with pytest.warns(CamrtWarning, match="CUDA graphs are not used"):
        found = session.run({"image": images})
    expected = Session(model, providers="cpu").run({"image": images})
    assert min(correlations(found["heatmaps"], expected["heatmaps"])) >= 0.999


def test_the_default_batch_follows_the_free_memory(reference: Path) -> None:
    explainer = Explainer(reference / "squeezenet" / "squeezenet1_1.onnx", preprocess="torchvision")
    assert explainer.batch >= 4
