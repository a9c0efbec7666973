"""The derivative summed over the positions of each map, from fewer numbers than the derivative itself.

Grad-CAM takes the mean of dy/dA_k(i, j) over i and j. The sum is the derivative by a shift of the whole map A_k.
Maximum and average pooling shift by as much: each window passes its cotangent on in shares that add up to 1. So the
sums are those of the pooled features, and nothing is scattered to the maxima. Where a linear layer reads the flattened
features, the sum of g W over the positions is g times the sum of W: for VGG16 a matrix of 4096 x 512 in place of 4096 x
25088, which takes as long to read as a tenth of the forward pass. The sums also pass through a convolution of 1 x 1:
for SqueezeNet, a product of 5 x 1000 x 512 replaces convolutions of five classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx

from camrt.graph.layers import FeatureMap
from camrt.graph.sizes import Sizes
from camrt.graph.view import GraphView, attributes_of, operator_of

_RESHAPING = {"Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze"}
_POOLING = {"MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "ReduceMean"}


@dataclass(frozen=True, eq=False)
class SummedAt:
    """Where the sums of a derivative over each map are taken.

    Attributes:
        tensor: The tensor to differentiate by.
        positions: How many numbers of a channel its derivative has, one after the other: they are to be added.
        weights: (outputs, channels): what these sums (N, outputs) are then to be multiplied by.
        kernel: The tensor of such weights, (outputs, channels, 1, 1), where they stand in the graph already.
    """

    tensor: str
    positions: int = 1
    weights: np.ndarray | None = None
    kernel: str | None = None


def summed_at(view: GraphView, sizes: Sizes, grid: FeatureMap, logits: str) -> SummedAt | None:
    """Find where the sums of a derivative over each map of a layer can be taken with the least work.

    Args:
        view: The network.
        sizes: Its sizes.
        grid: The layer.
        logits: What is differentiated.

    Returns:
        The layer itself where nothing behind it can be skipped; None where its channels are not on axis 1.
    """
    if grid.channels_axis != 1 or grid.num_prefix_tokens is not None:
        return None
    needed = {id(node) for node in view.needed_for([logits])}
    found, tensor = SummedAt(grid.tensor, grid.positions), grid.tensor
    while tensor != logits:
        readers = [node for node in view.consumers.get(tensor, []) if id(node) in needed]
        if len(readers) != 1 or readers[0].input[0] != tensor:
            break
        node = readers[0]
        tensor, size = node.output[0], _per_image(sizes.shape(node.output[0]))
        if size is None:
            break
        if not _keeps_sums(view, sizes, node, grid.channels):
            outputs = _pointwise(sizes, node, grid.channels)
            if outputs is not None:
                return SummedAt(tensor, size // outputs, kernel=node.input[1])
            weights = _summed_weights(view, sizes, node, grid.channels)
            return found if weights is None else SummedAt(tensor, weights=weights)
        found = SummedAt(tensor, size // grid.channels)
    return found


def _keeps_sums(view: GraphView, sizes: Sizes, node: onnx.NodeProto, channels: int) -> bool:
    """Whether the cotangents at a node's input add up, channel by channel, to those at its output."""
    kind, attributes = operator_of(node), attributes_of(node)
    before, after = (sizes.shape(name) for name in (node.input[0], node.output[0]))
    if kind == "Dropout":
        return len(node.input) < 3  # the third input may ask for training
    if kind in _RESHAPING:  # the numbers of an image must stay those of one image
        return _per_image(before) == _per_image(after) is not None
    if kind not in _POOLING or before is None or len(before) != 4 or before[1] != channels:
        return False
    if kind == "AveragePool":  # padding that is counted takes a share
        counts = attributes.get("count_include_pad", 0)
        return not counts or not (any(attributes.get("pads", ())) or _hangs_over(attributes))
    if kind == "ReduceMean":
        axes = view.axes_of(node)
        return axes is not None and sorted(axis % 4 for axis in axes) == [2, 3]
    return True


def _pointwise(sizes: Sizes, node: onnx.NodeProto, channels: int) -> int | None:
    """How many channels a convolution gives that takes each position alone; None for other nodes."""
    kernel, attributes = sizes.shape(node.input[1]) if operator_of(node) == "Conv" else None, attributes_of(node)
    if kernel is None or kernel[1:] != (channels, 1, 1) or attributes.get("group", 1) != 1:
        return None
    is_plain = all(stride == 1 for stride in attributes.get("strides", ())) and not any(attributes.get("pads", ()))
    return kernel[0] if is_plain else None


def _hangs_over(attributes: dict[str, object]) -> bool:
    """Whether windows may reach beyond the image without explicit padding."""
    return bool(attributes.get("ceil_mode", 0)) or attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")


def _per_image(shape: tuple[int | None, ...] | None) -> int | None:
    """How many numbers of a tensor belong to an image; None where that is not known."""
    sizes = None if not shape or shape[0] is not None else [size for size in shape[1:] if size is not None]
    return math.prod(sizes) if sizes is not None and shape is not None and len(sizes) == len(shape) - 1 else None


def _summed_weights(view: GraphView, sizes: Sizes, node: onnx.NodeProto, channels: int) -> np.ndarray | None:
    """The weights (outputs, channels) of a linear layer behind flattened features, summed over the positions.

    Returns:
        None where the node is no such layer, or each channel has one position: then nothing is saved.
    """
    kind, attributes = operator_of(node), attributes_of(node)
    shape = sizes.shape(node.input[0])
    if kind not in ("Gemm", "MatMul") or attributes.get("transA", 0) or shape is None or len(shape) != 2:
        return None
    weights = view.constant(node.input[1])
    if weights is None or weights.ndim != 2:
        return None
    rows = weights if attributes.get("transB", 0) else weights.T
    positions = rows.shape[1] // channels
    if positions < 2 or rows.shape[1] % channels:
        return None
    summed = rows.reshape(len(rows), channels, positions).sum(axis=2, dtype=np.float64)
    return np.asarray(summed * float(attributes.get("alpha", 1.0)), weights.dtype)
