"""The command `camrt export`: an explainer of a classifier."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camrt.commands.options import (
    STATUS,
    Json,
    Labels,
    MapOptions,
    PreprocessOptions,
    Weights,
    check_model,
    expanded,
    is_same_file,
    read_labels,
)
from camrt.commands.output import reporting, show
from camrt.commands.triton import TritonOptions
from camrt.errors import CamrtError
from camrt.loading import Request, explainer_graph
from camrt.results import json_line
from converters.terminal import amount, say, table

if TYPE_CHECKING:
    import onnx

EXAMPLES = f"""Examples:

  camrt export googlenetCAM -o explainer.onnx

  camrt export resnet50.onnx --preprocess torchvision --labels imagenet.txt

  camrt export inception_v3.onnx --preprocess torchvision --size 342 --crop 299 --protocol center

  camrt export my.onnx --crop 96 --mean 0 --scale 0.00392 --channels RGB

  camrt export resnet50.onnx --method gradcam --preprocess torchvision -o resnet50_gradcam.onnx

  camrt export vgg16.onnx --method layercam --layer relu4_3 --layer relu5_3 --target 504 --protocol center

  camrt export vgg16.onnx --method integrated-gradients --set steps=64 --target input

  camrt export resnet50.onnx --method expected-gradients --background photos/ --preprocess torchvision

  camrt export resnet50.onnx --method gradcam --smooth augment --smooth eigen --preprocess torchvision

  camrt export yolov8n.onnx --preprocess yolo --target box -o yolo_explainer.onnx

  camrt export resnet50.onnx --preprocess torchvision --precision int8 --calibrate photos/ -o resnet50_int8.onnx

  camrt export resnet50.onnx --preprocess torchvision --triton models/ --triton-accelerator tensorrt

With --precision int8 the network computes in 8 bits, with scales that are measured on images of --calibrate. Some of
them are held out, to say how far the result agrees with the explainer in 32 bits.

With --target input the result takes the classes with the images, as a second input: target (N x top, int64).
With --target any it does too, and a negative number stands for the best class of that place.
--target sum explains the sum of the tensor that --scores names, whatever it is.
With --target box the result explains a detection of a detector: it takes boxes and classes with the images
(docs/detectors.md).

The result takes the image as it is (N x size x size x 3, uint8, RGB) and gives scores, classes and heatmaps.
{STATUS}
"""


class Precision(StrEnum):
    """What the network of the written graph computes in."""

    FP32 = "fp32"
    INT8 = "int8"


@dataclass(frozen=True)
class Int8Options:
    """Whether the network is quantized, and on which images its scales are measured."""

    precision: Annotated[Precision, typer.Option(help="What the network computes in; int8 takes --calibrate.")] = (
        Precision.FP32
    )
    calibrate: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder of images like those that the network will see.")
    ] = None
    calibrate_count: Annotated[
        int | None, typer.Option(min=1, help="How many of them are calibrated on, at most; by default 100.")
    ] = None

    def check(self) -> None:
        """Check what can be checked before anything is loaded.

        Raises:
            typer.BadParameter: The options do not fit together.
        """
        if self.precision is Precision.INT8 and self.calibrate is None:
            raise typer.BadParameter("expected --calibrate DIR, a folder of images", param_hint="--precision int8")
        for name, given in (("--calibrate", self.calibrate), ("--calibrate-count", self.calibrate_count)):
            if self.precision is not Precision.INT8 and given is not None:
                raise typer.BadParameter("expected --precision int8 beside it", param_hint=name)

    def explainer(self, model: str, request: Request) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """Make the explainer in 8 bits, and say how far it agrees with the one in 32.

        Raises:
            CamrtError: There are no images, or it cannot be made.
        """
        from camrt.batch import find_images
        from camrt.calibration import COUNT, check_tools, int8_explainer
        from camrt.loading import classifier_of

        check_tools()
        assert self.calibrate is not None
        found, missing = find_images([str(self.calibrate)])
        for name, why in missing:
            raise CamrtError(f"cannot be calibrated on: {why}", file=name)
        try:
            explainer, agreement = int8_explainer(
                classifier_of(model, request.weights), request, [image.given for image in found],
                self.calibrate_count or COUNT, on_error=_skipped,
            )  # fmt: skip
        except CamrtError as error:
            raise error.in_file(model) from error.__cause__
        return explainer, {"agreement": dataclasses.asdict(agreement)}


def _skipped(image: str, error: CamrtError) -> None:
    say(f"skipped: {error.in_file(image)}")


@expanded
def export(
    model: Annotated[str, typer.Argument(help="A named model, or a classifier (.onnx).")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The model to write; by default explainer.onnx.")
    ] = None,
    weights: Weights = None,
    *,
    what: MapOptions,
    features: Annotated[str | None, typer.Option(metavar="TENSOR", help="The same as --layer.")] = None,
    wants: PreprocessOptions,
    labels: Labels = None,
    int8: Int8Options,
    serving: TritonOptions,
    as_json: Json = False,
) -> None:
    """Make an explainer of a classifier: one ONNX graph from the image to scores and heatmaps."""
    check_model(model, weights)
    asked = what.as_arguments()
    wants.check()
    int8.check()
    serving.check(output)
    output = Path("explainer.onnx") if output is None else output
    if is_same_file(output, Path(model)):
        raise typer.BadParameter(f"{output} is the model to export", param_hint="--output")
    with reporting():
        from camrt.graph.explain import describe

        request = Request(
            **asked,
            features=features,
            weights=weights,
            preprocess=wants.preprocessing(model),
            labels=read_labels(labels),
        )
        facts: dict[str, Any] = {}
        explainer: onnx.ModelProto | Path
        if int8.precision is Precision.INT8:
            explainer, facts = int8.explainer(model, request)
        else:
            explainer = explainer_graph(model, request)
        if isinstance(explainer, Path):
            raise CamrtError("is an explainer already, expected a classifier", file=model)
        if serving.triton is None:
            written = _write(explainer, output)
        else:
            output = serving.add(explainer, serving.triton, model)
            written = sum(file.stat().st_size for file in output.iterdir())
        record: dict[str, Any] = {
            "output": str(output),
            **describe(explainer),
            "inputs": [_described(value) for value in explainer.graph.input],
            "outputs": [_described(value) for value in explainer.graph.output],
            "bytes": written,
            **facts,
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
                    **_of_agreement(facts.get("agreement")),
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
        "any": f"{record['top']} that come with each image, or the best",
        "sum": "the sum",
    }
    if record.get("explained") == "box":
        classes = f"{record['top']} by box, by default {target if isinstance(target, str) else ', '.join(target)}"
    else:
        classes = explained[target] if isinstance(target, str) else f"classes {', '.join(map(str, target))}"
    settings = "".join(f", {name} {value}" for name, value in record.get("settings", {}).items())
    smoothing = "".join(f", smoothed by {name}" for name in record.get("smooth", []))
    return [*rows, ("maps", f"{record['method']}, {record['protocol']}, {classes}{settings}{smoothing}")]


def _of_agreement(found: dict[str, Any] | None) -> dict[str, str]:
    """Describe how far 8 bits agree with 32."""
    if found is None:
        return {}
    maps = "no class is explained by both"
    if found["correlation"] is not None:
        maps = f"correlation of the maps {found['correlation']:.4f}, at least {found['least_correlation']:.4f}"
    best, shared = (f"{found[name]:.0%}" for name in ("same_best_class", "same_classes"))
    return {
        "in 32 bits": amount(found["fp32_bytes"]),
        "agreement": f"{maps}; best class the same on {best}, {shared} of the classes",
        "images": f"{found['images']} compared, {found['calibrated']} others calibrated on",
    }


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
