"""`camrt train`: a network as its solver file says."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from camrt.commands.options import STATUS, Json, check_choice
from camrt.commands.output import reporting
from camrt.results import json_line
from converters.terminal import say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from camrt.train.options import Precision, Reporter, TrainingResult

TYPES = ("bf16", "fp16")

EXAMPLES = f"""Examples:

  camrt train solver.prototxt

  camrt train solver.prototxt --data folder:photos/train --test-data folder:photos/val --weights googlenet.caffemodel

  camrt train solver.prototxt --data clutter:drawn --test-data clutter:drawn,seed=1 --out runs/lenet --resume

  torchrun --nproc-per-node 4 --no-python camrt train solver.prototxt --data tiny:tiny-imagenet-200

DATA is folder:DIR (a folder for each class), list:FILE[,root=DIR] (Caffe's: path label), tiny:DIR (Tiny ImageNet's
layout), mnist:PATH[,first=N,count=N] (idx files) or clutter:DIGITS[,seed=N,...] (cluttered digits, drawn or MNIST's).

Written under the prefix: _iter_N.caffemodel and .camrtstate (snapshots), _log.jsonl, _log.csv, _curves.png and
_labels.txt.
Ctrl-C ends the training with a snapshot; a second Ctrl-C ends it without one. SIGHUP takes a snapshot and goes on.
After a kill at any moment, --resume goes on from the last snapshot and reaches the same weights.

{STATUS[:-1]}; 130 or 143 after Ctrl-C or SIGTERM.
"""


def train(
    solver: Annotated[Path, typer.Argument(metavar="SOLVER", help="A solver.prototxt; it names the network.")],
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Images to train on; by default those of an ImageData layer.")
    ] = None,
    test_data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Images to test on; by default --data's own, or the layer's.")
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option(metavar="FILE,...", help="Begin with the weights of these .caffemodel files.")
    ] = None,
    two_stage: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="For N iterations train only the layers that --weights has not."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="PREFIX", help="Where files go; by default the solver's snapshot_prefix.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last snapshot; begin, where there is none.")
    ] = False,
    snapshot: Annotated[Path | None, typer.Option(metavar="FILE.camrtstate", help="Go on from this snapshot.")] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew; the snapshots of this prefix are removed.")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="In place of the solver's random_seed.")] = None,
    resize: Annotated[
        tuple[int, int] | None, typer.Option(metavar="H W", help="Resize images first, before the crop.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Images in a batch; by default what the data layers say.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that load images; 0 for none.")] = None,
    device: Annotated[
        str | None, typer.Option(metavar="cuda|cpu|...", help="By default a GPU where there is one.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the CPU.")] = None,
    amp: Annotated[str | None, typer.Option(metavar="|".join(TYPES), help="Mixed precision.")] = None,
    deterministic: Annotated[
        bool, typer.Option(help="On a GPU, use only what gives the same result each time. Without, it may be faster.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Train a network as its solver file says."""
    if amp is not None:
        check_choice(amp, TYPES, "--amp")
    if resize is not None and min(resize) < 1:
        raise typer.BadParameter(f"found {resize[0]} {resize[1]}, expected sizes from 1 on", param_hint="--resize")
    with reporting(interrupted="what was not in a snapshot is lost; --resume goes on from the last one"):
        from camrt.train import require_torch

        require_torch()
        from camrt.train import parallel
        from camrt.train.options import TrainingOptions
        from camrt.train.run import train as run

        options = TrainingOptions(
            solver=solver,
            data=data,
            test_data=test_data,
            weights=tuple(Path(each) for one in weights or () for each in one.split(",") if each),
            two_stage=two_stage,
            out=out,
            resume=resume,
            snapshot=snapshot,
            restart=restart,
            seed=seed,
            resize=resize,
            batch=batch,
            workers=workers,
            device=device,
            threads=threads,
            amp=cast("Precision | None", amp),
            deterministic=deterministic,
        )
        try:
            group = parallel.join()
            with _telling() as reporter:
                outcome = run(options, group=group, reporter=reporter)
        finally:
            parallel.leave()
        if group.is_first:
            _conclude(outcome, as_json)
        if outcome.signal:
            raise typer.Exit(128 + outcome.signal)


def _conclude(outcome: TrainingResult, as_json: bool) -> None:
    if outcome.signal:
        name = signal.Signals(outcome.signal).name
        say(f"stopped by {name} after iteration {outcome.iteration}; --resume goes on from there")
    if as_json:
        facts = {key: str(value) if isinstance(value, Path) else value for key, value in _dict(outcome).items()}
        print(json_line(facts))
        return
    for value in (outcome.weights, outcome.log, outcome.curves):
        if value is not None:
            print(value)


def _dict(outcome: TrainingResult) -> dict[str, Any]:
    return {each.name: getattr(outcome, each.name) for each in dataclasses.fields(outcome)}


@contextlib.contextmanager
def _telling() -> Iterator[Reporter]:
    """Lines on stderr; and a bar below them with loss, rate and the time that is left, where that is a terminal."""
    if not sys.stderr.isatty():
        yield _Lines()
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
        yield _Bar(progress)


class _Lines:
    def say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # who reads may leave; the training goes on
            say(text)

    def begin(self, done: int, total: int) -> None:
        pass

    def advance(self) -> None:
        pass

    def show(self, loss: float, rate: float) -> None:
        pass


class _Bar:
    """Lines above a bar, which is there from the first iteration on."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may be closed (SIGHUP); the training goes on
            self._progress.console.print(text, soft_wrap=True)

    def begin(self, done: int, total: int) -> None:
        self._task = self._progress.add_task("", total=total, completed=done, loss="")

    def advance(self) -> None:
        if self._task is not None:
            self._progress.advance(self._task)

    def show(self, loss: float, rate: float) -> None:
        if self._task is not None:
            self._progress.update(self._task, loss=f"loss {loss:.4g}, rate {rate:.3g}")
