"""Targets of detectors as users write them: ``box``, ``box:best``, ``box:2``, ``box:X1,Y1,X2,Y2``, each ``:CLASS``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camrt.errors import CamrtError

BOX = "box"
MOST = 100  # detections that can be asked for by their rank
_FORMS = "box, box:best, box:2 (the second best) or box:LEFT,TOP,RIGHT,BOTTOM in pixels of the image, each with :CLASS"


@dataclass(frozen=True)
class BoxTarget:
    """A detection that is to be explained.

    Attributes:
        corners: Left, top, right and bottom in pixels of the image: the detection that overlaps it most; None for one
            by its rank.
        rank: 1 is the best detection; 0 the best that no other target takes.
        label: A class, by name or number: detections of other classes do not count; "" for all.
    """

    corners: tuple[float, float, float, float] | None = None
    rank: int = 0
    label: str = ""

    def shares(self, size: tuple[int, int]) -> NDArray[np.float32]:
        """What the graph's input ``box`` takes.

        Args:
            size: Height and width of the image in pixels.

        Returns:
            (4,) float32: left, top, right and bottom as shares of the image; of a rank, that and three zeros.
        """
        if self.corners is None:
            return np.array([self.rank, 0, 0, 0], np.float32)
        height, width = size
        shares: NDArray[np.float32] = (np.array(self.corners) / [width, height, width, height]).astype(np.float32)
        return shares


def is_box(target: Any) -> bool:
    """Whether a target, or one of several, is a box."""
    several = [target] if isinstance(target, str) or np.ndim(target) == 0 else list(target)
    return any(isinstance(each, str) and each.partition(":")[0] == BOX for each in several)


def box_targets(target: str | Sequence[Any], count: int) -> list[BoxTarget]:
    """Read the boxes that are to be explained.

    Args:
        target: One, or several.
        count: How many maps there are: the best detections take the places that are left.

    Raises:
        CamrtError: One has another form, or there are more of them than maps.
    """
    asked = [target] if isinstance(target, str) else list(target)
    if not 0 < len(asked) <= count:
        raise CamrtError(f"found {len(asked)} boxes, expected 1 to {count}: the explainer explains as many")
    return [*map(_parsed, asked), *[BoxTarget()] * (count - len(asked))]


def _parsed(text: Any) -> BoxTarget:
    name, _, rest = str(text).partition(":")
    place, _, label = rest.partition(":")
    if name != BOX or rest.endswith(":"):
        raise CamrtError(f"found the target {text!r}, expected {_FORMS}")
    if place in ("", "best"):
        return BoxTarget(rank=int(place == "best"), label=label)
    if place.isdecimal():
        if not 1 <= int(place) <= MOST:
            raise CamrtError(f"found the target {text!r}, expected a rank of 1 to {MOST}")
        return BoxTarget(rank=int(place), label=label)
    try:
        numbers = [float(each) for each in place.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise CamrtError(f"found the target {text!r}, expected {_FORMS}")
    left, top, right, bottom = numbers
    if not (left < right and top < bottom):
        raise CamrtError(
            f"found the target {text!r}, expected left < right and top < bottom: it is two corners, not a width and a "
            "height"
        )
    return BoxTarget((left, top, right, bottom), label=label)
