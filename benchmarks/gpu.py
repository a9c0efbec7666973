#!/usr/bin/env python3
"""camrt on a GPU: every provider and precision, beside the bare network, PyTorch, torch-cam and pytorch-grad-cam.

usage: python benchmarks/gpu.py [--batches 1 16 64] [--precisions fp32 tf32 fp16] [--networks ...] [--json FILE]
       python benchmarks/gpu.py --device cpu --quick      # runs all of the code on a machine without a GPU

Networks of the shapes of VGG16-CAM, GoogLeNet-CAM, ResNet-50 and ViT-B/16 with seeded weights; nothing is downloaded.
For each, images a second at each batch size and precision of

* bare: the network alone in ONNX Runtime, from finished crops to scores: the limit that "of bare" refers to;
* camrt: our graph, from uint8 pixels to scores, the best class and its map, on CUDA, with CUDA graphs, and on TensorRT
  where it is installed; CAM of the CAM networks, Grad-CAM of all;
* PyTorch: the network alone, channels_last, under autocast at fp16;
* torch-cam's CAM and pytorch-grad-cam's GradCAM of the best class, likewise.

All begin and end in the CPU's memory. The contenders of a network, precision and batch take turns, run after run;
medians. Then the whole way, `camrt explain` from a folder of JPEG files to written results, at the largest batch and
the last precision.
What cannot run is a row with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import converters
from benchmarks.explain import plain, seeded_net, torch_network
from camrt.errors import CamrtWarning
from camrt.graph import explain_graph
from camrt.preprocess import Preprocess
from camrt.session import Session
from converters import zoo
from tests.camrt.graph import peers

SIDE = 224
PREPROCESS = Preprocess(SIDE, SIDE, (104.0, 117.0, 123.0))
PROVIDERS = {"CUDA": "cuda", "CUDA graph": "cuda:enable_cuda_graph=1", "TensorRT": "tensorrt"}
Work = Callable[[], object]


@dataclass(frozen=True)
class Network:
    """A network in both forms, with the same weights.

    Attributes:
        name: Its name in the table.
        model: The ONNX model.
        module: The PyTorch module.
        layer: The module whose output the maps are made of.
        tensor: That output in the ONNX model; None for the one that camrt finds.
        classifier: The linear layer's module, for CAM; "" where there is none.
        tokens: Whether the layer gives tokens, the class token first.
    """

    name: str
    model: onnx.ModelProto
    module: torch.nn.Module
    layer: str
    tensor: str | None = None
    classifier: str = ""
    tokens: bool = False


@dataclass(frozen=True)
class Row:
    """A measurement; where there is none, a reason.

    Attributes:
        network: The network.
        method: ``cam``, ``gradcam``, or ``forward`` for the bare network.
        batch: Images at once.
        precision: What was asked for.
        contender: Who ran.
        milliseconds: An image's.
        of_bare: Its rate as a part of the bare network's, of the same precision and batch.
        reason: Why it did not run.
    """

    network: str
    method: str
    batch: int
    precision: str
    contender: str
    milliseconds: float | None = None
    of_bare: float | None = None
    reason: str = ""


# ------------------------------------------------------------------------------------------------------------ networks


class Bottleneck(torch.nn.Module):
    """ResNet's block (He et al. 2016): 1 x 1, 3 x 3 and 1 x 1 convolutions, and a way around them."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        sizes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)]
        parts: list[torch.nn.Module] = []
        for number, (a, b, kernel, step) in enumerate(sizes):
            parts += [torch.nn.Conv2d(a, b, kernel, step, kernel // 2, bias=False), torch.nn.BatchNorm2d(b)]
            parts += [torch.nn.ReLU()] if number < 2 else []
        self.way = torch.nn.Sequential(*parts)
        around = [torch.nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), torch.nn.BatchNorm2d(4 * width)]
        self.around = torch.nn.Sequential(*around) if inputs != 4 * width or stride > 1 else torch.nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, 4 * width, H / stride, W / stride)."""
        return torch.relu(self.way(x) + self.around(x))


def resnet(depths: Iterable[int]) -> torch.nn.Sequential:
    """A network of ResNet-50's shape with depths 3, 4, 6, 3."""
    stem = [torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False), torch.nn.BatchNorm2d(64), torch.nn.ReLU()]
    blocks: list[torch.nn.Module] = []
    inputs = 64
    for stage, depth in enumerate(depths):
        for number in range(depth):
            blocks.append(Bottleneck(inputs, 64 << stage, 2 if stage and not number else 1))
            inputs = 4 * (64 << stage)
    return torch.nn.Sequential(
        *stem, torch.nn.MaxPool2d(3, 2, 1), torch.nn.Sequential(*blocks), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(inputs, 1000),
    )  # fmt: skip


class Block(torch.nn.Module):
    """A transformer's block (Dosovitskiy et al. 2021): attention and two linear layers, each with a way around."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(width, 4 * width), torch.nn.GELU(), torch.nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, tokens, width) -> the same."""
        batch, tokens, width = x.shape
        parts = self.qkv(self.first(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp(self.second(x))


class Transformer(torch.nn.Module):
    """A network of ViT-B/16's shape with 12 blocks."""

    def __init__(self, depth: int, width: int = 768, patch: int = 16) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(3, width, patch, patch)
        self.token = torch.nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.places = torch.nn.Parameter(torch.randn(1, 1 + (SIDE // patch) ** 2, width) * 0.02)
        self.blocks = torch.nn.Sequential(*(Block(width, width // 64) for _ in range(depth)))
        self.norm, self.head = torch.nn.LayerNorm(width), torch.nn.Linear(width, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 224, 224) -> (N, 1000)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


def exported(module: torch.nn.Module) -> onnx.ModelProto:
    """A module as ONNX, with a free batch."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            module, (torch.zeros(2, 3, SIDE, SIDE),), buffer, dynamo=False, opset_version=17,
            input_names=["data"], output_names=["logits"], dynamic_axes={"data": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip
    return onnx.load_from_string(buffer.getvalue())


def caffe_network(name: str) -> Network:
    facts = zoo.find(name)
    assert facts.features
    assert facts.classifier
    with tempfile.TemporaryDirectory() as folder:
        net = seeded_net(name, Path(folder))
        model, module = converters.convert(net), torch_network(net)
    writer = next(layer.name for layer in reversed(net.layers) if layer.tops == (net.tensors[facts.features],))
    return Network(name, model, module, plain(writer), facts.features, f"{plain(facts.classifier)}.1")


def networks(names: Iterable[str], *, quick: bool) -> Iterable[Network]:
    """The networks, one after the other: all at once would fill the memory."""
    torch.manual_seed(13)
    for name in names:
        if name == "ResNet-50 shape":
            module = resnet((1, 1, 1, 1) if quick else (3, 4, 6, 3)).eval()
            yield Network(name, exported(module), module, "4", classifier="7")
        elif name == "ViT-B shape":
            module = Transformer(2 if quick else 12).eval()
            yield Network(name, exported(module), module, f"blocks.{1 if quick else 11}.first", tokens=True)
        else:
            yield caffe_network(name)


NETWORKS = ("vgg16CAM", "googlenetCAM", "ResNet-50 shape", "ViT-B shape")


# ---------------------------------------------------------------------------------------------------------- contenders


class Contenders:
    """What runs a network at one precision.

    Args:
        network: The network.
        precision: ``fp32``, ``tf32`` or ``fp16``.
        device: ``cuda`` or ``cpu``.
    """

    def __init__(self, network: Network, precision: str, device: str) -> None:
        self.network, self.precision, self.device = network, precision, device
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        memory = torch.channels_last if not network.tokens else torch.contiguous_format
        self.module = network.module.to(device, memory_format=memory)
        self.memory = memory
        self.graphs = {
            method: explain_graph(network.model, method, "center", 1, preprocess=PREPROCESS, **self._where(method))
            for method in (("cam", "gradcam") if network.classifier else ("gradcam",))
        }

    def _where(self, method: str) -> dict[str, Any]:
        return {"layer": self.network.tensor} if self.network.tensor and method != "cam" else {}

    def providers(self) -> Mapping[str, str]:
        """Name -> provider."""
        return PROVIDERS if self.device == "cuda" else {"CPU": "cpu"}

    def makers(self) -> dict[tuple[str, str], Callable[[int], Work]]:
        """(method, contender) -> what makes the work of a batch."""
        found: dict[tuple[str, str], Callable[[int], Work]] = {}
        for name, provider in self.providers().items():
            if name in ("CUDA", "CPU"):
                found["forward", f"bare {name}"] = lambda batch, p=provider: self.bare(p, batch)
        found["forward", "PyTorch"] = self.torch
        for method in self.graphs:
            for name, provider in self.providers().items():
                found[method, f"camrt {name}"] = lambda batch, m=method, p=provider: self.camrt(m, p, batch)
        if "cam" in self.graphs:
            found["cam", "torch-cam"] = self.torch_cam
        found["gradcam", "pytorch-grad-cam"] = self.grad_cam
        return found

    def session(self, model: onnx.ModelProto, provider: str) -> Session:
        """A session; TensorRT has no fp32 without TF32."""
        asked = "tf32" if provider.startswith("tensorrt") and self.precision == "fp32" else self.precision
        return Session(model, providers=provider, precision=asked)

    def crops(self, batch: int) -> np.ndarray:
        """What a network gets: (batch, 3, 224, 224) float32."""
        return np.random.default_rng(0).uniform(-120, 130, (batch, 3, SIDE, SIDE)).astype(np.float32)

    def bare(self, provider: str, batch: int) -> Work:
        """The network alone in ONNX Runtime."""
        session, crops = self.session(self.network.model, provider), self.crops(batch)
        (name,) = session.inputs
        return lambda: session.run({name: crops})

    def camrt(self, method: str, provider: str, batch: int) -> Work:
        """Our graph of a method."""
        session = self.session(self.graphs[method], provider)
        images = np.random.default_rng(0).integers(0, 256, (batch, SIDE, SIDE, 3), dtype=np.uint8)
        return lambda: session.run({"image": images})

    # ------------------------------------------------------------------------------------------------- with PyTorch

    def upload(self, crops: torch.Tensor) -> torch.Tensor:
        """Crops on the device, in the layout of the module."""
        return crops.to(self.device).contiguous(memory_format=self.memory)

    def autocast(self) -> Any:
        """PyTorch's choice of what runs in float16."""
        return torch.autocast(self.device, torch.float16, enabled=self.precision == "fp16")

    def torch(self, batch: int) -> Work:
        """The network alone in PyTorch."""
        crops = torch.from_numpy(self.crops(batch))

        def work() -> object:
            with torch.inference_mode(), self.autocast():
                return self.module(self.upload(crops)).float().cpu()

        return work

    def torch_cam(self, batch: int) -> Work:
        """torch-cam's CAM of the best class."""
        from torchcam.methods import CAM

        crops = torch.from_numpy(self.crops(batch))
        where = {"target_layer": self.network.layer, "fc_layer": self.network.classifier}

        def work() -> object:
            # Its hooks go with it: they would slow down the others.
            with CAM(self.module, **where) as extractor, torch.no_grad(), self.autocast():
                scores = self.module(self.upload(crops))
                return [one.cpu() for one in extractor(scores.argmax(1).tolist(), scores)]

        return work

    def grad_cam(self, batch: int) -> Work:
        """pytorch-grad-cam's GradCAM of the best class."""
        layer = self.module.get_submodule(self.network.layer)
        crops = torch.from_numpy(self.crops(batch))
        rows = SIDE // 16
        tokens = (
            (lambda x: x[:, 1:].reshape(len(x), rows, rows, -1).permute(0, 3, 1, 2)) if self.network.tokens else None
        )
        library = peers.grad_cam()

        def work() -> object:
            with library.GradCAM(self.module, [layer], reshape_transform=tokens) as method, self.autocast():
                return method(self.upload(crops), None)  # arrays, in the CPU's memory

        return work


# ---------------------------------------------------------------------------------------------------------- measuring


def measure(network: Network, options: argparse.Namespace) -> Iterable[Row]:
    """The rows of a network. The bare network takes turns with the contenders of each method."""
    for precision in options.precisions:
        contenders = Contenders(network, precision, options.device)
        for batch in options.batches:
            for index, method in enumerate(contenders.graphs):
                rows = measure_method(contenders, method, batch, options.runs)
                yield from (row for row in rows if row.method == method or not index)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()  # it would keep from ONNX Runtime what it needed once


def measure_method(contenders: Contenders, method: str, batch: int, runs: int) -> list[Row]:
    """The rows of a method and of the bare network."""
    work: dict[Row, Work] = {}
    broken = []
    for (kind, name), make in contenders.makers().items():
        if kind not in ("forward", method):
            continue
        row = Row(contenders.network.name, kind, batch, contenders.precision, name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", CamrtWarning)  # a graph that is not captured is no measurement
                work[row] = make(batch)
                work[row]()
        except (Exception, SystemExit) as error:  # one that does not run leaves the others
            work.pop(row, None)
            broken.append(replace(row, reason=shortened(error)))
    found = take_turns(work, runs)
    milliseconds = {row: 1000 * statistics.median(seconds) / batch for row, seconds in found.items()}
    bare = next((each for row, each in milliseconds.items() if row.contender.startswith("bare")), None)
    measured = [
        replace(row, milliseconds=each, of_bare=bare / each if bare else None) for row, each in milliseconds.items()
    ]
    return measured + broken


def take_turns(work: Mapping[Row, Work], runs: int) -> dict[Row, list[float]]:
    """The seconds of each run."""
    seconds: dict[Row, list[float]] = {row: [] for row in work}
    for _ in range(runs):
        for row, each in work.items():
            synchronize()
            began = time.perf_counter()
            each()
            synchronize()
            seconds[row].append(time.perf_counter() - began)
    return seconds


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def shortened(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:160]}..."


def whole_way(network: Network, options: argparse.Namespace, rows: Iterable[Row]) -> Row:
    """`camrt explain` of a folder of photographs: what each further image costs, from JPEG to written results."""
    batch, precision = max(options.batches), options.precisions[-1]
    method, name = "cam" if network.classifier else "gradcam", "CUDA" if options.device == "cuda" else "CPU"
    row = Row(network.name, method, batch, precision, f"camrt explain {name}, JPEG to results")
    few, many = (2, 12) if options.quick else (4 * batch, 20 * batch)
    with tempfile.TemporaryDirectory() as folder:
        explainer, photographs = Path(folder) / "explainer.onnx", Path(folder) / "photographs"
        onnx.save(explain_graph(network.model, method, preprocess=PREPROCESS), explainer)
        photographs.mkdir()
        seconds = []
        for count in (few, many):
            for number in range(count):
                photograph(number).save(photographs / f"{number:05}.jpg", quality=90)
            command = [
                sys.executable, "-m", "camrt", "explain", photographs, "--model", explainer, "--provider",
                options.device, "--precision", precision, "--batch", batch, "--out", Path(folder) / f"out{count}",
            ]  # fmt: skip
            began = time.perf_counter()
            done = subprocess.run(list(map(str, command)), cwd=REPOSITORY, capture_output=True, text=True, check=False)
            seconds.append(time.perf_counter() - began)
            if done.returncode:
                return replace(row, reason=shortened(RuntimeError(done.stderr)))
    milliseconds = 1000 * (seconds[1] - seconds[0]) / (many - few)
    if milliseconds <= 0:
        return replace(row, reason=f"{many} images took no longer than {few}: the machine is busy")
    alike = [one for one in rows if (one.network, one.batch, one.precision) == (network.name, batch, precision)]
    bare = next((one.milliseconds for one in alike if one.contender.startswith("bare") and one.milliseconds), None)
    return replace(row, milliseconds=milliseconds, of_bare=bare / milliseconds if bare else None)


def photograph(number: int) -> Image.Image:
    """A picture of 640 x 480 with large structures and some noise."""
    generator = np.random.default_rng(number)
    coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((640, 480))
    noise = generator.integers(-12, 13, (480, 640, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


def table(rows: Iterable[Row]) -> Table:
    found = Table(title="images a second; the part of the bare network's rate", min_width=100)
    for column in ("network", "method", "batch", "precision", "contender", "images/s", "of bare"):
        found.add_column(column, justify="right" if column in ("batch", "images/s", "of bare") else "left")
    for row in rows:
        rate = row.reason if row.milliseconds is None else f"{1000 / row.milliseconds:,.1f}"
        part = "" if row.of_bare is None else f"{row.of_bare:.2f}"
        found.add_row(row.network, row.method, str(row.batch), row.precision, row.contender, rate, part)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NAME")
    parser.add_argument("--batches", nargs="+", type=int)
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "tf32", "fp16"))
    parser.add_argument("--runs", type=int)
    parser.add_argument("--quick", action="store_true", help="shallow networks, batch 1, two runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows, and what they were measured on")
    options = parser.parse_args()
    options.batches = options.batches or ([1] if options.quick else [1, 16, 64])
    options.precisions = options.precisions or (["fp32"] if options.device == "cpu" else ["fp32", "tf32", "fp16"])
    options.runs = options.runs or (2 if options.quick else 20)
    if options.device == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        sys.exit("ONNX Runtime has no CUDA here: pip install 'camrt[gpu]', or benchmarks/gpu.py --device cpu --quick")
    console = Console(width=160)
    console.print(f"{machine(options.device)}", highlight=False)
    rows: list[Row] = []
    for network in networks(options.networks, quick=options.quick):
        found = list(measure(network, options))
        rows += [*found, whole_way(network, options, found)]
        console.print(f"{network.name}: done", highlight=False)
    console.print(table(rows))
    if options.json:
        facts = {"machine": machine(options.device), "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


def machine(device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else "CPU"
    return f"{name}; ONNX Runtime {onnxruntime.__version__}, PyTorch {torch.__version__}"


if __name__ == "__main__":
    main()
