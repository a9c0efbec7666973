from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from camrt.engines import binding
from camrt.engines.binding import Bound
from tests.tiny_models import photo, tiny_explainer

IMAGES = np.stack([photo(32, 32, seed) for seed in range(4)])


class Counting:
    """The module onnxruntime, which counts what is allocated and keeps the numbers of CUDA graphs."""

    def __init__(self) -> None:
        self.allocated: list[tuple[int, ...]] = []
        self.graphs: list[int] = []
        self.OrtValue = SimpleNamespace(ortvalue_from_shape_and_type=self.allocate)

    def allocate(self, shape: Any, *arguments: Any) -> Any:
        self.allocated.append(tuple(shape))
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, *arguments)

    def RunOptions(self) -> Any:  # noqa: N802 - its name
        options = onnxruntime.RunOptions()

        def add(key: str, value: str) -> None:
            assert key == "gpu_graph_id"
            self.graphs.append(int(value))
            options.add_run_config_entry(key, value)

        return _Options(options, add)


class _Options:
    """Options whose entries are looked at; the session gets them as they are."""

    def __init__(self, options: Any, add: Any) -> None:
        self.options, self.add_run_config_entry = options, add


class OnCpu:
    """A session on the CPU that takes `_Options`, as a session with CUDA graphs takes a run's."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, bound: Any, options: Any) -> None:
        self._session.run_with_iobinding(bound, options and options.options)


@pytest.fixture(scope="module")
def session() -> OnCpu:
    return OnCpu(tiny_explainer())


@pytest.fixture(scope="module")
def expected(session: OnCpu) -> dict[str, np.ndarray]:
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": IMAGES}), strict=True))


@pytest.mark.parametrize("captures", [False, True])
def test_memory_is_allocated_once_for_a_shape(session: OnCpu, expected: dict[str, np.ndarray], captures: bool) -> None:
    runtime = Counting()
    bound = Bound(session, runtime, ("cpu", 0), captures=captures)  # type: ignore[arg-type]
    kept = []
    for number in (4, 1, 2, 4, 4, 1, 2):
        found = bound.run({"image": IMAGES[:number]})
        kept.append((number, found))
    assert len(runtime.allocated) == 3 * 4  # an input and three outputs of each of three sizes
    for number, found in kept:  # new arrays: later runs have not changed them
        assert list(found) == ["scores", "classes", "heatmaps"]
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array[:number])
    assert runtime.graphs == ([1, 2, 3, 1, 1, 2, 3] if captures else [])


@pytest.mark.parametrize("captures", [False, True])
def test_threads(session: OnCpu, expected: dict[str, np.ndarray], captures: bool) -> None:
    runtime = Counting()
    bound = Bound(session, runtime, ("cpu", 0), captures=captures)  # type: ignore[arg-type]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: bound.run({"image": IMAGES[n % 4 : n % 4 + 1]}), range(200)))
    for n, one in enumerate(found):
        np.testing.assert_array_equal(one["heatmaps"][0], expected["heatmaps"][n % 4])
    assert len(runtime.allocated) <= 4 * (1 if captures else 8)  # as many as run at once


def test_memory_is_bounded(session: OnCpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the shapes used last some are kept; a CUDA graph's never goes, and there are as many graphs at most."""
    monkeypatch.setattr(binding, "MOST_SHAPES", 2)
    for captures, allocated in ((False, [1, 2, 3, 1]), (True, [1, 2, 3])):
        runtime = Counting()
        bound = Bound(session, runtime, ("cpu", 0), captures=captures)  # type: ignore[arg-type]
        for number in (1, 2, 3, 1):
            bound.run({"image": IMAGES[:number]})
        assert [shape[0] for shape in runtime.allocated if len(shape) == 4 and shape[-1] == 3] == allocated
        assert runtime.graphs == ([1, 2, -1, 1] if captures else [])


def test_memory_is_not_kept_after_an_error(session: OnCpu, expected: dict[str, np.ndarray]) -> None:
    """A graph's number is not used again: the graph that it stands for knows other addresses."""
    runtime = Counting()
    bound = Bound(session, runtime, ("cpu", 0), captures=True)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(Exception, match="invalid dimensions"):
            bound.run({"image": IMAGES[:1, :, :, :2]})
    with pytest.raises(Exception, match="imago"):
        bound.run({"imago": IMAGES})
    np.testing.assert_array_equal(bound.run({"image": IMAGES})["heatmaps"], expected["heatmaps"])
    assert runtime.graphs == [1, 2, 3]


def test_outputs_of_unknown_size() -> None:
    """They are allocated by each run, and are not captured."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])],
        "unknown",
        [value("x", TensorProto.FLOAT, ["N"])],
        [value("y", TensorProto.INT64, [1, "found"]), value("z", TensorProto.FLOAT, ["N"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    runtime = Counting()
    bound = Bound(OnCpu(model), runtime, ("cpu", 0), captures=True)  # type: ignore[arg-type]
    for x in ([1.0, 0, 2], [0.0, 0, 3], [4.0, 5, 6]):
        found = bound.run({"x": np.array(x, np.float32)})
        np.testing.assert_array_equal(found["y"], np.nonzero(x))
        np.testing.assert_array_equal(found["z"], -np.array(x, np.float32))
    assert runtime.graphs == [-1, -1, -1]
