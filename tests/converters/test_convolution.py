"""Convolutions of single pixels with padding: the bias is all that they see there. Against the formula in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.converters.one_layer import OneLayer, assert_close, run

RNG = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def one(param: str, *filters: int, image: tuple[int, ...] = (6, 5), type: str = "Convolution") -> OneLayer:
    layer = f'type: "{type}" top: "y" convolution_param {{ num_output: {filters[0]} kernel_size: 1 {param} }}'
    return OneLayer(layer, {"x": (2, 4, *image)}, (weights(*filters, *(1 for _ in image)), weights(filters[0])))


# Name -> the layer, its padding and its number of groups.
PADDED = {
    "plain": (one("pad: 1", 6, 4), (1, 1), 1),
    "one_axis": (one("pad_h: 0 pad_w: 2", 6, 4), (0, 2), 1),
    "groups": (one("pad: 1 group: 2", 6, 2), (1, 1), 2),
    "volume": (one("pad: 1 pad: 0 pad: 2", 3, 4, image=(3, 4, 2)), (1, 0, 2), 1),
    "depthwise": (one("pad: 1", 4, 1, type="ConvolutionDepthwise"), (1, 1), 4),
}
CASES = {name: case for name, (case, _, _) in PADDED.items()}


@pytest.mark.parametrize("name", PADDED)
@pytest.mark.parametrize("batch", [1, 3])
def test_padded_pixels(name: str, batch: int) -> None:
    case, pad, groups = PADDED[name]
    x = np.random.default_rng(batch).normal(size=(batch, *case.shapes["x"][1:])).astype(np.float32)
    padded = np.pad(x, [(0, 0), (0, 0), *((each, each) for each in pad)])
    weight, bias = case.blobs
    filters = weight.reshape(groups, len(bias) // groups, -1)
    stacked = padded.reshape(batch, groups, filters.shape[2], *padded.shape[2:])
    expected = np.einsum("gof,ngf...->ngo...", filters, stacked).reshape(batch, len(bias), *padded.shape[2:])
    expected = expected + bias.reshape(-1, *(1 for _ in pad))

    model = case.model()
    (found,) = run(model, {"x": x})
    assert_close(found, expected)
    # OpenCV 5.0.0 reads beyond the image where such a convolution has pads.
    (node,) = (node for node in model.graph.node if node.op_type == "Conv")
    assert not any(number for each in node.attribute if each.name == "pads" for number in each.ints)


def test_strides_keep_their_pads() -> None:
    nodes = [node.op_type for node in one("pad: 1 stride: 2", 6, 4).model().graph.node]
    assert nodes == ["Conv"]
