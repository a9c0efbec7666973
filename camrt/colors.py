"""How values of a heatmap become colors and opacities: the tables, and the rule that chooses from them.

All of it is data and three formulas, so that another program (a web page, a C++ viewer) can draw the same picture:

* **Normalization**, to a level 0..255. With a sequential color map, 0 is the smallest value of the heatmap, or zero
  where there are negative values; 255 is the largest value. With a diverging color map, 128 is zero, and 1 and 255 are
  minus and plus the largest absolute value. The largest value is taken to be at most twice the 99.5th percentile, where
  that is not 0: a few pixels would make the rest of a map of pixels invisible. Smooth maps have no such pixels.
* **Strength** ``m`` of a level, 0..1: ``level / 255``, or ``|level - 128| / 127`` with a diverging color map.
* **Opacity** of a strength: ``opacity * t * t * (3 - 2 * t)``, where ``t`` is ``(m - START) / (FULL - START)`` clipped
  to 0..1. Below START the image is left as it is, from FULL on the color map has its full share of the pixel.

A pixel is ``(1 - opacity) * image + opacity * color``. `camrt.render.overlay` does that with integers.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camrt.errors import CamrtError
from camrt.matlab import jet

SEQUENTIAL = ("turbo", "inferno", "viridis", "jet")
DIVERGING = ("bwr",)
COLORMAPS = (*SEQUENTIAL, *DIVERGING)
DEFAULT = "turbo"

OPACITY = 0.7  # of the strongest pixels
START, FULL = 0.15, 0.65  # strengths between which the opacity rises
ZERO = 128  # the level of zero with a diverging color map


def is_diverging(colormap: str) -> bool:
    """Return whether a color map shows values on both sides of zero."""
    return colormap in DIVERGING


@functools.cache
def color_table(colormap: str) -> NDArray[np.uint8]:
    """Return the colors of the levels.

    Args:
        colormap: One of `COLORMAPS`. ``"turbo"`` is A. Mikhailov's (2019); ``"inferno"`` and ``"viridis"`` are by
            N. Smith and S. van der Walt (2015); ``"jet"`` is MATLAB's; ``"bwr"`` goes from blue by white to red.

    Returns:
        (256, 3) uint8 RGB, read-only.

    Raises:
        CamrtError: There is no such color map.
    """
    if colormap not in COLORMAPS:
        raise CamrtError(f"found colormap={colormap!r}, expected one of {', '.join(COLORMAPS)}")
    if colormap == "jet":
        table = np.rint(jet(256) * 255).astype(np.uint8)
    elif is_diverging(colormap):
        signed = np.clip((np.arange(256) - ZERO) / (ZERO - 1), -1, 1)
        red, blue = np.minimum(1, 1 + signed), np.minimum(1, 1 - signed)
        table = np.rint(255 * np.stack([red, np.minimum(red, blue), blue], axis=1)).astype(np.uint8)
    else:
        import cv2  # has the published tables

        number = {"turbo": cv2.COLORMAP_TURBO, "inferno": cv2.COLORMAP_INFERNO, "viridis": cv2.COLORMAP_VIRIDIS}
        published: NDArray[Any] = cv2.applyColorMap(np.arange(256, dtype=np.uint8), number[colormap])
        table = published[:, 0, ::-1].copy()
    table.flags.writeable = False
    return table


@functools.lru_cache(maxsize=64)
def opacity_table(colormap: str = DEFAULT, opacity: float = OPACITY) -> NDArray[np.float64]:
    """Return the opacities of the levels, as the module describes them.

    Args:
        colormap: One of `COLORMAPS`.
        opacity: Of the strongest pixels, 0..1.

    Returns:
        (256,) float64, 0..opacity, read-only.

    Raises:
        CamrtError: The opacity is not within 0 to 1.
    """
    if not 0 <= opacity <= 1:
        raise CamrtError(f"found opacity={opacity!r}, expected a number from 0 to 1")
    level = np.arange(256)
    strength = np.abs(level - ZERO) / (ZERO - 1) if is_diverging(colormap) else level / 255
    rise = np.clip((strength - START) / (FULL - START), 0, 1)
    table: NDArray[np.float64] = opacity * rise * rise * (3 - 2 * rise)
    table.flags.writeable = False
    return table


def limits(heatmap: NDArray[np.floating], colormap: str = DEFAULT) -> tuple[float, float]:
    """Return the values that the weakest and the strongest level stand for.

    Args:
        heatmap: (h, w). Values that are not finite do not count.
        colormap: One of `COLORMAPS`.

    Returns:
        The smallest value, or 0 where there are negative ones, and the largest; with a diverging color map, minus and
        plus the largest absolute value; the largest as the module describes it. Both are 0 where no value is finite, or
        none is above 0.
    """
    finite = heatmap if np.isfinite(heatmap).all() else heatmap[np.isfinite(heatmap)]
    if not finite.size:
        return 0.0, 0.0
    lowest, highest = float(finite.min()), float(finite.max())
    if is_diverging(colormap):
        largest = _without_outliers(np.abs(finite), max(abs(lowest), abs(highest)))
        return -largest, largest
    return (max(lowest, 0.0), _without_outliers(finite, highest)) if highest > 0 else (0.0, 0.0)


def _without_outliers(values: NDArray[np.floating], highest: float) -> float:
    """The largest value, or twice the 99.5th percentile where that is less, and not 0."""
    rank = int(0.995 * (values.size - 1))
    typical = 2 * float(np.partition(values, rank, axis=None)[rank])
    return typical if 0 < typical < highest else highest


def levels(
    heatmap: NDArray[np.floating], colormap: str = DEFAULT, within: tuple[float, float] | None = None
) -> NDArray[np.uint8]:
    """Normalize a heatmap to levels, as the module describes it.

    Args:
        heatmap: (h, w) floats. NaN, and every value of a map that is the same everywhere, has no strength.
        colormap: One of `COLORMAPS`.
        within: The values of the weakest and the strongest level; those of `limits` if left out.

    Returns:
        (h, w) uint8.
    """
    # Halves, since the range of extreme values is not a number that float64 has.
    low, high = (value / 2 for value in within or limits(heatmap, colormap))
    nothing = ZERO if is_diverging(colormap) else 0
    if not high > low:
        return np.full(heatmap.shape, nothing, np.uint8)
    # In place: arrays of this size are new pages of memory, which take longer than the arithmetic.
    scaled: NDArray[np.float64] = np.divide(heatmap, 2, dtype=np.float64)
    np.clip(scaled, low, high, out=scaled)
    scaled -= low
    scaled /= high - low
    scaled *= 254 if is_diverging(colormap) else 255
    scaled += is_diverging(colormap)
    np.rint(scaled, out=scaled)
    np.nan_to_num(scaled, copy=False, nan=nothing)
    return scaled.astype(np.uint8)


def as_dict() -> dict[str, object]:
    """Return the tables and the constants of the rule, for JSON.

    Returns:
        ``{"default", "opacity", "start", "full", "zero", "colormaps": {name: {"diverging", "colors"}}}``, the colors as
        256 lists of red, green and blue, 0..255.
    """
    tables = {name: {"diverging": is_diverging(name), "colors": color_table(name).tolist()} for name in COLORMAPS}
    return {"default": DEFAULT, "opacity": OPACITY, "start": START, "full": FULL, "zero": ZERO, "colormaps": tables}


if __name__ == "__main__":
    import json

    print(json.dumps(as_dict()))
