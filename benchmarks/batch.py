#!/usr/bin/env python3
"""`camrt batch` on this machine beside a loop over `Explainer.map`; and an estimate for a cluster of GPUs.

usage: python benchmarks/batch.py [--images 2000] [--model lenetCAM] [--method cam] [--runs 1] [--map-side N]
       python benchmarks/batch.py --estimate [--gpus 16] [--cores 12] [--gpu-rate 100 500 2000] [--map-side N]

Seconds and images per second for small images (JPEG, 160 x 120 pixels), each contender in a process of its own, in
turns:

* map: a loop over `Explainer.map` that discards the results;
* batch: `camrt batch` with one worker, which writes Parquet files.

"explaining" is the time from the first image to the last, with the model's loading in both cases; "process" is the time
of the whole process, with Python's and Ray's start. The memory (resident, MB) is that of the map loop, and of the
driver and the worker of camrt batch, after a quarter, half and three quarters of the images, and at the end.

--estimate measures on one core of this machine what is done there for an image of 500 x 375 pixels: decoding and
resizing it, and writing its row. It prints what workers on GPUs would do of which each computes --gpu-rate images per
second and has --cores cores. No GPU is used: it is an estimate, and the rate of a GPU is its assumption.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

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
folder, model, method, preprocess = sys.argv[1:]
paths = sorted(Path(folder).iterdir())
began = time.perf_counter()
explainer = camrt.Explainer(model, method or None, protocol="center", preprocess=preprocess or None)
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


def workers_of(session: int) -> Iterator[int]:
    """The processes of Ray's actors in a session of processes."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            is_ours = entry.name.isdecimal() and os.getsid(int(entry.name)) == session
            if is_ours and (entry / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                yield int(entry.name)


# ---------------------------------------------------------------------------------------------------------- contenders


def run_loop(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    command = [sys.executable, "-c", _LOOP, str(folder), arguments.model, arguments.method, arguments.preprocess]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdout is not None
    memory, seconds = [], 0.0
    for line in process.stdout:
        word, value = line.split()
        if word == "progress":
            memory.append(resident(process.pid))
        else:
            seconds = float(value)
    if process.wait():
        sys.exit("Explainer.map failed")
    return {"explaining": seconds, "process": time.perf_counter() - began, "map": memory}


def run_batch(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
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
        driver: list[int] = []
        worker: list[int] = []
        over = threading.Event()

        def watch() -> None:
            shard_count = -(-arguments.images // arguments.shard_size)
            while not over.wait(0.02) and len(worker) < len(QUARTERS):
                done = sum(1 for _ in Path(out).glob("shard-*"))
                if done * 4 >= shard_count * (len(worker) + 1):
                    driver.append(resident(process.pid))
                    worker.append(sum(map(resident, workers_of(process.pid))))

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
    return {**taken, "driver": driver, "worker": worker, "bytes": size}


def compare(arguments: argparse.Namespace, console: Console) -> None:
    taken: dict[str, list[dict[str, object]]] = {"map": [], "batch": []}
    with tempfile.TemporaryDirectory(prefix="camrt-images-") as folder:
        write_images(Path(folder), arguments.images)
        for _ in range(arguments.runs):
            taken["map"].append(run_loop(Path(folder), arguments))
            taken["batch"].append(run_batch(Path(folder), arguments))
    table = Table("", "explaining, s", "images/s", "process, s", "memory at " + ", ".join(QUARTERS) + ", MB")
    for name, runs in taken.items():
        explaining, process = (
            statistics.median(float(str(run[key])) for run in runs) for key in ("explaining", "process")
        )
        memory = [
            f"{key} {', '.join(map(str, runs[-1][key]))}" for key in ("map", "driver", "worker") if key in runs[-1]
        ]
        rate = f"{arguments.images / explaining:.1f}"
        table.add_row(name, f"{explaining:.1f}", rate, f"{process:.1f}", "; ".join(memory))
    console.print(table)
    for key in ("explaining", "process"):
        ratios = [float(str(b[key])) / float(str(a[key])) for a, b in zip(taken["map"], taken["batch"], strict=True)]
        console.print(f"{key}: batch / map = {statistics.median(ratios):.3f}")
    size = int(str(taken["batch"][-1]["bytes"])) / arguments.images
    console.print(f"{arguments.images:,} images, {size / 1000:,.1f} kB of Parquet per image")


# ------------------------------------------------------------------------------------------------------------ estimate


def seconds_per_core(side: int) -> dict[str, float]:
    """Seconds of one core for an image of 500 x 375 with five maps, by what is done; and the bytes of its row."""
    content = render.jpeg(photograph(375, 500, 0))
    cells = np.random.default_rng(0).random((5, 14, 14)).astype(np.float32)
    maps = np.stack([images.resize(each, (256, 256)) for each in cells])
    taken: dict[str, list[float]] = {"decoding": [], "packing": [], "writing": []}
    stream = io.BytesIO()
    with contextlib.ExitStack() as stack:
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
    return {name: sum(values) / 100 for name, values in taken.items()} | {"bytes": len(stream.getvalue()) / 100}


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
