"""What every engine has: providers, precisions, and one way to run a model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from camrt.errors import CamrtError

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

Provider: TypeAlias = str | tuple[str, Mapping[str, Any]]
Providers: TypeAlias = str | Sequence[Provider]
Model: TypeAlias = "onnx.ModelProto | str | os.PathLike[str]"
Shapes: TypeAlias = Mapping[str, tuple[int | str | None, ...]]

# What a model of float32 is computed in. fp32 is exact; the others keep fewer bits of the mantissa: tf32 (CUDA only)
# and fp16 10, bf16 7. An int8 model is quantized by itself; what else it has runs at one of them.
FP32, TF32, BF16, FP16 = "fp32", "tf32", "bf16", "fp16"
PRECISIONS = (FP32, TF32, BF16, FP16)


class Engine(Protocol):
    """A model, loaded by what computes it. It is thread-safe.

    Attributes:
        provider: What runs the model, by the engine's own name.
        precision: What it computes in: one of `PRECISIONS`.
        inputs: Input -> shape; a free dimension is a name or None.
        outputs: Output -> shape.
        metadata: The model's metadata_props.
        started: A line for the log: the engine's version, and where the model runs.
    """

    provider: str
    precision: str
    inputs: Shapes
    outputs: Shapes
    metadata: Mapping[str, str]
    started: str

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute all outputs: output -> array, new at each call.

        Raises:
            CamrtError: The engine fails: a wrong shape or dtype, not enough memory.
        """
        ...


def short(provider: str) -> str:
    """Return a provider's short name: ``"cuda"`` of ``"CUDAExecutionProvider"``."""
    return provider.casefold().removesuffix("executionprovider")


def with_options(provider: Provider) -> tuple[str, dict[str, str]]:
    """Return a provider's name and its options.

    Args:
        provider: A name; a name with options, ``"cuda:device_id=1,prefer_nhwc=1"``; or a pair of both.

    Raises:
        CamrtError: An option has another form than NAME=VALUE.
    """
    if not isinstance(provider, str):
        return provider[0], {key: str(value) for key, value in provider[1].items()}
    name, _, text = provider.partition(":")
    options = {}
    for entry in filter(None, text.split(",")):
        key, equals, value = entry.partition("=")
        if not (key and equals):
            raise CamrtError(
                f"found the option {entry!r} of the provider {name!r}, expected NAME=VALUE, as in cuda:device_id=1"
            )
        options[key] = value
    return name, options


def name_of(model: Model) -> str:
    """Return what a model is called in messages: its path, where it has one."""
    return os.fspath(model) if isinstance(model, (str, os.PathLike)) else "the model"


def read_model(model: Model) -> onnx.ModelProto:
    """Return a model as a message, with its external data.

    Raises:
        CamrtError: There is no such file, or it is no ONNX model.
    """
    import onnx

    if isinstance(model, onnx.ModelProto):
        return model
    check_is_file(model)
    try:
        return onnx.load(model)
    except Exception as error:  # what protobuf and onnx raise at a broken file has no common base
        raise CamrtError(f"is no ONNX model that can be read ({error})", file=os.fspath(model)) from error


def check_is_file(path: str | os.PathLike[str]) -> None:
    """Raise CamrtError unless there is such a file."""
    if not Path(path).is_file():
        raise CamrtError("there is no such file, expected an ONNX model", file=os.fspath(path))


def run_error(engine: str, provider: str, feeds: Mapping[str, NDArray[Any]], error: object) -> CamrtError:
    """Return the error of a failed run, with the shapes and dtypes that the engine was given."""
    shapes = ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in feeds.items())
    return CamrtError(
        f"{engine} failed on {provider} with {shapes}: {error}. Where memory ran out, give fewer images at once (batch)"
    )
