"""The rest of a network: from a layer to the scores, to be run on other features than those of the image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx

from camrt.errors import CamrtError
from camrt.graph.layers import dependents
from camrt.graph.view import GraphView, operator_of

_SIZES = ("Shape", "Size")


@dataclass(frozen=True)
class Rest:
    """What lies between a layer and the scores.

    Attributes:
        nodes: The nodes, in the graph's order.
        shapes: Nodes that take sizes from tensors before the layer, as exporters carry that of the batch along.
        around: Tensors of the image that these nodes read past the layer, as a residual connection does.
    """

    nodes: Sequence[onnx.NodeProto]
    shapes: Sequence[onnx.NodeProto]
    around: Sequence[str]


def rest_of(view: GraphView, image: str, layer: str, logits: str) -> Rest:
    """Find the nodes that compute the scores from a layer.

    Args:
        view: The network.
        image: Its input.
        layer: The layer.
        logits: The scores.

    Raises:
        CamrtError: The scores do not depend on the layer.
    """
    nodes = view.model.graph.node
    numbers, behind = _data(nodes, image), _data(nodes, layer)
    if logits not in behind or logits == layer:
        raise CamrtError(
            f"found the layer {layer!r}, on which the scores {logits!r} do not depend: --layer names others"
        )
    reached = dependents(view, image)
    wanted = {logits}
    around: dict[str, None] = {}  # a set that keeps its order
    found, shapes = [], []
    for node in reversed(nodes):
        if wanted.isdisjoint(node.output) or layer in node.output:
            continue
        if operator_of(node) in _SIZES and node.input[0] not in behind:
            if node.input[0] in reached:
                shapes.append(node)
            continue
        found.append(node)
        past = [name for name in node.input if name in numbers and name not in behind]
        around.update(dict.fromkeys(past))
        wanted.update(name for name in node.input if name in reached and name not in past)
    return Rest(found[::-1], shapes[::-1], list(around))


def _data(nodes: Iterable[onnx.NodeProto], start: str) -> set[str]:
    """What depends on the numbers of a tensor, not only on its sizes."""
    found = {start}
    for node in nodes:
        if operator_of(node) not in _SIZES and not found.isdisjoint(node.input):
            found.update(name for name in node.output if name)
    return found
