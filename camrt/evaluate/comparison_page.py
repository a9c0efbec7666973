"""The page of `camrt compare`: maps side by side, and what was measured of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from camrt.captions import score_text
from camrt.evaluate.comparison import MEASURES, Row, best, means
from camrt.render import STYLE, Style, fit
from camrt.report import SIDE, Figure, fill

HEADS = {"seconds": "seconds", "insertion": "insertion ↑", "deletion": "deletion ↓", "road": "ROAD ↑"}
LEGEND = (
    "Insertion: the score while the blurred image is restored, the most relevant pixels first; higher is better. "
    "Deletion: the score while they are removed; lower is better. ROAD: what is lost when the most relevant pixels are "
    "imputed from their neighbors, less what is lost with the least relevant ones; higher is better. ★ marks the best "
    "of each column. A difference of a few images says little, and a map that is no better than a baseline explains "
    "nothing."
)


def value_text(measure: str, value: float) -> str:
    """Format a measure for people: seconds with three significant digits, others with three decimals."""
    return f"{value:#.3g}" if measure == "seconds" else f"{value:.3f}"


def page(rows: Sequence[Row], *, model: str = "", failed: Sequence[str] = (), style: Style = STYLE) -> str:
    """Make a page of a comparison: one HTML file, with nothing loaded from elsewhere.

    Args:
        rows: From `camrt.compare`.
        model: What the model is called.
        failed: Lines about what was left out.
        style: The color map and opacity of the overlays.

    Returns:
        HTML.
    """
    by_image: dict[str, list[Row]] = {}
    for row in rows:
        by_image.setdefault(row.image, []).append(row)
    averages = means(rows)
    counts = f"{_counted(len(averages), 'method')}, {_counted(len(by_image), 'image')}"
    return fill(
        "comparison.html",
        title="Methods compared",
        note=" · ".join(part for part in (counts, model) if part),
        heads=[HEADS[measure] for measure in MEASURES],
        table=[{"method": method, "cells": cells} for method, cells in _cells(averages, [*averages]).items()],
        legend=LEGEND,
        cards=[_card(name, found, style) for name, found in by_image.items()],
        failed=failed,
    )


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _cells(values: Mapping[str, Mapping[str, float]], methods: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Method -> its measures as text, each with whether it is the best. Of one method, none is."""
    found = best(values) if len(values) > 1 else {}
    return {
        method: [
            {
                "name": measure,
                "text": value_text(measure, values[method][measure]),
                "best": method in found.get(measure, ()),
            }
            for measure in MEASURES
        ]
        for method in methods
    }


def _card(name: str, rows: Sequence[Row], style: Style) -> dict[str, Any]:
    """An image and its maps."""
    cells = _cells({row.method: row.as_dict() for row in rows}, [row.method for row in rows])
    first = rows[0]
    return {
        "name": Path(name).name,
        "label": first.label,
        "score": score_text(first.score),
        "image": Figure(fit(first.explanation.image, SIDE), name, "image"),
        "maps": [
            {
                "figure": Figure(
                    row.explanation.fitted(SIDE).overlay(
                        0, Style(colormap=style.colormap, opacity=style.opacity, boxes=None, caption=False)
                    ),
                    f"{row.method} of {row.label}",
                    row.method,
                ),
                "cells": cells[row.method],
            }
            for row in rows
        ],
    }
