"""The output of commands: errors and notes on stderr, tables and JSON on stdout, pictures in files."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from camrt.errors import CamrtError
from converters.errors import MAX_PATH, printable
from converters.terminal import reporting as reporting_errors
from converters.terminal import say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_COLUMNS = 80  # of a picture in a terminal


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


def check_terminal(flag: str, *, as_json: bool) -> None:
    """Check that pictures can be shown.

    Args:
        flag: The option that asks for them.
        as_json: Whether JSON is asked for too.

    Raises:
        typer.BadParameter: The output is no terminal, or the package that draws in terminals is not installed.
    """
    if as_json or not sys.stdout.isatty():
        found = "--json" if as_json else "a pipe or a file"
        raise typer.BadParameter(f"found {found}, expected a terminal to show pictures in", param_hint=flag)
    if importlib.util.find_spec("textual_image") is None:
        raise typer.BadParameter("needs textual-image: pip install 'camrt[show]'", param_hint=flag)


def show_pictures(files: Sequence[Path]) -> None:
    """Show pictures in the terminal, as well as it can: by sixels, kitty's protocol or half blocks.

    Args:
        files: Pictures. One that cannot be read is left out with a note.
    """
    from rich.console import Console
    from textual_image.renderable import Image  # asks the terminal what it can

    console = Console()
    for file in files:
        try:
            console.print(Image(file, width=min(console.width - 1, _COLUMNS), height="auto"))
        except Exception as error:  # a terminal of no size, for example: the results are written all the same
            say(f"note: {printable_path(file)} cannot be shown: {error}")


def printable_path(path: Path | str) -> str:
    """Return a path as it is printed: control characters escaped, and not shortened, as it may be pasted."""
    return printable(path, MAX_PATH)


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a picture, whole or not at all: as JPEG where its name says so, else as PNG."""
    from camrt.render import jpeg, png
    from camrt.results import write

    write(path, jpeg(picture) if path.suffix.lower() in (".jpg", ".jpeg") else png(picture))
