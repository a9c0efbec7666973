"""The named models: what is known of each, its network, and where its weights are.

The facts are in ``models/registry.toml`` and ``models/reference.toml``; this module reads them. Files that are
downloaded go into one cache folder: ``$CAMRT_HOME``, or else the user's cache folder for ``camrt``. It holds

* ``weights/``: the released ``.caffemodel`` files,
* ``reference/``: the data files of the original demo,
* ``models.lock``: the SHA-256 of each weights file at its first download, for those whose authors published none.
  It has the format of ``sha256sum``, so that ``sha256sum -c models.lock`` checks them all.

Example:
    >>> from converters import zoo
    >>> zoo.find("vgg16CAM").features
    'CAM_conv'
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from string import Template
from types import MappingProxyType
from typing import Any, Literal

from converters.errors import ConversionError, ConversionWarning

ATTEMPTS = 3
PAUSE_S = 2  # before the second attempt; twice that before the third
TIMEOUT_S = 30  # without a byte
FINAL_STATUS = (401, 403, 404, 410, 451)  # asking again does not help
STALE_S = 3600  # a download that lives writes far more often than that
LOCK_NAME = "models.lock"


# ------------------------------------------------------------------------------------------------- what is known


@dataclass(frozen=True)
class Preprocessing:
    """What a network wants of an image: resize, subtract the mean, cut, scale, in this order.

    Attributes:
        size: The side in pixels of the square that the image is resized to.
        crop: The side in pixels of the square cut from it: the network's input.
        mean: What is subtracted from each channel, in the order of ``channels``, on the scale 0 to 255.
        mean_image: The image that the original demo subtracts in place of ``mean``: a key of ``reference_files()``.
        scale: What the difference is multiplied with.
        channels: The order of the channels.
        layout: The order of the axes.
    """

    size: int
    crop: int
    mean: tuple[float, float, float]
    mean_image: str | None = None
    scale: float = 1.0
    channels: Literal["BGR", "RGB"] = "BGR"
    layout: Literal["NCHW"] = "NCHW"


@dataclass(frozen=True)
class WeightsFile:
    """A released ``.caffemodel``.

    Attributes:
        urls: Where it is, in the order in which they are tried.
        least_bytes: The bytes of the network's parameters. A file that is smaller is truncated.
        sha256: The published checksum, where there is one.
        bundled: The file of ``models/``, where it comes with camrt. Nothing is downloaded then.
    """

    urls: tuple[str, ...]
    least_bytes: int
    sha256: str | None = None
    bundled: str | None = None

    @property
    def file_name(self) -> str:
        """The name of the file, with which it lies in the cache."""
        return (self.bundled or self.urls[0]).rpartition("/")[2]


@dataclass(frozen=True)
class Assembly:
    """A network that is put together from a table of ``models/``.

    Attributes:
        table: The table's file name.
        last: The last module that belongs to the network.
        head: What stands behind it: a name of the table's ``heads``.
        classes: How many classes the head tells apart.
    """

    table: str
    last: str
    head: str
    classes: int


@dataclass(frozen=True)
class NamedModel:
    """A released network that is known by name.

    Attributes:
        name: Its name.
        aliases: Other names that find it.
        network: The file of ``models/`` that holds its prototxt, or how the prototxt is put together.
        weights: Its weights file.
        preprocessing: What it wants of an image.
        labels: The set of class names that it answers in: a key of the registry's ``labels``.
        trained_on: The data set it was trained on.
        source: The page it comes from.
        paper: The paper that describes it.
        licence: What its source says of the use of its weights.
        features: The blob that its global pooling reads, where it was made for class activation maps.
        classifier: The linear layer behind that pooling.
        protocol: What it is shown of an image, for `camrt.explain_graph`, where that is not ten crops and their mirror
            images.
    """

    name: str
    network: str | Assembly
    weights: WeightsFile
    preprocessing: Preprocessing
    labels: str
    trained_on: str
    source: str
    paper: str
    licence: str
    aliases: tuple[str, ...] = ()
    features: str | None = None
    classifier: str | None = None
    protocol: str | None = None

    def prototxt(self) -> str:
        """Returns the text of its deploy prototxt."""
        if isinstance(self.network, Assembly):
            return _assemble(self.network)
        return (models_folder() / self.network).read_text(encoding="utf-8")


@dataclass(frozen=True)
class ReferenceFile:
    """A data file of the original demo.

    Attributes:
        path: Where it lies in the cache's ``reference`` folder.
        url: Where it is downloaded from.
        size: Its bytes.
        sha256: Its checksum.
    """

    path: str
    url: str
    size: int
    sha256: str


@functools.cache
def models() -> Mapping[str, NamedModel]:
    """Returns every named model by its name (aliases left out), in the order of the registry."""
    registry = _toml("registry.toml")
    families = registry["families"]
    found: dict[str, NamedModel] = {}
    for name, facts in registry["models"].items():
        shared = families[facts["family"]] if "family" in facts else {}
        found[name] = _named_model(name, {**shared, **facts})
    return MappingProxyType(found)


def find(name: str) -> NamedModel:
    """Returns the model of that name or alias.

    Args:
        name: A name of ``models()`` or one of their aliases.

    Raises:
        ConversionError: There is none; the text says which there are and which of them is closest.
    """
    by_name = {each: model for model in models().values() for each in (model.name, *model.aliases)}
    if name in by_name:
        return by_name[name]
    folded = {each.casefold(): each for each in by_name}
    close = get_close_matches(name.casefold(), folded, n=1)
    hint = f" Did you mean {folded[close[0]]!r}?" if close else ""
    raise ConversionError(
        f"there is no model named {name!r}.{hint} Known: {', '.join(sorted(by_name, key=str.casefold))}"
    )


@functools.cache
def reference_files() -> Mapping[str, ReferenceFile]:
    """Returns the data files of the original demo by their path in the cache's ``reference`` folder."""
    table = _toml("reference.toml")
    files = {}
    for facts in table["files"]:
        url = table["url"].format(commit=facts.get("commit", table["commit"]), path=facts["upstream"])
        files[facts["path"]] = ReferenceFile(facts["path"], url, facts["bytes"], facts["sha256"])
    return MappingProxyType(files)


def models_folder() -> Path:
    """Returns the folder of the registry and the prototxts: beside this file when installed, else the checkout's."""
    here = Path(__file__).resolve().parent
    installed = here / "models"
    return installed if installed.is_dir() else here.parent / "models"


@functools.cache
def _toml(file_name: str) -> dict[str, Any]:
    return tomllib.loads((models_folder() / file_name).read_text(encoding="utf-8"))


def _named_model(name: str, facts: Mapping[str, Any]) -> NamedModel:
    network, weights, preprocessing = facts["network"], facts["weights"], facts["preprocessing"]
    plain = {key: facts[key] for key in facts.keys() - {"family", "aliases", "network", "weights", "preprocessing"}}
    return NamedModel(
        name=name,
        aliases=tuple(facts.get("aliases", ())),
        network=network if isinstance(network, str) else Assembly(**network),
        weights=WeightsFile(**{**weights, "urls": tuple(weights.get("urls", ()))}),
        preprocessing=Preprocessing(**{**preprocessing, "mean": tuple(map(float, preprocessing["mean"]))}),
        **plain,
    )


def _assemble(assembly: Assembly) -> str:
    """Puts a prototxt together: the stem, the modules up to the last one, the head."""
    table = _toml(assembly.table)
    text, bottom = [table["stem"]], table["stem_top"]
    for module, widths in table["modules"].items():
        if pool := table["pool_before"].get(module):
            text.append(Template(table["pool"]).substitute(pool=pool, bottom=bottom))
            bottom = pool
        maps = dict(zip(table["columns"], widths, strict=True))
        text.append(Template(table["module"]).substitute(maps, module=module, bottom=bottom))
        bottom = f"{module}/output"
        if module == assembly.last:
            break
    text.append(Template(table["heads"][assembly.head]).substitute(bottom=bottom, classes=assembly.classes))
    return "\n".join(text)


# ------------------------------------------------------------------------------------------------- what is on disk


def cache_folder() -> Path:
    """Returns the folder of downloaded files: ``$CAMRT_HOME``, or else the user's cache folder for ``camrt``."""
    home = os.environ.get("CAMRT_HOME")
    if home:
        return Path(home).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("camrt", appauthor=False)


def weights(model: NamedModel, file: Path | None = None, *, cache: Path | None = None, progress: bool = True) -> Path:
    """Finds the weights of a named model, and downloads them if need be.

    Args:
        model: The model.
        file: A file to take in place of the cache's. Nothing is downloaded then.
        cache: The cache folder, if not ``cache_folder()``.
        progress: Whether a download draws a bar on stderr.

    Returns:
        The path of a file that is not truncated. Its checksum is verified once, when it is downloaded.

    Raises:
        ConversionError: The file is missing or truncated, or cannot be downloaded; the text says how to go on.

    Warns:
        ConversionWarning: The download differs from what it was the first time.
    """
    if file is not None:
        return _whole(model, file)
    cache = cache or cache_folder()
    path = weights_path(model, cache=cache)
    if path.exists() or model.weights.bundled:
        return _whole(model, path)
    released = model.weights
    try:
        digest = _download(
            released.urls, path, at_least=released.least_bytes, sha256=released.sha256, progress=progress
        )
    except ConversionError as error:
        raise ConversionError(
            f"the weights of {model.name} cannot be downloaded: {error}. "
            f"If you have {released.file_name}, pass it with --weights FILE or put it at {path}"
        ) from error
    if released.sha256 is None:
        _remember(cache / LOCK_NAME, path.relative_to(cache).as_posix(), digest)
    return path


def weights_path(model: NamedModel, *, cache: Path | None = None) -> Path:
    """Returns where the model's weights lie in the cache, whether or not they are there; or where they came with camrt.

    Args:
        model: The model.
        cache: The cache folder, if not ``cache_folder()``.
    """
    if model.weights.bundled:
        return models_folder() / model.weights.bundled
    return (cache or cache_folder()) / "weights" / model.weights.file_name


def labels(model: NamedModel, *, cache: Path | None = None) -> list[str] | None:
    """Returns the names of the model's classes, in the order of its scores.

    They are among the reference files, which ``download_reference`` brings, or come with camrt.

    Args:
        model: The model.
        cache: The cache folder, if not ``cache_folder()``.

    Returns:
        One name a class, or None where no file is there or only a ``.mat`` file is and scipy is not installed.

    Raises:
        ConversionError: The file is there and cannot be read.
    """
    for name in _toml("registry.toml")["labels"][model.labels]:
        for path in ((cache or cache_folder()) / "reference" / name, models_folder() / name):
            if path.exists() and (names := _read_labels(path)) is not None:
                return names
    return None


def download_reference(names: Iterable[str] | None = None, *, cache: Path | None = None, progress: bool = True) -> Path:
    """Downloads the data files of the original demo; those that are there and intact stay.

    Args:
        names: Keys of ``reference_files()``; all of them if left out.
        cache: The cache folder, if not ``cache_folder()``.
        progress: Whether a download draws a bar on stderr.

    Returns:
        The cache's ``reference`` folder.

    Raises:
        ConversionError: A file cannot be downloaded.
    """
    folder = (cache or cache_folder()) / "reference"
    for name in reference_files() if names is None else names:
        wanted = reference_files()[name]
        path = folder / wanted.path
        if path.exists() and _sha256(path) == wanted.sha256:
            continue
        try:
            _download([wanted.url], path, at_least=wanted.size, sha256=wanted.sha256, progress=progress)
        except ConversionError as error:
            source = _toml("reference.toml")["source"]
            raise ConversionError(
                f"{name} cannot be downloaded: {error}. It is part of {source}; put it at {path}"
            ) from error
    return folder


def _whole(model: NamedModel, path: Path) -> Path:
    """Returns the path if it is a file of at least the size that the model's parameters need."""
    if not path.is_file():
        raise ConversionError(f"there is no such file (it should hold the weights of {model.name})", file=str(path))
    size, least = path.stat().st_size, model.weights.least_bytes
    if size < least:
        again = "Install camrt again" if model.weights.bundled else "Remove it and download it again"
        raise ConversionError(
            f"the file is truncated: it has {size:,} bytes, and the weights of {model.name} alone have {least:,}. "
            f"{again}, or name another one with --weights FILE",
            file=str(path),
        )
    return path


def _read_labels(path: Path) -> list[str] | None:
    try:
        if path.suffix == ".json":
            return [str(name) for name in json.loads(path.read_text(encoding="utf-8"))]
        if path.suffix == ".txt":
            return path.read_text(encoding="utf-8").splitlines()
        try:
            from scipy.io import loadmat
        except ImportError:
            return None
        # A cell array (classes, 1) of names, or (classes, 2) of names and numbers.
        return [str(row[0][0]) for row in loadmat(path)["categories"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConversionError(f"no class names can be read from it ({error})", file=str(path)) from error


# ------------------------------------------------------------------------------------------------- downloading


def _download(urls: Sequence[str], path: Path, *, at_least: int, sha256: str | None, progress: bool) -> str:
    """Downloads the first of the URLs that answers to ``path``, which only ever holds a whole file.

    The file grows in a folder of its own and is moved when it is whole and checked, so that two processes do not
    disturb each other and one that is killed leaves nothing that is taken for the file.

    Returns:
        The file's SHA-256, in hex.

    Raises:
        ConversionError: None of them gave the file; the text says why, for each.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        with tempfile.TemporaryDirectory(
            prefix=f".{path.name}.", suffix=".part", dir=path.parent, ignore_cleanup_errors=True
        ) as folder:
            part = Path(folder) / path.name
            _fetch(urls, part, at_least=at_least, progress=progress)
            digest = _sha256(part)
            if sha256 is not None and digest != sha256:
                raise ConversionError(
                    f"{urls[0]} is not the file that was expected: its SHA-256 is {digest}, not {sha256}"
                )
            part.replace(path)
            return digest
    except OSError as error:
        raise ConversionError(
            f"{path.parent} cannot be written ({error.strerror or error}). Choose another cache folder with CAMRT_HOME"
        ) from error


def _fetch(urls: Sequence[str], part: Path, *, at_least: int, progress: bool) -> None:
    """Downloads the first of the URLs that answers with enough bytes, each of them tried several times."""
    reasons = []
    for url in urls:
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE_S * attempt)
            reason, is_final = _attempt(url, part, at_least=at_least, progress=progress)
            if reason is None:
                return
            if is_final:
                break
        reasons.append(f"{url}: {reason}")
    raise ConversionError("; ".join(reasons))


def _attempt(url: str, part: Path, *, at_least: int, progress: bool) -> tuple[str | None, bool]:
    """Downloads once. Returns why it failed, or None, and whether it would fail again."""
    try:
        import pooch
        import requests
    except ImportError as error:
        raise ConversionError(f"downloading needs {error.name}: pip install {error.name}") from error
    bar = _Bar(part.name) if progress else None
    try:
        pooch.HTTPDownloader(progressbar=bar or False, chunk_size=1 << 16, timeout=TIMEOUT_S)(url, str(part), None)
    except requests.HTTPError as error:
        if error.response is None:
            return str(error), False
        status, words = error.response.status_code, error.response.reason
        return f"the server answers {status} {words}", status in FINAL_STATUS
    except requests.Timeout:
        return f"no answer within {TIMEOUT_S} s", False
    except requests.RequestException as error:
        return _innermost(error), False
    finally:
        if bar:
            bar.close()
    size = part.stat().st_size
    if size < at_least:
        return f"the file there is truncated: {size:,} bytes came, at least {at_least:,} were expected", False
    return None, False


def _innermost(error: BaseException) -> str:
    """What went wrong at the bottom of a chain of network errors, whose outer texts repeat the URL."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return f"{type(error).__name__}: {error}"


def _sweep(folder: Path) -> None:
    """Removes what downloads left that were killed."""
    for leftover in folder.glob(".*.part"):
        times = [entry.stat().st_mtime for entry in (leftover, *leftover.glob("*"))]
        if time.time() - max(times) > STALE_S:
            shutil.rmtree(leftover, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remember(lock: Path, name: str, digest: str) -> None:
    """Notes the file's checksum at its first download; warns when a later one differs.

    Lines are only ever appended, in one write each: two processes lose nothing, and the first line of a file counts.
    """
    lines = lock.read_text(encoding="utf-8").splitlines() if lock.exists() else []
    first: dict[str, str] = {}
    for line in lines:
        seen, _, file_name = line.partition("  ")
        first.setdefault(file_name, seen)
    if name not in first:
        with lock.open("a", encoding="utf-8") as file:
            file.write(f"{digest}  {name}\n")
    elif first[name] != digest:
        warnings.warn(
            f"{name} is not the file that was downloaded first: its SHA-256 was {first[name]} and is now {digest}. "
            f"The new file is kept. If you trust it, remove the line from {lock}",
            ConversionWarning,
            stacklevel=3,
        )


class _Bar:
    """What pooch asks of a progress bar, drawn by rich on stderr."""

    def __init__(self, title: str) -> None:
        from rich import progress
        from rich.console import Console

        columns = progress.DownloadColumn(), progress.TransferSpeedColumn(), progress.TimeRemainingColumn()
        self._drawing = progress.Progress(
            progress.TextColumn("{task.description}"), progress.BarColumn(), *columns, console=Console(stderr=True)
        )
        self._task = self._drawing.add_task(title, total=None)

    @property
    def total(self) -> float | None:
        return self._drawing.tasks[0].total

    @total.setter
    def total(self, total: int) -> None:
        self._drawing.update(self._task, total=total or None)
        self._drawing.start()  # not before the server answered

    def update(self, count: int) -> None:
        self._drawing.advance(self._task, count)

    def reset(self) -> None:
        self._drawing.update(self._task, completed=0)

    def close(self) -> None:
        if self._drawing.live.is_started:
            self._drawing.stop()


# ------------------------------------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Downloads named models: ``python -m converters.zoo [NAME...] [--reference]``.

    Args:
        arguments: The command line, if not that of the process.

    Returns:
        0, or 1 if something could not be downloaded. A wrong command line exits with status 2.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        chosen = [find(name) for name in options.names]
    except ConversionError as error:
        parser.error(str(error))
    if not chosen and not options.reference:
        print(f"{parser.format_usage()}\n{_listing()}")
        return 0
    failures = 0
    for what in [*chosen, *(["reference"] if options.reference else [])]:
        try:
            print(weights(what) if isinstance(what, NamedModel) else download_reference())
        except ConversionError as error:
            print(f"error: {error}", file=sys.stderr)
            failures += 1
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="download_models.sh",
        description="Download the weights of named models into the cache folder. Without a name, list the models.",
        epilog="The cache folder is $CAMRT_HOME, or else the user's cache folder for camrt. "
        "Exit status: 0, 1 (something could not be downloaded) or 2 (usage).",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a model, by its name or an alias")
    parser.add_argument("--reference", action="store_true", help="the data files of the original demo too")
    return parser


def _listing() -> str:
    lines = [f"Models (cache folder {cache_folder()}):"]
    for model in models().values():
        names = ", ".join((model.name, *model.aliases))
        size = f"{model.weights.least_bytes / 1e6:,.0f} MB or more"
        state = "with camrt" if model.weights.bundled else "downloaded" if weights_path(model).exists() else size
        lines.append(f"  {names:<42} {model.trained_on:<38} {state}")
    return "\n".join(lines)


if __name__ == "__main__":
    # A polite kill unwinds the stack, which removes the unfinished file.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    sys.exit(main())
