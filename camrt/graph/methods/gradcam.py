"""Grad-CAM and its kin: the weights are made of the scores' derivatives by the features."""

from __future__ import annotations

from camrt.graph.methods import method
from camrt.graph.methods.context import Layer
from camrt.graph.values import Value


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
    return (layer.gradients * layer.features).sum(-2)


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
    return (layer.gradients.relu() * layer.features).sum(-2)


def _ratio(a: Value, b: Value) -> Value:
    """A / b, and 0 where b is 0."""
    is_zero = b.equals(0)
    return is_zero.where(0, a / is_zero.where(1, b))
