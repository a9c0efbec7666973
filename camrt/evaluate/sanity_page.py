"""The page of `camrt evaluate sanity`: the maps of each method as layers become random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camrt import colors, render
from camrt.evaluate.sanity import Checked, unchanged
from camrt.report import Figure, fill

_SIDE = 160  # pixels of a map
LEGEND = (
    "Spearman's rank correlation of the maps with those of the trained network, as layers become random from the top "
    "down; means over the images. Adebayo et al.: Sanity Checks for Saliency Maps, NeurIPS 2018."
)


def page(results: Sequence[Checked], *, model: str = "") -> str:
    """Make a page: one HTML file, with nothing loaded from elsewhere.

    Args:
        results: From `camrt.evaluate.sanity.sanity`.
        model: What the model is called.

    Returns:
        HTML.
    """
    names = unchanged(results)
    said = f"Unchanged: {', '.join(names)}" if names else "All methods change"
    stages = results[0].stages if results else ()
    rows = [
        [each.method, *(f"{stage.rank:.2f}" for stage in each.stages), "yes" if each.changes else "no"]
        for each in results
    ]
    return fill(
        "evaluation.html",
        title="Sanity check",
        note=" · ".join(part for part in (said, model) if part),
        heading="Do the maps depend on the weights?",
        table={"heads": ["random layers", *(str(stage.layers) for stage in stages), "changes"], "rows": rows},
        legend=LEGEND,
        card_width=4000,
        cards=[_card(each) for each in results],
    )


def _card(result: Checked) -> str:
    """The maps of the first image: the trained network's, then by the lowest layer that is random."""
    labels = ["trained", *(stage.layer for stage in result.stages)]
    notes = ["", *(f"{stage.rank:.2f}" for stage in result.stages)]
    figures = [
        Figure(_drawn(heatmap), f"{result.method}, {label}", label, note)
        for heatmap, label, note in zip(result.maps, labels, notes, strict=True)
    ]
    return fill("card.html", heading=result.method, figures=figures, cell=120)


def _drawn(heatmap: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A map in color, without an image."""
    gray = np.zeros((_SIDE, _SIDE, 3), np.uint8)
    drawn: Any = render.overlay(gray, heatmap, colormap=colors.DEFAULT, opacity=1.0)
    return np.asarray(drawn, np.uint8)
