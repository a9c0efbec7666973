"""Class activation maps: the weights are those of the classifier."""

from __future__ import annotations

from camrt.errors import CamrtError
from camrt.graph.methods import method
from camrt.graph.methods.context import Layer
from camrt.graph.values import Value


@method("cam", kind="head", title="CAM", rectified=False, gradients=False)
def cam(layer: Layer) -> Value:
    """The classifier's own weights.

    M_c = sum_k w_k^c A_k, where the score of class c is the sum over k of w_k^c times the mean of A_k. Needs a
    classifier that ends in global average pooling and one linear layer. Negative values stay, and count by their
    magnitude where crops are merged, as the original does it.

    Source:
        Zhou, Khosla, Lapedriza, Oliva, Torralba: Learning Deep Features for Discriminative Localization. CVPR
        2016, equation 2.

    Example:
        >>> explainer = camrt.explain_graph(model, method="cam")  # doctest: +SKIP
    """
    context, head = layer.context, layer.context.head
    assert head is not None
    if context.targets.kind == "sum":
        raise CamrtError("found the target 'sum' with the method cam, which explains classes: use gradcam")
    name = head.initializer or context.builder.constant(head.weights, "weights")
    weights = Value(context.builder, name, (context.scores.classes, layer.channels))
    return layer.weighted(weights.gather(context.classes, 0).unsqueeze(1))
