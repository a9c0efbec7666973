"""Occlusion in the graph, against captum's and the method that only runs the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from camrt import Explainer
from camrt.errors import CamrtError
from camrt.graph import explain_graph
from tests.camrt.classifiers import classifier
from tests.camrt.graph.explainers import PREPROCESS
from tests.camrt.graph.torch_networks import PREPROCESS as PLAIN
from tests.camrt.graph.torch_networks import SIDE, explained, exported, images, network, tensor_of, transformer

TOP = 3
TOLERANCE = 1e-4


@pytest.mark.parametrize("baseline", ["mean", "black"])
@pytest.mark.parametrize(("window", "stride"), [(0.2, 0.1), (0.25, 0.25), (0.4, 0.3), (1.0, 1.0)])
@pytest.mark.parametrize("kind", ["vgg", "transformer"])
def test_occlusion_of_captum(kind: str, window: float, stride: float, baseline: str) -> None:
    attr = pytest.importorskip("captum.attr", reason="captum is not installed (pip install captum)")
    module = transformer() if kind == "transformer" else network(kind)
    settings = {"window": window, "stride": stride, "baseline": baseline, "values": "signed"}
    _, classes, heatmaps = explained(exported(module), images(), method="occlusion", top=TOP, settings=settings)
    length, step = round(window * SIDE), round(stride * SIDE)
    for rank in range(TOP):
        theirs = attr.Occlusion(module).attribute(
            tensor_of(images()), (3, length, length), (3, step, step), -2.0 if baseline == "black" else 0.0,
            target=classes[:, rank].tolist(), perturbations_per_eval=8,
        ).detach().numpy()  # fmt: skip
        np.testing.assert_allclose(heatmaps[:, rank], theirs[:, 0], atol=TOLERANCE * np.abs(theirs).max())
    assert heatmaps.min() < 0 or window == 1


def test_only_what_lowers_the_score() -> None:
    model = exported(network("vgg"))
    signed, positive = (
        explained(model, images(), method="occlusion", target=2, settings={"values": values})[2]
        for values in ("signed", "positive")
    )
    np.testing.assert_allclose(positive, np.maximum(signed, 0), atol=1e-6)


def test_it_is_the_black_box_method() -> None:
    """Of a named tensor of scores, which both explain as it is."""
    model = exported(network("gap"))
    common: dict[str, Any] = {"preprocess": PLAIN, "target": 3, "scores": "logits", "protocol": "center"}
    black_box = Explainer(model, "blackbox-occlusion", **common)(images()[0]).heatmaps
    inside = Explainer(model, "occlusion", settings={"values": "signed"}, **common)(images()[0]).heatmaps
    np.testing.assert_allclose(inside, black_box, atol=TOLERANCE * np.abs(black_box).max())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"window": 0}, "window 0.0 and stride 0.1, expected fractions from 0.01 to 1"),
        ({"window": "nan"}, "window nan"),
        ({"stride": 0.3}, "stride 0.3, .* not larger than the window"),
        ({"window": 2}, "window 2.0"),
        ({"stride": 0.001}, "stride 0.001"),
        ({"baseline": "white"}, "baseline 'white', expected positive or signed, and black or mean"),
        ({"values": "both"}, "values 'both'"),
    ],
)
def test_errors(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(CamrtError, match=words):
        explain_graph(classifier("gemm"), "occlusion", "center", preprocess=PREPROCESS, settings=settings)
