"""`camrt surgery`: convert the prototxt of a classifier to that of a CAM network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from camrt.commands.options import STATUS, Json, check_choice, is_same_file
from camrt.commands.output import reporting
from camrt.results import json_line
from converters.terminal import echo

RECIPES = ("alexnetplus", "vgg16", "googlenet", "inception_v3")

EXAMPLES = f"""Examples:

  camrt surgery deploy.prototxt --after conv5_3 --classes 200 -o cam_train_val.prototxt

  camrt surgery deploy.prototxt --after inception_4e/output --classes 200

  camrt surgery deploy.prototxt --after conv5_3 --classes 20 --dropout 0.5 --train train.txt --test val.txt

  camrt surgery bvlc_alexnet/deploy.prototxt --recipe alexnetplus --classes 1000

  camrt surgery train_val_googlenetCAM.prototxt --after CAM_conv --channels 0 --classes 20

Then train with a solver file that contains net: "cam_train_val.prototxt":

  camrt train solver.prototxt --weights classifier.caffemodel --two-stage 1000

{STATUS}
"""


def surgery(
    prototxt: Annotated[Path, typer.Argument(metavar="PROTOTXT", help="The classifier: deploy or train_val.")],
    classes: Annotated[int, typer.Option(min=1, help="The number of classes.")],
    after: Annotated[str | None, typer.Option(metavar="LAYER", help="The convolution to cut after.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="|".join(RECIPES), help="In place of --after: make this network of the paper."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The prototxt to write.")] = Path(
        "cam_train_val.prototxt"
    ),
    channels: Annotated[
        int | None, typer.Option(min=0, help="The channels of CAM_conv, by default 1024; 0 to omit this layer.")
    ] = None,
    group: Annotated[
        int | None, typer.Option(min=1, help="The groups of CAM_conv, by default 2, as in the released networks.")
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(help="The ratio of a Dropout layer before CAM_fc; by default 0 for none, 0.5 in vgg16CAM."),
    ] = None,
    train: Annotated[str, typer.Option(metavar="FILE", help="The list of training images.")] = "train.txt",
    test: Annotated[str, typer.Option(metavar="FILE", help="The list of test images.")] = "val.txt",
    batch: Annotated[int, typer.Option(min=1, help="The batch size.")] = 32,
    as_json: Json = False,
) -> None:
    """Replace all layers after a convolution by CAM_conv, global average pooling and CAM_fc.

    The lists consist of lines "path label". Existing data layers are kept, and --train, --test and --batch are then
    ignored. A recipe determines the layers: --channels, --group and --dropout go with --after only.
    """
    if (after is None) == (recipe is None):
        raise typer.BadParameter("expected one of --after LAYER and --recipe NAME", param_hint="--after")
    if recipe is not None:
        check_choice(recipe, RECIPES, "--recipe")
        given = {"--channels": channels, "--group": group, "--dropout": dropout}
        if extra := [name for name, value in given.items() if value is not None]:
            raise typer.BadParameter(f"found {', '.join(extra)}, which go with --after", param_hint="--recipe")
    if is_same_file(output, prototxt):
        raise typer.BadParameter(f"{output} is the input, expected another file", param_hint="--output")
    with reporting():
        from camrt.train import surgery as operation

        if recipe is not None:
            made = operation.apply_recipe(prototxt, recipe, classes=classes, train=train, test=test, batch=batch)
        else:
            made = operation.surgery(
                prototxt,
                after or "",
                classes=classes,
                channels=operation.CHANNELS if channels is None else channels,
                group=operation.GROUP if group is None else group,
                dropout=dropout or 0.0,
                train=train,
                test=test,
                batch=batch,
            )
        made.write(output)
        if as_json:
            record = {"output": str(output), "after": made.after}
            print(json_line({**record, "kept": made.kept, "dropped": made.dropped, "new": made.new}))
            return
        removed = f"removed {', '.join(made.dropped)}" if made.dropped else "removed none"
        echo(
            f"cut after {made.after}: kept {len(made.kept)} layers, {removed}, added {' and '.join(made.new)}",
            str(output),
        )
