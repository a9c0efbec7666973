"""Sources of images and labels.

A source is specified by a string, ``KIND:PATH,key=value,...``:

=====================================  ==============================================================================
``list:FILE,root=DIR``                 a list as for Caffe's ImageData: a line ``path label`` for each image
``folder:DIR``                         a folder for each class
``tiny:DIR``                           the layout of Tiny ImageNet: train/, val/, wnids.txt, words.txt
``mnist:PATH,first=0,count=8000``      an idx file of MNIST, or the folder of its files
``clutter:drawn,seed=1``               canvases of `camrt.train.clutter`, with drawn digits or those of MNIST
=====================================  ==============================================================================
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from camrt.batch import ENDINGS
from camrt.errors import CamrtError
from camrt.train import clutter

if TYPE_CHECKING:
    from converters.layer import Layer

Phase = Literal["TRAIN", "TEST"]
Image = NDArray[Any]  # uint8; float32 from databases of floats
# Stacked images (N, H, W, C); or a sequence of images and, for those that cannot be read, errors.
Images = NDArray[Any] | Sequence[Image | CamrtError]
KINDS = ("list", "folder", "tiny", "mnist", "clutter")
_SHOWN = 10  # names in an error message


class Source(Protocol):
    """Images and labels by number.

    Attributes:
        name: The name of the source, for messages.
        classes: The names of the classes; empty if unknown.
        count: The number of images; None if it is infinite.
        largest_label: The largest label; None if it is not known before reading.
        is_cheap: Whether reading an image takes less time than passing it between processes.
    """

    name: str
    classes: tuple[str, ...]
    count: int | None
    largest_label: int | None
    is_cheap: bool

    def read(self, numbers: NDArray[np.int64]) -> tuple[Images, NDArray[np.int64]]:
        """Read images and labels.

        Args:
            numbers: (N,) from 0 to ``count`` - 1.

        Returns:
            N images (H, W, C), BGR if C is 3; and the labels (N,). An image that cannot be read is replaced by a
            CamrtError.
        """


class ImageFiles:
    """Image files with labels.

    Attributes:
        paths: (N,) bytes: the paths, as an array that worker processes share without copying.
        labels: (N,) int64.
        boxes: (N, 4) int64: x1, y1, x2, y2 in pixels, where x2 and y2 are exclusive; None without boxes.
    """

    is_cheap = False

    def __init__(
        self,
        name: str,
        paths: Sequence[str],
        labels: Sequence[int] | NDArray[np.int64],
        classes: Iterable[str] = (),
        boxes: NDArray[np.int64] | None = None,
    ) -> None:
        self.name, self.classes, self.boxes = name, tuple(classes), boxes
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.labels = np.asarray(labels, np.int64)
        self.count: int | None = len(self.paths)
        self.largest_label: int | None = int(self.labels.max())

    def read(self, numbers: NDArray[np.int64]) -> tuple[Images, NDArray[np.int64]]:
        """See `Source.read`. The images are BGR, as in OpenCV and Caffe."""
        return [decoded_image(os.fsdecode(self.paths[number])) for number in numbers], self.labels[numbers]


class Digits:
    """The digits of MNIST: 28 x 28, grayscale."""

    is_cheap = True
    classes = tuple("0123456789")

    def __init__(self, name: str, digits: clutter.Digits) -> None:
        self.name, self._digits = name, digits
        self.count: int | None = len(digits)
        self.largest_label: int | None = int(digits.labels.max())

    def read(self, numbers: NDArray[np.int64]) -> tuple[Images, NDArray[np.int64]]:
        """See `Source.read`."""
        return self._digits.images[numbers][..., None], self._digits.labels[numbers]


class Clutters:
    """An infinite sequence of cluttered digits."""

    is_cheap = True  # about 25 microseconds per image
    classes = tuple("0123456789")
    count: int | None = None

    def __init__(self, name: str, canvases: clutter.Clutter) -> None:
        self.name, self.canvases = name, canvases
        self.largest_label: int | None = int(canvases.digits.labels.max())

    def read(self, numbers: NDArray[np.int64]) -> tuple[Images, NDArray[np.int64]]:
        """See `Source.read`."""
        images, labels, _ = self.canvases.batch(numbers)
        return images[..., None], labels


def open_source(text: str, phase: Phase) -> Source:
    """Open the source that a string specifies.

    Args:
        text: ``KIND:PATH,key=value,...``.
        phase: Which part to open, if the source has several (``tiny:``, and ``mnist:`` with a folder).

    Raises:
        CamrtError: The kind or a key is unknown, files are missing, or a line of a list has no label.
    """
    kind, _, rest = text.partition(":")
    if kind not in KINDS or not rest:
        raise CamrtError(
            f"found the data {text!r}, expected KIND:PATH with KIND one of {', '.join(KINDS)}, such as "
            "folder:photos or list:train.txt"
        )
    openers: dict[str, Callable[[str, Phase], Source]] = {
        "list": _list,
        "folder": lambda text, _: _folder(text),
        "tiny": _tiny,
        "mnist": _mnist,
        "clutter": lambda text, _: Clutters(text, clutter.Clutter.parse(text)),
    }
    return openers[kind](text, phase)


def has_test_part(text: str) -> bool:
    """Return whether a source has separate images for testing."""
    kind, _, rest = text.partition(":")
    if kind == "mnist" and Path(rest).is_dir():
        return _idx_file(Path(rest), "TEST") is not None and _idx_file(Path(rest), "TRAIN") is not None
    return kind == "tiny"


def from_layer(layer: Layer, find: Callable[[str], Path]) -> ImageFiles:
    """Open the images of an ImageData layer.

    Args:
        layer: The layer.
        find: Resolves a path of the prototxt.

    Raises:
        CamrtError: The list or its images are missing, or a line has no label.
    """
    param = layer.params.image_data_param
    if not param.source:
        raise CamrtError(f"layer {layer.name} (ImageData): found no source, expected a list of images")
    root = param.root_folder
    where = str(find(root)) if root else ""
    return read_list(find(param.source), where)


def read_list(file: Path, root: str) -> ImageFiles:
    """Read a list as for Caffe's ImageData: a line ``path label`` for each image. Paths may contain spaces.

    Args:
        file: The list.
        root: The prefix of the paths; empty for none.

    Raises:
        CamrtError: The list cannot be read or is empty, a line has no label, or images are missing.
    """
    paths, labels = [], []
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        path, _, label = line.rstrip().rpartition(" ")
        if not path or not (label.isascii() and label.isdigit()) or len(label) > 9:
            raise CamrtError(
                f"found {line.strip()[:80]!r}, expected a path, a space and a label of 0 or more",
                file=f"{file}:{number}",
            )
        paths.append(f"{root.rstrip('/')}/{path.strip().lstrip('/')}" if root else path.strip())
        labels.append(int(label))
    return _image_files(str(file), paths, labels)


# ------------------------------------------------------------------------------------------------------------ the kinds


def _list(text: str, _: Phase) -> ImageFiles:
    path, options = _options(text, ("root",))
    return read_list(Path(path), options.get("root", str(Path(path).parent)))


def _folder(text: str) -> ImageFiles:
    path, _ = _options(text, ())
    folder = _directory(path)
    strays = [entry.name for entry in folder.iterdir() if _is_image(entry.name)]
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if strays or not classes:
        found = f"images outside the class folders ({abbreviated(strays)})" if strays else "no folders"
        raise CamrtError(f"found {found}, expected all images in a folder for each class", file=path)
    paths, labels = [], []
    for label, name in enumerate(classes):
        images = sorted(
            str(Path(where) / file) for where, _, files in os.walk(folder / name) for file in files if _is_image(file)
        )
        if not images:
            raise CamrtError(
                "found no images, expected those of a class: add images or remove the folder", file=str(folder / name)
            )
        paths += images
        labels += [label] * len(images)
    return ImageFiles(path, paths, labels, classes)


def _tiny(text: str, phase: Phase) -> ImageFiles:
    path, _ = _options(text, ())
    folder = _directory(path)
    wnids = [line.strip() for line in _lines(folder / "wnids.txt") if line.strip()]
    if len(set(wnids)) != len(wnids) or not wnids:
        raise CamrtError("found a class twice or no class, expected each class once", file=str(folder / "wnids.txt"))
    words = _words(folder / "words.txt")
    numbers = {wnid: number for number, wnid in enumerate(wnids)}
    names = [words.get(wnid, wnid) for wnid in wnids]
    if phase == "TRAIN":
        rows = [row for wnid in wnids for row in _tiny_class(folder / "train" / wnid, wnid)]
    else:
        rows = _tiny_rows(folder / "val" / "val_annotations.txt", folder / "val" / "images", None)
    unknown = sorted({wnid for _, wnid, _ in rows} - numbers.keys())
    if unknown:
        raise CamrtError(
            f"found the classes {abbreviated(unknown)}, expected those of wnids.txt",
            file=str(folder / "val" / "val_annotations.txt"),
        )
    boxes = None if any(box is None for *_, box in rows) else np.array([box for *_, box in rows], np.int64)
    labels = [numbers[wnid] for _, wnid, _ in rows]
    return _image_files(path, [image for image, *_ in rows], labels, names, boxes)


def _tiny_class(folder: Path, wnid: str) -> list[_Row]:
    """Return the training images of a class, with their boxes if there is a file of boxes."""
    boxes = folder / f"{wnid}_boxes.txt"
    if boxes.is_file():
        return _tiny_rows(boxes, folder / "images", wnid)
    images = sorted(entry for entry in _directory(str(folder / "images")).iterdir() if _is_image(entry.name))
    return [(str(image), wnid, None) for image in images]


def _tiny_rows(file: Path, images: Path, wnid: str | None) -> list[_Row]:
    """Read lines ``name [wnid] x1 y1 x2 y2``, separated by tabs, where x2 and y2 are inclusive."""
    rows: list[_Row] = []
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        name, *words = line.split()
        image_class = wnid or (words.pop(0) if words else "")
        if len(words) != 4 or not all(word.isdigit() for word in words):
            found = line.strip()[:80]
            raise CamrtError(f"found {found!r}, expected a name, a class and a box", file=f"{file}:{number}")
        x1, y1, x2, y2 = map(int, words)
        rows.append((str(images / name), image_class, (x1, y1, x2 + 1, y2 + 1)))
    return rows


def _mnist(text: str, phase: Phase) -> Digits:
    path, options = _options(text, ("first", "count"))
    file = Path(path)
    if file.is_dir():
        file = _idx_file(file, phase) or file  # or the only file of images in the folder
    numbers = {}
    for key, value in options.items():
        if not (value.isascii() and value.isdigit()) or len(value) > 18:
            raise CamrtError(f"found {key}={value} in the data {text!r}, expected an integer of 0 or more")
        numbers[key] = int(value)
    digits = clutter.Digits.from_idx(file)
    try:
        return Digits(text, digits.part(numbers.get("first", 0), numbers.get("count")))
    except CamrtError as error:
        raise error.in_file(str(file)) from None


def _idx_file(folder: Path, phase: Phase) -> Path | None:
    """Return the file of the images of a phase in a folder with the four files of MNIST."""
    part = "train" if phase == "TRAIN" else "t10k"
    return next((file for file in sorted(folder.glob(f"{part}-images*")) if file.is_file()), None)


# ------------------------------------------------------------------------------------------------------------ the files

_Row = tuple[str, str, tuple[int, int, int, int] | None]  # image, class, box


def _options(text: str, known: Sequence[str]) -> tuple[str, Mapping[str, str]]:
    """Split a source's string into the path and the options. A comma without an option belongs to the path."""
    path, *rest = text.partition(":")[2].split(",")
    while rest and "=" not in rest[0]:
        path = f"{path},{rest.pop(0)}"
    options = dict(pair.split("=", 1) for pair in rest if "=" in pair)
    unknown = [pair for pair in rest if pair.partition("=")[0] not in known]
    if unknown or len(options) < len(rest):
        kind = text.partition(":")[0]
        allowed = f"the options {', '.join(known)}, each at most once," if known else "no options"
        raise CamrtError(f"found {','.join(unknown or rest)} in the data {text!r}, expected {allowed} for {kind}:")
    return path, options


def _image_files(name: str, paths: list[str], labels: list[int], *more: Any) -> ImageFiles:
    """Create a source, after checking that all files exist.

    Each folder is listed once: checking a million files one by one takes minutes on a network file system.
    """
    if not paths:
        raise CamrtError("found no images, expected at least one", file=name)
    wanted = defaultdict(list)
    for path in paths:
        folder, file = os.path.split(path)
        wanted[folder].append(file)
    missing: list[str] = []
    for folder, files in wanted.items():
        try:
            here = set(os.listdir(folder or "."))  # noqa: PTH208 - names, not paths
        except OSError:
            here = set()
        absent = (str(Path(folder) / file) for file in files if file not in here)
        missing += [path for path in absent if not Path(path).exists()]  # file systems may ignore case
    if missing:
        raise CamrtError(
            f"found {len(missing):,} of {len(paths):,} images missing: {abbreviated(missing)}. Add the files, or "
            "remove them from the list",
            file=name,
        )
    return ImageFiles(name, paths, labels, *more)


def decoded_image(path: str) -> Image | CamrtError:
    """Read an image file as BGR (H, W, 3). If it cannot be read, return the error."""
    from camrt import images

    try:
        return images.decode(path)[:, :, ::-1]
    except CamrtError as error:
        return error


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except FileNotFoundError:
        raise CamrtError("there is no such file", file=str(file)) from None
    except OSError as error:
        raise CamrtError(f"cannot be read: {error.strerror or error}", file=str(file)) from error


def _words(file: Path) -> dict[str, str]:
    """Return the names of WordNet's classes, by their identifiers."""
    pairs = (line.partition("\t") for line in (_lines(file) if file.exists() else ()))
    return {wnid.strip(): words.strip() for wnid, _, words in pairs if words.strip()}


def _directory(path: str) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise CamrtError("found a file, expected a folder" if folder.exists() else "there is no such folder", file=path)
    return folder


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in ENDINGS


def abbreviated(names: Sequence[str]) -> str:
    """Join names for a message, and replace all but the first ones by their number."""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
