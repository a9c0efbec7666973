"""`camrt export`: an explainer of a classifier."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camrt.commands.options import (
    STATUS,
    Json,
    Layer,
    Method,
    Protocol,
    Scores,
    Settings,
    Target,
    Top,
    check_choice,
    check_method,
    check_model,
    check_protocol,
    is_same_file,
    one_or_several,
    settings_of,
)
from camrt.commands.output import reporting, show
from camrt.errors import CamrtError
from camrt.loading import Request, explainer_graph, known_preprocess
from camrt.results import json_line
from converters.terminal import amount

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


def export(
    model: Annotated[str, typer.Argument(help="A named model, or a classifier (.onnx).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model to write.")] = Path("explainer.onnx"),
    method: Method = None,
    protocol: Protocol = None,
    top: Top = None,
    target: Target = None,
    layer: Layer = None,
    scores: Scores = None,
    settings: Settings = None,
    features: Annotated[str | None, typer.Option(metavar="TENSOR", help="The same as --layer.")] = None,
    classifier: Annotated[
        str | None, typer.Option(metavar="NODE", help="The linear layer behind the features, for cam.")
    ] = None,
    preprocess: Annotated[
        str | None, typer.Option(metavar="caffe|torchvision", help="What the network wants of an image.")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="The side in pixels that images are resized to.")] = None,
    crop: Annotated[int | None, typer.Option(min=1, help="The side in pixels of the network's input.")] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="M|M,M,M", help="Subtracted from each channel, on the scale 0 to 255.")
    ] = None,
    scale: Annotated[
        str | None, typer.Option(metavar="S|S,S,S", help="What the difference is multiplied with.")
    ] = None,
    channels: Annotated[str | None, typer.Option(metavar="RGB|BGR", help="The order of the channels.")] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Names of the classes: a line each, or a JSON list.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make an explainer of a classifier: one ONNX graph from the image to scores and heatmaps."""
    check_method(method)
    check_protocol(protocol)
    check_model(model)
    chosen = settings_of(settings)
    if preprocess is not None:
        check_choice(preprocess, ("caffe", "torchvision"), "--preprocess")
    if channels is not None:
        check_choice(channels, ("RGB", "BGR"), "--channels")
    means, scales = _three(mean, "--mean"), _three(scale, "--scale")
    if is_same_file(output, Path(model)):
        raise typer.BadParameter(f"{output} is the model to export", param_hint="--output")
    with reporting():
        from camrt.graph.explain import describe

        request = Request(
            method, protocol, top, features, classifier,
            preprocess=_preprocess(model, preprocess, size, crop, means, scales, channels),
            target=one_or_several(target), layer=one_or_several(layer), scores=scores, settings=chosen,
            labels=_labels(labels),
        )  # fmt: skip
        explainer = explainer_graph(model, request)
        if isinstance(explainer, Path):
            raise CamrtError("is an explainer already, expected a classifier", file=model)
        written = _write(explainer, output)
        facts: dict[str, Any] = {
            "output": str(output),
            **describe(explainer),
            "inputs": [_described(value) for value in explainer.graph.input],
            "outputs": [_described(value) for value in explainer.graph.output],
            "bytes": written,
        }
        if as_json:
            print(json_line(facts))
            return
        from rich.table import Table

        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_row("model", facts["output"])
        for name, text in _of_method(facts):
            table.add_row(name, text)
        table.add_row("inputs", "\n".join(facts["inputs"]))
        table.add_row("outputs", "\n".join(facts["outputs"]))
        table.add_row("size", amount(written))
        show(table)


def _three(text: str | None, flag: str) -> tuple[float, float, float] | None:
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


def _preprocess(
    model: str,
    preset: str | None,
    size: int | None,
    crop: int | None,
    mean: tuple[float, float, float] | None,
    scale: tuple[float, float, float] | None,
    channels: str | None,
) -> Preprocess | None:
    """What the flags say, over the preset's or the model's own; None where they say nothing."""
    from camrt.preprocess import PRESETS, Preprocess

    if (preset, size, crop, mean, scale, channels) == (None,) * 6:
        return None
    base = PRESETS[preset] if preset else known_preprocess(model)
    if base is None:
        if crop is None or mean is None or channels is None:
            raise typer.BadParameter(
                "the model does not say what it wants of an image: give --preprocess caffe or torchvision, or at least "
                "--crop, --mean and --channels"
            )
        base = Preprocess(size=max(size or 0, crop), crop=crop, mean=mean)
    if crop is not None:
        base = base.cropped(crop)
    changes: dict[str, Any] = {"size": size, "mean": mean, "scale": scale, "channels": channels}
    changes = {name: value for name, value in changes.items() if value is not None}
    if changes.keys() & {"size", "mean", "channels"}:
        changes["mean_image"] = None
    return dataclasses.replace(base, **changes)


def _of_method(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What is said of the maps."""
    if "classifier" in facts:
        rows = [("head", f"features {facts['features']}, classifier {facts['classifier']}")]
    else:
        rows = [("layer", ", ".join(facts["layer"]) or "the image itself"), ("scores", facts["scores"])]
    target = facts.get("target", "top")
    explained = {
        "top": f"the best {facts['top']}",
        "input": f"{facts['top']} that come with each image",
        "sum": "the sum",
    }
    classes = explained[target] if isinstance(target, str) else f"classes {', '.join(map(str, target))}"
    settings = "".join(f", {name} {value}" for name, value in facts.get("settings", {}).items())
    return [*rows, ("maps", f"{facts['method']}, {facts['protocol']}, {classes}{settings}")]


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
