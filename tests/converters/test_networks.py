"""Whole networks: the CAM networks at full size with seeded weights, and networks that people trained and published."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from converters import ConversionWarning, convert, zoo
from converters.reader import Network, parse_prototxt, read_prototxt, read_weights
from tests.released import RELEASED, SEED, ten_crops
from tests.seeded import SeededModel

DATA = Path(__file__).resolve().parents[1] / "data" / "caffe"
GOOGLENETS = [name for name in RELEASED if name.startswith("googlenet")]


def converted(network: Network | Path, caffemodel: Path, outputs: Sequence[str] | None = None) -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConversionWarning)
        return convert(network, caffemodel, outputs=outputs)


def run(model: onnx.ModelProto, images: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    return session.run(None, {image.name: images})


def ours(name: str) -> Network:
    return parse_prototxt(zoo.find(name).prototxt(), name)


def theirs(name: str, reference: Path) -> Network:
    return read_prototxt(reference / "nets" / "prototxt" / RELEASED[name])


def largest_error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest expected value."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def nodes_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return list(model.graph.node)


def weights_of(model: onnx.ModelProto) -> dict[str, tuple[tuple[int, ...], bytes]]:
    return {one.name: (tuple(one.dims), one.raw_data) for one in model.graph.initializer}


# ------------------------------------------------------------------------------------------------- seeded weights


@pytest.mark.parametrize("v1", [False, True])
def test_seeded_weights_are_those_of_the_tool(v1: bool, reference: Path, tmp_path: Path) -> None:
    tool = reference.parent / "tools" / "seeded_caffemodel.py"
    if not tool.exists():
        pytest.skip(f"no {tool}")
    spec = importlib.util.spec_from_file_location("seeded_caffemodel", tool)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shapes = reference / "nets" / "alexnetplusCAM" / "shapes.json"
    module.main(shapes, tmp_path / "net.caffemodel", v1)
    theirs = read_weights(tmp_path / "net.caffemodel").layers
    ours = read_weights(SeededModel.of_table(json.loads(shapes.read_text())).write(tmp_path / "ours", v1=v1)).layers
    assert list(ours) == list(theirs)
    for name, blobs in theirs.items():
        assert len(blobs) == len(ours[name])
        assert all(map(np.array_equal, blobs, ours[name]))


@pytest.mark.parametrize(("name", "folder"), [("vgg16CAM", "vgg16CAM"), ("alexnetplusCAM_imagenet", "alexnetplusCAM")])
def test_seeded_shapes_are_those_of_the_table(name: str, folder: str, reference: Path) -> None:
    table = SeededModel.of_table(json.loads((reference / "nets" / folder / "shapes.json").read_text()))
    found = SeededModel.of_network(ours(name).message, SEED)
    assert [(one.name, one.type, one.shapes) for one in found.layers] == [
        (one.name, one.type, one.shapes) for one in table.layers
    ]


# ------------------------------------------------------------------------------------------------ the CAM networks


@pytest.mark.slow
@pytest.mark.parametrize(("name", "folder"), [("vgg16CAM", "vgg16CAM"), ("alexnetplusCAM_imagenet", "alexnetplusCAM")])
def test_ten_crops_as_caffe(name: str, folder: str, reference: Path, tmp_path: Path) -> None:
    facts, files = zoo.find(name), reference / "nets" / folder
    seeded = SeededModel.of_table(json.loads((files / "shapes.json").read_text()))
    caffemodel = seeded.write(tmp_path / "net.caffemodel", v1=True)  # as it was released
    model = converted(ours(name), caffemodel, outputs=[facts.features, "prob"])
    released = converted(theirs(name, reference), caffemodel, outputs=[facts.features, "prob"])
    assert model.graph == released.graph

    features, scores = run(model, ten_crops(reference, facts.preprocessing.crop))
    expected = np.load(files / "expected.npz")
    assert largest_error(scores, expected["scores"]) < 1e-3
    top = np.argsort(-scores.mean(axis=0), kind="stable")[:5]
    assert top.tolist() == expected["top5"].tolist()

    largest = features.max()
    sampled = features.reshape(-1)[expected["sample_index"]]
    assert np.abs(sampled - expected["sample_value"]).max() < 1e-3 * largest
    assert np.abs(features.mean(axis=(1, 2, 3)) - expected["feature_mean"]).max() < 1e-3 * largest
    assert np.abs(features.std(axis=(1, 2, 3)) - expected["feature_std"]).max() < 1e-3 * largest

    weight = next(one for one in model.graph.initializer if one.name == f"{facts.classifier}.weight")
    cams = np.einsum("kc,nchw->nkhw", numpy_helper.to_array(weight)[top], features)
    assert largest_error(cams, expected["cams"]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenetCAM", "bvlc_googlenet"])
def test_googlenet_as_caffe(name: str, tmp_path: Path) -> None:
    """Samples of five blobs along the network, two random images, against real Caffe's (tests/data/caffe)."""
    stored = np.load(DATA / "googlenet.npz")
    blobs = [key.removeprefix(f"{name}:") for key in stored.files if key.startswith(f"{name}:") and key.count(":") == 1]
    assert len(blobs) == 5
    caffemodel = SeededModel.of_network(ours(name).message, SEED).write(tmp_path / "net.caffemodel")
    images = np.random.default_rng(SEED).uniform(-120, 130, (2, 3, 224, 224)).astype(np.float32)
    for blob, values in zip(blobs, run(converted(ours(name), caffemodel, outputs=blobs), images), strict=True):
        key = f"{name}:{blob}"
        sampled = values.reshape(-1)[stored[f"{key}:index"]]
        assert np.abs(sampled - stored[key]).max() < 1e-5 * stored[f"{key}:largest"], blob


@pytest.mark.slow
@pytest.mark.parametrize("name", GOOGLENETS)
def test_googlenet_as_opencv(name: str, reference: Path, tmp_path: Path) -> None:
    """A second opinion, on the released prototxts."""
    released = reference / "nets" / "prototxt" / RELEASED[name]
    caffemodel = SeededModel.of_network(ours(name).message, SEED).write(tmp_path / "net.caffemodel")
    model = converted(ours(name), caffemodel, outputs=["CAM_conv", "prob"])
    assert model.graph == converted(released, caffemodel, outputs=["CAM_conv", "prob"]).graph

    images = ten_crops(reference, 224)[[4, 9]]  # the middle and its mirror image
    features, scores = run(model, images)
    net = cv2.dnn.readNetFromCaffe(str(released), str(caffemodel))
    net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    net.enableFusion(False)
    net.setInput(images)
    expected_features, expected_scores = net.forward(["CAM_relu", "prob"])
    assert largest_error(features, expected_features) < 1e-4
    assert largest_error(scores, expected_scores) < 1e-3


def test_named_networks_are_the_released_ones(reference: Path, tmp_path: Path) -> None:
    """The Places205 AlexNet, for which there are no answers: the same model from both descriptions."""
    name = "alexnetplusCAM_places205"
    caffemodel = SeededModel.of_network(ours(name).message, SEED).write(tmp_path / "net.caffemodel", v1=True)
    model = converted(ours(name), caffemodel)
    assert model.graph == converted(theirs(name, reference), caffemodel).graph
    assert [one.name for one in model.graph.output] == ["prob"]


def test_train_val_is_the_deploy_network(reference: Path, tmp_path: Path) -> None:
    """But for the name of the last blob."""
    deploy, train_val = (
        theirs("googlenetCAM", reference),
        reference / "nets" / "prototxt" / "train_val_googlenetCAM.prototxt",
    )
    caffemodel = SeededModel.of_network(deploy.message, SEED).write(tmp_path / "net.caffemodel")
    left, right = converted(deploy, caffemodel), converted(train_val, caffemodel)
    (last,), (last_trained,) = left.graph.output, right.graph.output
    assert last.name != last_trained.name
    last_trained.name = last.name
    *rest, softmax = nodes_of(left)
    *rest_trained, softmax_trained = nodes_of(right)
    assert rest == rest_trained
    assert (softmax.op_type, softmax.input, softmax.attribute) == (
        softmax_trained.op_type,
        softmax_trained.input,
        softmax_trained.attribute,
    )
    assert weights_of(left) == weights_of(right)
    assert list(left.graph.input) == list(right.graph.input)
    assert list(left.graph.output) == list(right.graph.output)
    assert list(left.graph.value_info) == list(right.graph.value_info)


# ------------------------------------------------------------------------------------------ what people published


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("caffe-onnx-test", "test"),
        ("cifar10-full-v1", "cifar10_full_iter_70000"),
        ("hyperlpr-CharacterRecognization", "CharacterRecognization"),
        ("lenet-v1", "lenet_iter_10000"),
        ("ultraface-Slim-320", "slim-320"),
        ("wechat-qrcode-sr", "sr"),
    ],
)
def test_published_network(folder: str, name: str, reference: Path) -> None:
    files = reference / "caffemodels" / folder
    (prototxt,) = (file for file in files.glob("*.prototxt") if "train" not in file.name)
    (caffemodel,), (stored,) = files.glob("*.caffemodel"), files.glob("*.npz")
    assert caffemodel.stem == name
    arrays = np.load(stored)
    expected = {key.removeprefix("out_").replace("__", "/"): arrays[key] for key in arrays if key != "input"}
    model = converted(prototxt, caffemodel)
    assert sorted(one.name for one in model.graph.output) == sorted(expected)
    for info, found in zip(model.graph.output, run(model, arrays["input"]), strict=True):
        np.testing.assert_allclose(found, expected[info.name], rtol=1e-4, atol=1e-5)


def test_published_detector(repository: Path, reference: Path) -> None:
    files = reference / "caffemodels" / "hyperlpr-mininet-ssd"
    arrays = np.load(files / "mininet_ssd_v1.opencv-4.14.0.npz")
    model = converted(files / "mininet_ssd_v1.prototxt", files / "mininet_ssd_v1.caffemodel")
    (found,) = run(model, arrays["input"])
    caffe = np.load(repository / "tests" / "data" / "caffe" / "mininet_ssd_v1.npz")["out:detection_out"]
    np.testing.assert_allclose(found, caffe, rtol=1e-4, atol=1e-5)
    # OpenCV fills up with empty rows, and its prior boxes keep the fractions of a pixel that Caffe cuts off.
    opencv, count = arrays["out_detection_out"], found.shape[2]
    assert not opencv[:, :, count:].any()
    np.testing.assert_allclose(found[..., :3], opencv[:, :, :count, :3], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[..., 3:], opencv[:, :, :count, 3:], atol=2e-3)


@pytest.mark.parametrize(("folder", "shape"), [("lenet-v1", (64, 1, 28, 28)), ("cifar10-full-v1", (100, 3, 32, 32))])
def test_published_training_network(folder: str, shape: tuple[int, ...], reference: Path) -> None:
    """What was trained, without the data base and the loss, answers as what was deployed."""
    files = reference / "caffemodels" / folder
    (prototxt,), (caffemodel,), (stored,) = (
        files.glob(f"*{end}") for end in ("_train_test.prototxt", ".caffemodel", ".npz")
    )
    model = convert(prototxt, caffemodel, input_shapes={"data": shape})
    (output,) = model.graph.output
    assert output.name != "prob"
    arrays = np.load(stored)
    (found,) = run(model, arrays["input"])
    np.testing.assert_allclose(found, arrays["out_prob"], rtol=1e-4, atol=1e-5)
