from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from camrt.engines import cuda
from camrt.explainer import _default_batch
from camrt.graph import explain_graph
from camrt.graph.memory import bytes_per_image
from camrt.preprocess import Preprocess
from tests.camrt.classifiers import SIDE, classifier


class Driver:
    """NVIDIA's driver, which fails at one call."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.calls = fails, list[str]()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name == "cuMemGetInfo_v2":
                arguments[0]._obj.value, arguments[1]._obj.value = 70 << 30, 80 << 30
            return int(name == self.fails)

        return call


def test_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert cuda.free_memory(1) == 70 << 30
    assert driver.calls[-1] == "cuDevicePrimaryCtxRelease_v2"
    for fails in driver.calls[:-2]:
        failing = Driver(fails)
        monkeypatch.setattr(ctypes, "CDLL", lambda name, failing=failing: failing)
        assert cuda.free_memory() is None
        held = "cuDevicePrimaryCtxRetain" in failing.calls and fails != "cuDevicePrimaryCtxRetain"
        assert ("cuDevicePrimaryCtxRelease_v2" in failing.calls) == held


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_DRIVER", "libno-such-driver.so.1")
    assert cuda.free_memory() is None


@pytest.mark.parametrize(
    ("images", "expected"), [(0.5, 1), (2, 1), (5, 2), (16, 8), (100, 32), (1e6, 64), (None, 4)], ids=str
)
def test_default_batch(images: float | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power of two, at most 64, in half of the memory that holds so many images."""
    graph = explain_graph(classifier("gemm"), preprocess=Preprocess(SIDE + 4, SIDE, (104.0, 117.0, 123.0)))
    each = bytes_per_image(graph)
    assert each
    memory = {0: 0, 1: None if images is None else int(images * each)}
    monkeypatch.setattr(cuda, "free_memory", memory.get)
    session: Any = SimpleNamespace(device=1)
    assert _default_batch(graph, session) == expected
    session.device = None
    assert _default_batch(graph, session) == 1
