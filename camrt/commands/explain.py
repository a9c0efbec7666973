"""The command `camrt explain`: what a network sees in images, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from camrt.batch import MAX_SIDE, PAGE, Batch, find_images
from camrt.commands.options import (
    DEFAULT_MODEL,
    STATUS,
    Json,
    MapOptions,
    MaxPixels,
    MaxSide,
    PresetName,
    RuntimeOptions,
    StyleOptions,
    Weights,
    check_model,
    expanded,
    number,
)
from camrt.commands.output import check_terminal, printable_path, reporting, show, show_pictures
from camrt.errors import CamrtError
from camrt.results import LINES, json_line
from converters.errors import printable
from converters.terminal import bar, echo, say

if TYPE_CHECKING:
    from rich.table import Table

    from camrt.localize.crf import CRF
    from camrt.render import PictureFormat

_SHOWN = 10  # images in the table that is printed
_SHOWN_PICTURES = 3


class Format(StrEnum):
    """The format of the overlays: a key of `camrt.render.ENDINGS`, which loads NumPy."""

    JPEG = "jpeg"
    WEBP = "webp"
    PNG = "png"


class Maps(StrEnum):
    """How the maps are written."""

    PNG = "png"
    NPZ = "npz"
    NONE = "none"


_MAPS: dict[Maps, Literal["png", "npz"] | None] = {Maps.PNG: "png", Maps.NPZ: "npz", Maps.NONE: None}


_FORMATS: dict[Format, PictureFormat] = {Format.JPEG: "jpeg", Format.WEBP: "webp", Format.PNG: "png"}


@dataclass(frozen=True)
class RefineOptions:
    """Whether the maps are refined, and how."""

    crf: Annotated[
        bool, typer.Option("--crf", help="Refine the maps by a dense CRF: they follow the image's edges.")
    ] = False
    bilateral: Annotated[
        tuple[float, float, float] | None,
        typer.Option(
            "--crf-bilateral",
            metavar="SDIMS SCHAN COMPAT",
            parser=number,
            help="Pixels, levels of color and weight; by default 10 20 10.",
        ),
    ] = None
    gaussian: Annotated[
        tuple[float, float] | None,
        typer.Option(
            "--crf-gaussian",
            metavar="SDIMS COMPAT",
            parser=number,
            help="Pixels and weight of a kernel without colors; by default none.",
        ),
    ] = None
    iterations: Annotated[int | None, typer.Option("--crf-iterations", min=0, help="By default 50.")] = None
    side: Annotated[
        int | None,
        typer.Option(
            "--crf-side",
            min=1,
            max=2048,
            help="The longer side in pixels at which the maps are refined; by default 256.",
        ),
    ] = None

    def settings(self) -> CRF | None:
        """Return the settings of the CRF; None where refinement is not wanted.

        Raises:
            typer.BadParameter: There are settings without ``--crf``, or a setting is out of range.
        """
        given = {"bilateral": self.bilateral, "gaussian": self.gaussian, "iterations": self.iterations}
        given = {name: value for name, value in given.items() if value is not None}
        if not self.crf:
            for name in [*given, *(["side"] if self.side else [])]:
                raise typer.BadParameter("expected --crf beside it", param_hint=f"--crf-{name}")
            return None
        from camrt.localize.crf import CRF

        try:
            return CRF(**given)  # type: ignore[arg-type]
        except CamrtError as error:
            raise typer.BadParameter(str(error), param_hint="--crf") from None


EXAMPLES = f"""Examples:

  camrt explain photos/ --out explained --html

  camrt explain cat.jpg dog.jpg 'more/**/*.png' --model vgg16CAM --boxes all

  camrt explain cat.jpg --show

  camrt explain photos/ --format png --maps npz --max-side 0

  camrt explain photos/ --colormap inferno --opacity 0.6 --no-caption

  camrt explain photos/ --model explainer.onnx --provider cuda --batch 16

  camrt explain cat.jpg --model vgg16 --method gradcam --target 281

  camrt explain cat.jpg --model vgg16 --method smoothgrad --set samples=50

  camrt explain photos/ --crf --crf-bilateral 50 13 10 --crf-gaussian 3 3 --crf-iterations 10

It prints the best classes and the pictures of the first images; --json has all of them.
In the folder --out: NAME_top1.jpg, ... (overlays), with --maps npz NAME_maps.npz (what the graph gives) or with
--maps png NAME_map1.png, ... (16 bits), with --crf NAME_mask1.png, ..., a line for each image in {LINES}, and
with --html the page {PAGE}. Interrupted and started again, it goes on where it stopped: an image is done while
its path, size and time of change, the model and the options are those of its line.

{STATUS}
"""


@expanded
def explain(
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Images, folders, and quoted globs.")],
    model: Annotated[str, typer.Option(help="A named model (camrt models), or an ONNX model.")] = DEFAULT_MODEL,
    weights: Weights = None,
    preprocess: PresetName = None,
    *,
    what: MapOptions,
    drawn: StyleOptions,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")] = Path("explained"),
    form: Annotated[Format, typer.Option("--format", help="The format of the overlays.")] = Format.JPEG,
    maps: Annotated[Maps, typer.Option(help="How the maps themselves are written.")] = Maps.NONE,
    max_side: MaxSide = MAX_SIDE,
    max_pixels: MaxPixels = None,
    html: Annotated[bool, typer.Option("--html", help=f"Write {PAGE}: a page to look through, in one file.")] = False,
    refine: RefineOptions,
    runtime: RuntimeOptions,
    shown: Annotated[
        bool, typer.Option("--show", help="Show pictures in the terminal, by sixels, kitty's protocol or half blocks.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a network sees in images, and where."""
    check_model(model, weights)
    if shown:
        check_terminal("--show", as_json=as_json)
    asked = what.as_arguments()
    if asked["target"] == "input":
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
        **asked,
        **runtime.as_arguments(),
        weights=weights,
        preprocess=preprocess.value if preprocess else None,
        style=drawn.style(),
        form=_FORMATS[form],
        maps=_MAPS[maps],
        max_side=max_side or None,
        max_pixels=max_pixels,
        cards=html,
        crf=refine.settings(),
        side=refine.side or 256,
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
                batch=runtime.batch,
                progress=lambda total: bar("explaining", total, bytes_=False),
            )
            page = work.page(found) if html else None
            done = work.lines(found)
        if as_json:
            record: dict[str, Any] = {
                "out": str(out),
                "explained": work.explained,
                "skipped": work.skipped,
                "images": [{key: line[key] for key in ("path", "source", "top", "files")} for line in done],
                "failed": [{"image": where, "reason": reason} for where, reason in failed],
                "page": str(page) if page else None,
            }
            print(json_line(record))
        else:
            if done:
                show(_table(done, out))
                if shown:
                    show_pictures(_pictures(done, out))
            counts = f"{work.explained:,} explained" + (f", {work.skipped:,} were done" if work.skipped else "")
            echo(f"{counts}: {out / LINES}", *([str(page)] if page else []))
        if failed:
            say(f"error: {len(failed):,} could not be explained:")
            for where, reason in failed:
                say(f"  {reason if reason.startswith(where) else f'{where}: {reason}'}")
            raise typer.Exit(1)


def _table(lines: Sequence[Mapping[str, Any]], out: Path) -> Table:
    """The best classes of the first images, and the pictures; of a single image all classes that were explained."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("image", "class", "score", "picture"):
        table.add_column(column, justify="right" if column == "score" else "left", overflow="fold")
    for line in lines[:_SHOWN]:
        overlays = [name for name in line["files"] if "_top" in name]
        best = line["top"] if len(lines) == 1 else line["top"][:1]
        for rank, one in enumerate(best):
            table.add_row(
                printable_path(line["source"]) if rank == 0 else "",
                printable(one["label"]),
                "no number" if one["score"] is None else f"{one['score']:.1%}",
                printable_path(out / overlays[rank]) if rank < len(overlays) else "",
            )
    if len(lines) > _SHOWN:
        table.add_row(f"and {len(lines) - _SHOWN:,} more", "", "", "")
    return table


def _pictures(lines: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
    """The pictures that are shown in the terminal: of a single image all classes, else each image's best class."""
    overlays = [[out / name for name in line["files"] if "_top" in name] for line in lines]
    names = overlays[0] if len(lines) == 1 else [files[0] for files in overlays if files]
    return names[:_SHOWN_PICTURES]


def _progress(work: Batch) -> str:
    """What is true after an interruption."""
    if not work.total:
        return "nothing was explained"
    done = work.explained + work.skipped
    return f"{done:,} of {work.total:,} images are done; the same command goes on from there"
