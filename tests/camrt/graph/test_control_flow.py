"""Networks with If, Loop, Scan and recurrent layers.

What is known before a network runs is unrolled, and gives what the network without control flow gives. Of the others,
what can be explained is, and an error names the operator, and what works.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from camrt.errors import CamrtError
from camrt.graph import explain_graph
from tests.camrt.classifiers import classifier
from tests.camrt.graph.explainers import PREPROCESS, images, run

OTHERS = ("gradcam", "scorecam", "input-gradient", "smoothgrad", "guided-gradcam")


def with_node(node: onnx.NodeProto, after: str, *, known: bool) -> onnx.ModelProto:
    """A classifier in which a node stands behind a tensor; all that reads that tensor reads the node's output.

    Args:
        node: It reads ``yes``, which is true, or ``twice``, which is 2.
        after: The tensor.
        known: Whether these are constants; otherwise they are computed from the image.
    """
    model = classifier("gemm", softmax=False)
    for each in model.graph.node:
        each.input[:] = [node.output[0] if name == after else name for name in each.input]
    place = next(index for index, each in enumerate(model.graph.node) if after in each.output)
    model.graph.node.insert(place + 1, node)
    model.graph.output[0].name = node.output[0] if after == "logits" else "logits"
    if known:
        for name, value in (("yes", np.array(True)), ("twice", np.array(2))):
            model.graph.initializer.append(numpy_helper.from_array(value, name))
        return model
    for number, each in enumerate(
        [
            helper.make_node("ReduceMax", ["data"], ["brightest"], keepdims=0),
            helper.make_node("Greater", ["brightest", "darkness"], ["yes"]),
            helper.make_node("Cast", ["yes"], ["once"], to=TensorProto.INT64),
            helper.make_node("Add", ["once", "once"], ["twice"]),
        ]
    ):
        model.graph.node.insert(number, each)
    model.graph.initializer.append(numpy_helper.from_array(np.array(-1e9, np.float32), "darkness"))
    return model


def with_if(after: str, *, known: bool = False) -> onnx.ModelProto:
    """Two branches that read from outside; the first, which is taken, changes nothing."""
    branches = {}
    for title, kind in (("then_branch", "Identity"), ("else_branch", "Neg")):
        output = helper.make_tensor_value_info(kind, TensorProto.FLOAT, None)
        branches[title] = helper.make_graph([helper.make_node(kind, [after], [kind])], kind, [], [output])
    return with_node(helper.make_node("If", ["yes"], ["chosen"], "choice", **branches), after, known=known)


def with_loop(after: str, *, known: bool = False) -> onnx.ModelProto:
    """The tensor doubled twice."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("v", "doubled")]
    flags = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "still")]
    number = helper.make_tensor_value_info("number", TensorProto.INT64, [])
    nodes = [helper.make_node("Identity", ["go"], ["still"]), helper.make_node("Add", ["v", "v"], ["doubled"])]
    body = helper.make_graph(nodes, "body", [number, flags[0], value[0]], [flags[1], value[1]])
    return with_node(helper.make_node("Loop", ["twice", "", after], ["looped"], "turns", body=body), after, known=known)


MODELS = {"If": (with_if, r"'choice' \(If\)"), "Loop": (with_loop, r"'turns' \(Loop\)")}


@pytest.mark.parametrize("method", OTHERS)
@pytest.mark.parametrize("kind", MODELS)
def test_control_flow_at_the_end(kind: str, method: str) -> None:
    """It said that there are no features with places, or that inputs should have fixed sizes."""
    make, words = MODELS[kind]
    with pytest.raises(
        CamrtError, match=rf"found control flow between .*: {words}\. .*--method eigencam, .*rise.* which need"
    ):
        explain_graph(make("logits"), method, preprocess=PREPROCESS)


@pytest.mark.parametrize("kind", MODELS)
def test_eigencam_works_all_the_same(kind: str) -> None:
    """And by default with the same features as without control flow."""
    maps = [
        run(
            explain_graph(model, "eigencam", preprocess=PREPROCESS, target=1, protocol="ten-crop"), {"image": images(1)}
        )[2]
        for model in (MODELS[kind][0]("logits"), classifier("gemm", softmax=False))
    ]
    np.testing.assert_allclose(maps[0], maps[1], rtol=1e-6)
    assert maps[0].max() > 0


@pytest.mark.parametrize("kind", MODELS)
def test_scores_before_it_work_with_every_method(kind: str) -> None:
    """As the error advises."""
    for method in ("gradcam", "scorecam", "input-gradient"):
        found, wanted = (
            run(
                explain_graph(model, method, preprocess=PREPROCESS, scores="logits", top=1, protocol="center"),
                {"image": images(1)},
            )
            for model in (MODELS[kind][0]("logits"), classifier("gemm", softmax=False))
        )
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, err_msg=method)


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_layer_behind_it_works(kind: str, method: str) -> None:
    """As the error advises: only what lies between layer and scores matters."""
    model = MODELS[kind][0]("conv")
    model.graph.value_info.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 6, 8, 8]))
    with pytest.raises(CamrtError, match=r"or name a layer behind it|name a layer behind it \(--layer\)"):
        explain_graph(model, method, layer="conv", preprocess=PREPROCESS)
    if kind == "If":  # the shapes behind a Loop are not known
        explain_graph(model, method, layer="features", preprocess=PREPROCESS)


@pytest.mark.parametrize("kind", MODELS)
def test_a_head_works_where_there_is_one(kind: str) -> None:
    """Class activation maps are named as well where the model has a head for them."""
    make, words = MODELS[kind]
    with pytest.raises(CamrtError, match=rf"{words}\. .*--method cam, eigencam, .*rise.* need neither"):
        explain_graph(make("conv"), "input-gradient", preprocess=PREPROCESS)


def test_the_head_is_hidden() -> None:
    with pytest.raises(CamrtError, match=r"Control flow is on the way, 'choice' \(If\): use --method eigencam, or"):
        explain_graph(with_if("logits"), "cam", preprocess=PREPROCESS)


@pytest.mark.parametrize("method", ["cam", "gradcam", "eigencam"])
def test_features_whose_size_a_loop_hides(method: str) -> None:
    with pytest.raises(
        CamrtError,
        match=r"the size of the features 'looped' cannot be inferred, .*control flow hides it, 'turns' \(Loop",
    ):
        explain_graph(with_loop("features"), method, preprocess=PREPROCESS)


def test_scores_that_control_flow_hides() -> None:
    model: Any = with_loop("logits")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(CamrtError, match=r"no output of scores, .* Control flow may hide its shape: 'turns' \(Loop\)"):
        explain_graph(model, "gradcam", preprocess=PREPROCESS)
