"""Activations of forks and Dropout's variants, against their formulas, PyTorch and OpenCV."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from converters import ConversionWarning, convert
from tests.converters.one_layer import OneLayer, assert_close, assert_error_names_layer, run

SHAPE = (2, 3, 4, 5)
X = {"x": SHAPE}


def layer(type: str, param: str = "") -> OneLayer:
    return OneLayer(f'type: "{type}" top: "y" {param}', X)


CASES = {
    "mish": layer("Mish"),
    "mish engine": layer("Mish", "mish_param { engine: CAFFE }"),
    "hsigmoid": layer("HSigmoid"),
    "hswish": layer("HSwish"),
    "hard swish": layer("HardSwish"),
    "selu": layer("SeLu"),
    "selu given": layer("SeLu", "selu_param { lambda: 2 alpha: 0.5 }"),
    "selu dropout": layer("SeLuDropout", "selu_dropout_param { dropout_ratio: 0.05 }"),
    "insanity": layer("Insanity", "insanity_param { lb: 3 ub: 5 }"),
    "neg relu": layer("NegReLU"),
    "neg relu slope": layer("NegReLU", "relu_param { negative_slope: 0.1 }"),
    "dropout": layer("Dropout", "dropout_param { dropout_ratio: 0.3 }"),
    "dropout unscaled": layer("Dropout", "dropout_param { dropout_ratio: 0.3 scale_train: false }"),
    "dropout scaled": layer("Dropout", "dropout_param { dropout_ratio: 0.3 scale_train: true }"),
    "dropout sampled": layer("Dropout", "dropout_param { dropout_ratio: 0.3 sample_weights_test: true }"),
}
FORMULAS: dict[str, Callable[[float], float]] = {
    "mish": lambda x: x * math.tanh(math.log(1 + math.exp(x))),
    "mish engine": lambda x: x * math.tanh(math.log(1 + math.exp(x))),
    "hsigmoid": lambda x: min(max(x + 3, 0), 6) / 6,
    "hswish": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "hard swish": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "selu": lambda x: 1.050700987 * (x if x > 0 else 1.67326324 * (math.exp(x) - 1)),
    "selu given": lambda x: 2 * (x if x > 0 else 0.5 * (math.exp(x) - 1)),
    "selu dropout": lambda x: x,
    "insanity": lambda x: x if x > 0 else x * (math.log(5) - math.log(3)) / (5 - 3),
    "neg relu": lambda x: min(x, 0),
    "neg relu slope": lambda x: min(x, 0) + 0.1 * max(x, 0),
    "dropout": lambda x: x,
    "dropout unscaled": lambda x: x * 0.7,
    "dropout scaled": lambda x: x,
    "dropout sampled": lambda x: x,
}


def values(batch: int) -> np.ndarray:
    """Some on both sides of each kink."""
    return np.random.default_rng(batch).uniform(-6, 6, (batch, *SHAPE[1:])).astype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_formula(name: str) -> None:
    model = CASES[name].model()
    for batch in (1, 3):
        x = values(batch)
        assert_close(run(model, {"x": x})[0], np.vectorize(FORMULAS[name], otypes=[np.float32])(x))


TORCH = {"mish": "mish", "hsigmoid": "hardsigmoid", "hswish": "hardswish", "selu": "selu"}


@pytest.mark.parametrize("name", TORCH)
def test_as_pytorch(name: str) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    x = values(2)
    expected = getattr(torch.nn.functional, TORCH[name])(torch.from_numpy(x))
    assert_close(CASES[name].run({"x": x})[0], expected.numpy())


@pytest.mark.parametrize("name", ["mish", "hard swish"])
def test_as_opencv(name: str, tmp_path: Path) -> None:
    x = values(2)
    assert_close(CASES[name].run({"x": x})[0], CASES[name].opencv({"x": x}, tmp_path))


def test_dropout_that_samples_in_testing_is_told() -> None:
    with pytest.warns(ConversionWarning, match="sample_weights_test"):
        convert(CASES["dropout sampled"].net())


@pytest.mark.parametrize("bounds", ["lb: 0 ub: 5", "lb: 5 ub: 3", "lb: 3 ub: 3", "lb: -3 ub: 5"])
def test_error_names_the_layer(bounds: str) -> None:
    assert_error_names_layer(layer("Insanity", f"insanity_param {{ {bounds} }}"), "expected positive numbers")


def test_relu6() -> None:
    x = np.array([[-7, -0.5, 0, 0.5, 6, 6.5, 100]], np.float32)
    (found,) = OneLayer('type: "ReLU6" top: "y"', {"x": x.shape}).run({"x": x})
    np.testing.assert_array_equal(found, [[0, 0, 0, 0.5, 6, 6, 6]])


def test_relu6_with_a_slope_is_refused() -> None:
    assert_error_names_layer(layer("ReLU6", "relu6_param { negative_slope: 0.1 }"), "negative_slope 0.1")
