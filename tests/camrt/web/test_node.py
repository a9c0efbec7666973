"""docs/run-anywhere/explain.mjs in Node: the answers of Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camrt import Explainer
from camrt.loading import LENET
from converters import zoo
from tests.camrt.commands.command_line import run


@pytest.mark.parametrize("target", [None, "any"])
def test_the_script_gives_pythons_answers(repository: Path, tmp_path: Path, target: str | None) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed")
    packages = repository / "build" / "node" / "node_modules"
    if not (packages / "onnxruntime-node").is_dir() or not (packages / "sharp").is_dir():
        pytest.skip("build/node lacks onnxruntime-node and sharp (npm install --prefix build/node ...)")
    (tmp_path / "node_modules").symlink_to(packages)
    shutil.copy(repository / "docs" / "run-anywhere" / "explain.mjs", tmp_path)
    shutil.copy(repository / "camrt" / "web" / "static" / "camrt.js", tmp_path / "camrt.mjs")
    explainer = tmp_path / "explainer.onnx"
    asked = [] if target is None else ["--target", target]
    assert run("export", LENET, "--method", "gradcam", "--top", 3, *asked, "-o", explainer)[0] == 0
    photo = tmp_path / "digit.png"
    Image.open(zoo.models_folder() / LENET / "sample.png").convert("RGB").resize((300, 210)).save(photo)
    (tmp_path / "labels.txt").write_text("\n".join(f"digit {number}" for number in range(10)))
    command = [node, "explain.mjs", explainer, photo, "labels.txt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = Explainer(explainer)(photo)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [int(number) for number, _, _ in lines] == expected.classes.tolist()
    np.testing.assert_allclose([float(score) for _, score, _ in lines], expected.scores, atol=1e-5)
    assert [label for _, _, label in lines] == [f"digit {number}" for number in expected.classes]
    heatmaps = np.fromfile(tmp_path / "heatmaps.f32", np.float32).reshape(expected.heatmaps.shape)
    np.testing.assert_allclose(heatmaps, expected.heatmaps, atol=1e-3 * expected.heatmaps.max())
