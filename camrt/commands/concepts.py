"""The command `camrt concepts`: what the features of a network are made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camrt.commands.options import (
    DEFAULT_MODEL,
    STATUS,
    Json,
    PresetName,
    ProtocolName,
    Provider,
    Weights,
    check_model,
    expanded,
)
from camrt.commands.output import printable_path, reporting, show, write_picture
from camrt.errors import CamrtError
from camrt.results import json_line
from converters.errors import printable
from converters.terminal import say

if TYPE_CHECKING:
    from camrt.concepts import Concepts

_MOST = 64  # images that are factorized together

EXAMPLES = f"""Examples:

  camrt concepts cat.jpg dog.jpg --model resnet50

  camrt concepts photos/ --model vgg16 --layer relu4_3 --count 8 --out concepts

Deep feature factorization: the features of all images are factorized into a few concepts. The picture of an image shows
where each concept is, in a color; the legend names the classes that the network sees in the concept alone. The concepts
of a run are those of all its images together. Needs scikit-learn: pip install 'camrt[concepts]'.

{STATUS}
"""


@expanded
def concepts(
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Images, folders, and quoted globs.")],
    model: Annotated[str, typer.Option(help="A named model (camrt models), or an ONNX model.")] = DEFAULT_MODEL,
    weights: Weights = None,
    preprocess: PresetName = None,
    count: Annotated[int, typer.Option(min=2, help="The number of concepts.")] = 5,
    layer: Annotated[
        str | None, typer.Option(metavar="TENSOR|NODE", help="The features; by default the last with positions.")
    ] = None,
    protocol: Annotated[ProtocolName, typer.Option(help="What the network sees of an image.")] = ProtocolName.WHOLE,
    seed: Annotated[int, typer.Option(min=0, help="Where the factorization begins.")] = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the pictures go.")] = Path("concepts"),
    provider: Provider = None,
    as_json: Json = False,
) -> None:
    """Find the concepts that a network's features are made of: where they are, and what they say."""
    check_model(model, weights)
    if protocol not in (ProtocolName.WHOLE, ProtocolName.CENTER):
        raise typer.BadParameter("expected whole or center: concepts are of one crop", param_hint="--protocol")
    with reporting():
        from camrt.batch import find_images
        from camrt.concepts import find_concepts

        found, missing = find_images(images, but=out)
        failed = [f"{where}: {reason}" for where, reason in missing]
        if len(found) > _MOST:
            raise CamrtError(f"found {len(found)} images, expected {_MOST} at most, whose features are in memory")
        usable = _readable([image.given for image in found], failed)
        result = None
        if usable:
            result = find_concepts(
                model, usable, count, layer=layer, protocol=protocol.value, weights=weights, providers=provider,
                preprocess=preprocess.value if preprocess else None, seed=seed,
            )  # fmt: skip
        files = [] if result is None else _write(result, out)
        record: dict[str, Any] = {} if result is None else result.as_dict()
        if as_json:
            print(json_line({**record, "files": [str(file) for file in files], "failed": failed}))
        elif result is not None:
            _print(result, files)
        for line in failed:
            say(f"error: {printable(line, 500)}")
        if failed:
            raise typer.Exit(1)


def _readable(images: list[str], failed: list[str]) -> list[str]:
    """The images that can be decoded; the others are added to those that failed."""
    from camrt.images import decode

    usable = []
    for image in images:
        try:
            decode(image)
            usable.append(image)
        except CamrtError as error:
            failed.append(str(error.in_file(image)))
    return usable


def _write(result: Concepts, out: Path) -> list[Path]:
    """Write a picture for each image."""
    files: list[Path] = []
    for number, source in enumerate(result.sources):
        stem = Path(source).stem
        file = out / f"{stem}_concepts.jpg"
        if file in files:
            file = out / f"{stem}_{number}_concepts.jpg"
        write_picture(file, result.picture(number))
        files.append(file)
    return files


def _print(result: Concepts, files: list[Path]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("concept", "share", "what the network sees in it"):
        table.add_column(column, justify="left" if column.startswith("what") else "right", overflow="fold")
    for number, one in enumerate(result.as_dict()["concepts"]):
        words = ", ".join(f"{printable(each['label'])} {each['score']:.1%}" for each in one["classes"])
        table.add_row(str(number), f"{one['share']:.0%}", words)
    show(table, f"{result.error:.0%} of the features of {result.layer} are left", *map(printable_path, files))
