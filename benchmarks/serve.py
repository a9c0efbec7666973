#!/usr/bin/env python3
"""`camrt serve` beside `Explainer.map`: images a second and latency with many clients at once.

usage: python benchmarks/serve.py [--model MODEL] [--clients 32] [--batch 8] [--seconds 5] [--rounds 2]

By default SqueezeNet of the reference data, where it is there, else lenetCAM, on photographs of 640 x 480. Contenders,
in turns, round after round:

* map: `Explainer.map` with the same batch, in this process: what the server is measured against;
* streams: the same with two runs at once, as the server has them (``Explainer(streams=2)``);
* explain: clients that post a JPEG to ``/explain`` and get JSON, without boxes as `map` finds none;
* infer: clients that post pixels to ``/v2/models/M/infer`` and get scores and classes, in binary;
* heatmaps: the same, and the heatmaps, 1.3 MB an image with five classes of 256 x 256.

The clients share this machine's processors with the server, so that the server's share is less than all of them. On a
machine that does other work, compare the processor time an image: ``CPU ms`` (on Linux).
``--seconds 60`` is the minute of docs/serving.md. The exit status is 1 if a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from benchmarks.photographs import SQUEEZENET, folder_of_photographs
from camrt import Explainer
from camrt.commands.serve import STREAMS
from camrt.loading import LENET

PAUSE = 0.5  # seconds between contenders


@dataclass
class Measured:
    """What a contender did, over all rounds."""

    rates: list[float] = field(default_factory=list)  # images a second, a round each
    latencies: list[float] = field(default_factory=list)  # seconds, of all requests
    failures: list[str] = field(default_factory=list)
    processor: float = 0.0  # seconds of processor time, of all rounds
    images: int = 0


@dataclass(frozen=True)
class Load:
    """What clients send: requests in turn."""

    path: str
    bodies: list[tuple[bytes, dict[str, str]]]


def multipart(image: bytes) -> tuple[bytes, dict[str, str]]:
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="photo.jpg"\r\n\r\n'
    return head + image + b"\r\n--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


def tensor(pixels: np.ndarray, outputs: tuple[str, ...]) -> tuple[bytes, dict[str, str]]:
    described = {"name": "image", "datatype": "UINT8", "shape": [1, *pixels.shape]}
    request = {
        "inputs": [{**described, "parameters": {"binary_data_size": pixels.nbytes}}],
        "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
    }
    header = json.dumps(request).encode()
    return header + pixels.tobytes(), {"Inference-Header-Content-Length": str(len(header))}


@contextmanager
def server(model: str, options: list[str], batch: int, clients: int) -> Iterator[tuple[tuple[str, int], int]]:
    """Run the command on a free port: the place, and the number of the process."""
    command = [
        sys.executable, "-m", "camrt", "serve", "--model", f"m={model}", *options, "--port", "0",
        "--max-batch", str(batch), "--max-queue", str(2 * clients),
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "listening":
                host, _, port = event["url"].removeprefix("http://").rpartition(":")
                break
        else:
            sys.exit("the server did not start")
        # Its log goes on: what is not read would stop it.
        subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        time.sleep(1)
        yield (host, int(port)), process.pid
    finally:
        process.terminate()
        process.wait(60)


def processor_seconds(process: int) -> float:
    """The processor time that a process has taken; not a number where the system does not say it."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def client(
    place: tuple[str, int], load: Load, numbers: Iterator[int], until: float, measured: Measured, done: list[float]
) -> None:
    """Ask again and again, over one connection."""
    reader, writer = await asyncio.open_connection(*place, limit=1 << 20)
    try:
        while time.perf_counter() < until:
            body, headers = load.bodies[next(numbers) % len(load.bodies)]
            lines = [f"POST {load.path} HTTP/1.1", "Host: m", f"Content-Length: {len(body)}"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            began = time.perf_counter()
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.split("content-length:")[1].split("\r\n")[0])
            answer = await reader.readexactly(length)
            now = time.perf_counter()
            if " 200 " in head.split("\r\n")[0]:
                measured.latencies.append(now - began)
                done.append(now)
            else:
                measured.failures.append(answer[:200].decode(errors="replace"))
    except (OSError, asyncio.IncompleteReadError) as error:
        measured.failures.append(repr(error))
    finally:
        writer.close()


async def ask(place: tuple[str, int], load: Load, clients: int, seconds: float, measured: Measured) -> None:
    """Let all clients ask for some seconds."""
    numbers, done = itertools.count(), list[float]()
    began = time.perf_counter()
    until = began + seconds
    await asyncio.gather(*(client(place, load, numbers, until, measured, done) for _ in range(clients)))
    if done:
        measured.rates.append(len(done) / (max(done) - began))


def mapped(explainer: Explainer, images: list[bytes], batch: int, seconds: float, measured: Measured) -> None:
    """Explain with `Explainer.map` for some seconds."""
    began, used = time.perf_counter(), time.process_time()
    until = began + seconds
    endless = itertools.takewhile(lambda _: time.perf_counter() < until, itertools.cycle(images))
    count = sum(1 for _ in explainer.map(endless, batch=batch))
    measured.rates.append(count / (time.perf_counter() - began))
    measured.processor += time.process_time() - used
    measured.images += count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(SQUEEZENET) if SQUEEZENET.is_file() else LENET)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5, help="of each contender in each round")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server ends with this process

    preprocess = None if given.model == LENET else "torchvision"
    explainer = Explainer(given.model, preprocess=preprocess)
    streaming = Explainer(given.model, preprocess=preprocess, streams=min(STREAMS, os.cpu_count() or 1))
    options = [] if given.model == LENET else ["--preprocess", "torchvision"]
    with tempfile.TemporaryDirectory() as folder:
        images = [file.read_bytes() for file in folder_of_photographs(Path(folder), 16)]
    squares = [explainer.prepare(image).loaded.square for image in images]
    few, all_outputs = ("scores", "classes"), ("scores", "classes", "heatmaps")
    loads = {
        "explain": Load("/explain?boxes=none", [multipart(image) for image in images]),
        "infer": Load("/v2/models/m/infer", [tensor(square, few) for square in squares]),
        "heatmaps": Load("/v2/models/m/infer", [tensor(square, all_outputs) for square in squares]),
    }
    found = {name: Measured() for name in ("map", "streams", *loads)}
    with server(given.model, options, given.batch, given.clients) as (place, process):
        for each in (explainer, streaming):
            mapped(each, images, given.batch, 1, Measured())
        for load in loads.values():
            asyncio.run(ask(place, load, given.clients, 0.5, Measured()))
        for _ in range(given.rounds):
            mapped(explainer, images, given.batch, given.seconds, found["map"])
            time.sleep(PAUSE)
            mapped(streaming, images, given.batch, given.seconds, found["streams"])
            for name, load in loads.items():
                time.sleep(PAUSE)
                began, done = processor_seconds(process), len(found[name].latencies)
                asyncio.run(ask(place, load, given.clients, given.seconds, found[name]))
                found[name].processor += processor_seconds(process) - began
                found[name].images += len(found[name].latencies) - done
    report(found, given, explainer)
    if any(measured.failures for measured in found.values()):
        sys.exit(1)


def report(found: dict[str, Measured], given: argparse.Namespace, explainer: Explainer) -> None:
    table = Table("contender", "images/s", "of map", "CPU ms", "p50 ms", "p99 ms", "requests", "failed")
    base = statistics.median(found["map"].rates)
    for name, measured in found.items():
        rate = statistics.median(measured.rates) if measured.rates else 0.0
        ratio = statistics.median(
            [mine / other for mine, other in zip(measured.rates, found["map"].rates, strict=False)] or [0.0]
        )
        cpu = 1000 * measured.processor / max(measured.images, 1)
        times = np.array(measured.latencies or [np.nan]) * 1000
        p50, p99 = np.percentile(times, [50, 99])
        shown = (
            ["", "", ""] if name in ("map", "streams") else [f"{p50:.0f}", f"{p99:.0f}", str(len(measured.latencies))]
        )
        table.add_row(name, f"{rate:.1f}", f"{ratio:.2f}", f"{cpu:.1f}", *shown, str(len(measured.failures)))
        for failure in measured.failures[:3]:
            print(f"{name}: {failure}", file=sys.stderr)
    Console().print(
        f"{explainer}\n{given.clients} clients, batch {given.batch}, {given.rounds} rounds of {given.seconds:g} s, "
        f"{os.cpu_count()} processors, {1000 / base:.1f} ms an image in map"
    )
    Console().print(table)


if __name__ == "__main__":
    main()
