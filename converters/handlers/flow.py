"""Layers of optical flow: FlowNet's (Dosovitskiy et al. 2015) and FlowNet 2's (Ilg et al. 2017).

Their fork implements most of them only in CUDA; the formulas follow that code (lmb-freiburg/flownet2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from converters.graph import Array, Graph
from converters.handlers.resampling import resized
from converters.handlers.sampling import sample_inside
from converters.layer import MANY, Layer
from converters.registry import handles
from converters.schema.caffe_pb2 import (
    CorrelationParameter,
    FlowWarpParameter,
    MeanParameter,
    ResampleParameter,
)
from converters.shape import MAX_BLOB, show

MAX_DISPLACEMENTS = 512  # along an axis; FlowNet has 21
MAX_FILTER = 2**24  # weights of a filter along an axis, stored in the model; from 480 to 1,920 pixels there are 921,600

# -------------------------------------------------------------------------------------------------------- correlation


@dataclass(frozen=True)
class _Search:
    """The patches of two images that a correlation compares.

    Attributes:
        kernel: The side of a patch.
        stride: The step between patches in the first image.
        rows: The vertical displacements in the second image.
        columns: The horizontal displacements.
        first: Row and column of the first patch, in pixels of the image; negative in the padding.
        out: The numbers of patches along height and width.
    """

    kernel: int
    stride: int
    rows: range
    columns: range
    first: tuple[int, int]
    out: tuple[int, int]


@handles(
    "Correlation",
    operators="Pad Slice Mul Transpose MatMul Reshape Gather Sub Abs ReduceMean Concat AveragePool",
    restrictions="`do_abs` has no effect, as in the original",
    origin="FlowNet",
)
def correlation(layer: Layer, graph: Graph) -> None:
    """Correlation of patches of one image with displaced patches of another (Dosovitskiy et al. 2015, section 3)."""
    param, (height, width) = _correlated(layer, graph)
    radius, reach = (param.kernel_size - 1) // 2, param.max_displacement
    border = 2 * (reach + radius - param.pad)
    steps = reach // param.stride_2
    shifts = range(-steps * param.stride_2, steps * param.stride_2 + 1, param.stride_2)
    out = (-((border - height) // param.stride_1), -((border - width) // param.stride_1))
    first = reach - param.pad
    _correlate(layer, graph, _Search(param.kernel_size, param.stride_1, shifts, shifts, (first, first), out))


@handles(
    "Correlation1D",
    operators="Pad Slice Mul Transpose MatMul Reshape Gather Sub Abs ReduceMean AveragePool",
    restrictions="`do_abs` has no effect, as in the original; beyond the padding there are zeros (the original reads "
    "the row above)",
    origin="DispNet",
)
def correlation_1d(layer: Layer, graph: Graph) -> None:
    """Correlation along rows only: in both directions, or to the left (-1) or right (1) by single_direction."""
    param, (height, width) = _correlated(layer, graph)
    radius, reach, step = (param.kernel_size - 1) // 2, param.max_displacement, param.stride_2
    steps = reach // step
    if param.single_direction not in (-1, 0, 1):
        raise layer.error(f"found single_direction {param.single_direction}, expected -1 (left), 0 (both) or 1 (right)")
    begin, number = {
        -1: (-(steps + 1), steps + 1),
        0: (-steps, 2 * steps + 1),
        1: (0, steps + 1),
    }[param.single_direction]
    shifts = range(begin * step, (begin + number) * step, step)
    border = 2 * (reach + radius - param.pad)
    out = (-((2 * radius - height) // param.stride_1), -((border - width) // param.stride_1))
    search = _Search(param.kernel_size, param.stride_1, range(1), shifts, (0, reach - param.pad), out)
    _correlate(layer, graph, search)


def _correlated(layer: Layer, graph: Graph) -> tuple[CorrelationParameter, tuple[int, int]]:
    """Read and check the parameters and the size of both images."""
    layer.expect(bottoms=2, tops=1)
    param = layer.params.correlation_param
    graph.same_shape(layer.bottoms)
    _, _, height, width = graph.image_shape(layer.bottoms[0])
    has_all = param.HasField("kernel_size") and param.HasField("max_displacement")
    if not has_all or not param.kernel_size % 2 or not param.stride_1 or not param.stride_2:
        raise layer.error(
            f"found kernel_size {param.kernel_size}, max_displacement {param.max_displacement}, stride_1 "
            f"{param.stride_1} and stride_2 {param.stride_2}, expected an odd kernel_size, a max_displacement, and "
            "strides of at least 1"
        )
    return param, (height, width)


def _correlate(layer: Layer, graph: Graph, search: _Search) -> None:
    """The mean over the pixels and channels of a patch, for each patch and displacement.

    One matrix product of the rows of both images has all horizontal displacements on its diagonals. A patch of more
    than one pixel averages the results of its pixels.
    """
    number = len(search.rows) * len(search.columns)
    if min(search.out) < 1:
        raise layer.error(
            f"found images of {show(graph.shape(layer.bottoms[0]))}, expected larger ones: patches, displacements and "
            f"padding leave an output of {search.out[0]} x {search.out[1]}"
        )
    if max(len(search.rows), len(search.columns)) > MAX_DISPLACEMENTS:
        raise layer.error(
            f"found {len(search.rows):,} x {len(search.columns):,} displacements, expected at most "
            f"{MAX_DISPLACEMENTS} along an axis"
        )
    if math.prod(search.out) * number > MAX_BLOB:
        raise layer.error(
            f"found {number:,} displacements for {search.out[0]:,} x {search.out[1]:,} patches, expected at most "
            f"{MAX_BLOB:,} values"
        )
    step = search.stride if search.kernel == 1 else 1
    sizes = [(count - 1) * search.stride + search.kernel for count in search.out]
    counts = [-(-size // step) for size in sizes]
    # Column x + d of the second image for patch x and displacement d: (patches, displacements).
    columns = np.arange(counts[1])[:, None] * step + np.array(search.columns) - search.columns.start
    left = _part(graph, layer.bottoms[0], search.first, sizes)
    for axis in (2, 3) if step > 1 else ():
        left = graph.slice(left, axis, 0, sizes[axis - 2], step=step)
    begin = (search.first[0] + search.rows.start, search.first[1] + search.columns.start)
    spans = (search.rows[-1] - search.rows.start, search.columns[-1] - search.columns.start)
    right = _part(graph, layer.bottoms[1], begin, [size + span for size, span in zip(sizes, spans, strict=True)])
    compare = _differences if layer.params.correlation_param.correlation_type else _products
    rows = (row - search.rows.start for row in search.rows)
    maps = compare(graph, left, right, [(row, row + sizes[0], step) for row in rows], columns)
    whole = search.kernel == 1
    joined = graph.concat(maps, 3) if len(maps) > 1 else maps[0]
    result = graph.transpose(joined, (0, 3, 1, 2), layer.tops if whole else None)
    if not whole:
        graph.node(
            "AveragePool",
            [result],
            layer.tops,
            shape=(graph.shape(left)[0], number, *search.out),
            kernel_shape=[search.kernel] * 2,
            strides=[search.stride] * 2,
        )


def _part(graph: Graph, image: str, first: Sequence[int], sizes: Sequence[int]) -> str:
    """Rows and columns of an image from ``first`` on, padded with zeros."""
    image_sizes = [int(size) for size in graph.shape(image)[2:]]
    before = [max(0, -begin) for begin in first]
    after = [max(0, begin + size - whole) for begin, size, whole in zip(first, sizes, image_sizes, strict=True)]
    if any(before) or any(after):
        image = graph.pad(image, [0, 0, *before], [0, 0, *after], 0.0)
    for axis, begin, size in zip((2, 3), (max(0, begin) for begin in first), sizes, strict=True):
        if size != int(graph.shape(image)[axis]):
            image = graph.slice(image, axis, begin, begin + size)
    return image


def _products(graph: Graph, left: str, right: str, rows: Sequence[tuple[int, int, int]], columns: Array) -> list[str]:
    """For each displacement down: the mean products over channels, (N, h, w, displacements across)."""
    batch, channels, height, width = graph.shape(left)
    wide = int(graph.shape(right)[3])
    scaled = graph.node("Mul", [left, graph.constant(1 / int(channels))])
    pixels = graph.transpose(scaled, (0, 2, 3, 1))
    lines = graph.transpose(right, (0, 2, 1, 3))
    diagonals = graph.constant(columns + np.arange(len(columns))[:, None] * wide, np.int64)
    maps = []
    for first, last, step in rows:
        line = graph.slice(lines, 1, first, last, step=step)
        products = graph.node("MatMul", [pixels, line], shape=(batch, height, width, wide))
        flat = graph.reshape(products, (batch, height, int(width) * wide))
        maps.append(graph.node("Gather", [flat, diagonals], shape=(batch, height, *columns.shape), axis=2))
    return maps


def _differences(
    graph: Graph, left: str, right: str, rows: Sequence[tuple[int, int, int]], columns: Array
) -> list[str]:
    """For each displacement down: the mean absolute differences, (N, h, w, displacements across)."""
    batch, channels, height, _ = graph.shape(left)
    pixels = graph.reshape(left, (*graph.shape(left), 1))
    places = graph.constant(columns, np.int64)
    maps = []
    for first, last, step in rows:
        line = graph.slice(right, 2, first, last, step=step)
        moved = graph.node("Gather", [line, places], shape=(batch, channels, height, *columns.shape), axis=3)
        distance = graph.node("Abs", [graph.node("Sub", [pixels, moved])])
        maps.append(graph.reduce("Mean", distance, [1], keepdims=False))
    return maps


# ------------------------------------------------------------------------------------------------------------ FlowWarp


@handles(
    "FlowWarp",
    operators="Slice Reshape Add Mul Concat GridSample GreaterOrEqual Less And Where",
    restrictions="opset 16 or more",
    origin="FlowNet 2",
)
def flow_warp(layer: Layer, graph: Graph) -> None:
    """Bilinear samples of an image, displaced by the flow; zero or NaN outside the image."""
    layer.expect(bottoms=2, tops=1)
    image, flow = layer.bottoms
    batch, _, height, width = graph.image_shape(image)
    found = graph.shape(flow)
    if len(found) != 4 or not all(map(graph.same, found, (batch, 2, height, width))):
        raise layer.error(
            f"found {show(found)} for the blob {flow!r}, expected {show((batch, 2, height, width))}: a horizontal "
            "and a vertical displacement for each pixel"
        )
    y, x = np.meshgrid(np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32), indexing="ij")
    across, down = (
        graph.node(
            "Add",
            [
                graph.reshape(graph.slice(flow, 1, index, index + 1), (batch, height, width)),
                graph.constant(start[None]),
            ],
        )
        for index, start in enumerate((x, y))
    )
    is_zero = layer.params.flow_warp_param.fill_value == FlowWarpParameter.ZERO
    sample_inside(layer, graph, image, down, across, fill=0.0 if is_zero else math.nan, outputs=layer.tops)


# ---------------------------------------------------------------------------------------------------------- other sizes


@handles(
    "Resample",
    operators="MatMul Gather Identity",
    restrictions="NEAREST, LINEAR and CUBIC; where height and width change by different factors, each axis is shifted "
    "by half the other's factor, as in the original",
    origin="FlowNet 2",
)
def resample(layer: Layer, graph: Graph) -> None:
    """Resizing with a filter that grows as the image shrinks (antialiasing)."""
    layer.expect(bottoms=range(1, 3), tops=1)
    param = layer.params.resample_param
    _, _, *sizes = graph.image_shape(layer.bottoms[0])
    wanted = _wanted(layer, graph, param.height, param.width)
    factors = [np.float32(old) / np.float32(new) for old, new in zip(sizes, wanted, strict=True)]
    if param.type == ResampleParameter.AREA:
        raise layer.error("found type AREA, expected NEAREST, LINEAR or CUBIC, as in the original")
    shifts = factors[::-1]  # as in the original
    centers = [
        np.arange(new, dtype=np.float32) * factor + shift / np.float32(2) - np.float32(0.5)
        for new, factor, shift in zip(wanted, factors, shifts, strict=True)
    ]
    if param.type == ResampleParameter.NEAREST:
        _nearest(layer, graph, centers, sizes)
        return
    smooth = max(factors) > 1 and param.antialias
    curve, reach = (_cubic, 4) if param.type == ResampleParameter.CUBIC else (_triangle, 2)
    matrices = []
    for center, factor, size in zip(centers, factors, sizes, strict=True):
        scale = 1 / factor if smooth else np.float32(1)
        radius = 2 if factor < 1 else math.ceil(reach / scale)
        matrices.append(_filter_matrix(center, size, radius, curve, scale))
    _weighted(graph, layer, matrices)


def _wanted(layer: Layer, graph: Graph, height: int, width: int) -> tuple[int, int]:
    """The size in the layer's parameters, or that of the second bottom."""
    if len(layer.bottoms) == 2:
        height, width = graph.image_shape(layer.bottoms[1])[2:]
    if min(height, width) < 1:
        raise layer.error(f"found the size {height} x {width}, expected a height and a width of at least 1")
    _, _, *sizes = graph.image_shape(layer.bottoms[0])
    if max(old * new for old, new in zip(sizes, (height, width), strict=True)) > MAX_FILTER:
        raise layer.error(
            f"found an image of {sizes[0]:,} x {sizes[1]:,} for an output of {height:,} x {width:,}, expected at most "
            f"{MAX_FILTER:,} for the product of both heights and of both widths"
        )
    return height, width


def _rounded(values: Array) -> Array:
    """Round like C: halves away from zero."""
    away: Array = np.sign(values) * np.floor(np.abs(values) + np.float32(0.5))
    return away.astype(np.int64)


def _triangle(x: Array) -> Array:
    weights: Array = np.clip(1 - np.abs(x), 0, None)
    return weights


def _cubic(x: Array) -> Array:
    """Keys' cubic filter with a = -0.5."""
    x = np.abs(x)
    near = x * x * (1.5 * x - 2.5) + 1
    far = x * (x * (-0.5 * x + 2.5) - 4) + 2
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def _filter_matrix(centers: Array, size: int, radius: int, curve: Callable[[Array], Array], scale: np.float32) -> Array:
    """The interpolation weights along an axis, (new, old) float32; each row sums to 1 or is 0.

    Args:
        centers: The new positions in units of the old ones, (new,).
        size: The number of old positions.
        radius: The largest distance from the rounded center at which an old position contributes.
        curve: The weight as a function of distance.
        scale: A factor applied to distances first.
    """
    old = np.arange(size)
    near = np.abs(old - _rounded(centers)[:, None]) <= radius
    distances = scale * (centers[:, None] - old.astype(np.float32))
    weights = np.where(near, curve(distances), 0).astype(np.float32)
    total = weights.sum(axis=1, keepdims=True)
    normalized: Array = np.divide(weights, total, out=np.zeros_like(weights), where=total != 0)
    return normalized


def _weighted(graph: Graph, layer: Layer, matrices: Sequence[Array]) -> None:
    """Multiply the image by a matrix for its rows from the left, and by one for its columns from the right."""
    image = layer.bottoms[0]
    if all(matrix.shape[0] == matrix.shape[1] and (matrix == np.eye(len(matrix))).all() for matrix in matrices):
        graph.node("Identity", [image], layer.tops)
        return
    batch, channels, _, width = graph.shape(image)
    rows, columns = matrices
    tall = graph.node("MatMul", [graph.constant(rows), image], shape=(batch, channels, len(rows), width))
    graph.node(
        "MatMul", [tall, graph.constant(columns.T)], layer.tops, shape=(batch, channels, len(rows), len(columns))
    )


def _nearest(layer: Layer, graph: Graph, centers: Sequence[Array], sizes: Sequence[int]) -> None:
    places = [_rounded(center) for center in centers]
    if any(place[0] < 0 or place[-1] >= size for place, size in zip(places, sizes, strict=True)):
        raise layer.error(
            f"found an image of {sizes[0]} x {sizes[1]} for an output of {len(places[0])} x {len(places[1])}, expected "
            "similar factors: the original reads beyond the image here"
        )
    tensor = layer.bottoms[0]
    for axis, place in zip((2, 3), places, strict=True):
        shape = list(graph.shape(tensor))
        shape[axis] = len(place)
        tensor = graph.node(
            "Gather", [tensor, graph.constant(place, np.int64)], layer.tops if axis == 3 else None,
            shape=shape, axis=axis,
        )  # fmt: skip


@handles(
    "Downsample",
    operators="MatMul Identity",
    restrictions="NaN propagates, where the original leaves it out of its averages (in training, on ground truth flow)",
    origin="FlowNet",
)
def downsample(layer: Layer, graph: Graph) -> None:
    """Resizing with aligned corners; each new pixel averages the old ones around it."""
    layer.expect(bottoms=range(1, 3), tops=1)
    param = layer.params.downsample_param
    _, _, *sizes = graph.image_shape(layer.bottoms[0])
    wanted = _wanted(layer, graph, param.top_height, param.top_width)
    if list(wanted) == sizes:
        graph.node("Identity", layer.bottoms[:1], layer.tops)
        return
    if min(*wanted, *sizes) < 2:
        raise layer.error(
            f"found an image of {sizes[0]} x {sizes[1]} for an output of {wanted[0]} x {wanted[1]}, expected 2 pixels "
            "or more along each axis: the original divides by zero"
        )
    matrices = []
    for old, new in zip(sizes, wanted, strict=True):
        scale = np.float32(old - 1) / np.float32(new - 1)
        centers = np.arange(new, dtype=np.float32) / np.float32(new - 1) * np.float32(old - 1)
        matrices.append(_filter_matrix(centers, old, math.ceil(scale), _triangle, 1 / scale))
        if not matrices[-1].any(axis=1).all():
            raise layer.error(
                f"found {old} pixels for {new}, expected fewer: no pixel is near enough to some of the new ones, and "
                "the original divides by zero"
            )
    _weighted(graph, layer, matrices)


@handles("Accum", operators="Resize Shape Slice Concat Identity", origin="FlowNet 2")
def accum(layer: Layer, graph: Graph) -> None:
    """Bilinear upsampling of all bottoms to one size, with aligned corners, and concatenation of the channels."""
    param = layer.params.accum_param
    layer.expect(bottoms=range(2 if param.have_reference else 1, MANY), tops=1)
    images = [graph.image_shape(bottom) for bottom in layer.bottoms]
    joined = layer.bottoms[: -1 if param.have_reference else None]
    size = images[-1][2:] if param.have_reference else _accumulated(layer, [image[2:] for image in images])
    if min(size) < 2:
        raise layer.error(
            f"found the size {size[0]} x {size[1]}, expected 2 or more each: the original divides by zero"
        )
    only = layer.tops if len(joined) == 1 else None
    enlarged = [resized(graph, bottom, size, only) for bottom in joined]
    if not only:
        graph.concat(enlarged, 1, layer.tops)


def _accumulated(layer: Layer, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The largest height and width, or the given size if both its numbers are larger."""
    param = layer.params.accum_param
    largest = (max(size[0] for size in sizes), max(size[1] for size in sizes))
    given = (param.top_height, param.top_width)
    if param.HasField("size_divisible_by"):
        unit = param.size_divisible_by
        if unit < 1:
            raise layer.error(f"found size_divisible_by {unit}, expected 1 or more")
        given = (-(-largest[0] // unit) * unit, -(-largest[1] // unit) * unit)
    return given if given[0] > largest[0] and given[1] > largest[1] else largest


# --------------------------------------------------------------------------------------------------- values of channels


@handles("Mean", operators="Mul Add", restrictions="values in the prototxt, no `file`", origin="FlowNet 2")
def mean(layer: Layer, graph: Graph) -> None:
    """output_scale * (input_scale * x + mean_scale * mean), or with the mean subtracted, for each bottom."""
    param = layer.params.mean_param
    if not layer.bottoms or len(layer.bottoms) != len(layer.tops):
        raise layer.error(
            f"found {len(layer.bottoms)} bottom(s) and {len(layer.tops)} top(s), expected one top for each"
        )
    if param.file or not param.value:
        raise layer.error(
            f"found the mean file {param.file!r} and {len(param.value)} value(s), expected the mean of each channel in "
            "mean_param { value: ... }"
        )
    sign = -1 if param.operation == MeanParameter.SUBTRACT else 1
    for bottom, top in zip(layer.bottoms, layer.tops, strict=True):
        _, channels, _, _ = graph.image_shape(bottom)
        if channels % len(param.value):
            raise layer.error(
                f"found {len(param.value)} values for {channels} channels, expected a divisor of the number of channels"
            )
        values = np.tile(np.array(param.value, np.float32), channels // len(param.value)).reshape(-1, 1, 1)
        scaled = graph.node("Mul", [bottom, graph.constant(param.input_scale * param.output_scale)])
        offset = graph.constant(sign * param.mean_scale * param.output_scale * values)
        graph.node("Add", [scaled, offset], [top])


@handles(
    "DataAugmentation",
    operators="Sub Identity",
    restrictions="without a crop; subtracts only the mean, from the weights or the prototxt, as the original then does",
    origin="FlowNet",
)
def data_augmentation(layer: Layer, graph: Graph) -> None:
    """The image minus the mean of the training images, per pixel or per channel."""
    bottom, top = layer.ends()
    param = layer.params.augmentation_param
    _, channels, height, width = graph.image_shape(bottom)
    if param.crop_width and param.crop_height:
        raise layer.error(
            f"found a crop of {param.crop_height} x {param.crop_width}, expected none: crop the images first, or "
            "write a handler and name it with --plugin"
        )
    if param.recompute_mean:
        mean = _stored_mean(layer, channels, height, width)
    elif len(param.mean) == 3 == channels and not param.mean_per_pixel:
        mean = np.array(param.mean, np.float32).reshape(3, 1, 1)
    else:
        graph.node("Identity", [bottom], top)
        return
    graph.node("Sub", [bottom, graph.weight("mean", mean)], top, shape=graph.shape(bottom))


def _stored_mean(layer: Layer, channels: int, height: int, width: int) -> Array:
    """The mean, (C, H, W) or (C, 1, 1). The weights are a count, a mean per pixel, and a mean per channel."""
    size = layer.blobs[1].shape[2:] if len(layer.blobs) == 3 and layer.blobs[1].ndim == 4 else (height, width)
    _, pixels, means = layer.weights((1, 1, 1, 1), (1, channels, *size), (1, channels, 1, 1))
    mean: Array = means[0]
    if layer.params.augmentation_param.mean_per_pixel:
        # For an image of another size, the original uses the mean over all pixels.
        mean = pixels[0] if size == (height, width) else pixels[0].mean(axis=(1, 2), keepdims=True)
    return mean


@handles("ChannelNorm", operators="ReduceL2", origin="FlowNet 2")
def channel_norm(layer: Layer, graph: Graph) -> None:
    """The Euclidean norm over the channels."""
    bottom, top = layer.ends()
    graph.expect_images(bottom)
    graph.reduce("L2", bottom, [1], top)
