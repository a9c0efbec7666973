"""Figures for papers and notebooks, by matplotlib: text and boxes stay vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from camrt import colors
from camrt.errors import CamrtError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from camrt.render import Style

_PANEL = 2.4  # inches: the width of a panel


@dataclass(frozen=True, eq=False)
class Panel:
    """A map over the image.

    Attributes:
        label: The upper line of the caption.
        score: The lower line.
        heatmap: (h, w) floats over the whole image.
        limits: The values of the first and the last color; None for those of the map itself.
        boxes: (M, 4) x, y, width, height in the image's pixels.
    """

    label: str
    score: str
    heatmap: NDArray[Any]
    limits: tuple[float, float] | None
    boxes: NDArray[Any]


def figure(image: NDArray[np.uint8], name: str, panels: Sequence[Panel], style: Style, *, note: str = "") -> Figure:
    """Draw an image and maps over it in a row, with captions and a color bar.

    Args:
        image: (H, W, 3) uint8 RGB.
        name: Its caption.
        panels: The maps.
        style: Color map, opacity, and whether there are captions.
        note: How the maps were made; below the name.

    Returns:
        A figure of 2.4 inches for each panel.

    Raises:
        CamrtError: matplotlib is not installed.
    """
    try:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import ListedColormap, Normalize
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ImportError as error:
        raise CamrtError("figures need matplotlib: pip install 'camrt[figures]'") from error

    height, width = image.shape[:2]
    across = len(panels) + 1
    tall = _PANEL * min(max(height / width, 0.3), 3)
    drawn = Figure(figsize=(_PANEL * across + 0.7, tall + 0.7), layout="constrained")
    axes = drawn.subplots(1, across, squeeze=False)[0]
    table = colors.color_table(style.colormap)
    opacities = np.rint(255 * colors.opacity_table(style.colormap, style.opacity)).astype(np.uint8)
    rgba = np.hstack([table, opacities[:, None]])
    for place, axis in enumerate(axes):
        axis.imshow(image, extent=(0, width, height, 0), interpolation="antialiased")
        axis.set_axis_off()
        if place == 0:
            title = f"{name}\n{note}" if note else name
        else:
            panel = panels[place - 1]
            title = f"{panel.label}\n{panel.score}"
            level = colors.levels(panel.heatmap, style.colormap, panel.limits)
            axis.imshow(rgba[level], extent=(0, width, height, 0), interpolation="bilinear")
            for x, y, w, h in panel.boxes.tolist():
                for color, line in (("black", 2.4), ("white", 1.2)):
                    axis.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=color, linewidth=line))
        if style.caption:
            axis.set_title(title, fontsize=8, parse_math=False)
    if panels:
        lowest = -1 if colors.is_diverging(style.colormap) else 0
        scale = ScalarMappable(Normalize(lowest, 1), ListedColormap(table / 255))
        bar = drawn.colorbar(scale, ax=list(axes), shrink=0.8, aspect=25, pad=0.01)
        bar.ax.tick_params(labelsize=7)
        bar.set_label("share of the largest", fontsize=7)
    return drawn
