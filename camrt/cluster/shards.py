"""The results of a run: a folder of Parquet files, each with some hundred images and the settings in its metadata.

A file (a *shard*) appears whole or not at all, and it is never appended to. Its name is a hash of the images in it, so
that a task that is computed twice, because a machine died or answered late, writes the same file twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from camrt.errors import CamrtError
from converters.errors import install

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    from camrt.explanation import Explanation

KEY = b"camrt.batch"  # in the metadata of each file
FORMAT = 1
PATTERN = "shard-*.parquet"
IDENTITY = ("path", "size", "mtime_ns", "target")  # what must not have changed for a row to count
_GROUP_BYTES = 1 << 22  # of heatmaps in a row group: memory of that size is used again and stays in the caches
_AGAIN = "Remove it: the same command of camrt batch computes its images again"


def schema(shape: tuple[int, int, int], settings: Mapping[str, Any]) -> pa.Schema:
    """Return the columns of a shard, with the settings as metadata.

    Args:
        shape: (top, S, S), of the heatmaps of an image.
        settings: What is written to the metadata, as JSON.
    """
    import pyarrow as pa

    box = pa.list_(pa.int32(), 4)
    return pa.schema(
        [
            ("path", pa.string()),
            ("size", pa.int64()),
            ("mtime_ns", pa.int64()),
            ("target", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("classes", pa.list_(pa.int64())),
            ("labels", pa.list_(pa.string())),
            ("scores", pa.list_(pa.float32())),
            ("boxes", pa.list_(pa.list_(box))),
            ("peaks", pa.list_(pa.float32())),
            ("heatmap", pa.binary(2 * int(np.prod(shape)))),
            ("all_scores", pa.list_(pa.float32())),
            ("overlays", pa.list_(pa.string())),
            ("error", pa.string()),
        ],
        metadata={KEY: json.dumps(settings).encode()},
    )


def name_of(images: pa.Table) -> str:
    """Return the name of the shard of some images: a hash of what identifies them."""
    digest = hashlib.sha256()
    for column in IDENTITY:
        digest.update(json.dumps(images[column].to_pylist()).encode())
    return f"shard-{digest.hexdigest()[:16]}.parquet"


class Writer:
    """Write the rows of a shard to a stream, a row group at a time.

    Args:
        stream: A file that is open for writing.
        shape: (top, S, S), of the heatmaps of an image.
        settings: What is written to the metadata.
    """

    def __init__(self, stream: IO[bytes], shape: tuple[int, int, int], settings: Mapping[str, Any]) -> None:
        from pyarrow import parquet

        self.shape, self.schema = shape, schema(shape, settings)
        self.rows = self.failed = 0
        self._most = max(1, _GROUP_BYTES // (2 * int(np.prod(shape)) or 1))
        self._waiting: list[dict[str, Any]] = []
        self._halves = np.empty((self._most, 2 * int(np.prod(shape))), np.uint8)
        # Maps hardly repeat themselves: dictionaries and statistics are as large as they are, and Zstandard takes five
        # times as long as Snappy to make them a sixth smaller.
        plain = [name for name in self.schema.names if name not in ("heatmap", "all_scores")]
        self._file = _file_of(stream)
        self._writer = parquet.ParquetWriter(
            self._file or stream, self.schema, compression="snappy", use_dictionary=plain, write_statistics=plain
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
            self._writer.close()
        finally:
            if self._file is not None:
                self._file.close()

    def add(self, row: dict[str, Any]) -> None:
        """Add a row: the columns that are not null."""
        if row.get("heatmap") is not None:
            self._halves[len(self._waiting)] = np.frombuffer(row["heatmap"], np.uint8)
        self._waiting.append(row)
        self.rows += 1
        self.failed += row.get("error") is not None
        if len(self._waiting) == self._most:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._waiting:
            columns = [
                self._heatmaps() if each.name == "heatmap"
                else pa.array([row.get(each.name) for row in self._waiting], each.type)
                for each in self.schema
            ]  # fmt: skip
            self._writer.write_table(pa.table(columns, schema=self.schema))
            self._waiting = []

    def _heatmaps(self) -> pa.Array:
        """The column of the maps, which are not copied. They are written before the next ones take their place."""
        import pyarrow as pa

        is_there = np.array([row.get("heatmap") is not None for row in self._waiting])
        valid = pa.py_buffer(np.packbits(is_there, bitorder="little"))
        kind = self.schema.field("heatmap").type
        return pa.FixedSizeBinaryArray.from_buffers(kind, len(is_there), [valid, pa.py_buffer(self._halves)])


def _file_of(stream: IO[bytes]) -> pa.NativeFile | None:
    """The file of a stream as Arrow opens it; None if it has none. Through a stream of Python, pages are copied."""
    import pyarrow as pa

    name = getattr(stream, "name", None)
    return pa.OSFile(name, "wb") if isinstance(name, str) else None


def row_of(
    found: Explanation, boxes: Sequence[NDArray[np.int64]] | None, heatmaps: NDArray[np.float32]
) -> dict[str, Any]:
    """Return what a row says of an image that was explained.

    Args:
        found: The explanation.
        boxes: (M, 4) for each class; None if they were not asked for.
        heatmaps: (top, S, S): the maps that are written.
    """
    height, width = found.original_size
    peaks, halves = packed(heatmaps)
    return {
        "width": width,
        "height": height,
        "classes": found.classes,
        "labels": found.labels,
        "scores": found.scores,
        "boxes": None if boxes is None else [each.tolist() for each in boxes],
        "peaks": peaks,
        "heatmap": halves,
        "all_scores": found.all_scores,
    }


def packed(heatmaps: NDArray[np.float32]) -> tuple[NDArray[np.float32], memoryview]:
    """Encode maps in half precision, each divided by its largest absolute value: nothing over- or underflows.

    Args:
        heatmaps: (top, S, S) float32.

    Returns:
        (top,) float32, the divisors; and the bytes of the quotients as float16, little-endian. The error is at most
        2^-12 of the largest value.
    """
    import cv2

    divisors = np.ones(len(heatmaps), np.float32)
    halves = np.empty(heatmaps.shape, np.int16)
    quotients = np.empty(heatmaps.shape[1:], np.float32)
    for i, heatmap in enumerate(heatmaps):  # one by one: the cache holds a map
        peak = max(float(heatmap.max()), -float(heatmap.min()))
        if 0 < peak < np.inf:
            divisors[i] = peak
        np.divide(heatmap, divisors[i], out=quotients)
        halves[i] = cv2.convertFp16(quotients).view(np.int16)  # the bits of NumPy's astype, many times faster
    return divisors, halves.reshape(-1).view(np.uint8).data


def unpacked(peaks: Sequence[float], halves: bytes | memoryview) -> NDArray[np.float32]:
    """Decode maps that were encoded by `packed`.

    Returns:
        (top, S, S) float32.

    Raises:
        ValueError: They are not square maps.
    """
    values = np.frombuffer(halves, "<f2").astype(np.float32)
    side = round((values.size / max(1, len(peaks))) ** 0.5)
    return values.reshape(len(peaks), side, side) * np.asarray(peaks, np.float32)[:, None, None]


# ------------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Shards:
    """The shards of a folder.

    Attributes:
        folder: The folder.
        files: The shards, in the order of their names.
        settings: Their metadata; None if there is no shard.
    """

    folder: Path
    files: tuple[Path, ...]
    settings: Mapping[str, Any] | None

    @classmethod
    def of(cls, folder: Path) -> Shards:
        """Look at the shards of a folder.

        Raises:
            CamrtError: A file cannot be read, is no shard, or differs in its settings; or pyarrow is not installed.
        """
        settings: Mapping[str, Any] | None = None
        files = tuple(sorted(folder.glob(PATTERN)))
        for file in files:
            found = _settings(file)
            if settings is not None and found["job"] != settings["job"]:
                raise CamrtError(
                    f"has other settings than {files[0].name}, expected results of one run. Keep them in folders of "
                    "their own",
                    file=str(file),
                )
            settings = settings or found
        return cls(folder, files, settings)

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Read columns of all shards, with the ``shard`` that each row is in: its position in ``files``.

        Raises:
            CamrtError: A file cannot be read.
        """
        import pyarrow as pa

        tables = []
        for position, file in enumerate(self.files):
            with _opened(file) as parquet:
                table = parquet.read(columns=list(columns)).replace_schema_metadata(None)
            tables.append(table.append_column("shard", pa.repeat(pa.scalar(position, pa.int32()), len(table))))
        known = schema((0, 0, 0), {})
        empty = pa.schema([*(known.field(name) for name in columns), pa.field("shard", pa.int32())]).empty_table()
        return pa.concat_tables([empty, *tables])

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Read rows, one row group at a time, with the provider and the precision that ``ran`` the network.

        Raises:
            CamrtError: A file cannot be read.
        """
        for file in self.files:
            settings = _settings(file)
            ran = {"ran": f"{settings.get('provider', '')} {settings.get('precision', '')}".strip()}
            with _opened(file) as parquet:
                for group in range(parquet.num_row_groups):
                    yield from (row | ran for row in parquet.read_row_group(group, columns=list(columns)).to_pylist())

    def without(self, stale: Mapping[int, set[str]]) -> None:
        """Remove rows, by the shard and their paths; a shard is replaced by a whole one, or removed if it is empty.

        Raises:
            CamrtError: A file cannot be read or written.
        """
        import pyarrow as pa
        import pyarrow.compute as pc
        from pyarrow import parquet as writing

        from converters.encoding import replacing

        for position, paths in stale.items():
            file = self.files[position]
            with _opened(file) as parquet, replacing(file) as stream:
                kept = 0
                with writing.ParquetWriter(stream, parquet.schema_arrow, use_dictionary=False) as writer:
                    for group in range(parquet.num_row_groups):
                        table = parquet.read_row_group(group)
                        table = table.filter(pc.invert(pc.is_in(table["path"], pa.array(sorted(paths), pa.string()))))
                        kept += len(table)
                        writer.write_table(table)
            if not kept:
                file.unlink()


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[ParquetFile]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise CamrtError(f"is read by pyarrow, which is not installed: {install('pyarrow')}", file=str(file)) from error
    try:
        with parquet.ParquetFile(file) as opened:
            yield opened
    except (OSError, pa.ArrowException, KeyError) as error:
        raise CamrtError(f"is no whole Parquet file ({error}). {_AGAIN}", file=str(file)) from error


def _settings(file: Path) -> dict[str, Any]:
    with _opened(file) as parquet:
        text = (parquet.schema_arrow.metadata or {}).get(KEY)
    try:
        found = json.loads(text or b"")
        if found["format"] != FORMAT or not isinstance(found["job"], dict):
            raise ValueError(f"format {found['format']}")
    except (ValueError, LookupError, TypeError) as error:
        raise CamrtError(
            f"does not state its settings in the metadata {KEY.decode()} ({error}), expected a file of camrt batch",
            file=str(file),
        ) from error
    return dict(found)
