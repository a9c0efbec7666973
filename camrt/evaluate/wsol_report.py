"""What a comparison leaves to look at: the sweep over thresholds as CSV and picture, and a page of images."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from camrt import render
from camrt import report as pages
from camrt.evaluate import curves, wsol
from camrt.evaluate.curves import Curve
from camrt.images import resize

if TYPE_CHECKING:
    from camrt.evaluate.annotated import Annotated
    from camrt.evaluate.tally import Outcome
    from camrt.explanation import Explanation

EACH = 12  # images of the worst, and of the best
SIDE = 320  # pixels
# Metric -> the head of its column, whether it is a share that is shown in percent, and what is better.
COLUMNS: Mapping[str, tuple[str, bool]] = {
    "MaxBoxAcc": ("MaxBoxAcc", True),
    "MaxBoxAccV2": ("MaxBoxAccV2", True),
    "GT-known": ("GT-known", True),
    "top-1": ("top-1 loc.", True),
    "top-5": ("top-5 loc.", True),
    "threshold": ("threshold", False),
    "PxAP": ("PxAP", True),
    "pointing": ("pointing", True),
    "average drop": ("avg. drop ↓", True),
    "increase": ("increase", True),
    "insertion": ("insertion", False),
    "deletion": ("deletion ↓", False),
    "ROAD": ("ROAD", False),
}
_TRUE, _FOUND = (60, 220, 90), (255, 255, 255)  # RGB of the boxes
_STYLES = {0.3: "dotted", 0.5: "solid", 0.7: "dashed"}
_CELL = 150  # pixels: the least width of a picture


def table(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """Methods side by side, for people.

    Returns:
        The heads of the columns that have a number, and a row of texts for each method.
    """
    known = [name for name in COLUMNS if any(name in each.numbers for each in outcomes)]
    heads = {name: COLUMNS[name][0] for name in known}
    if all(each.numbers.get("GT-known") == each.numbers.get("MaxBoxAcc") for each in outcomes):
        heads.pop("GT-known", None)  # at the best threshold they are the same
        heads = {name: "GT-known = MaxBoxAcc" if name == "MaxBoxAcc" else head for name, head in heads.items()}
    rows = [[each.method, *(_cell(each, name) for name in heads)] for each in outcomes]
    return ["method", *heads.values()], rows


def _cell(outcome: Outcome, name: str) -> str:
    if name not in outcome.numbers:
        return "–"
    value = outcome.numbers[name]
    return f"{100 * value:.2f}" if COLUMNS[name][1] else f"{value:.3f}"


# ----------------------------------------------------------------------------------------------------------- the sweep


def sweep_csv(outcomes: Sequence[Outcome]) -> str:
    """The accuracy at each threshold: a row for each method and threshold."""
    names = list(outcomes[0].sweep)
    lines = [",".join(["method", "threshold", *names])]
    for each in outcomes:
        values = np.stack([each.sweep[name] for name in names], axis=1)
        lines += [
            f"{each.method},{threshold:.3f},{','.join(f'{value:.6f}' for value in row)}"
            for threshold, row in zip(wsol.THRESHOLDS.tolist(), values.tolist(), strict=True)
        ]
    return "\n".join(lines) + "\n"


def sweep_picture(outcomes: Sequence[Outcome], title: str) -> NDArray[np.uint8]:
    """The share of images that the largest contour's box localizes, over the thresholds: (H, W, 3) uint8 RGB."""
    nothing = np.zeros(0)
    legend = [Curve(each.method, nothing, nothing, color) for color, each in enumerate(outcomes)]
    legend += [Curve(f"IoU {overlap:g}", nothing, nothing, 6, style) for overlap, style in _STYLES.items()]
    lines = [
        Curve(
            "",
            wsol.THRESHOLDS,
            each.sweep[f"largest {overlap:g}"],
            color,
            _STYLES[overlap],
            float(wsol.THRESHOLDS[each.sweep["largest 0.5"].argmax()]) if overlap == 0.5 else None,
        )
        for overlap in (0.3, 0.7, 0.5)
        for color, each in enumerate(outcomes)
    ]
    return curves.draw([*legend, *lines], across="threshold", up="share of images localized", title=title)


def precision_csv(outcomes: Sequence[Outcome]) -> str:
    """Precision and recall of the pixels at each threshold and, last, at 1: a row for each method and threshold."""
    lines = ["method,threshold,precision,recall"]
    for each in outcomes:
        if each.precision is not None and each.recall is not None:
            rows = zip(
                np.append(wsol.THRESHOLDS, 1).tolist(), each.precision.tolist(), each.recall.tolist(), strict=True
            )
            lines += [f"{each.method},{threshold:.3f},{p:.6f},{r:.6f}" for threshold, p, r in rows]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------------------ the page


@dataclass(frozen=True)
class Shown:
    """An image of the page.

    Attributes:
        annotated: Its annotation.
        heading: What it is there for.
        overlaps: Method -> the overlap of its box.
    """

    annotated: Annotated
    heading: str
    overlaps: Mapping[str, float]


def worst_and_best(
    images: Sequence[Annotated], overlaps: Mapping[str, Mapping[str, float]], each: int = EACH
) -> list[Shown]:
    """The images that the first of the methods localized worst, then those that it localized best.

    No image is there twice. Images without a map are left out.

    Args:
        images: The data set.
        overlaps: Method -> image -> the overlap of its box.
        each: How many of the worst, and of the best.
    """
    first = next(iter(overlaps.values()))
    there = [one for one in images if one.image in first]
    order = sorted(there, key=lambda one: first[one.image])
    each = min(each, (len(order) + 1) // 2)
    chosen = [("worst", rank, one) for rank, one in enumerate(order[:each], 1)]
    chosen += [("best", rank, one) for rank, one in enumerate(order[each:][::-1][:each], 1)]
    return [
        Shown(one, f"{name} {rank}", {method: found.get(one.image, 0.0) for method, found in overlaps.items()})
        for name, rank, one in chosen
    ]


def page(
    shown: Sequence[Shown],
    explained: Mapping[str, Sequence[Explanation]],
    outcomes: Sequence[Outcome],
    *,
    side: int = wsol.SIDE,
    title: str = "Localization",
    note: str = "",
) -> str:
    """The page, in one file: the table, and images with the boxes of the truth (green) and of each method (white).

    Args:
        shown: The images.
        explained: Method -> their explanations.
        outcomes: What was measured of the methods, at whose thresholds the boxes are found.
        side: The side in pixels of the maps in which boxes are found.
        title: Plain text.
        note: Plain text: a line under the title.

    Returns:
        HTML.
    """
    thresholds = {each.method: each.numbers["threshold"] for each in outcomes}
    cards = [
        _card(one, {method: maps[place] for method, maps in explained.items()}, thresholds, side)
        for place, one in enumerate(shown)
    ]
    document = pages.html_document(cards, title=title, note=note)
    width = (len(explained) + 1) * (_CELL + 16) + 40
    columns = f"display:grid;gap:0 20px;grid-template-columns:repeat(auto-fill,minmax(min({width}px,100%),1fr))"
    begin = f'<main>\n{_table(outcomes)}<section style="{columns}">'
    return document.replace("<main>\n", begin, 1).replace("</main>", "</section></main>")


def found_box(heatmap: NDArray[np.float32], threshold: float, size: tuple[int, int], side: int) -> NDArray[np.float64]:
    """The box of the largest contour of a map: (1, 4) x, y, width, height in the image's pixels.

    Args:
        heatmap: (S, S).
        threshold: 0 <= threshold < 1.
        size: The image's width and height.
        side: The side in pixels of the map in which it is found.
    """
    grey = wsol.grey_levels(wsol.normalized(resize(heatmap, (side, side))))
    boxes, largest = wsol.boxes_above(grey, int(wsol.levels_of([threshold], int(grey.max()))[0]))
    x1, y1, x2, y2 = boxes[largest].tolist()
    across, down = size[0] / side, size[1] / side
    return np.array([[x1 * across, y1 * down, (x2 - x1) * across, (y2 - y1) * down]])


def _card(one: Shown, found: Mapping[str, Explanation], thresholds: Mapping[str, float], side: int) -> str:
    original = next(iter(found.values())).image
    height, width = original.shape[:2]
    image = render.fit(original, SIDE, enlarge=True)
    scale = image.shape[1] / width
    corners = np.array(one.annotated.boxes)
    true = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2] + 1]) * scale
    drawn = render.draw_boxes(image, np.rint(true), color=_TRUE)
    figures = [pages.Figure(drawn, one.annotated.image, next(iter(found.values())).labels[0])]
    for method, explanation in found.items():
        drawn = render.overlay(image, resize(explanation.heatmaps[0], image.shape[:2]))
        drawn = render.draw_boxes(drawn, np.rint(true), color=_TRUE)
        box = found_box(explanation.heatmaps[0], thresholds[method], (width, height), side)
        drawn = render.draw_boxes(drawn, np.rint(box * scale), color=_FOUND)
        alt, note = f"{one.annotated.image}: {method}", f"IoU {one.overlaps[method]:.3f}"
        figures.append(pages.Figure(drawn, alt, method, note))
    return pages.fill("card.html", heading=f"{one.heading} · {one.annotated.image}", figures=figures, cell=_CELL)


def _table(outcomes: Sequence[Outcome]) -> str:
    heads, rows = table(outcomes)
    head = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in heads)
    body = "".join(
        f"<tr><th scope=row>{html.escape(row[0])}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>\n"
        for row in rows
    )
    return (
        "<article>\n<h2>Methods side by side</h2>\n"
        '<div style="overflow-x:auto"><table style="border-spacing:18px 4px;text-align:right;'
        f'font-variant-numeric:tabular-nums">\n<tr>{head}</tr>\n{body}</table></div>\n'
        f"<p>Green: the ground truth. White: the box of the largest contour at the method's threshold. The images are "
        f"those that {html.escape(outcomes[0].method)} localized worst and best.</p>\n</article>\n"
    )
