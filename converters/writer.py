"""Weights -> a `.caffemodel`, as Caffe writes it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from converters.encoding import contents, length_delimited, replacing, sweep
from converters.errors import ConversionError
from converters.schema import caffe_pb2

_NET_LAYER, _NET_LAYERS_V1 = 100, 2
_LAYER_BLOBS, _LAYER_BLOBS_V1 = 7, 6
_BLOB_DATA = 5


def write_caffemodel(
    path: str | os.PathLike[str],
    layers: Mapping[str, Iterable[np.ndarray]],
    *,
    types: Mapping[str, str] | None = None,
    name: str = "",
    v1: bool = False,
) -> None:
    """Write weights as a `.caffemodel`, layer by layer: only one layer's arrays need exist at a time.

    Args:
        path: The file. One that is there is replaced once the new one is whole; missing folders are made.
        layers: Layer name -> its blobs, in Caffe's order; anything that NumPy turns into float32.
        types: Layer name -> its type, where it is to be written too. Caffe matches by name.
        name: The network's name.
        v1: The format before 2015: `layers`, and blobs of four axes.

    Raises:
        ConversionError: The file cannot be written.
    """
    file = Path(path)
    try:
        sweep(file.parent, file.name)
        with replacing(file) as stream:
            stream.write(caffe_pb2.NetParameter(name=name).SerializeToString())
            for layer, blobs in layers.items():
                parts = _layer(layer, list(blobs), (types or {}).get(layer, ""), v1=v1)
                stream.write(length_delimited(_NET_LAYERS_V1 if v1 else _NET_LAYER, sum(map(_size, parts))))
                for part in parts:
                    stream.write(part)
    except OSError as error:
        raise ConversionError(f"cannot be written: {error.strerror or error}", file=str(file)) from error


def _layer(name: str, blobs: Sequence[np.ndarray], type: str, *, v1: bool) -> list[bytes | memoryview]:
    if v1:
        head = caffe_pb2.V1LayerParameter(name=name).SerializeToString()
    else:
        head = caffe_pb2.LayerParameter(name=name, type=type or None).SerializeToString()
    parts: list[bytes | memoryview] = [head]
    for blob in blobs:
        data = contents(np.asarray(blob, "<f4"))
        shape = _shape(blob.shape, v1=v1) + length_delimited(_BLOB_DATA, data.nbytes)
        field = _LAYER_BLOBS_V1 if v1 else _LAYER_BLOBS
        parts += [length_delimited(field, len(shape) + data.nbytes) + shape, data]
    return parts


def _shape(shape: tuple[int, ...], *, v1: bool) -> bytes:
    if not v1:
        message = caffe_pb2.BlobProto(shape=caffe_pb2.BlobShape(dim=shape))
    else:
        num, channels, height, width = (1,) * (4 - len(shape)) + shape
        message = caffe_pb2.BlobProto(num=num, channels=channels, height=height, width=width)
    return message.SerializeToString()


def _size(part: bytes | memoryview) -> int:
    return part.nbytes if isinstance(part, memoryview) else len(part)
