#!/usr/bin/env python3
"""Grad-CAM and guided backpropagation of VGG16 with its original head, beside the bare network and PyTorch.

usage: python benchmarks/gradients.py [--runs 5] [--threads 2] [--no-memory] [--onnx-ad]

Seeded weights, 224 x 224, batches of 1 and 10, in one process; seconds an image of

* bare: the converted network alone in ONNX Runtime, fed with finished crops: the limit;
* camrt gradcam: our graph, from uint8 pixels (one centre crop) to scores, the best class and its map, by relu5_3; and
  the same of the five best classes;
* the one of the best class on OpenVINO, in fp32 and bf16, where the processor computes in bf16;
* pytorch-grad-cam: its GradCAM of the best class by the same layer, from finished crops; and under autocast to
  bf16;
* camrt guided-backprop: likewise to the best class's map of pixels;
* PyTorch guided: hooks on the ReLUs, and no gradients of weights, which is the fastest that we know how to write;
* pytorch-grad-cam guided: its GuidedBackpropReLUModel, which takes one image at a time;
* camrt gradient: `camrt.graph.differentiate`, the plain gradient of the logits by the crops, with a seed as an input;
* onnx-ad gradient, with --onnx-ad, as it takes minutes to build: the same by `onnx_ad.reverse`, for a fixed batch. Both
  are built from the network in memory; the time of that is printed too.

The contenders take turns, those of Grad-CAM, of guided backpropagation and of the plain gradient, run after run, so
that a machine that drifts does so for all; medians, and ratios run by run. Then the peak memory of each, in a process
of its own.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import statistics
import subprocess
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
from benchmarks.explain import ratio, seeded_net, take_turns, torch_layer
from camrt import tuning
from camrt.graph import differentiate, explain_graph
from camrt.preprocess import Preprocess
from camrt.session import Session
from tests.camrt.graph import peers

CLASSES = 1000
SIDE, LAYER = 224, "conv5_3"  # the tensor behind its ReLU, which runs in place
BATCHES = (1, 10)
PRECISIONS = [each for each in ("fp32", "bf16") if not tuning.missing(tuning.Contender("openvino", each))]
HALF = [*(f"camrt gradcam, OpenVINO {each}" for each in PRECISIONS), "pytorch-grad-cam, autocast to bf16"]
# Those that take turns: all at once would need more memory than many machines have.
GROUPS = (
    ("bare network", "camrt gradcam", "camrt gradcam, 5 classes", "pytorch-grad-cam", *HALF),
    ("bare network again", "camrt guided-backprop", "PyTorch guided", "pytorch-grad-cam guided"),
    ("bare network once more", "camrt gradient", "onnx-ad gradient"),
)
BUILDS = "builds.json"  # contender -> seconds
Work = Callable[[], object]
Maker = Callable[[int], Work]


FILES = {"bare": (), "gradcam": ("gradcam", 1), "gradcam5": ("gradcam", 5), "guided": ("guided-backprop", 1)}


def prepare(folder: Path, *, onnx_ad: bool = False) -> None:
    """Write what is measured: our graphs, and the network in PyTorch up to the logits."""
    import torch

    net = seeded_net("vgg16", folder)
    model = converters.convert(net, outputs=["prob"])
    preprocess = Preprocess(SIDE, SIDE, (104.0, 117.0, 123.0))
    for name, wanted in FILES.items():
        graph = model
        if wanted:
            layer = LAYER if wanted[0] == "gradcam" else None
            graph = explain_graph(model, wanted[0], "center", wanted[1], layer=layer, preprocess=preprocess)
        onnx.save(graph, folder / f"{name}.onnx")
    prepare_gradients(converters.convert(net, outputs=["fc8"]), folder, onnx_ad=onnx_ad)
    layers = [(layer.name, torch_layer(layer)) for layer in net.layers if layer.type != "Softmax"]
    module = torch.nn.Sequential(*(module for _, module in layers)).eval()
    torch.save((module, [name for name, _ in layers].index("relu5_3")), folder / "module.pt")


def prepare_gradients(model: onnx.ModelProto, folder: Path, *, onnx_ad: bool) -> None:
    """Write the gradient of the logits by the image as camrt and onnx-ad build it, and how long that took."""
    image, logits = model.graph.input[0].name, model.graph.output[0].name
    builders: dict[str, Callable[[], onnx.ModelProto]] = {
        "gradient": lambda: differentiate(model, logits, image, "seed")
    }
    if onnx_ad:
        for batch in BATCHES:
            builders[f"onnx-ad {batch}"] = functools.partial(onnx_ad_gradient, model, batch)
    seconds = {}
    for name, build in builders.items():
        begin = time.perf_counter()
        built = build()
        seconds[name] = time.perf_counter() - begin
        onnx.save(built, folder / f"{name}.onnx")
        del built
    (folder / BUILDS).write_text(json.dumps(seconds))


def onnx_ad_gradient(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """The gradient of the logits by onnx-ad, which wants a fixed batch."""
    import onnx_ad

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    del fixed.graph.value_info[:]
    found: onnx.ModelProto = onnx_ad.reverse(onnx.shape_inference.infer_shapes(fixed), layout="onnx")
    return found


class Contenders:
    """What is measured, loaded when first asked for: a process that measures one does not hold the others.

    Args:
        folder: Where `prepare` wrote.
        threads: How many threads compute.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder, self.threads = folder, threads
        self.sessions: dict[str, onnxruntime.InferenceSession] = {}
        self.makers: dict[str, Maker] = {
            "bare network": self.bare,
            "bare network again": self.bare,
            "camrt gradcam": lambda batch: self.ours("gradcam", batch),
            "camrt gradcam, 5 classes": lambda batch: self.ours("gradcam5", batch),
            "pytorch-grad-cam": self.peer,
            "pytorch-grad-cam, autocast to bf16": self.peer_half,
            **{f"camrt gradcam, OpenVINO {each}": functools.partial(self.openvino, each) for each in PRECISIONS},
            "camrt guided-backprop": lambda batch: self.ours("guided", batch),
            "PyTorch guided": self.hooked,
            "pytorch-grad-cam guided": self.peer_guided,
            "bare network once more": self.bare,
            "camrt gradient": lambda batch: self.gradient("gradient", batch),
            "onnx-ad gradient": lambda batch: self.gradient(f"onnx-ad {batch}", batch),
        }
        if not (folder / f"onnx-ad {BATCHES[0]}.onnx").exists():
            del self.makers["onnx-ad gradient"]

    def session(self, name: str) -> onnxruntime.InferenceSession:
        """A session over one of the files."""
        if name in self.sessions:
            return self.sessions[name]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [one for one in wanted if one in onnxruntime.get_available_providers()]
        self.sessions[name] = onnxruntime.InferenceSession(self.folder / f"{name}.onnx", options, providers=providers)
        return self.sessions[name]

    @functools.cached_property
    def module(self) -> Any:
        """The network in PyTorch, up to the logits, and where its features are."""
        import torch

        torch.set_num_threads(self.threads)
        return torch.load(self.folder / "module.pt", weights_only=False)

    def images(self, batch: int) -> np.ndarray:
        """The images: (batch, 224, 224, 3) uint8."""
        return np.random.default_rng(0).integers(0, 256, (batch, SIDE, SIDE, 3), dtype=np.uint8)

    def crops(self, batch: int) -> np.ndarray:
        """What the network gets of them: (batch, 3, 224, 224) float32."""
        planes = self.images(batch)[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32)
        return planes - np.array([104, 117, 123], np.float32).reshape(3, 1, 1)

    def bare(self, batch: int) -> Work:
        """The converted network alone."""
        runner, crops = self.session("bare"), self.crops(batch)
        return lambda: runner.run(None, {runner.get_inputs()[0].name: crops})

    def ours(self, name: str, batch: int) -> Work:
        """Our graph of a method."""
        runner, images = self.session(name), self.images(batch)
        return lambda: runner.run(None, {"image": images})

    def gradient(self, name: str, batch: int) -> Work:
        """The gradient of the first class's logit by the crops."""
        runner, crops = self.session(name), self.crops(batch)
        seeds = np.zeros((batch, CLASSES), np.float32)
        seeds[:, 0] = 1
        feeds = {}
        for value in runner.get_inputs():  # onnx-ad's seed has an axis more, of size 1
            is_image = value.shape[1:] == [3, SIDE, SIDE]
            feeds[value.name] = crops if is_image else seeds.reshape(batch, CLASSES, *[1] * (len(value.shape) - 2))
        return lambda: runner.run([runner.get_outputs()[-1].name], feeds)

    def peer(self, batch: int) -> Work:
        """pytorch-grad-cam's GradCAM of the best class."""
        import torch

        library, (module, last) = peers.grad_cam(), self.module
        crops = torch.from_numpy(self.crops(batch))

        def work() -> object:
            with library.GradCAM(module, [module[last]]) as method:
                return method(crops, None)

        return work

    def peer_half(self, batch: int) -> Work:
        """The same in bf16. The layer's features and their gradient go back to float32, as the library needs them."""
        import torch

        library, (module, last) = peers.grad_cam(), self.module

        class Float(torch.nn.Module):
            def forward(self, features: Any) -> Any:
                return features.float()

        features = torch.nn.Sequential(module[last], Float())
        layers = torch.nn.Sequential(*module[:last], features, *module[last + 1 :])

        class Half(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = layers

            def forward(self, crops: Any) -> Any:
                with torch.autocast("cpu", torch.bfloat16):
                    return self.layers(crops).float()

        half, crops = Half().eval(), torch.from_numpy(self.crops(batch))

        def work() -> object:
            with library.GradCAM(half, [features]) as method:
                return method(crops, None)

        return work

    def openvino(self, precision: str, batch: int) -> Work:
        """Our graph of Grad-CAM on OpenVINO."""
        runner = Session(
            self.folder / "gradcam.onnx", providers="openvino", precision=precision, threads=self.threads
        )  # fmt: skip
        images = self.images(batch)
        return lambda: runner.run({"image": images})

    def peer_guided(self, batch: int) -> Work:
        """pytorch-grad-cam's guided backpropagation, one image after the other."""
        import torch

        library, (module, _) = peers.grad_cam(), self.module
        crops = torch.from_numpy(self.crops(batch))
        method = library.GuidedBackpropReLUModel(module, "cpu")
        return lambda: [method(crops[n : n + 1].clone()) for n in range(batch)]

    def hooked(self, batch: int) -> Work:
        """Guided backpropagation with hooks, all images at once, by the image alone."""
        import torch

        module, _ = self.module
        crops = torch.from_numpy(self.crops(batch))

        def positive(_: object, gradients: tuple[Any], __: object) -> tuple[Any]:
            return (torch.clamp(gradients[0], min=0),)

        def work() -> object:
            module.requires_grad_(False)
            relus = [one for one in module.modules() if isinstance(one, torch.nn.ReLU)]
            hooks = [one.register_full_backward_hook(positive) for one in relus]
            image = crops.clone().requires_grad_(True)
            scores = module(image)
            (gradient,) = torch.autograd.grad(scores.max(dim=1).values.sum(), image)
            for hook in hooks:
                hook.remove()
            module.requires_grad_(True)
            return gradient

        return work


def measure(contenders: Contenders, runs: int, console: Console) -> None:
    rows: dict[str, list[list[float]]] = {name: [] for name in contenders.makers}
    for batch in BATCHES:
        for group in GROUPS:
            contenders.sessions.clear()  # ONNX Runtime keeps what it needed once
            work = {name: contenders.makers[name](batch) for name in group if name in contenders.makers}
            for name, seconds in take_turns(work, runs).items():
                rows[name].append([second / batch for second in seconds])
            del work
    table = Table(title=f"VGG16, seconds an image, median of {runs}, {contenders.threads} threads", min_width=80)
    for column in ("", *(f"batch {batch}" for batch in BATCHES)):
        table.add_column(column, justify="right" if column else "left")
    for name, found in rows.items():
        table.add_row(name, *(f"{statistics.median(seconds):.3f}" for seconds in found))
    console.print(table)
    for ours, theirs in (
        ("camrt gradcam", "pytorch-grad-cam"),
        ("camrt gradcam, OpenVINO bf16", "pytorch-grad-cam, autocast to bf16"),
        ("camrt gradcam, OpenVINO bf16", "camrt gradcam"),
        ("camrt guided-backprop", "PyTorch guided"),
        ("camrt guided-backprop", "pytorch-grad-cam guided"),
        ("camrt gradcam", "bare network"),
        ("camrt gradcam, 5 classes", "bare network"),
        ("camrt guided-backprop", "bare network again"),
        ("camrt gradient", "onnx-ad gradient"),
        ("camrt gradient", "bare network once more"),
        ("onnx-ad gradient", "bare network once more"),
    ):
        if ours not in rows or theirs not in rows:
            continue
        ratios = [ratio(a, b) for a, b in zip(rows[ours], rows[theirs], strict=True)]
        said = [f"{1 / one:.2f} times faster" if theirs[0] != "b" else f"{one:.2f} times its time" for one in ratios]
        listed = ", ".join(f"{word} at batch {batch}" for word, batch in zip(said, BATCHES, strict=True))
        console.print(f"{ours} against {theirs}: {listed}", highlight=False)


def builds(folder: Path, console: Console) -> None:
    """How long the plain gradient took to build."""
    for name, seconds in json.loads((folder / BUILDS).read_text()).items():
        library, _, batch = name.partition(" ")
        fixed = f"onnx-ad, for a batch of {batch}" if library == "onnx-ad" else "camrt, for any batch"
        console.print(f"building the gradient: {seconds:.2f} s ({fixed})", highlight=False)


def memory(contenders: Contenders, console: Console) -> None:
    """The peak memory of each contender, in a process of its own that loads it and runs it once."""
    table = Table(title="Peak memory of a process that loads and runs it, MB", min_width=80)
    for column in ("", *(f"batch {batch}" for batch in BATCHES)):
        table.add_column(column, justify="right" if column else "left")
    measured = [one for group in GROUPS for one in group if one in contenders.makers]
    for name in [one for one in measured if not one.startswith("bare network ")]:
        peaks = []
        for batch in BATCHES:
            command = [sys.executable, __file__, "--folder", contenders.folder, "--only", name, "--batch", str(batch)]
            command += ["--threads", str(contenders.threads)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            peaks.append(int(done.stdout.split()[-1]))
        table.add_row(name, *(f"{peak / 1e6:,.0f}" for peak in peaks))
    console.print(table)


def peak_memory() -> int:
    """The most bytes that this process held. Linux's ru_maxrss would count those of the one that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--onnx-ad", action="store_true", help="with onnx-ad, which must be installed")
    options = parser.parse_args()
    if options.only:
        Contenders(options.folder, options.threads).makers[options.only](options.batch)()
        print(peak_memory())
        return
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), onnx_ad=options.onnx_ad)
        contenders = Contenders(Path(folder), options.threads)
        builds(contenders.folder, console)
        measure(contenders, options.runs, console)
        if not options.no_memory:
            memory(contenders, console)


if __name__ == "__main__":
    main()
