"""`camrt models` and `camrt download`: the named models, and their weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from camrt.commands.options import STATUS, Json, named
from camrt.commands.output import reporting, show
from camrt.results import json_line
from converters.terminal import amount, say_error

MODELS_EXAMPLES = f"""Examples:

  camrt models

  camrt models --json | jq -r '.[] | select(.downloaded) | .name'

{STATUS}
"""


def models(as_json: Json = False) -> None:
    """List the named models."""
    with reporting():
        facts = _listing()
        if as_json:
            print(json_line(facts))
            return
        from rich.table import Table

        from converters import zoo

        table = Table(box=None, pad_edge=False)
        table.add_column("name", no_wrap=True)
        for column in ("trained on", "input", "maps", "weights"):
            table.add_column(column)
        for one in facts:
            names = "\n".join([one["name"], *one["aliases"]])
            weights = (
                "with camrt"
                if one["bundled"]
                else "downloaded"
                if one["downloaded"]
                else f"{amount(one['bytes'])} or more"
            )
            table.add_row(
                names, one["trained_on"], f"{one['input']} x {one['input']}", "cam" if one["cam"] else "", weights
            )
        show(table, f"\nDownloads lie in {zoo.cache_folder()} (CAMRT_HOME changes it).")


def _listing() -> list[dict[str, Any]]:
    from converters import zoo

    return [
        {
            "name": one.name,
            "aliases": list(one.aliases),
            "trained_on": one.trained_on,
            "input": one.preprocessing.crop,
            "cam": one.features is not None,
            "bundled": one.weights.bundled is not None,
            "downloaded": zoo.weights_path(one).exists(),
            "bytes": one.weights.least_bytes,
            "file": str(zoo.weights_path(one)),
            "source": one.source,
            "licence": one.licence,
        }
        for one in zoo.models().values()
    ]


DOWNLOAD_EXAMPLES = f"""Examples:

  camrt download googlenetCAM vgg16CAM

  camrt download --reference

Everything lands in one folder: $CAMRT_HOME, or else the user's cache folder for camrt.
{STATUS}
"""


def download(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="Named models.")] = None,
    reference: Annotated[bool, typer.Option("--reference", help="The data files of the original demo too.")] = False,
) -> None:
    """Download weights of named models, and print where they are."""
    chosen = [named(name) for name in names or []]
    if not chosen and not reference:
        raise typer.BadParameter("name a model (camrt models lists them), or give --reference", param_hint="NAME")
    failures = 0
    with reporting(interrupted="what was not whole was removed"):
        from converters import zoo
        from converters.errors import ConversionError

        tasks: list[Callable[[], Path]] = [lambda model=model: zoo.weights(model) for model in chosen]  # type: ignore[misc]
        for task in [*tasks, *([zoo.download_reference] if reference else [])]:
            try:
                print(task(), flush=True)
            except ConversionError as error:
                say_error(error)
                failures += 1
    if failures:
        raise typer.Exit(1)
