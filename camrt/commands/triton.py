"""The options of `camrt export` that write to a model repository of Triton."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camrt.loading import title_of
from camrt.triton import Accelerator, Device
from converters.terminal import say

if TYPE_CHECKING:
    import onnx


class TensorRTPrecision(StrEnum):
    """What TensorRT computes in."""

    FP32 = "fp32"
    FP16 = "fp16"


@dataclass(frozen=True)
class TritonOptions:
    """Whether the result becomes a model of a Triton repository, and how it is served there."""

    triton: Annotated[
        Path | None,
        typer.Option(metavar="REPOSITORY", help="Add it to a model repository of Triton, in place of --output."),
    ] = None
    triton_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model's name; by default the file's.")
    ] = None
    triton_version: Annotated[int | None, typer.Option(min=1, help="The model's version; by default the next one.")] = (
        None
    )
    triton_max_batch: Annotated[int | None, typer.Option(min=1, help="Images computed at once; by default 8.")] = None
    triton_max_delay: Annotated[
        float | None,
        typer.Option(min=0, metavar="MS", help="How long a batch waits; by default 5 ms."),
    ] = None
    triton_instances: Annotated[int | None, typer.Option(min=1, help="Copies that run at once; by default 1.")] = None
    triton_device: Annotated[Device | None, typer.Option(help="Where they run; by default auto.")] = None
    triton_accelerator: Annotated[
        Accelerator | None,
        typer.Option(help="What runs the graph in place of ONNX Runtime's own kernels."),
    ] = None
    triton_precision: Annotated[
        TensorRTPrecision | None,
        typer.Option(help="What TensorRT computes in; by default fp32."),
    ] = None

    def check(self, output: Path | None) -> None:
        """Check that options go together.

        Raises:
            typer.BadParameter: They do not.
        """
        if self.triton is not None and output is not None:
            raise typer.BadParameter("goes without --triton, which says where the model is written", param_hint="-o")
        given = [one.name for one in dataclasses.fields(self) if getattr(self, one.name) is not None]
        if self.triton is None and given:
            flag = f"--{given[0].replace('_', '-')}"
            raise typer.BadParameter("expected --triton beside it", param_hint=flag)

    def add(self, explainer: onnx.ModelProto, repository: Path, model: str) -> Path:
        """Add an explainer to the repository. Returns the folder of its version.

        Raises:
            CamrtError: Options clash, or it cannot be written.
        """
        from camrt import triton
        from converters import metadata

        chosen: dict[str, Any] = {
            "max_batch": self.triton_max_batch,
            "max_delay": None if self.triton_max_delay is None else self.triton_max_delay / 1000,
            "instances": self.triton_instances,
            "device": self.triton_device,
            "accelerator": self.triton_accelerator,
            "precision": self.triton_precision.value if self.triton_precision else None,
        }
        config = triton.Config(
            self.triton_name or title_of(model),
            triton.tensors_of(explainer.graph.input),
            triton.tensors_of(explainer.graph.output),
            metadata.LABELS in metadata.of_model(explainer),
            **{name: value for name, value in chosen.items() if value is not None},
        )
        folder, is_new = triton.add(repository, config, explainer, self.triton_version)
        if not is_new:
            say(f"note: {folder.parent / triton.CONFIG} is there and left as it is; remove it to have it written anew")
        return folder
