from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: benchmarks/gpu.py compares with it")


@pytest.mark.slow
def test_runs_without_a_gpu(repository: Path, tmp_path: Path) -> None:
    """All of its code, on the CPU; a contender that is not installed is a row with the reason."""
    found = tmp_path / "found.json"
    command = [sys.executable, repository / "benchmarks" / "gpu.py", "--device", "cpu", "--quick", "--json", found]
    command += ["--networks", "ViT-B shape", "ResNet-50 shape"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = json.loads(found.read_text())["rows"]
    measured = {(row["network"], row["method"], row["contender"]) for row in rows if row["milliseconds"]}
    for network in ("ViT-B shape", "ResNet-50 shape"):
        assert {
            (network, "forward", "bare CPU"),
            (network, "forward", "PyTorch"),
            (network, "gradcam", "camrt CPU"),
        } <= (measured)
    assert ("ResNet-50 shape", "cam", "camrt CPU") in measured
    broken = [row for row in rows if not row["milliseconds"]]
    assert all("not installed" in row["reason"] or "busy" in row["reason"] for row in broken), broken
