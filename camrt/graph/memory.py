"""How much memory a graph needs for an image."""

from __future__ import annotations

import math

import onnx
from onnx import helper

from camrt.graph.inference import infer
from camrt.graph.static import fix_batch
from camrt.graph.view import captured, control_flow, skeleton


def bytes_per_image(model: onnx.ModelProto) -> int | None:
    """Estimate the memory that activations take: the most bytes that are alive between two nodes.

    A tensor lives from the node that makes it to the last one that reads it. Weights, and what a kernel needs for
    itself, are not counted.

    Args:
        model: A model whose inputs have a free first size, with its nodes in topological order. Not changed.

    Returns:
        Bytes for a batch of one; None where the sizes are not known: with control flow, for example.
    """
    light = skeleton(model)
    if control_flow(light.graph.node):
        return None
    weights = {tensor.name for tensor in model.graph.initializer}
    fix_batch([value for value in light.graph.input if value.name not in weights], 1)
    del light.graph.value_info[:]
    for value in light.graph.output:
        value.type.tensor_type.ClearField("shape")
    found = infer(light, {tensor.name: tensor for tensor in model.graph.initializer})

    def size(name: str) -> int:
        shape, kind = found.shapes.get(name), found.types.get(name)
        if name in found.values or name in weights or not shape or not kind:
            return 0
        numbers = [one for one in shape if isinstance(one, int)]
        return math.prod(numbers) * helper.tensor_dtype_to_np_dtype(kind).itemsize

    nodes = list(light.graph.node)
    last = {name: index for index, node in enumerate(nodes) for name in (*node.input, *captured(node))}
    alive = most = sum(size(value.name) for value in light.graph.input)
    for index, node in enumerate(nodes):
        alive += sum(size(name) for name in node.output)
        most = max(most, alive)
        alive -= sum(size(name) for name in {*node.input} if last[name] == index)
    return most or None
