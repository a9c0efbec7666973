"""Pages to look through, made from the templates in ``camrt/templates``.

A page is one file: the style and all pictures are embedded, there are no scripts and no links to elsewhere. Text is
escaped by the templates; only what a template marks as ``safe`` is taken as HTML.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from camrt.matlab import im2uint8, jet
from camrt.render import STYLE, Style, fit, jpeg, png

if TYPE_CHECKING:
    from jinja2 import Environment

    from camrt.explanation import Explanation

_CELL = 190  # pixels: the least width of a picture on the page; five classes fit in a row of a wide window


@dataclass(frozen=True, eq=False)
class Figure:
    """A picture on a page, and its caption.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        alt: What the picture shows, for readers who cannot see it.
        label: The left part of the caption.
        note: The right part of the caption.
        share: 0..1: the length of the bar below the caption; None for no bar.
    """

    image: NDArray[np.uint8]
    alt: str
    label: str = ""
    note: str = ""
    share: float | None = None

    @property
    def height(self) -> int:
        """The picture's height in pixels."""
        return len(self.image)

    @property
    def width(self) -> int:
        """The picture's width in pixels."""
        return len(self.image[0])

    @functools.cached_property
    def source(self) -> str:
        """The picture as a data URI."""
        return f"data:image/jpeg;base64,{base64.b64encode(jpeg(self.image)).decode('ascii')}"


def html_page(
    explanations: Iterable[Explanation],
    *,
    title: str = "Class activation maps",
    note: str = "",
    side: int = 320,
    style: Style = STYLE,
) -> str:
    """Make a page of explanations: each image, its heatmaps over it, the classes and their scores.

    A picture takes about 15 kB, an image with five classes 90 kB.

    Args:
        explanations: Consumed one at a time; only their cards are kept.
        title: Plain text.
        note: Plain text: a line under the title.
        side: The longer side of the pictures in pixels.
        style: How the overlays are drawn; captions stand below them in any case.

    Returns:
        HTML.
    """
    cards = (html_card(explanation, side=side, style=style) for explanation in explanations)
    return html_document(cards, title=title, note=note)


def html_card(explanation: Explanation, *, side: int = 320, style: Style = STYLE) -> str:
    """Make the card of one image. `html_document` joins cards, also those of several runs, into one page.

    Args:
        explanation: What to show.
        side: The longer side of the pictures in pixels.
        style: How the overlays are drawn; captions stand below them in any case.

    Returns:
        HTML of an ``<article>``.
    """
    height, width = explanation.original_size
    # Drawn at the size at which it is shown: lines keep their width, and large images take no longer.
    shown = dataclasses.replace(explanation, image=fit(explanation.image, side, enlarge=True))
    style = dataclasses.replace(style, caption=False)
    figures = [Figure(shown.image, explanation.source, f"{width} × {height}")]
    for rank, (label, score) in enumerate(zip(explanation.labels, explanation.scores.tolist(), strict=True)):
        drawn = shown.overlay(rank, style)
        percent = f"{score:.1%}" if math.isfinite(score) else "no number"
        share = min(max(score, 0.0), 1.0) if math.isfinite(score) else 0.0
        figures.append(Figure(drawn, f"{label}: {percent}", label, percent, share))
    # Photographs stand in columns of one width; what is much wider or taller gets about their area.
    aspect = width / height
    shape = aspect / 2 if aspect > 2 else aspect / 0.7 if aspect < 0.7 else 1.0
    cell = min(max(_CELL * math.sqrt(shape), 0.6 * _CELL), 2 * _CELL)
    return fill("card.html", heading=explanation.source, figures=figures, cell=f"{cell:.0f}")


def html_document(cards: Iterable[str], *, title: str = "Class activation maps", note: str = "") -> str:
    """Make a page of cards.

    Args:
        cards: HTML of `html_card`; not escaped again.
        title: Plain text.
        note: Plain text: a line under the title, behind the number of images.

    Returns:
        HTML.
    """
    body = list(cards)
    count = f"{len(body):,} image{'' if len(body) == 1 else 's'}"
    return fill("explanations.html", cards=body, title=title, note=" · ".join(part for part in (count, note) if part))


def fill(template: str, **values: Any) -> str:
    """Fill in a template of ``camrt/templates``.

    Args:
        template: Its file name. Pages extend ``base.html``, which takes ``title`` and ``note`` (plain text) and has the
            blocks ``style`` (more CSS) and ``main``; ``figures.html`` has the macro that shows a `Figure`.
        values: What the template names. A name that is missing is an error.

    Returns:
        HTML.
    """
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("camrt"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    colors = np.broadcast_to(im2uint8(jet(256)), (8, 256, 3))
    environment.globals["color_scale"] = f"data:image/png;base64,{base64.b64encode(png(colors)).decode('ascii')}"
    return environment
