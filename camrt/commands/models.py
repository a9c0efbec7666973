"""The commands `camrt models` and `camrt download`: the named models, and their weights."""

from __future__ import annotations

import functools
import itertools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camrt import catalog
from camrt.commands.options import STATUS, Json, Weights, named
from camrt.commands.output import printable_path, reporting, show
from camrt.errors import CamrtError
from camrt.results import json_line
from converters.terminal import amount, echo, say_error

if TYPE_CHECKING:
    from camrt.catalog import Entry
    from converters.zoo import NamedModel

MODELS_EXAMPLES = f"""Examples:

  camrt models

  camrt models resnet

  camrt models --json | jq -r '.[] | select(.downloaded) | .name'

Without TEXT, it lists Caffe's networks and the plain names; with TEXT, all names that hold it, those of the ONNX Model
Zoo too. Beside them --model takes hf:OWNER/REPO, torchvision:NAME and timm:NAME (docs/models.md).
{STATUS}
"""

_CAM, _CAFFE, _ZOO = "Class activation mapping, from Caffe", "Caffe", "ONNX Model Zoo"


def models(
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="What their names hold.")] = None,
    as_json: Json = False,
) -> None:
    """List the named models, or search their names."""
    with reporting():
        record = _listing() if text is None else _found(text)
        if as_json:
            print(json_line(record))
            return
        if not record:
            raise CamrtError(f"no name holds {text!r}. camrt models lists those that people type first")
        from rich.table import Table
        from rich.text import Text

        from converters import zoo

        table = Table(box=None, pad_edge=False)
        for column in ("name", "trained on", "input", "maps", "weights"):
            table.add_column(column, no_wrap=column == "name")
        for group, members in itertools.groupby(record, key=lambda one: one["group"]):
            table.add_row(Text(group, "bold"))
            for one in members:
                table.add_row(*_cells(one))
        more = (
            "camrt models TEXT searches these and the ONNX Model Zoo (zoo:NAME); docs/models.md has the other sources."
        )
        show(table, f"\n{more}\nDownloads are in {printable_path(zoo.cache_folder())} (CAMRT_HOME changes it).")


def _cells(one: Mapping[str, Any]) -> list[str]:
    """The cells of a network: its names, data, input, whether its maps need no gradient, and where its weights are."""
    weights = "with camrt" if one["bundled"] else "downloaded" if one["downloaded"] else ""
    if not weights and one["bytes"] is not None:
        weights = amount(one["bytes"]) + ("" if one["sha256"] else " or more")
    side = "" if one["input"] is None else f"{one['input']} x {one['input']}"
    return [
        "\n".join([one["name"], *one["aliases"]]), one["trained_on"], side, "cam" if one["cam"] else "", weights
    ]  # fmt: skip


def _listing() -> list[dict[str, Any]]:
    """Caffe's networks and the plain names, in groups."""
    from converters import zoo

    caffe = [_caffe(one) for one in zoo.models().values()]
    plain = [_entry(name, target, group) for group, names in catalog.groups().items() for name, target in names.items()]
    return [*sorted(caffe, key=lambda one: str(one["group"]), reverse=True), *plain]


def _found(text: str) -> list[dict[str, Any]]:
    """The networks whose names hold a text."""
    from camrt.catalog.modelzoo import table

    wanted = text.casefold()
    named = [
        one
        for one in _listing()
        if any(wanted in each.casefold() for each in (one["name"], *one["aliases"], one["stands_for"] or ""))
    ]
    listed = [f"zoo:{name}" for name in table() if wanted in f"zoo:{name}".casefold()]
    return [*named, *(_entry(name, name, _ZOO) for name in listed)]


def _caffe(one: NamedModel) -> dict[str, Any]:
    from converters import zoo

    return {
        "name": one.name,
        "group": _CAM if one.features else _CAFFE,
        "aliases": list(one.aliases),
        "stands_for": None,
        "trained_on": one.trained_on,
        "input": one.preprocessing.crop,
        "cam": one.features is not None,
        "bundled": one.weights.bundled is not None,
        "downloaded": zoo.weights_path(one).exists(),
        "bytes": one.weights.least_bytes,
        "sha256": one.weights.sha256,
        "file": str(zoo.weights_path(one)),
        "source": one.source,
        "licence": one.licence,
        "note": "",
    }


def _entry(name: str, target: str, group: str) -> dict[str, Any]:
    """What is known of a network of the ONNX Model Zoo, or of another source, without fetching it."""
    from camrt.catalog.modelzoo import table

    found = catalog.find(target)
    assert found is not None
    listed = table().get(target.removeprefix("zoo:"))
    classes = listed.classes if listed else None
    return {
        "name": name,
        "group": group,
        "aliases": [] if name == target else [target],
        "stands_for": None if name == target else target,
        "trained_on": f"{classes:,} classes" if classes else "",
        "input": listed.side if listed else None,
        "cam": False,
        "bundled": False,
        "downloaded": found.file.exists(),
        "bytes": listed.size if listed else None,
        "sha256": listed.sha256 if listed else None,
        "file": str(found.file),
        "source": found.source,
        "licence": None,
        "note": found.note,
    }


DOWNLOAD_EXAMPLES = f"""Examples:

  camrt download resnet50 vgg16CAM zoo:swin_b_Opset18_torch_hub

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
    if weights is not None and (len(chosen) != 1 or _is_bundled(chosen[0])):
        found = f"{chosen[0].name}, which comes with its weights" if len(chosen) == 1 else f"{len(chosen)} names"
        raise typer.BadParameter(f"found {found}, expected one model whose weights they are", param_hint="--weights")
    if not chosen and not reference:
        raise typer.BadParameter("name a model (camrt models lists them), or give --reference", param_hint="NAME")
    failures = 0
    with reporting(interrupted="what was not whole was removed"):
        from converters import zoo
        from converters.errors import ConversionError

        fetch = _fetched if weights is None else functools.partial(_copied, file=weights)
        tasks: list[Callable[[], Path]] = [functools.partial(fetch, model) for model in chosen]
        for task in [*tasks, *([zoo.download_reference] if reference else [])]:
            try:
                echo(str(task()))
            except (CamrtError, ConversionError) as error:
                say_error(error)
                failures += 1
    if failures:
        raise typer.Exit(1)


def _is_bundled(model: NamedModel | Entry) -> bool:
    return not isinstance(model, catalog.Entry) and model.weights.bundled is not None


def _fetched(model: NamedModel | Entry) -> Path:
    from converters import zoo

    return model.fetch(None) if isinstance(model, catalog.Entry) else zoo.weights(model)


def _copied(model: NamedModel | Entry, file: Path) -> Path:
    """Copy weights into the cache, after the checks that a download gets. Returns where they are."""
    from converters import zoo
    from converters.encoding import replacing

    if isinstance(model, catalog.Entry):
        source, target = model.fetch(file), model.file
    else:
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
