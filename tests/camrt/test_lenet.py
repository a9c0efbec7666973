"""lenetCAM as it comes with camrt: its files, what OpenCV says of it, and how well it reads and finds digits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
from PIL import Image

from camrt import Explainer, Explanation, matlab
from camrt.loading import LENET, named_classifier
from camrt.train.clutter import Clutter
from converters import read_net, zoo
from converters.conversion import weight_shapes

SAMPLE = ("clutter:drawn,seed=3", 29)  # the canvas of sample.png, as the card says
MNIST, MNIST_SAMPLE = "lenetCAM_mnist", 5


@pytest.fixture(scope="module")
def folder() -> Path:
    return zoo.models_folder() / LENET


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(LENET, top=1, providers="cpu")


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, int, np.ndarray]:
    """The canvas (100, 100), its label, and the digit's box."""
    text, number = SAMPLE
    images, labels, boxes = Clutter.parse(text).batch([number])
    return images[0], int(labels[0]), boxes[0]


def peak(found: Explanation) -> tuple[int, int]:
    """x and y of the largest value of the best class's map."""
    y, x = np.unravel_index(int(found.heatmap(0).argmax()), found.image.shape[:2])
    return int(x), int(y)


def lies_in(point: tuple[int, int], box: np.ndarray) -> bool:
    return bool(box[0] <= point[0] < box[2] and box[1] <= point[1] < box[3])


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2, by counting pixels."""
    masks = np.zeros((2, 400, 400), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, (one, other), strict=True):
        mask[y1:y2, x1:x2] = True
    return float(masks.all(axis=0).sum() / masks.any(axis=0).sum())


# ------------------------------------------------------------------------------------------------------------ the files


def test_the_files_belong_together(folder: Path) -> None:
    assert (folder / "lenetCAM.caffemodel").stat().st_size < 500_000
    deploy = read_net(folder / "deploy.prototxt", folder / "lenetCAM.caffemodel")
    trained = read_net(folder / "train_val.prototxt", folder / "lenetCAM.caffemodel")
    assert not deploy.notes
    assert [(layer.name, layer.bottoms) for layer in deploy.layers[:-1]] == [
        (layer.name, layer.bottoms) for layer in trained.layers[:-1]
    ]
    assert weight_shapes(deploy) == weight_shapes(trained)
    for one, other in zip(deploy.layers, trained.layers, strict=True):
        other.params.convolution_param.ClearField("weight_filler")
        assert one.params.convolution_param == other.params.convolution_param, one.name
        assert one.params.scale_param == other.params.scale_param, one.name
    assert sum(blob.size for layer in deploy.layers for blob in layer.blobs) * 4 == zoo.find(LENET).weights.least_bytes
    assert (folder / "labels.txt").read_text().split() == zoo.labels(zoo.find(LENET)) == list("0123456789")


def test_the_sister_for_mnist(folder: Path) -> None:
    """Trained and deployed forms hold the same weights; they differ in CAM_soft, which has none."""
    deploy, trained = (read_net(folder / f"{name}_mnist.prototxt") for name in ("deploy", "train_val"))
    assert weight_shapes(deploy) == weight_shapes(trained)
    assert [layer.name for layer in deploy.layers if layer.name not in ("CAM_soft", "prob")] == [
        layer.name for layer in trained.layers if layer.name != "loss"
    ]
    assert weight_shapes(deploy)["conv3"] == [(48, 48, 3, 3)]
    assert 'net: "train_val_mnist.prototxt"' in (folder / "solver_mnist.prototxt").read_text()


def test_the_network_for_handwriting() -> None:
    """Trained and deployed forms hold the same weights; they differ in CAM_soft, which has none."""
    model = zoo.find(MNIST)
    folder = zoo.models_folder() / MNIST
    assert zoo.weights_path(model).stat().st_size < 300_000
    deploy, trained = (
        read_net(folder / f"{name}.prototxt", zoo.weights_path(model)) for name in ("deploy", "train_val")
    )
    assert weight_shapes(deploy) == weight_shapes(trained)
    assert [layer.name for layer in deploy.layers if layer.name not in ("CAM_soft", "prob")] == [
        layer.name for layer in trained.layers if layer.name != "loss"
    ]
    assert sum(blob.size for layer in deploy.layers for blob in layer.blobs) * 4 == model.weights.least_bytes
    card, solver = (folder / "README.md").read_text(), (folder / "solver.prototxt").read_text()
    for line in ("max_iter", "random_seed"):
        assert next(each.split()[1] for each in solver.splitlines() if each.startswith(f"{line}:")) in card


def test_it_reads_and_finds_handwriting(reference: Path) -> None:
    """On canvases of the digits that it was not trained on."""
    canvases = Clutter.parse(f"clutter:{reference / 'mnist'},first=8000,count=2000,seed=3")
    images, labels, boxes = canvases.batch(range(200))
    explain = Explainer(MNIST, top=1, providers="cpu")
    found = list(explain.map(np.repeat(images[..., None], 3, axis=3), batch=25))
    right = [int(one.labels[0]) == label for one, label in zip(found, labels.tolist(), strict=True)]
    pointing = [lies_in(peak(one), box) for one, box in zip(found, boxes, strict=True)]
    assert np.mean(right) > 0.95
    assert np.mean(pointing) > 0.97


def test_its_sample_is_a_canvas_of_test_digits(reference: Path) -> None:
    images, labels, _ = Clutter.parse(f"clutter:{reference / 'mnist'},first=8000,count=2000,seed=3").batch(
        [MNIST_SAMPLE]
    )
    with Image.open(zoo.models_folder() / MNIST / "sample.png") as picture:
        assert (np.asarray(picture.convert("L")) == images[0]).all()
    assert Explainer(MNIST, top=1, providers="cpu")(zoo.models_folder() / MNIST / "sample.png").labels == (
        str(labels[0]),
    )


def test_the_solver_is_the_one_of_the_card(folder: Path) -> None:
    card, solver = (folder / "README.md").read_text(), (folder / "solver.prototxt").read_text()
    for line in ("max_iter", "random_seed"):
        value = next(each.split()[1] for each in solver.splitlines() if each.startswith(f"{line}:"))
        assert value in card
    assert "camrt train models/lenetCAM/solver.prototxt" in card
    assert SAMPLE[0] in card
    assert f"canvas {SAMPLE[1]}" in card


def test_the_sample_is_a_canvas_of_the_generator(folder: Path, sample: tuple[np.ndarray, int, np.ndarray]) -> None:
    with Image.open(folder / "sample.png") as picture:
        assert (np.asarray(picture.convert("L")) == sample[0]).all()


# --------------------------------------------------------------------------------------------------- what it computes


def test_opencv_computes_the_same(folder: Path, sample: tuple[np.ndarray, int, np.ndarray]) -> None:
    """OpenCV's own importer, which folds BatchNorm and Scale into the convolutions."""
    net = cv2.dnn.readNetFromCaffe(str(folder / "deploy.prototxt"), str(folder / "lenetCAM.caffemodel"))
    images, _, _ = Clutter.parse(SAMPLE[0]).batch(range(8))
    data = np.repeat(images[:, None], 3, axis=1).astype(np.float32)
    net.setInput(data)
    expected = net.forward("prob")
    session = onnxruntime.InferenceSession(named_classifier(LENET).SerializeToString())
    (found,) = session.run(None, {"data": data})
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_digit_of_the_sample_is_found(
    folder: Path, explainer: Explainer, sample: tuple[np.ndarray, int, np.ndarray]
) -> None:
    _, label, box = sample
    found = explainer(folder / "sample.png")
    assert found.labels == (str(label),)
    assert found.scores[0] > 0.9
    assert lies_in(peak(found), box)
    boxes = [np.array([x, y, x + width, y + height]) for x, y, width, height in found.boxes(0)]
    assert max(overlap(each, box) for each in boxes) >= 0.5


def test_the_map_is_the_features_weighted_by_the_class(
    folder: Path, explainer: Explainer, sample: tuple[np.ndarray, int, np.ndarray]
) -> None:
    """Equation 2 of the paper, with OpenCV's features and weights, enlarged by the original's imresize."""
    net = cv2.dnn.readNetFromCaffe(str(folder / "deploy.prototxt"), str(folder / "lenetCAM.caffemodel"))
    net.setInput(np.repeat(sample[0][None, None], 3, axis=1).astype(np.float32))
    features = net.forward("CAM_soft")
    weights = net.getLayer(net.getLayerId("CAM_fc")).blobs[0].reshape(10, -1)
    small = np.tensordot(weights[sample[1]], features[0], 1)
    assert small.shape == (25, 25)
    expected = np.abs(matlab.imresize(small.astype(np.float64), (100, 100)))
    np.testing.assert_allclose(explainer(folder / "sample.png").heatmaps[0], expected, atol=1e-3 * expected.max())


def test_it_is_shown_an_image_once_and_not_mirrored(explainer: Explainer) -> None:
    assert (explainer.protocol, explainer.size) == ("center", 100)


def test_unseen_drawings(explainer: Explainer) -> None:
    """The card's shares are of 10,000 canvases; of 400 others they differ by no more than chance allows (4 sigma)."""
    images, labels, boxes = Clutter.parse("clutter:drawn,seed=5,count=2000").batch(range(400))
    found = list(explainer.map(np.repeat(images[..., None], 3, axis=3), batch=16))
    right = np.mean([one.classes[0] == label for one, label in zip(found, labels, strict=True)])
    points = np.mean([lies_in(peak(one), box) for one, box in zip(found, boxes, strict=True)])
    assert right >= 0.97
    assert points >= 0.975


def test_the_measuring_command(repository: Path, tmp_path: Path, folder: Path) -> None:
    """The bundled weights and a file of the same weights give the same shares."""
    copy = tmp_path / "copy.caffemodel"
    copy.write_bytes((folder / "lenetCAM.caffemodel").read_bytes())
    facts = []
    for weights in ([], [str(copy)]):
        done = subprocess.run(
            [sys.executable, "benchmarks/lenet.py", *weights, "--count", "60", "--json"],
            cwd=repository,
            capture_output=True,
            text=True,
            check=True,
        )
        facts.append(json.loads(done.stdout))
    assert facts[0].pop("weights") == LENET
    assert facts[1].pop("weights") == str(copy)
    for each in facts:
        assert each.pop("seconds") > 0
    assert facts[0] == facts[1]
    assert facts[0]["accuracy"] > 0.9
    done = subprocess.run(
        [sys.executable, "benchmarks/lenet.py", "--data", "clutter:nowhere"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: nowhere")
