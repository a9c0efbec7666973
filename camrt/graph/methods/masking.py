"""Maps from the scores of masked features: the rest of the network runs once for each mask, many in one batch."""

from __future__ import annotations

import numpy as np

from camrt.errors import CamrtError
from camrt.graph.methods import method
from camrt.graph.methods.context import Layer
from camrt.graph.values import Value

_MOST = 1024  # positions of a layer: the masks are positions x positions numbers
_LEAST = 1e-30
_GAUSSIAN = np.outer([1, 2, 1], [1, 2, 1]) / 16


@method("recipro-cam", kind="features", title="Recipro-CAM", gradients=False, behind=True)
def recipro_cam(layer: Layer, *, masks: str = "gaussian") -> Value:
    """The score of the class when the rest of the network sees the features of one position alone.

    L_c(i, j) = y_c(A * m_ij), scaled to 0..1 over the map, where m_ij is 1 at the position (i, j) and 0 elsewhere, or a
    Gaussian of 3 x 3 positions around it. In a transformer the features are tokens, and the class token stays
    (ViT-Recipro-CAM). Needs no gradients: the features of all positions run through the rest of the network as one
    batch, or in several of 64 at most.

    Source:
        Byun, Lee: ReciproCAM: Lightweight Gradient-free Class Activation Map for Post-hoc Explanations. CVPR
        Workshops 2024. ViT-ReciproCAM: Gradient and Attention-Free Visual Explanations for Vision Transformer. arXiv
        2310.02588, 2023.

    Args:
        layer: The features.
        masks: ``"gaussian"``, or ``"point"``: one position alone.

    Example:
        >>> explainer = camrt.explain_graph(model, method="recipro-cam")  # doctest: +SKIP
    """
    if masks not in ("gaussian", "point"):
        raise CamrtError(f"found recipro-cam's masks {masks!r}, expected gaussian or point")
    grid = layer.grid
    if grid.positions > _MOST:
        raise CamrtError(
            f"found the layer {grid.describe()}, expected {_MOST} positions at most: recipro-cam runs the rest of the "
            "network for each. Name a later layer (--layer)"
        )
    kernel = _GAUSSIAN if masks == "gaussian" else np.ones((1, 1))
    scores = layer.masked_scores(_around(grid.height, grid.width, kernel)[:, None])
    above = scores - scores.min(-1, keepdims=True)
    return (above / above.max(-1, keepdims=True).maximum(_LEAST)).lead_from(2)


@method("ablation-cam", kind="features", title="Ablation-CAM", gradients=False, behind=True)
def ablation_cam(layer: Layer) -> Value:
    """What the score of the class loses without each map.

    L_c = ReLU(sum_k w_k A_k) with w_k = (y_c - y_c^k) / y_c, where y_c^k is the score when the map A_k is 0. Needs no
    gradients: the rest of the network runs once for each channel, 64 at a time at most.

    Source:
        Desai, Ramaswamy: Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free
        Localization. WACV 2020, equations 3 and 4.

    Example:
        >>> explainer = camrt.explain_graph(model, method="ablation-cam")  # doctest: +SKIP
    """
    context, without = layer.context, layer.scores_without_each_channel()
    whole = context.reader(1)(context.logits(context.first))
    lost = whole - without
    is_zero = whole.equals(0)
    return layer.weighted((is_zero.where(0, lost / is_zero.where(1, whole))).lead_from(2))


def _around(height: int, width: int, kernel: np.ndarray) -> np.ndarray:
    """A kernel around each position of a grid, cut off at its borders: (positions, positions)."""
    border = len(kernel) // 2
    planes = np.zeros((height, width, height + 2 * border, width + 2 * border), np.float32)
    for y, x in np.ndindex(height, width):
        planes[y, x, y : y + len(kernel), x : x + len(kernel)] = kernel
    inside = planes[:, :, border : border + height, border : border + width]
    return inside.reshape(height * width, height * width)
