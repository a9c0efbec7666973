"""The command `camrt export`: an explainer of a classifier."""

from __future__ import annotations

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
from camrt.errors import CamrtError
from camrt.loading import Request, explainer_graph
from camrt.results import json_line
from converters.terminal import amount, table

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

With --target input the result takes the classes with the images, as a second input: target (N x top, int64).
With --target any it does too, and a negative number stands for the best class of that place.
--target sum explains the sum of the tensor that --scores names, whatever it is.

The result takes the image as it is (N x size x size x 3, uint8, RGB) and gives scores, classes and heatmaps.
{STATUS}
"""


@expanded
def export(
    model: Annotated[str, typer.Argument(help="A named model, or a classifier (.onnx).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model to write.")] = Path("explainer.onnx"),
    weights: Weights = None,
    *,
    what: MapOptions,
    features: Annotated[str | None, typer.Option(metavar="TENSOR", help="The same as --layer.")] = None,
    wants: PreprocessOptions,
    labels: Labels = None,
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
            **asked,
            features=features,
            weights=weights,
            preprocess=wants.preprocessing(model),
            labels=read_labels(labels),
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
        "any": f"{record['top']} that come with each image, or the best",
        "sum": "the sum",
    }
    classes = explained[target] if isinstance(target, str) else f"classes {', '.join(map(str, target))}"
    settings = "".join(f", {name} {value}" for name, value in record.get("settings", {}).items())
    return [*rows, ("maps", f"{record['method']}, {record['protocol']}, {classes}{settings}")]


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
