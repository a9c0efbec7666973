"""Limits on what a test may take."""

from __future__ import annotations

import contextlib
import signal
import tracemalloc
from collections.abc import Iterator
from types import FrameType


class TookTooLong(BaseException):
    """Past the limit. No Exception, so that nothing under test swallows it."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Stop the block, and with it the test, after some seconds of computing, or ten times as many of waiting."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TookTooLong(f"took more than {seconds} s")

    # A busy machine does not count; a read that never returns does.
    timers = ((signal.ITIMER_PROF, signal.SIGPROF, seconds), (signal.ITIMER_REAL, signal.SIGALRM, 10 * seconds))
    before = [signal.signal(number, stop) for _, number, _ in timers]
    for timer, _, limit in timers:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for (timer, number, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


@contextlib.contextmanager
def memory_below(limit: int) -> Iterator[None]:
    """Assert that the block never holds more than ``limit`` bytes of its own (Python's and NumPy's, not C++'s)."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= limit, f"held {peak:,} bytes, expected at most {limit:,}"
