#!/usr/bin/env python3
"""Run the example solvers of BVLC Caffe for three iterations each, with made-up data of the layout that they expect.

usage: python benchmarks/bvlc.py CAFFE [--only TEXT] [--threads N]

CAFFE is a checkout of https://github.com/BVLC/caffe. Nothing is written there: its prototxts are copied to a temporary
folder, and beside them come databases, lists, window files and mean images at the paths that the data layers name, of
drawn digits and of noise. Solver and network files are used as they are, except for `max_iter: 3`, `test_iter: 1` for
each test net, and `display: 1`; batch sizes are those of the files. The nets of lenet_auto_solver.prototxt, which the
notebook 01-learning-lenet generates, are written as it generates them.

A row says which data layers were read, the batch sizes of training and of each test net, and the loss of each
iteration. A solver that fails has its error in the row, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from camrt.errors import CamrtError
from camrt.train import read_solver
from camrt.train.clutter import Digits
from camrt.train.data.conversion import write_lmdb, write_mean
from camrt.train.options import TrainingOptions
from camrt.train.run import train
from converters.deploy import DATA_LAYERS
from converters.schema.caffe_pb2 import Datum

ITERATIONS = 3
SOLVERS = 25
_IMAGES = 64  # of a made-up database; larger batches read it again
_AUTO = """
layer {{
  name: "data" type: "Data" top: "data" top: "label"
  transform_param {{ scale: 0.00392156862745 }}
  data_param {{ source: "mnist/mnist_{part}_lmdb" batch_size: {batch} backend: LMDB }}
}}
layer {{
  name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param {{ num_output: 20 kernel_size: 5 weight_filler {{ type: "xavier" }} }}
}}
layer {{
  name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param {{ pool: MAX kernel_size: 2 stride: 2 }}
}}
layer {{
  name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2"
  convolution_param {{ num_output: 50 kernel_size: 5 weight_filler {{ type: "xavier" }} }}
}}
layer {{
  name: "pool2" type: "Pooling" bottom: "conv2" top: "pool2" pooling_param {{ pool: MAX kernel_size: 2 stride: 2 }}
}}
layer {{
  name: "fc1" type: "InnerProduct" bottom: "pool2" top: "fc1"
  inner_product_param {{ num_output: 500 weight_filler {{ type: "xavier" }} }}
}}
layer {{ name: "relu1" type: "ReLU" bottom: "fc1" top: "fc1" }}
layer {{
  name: "score" type: "InnerProduct" bottom: "fc1" top: "score"
  inner_product_param {{ num_output: 10 weight_filler {{ type: "xavier" }} }}
}}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" }}
"""


@dataclass
class Row:
    """What became of a solver."""

    solver: str
    data: str = ""
    batches: str = ""
    losses: list[float] = field(default_factory=list)
    tests: int = 0
    seconds: float = 0.0
    error: str = ""

    @property
    def succeeded(self) -> bool:
        """Whether all iterations ran, with finite losses."""
        return not self.error and len(self.losses) == ITERATIONS and all(map(math.isfinite, self.losses))


# ------------------------------------------------------------------------------------------------------------ the data


def make_data(folder: Path) -> None:
    """Write all that the data layers of BVLC's examples read, at the paths that they name."""
    digits = Digits.drawn(200, seed=1)
    images = digits.images[:, None]
    labels = digits.labels.tolist()
    for part in ("train", "test"):
        database(folder / f"examples/mnist/mnist_{part}_lmdb", images, labels)
        pairs = np.concatenate([images, images[::-1]], axis=1)
        same = [int(one == other) for one, other in zip(labels, labels[::-1], strict=True)]
        leveldb(folder / f"examples/siamese/mnist_siamese_{part}_leveldb", pairs, same)
        database(folder / f"examples/cifar10/cifar10_{part}_lmdb", noise(200, 32), [n % 10 for n in range(200)])
    write_mean(folder / "examples/cifar10/mean.binaryproto", np.full((3, 32, 32), 120, np.float32))
    for part in ("train", "val"):
        database(folder / f"examples/imagenet/ilsvrc12_{part}_lmdb", noise(_IMAGES, 256), [*range(_IMAGES)])
    (folder / "data/ilsvrc12").mkdir(parents=True, exist_ok=True)
    write_mean(folder / "data/ilsvrc12/imagenet_mean.binaryproto", np.full((3, 256, 256), 110, np.float32))
    photos(folder)
    for part, batch in (("train", 64), ("test", 100)):
        (folder / f"examples/mnist/lenet_auto_{part}.prototxt").write_text(_AUTO.format(part=part, batch=batch))


def photos(folder: Path) -> None:
    """Write the image list of finetune_flickr_style and the window files of finetune_pascal_detection."""
    images = folder / "data/flickr_style/images"
    images.mkdir(parents=True)
    paths = []
    for number, image in enumerate(noise(8, 300)):
        paths.append(images / f"{number}.jpg")
        cv2.imwrite(str(paths[-1]), image.transpose(1, 2, 0))
    windows = folder / "examples/finetune_pascal_detection"
    rng = np.random.default_rng(2)
    for part, names in (("train", "trainval"), ("test", "test")):
        lines = [f"{path} {number % 20}\n" for number, path in enumerate(paths)]
        (folder / f"data/flickr_style/{part}.txt").write_text("".join(lines))
        text = []
        for number, path in enumerate(paths):
            text += [f"# {number}", str(path), "3", "300", "300", "20"]
            for each in range(20):
                x, y = rng.integers(0, 200, 2)
                overlap = (0.9, 0.1)[each % 2]
                text.append(f"{1 + each if overlap > 0.5 else 0} {overlap} {x} {y} {x + 80} {y + 90}")
        (windows / f"window_file_2007_{names}.txt").write_text("\n".join(text) + "\n")


def noise(count: int, side: int) -> np.ndarray:
    """Return blurred noise, (N, 3, side, side) uint8."""
    rng = np.random.default_rng(side)
    small = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    return np.stack([cv2.resize(one, (side, side)).transpose(2, 0, 1) for one in small])


def database(path: Path, images: np.ndarray, labels: list[int]) -> None:
    write_lmdb(path, ((f"{number:08d}".encode(), value) for number, value in enumerate(datums(images, labels))))


def leveldb(path: Path, images: np.ndarray, labels: list[int]) -> None:
    import plyvel

    opened = plyvel.DB(str(path), create_if_missing=True)
    for number, value in enumerate(datums(images, labels)):
        opened.put(f"{number:08d}".encode(), value)
    opened.close()


def datums(images: np.ndarray, labels: list[int]) -> Iterator[bytes]:
    for image, label in zip(images, labels, strict=True):
        channels, height, width = image.shape
        yield Datum(
            channels=channels, height=height, width=width, data=image.tobytes(), label=label
        ).SerializeToString()


# ---------------------------------------------------------------------------------------------------------- the solvers


def copied(caffe: Path, folder: Path) -> list[Path]:
    """Copy the prototxts of BVLC's examples and models, shorten the solvers, and make the data.

    Returns:
        The solvers, relative to the folder.
    """
    for top in ("examples", "models"):
        for file in sorted((caffe / top).glob("*/*.prototxt")):
            target = folder / file.relative_to(caffe)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    make_data(folder)
    solvers = sorted(file for file in folder.glob("*/*/*solver*.prototxt"))
    for file in solvers:
        text = re.sub(r"(?m)^(\s*max_iter:).*", rf"\1 {ITERATIONS}", file.read_text())
        text = re.sub(r"(?m)^(\s*test_iter:).*", r"\1 1", text)
        file.write_text(re.sub(r"(?m)^(\s*display:).*", r"\1 1", text))
    return [file.relative_to(folder) for file in solvers]


def run(folder: Path, solver: Path, threads: int | None = None) -> Row:
    """Run a solver in the folder that its paths are relative to."""
    row = Row(str(solver))
    is_auto = solver.name == "lenet_auto_solver.prototxt"  # its notebook runs in examples/
    began = time.process_time()
    try:
        with contextlib.chdir(folder / "examples" if is_auto else folder):
            file = solver.relative_to("examples") if is_auto else solver
            described = read_solver(file)
            nets = [described.train_net(), *described.test_nets()]
            row.data = ", ".join(dict.fromkeys(_kind(layer) for net in nets for layer in net.data))
            row.batches = " / ".join(str(_batch(net)) for net in nets)
            options = TrainingOptions(file, out=Path("out"), restart=True, seed=1, workers=0, threads=threads)
            done = train(options)
            row.tests = sum(bool(outputs) for outputs in done.tests)
            row.error = f"stopped by signal {done.signal}" if done.signal else ""
            records = [json.loads(line) for line in done.log.read_text().splitlines()]
            row.losses = [record["loss"] for record in records if record["phase"] == "train"]
            for leftover in Path().glob("out_*"):
                leftover.unlink()
    except CamrtError as error:
        row.error = str(error)
    row.seconds = time.process_time() - began
    return row


def _kind(layer: object) -> str:
    param = layer.params.data_param  # type: ignore[attr-defined]
    backend = f" ({type(param).DB.Name(param.backend)})" if layer.type == "Data" else ""  # type: ignore[attr-defined]
    return f"{layer.type}{backend}"  # type: ignore[attr-defined]


def _batch(net: object) -> int:
    layer = net.data[0]  # type: ignore[attr-defined]
    return int(getattr(layer.params, DATA_LAYERS[layer.type]).batch_size)


def table(rows: list[Row]) -> str:
    """Return the rows as a table in Markdown."""
    lines = [
        "| solver | data layers | batch sizes: train / test nets | losses of three iterations | CPU seconds |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        losses = ", ".join(f"{loss:.4g}" for loss in row.losses) if not row.error else f"failed: {row.error}"
        lines.append(f"| {row.solver} | {row.data} | {row.batches} | {losses} | {row.seconds:.0f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("caffe", type=Path, help="a checkout of BVLC Caffe")
    parser.add_argument("--only", default="", help="only solvers whose path contains this text")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for solver in copied(arguments.caffe, Path(place)):
            if arguments.only in str(solver):
                rows.append(run(Path(place), solver, arguments.threads))
                print(f"{solver}: {rows[-1].error or rows[-1].losses}", file=sys.stderr, flush=True)
    print(table(rows))
    succeeded = sum(row.succeeded for row in rows)
    print(f"\n{succeeded} of {len(rows)} solvers ran {ITERATIONS} iterations")
    return 0 if rows and succeeded == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
