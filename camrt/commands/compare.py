"""The command `camrt compare`: which method suits a network, on images at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camrt.batch import find_images
from camrt.commands.options import (
    DEFAULT_MODEL,
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
from camrt.errors import CamrtError
from camrt.graph.methods import BLACK_BOX, METHODS
from camrt.loading import title_of
from camrt.results import json_line, write
from converters.errors import printable
from converters.terminal import bar, echo, say

if TYPE_CHECKING:
    from rich.table import Table

    from camrt.evaluate.comparison import Row

# As `camrt.evaluate.comparison.DEFAULT_METHODS`, which loads NumPy.
_METHODS = "gradcam,gradcam++,layercam,eigencam,baseline-center"

EXAMPLES = f"""Examples:

  camrt compare cat.jpg dog.jpg --model resnet50.onnx --methods gradcam,layercam,rise

  camrt compare photos/ --model vgg16 --methods gradcam,scorecam,baseline-center --out vgg16.html

  camrt compare cat.jpg --model my.onnx --methods rise,kernelshap --set rise.masks=4000 --json

It explains the best class of each image (or --target) by each method, and measures the seconds of a run, insertion,
deletion and ROAD. The page --out shows the maps side by side, and marks the best: docs/compare-methods.md.
A method that cannot explain the model is named, and the others are compared.

{STATUS}
"""


@expanded
def compare(
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Images, folders, and quoted globs.")],
    model: Annotated[str, typer.Option(help="A named model, or a classifier (.onnx).")] = DEFAULT_MODEL,
    weights: Weights = None,
    preprocess: PresetName = None,
    methods: Annotated[
        str, typer.Option(metavar="A,B,...", help=f"Of {', '.join((*METHODS, *BLACK_BOX))}.")
    ] = _METHODS,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="METHOD.NAME=VALUE", help="A setting, as rise.masks=4000; may be repeated."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="CLASS", help="Explain this class, by name or number, and not the best.")
    ] = None,
    protocol: Annotated[ProtocolName, typer.Option(help="What the network sees of an image.")] = ProtocolName.WHOLE,
    step: Annotated[
        int | None,
        typer.Option(
            min=1, help="Pixels that insertion and deletion replace at a time; by default a row of the image."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE.html", help="The page.")] = Path("comparison.html"),
    *,
    runtime: RuntimeOptions,
    as_json: Json = False,
) -> None:
    """Compare methods on images: maps side by side, seconds, insertion, deletion and ROAD."""
    check_model(model, weights)
    names = listed(methods, (*METHODS, *BLACK_BOX), "--methods")
    asked = _settings(settings, names)
    if target is not None and target.partition(":")[0] in ("box", "segment"):
        raise typer.BadParameter(
            f"found {target!r}, expected a class: the metrics are those of classes of whole images. camrt explain "
            "takes boxes and segments",
            param_hint="--target",
        )
    if protocol is ProtocolName.TEN_CROP:
        raise typer.BadParameter("expected whole, center or full: the metrics see one crop", param_hint="--protocol")
    with reporting():
        from camrt.evaluate.comparison import compare as compared
        from camrt.evaluate.comparison_page import page

        found, missing = find_images(images)
        failed = [f"{where}: {reason}" for where, reason in missing]
        rows: list[Row] = []
        if found:
            with bar("comparing", len(names) * len(found), bytes_=False) as advance:
                rows = compared(
                    [image.given for image in found], model, names, target=target, protocol=protocol.value,
                    settings=asked, preprocess=preprocess.value if preprocess else None, weights=weights,
                    **runtime.as_arguments(), step=step, progress=advance,
                    on_error=lambda what, error: failed.append(_reason(what, error)),
                )  # fmt: skip
        if rows:
            write(out, page(rows, model=title_of(model), failed=failed).encode(errors="replace"))
        if rows or as_json:
            _print(rows, failed, out if rows else None, as_json=as_json)
        if failed:
            say("error: left out:")
            for line in failed:
                say(f"  {printable(line, 500)}")
            raise typer.Exit(1)


def _reason(what: str, error: CamrtError) -> str:
    text = str(error)
    return text if text.startswith(what) else f"{what}: {text}"


def _settings(given: Sequence[str] | None, methods: Sequence[str]) -> dict[str, dict[str, str]]:
    """Parse the settings of methods.

    Raises:
        typer.BadParameter: One has another form, or its method is not compared.
    """
    found: dict[str, dict[str, str]] = {}
    for text in given or ():
        place, equals, value = text.partition("=")
        method, dot, name = place.partition(".")
        if not (dot and name and equals and value):
            raise typer.BadParameter(f"found {text!r}, expected METHOD.NAME=VALUE", param_hint="--set")
        if method not in methods:
            raise typer.BadParameter(f"found {method!r}, expected one of {', '.join(methods)}", param_hint="--set")
        found.setdefault(method, {})[name] = value
    return found


def _print(rows: Sequence[Row], failed: Sequence[str], out: Path | None, *, as_json: bool) -> None:
    from camrt.evaluate.comparison import best, means

    averages = means(rows)
    leaders = best(averages)
    if as_json:
        record = {
            "rows": [row.as_dict() for row in rows], "means": averages, "best": leaders, "failed": list(failed),
            "page": str(out) if out else None,
        }  # fmt: skip
        print(json_line(record))
        return
    show(_table(averages, leaders))
    echo(str(out))


def _table(averages: Mapping[str, Mapping[str, Any]], leaders: Mapping[str, Sequence[str]]) -> Table:
    from rich.table import Table

    from camrt.evaluate.comparison_page import HEADS, value_text

    table = Table(box=None, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for head in HEADS.values():
        table.add_column(head, justify="right")
    for method, values in averages.items():
        marks = ["*" if len(averages) > 1 and method in leaders[measure] else " " for measure in HEADS]
        cells = [f"{value_text(measure, values[measure])}{mark}" for measure, mark in zip(HEADS, marks, strict=True)]
        table.add_row(method, *cells)
    return table
