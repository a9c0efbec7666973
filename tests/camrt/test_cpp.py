"""docs/run-anywhere/explain.cpp, compiled: the answers of Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camrt import Explainer
from camrt.loading import LENET
from tests.camrt.commands.command_line import run


@pytest.fixture(scope="module")
def program(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, where pkg-config finds the headers (Debian 13: libonnxruntime-dev, libopencv-dev)."""
    if not (shutil.which("g++") and shutil.which("pkg-config")):
        pytest.skip("g++ or pkg-config is not installed")
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "libonnxruntime", "opencv4"], capture_output=True, text=True, check=False
    )
    if flags.returncode:
        pytest.skip("pkg-config finds no libonnxruntime and opencv4 (libonnxruntime-dev, libopencv-dev)")
    built = tmp_path_factory.mktemp("cpp") / "explain"
    source = repository / "docs" / "run-anywhere" / "explain.cpp"
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror"]
    command: list[str | Path] = ["g++", *options, source, "-o", built, *flags.stdout.split()]
    subprocess.run(command, check=True, timeout=120)
    return built


@pytest.mark.slow
def test_the_program_gives_pythons_answers(program: Path, repository: Path, tmp_path: Path) -> None:
    """On an image that has the network's size: OpenCV resizes differently."""
    graph, photo, overlay = (tmp_path / name for name in ("explainer.onnx", "digit.png", "overlay.png"))
    assert run("export", LENET, "--top", 3, "-o", graph)[0] == 0
    explainer = Explainer(graph)
    with Image.open(repository / "models" / LENET / "sample.png") as sample:
        sample.convert("RGB").resize((explainer.size, explainer.size)).save(photo)
    done = subprocess.run([program, graph, photo, overlay], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found, expected = np.array([line.split("\t") for line in done.stdout.splitlines()], float), explainer(photo)
    assert found[:, 0].tolist() == expected.classes.tolist()
    np.testing.assert_allclose(found[:, 1], expected.scores, rtol=1e-4)
    with Image.open(overlay) as drawn:
        assert drawn.size == (explainer.size, explainer.size)


@pytest.mark.slow
@pytest.mark.parametrize("is_graph_missing", [True, False])
def test_what_is_wrong_is_told(program: Path, tmp_path: Path, is_graph_missing: bool) -> None:
    (tmp_path / "notes.png").write_text("no image")
    graph = tmp_path / "explainer.onnx"
    if not is_graph_missing:
        assert run("export", LENET, "-o", graph)[0] == 0
    command = [program, graph, tmp_path / "notes.png", tmp_path / "overlay.png"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("explain: ")
    assert ("explainer.onnx" if is_graph_missing else "notes.png is no image that can be read") in done.stderr
