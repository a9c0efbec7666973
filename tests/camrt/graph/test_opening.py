"""The way into camrt.graph: what is accepted, what it becomes, and what is refused with a CamrtError."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from camrt.errors import CamrtError
from camrt.graph import differentiate, explain_graph
from camrt.graph.head import find_head
from camrt.graph.opening import open_model
from camrt.graph.scores import find_scores
from camrt.graph.view import GraphView
from tests.bounded import within
from tests.camrt.classifiers import SIDE, classifier
from tests.camrt.graph.explainers import PREPROCESS, images, run


def small(*nodes: onnx.NodeProto, **attributes: Any) -> onnx.ModelProto:
    """A model from ``x`` (2, 3) to ``y`` (2, 3) with these nodes."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("x", "y")]
    graph = helper.make_graph(list(nodes), "small", value[:1], value[1:])
    attributes.setdefault("ir_version", 8)
    return helper.make_model(
        graph, opset_imports=attributes.pop("opset_imports", [helper.make_opsetid("", 17)]), **attributes
    )


def cyclic() -> onnx.ModelProto:
    """A classifier whose last nodes feed each other."""
    model = classifier("gemm")
    for name, back in (("loop.a", "loop.b"), ("loop.b", "loop.a")):
        model.graph.node.append(helper.make_node("Identity", [back], [name], f"node.{name}"))
    model.graph.output.append(helper.make_tensor_value_info("loop.a", TensorProto.FLOAT, ["batch", 10]))
    return model


# ---------------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize(
    "enter",
    [
        lambda model: explain_graph(model, "gradcam", preprocess=PREPROCESS),
        lambda model: explain_graph(model, preprocess=PREPROCESS),
        lambda model: differentiate(model, "logits", "data"),
        lambda model: open_model(model),
        lambda model: find_head(GraphView(model)),
        lambda model: find_scores(GraphView(model)),
    ],
)
def test_cycles(enter: Any) -> None:
    """They were followed for ever, and all memory was taken."""
    with within(5), pytest.raises(CamrtError, match=r"found a cycle|in topological order"):
        enter(cyclic())


def test_a_cycle_is_named() -> None:
    with pytest.raises(
        CamrtError, match=r"found a cycle, 'node.loop.\w' \(Identity\) -> 'node.loop.\w' \(Identity\) -> 'node.loop"
    ):
        open_model(cyclic())


def test_a_long_cycle_is_shortened() -> None:
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{(i + 1) % 5000}"], f"n{i}") for i in range(5000)]
    with within(5), pytest.raises(CamrtError, match=r"found a cycle, .* more -> ") as caught:
        open_model(small(*nodes, helper.make_node("Relu", ["x"], ["y"])))
    assert len(str(caught.value)) < 500


def test_nodes_are_sorted() -> None:
    """ONNX wants them sorted; tools that write them otherwise exist, and what is meant is clear."""
    model, shuffled = classifier("gemm"), classifier("gemm")
    nodes = list(shuffled.graph.node)
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(nodes[::-1])
    for method in ("cam", "gradcam"):
        one, other = (
            explain_graph(each, method, preprocess=PREPROCESS, protocol="center") for each in (model, shuffled)
        )
        for found, wanted in zip(run(one, {"image": images(1)}), run(other, {"image": images(1)}), strict=True):
            np.testing.assert_array_equal(found, wanted)
    assert [node.output[0] for node in shuffled.graph.node] == [node.output[0] for node in nodes[::-1]], "not changed"


def test_a_body_reads_what_stands_before() -> None:
    """An If reads by its branches' bodies what a node gives that stands behind it."""
    output = helper.make_tensor_value_info("branch", TensorProto.FLOAT, [2, 3])
    branch = helper.make_graph([helper.make_node("Neg", ["doubled"], ["branch"])], "branch", [], [output])
    model = small(
        helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch),
        helper.make_node("Add", ["x", "x"], ["doubled"]),
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    assert [node.op_type for node in open_model(model).model.graph.node] == ["Add", "If"]


def test_nothing_is_copied_where_nothing_is_to_be_done() -> None:
    model = classifier("gemm")
    assert open_model(model).model is model


# ----------------------------------------------------------------------------------------------------------- functions


def function(name: str, *nodes: onnx.NodeProto) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, ["a"], ["b"], list(nodes), opsets)


def calling(*functions: onnx.FunctionProto) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    node = helper.make_node("f0", ["x"], ["y"], "call", domain="own")
    return small(node, opset_imports=opsets, functions=list(functions))


def test_functions_are_inlined() -> None:
    double = function("f0", helper.make_node("Add", ["a", "a"], ["twice"]), helper.make_node("Neg", ["twice"], ["b"]))
    view = open_model(calling(double))
    assert [node.op_type for node in view.model.graph.node] == ["Add", "Neg"]
    assert not view.model.functions
    derived = differentiate(calling(double), "y", "x")
    found = run(derived, {"x": np.ones((2, 3), np.float32)}, ["gradient/x"])
    np.testing.assert_array_equal(found[0], np.full((2, 3), -2.0))


def test_functions_that_call_themselves() -> None:
    call = [helper.make_node(f"f{i}", ["a"], ["b"], domain="own") for i in range(2)]
    with within(5), pytest.raises(CamrtError, match="which calls itself, expected no recursion"):
        open_model(calling(function("f0", call[1]), function("f1", call[0])))


def test_functions_that_multiply() -> None:
    """Nine levels of eight calls each are 134 million nodes."""
    functions = []
    for level in range(9):
        calls = [
            helper.make_node(f"f{level + 1}", ["a" if i == 0 else f"t{i}"], [f"t{i + 1}"], domain="own")
            for i in range(8)
        ]
        functions.append(function(f"f{level}", *calls, helper.make_node("Identity", ["t8"], ["b"])))
    functions.append(function("f9", helper.make_node("Neg", ["a"], ["b"])))
    with within(5), pytest.raises(CamrtError, match=r"found functions that become [\d,]+ nodes"):
        open_model(calling(*functions))


# --------------------------------------------------------------------------------------------------------------- files


def test_a_path(tmp_path: Path) -> None:
    """Everything that takes a model takes its path; weights beside the file are read as well."""
    model, pixels = classifier("gemm"), np.random.default_rng(0).random((1, 3, SIDE, SIDE), np.float32)
    for external in (False, True):
        path = tmp_path / f"net-{external}.onnx"
        onnx.save(classifier("gemm"), path, save_as_external_data=external, size_threshold=0)
        for given in (path, str(path)):
            for one, other in (
                (
                    explain_graph(given, preprocess=PREPROCESS, protocol="ten-crop"),
                    explain_graph(model, preprocess=PREPROCESS, protocol="ten-crop"),
                ),
                (differentiate(given, "logits", "data"), differentiate(model, "logits", "data")),
            ):
                feeds = {"image": images(1)} if one.graph.input[0].name == "image" else {"data": pixels}
                for found, wanted in zip(run(one, feeds), run(other, feeds), strict=True):
                    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.onnx", None, "there is no such file"),
        ("net.onnx", b"\xff\xff\xff", "is no ONNX model that can be read"),
        ("net.onnx", b"", "onnx's checker refuses the model"),
        ("net.prototxt", b"", "found a Caffe network"),
    ],
)
def test_files_that_are_no_model(name: str, content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for enter in (lambda: explain_graph(path, preprocess=PREPROCESS), lambda: differentiate(path, "y", "x")):
        with pytest.raises(CamrtError, match=words) as caught:
            enter()
        assert caught.value.file == str(path)


def test_later_errors_name_the_file_too(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(classifier("gemm"), path)
    with pytest.raises(CamrtError, match="found the layer 'xyz'") as caught:
        explain_graph(path, "gradcam", layer="xyz", preprocess=PREPROCESS)
    assert caught.value.file == str(path)
    with pytest.raises(CamrtError, match="found no tensor 'xyz'") as caught:
        differentiate(path, "xyz", "data")
    assert caught.value.file == str(path)


def test_what_is_no_model() -> None:
    with pytest.raises(CamrtError, match=r"found a model of type int, expected an onnx\.ModelProto or a path"):
        open_model(3)


# ------------------------------------------------------------------------------------------------------------- damages


def damaged(change: Any) -> onnx.ModelProto:
    model = classifier("gemm")
    change(model)
    return model


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.graph.node[0].input.__setitem__(0, "nowhere"), "reads the tensor 'nowhere', expected a tensor"),
        (lambda m: m.graph.output.add(name="nowhere"), "found the output 'nowhere', which no node makes"),
        (lambda m: m.graph.node.append(m.graph.node[0]), "onnx's checker refuses the model"),
        (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "found two initializers 'conv.weight'"),
        (lambda m: setattr(m.graph.initializer[0], "data_type", 99), "of type 99"),
        (lambda m: m.graph.initializer[0].dims.__setitem__(0, -3), r"shape \(-3, "),
        (lambda m: setattr(m.graph.initializer[0], "data_location", TensorProto.EXTERNAL), "and not loaded"),
        (lambda m: m.ClearField("opset_import"), "onnx's checker refuses the model"),
    ],
)
def test_damaged_models(change: Any, words: str) -> None:
    with pytest.raises(CamrtError, match=words):
        explain_graph(damaged(change), "gradcam", preprocess=PREPROCESS)


def test_a_split_of_more_outputs_than_it_says() -> None:
    """onnx's shape inference ended the process."""
    node = helper.make_node("Split", ["x"], ["y", "z"], "cut", axis=0, num_outputs=1)
    with pytest.raises(CamrtError, match=r"'cut' \(Split\) with num_outputs 1 and 2 outputs"):
        open_model(small(node, opset_imports=[helper.make_opsetid("", 18)]))


def test_long_errors_are_shortened() -> None:
    """onnx's checker prints the node at fault with all that it holds."""
    node = helper.make_node("Relu", ["x"], ["c"], own=[1] * 100_000)
    with pytest.raises(CamrtError) as caught:
        open_model(small(node, helper.make_node("Relu", ["x"], ["y"])))
    assert len(str(caught.value)) < 1000


def test_a_long_chain_of_constants() -> None:
    """It was followed by recursion, which ends at a thousand."""
    model = classifier("gemm")
    last = model.graph.node[-2].input[1]
    for i in range(3000):
        node = helper.make_node("Identity", [last], [f"copy.{i}"])
        model.graph.node.insert(i, node)
        last = f"copy.{i}"
    model.graph.node[-2].input[1] = last
    np.testing.assert_array_equal(
        find_head(open_model(model)).weights, find_head(open_model(classifier("gemm"))).weights
    )


def test_operators_of_other_domains_are_not_taken_for_standard_ones() -> None:
    model = classifier("gemm")
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[-1].domain = "own"  # a Softmax
    assert find_scores(open_model(classifier("gemm"))).activation == "Softmax"
    with pytest.raises(CamrtError, match=r"\(own.Softmax\)"):
        find_head(open_model(model))


def test_old_files_with_weights_among_the_inputs() -> None:
    """Before IR version 4, initializers had to be inputs as well: so are the networks of the ONNX Model Zoo."""
    model = classifier("gemm", opset=13)
    wanted = run(explain_graph(model, preprocess=PREPROCESS, protocol="ten-crop"), {"image": images(1)})
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for one, other in zip(
        run(explain_graph(model, preprocess=PREPROCESS, protocol="ten-crop"), {"image": images(1)}), wanted, strict=True
    ):
        np.testing.assert_array_equal(one, other)
