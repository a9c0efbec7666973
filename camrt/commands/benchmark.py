"""The command `camrt benchmark`: how fast a network is explained on this machine, in each way that it has."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camrt.batch import find_images
from camrt.commands.options import (
    Json,
    MapOptions,
    MaxPixels,
    PresetName,
    Weights,
    check_model,
    expanded,
)
from camrt.commands.output import reporting, show
from camrt.errors import CamrtError
from camrt.results import json_line
from converters.errors import printable
from converters.terminal import amount, bar, echo, say

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray
    from rich.table import Table

    from camrt.measuring import Row

EXAMPLES = """Examples:

  camrt benchmark vgg16CAM photos/

  camrt benchmark resnet50.onnx photos/ --method gradcam --preprocess torchvision --batch 1 --batch 16

  camrt benchmark lenetCAM --quick --json

Each row is measured in a process of its own. Correlation is the lowest one of a map with float32's on the CPU, on the
first images; classes is the share of the explained classes that are the same. The last line is the command to use: the
fastest row whose maps correlate at 0.999 or more, with the same best classes.

Exit status: 0, 1 (it failed, or an image cannot be read) or 2 (usage).
"""
_IMAGES = 8  # that are compared
_BATCHES = (1, 10)


@expanded
def benchmark(
    model: Annotated[str, typer.Argument(help="A named model, or an ONNX model.")],
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IMAGES]...", help="Images, folders, and quoted globs; by default made-up ones."),
    ] = None,
    weights: Weights = None,
    preprocess: PresetName = None,
    *,
    what: MapOptions,
    max_pixels: MaxPixels = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Images at once; may be repeated. By default 1 and 10.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="That compute on the CPU; by default one a physical core.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="How long each row is measured, at least.")] = 2.0,
    quick: Annotated[bool, typer.Option("--quick", help="Each row for 0.2 s.")] = False,
    as_json: Json = False,
) -> None:
    """Measure how fast a network is explained on this machine, by provider, precision and batch."""
    check_model(model, weights)
    asked = what.as_arguments()
    with reporting():
        from camrt.loading import Request, explainer_graph
        from camrt.measuring import contenders, measured

        preset = preprocess.value if preprocess else None
        graph = explainer_graph(model, Request(**asked, preprocess=preset, weights=weights))
        feeds = _feeds(graph, images or (), max_pixels)
        batches = sorted(set(batch or _BATCHES))
        total = len(contenders()) * len(batches)
        rows: list[Row] = []
        with bar("measuring", total, bytes_=False) as advance:
            for row in measured(graph, feeds, batches, seconds=0.2 if quick else seconds, threads=threads):
                rows.append(row)
                advance(1)
        best = _best(rows)
        line = _line(model, preset, weights, what, best)
        if as_json:
            print(json_line({"model": model, **_machine(), "rows": [row.as_dict() for row in rows], "use": line}))
            return
        facts = _machine()
        show(f"{model}: {facts['processor']}, {facts['processors']} processors", _table(rows))
        if not images:
            say("note: the images were made up. Name photographs for a correlation and classes that count")
        echo(line)


def _feeds(
    graph: onnx.ModelProto | Path, patterns: Sequence[str], max_pixels: int | None
) -> Mapping[str, NDArray[Any]]:
    """The inputs of an explainer graph for the first images.

    Raises:
        CamrtError: There are none, or one cannot be read.
    """
    import numpy as np

    from camrt.images import MAX_PIXELS, load
    from converters import metadata

    properties = metadata.of_file(graph) if isinstance(graph, Path) else metadata.of_model(graph)
    facts = metadata.explainer_of(properties) or {}
    size, top = facts["size"], facts["top"]
    if patterns:
        found, missing = find_images(patterns)
        for where, reason in missing:
            raise CamrtError(reason, file=where)
        squares = [load(each.given, size, max_pixels=max_pixels or MAX_PIXELS).square for each in found[:_IMAGES]]
    else:
        squares = [_made_up(size, seed) for seed in range(_IMAGES)]
    feeds: dict[str, NDArray[Any]] = {"image": np.stack(squares)}
    if facts.get("target") in ("input", "any"):
        feeds["target"] = np.tile(np.arange(top, dtype=np.int64), (len(squares), 1))
    if facts.get("explained") == "box":  # the best detections
        feeds["box"] = np.zeros((len(squares), top, 4), np.float32)
        feeds["target"] = np.full((len(squares), top), -1, np.int64)
    return feeds


def _made_up(side: int, seed: int) -> NDArray[Any]:
    """A picture of large, colored structures and some noise: (side, side, 3) uint8."""
    import numpy as np

    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    waves = sum(
        np.sin(a * x[..., None] + b * y[..., None] + phase)
        for a, b, phase in zip(
            generator.uniform(1, 30, 6), generator.uniform(1, 30, 6), generator.uniform(0, 6, (6, 3)), strict=True
        )
    )
    noisy = 128 + 40 * waves + generator.normal(0, 10, (side, side, 3))
    picture: NDArray[Any] = np.clip(noisy, 0, 255).astype(np.uint8)
    return picture


def _best(rows: Sequence[Row]) -> Row | None:
    usable = [row for row in rows if row.milliseconds is not None and row.is_enough]
    return min(usable, key=lambda row: row.milliseconds or 0, default=None)


def _line(model: str, preset: str | None, weights: Path | None, what: MapOptions, best: Row | None) -> str:
    """The command that explains images in the best way."""
    given = {
        "--model": model,
        "--weights": weights,
        "--preprocess": preset,
        "--method": what.method,
        "--protocol": what.protocol.value if what.protocol else None,
        "--top": what.top,
        "--classifier": what.classifier,
        "--scores": what.scores,
        "--background": what.background,
    }
    if best is not None:
        given |= {"--provider": best.provider, "--precision": best.precision, "--batch": best.batch}
    words = [str(word) for name, value in given.items() if value is not None for word in (name, value)]
    repeated = {"--target": what.target, "--layer": what.layer, "--set": what.settings, "--smooth": what.smooth}
    words += [str(word) for name, values in repeated.items() for value in values or () for word in (name, value)]
    return f"camrt explain IMAGES {shlex.join(words)}"


def _machine() -> dict[str, Any]:
    """What the numbers are of."""
    import os
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": next(names, platform.processor() or platform.machine()), "processors": count}


def _table(rows: Sequence[Row]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    heads = ("provider", "precision", "batch", "ms/image", "images/s", "times", "starts in", "peak memory")
    for head in (*heads, "correlation", "classes", ""):
        left = head in ("provider", "precision", "")
        table.add_column(head, justify="left" if left else "right", overflow="fold")
    exact = {row.batch: row.milliseconds for row in rows if (row.provider, row.precision) == ("cpu", "fp32")}
    for row in rows:
        table.add_row(*_cells(row, exact.get(row.batch)))
    return table


def _cells(row: Row, exact: float | None) -> list[str]:
    if row.milliseconds is None:
        return [row.provider, row.precision, *[""] * 8, printable(row.reason)]
    return [
        row.provider,
        row.precision,
        str(row.batch),
        f"{row.milliseconds:.2f}",
        f"{row.images_per_second:.1f}",
        "" if exact is None else f"{exact / row.milliseconds:.2f}",
        f"{row.load_seconds:.2f} s",
        "" if row.peak_bytes is None else amount(row.peak_bytes),
        f"{row.correlation:.5f}",
        f"{row.classes:.0%}",
        "" if row.is_enough else "maps or best classes differ",
    ]
