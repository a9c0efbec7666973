"""Data: LMDB and LevelDB databases of Datum messages (data_layer.cpp, db_lmdb.cpp, db_leveldb.cpp)."""

from __future__ import annotations

import contextlib
import io
import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from PIL import Image as Pillow

from camrt import images
from camrt.errors import CamrtError
from camrt.train.data.sources import Images
from converters.errors import install
from converters.schema.caffe_pb2 import Datum

LMDB, LEVELDB = "LMDB", "LEVELDB"
_GRAY = ("1", "L", "I;16", "I", "F")


class Database:
    """The records of a database in the order of their keys, which is that of Caffe's cursor.

    Args:
        path: The folder of the database, or the file of an LMDB database.
        backend: ``"LMDB"`` or ``"LEVELDB"``. By default, it is detected from the files.

    Attributes:
        backend: ``"LMDB"`` or ``"LEVELDB"``.
        keys: The keys of the records.

    Raises:
        CamrtError: The database does not exist, is damaged or empty, or its package is not installed.
    """

    def __init__(self, path: Path, backend: str | None = None) -> None:
        self.path, self.backend = path, backend or _backend(path)
        self._handle: _Handle | None = None
        with self._reporting():
            self.keys: list[bytes] = list(self._keys())
        if not self.keys:
            raise CamrtError(f"found no records in the {self.backend} database, expected at least one", file=str(path))

    def __len__(self) -> int:
        return len(self.keys)

    def get(self, number: int) -> bytes:
        """Return a record.

        Raises:
            CamrtError: The database is damaged or has changed.
        """
        with self._reporting():
            handle = self._opened()
            if self.backend == LEVELDB:
                value = handle.get(self.keys[number])
            else:
                with handle.begin() as transaction:
                    value = transaction.get(self.keys[number])
        if value is None:
            raise CamrtError(
                f"the record {self.keys[number][:40]!r} does not exist any more, expected an unchanged database",
                file=str(self.path),
            )
        return bytes(value)

    def _keys(self) -> Iterator[bytes]:
        handle = self._opened()
        if self.backend == LEVELDB:
            with handle.iterator(include_value=False) as iterator:
                yield from iterator
            return
        with handle.begin() as transaction, transaction.cursor() as cursor:
            yield from cursor.iternext(keys=True, values=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    def _opened(self) -> Any:
        if self._handle is None or self._handle.process != os.getpid():
            self._handle = _opened(self.path, self.backend)
        return self._handle.raw

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """Convert the exceptions of lmdb and plyvel, which have no common class, to CamrtError."""
        try:
            yield
        except CamrtError:
            raise
        except Exception as error:
            raise CamrtError(f"cannot be read as {self.backend}: {error}", file=str(self.path)) from None


def _backend(path: Path) -> str:
    if not path.exists():
        raise CamrtError("does not exist, expected a database", file=str(path))
    if path.is_file() or (path / "data.mdb").is_file():
        return LMDB
    if (path / "CURRENT").is_file():
        return LEVELDB
    raise CamrtError(
        "is neither an LMDB database (data.mdb) nor a LevelDB database (CURRENT). Create one from images with "
        "camrt data lmdb",
        file=str(path),
    )


class _Handle:
    """An open database. It is closed when its last reference is deleted."""

    def __init__(self, path: Path, backend: str) -> None:
        self.process, self.raw = os.getpid(), _open(path, backend)

    def __del__(self) -> None:
        if "raw" in self.__dict__ and self.process == os.getpid():
            self.raw.close()


# A process may open a database only once, but the networks for training and for testing often read the same one.
_handles: weakref.WeakValueDictionary[tuple[str, int], _Handle] = weakref.WeakValueDictionary()


def _opened(path: Path, backend: str) -> _Handle:
    key = (str(path.resolve()), path.stat().st_ino if path.exists() else 0)
    handle = _handles.get(key)
    if handle is not None and handle.process == os.getpid():
        return handle
    if handle is not None and backend == LEVELDB:
        raise CamrtError("found several processes, expected one, as LevelDB requires: use --workers 0", file=str(path))
    if handle is not None:
        handle.raw.close()  # inherited from the process that forked this one
    _handles[key] = handle = _Handle(path, backend)
    return handle


def _open(path: Path, backend: str) -> Any:
    found = _backend(path)
    if found != backend:
        raise CamrtError(f"found the backend {found}, expected {backend} as in the layer", file=str(path))
    package = "lmdb" if backend == LMDB else "plyvel"
    try:
        if backend == LMDB:
            import lmdb

            handle = lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False)
            _check_length(handle, path)
            return handle
        import plyvel

        return plyvel.DB(str(path), create_if_missing=False)
    except ImportError:
        raise CamrtError(
            f"needs the package {package} to read {backend}. Install it with {install(package)}", file=str(path)
        ) from None


def _check_length(handle: Any, path: Path) -> None:
    """Check the size of an LMDB file. It is mapped into memory, and reading beyond its end would kill the process."""
    file = path / "data.mdb" if path.is_dir() else path
    expected = (handle.info()["last_pgno"] + 1) * handle.stat()["psize"]
    found = file.stat().st_size
    if found < expected:
        raise CamrtError(f"is truncated: found {found:,} bytes, expected {expected:,}", file=str(file))


class DatumSource:
    """The images and labels of a database, as a `Source`.

    Attributes:
        name: The path of the database, for messages.
        database: The records.
        is_color: Whether encoded images are always converted to color.
    """

    classes: tuple[str, ...] = ()
    largest_label: int | None = None  # unknown before all records are read

    def __init__(self, database: Database, *, is_color: bool = False) -> None:
        self.database, self.is_color = database, is_color
        self.name = str(database.path)
        self.count: int | None = len(database)
        # Only one process can read a LevelDB database. Workers pay off only for decoding.
        self.is_cheap = database.backend == LEVELDB or not parse(database, 0).encoded

    def read(self, numbers: NDArray[np.int64]) -> tuple[Images, NDArray[np.int64]]:
        """See `Source.read`. An image has the channels of its Datum, and may be float32."""
        found: list[Any] = []
        labels = np.empty(len(numbers), np.int64)
        for slot, number in enumerate(numbers.tolist()):
            try:
                datum = parse(self.database, number)
                labels[slot] = datum.label
                found.append(pixels(datum, is_color=self.is_color))
            except CamrtError as error:
                labels[slot] = 0
                found.append(error.in_file(f"{self.name}, record {number}"))
        if all(isinstance(image, np.ndarray) and image.shape == found[0].shape for image in found):
            return np.stack(found), labels
        return found, labels

    @property
    def paths(self) -> Sequence[bytes]:
        """The names of the images, for messages."""
        return _Names(self.name)


class _Names(Sequence[bytes]):
    def __init__(self, database: str) -> None:
        self._database = database

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, number: Any) -> Any:
        return f"{self._database}, record {number}".encode(errors="surrogateescape")


def parse(database: Database, number: int) -> Datum:
    """Read a record.

    Raises:
        CamrtError: The record is not a Datum message.
    """
    try:
        return Datum.FromString(database.get(number))
    except DecodeError:
        raise CamrtError("is not a Datum message") from None


def pixels(datum: Datum, *, is_color: bool = False) -> NDArray[Any]:
    """Return the values of a Datum.

    Args:
        datum: A Datum with raw bytes, floats, or an encoded image.
        is_color: Whether encoded grayscale images are converted to color (Caffe's force_encoded_color).

    Returns:
        (H, W, C) uint8, or float32 for floats. Encoded color images are BGR.

    Raises:
        CamrtError: The number of values does not match the shape, or the image cannot be decoded.
    """
    if datum.encoded:
        rgb = images.decode(datum.data)
        if not is_color and Pillow.open(io.BytesIO(datum.data)).mode in _GRAY:
            return rgb[:, :, :1]
        return rgb[:, :, ::-1]
    shape = (datum.channels, datum.height, datum.width)
    values: NDArray[Any] = np.frombuffer(datum.data, np.uint8) if datum.data else np.array(datum.float_data, np.float32)
    if min(shape) < 1 or int(np.prod(shape, dtype=object)) != values.size:
        raise CamrtError(f"found {values.size:,} values, expected {' x '.join(map(str, shape))}")
    return values.reshape(shape).transpose(1, 2, 0)
