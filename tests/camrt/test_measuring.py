from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from camrt import CamrtError, measuring
from camrt.measuring import REFERENCE, Row, contenders, measured
from camrt.tuning import Contender
from tests.tiny_models import photo, tiny_explainer

FEEDS = {"image": np.stack([photo(32, 32, seed) for seed in range(3)])}


def killed(task: Any, pipe: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def only(monkeypatch: pytest.MonkeyPatch, *wanted: Contender) -> None:
    monkeypatch.setattr(measuring, "contenders", lambda: [REFERENCE, *wanted])


def test_float32_agrees_with_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    only(monkeypatch)
    path = tmp_path / "explainer.onnx"
    onnx.save(tiny_explainer(), path)
    for graph in (tiny_explainer(), path):
        rows = list(measured(graph, FEEDS, [1, 5], seconds=0))
        assert [(row.provider, row.precision, row.batch, row.reason) for row in rows] == [
            ("cpu", "fp32", 1, ""),
            ("cpu", "fp32", 5, ""),
        ]
        for row in rows:
            assert row.is_enough
            assert (row.correlation, row.classes) == (pytest.approx(1), 1)
            assert row.milliseconds
            assert row.images_per_second == pytest.approx(1000 / row.milliseconds)
            assert row.peak_bytes is None or 10e6 < row.peak_bytes < 10e9
    assert path.exists()


def test_what_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is known without a process; what fails in its process says why."""
    only(monkeypatch, Contender("rocm", "fp32"), Contender("cpu", "bf16"))
    missing, failing = list(measured(tiny_explainer(), FEEDS, [2], seconds=0))[1:]
    assert missing == Row("rocm", "fp32", 2, "ONNX Runtime has no rocm here")
    assert failing.provider == "cpu"
    assert "found the precision 'bf16', expected fp32" in failing.reason
    assert failing.as_dict()["images_per_second"] is None


def test_a_process_that_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the reference it is an error: there would be nothing to compare with."""
    only(monkeypatch)
    monkeypatch.setattr(measuring, "_report", killed)
    rows = measured(tiny_explainer(), FEEDS, [1], seconds=0)
    row = next(rows)
    assert row.reason == "the process ended with exit code -9: there may not be enough memory"
    with pytest.raises(CamrtError, match="float32 on the CPU fails"):
        next(rows)


def test_a_process_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch)
    monkeypatch.setattr(measuring, "_LIMIT", 0)
    assert next(measured(tiny_explainer(), FEEDS, [1], seconds=0)).reason == "it took more than 0 s"


def test_contenders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a provider that is not there only one row says so."""
    monkeypatch.setattr(measuring, "missing", lambda each: "none" if each.provider != "cpu" else "")
    assert [str(each) for each in contenders()] == ["cpu fp32", "openvino fp32", "cuda fp32", "tensorrt tf32"]
    monkeypatch.setattr(measuring, "missing", lambda each: "")
    assert contenders()[0] == REFERENCE
    assert Contender("cuda", "fp16") in contenders()


def test_batches_repeat_the_images() -> None:
    taken = measuring._taken({"image": np.arange(3)}, range(2, 7))
    assert taken["image"].tolist() == [2, 0, 1, 2, 0]
