"""What the command lines share: messages on stderr, exit statuses, progress bars.

Everything printed here passes `converters.errors.printable`, as file names and text from files may contain control
sequences.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import typer

from converters.errors import RUNTIME_GPU, ConversionError, ConversionWarning, install, printable

INTERRUPTED = 128 + signal.SIGINT  # the exit status after Ctrl-C, as in a shell
_UsageError: Any = typer.BadParameter.__bases__[0]  # click's, or that of the copy of click in newer versions of typer


def say(*lines: str) -> None:
    """Print lines on stderr, at once. A newline within a line is escaped, as are all control characters."""
    for line in lines:
        print(printable(line), file=sys.stderr, flush=True)


def say_error(error: BaseException) -> None:
    """Print an error on stderr: its first line after ``error:``, and its details, if it has any."""
    first, *details = str(error).split("\n")
    say(f"error: {first}", *details)


def echo(*lines: str) -> None:
    """Print lines of the result on stdout: as they are in a pipe, with control characters escaped on a terminal."""
    is_terminal = sys.stdout.isatty()
    for line in lines:
        print(printable(line) if is_terminal else line, flush=True)


def table(rows: Mapping[str, Sequence[str] | str]) -> Any:
    """Return a `rich` table of names and values, one value per line, with control characters escaped.

    Args:
        rows: Name -> its value, or several, one below the other.
    """
    from rich.table import Table

    grid = Table(show_header=False, box=None, pad_edge=False)
    for name, values in rows.items():
        lines = [values] if isinstance(values, str) else values
        grid.add_row(name, "\n".join(printable(line) for line in lines))
    return grid


def amount(size: int) -> str:
    """Format a number of bytes for people."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} byte{'s' * (size != 1)}"


@contextlib.contextmanager
def reporting(*errors: type[Exception], interrupted: str | Callable[[], str] = "nothing was written") -> Iterator[None]:
    """Print errors and warnings on stderr, and exit with a status that tells how the run ended.

    Args:
        errors: Exceptions that are shown without a traceback, like ConversionError.
        interrupted: What to say after Ctrl-C: a text, or a function that returns one.

    Raises:
        typer.Exit: 1 after an error, 130 after Ctrl-C.
        SystemExit: 143 after SIGTERM.
    """

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        say(f"{'warning' if issubclass(category, UserWarning) else category.__name__}: {message}")

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
        say_error(error)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        say(f"interrupted: {interrupted if isinstance(interrupted, str) else interrupted()}")
        raise typer.Exit(INTERRUPTED) from None
    except ModuleNotFoundError as error:
        say(f"error: {_missing(error)}")
        raise typer.Exit(1) from None
    except MemoryError:
        say("error: not enough memory")
        raise typer.Exit(1) from None
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _missing(error: ModuleNotFoundError) -> str:
    module = (error.name or "").partition(".")[0]
    if not module:
        return str(error)
    gpu = f", or for NVIDIA GPUs {install(RUNTIME_GPU)}" if module == "onnxruntime" else ""
    return f"{module} is not installed: {install(module)}{gpu}"


def run(application: typer.Typer, prog_name: str) -> NoReturn:
    """Run a command line and leave with its exit status.

    It does what the application would do by itself, but makes messages about a wrong command line `printable`, and ends
    with 130 after Ctrl-C wherever that comes.

    Args:
        application: The command or commands.
        prog_name: The name that usage messages give.
    """
    try:
        status = typer.main.get_command(application).main(prog_name=prog_name, standalone_mode=False)
    except _UsageError as error:
        if error.ctx is None or error.message != error.ctx.get_help():  # help is ours, and has several lines
            error.message = printable(error.message)
        error.show()
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        say("interrupted")
        sys.exit(INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


@contextlib.contextmanager
def bar(title: str, total: int, *, bytes_: bool = True) -> Iterator[Callable[[float], Any]]:
    """Show a progress bar on stderr if it is a terminal and ``total`` is not 0.

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
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    counts = (DownloadColumn(), TransferSpeedColumn()) if bytes_ else (MofNCompleteColumn(),)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), *counts, TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(printable(title, 60), total=total)
        yield lambda count: progress.advance(task, count)
