"""The first principal component of features, found in the graph: by the power iteration, not by a decomposition."""

from __future__ import annotations

from camrt.graph.values import Value

_SQUARINGS = 12  # 2^12 steps of the power iteration
_LEAST = 1e-30


def first_component(features: Value) -> Value:
    """Project features on their first principal component.

    The iteration starts from the sum of the features, which determines the sign that a singular vector leaves open: the
    projection and that sum have a positive product.

    Args:
        features: (N, crops, channels, positions).

    Returns:
        X v: (N, crops, positions), with X (positions, channels) the features less their means over the positions and v
        its first right singular vector.
    """
    columns = features - features.mean(-1, keepdims=True)  # X^T
    rows = columns.mT
    strong = columns.sum(-2, keepdims=True).mT  # (N, crops, positions, 1)
    channels, positions = features.fixed(-2, -1)
    if positions <= channels:
        u = first_eigenvector(rows @ columns, strong)
        found = u * _square(columns @ u).sqrt()  # X v = sigma u, and sigma^2 = u^T X X^T u
    else:
        found = rows @ first_eigenvector(columns @ rows, columns @ strong)
    return found.squeeze(-1)


def first_eigenvector(matrix: Value, start: Value) -> Value:
    """The first eigenvector of a symmetric matrix without negative eigenvalues: (N, crops, size, 1), of length 1.

    Args:
        matrix: (N, crops, size, size).
        start: (N, crops, size, 1): where the iteration begins.
    """
    matrix = _divided(matrix, matrix.max(-2, -1, keepdims=True))
    for _ in range(_SQUARINGS):
        matrix = matrix @ matrix
        matrix = _divided(matrix, matrix.max(-2, -1, keepdims=True))
    vector = matrix @ start
    vector = _divided(vector, abs(vector).max(-2, -1, keepdims=True))  # its squares neither vanish nor overflow
    return _divided(vector, _square(vector).sqrt())


def largest_positive(maps: Value) -> Value:
    """Maps (..., positions) with the sign that makes the value of the largest magnitude positive."""
    return maps * (maps.max(-1, keepdims=True) < -maps.min(-1, keepdims=True)).where(-1.0, 1.0)


def _square(vector: Value) -> Value:
    """The square of its length."""
    return (vector * vector).sum(-2, keepdims=True)


def _divided(value: Value, by: Value) -> Value:
    """Divide by what is 0 where all features are alike."""
    return value / by.maximum(_LEAST)
