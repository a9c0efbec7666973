"""`camrt evaluate ...`: how well maps localize."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from camrt.commands import wsol
from camrt.commands.options import (
    THRESHOLDS,
    Json,
    Method,
    Protocol,
    Provider,
    Thresholds,
    check_choice,
    check_method,
    check_model,
    check_protocol,
)
from camrt.commands.output import reporting, show
from camrt.errors import CamrtError
from camrt.results import json_line, write
from converters.terminal import bar, say

if TYPE_CHECKING:
    from camrt.evaluate.dataset import Dataset
    from camrt.evaluate.guesses import BoxRule
    from camrt.evaluate.journal import Shard
    from camrt.evaluate.localization import Model, Outcome

DEFAULT_MODEL, OUT, PAGE = "googlenetCAM", Path("ilsvrc"), "index.html"
BOXES, ENCODINGS = ("dt", "threshold"), ("jpeg", "png")
_MOST_NAMED = 20  # refused images in a terminal; --json names all

ILSVRC_EXAMPLES = f"""Examples:

  camrt evaluate ilsvrc --images ILSVRC2012_img_val --annotations val_bbox --ground-truth ground_truth.txt

  camrt evaluate ilsvrc --images ILSVRC2012_img_val --annotations cache_groundtruth.mat --ground-truth ground_truth.txt
  --meta meta_clsloc.mat --blacklist blacklist.txt --model vgg16CAM --out vgg --html

  camrt evaluate ilsvrc ... --shard 2/4

  camrt evaluate ilsvrc --annotations val_bbox --ground-truth ground_truth.txt --out vgg --merge

  camrt evaluate ilsvrc --annotations val_bbox --ground-truth ground_truth.txt --submission bbox1.txt

Interrupted or killed, the same command goes on where it stopped. Processes with --shard 1/4, 2/4, ... share the work;
the one that ends last counts, as does --merge. An image that is missing or broken counts as wrong and is named.
In the folder --out: guesses.jsonl, bbox1.txt, bbox2.txt, bboxCombine.txt, and with --html {PAGE}.

Exit status: 0, 1 (it failed, or an image did) or 2 (usage).
"""

app = typer.Typer(name="evaluate", help="Measure how well maps localize.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def evaluate() -> None:
    """Measure how well maps localize."""


def ilsvrc(
    annotations: Annotated[
        Path, typer.Option(metavar="DIR|MAT", help="VOC's XML, a file an image; or the devkit's cache_groundtruth.mat.")
    ],
    ground_truth: Annotated[Path, typer.Option(metavar="FILE", help="The class of each image, a line each.")],
    images: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the images are.")] = None,
    blacklist: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Images that do not count for the localization.")
    ] = None,
    meta: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The classes' numbers: meta_clsloc.mat, or lines of a name and a number."),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option("--list", metavar="FILE", help="The images' names, in the order of the ground truth."),
    ] = None,
    first: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N images.")] = None,
    model: Annotated[str, typer.Option(help="A named model, or an ONNX model.")] = DEFAULT_MODEL,
    method: Method = None,
    protocol: Protocol = None,
    boxes: Annotated[
        str, typer.Option(metavar="|".join(BOXES), help="The original's boxes, or those of the paper's text.")
    ] = "dt",
    thresholds: Thresholds = THRESHOLDS,
    fraction: Annotated[float, typer.Option(help="Of the maximum, for --boxes threshold.")] = 0.2,
    encoding: Annotated[
        str, typer.Option(metavar="|".join(ENCODINGS), help="jpeg: maps lose what the original's JPEG lost.")
    ] = "jpeg",
    heatmaps: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the maps, as top1/NAME.jpg, ...")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")] = OUT,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Do this part of the images only.")] = "1/1",
    merge: Annotated[bool, typer.Option("--merge", help="Count what the shards have done.")] = False,
    submission: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Count these predictions, in the devkit's format.")
    ] = None,
    provider: Provider = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images at once; by default 1, on CUDA 4.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that find boxes; by default 2, on CUDA up to 8.")
    ] = None,
    html: Annotated[bool, typer.Option("--html", help=f"Write {PAGE}: the worst and the best images.")] = False,
    as_json: Json = False,
) -> None:
    """Measure the localization error as the paper does: five guesses, each a class and a box."""
    check_choice(boxes, BOXES, "--boxes")
    check_choice(encoding, ENCODINGS, "--encoding")
    check_protocol(protocol)
    check_model(model)
    _check_ways(images=images, merge=merge, submission=submission, html=html, shard=shard)
    if images is not None and heatmaps is not None and heatmaps.resolve().is_relative_to(images.resolve()):
        raise typer.BadParameter(f"{heatmaps} is in {images}: maps would mix with images", param_hint="--heatmaps")
    with reporting(interrupted="what is done is kept; the same command goes on from there"):
        check_method(method)
        from camrt.evaluate import localization
        from camrt.evaluate.guesses import BoxRule
        from camrt.evaluate.journal import Shard

        part = Shard.parse(shard)
        data = _dataset(annotations, ground_truth, meta, names, blacklist, first)
        if submission is not None:
            _tell(localization.count_submission(data, submission), data, {}, as_json)
            return
        network = localization.Model(model, method, protocol, provider, batch)
        rule = BoxRule(
            cast(Literal["dt", "threshold"], boxes),
            thresholds,
            fraction,
            cast(Literal["jpeg", "png"], encoding),
            heatmaps,
        )
        files = _files(images, data, part) if images is not None else {}
        if not merge:
            _guess(files, data, out, network, rule, part, workers)
            if left := localization.missing(data, out):
                _tell_shard(part, left, out, as_json)
                return
        outcome = localization.count(data, out)
        written = localization.write_submissions(outcome, out)
        if html:
            written["page"] = _page(outcome, data, files, network, out)
        _tell(outcome, data, written, as_json)


app.command("ilsvrc", epilog=ILSVRC_EXAMPLES)(ilsvrc)
app.command("wsol", epilog=wsol.EXAMPLES)(wsol.wsol)


def _check_ways(*, images: Path | None, merge: bool, submission: Path | None, html: bool, shard: str) -> None:
    """What must be given, and what does not go together."""
    if submission is not None and (merge or html or images is not None):
        raise typer.BadParameter(
            "counts a file alone: leave out --images, --merge and --html", param_hint="--submission"
        )
    if merge and shard != "1/1":
        raise typer.BadParameter("counts all shards: leave out --shard", param_hint="--merge")
    if images is None and submission is None and (html or not merge):
        raise typer.BadParameter("name the folder with the images", param_hint="--images")


def _dataset(
    annotations: Path,
    ground_truth: Path,
    meta: Path | None,
    names: Path | None,
    blacklist: Path | None,
    first: int | None,
) -> Dataset:
    from camrt.evaluate.dataset import load

    total = sum(1 for _ in annotations.iterdir()) if annotations.is_dir() else 0
    with bar("reading annotations", total, bytes_=False) as advance:
        return load(
            annotations, ground_truth, meta=meta, names=names, blacklist=blacklist, first=first, progress=advance
        )


def _files(images: Path, data: Dataset, part: Shard) -> dict[str, Path | None]:
    from camrt.evaluate.dataset import find_images

    found = find_images(images, data.names)
    if len(found) < len(data) and part.number == 1:
        say(f"warning: {images}: {len(data) - len(found):,} of {len(data):,} images are not there; they count as wrong")
    return {name: found.get(name) for name in data.names}


def _guess(
    files: dict[str, Path | None],
    data: Dataset,
    out: Path,
    network: Model,
    rule: BoxRule,
    part: Shard,
    workers: int | None,
) -> None:
    from camrt.evaluate import localization

    if data.synsets is None:
        raise CamrtError(
            "the annotations have numbers, not names, so that nothing says which number a class of the network has. "
            "Give the devkit's meta_clsloc.mat, or a file with a name and a number a line: --meta"
        )
    here = len(part.of(data.names))

    def begin(left: int) -> contextlib.AbstractContextManager[Callable[[int], Any]]:
        if here > left:
            say(f"{here - left:,} of {here:,} images were done before")
        return progress(left)

    if not localization.guess(
        files, out, network, rule, synsets=data.synsets, shard=part, workers=workers, progress=begin
    ):
        say(f"all {here:,} images were done before")


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[int], Any]]:
    """A bar in a terminal; elsewhere a line a minute, with the time that is left."""
    import sys
    import time

    with bar("localizing", total, bytes_=False) as advance:
        begin = said = time.monotonic()
        done = 0

        def count(more: int) -> None:
            nonlocal done, said
            done += more
            advance(more)
            now = time.monotonic()
            if now - said >= 60 and not sys.stderr.isatty():
                said = now
                minutes = math.ceil((now - begin) / done * (total - done) / 60)
                say(f"{done:,} of {total:,} images, {minutes:,} min left")

        yield count


def _page(outcome: Outcome, data: Dataset, files: dict[str, Path | None], network: Model, out: Path) -> Path:
    from camrt.evaluate import report
    from camrt.evaluate.localization import as_stored

    explainer = network.load()
    text = report.page(
        outcome,
        data,
        files,
        lambda path: explainer(as_stored(path)),
        title="Localization",
        note=" · ".join([f"of {len(data):,}", network.name, explainer.method, explainer.protocol]),
    )
    write(out / PAGE, text.encode(errors="replace"))
    return out / PAGE


def _tell_shard(part: Shard, left: int, out: Path, as_json: bool) -> None:
    """What is said when other shards are not done."""
    facts = {"shard": str(part), "left": left, "out": str(out)}
    if as_json:
        print(json_line(facts))
    else:
        print(f"shard {part} is done; {left:,} images of other shards are left. When they are done: --merge")


def _tell(outcome: Outcome, data: Dataset, written: dict[str, Path], as_json: bool) -> None:
    """The table or the JSON, and the images that failed."""
    if as_json:
        print(json_line(_facts(outcome, data, written)))
    else:
        _show(outcome, data, written)
    if outcome.refused:
        say(f"error: {len(outcome.refused):,} of {len(data):,} images could not be read; they count as wrong:")
        for name, reason in list(outcome.refused.items())[:_MOST_NAMED]:
            say(f"  {name}: {reason}")
        if len(outcome.refused) > _MOST_NAMED:
            say(f"  and {len(outcome.refused) - _MOST_NAMED:,} more; --json names them all")
        raise typer.Exit(1)


def _facts(outcome: Outcome, data: Dataset, written: dict[str, Path]) -> dict[str, Any]:
    return {
        "images": len(data),
        "blacklisted": len(data.blacklist),
        "rankings": {
            name: {"localization": errors.tolist(), "classification": outcome.classification[name].tolist()}
            for name, errors in outcome.localization.items()
        },
        "maps": {"without_boxes": outcome.without_boxes, "with_one_box": outcome.with_one_box},
        "failed": [{"image": name, "reason": reason} for name, reason in outcome.refused.items()],
        "files": {name: str(path) for name, path in written.items()},
    }


def _show(outcome: Outcome, data: Dataset, written: dict[str, Path]) -> None:
    from rich.table import Table

    table = Table("error (%)", *(f"top-{number}" for number in range(1, 6)), caption_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, errors in outcome.localization.items():
        table.add_row(f"{name}, localization", *(f"{100 * error:.2f}" for error in errors))
    for name, errors in outcome.classification.items():
        table.add_row(f"{name}, classification", *(f"{100 * error:.2f}" for error in errors))
    show(table)
    notes = [f"{len(data):,} images"]
    if data.blacklist:
        notes.append(f"{len(data.blacklist):,} of them on the blacklist")
    if outcome.without_boxes:
        notes.append(f"{outcome.without_boxes:,} maps without a box: the whole image")
    if outcome.with_one_box:
        notes.append(f"{outcome.with_one_box:,} maps with one box: it is the second too")
    print("; ".join(notes))
    for path in written.values():
        print(path)
