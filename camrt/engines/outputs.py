"""Other outputs of a model than its own: tensors from within it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from camrt.engines.engine import name_of, read_model
from camrt.errors import CamrtError

if TYPE_CHECKING:
    import onnx

    from camrt.engines.engine import Model

ALL = "all"
# What they give is no tensor, so it cannot be returned as an array.
_NO_TENSOR = {
    *("SequenceEmpty", "SequenceConstruct", "SequenceInsert", "SequenceErase", "SequenceMap"),
    *("SplitToSequence", "Optional"),
}


def with_outputs(model: Model, outputs: Sequence[str] | str) -> onnx.ModelProto:
    """Return a model with other outputs.

    Args:
        model: A model, which is not changed, or the path of one.
        outputs: Names of tensors, or ``"all"`` for every tensor that a node of the main graph computes, in the order of
            the nodes. Sequences and optional values are left out, unless they are outputs already.

    Returns:
        A model of its own, weights included, with outputs whose types and shapes the engine finds out.

    Raises:
        CamrtError: There is no such tensor, or it is an input or a weight; there is no such file, or it is no ONNX
            model.
    """
    import onnx

    if isinstance(outputs, str) and outputs != ALL:
        raise CamrtError(f"found the outputs {outputs!r}, expected several names, as [{outputs!r}], or {ALL!r}")
    source = read_model(model)
    computed = list(dict.fromkeys([*_computed(source.graph), *(value.name for value in source.graph.output)]))
    wanted = computed if isinstance(outputs, str) else list(dict.fromkeys(outputs))
    _check_names(source.graph, wanted, computed, name_of(model))
    if source is model:
        source = onnx.ModelProto()
        source.CopyFrom(model)
    declared = {value.name: value for value in (*source.graph.value_info, *source.graph.output)}
    values = [declared.get(name, onnx.ValueInfoProto(name=name)) for name in wanted]
    del source.graph.output[:]
    source.graph.output.extend(values)
    return source


def _computed(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        if node.op_type not in _NO_TENSOR:
            yield from filter(None, node.output)


def _check_names(graph: onnx.GraphProto, wanted: Sequence[str], computed: Sequence[str], file: str) -> None:
    if not wanted:
        raise CamrtError("found no outputs, expected the name of at least one tensor", file=file)
    known = set(computed)
    for name in wanted:
        if name in known:
            continue
        near = difflib.get_close_matches(str(name), computed, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"the last ones are {', '.join(computed[-8:])}"
        if any(name == value.name for value in graph.input):
            hint = "it is an input"
        if any(name == tensor.name for tensor in graph.initializer):
            hint = "it is a weight"
        raise CamrtError(f"found the output {name!r}, expected a tensor that a node computes: {hint}", file=file)
