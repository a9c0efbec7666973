"""Hand the images of a run to workers on Ray, and go on where an earlier run was stopped."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camrt import results
from camrt.batch import Progress
from camrt.cluster import shards
from camrt.cluster.job import ATTEMPTS, GRAPH, TOKEN, Job
from camrt.cluster.shards import IDENTITY, Shards
from camrt.cluster.worker import Worker
from camrt.errors import CamrtError

if TYPE_CHECKING:
    import pyarrow as pa

SHARD_SIZE = 512  # images
LOCK = ".camrt-lock"
DIED = "the process that explained it died, with this image alone: out of memory, or a fault in a decoder"
_BUSY = "another camrt batch writes into this folder. Wait for it, or name another one with --out"
_MOST_NAMED = 20
_AT_ONCE = 2  # shards in a worker: one is written while the next one is explained
_SIZES = (16, 1)  # images of the shards in which those are computed again whose worker died
_OBJECT_STORE = 1 << 27  # bytes; only lists of images and counts pass through it
# Ray reports usage statistics and looks for clouds and dashboards unless it is told not to. A worker that cannot be
# placed, and constructor arguments in the object store, are told by lines of its C++ code alone.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}
# Of the workers. glibc gives each thread a heap of its own, and each keeps the maps that were once in it.
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "2"}


@dataclass(frozen=True)
class Resources:
    """Where the workers run.

    Attributes:
        address: The address of a cluster, as for ``ray.init``; None for this machine.
        actors: The least and the largest number of workers.
        gpus: Of each worker.
        cpus: Of each worker; None for an equal share of this machine's, or 1 on a cluster.
    """

    address: str | None = None
    actors: tuple[int, int] = (1, 1)
    gpus: float = 0
    cpus: int | None = None

    @property
    def cores(self) -> int:
        """Return the processors of each worker."""
        if self.cpus is not None:
            return self.cpus
        return 1 if self.address else max(1, available_cores() // self.actors[1])


@dataclass
class Outcome:
    """What a run did.

    Attributes:
        total: The number of images that it was about.
        skipped: The number of images that were done before.
        explained: The number of rows that were written, those with errors among them.
        failed: The number of rows with an error, of this run and of earlier ones.
        failures: The images of some of them, and the reasons.
        seconds: The time from the first task to the last.
    """

    total: int = 0
    skipped: int = 0
    explained: int = 0
    failed: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0

    def count(self, rows: int, failed: int, failures: Sequence[tuple[str, str]]) -> None:
        """Add a shard."""
        self.explained += rows
        self.failed += failed
        self.failures += failures[: max(0, _MOST_NAMED - len(self.failures))]


def available_cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    job: Job,
    graph: bytes | Path,
    images: pa.Table,
    resources: Resources,
    outcome: Outcome,
    *,
    shard_size: int = SHARD_SIZE,
    retry_errors: bool = False,
    progress: Progress = lambda total: contextlib.nullcontext(lambda count: None),
) -> None:
    """Explain the images that have no row yet.

    Whatever is killed, a worker, a machine or this process: each image has one row in the end, or the same command
    continues. A shard whose worker died is computed again; if that does not help, its images are explained one by one,
    and the one that the worker dies of gets a row with that error.

    Args:
        job: What is computed. Its folder is created if it does not exist.
        graph: The explainer graph, as `camrt.cluster.job.graph_of` returns it.
        images: A table of `camrt.cluster.inputs`.
        resources: Where the workers run.
        outcome: What is counted as the run goes on.
        shard_size: The number of images in a file.
        retry_errors: Whether images are explained again whose row has an error.
        progress: Called with the number of images; the block's value is called with how many more are done.

    Raises:
        CamrtError: The folder holds results of other settings, another run writes to it, or it cannot be written to;
            the model cannot be loaded; Ray cannot be reached or has no room for a worker.
    """
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CamrtError(f"cannot be written to: {error.strerror or error}", file=str(job.folder)) from error
    lock = results.lock(job.folder / LOCK, _BUSY)
    try:
        job = replace(job, token=secrets.token_hex(8))
        done = _check_settings(job)
        # From here on, workers of an earlier run that are still alive can no longer add to the folder.
        results.write(job.folder / TOKEN, json.dumps(job.token).encode())
        _remove_drafts(job.folder)
        job = _with_graph(job, graph)
        left = _left(done, images, outcome, retry_errors=retry_errors)
        with progress(outcome.total) as advance:
            advance(outcome.skipped)
            if len(left):
                _explain(job, left, resources, outcome, shard_size, advance)
    finally:
        _remove_drafts(job.folder)
        lock.release()


def _remove_drafts(folder: Path) -> None:
    """Remove what workers that died have left. The caller holds the lock: no other worker writes a file of its own."""
    shutil.rmtree(folder / ATTEMPTS, ignore_errors=True)
    for draft in folder.glob(f".{shards.PATTERN}.*.part"):
        draft.unlink(missing_ok=True)


# -------------------------------------------------------------------------------------------------- what is left to do


def _check_settings(job: Job) -> Shards:
    done = Shards.of(job.folder)
    if done.settings is None:
        return done
    before = done.settings["job"]
    wanted = json.loads(json.dumps(job.settings))
    differing = [name for name in wanted if before.get(name) != wanted[name]]
    if differing:
        name = next((each for each in differing if each != "sha256"), "sha256")
        raise CamrtError(
            f"holds results with {name} {before.get(name)!r}, expected {wanted[name]!r}. Name another folder with "
            "--out, or repeat the options of the earlier run",
            file=str(job.folder),
        )
    return done


def _with_graph(job: Job, graph: bytes | Path) -> Job:
    if isinstance(graph, Path):
        return replace(job, graph=graph)
    file = job.folder / GRAPH
    if not file.exists() or file.read_bytes() != graph:
        results.write(file, graph)
    return replace(job, graph=file)


def _left(done: Shards, images: pa.Table, outcome: Outcome, *, retry_errors: bool) -> pa.Table:
    """Return the images without a row, and remove rows that are out of date."""
    import pyarrow as pa
    import pyarrow.compute as pc

    outcome.total = len(images)
    if not done.files:
        return images
    columns = images.column_names
    before = done.table([*IDENTITY, "error"])
    numbered = images.append_column("position", pa.array(range(len(images)), pa.int64()))
    old = before.rename_columns([name if name in ("path", "shard", "error") else f"{name}_before" for name in
                                 before.column_names])  # fmt: skip
    counts = before.group_by("path").aggregate([("path", "count")])
    if len(twice := counts.filter(pc.field("path_count") > 1)):
        raise CamrtError(
            f"holds {len(twice):,} images in several rows, such as {twice['path'][0].as_py()!r}, expected one each. "
            f"Remove the {shards.PATTERN} that another program has put there",
            file=str(done.folder),
        )
    joined = numbered.join(old, "path", join_type="left outer").sort_by("position")
    same = _all([_same(joined[name], joined[f"{name}_before"]) for name in IDENTITY if name != "path"])
    failed = pc.is_valid(joined["error"])
    fresh = pc.and_(pc.is_valid(joined["shard"]), same)
    if retry_errors:
        fresh = pc.and_(fresh, pc.invert(failed))
    stale = joined.filter(pc.and_(pc.is_valid(joined["shard"]), pc.invert(fresh)))
    removed: dict[int, set[str]] = {}
    for shard, path in zip(stale["shard"].to_pylist(), stale["path"].to_pylist(), strict=True):
        removed.setdefault(shard, set()).add(path)
    done.without(removed)
    outcome.skipped = pc.sum(fresh).as_py() or 0
    broken = joined.filter(pc.and_(fresh, failed))
    named = broken.slice(0, _MOST_NAMED)
    outcome.count(0, len(broken), list(zip(named["path"].to_pylist(), named["error"].to_pylist(), strict=True)))
    return joined.filter(pc.invert(fresh)).select(columns)


def _same(one: pa.ChunkedArray, other: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return whether values are equal; two nulls are."""
    import pyarrow.compute as pc

    both_null = pc.and_(pc.is_null(one), pc.is_null(other))
    return pc.or_(both_null, pc.fill_null(pc.equal(one, other), False))


def _all(conditions: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    import pyarrow.compute as pc

    found = conditions[0]
    for condition in conditions[1:]:
        found = pc.and_(found, condition)
    return found


# ----------------------------------------------------------------------------------------------------------------- Ray


def _explain(
    job: Job, images: pa.Table, resources: Resources, outcome: Outcome, shard_size: int, advance: Callable[[int], Any]
) -> None:
    """Explain images: in shards, and then in ever smaller ones those whose worker died again and again."""
    job = replace(job, engine={**job.engine, "threads": resources.cores})
    with _ray(resources):
        began = time.perf_counter()
        for size in (shard_size, *(each for each in _SIZES if each < shard_size)):
            tasks = {shards.name_of(part): part for part in _parts(images, size)}
            for summary in _summaries(job, tasks, resources, at_once=_AT_ONCE if size > 1 else 1):
                if summary["fatal"] is not None:
                    raise CamrtError(summary["fatal"])
                if summary["died"]:
                    continue
                del tasks[summary["name"]]
                outcome.count(summary["rows"], summary["failed"], [tuple(x) for x in json.loads(summary["failures"])])
                outcome.seconds = time.perf_counter() - began
                advance(summary["rows"])
            if not tasks:
                return
            images = _concatenated(tasks.values())
        for name, part in tasks.items():
            _write_deaths(job, name, part)
            outcome.count(len(part), len(part), [(path, DIED) for path in part["path"].to_pylist()])
            advance(len(part))


def _parts(images: pa.Table, size: int) -> Iterator[pa.Table]:
    for start in range(0, len(images), size):
        yield images.slice(start, size)


def _concatenated(parts: Any) -> pa.Table:
    import pyarrow as pa

    return pa.concat_tables(list(parts))


def _summaries(job: Job, tasks: Mapping[str, pa.Table], resources: Resources, at_once: int) -> Iterator[dict[str, Any]]:
    """Compute shards on Ray, and yield what the workers say of each. Ray repeats what a dead worker was given.

    A shard of one image is computed alone: where the worker dies, it is by that image.
    """
    import pyarrow as pa
    import ray.data
    from ray.exceptions import RayError

    blocks = [pa.table({"name": [name], "images": [_serialized(part)]}) for name, part in tasks.items()]
    least, most = resources.actors
    most = max(1, min(most, len(blocks)))
    mapped = ray.data.from_arrow(blocks).map_batches(
        Worker,
        fn_constructor_args=(job,),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            min_size=min(least, most),
            max_size=most,
            max_tasks_in_flight_per_actor=at_once + 1,
            max_concurrent_calls_per_actor=at_once,
            enable_true_multi_threading=at_once > 1,
        ),
        num_cpus=resources.cores,
        num_gpus=resources.gpus,
        runtime_env={"env_vars": _ENVIRONMENT},
    )
    try:
        yield from mapped.iter_rows()
    except RayError as error:
        raise CamrtError(f"Ray failed: {str(error).strip().splitlines()[-1]}") from error


def _serialized(part: pa.Table) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, part.schema) as writer:
        writer.write_table(part)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _write_deaths(job: Job, name: str, part: pa.Table) -> None:
    """Write a shard of images that a worker died of."""
    from converters.encoding import replacing

    side = job.map_side or int(job.stated["size"])
    settings = {"format": shards.FORMAT, "job": job.settings, "labels": None}
    try:
        with (
            replacing(job.folder / name) as stream,
            shards.Writer(stream, (int(job.stated["top"]), side, side), settings) as writer,
        ):
            for source in part.to_pylist():
                writer.add({**{column: source[column] for column in IDENTITY}, "error": DIED})
    except OSError as error:
        raise CamrtError(f"cannot be written to: {error.strerror or error}", file=str(job.folder)) from error


@contextlib.contextmanager
def _ray(resources: Resources) -> Iterator[None]:
    """Start Ray here, or connect to a cluster; leave it as it was found."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.data

    is_ours = not ray.is_initialized()
    if is_ours:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if resources.address is None:
            options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
            options["num_cpus"] = max(available_cores(), resources.cores * resources.actors[0])
        try:
            with _silent():
                ray.init(resources.address or "local", **options)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            where = f"the cluster at {resources.address}" if resources.address else "Ray on this machine"
            raise CamrtError(f"{where} cannot be reached or started ({str(error).strip()[:300]})") from error
    try:
        _check_room(resources)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        yield
    finally:
        if is_ours:
            ray.shutdown()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Discard what the C++ code of Ray writes to stderr as it starts; what goes wrong is an exception."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _check_room(resources: Resources) -> None:
    """Check that a machine has what a worker needs: Ray would wait for it forever."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("CPU", 0) >= resources.cores and node.get("GPU", 0) >= resources.gpus for node in nodes):
        return
    found = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
    raise CamrtError(
        f"found machines of {found}, expected one with {resources.cores} CPUs and {resources.gpus:g} GPUs for a "
        "worker. Ask for less: --cpus-per-actor, --gpus-per-actor"
    )
