"""The method where none is asked for: class activation maps where the network has their head, else Grad-CAM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from camrt.graph.head import NoHeadError, find_head
from camrt.graph.layers import has_positions
from camrt.graph.view import GraphView


@dataclass(frozen=True)
class Choice:
    """A method that was chosen for a network.

    Attributes:
        method: Its name: ``"cam"`` or ``"gradcam"``.
        reason: Why, in a phrase.
    """

    method: str
    reason: str


def default_method(
    view: GraphView,
    features: str | None = None,
    classifier: str | None = None,
    *,
    layers: Sequence[str] = (),
    scores: str | None = None,
    is_sum: bool = False,
) -> Choice:
    """Choose the method that fits a network and what is asked of it.

    At the last features of a network that ends in global average pooling and a linear layer, Grad-CAM is the class
    activation map up to a factor and the ReLU (Selvaraju et al. 2017, section 3.1), which then needs no gradient.

    Args:
        view: The network.
        features: The features that its metadata name.
        classifier: The linear layer that its metadata name.
        layers: The layers that the maps are to be made of.
        scores: The tensor that is to be explained.
        is_sum: Whether its sum is.
    """
    if is_sum:
        return Choice("gradcam", "a sum is explained, and class activation maps explain classes")
    try:
        head = find_head(view, features, classifier)
    except NoHeadError as error:
        return Choice("gradcam", f"the network has no head for class activation maps: {error.reason}")
    if scores not in (None, head.scores):
        return Choice("gradcam", f"the head for class activation maps gives {head.scores!r}, explained is {scores!r}")
    if tuple(layers) not in ((), (head.features,)):
        return Choice("gradcam", f"the head for class activation maps reads {head.features!r}, which was not named")
    if not has_positions(view, head.features):
        return Choice("gradcam", f"the head for class activation maps reads {head.features!r}, of one position")
    return Choice("cam", "the network ends in global average pooling and one linear layer")
