"""Every backward rule against finite differences and PyTorch, over the table of `rule_cases`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from camrt.graph.rules import registry
from tests.camrt.graph.exact_operators import evaluator
from tests.camrt.graph.gradients import run, with_gradients
from tests.camrt.graph.rule_cases import CASES, Case

OPSETS = (13, 17, 22)


def opsets(case: Case) -> list[int]:
    first, last = case.opsets
    return sorted({opset for opset in (first, *OPSETS, last) if first <= opset <= last})


def seeds(case: Case, model: onnx.ModelProto, seed: int = 0, dtype: Any = np.float64) -> dict[str, np.ndarray]:
    """Random gradients of the outputs' shapes."""
    generator = np.random.default_rng([7, seed])
    values = evaluator(model).run(case.results, inputs(case, model))
    return {
        f"seed/{name}": generator.uniform(-1, 1, value.shape).astype(np.float32).astype(dtype)
        for name, value in zip(case.results, values, strict=True)
    }


def inputs(case: Case, model: onnx.ModelProto, dtype: Any = np.float64) -> dict[str, np.ndarray]:
    names = {value.name for value in model.graph.input}
    return {name: array for name, array in case.values(dtype=dtype).items() if name in names}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_is_that_of_finite_differences(case: Case) -> None:
    values = case.values()
    exact = case.model(case.opsets[1], np.float32 if case.linear else np.float64)
    seed = seeds(case, exact)
    weights = [tensor for tensor in exact.graph.initializer if tensor.name in values]
    for tensor in weights:  # as inputs: so that they can be moved a little
        exact.graph.initializer.remove(tensor)
        exact.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    exactly = None if case.linear else evaluator(exact)

    def loss(moved: Mapping[str, np.ndarray]) -> float:
        if exactly is None:
            found = run(exact, {name: array.astype(np.float32) for name, array in moved.items()}, case.results)
        else:
            found = exactly.run(case.results, {**values, **moved})
        return sum(float((seed[f"seed/{name}"] * one).sum()) for name, one in zip(case.results, found, strict=True))

    generator, step = np.random.default_rng(1), 1.0 if case.linear else 1e-6
    single = {name: array.astype(np.float32) for name, array in {**values, **seed}.items()}
    gradients = {}
    for opset in opsets(case):
        model = with_gradients(case.model(opset, np.float32), case.results, case.wanted)
        gradients[opset] = run(model, single, [f"gradient/{name}" for name in case.wanted])
    for place, name in enumerate(case.wanted):
        for _ in range(3):
            direction = generator.uniform(-1, 1, values[name].shape)
            slope = loss({name: values[name] + step * direction}) - loss({name: values[name] - step * direction})
            for opset, found in gradients.items():
                assert found[place].shape == values[name].shape
                terms = found[place].astype(np.float64) * direction
                error = abs(terms.sum() - slope / (2 * step))
                assert error <= 1e-5 * np.abs(terms).sum() + 1e-6, (name, opset, error, np.abs(terms).sum())
        assert any(np.abs(found[place]).max() > 0 for found in gradients.values())


@pytest.mark.parametrize("case", [case for case in CASES if case.torch is not None], ids=str)
def test_gradient_is_pytorchs(case: Case) -> None:
    torch = pytest.importorskip(
        "torch", reason="PyTorch is not installed: the rules are not compared with its autograd"
    )
    assert case.torch is not None
    values = case.values()
    tensors = []
    for name, one in zip(case.names, case.inputs, strict=True):
        if name in values:
            tensors.append(torch.from_numpy(values[name]).requires_grad_())
        elif one is None:
            tensors.append(None)
        else:
            tensors.append(torch.from_numpy(np.asarray(one)))
    model = case.model(case.opsets[1])
    seed = seeds(case, model)
    found = case.torch(torch, torch.nn.functional, *tensors)
    outputs = found if isinstance(found, (tuple, list)) else [found]
    given = [torch.from_numpy(seed[f"seed/{name}"]) for name in case.results]
    assert [tuple(one.shape) for one in outputs] == [tuple(one.shape) for one in given]
    wanted = torch.autograd.grad(outputs, [tensors[int(name[2:])] for name in case.wanted], given)

    single = {name: array.astype(np.float32) for name, array in {**values, **seed}.items()}
    model = with_gradients(case.model(case.opsets[1], np.float32), case.results, case.wanted)
    gradients = run(model, single, [f"gradient/{name}" for name in case.wanted])
    for gradient, expected in zip(gradients, wanted, strict=True):
        scale = float(expected.abs().max())
        np.testing.assert_allclose(gradient, expected.numpy(), rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("cotangents", [1, 3])
def test_several_cotangents_in_one_pass_are_those_one_by_one(case: Case, cotangents: int) -> None:
    for opset in opsets(case) if cotangents > 1 else [case.opsets[1]]:
        model = case.model(opset, np.float32)
        each = [seeds(case, case.model(opset), seed, np.float32) for seed in range(cotangents)]
        names = [f"gradient/{name}" for name in case.wanted]
        feed = inputs(case, model, np.float32)
        alone = with_gradients(model, case.results, case.wanted)
        wanted = [run(alone, {**feed, **seed}, names) for seed in each]
        together = with_gradients(model, case.results, case.wanted, cotangents)
        stacked = {name: np.stack([seed[name] for seed in each]) for name in each[0]}
        for index, found in enumerate(run(together, {**feed, **stacked}, names)):
            expected = np.stack([one[index] for one in wanted])
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


# onnx-ad 0.3 is wrong at uneven pads: PyTorch and finite differences agree with us.
NOT_IN_ONNX_AD = {"Conv uneven pads", "Conv uneven pads, stride 2", "Conv uneven pads wider than the kernel"}
NOT_IN_ONNX_AD |= {"Conv 1-D, stride 2, grouped", "GroupNormalization", "Pad that cuts"}


@pytest.mark.parametrize("case", [one for one in CASES if one.data and str(one) not in NOT_IN_ONNX_AD], ids=str)
def test_gradient_is_that_of_onnx_ad(case: Case) -> None:
    """Another differentiation of ONNX graphs, where it is installed and has the operator."""
    onnx_ad = pytest.importorskip("onnx_ad", reason="onnx-ad is not installed: the rules are not compared with it")
    opset = min(max(case.opsets[0], 17), case.opsets[1])
    model = case.model(opset, np.float32)
    feed, seed = inputs(case, model, np.float32), seeds(case, case.model(opset), 0, np.float32)
    data = [name for name in case.wanted if name in feed]
    found = run(with_gradients(model, case.results, data), {**feed, **seed}, [f"gradient/{name}" for name in data])
    for value in model.graph.input:
        value.CopyFrom(
            helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, feed[value.name].shape)
        )
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        theirs = onnx_ad.reverse(onnx.shape_inference.infer_shapes(model, data_prop=True), layout="onnx")
    except Exception as error:
        if type(error).__name__ == "UnsupportedOperator":
            pytest.skip(f"onnx-ad has no {case.op} of this kind")
        raise
    seed = {f"adj_{name[5:]}": array[..., None] for name, array in seed.items()}  # its seeds have an axis of their own
    for gradient, expected in zip(found, run(theirs, {**feed, **seed}, [f"adj_{name}" for name in data]), strict=True):
        np.testing.assert_allclose(gradient, expected[..., 0], rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_every_rule_has_a_case() -> None:
    tested = {case.op for case in CASES} | {"TopK", "Cast", "CastLike", "Swish", "Floor", "Ceil", "Round", "Sign"}
    tested |= {"QuantizeLinear", "DequantizeLinear"}  # no derivatives: test_quantized.py
    rules = {operator for entry in registry.entries() for operator in entry.operators if not entry.domain}
    assert rules == tested
