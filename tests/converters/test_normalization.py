"""BatchNorm with NVIDIA's factors and offsets of its own, and SphereFace's product, against their formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from converters import Net, convert, read_net
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


# -------------------------------------------------------------------------------------------------- MarginInnerProduct

WEIGHT = RNG.normal(size=(4, 60)).astype(np.float32)


def margin(param: str = "", axis: int = 1) -> OneLayer:
    weight = WEIGHT if axis == 1 else WEIGHT[:, :5]
    return OneLayer(
        'type: "MarginInnerProduct" top: "y" top: "lambda" margin_inner_product_param '
        f"{{ num_output: 4 type: QUADRUPLE base: 1000 gamma: 0.12 power: 1 lambda_min: 5 axis: {axis} {param} }}",
        {**IMAGE, "label": (2,)},
        (weight,),
    )


@pytest.mark.parametrize("axis", [1, 3])
def test_margin_inner_product_is_the_cosine_times_the_length(axis: int) -> None:
    """For classes other than the label's, margin_inner_product_layer.cpp gives just that; inference has no label."""
    one = margin(axis=axis)
    model = one.model()
    assert [data.name for data in model.graph.input] == ["x"]
    assert [data.name for data in model.graph.output] == ["y"]
    for batch in (1, 3):
        x = images(batch)
        expected = np.zeros((*x.shape[:axis], 4), np.float32)
        for place in np.ndindex(*x.shape[:axis]):
            vector = x[place].ravel().astype(np.float64)
            for output, row in enumerate(one.blobs[0].astype(np.float64)):
                cosine = vector @ row / np.linalg.norm(vector) / np.linalg.norm(row)
                expected[(*place, output)] = np.linalg.norm(vector) * cosine
        assert_close(run(model, {"x": x})[0], expected)


def test_margin_without_outputs_is_refused() -> None:
    assert_error_names_layer(OneLayer('type: "MarginInnerProduct" top: "y"', {**IMAGE, "label": (2,)}), "num_output 0")


CASES = {
    **{name: batch_norm(param) for name, param in TOLD.items()},
    "margin": margin(),
    "margin axis": margin(axis=3),
    "margin of vectors": OneLayer(
        'type: "MarginInnerProduct" top: "y" margin_inner_product_param { num_output: 4 }',
        {"x": (2, 60), "label": (2,)},
        (WEIGHT,),
    ),
}
