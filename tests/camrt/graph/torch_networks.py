"""Networks in PyTorch, exported to ONNX, and how an explainer sees them: what methods are compared on."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from camrt.graph import explain_graph
from camrt.preprocess import Preprocess

NO_TORCH = "PyTorch is not installed: methods are not compared with other libraries"
SIDE, CLASSES = 32, 7
# The network gets the pixels as they are, less 128, over 64: its input can be made here without a graph.
PREPROCESS = Preprocess(SIDE, SIDE, (128.0, 128.0, 128.0), (1 / 64, 1 / 64, 1 / 64), "RGB")


def images(count: int = 2) -> np.ndarray:
    """(count, 32, 32, 3) uint8: waves and noise."""
    rng = np.random.default_rng(11)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    waves = np.sin(
        rng.uniform(3, 12, (count, 1, 1, 3)) * x[None, ..., None]
        + rng.uniform(3, 12, (count, 1, 1, 3)) * y[None, ..., None]
    )
    return np.clip(128 + 70 * waves + rng.normal(0, 20, waves.shape), 0, 255).astype(np.uint8)


def tensor_of(pixels: np.ndarray) -> Any:
    """What the network gets: (N, 3, 32, 32) float32."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)

    return torch.from_numpy(((pixels.astype(np.float32) - 128) / 64).transpose(0, 3, 1, 2).copy())


def network(kind: str) -> Any:
    """A seeded network: its ``features`` end in the layer that is explained.

    Args:
        kind: ``"gap"``: global average pooling and a linear layer; ``"vgg"``: pooling and three linear layers, the
            original head of VGG; ``"residual"``: batch normalization, a sum and SiLU.
    """
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    nn = torch.nn

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12))
            self.act = nn.SiLU()

        def forward(self, x: Any) -> Any:
            return self.act(x + self.inner(x))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            stem = [nn.Conv2d(3, 12, 5, 2, 2), nn.ReLU()]
            last = [Residual()] if kind == "residual" else [nn.Conv2d(12, 12, 3, padding=1), nn.ReLU()]
            self.features = nn.Sequential(*stem, nn.MaxPool2d(2), *last)
            if kind == "gap":
                self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, CLASSES))
            else:
                linear = [nn.Linear(12 * 16, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, CLASSES)]
                self.head = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), *linear)

        def forward(self, x: Any) -> Any:
            return self.head(self.features(x))

    torch.manual_seed(5)
    module = Network()
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(layer.weight, std=(2 / layer.weight[0].numel()) ** 0.5)
            nn.init.normal_(layer.bias, std=0.05) if layer.bias is not None else None
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return module.eval()


def transformer() -> Any:
    """A small vision transformer: 16 tokens of the image and a class token, three blocks."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads = heads
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

        def forward(self, x: Any) -> Any:
            tokens, width = x.shape[1:]
            parts = self.qkv(self.norm1(x)).reshape(-1, tokens, 3, self.heads, width // self.heads)
            q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
            attention = torch.softmax(q @ k.transpose(-2, -1) / (width // self.heads) ** 0.5, -1)
            x = x + self.out((attention @ v).transpose(1, 2).reshape(-1, tokens, width))
            return x + self.mlp(self.norm2(x))

    class Transformer(nn.Module):
        def __init__(self, width: int = 24) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, width, 8, 8)
            self.token = nn.Parameter(torch.randn(1, 1, width))
            self.place = nn.Parameter(torch.randn(1, 17, width))
            self.blocks = nn.ModuleList(Block(width, 3) for _ in range(3))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

        def forward(self, x: Any) -> Any:
            x = self.patches(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x)[:, 0])

    torch.manual_seed(1)
    module = Transformer()
    for layer in module.modules():
        if isinstance(layer, nn.Linear):  # as it begins in training, the tokens hardly see each other
            nn.init.normal_(layer.weight, std=2 / layer.in_features**0.5)
    return module.eval()


def exported(module: Any) -> onnx.ModelProto:
    """The network as PyTorch exports it; the tensor ``features`` is found by its shape."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)

    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.zeros(1, 3, SIDE, SIDE),), stream, dynamo=False, input_names=["data"],
            output_names=["logits"], dynamic_axes={"data": {0: "n"}, "logits": {0: "n"}},
        )  # fmt: skip
    return onnx.load_from_string(stream.getvalue())


def explained(model: onnx.ModelProto, pixels: np.ndarray, *tensors: str, **options: Any) -> list[np.ndarray]:
    """What tensors of an explainer's graph hold, beside its outputs: [scores, classes, heatmaps, *tensors]."""
    target = options.pop("targets", None)
    explainer = explain_graph(model, protocol=options.pop("protocol", "center"), preprocess=PREPROCESS, **options)
    return run(explainer, pixels, *tensors, target=target)


def run(
    explainer: onnx.ModelProto, pixels: np.ndarray, *tensors: str, target: Sequence[Any] | None = None
) -> list[np.ndarray]:
    extended = onnx.ModelProto()
    extended.CopyFrom(explainer)
    extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(extended.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"image": pixels} | ({} if target is None else {"target": np.asarray(target, np.int64)})
    return list(session.run(None, feeds))
