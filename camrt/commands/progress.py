"""The progress of training: lines on stderr and, on a terminal, a progress bar."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from converters.terminal import say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from camrt.train.options import Reporter
    from camrt.train.parallel import Group


@contextlib.contextmanager
def joined() -> Iterator[tuple[Group, Reporter]]:
    """Join the processes that train together, and report as `progress_reporter` does. They part when the block ends."""
    from camrt.train import parallel

    try:
        group = parallel.join()
        with progress_reporter() as reporter:
            yield group, reporter
    finally:
        parallel.leave()


@contextlib.contextmanager
def progress_reporter() -> Iterator[Reporter]:
    """Report lines on stderr and, on a terminal, a progress bar with loss, learning rate and remaining time."""
    if not sys.stderr.isatty():
        yield _LineReporter()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True, highlight=False, markup=False)
    with Progress(*columns, console=console, transient=True, refresh_per_second=2) as progress:
        yield _BarReporter(progress)


class _LineReporter:
    """Reports lines only."""

    def say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # if the reader of stderr has exited, the training continues
            say(text)

    def begin(self, done: int, total: int) -> None:
        pass

    def advance(self) -> None:
        pass

    def show(self, loss: float, rate: float) -> None:
        pass


class _BarReporter:
    """Reports lines above a progress bar, which appears at the first iteration."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # if the terminal was closed (SIGHUP), the training continues
            self._progress.console.print(text, soft_wrap=True)

    def begin(self, done: int, total: int) -> None:
        self._task = self._progress.add_task("", total=total, completed=done, loss="")

    def advance(self) -> None:
        if self._task is not None:
            self._progress.advance(self._task)

    def show(self, loss: float, rate: float) -> None:
        if self._task is not None:
            self._progress.update(self._task, loss=f"loss {loss:.4g}, rate {rate:.3g}")
