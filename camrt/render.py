"""Pictures from plain arrays: overlays, boxes, rows, sheets, and a page to look through.

Images are (H, W, 3) uint8 RGB, heatmaps (H, W), boxes (M, 4) of x, y, width, height in pixels. Nothing is changed in
place, and nothing is computed here that is not drawn.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from camrt.errors import CamrtError
from camrt.images import resize
from camrt.matlab import BAR, gray2ind, im2uint8, jet, mat2gray

if TYPE_CHECKING:
    from camrt.explanation import Explanation

Image = NDArray[np.uint8]

IMAGE_WEIGHT, MAP_WEIGHT = 0.2, 0.7  # of demo.m
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
_BLOCK = 1 << 15  # pixels
_CELL = 190  # pixels: the least width of a picture on the page; five classes fit in a row of a wide window


# ------------------------------------------------------------------------------------------------------------- drawing


def overlay(
    image: Image,
    heatmap: NDArray[Any],
    *,
    image_weight: float = IMAGE_WEIGHT,
    map_weight: float = MAP_WEIGHT,
    colormap: NDArray[Any] | None = None,
) -> Image:
    """Lays a heatmap's colours over an image: ``image_weight * image + map_weight * colours``, as `demo.m`.

    Args:
        image: (H, W, 3) uint8 RGB.
        heatmap: (H, W), coloured over its own range as by `map2jpg.m`. NaN gets the first colour.
        image_weight: The image's share.
        map_weight: The colours' share.
        colormap: (256, 3), 0..1; MATLAB's `jet(256)` if left out.

    Returns:
        (H, W, 3) uint8 RGB, the same pixels as `camrt.matlab.demo_result` draws.

    Raises:
        ValueError: The image and the heatmap differ in size.
    """
    if image.shape != (*heatmap.shape, 3):
        raise ValueError(f"found an image of shape {image.shape} for a heatmap of {heatmap.shape}, expected one size")
    colors = jet(256) if colormap is None else colormap
    limits = float(np.fmin.reduce(heatmap, axis=None)), float(np.fmax.reduce(heatmap, axis=None))
    # Every pixel is one of 256 x 256 sums, which are looked up; and a few rows at a time stay in the cache.
    shades = np.arange(256) / 255 * image_weight
    tables = im2uint8(colors.T[:, :, None] * map_weight + shades).reshape(3, -1)
    drawn = np.empty_like(image)
    step = max(1, _BLOCK // image.shape[1])
    for start in range(0, len(image), step):
        rows = slice(start, start + step)
        index = gray2ind(mat2gray(heatmap[rows], limits), 256).astype(np.intp) << 8
        for channel, table in enumerate(tables):
            drawn[rows, :, channel] = table[index | image[rows, :, channel]]
    return drawn


def draw_boxes(
    image: Image,
    boxes: NDArray[Any],
    *,
    color: Sequence[int] = WHITE,
    edge: Sequence[int] | None = BLACK,
    thickness: int | None = None,
) -> Image:
    """Draws the outlines of boxes.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (M, 4) x, y, width, height in pixels. What lies outside of the image is cut off; a negative width or
            height goes the other way, as `generate_bbox.m` draws it.
        color: RGB, 0..255.
        edge: RGB of a line around the line, which keeps it visible on every ground; None for none.
        thickness: Of the line in pixels; if left out, a 200th of the image's longer side.

    Returns:
        (H, W, 3) uint8 RGB, a new array.
    """
    drawn = np.array(image)
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
    """Puts pictures side by side, white bars between them, as `demo.m` does.

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
    """Puts pictures of any size on one sheet, each shrunk or enlarged to fit its cell, in rows from the left.

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


def fit(image: Image, side: int, *, enlarge: bool = False) -> Image:
    """Resizes an image so that its longer side has that many pixels.

    Args:
        image: (H, W, 3) uint8 RGB.
        side: In pixels.
        enlarge: Whether a smaller image is enlarged; else it stays as it is.
    """
    scale = side / max(image.shape[:2])
    if scale >= 1 and not enlarge:
        return image
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    return resize(image, (height, width))


def png(image: NDArray[Any]) -> bytes:
    """Encodes a picture without loss.

    Args:
        image: (H, W, 3) uint8 RGB, or (H, W) uint8 or uint16 grey.

    Raises:
        CamrtError: OpenCV cannot encode it.
    """
    import cv2  # four times faster than Pillow, for files of the same size

    is_encoded, data = cv2.imencode(".png", image if image.ndim == 2 else np.ascontiguousarray(image[:, :, ::-1]))
    if not is_encoded:
        raise CamrtError(f"found a picture of shape {image.shape} and {image.dtype}, which cannot be written as PNG")
    encoded: bytes = data.tobytes()
    return encoded


def jpeg(image: Image, quality: int = 85) -> bytes:
    """Encodes a picture to look at.

    Args:
        image: (H, W, 3) uint8 RGB.
        quality: 1 to 95.
    """
    from PIL import Image as Pillow

    stream = io.BytesIO()
    Pillow.fromarray(np.ascontiguousarray(image)).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def _outline(image: Image, corners: tuple[int, int, int, int], width: int, color: Sequence[int]) -> None:
    """Draws into the image. The line lies inside of the corners, of which the second is outside."""
    left, top, right, bottom = corners
    for x0, y0, x1, y1 in (
        (left, top, right, top + width),
        (left, bottom - width, right, bottom),
        (left, top, left + width, bottom),
        (right - width, top, right, bottom),
    ):
        image[max(y0, top, 0) : max(min(y1, bottom), 0), max(x0, left, 0) : max(min(x1, right), 0)] = color


# ---------------------------------------------------------------------------------------------------------------- page


def html_page(
    explanations: Iterable[Explanation],
    *,
    title: str = "Class activation maps",
    note: str = "",
    side: int = 320,
    thresholds: Sequence[int] | None = None,
) -> str:
    """A page to look through: each image, its heatmaps over it, the classes and their scores.

    The page is one file: pictures are embedded, there are no scripts and no links to elsewhere. It comes to some 15 kB
    a picture, 90 kB an image with five classes.

    Args:
        explanations: Asked for one at a time; only their cards are kept.
        title: Plain text, as all text here: it is escaped.
        note: A line under the title.
        side: The longer side of the pictures in pixels.
        thresholds: Of the boxes that are drawn on the overlays; None for no boxes.

    Returns:
        HTML.
    """
    cards = (html_card(explanation, side=side, thresholds=thresholds) for explanation in explanations)
    return html_document(cards, title=title, note=note)


def html_card(explanation: Explanation, *, side: int = 320, thresholds: Sequence[int] | None = None) -> str:
    """One image of `html_page`. Kept as text, cards of several runs make one page by `html_document`.

    Args:
        explanation: What to show.
        side: The longer side of the pictures in pixels.
        thresholds: Of the boxes that are drawn on the overlays; None for no boxes.

    Returns:
        HTML of an ``<article>``.
    """
    height, width = explanation.image.shape[:2]
    image = fit(explanation.image, side, enlarge=True)
    scale = np.array(image.shape[1::-1] * 2) / (width, height, width, height)
    figures = [html_figure(image, explanation.source, f"<span>{width} × {height}</span>")]
    for rank, (label, score) in enumerate(zip(explanation.labels, explanation.scores.tolist(), strict=True)):
        # Drawn at the size at which it is shown: lines keep their width, and large images take no longer.
        drawn = overlay(image, explanation.resized(rank, image.shape[:2]))
        if thresholds is not None:
            drawn = draw_boxes(drawn, np.rint(explanation.boxes(rank, thresholds) * scale))
        percent = f"{score:.1%}" if math.isfinite(score) else "no number"
        share = min(max(score, 0.0), 1.0) if math.isfinite(score) else 0.0
        caption = (
            f"<span class=label>{html.escape(label)}</span><span class=score>{percent}</span>"
            f'<span class=meter><span style="width:{share:.1%}"></span></span>'
        )
        figures.append(html_figure(drawn, f"{label}: {percent}", caption))
    name = html.escape(explanation.source)
    # Photographs stand in columns of one width; what is much wider or taller gets about their area.
    aspect = width / height
    shape = aspect / 2 if aspect > 2 else aspect / 0.7 if aspect < 0.7 else 1.0
    cell = min(max(_CELL * math.sqrt(shape), 0.6 * _CELL), 2 * _CELL)
    return (
        f'<article>\n<h2>{name}</h2>\n<div class=row style="--cell:{cell:.0f}px">\n{"".join(figures)}</div>\n'
        "</article>\n"
    )


def html_document(cards: Iterable[str], *, title: str = "Class activation maps", note: str = "") -> str:
    """A page of cards.

    Args:
        cards: HTML of `html_card`, as it is.
        title: Plain text.
        note: Plain text: a line under the title.

    Returns:
        HTML.
    """
    body = list(cards)
    count = f"{len(body):,} image{'' if len(body) == 1 else 's'}"
    line = " · ".join(html.escape(part) for part in (count, note) if part)
    empty = "" if body else "<p>There is nothing to show.</p>\n"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{html.escape(title)}</h1><p>{line}</p>\n"
        f'<p class=scale><span>low</span><img alt="colour scale" src="{_scale()}"><span>high</span>'
        f"<span>each map over its own range</span></p></header>\n<main>\n{''.join(body)}{empty}</main>\n"
        "</body>\n</html>\n"
    )


def html_figure(image: Image, alt: str, caption: str) -> str:
    """A picture of a card, embedded.

    Args:
        image: (H, W, 3) uint8 RGB.
        alt: Plain text: what the picture shows.
        caption: HTML, as it is.

    Returns:
        HTML of a ``<figure>``.
    """
    height, width = image.shape[:2]
    data = base64.b64encode(jpeg(image)).decode("ascii")
    return (
        f'<figure><img loading=lazy width={width} height={height} alt="{html.escape(alt)}" '
        f'src="data:image/jpeg;base64,{data}"><figcaption>{caption}</figcaption></figure>\n'
    )


@functools.cache
def _scale() -> str:
    colors = np.broadcast_to(im2uint8(jet(256)), (8, 256, 3))
    return f"data:image/png;base64,{base64.b64encode(png(colors)).decode('ascii')}"


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --faint: #667; --page: #f4f5f7; --card: #fff; --line: #dfe2e7;
        --bar: #2f6fde; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaee; --faint: #9aa3b0; --page: #14171b; --card: #1e2227; --line: #333941; --bar: #6ea2ff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
       font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
header, main { max-width: 1500px; margin: 0 auto; padding: 0 24px; }
header { display: flex; flex-wrap: wrap; gap: 4px 16px; align-items: baseline; justify-content: space-between;
         padding-top: 28px; }
h1 { margin: 0; font-size: 24px; font-weight: 650; flex-basis: 100%; }
header p { margin: 0; color: var(--faint); overflow-wrap: anywhere; }
.scale { display: flex; flex-wrap: wrap; gap: 0 8px; align-items: center; font-size: 13px; }
.scale img { width: 160px; height: 8px; border-radius: 4px; }
article { margin: 20px 0; padding: 16px 18px 18px; background: var(--card); border: 1px solid var(--line);
          border-radius: 10px; }
h2 { margin: 0 0 12px; font-size: 15px; font-weight: 600; overflow-wrap: anywhere; }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(var(--cell, 190px), 100%), 1fr)); gap: 14px; }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 4px; }
figcaption { display: grid; grid-template-columns: 1fr auto; gap: 0 10px; margin-top: 6px; font-size: 13px;
             color: var(--faint); }
.label { color: var(--ink); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.score { font-variant-numeric: tabular-nums; }
.meter { grid-column: 1 / -1; height: 4px; margin-top: 4px; border-radius: 2px; background: var(--line);
         overflow: hidden; }
.meter span { display: block; height: 100%; background: var(--bar); }
@media (max-width: 800px) {
  header, main { padding: 0 12px; }
  header { padding-top: 16px; }
  article { margin: 12px 0; padding: 12px; }
  .row { grid-template-columns: repeat(auto-fill, minmax(min(0.75 * var(--cell, 190px), 100%), 1fr)); gap: 10px; }
}
@media print { article { break-inside: avoid; } }
""".lstrip()
