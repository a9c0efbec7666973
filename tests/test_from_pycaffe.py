"""The code of docs/from-pycaffe.md runs, and gives what pycaffe would: against OpenCV 4, PyTorch and the formulas."""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from camrt.loading import LENET
from converters import ConversionWarning, read_net
from tests.caffe_files import layer

TRAIN_VAL = "".join(
    [
        'layer { name: "data" type: "Input" top: "data" top: "label" '
        "input_param { shape { dim: 2 dim: 3 dim: 100 dim: 100 } shape { dim: 2 } } }\n",
        layer(
            *("conv1", "Convolution", "data"),
            params='convolution_param { num_output: 4 kernel_size: 5 stride: 4 weight_filler { type: "xavier" } }',
        ),
        layer("relu1", "ReLU", "conv1", "conv1"),
        layer("pool1", "Pooling", "conv1", params="pooling_param { pool: AVE global_pooling: true }"),
        layer(
            *("ip", "InnerProduct", "pool1"),
            params='inner_product_param { num_output: 10 weight_filler { type: "xavier" } }',
        ),
        layer("loss", "SoftmaxWithLoss", "ip label", "loss"),
    ]
)
SOLVER = 'net: "train_val.prototxt" base_lr: 0.001 lr_policy: "fixed" momentum: 0.9 max_iter: 10\n'
MEAN = np.array([104, 117, 123], np.float32)


@pytest.fixture(scope="module")
def folder(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, lenet = tmp_path_factory.mktemp("pycaffe"), repository / "models" / LENET
    deploy = (lenet / "deploy.prototxt").read_text()
    (folder / "deploy.prototxt").write_text(deploy)
    shutil.copy(lenet / "lenetCAM.caffemodel", folder / "net.caffemodel")
    shutil.copy(lenet / "sample.png", folder / "photo.jpg")  # decoded by its content
    text = (repository / "docs" / "from-pycaffe.md").read_text(encoding="utf-8")
    (cast,) = re.findall(r"^```text\n(layer .*?)^```", text, re.DOTALL | re.MULTILINE)
    (folder / "full_conv.prototxt").write_text(deploy[: deploy.index('layer { name: "CAM_pool"')] + cast)
    (folder / "train_val.prototxt").write_text(TRAIN_VAL)
    (folder / "solver.prototxt").write_text(SOLVER)
    return folder


@pytest.fixture(scope="module")
def names(folder: Path, repository: Path) -> dict[str, Any]:
    """What the code of the page leaves behind."""
    pytest.importorskip("torch", reason="docs/from-pycaffe.md trains a network")
    text = (repository / "docs" / "from-pycaffe.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        patch.chdir(folder)
        for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            before = dict(names)
            exec(compile(block, "docs/from-pycaffe.md", "exec"), names)
            if "blobs" in names and "all_blobs" not in names:
                names["all_blobs"] = names["blobs"]
            if "Extractor" in block:
                names["prob_of_rest"] = names["prob"]
            if "crops = " in block:
                names["square_of_crops"] = names["square"]
            elif "square" in names and "square" not in before:
                names["square_of_data"] = names["square"]
    return names


@pytest.fixture(scope="module")
def opencv(folder: Path) -> Any:
    net = cv2.dnn.readNetFromCaffe(str(folder / "deploy.prototxt"), str(folder / "net.caffemodel"))
    net.enableFusion(False)
    return net


def test_all_blobs_are_those_of_the_original_files(names: dict[str, Any], opencv: Any) -> None:
    last = {"pool1": "relu1", "conv2": "relu2", "conv3": "relu3", "CAM_conv": "CAM_relu"}  # blob -> who writes it last
    blobs = names["all_blobs"]
    assert {"conv1", *last, "CAM_fc", "prob"} <= set(blobs)
    opencv.setInput(names["images"])
    for blob in blobs:
        expected = opencv.forward(last.get(blob, blob))
        tolerance = 1e-4 * float(np.abs(expected).max())
        # OpenCV's average pooling divides by other numbers at the border.
        inner = np.s_[..., 1:-1, 1:-1] if blob == "CAM_soft" else np.s_[:]
        if blob not in ("CAM_pool", "CAM_fc", "prob"):
            np.testing.assert_allclose(blobs[blob][inner], expected[inner], atol=tolerance, err_msg=blob)


def test_a_part_gives_the_rest_of_the_run(names: dict[str, Any]) -> None:
    np.testing.assert_allclose(names["conv3"], names["all_blobs"]["conv3"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(names["prob_of_rest"], names["all_blobs"]["prob"], rtol=1e-4, atol=1e-6)


def test_images_as_the_transformer_has_them(names: dict[str, Any]) -> None:
    """Transpose, exchange the channels, raw scale, mean, input scale: the order of caffe.io.Transformer."""
    image = names["square_of_data"].astype(np.float32) / 255
    expected = (image.transpose(2, 0, 1)[[2, 1, 0]] * 255 - MEAN[:, None, None]) * np.float32(0.017)
    np.testing.assert_allclose(names["data"], expected[None], atol=1e-4)


def test_crops_as_oversample_cuts_them(names: dict[str, Any]) -> None:
    """Corners row by row, the center, then all mirrored; two of them exchanged."""
    image = names["square_of_crops"].astype(np.float32)
    corners = [(y, x) for y in (0, 10) for x in (0, 10)]
    cut = [image[y : y + 100, x : x + 100] for y, x in [*corners, (5, 5)]]
    caffe = np.stack([*cut, *(each[:, ::-1] for each in cut)]).transpose(0, 3, 1, 2)[:, ::-1] - MEAN[:, None, None]
    np.testing.assert_array_equal(names["crops"], caffe[[0, 2, 1, 3, 4, 5, 7, 6, 8, 9]])


def test_oversampled_scores_are_means(names: dict[str, Any]) -> None:
    explanation = names["explanation"]
    expected = names["scores"]
    best = np.argsort(-expected)[: len(explanation.scores)]
    np.testing.assert_allclose(explanation.scores, expected[best], atol=1e-5)


def test_surgery(names: dict[str, Any], folder: Path) -> None:
    surer = names["surer"].run({"data": names["images"]})["prob"]
    logits = np.log(names["all_blobs"]["prob"]) + np.eye(10)[3]
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(surer, expected, rtol=1e-4, atol=1e-6)
    saved = read_net(folder / "deploy.prototxt", folder / "edited.caffemodel")
    (fc,) = (each for each in saved.layers if each.name == "CAM_fc")
    np.testing.assert_array_equal(fc.blobs[1], names["params"]["CAM_fc"][1] + np.eye(10, dtype=np.float32)[3])


def test_cast_layer_is_the_class_map(names: dict[str, Any], folder: Path) -> None:
    theirs = cv2.dnn.readNetFromCaffe(str(folder / "full_conv.prototxt"), str(folder / "full_conv.caffemodel"))
    theirs.setInput(np.zeros((1, 3, 150, 200), np.float32))
    expected = theirs.forward("CAM_map")
    assert names["maps"].shape == expected.shape
    np.testing.assert_allclose(names["maps"][..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-3)


def test_gradients_as_finite_differences(names: dict[str, Any]) -> None:
    gradient, images = names["run"]["gradient/data"], names["images"]
    direction = gradient / np.abs(gradient).max()  # along another the change is lost in rounding
    session = names["camrt"].Session(names["model"], outputs=["CAM_fc"], providers="cpu")
    step = 0.5  # gray levels
    ahead, behind = (
        session.run({"data": images + sign * step * direction})["CAM_fc"][:, 3].sum(dtype=np.float64)
        for sign in (1, -1)
    )
    np.testing.assert_allclose((ahead - behind) / (2 * step), (gradient * direction).sum(), rtol=0.02)


def test_solver_updates_by_caffes_rule(names: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps of SGD with momentum, with PyTorch's own layers and gradients."""
    monkeypatch.chdir(folder)
    torch = names["torch"]
    first = names["network"](names["file"].train_net(), seed=1).stored
    weights = [
        torch.tensor(blob.detach().numpy().copy(), requires_grad=True) for each in first.values() for blob in each
    ]
    history = [torch.zeros_like(weight) for weight in weights]
    images, labels = torch.from_numpy(names["images"]), torch.from_numpy(names["labels"])
    for _ in range(10):
        maps = torch.relu(torch.nn.functional.conv2d(images, weights[0], weights[1], stride=4)).mean(dim=(2, 3))
        loss = torch.nn.functional.cross_entropy(maps @ weights[2].T + weights[3], labels)
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, gradient, held in zip(weights, gradients, history, strict=True):
                held.mul_(0.9).add_(0.001 * gradient)
                weight -= held
    assert float(names["blobs"]["loss"].detach()) == pytest.approx(float(loss.detach()), rel=1e-4)
    saved = read_net(folder / "train_val.prototxt", folder / "trained.caffemodel", phase="TRAIN", training=True)
    found = [blob for each in saved.layers for blob in each.blobs]
    for weight, blob in zip(weights, found, strict=True):
        np.testing.assert_allclose(blob.reshape(weight.shape), weight.detach().numpy(), rtol=1e-3, atol=1e-5)
