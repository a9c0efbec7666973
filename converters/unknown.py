"""Fields that the schema does not know, and which of them may change an answer.

Forks of Caffe add fields of their own. Those that choose a library, fill untrained weights or prepare data cannot
change what a trained network answers, and are ignored. Any other unknown field in the parameters of a layer that
computes is an error: its author set it for a reason, and an answer without it would be silently wrong.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from converters.errors import ConversionError
from converters.schema import caffe_pb2
from converters.textformat import UnknownField, shortened

if TYPE_CHECKING:
    from converters.layer import Layer
    from converters.registry import Entry


@dataclass(frozen=True)
class Harmless:
    """Fields that cannot change the answer of inference.

    Attributes:
        message: The message that holds them, ``layer`` for the layer itself; ``*`` stands for any text.
        field: The field; ``*`` stands for any text.
        why: Why they are harmless, for the user.
        in_training: Whether they are harmless in training, too.
    """

    message: str
    field: str
    why: str
    in_training: bool = True


# fmt: off
HARMLESS = (
    # Which code computes.
    Harmless("*",                 "engine",             "chooses the library that computes"),
    Harmless("convolution_param", "conv_algorithm",     "chooses Intel's algorithm"),
    Harmless("convolution_param", "conv_algos_override", "chooses cuDNN's algorithm"),
    Harmless("convolution_param", "cudnn_convolution_algo_seeker", "chooses cuDNN's algorithm"),
    Harmless("concat_param",      "per_fla_fuse",       "lets Intel's Caffe save a copy"),
    # In which precision. The model computes in float32.
    Harmless("layer",             "forward_type",       "is the precision of NVIDIA's Caffe; the model has float32"),
    Harmless("layer",             "forward_math",       "is the precision of NVIDIA's Caffe; the model has float32"),
    Harmless("layer",             "backward_type",      "is the precision of NVIDIA's Caffe; the model has float32"),
    Harmless("layer",             "backward_math",      "is the precision of NVIDIA's Caffe; the model has float32"),
    Harmless("layer",             "cudnn_math_override", "is the precision of NVIDIA's Caffe; the model has float32"),
    Harmless("layer",             "quantization_param", "rounds to 8 bits in Intel's Caffe; the model has float32"),
    # Data.
    Harmless("transform_param",   "*",                  "prepares the data"),
    # Training.
    Harmless("*",                 "*filler",            "fills untrained weights", in_training=False),
    Harmless("*filler",           "*",                  "fills untrained weights", in_training=False),
    Harmless("layer",             "blobs_lr",           "belongs to training", in_training=False),
    Harmless("layer",             "weight_decay",       "belongs to training", in_training=False),
    Harmless("param",             "*",                  "belongs to training", in_training=False),
    Harmless("loss_param",        "*",                  "belongs to training", in_training=False),
)
# fmt: on


def harmless(unknown: UnknownField, *, training: bool = False) -> Harmless | None:
    """The line of `HARMLESS` that a field falls under.

    Args:
        unknown: The field; its path begins at the layer.
        training: Whether the network is to be trained.
    """
    messages = [name for name, _ in unknown.path] or ["layer"]
    for line in HARMLESS:
        if training and not line.in_training:
            continue
        if fnmatchcase(unknown.name, line.field) and any(fnmatchcase(name, line.message) for name in messages):
            return line
    return None


def refuse_problems(unknown: Iterable[UnknownField], file: str, layer: str, *, training: bool) -> None:
    """Refuse values that a known field cannot have, unless the field is harmless.

    Raises:
        ConversionError: The first of them, with its place.
    """
    for one in unknown:
        if one.problem and harmless(one, training=training) is None:
            raise ConversionError(one.problem, layer=layer, file=place(file, one))


def refuse_unknown(layers: Iterable[tuple[Layer, Entry]], ignored: Collection[str], file: str) -> None:
    """Refuse unknown fields that may change what a layer computes; all of them together.

    Args:
        layers: Layers that compute, each with its handler.
        ignored: Fields to ignore, as ``"pooling_param.mode"`` or ``"mode"``.
        file: The network's description, for the message.

    Raises:
        ConversionError: There are such fields.
    """
    found: dict[str, list[tuple[UnknownField, Layer]]] = {}
    for layer, entry in layers:
        for one in layer.unknown:
            name = dotted(one)
            if one.problem or entry.reads_field(name) or name in ignored or one.name in ignored:
                continue
            if harmless(one) is None:
                found.setdefault(name, []).append((one, layer))
    if not found:
        return
    lines = [_described(name, places, file) for name, places in found.items()]
    flags = " ".join(f"--ignore-unknown {name}" for name in found)
    from_binary = any(not places[0][0].line for places in found.values())
    advice = "Give the prototxt, which holds the names of its fields. " if from_binary else ""
    options = f"ignore them: {flags} (ignore_unknown={sorted(found)} in Python)"
    raise ConversionError(
        f"found {len(found)} unknown field(s) that may change what a layer computes",
        details=[
            *lines,
            f"{advice}If they do not change the answer, {options}. If they do, write a handler that reads them "
            "(--plugin)",
        ],
    )


def _described(name: str, places: list[tuple[UnknownField, Layer]], file: str) -> str:
    one, layer = places[0]
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    near = difflib.get_close_matches(one.name, _fields_beside(one), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    value = shortened(str(one.value), 40).strip("'\"")
    return f"  {place(file, one)}: {name}: {value}, in layer {layer.name} ({layer.type}){more}{hint}"


def _fields_beside(unknown: UnknownField) -> list[str]:
    """The fields that the schema knows where the unknown one stands."""
    message: Any = caffe_pb2.LayerParameter.DESCRIPTOR
    for name, _ in unknown.path:
        field = message.fields_by_name.get(name)
        if field is None or field.message_type is None:
            return []
        message = field.message_type
    return [field.name for field in message.fields]


def dotted(unknown: UnknownField) -> str:
    """The field with the messages that hold it, as ``pooling_param.ceil_mode``."""
    return ".".join([*(name for name, _ in unknown.path), unknown.name])


def place(file: str, unknown: UnknownField) -> str:
    """File, line and column; a binary file has no lines."""
    return f"{file}:{unknown.line}:{unknown.column}" if unknown.line else file


def notes(unknown: Iterable[UnknownField], file: str, most: int = 20) -> list[str]:
    """What to tell the user of unknown fields: each field once, with its first place.

    Args:
        unknown: Fields; those of a layer have a path that begins with ``layer``.
        file: The network's description.
        most: How many to name.
    """
    grouped: dict[str, list[UnknownField]] = {}
    for one in unknown:
        grouped.setdefault(dotted(one), []).append(one)
    told = [_note(fields, file) for fields in list(grouped.values())[:most]]
    if len(grouped) > len(told):
        told.append(f"{file}: {len(grouped) - len(told)} more fields are not known and were left aside")
    return told


def _note(fields: list[UnknownField], file: str) -> str:
    first = fields[0]
    times = f" ({len(fields)} times)" if len(fields) > 1 else ""
    line = harmless(UnknownField(first.path[1:], *_rest(first))) if first.path else None
    why = f": it {line.why}" if line else ""
    if first.problem:
        return f"{place(file, first)}: {first.problem}; it was left aside{times}{why}"
    return f"{place(file, first)}: the field {shortened(first.name)} is not known and was left aside{times}{why}"


def _rest(unknown: UnknownField) -> tuple[str, object, int, int, str]:
    return unknown.name, unknown.value, unknown.line, unknown.column, unknown.problem


def in_binary(network: caffe_pb2.NetParameter) -> Iterator[UnknownField]:
    """The unknown fields of a network out of a binary file: numbers, for it holds no names."""
    for index, layer in enumerate(network.layer):
        yield from _unknown_numbers(layer, (("layer", index),))


def _unknown_numbers(message: Message, path: tuple[tuple[str, int], ...]) -> Iterator[UnknownField]:
    unknown: Iterable[Any] = UnknownFieldSet(message)  # type: ignore[assignment]  # its stub forgets __iter__
    for field in unknown:
        yield UnknownField(path, f"field {field.field_number}", "...", 0, 0)
    for known, value in message.ListFields():
        if known.message_type is None:
            continue
        for index, one in enumerate([value] if isinstance(value, Message) else value):
            yield from _unknown_numbers(one, (*path, (known.name, index)))


def of_layers(unknown: Iterable[UnknownField]) -> Mapping[int, list[UnknownField]]:
    """Layer index -> its unknown fields, with paths that begin at the layer."""
    sorted_out: dict[int, list[UnknownField]] = {}
    for one in unknown:
        if one.path and one.path[0][0] == "layer":
            inner = UnknownField(one.path[1:], *_rest(one))
            sorted_out.setdefault(one.path[0][1], []).append(inner)
    return sorted_out
