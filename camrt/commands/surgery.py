"""The command `camrt surgery`: a classifier's prototxt gets the head of the CAM networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from camrt.commands.options import STATUS, Json, is_same_file
from camrt.commands.output import reporting
from camrt.results import json_line
from converters.terminal import echo

EXAMPLES = f"""Examples:

  camrt surgery deploy.prototxt --after conv5_3 --classes 200 -o cam_train_val.prototxt

  camrt surgery deploy.prototxt --after inception_4e/output --classes 200

  camrt surgery deploy.prototxt --after conv5_3 --classes 20 --dropout 0.5 --train train.txt --test val.txt

  camrt surgery train_val_googlenetCAM.prototxt --after CAM_conv --channels 0 --classes 20

Then: a solver file with net: "cam_train_val.prototxt", and

  camrt train solver.prototxt --weights classifier.caffemodel --two-stage 1000

{STATUS}
"""


def surgery(
    prototxt: Annotated[Path, typer.Argument(metavar="PROTOTXT", help="The classifier: deploy or train_val.")],
    after: Annotated[str, typer.Option(metavar="LAYER", help="The convolution to cut behind.")],
    classes: Annotated[int, typer.Option(min=1, help="How many classes there will be.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The prototxt to write.")] = Path(
        "cam_train_val.prototxt"
    ),
    channels: Annotated[int, typer.Option(min=0, help="How many maps CAM_conv gives; 0 for no such layer.")] = 1024,
    group: Annotated[int, typer.Option(min=1, help="Its groups; 2 in the released networks.")] = 2,
    dropout: Annotated[float, typer.Option(help="A Dropout layer before CAM_fc; 0.5 in vgg16CAM.")] = 0.0,
    train: Annotated[str, typer.Option(metavar="FILE", help="The list of training images.")] = "train.txt",
    test: Annotated[str, typer.Option(metavar="FILE", help="The list of test images.")] = "val.txt",
    batch: Annotated[int, typer.Option(min=1, help="The batch size.")] = 32,
    as_json: Json = False,
) -> None:
    """Cut a classifier after a convolution: CAM_conv, global pooling and CAM_fc come in place of the rest.

    The lists hold "path label" lines. Data layers that the prototxt has are kept; --train, --test and --batch are then
    left aside.
    """
    if is_same_file(output, prototxt):
        raise typer.BadParameter(f"{output} is the prototxt to cut", param_hint="--output")
    with reporting():
        from camrt.train import surgery as operation

        made = operation.surgery(
            prototxt,
            after,
            classes=classes,
            channels=channels,
            group=group,
            dropout=dropout,
            train=train,
            test=test,
            batch=batch,
        )
        made.write(output)
        if as_json:
            facts = {"output": str(output), "after": made.after}
            print(json_line({**facts, "kept": made.kept, "dropped": made.dropped, "new": made.new}))
            return
        gone = f"left out {', '.join(made.dropped)}" if made.dropped else "nothing followed it"
        echo(
            f"cut after {made.after}: kept {len(made.kept)} layers, {gone}; new are {' and '.join(made.new)}",
            str(output),
        )
