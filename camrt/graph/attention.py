"""Attention in exported transformers: where it is, and the fused operator in single ones.

Exporters write attention as MatMul, Softmax, MatMul, or, from opset 23 on, as one operator `Attention`. The second is
rewritten to the first when a model is opened, so that its weights can be read and differentiated in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from camrt.graph.view import GraphView, attributes_of, operator_of

_PASSING = {"Identity", "Dropout", "Cast"}
_UNKNOWN = ("is_causal", "softcap", "qk_matmul_output_mode", "softmax_precision", "q_num_heads", "kv_num_heads")


def unfused(model: onnx.ModelProto) -> bool:
    """Write Attention as single operators: Softmax(Q K^T / sqrt(size of a head) + mask) V.

    That is done where queries, keys and values are (N, heads, tokens, size of a head) and nothing is masked but by
    adding; other nodes stay as they are.

    Args:
        model: Changed where it has such nodes.

    Returns:
        Whether it was changed.
    """
    graph = model.graph
    found = [node for node in graph.node if operator_of(node) == "Attention"]
    view = GraphView(model) if found else None
    plain = [node.output[0] for node in found if view is not None and _is_plain(view, node)]
    if not plain:
        return False
    nodes = [one for node in graph.node for one in (_written(graph, node) if node.output[0] in plain else [node])]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    return True


def _is_plain(view: GraphView, node: onnx.NodeProto) -> bool:
    """Whether it is attention in its simplest form."""
    attributes = attributes_of(node)
    if any(attributes.get(name) for name in _UNKNOWN) or len(node.input) > 4 or any(node.output[1:]):
        return False
    shapes = [view.shapes.get(name) for name in node.input[:3]]
    if any(shape is None or len(shape) != 4 for shape in shapes):
        return False
    heads = {shape[1] for shape in shapes if shape is not None}
    masks = [view.types.get(name) for name in node.input[3:] if name]
    return len(heads) == 1 and all(kind == view.types.get(node.input[0]) for kind in masks)


def _written(graph: onnx.GraphProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The nodes in place of one."""
    query, key, value, *mask = node.input
    y = node.output[0]

    def make(kind: str, inputs: Sequence[str], hint: str, output: str = "", **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output or f"{y}/{hint}"], f"{y}/{hint}", **attributes))
        return output or f"{y}/{hint}"

    nodes: list[onnx.NodeProto] = []
    scale = attributes_of(node).get("scale")
    if scale:
        graph.initializer.append(numpy_helper.from_array(np.array([scale], np.float32), f"{y}/factor"))
        factor = make("CastLike", [f"{y}/factor", query], "scale")
        scaled = make("Mul", [query, factor], "scaled")
    else:
        size = make("CastLike", [make("Shape", [query], "size", start=3), query], "size_of_head")
        scaled = make("Div", [query, make("Sqrt", [size], "root")], "scaled")
    product = make("MatMul", [scaled, make("Transpose", [key], "keys", perm=[0, 1, 3, 2])], "product")
    if mask and mask[0]:
        product = make("Add", [product, mask[0]], "masked")
    make("MatMul", [make("Softmax", [product], "weights", axis=-1), value], "values", y)
    return nodes


def attention_weights(view: GraphView, logits: str) -> list[str]:
    """Find the weights of attention: what a Softmax over the last axis gives, and a MatMul multiplies with the values.

    Args:
        view: The network.
        logits: Its scores: what they do not depend on is left out.

    Returns:
        The tensors, the first layer first.
    """
    found = []
    for node in view.needed_for([logits]):
        if operator_of(node) != "Softmax" or not _is_last(view, node):
            continue
        tensor = node.output[0]
        readers = view.consumers[tensor]
        while len(readers) == 1 and operator_of(readers[0]) in _PASSING:
            readers = view.consumers[readers[0].output[0]]
            tensor = readers[0].input[0] if readers else tensor
        if any(operator_of(reader) == "MatMul" and reader.input[0] == tensor for reader in readers):
            found.append(node.output[0])
    return found


def _is_last(view: GraphView, node: onnx.NodeProto) -> bool:
    axis, rank = attributes_of(node).get("axis", -1), view.rank(node.output[0])
    return axis == -1 or (rank is not None and axis == rank - 1)
