"""The output of commands: errors and notes on stderr, tables and JSON on stdout, pictures in files."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camrt.errors import CamrtError
from converters.errors import MAX_PATH, printable
from converters.terminal import reporting as reporting_errors
from converters.terminal import say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@contextlib.contextmanager
def reporting(interrupted: str | Callable[[], str] = "nothing was written") -> Iterator[None]:
    """Turn errors into lines and exit statuses; print log records (head, provider) on stderr.

    Args:
        interrupted: What is true after Ctrl-C, as a text or as what gives the text by then.
    """
    logger = logging.getLogger("camrt")
    handler = _Saying()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with reporting_errors(CamrtError, interrupted=interrupted):
            # Pillow's own limit, which does not count here: `camrt.images` has one limit, and names it.
            warnings.filterwarnings("ignore", r"Image size \(\d+ pixels\) exceeds limit")
            yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


class _Saying(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def show(*parts: Any) -> None:
    """Print text and tables; in a pipe as wide as they are."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)
    for part in parts:
        console.print(part)


def printable_path(path: Path | str) -> str:
    """Return a path as it is printed: control characters escaped, and not shortened, as it may be pasted."""
    return printable(path, MAX_PATH)


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a picture, whole or not at all: as JPEG where its name says so, else as PNG."""
    from camrt.render import jpeg, png
    from camrt.results import write

    write(path, jpeg(picture) if path.suffix.lower() in (".jpg", ".jpeg") else png(picture))
