"""Damaged files end in a ConversionError or in a model: never in another exception, a hang, a crash, or much memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# How many inputs of each kind: some 10 s for all together. For a long run see tests/converters/fuzzing.py.
COUNTS = {"text": 1500, "weights": 1500, "alone": 1000, "hdf5": 600, "noise": 1500}
MEMORY = 1 << 30  # bytes
# Damaged HDF5 makes libhdf5 allocate what damaged sizes say: 0.9 GB for one of 30,000 inputs.
MEMORY_HDF5 = 3 << 30


@pytest.mark.parametrize("kind", COUNTS)
def test_damaged_files(kind: str, repository: Path) -> None:
    count = COUNTS[kind]
    command = [sys.executable, "-m", "tests.converters.fuzzing", kind, "--count", str(count)]
    # A crash leaves a negative exit status, and Python's stack in stderr.
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["wrong"] == {}
    assert sum(found["outcomes"].values()) == count
    assert found["outcomes"]["refused"] > count / 3
    assert kind == "noise" or found["outcomes"]["converted"] > count / 50  # not all damage is lethal
    assert found["peak_bytes"] < (MEMORY_HDF5 if kind == "hdf5" else MEMORY)
