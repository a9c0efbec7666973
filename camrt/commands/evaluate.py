"""`camrt evaluate ilsvrc` and `camrt evaluate wsol`: how well maps localize, and how faithful they are."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camrt.commands.options import (
    Json,
    Method,
    PresetName,
    Protocol,
    ProtocolName,
    RuntimeOptions,
    Thresholds,
    Weights,
    check_model,
    expanded,
    listed,
)
from camrt.commands.output import reporting, show, write_picture
from camrt.errors import CamrtError
from camrt.graph.methods import BLACK_BOX, METHODS
from camrt.localize import THRESHOLDS
from camrt.results import json_line, write
from converters.terminal import bar, say

if TYPE_CHECKING:
    from camrt.evaluate.datasets import Dataset
    from camrt.evaluate.ilsvrc_protocol import BoxRule, LocalizationErrors
    from camrt.evaluate.journal import Shard
    from camrt.evaluate.network import Network
    from camrt.evaluate.predictions import Predictions
    from camrt.evaluate.report import Table
    from camrt.evaluate.wsol_protocol import Measures, MethodMetrics

GROUPS = ("boxes", "masks", "pointing", "drop", "insertion", "deletion", "road")
PAGE, RESULTS, SWEEP, PRECISION = "index.html", "results.json", "sweep", "precision.csv"
WHOLE_RUN = "1/1"
_MOST_NAMED = 20  # failed images in a terminal; --json names all
# What is explained, and how: camrt batch has been told.
_OF_IMAGES = (
    "images", "submission", "model", "weights", "preprocess", "method", "methods", "protocol", "provider", "precision",
    "batch", "html",
)  # fmt: skip
_INTERRUPTED = "finished images are kept; the same command continues from there"

ILSVRC_EXAMPLES = f"""Examples:

  camrt evaluate ilsvrc --images ILSVRC2012_img_val --annotations val_bbox --ground-truth ground_truth.txt

  camrt evaluate ilsvrc --images ILSVRC2012_img_val --annotations cache_groundtruth.mat --ground-truth ground_truth.txt
  --meta meta_clsloc.mat --blacklist blacklist.txt --model vgg16CAM --out vgg --html

  camrt evaluate ilsvrc ... --shard 2/4

  camrt evaluate ilsvrc --annotations val_bbox --ground-truth ground_truth.txt --out vgg --merge

  camrt evaluate ilsvrc --annotations val_bbox --ground-truth ground_truth.txt --submission bbox1.txt

  camrt evaluate ilsvrc --annotations val_bbox --ground-truth ground_truth.txt --predictions results

If the command is interrupted or killed, run it again to continue. Processes with --shard 1/4, 2/4, ... share the
images; the last one to finish prints the result, and so does --merge. An image that is missing or broken is named and
counts as wrong. The folder --out gets guesses.jsonl, bbox1.txt, bbox2.txt, bboxCombine.txt, and {PAGE} with --html.

Exit status: 0, 1 (the command or an image failed) or 2 (usage).
"""
WSOL_EXAMPLES = f"""Examples:

  camrt evaluate wsol --images CUB/images --metadata metadata/CUB/test --model cub.onnx --methods cam,gradcam,layercam

  camrt evaluate wsol --images images --csv boxes.csv --model lenetCAM --threshold-sweep --html

  camrt evaluate wsol --images OpenImages --metadata metadata/OpenImages/test --masks masks --model resnet50.onnx

  camrt evaluate wsol --images images --csv boxes.csv --model lenetCAM --metrics boxes,drop,insertion,deletion,road

  camrt evaluate wsol --tiny tiny-imagenet-200 --model tiny.onnx

  camrt evaluate wsol --csv boxes.csv --predictions results

  camrt evaluate wsol ... --shard 2/4, and when all are done: camrt evaluate wsol ... --merge

Metrics: boxes (MaxBoxAcc, MaxBoxAccV2, GT-known, top-1 and top-5 localization), masks (PxAP), pointing (the pointing
game), drop (average drop and increase in confidence), insertion, deletion, road. See docs/wsol.md for definitions.

If the command is interrupted or killed, run it again to continue. A metric or method that is added is measured alone.
The folder --out gets a journal per metric and method, {RESULTS}, and the files of --threshold-sweep and --html.

Exit status: 0, 1 (the command or an image failed) or 2 (usage).
"""


class BoxKind(StrEnum):
    """How boxes are found."""

    DT = "dt"
    THRESHOLD = "threshold"


class Encoding(StrEnum):
    """How maps are encoded before boxes are found in them."""

    JPEG = "jpeg"
    PNG = "png"


@dataclass(frozen=True)
class NetworkOptions:
    """The network."""

    model: Annotated[str, typer.Option(help="A named model, or an ONNX model.")] = "googlenetCAM"
    weights: Weights = None
    preprocess: PresetName = None

    def network(self, protocol: str | None, runtime: RuntimeOptions) -> Network:
        """Return the network for a protocol."""
        from camrt.evaluate.network import Network

        return Network(
            self.model,
            protocol,
            batch=runtime.batch,
            preprocess=self.preprocess.value if self.preprocess else None,
            weights=self.weights,
            **runtime.as_arguments(),
        )


@dataclass(frozen=True)
class RunOptions:
    """How a run is shared between processes, and what it prints."""

    first: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N images.")] = None
    shard: Annotated[str, typer.Option(metavar="I/N", help="Only this part of the images.")] = WHOLE_RUN
    merge: Annotated[bool, typer.Option("--merge", help="Print the result of finished shards.")] = False
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that find boxes; by default 1 or 2, on CUDA up to 8.")
    ] = None
    html: Annotated[bool, typer.Option("--html", help=f"Write {PAGE}: the worst and the best images.")] = False
    as_json: Json = False

    def check(self) -> None:
        """Check that the options go together."""
        if self.merge and self.shard != WHOLE_RUN:
            raise typer.BadParameter("counts all shards: leave out --shard", param_hint="--merge")


@dataclass(frozen=True)
class GroundTruthOptions:
    """The files of an ILSVRC dataset that have defaults."""

    blacklist: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Images that do not count for localization.")
    ] = None
    meta: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The class numbers: meta_clsloc.mat, or lines of a name and a number."),
    ] = None
    names: Annotated[
        Path | None,
        typer.Option("--list", metavar="FILE", help="The image names, in the order of the ground truth."),
    ] = None


@dataclass(frozen=True)
class BoxOptions:
    """How boxes are found in the maps."""

    boxes: Annotated[BoxKind, typer.Option(help="The original's boxes, or those of the rule in the paper.")] = (
        BoxKind.DT
    )
    thresholds: Thresholds = THRESHOLDS
    fraction: Annotated[float, typer.Option(help="Of the maximum, for --boxes threshold.")] = 0.2
    encoding: Annotated[Encoding, typer.Option(help="jpeg: compress maps as the original does.")] = Encoding.JPEG
    heatmaps: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the maps, as top1/NAME.jpg, ...")] = None

    def rule(self) -> BoxRule:
        """Return the rule."""
        from camrt.evaluate.ilsvrc_protocol import BoxRule

        kind, encoding = self.boxes.value, self.encoding.value
        return BoxRule(kind, self.thresholds, self.fraction, encoding, self.heatmaps)  # type: ignore[arg-type]


@dataclass(frozen=True)
class MeasureOptions:
    """What is measured of the maps."""

    masks: Annotated[Path | None, typer.Option(metavar="DIR", help="The mask folder, for PxAP.")] = None
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help=f"Of {', '.join(GROUPS)}; or all. By default boxes and pointing, or masks, depending on the dataset.",
        ),
    ] = None
    threshold: Annotated[
        float | None,
        typer.Option(metavar="T", help="For GT-known, top-1 and top-5 localization; by default the best one."),
    ] = None
    threshold_sweep: Annotated[bool, typer.Option("--threshold-sweep", help=f"Write {SWEEP}.csv and {SWEEP}.png.")] = (
        False
    )
    resolution: Annotated[
        int, typer.Option(min=16, max=4096, metavar="PIXELS", help="The side of the maps that are compared.")
    ] = 224
    tolerance: Annotated[float, typer.Option(min=0, metavar="PIXELS", help="Of the pointing game.")] = 15
    step: Annotated[
        int | None, typer.Option(min=1, metavar="PIXELS", help="Inserted or deleted at a time; by default one row.")
    ] = None

    def check(self) -> None:
        """Check the values that Typer does not."""
        if self.metrics not in (None, "all"):
            listed(self.metrics, GROUPS, "--metrics")
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise typer.BadParameter(f"found {self.threshold}, expected 0 <= threshold < 1", param_hint="--threshold")

    def measures(self, data: Dataset) -> Measures:
        """Return what is measured on a dataset.

        Raises:
            CamrtError: The dataset does not have what the metrics need.
        """
        from camrt.evaluate import wsol_protocol

        is_named = self.metrics not in (None, "all")
        groups = listed(self.metrics, GROUPS, "--metrics") if is_named else self._possible(data)
        measures = wsol_protocol.Measures(tuple(groups), self.resolution, self.tolerance, self.step, self.masks)
        wsol_protocol.check(data, measures)
        return measures

    def _possible(self, data: Dataset) -> list[str]:
        """Return the metrics that the dataset allows: all, or by default those of localization."""
        has_masks = data.has_masks and self.masks is not None
        has = {"boxes": data.has_boxes, "pointing": data.has_boxes, "masks": has_masks}
        found = [group for group in GROUPS if has.get(group, self.metrics == "all")]
        if not found:
            raise CamrtError(
                "found masks and no folder of them, expected one: --masks" if data.has_masks else
                "found images with a box and images without one, expected boxes or masks of all",
                file=data.source,
            )  # fmt: skip
        return found


Predicted = Annotated[
    Path | None,
    typer.Option(
        "--predictions", metavar="DIR", help="Evaluate the results of camrt batch, without images or a model."
    ),
]

app = typer.Typer(name="evaluate", help="Measure how well maps localize.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def evaluate() -> None:
    """Measure how well maps localize."""


# -------------------------------------------------------------------------------------------------------------- ilsvrc


@app.command("ilsvrc", epilog=ILSVRC_EXAMPLES)
@expanded
def ilsvrc(
    context: typer.Context,
    *,
    images: Annotated[Path | None, typer.Option(metavar="DIR", help="The image folder.")] = None,
    annotations: Annotated[
        Path, typer.Option(metavar="DIR|MAT", help="PASCAL VOC XML, one file per image; or cache_groundtruth.mat.")
    ],
    ground_truth: Annotated[Path, typer.Option(metavar="FILE", help="The class of each image, one per line.")],
    truth: GroundTruthOptions,
    choice: NetworkOptions,
    runtime: RuntimeOptions,
    method: Method = None,
    protocol: Protocol = None,
    finding: BoxOptions,
    submission: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Count these predictions, in the devkit's format.")
    ] = None,
    predictions: Predicted = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the results.")] = Path("ilsvrc"),
    running: RunOptions,
) -> None:
    """Measure the localization error as in the paper: five guesses per image, each a class and a box."""
    check_model(choice.model, choice.weights)
    running.check()
    if predictions is not None:
        _check_predictions(context)
    else:
        _check_sources(images, submission, finding.heatmaps, running)
    with reporting(interrupted=_INTERRUPTED):
        from camrt.evaluate import ilsvrc_protocol
        from camrt.evaluate.journal import Shard

        part = Shard.parse(running.shard)
        data = _dataset(annotations, ground_truth, truth, running.first)
        if submission is not None:
            _print_errors(ilsvrc_protocol.count_submission(data, submission), data, {}, running.as_json)
            return
        network = choice.network(protocol.value if protocol else None, runtime)
        rule = finding.rule()
        files = _files(images, data, part) if images is not None else {}
        if not running.merge:
            if predictions is not None:
                _guess_predicted(predictions, data, out, rule, part, running.workers)
            else:
                _guess(files, data, out, network, rule, method, part, running.workers)
            if left := ilsvrc_protocol.missing(data, out):
                _print_left(part, left, out, running.as_json)
                return
        errors = ilsvrc_protocol.count(data, out)
        written = ilsvrc_protocol.write_submissions(errors, out)
        if running.html:
            written["page"] = _error_page(errors, data, files, network, method, out)
        _print_errors(errors, data, written, running.as_json)


def _check_sources(images: Path | None, submission: Path | None, heatmaps: Path | None, running: RunOptions) -> None:
    """Check that the images or a submission are given, and only one of them."""
    if submission is not None and (running.merge or running.html or images is not None):
        raise typer.BadParameter(
            "counts a file alone: leave out --images, --merge and --html", param_hint="--submission"
        )
    if images is None and submission is None and (running.html or not running.merge):
        raise typer.BadParameter("name the folder with the images", param_hint="--images")
    if images is not None and heatmaps is not None and heatmaps.resolve().is_relative_to(images.resolve()):
        raise typer.BadParameter(f"{heatmaps} is in {images}: maps would mix with images", param_hint="--heatmaps")


def _check_predictions(context: typer.Context) -> None:
    """Check that no option is given beside predictions that would have no effect."""
    for name in _OF_IMAGES:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"holds all that is evaluated: leave out --{name}", param_hint="--predictions")


def _dataset(annotations: Path, ground_truth: Path, truth: GroundTruthOptions, first: int | None) -> Dataset:
    from camrt.evaluate.datasets import read_ilsvrc

    total = sum(1 for _ in annotations.iterdir()) if annotations.is_dir() else 0
    with bar("reading annotations", total, bytes_=False) as advance:
        return read_ilsvrc(
            annotations, ground_truth, meta=truth.meta, names=truth.names, blacklist=truth.blacklist, first=first,
            progress=advance,
        )  # fmt: skip


def _files(images: Path, data: Dataset, part: Shard) -> dict[str, Path | None]:
    from camrt.evaluate.datasets import find_images

    found = find_images(images, data.names)
    if len(found) < len(data) and part.number == 1:
        say(f"warning: {images}: {len(data) - len(found):,} of {len(data):,} images are missing; they count as wrong")
    return {name: found.get(name) for name in data.names}


def _guess(
    files: dict[str, Path | None],
    data: Dataset,
    out: Path,
    network: Network,
    rule: BoxRule,
    method: str | None,
    part: Shard,
    workers: int | None,
) -> None:
    from camrt.evaluate import ilsvrc_protocol

    synsets = _synsets(data)
    here = len(part.of(data.names))

    def begin(left: int) -> contextlib.AbstractContextManager[Callable[[int], Any]]:
        _say_done(here - left, here)
        return progress(left)

    if not ilsvrc_protocol.guess(
        files, out, network, rule, method=method, synsets=synsets, shard=part, workers=workers, progress=begin
    ):
        say(f"all {here:,} images were done before")


def _guess_predicted(folder: Path, data: Dataset, out: Path, rule: BoxRule, part: Shard, workers: int | None) -> None:
    from camrt.evaluate import ilsvrc_protocol
    from camrt.evaluate.predictions import Predictions

    synsets = _synsets(data)
    predictions = Predictions.read(folder, data.names, stems=True)
    _say_missing(folder, predictions, data, part)
    ilsvrc_protocol.guess_predicted(
        predictions, out, rule, synsets=synsets, shard=part, workers=workers, progress=progress
    )


def _synsets(data: Dataset) -> Mapping[str, int]:
    """Return the numbers of the classes in the ground truth."""
    if data.synsets is None:
        raise CamrtError(
            "the annotations have numbers, not names, so that the number of each network class is unknown. "
            "Give the devkit's meta_clsloc.mat, or a file with a name and a number per line: --meta"
        )
    return data.synsets


def _say_missing(folder: Path, predictions: Predictions, data: Dataset, part: Shard) -> None:
    if (lacking := len(data) - len(predictions.paths)) and part.number == 1:
        say(f"warning: {folder}: {lacking:,} of {len(data):,} images have no row; they count as wrong")


def _error_page(
    errors: LocalizationErrors,
    data: Dataset,
    files: dict[str, Path | None],
    network: Network,
    method: str | None,
    out: Path,
) -> Path:
    from camrt.evaluate import report
    from camrt.evaluate.ilsvrc import GUESSES
    from camrt.images import as_stored

    explainer = network.explainer_of_best(method, GUESSES)
    note = " · ".join([f"of {len(data):,}", network.name, explainer.method, explainer.protocol])
    text = report.error_page(errors, data, files, lambda path: explainer(as_stored(path)), note=note)
    write(out / PAGE, text.encode(errors="replace"))
    return out / PAGE


def _print_errors(errors: LocalizationErrors, data: Dataset, written: dict[str, Path], as_json: bool) -> None:
    from camrt.evaluate.report import error_table

    if as_json:
        rankings = {
            name: {"localization": found.tolist(), "classification": errors.classification[name].tolist()}
            for name, found in errors.localization.items()
        }
        record = {
            "images": len(data),
            "blacklisted": len(data.blacklist),
            "rankings": rankings,
            "maps": {"without_boxes": errors.without_boxes, "with_one_box": errors.with_one_box},
            "ran": dict(errors.ran),
            "failed": _failed(errors.failures),
            "files": {name: str(path) for name, path in written.items()},
        }
        print(json_line(record))
    else:
        notes = [f"{len(data):,} images"]
        if data.blacklist:
            notes.append(f"{len(data.blacklist):,} of them on the blacklist")
        if errors.without_boxes:
            notes.append(f"{errors.without_boxes:,} maps without a box: the whole image")
        if errors.with_one_box:
            notes.append(f"{errors.with_one_box:,} maps with one box, which is also the second")
        notes += _ran_notes(errors.ran)
        _print_table(error_table(errors), notes, written)
    _exit_with_failures(errors.failures, len(data), "could not be read; they count as wrong")


# ---------------------------------------------------------------------------------------------------------------- wsol


@app.command("wsol", epilog=WSOL_EXAMPLES)
@expanded
def wsol(
    context: typer.Context,
    *,
    images: Annotated[Path | None, typer.Option(metavar="DIR", help="The image folder.")] = None,
    predictions: Predicted = None,
    metadata: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Metadata of wsolevaluation: image_ids.txt and three more.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Instead: image,class,x1,y1,x2,y2, one row per box.")
    ] = None,
    tiny: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Instead: the layout of Tiny ImageNet, images and boxes.")
    ] = None,
    choice: NetworkOptions,
    runtime: RuntimeOptions,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help=f"Of {', '.join((*METHODS, *BLACK_BOX))}. By default cam where the network has its head, "
            "else gradcam.",
        ),
    ] = None,
    protocol: Annotated[
        ProtocolName, typer.Option(help="What the network sees of an image; whole: all of it, resized.")
    ] = ProtocolName.WHOLE,
    measuring: MeasureOptions,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the results.")] = Path("wsol"),
    running: RunOptions,
) -> None:
    """Compare methods: how well their maps localize, and how faithful they are to the network."""
    chosen = [] if methods is None else listed(methods, (*METHODS, *BLACK_BOX), "--methods")
    check_model(choice.model, choice.weights)
    measuring.check()
    running.check()
    if sum(each is not None for each in (metadata, csv, tiny)) != 1:
        raise typer.BadParameter("name one of them", param_hint="--metadata, --csv, --tiny")
    images = images or tiny
    if predictions is not None:
        _check_predictions(context)
    elif images is None:
        raise typer.BadParameter("name the folder with the images", param_hint="--images")
    with reporting(interrupted=_INTERRUPTED):
        from camrt.evaluate.datasets import check_image_folder, read_csv, read_metadata, read_tiny_imagenet
        from camrt.evaluate.journal import Shard
        from camrt.evaluate.wsol_protocol import tally

        part = Shard.parse(running.shard)
        if tiny is not None:
            everything = read_tiny_imagenet(tiny)
        else:
            everything = read_csv(csv) if csv is not None else read_metadata(metadata or "")
        data = everything.first(running.first)
        measures = measuring.measures(data)
        network = choice.network(protocol.value, runtime)
        if predictions is not None:
            chosen = [_measure_predicted(data, predictions, out, measures, part, running)]
        elif images is not None:
            check_image_folder(images)
            chosen = chosen or [network.explainer_of_label(None).method]
            for method in [] if running.merge else chosen:
                _measure(data, images, out, network, method, measures, part, running.workers)
        found = [tally(data, images, out, each, measures.groups, threshold=measuring.threshold) for each in chosen]
        if left := max(each.left for each in found):
            if running.merge:
                raise CamrtError(f"has no result for {left:,} images. Finish their shards with the same command",
                                 file=str(out))  # fmt: skip
            _print_left(part, left, out, running.as_json)
            return
        written = _write_results(found, out)
        if measuring.threshold_sweep:
            written |= _write_sweep(found, out, network.name)
        if running.html and images is not None:
            written["page"] = _comparison_page(found, data, images, out, network, measures)
        _print_metrics(found, written, running.as_json)


def _measure(
    data: Dataset,
    images: Path,
    out: Path,
    network: Network,
    method: str,
    measures: Measures,
    part: Shard,
    workers: int | None,
) -> None:
    from camrt.evaluate import wsol_protocol

    say(f"{method}: {', '.join(measures.groups)}")
    left = wsol_protocol.measure(
        data, images, out, network, method, measures, shard=part, workers=workers, progress=progress
    )
    here = len(part.of(data.images))
    _say_done(here - left, here)


def _measure_predicted(
    data: Dataset, folder: Path, out: Path, measures: Measures, part: Shard, running: RunOptions
) -> str:
    """Measure the maps of a folder of camrt batch. Returns their method."""
    from camrt.evaluate import wsol_protocol
    from camrt.evaluate.predictions import Predictions

    predictions = Predictions.read(folder, data.names, stems=False)
    if not running.merge:
        _say_missing(folder, predictions, data, part)
        wsol_protocol.measure_predicted(
            data, predictions, out, measures, shard=part, workers=running.workers, progress=progress
        )
    return predictions.method


def _write_results(found: Sequence[MethodMetrics], out: Path) -> dict[str, Path]:
    write(out / RESULTS, f"{json_line(_metric_record(found, {}))}\n".encode())
    return {"results": out / RESULTS}


def _write_sweep(found: Sequence[MethodMetrics], out: Path, title: str) -> dict[str, Path]:
    """Write the accuracies over the thresholds, and precision and recall of masks."""
    from camrt.evaluate import report

    if not found[0].sweep:
        raise CamrtError("found no boxes to sweep thresholds over, expected the metric boxes: --metrics boxes")
    files = {"sweep": out / f"{SWEEP}.csv"}
    write(files["sweep"], report.sweep_csv(found).encode())
    try:
        picture = report.sweep_picture(found, title)
    except ImportError:
        say(f"note: {SWEEP}.png was not drawn: that takes matplotlib (pip install matplotlib)")
    else:
        files["picture"] = out / f"{SWEEP}.png"
        write_picture(files["picture"], picture)
    if found[0].precision is not None:
        files["precision"] = out / PRECISION
        write(files["precision"], report.precision_csv(found).encode())
    return files


def _comparison_page(
    found: Sequence[MethodMetrics], data: Dataset, images: Path, out: Path, network: Network, measures: Measures
) -> Path:
    from camrt.evaluate import report, wsol_protocol

    if "boxes" not in measures.groups:
        raise CamrtError("found no boxes for the page, expected the metric boxes: --metrics boxes")
    overlaps = {each.method: wsol_protocol.overlaps_at(out, each.method, each.numbers["threshold"]) for each in found}
    shown = report.compared_images(data.images, overlaps)
    wanted = [one.annotated for one in shown]
    explained = {each.method: wsol_protocol.explained_again(network, each.method, images, wanted) for each in found}
    note = " · ".join([f"of {len(data):,}", network.name, *([network.protocol] if network.protocol else [])])
    text = report.comparison_page(shown, explained, found, side=measures.side, note=note)
    write(out / PAGE, text.encode(errors="replace"))
    return out / PAGE


def _metric_record(found: Sequence[MethodMetrics], written: dict[str, Path]) -> dict[str, Any]:
    return {
        "images": found[0].images,
        "methods": {
            each.method: {
                **each.numbers,
                **({"road": {name: values.tolist() for name, values in each.road.items()}} if each.road else {}),
                "ran": dict(each.ran),
                "failed": _failed(each.failures),
            }
            for each in found
        },
        "files": {name: str(path) for name, path in written.items()},
    }


def _print_metrics(found: Sequence[MethodMetrics], written: dict[str, Path], as_json: bool) -> None:
    from camrt.evaluate.report import metric_table

    if as_json:
        print(json_line(_metric_record(found, written)))
    else:
        numbers = found[0].numbers
        notes = [f"{found[0].images:,} images"]
        if "top-1 classification" in numbers:
            notes.append(
                f"classification top-1 {100 * numbers['top-1 classification']:.2f}, "
                f"top-5 {100 * numbers['top-5 classification']:.2f}"
            )
        notes += _ran_notes({name: number for each in found for name, number in each.ran.items()})
        _print_table(metric_table(found), notes, written)
    failures = {name: reason for each in found for name, reason in each.failures.items()}
    _exit_with_failures(failures, found[0].images, "could not be measured; their boxes count as wrong")


# ---------------------------------------------------------------------------------------------------------------- both


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[int], Any]]:
    """Show a progress bar in a terminal; elsewhere, print one line per minute with the time left."""
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


def _say_done(done: int, here: int) -> None:
    if done:
        say(f"{done:,} of {here:,} images were done before")


def _print_left(part: Shard, left: int, out: Path, as_json: bool) -> None:
    """Say that other shards are not done."""
    if as_json:
        print(json_line({"shard": str(part), "left": left, "out": str(out)}))
    else:
        print(f"shard {part} is done; {left:,} images of other shards are left. When they are done: --merge")


def _print_table(table: Table, notes: Sequence[str], written: Mapping[str, Path]) -> None:
    from rich.table import Table as RichTable

    shown = RichTable(*table.heads)
    for column in shown.columns[1:]:
        column.justify = "right"
    for row in table.rows:
        shown.add_row(*row)
    show(shown)
    print("; ".join(notes))
    for path in written.values():
        print(path)


def _ran_notes(ran: Mapping[str, int]) -> list[str]:
    """What ran the network, where it was not float32 on one provider alone."""
    names = sorted(ran)
    return [] if len(names) < 2 and all(name.endswith(" fp32") for name in names) else [f"by {', '.join(names)}"]


def _failed(failures: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"image": name, "reason": reason} for name, reason in failures.items()]


def _exit_with_failures(failures: Mapping[str, str], total: int, what: str) -> None:
    """Name the images that failed, and exit with status 1 if there are any."""
    if not failures:
        return
    say(f"error: {len(failures):,} of {total:,} images {what}:")
    for name, reason in list(failures.items())[:_MOST_NAMED]:
        say(f"  {name}: {reason}")
    if len(failures) > _MOST_NAMED:
        say(f"  and {len(failures) - _MOST_NAMED:,} more; --json names them all")
    raise typer.Exit(1)
