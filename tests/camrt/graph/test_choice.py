"""The method where none is asked for."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from camrt import CamrtError, Explainer
from camrt.graph import explain_graph
from camrt.graph.explain import describe
from tests.camrt.classifiers import SIDE, WITH_HEAD, classifier
from tests.camrt.graph.explainers import PREPROCESS, images, run

POOLING = "the network ends in global average pooling and one linear layer"


def taken(model: onnx.ModelProto, **options: Any) -> tuple[str, str]:
    """The method by default, and why."""
    facts = describe(explain_graph(model, preprocess=PREPROCESS, **options))
    return str(facts["method"]), str(facts["reason"])


@pytest.mark.parametrize("head", [*WITH_HEAD, "two_layers", "flattened", "attention"])
def test_the_head_decides(head: str) -> None:
    """The explainer is the one that is made where the method is named."""
    method = "cam" if head in WITH_HEAD else "gradcam"
    model, feed = classifier(head), {"image": images(2, SIDE)}
    explainer = explain_graph(model, preprocess=PREPROCESS)
    named = explain_graph(model, method, preprocess=PREPROCESS)
    for one, other in zip(run(explainer, feed), run(named, feed), strict=True):
        np.testing.assert_array_equal(one, other)
    facts = dict(describe(explainer))
    assert str(facts.pop("reason")).startswith(POOLING if method == "cam" else "the network has no head for class")
    assert facts == describe(named)


def test_the_reason_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="camrt"):
        explain_graph(classifier("two_layers"), preprocess=PREPROCESS)
    assert (
        "the method is gradcam: the network has no head for class activation maps: output 'prob': before its linear "
        "layer 'fc2' (Gemm) is 'relu2' (Relu), expected a global average pooling" in caplog.text
    )


def test_what_is_asked_for_decides_too() -> None:
    model = classifier("gemm")
    assert taken(model, layer="features")[0] == "cam"
    assert taken(model, layer="relu")[0] == "cam"  # the node that makes them
    assert taken(model, scores="prob")[0] == "cam"
    assert taken(model, layer="conv") == (
        "gradcam", "the head for class activation maps reads 'features', which was not named",
    )  # fmt: skip
    assert taken(model, layer=["conv", "features"])[0] == "gradcam"
    assert taken(model, scores="logits") == (
        "gradcam", "the head for class activation maps gives 'prob', explained is 'logits'",
    )  # fmt: skip
    assert taken(model, scores="logits", target="sum")[0] == "gradcam"
    assert taken(model, classifier="fc")[0] == "cam"
    with pytest.raises(CamrtError, match="not in 'conv'"):  # who names a linear layer wants class activation maps
        taken(model, classifier="conv")
    with pytest.raises(CamrtError, match="found the setting 'samples' of cam"):
        taken(model, settings={"samples": 3})


def test_a_head_that_reads_one_position() -> None:
    """A network that pools twice: the features before the first pooling have positions."""
    model = classifier("gemm")
    (pooling,) = (node for node in model.graph.node if node.name == "pool")
    first = helper.make_node("MaxPool", ["features"], ["small"], "first", kernel_shape=[SIDE // 2, SIDE // 2])
    pooling.input[0] = "small"
    model.graph.node.insert(2, first)
    explainer = explain_graph(model, preprocess=PREPROCESS)
    assert describe(explainer)["method"] == "gradcam"
    assert describe(explainer)["layer"] == ["features"]
    assert "of one position" in str(describe(explainer)["reason"])


def test_metadata_that_name_what_is_no_head() -> None:
    model = classifier("two_layers", metadata={"camrt.features": "features", "camrt.classifier": "fc"})
    assert taken(model)[0] == "gradcam"


CASES: list[tuple[str, str, dict[str, Any], str]] = [
    ("timm", "vit_tiny_patch16_224", {"depth": 2, "embed_dim": 48, "num_heads": 3}, "gradcam"),
    ("timm", "test_convnext", {}, "gradcam"),
    ("timm", "test_efficientnet", {}, "cam"),
    ("torchvision", "mobilenet_v3_small", {}, "gradcam"),  # two linear layers
]


@pytest.mark.parametrize(("library", "name", "options", "method"), CASES, ids=[case[1] for case in CASES])
def test_networks_of_today(library: str, name: str, options: dict[str, Any], method: str) -> None:
    """`Explainer(model)` alone explains what PyTorch exports, transformers too."""
    for needed in ("torch", "torchvision", "timm"):
        pytest.importorskip(needed, reason=f"{needed} is not installed: its networks are not tested")
    from benchmarks import architectures

    made, side = architectures.network(library, name, options)
    model = architectures.exported(made, side, "torchscript")
    explainer = Explainer(model, preprocess=PREPROCESS.cropped(side))
    assert explainer.method == method
    explanation = explainer(images(1, side)[0])
    assert explanation.method == method
    assert np.ptp(explanation.heatmaps[0]) > 0
