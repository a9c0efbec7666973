"""The Open Inference Protocol, version 2, over HTTP: bodies to tensors, and tensors to bodies.

It is the protocol of KServe, Triton, MLServer and OpenVINO Model Server:
https://github.com/kserve/open-inference-protocol. Of Triton's extensions there are binary tensor data and
classification. Nothing here knows a web framework or a session.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camrt.errors import CamrtError

EXTENSIONS = ("binary_tensor_data", "classification", "model_repository")
HEADER_LENGTH = "Inference-Header-Content-Length"  # bytes of JSON before the binary tensors
DATATYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_LARGE = 1 << 20  # bytes of JSON: such a header takes some 20 times its size while it is parsed
_one_large = threading.Lock()


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a model takes or gives.

    Attributes:
        name: Its name.
        datatype: The protocol's name of its type: ``"UINT8"``.
        shape: With the batch first; -1 where it is free.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it as the metadata of a model state it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    def check(self, datatype: Any, shape: Sequence[int]) -> None:
        """Check what a request says of the tensor.

        Raises:
            CamrtError: It has another type or shape.
        """
        if datatype != self.datatype:
            raise CamrtError(f"found the datatype {_shown(datatype)}, expected {self.datatype}")
        fits = len(shape) == len(self.shape) and all(
            wanted in (-1, length) for length, wanted in zip(shape, self.shape, strict=True)
        )
        if not fits or not shape[0]:
            raise CamrtError(f"found the shape {_shown(list(shape))}, expected {list(self.shape)}, at least 1 of it")


@dataclass(frozen=True)
class RequestedOutput:
    """An output that a request asks for.

    Attributes:
        name: Its name.
        binary: Whether it is sent as bytes behind the JSON.
        classes: How many of the best values are sent, as ``"value:index:label"``; 0 for the tensor itself.
    """

    name: str
    binary: bool = False
    classes: int = 0


@dataclass(frozen=True)
class InferRequest:
    """What the body of a request for inference says.

    Attributes:
        id: What the client calls it, which is sent back; None if it does not.
        feeds: Input -> array; all have the same length, that of the batch. Views of the body where it is binary.
        outputs: What is sent back.
    """

    id: str | None
    feeds: dict[str, NDArray[Any]]
    outputs: tuple[RequestedOutput, ...] = field(default=())

    @property
    def rows(self) -> int:
        """The length of the batch."""
        return len(next(iter(self.feeds.values())))


def datatype_of(dtype: np.dtype[Any]) -> str:
    """Return the protocol's name of a type.

    Raises:
        CamrtError: It has none.
    """
    if dtype not in _NAMES:
        raise CamrtError(f"found a tensor of {dtype}, expected one of {', '.join(_NAMES.values())}")
    return _NAMES[dtype]


def parse_request(
    body: bytes | bytearray | memoryview,
    header_length: str | None,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    optional: Collection[str] = (),
) -> InferRequest:
    """Parse the body of ``POST /v2/models/M/infer``.

    Args:
        body: JSON, and behind it the binary tensors.
        header_length: The header ``Inference-Header-Content-Length``; None where the whole body is JSON.
        inputs: What the model takes; each must be there that is not optional.
        outputs: What the model gives.
        optional: The inputs that may be left out.

    Raises:
        CamrtError: The body is not what the protocol asks for, or does not fit the model.
    """
    view = memoryview(body)
    size = _header_size(header_length, len(view))
    request = _mapping(_json(view[:size]), "the request")
    given = _list(request.get("inputs"), "inputs")
    parameters = _mapping(request.get("parameters", {}), "parameters")
    feeds: dict[str, NDArray[Any]] = {}
    known = {spec.name: spec for spec in inputs}
    rest = view[size:]
    for entry in given:
        tensor = _mapping(entry, "an input")
        name = tensor.get("name")
        if not isinstance(name, str) or name not in known:
            raise CamrtError(f"found the input {_shown(name)}, expected {', '.join(known)}")
        if name in feeds:
            raise CamrtError(f"found the input {name!r} twice, expected it once")
        try:
            feeds[name], rest = _tensor(tensor, known[name], rest)
        except CamrtError as error:
            raise CamrtError(f"input {name!r}: {error.message}") from None
    missing = [name for name in known if name not in feeds and name not in optional]
    if missing:
        raise CamrtError(f"found no input {', '.join(missing)}, expected {', '.join(known)}")
    if len(rest):
        raise CamrtError(
            f"found {len(rest):,} bytes behind the tensors, expected none: binary_data_size of the inputs, or "
            f"{HEADER_LENGTH}, is wrong"
        )
    lengths = {name: len(array) for name, array in feeds.items()}
    if len(set(lengths.values())) > 1:
        raise CamrtError(f"found batches of different lengths: {lengths}, expected one length")
    wanted = _requested(request.get("outputs"), outputs, parameters)
    identifier = request.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise CamrtError(f"found the id {_shown(identifier)}, expected a text")
    return InferRequest(identifier, feeds, wanted)


def write_response(
    request: InferRequest,
    found: Mapping[str, NDArray[Any]],
    model: str,
    version: str,
    labels: Sequence[str] | None = None,
) -> tuple[list[bytes | memoryview], int | None]:
    """Write the body of an answer.

    Args:
        request: What was asked for.
        found: Output -> array.
        model: The model's name.
        version: Its version.
        labels: The names of the classes, for outputs that are classified.

    Returns:
        The parts of the body, and how many bytes of it are JSON where binary tensors follow, else None.

    Raises:
        CamrtError: A tensor holds values that JSON does not have.
    """
    outputs: list[bytes] = []
    tail: list[memoryview] = []
    for wanted in request.outputs:
        array = found[wanted.name]
        if wanted.classes:
            texts = _classified(array, wanted.classes, labels)
            shape, datatype, content = [len(texts), len(texts[0])], "BYTES", _encoded_texts(texts)
            values: Any = texts
        else:
            shape, datatype = list(array.shape), datatype_of(array.dtype)
            content, values = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, array
        described: dict[str, Any] = {"name": wanted.name, "datatype": datatype, "shape": shape}
        if wanted.binary:
            described["parameters"] = {"binary_data_size": len(content)}
            tail.append(content)
            outputs.append(json.dumps(described).encode())
        else:
            outputs.append(
                json.dumps(described).encode()[:-1] + b', "data": ' + _json_values(values, wanted.name) + b"}"
            )
    answer: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        answer["id"] = request.id
    header = json.dumps(answer).encode()[:-1] + b', "outputs": [' + b", ".join(outputs) + b"]}"
    return [header, *tail], len(header) if tail else None


# ------------------------------------------------------------------------------------------------------------- requests


def _header_size(text: str | None, body: int) -> int:
    if text is None:
        return body
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise CamrtError(f"found {HEADER_LENGTH}: {_shown(text)}, expected a number of bytes")
    if not 0 < int(text) <= body:
        raise CamrtError(
            f"found {HEADER_LENGTH}: {int(text):,} and a body of {body:,} bytes, expected JSON of at least 1 byte in it"
        )
    return int(text)


def _json(text: memoryview) -> Any:
    try:
        if len(text) < _LARGE:
            return json.loads(bytes(text))
        with _one_large:
            return json.loads(bytes(text))
    except (ValueError, RecursionError) as error:
        raise CamrtError(f"found a body that is not JSON ({str(error)[:200]}), expected a JSON object") from None


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CamrtError(f"found {_shown(value)} for {what}, expected a JSON object")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise CamrtError(f"found {_shown(value)} for {what}, expected a JSON list")
    return value


def _tensor(tensor: dict[str, Any], spec: TensorSpec, rest: memoryview) -> tuple[NDArray[Any], memoryview]:
    """The array of an input, and what is left of the binary part of the body."""
    shape = _list(tensor.get("shape"), "shape")
    if not all(isinstance(length, int) and not isinstance(length, bool) and 0 <= length < 2**31 for length in shape):
        raise CamrtError(f"found the shape {_shown(shape)}, expected whole numbers")
    spec.check(tensor.get("datatype"), shape)
    dtype = DATATYPES[spec.datatype]
    parameters = _mapping(tensor.get("parameters", {}), "parameters")
    if "shared_memory_region" in parameters:
        raise CamrtError("found shared memory, expected the values in the request: this server does not share memory")
    size = parameters.get("binary_data_size")
    if size is None:
        return _from_json(tensor.get("data"), dtype, shape), rest
    wanted = math.prod(shape) * dtype.itemsize
    if "data" in tensor:
        raise CamrtError("found data and binary_data_size, expected one of the two")
    if size != wanted or isinstance(size, bool):
        raise CamrtError(f"found a binary_data_size of {_shown(size)}, expected {wanted} for the shape {shape}")
    if len(rest) < wanted:
        raise CamrtError(f"found {len(rest):,} bytes of binary data, expected {wanted:,} for the shape {shape}")
    return np.frombuffer(rest[:wanted], dtype).reshape(shape), rest[wanted:]


def _from_json(data: Any, dtype: np.dtype[Any], shape: list[int]) -> NDArray[Any]:
    """The values of a flat or nested list."""
    values = _list(data, "data")
    try:
        array = np.array(values)
    except (ValueError, RecursionError):
        raise CamrtError(f"found lists of different lengths, expected data of the shape {shape}") from None
    if array.size != math.prod(shape) or (array.ndim > 1 and list(array.shape) != shape):
        raise CamrtError(f"found data of the shape {list(array.shape)}, expected {shape}, nested or as one list")
    kinds = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}[dtype.kind]
    if array.dtype.kind not in kinds:
        raise CamrtError(f"found values of another kind ({array.dtype}), expected {_NAMES[dtype]}")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        lowest, highest = int(array.min()), int(array.max())
        if lowest < limits.min or highest > limits.max:
            raise CamrtError(
                f"found values from {lowest} to {highest}, expected {_NAMES[dtype]}: {limits.min} to {limits.max}"
            )
    return array.astype(dtype).reshape(shape)


def _requested(value: Any, outputs: Sequence[TensorSpec], parameters: Mapping[str, Any]) -> tuple[RequestedOutput, ...]:
    binary = _flag(parameters, "binary_data_output", False)
    if value is None:
        return tuple(RequestedOutput(spec.name, binary) for spec in outputs)
    known = [spec.name for spec in outputs]
    requested: list[RequestedOutput] = []
    for entry in _list(value, "outputs"):
        described = _mapping(entry, "an output")
        name = described.get("name")
        if name not in known:
            raise CamrtError(f"found the output {_shown(name)}, expected {', '.join(known)}")
        if any(name == other.name for other in requested):
            raise CamrtError(f"found the output {name!r} twice, expected it once")
        own = _mapping(described.get("parameters", {}), "parameters")
        if "shared_memory_region" in own:
            raise CamrtError(f"output {name!r}: found shared memory, which this server does not have")
        classes = own.get("classification", 0)
        if not isinstance(classes, int) or isinstance(classes, bool) or classes < 0:
            raise CamrtError(f"output {name!r}: found classification {_shown(classes)}, expected a number of classes")
        requested.append(RequestedOutput(str(name), _flag(own, "binary_data", binary), classes))
    return tuple(requested) or tuple(RequestedOutput(name, binary) for name in known)


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise CamrtError(f"found {name} {_shown(value)}, expected true or false")
    return value


def _shown(value: Any) -> str:
    """A value out of a request, short enough for a message."""
    if isinstance(value, (dict, list)) and len(value) > 16:
        return f"a {'list' if isinstance(value, list) else 'object'} of {len(value)}"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits
        return "something that cannot be shown"
    return text if len(text) <= 80 else f"{text[:80]}..."


# -------------------------------------------------------------------------------------------------------------- answers


def _json_values(values: NDArray[Any] | list[list[str]], name: str) -> bytes:
    """A flat JSON list."""
    if isinstance(values, list):
        return json.dumps([text for row in values for text in row]).encode()
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise CamrtError(
            f"output {name!r}: found values that are not finite, which JSON does not have. Ask for it in binary: "
            '"parameters": {"binary_data": true}'
        )
    from pydantic_core import to_json  # FastAPI's; five times as fast as json with long lists

    return to_json(values.reshape(-1).tolist())


def _classified(array: NDArray[Any], most: int, labels: Sequence[str] | None) -> list[list[str]]:
    """Of each row the best values: Triton's ``"value:index:label"``."""
    rows = array.reshape(len(array), -1)
    best = np.argsort(-rows, axis=1, kind="stable")[:, :most]
    named = labels if labels is not None and len(labels) == rows.shape[1] else None
    return [
        [f"{rows[n, k]:f}:{k}" + (f":{named[k]}" if named else "") for k in order.tolist()]
        for n, order in enumerate(best)
    ]


def _encoded_texts(texts: list[list[str]]) -> memoryview:
    """BYTES in binary: each with its length as 4 bytes before it."""
    parts = [text.encode() for row in texts for text in row]
    return memoryview(b"".join(len(part).to_bytes(4, "little") + part for part in parts))
