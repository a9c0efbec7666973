#!/usr/bin/env python3
"""From a folder of JPEGs to written overlays: camrt beside what people write with pytorch-grad-cam and torch-cam.

usage: python benchmarks/pipeline.py [--images 40] [--size 640x480] [--classes 5] [--full]

SqueezeNet 1.1, trained on ImageNet (the reference data), on photographs that the benchmark makes from those of
scikit-image. Each contender decodes every file, finds the best classes, and writes an overlay of each:

* camrt, cam and gradcam: `camrt.batch.Batch` with the defaults of `camrt explain`;
* pytorch-grad-cam: cv2.imread, GradCAM, show_cam_on_image, cv2.imwrite, as its README does, for each class;
* torch-cam: Pillow, CAM, overlay_mask, Image.save, as its README does, for each class;
* the network alone: its forward pass by ONNX Runtime on arrays that are there already, one image at a time.

Models are loaded before. The contenders take turns, round after round; medians over the rounds, and ratios round by
round. The classes of camrt and PyTorch are compared before.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from benchmarks.photographs import SQUEEZENET, folder_of_photographs
from camrt import Explainer
from camrt.batch import Batch, find_images
from tests import fitting_torchvision

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

Work = Callable[[list[Path], Path], float]  # explains files into a folder, and returns the seconds
MEAN, DEVIATION = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
_SIDE = 224
# Channels of SqueezeNet 1.1's fire modules: position, input, squeeze, expand.
_FIRES = ((3, 64, 16, 64), (4, 128, 16, 64), (6, 128, 32, 128), (7, 256, 32, 128), (9, 256, 48, 192),
          (10, 384, 48, 192), (11, 384, 64, 256), (12, 512, 64, 256))  # fmt: skip


def camrt(method: str, classes: int) -> Work:
    """`camrt explain` with its defaults, from the moment that the model is loaded."""

    def work(files: list[Path], out: Path) -> float:
        began = 0.0

        @contextlib.contextmanager
        def loaded(total: int) -> Iterator[Callable[[int], None]]:
            nonlocal began
            began = time.perf_counter()
            yield lambda count: None

        found, _ = find_images(map(str, files))
        with Batch(out, str(SQUEEZENET), method=method, top=classes, preprocess="torchvision") as batch:
            failed = batch.explain(found, progress=loaded)
        assert not failed, failed
        return time.perf_counter() - began

    return work


def network_alone() -> Work:
    """The forward pass, in a session as camrt opens it."""
    session = onnxruntime.InferenceSession(SQUEEZENET, providers=["CPUExecutionProvider"])
    batch = np.random.default_rng(0).standard_normal((1, 3, _SIDE, _SIDE), np.float32)

    def work(files: list[Path], out: Path) -> float:
        began = time.perf_counter()
        for _ in files:
            session.run(None, {"input": batch})
        return time.perf_counter() - began

    return work


# ----------------------------------------------------------------------------------------------------------- PyTorch


def torch_network() -> Any:
    """SqueezeNet 1.1 with the weights of the ONNX file, whose names are torchvision's."""
    nn = torch.nn

    class Fire(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self, channels: int, squeeze: int, expand: int) -> None:
            super().__init__()
            self.squeeze = nn.Conv2d(channels, squeeze, 1)
            self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
            self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.squeeze(x))
            return torch.cat([torch.relu(self.expand1x1(x)), torch.relu(self.expand3x3(x))], 1)

    class SqueezeNet(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            layers: list[Any] = [nn.Identity() for _ in range(13)]
            layers[0], layers[1] = nn.Conv2d(3, 64, 3, 2), nn.ReLU()
            for position in (2, 5, 8):
                layers[position] = nn.MaxPool2d(3, 2, ceil_mode=True)
            for position, *channels in _FIRES:
                layers[position] = Fire(*channels)
            self.features = nn.Sequential(*layers)
            self.classifier = nn.Sequential(nn.Identity(), nn.Conv2d(512, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

        def forward(self, x: Any) -> Any:
            return torch.flatten(self.classifier(self.features(x)), 1)

    model = SqueezeNet().eval()
    weights = {each.name: torch.tensor(numpy_helper.to_array(each)) for each in onnx.load(SQUEEZENET).graph.initializer}
    model.load_state_dict({name: weights[name].float() for name in model.state_dict()})
    return model


def gradcam_people_write(model: Any, classes: int) -> Work:
    """The loop of pytorch-grad-cam's README over files and classes."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import preprocess_image, show_cam_on_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def work(files: list[Path], out: Path) -> float:
        began = time.perf_counter()
        with GradCAM(model=model, target_layers=[model.features[12]]) as cam:
            for file in files:
                image = np.float32(cv2.imread(str(file))[:, :, ::-1]) / 255
                tensor = preprocess_image(cv2.resize(image, (_SIDE, _SIDE)), MEAN.tolist(), DEVIATION.tolist())
                with torch.no_grad():
                    best = model(tensor)[0].topk(classes).indices.tolist()
                for rank, one in enumerate(best, 1):
                    gray = cam(input_tensor=tensor, targets=[ClassifierOutputTarget(one)])[0]
                    gray = cv2.resize(gray, (image.shape[1], image.shape[0]))
                    drawn = show_cam_on_image(image, gray, use_rgb=True)
                    cv2.imwrite(str(out / f"{file.stem}_{rank}.jpg"), cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
        return time.perf_counter() - began

    return work


def torchcam_people_write(model: Any, classes: int) -> Work:
    """The loop of torch-cam's README over files and classes."""
    from PIL import Image
    from torchcam.methods import CAM
    from torchcam.utils import overlay_mask

    def work(files: list[Path], out: Path) -> float:
        began = time.perf_counter()
        with CAM(model, model.features[12], model.classifier[1]) as extractor:
            for file in files:
                image = Image.open(file).convert("RGB")
                pixels = np.float32(image.resize((_SIDE, _SIDE))) / 255
                tensor = torch.from_numpy(((pixels - MEAN) / DEVIATION).transpose(2, 0, 1)[None].copy())
                with torch.inference_mode():
                    scores = model(tensor)
                for rank, one in enumerate(scores[0].topk(classes).indices.tolist(), 1):
                    mask = Image.fromarray(extractor(one, scores)[0][0].numpy(), mode="F")
                    overlay_mask(image, mask, alpha=0.5).save(out / f"{file.stem}_{rank}.jpg")
        return time.perf_counter() - began

    return work


def check_classes(model: Any, files: list[Path]) -> None:
    """Both see the same in the first photographs."""
    explainer = Explainer(str(SQUEEZENET), preprocess="torchvision", top=1)
    for file in files[:5]:
        prepared = explainer.prepare(file)
        pixels = (np.float32(prepared.loaded.square) / 255 - MEAN) / DEVIATION
        with torch.no_grad():
            expected = int(model(torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()))[0].argmax())
        found = explainer.explain_prepared([prepared])[0]
        assert not isinstance(found, Exception), found
        assert found.classes[0] == expected, (file, found.classes, expected)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40, help="photographs a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", default="640x480", help="of the photographs, width x height")
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--full", action="store_true", help="200 photographs, 5 rounds")
    arguments = parser.parse_args()
    if not SQUEEZENET.is_file():
        raise SystemExit(f"found no {SQUEEZENET}, expected the reference data (CAMRT_REFERENCE)")
    count, rounds = (200, 5) if arguments.full else (arguments.images, arguments.rounds)
    fitting_torchvision.install()  # for pytorch-grad-cam, which imports it
    width, height = map(int, arguments.size.split("x"))

    with tempfile.TemporaryDirectory() as temporary:
        files = folder_of_photographs(Path(temporary) / "photographs", count, (height, width))
        contenders = {f"camrt, {method}": camrt(method, arguments.classes) for method in ("cam", "gradcam")}
        if torch is None:
            print("note: without PyTorch, camrt is measured alone")
        else:
            model = torch_network()
            check_classes(model, files)
            for name, make in (("pytorch-grad-cam", gradcam_people_write), ("torch-cam", torchcam_people_write)):
                try:
                    contenders[name] = make(model, arguments.classes)
                except ImportError as error:
                    print(f"note: {name} is left out: {error}")
        contenders["the network alone"] = network_alone()
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        written: dict[str, float] = {}
        for number in range(rounds + 1):  # the first does not count
            for name, work in contenders.items():
                out = Path(temporary) / "out"
                out.mkdir()
                spent = work(files if number else files[:5], out)
                if number:
                    seconds[name].append(spent / count)
                    written[name] = sum(file.stat().st_size for file in out.iterdir()) / count / 1000
                shutil.rmtree(out)

    ours = seconds["camrt, cam"]
    table = Table(title=f"{count} JPEGs of {width} x {height}, {arguments.classes} classes, overlays written")
    for column in ("contender", "ms an image", "kB an image", "times camrt, cam"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for name, spent in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(spent, ours, strict=True))
        table.add_row(name, f"{1000 * statistics.median(spent):.1f}", f"{written[name]:.0f}", f"{ratio:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
