"""Control flow and recurrent layers that are unrolled, against ONNX Runtime's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from camrt.graph import differentiate, explain_graph
from camrt.graph.opening import open_model
from camrt.graph.unrolling import unrolled
from tests.camrt.classifiers import classifier
from tests.camrt.graph.explainers import PREPROCESS, images, run
from tests.camrt.graph.test_control_flow import with_if, with_loop

STEPS, BATCH, WIDTH, STATE = 4, 3, 5, 6
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    outputs: list[str],
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    found = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    kept = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(nodes, "graph", given, found, kept)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def answers(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def same_unrolled(model: onnx.ModelProto, feeds: dict[str, np.ndarray], gone: str) -> onnx.ModelProto:
    """Unroll a model, and compare its answers."""
    before = model.SerializeToString()
    view = unrolled(open_model(model))
    assert model.SerializeToString() == before
    assert gone not in {node.op_type for node in view.model.graph.node}
    for ours, theirs in zip(answers(view.model, feeds), answers(model, feeds), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=2e-6)
    return view.model


def recurrent(
    kind: str, direction: str, *, bias: bool, start: bool, opset: int = 17, **attributes: Any
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A recurrent layer and what it reads."""
    rng, count, rows = np.random.default_rng(0), DIRECTIONS[direction], GATES[kind] * STATE
    weights = {"W": rng.normal(size=(count, rows, WIDTH)), "R": rng.normal(size=(count, rows, STATE))}
    feeds, inputs = {"X": rng.normal(size=(STEPS, BATCH, WIDTH))}, ["X", "W", "R", "", "", "", ""]
    if bias:
        weights["B"], inputs[3] = rng.normal(size=(count, 2 * rows)), "B"
    for place, name in [(5, "h"), (6, "c")][: (2 if kind == "LSTM" else 1) if start else 0]:
        feeds[name], inputs[place] = rng.normal(size=(count, BATCH, STATE)), name
    outputs = ["Y", "Y_h", "Y_c"][: 3 if kind == "LSTM" else 2]
    inputs = inputs if kind == "LSTM" else inputs[:6]
    node = helper.make_node(kind, inputs, outputs, "layer", hidden_size=STATE, direction=direction, **attributes)
    shapes: dict[str, list[int | str]] = {name: [len(one), "n", one.shape[2]] for name, one in feeds.items()}
    kept = {name: one.astype(np.float32) for name, one in weights.items()}
    return model_of([node], shapes, outputs, kept, opset), {k: v.astype(np.float32) for k, v in feeds.items()}


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", GATES)
def test_recurrent_layers(kind: str, direction: str, bias: bool, start: bool) -> None:
    for attributes in [{}, {"linear_before_reset": 1}] if kind == "GRU" else [{}]:
        for opset in (17, 21):
            model, feeds = recurrent(kind, direction, bias=bias, start=start, opset=opset, **attributes)
            same_unrolled(model, feeds, kind)


def test_the_gradient_of_a_recurrent_layer() -> None:
    """By finite differences of ONNX Runtime's LSTM."""
    model, feeds = recurrent("LSTM", "bidirectional", bias=True, start=False)
    steps = unrolled(open_model(model)).model
    del steps.graph.output[:]
    steps.graph.output.append(helper.make_tensor_value_info("Y", TensorProto.FLOAT, [STEPS, 2, "n", STATE]))
    gradient = answers(differentiate(steps, "Y", "X"), feeds)[1]
    for place in [(0, 0, 0), (1, 2, 3), (STEPS - 1, BATCH - 1, WIDTH - 1)]:
        moved = []
        for sign in (-1, 1):
            x = feeds["X"].copy()
            x[place] += sign * 1e-2
            moved.append(answers(model, {"X": x})[0].astype(np.float64).sum())
        assert gradient[place] == pytest.approx((moved[1] - moved[0]) / 2e-2, rel=5e-3)


@pytest.mark.parametrize(
    "changed", [{"activations": ["Sigmoid", "Relu", "Tanh"]}, {"clip": 1.0}, {"input_forget": 1}], ids=str
)
def test_what_recurrent_layers_are_left(changed: dict[str, Any]) -> None:
    model, _ = recurrent("LSTM", "forward", bias=True, start=False, **changed)
    view = open_model(model)
    assert unrolled(view) is view


def test_sequences_of_unknown_length_are_left() -> None:
    model, _ = recurrent("LSTM", "forward", bias=True, start=False)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "steps"
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = BATCH
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "width"
    view = open_model(model)
    unrolled(view)  # the first free axis counts the images here: whatever it does, it does not fail


@pytest.mark.parametrize(("axis", "backward"), [(0, 0), (0, 1), (1, 0), (2, 1)])
def test_scan(axis: int, backward: int) -> None:
    """A running sum, along each axis and in both directions, with the sums stacked on another axis."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("sum", "next", "total", "kept")]
    nodes = [
        helper.make_node("Add", ["sum", "next"], ["total"]),
        helper.make_node("Mul", ["total", "factor"], ["kept"]),
    ]
    body = helper.make_graph(nodes, "body", value[:2], value[2:])
    scan = helper.make_node(
        "Scan", ["start", "X"], ["last", "all"], "scan", body=body, num_scan_inputs=1, scan_input_axes=[axis],
        scan_input_directions=[backward], scan_output_axes=[1], scan_output_directions=[backward],
    )  # fmt: skip
    shape = [3, 4, 5]
    start = np.zeros([size for number, size in enumerate(shape) if number != axis], np.float32)
    weights = {"start": start, "factor": np.array(3, np.float32)}
    model = model_of([scan], {"X": list(shape)}, ["last", "all"], weights)
    same_unrolled(model, {"X": np.random.default_rng(1).normal(size=shape).astype(np.float32)}, "Scan")


def test_a_loop_that_stacks_and_holds_an_if() -> None:
    """The turns' numbers are known after the loop is unrolled, and so is the branch of each turn."""
    branches = {}
    for title, kind in (("then_branch", "Sin"), ("else_branch", "Cos")):
        node = helper.make_node(kind, ["v"], [kind])
        branches[title] = helper.make_graph([node], kind, [], [helper.make_tensor_value_info(kind, 1, None)])
    nodes = [
        helper.make_node("Identity", ["go"], ["still"]),
        helper.make_node("Less", ["number", "two"], ["is_early"]),
        helper.make_node("If", ["is_early"], ["new"], "", **branches),
        helper.make_node("Mul", ["new", "new"], ["square"]),
    ]
    flags = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "still")]
    v, new, square = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("v", "new", "square"))
    body = helper.make_graph(
        nodes, "body", [helper.make_tensor_value_info("number", TensorProto.INT64, []), flags[0], v],
        [flags[1], new, square],
    )  # fmt: skip
    loop = helper.make_node("Loop", ["count", "", "X"], ["last", "all"], "loop", body=body)
    model = model_of([loop], {"X": [2, 3]}, ["last", "all"], {"count": np.array(4), "two": np.array(2)})
    found = same_unrolled(model, {"X": np.random.default_rng(1).normal(size=(2, 3)).astype(np.float32)}, "Loop")
    assert [node.op_type for node in found.graph.node if node.op_type in ("If", "Sin", "Cos")] == [
        "Sin", "Sin", "Cos", "Cos",
    ]  # fmt: skip


def test_a_condition_of_the_size_of_the_image() -> None:
    """Rows and columns are free, and the size that the explainer gives to the network decides."""
    model = with_if("features")
    del model.graph.node[:4]  # what computes the condition from the image
    side = PREPROCESS.crop
    for number, node in enumerate(
        [
            helper.make_node("Shape", ["data"], ["size"], start=2, end=3),
            helper.make_node("Equal", ["size", "side"], ["is_side"]),
            helper.make_node("Squeeze", ["is_side"], ["yes"]),
        ]
    ):
        model.graph.node.insert(number, node)
    model.graph.initializer.append(numpy_helper.from_array(np.array([side]), "side"))
    for dim, name in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], "hw", strict=True):
        dim.Clear()
        dim.dim_param = name
    _compare(model, classifier("gemm", softmax=False), "gradcam")


@pytest.mark.parametrize("method", ["cam", "gradcam", "scorecam", "input-gradient"])
@pytest.mark.parametrize("make", [with_if, with_loop])
def test_every_method_works_where_control_flow_is_known(make: Any, method: str) -> None:
    model, plain = make("features", known=True), classifier("gemm", softmax=False)
    if make is with_loop:  # doubled twice
        place = next(index for index, node in enumerate(plain.graph.node) if "features" in node.input)
        plain.graph.node[place].input[0] = "looped"
        plain.graph.node.insert(place, helper.make_node("Mul", ["features", "four"], ["looped"], "four times"))
        plain.graph.initializer.append(numpy_helper.from_array(np.array(4, np.float32), "four"))
    _compare(model, plain, method)


def _compare(model: onnx.ModelProto, plain: onnx.ModelProto, method: str) -> None:
    found, wanted = (
        run(explain_graph(one, method, preprocess=PREPROCESS, protocol="center", top=1), {"image": images(1)})
        for one in (model, plain)
    )
    assert np.abs(wanted[2]).max() > 0
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6 * np.abs(other).max())
