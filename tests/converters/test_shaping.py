"""Permute, ShuffleChannel and Reorg, against NumPy and OpenCV. Caffe's own answers are in test_layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.converters.one_layer import OneLayer, assert_error_names_layer, darknet, run


@pytest.mark.parametrize(
    ("order", "axes"), [([0, 2, 3, 1], (0, 2, 3, 1)), ([2], (2, 0, 1, 3)), ([], (0, 1, 2, 3)), ([3, 1], (3, 1, 0, 2))]
)
def test_permute(order: list[int], axes: tuple[int, ...], tmp_path: Path) -> None:
    one = OneLayer(
        f'type: "Permute" top: "y" permute_param {{ {" ".join(f"order: {axis}" for axis in order)} }}',
        {"x": (2, 3, 4, 5)},
    )
    model = one.model()
    for batch in (1, 2, 3):
        x = np.random.default_rng(batch).normal(size=(batch, 3, 4, 5)).astype(np.float32)
        np.testing.assert_array_equal(run(model, {"x": x})[0], x.transpose(axes))
    if len(order) == 4:  # OpenCV wants all axes named
        x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
        np.testing.assert_array_equal(one.run({"x": x})[0], one.opencv({"x": x}, tmp_path))


@pytest.mark.parametrize("group", [1, 2, 3, 6])
def test_shuffle_channel(group: int) -> None:
    one = OneLayer(f'type: "ShuffleChannel" top: "y" shuffle_channel_param {{ group: {group} }}', {"x": (1, 6, 4, 5)})
    model = one.model()
    order = [first + step * (6 // group) for first in range(6 // group) for step in range(group)]
    for batch in (1, 3):
        x = np.random.default_rng(batch).normal(size=(batch, 6, 4, 5)).astype(np.float32)
        np.testing.assert_array_equal(run(model, {"x": x})[0], x[:, order])


# -------------------------------------------------------------------------------------------------------------- Reorg


def darknet_reorg(x: np.ndarray, stride: int) -> np.ndarray:
    """Darknet's loop: the image as if it had fewer channels and were larger."""
    images, channels, height, width = x.shape
    fewer, flat = channels // stride**2, np.zeros(x.size, x.dtype)
    source, size = x.reshape(-1), (height * stride, width * stride)
    for n, c, h, w in np.ndindex(*x.shape):
        down, across = divmod(c // fewer, stride)
        at = ((n * fewer + c % fewer) * size[0] + h * stride + down) * size[1] + w * stride + across
        flat[((n * channels + c) * height + h) * width + w] = source[at]
    return flat.reshape(images, channels * stride**2, height // stride, width // stride)


@pytest.mark.parametrize(("stride", "shape"), [(2, (8, 4, 6)), (3, (9, 6, 3)), (1, (2, 3, 4))])
def test_reorg(stride: int, shape: tuple[int, ...]) -> None:
    model = reorg(f"stride: {stride}", shape).model()
    for batch in (1, 3):
        x = np.random.default_rng(batch).normal(size=(batch, *shape)).astype(np.float32)
        np.testing.assert_array_equal(run(model, {"x": x})[0], darknet_reorg(x, stride))


@pytest.mark.parametrize(("stride", "shape"), [(2, (8, 4, 6)), (3, (9, 5, 3))])
def test_reorg_reversed(stride: int, shape: tuple[int, ...]) -> None:
    model = reorg(f"stride: {stride} reverse: true", shape).model()
    fewer = shape[0] // stride**2
    for batch in (1, 3):
        x = np.random.default_rng(batch).normal(size=(batch, *shape)).astype(np.float32)
        expected = np.zeros((batch, fewer, shape[1] * stride, shape[2] * stride), np.float32)
        for n, c, h, w in np.ndindex(*x.shape):
            down, across = divmod(c // fewer, stride)
            expected[n, c % fewer, h * stride + down, w * stride + across] = x[n, c, h, w]
        np.testing.assert_array_equal(run(model, {"x": x})[0], expected)


def test_reorg_as_opencv() -> None:
    x = np.random.default_rng(0).normal(size=(1, 8, 4, 6)).astype(np.float32)
    (found,) = reorg("stride: 2", x.shape[1:]).run({"x": x})
    np.testing.assert_array_equal(found, darknet("[reorg]\nstride=2\n", x))


def reorg(param: str, shape: Sequence[int]) -> OneLayer:
    return OneLayer(f'type: "Reorg" top: "y" reorg_param {{ {param} }}', {"x": (1, *shape)})


CASES = {"reorg": reorg("stride: 2", (8, 4, 4))}
ERRORS = {
    "order twice": ('type: "Permute" permute_param { order: 1 order: 1 }', {"x": (1, 2)}, "the order"),
    "order beyond": ('type: "Permute" permute_param { order: 2 }', {"x": (1, 2)}, "axes below 2"),
    "group": (
        'type: "ShuffleChannel" shuffle_channel_param { group: 2 }',
        {"x": (2, 3, 4, 5)},
        "group 2 for 3 channels",
    ),
    "group 0": ('type: "ShuffleChannel" shuffle_channel_param { group: 0 }', {"x": (2, 3, 4, 5)}, "group 0"),
    "stride": ('type: "Reorg"', {"x": (1, 8, 4, 4)}, "stride 0"),
    "odd": ('type: "Reorg" reorg_param { stride: 2 }', {"x": (1, 8, 5, 4)}, "that 2 divides"),
    "few channels": ('type: "Reorg" reorg_param { stride: 2 reverse: true }', {"x": (1, 6, 5, 4)}, "2 x 2 divides"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_the_layer(name: str) -> None:
    layer, shapes, message = ERRORS[name]
    assert_error_names_layer(OneLayer(f'{layer} top: "out"', shapes), message)
