"""What was found in an image: the frozen result, and what is made of it after the graph."""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from camrt import images, render, results
from camrt.errors import CamrtError
from camrt.results import LINES

if TYPE_CHECKING:
    from camrt.images import ImageLike
    from camrt.localize.crf import CRF
    from camrt.refined import Refined

THRESHOLDS = (20, 100, 110)  # of generate_bbox.m


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """An image, the classes that the network sees in it, and where it sees them.

    The arrays are read-only. All methods count the classes from 0, the best one.

    Attributes:
        image: (H, W, 3) uint8 RGB: the image as it was decoded.
        source: Its path, or what it was.
        classes: (top,) int64: the numbers of the classes, the best first.
        scores: (top,) float32: their scores.
        labels: Their names; their numbers as text, where names are not known.
        heatmaps: (top, S, S) float32: their maps over the image, squeezed to a square; not normalised.
        all_scores: (K,) float32: the scores of all classes.
    """

    image: NDArray[np.uint8]
    source: str
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]
    labels: tuple[str, ...]
    heatmaps: NDArray[np.float32]
    all_scores: NDArray[np.float32]

    def __post_init__(self) -> None:
        top = len(self.classes)
        square = (top, *self.heatmaps.shape[-1:] * 2)
        if not len(self.scores) == len(self.labels) == top or self.heatmaps.shape != square:
            raise CamrtError(
                f"found {top} classes, {len(self.scores)} scores, {len(self.labels)} labels and heatmaps of shape "
                f"{self.heatmaps.shape}, expected as many of each, and square heatmaps"
            )
        for name in ("image", "classes", "scores", "heatmaps", "all_scores"):
            view = getattr(self, name).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        best = f"{self.labels[0]!r} {self.scores[0]:.3f}" if self.labels else "nothing"
        more = f" and {len(self.labels) - 1} more" if len(self.labels) > 1 else ""
        return f"<Explanation of {self.source} ({width} x {height}): {best}{more}>"

    def __reduce__(self) -> tuple[type[Explanation], tuple[Any, ...]]:
        """Pickles by the constructor, so that the arrays are read-only again."""
        return type(self), tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def __len__(self) -> int:
        """The number of classes that are explained."""
        return len(self.labels)

    def heatmap(self, i: int = 0) -> NDArray[np.float32]:
        """The map of a class at the image's size, its largest value 1; as ILSVRC_generate_heatmap.m writes it.

        The map is resized (bicubic), divided by its maximum, and clipped to 0..1 as imwrite does. A map without
        positive values is 0 everywhere.

        Args:
            i: The class: 0 is the best.

        Returns:
            (H, W) float32, 0..1.

        Raises:
            CamrtError: There is no such class.
        """
        heatmap = self.resized(i, self._size)
        highest = float(heatmap.max())
        if not highest > 0 or not math.isfinite(highest):
            return np.zeros_like(heatmap)
        scaled: NDArray[np.float32] = np.clip(heatmap / np.float32(highest), 0, 1)
        return scaled

    def resized(self, i: int, size: tuple[int, int]) -> NDArray[np.float32]:
        """The map of a class at a size (bicubic), not normalised.

        Args:
            i: The class: 0 is the best.
            size: Height and width in pixels.

        Returns:
            (height, width) float32.

        Raises:
            CamrtError: There is no such class.
        """
        self._check_class(i)
        return images.resize(self.heatmaps[i], size)

    def refine(self, image: ImageLike | None = None, *, crf: CRF | None = None, side: int = 256) -> Refined:
        """Lets the maps follow the image's edges, by a dense CRF (`camrt.localize.crf`).

        The image is resized so that its longer side has ``side`` pixels, be it smaller or larger: the settings then
        mean the same in every image, and time and memory are bounded, whatever its size. At 256, the first map takes
        some 0.2 s and each further one 0.1 s. What is found is resized to the image for masks, boxes and overlays.

        Args:
            image: What the maps shall follow, where it is to be another one than the explanation's: as for
                `camrt.images.decode`.
            crf: The settings; if left out, those of the original: sdims 10, schan 20, compat 10, 50 iterations.
            side: In pixels, 1 to 2048. Standard deviations (sdims) are in pixels of this size. 1024 takes 300 MB, and
                20 to 40 times as long as 256.

        Returns:
            An explanation whose boxes, overlays, pictures and files come from the refined maps, and which has masks.

        Raises:
            CamrtError: A map is not finite, the image cannot be read, or an argument is wrong.

        Example:
            >>> refined = camrt.Explainer("googlenetCAM")("img1.jpg").refine()  # doctest: +SKIP
            >>> refined.mask(0), refined.boxes(0)  # doctest: +SKIP
        """
        from camrt.localize.crf import CRF
        from camrt.refined import refined

        edges = self.image if image is None else images.decode(image)
        return refined(self, edges, CRF() if crf is None else crf, side)

    def boxes(self, i: int = 0, thresholds: Sequence[int] = THRESHOLDS) -> NDArray[np.int64]:
        """Boxes around what stands out in the map of a class; see `camrt.localize.boxes_from_heatmap`.

        The original reads the map from a JPEG; here nothing is lost on the way.

        Args:
            i: The class: 0 is the best.
            thresholds: Three grey levels, 0 < first < second < third < 255.

        Returns:
            (M, 4) int64 of x, y, width, height in the image's pixels, largest first.

        Raises:
            CamrtError: There is no such class, or the thresholds do not rise.
        """
        from camrt.localize import boxes_from_heatmap

        return boxes_from_heatmap(np.floor(self.heatmap(i) * 255 + 0.5).astype(np.uint8), thresholds)

    def overlay(
        self, i: int = 0, *, image_weight: float = render.IMAGE_WEIGHT, map_weight: float = render.MAP_WEIGHT
    ) -> NDArray[np.uint8]:
        """The map of a class over the image, 0.2 of the image and 0.7 of the map's colours, as demo.m.

        Args:
            i: The class: 0 is the best.
            image_weight: The image's share.
            map_weight: The colours' share.

        Returns:
            (H, W, 3) uint8 RGB.

        Raises:
            CamrtError: There is no such class.
        """
        return render.overlay(self.image, self.resized(i, self._size), image_weight=image_weight, map_weight=map_weight)

    def picture(self, *, square: bool = False, thresholds: Sequence[int] | None = None) -> NDArray[np.uint8]:
        """The demo's picture: the image and an overlay for each class side by side, white bars between them.

        Args:
            square: Whether the image is squeezed to the square that the network sees, as demo.m shows it.
            thresholds: Of the boxes that are drawn on the overlays; None for no boxes.

        Returns:
            (H, W + top * (W + 8), 3) uint8 RGB; square, with S for H and W.
        """
        shown = self._squared() if square else self
        overlays = [shown.overlay(i) for i in range(len(self))]
        if thresholds is not None:
            overlays = [render.draw_boxes(drawn, shown.boxes(i, thresholds)) for i, drawn in enumerate(overlays)]
        return render.row([shown.image, *overlays])

    def as_dict(self, thresholds: Sequence[int] | None = None) -> dict[str, Any]:
        """What JSON can hold: source, size, and for each class its number, label, score and boxes.

        Args:
            thresholds: Of the boxes; None for no boxes.

        Returns:
            ``{"source", "width", "height", "top": [{"class", "label", "score", "boxes"}]}``, the boxes as lists of
            x, y, width, height. A score that is not finite is None.
        """
        height, width = self.image.shape[:2]
        top: list[dict[str, Any]] = []
        for i, (number, label, score) in enumerate(zip(self.classes, self.labels, self.scores, strict=True)):
            shortest = float(str(score)) if np.isfinite(score) else None
            top.append({"class": int(number), "label": label, "score": shortest})
            if thresholds is not None:
                top[-1]["boxes"] = self.boxes(i, thresholds).tolist()
        return {"source": self.source, "width": width, "height": height, "top": top}

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        stem: str | None = None,
        overlays: bool = True,
        maps: Literal["png", "npz"] | None = "png",
        thresholds: Sequence[int] | None = THRESHOLDS,
        draw_boxes: bool = False,
    ) -> dict[str, Any]:
        """Writes the explanation to a folder.

        Its files, as `save_files` writes them, and then a line of ``explanations.jsonl``: where it is, the files are.
        It is added to those that are there.

        Args:
            folder: Made if it is not there.
            stem: What the names of the files begin with; by default the source's name without its ending.
            overlays: Whether overlays are written.
            maps: How the maps are written; None for not at all.
            thresholds: Of the boxes in the line; None for no boxes.
            draw_boxes: Whether the boxes are drawn on the overlays too.

        Returns:
            What the line says: `as_dict`, and ``"files"``, their names in the folder.

        Raises:
            CamrtError: The folder cannot be written to, or an argument is wrong.
        """
        facts = self.as_dict(thresholds)
        drawn = thresholds if draw_boxes else None
        facts["files"] = self.save_files(folder, stem=stem, overlays=overlays, maps=maps, thresholds=drawn)
        results.append(Path(folder) / LINES, facts)
        return facts

    def save_files(
        self,
        folder: str | os.PathLike[str],
        *,
        stem: str | None = None,
        overlays: bool = True,
        maps: Literal["png", "npz"] | None = "png",
        thresholds: Sequence[int] | None = None,
        threads: Executor | None = None,
    ) -> list[str]:
        """Writes the overlays and maps.

        For ``cat.jpg``: ``cat_top1.png``, ... (overlays), ``cat_map1.png``, ... (16 bits, `heatmap` times 65535) or
        ``cat_maps.npz`` (``heatmaps`` as they are, ``classes``, ``scores``, ``all_scores``). A file that is there is
        replaced, and only by a whole one.

        Args:
            folder: Made if it is not there.
            stem: What the names of the files begin with; by default the source's name without its ending.
            overlays: Whether overlays are written.
            maps: How the maps are written; None for not at all.
            thresholds: Of the boxes that are drawn on the overlays; None for no boxes.
            threads: Where the classes are drawn and encoded beside each other.

        Returns:
            The names of the files in the folder.

        Raises:
            CamrtError: The folder cannot be written to, or an argument is wrong.
        """
        if maps not in ("png", "npz", None):
            raise CamrtError(f"found maps={maps!r}, expected 'png', 'npz' or None")
        stem = self._stem() if stem is None else stem
        target = Path(folder)
        if not stem or Path(stem).name != stem:
            raise CamrtError(f"found the stem {stem!r}, expected the beginning of a file name")
        files: list[str] = []
        try:
            target.mkdir(parents=True, exist_ok=True)
            for name, content in self._contents(stem, overlays, maps, thresholds, threads):
                results.write(target / name, content)
                files.append(name)
        except OSError as error:
            raise CamrtError(f"cannot be written to: {error.strerror or error}", file=str(target)) from error
        return files

    # ------------------------------------------------------------------------------------------------------------------

    @property
    def _size(self) -> tuple[int, int]:
        """The image's height and width."""
        height, width = self.image.shape[:2]
        return height, width

    def _check_class(self, i: int) -> None:
        if not -len(self) <= i < len(self):
            raise CamrtError(
                f"found class {i}, expected 0 to {len(self) - 1}: {len(self)} are explained", file=self.source
            )

    def _squared(self) -> Self:
        return dataclasses.replace(self, image=images.prepare(self.image, self.heatmaps.shape[-1]))

    def _stem(self) -> str:
        return Path(self.source).stem.strip("<>") or "image"

    def _contents(
        self, stem: str, overlays: bool, maps: str | None, thresholds: Sequence[int] | None, threads: Executor | None
    ) -> Iterator[tuple[str, bytes]]:
        """The names of the files and what is in them."""
        draw = functools.partial(self._pictures, stem=stem, overlays=overlays, maps=maps, thresholds=thresholds)
        for content in (threads.map if threads else map)(draw, range(len(self))):
            yield from content
        if maps == "npz":
            stream = io.BytesIO()
            arrays: dict[str, Any] = self._arrays()
            np.savez_compressed(stream, **arrays)
            yield f"{stem}_maps.npz", stream.getvalue()

    def _pictures(
        self, i: int, stem: str, overlays: bool, maps: str | None, thresholds: Sequence[int] | None
    ) -> list[tuple[str, bytes]]:
        """The files of a class."""
        drawn = []
        if overlays:
            overlay = self.overlay(i)
            if thresholds is not None:
                overlay = render.draw_boxes(overlay, self.boxes(i, thresholds))
            drawn.append((f"{stem}_top{i + 1}.png", render.png(overlay)))
        if maps == "png":
            grey = np.floor(self.heatmap(i).astype(np.float64) * 65535 + 0.5).astype(np.uint16)
            drawn.append((f"{stem}_map{i + 1}.png", render.png(grey)))
        return drawn

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """What the file of maps holds."""
        return {name: getattr(self, name) for name in ("heatmaps", "classes", "scores", "all_scores")}
