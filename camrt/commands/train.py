"""`camrt train`: train a Caffe network."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from camrt.commands.options import STATUS, Json, check_choice
from camrt.commands.output import reporting
from camrt.commands.progress import progress_reporter
from camrt.results import json_line
from converters.terminal import say

if TYPE_CHECKING:
    from camrt.train.options import Precision, TrainingResult

TYPES = ("bf16", "fp16")

EXAMPLES = f"""Examples:

  camrt train solver.prototxt

  camrt train solver.prototxt --data folder:photos/train --test-data folder:photos/val --weights googlenet.caffemodel

  camrt train solver.prototxt --data clutter:drawn --test-data clutter:drawn,seed=1 --out runs/lenet --resume

  torchrun --nproc-per-node 4 --no-python camrt train solver.prototxt --data tiny:tiny-imagenet-200

DATA is folder:DIR (a folder for each class), list:FILE[,root=DIR] (lines "path label", as in Caffe), tiny:DIR (the
layout of Tiny ImageNet), mnist:PATH[,first=N,count=N] (idx files) or clutter:DIGITS[,seed=N,...] (cluttered digits).

Without --data, the data layers of the network are used: Data (LMDB needs the package lmdb, LevelDB needs plyvel),
HDF5Data (needs h5py), ImageData, WindowData and DummyData. Memory and Python layers need --data.

Output files share the prefix: _iter_N.caffemodel and _iter_N.camrtstate (snapshots), _log.jsonl, _log.csv, _curves.png
and _labels.txt.

Ctrl-C stops the training with a snapshot, a second Ctrl-C without one. SIGHUP takes a snapshot, and the training
continues. After a kill at any time, --resume continues from the last snapshot and gives the same weights.

{STATUS[:-1]}; 130 after Ctrl-C, 143 after SIGTERM.
"""


def train(
    solver: Annotated[
        Path, typer.Argument(metavar="SOLVER", help="The solver prototxt, which refers to that of the network.")
    ],
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="The training images; by default, the data layers are used.")
    ] = None,
    test_data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="The test images; by default, the test part of --data, or the data layers."),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE,...", help="Initialize the network from these files: .caffemodel, .pth, .safetensors, .onnx."
        ),
    ] = None,
    two_stage: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="For N iterations, train only the layers that are not in --weights."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PREFIX", help="The prefix of output files; by default, the solver's snapshot_prefix."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the last snapshot, or start if there is none.")
    ] = False,
    snapshot: Annotated[
        Path | None,
        typer.Option(metavar="STATE", help="Resume from this .camrtstate, or from a .solverstate of Caffe."),
    ] = None,
    solverstate: Annotated[
        bool, typer.Option("--solverstate", help="Also write a .solverstate with each snapshot, for Caffe.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start over, and remove the snapshots of this prefix.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The random seed; by default, the solver's random_seed.")
    ] = None,
    resize: Annotated[
        tuple[int, int] | None, typer.Option(metavar="H W", help="Resize images to H x W before the crop.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The batch size; by default, that of the data layers.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="The number of processes that load images; 0 for none.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="cuda|cpu|...", help="The device; by default, a GPU if one is available.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="The number of CPU threads.")] = None,
    amp: Annotated[str | None, typer.Option(metavar="|".join(TYPES), help="Train in mixed precision.")] = None,
    deterministic: Annotated[
        bool, typer.Option(help="Use deterministic algorithms on a GPU. Other algorithms may be faster.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Train a Caffe network from its solver file."""
    if amp is not None:
        check_choice(amp, TYPES, "--amp")
    if resize is not None and min(resize) < 1:
        raise typer.BadParameter(f"found {resize[0]} {resize[1]}, expected sizes of 1 or more", param_hint="--resize")
    with reporting(interrupted="iterations after the last snapshot are lost; --resume continues from it"):
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
            solverstate=solverstate,
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
            with progress_reporter() as reporter:
                result = run(options, group=group, reporter=reporter)
        finally:
            parallel.leave()
        if group.is_first:
            _print_result(result, as_json)
        if result.signal:
            raise typer.Exit(128 + result.signal)


def _print_result(result: TrainingResult, as_json: bool) -> None:
    if result.signal:
        name = signal.Signals(result.signal).name
        say(f"stopped by {name} after iteration {result.iteration}; --resume continues from there")
    if as_json:
        fields = {key: str(value) if isinstance(value, Path) else value for key, value in _dict(result).items()}
        print(json_line(fields))
        return
    for value in (result.weights, result.log, result.curves):
        if value is not None:
            print(value)


def _dict(result: TrainingResult) -> dict[str, Any]:
    return {each.name: getattr(result, each.name) for each in dataclasses.fields(result)}
