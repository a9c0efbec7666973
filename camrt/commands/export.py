"""The command `camrt export`: an explainer of a classifier."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camrt.commands.options import (
    STATUS,
    Json,
    MapOptions,
    PresetName,
    Weights,
    check_model,
    expanded,
    is_same_file,
)
from camrt.commands.output import reporting, show
from camrt.errors import CamrtError
from camrt.loading import Request, explainer_graph, known_preprocess
from camrt.results import json_line
from converters.terminal import amount, table

if TYPE_CHECKING:
    import onnx

    from camrt.preprocess import Preprocess

EXAMPLES = f"""Examples:

  camrt export googlenetCAM -o explainer.onnx

  camrt export resnet50.onnx --preprocess torchvision --labels imagenet.txt

  camrt export inception_v3.onnx --preprocess torchvision --size 342 --crop 299 --protocol center

  camrt export my.onnx --crop 96 --mean 0 --scale 0.00392 --channels RGB

  camrt export resnet50.onnx --method gradcam --preprocess torchvision -o resnet50_gradcam.onnx

  camrt export vgg16.onnx --method layercam --layer relu4_3 --layer relu5_3 --target 504 --protocol center

  camrt export vgg16.onnx --method integrated-gradients --set steps=64 --target input

With --target input the result takes the classes with the images, as a second input: target (N x top, int64).
--target sum explains the sum of the tensor that --scores names, whatever it is.

The result takes the image as it is (N x size x size x 3, uint8, RGB) and gives scores, classes and heatmaps.
{STATUS}
"""


class Channels(StrEnum):
    """The order of the channels."""

    RGB = "RGB"
    BGR = "BGR"


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


@expanded
def export(
    model: Annotated[str, typer.Argument(help="A named model, or a classifier (.onnx).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model to write.")] = Path("explainer.onnx"),
    weights: Weights = None,
    *,
    what: MapOptions,
    features: Annotated[str | None, typer.Option(metavar="TENSOR", help="The same as --layer.")] = None,
    wants: PreprocessOptions,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Names of the classes: a line each, or a JSON list.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make an explainer of a classifier: one ONNX graph from the image to scores and heatmaps."""
    check_model(model, weights)
    asked = what.as_arguments()
    wants.check()
    if is_same_file(output, Path(model)):
        raise typer.BadParameter(f"{output} is the model to export", param_hint="--output")
    with reporting():
        from camrt.graph.explain import describe

        request = Request(
            **asked, features=features, weights=weights, preprocess=wants.preprocessing(model), labels=_labels(labels)
        )
        explainer = explainer_graph(model, request)
        if isinstance(explainer, Path):
            raise CamrtError("is an explainer already, expected a classifier", file=model)
        written = _write(explainer, output)
        record: dict[str, Any] = {
            "output": str(output),
            **describe(explainer),
            "inputs": [_described(value) for value in explainer.graph.input],
            "outputs": [_described(value) for value in explainer.graph.output],
            "bytes": written,
        }
        if as_json:
            print(json_line(record))
            return
        show(
            table(
                {
                    "model": record["output"],
                    **dict(_of_method(record)),
                    "inputs": record["inputs"],
                    "outputs": record["outputs"],
                    "size": amount(written),
                }
            )
        )


def _of_method(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Describe the maps."""
    if "classifier" in record:
        rows = [("head", f"features {record['features']}, classifier {record['classifier']}")]
    else:
        rows = [("layer", ", ".join(record["layer"]) or "the image itself"), ("scores", record["scores"])]
    target = record.get("target", "top")
    explained = {
        "top": f"the best {record['top']}",
        "input": f"{record['top']} that come with each image",
        "sum": "the sum",
    }
    classes = explained[target] if isinstance(target, str) else f"classes {', '.join(map(str, target))}"
    settings = "".join(f", {name} {value}" for name, value in record.get("settings", {}).items())
    return [*rows, ("maps", f"{record['method']}, {record['protocol']}, {classes}{settings}")]


def _labels(file: Path | None) -> list[str] | None:
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


def _write(model: onnx.ModelProto, output: Path) -> int:
    """Write a model, in a folder that is made if need be. Returns the bytes."""
    from converters import model as models

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CamrtError(f"cannot be written: {error.strerror or error}", file=str(output)) from error
    return models.save(model, output, limit=models.MAX_MODEL)


def _described(value: onnx.ValueInfoProto) -> str:
    from onnx import TensorProto

    dims = (dim.dim_param or str(dim.dim_value) for dim in value.type.tensor_type.shape.dim)
    return f"{value.name} ({' x '.join(dims)}) {TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()}"
