"""docs/run-anywhere/explain.cpp, compiled: the answers of Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from camrt import Explainer
from camrt.loading import LENET
from tests.camrt.commands.command_line import run

OPENCV = ["-I/usr/include/opencv4", "-lopencv_imgcodecs", "-lopencv_imgproc", "-lopencv_core"]


@pytest.fixture(scope="module")
def program(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, where headers are."""
    if not shutil.which("g++"):
        pytest.skip("g++ is not installed")
    folder = tmp_path_factory.mktemp("cpp")
    flags = flags_of("opencv4") or (OPENCV if Path("/usr/include/opencv4/opencv2/imgcodecs.hpp").exists() else None)
    if flags is None:
        pytest.skip("OpenCV's headers are not installed (libopencv-imgcodecs-dev, libopencv-imgproc-dev)")
    runtime = flags_of("libonnxruntime") or flags_of_wheel(repository / "build" / "cpp", folder)
    if runtime is None:
        pytest.skip("ONNX Runtime's headers are not installed (libonnxruntime-dev of Debian 13, also in build/cpp)")
    built = folder / "explain"
    source = repository / "docs" / "run-anywhere" / "explain.cpp"
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror"]
    command: list[str | Path] = ["g++", *options, source, "-o", built, *flags, *runtime]
    subprocess.run(command, check=True, timeout=240)
    return built


def flags_of(package: str) -> list[str] | None:
    """What pkg-config says of a package; None if it does not know it, or is not installed."""
    if not shutil.which("pkg-config"):
        return None
    command = ["pkg-config", "--cflags", "--libs", package]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return None if found.returncode else found.stdout.split()


def flags_of_wheel(unpacked: Path, folder: Path) -> list[str] | None:
    """The headers of a package that is unpacked and not installed, and the library of the wheel, which is newer."""
    headers = unpacked / "usr" / "include" / "onnxruntime"
    libraries = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    if not (libraries and (headers / "onnxruntime_cxx_api.h").exists()):
        return None
    # The program asks for the library by the name that the library has for itself: libonnxruntime.so.1.
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(libraries[-1])
    return [f"-isystem{headers}", f"-L{folder}", "-lonnxruntime", f"-Wl,-rpath,{folder}"]


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
