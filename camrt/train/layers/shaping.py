"""Layers that move values, choose or add them up."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from camrt.train.registry import Operation, Place, builds
from converters.net import MANY
from converters.shape import show


@builds("Concat")
def concat(place: Place) -> Operation:
    """Blobs joined along an axis."""
    place.layer.expect(bottoms=range(1, MANY), tops=1)
    param = place.layer.params.concat_param
    if param.HasField("axis") and param.HasField("concat_dim"):
        raise place.error("found axis and its old name concat_dim, expected one of the two")
    axis = place.axis(param.concat_dim if param.HasField("concat_dim") else param.axis)
    return Operation(lambda blobs, bottoms: torch.cat(list(bottoms), axis) if len(bottoms) > 1 else bottoms[0])


@builds("Slice")
def slice_(place: Place) -> Operation:
    """A blob cut along an axis, at given points or into equal parts."""
    layer, param = place.layer, place.layer.params.slice_param
    layer.expect(bottoms=1, tops=range(1, MANY))
    if param.HasField("axis") and param.HasField("slice_dim"):
        raise place.error("found axis and its old name slice_dim, expected one of the two")
    axis = place.axis(param.slice_dim if param.HasField("slice_dim") else param.axis)
    size, parts = place.shapes[0][axis], len(layer.tops)
    if param.slice_point:
        lengths = [end - begin for begin, end in itertools.pairwise([0, *param.slice_point, size])]
    else:
        lengths = [size // parts] * parts
    if len(lengths) != parts or min(lengths) < 1 or sum(lengths) != size:
        raise place.error(
            f"found slice points {list(param.slice_point)} for {parts} tops and {size} values, expected {parts - 1} "
            "increasing ones within them, or none and a size that the tops divide"
        )
    if axis == 0 and not param.slice_point:  # the batch may be another one
        return Operation(lambda blobs, bottoms: bottoms[0].tensor_split(parts))
    return Operation(lambda blobs, bottoms: bottoms[0].split(lengths, axis))


@builds("Split")
def split(place: Place) -> Operation:
    """A blob under several names."""
    place.layer.expect(bottoms=1, tops=range(1, MANY))
    count = len(place.layer.tops)
    return Operation(lambda blobs, bottoms: [bottoms[0]] * count)


@builds("Silence")
def silence(place: Place) -> Operation:
    """Takes blobs that are not to be outputs."""
    return Operation(lambda blobs, bottoms: [])


@builds("Flatten")
def flatten(place: Place) -> Operation:
    """Several neighbouring axes as one."""
    place.layer.expect(bottoms=1, tops=1)
    param = place.layer.params.flatten_param
    first, last = place.axis(param.axis), place.axis(param.end_axis)
    if first > last:
        raise place.error(
            f"found axis {param.axis} for {show(place.shapes[0])}, expected it before end_axis {param.end_axis}"
        )
    return Operation(lambda blobs, bottoms: bottoms[0].flatten(first, last))


@builds("Reshape")
def reshape(place: Place) -> Operation:
    """Another shape for the same values: 0 keeps a size, -1 takes what is left."""
    place.layer.expect(bottoms=1, tops=1)
    param, shape = place.layer.params.reshape_param, place.shapes[0]
    # A negative axis counts from the end, -1 standing after the last: where axes are to be added.
    start = param.axis if param.axis >= 0 else len(shape) + param.axis + 1
    end = len(shape) if param.num_axes == -1 else start + param.num_axes
    if not 0 <= start <= end <= len(shape) or param.num_axes < -1:
        raise place.error(f"found axis {param.axis} and num_axes {param.num_axes}, expected them within {show(shape)}")
    dims = list(param.shape.dim)
    if any(dim < -1 for dim in dims) or dims.count(-1) > 1:
        raise place.error(f"found the sizes {dims}, expected 0, at most one -1, and positive numbers")
    if any(dim == 0 and start + offset >= len(shape) for offset, dim in enumerate(dims)):
        raise place.error(f"found the sizes {dims} from axis {start} on, whose 0 copy axes that {show(shape)} lacks")

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        x = bottoms[0]
        middle = [x.shape[start + offset] if dim == 0 else dim for offset, dim in enumerate(dims)]
        return x.reshape((*x.shape[:start], *middle, *x.shape[end:]))

    return Operation(forward)


@builds("Permute")
def permute(place: Place) -> Operation:
    """The axes in another order; those that are not named follow."""
    place.layer.expect(bottoms=1, tops=1)
    order = list(place.layer.params.permute_param.order)
    order += [axis for axis in range(len(place.shapes[0])) if axis not in order]
    return Operation(lambda blobs, bottoms: bottoms[0].permute(order))


@builds("ShuffleChannel")
def shuffle_channel(place: Place) -> Operation:
    """The first channel of each group, then the second of each, and so on (Zhang et al. 2018)."""
    place.layer.expect(bottoms=1, tops=1)
    group = place.layer.params.shuffle_channel_param.group
    return Operation(lambda blobs, bottoms: bottoms[0].unflatten(1, (group, -1)).transpose(1, 2).flatten(1, 2))


@builds("Tile")
def tile(place: Place) -> Operation:
    """A blob repeated along an axis."""
    place.layer.expect(bottoms=1, tops=1)
    param = place.layer.params.tile_param
    if param.tiles < 1:
        raise place.error(f"found tiles {param.tiles}, expected 1 or more")
    axis = place.axis(param.axis)
    repeats = [param.tiles if a == axis else 1 for a in range(len(place.shapes[0]))]
    return Operation(lambda blobs, bottoms: bottoms[0].repeat(repeats))


@builds("Crop")
def crop(place: Place) -> Operation:
    """The first bottom cut to the second's sizes from an axis on."""
    place.layer.expect(bottoms=2, tops=1)
    param = place.layer.params.crop_param
    rank, first = len(place.shapes[0]), place.axis(param.axis)
    offsets = list(param.offset) or [0]
    offsets = offsets * (rank - first) if len(offsets) == 1 else offsets
    if len(offsets) != rank - first or len(place.shapes[1]) != rank:
        raise place.error(
            f"found {len(offsets)} offsets and a second bottom of {len(place.shapes[1])} axes, expected one offset "
            f"or {rank - first}, and {rank} axes"
        )

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        x, reference = bottoms
        for axis, offset in enumerate(offsets, start=first):
            x = x.narrow(axis, offset, reference.shape[axis])
        return x

    return Operation(forward)
