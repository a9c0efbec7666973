"""The command `camrt batch`: many images, on Ray, into Parquet files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camrt.batch import MAX_SIDE
from camrt.commands.options import (
    STATUS,
    Json,
    Labels,
    MapOptions,
    MaxPixels,
    MaxSide,
    PreprocessOptions,
    RuntimeOptions,
    StyleOptions,
    Weights,
    check_model,
    expanded,
    read_labels,
)
from camrt.commands.output import reporting
from camrt.errors import CamrtError
from camrt.results import json_line
from converters.errors import install
from converters.terminal import bar, echo, say

if TYPE_CHECKING:
    from camrt.cluster.inputs import Selection
    from camrt.cluster.job import Job
    from camrt.cluster.run import Outcome, Resources

SHARD_SIZE = 512  # as `camrt.cluster.run.SHARD_SIZE`, which loads NumPy
_GPU_PROVIDERS = ("cuda", "tensorrt")

EXAMPLES = f"""Examples:

  camrt batch photos/ --model explainer.onnx --out results

  camrt batch s3://bucket/photos --model vgg16CAM --out /shared/results --address auto --actors 4:16
  --gpus-per-actor 1 --batch 16

  camrt batch 'data/train-*.parquet' --column image --model resnet50.onnx --preprocess torchvision --map-side 64

  camrt batch boxes.csv --root images --target-column class --model lenetCAM --out results

INPUT is an image, a folder, a quoted glob, a list of paths (.txt, .lst, .list), a Parquet or CSV file with paths, a
Parquet file with the bytes of images, or the URL of one of these or of a folder: s3://, gs://, abfs://, file://.

The folder --out gets shard-*.parquet, a row for each image with classes, labels, scores, boxes and heatmaps, or with
the reason why there are none; _explainer.onnx, the graph that computed them; and with --overlays pictures. Interrupted
or killed and started again, it goes on where it stopped. camrt evaluate reads the folder: --predictions.

{STATUS}
"""


@dataclass(frozen=True)
class InputOptions:
    """What is read of lists and tables."""

    column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The column of the paths or bytes in Parquet and CSV files; by default path, "
                     "image, file, ..., the first that is there."),
    ] = None  # fmt: skip
    target_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The column of the class to explain in each image, by number or name."),
    ] = None
    root: Annotated[
        str | None,
        typer.Option(metavar="DIR|URL", help="Where relative paths begin; by default the folder of the list."),
    ] = None

    def selection(self) -> Selection:
        """Return what is read."""
        from camrt.cluster.inputs import Selection

        return Selection(self.column, self.target_column, self.root)


@dataclass(frozen=True)
class ResultOptions:
    """What is written for each image."""

    overlays: Annotated[bool, typer.Option("--overlays", help="Write the overlays as pictures.")] = False
    map_side: Annotated[
        int | None,
        typer.Option(min=1, metavar="PIXELS", help="The side of the heatmaps; by default that of the explainer."),
    ] = None
    shard_size: Annotated[int, typer.Option(min=1, metavar="N", help="Images per file.")] = SHARD_SIZE
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Explain images again whose row has an error.")
    ] = False
    as_stored: Annotated[
        bool, typer.Option("--as-stored", help="Ignore the EXIF orientation, as annotated boxes and camrt evaluate do.")
    ] = False


@dataclass(frozen=True)
class ClusterOptions:
    """Where the workers run."""

    address: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="A Ray cluster: auto, HOST:PORT; by default Ray on this machine."),
    ] = None
    actors: Annotated[
        str,
        typer.Option(metavar="N|MIN:MAX", help="Workers, each with an explainer of its own."),
    ] = "1"  # fmt: skip
    gpus_per_actor: Annotated[
        float | None, typer.Option(min=0, metavar="N", help="By default 1 with --provider cuda, else 0; may be 0.5.")
    ] = None
    cpus_per_actor: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="By default an equal share of this machine, or 1 on a cluster."),
    ] = None

    def resources(self, provider: str | None) -> Resources:
        """Return where the workers run.

        Raises:
            typer.BadParameter: The number of actors has another form.
        """
        from camrt.cluster.run import Resources

        gpus = self.gpus_per_actor
        if gpus is None:
            gpus = 1 if provider in _GPU_PROVIDERS else 0
        return Resources(self.address, self.range(), gpus, self.cpus_per_actor)

    def range(self) -> tuple[int, int]:
        """Parse the number of actors.

        Raises:
            typer.BadParameter: It has another form.
        """
        least, colon, most = self.actors.partition(":")
        numbers = [int(part) if part.isdecimal() else 0 for part in ((least, most) if colon else (least, least))]
        if not 1 <= numbers[0] <= numbers[1]:
            raise typer.BadParameter(f"found {self.actors!r}, expected N or MIN:MAX, as 1:4", param_hint="--actors")
        return numbers[0], numbers[1]


@expanded
def batch(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Images, folders, globs, lists, tables, URLs.")
    ],
    model: Annotated[str, typer.Option(help="A named model, or an ONNX model.")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder of the results; on a cluster one that all share.")
    ],
    weights: Weights = None,
    labels: Labels = None,
    *,
    reading: InputOptions,
    wants: PreprocessOptions,
    what: MapOptions,
    writing: ResultOptions,
    drawn: StyleOptions,
    max_side: MaxSide = MAX_SIDE,
    max_pixels: MaxPixels = None,
    runtime: RuntimeOptions,
    cluster: ClusterOptions,
    as_json: Json = False,
) -> None:
    """Explain millions of images, on one machine or a cluster, into Parquet files."""
    check_model(model, weights)
    wants.check()
    cluster.range()
    asked = what.as_arguments()
    if reading.target_column is not None:
        if asked["target"] is not None:
            raise typer.BadParameter("a class comes with each image: leave out --target", param_hint="--target-column")
        asked |= {"target": "input", "top": asked["top"] or 1}
    elif asked["target"] == "input":
        raise typer.BadParameter("name the column of the classes: --target-column", param_hint="--target")
    outcome = _outcome()
    with reporting(interrupted=lambda: _progress(outcome)), _ray_installed():
        from camrt.cluster import inputs as finding
        from camrt.cluster.job import GRAPH, Job, graph_of
        from camrt.cluster.run import run
        from camrt.loading import Request

        found, missing = finding.find(inputs, reading.selection(), but=out)
        for where, reason in missing:
            say(f"error: {where}: {reason}")
        if not len(found):
            raise typer.Exit(1)
        request = Request(**asked, preprocess=wants.preprocessing(model), labels=read_labels(labels), weights=weights)
        graph, sha256, stated = graph_of(model, request)
        job = Job(
            folder=out.absolute(),
            graph=out / GRAPH,
            sha256=sha256,
            model=model,
            stated=stated,
            style=drawn.style(),
            overlays=writing.overlays,
            map_side=writing.map_side,
            max_side=max_side or None,
            max_pixels=max_pixels,
            as_stored=writing.as_stored,
            engine=runtime.as_arguments(),
            batch=runtime.batch,
        )
        run(
            job,
            graph,
            found,
            cluster.resources(runtime.provider),
            outcome,
            shard_size=writing.shard_size,
            retry_errors=writing.retry_errors,
            progress=lambda total: bar("explaining", total, bytes_=False),
        )
        _report(job, outcome, missing, as_json)


def _outcome() -> Outcome:
    from camrt.cluster.run import Outcome

    return Outcome()


@contextlib.contextmanager
def _ray_installed() -> Iterator[None]:
    """Say what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("ray", "pyarrow"):
            raise
        raise CamrtError(f"{error.name} is not installed: {install('ray[data]')}") from error


def _report(job: Job, outcome: Outcome, missing: list[tuple[str, str]], as_json: bool) -> None:
    if as_json:
        record: dict[str, Any] = {
            "out": str(job.folder),
            "images": outcome.total,
            "explained": outcome.explained,
            "skipped": outcome.skipped,
            "failed": outcome.failed,
            "failures": [{"image": path, "reason": reason} for path, reason in outcome.failures],
            "missing": [{"input": where, "reason": reason} for where, reason in missing],
            "seconds": round(outcome.seconds, 3),
        }
        print(json_line(record))
    else:
        rate = f" at {outcome.explained / outcome.seconds:,.1f} images per second" if outcome.seconds else ""
        before = f", {outcome.skipped:,} were done before" if outcome.skipped else ""
        echo(f"{outcome.explained:,} explained{rate}{before}: {job.folder}")
    if outcome.failed:
        say(
            f"error: {outcome.failed:,} of {outcome.total:,} images could not be explained; their rows have the reason:"
        )
        for path, reason in outcome.failures:
            say(f"  {path}: {reason}")
        if outcome.failed > len(outcome.failures):
            say(f"  and {outcome.failed - len(outcome.failures):,} more; --retry-errors tries them again")
    if outcome.failed or missing:
        raise typer.Exit(1)


def _progress(outcome: Outcome) -> str:
    """Say what is true after an interruption."""
    if not outcome.total:
        return "nothing was explained"
    done = outcome.explained + outcome.skipped
    return f"{done:,} of {outcome.total:,} images are done; the same command goes on from there"
