"""Grad-CAM and its kin: the weights are made of the scores' derivatives by the features."""

from __future__ import annotations

from camrt.graph.methods import method
from camrt.graph.methods.scene import Layer


@method("gradcam", kind="features", title="Grad-CAM")
def gradcam(layer: Layer) -> str:
    """The mean of the derivative over a map.

    L_c = ReLU(sum_k a_k A_k) with a_k = mean over i, j of dy_c/dA_k(i, j). y_c is the score before the Softmax. Where
    the network ends in global average pooling and a linear layer, that is CAM over the number of places.

    Source:
        Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra: Grad-CAM: Visual Explanations from Deep Networks via
        Gradient-based Localization. ICCV 2017, equations 1 and 2.

    Example:
        >>> explainer = camrt.explain_graph(model, method="gradcam", layer="relu5_3")  # doctest: +SKIP
    """
    return layer.weighted(layer.builder.reduce("Mean", layer.gradients, [4]))


@method("gradcam++", kind="features", title="Grad-CAM++")
def gradcam_plus_plus(layer: Layer) -> str:
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
    builder = layer.builder
    zero = builder.constant(0.0)
    positive = builder.node("Relu", [layer.gradients])
    total = builder.reduce("Sum", layer.shared, [4], keepdims=True)
    below = builder.node("Add", [builder.node("Mul", [total, positive]), builder.constant(2.0)])
    is_zero = builder.node("Equal", [below, zero])  # which it can be where features are below 0
    alpha = builder.node("Div", [positive, builder.node("Where", [is_zero, builder.constant(1.0), below])])
    alpha = builder.node("Where", [is_zero, zero, alpha])
    return layer.weighted(builder.reduce("Sum", alpha, [4]))


@method("hirescam", kind="features", title="HiResCAM")
def hirescam(layer: Layer) -> str:
    """The derivative at each place, times the feature there.

    L_c = ReLU(sum_k dy_c/dA_k * A_k), place by place. Where one linear layer follows the features, its sum over the
    places is the score less the bias.

    Source:
        Draelos, Carin: Use HiResCAM instead of Grad-CAM for Faithful Explanations of Convolutional Neural
        Networks. arXiv 2011.08891, 2020.

    Example:
        >>> explainer = camrt.explain_graph(model, method="hirescam")  # doctest: +SKIP
    """
    return _place_by_place(layer, layer.gradients)


@method("xgradcam", kind="features", title="XGrad-CAM")
def xgradcam(layer: Layer) -> str:
    """The mean of the derivative, weighted by the feature.

    L_c = ReLU(sum_k w_k A_k) with w_k = sum over i, j of A_k(i, j) / S_k * dy_c/dA_k(i, j), S_k the sum of A_k. A map
    whose sum is 0 has no weight.

    Source:
        Fu, Hu, Dong, Guo, Gao, Li: Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of
        CNNs. BMVC 2020.

    Example:
        >>> explainer = camrt.explain_graph(model, method="xgradcam")  # doctest: +SKIP
    """
    builder = layer.builder
    total = builder.reduce("Sum", layer.shared, [4])  # (N, crops, 1, channels)
    zero = builder.constant(0.0)
    is_empty = builder.node("Equal", [total, zero])
    safe = builder.node("Where", [is_empty, builder.constant(1.0), total])
    product = builder.reduce("Sum", builder.node("Mul", [layer.gradients, layer.shared]), [4])
    weights = builder.node("Where", [is_empty, zero, builder.node("Div", [product, safe])])
    return layer.weighted(weights)


@method("layercam", kind="features", title="LayerCAM")
def layercam(layer: Layer) -> str:
    """The positive derivative at each place, times the feature there: also for early layers, which are finer.

    L_c = ReLU(sum_k ReLU(dy_c/dA_k) * A_k), place by place.

    Source:
        Jiang, Zhang, Hou, Cheng, Wei: LayerCAM: Exploring Hierarchical Class Activation Maps for Localization.
        IEEE TIP 2021, equations 5 to 7.

    Example:
        >>> explainer = camrt.explain_graph(model, method="layercam", layer=["relu4_3", "relu5_3"])  # doctest: +SKIP
    """
    return _place_by_place(layer, layer.builder.node("Relu", [layer.gradients]))


def _place_by_place(layer: Layer, weights: str) -> str:
    """sum_k w_k(i, j) A_k(i, j): (N, crops, count, places)."""
    return layer.builder.reduce("Sum", layer.builder.node("Mul", [weights, layer.shared]), [3])
