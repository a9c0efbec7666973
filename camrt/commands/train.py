"""`camrt train`: train a Caffe network."""

from __future__ import annotations

import dataclasses
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camrt.commands.options import STATUS, Json, check_choice, expanded
from camrt.commands.output import reporting
from camrt.commands.progress import joined
from camrt.results import json_line
from converters.terminal import say

if TYPE_CHECKING:
    from camrt.train.options import TrainingResult

TYPES = ("bf16", "fp16")

EXAMPLES = f"""Examples:

  camrt train solver.prototxt

  camrt train solver.prototxt --data folder:photos/train --test-data folder:photos/val --weights googlenet.caffemodel

  camrt train solver.prototxt --data clutter:drawn --test-data clutter:drawn,seed=1 --out runs/lenet --resume

  camrt train solver.prototxt --keep --patience 5 --tensorboard

  camrt train solver.prototxt --dry-run

  torchrun --nproc-per-node 4 --no-python camrt train solver.prototxt --data tiny:tiny-imagenet-200

DATA is folder:DIR (a folder for each class), list:FILE[,root=DIR] (lines "path label", as in Caffe), tiny:DIR (the
layout of Tiny ImageNet), mnist:PATH[,first=N,count=N] (idx files) or clutter:DIGITS[,seed=N,...] (cluttered digits).

Without --data, the data layers of the network are used: Data (LMDB needs the package lmdb, LevelDB needs plyvel),
HDF5Data (needs h5py), ImageData, WindowData and DummyData. Memory and Python layers need --data.

Output files share the prefix: _iter_N.caffemodel and _iter_N.camrtstate (snapshots), _log.jsonl, _log.csv, _curves.png,
_net.prototxt and _labels.txt. camrt explain --model PREFIX_iter_N.caffemodel explains images by a snapshot.

Ctrl-C stops the training with a snapshot, a second Ctrl-C without one. SIGHUP takes a snapshot, and the training
continues. After a kill at any time, --resume continues from the last snapshot and gives the same weights.

{STATUS[:-1]}; 130 after Ctrl-C, 143 after SIGTERM.
"""


@dataclass(frozen=True)
class DataOptions:
    """The data, and the weights to start from."""

    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="The training images; by default, the data layers are used.")
    ] = None
    test_data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="The test images; by default, the test part of --data, or the data layers."),
    ] = None
    resize: Annotated[
        tuple[int, int] | None, typer.Option(metavar="H W", help="Resize images to H x W before the crop.")
    ] = None
    batch: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The batch size; by default, that of the data layers.")
    ] = None
    workers: Annotated[
        int | None, typer.Option(min=0, help="The number of processes that load images; 0 for none.")
    ] = None
    weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE,...", help="Initialize the network from these files: .caffemodel, .pth, .safetensors, .onnx."
        ),
    ] = None
    two_stage: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="For N iterations, train only the layers that are not in --weights."),
    ] = None
    seed: Annotated[int | None, typer.Option(min=0, help="The random seed; by default, the solver's random_seed.")] = (
        None
    )

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of TrainingOptions.

        Raises:
            typer.BadParameter: ``resize`` is not positive.
        """
        if self.resize is not None and min(self.resize) < 1:
            found = f"found {self.resize[0]} {self.resize[1]}, expected sizes of 1 or more"
            raise typer.BadParameter(found, param_hint="--resize")
        files = tuple(Path(each) for one in self.weights or () for each in one.split(",") if each)
        return _fields_of(self) | {"weights": files}


@dataclass(frozen=True)
class SnapshotOptions:
    """The output files, and where a run starts."""

    out: Annotated[
        Path | None,
        typer.Option(metavar="PREFIX", help="The prefix of output files; by default, the solver's snapshot_prefix."),
    ] = None
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the last snapshot, or start if there is none.")
    ] = False
    snapshot: Annotated[
        Path | None,
        typer.Option(metavar="STATE", help="Resume from this .camrtstate, or from a .solverstate of Caffe."),
    ] = None
    restart: Annotated[bool, typer.Option("--restart", help="Start over, and remove the snapshots of this prefix.")] = (
        False
    )
    keep: Annotated[bool, typer.Option("--keep", help="Keep only the best and the last snapshot.")] = False
    solverstate: Annotated[
        bool, typer.Option("--solverstate", help="Also write a .solverstate with each snapshot, for Caffe.")
    ] = False
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write the log for TensorBoard.")] = False


@dataclass(frozen=True)
class StoppingOptions:
    """When a run ends."""

    patience: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop after N tests in a row without improvement.")
    ] = None
    metric: Annotated[
        str | None,
        typer.Option(metavar="OUTPUT", help="The test output for --keep and --patience; by default, the accuracy."),
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only print shapes and memory, run one iteration, and draw the first batch."),
    ] = False


@dataclass(frozen=True)
class DeviceOptions:
    """The hardware."""

    device: Annotated[
        str | None, typer.Option(metavar="cuda|cpu|...", help="The device; by default, a GPU if one is available.")
    ] = None
    threads: Annotated[int | None, typer.Option(min=1, help="The number of CPU threads.")] = None
    amp: Annotated[str | None, typer.Option(metavar="|".join(TYPES), help="Train in mixed precision.")] = None
    deterministic: Annotated[
        bool, typer.Option(help="Use deterministic algorithms on a GPU. Other algorithms may be faster.")
    ] = True

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of TrainingOptions.

        Raises:
            typer.BadParameter: ``amp`` is unknown.
        """
        if self.amp is not None:
            check_choice(self.amp, TYPES, "--amp")
        return _fields_of(self)


@expanded
def train(
    solver: Annotated[
        Path, typer.Argument(metavar="SOLVER", help="The solver prototxt, which refers to that of the network.")
    ],
    data: DataOptions,
    files: SnapshotOptions,
    stopping: StoppingOptions,
    hardware: DeviceOptions,
    as_json: Json = False,
) -> None:
    """Train a Caffe network from its solver file."""
    given = data.arguments() | hardware.arguments() | _fields_of(files) | _fields_of(stopping)
    with reporting(interrupted="iterations after the last snapshot are lost; --resume continues from it"):
        from camrt.train import require_torch

        require_torch()
        from camrt.train.options import TrainingOptions
        from camrt.train.run import train as run

        options = TrainingOptions(solver, **given)
        with joined() as (group, reporter):
            result = run(options, group=group, reporter=reporter)
        if group.is_first:
            _print_result(result, as_json)
        if result.signal:
            raise typer.Exit(128 + result.signal)


def _print_result(result: TrainingResult, as_json: bool) -> None:
    if result.signal:
        name = signal.Signals(result.signal).name
        say(f"stopped by {name} after iteration {result.iteration}; --resume continues from there")
    if as_json:
        fields = {key: str(value) if isinstance(value, Path) else value for key, value in _fields_of(result).items()}
        fields["best"] = dataclasses.asdict(result.best) if result.best is not None else None
        print(json_line(fields))
        return
    if result.best is not None:
        say(f"best test: {result.best.metric} = {result.best.value:.6g} after iteration {result.best.iteration}")
    for value in (result.weights, result.log, result.curves):
        if value is not None and value.exists():
            print(value)


def _fields_of(options: Any) -> dict[str, Any]:
    return {each.name: getattr(options, each.name) for each in dataclasses.fields(options)}
