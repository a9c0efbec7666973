"""Write weights in Caffe's formats: a `.caffemodel` or a `.caffemodel.h5`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from converters.encoding import contents, length_delimited, replacing, sweep
from converters.errors import ConversionError, install
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
    """Write weights as a `.caffemodel`, layer by layer. Only the arrays of one layer need to be in memory at a time.

    Args:
        path: The file. An existing one is replaced once the new one is complete. Missing folders are created.
        layers: Layer name -> its blobs, in Caffe's order, as anything that NumPy converts to float32.
        types: Layer name -> its type, for types to write as well. Caffe matches layers by name only.
        name: The network's name.
        v1: Whether to write the format from before 2015: `layers`, and blobs of four axes.

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
                stream.write(length_delimited(_NET_LAYERS_V1 if v1 else _NET_LAYER, total_size(parts)))
                for part in parts:
                    stream.write(part)
    except OSError as error:
        raise ConversionError(f"cannot be written: {error.strerror or error}", file=str(file)) from error


def write_caffemodel_h5(path: str | os.PathLike[str], layers: Mapping[str, Iterable[np.ndarray]]) -> None:
    """Write weights as a `.caffemodel.h5`: one float32 dataset ``/data/<layer>/<index>`` for each blob.

    The layout is that of Caffe's ``Net::ToHDF5``. Only the arrays of one layer need to be in memory at a time.

    Args:
        path: The file. An existing one is replaced once the new one is complete.
        layers: Layer name -> its blobs, in Caffe's order, as anything that NumPy converts to float32.

    Raises:
        ConversionError: h5py is not installed, or the file cannot be written.
    """
    file = Path(path)
    try:
        import h5py
    except ImportError:
        raise ConversionError(f"needs h5py to write HDF5: {install('h5py')}", file=str(file)) from None
    try:
        sweep(file.parent, file.name)
        with replacing(file) as stream, h5py.File(stream, "w") as handle:
            data = handle.create_group("data")
            for layer, blobs in layers.items():
                group = data.create_group(layer)
                for index, blob in enumerate(blobs):
                    group.create_dataset(str(index), data=np.asarray(blob, np.float32))
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConversionError(f"cannot be written: {reason}", file=str(file)) from error


def _layer(name: str, blobs: Sequence[np.ndarray], type: str, *, v1: bool) -> list[bytes | memoryview]:
    if v1:
        head = caffe_pb2.V1LayerParameter(name=name).SerializeToString()
    else:
        head = caffe_pb2.LayerParameter(name=name, type=type or None).SerializeToString()
    parts: list[bytes | memoryview] = [head]
    for blob in blobs:
        encoded = blob_parts(blob, v1=v1)
        parts += [length_delimited(_LAYER_BLOBS_V1 if v1 else _LAYER_BLOBS, total_size(encoded)), *encoded]
    return parts


def blob_parts(blob: np.ndarray, *, v1: bool = False) -> list[bytes | memoryview]:
    """Encode a BlobProto, in parts. The values are not copied if they are contiguous float32.

    Args:
        blob: The values.
        v1: Whether to write four axes, as before 2015.
    """
    data = contents(np.asarray(blob, "<f4"))
    return [_shape(blob.shape, v1=v1) + length_delimited(_BLOB_DATA, data.nbytes), data]


def total_size(parts: Iterable[bytes | memoryview]) -> int:
    """Return the number of bytes of parts of a message."""
    return sum(part.nbytes if isinstance(part, memoryview) else len(part) for part in parts)


def _shape(shape: tuple[int, ...], *, v1: bool) -> bytes:
    if not v1:
        message = caffe_pb2.BlobProto(shape=caffe_pb2.BlobShape(dim=shape))
    else:
        num, channels, height, width = (1,) * (4 - len(shape)) + shape
        message = caffe_pb2.BlobProto(num=num, channels=channels, height=height, width=width)
    return message.SerializeToString()
