"""Annotated images: the ILSVRC development kit's, those of the wsolevaluation metadata, and those of a CSV file.

The wsolevaluation metadata are the four text files that Choe et al. (CVPR 2020) published for CUB, ImageNet and
OpenImages. They have one line per image (or box, or mask) and no header:

* ``image_ids.txt``: ``path``, relative to the image folder;
* ``class_labels.txt``: ``path,class``, with classes counted from 0;
* ``image_sizes.txt``: ``path,width,height``; may be empty if there are masks;
* ``localization.txt``: ``path,x1,y1,x2,y2``, or ``path,mask,ignored``. Only the first line of an image names the mask
  of the pixels to ignore.

The CSV file has one row per box with the columns image, class, x1, y1, x2, y2, and optionally mask and ignored.

`camrt.evaluate.devkit` reads the files of the development kit. Missing or contradictory annotations are errors that
name the file and the line.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from camrt.batch import ENDINGS
from camrt.classes import class_number
from camrt.errors import CamrtError
from camrt.evaluate import devkit
from camrt.evaluate.devkit import Annotations, numbered_lines, read_lines
from camrt.evaluate.ilsvrc import ANY_CLASS, Floats, Integers

IDS, LABELS, SIZES, LOCALIZATION = "image_ids.txt", "class_labels.txt", "image_sizes.txt", "localization.txt"
COLUMNS = ("image", "class", "x1", "y1", "x2", "y2")
VALIDATION_NAME = "ILSVRC2012_val_{:08d}"  # of the ILSVRC validation images, counted from 1
_MASKS = ("mask", "ignored")

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class AnnotatedImage:
    """An image of a dataset.

    Attributes:
        image: The path relative to the image folder; in ILSVRC, the name without extension.
        label: The class: a number (counted from 0; in ILSVRC, from 1), or a name.
        place: Where the class was read, as ``"file:line"``.
        boxes: x1, y1, x2, y2 of each object, in pixels.
        masks: The mask files, relative to the mask folder.
        ignored: The file of the mask of the pixels to ignore; "" for none.
        size: Width and height in pixels, if the annotation states them.
        box_labels: The class number of each box; None if all boxes are of the image's class.
    """

    image: str
    label: int | str
    place: str
    boxes: tuple[Box, ...] = ()
    masks: tuple[str, ...] = ()
    ignored: str = ""
    size: tuple[int, int] | None = None
    box_labels: tuple[int, ...] | None = None

    @property
    def digest(self) -> str:
        """A hash of the annotation, which changes when the annotation does."""
        annotation = repr((self.label, self.boxes, self.masks, self.ignored, self.size))
        return hashlib.sha256(annotation.encode(errors="surrogateescape")).hexdigest()[:16]

    def misfit(self, size: tuple[int, int]) -> str | None:
        """Explain why the annotation cannot belong to an image of this size; None if it can.

        Args:
            size: The width and height of the image in pixels.
        """
        if self.size is not None and self.size != size:
            return (
                f"the image has {size[0]} x {size[1]} pixels, and its annotation is of one of "
                f"{self.size[0]} x {self.size[1]}"
            )
        return None

    def box_outside(self, size: tuple[int, int]) -> str | None:
        """Explain which box does not fit into an image of this size; None if all do.

        Args:
            size: The width and height of the image in pixels.
        """
        for box in self.boxes:
            if box[2] > size[0] or box[3] > size[1]:
                corners = ",".join(f"{each:g}" for each in box)
                return f"the image has {size[0]} x {size[1]} pixels, which do not hold its box {corners}"
        return None


@dataclass(frozen=True)
class Dataset:
    """Annotated images in order.

    Attributes:
        source: The folder or file that the annotations were read from.
        images: The images.
        blacklist: The images that do not count for localization (ILSVRC), counted from 1.
        synsets: The class numbers by name (ILSVRC); None if no file gives them.
    """

    source: str
    images: tuple[AnnotatedImage, ...] = field(repr=False)
    blacklist: tuple[int, ...] = ()
    synsets: Mapping[str, int] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The image names in order."""
        return tuple(each.image for each in self.images)

    @cached_property
    def truth(self) -> Integers:
        """The class of each image: (N,) int64. The classes must be numbers."""
        return np.array([each.label for each in self.images], np.int64)

    @cached_property
    def boxes(self) -> list[Floats]:
        """The boxes of each image: (M, 5) float64 of class, x1, y1, x2, y2 in pixels. The classes must be numbers."""
        return [_labeled_boxes(each) for each in self.images]

    @property
    def sizes(self) -> tuple[tuple[int, int] | None, ...]:
        """The width and height of each image in pixels, if the annotation states them."""
        return tuple(each.size for each in self.images)

    @property
    def has_boxes(self) -> bool:
        """Whether every image has a box."""
        return all(each.boxes for each in self.images)

    @property
    def has_masks(self) -> bool:
        """Whether every image has a mask."""
        return all(each.masks for each in self.images)

    def first(self, count: int | None) -> Dataset:
        """Return the dataset of the first images; all of them for None."""
        return self if count is None else Dataset(self.source, self.images[:count], self.blacklist, self.synsets)

    def numbered(self, classes: int, labels: Sequence[str] | None = None) -> dict[str, int]:
        """Return the class number of each image.

        Args:
            classes: The number of classes of the network.
            labels: Their names, if known.

        Raises:
            CamrtError: The network does not have one of the classes; the message names the line.
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


def _labeled_boxes(image: AnnotatedImage) -> Floats:
    labels = (image.label,) * len(image.boxes) if image.box_labels is None else image.box_labels
    rows = [(label, *box) for label, box in zip(labels, image.boxes, strict=True)]
    return np.array(rows, np.float64) if rows else np.empty((0, 5))


# ---------------------------------------------------------------------------------------------------------- the images


def find_images(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Find image files by name in a folder and its subfolders.

    Args:
        folder: The folder to search.
        names: The image names, without extensions.

    Returns:
        The path of each image that was found, by name.

    Raises:
        CamrtError: There is no such folder, none of the images is in it, or one is in it twice.
    """
    check_image_folder(folder)
    wanted = set(names)
    found: dict[str, Path] = {}
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            stem, ending = os.path.splitext(file)  # noqa: PTH122 - 50,000 times
            if stem not in wanted or ending.lower() not in ENDINGS:
                continue
            if stem in found:
                raise CamrtError(
                    f"found the image {stem!r} twice: {found[stem]} and {Path(parent) / file}, expected it once",
                    file=str(folder),
                )
            found[stem] = Path(parent) / file
    if not found:
        raise CamrtError(
            f"holds none of the {len(names):,} images, the first of which is {names[0]!r}. Name the folder with "
            "--images, or the image names with --list if they differ",
            file=str(folder),
        )
    return found


def image_files(folder: Path, dataset: Dataset) -> dict[str, Path | None]:
    """Return the file of each image by its path relative to the folder; None for a file that does not exist.

    Raises:
        CamrtError: There is no such folder.
    """
    check_image_folder(folder)
    files = {name: folder / name for name in dataset.names}
    return {name: path if path.is_file() else None for name, path in files.items()}


def check_image_folder(folder: Path) -> None:
    """Check that there is a folder of images.

    Raises:
        CamrtError: There is none.
    """
    if not folder.is_dir():
        raise CamrtError("there is no such folder, expected one with the images", file=str(folder))


# -------------------------------------------------------------------------------------------------------------- ILSVRC


def read_ilsvrc(
    annotations: Path,
    ground_truth: Path,
    *,
    meta: Path | None = None,
    names: Path | None = None,
    blacklist: Path | None = None,
    first: int | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> Dataset:
    """Read an ILSVRC dataset from the files of the development kit, or from files of the same formats.

    Image i is line i of the ground truth. Its name is line i of ``names``. By default, it is the name of the i-th XML
    file or, for cache_groundtruth.mat, that of the i-th ILSVRC validation image.

    Args:
        annotations: A folder of PASCAL VOC XML files, or cache_groundtruth.mat.
        ground_truth: The class of each image.
        meta: The class numbers: meta_clsloc.mat, or a mapping file. By default, they are inferred from images whose
            boxes have a class name and whose ground truth is a number, if the annotations hold names.
        names: The image names.
        blacklist: The images that do not count for localization.
        first: The number of images to take; by default all. The rest of the files is not checked then.
        progress: Called with the number of annotations read since the last call.

    Raises:
        CamrtError: A file cannot be read, or the files do not belong together.
    """
    synsets = None if meta is None else devkit.read_synsets(meta)
    truth = devkit.read_ground_truth(ground_truth, None if synsets is None else max(synsets.values()))
    listed = None if names is None else devkit.read_names(names)
    excluded = () if blacklist is None else devkit.read_blacklist(blacklist)
    for number in excluded:
        if not 1 <= number <= len(truth):
            raise CamrtError(
                f"found image {number}, expected 1 to {len(truth):,}, as many as the ground truth has",
                file=str(blacklist),
            )
    found = devkit.read_annotations(annotations, progress)
    if first is not None:
        truth, listed = truth[:first], listed and listed[:first]
        excluded = tuple(number for number in excluded if number <= first)
        found = found if listed and found.images else found[:first]
    found = _in_order(found, listed, len(truth), annotations, ground_truth)
    if synsets is None and found.names is not None:
        synsets = devkit.synsets_of(found, truth, str(annotations))
    found = found.numbered(synsets or {}, str(annotations))
    dataset = Dataset(str(annotations), _ilsvrc_images(found, listed, truth, ground_truth), excluded, synsets)
    _check_ilsvrc(dataset, annotations)
    return dataset


def _ilsvrc_images(
    found: Annotations, listed: tuple[str, ...] | None, truth: Integers, ground_truth: Path
) -> tuple[AnnotatedImage, ...]:
    names = listed or found.images or tuple(VALIDATION_NAME.format(number) for number in range(1, len(truth) + 1))
    sizes = found.sizes or [None] * len(truth)
    images = []
    for number, (name, label, boxes, size) in enumerate(zip(names, truth.tolist(), found.boxes, sizes, strict=True), 1):
        rows = boxes.tolist()
        corners = tuple([(x1, y1, x2, y2) for _, x1, y1, x2, y2 in rows])
        labels = tuple([int(row[0]) for row in rows])
        images.append(
            AnnotatedImage(name, label, f"{ground_truth}:{number}", corners, size=size, box_labels=labels)
        )  # fmt: skip
    return tuple(images)


def _in_order(
    found: Annotations, listed: tuple[str, ...] | None, number: int, annotations: Path, ground_truth: Path
) -> Annotations:
    """Return the annotations in the order of the ground truth, and as many as it has."""
    if listed is not None and len(listed) != number:
        raise CamrtError(f"found {len(listed):,} names with --list, and {number:,} classes in {ground_truth}")
    if listed is None or found.images is None:
        if len(found) != number:
            raise CamrtError(
                f"found annotations of {len(found):,} images, and {number:,} classes in {ground_truth}, expected as "
                "many",
                file=str(annotations),
            )
        return found
    positions = {name: position for position, name in enumerate(found.images)}
    missing = next((name for name in listed if name not in positions), None)
    if missing is not None:
        raise CamrtError(f"there is no annotation {missing}.xml, which --list names", file=str(annotations))
    order = [positions[name] for name in listed]
    return Annotations(
        listed,
        [found.boxes[position] for position in order],
        None if found.names is None else [found.names[position] for position in order],
        [found.sizes[position] for position in order],
    )


def _check_ilsvrc(dataset: Dataset, annotations: Path) -> None:
    """Check that every image that counts has a box of its class: otherwise no guess could be right."""
    counted = np.ones(len(dataset), bool)
    counted[np.array(dataset.blacklist, np.int64) - 1] = False
    pairs = zip(dataset.boxes, dataset.truth.tolist(), strict=True)
    has_box = np.array([bool((boxes[:, 0] == truth).any() or truth == ANY_CLASS) for boxes, truth in pairs])
    without = np.flatnonzero(counted & ~has_box)
    if without.size:
        image = int(without[0])
        classes = sorted({int(number) for number in dataset.boxes[image][:, 0]})
        raise CamrtError(
            f"found no box of class {dataset.truth[image]}, its ground truth, in {dataset.names[image]} (image "
            f"{image + 1}): its boxes are of {classes or 'no class'}; so it is in {without.size:,} of {len(dataset):,} "
            "images. Do the ground truth and the annotations belong to one dataset, in the same order? An image "
            "without a box can be put on the blacklist",
            file=str(annotations),
        )


# ------------------------------------------------------------------------------------------- wsolevaluation's metadata


def read_metadata(folder: str | Path) -> Dataset:
    """Read the metadata of wsolevaluation.

    Args:
        folder: The folder of the four text files, such as ``metadata/CUB/test``.

    Raises:
        CamrtError: A file is missing or has invalid content, or an image is missing from one of the files or listed
            twice. The message names the file and the line.
    """
    path = Path(folder)
    _check_metadata_folder(path)
    ids = _image_ids(path / IDS)
    labels = _by_image(path / LABELS, 1, ids)
    sizes = _by_image(path / SIZES, 2, ids, may_be_empty=True)
    count, rows = _localization_rows(path / LOCALIZATION, ids)
    if count == 4 and not sizes:
        raise CamrtError("is empty, expected the width and height of each image: its boxes are scaled with them",
                         file=str(path / SIZES))  # fmt: skip
    images = []
    for image in ids:
        number, values = labels[image]
        label = _whole(values[0], "class", path / LABELS, number, least=0)
        size = None
        if sizes:
            line, both = sizes[image]
            size = (_whole(both[0], "width", path / SIZES, line, 1), _whole(both[1], "height", path / SIZES, line, 1))
        boxes: tuple[Box, ...] = ()
        masks: tuple[str, ...] = ()
        ignored = ""
        if count == 4:
            boxes = tuple(_box(values, size, path / LOCALIZATION, line) for line, values in rows[image])
        else:
            masks, ignored = _masks_of(rows[image], path / LOCALIZATION)
        images.append(AnnotatedImage(image, label, f"{path / LABELS}:{number}", boxes, masks, ignored, size))
    return Dataset(str(folder), _without_duplicates(images))


def read_csv(file: str | Path) -> Dataset:
    """Read a CSV file with one row per box. The rows of an image may be anywhere and must have the same class.

    A header row may name the columns in any order. Without a header, the columns are image, class, x1, y1, x2, y2. A
    class is a number counted from 0, or a name that the network knows. The optional columns ``mask`` and ``ignored``
    name files, which several rows of an image may repeat. A row with a mask may leave the box empty.

    Args:
        file: A UTF-8 file, separated by commas.

    Raises:
        CamrtError: A row has invalid content; the message names its line.
    """
    path = Path(file)
    found: dict[str, AnnotatedImage] = {}
    for place, row in _rows(path):
        image = row["image"]
        box = _row_box(row, place)
        before = found.get(image)
        label = int(row["class"]) if row["class"].isdecimal() else row["class"]
        if before is not None and before.label != label:
            raise CamrtError(
                f"found the class {label!r} of {image!r}, and {before.label!r} at {before.place}, expected one class "
                "per image",
                file=place,
            )
        first = before or AnnotatedImage(image, label, place)
        masks = (*first.masks, *([row["mask"]] if row.get("mask") and row["mask"] not in first.masks else []))
        ignored = row.get("ignored") or first.ignored
        if first.ignored and ignored != first.ignored:
            raise CamrtError(
                f"found a second mask of pixels to ignore, {ignored!r} beside {first.ignored!r}, expected one an image",
                file=place,
            )
        boxes = (*first.boxes, *([box] if box is not None else []))
        found[image] = AnnotatedImage(image, label, first.place, boxes, masks, ignored)
    if not found:
        raise CamrtError(f"holds no images, expected rows of {','.join(COLUMNS)}", file=str(path))
    return Dataset(str(file), _without_duplicates(found.values()))


def read_tiny_imagenet(folder: str | Path) -> Dataset:
    """Read the validation images of Tiny ImageNet, with their boxes.

    ``val/val_annotations.txt`` has a line ``name wnid x1 y1 x2 y2`` for each image, separated by tabs. Classes are
    numbered in the order of ``wnids.txt``, as ``camrt train --data tiny:DIR`` numbers them.

    Args:
        folder: The folder with ``wnids.txt`` and ``val``; images are named relative to it.

    Raises:
        CamrtError: A file is missing, or a line has invalid content; the message names it.
    """
    root = Path(folder)
    classes = [line.strip() for line in read_lines(root / "wnids.txt") if line.strip()]
    path, found = root / "val" / "val_annotations.txt", []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        name, *fields = line.split()
        if len(fields) != 5 or fields[0] not in classes:
            _wrong(f"found {line.strip()[:80]!r}, expected a name, a class of wnids.txt and a box", path, number)
        box = _box(fields[1:], None, path, number)
        label = classes.index(fields[0])
        found.append(AnnotatedImage(f"val/images/{name}", label, f"{path}:{number}", (box,)))
    if not found:
        raise CamrtError("holds no images, expected lines of a name, a class and a box", file=str(path))
    return Dataset(str(root), _without_duplicates(found))


def _without_duplicates(images: Iterable[AnnotatedImage]) -> tuple[AnnotatedImage, ...]:
    """Return the images, after checking that no two paths name the same image."""
    seen: dict[str, AnnotatedImage] = {}
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


def _wrong(message: str, path: Path, number: int) -> NoReturn:
    raise CamrtError(message, file=f"{path}:{number}")


def _twice(image: str, first: int, path: Path, number: int) -> NoReturn:
    _wrong(f"found {image!r} a second time, the first is line {first}, expected each image once", path, number)


def _check_metadata_folder(path: Path) -> None:
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


def _image_ids(path: Path) -> dict[str, int]:
    """Return the line number of each image of the list."""
    found: dict[str, int] = {}
    for number, line in numbered_lines(path):
        if line in found:
            _twice(line, found[line], path, number)
        found[line] = number
    if not found:
        raise CamrtError("lists no images, expected one path per line", file=str(path))
    return found


def _localization_rows(path: Path, ids: Mapping[str, int]) -> tuple[int | None, dict[str, list[tuple[int, list[str]]]]]:
    """Return the number of fields after the path, and for each image the line numbers and fields of its rows."""
    rows: dict[str, list[tuple[int, list[str]]]] = {}
    count = None
    for number, line in numbered_lines(path):
        count = count or _kind(path, number, line)
        image, *values = _fields(path, number, line, count)
        _known(image, ids, path, number)
        rows.setdefault(image, []).append((number, values))
    _complete(ids, rows, path)
    return count, rows


def _fields(path: Path, number: int, line: str, count: int) -> list[str]:
    """Split a line into the name, which may contain commas, and ``count`` more fields."""
    fields = line.rsplit(",", count)
    if len(fields) != count + 1 or not fields[0]:
        expected = {1: "path,class", 2: "path,width,height" if path.name == SIZES else "path,mask,ignored"}
        wanted = expected.get(count, "path,x1,y1,x2,y2")
        _wrong(f"found {line[:200]!r}, expected {wanted}: is it metadata of wsolevaluation?", path, number)
    return fields


def _by_image(
    path: Path, count: int, ids: Mapping[str, int], *, may_be_empty: bool = False
) -> dict[str, tuple[int, list[str]]]:
    """Return the line number and the fields of each image."""
    found: dict[str, tuple[int, list[str]]] = {}
    for number, line in numbered_lines(path):
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
        _wrong(f"found {image!r}, which {IDS} does not name: the files do not belong to one dataset", path, number)


def _complete(ids: Mapping[str, int], found: Mapping[str, Any], path: Path) -> None:
    missing = [image for image in ids if image not in found]
    if missing:
        raise CamrtError(
            f"has no line for {len(missing):,} of the {len(ids):,} images, the first of which is {missing[0]!r} "
            f"({IDS}:{ids[missing[0]]}): the files do not belong to one dataset, or one was cut off",
            file=str(path),
        )


def _kind(path: Path, number: int, line: str) -> int:
    """Return the number of fields after the path, from the first line: 4 for a box, 2 for masks."""
    try:
        if len([float(value) for value in line.rsplit(",", 4)[1:]]) == 4:
            return 4
    except ValueError:
        pass
    if line.count(",") < 2 or (line.count(",") > 2 and any(part.strip().isdecimal() for part in line.split(",")[1:])):
        _wrong(
            f"found {line[:200]!r}, expected path,x1,y1,x2,y2 or path,mask,ignored: is it metadata of wsolevaluation?",
            path,
            number,
        )
    return 2


def _masks_of(rows: Sequence[tuple[int, list[str]]], path: Path) -> tuple[tuple[str, ...], str]:
    masks, ignored = [], ""
    for count, (number, (mask, without)) in enumerate(rows):
        if not mask.strip():
            _wrong("found no mask, expected path,mask,ignored", path, number)
        if without and count:
            _wrong(
                f"found {without!r}, expected the mask of pixels to ignore in the first line of an image only",
                path,
                number,
            )
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
    """Parse a box.

    Args:
        values: x1, y1, x2, y2 as text.
        size: The image's width and height, if known.

    Raises:
        CamrtError: The values are not a box, or the box is not inside the image.
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
    """Yield the rows by column, each with its place in the file."""
    reader = csv.reader(read_lines(path))
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
        raise CamrtError(f"is not readable CSV: {error}", file=f"{path}:{reader.line_num}") from error


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
