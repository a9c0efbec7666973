"""Finding the head of a classifier: features -> global pooling -> one linear layer -> scores.

A class activation map is made of this head (Zhou et al. 2016, section 2): the score of a class is a weighted sum of
the features' means, so the same sum without the mean is a map. Three forms are recognized in any ONNX graph:

* pooling, then a linear layer (GoogLeNet-CAM, ResNet, DenseNet, Inception),
* pooling, then a 1x1 convolution,
* a 1x1 convolution, then pooling (SqueezeNet, NIN).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx

from camrt.errors import CamrtError
from camrt.graph.view import (
    QUANTIZING,
    GraphView,
    attributes_of,
    control_flow,
    dequantized,
    described,
    operator_of,
    quoted,
)

# Operators between the scores and the linear layer, and between that and the pooling, that do not change the sum;
# quantizing rounds it.
_AFTER = {
    "Softmax",
    "LogSoftmax",
    "Sigmoid",
    "Identity",
    "Dropout",
    "Flatten",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Cast",
    *QUANTIZING,
}
_BETWEEN = {"Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Cast", *QUANTIZING}
_CONVOLUTIONS, _INTEGER = ("Conv", "ConvInteger"), ("MatMulInteger", "ConvInteger")
_PROBABILITIES = {"Softmax", "Sigmoid"}
_HINT = "Name the features and the classifier yourself (--layer TENSOR --classifier NODE), or use --method gradcam"


@dataclass(frozen=True, eq=False)
class Head:
    """A classifier's head.

    Attributes:
        features: The tensor (N, C, h, w) whose weighted sum is the map.
        weights: (K, C) float32: the weight of each feature for each class.
        initializer: The initializer that holds ``weights``, if there is one.
        classifier: The name of the linear layer's node.
        scores: The model's output.
        pooling: The node that pools, if one was found.
        activation: The activation of the scores: ``"Softmax"``, ``"LogSoftmax"``, ``"Sigmoid"`` or ``""`` (logits).
    """

    features: str
    weights: np.ndarray
    initializer: str | None
    classifier: str
    scores: str
    pooling: onnx.NodeProto | None
    activation: str

    def describe(self) -> str:
        """Describe the choice in a sentence."""
        classes, channels = self.weights.shape
        return (
            f"features {self.features!r} ({channels} maps), classifier {self.classifier!r} ({classes} classes), "
            f"scores {self.scores!r} ({self.activation or 'logits: a Softmax is added'})"
        )


class NoHeadError(CamrtError):
    """A model has no head of a known form.

    Args:
        reason: Why.
        before: What the message says before it.
        advice: What the message says behind it.

    Attributes:
        reason: Why.
    """

    def __init__(self, reason: str, before: str = "", advice: str = "") -> None:
        super().__init__(f"{before}{reason}. {advice}" if advice else f"{before}{reason}")
        self.reason = reason


class _NoHead(Exception):
    """Why an output has no head of a known form."""


def find_head(view: GraphView, features: str | None = None, classifier: str | None = None) -> Head:
    """Find the head of a classifier.

    Args:
        view: The model.
        features: The tensor of the features, if it is known.
        classifier: The linear layer, if it is known: the name of its node, its output or its weights.

    Returns:
        The head of the last output that has one.

    Raises:
        NoHeadError: There is none. The text says why for each output, and what to do.
        CamrtError: The features are no tensor of the model.
    """
    if features is not None and features not in view.producers:
        raise CamrtError(
            f"found the features {quoted(features)}, expected a tensor of the model: {_few(view.producers)}"
        )
    reasons = {}
    for output in reversed(view.outputs):
        try:
            return _head_of(view, output, features, classifier)
        except _NoHead as reason:
            reasons[output] = str(reason)
    listed = "; ".join(f"output {output!r}: {reason}" for output, reason in reasons.items())
    hidden = control_flow(view.needed_for(view.outputs))
    hint = f"Control flow is on the way, {hidden}: use --method eigencam, or name scores before it (--scores) and use "
    hint = f"{hint}--method gradcam" if hidden else _HINT
    raise NoHeadError(listed, "the model has no head that class activation maps can be made of. ", hint)


def _head_of(view: GraphView, output: str, features: str | None, classifier: str | None) -> Head:
    passed, node = _back(view, output, _AFTER)
    activation = next((op for op in passed if op in ("Softmax", "LogSoftmax", "Sigmoid")), "")
    if node is None:
        raise _NoHead("it does not depend on a layer")
    if classifier is not None and not _is_named(view, node, classifier):
        raise _NoHead(f"it ends in {described(node)}, not in {quoted(classifier)}")
    if _is_global_pooling(view, node):
        return _convolution_then_pooling(view, output, node, features, activation)
    weights, initializer, source = _linear(view, node)
    _, pooling = _back(view, source, _BETWEEN)
    if features is not None:
        found = features
        pooling = pooling if pooling is not None and features in pooling.input[:1] else None
    elif pooling is not None and _is_global_pooling(view, pooling):
        found = pooling.input[0]
    else:
        before = described(pooling) if pooling is not None else "the input"
        raise _NoHead(f"before its linear layer {described(node)} is {before}, expected a global average pooling")
    return _checked(view, Head(found, weights, initializer, _name(node), output, pooling, activation))


def _convolution_then_pooling(
    view: GraphView, output: str, pooling: onnx.NodeProto, features: str | None, activation: str
) -> Head:
    """SqueezeNet and NIN: the last convolution already gives one map a class."""
    _, node = _back(view, pooling.input[0], {"Relu", "Identity", "Dropout", "Clip", *QUANTIZING})
    layer, kernel, source = _layer(view, node) if node is not None else (None, None, "")
    if node is None or layer is None or layer.op_type not in _CONVOLUTIONS:
        raise _NoHead(
            f"before its pooling is {described(node) if node is not None else 'the input'}, not a convolution"
        )
    if (
        kernel is None
        or kernel.ndim < 3
        or any(size != 1 for size in kernel.shape[2:])
        or attributes_of(layer).get("group", 1) != 1
    ):
        raise _NoHead(f"its last convolution {described(layer)} is not a 1x1 convolution of one group")
    weights = kernel.reshape(kernel.shape[:2]).astype(np.float32)
    head = Head(features or source, weights, None, _name(layer), output, pooling, activation)
    return _checked(view, head)


def _checked(view: GraphView, head: Head) -> Head:
    shape = view.shapes.get(head.features)
    if shape is not None and len(shape) != 4:
        raise NoHeadError(
            f"found the features {head.features!r} with {len(shape)} axes, expected 4: N x channels x height x width",
            advice="A tensor behind the pooling has no positions left to map",
        )
    channels = shape[1] if shape is not None else None
    if isinstance(channels, int) and channels != head.weights.shape[1]:
        raise NoHeadError(
            f"found {channels} channels in the features {head.features!r} and {head.weights.shape[1]} in the weights "
            f"of {head.classifier!r}, expected the same number",
            advice=_HINT,
        )
    return head


def _back(view: GraphView, tensor: str, through: Iterable[str]) -> tuple[list[str], onnx.NodeProto | None]:
    """Go back from a tensor through operators of these kinds; return them, and the first node of another kind."""
    passed: list[str] = []
    while (node := view.producers.get(tensor)) is not None and operator_of(node) in through:
        passed.append(node.op_type)
        tensor = node.input[0]
    return passed, node


def _is_global_pooling(view: GraphView, node: onnx.NodeProto) -> bool:
    """Whether a node takes the mean of each map: by its kind, its axes, or a window that covers the map."""
    if operator_of(node) == "GlobalAveragePool":
        return True
    shape = view.shapes.get(node.input[0]) if node.input else None
    if shape is None or len(shape) != 4:
        return False
    if operator_of(node) == "ReduceMean":
        axes = view.axes_of(node)
        return axes is not None and sorted(axis % 4 for axis in axes) == [2, 3]
    if operator_of(node) == "AveragePool":
        attributes = attributes_of(node)
        return tuple(attributes.get("kernel_shape", ())) == shape[2:] and not any(attributes.get("pads", ()))
    return False


def _linear(view: GraphView, node: onnx.NodeProto) -> tuple[np.ndarray, str | None, str]:
    """The weights (K, C) of a linear layer, the initializer that holds them so, and the tensor that it reads."""
    layer, values, source = _layer(view, node)
    if layer is None:
        raise _NoHead(
            f"it ends in {described(node)}, expected a linear layer (Gemm, MatMul, 1x1 Conv) or a global pooling"
        )
    if values is None:
        raise _NoHead(f"the weights of {described(layer)} are computed, expected constants")
    attributes = attributes_of(layer)
    is_rows = layer.op_type in _CONVOLUTIONS or bool(attributes.get("transB", 0))
    if layer.op_type in _CONVOLUTIONS:
        if values.ndim < 3 or any(size != 1 for size in values.shape[2:]) or attributes.get("group", 1) != 1:
            raise _NoHead(f"{described(layer)} is not a 1x1 convolution of one group")
        values = values.reshape(values.shape[:2])
    if values.ndim != 2:
        raise _NoHead(f"the weights of {described(layer)} have {values.ndim} axes, expected 2")
    initializer = (
        layer.input[1] if is_rows and layer.op_type == "Gemm" and layer.input[1] in view.initializers else None
    )
    weights = (values if is_rows else values.T).astype(np.float32, copy=False)
    return weights, initializer if values.dtype == np.float32 else None, source


def _layer(view: GraphView, node: onnx.NodeProto) -> tuple[onnx.NodeProto | None, np.ndarray | None, str]:
    """The node of a linear layer or convolution that ends in a node, its weights, and the tensor that it reads."""
    if operator_of(node) in ("Add", "Sub"):  # the bias
        found = [_back(view, name, QUANTIZING)[1] for name in node.input if not _is_bias(view, name)]
        inner = [one for one in found if one is not None]
        if len(inner) == 1 and operator_of(inner[0]) in ("MatMul", "Mul"):
            node = inner[0]
    if operator_of(node) in ("Gemm", "MatMul", "Conv"):
        return node, view.constant(node.input[1]), node.input[0]
    if operator_of(node) == "Mul":
        return _integer_layer(view, node)
    return None, None, ""


def _is_bias(view: GraphView, tensor: str) -> bool:
    node = view.producers.get(tensor)
    return view.is_constant(tensor) or (
        node is not None and operator_of(node) == "Reshape" and view.is_constant(node.input[0])
    )


def _integer_layer(view: GraphView, node: onnx.NodeProto) -> tuple[onnx.NodeProto | None, np.ndarray | None, str]:
    """A layer that quantizes its input for each batch: the product of integers, times the scales of both."""
    for product, scales in (node.input, list(node.input)[::-1]):
        layer, factors = _back(view, product, {"Cast"})[1], view.producers.get(scales)
        if layer is None or operator_of(layer) not in _INTEGER or factors is None or operator_of(factors) != "Mul":
            continue
        quantizer = view.producers.get(layer.input[0])
        scale = [view.constant(name) for name in factors.input if quantizer is None or name not in quantizer.output]
        if quantizer is None or operator_of(quantizer) != "DynamicQuantizeLinear" or len(scale) != 1:
            continue
        values, zero_point = (view.constant(name) if name else None for name in [*layer.input[1:], "", ""][:3:2])
        if values is not None and scale[0] is not None:
            axis = 0 if layer.op_type in _CONVOLUTIONS else 1
            values = dequantized(values, scale[0].reshape(-1), zero_point, axis=axis)
        return layer, values, quantizer.input[0]
    return None, None, ""


def _is_named(view: GraphView, node: onnx.NodeProto, name: str) -> bool:
    """Whether a name given for the classifier is that of this node, its output, its weights or their layer."""
    words = {node.name, *node.output, *node.input, *(tensor.rpartition(".")[0] for tensor in node.input)}
    if name in words:
        return True
    inner = [view.producers[tensor] for tensor in node.input if tensor in view.producers]
    return node.op_type in ("Add", "Sub", *_BETWEEN) and any(_is_named(view, each, name) for each in inner)


def _name(node: onnx.NodeProto) -> str:
    return node.name or node.output[0]


def _few(names: Iterable[str], most: int = 6) -> str:
    """The last of many names: features are near the end."""
    listed = list(names)
    return ("..., " if len(listed) > most else "") + ", ".join(listed[-most:])
