"""Recurrent layers, unrolled over their time steps.

The blobs are (T, N, ...): T time steps of N streams. Terms that do not depend on the state are computed for all steps
at once; a step computes only the rest. All tensors are matrices with the streams of a step as rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from converters.graph import Graph
from converters.layer import Layer
from converters.registry import handles
from converters.shape import Dim, FixedDim, Shape, SymbolicDim, show, times

MAX_STEPS = 2_000  # an LSTM has a dozen nodes per step; no runtime loads a larger graph in reasonable time

_RESTRICTIONS = (
    "unrolled over the time steps in the prototxt (axis 0; at most 2,000); axis 1 is the batch; each run starts from a "
    "state of zeros, where Caffe continues from its last state, unless expose_hidden passes the state in and out"
)

State = tuple[str, ...]
Unit = Callable[[Graph, str, State, int], State]


@dataclass(frozen=True)
class Sequences:
    """The blobs of a recurrent layer.

    Attributes:
        steps: T, the number of time steps.
        streams: N, the number of streams.
        units: H, the number of hidden units (num_output).
        inputs: (T, N, ...).
        continues: (T, N): the state is multiplied by it; 0 where a sequence begins, 1 where it continues.
        static: (N, ...), an input that is the same at every step, or None.
        state: (1, N, H) each, the initial state; empty for zeros.
        last: The tops (1, N, H) of the final state; empty without expose_hidden.
    """

    steps: int
    streams: Dim
    units: int
    inputs: str
    continues: str
    static: str | None
    state: State
    last: tuple[str, ...]

    @property
    def rows(self) -> Dim:
        """T * N."""
        return times(self.streams, self.steps)

    @property
    def step(self) -> Shape:
        """(N, H), the shape of the hidden values of a step."""
        return (self.streams, self.units)


@handles("LSTM", operators="Reshape Gemm Add Split Sigmoid Tanh Mul Concat", restrictions=_RESTRICTIONS)
def lstm(layer: Layer, graph: Graph) -> None:
    """Long short-term memory without peepholes: c = f * c + i * g, h = o * tanh(c) (Zaremba and Sutskever 2014)."""
    sequences = _sequences(layer, graph, states=2)
    first, hidden = _weight_shapes(graph, sequences, rows=4 * sequences.units)
    weights = layer.weights(*first, hidden)
    units = sequences.units
    widths = [graph.constant([3 * units, units], np.int64), graph.constant([units] * 3, np.int64)]
    states = _unrolled(graph, sequences, weights, partial(_lstm_unit, widths=widths))
    graph.reshape(states, (sequences.steps, *sequences.step), [layer.tops[0]])


def _lstm_unit(graph: Graph, sums: str, state: State, step: int, *, widths: Sequence[str]) -> State:
    """One step: ``sums``, (N, 4 H), holds the gates i, f, o and the candidate values g side by side."""
    gates, candidate = _split(graph, sums, widths[0], f"sums_{step}")
    enter, keep, leave = _split(graph, graph.node("Sigmoid", [gates]), widths[1], f"gates_{step}")
    shape = graph.shape(candidate)
    cell = graph.node("Mul", [enter, graph.node("Tanh", [candidate])], shape=shape)
    if state:
        cell = graph.node("Add", [graph.node("Mul", [keep, state[1]], shape=shape), cell], shape=shape)
    return graph.node("Mul", [leave, graph.node("Tanh", [cell])], shape=shape), cell


@handles("RNN", operators="Reshape Gemm Add Split Tanh Mul Concat", restrictions=_RESTRICTIONS)
def rnn(layer: Layer, graph: Graph) -> None:
    """Elman network: h = tanh(W_hh h + W_xh x + b_h), o = tanh(W_ho h + b_o)."""
    sequences = _sequences(layer, graph, states=1)
    units = sequences.units
    first, hidden = _weight_shapes(graph, sequences, rows=units)
    *weights, out, bias = layer.weights(*first, hidden, (units, units), (units,))
    states = _unrolled(graph, sequences, weights, _tanh_unit)
    summed = graph.node(
        "Gemm",
        [states, graph.weight("weight_output", out), graph.weight("bias_output", bias)],
        shape=graph.shape(states),
        transB=1,
    )
    graph.reshape(graph.node("Tanh", [summed]), (sequences.steps, *sequences.step), [layer.tops[0]])


def _tanh_unit(graph: Graph, sums: str, state: State, step: int) -> State:
    return (graph.node("Tanh", [sums]),)


# ------------------------------------------------------------------------------------------------------------ the blobs


def _sequences(layer: Layer, graph: Graph, states: int) -> Sequences:
    """Identify the blobs of a layer with ``states`` states, and check their shapes."""
    param = layer.params.recurrent_param
    exposed = states if param.expose_hidden else 0
    layer.expect(bottoms=range(2 + exposed, 4 + exposed), tops=1 + exposed)
    if not param.num_output:
        raise layer.error("found no num_output, expected at least 1 hidden unit")
    inputs, continues, *others = layer.bottoms
    static = others.pop(0) if len(others) > exposed else None
    if graph.rank(inputs) < 3 or graph.rank(continues) != 2:
        raise layer.error(
            f"found the bottoms {show(graph.shape(inputs))} and {show(graph.shape(continues))}, expected T x N x ... "
            "and T x N (time steps, streams)"
        )
    for tensor in (inputs, continues, *others):
        _fixed_steps(layer, graph, tensor)
    shape = graph.shape(inputs)
    steps, streams, units = int(shape[0]), shape[1], param.num_output
    if steps > MAX_STEPS:
        raise layer.error(f"found {steps:,} time steps, expected at most {MAX_STEPS:,}: each adds nodes to the graph")
    for tensor, expected in [(continues, (steps, streams)), *((tensor, (1, streams, units)) for tensor in others)]:
        _check_shape(layer, graph, tensor, expected)
    if static is not None:
        _check_shape(layer, graph, static, (streams, *graph.shape(static)[1:]))
    return Sequences(steps, streams, units, inputs, continues, static, tuple(others), layer.tops[1:])


def _fixed_steps(layer: Layer, graph: Graph, tensor: str) -> None:
    """The number of time steps, as a number. If it is the free axis of an input, free the streams instead."""
    shape = graph.shape(tensor)
    dim = shape[0] if shape else 1
    if isinstance(dim, SymbolicDim) and dim.factor == 1 and dim.input in graph.inputs:
        source = graph.shape(dim.input)
        if len(source) > 1 and len(shape) > 1 and int(source[1]) == int(shape[1]):
            reason = f"the layer {layer.name!r} ({layer.type}) is unrolled over its time steps"
            raise FixedDim(dim.input, reason, free_axis=1)
    graph.fixed(dim, "the number of time steps to unroll")


def _check_shape(layer: Layer, graph: Graph, tensor: str, expected: Shape) -> None:
    shape = graph.shape(tensor)
    if len(shape) != len(expected) or not all(map(graph.same, expected, shape)):
        raise layer.error(f"found {show(shape)} for the blob {tensor!r}, expected {show(expected)}")


def _weight_shapes(graph: Graph, sequences: Sequences, rows: int) -> tuple[list[tuple[int, ...]], tuple[int, int]]:
    """The shapes of the weights: weight and bias of the inputs, that of the static input if any, that of the state."""
    shapes: list[tuple[int, ...]] = [(rows, _width(graph, sequences.inputs, 2)), (rows,)]
    if sequences.static is not None:
        shapes.append((rows, _width(graph, sequences.static, 1)))
    return shapes, (rows, sequences.units)


def _width(graph: Graph, tensor: str, axis: int) -> int:
    return math.prod(graph.fixed_shape(tensor, axis, "the number of values per step"))


# -------------------------------------------------------------------------------------------------------- the unrolling


def _unrolled(graph: Graph, sequences: Sequences, weights: Sequence[np.ndarray], unit: Unit) -> str:
    """Run ``unit`` step by step.

    Args:
        graph: The graph.
        sequences: The layer's blobs.
        weights: Weight and bias of the inputs, the weight of the static input if any, the weight of the state.
        unit: Maps the weighted sums of a step and the state before it (empty for zeros) to the state after it, whose
            first tensor holds the hidden values.

    Returns:
        The hidden values of all steps: (T * N, H).
    """
    inputs = _input_sums(graph, sequences, weights[:-1])
    marks = graph.reshape(sequences.continues, (sequences.rows, 1))
    continues = _steps(graph, marks, sequences, "continues")
    state = tuple(graph.reshape(tensor, sequences.step) for tensor in sequences.state)
    hidden = []
    for step, sums in enumerate(inputs):
        if state:  # zeros add nothing
            state = tuple(graph.node("Mul", [tensor, continues[step]], shape=sequences.step) for tensor in state)
            weight = graph.weight("weight_hidden", weights[-1])
            sums = graph.node("Gemm", [state[0], weight, sums], shape=graph.shape(sums), transB=1)
        state = unit(graph, sums, state, step)
        hidden.append(state[0])
    for tensor, top in zip(state, sequences.last, strict=False):
        graph.reshape(tensor, (1, *sequences.step), [top])
    return hidden[0] if len(hidden) == 1 else graph.concat(hidden, 0)


def _input_sums(graph: Graph, sequences: Sequences, weights: Sequence[np.ndarray]) -> list[str]:
    """The contributions of the inputs and the static input to the sums of each step, (N, rows of the weight)."""
    weight, bias, *static_weight = weights
    count = weight.shape[0]
    flat = graph.reshape(sequences.inputs, (sequences.rows, weight.shape[1]))
    inputs = [flat, graph.weight("weight", weight), graph.weight("bias", bias)]
    sums = graph.node("Gemm", inputs, shape=(sequences.rows, count), transB=1)
    if sequences.static is not None:
        flat = graph.reshape(sequences.static, (sequences.streams, static_weight[0].shape[1]))
        static = graph.node(
            "Gemm",
            [flat, graph.weight("weight_static", static_weight[0])],
            shape=(sequences.streams, count),
            transB=1,
        )
        cube = graph.reshape(sums, (sequences.steps, sequences.streams, count))
        sums = graph.reshape(graph.node("Add", [cube, static]), (sequences.rows, count))
    return _steps(graph, sums, sequences, "sums")


def _steps(graph: Graph, tensor: str, sequences: Sequences, name: str) -> list[str]:
    """Split (T * N, width) into T steps (N, width)."""
    steps = sequences.steps
    if steps == 1:
        return [tensor]
    parts = [graph.new_name(f"{name}_{step}") for step in range(steps)]
    # Equal parts, of a size that may be free. Opset 18 added their number as an attribute.
    number = steps if graph.opset >= 18 else None
    shape = (sequences.streams, graph.shape(tensor)[1])
    graph.node("Split", [tensor], parts, shapes=[shape] * steps, axis=0, num_outputs=number)
    return parts


def _split(graph: Graph, tensor: str, widths: str, name: str) -> list[str]:
    """Split the columns of a matrix into parts of constant widths."""
    shapes = [(graph.shape(tensor)[0], int(width)) for width in graph.initializers[widths]]
    parts = [graph.new_name(f"{name}.{part}") for part in range(len(shapes))]
    graph.node("Split", [tensor, widths], parts, shapes=shapes, axis=1)
    return parts
