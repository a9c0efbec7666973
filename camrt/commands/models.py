"""The commands `camrt models` and `camrt download`: the named models, and their weights."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camrt.commands.options import STATUS, Json, Weights, named
from camrt.commands.output import printable_path, reporting, show
from camrt.errors import CamrtError
from camrt.results import json_line
from converters.terminal import amount, echo, say_error

if TYPE_CHECKING:
    from converters.zoo import NamedModel

MODELS_EXAMPLES = f"""Examples:

  camrt models

  camrt models --json | jq -r '.[] | select(.downloaded) | .name'

{STATUS}
"""


def models(as_json: Json = False) -> None:
    """List the named models."""
    with reporting():
        record = _listing()
        if as_json:
            print(json_line(record))
            return
        from rich.table import Table

        from converters import zoo

        table = Table(box=None, pad_edge=False)
        table.add_column("name", no_wrap=True)
        for column in ("trained on", "input", "maps", "weights"):
            table.add_column(column)
        for one in record:
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
        show(table, f"\nDownloads are in {printable_path(zoo.cache_folder())} (CAMRT_HOME changes it).")


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

  camrt download googlenetCAM --weights imagenet_googlenetCAM_train_iter_120000.caffemodel

Everything goes into one folder: $CAMRT_HOME, or else the user's cache folder for camrt. With --weights, nothing is
downloaded: the file is copied there, and serves all commands that name the model.
{STATUS}
"""


def download(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="Named models.")] = None,
    weights: Weights = None,
    reference: Annotated[bool, typer.Option("--reference", help="The data files of the original demo too.")] = False,
) -> None:
    """Download weights of named models, and print where they are."""
    chosen = [named(name) for name in names or []]
    if weights is not None and (len(chosen) != 1 or chosen[0].weights.bundled):
        found = f"{chosen[0].name}, which comes with its weights" if len(chosen) == 1 else f"{len(chosen)} names"
        raise typer.BadParameter(f"found {found}, expected one model whose weights they are", param_hint="--weights")
    if not chosen and not reference:
        raise typer.BadParameter("name a model (camrt models lists them), or give --reference", param_hint="NAME")
    failures = 0
    with reporting(interrupted="what was not whole was removed"):
        from converters import zoo
        from converters.errors import ConversionError

        fetch = zoo.weights if weights is None else functools.partial(_copied, file=weights)
        tasks: list[Callable[[], Path]] = [functools.partial(fetch, model) for model in chosen]
        for task in [*tasks, *([zoo.download_reference] if reference else [])]:
            try:
                echo(str(task()))
            except (CamrtError, ConversionError) as error:
                say_error(error)
                failures += 1
    if failures:
        raise typer.Exit(1)


def _copied(model: NamedModel, file: Path) -> Path:
    """Copy weights into the cache, after the checks that a download gets. Returns where they are."""
    from converters import zoo
    from converters.encoding import replacing

    source, target = zoo.weights(model, file), zoo.weights_path(model)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not (target.exists() and target.samefile(source)):
            with source.open("rb") as stream, replacing(target) as copy:
                shutil.copyfileobj(stream, copy, 1 << 20)
    except OSError as error:
        raise CamrtError(
            f"cannot be written ({error.strerror or error}). Choose another cache folder with CAMRT_HOME",
            file=str(target),
        ) from error
    return target
