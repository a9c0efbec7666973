"""Options, progress reports and results of training. PyTorch is not imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    """

    iteration: int
    weights: Path | None
    loss: float | None
    tests: tuple[Mapping[str, float], ...]
    log: Path
    curves: Path | None
    seconds: float
    signal: int = 0


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
