"""An explanation whose maps follow the image's edges."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camrt import images, render
from camrt.errors import CamrtError
from camrt.explanation import THRESHOLDS, Explanation
from camrt.localize import boxes_from_mask
from camrt.localize.crf import CRF, probability

MAX_SIDE = 2048  # pixels; a square of them takes some 1.2 GB
_MASK = 0.5


@dataclass(frozen=True, eq=False, repr=False)
class Refined(Explanation):
    """An explanation with refined maps, as `Explanation.refine` makes it.

    Boxes, overlays, pictures and files come from the refined maps. ``heatmaps`` are as the network gave them. When
    saved, ``cat_mask1.png``, ... (0 or 255) are written too, and ``cat_maps.npz`` holds ``marginals``.

    Attributes:
        marginals: (top, h, w) float32: the probability of each pixel being of the class's object, as it was computed:
            at a bounded size in the image's proportions.
        crf: The settings.
    """

    marginals: NDArray[np.float32]
    crf: CRF

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.marginals.ndim != 3 or len(self.marginals) != len(self) or 0 in self.marginals.shape[1:]:
            raise CamrtError(f"found marginals of shape {self.marginals.shape}, expected ({len(self)}, h, w)")
        view = self.marginals.view()
        view.flags.writeable = False
        object.__setattr__(self, "marginals", view)

    def resized(self, i: int, size: tuple[int, int]) -> NDArray[np.float32]:
        """The marginals of a class at a size, 0..1.

        Args:
            i: The class: 0 is the best.
            size: Height and width in pixels.

        Returns:
            (height, width) float32.

        Raises:
            CamrtError: There is no such class.
        """
        self._check_class(i)
        resized: NDArray[np.float32] = np.clip(images.resize(self.marginals[i], size), 0, 1)  # bicubic goes beyond
        return resized

    def heatmap(self, i: int = 0) -> NDArray[np.float32]:
        """The marginals of a class at the image's size. They are not scaled to a largest value of 1.

        Args:
            i: The class: 0 is the best.

        Returns:
            (H, W) float32, 0..1.

        Raises:
            CamrtError: There is no such class.
        """
        return self.resized(i, self._size)

    def mask(self, i: int = 0) -> NDArray[np.bool_]:
        """Where the object is: the pixels with a marginal above 0.5.

        Args:
            i: The class: 0 is the best.

        Returns:
            (H, W) bool.

        Raises:
            CamrtError: There is no such class.
        """
        return self.heatmap(i) > _MASK

    def boxes(self, i: int = 0, thresholds: Sequence[int] = THRESHOLDS) -> NDArray[np.int64]:
        """Boxes around the parts of the mask; see `camrt.localize.boxes_from_mask`.

        Args:
            i: The class: 0 is the best.
            thresholds: Not looked at: a mask has one edge.

        Returns:
            (M, 4) int64 of x, y, width, height in the image's pixels, that of the largest part first.

        Raises:
            CamrtError: There is no such class.
        """
        return boxes_from_mask(self.mask(i))

    def as_dict(self, thresholds: Sequence[int] | None = None) -> dict[str, Any]:
        """As `Explanation.as_dict`, and ``"crf"``: the settings, and the size at which the marginals were computed.

        Args:
            thresholds: None for no boxes. Their values are not looked at.
        """
        height, width = self.marginals.shape[1:]
        return {**super().as_dict(thresholds), "crf": {**self.crf.as_dict(), "width": width, "height": height}}

    def _pictures(
        self, i: int, stem: str, overlays: bool, maps: str | None, thresholds: Sequence[int] | None
    ) -> list[tuple[str, bytes]]:
        mask = np.where(self.mask(i), np.uint8(255), np.uint8(0))
        return [
            *super()._pictures(i, stem, overlays, maps, thresholds),
            (f"{stem}_mask{i + 1}.png", render.png(mask)),
        ]

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {**super()._arrays(), "marginals": self.marginals}


def refined(explanation: Explanation, edges: NDArray[np.uint8], crf: CRF, side: int) -> Refined:
    """As `Explanation.refine`, which has the texts for users.

    Args:
        explanation: What to refine.
        edges: (H, W, 3) uint8 RGB: the image that the maps shall follow.
        crf: The settings.
        side: In pixels, of the longer side.

    Raises:
        CamrtError: A map is not finite, or ``side`` is out of range.
    """
    if not isinstance(side, int) or not 1 <= side <= MAX_SIDE:
        raise CamrtError(f"found side={side!r}, expected an integer from 1 to {MAX_SIDE} pixels")
    fitted = render.fit(edges, side, enlarge=True)
    maps = np.empty((len(explanation), *fitted.shape[:2]), np.float32)
    for i, label in enumerate(explanation.labels):
        try:
            maps[i] = probability(images.resize(explanation.heatmaps[i], fitted.shape[:2]))
        except CamrtError as error:
            raise CamrtError(f"the map of {label!r} cannot be refined: {error}", file=explanation.source) from None
    given = {field.name: getattr(explanation, field.name) for field in dataclasses.fields(Explanation)}
    return Refined(**given, marginals=crf.refine(fitted, maps), crf=crf)
