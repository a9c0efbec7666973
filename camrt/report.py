"""Pages to look through, made from the templates in ``camrt/templates``.

A page is one file: style, pictures and scripts are embedded, and nothing is loaded from elsewhere. Text is escaped by
the templates; only what a template marks as ``safe`` is taken as HTML.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from camrt import colors
from camrt.captions import score_text
from camrt.render import STYLE, Style, fit, jpeg, png

if TYPE_CHECKING:
    from jinja2 import Environment

    from camrt.explanation import Explanation

SIDE = 400  # pixels: the longer side of the images on a page
_MAP_SIDE = 128  # pixels: of the maps on a page, which are smooth
_MOST_BYTES = 48_000  # of an image on a page


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
        return _data_uri(jpeg(self.image))


def html_page(
    explanations: Iterable[Explanation],
    *,
    title: str = "What the network sees",
    note: str = "",
    side: int = SIDE,
    style: Style = STYLE,
) -> str:
    """Make a page of explanations: each image with its classes, and the map of a class over it.

    The page draws the maps itself. It has a slider for the opacity and a choice of color maps; hovering over a class
    shows its map, and the pointer shows the map's value. An image takes some 40 kB, and less than 100 kB with five
    classes.

    Args:
        explanations: Consumed one at a time; only their cards are kept.
        title: Plain text.
        note: Plain text: a line under the title.
        side: The longer side of the images in pixels.
        style: Color map, opacity and boxes that the page starts with.

    Returns:
        HTML.
    """
    facts: dict[str, str] = {}

    def cards() -> Iterator[str]:
        for explanation in explanations:
            if not facts:
                facts.update(facts_of(explanation.as_dict(), model=explanation.model))
            yield html_card(explanation, side=side, style=style)

    return html_document(list(cards()), title=title, note=note, facts=facts, style=style)


def facts_of(record: Mapping[str, Any], *, model: str = "") -> dict[str, str]:
    """Return what the head of a page says about how images were explained.

    Args:
        record: A line of JSON, as `Explanation.as_dict` and `camrt.batch.Batch` write them.
        model: What the model is called.

    Returns:
        The facts that are known, by name: model, method, protocol, settings, smoothing, preprocessing, target, layer,
        provider, precision, refinement.
    """
    given = record.get("settings", {})
    crf = record.get("crf") or {}
    kernels = [("bilateral", crf.get("bilateral")), ("gaussian", crf.get("gaussian"))]
    refinement = [f"{name} {' '.join(f'{value:g}' for value in values)}" for name, values in kernels if values]
    iterations = [f"{crf['iterations']} iterations"] if "iterations" in crf else []
    known = {
        "model": model,
        "method": record.get("method"),
        "protocol": record.get("protocol"),
        "settings": _listed(given.get("set")),
        "smoothing": _listed(given.get("smooth")),
        "preprocessing": _listed(given.get("preprocess")),
        "target": _listed(given.get("target")),
        "layer": _listed(given.get("layer")),
        "provider": record.get("provider"),
        "precision": record.get("precision"),
        "refinement": ", ".join(["CRF", *refinement, *iterations]) if crf else None,
    }
    return {name: str(value) for name, value in known.items() if value}


def _listed(value: Any) -> str:
    """A setting in a line: a mapping, a list or a single value."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={each}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def html_card(explanation: Explanation, *, side: int = SIDE, style: Style = STYLE) -> str:
    """Make the card of one image. `html_document` joins cards, also those of several runs, into one page.

    Args:
        explanation: What to show.
        side: The longer side of the image in pixels.
        style: Its color map says whether values below zero are shown, its boxes which boxes are.

    Returns:
        HTML of an ``<article>``.
    """
    height, width = explanation.original_size
    scores = [float(score) if math.isfinite(score) else None for score in explanation.scores.tolist()]
    classes = [
        {
            "label": label,
            "score": score,
            "text": score_text(float("nan") if score is None else score),
            "boxes": _parts(explanation, rank, style),
            **_map(explanation, rank, style),
        }
        for rank, (label, score) in enumerate(zip(explanation.labels, scores, strict=True))
    ]
    data = {
        "name": explanation.source,
        "width": width,
        "height": height,
        "image": _data_uri(_bounded_jpeg(fit(explanation.image, side))),
        "signed": colors.is_diverging(style.colormap),
        "classes": classes,
    }
    return fill(
        "explanation.html",
        name=explanation.source,
        labels=explanation.labels,
        score="" if not scores or scores[0] is None else repr(scores[0]),
        aspect=f"{min(max(width / height, 0.4), 3):.4f}",
        data=data,
    )


def _map(explanation: Explanation, rank: int, style: Style) -> dict[str, Any]:
    """The map of a class as a small gray JPEG of its levels, and the values of the first and the last level."""
    import cv2

    heatmap, limits = explanation.map_and_limits(rank)
    limits = limits or colors.limits(heatmap, style.colormap)
    drawn: NDArray[Any] = colors.levels(heatmap, style.colormap, limits)
    scale = _MAP_SIDE / max(drawn.shape)
    if scale < 1:
        size = max(1, round(drawn.shape[1] * scale)), max(1, round(drawn.shape[0] * scale))
        drawn = cv2.resize(drawn, size, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    return {"map": _data_uri(encoded.tobytes()), "low": limits[0], "high": limits[1]}


def _parts(explanation: Explanation, rank: int, style: Style) -> list[list[float]]:
    """The boxes of a class: x, y, width and height as parts of the image's width and height."""
    if style.boxes is None:
        return []
    boxes = explanation.best_box(rank) if style.boxes == "best" else explanation.boxes(rank, style.thresholds)
    parts: list[list[float]] = np.round(boxes / (explanation.original_size[::-1] * 2), 4).tolist()
    return parts


def _bounded_jpeg(image: NDArray[np.uint8]) -> bytes:
    """Encode a picture as JPEG, in a lower quality where it is noise and would take too much."""
    for quality in (82, 65, 45, 25, 10):
        encoded = jpeg(image, quality)
        if len(encoded) <= _MOST_BYTES:
            break
    return encoded


def _data_uri(content: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode('ascii')}"


def html_document(
    cards: Iterable[str],
    *,
    title: str = "What the network sees",
    note: str = "",
    facts: Mapping[str, str] | None = None,
    style: Style = STYLE,
) -> str:
    """Make a page of cards.

    Args:
        cards: HTML of `html_card`; not escaped again.
        title: Plain text.
        note: Plain text: a line under the title, behind the number of images.
        facts: Plain text: how the images were explained, as `facts_of` says it.
        style: Color map, opacity and boxes that the page starts with.

    Returns:
        HTML.
    """
    body = list(cards)
    count = f"{len(body):,} image{'' if len(body) == 1 else 's'}"
    script = _script()
    return fill(
        "explanations.html",
        cards=body,
        title=title,
        note=" · ".join(part for part in (count, note) if part),
        facts=facts or {},
        style=style,
        sequential=colors.SEQUENTIAL,
        tables=colors.as_dict(),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )


@functools.cache
def _script() -> str:
    """The page's script. Its hash is the only one that the page lets run."""
    return "\n" + (resources.files("camrt") / "templates" / "explanations.js").read_text(encoding="utf-8")


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
    scale = np.broadcast_to(colors.color_table(colors.DEFAULT), (8, 256, 3))
    environment.globals["color_scale"] = f"data:image/png;base64,{base64.b64encode(png(scale)).decode('ascii')}"
    return environment
