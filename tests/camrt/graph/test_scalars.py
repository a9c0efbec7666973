"""Tensors without axes: numbers that a graph computes, as outputs and on the way to them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from camrt.builder import Builder
from camrt.graph import differentiate
from tests.camrt.graph.explainers import run

X = np.random.default_rng(4).uniform(0.2, 1.5, (2, 3)).astype(np.float32)
MEAN = float(X.mean(dtype=np.float64))


def model(*nodes: onnx.NodeProto, batch: int | str = 2) -> onnx.ModelProto:
    """From ``x`` (2, 3) to ``y``, a number; ``two`` is a number."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])]
    two = numpy_helper.from_array(np.array(2, np.float32), "two")
    graph = helper.make_graph(list(nodes), "scalars", inputs, outputs, [two])
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(built, full_check=True)
    return built


# f -> its derivative, where the output is f(mean(x)); "two" is the number 2.
DERIVATIVES: dict[str, tuple[list[str], Callable[[float], float]]] = {
    "Identity": (["m"], lambda m: 1.0),
    "Neg": (["m"], lambda m: -1.0),
    "Sqrt": (["m"], lambda m: 0.5 / m**0.5),
    "Sigmoid": (["m"], lambda m: np.exp(-m) / (1 + np.exp(-m)) ** 2),
    "Tanh": (["m"], lambda m: 1 - np.tanh(m) ** 2),
    "Exp": (["m"], lambda m: np.exp(m)),
    "Log": (["m"], lambda m: 1 / m),
    "Relu": (["m"], lambda m: 1.0),
    "Erf": (["m"], lambda m: 2 / np.pi**0.5 * np.exp(-(m**2))),
    "Reciprocal": (["m"], lambda m: -1 / m**2),
    "Softplus": (["m"], lambda m: 1 / (1 + np.exp(-m))),
    "Pow": (["m", "two"], lambda m: 2 * m),
    "Mul": (["m", "two"], lambda m: 2.0),
    "Div": (["two", "m"], lambda m: -2 / m**2),
    "Max": (["m", "two"], lambda m: 0.0 if m < 2 else 1.0),
    "Min": (["m", "two"], lambda m: 1.0 if m < 2 else 0.0),
}


@pytest.mark.parametrize("batch", [2, "n"])
@pytest.mark.parametrize("seed", [None, np.float32(-3), "seed"])
@pytest.mark.parametrize("operator", [each for each in DERIVATIVES if each != "Max"])
def test_a_number_is_differentiated(operator: str, seed: np.float32 | str | None, batch: int | str) -> None:
    """d f(mean(x)) / dx = f'(mean(x)) / 6, times the seed."""
    inputs, derivative = DERIVATIVES[operator]
    mean = helper.make_node("ReduceMean", ["x"], ["m"], keepdims=0)
    built = differentiate(model(mean, helper.make_node(operator, inputs, ["y"]), batch=batch), "y", "x", seed)
    feeds = {"x": X} | ({"seed": np.array(-3, np.float32)} if seed == "seed" else {})
    (found,) = run(built, feeds, ["gradient/x"])
    wanted = derivative(MEAN) / 6 * (1 if seed is None else -3)
    np.testing.assert_allclose(found, np.full((2, 3), wanted), rtol=1e-5)


@pytest.mark.parametrize(
    ("operator", "wanted"),
    [
        ("ReduceSum", np.ones_like(X)),
        ("ReduceMean", np.full_like(X, 1 / 6)),
        ("ReduceSumSquare", 2 * X),
        ("ReduceL2", X / np.linalg.norm(X)),
        ("ReduceMax", (X.max() == X).astype(np.float32)),
        ("ReduceLogSumExp", np.exp(X) / np.exp(X).sum()),
    ],
)
def test_reductions_to_a_number(operator: str, wanted: np.ndarray) -> None:
    built = differentiate(model(helper.make_node(operator, ["x"], ["y"], keepdims=0)), "y", "x")
    (found,) = run(built, {"x": X}, ["gradient/x"])
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_number_is_broadcast_and_its_gradient_summed() -> None:
    """y = sum(x * mean(x)): dy/dx = mean(x) + sum(x) / 6, twice the mean."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], keepdims=0),
        helper.make_node("Mul", ["x", "m"], ["product"]),
        helper.make_node("ReduceSum", ["product"], ["y"], keepdims=0),
    ]
    (found,) = run(differentiate(model(*nodes), "y", "x"), {"x": X}, ["gradient/x"])
    np.testing.assert_allclose(found, np.full((2, 3), 2 * MEAN), rtol=1e-5)


def test_constants_keep_their_shape() -> None:
    builder = Builder(17)
    for values in (1.0, [1.0], [[1.0, 2.0]], np.zeros((2, 0)), np.arange(6).reshape(2, 3).T):
        builder.constant(values)
        stored = numpy_helper.to_array(builder.initializers[-1])
        assert stored.shape == np.shape(values)
        np.testing.assert_array_equal(stored, values)
