"""File formats of the ILSVRC development kit: ground truth, annotations, class numbers, blacklist, submissions.

Files are not trusted: an error names the file and the line. Annotations are PASCAL VOC XML, one file per image, or
cache_groundtruth.mat, which the devkit's eval_clsloc.m writes after reading these files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from xml.parsers import expat

import numpy as np
import numpy.typing as npt

from camrt.errors import CamrtError
from camrt.evaluate.ilsvrc import GUESSES, Floats, Integers, guesses

_LARGEST_XML = 1 << 20  # bytes; the devkit's are of some 500
_DEEPEST_XML = 32
_LARGEST_TEXT = 1 << 28  # bytes
_SYNSET = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Annotation:
    """The annotated objects of an image.

    Attributes:
        image: The name of the image, without extension; "" if the file does not state it.
        names: The class name of each box; a synset in ILSVRC.
        boxes: (M, 4) float64: x1, y1, x2, y2 in pixels, including the last pixel.
        size: Width and height in pixels; None if the file does not state them.
    """

    image: str
    names: tuple[str, ...]
    boxes: Floats
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Annotations:
    """The boxes of all images, with class names or class numbers.

    Attributes:
        images: The image names, without extensions; None if only the order of the images is known.
        boxes: (M, 5) per image: class, x1, y1, x2, y2. The class is 0 if only its name is known.
        names: The class names of each image's boxes; None if the class numbers are known.
        sizes: The width and height of each image in pixels, if known.
    """

    images: tuple[str, ...] | None
    boxes: list[Floats]
    names: list[tuple[str, ...]] | None = None
    sizes: list[tuple[int, int] | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, part: slice) -> Annotations:
        """Return the annotations of a range of images."""
        return Annotations(
            None if self.images is None else self.images[part],
            self.boxes[part],
            None if self.names is None else self.names[part],
            self.sizes[part],
        )

    def numbered(self, synsets: Mapping[str, int], file: str) -> Annotations:
        """Return the annotations with class numbers.

        Args:
            synsets: Name -> number.
            file: The source of the annotations, for errors.

        Raises:
            CamrtError: A box has a name without a number.
        """
        if self.names is None:
            return self
        boxes = []
        for image, (names, array) in enumerate(zip(self.names, self.boxes, strict=True)):
            unknown = next((name for name in names if name not in synsets), None)
            if unknown is not None:
                where = self.images[image] if self.images else f"image {image + 1}"
                raise CamrtError(
                    f"found a box of {unknown!r} in {where}, expected one of the {len(synsets):,} classes that have a "
                    "number. Is it the annotation of another dataset?",
                    file=file,
                )
            boxes.append(np.hstack([np.array([[synsets[name]] for name in names]).reshape(-1, 1), array[:, 1:]]))
        return Annotations(self.images, boxes, None, self.sizes)


# ------------------------------------------------------------------------------------------------- text files


def read_ground_truth(path: Path, classes: int | None = None) -> Integers:
    """Read the class of each image, one number per line, as in ILSVRC2014_clsloc_validation_ground_truth.txt.

    Args:
        path: The file.
        classes: The number of classes, if known.

    Returns:
        (N,) int64, counted from 1.

    Raises:
        CamrtError: The file cannot be read, or a line is not a class.
    """
    lines = list(numbered_lines(path))
    if not lines:
        raise CamrtError("found no numbers, expected one class per line", file=str(path))
    numbers = [_whole(word, path, line) for line, word in lines]
    for (line, _), number in zip(lines, numbers, strict=True):
        if number < 1 or (classes is not None and number > classes):
            raise CamrtError(f"found the class {number}, expected 1 to {classes or '...'}", file=f"{path}:{line}")
    return np.array(numbers, np.int64)


def read_blacklist(path: Path) -> tuple[int, ...]:
    """Read the images that do not count for localization, counted from 1, one per line.

    Raises:
        CamrtError: The file cannot be read, or a line is not a number.
    """
    return tuple(_whole(line, path, number) for number, line in numbered_lines(path))


def read_names(path: Path) -> tuple[str, ...]:
    """Read the image names in the order of the ground truth, one per line, without extensions and folders.

    Raises:
        CamrtError: The file cannot be read, or names an image twice.
    """
    names = tuple(Path(line.split("\t")[0]).stem for _, line in numbered_lines(path))
    _check_unique(names, path)
    return names


def read_submission(path: Path, classes: int | None = None) -> Floats:
    """Read predictions in the devkit's text format: one line per image, five numbers per guess, separated by spaces.

    Args:
        path: The file. A line may have fewer than five guesses; further guesses are ignored.
        classes: The number of classes, if known.

    Returns:
        (N, 25): class, x1, y1, x2, y2, five times; 0 for no guess.

    Raises:
        CamrtError: The file cannot be read, or a line has another format.
    """
    rows = []
    lines = list(numbered_lines(path, keep_empty=True))
    for number, line in lines:
        try:
            row = np.array(line.split(), np.float64)
        except ValueError as error:
            raise CamrtError(f"found something that is not a number ({error})", file=f"{path}:{number}") from None
        if not row.size or row.size % 5:
            raise CamrtError(
                f"found {row.size} numbers, expected five per guess: class x1 y1 x2 y2", file=f"{path}:{number}"
            )
        rows.append(np.pad(row[: 5 * GUESSES], (0, max(0, 5 * GUESSES - row.size))))
    if not rows:
        raise CamrtError("found no lines, expected one for each image", file=str(path))
    predictions = np.stack(rows)
    try:
        numbers, _ = guesses(predictions)
    except CamrtError as error:
        raise error.in_file(str(path)) from None
    if classes is not None and (numbers > classes).any():
        image = int(np.argmax((numbers > classes).any(axis=1)))
        raise CamrtError(
            f"found the class {numbers[image].max():g}, expected 1 to {classes}", file=f"{path}:{lines[image][0]}"
        )
    return predictions


def format_submission(predictions: npt.ArrayLike) -> str:
    """Write predictions as text in the devkit's format: one line per image.

    Args:
        predictions: (N, 25), as for `camrt.evaluate.ilsvrc.localization_error`.

    Returns:
        The text. Whole numbers have no decimals; other numbers have as many as needed.

    Raises:
        CamrtError: The shape or a class is invalid, or a box ends before it begins.
    """
    guesses(predictions)
    matrix = np.asarray(predictions, np.float64)
    return "".join(" ".join(_shortest(value) for value in row) + "\n" for row in matrix.tolist())


# ------------------------------------------------------------------------------------------------- classes


def read_synsets(path: Path) -> dict[str, int]:
    """Read the number of each class from a devkit's meta file or a mapping file.

    Args:
        path: ``meta_clsloc.mat`` or ``meta.mat`` of a devkit, of which only synsets without children are read; or a
            text file with a name and a number per line, such as ``n01440764 449``.

    Returns:
        Synset or name -> number, counted from 1.

    Raises:
        CamrtError: The file cannot be read, has another structure, or has a name or a number twice.
    """
    found = _mat_synsets(path) if path.suffix == ".mat" else _text_synsets(path)
    if not found:
        raise CamrtError("found no classes", file=str(path))
    synsets: dict[str, int] = {}
    owners: dict[int, str] = {}
    for name, number in found:
        if name in synsets or number in owners or number < 1:
            raise CamrtError(
                f"found {name} with the number {number}, expected numbers from 1 on, one for each name", file=str(path)
            )
        synsets[name], owners[number] = number, name
    return synsets


def synsets_of(annotations: Annotations, ground_truth: Integers, file: str) -> dict[str, int]:
    """Infer the number of each class from images whose boxes have its name and whose ground truth is its number.

    Args:
        annotations: Annotations with class names.
        ground_truth: (N,) class numbers.
        file: The source of the annotations, for errors.

    Raises:
        CamrtError: A name has two numbers, or a number has two names.
    """
    synsets: dict[str, int] = {}
    owners: dict[int, str] = {}
    for names, number in zip(annotations.names or [], ground_truth.tolist(), strict=True):
        distinct = set(names)
        if len(distinct) != 1:  # with objects of several classes, the image's class is unknown
            continue
        name = distinct.pop()
        if synsets.setdefault(name, number) != number or owners.setdefault(number, name) != name:
            raise CamrtError(
                f"found boxes of {name!r} in an image whose ground truth is {number}, and in others "
                f"{owners.get(number, name)!r} with {synsets[name]}. The annotations and the ground truth are not in "
                "one order, or of different datasets; if they are right, name the classes with --meta",
                file=file,
            )
    return synsets


def class_ids(synsets: Mapping[str, int], classes: int, labels: Sequence[str] | None) -> Integers:
    """Return the devkit's number of each class of a network.

    A label of the network must be a name of the mapping, or start with one that is a synset ("n01440764 tench"). If no
    label matches and all names are synsets, the network's classes are assumed to be in the order of the synsets, as in
    Caffe's and torchvision's networks.

    Args:
        synsets: Name -> number.
        classes: The number of classes of the network.
        labels: Their names; None for 0, 1, 2, ...

    Returns:
        (K,) int64, counted from 1.

    Raises:
        CamrtError: There are more or fewer classes than numbers, or the labels cannot be matched.
    """
    if len(synsets) != classes:
        raise CamrtError(
            f"the network has {classes:,} classes, and {len(synsets):,} have a number. Give the meta file of the data "
            "set that the network was trained on: --meta"
        )
    labels = labels or [str(number) for number in range(classes)]
    names = [_named(label, synsets) for label in labels]
    if None not in names and len(set(names)) == classes:
        return np.array([synsets[name] for name in names if name is not None], np.int64)
    if all(_SYNSET.fullmatch(name) for name in synsets) and not any(names):
        return np.array([synsets[name] for name in sorted(synsets)], np.int64)
    unknown = next((label for label, name in zip(labels, names, strict=True) if name is None), None)
    found = repr(unknown) if unknown is not None else "two of one name"
    raise CamrtError(
        f"found {found} among the network's classes, expected names of the mapping, as {next(iter(synsets))!r}. Write "
        "a mapping file with a line 'LABEL NUMBER' for each class, and give it with --meta"
    )


def _named(label: str, synsets: Mapping[str, int]) -> str | None:
    """Return the name of a label in the mapping."""
    if label in synsets:
        return label
    first = label.split(" ")[0].rstrip(",")
    return first if _SYNSET.fullmatch(first) and first in synsets else None


def _text_synsets(path: Path) -> list[tuple[str, int]]:
    found = []
    for number, line in numbered_lines(path):
        words = line.split()
        if len(words) < 2:
            raise CamrtError(
                f"found {line[:80]!r}, expected a name and a number, as 'n01440764 449'", file=f"{path}:{number}"
            )
        found.append((" ".join(words[:-1]), _whole(words[-1], path, number)))
    return found


def _mat_synsets(path: Path) -> list[tuple[str, int]]:
    synsets = _mat(path, "synsets").ravel()
    fields = synsets.dtype.names or ()
    key = next((name for name in fields if re.fullmatch(r"ILSVRC\d{4}_ID", name)), None)
    if key is None or "WNID" not in fields:
        raise CamrtError(
            f"found synsets with the fields {list(fields)}, expected WNID and ILSVRC2014_ID", file=str(path)
        )
    try:
        return [
            (str(synset["WNID"].item()), int(synset[key].item()))
            for synset in synsets
            if "num_children" not in fields or int(synset["num_children"].item()) == 0
        ]
    except (ValueError, TypeError) as error:
        raise CamrtError(f"a synset's WNID or {key} cannot be read ({error})", file=str(path)) from error


# ------------------------------------------------------------------------------------------------- annotations


def read_annotations(path: Path, progress: Callable[[int], object] = lambda count: None) -> Annotations:
    """Read the boxes of all images from a folder of VOC XML files or from cache_groundtruth.mat.

    The files of a folder are read in the order of their names, as in the devkit.

    Args:
        path: The folder or the file.
        progress: Called with the number of files read since the last call.

    Raises:
        CamrtError: A file cannot be read, or is not an annotation.
    """
    if not path.is_dir():
        if path.exists() and path.suffix != ".mat":
            raise CamrtError("expected a folder of XML files, or cache_groundtruth.mat", file=str(path))
        return _mat_annotations(path)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".xml" and not file.name.startswith("."))
    if not files:
        raise CamrtError("the folder holds no .xml files, expected one for each image", file=str(path))
    found = []
    for file in files:
        found.append(read_annotation(file))
        progress(1)
    return Annotations(
        images=tuple(file.stem for file in files),
        boxes=[np.pad(one.boxes, ((0, 0), (1, 0))) for one in found],
        names=[one.names for one in found],
        sizes=[one.size for one in found],
    )


def read_annotation(path: Path) -> Annotation:
    """Read the objects of an image from PASCAL VOC XML.

    A document type is refused, because it could declare entities.

    Args:
        path: The file. Its name without extension is the image's name.

    Raises:
        CamrtError: The file cannot be read, is not a VOC annotation, belongs to another image, or a box ends before it
            begins.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_LARGEST_XML + 1)
    except OSError as error:
        raise CamrtError(f"cannot be read: {error.strerror or error}", file=str(path)) from error
    if len(content) > _LARGEST_XML:
        raise CamrtError(f"found more than {_LARGEST_XML:,} bytes, expected a VOC annotation", file=str(path))
    try:
        annotation = _Voc().parse(content)
    except CamrtError as error:
        raise error.in_file(str(path)) from None
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise CamrtError(f"is not readable XML: {error}", file=str(path)) from error
    if annotation.image and annotation.image != path.stem:
        raise CamrtError(
            f"found the annotation of the image {annotation.image!r}, expected that of {path.stem!r}, as the file is "
            "called",
            file=str(path),
        )
    return annotation


class _Voc:
    """A handler of expat's events that collects a VOC annotation."""

    _OBJECT = ("annotation", "object")
    _SIDES = ("xmin", "ymin", "xmax", "ymax")

    def __init__(self) -> None:
        self._path: list[str] = []
        self._text: list[str] = []
        self._image = ""
        self._size: dict[str, str] = {}
        self._objects: list[dict[str, str]] = []

    def parse(self, content: bytes) -> Annotation:
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler = self._begin
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text.append
        parser.Parse(content, True)
        if self._image == "" and not self._objects and not self._size:
            raise CamrtError("found no file name, size or object, expected a VOC annotation")
        boxes = np.array([self._box(number, found) for number, found in enumerate(self._objects, 1)])
        names = tuple(found.get("name", "") for found in self._objects)
        if "" in names:
            raise CamrtError(f"object {names.index('') + 1} has no name")
        return Annotation(_stem(self._image), names, boxes.reshape(-1, 4).astype(np.float64), self._dimensions())

    def _refuse(self, *_: object) -> NoReturn:
        raise CamrtError("found a document type, which VOC annotations do not have")

    def _begin(self, tag: str, _: object) -> None:
        if not self._path and tag != "annotation":
            raise CamrtError(f"found <{tag[:80]}>, expected <annotation>")
        if len(self._path) == _DEEPEST_XML:
            raise CamrtError(f"found more than {_DEEPEST_XML} elements inside each other, expected a VOC annotation")
        self._path.append(tag)
        if tuple(self._path) == self._OBJECT:
            self._objects.append({})
        self._text.clear()

    def _end(self, tag: str) -> None:
        text = "".join(self._text).strip()
        self._text.clear()
        match self._path[1:]:
            case ["filename"]:
                self._image = text
            case ["size", "width" | "height"]:
                self._size[tag] = text
            case ["object", "name"]:
                self._objects[-1]["name"] = text
            case ["object", "bndbox", side] if side in self._SIDES:
                self._objects[-1][side] = text
        self._path.pop()

    def _box(self, number: int, found: Mapping[str, str]) -> list[float]:
        missing = [side for side in self._SIDES if side not in found]
        if missing:
            raise CamrtError(f"object {number} has no {missing[0]}")
        try:
            box = [float(found[side]) for side in self._SIDES]
        except ValueError as error:
            raise CamrtError(f"object {number}: {error}") from None
        if not (np.isfinite(box).all() and box[0] <= box[2] and box[1] <= box[3]):
            raise CamrtError(
                f"object {number}: found the box {' '.join(found[side] for side in self._SIDES)}, expected xmin ymin "
                "xmax ymax with xmin <= xmax and ymin <= ymax"
            )
        return box

    def _dimensions(self) -> tuple[int, int] | None:
        try:
            width, height = (int(self._size[side]) for side in ("width", "height"))
        except (KeyError, ValueError):
            return None
        return (width, height) if width > 0 and height > 0 else None  # some writers put 0 for an unknown size


def _stem(name: str) -> str:
    """Return a file name without extension; ILSVRC's names have none."""
    path = Path(name)
    return path.stem if re.fullmatch(r"\.[A-Za-z][A-Za-z0-9]{1,4}", path.suffix) else path.name


def _mat_annotations(path: Path) -> Annotations:
    records = _mat(path, "rec").ravel()
    if not records.size or "objects" not in (records.dtype.names or ()):
        raise CamrtError(f"found rec of {records.dtype}, expected structures with the field objects", file=str(path))
    boxes = []
    for image, objects in enumerate(records["objects"], 1):
        try:
            flat = objects.ravel()
            rows = [
                [label.item(), *box.ravel().tolist()]
                for label, box in (zip(flat["label"], flat["bbox"], strict=True) if flat.size else ())
            ]
            boxes.append(np.array(rows, np.float64).reshape(-1, 5))
        except (ValueError, TypeError, IndexError, AttributeError) as error:
            raise CamrtError(
                f"rec({image}).objects cannot be read ({error}), expected label and bbox (x1 y1 x2 y2) of each",
                file=str(path),
            ) from error
    return Annotations(None, boxes)


def _mat(path: Path, variable: str) -> npt.NDArray[Any]:
    """Read a variable of a MATLAB file."""
    from scipy.io import loadmat

    try:
        # Numbers are read as they are stored; MATLAB stores doubles in smaller types if they fit.
        with path.open("rb") as stream:
            content = loadmat(stream, variable_names=[variable])
    except OSError as error:
        raise CamrtError(f"cannot be read: {error.strerror or error}", file=str(path)) from error
    except NotImplementedError:
        raise CamrtError(
            "is a MATLAB 7.3 file, expected version 5. In MATLAB: save(name, '-v7')", file=str(path)
        ) from None
    except Exception as error:  # scipy raises many types for a broken file
        raise CamrtError(f"is not a readable MATLAB file ({type(error).__name__}: {error})", file=str(path)) from error
    if variable not in content:
        raise CamrtError(f"found no variable {variable} in it. Is it another file of the devkit?", file=str(path))
    return np.asarray(content[variable])


# ------------------------------------------------------------------------------------------------- lines


def read_lines(path: Path) -> list[str]:
    """Read the lines of a UTF-8 text file, without their ends.

    Raises:
        CamrtError: The file cannot be read, or is not text.
    """
    try:
        if path.stat().st_size > _LARGEST_TEXT:
            raise CamrtError(f"found more than {_LARGEST_TEXT:,} bytes, expected a text file", file=str(path))
        content = path.read_bytes()
    except OSError as error:
        raise CamrtError(f"cannot be read: {error.strerror or error}", file=str(path)) from error
    try:
        # surrogateescape would accept a binary file; names that are not UTF-8 are rare.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise CamrtError("is not UTF-8 text, expected lines of names and numbers", file=f"{path}:{line}") from None
    return text.replace("\r\n", "\n").split("\n")


def numbered_lines(path: Path, *, keep_empty: bool = False) -> Iterator[tuple[int, str]]:
    """Read the lines of a text file with their numbers.

    Args:
        path: The file.
        keep_empty: Whether to keep empty lines. Those at the end of the file are always dropped.

    Raises:
        CamrtError: The file cannot be read, or is not text.
    """
    lines = read_lines(path)
    last = max((number for number, line in enumerate(lines, 1) if line.strip()), default=0)
    for number, line in enumerate(lines[:last], 1):
        if keep_empty or line.strip():
            yield number, line


def _whole(word: str, path: Path, line: int) -> int:
    """Parse a whole number, also as ``1.0000000e+00``, which MATLAB may write."""
    try:
        number = float(word)
        if number != int(number):
            raise ValueError
    except (ValueError, OverflowError):
        raise CamrtError(f"found {word[:80]!r}, expected a whole number", file=f"{path}:{line}") from None
    return int(number)


def _shortest(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _check_unique(names: Iterable[str], path: Path) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise CamrtError(f"found the image {name!r} twice, expected it once", file=str(path))
        seen.add(name)
