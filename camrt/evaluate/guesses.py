"""From the maps of an image to the boxes that are guessed, as ILSVRC_generate_heatmap.m and ILSVRC_evaluate_bbox.m."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from camrt import images, results
from camrt.errors import CamrtError
from camrt.evaluate.segments import FRACTION, boxes_of_segments
from camrt.localize import boxes_from_heatmap
from camrt.localize.boxes import THRESHOLDS

QUALITY = 75  # of the JPEG that MATLAB's imwrite writes
BOXES = ("dt", "threshold")
ENCODINGS = ("jpeg", "png")

Boxes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Maps:
    """What is needed of an explained image.

    Attributes:
        image: What it is called.
        heatmaps: (top, S, S) float32, not normalised.
        size: Height and width of the image in pixels.
        facts: What else is to be kept of it.
    """

    image: str
    heatmaps: npt.NDArray[np.float32]
    size: tuple[int, int]
    facts: dict[str, Any]


@dataclass(frozen=True)
class BoxRule:
    """How maps become boxes. Called with `Maps`, also in another process.

    Attributes:
        boxes: ``"dt"``, the original's generator, or ``"threshold"``, the paper's text.
        thresholds: Three grey levels, for ``"dt"``.
        fraction: Of the maximum, for ``"threshold"``.
        encoding: ``"jpeg"``: the boxes are found in the map as the original's JPEG gives it back; ``"png"``: nothing is
            lost.
        folder: Where the maps are kept, as ``top1/IMAGE.jpg``, ...; None for not at all.

    Raises:
        CamrtError: The thresholds do not rise from 1 to 254, or the fraction is not 0 <= fraction < 1.
    """

    boxes: Literal["dt", "threshold"] = "dt"
    thresholds: tuple[int, int, int] = THRESHOLDS
    fraction: float = FRACTION
    encoding: Literal["jpeg", "png"] = "jpeg"
    folder: Path | None = None

    def __post_init__(self) -> None:
        self.corners(np.zeros((1, 1), np.uint8))  # which says now what would be said of every map

    @property
    def settings(self) -> dict[str, Any]:
        """What the boxes depend on."""
        unused = {"folder", "fraction" if self.boxes == "dt" else "thresholds"}
        return {key: value for key, value in asdict(self).items() if key not in unused}

    def __call__(self, maps: Maps) -> tuple[str, dict[str, Any]]:
        """The image, and what is kept of it: size, the two largest boxes of each class, how many were found.

        Raises:
            CamrtError: A map cannot be written, or the thresholds do not rise.
        """
        chosen, counts = [], []
        for rank, heatmap in enumerate(maps.heatmaps, 1):
            levels, encoded = self._encoded(grey_levels(heatmap, maps.size))
            if self.folder is not None:
                ending = "jpg" if self.encoding == "jpeg" else "png"
                results.write(self.folder / f"top{rank}" / f"{maps.image}.{ending}", encoded)
            found = self.corners(levels)
            chosen.append(two_largest(found, maps.size).tolist())
            counts.append(len(found))
        height, width = maps.size
        return maps.image, {"size": [width, height], **maps.facts, "boxes": chosen, "found": counts}

    def corners(self, levels: npt.NDArray[np.uint8]) -> Boxes:
        """The boxes in a map.

        Args:
            levels: (H, W) uint8.

        Returns:
            (M, 4) int64 of x1, y1, x2, y2 in pixels, largest first. Of ``"dt"``: x and y, and these plus width and
            height, ordered, as in ILSVRC_evaluate_bbox.m: counted from 0, and the last pixel is outside, though the
            devkit takes it for inside and counts from 1. Of ``"threshold"``: as the devkit counts.

        Raises:
            CamrtError: The thresholds do not rise.
        """
        if self.boxes == "threshold":
            x, y, width, height = boxes_of_segments(levels, self.fraction).T
            return np.stack([x + 1, y + 1, x + width, y + height], axis=1)
        x, y, width, height = boxes_from_heatmap(levels, self.thresholds).T
        begin, end = np.stack([x, y], axis=1), np.stack([x + width, y + height], axis=1)
        return np.hstack([np.minimum(begin, end), np.maximum(begin, end)])

    def _encoded(self, levels: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], bytes]:
        """The map as it is read back, and the file."""
        if self.encoding == "png":
            from camrt.render import png

            return levels, png(levels) if self.folder is not None else b""
        return _as_jpeg(levels)


def grey_levels(heatmap: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A map as the picture that ILSVRC_generate_heatmap.m writes: resized, divided by its maximum, 8 bits as imwrite.

    Args:
        heatmap: (S, S) float32, not normalised.
        size: Height and width of the image in pixels.

    Returns:
        (H, W) uint8; 0 everywhere for a map without positive values, or with some that are not finite.
    """
    resized = images.resize(heatmap, size)
    highest = float(resized.max())
    if not 0 < highest < np.inf:
        return np.zeros(size, np.uint8)
    scaled = np.clip(resized / np.float32(highest), 0, 1) * np.float32(255)
    return np.floor(scaled + np.float32(0.5)).astype(np.uint8)


def two_largest(boxes: Boxes, size: tuple[int, int]) -> Boxes:
    """The first two boxes; where there is one, that one twice; where there is none, the whole image twice.

    ILSVRC_evaluate_bbox.m stops with an error at a map with fewer than two boxes.

    Args:
        boxes: (M, 4) x1, y1, x2, y2 in pixels.
        size: Height and width of the image in pixels.

    Returns:
        (2, 4).
    """
    if not len(boxes):
        boxes = np.array([[1, 1, size[1], size[0]]], np.int64)
    return np.stack([boxes[0], boxes[min(1, len(boxes) - 1)]])


def _as_jpeg(levels: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], bytes]:
    """What a grey JPEG of imwrite's quality keeps of a map, and the file."""
    from PIL import Image

    stream = io.BytesIO()
    try:
        Image.fromarray(levels).save(stream, "JPEG", quality=QUALITY)
        with Image.open(stream, formats=("JPEG",)) as image:
            return np.asarray(image), stream.getvalue()
    except OSError as error:  # more than 65,500 pixels wide
        raise CamrtError(f"a map of {levels.shape} cannot be written as JPEG ({error}). Use --encoding png") from error
