"""`camrt data`: databases of images for Caffe's Data layers, mean images, and released data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from camrt.commands.options import STATUS, Json
from camrt.commands.output import printable_path, reporting, show, write_picture
from camrt.results import json_line
from converters.terminal import bar, say

app = typer.Typer(
    help="Databases for Caffe's Data layers, mean images, and released data sets.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_MOST_LABELS = 20  # in a terminal; --json names all
_INTERRUPTED = "nothing incomplete was left; the same command starts over with what is missing"

LMDB_EXAMPLES = f"""Examples:

  camrt data lmdb photos/ train.txt -o train_lmdb --resize 256 256 --shuffle

  camrt data lmdb photos/ train.txt -o train_lmdb --encoded

  camrt data lmdb digits/ digits.txt -o digits_lmdb --gray

LIST has a line "path label" for each image, with paths relative to IMAGES. Keys and values are those of Caffe's
convert_imageset. An image that cannot be read is skipped with a warning.

{STATUS}
"""
MEAN_EXAMPLES = f"""Examples:

  camrt data mean train_lmdb -o mean.binaryproto

It prints the mean of each channel, for mean_value in a transform_param.

{STATUS}
"""
SHOW_EXAMPLES = f"""Examples:

  camrt data show train_lmdb

  camrt data show train_leveldb --picture images.png

{STATUS}
"""
RELEASED_EXAMPLES = f"""DIR contains the archives as they were released. If one is missing, its address is printed.

The outputs have the names that Caffe's examples use. After a kill, the same command writes what is missing.

{STATUS}
"""

Unverified = Annotated[
    bool, typer.Option("--unverified", help="Accept archives with other checksums than the released ones.")
]
Archives = Annotated[Path, typer.Argument(metavar="DIR", help="The folder with the archives.")]
Out = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="DIR", help="The folder of the outputs; by default, DIR.")
]
DatabaseArgument = Annotated[Path, typer.Argument(metavar="DB", help="An LMDB or LevelDB database.")]


@app.command("lmdb", epilog=LMDB_EXAMPLES)
def lmdb(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="The folder that paths are relative to.")],
    images_list: Annotated[Path, typer.Argument(metavar="LIST", help='A line "path label" for each image.')],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DB", help="The database to write.")],
    resize: Annotated[
        tuple[int, int] | None, typer.Option(metavar="H W", help="Resize images to H x W pixels.")
    ] = None,
    gray: Annotated[bool, typer.Option("--gray", help="Convert images to grayscale.")] = False,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Write images in random order.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="The seed of --shuffle.")] = 0,
    encoded: Annotated[bool, typer.Option("--encoded", help="Store image files instead of pixels.")] = False,
    encode_type: Annotated[
        str, typer.Option(metavar="jpg|png", help="Store images in this format; by default, that of each file.")
    ] = "",
    check_size: Annotated[bool, typer.Option("--check-size", help="Fail if images differ in size.")] = False,
) -> None:
    """Write a database of images, as convert_imageset does."""
    if resize is not None and min(resize) < 1:
        raise typer.BadParameter(f"found {resize[0]} {resize[1]}, expected sizes of 1 or more", param_hint="--resize")
    with reporting(interrupted=_INTERRUPTED):
        from camrt.train.data.conversion import Encoding, image_records, write_lmdb
        from camrt.train.data.sources import read_list

        source = read_list(images_list, str(images))
        encoding = Encoding(resize, gray, encode_type.lstrip(".").lower() or ("same" if encoded else ""))
        skipped = 0
        with bar(f"writing {output}", len(source.paths), bytes_=False) as advance:

            def on_image(name: str | None, reason: str) -> None:
                nonlocal skipped
                advance(1)
                if name is not None:
                    skipped += 1
                    say(f"warning: {name}: {reason}. The image was skipped")

            records = image_records(
                source,
                str(images),
                encoding,
                seed=seed if shuffle else None,
                check_size=check_size,
                on_image=on_image,
            )
            count = write_lmdb(output, records)
        print(printable_path(output))
        say(f"{count:,} images" + (f", {skipped:,} skipped" if skipped else ""))
        if skipped:
            raise typer.Exit(1)


@app.command("mean", epilog=MEAN_EXAMPLES)
def mean(
    database: DatabaseArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The .binaryproto to write.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compute the mean image of a database, as compute_image_mean does."""
    with reporting():
        from camrt.train.data.conversion import mean_of, write_mean
        from camrt.train.data.database import Database

        opened = Database(database)
        with bar(f"reading {database}", len(opened), bytes_=False) as advance:
            found = mean_of(opened, advance)
        if output is not None:
            write_mean(output, found)
        values = [float(value) for value in found.mean(axis=(1, 2), dtype=float)]
        if as_json:
            print(json_line({"file": output and str(output), "shape": list(found.shape), "mean_value": values}))
            return
        for value in values:
            print(f"mean_value: {value:.6g}")
        if output is not None:
            print(printable_path(output))


@app.command("show", epilog=SHOW_EXAMPLES)
def show_database(
    database: DatabaseArgument,
    records: Annotated[int, typer.Option(min=1, help="The largest number of records to read.")] = 10_000,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw 64 evenly spaced images into this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a database contains: keys, shapes, labels, and images that cannot be read."""
    with reporting():
        from camrt.train.data.conversion import contents, picture_of
        from camrt.train.data.database import Database

        opened = Database(database)
        found = contents(opened, records)
        drawn = picture_of(opened) if picture is not None else None
        if picture is not None and drawn is not None:
            write_picture(picture, drawn)
        if as_json:
            print(json_line(_fields(found)))
        else:
            _show(found)
            if drawn is not None:
                print(printable_path(picture or ""))
        if found.unusable:
            raise typer.Exit(1)


def _fields(found: Any) -> dict[str, Any]:
    return {
        "backend": found.backend,
        "records": found.count,
        "inspected": found.inspected,
        "first": found.first.decode(errors="replace"),
        "last": found.last.decode(errors="replace"),
        "storage": found.storage,
        "shapes": {" x ".join(map(str, shape)): count for shape, count in found.shapes.items()},
        "labels": {str(label): count for label, count in found.labels.items()},
        "unusable": list(found.unusable),
    }


def _show(found: Any) -> None:
    fields = _fields(found)
    show(f"{fields['backend']}, {found.count:,} records, keys {fields['first']} to {fields['last']}")
    if found.inspected < found.count:
        show(f"of {found.inspected:,} evenly spaced records:")
    for what in ("storage", "shapes"):
        show(f"{what}: " + ", ".join(f"{name} ({count:,})" for name, count in fields[what].items()))
    labels = list(fields["labels"].items())
    more = f" and {len(labels) - _MOST_LABELS:,} more labels" if len(labels) > _MOST_LABELS else ""
    show("labels: " + ", ".join(f"{label} ({count:,})" for label, count in labels[:_MOST_LABELS]) + more)
    for line in found.unusable[:_MOST_LABELS]:
        say(f"warning: {line}")
    if len(found.unusable) > _MOST_LABELS:
        say(f"warning: {len(found.unusable) - _MOST_LABELS:,} more records cannot be read")


@app.command("mnist", epilog=RELEASED_EXAMPLES)
def mnist(folder: Archives, output: Out = None, unverified: Unverified = False) -> None:
    """Write mnist_train_lmdb and mnist_test_lmdb from the four files of MNIST."""
    _prepare("mnist", folder, output, unverified)


@app.command("cifar10", epilog=RELEASED_EXAMPLES)
def cifar10(folder: Archives, output: Out = None, unverified: Unverified = False) -> None:
    """Write cifar10_train_lmdb, cifar10_test_lmdb and mean.binaryproto from cifar-10-binary.tar.gz."""
    _prepare("cifar10", folder, output, unverified)


@app.command("tiny-imagenet", epilog=RELEASED_EXAMPLES)
def tiny_imagenet(folder: Archives, output: Out = None, unverified: Unverified = False) -> None:
    """Extract tiny-imagenet-200.zip for tiny:DIR, and write databases of its images and their mean."""
    _prepare("tiny-imagenet", folder, output, unverified)


def _prepare(name: str, folder: Path, output: Path | None, unverified: bool) -> None:
    with reporting(interrupted=_INTERRUPTED):
        from camrt.train.data.archives import PREPARE, Job

        PREPARE[name](
            Job(
                folder,
                output if output is not None else folder,
                not unverified,
                lambda title, total: bar(title, total, bytes_=False),
                print,
            )
        )
