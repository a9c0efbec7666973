"""Score-CAM: the weights are what the network says of the image behind each map."""

from __future__ import annotations

import numpy as np

from camrt.errors import CamrtError
from camrt.graph.methods import method
from camrt.graph.methods.scene import Layer

_TOGETHER = 16  # images that one run of the network gets, at most, for each image that is explained
_LEAST = 1e-8


@method("scorecam", kind="features", title="Score-CAM", gradients=False, again=True, protocol="center")
def scorecam(layer: Layer, *, channels: int = 0) -> str:
    """How sure the network is of the class when it sees the image through one map alone.

    L_c = ReLU(sum_k a_k A_k) with a = softmax over k of y_c(X * s(U(A_k))): U enlarges the map to the image (bilinear),
    s brings it to 0..1. The score of a baseline, which the paper subtracts, is the same for all k and falls out of the
    softmax. Needs no gradients, but one run of the network for each channel, 16 at a time.

    Source:
        Wang, Wang, Du, Yang, Zhang, Ding, Mardziel, Hu: Score-CAM: Score-Weighted Visual Explanations for
        Convolutional Neural Networks. CVPR Workshops 2020, definitions 2 and 3, algorithm 1.

    Args:
        layer: The features.
        channels: How many maps are tried: those of the largest variance; 0 for all of them.

    Example:
        >>> explainer = camrt.explain_graph(model, method="scorecam", settings={"channels": 64})  # doctest: +SKIP
    """
    if channels < 0:
        raise CamrtError(f"found scorecam's channels {channels}, expected 0 (all) or more")
    builder, scene, grid = layer.builder, layer.scene, layer.grid
    crops, tried = len(scene.crops), min(channels or layer.channels, layer.channels)
    features = _liveliest(layer, tried) if tried < layer.channels else layer.features
    least = builder.reduce("Min", features, [3], keepdims=True)
    spread = builder.node("Sub", [builder.reduce("Max", features, [3], keepdims=True), least])
    above = builder.node("Sub", [features, least])
    masks = builder.node("Div", [above, builder.node("Add", [spread, builder.constant(_LEAST)])])
    images = builder.unsqueeze(scene.images(), 2)  # (N, crops, 1, 3, side, side)
    # (N, crops * together, count): which scores are read, of each run
    together = max(size for size in range(1, max(1, _TOGETHER // crops) + 1) if tried % size == 0)
    wanted = builder.node("Expand", [builder.unsqueeze(scene.classes, 1), builder.shape(1, crops * together, 1)])

    def scored(number: str) -> str:
        """The scores of the image behind some of the maps: (N, crops, count, together)."""
        begin = builder.reshape(builder.node("Mul", [number, builder.constant(together, dtype=np.int64)]), 1)
        end = builder.node("Add", [begin, builder.shape(together)])
        some = builder.node("Slice", [masks, begin, end, builder.shape(2)])
        planes = builder.reshape(some, -1, together, grid.height, grid.width)
        scales = builder.constant([1, 1, scene.side / grid.height, scene.side / grid.width], "scales")
        large = builder.node("Resize", [planes, "", scales], mode="linear", coordinate_transformation_mode="half_pixel")
        large = builder.reshape(large, -1, crops, together, 1, scene.side, scene.side)
        run = scene.again(builder.reshape(builder.node("Mul", [images, large]), -1, 3, scene.side, scene.side))
        if scene.targets.kind == "sum":
            sums = builder.reduce("Sum", run.logits, range(1, scene.view.rank(run.logits) or 2))
            found = builder.reshape(sums, -1, crops, together, 1)
        else:
            rows = builder.reshape(run.logits, -1, crops * together, scene.scores.classes)
            read = builder.node("GatherElements", [rows, wanted], axis=2)
            found = builder.reshape(read, -1, crops, together, scene.count)
        return builder.node("Transpose", [found], perm=[0, 1, 3, 2])

    runs = scene.collected(tried // together, scored)  # (runs, N, crops, count, together)
    told = builder.node("Transpose", [runs], perm=[1, 2, 3, 0, 4])
    weights = builder.node("Softmax", [builder.reshape(told, -1, crops, scene.count, tried)], axis=3)
    return builder.node("MatMul", [weights, features])


def _liveliest(layer: Layer, tried: int) -> str:
    """The maps of the largest variance: (N, crops, tried, places)."""
    builder = layer.builder
    mean = builder.reduce("Mean", layer.features, [3], keepdims=True)
    centred = builder.node("Sub", [layer.features, mean])
    variance = builder.reduce("Mean", builder.node("Mul", [centred, centred]), [3])
    _, chosen = builder.nodes_of(
        "TopK", [variance, builder.shape(tried)], [builder.name("largest"), builder.name("chosen")], axis=2
    )
    each = builder.node("Expand", [builder.unsqueeze(chosen, 3), builder.shape(1, 1, 1, layer.places)])
    return builder.node("GatherElements", [layer.features, each], axis=2)
