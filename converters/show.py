"""The command `show`: a network's layers as a table, and as a picture."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from converters.cli import shapes_of
from converters.errors import ConversionError
from converters.terminal import reporting, say

if TYPE_CHECKING:
    import onnx

    from converters.reader import Network
    from converters.survey import Row

EXAMPLES = """Examples:

  camrt show vgg16CAM

  camrt show deploy.prototxt

  camrt show net.caffemodel --plot net.svg

  camrt show train_val.prototxt net.caffemodel --input-shape data=1,3,224,224

  camrt show model.onnx --json

Exit status: 0, 1 (the network cannot be read) or 2 (usage).
"""


def show(
    source: Annotated[Path, typer.Argument(metavar="NAME|PROTOTXT|CAFFEMODEL|ONNX", help="The network to show.")],
    caffemodel: Annotated[
        Path | None, typer.Argument(metavar="[CAFFEMODEL]", help="The weights that go with a prototxt.")
    ] = None,
    input_shape: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT=1,3,H,W", help="An input's shape, where it is to differ or is not known."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the network: .dot, or .svg, .png, .pdf with Graphviz.")
    ] = None,
    phase: Annotated[str, typer.Option(metavar="TEST|TRAIN", help="The phase whose layers are shown.")] = "TEST",
    fork: Annotated[str, typer.Option(metavar="NAME", help="The network's fork of Caffe.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Show the layers of a Caffe network or an ONNX model: name, type, shapes, parameters, operations."""
    with reporting():
        name, inputs, rows = _rows(source, caffemodel, input_shape or [], phase, fork)
        if plot is not None:
            _plot(plot, name, rows, inputs)
        if as_json:
            print(json.dumps({"name": name, "inputs": inputs, "layers": [asdict(row) for row in rows]}))
        else:
            _print(rows)


def _rows(
    source: Path, caffemodel: Path | None, shapes: list[str], phase: str, fork: str
) -> tuple[str, list[str], list[Row]]:
    from converters import survey

    if source.suffix == ".onnx":
        if caffemodel is not None:
            raise typer.BadParameter("goes with a prototxt; an ONNX model holds its weights")
        model = _loaded(source)
        weights = {tensor.name for tensor in model.graph.initializer}
        return (
            model.graph.name,
            [one.name for one in model.graph.input if one.name not in weights],
            survey.of_onnx(model),
        )
    from converters.net import read_net

    net = read_net(_description(source), caffemodel, phase=phase, fork=fork)
    given = shapes_of(shapes)
    unknown = [data for data in net.inputs if data.shape is None and data.name not in given]
    for data in unknown:
        known = f" ({' x '.join(str(size or '?') for size in data.hint)})" if data.hint else ""
        say(f"note: the shape of the input {data.name!r} is not known{known}: give it with --input-shape")
    return net.name, [data.name for data in net.inputs], survey.of_net(net, input_shapes=given)


def _description(source: Path) -> Path | Network:
    """The file, or the prototxt of a named model."""
    if source.exists() or source.suffix or len(source.parts) > 1:
        return source
    from converters import zoo
    from converters.reader import parse_prototxt

    try:
        return parse_prototxt(zoo.find(str(source)).prototxt(), f"{source}.prototxt")
    except ConversionError as error:
        raise typer.BadParameter(str(error)) from None


def _loaded(source: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(source), load_external_data=False)
    except (OSError, DecodeError) as error:
        raise ConversionError(f"cannot be read as an ONNX model: {error}", file=str(source)) from None
    if not model.graph.node:
        raise ConversionError("holds no nodes, expected an ONNX model", file=str(source))
    return model


def _plot(file: Path, name: str, rows: Sequence[Row], inputs: Sequence[str]) -> None:
    """Write the picture; without Graphviz its source, and say so."""
    from converters import survey

    text = survey.dot(name, rows, inputs)
    program = shutil.which("dot")
    try:
        if file.suffix == ".dot" or program is None:
            target = file.with_suffix(".dot")
            target.write_text(text, encoding="utf-8")
            if target != file:
                say(f"note: Graphviz is not installed, so {target} holds the graph; `dot -T{file.suffix[1:]}` draws it")
            return
        format = file.suffix[1:] or "svg"
        drawn = subprocess.run([program, f"-T{format}", "-o", str(file)], input=text, text=True, capture_output=True)
    except OSError as error:
        raise ConversionError(f"cannot be written: {error.strerror or error}", file=str(file)) from None
    if drawn.returncode:
        raise ConversionError(f"Graphviz cannot draw it: {drawn.stderr.strip()[:500]}", file=str(file))


def _print(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    from converters import survey

    table = Table("layer", "type", "output", box=None, pad_edge=False)
    table.add_column("parameters", justify="right")
    table.add_column("multiply-adds", justify="right")
    for row in rows:
        shapes = "\n".join(shape or "?" for shape in row.shapes)
        operations = "?" if row.operations is None else f"{row.operations:,}"
        table.add_row(row.name, row.type + (" (not supported)" if row.problem else ""), shapes,
                      f"{row.parameters:,}", operations)  # fmt: skip
    parameters, multiply_adds = survey.total(rows)
    known = "?" if multiply_adds is None else f"{multiply_adds:,}"
    table.add_row("total", f"{len(rows):,} layers", "", f"{parameters:,}", known)
    Console(highlight=False, markup=False, soft_wrap=True).print(table)
    for row in rows:
        if row.problem:
            say(f"note: {row.name} ({row.type}): {row.problem.splitlines()[0]}")
