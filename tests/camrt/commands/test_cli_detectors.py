"""Detectors and segmentation on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.camrt.commands.command_line import run
from tests.camrt.graph.detectors import detector, exported
from tests.camrt.graph.test_segments import segmenter
from tests.camrt.graph.torch_networks import exported as segmenter_exported

pytest.importorskip("torch", reason="PyTorch is not installed: it makes the detectors")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pixels = np.kron(np.random.default_rng(5).integers(0, 255, (8, 10, 3)), np.ones((12, 12, 1)))
    Image.fromarray(pixels.astype(np.uint8)).save("street.png")  # 120 x 96
    onnx.save(exported(detector("yolov8")), "yolo.onnx")
    return tmp_path


def explain(*options: str, status: int = 0) -> tuple[dict[str, object], str]:
    found, out, err = run("explain", "street.png", "--preprocess", "yolo", "--json", *options)
    assert found == status, err
    return (json.loads(out) if out.startswith("{") else {}), err


def test_a_detection_is_explained_and_drawn() -> None:
    record, err = explain("--model", "yolo.onnx", "--target", "box:best", "--target", "box:20,20,90,80:1")
    best, second = record["images"][0]["top"]  # type: ignore[index]
    assert second["class"] == 1
    assert second["label"] == "1"
    for one in (best, second):
        x, y, width, height = one["detection"]
        assert 0 <= x < x + width <= 120
        assert 0 <= y < y + height <= 96
    assert "HiResCAM" in err
    assert "the last that boxes and classes share are taken" in err
    drawn = np.asarray(Image.open("explained/street_top1.jpg").convert("RGB")).astype(int)
    plain, _ = explain("--model", "yolo.onnx", "--boxes", "none", "--out", "plain")
    without = np.asarray(Image.open("plain/street_top1.jpg").convert("RGB")).astype(int)
    x, y, width, height = best["detection"]
    changed = np.argwhere(abs(drawn - without).max(2) > 60)
    assert len(changed) > 20
    assert plain["images"][0]["top"][0]["detection"] == best["detection"]  # type: ignore[index]
    assert changed[:, 0].min() >= y - 4
    assert changed[:, 1].min() >= x - 4


def test_one_graph_for_every_box() -> None:
    options = ["--preprocess", "yolo", "--crop", "64", "--target", "box:best:3"]
    status, out, err = run("export", "yolo.onnx", *options, "-o", "e.onnx")
    assert status == 0, err
    assert "1 by box, by default box:best:3" in " ".join(out.split())
    assert "box (N x 1 x 4) float" in out
    record, _ = json.loads(run("explain", "street.png", "--model", "e.onnx", "--json")[1]), ""
    assert record["images"][0]["top"][0]["class"] == 3
    other = json.loads(run("explain", "street.png", "--model", "e.onnx", "--target", "box:2", "--json")[1])
    assert other["images"][0]["top"][0]["detection"] != record["images"][0]["top"][0]["detection"]
    status, _, err = run("compare", "street.png", "--model", "yolo.onnx", "--target", "box:best")
    assert status == 2
    assert "expected a class" in err
    for command in (["web", "e.onnx", "--out", "page"], ["serve", "--model", "e.onnx", "--port", "0"]):
        status, _, err = run(*command)
        assert status == 1
        assert "found an explainer of detections, expected one of classes" in err


def test_one_bad_box_says_what_is_expected() -> None:
    for target, words in (
        ("box:9,9", "expected box, box:best, box:2"),
        ("box:50,50,20,60", "expected left < right"),
        ("box:best:dog", "the model does not know names"),
    ):
        assert words in explain("--model", "yolo.onnx", "--target", target, status=1)[1]
    record, _ = explain("--model", "yolo.onnx", "--target", "box:900,900,901,901", status=1)
    assert "found no detection that overlaps the box" in record["failed"][0]["reason"]  # type: ignore[index]


def test_outputs_that_tell_nothing() -> None:
    onnx.save(exported(detector("ssd"), "ssd"), "ssd.onnx")
    _, err = explain("--model", "ssd.onnx", "--target", "box:best", status=1)
    assert "boxes=TENSOR,scores=TENSOR" in err
    layout = "boxes=boxes,scores=scores,unit=shares,background=0"
    record, _ = explain("--model", "ssd.onnx", "--detections", layout)
    assert record["images"][0]["top"][0]["class"] != 0  # type: ignore[index]
    assert "--detections says what its outputs are" in explain("--model", "ssd.onnx", status=1)[1]


def test_d_rise() -> None:
    record, _ = explain("--model", "yolo.onnx", "--method", "drise", "--set", "masks=16", "--target", "box:2")
    same, _ = explain("--model", "yolo.onnx", "--method", "eigencam", "--target", "box:2", "--out", "again")
    ours, others = (one["images"][0]["top"][0]["detection"] for one in (record, same))  # type: ignore[index]
    assert ours == others


def test_a_segment() -> None:
    onnx.save(segmenter_exported(segmenter()), "segments.onnx")
    options = ["--preprocess", "torchvision", "--crop", "32", "--target", "segment:2", "-o", "s.onnx"]
    status, out, err = run("export", "segments.onnx", *options)
    assert status == 0, err
    assert "gradcam, whole, classes 2" in " ".join(out.split())
    status, out, err = run("explain", "street.png", "--model", "s.onnx", "--json")
    assert status == 0, err
    (one,) = json.loads(out)["images"][0]["top"]
    assert one["class"] == 2
    assert 0 <= one["score"] <= 1


def test_runs_on_a_cluster_refuse_detections() -> None:
    from camrt.cluster.job import graph_of
    from camrt.errors import CamrtError
    from camrt.loading import Request

    with pytest.raises(CamrtError, match="the tables of a run have no boxes"):
        graph_of("yolo.onnx", Request(preprocess="yolo"))
