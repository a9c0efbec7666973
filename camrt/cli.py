"""The command `camrt`."""

from __future__ import annotations

from typing import Annotated

import typer

from converters.cli import EXAMPLES, convert

app = typer.Typer(
    name="camrt",
    help="Caffe networks to ONNX, and ONNX classifiers to class activation maps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("convert", epilog=EXAMPLES)(convert)


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version and leave.")] = False,
) -> None:
    """Caffe networks to ONNX, and ONNX classifiers to class activation maps."""
    if version:
        from converters import __version__

        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command and leave with its exit status."""
    app()
