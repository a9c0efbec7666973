from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests import tiny_cam


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tinyCAM, which knows the shapes."""
    path = tmp_path_factory.mktemp("models") / "tiny.onnx"
    onnx.save(tiny_cam.convert(), path)
    return path
