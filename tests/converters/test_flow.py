"""FlowNet's layers, against the loops of their CUDA code (lmb-freiburg/flownet2) in NumPy, and OpenCV."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from converters import ConversionError, convert
from tests.converters.one_layer import OneLayer, assert_close, assert_error_names_layer, run

IMAGE = (2, 3, 7, 9)
PAIR = {"a": IMAGE, "b": IMAGE}
RNG = np.random.default_rng(0)


def normal(batch: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng([batch, seed]).normal(size=(batch, *shape[1:])).astype(np.float32)


# --------------------------------------------------------------------------------------------------------- correlation

CORRELATIONS = (
    "pad: 2 kernel_size: 1 max_displacement: 2",
    "pad: 4 kernel_size: 1 max_displacement: 4 stride_2: 2",
    "pad: 1 kernel_size: 1 max_displacement: 2",
    "pad: 4 kernel_size: 1 max_displacement: 2",
    "pad: 3 kernel_size: 1 max_displacement: 3 stride_1: 2 stride_2: 2",
    "pad: 3 kernel_size: 3 max_displacement: 2",
    "pad: 3 kernel_size: 3 max_displacement: 2 stride_1: 2 stride_2: 2",
    "pad: 3 kernel_size: 5 max_displacement: 1 stride_1: 3",
    "kernel_size: 1 max_displacement: 0",
    "pad: 2 kernel_size: 1 max_displacement: 2 correlation_type: SUBTRACT",
    "pad: 3 kernel_size: 3 max_displacement: 2 stride_1: 2 stride_2: 2 correlation_type: SUBTRACT",
)
SIDES = (
    "pad: 4 kernel_size: 1 max_displacement: 4",
    "pad: 4 kernel_size: 1 max_displacement: 4 stride_2: 2 single_direction: -1",
    "pad: 4 kernel_size: 3 max_displacement: 3 stride_1: 2 single_direction: 1",
    "pad: 4 kernel_size: 3 max_displacement: 4 stride_2: 2 correlation_type: SUBTRACT single_direction: -1",
)


def correlation(param: str, type: str = "Correlation") -> OneLayer:
    return OneLayer(f'type: "{type}" top: "y" correlation_param {{ {param} }}', PAIR)


def given(param: str) -> dict[str, int]:
    words = param.replace("correlation_type: SUBTRACT", "").split()
    return {name.rstrip(":"): int(value) for name, value in zip(words[::2], words[1::2], strict=True)}


def correlated(a: np.ndarray, b: np.ndarray, param: str, *, rows_only: bool) -> np.ndarray:
    """One output after another: the patch at (y, x) of the first image, the displaced one of the second."""
    numbers = given(param)
    pad, kernel, reach = numbers.get("pad", 0), numbers["kernel_size"], numbers["max_displacement"]
    step, shift = numbers.get("stride_1", 1), numbers.get("stride_2", 1)
    radius, steps = (kernel - 1) // 2, reach // shift
    side = numbers.get("single_direction", 0)
    columns = {0: range(-steps, steps + 1), 1: range(steps + 1), -1: range(-steps - 1, 0)}[side]
    rows = range(1) if rows_only else columns
    down = 0 if rows_only else reach
    height = math.ceil((a.shape[2] + (0 if rows_only else 2 * pad) - 2 * (down + radius)) / step)
    width = math.ceil((a.shape[3] + 2 * pad - 2 * (reach + radius)) / step)
    far = 50  # zeros beyond the padding, too
    border = [(0, 0), (0, 0), (far, far), (far, far)]
    a, b = np.pad(a, border), np.pad(b, border)
    top = far - (0 if rows_only else pad) + down
    left = far - pad + reach
    y = np.zeros((len(a), len(rows) * len(columns), height, width), np.float32)
    for place, (i, j) in enumerate((i, j) for i in rows for j in columns):
        for h, w in np.ndindex(height, width):
            at, to = top + h * step, left + w * step
            first = a[:, :, at : at + kernel, to : to + kernel].astype(np.float64)
            at, to = at + i * shift, to + j * shift
            second = b[:, :, at : at + kernel, to : to + kernel]
            compared = np.abs(first - second) if "SUBTRACT" in param else first * second
            y[:, place, h, w] = compared.mean(axis=(1, 2, 3))
    return y


@pytest.mark.parametrize("opset", [13, 17, 18])
@pytest.mark.parametrize("param", CORRELATIONS)
def test_correlation(param: str, opset: int) -> None:
    model = correlation(param).model(opset)
    for batch in (1, 3):
        a, b = normal(batch, IMAGE), normal(batch, IMAGE, 1)
        assert_close(run(model, {"a": a, "b": b})[0], correlated(a, b, param, rows_only=False))


@pytest.mark.parametrize("param", SIDES)
def test_correlation_1d(param: str) -> None:
    model = correlation(param, "Correlation1D").model()
    for batch in (1, 3):
        a, b = normal(batch, IMAGE), normal(batch, IMAGE, 1)
        assert_close(run(model, {"a": a, "b": b})[0], correlated(a, b, param, rows_only=True))


@pytest.mark.parametrize("param", [param for param in CORRELATIONS if "SUBTRACT" not in param])
def test_correlation_as_opencv(param: str, tmp_path: Path) -> None:
    inputs = {"a": normal(1, IMAGE), "b": normal(1, IMAGE, 1)}
    one = OneLayer(correlation(param).layer, dict.fromkeys(PAIR, (1, *IMAGE[1:])))
    assert_close(one.run(inputs)[0], one.opencv(inputs, tmp_path))


# ------------------------------------------------------------------------------------------------------------ FlowWarp

FLOW = {"image": IMAGE, "flow": (2, 2, 7, 9)}
WARP = OneLayer('type: "FlowWarp" top: "y"', FLOW)
NAN = OneLayer('type: "FlowWarp" top: "y" flow_warp_param { fill_value: NOT_A_NUMBER }', FLOW)


def warped(image: np.ndarray, flow: np.ndarray, fill: float) -> np.ndarray:
    """flow_warp_layer.cu: the pixel right of the last column, or below the last row, is that one again."""
    y = np.full_like(image, fill)
    height, width = image.shape[2:]
    for n, h, w in np.ndindex(len(image), height, width):
        across, down = np.float32(w) + flow[n, 0, h, w], np.float32(h) + flow[n, 1, h, w]
        if not (across >= 0 and down >= 0 and across < width and down < height):
            continue
        left, top = int(across), int(down)
        right, below = min(left + 1, width - 1), min(top + 1, height - 1)
        alpha, beta = across - left, down - top
        y[n, :, h, w] = (
            (1 - alpha) * (1 - beta) * image[n, :, top, left]
            + alpha * (1 - beta) * image[n, :, top, right]
            + (1 - alpha) * beta * image[n, :, below, left]
            + alpha * beta * image[n, :, below, right]
        )
    return y


def flows(batch: int) -> np.ndarray:
    """Some inside, some outside, some on the edges, one nowhere."""
    flow = 4 * normal(batch, FLOW["flow"], 2)
    flow[0, :, 0, 0] = [8.5, 6.25]  # in the last pixel's right and lower half
    flow[0, :, 1, 1] = [-1, -1]  # the first pixel
    flow[0, :, 1, 2] = [7, -1]  # just outside
    flow[0, :, 2, 0] = [np.nan, 0]
    flow[0, :, 2, 1] = [np.inf, 0]
    return flow


@pytest.mark.parametrize("opset", [16, 17, 20, 22])
def test_flow_warp(opset: int) -> None:
    for one, fill in ((WARP, 0.0), (NAN, np.nan)):
        model = one.model(opset)
        for batch in (1, 3):
            image, flow = normal(batch, IMAGE), flows(batch)
            found, expected = run(model, {"image": image, "flow": flow})[0], warped(image, flow, fill)
            np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
            assert_close(found, expected)


def test_flow_warp_as_opencv(tmp_path: Path) -> None:
    inputs = {"image": normal(1, IMAGE), "flow": 2 * normal(1, FLOW["flow"], 2)}
    one = OneLayer(WARP.layer, {name: (1, *shape[1:]) for name, shape in FLOW.items()})
    assert_close(one.run(inputs)[0], one.opencv(inputs, tmp_path))


# ---------------------------------------------------------------------------------------------------------- other sizes

RESAMPLES = (
    "height: 14 width: 18",
    "height: 14 width: 18 type: CUBIC",
    "height: 14 width: 18 type: NEAREST",
    "height: 21 width: 27 type: NEAREST",
    "height: 3 width: 4",
    "height: 3 width: 4 type: CUBIC",
    "height: 3 width: 4 antialias: false",
    "height: 3 width: 4 type: CUBIC antialias: false",
    "height: 5 width: 20",
    "height: 7 width: 9",
    "height: 1 width: 1",
)


def resampling(param: str) -> OneLayer:
    return OneLayer(f'type: "Resample" top: "y" resample_param {{ {param} }}', {"x": IMAGE})


def curve(x: float, kind: str) -> float:
    x = abs(x)
    if kind == "CUBIC":
        return x * x * (1.5 * x - 2.5) + 1 if x <= 1 else x * (x * (-0.5 * x + 2.5) - 4) + 2 if x < 2 else 0
    return 1 - x if x <= 1 else 0


def half_away(x: float) -> int:
    return math.floor(x + 0.5) if x >= 0 else math.ceil(x - 0.5)


def resampled(x: np.ndarray, param: str) -> np.ndarray:
    """resample_layer.cu, pixel by pixel: note that x is shifted by half of fy, and y by half of fx."""
    words = param.split()
    numbers = dict(zip(words[::2], words[1::2], strict=True))
    size, kind = (int(numbers["height:"]), int(numbers["width:"])), numbers.get("type:", "LINEAR")
    height, width = x.shape[2:]
    fy, fx = height / size[0], width / size[1]
    smooth = (fx > 1 or fy > 1) and numbers.get("antialias:") != "false"
    y = np.zeros((*x.shape[:2], *size), np.float32)
    ax, ay = (1 / fx, 1 / fy) if smooth else (1, 1)
    reach = 4 if kind == "CUBIC" else 2
    rx, ry = (2 if f < 1 else math.ceil(reach / a) for f, a in ((fx, ax), (fy, ay)))
    for row, column in np.ndindex(*size):
        across, down = column * fx + fy / 2 - 0.5, row * fy + fx / 2 - 0.5
        if kind == "NEAREST":
            y[:, :, row, column] = x[:, :, half_away(down), half_away(across)]
            continue
        total = np.zeros(x.shape[:2])
        weights = 0.0
        for h in range(half_away(down) - ry, half_away(down) + ry + 1):
            for w in range(half_away(across) - rx, half_away(across) + rx + 1):
                if 0 <= h < height and 0 <= w < width:
                    weight = curve(ax * (across - w), kind) * curve(ay * (down - h), kind)
                    total += weight * x[:, :, h, w]
                    weights += weight
        y[:, :, row, column] = total / weights if weights else 0
    return y


@pytest.mark.parametrize("param", RESAMPLES)
def test_resample(param: str) -> None:
    model = resampling(param).model()
    for batch in (1, 3):
        x = normal(batch, IMAGE)
        assert_close(run(model, {"x": x})[0], resampled(x, param))


def test_resample_enlarges_as_opencv() -> None:
    """By one factor in both directions its linear filter is the usual one."""
    x = normal(1, IMAGE)
    large = np.stack([cv2.resize(channel, (18, 14), interpolation=cv2.INTER_LINEAR) for channel in x[0]])
    assert_close(resampling(RESAMPLES[0]).run({"x": x})[0], large[None])


def test_resample_to_the_size_of_a_second_blob() -> None:
    one = OneLayer('type: "Resample" top: "y"', {"x": IMAGE, "like": (2, 1, 14, 18)})
    x = normal(2, IMAGE)
    assert_close(one.run({"x": x, "like": np.zeros((2, 1, 14, 18))})[0], resampled(x, RESAMPLES[0]))


DOWNSAMPLES = {
    "top_height: 3 top_width: 4": (3, 4),
    "top_height: 2 top_width: 9": (2, 9),
    "top_height: 7 top_width: 9": (7, 9),
}


def downsampling(param: str) -> OneLayer:
    return OneLayer(f'type: "Downsample" top: "y" downsample_param {{ {param} }}', {"x": IMAGE})


def downsampled(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """downsample_layer.cu, pixel by pixel."""
    height, width = x.shape[2:]
    if size == (height, width):
        return x
    y = np.zeros((*x.shape[:2], *size), np.float32)
    sy, sx = (height - 1) / (size[0] - 1), (width - 1) / (size[1] - 1)
    for row, column in np.ndindex(*size):
        down, across = row / (size[0] - 1) * (height - 1), column / (size[1] - 1) * (width - 1)
        total, weights = np.zeros(x.shape[:2]), 0.0
        for h in range(half_away(down) - math.ceil(sy), half_away(down) + math.ceil(sy) + 1):
            for w in range(half_away(across) - math.ceil(sx), half_away(across) + math.ceil(sx) + 1):
                if 0 <= h < height and 0 <= w < width:
                    weight = max(0, 1 - abs(w - across) / sx) * max(0, 1 - abs(h - down) / sy)
                    total += weight * x[:, :, h, w]
                    weights += weight
        y[:, :, row, column] = total / weights
    return y


@pytest.mark.parametrize("param", DOWNSAMPLES)
def test_downsample(param: str) -> None:
    model = downsampling(param).model()
    for batch in (1, 3):
        x = normal(batch, IMAGE)
        assert_close(run(model, {"x": x})[0], downsampled(x, DOWNSAMPLES[param]))


# Parameters -> the output's size, for bottoms of 7 x 9 and 4 x 12.
ACCUMULATED = {
    "": (7, 12),
    "top_height: 10 top_width: 20": (10, 20),
    "top_height: 10 top_width: 12": (7, 12),  # only where both are larger
    "size_divisible_by: 8": (8, 16),
    "size_divisible_by: 6": (7, 12),
    "have_reference: true": (11, 5),
}


def accumulation(param: str) -> OneLayer:
    shapes = {"a": IMAGE, "b": (2, 2, 4, 12)}
    if "reference" in param:
        shapes["like"] = (2, 1, 11, 5)
    return OneLayer(f'type: "Accum" top: "y" accum_param {{ {param} }}', shapes)


def between_corners(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear; the first and last pixels stay first and last."""
    rows, columns = (np.arange(new) * (old - 1) / (new - 1) for new, old in zip(size, x.shape[2:], strict=True))
    y = np.zeros((*x.shape[:2], *size), np.float32)
    for h, w in np.ndindex(*size):
        (top, down), (left, across) = divmod(rows[h], 1), divmod(columns[w], 1)
        for i, j in np.ndindex(2, 2):
            weight = (down if i else 1 - down) * (across if j else 1 - across)
            row, column = min(int(top) + i, x.shape[2] - 1), min(int(left) + j, x.shape[3] - 1)
            y[:, :, h, w] += weight * x[:, :, row, column]
    return y


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("param", ACCUMULATED)
def test_accum(param: str, opset: int) -> None:
    model = accumulation(param).model(opset)
    for batch in (1, 3):
        a, b = normal(batch, IMAGE), normal(batch, (2, 2, 4, 12), 1)
        expected = np.concatenate([between_corners(x, ACCUMULATED[param]) for x in (a, b)], axis=1)
        inputs = {"a": a, "b": b, "like": np.zeros((batch, 1, 11, 5))}
        assert_close(run(model, inputs)[0], expected)


def test_accum_as_opencv(tmp_path: Path) -> None:
    shapes = {"a": (1, *IMAGE[1:]), "like": (1, 1, 11, 5)}
    one = OneLayer(accumulation("have_reference: true").layer, shapes)
    inputs = {"a": normal(1, IMAGE), "like": np.zeros((1, 1, 11, 5), np.float32)}
    assert_close(one.run(inputs)[0], one.opencv(inputs, tmp_path))


# --------------------------------------------------------------------------------------------------- values of channels

MEAN = OneLayer(
    'type: "Mean" top: "y" top: "z" mean_param { operation: SUBTRACT value: 0.4 value: 0.5 value: 0.3 '
    "input_scale: 0.25 mean_scale: 2 output_scale: 3 }",
    {"a": IMAGE, "b": (2, 6, 2, 2)},
)
ADDED = OneLayer('type: "Mean" top: "y" mean_param { operation: ADD value: 2 }', {"x": IMAGE})
NORM = OneLayer('type: "ChannelNorm" top: "y"', {"x": IMAGE})


def test_mean() -> None:
    a, b = normal(3, IMAGE), normal(3, (2, 6, 2, 2), 1)
    means = np.array([0.4, 0.5, 0.3], np.float32)
    expected = [3 * (0.25 * x - 2 * np.resize(means, x.shape[1]).reshape(-1, 1, 1)) for x in (a, b)]
    for found, wanted in zip(MEAN.run({"a": a, "b": b}), expected, strict=True):
        assert_close(found, wanted.astype(np.float32))
    assert_close(ADDED.run({"x": a})[0], a + 2)


@pytest.mark.parametrize("opset", [13, 18])
def test_channel_norm(opset: int) -> None:
    x = normal(3, IMAGE)
    assert_close(NORM.run({"x": x}, opset)[0], np.sqrt((x**2).sum(axis=1, keepdims=True)))


COUNT, PIXELS, CHANNELS = np.full((1, 1, 1, 1), 1500.0), RNG.normal(size=(1, 3, 7, 9)), RNG.normal(size=(1, 3, 1, 1))
SMALL = RNG.normal(size=(1, 3, 4, 5))

# Parameters and the stored means -> what is subtracted.
AUGMENTATIONS = {
    "recompute_mean: 1000 mean_per_pixel: false augment_during_test: true": ((COUNT, PIXELS, CHANNELS), CHANNELS),
    "recompute_mean: 1000": ((COUNT, PIXELS, CHANNELS), PIXELS),
    "recompute_mean: 10": ((COUNT, SMALL, CHANNELS), SMALL.mean(axis=(2, 3), keepdims=True)),
    "mean: 1 mean: 2 mean: 3 mean_per_pixel: false": ((), np.array([1, 2, 3]).reshape(1, 3, 1, 1)),
    "": ((), 0),
}


def augmentation(param: str) -> OneLayer:
    layer = f'type: "DataAugmentation" top: "y" augmentation_param {{ {param} }}'
    return OneLayer(layer, {"x": IMAGE}, AUGMENTATIONS[param][0])


@pytest.mark.parametrize("param", AUGMENTATIONS)
def test_data_augmentation_subtracts_the_mean(param: str) -> None:
    model = augmentation(param).model()
    for batch in (1, 3):
        x = normal(batch, IMAGE)
        assert_close(run(model, {"x": x})[0], (x - AUGMENTATIONS[param][1]).astype(np.float32))


SINGLE = {"coeff: 0.25": 0.25, "": 1, "operation: MAX": 1, "operation: PROD": 1}


def single(param: str) -> OneLayer:
    return OneLayer(f'type: "Eltwise" top: "y" eltwise_param {{ {param} }}', {"x": IMAGE})


@pytest.mark.parametrize("param", SINGLE)
def test_eltwise_of_one_blob(param: str) -> None:
    """FlowNet 2 scales its images so; BVLC's Caffe wants two."""
    x = normal(2, IMAGE)
    assert_close(single(param).run({"x": x})[0], SINGLE[param] * x)


CASES = {
    **{f"eltwise {param}": single(param) for param in SINGLE},
    **{f"augmentation {param}": augmentation(param) for param in AUGMENTATIONS},
    **{param: correlation(param) for param in CORRELATIONS},
    **{f"1d {param}": correlation(param, "Correlation1D") for param in SIDES},
    "warp": WARP,
    **{f"resample {param}": resampling(param) for param in RESAMPLES},
    **{f"downsample {param}": downsampling(param) for param in DOWNSAMPLES},
    **{f"accum {param}": accumulation(param) for param in ACCUMULATED},
    "accum single": OneLayer('type: "Accum" top: "y"', {"x": IMAGE}),
    "mean": MEAN,
    "norm": NORM,
}

# -------------------------------------------------------------------------------------------------------------- errors

ERRORS = {
    "even kernel": ('type: "Correlation" correlation_param { kernel_size: 2 max_displacement: 1 }', PAIR, "odd"),
    "no reach": ('type: "Correlation" correlation_param { kernel_size: 1 }', PAIR, "max_displacement"),
    "stride 0": (
        'type: "Correlation" correlation_param { kernel_size: 1 max_displacement: 1 stride_2: 0 }',
        PAIR,
        "odd",
    ),
    "no room": (
        'type: "Correlation" correlation_param { kernel_size: 1 max_displacement: 4 }',
        PAIR,
        "expected larger",
    ),
    "far": (
        'type: "Correlation" correlation_param { kernel_size: 1 max_displacement: 4000000000 pad: 4000000000 }',
        PAIR,
        "displacements, expected at most",
    ),
    "wide": (
        'type: "Correlation" correlation_param { kernel_size: 1 max_displacement: 2 pad: 4000000 }',
        PAIR,
        "expected at most 2,147,483,647 values",
    ),
    "huge": ('type: "Resample" resample_param { height: 4 width: 2000000000 }', {"x": IMAGE}, "of both widths"),
    "another size": ('type: "Correlation"', {"a": IMAGE, "b": (2, 3, 7, 8)}, "for the blob 'b'"),
    "side": (
        'type: "Correlation1D" correlation_param { kernel_size: 1 max_displacement: 1 single_direction: 2 }',
        PAIR,
        "single_direction 2",
    ),
    "flow's channels": ('type: "FlowWarp"', {"image": IMAGE, "flow": IMAGE}, "for the blob 'flow'"),
    "flow's size": ('type: "FlowWarp"', {"image": IMAGE, "flow": (2, 2, 7, 8)}, "for the blob 'flow'"),
    "area": ('type: "Resample" resample_param { height: 3 width: 3 type: AREA }', {"x": IMAGE}, "type AREA"),
    "no size": ('type: "Resample"', {"x": IMAGE}, "size 0 x 0"),
    "beyond": (
        'type: "Resample" resample_param { height: 7 width: 1 type: NEAREST }',
        {"x": IMAGE},
        "similar factors",
    ),
    "one pixel": ('type: "Downsample" downsample_param { top_height: 1 top_width: 4 }', {"x": IMAGE}, "2 pixels"),
    "enlarged": ('type: "Downsample" downsample_param { top_height: 13 top_width: 2 }', {"x": IMAGE}, "no pixel"),
    "one pixel of all": ('type: "Accum"', {"x": (2, 3, 1, 4)}, "divides by zero"),
    "division": ('type: "Accum" accum_param { size_divisible_by: 0 }', {"x": IMAGE}, "size_divisible_by 0"),
    "reference alone": ('type: "Accum" accum_param { have_reference: true }', {"x": IMAGE}, "bottom"),
    "crop": (
        'type: "DataAugmentation" augmentation_param { crop_width: 4 crop_height: 5 }',
        {"x": IMAGE},
        "crop of 5 x 4",
    ),
    "mean of nothing": (
        'type: "DataAugmentation" augmentation_param { recompute_mean: 1 }',
        {"x": IMAGE},
        "found no weights",
    ),
    "mean's file": ('type: "Mean" mean_param { file: "mean.binaryproto" }', {"x": IMAGE}, "mean.binaryproto"),
    "mean's values": ('type: "Mean" mean_param { value: 1 value: 2 }', {"x": IMAGE}, "2 values for 3 channels"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_the_layer(name: str) -> None:
    layer, shapes, message = ERRORS[name]
    assert_error_names_layer(OneLayer(f'{layer} top: "y"', shapes), message)


def test_old_opset_is_refused_with_the_one_that_works() -> None:
    with pytest.raises(ConversionError, match="--opset 16"):
        convert(WARP.net(), opset=15)
