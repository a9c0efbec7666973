"""Reverse-mode differentiation of ONNX graphs: ONNX in, ONNX out.

The backward pass visits the nodes between the wanted tensors and the output, last first. The rule of each operator
(`camrt.graph.rules`) is the formula of its vector-Jacobian product. The engine does what all rules have in common: it
sums along broadcast axes, adds up the cotangents of a tensor, and removes nodes that nothing reads. The new nodes are
standard operators that read the tensors of the forward pass, so that one run gives outputs and gradients.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from camrt.builder import Builder
from camrt.errors import CamrtError
from camrt.graph.opening import ModelLike, check_model, naming, open_model
from camrt.graph.rules import modifiers, registry
from camrt.graph.rules.registry import rule
from camrt.graph.rules.relevance import Modifier, Step
from camrt.graph.sizes import Sizes
from camrt.graph.values import Value, shown, total, unbroadcast
from camrt.graph.view import GraphView, attributes_of, captured, operator_of

__all__ = ["Value", "backpropagate", "differentiate", "rule"]

PREFIX = "gradient/"


class MissingRuleError(CamrtError):
    """An operator on the way has no rule."""


class NoSlopeError(CamrtError):
    """What is differentiated does not depend on a tensor, or has no slope by it."""


def differentiate(
    model: ModelLike,
    output: str,
    wrt: str | Sequence[str],
    seed: np.ndarray | str | None = None,
    *,
    relu: str | None = None,
) -> onnx.ModelProto:
    """Add the gradient of an output to a model.

    Args:
        model: A model or the path of one. Not changed. Below opset 13 the result is one of opset 17.
        output: The tensor that is differentiated: an output of the model, or any other floating-point tensor.
        wrt: The tensors that it is differentiated with respect to: inputs, intermediate tensors, initializers.
        seed: The factor of the output before it is summed. None means ones: the sum of all elements is differentiated.
            Otherwise an array that broadcasts to the output's shape (``np.eye(K)[class]``: one class), or the name of
            a new input of the model, of the output's shape.
        relu: ``"guided"`` (Springenberg et al. 2015) or ``"deconvnet"`` (Zeiler & Fergus 2014): another backward pass
            through rectifiers, see `camrt.graph.rules.modifiers`.

    Returns:
        The model with ``output`` and ``gradient/<tensor>`` for each of ``wrt`` as additional outputs. A gradient has
        the shape and element type of its tensor.

    Raises:
        CamrtError: The model is not valid; a tensor does not exist, holds integers, or the output does not depend on
            it; operators between them have no rule (all are named).

    Example:
        >>> seeded = differentiate(model, "logits", "features", np.eye(1000, dtype=np.float32)[281])
        >>> logits, gradient = session.run(["logits", "gradient/features"], {"data": image})
    """
    names = [wrt] if isinstance(wrt, str) else list(dict.fromkeys(wrt))
    if not names:
        raise CamrtError("found no tensor to differentiate by, expected one or more")
    with naming(model):
        return _differentiated(model, output, names, seed, relu)


def _differentiated(
    model: ModelLike, output: str, names: Sequence[str], seed: np.ndarray | str | None, relu: str | None
) -> onnx.ModelProto:
    view = open_model(model)
    check_model(view.model, "the model")
    if view.model is model:  # nothing had to be rewritten: the caller's own
        copy = onnx.ModelProto()
        copy.CopyFrom(view.model)
        view = GraphView(copy)
    result = view.model
    _expect_known(view, [output, *names])
    builder = Builder(view.opset, _names(result))
    sizes = Sizes(view)
    if not sizes.is_float(output):
        raise CamrtError(f"found the output {output!r} of {_type_name(sizes, output)}, expected floating-point numbers")
    seeding = _Seeding(builder, sizes, output)
    start = seeding.of(seed)
    found = backpropagate(builder, view, {output: start}, names, relu=relu, sizes=sizes)
    graph = result.graph
    graph.node.extend(builder.nodes)
    graph.initializer.extend(builder.initializers)
    graph.input.extend(seeding.inputs)
    listed = {value.name for value in graph.output}
    if output not in listed:
        graph.output.append(_described(view, sizes, output, output))
    for name in names:
        title = PREFIX + name
        if not builder.claim(title):
            raise CamrtError(f"found a tensor {title!r}, which the model has already: it is the name of the new output")
        graph.node.append(helper.make_node("Identity", [found[name]], [title], builder.name("node/Identity")))
        graph.output.append(_described(view, sizes, name, title))
    check_model(result, "the model with its gradients")
    return result


def backpropagate(
    builder: Builder,
    view: GraphView,
    gradients: Mapping[str, str],
    wrt: Sequence[str],
    *,
    cotangents: int | None = None,
    relu: str | None = None,
    modifier: Modifier | None = None,
    sizes: Sizes | None = None,
) -> dict[str, str]:
    """Write the nodes of the backward pass.

    Args:
        builder: Where the nodes go. They read tensors of ``view`` by name, so both must end in one graph.
        view: The graph that is differentiated.
        gradients: Tensor of the graph -> name of the tensor that holds its cotangent, of the same element type and
            shape (behind the axis of ``cotangents``). The gradients of several tensors add up.
        wrt: The tensors whose gradients are wanted.
        cotangents: K, to differentiate K scores in one pass: cotangents and gradients then have the shape (K, *shape of
            the tensor). The forward pass runs once. By default there is one, without that axis.
        relu: None, ``"guided"`` or ``"deconvnet"``, as in `differentiate`.
        modifier: What takes the place of the rules, such as `camrt.graph.rules.relevance.Relevance`.
        sizes: The sizes of ``view``, if the caller has inferred them.

    Returns:
        Tensor of ``wrt`` -> name of the tensor that holds its gradient.

    Raises:
        CamrtError: As `differentiate`.
    """
    if relu is not None and relu not in modifiers.NAMES:
        raise CamrtError(f"found relu={relu!r}, expected None or one of {', '.join(modifiers.NAMES)}")
    if cotangents is not None and cotangents < 1:
        raise CamrtError(f"found cotangents={cotangents}, expected 1 or more")
    _expect_known(view, [*gradients, *wrt])
    part = _Between.of(view, sizes or Sizes(view), gradients, wrt)
    before = len(builder.nodes), len(builder.initializers)
    lead = None if cotangents == 1 else cotangents
    pending: dict[str, list[Value]] = defaultdict(list)
    for tensor, name in gradients.items():
        if cotangents == 1:
            name = builder.node("Squeeze", [name, builder.shape(0)])
        pending[tensor].append(Value(builder, name, part.sizes.shape(tensor), part.kind(tensor), lead))
    failed: list[str] = []
    cause: Exception | None = None
    for node in reversed(part.nodes):
        arrived = [_arrived(pending, name) if name in part.tensors else None for name in node.output]
        if all(one is None for one in arrived):
            continue  # all that stands behind it gives no gradient
        try:
            for name, cotangent in _pulled_back(builder, part, node, arrived, relu, modifier):
                pending[name].append(cotangent)
        except CamrtError as error:
            failed.append(f"{describe(node)}: {error.message}")
        except Exception as error:  # a user's rule, or an attribute that no runtime would take: say which node it was
            failed.append(f"{describe(node)}: its rule failed with {error.__class__.__name__}: {error}")
            cause = cause or error
    if failed:
        raise CamrtError(_listed(failed)) from cause
    result = {}
    for name in wrt:
        found = _arrived(pending, name)
        if found is None:
            raise NoSlopeError(f"the gradient at {name!r} is zero everywhere: {part.readers_of(name)}")
        result[name] = found.name if cotangents != 1 else builder.unsqueeze(found.name, 0)
    _drop_unused(builder, before, result.values())
    return result


def _pulled_back(
    builder: Builder,
    part: _Between,
    node: onnx.NodeProto,
    arrived: Sequence[Value | None],
    relu: str | None,
    modifier: Modifier | None,
) -> Iterable[tuple[str, Value]]:
    """The cotangents at a node's inputs: (tensor, cotangent)."""
    if modifier is None or arrived[0] is None:
        return _by_rule(builder, part, node, arrived, relu)
    step = Step(
        part.view, part.sizes, node, part.tensors, lambda name: part.value(builder, name),
        lambda g: _by_rule(builder, part, node, [g, *arrived[1:]], None),
    )  # fmt: skip
    return modifier(step, arrived[0])


def _by_rule(
    builder: Builder, part: _Between, node: onnx.NodeProto, arrived: Sequence[Value | None], relu: str | None
) -> Iterator[tuple[str, Value]]:
    """The cotangents at a node's inputs, as the rule of its operator has them."""
    entry = registry.find(node)
    assert entry is not None  # _Between has looked
    if not entry.several and any(one is not None for one in arrived[1:]):
        used = [name for name, one in zip(node.output, arrived, strict=True) if one is not None]
        raise CamrtError(f"the output depends on {used[-1]!r}, and only a gradient at {node.output[0]!r} is supported")
    outputs = [part.value(builder, name) for name in node.output if name]
    inputs = [part.value(builder, name) if name else None for name in node.input]
    some = next(one for one in arrived if one is not None)
    named = [one for one, name in zip(arrived, node.output, strict=True) if name]
    g = [one or out.zeros(some.lead) for one, out in zip(named, outputs, strict=True)]
    if relu is not None and (source := modifiers.rectified(part.view, part.sizes, node)) is not None:
        if relu == "deconvnet":
            yield source, modifiers.deconvnet(g[0])
            return
        g[0] = modifiers.guided(g[0], part.value(builder, source), node.op_type)
    attributes = {key: one.decode() if isinstance(one, bytes) else one for key, one in attributes_of(node).items()}
    given = (g, outputs) if entry.several else (g[0], outputs[0])
    found = entry.rule(*given, *inputs, **entry.asked(attributes))
    for x, one in zip(inputs, found if isinstance(found, (list, tuple)) else [found], strict=False):
        if x is None or x.name not in part.tensors:
            continue
        cotangent = one if isinstance(one, Value) or one is None else one()
        if cotangent is None:
            continue
        is_alone = len(inputs) == 1 and not (cotangent.has_rank and x.has_rank)  # nothing that it could broadcast to
        yield x.name, cotangent if is_alone else unbroadcast(cotangent, x)


def _arrived(pending: dict[str, list[Value]], tensor: str) -> Value | None:
    """The sum of what has come in at a tensor."""
    if tensor not in pending:
        return None
    pending[tensor] = [total(pending[tensor])]
    return pending[tensor][0]


def _drop_unused(builder: Builder, before: tuple[int, int], wanted: Iterable[str]) -> None:
    """Remove new nodes and constants that nothing wanted depends on: rules compute more than is asked for."""
    read, kept = set(wanted), []
    for node in reversed(builder.nodes[before[0] :]):
        if not read.isdisjoint(node.output):
            read.update(node.input)
            kept.append(node)
    builder.nodes[before[0] :] = reversed(kept)
    builder.initializers[before[1] :] = [one for one in builder.initializers[before[1] :] if one.name in read]


# ------------------------------------------------------------------------------------------------- what lies between


@dataclass(frozen=True, eq=False)
class _Between:
    """The part of a graph between the wanted tensors and those that are differentiated.

    Attributes:
        view: The whole graph.
        sizes: The sizes of its tensors.
        nodes: The nodes, in the graph's order.
        tensors: Floating-point and quantized tensors that depend on a wanted one, and that a differentiated one depends
            on.
    """

    view: GraphView
    sizes: Sizes
    nodes: Sequence[onnx.NodeProto]
    tensors: Collection[str]

    @classmethod
    def of(cls, view: GraphView, sizes: Sizes, outputs: Collection[str], wrt: Sequence[str]) -> _Between:
        """Find the part between tensors.

        Raises:
            CamrtError: There is none, or operators in it have no rule.
        """
        for name in wrt:
            if not sizes.is_float(name):
                raise CamrtError(
                    f"found the tensor {name!r} of {_type_name(sizes, name)}, expected floating-point numbers: only "
                    "these have gradients"
                )
        nodes = view.model.graph.node
        active = _downstream(nodes, wrt, sizes)
        needed = set(outputs) & active
        way = []
        for node in reversed(nodes):
            if needed.intersection(node.output):
                needed.update(active.intersection(_reads(node)))
                way.append(node)
        for name in wrt:
            if name not in needed:
                raise NoSlopeError(_why_not(view, name, outputs, active))
        _expect_rules(way[::-1])
        return cls(view, sizes, [node for node in way[::-1] if needed.intersection(node.input)], needed)

    def kind(self, tensor: str) -> int:
        """A tensor's element type; float32 where it is not known."""
        return self.sizes.dtype(tensor) or TensorProto.FLOAT

    def value(self, builder: Builder, tensor: str) -> Value:
        """A tensor of the forward pass."""
        return Value(builder, tensor, self.sizes.shape(tensor), self.kind(tensor), sizes=self.sizes)

    def readers_of(self, tensor: str) -> str:
        """Say who reads a tensor, for an error."""
        readers = [describe(node) for node in self.nodes if tensor in node.input]
        return "what depends on it has no slope" + (f", as {', '.join(readers[:5])}" if readers else "")


def _downstream(nodes: Iterable[onnx.NodeProto], wrt: Iterable[str], sizes: Sizes) -> set[str]:
    """The tensors that depend on some, by way of floating-point and quantized tensors."""
    active = set(wrt)
    for node in nodes:
        if not active.isdisjoint(_reads(node)):
            # What is quantized stands for numbers that have a gradient.
            is_quantized = operator_of(node) == "QuantizeLinear"
            active.update(name for name in node.output if name and (is_quantized or sizes.is_float(name)))
    return active


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from (name for name in node.input if name)
    yield from captured(node)


def _expect_rules(nodes: Iterable[onnx.NodeProto]) -> None:
    missing: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        if registry.find(node) is None:
            missing[f"{node.domain}.{node.op_type}" if node.domain else node.op_type].append(describe(node))
    if not missing:
        return
    parts = []
    for operator, found in sorted(missing.items()):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        why = " (control flow)" if operator in ("If", "Loop", "Scan") else ""
        parts.append(f"{operator}{why}: {', '.join(found[:3])}{more}")
    raise MissingRuleError(
        f"the gradient passes operators without a rule: {'; '.join(parts)}. Write one with "
        "@camrt.graph.gradient.rule(...), or differentiate by a tensor behind them"
    )


def _why_not(view: GraphView, tensor: str, outputs: Collection[str], active: AbstractSet[str]) -> str:
    """Say why there is no gradient at a tensor."""
    shown = " and ".join(repr(name) for name in outputs)
    depends = {tensor}
    for node in view.model.graph.node:
        if not depends.isdisjoint(_reads(node)):
            depends.update(name for name in node.output if name)
    if depends.isdisjoint(outputs):
        return f"{shown} does not depend on {tensor!r}: expected a tensor that it is computed from"
    way = view.needed_for(outputs)
    read = {name for node in way for name in _reads(node)} | set(outputs)
    listed = [
        describe(node)
        for node in way
        if not active.isdisjoint(_reads(node)) and (read & set(node.output)) - active  # here it stops
    ]
    return (
        f"{shown} depends on {tensor!r} only by way of integers or truth values, which have no gradient"
        + (f": {', '.join(listed[:5])}" if listed else "")
        + ". Differentiate by a tensor behind them"
    )


def _expect_known(view: GraphView, names: Iterable[str]) -> None:
    known = {value.name for value in view.model.graph.input} | set(view.producers) | set(view.initializers)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 5, 0.5)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "the outputs are: "
            listed = "" if near else ", ".join(map(repr, view.outputs))
            raise CamrtError(f"found no tensor {name!r} in the model. {hint}{listed}")


def describe(node: onnx.NodeProto) -> str:
    """Name a node and its operator, for an error."""
    domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
    return f"{node.name or next((name for name in node.output if name), '?')!r} ({domain}{node.op_type})"


def _listed(failed: Sequence[str]) -> str:
    return failed[0] if len(failed) == 1 else f"{len(failed)} nodes cannot be differentiated: " + "; ".join(failed)


# --------------------------------------------------------------------------------------------------- around the model


@dataclass
class _Seeding:
    """The gradient that the backward pass starts with."""

    builder: Builder
    sizes: Sizes
    output: str
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)

    def of(self, seed: np.ndarray | str | None) -> str:
        kind = self.sizes.dtype(self.output) or TensorProto.FLOAT
        if isinstance(seed, str):
            return self._input(seed, kind)
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        shape = self.builder.node("Shape", [self.output])
        if seed is None:
            one = numpy_helper.from_array(np.ones(1, dtype))
            return self.builder.node("ConstantOfShape", [shape], value=one)
        values = np.asarray(seed)
        if values.dtype.kind not in "fiub" or not np.isfinite(values.astype(np.float64)).all():
            raise CamrtError(f"found a seed of {values.dtype}, expected finite numbers")
        sizes = self.sizes.shape(self.output)
        if sizes is not None:
            fits = values.ndim <= len(sizes) and all(
                one in (1, size) or size is None for one, size in zip(values.shape[::-1], sizes[::-1], strict=False)
            )
            if not fits:
                raise CamrtError(
                    f"found a seed of shape {values.shape}, expected one that broadcasts to that of {self.output!r}, "
                    f"{shown(sizes)}"
                )
        return self.builder.node("Expand", [self.builder.constant(values, "seed", dtype), shape])

    def _input(self, name: str, kind: int) -> str:
        if not name:
            raise CamrtError("found an empty name for the seed, expected that of a new input")
        if not self.builder.claim(name):
            raise CamrtError(f"found the seed {name!r}, which the model has already, expected a new name")
        self.inputs.append(_info(self.sizes, self.output, name, kind))
        return name


def _described(view: GraphView, sizes: Sizes, tensor: str, title: str) -> onnx.ValueInfoProto:
    """An output with the type and shape of a tensor."""
    return _info(sizes, tensor, title, sizes.dtype(tensor) or TensorProto.FLOAT)


def _info(sizes: Sizes, tensor: str, title: str, kind: int) -> onnx.ValueInfoProto:
    if sizes.shape(tensor) is None:
        raise CamrtError(
            f"the shape of {tensor!r} cannot be inferred: give the model's inputs fixed sizes (all but the batch)"
        )
    return helper.make_tensor_value_info(title, kind, list(sizes.named(tensor)))


def _names(model: onnx.ModelProto) -> set[str]:
    graph = model.graph
    names = {name for node in graph.node for name in (node.name, *node.input, *node.output)}
    names.update(value.name for value in (*graph.input, *graph.output))
    return names | {tensor.name for tensor in graph.initializer}


def _type_name(sizes: Sizes, tensor: str) -> str:
    return f"type {TensorProto.DataType.Name(sizes.dtype(tensor)).lower()}"
