"""Curves over 0 to 1 as a picture, drawn without a plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

# Told apart by those who do not see all colours (Okabe and Ito 2008), the darker ones first.
COLORS = (
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0), (60, 60, 60),
)  # fmt: skip
DASHES: Mapping[str, tuple[int, int]] = {"solid": (1, 0), "dashed": (9, 6), "dotted": (2, 5)}
_INK, _FAINT, _PAGE = (27, 31, 36), (223, 226, 231), (255, 255, 255)
_FINE = 2  # it is drawn at twice its size, against jagged edges


@dataclass(frozen=True, eq=False)
class Curve:
    """A line of the picture.

    Attributes:
        name: In the legend; "" for none.
        x: (n,), 0 to 1; none for a line of the legend alone.
        y: (n,), 0 to 1.
        color: Which of `COLORS`, from 0; they repeat.
        style: One of `DASHES`.
        mark: The x of a point that stands out; None for none.
    """

    name: str
    x: NDArray[Any]
    y: NDArray[Any]
    color: int = 0
    style: str = "solid"
    mark: float | None = None


def draw(curves: Sequence[Curve], *, across: str, up: str, title: str = "", width: int = 900) -> NDArray[np.uint8]:
    """Draws curves in one frame of 0 to 1 both ways.

    Args:
        curves: The last ones on top.
        across: What x is.
        up: What y is.
        title: Over the frame.
        width: Of the picture in pixels.

    Returns:
        (height, width, 3) uint8 RGB; higher where the legend is long.
    """
    from PIL import Image, ImageDraw

    named = [curve for curve in curves if curve.name]
    size = width, max(560, 80 + 22 * len(named))
    width, height = (each * _FINE for each in size)
    picture = Image.new("RGB", (width, height), _PAGE)
    pen = ImageDraw.Draw(picture)
    longest = max((_length(pen, curve.name) for curve in named), default=0)
    frame = (70 * _FINE, 46 * _FINE, width - longest - 84 * _FINE, height - 58 * _FINE)
    _axes(pen, frame, across, up, title)
    for curve in curves:
        _line(pen, frame, curve)
    for row, curve in enumerate(named):
        y = frame[1] + (10 + 22 * row) * _FINE
        left = frame[2] + 18 * _FINE
        ends = np.array([[left, y], [left + 36 * _FINE, y]], np.float64)
        _stroke(pen, ends, COLORS[curve.color % len(COLORS)], curve.style)
        pen.text((left + 46 * _FINE, y), curve.name, _INK, _font(), anchor="lm")
    return np.asarray(picture.resize(size, Image.Resampling.BOX))


def _axes(pen: ImageDraw, frame: tuple[int, int, int, int], across: str, up: str, title: str) -> None:
    left, top, right, bottom = frame
    for tick in range(11):
        x, y = left + (right - left) * tick / 10, bottom - (bottom - top) * tick / 10
        pen.line([(x, top), (x, bottom)], _FAINT, _FINE)
        pen.line([(left, y), (right, y)], _FAINT, _FINE)
        if tick % 2 == 0:
            pen.text((x, bottom + 8 * _FINE), f"{tick / 10:g}", _INK, _font(), anchor="mt")
            pen.text((left - 8 * _FINE, y), f"{tick / 10:g}", _INK, _font(), anchor="rm")
    pen.line([(left, top), (left, bottom), (right, bottom)], _INK, _FINE)
    pen.text(((left + right) / 2, bottom + 32 * _FINE), across, _INK, _font(), anchor="mt")
    pen.text((left, top - 16 * _FINE), f"{up}{'  ·  ' if title else ''}{title}", _INK, _font(), anchor="lm")


def _line(pen: ImageDraw, frame: tuple[int, int, int, int], curve: Curve) -> None:
    left, top, right, bottom = frame
    x, y = np.asarray(curve.x, np.float64), np.asarray(curve.y, np.float64)
    if not len(x):
        return
    points = np.stack([left + (right - left) * x, bottom - (bottom - top) * y], axis=1)
    color = COLORS[curve.color % len(COLORS)]
    _stroke(pen, points, color, curve.style)
    if curve.mark is not None:
        at = points[np.abs(x - curve.mark).argmin()]
        pen.circle(tuple(at.tolist()), 5 * _FINE, fill=color, outline=_PAGE, width=_FINE)


def _stroke(pen: ImageDraw, points: NDArray[np.float64], color: tuple[int, int, int], style: str) -> None:
    """A line through points, drawn and left out in turns."""
    drawn, left_out = (each * _FINE for each in DASHES[style])
    if not left_out:
        pen.line([tuple(point) for point in points.tolist()], color, 2 * _FINE, joint="curve")
        return
    way = np.concatenate([[0], np.hypot(*np.diff(points, axis=0).T).cumsum()])
    for begin in np.arange(0, way[-1], drawn + left_out):
        end = min(begin + drawn, way[-1])
        along = np.concatenate([[begin], way[(way > begin) & (way < end)], [end]])
        dash = np.stack([np.interp(along, way, points[:, axis]) for axis in (0, 1)], axis=1)
        pen.line([tuple(point) for point in dash.tolist()], color, 2 * _FINE)


def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(14 * _FINE)


def _length(pen: ImageDraw, text: str) -> int:
    return int(pen.textlength(text, _font()))
