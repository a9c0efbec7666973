"""Work on the results of a generator in other processes, in order, with few of them waiting."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from camrt.errors import CamrtError

_T = TypeVar("_T")
_R = TypeVar("_R")
_WAITING = 3  # items a process


def mapped(function: Callable[[_T], _R], items: Iterable[_T], workers: int) -> Iterator[_R]:
    """Calls a function with each item, in other processes.

    The items are asked for in the caller's thread. The processes end with this one, however it ends.

    Args:
        function: Can be pickled.
        items: Likewise. At most three a process are waiting or under way.
        workers: How many processes; 0 for none: the caller's.

    Returns:
        An iterator of the results, in the order of the items.

    Raises:
        CamrtError: A process was killed.
        Exception: What the function raises.
    """
    if not workers:
        yield from map(function, items)
        return
    # Not forked: ONNX Runtime's threads would not be there, and their locks would.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)
    waiting: deque[Future[_R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            while waiting and (waiting[0].done() or len(waiting) > _WAITING * workers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise CamrtError(
            "a process that finds boxes was killed; there may not be enough memory. The same command goes on; with "
            "fewer --workers it needs less"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    """What a process does first."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C, and ends it
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Where the parent was killed, nobody else would end this process: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
