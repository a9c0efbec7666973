"""Other backward passes, for relevance: layer-wise relevance propagation and DeepLIFT, written as gradients.

Each carries a number m = R / x back, the relevance R of a tensor over the tensor x itself (of DeepLIFT, over its
distance from a baseline). Where a rule leaves the relevance of a linear operator's output z to its terms in proportion,
m goes back as a gradient does; the rules below say where it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import onnx

from camrt.graph.rules.modifiers import rectified
from camrt.graph.sizes import Sizes
from camrt.graph.values import Value
from camrt.graph.view import GraphView, attributes_of, operator_of

Cotangents = Iterator[tuple[str, Value]]
_LINEAR = {
    "Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "AveragePool", "GlobalAveragePool", "MaxPool",
    "GlobalMaxPool",
}  # fmt: skip
_NOTHING = 1e-30
_LEAST = 1e-6  # where an input is as near to 0, or to its baseline, the slope stands for the ratio


@dataclass(frozen=True)
class Step:
    """A node on the way back.

    Attributes:
        view: The graph.
        sizes: Its sizes.
        node: The node.
        tensors: The tensors that something comes back to: they depend on what is asked for.
        value: Gives a tensor of the forward pass.
        plain: The cotangents at the node's inputs by its own rule, from one at its output.
    """

    view: GraphView
    sizes: Sizes
    node: onnx.NodeProto
    tensors: Collection[str]
    value: Callable[[str], Value]
    plain: Callable[[Value], Cotangents]

    @property
    def kind(self) -> str:
        """The operator."""
        return operator_of(self.node)

    @property
    def computed(self) -> list[str]:
        """The inputs that depend on what is asked for."""
        return [name for name in self.node.input if name in self.tensors]

    def rectified(self) -> str | None:
        """The input of an activation that ends in this node."""
        found = rectified(self.view, self.sizes, self.node)
        return found if found in self.tensors else None


Modifier = Callable[[Step, Value], Iterable[tuple[str, Value]]]


@dataclass(frozen=True)
class Relevance:
    """Layer-wise relevance propagation by the epsilon rule, with AttnLRP's rules for what transformers add.

    * Linear operators: m z / (z + epsilon sign z) goes back (Bach et al. 2015, equation 58).
    * Activations pass their relevance on: m y / x (AttnLRP, equation 9).
    * Products of two computed tensors share it, half to each (equation 7). A quotient leaves it to the numerator.
    * Normalization: the deviation is a constant. Softmax: the derivative.

    Attributes:
        epsilon: What is added to the linear operators' outputs, away from 0.
    """

    epsilon: float = 0

    def __call__(self, step: Step, m: Value) -> Cotangents:
        """The cotangents at a node's inputs."""
        if (source := step.rectified()) is not None:
            if step.kind == "Relu":  # y / x is its slope
                yield from step.plain(m)
                return
            x, y = step.value(source), step.value(step.node.output[0])
            near = abs(x) < _LEAST
            yield source, m * near.where(0.5, y / near.where(1, x))
        elif step.kind in ("LayerNormalization", "RMSNormalization"):
            yield step.node.input[0], _scaled_only(step, m)
        elif step.kind in ("Mul", "MatMul", "Einsum") and len(step.computed) > 1:
            yield from step.plain(m * 0.5)
        elif step.kind == "Div":
            yield from ((name, one) for name, one in step.plain(m) if name == step.node.input[0])
        else:
            yield from step.plain(self._stabilized(step, m))

    def _stabilized(self, step: Step, m: Value) -> Value:
        if not self.epsilon or step.kind not in _LINEAR:
            return m
        z = step.value(step.node.output[0])
        return m * (z / (z + (z < 0).where(-self.epsilon, self.epsilon)))


@dataclass(frozen=True)
class PositiveRelevance:
    """Relevance of terms that add up without canceling, for transformers (Chefer, Gur, Wolf, CVPR 2021, section 3.1).

    * Linear layers: among the terms x w of a sum, those above 0 share (equation 4); biases get nothing.
    * Activations, softmax and layer normalization pass their relevance on.
    * Products of two computed tensors share it, half to each (equation 5).
    * Sums of two computed tensors share it by the magnitude of what each adds up to (equations 8 and 9).
    * Other operators, convolutions among them, as `Relevance`.

    Attributes:
        computed: The tensors that depend on the image: also those that nothing is asked of get their share.
    """

    computed: Collection[str]

    def __call__(self, step: Step, m: Value) -> Cotangents:
        """The cotangents at a node's inputs."""
        computed = [name for name in step.node.input if name in self.computed]
        passed = step.node.input[0] if step.kind in ("Softmax", "LayerNormalization") else step.rectified()
        if passed is None and step.kind == "Add" and len(computed) == 1:
            passed = computed[0]
        if passed is not None:
            x, y = step.value(passed), step.value(step.node.output[0])
            yield passed, _over(m * y, x)
        elif step.kind in ("MatMul", "Gemm") and computed == [step.node.input[0]]:
            yield step.node.input[0], self._linear(step, m)
        elif step.kind == "MatMul" and len(computed) == 2:
            yield from step.plain(m * 0.5)
        elif step.kind == "Add" and len(set(computed)) == 2:
            yield from self._shared(step, computed, m)
        else:
            yield from Relevance()(step, m)

    def _linear(self, step: Step, m: Value) -> Value:
        """Back to the terms above 0 of x W."""
        attributes = attributes_of(step.node)
        x, y, matrix = (step.value(name) for name in (step.node.input[0], step.node.output[0], step.node.input[1]))
        matrix = matrix.mT if attributes.get("transB") else matrix
        high, above = x.relu(), matrix.relu()
        low, below = x - high, matrix - above
        share = _over(m * y, high @ above + low @ below)
        return (x > 0).where(share @ above.mT, share @ below.mT)

    def _shared(self, step: Step, computed: Iterable[str], m: Value) -> Cotangents:
        """Back to both sides of a residual connection."""
        values = [step.value(name) for name in computed]
        sums = [(m * one).sum(*range(1, one.rank), keepdims=True) for one in values]
        factor = (sums[0] + sums[1]) / (abs(sums[0]) + abs(sums[1])).maximum(_NOTHING)
        yield from ((one.name, m * (factor * each.sign())) for one, each in zip(values, sums, strict=True))


@dataclass(frozen=True)
class Rescale:
    """DeepLIFT's rescale rule: behind an activation, how far the output is from that of the baseline over the input's.

    Attributes:
        baseline: Gives the name of a tensor in the run on the baseline.
    """

    baseline: Callable[[str], str]

    def __call__(self, step: Step, m: Value) -> Cotangents:
        """The cotangents at a node's inputs."""
        pooled = step.kind in ("MaxPool", "GlobalMaxPool")
        source = step.node.input[0] if pooled or step.kind in ("Sigmoid", "Tanh", "HardSigmoid") else step.rectified()
        if source is None or source not in step.tensors:
            yield from step.plain(m)
            return
        output = step.node.output[0]
        x, y, y0 = step.value(source), step.value(output), self._at_baseline(step, output)
        away = x - self._at_baseline(step, source)
        near = abs(away) < _LEAST
        over = near.where(1, away)
        slopes = dict(step.plain(m))
        slope = slopes.get(source, m)
        if pooled:
            # The maximum at the image gets what it rises, the one at the baseline what that falls.
            higher = y.maximum(y0)
            up = dict(step.plain(m * (higher - y0)))[source]
            down = dict(self._from_baseline(step, m * (y - higher)))[source]
            yield source, near.where(slope, (up + down) / over)
        else:
            yield source, near.where(slope, m * ((y - y0) / over))

    def _at_baseline(self, step: Step, tensor: str) -> Value:
        value = step.value(tensor)
        return Value(value.builder, self.baseline(tensor), value.shape, value.kind)

    def _from_baseline(self, step: Step, m: Value) -> Cotangents:
        """The cotangents of pooling at the baseline, where other places hold the maxima."""
        from camrt.graph.rules import registry

        entry = registry.find(step.node)
        assert entry is not None
        attributes = {
            key: one.decode() if isinstance(one, bytes) else one for key, one in attributes_of(step.node).items()
        }
        y0, x0 = self._at_baseline(step, step.node.output[0]), self._at_baseline(step, step.node.input[0])
        found = entry.rule(m, y0, x0, **entry.asked(attributes))
        assert isinstance(found, Value)
        yield step.node.input[0], found


def _over(a: Value, b: Value) -> Value:
    """A / b, and 0 where b is 0."""
    is_zero = b.equals(0)
    return is_zero.where(0, a / is_zero.where(1, b))


def _scaled_only(step: Step, m: Value) -> Value:
    """Back through a normalization whose deviation is a constant."""
    attributes = attributes_of(step.node)
    x, scale = step.value(step.node.input[0]), step.value(step.node.input[1])
    axes = range(x.axis(attributes.get("axis", -1)), x.rank)
    centred = step.kind == "LayerNormalization"
    apart = x - x.mean(*axes, keepdims=True) if centred else x
    root = ((apart * apart).mean(*axes, keepdims=True) + attributes.get("epsilon", 1e-5)).sqrt()
    h = m * scale
    back: Value = (h - h.mean(*axes, keepdims=True) if centred else h) / root
    return back
