#!/usr/bin/env python3
"""Class activation maps in the graph, beside the bare network and torch-cam, in fp32 and bf16, in one process run.

usage: python benchmarks/explain.py [NAME...] [--runs 7] [--threads 2]

For each network (by default vgg16CAM and googlenetCAM, seeded weights): seconds per image at batch 1 and 10 of

* bare: the converted network alone in ONNX Runtime, fed with finished crops: the limit;
* explainer: our graph, one centre crop an image, from uint8 pixels to scores, classes and five heatmaps;
* torch-cam: its CAM of the best class on the same network in PyTorch, where torch and torchcam are installed;
* the first two on OpenVINO in fp32 and bf16, where it is installed and the processor computes in bf16, and torch-cam
  under PyTorch's autocast to bf16; with the correlation of the maps of bf16 with those of fp32.

Then the ten-crop and the full protocol, and the correlation of their maps. The contenders take turns, run after run, so
that a machine that drifts does so for all; medians, and ratios run by run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import converters
from camrt import tuning
from camrt.graph import explain_graph
from camrt.preprocess import Preprocess
from camrt.session import Session
from camrt.tuning import Contender, agreement
from converters import zoo
from converters.conversion import weight_shapes
from converters.net import Net, read_net
from converters.reader import parse_prototxt
from converters.writer import write_caffemodel

try:
    import torch
    from torchcam.methods import CAM
except ImportError:
    torch = CAM = None

TOP = 5
PAUSE = 0.3  # seconds; the threads of the contender before wait for work in a loop, and would take a core from the next
Work = Callable[[], object]


def seeded_net(name: str, folder: Path) -> Net:
    """A named network with He-normal weights."""
    network = parse_prototxt(zoo.find(name).prototxt(), f"{name}.prototxt")
    generator = np.random.default_rng(16)
    layers = {
        layer: [
            generator.standard_normal(shape, np.float32)
            * np.float32((2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.05)
            for shape in shapes
        ]
        for layer, shapes in weight_shapes(read_net(network)).items()
    }
    write_caffemodel(folder / "weights.caffemodel", layers)
    return read_net(network, folder / "weights.caffemodel")


def session(model: onnx.ModelProto, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)


def take_turns(contenders: dict[str, Work], runs: int) -> dict[str, list[float]]:
    """The seconds of each, after one run that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in range(runs + 1):
        for name, work in contenders.items():
            time.sleep(PAUSE)
            began = time.perf_counter()
            work()
            if run:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of the ratios run by run."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


# --------------------------------------------------------------------------------------- the same network in PyTorch


def torch_network(net: Net) -> Any:
    """A CAM network as a PyTorch module whose submodules have the layers' names (dots and slashes replaced)."""
    modules = {layer.name: module for layer in net.layers if (module := torch_layer(layer)) is not None}

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, module in modules.items():
                self.add_module(plain(name), module)

        def forward(self, data: Any) -> Any:
            blobs = {net.inputs[0].name: data}
            for layer in net.layers:
                read = [blobs[bottom] for bottom in layer.bottoms]
                if layer.type == "Concat":
                    blobs[layer.tops[0]] = torch.cat(read, 1)
                else:
                    blobs[layer.tops[0]] = getattr(self, plain(layer.name))(*read)
            return blobs[net.outputs[0]]

    return Network().eval()


def plain(name: str) -> str:
    return name.replace("/", "_").replace(".", "_")


def torch_layer(layer: converters.Layer) -> Any:
    """The PyTorch module of a layer of the CAM networks; None for Concat."""
    nn = torch.nn
    if layer.type == "Convolution":
        weight, bias = (torch.from_numpy(np.array(blob)) for blob in layer.blobs)
        param = layer.params.convolution_param
        pad, stride = (list(param.pad) or [0])[0], (list(param.stride) or [1])[0]
        module: Any = nn.Conv2d(
            weight.shape[1] * param.group, weight.shape[0], weight.shape[2], stride, pad, groups=param.group
        )
        module.weight.data, module.bias.data = weight, bias
        return module
    if layer.type == "InnerProduct":
        weight = torch.from_numpy(np.array(layer.blobs[0])).reshape(layer.params.inner_product_param.num_output, -1)
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.weight.data, linear.bias.data = weight, torch.from_numpy(np.array(layer.blobs[1])).reshape(-1)
        return nn.Sequential(nn.Flatten(), linear)
    if layer.type == "Pooling":
        param = layer.params.pooling_param
        kind = nn.MaxPool2d if param.pool == param.MAX else nn.AvgPool2d
        return kind(param.kernel_size, param.stride, param.pad, ceil_mode=True)
    if layer.type == "LRN":
        param = layer.params.lrn_param
        return nn.LocalResponseNorm(param.local_size, param.alpha, param.beta, param.k)
    simple = {"ReLU": nn.ReLU, "Dropout": nn.Dropout, "Softmax": lambda: nn.Softmax(1), "Concat": lambda: None}
    return simple[layer.type]()


def torch_cam(net: Net, features: str, classifier: str, threads: int) -> Callable[..., Work]:
    """What makes the work of a batch: forward pass and the CAM of each image's best class."""
    torch.set_num_threads(threads)
    module = torch_network(net)
    writer = next(layer.name for layer in reversed(net.layers) if layer.tops == (net.tensors[features],))
    extractor = CAM(module, target_layer=plain(writer), fc_layer=f"{plain(classifier)}.1")

    def work_of(batch: Any, *, half: bool = False) -> Work:
        def work() -> object:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                scores = module(batch)
                return extractor(scores.argmax(1).tolist(), scores)

        return work

    return work_of


# --------------------------------------------------------------------------------------------------------- measuring


def measure(name: str, runs: int, threads: int, console: Console) -> None:
    model_facts = zoo.find(name)
    assert model_facts.features
    assert model_facts.classifier
    side = model_facts.preprocessing.crop
    preprocess = Preprocess(256, side, (104.0, 117.0, 123.0))
    with tempfile.TemporaryDirectory() as folder:
        net = seeded_net(name, Path(folder))
        model = converters.convert(net)
        head = {"features": model_facts.features, "classifier": model_facts.classifier, "preprocess": preprocess}
        explainers = {p: explain_graph(model, protocol=p, top=TOP, **head) for p in PROTOCOLS}
        sessions = {protocol: session(explainer, threads) for protocol, explainer in explainers.items()}
        bare = session(model, threads)
        halves = [each for each in ("fp32", "bf16") if not tuning.missing(Contender("openvino", each))]
        engines = {
            f"{title}, OpenVINO {precision}": Session(one, providers="openvino", precision=precision, threads=threads)
            for precision in halves
            for title, one in ((BARE, model), (OURS, explainers["center"]))
        }
        peer = torch_cam(net, model_facts.features, model_facts.classifier, threads) if CAM else None

        generator = np.random.default_rng(0)
        title = f"{name}: seconds an image, median of {runs}, {threads} threads, {bare.get_providers()[0]}"
        table = Table(title=title, min_width=90)
        for column in ("", "batch 1", "batch 10"):
            table.add_column(column, justify="right" if column else "left")
        rows: dict[str, list[list[float]]] = {}
        for batch in (1, 10):
            images = generator.integers(0, 256, (batch, 256, 256, 3), dtype=np.uint8)
            crops = generator.uniform(-120, 130, (batch, 3, side, side)).astype(np.float32)
            contenders: dict[str, Work] = {
                BARE: lambda crops=crops: bare.run(None, {bare.get_inputs()[0].name: crops}),
                OURS: lambda images=images: sessions["center"].run(None, {"image": images}),
            }
            if peer:
                contenders["torch-cam"] = peer(torch.from_numpy(crops))
                if "bf16" in halves:
                    contenders["torch-cam, autocast to bf16"] = peer(torch.from_numpy(crops), half=True)
            for title, engine in engines.items():
                feeds = {name: images if name == "image" else crops for name in engine.inputs}
                contenders[title] = lambda engine=engine, feeds=feeds: engine.run(feeds)
            for contender, seconds in take_turns(contenders, runs).items():
                rows.setdefault(contender, []).append([second / batch for second in seconds])
        for contender, (one, ten) in rows.items():
            table.add_row(contender, f"{statistics.median(one):.3f}", f"{statistics.median(ten):.3f}")
        console.print(table)
        for ours, other in PAIRS:
            if ours in rows and other in rows:
                ratios = [
                    f"{ratio(a, b):.3f}" if other.startswith(BARE) else f"1/{1 / ratio(a, b):.2f}"
                    for a, b in zip(rows[ours], rows[other], strict=True)
                ]
                console.print(
                    f"{ours} against {other}: {ratios[0]} at batch 1, {ratios[1]} at batch 10", highlight=False
                )
        for precision in halves:
            image = {"image": smooth_image()[None]}
            names = list(explainers["center"].graph.output)
            exact = sessions["center"].run(None, image)
            expected = dict(zip([value.name for value in names], exact, strict=True))
            alike = agreement(engines[f"{OURS}, OpenVINO {precision}"].run(image), expected)
            console.print(
                f"OpenVINO {precision}: lowest correlation of a map with ONNX Runtime's {alike.correlation:.5f}, "
                f"{alike.classes:.0%} of the classes",
                highlight=False,
            )
        if not peer:
            console.print("torch-cam: not installed (pip install torch torchcam)")
        protocols(sessions, runs, console)


BARE, OURS = "bare network", "explainer (centre crop)"
PAIRS = (
    (OURS, BARE),
    (OURS, "torch-cam"),
    (f"{OURS}, OpenVINO fp32", BARE),
    (f"{OURS}, OpenVINO bf16", f"{BARE}, OpenVINO bf16"),
    (f"{OURS}, OpenVINO bf16", OURS),
    (f"{OURS}, OpenVINO bf16", "torch-cam, autocast to bf16"),
)
PROTOCOLS = ("center", "ten-crop", "full")


def protocols(sessions: dict[str, onnxruntime.InferenceSession], runs: int, console: Console) -> None:
    """Ten crops against two passes over the whole image: time, and how alike the maps are."""
    image = smooth_image()[None]
    work = {name: (lambda name=name: sessions[name].run(None, {"image": image})) for name in ("ten-crop", "full")}
    seconds = take_turns(work, max(3, runs // 2))
    outputs = {name: each() for name, each in work.items()}
    same = [c for c in outputs["ten-crop"][1][0] if c in outputs["full"][1][0]]
    correlations = []
    for chosen in same:
        maps = [outputs[name][2][0][list(outputs[name][1][0]).index(chosen)].ravel() for name in work]
        correlations.append(float(np.corrcoef(*maps)[0, 1]))
    spread = f"{np.mean(correlations):.3f} (least {min(correlations):.3f})" if correlations else "no class in common"
    console.print(
        f"ten-crop {statistics.median(seconds['ten-crop']):.2f} s an image, "
        f"full {statistics.median(seconds['full']):.2f} s: {ratio(seconds['ten-crop'], seconds['full']):.2f} times "
        f"faster; correlation of their maps over {len(same)} common classes: {spread}\n",
        highlight=False,
    )


def smooth_image() -> np.ndarray:
    """An image with large structures: what correlation of maps is about."""
    y, x = np.mgrid[0:256, 0:256] / 256
    waves = [np.sin(7 * x + 3 * y), np.cos(5 * y - 2 * x), np.sin(9 * x * y)]
    return np.stack([(127 * (1 + wave)).astype(np.uint8) for wave in waves], axis=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["vgg16CAM", "googlenetCAM"], metavar="NAME")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    console = Console(width=110)
    for name in options.names:
        measure(name, options.runs, options.threads, console)


if __name__ == "__main__":
    main()
