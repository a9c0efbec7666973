"""Layers that sample images at computed positions, against their loops in NumPy, ncnn and PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest

from converters import ConversionError, convert
from tests.converters.one_layer import OneLayer, assert_close, assert_error_names_layer, run

IMAGE = (2, 4, 6, 7)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([*shape, seed]).normal(size=shape).astype(np.float32)


def answered_by_ncnn(layer: str, inputs: Mapping[str, np.ndarray], weights: bytes = b"\0\0\0\0") -> np.ndarray:
    """What ncnn gives for a layer of its own format, for one image (C, H, W) and the other inputs."""
    ncnn = pytest.importorskip("ncnn", reason="compares with ncnn")
    names = list(inputs)
    lines = [f"Input in_{name} 0 1 {name}" for name in names]
    kind, _, params = layer.partition(" ")
    lines.append(f"{kind} l {len(names)} 1 {' '.join(names)} y {params}")
    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.use_fp16_arithmetic = net.opt.use_fp16_storage = net.opt.use_fp16_packed = False
    net.opt.use_bf16_storage = net.opt.use_packing_layout = False
    assert net.load_param_mem("7767517\n" + f"{len(lines)} {len(names) + 1}\n" + "\n".join(lines) + "\n") == 0
    net.load_model_mem(weights)
    extractor = net.create_extractor()
    for name, array in inputs.items():
        extractor.input(name, ncnn.Mat(np.ascontiguousarray(array)).clone())
    status, y = extractor.extract("y")
    assert status == 0
    return np.array(y)


# ------------------------------------------------------------------------------------------------- spatial transformer

AFFINES = {
    "": ((6, 7), 6),
    "st_param { output_H: 4 output_W: 5 }": ((4, 5), 6),
    "st_param { output_W: 9 to_compute_dU: false }": ((6, 9), 6),
    "st_param { theta_1_2: 0 theta_2_1: 0.25 }": ((6, 7), 4),
    "st_param { theta_1_1: 0.5 theta_1_2: 0 theta_1_3: 0.1 theta_2_1: 0 theta_2_2: 0.5 }": ((6, 7), 1),
}


def transformer(param: str) -> OneLayer:
    return OneLayer(
        f'type: "SpatialTransformer" top: "y" {param}', {"image": IMAGE, "theta": (IMAGE[0], AFFINES[param][1])}
    )


def transformed(image: np.ndarray, theta: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """st_layer.cu: rows first; -1 is the first pixel, 1 is one behind the last."""
    y = np.zeros((*image.shape[:2], *size), np.float32)
    height, width = image.shape[2:]
    for n, s, t in np.ndindex(len(image), *size):
        place = np.array([s / size[0] * 2 - 1, t / size[1] * 2 - 1, 1])
        down, across = theta[n].reshape(2, 3) @ place
        down, across = (down + 1) / 2 * height, (across + 1) / 2 * width
        for row in (math.floor(down), math.floor(down) + 1):
            for column in (math.floor(across), math.floor(across) + 1):
                if 0 <= row < height and 0 <= column < width:
                    weight = (1 - abs(down - row)) * (1 - abs(across - column))
                    y[n, :, s, t] += weight * image[n, :, row, column]
    return y


def full_theta(param: str, values: np.ndarray) -> np.ndarray:
    """The six numbers: those of the description, and in between those of the bottom."""
    words = param.removeprefix("st_param {").removesuffix("}").split()
    fixed = {
        name.rstrip(":"): float(value) for name, value in zip(words[::2], words[1::2], strict=True) if "theta" in name
    }
    rows = []
    for row in values:
        left = iter(row)
        names = [f"theta_{i}_{j}" for i in (1, 2) for j in (1, 2, 3)]
        rows.append([fixed[name] if name in fixed else next(left) for name in names])
    return np.array(rows)


@pytest.mark.parametrize("opset", [16, 17, 20, 22])
@pytest.mark.parametrize("param", AFFINES)
def test_spatial_transformer(param: str, opset: int) -> None:
    model, (size, count) = transformer(param).model(opset), AFFINES[param]
    for batch in (1, 3):
        image, theta = normal(batch, *IMAGE[1:]), 0.7 * normal(batch, count, seed=1)
        expected = transformed(image, full_theta(param, theta), size)
        assert_close(run(model, {"image": image, "theta": theta})[0], expected)


def test_spatial_transformer_without_change() -> None:
    """The identity gives the image, also with theta as a blob of four axes."""
    one = OneLayer('type: "SpatialTransformer" top: "y"', {"image": IMAGE, "theta": (2, 6, 1, 1)})
    image = normal(*IMAGE)
    theta = np.tile(np.array([1, 0, 0, 0, 1, 0], np.float32), (2, 1)).reshape(2, 6, 1, 1)
    assert_close(one.run({"image": image, "theta": theta})[0], image)


# ----------------------------------------------------------------------------------------------- deformable convolution

# Parameters -> kernel, stride, padding, dilation; groups of weights and of offsets; the output's size.
DEFORMED = {
    "kernel_size: 3 pad: 1": ((3, 3), (1, 1), (1, 1), (1, 1), 1, 1, (6, 7)),
    "kernel_size: 3 pad: 2 dilation: 2 deformable_group: 4": ((3, 3), (1, 1), (2, 2), (2, 2), 1, 4, (6, 7)),
    "kernel_size: 3 stride: 2 group: 2 deformable_group: 2": ((3, 3), (2, 2), (0, 0), (1, 1), 2, 2, (2, 3)),
    "kernel_h: 1 kernel_w: 3 pad_h: 0 pad_w: 1 stride_h: 2 stride_w: 1": ((1, 3), (2, 1), (0, 1), (1, 1), 1, 1, (3, 7)),
    "kernel_size: 1 bias_term: false": ((1, 1), (1, 1), (0, 0), (1, 1), 1, 1, (6, 7)),
}


def deformable(param: str) -> OneLayer:
    kernel, _, _, _, group, groups, size = DEFORMED[param]
    blobs = (normal(6, 4 // group, *kernel), *(() if "bias_term" in param else (normal(6),)))
    return OneLayer(
        f'type: "DeformableConvolution" top: "y" deformable_convolution_param {{ num_output: 6 {param} }}',
        {"image": IMAGE, "offset": (IMAGE[0], 2 * groups * math.prod(kernel), *size)},
        blobs,
    )


def deformed(image: np.ndarray, offset: np.ndarray, param: str, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """deformable_im2col.cu, a tap after another; a deformable group is a share of the channels, as in the paper."""
    kernel, stride, pad, dilation, group, groups, size = DEFORMED[param]
    height, width = image.shape[2:]
    taps = np.zeros((len(image), image.shape[1], *kernel, *size))
    for n, c, i, j, h, w in np.ndindex(*taps.shape):
        share = c // (image.shape[1] // groups)
        channel = 2 * (share * math.prod(kernel) + i * kernel[1] + j)
        down = h * stride[0] - pad[0] + i * dilation[0] + offset[n, channel, h, w]
        across = w * stride[1] - pad[1] + j * dilation[1] + offset[n, channel + 1, h, w]
        if not (down >= 0 and across >= 0 and down < height and across < width):
            continue
        down, across = min(down, height - 1), min(across, width - 1)
        top, left = int(down), int(across)
        below, right = min(top + 1, height - 1), min(left + 1, width - 1)
        beta, alpha = down - top, across - left
        taps[n, c, i, j, h, w] = (
            (1 - beta) * (1 - alpha) * image[n, c, top, left]
            + (1 - beta) * alpha * image[n, c, top, right]
            + beta * (1 - alpha) * image[n, c, below, left]
            + beta * alpha * image[n, c, below, right]
        )
    y = np.zeros((len(image), len(weight), *size))
    for output in range(len(weight)):
        first = output // (len(weight) // group) * weight.shape[1]
        y[:, output] = np.einsum("ncijhw,cij->nhw", taps[:, first : first + weight.shape[1]], weight[output])
    return (y + bias.reshape(-1, 1, 1)).astype(np.float32)


@pytest.mark.parametrize("opset", [16, 17, 19, 22])  # from 19 on one operator
@pytest.mark.parametrize("param", DEFORMED)
def test_deformable_convolution(param: str, opset: int) -> None:
    one = deformable(param)
    model = one.model(opset)
    weight, *bias = one.blobs
    for batch in (1, 3):
        image, offset = normal(batch, *IMAGE[1:]), 1.5 * normal(batch, *one.shapes["offset"][1:], seed=1)
        expected = deformed(image, offset, param, weight, bias[0] if bias else np.zeros(6))
        assert_close(run(model, {"image": image, "offset": offset})[0], expected)


@pytest.mark.parametrize("param", DEFORMED)
def test_deformable_convolution_without_offsets_is_convolution(param: str) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    one, (_, stride, pad, dilation, group, _, _) = deformable(param), DEFORMED[param]
    image = normal(*IMAGE)
    weight, *bias = map(torch.from_numpy, one.blobs)
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(image), weight, bias[0] if bias else None, stride, pad, dilation, group
    )
    assert_close(one.run({"image": image, "offset": np.zeros(one.shapes["offset"])})[0], expected.numpy())


@pytest.mark.parametrize("opset", [17, 19])
def test_deformable_convolution_as_ncnn(opset: int) -> None:
    """Where no tap leaves the image: beyond it, ncnn lets a pixel fade out, and the fork does not."""
    one = OneLayer(
        'type: "DeformableConvolution" top: "y" '
        "deformable_convolution_param { num_output: 6 kernel_size: 3 stride: 2 }",
        {"image": (1, *IMAGE[1:]), "offset": (1, 18, 2, 3)},
        (normal(6, 4, 3, 3), normal(6)),
    )
    image, offset = normal(1, *IMAGE[1:]), np.random.default_rng(1).uniform(-2, 2, (1, 18, 2, 3)).astype(np.float32)
    rows, columns = np.arange(2)[:, None] * 2, np.arange(3) * 2
    for tap in range(9):
        down, across = rows + tap // 3, columns + tap % 3
        offset[0, 2 * tap] = np.clip(offset[0, 2 * tap] + down, 0, 5) - down
        offset[0, 2 * tap + 1] = np.clip(offset[0, 2 * tap + 1] + across, 0, 6) - across
    weight, bias = one.blobs
    blob = b"\0\0\0\0" + weight.tobytes() + bias.tobytes()
    layer = f"DeformableConv2D 0=6 1=3 11=3 2=1 12=1 3=2 13=2 4=0 5=1 6={weight.size}"
    expected = answered_by_ncnn(layer, {"image": image[0], "offset": offset[0]}, blob)
    assert_close(one.run({"image": image, "offset": offset}, opset)[0], expected[None])


# ------------------------------------------------------------------------------------------------------------ ROIAlign

ALIGNS = {
    "pooled_h: 3 pooled_w: 2": 0,
    "pooled_h: 3 pooled_w: 2 spatial_scale: 0.5 sampling_ratio: 2": 2,
    "pooled_h: 1 pooled_w: 4 spatial_scale: 0.25 sampling_ratio: -1": 0,
}
FEATURES = (2, 4, 12, 14)


def aligner(param: str, regions: tuple[int, ...] = (3, 5)) -> OneLayer:
    return OneLayer(
        f'type: "ROIAlign" top: "y" roi_align_param {{ {param} }}', {"features": FEATURES, "regions": regions}
    )


def regions(scale: float) -> np.ndarray:
    """Image, xmin, ymin, xmax, ymax; one is narrower than a pixel."""
    boxes = np.array([[0, 1.5, 2.25, 9.75, 8.5], [1, 0.5, 0.75, 12.5, 10.5], [1, 4.25, 5, 4.5, 9.5]], np.float32)
    boxes[:, 1:] /= scale
    return boxes


def aligned(features: np.ndarray, boxes: np.ndarray, param: str) -> np.ndarray:
    """The mean of samples on a regular grid in each bin, each interpolated (He et al. 2017)."""
    words = param.split()
    numbers = {name.rstrip(":"): float(value) for name, value in zip(words[::2], words[1::2], strict=True)}
    bins = int(numbers["pooled_h"]), int(numbers["pooled_w"])
    scale = numbers.get("spatial_scale", 1)
    y = np.zeros((len(boxes), features.shape[1], *bins), np.float32)
    for r, (item, *corners) in enumerate(boxes):
        left, top, right, bottom = (corner * scale for corner in corners)
        size = max(bottom - top, 1) / bins[0], max(right - left, 1) / bins[1]
        counts = [ALIGNS[param] or math.ceil(one) for one in size]
        for i, j in np.ndindex(*bins):
            for a, b in np.ndindex(*counts):
                down = top + (i + (a + 0.5) / counts[0]) * size[0]
                across = left + (j + (b + 0.5) / counts[1]) * size[1]
                y[r, :, i, j] += interpolated(features[int(item)], down, across) / math.prod(counts)
    return y


def interpolated(image: np.ndarray, down: float, across: float) -> np.ndarray:
    height, width = image.shape[1:]
    if not (-1 <= down <= height and -1 <= across <= width):
        return np.zeros(len(image))
    down, across = min(max(down, 0), height - 1), min(max(across, 0), width - 1)
    top, left = int(down), int(across)
    below, right = min(top + 1, height - 1), min(left + 1, width - 1)
    beta, alpha = down - top, across - left
    upper = (1 - alpha) * image[:, top, left] + alpha * image[:, top, right]
    lower = (1 - alpha) * image[:, below, left] + alpha * image[:, below, right]
    return (1 - beta) * upper + beta * lower


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("param", ALIGNS)
def test_roi_align(param: str, opset: int) -> None:
    features = normal(*FEATURES)
    scale = 0.5 if "0.5" in param else 0.25 if "0.25" in param else 1
    boxes = regions(scale)
    expected = aligned(features, boxes, param)
    for shape in ((3, 5), (3, 5, 1, 1)):
        found = aligner(param, shape).run({"features": features, "regions": boxes.reshape(shape)}, opset)[0]
        assert_close(found, expected)


@pytest.mark.parametrize("param", ALIGNS)
def test_roi_align_as_ncnn(param: str) -> None:
    """ncnn takes a region at a time, without the number of its image."""
    features = normal(*FEATURES)
    words = dict(zip(param.split()[::2], param.split()[1::2], strict=True))
    scale = float(words.get("spatial_scale:", 1))
    layer = f"ROIAlign 0={words['pooled_w:']} 1={words['pooled_h:']} 2={scale:f} 3={ALIGNS[param]} 4=0 5=1"
    boxes = regions(scale)
    found = aligner(param).run({"features": features, "regions": boxes})[0]
    for box, one in zip(boxes, found, strict=True):
        assert_close(one, answered_by_ncnn(layer, {"features": features[int(box[0])], "region": box[1:].reshape(1, 4)}))


CASES = {
    **{f"transformer {param}": transformer(param) for param in AFFINES},
    "transformer of a blob": OneLayer('type: "SpatialTransformer" top: "y"', {"image": IMAGE, "theta": (2, 6, 1, 1)}),
    **{f"deformable {param}": deformable(param) for param in DEFORMED},
    **{f"align {param}": aligner(param, (3, 5, 1, 1)) for param in ALIGNS},
}

# -------------------------------------------------------------------------------------------------------------- errors

ERRORS = {
    "projective": (
        'type: "SpatialTransformer" st_param { transform_type: "projective" }',
        {"image": IMAGE, "theta": (2, 6)},
        "transform_type 'projective'",
    ),
    "five numbers": ('type: "SpatialTransformer"', {"image": IMAGE, "theta": (2, 5)}, "six numbers"),
    "no axes": ('type: "SpatialTransformer"', {"image": IMAGE, "theta": ()}, "six numbers"),
    "huge": (
        'type: "SpatialTransformer" st_param { output_W: 2147483647 }',
        {"image": IMAGE, "theta": (2, 6)},
        "output_W 2,147,483,647",
    ),
    "another batch": ('type: "SpatialTransformer"', {"image": IMAGE, "theta": (3, 6)}, "six numbers"),
    "negative": (
        'type: "SpatialTransformer" st_param { output_H: -1 }',
        {"image": IMAGE, "theta": (2, 6)},
        "output_H -1",
    ),
    "offsets": (
        'type: "DeformableConvolution" deformable_convolution_param { num_output: 6 kernel_size: 3 }',
        {"image": IMAGE, "offset": (2, 18, 6, 7)},
        "N x 18 x 4 x 5",
    ),
    "groups": (
        'type: "DeformableConvolution" '
        "deformable_convolution_param { num_output: 6 kernel_size: 3 deformable_group: 3 }",
        {"image": IMAGE, "offset": (2, 54, 4, 5)},
        "deformable_group 3",
    ),
    "other ROIAlign": (
        'type: "ROIAlign" roi_pooling_param { pooled_h: 3 pooled_w: 2 }',
        {"features": FEATURES, "regions": (3, 5)},
        "no roi_align_param",
    ),
    "no size": ('type: "ROIAlign" roi_align_param { }', {"features": FEATURES, "regions": (3, 5)}, "pooled_h 0"),
    "regions": (
        'type: "ROIAlign" roi_align_param { pooled_h: 3 pooled_w: 2 }',
        {"features": FEATURES, "regions": (3, 4)},
        "5 numbers per region",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_the_layer(name: str) -> None:
    layer, shapes, message = ERRORS[name]
    assert_error_names_layer(OneLayer(f'{layer} top: "y"', shapes), message)


@pytest.mark.parametrize(
    ("name", "opset", "message"),
    [("transformer ", 15, "--opset 16"), (f"align {next(iter(ALIGNS))}", 22, "at most 21")],
)
def test_opset_without_the_operator(name: str, opset: int, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        convert(CASES[name].net(), opset=opset)
