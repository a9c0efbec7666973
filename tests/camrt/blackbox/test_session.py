"""Black-box methods through `camrt.Explainer`, and networks that are no plain graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import camrt
from camrt import CamrtError, Explainer
from camrt.blackbox.scorer import Scorer
from camrt.graph.methods import BLACK_BOX
from camrt.preprocess import Preprocess
from tests.tiny_models import CLASSES, photo, tiny_classifier

FAST: dict[str, dict[str, Any]] = {"rise": {"masks": 24}, "kernelshap": {"samples": 40, "segments": 6}}
SIDE = 12
PLAIN = Preprocess(size=SIDE, crop=SIDE, mean=(0.0, 0.0, 0.0), channels="RGB")


def model_of(nodes: list[Any], outputs: list[Any], weights: dict[str, Any], batch: int | str = "N") -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def recurrent() -> onnx.ModelProto:
    """An LSTM over the image's rows, of one image at a time."""
    draw = np.random.default_rng(2)
    weights = {
        "rows": np.array([SIDE, 1, 3 * SIDE], np.int64),
        "w": draw.standard_normal((1, 20, 3 * SIDE)).astype(np.float32) / 200,
        "r": draw.standard_normal((1, 20, 5)).astype(np.float32) / 2,
        "flat": np.array([1, 5], np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["data"], ["turned"], perm=[2, 0, 1, 3]),
        helper.make_node("Reshape", ["turned", "rows"], ["sequence"]),
        helper.make_node("LSTM", ["sequence", "w", "r"], ["", "last"], hidden_size=5),
        helper.make_node("Reshape", ["last", "flat"], ["logits"]),
    ]
    return model_of(nodes, [("logits", [1, 5])], weights, batch=1)


def branching() -> onnx.ModelProto:
    """One of two linear layers, chosen by the image's brightness: no gradient passes, and no shape is told."""
    draw = np.random.default_rng(4)
    weights = {f"w{n}": draw.standard_normal((3 * SIDE * SIDE, 4)).astype(np.float32) / 3000 for n in range(2)}
    bodies = [
        helper.make_graph(
            [helper.make_node("MatMul", ["flat", f"w{n}"], [f"out{n}"])], f"body{n}", [],
            [helper.make_tensor_value_info(f"out{n}", TensorProto.FLOAT, None)],
        )
        for n in range(2)
    ]  # fmt: skip
    nodes = [
        helper.make_node("Flatten", ["data"], ["flat"]),
        helper.make_node("ReduceMean", ["data"], ["mean"], keepdims=0),
        helper.make_node("Greater", ["mean", "limit"], ["bright"]),
        helper.make_node("If", ["bright"], ["logits"], then_branch=bodies[0], else_branch=bodies[1]),
    ]
    return model_of(nodes, [("logits", None)], {**weights, "limit": np.array(60, np.float32)})


@pytest.mark.parametrize("method", [*BLACK_BOX])
def test_every_method_explains(method: str, tmp_path: Path) -> None:
    if method == "kernelshap":
        pytest.importorskip("skimage", reason="scikit-image is not installed")
    explainer = Explainer(tiny_classifier(), method, top=2, providers="cpu", settings=FAST.get(method))
    explanation = explainer(photo(40, 50, 1))
    assert (explainer.method, explainer.protocol, explanation.method) == (method, "whole", method)
    assert explanation.heatmaps.shape == (2, explainer.size, explainer.size)
    assert explanation.scores[0] >= explanation.scores[1]
    np.testing.assert_allclose(explanation.all_scores.sum(), 1, rtol=1e-5)
    has_errors = method in ("rise", "kernelshap")
    assert (explanation.standard_errors is not None) == has_errors
    explanation.save_files(tmp_path, stem="x", maps="npz")
    assert ("standard_errors" in np.load(tmp_path / "x_maps.npz")) == has_errors


def test_scores_are_those_of_the_explainer_graph() -> None:
    image = photo(40, 50, 1)
    for protocol in ("whole", "center"):
        found = Explainer(tiny_classifier(), "baseline-center", protocol, providers="cpu")(image)
        expected = Explainer(tiny_classifier(), "cam", protocol, top=1, providers="cpu")(image)
        np.testing.assert_allclose(found.all_scores, expected.all_scores, rtol=1e-5)
        assert (found.classes, found.labels) == (expected.classes, expected.labels)
    border = found.heatmaps[0].copy()  # of "center": what the network does not see has no map
    border[2:-2, 2:-2] = 0
    assert not border.any()
    assert found.heatmaps[0, 2:-2, 2:-2].all()


@pytest.mark.parametrize("make", [recurrent, branching])
def test_networks_that_have_no_gradient(make: Any) -> None:
    model = make()
    explainer = Explainer(model, "blackbox-occlusion", providers="cpu", preprocess=PLAIN, top=1)
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    found = explainer(image)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def probabilities(square: Any) -> Any:
        logits = session.run(None, {"data": square.transpose(2, 0, 1)[None].astype(np.float32)})[0][0]
        return np.exp(logits) / np.exp(logits).sum()

    np.testing.assert_allclose(found.all_scores, probabilities(image), rtol=1e-5)
    covered = image.copy()
    covered[:2, :2] = 0  # a window is 2 pixels, and the first pixel is in one window alone
    best = int(found.classes[0])
    drop = probabilities(image)[best] - probabilities(covered)[best]
    np.testing.assert_allclose(found.heatmaps[0, 0, 0], drop, atol=1e-6)


def test_a_network_with_an_if_scores_images_of_both_kinds_one_by_one() -> None:
    scorer = Scorer(branching(), preprocess=PLAIN, providers="cpu")
    dark, bright = (np.full((1, 3, SIDE, SIDE), value, np.float32) for value in (10, 200))
    both = scorer(np.concatenate([dark, bright]))
    np.testing.assert_array_equal(both, np.concatenate([scorer(dark), scorer(bright)]))


def test_targets() -> None:
    image = photo(30, 30, 2)
    by_name = Explainer(tiny_classifier(), "rise", target=["class <4> & co", 1], settings=FAST["rise"], providers="cpu")
    assert by_name(image).classes.tolist() == [4, 1]
    each = Explainer(tiny_classifier(), "rise", target="input", settings=FAST["rise"], providers="cpu")
    np.testing.assert_array_equal(each(image, 4).heatmaps[0], by_name(image).heatmaps[0])
    open_ = Explainer(tiny_classifier(), "rise", target="any", top=2, settings=FAST["rise"], providers="cpu")
    assert open_(image, 4).classes[0] == 4
    assert open_(image).classes[0] == open_(image).all_scores.argmax()


def test_any_tensor_can_be_summed() -> None:
    found = Explainer(
        tiny_classifier(), "blackbox-occlusion", scores="relu", target="sum", providers="cpu"
    )(photo(28, 28, 3))  # fmt: skip
    assert found.labels == ("sum of relu",)
    assert found.heatmaps.shape[0] == 1
    assert found.heatmaps.any()


def test_a_named_tensor_of_scores_is_taken_as_it_is() -> None:
    image = photo(28, 28, 3)
    logits = Explainer(tiny_classifier(), "baseline-center", scores="logits", providers="cpu")(image).all_scores
    scores = Explainer(tiny_classifier(), "baseline-center", providers="cpu")(image).all_scores
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(), scores, rtol=1e-5)


def test_progress_counts_masks() -> None:
    explainer = Explainer(tiny_classifier(), "rise", settings={"masks": 40}, providers="cpu")
    told: list[tuple[int, int]] = []
    explainer.session.progress = lambda *done: told.append(done)  # type: ignore[union-attr]
    explainer(photo(28, 28, 3))
    assert told == [(16, 40), (32, 40), (40, 40)]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"layer": "relu"}, "sees no layers"),
        ({"settings": {"mask": 3}}, "masks=2000"),
        ({"settings": {"masks": "many"}}, "rise's masks 'many'"),
        ({"protocol": "ten-crop"}, "expected one of whole, center"),
        ({"top": CLASSES + 1}, f"expected 1 to {CLASSES}"),
        ({"target": "clas <4> & co"}, "class <4> & co"),
        ({"scores": "nothing"}, "expected a tensor of the model"),
        ({"target": "sum"}, "--scores"),
    ],
)
def test_wrong_arguments(arguments: Any, text: str) -> None:
    with pytest.raises(CamrtError, match=text):
        Explainer(tiny_classifier(), "rise", providers="cpu", **arguments)


def test_they_are_no_part_of_a_graph() -> None:
    with pytest.raises(CamrtError, match="no part of a graph: camrt explain") as caught:
        camrt.explain_graph(tiny_classifier(), "rise")
    assert "layercam" in str(caught.value)


def test_an_explainer_graph_cannot_be_scored() -> None:
    with pytest.raises(CamrtError, match="expected the classifier that it was made of"):
        Explainer(camrt.explain_graph(tiny_classifier()), "rise")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from camrt.cli import app

    sample = Path(__file__).parents[3] / "models" / "lenetCAM" / "sample.png"
    out = tmp_path / "out"
    arguments = ["explain", str(sample), "--model", "lenetCAM", "--method", "rise", "--set", "masks=20"]
    result = CliRunner().invoke(app, [*arguments, "--top", "1", "--out", str(out), "--maps", "npz"])
    assert result.exit_code == 0, result.output
    assert np.load(out / "sample_maps.npz")["standard_errors"].shape == (1, 100, 100)
    result = CliRunner().invoke(app, ["export", "lenetCAM", "--method", "rise", "-o", str(tmp_path / "rise.onnx")])
    assert result.exit_code == 1
    assert "no part of a graph" in result.output
    assert not (tmp_path / "rise.onnx").exists()


def test_progress_through_images_adds_up_to_their_number() -> None:
    from camrt.batch import _through_images

    explainer = Explainer(tiny_classifier(), "rise", settings={"masks": 40}, providers="cpu")
    moved: list[float] = []
    advance = _through_images(explainer, moved.append)
    for _ in range(3):
        explainer(photo(28, 28, 3))
        advance(1)
    advance(1)  # an image that could not be read
    np.testing.assert_allclose(np.cumsum(moved)[[2, 6, -1]], [1, 2, 4], atol=1e-9)
