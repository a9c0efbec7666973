"""The classifier alone sees what its explainer shows it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from camrt import CamrtError, Explainer, explain_graph
from camrt.blackbox.scorer import Scorer
from camrt.evaluate.network import Network, load_classifier
from camrt.preprocess import Preprocess
from tests.camrt.classifiers import CLASSES, SIDE, classifier
from tests.tiny_models import tiny_classifier

WANTS = Preprocess(SIDE + 5, SIDE, (104.0, 117.0, 123.0), (0.5, 0.25, 2.0))


def squares(side: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("channels", ["BGR", "RGB"])
@pytest.mark.parametrize("softmax", [True, False])
def test_scores_are_those_of_the_explainer(channels: str, softmax: bool) -> None:
    model = classifier("gemm", batch=1, softmax=softmax)
    wants = Preprocess(SIDE + 5, SIDE, WANTS.mean, WANTS.scale, channels)
    network = Scorer(model, "center", preprocess=wants)
    images = squares(SIDE + 5)
    found = network(np.stack([network.prepare(image) for image in images]))
    explained = Explainer(explain_graph(model, protocol="center", preprocess=wants, top=1))
    expected = np.stack([explained(image).all_scores for image in images])
    assert found.shape == (3, CLASSES)
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_mean_image_is_subtracted() -> None:
    mean = np.random.default_rng(1).uniform(0, 255, (3, SIDE + 5, SIDE + 5)).astype(np.float32)
    wants = Preprocess(SIDE + 5, SIDE, WANTS.mean, mean_image=mean)
    network = Scorer(classifier("gemm"), "center", preprocess=wants)
    square = squares(SIDE + 5, 1)[0]
    crop = slice(3, 3 + SIDE)  # as the original's prepare_image.m rounds the centre
    assert np.array_equal(network.prepare(square), (square[:, :, ::-1].transpose(2, 0, 1) - mean)[:, crop, crop])
    heatmap = np.arange((SIDE + 5) ** 2, dtype=np.float32).reshape(SIDE + 5, SIDE + 5)
    assert np.array_equal(network.crop(heatmap), heatmap[crop, crop])


def test_the_whole_image_is_squeezed_to_the_networks_input() -> None:
    network = Scorer(tiny_classifier(28), "whole")
    assert network.size == 28
    assert network.prepare(squares(28, 1)[0]).shape == (3, 28, 28)


def test_full_sees_the_square() -> None:
    network = Scorer(tiny_classifier(28), "full")
    assert network.size == 32
    assert network(network.prepare(squares(32, 1)[0])[None]).shape == (1, 7)


def test_the_precision_decides_which_results_count() -> None:
    """Results of another precision differ by more than rounding; those of another provider do not."""
    exact = Network("lenetCAM").settings("cam")
    assert Network("lenetCAM", precision="fp32", providers="openvino").settings("cam") == exact
    assert Network("lenetCAM", precision="bf16").settings("cam") == {**exact, "precision": "bf16"}


def test_an_explainer_is_no_classifier(tmp_path) -> None:
    with pytest.raises(CamrtError, match="found an explainer graph, expected the classifier"):
        Scorer(explain_graph(tiny_classifier(), top=1))


def test_loading_by_path(tmp_path) -> None:
    onnx.save(tiny_classifier(), tmp_path / "net.onnx")
    assert load_classifier(str(tmp_path / "net.onnx")) == tiny_classifier()
    with pytest.raises(CamrtError, match="there is no such file"):
        load_classifier(str(tmp_path / "none.onnx"))
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(CamrtError, match="is not a readable ONNX model"):
        load_classifier(str(tmp_path / "broken.onnx"))
