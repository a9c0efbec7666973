"""The command `convert`, run by `scripts/convert.py` and `camrt convert`."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from converters.errors import ConversionError, ConversionWarning, printable
from converters.provenance import Provenance
from converters.terminal import amount, bar, reporting, run, say, table

if TYPE_CHECKING:
    from converters.conversion import Converted
    from converters.net import Net
    from converters.survey import Row
    from converters.verification import Report

LONG_WORK = 32 << 20  # bytes; writing more than this shows a bar

EXAMPLES = """Examples:

  camrt convert vgg16CAM

  camrt convert vgg16CAM --weights vgg16CAM_train_iter_90000.caffemodel -o vgg16CAM.onnx

  camrt convert deploy.prototxt net.caffemodel -o net.onnx --verify

  camrt convert train_val.prototxt net.caffemodel --input-shape data=1,3,256,256 --outputs fc7,prob

  camrt convert deploy.prototxt net.caffemodel --plugin my_layers.py

Exit status: 0, 1 (the conversion or the verification failed) or 2 (usage).
"""


@dataclass(frozen=True)
class _Task:
    """What to convert, and where to."""

    description: str | Path  # a prototxt's or caffemodel's path, or the text of a named model's prototxt
    weights: Path | None
    output: Path
    name: str | None = None
    properties: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """The files that the model comes from."""
        paths = (self.description if isinstance(self.description, Path) else None, self.weights)
        return [str(path) for path in paths if path is not None]


def convert(
    source: Annotated[
        str,
        typer.Argument(metavar="NAME|PROTOTXT|CAFFEMODEL", help="A named model, a prototxt, or a caffemodel alone."),
    ],
    caffemodel: Annotated[
        Path | None, typer.Argument(metavar="[CAFFEMODEL]", help="The weights that go with a prototxt.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The model to write; by default SOURCE.onnx in this folder.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="The weights of a named model, in place of the cache and the download.")
    ] = None,
    input_shape: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT=1,3,H,W", help="An input's shape, where it is to differ or is not known."),
    ] = None,
    outputs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BLOB[,BLOB...]", help="The blobs to return, or all; by default those that no layer reads."
        ),
    ] = None,
    opset: Annotated[int, typer.Option(help="The version of ONNX's operator set, 13 or later.")] = 17,
    phase: Annotated[str, typer.Option(metavar="TEST|TRAIN", help="The phase whose layers are converted.")] = "TEST",
    level: Annotated[int, typer.Option(help="Caffe's NetState.level.")] = 0,
    fork: Annotated[
        str,
        typer.Option(metavar="NAME", help="The network's fork of Caffe, where a layer has two meanings."),
    ] = "",
    ignore_unknown: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD", help="An unknown field of a layer to ignore; may be given again."),
    ] = None,
    stage: Annotated[list[str] | None, typer.Option(help="One of Caffe's NetState.stage; may be given again.")] = None,
    plugin: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE.py", help="A file that registers handlers for further layers; may be given again."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be converted and what is missing; write nothing.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every output on random input with OpenCV 4's importer.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Convert a Caffe network to an ONNX model that answers as Caffe does."""
    began = time.perf_counter()
    with reporting():
        task = _task(source, caffemodel, weights, output, dry=dry_run)
        shapes = shapes_of(input_shape or [])
        if any(Path(file).exists() and task.output.exists() and task.output.samefile(file) for file in task.files):
            raise typer.BadParameter(f"{task.output} is one of the files to convert", param_hint="--output")
        if dry_run:
            _dry_run(
                task, plugin or [], (phase, level, stage or [], fork), shapes, ignore_unknown or [], as_json=as_json
            )
            return
        named = [name for group in outputs or [] for name in group.split(",") if name] or None
        wanted = "all" if named == ["all"] else named
        say(f"converting {_described(task)}")
        with Provenance(task.files, _memory()) as provenance:  # hashes beside everything that follows
            from converters import registry

            for file in plugin or []:
                registry.load_plugin(file)
            net = _read(task, phase, level, stage or [], fork)
            converted = _built(net, shapes, outputs=wanted, opset=opset, ignore_unknown=ignore_unknown or ())
            for note in converted.notes:
                warnings.warn(note, ConversionWarning, stacklevel=1)
            size = _write(task, converted, provenance)
        seconds = time.perf_counter() - began
        report = _verified(task, converted) if verify else None
        _show(task, converted, size, seconds, report, as_json=as_json)
        if report is not None and report.disagrees:
            raise typer.Exit(1)


# ---------------------------------------------------------------------------------------------------- the command line


def _task(
    source: str, caffemodel: Path | None, weights: Path | None, output: Path | None, *, dry: bool = False
) -> _Task:
    path = Path(source)
    if path.exists() or path.suffix or len(path.parts) > 1:
        if weights is not None:
            raise typer.BadParameter("goes with a named model; with a prototxt the weights are the second argument")
        return _Task(path, caffemodel, output or Path(f"{(caffemodel or path).stem.removesuffix('.caffemodel')}.onnx"))
    if caffemodel is not None:
        raise typer.BadParameter(f"{source!r} is no file; with a named model the weights are --weights FILE")
    return _named(source, weights, output, dry=dry)


def _named(name: str, weights: Path | None, output: Path | None, *, dry: bool = False) -> _Task:
    from converters import zoo

    try:
        model = zoo.find(name)
    except ConversionError as error:
        raise typer.BadParameter(str(error)) from None
    if dry:  # no download
        return _Task(model.prototxt(), weights, output or Path(f"{model.name}.onnx"), model.name)
    properties = zoo.metadata_of(model, note=lambda text: say(f"note: {text}"))
    file = zoo.weights(model, weights)
    return _Task(model.prototxt(), file, output or Path(f"{model.name}.onnx"), model.name, properties)


def _memory() -> Path:
    """The file that caches checksums."""
    from converters import zoo

    return zoo.cache_folder() / "digests.json"


def shapes_of(given: list[str]) -> dict[str, tuple[int, ...]]:
    """The shapes of ``--input-shape``."""
    shapes = {}
    for text in given:
        name, _, sizes = text.rpartition("=")
        try:
            shapes[name] = tuple(int(size) for size in sizes.replace("x", ",").split(","))
        except ValueError:
            name = ""
        if not name:
            raise typer.BadParameter(f"found --input-shape {text!r}, expected it as data=1,3,224,224")
    return shapes


def _described(task: _Task) -> str:
    parts = [task.name] if task.name else []
    parts += [f"{Path(file).name} ({amount(Path(file).stat().st_size)})" for file in task.files if Path(file).exists()]
    return " + ".join(parts) or str(task.description)


# ------------------------------------------------------------------------------------------------------------ the work


def _read(task: _Task, phase: str, level: int, stages: list[str], fork: str) -> Net:
    from converters.net import read_net
    from converters.reader import parse_prototxt

    description: Any = task.description
    if isinstance(description, str):
        description = parse_prototxt(description, f"{task.name}.prototxt")
    return read_net(description, task.weights, phase=phase, level=level, stages=stages, fork=fork)


def _built(net: Net, shapes: Mapping[str, Sequence[int]], **options: Any) -> Converted:
    """Build the graph, with the options of `conversion.build`. If the given shapes are the reason, an error says so.

    A shape that does not fit shows late, as weights of another shape or a kernel larger than its image.
    """
    from converters import conversion

    try:
        return conversion.build(net, input_shapes=shapes, **options)
    except ConversionError as error:
        declared = {data.name: data.shape for data in net.inputs}
        changed = [name for name, sizes in shapes.items() if declared.get(name, sizes) != sizes]
        if not changed or not declared.keys() >= shapes.keys():
            raise
        given = " and ".join(_as_option(name, shapes[name]) for name in changed)
        if None in (declared[name] for name in changed):
            hint = f"The description does not say the input's shape: it was --input-shape {given}"
            raise error.with_hint(hint) from None
        try:
            conversion.build(net, **options)
        except ConversionError:
            raise error from None  # it fails either way
        takes = " and ".join(_as_option(name, declared[name] or ()) for name in changed)
        where = f"layer {error.layer}: " if error.layer else ""
        raise ConversionError(
            f"--input-shape {given} does not fit the network, which takes {takes} by its description: "
            f"{where}{error.message}",
            file=error.file,
        ) from None


def _as_option(name: str, shape: Sequence[int]) -> str:
    return f"{name}={','.join(map(str, shape))}"


def _dry_run(
    task: _Task,
    plugins: list[Path],
    state: tuple[str, int, list[str], str],
    shapes: dict[str, tuple[int, ...]],
    ignored: list[str],
    *,
    as_json: bool,
) -> None:
    """Print what would become of each layer; leave with status 1 if something is missing.

    Weights need not be there. An input whose shape is not known is no obstacle: the layers behind it have no shapes.
    """
    from converters import registry, survey

    for file in plugins:
        registry.load_plugin(file)
    net = _read(task, *state)
    rows = survey.of_net(net, input_shapes=shapes, ignore_unknown=ignored)
    open_inputs = [data.name for data in net.inputs if data.shape is None and data.name not in shapes]
    problems = [row for row in rows if row.problem]
    parameters, operations = survey.total(rows)
    if as_json:
        record = {"layers": [asdict(row) for row in rows], "parameters": parameters, "operations": operations}
        print(json.dumps({**record, "unknown_inputs": open_inputs, "convertible": not problems and not open_inputs}))
    else:
        _show_dry_run(net, rows, open_inputs)
    if problems or open_inputs:
        raise typer.Exit(1)


def _show_dry_run(net: Net, rows: list[Row], open_inputs: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("layer", "type", "from", "becomes", "output", box=None, pad_edge=False)
    for row in rows:
        becomes = "MISSING" if row.problem else " ".join(row.becomes) or "?"
        table.add_row(row.name, row.type, row.origin, becomes, "\n".join(shape or "?" for shape in row.shapes))
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    problems = [row for row in rows if row.problem]
    for row in problems:
        console.print(f"{printable(row.name)} ({printable(row.type)}): {row.problem}")
    if problems and net.origin:
        console.print(net.origin)
    for name in open_inputs:
        console.print(f"the shape of the input {name!r} is not known: give it with --input-shape {name}=1,3,H,W")
    verdict = f"{len(rows) - len(problems):,} of {len(rows):,} layers can be converted"
    console.print(verdict + ("; nothing was written" if problems or open_inputs else ": the network converts"))


def _write(task: _Task, converted: Converted, provenance: Provenance) -> int:
    from converters import model

    total = converted.draft.graph.bytes_of_weights()
    with bar(f"writing {task.output.name}", total if total > LONG_WORK else 0) as advance:

        def properties() -> dict[str, str]:
            import rich.console
            import rich.table  # noqa: F401 - what the report needs, loaded while the hashing goes on

            return {**provenance.properties(), **converted.metadata, **task.properties}

        return model.write(converted.draft, task.output, properties, advance=advance)


def _verified(task: _Task, converted: Converted) -> Report:
    from converters import verification

    say("verifying against OpenCV's importer")
    return verification.against_opencv(task.output, converted.net, task.description, task.weights)


# ----------------------------------------------------------------------------------------------------------- reporting


def _show(
    task: _Task, converted: Converted, size: int, seconds: float, report: Report | None, *, as_json: bool
) -> None:
    record = _record(task, converted, size, seconds)
    if as_json:
        verified = None if report is None else report.as_dict()
        print(json.dumps({**record, "verified": verified}))
        return
    from rich.console import Console

    rows = {
        "model": record["output"],
        "inputs": record["inputs"],
        "outputs": record["outputs"],
        "layers": f"{record['layers']:,} as {record['nodes']:,} nodes",
        "parameters": f"{record['parameters']:,}",
        "opset": str(record["opset"]),
        "size": amount(size),
        "time": f"{seconds:.2f} s",
    }
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(table(rows))
    if report is not None:
        console.print(report.as_table())


def _record(task: _Task, converted: Converted, size: int, seconds: float) -> dict[str, Any]:
    graph = converted.draft.graph
    names = graph.axis_names()

    def described(tensor: str) -> str:
        dims = (str(dim) if isinstance(dim, int) else graph.dim_name(dim, names) for dim in graph.shape(tensor))
        return f"{tensor} ({' x '.join(dims)})"

    return {
        "output": str(task.output),
        "inputs": [described(name) for name in graph.inputs],
        "outputs": [described(name) for name in converted.draft.outputs],
        "layers": len(converted.net.layers),
        "nodes": len(graph.nodes),
        "parameters": sum(math.prod(blob.shape) for layer in converted.net.layers for blob in layer.blobs),
        "opset": graph.opset,
        "bytes": size,
        "seconds": round(seconds, 3),
    }


def app() -> typer.Typer:
    """The command as an application of its own."""
    application = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    application.command("convert", epilog=EXAMPLES)(convert)
    return application


def main() -> None:
    """Run the command and leave with its exit status."""
    run(app(), "convert")
