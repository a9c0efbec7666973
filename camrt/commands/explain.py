"""`camrt explain`: what a network sees in images, and where."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from camrt.batch import PAGE, Batch, find_images
from camrt.commands.options import (
    STATUS,
    THRESHOLDS,
    Json,
    Layer,
    Method,
    Protocol,
    Provider,
    Settings,
    Target,
    Thresholds,
    Top,
    check_choice,
    check_method,
    check_model,
    check_protocol,
    one_or_several,
    settings_of,
)
from camrt.commands.output import reporting
from camrt.errors import CamrtError
from camrt.results import LINES, json_line
from converters.terminal import bar, say

if TYPE_CHECKING:
    from camrt.localize.crf import CRF

DEFAULT_MODEL = "googlenetCAM"
_MAPS: dict[str, Literal["png", "npz"] | None] = {"png": "png", "npz": "npz", "none": None}

EXAMPLES = f"""Examples:

  camrt explain photos/ --out explained --html

  camrt explain cat.jpg dog.jpg 'more/**/*.png' --model vgg16CAM --boxes

  camrt explain photos/ --model explainer.onnx --provider cuda --batch 16

  camrt explain cat.jpg --model vgg16 --method gradcam --target 281

  camrt explain cat.jpg --model vgg16 --method smoothgrad --set samples=50

  camrt explain photos/ --crf --boxes --crf-bilateral 50 13 10 --crf-gaussian 3 3 --crf-iterations 10

In the folder --out: NAME_top1.png, ... (overlays), NAME_map1.png, ... (the maps, 16 bits) or NAME_maps.npz, with --crf
NAME_mask1.png, ..., a line for each image in {LINES}, and with --html the page {PAGE}. Interrupted and
started again, it goes on where it stopped: an image is done while its path, size and time of change, the model and the
options are those of its line.

{STATUS}
"""


def explain(
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Images, folders, and quoted globs.")],
    model: Annotated[str, typer.Option(help="A named model, or an ONNX model.")] = DEFAULT_MODEL,
    method: Method = None,
    protocol: Protocol = None,
    top: Top = None,
    target: Target = None,
    layer: Layer = None,
    settings: Settings = None,
    boxes: Annotated[bool, typer.Option("--boxes", help="Boxes in the lines and on the overlays.")] = False,
    thresholds: Thresholds = THRESHOLDS,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")] = Path("explained"),
    maps: Annotated[str, typer.Option(metavar="png|npz|none", help="How the maps are written.")] = "png",
    html: Annotated[bool, typer.Option("--html", help=f"Write {PAGE}: a page to look through, in one file.")] = False,
    crf: Annotated[
        bool, typer.Option("--crf", help="Refine the maps by a dense CRF: they follow the image's edges.")
    ] = False,
    bilateral: Annotated[
        tuple[float, float, float] | None,
        typer.Option(
            "--crf-bilateral",
            metavar="SDIMS SCHAN COMPAT",
            help="Pixels, levels of colour and weight; by default 10 20 10.",
        ),
    ] = None,
    gaussian: Annotated[
        tuple[float, float] | None,
        typer.Option(
            "--crf-gaussian",
            metavar="SDIMS COMPAT",
            help="Pixels and weight of a kernel without colours; by default none.",
        ),
    ] = None,
    iterations: Annotated[int | None, typer.Option("--crf-iterations", min=0, help="By default 50.")] = None,
    side: Annotated[
        int | None,
        typer.Option(
            "--crf-side",
            min=1,
            max=2048,
            help="The longer side in pixels at which the maps are refined; by default 256.",
        ),
    ] = None,
    provider: Provider = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images at once; by default 1, on CUDA 4.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a network sees in images, and where."""
    check_choice(maps, tuple(_MAPS), "--maps")
    check_method(method)
    check_protocol(protocol)
    check_model(model)
    if target == ["input"]:
        raise typer.BadParameter(
            "images come without classes here: name the classes, or see camrt export", param_hint="--target"
        )
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
        target=one_or_several(target),
        layer=one_or_several(layer),
        settings=settings_of(settings),
        thresholds=thresholds if boxes else None,
        maps=_MAPS[maps],
        cards=html,
        crf=_crf(crf, bilateral, gaussian, iterations, side),
        side=256 if side is None else side,
    )
    with reporting(interrupted=lambda: _progress(work)):
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


def _crf(
    wanted: bool,
    bilateral: tuple[float, float, float] | None,
    gaussian: tuple[float, float] | None,
    iterations: int | None,
    side: int | None,
) -> CRF | None:
    """The settings, if refinement is wanted."""
    given = {"bilateral": bilateral, "gaussian": gaussian, "iterations": iterations}
    given = {name: value for name, value in given.items() if value is not None}
    if not wanted:
        for name in [*given, *(["side"] if side else [])]:
            raise typer.BadParameter("expected --crf beside it", param_hint=f"--crf-{name}")
        return None
    from camrt.localize.crf import CRF

    try:
        return CRF(**given)  # type: ignore[arg-type]
    except CamrtError as error:
        raise typer.BadParameter(str(error), param_hint="--crf") from None


def _progress(work: Batch) -> str:
    """What is true after an interruption."""
    if not work.total:
        return "nothing was explained"
    done = work.explained + work.skipped
    return f"{done:,} of {work.total:,} images are done; the same command goes on from there"
