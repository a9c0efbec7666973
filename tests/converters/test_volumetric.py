"""C3D's layers, against their loops (facebookarchive/C3D) in NumPy and against PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import convert, read_net
from converters.reader import parse_prototxt
from tests.caffe_files import field, written
from tests.converters.one_layer import OneLayer, assert_close, assert_error_names_layer, run

VIDEO = {"x": (2, 3, 5, 7, 6)}
RNG = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def video(batch: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(batch).normal(size=(batch, channels, 5, 7, 6)).astype(np.float32)


# --------------------------------------------------------------------------------------------------------- convolution

# Parameters -> kernel, stride and padding for length, height, width.
KERNELS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "kernel_size: 3 kernel_depth: 3 pad: 1 temporal_pad: 1": ((3, 3, 3), (1, 1, 1), (1, 1, 1)),
    "kernel_size: 2 kernel_depth: 3": ((3, 2, 2), (1, 1, 1), (0, 0, 0)),
    "kernel_size: 3 kernel_depth: 1 stride: 2 pad: 1": ((1, 3, 3), (1, 2, 2), (0, 1, 1)),
    "kernel_size: 3 kernel_depth: 2 stride: 2 temporal_stride: 3 temporal_pad: 1": ((2, 3, 3), (3, 2, 2), (1, 0, 0)),
    "kernel_size: 3 kernel_depth: 3 group: 3 filter_group: 2": ((3, 3, 3), (1, 1, 1), (0, 0, 0)),  # both without effect
}
MESSAGES = ("convolution_param", "convolution3d_param")  # C3D 1.0 and 1.1


def convolution(param: str, message: str = MESSAGES[0], bias: tuple[int, ...] | None = (4,)) -> OneLayer:
    kernel = KERNELS[param][0]
    extra = "" if bias else "bias_term: false"
    layer = f'type: "Convolution3D" top: "y" {message} {{ num_output: 4 {param} {extra} }}'
    blobs = (weights(4, 3, *kernel), *([weights(*bias)] if bias else []))
    return OneLayer(layer, VIDEO, blobs)


def deconvolution(param: str, message: str = MESSAGES[0]) -> OneLayer:
    layer = f'type: "Deconvolution3D" top: "y" {message} {{ num_output: 4 {param} }}'
    return OneLayer(layer, VIDEO, (weights(3, 4, *KERNELS[param][0]), weights(1, 1, 1, 1, 4)))


def convolved(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: Sequence[int], pad: Sequence[int]
) -> np.ndarray:
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *((p, p) for p in pad)])
    kernel = weight.shape[2:]
    size = [(full - k) // step + 1 for full, k, step in zip(padded.shape[2:], kernel, stride, strict=True)]
    y = np.zeros((len(x), len(weight), *size), np.float32)
    for place in np.ndindex(*size):
        window = [slice(p * s, p * s + k) for p, s, k in zip(place, stride, kernel, strict=True)]
        for output in range(len(weight)):
            taps = padded[:, :, *window] * weight[output]
            y[:, output, *place] = taps.sum(axis=(1, 2, 3, 4)) + bias[output]
    return y


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("param", KERNELS)
def test_convolution(param: str, message: str) -> None:
    one, (_, stride, pad) = convolution(param, message), KERNELS[param]
    model = one.model()
    for batch in (1, 3):
        x = video(batch)
        assert_close(run(model, {"x": x})[0], convolved(x, *one.blobs, stride, pad))


def test_convolution_without_bias_and_with_one_of_five_axes() -> None:
    param = next(iter(KERNELS))
    x, (_, stride, pad) = video(2), KERNELS[param]
    for bias in (None, (1, 1, 1, 1, 4)):
        one = convolution(param, bias=bias)
        offset = one.blobs[1].ravel() if bias else np.zeros(4)
        assert_close(one.run({"x": x})[0], convolved(x, one.blobs[0], offset, stride, pad))


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("param", KERNELS)
def test_deconvolution(param: str, message: str) -> None:
    """Each value times the kernel, added where it falls."""
    one, (kernel, stride, pad) = deconvolution(param, message), KERNELS[param]
    x = video(2)
    full = [(size - 1) * step + k for size, step, k in zip(x.shape[2:], stride, kernel, strict=True)]
    y = np.zeros((2, 4, *full))
    for place in np.ndindex(*x.shape[2:]):
        window = [slice(p * s, p * s + k) for p, s, k in zip(place, stride, kernel, strict=True)]
        y[:, :, *window] += np.einsum("nc,codhw->nodhw", x[:, :, *place], one.blobs[0])
    inside = [slice(p, size - p) for p, size in zip(pad, full, strict=True)]
    expected = y[:, :, *inside] + one.blobs[1].reshape(4, 1, 1, 1)
    assert_close(one.run({"x": x})[0], expected.astype(np.float32))


# ------------------------------------------------------------------------------------------------------------- pooling

POOLS = (
    "kernel_size: 2 kernel_depth: 1 stride: 2 temporal_stride: 1",
    "kernel_size: 2 kernel_depth: 2 stride: 2 temporal_stride: 2",
    "kernel_size: 3 kernel_depth: 2 stride: 2 temporal_stride: 3",
    "kernel_size: 3 kernel_depth: 5",
    "pool: AVE kernel_size: 2 kernel_depth: 2 stride: 2 temporal_stride: 2",
    "pool: AVE kernel_size: 3 kernel_depth: 2 stride: 2 temporal_stride: 2 pad: 1",
    "pool: AVE kernel_size: 2 kernel_depth: 1 stride: 3 pad: 1",
    "pool: AVE kernel_size: 7 kernel_depth: 5 pad: 1",
    "pool: AVE kernel_size: 7 kernel_depth: 5 stride: 2",
    "kernel_size: 7 kernel_depth: 5 stride: 2",
)


def pooling(param: str, message: str = "pooling_param") -> OneLayer:
    return OneLayer(f'type: "Pooling3D" top: "y" {message} {{ {param} }}', VIDEO)


def numbers(param: str) -> dict[str, int]:
    words = param.replace("pool: AVE", "").split()
    return {name.rstrip(":"): int(value) for name, value in zip(words[::2], words[1::2], strict=True)}


def pooled(x: np.ndarray, param: str) -> np.ndarray:
    """pool3d_layer.cpp: the number of windows is rounded up, averages divide by what is within the padding."""
    given = numbers(param)
    kernel = [given["kernel_depth"], given["kernel_size"], given["kernel_size"]]
    stride = [given.get("temporal_stride", 1), given.get("stride", 1), given.get("stride", 1)]
    pad = [0, given.get("pad", 0), given.get("pad", 0)]
    sizes = x.shape[2:]
    out = [math.ceil((size + 2 * p - k) / s) + 1 for size, p, k, s in zip(sizes, pad, kernel, stride, strict=True)]
    y = np.zeros((*x.shape[:2], *out), np.float32)
    for place in np.ndindex(*out):
        starts = [at * s - p for at, s, p in zip(place, stride, pad, strict=True)]
        ends = [min(start + k, size + p) for start, k, size, p in zip(starts, kernel, sizes, pad, strict=True)]
        area = math.prod(end - start for start, end in zip(starts, ends, strict=True))
        window = [slice(max(start, 0), min(end, size)) for start, end, size in zip(starts, ends, sizes, strict=True)]
        values = x[:, :, *window]
        with np.errstate(invalid="ignore"):  # a window of no area
            y[:, :, *place] = values.sum(axis=(2, 3, 4)) / area if "AVE" in param else values.max(axis=(2, 3, 4))
    return y


@pytest.mark.parametrize("message", ["pooling_param", "pooling3d_param"])
@pytest.mark.parametrize("param", POOLS)
def test_pooling(param: str, message: str) -> None:
    model = pooling(param, message).model()
    for batch in (1, 3):
        x = video(batch)
        assert_close(run(model, {"x": x})[0], pooled(x, param))


def test_voxel_softmax() -> None:
    x = video(2)
    expected = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    assert_close(SOFTMAX.run({"x": x})[0], expected)


SOFTMAX = OneLayer('type: "VoxelSoftmax" top: "y"', VIDEO)
CASES = {
    **{f"convolution {message}": convolution(next(iter(KERNELS)), message) for message in MESSAGES},
    "deconvolution": deconvolution(next(iter(KERNELS))),
    **{param: pooling(param) for param in POOLS},
    "softmax": SOFTMAX,
}

# ----------------------------------------------------------------------------------------------------- the whole of C3D

# Channels of each group's convolutions; a pooling follows each group (Tran et al. 2015, figure 3).
GROUPS = ((64,), (128,), (256, 256), (512, 512), (512, 512))
FULLY_CONNECTED = (4096, 4096, 487)


def c3d(shape: tuple[int, ...], groups: Sequence[Sequence[int]], fully_connected: Sequence[int]) -> str:
    """C3D's deploy network, as its feature extractor describes it."""
    layers, bottom = [], "data"
    for index, widths in enumerate(groups):
        for letter, width in zip("ab", widths, strict=False):
            name = f"conv{index + 1}{letter}"
            layers.append(
                f'layer {{ name: "{name}" type: "Convolution3D" bottom: "{bottom}" top: "{name}" convolution_param {{ '
                f"num_output: {width} kernel_size: 3 kernel_depth: 3 pad: 1 temporal_pad: 1 }} }}\n"
                f'layer {{ name: "relu_{name}" type: "ReLU" bottom: "{name}" top: "{name}" }}'
            )
            bottom = name
        depth = 2 if index else 1
        layers.append(
            f'layer {{ name: "pool{index + 1}" type: "Pooling3D" bottom: "{bottom}" top: "pool{index + 1}" '
            f"pooling_param {{ pool: MAX kernel_size: 2 kernel_depth: {depth} stride: 2 temporal_stride: {depth} }} }}"
        )
        bottom = f"pool{index + 1}"
    for index, width in enumerate(fully_connected):
        name = f"fc{index + 6}"
        layers.append(
            f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" inner_product_param {{ '
            f"num_output: {width} }} }}"
        )
        if index < len(fully_connected) - 1:
            layers.append(f'layer {{ name: "relu{index + 6}" type: "ReLU" bottom: "{name}" top: "{name}" }}')
        bottom = name
    layers.append(f'layer {{ name: "prob" type: "Softmax" bottom: "{bottom}" top: "prob" }}')
    dims = " ".join(f"dim: {size}" for size in shape)
    return f'input: "data" input_shape {{ {dims} }}\n' + "\n".join(layers)


def compare_c3d(shape: tuple[int, ...], groups: Sequence[Sequence[int]], fully_connected: Sequence[int]) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    functional = torch.nn.functional
    net = read_net(parse_prototxt(c3d(shape, groups, fully_connected), "c3d.prototxt"))
    rng = np.random.default_rng(0)
    kept: dict[str, tuple[Any, ...]] = {}  # name -> tensors

    def fill(layer: object, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """He et al.'s weights: the values neither vanish nor grow from layer to layer."""
        deviation = math.sqrt(2 / math.prod(shapes[0][1:]))
        blobs = [
            rng.standard_normal(shapes[0], np.float32) * np.float32(deviation),
            np.full(shapes[1], 0.1, np.float32),
        ]
        kept[layer.name] = tuple(map(torch.from_numpy, blobs))
        return blobs

    model = convert(replace(net, layers=tuple(replace(layer, filler=fill) for layer in net.layers)))
    x = rng.standard_normal(shape, np.float32)
    (found,) = run(model, {"data": x})
    with torch.inference_mode():
        y = torch.from_numpy(x)
        for index, widths in enumerate(groups):
            for letter in "ab"[: len(widths)]:
                y = functional.conv3d(y, *kept[f"conv{index + 1}{letter}"], padding=1).relu()
            depth = 2 if index else 1
            y = functional.max_pool3d(y, (depth, 2, 2), (depth, 2, 2), ceil_mode=True)
        y = y.flatten(1)
        for index in range(len(fully_connected)):
            y = functional.linear(y, *kept[f"fc{index + 6}"])
            y = y.relu() if index < len(fully_connected) - 1 else y.softmax(1)
    expected = y.numpy()
    assert expected.std() > 0.01 / expected.shape[1]  # not the same score everywhere
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore::converters.ConversionWarning")
def test_c3d_small() -> None:
    compare_c3d((2, 3, 16, 28, 28), [[4], [4], [8, 8], [8, 8], [8, 8]], (16, 16, 10))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::converters.ConversionWarning")
def test_c3d_at_full_size() -> None:
    """16 frames of 112 x 112, 78 million weights. Pooling rounds 7 up to 4, which padding alone would not."""
    compare_c3d((1, 3, 16, 112, 112), GROUPS, FULLY_CONNECTED)


# ---------------------------------------------------------------------------------------------------- C3D 1.0's weights


def five_sizes(values: np.ndarray) -> bytes:
    """C3D 1.0's BlobProto: num, channels, length, height, width, data and diff, numbered from 1 on."""
    shape = (1,) * (5 - values.ndim) + values.shape
    varints = b"".join(bytes([number << 3, size]) for number, size in enumerate(shape, start=1))
    return varints + field(6, values.tobytes()) + field(7, (values * 7).tobytes())


def test_weights_of_c3d(tmp_path: Path) -> None:
    """Field 5 is a width there, and the weights are field 6, where BVLC's Caffe has the diff."""
    text = c3d((1, 3, 16, 28, 28), [[2], [2], [2], [2], [2]], (4,))
    net = read_net(parse_prototxt(text))
    blobs = {
        layer.name: [weights(*shape) for shape in ((2, 3 if layer.name == "conv1a" else 2, 3, 3, 3), (2,))]
        for layer in net.layers
        if layer.type == "Convolution3D"
    }
    blobs["fc6"] = [weights(4, 2), weights(4)]
    encoded = b"".join(
        field(2, field(4, name.encode()) + b"".join(field(6, five_sizes(one)) for one in both))
        for name, both in blobs.items()
    )
    prototxt = written(tmp_path / "c3d.prototxt", text)
    model = convert(prototxt, written(tmp_path / "c3d.caffemodel", encoded))
    filled = tuple(replace(layer, blobs=tuple(blobs.get(layer.name, ()))) for layer in net.layers)
    x = np.random.default_rng(0).normal(size=(1, 3, 16, 28, 28))
    np.testing.assert_array_equal(*(run(one, {"data": x})[0] for one in (model, convert(replace(net, layers=filled)))))


# -------------------------------------------------------------------------------------------------------------- errors

ERRORS = {
    "flat": (
        'type: "Convolution3D" convolution_param { num_output: 1 }',
        {"x": (2, 3, 4, 5)},
        "length x height x width",
    ),
    "no outputs": (
        'type: "Convolution3D" convolution_param { kernel_size: 3 kernel_depth: 3 }',
        VIDEO,
        "no num_output",
    ),
    "no depth": ('type: "Convolution3D" convolution_param { num_output: 1 kernel_size: 3 }', VIDEO, "kernel_depth 0"),
    "stride 0": (
        'type: "Convolution3D" convolution3d_param { num_output: 1 kernel_size: 3 kernel_depth: 1 stride: 0 }',
        VIDEO,
        "stride 0",
    ),
    "two sizes": (
        'type: "Convolution3D" convolution_param { num_output: 1 kernel_size: 3 kernel_size: 2 kernel_depth: 1 }',
        VIDEO,
        "2 values for kernel_size",
    ),
    "no weights": (
        'type: "Convolution3D" convolution_param { num_output: 1 kernel_size: 9 kernel_depth: 1 }',
        VIDEO,
        "found no weights",
    ),
    "pool without depth": ('type: "Pooling3D" pooling_param { kernel_size: 2 }', VIDEO, r"kernel \(0, 2, 2\)"),
    "padded maximum": ('type: "Pooling3D" pooling_param { kernel_size: 2 kernel_depth: 1 pad: 1 }', VIDEO, "pool MAX"),
    "stochastic": (
        'type: "Pooling3D" pooling_param { pool: STOCHASTIC kernel_size: 2 kernel_depth: 1 }',
        VIDEO,
        "pool STOCHASTIC",
    ),
    "long window": ('type: "Pooling3D" pooling_param { kernel_size: 2 kernel_depth: 9 }', VIDEO, "fits into"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_the_layer(name: str) -> None:
    layer, shapes, message = ERRORS[name]
    assert_error_names_layer(OneLayer(f'{layer} top: "y"', shapes), message)
