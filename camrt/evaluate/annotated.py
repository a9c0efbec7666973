"""Images with a class and boxes or masks, read from the metadata of wsolevaluation or from a CSV file.

The metadata are the four text files that Choe et al. (CVPR 2020) published for CUB, ImageNet and OpenImages, a line an
image (or box, or mask), without a header:

* ``image_ids.txt``: ``path``, relative to the folder of the images;
* ``class_labels.txt``: ``path,class``, classes counted from 0;
* ``image_sizes.txt``: ``path,width,height``; may be empty where there are masks;
* ``localization.txt``: ``path,x1,y1,x2,y2``, or ``path,mask,ignored``, where only an image's first line names the mask
  of what does not count.

The CSV file has the columns image, class, x1, y1, x2, y2, and if wanted mask and ignored: a row a box. What is
missing or contradicts itself is an error that names the file and the line.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from camrt.classes import class_number
from camrt.errors import CamrtError

IDS, LABELS, SIZES, LOCALIZATION = "image_ids.txt", "class_labels.txt", "image_sizes.txt", "localization.txt"
COLUMNS = ("image", "class", "x1", "y1", "x2", "y2")
_MASKS = ("mask", "ignored")

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Annotated:
    """An image of a data set.

    Attributes:
        image: Its path, relative to the folder of the images.
        label: Its class: a number from 0, or a name.
        place: Where its class was read: ``"file:line"``.
        boxes: x1, y1, x2, y2 in pixels each.
        masks: The files of its masks, relative to the folder of the masks.
        ignored: The file of the mask of what does not count; "" for none.
        size: Width and height in pixels, where they are said.
    """

    image: str
    label: int | str
    place: str
    boxes: tuple[Box, ...] = ()
    masks: tuple[str, ...] = ()
    ignored: str = ""
    size: tuple[int, int] | None = None

    @property
    def digest(self) -> str:
        """Tells this annotation from another one of the image."""
        facts = repr((self.label, self.boxes, self.masks, self.ignored, self.size))
        return hashlib.sha256(facts.encode(errors="surrogateescape")).hexdigest()[:16]


@dataclass(frozen=True)
class DataSet:
    """Images in their order.

    Attributes:
        source: The folder or file that it was read from.
        images: The images.
    """

    source: str
    images: tuple[Annotated, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def has_boxes(self) -> bool:
        """Whether every image has a box."""
        return all(each.boxes for each in self.images)

    @property
    def has_masks(self) -> bool:
        """Whether every image has a mask."""
        return all(each.masks for each in self.images)

    def numbered(self, classes: int, labels: Sequence[str] | None = None) -> dict[str, int]:
        """The number of each image's class.

        Args:
            classes: How many classes the network has.
            labels: Their names, where they are known.

        Raises:
            CamrtError: A class is none of the network's; the text names its line.
        """
        known: dict[int | str, int] = {}
        for each in self.images:
            if each.label not in known:
                try:
                    known[each.label] = class_number(each.label, labels, classes)
                except CamrtError as error:
                    message = f"{error.message}: the network has {classes} classes, and they count from 0"
                    raise CamrtError(message, file=each.place) from None
        return {each.image: known[each.label] for each in self.images}


def read_metadata(folder: str | Path) -> DataSet:
    """Reads the metadata of wsolevaluation.

    Args:
        folder: That of the four text files, as ``metadata/CUB/test``.

    Raises:
        CamrtError: A file is missing, or says what cannot be; an image is not in all files, or twice in one that has it
            once. The text names the file and the line.
    """
    path = Path(folder)
    _check_folder(path)
    ids = _single(path / IDS, {line: number for number, line in _numbered(path / IDS)}, path / IDS)
    labels = _by_image(path / LABELS, 1, ids)
    sizes = _by_image(path / SIZES, 2, ids, may_be_empty=True)
    rows: dict[str, list[tuple[int, list[str]]]] = {}
    count = None
    for number, line in _numbered(path / LOCALIZATION):
        count = count or _kind(path, number, line)
        image, *values = _fields(path / LOCALIZATION, number, line, count)
        _known(image, ids, path / LOCALIZATION, number)
        rows.setdefault(image, []).append((number, values))
    _complete(ids, rows, path / LOCALIZATION)
    if count == 4 and not sizes:
        raise CamrtError("is empty, expected the width and height of each image: its boxes are scaled with them",
                         file=str(path / SIZES))  # fmt: skip
    images = []
    for image in ids:
        number, values = labels[image]
        label = _whole(values[0], "class", path / LABELS, number, least=0)
        size = None
        if sizes:
            at, both = sizes[image]
            size = (_whole(both[0], "width", path / SIZES, at, 1), _whole(both[1], "height", path / SIZES, at, 1))
        boxes: tuple[Box, ...] = ()
        masks: tuple[str, ...] = ()
        ignored = ""
        if count == 4:
            boxes = tuple(_box(values, size, path / LOCALIZATION, at) for at, values in rows[image])
        else:
            masks, ignored = _masks_of(rows[image], path / LOCALIZATION)
        images.append(Annotated(image, label, f"{path / LABELS}:{number}", boxes, masks, ignored, size))
    return DataSet(str(folder), _of_several_files(images))


def read_csv(file: str | Path) -> DataSet:
    """Reads a CSV file: a row for each box, those of an image anywhere, with the same class.

    A first row with the names of the columns may put them in any order; without one they are image, class, x1, y1, x2,
    y2. A class is a number from 0, or a name that the network knows. Columns ``mask`` and ``ignored`` name files, which
    rows of one image may repeat; with a mask, the box may be left empty.

    Args:
        file: UTF-8, separated by commas.

    Raises:
        CamrtError: A row says what cannot be; the text names its line.
    """
    path = Path(file)
    found: dict[str, Annotated] = {}
    for place, row in _rows(path):
        image = row["image"]
        box = _row_box(row, place)
        before = found.get(image)
        label = int(row["class"]) if row["class"].isdecimal() else row["class"]
        if before is not None and before.label != label:
            raise CamrtError(
                f"found the class {label!r} of {image!r}, and {before.label!r} at {before.place}, expected one class "
                "an image",
                file=place,
            )
        first = before or Annotated(image, label, place)
        masks = (*first.masks, *([row["mask"]] if row.get("mask") and row["mask"] not in first.masks else []))
        ignored = row.get("ignored") or first.ignored
        if first.ignored and ignored != first.ignored:
            raise CamrtError(
                f"found a second mask of what does not count, {ignored!r} beside {first.ignored!r}, expected one "
                "an image",
                file=place,
            )
        boxes = (*first.boxes, *([box] if box is not None else []))
        found[image] = Annotated(image, label, first.place, boxes, masks, ignored)
    if not found:
        raise CamrtError(f"holds no images, expected rows of {','.join(COLUMNS)}", file=str(path))
    return DataSet(str(file), _of_several_files(found.values()))


def _of_several_files(images: Iterable[Annotated]) -> tuple[Annotated, ...]:
    """The images, none of which is another one by another path."""
    seen: dict[str, Annotated] = {}
    for each in images:
        path = os.path.normpath(each.image)
        if path in seen:
            raise CamrtError(
                f"found {each.image!r}, which is {seen[path].image!r} ({seen[path].place}), expected each image once",
                file=each.place,
            )
        seen[path] = each
    return tuple(seen.values())


# ----------------------------------------------------------------------------------------------------------- the lines


def _lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CamrtError(f"cannot be read: {error.strerror or error}", file=str(path)) from error
    try:
        # surrogateescape would let a binary file through; names that are no UTF-8 are rare.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise CamrtError("is no UTF-8 text, expected lines of names and numbers", file=f"{path}:{line}") from None
    return text.replace("\r\n", "\n").split("\n")


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers."""
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield number, line


def _wrong(message: str, path: Path, number: int) -> NoReturn:
    raise CamrtError(message, file=f"{path}:{number}")


def _twice(image: str, first: int, path: Path, number: int) -> NoReturn:
    _wrong(f"found {image!r} a second time, the first is line {first}, expected each image once", path, number)


def _check_folder(path: Path) -> None:
    missing = [name for name in (IDS, LABELS, SIZES, LOCALIZATION) if not (path / name).is_file()]
    if not missing:
        return
    if not path.is_dir():
        raise CamrtError("there is no such folder, expected one with the metadata of wsolevaluation", file=str(path))
    below = sorted(each.name for each in path.iterdir() if (each / IDS).is_file())
    hint = f". Name one of the folders in it: {', '.join(below[:6])}" if below else ""
    raise CamrtError(
        f"holds no {', '.join(missing)}, expected the metadata of wsolevaluation: {IDS}, {LABELS}, {SIZES}, "
        f"{LOCALIZATION}{hint}",
        file=str(path),
    )


def _single(path: Path, found: dict[str, int], ids: Path) -> dict[str, int]:
    """Image -> line of the list of images, each once."""
    if not found:
        raise CamrtError("names no images, expected a path a line", file=str(path))
    if len(found) < sum(1 for _ in _numbered(path)):
        seen: dict[str, int] = {}
        for number, line in _numbered(path):
            if line in seen:
                _twice(line, seen[line], path, number)
            seen[line] = number
    return found


def _fields(path: Path, number: int, line: str, count: int) -> list[str]:
    """The name and ``count`` more fields; the name may hold commas."""
    fields = line.rsplit(",", count)
    if len(fields) != count + 1 or not fields[0]:
        expected = {1: "path,class", 2: "path,width,height" if path.name == SIZES else "path,mask,ignored"}
        wanted = expected.get(count, "path,x1,y1,x2,y2")
        _wrong(f"found {line[:200]!r}, expected {wanted}: is it metadata of wsolevaluation?", path, number)
    return fields


def _by_image(
    path: Path, count: int, ids: Mapping[str, int], *, may_be_empty: bool = False
) -> dict[str, tuple[int, list[str]]]:
    """Image -> its line's number and fields."""
    found: dict[str, tuple[int, list[str]]] = {}
    for number, line in _numbered(path):
        image, *values = _fields(path, number, line, count)
        _known(image, ids, path, number)
        if image in found:
            _twice(image, found[image][0], path, number)
        found[image] = number, values
    if found or not may_be_empty:
        _complete(ids, found, path)
    return found


def _known(image: str, ids: Mapping[str, int], path: Path, number: int) -> None:
    if image not in ids:
        _wrong(f"found {image!r}, which {IDS} does not name: the files are not of one data set", path, number)


def _complete(ids: Mapping[str, int], found: Mapping[str, Any], path: Path) -> None:
    missing = [image for image in ids if image not in found]
    if missing:
        raise CamrtError(
            f"says nothing of {len(missing):,} of the {len(ids):,} images, the first of which is {missing[0]!r} "
            f"({IDS}:{ids[missing[0]]}): the files are not of one data set, or one was cut off",
            file=str(path),
        )


def _kind(path: Path, number: int, line: str) -> int:
    """How many fields follow the path: 4 of a box, 2 of masks. The first line says it."""
    try:
        if len([float(value) for value in line.rsplit(",", 4)[1:]]) == 4:
            return 4
    except ValueError:
        pass
    if line.count(",") < 2 or (line.count(",") > 2 and any(part.strip().isdecimal() for part in line.split(",")[1:])):
        _wrong(
            f"found {line[:200]!r}, expected path,x1,y1,x2,y2 or path,mask,ignored: is it metadata of wsolevaluation?",
            path / LOCALIZATION,
            number,
        )
    return 2


def _masks_of(rows: Sequence[tuple[int, list[str]]], path: Path) -> tuple[tuple[str, ...], str]:
    masks, ignored = [], ""
    for count, (number, (mask, without)) in enumerate(rows):
        if not mask.strip():
            _wrong("found no mask, expected path,mask,ignored", path, number)
        if without and count:
            _wrong(f"found {without!r}, expected what does not count at the first line of an image only", path, number)
        masks.append(mask)
        ignored = ignored or without
    return tuple(masks), ignored


def _whole(text: str, what: str, path: Path, number: int, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        _wrong(f"found the {what} {text!r}, expected a whole number", path, number)
    if value < least:
        _wrong(f"found the {what} {value}, expected at least {least}", path, number)
    return value


def _box(values: Sequence[str], size: tuple[int, int] | None, path: Path, number: int) -> Box:
    try:
        return checked_box(values, size)
    except CamrtError as error:
        _wrong(error.message, path, number)


def checked_box(values: Sequence[str], size: tuple[int, int] | None = None) -> Box:
    """A box of four texts.

    Args:
        values: x1, y1, x2, y2.
        size: The image's width and height, where they are known.

    Raises:
        CamrtError: They are no box, or the image does not hold it.
    """
    try:
        x1, y1, x2, y2 = (float(value) for value in values)
    except ValueError:
        raise CamrtError(f"found the box {','.join(values)!r}, expected four numbers") from None
    found = ",".join(value.strip() for value in values)
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        raise CamrtError(f"found the box {found}, expected four numbers")
    if x2 < x1 or y2 < y1:
        raise CamrtError(f"found the box {found}, expected x1 <= x2 and y1 <= y2")
    if min(x1, y1) < 0:
        raise CamrtError(f"found the box {found}, expected coordinates from 0 on")
    if size is not None and (x2 > size[0] or y2 > size[1]):
        raise CamrtError(f"found the box {found}, expected one in the image of {size[0]} x {size[1]} pixels")
    return x1, y1, x2, y2


# ------------------------------------------------------------------------------------------------------------- the CSV


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows by column, with their places."""
    reader = csv.reader(_lines(path))
    columns: Sequence[str] = COLUMNS
    try:
        for count in itertools.count():
            row = next(reader, None)
            if row is None:
                return
            place = f"{path}:{reader.line_num}"
            row = [value.strip() for value in row]
            if not any(row):
                continue
            if count == 0 and "image" in (named := [value.casefold() for value in row]):
                columns = _columns(named, place)
                continue
            if len(row) != len(columns):
                raise CamrtError(f"found {len(row)} values, expected {len(columns)}: {','.join(columns)}", file=place)
            values = dict(zip(columns, row, strict=True))
            if not values["image"] or not values["class"]:
                raise CamrtError("found no image or no class, expected both in each row", file=place)
            yield place, values
    except csv.Error as error:
        raise CamrtError(f"is no CSV that can be read: {error}", file=f"{path}:{reader.line_num}") from error


def _columns(named: Sequence[str], place: str) -> Sequence[str]:
    missing = [column for column in COLUMNS if column not in named]
    unknown = [column for column in named if column not in (*COLUMNS, *_MASKS)]
    if missing or unknown or len(set(named)) < len(named):
        raise CamrtError(
            f"found the columns {','.join(named)}, expected {','.join(COLUMNS)}, each once, and if wanted "
            f"{','.join(_MASKS)}",
            file=place,
        )
    return list(named)


def _row_box(row: Mapping[str, str], place: str) -> Box | None:
    values = [row[column] for column in COLUMNS[2:]]
    if not any(values):
        if row.get("mask"):
            return None
        raise CamrtError("found no box, expected x1,y1,x2,y2", file=place)
    try:
        return checked_box(values)
    except CamrtError as error:
        raise error.in_file(place) from None
