"""Read Caffe's files: networks as messages, weights as arrays.

A prototxt is text or binary; weights are a `.caffemodel` (Protocol Buffers) or a `.caffemodel.h5` (HDF5). The first
bytes of a file tell what it is, not its name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters import textformat, wire
from converters.errors import ConversionError, install
from converters.mapping import mapped
from converters.schema import caffe_pb2
from converters.textformat import UnknownField
from converters.unknown import in_binary
from converters.upgrade import upgrade

PathLike = str | os.PathLike[str]

MAX_PROTOTXT = 16 << 20  # bytes; the largest known prototxt has about one million
MAX_HDF5_GAIN = 20  # weights hardly compress; a file that says it holds more than this for its size is an attack

_HDF5 = b"\x89HDF\r\n\x1a\n"
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")  # never in a text, always in a binary network
_PROTOTXT = re.compile(rb"(?:\s++|#[^\n]*+)*+[a-z_]++\s*+[:{]")  # how a text prototxt begins
_FOREIGN = {
    b"<": "an HTML or XML page: the download went wrong",
    b"version https://git-lfs": "a Git LFS pointer: fetch the file itself with `git lfs pull`",
    b"PK\x03\x04": "a zip archive: extract it first",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"\x80\x02": "a Python pickle, maybe an old PyTorch checkpoint: expected Caffe's weights (.caffemodel)",
    b"\x89PNG": "a PNG image",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
}


@dataclass(frozen=True)
class Network:
    """A network as its file describes it, in today's form, before filtering.

    Attributes:
        message: The network; V1 layers upgraded, no weights.
        unknown: Fields that the schema does not know, with paths into ``message``.
        file: The file it was read from.
        binary: Whether the file is binary: it holds the numbers of its fields, not their names.
    """

    message: caffe_pb2.NetParameter
    unknown: tuple[UnknownField, ...]
    file: str
    binary: bool = False


@dataclass(frozen=True)
class Weights:
    """The weights of a file.

    Attributes:
        layers: Layer name -> blobs, in the file's order: float32, views of the mapped file wherever possible. Layers
            without blobs are left out.
        file: The file.
        model: The whole record of a `.caffemodel`; None for HDF5, which holds weights alone.
    """

    layers: dict[str, tuple[np.ndarray, ...]]
    file: str
    model: wire.ModelRecord | None = None

    def network(self) -> Network:
        """Return the network that a caffemodel carries.

        Raises:
            ConversionError: The file carries no network.
        """
        message = self.model.network(self.file) if self.model else caffe_pb2.NetParameter()
        if not message.layer and not message.layers:
            raise ConversionError(
                "carries no network, only weights: give its prototxt first, as deploy.prototxt net.caffemodel",
                file=self.file,
            )
        if not (any(layer.top for layer in message.layer) or any(layer.top for layer in message.layers)):
            names = ", ".join([*list(self.layers)[:4], *["..."] * (len(self.layers) > 4)])
            raise ConversionError(
                f"holds the weights of {len(self.layers)} layers ({names}) but not how the layers are connected: give "
                "its prototxt first, as deploy.prototxt net.caffemodel",
                file=self.file,
            )
        return _from_binary(message, self.file)


def read_prototxt(path: PathLike) -> Network:
    """Read a network's description, text or binary, V1 or V2.

    Args:
        path: A `.prototxt`, or a binary NetParameter (weights in it are passed over).

    Raises:
        ConversionError: Not readable, not a network, a syntax error (with line and column), the 2013 V0 form.
    """
    file = os.fspath(path)
    data = contents_of(file)
    _refuse_foreign(data, file)
    if data[:8] == _HDF5:
        raise ConversionError(
            "is an HDF5 file of weights, expected a prototxt (did the arguments change places?)", file=file
        )
    if _is_binary(data):
        return _from_binary(_binary_network(data, file), file)
    if len(data) > MAX_PROTOTXT:
        raise ConversionError(f"has {len(data):,} bytes, expected a prototxt of at most {MAX_PROTOTXT:,}", file=file)
    return parse_prototxt(bytes(data).decode("utf-8-sig", "replace"), file)


def parse_prototxt(text: str, file: str = "<prototxt>") -> Network:
    """Read a network's description from a text.

    Raises:
        ConversionError: A syntax error (with line and column), no layers, the 2013 V0 form.
    """
    message = caffe_pb2.NetParameter()
    unknown = textformat.parse(text, message, file, lenient=True)
    if not message.layer and not message.layers:
        raise ConversionError("describes no layers, expected `layer { ... }` or `layers { ... }`", file=file)
    types = [field for field in unknown if field.name == "type" and [name for name, _ in field.path] == ["layers"]]
    words = {field.path[0][1]: field.value for field in types if field.problem}
    # The paths of V1 layers become those of the layers they are upgraded to.
    renamed = tuple(_upgraded_path(field) for field in unknown if field not in types)
    return Network(upgrade(message, file, words), renamed, file)


def _from_binary(message: caffe_pb2.NetParameter, file: str) -> Network:
    network = upgrade(message, file)
    return Network(network, tuple(in_binary(network)), file, binary=True)


def read_weights(path: PathLike) -> Weights:
    """Read the weights of a `.caffemodel` or `.caffemodel.h5`.

    Raises:
        ConversionError: Not readable, not such a file, truncated, two layers of one name, h5py missing.
    """
    file = os.fspath(path)
    data = contents_of(file)
    _refuse_foreign(data, file)
    if data[:8] == _HDF5:
        return Weights(_collect(_hdf5_layers(file), file), file)
    if not _is_binary(data) and _PROTOTXT.match(data[:4096]):
        raise ConversionError("is a text prototxt, expected weights (did the arguments change places?)", file=file)
    record = wire.scan(data, file)
    return Weights(_collect(((layer.name, layer.blobs) for layer in record.layers), file), file, record)


def holds_weights(path: PathLike) -> bool:
    """Return whether a file is binary, like a caffemodel, and not a text prototxt.

    Raises:
        ConversionError: Not readable.
    """
    return _is_binary(contents_of(os.fspath(path)))


def _is_binary(data: memoryview) -> bool:
    return bool(_CONTROL.search(data[:4096]))


def _collect(layers: Iterator[tuple[str, tuple[np.ndarray, ...]]], file: str) -> dict[str, tuple[np.ndarray, ...]]:
    collected: dict[str, tuple[np.ndarray, ...]] = {}
    for name, blobs in layers:
        if not blobs:
            continue
        if name in collected:
            raise ConversionError("found the layer's weights twice, expected them once", layer=name, file=file)
        collected[name] = blobs
    return collected


def contents_of(file: str) -> memoryview:
    """Return the file as a read-only memory map."""
    path = Path(file)
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise ConversionError(
                f"is {'a folder' if path.is_dir() else 'no regular file'}, expected a file", file=file
            )
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                raise ConversionError("is empty", file=file)
            return memoryview(mapped(stream))
    except FileNotFoundError:
        raise ConversionError("does not exist", file=file) from None
    except (OSError, ValueError) as error:
        raise ConversionError(f"cannot be read: {error}", file=file) from None


def _refuse_foreign(data: memoryview, file: str) -> None:
    head = bytes(data[:64]).lstrip()
    if head.startswith(b"PK\x03\x04") and b"/data.pkl" in bytes(data[:256]):  # torch.save: a zip archive of a pickle
        raise ConversionError("is a PyTorch checkpoint, expected Caffe's weights (.caffemodel)", file=file)
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise ConversionError(f"is {what}", file=file)


def _binary_network(data: memoryview, file: str) -> caffe_pb2.NetParameter:
    network = wire.scan(data, file).network(file)
    if not network.layer and not network.layers:
        raise ConversionError("is not text, and as a binary network it has no layers", file=file)
    return network


def _upgraded_path(field: UnknownField) -> UnknownField:
    if not field.path or field.path[0][0] != "layers":
        return field
    path = (("layer", field.path[0][1]), *field.path[1:])
    return UnknownField(path, field.name, field.value, field.line, field.column)


def _hdf5_layers(file: str) -> Iterator[tuple[str, tuple[np.ndarray, ...]]]:
    """Read Caffe's layout, /data/<layer>/<index>. A slash in a layer's name makes a group within a group."""
    try:
        import h5py
    except ImportError:
        raise ConversionError(f"holds weights as HDF5, which takes h5py: {install('h5py')}", file=file) from None
    found: dict[str, dict[int, np.ndarray]] = {}
    room = MAX_HDF5_GAIN * os.path.getsize(file) + (1 << 20)  # noqa: PTH202 - bytes that may be read
    try:
        with h5py.File(file, "r") as handle:
            link = handle.get("data", getlink=True)
            root = handle["data"] if isinstance(link, h5py.HardLink) else None
            if not isinstance(root, h5py.Group):
                raise ConversionError("has no group /data, expected weights as Caffe stores them", file=file)
            # Every link, not every object: soft and external links are named, and two hard links are two layers.
            links: dict[str, object] = {}
            root.visititems_links(links.__setitem__)
            for path, link in links.items():
                layer, _, index = path.rpartition("/")
                refuse_hdf5_link(link, path, file)
                item = root[path]
                if isinstance(item, h5py.Dataset) and layer and index.isdigit():
                    refuse_foreign_storage(item, layer, file)
                    room -= item.nbytes
                    if room < 0:
                        raise ValueError(f"its weights would be {MAX_HDF5_GAIN} times as large as the file")
                    found.setdefault(layer, {})[int(index)] = np.asarray(item[()], np.float32)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, MemoryError) as error:
        raise ConversionError(f"cannot be read as HDF5: {error}", file=file) from None
    for layer, blobs in found.items():
        if sorted(blobs) != list(range(len(blobs))):
            raise ConversionError(
                f"found blobs {sorted(blobs)}, expected 0 to {len(blobs) - 1}", layer=layer, file=file
            )
        yield layer, tuple(blobs[index] for index in range(len(blobs)))


def refuse_hdf5_link(link: object, path: str, file: str) -> None:
    """Refuse soft and external links, which may lead to other files. Caffe writes hard links only.

    Raises:
        ConversionError: It is a soft or an external link.
    """
    if hasattr(link, "path"):
        target = f"{link.filename}:{link.path}" if hasattr(link, "filename") else link.path
        raise ConversionError(
            f"found a link from /data/{path} to {target}, expected the weights themselves: Caffe writes no links",
            file=file,
        )


def refuse_foreign_storage(dataset: Any, layer: str, file: str) -> None:
    """Refuse datasets whose values are in other files: HDF5 would read any file that the dataset names.

    Raises:
        ConversionError: External storage, a virtual dataset, or something else than numbers.
    """
    if dataset.is_virtual or dataset.external:
        sources = (
            [source.file_name for source in dataset.virtual_sources()]
            if dataset.is_virtual
            else [name for name, *_ in dataset.external]
        )
        raise ConversionError(
            f"found weights that are stored in other files ({', '.join(dict.fromkeys(sources))}), expected them in "
            "this one: Caffe writes neither external storage nor virtual datasets",
            layer=layer,
            file=file,
        )
    if dataset.dtype.kind not in "fiu":
        raise ConversionError(f"found {dataset.dtype}, expected numbers", layer=layer, file=file)
