"""FullGrad: what the image and every bias add to the score."""

from __future__ import annotations

import numpy as np

from camrt.graph.layers import dependents
from camrt.graph.methods import method
from camrt.graph.methods.context import MethodContext
from camrt.graph.values import Value, total
from camrt.graph.view import operator_of

_LEAST = 1e-7


@method("fullgrad", kind="pixels", title="FullGrad", rectified=False, layered=False, top=1)
def fullgrad(context: MethodContext) -> Value:
    """The derivative times the input, and at every convolution the derivative times its bias.

    M = sum over channels of psi(X dy_c/dX) + sum over convolutions and channels of psi(b dy_c/dz), where z is what
    a convolution gives, b its bias, and psi takes the magnitude, scales each map to 0..1 and enlarges it to the crop
    (bilinear). Biases are those of the graph: exporters put the shift of batch normalization into them. Those of linear
    layers, which have no position, are left out. Without biases the map is that of the input alone.

    Source:
        Srinivas, Fleuret: Full-Gradient Representation for Neural Network Visualization. NeurIPS 2019, equation 5.

    Example:
        >>> explainer = camrt.explain_graph(model, method="fullgrad")  # doctest: +SKIP
    """
    biases = _biases(context)
    gradients = context.backward(context.first, [context.first.image, *biases])
    crops, side = len(context.crops), context.side
    pixels = gradients.pop(context.first.image).reshape(-1, crops, 3, side, side)
    maps = [_scaled(pixels * context.images).sum(2)]
    for tensor, bias in biases.items():
        z = context.tensor(tensor)
        channels, height, width = z.fixed(1, 2, 3)
        apart = gradients[tensor].reshape(-1, crops, channels, height, width) * bias.reshape(-1, 1, 1)
        maps.append(_enlarged(_scaled(apart).sum(2), height, width, side))
    return total(maps)


def _biases(context: MethodContext) -> dict[str, np.ndarray]:
    """The output of each convolution with a bias on the way to the scores, and that bias."""
    view, found = context.view, dict[str, np.ndarray]()
    behind = dependents(view, context.first.image)
    for node in view.needed_for([context.first.logits]):
        if operator_of(node) != "Conv" or len(node.input) < 3 or node.output[0] not in behind:
            continue
        bias = view.constant(node.input[2])
        if bias is not None and bias.any() and context.tensor(node.output[0]).rank == 4:
            found[node.output[0]] = bias.astype(np.float32)
    return found


def _scaled(maps: Value) -> Value:
    """The magnitude of each map (N, crops, channels, height, width), scaled to 0..1."""
    large = abs(maps)
    above = large - large.min(3, 4, keepdims=True)
    return above / (above.max(3, 4, keepdims=True) + _LEAST)


def _enlarged(maps: Value, height: int, width: int, side: int) -> Value:
    """Maps (N, crops, height, width), at the crops' size by bilinear interpolation: (N, crops, side, side)."""
    return maps.along(3, _bilinear(width, side)).along(2, _bilinear(height, side))


def _bilinear(size: int, larger: int) -> np.ndarray:
    """The matrix of bilinear interpolation between the centers of pixels: (larger, size)."""
    places = ((np.arange(larger) + 0.5) * size / larger - 0.5).clip(0, size - 1)
    return np.asarray(np.maximum(1 - np.abs(places[:, None] - np.arange(size)), 0), np.float32)
