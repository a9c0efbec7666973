"""Expected gradients and their background, against captum's GradientShap at the same points."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from camrt import Explainer
from camrt.errors import CamrtError
from camrt.graph import explain_graph
from camrt.graph.methods.context import GRADIENT
from tests.camrt.classifiers import classifier
from tests.camrt.commands.command_line import run as run_command
from tests.camrt.graph.explainers import PREPROCESS as SMALL
from tests.camrt.graph.explainers import SIZE
from tests.camrt.graph.torch_networks import PREPROCESS, SIDE, exported, images, network, run, tensor_of, transformer

TOP = 2
SETTINGS = {"samples": 5}


def others(count: int = 3, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(8).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def held(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name.removeprefix("camrt/"): numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("kind", ["vgg", "residual", "transformer"])
def test_expected_gradients_of_captum(kind: str, given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """captum draws the baselines and the points with NumPy: here it draws those that the graph holds."""
    attr = pytest.importorskip("captum.attr", reason="captum is not installed (pip install captum)")
    import torch

    module = transformer() if kind == "transformer" else network(kind)
    background = others() if given else None
    explainer = explain_graph(
        exported(module), "expected-gradients", top=TOP, preprocess=PREPROCESS, settings=SETTINGS, background=background
    )
    _, classes, heatmaps, added = run(explainer, images(), GRADIENT)
    inside = held(explainer)
    turns, parts = inside["turns"], inside["parts"]
    assert sorted(turns[: len(inside["background"])]) == list(range(3)) if given else len(set(turns)) == 5
    assert len(set(parts.tolist())) == 5
    whole = np.broadcast_to(inside["background"], (len(inside["background"]), SIDE, SIDE, 3))
    for n, rank in np.ndindex(2, TOP):
        with monkeypatch.context() as patch:
            patch.setattr(np.random, "choice", lambda count, number: turns)
            patch.setattr(np.random, "uniform", lambda low, high, number: parts)
            theirs = attr.GradientShap(module).attribute(
                tensor_of(images())[n : n + 1], tensor_of(whole), n_samples=5, stdevs=0.0, target=int(classes[n, rank])
            )[0].detach().numpy()  # fmt: skip
        np.testing.assert_allclose(added[n, 0, rank], theirs, atol=1e-4 * np.abs(theirs).max())
        np.testing.assert_allclose(heatmaps[n, rank], np.abs(theirs.sum(0)), atol=2e-4 * np.abs(theirs).max())
    assert isinstance(module, torch.nn.Module)


def test_it_adds_up_to_the_distance_from_the_mean_score() -> None:
    """Completeness in expectation (Erion et al. 2021), where each image of the background has many points."""
    torch = pytest.importorskip("torch")
    module = network("vgg")
    explainer = explain_graph(
        exported(module), "expected-gradients", target=[1], preprocess=PREPROCESS, background=others(),
        settings={"samples": 900, "values": "signed"},
    )  # fmt: skip
    heatmaps = run(explainer, images())[2]
    with torch.no_grad():
        gain = module(tensor_of(images()))[:, 1] - module(tensor_of(others()))[:, 1].mean()
    np.testing.assert_allclose(heatmaps.sum((1, 2, 3)), gain.numpy(), rtol=0.05, atol=0.05 * float(abs(gain).max()))


@pytest.mark.parametrize("smooth", [None, "augment"])
def test_ten_crops_see_ten_crops_of_the_background(smooth: str | None) -> None:
    """With itself as its only background, an image differs in nothing."""
    image = others(1, SIZE)
    explainer = explain_graph(
        classifier("gemm"), "expected-gradients", "ten-crop", target=1, preprocess=SMALL, background=image,
        settings=SETTINGS, smooth=smooth,
    )  # fmt: skip
    same, other = run(explainer, np.concatenate([image, others(2, SIZE)[1:]]))[2]
    assert not same.any()
    assert other.any()


def test_metadata_and_explainers(tmp_path: Path) -> None:
    for number, pixels in enumerate(others(3, 40)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    paths = sorted(tmp_path.glob("*.png"))
    explainer = Explainer(classifier("gemm"), "expected-gradients", preprocess=SMALL, background=paths)
    facts = json.loads(explainer.session.metadata["camrt.explainer"])
    assert facts["background"] == 3
    assert explainer(paths[0]).heatmaps.any()
    model = explain_graph(classifier("gemm"), "expected-gradients", preprocess=SMALL)
    with pytest.raises(CamrtError, match="with no background, expected 3 images"):
        Explainer(model, background=paths)


@pytest.mark.parametrize(
    ("method", "background", "words"),
    [
        ("gradcam", others(), "a background with the method gradcam, .* no images: expected-gradients does"),
        (None, others(), "a background with the method None"),
        ("expected-gradients", others(2, 8), r"shape \(2, 8, 8, 3\) and type uint8, expected 1 to 256 images: \(B, 16"),
        ("expected-gradients", others(0, 16), r"shape \(0, 16, 16, 3\)"),
        ("expected-gradients", others(2, 16) / 255, "type float64"),
        ("expected-gradients", np.zeros((300, 16, 16, 3), np.uint8), "expected 1 to 256 images"),
    ],
)  # fmt: skip
def test_errors(method: str | None, background: Any, words: str) -> None:
    with pytest.raises(CamrtError, match=words):
        explain_graph(classifier("gemm"), method, preprocess=SMALL, background=background)


@pytest.mark.parametrize(
    ("method", "background", "words"),
    [
        ("expected-gradients", [], "found no images in the background"),
        ("expected-gradients", ["none.png"], "none.png"),
        ("rise", ["none.png"], "rise compares with no images"),
    ],
)
def test_errors_of_explainers(method: str, background: list[str], words: str) -> None:
    with pytest.raises(CamrtError, match=words):
        Explainer(classifier("gemm"), method, preprocess=SMALL, background=background)


def test_settings() -> None:
    for settings in ({"samples": 0}, {"values": "both"}):
        with pytest.raises(CamrtError, match="expected at least 1, and magnitude or signed"):
            explain_graph(classifier("gemm"), "expected-gradients", preprocess=SMALL, settings=settings)


def test_command_line(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "empty").mkdir()
    for number, pixels in enumerate(others(2, 30)):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    onnx.save(classifier("gemm", metadata={"camrt.preprocess": SMALL.as_json()}), tmp_path / "net.onnx")
    command = ["export", str(tmp_path / "net.onnx"), "--method", "expected-gradients", "-o", str(tmp_path / "x.onnx")]
    status, out, err = run_command(*command, "--background", str(tmp_path / "photos"), "--json")
    assert status == 0, err
    assert json.loads(out)["background"] == 2
    for folder in ("empty", "none"):
        status, _, err = run_command(*command, "--background", str(tmp_path / folder))
        assert status == 2
        assert "expected a folder of images" in " ".join(err.replace("│", " ").split())
