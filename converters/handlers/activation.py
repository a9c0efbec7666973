"""Functions of each value on its own, and Softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from converters.graph import Graph
from converters.layer import Layer
from converters.registry import handles


@handles("ReLU", operators="Relu LeakyRelu")
def relu(layer: Layer, graph: Graph) -> None:
    """max(x, 0) + negative_slope * min(x, 0)."""
    bottom, top = layer.ends()
    slope = layer.params.relu_param.negative_slope
    if slope:
        graph.node("LeakyRelu", [bottom], top, alpha=slope)
    else:
        graph.node("Relu", [bottom], top)


@handles("PReLU", operators="PRelu")
def prelu(layer: Layer, graph: Graph) -> None:
    """ReLU with a learned slope, one per channel or one for all (He et al. 2015)."""
    bottom, top = layer.ends()
    if graph.rank(bottom) < 2:
        raise layer.error(f"found a blob of {graph.rank(bottom)} axis, expected channels at axis 1")
    rest = (1,) * (graph.rank(bottom) - 2)
    if layer.params.prelu_param.channel_shared:
        shape: tuple[int, ...] = (1,) if layer.blobs and layer.blobs[0].shape == (1,) else ()
        (slope,) = layer.weights(shape)
        slope = slope.reshape(1)
    else:
        channels = graph.fixed(graph.shape(bottom)[1], "the number of channels")
        (slope,) = layer.weights((channels,))
        slope = slope.reshape(channels, *rest)
    graph.node("PRelu", [bottom, graph.weight("slope", slope)], top, shape=graph.shape(bottom))


@handles("ELU", operators="Elu")
def elu(layer: Layer, graph: Graph) -> None:
    """x if x > 0, else alpha * (e^x - 1)."""
    bottom, top = layer.ends()
    graph.node("Elu", [bottom], top, alpha=layer.params.elu_param.alpha)


@handles("Sigmoid", operators="Sigmoid")
def sigmoid(layer: Layer, graph: Graph) -> None:
    """1 / (1 + e^-x)."""
    bottom, top = layer.ends()
    graph.node("Sigmoid", [bottom], top)


@handles("TanH", operators="Tanh")
def tanh(layer: Layer, graph: Graph) -> None:
    """The hyperbolic tangent."""
    bottom, top = layer.ends()
    graph.node("Tanh", [bottom], top)


@handles("AbsVal", operators="Abs")
def absval(layer: Layer, graph: Graph) -> None:
    """The absolute value."""
    bottom, top = layer.ends()
    graph.node("Abs", [bottom], top)


@handles("BNLL", operators="Softplus")
def bnll(layer: Layer, graph: Graph) -> None:
    """log(1 + e^x), the binomial normal log likelihood."""
    bottom, top = layer.ends()
    graph.node("Softplus", [bottom], top)


@handles("Swish", operators="Sigmoid Mul")
def swish(layer: Layer, graph: Graph) -> None:
    """x * sigmoid(beta * x) (Ramachandran et al. 2017)."""
    bottom, top = layer.ends()
    beta = layer.params.swish_param.beta
    scaled = bottom if beta == 1 else graph.node("Mul", [bottom, graph.constant(beta)])
    graph.node("Mul", [bottom, graph.node("Sigmoid", [scaled])], top)


@handles("Power", operators="Mul Add Pow Shape Expand Identity")
def power(layer: Layer, graph: Graph) -> None:
    """(shift + scale * x) ^ power."""
    bottom, top = layer.ends()
    param = layer.params.power_param
    if param.power * param.scale == 0:  # Caffe does not read x in this case, so NaN does not propagate
        value = 1.0 if param.power == 0 else _power(param.shift, param.power)
        _constant_like(graph, bottom, value, top)
        return
    steps: list[tuple[str, float]] = []
    if param.scale != 1:
        steps.append(("Mul", param.scale))
    if param.shift:
        steps.append(("Add", param.shift))
    if param.power != 1:
        steps.append(("Pow", param.power))
    _chain(graph, bottom, steps, top)


def _power(base: float, exponent: float) -> float:
    """Like C's pow: an undefined power is NaN, and a division by zero is infinite."""
    with np.errstate(all="ignore"):
        return float(np.power(np.float32(base), np.float32(exponent)))


def _constant_like(graph: Graph, tensor: str, value: float, top: Sequence[str]) -> None:
    size = graph.node("Shape", [tensor], shape=(graph.rank(tensor),), dtype=np.int64)
    graph.node("Expand", [graph.constant(value), size], top, shape=graph.shape(tensor))


def _chain(graph: Graph, tensor: str, steps: list[tuple[str, float]], top: Sequence[str]) -> None:
    """Apply binary operators with constants in sequence; the last one writes the top."""
    if not steps:
        graph.node("Identity", [tensor], top)
    for index, (op, value) in enumerate(steps):
        outputs = top if index == len(steps) - 1 else None
        tensor = graph.node(op, [tensor, graph.constant(value)], outputs)


@handles("Exp", operators="Mul Exp")
def exp(layer: Layer, graph: Graph) -> None:
    """base ^ (shift + scale * x); a base of -1 means e."""
    bottom, top = layer.ends()
    param = layer.params.exp_param
    log_base = _log_base(layer, param.base)
    inner = log_base * param.scale
    with np.errstate(over="ignore"):  # infinite if Caffe's is
        outer = float(np.exp(np.float32(log_base * param.shift))) if param.shift else 1.0
    scaled = bottom if inner == 1 else graph.node("Mul", [bottom, graph.constant(inner)])
    raised = graph.node("Exp", [scaled], top if outer == 1 else None)
    if outer != 1:
        graph.node("Mul", [raised, graph.constant(outer)], top)


@handles("Log", operators="Mul Add Log")
def log(layer: Layer, graph: Graph) -> None:
    """Logarithm of shift + scale * x to a base; a base of -1 means e."""
    bottom, top = layer.ends()
    param = layer.params.log_param
    log_base = _log_base(layer, param.base)
    tensor = bottom
    if param.scale != 1:
        tensor = graph.node("Mul", [tensor, graph.constant(param.scale)])
    if param.shift:
        tensor = graph.node("Add", [tensor, graph.constant(param.shift)])
    if log_base == 1:
        graph.node("Log", [tensor], top)
    else:
        graph.node("Mul", [graph.node("Log", [tensor]), graph.constant(1 / log_base)], top)


def _log_base(layer: Layer, base: float) -> float:
    if base == -1:
        return 1.0
    if base <= 0 or base == 1:
        raise layer.error(f"found base {base}, expected -1 (e) or a positive number other than 1")
    return math.log(base)


@handles("Clip", operators="Clip")
def clip(layer: Layer, graph: Graph) -> None:
    """max(min(x, max), min)."""
    bottom, top = layer.ends()
    param = layer.params.clip_param
    if not param.HasField("min") or not param.HasField("max"):
        raise layer.error("found no min or no max in clip_param, expected both")
    # If min > max, Caffe returns min. ONNX does not define that case, and runtimes return max.
    high = max(param.min, param.max)
    graph.node("Clip", [bottom, graph.constant(param.min), graph.constant(high)], top)


@handles("Threshold", operators="Greater Cast")
def threshold(layer: Layer, graph: Graph) -> None:
    """1 where x > threshold, else 0."""
    bottom, top = layer.ends()
    limit = graph.constant(layer.params.threshold_param.threshold)
    graph.cast(graph.node("Greater", [bottom, limit], dtype=np.bool_), np.float32, top)


@handles(
    "Dropout",
    operators="Identity Mul",
    reads="dropout_param.scale_train",
    restrictions="inference form: the identity; with Faster R-CNN's `scale_train: false`, a factor of "
    "1 - dropout_ratio; SegNet's `sample_weights_test` also drops at random in testing, and "
    "the model computes the mean: the identity",
    origin="BVLC, Faster R-CNN, SegNet",
)
def dropout(layer: Layer, graph: Graph) -> None:
    """Identity at inference: Caffe scales during training."""
    bottom, top = layer.ends()
    param = layer.params.dropout_param
    if param.sample_weights_test:
        graph.note(
            "sample_weights_test drops values at random in testing; the model computes the mean, which keeps all values"
        )
    if param.scale_train:
        graph.node("Identity", [bottom], top)
    else:
        graph.node("Mul", [bottom, graph.constant(1 - param.dropout_ratio)], top)


@handles("Softmax", operators="Softmax")
def softmax(layer: Layer, graph: Graph) -> None:
    """e^x / sum(e^x) along an axis. Also the inference form of SoftmaxWithLoss."""
    bottom, top = layer.ends()
    axis = graph.axis(bottom, layer.params.softmax_param.axis)
    graph.node("Softmax", [bottom], top, axis=axis)


# ------------------------------------------------------------------------------------------------------------ of forks


@handles("ReLU6", operators="Clip", restrictions="no negative_slope", origin="MobileNet")
def relu6(layer: Layer, graph: Graph) -> None:
    """min(max(x, 0), 6)."""
    bottom, top = layer.ends()
    param = layer.params.relu6_param
    if param.negative_slope or param.threshold <= 0:
        raise layer.error(
            f"found negative_slope {param.negative_slope} and threshold {param.threshold}, expected 0 and more than 0"
        )
    graph.node("Clip", [bottom, graph.constant(0.0), graph.constant(param.threshold)], top)


@handles("Mish", operators="Softplus Tanh Mul", origin="Darknet")
def mish(layer: Layer, graph: Graph) -> None:
    """x * tanh(log(1 + e^x)) (Misra 2019)."""
    bottom, top = layer.ends()
    squashed = graph.node("Tanh", [graph.node("Softplus", [bottom])])
    graph.node("Mul", [bottom, squashed], top)


@handles("HSigmoid", operators="HardSigmoid", origin="MobileNetV3")
def hsigmoid(layer: Layer, graph: Graph) -> None:
    """min(max(x + 3, 0), 6) / 6 (Howard et al. 2019)."""
    bottom, top = layer.ends()
    graph.node("HardSigmoid", [bottom], top, alpha=1 / 6, beta=0.5)


@handles("HSwish", "HardSwish", operators="HardSigmoid Mul", origin="MobileNetV3")
def hswish(layer: Layer, graph: Graph) -> None:
    """x * min(max(x + 3, 0), 6) / 6 (Howard et al. 2019)."""
    bottom, top = layer.ends()
    gate = graph.node("HardSigmoid", [bottom], alpha=1 / 6, beta=0.5)
    graph.node("Mul", [bottom, gate], top)


@handles("SeLu", operators="Selu", origin="SNN, caffe-model")
def selu(layer: Layer, graph: Graph) -> None:
    """lambda * x if x > 0, else lambda * alpha * (e^x - 1) (Klambauer et al. 2017)."""
    bottom, top = layer.ends()
    param = layer.params.selu_param
    graph.node("Selu", [bottom], top, alpha=param.alpha, gamma=getattr(param, "lambda"))


@handles("SeLuDropout", operators="Identity", restrictions="inference form: the identity", origin="SNN, caffe-model")
def selu_dropout(layer: Layer, graph: Graph) -> None:
    """Identity at inference: alpha dropout keeps mean and variance during training (Klambauer et al. 2017)."""
    bottom, top = layer.ends()
    graph.node("Identity", [bottom], top)


@handles(
    "Insanity", operators="LeakyRelu", restrictions="inference form: the mean of the slopes", origin="FaceVerification"
)
def insanity(layer: Layer, graph: Graph) -> None:
    """x if x > 0, else x / slope, with the mean of the slopes that training draws from [lb, ub] (RReLU).

    The slope is (ub - lb) / (log ub - log lb). Source: insanity_layer.cpp of happynear/caffe-windows, after Xu et al.
    2015, Empirical Evaluation of Rectified Activations in Convolutional Network.
    """
    bottom, top = layer.ends()
    low, high = layer.params.insanity_param.lb, layer.params.insanity_param.ub
    if not 0 < low < high:
        raise layer.error(f"found lb {low:g} and ub {high:g}, expected positive numbers with lb < ub")
    slope = (high - low) / (math.log(high) - math.log(low))
    graph.node("LeakyRelu", [bottom], top, alpha=1 / slope)


@handles("NegReLU", operators="Neg Relu LeakyRelu", origin="FlowNet 2")
def neg_relu(layer: Layer, graph: Graph) -> None:
    """min(x, 0) + negative_slope * max(x, 0): a ReLU of the negative, negated."""
    bottom, top = layer.ends()
    slope = layer.params.relu_param.negative_slope
    flipped = graph.node("Neg", [bottom])
    kept = graph.node("LeakyRelu", [flipped], alpha=slope) if slope else graph.node("Relu", [flipped])
    graph.node("Neg", [kept], top)
