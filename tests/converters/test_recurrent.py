"""LSTM and RNN, against their definition written out in NumPy. Caffe's own answers are in test_layers."""

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
import onnx
import pytest

from converters import ConversionError, ConversionWarning, convert
from tests.converters.one_layer import OneLayer, assert_close, run

UNITS = 3
STATES = {"LSTM": 2, "RNN": 1}
GATES = {"LSTM": 4, "RNN": 1}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lstm(blobs: tuple[np.ndarray, ...], x: np.ndarray, cont: np.ndarray, static: np.ndarray | None, state: list):
    """Tops o, h_T, c_T from float64 loops over time and streams."""
    w_x, bias, *w_static, w_h = blobs
    hidden, cell = (one.copy() for one in state)
    outputs = np.zeros((*cont.shape, UNITS))
    for step in range(len(x)):
        for stream in range(x.shape[1]):
            mark = cont[step, stream]
            sums = w_x @ x[step, stream].ravel() + bias + w_h @ (mark * hidden[stream])
            if static is not None:
                sums = sums + w_static[0] @ static[stream].ravel()
            i, f, o = (sigmoid(sums[gate * UNITS : (gate + 1) * UNITS]) for gate in range(3))
            cell[stream] = mark * f * cell[stream] + i * np.tanh(sums[3 * UNITS :])
            hidden[stream] = o * np.tanh(cell[stream])
        outputs[step] = hidden
    return outputs, hidden[None], cell[None]


def rnn(blobs: tuple[np.ndarray, ...], x: np.ndarray, cont: np.ndarray, static: np.ndarray | None, state: list):
    """Tops o, h_T."""
    w_x, bias, *w_static, w_h, w_o, bias_o = blobs
    (hidden,) = (one.copy() for one in state)
    outputs = np.zeros((*cont.shape, UNITS))
    for step in range(len(x)):
        for stream in range(x.shape[1]):
            sums = w_x @ x[step, stream].ravel() + bias + w_h @ (cont[step, stream] * hidden[stream])
            if static is not None:
                sums = sums + w_static[0] @ static[stream].ravel()
            hidden[stream] = np.tanh(sums)
            outputs[step, stream] = np.tanh(w_o @ hidden[stream] + bias_o)
    return outputs, hidden[None]


DEFINITIONS = {"LSTM": lstm, "RNN": rnn}


def network(type: str, *, steps: int = 4, streams: int = 2, static: bool = False, expose: bool = False) -> OneLayer:
    rng = np.random.default_rng(7)
    rows = GATES[type] * UNITS
    shapes: dict[str, tuple[int, ...]] = {"x": (steps, streams, 2, 3), "cont": (steps, streams)}
    blob_shapes: list[tuple[int, ...]] = [(rows, 6), (rows,), *([(rows, 4)] if static else []), (rows, UNITS)]
    if static:
        shapes["static"] = (streams, 2, 2)
    tops = 'top: "o"'
    if expose:
        for state in ("h", "c")[: STATES[type]]:
            shapes[f"{state}0"] = (1, streams, UNITS)
            tops += f' top: "{state}T"'
    if type == "RNN":
        blob_shapes += [(UNITS, UNITS), (UNITS,)]
    blobs = tuple(rng.normal(size=shape).astype(np.float32) for shape in blob_shapes)
    param = f"recurrent_param {{ num_output: {UNITS} expose_hidden: {'true' if expose else 'false'} }}"
    return OneLayer(f'type: "{type}" {tops} {param}', shapes, blobs)


def inputs_for(one: OneLayer, streams: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    axes = {"static": 0}
    inputs = {}
    for name, shape in one.shapes.items():
        sizes = list(shape)
        sizes[axes.get(name, 1)] = streams
        inputs[name] = rng.normal(size=sizes).astype(np.float32)
    inputs["cont"] = (rng.random(inputs["cont"].shape) < 0.7).astype(np.float32)
    return inputs


def expected(type: str, one: OneLayer, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    streams = inputs["cont"].shape[1]
    state = [inputs[name][0] if name in inputs else np.zeros((streams, UNITS)) for name in ("h0", "c0")[: STATES[type]]]
    return DEFINITIONS[type](one.blobs, inputs["x"], inputs["cont"], inputs.get("static"), state)


@pytest.mark.parametrize("opset", [13, 17, 18])
@pytest.mark.parametrize("expose", [False, True])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("type", ["LSTM", "RNN"])
def test_as_defined(type: str, static: bool, expose: bool, opset: int) -> None:
    one = network(type, static=static, expose=expose)
    model = one.model(opset)
    for streams in (1, 2, 3):
        inputs = inputs_for(one, streams, seed=streams)
        found = run(model, inputs)
        wanted = expected(type, one, inputs)
        assert len(found) == (len(wanted) if expose else 1)
        for top, answer in zip(found, wanted, strict=False):
            assert_close(top, answer.astype(np.float32))


@pytest.mark.parametrize("type", ["LSTM", "RNN"])
def test_one_step(type: str) -> None:
    one = network(type, steps=1)
    inputs = inputs_for(one, 2)
    assert_close(one.run(inputs)[0], expected(type, one, inputs)[0].astype(np.float32))


@pytest.mark.parametrize("type", ["LSTM", "RNN"])
def test_marks_between_0_and_1_scale_the_state(type: str) -> None:
    one = network(type)
    inputs = {**inputs_for(one, 2), "cont": np.random.default_rng(3).random((4, 2)).astype(np.float32)}
    assert_close(one.run(inputs)[0], expected(type, one, inputs)[0].astype(np.float32))


@pytest.mark.parametrize("type", ["LSTM", "RNN"])
def test_exposed_state_joins_two_runs(type: str) -> None:
    """The state handed out after three steps and in before three more gives what six steps in one run give."""
    whole, half = (network(type, steps=steps, expose=True) for steps in (6, 3))
    inputs = inputs_for(whole, 2)
    inputs["cont"][3] = 1
    states = [name for name in inputs if name.endswith("0")]
    model = half.model()
    outputs, *state = run(model, {**inputs, "x": inputs["x"][:3], "cont": inputs["cont"][:3]})
    later = {"x": inputs["x"][3:], "cont": inputs["cont"][3:], **dict(zip(states, state, strict=True))}
    joined = np.concatenate([outputs, run(model, later)[0]])
    assert_close(joined, whole.run(inputs)[0])


@pytest.mark.parametrize(("type", "most"), [("LSTM", 12), ("RNN", 3)])
def test_few_plain_operators_a_step(type: str, most: int) -> None:
    """Runtimes and the differentiation of the graph meet no control flow and no fused recurrent operator."""
    counts = [Counter(node.op_type for node in network(type, steps=steps).model().graph.node) for steps in (5, 6)]
    assert not {"LSTM", "RNN", "GRU", "Scan", "Loop", "If"} & set(counts[0])
    assert sum((counts[1] - counts[0]).values()) == most


@pytest.mark.parametrize("type", ["LSTM", "RNN"])
def test_streams_are_the_batch(type: str) -> None:
    net = network(type, static=True, expose=True).net()
    with pytest.warns(ConversionWarning, match="is unrolled over its time steps"):
        model = convert(net)
    dims = {one.name: dims_of(one) for one in (*model.graph.input, *model.graph.output)}
    assert {name: dims[name] for name in ("x", "cont", "static", "h0", "o", "hT")} == {
        "x": [4, "N", 2, 3],
        "cont": [4, "N"],
        "static": ["N", 2, 2],
        "h0": [1, "N", UNITS],
        "o": [4, "N", UNITS],
        "hT": [1, "N", UNITS],
    }


def dims_of(info: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim]


def test_weights_are_named_after_the_layer() -> None:
    one = network("LSTM", static=True)
    stored = {init.name: onnx.numpy_helper.to_array(init) for init in one.model().graph.initializer}
    for name, blob in zip(("weight", "bias", "weight_static", "weight_hidden"), one.blobs, strict=True):
        np.testing.assert_array_equal(stored[f"l.{name}"], blob)


ERRORS = {
    "no units": (OneLayer('type: "LSTM" top: "o"', {"x": (2, 1, 3), "cont": (2, 1)}), "num_output"),
    "no marks": (OneLayer('type: "LSTM" top: "o" recurrent_param { num_output: 3 }', {"x": (2, 1, 3)}), "bottom"),
    "no state": (
        OneLayer(
            'type: "RNN" top: "o" top: "h" recurrent_param { num_output: 3 expose_hidden: true }',
            {"x": (2, 1, 3), "cont": (2, 1)},
        ),
        "bottom",
    ),
    "no state out": (
        OneLayer(
            'type: "RNN" top: "o" recurrent_param { num_output: 3 expose_hidden: true }',
            {"x": (2, 1, 3), "cont": (2, 1), "h0": (1, 1, 3)},
        ),
        "top",
    ),
    "no values": (
        OneLayer('type: "RNN" top: "o" recurrent_param { num_output: 3 }', {"x": (2, 1), "cont": (2, 1)}),
        "expected T x N x ...",
    ),
    "other steps": (
        OneLayer('type: "RNN" top: "o" recurrent_param { num_output: 3 }', {"x": (2, 1, 3), "cont": (3, 1)}),
        "for the blob 'cont'",
    ),
    "other units": (
        OneLayer(
            'type: "RNN" top: "o" top: "h" recurrent_param { num_output: 3 expose_hidden: true }',
            {"x": (2, 1, 3), "cont": (2, 1), "h0": (1, 1, 4)},
        ),
        "for the blob 'h0'",
    ),
    "many steps": (
        OneLayer('type: "LSTM" top: "o" recurrent_param { num_output: 3 }', {"x": (10_001, 1, 3), "cont": (10_001, 1)}),
        "found 10,001 time steps, expected at most 2,000",
    ),
    "no weights": (
        OneLayer('type: "LSTM" top: "o" recurrent_param { num_output: 3 }', {"x": (2, 1, 3), "cont": (2, 1)}),
        "found no weights",
    ),
    "absurd units": (
        OneLayer(
            'type: "LSTM" top: "o" recurrent_param { num_output: 4000000000 }',
            {"x": (2, 1, 3), "cont": (2, 1)},
            (np.zeros((12, 3)), np.zeros(12), np.zeros((12, 3))),
        ),
        "do not belong together",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_the_layer(name: str) -> None:
    one, message = ERRORS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        with pytest.raises(ConversionError, match=message) as raised:
            convert(one.net())
    assert raised.value.layer in ("l (LSTM)", "l (RNN)")
