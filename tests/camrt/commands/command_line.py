"""One run of the command line, and the lines that it writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from typer.testing import CliRunner

from camrt.cli import app
from camrt.results import LINES


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def lines(out: Path) -> list[dict[str, object]]:
    text = (out / LINES).read_text(encoding="utf-8")
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def command(*arguments: object) -> list[str]:
    """A command as a process of its own, which Ctrl-C interrupts."""
    # A shell that starts the tests in the background has Ctrl-C ignored, also below it.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from camrt.cli import main; main()"
    return [sys.executable, "-c", code, *map(str, arguments)]
