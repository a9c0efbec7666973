"""``hf:OWNER/REPO[@REVISION][/FILE.onnx]``: a file of a repository on Hugging Face.

A revision (``main`` by default) is resolved to a commit once, and kept in the cache with the sizes and checksums of the
repository's files: later runs take the same commit, and need no network. What the network wants of an image, and the
names of its classes, are read from the repository's ``preprocessor_config.json`` and ``config.json``, in the forms of
transformers and timm.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from camrt.catalog.entry import Entry, source
from camrt.errors import CamrtError
from converters import zoo
from converters.download import Expected, download
from converters.errors import ConversionError

if TYPE_CHECKING:
    from camrt.preprocess import Preprocess

_FORM = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*?)(?:@(?P<revision>[\w-][\w.-]*))?(?:/(?P<file>.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_LISTED = 1 << 24  # bytes of the answer that lists a repository
_MOST_CONFIG = 1 << 22
_MOST_FILE = 1 << 37  # of a file without a stated size
_CONFIGS = ("preprocessor_config.json", "config.json")


@dataclass(frozen=True)
class Stored:
    """A file of a repository.

    Attributes:
        path: Its path in the repository.
        size: Its bytes, or None.
        sha256: Its checksum. Hugging Face states it of large files.
    """

    path: str
    size: int | None
    sha256: str | None


@dataclass(frozen=True)
class Repository:
    """A repository at a revision.

    Attributes:
        name: OWNER/REPO.
        revision: A branch, tag or commit.
        file: The path of the ONNX file in it; None for the only one.
    """

    name: str
    revision: str
    file: str | None

    @property
    def folder(self) -> Path:
        """Return its folder in the cache."""
        return zoo.cache_folder() / "hf" / self.name.replace("/", "--")

    @property
    def listing(self) -> Path:
        """Return the path of what is known of the revision: its commit and files."""
        return self.folder / f"{self.revision}.json"

    @property
    def spelled(self) -> str:
        """Return what it is called on the command line, without the file."""
        return f"hf:{self.name}" + ("" if self.revision == "main" else f"@{self.revision}")

    def listed(self) -> tuple[str, Mapping[str, Stored]]:
        """Return the commit and its files by path, asked for once.

        Raises:
            ConversionError: Hugging Face has no such repository or revision, or cannot be reached.
        """
        if not self.listing.exists():
            address, headers = zoo.hub()
            url = f"{address}/api/models/{self.name}/revision/{quote(self.revision, safe='')}?blobs=true"
            expected = Expected(1, _MOST_LISTED, check=lambda file: _parsed(file))
            try:
                download([url], self.listing, expected, headers=headers, progress=False)
            except ConversionError as error:
                raise ConversionError(
                    f"{self.spelled} cannot be looked up: {error}. {_advice(headers)}. If you have the file, name it: "
                    "--model FILE.onnx"
                ) from error
        return _parsed(self.listing)

    def chosen(self) -> str:
        """Return the path of the ONNX file: the one that was named, or the only one.

        Raises:
            CamrtError: There is none, or there are several.
        """
        _, files = self.listed()
        known = sorted(path for path in files if path.endswith(".onnx"))
        if self.file in files or (self.file is None and len(known) == 1):
            return self.file or known[0]
        if not known:
            raise CamrtError(
                f"{self.spelled} holds no .onnx file. A network of timm is exported by timm:NAME; others by their own "
                "library, to name the file"
            )
        found = f"no file {self.file}" if self.file else f"{len(known)} .onnx files"
        names = ", ".join(f"{self.spelled}/{path}" for path in known)
        raise CamrtError(f"found {found} in {self.spelled}, expected one of {names}")

    def path_of(self, file: str) -> Path:
        """Return the path in the cache of a file of the commit."""
        commit, _ = self.listed()
        return self.folder / commit[:12] / PurePosixPath(file)

    def fetch(self, weights: Path | None = None) -> Path:
        """Return the ONNX file with its external data, downloaded if need be.

        Args:
            weights: Must be None: a file of one's own is a model of its own.

        Raises:
            CamrtError: There is no such file, or a file in the cache is not whole.
            ConversionError: It cannot be downloaded, or is not what Hugging Face states.
        """
        if weights is not None:
            raise CamrtError(
                f"found the weights {weights} beside {self.spelled}, whose file has its own. Name that file: "
                f"--model {weights}"
            )
        file = self.chosen()
        stem = PurePosixPath(file).with_suffix("").as_posix()
        beside = (f"{file}_data", f"{file}.data", f"{stem}.data", f"{stem}.bin")
        for each in (*(name for name in beside if name in self.listed()[1]), file):  # the graph last
            self._bring(each)
        return self.path_of(file)

    def config(self, name: str) -> Mapping[str, Any]:
        """Return a configuration of the repository; an empty one where there is none that can be read."""
        if name not in self.listed()[1]:
            return {}
        self._bring(name, _MOST_CONFIG)
        try:
            found = json.loads(self.path_of(name).read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _bring(self, file: str, most: int = _MOST_FILE) -> None:
        """Download a file of the commit, unless it is there."""
        commit, files = self.listed()
        stored, path = files[file], self.path_of(file)
        if path.exists():
            if stored.size is not None and path.stat().st_size != stored.size:
                raise CamrtError(
                    f"is not whole: found {path.stat().st_size:,} bytes, expected {stored.size:,}. Remove it, and it "
                    "is downloaded again",
                    file=str(path),
                )
            return
        address, headers = zoo.hub()
        url = f"{address}/{self.name}/resolve/{commit}/{quote(file)}"
        least, largest = (stored.size, stored.size) if stored.size is not None else (1, most)
        try:
            digest = download([url], path, Expected(least, largest, stored.sha256), headers=headers)
        except ConversionError as error:
            raise ConversionError(
                f"{self.spelled}/{file} cannot be downloaded: {error}. {_advice(headers)}. If you have the file, name "
                f"it: --model {PurePosixPath(file).name}"
            ) from error
        if stored.sha256 is None:
            zoo.remember(path, digest)

    def preprocess(self) -> Preprocess | None:
        """Return how the network wants its images, by the repository's configurations; None if they do not say it."""
        for name in _CONFIGS:
            config = self.config(name)
            nested = config.get("pretrained_cfg")
            try:
                wants = _of_timm(nested if isinstance(nested, dict) else config) or _of_transformers(config)
            except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError, CamrtError):
                continue  # another form than is known
            if wants is not None:
                return wants
        return None

    def labels(self) -> list[str] | None:
        """Return the names of the classes, by the repository's config.json."""
        config = self.config("config.json")
        names = config.get("id2label") or config.get("label_names")
        if isinstance(names, dict) and set(names) == {str(number) for number in range(len(names))}:
            return [str(names[str(number)]) for number in range(len(names))]
        return [str(name) for name in names] if isinstance(names, list) and names else None


@source("hf")
def find(name: str) -> Entry:
    """Find a file on Hugging Face. Nothing is asked before it is used.

    Raises:
        CamrtError: The name has another form.
    """
    form = _FORM.fullmatch(name)
    if form is None or ".." in name or (form["file"] or ".onnx")[-5:] != ".onnx":
        raise CamrtError(
            f"found hf:{name}, expected hf:OWNER/REPO, hf:OWNER/REPO/FILE.onnx or hf:OWNER/REPO@REVISION/FILE.onnx, "
            "the revision a branch, tag or commit without a slash"
        )
    repository = Repository(form["repo"], form["revision"] or "main", form["file"])
    file = repository.folder / "unresolved.onnx"  # until the commit is known
    if repository.listing.exists():
        with contextlib.suppress(CamrtError, ConversionError):  # fetching it reports the error
            file = repository.path_of(repository.chosen())
    return Entry(
        name=f"hf:{name}",
        file=file,
        source=f"https://huggingface.co/{repository.name}",
        fetch=repository.fetch,
        preprocess=repository.preprocess,
        labels=repository.labels,
    )


def _advice(headers: Mapping[str, str]) -> str:
    if "Authorization" in headers:
        return "The token in HF_TOKEN was sent; it must be allowed to read the repository"
    return "A private or gated repository takes a token in the environment variable HF_TOKEN"


def _parsed(file: Path) -> tuple[str, Mapping[str, Stored]]:
    """Read what Hugging Face says of a revision.

    Raises:
        ConversionError: It has another form.
    """
    try:
        answer = json.loads(file.read_text(encoding="utf-8"))
        if not _COMMIT.fullmatch(answer["sha"]):
            raise ValueError("no commit")
        return answer["sha"], {stored.path: stored for stored in map(_stored, answer["siblings"])}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConversionError(
            f"found another answer than Hugging Face's list of files ({error!r}). Remove it to ask again",
            file=str(file),
        ) from error


def _stored(sibling: Mapping[str, Any]) -> Stored:
    path, size = sibling["rfilename"], sibling.get("size")
    sha256 = (sibling.get("lfs") or {}).get("sha256")
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        raise ValueError(f"the path {path!r}")
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise ValueError(f"the SHA-256 {sha256!r}")
    return Stored(path, int(size) if isinstance(size, int) and size >= 0 else None, sha256)


def _of_timm(config: Mapping[str, Any]) -> Preprocess | None:
    """As timm writes it: ``mean``, ``std``, ``input_size`` and ``crop_pct``."""
    from camrt.preprocess import normalized

    if "input_size" not in config or "mean" not in config:
        return None
    _, _, side = config["input_size"]
    resize = math.floor(int(side) / float(config.get("crop_pct", 1.0)))
    return normalized(resize, int(side), config["mean"], config["std"])


def _of_transformers(config: Mapping[str, Any]) -> Preprocess | None:
    """As transformers' image processors write it: ``image_mean``, ``image_std``, ``size`` and ``crop_size``."""
    from camrt.preprocess import normalized

    if "image_mean" not in config:
        return None
    size = _side(config["size"])
    crop = _side(config["crop_size"]) if config.get("do_center_crop") and "crop_size" in config else size
    fraction = config.get("crop_pct")  # of ConvNeXt: images smaller than 384 are resized further
    resize = math.floor(crop / float(fraction)) if fraction and crop < 384 else max(size, crop)
    is_normalized = config.get("do_normalize", True)
    mean, deviation = (config["image_mean"], config["image_std"]) if is_normalized else ([0.0] * 3, [1.0] * 3)
    full = 1 / float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
    return normalized(resize, crop, mean, deviation, full_scale=full)


def _side(size: Any) -> int:
    return int(size.get("shortest_edge") or size["height"]) if isinstance(size, dict) else int(size)
