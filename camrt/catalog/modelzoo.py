"""``zoo:NAME``: the classifiers of the ONNX Model Zoo.

models/model_zoo.csv, which scripts/model_zoo.py writes, has a line for each: its size and SHA-256, as the zoo published
them, and what it wants of an image. The files were in the zoo's Git repository until 2025, and are on Hugging Face now.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from camrt.catalog.entry import Entry, source
from camrt.errors import CamrtError
from converters import zoo
from converters.download import Expected, download, sha256_of
from converters.errors import ConversionError

if TYPE_CHECKING:
    from camrt.preprocess import Preprocess

# A repository each, of the network's name. This is the one place that knows it.
PAGE = "https://huggingface.co/onnxmodelzoo/{name}"
URL = PAGE + "/resolve/main/{file}"
COLUMNS = ("name", "bytes", "sha256", "classes", "input", "resize", "interpolation", "statistics", "basis")
_IMAGENET = 1000  # the classes of ILSVRC 2012, in the order that all libraries use
# What is subtracted, what it is divided by, and the order of the channels. RGB is on the scale 0 to 1, BGR 0 to 255.
STATISTICS: Mapping[str, tuple[tuple[float, float, float], tuple[float, float, float], str]] = MappingProxyType(
    {
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "RGB"),
        "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "RGB"),
        "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "RGB"),
        "dpn": ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3, "RGB"),
        "lite": ((127 / 255,) * 3, (128 / 255,) * 3, "RGB"),
        "caffe": ((104.0, 117.0, 123.0), (1.0, 1.0, 1.0), "BGR"),
        "vgg": ((103.939, 116.779, 123.68), (1.0, 1.0, 1.0), "BGR"),
        "densenet": ((103.94, 116.78, 123.68), (1 / 0.017,) * 3, "BGR"),
    }
)


@dataclass(frozen=True)
class Listed:
    """A line of the table.

    Attributes:
        name: The name of its repository.
        size: The bytes of the file.
        sha256: Its checksum.
        classes: The number of classes; None where it is not known, 0 where the network ends in features.
        side: The side in pixels of the network's input; None where it is not known what the network wants.
        resize: The side that images are resized to before the center is cut out.
        interpolation: How images were resized in training. camrt resizes all alike (docs/models.md).
        statistics: A key of `STATISTICS`.
        basis: What that was derived from: ``"timm"``, ``"timm-default"``, ``"torchvision"``, ``"origin"``, ``"page"``,
            ``"measured"``, or "" (docs/models.md).
    """

    name: str
    size: int
    sha256: str
    classes: int | None
    side: int | None
    resize: int | None
    interpolation: str
    statistics: str
    basis: str

    @property
    def file_name(self) -> str:
        """Return the name of the file: that of the network without the library."""
        return self.name.removesuffix("_timm").removesuffix("_torch_hub").removesuffix("_torchvision") + ".onnx"

    @property
    def path(self) -> Path:
        """Return the path in the cache, whether or not the file is there."""
        return zoo.cache_folder() / "zoo" / self.name / self.file_name

    def preprocess(self) -> Preprocess | None:
        """Return how the network wants its images; None where it is not known."""
        from camrt.preprocess import normalized

        if self.side is None or self.resize is None:
            return None
        mean, deviation, channels = STATISTICS[self.statistics]
        full = 255.0 if channels == "RGB" else 1.0
        return normalized(self.resize, self.side, mean, deviation, full_scale=full, channels=channels)

    def labels(self) -> list[str] | None:
        """Return the names of the classes, of a network that knows those of ILSVRC 2012."""
        return imagenet_labels() if self.classes == _IMAGENET else None

    def fetch(self, weights: Path | None = None) -> Path:
        """Return the file, downloaded if need be, with the checksum that the zoo published.

        Args:
            weights: The file, fetched by hand; nothing is downloaded.

        Raises:
            CamrtError: It is another file.
            ConversionError: It cannot be downloaded, or the download is another file.
        """
        if weights is not None or self.path.exists():
            return self._checked(weights or self.path)
        url = URL.format(name=self.name, file=self.file_name)
        try:
            download([url], self.path, Expected(self.size, self.size, self.sha256))
        except ConversionError as error:
            raise ConversionError(
                f"zoo:{self.name} cannot be downloaded: {error}. If you have {self.file_name} from elsewhere (its "
                f"SHA-256 is {self.sha256}), pass it with --weights FILE, or keep it with camrt download "
                f"zoo:{self.name} --weights FILE"
            ) from error
        return self.path

    def _checked(self, file: Path) -> Path:
        if not file.is_file():
            raise CamrtError(f"there is no such file, expected the one of zoo:{self.name}", file=str(file))
        size = file.stat().st_size
        # A file of the cache was checked when it came; its size tells one that was cut off since.
        if size == self.size and (file == self.path or sha256_of(file) == self.sha256):
            return file
        what = "Remove it, and it is downloaded again" if file == self.path else f"As another network: --model {file}"
        raise CamrtError(
            f"is not the file that the ONNX Model Zoo published as {self.name}: found {size:,} bytes"
            f"{'' if size != self.size else f' with the SHA-256 {sha256_of(file)}'}, expected {self.size:,} bytes with "
            f"the SHA-256 {self.sha256}. {what}",
            file=str(file),
        )


@functools.cache
def table() -> Mapping[str, Listed]:
    """Return the networks by name, in the order of the table."""
    with (zoo.models_folder() / "model_zoo.csv").open(encoding="utf-8", newline="") as stream:
        return MappingProxyType({row["name"]: _listed(row) for row in csv.DictReader(stream)})


def _listed(row: Mapping[str, str]) -> Listed:
    classes, side, resize = (int(row[name]) if row[name] else None for name in ("classes", "input", "resize"))
    return Listed(
        row["name"], int(row["bytes"]), row["sha256"], classes, side, resize,
        row["interpolation"], row["statistics"], row["basis"],
    )  # fmt: skip


@functools.cache
def imagenet_labels() -> list[str]:
    """Return the names of the thousand classes of ILSVRC 2012, as torchvision has them."""
    return (zoo.models_folder() / "imagenet.txt").read_text(encoding="utf-8").splitlines()


@source("zoo")
def find(name: str) -> Entry:
    """Find a classifier of the ONNX Model Zoo.

    Raises:
        CamrtError: There is none of that name.
    """
    listed = table().get(name)
    if listed is None:
        longer = sorted((each for each in table() if name and each.startswith(name)), key=len)
        close = longer[:3] or get_close_matches(name, table(), n=3, cutoff=0.5)
        hint = f" Close: {', '.join(f'zoo:{each}' for each in close)}." if close else ""
        raise CamrtError(f"the ONNX Model Zoo has no classifier {name!r}.{hint} camrt models TEXT searches its names")
    return Entry(
        name=f"zoo:{name}",
        file=listed.path,
        source=PAGE.format(name=name),
        fetch=listed.fetch,
        preprocess=listed.preprocess,
        labels=listed.labels,
        note=_note(listed),
    )


def _note(listed: Listed) -> str:
    if not listed.basis:
        return f"it is not known how zoo:{listed.name} wants its images: give --preprocess caffe or torchvision"
    if listed.basis == "timm-default":
        return (
            f"timm has several weights of the name of zoo:{listed.name}, which want different means: its default is "
            "taken. If the classes look wrong, give --preprocess"
        )
    if listed.classes == 0:
        return f"zoo:{listed.name} ends in features and knows no classes"
    return ""
