"""Layers that join, split, reshape, permute, repeat or crop blobs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from camrt.train.registry import LayerContext, Operation, builds
from converters.layer import MANY
from converters.shape import show


@builds("Concat")
def concat(context: LayerContext) -> Operation:
    """Concatenation of blobs along an axis."""
    context.layer.expect(bottoms=range(1, MANY), tops=1)
    param = context.layer.params.concat_param
    if param.HasField("axis") and param.HasField("concat_dim"):
        raise context.error("found axis and its old name concat_dim, expected one of the two")
    axis = context.axis(param.concat_dim if param.HasField("concat_dim") else param.axis)
    return Operation(lambda blobs, bottoms: torch.cat(list(bottoms), axis) if len(bottoms) > 1 else bottoms[0])


@builds("Slice")
def slice_(context: LayerContext) -> Operation:
    """Parts of a blob along an axis, split at given points or into equal sizes."""
    layer, param = context.layer, context.layer.params.slice_param
    layer.expect(bottoms=1, tops=range(1, MANY))
    if param.HasField("axis") and param.HasField("slice_dim"):
        raise context.error("found axis and its old name slice_dim, expected one of the two")
    axis = context.axis(param.slice_dim if param.HasField("slice_dim") else param.axis)
    size, parts = context.shapes[0][axis], len(layer.tops)
    if param.slice_point:
        lengths = [end - begin for begin, end in itertools.pairwise([0, *param.slice_point, size])]
    else:
        lengths = [size // parts] * parts
    if len(lengths) != parts or min(lengths) < 1 or sum(lengths) != size:
        raise context.error(
            f"found slice points {list(param.slice_point)} for {parts} tops and an axis of size {size}, expected "
            f"{parts - 1} increasing points within it, or none and a size that is divisible by the number of tops"
        )
    if axis == 0 and not param.slice_point:  # the batch size may change between passes
        return Operation(lambda blobs, bottoms: bottoms[0].tensor_split(parts))
    return Operation(lambda blobs, bottoms: bottoms[0].split(lengths, axis))


@builds("Split")
def split(context: LayerContext) -> Operation:
    """Copies of a blob under several names."""
    context.layer.expect(bottoms=1, tops=range(1, MANY))
    count = len(context.layer.tops)
    return Operation(lambda blobs, bottoms: [bottoms[0]] * count)


@builds("Silence")
def silence(context: LayerContext) -> Operation:
    """No tops: the bottoms do not become outputs of the network."""
    return Operation(lambda blobs, bottoms: [])


@builds("Flatten")
def flatten(context: LayerContext) -> Operation:
    """Several consecutive axes merged into one."""
    context.layer.expect(bottoms=1, tops=1)
    param = context.layer.params.flatten_param
    first, last = context.axis(param.axis), context.axis(param.end_axis)
    if first > last:
        raise context.error(
            f"found axis {param.axis} for {show(context.shapes[0])}, expected an axis before end_axis {param.end_axis}"
        )
    return Operation(lambda blobs, bottoms: bottoms[0].flatten(first, last))


@builds("Reshape")
def reshape(context: LayerContext) -> Operation:
    """The same values in another shape. A size of 0 copies the bottom's, -1 is inferred."""
    context.layer.expect(bottoms=1, tops=1)
    param, shape = context.layer.params.reshape_param, context.shapes[0]
    # A negative axis counts from the end. -1 is the position after the last axis, where axes can be inserted.
    start = param.axis if param.axis >= 0 else len(shape) + param.axis + 1
    end = len(shape) if param.num_axes == -1 else start + param.num_axes
    if not 0 <= start <= end <= len(shape) or param.num_axes < -1:
        raise context.error(
            f"found axis {param.axis} and num_axes {param.num_axes}, expected them within {show(shape)}"
        )
    dims = list(param.shape.dim)
    if any(dim < -1 for dim in dims) or dims.count(-1) > 1:
        raise context.error(f"found the sizes {dims}, expected positive numbers, 0 and at most one -1")
    if any(dim == 0 and start + offset >= len(shape) for offset, dim in enumerate(dims)):
        raise context.error(f"found the sizes {dims} from axis {start} on: a 0 copies an axis that {show(shape)} lacks")

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        x = bottoms[0]
        middle = [x.shape[start + offset] if dim == 0 else dim for offset, dim in enumerate(dims)]
        return x.reshape((*x.shape[:start], *middle, *x.shape[end:]))

    return Operation(forward)


@builds("Permute")
def permute(context: LayerContext) -> Operation:
    """Permutation of the axes. Axes that are not listed follow in their order."""
    context.layer.expect(bottoms=1, tops=1)
    order = list(context.layer.params.permute_param.order)
    order += [axis for axis in range(len(context.shapes[0])) if axis not in order]
    return Operation(lambda blobs, bottoms: bottoms[0].permute(order))


@builds("ShuffleChannel")
def shuffle_channel(context: LayerContext) -> Operation:
    """Interleaved groups: the first channel of each group, then the second of each, ... (Zhang et al. 2018)."""
    context.layer.expect(bottoms=1, tops=1)
    group = context.layer.params.shuffle_channel_param.group
    return Operation(lambda blobs, bottoms: bottoms[0].unflatten(1, (group, -1)).transpose(1, 2).flatten(1, 2))


@builds("Tile")
def tile(context: LayerContext) -> Operation:
    """A blob repeated along an axis."""
    context.layer.expect(bottoms=1, tops=1)
    param = context.layer.params.tile_param
    if param.tiles < 1:
        raise context.error(f"found tiles {param.tiles}, expected 1 or more")
    axis = context.axis(param.axis)
    repeats = [param.tiles if a == axis else 1 for a in range(len(context.shapes[0]))]
    return Operation(lambda blobs, bottoms: bottoms[0].repeat(repeats))


@builds("Crop")
def crop(context: LayerContext) -> Operation:
    """The first bottom, cropped to the sizes of the second from an axis on."""
    context.layer.expect(bottoms=2, tops=1)
    param = context.layer.params.crop_param
    rank, first = len(context.shapes[0]), context.axis(param.axis)
    offsets = list(param.offset) or [0]
    offsets = offsets * (rank - first) if len(offsets) == 1 else offsets
    if len(offsets) != rank - first or len(context.shapes[1]) != rank:
        raise context.error(
            f"found {len(offsets)} offsets and a second bottom of {len(context.shapes[1])} axes, expected 1 or "
            f"{rank - first} offsets, and {rank} axes"
        )

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        x, reference = bottoms
        for axis, offset in enumerate(offsets, start=first):
            x = x.narrow(axis, offset, reference.shape[axis])
        return x

    return Operation(forward)
