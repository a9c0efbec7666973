"""Explanations: the frozen result for an image, and what is made of it after the graph ran."""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from camrt import captions, images, render, results
from camrt.errors import CamrtError
from camrt.localize import THRESHOLDS
from camrt.render import PLAIN, STYLE, Style
from camrt.results import LINES
from converters.errors import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from camrt.images import ImageLike
    from camrt.localize.crf import CRF
    from camrt.render import PictureFormat

MAX_SIDE = 1024  # pixels: the longer side of the pictures that are written, where nothing else is said
_NOTEBOOK_SIDE = 256  # pixels: the longer side of the pictures in a notebook
MAX_CRF_SIDE = 2048  # pixels; a square of them takes some 1.2 GB
_MASK = 0.5
# Boxes (M, 4) times these: x, y, width, height -> left, top, right, bottom, and back.
_TO_CORNERS = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]])
_TO_SIZES = np.array([[1, 0, -1, 0], [0, 1, 0, -1], [0, 0, 1, 0], [0, 0, 0, 1]])


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """An image, the classes that the network sees in it, and where it sees them.

    The arrays are read-only. Methods count the classes from 0, the best one.

    Attributes:
        image: (H, W, 3) uint8 RGB: the image as it was decoded, or smaller (``max_side`` of `camrt.Explainer`).
        source: Its path, or what it was.
        classes: (top,) int64: the numbers of the classes, the best first.
        scores: (top,) float32: their scores.
        labels: Their names; their numbers as text, where names are not known.
        heatmaps: (top, S, S) float32: their maps over the image, squeezed to a square; not normalized.
        all_scores: (K,) float32: the scores of all classes.
        original_size: Height and width in pixels of the image as it was decoded; boxes are in these pixels.
        model: What the model calls itself; "" where nothing is known, as for the next four.
        method: How the maps were computed.
        protocol: What the network saw of the image.
        provider: What ran the network (``"CPUExecutionProvider"``).
        precision: What it computed in (``"fp32"``).
        standard_errors: (top, S, S) float32: the standard error of each value of the maps, of methods that draw random
            masks; else None.
        detections: (top, 4) float32: of a detector, the boxes that are explained: left, top, right and bottom in pixels
            of the original, not cut off at its borders; else None.
    """

    image: NDArray[np.uint8]
    source: str
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]
    labels: tuple[str, ...]
    heatmaps: NDArray[np.float32]
    all_scores: NDArray[np.float32]
    original_size: tuple[int, int] = field(default=(0, 0), kw_only=True)
    model: str = field(default="", kw_only=True)
    method: str = field(default="", kw_only=True)
    protocol: str = field(default="", kw_only=True)
    provider: str = field(default="", kw_only=True)
    precision: str = field(default="", kw_only=True)
    standard_errors: NDArray[np.float32] | None = field(default=None, kw_only=True)
    detections: NDArray[np.float32] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.original_size == (0, 0):
            object.__setattr__(self, "original_size", self._size)
        top = len(self.classes)
        square = (top, *self.heatmaps.shape[-1:] * 2)
        if not len(self.scores) == len(self.labels) == top or self.heatmaps.shape != square:
            raise CamrtError(
                f"found {top} classes, {len(self.scores)} scores, {len(self.labels)} labels and heatmaps of shape "
                f"{self.heatmaps.shape}, expected as many of each, and square heatmaps"
            )
        if self.standard_errors is not None and self.standard_errors.shape != self.heatmaps.shape:
            raise CamrtError(
                f"found standard errors of shape {self.standard_errors.shape}, expected {self.heatmaps.shape}"
            )
        if self.detections is not None and self.detections.shape != (top, 4):
            raise CamrtError(f"found detections of shape {self.detections.shape}, expected ({top}, 4)")
        for name in ("image", "classes", "scores", "heatmaps", "all_scores", "standard_errors", "detections"):
            if getattr(self, name) is None:
                continue
            view = getattr(self, name).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    def __repr__(self) -> str:
        height, width = self.original_size
        best = f"{self.labels[0]!r} {self.scores[0]:.3f}" if self.labels else "nothing"
        more = f" and {len(self.labels) - 1} more" if len(self.labels) > 1 else ""
        return f"<Explanation of {self.source} ({width} x {height}): {best}{more}>"

    def __reduce__(self) -> tuple[functools.partial[Explanation], tuple[()]]:
        """Pickle by the constructor, so that the arrays are read-only again."""
        return functools.partial(type(self), **self._fields()), ()

    def __len__(self) -> int:
        """Return the number of classes that are explained."""
        return len(self.labels)

    def heatmap(self, i: int = 0) -> NDArray[np.float32]:
        """Return the map of a class at the size of ``image``, scaled to a largest value of 1.

        As ILSVRC_generate_heatmap.m writes it: the map is resized (bicubic), divided by its maximum, and clipped to
        0..1 as imwrite does. A map without positive values is 0 everywhere.

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
        """Return the map of a class at a size (bicubic), not normalized.

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
        """Make the maps follow the image's edges, by a dense CRF (`camrt.localize.crf`).

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
        from camrt.localize.crf import CRF, probability

        if not isinstance(side, int) or not 1 <= side <= MAX_CRF_SIDE:
            raise CamrtError(f"found side={side!r}, expected an integer from 1 to {MAX_CRF_SIDE} pixels")
        crf = CRF() if crf is None else crf
        edges = render.fit(self.image if image is None else images.decode(image), side, enlarge=True)
        maps = np.empty((len(self), *edges.shape[:2]), np.float32)
        for i, label in enumerate(self.labels):
            try:
                maps[i] = probability(images.resize(self.heatmaps[i], edges.shape[:2]))
            except CamrtError as error:
                raise CamrtError(f"the map of {label!r} cannot be refined: {error}", file=self.source) from None
        given = {each.name: getattr(self, each.name) for each in dataclasses.fields(Explanation)}
        return Refined(**given, marginals=crf.refine(edges, maps), crf=crf)

    def fitted(self, side: int) -> Self:
        """Shrink the image so that its longer side has at most so many pixels.

        Overlays, maps, masks and pictures are then made at that size, and boxes found there. Boxes are still given in
        the pixels of the original, and so are width and height in `as_dict`.

        Args:
            side: In pixels.

        Returns:
            The explanation with a smaller image; itself where the image is small enough.
        """
        if max(self._size) <= side:
            return self
        return dataclasses.replace(self, image=render.fit(self.image, side))

    def boxes(self, i: int = 0, thresholds: Sequence[int] = THRESHOLDS) -> NDArray[np.int64]:
        """Find boxes around what stands out in the map of a class; see `camrt.localize.boxes_from_heatmap`.

        The original reads the map from a JPEG; here nothing is lost on the way.

        Args:
            i: The class: 0 is the best.
            thresholds: Three gray levels, 0 < first < second < third < 255.

        Returns:
            (M, 4) int64 of x, y, width, height in the original's pixels, largest first.

        Raises:
            CamrtError: There is no such class, or the thresholds do not rise.
        """
        return self._in_original(self._boxes(i, thresholds))

    def best_box(self, i: int = 0) -> NDArray[np.int64]:
        """Find a box around the best region of a class; see `camrt.localize.best_box`.

        Args:
            i: The class: 0 is the best.

        Returns:
            (1, 4) int64 of x, y, width, height in the original's pixels; (0, 4) where nothing stands out.

        Raises:
            CamrtError: There is no such class.
        """
        return self._in_original(self._best_box(i))

    def map_and_limits(self, i: int = 0) -> tuple[NDArray[np.float32], tuple[float, float] | None]:
        """Return the map of a class as overlays draw it, at its own size.

        Args:
            i: The class: 0 is the best.

        Returns:
            (h, w) float32 over the whole image; and the values of the first and the last color, or None where they are
            those of the map itself (`camrt.colors.limits`).

        Raises:
            CamrtError: There is no such class.
        """
        self._check_class(i)
        return self.heatmaps[i], None

    def overlay(self, i: int = 0, style: Style = PLAIN) -> NDArray[np.uint8]:
        """Lay the map of a class over the image, so that what is not hot stays the photograph.

        Args:
            i: The class: 0 is the best.
            style: Color map, opacity, boxes and caption; no boxes and no caption if left out.

        Returns:
            (H, W, 3) uint8 RGB; higher by the caption, which is below the picture.

        Raises:
            CamrtError: There is no such class, or the thresholds do not rise.
        """
        heatmap, limits = self.map_and_limits(i)
        height, width = self._size
        caption = self._caption(i) if style.caption else np.empty((0, width, 3), np.uint8)
        whole = np.empty((height + len(caption), width, 3), np.uint8)
        drawn, whole[height:] = whole[:height], caption
        render.overlay(self.image, heatmap, colormap=style.colormap, opacity=style.opacity, limits=limits, out=drawn)
        boxes = self._boxes_of(i, style)
        if boxes is not None:
            render.draw_boxes(drawn, boxes, out=drawn)
        return whole

    def picture(self, style: Style = STYLE) -> NDArray[np.uint8]:
        """Draw the image and an overlay for each class, side by side.

        Args:
            style: Color map, opacity, boxes and captions.

        Returns:
            (H, W + top * (W + 8), 3) uint8 RGB; higher by the captions.
        """
        image = self.image
        if style.caption:
            image = np.vstack([image, self._caption()])
        return render.row([image, *(self.overlay(i, style) for i in range(len(self)))])

    def figure(self, style: Style = STYLE) -> Figure:
        """Draw the image and the maps in a row, with captions and a color bar, for a paper or a notebook.

        Text and boxes stay vectors in a PDF or SVG. Needs matplotlib: ``pip install 'camrt[figures]'``.

        Args:
            style: Color map, opacity and boxes, and whether there are captions.

        Returns:
            A matplotlib figure, which is not registered with pyplot.

        Raises:
            CamrtError: matplotlib is not installed.

        Example:
            >>> explanation.figure().savefig("figure.pdf", bbox_inches="tight")  # doctest: +SKIP
        """
        from camrt.figure import Panel, figure

        panels = []
        for i, (label, score) in enumerate(zip(self.labels, self.scores.tolist(), strict=True)):
            boxes = self._boxes_of(i, style)
            found = np.zeros((0, 4)) if boxes is None else boxes
            panels.append(Panel(printable(label), captions.score_text(score), *self.map_and_limits(i), found))
        return figure(self.image, printable(Path(self.source).name), panels, style, note=self._made())

    def _repr_html_(self) -> str:
        """What a notebook shows: the image and the overlays, with captions."""
        shown = self.fitted(_NOTEBOOK_SIDE)
        height, width = self.original_size
        tiles = [(shown.image, Path(self.source).name, f"{width} × {height}")]
        style = dataclasses.replace(STYLE, caption=False)
        for i, (label, score) in enumerate(zip(self.labels, self.scores.tolist(), strict=True)):
            tiles.append((shown.overlay(i, style), label, captions.score_text(score)))
        return render.html_tiles(tiles, note=self._made())

    def _repr_png_(self) -> bytes:
        """What a notebook shows where it cannot show HTML."""
        return render.png(self.fitted(_NOTEBOOK_SIDE).picture())

    def demo_picture(self) -> NDArray[np.uint8]:
        """Draw what demo.m shows: the image squeezed to a square, and each map over it in jet, at a fixed opacity.

        Returns:
            (S, S + top * (S + 8), 3) uint8 RGB.
        """
        shown = dataclasses.replace(self, image=images.prepare(self.image, self.heatmaps.shape[-1]))
        maps = (shown.resized(i, shown._size) for i in range(len(self)))
        return render.row([shown.image, *(render.demo_overlay(shown.image, heatmap) for heatmap in maps)])

    def as_dict(
        self, boxes: Literal["best", "all"] | None = None, thresholds: Sequence[int] = THRESHOLDS
    ) -> dict[str, Any]:
        """Return a summary for JSON: source, size, and for each class its number, label, score and boxes.

        Args:
            boxes: ``"best"``: those of `best_box`; ``"all"``: those of `boxes`; None for no boxes.
            thresholds: Of ``"all"``.

        Returns:
            ``{"source", "width", "height", "top": [{"class", "label", "score", "boxes"}]}``, the boxes as lists of
            x, y, width, height. Of a detector ``"detection"``: the box that is explained, likewise.
            Where they are known, ``"method"``, ``"protocol"``, ``"provider"`` and ``"precision"``.
            A score that is not finite is None.
        """
        height, width = self.original_size
        top: list[dict[str, Any]] = []
        for i, (number, label, score) in enumerate(zip(self.classes, self.labels, self.scores, strict=True)):
            shortest = float(str(score)) if np.isfinite(score) else None
            top.append({"class": int(number), "label": label, "score": shortest})
            if self.detections is not None:
                top[-1]["detection"] = self._detection(i, self.original_size)[0].tolist()
            if boxes is not None:
                found = self.best_box(i) if boxes == "best" else self.boxes(i, thresholds)
                top[-1]["boxes"] = found.tolist()
        facts = {name: getattr(self, name) for name in ("method", "protocol", "provider", "precision")}
        known = {name: value for name, value in facts.items() if value}
        return {"source": self.source, "width": width, "height": height, "top": top, **known}

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        stem: str | None = None,
        overlays: bool = True,
        maps: Literal["png", "npz"] | None = None,
        style: Style = STYLE,
        form: PictureFormat = "jpeg",
        max_side: int | None = MAX_SIDE,
    ) -> dict[str, Any]:
        """Write the explanation to a folder.

        Its files, as `save_files` writes them, and then a line of ``explanations.jsonl``: where it is, the files are.
        It is added to those that are there.

        Args:
            folder: Made if it is not there.
            stem: What the names of the files begin with; by default the source's name without its ending.
            overlays: Whether overlays are written.
            maps: How the maps are written; None for not at all.
            style: How the overlays are drawn. The boxes that are drawn are in the line too.
            form: The format of the overlays, as for `camrt.render.encode`.
            max_side: The longer side in pixels of the largest pictures, as for `save_files`.

        Returns:
            What the line says: `as_dict`, and ``"files"``, their names in the folder.

        Raises:
            CamrtError: The folder cannot be written to, or an argument is wrong.
        """
        shown = self if max_side is None else self.fitted(max_side)
        record = shown.as_dict(style.boxes, style.thresholds)
        record["files"] = shown.save_files(
            folder, stem=stem, overlays=overlays, maps=maps, style=style, form=form, max_side=None
        )
        results.append(Path(folder) / LINES, record)
        return record

    def save_files(
        self,
        folder: str | os.PathLike[str],
        *,
        stem: str | None = None,
        overlays: bool = True,
        maps: Literal["png", "npz"] | None = None,
        style: Style = STYLE,
        form: PictureFormat = "jpeg",
        max_side: int | None = MAX_SIDE,
    ) -> list[str]:
        """Write the overlays and maps.

        For ``cat.png``: ``cat_top1.jpg``, ... (overlays); if maps are asked for, ``cat_map1.png``, ... (16 bits,
        `heatmap` times 65535) or ``cat_maps.npz`` (``heatmaps`` as the graph gives them, in float16 where its range
        holds them, ``classes``, ``scores``, ``all_scores``). A file that is there is replaced, and only by a whole one.

        Args:
            folder: Made if it is not there.
            stem: What the names of the files begin with; by default the source's name without its ending.
            overlays: Whether overlays are written.
            maps: How the maps are written; None for not at all.
            style: How the overlays are drawn.
            form: The format of the overlays, as for `camrt.render.encode`.
            max_side: The longer side in pixels of the largest pictures: those of a larger image are as large as
                `fitted` makes them. None for pictures as large as the image.

        Returns:
            The names of the files in the folder.

        Raises:
            CamrtError: The folder cannot be written to, or an argument is wrong.
        """
        if maps not in ("png", "npz", None):
            raise CamrtError(f"found maps={maps!r}, expected 'png', 'npz' or None")
        if form not in render.ENDINGS:
            raise CamrtError(f"found form={form!r}, expected one of {', '.join(render.ENDINGS)}")
        stem = self._stem() if stem is None else stem
        target = Path(folder)
        if not stem or Path(stem).name != stem:
            raise CamrtError(f"found the stem {stem!r}, expected the beginning of a file name")
        files: list[str] = []
        try:
            target.mkdir(parents=True, exist_ok=True)
            shown = self if max_side is None else self.fitted(max_side)
            for name, content in shown._contents(stem, form if overlays else None, maps, style):
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

    def _fields(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}

    def _boxes(self, i: int, thresholds: Sequence[int]) -> NDArray[np.int64]:
        """The boxes in the pixels of ``image``, which is what pictures are made of."""
        from camrt.localize import boxes_from_heatmap

        return boxes_from_heatmap(np.floor(self.heatmap(i) * 255 + 0.5).astype(np.uint8), thresholds)

    def _check_class(self, i: int) -> None:
        if not -len(self) <= i < len(self):
            raise CamrtError(
                f"found class {i}, expected 0 to {len(self) - 1}: {len(self)} are explained", file=self.source
            )

    def _best_box(self, i: int) -> NDArray[np.int64]:
        """The best box in the pixels of ``image``."""
        self._check_class(i)
        sizes: NDArray[np.int64] = np.rint(self._best_corners[i] * (self._size[::-1] * 2)).astype(np.int64) @ _TO_SIZES
        return sizes

    @functools.cached_property
    def _best_corners(self) -> list[NDArray[np.float64]]:
        """The corners of each class's best box, as shares of the image's sides: they are drawn, and written down."""
        from camrt.localize import best_box

        return [best_box(heatmap) @ _TO_CORNERS for heatmap in self.heatmaps]

    def _boxes_of(self, i: int, style: Style) -> NDArray[np.int64] | None:
        """The boxes that are drawn, in the pixels of ``image``."""
        if style.boxes is None:
            return None
        if self.detections is not None and style.boxes == "best":
            return self._detection(i, self._size)
        return self._best_box(i) if style.boxes == "best" else self._boxes(i, style.thresholds)

    def _detection(self, i: int, size: tuple[int, int]) -> NDArray[np.int64]:
        """The detection that is explained, in the pixels of an image of a size: (1, 4)."""
        assert self.detections is not None
        self._check_class(i)
        scale = np.array(size[::-1] * 2) / (self.original_size[::-1] * 2)
        height, width = size
        corners = np.clip(np.rint(self.detections[i] * scale), 0, [width, height, width, height])
        sizes: NDArray[np.int64] = corners.astype(np.int64)[None] @ _TO_SIZES
        return sizes

    def _in_original(self, boxes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Boxes in the pixels of ``image``, in those of the original."""
        if self.original_size == self._size:
            return boxes
        scale = np.array(self.original_size[::-1] * 2) / (self._size[::-1] * 2)
        sizes: NDArray[np.int64] = np.rint(boxes @ _TO_CORNERS * scale).astype(np.int64) @ _TO_SIZES
        return sizes

    def _caption(self, i: int | None = None) -> NDArray[np.uint8]:
        """What stands below the picture of a class; None for the image."""
        height, width = self.original_size
        if i is None:
            left, right = captions.drawable(Path(self.source).name, "image"), ""
            note = f"{width} x {height}"
        else:
            by_number = f"class {self.classes[i]}"
            nameless = self.labels[i] == str(self.classes[i])
            left = by_number if nameless else captions.drawable(self.labels[i], by_number)
            right, note = captions.score_text(float(self.scores[i])), self._made()
        return captions.caption(self._size[1], left, right, note, side=max(self._size))

    def _made(self) -> str:
        """How the maps were made, in a few words."""
        return " · ".join(part for part in (self.method, self.protocol) if part)

    def _stem(self) -> str:
        return results.shortened(Path(self.source).stem.strip("<>") or "image")

    def _contents(
        self, stem: str, form: PictureFormat | None, maps: str | None, style: Style
    ) -> Iterator[tuple[str, bytes]]:
        """The names of the files and what is in them."""
        for i in range(len(self)):
            yield from self._pictures(i, stem, form, maps, style)
        if maps == "npz":
            stream = io.BytesIO()
            arrays: dict[str, Any] = self._arrays()
            np.savez_compressed(stream, **arrays)
            yield f"{stem}_maps.npz", stream.getvalue()

    def _pictures(
        self, i: int, stem: str, form: PictureFormat | None, maps: str | None, style: Style
    ) -> list[tuple[str, bytes]]:
        """The files of a class; overlays where there is a format for them."""
        drawn = []
        if form is not None:
            drawn.append((f"{stem}_top{i + 1}{render.ENDINGS[form]}", render.encode(self.overlay(i, style), form)))
        if maps == "png":
            gray = np.floor(self.heatmap(i).astype(np.float64) * 65535 + 0.5).astype(np.uint16)
            drawn.append((f"{stem}_map{i + 1}.png", render.png(gray)))
        return drawn

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """What the file of maps holds."""
        arrays = {name: getattr(self, name) for name in ("classes", "scores", "all_scores")}
        if self.standard_errors is not None:
            arrays["standard_errors"] = self.standard_errors
        if self.detections is not None:
            arrays["detections"] = self.detections
        return {"heatmaps": _halved(self.heatmaps), **arrays}


def _halved(heatmaps: NDArray[np.float32]) -> NDArray[Any]:
    """Maps (n, h, w) in float16, if each keeps its peak to 11 bits; else as they are, as are those without a range."""
    peaks = np.abs(heatmaps).max(axis=(1, 2), initial=0)
    fits = ((peaks == 0) | ((peaks >= 2.0**-4) & (peaks <= np.finfo(np.float16).max))).all()
    return heatmaps.astype(np.float16) if fits else heatmaps


@dataclass(frozen=True, eq=False, repr=False)
class Refined(Explanation):
    """An explanation with refined maps, as `Explanation.refine` makes it.

    Boxes, overlays, pictures and files come from the refined maps; boxes are those of `camrt.localize.boxes_from_mask`,
    for which thresholds do not count. ``heatmaps`` are as the network gave them. When saved, ``cat_mask1.png``, ... (0
    or 255) are written too, and ``cat_maps.npz`` holds ``marginals``.

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
        """Return the marginals of a class at a size, 0..1.

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
        """Return the marginals of a class at the size of ``image``, not scaled to a largest value of 1.

        Args:
            i: The class: 0 is the best.

        Returns:
            (H, W) float32, 0..1.

        Raises:
            CamrtError: There is no such class.
        """
        return self.resized(i, self._size)

    def mask(self, i: int = 0) -> NDArray[np.bool_]:
        """Return where the object is: the pixels with a marginal above 0.5.

        Args:
            i: The class: 0 is the best.

        Returns:
            (H, W) bool.

        Raises:
            CamrtError: There is no such class.
        """
        return self.heatmap(i) > _MASK

    def as_dict(
        self, boxes: Literal["best", "all"] | None = None, thresholds: Sequence[int] = THRESHOLDS
    ) -> dict[str, Any]:
        """As `Explanation.as_dict`, and ``"crf"``: the settings, and the size at which the marginals were computed.

        Args:
            boxes: ``"best"``, ``"all"`` or None.
            thresholds: Are not looked at.
        """
        height, width = self.marginals.shape[1:]
        crf = {**self.crf.as_dict(), "width": width, "height": height}
        return {**super().as_dict(boxes, thresholds), "crf": crf}

    def map_and_limits(self, i: int = 0) -> tuple[NDArray[np.float32], tuple[float, float] | None]:
        """Return the marginals of a class, and 0 and 1: where all are small, nothing stands out."""
        self._check_class(i)
        return self.marginals[i], (0.0, 1.0)

    def _best_box(self, i: int) -> NDArray[np.int64]:
        """Around the largest part of the mask."""
        return self._boxes(i, THRESHOLDS)[:1]

    def _made(self) -> str:
        return " · ".join(part for part in (super()._made(), "refined by a CRF") if part)

    def _boxes(self, i: int, thresholds: Sequence[int]) -> NDArray[np.int64]:
        """Boxes around the parts of the mask, which has one edge: thresholds do not count."""
        from camrt.localize import boxes_from_mask

        return boxes_from_mask(self.mask(i))

    def _pictures(
        self, i: int, stem: str, form: PictureFormat | None, maps: str | None, style: Style
    ) -> list[tuple[str, bytes]]:
        mask = np.where(self.mask(i), np.uint8(255), np.uint8(0))
        return [
            *super()._pictures(i, stem, form, maps, style),
            (f"{stem}_mask{i + 1}.png", render.png(mask)),
        ]

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {**super()._arrays(), "marginals": self.marginals}
