"""What is asked of a training, what it tells, and what becomes of it. Without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from camrt.errors import CamrtError

Precision = Literal["bf16", "fp16"]


@dataclass(frozen=True)
class TrainingOptions:
    """What is asked of a training, beside its solver file.

    Attributes:
        solver: The solver file.
        data: The images to train on, as `camrt.train.data.open_source` takes them; None for what the data layer names.
        test_data: The images to test on, likewise; None for the part for testing that ``data`` has, or else what the
            data layer names.
        weights: `.caffemodel` files to begin from; if empty, those of the solver file.
        two_stage: For how many iterations only the layers that ``weights`` has not are trained.
        out: The prefix of all files that are written; None for the solver's snapshot_prefix.
        resume: Go on from the last snapshot, if there is one.
        snapshot: Go on from this one.
        restart: Begin anew, and remove the snapshots that are there.
        seed: Of all that is random; None for the solver's random_seed, or any.
        resize: Height and width that images get first.
        batch: Images in a batch of each process; None for the data layers' own numbers.
        workers: Processes that load images; None for as many as suit. What is computed does not depend on it.
        device: As PyTorch calls it; None for a GPU where there is one.
        threads: Of the CPU; None for as many as PyTorch takes.
        amp: The type of mixed precision; None for float32.
        deterministic: Whether a GPU may use only what gives the same result each time.
    """

    solver: Path
    data: str | None = None
    test_data: str | None = None
    weights: tuple[Path, ...] = ()
    two_stage: int | None = None
    out: Path | None = None
    resume: bool = False
    snapshot: Path | None = None
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
            raise CamrtError("found --restart with --resume or --snapshot, expected one: begin anew, or go on")


@dataclass(frozen=True)
class TrainingResult:
    """What became of a training.

    Attributes:
        iteration: How many iterations the weights have seen.
        weights: The last snapshot's; None where there is none.
        loss: The last smoothed loss.
        tests: For each test net what it gave last: output -> mean.
        log: The log, as lines of JSON.
        curves: The picture of the curves; None without matplotlib.
        seconds: How long it took, over all runs.
        signal: What ended it early; 0 where nothing did.
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
    """Who is told how a training goes."""

    def say(self, text: str) -> None:
        """A line."""

    def begin(self, done: int, total: int) -> None:
        """The iterations begin."""

    def advance(self) -> None:
        """An iteration is done."""

    def show(self, loss: float, rate: float) -> None:
        """The smoothed loss and the learning rate."""


class Silent:
    """Tells nobody."""

    def say(self, text: str) -> None:
        """See `Reporter`."""

    def begin(self, done: int, total: int) -> None:
        """See `Reporter`."""

    def advance(self) -> None:
        """See `Reporter`."""

    def show(self, loss: float, rate: float) -> None:
        """See `Reporter`."""
