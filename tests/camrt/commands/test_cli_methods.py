"""Methods, targets and layers on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from camrt import Explainer
from camrt.graph.explain import describe
from camrt.graph.methods import METHODS
from tests.camrt.classifiers import CLASSES, SIDE, classifier
from tests.camrt.commands.command_line import lines, run
from tests.camrt.graph.explainers import PREPROCESS
from tests.tiny_models import photo

NAMES = ("cat", "catfish", "cup", "dog")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a classifier that has no head for class activation maps, and a photo."""
    monkeypatch.chdir(tmp_path)
    metadata = {"camrt.preprocess": PREPROCESS.as_json(), "camrt.labels": json.dumps(NAMES)}
    onnx.save(classifier("two_layers", metadata=metadata), "net.onnx")
    onnx.save(classifier("two_layers"), "bare.onnx")
    Image.fromarray(photo(30, 40)).save("photo.png")
    return tmp_path


def test_export_says_what_is_explained() -> None:
    status, out, err = run("export", "net.onnx", "--method", "gradcam", "-o", "a.onnx")
    assert status == 0, err
    assert "features" in out
    assert "gradcam, whole, the best 4" in " ".join(out.split())
    assert "no layer was named; the last with positions is taken: layer 'features'" in err
    outputs = onnxruntime.InferenceSession("a.onnx").run(None, {"image": np.zeros((2, SIDE, SIDE, 3), np.uint8)})
    assert [output.shape for output in outputs] == [(2, CLASSES), (2, 4), (2, 4, SIDE, SIDE)]
    status, out, err = run(
        "export", "net.onnx", "--method", "layercam", "--layer", "conv", "--layer", "relu", "--target", "cup",
        "--target", "0", "--protocol", "center", "--json", "-o", "b.onnx",
    )  # fmt: skip
    assert status == 0, err
    facts = json.loads(out)
    assert facts | {"layer": ["conv", "features"], "target": [2, 0], "top": 2, "method": "layercam"} == facts
    assert describe(onnx.load("b.onnx"))["layer"] == ["conv", "features"]
    status, out, err = run("export", "net.onnx", "--method", "smoothgrad", "--set", "samples=3", "--target", "input")
    assert status == 0, err
    words = " ".join(out.split())
    assert "smoothgrad, whole, 1 that come with each image, samples 3, sigma 0.15" in words
    assert "target (N x 1) int64" in words
    status, out, err = run("export", "net.onnx", "--method", "gradcam", "--scores", "hidden", "--target", "sum")
    assert status == 0, err
    assert "the sum" in out
    smoothing = ["--smooth", "eigen", "--smooth", "augment"]
    status, out, err = run("export", "net.onnx", "--method", "gradcam", *smoothing, "-o", "c.onnx")
    assert status == 0, err
    assert "gradcam, whole, the best 4, smoothed by augment, smoothed by eigen" in " ".join(out.split())
    assert describe(onnx.load("c.onnx"))["smooth"] == ["augment", "eigen"]


def test_export_takes_names_from_a_file() -> None:
    Path("names.txt").write_text("one\ntwo\nthree\nfour\n")
    options = ["--preprocess", "torchvision", "--crop", "16", "--labels", "names.txt"]
    status, out, err = run("export", "bare.onnx", "--method", "gradcam", *options, "--target", "three", "--json")
    assert status == 0, err
    assert json.loads(out)["target"] == [2]
    assert Explainer("explainer.onnx")("photo.png").labels == ("three",)
    status, _, err = run("export", "bare.onnx", "--method", "gradcam", *options, "--target", "thre")
    assert status == 1
    assert "found the class 'thre', which the model does not know. Did you mean 'three'?" in err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["export", "net.onnx", "--method", "grad-cam"], 2, "expected one of cam, gradcam, "),
        (["export", "net.onnx", "--method", "cam"], 1, "--method gradcam"),
        (["export", "net.onnx", "--method", "gradcam", "--layer", "relu5_3"], 1, "net.onnx: found the layer 'relu5_3'"),
        (["export", "net.onnx", "--method", "gradcam", "--layer", "flat"], 1, "no positions left to map"),
        (["export", "net.onnx", "--method", "gradcam", "--target", "catfsh"], 1, "Did you mean 'catfish'"),
        (["export", "net.onnx", "--method", "gradcam", "--target", "4"], 1, "expected 0 to 3"),
        (["export", "net.onnx", "--method", "gradcam", "--set", "samples"], 2, "expected NAME=VALUE"),
        (["export", "net.onnx", "--method", "gradcam", "--set", "samples=3"], 1, "it has nothing to set"),
        (["export", "net.onnx", "--method", "smoothgrad", "--set", "samples=x"], 1, "expected int as 25 is"),
        (["export", "net.onnx", "--method", "gradcam", "--smooth", "mean"], 2, "'augment', 'eigen'"),
        (["export", "net.onnx", "--method", "eigencam", "--smooth", "eigen"], 1, "which sums no feature maps"),
        (
            ["explain", "photo.png", "--model", "net.onnx", "--method", "rise", "--smooth", "eigen"],
            1,
            "rise is no part of a graph",
        ),
        (["explain", "photo.png", "--model", "net.onnx", "--method", "x"], 2, "expected one of"),
        (["explain", "photo.png", "--model", "net.onnx", "--method", "cam", "--target", "input"], 2, "without classes"),
        (["explain", "photo.png", "--model", "net.onnx", "--method", "gradcam", "--target", "zebra"], 1, "not know"),
        (["explain", "photo.png", "--model", "net.onnx", "--method", "gradcam", "--set", "=3"], 2, "NAME=VALUE"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(arguments: list[str], status: int, words: str) -> None:
    found, _, err = run(*arguments)
    assert found == status
    assert words in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert not Path("explainer.onnx").exists()


def test_explain_by_a_method_and_a_class_and_go_on() -> None:
    command = ["explain", "photo.png", "--model", "net.onnx", "--method", "gradcam", "--protocol", "center"]
    assert run(*command, "--target", "cup", "--layer", "conv")[0] == 0
    (line,) = lines(Path("explained"))
    assert [entry["label"] for entry in line["top"]] == ["cup"]
    assert line["settings"] | {"method": "gradcam", "target": "cup", "layer": "conv"} == line["settings"]
    assert "1 were done" in run(*command, "--target", "cup", "--layer", "conv")[1]
    assert "1 explained" in run(*command, "--target", "dog")[1]
    assert "1 explained" in run(*command, "--target", "dog", "--smooth", "augment")[1]
    assert "1 were done" in run(*command, "--target", "dog", "--smooth", "augment")[1]
    (line,) = lines(Path("explained"))
    assert line["settings"]["smooth"] == "augment"
    (line,) = lines(Path("explained"))
    assert [entry["label"] for entry in line["top"]] == ["dog"]
    smooth = ["explain", "photo.png", "--model", "net.onnx", "--method", "smoothgrad", "--set", "samples=2"]
    assert run(*smooth)[0] == 0
    (line,) = lines(Path("explained"))
    assert line["settings"]["set"] == {"samples": "2"}


def test_without_a_method_the_network_decides() -> None:
    status, _, err = run("explain", "photo.png", "--model", "net.onnx")
    assert status == 0, err
    assert "the method is gradcam: the network has no head for class activation maps" in " ".join(err.split())
    status, out, err = run("export", "net.onnx", "--json")
    assert status == 0, err
    facts = json.loads(out)
    assert facts["method"] == "gradcam"
    assert "expected a global average pooling" in facts["reason"]
    onnx.save(classifier("gemm", metadata={"camrt.preprocess": PREPROCESS.as_json()}), "gemm.onnx")
    assert json.loads(run("export", "gemm.onnx", "--json")[1])["method"] == "cam"


def test_lines_of_before_are_still_done() -> None:
    """What has no target, layer and settings has the line that it had."""
    run("export", "net.onnx", "--method", "gradcam", "-o", "a.onnx")
    run("explain", "photo.png", "--model", "a.onnx")
    (line,) = lines(Path("explained"))
    assert not {"target", "layer", "set"} & set(line["settings"])


def test_help_names_the_methods_without_loading_anything(repository: Path) -> None:
    code = (
        "import sys\nfrom camrt.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'numpy', 'onnx', 'onnxruntime', 'cv2', 'torch'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(repository), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", code, "explain", "--help"], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    words = "".join(done.stdout.split())  # lines are broken at hyphens, too
    for name in METHODS:
        assert name in words
