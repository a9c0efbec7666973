from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from PIL import Image

from camrt import measuring
from camrt.measuring import REFERENCE, Row
from camrt.tuning import Contender
from tests.camrt.commands.command_line import run
from tests.tiny_models import photo, tiny_classifier

FAST = Row("openvino", "bf16", 10, "", 1.0, 0.5, 10**8, 0.9995, 0.9, True)
EXACT = Row("cpu", "fp32", 10, "", 4.0, 0.1, 10**8, 1.0, 1.0, True)
WRONG = Row("openvino", "fp16", 10, "", 0.5, 0.5, 10**8, 0.9, 0.5, False)
GONE = Row("cuda", "fp32", 10, "ONNX Runtime has no cuda here")


@pytest.fixture
def model(tmp_path: Path) -> str:
    onnx.save(tiny_classifier(), tmp_path / "tiny.onnx")
    return str(tmp_path / "tiny.onnx")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Rows as told, and what they were asked of."""
    asked: dict[str, Any] = {}

    def fake(graph: Any, feeds: Any, batches: Any, **settings: Any) -> list[Row]:
        asked.update(feeds=feeds, batches=batches, **settings)
        return [EXACT, FAST, WRONG, GONE]

    monkeypatch.setattr(measuring, "measured", fake)
    return asked


def test_the_table_and_the_line_to_use(model: str, told: dict[str, Any]) -> None:
    asked = ["--method", "gradcam", "--target", "2", "--batch", "10", "--quick"]
    status, out, err = run("benchmark", model, *asked)
    assert status == 0
    *_, fast, wrong, gone, line = out.splitlines()
    assert fast.split()[:6] == ["openvino", "bf16", "10", "1.00", "1000.0", "4.00"]
    assert "maps or best classes differ" in wrong
    assert gone.split() == ["cuda", "fp32", "ONNX", "Runtime", "has", "no", "cuda", "here"]
    assert line == (
        f"camrt explain IMAGES --model {model} --method gradcam --provider openvino --precision bf16 --batch 10 "
        "--target 2"
    )
    assert "made up" in err
    assert (told["batches"], told["seconds"], told["threads"]) == ([10], 0.2, None)
    assert told["feeds"]["image"].shape == (8, 28, 28, 3)


def test_json_and_images(model: str, told: dict[str, Any], tmp_path: Path) -> None:
    for seed in range(10):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(photo(40, 50, seed)).save(tmp_path / "photos" / f"{seed}.png")
    status, out, _ = run("benchmark", model, tmp_path / "photos", "--json")
    assert status == 0
    found = json.loads(out)
    assert [row["precision"] for row in found["rows"]] == ["fp32", "bf16", "fp16", "fp32"]
    assert found["rows"][1]["images_per_second"] == 1000
    assert found["rows"][3]["reason"] == "ONNX Runtime has no cuda here"
    assert found["use"].endswith("--provider openvino --precision bf16 --batch 10")
    assert found["processors"] >= 1
    assert (told["batches"], len(told["feeds"]["image"])) == ([1, 10], 8)


def test_images_that_cannot_be_read(model: str, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    for name, reason in {"none.jpg": "there is no such file", "broken.jpg": "broken.jpg"}.items():
        status, _, err = run("benchmark", model, tmp_path / name)
        assert status == 1
        assert reason in err
    assert run("benchmark", tmp_path / "none.onnx")[0] == 1


def test_classes_that_come_with_the_image(model: str, told: dict[str, Any]) -> None:
    assert run("benchmark", model, "--method", "gradcam", "--target", "input", "--top", "2")[0] == 0
    assert told["feeds"]["target"].tolist() == [[0, 1]] * 8


def test_it_measures(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "contenders", lambda: [REFERENCE, Contender("rocm", "fp32")])
    status, out, _ = run("benchmark", model, "--batch", "2", "--seconds", "0")
    assert status == 0
    assert "ONNX Runtime has no rocm here" in out
    assert out.splitlines()[-1].endswith("--provider cpu --precision fp32 --batch 2")
