"""NVIDIA's BatchNorm, BN and Normalize, against their formulas. Caffe's own answers are in test_layers."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from converters import ConversionWarning, Net, convert, read_net
from converters.reader import parse_prototxt
from tests.converters.one_layer import OneLayer, assert_close, assert_error_names_layer, run

RNG = np.random.default_rng(0)
CHANNELS = 3
MEAN, FACTOR, OFFSET, BEHIND, LAST = (RNG.normal(size=CHANNELS).astype(np.float32) for _ in range(5))
VARIANCE = RNG.uniform(0.5, 2, CHANNELS).astype(np.float32)
BLOBS = (MEAN, VARIANCE, np.ones(1, np.float32), FACTOR, OFFSET)
IMAGE = {"x": (2, CHANNELS, 4, 5)}

# What says that a BatchNorm scales and shifts by itself.
TOLD = {
    "scale_bias": "batch_norm_param { scale_bias: true eps: 0.01 }",
    "fillers": 'batch_norm_param { eps: 0.01 scale_filler { type: "constant" value: 1 } bias_filler { } }',
    "one filler": "batch_norm_param { eps: 0.01 bias_filler { value: 0 } }",
    "statistics": "batch_norm_param { scale_bias: true eps: 0.01 use_global_stats: false }",  # ignored in testing
}


def column(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, 1, 1)


def normalized(x: np.ndarray, eps: float = 0.01, count: float = 1) -> np.ndarray:
    return (x - column(MEAN) / count) / np.sqrt(column(VARIANCE) / count + np.float32(eps))


def images(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).normal(size=(batch, CHANNELS, 4, 5)).astype(np.float32)


def batch_norm(param: str, blobs: tuple[np.ndarray, ...] = BLOBS) -> OneLayer:
    return OneLayer(f'type: "BatchNorm" top: "y" {param}', IMAGE, blobs)


@pytest.mark.parametrize("name", TOLD)
def test_scale_and_shift_inside_batch_norm(name: str) -> None:
    model = batch_norm(TOLD[name]).model()
    assert [node.op_type for node in model.graph.node] == ["BatchNormalization"]
    for batch in (1, 3):
        x = images(batch)
        assert_close(run(model, {"x": x})[0], normalized(x) * column(FACTOR) + column(OFFSET))


def test_statistics_are_divided_by_the_third_blob() -> None:
    x = images(2)
    one = batch_norm(TOLD["scale_bias"], (*BLOBS[:2], np.full(1, 4, np.float32), *BLOBS[3:]))
    assert_close(one.run({"x": x})[0], normalized(x, count=4) * column(FACTOR) + column(OFFSET))


def test_eps_is_at_least_what_cudnn_takes() -> None:
    x = images(2)
    tiny = (MEAN, np.full(CHANNELS, 1e-7, np.float32), *BLOBS[2:])
    found = batch_norm("batch_norm_param { scale_bias: true eps: 1e-9 }", tiny).run({"x": x})[0]
    expected = (x - column(MEAN)) / np.sqrt(np.float32(1e-7) + np.float32(1e-5)) * column(FACTOR) + column(OFFSET)
    assert_close(found, expected)


@pytest.mark.parametrize("has_bias", [True, False])
def test_with_a_scale_layer_behind_it(has_bias: bool) -> None:
    """Both are one node; the layer's own factors come first."""
    text = (
        'input: "x" input_shape { dim: 2 dim: 3 dim: 4 dim: 5 } '
        f'layer {{ name: "bn" type: "BatchNorm" bottom: "x" top: "bn" {TOLD["scale_bias"]} }} '
        'layer { name: "s" type: "Scale" bottom: "bn" top: "y" '
        f"scale_param {{ bias_term: {str(has_bias).lower()} }} }}"
    )
    blobs = {"bn": BLOBS, "s": (BEHIND, LAST) if has_bias else (BEHIND,)}
    model = convert(with_blobs(read_net(parse_prototxt(text)), blobs))
    assert [node.op_type for node in model.graph.node] == ["BatchNormalization"]
    x = images(2)
    expected = (normalized(x) * column(FACTOR) + column(OFFSET)) * column(BEHIND)
    assert_close(run(model, {"x": x})[0], expected + (column(LAST) if has_bias else 0))


def with_blobs(net: Net, blobs: dict[str, tuple[np.ndarray, ...]]) -> Net:
    return replace(net, layers=tuple(replace(layer, blobs=blobs[layer.name]) for layer in net.layers))


def test_three_blobs_are_not_enough() -> None:
    assert_error_names_layer(batch_norm(TOLD["scale_bias"], BLOBS[:3]), r"expected 5 of shape 3, 3, 1, 3, 3")


CASES = {name: batch_norm(param) for name, param in TOLD.items()}


# ------------------------------------------------------------------------------------------------------------------ BN

BN_BLOBS = tuple(blob.reshape(1, CHANNELS, 1, 1) for blob in (FACTOR, OFFSET, MEAN, VARIANCE))


def test_segnets_bn_with_statistics_in_its_blobs() -> None:
    model = OneLayer('type: "BN" top: "y" bn_param { bn_mode: INFERENCE }', IMAGE, BN_BLOBS[:2]).model()
    for batch in (1, 2, 3):
        x = images(batch)
        assert_close(run(model, {"x": x})[0], x * column(FACTOR) + column(OFFSET))


def test_segnets_bn_with_the_statistics_of_the_batch() -> None:
    model = OneLayer('type: "BN" top: "y" top: "mean" top: "variance"', IMAGE, BN_BLOBS[:2]).model()
    for batch in (1, 2, 3):
        x = images(batch)
        mean, variance = np.zeros((2, 1, CHANNELS, 1, 1), np.float32)
        expected = np.zeros_like(x)
        for channel in range(3):
            values = x[:, channel].astype(np.float64)
            mean[0, channel], variance[0, channel] = values.mean(), (values**2).mean() - values.mean() ** 2
            normalized = (values - values.mean()) / np.sqrt(values.var() + 1e-9)
            expected[:, channel] = normalized * FACTOR[channel] + OFFSET[channel]
        for found, wanted in zip(run(model, {"x": x}), (expected, mean, variance), strict=True):
            assert_close(found, wanted)


@pytest.mark.parametrize(
    ("param", "eps"), [("", 1e-5), ("bn_param { eps: 0.1 }", 0.1), ("bn_param { frozen: true }", 1e-5)]
)
def test_pspnets_bn(param: str, eps: float) -> None:
    model = OneLayer(f'type: "BN" top: "y" {param}', IMAGE, BN_BLOBS).model()
    for batch in (1, 2, 3):
        x = images(batch)
        assert_close(run(model, {"x": x})[0], normalized(x, eps) * column(FACTOR) + column(OFFSET))


# ----------------------------------------------------------------------------------------------------------- Normalize


@pytest.mark.parametrize(("shared", "across"), list(product([True, False], repeat=2)))
def test_normalize(shared: bool, across: bool) -> None:
    rng = np.random.default_rng(1)
    scale = rng.normal(size=() if shared else 3)
    param = f"norm_param {{ across_spatial: {str(across).lower()} channel_shared: {str(shared).lower()} eps: 0.25 }}"
    model = OneLayer(f'type: "Normalize" top: "y" {param}', {"x": (1, 3, 2, 4)}, (scale,)).model()
    for batch in (1, 3):
        x = rng.normal(size=(batch, 3, 2, 4)).astype(np.float32)
        expected = np.zeros_like(x)
        for n, h, w in np.ndindex(batch, 2, 4):
            squares = (x[n] ** 2).sum() if across else (x[n, :, h, w] ** 2).sum()
            expected[n, :, h, w] = x[n, :, h, w] / math.sqrt(squares + 0.25) * scale
        assert_close(run(model, {"x": x})[0], expected)


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 1, 1)])
def test_caffe_windows_normalize(shape: tuple[int, ...]) -> None:
    """SSD's layer of this name has learned factors; this one has none, and its own parameters."""
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    one = OneLayer('type: "Normalize" top: "y" normalize_param { normalize_type: "L2" }', {"x": shape})
    with pytest.warns(ConversionWarning, match="normalize_param"):
        net = one.net()
    expected = np.stack([item / np.sqrt((item.astype(np.float64) ** 2).sum()) for item in x])
    assert_close(run(convert(net), {"x": x})[0], expected.astype(np.float32))


@pytest.mark.filterwarnings("ignore::converters.ConversionWarning")
@pytest.mark.parametrize(("shape", "kind"), [((2, 5, 3, 3), "L2"), ((2, 5), "L1")])
def test_caffe_windows_normalize_of_two_meanings_is_refused(shape: tuple[int, ...], kind: str) -> None:
    one = OneLayer(f'type: "Normalize" top: "y" normalize_param {{ normalize_type: "{kind}" }}', {"x": shape})
    assert_error_names_layer(one, f"normalize_type '{kind}'")


ERRORS = {
    "no blobs": ('type: "BN"', IMAGE, "found no weights"),
    "flat": ('type: "BN"', {"x": (2, 3)}, "expected N x C x H x W"),
    "statistics of none": ('type: "BN" top: "mean" bn_param { bn_mode: INFERENCE }', IMAGE, "found 2 tops"),
    "one axis": ('type: "Normalize"', {"x": (3,)}, "channels at axis 1"),
    "no scale": ('type: "Normalize"', {"x": (1, 3)}, "found no weights"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_the_layer(name: str) -> None:
    layer, shapes, message = ERRORS[name]
    blobs = BN_BLOBS[:2] if name == "statistics of none" else ()
    assert_error_names_layer(OneLayer(f'{layer} top: "out"', shapes, blobs), message)
