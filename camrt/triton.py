"""Model repositories of NVIDIA's Triton Inference Server: written for explainers, and read again.

A repository is a folder of models, a model a folder with ``config.pbtxt`` and a folder for each version:
https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_repository.md. The configuration is
the message ModelConfig of model_config.proto, as text.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from camrt.errors import CamrtError
from camrt.results import write
from converters import metadata
from converters.errors import ConversionError

if TYPE_CHECKING:
    import onnx

Shapes: TypeAlias = Mapping[str, Sequence[int | str | None]]

CONFIG, LABELS, MODEL = "config.pbtxt", "labels.txt", "model.onnx"
MAX_BATCH, MAX_DELAY = 8, 0.005
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_LARGEST_CONFIG = 1 << 20  # bytes
_WORKSPACE = 1 << 30  # bytes that TensorRT may use to try kernels


class Accelerator(StrEnum):
    """What Triton's ONNX Runtime hands the graph to."""

    TENSORRT = "tensorrt"
    OPENVINO = "openvino"


class Device(StrEnum):
    """Where Triton puts the instances of a model."""

    AUTO = "auto"
    GPU = "gpu"
    CPU = "cpu"


@dataclass(frozen=True)
class Tensor:
    """An input or output in a configuration.

    Attributes:
        name: Its name.
        datatype: ``"TYPE_UINT8"``, ...
        dims: Its shape without the batch.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Config:
    """The configuration of an explainer in a repository.

    Attributes:
        name: The model's name.
        inputs: What the graph takes.
        outputs: What the graph gives.
        has_labels: Whether the names of the classes are in ``labels.txt``.
        max_batch: The most images at once.
        max_delay: How long a batch waits for more requests, in seconds.
        instances: How many copies of the model run at once.
        device: Where they run.
        accelerator: What runs the graph in place of ONNX Runtime's own kernels.
        precision: What TensorRT computes in: ``"fp32"`` or ``"fp16"``.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    has_labels: bool = False
    max_batch: int = MAX_BATCH
    max_delay: float = MAX_DELAY
    instances: int = 1
    device: Device = Device.AUTO
    accelerator: Accelerator | None = None
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise CamrtError(
                f"found the name {self.name!r}, expected letters, digits, dots, dashes and underscores. Choose one: "
                "--triton-name"
            )
        clash = {Accelerator.TENSORRT: Device.CPU, Accelerator.OPENVINO: Device.GPU}
        if self.accelerator is not None and clash[self.accelerator] is self.device:
            raise CamrtError(f"found {self.accelerator} on the {self.device}, expected it on the other device")
        if self.precision != "fp32" and self.accelerator is not Accelerator.TENSORRT:
            raise CamrtError(
                f"found the precision {self.precision}, expected fp32: only TensorRT takes another here. Add "
                "--triton-accelerator tensorrt"
            )

    def text(self) -> str:
        """Return the content of ``config.pbtxt``."""
        parts = [
            f"name: {json.dumps(self.name)}",
            'backend: "onnxruntime"',
            f"default_model_filename: {json.dumps(MODEL)}",
            f"max_batch_size: {self.max_batch}",
            *(self._tensor("input", tensor) for tensor in self.inputs),
            *(self._tensor("output", tensor) for tensor in self.outputs),
            "# Requests that arrive together are computed together.",
            _block(
                "dynamic_batching",
                [
                    f"preferred_batch_size: {self.max_batch}",
                    f"max_queue_delay_microseconds: {round(self.max_delay * 1e6)}",
                ],
            ),
            _block("instance_group", [f"count: {self.instances}", f"kind: KIND_{self.device.upper()}"]),
            *self._optimization(),
        ]
        return "\n".join(parts) + "\n"

    def _tensor(self, kind: str, tensor: Tensor) -> str:
        lines = [
            f"name: {json.dumps(tensor.name)}",
            f"data_type: {tensor.datatype}",
            f"dims: [ {', '.join(map(str, tensor.dims))} ]",
        ]
        if tensor.name == "scores" and self.has_labels:
            lines.append(f"label_filename: {json.dumps(LABELS)}")
        return _block(kind, lines)

    def _optimization(self) -> list[str]:
        if self.accelerator is None:
            return []
        if self.accelerator is Accelerator.OPENVINO:
            chosen = _block("cpu_execution_accelerator", ['name: "openvino"'])
            return [_block("optimization", [_block("execution_accelerators", [chosen])])]
        options = {"precision_mode": self.precision.upper(), "max_workspace_size_bytes": str(_WORKSPACE)}
        parameters = [
            f"parameters {{ key: {json.dumps(key)} value: {json.dumps(value)} }}" for key, value in options.items()
        ]
        chosen = _block("gpu_execution_accelerator", ['name: "tensorrt"', *parameters])
        return [
            _block("optimization", [_block("execution_accelerators", [chosen])]),
            "# TensorRT builds an engine for the batches between these two, which takes minutes: before it is ready.",
            *(self._warmup(size) for size in sorted({1, self.max_batch})),
        ]

    def _warmup(self, size: int) -> str:
        inputs = (
            f"inputs {{ key: {json.dumps(tensor.name)} value {{ data_type: {tensor.datatype} "
            f"dims: [ {', '.join(map(str, tensor.dims))} ] zero_data: true }} }}"
            for tensor in self.inputs
        )
        return _block("model_warmup", [f'name: "batch {size}"', f"batch_size: {size}", *inputs])


@dataclass(frozen=True)
class Entry:
    """A version of a model in a repository.

    Attributes:
        name: The model's name.
        version: Its version.
        file: The graph.
        labels: The names of the classes; None where the configuration names no file with them.
        max_batch: The most images at once; None where the configuration does not say it.
        max_delay: How long a batch waits, in seconds; None where the configuration does not say it.
        tensors: The inputs and outputs that the configuration states, if any.
    """

    name: str
    version: str
    file: Path
    labels: tuple[str, ...] | None = None
    max_batch: int | None = None
    max_delay: float | None = None
    tensors: tuple[Tensor, ...] = ()

    def check(self, inputs: Shapes, outputs: Shapes) -> None:
        """Check that the graph has the tensors that the configuration states.

        Args:
            inputs: The inputs of the graph: name -> shape, with the batch first.
            outputs: Its outputs.

        Raises:
            CamrtError: It has others.
        """
        found = {**inputs, **outputs}
        for tensor in self.tensors:
            shape = found.get(tensor.name)
            if shape is None or not _fits(tensor.dims, shape[1:]):
                raise CamrtError(
                    f"found {tensor.name} {list(tensor.dims)}, expected one of the graph {self.file}: "
                    f"{', '.join(f'{name} {list(shape[1:])}' for name, shape in found.items())}",
                    file=str(self.file.parent.parent / CONFIG),
                )


def tensors_of(values: Sequence[onnx.ValueInfoProto]) -> tuple[Tensor, ...]:
    """Return inputs or outputs of an explainer as a configuration states them.

    Args:
        values: Of the graph: with the batch first.
    """
    from onnx import TensorProto

    types: dict[int, str] = {
        TensorProto.UINT8: "TYPE_UINT8",
        TensorProto.INT64: "TYPE_INT64",
        TensorProto.FLOAT: "TYPE_FP32",
    }
    tensors = []
    for value in values:
        kind = value.type.tensor_type
        dims = tuple(dim.dim_value or -1 for dim in kind.shape.dim)[1:]
        tensors.append(Tensor(value.name, types[kind.elem_type], dims))
    return tuple(tensors)


def _fits(dims: Sequence[int], shape: Sequence[int | str | None]) -> bool:
    return len(dims) == len(shape) and all(
        stated == -1 or stated == length or not isinstance(length, int)
        for stated, length in zip(dims, shape, strict=True)
    )


# -------------------------------------------------------------------------------------------------------------- writing


def add(repository: Path, config: Config, model: onnx.ModelProto, version: int | None = None) -> tuple[Path, bool]:
    """Add a version of an explainer to a repository.

    A version appears whole or not at all. A configuration that is there is left as it is, since people tune it by hand.

    Args:
        repository: The folder; made if it is not there.
        config: How the model is served.
        model: The explainer.
        version: Its number; the next one if left out.

    Returns:
        The folder of the version, and whether the configuration was written, not found.

    Raises:
        CamrtError: The version is there already, the configuration that is there states other tensors, or a file cannot
            be written.
    """
    from converters import model as models

    folder = repository / config.name
    number = _next_version(folder) if version is None else version
    target = folder / str(number)
    if target.exists():
        raise CamrtError("there is such a version already, expected a new one: --triton-version", file=str(target))
    labels = metadata.labels_of(metadata.of_model(model)) if config.has_labels else None
    is_new = not (folder / CONFIG).exists()
    if not is_new:
        _check_tensors(folder / CONFIG, config)
    draft = folder / f".{number}-{os.getpid()}.part"  # Triton reads folders whose names are numbers
    try:
        draft.mkdir(parents=True)
        models.save(model, draft / MODEL, limit=models.MAX_MODEL)
        if labels is not None:
            write(folder / LABELS, "".join(f"{' '.join(label.split())}\n" for label in labels).encode())
        if is_new:
            write(folder / CONFIG, config.text().encode())
        draft.rename(target)
    except OSError as error:
        raise CamrtError(f"cannot be written: {error.strerror or error}", file=str(target)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target, is_new


def _next_version(folder: Path) -> int:
    try:
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    except OSError as error:
        raise CamrtError(f"cannot be read: {error.strerror or error}", file=str(folder)) from error
    return 1 + max((int(name) for name in names if _VERSION.fullmatch(name)), default=0)


def _check_tensors(file: Path, config: Config) -> None:
    stated, wanted = _tensors(_fields(file), file), (*config.inputs, *config.outputs)
    if stated and set(stated) != set(wanted):
        raise CamrtError(
            f"found {_shown(stated)}, expected {_shown(wanted)} as the new version has. Choose another name "
            "(--triton-name), or remove the file",
            file=str(file),
        )


def _block(name: str, lines: Sequence[str]) -> str:
    inner = "\n".join(f"  {line}" for part in lines for line in part.split("\n"))
    return f"{name} {{\n{inner}\n}}"


def _shown(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"{one.name} {one.datatype.removeprefix('TYPE_')} {list(one.dims)}" for one in tensors)


# -------------------------------------------------------------------------------------------------------------- reading


def read(repository: Path) -> list[Entry]:
    """Read a repository: of each model the versions that its policy names, by default the latest.

    Args:
        repository: The folder.

    Raises:
        CamrtError: There is no such folder or no model in it; a model has no version, or a configuration that cannot be
            read.
    """
    try:
        folders = sorted(entry for entry in repository.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        reason = error.strerror or error
        raise CamrtError(f"cannot be read: {reason}, expected a model repository", file=str(repository)) from error
    entries = [entry for folder in folders for entry in _versions(folder)]
    if not entries:
        raise CamrtError(
            "found no model, expected a folder for each. Write one: camrt export MODEL --triton", file=str(repository)
        )
    return entries


def _versions(folder: Path) -> list[Entry]:
    """The versions of a model that are served."""
    file = folder / CONFIG
    fields = _fields(file) if file.is_file() else {}
    if not NAME.fullmatch(folder.name):
        raise CamrtError("found a name that is not fit for a URL, expected letters, digits, ._-", file=str(folder))
    name = fields.get("name", folder.name)
    if name != folder.name:
        raise CamrtError(f"found the name {name!r}, expected that of its folder, {folder.name!r}", file=str(file))
    found = sorted((int(each.name) for each in folder.iterdir() if _VERSION.fullmatch(each.name)), reverse=True)
    numbers = _by_policy(found, fields.get("version_policy", {}), file)
    if not numbers:
        raise CamrtError("found no version, expected a folder with a number as its name", file=str(folder))
    model = str(fields.get("default_model_filename", MODEL))
    if Path(model).name != model:
        raise CamrtError(f"found default_model_filename {model!r}, expected the name of a file", file=str(file))
    max_batch, batching = fields.get("max_batch_size"), fields.get("dynamic_batching", {})
    delay = batching.get("max_queue_delay_microseconds") if isinstance(batching, dict) else None
    for stated in (max_batch, delay):
        if stated is not None and not (isinstance(stated, int) and stated >= 0):
            raise CamrtError(f"found the batching {stated!r}, expected a whole number", file=str(file))
    return [
        Entry(
            folder.name,
            str(number),
            folder / str(number) / model,
            _labels(folder, fields, file),
            max_batch or None,
            None if delay is None else delay / 1e6,
            _tensors(fields, file),
        )
        for number in sorted(numbers)
    ]


def _by_policy(found: list[int], policy: Any, file: Path) -> list[int]:
    """The versions that a policy chooses, of those that are there, the latest first."""
    try:
        if "all" in policy:
            return found
        if "specific" in policy:
            wanted = _several(policy["specific"].get("versions", []))
            missing = [number for number in wanted if number not in found]
            if missing:
                raise CamrtError(f"found no version {missing[0]}, which version_policy names", file=str(file))
            return list(wanted)
        return found[: int(policy.get("latest", {}).get("num_versions", 1))]
    except (AttributeError, TypeError, ValueError):
        raise CamrtError(
            f"found the version_policy {policy!r}, expected latest, all or specific", file=str(file)
        ) from None


def _labels(folder: Path, fields: Mapping[str, Any], file: Path) -> tuple[str, ...] | None:
    named = [one["label_filename"] for one in _several(fields.get("output", [])) if "label_filename" in one]
    if not named:
        return None
    if Path(str(named[0])).name != named[0]:
        raise CamrtError(f"found label_filename {named[0]!r}, expected the name of a file", file=str(file))
    try:
        return tuple((folder / named[0]).read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as error:
        raise CamrtError(f"no class names can be read from it ({error})", file=str(folder / named[0])) from error


def _tensors(fields: Mapping[str, Any], file: Path) -> tuple[Tensor, ...]:
    described = [*_several(fields.get("input", [])), *_several(fields.get("output", []))]
    try:
        return tuple(
            Tensor(str(one["name"]), str(one["data_type"]), tuple(int(length) for length in _several(one["dims"])))
            for one in described
        )
    except (KeyError, TypeError, ValueError):
        raise CamrtError(
            "found an input or output without name, data_type or dims, expected them", file=str(file)
        ) from None


def _several(value: Any) -> list[Any]:
    """The values of a repeated field, which stands there once, several times, or as a list."""
    return list(value) if isinstance(value, list) else [value]


def _fields(file: Path) -> dict[str, Any]:
    """The fields of a configuration, without its schema: a field that occurs several times is a list."""
    from google.protobuf.empty_pb2 import Empty

    from converters.textformat import add_unknown, parse

    try:
        if file.stat().st_size > _LARGEST_CONFIG:
            raise CamrtError("is too large, expected a configuration of some lines", file=str(file))
        found = parse(file.read_text(encoding="utf-8"), Empty(), str(file))
    except (OSError, ValueError) as error:
        raise CamrtError(f"cannot be read ({error})", file=str(file)) from error
    except ConversionError as error:
        raise CamrtError(error.message, file=error.file or str(file)) from error
    fields: dict[str, Any] = {}
    for one in found:
        add_unknown(fields, one.name, one.value)
    return fields
