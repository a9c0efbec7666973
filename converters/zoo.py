"""Named models: their networks, preprocessing and weights.

This module reads ``models/registry.toml`` and ``models/reference.toml``. Downloaded files go into one cache folder:
``$CAMRT_HOME``, or else the user's cache folder for ``camrt``. It holds

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

import functools
import json
import os
import tomllib
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from string import Template
from types import MappingProxyType
from typing import Any, Literal

from converters import metadata
from converters.download import Expected, download, sha256_of
from converters.errors import ConversionError, ConversionWarning

# A released file may contain more than the network: the auxiliary heads of its training. In bvlc_googlenet.caffemodel
# these are nearly as large as the network.
MOST_WEIGHTS = 3  # times the bytes of the network's parameters
LOCK_NAME = "models.lock"


# ------------------------------------------------------------------------------------------------- what is known


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a network: resize, subtract the mean, crop, scale, in this order.

    Attributes:
        size: The side in pixels of the square that the image is resized to.
        crop: The side in pixels of the square cut from it: the network's input.
        mean: The mean that is subtracted from each channel, in the order of ``channels``, on the scale 0 to 255.
        mean_image: The image that the original demo subtracts in place of ``mean``: a key of ``reference_files()``.
        scale: The factor that the difference is multiplied by.
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
        urls: The URLs, in the order in which they are tried.
        least_bytes: The bytes of the network's parameters. A smaller file is truncated.
        sha256: The published checksum, if any.
        bundled: The file in ``models/`` if it ships with camrt. It is not downloaded.
    """

    urls: tuple[str, ...]
    least_bytes: int
    sha256: str | None = None
    bundled: str | None = None

    @property
    def file_name(self) -> str:
        """The name of the file in the cache."""
        return (self.bundled or self.urls[0]).rpartition("/")[2]


@dataclass(frozen=True)
class Assembly:
    """A network that is assembled from a table of ``models/``.

    Attributes:
        table: The table's file name.
        last: The last module that belongs to the network.
        head: The head that follows it: a key of the table's ``heads``.
        classes: The number of classes of the head.
    """

    table: str
    last: str
    head: str
    classes: int


@dataclass(frozen=True)
class NamedModel:
    """A released network with a name.

    Attributes:
        name: Its name.
        aliases: Other names that find it.
        network: The prototxt in ``models/``, or how it is assembled.
        weights: Its weights file.
        preprocessing: The preprocessing of images.
        labels: The set of class names: a key of the registry's ``labels``.
        trained_on: The data set it was trained on.
        source: The page of its release.
        paper: The paper that describes it.
        licence: The license of its weights, as given by the source.
        features: The blob that its global pooling reads, if it was made for class activation maps.
        classifier: The linear layer after that pooling.
        protocol: The views of an image for `camrt.explain_graph`, if they are not the whole image in one pass.
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
        """Return the text of its deploy prototxt."""
        if isinstance(self.network, Assembly):
            return _assemble(self.network)
        return (models_folder() / self.network).read_text(encoding="utf-8")


@dataclass(frozen=True)
class ReferenceFile:
    """A data file of the original demo.

    Attributes:
        path: The path in the cache's ``reference`` folder.
        url: The URL.
        size: The size in bytes.
        sha256: Its checksum.
    """

    path: str
    url: str
    size: int
    sha256: str


@functools.cache
def models() -> Mapping[str, NamedModel]:
    """Return every named model by its name (aliases left out), in the order of the registry."""
    registry = _toml("registry.toml")
    families = registry["families"]
    found: dict[str, NamedModel] = {}
    for name, table in registry["models"].items():
        shared = families[table["family"]] if "family" in table else {}
        found[name] = _named_model(name, {**shared, **table})
    return MappingProxyType(found)


def find(name: str) -> NamedModel:
    """Return the model of that name or alias.

    Args:
        name: A name of ``models()`` or one of their aliases.

    Raises:
        ConversionError: There is none. The message lists the names and suggests the closest.
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
    """Return the data files of the original demo by their path in the cache's ``reference`` folder."""
    reference = _toml("reference.toml")
    files = {}
    for table in reference["files"]:
        url = reference["url"].format(commit=table.get("commit", reference["commit"]), path=table["upstream"])
        files[table["path"]] = ReferenceFile(table["path"], url, table["bytes"], table["sha256"])
    return MappingProxyType(files)


def models_folder() -> Path:
    """Return the folder of the registry and the prototxts: beside this file when installed, else the checkout's."""
    here = Path(__file__).resolve().parent
    installed = here / "models"
    return installed if installed.is_dir() else here.parent / "models"


@functools.cache
def _toml(file_name: str) -> dict[str, Any]:
    return tomllib.loads((models_folder() / file_name).read_text(encoding="utf-8"))


def _named_model(name: str, table: Mapping[str, Any]) -> NamedModel:
    network, weights, preprocessing = table["network"], table["weights"], table["preprocessing"]
    plain = {key: table[key] for key in table.keys() - {"family", "aliases", "network", "weights", "preprocessing"}}
    return NamedModel(
        name=name,
        aliases=tuple(table.get("aliases", ())),
        network=network if isinstance(network, str) else Assembly(**network),
        weights=WeightsFile(**{**weights, "urls": tuple(weights.get("urls", ()))}),
        preprocessing=Preprocessing(**{**preprocessing, "mean": tuple(map(float, preprocessing["mean"]))}),
        **plain,
    )


def _assemble(assembly: Assembly) -> str:
    """Assemble a prototxt: the stem, the modules up to the last one, the head."""
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
    """Return the folder of downloaded files: ``$CAMRT_HOME``, or else the user's cache folder for ``camrt``."""
    home = os.environ.get("CAMRT_HOME")
    if home:
        return Path(home).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("camrt", appauthor=False)


def hub() -> tuple[str, dict[str, str]]:
    """Return the address of Hugging Face, and the headers that requests to it carry.

    The variables are those of Hugging Face's own library: ``HF_ENDPOINT`` for a mirror, ``HF_TOKEN`` for repositories
    that are private or gated.
    """
    address = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or "https://huggingface.co"
    token = os.environ.get("HF_TOKEN", "").strip()
    return address, {"Authorization": f"Bearer {token}"} if token else {}


def weights(model: NamedModel, file: Path | None = None, *, cache: Path | None = None, progress: bool = True) -> Path:
    """Find the weights of a named model, and download them if necessary.

    Args:
        model: The model.
        file: A file to use instead of the cache. Nothing is downloaded.
        cache: The cache folder; ``cache_folder()`` by default.
        progress: Whether a download shows a bar on stderr.

    Returns:
        The path of a file that is not truncated. A download is checked once, before it is kept: its size, its checksum
        if one was published, and the layers and shapes of the network.

    Raises:
        ConversionError: The file is missing or truncated, or cannot be downloaded; the message says what to do.

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
        digest = download(released.urls, path, _weights_of(model), progress=progress)
    except ConversionError as error:
        raise ConversionError(
            f"the weights of {model.name} cannot be downloaded: {error}. "
            f"If you have {released.file_name}, pass it with --weights FILE or put it at {path}"
        ) from error
    if released.sha256 is None:
        _remember(cache / LOCK_NAME, path.relative_to(cache).as_posix(), digest)
    return path


def weights_path(model: NamedModel, *, cache: Path | None = None) -> Path:
    """Return the path of the model's weights, whether or not they have been downloaded.

    Args:
        model: The model.
        cache: The cache folder; ``cache_folder()`` by default.
    """
    if model.weights.bundled:
        return models_folder() / model.weights.bundled
    return (cache or cache_folder()) / "weights" / model.weights.file_name


def labels(model: NamedModel, *, cache: Path | None = None) -> list[str] | None:
    """Return the names of the model's classes, in the order of its scores.

    They are among the reference files, which ``download_reference`` downloads, or ship with camrt.

    Args:
        model: The model.
        cache: The cache folder; ``cache_folder()`` by default.

    Returns:
        One name per class. None without a file, or with only a ``.mat`` file if scipy is not installed.

    Raises:
        ConversionError: The file exists but cannot be read.
    """
    for name in _toml("registry.toml")["labels"][model.labels]:
        for path in ((cache or cache_folder()) / "reference" / name, models_folder() / name):
            if path.exists() and (names := _read_labels(path)) is not None:
                return names
    return None


def download_reference(names: Iterable[str] | None = None, *, cache: Path | None = None, progress: bool = True) -> Path:
    """Download the data files of the original demo that are missing or damaged.

    Args:
        names: Keys of ``reference_files()``; all by default.
        cache: The cache folder; ``cache_folder()`` by default.
        progress: Whether a download shows a bar on stderr.

    Returns:
        The cache's ``reference`` folder.

    Raises:
        ConversionError: A file cannot be downloaded.
    """
    folder = (cache or cache_folder()) / "reference"
    for name in reference_files() if names is None else names:
        wanted = reference_files()[name]
        path = folder / wanted.path
        if path.exists() and sha256_of(path) == wanted.sha256:
            continue
        try:
            download([wanted.url], path, Expected(wanted.size, wanted.size, wanted.sha256), progress=progress)
        except ConversionError as error:
            source = _toml("reference.toml")["source"]
            raise ConversionError(
                f"{name} cannot be downloaded: {error}. It is part of {source}; put it at {path}"
            ) from error
    return folder


def _whole(model: NamedModel, path: Path) -> Path:
    """Return the path if it is a file of at least the size that the model's parameters need."""
    if not path.is_file():
        raise ConversionError(f"there is no such file (it should hold the weights of {model.name})", file=str(path))
    size, least = path.stat().st_size, model.weights.least_bytes
    if size < least:
        again = "Install camrt again" if model.weights.bundled else "Remove it and download it again"
        raise ConversionError(
            f"the file is truncated: it has {size:,} bytes, and the weights of {model.name} alone have {least:,}. "
            f"{again}, or use another file with --weights FILE",
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


def _weights_of(model: NamedModel) -> Expected:
    """Return what the weights of a model must be: a caffemodel with the layers and shapes of its network."""

    def check(file: Path) -> None:
        from converters.conversion import build
        from converters.net import read_net
        from converters.reader import parse_prototxt

        with warnings.catch_warnings(action="ignore", category=ConversionWarning):  # shown by the conversion
            build(read_net(parse_prototxt(model.prototxt(), f"{model.name}.prototxt"), file))

    released = model.weights
    return Expected(released.least_bytes, MOST_WEIGHTS * released.least_bytes + (1 << 20), released.sha256, check)


def remember(path: Path, digest: str) -> None:
    """Record the checksum of a file of the cache of which none was published, in ``models.lock``.

    Args:
        path: A file in the cache folder.
        digest: Its SHA-256, in hex.

    Warns:
        ConversionWarning: It differs from what it was at the first download.
    """
    _remember(cache_folder() / LOCK_NAME, path.relative_to(cache_folder()).as_posix(), digest)


def _remember(lock: Path, name: str, digest: str) -> None:
    """Record the checksum of a file at its first download; warn if a later one differs.

    Lines are only appended, in one write each, so concurrent processes lose nothing. The first line of a file counts.
    """
    try:
        lines = lock.read_text(encoding="utf-8").splitlines() if lock.exists() else []
        first = {file_name: seen for seen, _, file_name in (line.partition("  ") for line in reversed(lines))}
        if name not in first:
            with lock.open("a", encoding="utf-8") as file:
                file.write(f"{digest}  {name}\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = f"{lock} cannot be written or read ({error}), so a later change of {name} will not be noticed"
        warnings.warn(reason, ConversionWarning, stacklevel=3)
        return
    if first.get(name, digest) != digest:
        warnings.warn(
            f"{name} is not the file that was downloaded first: its SHA-256 was {first[name]} and is now {digest}. "
            f"The new file is kept. If you trust it, remove the line from {lock}",
            ConversionWarning,
            stacklevel=3,
        )


def metadata_of(
    model: NamedModel, reference: Path | None = None, *, note: Callable[[str], object] = lambda text: None
) -> dict[str, str]:
    """Return what is known of a named model, as the metadata of the converted network.

    Class names and the mean image are among the data files of the original demo. Where they are not in the cache, the
    model has no names, and subtracts its mean pixel.

    Args:
        model: The model.
        reference: The folder of the mean image, in place of the cache.
        note: Called with a sentence about each that is not there.

    Raises:
        ConversionError: The class names or the mean image are there and cannot be read.
    """
    wants = model.preprocessing
    properties = {metadata.NAME: model.name, metadata.SOURCE: model.source}
    if model.features and model.classifier:
        properties |= {metadata.FEATURES: model.features, metadata.CLASSIFIER: model.classifier}
    if model.protocol:
        properties[metadata.PROTOCOL] = model.protocol
    mean_image = None
    if wants.mean_image is not None:
        cached = cache_folder() / "reference" / wants.mean_image
        file = cached if reference is None else reference / cached.name
        if file.is_file():
            mean_image = metadata.read_mean_image(file)
            properties[metadata.MEAN_IMAGE] = metadata.mean_image_text(mean_image)
        else:
            note(
                f"{model.name} subtracts its mean pixel: the mean image of the original demo is not in the cache "
                "(camrt download --reference brings it)"
            )
    properties[metadata.PREPROCESS] = metadata.preprocess_text(
        size=wants.size,
        crop=wants.crop,
        mean=wants.mean,
        scale=(wants.scale,) * 3,
        channels=wants.channels,
        has_mean_image=mean_image is not None,
    )
    if (names := labels(model)) is not None:
        properties[metadata.LABELS] = metadata.labels_text(names)
    else:
        note(
            f"{model.name} does not carry the names of its {model.labels} classes, which are not in the cache "
            "(camrt download --reference brings them)"
        )
    return properties
