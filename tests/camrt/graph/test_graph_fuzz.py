"""Damaged models end in a CamrtError or in an explainer: never in another exception, a hang, or a crash."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# How many models of each kind: some seconds for both together. For a long run see tests/camrt/graph/graph_fuzzing.py.
COUNTS = {"bytes": 2000, "structure": 2500}
MEMORY = 1 << 30  # bytes


@pytest.mark.parametrize("kind", COUNTS)
def test_damaged_models(kind: str, repository: Path) -> None:
    count = COUNTS[kind]
    command = [sys.executable, "-m", "tests.camrt.graph.graph_fuzzing", kind, "--count", str(count)]
    # A crash leaves a negative exit status, and Python's stack in stderr.
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["wrong"] == {}
    assert sum(found["outcomes"].values()) == count
    assert found["outcomes"]["refused"] > count / 15  # of damaged bytes, protobuf itself refuses two thirds
    assert found["outcomes"]["explained"] > count / 20  # not all damage is lethal
    assert found["peak_bytes"] < MEMORY
