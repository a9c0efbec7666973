"""Options, progress reports and results of training. PyTorch is not imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from camrt.errors import CamrtError

Precision = Literal["bf16", "fp16"]


@dataclass(frozen=True)
class TrainingOptions:
    """The options of a training run, in addition to its solver file.

    Attributes:
        solver: The solver file.
        data: The training images, as a source for `camrt.train.data.open_source`. By default, the data layers of the
            network.
        test_data: The test images, as a source. By default, the test part of ``data`` if it has one, else the data
            layers of the network.
        weights: Files with the initial weights, for `camrt.train.load_weights`. By default, those of the solver file.
        two_stage: The number of iterations in which only the layers without weights in ``weights`` are trained.
        out: The prefix of all output files. By default, the solver's snapshot_prefix.
        resume: Whether to resume from the last snapshot, if there is one.
        snapshot: A snapshot to resume from: a `.camrtstate`, or a `.solverstate` of Caffe.
        keep: Whether only the best and the last snapshot are kept. The best one is that of the best test.
        patience: The number of tests without improvement after which the training stops; None for no limit.
        metric: The output of the first test net that decides which test is the best: the smallest value if its name
            contains ``loss`` or ``error``, else the largest. By default, the first output with ``accuracy`` in its
            name, or else the first one.
        tensorboard: Whether losses and test results are also written for TensorBoard.
        dry_run: Whether only one iteration and one batch of each test net run, and nothing but a picture of the data is
            written.
        solverstate: Whether each snapshot has a `.solverstate` too, from which Caffe resumes.
        restart: Whether to remove existing snapshots and start at iteration 0.
        seed: The seed of all random numbers. By default, the solver's random_seed, or else a random seed.
        resize: Height and width in pixels to which images are resized first.
        batch: The batch size of each process. By default, that of the data layers.
        workers: The number of processes that load images. The results do not depend on it. By default, it is chosen
            from the data and the number of CPU cores.
        device: The device, by PyTorch's name. By default, a GPU if one is available.
        threads: The number of CPU threads. By default, PyTorch's.
        amp: The data type of mixed precision. By default, float32 everywhere.
        deterministic: Whether a GPU uses deterministic algorithms only.

    Raises:
        CamrtError: ``restart`` is combined with ``resume`` or ``snapshot``.
    """

    solver: Path
    data: str | None = None
    test_data: str | None = None
    weights: tuple[Path, ...] = ()
    two_stage: int | None = None
    out: Path | None = None
    resume: bool = False
    snapshot: Path | None = None
    solverstate: bool = False
    keep: bool = False
    patience: int | None = None
    metric: str | None = None
    tensorboard: bool = False
    dry_run: bool = False
    restart: bool = False
    seed: int | None = None
    resize: tuple[int, int] | None = None
    batch: int | None = None
    workers: int | None = None
    device: str | None = None
    threads: int | None = None
    amp: Precision | None = None
    deterministic: bool = True

    def __post_init__(self) -> None:
        if self.restart and (self.resume or self.snapshot):
            raise CamrtError("found --restart together with --resume or --snapshot, expected only one of them")


@dataclass(frozen=True)
class Best:
    """The best test of a run.

    Attributes:
        metric: The output that decides.
        iteration: The number of iterations before the test.
        value: The value of the output.
        tested: The iteration of the last test.
        stale: The number of tests since the best one.
    """

    metric: str
    iteration: int
    value: float
    tested: int
    stale: int = 0

    def after(self, iteration: int, value: float) -> Best:
        """Return the best test after another one. A test that a resumed run repeats does not count twice."""
        if iteration == self.tested:
            return self
        if self.is_improved_by(value):
            return replace(self, iteration=iteration, value=value, tested=iteration, stale=0)
        return replace(self, tested=iteration, stale=self.stale + 1)

    def is_improved_by(self, value: float) -> bool:
        """Return whether a value is better. NaN is never better."""
        falls = any(word in self.metric.lower() for word in ("loss", "error"))
        return value < self.value if falls else value > self.value


def metric_of(outputs: Mapping[str, float], wanted: str | None) -> str:
    """Return the output of a test that decides which test is the best.

    Raises:
        CamrtError: There is no output of the wanted name.
    """
    if wanted is not None and wanted not in outputs:
        raise CamrtError(
            f"found no output {wanted!r} of the test net, expected one of {', '.join(outputs)}: see --metric"
        )
    return wanted or next((name for name in outputs if "accuracy" in name.lower()), next(iter(outputs)))


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training run.

    Attributes:
        iteration: The number of iterations done.
        weights: The weights file of the last snapshot; None without a snapshot.
        loss: The last smoothed loss.
        tests: The last results of each test net: output -> mean.
        log: The log file, in JSON Lines.
        curves: The plot of the training curves; None without matplotlib.
        seconds: The training time in seconds, over all runs.
        signal: The number of the signal that stopped the training; 0 if it ran to the end.
        best: The best test so far; None without tests.
        stopped_early: Whether the training stopped because the tests did not improve any more.
    """

    iteration: int
    weights: Path | None
    loss: float | None
    tests: tuple[Mapping[str, float], ...]
    log: Path
    curves: Path | None
    seconds: float
    signal: int = 0
    best: Best | None = None
    stopped_early: bool = False


def duration(seconds: float) -> str:
    """Return a duration as text: 40 s, 12 min, 3.5 h, 2.1 days."""
    for size, unit in ((86400, "days"), (3600, "h")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


class Reporter(Protocol):
    """Receives the progress of a training run."""

    def say(self, text: str) -> None:
        """Report a line of text."""

    def begin(self, done: int, total: int) -> None:
        """Report the start of training, with the number of iterations already done and in total."""

    def advance(self) -> None:
        """Report that an iteration is done."""

    def show(self, loss: float, rate: float) -> None:
        """Report the smoothed loss and the learning rate."""


class SilentReporter:
    """A reporter that discards everything."""

    def say(self, text: str) -> None:
        """See `Reporter`."""

    def begin(self, done: int, total: int) -> None:
        """See `Reporter`."""

    def advance(self) -> None:
        """See `Reporter`."""

    def show(self, loss: float, rate: float) -> None:
        """See `Reporter`."""
