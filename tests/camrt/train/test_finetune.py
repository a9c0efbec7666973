"""Fine-tuning: against PyTorch's own schedules and layers, and a run that is killed against one that is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest

from camrt import CamrtError, Explainer
from camrt.train.finetune.options import FinetuneOptions, FinetuneResult
from converters import metadata
from tests import fitting_torchvision

fitting_torchvision.install()
torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'camrt[train]'")
pytest.importorskip("torchvision", reason="the augmentations are torchvision's: pip install torchvision")

from camrt.train.finetune import run as running  # noqa: E402
from camrt.train.finetune.backbone import open_backbone  # noqa: E402
from camrt.train.finetune.outcome import Prediction, confusion, worst_mistakes  # noqa: E402
from camrt.train.finetune.photographs import open_photographs  # noqa: E402
from camrt.train.finetune.run import finetune, learning_rate  # noqa: E402

NET = """
name: "toy"
layer { name: "data" type: "ImageData" top: "data" top: "label"
        transform_param { crop_size: 32 mean_value: 104 mean_value: 117 mean_value: 123 scale: 0.017 }
        image_data_param { source: "none.txt" batch_size: 4 } }
layer { name: "c1" type: "Convolution" bottom: "data" top: "c1"
        convolution_param { num_output: 8 kernel_size: 5 stride: 4 weight_filler { type: "msra" } } }
layer { name: "b1" type: "BatchNorm" bottom: "c1" top: "c1" }
layer { name: "s1" type: "Scale" bottom: "c1" top: "c1" scale_param { bias_term: true } }
layer { name: "r1" type: "ReLU" bottom: "c1" top: "c1" }
layer { name: "drop" type: "Dropout" bottom: "c1" top: "c1" dropout_param { dropout_ratio: 0.1 } }
layer { name: "pool" type: "Pooling" bottom: "c1" top: "pool" pooling_param { pool: AVE global_pooling: true } }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param { num_output: 9 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
"""
COLORS = {"apples": (40, 40, 200), "limes": (50, 190, 60), "plums": (150, 40, 90)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy images of three colors, 20 of each; one file is no image."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name, color in COLORS.items():
        (folder / name).mkdir()
        for number in range(20):
            image = np.clip(generator.normal(color, 40, (40, 48, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / name / f"{number}.png"), image)
    (folder / "limes" / "7.png").write_bytes(b"not an image")
    return folder


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("net") / "train_val.prototxt"
    file.write_text(NET)
    return file


def options(net: Path | str, photos: Path, out: Path, **more: Any) -> FinetuneOptions:
    fields: dict[str, Any] = {"head_epochs": 1, "epochs": 2, "batch": 8, "threads": 1, "device": "cpu", "workers": 0}
    fields |= {"rate": 0.01, "head_rate": 0.05}
    return FinetuneOptions(str(net), f"folder:{photos}", out=out, **{**fields, **more})


def state(out: Path) -> dict[str, Any]:
    return torch.load(out.with_name(out.name + "_state.pt"), weights_only=True)


def records(out: Path, ending: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.with_name(out.name + ending).read_text().splitlines()]


@pytest.fixture(scope="module")
def result(net: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    out = tmp_path_factory.mktemp("run") / "fruit"
    return finetune(options(net, photos, out, epochs=8, smoothing=0.05))


# ------------------------------------------------------------------------------------------------------- what comes out


def test_it_learns_and_leaves_an_explainer(result: FinetuneResult) -> None:
    assert result.accuracy is not None
    assert result.accuracy > 0.9
    assert set(result.per_class) == set(COLORS)
    assert result.explainer is not None
    explain = Explainer(result.explainer)
    assert list(explain.labels or ()) == sorted(COLORS)
    out = result.explainer.with_name("fruit")
    answers = records(out, "_test.jsonl")
    assert len(answers) == 12
    for answer in answers:
        if answer["image"].endswith("limes/7.png"):
            continue
        found = explain(answer["image"])
        assert found.labels[0] == answer["best"]
        assert found.scores[0] == pytest.approx(answer["score"], abs=1e-4)
    right = np.mean([answer["class"] == answer["best"] for answer in answers])
    assert result.accuracy == pytest.approx(right)


def test_the_classifier_is_the_trained_network(result: FinetuneResult) -> None:
    """The ONNX file against the layers in plain PyTorch, with the weights of the last snapshot."""
    assert result.classifier is not None
    weights = state(result.classifier.with_name("fruit"))["model"]
    layers = {name.removeprefix("trained.layers."): value for name, value in weights.items() if "trained" in name}
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 3, 32, 32)).astype(np.float32))
    maps = torch.nn.functional.conv2d(x, layers["c1.blob0"], layers["c1.blob1"], stride=4)
    mean, variance, count = (layers[f"b1.blob{index}"] for index in range(3))
    scaled = (layers["s1.blob0"], layers["s1.blob1"])
    maps = torch.nn.functional.batch_norm(maps, mean / count, variance / count, *scaled, eps=1e-5).relu()
    head = next(name for name in layers if name.startswith("CAM_fc") and name.endswith("blob0"))
    logits = maps.mean((2, 3)) @ layers[head].T + layers[head.replace("blob0", "blob1")]
    (found,) = onnxruntime.InferenceSession(result.classifier).run(None, {"data": x.numpy()})
    np.testing.assert_allclose(found, logits.softmax(1).numpy(), atol=1e-5)


def test_the_report_and_the_card(result: FinetuneResult) -> None:
    assert result.report is not None
    assert result.card is not None
    page, card = result.report.read_text(), result.card.read_text()
    assert "Confusion" in page
    assert "http" not in page.replace("http://www.w3.org", "")  # nothing is loaded from elsewhere
    assert f"{result.accuracy:.2%}" in card
    assert all(name in page and name in card for name in COLORS)


def test_confusion_and_the_worst_mistakes() -> None:
    predictions = [Prediction(0, 0, 0.9), Prediction(0, 1, 0.6), Prediction(1, 0, 0.8), Prediction(2, 2, 0.4)]
    assert confusion(predictions, 3).tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert worst_mistakes(predictions, 9) == [2, 1]
    assert worst_mistakes(predictions, 1) == [2]


# ---------------------------------------------------------------------------------------------------------- the recipe


def test_the_learning_rate_is_that_of_pytorch() -> None:
    """Two stages: CosineAnnealingLR; then LinearLR and CosineAnnealingLR, one after the other."""
    chosen = FinetuneOptions("timm:x", "folder:x", rate=0.2, head_rate=0.5, warmup=1.0)
    per_epoch, head_steps, total = 5, 10, 40

    def rates(base: float, steps: int, make: Any) -> list[float]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
        schedule, found = make(optimizer), []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    kinds = torch.optim.lr_scheduler
    expected = rates(0.5, 10, lambda one: kinds.CosineAnnealingLR(one, 10))
    expected += rates(
        0.2,
        30,
        lambda one: kinds.SequentialLR(
            one,
            [kinds.LinearLR(one, start_factor=1 / 5, end_factor=1.0, total_iters=4), kinds.CosineAnnealingLR(one, 25)],
            [5],
        ),
    )
    found = [learning_rate(chosen, step, head_steps, per_epoch, total) for step in range(total)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_in_the_first_stage_only_the_new_layer_changes(net: Path, photos: Path, tmp_path: Path) -> None:
    before = open_backbone(str(net), 3, size=None, weights=None, seed=0).state_dict()
    finetune(options(net, photos, tmp_path / "one", epochs=0))
    after = state(tmp_path / "one")["model"]
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {name.split(".")[2] for name in changed} == {"CAM_fc"}
    finetune(options(net, photos, tmp_path / "two", epochs=1, head_epochs=0))
    after = state(tmp_path / "two")["model"]
    assert {name.split(".")[2] for name, value in before.items() if not torch.equal(value, after[name])} == {
        "c1", "b1", "s1", "CAM_fc",
    }  # fmt: skip


def test_the_average_of_the_weights(net: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its definition, over the weights after each step."""
    weights: list[torch.Tensor] = []
    iterate = running._Run._iterate

    def recording(self: Any, *arguments: Any) -> None:
        iterate(self, *arguments)
        weights.append(next(self.model.head_parameters()).detach().clone())

    monkeypatch.setattr(running._Run, "_iterate", recording)
    finetune(options(net, photos, tmp_path / "x", epochs=0, ema=0.7))
    assert len(weights) == 6
    expected = weights[0]
    for each in weights[1:]:
        expected = 0.7 * expected + 0.3 * each
    last = state(tmp_path / "x")
    torch.testing.assert_close(last["ema"]["module.trained.layers.CAM_fc.blob0"], expected)
    assert torch.equal(last["model"]["trained.layers.CAM_fc.blob0"], weights[-1])
    stored = onnx.load(tmp_path / "x.onnx").graph.initializer
    arrays = [onnx.numpy_helper.to_array(one) for one in stored if list(one.dims) == list(expected.shape)]
    assert any(np.allclose(one, expected.numpy(), atol=1e-7) for one in arrays)


# --------------------------------------------------------------------------------------------------------- exact resume

PROGRAM = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tests.camrt.train import test_finetune as test
from camrt.train.finetune import run
iterate = run._Run._iterate
def dying(self, *arguments):
    iterate(self, *arguments)
    if self.step == 9:
        os.kill(os.getpid(), signal.SIGKILL)
run._Run._iterate = dying
run.finetune(test.options(*map(Path, sys.argv[2:]), **test.RESUMED))
"""
RESUMED = {"snapshot": 4, "mixup": 0.3, "randaugment": 5, "ema": 0.9, "resume": True}


@pytest.mark.slow
def test_a_run_that_is_killed_gives_the_same_weights(net: Path, photos: Path, tmp_path: Path, repository: Path) -> None:
    """Between two snapshots and in the middle of an epoch, by SIGKILL; against a run that is not killed."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = [sys.executable, "-c", PROGRAM, *map(str, (repository, net, photos, broken))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == -9, done.stderr
    assert state(broken)["step"] == 8
    for out in (broken, whole):
        finetune(options(net, photos, out, **RESUMED))
    one, other = state(whole), state(broken)
    for part in ("model", "ema"):
        assert all(torch.equal(value, other[part][name]) for name, value in one[part].items())
    assert one["step"] == other["step"] == 18
    kept = ("epoch", "stage", "step", "loss", "accuracy")
    logs = [[{key: each[key] for key in kept} for each in records(out, "_log.jsonl")] for out in (whole, broken)]
    assert logs[0] == logs[1]
    assert [each["epoch"] for each in logs[0]] == [1, 2, 3]
    answers = [(tmp_path / f"{name}_test.jsonl").read_bytes() for name in ("whole", "broken")]
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_two_processes(net: Path, photos: Path, tmp_path: Path, repository: Path) -> None:
    """torchrun: both processes hold the same weights, since one answers for half of the test images."""
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from tests import fitting_torchvision as f; f.install(); "
        "from camrt.cli import main; main()"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python", "--standalone"]
    command = ["finetune", str(net), "--data", f"folder:{photos}", "--out", str(tmp_path / "two"), "--epochs", "2"]
    more = ["--batch", "8", "--device", "cpu", "--threads", "1", "--head-epochs", "1", "--lr", "0.01"]
    done = subprocess.run(
        [*torchrun, sys.executable, "-c", program, str(repository), *command, *more],
        capture_output=True, text=True, timeout=150, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / f"two{end}") for end in
                                   (".onnx", "_explainer.onnx", "_report.html", "_card.md")]  # fmt: skip
    assert [one["step"] for one in records(tmp_path / "two", "_log.jsonl")] == [3, 6, 9]  # 48 images, 16 a step
    explain = Explainer(tmp_path / "two_explainer.onnx")
    for answer in records(tmp_path / "two", "_test.jsonl")[:6]:
        assert explain(answer["image"]).labels[0] == answer["best"]


# ------------------------------------------------------------------------------------------------- backbones of PyTorch


@pytest.mark.parametrize("name", ["timm:resnet10t@random", "torchvision:mobilenet_v3_small@random"])
def test_features_of_the_libraries(name: str) -> None:
    """The features are those that the library's own classifier pools, by a hook on its pooling."""
    kind = name.partition(":")[0]
    pytest.importorskip(kind)
    from camrt.catalog.pytorch import network_named

    model = open_backbone(name, 5, size=64, weights=None, seed=3).eval()
    whole, found = network_named(name).module(), {}
    pooling = whole.global_pool if kind == "timm" else whole.avgpool
    pooling.register_forward_hook(lambda _, inputs, __: found.update(maps=inputs[0]))
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32))
    with torch.no_grad():
        whole(x)
        logits = model(x)
        expected = found["maps"].mean((2, 3)) @ model.fc.weight.T + model.fc.bias
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert logits.shape == (2, 5)


@pytest.mark.slow
def test_a_network_of_timm_as_onnx(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("onnxscript")
    out = tmp_path / "timm"
    done = finetune(options("timm:resnet10t@random", photos, out, size=64, epochs=1, batch=24, rate=1e-3))
    assert done.classifier is not None
    model = open_backbone("timm:resnet10t@random", 3, size=64, weights=None, seed=0)
    model.load_state_dict(state(out)["model"])
    x = np.random.default_rng(0).normal(size=(5, 3, 64, 64)).astype(np.float32)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(x)).numpy()
    (found,) = onnxruntime.InferenceSession(done.classifier).run(None, {"input": x})
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert metadata.of_file(done.classifier)[metadata.NAME] == "timm"


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("backbone", "word"),
    [
        ("timm:vit_tiny_patch16_224@random", "expected feature maps .*timm:resnet18"),
        ("torchvision:vit_b_16@random", "are followed by .*use a convolutional network"),
        ("timm:no_such_net", "timm has no classifier 'no_such_net'"),
        ("nowhere.prototxt", "expected timm:NAME, torchvision:NAME, or the file of a train_val prototxt"),
    ],
)
def test_backbones_that_cannot_be(backbone: str, word: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(CamrtError, match=word):
        open_backbone(backbone, 2, size=None, weights=None, seed=0)


def test_a_snapshot_of_another_run(net: Path, photos: Path, tmp_path: Path) -> None:
    finetune(options(net, photos, tmp_path / "a", epochs=0))
    with pytest.raises(CamrtError, match=r"a_state.pt: found the snapshot of an earlier run.*--resume.*--restart"):
        finetune(options(net, photos, tmp_path / "a", epochs=0))
    with pytest.raises(CamrtError, match=r"another run: batch 8 instead of 4"):
        finetune(options(net, photos, tmp_path / "a", epochs=0, batch=4, resume=True))
    (tmp_path / "a_state.pt").write_bytes(b"\x80\x02broken")
    with pytest.raises(CamrtError, match=r"a_state.pt: cannot be read as a snapshot.*--restart"):
        finetune(options(net, photos, tmp_path / "a", epochs=0, resume=True))


def test_images_and_classes(photos: Path, tmp_path: Path) -> None:
    chosen = options("x", photos, tmp_path / "x")
    train, test, names = open_photographs(chosen)
    assert (len(train.paths), len(test.paths), names) == (48, 12, ("apples", "limes", "plums"))
    assert np.bincount(test.labels).tolist() == [4, 4, 4]
    assert not set(train.paths) & set(test.paths)
    (tmp_path / "names.txt").write_text("plums\napples\n")
    train, test, names = open_photographs(options("x", photos, tmp_path / "x", classes=str(tmp_path / "names.txt")))
    assert (len(train.paths), names) == (32, ("plums", "apples"))
    assert all(("plums" in path) == (label == 0) for path, label in zip(*train, strict=True))
    (tmp_path / "names.txt").write_text("plums\nkiwis\n")
    with pytest.raises(CamrtError, match="found no images of kiwis"):
        open_photographs(options("x", photos, tmp_path / "x", classes=str(tmp_path / "names.txt")))
    with pytest.raises(CamrtError, match=r"'auto' or a file"):
        open_photographs(options("x", photos, tmp_path / "x", classes="nowhere.txt"))
    with pytest.raises(CamrtError, match="expected photographs"):
        open_photographs(FinetuneOptions("x", "clutter:drawn"))


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"holdout": 1.0}, "--holdout 1.0"),
        ({"epochs": 0, "head_epochs": 0}, "1 epoch or more"),
        ({"ema": 1.0}, "--ema 1.0"),
        ({"rate": float("nan")}, "--lr nan"),
        ({"smoothing": -0.1}, "--label-smoothing"),
        ({"size": 8}, "--size 8"),
        ({"resume": True, "restart": True}, "--restart together with --resume"),
    ],
)
def test_options_that_cannot_be(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(CamrtError, match=word):
        FinetuneOptions("timm:x", "folder:x", **wrong)
