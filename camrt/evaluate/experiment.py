"""Run a protocol over the images of a dataset, with one record per image, so that a killed run can be resumed.

A protocol says what is computed from an image, and in which journals the results go. The experiment does the rest: it
finds the images that are left, records the results and the failures, and moves work to other processes. The network
runs in the caller's process; what comes after it, such as finding boxes, can run elsewhere.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from camrt.errors import CamrtError
from camrt.evaluate.journal import Journal, Shard
from camrt.images import as_stored

if TYPE_CHECKING:
    from camrt.explainer import Explainer
    from camrt.explanation import Explanation

Progress = Callable[[int], AbstractContextManager[Callable[[int], Any]]]
Found = dict[str, dict[str, Any]]  # key of a journal -> the result for an image

_T = TypeVar("_T")
_R = TypeVar("_R")
_WAITING = 3  # items per process


@dataclass(frozen=True)
class Work:
    """What is done in a run.

    Attributes:
        tasks: The name of each image and what is measured of it, computed in the caller's process as requested.
        measure: Called with each task, possibly in another process (it must be picklable). It returns the result for
            each journal. If it raises a CamrtError, this is the failure of the image, and the run goes on.
        workers: The default number of worker processes; 0 for none.
    """

    tasks: Iterator[tuple[str, Any]]
    measure: Callable[[Any], Found]
    workers: int


@dataclass(frozen=True)
class Pending:
    """The images that are left in a run.

    Attributes:
        files: The image files by name, in order.
        journals: Key of a journal -> the images that have no result in it.
        record_failure: Called with the name of an image and the reason why it has no result.
        ran: Image -> the provider and the precision that explained it; `explained` fills it.
    """

    files: Mapping[str, Path]
    journals: Mapping[str, set[str]]
    record_failure: Callable[[str, str], None]
    ran: dict[str, str] = field(default_factory=dict)

    def journals_of(self, image: str) -> tuple[str, ...]:
        """Return the keys of the journals in which an image has no result."""
        return tuple(key for key, images in self.journals.items() if image in images)

    def explained(
        self, explainer: Explainer, targets: Mapping[str, int] | None = None, batch: int | None = None
    ) -> Iterator[tuple[str, Explanation]]:
        """Explain the images. Those that cannot be read are recorded as failures.

        Args:
            explainer: The explainer.
            targets: The class of each image, for an explainer that takes one.
            batch: The number of images per run of the session.

        Yields:
            The name of each image, and its explanation.
        """
        names = {str(path): name for name, path in self.files.items()}
        explained = explainer.map(
            map(as_stored, self.files.values()),
            targets=None if targets is None else (targets[name] for name in self.files),
            batch=batch,
            on_error=lambda source, error: self.record_failure(names[source], error.message),
        )
        for found in explained:
            self.ran[names[found.source]] = f"{found.provider} {found.precision}"
            yield names[found.source], found


class EvaluationProtocol(Protocol):
    """What is computed from each image."""

    @property
    def journals(self) -> Mapping[str, tuple[str, Mapping[str, Any]]]:
        """Key -> the name of the journal, and the settings that its results depend on."""
        ...

    def start(self, pending: Pending) -> Work:
        """Load the models. Called only if images are left."""
        ...


def run(
    protocol: EvaluationProtocol,
    files: Mapping[str, Path | None],
    fingerprints: Mapping[str, Any],
    folder: str | Path,
    *,
    shard: Shard | None = None,
    workers: int | None = None,
    progress: Progress = lambda total: nullcontext(lambda count: None),
) -> int:
    """Compute what a protocol has no result for, in the images of a shard.

    Args:
        protocol: The protocol.
        files: The images of all shards in order, by name; None for an image without a file.
        fingerprints: Name -> what must not have changed for an earlier result to count.
        folder: The folder of the journals.
        shard: The images of this process; by default all.
        workers: The number of worker processes besides this one; by default, what suits the protocol.
        progress: Called with the number of images that are left. It returns a context manager, whose value is called
            with the number of images that were finished since the last call.

    Returns:
        The number of images that were left.

    Raises:
        CamrtError: A journal has other settings, another process writes it, or it cannot be written; or an error of
            the protocol.
        ConversionError: There is no model of that name, or its weights are not available.
    """
    with ExitStack() as stack:
        journals = {
            key: stack.enter_context(Journal(folder, name, settings, shard))
            for key, (name, settings) in protocol.journals.items()
        }
        waiting = {key: set(journal.waiting(fingerprints)) for key, journal in journals.items()}
        left = [name for name in files if any(name in images for images in waiting.values())]
        if not left:
            return 0
        advance = stack.enter_context(progress(len(left)))

        def record_failure(name: str, reason: str) -> None:
            for key, journal in journals.items():
                if name in waiting[key] and journal.records.failures.get(name) != reason:  # not recorded before
                    journal.record_failure(name, reason, fingerprints[name])
            advance(1)

        there: dict[str, Path] = {}
        for name in left:
            if (path := files[name]) is None:
                record_failure(name, "there is no such image")
            else:
                there[name] = path
        if there:
            pending = Pending(there, waiting, record_failure)
            work = protocol.start(pending)
            measure, count = _Attempt(work.measure), work.workers if workers is None else workers
            for name, found, reason in mapped(measure, work.tasks, count):
                if reason is not None:
                    record_failure(name, reason)
                    continue
                ran = pending.ran.pop(name, "")
                for key, result in found.items():
                    journals[key].add(name, result, fingerprints[name], ran)
                advance(1)
        return len(left)


@dataclass(frozen=True)
class _Attempt:
    """Measures a task. Called in another process, from which exceptions would end the run."""

    measure: Callable[[Any], Found]

    def __call__(self, task: tuple[str, Any]) -> tuple[str, Found, str | None]:
        """Return the name of the image and its results, or the reason why there are none."""
        name, content = task
        try:
            return name, self.measure(content), None
        except CamrtError as error:
            return name, {}, str(error)


# --------------------------------------------------------------------------------------------------- worker processes


def mapped(function: Callable[[_T], _R], items: Iterable[_T], workers: int) -> Iterator[_R]:
    """Call a function with each item in worker processes.

    Items are requested in the caller's thread. The processes end with this one, however it ends.

    Args:
        function: A picklable function.
        items: Picklable items. At most three per process are waiting or in progress.
        workers: The number of processes; 0 calls the function in this process.

    Yields:
        The results, in the order of the items.

    Raises:
        CamrtError: A process was killed.
        Exception: Any exception of the function.
    """
    if not workers:
        yield from map(function, items)
        return
    # Not forked: a fork has the locks of ONNX Runtime's threads, but not the threads.
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
    """Set up a worker process."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends it
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process with its parent. If the parent is killed, it would otherwise wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
