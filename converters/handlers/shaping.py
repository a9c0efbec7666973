"""Layers that rearrange values without changing them."""

from __future__ import annotations

import itertools
import math

import numpy as np

from converters.graph import Graph
from converters.layer import MANY, Layer
from converters.registry import handles
from converters.shape import Dim, SymbolicDim, product, show, times


@handles("Concat", operators="Concat Identity")
def concat(layer: Layer, graph: Graph) -> None:
    """Concatenation along an axis."""
    layer.expect(bottoms=range(1, MANY), tops=1)
    param = layer.params.concat_param
    if param.HasField("axis") and param.HasField("concat_dim"):
        raise layer.error("found axis and its old name concat_dim, expected one of the two")
    axis = graph.axis(layer.bottoms[0], param.concat_dim if param.HasField("concat_dim") else param.axis)
    if len(layer.bottoms) == 1:
        graph.node("Identity", layer.bottoms, layer.tops)
    else:
        graph.concat(layer.bottoms, axis, layer.tops)


@handles("Slice", operators="Split Identity")
def slice_(layer: Layer, graph: Graph) -> None:
    """Split along an axis, at given points or into equal parts."""
    layer.expect(bottoms=1, tops=range(1, MANY))
    param = layer.params.slice_param
    if param.HasField("axis") and param.HasField("slice_dim"):
        raise layer.error("found axis and its old name slice_dim, expected one of the two")
    bottom, parts = layer.bottoms[0], len(layer.tops)
    axis = graph.axis(bottom, param.slice_dim if param.HasField("slice_dim") else param.axis)
    if parts == 1:
        graph.node("Identity", [bottom], layer.tops)
        return
    size = graph.fixed(graph.shape(bottom)[axis], "its size to split it")
    points = [0, *param.slice_point, size] if param.slice_point else [size * part // parts for part in range(parts + 1)]
    lengths = [end - begin for begin, end in itertools.pairwise(points)]
    if len(lengths) != parts or min(lengths) < 1 or (not param.slice_point and size % parts):
        raise layer.error(
            f"found slice points {list(param.slice_point)} for {parts} tops and {size} values, expected {parts - 1} "
            "increasing points within the axis, or none and a size that is a multiple of the number of tops"
        )
    shapes = [[length if a == axis else dim for a, dim in enumerate(graph.shape(bottom))] for length in lengths]
    graph.node("Split", [bottom, graph.constant(lengths, np.int64)], layer.tops, shapes=shapes, axis=axis)


@handles("Split", operators="Identity")
def split(layer: Layer, graph: Graph) -> None:
    """A blob under several names. Caffe inserts this layer where several layers read a blob."""
    layer.expect(bottoms=1, tops=range(1, MANY))
    for top in layer.tops:
        graph.node("Identity", [layer.bottoms[0]], [top])


@handles("Flatten", operators="Reshape Flatten")
def flatten(layer: Layer, graph: Graph) -> None:
    """A range of axes flattened into one."""
    bottom, top = layer.ends()
    param = layer.params.flatten_param
    first, last = graph.axis(bottom, param.axis), graph.axis(bottom, param.end_axis)
    shape = graph.shape(bottom)
    if first > last + 1:
        raise layer.error(f"found axis {param.axis} for {show(shape)}, expected it before end_axis {param.end_axis}")
    if first == 1 and last == len(shape) - 1:
        graph.flatten(bottom, 1, top)
        return
    joined = product(shape[first : last + 1])
    if joined is None:
        raise layer.error(f"found {show(shape)} for the blob {bottom!r}, expected at most one free axis")
    graph.reshape(bottom, (*shape[:first], joined, *shape[last + 1 :]), top)


@handles("Reshape", operators="Reshape")
def reshape(layer: Layer, graph: Graph) -> None:
    """A new shape for the same values: 0 copies a size, -1 infers it."""
    bottom, top = layer.ends()
    param = layer.params.reshape_param
    shape = graph.shape(bottom)
    # A negative axis counts from the end; -1 is the position after the last axis, to append axes.
    start = param.axis if param.axis >= 0 else len(shape) + param.axis + 1
    end = len(shape) if param.num_axes == -1 else start + param.num_axes
    if not 0 <= start <= end <= len(shape) or param.num_axes < -1:
        raise layer.error(f"found axis {param.axis} and num_axes {param.num_axes}, expected them within {show(shape)}")
    dims = list(param.shape.dim)
    if any(dim < -1 for dim in dims) or dims.count(-1) > 1:
        raise layer.error(f"found the sizes {dims}, expected zeros, at most one -1, and positive numbers")
    middle: list[Dim] = []
    for offset, dim in enumerate(dims):
        if dim == 0 and start + offset >= len(shape):
            raise layer.error(f"found a size of 0 (copy) for axis {start + offset}, which {show(shape)} does not have")
        middle.append(shape[start + offset] if dim == 0 else dim)
    target = [*shape[:start], *middle, *shape[end:]]
    if -1 in dims:
        target[start + dims.index(-1)] = _inferred(layer, graph, shape, target, start + dims.index(-1))
    graph.reshape(bottom, target, top)


def _inferred(layer: Layer, graph: Graph, shape: tuple[Dim, ...], target: list[Dim], hole: int) -> Dim:
    """The size that gives the target as many values as the bottom."""
    others = [dim for axis, dim in enumerate(target) if axis != hole]
    rest = list(shape)
    for dim in list(others):  # a free axis on both sides cancels
        if isinstance(dim, SymbolicDim) and dim in rest:
            others.remove(dim)
            rest.remove(dim)
    known = math.prod(graph.fixed(dim, "its size to infer another one") for dim in others)
    total = product(rest)
    if total is None or known < 1 or int(total) % known:
        raise layer.error(
            f"found {show(shape)}, which cannot become {show(target)} with one inferred size: expected "
            "sizes whose product divides it"
        )
    if isinstance(total, int):
        return total // known
    if total.factor % known:
        return graph.fixed(total, "its size to infer another one") // known
    return SymbolicDim(total.input, total.size, total.factor // known)


@handles("Tile", operators="Tile")
def tile(layer: Layer, graph: Graph) -> None:
    """Repetition along an axis."""
    bottom, top = layer.ends()
    param = layer.params.tile_param
    axis = graph.axis(bottom, param.axis)
    if param.tiles < 1:
        raise layer.error(f"found tiles {param.tiles}, expected 1 or more")
    shape = list(graph.shape(bottom))
    shape[axis] = times(shape[axis], param.tiles)
    repeats = [param.tiles if a == axis else 1 for a in range(len(shape))]
    graph.node("Tile", [bottom, graph.constant(repeats, np.int64)], top, shape=shape)


@handles("Crop", operators="Slice Identity")
def crop(layer: Layer, graph: Graph) -> None:
    """The first bottom cropped to the sizes of the second, from an axis on."""
    layer.expect(bottoms=2, tops=1)
    bottom, reference = layer.bottoms
    param = layer.params.crop_param
    rank = graph.rank(bottom)
    first = graph.axis(bottom, param.axis)
    offsets = list(param.offset) or [0]
    if len(offsets) == 1:
        offsets *= rank - first
    if len(offsets) != rank - first or graph.rank(reference) != rank:
        raise layer.error(
            f"found {len(offsets)} offsets and a second bottom of {graph.rank(reference)} axes, expected one offset "
            f"or {rank - first}, and {rank} axes"
        )
    starts, ends_, axes = [], [], []
    shape = list(graph.shape(bottom))
    for axis, offset in zip(range(first, rank), offsets, strict=True):
        wanted = graph.shape(reference)[axis]
        if (
            not offset
            and isinstance(shape[axis], SymbolicDim)
            and isinstance(wanted, SymbolicDim)
            and graph.same(shape[axis], wanted)
        ):
            continue  # the batch is not cropped
        size = graph.fixed(wanted, "the size to crop to")
        room = graph.fixed(shape[axis], "its size to split it")
        if offset + size > room:
            raise layer.error(
                f"found offset {offset} and size {size} for axis {axis}, expected at most {room} together"
            )
        if size != room:
            starts.append(offset)
            ends_.append(offset + size)
            axes.append(axis)
        shape[axis] = size
    if not axes:
        graph.node("Identity", [bottom], layer.tops)
        return
    numbers = [graph.constant(values, np.int64) for values in (starts, ends_, axes)]
    graph.node("Slice", [bottom, *numbers], layer.tops, shape=shape)


@handles("Permute", operators="Transpose", origin="SSD")
def permute(layer: Layer, graph: Graph) -> None:
    """A permutation of the axes; axes that are not named follow in their order."""
    bottom, top = layer.ends()
    named = list(layer.params.permute_param.order)
    rank = graph.rank(bottom)
    if len(set(named)) != len(named) or any(axis >= rank for axis in named):
        raise layer.error(f"found the order {named}, expected different axes below {rank}")
    graph.transpose(bottom, [*named, *(axis for axis in range(rank) if axis not in named)], top)


@handles("ShuffleChannel", operators="Reshape Transpose", origin="ShuffleNet")
def shuffle_channel(layer: Layer, graph: Graph) -> None:
    """Channel shuffle: the first channel of each group, then the second of each, and so on (Zhang et al. 2018)."""
    bottom, top = layer.ends()
    shape = graph.shape(bottom)
    if len(shape) < 2:
        raise layer.error(f"found {show(shape)} for the blob {bottom!r}, expected channels at axis 1")
    channels = graph.fixed(shape[1], "the number of channels")
    group = layer.params.shuffle_channel_param.group
    if group < 1 or channels % group:
        raise layer.error(f"found group {group} for {channels} channels, expected a divisor of the number of channels")
    rest = shape[2:]
    grouped = graph.reshape(bottom, (shape[0], group, channels // group, *rest))
    shuffled = graph.transpose(grouped, (0, 2, 1, *range(3, 3 + len(rest))))
    graph.reshape(shuffled, shape, top)


@handles("Reorg", operators="Reshape Transpose", origin="MobileNet-YOLO, Intel")
def reorg(layer: Layer, graph: Graph) -> None:
    """Darknet's rearrangement of pixels into channels; with ``reverse``, depth to space.

    Without ``reverse``, it reads the blob as if it had fewer channels and a larger image, as Darknet does.
    """
    bottom, top = layer.ends()
    stride = layer.params.reorg_param.stride
    if graph.rank(bottom) != 4 or not stride:
        raise layer.error(
            f"found {show(graph.shape(bottom))} for the blob {bottom!r} and stride {stride}, expected N x C x H x W "
            "and a stride of at least 1"
        )
    images = graph.shape(bottom)[0]
    channels, height, width = graph.fixed_shape(bottom, 1, "the image's size")
    reverse = layer.params.reorg_param.reverse
    if channels % stride**2 or (not reverse and (height % stride or width % stride)):
        raise layer.error(
            f"found {show(graph.shape(bottom))} for the blob {bottom!r}, expected channels that {stride} x {stride} "
            f"divides{'' if reverse else f', and a height and width that {stride} divides'}"
        )
    fewer = channels // stride**2
    if reverse:
        split = graph.reshape(bottom, (images, stride, stride, fewer, height, width))
        enlarged = graph.transpose(split, (0, 3, 4, 1, 5, 2))
        graph.reshape(enlarged, (images, fewer, height * stride, width * stride), top)
        return
    split = graph.reshape(bottom, (images, fewer, height, stride, width, stride))
    gathered = graph.transpose(split, (0, 3, 5, 1, 2, 4))
    graph.reshape(gathered, (images, channels * stride**2, height // stride, width // stride), top)


@handles("Flip", operators="Slice Identity", origin="caffe-windows")
def flip(layer: Layer, graph: Graph) -> None:
    """Image mirrored along the width (the default), the height, or both."""
    bottom, top = layer.ends()
    param = layer.params.flip_param
    graph.expect_images(bottom)
    axes = [axis for axis, flips in ((2, param.flip_height), (3, param.flip_width)) if flips]
    if not axes:
        graph.node("Identity", [bottom], top)
    for axis in axes:
        bottom = graph.slice(bottom, axis, 0, None, top if axis == axes[-1] else None, step=-1)
