"""Which features the maps are made of, by themselves and by name, one and several; and what cannot be one."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from camrt import matlab
from camrt.errors import CamrtError
from camrt.graph import explain_graph
from camrt.graph.explain import MAPS, describe
from camrt.graph.layers import last_features
from camrt.graph.view import GraphView
from tests.camrt.classifiers import CHANNELS, CLASSES, HEADS, SIDE, classifier
from tests.camrt.graph.explainers import PREPROCESS, images, run, with_output

OTHERS = ("gradcam", "layercam", "eigencam", "scorecam")


def chain(*nodes: tuple[str, dict[str, Any]], classes: int = CLASSES) -> onnx.ModelProto:
    """Convolution and ReLU (``features``), these nodes one after the other, and a linear layer over what is left."""
    model = classifier("flattened")
    graph = model.graph
    linear = [node for node in graph.node if node.op_type in ("Flatten", "Gemm", "Softmax")]
    del graph.node[2:]
    last = "features"
    for number, (kind, attributes) in enumerate(nodes):
        graph.node.append(helper.make_node(kind, [last], [f"{kind}.{number}"], f"node.{number}", **attributes))
        last = f"{kind}.{number}"
    linear[0].input[0] = last
    graph.node.extend(linear)
    inferred = onnx.shape_inference.infer_shapes(model)
    shape = next(v for v in inferred.graph.value_info if v.name == "flat").type.tensor_type.shape
    size = shape.dim[1].dim_value
    weights = np.random.default_rng(1).normal(0, 1, (classes, size)).astype(np.float32)
    for tensor in graph.initializer:
        if tensor.name == "fc.weight":
            tensor.CopyFrom(numpy_helper.from_array(weights, "fc.weight"))
    onnx.checker.check_model(model, full_check=True)
    return model


POOL = ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]})


@pytest.mark.parametrize(
    ("nodes", "layer"),
    [
        ([], "features"),
        ([POOL], "features"),
        ([POOL, POOL], "features"),
        ([("Dropout", {}), POOL], "features"),
        ([("Sigmoid", {})], "Sigmoid.0"),
        ([POOL, ("Tanh", {})], "Tanh.1"),
        ([("GlobalAveragePool", {})], "features"),
        ([("GlobalAveragePool", {}), ("Sigmoid", {})], "features"),
        ([("AveragePool", {"kernel_shape": [8, 8]})], "features"),
        ([("Sigmoid", {}), ("Transpose", {"perm": [0, 1, 3, 2]})], "Transpose.1"),
    ],
)
def test_the_last_features_with_places(nodes: list[Any], layer: str) -> None:
    """Before poolings and Dropout; tensors of one place are none."""
    explainer = explain_graph(chain(*nodes), "gradcam", preprocess=PREPROCESS)
    assert describe(explainer)["layer"] == [layer]


@pytest.mark.parametrize("head", HEADS)
def test_of_every_head(head: str, caplog: pytest.LogCaptureFixture) -> None:
    """Also of those that class activation maps cannot be made of; and it is said."""
    with caplog.at_level(logging.INFO, "camrt"):
        explainer = explain_graph(classifier(head), "gradcam", preprocess=PREPROCESS, protocol="ten-crop")
    layer = "dropped" if head == "convolution_before" else "features"
    assert describe(explainer)["layer"] == [layer]
    assert f"no layer was named; the last with positions is taken: layer {layer!r} (6 maps of 8 x 8)" in caplog.text
    assert run(explainer, {"image": images(2)})[2].max() > 0


def test_what_is_only_a_part_is_not_taken() -> None:
    """Squeeze and excitation, x * sigmoid(w * mean(x)), and a sum of two branches: all must have come together."""
    model = classifier("gemm")
    graph = model.graph
    kernel = np.random.default_rng(3).normal(0, 1, (CHANNELS, CHANNELS, 1, 1)).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(kernel, "se.weight"))
    graph.initializer.append(numpy_helper.from_array(kernel * 2, "branch.weight"))
    head = list(graph.node[2:])
    del graph.node[2:]
    graph.node.extend(
        [
            helper.make_node("GlobalAveragePool", ["features"], ["se.mean"]),
            helper.make_node("Conv", ["se.mean", "se.weight"], ["se.conv"]),
            helper.make_node("Sigmoid", ["se.conv"], ["se.gate"]),
            helper.make_node("Mul", ["features", "se.gate"], ["excited"]),
            helper.make_node("Conv", ["excited", "branch.weight"], ["branch"]),
            helper.make_node("Add", ["excited", "branch"], ["together"]),
            helper.make_node("Relu", ["branch"], ["late"]),
            helper.make_node("Concat", ["together", "late"], ["wide"], axis=1),
            helper.make_node("Slice", ["wide", "zero", "six", "one"], ["cut"]),
        ]
    )
    for name, value in (("zero", 0), ("six", 6), ("one", 1)):
        graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    head[0].input[0] = "cut"
    graph.node.extend(head)
    onnx.checker.check_model(model, full_check=True)
    view = GraphView(model)
    assert last_features(view, "data", "logits").tensor == "cut"
    del graph.node[-len(head) - 2 : -len(head)]
    head[0].input[0] = "together"
    graph.node[-len(head)].input[0] = "together"
    for method in OTHERS:
        explainer = explain_graph(model, method, preprocess=PREPROCESS, top=1)
        assert describe(explainer)["layer"] == ["together"], method


def test_scores_of_two_stages_are_added(caplog: pytest.LogCaptureFixture) -> None:
    """As EfficientViM does: all of the image passes the first stage, and the log names the second."""
    model = classifier("gemm", softmax=False)
    graph, generator = model.graph, np.random.default_rng(3)
    for name, shape in (("second.weight", (CHANNELS, CHANNELS, 3, 3)), ("second.fc", (CLASSES, CHANNELS))):
        graph.initializer.append(numpy_helper.from_array(generator.normal(0, 1, shape).astype(np.float32), name))
    graph.node[-1].output[0] = "first.scores"
    graph.node.extend(
        [
            helper.make_node("Conv", ["features", "second.weight"], ["second.conv"], strides=[2, 2], pads=[1] * 4),
            helper.make_node("Relu", ["second.conv"], ["second"]),
            helper.make_node("GlobalAveragePool", ["second"], ["second.pooled"]),
            helper.make_node("Flatten", ["second.pooled"], ["second.flat"]),
            helper.make_node("Gemm", ["second.flat", "second.fc"], ["second.scores"], transB=1),
            helper.make_node("Add", ["first.scores", "second.scores"], ["logits"]),
        ]
    )
    onnx.checker.check_model(model, full_check=True)
    with caplog.at_level(logging.INFO, "camrt"):
        assert describe(explain_graph(model, preprocess=PREPROCESS))["layer"] == ["features"]
    found = "behind 'features' the way parts: parts of it go through 'second' (6 maps of 4 x 4). To see them: --layer "
    assert f"{found}second" in caplog.text
    both = explain_graph(model, preprocess=PREPROCESS, layer=["features", "second"])
    assert run(both, {"image": images(2, SIDE)})[2].max() > 0
    caplog.clear()
    with caplog.at_level(logging.INFO, "camrt"):
        explain_graph(classifier("two_layers"), preprocess=PREPROCESS)
    assert "the way parts" not in caplog.text


@pytest.mark.parametrize("name", ["relu", "features"])
@pytest.mark.parametrize("method", ["cam", *OTHERS])
def test_by_the_name_of_a_node_or_a_tensor(method: str, name: str) -> None:
    named = explain_graph(classifier("gemm"), method, preprocess=PREPROCESS, layer=name, protocol="center")
    found = explain_graph(classifier("gemm"), method, preprocess=PREPROCESS, protocol="center")
    for one, other in zip(run(named, {"image": images(1)}), run(found, {"image": images(1)}), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_earlier_layer() -> None:
    """Another map, finer; and one that is called as an output of the explainer is."""
    model = chain(POOL, ("Tanh", {}))
    explainer = with_output(explain_graph(model, "gradcam", "center", preprocess=PREPROCESS, layer="conv"), MAPS)
    assert run(explainer, {"image": images(1)})[-1].shape == (1, 1, CLASSES, 8, 8)
    late = with_output(explain_graph(model, "gradcam", "center", preprocess=PREPROCESS), MAPS)
    assert run(late, {"image": images(1)})[-1].shape == (1, 1, CLASSES, 4, 4)
    for node in model.graph.node:
        node.input[:] = ["heatmaps" if name == "features" else name for name in node.input]
        node.output[:] = ["heatmaps" if name == "features" else name for name in node.output]
    explain_graph(model, "gradcam", "center", preprocess=PREPROCESS, layer="heatmaps")


@pytest.mark.parametrize("method", ["layercam", "gradcam", "scorecam", "eigencam"])
def test_several_layers_are_fused(method: str) -> None:
    """Each map of each crop brought to 0..1, enlarged, and the mean taken."""
    model, batch = chain(POOL, ("Tanh", {})), images(1)
    options: dict[str, Any] = {"method": method, "protocol": "center", "top": 2}
    layers = ["features", "Tanh.1"]
    *_, heatmaps = run(explain_graph(model, layer=layers, preprocess=PREPROCESS, **options), {"image": batch})
    wanted = np.zeros_like(heatmaps)
    for layer in layers:
        explainer = with_output(explain_graph(model, layer=layer, preprocess=PREPROCESS, **options), MAPS)
        *_, maps = run(explainer, {"image": batch})
        for rank in range(2):
            one = maps[0, 0, rank].astype(np.float64)
            one = (one - one.min()) / max(one.max() - one.min(), 1e-30)  # a map may be 0 everywhere
            large = np.maximum(matlab.imresize(one, (SIDE, SIDE), method="bicubic"), 0)
            first = (PREPROCESS.size - SIDE + 1) // 2
            wanted[0, rank, first : first + SIDE, first : first + SIDE] += large / 2
    np.testing.assert_allclose(heatmaps, wanted, atol=1e-4)
    assert describe(explain_graph(model, layer=layers, preprocess=PREPROCESS, **options))["layer"] == layers


# ----------------------------------------------------------------------------------------------------------- refusals


def with_integers() -> onnx.ModelProto:
    """The features' signs as integers, on the way to nowhere."""
    model = classifier("gemm")
    model.graph.node.append(helper.make_node("Cast", ["features"], ["whole"], "cast", to=TensorProto.INT32))
    return model


def with_control_flow() -> onnx.ModelProto:
    """An If between features and pooling, whose branches read them from outside."""
    model = classifier("gemm")
    branches = []
    for kind in ("Identity", "Neg"):
        output = helper.make_tensor_value_info(f"{kind}.out", TensorProto.FLOAT, None)
        branches.append(helper.make_graph([helper.make_node(kind, ["features"], [f"{kind}.out"])], kind, [], [output]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(-1e9, np.float32), "darkness"))
    head = list(model.graph.node[2:])
    del model.graph.node[2:]
    model.graph.node.append(helper.make_node("ReduceMax", ["data"], ["brightest"], "brightest", keepdims=0))
    model.graph.node.append(helper.make_node("Greater", ["brightest", "darkness"], ["yes"], "greater"))
    model.graph.node.append(
        helper.make_node("If", ["yes"], ["chosen"], "choice", then_branch=branches[0], else_branch=branches[1])
    )
    head[0].input[0] = "chosen"
    model.graph.node.extend(head)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("featuers", "found the layer 'featuers', expected a tensor of the model, or a node. Did you mean 'features'"),
        ("xyz", "found the layer 'xyz', expected a tensor of the model, or a node: conv, features, pooled"),
        ("flat", "found the layer 'flat' of shape batch x 6, .* behind the pooling has no positions left to map"),
        ("pooled", "found the layer 'pooled' of shape batch x 6 x 1 x 1, .* no positions left to map"),
        ("logits", "no positions left to map"),
        ("fc.weight", "found the layer 'fc.weight', expected a tensor of the model, or a node"),
        (["features", "flat"], "found the layer 'flat'"),
        ([], None),
    ],
)
@pytest.mark.parametrize("method", OTHERS)
def test_what_is_no_layer(method: str, layer: Any, words: str | None) -> None:
    if words is None:
        explain_graph(classifier("gemm"), method, preprocess=PREPROCESS, layer=layer)
        return
    with pytest.raises(CamrtError, match=words):
        explain_graph(classifier("gemm"), method, preprocess=PREPROCESS, layer=layer)


@pytest.mark.parametrize("method", OTHERS)
def test_an_integer_tensor(method: str) -> None:
    with pytest.raises(CamrtError, match="found the layer 'whole' of type int32, expected floating point"):
        explain_graph(with_integers(), method, preprocess=PREPROCESS, layer="whole")
    with pytest.raises(CamrtError, match="found the scores 'whole' of type int32, expected floating point"):
        explain_graph(with_integers(), method, preprocess=PREPROCESS, scores="whole", target="sum")


@pytest.mark.parametrize("method", ["gradcam", "input-gradient", "guided-backprop"])
def test_control_flow_on_the_way(method: str) -> None:
    options = {"layer": "features"} if method == "gradcam" else {}
    with pytest.raises(CamrtError, match=r"'choice' \(If\)"):
        explain_graph(with_control_flow(), method, preprocess=PREPROCESS, **options)


@pytest.mark.parametrize("method", ["scorecam", "smoothgrad", "integrated-gradients"])
def test_control_flow_that_would_be_run_twice(method: str) -> None:
    options = {"layer": "features"} if method == "scorecam" else {}
    with pytest.raises(CamrtError, match=r"found control flow .*'choice' \(If\)"):
        explain_graph(with_control_flow(), method, preprocess=PREPROCESS, **options)


def test_control_flow_where_nothing_is_differentiated() -> None:
    """Eigen-CAM and CAM only look at features."""
    explainer = explain_graph(
        with_control_flow(), "eigencam", preprocess=PREPROCESS, layer="features", protocol="ten-crop"
    )
    assert run(explainer, {"image": images(1)})[2].max() > 0


def test_a_layer_that_the_scores_do_not_depend_on() -> None:
    model = classifier("gemm")
    model.graph.node.append(helper.make_node("Neg", ["features"], ["aside"], "aside"))
    with pytest.raises(CamrtError, match="'aside'"):
        explain_graph(model, "gradcam", preprocess=PREPROCESS, layer="aside")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "cam", "layer": ["features", "conv"]}, "found 2 layers, expected one: the weights of cam fit one"),
        (
            {"method": "smoothgrad", "layer": "features"},
            "found the layer 'features', expected none: smoothgrad is about",
        ),
        ({"method": "gradcam", "layer": "conv", "features": "features"}, "expected one of both"),
    ],
)
def test_layers_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    with pytest.raises(CamrtError, match=words):
        explain_graph(classifier("gemm"), preprocess=PREPROCESS, **options)


def test_operators_without_a_rule_are_all_named() -> None:
    model = chain(("Sigmoid", {}))
    graph = model.graph
    head = list(graph.node[3:])
    del graph.node[3:]
    graph.node.append(helper.make_node("LpNormalization", ["Sigmoid.0"], ["normal"], "first"))
    graph.node.append(helper.make_node("Hardmax", ["normal"], ["hard"], "second"))
    head[0].input[0] = "hard"
    graph.node.extend(head)
    with pytest.raises(CamrtError, match=r"Hardmax.*--method .*eigencam") as caught:
        explain_graph(model, "gradcam", preprocess=PREPROCESS, layer="features")
    assert "LpNormalization" in str(caught.value)


def test_no_features_at_all() -> None:
    """A perceptron: the image is flattened at once, and has no features with positions but itself."""
    model = classifier("gemm")
    graph = model.graph
    del graph.node[:]
    weights = np.ones((CLASSES, 3 * SIDE * SIDE), np.float32)
    graph.initializer.append(numpy_helper.from_array(weights, "mlp.weight"))
    graph.node.append(helper.make_node("Flatten", ["data"], ["flat"]))
    graph.node.append(helper.make_node("Gemm", ["flat", "mlp.weight"], ["logits"], transB=1))
    graph.node.append(helper.make_node("Softmax", ["logits"], ["prob"]))
    with pytest.raises(CamrtError, match="no features with positions"):
        explain_graph(model, "gradcam", preprocess=PREPROCESS, protocol="ten-crop")
    explainer = explain_graph(model, "input-gradient", preprocess=PREPROCESS, protocol="center")
    assert run(explainer, {"image": images(1)})[2].max() > 0


def test_no_scores() -> None:
    model = classifier("gemm")
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, None))
    with pytest.raises(
        CamrtError, match=r"the model has no output of scores, found 'features' .*Name the tensor: --scores"
    ):
        explain_graph(model, "gradcam", preprocess=PREPROCESS)


def test_a_head_that_pools_twice() -> None:
    """As timm's VGG does: the second pooling reads one position, and the features before the first are taken."""
    model = classifier("gemm")
    place = next(number for number, node in enumerate(model.graph.node) if "pooled" in node.input)
    model.graph.node[place].input[0] = "again"
    model.graph.node.insert(place, helper.make_node("GlobalAveragePool", ["act"], ["again"], "again"))
    model.graph.node.insert(place, helper.make_node("Relu", ["pooled"], ["act"], "act"))
    explainer = explain_graph(model, "gradcam", preprocess=PREPROCESS)
    assert describe(explainer)["layer"] == ["features"]
