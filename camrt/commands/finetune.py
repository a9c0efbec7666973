"""`camrt finetune`: fine-tune a pretrained network to a CAM network of your own classes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from camrt.commands.options import STATUS, Json, check_choice
from camrt.commands.output import reporting
from camrt.commands.progress import joined
from camrt.results import json_line
from converters.terminal import say

if TYPE_CHECKING:
    from camrt.train.finetune.options import FinetuneResult, Optimizer
    from camrt.train.options import Precision

OPTIMIZERS, TYPES = ("adamw", "sgd"), ("bf16", "fp16")

EXAMPLES = f"""Examples:

  camrt finetune timm:resnet18 --data folder:photos

  camrt finetune torchvision:resnet50 --data folder:photos/train --test-data folder:photos/val --amp bf16

  camrt finetune timm:convnext_tiny --data folder:photos --mixup 0.2 --randaugment 9 --ema 0.999

  camrt finetune train_val.prototxt --weights googlenet.caffemodel --data folder:photos --optimizer sgd --lr 0.01

  torchrun --nproc-per-node 4 --no-python camrt finetune timm:resnet50 --data folder:photos

DATA is folder:DIR (a folder for each class), list:FILE[,root=DIR] (lines "path label") or tiny:DIR (the layout of Tiny
ImageNet). Without --test-data, a fifth of the images is held out for testing.

Output files share the prefix: .onnx (the classifier), _explainer.onnx, _report.html, _card.md, _test.jsonl (the answer
for each test image), _log.jsonl and _state.pt (the snapshot).

Ctrl-C stops the training with a snapshot. After a kill at any time, --resume continues from the last snapshot and gives
the same weights.

{STATUS[:-1]}; 130 after Ctrl-C, 143 after SIGTERM.
"""


def finetune(
    backbone: Annotated[
        str, typer.Argument(metavar="BACKBONE", help="timm:NAME, torchvision:NAME, or a train_val prototxt.")
    ],
    data: Annotated[str, typer.Option(metavar="DATA", help="The photographs.")],
    test_data: Annotated[str | None, typer.Option(metavar="DATA", help="Photographs to test on.")] = None,
    classes: Annotated[
        str, typer.Option(metavar="auto|FILE", help="The classes: those of --data, or a file with a name per line.")
    ] = "auto",
    holdout: Annotated[float, typer.Option(help="The fraction held out for testing, without --test-data.")] = 0.2,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Initial weights, in place of the library's: .pth, .safetensors, .caffemodel."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="PREFIX", help="The prefix of output files.")] = Path("finetuned"),
    head_epochs: Annotated[int, typer.Option(min=0, help="Epochs in which only the new layer is trained.")] = 1,
    epochs: Annotated[int, typer.Option(min=0, help="Epochs after that, in which all layers are trained.")] = 10,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="The batch size of each process.")] = 32,
    size: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="The side of the input; by default, the backbone's.")
    ] = None,
    optimizer: Annotated[str, typer.Option(metavar="|".join(OPTIMIZERS), help="The optimizer.")] = "adamw",
    rate: Annotated[float, typer.Option("--lr", help="The largest learning rate for all layers.")] = 3e-4,
    head_rate: Annotated[float, typer.Option("--head-lr", help="The largest rate for the new layer alone.")] = 3e-3,
    weight_decay: Annotated[float, typer.Option(help="The weight decay.")] = 0.05,
    warmup: Annotated[float, typer.Option(metavar="EPOCHS", help="Epochs in which the learning rate rises.")] = 1.0,
    smoothing: Annotated[float, typer.Option("--label-smoothing", help="The label smoothing.")] = 0.1,
    mixup: Annotated[float, typer.Option(metavar="ALPHA", help="torchvision's mixup; 0 for none.")] = 0.0,
    randaugment: Annotated[
        int, typer.Option(min=0, max=30, metavar="MAGNITUDE", help="torchvision's RandAugment; 0 for none.")
    ] = 0,
    ema: Annotated[float, typer.Option(metavar="DECAY", help="Average the weights, with this decay.")] = 0.0,
    amp: Annotated[str | None, typer.Option(metavar="|".join(TYPES), help="Train in mixed precision.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The seed of all random numbers.")] = 0,
    snapshot: Annotated[
        int | None, typer.Option(min=1, metavar="STEPS", help="Steps between snapshots; by default, an epoch.")
    ] = None,
    worst: Annotated[int, typer.Option(min=0, help="The number of mistakes in the report.")] = 12,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the snapshot, or start.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Start over, and remove the snapshot.")] = False,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that load images; 0 for none.")] = None,
    device: Annotated[
        str | None, typer.Option(metavar="cuda|cpu|...", help="The device; by default, a GPU if one is available.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="The number of CPU threads.")] = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a network to your own classes, and export an explainer.

    The network becomes its features, global average pooling and one linear layer: first only that layer is trained,
    then all.
    """
    check_choice(optimizer, OPTIMIZERS, "--optimizer")
    if amp is not None:
        check_choice(amp, TYPES, "--amp")
    with reporting(interrupted="steps after the last snapshot are lost; --resume continues from it"):
        from camrt.train import require_torch

        require_torch()
        from camrt.train.finetune.options import FinetuneOptions
        from camrt.train.finetune.run import finetune as run

        options = FinetuneOptions(
            backbone=backbone,
            data=data,
            test_data=test_data,
            classes=classes,
            holdout=holdout,
            weights=weights,
            out=out,
            head_epochs=head_epochs,
            epochs=epochs,
            batch=batch,
            size=size,
            optimizer=cast("Optimizer", optimizer),
            rate=rate,
            head_rate=head_rate,
            weight_decay=weight_decay,
            warmup=warmup,
            smoothing=smoothing,
            mixup=mixup,
            randaugment=randaugment,
            ema=ema,
            amp=cast("Precision | None", amp),
            seed=seed,
            snapshot=snapshot,
            worst=worst,
            resume=resume,
            restart=restart,
            workers=workers,
            device=device,
            threads=threads,
        )
        with joined() as (group, reporter):
            result = run(options, group=group, reporter=reporter)
        if group.is_first:
            _print_result(result, as_json)
        if result.signal:
            raise typer.Exit(128 + result.signal)


def _print_result(result: FinetuneResult, as_json: bool) -> None:
    if result.signal:
        name = signal.Signals(result.signal).name
        say(f"stopped by {name} after step {result.steps}; --resume continues from there")
    if as_json:
        from camrt.train.finetune.outcome import summary

        print(json_line(summary(result)))
        return
    if result.accuracy is not None:
        say(f"test accuracy {result.accuracy:.2%} after {result.steps} steps, {result.seconds:.0f} s")
    for value in (result.classifier, result.explainer, result.report, result.card):
        if value is not None:
            print(value)
