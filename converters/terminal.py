"""What the command lines share: lines on stderr, an exit status for each way to end, progress bars."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import typer

from converters.errors import ConversionError, ConversionWarning


def say(text: str) -> None:
    """Print a line on stderr, at once."""
    print(text, file=sys.stderr, flush=True)


def amount(size: int) -> str:
    """A number of bytes, for people."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"


@contextlib.contextmanager
def reporting(*errors: type[Exception], interrupted: str | Callable[[], str] = "nothing was written") -> Iterator[None]:
    """Errors and warnings as lines on stderr; an exit status for each way to end.

    Args:
        errors: What else than a ConversionError is the user's to mend: its text is shown, without a traceback.
        interrupted: What is true after Ctrl-C, as a text or as what gives the text by then.

    Raises:
        typer.Exit: 1 after an error, 130 after Ctrl-C.
        SystemExit: 143 after SIGTERM.
    """

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        say(f"warning: {message}" if issubclass(category, ConversionWarning) else f"{category.__name__}: {message}")

    def stop(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    expected: tuple[type[Exception], ...] = (ConversionError, *errors)
    is_main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, stop) if is_main else None  # unwinds, so that half a file does not stay
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", ConversionWarning)
            warnings.showwarning = show
            yield
    except expected as error:
        say(f"error: {error}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        say(f"interrupted: {interrupted if isinstance(interrupted, str) else interrupted()}")
        raise typer.Exit(130) from None
    except ModuleNotFoundError as error:
        say(f"error: {error.name or error} is not installed: pip install 'camrt[cpu]', or 'camrt[gpu]' for NVIDIA GPUs")
        raise typer.Exit(1) from None
    except MemoryError:
        say("error: not enough memory")
        raise typer.Exit(1) from None
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def bar(title: str, total: int, *, bytes_: bool = True) -> Iterator[Callable[[int], Any]]:
    """A progress bar on stderr if that is a terminal, for work of ``total`` bytes or pieces; nothing for 0.

    Args:
        title: What is being done.
        total: How much there is to do.
        bytes_: Whether that counts bytes; else pieces, with the time that is left.

    Yields:
        What is called with each amount that is done.
    """
    if not total or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    counts = (DownloadColumn(),) if bytes_ else (MofNCompleteColumn(), TimeRemainingColumn())
    columns = TextColumn("{task.description}"), BarColumn(), *counts
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)
