from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from camrt import CamrtError
from camrt.evaluate.experiment import mapped


def double(number: int) -> tuple[int, int]:
    time.sleep(0.02 * (number % 3))  # they do not end in order
    return 2 * number, os.getpid()


def fail(number: int) -> int:
    raise CamrtError(f"number {number}")


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_in_order_and_elsewhere() -> None:
    asked: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(40):
            asked.append(number)
            yield number

    found = []
    for result in mapped(double, numbers(), 2):
        found.append(result)
        assert len(asked) - len(found) <= 8  # three a process, and those at hand
    assert [number for number, _ in found] == list(range(0, 80, 2))
    assert os.getpid() not in {process for _, process in found}
    assert list(mapped(double, range(3), 0)) == [(0, os.getpid()), (2, os.getpid()), (4, os.getpid())]
    assert list(mapped(double, [], 2)) == []


def test_errors() -> None:
    for workers in (0, 1):
        with pytest.raises(CamrtError, match="number 0"):
            list(mapped(fail, range(5), workers))
    with pytest.raises(CamrtError, match="a process that finds boxes was killed"):
        list(mapped(die, range(5), 1))


def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path, repository: Path) -> None:
    code = f"""
import itertools, pathlib
from tests.camrt.evaluate.test_experiment import double
from camrt.evaluate.experiment import mapped
if __name__ == "__main__":
    for number, process in mapped(double, itertools.count(), 1):
        pathlib.Path({str(tmp_path / "worker")!r}).write_text(str(process))
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment)
    deadline = time.monotonic() + 60
    try:
        while not (tmp_path / "worker").exists() or not (tmp_path / "worker").read_text():
            assert parent.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
    worker = int((tmp_path / "worker").read_text())
    while _is_alive(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_alive(process: int) -> bool:
    """Whether it runs: a zombie that nobody waits for does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")
