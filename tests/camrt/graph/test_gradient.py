"""differentiate and backpropagate: what they promise, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from camrt.builder import Builder
from camrt.errors import CamrtError
from camrt.graph.gradient import Value, backpropagate, differentiate, rule
from camrt.graph.view import GraphView
from tests.camrt.classifiers import CHANNELS, CLASSES, SIDE, classifier
from tests.camrt.graph.exact_operators import evaluator
from tests.camrt.graph.gradients import graph, kept_registry, run, with_gradients

IMAGES = np.random.default_rng(3).normal(0, 30, (3, 3, SIDE, SIDE)).astype(np.float32)


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def added(before: onnx.ModelProto, after: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes of the backward pass."""
    return list(after.graph.node)[len(before.graph.node) :]


# ------------------------------------------------------------------------------------------------- what is promised


def test_outputs_are_added_to_those_that_the_model_has() -> None:
    model = classifier("gemm")
    copy = model.SerializeToString()
    result = differentiate(model, "logits", ["features", "data"])
    assert [one.name for one in result.graph.output] == ["prob", "logits", "gradient/features", "gradient/data"]
    assert model.SerializeToString() == copy
    onnx.checker.check_model(result, full_check=True)
    features, data = (one.type.tensor_type for one in result.graph.output[2:])
    assert [dim.dim_param or dim.dim_value for dim in data.shape.dim] == ["batch", 3, SIDE, SIDE]
    assert features.elem_type == TensorProto.FLOAT
    assert [dim.dim_value for dim in features.shape.dim][1:] == [CHANNELS, SIDE // 2, SIDE // 2]


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_batch_stays_free(batch: int) -> None:
    result = differentiate(classifier("gemm"), "logits", "data", np.eye(CLASSES)[2])
    whole = run(result, {"data": IMAGES}, ["gradient/data"])[0]
    np.testing.assert_allclose(run(result, {"data": IMAGES[:batch]}, ["gradient/data"])[0], whole[:batch], rtol=1e-5)


def test_only_what_is_needed_is_differentiated() -> None:
    """From the logits to the features: no convolution, nothing that reads its weights."""
    model = classifier("gemm")
    nodes = added(model, differentiate(model, "logits", "features"))
    assert not {"Conv", "ConvTranspose"} & {node.op_type for node in nodes}
    assert not {"conv.weight", "conv.bias", "data"} & {name for node in nodes for name in node.input}


def test_weights_are_not_copied() -> None:
    model = classifier("flattened")
    result = differentiate(model, "prob", "data")
    large = [tensor for tensor in result.graph.initializer if np.prod(tensor.dims) > 64]
    assert {tensor.name for tensor in large} <= {tensor.name for tensor in model.graph.initializer}


def test_the_gradient_of_average_pooling_is_the_weight_over_the_area() -> None:
    result = differentiate(classifier("gemm"), "logits", "features", np.eye(CLASSES)[1])
    (found,) = run(result, {"data": IMAGES}, ["gradient/features"])
    weights = {one.name: numpy_helper.to_array(one) for one in result.graph.initializer}["fc.weight"]
    expected = np.broadcast_to(weights[1][None, :, None, None] / (SIDE / 2) ** 2, found.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "seed",
    [None, 1.0, np.ones(CLASSES), np.ones((1, CLASSES)), np.ones((3, CLASSES), np.int64), np.ones(1, bool), "given"],
    ids=lambda seed: f"{getattr(seed, 'shape', seed)}",
)
def test_seeds_of_ones(seed: Any) -> None:
    model = classifier("flattened", softmax=False)
    result = differentiate(model, "logits", "data", seed)
    feed = {"data": IMAGES, "given": np.ones((3, CLASSES), np.float32)}
    (found,) = run(result, feed, ["gradient/data"])
    (expected,) = run(differentiate(model, "logits", "data"), feed, ["gradient/data"])
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_seed_weights_the_outputs() -> None:
    model = classifier("gemm", softmax=False)
    weights = values(CLASSES)
    (found,) = run(differentiate(model, "logits", "data", weights), {"data": IMAGES}, ["gradient/data"])
    each = [
        run(differentiate(model, "logits", "data", row), {"data": IMAGES}, ["gradient/data"])[0]
        for row in np.eye(CLASSES)
    ]
    np.testing.assert_allclose(found, np.tensordot(weights, each, 1), rtol=1e-4, atol=1e-6)


def test_tensors_on_the_way_may_all_be_wanted() -> None:
    """One of them depends on another, and one is the output."""
    model = classifier("gemm")
    result = differentiate(
        model, "logits", ["logits", "data", "features", "fc.bias", "conv.weight"], np.eye(CLASSES)[0]
    )
    found = run(result, {"data": IMAGES}, [f"gradient/{name}" for name in ("logits", "data", "fc.bias", "conv.weight")])
    np.testing.assert_array_equal(found[0], np.tile(np.eye(CLASSES, dtype=np.float32)[0], (3, 1)))
    np.testing.assert_array_equal(found[2], 3 * np.eye(CLASSES, dtype=np.float32)[0])
    assert found[3].shape == (CHANNELS, 3, 3, 3)
    (alone,) = run(differentiate(model, "logits", "data", np.eye(CLASSES)[0]), {"data": IMAGES}, ["gradient/data"])
    np.testing.assert_allclose(found[1], alone, rtol=1e-6)


def test_gradients_of_a_tensor_that_is_read_twice_add_up() -> None:
    model = graph("g (float[N,3] x) => (float[N,3] y) { a = Mul(x, x) b = Add(a, x) y = Mul(b, x) }")
    x = values(2, 3)
    (found,) = run(differentiate(model, "y", "x"), {"x": x}, ["gradient/x"])
    np.testing.assert_allclose(found, 3 * x**2 + 2 * x, rtol=1e-5)


def test_several_outputs_at_once() -> None:
    """Their gradients add up at a tensor that both depend on, also where one is computed from the other."""
    model = graph("g (float[N,3] x) => (float[N,3] y, float[N,3] z) { y = Exp(x) z = Mul(y, x) }")
    x, seed = values(2, 3), {"seed/y": values(2, 3, seed=1), "seed/z": values(2, 3, seed=2)}
    (found,) = run(with_gradients(model, ["y", "z"], ["x"]), {"x": x, **seed}, ["gradient/x"])
    np.testing.assert_allclose(found, np.exp(x) * (seed["seed/y"] + seed["seed/z"] * (1 + x)), rtol=1e-5)


def test_constant_paths_have_no_gradients() -> None:
    model = graph(
        "g (float[N,3] x) => (float[N,3] y) { a = Exp(w) b = Sin(a) y = Mul(x, b) }", {"w": values(3)}
    )  # fmt: skip
    nodes = added(model, differentiate(model, "y", "x"))
    assert {node.op_type for node in nodes} <= {"Shape", "ConstantOfShape", "Mul", "Identity"}


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_gradients_have_the_type_of_their_tensor(dtype: Any) -> None:
    kind = {np.float64: "double", np.float16: "float16"}[dtype]
    text = f"g ({kind}[N,3,4] x) => ({kind}[N,3,4] y) {{ a = Gelu(x) b = Softmax(a) c = Clip(b, low) y = Add(c, low) }}"
    model = graph(text, {"low": np.array(-1, dtype)}, opset=20)
    result = differentiate(model, "y", "x", values(3, 4))
    (found,) = ReferenceEvaluator(result).run(["gradient/x"], {"x": values(2, 3, 4).astype(dtype)})
    assert found.dtype == dtype
    assert np.abs(found).max() > 0


def test_mixed_precision() -> None:
    model = graph(
        "g (float[N,3] x) => (float[N,3] y) { a = Cast<to=11>(x) b = Exp(a) c = CastLike(b, x) y = Mul(c, x) }"
    )
    x = values(2, 3)
    (found,) = run(differentiate(model, "y", "x"), {"x": x}, ["gradient/x"])
    np.testing.assert_allclose(found, np.exp(x) * (1 + x), rtol=1e-5)


def test_old_models_are_upgraded() -> None:
    """Softmax of opset 11 takes all axes from its own on as one."""
    text = "g (float[N,3,4] x) => (float[N,3,4] y) { y = Softmax<axis=1>(x) }"
    model = graph(text, opset=11)
    x, seed = values(2, 3, 4), values(3, 4, seed=1)
    result = differentiate(model, "y", "x", seed)
    assert result.opset_import[0].version == 17
    y, found = run(result, {"x": x}, ["y", "gradient/x"])
    np.testing.assert_allclose(y.sum((1, 2)), 1, rtol=1e-5)
    np.testing.assert_allclose(found, y * (seed - (seed * y).sum((1, 2), keepdims=True)), rtol=1e-4, atol=1e-7)


def test_images_of_any_size_where_no_rule_needs_it() -> None:
    """Convolution of stride 1, sums and global pooling."""
    model = graph(
        """g (float[N,8,H,W] x) => (float[N,8,1,1] y)
        { a = Conv<pads=[1,1,1,1]>(x, w) b = Relu(a) c = Add(b, x) y = GlobalAveragePool(c) }""",
        {"w": values(8, 8, 3, 3)},
    )
    result = differentiate(model, "y", "x", np.ones((8, 1, 1)))
    fixed = graph(
        """g (float[N,8,7,5] x) => (float[N,8,1,1] y)
        { a = Conv<pads=[1,1,1,1]>(x, w) b = Relu(a) c = Add(b, x) y = GlobalAveragePool(c) }""",
        {"w": values(8, 8, 3, 3)},
    )
    x = values(2, 8, 7, 5, seed=1)
    (found,) = run(result, {"x": x}, ["gradient/x"])
    np.testing.assert_allclose(found, run(differentiate(fixed, "y", "x"), {"x": x}, ["gradient/x"])[0], rtol=1e-4)
    strided = graph(
        "g (float[N,8,H,W] x) => (float[N,8,I,J] y) { y = Conv<strides=[2,2]>(x, w) }", {"w": values(8, 8, 3, 3)}
    )
    with pytest.raises(CamrtError, match=r"'x' of shape \(\?, 8, \?, \?\).*give the model's inputs fixed sizes"):
        differentiate(strided, "y", "x")


def test_a_model_of_functions() -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[N,3] x) => (float[N,3] y) { y = own.twice(x) }
        <domain: "own", opset_import: ["" : 17]> twice (a) => (b) { c = Exp(a) b = Add(c, c) }"""
    )
    x = values(2, 3)
    (found,) = run(differentiate(model, "y", "x"), {"x": x}, ["gradient/x"])
    np.testing.assert_allclose(found, 2 * np.exp(x), rtol=1e-5)


def test_of_equal_maxima_the_first_gets_the_gradient() -> None:
    model = graph("g (float[N,1,2,3] x) => (float[N,1,1,2] y) { y = MaxPool<kernel_shape=[2,2]>(x) }")
    x = np.array([[[[1, 5, 5], [5, 5, 0]]]], np.float32)
    (found,) = run(differentiate(model, "y", "x", np.array([2, 3.0])), {"x": x}, ["gradient/x"])
    assert found.tolist() == [[[[0, 5, 0], [0, 0, 0]]]]


def test_overlapping_maxima_before_opset_16() -> None:
    """There ScatterElements cannot add."""
    text = (
        "g (float[N,2,9,8] x) => (float[N,2,5,5] y) { y = MaxPool<kernel_shape=[5,4],strides=[2,2],pads=[2,2,2,2]>(x) }"
    )
    x, seed = values(2, 2, 9, 8), values(2, 5, 5, seed=1)
    both = [
        run(differentiate(graph(text, opset=opset), "y", "x", seed), {"x": x}, ["gradient/x"]) for opset in (13, 16)
    ]
    assert "reduction" not in str(differentiate(graph(text, opset=13), "y", "x", seed))
    np.testing.assert_allclose(both[0][0], both[1][0], rtol=1e-5)


def test_values_of_top_k() -> None:
    model = graph("g (float[N,6] x) => (float[N,2] y) { y, places = TopK(x, k) }", {"k": np.array([2])})
    x = values(3, 6)
    (found,) = run(differentiate(model, "y", "x", np.array([5.0, 7.0])), {"x": x}, ["gradient/x"])
    expected = np.zeros_like(x)
    np.put_along_axis(expected, np.argsort(-x)[:, :2], [[5.0, 7.0]] * 3, 1)
    np.testing.assert_array_equal(found, expected)
    several = with_gradients(model, ["y"], ["x"], cotangents=2)
    seed = np.repeat(np.array([[[5, 7]], [[1, 0]]], np.float32), 3, axis=1)
    (found,) = run(several, {"x": x, "seed/y": seed}, ["gradient/x"])
    np.testing.assert_array_equal(found[0], expected)
    np.testing.assert_array_equal(found[1], np.eye(6)[x.argmax(1)])


def test_swish() -> None:
    """In no runtime of today's, so that onnx's own evaluator has to do."""
    model = graph("g (double[N,6] x) => (double[N,6] y) { y = Swish<alpha=1.7>(x) }", opset=24)
    x = values(3, 6).astype(np.float64)
    (found,) = ReferenceEvaluator(differentiate(model, "y", "x")).run(["gradient/x"], {"x": x})
    up, down = x + 1e-6, x - 1e-6
    slope = (up / (1 + np.exp(-1.7 * up)) - down / (1 + np.exp(-1.7 * down))) / 2e-6
    np.testing.assert_allclose(found, slope, atol=1e-7)


# ------------------------------------------------------------------------------------------------------- modifiers


def rectifier(op: str) -> str:
    """A model of one activation, written out where exporters do so."""
    bodies = {
        "Relu6": "y = Clip(x, zero, six)",
        "Silu": "s = Sigmoid(x) y = Mul(x, s)",
        "HardSwish written out": "s = HardSigmoid<alpha=0.16666667>(x) y = Mul(s, x)",
        "Gelu by PyTorch": "a = Div(x, root) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)",
        "Gelu by others": "h = Mul(half, x) a = Mul(x, inverse) b = Erf(a) c = Add(one, b) y = Mul(c, h)",
        "PRelu": "y = PRelu(x, half)",
    }
    return bodies.get(op, f"y = {op}(x)")


RECTIFIERS = [
    "Relu", "LeakyRelu", "ThresholdedRelu", "PRelu", "Elu", "Selu", "Celu", "HardSwish", "Gelu", "Mish", "Relu6",
    "Silu", "HardSwish written out", "Gelu by PyTorch", "Gelu by others",
]  # fmt: skip
CONSTANTS = {
    "zero": 0.0, "six": 6.0, "one": 1.0, "half": 0.5, "root": np.sqrt(2), "inverse": np.sqrt(0.5)
}  # fmt: skip


@pytest.mark.parametrize("op", RECTIFIERS)
def test_guided_and_deconvnet(op: str) -> None:
    """Guided: f'(x) max(g, 0) where x > 0; deconvnet: max(g, 0)."""
    constants = {name: np.array(value, np.float32) for name, value in CONSTANTS.items()}
    model = graph(f"g (float[N,40] x) => (float[N,40] y) {{ {rectifier(op)} }}", constants, opset=20)
    x, seed = 4 * values(2, 40), values(2, 40, seed=1)
    plain, guided, deconvnet = (
        run(differentiate(model, "y", "x", "g", relu=relu), {"x": x, "g": seed}, ["gradient/x"])[0]
        for relu in (None, "guided", "deconvnet")
    )
    slope = plain / seed
    np.testing.assert_allclose(guided, np.where(x > 0, slope * np.maximum(seed, 0), 0), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(deconvnet, np.maximum(seed, 0))
    assert not np.allclose(guided, plain)
    several = with_gradients(model, ["y"], ["x"], cotangents=2, relu="guided")
    (found,) = run(several, {"x": x, "seed/y": np.stack([seed, 2 * seed])}, ["gradient/x"])
    np.testing.assert_allclose(found, np.stack([guided, 2 * guided]), rtol=1e-6)


@pytest.mark.parametrize(
    "body", ["y = Sigmoid(x)", "y = Tanh(x)", "y = Clip(x, minus)", "s = Sigmoid(x) y = Mul(s, s)"]
)
def test_what_is_no_rectifier_keeps_its_gradient(body: str) -> None:
    model = graph(f"g (float[N,9] x) => (float[N,9] y) {{ {body} }}", {"minus": np.array(-1, np.float32)})
    feed = {"x": values(2, 9), "g": values(2, 9, seed=1)}
    models = [differentiate(model, "y", "x", "g", relu=relu) for relu in (None, "guided", "deconvnet")]
    found = [run(one, feed, ["gradient/x"])[0] for one in models]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_unknown_modifier() -> None:
    with pytest.raises(CamrtError, match="relu='smooth', expected None or one of guided, deconvnet"):
        differentiate(classifier("gemm"), "prob", "data", relu="smooth")


# ----------------------------------------------------------------------------------------------- several cotangents


def test_all_classes_in_one_backward_pass() -> None:
    """With one forward pass."""
    model = classifier("flattened")
    together = with_gradients(model, ["logits"], ["data"], cotangents=CLASSES)
    seed = np.repeat(np.eye(CLASSES, dtype=np.float32)[:, None], len(IMAGES), axis=1)
    (found,) = run(together, {"data": IMAGES, "seed/logits": seed}, ["gradient/data"])
    for chosen in range(CLASSES):
        alone = differentiate(model, "logits", "data", np.eye(CLASSES)[chosen])
        (expected,) = run(alone, {"data": IMAGES}, ["gradient/data"])
        np.testing.assert_allclose(found[chosen], expected, rtol=1e-5, atol=1e-7)
    assert sum(node.op_type == "Conv" for node in together.graph.node) == 1


def each_alone(model: onnx.ModelProto, output: str, wrt: str, feed: dict[str, np.ndarray], seeds: np.ndarray) -> None:
    """Gradients of several cotangents in one pass are those of each."""
    together = with_gradients(model, [output], [wrt], cotangents=len(seeds))
    (found,) = run(together, {**feed, f"seed/{output}": seeds}, [f"gradient/{wrt}"])
    assert np.abs(found).max() > 0
    for gradient, seed in zip(found, seeds, strict=True):
        alone = with_gradients(model, [output], [wrt])
        (expected,) = run(alone, {**feed, f"seed/{output}": seed}, [f"gradient/{wrt}"])
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("wrt", ["data", "fc.weight", "conv.weight", "conv.bias"])
def test_several_cotangents_of_weights_and_of_a_fixed_batch(wrt: str) -> None:
    each_alone(classifier("gemm", batch=3), "logits", wrt, {"data": IMAGES}, values(4, 3, CLASSES))
    with pytest.raises(CamrtError, match="cotangents=0"):
        backpropagate(Builder(17), GraphView(classifier("gemm")), {"logits": "g"}, ["data"], cotangents=0)


@pytest.mark.parametrize(
    "body",
    [
        "a = Transpose<perm=[1,0]>(x) y = MatMul(x, a)",
        "y = Softmax<axis=0>(x)",
        "m = ReduceMean<axes=[0], keepdims=1>(x) y = Sub(x, m)",
        "y = CumSum(x, zero)",
    ],
)
def test_several_cotangents_where_a_node_mixes_images(body: str) -> None:
    model = graph(f"g (float[N,4] x) => (float[N,M] y) {{ {body} }}", {"zero": np.array(0)})
    each_alone(model, "y", "x", {"x": values(3, 4)}, values(2, 3, 3 if "MatMul" in body else 4, seed=1))


@pytest.mark.parametrize(("height", "width"), [(7, 5), (4, 6)])
def test_several_cotangents_of_images_of_any_size(height: int, width: int) -> None:
    """The shapes behind the axis of cotangents are computed in the graph then."""
    model = graph(
        """g (float[N,8,H,W] x) => (float[N,8] y)
        { a = Conv<pads=[1,1,1,1]>(x, w) b = LRN<size=3>(a) c = Add(b, x) d = Transpose<perm=[0,2,3,1]>(c)
          e = MatMul(d, m) f = Softmax<axis=2>(e) g = Mul(f, e) h = Unsqueeze(g, one) i = ReduceMean<axes=[2, 3]>(h)
          y = Squeeze(i, rest) }""",
        {"w": values(8, 8, 3, 3), "m": values(8, 8, seed=5), "one": np.array([1]), "rest": np.array([1, 2, 3])},
    )
    each_alone(model, "y", "x", {"x": values(2, 8, height, width, seed=1)}, values(3, 2, 8, seed=2))


# ------------------------------------------------------------------------------------------------------------ scalars


SCALARS = {
    "Sqrt": "y = Sqrt(m)", "Sigmoid": "y = Sigmoid(m)", "Tanh": "y = Tanh(m)", "Pow": "y = Pow(m, p)",
    "Mul": "y = Mul(m, m)", "Relu": "y = Relu(m)", "Gelu": "y = Gelu(m)", "ReduceMean": "y = Identity(m)",
    "Unsqueeze": "u = Unsqueeze(m, z) v = Softplus(u) y = Squeeze(v)",
    "Expand": "e = Expand(m, s) y = ReduceMax<keepdims=0>(e)",
}  # fmt: skip


@pytest.mark.parametrize("seed", [None, 3.0, "given"])
@pytest.mark.parametrize("body", SCALARS.values(), ids=SCALARS)
def test_a_scalar(body: str, seed: Any) -> None:
    """A mean over everything, and what stands behind it, has no axes: compared with differences in float64."""
    constants = {"z": np.array([0]), "s": np.array([2, 3]), "p": np.array(1.5)}
    text = f"g (double[N,3] x) => (double y) {{ m = ReduceMean<keepdims=0>(x) {body} }}"
    model = graph(text, constants, opset=20)
    result = differentiate(model, "y", "x", seed)
    x, weight = np.abs(values(4, 3)).astype(np.float64), 1.0 if seed is None else 3.0
    feed = {"x": x, **({"given": np.array(3.0)} if seed == "given" else {})}
    (found,) = evaluator(result).run(["gradient/x"], feed)
    high, low = (float(evaluator(model).run(["y"], {"x": x + step})[0]) for step in (1e-5, -1e-5))
    assert found.shape == x.shape
    np.testing.assert_allclose(found, np.full_like(x, weight * (high - low) / 2e-5 / x.size), rtol=1e-4)


# -------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("output", "wrt", "text"),
    [
        ("logit", "data", r"found no tensor 'logit' in the model\. did you mean 'logits'"),
        ("logits", "feature", "did you mean 'features'"),
        ("logits", "xyz", "found no tensor 'xyz' in the model. the outputs are: 'prob'"),
        ("logits", [], "found no tensor to differentiate by"),
        ("logits", "prob", "'logits' does not depend on 'prob'"),
        ("features", "fc.weight", r"'features' does not depend on 'fc\.weight'"),
    ],
)
def test_tensors_that_do_not_fit(output: str, wrt: Any, text: str) -> None:
    with pytest.raises(CamrtError, match=text):
        differentiate(classifier("gemm"), output, wrt)


@pytest.mark.parametrize(
    ("seed", "text"),
    [
        (np.ones(CLASSES + 1), r"a seed of shape \(5,\), expected one that broadcasts to that of 'logits', \(\?, 4\)"),
        (np.ones((2, 1, CLASSES)), r"a seed of shape \(2, 1, 4\)"),
        (np.full(CLASSES, np.nan), "expected finite numbers"),
        (np.array(["a"]), "a seed of <U1"),
        ("data", "the seed 'data', which the model has already"),
        ("", "an empty name for the seed"),
    ],
)
def test_seeds_that_do_not_fit(seed: Any, text: str) -> None:
    with pytest.raises(CamrtError, match=text):
        differentiate(classifier("gemm"), "logits", "data", seed)


def test_integers_have_no_gradient() -> None:
    model = graph(
        """g (float[N,4] x, int64[N] i) => (int64[N,1] best, float[N,1] y)
        { best = ArgMax<axis=1>(x) one = Cast<to=1>(best) y = Exp(one) }"""
    )
    with pytest.raises(CamrtError, match="the output 'best' of type int64, expected floating-point"):
        differentiate(model, "best", "x")
    with pytest.raises(CamrtError, match="the tensor 'i' of type int64, expected floating-point"):
        differentiate(model, "y", "i")
    model.graph.node[0].name = "argmax"
    with pytest.raises(CamrtError, match=r"depends on 'x' only by way of integers.*: 'argmax' \(ArgMax\)"):
        differentiate(model, "y", "x")


def test_operators_without_a_rule_are_all_reported_at_once() -> None:
    model = graph(
        """g (float[N,4,4] x) => (float[N] y)
        { a = Det(x) b = test.Own(x) c = test.Own(b) d = NonZero(x) e = Add(a, a) f = ReduceSum<keepdims=0>(c, axes)
          y = Add(e, f) }""",
        {"axes": np.array([1, 2])},
    )
    with pytest.raises(CamrtError) as error:
        differentiate(model, "y", "x")
    text = str(error.value)
    assert "operators without a rule: Det: 'a' (Det); test.Own: 'b' (test.Own), 'c' (test.Own)" in text
    assert "@camrt.graph.gradient.rule" in text
    assert "NonZero" not in text  # the output does not depend on it


def test_a_model_that_is_not_valid() -> None:
    model = graph("g (float[N,1,4,4] x) => (float[N,1,2,2] y) { y = MaxPool<strides=[2,2]>(x) }")
    with pytest.raises(CamrtError, match=r"onnx's checker refuses the model: .*kernel_shape"):
        differentiate(model, "y", "x")


def test_control_flow_has_no_gradient() -> None:
    """Also where a body reads the tensor from outside."""
    model = graph(
        """g (float[N,4] x, bool c) => (float[N,4] y)
        { y = If (c) <then_branch = t () => (float[N,4] a) { a = Exp(x) },
                      else_branch = e () => (float[N,4] b) { b = Neg(x) }> }"""
    )
    with pytest.raises(CamrtError, match=r"without a rule: If \(control flow\): 'y' \(If\)"):
        differentiate(model, "y", "x")


def test_what_a_rule_cannot_do_is_reported_for_all_nodes() -> None:
    model = graph(
        """g (float[N,1,4] x, float[1] low) => (float[N,1,4] y)
        { a = Einsum<equation="nii->n">(s) s = MatMul(t, x) t = Transpose<perm=[0,2,1]>(x)
          b = Clip(x, low) y = Mul(b, low) }"""
    )
    del model.graph.node[:3]
    with pytest.raises(CamrtError, match=r"'b' \(Clip\): a gradient of the bounds is not supported"):
        differentiate(model, "y", "low")
    training = graph(
        """g (float[N,4,2,2] x) => (float[N,4,2,2] y)
        { a, m, v = BatchNormalization<training_mode=1>(x, s, s, s, s) b, k = Dropout(a, , yes) y = Add(a, b) }""",
        {"s": np.ones(4, np.float32), "yes": np.array(True)},
    )
    with pytest.raises(CamrtError, match=r"2 nodes cannot be differentiated: .*Dropout in training mode") as error:
        differentiate(training, "y", "x")
    assert "training_mode=1" in str(error.value)


def test_a_gradient_at_an_output_that_the_rule_leaves_out() -> None:
    model = graph(
        "g (float[N,4] x) => (float[N,1] y) { a, mean, d = LayerNormalization(x, s) y = Exp(mean) }",
        {"s": np.ones(4, np.float32)},
    )
    with pytest.raises(CamrtError, match="depends on 'mean', and only a gradient at 'a' is supported"):
        differentiate(model, "y", "x")


def test_a_gradient_that_is_zero_everywhere() -> None:
    model = graph("g (float[N,4] x) => (float[N,4] y) { a = Floor(x) y = Exp(a) }")
    with pytest.raises(CamrtError, match=r"the gradient at 'x' is zero everywhere.*\(Floor\)"):
        differentiate(model, "y", "x")
    step = graph("g (float[N,4] x) => (float[N,4] y) { a = Floor(x) b = Sign(x) c = Add(a, b) y = Sub(x, c) }")
    (found,) = run(differentiate(step, "y", "x"), {"x": values(2, 4)}, ["gradient/x"])
    np.testing.assert_array_equal(found, np.ones((2, 4)))


# ------------------------------------------------------------------------------------------------------- own rules


@pytest.fixture
def _clean_registry() -> Iterator[None]:
    with kept_registry():
        yield


@pytest.mark.usefixtures("_clean_registry")
def test_own_rules() -> None:
    @rule("Cube", domain="test")
    def cube(g: Value, y: Value, x: Value) -> Value:
        return g * (x * x * 3)

    model = graph("g (float[N,4] x) => (float[N,4] y) { y = test.Cube(x) }")
    result = differentiate(model, "y", "x", np.ones(4))
    assert [node.op_type for node in added(model, result)] == ["Shape", "Expand", "Mul", "Mul", "Mul", "Identity"]


@pytest.mark.usefixtures("_clean_registry")
def test_a_rule_is_registered_once_unless_it_says_so() -> None:
    with pytest.raises(
        CamrtError, match=r"a second rule for 'Relu', .*activation\.relu, expected one: rule\(\.\.\., replace"
    ):
        rule("Relu")(lambda g, y, x: g)
    rule("Relu", replace=True)(lambda g, y, x: g)
    model = graph("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    (found,) = run(differentiate(model, "y", "x"), {"x": values(2, 4)}, ["gradient/x"])
    np.testing.assert_array_equal(found, np.ones((2, 4)))
    with pytest.raises(CamrtError, match="found no operator"):
        rule()


@pytest.mark.usefixtures("_clean_registry")
def test_a_rule_that_fails_names_its_node() -> None:
    @rule("Broken", domain="test")
    def broken(g: Value, y: Value, x: Value) -> Value:
        return {}["nothing"]

    model = graph("g (float[N,4] x) => (float[N,4] y) { y = test.Broken(x) }")
    with pytest.raises(CamrtError, match=r"Broken.*: its rule failed with KeyError: 'nothing'") as caught:
        differentiate(model, "y", "x", np.ones(4))
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    "node",
    [
        "y = AveragePool <kernel_shape = [3], strides = [1]> (x)",
        "y = LpPool <kernel_shape = [3]> (x)",
        'y = Resize <mode = "linear"> (x, , scales)',
    ],
)
def test_axes_too_large_for_a_matrix_are_refused(node: str) -> None:
    """A million pixels along an axis would take a matrix of 8 TB."""
    text = f"g (float[1,1,1000000] x) => (float[1,1,M] y) {{ {node} }}"
    model = graph(text, {"scales": np.array([1, 1, 2], np.float32)} if "scales" in node else {})
    with pytest.raises(
        CamrtError, match=r"of up to [\d,]+ pixels along an axis, expected a product of at most 16,777,216"
    ):
        differentiate(model, "y", "x")


def test_names_that_are_taken_are_left_alone() -> None:
    """A model that has gradients already gets others."""
    once = differentiate(classifier("gemm"), "logits", "features", np.eye(CLASSES)[0])
    twice = differentiate(once, "logits", "data")
    onnx.checker.check_model(twice, full_check=True)
    found = run(twice, {"data": IMAGES}, ["gradient/features", "gradient/data"])
    assert [one.shape[1] for one in found] == [CHANNELS, 3]
    with pytest.raises(CamrtError, match="'gradient/features', which the model has already"):
        differentiate(once, "logits", "features")
