"""Values: formulas in Python's operators against the same formulas in NumPy, for one and for several stacked values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from camrt.builder import Builder
from camrt.errors import CamrtError
from camrt.graph.values import LAST, Value, join, total, unbroadcast
from tests.camrt.graph.gradients import run

K = 3
SHAPES = {"a": (2, 4, 5), "b": (4, 5), "w": (6, 5), "n": ()}


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# (a formula of values, the same of arrays). a (2, 4, 5), b (4, 5), w (6, 5), n a number.
FORMULAS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "arithmetic": (lambda a, b, w, n: 2 - a * b / 3 + (-a) * n, lambda a, b, w, n: 2 - a * b / 3 - a * n),
    "arrays": (lambda a, b, w, n: np.arange(5.0) * b + b, lambda a, b, w, n: np.arange(5.0) * b + b),
    "powers": (lambda a, b, w, n: abs(a) ** 1.5 + 1 / (b * b + 1), lambda a, b, w, n: abs(a) ** 1.5 + 1 / (b * b + 1)),
    "comparisons": (lambda a, b, w, n: a * ((a > b) & ~(a > 1)), lambda a, b, w, n: a * ((a > b) & ~(a > 1))),
    "where": (lambda a, b, w, n: (b >= 0).where(1, a), lambda a, b, w, n: np.where(b >= 0, 1, a)),
    "where of numbers": (lambda a, b, w, n: (b < n).where(1, 0.5), lambda a, b, w, n: np.where(b < n, 1, 0.5)),
    "extrema": (
        lambda a, b, w, n: a.maximum(b).minimum(n),
        lambda a, b, w, n: np.minimum(np.maximum(a, b), n),
    ),
    "sums": (lambda a, b, w, n: a.sum(0, -1), lambda a, b, w, n: a.sum((0, 2))),
    "kept": (
        lambda a, b, w, n: a - a.mean(1, keepdims=True) + b.max(-1, keepdims=True),
        lambda a, b, w, n: a - a.mean(1, keepdims=True) + b.max(-1, keepdims=True),
    ),
    "no axes": (lambda a, b, w, n: b.sum() + b.min(), lambda a, b, w, n: 2 * b),
    "softmax": (lambda a, b, w, n: a.op("Softmax", axis=-1), lambda a, b, w, n: softmax(a)),
    "product with weights": (lambda a, b, w, n: a @ w.mT, lambda a, b, w, n: a @ w.T),
    "product of matrices": (lambda a, b, w, n: b @ w.mT, lambda a, b, w, n: b @ w.T),
    "product of stacks": (lambda a, b, w, n: a @ b.mT, lambda a, b, w, n: a @ b.T),
    "product on the left": (lambda a, b, w, n: b.mT @ a, lambda a, b, w, n: b.T @ a),
    "twice transposed": (lambda a, b, w, n: a @ w.mT.mT.mT, lambda a, b, w, n: a @ w.T),
    "einsum": (lambda a, b, w, n: a.einsum("nij,ij->jn", b), lambda a, b, w, n: np.einsum("nij,ij->jn", a, b)),
    "along": (
        lambda a, b, w, n: a.along(1, np.ones((3, 4))) + a.along(2, np.eye(5)).sum(1, keepdims=True),
        lambda a, b, w, n: np.repeat(2 * a.sum(1, keepdims=True), 3, 1),
    ),
    "shapes": (
        lambda a, b, w, n: a.transpose(2, 0, 1).reshape(5, -1).unsqueeze(0, 2).squeeze(0),
        lambda a, b, w, n: a.transpose(2, 0, 1).reshape(5, 1, 8),
    ),
    "expand": (lambda a, b, w, n: n.expand_as(b) + b.sum(0).expand_as(a), lambda a, b, w, n: n + b.sum(0) + 0 * a),
    "slices": (
        lambda a, b, w, n: a.slice(1, 1, 3) * a.slice(1, -1, -LAST, -2),
        lambda a, b, w, n: a[:, 1:3] * a[:, ::-2],
    ),
    "take": (lambda a, b, w, n: a.take([3, 0, 0], 1), lambda a, b, w, n: a[:, [3, 0, 0]]),
    "pad": (
        lambda a, b, w, n: a.pad({1: (-1, 2), -1: (0, 1)}),
        lambda a, b, w, n: np.pad(a[:, 1:], [(0, 0), (0, 2), (0, 1)]),
    ),
    "split": (
        lambda a, b, w, n: join(a.split(2, [1, 4])[::-1], 2),
        lambda a, b, w, n: np.concatenate([a[..., 1:], a[..., :1]], 2),
    ),
    "joined": (lambda a, b, w, n: join([b, a.sum(0), b], 0), lambda a, b, w, n: np.concatenate([b, a.sum(0), b])),
    "counts": (lambda a, b, w, n: a / a.count([1, 2]), lambda a, b, w, n: a / 20),
    "filled": (lambda a, b, w, n: b.filled(2) * a + b.zeros(), lambda a, b, w, n: 2 * a),
    "per image": (
        lambda a, b, w, n: a.per_image(lambda x: x.op("Flatten", shape=(None, 20))).relu(),
        lambda a, b, w, n: np.maximum(a.reshape(2, 20), 0),
    ),
    "summed up": (lambda a, b, w, n: total([a, b, n]), lambda a, b, w, n: a + b + n),
}


def evaluated(formula: Callable[..., Any], arrays: dict[str, np.ndarray], stacked: str, *, free: bool) -> np.ndarray:
    """What ONNX Runtime computes; those of ``stacked`` have a leading axis, and sizes may be unknown."""
    builder = Builder(17)
    values = []
    for name in arrays:
        shape = [None if free and name != "w" else size for size in SHAPES[name]]
        values.append(Value(builder, name, shape, lead=K if name in stacked else None))
    result = formula(*values)
    assert (result.lead is not None) == bool(stacked) or result.lead is None
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in arrays.items()]
    graph = helper.make_graph(builder.nodes, "g", inputs, [onnx.ValueInfoProto(name=result.name)], builder.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (found,) = run(model, arrays, [result.name])
    assert found.shape[result.lead is not None :] == tuple(
        size or real for size, real in zip(result.shape, found.shape[result.lead is not None :], strict=True)
    )
    return found if result.lead is not None or not stacked else np.stack([found] * K)


@pytest.mark.parametrize("stacked", ["", "a", "b", "n", "ab", "abn"])
@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_are_numpys(name: str, stacked: str) -> None:
    """Each of K stacked values is what the formula gives for it alone."""
    formula, reference = FORMULAS[name]
    generator = np.random.default_rng(0)
    arrays = {
        key: generator.normal(0, 1, ((K,) if key in stacked else ()) + shape).astype(np.float32)
        for key, shape in SHAPES.items()
    }
    found = evaluated(formula, arrays, stacked, free=False)
    if not stacked:
        np.testing.assert_allclose(found, reference(*arrays.values()), rtol=1e-5, atol=1e-6)
        return
    assert len(found) == K
    for index, one in enumerate(found):
        alone = [array[index] if key in stacked else array for key, array in arrays.items()]
        np.testing.assert_allclose(one, reference(*alone), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stacked", ["", "a", "ab"])
@pytest.mark.parametrize(
    "name", ["arithmetic", "product with weights", "product of stacks", "expand", "counts", "filled"]
)
def test_sizes_need_not_be_known(name: str, stacked: str) -> None:
    generator = np.random.default_rng(0)
    arrays = {
        key: generator.normal(0, 1, ((K,) if key in stacked else ()) + shape).astype(np.float32)
        for key, shape in SHAPES.items()
    }
    known, free = (evaluated(FORMULAS[name][0], arrays, stacked, free=free) for free in (False, True))
    np.testing.assert_allclose(free, known, rtol=1e-6)


@pytest.mark.parametrize("lead", [None, K])
@pytest.mark.parametrize(
    ("have", "want"),
    [((2, 4, 5), (4, 1)), ((2, 4, 5), (5,)), ((2, 4, 5), ()), ((2, 1, 5), (2, 4, 5)), ((), (2, 3)), ((2, 4), (1, 4))],
)
def test_unbroadcast(have: tuple[int, ...], want: tuple[int, ...], lead: int | None) -> None:
    """Summed where the tensor was broadcast, and repeated where the cotangent is constant."""
    front = () if lead is None else (lead,)
    cotangent = np.random.default_rng(0).normal(0, 1, front + have).astype(np.float32)
    builder = Builder(17)
    result = unbroadcast(Value(builder, "g", have, lead=lead), Value(builder, "x", want))
    builder.node("Identity", [result.name], "out")
    inputs = [helper.make_tensor_value_info("g", TensorProto.FLOAT, cotangent.shape)]
    graph = helper.make_graph(builder.nodes, "g", inputs, [onnx.ValueInfoProto(name="out")], builder.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (found,) = run(model, {"g": cotangent}, ["out"])
    summed = cotangent
    while summed.ndim > len(front + want):
        summed = summed.sum(len(front))
    for axis, size in enumerate(want):
        if summed.ndim == len(front + want) and size == 1:
            summed = summed.sum(len(front) + axis, keepdims=True)
    if len(have) < len(want):
        summed = summed.reshape(*front, *[1] * (len(want) - len(have)), *have)
    np.testing.assert_allclose(found, np.broadcast_to(summed, front + want), rtol=1e-5, atol=1e-6)


def test_one_value_has_no_leading_axis() -> None:
    builder = Builder(17)
    value = Value(builder, "x", (2, 1, 5))
    assert value.lead_from(1).lead is None
    assert value.lead_from(2).lead == 5
    assert value.lead_from(2).lead_to(2).shape == (2, 1, 5)
    assert not [node for node in builder.nodes if node.op_type == "Expand"]


def test_what_is_not_known_is_said() -> None:
    value = Value(Builder(17), "x", None)
    with pytest.raises(CamrtError, match="the shape of 'x' cannot be inferred"):
        value.sum(0)
    with pytest.raises(CamrtError, match=r"found 'x' of shape \(\?, 3\), expected sizes that are known"):
        Value(Builder(17), "x", (None, 3)).fixed(0)
    with pytest.raises(CamrtError, match="found pads that are computed, expected constants"):
        value.known("pads")
