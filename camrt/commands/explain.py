"""`camrt explain`: what a network sees in images, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from camrt.batch import PAGE, Batch, find_images
from camrt.commands.options import (
    STATUS,
    THRESHOLDS,
    Json,
    Method,
    Protocol,
    Provider,
    Thresholds,
    Top,
    check_choice,
    check_method,
    check_model,
    check_protocol,
)
from camrt.commands.output import reporting
from camrt.loading import TINY
from camrt.results import LINES, json_line
from converters.terminal import bar, say

DEFAULT_MODEL = "googlenetCAM"
_MAPS: dict[str, Literal["png", "npz"] | None] = {"png": "png", "npz": "npz", "none": None}

EXAMPLES = f"""Examples:

  camrt explain photos/ --out explained --html

  camrt explain cat.jpg dog.jpg 'more/**/*.png' --model vgg16CAM --boxes

  camrt explain photos/ --model explainer.onnx --provider cuda --batch 16

In the folder --out: NAME_top1.png, ... (overlays), NAME_map1.png, ... (the maps, 16 bits) or NAME_maps.npz, a line for
each image in {LINES}, and with --html the page {PAGE}. Interrupted and started again, it goes on where it
stopped: an image is done while its path, size and time of change, the model and the options are those of its line.

{STATUS}
"""


def explain(
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Images, folders, and quoted globs.")],
    model: Annotated[str, typer.Option(help=f"A named model, {TINY}, or an ONNX model.")] = DEFAULT_MODEL,
    method: Method = None,
    protocol: Protocol = None,
    top: Top = None,
    boxes: Annotated[bool, typer.Option("--boxes", help="Boxes in the lines and on the overlays.")] = False,
    thresholds: Thresholds = THRESHOLDS,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")] = Path("explained"),
    maps: Annotated[str, typer.Option(metavar="png|npz|none", help="How the maps are written.")] = "png",
    html: Annotated[bool, typer.Option("--html", help=f"Write {PAGE}: a page to look through, in one file.")] = False,
    provider: Provider = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images at once; by default 1, on CUDA 4.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a network sees in images, and where."""
    check_choice(maps, tuple(_MAPS), "--maps")
    check_protocol(protocol)
    check_model(model)
    if any(Path(each).is_dir() and out.is_dir() and out.samefile(each) for each in images):
        raise typer.BadParameter(
            f"{out} is one of the folders to explain: results would mix with images", param_hint="--out"
        )
    work = Batch(
        out,
        model,
        method=method,
        protocol=protocol,
        top=top,
        thresholds=thresholds if boxes else None,
        maps=_MAPS[maps],
        cards=html,
    )
    with reporting(interrupted=lambda: _progress(work)):
        check_method(method)
        found, failed = find_images(images, but=out)
        if not found:
            for where, reason in failed:
                say(f"error: {where}: {reason}")
            raise typer.Exit(1)
        with work:
            failed += work.explain(
                found,
                providers=provider,
                batch=batch,
                progress=lambda total: bar("explaining", total, bytes_=False),
            )
            page = work.page(found) if html else None
        facts: dict[str, Any] = {
            "out": str(out),
            "explained": work.explained,
            "skipped": work.skipped,
            "failed": [{"image": where, "reason": reason} for where, reason in failed],
            "page": str(page) if page else None,
        }
        if as_json:
            print(json_line(facts))
        else:
            done = f"{work.explained:,} explained" + (f", {work.skipped:,} were done" if work.skipped else "")
            print(f"{done}: {out / LINES}" + (f"\n{page}" if page else ""))
        if failed:
            say(f"error: {len(failed):,} could not be explained:")
            for where, reason in failed:
                say(f"  {reason if reason.startswith(where) else f'{where}: {reason}'}")
            raise typer.Exit(1)


def _progress(work: Batch) -> str:
    """What is true after an interruption."""
    if not work.total:
        return "nothing was explained"
    done = work.explained + work.skipped
    return f"{done:,} of {work.total:,} images are done; the same command goes on from there"
