"""How well the map of an image is placed: what journals keep of it."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camrt import images as pixels
from camrt.errors import CamrtError
from camrt.evaluate import faithfulness, wsol
from camrt.evaluate.annotated import Annotated

BOXES, MASKS, POINTING = "boxes", "masks", "pointing"


@dataclass
class Seen:
    """An explained image, as far as it is needed on.

    Attributes:
        annotated: Its annotation.
        label: The number of its class.
        heatmap: (S, S) float32.
        size: Its width and height.
        rank: The place of its class among the scores.
        square: (S, S, 3) uint8, where the network is asked again.
    """

    annotated: Annotated
    label: int
    heatmap: NDArray[np.float32]
    size: tuple[int, int]
    rank: int
    square: NDArray[np.uint8] | None = None


@dataclass
class Job:
    """What another process is asked for, with what is known by then."""

    seen: Seen
    groups: tuple[str, ...]
    found: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Placing:
    """How well a map is placed. Called with a job, also in another process."""

    side: int
    tolerance: float
    masks: Path | None

    def __call__(self, job: Job) -> tuple[str, dict[str, Any]]:
        """The image of the job, and what was found in it by group.

        Raises:
            CamrtError: A mask cannot be used.
        """
        seen, found = job.seen, dict(job.found)
        annotated = seen.annotated
        if {BOXES, MASKS} & set(job.groups):
            heatmap = wsol.normalized(pixels.resize(seen.heatmap, (self.side, self.side)))
        if BOXES in job.groups:
            truth = wsol.resized_boxes(np.array(annotated.boxes), annotated.size or seen.size, self.side)
            ious = wsol.overlaps_of_levels(wsol.grey_levels(heatmap), truth)
            found[BOXES] = {"rank": seen.rank, "ious": packed(ious.astype("<f4"))}
        if MASKS in job.groups:
            on, without = self._masks(annotated, seen.size)
            found[MASKS] = {"pixels": packed(wsol.pixel_counts(heatmap, on, without).astype("<i4"))}
        if POINTING in job.groups:
            point = faithfulness.highest_point(seen.heatmap, seen.size)
            hit = faithfulness.pointing_hit(point, np.array(annotated.boxes), self.tolerance)
            found[POINTING] = {"hit": hit}
        return annotated.image, found

    def _masks(self, annotated: Annotated, size: tuple[int, int]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        assert self.masks is not None
        masks = [_mask(self.masks / name, size, annotated) for name in annotated.masks]
        without = _mask(self.masks / annotated.ignored, size, annotated) if annotated.ignored else None
        return wsol.merged_masks(masks, without, self.side)


def _mask(path: Path, size: tuple[int, int], annotated: Annotated) -> NDArray[np.uint8]:
    """A mask; it may have another size than the image, as those of OpenImages have, but not another shape."""
    mask: NDArray[np.uint8] = pixels.decode(path).max(axis=2)
    height, width = mask.shape
    if abs(width * size[1] - height * size[0]) > 0.02 * width * size[1] + max(width, size[1]):
        raise CamrtError(
            f"found a mask of {width} x {height} pixels for {annotated.image!r} of {size[0]} x {size[1]} "
            f"({annotated.place}), expected one of its shape",
            file=str(path),
        )
    return mask


def packed(array: NDArray[Any]) -> str:
    """An array as text for a journal."""
    return base64.b64encode(zlib.compress(array.tobytes(), 6)).decode("ascii")


def unpacked(text: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """What was `packed`.

    Raises:
        ValueError: It was something else.
    """
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), dtype).reshape(shape)
    except zlib.error as error:
        raise ValueError(str(error)) from error
