"""`camrt evaluate wsol`: methods side by side, by the metrics of weakly supervised localization and of faithfulness."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camrt.commands.options import PROTOCOLS, Json, Provider, check_choice, check_model
from camrt.commands.output import reporting, show, write_picture
from camrt.errors import CamrtError
from camrt.graph.methods import METHODS
from camrt.results import json_line, write
from converters.terminal import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from camrt.evaluate.annotated import DataSet
    from camrt.evaluate.comparison import Measures, Network
    from camrt.evaluate.tally import Outcome

GROUPS = ("boxes", "masks", "pointing", "drop", "insertion", "deletion", "road")
WHOLE, PAGE, RESULTS = "whole", "index.html", "results.json"
SWEEP, PRECISION = "sweep", "precision.csv"
_MOST_NAMED = 20  # refused images in a terminal; --json names all

EXAMPLES = f"""Examples:

  camrt evaluate wsol --images CUB/images --metadata metadata/CUB/test --model cub.onnx --methods cam,gradcam,layercam

  camrt evaluate wsol --images images --csv boxes.csv --model lenetCAM --threshold-sweep --html

  camrt evaluate wsol --images OpenImages --metadata metadata/OpenImages/test --masks masks --model resnet50.onnx

  camrt evaluate wsol --images images --csv boxes.csv --model lenetCAM --metrics boxes,drop,insertion,deletion,road

  camrt evaluate wsol ... --shard 2/4, and when all are done: camrt evaluate wsol ... --merge

Metrics: boxes (MaxBoxAcc, MaxBoxAccV2, GT-known, top-1 and top-5 localization), masks (PxAP), pointing (the pointing
game), drop (average drop and increase in confidence), insertion, deletion, road. docs/wsol.md says how each is counted.

Interrupted or killed, the same command goes on where it stopped; a metric or method that is added is measured alone.
In the folder --out: a journal for each metric and method, {RESULTS}, and what --threshold-sweep and --html write.

Exit status: 0, 1 (it failed, or an image did) or 2 (usage).
"""


def wsol(
    images: Annotated[Path, typer.Option(metavar="DIR", help="Where the images are.")],
    metadata: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Metadata of wsolevaluation: image_ids.txt and three more.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="In its place: image,class,x1,y1,x2,y2, a row a box.")
    ] = None,
    masks: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the masks are, for PxAP.")] = None,
    methods: Annotated[str, typer.Option(metavar="A,B,...", help=f"Of {', '.join(METHODS)}.")] = "cam",
    model: Annotated[str, typer.Option(help="A named model, or an ONNX model.")] = "googlenetCAM",
    protocol: Annotated[
        str,
        typer.Option(
            metavar="|".join((WHOLE, *PROTOCOLS)),
            help="What the network sees of an image; whole: all of it, squeezed to its input.",
        ),
    ] = WHOLE,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help=f"Of {', '.join(GROUPS)}; or all. By default boxes and pointing, or masks, as the data set has them.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(metavar="T", help="Of GT-known, top-1 and top-5 localization; by default the best one."),
    ] = None,
    threshold_sweep: Annotated[
        bool, typer.Option("--threshold-sweep", help=f"Write {SWEEP}.csv and {SWEEP}.png.")
    ] = False,
    resolution: Annotated[
        int, typer.Option(min=16, max=4096, metavar="PIXELS", help="The side of the maps that are compared.")
    ] = 224,
    tolerance: Annotated[float, typer.Option(min=0, metavar="PIXELS", help="Of the pointing game.")] = 15,
    step: Annotated[
        int | None, typer.Option(min=1, metavar="PIXELS", help="Inserted or deleted at a time; by default a row's.")
    ] = None,
    first: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N images.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results go.")] = Path("wsol"),
    shard: Annotated[str, typer.Option(metavar="I/N", help="Do this part of the images only.")] = "1/1",
    merge: Annotated[bool, typer.Option("--merge", help="Count what the shards have done.")] = False,
    provider: Provider = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images at once; by default 1, on CUDA 4.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that find boxes; by default 1, on CUDA up to 8.")
    ] = None,
    html: Annotated[bool, typer.Option("--html", help=f"Write {PAGE}: the worst and the best images.")] = False,
    as_json: Json = False,
) -> None:
    """Compare methods: how well their maps localize, and how faithful they are to the network."""
    chosen = _listed(methods, METHODS, "--methods")
    groups = None if metrics in (None, "all") else _listed(metrics, GROUPS, "--metrics")
    check_choice(protocol, (WHOLE, *PROTOCOLS), "--protocol")
    check_model(model)
    _check_ways(metadata, csv, threshold, shard, merge=merge)
    with reporting(interrupted="what is done is kept; the same command goes on from there"):
        from camrt.evaluate import comparison, tally
        from camrt.evaluate.annotated import read_csv, read_metadata
        from camrt.evaluate.comparison import Measures, Network
        from camrt.evaluate.journal import Shard

        part = Shard.parse(shard)
        data = read_csv(csv) if csv is not None else read_metadata(metadata or "")
        data = data if first is None else type(data)(data.source, data.images[:first])
        wanted = groups or _defaults(data, masks, everything=metrics == "all")
        measures = Measures(tuple(wanted), resolution, tolerance, step, masks)
        comparison.check(data, measures)
        network = Network(model, protocol, provider, batch)
        if not images.is_dir():
            raise CamrtError("there is no such folder, expected one with the images", file=str(images))
        if not merge:
            for method in chosen:
                _measure(data, images, out, network, method, measures, part, workers)
        outcomes = [tally.tally(data, images, out, method, measures.groups, threshold=threshold) for method in chosen]
        if left := max(each.left for each in outcomes):
            _tell_left(part, left, out, merge=merge, as_json=as_json)
            return
        files = _write(outcomes, data, images, out, network, measures, sweep=threshold_sweep, html=html)
        _tell(outcomes, files, as_json)


def _listed(text: str | None, known: Sequence[str], flag: str) -> list[str]:
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in names:
        check_choice(name, known, flag)
    if not names:
        raise typer.BadParameter(f"found nothing, expected some of {', '.join(known)}", param_hint=flag)
    return list(dict.fromkeys(names))


def _check_ways(metadata: Path | None, csv: Path | None, threshold: float | None, shard: str, *, merge: bool) -> None:
    """What must be given, and what does not go together."""
    if (metadata is None) == (csv is None):
        raise typer.BadParameter("name one of both", param_hint="--metadata, --csv")
    if threshold is not None and not 0 <= threshold < 1:
        raise typer.BadParameter(f"found {threshold}, expected 0 <= threshold < 1", param_hint="--threshold")
    if merge and shard != "1/1":
        raise typer.BadParameter("counts all shards: leave out --shard", param_hint="--merge")


def _defaults(data: DataSet, masks: Path | None, *, everything: bool) -> list[str]:
    has = {"boxes": data.has_boxes, "pointing": data.has_boxes, "masks": data.has_masks and masks is not None}
    if everything:
        return [group for group in GROUPS if has.get(group, True)]
    found = [group for group in GROUPS if has.get(group, False)]
    if not found:
        raise CamrtError(
            "found masks and no folder of them, expected one: --masks" if data.has_masks else
            "found images with a box and images without one, expected boxes or masks of all",
            file=data.source,
        )  # fmt: skip
    return found


def _measure(
    data: DataSet,
    images: Path,
    out: Path,
    network: Network,
    method: str,
    measures: Measures,
    part: Any,
    workers: int | None,
) -> None:
    from camrt.commands.evaluate import progress
    from camrt.evaluate import comparison

    say(f"{method}: {', '.join(measures.groups)}")
    left = comparison.measure(
        data, images, out, network, method, measures, shard=part, workers=workers, progress=progress
    )
    here = len(part.of(data.images))
    if here > left:
        say(f"{here - left:,} of {here:,} images were done before")


def _write(
    outcomes: Sequence[Outcome],
    data: DataSet,
    images: Path,
    out: Path,
    network: Network,
    measures: Measures,
    *,
    sweep: bool,
    html: bool,
) -> dict[str, Path]:
    """The files beside the journals."""
    from camrt.evaluate import wsol_report

    files = {"results": out / RESULTS}
    write(files["results"], f"{json_line(_facts(outcomes, {}))}\n".encode())
    if sweep:
        if not outcomes[0].sweep:
            raise CamrtError("found no boxes to sweep thresholds over, expected the metric boxes: --metrics boxes")
        files |= {"sweep": out / f"{SWEEP}.csv", "picture": out / f"{SWEEP}.png"}
        write(files["sweep"], wsol_report.sweep_csv(outcomes).encode())
        write_picture(files["picture"], wsol_report.sweep_picture(outcomes, network.name))
    if sweep and outcomes[0].precision is not None:
        files["precision"] = out / PRECISION
        write(files["precision"], wsol_report.precision_csv(outcomes).encode())
    if html:
        files["page"] = out / PAGE
        write(files["page"], _page(outcomes, data, images, out, network, measures).encode(errors="replace"))
    return files


def _page(
    outcomes: Sequence[Outcome], data: DataSet, images: Path, out: Path, network: Network, measures: Measures
) -> str:
    from camrt.evaluate import comparison, tally, wsol_report

    if "boxes" not in measures.groups:
        raise CamrtError("found no boxes for the page, expected the metric boxes: --metrics boxes")
    overlaps = {each.method: tally.overlaps_at(out, each.method, each.numbers["threshold"]) for each in outcomes}
    shown = wsol_report.worst_and_best(data.images, overlaps)
    wanted = [one.annotated for one in shown]
    explained = {each.method: comparison.explained_again(network, each.method, images, wanted) for each in outcomes}
    note = " · ".join([f"of {len(data):,}", network.name, *([network.protocol] if network.protocol else [])])
    return wsol_report.page(shown, explained, outcomes, side=measures.side, note=note)


def _tell_left(part: Any, left: int, out: Path, *, merge: bool, as_json: bool) -> None:
    """What is said when other shards are not done."""
    if merge:
        raise CamrtError(
            f"says nothing of {left:,} images. Let the shards that are not done go on, with the same command",
            file=str(out),
        )
    if as_json:
        print(json_line({"shard": str(part), "left": left, "out": str(out)}))
    else:
        print(f"shard {part} is done; {left:,} images of other shards are left. When they are done: --merge")


def _facts(outcomes: Sequence[Outcome], files: dict[str, Path]) -> dict[str, Any]:
    return {
        "images": outcomes[0].images,
        "methods": {
            each.method: {
                **each.numbers,
                **({"road": {name: values.tolist() for name, values in each.road.items()}} if each.road else {}),
                "failed": [{"image": name, "reason": reason} for name, reason in each.refused.items()],
            }
            for each in outcomes
        },
        "files": {name: str(path) for name, path in files.items()},
    }


def _tell(outcomes: Sequence[Outcome], files: dict[str, Path], as_json: bool) -> None:
    """The table or the JSON, and the images that failed."""
    if as_json:
        print(json_line(_facts(outcomes, files)))
    else:
        _show(outcomes, files)
    refused = {name: reason for each in outcomes for name, reason in each.refused.items()}
    if refused:
        total = outcomes[0].images
        say(f"error: {len(refused):,} of {total:,} images could not be measured; their boxes count as wrong:")
        for name, reason in list(refused.items())[:_MOST_NAMED]:
            say(f"  {name}: {reason}")
        if len(refused) > _MOST_NAMED:
            say(f"  and {len(refused) - _MOST_NAMED:,} more; --json names them all")
        raise typer.Exit(1)


def _show(outcomes: Sequence[Outcome], files: dict[str, Path]) -> None:
    from rich.table import Table

    from camrt.evaluate import wsol_report

    heads, rows = wsol_report.table(outcomes)
    found = Table(*heads)
    for column in found.columns[1:]:
        column.justify = "right"
    for row in rows:
        found.add_row(*row)
    show(found)
    numbers = outcomes[0].numbers
    notes = [f"{outcomes[0].images:,} images"]
    if "top-1 classification" in numbers:
        notes.append(
            f"classification top-1 {100 * numbers['top-1 classification']:.2f}, "
            f"top-5 {100 * numbers['top-5 classification']:.2f}"
        )
    print("; ".join(notes))
    for path in files.values():
        print(path)
