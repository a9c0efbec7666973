#!/usr/bin/env python3
"""Time training steps of Caffe's networks in camrt against the same networks in plain PyTorch, and the feed from LMDB.

usage: python benchmarks/train.py [--steps 10] [--rounds 7] [--threads 1] [--json]

A step is forward, backward and update of a batch that is in memory: lenetCAM with 64 canvases of 100 x 100, and BVLC's
cifar10_quick with 100 images of 32 x 32, with random images. The plain network is an `nn.Sequential` of the same layers
with `torch.optim.SGD` and the same weight decay and momentum. Both alternate; figures are the processor time of the
fastest round, which other work on the machine disturbs least, and the ratio of the two.

The feed is what camrt loads without a network: images of 32 x 32 (and of 256 x 256, cropped to 227) from an LMDB that
is written first, with random crops, mirroring and a mean. It needs the package lmdb.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import torch
from torch import nn

from camrt.train import Solver, network
from camrt.train.data.loading import BatchLoader, data_loader_spec
from converters import read_net
from converters.reader import parse_prototxt
from converters.schema.caffe_pb2 import Datum, SolverParameter

RATE, MOMENTUM, DECAY = 0.001, 0.9, 0.004
CIFAR10_QUICK = """
name: "CIFAR10_quick"
input: "data" input_shape { dim: 100 dim: 3 dim: 32 dim: 32 }
input: "label" input_shape { dim: 100 }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param { num_output: 32 pad: 2 kernel_size: 5 } }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "relu1" type: "ReLU" bottom: "pool1" top: "pool1" }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2" convolution_param { num_output: 32 pad: 2 kernel_size: 5 } }
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer { name: "pool2" type: "Pooling" bottom: "conv2" top: "pool2" pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
layer { name: "conv3" type: "Convolution" bottom: "pool2" top: "conv3" convolution_param { num_output: 64 pad: 2 kernel_size: 5 } }
layer { name: "relu3" type: "ReLU" bottom: "conv3" top: "conv3" }
layer { name: "pool3" type: "Pooling" bottom: "conv3" top: "pool3" pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
layer { name: "ip1" type: "InnerProduct" bottom: "pool3" top: "ip1" inner_product_param { num_output: 64 } }
layer { name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2" inner_product_param { num_output: 10 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" }
"""  # noqa: E501
FEED = """
layer {{ name: "data" type: "Data" top: "data" top: "label"
        transform_param {{ crop_size: {crop} mirror: true mean_value: 104 mean_value: 117 mean_value: 123 }}
        data_param {{ source: "{source}" batch_size: {batch} backend: LMDB }} }}
layer {{ name: "loss" type: "Silence" bottom: "data" bottom: "label" }}
"""


def lenet_cam() -> nn.Module:
    """lenetCAM in plain PyTorch."""

    def block(channels: int, outputs: int, kernel: int) -> list[nn.Module]:
        conv = nn.Conv2d(channels, outputs, kernel, padding=kernel // 2, bias=False)
        return [conv, nn.BatchNorm2d(outputs, 1e-5), nn.ReLU(inplace=True)]

    return nn.Sequential(
        nn.Conv2d(3, 16, 6, 2, 2, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        *block(16, 64, 3),
        *block(64, 64, 1),
        *block(64, 64, 3),
        nn.AvgPool2d(3, 1, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def cifar10_quick() -> nn.Module:
    """BVLC's cifar10_quick in plain PyTorch."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 32, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 64),
        nn.Linear(64, 10),
    )


def plain_step(module: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)

    def step() -> None:
        loss = nn.functional.cross_entropy(module(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def camrt_step(net: Any, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    made = network(net, input_shapes={"data": tuple(images.shape), "label": tuple(labels.shape)}, seed=1)
    param = SolverParameter(type="SGD", base_lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, lr_policy="fixed")
    solver = Solver(param, made)

    def step() -> None:
        made.loss(made({"data": images, "label": labels})).backward()
        solver.update()

    return step


def fastest(steps: list[Callable[[], None]], count: int, rounds: int) -> list[float]:
    """Return the processor time of a step in seconds, for each contender: the fastest of the alternating rounds."""
    best = [float("inf")] * len(steps)
    for step in steps:
        step()
    for _ in range(rounds):
        for index, step in enumerate(steps):
            began = time.process_time()
            for _ in range(count):
                step()
            best[index] = min(best[index], (time.process_time() - began) / count)
    return best


def compare(count: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the times of both networks."""
    lenet = read_net(REPOSITORY / "models" / "lenetCAM" / "train_val.prototxt", phase="TRAIN", training=True)
    cifar = read_net(parse_prototxt(CIFAR10_QUICK, "cifar10_quick"), phase="TRAIN", training=True)
    generator = torch.Generator().manual_seed(0)
    for name, net, module, batch, side in (
        ("lenetCAM", lenet, lenet_cam(), 64, 100),
        ("cifar10_quick", cifar, cifar10_quick(), 100, 32),
    ):
        images = torch.rand((batch, 3, side, side), generator=generator) * 255
        labels = torch.randint(0, 10, (batch,), generator=generator)
        times = fastest([camrt_step(net, images, labels), plain_step(module, images, labels)], count, rounds)
        yield {"network": name, "camrt_ms": 1e3 * times[0], "pytorch_ms": 1e3 * times[1], "ratio": times[0] / times[1]}


def feed(side: int, crop: int, count: int, batch: int, rounds: int) -> dict[str, Any]:
    """Return the images that camrt loads in a second of processor time from an LMDB, without a network."""
    import lmdb

    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        with lmdb.open(f"{folder}/db", map_size=1 << 30) as database, database.begin(write=True) as transaction:
            for number in range(count):
                pixels = generator.integers(0, 256, (3, side, side), np.uint8)
                datum = Datum(channels=3, height=side, width=side, data=pixels.tobytes(), label=number % 10)
                transaction.put(f"{number:08}".encode(), datum.SerializeToString())
        text = FEED.format(source=f"{folder}/db", crop=crop, batch=batch)
        net = read_net(parse_prototxt(text, "feed"), phase="TRAIN", training=True)
        spec = data_loader_spec(net, None, seed=1)
        best = float("inf")
        for _ in range(rounds):
            loader = BatchLoader(spec, range(0, count, batch), workers=0, device=torch.device("cpu"))
            began = time.process_time()
            for _ in loader:
                pass
            best = min(best, time.process_time() - began)
            loader.close()
    return {"feed": f"LMDB, {side} x {side} cropped to {crop}", "images_per_second": count / best}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time training steps and the feed from LMDB.")
    parser.add_argument("--steps", type=int, default=10, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each contender")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps = list(compare(options.steps, options.rounds))
    has_lmdb = importlib.util.find_spec("lmdb") is not None
    feeds = [feed(32, 28, 5000, 100, 3), feed(256, 227, 512, 64, 3)] if has_lmdb else []
    if options.json:
        print(json.dumps({"steps": steps, "feeds": feeds}))
        return
    table = Table(title=f"Processor time of a training step, {options.threads} thread(s)")
    for column in ("network", "camrt", "PyTorch", "ratio"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for row in steps:
        times = (f"{row['camrt_ms']:.1f} ms", f"{row['pytorch_ms']:.1f} ms", f"{row['ratio']:.2f}")
        table.add_row(row["network"], *times)
    Console().print(table)
    for row in feeds:
        print(f"{row['feed']}: {row['images_per_second']:,.0f} images a second")
    if not feeds:
        print("the feed was not measured: the package lmdb is not installed")


if __name__ == "__main__":
    main()
