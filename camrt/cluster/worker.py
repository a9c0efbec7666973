"""A worker: an explainer that computes one shard after the other."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from camrt import images, results
from camrt.cluster import shards
from camrt.cluster.inputs import NOT_THERE, is_url, open_url
from camrt.cluster.job import ATTEMPTS, OVERLAYS, TOKEN, Job, token_of
from camrt.errors import CamrtError
from converters.errors import ConversionError

if TYPE_CHECKING:
    import pyarrow as pa

    from camrt.explainer import Explainer
    from camrt.explanation import Explanation
    from camrt.images import ImageLike

_MOST_ATTEMPTS = 3  # at a shard, if the workers die
_MOST_NAMED = 20  # failures that a summary names
_MOST_STREAMS = 8  # runs at once on a CPU: memory grows with them
_WAITING = 8  # rows that wait for the thread that writes
_BYTES_ROWS = 16  # images of a Parquet file that are read at a time


class Worker:
    """Explain images into shards. Ray makes one per actor; it also works without Ray.

    It may be called in two threads: the images of a shard are read once those of the shard before are, and explained
    while its last rows are written, so that no processor waits at the end of a shard.

    On a CPU, it computes as many images at once as it has processors, each with one thread.

    Args:
        job: What is computed.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._explainer: Explainer | None = None
        self._reading = threading.Lock()

    def __call__(self, task: pa.Table) -> pa.Table:
        """Compute one shard.

        Args:
            task: One row: the ``name`` of the shard, and ``images``, a table of `camrt.cluster.inputs` as bytes.

        Returns:
            One row: the name, the number of ``rows`` and of ``failed`` ones, the ``failures`` as JSON (some of them),
            the ``seconds`` that it took; ``died``: whether it was not computed, as the workers died that tried; and
            ``fatal``: why the run cannot go on, or null.
        """
        import pyarrow as pa

        name, began = task["name"][0].as_py(), time.perf_counter()
        summary: dict[str, Any] = {"name": name, "rows": 0, "failed": 0, "failures": "[]", "died": False, "fatal": None}
        try:
            with pa.ipc.open_stream(task["images"][0].as_buffer()) as reader:
                found = reader.read_all()
            with contextlib.ExitStack() as turn:
                turn.enter_context(self._reading)
                with self._attempt(name) as is_hopeless:
                    rows, failures = (0, []) if is_hopeless else self._compute(name, found, turn.close)
            summary["died"] = is_hopeless
            summary |= {"rows": rows, "failed": len(failures), "failures": json.dumps(failures[:_MOST_NAMED])}
        except (CamrtError, ConversionError) as error:
            summary["fatal"] = str(error)
        except OSError as error:
            summary["fatal"] = f"{self.job.folder}: cannot be written to: {error.strerror or error}"
        except Exception as error:  # as a row: Ray would repeat the task, and hide the reason in a log
            summary["fatal"] = f"{type(error).__name__}: {error}"
        summary["seconds"] = time.perf_counter() - began
        return pa.Table.from_pylist([summary], schema=_summary())

    @contextlib.contextmanager
    def _attempt(self, name: str) -> Iterator[bool]:
        """Count the attempts at a shard where they outlive a worker. Yields whether there were enough of them.

        Ray gives the shard of a worker that died to another one, however often that happens.
        """
        self._check_folder()
        file = self.job.folder / ATTEMPTS / name
        file.parent.mkdir(exist_ok=True)
        with file.open("ab") as stream:
            before = stream.tell()
            stream.write(b".")
        yield before >= _MOST_ATTEMPTS
        file.unlink(missing_ok=True)

    def _compute(self, name: str, found: pa.Table, is_read: Callable[[], object]) -> tuple[int, list[tuple[str, str]]]:
        """Write the shard. Returns the number of rows, and the images that failed with the reasons.

        `is_read` is called when the last image has been handed to the threads that decode.
        """
        from converters.encoding import replacing

        explainer, path = self._loaded(), self.job.folder / name
        failures: list[tuple[str, str]] = []
        sources = found.to_pylist()
        side = self.job.map_side or explainer.size
        shape, settings = (explainer.top, side, side), self._settings(explainer)
        threads = min(8, self._cores)
        with (
            replacing(path) as stream,
            ThreadPoolExecutor(threads, "camrt-row") as encoding,
            ThreadPoolExecutor(1, "camrt-write") as writing,
            shards.Writer(stream, shape, settings) as writer,
        ):
            # Boxes, pictures and Parquet are made beside the network. Errors of the threads are raised here.
            rows: deque[Future[dict[str, Any]]] = deque()
            written: deque[Future[None]] = deque()
            for source, outcome in zip(sources, self._outcomes(explainer, sources, is_read), strict=True):
                if isinstance(outcome, CamrtError):
                    failures.append((source["path"], outcome.message))
                rows.append(encoding.submit(self._row, name, source, outcome))
                while len(rows) > 2 * threads:
                    written.append(writing.submit(writer.add, rows.popleft().result()))
                while len(written) > _WAITING:
                    written.popleft().result()
            for row in rows:
                written.append(writing.submit(writer.add, row.result()))
            for each in written:
                each.result()
            self._check_folder()  # at the end too: another run may have begun since
        return writer.rows, failures

    def _row(self, name: str, source: Mapping[str, Any], outcome: Explanation | CamrtError) -> dict[str, Any]:
        """Return the row of an image; its overlays are written."""
        row = {column: source[column] for column in shards.IDENTITY}
        if isinstance(outcome, CamrtError):
            return {**row, "error": outcome.message}
        row |= shards.row_of(outcome, self._boxes(outcome), self._maps(outcome))
        if self.job.overlays:
            row["overlays"] = self._draw(name, outcome, source["path"])
        return row

    def _boxes(self, found: Explanation) -> list[NDArray[np.int64]] | None:
        style = self.job.style
        if style.boxes is None:
            return None
        of_class = (
            found.best_box if style.boxes == "best" else functools.partial(found.boxes, thresholds=style.thresholds)
        )
        return [of_class(i) for i in range(len(found))]

    def _maps(self, found: Explanation) -> NDArray[np.float32]:
        side = self.job.map_side
        if side is None or side == found.heatmaps.shape[-1]:
            return found.heatmaps
        return np.stack([found.resized(i, (side, side)) for i in range(len(found))])

    def _draw(self, name: str, found: Explanation, path: str) -> list[str]:
        """Write the overlays. Returns their names in the folder of the results."""
        below = f"{OVERLAYS}/{name.removesuffix('.parquet')}"
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
        stem = results.shortened(f"{Path(path).stem.strip('.') or 'image'}-{digest}")
        files = found.save_files(self.job.folder / below, stem=stem, style=self.job.style, max_side=None)
        return [f"{below}/{file}" for file in files]

    # ------------------------------------------------------------------------------------------------------ the images

    def _outcomes(
        self, explainer: Explainer, sources: list[dict[str, Any]], is_read: Callable[[], object]
    ) -> Iterator[Explanation | CamrtError]:
        """Explain images: for each, in order, its explanation or the reason why there is none."""
        failed: deque[CamrtError] = deque()
        found = explainer.map(
            self._images(sources, is_read),
            targets=(source["target"] for source in sources) if self.job.has_targets else None,
            batch=self.job.batch,
            workers=min(8, self._cores),
            on_error=lambda _, error: failed.append(error),
        )
        for each in found:
            while failed:
                yield failed.popleft()
            yield each
        yield from failed

    def _images(
        self, sources: list[dict[str, Any]], is_read: Callable[[], object]
    ) -> Iterator[ImageLike | Callable[[], ImageLike]]:
        tables = _Tables()
        for source in sources:
            yield self._image(source, tables)
        is_read()

    def _image(self, source: Mapping[str, Any], tables: _Tables) -> ImageLike | Callable[[], ImageLike]:
        """Return an image, or what reads it in the thread that decodes it."""
        path = source["path"]
        if source["file"] is not None:
            content = tables.bytes_of(source["file"], source["column"], source["row"])
            return functools.partial(self._decodable, content)
        if is_url(path) or self.job.as_stored:
            return functools.partial(self._read, path, source["size"])
        return str(path)

    def _read(self, path: str, size: int) -> ImageLike:
        if not is_url(path):
            return images.as_stored(path)
        if size == NOT_THERE:
            raise CamrtError("there is no such file")
        filesystem, inside = open_url(path)
        with filesystem.open_input_stream(inside) as stream:
            return self._decodable(stream.read())

    def _decodable(self, content: bytes | None) -> ImageLike:
        if content is None:
            raise CamrtError("found null, expected the bytes of an image")
        return images.as_stored(content) if self.job.as_stored else content

    # ------------------------------------------------------------------------------------------------- model and folder

    @property
    def _cores(self) -> int:
        return max(1, self.job.engine.get("threads") or os.cpu_count() or 1)

    def _loaded(self) -> Explainer:
        """Load the explainer, once."""
        if self._explainer is None:
            from camrt.explainer import Explainer
            from camrt.images import MAX_PIXELS

            job = self.job
            is_drawn = job.overlays or job.style.boxes is not None
            self._explainer = Explainer(
                job.graph,
                **job.engine,
                streams=min(self._cores, _MOST_STREAMS),
                max_side=job.max_side if is_drawn else None,
                max_pixels=job.max_pixels or MAX_PIXELS,
            )
        return self._explainer

    def _settings(self, explainer: Explainer) -> dict[str, Any]:
        """Return the metadata of a shard."""
        import onnxruntime

        from converters import __version__

        labels = explainer.labels
        return {
            "format": shards.FORMAT,
            "job": self.job.settings,
            "labels": None if labels is None else list(labels),
            "heatmap": "float16, little-endian, (top, side, side), each map divided by its peak",
            "provider": explainer.provider,
            "precision": explainer.precision,
            "versions": {"camrt": __version__, "onnxruntime": onnxruntime.__version__, "numpy": np.__version__},
        }

    def _check_folder(self) -> None:
        """Check that this machine sees the folder of the results, and that no other run has begun in it."""
        found = token_of(self.job.folder)
        if found == self.job.token:
            return
        if found is None:
            raise CamrtError(
                f"{os.uname().nodename} does not see this folder's file {TOKEN}, expected a folder that all machines "
                "share. Name one with --out",
                file=str(self.job.folder),
            )
        raise CamrtError("another run has begun in this folder; this one ends", file=str(self.job.folder))


def _summary() -> pa.Schema:
    import pyarrow as pa

    text, count = pa.string(), pa.int64()
    return pa.schema(
        {"name": text, "rows": count, "failed": count, "failures": text, "died": pa.bool_(), "fatal": text}
        | {"seconds": pa.float64()}
    )


class _Tables:
    """The Parquet files that images are in, read a few rows at a time. Rows are asked for in rising order."""

    def __init__(self) -> None:
        self._place = ("", "")
        self._batches: Iterator[tuple[int, pa.Array]] = iter(())
        self._first = 0
        self._values: pa.Array | None = None

    def bytes_of(self, file: str, column: str, row: int) -> bytes | None:
        """Return the bytes in a row; None for null.

        Raises:
            OSError: The file cannot be read.
        """
        if (file, column) != self._place or row < self._first:
            self._place, self._batches = (file, column), _batches(file, column, row)
            self._first, self._values = 0, None
        while self._values is None or row >= self._first + len(self._values):
            self._first, self._values = next(self._batches)
        value: bytes | None = self._values[row - self._first].as_py()
        return value


def _batches(file: str, column: str, row: int) -> Iterator[tuple[int, pa.Array]]:
    """Read a column from the row group of a row on: the number of the first row, and values."""
    import pyarrow.compute as pc
    from pyarrow import parquet

    outer, _, inner = column.partition(".")
    filesystem, path = open_url(file) if is_url(file) else (None, file)
    with parquet.ParquetFile(path, filesystem=filesystem) as opened:
        first, groups = 0, list(range(opened.num_row_groups))
        while first + (count := opened.metadata.row_group(groups[0]).num_rows) <= row:
            first += count
            groups.pop(0)
        for batch in opened.iter_batches(_BYTES_ROWS, row_groups=groups, columns=[column]):
            values = batch.column(outer)
            yield first, pc.struct_field(values, inner) if inner else values
            first += len(batch)
