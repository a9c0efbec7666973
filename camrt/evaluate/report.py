"""A page with the images that were localized worst and best."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from camrt import render
from camrt import report as pages
from camrt.evaluate import ilsvrc
from camrt.evaluate.ilsvrc import IOU
from camrt.images import resize

if TYPE_CHECKING:
    from camrt.evaluate.dataset import Dataset
    from camrt.evaluate.localization import Outcome
    from camrt.explanation import Explanation

EACH = 12  # images of the worst, and of the best
SIDE = 320  # pixels
_COLUMNS = "display:grid;gap:0 20px;grid-template-columns:repeat(auto-fill,minmax(min(520px,100%),1fr))"
_TABLE = "border-spacing:18px 4px;text-align:right;font-variant-numeric:tabular-nums"
_TRUE, _GUESSED = (60, 220, 90), (255, 255, 255)  # RGB of the boxes


@dataclass(frozen=True)
class Case:
    """An image whose class was among the guesses.

    Attributes:
        place: Which image of the data set, counted from 0.
        guess: Which guess, counted from 0.
        overlap: Intersection over union of the guess with the best box of the class.
    """

    place: int
    guess: int
    overlap: float


def worst_and_best(
    outcome: Outcome, dataset: Dataset, each: int = EACH, ranking: str = "bbox1"
) -> tuple[list[Case], list[Case]]:
    """The images whose class was among the five guesses, with the least and the largest overlap.

    Images on the blacklist are left out, and no image is in both lists.

    Args:
        outcome: What was guessed.
        dataset: What it is compared with.
        each: How many images a list may have.
        ranking: Whose guesses.

    Returns:
        The worst, the very worst first; and the best, the very best first.
    """
    found = ilsvrc.overlaps(outcome.predictions[ranking], dataset.truth, dataset.boxes)
    found[np.array(dataset.blacklist, np.int64) - 1] = -1
    guess = found.argmax(axis=1)
    overlap = found.max(axis=1)
    places = np.flatnonzero(overlap >= 0)
    order = places[np.argsort(overlap[places], kind="stable")]
    cases = [Case(int(place), int(guess[place]), float(overlap[place])) for place in order]
    each = min(each, (len(cases) + 1) // 2)
    return cases[:each], cases[each:][::-1][:each]


def page(
    outcome: Outcome,
    dataset: Dataset,
    images: Mapping[str, Path | None],
    explain: Callable[[Path], Explanation],
    *,
    title: str,
    note: str = "",
    each: int = EACH,
) -> str:
    """The page, in one file: a table of the errors, and the worst and the best images with their boxes.

    Args:
        outcome: What was guessed.
        dataset: What it is compared with.
        images: Name -> file.
        explain: Gives the maps of an image anew: they are not kept.
        title: Plain text.
        note: Plain text: a line under the title.
        each: How many of the worst and of the best images.

    Returns:
        HTML.

    Raises:
        CamrtError: An image cannot be read any more.
    """
    worst, best = worst_and_best(outcome, dataset, each)
    cards = []
    for name, cases in (("worst", worst), ("best", best)):
        for rank, case in enumerate(cases, 1):
            path = images.get(dataset.names[case.place])
            if path is not None:
                cards.append(_card(f"{name} {rank}", case, outcome, dataset, explain(path)))
    document = pages.html_document(cards, title=title, note=note)
    document = document.replace("<main>\n", f'<main>\n{_table(outcome)}<section style="{_COLUMNS}">\n', 1)
    return document.replace("</main>", "</section>\n</main>")


def _card(heading: str, case: Case, outcome: Outcome, dataset: Dataset, found: Explanation) -> str:
    name = dataset.names[case.place]
    truth = dataset.boxes[case.place]
    true = _drawable(truth[truth[:, 0] == dataset.truth[case.place], 1:])
    guessed = _drawable(outcome.predictions["bbox1"].reshape(-1, 5, 5)[case.place, case.guess, None, 1:])
    image = render.fit(found.image, SIDE, enlarge=True)
    scale = image.shape[1] / found.image.shape[1]
    heatmap = resize(found.heatmaps[case.guess], image.shape[:2])
    figures = []
    label = found.labels[case.guess]
    for ground, text, note in (
        (image, label, f"guess {case.guess + 1}"),
        (render.overlay(image, heatmap), "intersection / union", f"{case.overlap:.3f}"),
    ):
        drawn = render.draw_boxes(ground, np.rint(true * scale), color=_TRUE)
        drawn = render.draw_boxes(drawn, np.rint(guessed * scale), color=_GUESSED)
        figures.append(pages.Figure(drawn, f"{name}: {label}", text, note))
    right = "localized" if case.overlap >= IOU else "not localized"
    return pages.fill("card.html", heading=f"{heading} · {name} · {right}", figures=figures, cell=200)


def _drawable(corners: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """x1, y1, x2, y2 with the last pixel inside, counted from 1, as x, y, width, height counted from 0."""
    return np.hstack([corners[:, :2] - 1, corners[:, 2:] - corners[:, :2] + 1])


def _table(outcome: Outcome) -> str:
    rows = [
        (f"{name}, {kind}", errors[name])
        for name in outcome.localization
        for kind, errors in (("localization", outcome.localization), ("classification", outcome.classification))
    ]
    head = "".join(f"<th scope=col>{number}</th>" for number in range(1, ilsvrc.GUESSES + 1))
    body = "".join(f"<tr><th scope=row>{html.escape(name)}</th>{_cells(errors)}</tr>\n" for name, errors in rows)
    return (
        "<article>\n<h2>Error (%) with 1 to 5 guesses</h2>\n"
        f'<div style="overflow-x:auto"><table style="{_TABLE}">\n'
        f"<tr><th></th>{head}</tr>\n{body}</table></div>\n"
        "<p>Green: the ground truth. White: the guess. Below are the images whose class was among the five guesses of "
        f"bbox1; a box is right from an intersection over union of {IOU} on.</p>\n</article>\n"
    )


def _cells(errors: Sequence[float] | npt.NDArray[np.float64]) -> str:
    return "".join(f"<td>{100 * error:.2f}</td>" for error in errors)
