"""OpenCV 5, which has no importer of Caffe networks, runs what was converted: against real Caffe, and docs/opencv5.md.

OpenCV 5 cannot be beside OpenCV 4 in one environment: it is looked for in build/peers/camrt-opencv5, where
``python benchmarks/opencv5.py --install`` and .ci/run put it, and runs in processes of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.converters import AGREES, DIFFERS, SHAPE, Network, compared, difference
from camrt.loading import LENET, named_classifier
from converters import convert
from tests.caffe_cases import CASES, DATA, answers_of, silent

PEER, PAGE = "camrt-opencv5", "docs/opencv5.md"
RUN_PAGE = """
import sys, cv2
assert cv2.__version__.startswith("5."), cv2.__version__
assert not hasattr(cv2.dnn, "readNetFromCaffe")
names = {}
exec(compile(sys.stdin.read(), "docs/opencv5.md", "exec"), names)
import numpy as np
np.savez("out.npz", scores=names["scores"], blob=names["blob"], prob=names["outputs"]["prob"],
         weight=names["weights"]["conv1.weight"], scored=[score for _, score, _ in names["boxes"]])
"""


@pytest.fixture
def opencv5(repository: Path) -> dict[str, str]:
    """The environment of a process that imports OpenCV 5."""
    folder = repository / "build" / "peers" / PEER
    if not (folder / "cv2").is_dir():
        pytest.skip("OpenCV 5 is not installed: python benchmarks/opencv5.py --install")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(repository)]), "OPENCV_LOG_LEVEL": "SILENT"}


def test_python_of_the_page_runs(opencv5: dict[str, str], repository: Path, tmp_path: Path) -> None:
    text = (repository / PAGE).read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    for found, stands_in in {"size=(224, 224)": "size=(100, 100)", "(512, 512)": "(32, 32)"}.items():
        assert found in code, f"{found} is no longer on the page"
        code = code.replace(found, stands_in)
    onnx.save(named_classifier(LENET), tmp_path / "net.onnx")
    case = CASES["forks/ssd_head"]
    with silent():
        onnx.save(convert(case.prototxt, case.caffemodel), tmp_path / "ssd.onnx")
    shutil.copy(repository / "models" / LENET / "sample.png", tmp_path / "photo.jpg")  # OpenCV looks at the content
    done = subprocess.run(
        [sys.executable, "-c", RUN_PAGE],
        env=opencv5,
        cwd=tmp_path,
        input=code,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "out.npz")

    import cv2
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(["prob"], {"data": found["blob"]})
    np.testing.assert_allclose(found["prob"], expected, atol=1e-5)
    image = cv2.imread(str(tmp_path / "photo.jpg"))
    np.testing.assert_array_equal(found["blob"], cv2.dnn.blobFromImage(image, 1.0, (100, 100), (104, 117, 123)))
    folder = repository / "models" / LENET
    theirs = cv2.dnn.readNetFromCaffe(str(folder / "deploy.prototxt"), str(folder / "lenetCAM.caffemodel"))
    theirs.setInput(found["blob"])
    np.testing.assert_allclose(found["prob"], theirs.forward("prob"), atol=1e-5)
    np.testing.assert_array_equal(found["weight"], theirs.getParam("conv1"))
    assert len(found["scored"]) > 0
    assert (found["scored"] > 0.5).all()


@pytest.mark.parametrize(
    "name",
    ["bvlc/conv_basic", "bvlc/pool_ave_pad_ceil", "bvlc/lrn_within", "bvlc/deconv_group", "forks/ssd_head"],
)
def test_answers_as_caffe(name: str, opencv5: dict[str, str], repository: Path, tmp_path: Path) -> None:
    case = CASES[name]
    answer = answers_of(case)[0]
    network = Network("bvlc", name, case.prototxt, case.caffemodel, answer.inputs, answer.outputs)
    assert _verdicts(network, opencv5, repository, tmp_path) == {AGREES}


def test_detector_answers_as_caffe(opencv5: dict[str, str], repository: Path, reference: Path, tmp_path: Path) -> None:
    """It has padded convolutions of single pixels, which OpenCV 5.0.0 computes wrongly if they are left as they are."""
    files = reference / "caffemodels" / "hyperlpr-mininet-ssd"
    image = np.load(files / "mininet_ssd_v1.opencv-4.14.0.npz")["input"]
    expected = {"detection_out": np.load(DATA / "mininet_ssd_v1.npz")["out:detection_out"]}
    paths = files / "mininet_ssd_v1.prototxt", files / "mininet_ssd_v1.caffemodel"
    network = Network("networks", "ssd", *paths, {"data": image}, expected)
    assert _verdicts(network, opencv5, repository, tmp_path) == {AGREES}


def test_nothing_detected_with_the_threshold_of_the_page(
    opencv5: dict[str, str], repository: Path, tmp_path: Path
) -> None:
    """OpenCV 5.0.0 divides by zero if no score exceeds the threshold; the page says to set it to 0."""
    case = CASES["forks/detection_none_found"]
    text, changed = re.subn(r"confidence_threshold: [\d.]+", "confidence_threshold: 0", case.prototxt.read_text())
    assert changed == 1
    assert "confidence_threshold: 0`" in (repository / PAGE).read_text(encoding="utf-8")
    (tmp_path / "net.prototxt").write_text(text)
    inputs = answers_of(case)[0].inputs
    with silent():
        model = convert(tmp_path / "net.prototxt", case.caffemodel)
    read = {one.name for one in model.graph.input}

    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {name: values for name, values in inputs.items() if name in read})
    assert expected.shape[2] > 1
    outputs = {model.graph.output[0].name: expected}
    network = Network("forks", "none", tmp_path / "net.prototxt", case.caffemodel, inputs, outputs)
    assert _verdicts(network, opencv5, repository, tmp_path) == {AGREES}


def _verdicts(network: Network, environment: dict[str, str], repository: Path, folder: Path) -> set[str]:
    with silent():
        network.write(folder / "one")
    script = repository / "benchmarks" / "converter_peers.py"
    subprocess.run([sys.executable, script, PEER, folder], env=environment, check=True, timeout=60, capture_output=True)
    assert not (folder / "one" / f"{PEER}.txt").exists(), (folder / "one" / f"{PEER}.txt").read_text()
    with np.load(folder / "one" / f"{PEER}.npz") as found:
        assert set(found.files) == set(network.outputs)
        return {compared(found[name], values) for name, values in network.outputs.items()}


# ------------------------------------------------------------------------------------------------------- the comparison


@pytest.mark.parametrize(
    ("found", "expected", "word"),
    [
        ([[1.0, 2.0]], [[1.0, 2.001]], AGREES),
        ([[1.0, 2.0]], [[1.0, 2.01]], f"{DIFFERS}: 0.005"),
        ([1.0, 2.0], [[1.0, 2.0]], f"{SHAPE}: 2"),
        ([1.0], [[1.0, 2.0]], f"{DIFFERS}: 1, not 1x2"),
        ([1.0, np.nan], [1.0, np.nan], AGREES),
        ([1.0, np.nan], [1.0, 2.0], f"{DIFFERS}: nan"),
        ([1.0, np.inf], [1.0, np.inf], AGREES),
        ([1.0, np.inf], [1.0, 2.0], f"{DIFFERS}: inf"),
        ([0.0, 1e-9], [0.0, 0.0], AGREES),
    ],
)
def test_verdicts(found: list[float], expected: list[float], word: str) -> None:
    assert compared(np.array(found, np.float32), np.array(expected, np.float32)) == word


def test_detections_are_compared_without_filling_and_image() -> None:
    rows = np.random.default_rng(0).random((1, 1, 3, 7), dtype=np.float32)
    filled = np.concatenate([rows, np.zeros((1, 1, 2, 7), np.float32)], axis=2)
    assert difference(filled, rows) == 0
    assert difference(rows[..., 1:], rows) == 0
    assert difference(filled[:, :, 1:], rows) is None
