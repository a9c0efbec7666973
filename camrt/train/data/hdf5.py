"""HDF5Data: a dataset for each top, from a list of HDF5 files (hdf5_data_layer.cpp)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from camrt.errors import CamrtError
from camrt.train.data.streams import LoadedBatch
from converters.errors import install

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from converters.layer import Layer

_MAX_BYTES = 16 << 30  # of a dataset, which is loaded into memory, as in Caffe
_ORDER, _ROWS = 0, 1  # which random order: that of the files, or that of the rows of the first file


@dataclass(eq=False)
class Hdf5Data:
    """The tops of an HDF5Data layer.

    Each file has one dataset for each top, all with the same number of rows. Files are read one after another. With
    ``shuffle``, the files and the rows of each file are shuffled in each epoch.

    Attributes:
        name: The list of files, for messages.
        files: The files.
        rows: (F,) int64: the number of rows of each file.
        tops: Top -> the shape of a row.
        batch_size: The number of rows in a batch.
        shuffle: Whether files and rows are shuffled.
        seed: The seed of shuffling.
    """

    name: str
    files: tuple[Path, ...]
    rows: NDArray[np.int64]
    tops: dict[str, tuple[int, ...]]
    batch_size: int
    shuffle: bool
    seed: int
    _held: tuple[int, dict[str, NDArray[np.float32]]] = field(default=(-1, {}), init=False, repr=False)
    classes = ()
    largest_label = None
    is_cheap = True  # a file is read as a whole, and rows are copied from memory

    @classmethod
    def of(cls, layer: Layer, find: Callable[[str], Path], *, seed: int, batch: int | None = None) -> Hdf5Data:
        """Create the data of a layer, and check its files.

        Args:
            layer: The layer.
            find: Resolves a path of the prototxt.
            seed: The seed of shuffling.
            batch: The batch size. By default, that of the layer.

        Raises:
            CamrtError: h5py is not installed, a file is missing, or a dataset is missing or does not match the others.
        """
        param = layer.params.hdf5_data_param
        size = batch or param.batch_size
        if not size:
            raise CamrtError(f"layer {layer.name} (HDF5Data): found no batch_size, expected one: set it with --batch")
        source = find(param.source)
        try:
            lines = source.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CamrtError(
                f"cannot be read: {reason}. The layer {layer.name!r} (HDF5Data) expects a list of HDF5 files",
                file=str(source),
            ) from None
        files = tuple(find(line.strip()) for line in lines if line.strip())
        if not files:
            raise CamrtError("is empty, expected the name of an HDF5 file in each line", file=str(source))
        shapes = [_shapes(file, layer.tops) for file in files]
        tops = {top: shape[1:] for top, shape in shapes[0].items()}
        for file, found in zip(files, shapes, strict=True):
            for top, shape in found.items():
                if shape[1:] != tops[top]:
                    raise CamrtError(
                        f"found rows of shape {shape[1:]} in the dataset {top!r}, expected {tops[top]} as in "
                        f"{files[0]}",
                        file=str(file),
                    )
        rows = np.array([next(iter(found.values()))[0] for found in shapes], np.int64)
        return cls(str(source), files, rows, tops, size, param.shuffle, seed)

    @property
    def count(self) -> int | None:
        """See `Stream`."""
        return int(self.rows.sum())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Stream`."""
        return {top: (self.batch_size, *shape) for top, shape in self.tops.items()}

    def load(self, position: int) -> LoadedBatch:
        """See `Stream`."""
        arrays = {top: np.empty((self.batch_size, *shape), np.float32) for top, shape in self.tops.items()}
        filled = 0
        while filled < self.batch_size:
            epoch, offset = divmod(position + filled, int(self.rows.sum()))
            files = self._shuffled(len(self.files), epoch, _ORDER)
            ends = np.cumsum(self.rows[files])
            slot = int(np.searchsorted(ends, offset, side="right"))
            file, first = int(files[slot]), offset - int(ends[slot] - self.rows[files[slot]])
            taken = min(self.batch_size - filled, int(self.rows[file]) - first)
            rows = self._shuffled(int(self.rows[file]), epoch, _ROWS + file)[first : first + taken]
            for top, values in self._values(file).items():
                arrays[top][filled : filled + taken] = values[rows]
            filled += taken
        return LoadedBatch(arrays)

    def finish(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Stream`. The batch is returned unchanged."""
        return inputs

    def _shuffled(self, count: int, epoch: int, purpose: int) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(count, dtype=np.int64)
        key = int(np.random.SeedSequence((self.seed, epoch, purpose)).generate_state(1, np.uint64)[0])
        return np.random.Generator(np.random.Philox(key=key)).permutation(count)

    def _values(self, file: int) -> dict[str, NDArray[np.float32]]:
        """Return the datasets of a file. Those of the last file are cached, as in Caffe."""
        if self._held[0] != file:
            self._held = (file, _read(self.files[file], self.tops))
        return self._held[1]


def _shapes(file: Path, tops: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    with _opened(file) as handle:
        found = {top: tuple(_dataset(handle, top, file).shape) for top in tops}
    first, shape = next(iter(found.items()))
    for top, other in found.items():
        if not other or other[0] != shape[0] or not other[0]:
            raise CamrtError(
                f"found the shape {other} of the dataset {top!r} and {shape} of {first!r}, expected the same number of "
                "rows, 1 or more",
                file=str(file),
            )
    return found


def _read(file: Path, tops: dict[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    with _opened(file) as handle:
        try:
            return {top: np.asarray(_dataset(handle, top, file)[()], np.float32) for top in tops}
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise CamrtError(f"cannot be read as HDF5: {error}", file=str(file)) from None


def _opened(file: Path) -> Any:
    try:
        import h5py
    except ImportError:
        found = f"is an HDF5 file, which needs h5py. Install it with {install('h5py')}"
        raise CamrtError(found, file=str(file)) from None
    try:
        return h5py.File(file, "r")
    except OSError as error:
        found = "there is no such file" if not file.exists() else f"cannot be read as HDF5: {error}"
        raise CamrtError(found, file=str(file)) from None


def _dataset(handle: Any, top: str, file: Path) -> Any:
    import h5py

    link = handle.get(top, getlink=True)
    found = handle.get(top) if isinstance(link, h5py.HardLink) else None
    if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "iuf":
        raise CamrtError(f"found no numeric dataset {top!r}, expected one for each top of the layer", file=str(file))
    if found.external or found.is_virtual:
        raise CamrtError(f"found the dataset {top!r} in external files, expected it in this file", file=str(file))
    if found.nbytes > _MAX_BYTES:
        raise CamrtError(
            f"found {found.nbytes:,} bytes in the dataset {top!r}, expected at most {_MAX_BYTES:,}", file=str(file)
        )
    return found
