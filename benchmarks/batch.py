#!/usr/bin/env python3
"""`camrt batch` on this machine beside a loop over `Explainer.map`; and an estimate for a cluster of GPUs.

usage: python benchmarks/batch.py [--images 2000] [--model lenetCAM] [--method cam] [--runs 1] [--map-side N]
       python benchmarks/batch.py --estimate [--gpus 16] [--cores 12] [--gpu-rate 100 500 2000] [--map-side N]

Seconds and images per second for small images (JPEG, 160 x 120 pixels), each contender in a process of its own, in
turns:

* map: a loop over `Explainer.map` that discards the results;
* streams: the same with a run for each processor, as camrt batch does it (streams=N);
* batch: `camrt batch` with one worker, which writes Parquet files.

"explaining" is the time from the first image to the last, with the model's loading in all cases; "process" is the time
of the whole process, with Python's and Ray's start. "Later" is the time of the images after the first quarter: without
any start. "CPU ms" is the processor time of all processes for each of these images (on Linux), which depends less on
other work on the machine. The memory (resident, MB) is that of the loop, and of the driver and the worker of camrt
batch, after a quarter, half and three quarters of the images, and at the end.

--estimate measures on one core of this machine what is done there for an image of 500 x 375 pixels: decoding and
resizing it, and writing its row. It prints what workers on GPUs would do of which each computes --gpu-rate images per
second and has --cores cores. No GPU is used: it is an estimate, and the rate of a GPU is its assumption.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from camrt import images, render
from camrt.cluster import shards

DISTINCT = 64  # images; the others are links to them
QUARTERS = ("1/4", "1/2", "3/4", "end")
_LOOP = """
import sys, time
from pathlib import Path
import camrt
folder, model, method, preprocess, streams = sys.argv[1:]
paths = sorted(Path(folder).iterdir())
began = time.perf_counter()
explainer = camrt.Explainer(
    model, method or None, protocol="center", preprocess=preprocess or None, streams=int(streams)
)
for number, found in enumerate(explainer.map(paths), 1):
    if number * 4 % len(paths) < 4:
        print(f"progress {number / len(paths)}", flush=True)
print(f"seconds {time.perf_counter() - began}", flush=True)
"""


def photograph(height: int, width: int, seed: int) -> np.ndarray:
    """An image with structures of many sizes, which compresses like a photograph."""
    rng = np.random.default_rng(seed)
    found = np.zeros((height, width, 3))
    for cells in (4, 16, 64):
        found += images.resize(rng.normal(0, 60 / cells**0.5, (cells, cells, 3)), (height, width))
    return np.clip(found * 2 + 128, 0, 255).astype(np.uint8)


def write_images(folder: Path, count: int) -> None:
    contents = [render.jpeg(photograph(120, 160, seed)) for seed in range(min(count, DISTINCT))]
    for number in range(count):
        file = folder / f"{number:08d}.jpg"
        if number < DISTINCT:
            file.write_bytes(contents[number])
        else:
            os.link(folder / f"{number % DISTINCT:08d}.jpg", file)


# -------------------------------------------------------------------------------------------------------------- memory


def resident(pid: int) -> int:
    """The resident memory of a process in MB."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 10**6
    return 0


def processes_of(session: int) -> Iterator[int]:
    """The processes of a session."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if entry.name.isdecimal() and os.getsid(int(entry.name)) == session:
                yield int(entry.name)


def is_worker(pid: int) -> bool:
    """Whether a process is an actor of Ray Data's."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::MapWorker")
    return False


def processor_seconds(pid: int) -> float:
    """The processor time that a process has taken."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


@dataclass
class Progress:
    """What is seen of a contender when a quarter, half, three quarters and all of its images are done."""

    memory: dict[str, list[int]] = field(default_factory=dict)  # MB
    times: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)  # seconds

    def note(self, processes: dict[str, list[int]], measured: list[int]) -> None:
        """Look at processes: the memory of each kind, and the processor time of all that are measured."""
        self.times.append(time.perf_counter())
        self.processor.append(sum(map(processor_seconds, measured)))
        for name, pids in processes.items():
            self.memory.setdefault(name, []).append(sum(map(resident, pids)))

    def taken(self, images: int) -> dict[str, Any]:
        """Seconds after the first quarter, and milliseconds of the processors per image."""
        later = self.times[-1] - self.times[0]
        processor = 1000 * (self.processor[-1] - self.processor[0]) / (images * 3 / 4)
        return {"later": later, "CPU ms": processor, "memory": self.memory}


# ---------------------------------------------------------------------------------------------------------- contenders


def run_loop(folder: Path, arguments: argparse.Namespace, streams: int) -> dict[str, Any]:
    given = [str(folder), arguments.model, arguments.method, arguments.preprocess, str(streams)]
    command = [sys.executable, "-c", _LOOP, *given]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdout is not None
    progress, seconds = Progress(), 0.0
    for line in process.stdout:
        word, value = line.split()
        if word == "progress":
            progress.note({"loop": [process.pid]}, [process.pid])
        else:
            seconds = float(value)
    if process.wait():
        sys.exit("Explainer.map failed")
    return {"explaining": seconds, "process": time.perf_counter() - began, **progress.taken(arguments.images)}


def run_batch(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="camrt-batch-") as out:
        command = [sys.executable, "-m", "camrt", "batch", str(folder), "--model", arguments.model, "--out", out]
        command += ["--protocol", "center", "--boxes", "none", "--json", "--shard-size", str(arguments.shard_size)]
        command += ["--method", arguments.method] if arguments.method else []
        command += ["--preprocess", arguments.preprocess] if arguments.preprocess else []
        command += ["--map-side", str(arguments.map_side)] if arguments.map_side else []
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, start_new_session=True
        )
        progress = Progress()
        over = threading.Event()

        def watch() -> None:
            shard_count = -(-arguments.images // arguments.shard_size)
            while not over.wait(0.02) and len(progress.times) < len(QUARTERS):
                done = sum(1 for _ in Path(out).glob("shard-*"))
                if done * 4 >= shard_count * (len(progress.times) + 1):
                    ours = list(processes_of(process.pid))
                    progress.note({"driver": [process.pid], "worker": list(filter(is_worker, ours))}, ours)

        watching = threading.Thread(target=watch)
        watching.start()
        stdout, stderr = process.communicate()
        over.set()
        watching.join()
        if process.returncode:
            sys.exit(stderr)
        size = sum(file.stat().st_size for file in Path(out).glob("shard-*"))
        found = json.loads(stdout)
    taken = {"explaining": found["seconds"], "process": time.perf_counter() - began}
    return {**taken, **progress.taken(arguments.images), "bytes": size}


def compare(arguments: argparse.Namespace, console: Console) -> None:
    taken: dict[str, list[dict[str, Any]]] = {"map": [], "streams": [], "batch": []}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="camrt-images-") as folder:
        write_images(Path(folder), arguments.images)
        for _ in range(arguments.runs):
            taken["map"].append(run_loop(Path(folder), arguments, 1))
            taken["streams"].append(run_loop(Path(folder), arguments, min(8, cores)))
            taken["batch"].append(run_batch(Path(folder), arguments))
    keys = ("explaining", "process", "later", "CPU ms")
    seconds = (f"{key}, s" if key != "CPU ms" else key for key in keys)
    table = Table("", "images/s", *seconds, "memory at " + ", ".join(QUARTERS) + ", MB")
    for name, runs in taken.items():
        found = {key: statistics.median(run[key] for run in runs) for key in keys}
        memory = [f"{process} {', '.join(map(str, seen))}" for process, seen in runs[-1]["memory"].items()]
        rate = f"{arguments.images / found['explaining']:.1f}"
        table.add_row(name, rate, *(f"{found[key]:.1f}" for key in keys), "; ".join(memory))
    console.print(table)
    for key, other in itertools.product(keys, ("map", "streams")):
        pairs = zip(taken["batch"], taken[other], strict=True)
        ratio = statistics.median(ours[key] / loop[key] for ours, loop in pairs)
        console.print(f"{key}: batch / {other} = {ratio:.3f}")
    size = taken["batch"][-1]["bytes"] / arguments.images
    console.print(f"{arguments.images:,} images, {size / 1000:,.1f} kB of Parquet per image")


# ------------------------------------------------------------------------------------------------------------ estimate


def seconds_per_core(side: int) -> dict[str, float]:
    """Seconds of one core for an image of 500 x 375 with five maps, by what is done; and the bytes of its row."""
    content = render.jpeg(photograph(375, 500, 0))
    cells = np.random.default_rng(0).random((5, 14, 14)).astype(np.float32)
    maps = np.stack([images.resize(each, (256, 256)) for each in cells])
    taken: dict[str, list[float]] = {"decoding": [], "packing": [], "writing": []}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        file = Path(folder) / "shard.parquet"
        stream = stack.enter_context(file.open("wb"))
        writer = stack.enter_context(shards.Writer(stream, (5, side, side), {"format": 1, "job": {}}))
        for number in range(100):
            began = time.process_time()
            images.load(content, 256)
            decoded = time.process_time()
            kept = maps if side == 256 else np.stack([images.resize(each, (side, side)) for each in maps])
            peaks, halves = shards.packed(kept)
            packed = time.process_time()
            row = {"path": str(number), "classes": [1] * 5, "peaks": peaks, "heatmap": halves}
            writer.add({**row, "all_scores": np.zeros(1000, np.float32)})
            taken["decoding"].append(decoded - began)
            taken["packing"].append(packed - decoded)
            taken["writing"].append(time.process_time() - packed)
        began = time.process_time()
        stack.close()  # which writes the last rows
        taken["writing"].append(time.process_time() - began)
        size = file.stat().st_size
    return {name: sum(values) / 100 for name, values in taken.items()} | {"bytes": size / 100}


def estimate(arguments: argparse.Namespace, console: Console) -> None:
    seconds_per_core(arguments.map_side or 256)  # the first pass loads libraries
    found = seconds_per_core(arguments.map_side or 256)
    size = found.pop("bytes")
    measured = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in found.items())
    console.print(f"measured on one core, per image: {measured}; a row of {size / 1000:.0f} kB")
    table = Table(
        "a GPU, images/s (assumed)", f"{arguments.gpus} GPUs, images/s", "bound by", "50,000 images", "1 million",
        "100 million", "written, MB/s",
    )  # fmt: skip
    for rate in arguments.gpu_rate:
        # One thread writes; the other cores decode and pack.
        others = (arguments.cores - 1) / (found["decoding"] + found["packing"])
        bounds = {"GPUs": rate, "decoding": others, "writing": 1 / found["writing"]}
        bound = min(bounds, key=lambda name: bounds[name])
        total = bounds[bound] * arguments.gpus * (1 - arguments.overhead)
        times = [duration(count / total) for count in (50_000, 1e6, 1e8)]
        table.add_row(f"{rate:,.0f}", f"{total:,.0f}", bound, *times, f"{total * size / 1e6:,.0f}")
    console.print(table)
    console.print(
        f"an estimate: workers share nothing, {arguments.overhead:.0%} are lost to Ray, and the file system keeps up"
    )


def duration(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--model", default="lenetCAM")
    parser.add_argument("--method", default="")
    parser.add_argument("--preprocess", default="")
    parser.add_argument("--map-side", type=int, default=None)
    parser.add_argument("--shard-size", type=int, default=512)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--estimate", action="store_true")
    parser.add_argument("--gpus", type=int, default=16)
    parser.add_argument("--cores", type=int, default=12)
    parser.add_argument("--gpu-rate", type=float, nargs="+", default=[100, 500, 2000])
    parser.add_argument("--overhead", type=float, default=0.15, help="what Ray costs, as a share")
    arguments = parser.parse_args()
    console = Console(width=150)
    estimate(arguments, console) if arguments.estimate else compare(arguments, console)


if __name__ == "__main__":
    main()
