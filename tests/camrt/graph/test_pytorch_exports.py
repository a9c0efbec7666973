"""Classifiers as PyTorch exports them, explained without touching the network, against PyTorch itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from camrt import matlab
from camrt.graph import explain_graph
from camrt.preprocess import PRESETS

torch = pytest.importorskip("torch", reason="PyTorch is not installed: its exports are not tested")
SIDE, CLASSES, TOP = 64, 10, 3
FIRST = (257 - SIDE) // 2


def features() -> Any:
    """Convolutions with batch normalization, a stride and a residual sum, as in ResNet."""
    nn = torch.nn

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())

        def forward(self, x: Any) -> Any:
            return torch.relu(x + self.inner(x))

    stem = [nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, Residual(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU())


def network(kind: str) -> Any:
    nn = torch.nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = features()
            self.classifier = nn.Conv2d(24, CLASSES, 1) if kind == "squeezenet" else nn.Linear(24, CLASSES)

        def forward(self, x: Any) -> Any:
            x = self.features(x)
            if kind == "squeezenet":
                x = torch.relu(self.classifier(nn.functional.dropout(x, training=self.training)))
                return torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)
            if kind == "densenet":
                pooled = nn.functional.adaptive_avg_pool2d(torch.relu(x), (1, 1))
                return self.classifier(torch.flatten(pooled, 1))
            if kind == "inception":
                pooled = nn.functional.dropout(nn.functional.adaptive_avg_pool2d(x, (1, 1)), training=self.training)
                return self.classifier(pooled.view(x.size(0), -1))
            return self.classifier(x.mean((2, 3)) if kind == "mean" else torch.flatten(nn.AdaptiveAvgPool2d(1)(x), 1))

    torch.manual_seed(3)
    module = Network()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return module.eval()


def exported(module: Any, path: Path, *, dynamo: bool, free: bool) -> onnx.ModelProto:
    options: dict[str, Any] = {"dynamo": dynamo, "input_names": ["image"], "verbose": False}
    if free and dynamo:
        options["dynamic_shapes"] = ({0: torch.export.Dim("n")},)
    elif free:
        options["dynamic_axes"] = {"image": {0: "n"}}
    example = torch.randn(2 if free and dynamo else 1, 3, SIDE, SIDE)
    torch.onnx.export(module, (example,), path, **options)
    return onnx.load(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("free", [True, False], ids=["free batch", "batch 1"])
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("kind", ["resnet", "densenet", "squeezenet", "inception", "mean"])
def test_scores_and_maps_are_pytorchs(kind: str, dynamo: bool, free: bool, tmp_path: Path) -> None:
    if dynamo:
        pytest.importorskip("onnxscript", reason="onnxscript is not installed: PyTorch's newer exporter is not tested")
    module = network(kind)
    model = exported(module, tmp_path / "net.onnx", dynamo=dynamo, free=free)
    preprocess = PRESETS["torchvision"].cropped(SIDE)
    explainer = explain_graph(model, protocol="center", top=TOP, preprocess=preprocess)
    images = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(explainer.SerializeToString(), providers=["CPUExecutionProvider"])
    scores, classes, heatmaps = session.run(None, {"image": images})

    cut = images[:, FIRST : FIRST + SIDE, FIRST : FIRST + SIDE] / 255
    data = (cut - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        batch = torch.from_numpy(data.transpose(0, 3, 1, 2).astype(np.float32))
        wanted = torch.softmax(module(batch), 1).numpy()
        maps = module.features(batch)
        maps = torch.relu(maps) if kind == "densenet" else maps
        weights = module.classifier.weight.reshape(CLASSES, -1)
        cams = torch.einsum("kc,nchw->nkhw", weights, maps).numpy().astype(np.float64)
    np.testing.assert_allclose(scores, wanted, rtol=1e-4, atol=1e-6)
    for n in range(2):
        assert classes[n].tolist() == np.argsort(-wanted[n], kind="stable")[:TOP].tolist()
        for rank, chosen in enumerate(classes[n]):
            large = np.abs(matlab.imresize(cams[n, chosen], (SIDE, SIDE)))
            placed = np.zeros((256, 256))
            placed[FIRST : FIRST + SIDE, FIRST : FIRST + SIDE] = large
            np.testing.assert_allclose(heatmaps[n, rank], placed, atol=1e-4 * large.max())
