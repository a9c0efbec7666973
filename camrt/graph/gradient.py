"""Reverse-mode differentiation of ONNX graphs: ONNX in, ONNX out.

The backward pass goes through the nodes between the wanted tensors and the output, last first. The rule of each node's
operator (`camrt.graph.rules`) writes what turns the gradient at its output into those at its inputs. The new nodes are
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

from camrt.errors import CamrtError
from camrt.graph.builder import Builder
from camrt.graph.opening import ModelLike, check_model, naming, open_model
from camrt.graph.rules import modifiers, registry
from camrt.graph.rules.registry import rule
from camrt.graph.sizes import Sizes
from camrt.graph.step import Step, describe
from camrt.graph.view import GraphView, captured

__all__ = ["Step", "backpropagate", "differentiate", "rule"]

PREFIX = "gradient/"


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
        wrt: The tensors that it is differentiated by: inputs, any others, initializers.
        seed: What the output is multiplied by before it is summed: None for ones, so that the sum of all its elements
            is differentiated; an array that broadcasts to the output's shape (``np.eye(K)[class]``: one class); or the
            name of a new input of the model, of the output's shape.
        relu: ``"guided"`` (Springenberg et al. 2015) or ``"deconvnet"`` (Zeiler & Fergus 2014): another backward pass
            through rectifiers, see `camrt.graph.rules.modifiers`.

    Returns:
        The model with ``output`` and ``gradient/<tensor>`` for each of ``wrt`` as outputs, beside those that it has.
        A gradient has its tensor's shape and element type.

    Raises:
        CamrtError: The model is not valid; a tensor does not exist, holds integers, or the output does not depend on
            it; operators on the way have no rule (all are named).

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
    copies: int = 1,
    relu: str | None = None,
    sizes: Sizes | None = None,
) -> dict[str, str]:
    """Write the nodes of the backward pass.

    Args:
        builder: Where they go. They read tensors of ``view`` by name: both have to end in one graph.
        view: The graph that is differentiated.
        gradients: Tensor of the graph -> name of the tensor that holds what comes in there, of the same shape and
            element type (but for ``copies``). With several, their gradients add up.
        wrt: The tensors whose gradients are wanted.
        copies: How many gradients each image has: those of several classes, in one pass. What comes in then has N * k
            rows, row n * k + j the j-th of image n, and so have the results. The forward pass runs once.
        relu: None, ``"guided"`` or ``"deconvnet"``, as in `differentiate`.
        sizes: Those of ``view``, where the caller has them: they are not inferred twice then.

    Returns:
        Tensor of ``wrt`` -> name of the tensor that holds its gradient, of the shape of that tensor (with
        ``copies``: N * k along the images' axis).

    Raises:
        CamrtError: As `differentiate`; with several ``copies``, also where the images' axis cannot be told, or where a
            node mixes images.
    """
    if relu is not None and relu not in modifiers.NAMES:
        raise CamrtError(f"found relu={relu!r}, expected None or one of {', '.join(modifiers.NAMES)}")
    if copies < 1:
        raise CamrtError(f"found copies={copies}, expected 1 or more")
    _expect_known(view, [*gradients, *wrt])
    way = _Way.between(view, sizes or Sizes(view), gradients, wrt)
    if copies > 1:
        _expect_images(way.sizes, [*gradients, *wrt], copies)
    pending: dict[str, list[str]] = defaultdict(list)
    for tensor, name in gradients.items():
        pending[tensor].append(name)
    failed: list[str] = []
    for node in reversed(way.nodes):
        incoming = [_summed(builder, pending, name) if name in way.tensors else None for name in node.output]
        if all(one is None for one in incoming):
            continue  # all that stands behind it gives no gradient
        step = Step(node, view, way.sizes, builder, incoming, way.tensors, copies)
        try:
            found = _apply(step, relu)
        except CamrtError as error:
            failed.append(error.message)
            continue
        for name, gradient in found:
            pending[name].append(gradient)
    if failed:
        raise CamrtError(_listed(failed))
    result = {}
    for name in wrt:
        total = _summed(builder, pending, name)
        if total is None:
            raise CamrtError(f"the gradient at {name!r} is zero everywhere: {way.steps_behind(name)}")
        result[name] = total
    return result


def _apply(step: Step, relu: str | None) -> Iterable[tuple[str, str]]:
    """The gradients at a node's inputs: (tensor, gradient)."""
    entry = registry.find(step.proto)
    assert entry is not None  # _Way has looked
    if not entry.several and any(one is not None for one in step.gradients[1:]):
        used = [name for name, one in zip(step.proto.output, step.gradients, strict=True) if one is not None]
        raise step.error(f"the output depends on {used[-1]!r}, and only a gradient at {step.output!r} is supported")
    gradient = step.gradient(0)
    if relu is not None and (source := modifiers.rectified(step)) is not None:
        if relu == "deconvnet":
            return [(source, modifiers.deconvnet(step, gradient))]
        gradient = modifiers.guided(step, gradient, source)
    found = entry.rule(step, gradient)
    listed = [found] if found is None or isinstance(found, str) else found
    pairs = zip(step.inputs, listed, strict=False)
    return [(name, one) for index, (name, one) in enumerate(pairs) if one is not None and step.wants(index)]


def _summed(builder: Builder, pending: dict[str, list[str]], tensor: str) -> str | None:
    """The sum of what has come in at a tensor."""
    parts = pending.get(tensor)
    if not parts:
        return None
    if len(parts) > 1:
        pending[tensor] = parts = [builder.node("Add" if len(parts) == 2 else "Sum", parts)]
    return parts[0]


# ------------------------------------------------------------------------------------------------------ finding the way


@dataclass(frozen=True, eq=False)
class _Way:
    """What lies between the wanted tensors and those that are differentiated.

    Attributes:
        sizes: Of the whole graph.
        nodes: In the graph's order.
        tensors: Floating-point tensors that depend on a wanted one, and that a differentiated one depends on.
    """

    sizes: Sizes
    nodes: Sequence[onnx.NodeProto]
    tensors: Collection[str]

    @classmethod
    def between(cls, view: GraphView, sizes: Sizes, outputs: Collection[str], wrt: Sequence[str]) -> _Way:
        """Find it.

        Raises:
            CamrtError: There is none, or operators on it have no rule.
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
                raise CamrtError(_why_not(view, name, outputs, active))
        _expect_rules(way[::-1])
        return cls(sizes, [node for node in way[::-1] if needed.intersection(node.input)], needed)

    def steps_behind(self, tensor: str) -> str:
        """Who reads a tensor, for people."""
        readers = [describe(node) for node in self.nodes if tensor in node.input]
        return "what depends on it has no slope" + (f", as {', '.join(readers[:5])}" if readers else "")


def _downstream(nodes: Iterable[onnx.NodeProto], wrt: Iterable[str], sizes: Sizes) -> set[str]:
    """The floating-point tensors that depend on some, by way of floating-point tensors."""
    active = set(wrt)
    for node in nodes:
        if not active.isdisjoint(_reads(node)):
            active.update(name for name in node.output if name and sizes.is_float(name))
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
    raise CamrtError(
        f"the gradient passes operators without a rule: {'; '.join(parts)}. Write one with "
        "@camrt.graph.gradient.rule(...), or differentiate by a tensor behind them"
    )


def _why_not(view: GraphView, tensor: str, outputs: Collection[str], active: AbstractSet[str]) -> str:
    """Why there is no gradient at a tensor."""
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


def _expect_images(sizes: Sizes, tensors: Iterable[str], copies: int) -> None:
    for name in tensors:
        try:
            batch = sizes.batch(name)
        except LookupError:
            batch = None
        if batch is None:
            raise CamrtError(
                f"found {copies} gradients an image and the tensor {name!r}, whose axis of the images cannot be told: "
                "expected a model with a free batch (dynamic axes), and tensors that hold something of each image"
            )


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
                    f"{Step.describe(sizes)}"
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
