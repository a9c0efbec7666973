"""Curves as a picture: lines are where the numbers are."""

from __future__ import annotations

import numpy as np
import pytest

from camrt.evaluate.curves import COLORS, DASHES, Curve, draw

X = np.linspace(0, 1, 101)


def drawn(picture: np.ndarray, color: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels of a colour, left of the legend."""
    near = np.abs(picture.astype(int) - COLORS[color]).max(axis=2) < 30
    rows, columns = np.nonzero(near)
    return rows, columns


def test_a_line_lies_between_the_ticks() -> None:
    low, high = (draw([Curve("", X, np.full(101, y))], across="a", up="b") for y in (0.25, 0.75))
    rows = [np.unique(drawn(picture, 0)[0]) for picture in (low, high)]
    assert all(1 <= len(each) <= 3 for each in rows)
    frame = 2 * (rows[0].mean() - rows[1].mean())  # its height, of which they are half
    assert frame == pytest.approx(560 - 46 - 58, abs=1)
    columns = drawn(low, 0)[1]
    assert np.array_equal(np.unique(columns), np.arange(columns.min(), columns.max() + 1))


def test_dashes_leave_gaps() -> None:
    filled = {style: len(drawn(draw([Curve("", X, X, style=style)], across="", up=""), 0)[0]) for style in DASHES}
    assert filled["solid"] > filled["dashed"] > filled["dotted"] > 0


def test_a_mark_stands_out() -> None:
    plain, marked = (draw([Curve("", X, X * 0, mark=mark)], across="", up="") for mark in (None, 0.5))
    rows, columns = np.nonzero((plain != marked).any(axis=2))
    assert 8 <= np.ptp(rows) <= 14
    assert 8 <= np.ptp(columns) <= 14


def test_a_long_legend_makes_the_picture_higher() -> None:
    nothing = np.zeros(0)
    picture = draw([Curve(f"method {n}", nothing, nothing, n) for n in range(40)], across="x", up="y", title="many")
    assert picture.shape == (960, 900, 3)
    assert len(drawn(picture, 3)[0])
    assert picture.dtype == np.uint8
