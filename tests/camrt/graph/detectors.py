"""Small detectors in PyTorch whose outputs are laid out as those of YOLOv5, YOLOv8, DETR, RT-DETR and SSD."""

from __future__ import annotations

import io
import warnings
from typing import Any

import onnx

from camrt.preprocess import Preprocess

SIDE, CLASSES = 64, 5
STRIDES = (8, 16, 32)
PREPROCESS = Preprocess(SIDE, SIDE, (0.0, 0.0, 0.0), (1 / 255,) * 3, "RGB")
KINDS = ("yolov5", "yolov8", "ssd", "detr", "rtdetr")


def detector(kind: str) -> Any:
    """A seeded network with a trunk of three scales. Its heads' last convolutions are steep, so that scores differ."""
    import torch
    from torch import nn

    def conv(inputs: int, outputs: int, stride: int = 1) -> Any:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.SiLU())

    def grid(size: int) -> Any:
        y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
        return torch.stack([x, y]).float().reshape(1, 2, -1)

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(conv(3, 8, 2), conv(8, 12, 2), conv(12, 16, 2))
            self.down = nn.ModuleList([conv(16, 16, 2), conv(16, 16, 2)])

        def scales(self, x: Any) -> list[Any]:
            found = [self.stem(x)]
            for layer in self.down:
                found.append(layer(found[-1]))
            return found

        def forward(self, x: Any) -> Any:
            return self.head(self.scales(x))

    class YoloV8(Detector):
        """1 x (4 + classes) x cells: boxes and classes come of branches of their own."""

        def __init__(self) -> None:
            super().__init__()
            self.box = nn.ModuleList(nn.Sequential(conv(16, 12), nn.Conv2d(12, 4, 1)) for _ in STRIDES)
            self.cls = nn.ModuleList(nn.Sequential(conv(16, 12), nn.Conv2d(12, CLASSES, 1)) for _ in STRIDES)

        def head(self, scales: list[Any]) -> Any:
            boxes, classes = [], []
            for n, (features, stride) in enumerate(zip(scales, STRIDES, strict=True)):
                cells = features.shape[2] * features.shape[3]
                sides = self.box[n](features).reshape(-1, 4, cells).exp()
                low, high = grid(SIDE // stride) - sides[:, :2], grid(SIDE // stride) + sides[:, 2:]
                boxes.append(torch.cat([(low + high) / 2, high - low], 1) * stride)
                classes.append(self.cls[n](features).reshape(-1, CLASSES, cells))
            return torch.cat([torch.cat(boxes, 2), torch.cat(classes, 2).sigmoid()], 1)

    class YoloV5(Detector):
        """1 x (3 anchors x cells) x (5 + classes): all of one convolution."""

        def __init__(self) -> None:
            super().__init__()
            self.out = nn.ModuleList(nn.Conv2d(16, 3 * (5 + CLASSES), 1) for _ in STRIDES)

        def head(self, scales: list[Any]) -> Any:
            found = []
            for n, (features, stride) in enumerate(zip(scales, STRIDES, strict=True)):
                size = SIDE // stride
                y = self.out[n](features).view(-1, 3, 5 + CLASSES, size, size).permute(0, 1, 3, 4, 2).sigmoid()
                xy, wh, rest = y.split((2, 2, CLASSES + 1), 4)
                centers = grid(size).reshape(1, 1, 2, size, size).permute(0, 1, 3, 4, 2)
                anchors = torch.tensor([1.0, 1.5, 2.5]).reshape(1, 3, 1, 1, 1) * stride
                y = torch.cat([(xy * 2 - 1 + centers) * stride, (wh * 2) ** 2 * anchors, rest], 4)
                found.append(y.reshape(-1, 3 * size * size, 5 + CLASSES))
            return torch.cat(found, 1)

    class SSD(Detector):
        """Two outputs: corners as shares of the image, and classes with a Softmax, of which 0 is the background."""

        def __init__(self) -> None:
            super().__init__()
            self.out = nn.ModuleList(nn.Conv2d(16, 4, 3, 1, 1) for _ in STRIDES)
            self.cls = nn.ModuleList(nn.Conv2d(16, CLASSES, 3, 1, 1) for _ in STRIDES)

        def head(self, scales: list[Any]) -> Any:
            boxes, classes = [], []
            for n, (features, stride) in enumerate(zip(scales, STRIDES, strict=True)):
                cells = features.shape[2] * features.shape[3]
                delta = self.out[n](features).reshape(-1, 4, cells) * 0.2
                center = (grid(SIDE // stride) * stride / SIDE) + delta[:, :2] * stride / SIDE
                half = delta[:, 2:].exp() * stride / SIDE
                boxes.append(torch.cat([center - half, center + half], 1).transpose(1, 2))
                classes.append(self.cls[n](features).permute(0, 2, 3, 1).reshape(-1, cells, CLASSES))
            return torch.cat(boxes, 1), torch.cat(classes, 1).softmax(2)

    class Queries(Detector):
        """DETR's two outputs: logits with a class for nothing behind them, and boxes; RT-DETR's one, without it."""

        def __init__(self, number: int) -> None:
            super().__init__()
            self.queries = nn.Parameter(torch.randn(number, 16))
            self.box, self.cls = nn.Linear(16, 4), nn.Linear(16, CLASSES + (kind == "detr"))

        def head(self, scales: list[Any]) -> Any:
            memory = scales[-2].flatten(2).transpose(1, 2)
            attention = torch.softmax(self.queries @ memory.transpose(1, 2) * 4, -1)
            found = attention @ memory + self.queries
            logits, boxes = self.cls(found), self.box(found).sigmoid()
            return (logits, boxes) if kind == "detr" else torch.cat([boxes, logits.sigmoid()], 2)

    torch.manual_seed(3)
    module = {
        "yolov5": YoloV5, "yolov8": YoloV8, "ssd": SSD, "detr": lambda: Queries(100), "rtdetr": lambda: Queries(300),
    }[kind]()  # fmt: skip
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(layer.weight, std=(3 / layer.weight[0].numel()) ** 0.5)
            nn.init.normal_(layer.bias, std=0.3)
    return module.eval()


def exported(module: Any, kind: str = "", batch: str | None = "n") -> onnx.ModelProto:
    """The network as PyTorch exports it, with the names of outputs that people give them."""
    import torch

    names = {"ssd": ["boxes", "scores"], "detr": ["logits", "pred_boxes"]}.get(kind, ["output0"])
    axes = {name: {0: batch} for name in ["images", *names]} if batch else {}
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.zeros(1, 3, SIDE, SIDE),), stream, dynamo=False, input_names=["images"], output_names=names,
            dynamic_axes=axes,
        )  # fmt: skip
    return onnx.load_from_string(stream.getvalue())
