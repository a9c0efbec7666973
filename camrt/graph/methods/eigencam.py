"""Eigen-CAM: the first principal component of the features."""

from __future__ import annotations

from camrt.graph.methods import method
from camrt.graph.methods.scene import Layer

_SQUARINGS = 12  # 2^12 steps of the power iteration
_LEAST = 1e-30


@method("eigencam", kind="features", title="Eigen-CAM", gradients=False, top=1)
def eigencam(layer: Layer) -> str:
    """What the features have most in common, whatever the class: all classes get the same map.

    L = ReLU(X v), X (places, channels) the features less their means over the places, v the first right singular
    vector of X. It is found by 4096 steps of the power iteration, in 12 squarings of the smaller of X X^T and X^T X,
    from where the features are strong. So the sign, which a singular vector leaves open, is such that the map goes with
    the sum of the features.

    Source:
        Muhammad, Yeasin: Eigen-CAM: Class Activation Map using Principal Components. IJCNN 2020.

    Example:
        >>> explainer = camrt.explain_graph(model, method="eigencam")  # doctest: +SKIP
    """
    builder = layer.builder
    mean = builder.reduce("Mean", layer.features, [3], keepdims=True)
    centred = builder.node("Sub", [layer.features, mean])  # X^T: (N, crops, channels, places)
    places = builder.node("Transpose", [centred], perm=[0, 1, 3, 2])  # X
    total = builder.reduce("Sum", centred, [2], keepdims=True)
    strong = builder.node("Transpose", [total], perm=[0, 1, 3, 2])  # (N, crops, places, 1)
    if layer.places <= layer.channels:
        matrix = builder.node("MatMul", [places, centred])
        vector = _first(layer, matrix, strong)  # the left singular vector
        # X v = sigma u, and sigma^2 = u^T X X^T u
        image = builder.node("MatMul", [centred, vector])
        found = builder.node("Mul", [vector, builder.node("Sqrt", [_square(layer, image)])])
    else:
        matrix = builder.node("MatMul", [centred, places])
        vector = _first(layer, matrix, builder.node("MatMul", [centred, strong]))
        found = builder.node("MatMul", [places, vector])
    return layer.repeated(builder.node("Squeeze", [found, builder.shape(3)]))


def _first(layer: Layer, matrix: str, start: str) -> str:
    """The first eigenvector of a symmetric matrix without negative eigenvalues: (N, crops, size, 1), of length 1."""
    builder = layer.builder
    for _ in range(_SQUARINGS):
        unit = builder.node("Div", [matrix, _at_least(layer, builder.reduce("Max", matrix, [2, 3], keepdims=True))])
        matrix = builder.node("MatMul", [unit, unit])
    unit = builder.node("Div", [matrix, _at_least(layer, builder.reduce("Max", matrix, [2, 3], keepdims=True))])
    vector = builder.node("MatMul", [unit, start])
    largest = builder.reduce("Max", builder.node("Abs", [vector]), [2, 3], keepdims=True)
    scaled = builder.node("Div", [vector, _at_least(layer, largest)])  # its squares neither vanish nor overflow
    length = builder.node("Sqrt", [_square(layer, scaled)])
    return builder.node("Div", [scaled, _at_least(layer, length)])


def _square(layer: Layer, vector: str) -> str:
    return layer.builder.reduce("Sum", layer.builder.node("Mul", [vector, vector]), [2], keepdims=True)


def _at_least(layer: Layer, number: str) -> str:
    """A divisor that is not 0, where all features are alike."""
    return layer.builder.node("Max", [number, layer.builder.constant(_LEAST)])
