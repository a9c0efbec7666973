"""Photographs for the benchmarks: those that come with scikit-image, and those of the reference data."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from camrt import images

REFERENCE = Path(os.environ.get("CAMRT_REFERENCE", Path(__file__).resolve().parent.parent / ".." / "shared/reference"))
SQUEEZENET = REFERENCE / "squeezenet/squeezenet1_1.onnx"
_SCIKIT_IMAGE = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "retina.jpg")
_REFERENCE = ("squeezenet/cat.jpg", "matlab_demo/img1.jpg", "matlab_demo/img2.jpg", "bbox/sample_6.jpg")
_SHAPES = {"4:3": 4 / 3, "3:4": 3 / 4, "16:9": 16 / 9}  # what cameras and phones make


def photographs() -> dict[str, NDArray[np.uint8]]:
    """Read the photographs that are there: name -> (H, W, 3) uint8 RGB."""
    files = [REFERENCE / name for name in _REFERENCE]
    try:
        import skimage

        files += [Path(skimage.__file__).parent / "data" / name for name in _SCIKIT_IMAGE]
    except ImportError:
        print("note: without scikit-image there are fewer photographs")
    found = {file.stem: images.decode(file) for file in files if file.is_file()}
    if not found:
        raise SystemExit(f"found no photographs: install scikit-image, or put the reference data into {REFERENCE}")
    return found


def in_common_shapes() -> dict[str, NDArray[np.uint8]]:
    """Cut the photographs to the proportions of cameras, around the center: name and shape -> (H, W, 3) uint8 RGB."""
    cut = {}
    for name, image in photographs().items():
        height, width = image.shape[:2]
        for shape, proportion in _SHAPES.items():
            h, w = min(height, round(width / proportion)), min(width, round(height * proportion))
            y, x = (height - h) // 2, (width - w) // 2
            cut[f"{name} {shape}"] = np.ascontiguousarray(image[y : y + h, x : x + w])
    return cut


def folder_of_photographs(folder: Path, count: int, size: tuple[int, int] = (480, 640)) -> list[Path]:
    """Write JPEGs as cameras make them: parts of the photographs, resized.

    Args:
        folder: Made if it is not there.
        count: How many.
        size: Height and width in pixels.

    Returns:
        Their paths.
    """
    import cv2

    rng, sources = np.random.default_rng(0), list(photographs().values())
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"photograph{number:04}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        source = sources[number % len(sources)]
        height, width = source.shape[:2]
        share = rng.uniform(0.6, 1) * min(height / size[0], width / size[1])
        h, w = int(size[0] * share), int(size[1] * share)
        y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        part = cv2.resize(source[y : y + h, x : x + w], size[::-1], interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(path), part[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    return paths
