"""What is explained: the best classes, given ones, a class that comes with each image, any tensor."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from camrt import Explainer
from camrt.errors import CamrtError
from camrt.graph import explain_graph
from camrt.graph.explain import MAPS
from tests.camrt.classifiers import CHANNELS, CLASSES, SIDE, classifier
from tests.camrt.graph.explainers import PREPROCESS, SIZE, images, run, with_output

NAMES = ("red fox", "grey fox", "cup", "7")
METHODS = ("cam", "gradcam", "eigencam", "scorecam", "input-gradient", "integrated-gradients")


def named() -> onnx.ModelProto:
    return classifier("gemm", metadata={"camrt.labels": json.dumps(NAMES), "camrt.preprocess": PREPROCESS.as_json()})


def facts(model: onnx.ModelProto) -> dict[str, Any]:
    return json.loads({entry.key: entry.value for entry in model.metadata_props}["camrt.explainer"])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("protocol", ["center", "ten-crop"])
def test_a_class_that_comes_with_each_image(name: str, protocol: str) -> None:
    """The graph's second input: the maps are those of the same classes among the best."""
    batch = images(3)
    _, classes, heatmaps = run(explain_graph(named(), name, protocol, top=CLASSES), {"image": batch})
    explainer = explain_graph(named(), name, protocol, top=2, target="input")
    shapes = {value.name: len(value.type.tensor_type.shape.dim) for value in explainer.graph.input}
    assert shapes == {"image": 4, "target": 2}
    asked = np.array([[2, 0], [1, 1], [3, 2]])
    scores, found, maps = run(explainer, {"image": batch, "target": asked})
    np.testing.assert_array_equal(found, asked)
    assert scores.shape == (3, CLASSES)
    for n in range(3):
        for rank in range(2):
            same = heatmaps[n, classes[n].tolist().index(asked[n, rank])]
            np.testing.assert_allclose(maps[n, rank], same, atol=1e-5 * heatmaps.max())
    assert facts(explainer)["target"] == "input"


@pytest.mark.parametrize("name", METHODS)
def test_any_class_or_else_the_best(name: str) -> None:
    batch = images(3)
    _, best, best_maps = run(explain_graph(named(), name, "center", top=2), {"image": batch})
    explainer = explain_graph(named(), name, "center", top=2, target="any")
    assert facts(explainer)["target"] == "any"
    _, found, maps = run(explainer, {"image": batch, "target": np.full((3, 2), -1)})
    np.testing.assert_array_equal(found, best)
    np.testing.assert_allclose(maps, best_maps, rtol=1e-6)
    given = explain_graph(named(), name, "center", top=2, target="input")
    asked = np.stack([np.full(3, 3), best[:, 1]], axis=1)
    wanted = run(given, {"image": batch, "target": asked})
    asked[:, 1] = -5  # any negative number
    for ours, theirs in zip(run(explainer, {"image": batch, "target": asked}), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "eigencam"])  # which is the same for all
@pytest.mark.parametrize("wrong", [CLASSES, 1000])  # ONNX counts negative ones from the end
def test_a_class_out_of_range_is_no_empty_map(name: str, wrong: int) -> None:
    """In plain ONNX Runtime too."""
    explainer = explain_graph(named(), name, "center", target="input")
    with pytest.raises(Exception, match=r"[Ii]ndex|indices|out of"):
        run(explainer, {"image": images(1), "target": np.array([[wrong]])})


@pytest.mark.parametrize("target", [2, "cup", [2], ["cup"], np.int64(2)])
def test_given_classes(target: Any) -> None:
    explainer = explain_graph(named(), "gradcam", target=target, protocol="ten-crop")
    _, classes, heatmaps = run(explainer, {"image": images(2)})
    assert classes.tolist() == [[2], [2]]
    _, best, maps = run(explain_graph(named(), "gradcam", top=CLASSES, protocol="ten-crop"), {"image": images(2)})
    for n in range(2):
        np.testing.assert_allclose(heatmaps[n, 0], maps[n, best[n].tolist().index(2)], atol=1e-5 * maps.max())
    assert facts(explainer)["target"] == [2]
    assert facts(explainer)["top"] == 1


def test_a_name_goes_before_a_number() -> None:
    assert facts(explain_graph(named(), "gradcam", target="7"))["target"] == [3]
    assert facts(explain_graph(named(), "gradcam", target=["1", "grey fox", "cup"]))["target"] == [1, 1, 2]
    unnamed = classifier("gemm")
    assert facts(explain_graph(unnamed, "gradcam", target="1", preprocess=PREPROCESS))["target"] == [1]
    labelled = explain_graph(unnamed, "gradcam", target="cup", preprocess=PREPROCESS, labels=NAMES)
    assert facts(labelled)["target"] == [2]
    properties = {entry.key: entry.value for entry in labelled.metadata_props}
    assert json.loads(properties["camrt.labels"]) == list(NAMES)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "red fux"}, "found the class 'red fux', which the model does not know. Did you mean 'red fox' or"),
        ({"target": "zebra"}, "found the class 'zebra', which the model does not know"),
        ({"target": 4}, "found the class 4, expected 0 to 3"),
        ({"target": -1}, "found the class -1, expected 0 to 3"),
        ({"target": "-1"}, "found the class -1, expected 0 to 3"),
        ({"target": 1.5}, "found the class 1.5, expected its number or name"),
        ({"target": []}, "found no target"),
        ({"target": [0, 1], "top": 3}, "found top 3 and 2 targets"),
        ({"target": "input", "top": 5}, "found top 5, expected 1 to 4"),
        ({"target": "sum", "top": 2}, "expected top 1: a sum has one map"),
        ({"target": "sum", "method": "cam"}, "'sum' with the method cam, which explains classes"),
        ({"labels": ["a", "b"]}, "found 2 names, expected one for each of the 4 classes"),
        ({"scores": "logit"}, "expected a tensor of the model, or a node. Did you mean 'logits'"),
        ({"scores": "features"}, "found the scores 'features' of shape .*, expected N x classes. To explain the sum"),
        ({"scores": "fc", "method": "cam", "target": 0}, "cam explains what its head gives"),
    ],
)  # fmt: skip
def test_wrong_targets(options: dict[str, Any], words: str) -> None:
    with pytest.raises(CamrtError, match=words):
        explain_graph(named(), **{"method": "gradcam", **options})


def test_a_name_where_names_are_not_known() -> None:
    with pytest.raises(CamrtError, match="the model does not know names"):
        explain_graph(classifier("gemm"), "gradcam", target="cup", preprocess=PREPROCESS)
    doubled = {"camrt.labels": json.dumps(["crane", "cup", "crane", "x"])}
    with pytest.raises(CamrtError, match=re.escape("which 2 classes are called: give one of [0, 2]")):
        explain_graph(classifier("gemm", metadata=doubled), "gradcam", target="crane", preprocess=PREPROCESS)


# ------------------------------------------------------------------------------------------------------- any tensor


def two_outputs() -> onnx.ModelProto:
    """Classes, and beside them a tensor (N, 5, 8, 8) of something else, made of the same features."""
    model = classifier("gemm")
    kernel = np.random.default_rng(3).normal(0, 1, (5, CHANNELS, 1, 1)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(kernel, "boxes.weight"))
    model.graph.node.append(helper.make_node("Conv", ["features", "boxes.weight"], ["raw"], "boxes"))
    model.graph.node.append(helper.make_node("Mul", ["raw", "raw"], ["boxes"], "square"))
    model.graph.output.append(
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["batch", 5, SIDE // 2, SIDE // 2])
    )
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("protocol", ["center", "ten-crop"])
def test_the_sum_of_any_tensor(protocol: str) -> None:
    """Of sum (w * A)^2 the derivative is 2 (w * A) w: Grad-CAM of it, in NumPy."""
    model = two_outputs()
    explainer = explain_graph(
        model, "gradcam", protocol, target="sum", scores="boxes", layer="features", preprocess=PREPROCESS
    )
    scores, classes, heatmaps, maps, features = run(with_output(explainer, MAPS, "features"), {"image": images(2)})
    assert scores.shape == (2, 1)
    assert classes.tolist() == [[0], [0]]
    assert heatmaps.shape == (2, 1, SIZE, SIZE)
    crops = maps.shape[1]
    kernel = numpy_helper.to_array(model.graph.initializer[-1])[:, :, 0, 0].astype(np.float64)
    features = features.reshape(2, crops, CHANNELS, -1).astype(np.float64)
    raw = kernel @ features
    np.testing.assert_allclose(scores[:, 0], (raw**2).sum((2, 3)).mean(1), rtol=1e-4)
    gradient = 2 * np.einsum("bc,nkbp->nkcp", kernel, raw)
    wanted = np.maximum(np.einsum("nkc,nkcp->nkp", gradient.mean(3), features), 0)
    np.testing.assert_allclose(maps.reshape(wanted.shape), wanted, atol=1e-5 * wanted.max())
    properties = {entry.key: entry.value for entry in explainer.metadata_props}
    assert json.loads(properties["camrt.labels"]) == ["sum of boxes"]
    assert Explainer(explainer)(images(1)[0]).labels == ("sum of boxes",)


@pytest.mark.parametrize("name", ["gradcam", "scorecam", "eigencam", "input-gradient", "smoothgrad"])
def test_every_kind_of_method_takes_a_sum(name: str) -> None:
    explainer = explain_graph(
        two_outputs(), name, target="sum", scores="boxes", preprocess=PREPROCESS, protocol="center"
    )
    assert run(explainer, {"image": images(2)})[2].max() > 0


def test_classes_of_another_tensor() -> None:
    """What is named is explained as it is, and comes out as it is: no Softmax is added."""
    model = classifier("two_layers", metadata={"camrt.labels": json.dumps(["a", "b", "c"])})
    explainer = explain_graph(model, "gradcam", "center", top=2, scores="hidden", preprocess=PREPROCESS)
    scores, classes, _, maps, hidden, features = run(
        with_output(explainer, MAPS, "hidden", "features"), {"image": images(2)}
    )
    np.testing.assert_array_equal(scores, hidden)
    np.testing.assert_array_equal(classes, np.argsort(-hidden, axis=1)[:, :2])
    matrix = next(numpy_helper.to_array(one) for one in model.graph.initializer if one.name == "fc.weight")
    places = maps.shape[3] * maps.shape[4]
    for n in range(2):
        wanted = np.maximum(np.tensordot(matrix[classes[n]], features[n], 1), 0) / places
        np.testing.assert_allclose(maps[n, 0], wanted, atol=1e-5 * wanted.max())
    assert "camrt.labels" not in {entry.key for entry in explainer.metadata_props}, "they name other classes"


def test_what_is_differentiated_stands_before_the_softmax() -> None:
    """Behind it the derivative is another one: the same with and without a Softmax at the end."""
    for activation in ("Softmax", "LogSoftmax", "Sigmoid"):
        model = classifier("flattened")
        model.graph.node[-1].op_type = activation
        if activation == "Sigmoid":
            del model.graph.node[-1].attribute[:]
        explainer = explain_graph(model, "gradcam", "center", target=1, preprocess=PREPROCESS)
        plain = explain_graph(
            classifier("flattened", softmax=False), "gradcam", "center", target=1, preprocess=PREPROCESS
        )
        found, wanted = (run(each, {"image": images(2)})[2] for each in (explainer, plain))
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
        assert facts(explainer)["scores"] == "logits"


# -------------------------------------------------------------------------------------------------------- Explainer


def test_explainer_with_a_class_for_each_image() -> None:
    explainer = Explainer(named(), "gradcam", target="input")
    assert (explainer.target, explainer.top) == ("input", 1)
    best = Explainer(named(), "gradcam", top=CLASSES)
    image = images(1)[0]
    wanted = best(image)
    for given in (2, "cup", ["cup"]):
        found = explainer(image, target=given)
        assert (found.labels, found.classes.tolist()) == (("cup",), [2])
        rank = wanted.classes.tolist().index(2)
        np.testing.assert_allclose(found.heatmaps[0], wanted.heatmaps[rank], atol=1e-5 * wanted.heatmaps.max())
    batch = list(images(5))
    found = list(explainer.map(batch, targets=[0, 1, "cup", 3, 0], batch=2))
    assert [one.classes.tolist() for one in found] == [[0], [1], [2], [3], [0]]
    always = Explainer(explain_graph(named(), "gradcam", target="input"), target="cup")
    assert [one.labels for one in always.map(batch)] == [("cup",)] * 5
    assert always(image, target=0).labels == ("red fox",)


def test_explainer_of_any_class_explains_the_best_unless_asked() -> None:
    explainer = Explainer(named(), "gradcam", target="any", top=2)
    best = Explainer(named(), "gradcam", top=2)
    image = images(1)[0]
    assert explainer(image).classes.tolist() == best(image).classes.tolist()
    np.testing.assert_array_equal(next(explainer.map([image])).heatmaps, explainer(image).heatmaps)
    assert explainer(image, target="cup").classes.tolist() == [2, best(image).classes[1]]
    assert explainer(image, target=[3, 0]).classes.tolist() == [3, 0]
    with pytest.raises(CamrtError, match="found 3 targets, expected 2"):
        explainer(image, target=[0, 1, 2])
    with pytest.raises(CamrtError, match="found the class -1, expected 0 to 3"):
        explainer(image, target=-1)
    always = Explainer(explain_graph(named(), "gradcam", target="any", top=2), target="cup")
    assert always(image).classes[0] == 2
    with pytest.raises(CamrtError, match="found an explainer graph of the target 'any', expected 'input'"):
        Explainer(explain_graph(named(), "gradcam", target="any"), target="input")


def test_explainer_says_what_is_wrong_with_a_target() -> None:
    image = images(1)[0]
    explainer = Explainer(named(), "gradcam", target="input", top=2)
    with pytest.raises(CamrtError, match="found no target, expected a class"):
        explainer(image)
    with pytest.raises(CamrtError, match="found no target, expected a class"):
        explainer.map([image])
    with pytest.raises(CamrtError, match="found 1 targets, expected 2"):
        explainer(image, target="cup")
    with pytest.raises(CamrtError, match="found the class 9, expected 0 to 3"):
        explainer(image, target=[1, 9])
    with pytest.raises(CamrtError, match="found fewer targets than images"):
        list(explainer.map([image, image], targets=[[0, 1]]))
    with pytest.raises(CamrtError, match="found more targets than images"):
        list(explainer.map([image], targets=[[0, 1], [0, 2]]))
    best = Explainer(named(), "gradcam")
    with pytest.raises(CamrtError, match="found the target 'cup', expected none: the explainer was made for 'top'"):
        best(image, target="cup")
    refused: list[str] = []
    found = list(
        explainer.map([image, image], targets=[[0, "dog"], [0, 1]], on_error=lambda _, e: refused.append(str(e)))
    )
    assert len(found) == 1
    assert "'dog', which the model does not know" in refused[0]


def test_an_explainer_cannot_be_made_to_do_something_else() -> None:
    graph = explain_graph(named(), "layercam", target=["cup", "red fox"], layer="features")
    assert Explainer(graph, target=[2, 0], layer="features", method="layercam").top == 2
    for options, words in (
        ({"target": "cup"}, "found 1 targets, expected 2"),
        ({"target": [0, 2]}, "found an explainer graph of the target"),
        ({"target": "input"}, "found an explainer graph of the target"),
        ({"layer": "conv"}, "found an explainer graph with layer"),
        ({"method": "cam"}, "found an explainer graph with method"),
        ({"settings": {"samples": 3}}, "found an explainer graph with the settings"),
    ):
        with pytest.raises(CamrtError, match=words):
            Explainer(graph, **options)


def test_runs_in_plain_onnx_runtime_with_a_target() -> None:
    explainer = explain_graph(named(), "gradcam", target="input")
    session = onnxruntime.InferenceSession(explainer.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [(one.name, one.type) for one in session.get_inputs()] == [
        ("image", "tensor(uint8)"), ("target", "tensor(int64)"),
    ]  # fmt: skip
