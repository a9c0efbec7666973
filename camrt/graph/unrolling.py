"""Control flow and recurrent layers in operators that have a gradient, where the graph alone tells what they do.

An If with a constant condition is the branch that is taken. A Loop or Scan of a known count is its body, once for each
turn. LSTM, GRU and RNN are their equations, once for each step (Hochreiter, Schmidhuber 1997; Cho et al. 2014), in the
order of gates of ONNX's operators. What is not known before the model runs is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import numpy_helper

from camrt.builder import PREFIX, Builder
from camrt.graph.rewrite import MOST_NODES, rename_tensors, tensor_names
from camrt.graph.sizes import Sizes
from camrt.graph.view import GraphView, attributes_of, bodies, operator_of, shape_of, skeleton

_RECURRENT = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_FLOW = ("If", "Loop", "Scan")


def has_steps(view: GraphView) -> bool:
    """Whether a model has control flow or recurrent layers."""
    return any(operator_of(node) in (*_FLOW, *_RECURRENT) for node in view.model.graph.node)


def unrolled(view: GraphView, size: tuple[int, int] | None = None, *, recurrent: bool = True) -> GraphView:
    """Unroll what is known.

    Args:
        view: The model. Not changed.
        size: The height and width of the images, for inputs of a free size: conditions and counts may depend on them.
        recurrent: Whether LSTM, GRU and RNN are unrolled as well.

    Returns:
        The model itself where there is nothing to unroll.
    """
    kinds = {*_FLOW, *(_RECURRENT if recurrent else ())}
    if not any(operator_of(node) in kinds for node in view.model.graph.node):
        return view
    model = onnx.ModelProto()
    model.CopyFrom(view.model)
    rounds = 0
    while _once(model, kinds, size, f"unrolled/{rounds}"):
        rounds += 1  # what is behind a Loop, or inside a branch, is known once that is unrolled
    return GraphView(model, view.renamed) if rounds else view


def _once(model: onnx.ModelProto, kinds: set[str], size: tuple[int, int] | None, prefix: str) -> bool:
    """Replace the nodes whose steps are known now; whether there were any.

    The names of the new nodes and tensors begin with the prefix, so that those of explainers stay free.
    """
    graph = model.graph
    builder = Builder(_opset(model), tensor_names(graph))
    sizes = Sizes(_probe(model, size))
    nodes, new = list[onnx.NodeProto](), dict[str, str]()
    changed = False
    for node in graph.node:
        steps = _steps(node, sizes) if operator_of(node) in kinds else None
        if steps is None or len(nodes) + steps.nodes > MOST_NODES:
            nodes.append(node)
            continue
        builder.nodes = []
        steps.write(builder)
        for one in builder.nodes:
            one.name = prefix + one.name.removeprefix(PREFIX)
            new |= {name: prefix + name.removeprefix(PREFIX) for name in one.output if name.startswith(f"{PREFIX}/")}
        nodes += builder.nodes
        changed = True
    if changed:
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)
        graph.initializer.extend(builder.initializers)
        new |= {one.name: prefix + one.name.removeprefix(PREFIX) for one in builder.initializers}
        rename_tensors(graph, new)
    return changed


def _opset(model: onnx.ModelProto) -> int:
    return next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))


def _probe(model: onnx.ModelProto, size: tuple[int, int] | None) -> GraphView:
    """The model without its large weights, for images of this size."""
    light = skeleton(model)
    names = {tensor.name for tensor in model.graph.initializer}
    images = [value for value in light.graph.input if value.name not in names and len(shape_of(value)) == 4]
    if size is not None and len(images) == 1:
        dims = images[0].type.tensor_type.shape.dim
        if any(not dim.HasField("dim_value") for dim in dims[2:]):
            dims[2].dim_value, dims[3].dim_value = size
            del light.graph.value_info[:]
    return GraphView(light)


# ----------------------------------------------------------------------------------------------------------- the steps


@dataclass(frozen=True)
class _Steps:
    """What replaces a node.

    Attributes:
        nodes: About how many nodes it has.
        write: Writes them.
    """

    nodes: int
    write: Callable[[Builder], None]


def _steps(node: onnx.NodeProto, sizes: Sizes) -> _Steps | None:
    """What replaces a node; None where that is not known before the model runs."""
    kind = operator_of(node)
    if kind == "If":
        return _branch(node, sizes)
    if kind == "Loop":
        return _turns(node, sizes)
    if kind == "Scan":
        return _scanned(node, sizes)
    return _recurrent(node, sizes)


def _branch(node: onnx.NodeProto, sizes: Sizes) -> _Steps | None:
    condition = sizes.value(node.input[0])
    if condition is None or condition.size != 1:
        return None
    body = attributes_of(node)["then_branch" if condition.reshape(-1)[0] else "else_branch"]

    def write(builder: Builder) -> None:
        for name, result in zip(node.output, _inline(builder, body, []), strict=False):
            if name:
                builder.node("Identity", [result], name)

    return _Steps(len(body.node), write)


def _turns(node: onnx.NodeProto, sizes: Sizes) -> _Steps | None:
    """A Loop whose count is a constant, and whose condition stays true."""
    body = attributes_of(node)["body"]
    count = sizes.value(node.input[0]) if node.input[0] else None
    start = sizes.value(node.input[1]) if len(node.input) > 1 and node.input[1] else True
    if count is None or start is None or not _stays_true(body):
        return None
    turns = max(0, int(count.reshape(-1)[0])) if bool(start) else 0
    first = list(node.input[2:])
    if turns > MOST_NODES or (turns == 0 and len(node.output) > len(first)):  # what no turn stacks has no known shape
        return None

    def write(builder: Builder) -> None:
        values, stacked = first, [list[str]() for _ in node.output[len(first) :]]
        condition = builder.constant(True, "condition", bool)
        for turn in range(turns):
            number = builder.constant(turn, "turn", "int64")
            _, *results = _inline(builder, body, [number, condition, *values])
            values = results[: len(first)]
            for row, result in zip(stacked, results[len(first) :], strict=False):
                row.append(builder.unsqueeze(result, 0))
        _give(builder, node.output, values, [_joined(builder, row, 0) for row in stacked])

    return _Steps(turns * (len(body.node) + 1), write)


def _scanned(node: onnx.NodeProto, sizes: Sizes) -> _Steps | None:
    """A Scan over axes of a known length."""
    attributes = attributes_of(node)
    body, many = attributes["body"], attributes["num_scan_inputs"]
    count = len(node.input) - many
    first, scanned = list(node.input[:count]), list(node.input[count:])
    stacks = len(node.output) - count
    axes = list(attributes.get("scan_input_axes", [0] * many))
    backward = list(attributes.get("scan_input_directions", [0] * many))
    out_axes = list(attributes.get("scan_output_axes", [0] * stacks))
    out_backward = list(attributes.get("scan_output_directions", [0] * stacks))
    shape = sizes.shape(scanned[0])
    length = shape[axes[0]] if shape is not None else None
    if not length or length > MOST_NODES:
        return None

    def write(builder: Builder) -> None:
        values, stacked = first, [list[str]() for _ in range(stacks)]
        for turn in range(length):
            slices = [
                builder.node("Gather", [name, builder.constant(_turn(turn, length, back), "turn", "int64")], axis=axis)
                for name, axis, back in zip(scanned, axes, backward, strict=True)
            ]
            results = _inline(builder, body, [*values, *slices])
            values = results[:count]
            for row, result, axis in zip(stacked, results[count:], out_axes, strict=True):
                row.append(builder.unsqueeze(result, axis))
        rows = [row[::-1] if back else row for row, back in zip(stacked, out_backward, strict=True)]
        joined = [_joined(builder, row, axis) for row, axis in zip(rows, out_axes, strict=True)]
        _give(builder, node.output, values, joined)

    return _Steps(length * (len(body.node) + many), write)


def _turn(turn: int, length: int, backward: int) -> int:
    return length - 1 - turn if backward else turn


def _stays_true(body: onnx.GraphProto) -> bool:
    """Whether the condition that a Loop's body gives is the one that it got, or true."""
    makers = {name: node for node in body.node for name in node.output}
    name = body.output[0].name
    while (maker := makers.get(name)) is not None and operator_of(maker) in ("Identity", "Cast"):
        name = maker.input[0]
    if name == body.input[1].name:
        return True
    if maker is not None and operator_of(maker) == "Constant":
        value = attributes_of(maker).get("value")
        return isinstance(value, onnx.TensorProto) and bool(numpy_helper.to_array(value).all())
    return any(one.name == name and bool(numpy_helper.to_array(one).all()) for one in body.initializer)


def _inline(builder: Builder, body: onnx.GraphProto, inputs: Sequence[str]) -> list[str]:
    """Write the nodes of a body under new names; its outputs."""
    copy = onnx.GraphProto()
    copy.CopyFrom(body)
    new: dict[str, str] = {value.name: given for value, given in zip(body.input, inputs, strict=False)}
    for name in _made(body):
        new.setdefault(name, builder.name(name))
    rename_tensors(copy, new)
    for node in copy.node:
        node.name = builder.name(f"node/{node.op_type}")
    builder.nodes.extend(copy.node)
    builder.initializers.extend(copy.initializer)
    return [value.name for value in copy.output]


def _made(graph: onnx.GraphProto) -> list[str]:
    """The tensors that a graph, and the bodies in it, make: not those that it reads from outside."""
    names = [tensor.name for tensor in graph.initializer]
    for node in graph.node:
        names += [name for name in node.output if name]
        for body in bodies(node):
            names += [value.name for value in body.input] + _made(body)
    return names


def _joined(builder: Builder, row: Sequence[str], axis: int) -> str:
    return row[0] if len(row) == 1 else builder.node("Concat", row, axis=axis)


def _give(builder: Builder, outputs: Sequence[str], values: Sequence[str], stacked: Sequence[str]) -> None:
    for name, result in zip(outputs, [*values, *stacked], strict=False):
        if name:
            builder.node("Identity", [result], name)


# ---------------------------------------------------------------------------------------------------- recurrent layers


def _recurrent(node: onnx.NodeProto, sizes: Sizes) -> _Steps | None:
    """A recurrent layer with ONNX's own activations over sequences of one known length."""
    attributes, kind = attributes_of(node), operator_of(node)
    inputs = [*node.input, *[""] * 8][:8]
    directions = 2 if attributes.get("direction", b"forward") in (b"bidirectional", "bidirectional") else 1
    wanted = [name.lower() for name in _RECURRENT[kind]] * directions
    given = [one.decode() if isinstance(one, bytes) else one for one in attributes.get("activations", wanted)]
    layout, shape = attributes.get("layout", 0), sizes.shape(inputs[0])
    length = shape[layout] if shape is not None else None
    if [one.lower() for one in given] != wanted or not length or "clip" in attributes or attributes.get("input_forget"):
        return None
    if inputs[4] or inputs[7] or layout:  # lengths of the sequences, peepholes, the batch first
        return None

    def write(builder: Builder) -> None:
        _Layer(builder, kind, attributes, inputs, length).write(node.output, directions)

    return _Steps(directions * length * 16, write)


@dataclass
class _Layer:
    """A recurrent layer that is written out.

    Attributes:
        builder: Where the nodes go.
        kind: LSTM, GRU or RNN.
        attributes: Those of its node.
        inputs: X (T, N, I), W (D, gates * H, I), R (D, gates * H, H), B (D, 2 * gates * H), lengths, h (D, N, H), c.
        length: T.
    """

    builder: Builder
    kind: str
    attributes: Mapping[str, object]
    inputs: Sequence[str]
    length: int

    def write(self, outputs: Sequence[str], directions: int) -> None:
        """Write all directions, and what the node gives: Y (T, D, N, H), the last h and the last c (D, N, H)."""
        b, runs = self.builder, []
        reverse = self.attributes.get("direction", b"forward") in (b"reverse", "reverse")
        for number in range(directions):
            runs.append(self._run(number, backward=number == 1 or reverse))
        rows = [[b.unsqueeze(step, 0, 1) for step in steps] for steps, _, _ in runs]
        found = [_joined(b, [_joined(b, row, 0) for row in rows], 1)]
        found.append(_joined(b, [b.unsqueeze(last, 0) for _, last, _ in runs], 0))
        if self.kind == "LSTM":
            found.append(_joined(b, [b.unsqueeze(cell, 0) for _, _, cell in runs], 0))
        _give(b, outputs, found, [])

    def _run(self, number: int, *, backward: bool) -> tuple[list[str], str, str]:
        """The states of one direction in the order of the sequence, the last state, and the last cell."""
        b, (X, W, R, B, _, first, cell, _) = self.builder, self.inputs
        gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[self.kind]
        at = b.constant(number, "direction", "int64")
        W, R = (b.node("Transpose", [b.node("Gather", [one, at], axis=0)], perm=[1, 0]) for one in (W, R))
        mixed, bias = b.node("MatMul", [X, W]), ""
        if B:
            outer, bias = b.nodes_of("Split", [b.node("Gather", [B, at], axis=0)], [b.name("B"), b.name("B")], axis=0,
                                     num_outputs=2 if b.opset >= 18 else None)  # fmt: skip
            mixed = b.node("Add", [mixed, outer])
        h, c = (b.node("Gather", [one, at], axis=0) if one else "" for one in (first, cell))
        if not h:  # zeros of the shape of a state
            start = b.node("Gather", [mixed, b.constant(0, "turn", "int64")], axis=0)
            h = b.node("Mul", [self._part(start, gates)[0], b.constant(0.0)])
        c = c or h
        steps = []
        for turn in range(self.length):
            now = b.constant(_turn(turn, self.length, backward), "turn", "int64")
            h, c = self._step(b.node("Gather", [mixed, now], axis=0), h, c, R, bias)
            steps.append(h)
        return steps[:: -1 if backward else 1], h, c

    def _step(self, x: str, h: str, c: str, R: str, bias: str) -> tuple[str, str]:
        """The next state and cell."""
        b = self.builder
        if self.kind == "GRU":
            return self._gru(x, h, R, bias), c
        mixed = b.node("Add", [x, b.node("MatMul", [h, R])])
        mixed = b.node("Add", [mixed, bias]) if bias else mixed
        if self.kind == "RNN":
            return b.node("Tanh", [mixed]), c
        i, o, f, new = self._part(mixed, 4)
        i, o, f = (b.node("Sigmoid", [one]) for one in (i, o, f))
        c = b.node("Add", [b.node("Mul", [f, c]), b.node("Mul", [i, b.node("Tanh", [new])])])
        return b.node("Mul", [o, b.node("Tanh", [c])]), c

    def _gru(self, x: str, h: str, R: str, bias: str) -> str:
        b = self.builder
        xz, xr, xn = self._part(x, 3)
        Rz, Rr, Rn = self._part(R, 3)
        Bz, Br, Bn = self._part(bias, 3) if bias else ("", "", "")

        def sum_of(*terms: str) -> str:
            found = terms[0]
            for term in terms[1:]:
                found = b.node("Add", [found, term]) if term else found
            return found

        z = b.node("Sigmoid", [sum_of(xz, b.node("MatMul", [h, Rz]), Bz)])
        r = b.node("Sigmoid", [sum_of(xr, b.node("MatMul", [h, Rr]), Br)])
        if self.attributes.get("linear_before_reset", 0):
            inner = b.node("Mul", [r, sum_of(b.node("MatMul", [h, Rn]), Bn)])
        else:
            inner = sum_of(b.node("MatMul", [b.node("Mul", [r, h]), Rn]), Bn)
        n = b.node("Tanh", [sum_of(xn, inner)])
        return b.node("Add", [n, b.node("Mul", [z, b.node("Sub", [h, n])])])  # (1 - z) n + z h

    def _part(self, value: str, count: int) -> list[str]:
        """The equal parts of a last axis."""
        if count == 1:
            return [value]
        b = self.builder
        return b.nodes_of(
            "Split", [value], [b.name("gate") for _ in range(count)], axis=-1,
            num_outputs=count if b.opset >= 18 else None,
        )  # fmt: skip
