"""Other backward passes through a rectifier, for pictures of what a neuron responds to.

With f the activation, x its input and g the cotangent at its output, the cotangent at x is

* plain: f'(x) g,
* ``guided``: f'(x) max(g, 0) where x > 0, else 0 (Springenberg et al. 2015, Striving for Simplicity, section 3.4),
* ``deconvnet``: max(g, 0) (Zeiler & Fergus 2014, Visualizing and Understanding Convolutional Networks, section 2.1).

Both papers use Relu alone, where f'(x) is 1 for x > 0. The same formulas apply here to the activations that took its
place, also where an exporter writes several nodes: x * Sigmoid(x) (SiLU), x * HardSigmoid(x) (HardSwish), Gelu with
Erf. Sigmoid and Tanh are not rectifiers and keep their gradient.
"""

from __future__ import annotations

import math

import onnx

from camrt.graph.sizes import Sizes
from camrt.graph.values import Value
from camrt.graph.view import GraphView

NAMES = ("guided", "deconvnet")
_RECTIFIERS = {
    "Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Elu", "Selu", "Celu", "Gelu", "HardSwish", "Swish", "Mish",
}  # fmt: skip
_GATES = {"Sigmoid", "HardSigmoid"}


def rectified(view: GraphView, sizes: Sizes, node: onnx.NodeProto) -> str | None:
    """The input x of a rectifier that ends in this node; None where none does."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in _RECTIFIERS:
        return str(node.input[0])
    if node.op_type == "Clip":
        low = sizes.value(node.input[1]) if len(node.input) > 1 else None
        return str(node.input[0]) if low is not None and float(low) == 0 else None
    if node.op_type == "Mul":
        return _gated(view, node) or _gelu(view, node)
    return None


def guided(g: Value, x: Value, op_type: str) -> Value:
    """max(g, 0) where x > 0; the activation's own rule follows. That of Relu looks at the sign of x itself."""
    return g.relu() if op_type == "Relu" else g.relu() * (x > 0)


def deconvnet(g: Value) -> Value:
    """max(g, 0), straight to x."""
    return g.relu()


def _gated(view: GraphView, node: onnx.NodeProto) -> str | None:
    """The x of x * Sigmoid(x)."""
    for this, other in (node.input, reversed(node.input)):
        gate = view.producers.get(other)
        if gate is not None and gate.op_type in _GATES and gate.input[0] == this:
            return str(this)
    return None


def _gelu(view: GraphView, node: onnx.NodeProto) -> str | None:
    """The x of x * (1 + Erf(x / sqrt 2)) * 0.5, multiplied in any order."""
    factors, scale = _factors(view, node)
    if len(factors) != 2 or not math.isclose(scale, 0.5, rel_tol=1e-3):
        return None
    for this, other in (factors, factors[::-1]):
        if _is_erf_gate(view, other, this):
            return this
    return None


def _factors(view: GraphView, node: onnx.NodeProto) -> tuple[list[str], float]:
    """What a product of products is made of: its tensors, and the product of its constants."""
    tensors: list[str] = []
    scale = 1.0
    for name in node.input:
        value, inner = view.constant(name), view.producers.get(name)
        if value is not None and value.size == 1:
            scale *= float(value.reshape(()))
        elif inner is not None and inner.op_type == "Mul" and inner.domain in ("", "ai.onnx"):
            more, by = _factors(view, inner)
            tensors, scale = tensors + more, scale * by
        else:
            tensors.append(name)
    return tensors, scale


def _is_erf_gate(view: GraphView, tensor: str, source: str) -> bool:
    """Whether a tensor is 1 + Erf(source / sqrt 2)."""
    add = view.producers.get(tensor)
    if add is None or add.op_type != "Add":
        return False
    for this, other in (add.input, reversed(add.input)):
        erf, one = view.producers.get(this), view.constant(other)
        if erf is not None and erf.op_type == "Erf" and one is not None and one.tolist() in (1, [1]):
            scaled = view.producers.get(erf.input[0])
            return scaled is not None and scaled.op_type in ("Div", "Mul") and source in scaled.input
    return False
