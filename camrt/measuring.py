"""Measure how fast an explainer graph runs in each way that this machine has, and how alike the answers are.

Each way runs in a process of its own: its memory is its own, and one that is killed is a row that says so.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from camrt.errors import CamrtError
from camrt.session import Session
from camrt.tuning import PROVIDERS, Contender, agreement, missing

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import onnx

REFERENCE = Contender("cpu", "fp32")
_LEAST_RUNS = 3
_LIMIT = 600  # seconds, of a row


@dataclass(frozen=True)
class Row:
    """What was measured of a provider, a precision and a batch.

    Attributes:
        provider: As ``--provider`` takes it.
        precision: As ``--precision`` takes it.
        batch: The number of images at once.
        reason: Why nothing was measured; "" where something was.
        milliseconds: An image, the median of all runs.
        load_seconds: From the model to a session.
        peak_bytes: The process's largest resident memory; None where the system does not say it.
        correlation: As `camrt.tuning.Agreement` has it, beside float32 on the CPU; so have the two below.
        classes: The share of explained classes that are the same.
        is_enough: Whether it may stand for float32.
    """

    provider: str
    precision: str
    batch: int
    reason: str = ""
    milliseconds: float | None = None
    load_seconds: float | None = None
    peak_bytes: int | None = None
    correlation: float | None = None
    classes: float | None = None
    is_enough: bool = False

    @property
    def images_per_second(self) -> float | None:
        """Return the rate."""
        return None if self.milliseconds is None else 1000 / self.milliseconds

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {**asdict(self), "images_per_second": self.images_per_second}


@dataclass(frozen=True)
class _Task:
    """What a process measures.

    Attributes:
        model: The path of the explainer graph.
        feeds: The path of its inputs, .npz.
        expected: The path of the reference's answers, .npz. The reference writes it.
    """

    contender: Contender
    batch: int
    model: Path
    feeds: Path
    expected: Path
    seconds: float
    threads: int | None


def contenders() -> list[Contender]:
    """List every provider and precision, the reference first; of a provider that is not there its default alone."""
    found = [Contender(provider, precision) for provider in PROVIDERS for precision in PROVIDERS[provider]]
    first = {each.provider: each for each in reversed(found)}
    return [each for each in found if each == first[each.provider] or not missing(first[each.provider])]


def measured(
    graph: onnx.ModelProto | Path,
    feeds: Mapping[str, NDArray[Any]],
    batches: Sequence[int],
    *,
    seconds: float = 2.0,
    threads: int | None = None,
) -> Iterator[Row]:
    """Measure an explainer graph on this machine.

    Args:
        graph: The graph, or its path.
        feeds: Its inputs for some images, as `camrt.session.Session.run` takes them: the answers on them are compared.
            Batches are made of them, repeated where there are fewer.
        batches: The numbers of images at once.
        seconds: How long each row is measured, at least; three runs at least.
        threads: How many threads compute on the CPU.

    Yields:
        A row for each provider, precision and batch; for what cannot run here one with the reason.

    Raises:
        CamrtError: The graph cannot be written to the temporary folder, or float32 on the CPU fails.
    """
    from converters.model import save

    with tempfile.TemporaryDirectory(prefix="camrt-benchmark-") as scratch:
        folder = Path(scratch)
        model = graph if isinstance(graph, Path) else folder / "model.onnx"
        if not isinstance(graph, Path):
            save(graph, model)
            del graph
        np.savez(folder / "feeds.npz", **dict(feeds))  # type: ignore[arg-type]
        for contender in contenders():
            if reason := missing(contender):
                yield Row(contender.provider, contender.precision, batches[0], reason)
                continue
            for batch in batches:
                task = _Task(
                    contender, batch, model, folder / "feeds.npz", folder / "expected.npz", seconds, threads
                )  # fmt: skip
                row = _in_process(task)
                yield row
                if row.reason and contender == REFERENCE:
                    raise CamrtError(f"float32 on the CPU fails, with which all is compared: {row.reason}")


def _in_process(task: _Task) -> Row:
    """Measure in a new process: not a fork, which would share memory with this one."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(task, theirs), daemon=True)
    process.start()
    theirs.close()
    name = task.contender.provider, task.contender.precision, task.batch
    try:
        if not ours.poll(_LIMIT + task.seconds):
            return Row(*name, f"it took more than {_LIMIT} s")
        found: Row = ours.recv()
        return found
    except EOFError:
        process.join()
        return Row(*name, f"the process ended with exit code {process.exitcode}: there may not be enough memory")
    finally:
        process.kill()
        process.join()
        ours.close()


def _report(task: _Task, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends this process
    logging.getLogger("camrt").setLevel(logging.WARNING)
    try:
        row = _measured(task)
    except Exception as error:  # whatever it is: the next contender has its turn
        row = Row(task.contender.provider, task.contender.precision, task.batch, str(error) or repr(error))
    pipe.send(row)
    pipe.close()


def _measured(task: _Task) -> Row:
    with np.load(task.feeds) as stored:
        feeds = {name: stored[name] for name in stored.files}
    contender, count = task.contender, len(next(iter(feeds.values())))
    began = time.perf_counter()
    session = Session(
        task.model, providers=contender.provider, precision=contender.precision, threads=task.threads
    )  # fmt: skip
    load_seconds = time.perf_counter() - began
    parts = [session.run(_taken(feeds, range(n, min(n + task.batch, count)))) for n in range(0, count, task.batch)]
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    del parts
    if contender == REFERENCE and not task.expected.exists():
        np.savez(task.expected, **found)  # type: ignore[arg-type]
    with np.load(task.expected) as stored:
        agrees = agreement(found, {name: stored[name] for name in stored.files})
    del found
    each = _timed(session, _taken(feeds, range(task.batch)), task.seconds)
    return Row(
        contender.provider,
        contender.precision,
        task.batch,
        milliseconds=1000 * statistics.median(each) / task.batch,
        load_seconds=load_seconds,
        peak_bytes=_peak_bytes(),
        correlation=agrees.correlation,
        classes=agrees.classes,
        is_enough=agrees.is_enough,
    )


def _taken(feeds: Mapping[str, NDArray[Any]], places: range) -> dict[str, NDArray[Any]]:
    """The images at some places; behind the last one they begin again."""
    return {name: array[np.arange(places.start, places.stop) % len(array)] for name, array in feeds.items()}


def _timed(session: Session, feeds: Mapping[str, NDArray[Any]], seconds: float) -> list[float]:
    """The seconds of each run; the first, on a shape that may be new, does not count."""
    session.run(feeds)
    taken: list[float] = []
    while len(taken) < _LEAST_RUNS or sum(taken) < seconds:
        began = time.perf_counter()
        session.run(feeds)
        taken.append(time.perf_counter() - began)
    return taken


def _peak_bytes() -> int | None:
    """The largest resident memory of this process.

    Linux's own record of it: getrusage counts what the parent had when this process was started.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
