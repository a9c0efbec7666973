"""Which axis of a tensor the channels are on.

ONNX tensors do not say it: ConvNeXt, Swin and MambaOut transpose (N, channels, height, width) to (N, height, width,
channels) and back, and transformers have (N, tokens, channels). But operators treat the channels as such: a convolution
has them on axis 1, a linear layer and a layer normalization on the last axis. So the axes of a tensor are followed
along the graph, in both directions, until an operator tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import onnx

from camrt.graph.view import GraphView, Shape, attributes_of, described, operator_of

ShapeOf = Callable[[str], Shape | None]
_FAR = 400  # tensors that are looked at for an answer

# Operators of images and sequences: the channels of their first input and output are on axis 1.
_CHANNELS_FIRST = {
    "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool",
    "GlobalMaxPool", "GlobalLpPool", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN",
    "DepthToSpace", "SpaceToDepth", "Upsample",
}  # fmt: skip
_LAST_AXIS = {"LayerNormalization", "RMSNormalization"}
# Operators whose output has the axes of each input that has as many.
_KEEPING = {
    "Abs", "Add", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Concat", "CumSum", "DequantizeLinear", "Div",
    "DynamicQuantizeLinear", "Dropout", "Elu", "Erf", "Exp", "Expand", "Floor", "Gelu", "HardSigmoid", "HardSwish",
    "Identity", "LeakyRelu", "Log", "LogSoftmax", "LpNormalization", "Max", "Mean", "Min", "Mish", "Mul", "Neg",
    "PRelu", "Pad", "Pow", "QuantizeLinear", "Reciprocal", "Relu", "Resize", "Round", "Selu", "Shrink", "Sigmoid",
    "Sign", "Slice", "Softmax", "Softplus", "Softsign", "Split", "Sqrt", "Sub", "Sum", "Swish", "Tanh",
    "ThresholdedRelu", "Tile", "Where",
}  # fmt: skip
_RESHAPING = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}
_POOLING_REDUCTIONS = {"ReduceMean", "ReduceMax", "ReduceL2", "ReduceSum"}


@dataclass(frozen=True)
class Evidence:
    """An operator that tells the axis of the channels.

    Attributes:
        axis: The axis, of the tensor that was asked for.
        source: The operator, for people.
    """

    axis: int
    source: str


def channels_of(view: GraphView, tensor: str, shape_of: ShapeOf) -> list[Evidence]:
    """Find the axis of a tensor's channels.

    Args:
        view: The model.
        tensor: A tensor of three or four axes.
        shape_of: Gives the shape of a tensor, as far as it is known.

    Returns:
        What the nearest operators say that treat an axis as channels: nothing where there are none, several where they
        contradict each other.
    """
    shape = shape_of(tensor)
    if shape is None:
        return []
    level: dict[str, Axes] = {tensor: tuple(range(len(shape)))}
    seen = set(level)
    while level and len(seen) < _FAR:
        found: dict[int, Evidence] = {}
        following: dict[str, Axes] = {}
        for name, axes in level.items():
            for node in _neighbors(view, name):
                told = _told(view, node, name, shape_of)
                if told is not None and told in axes[1:]:  # axis 0 counts the images
                    found.setdefault(axes.index(told), Evidence(axes.index(told), described(node)))
                for other, moved in _along(node, name, axes, shape_of):
                    if other not in seen:
                        seen.add(other)
                        following[other] = moved
            if name in _inputs(view) and 1 in axes[1:]:
                found.setdefault(axes.index(1), Evidence(axes.index(1), f"the input {name!r}"))
        if found:
            return list(found.values())
        level = following
    return []


Axes = tuple[int | None, ...]  # for each axis of the tensor that was asked for: the axis that it is of another tensor


def _inputs(view: GraphView) -> set[str]:
    """Inputs that are images: N x channels x height x width, as everything here takes them."""
    return {value.name for value in view.inputs if len(value.type.tensor_type.shape.dim) == 4}


def _neighbors(view: GraphView, tensor: str) -> Iterator[onnx.NodeProto]:
    if tensor in view.producers:
        yield view.producers[tensor]
    yield from view.consumers.get(tensor, [])


# ----------------------------------------------------------------------------------------------------- what tells


def _told(view: GraphView, node: onnx.NodeProto, tensor: str, shape_of: ShapeOf) -> int | None:
    """The axis of a node's input or output that it treats as channels, where it does."""
    shape, kind = shape_of(tensor), operator_of(node)
    if shape is None or not node.input or tensor not in (node.input[0], node.output[0]):
        return None
    last = len(shape) - 1
    if kind in _CHANNELS_FIRST:
        return 1
    if kind in _LAST_AXIS:
        return last if attributes_of(node).get("axis", -1) in (-1, last) else None
    if kind in ("MatMul", "MatMulInteger") and len(node.input) >= 2 and view.is_constant(node.input[1]):
        weights = shape_of(node.input[1])
        return last if weights is not None and len(weights) == 2 else None
    if kind in _POOLING_REDUCTIONS and (tensor == node.input[0] or attributes_of(node).get("keepdims", 1)):
        return _told_by_reduction(view, node, len(shape))
    return None


def _told_by_reduction(view: GraphView, node: onnx.NodeProto, rank: int) -> int | None:
    """Pooling leaves the channels; a layer normalization in single operators takes the mean over them."""
    axes = view.axes_of(node)
    if axes is None:
        return None
    reduced = {axis % rank for axis in axes}
    left = set(range(1, rank)) - reduced
    if 0 in reduced or len(left) + len(reduced) != rank - 1:
        return None
    if len(reduced) == 1 and node.op_type == "ReduceMean" and attributes_of(node).get("keepdims", 1):
        around = [operator_of(reader) for reader in view.consumers.get(node.output[0], [])]
        if "Sub" in around:
            return next(iter(reduced))
    return next(iter(left)) if len(left) == 1 and rank == 4 else None


# ------------------------------------------------------------------------------------------------- following axes


def _along(node: onnx.NodeProto, tensor: str, axes: Axes, shape_of: ShapeOf) -> Iterator[tuple[str, Axes]]:
    """The tensors on the other side of a node, and where the axes are there."""
    kind, is_read = operator_of(node), tensor in node.input
    if kind in _KEEPING:
        rank = len(shape_of(tensor) or ())
        others = node.output if is_read else node.input
        for other in others:
            if other and len(shape_of(other) or ()) == rank:
                yield other, axes
    elif kind == "Transpose" and node.output:
        perm = attributes_of(node).get("perm")
        rank = len(shape_of(tensor) or ())
        order = list(perm) if perm is not None else list(range(rank))[::-1]
        if len(order) == rank:  # output axis i is input axis order[i]
            to = {old: new for new, old in enumerate(order)} if is_read else dict(enumerate(order))
            yield (node.output[0] if is_read else node.input[0]), _moved(axes, to)
    elif kind in _RESHAPING and tensor in (node.input[0], node.output[0]):
        other = node.output[0] if is_read else node.input[0]
        here, there = shape_of(tensor), shape_of(other)
        if here is not None and there is not None:
            yield other, _moved(axes, _aligned(here, there))


def _moved(axes: Axes, to: dict[int, int]) -> Axes:
    return tuple(None if axis is None else to.get(axis) for axis in axes)


def _aligned(here: Sequence[int | str | None], there: Sequence[int | str | None]) -> dict[int, int]:
    """The axes that a Reshape leaves alone: those behind which, and in which, are as many elements before as after."""
    pairs = {0: 0} if here and there and here[0] == there[0] else {}
    i, j = len(here) - 1, len(there) - 1
    while i > 0 and j > 0:
        mine, its, first_i, first_j = here[i], there[j], i, j
        while mine != its and isinstance(mine, int) and isinstance(its, int) and i > 0 and j > 0:
            if mine < its:
                i -= 1
                mine = _product(mine, here[i])
            else:
                j -= 1
                its = _product(its, there[j])
        if mine != its or not isinstance(mine, int):
            return pairs
        if (first_i, first_j) == (i, j):
            pairs[i] = j
        i, j = i - 1, j - 1
    return pairs


def _product(size: int, other: int | str | None) -> int | None:
    return size * other if isinstance(other, int) else None
