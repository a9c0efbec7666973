"""Making room for names: a network's own tensors step aside for the explainer's inputs and outputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx


def without_clashes(model: onnx.ModelProto, reserved: Collection[str]) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The model with other names for the tensors that have a reserved one.

    Args:
        model: A model. Not changed.
        reserved: The names that must be free.

    Returns:
        The model itself where nothing clashes, else a renamed copy; and old name -> new name.
    """
    graph = model.graph
    names = {value.name for value in (*graph.input, *graph.output)} | {tensor.name for tensor in graph.initializer}
    names.update(name for node in graph.node for name in (*node.input, *node.output))
    new = {}
    for name in sorted(names.intersection(reserved)):
        candidate = f"network/{name}"
        while candidate in names:
            candidate += "_"
        new[name] = candidate
    if not new:
        return model, {}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _rename(copy.graph, new)
    return copy, new


def _rename(graph: onnx.GraphProto, new: Mapping[str, str]) -> None:
    """Rename tensors in a graph and in the bodies of its control flow, which read from outside by name."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = new.get(value.name, value.name)
    for tensor in graph.initializer:
        tensor.name = new.get(tensor.name, tensor.name)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new.get(name, name) for name in names]
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                if body.node:
                    _rename(body, new)
