#!/usr/bin/env python3
"""The explainer graphs of two checkouts side by side: does a change make them slower?

usage: python benchmarks/versions.py CHECKOUT [--network googlenet] [--runs 15] [--threads 2]

Each checkout builds its graphs of a network with seeded weights, in a process of its own. This process then runs them
in turns, batch 1, and prints milliseconds and the ratio of this checkout to the other: of the fastest runs and of the
medians. The last column is the largest difference of the heatmaps, relative to the largest value.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent.parent
GRAPHS = {"cam": 1, "gradcam": 1, "gradcam of 5 classes": 5, "guided-backprop": 1}
BUILD = """
import sys
from pathlib import Path
root, folder, network = sys.argv[1:]
sys.path.insert(0, root)
import onnx
import converters
from benchmarks.explain import seeded_net
from camrt.graph import explain_graph
from camrt.preprocess import Preprocess
folder = Path(folder)
folder.mkdir()
model = converters.convert(seeded_net(network, folder))
for index, (name, top) in enumerate(%r.items()):
    method = name.split()[0]
    if method != "cam" or network.endswith("CAM") or network == "googlenet":
        graph = explain_graph(model, method, "center", top, preprocess=Preprocess(224, 224, (104.0, 117.0, 123.0)))
        onnx.save(graph, folder / f"{index}.onnx")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--network", default="googlenet")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / "this", Path(name) / "other"]
        for root, folder in zip((HERE, given.checkout.resolve()), folders, strict=True):
            subprocess.run([sys.executable, "-c", BUILD % GRAPHS, root, folder, given.network], check=True)
        print(f"{'graph':24}{'this, ms':>10}{'other, ms':>10}{'fastest':>9}{'median':>9}{'maps differ':>13}")
        for index, graph in enumerate(GRAPHS):
            if (folders[0] / f"{index}.onnx").exists():
                print(row(graph, [folder / f"{index}.onnx" for folder in folders], given.runs, given.threads))


def row(graph: str, files: list[Path], runs: int, threads: int) -> str:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    sessions = [onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]) for file in files]
    image = np.random.default_rng(1).integers(0, 256, (1, 224, 224, 3), np.uint8)
    maps = [np.asarray(session.run(["heatmaps"], {"image": image})[0]) for session in sessions]  # warms up, too
    seconds: list[list[float]] = [[], []]
    for _ in range(runs):
        for session, taken in zip(sessions, seconds, strict=True):
            began = time.perf_counter()
            session.run(["heatmaps"], {"image": image})
            taken.append(time.perf_counter() - began)
    fastest, median = ([measure(taken) * 1e3 for taken in seconds] for measure in (min, statistics.median))
    difference = float(np.abs(maps[0] - maps[1]).max() / np.abs(maps[1]).max())
    return (
        f"{graph:24}{fastest[0]:10.1f}{fastest[1]:10.1f}{fastest[0] / fastest[1]:9.2f}{median[0] / median[1]:9.2f}"
        f"{difference:13.1e}"
    )


if __name__ == "__main__":
    main()
