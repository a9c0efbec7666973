"""A network's nodes a second time: the same weights, tensors of other names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx

from camrt.graph.layers import check_no_control_flow
from camrt.graph.view import captured


def repeated(
    nodes: Iterable[onnx.NodeProto], prefix: str, inputs: Sequence[str]
) -> tuple[list[onnx.NodeProto], dict[str, str]]:
    """Copies of nodes that compute the same from other inputs. What depends on weights alone is not copied, but read.

    Args:
        nodes: In the graph's order. Not changed.
        prefix: What the new names begin with; no name of the graph begins so.
        inputs: The tensors that are replaced.

    Returns:
        The copies; and old tensor -> new tensor, of ``inputs`` and of all that the copies make.

    Raises:
        CamrtError: A node has a body.
    """
    names = {name: f"{prefix}/{name}" for name in inputs}
    copies = []
    for node in nodes:
        if names.keys().isdisjoint([*node.input, *captured(node)]):
            continue
        check_no_control_flow(node)
        names.update((name, f"{prefix}/{name}") for name in node.output if name)
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{prefix}/{node.name or node.output[0]}"
        copy.input[:] = [names.get(name, name) for name in node.input]
        copy.output[:] = [names.get(name, name) for name in node.output]
        copies.append(copy)
    return copies, names
