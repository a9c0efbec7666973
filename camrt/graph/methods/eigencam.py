"""Eigen-CAM and its kin: the first principal component of the features."""

from __future__ import annotations

import numpy as np

from camrt.errors import CamrtError
from camrt.graph.components import first_component, first_eigenvector, largest_positive
from camrt.graph.methods import method
from camrt.graph.methods.context import Layer
from camrt.graph.values import Value

_MOST = 1024  # positions that are compared with each other


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
    return first_component(layer.features)


@method("eigengradcam", kind="features", title="Eigen-Grad-CAM")
def eigengradcam(layer: Layer) -> Value:
    """The first principal component of the features times their derivatives: Eigen-CAM for a class.

    L_c = ReLU(X v) as for Eigen-CAM, of dy_c/dA_k * A_k, position by position, in place of the features.

    Source:
        Gildenblat and contributors: PyTorch library for CAM methods (pytorch-grad-cam). 2021, after Muhammad, Yeasin:
        Eigen-CAM. IJCNN 2020.

    Example:
        >>> explainer = camrt.explain_graph(model, method="eigengradcam")  # doctest: +SKIP
    """
    return first_component(layer.gradients * layer.features)


@method("segeigencam", kind="features", title="Seg-Eigen-CAM")
def segeigencam(layer: Layer) -> Value:
    """Eigen-CAM of the features times the magnitude of their derivatives, with the sign of what is largest.

    L_c = ReLU(s X v) as for Eigen-CAM, of |dy_c/dA_k| * A_k, position by position. The sign s makes the value of the
    largest magnitude positive.

    Source:
        Chung, Ying: Seg-Eigen-CAM: Eigen-Value-Based Visual Explanations for Semantic Segmentation Models. Applied
        Sciences 15 (13), 7562, 2025, equations 10 to 13.

    Example:
        >>> explainer = camrt.explain_graph(model, method="segeigencam")  # doctest: +SKIP
    """
    return largest_positive(first_component(abs(layer.gradients) * layer.features))


@method("kpca-cam", kind="features", title="KPCA-CAM", gradients=False, top=1)
def kpca_cam(layer: Layer) -> Value:
    """The first principal component of the features under the sigmoid kernel. All classes get the same map.

    L = ReLU(s sqrt(lambda) u), with lambda and u the largest eigenvalue and its eigenvector of the centered matrix of
    k(x, y) = tanh(x^T y / channels + 1) over pairs of positions, whose features are less their means. As that matrix
    may have negative eigenvalues, its norm is added on the diagonal before the power iteration. The sign s makes the
    value of the largest magnitude positive.

    Source:
        Karmani, Sivakaran, Prasad, Ali, Yang, Tang: KPCA-CAM: Visual Explainability of Deep Computer Vision Models
        using Kernel PCA. MMSP 2024.

    Example:
        >>> explainer = camrt.explain_graph(model, method="kpca-cam")  # doctest: +SKIP
    """
    if layer.positions > _MOST:
        raise CamrtError(
            f"found the layer {layer.grid.describe()}, expected {_MOST} positions at most: kpca-cam compares each with "
            "each. Name a later layer (--layer)"
        )
    columns = layer.features - layer.features.mean(-1, keepdims=True)
    kernel = (columns.mT @ columns * (1 / layer.channels) + 1).op("Tanh")
    rows = kernel.mean(-1, keepdims=True)
    centered = kernel - rows - rows.mT + rows.mean(-2, keepdims=True)
    norm = (centered * centered).sum(-2, -1, keepdims=True).sqrt()
    u = first_eigenvector(
        centered + norm * np.eye(layer.positions, dtype=np.float32), columns.sum(-2, keepdims=True).mT
    )
    strength = (u * (centered @ u)).sum(-2, keepdims=True).relu().sqrt()
    return largest_positive((u * strength).squeeze(-1))


@method("fem", kind="features", title="FEM", gradients=False, top=1)
def fem(layer: Layer, *, k: float = 2.0) -> Value:
    """Maps count by how much of them stands out. All classes get the same map.

    L = ReLU(sum_k w_k A_k), where w_k is the share of the positions at which A_k is above its mean plus k standard
    deviations.

    Source:
        Fuad, Martin, Giot, Bourqui, Benois-Pineau, Zemmari: Features Understanding in 3D CNNs for Actions Recognition
        in Video. IPTA 2020.

    Args:
        layer: The features.
        k: How many standard deviations.

    Example:
        >>> explainer = camrt.explain_graph(model, method="fem")  # doctest: +SKIP
    """
    if not 0 <= k < np.inf:
        raise CamrtError(f"found fem's k {k}, expected 0 or more")
    mean = layer.features.mean(-1, keepdims=True)
    away = layer.features - mean
    deviation = (away * away).mean(-1, keepdims=True).sqrt()
    return layer.weighted((layer.features > mean + deviation * k).cast(layer.features.kind).mean(-1))
