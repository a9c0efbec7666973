"""The command `camrt`: its commands are those of `camrt.commands`, and `convert` of `converters.cli`.

What is imported here is imported for ``camrt --help`` too: no NumPy, no ONNX. Each command loads what it needs.
"""

from __future__ import annotations

from typing import Annotated

import typer

from camrt.commands import (
    batch,
    bbox,
    benchmark,
    compare,
    concepts,
    data,
    demo,
    evaluate,
    explain,
    export,
    finetune,
    models,
    sanity,
    serve,
    surgery,
    train,
    validate,
    web,
)
from converters import cli as converters_cli
from converters import show as converters_show
from converters.terminal import run

app = typer.Typer(
    name="camrt",
    help="Caffe networks to ONNX, and ONNX classifiers to class activation maps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from converters import __version__

        print(f"camrt {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Caffe networks to ONNX, and ONNX classifiers to class activation maps."""


app.command("convert", epilog=converters_cli.EXAMPLES)(converters_cli.convert)
app.command("show", epilog=converters_show.EXAMPLES)(converters_show.show)
app.add_typer(data.app, name="data")
app.command("demo", epilog=demo.EXAMPLES)(demo.demo)
app.command("batch", epilog=batch.EXAMPLES)(batch.batch)
app.command("bbox", epilog=bbox.EXAMPLES)(bbox.bbox)
app.command("benchmark", epilog=benchmark.EXAMPLES)(benchmark.benchmark)
evaluate.app.command("sanity", epilog=sanity.EXAMPLES)(sanity.sanity)
app.add_typer(evaluate.app, name="evaluate")
app.command("compare", epilog=compare.EXAMPLES)(compare.compare)
app.command("concepts", epilog=concepts.EXAMPLES)(concepts.concepts)
app.command("explain", epilog=explain.EXAMPLES)(explain.explain)
app.command("models", epilog=models.MODELS_EXAMPLES)(models.models)
app.command("download", epilog=models.DOWNLOAD_EXAMPLES)(models.download)
app.command("export", epilog=export.EXAMPLES)(export.export)
app.command("serve", epilog=serve.EXAMPLES)(serve.serve)
app.command("train", epilog=train.EXAMPLES)(train.train)
app.command("finetune", epilog=finetune.EXAMPLES)(finetune.finetune)
app.command("surgery", epilog=surgery.EXAMPLES)(surgery.surgery)
app.command("validate", epilog=validate.EXAMPLES)(validate.validate)
app.command("web", epilog=web.EXAMPLES)(web.web)


def main() -> None:
    """Run the command and leave with its exit status."""
    run(app, "camrt")
