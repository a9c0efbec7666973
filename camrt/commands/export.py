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
    Method,
    Protocol,
    Top,
    check_choice,
    check_method,
    check_model,
    check_protocol,
    is_same_file,
)
from camrt.commands.output import reporting, show
from camrt.errors import CamrtError
from camrt.loading import LABELS, TINY, Request, explainer_graph, known_preprocess
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

The result takes the image as it is (N x size x size x 3, uint8, RGB) and gives scores, classes and heatmaps.
{STATUS}
"""


def export(
    model: Annotated[str, typer.Argument(help=f"A named model, {TINY}, or a classifier (.onnx).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model to write.")] = Path("explainer.onnx"),
    method: Method = None,
    protocol: Protocol = None,
    top: Top = None,
    features: Annotated[str | None, typer.Option(metavar="TENSOR", help="What the maps are made of.")] = None,
    classifier: Annotated[str | None, typer.Option(metavar="NODE", help="The linear layer behind it.")] = None,
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
    check_protocol(protocol)
    check_model(model)
    if preprocess is not None:
        check_choice(preprocess, ("caffe", "torchvision"), "--preprocess")
    if channels is not None:
        check_choice(channels, ("RGB", "BGR"), "--channels")
    means, scales = _three(mean, "--mean"), _three(scale, "--scale")
    if is_same_file(output, Path(model)):
        raise typer.BadParameter(f"{output} is the model to export", param_hint="--output")
    with reporting():
        check_method(method)
        from camrt.graph.explain import describe

        wanted = _preprocess(model, preprocess, size, crop, means, scales, channels)
        explainer = explainer_graph(model, Request(method, protocol, top, features, classifier, wanted))
        if isinstance(explainer, Path):
            raise CamrtError("is an explainer already, expected a classifier", file=model)
        _add_labels(explainer, labels)
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
        table.add_row("head", f"features {facts['features']}, classifier {facts['classifier']}")
        table.add_row("maps", f"{facts['method']}, {facts['protocol']}, the best {facts['top']}")
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


def _add_labels(explainer: onnx.ModelProto, file: Path | None) -> None:
    if file is None:
        return
    try:
        text = file.read_text(encoding="utf-8")
        names = json.loads(text) if file.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise CamrtError(f"no class names can be read from it ({error})", file=str(file)) from error
    scores = next(value for value in explainer.graph.output if value.name == "scores")
    classes = scores.type.tensor_type.shape.dim[1].dim_value
    if not isinstance(names, list) or len(names) != classes:
        found = f"{len(names)} names" if isinstance(names, list) else "no list"
        raise CamrtError(f"found {found}, expected one for each of the {classes} classes", file=str(file))
    from onnx import helper

    kept = {entry.key: entry.value for entry in explainer.metadata_props}
    helper.set_model_props(explainer, {**kept, LABELS: json.dumps([str(name) for name in names], ensure_ascii=False)})


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
