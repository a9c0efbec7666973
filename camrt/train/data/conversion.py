"""Databases of images, as Caffe's tools make them: convert_imageset, compute_image_mean, and what a database contains.

A database is written into a draft folder beside its place, and moved there once it is complete. Whatever happens
before leaves nothing with its name.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from camrt import results
from camrt.errors import CamrtError
from camrt.train.data.database import Database, parse, pixels
from camrt.train.data.sources import ImageFiles, decoded_image
from converters.encoding import STALE_S
from converters.errors import install
from converters.schema.caffe_pb2 import BlobProto, Datum

Record = tuple[bytes, bytes]
_BATCH = 1000  # records in a transaction, as in convert_imageset
_FIRST_SIZE = 1 << 28  # bytes of a new database; doubled whenever it is full
_JPEG = ("jpg", "jpeg")


@dataclass(frozen=True)
class Encoding:
    """How images are stored, by the options of convert_imageset.

    Attributes:
        resize: Height and width in pixels; None for the size of each image.
        is_gray: Whether images are converted to grayscale.
        type: The ending of an image format, such as ``"jpg"``, for encoded images; empty for raw pixels; ``"same"``
            for the format of each file, which is stored unchanged if nothing else changes it.
    """

    resize: tuple[int, int] | None = None
    is_gray: bool = False
    type: str = ""


# ------------------------------------------------------------------------------------------------------------- writing


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a draft folder that becomes ``path`` when the block ends, and is removed if the block raises.

    Drafts of killed processes are removed if they are at least an hour old.

    Raises:
        CamrtError: ``path`` exists already, or the folder cannot be created.
    """
    if path.exists():
        raise CamrtError("exists already: remove it, or choose another place with -o", file=str(path))
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f".{path.name}.*.part"):
            if time.time() - leftover.stat().st_mtime > STALE_S:
                shutil.rmtree(leftover, ignore_errors=True)
        draft.mkdir()
        yield draft
        draft.rename(path)
    except OSError as error:
        raise CamrtError(f"cannot be written: {error.strerror or error}", file=str(path)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_lmdb(path: Path, records: Iterable[Record]) -> int:
    """Write an LMDB database.

    Args:
        path: The folder of the database, which must not exist.
        records: Keys and values. Keys in increasing order are written fastest.

    Returns:
        The number of records.

    Raises:
        CamrtError: The folder exists, cannot be written, lmdb is not installed, or there are no records.
    """
    try:
        import lmdb
    except ImportError:
        raise CamrtError(f"needs the package lmdb. Install it with {install('lmdb')}", file=str(path)) from None
    count = 0
    with new_folder(path) as draft:
        try:
            # Synchronized once, at the end: an incomplete draft has no value.
            with lmdb.open(str(draft), map_size=_FIRST_SIZE, sync=False, metasync=False) as environment:
                batch: list[Record] = []
                for record in records:
                    batch.append(record)
                    if len(batch) == _BATCH:
                        count += _put(environment, batch)
                        batch = []
                count += _put(environment, batch)
                environment.sync(True)
        except lmdb.Error as error:
            raise CamrtError(f"cannot be written: {error}", file=str(path)) from error
        if not count:
            raise CamrtError("found no images that can be used, expected at least one: nothing was written",
                             file=str(path))  # fmt: skip
    return count


def _put(environment: Any, batch: Sequence[Record]) -> int:
    """Write records in one transaction, in a larger map if they do not fit."""
    import lmdb

    while True:
        try:
            with environment.begin(write=True) as transaction:
                for key, value in batch:
                    if not transaction.put(key, value, overwrite=False):
                        raise CamrtError(f"found the key {key[:80]!r} twice, expected each key once")
            return len(batch)
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()["map_size"])


def image_records(
    source: ImageFiles,
    root: str,
    encoding: Encoding,
    *,
    seed: int | None = None,
    check_size: bool = False,
    on_image: Callable[[str | None, str], Any] = lambda name, reason: None,
) -> Iterator[Record]:
    """Yield the records of images, with the keys of convert_imageset: the number of the line, and the path.

    Args:
        source: The images and labels.
        root: The prefix of the paths, which keys do not have.
        encoding: How images are stored.
        seed: The seed of a random order; None for the order of the list.
        check_size: Whether all images must have the same size.
        on_image: Called after each image, with its name and the reason if it was skipped, else with None.

    Raises:
        CamrtError: With ``check_size``, two images differ in size.
    """
    order = np.arange(len(source.paths))
    if seed is not None:
        order = np.random.default_rng(seed).permutation(order)
    first: tuple[str, tuple[int, ...]] | None = None
    prefix = f"{root.rstrip('/')}/" if root else ""
    for line, number in enumerate(order.tolist()):
        path = source.paths[number].decode(errors="surrogateescape")
        try:
            datum, shape = _datum(path, int(source.labels[number]), encoding)
        except CamrtError as error:
            on_image(path, error.message)
            continue
        if check_size and first is not None and shape != first[1]:
            raise CamrtError(
                f"found {_size(shape)} pixels, expected {_size(first[1])} as in {first[0]}: resize the images "
                "(--resize), or leave out --check-size",
                file=path,
            )
        first = first or (path, shape)
        on_image(None, "")
        yield f"{line:08d}_{path.removeprefix(prefix)}".encode(errors="surrogateescape"), datum.SerializeToString()


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"


def _datum(path: str, label: int, encoding: Encoding) -> tuple[Datum, tuple[int, ...]]:
    """Return an image as ReadImageToDatum makes it (util/io.cpp), and its shape (H, W, C)."""
    image = decoded_image(path)
    if isinstance(image, CamrtError):
        raise image
    changed = encoding.resize is not None or encoding.is_gray
    if encoding.is_gray:
        image = np.asarray(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_BGR2GRAY), np.uint8)[:, :, None]
    if encoding.resize is not None:
        height, width = encoding.resize
        image = np.asarray(cv2.resize(np.ascontiguousarray(image), (width, height)), np.uint8)
        image = image.reshape(height, width, -1)
    if not encoding.type:
        height, width, channels = image.shape
        values = np.ascontiguousarray(image.transpose(2, 0, 1)).tobytes()
        return Datum(channels=channels, height=height, width=width, data=values, label=label), image.shape
    own = Path(path).suffix[1:].lower()
    ending = own if encoding.type == "same" else encoding.type
    if not changed and (ending == own or (ending in _JPEG and own in _JPEG)):
        return Datum(data=Path(path).read_bytes(), label=label, encoded=True), image.shape
    done, encoded = False, np.empty(0, np.uint8)
    with contextlib.suppress(cv2.error):
        done, encoded = cv2.imencode(f".{ending}", np.ascontiguousarray(image))
    if not done:
        raise CamrtError(f"cannot be encoded as {ending!r}, expected jpg or png")
    return Datum(data=encoded.tobytes(), label=label, encoded=True), image.shape


# ---------------------------------------------------------------------------------------------------------- the mean


def mean_of(database: Database, on_record: Callable[[float], Any] = lambda count: None) -> NDArray[np.float32]:
    """Compute the mean image of a database, as compute_image_mean does, but summed in float64.

    Args:
        database: A database of images of one size.
        on_record: Called with 1 after each record.

    Returns:
        (C, H, W) float32.

    Raises:
        CamrtError: A record is not an image, or has another size than the first one.
    """
    total: NDArray[np.float64] | None = None
    for number in range(len(database)):
        try:
            values = pixels(parse(database, number))
            if total is None:
                total = np.zeros(values.shape)
            if values.shape != total.shape:
                raise CamrtError(
                    f"found {_size(values.shape)} pixels and {values.shape[2]} channel(s), expected "
                    f"{_size(total.shape)} and {total.shape[2]} as in the first record: write it with --resize"
                )
        except CamrtError as error:
            raise CamrtError(error.message, file=f"{database.path}, record {number}") from None
        total += values
        on_record(1)
    assert total is not None  # a database is never empty
    return np.ascontiguousarray((total / len(database)).transpose(2, 0, 1).astype(np.float32))


def write_mean(path: Path, mean: NDArray[np.float32]) -> None:
    """Write a mean image as a .binaryproto.

    Args:
        path: The file. An existing file is replaced once the new one is complete.
        mean: (C, H, W) float32.

    Raises:
        CamrtError: The file cannot be written.
    """
    channels, height, width = mean.shape
    blob = BlobProto(num=1, channels=channels, height=height, width=width)
    blob.data = np.ascontiguousarray(mean, "<f4").tobytes()
    results.write(path, blob.SerializeToString())


# ------------------------------------------------------------------------------------------------------ what is inside


@dataclass(frozen=True)
class Contents:
    """What a database contains.

    Attributes:
        backend: ``"LMDB"`` or ``"LEVELDB"``.
        count: The number of records.
        first: The first key.
        last: The last key.
        inspected: The number of records that were read, evenly spaced.
        storage: ``"raw"``, ``"encoded"``, ``"float"`` -> the number of inspected records.
        shapes: (C, H, W) -> the number of inspected records.
        labels: Label -> the number of inspected records.
        unusable: The errors of the inspected records that cannot be read.
    """

    backend: str
    count: int
    first: bytes
    last: bytes
    inspected: int
    storage: dict[str, int]
    shapes: dict[tuple[int, ...], int]
    labels: dict[int, int]
    unusable: tuple[str, ...]


def contents(database: Database, most: int) -> Contents:
    """Inspect a database.

    Args:
        database: The database.
        most: The largest number of records to read.
    """
    numbers = np.unique(np.linspace(0, len(database) - 1, min(most, len(database))).astype(np.int64))
    storage: Counter[str] = Counter()
    shapes: Counter[tuple[int, ...]] = Counter()
    labels: Counter[int] = Counter()
    unusable: list[str] = []
    for number in numbers.tolist():
        try:
            datum = parse(database, number)
            height, width, channels = pixels(datum).shape
        except CamrtError as error:
            unusable.append(f"record {number}: {error.message}")
            continue
        storage["encoded" if datum.encoded else "raw" if datum.data else "float"] += 1
        shapes[channels, height, width] += 1
        labels[datum.label] += 1
    return Contents(
        database.backend, len(database), database.keys[0], database.keys[-1], len(numbers), dict(storage), dict(shapes),
        dict(sorted(labels.items())), tuple(unusable),
    )  # fmt: skip


def picture_of(database: Database, most: int = 64) -> NDArray[np.uint8] | None:
    """Draw a contact sheet of evenly spaced records; see `sheet`. None if no record can be read."""
    images = []
    for number in np.unique(np.linspace(0, len(database) - 1, min(most, len(database))).astype(np.int64)).tolist():
        with contextlib.suppress(CamrtError):
            images.append(pixels(parse(database, number)))
    return sheet(images) if images else None


def sheet(images: Sequence[NDArray[Any]], *, columns: int = 8, cell: int = 128) -> NDArray[np.uint8]:
    """Draw images side by side, as the network gets them.

    Args:
        images: (H, W, C) each: 3 channels are BGR; of any other number, all channels are drawn in gray, side by side.
            Values other than uint8 are stretched to 0 ... 255.
        columns: The number of images in a row.
        cell: The size of a cell in pixels.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    from camrt.render import contact_sheet

    return contact_sheet([_drawable(image) for image in images], columns=columns, cell=cell, bar=4)


def _drawable(image: NDArray[Any]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        image = ((image - low) * (255 / (high - low or 1))).round().astype(np.uint8)
    if image.shape[2] == 3:
        return np.ascontiguousarray(image[:, :, ::-1])
    return np.repeat(np.concatenate(list(np.moveaxis(image, 2, 0)), axis=1)[:, :, None], 3, axis=2)
