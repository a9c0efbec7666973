from __future__ import annotations

import builtins
import contextlib
import logging
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from camrt.engines import onnxruntime as engine
from camrt.engines.onnxruntime import CPU, CUDA, TENSORRT
from camrt.errors import CamrtError, CamrtWarning
from camrt.session import Session
from tests.tiny_models import CLASSES, photo, tiny_explainer

HAS_CUDA = CUDA in onnxruntime.get_available_providers()
IMAGES = np.stack([photo(32, 32, seed) for seed in range(3)])


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return tiny_explainer()


def test_a_model_in_memory_and_on_disk_answer_alike(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    onnx.save(model, path)
    expected = Session(model, providers="cpu").run({"image": IMAGES})
    assert {name: (array.shape, array.dtype) for name, array in expected.items()} == {
        "scores": ((3, CLASSES), np.float32),
        "classes": ((3, 5), np.int64),
        "heatmaps": ((3, 5, 32, 32), np.float32),
    }
    for given in (path, str(path)):
        found = Session(given, providers="cpu").run({"image": IMAGES})
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)


def test_what_it_says_of_itself(model: onnx.ModelProto) -> None:
    one = Session(model, providers="cpu")
    assert one.provider == CPU
    assert one.inputs == {"image": ("N", 32, 32, 3)}
    assert one.outputs["heatmaps"] == ("N", 5, 32, 32)
    assert one.metadata["camrt.name"] == "tiny"
    assert "image" in repr(one)
    assert CPU in repr(one)


def test_it_says_where_it_runs(
    model: onnx.ModelProto, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    with caplog.at_level(logging.INFO, "camrt.session"):
        one = Session(model)
    assert [record.getMessage() for record in caplog.records] == [
        f"ONNX Runtime {onnxruntime.__version__} runs the model on {one.provider}"
    ]
    assert not recwarn


def test_weights_in_external_data(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save(copy, path, save_as_external_data=True, location="tiny.data", size_threshold=100)
    assert (tmp_path / "tiny.data").exists()
    expected, found = (Session(one, providers="cpu").run({"image": IMAGES}) for one in (model, path))
    np.testing.assert_array_equal(found["heatmaps"], expected["heatmaps"])


def test_a_model_beyond_protobufs_limit(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is lowered: the weights go to ONNX Runtime one by one, and live as long as the session."""
    expected = Session(model, providers="cpu").run({"image": IMAGES})
    before = model.SerializeToString()
    monkeypatch.setattr(engine, "_MOST_WEIGHTS", 0)
    monkeypatch.setattr(engine, "_SMALL", 100)
    one = Session(tiny_explainer(), providers="cpu")
    noise = [np.random.default_rng(0).random(300) for _ in range(2000)]  # over freed memory
    found = one.run({"image": IMAGES})
    assert len(noise) == 2000
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    assert one.metadata["camrt.name"] == "tiny"
    Session(model, providers="cpu")
    assert model.SerializeToString() == before


def test_threads(model: onnx.ModelProto) -> None:
    one = Session(model, providers="cpu", threads=1)
    expected = [one.run({"image": IMAGES[n : n + 1]})["heatmaps"] for n in range(3)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: one.run({"image": IMAGES[n % 3 : n % 3 + 1]})["heatmaps"], range(120)))
    for n, heatmaps in enumerate(found):
        np.testing.assert_array_equal(heatmaps, expected[n % 3])


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("providers", ["cpu", "CPU", CPU, [CPU], ["cpu"], [("cpu", {})]], ids=str)
def test_names_of_providers(model: onnx.ModelProto, providers: Any) -> None:
    assert Session(model, providers=providers).provider == CPU


def test_a_provider_that_is_not_there(model: onnx.ModelProto) -> None:
    with pytest.raises(CamrtError, match=r"found the provider 'rocm', expected one that ONNX Runtime .* CPUExecution"):
        Session(model, providers=["rocm", "cpu"])
    with pytest.raises(CamrtError, match="found no providers"):
        Session(model, providers=[])


@pytest.mark.skipif(HAS_CUDA, reason="ONNX Runtime has CUDA")
def test_no_silent_fallback_from_cuda(model: onnx.ModelProto) -> None:
    for providers in ("cuda", ["cuda", "cpu"], [(CUDA, {"device_id": 0})]):
        with pytest.raises(
            CamrtError, match=r"found the provider .*cuda.*pip install 'onnxruntime-gpu\[cuda,cudnn\]'|CUDA"
        ):
            Session(model, providers=providers)


class FakeRuntime:
    """ONNX Runtime with CUDA and TensorRT on a machine whose GPU does not work, or works but captures no graphs."""

    __version__ = "1.99"

    def SessionOptions(self) -> SimpleNamespace:  # noqa: N802 - its name
        return SimpleNamespace(
            add_free_dimension_override_by_name=lambda *_: None, add_session_config_entry=lambda *_: None
        )

    def __init__(self, *, starts: bool = False, raises: bool = False) -> None:
        self.starts, self.raises = starts, raises
        self.asked: list[Sequence[tuple[str, dict[str, str]]]] = []
        self.sources: list[bytes] = []

    def get_available_providers(self) -> list[str]:
        return [TENSORRT, CUDA, CPU]

    def preload_dlls(self) -> None:
        print("Failed to load libcudnn.so.9")

    def InferenceSession(  # noqa: N802 - its name
        self, source: Any, options: Any, providers: Sequence[tuple[str, dict[str, str]]], **_: Any
    ) -> SimpleNamespace:
        self.asked.append(providers)
        self.sources.append(source)
        names = [name for name, _ in providers]
        if self.raises and CUDA in names:
            raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected")
        if dict(providers).get(CUDA, {}).get("enable_cuda_graph") == "1":
            raise RuntimeError("This session cannot use the graph capture feature: control flow")
        active = [name for name in names if name == CPU or self.starts]
        active += [] if CPU in active else [CPU]
        return SimpleNamespace(
            get_providers=lambda: active,
            get_inputs=list,
            get_outputs=list,
            get_modelmeta=lambda: SimpleNamespace(custom_metadata_map={}),
            get_provider_options=lambda: {name: dict(providers).get(name, {}) for name in active},
        )


def use(fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_runtime", lambda: fake)
    monkeypatch.setattr(engine, "_preload_cuda", engine._preload_cuda.__wrapped__)


@pytest.mark.parametrize("fake", [FakeRuntime(), FakeRuntime(raises=True)], ids=["silent", "raises"])
def test_cuda_that_does_not_start(
    model: onnx.ModelProto,
    fake: FakeRuntime,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Asked for, it is an error; by default the CPU is taken, and the log says why."""
    use(fake, monkeypatch)
    for providers in ("cuda", ["cuda", "cpu"]):
        with pytest.raises(CamrtError, match=r"CUDAExecutionProvider did not start|no CUDA-capable device"):
            Session(model, providers=providers)
    with caplog.at_level(logging.INFO, "camrt.session"):
        assert Session(model).provider == CPU
    assert "CUDAExecutionProvider is there and did not start" in caplog.text
    printed = capsys.readouterr()
    assert not printed.out  # what the runtime prints does not end up in our answers
    assert "libcudnn" in printed.err


def test_cuda_computes_in_full_precision(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRuntime(starts=True)
    use(fake, monkeypatch)
    assert Session(model).provider == CUDA
    Session(model, providers=[("cuda", {"device_id": 1, "use_tf32": 1})])
    defaults, given = (dict(asked)[CUDA] for asked in fake.asked)
    assert defaults["use_tf32"] == "0"
    assert (given["use_tf32"], given["device_id"]) == ("1", "1")
    assert given["cudnn_conv_algo_search"] == defaults["cudnn_conv_algo_search"]


def test_options_in_the_name(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRuntime(starts=True)
    use(fake, monkeypatch)
    one = Session(model, providers="cuda:device_id=1,prefer_nhwc=1")
    assert {"device_id": "1", "prefer_nhwc": "1", "use_tf32": "0"}.items() <= dict(fake.asked[0])[CUDA].items()
    assert one._engine._bound is not None  # type: ignore[attr-defined]
    assert one._engine._bound._device == ("cuda", 1)  # type: ignore[attr-defined]
    for wrong in ("cuda:device_id", "cuda:=1"):
        with pytest.raises(CamrtError, match=r"found the option .* of the provider 'cuda', expected NAME=VALUE"):
            Session(model, providers=wrong)


def test_precisions_on_cuda(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """At fp16 the model itself changes, and only there; TF32 stays off."""
    fake = FakeRuntime(starts=True)
    use(fake, monkeypatch)
    for precision, tf32, weights in (
        ("fp32", "0", TensorProto.FLOAT), ("tf32", "1", TensorProto.FLOAT), ("fp16", "0", TensorProto.FLOAT16),
    ):  # fmt: skip
        one = Session(model, providers="cuda", precision=precision)
        assert one.precision == precision
        assert dict(fake.asked[-1])[CUDA]["use_tf32"] == tf32
        graph = onnx.ModelProto.FromString(fake.sources[-1]).graph
        conv = next(node for node in graph.node if node.op_type == "Conv")
        assert next(tensor.data_type for tensor in graph.initializer if tensor.name == conv.input[1]) == weights
    with pytest.raises(CamrtError, match="found the precision 'bf16', expected fp32 or tf32 or fp16"):
        Session(model, providers="cuda", precision="bf16")


def test_half_precision_of_a_file(model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(FakeRuntime(starts=True), monkeypatch)
    onnx.save(model, tmp_path / "tiny.onnx")
    assert Session(tmp_path / "tiny.onnx", providers="cuda", precision="fp16").precision == "fp16"
    with pytest.raises(CamrtError, match=r"none\.onnx: there is no such file"):
        Session(tmp_path / "none.onnx", providers="cuda", precision="fp16")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(CamrtError, match=r"broken\.onnx: .*no ONNX model that can be read"):
        Session(tmp_path / "broken.onnx", providers="cuda", precision="fp16")


def test_beyond_the_range_of_half_precision(model: onnx.ModelProto) -> None:
    """What float16 cannot hold becomes infinite, and that is an error."""
    one = Session(model, providers="cpu")
    one._engine.precision = "fp16"
    one.run({"image": IMAGES})
    one._engine._session = SimpleNamespace(run=lambda *_: [np.float32([0, np.inf]), np.int64([1]), np.float32([1])])  # type: ignore[attr-defined]
    with pytest.raises(CamrtError, match=r"found values in 'scores' that are not finite.*--precision fp32 or tf32"):
        one.run({"image": IMAGES})


def test_cuda_graphs_where_they_cannot_be(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ONNX Runtime refuses to capture, a session without runs, and that is said once."""
    fake = FakeRuntime(starts=True)
    use(fake, monkeypatch)
    one = Session(model, providers="cuda:enable_cuda_graph=1,prefer_nhwc=1")
    graphs: Any = one._engine._bound  # type: ignore[attr-defined]
    with pytest.warns(CamrtWarning, match="CUDA graphs are not used: .*control flow"):
        assert graphs._fixed({"N": 1}) is graphs._free
    assert graphs._fixed({"N": 2}) is graphs._free
    assert ["enable_cuda_graph" in dict(asked)[CUDA] for asked in fake.asked] == [False, True]
    assert [dict(asked)[CUDA]["prefer_nhwc"] for asked in fake.asked] == ["1", "1"]


def test_a_session_for_each_batch_size(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, as far as it goes without capturing: fixed sizes, sessions that are used again, and a bound."""
    loading = engine._Loading(model, onnxruntime, None, 1)
    free = engine.Bound(loading.on("cpu"), onnxruntime, ("cpu", 0))
    loading.captures, loading._capturing = True, {CPU: {}}
    graphs = engine.CudaGraphs(loading, free, onnxruntime, ("cpu", 0))
    expected = Session(model, providers="cpu").run({"image": IMAGES})
    monkeypatch.setattr(engine, "MOST_SHAPES", 2)
    for number in (3, 1, 3, 2, 1):
        found = graphs.run({"image": IMAGES[:number]})
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array[:number])
    assert [dict(key) for key in graphs._bound] == [{"N": 3}, {"N": 1}]
    shapes = [bound._session.get_inputs()[0].shape for bound in graphs._bound.values()]
    assert shapes == [[3, 32, 32, 3], [1, 32, 32, 3]]


def test_tensorrt(model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its engines are cached, and what it leaves runs on CUDA, on the same GPU."""
    monkeypatch.setenv("CAMRT_HOME", str(tmp_path))
    fake = FakeRuntime(starts=True)
    use(fake, monkeypatch)
    one = Session(model, providers="tensorrt:device_id=1")
    assert (one.provider, one.precision) == (TENSORRT, "tf32")
    asked = dict(fake.asked[0])
    assert list(asked) == [TENSORRT, CUDA]
    assert asked[CUDA]["device_id"] == asked[TENSORRT]["device_id"] == "1"
    assert asked[TENSORRT]["trt_engine_cache_enable"] == "1"
    assert Path(asked[TENSORRT]["trt_engine_cache_path"]) == tmp_path / "tensorrt"
    assert (tmp_path / "tensorrt").is_dir()
    assert Session(model, providers="tensorrt", precision="fp16").precision == "fp16"
    assert dict(fake.asked[-1])[TENSORRT]["trt_fp16_enable"] == "1"
    with pytest.raises(CamrtError, match="found the precision 'fp32', expected tf32 or fp16 or bf16"):
        Session(model, providers="tensorrt", precision="fp32")
    fake.starts = False
    with pytest.raises(CamrtError, match=r"did not start.*pip install 'tensorrt-cu13>=10"):
        Session(model, providers="tensorrt")


def test_without_onnxruntime(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.setattr(builtins, "__import__", without)
    engine._runtime.cache_clear()
    try:
        with pytest.raises(CamrtError, match=r"-m pip install onnxruntime, or"):
            Session(model)
    finally:
        engine._runtime.cache_clear()


def test_models_that_cannot_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(CamrtError, match=r"broken\.onnx: ONNX Runtime cannot load it"):
        Session(path)
    with pytest.raises(CamrtError, match="there is no such file"):
        Session(tmp_path / "none.onnx")
    with pytest.raises(CamrtError, match="ONNX Runtime cannot load it"):
        Session(onnx.ModelProto())


def test_wrong_arguments(model: onnx.ModelProto) -> None:
    with pytest.raises(CamrtError, match="found 0 threads"):
        Session(model, threads=0)
    with pytest.raises(CamrtError, match=r"image \(3, 32, 32, 2\) uint8"):
        Session(model).run({"image": IMAGES[..., :2]})
    with pytest.raises(CamrtError, match="float32"):
        Session(model).run({"image": IMAGES.astype(np.float32)})
    with contextlib.suppress(CamrtError):
        Session(model).run({})


# ------------------------------------------------------------------------------------------------------------------ gpu

gpu = [pytest.mark.gpu, pytest.mark.skipif(not HAS_CUDA, reason="ONNX Runtime has no CUDA here")]


class TestCuda:
    pytestmark = gpu

    def test_is_the_default(self, model: onnx.ModelProto) -> None:
        assert Session(model).provider == CUDA

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_answers_as_the_cpu(self, model: onnx.ModelProto, number: int) -> None:
        feeds = {"image": IMAGES[:number]}
        found, expected = (Session(model, providers=one).run(feeds) for one in ("cuda", "cpu"))
        np.testing.assert_array_equal(found["classes"], expected["classes"])
        np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-5)
        np.testing.assert_allclose(
            found["heatmaps"], expected["heatmaps"], rtol=1e-4, atol=1e-5 * expected["heatmaps"].max()
        )
        assert found["heatmaps"].dtype == np.float32

    def test_threads(self, model: onnx.ModelProto) -> None:
        one = Session(model, providers="cuda")
        expected = [one.run({"image": IMAGES[n : n + 1]})["heatmaps"] for n in range(3)]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda n: one.run({"image": IMAGES[n % 3 : n % 3 + 1]})["heatmaps"], range(120)))
        for n, heatmaps in enumerate(found):
            np.testing.assert_allclose(heatmaps, expected[n % 3], rtol=1e-5)

    def test_outputs_are_new_at_each_call(self, model: onnx.ModelProto) -> None:
        one = Session(model, providers="cuda")
        first = one.run({"image": IMAGES[:1]})["heatmaps"]
        kept = first.copy()
        one.run({"image": IMAGES[1:2]})
        np.testing.assert_array_equal(first, kept)

    def test_wrong_arguments(self, model: onnx.ModelProto) -> None:
        with pytest.raises(CamrtError, match="ONNX Runtime failed on CUDAExecutionProvider"):
            Session(model, providers="cuda").run({"image": IMAGES[..., :2]})
        with pytest.raises(CamrtError):
            Session(model, providers=[("cuda", {"device_id": 99})])
