"""Rewriting models: the order of nodes, function bodies, the operator set, names, copies of nodes.

Everything here works on a model without its large weights (`camrt.graph.view.skeleton`), so nothing large is copied.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import onnx
import onnx.inliner
from onnx import version_converter

from camrt.errors import CamrtError
from camrt.graph.view import bodies, captured, described, opset_of, shortened

OLDEST_OPSET = 13  # the oldest operator set that our nodes exist in
UPGRADED_OPSET = 17  # what older models become
MOST_NODES = 250_000  # of a model whose functions are inlined: nested calls multiply

_Function = tuple[str, str, str]


# --------------------------------------------------------------------------------------------------------------- order


def sort_nodes(graph: onnx.GraphProto) -> bool:
    """Sort the nodes so that each stands behind those that it reads. Nodes that may stay in their order do.

    Args:
        graph: Changed where its nodes are not in order.

    Returns:
        Whether it was changed.

    Raises:
        CamrtError: The graph has a cycle, or a node or an output is a tensor that nothing makes.
    """
    nodes = list(graph.node)
    producers: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in node.output:
            producers.setdefault(name, index)
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    known |= {tensor.values.name for tensor in graph.sparse_initializer} | {""}
    before: list[set[int]] = []
    for node in nodes:
        for name in node.input:
            if name not in known and name not in producers:
                raise CamrtError(
                    f"found the node {described(node)}, which reads the tensor {name!r}, expected a tensor that an "
                    "input, an initializer or another node gives"
                )
        read = {*node.input, *captured(node)}
        before.append({producers[name] for name in read if name in producers and name not in known})
    for value in graph.output:
        if value.name not in known and value.name not in producers:
            raise CamrtError(f"found the output {value.name!r}, which no node makes, expected one that is computed")
    if all(max(needed, default=-1) < index for index, needed in enumerate(before)):
        return False
    order = _ordered(before)
    if len(order) < len(nodes):
        raise CamrtError(
            f"found a cycle, {_cycle(nodes, before, set(order))}, expected nodes that do not depend on their own output"
        )
    del graph.node[:]
    graph.node.extend(nodes[index] for index in order)
    return True


def _ordered(before: Sequence[Collection[int]]) -> list[int]:
    """Numbers, each behind those that it needs and otherwise ascending (Kahn 1962). Those on a cycle are left out."""
    behind: list[list[int]] = [[] for _ in before]
    missing = [len(needed) for needed in before]
    for index, needed in enumerate(before):
        for each in needed:
            behind[each].append(index)
    ready = [index for index, count in enumerate(missing) if not count]
    order = []
    while ready:
        order.append(heapq.heappop(ready))
        for index in behind[order[-1]]:
            missing[index] -= 1
            if not missing[index]:
                heapq.heappush(ready, index)
    return order


def _cycle(nodes: Sequence[onnx.NodeProto], before: Sequence[Collection[int]], done: Collection[int]) -> str:
    """One of the cycles, for people."""
    index = next(index for index in range(len(nodes)) if index not in done)
    path: dict[int, None] = {}  # a set that keeps its order
    while index not in path:  # each node that is left needs another one that is left
        path[index] = None
        index = min(each for each in before[index] if each not in done)
    around = list(path)[list(path).index(index) :][::-1]
    shown = [described(nodes[each]) for each in (around[-1], *around)]
    return " -> ".join(shown if len(shown) <= 7 else [*shown[:3], f"{len(shown) - 5} more", *shown[-2:]])


# ----------------------------------------------------------------------------------------------------------- functions


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the bodies of its own functions in place of their calls.

    Raises:
        CamrtError: onnx cannot inline them.
    """
    try:
        result = onnx.inliner.inline_local_functions(model, convert_version=True)
    except Exception as error:  # the inliner raises whatever its C++ does
        raise CamrtError(f"onnx cannot inline the functions of the model: {shortened(error)}") from error
    if result.functions:
        names = ", ".join(function.name for function in result.functions[:5])
        raise CamrtError(f"onnx cannot inline the functions {names} of the model: export it without functions")
    return result


def check_functions(model: onnx.ModelProto) -> None:
    """Check that a model's functions can be inlined.

    Raises:
        CamrtError: Functions call themselves, or become too many nodes.
    """
    functions = {(each.domain, each.name, each.overload): each for each in model.functions}
    sizes: dict[_Function, int] = {}
    for root in functions:
        stack, open_calls = [root], set[_Function]()
        while stack:
            key = stack[-1]
            if key in sizes:
                stack.pop()
                continue
            calls = [call for call in _calls(functions[key].node) if call in functions]
            waiting = [call for call in calls if call not in sizes]
            if not waiting:
                sizes[key] = len(functions[key].node) + sum(sizes[call] for call in calls)
                open_calls.discard(key)
                stack.pop()
                continue
            open_calls.add(key)
            if not open_calls.isdisjoint(waiting):
                raise CamrtError(f"found the function {key[1]!r}, which calls itself, expected no recursion")
            stack.extend(waiting)
    total = sum(sizes.get(call, 0) for call in _calls(model.graph.node))
    if total > MOST_NODES:
        raise CamrtError(f"found functions that become {total:,} nodes, expected at most {MOST_NODES:,}")


def _calls(nodes: Iterable[onnx.NodeProto]) -> Iterator[_Function]:
    for node in nodes:
        yield node.domain, node.op_type, node.overload
        for body in bodies(node):
            yield from _calls(body.node)


# -------------------------------------------------------------------------------------------------------- operator set


def upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself from opset 13 on, else one of opset 17.

    Raises:
        CamrtError: onnx cannot upgrade it.
    """
    if opset_of(model) >= OLDEST_OPSET:
        return model
    try:
        return version_converter.convert_version(model, UPGRADED_OPSET)
    except Exception as error:  # the converter raises whatever its C++ does
        raise CamrtError(
            f"found opset {opset_of(model)}, expected {OLDEST_OPSET} or later, and onnx cannot upgrade it "
            f"({shortened(error)}): export the model with opset_version={UPGRADED_OPSET}"
        ) from error


# --------------------------------------------------------------------------------------------------------------- names


def clashes(model: onnx.ModelProto, reserved: Collection[str]) -> dict[str, str]:
    """New names for the tensors of a model that have a reserved one.

    Args:
        model: A model.
        reserved: Names that must be free; one that ends in ``/`` stands for all that begin with it.

    Returns:
        Old name -> new name.
    """
    names = set(tensor_names(model.graph))
    prefixes = tuple(name for name in reserved if name.endswith("/"))
    new: dict[str, str] = {}
    for name in sorted(name for name in names if name in reserved or name.startswith(prefixes)):
        candidate = f"network/{name}"
        while candidate in names:
            candidate += "_"
        names.add(candidate)
        new[name] = candidate
    return new


def tensor_names(graph: onnx.GraphProto) -> Iterator[str]:
    """The names of all tensors of a graph and of the bodies in it; some more than once."""
    yield from (value.name for value in (*graph.input, *graph.output))
    yield from (tensor.name for tensor in graph.initializer)
    yield from (tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        yield from (name for name in (*node.input, *node.output) if name)
        for body in bodies(node):
            yield from tensor_names(body)


def rename_tensors(graph: onnx.GraphProto, new: Mapping[str, str]) -> None:
    """Rename tensors in a graph and in the bodies of its control flow, which read from outside by name."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = new.get(value.name, value.name)
    for weights in graph.initializer:
        weights.name = new.get(weights.name, weights.name)
    for tensor in graph.sparse_initializer:
        tensor.values.name = new.get(tensor.values.name, tensor.values.name)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new.get(name, name) for name in names]
        for body in bodies(node):
            rename_tensors(body, new)


# -------------------------------------------------------------------------------------------------------------- copies


def repeated(
    nodes: Iterable[onnx.NodeProto], prefix: str, inputs: Sequence[str]
) -> tuple[list[onnx.NodeProto], dict[str, str]]:
    """Copy nodes so that they compute the same from other inputs. What depends on weights alone is not copied.

    Args:
        nodes: In the graph's order, without control flow. Not changed.
        prefix: What the new names begin with; no name of the graph begins so.
        inputs: The tensors that are replaced.

    Returns:
        The copies; and old tensor -> new tensor, of ``inputs`` and of all that the copies make.
    """
    names = {name: f"{prefix}/{name}" for name in inputs}
    copies = []
    for node in nodes:
        if names.keys().isdisjoint([*node.input, *captured(node)]):
            continue
        names.update((name, f"{prefix}/{name}") for name in node.output if name)
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{prefix}/{node.name or node.output[0]}"
        copy.input[:] = [names.get(name, name) for name in node.input]
        copy.output[:] = [names.get(name, name) for name in node.output]
        copies.append(copy)
    return copies, names
