"""Draw docs/pictures/detectors.jpg: detections of a small detector that is trained here on drawn shapes.

    python scripts/detector_picture.py docs/pictures/detectors.jpg

It needs PyTorch, and takes a minute or two. The detector has the outputs of YOLOv8: N x (4 + classes) x cells.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import torch
from torch import nn

import camrt
from camrt import render
from camrt.preprocess import Preprocess

SIDE, STRIDE, LABELS = 128, 8, ("disk", "square", "triangle")
CELLS = SIDE // STRIDE
STEPS, BATCH = 500, 12
PREPROCESS = Preprocess(SIDE, SIDE, (0.0, 0.0, 0.0), (1 / 255,) * 3, "RGB")


def scene(draw: np.random.Generator, shapes: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """An image (128, 128, 3) uint8 of some shapes on noise, and the class and corners of each."""
    image = cv2.resize(draw.integers(60, 180, (9, 9, 3)).astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    found: list[tuple[int, np.ndarray]] = []
    for _ in range(shapes):
        for _ in range(20):  # where no other shape is
            half, number = int(draw.integers(11, 22)), int(draw.integers(len(LABELS)))
            x, y = (int(each) for each in draw.integers(half + 1, SIDE - half - 1, 2))
            box = np.array([x - half, y - half, x + half, y + half])
            if all((box[2:] < other[:2]).any() or (other[2:] < box[:2]).any() for _, other in found):
                break
        else:
            continue
        color = tuple(int(each) for each in draw.integers(0, 255, 3))
        if number == 0:
            cv2.circle(image, (x, y), half, color, -1, cv2.LINE_AA)
        elif number == 1:
            cv2.rectangle(image, (x - half, y - half), (x + half, y + half), color, -1)
        else:
            corners = np.array([[x, y - half], [x - half, y + half], [x + half, y + half]], np.int32)
            cv2.fillPoly(image, [corners], color, cv2.LINE_AA)
        found.append((number, box))
    noise = draw.normal(0, 12, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), found


class Detector(nn.Module):
    """Convolutions, and a box and classes for each cell of 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, stride: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()
            )

        self.trunk = nn.Sequential(
            conv(3, 16, 2), conv(16, 32, 2), conv(32, 64, 2), conv(64, 64, 1), conv(64, 64, 1), conv(64, 64, 1)
        )
        self.box = nn.Sequential(conv(64, 64, 1), nn.Conv2d(64, 4, 1))
        self.cls = nn.Sequential(conv(64, 64, 1), nn.Conv2d(64, len(LABELS), 1))
        nn.init.constant_(self.cls[-1].bias, -4.0)
        y, x = torch.meshgrid(torch.arange(CELLS) + 0.5, torch.arange(CELLS) + 0.5, indexing="ij")
        self.register_buffer("centers", torch.stack([x, y]).reshape(1, 2, -1).float() * STRIDE)

    def raw(self, x: Any) -> tuple[Any, Any]:
        """Distances of the sides from the center of each cell in pixels, (N, 4, cells), and logits."""
        features = self.trunk(x)
        return self.box(features).flatten(2).exp() * STRIDE, self.cls(features).flatten(2)

    def forward(self, x: Any) -> Any:
        """Centers, sizes and probabilities, as YOLOv8 gives them."""
        sides, logits = self.raw(x)
        low, high = self.centers - sides[:, :2], self.centers + sides[:, 2:]
        return torch.cat([(low + high) / 2, high - low, logits.sigmoid()], 1)


def trained(seed: int = 0) -> Detector:
    """Train on new scenes in each step."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    draw, module = np.random.default_rng(seed), Detector()
    optimizer = torch.optim.AdamW(module.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, STEPS)
    for step in range(STEPS):
        images, classes = [], torch.zeros(BATCH, len(LABELS), CELLS * CELLS)
        sides, has = torch.ones(BATCH, 4, CELLS * CELLS), torch.zeros(BATCH, 1, CELLS * CELLS)
        for n in range(BATCH):
            image, shapes = scene(draw, int(draw.integers(1, 5)))
            images.append(torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 255))
            for number, (left, top, right, bottom) in shapes:
                x, y = (left + right) // 2 // STRIDE, (top + bottom) // 2 // STRIDE
                cell = y * CELLS + x
                center = np.array([x + 0.5, y + 0.5]) * STRIDE
                classes[n, number, cell] = has[n, 0, cell] = 1
                distances = [*(center - [left, top]), *([right, bottom] - center)]
                sides[n, :, cell] = torch.tensor(distances).clamp(min=1)
        found, logits = module.raw(torch.stack(images))
        of_classes = nn.functional.binary_cross_entropy_with_logits(logits, classes, reduction="none")
        weight = torch.where(classes > 0, 1.0, logits.sigmoid().detach() ** 2)  # as focal losses weigh
        of_boxes = ((found.log() - sides.log()).abs() * has).sum()
        loss = ((of_classes * weight).sum() + of_boxes) / has.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.3f}")
    return module.eval()


def exported(module: nn.Module) -> onnx.ModelProto:
    """The detector as ONNX."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.zeros(1, 3, SIDE, SIDE),), stream, dynamo=False, input_names=["images"],
            output_names=["output0"], dynamic_axes={"images": {0: "n"}, "output0": {0: "n"}},
        )  # fmt: skip
    return onnx.load_from_string(stream.getvalue())


def main() -> None:
    """Train where need be, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("--model", type=Path, help="where the detector is kept, and read from if it is there")
    given = parser.parse_args()
    if given.model and given.model.exists():
        model = onnx.load(given.model)
    else:
        model = exported(trained())
        if given.model:
            onnx.save(model, given.model)
    image, _ = scene(np.random.default_rng(12), 4)
    large = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    options: dict[str, Any] = {"preprocess": PREPROCESS, "labels": LABELS, "top": 3}
    products = [node.output[0] for node in model.graph.node if node.op_type == "Mul"]  # of each SiLU in the trunk
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "shapes.png"
        file.write_bytes(render.png(large))
        rows = [camrt.Explainer(model, layer=layer, **options)(file).picture() for layer in (None, products[2])]
    given.picture.write_bytes(render.encode(np.vstack(rows), "jpeg"))


if __name__ == "__main__":
    main()
