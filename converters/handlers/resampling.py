"""Layers that resize images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from converters.graph import Graph
from converters.layer import Layer
from converters.registry import handles
from converters.shape import SymbolicDim


@handles(
    "Interp",
    operators="Resize Slice Shape Concat Identity",
    restrictions="pad_beg and pad_end only crop (0 or less), as in Caffe; a second bottom gives the size if the "
    "parameters do not, or with caffe-model's `use_blob_size`",
    origin="DeepLab, PSPNet",
)
def interp(layer: Layer, graph: Graph) -> None:
    """Bilinear interpolation with aligned corners, after an optional crop."""
    layer.expect(bottoms=range(1, 3), tops=1)
    bottom = _cropped(layer, graph)
    size = graph.image_size(bottom)
    wanted = (_wanted(layer, graph, size[0], axis=2), _wanted(layer, graph, size[1], axis=3))
    resized(graph, bottom, wanted, layer.tops)


def resized(graph: Graph, image: str, size: tuple[int, int], outputs: Sequence[str] | None = None) -> str:
    """Resize images (N, C, H, W) to (h, w) by bilinear interpolation with aligned corners."""
    shape = (*graph.shape(image)[:2], *size)
    if size == tuple(graph.shape(image)[2:]):
        return graph.node("Identity", [image], outputs)
    some_axes = graph.opset >= 18  # older opsets need the sizes of all axes, including the batch
    sizes = graph.constant(size, np.int64) if some_axes else _with_sizes(graph, image, size)
    return graph.node(
        "Resize",
        [image, "", "", sizes],
        outputs,
        shape=shape,
        axes=[2, 3] if some_axes else None,
        mode="linear",
        coordinate_transformation_mode="align_corners",
    )


def _cropped(layer: Layer, graph: Graph) -> str:
    """Crop -pad_beg pixels at the top and left, and -pad_end at the bottom and right."""
    param = layer.params.interp_param
    bottom = layer.bottoms[0]
    size = graph.image_size(bottom)
    if param.pad_beg > 0 or param.pad_end > 0 or min(size) + param.pad_beg + param.pad_end < 1:
        raise layer.error(
            f"found pad_beg {param.pad_beg} and pad_end {param.pad_end} for an image of {size[0]} x {size[1]}, "
            "expected 0 or less (they crop), and a result of at least one pixel"
        )
    if param.pad_beg or param.pad_end:
        for axis in (2, 3):
            bottom = graph.slice(bottom, axis, -param.pad_beg, size[axis - 2] + param.pad_end)
    return bottom


def _wanted(layer: Layer, graph: Graph, size: int, axis: int) -> int:
    """The output size along an axis. A single factor overrides a given size, which overrides both factors together."""
    param = layer.params.interp_param
    shrinks, zooms = param.HasField("shrink_factor"), param.HasField("zoom_factor")
    if min(param.shrink_factor, param.zoom_factor) < 1:
        raise layer.error(
            f"found shrink_factor {param.shrink_factor} and zoom_factor {param.zoom_factor}, expected 1 or more"
        )
    if param.use_blob_size and len(layer.bottoms) == 2:
        wanted = graph.image_size(layer.bottoms[1])[axis - 2]
    elif shrinks == zooms and param.HasField("height") and param.HasField("width"):
        wanted = param.height if axis == 2 else param.width
    elif shrinks or zooms:
        wanted = (size - 1) // param.shrink_factor + 1
        wanted += (wanted - 1) * (param.zoom_factor - 1)
    elif len(layer.bottoms) == 2:
        wanted = graph.image_size(layer.bottoms[1])[axis - 2]
    else:
        raise layer.error("found no size, expected height and width, zoom_factor or shrink_factor, or a second bottom")
    if wanted < 1:
        raise layer.error(f"found the {'height' if axis == 2 else 'width'} {wanted}, expected 1 or more")
    return wanted


def _with_sizes(graph: Graph, tensor: str, sizes: tuple[int, ...]) -> str:
    """The first two sizes of a tensor followed by the given ones, as a tensor."""
    images = graph.shape(tensor)[:2]
    if not any(isinstance(dim, SymbolicDim) for dim in images):
        return graph.constant([*images, *sizes], np.int64)
    shape = graph.node("Shape", [tensor], shape=(graph.rank(tensor),), dtype=np.int64)
    return graph.concat([graph.slice(shape, 0, 0, 2), graph.constant(sizes, np.int64)], 0)


@handles(
    "Upsample",
    operators="Reshape Cast Shape Slice Concat ConstantOfShape ScatterElements Resize",
    restrictions="with one bottom, each pixel is repeated `scale` or `stride` times, as in Darknet; with a mask, if "
    "pooling windows overlap, a pixel can be written twice: ONNX Runtime's CPU provider keeps the last value, "
    "which ONNX does not guarantee",
    origin="SegNet, Darknet",
)
def upsample(layer: Layer, graph: Graph) -> None:
    """Max unpooling: values at the positions in the mask of a MAX pooling, zeros elsewhere; or repeated pixels."""
    layer.expect(bottoms=range(1, 3), tops=1)
    if len(layer.bottoms) == 1:
        _repeated(layer, graph)
    else:
        _unpooled(layer, graph)


def _repeated(layer: Layer, graph: Graph) -> None:
    bottom = layer.bottoms[0]
    height, width = graph.image_size(bottom)
    down, across = _repetitions(layer)
    shape = (*graph.shape(bottom)[:2], height * down, width * across)
    graph.node(
        "Resize",
        [bottom, "", graph.constant([1, 1, down, across])],
        layer.tops,
        shape=shape,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _repetitions(layer: Layer) -> tuple[int, int]:
    """How often a pixel is repeated along height and width. `stride` is Darknet's name for `scale`."""
    param = layer.params.upsample_param
    if param.HasField("scale_h") and param.HasField("scale_w"):
        down, across = param.scale_h, param.scale_w
    else:
        down = across = param.scale if param.HasField("scale") else param.stride
    if min(down, across) < 1:
        raise layer.error(
            "found one bottom and no scale, expected upsample_param with a scale (or stride) of at least 1, or the "
            "mask of a MAX pooling as a second bottom"
        )
    return down, across


def _unpooled(layer: Layer, graph: Graph) -> None:
    graph.same_shape(layer.bottoms)
    values, mask = layer.bottoms
    height, width = graph.image_size(values)
    size = _unpooled_size(layer, height, width)
    images = graph.shape(values)[:2]
    flat, area = (*images, height * width), size[0] * size[1]
    places = graph.cast(graph.reshape(mask, flat), np.int64)
    updates = graph.reshape(values, flat)
    whole = (*images, area)
    zeros = graph.node("ConstantOfShape", [_with_sizes(graph, updates, (area,))], shape=whole, dtype=np.float32)
    scattered = graph.node("ScatterElements", [zeros, places, updates], shape=whole, axis=2)
    graph.reshape(scattered, (*images, *size), layer.tops)


def _unpooled_size(layer: Layer, height: int, width: int) -> tuple[int, int]:
    """The given size, or that of the bottom times a scale, minus one pixel with pad_out_h or pad_out_w."""
    param = layer.params.upsample_param
    both = [param.HasField("upsample_h"), param.HasField("upsample_w")]
    if all(both):
        if min(param.upsample_h, param.upsample_w) < 2:
            raise layer.error(f"found upsample {param.upsample_h} x {param.upsample_w}, expected at least 2 for both")
        return param.upsample_h, param.upsample_w
    apart = [param.HasField("scale_h"), param.HasField("scale_w")]
    if any(both) or any(apart) != all(apart) or (any(apart) and param.HasField("scale")):
        raise layer.error("found one of a pair, or two forms, expected upsample_h and _w, scale_h and _w, or scale")
    down, across = (param.scale_h, param.scale_w) if all(apart) else (param.scale, param.scale)
    if min(down, across) < 2 or (param.pad_out_h and down != 2) or (param.pad_out_w and across != 2):
        raise layer.error(f"found scale {down} x {across}, expected 2 or more, and 2 where pad_out is set")
    return height * down - param.pad_out_h, width * across - param.pad_out_w
