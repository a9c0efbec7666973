"""Dynamic batching: requests that arrive together are computed together.

A `Batcher` holds a bounded queue in front of one thread that computes, or a few. While they compute, requests gather;
the next batch takes as many of them as fit. It waits for more only while requests are known to be on their way, and no
longer than the largest delay. So a single client never waits, and many clients get full batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from camrt.errors import CamrtError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Overloaded(Exception):
    """The queue is full, or the server stops: try again later."""


@dataclass(frozen=True)
class BatchStatistics:
    """What became of a batch.

    Attributes:
        rows: How many images it had.
        seconds: How long it was computed.
        waited: How long each of its requests had waited, in seconds.
    """

    rows: int
    seconds: float
    waited: tuple[float, ...]


@dataclass(eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    rows: int
    result: asyncio.Future[Result]
    since: float = field(default_factory=time.monotonic)


class Batcher(Generic[Item, Result]):
    """Collect requests into batches, and compute these in threads, each one batch after the other.

    All methods are called in the thread of the event loop in which it was started.

    Args:
        compute: Computes a batch, in a thread of the batcher's. For each item its result, or the CamrtError that it
            failed with. If the call itself raises, the items are computed one by one.
        max_batch: The most rows of a batch; at least 1.
        max_delay: How long a batch waits for requests that are on their way, in seconds.
        max_queue: The most rows that wait.
        threads: How many batches are computed at once.
        observe: Called with the statistics of each batch.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Item]], Sequence[Result | CamrtError]],
        *,
        max_batch: int,
        max_delay: float,
        max_queue: int,
        threads: int = 1,
        observe: Callable[[BatchStatistics], object] = lambda _: None,
    ) -> None:
        self._compute = compute
        self.max_batch, self.max_delay, self.max_queue = max_batch, max_delay, max_queue
        self._observe = observe
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._rows = 0  # of those that wait
        self._lock = threading.Lock()  # of these two: the threads that compute take from them
        self._coming = 0
        self._changed = asyncio.Event()
        self._is_closed = False
        self._worker: asyncio.Task[None] | None = None
        self._threads = ThreadPoolExecutor(threads, "camrt-compute")
        self._free = asyncio.Semaphore(threads)

    @property
    def depth(self) -> int:
        """The number of rows that wait."""
        return self._rows

    def start(self) -> None:
        """Begin to compute."""
        self._worker = asyncio.get_running_loop().create_task(self._work())

    async def close(self) -> None:
        """Compute what waits, and end."""
        self._is_closed = True
        self._changed.set()
        if self._worker is not None:
            await self._worker
        self._threads.shutdown(wait=True)

    @contextlib.contextmanager
    def coming(self) -> Iterator[Callable[[], None]]:
        """Announce a request whose item is not there yet: it is uploaded, or decoded.

        Yields:
            What says that it will not come any more, or has come; the end of the block says it too.
        """
        self._coming += 1
        is_counted = True

        def arrived() -> None:
            nonlocal is_counted
            if is_counted:
                is_counted = False
                self._coming -= 1
                self._changed.set()

        try:
            yield arrived
        finally:
            arrived()

    def check_room(self, rows: int = 1) -> None:
        """Refuse what would have to wait behind a full queue.

        Raises:
            Overloaded: It is full, or the batcher is closed.
        """
        if self._is_closed:
            raise Overloaded("the server is stopping")
        if self._rows + rows > max(self.max_queue, rows):
            raise Overloaded(
                f"found a full queue: {self._rows} of at most {self.max_queue} images wait. Try again later"
            )

    async def submit(self, item: Item, rows: int = 1) -> Result:
        """Wait for the result of an item. If the caller is cancelled, an item that still waits is not computed.

        Args:
            item: What `compute` gets.
            rows: How many images it holds, 1 to ``max_batch``.

        Raises:
            Overloaded: The queue is full, or the batcher is closed.
            CamrtError: The item cannot be computed.
        """
        self.check_room(rows)
        one: _Waiting[Item, Result] = _Waiting(item, rows, asyncio.get_running_loop().create_future())
        with self._lock:
            self._waiting.append(one)
            self._rows += rows
        self._changed.set()
        try:
            return await one.result
        except asyncio.CancelledError:
            with self._lock:
                if one in self._waiting:
                    self._waiting.remove(one)
                    self._rows -= rows
            raise

    # ------------------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as under_way:
            await self._free.acquire()
            while await self._gathered():
                under_way.create_task(self._compute_in_thread(self._next()))
                await self._free.acquire()

    async def _compute_in_thread(self, batch: list[_Waiting[Item, Result]]) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._threads, self._compute_from, batch, loop)
        finally:
            self._free.release()

    def _compute_from(self, batch: list[_Waiting[Item, Result]], loop: asyncio.AbstractEventLoop) -> None:
        """Compute a batch, and go on while a full one waits: without the event loop, which may be late."""
        while batch:
            began = time.monotonic()
            outcomes = self._computed([one.item for one in batch])
            loop.call_soon_threadsafe(self._deliver, batch, outcomes, began, time.monotonic() - began)
            with self._lock:
                is_full = self._rows >= self.max_batch
            batch = self._next() if is_full else []

    def _deliver(
        self,
        batch: Sequence[_Waiting[Item, Result]],
        outcomes: Sequence[Result | Exception],
        began: float,
        seconds: float,
    ) -> None:
        """Hand results to those who wait for them."""
        for one, outcome in zip(batch, outcomes, strict=True):
            if one.result.done():  # its client is gone
                continue
            if isinstance(outcome, Exception):
                one.result.set_exception(outcome)
            else:
                one.result.set_result(outcome)
        rows = sum(one.rows for one in batch)
        self._observe(BatchStatistics(rows, seconds, tuple(began - one.since for one in batch)))

    async def _gathered(self) -> bool:
        """Wait until a batch is to be computed; whether there is one."""
        while True:
            if not self._waiting:
                if self._is_closed:
                    return False
                await self._change(None)
                continue
            is_enough = self._rows >= self.max_batch or not self._coming or self._is_closed
            left = self._waiting[0].since + self.max_delay - time.monotonic()
            if is_enough or left <= 0:
                return True
            await self._change(left)

    async def _change(self, seconds: float | None) -> None:
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)

    def _next(self) -> list[_Waiting[Item, Result]]:
        """Take as many from the queue as fit into a batch, in their order."""
        batch: list[_Waiting[Item, Result]] = []
        rows = 0
        with self._lock:
            while self._waiting and (not batch or rows + self._waiting[0].rows <= self.max_batch):
                batch.append(self._waiting.popleft())
                rows += batch[-1].rows
            self._rows -= rows
        return batch

    def _computed(self, items: Sequence[Item]) -> Sequence[Result | Exception]:
        """Compute a batch; where that fails, its items one by one, so that a bad one does not hurt the others."""
        try:
            results = self._compute(items)
            if len(results) == len(items):
                return results
            raise RuntimeError(f"found {len(results)} results, expected {len(items)}")
        except Exception as error:  # whatever it is, it is about this batch
            if len(items) == 1:
                return [error]
        return [result for item in items for result in self._computed([item])]
