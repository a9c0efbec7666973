"""Grad-CAM and its kin: the weights are made of the scores' derivatives by the features."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from camrt.errors import CamrtError
from camrt.graph.methods import method
from camrt.graph.methods.context import Layer
from camrt.graph.values import Value

_FAR = 1e30  # a score's distance that no other has


@method("gradcam", kind="features", title="Grad-CAM")
def gradcam(layer: Layer) -> Value:
    """The mean of the derivative over a map.

    L_c = ReLU(sum_k a_k A_k) with a_k = mean over i, j of dy_c/dA_k(i, j). y_c is the score before the Softmax. Where
    the network ends in global average pooling and a linear layer, that is CAM over the number of positions.

    Source:
        Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra: Grad-CAM: Visual Explanations from Deep Networks via
        Gradient-based Localization. ICCV 2017, equations 1 and 2.

    Example:
        >>> explainer = camrt.explain_graph(model, method="gradcam", layer="relu5_3")  # doctest: +SKIP
    """
    return layer.weighted(layer.mean_gradients)


@method("gradcam++", kind="features", title="Grad-CAM++")
def gradcam_plus_plus(layer: Layer) -> Value:
    """A weighted sum of the positive derivatives, so that small objects count as much as large ones.

    L_c = ReLU(sum_k w_k A_k) with w_k = sum over i, j of alpha_k(i, j) ReLU(g_k(i, j)), where g = dy_c/dA and
    alpha_k(i, j) = g^2 / (2 g^2 + S_k g^3) = 1 / (2 + S_k g), S_k = sum over a, b of A_k(a, b), as g^2
    cancels where g is not 0, and where it is, its ReLU is. Higher derivatives are powers of the first one, as the paper
    finds for a score under an exponential; the factor exp(y_c) of that is positive and left out.

    Source:
        Chattopadhay, Sarkar, Howlader, Balasubramanian: Grad-CAM++: Generalized Gradient-based Visual
        Explanations for Deep Convolutional Networks. WACV 2018, equation 19.

    Example:
        >>> explainer = camrt.explain_graph(model, method="gradcam++")  # doctest: +SKIP
    """
    A, g = layer.features, layer.gradients.relu()
    return layer.weighted(_ratio(g, 2 + A.sum(-1, keepdims=True) * g).sum(-1))


@method("hirescam", kind="features", title="HiResCAM")
def hirescam(layer: Layer) -> Value:
    """The derivative at each position, times the feature there.

    L_c = ReLU(sum_k dy_c/dA_k * A_k), position by position. Where one linear layer follows the features, its sum over
    the positions is the score less the bias.

    Source:
        Draelos, Carin: Use HiResCAM instead of Grad-CAM for Faithful Explanations of Convolutional Neural
        Networks. arXiv 2011.08891, 2020.

    Example:
        >>> explainer = camrt.explain_graph(model, method="hirescam")  # doctest: +SKIP
    """
    return layer.summed(layer.gradients * layer.features)


@method("xgradcam", kind="features", title="XGrad-CAM")
def xgradcam(layer: Layer) -> Value:
    """The mean of the derivative, weighted by the feature.

    L_c = ReLU(sum_k w_k A_k) with w_k = sum over i, j of A_k(i, j) / S_k * dy_c/dA_k(i, j), S_k the sum of A_k. A map
    whose sum is 0 has no weight.

    Source:
        Fu, Hu, Dong, Guo, Gao, Li: Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of
        CNNs. BMVC 2020.

    Example:
        >>> explainer = camrt.explain_graph(model, method="xgradcam")  # doctest: +SKIP
    """
    A, g = layer.features, layer.gradients
    return layer.weighted(_ratio((A * g).sum(-1), A.sum(-1)))


@method("layercam", kind="features", title="LayerCAM")
def layercam(layer: Layer) -> Value:
    """The positive derivative at each position, times the feature there: also for early layers, which are finer.

    L_c = ReLU(sum_k ReLU(dy_c/dA_k) * A_k), position by position.

    Source:
        Jiang, Zhang, Hou, Cheng, Wei: LayerCAM: Exploring Hierarchical Class Activation Maps for Localization.
        IEEE TIP 2021, equations 5 to 7.

    Example:
        >>> explainer = camrt.explain_graph(model, method="layercam", layer=["relu4_3", "relu5_3"])  # doctest: +SKIP
    """
    return layer.summed(layer.gradients.relu() * layer.features)


@method("finercam", kind="features", title="Finer-CAM")
def finercam(layer: Layer, *, alpha: float = 1.0, others: int = 3) -> Value:
    """Grad-CAM of what sets a class apart from those that are most like it.

    Grad-CAM of f_c = sum over d of q_d (y_c - alpha y_d), with d the classes whose scores are nearest to y_c and q the
    softmax of their scores among them, which is differentiated, too.

    Source:
        Zhang, Gu, Chowdhury, Mai, Carlyn, Berger-Wolf, Su, Chao: Finer-CAM: Spotting the Difference Reveals Finer
        Details for Visual Explanation. CVPR 2025; the weights q as in pytorch-grad-cam.

    Args:
        layer: The features.
        alpha: How much the other classes count; 0 is Grad-CAM.
        others: How many classes it is compared with; fewer where the network has fewer.

    Example:
        >>> explainer = camrt.explain_graph(model, method="finercam", settings={"alpha": 0.6})  # doctest: +SKIP
    """
    context = layer.context
    if others < 1 or not 0 <= alpha < np.inf:
        raise CamrtError(f"found finercam's alpha {alpha} and others {others}, expected 0 or more, and at least 1")
    if context.targets.kind in ("sum", "box") or context.targets.is_segment or context.scores.classes < 2:
        raise CamrtError("found one score to explain, expected classes, which finercam compares: use --method gradcam")
    classes, builder = context.scores.classes, context.builder
    hot = context.seeds(context.first).reshape(-1, classes)
    y = context.logits(context.first).reshape(-1, classes)
    away = abs(y - (hot * y).sum(-1, keepdims=True)) + hot * _FAR
    count = min(others, classes - 1)
    outputs = [builder.name("distances"), builder.name("nearest")]
    _, name = builder.nodes_of("TopK", [away.name, builder.shape(count)], outputs, axis=-1, largest=0)
    nearest = Value(builder, name, (None, count), TensorProto.INT64, away.lead)
    is_near = away.zeros(None).scatter(nearest, nearest.cast(y.kind).filled(1, nearest.lead), 1) > 0
    q = is_near.where(y, -_FAR).op("Softmax", axis=-1)
    slope = q * (1 + y - (q * y).sum(-1, keepdims=True))  # of the sum of q_d y_d, of which q is a function
    seeds = (hot - slope * alpha).reshape_as(context.logits(context.first))
    gradient = context.backward(context.first, [layer.grid.tensor], seeds=seeds)[layer.grid.tensor]
    return layer.weighted(layer.grid.planes(gradient, -1, len(context.crops)).mean(-1))


@method("shapleycam", kind="features", title="Shapley-CAM")
def shapleycam(layer: Layer, *, utility: str = "rest") -> Value:
    """Grad-CAM with the second derivatives, which approximate the Shapley value of a position to second order.

    L_c = ReLU(sum_k w_k A_k) with w_k the mean over i, j of (g - H A / 2)_k(i, j), where g and H are the first and
    second derivatives of the utility by the features. The utility is ReST, u = y_c + log softmax(y)_c, or the score y_c
    alone: where only ReLUs, pooling and linear layers follow the features, the score has no second derivatives, and the
    map is Grad-CAM's.

    Source:
        Cai: CAMs as Shapley Value-based Explainers. The Visual Computer, 2025 (arXiv 2501.06261).

    Args:
        layer: The features.
        utility: ``"rest"``, or ``"score"``.

    Example:
        >>> explainer = camrt.explain_graph(model, method="shapleycam", target="cup")  # doctest: +SKIP
    """
    context = layer.context
    if utility not in ("rest", "score"):
        raise CamrtError(f"found shapleycam's utility {utility!r}, expected rest or score")
    seeds = context.seeds(context.first)
    logits = context.logits(context.first)
    if utility == "rest" and context.targets.kind != "sum":
        seeds = seeds + (seeds - logits.op("Softmax", axis=1))
    name = layer.grid.tensor
    gradient = context.backward(context.first, [name], seeds=seeds)[name]
    curvature = context.curvature(gradient, name, context.tensor(name))
    slope = gradient if curvature is None else gradient - curvature * 0.5
    return layer.weighted(layer.grid.planes(slope, -1, len(context.crops)).mean(-1))


@method("refinecam", kind="features", title="RefineCAM", multiplied=True)
def refinecam(layer: Layer) -> Value:
    """Grad-CAM++ of several layers, multiplied: the fine maps of early layers where the last layers see the class.

    Each layer's map is scaled to 0..1 and enlarged, and the product over the layers is taken. Name the layers (--layer
    several times); of one layer it is Grad-CAM++.

    Source:
        RefineCAM. arXiv 2605.14641, 2026, as pytorch-grad-cam 1.5.7 has it.

    Example:
        >>> explainer = camrt.explain_graph(model, "refinecam", layer=["relu4_3", "relu5_3"])  # doctest: +SKIP
    """
    return gradcam_plus_plus(layer)


def _ratio(a: Value, b: Value) -> Value:
    """A / b, and 0 where b is 0."""
    is_zero = b.equals(0)
    return is_zero.where(0, a / is_zero.where(1, b))
