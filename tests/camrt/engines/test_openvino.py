"""OpenVINO beside ONNX Runtime, which computes in float32 as well: the same graphs, methods, protocols and batches."""

from __future__ import annotations

import builtins
import contextlib
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from camrt import CamrtError
from camrt.engines import openvino as engine
from camrt.engines.openvino import OPENVINO
from camrt.graph import explain_graph
from camrt.graph.methods import METHODS, find
from camrt.preprocess import Preprocess
from camrt.session import Session
from camrt.tuning import agreement
from tests.camrt.classifiers import HEADS, SIDE, WITH_HEAD, classifier
from tests.camrt.graph.gradients import run, with_gradients
from tests.camrt.graph.rule_cases import CASES, Case
from tests.tiny_models import CLASSES, photo, tiny_classifier, tiny_explainer

pytest.importorskip("openvino", reason="needs the extra openvino", exc_type=ImportError)

IMAGES = np.stack([photo(32, 32, seed) for seed in range(3)])
PREPROCESS = Preprocess(size=20, crop=SIDE, mean=(104.0, 117.0, 123.0))
has_bf16 = pytest.mark.skipif(not engine.can("bf16"), reason="the processor does not compute in bf16")


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return tiny_explainer()


def compare(explainer: onnx.ModelProto, images: np.ndarray) -> None:
    """Both in float32. Sums are taken in another order: the difference is bounded by the largest value."""
    expected, found = (Session(explainer, providers=one).run({"image": images}) for one in ("cpu", "openvino"))
    assert found.keys() == expected.keys()
    np.testing.assert_array_equal(found["classes"], expected["classes"])
    for name in ("scores", "heatmaps"):
        assert (found[name].shape, found[name].dtype) == (expected[name].shape, expected[name].dtype)
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=2e-5 * np.abs(expected[name]).max())


@pytest.mark.parametrize("protocol", ["ten-crop", "center", "full"])
@pytest.mark.parametrize("head", WITH_HEAD)
def test_heads_and_protocols(head: str, protocol: str) -> None:
    explainer = explain_graph(classifier(head), protocol=protocol, top=3, preprocess=PREPROCESS)
    compare(explainer, np.stack([photo(20, 20, seed) for seed in range(2)]))


@pytest.mark.parametrize("method", [name for name in METHODS if not find(name).tokens])
def test_methods(method: str) -> None:
    """SmoothGrad draws its noise by the constants of the graph, so that both draw the same."""
    explainer = explain_graph(tiny_classifier(), method, "center", top=2)
    for number in (3, 1):
        compare(explainer, IMAGES[:number])


@pytest.mark.parametrize("head", sorted(HEADS))
def test_gradients_of_each_head(head: str) -> None:
    compare(explain_graph(classifier(head), "gradcam", "ten-crop", top=2, preprocess=PREPROCESS), photo(20, 20)[None])


@pytest.mark.parametrize("number", [1, 2, 3])
def test_batches(model: onnx.ModelProto, number: int) -> None:
    compare(model, IMAGES[:number])


def test_a_fixed_batch() -> None:
    explainer = tiny_explainer()
    for value in (*explainer.graph.input, *explainer.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    compare(explainer, IMAGES[:2])


def test_what_it_says_of_itself(model: onnx.ModelProto, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "camrt.session"):
        one = Session(model, providers="openvino")
    assert (one.provider, one.precision) == (OPENVINO, "fp32")
    assert one.inputs == {"image": (None, 32, 32, 3)}
    assert one.outputs == {"scores": (None, CLASSES), "classes": (None, 5), "heatmaps": (None, 5, 32, 32)}
    assert one.metadata["camrt.name"] == "tiny"
    assert [record.getMessage().split()[0] for record in caplog.records] == ["OpenVINO"]


def test_fp32_is_the_default(model: onnx.ModelProto) -> None:
    """OpenVINO's own default is bf16, where the processor has it."""
    one = Session(model, providers="openvino")
    explicit = Session(model, providers="openvino", precision="fp32")
    for name, array in explicit.run({"image": IMAGES}).items():
        np.testing.assert_array_equal(one.run({"image": IMAGES})[name], array)


@has_bf16
def test_bf16(model: onnx.ModelProto) -> None:
    expected = Session(model, providers="cpu").run({"image": IMAGES})
    one = Session(model, precision="bf16")  # only OpenVINO has it here
    assert (one.provider, one.precision) == (OPENVINO, "bf16")
    found = one.run({"image": IMAGES})
    assert found["heatmaps"].dtype == np.float32
    assert np.abs(found["heatmaps"] - expected["heatmaps"]).max() > 0  # it is another precision
    np.testing.assert_array_equal(found["classes"][:, 0], expected["classes"][:, 0])
    best = [np.corrcoef(found["heatmaps"][n, 0].ravel(), expected["heatmaps"][n, 0].ravel())[0, 1] for n in range(3)]
    assert min(best) > 0.999


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["qdq", "qdq of int8", "operators", "dynamic"])
def test_a_quantized_network(form: str, tmp_path: Path) -> None:
    """In float32 as in ONNX Runtime, but for roundings to 8 bits that may go the other way."""
    quantized = pytest.importorskip("tests.camrt.graph.test_quantized")
    small = quantized.quantize(classifier("gemm"), form, tmp_path)
    explainer = explain_graph(small, "cam", "center", target=[0, 2], preprocess=PREPROCESS)
    images = np.stack([photo(20, 20, seed) for seed in range(3)])
    expected, found = (Session(explainer, providers=one).run({"image": images}) for one in ("cpu", "openvino"))
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=0, atol=1.01 / 255)
    assert agreement(found, expected).correlation > 0.95
    if form == "qdq of int8" and engine.can("bf16"):  # OpenVINO 2026.4 refuses it, others may not
        with contextlib.suppress(CamrtError):
            Session(explainer, providers="openvino", precision="bf16")
            return
        with pytest.raises(CamrtError, match="OpenVINO may run it in fp32 alone: leave the precision out"):
            Session(explainer, providers="openvino", precision="bf16")


@pytest.mark.parametrize("shape", [(5, 4), (8, 5, 4)])
@pytest.mark.parametrize("operator", ["ReduceMean", "ReduceSum", "ReduceMax"])
def test_reductions_of_quantized_tensors(operator: str, shape: tuple[int, ...]) -> None:
    """OpenVINO's own sums and means of three axes in 8 bits are those of the first image alone."""
    weights = [
        numpy_helper.from_array(value, name)
        for name, value in {"scale": np.float32(1 / 255), "zero": np.uint8(0), "axes": np.array([1])}.items()
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node(operator, ["d", "axes"], ["y"], keepdims=0),
    ]
    ends = (("x", ["n", *shape]), ("y", ["n", *shape[1:]]))
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, size) for name, size in ends]
    graph = helper.make_graph(nodes, "reduction", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    feeds = {"x": np.random.default_rng(0).uniform(0, 1, (3, *shape)).astype(np.float32)}
    expected, found = (Session(model, providers=one).run(feeds)["y"] for one in ("cpu", "openvino"))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-2)


RULES = [
    pytest.param(case, opset, id=f"{case}, opset {opset}")
    for case in CASES
    for opset in (17, 22)
    if case.opsets[0] <= opset <= case.opsets[1]
]


@pytest.mark.parametrize(("case", "opset"), RULES)
@pytest.mark.slow
def test_operators(case: Case, opset: int) -> None:
    """Every operator that has a gradient, and its gradient: computed as by ONNX Runtime, or refused."""
    model = case.model(opset, np.float32)
    names = {value.name for value in model.graph.input}
    values = {name: array for name, array in case.values(dtype=np.float32).items() if name in names}
    real = [name for name, array in values.items() if array.dtype.kind == "f"]
    if not real:
        pytest.skip("all is constant")
    outputs = run(model, values, case.results)
    generator = np.random.default_rng(7)
    seeds = {
        f"seed/{name}": generator.uniform(-1, 1, each.shape) for name, each in zip(case.results, outputs, strict=True)
    }
    feeds = values | {name: array.astype(np.float32) for name, array in seeds.items()}
    both = with_gradients(model, case.results, real)
    expected = dict(
        zip(
            (each.name for each in both.graph.output),
            run(both, feeds, [each.name for each in both.graph.output]),
            strict=True,
        )
    )
    try:
        session = Session(both, providers="openvino")
    except CamrtError as error:
        if any(each in str(error) for each in ("computes wrongly", "cannot read it", "cannot load it")):
            return  # refused aloud
        raise
    found = session.run({name: array for name, array in feeds.items() if name in session.inputs})
    for name, array in expected.items():
        assert found[name].shape == array.shape
        largest = np.abs(array[np.isfinite(array)], dtype=np.float64).max(initial=1e-6)
        np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-4 * largest)


# --------------------------------------------------------------------------------------------------------- the models


def test_a_model_on_disk(model: onnx.ModelProto, tmp_path: Path) -> None:
    expected = Session(model, providers="openvino").run({"image": IMAGES})
    inside, outside = tmp_path / "inside.onnx", tmp_path / "outside.onnx"
    onnx.save(model, inside)
    onnx.save(tiny_explainer(), outside, save_as_external_data=True, location="outside.data", size_threshold=100)
    assert (tmp_path / "outside.data").exists()
    for path in (inside, str(outside)):
        one = Session(path, providers="openvino")
        assert one.metadata["camrt.name"] == "tiny"
        for name, array in one.run({"image": IMAGES}).items():
            np.testing.assert_array_equal(array, expected[name])


def test_a_model_beyond_protobufs_limit(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is lowered: the weights go through a file, which is gone by the time that they are used."""
    expected = Session(model, providers="openvino").run({"image": IMAGES})
    before = model.SerializeToString()
    monkeypatch.setattr(engine, "_MOST_BYTES", 0)
    found = Session(model, providers="openvino").run({"image": IMAGES})
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    assert model.SerializeToString() == before


def test_threads(model: onnx.ModelProto) -> None:
    one = Session(model, providers="openvino", threads=1)
    expected = [one.run({"image": IMAGES[n : n + 1]})["heatmaps"] for n in range(3)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: one.run({"image": IMAGES[n % 3 : n % 3 + 1]})["heatmaps"], range(120)))
    for n, heatmaps in enumerate(found):
        np.testing.assert_array_equal(heatmaps, expected[n % 3])


def test_outputs_are_new_at_each_call(model: onnx.ModelProto) -> None:
    one = Session(model, providers="openvino")
    first = one.run({"image": IMAGES[:1]})["heatmaps"]
    kept = first.copy()
    one.run({"image": IMAGES[1:2]})
    np.testing.assert_array_equal(first, kept)


def test_views(model: onnx.ModelProto) -> None:
    one = Session(model, providers="openvino")
    flipped = IMAGES[:, :, ::-1]
    found, expected = (one.run({"image": images})["heatmaps"] for images in (flipped, flipped.copy()))
    np.testing.assert_array_equal(found, expected)


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "providers", ["openvino", "OpenVINO", ["openvino"], [("openvino", {"device": "CPU"})]], ids=str
)
def test_names(model: onnx.ModelProto, providers: Any) -> None:
    assert Session(model, providers=providers).provider == OPENVINO


@pytest.mark.parametrize(
    ("providers", "message"),
    [
        (["openvino", "cpu"], "found the providers openvino, cpu, expected openvino alone"),
        ([("openvino", {"device": "TPU"})], "found the device 'TPU', expected one of OpenVINO's: CPU"),
        ([("openvino", {"NO_SUCH": 1})], "OpenVINO cannot load it on CPU: .*NO_SUCH"),
        ([("openvino", {"INFERENCE_PRECISION_HINT": "bf16"})], "expected the argument precision"),
        ("OpenVINOExecutionProvider", "expected one that ONNX Runtime .* has here"),
    ],
    ids=["beside another", "device", "property", "property of an argument", "that of ONNX Runtime"],
)
def test_wrong_providers(model: onnx.ModelProto, providers: Any, message: str) -> None:
    with pytest.raises(CamrtError, match=message):
        Session(model, providers=providers)


def test_precisions_that_are_not_there(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CamrtError, match="found the precision 'tf32', expected one of OpenVINO's: fp32, bf16, fp16"):
        Session(model, providers="openvino", precision="tf32")
    monkeypatch.setattr(engine, "_has", lambda core, device, precision: precision == "fp32")
    with pytest.raises(CamrtError, match=r"does not compute in it .it needs AVX512-BF16 or AMX.: it would be emulated"):
        Session(model, providers="openvino", precision="bf16")
    assert engine.can("fp32")
    assert not engine.can("bf16")


def test_a_hint_that_does_not_take_is_an_error(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_own", lambda precision, threads: {"INFERENCE_PRECISION_HINT": "f32"})
    if engine.can("bf16"):
        with pytest.raises(CamrtError, match="after bf16 was asked for"):
            Session(model, providers="openvino", precision="bf16")
    with pytest.raises(CamrtError, match=r"found 1 threads|found 4096 threads, expected at most \d+"):
        Session(model, providers="openvino", threads=4096)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"image": IMAGES[..., :2]}, r"found image \(3, 32, 32, 2\) uint8, expected \(N, 32, 32, 3\) uint8"),
        ({"image": IMAGES.astype(np.float32)}, r"found image \(3, 32, 32, 3\) float32"),
        ({"image": IMAGES[:0]}, "not empty"),
        ({"image": IMAGES[0]}, r"found image \(32, 32, 3\)"),
        ({}, r"found the inputs \[\], expected \['image'\]"),
        ({"image": IMAGES, "other": IMAGES}, r"expected \['image'\]"),
    ],
    ids=["shape", "dtype", "empty", "rank", "missing", "unknown"],
)
def test_wrong_inputs(model: onnx.ModelProto, feeds: dict[str, np.ndarray], message: str) -> None:
    """OpenVINO would convert a dtype, and take an input that is missing from the call before."""
    one = Session(model, providers="openvino")
    expected = one.run({"image": IMAGES})["heatmaps"]
    with pytest.raises(CamrtError, match=f"OpenVINO failed on OpenVINO.*{message}"):
        one.run(feeds)
    np.testing.assert_array_equal(one.run({"image": IMAGES})["heatmaps"], expected)


def test_models_that_cannot_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(CamrtError, match=r"broken\.onnx: OpenVINO cannot read it") as error:
        Session(path, providers="openvino")
    assert "Exception from" not in str(error.value)
    with pytest.raises(CamrtError, match=r"none\.onnx: there is no such file"):
        Session(tmp_path / "none.onnx", providers="openvino")
    with pytest.raises(CamrtError, match="OpenVINO cannot read it"):
        Session(onnx.ModelProto(), providers="openvino")


def test_without_openvino(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "openvino":
            raise ModuleNotFoundError("No module named 'openvino'")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "openvino")
    monkeypatch.setattr(builtins, "__import__", without)
    engine._runtime.cache_clear()
    try:
        for arguments in ({"providers": "openvino"}, {"precision": "bf16"}):
            with pytest.raises(CamrtError, match=r"-m pip install openvino"):
                Session(model, **arguments)
        assert not engine.can("bf16")
    finally:
        engine._runtime.cache_clear()
