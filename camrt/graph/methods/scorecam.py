"""Score-CAM: the weights are the scores of the image masked by each map."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from camrt.errors import CamrtError
from camrt.graph.methods import method
from camrt.graph.methods.context import Layer
from camrt.graph.values import Value

_TOGETHER = 16  # images that one run of the network gets, at most, for each image that is explained
_LEAST = 1e-8


@method("scorecam", kind="features", title="Score-CAM", gradients=False, again=True)
def scorecam(layer: Layer, *, channels: int = 0) -> Value:
    """The score of the class when the network sees the image through one map alone.

    L_c = ReLU(sum_k a_k A_k) with a = softmax over k of y_c(X * s(U(A_k))): U enlarges the map to the image (bilinear),
    s scales it to 0..1. The score of a baseline, which the paper subtracts, is the same for all k and cancels in the
    softmax. Needs no gradients, but one run of the network for each channel, 16 at a time.

    Source:
        Wang, Wang, Du, Yang, Zhang, Ding, Mardziel, Hu: Score-CAM: Score-Weighted Visual Explanations for
        Convolutional Neural Networks. CVPR Workshops 2020, definitions 2 and 3, algorithm 1.

    Args:
        layer: The features.
        channels: The number of maps that are tried, those of the largest variance; 0 for all of them.

    Example:
        >>> explainer = camrt.explain_graph(model, method="scorecam", settings={"channels": 64})  # doctest: +SKIP
    """
    if channels < 0:
        raise CamrtError(f"found scorecam's channels {channels}, expected 0 (all) or more")
    context, grid, side = layer.context, layer.grid, layer.context.side
    crops, tried = len(context.crops), min(channels or layer.channels, layer.channels)
    features = _most_varied(layer, tried) if tried < layer.channels else layer.features
    least = features.min(-1, keepdims=True)
    masks = (features - least) / (features.max(-1, keepdims=True) - least + _LEAST)
    images = context.images.unsqueeze(2)  # (N, crops, 1, 3, side, side)
    together = max(size for size in range(1, max(1, _TOGETHER // crops) + 1) if tried % size == 0)
    masks = masks.reshape(-1, crops, tried // together, together, layer.positions)
    read = context.reader(together)

    def scored(number: Value) -> Value:
        """The scores of the image behind some of the maps: (N, crops, count, together)."""
        # Gather reads the number where it is. A Slice would wait for it on the CPU.
        some = masks.op("Gather", number, shape=(*masks.shape[:2], *masks.shape[3:]), axis=2)
        planes = some.reshape(-1, together, grid.height, grid.width)
        scales = np.array([1, 1, side / grid.height, side / grid.width])
        large = planes.op("Resize", "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
        large = large.reshape(-1, crops, together, 1, side, side)
        return read(context.logits(context.again((images * large).reshape(-1, 3, side, side))))

    runs = context.collected(tried // together, scored)  # (runs, N, crops, count, together)
    said = runs.transpose(1, 2, 3, 0, 4).reshape(-1, crops, context.count, tried)
    return layer.weighted(said.op("Softmax", axis=3).lead_from(2), features)


def _most_varied(layer: Layer, tried: int) -> Value:
    """The maps of the largest variance: (N, crops, tried, positions)."""
    features, builder = layer.features, layer.context.builder
    centred = features - features.mean(-1, keepdims=True)
    outputs = [builder.name("largest"), builder.name("chosen")]
    variance = (centred * centred).mean(-1)
    _, name = builder.nodes_of("TopK", [variance.name, builder.shape(tried)], outputs, axis=2)
    chosen = Value(builder, name, (*features.shape[:2], tried), TensorProto.INT64)
    each = chosen.unsqueeze(3).expand(1, 1, 1, layer.positions)
    return features.op("GatherElements", each, shape=each.shape, axis=2)
