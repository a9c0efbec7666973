"""Inception v3 with global average pooling: against torchvision's network, and the whole recipe on a synthetic set."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from camrt import CamrtError
from camrt.evaluate.datasets import read_tiny_imagenet
from converters import read_net, zoo
from tests import fitting_torchvision

fitting_torchvision.install()
torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'camrt[train]'")
models = pytest.importorskip("torchvision.models", reason="the network is compared with torchvision's")

from camrt.train import network  # noqa: E402
from camrt.train.networks import Network  # noqa: E402
from camrt.train.weights import load_weights  # noqa: E402

FOLDER = zoo.models_folder() / "inceptionv3CAM"
SIDE, CLASSES = 107, 200  # the smallest images that leave 2 x 2 feature maps are of 107 pixels


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    """torchvision's, with random statistics in its normalization, and without its Dropout layer."""
    torch.manual_seed(0)
    module = models.inception_v3(weights=None, init_weights=False, num_classes=CLASSES, aux_logits=False)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(part.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(part.weight, 0.8, 1.2)
            torch.nn.init.uniform_(part.bias, -0.1, 0.1)
            part.eps = float(np.float32(part.eps))  # as the prototxt's is stored
    module.dropout.p = 0.0
    return module


def ours(theirs: torch.nn.Module, phase: str, batch: int) -> Network:
    """The network of the prototxt, with the weights of torchvision's."""
    net = read_net(FOLDER / "train_val.prototxt", phase=phase, training=True)
    made = network(net, input_shapes={"data": (batch, 3, SIDE, SIDE), "label": (batch,)}, seed=0)
    state = theirs.state_dict()
    for name, blobs in made.stored.items():
        module, _, kind = name.rpartition(".")
        if name == "CAM_fc":
            values = [state["fc.weight"], state["fc.bias"]]
        elif kind == "conv":
            values = [state[f"{name}.weight"]]
        elif kind == "bn":
            values = [state[f"{name}.running_mean"], state[f"{name}.running_var"], torch.ones(1)]
        else:
            values = [state[f"{module}.bn.weight"], state[f"{module}.bn.bias"]]
        with torch.no_grad():
            for blob, value in zip(blobs, values, strict=True):
                blob.copy_(value)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["TEST", "TRAIN"])
def test_logits_and_gradients_are_those_of_torchvision(theirs: torch.nn.Module, phase: str) -> None:
    """In float64: in training, 94 normalizations by the statistics of a batch amplify the rounding of float32."""
    generator = np.random.default_rng(0)
    batch = 3 if phase == "TRAIN" else 1
    images = torch.from_numpy(generator.normal(size=(batch, 3, SIDE, SIDE)))
    labels = torch.from_numpy(generator.integers(0, CLASSES, batch))
    mine, reference = ours(theirs, phase, batch).double(), copy.deepcopy(theirs).double().train(phase == "TRAIN")
    one, other = images.clone().requires_grad_(), images.clone().requires_grad_()
    blobs = mine({"data": one, "label": labels}, keep=["CAM_fc"])
    logits = reference(other)
    torch.testing.assert_close(blobs["CAM_fc"], logits, rtol=1e-8, atol=1e-8)
    mine.loss(blobs).backward()
    torch.nn.functional.cross_entropy(logits, labels).backward()
    for found, expected in (
        (one.grad, other.grad),
        (mine.stored["Conv2d_1a_3x3.conv"][0].grad, reference.Conv2d_1a_3x3.conv.weight.grad),
        (mine.stored["Mixed_7c.branch3x3_2b.scale"][0].grad, reference.Mixed_7c.branch3x3_2b.bn.weight.grad),
        (mine.stored["CAM_fc"][0].grad, reference.fc.weight.grad),
    ):
        assert (found - expected).norm() < 1e-6 * expected.norm()


def test_weights_of_torchvision_initialize_it(theirs: torch.nn.Module, tmp_path: Path) -> None:
    """All but the linear layer; torchvision's images are RGB of -1 to 1, and those of the prototxt BGR."""
    torch.save(theirs.state_dict(), tmp_path / "inception_v3.pth")
    net = read_net(FOLDER / "train_val.prototxt", phase="TEST", training=True)
    made = network(net, input_shapes={"data": (1, 3, SIDE, SIDE), "label": (1,)}, seed=0)
    report = load_weights(made, tmp_path / "inception_v3.pth")
    assert report.filled == ("CAM_fc",)
    assert report.unused == ("fc",)
    found: dict[str, torch.Tensor] = {}
    hook = theirs.eval().avgpool.register_forward_hook(lambda _, __, pooled: found.update(pooled=pooled))
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, SIDE, SIDE)).astype(np.float32))
    with torch.no_grad():
        theirs(image)
        pooled = made({"data": image.flip(1), "label": torch.zeros(1)}, keep=["CAM_pool"])["CAM_pool"]
    hook.remove()
    torch.testing.assert_close(pooled, found["pooled"], rtol=1e-3, atol=1e-4)


def tiny_imagenet(folder: Path) -> Path:
    """The layout of Tiny ImageNet: 200 classes, one image of each to train, 8 to test, with their boxes."""
    generator = np.random.default_rng(0)
    wnids = [f"n{number:08}" for number in range(CLASSES)]
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in wnids))
    (folder / "words.txt").write_text("".join(f"{wnid}\tthing {wnid[-3:]}\n" for wnid in wnids))
    lines = []
    for number, wnid in enumerate(wnids):
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        cv2.imwrite(str(images / f"{wnid}_0.JPEG"), generator.integers(0, 256, (64, 64, 3), np.uint8))
        (images.parent / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t4\t5\t60\t50\n")
        if number % 25 == 0:
            name = f"val_{number}.JPEG"
            cv2.imwrite(str(folder / "val" / "images" / name), generator.integers(0, 256, (64, 64, 3), np.uint8))
            lines.append(f"{name}\t{wnid}\t4\t5\t60\t50\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder


def test_the_boxes_of_tiny_imagenet(tmp_path: Path) -> None:
    dataset = read_tiny_imagenet(tiny_imagenet(tmp_path / "tiny"))
    assert [each.label for each in dataset.images] == list(range(0, 200, 25))
    assert dataset.images[1].image == "val/images/val_25.JPEG"
    assert dataset.images[1].boxes == ((4, 5, 60, 50),)
    (tmp_path / "tiny" / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn1\t1\t2\t3\t4\n")
    with pytest.raises(CamrtError, match=r"val_annotations.txt:1: found.*class of wnids"):
        read_tiny_imagenet(tmp_path / "tiny")


@pytest.mark.slow
def test_the_whole_recipe_on_a_synthetic_set(tmp_path: Path) -> None:
    """Train, test, convert, explain and localize, as the page of the model says: two iterations, smaller images."""
    from camrt.cli import app

    def run(*arguments: object) -> str:
        done = CliRunner().invoke(app, [*map(str, arguments)])
        assert done.exit_code == 0, done.stderr
        return done.stdout

    data = tiny_imagenet(tmp_path / "tiny")
    solver, train_val = tmp_path / "solver.prototxt", tmp_path / "train_val.prototxt"
    train_val.write_text((FOLDER / "train_val.prototxt").read_text().replace("299", "139").replace("320", "149"))
    fields = (FOLDER / "solver.prototxt").read_text()
    for name, value in (("max_iter", 2), ("test_iter", 2), ("test_interval", 2), ("snapshot", 2)):
        fields = "\n".join(f"{name}: {value}" if line.startswith(f"{name}:") else line for line in fields.split("\n"))
    solver.write_text(fields)
    out = tmp_path / "run"
    run("train", solver, "--data", f"tiny:{data}", "--batch", 2, "--threads", 1, "--device", "cpu", "--out", out)
    assert len((tmp_path / "run_labels.txt").read_text().splitlines()) == CLASSES
    onnx = tmp_path / "net.onnx"
    run("convert", train_val, tmp_path / "run_iter_2.caffemodel", "-o", onnx)
    image = data / "val" / "images" / "val_25.JPEG"
    run("explain", image, "--model", onnx, "--out", tmp_path / "explained")
    assert list((tmp_path / "explained").iterdir())
    found = json.loads(
        run("evaluate", "wsol", "--tiny", data, "--model", onnx, "--out", tmp_path / "wsol", "--first", 3, "--json")
    )
    assert "MaxBoxAcc" in json.dumps(found)
