"""``torchvision:NAME[@WEIGHTS]`` and ``timm:NAME[@random]``: networks that PyTorch exports on the spot.

The ONNX file is kept in the cache under the versions of PyTorch and the library. It carries what the library says of
the network: how it wants its images, and the names of its classes. ``@random`` asks for random weights (of seed 0),
which need no download; with ``--weights`` a state dict (``.pth``, ``.safetensors``) replaces the library's weights.
"""

from __future__ import annotations

import logging
import math
import re
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from camrt.catalog.entry import Entry, source
from camrt.errors import CamrtError
from converters import metadata, zoo
from converters.download import sha256_of
from converters.errors import install

if TYPE_CHECKING:
    import onnx

    from camrt.preprocess import Preprocess

RANDOM = "random"
OPSET = 18
_FORM = re.compile(r"(?P<name>\w[\w.-]*)(?:@(?P<weights>\w+))?")
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")  # where checkpoints of training keep the weights
_IN_STEPS = "torch.export, attention in steps"
_SHOWN = 5  # names in an error
_log = logging.getLogger(__name__)


class _Library(Protocol):
    """What a library says of its networks."""

    package: ClassVar[str]

    def names(self) -> list[str]:
        """Return the names of its classifiers."""

    def check(self, name: str, weights: str | None) -> None:
        """Raise a CamrtError if there is no such network, or no such weights of it."""

    def build(self, name: str, weights: str | None, *, pretrained: bool) -> Any:
        """Return the network as a module, with the library's weights if they are wanted."""

    def preprocess(self, name: str, weights: str | None) -> Preprocess:
        """Return how it wants its images."""

    def labels(self, name: str, weights: str | None) -> list[str] | None:
        """Return the names of its classes."""


class _Torchvision(_Library):
    package: ClassVar[str] = "torchvision"

    def names(self) -> list[str]:
        from torchvision import models

        return list(models.list_models(module=models))

    def check(self, name: str, weights: str | None) -> None:
        _check_name(self, name)
        from torchvision.models import get_model_weights

        known = [one.name for one in get_model_weights(name)]
        if weights not in (None, RANDOM, "DEFAULT", *known):
            raise CamrtError(f"torchvision:{name} has no weights {weights!r}, expected {', '.join([*known, RANDOM])}")

    def build(self, name: str, weights: str | None, *, pretrained: bool) -> Any:
        from torchvision.models import get_model

        module = get_model(name, weights=self._weights(name, weights) if pretrained else None)
        if hasattr(module, "transform_input"):  # GoogLeNet and Inception v3 go on from images prepared as the others'
            module.transform_input = True
        return module

    def preprocess(self, name: str, weights: str | None) -> Preprocess:
        from camrt.preprocess import normalized

        wants = self._weights(name, weights).transforms()
        return normalized(wants.resize_size[0], wants.crop_size[0], wants.mean, wants.std)

    def labels(self, name: str, weights: str | None) -> list[str] | None:
        return list(self._weights(name, weights).meta["categories"])

    def _weights(self, name: str, weights: str | None) -> Any:
        from torchvision.models import get_model_weights

        return get_model_weights(name)["DEFAULT" if weights in (None, RANDOM) else weights]


class _Timm(_Library):
    package: ClassVar[str] = "timm"

    def names(self) -> list[str]:
        import timm

        return [*timm.list_models(), *timm.list_pretrained()]

    def check(self, name: str, weights: str | None) -> None:
        _check_name(self, name)
        if weights not in (None, RANDOM):
            raise CamrtError(f"found timm:{name}@{weights}, expected timm:NAME, timm:NAME.TAG or timm:NAME@{RANDOM}")

    def build(self, name: str, weights: str | None, *, pretrained: bool) -> Any:
        import timm

        module = timm.create_model(name, pretrained=pretrained, exportable=True)
        if not module.num_classes:
            raise CamrtError(f"timm:{name} ends in features and knows no classes, expected a classifier")
        return module

    def preprocess(self, name: str, weights: str | None) -> Preprocess:
        from camrt.preprocess import normalized

        config = self._config(name)
        side = config.input_size[1]
        return normalized(math.floor(side / config.crop_pct), side, config.mean, config.std)

    def labels(self, name: str, weights: str | None) -> list[str] | None:
        from timm.data import ImageNetInfo, infer_imagenet_subset

        config = self._config(name)
        if config.label_names:
            return list(config.label_names)
        subset = infer_imagenet_subset(config.to_dict())
        if not subset:
            return None
        info = ImageNetInfo(subset)
        return [info.index_to_description(number) for number in range(info.num_classes())]

    def _config(self, name: str) -> Any:
        from timm.models import get_pretrained_cfg

        config = get_pretrained_cfg(name)
        if config is None:
            raise CamrtError(f"timm has no configuration of {name!r}, expected a name that timm.list_models() gives")
        return config


@dataclass(frozen=True)
class Exported:
    """A network of a library, as it is exported.

    Attributes:
        library: The library.
        name: The network's name in it.
        weights: The name of its weights, `RANDOM`, or None for the default.
    """

    library: _Library
    name: str
    weights: str | None

    @property
    def spelled(self) -> str:
        """Return what it is called on the command line."""
        return f"{self.library.package}:{self.name}" + (f"@{self.weights}" if self.weights else "")

    def file(self, own: Path | None = None) -> Path:
        """Return the path in the cache of the ONNX file.

        Args:
            own: A file of weights in place of the library's.
        """
        kept = sha256_of(own)[:12] if own is not None else self.weights or "pretrained"
        made_by = "-".join(f"{name}{_version(name)}" for name in dict.fromkeys(("torch", self.library.package)))
        return zoo.cache_folder() / "pytorch" / f"{self.library.package}-{self.name}-{kept}-{made_by}.onnx"

    def fetch(self, weights: Path | None = None) -> Path:
        """Return the ONNX file, exported if need be.

        Args:
            weights: A state dict in place of the library's weights.

        Raises:
            CamrtError: The library is not installed or has no such network, its weights cannot be downloaded, those
                that were given do not fit, or PyTorch cannot export it.
        """
        if weights is not None and not weights.is_file():
            raise CamrtError(f"there is no such file, expected the weights of {self.spelled}", file=str(weights))
        file = self.file(weights)
        if file.is_file():
            return file
        self._import()
        self.library.check(self.name, self.weights)
        _log.info(f"exporting {self.spelled} by PyTorch {_version('torch')}; the result is kept in {file.parent}")
        module = self._module(weights)
        model = exported(module, self.library.preprocess(self.name, self.weights).crop, self.spelled)
        self._describe(model, with_labels=weights is not None or self.weights != RANDOM)
        _write(model, file)
        return file

    def preprocess(self) -> Preprocess | None:
        """Return how the network wants its images, as the library says.

        Raises:
            CamrtError: The library is not installed, or has no such network.
        """
        self._import()
        self.library.check(self.name, self.weights)
        return self.library.preprocess(self.name, self.weights)

    def module(self, weights: Path | None = None) -> Any:
        """Return the network as a ``torch.nn.Module`` in evaluation mode.

        Args:
            weights: A state dict in place of the library's weights.

        Raises:
            CamrtError: As `fetch`.
        """
        if weights is not None and not weights.is_file():
            raise CamrtError(f"there is no such file, expected the weights of {self.spelled}", file=str(weights))
        self._import()
        self.library.check(self.name, self.weights)
        return self._module(weights)

    def _import(self) -> None:
        try:
            with warnings.catch_warnings(action="ignore"):
                __import__("torch")
                __import__(self.library.package)
        except ImportError as error:
            raise CamrtError(
                f"{self.spelled} is exported by PyTorch, and {error.name or self.library.package} is not installed: "
                f"{install('camrt[pytorch]')}. zoo:NAME needs no PyTorch (camrt models {self.name})"
            ) from error
        except RuntimeError as error:  # a torchvision that was built for another PyTorch
            raise CamrtError(
                f"{self.library.package} cannot be imported ({error}). Install torch and torchvision of one kind, both "
                "for the CPU or both for CUDA: https://pytorch.org/get-started"
            ) from error

    def _module(self, own: Path | None) -> Any:
        import torch

        pretrained = own is None and self.weights != RANDOM
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
            torch.manual_seed(0)
            try:
                module = self.library.build(self.name, self.weights, pretrained=pretrained)
            except CamrtError:
                raise
            except Exception as error:  # each library, and what downloads for it, raises errors of its own
                why = f"{type(error).__name__}: {error}"
                if not pretrained:
                    raise CamrtError(f"{self.spelled} cannot be made ({why})") from error
                base = f"{self.library.package}:{self.name}"
                raise CamrtError(
                    f"the weights of {self.spelled} cannot be downloaded ({why}). If you have them, pass them with "
                    f"--weights FILE.pth or FILE.safetensors; {base}@{RANDOM} takes random ones"
                ) from error
        if own is not None:
            _load(module, own, self.spelled)
        return module.eval()

    def _describe(self, model: onnx.ModelProto, *, with_labels: bool) -> None:
        from onnx import helper

        labels = self.library.labels(self.name, self.weights) if with_labels else None
        wants = self.library.preprocess(self.name, self.weights)
        properties = {metadata.NAME: self.name, metadata.PREPROCESS: wants.as_json()}
        if labels is not None:
            properties[metadata.LABELS] = metadata.labels_text(labels)
        helper.set_model_props(model, properties)


def exported(module: Any, side: int, name: str) -> onnx.ModelProto:
    """Export a network to ONNX, with a free batch size: by torch.export, or by tracing where that fails.

    Args:
        module: A ``torch.nn.Module`` in evaluation mode, of images (N, 3, side, side). Where PyTorch cannot export the
            fused attention of timm's networks, it is told to compute it in steps.
        side: The side of its input in pixels.
        name: What it is called in messages.

    Raises:
        CamrtError: Neither way exports it.
    """
    import torch

    def by_export() -> dict[str, Any]:
        return {"dynamo": True, "dynamic_shapes": ({0: torch.export.Dim("batch")},), "verbose": False}

    def by_tracing() -> dict[str, Any]:
        return {"dynamo": False, "dynamic_axes": {"input": {0: "batch"}, "logits": {0: "batch"}}}

    ways: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("torch.export", by_export), (_IN_STEPS, by_export), ("tracing", by_tracing),
    ]  # fmt: skip
    reasons = []
    for way, options in ways:
        if way == _IN_STEPS and not _unfused(module):
            continue
        try:
            return _exported(module, side, options())
        except Exception as error:  # the exporters raise whatever they come across
            first = (str(error).strip().splitlines() or [""])[0]
            reasons.append(f"{way}: {type(error).__name__}: {first}")
    raise CamrtError(
        f"PyTorch cannot export {name} ({'; '.join(reasons)}). An ONNX file of it: camrt models, hf:, zoo:"
    )


def _unfused(module: Any) -> bool:
    """Let timm compute attention in steps; whether it was one function anywhere."""
    fused = [part for part in module.modules() if getattr(part, "fused_attn", False)]
    for part in fused:
        part.fused_attn = False
    return bool(fused)


def _exported(module: Any, side: int, options: dict[str, Any]) -> onnx.ModelProto:
    import onnx
    import torch

    image = torch.zeros(2, 3, side, side)  # two of them: a size of 1 would be taken for a constant
    quiet = logging.getLogger("torch.onnx")
    before = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings(action="ignore"):
            file = Path(folder) / "net.onnx"
            torch.onnx.export(
                module, (image,), str(file), input_names=["input"], output_names=["logits"], opset_version=OPSET,
                **options,
            )  # fmt: skip
            return onnx.load(file)
    finally:
        quiet.setLevel(before)


def _load(module: Any, file: Path, name: str) -> None:
    """Load a state dict into a network.

    Raises:
        CamrtError: The file cannot be read, or does not fit.
    """
    import torch

    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise CamrtError(f"is read by safetensors: {install('safetensors')}", file=str(file)) from error
    except Exception as error:  # PyTorch's reader raises what it comes across in a broken file
        first = (str(error).strip().splitlines() or [""])[0]
        raise CamrtError(
            f"cannot be read as weights ({type(error).__name__}: {first}), expected a state dict of tensors, as "
            "torch.save(module.state_dict(), FILE) writes it (.pth), or .safetensors",
            file=str(file),
        ) from error
    for key in _NESTED:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not all(isinstance(each, torch.Tensor) for each in state.values()):
        raise CamrtError("found no state dict, expected tensors by name", file=str(file))
    state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise CamrtError(f"does not hold the weights of {name}: {' '.join(lines)[:400]}", file=str(file)) from error


def _write(model: onnx.ModelProto, file: Path) -> None:
    from converters.encoding import replacing

    try:
        content = model.SerializeToString()
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as stream:
            stream.write(content)
    except OSError as error:
        raise CamrtError(
            f"cannot be written ({error.strerror or error}). Choose another cache folder with CAMRT_HOME",
            file=str(file),
        ) from error
    except Exception as error:  # protobuf's own, of more than 2 GiB
        raise CamrtError(f"cannot be kept in one ONNX file ({error})", file=str(file)) from error


def _check_name(library: _Library, name: str) -> None:
    known = library.names()
    if name in known:
        return
    longer = sorted((each for each in known if each.startswith(name)), key=len)
    close = longer[:_SHOWN] or get_close_matches(name, known, n=_SHOWN, cutoff=0.4)
    hint = f" Close: {', '.join(f'{library.package}:{each}' for each in close)}." if close else ""
    raise CamrtError(f"{library.package} has no classifier {name!r}.{hint}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-none"


def network_named(text: str) -> Exported:
    """Return the network of ``torchvision:NAME`` or ``timm:NAME``, with ``@WEIGHTS`` if wanted.

    Raises:
        CamrtError: The name has another form.
    """
    kind, _, name = text.partition(":")
    libraries: dict[str, _Library] = {"torchvision": _Torchvision(), "timm": _Timm()}
    form = _FORM.fullmatch(name)
    if kind not in libraries or form is None:
        raise CamrtError(f"found {text!r}, expected torchvision:NAME or timm:NAME, or NAME@{RANDOM}")
    return Exported(libraries[kind], form["name"], form["weights"])


def _found(library: _Library, page: str, name: str) -> Entry:
    form = _FORM.fullmatch(name)
    if form is None:
        raise CamrtError(f"found {library.package}:{name}, expected {library.package}:NAME, or NAME@{RANDOM}")
    network = Exported(library, form["name"], form["weights"])
    return Entry(network.spelled, network.file(), page, network.fetch, network.preprocess)


@source("torchvision")
def torchvision(name: str) -> Entry:
    """Find a classifier of torchvision. Whether there is one is seen when it is exported.

    Raises:
        CamrtError: The name has another form.
    """
    return _found(_Torchvision(), "https://docs.pytorch.org/vision/stable/models.html", name)


@source("timm")
def timm(name: str) -> Entry:
    """Find a classifier of timm. Whether there is one is seen when it is exported.

    Raises:
        CamrtError: The name has another form.
    """
    return _found(_Timm(), "https://github.com/huggingface/pytorch-image-models", name)
