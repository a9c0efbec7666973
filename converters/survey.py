"""What a network consists of, layer by layer, whether it converts or not: for `show` and `convert --dry-run`."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from converters import forks, registry, unknown
from converters.conversion import DEFAULT_OPSET
from converters.errors import ConversionError, detail_lines
from converters.graph import Graph, Node
from converters.layer import Layer
from converters.net import Net
from converters.shape import FixedDim, show, sizes

MULTIPLIES = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Row:
    """One layer of a Caffe network, or one node of an ONNX model.

    Attributes:
        name: Its name.
        type: Its type or operator.
        inputs: The tensors that it reads.
        outputs: The tensors that it writes.
        shapes: Their shapes, as ``"1 x 64 x 112 x 112"``; empty for one that is not known.
        parameters: The number of its weights.
        operations: Its multiply-adds for inputs of the shapes given; None where they are not known.
        origin: Of a Caffe layer: the fork it comes from.
        becomes: Of a Caffe layer: the ONNX operators.
        problem: Of a Caffe layer: why it cannot be converted; empty where it can.
    """

    name: str
    type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: tuple[str, ...]
    parameters: int
    operations: int | None
    origin: str = ""
    becomes: tuple[str, ...] = ()
    problem: str = ""


def of_net(
    net: Net,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    ignore_unknown: Collection[str] = (),
) -> list[Row]:
    """The layers of a Caffe network, in order.

    Args:
        net: The network, with or without weights.
        input_shapes: Input -> shape, batch included, where the description does not say it or it is to differ.
        ignore_unknown: As for `convert`.

    Returns:
        A row for each layer. A layer that cannot be converted has a ``problem``, and those behind it no shapes.
    """
    graph = Graph(net.name, DEFAULT_OPSET)
    graph.reserve(top for layer in net.layers for top in layer.tops)
    for data in net.inputs:
        shape = (input_shapes or {}).get(data.name, data.shape)
        if shape is not None:
            graph.input(data.name, tuple(shape))
    return [_row(net, layer, graph, ignore_unknown) for layer in net.layers]


def _row(net: Net, layer: Layer, graph: Graph, ignore_unknown: Collection[str]) -> Row:
    entry = registry.find(layer.type, layer.params, net.fork)
    type = registry.describe(layer.type, layer.params)
    first, problem, wanted = len(graph.nodes), "", [blob.shape for blob in layer.blobs]

    def stand_in(_: Layer, shapes: Sequence[tuple[int, ...]]) -> Sequence[np.ndarray]:
        wanted[:] = shapes
        return [np.broadcast_to(np.float32(1), shape) for shape in shapes]  # of any size, in four bytes

    if entry is None:
        problem, origin = "no handler", forks.of_type(layer.type)
    else:
        origin = entry.origin
        try:
            unknown.refuse_unknown([(layer, entry)], ignore_unknown, net.files[0] if net.files else "the network")
            if all(bottom in graph.tensors for bottom in layer.bottoms):
                graph.begin_layer(layer)
                entry.handler(layer if layer.blobs else _filled(layer, stand_in), graph)
        except ConversionError as error:
            problem = "\n".join([error.message, *detail_lines(error.details)])
        except FixedDim as error:
            problem = f"{error.reason}, which is known only at run time"
    nodes = graph.nodes[first:]
    shapes = tuple(_shown(graph, top) for top in layer.tops)
    return Row(
        layer.name,
        type,
        layer.bottoms,
        layer.tops,
        shapes,
        sum(math.prod(shape) for shape in wanted),
        sum(_of_node(graph, node) for node in nodes) if all(shapes) else None,
        origin,
        tuple(dict.fromkeys(node.op for node in nodes)),
        problem,
    )


def _filled(layer: Layer, filler: Any) -> Layer:
    return replace(layer, filler=filler)


def _shown(graph: Graph, tensor: str) -> str:
    return show(graph.shape(tensor)) if tensor in graph.tensors else ""


def _of_node(graph: Graph, node: Node) -> int:
    if node.op not in MULTIPLIES:
        return 0
    output = sizes(graph.shape(node.outputs[0]))
    return multiply_adds(node.op, output, [sizes(graph.shape(name)) if name else () for name in node.inputs])


def multiply_adds(op: str, output: Sequence[int], inputs: Sequence[Sequence[int]]) -> int:
    """The multiply-adds of one node.

    Args:
        op: One of `MULTIPLIES`.
        output: Its output's shape.
        inputs: Its inputs' shapes, the weights second.
    """
    data, weights = inputs[0], inputs[1]
    if op == "Conv":  # (M, C / group, kernel...): each output value sums over C / group and the kernel
        return math.prod(output) * math.prod(weights[1:])
    if op == "ConvTranspose":  # (C, M / group, kernel...): each input value goes to M / group and the kernel
        return math.prod(data) * math.prod(weights[1:])
    return math.prod(output) * data[-1]


def of_onnx(model: Any) -> list[Row]:
    """The nodes of an ONNX model, in order.

    Args:
        model: An ``onnx.ModelProto``; its weights need not be loaded.
    """
    import onnx

    known = _known_shapes(onnx.shape_inference.infer_shapes(model))
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    counted: set[str] = set()
    rows = []
    for number, node in enumerate(model.graph.node):
        own = {name for name in node.input if name in weights} - counted
        counted |= own
        output, inputs = known.get(node.output[0]), [known.get(name) for name in node.input]
        operations: int | None = 0
        if node.op_type in MULTIPLIES:
            numbers = [_numbers(shape) for shape in (output, *inputs[:2])]
            is_known = all(shape is not None for shape in numbers)
            operations = (
                multiply_adds(node.op_type, numbers[0] or (), [n or () for n in numbers[1:]]) if is_known else None
            )
        shapes = tuple(" x ".join(map(str, known[name])) if name in known else "" for name in node.output)
        parameters = sum(math.prod(weights[name]) for name in own)
        name = node.name or f"{node.op_type} {number}"
        rows.append(Row(name, node.op_type, tuple(node.input), tuple(node.output), shapes, parameters, operations))
    return rows


def _known_shapes(model: Any) -> dict[str, tuple[int | str, ...]]:
    graph = model.graph
    shapes: dict[str, tuple[int | str, ...]] = {one.name: tuple(one.dims) for one in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            shapes[value.name] = tuple(
                dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else "?") for dim in dims
            )
    return shapes


def _numbers(shape: Sequence[int | str] | None) -> tuple[int, ...] | None:
    """A shape with one item for a free batch; None where another size is open."""
    if shape is None or any(isinstance(dim, str) for dim in shape[1:]):
        return None
    return tuple(1 if isinstance(dim, str) else dim for dim in shape)


# ------------------------------------------------------------------------------------------------------------ drawing

_COLORS = {"Convolution": "#FF5050", "Conv": "#FF5050", "Pooling": "#FF9900", "MaxPool": "#FF9900",
           "AveragePool": "#FF9900", "InnerProduct": "#CC33FF", "Gemm": "#CC33FF"}  # fmt: skip
_LAYER_COLOR, _BLOB_COLOR = "#6495ED", "#E0E0E0"


def dot(name: str, rows: Iterable[Row], inputs: Iterable[str] = ()) -> str:
    """The network as a graph in Graphviz's language, as Caffe's draw_net.py draws it.

    Layers are boxes and blobs octagons; a layer in place is one box beside its blob.

    Args:
        name: The network's name.
        rows: Its layers or nodes.
        inputs: Its inputs.
    """
    rows = list(rows)
    written = {blob for row in rows for blob in row.outputs} | set(inputs)
    blobs = {blob: f"blob{number}" for number, blob in enumerate(dict.fromkeys((*inputs, *_blobs(rows, written))))}
    lines = [f"digraph {_quoted(name or 'network')} {{", "  rankdir=TB; node [style=filled, fontname=Helvetica];"]
    for blob, node in blobs.items():
        lines.append(f'  {node} [label={_quoted(blob)}, shape=octagon, fillcolor="{_BLOB_COLOR}"];')
    for number, row in enumerate(rows):
        color = _COLORS.get(row.type, _LAYER_COLOR)
        label = _quoted("\\n".join(part for part in (row.name, f"({row.type})", *row.shapes) if part))
        lines.append(f'  layer{number} [label={label}, shape=box, fillcolor="{color}"];')
        lines += [f"  {blobs[blob]} -> layer{number};" for blob in row.inputs if blob in blobs]
        lines += [f"  layer{number} -> {blobs[blob]};" for blob in row.outputs if blob in blobs]
    return "\n".join([*lines, "}"]) + "\n"


def _blobs(rows: Iterable[Row], written: Collection[str]) -> Iterable[str]:
    return (blob for row in rows for blob in (*row.inputs, *row.outputs) if blob in written)


def _quoted(text: str) -> str:
    """A string of Graphviz; the line breaks of labels stay."""
    parts = (part.replace("\\", "\\\\").replace('"', '\\"') for part in text.split("\\n"))
    return '"' + "\\n".join(parts) + '"'


def total(rows: Iterable[Row]) -> tuple[int, int | None]:
    """The parameters and the operations of all rows; None where the operations of one are not known."""
    rows = list(rows)
    operations = [row.operations for row in rows]
    known = [count for count in operations if count is not None]
    return sum(row.parameters for row in rows), sum(known) if len(known) == len(operations) else None
