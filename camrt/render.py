"""Pictures from plain arrays: overlays, boxes, rows, sheets.

Images are (H, W, 3) uint8 RGB, heatmaps (H, W), boxes (M, 4) of x, y, width, height in pixels. Nothing is changed in
place, and nothing is computed here that is not drawn.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from camrt import colors
from camrt.errors import CamrtError
from camrt.images import fit as fit
from camrt.localize import THRESHOLDS
from camrt.matlab import BAR, gray2ind, im2uint8, jet, mat2gray
from converters.errors import printable

Image = NDArray[np.uint8]

IMAGE_WEIGHT, MAP_WEIGHT = 0.2, 0.7  # of demo.m
ENDINGS = {"jpeg": ".jpg", "webp": ".webp", "png": ".png"}  # of the formats of pictures
PictureFormat = Literal["jpeg", "webp", "png"]
# Of the overlays. Five of 640 x 480 take 150 kB, and next to 85 there is little to be seen: the maps are smooth.
QUALITY = 50
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
_BLOCK = 1 << 15  # pixels


@dataclass(frozen=True)
class Style:
    """How explanations are drawn. docs/drawing.md shows it.

    Attributes:
        colormap: One of `camrt.colors.COLORMAPS`. ``"bwr"`` shows values on both sides of zero.
        opacity: Of the strongest pixels, 0..1.
        boxes: ``"best"``: a box around the best region of each class; ``"all"``: the boxes of the original's
            generate_bbox.m; None: no boxes.
        thresholds: Three gray levels, 0 < first < second < third < 255, for the original's boxes.
        caption: Whether class, score and method stand below the picture.

    Raises:
        CamrtError: A value is not one of these.
    """

    colormap: str = colors.DEFAULT
    opacity: float = colors.OPACITY
    boxes: Literal["best", "all"] | None = "best"
    thresholds: tuple[int, int, int] = THRESHOLDS
    caption: bool = True

    def __post_init__(self) -> None:
        colors.color_table(self.colormap)
        colors.opacity_table(self.colormap, self.opacity)
        if self.boxes not in ("best", "all", None):
            raise CamrtError(f"found boxes={self.boxes!r}, expected 'best', 'all' or None")
        object.__setattr__(self, "thresholds", tuple(self.thresholds))

    def as_dict(self) -> dict[str, Any]:
        """Return the settings for JSON. Thresholds are left out where they do not count."""
        settings = dataclasses.asdict(self) | {"thresholds": list(self.thresholds)}
        if self.boxes != "all":
            del settings["thresholds"]
        return settings


STYLE = Style()
PLAIN = Style(boxes=None, caption=False)


# ------------------------------------------------------------------------------------------------------------- drawing


def overlay(
    image: Image,
    heatmap: NDArray[Any],
    *,
    colormap: str = colors.DEFAULT,
    opacity: float = colors.OPACITY,
    limits: tuple[float, float] | None = None,
    out: Image | None = None,
) -> Image:
    """Lay a heatmap over an image. The opacity follows the map: what is not hot stays the photograph.

    `camrt.colors` says which color and which opacity a value has. The heatmap is normalized at its own size and then
    resized to the image (bilinear), and pixels are looked up and mixed in integers, some rows at a time, which stay in
    the cache.

    Args:
        image: (H, W, 3) uint8 RGB.
        heatmap: (h, w) floats, of any size.
        colormap: One of `camrt.colors.COLORMAPS`. With ``"bwr"``, values below zero are blue and those above are red.
        opacity: Of the strongest pixels, 0..1.
        limits: The values of the weakest and the strongest color; if left out, those of the heatmap itself, as
            `camrt.colors.limits` says.
        out: (H, W, 3) uint8 that is drawn into; a new array if left out.

    Returns:
        (H, W, 3) uint8 RGB: ``out``, within a gray level of ``(1 - opacity) * image + opacity * color``.

    Raises:
        CamrtError: There is no such color map, or the opacity is not within 0 to 1.
    """
    import cv2

    share, rest = _mixing_tables(colormap, opacity)
    height, width = image.shape[:2]
    level: NDArray[Any] = colors.levels(heatmap, colormap, limits)
    window = _drawn_window(rest[level] < 255, (height, width))
    if level.shape != (height, width):
        method = cv2.INTER_AREA if level.size > height * width else cv2.INTER_LINEAR
        level = cv2.resize(level, (width, height), interpolation=method)
    drawn = np.empty(image.shape, np.uint8) if out is None else out
    rows, columns = window
    if (rows, columns) != (slice(0, height), slice(0, width)):
        np.copyto(drawn, image)
    step = max(1, _BLOCK // width)
    for start in range(rows.start, rows.stop, step):
        band = slice(start, min(start + step, rows.stop)), columns
        values, under = np.ascontiguousarray(level[band]), np.ascontiguousarray(image[band])
        left = cv2.cvtColor(cv2.LUT(values, rest), cv2.COLOR_GRAY2RGB)
        cv2.multiply(under, left, left, 1 / 255)
        drawn[band] = cv2.add(left, cv2.applyColorMap(values, share), left)
    return drawn


def _drawn_window(drawn: NDArray[np.bool_], size: tuple[int, int]) -> tuple[slice, slice]:
    """The rows and columns of an image outside of which nothing is drawn.

    Args:
        drawn: (h, w): where something is, at the size of the map.
        size: Height and width of the image.
    """
    sides = []
    for axis, length in enumerate(size):
        there = np.flatnonzero(drawn.any(axis=1 - axis))
        scale = length / drawn.shape[axis]
        # Resizing blends with the next value on either side.
        first, last = (int((there[0] - 1) * scale), math.ceil((there[-1] + 2) * scale)) if there.size else (0, 0)
        sides.append(slice(max(first, 0), min(last, length)))
    return sides[0], sides[1]


@functools.lru_cache(maxsize=64)
def _mixing_tables(colormap: str, opacity: float) -> tuple[Image, Image]:
    """For each level the color times its opacity, (256, 1, 3) uint8, and what is left for the image, (256,) uint8."""
    opacities = np.rint(255 * colors.opacity_table(colormap, opacity))[:, None]
    share = np.rint(colors.color_table(colormap) * (opacities / 255)).astype(np.uint8)
    return share[:, None], (255 - opacities[:, 0]).astype(np.uint8)


def demo_overlay(
    image: Image,
    heatmap: NDArray[Any],
    *,
    image_weight: float = IMAGE_WEIGHT,
    map_weight: float = MAP_WEIGHT,
    colormap: NDArray[Any] | None = None,
) -> Image:
    """Lay a heatmap's colors over an image: ``image_weight * image + map_weight * colors``, as `demo.m`.

    Args:
        image: (H, W, 3) uint8 RGB.
        heatmap: (H, W), colored over its own range as by `map2jpg.m`. NaN gets the first color.
        image_weight: The image's share.
        map_weight: The colors' share.
        colormap: (256, 3), 0..1; MATLAB's `jet(256)` if left out.

    Returns:
        (H, W, 3) uint8 RGB, the same pixels as `camrt.matlab.demo_result` draws.

    Raises:
        ValueError: The image and the heatmap differ in size.
    """
    if image.shape != (*heatmap.shape, 3):
        raise ValueError(f"found an image of shape {image.shape} for a heatmap of {heatmap.shape}, expected one size")
    table = jet(256) if colormap is None else colormap
    limits = float(np.fmin.reduce(heatmap, axis=None)), float(np.fmax.reduce(heatmap, axis=None))
    # Every pixel is one of 256 x 256 sums, which are looked up; and a few rows at a time stay in the cache.
    shades = np.arange(256) / 255 * image_weight
    tables = im2uint8(table.T[:, :, None] * map_weight + shades).reshape(3, -1)
    drawn = np.empty_like(image)
    step = max(1, _BLOCK // image.shape[1])
    for start in range(0, len(image), step):
        rows = slice(start, start + step)
        index = gray2ind(mat2gray(heatmap[rows], limits), 256).astype(np.intp) << 8
        for channel, sums in enumerate(tables):
            drawn[rows, :, channel] = sums[index | image[rows, :, channel]]
    return drawn


def draw_boxes(
    image: Image,
    boxes: NDArray[Any],
    *,
    color: Sequence[int] = WHITE,
    edge: Sequence[int] | None = BLACK,
    thickness: int | None = None,
    out: Image | None = None,
) -> Image:
    """Draw the outlines of boxes.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (M, 4) x, y, width, height in pixels. What lies outside of the image is cut off; a negative width or
            height goes the other way, as `generate_bbox.m` draws it.
        color: RGB, 0..255.
        edge: RGB of a line around the line, which keeps it visible on every ground; None for none.
        thickness: Of the line in pixels; if left out, a 200th of the image's longer side.
        out: (H, W, 3) uint8 that is drawn into, which may be the image itself; a new array if left out.

    Returns:
        (H, W, 3) uint8 RGB: ``out``.
    """
    drawn = np.empty(image.shape, np.uint8) if out is None else out
    if drawn is not image:
        np.copyto(drawn, image)
    width = thickness or max(1, round(max(image.shape[:2]) / 200))
    rim = max(1, width // 2)
    for x, y, w, h in np.asarray(boxes, np.int64).reshape(-1, 4).tolist()[::-1]:  # the largest on top
        left, right = sorted((x, x + w))
        top, bottom = sorted((y, y + h))
        if edge is not None:
            _outline(drawn, (left - rim, top - rim, right + rim, bottom + rim), width + 2 * rim, edge)
        _outline(drawn, (left, top, right, bottom), width, color)
    return drawn


def row(panels: Sequence[Image], *, bar: int = BAR) -> Image:
    """Put pictures side by side, with white bars between them, as `demo.m` does.

    Args:
        panels: (H, W, 3) uint8 RGB each, of one height.
        bar: The bars' width in pixels.

    Returns:
        (H, sum of the widths and bars, 3) uint8 RGB.

    Raises:
        ValueError: There are none, or their heights differ.
    """
    if len({len(panel) for panel in panels}) != 1:
        raise ValueError(f"found pictures of the heights {[len(panel) for panel in panels]}, expected a single height")
    gap = np.full((len(panels[0]), bar, 3), 255, np.uint8)
    return np.hstack([part for panel in panels for part in (gap, panel)][1:])


def contact_sheet(pictures: Sequence[Image], *, columns: int = 4, cell: int = 256, bar: int = BAR) -> Image:
    """Put pictures of any size on one sheet, each shrunk or enlarged to fit its cell, in rows from the left.

    Args:
        pictures: (H, W, 3) uint8 RGB each.
        columns: How many stand side by side.
        cell: The side of a cell in pixels.
        bar: White between the cells and around them, in pixels.

    Returns:
        (rows * (cell + bar) + bar, columns * (cell + bar) + bar, 3) uint8 RGB, of fewer columns where there are fewer
        pictures.

    Raises:
        ValueError: There are no pictures, or less than a column.
    """
    if not pictures or columns < 1:
        raise ValueError(f"found {len(pictures)} pictures and {columns} columns, expected at least one of each")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (cell + bar) + bar, columns * (cell + bar) + bar, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        fitted = fit(picture, cell, enlarge=True)
        top = bar + number // columns * (cell + bar) + (cell - fitted.shape[0]) // 2
        left = bar + number % columns * (cell + bar) + (cell - fitted.shape[1]) // 2
        sheet[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
    return sheet


def png(image: NDArray[Any]) -> bytes:
    """Encode a picture without loss.

    Args:
        image: (H, W, 3) uint8 RGB, or (H, W) uint8 or uint16 gray.

    Raises:
        CamrtError: OpenCV cannot encode it.
    """
    return encode(image, "png")


def jpeg(image: Image, quality: int = 85) -> bytes:
    """Encode a picture as JPEG.

    Args:
        image: (H, W, 3) uint8 RGB.
        quality: 1 to 100.

    Raises:
        CamrtError: OpenCV cannot encode it: it has more than 65,500 pixels on a side.
    """
    return encode(image, "jpeg", quality)


def encode(image: NDArray[Any], form: PictureFormat = "jpeg", quality: int = QUALITY) -> bytes:
    """Encode a picture.

    Args:
        image: (H, W, 3) uint8 RGB, or (H, W) uint8 gray; of PNG also uint16.
        form: A key of `ENDINGS`.
        quality: 1 to 100, of JPEG and WebP.

    Raises:
        CamrtError: There is no such format, or OpenCV cannot encode the picture: it is too large for the format.
    """
    import cv2  # faster than Pillow: PNG four times, JPEG twice, for files of the same size

    if form not in ENDINGS:
        raise CamrtError(f"found the format {form!r}, expected one of {', '.join(ENDINGS)}")
    options = {"jpeg": [cv2.IMWRITE_JPEG_QUALITY, quality], "webp": [cv2.IMWRITE_WEBP_QUALITY, quality]}.get(form, [])
    try:
        pixels = np.ascontiguousarray(image)
        pixels = pixels if image.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        is_encoded, data = cv2.imencode(ENDINGS[form], pixels, options)
    except cv2.error:
        is_encoded = False
    if not is_encoded:
        found = f"found a picture of shape {image.shape} and {image.dtype}, which cannot be written as {form.upper()}"
        advice = "" if form == "png" else ". Make it smaller (--max-side), or write PNG (--format png)"
        raise CamrtError(found + advice)
    encoded: bytes = data.tobytes()
    return encoded


def html_tiles(tiles: Sequence[tuple[Image, str, str]], *, note: str = "") -> str:
    """Make HTML of pictures side by side, without scripts and style sheets, as notebooks show it.

    Args:
        tiles: The picture, the left part of its caption, and the right part.
        note: A line below them.

    Returns:
        HTML of a ``<div>``.
    """
    parts = ['<div style="display:flex;flex-wrap:wrap;gap:8px;align-items:flex-start">']
    for picture, left, right in tiles:
        left, right = html.escape(printable(left)), html.escape(printable(right))
        source = f"data:image/jpeg;base64,{base64.b64encode(jpeg(picture)).decode('ascii')}"
        height, width = picture.shape[:2]
        parts += [
            f'<figure style="margin:0;width:{width}px">',
            f'<img width="{width}" height="{height}" alt="{left} {right}" src="{source}" style="margin:0">',
            '<figcaption style="display:flex;justify-content:space-between;gap:8px;font-size:12px;line-height:1.4">',
            f'<span>{left}</span><span style="opacity:.7;white-space:nowrap">{right}</span></figcaption></figure>',
        ]
    parts.append(f'</div><div style="font-size:12px;opacity:.7">{html.escape(printable(note))}</div>')
    return "".join(parts)


def _outline(image: Image, corners: tuple[int, int, int, int], width: int, color: Sequence[int]) -> None:
    """Draw an outline into the image, inside of the corners, of which the second is exclusive."""
    left, top, right, bottom = corners
    for x0, y0, x1, y1 in (
        (left, top, right, top + width),
        (left, bottom - width, right, bottom),
        (left, top, left + width, bottom),
        (right - width, top, right, bottom),
    ):
        image[max(y0, top, 0) : max(min(y1, bottom), 0), max(x0, left, 0) : max(min(x1, right), 0)] = color
