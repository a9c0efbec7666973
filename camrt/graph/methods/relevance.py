"""Maps of what each pixel adds to the score, carried back operator by operator."""

from __future__ import annotations

import numpy as np

from camrt.errors import CamrtError
from camrt.graph.crops import black
from camrt.graph.methods import method
from camrt.graph.methods.context import MethodContext
from camrt.graph.rules.relevance import Relevance, Rescale
from camrt.graph.values import Value


@method("lrp", kind="pixels", title="LRP-epsilon", rectified=False, layered=False, top=1)
def lrp(context: MethodContext, *, epsilon: float = 1e-6, values: str = "magnitude") -> Value:
    """Layer-wise relevance propagation: the score is shared out among the terms of each sum.

    R_i = sum over j of a_i w_ij / (z_j + epsilon sign z_j) R_j at linear operators, z_j = sum over i of a_i w_ij + b_j.
    Activations pass their relevance on. Biases and epsilon keep what they get, so that the map adds up to less than the
    score. Where the network has ReLUs and epsilon is small, this is the derivative times the input. The map is the
    magnitude of the sum over the three channels, or the sum with its sign.

    Source:
        Bach, Binder, Montavon, Klauschen, Müller, Samek: On Pixel-Wise Explanations for Non-Linear Classifier
        Decisions by Layer-Wise Relevance Propagation. PLOS ONE 2015, equation 58.

    Args:
        context: The image.
        epsilon: The stabilizer, in the unit of the network's features. Larger ones leave weak relevance out.
        values: ``"magnitude"``, or ``"signed"``: what counts against the class is negative.

    Example:
        >>> explainer = camrt.explain_graph(model, method="lrp", settings={"epsilon": 0.1})  # doctest: +SKIP
    """
    if not 0 <= epsilon < np.inf:
        raise CamrtError(f"found lrp's epsilon {epsilon}, expected 0 or more")
    gradient = context.pixels(context.first, modifier=Relevance(epsilon))
    return _summed(context, gradient * context.images, values, "lrp")


@method("attnlrp", kind="pixels", title="AttnLRP", rectified=False, layered=False, top=1)
def attnlrp(context: MethodContext, *, values: str = "magnitude") -> Value:
    """Layer-wise relevance propagation for transformers: also through attention, normalization and gates.

    Linear operators share relevance out in proportion to their terms. Activations pass it on. A product of two computed
    tensors, such as attention times values, gives half to each. Softmax passes R_i = x_i (R_i - y_i sum_j R_j) back.
    The deviation of a normalization counts as a constant; group and instance normalization go back as derivatives do.

    Source:
        Achtibat, Hatefi, Dreyer, Jain, Wiegand, Lapuschkin, Samek: AttnLRP: Attention-Aware Layer-Wise Relevance
        Propagation for Transformers. ICML 2024, section 3.

    Args:
        context: The image.
        values: ``"magnitude"``, or ``"signed"``: what counts against the class is negative.

    Example:
        >>> explainer = camrt.explain_graph(vit, method="attnlrp", target="cup")  # doctest: +SKIP
    """
    gradient = context.pixels(context.first, modifier=Relevance())
    return _summed(context, gradient * context.images, values, "attnlrp")


@method("deeplift", kind="pixels", title="DeepLIFT", rectified=False, layered=False, again=True, top=1)
def deeplift(context: MethodContext, *, baseline: str = "black", values: str = "magnitude") -> Value:
    """What each pixel adds to the score's distance from that of a baseline (the rescale rule).

    The derivative times X - B, where the slope of an activation is (y - y_B) / (x - x_B), from the run on the baseline
    B. Max pooling gives to the maxima of both runs. In a network of sums, activations of one input and max pooling, the
    map adds up to y_c(X) - y_c(B); products of features, as in attention, go back as derivatives do.

    Source:
        Shrikumar, Greenside, Kundaje: Learning Important Features Through Propagating Activation Differences. ICML
        2017, section 3.5.1. Max pooling as captum has it.

    Args:
        context: The image.
        baseline: ``"black"``, or ``"mean"``: the mean of the network's preprocessing.
        values: ``"magnitude"``, or ``"signed"``: what counts against the class is negative.

    Example:
        >>> explainer = camrt.explain_graph(model, method="deeplift")  # doctest: +SKIP
    """
    if baseline not in ("black", "mean"):
        raise CamrtError(f"found deeplift's baseline {baseline!r}, expected black or mean")
    empty = black(context.preprocess, context.crops) if baseline == "black" else np.zeros((1, 3, 1, 1), np.float32)
    images = context.images
    begin = images * 0 + empty[None]
    run = context.again(begin.reshape(-1, 3, context.side, context.side))
    prefix = run.image[: -len(context.first.image)]
    gradient = context.pixels(context.first, modifier=Rescale(lambda tensor: f"{prefix}{tensor}"))
    return _summed(context, gradient * (images - begin), values, "deeplift")


def _summed(context: MethodContext, added: Value, values: str, name: str) -> Value:
    """The sum over the three channels, or its magnitude: (N, crops, side, side)."""
    if values not in ("magnitude", "signed"):
        raise CamrtError(f"found {name}'s values {values!r}, expected magnitude or signed")
    found = context.named(added).sum(2)
    return found if values == "signed" else abs(found)
