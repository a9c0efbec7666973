"""Eigen-CAM: the first principal component of the features."""

from __future__ import annotations

from camrt.graph.methods import method
from camrt.graph.methods.context import Layer
from camrt.graph.values import Value

_SQUARINGS = 12  # 2^12 steps of the power iteration
_LEAST = 1e-30


@method("eigencam", kind="features", title="Eigen-CAM", gradients=False, top=1)
def eigencam(layer: Layer) -> Value:
    """The first principal component of the features. All classes get the same map.

    L = ReLU(X v), X (positions, channels) the features minus their means over the positions, v the first right singular
    vector of X. It is found by 4096 steps of the power iteration, in 12 squarings of the smaller of X X^T and X^T X.
    The iteration starts from the sum of the features, which determines the sign that a singular vector leaves open.

    Source:
        Muhammad, Yeasin: Eigen-CAM: Class Activation Map using Principal Components. IJCNN 2020.

    Example:
        >>> explainer = camrt.explain_graph(model, method="eigencam")  # doctest: +SKIP
    """
    columns = layer.features - layer.features.mean(-1, keepdims=True)  # X^T: (N, crops, channels, positions)
    rows = columns.mT
    strong = columns.sum(-2, keepdims=True).mT  # (N, crops, positions, 1)
    if layer.positions <= layer.channels:
        u = _first(rows @ columns, strong)
        found = u * _square(columns @ u).sqrt()  # X v = sigma u, and sigma^2 = u^T X X^T u
    else:
        found = rows @ _first(columns @ rows, columns @ strong)
    return found.squeeze(-1)


def _first(matrix: Value, start: Value) -> Value:
    """The first eigenvector of a symmetric matrix without negative eigenvalues: (N, crops, size, 1), of length 1."""
    matrix = _divided(matrix, matrix.max(-2, -1, keepdims=True))
    for _ in range(_SQUARINGS):
        matrix = matrix @ matrix
        matrix = _divided(matrix, matrix.max(-2, -1, keepdims=True))
    vector = matrix @ start
    vector = _divided(vector, abs(vector).max(-2, -1, keepdims=True))  # its squares neither vanish nor overflow
    return _divided(vector, _square(vector).sqrt())


def _square(vector: Value) -> Value:
    """The square of its length."""
    return (vector * vector).sum(-2, keepdims=True)


def _divided(value: Value, by: Value) -> Value:
    """Divide by what is 0 where all features are alike."""
    return value / by.maximum(_LEAST)
