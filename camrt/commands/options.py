"""Options that several commands share, and the checks that need nothing to be loaded.

Options that always come together are the fields of an options class (`MapOptions`, for example). A command takes one as
a parameter, and `expanded` makes an option of each field.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from camrt.errors import CamrtError
from camrt.graph.methods import BLACK_BOX, METHODS, OF_DETECTORS
from camrt.loading import is_name, known_preprocess
from camrt.loading import named as found_by_name
from camrt.localize import THRESHOLDS

if TYPE_CHECKING:
    from camrt.catalog import Entry
    from camrt.preprocess import Preprocess
    from camrt.render import Style
    from converters.zoo import NamedModel

DEFAULT_MODEL = "resnet50"
STATUS = "Exit status: 0, 1 (it failed, or an image did) or 2 (usage)."


class ProtocolName(StrEnum):
    """What the network sees of an image: a protocol of `camrt.preprocess.crops_of`."""

    WHOLE = "whole"
    TEN_CROP = "ten-crop"
    CENTER = "center"
    FULL = "full"


class PrecisionName(StrEnum):
    """What the network computes in, as for `camrt.session.Session`."""

    FP32 = "fp32"
    TF32 = "tf32"
    BF16 = "bf16"
    FP16 = "fp16"
    AUTO = "auto"


class ColormapName(StrEnum):
    """The colors of overlays: one of `camrt.colors.COLORMAPS`."""

    TURBO = "turbo"
    INFERNO = "inferno"
    VIRIDIS = "viridis"
    JET = "jet"
    BWR = "bwr"


class BoxesName(StrEnum):
    """The boxes that are drawn."""

    BEST = "best"
    ALL = "all"
    NONE = "none"


class SmoothName(StrEnum):
    """How maps are smoothed: a name of `camrt.graph.smoothing`."""

    AUGMENT = "augment"
    EIGEN = "eigen"


class Preset(StrEnum):
    """The preprocessing of a family of networks: a key of `camrt.preprocess.PRESETS`."""

    CAFFE = "caffe"
    TORCHVISION = "torchvision"
    YOLO = "yolo"


def number(text: str) -> float:
    """Parse one of the numbers of an option that takes several.

    Raises:
        typer.BadParameter: It is none, as when one is missing and the next argument is taken for it.
    """
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"found {text!r} among its numbers. Give all that the option takes") from None


class Channels(StrEnum):
    """The order of the channels."""

    RGB = "RGB"
    BGR = "BGR"


def method_name(text: str) -> str:
    """Parse the name of a method.

    Raises:
        typer.BadParameter: There is no such method.
    """
    check_choice(text, (*METHODS, *BLACK_BOX, *OF_DETECTORS))
    return text


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Provider = Annotated[
    str | None,
    typer.Option(
        metavar="cuda|cpu|openvino|...",
        help="Where it runs; by default CUDA where ONNX Runtime has it, else the CPU (docs/speed.md).",
    ),
]
Precision = Annotated[
    PrecisionName | None,
    typer.Option(
        help="What the network computes in; by default fp32, which is exact. auto: the fastest whose maps agree."
    ),
]
Thresholds = Annotated[
    tuple[int, int, int], typer.Option(metavar="A B C", help="The three gray levels of the box generator.")
]
Weights = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The weights of a named model, in place of the cache and the download."),
]
PresetName = Annotated[
    Preset | None,
    typer.Option("--preprocess", help="How the network wants its images, where the model does not say it."),
]
Method = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        parser=method_name,
        help=f"How the maps are computed: {', '.join(METHODS)} (docs/methods.md); by default cam where the network "
        "ends in global average pooling and a linear layer, else gradcam. "
        f"Or by running the model many times: {', '.join((*BLACK_BOX, *OF_DETECTORS))} (docs/blackbox.md).",
    ),
]
Protocol = Annotated[
    ProtocolName | None,
    typer.Option(help="What the network sees of an image; by default what the model states, else all of it, once."),
]
Top = Annotated[
    int | None,
    typer.Option(min=1, help="How many classes are explained; by default 5, or 1 where each costs much."),
]
Target = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CLASS|segment:CLASS|box:...",
        help="Explain this class, by name or number, and not the best; may be repeated. Of a segmentation "
        "segment:CLASS; of a detector box:best, box:2 or box:LEFT,TOP,RIGHT,BOTTOM, each also with :CLASS "
        "(docs/detectors.md).",
    ),
]
Layer = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TENSOR|NODE", help="The features that the maps are made of; by default the last with positions."
    ),
]
Classifier = Annotated[str | None, typer.Option(metavar="NODE", help="The linear layer behind the features, for cam.")]
Scores = Annotated[
    str | None, typer.Option(metavar="TENSOR", help="What is explained; by default the last output of class scores.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method, as samples=50; may be repeated."),
]
Smooth = Annotated[
    list[SmoothName] | None,
    typer.Option(
        help="Smooth the maps: augment, over mirrored and scaled variants of the image, at six times the work; eigen, "
        "by the first principal component of what a method sums. May be repeated."
    ),
]
Background = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Of expected-gradients: a folder of images that each image is compared with."),
]
Detections = Annotated[
    str | None,
    typer.Option(
        metavar="LAYOUT",
        help="What the outputs of a detector are, where they do not tell: yolov5, yolov8, rtdetr, or "
        "boxes=TENSOR,scores=TENSOR,... (docs/detectors.md).",
    ),
]
Labels = Annotated[
    Path | None, typer.Option("--labels", metavar="FILE", help="Names of the classes: a line each, or a JSON list.")
]
MaxSide = Annotated[
    int,
    typer.Option(min=0, help="The longer side in pixels of the largest pictures that are written; 0 for no limit."),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="The most pixels of an image that is read; by default 89,478,485."),
]


@dataclass(frozen=True)
class RuntimeOptions:
    """Where the network runs, in what precision, and how many images at once."""

    provider: Provider = None
    precision: Precision = None
    batch: Annotated[int | None, typer.Option(min=1, help="Images at once; by default 1, on a GPU as many as fit.")] = (
        None
    )

    def as_arguments(self) -> dict[str, Any]:
        """Return what `camrt.Explainer` takes of them: ``providers`` and ``precision``."""
        return {"providers": self.provider, "precision": self.precision.value if self.precision else None}


@dataclass(frozen=True)
class MapOptions:
    """What is explained, and how. The fields are those of `camrt.loading.Request`."""

    method: Method = None
    protocol: Protocol = None
    top: Top = None
    target: Target = None
    layer: Layer = None
    classifier: Classifier = None
    scores: Scores = None
    settings: Settings = None
    smooth: Smooth = None
    background: Background = None
    detections: Detections = None

    def as_arguments(self) -> dict[str, Any]:
        """Return them as keyword arguments of `camrt.loading.Request` and `camrt.batch.Batch`.

        Raises:
            typer.BadParameter: A setting has another form than NAME=VALUE.
        """
        return {
            "method": self.method,
            "protocol": self.protocol.value if self.protocol else None,
            "top": self.top,
            "target": one_or_several(self.target),
            "layer": one_or_several(self.layer),
            "classifier": self.classifier,
            "scores": self.scores,
            "settings": settings_of(self.settings),
            "smooth": smoothing_of(self.smooth),
            "background": background_of(self.background),
            "detections": self.detections,
        }


@dataclass(frozen=True)
class PreprocessOptions:
    """How the network wants its images: a preset, and what differs from it."""

    preprocess: PresetName = None
    size: Annotated[int | None, typer.Option(min=1, help="The side in pixels that images are resized to.")] = None
    crop: Annotated[int | None, typer.Option(min=1, help="The side in pixels of the network's input.")] = None
    mean: Annotated[
        str | None, typer.Option(metavar="M|M,M,M", help="Subtracted from each channel, on the scale 0 to 255.")
    ] = None
    scale: Annotated[str | None, typer.Option(metavar="S|S,S,S", help="What the difference is multiplied by.")] = None
    channels: Annotated[Channels | None, typer.Option(help="The order of the channels.")] = None

    def preprocessing(self, model: str) -> Preprocess | None:
        """Return what the options say, over the preset's or the model's own; None where they say nothing.

        Args:
            model: The name or path of the model.

        Raises:
            typer.BadParameter: An option is wrong, or they do not say enough.
            CamrtError: The values do not fit together, or the model's own cannot be read.
        """
        from camrt.preprocess import PRESETS, Preprocess

        changes = self._changes()
        if self.preprocess is None and self.crop is None and not changes:
            return None
        base = PRESETS[self.preprocess.value] if self.preprocess else known_preprocess(model)
        if base is None:
            if self.crop is None or "mean" not in changes or self.channels is None:
                raise typer.BadParameter(
                    "the model does not say how it wants its images: give --preprocess caffe or torchvision, or at "
                    "least --crop, --mean and --channels"
                )
            base = Preprocess(size=max(self.size or 0, self.crop), crop=self.crop, mean=changes["mean"])
        if self.crop is not None:
            base = base.cropped(self.crop)
        if changes.keys() & {"size", "mean", "channels"}:
            changes["mean_image"] = None
        return dataclasses.replace(base, **changes)

    def check(self) -> None:
        """Check what can be checked before anything is loaded.

        Raises:
            typer.BadParameter: The mean or the scale has another form.
        """
        self._changes()

    def _changes(self) -> dict[str, Any]:
        given = {
            "size": self.size,
            "mean": _three(self.mean, "--mean"),
            "scale": _three(self.scale, "--scale"),
            "channels": self.channels.value if self.channels else None,
        }
        return {name: value for name, value in given.items() if value is not None}


def _three(text: str | None, flag: str) -> tuple[float, float, float] | None:
    """A number for all channels, or one for each."""
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3):
        raise typer.BadParameter(f"found {text!r}, expected a number, or three with commas between", param_hint=flag)
    first, second, third = numbers if len(numbers) == 3 else numbers * 3
    return first, second, third


@dataclass(frozen=True)
class StyleOptions:
    """How overlays are drawn. The fields are those of `camrt.render.Style`."""

    colormap: Annotated[
        ColormapName, typer.Option(help="The colors of overlays; bwr shows values on both sides of zero.")
    ] = ColormapName.TURBO
    opacity: Annotated[float, typer.Option(min=0, max=1, help="The opacity of the strongest values.")] = 0.7
    boxes: Annotated[
        BoxesName,
        typer.Option(help="A box around the best region of each class, all of the original's boxes, or none."),
    ] = BoxesName.BEST
    thresholds: Thresholds = THRESHOLDS
    caption: Annotated[
        bool, typer.Option("--caption/--no-caption", help="Class, score and method below the overlays.")
    ] = True

    def style(self) -> Style:
        """Return them as one value."""
        from camrt.render import Style

        boxes: Literal["best", "all"] | None = None
        if self.boxes is not BoxesName.NONE:
            boxes = "best" if self.boxes is BoxesName.BEST else "all"
        return Style(self.colormap.value, self.opacity, boxes, self.thresholds, self.caption)


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """Make an option of each field of the options classes that a command takes.

    Args:
        command: A function. Parameters whose type is a dataclass are options classes; the others are as Typer has them.

    Returns:
        The function that Typer gets: it has the fields in place of the objects.
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {}
    parameters = []
    for parameter in signature.parameters.values():
        if dataclasses.is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
            parameters += _fields(parameter.annotation)
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def flat(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
        command(**given)

    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return flat


def _fields(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(field.name, keyword, default=field.default, annotation=hints[field.name])
        for field in dataclasses.fields(group)
    ]


def named(name: str) -> NamedModel | Entry:
    """Find the network of a name.

    Raises:
        typer.BadParameter: There is none of that name.
    """
    from converters.errors import ConversionError

    try:
        return found_by_name(name)
    except (CamrtError, ConversionError) as error:
        raise typer.BadParameter(str(error)) from None


def named_caffe(name: str) -> NamedModel:
    """Find a Caffe network by name.

    Raises:
        typer.BadParameter: There is none of that name.
    """
    from converters import zoo

    found = named(name)
    if not isinstance(found, zoo.NamedModel):
        raise typer.BadParameter(f"found {name!r}, expected a network of Caffe: {', '.join(zoo.models())}")
    return found


def check_model(model: str, weights: Path | None = None) -> None:
    """Check a model's name; whether a file is there is seen when it is read.

    Args:
        model: A name or a path.
        weights: What was given with ``--weights``.

    Raises:
        typer.BadParameter: There is no model of that name, or weights are given for a file that has its own.
    """
    if is_name(model):
        named(model)
    elif weights is not None:
        raise typer.BadParameter(
            f"goes with a named model, and {model} is a file with its own weights", param_hint="--weights"
        )


def one_or_several(given: Sequence[str] | None) -> str | list[str] | None:
    """Return what an option that may be repeated says: nothing, a value, or several."""
    return list(given) if given and len(given) > 1 else given[0] if given else None


def smoothing_of(given: Sequence[SmoothName] | None) -> str | list[str] | None:
    """Return how maps are smoothed, as `camrt.Explainer` takes it."""
    return one_or_several([name.value for name in given or ()])


def background_of(folder: Path | None) -> list[str] | None:
    """Return the images of a folder, in their order.

    Raises:
        typer.BadParameter: There is no such folder, or it holds no images.
    """
    if folder is None:
        return None
    from camrt.batch import find_images

    found = find_images([str(folder)])[0] if folder.is_dir() else []
    if not found:
        raise typer.BadParameter(f"found no images in {folder}, expected a folder of images", param_hint="--background")
    return [str(image.path) for image in found]


def settings_of(given: Sequence[str] | None) -> Mapping[str, str] | None:
    """Parse settings of a method, NAME=VALUE each.

    Raises:
        typer.BadParameter: One has another form.
    """
    pairs = [text.partition("=") for text in given or ()]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise typer.BadParameter(f"found {name + equals + value!r}, expected NAME=VALUE", param_hint="--set")
    return {name: value for name, _, value in pairs} or None


def read_labels(file: Path | None) -> list[str] | None:
    """Read the names of the classes.

    Args:
        file: A name on each line, or a JSON list (.json); None for no names.

    Raises:
        CamrtError: They cannot be read.
    """
    if file is None:
        return None
    try:
        text = file.read_text(encoding="utf-8")
        names = json.loads(text) if file.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise CamrtError(f"no class names can be read from it ({error})", file=str(file)) from error
    if not isinstance(names, list):
        raise CamrtError("found no list, expected a name for each of the classes", file=str(file))
    return [str(name) for name in names]


def check_choice(value: str, choices: Sequence[str], flag: str | None = None) -> None:
    """Check that a value is one of the choices.

    Raises:
        typer.BadParameter: It is not.
    """
    if value not in choices:
        raise typer.BadParameter(f"found {value!r}, expected one of {', '.join(choices)}", param_hint=flag)


def listed(text: str | None, known: Sequence[str], flag: str) -> list[str]:
    """Parse names with commas between, each once.

    Raises:
        typer.BadParameter: One is not known, or there are none.
    """
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in names:
        check_choice(name, known, flag)
    if not names:
        raise typer.BadParameter(f"found nothing, expected some of {', '.join(known)}", param_hint=flag)
    return list(dict.fromkeys(names))


def check_picture(path: Path, flag: str) -> None:
    """Check that a picture's file name ends in a format that is written.

    Raises:
        typer.BadParameter: It does not.
    """
    endings = (".png", ".jpg", ".jpeg")
    if path.suffix.lower() not in endings:
        raise typer.BadParameter(f"found {path}, expected a name that ends in {', '.join(endings)}", param_hint=flag)


def is_same_file(one: Path | None, other: Path | None) -> bool:
    """Return whether both are there, and are one file."""
    return one is not None and other is not None and one.exists() and other.exists() and one.samefile(other)
