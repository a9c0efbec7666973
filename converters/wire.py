"""The wire format of a `.caffemodel`, read in place.

A caffemodel is one Protocol Buffers message, and nearly all of it is weights. Parsing it would copy them once or twice;
so this module only walks over the fields, notes where each layer's blobs lie in the mapped file, and hands the few
bytes that are left (names, parameters) to Protocol Buffers. https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError

from converters.errors import ConversionError
from converters.schema import caffe_pb2
from converters.shape import MAX_AXES, show

Array = np.ndarray
Buffer = memoryview

MAX_FIELDS = 400_000  # the largest networks have some ten thousand layers of some ten fields

VARINT, _FIXED64, BYTES, _FIXED32 = 0, 1, 2, 5
_NET_LAYERS_V1, _NET_LAYER = 2, 100
_BLOB_DATA, _BLOB_SHAPE, _BLOB_DOUBLES = 5, 7, 8
_C3D_WIDTH, _C3D_DATA = 5, 6  # C3D 1.0 put the length among the sizes: num, channels, length, height, width, data
_UNPACKED_FLOAT = _BLOB_DATA << 3 | _FIXED32


class Malformed(ValueError):
    """The bytes are not a Protocol Buffers message."""


@dataclass(frozen=True)
class LayerRecord:
    """One layer of a caffemodel.

    Attributes:
        name: The layer's name.
        is_v1: Whether it was written in the format before 2015.
        blobs: Its weights: float32 views of the file wherever the file holds float32.
        encoded: The layer's message without its blobs.
    """

    name: str
    is_v1: bool
    blobs: tuple[Array, ...]
    encoded: bytes


@dataclass(frozen=True)
class ModelRecord:
    """A caffemodel: its layers, and the network's other fields as an encoded NetParameter."""

    layers: tuple[LayerRecord, ...]
    encoded: bytes

    def network(self, file: str) -> caffe_pb2.NetParameter:
        """Return the network that the caffemodel carries, without weights.

        Raises:
            ConversionError: A layer's message does not parse.
        """
        try:
            net = caffe_pb2.NetParameter.FromString(self.encoded)
            for layer in self.layers:
                (net.layers if layer.is_v1 else net.layer).add().MergeFromString(layer.encoded)
            _check_names(net)
        except (DecodeError, ValueError, RuntimeError) as error:
            raise ConversionError(f"the network in it does not parse: {error}", file=file) from None
        return net


def _check_names(net: caffe_pb2.NetParameter) -> None:
    """Check that names are text: Protocol Buffers returns invalid UTF-8 as bytes, or fails.

    Raises:
        ValueError: They are not.
    """
    names: list[object] = [net.name, *net.input]
    for layer in net.layer:
        names += [layer.name, layer.type, *layer.bottom, *layer.top, *(spec.name for spec in layer.param)]
    for old in net.layers:
        names += [old.name, *old.bottom, *old.top, *old.param]
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"the name {name!r} is not UTF-8")


def scan(data: Buffer, file: str) -> ModelRecord:
    """Find the layers of a caffemodel and where their weights lie.

    Args:
        data: The whole file, usually a memory map. The weights returned are views of it.
        file: The name that errors give.

    Raises:
        ConversionError: The bytes are no caffemodel, or not all of one.
    """
    walk = Walk(data)
    layers: list[LayerRecord] = []
    rest: list[bytes] = []
    try:
        for number, wire, begin, start, end in walk.fields(0, len(data)):
            if number in (_NET_LAYERS_V1, _NET_LAYER) and wire == BYTES:
                layers.append(_layer(walk, start, end, is_v1=number == _NET_LAYERS_V1))
            else:
                rest.append(bytes(data[begin:end]))
    except Malformed as error:
        last = f" (after layer {layers[-1].name!r})" if layers else ""
        raise ConversionError(f"{error}{last}: not a caffemodel, or a truncated one", file=file) from None
    except ConversionError as error:
        raise error.in_file(file) from None
    return ModelRecord(tuple(layers), b"".join(rest))


def _layer(walk: Walk, start: int, end: int, *, is_v1: bool) -> LayerRecord:
    name_field, blobs_field = (4, 6) if is_v1 else (1, 7)
    name = ""
    blobs: list[tuple[int, int]] = []
    rest: list[bytes] = []
    for number, wire, begin, value, after in walk.fields(start, end):
        if number == blobs_field and wire == BYTES:
            blobs.append((value, after))
            continue
        if number == name_field and wire == BYTES:
            name = bytes(walk.data[value:after]).decode("utf-8", "replace")
        rest.append(bytes(walk.data[begin:after]))
    try:
        arrays = tuple(blob(walk, *span) for span in blobs)
    except ConversionError as error:
        raise ConversionError(error.message, layer=name) from None
    except Malformed as error:
        raise Malformed(f"layer {name!r}: {error}") from None
    return LayerRecord(name, is_v1, arrays, b"".join(rest))


def blob(walk: Walk, start: int, end: int) -> Array:
    """Return a BlobProto as an array of its shape."""
    legacy: dict[int, int] = {}  # num, channels, height, width; C3D's five sizes
    shape: list[int] = []  # a single number has no axes, and Caffe writes no shape for it
    chunks: list[Array] = []
    for number, wire, begin, value, after in walk.fields(start, end):
        if number in (1, 2, 3, 4, _C3D_WIDTH) and wire == VARINT:
            legacy[number] = walk.varint(value, after)[0]
        elif _C3D_WIDTH in legacy:
            if number == _C3D_DATA and wire == BYTES:
                chunks.append(_numbers(walk.data[value:after], "<f4"))
        elif number == _BLOB_SHAPE and wire == BYTES:
            shape += _dims(walk, value, after)
        elif number == _BLOB_DATA and wire == BYTES:
            chunks.append(_numbers(walk.data[value:after], "<f4"))
        elif number == _BLOB_DATA and wire == _FIXED32:
            chunks.append(walk.unpacked_floats(begin, end))
        elif number == _BLOB_DOUBLES and wire == BYTES:
            chunks.append(_numbers(walk.data[value:after], "<f8").astype(np.float32))
    data = chunks[0] if len(chunks) == 1 else np.concatenate([np.empty(0, "<f4"), *chunks])
    sizes = (1, 2, 3, 4, 5) if _C3D_WIDTH in legacy else (1, 2, 3, 4)
    return _shaped(data, tuple([legacy.get(axis, 0) for axis in sizes] if legacy else shape))


def _shaped(data: Array, shape: tuple[int, ...]) -> Array:
    if len(shape) > MAX_AXES or any(dim < 0 or dim >= 2**31 for dim in shape):
        raise ConversionError(f"found a blob of shape {show(shape)}, expected at most {MAX_AXES} sizes below 2**31")
    if math.prod(shape) != data.size:
        raise ConversionError(
            f"found {data.size:,} numbers in a blob of shape {show(shape)}, expected {math.prod(shape):,}: "
            "the file is damaged, or its weights are in a format that BVLC Caffe does not write"
        )
    return data.reshape(shape)


def _numbers(data: Buffer, dtype: str) -> Array:
    if len(data) % np.dtype(dtype).itemsize:
        raise Malformed(f"found {len(data)} bytes of packed {np.dtype(dtype).name}, which is no whole number of them")
    return np.frombuffer(data, dtype)


def _dims(walk: Walk, start: int, end: int) -> list[int]:
    dims: list[int] = []
    for number, wire, _, value, after in walk.fields(start, end):
        if number == 1 and wire == VARINT:
            dims.append(signed(walk.varint(value, after)[0]))
        elif number == 1 and wire == BYTES:
            while value < after:
                dim, value = walk.varint(value, after)
                dims.append(signed(dim))
                if len(dims) > MAX_AXES:
                    break
    return dims


def signed(value: int) -> int:
    """Return the signed number that a varint encodes."""
    return value - 2**64 if value >= 2**63 else value


class Walk:
    """A walk over the fields of encoded messages, which counts them."""

    def __init__(self, data: Buffer) -> None:
        self.data = data
        self.count = 0
        self.run_end = 0  # where the last run of unpacked floats ended

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """Return the varint at ``position``, and where it ends."""
        result = shift = 0
        while position < end:
            byte = self.data[position]
            position += 1
            result |= (byte & 127) << shift
            if byte < 128:
                return result & 0xFFFFFFFFFFFFFFFF, position
            shift += 7
            if shift > 63:
                raise Malformed(f"found a number of more than 10 bytes at byte {position:,}")
        raise Malformed(f"found the end in the middle of a number at byte {position:,}")

    def fields(self, position: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield (field number, wire type, start of the field, start of its value, end) for each field of a message."""
        while position < end:
            self.count += 1
            if self.count > MAX_FIELDS:
                raise Malformed(f"found more than {MAX_FIELDS:,} fields")
            begin = position
            tag, start = self.varint(position, end)
            number, wire = tag >> 3, tag & 7
            if wire == VARINT:
                _, after = self.varint(start, end)
            elif wire == BYTES:
                length, start = self.varint(start, end)
                after = start + length
            elif wire in (_FIXED32, _FIXED64):
                after = start + (4 if wire == _FIXED32 else 8)
            else:
                raise Malformed(f"found wire type {wire} at byte {begin:,}")
            if number == 0 or number >= 2**29:
                raise Malformed(f"found field number {number} at byte {begin:,}")
            if after > end:
                raise Malformed(f"found {end - start:,} bytes at byte {start:,} where {after - start:,} were announced")
            self.run_end = after
            yield number, wire, begin, start, after
            position = self.run_end

    def unpacked_floats(self, begin: int, end: int) -> Array:
        """Copy the run of unpacked floats (tag, four bytes, tag, four bytes ...) that starts at ``begin``.

        The walk then goes on after the run.
        """
        records = np.frombuffer(self.data[begin : end - (end - begin) % 5], np.uint8).reshape(-1, 5)
        length, window = 0, 64  # windows grow, so that many short runs take no longer than one long one
        while length < len(records):
            other = np.flatnonzero(records[length : length + window, 0] != _UNPACKED_FLOAT)
            if other.size:
                length += int(other[0])
                break
            length, window = min(length + window, len(records)), 2 * window
        run = records[:length]
        self.run_end = begin + 5 * length
        return np.ascontiguousarray(run[:, 1:]).view("<f4").reshape(-1)
