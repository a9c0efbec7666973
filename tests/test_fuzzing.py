"""The loop that damages inputs sees what is wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from tests.fuzzing import Attempt, Program


def fail(error: Exception) -> None:
    raise error


def attempts(kind: str, chance: random.Random, count: int, keep: Path | None) -> Iterator[Attempt | None]:
    for error in (
        None,
        ValueError("no"),
        ValueError("n" * 30),
        ValueError("\x1b[2J"),
        KeyError("lost"),
        KeyError("lost"),
    ):
        yield Attempt((lambda: None) if error is None else (lambda error=error: fail(error)), Path.touch)
    yield None


def test_every_outcome(tmp_path: Path) -> None:
    program = Program("", ["any"], attempts, ValueError, longest=20, done="fine")
    found = program.fuzz("any", seed=3, count=7, keep=tmp_path)
    assert found["outcomes"] == {"fine": 1, "refused": 3, "failed": 2, "unreadable": 1}
    wrong = found["wrong"]
    assert isinstance(wrong, dict)
    assert list(wrong.values()) == [f"any, seed 3, input {number}" for number in (2, 3, 4)]
    assert "an error of 30 characters" in wrong
    assert any(text.startswith("KeyError: 'lost', in ") for text in wrong)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["any-3-2", "any-3-3", "any-3-4"]
