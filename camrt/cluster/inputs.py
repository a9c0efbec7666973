"""Find the images of a run: in folders, globs, lists, Parquet and CSV files, and buckets that pyarrow reads."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from camrt.batch import ENDINGS, find_images
from camrt.errors import CamrtError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.fs import FileSystem

LISTS = (".txt", ".lst", ".list")
TABLES = (".parquet", ".csv")
NOT_THERE = -1  # the size and the time of a file that does not exist
# The columns that are looked for in a Parquet or CSV file, in this order.
COLUMNS = ("path", "image", "file", "file_name", "filename", "image_path", "bytes", "image_bytes", "content")
_NAMES = ("path", "file_name", "filename", "file")  # of images whose bytes are in a Parquet file


@dataclass(frozen=True)
class Selection:
    """What is read of lists and tables.

    Attributes:
        column: The column of the paths or bytes in Parquet and CSV files; None for the first of `COLUMNS`.
        target_column: The column of the class to explain in each image; None to explain the best classes.
        root: The folder or URL of relative paths; None for the folder of the list.
    """

    column: str | None = None
    target_column: str | None = None
    root: str | None = None


def schema() -> pa.Schema:
    """Return the columns of a table of images.

    ``path``: an absolute path, a URL, or the name of an image inside a Parquet file. ``size`` and ``mtime_ns``: of its
    file; -1 if there is none. ``target``: the class to explain, or null. ``file``, ``column`` and ``row``: where its
    bytes are, if they are in a Parquet file; else null.
    """
    import pyarrow as pa

    return pa.schema(
        [
            ("path", pa.string()),
            ("size", pa.int64()),
            ("mtime_ns", pa.int64()),
            ("target", pa.string()),
            ("file", pa.string()),
            ("column", pa.string()),
            ("row", pa.int64()),
        ]
    )


def find(
    inputs: Iterable[str], selection: Selection | None = None, *, but: Path | None = None
) -> tuple[pa.Table, list[tuple[str, str]]]:
    """Find the images that the inputs name, each once, in order.

    Args:
        inputs: Image files, folders and globs, as for `camrt.batch.find_images`; list files (``.txt``, ``.lst``,
            ``.list``: a path or URL per line); Parquet and CSV files; URLs (``s3://``, ``gs://``, ``file://``, ...) of
            a folder or of any of these files.
        selection: What is read of lists and tables.
        but: A folder that is not searched: where the results go.

    Returns:
        A table with the columns of `schema`, and the inputs that lead to no image with the reasons. A path in a list
        that leads nowhere is a row of size -1.

    Raises:
        CamrtError: A list, table or bucket cannot be read, or it names an image with two classes.
    """
    import pyarrow as pa

    selection = selection or Selection()
    tables: list[pa.Table] = []
    missing: list[tuple[str, str]] = []
    for given in inputs:
        try:
            tables += _tables_of(given, selection, but, missing)
        except (OSError, pa.ArrowException, UnicodeDecodeError, NotImplementedError) as error:
            raise CamrtError(f"cannot be read: {error}", file=given) from error
    return _each_once(pa.concat_tables([schema().empty_table(), *tables])), missing


def is_url(text: str) -> bool:
    """Return whether a text is a URL, not a path."""
    return "://" in text


def open_url(url: str) -> tuple[FileSystem, str]:
    """Return the file system of a URL, and the path in it. One client per bucket is kept.

    Raises:
        CamrtError: The URL has a password.
        OSError: The file system cannot be set up.
        pyarrow.ArrowException: pyarrow has no file system for the URL.
    """
    parts = urlsplit(url)
    if parts.password is not None:
        raise CamrtError(
            "found a password in the URL, which would be written into the results. Set it in the environment of all "
            "workers, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            file=f"{parts.scheme}://{parts.hostname}{parts.path}",
        )
    filesystem, root = _filesystem(parts.scheme, parts.netloc, parts.query)
    return filesystem, root.rstrip("/") + unquote(parts.path)


@functools.lru_cache(maxsize=64)
def _filesystem(scheme: str, host: str, query: str) -> tuple[FileSystem, str]:
    from pyarrow.fs import FileSystem

    found: tuple[FileSystem, str] = FileSystem.from_uri(f"{scheme}://{host}/" + (f"?{query}" if query else ""))
    return found


# ----------------------------------------------------------------------------------------------------- kinds of inputs


def _tables_of(
    given: str, selection: Selection, but: Path | None, missing: list[tuple[str, str]]
) -> Iterator[pa.Table]:
    """Find the images that one input names."""
    url = is_url(given)
    if url and _is_folder(given):
        files = _files_below(given)
        if not files.path:
            missing.append((given, f"the folder holds no images ({', '.join(ENDINGS)})"))
        yield files.table()
        return
    plain = _Files()
    named = [_remote(given)] if url else _local(given, but, missing)
    for path, size, mtime_ns in named:
        ending = PurePosixPath(urlsplit(path).path if url else path).suffix.lower()
        if ending in TABLES:
            yield _of_table(path, ending, selection)
        elif ending in LISTS:
            yield _described(_lines(path), None, _root(path, selection)).table()
        else:
            plain.add(path, size, mtime_ns)
    yield plain.table()


def _remote(url: str) -> tuple[str, int, int]:
    return url, *_url_state(url)


def _local(given: str, but: Path | None, missing: list[tuple[str, str]]) -> list[tuple[str, int, int]]:
    found, lost = find_images([given], but=but)
    missing += lost
    return [(image.path, image.size, image.mtime_ns) for image in found]


@dataclass
class _Files:
    """Columns of files, before they are a table."""

    path: list[str] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    mtime_ns: list[int] = field(default_factory=list)
    target: Sequence[str | None] | None = None

    def add(self, path: str, size: int, mtime_ns: int) -> None:
        """Add a file."""
        self.path.append(path)
        self.size.append(size)
        self.mtime_ns.append(mtime_ns)

    def table(self) -> pa.Table:
        """Return the table."""
        import pyarrow as pa

        count = len(self.path)
        columns: dict[str, Any] = {"path": self.path, "size": self.size, "mtime_ns": self.mtime_ns}
        columns["target"] = self.target if self.target is not None else pa.nulls(count, pa.string())
        for name in ("file", "column", "row"):
            columns[name] = pa.nulls(count, schema().field(name).type)
        return pa.table(columns, schema=schema())


def _described(names: Sequence[str], targets: Sequence[str | None] | None, root: str) -> _Files:
    """Look at files: local ones, and URLs."""
    files = _Files(target=targets)
    for name in names:
        full = _joined(root, name)
        if is_url(full):
            files.add(full, *_url_state(full))
        else:
            files.add(os.path.abspath(full), *_state(full))  # noqa: PTH100 - links are not followed
    return files


def _joined(root: str, name: str) -> str:
    """Return where a path of a list leads."""
    if is_url(name) or not root:
        return name
    if is_url(root):
        base, question, query = root.partition("?")
        return f"{base.rstrip('/')}/{quote(name)}{question}{query}"
    return os.path.join(root, name)  # noqa: PTH118 - a million times


def _state(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116 - a million times
    except (OSError, ValueError):
        return NOT_THERE, NOT_THERE
    return found.st_size, found.st_mtime_ns


def _url_state(url: str) -> tuple[int, int]:
    from pyarrow.fs import FileType

    filesystem, path = open_url(url)
    info = filesystem.get_file_info(path)
    if info.type != FileType.File:
        return NOT_THERE, NOT_THERE
    return int(info.size or 0), int(info.mtime_ns or 0)


def _is_folder(url: str) -> bool:
    from pyarrow.fs import FileType

    filesystem, path = open_url(url)
    found = filesystem.get_file_info(path)
    if found.type == FileType.NotFound:
        raise CamrtError("there is no such file or folder", file=url)
    return bool(found.type == FileType.Directory)


def _files_below(folder: str) -> _Files:
    """Find the images below a folder of a bucket."""
    from pyarrow.fs import FileSelector, FileType

    filesystem, root = open_url(folder)
    base, question, query = folder.partition("?")
    found = filesystem.get_file_info(FileSelector(root, recursive=True))
    files = _Files()
    for info in sorted(found, key=lambda each: str(each.path)):
        below = info.path[len(root) :].lstrip("/")
        parts = PurePosixPath(below).parts
        if info.type != FileType.File or any(part.startswith(".") for part in parts):
            continue
        if PurePosixPath(below).suffix.lower() in ENDINGS:
            url = f"{base.rstrip('/')}/{quote(below)}{question}{query}"
            files.add(url, int(info.size or 0), int(info.mtime_ns or 0))
    return files


def _content(name: str) -> bytes:
    if not is_url(name):
        return Path(name).read_bytes()
    filesystem, path = open_url(name)
    with filesystem.open_input_stream(path) as stream:
        content: bytes = stream.read()
    return content


def _lines(name: str) -> list[str]:
    return [line for line in _content(name).decode().splitlines() if line.strip()]


def _root(name: str, selection: Selection) -> str:
    """Return the folder of relative paths."""
    if selection.root is not None:
        return selection.root
    if is_url(name):
        base, question, query = name.partition("?")
        return base.rpartition("/")[0] + question + query
    return str(Path(name).absolute().parent)


# -------------------------------------------------------------------------------------------------------------- tables


def _of_table(name: str, ending: str, selection: Selection) -> pa.Table:
    """Read a Parquet or CSV file: of Parquet only the columns that are needed, and never the bytes of images."""
    import pyarrow as pa

    if ending == ".csv":
        from pyarrow import csv

        everything = csv.ConvertOptions(column_types={}, strings_can_be_null=False)
        found = csv.read_csv(pa.BufferReader(_content(name)), convert_options=everything)
        column = _column(found.schema, selection.column, name)
        return _of_paths(found, column, name, selection)
    from pyarrow import parquet

    filesystem, path = open_url(name) if is_url(name) else (None, name)
    with parquet.ParquetFile(path, filesystem=filesystem) as file:
        column = _column(file.schema_arrow, selection.column, name)
        kind = file.schema_arrow.field(column).type
        wanted = _target_column(file.schema_arrow, selection, name)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return _of_paths(file.read(columns=[column, *wanted]), column, name, selection)
        if not (_is_binary(kind) or pa.types.is_struct(kind)):
            raise CamrtError(f"found {kind} in the column {column!r}, expected paths or bytes (--column)", file=name)
        inner = "bytes" if pa.types.is_struct(kind) else None
        if inner and (kind.get_field_index(inner) < 0 or not _is_binary(kind.field(inner).type)):
            raise CamrtError(f"found {kind} in the column {column!r}, expected a struct with bytes", file=name)
        names = _name_column(file.schema_arrow, column, kind)
        read = file.read(columns=[*({names} if names else set()), *wanted])
        return _of_bytes(read, file.metadata.num_rows, name, f"{column}.{inner}" if inner else column, names, wanted)


def _is_binary(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _column(found: pa.Schema, given: str | None, name: str) -> str:
    known = [given] if given is not None else COLUMNS
    for column in known:
        if column in found.names:
            return column
    what = repr(given) if given is not None else f"one of {', '.join(COLUMNS)}"
    raise CamrtError(f"found the columns {', '.join(found.names)}, expected {what}. Name one: --column", file=name)


def _target_column(found: pa.Schema, selection: Selection, name: str) -> list[str]:
    wanted = selection.target_column
    if wanted is None:
        return []
    if wanted not in found.names:
        raise CamrtError(
            f"found the columns {', '.join(found.names)}, expected {wanted!r}, as --target-column says", file=name
        )
    return [wanted]


def _name_column(found: pa.Schema, column: str, kind: pa.DataType) -> str | None:
    """Return the column with the names of images whose bytes are in the file."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return f"{column}.path" if kind.get_field_index("path") >= 0 else None
    is_text = {each.name for each in found if pa.types.is_string(each.type) or pa.types.is_large_string(each.type)}
    return next((each for each in _NAMES if each in is_text), None)


def _targets(table: pa.Table, wanted: Sequence[str]) -> pa.ChunkedArray:
    import pyarrow as pa

    return table[wanted[0]].cast(pa.string()) if wanted else pa.chunked_array([pa.nulls(len(table), pa.string())])


def _of_paths(table: pa.Table, column: str, name: str, selection: Selection) -> pa.Table:
    import pyarrow as pa

    wanted = _target_column(table.schema, selection, name)
    paths = table[column].cast(pa.string())
    if paths.null_count:
        raise CamrtError(f"found {paths.null_count:,} rows without a path in the column {column!r}", file=name)
    pairs = pa.table({"path": paths, "target": _targets(table, wanted)})
    pairs = pairs.group_by(["path", "target"], use_threads=False).aggregate([])  # a row per box in some files
    return _described(pairs["path"].to_pylist(), pairs["target"].to_pylist(), _root(name, selection)).table()


def _of_bytes(
    table: pa.Table, count: int, name: str, column: str, names: str | None, wanted: Sequence[str]
) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    full = name if is_url(name) else os.path.abspath(name)  # noqa: PTH100 - links are not followed
    size, mtime_ns = _url_state(name) if is_url(name) else _state(name)
    rows = pa.array(range(count), pa.int64())
    numbered = pc.binary_join_element_wise(full, rows.cast(pa.string()), "#")
    paths: Any = numbered
    if names is not None:
        outer, _, inner = names.partition(".")
        called = table[outer].combine_chunks()
        called = pc.struct_field(called, inner) if inner else called
        paths = pc.coalesce(called.cast(pa.string()), numbered)
    columns = {
        "path": paths,
        "size": pa.repeat(pa.scalar(size, pa.int64()), count),
        "mtime_ns": pa.repeat(pa.scalar(mtime_ns, pa.int64()), count),
        "target": _targets(table, wanted) if wanted else pa.nulls(count, pa.string()),
        "file": pa.repeat(full, count),
        "column": pa.repeat(column, count),
        "row": rows,
    }
    return pa.table(columns, schema=schema())


def _each_once(table: pa.Table) -> pa.Table:
    """Leave out what is named again."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = table.append_column("position", pa.array(range(len(table)), pa.int64()))
    keys = table.select(["path", "target", "file", "row", "position"])
    once = keys.group_by(["path", "target", "file", "row"]).aggregate([("position", "min")])
    paths = once.group_by("path").aggregate([("target", "count_distinct"), ("position_min", "count")])
    twice = paths.filter(pc.field("position_min_count") > 1)
    if len(twice):
        path = twice["path"][0].as_py()
        raise CamrtError(
            f"found {len(twice):,} images with several classes or in several tables, such as {path!r}, expected each "
            "once. Run them into folders of their own"
        )
    kept = once["position_min"].combine_chunks()
    return table.drop_columns("position").take(kept.take(pc.sort_indices(kept)))
