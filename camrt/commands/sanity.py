"""The command `camrt evaluate sanity`: whether maps depend on what the network has learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camrt.batch import find_images
from camrt.commands.options import (
    STATUS,
    Json,
    PresetName,
    ProtocolName,
    RuntimeOptions,
    Weights,
    check_model,
    expanded,
    listed,
)
from camrt.commands.output import reporting, show
from camrt.graph.methods import BLACK_BOX, METHODS
from camrt.loading import LENET, title_of
from camrt.results import json_line, write
from converters.errors import printable
from converters.terminal import bar, say

if TYPE_CHECKING:
    from rich.table import Table

    from camrt.evaluate.sanity import Checked

EXAMPLES = f"""Examples:

  camrt evaluate sanity resnet50.onnx photos/ --methods gradcam,guided-backprop,integrated-gradients

  camrt evaluate sanity lenetCAM --methods cam,gradcam,layercam --html sanity.html

  camrt evaluate sanity vgg16 cat.jpg --methods gradcam --stages 4 --json

The cascading randomization of Adebayo et al. 2018: layers become random from the top down, and each map is compared
with the trained network's. It names the methods whose maps do not change: their rank correlation is still --limit or
more when all layers are random. They do not explain what the network has learned. Without images, it takes lenetCAM's
sample.

{STATUS}
A method that does not change is a result, not an error: the exit status is 0.
"""


@expanded
def sanity(
    model: Annotated[str, typer.Argument(help="A named model, or a classifier (.onnx).")],
    images: Annotated[
        list[str] | None, typer.Argument(metavar="[IMAGES...]", help="Images, folders, and quoted globs.")
    ] = None,
    weights: Weights = None,
    preprocess: PresetName = None,
    methods: Annotated[
        str, typer.Option(metavar="A,B,...", help=f"Of {', '.join((*METHODS, *BLACK_BOX))}.")
    ] = "gradcam,layercam,eigencam,guided-backprop,input-gradient,baseline-edges",
    stages: Annotated[int, typer.Option(min=1, help="Networks to compare, at most; the last is all random.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="The seed of the random weights.")] = 0,
    limit: Annotated[
        float, typer.Option(min=0.01, max=1, help="The rank correlation from which on a map counts as unchanged.")
    ] = 0.5,
    protocol: Annotated[ProtocolName, typer.Option(help="What the network sees of an image.")] = ProtocolName.WHOLE,
    html: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write a page with the maps.")] = None,
    *,
    runtime: RuntimeOptions,
    as_json: Json = False,
) -> None:
    """Test whether maps change when the network's weights are randomized."""
    check_model(model, weights)
    names = listed(methods, (*METHODS, *BLACK_BOX), "--methods")
    if protocol is ProtocolName.TEN_CROP:
        raise typer.BadParameter("expected whole, center or full: the test sees one crop", param_hint="--protocol")
    with reporting():
        from camrt.evaluate.sanity import sanity as checked
        from camrt.evaluate.sanity import unchanged

        if not images:
            say("note: no images were named: lenetCAM's sample is taken")
        found, missing = find_images(images or [str(_sample())])
        failed = [f"{where}: {reason}" for where, reason in missing]
        results: list[Checked] = []
        if found:
            with bar("randomizing", len(names) * (stages + 1), bytes_=False) as advance:
                results = checked(
                    model, [image.given for image in found], names, stages=stages, seed=seed, limit=limit,
                    protocol=protocol.value, preprocess=preprocess.value if preprocess else None, weights=weights,
                    **runtime.as_arguments(), progress=advance,
                    on_error=lambda what, error: failed.append(f"{what}: {error}"),
                )  # fmt: skip
        if results and html is not None:
            from camrt.evaluate.sanity_page import page

            write(html, page(results, model=title_of(model)).encode(errors="replace"))
        if as_json:
            record: dict[str, Any] = {
                "methods": [each.as_dict() for each in results], "unchanged": unchanged(results), "seed": seed,
                "limit": limit, "images": len(found), "failed": failed, "page": str(html) if html else None,
            }  # fmt: skip
            print(json_line(record))
        elif results:
            show(_table(results), "", verdict(results))
            if html is not None:
                show(str(html))
        if failed:
            say("error: left out:")
            for line in failed:
                say(f"  {printable(line, 500)}")
            raise typer.Exit(1)


def verdict(results: Sequence[Checked]) -> str:
    """Name the methods that do not change."""
    from camrt.evaluate.sanity import unchanged

    names = unchanged(results)
    if not names:
        return "The maps of all methods change when the weights are random."
    return f"Maps that do not change when the weights are random: {', '.join(names)}."


def _table(results: Sequence[Checked]) -> Table:
    """The rank correlation at each stage, and all three similarities at the last."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for head in ("random layers", "down to", "SSIM", "rank correlation", "HOG"):
        table.add_column(head, justify="left" if head == "down to" else "right")
    for each in results:
        for n, stage in enumerate(each.stages):
            numbers = (f"{value:.3f}" for value in (stage.ssim, stage.rank, stage.hog))
            table.add_row(each.method if n == 0 else "", str(stage.layers), printable(stage.layer), *numbers)
    return table


def _sample() -> Path:
    from converters.zoo import models_folder

    return models_folder() / LENET / "sample.png"
