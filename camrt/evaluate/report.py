"""Results for people: tables, curves, and a page of the images that were localized worst and best.

Both protocols share one kind of table, one page (``camrt/templates/evaluation.html``) and one rule for choosing images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from camrt import render
from camrt import report as pages
from camrt.evaluate import ilsvrc, wsol
from camrt.evaluate.ilsvrc import GUESSES, IOU
from camrt.images import resize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from camrt.evaluate.datasets import AnnotatedImage, Dataset
    from camrt.evaluate.ilsvrc_protocol import LocalizationErrors
    from camrt.evaluate.wsol_protocol import MethodMetrics
    from camrt.explanation import Explanation

EACH = 12  # images of the worst, and of the best
SIDE = 320  # pixels
# Metric -> the head of its column, and whether it is shown in percent. An arrow marks the metrics that should be low.
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
_CELL, _GAP = 150, 16  # pixels: the least width of a picture, and the space beside it


# ---------------------------------------------------------------------------------------------------------- the tables


@dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes:
        heads: The heads of the columns.
        rows: The rows; the first cell of each is its name.
    """

    heads: list[str]
    rows: list[list[str]]


def error_table(errors: LocalizationErrors) -> Table:
    """Return the localization and classification errors of each ranking, with 1 to 5 guesses, in percent."""
    kinds = {"localization": errors.localization, "classification": errors.classification}
    rows = [
        [f"{name}, {kind}", *(f"{100 * error:.2f}" for error in found)]
        for kind, rankings in kinds.items()
        for name, found in rankings.items()
    ]
    return Table(["error (%)", *(f"top-{number}" for number in range(1, GUESSES + 1))], rows)


def metric_table(methods: Sequence[MethodMetrics]) -> Table:
    """Return the metrics of each method. Columns without any number are left out."""
    known = [name for name in COLUMNS if any(name in each.numbers for each in methods)]
    heads = {name: COLUMNS[name][0] for name in known}
    if all(each.numbers.get("GT-known") == each.numbers.get("MaxBoxAcc") for each in methods):
        heads.pop("GT-known", None)  # at the best threshold they are the same
        heads = {name: "GT-known = MaxBoxAcc" if name == "MaxBoxAcc" else head for name, head in heads.items()}
    rows = [[each.method, *(_cell(each, name) for name in heads)] for each in methods]
    return Table(["method", *heads.values()], rows)


def _cell(metrics: MethodMetrics, name: str) -> str:
    if name not in metrics.numbers:
        return "–"
    value = metrics.numbers[name]
    return f"{100 * value:.2f}" if COLUMNS[name][1] else f"{value:.3f}"


# ------------------------------------------------------------------------------------------------ threshold and recall


def sweep_csv(methods: Sequence[MethodMetrics]) -> str:
    """Return the accuracy at each threshold as CSV: a row for each method and threshold."""
    names = list(methods[0].sweep)
    lines = [",".join(["method", "threshold", *names])]
    for each in methods:
        values = np.stack([each.sweep[name] for name in names], axis=1)
        lines += [
            f"{each.method},{threshold:.3f},{','.join(f'{value:.6f}' for value in row)}"
            for threshold, row in zip(wsol.THRESHOLDS.tolist(), values.tolist(), strict=True)
        ]
    return "\n".join(lines) + "\n"


def precision_csv(methods: Sequence[MethodMetrics]) -> str:
    """Return pixel precision and recall at each threshold and at 1 as CSV: a row for each method and threshold."""
    lines = ["method,threshold,precision,recall"]
    for each in methods:
        if each.precision is not None and each.recall is not None:
            rows = zip(
                np.append(wsol.THRESHOLDS, 1).tolist(), each.precision.tolist(), each.recall.tolist(), strict=True
            )
            lines += [f"{each.method},{threshold:.3f},{p:.6f},{r:.6f}" for threshold, p, r in rows]
    return "\n".join(lines) + "\n"


def sweep_picture(methods: Sequence[MethodMetrics], title: str) -> NDArray[np.uint8]:
    """Draw the share of images that the largest contour's box localizes, over the thresholds.

    Args:
        methods: The methods.
        title: The title of the picture.

    Returns:
        (560, 900, 3) uint8 RGB; higher if there are many methods.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(sweep_figure(methods, title))
    canvas.draw()
    picture: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[:, :, :3]
    return picture


def sweep_figure(methods: Sequence[MethodMetrics], title: str) -> Figure:
    """Draw what `sweep_picture` returns. A dot marks the best threshold at an overlap of 0.5.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, max(5.6, 1.2 + 0.22 * len(methods))), dpi=100, layout="constrained")
    axes = figure.subplots()
    # The colors of Okabe and Ito (2008) can be told apart by people with color vision deficiency.
    colors = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#3c3c3c")
    for number, each in enumerate(methods):
        color = colors[number % len(colors)]
        for overlap, style in ((0.3, ":"), (0.7, "--"), (0.5, "-")):
            curve = each.sweep[f"largest {overlap:g}"]
            axes.plot(
                wsol.THRESHOLDS, curve, style, color=color, label=each.method if overlap == 0.5 else None, clip_on=False
            )  # fmt: skip
        best = int(each.sweep["largest 0.5"].argmax())
        height = each.sweep["largest 0.5"][best]
        axes.plot(wsol.THRESHOLDS[best], height, "o", color=color, markeredgecolor="white", clip_on=False, zorder=5)
    for overlap, style in ((0.3, ":"), (0.5, "-"), (0.7, "--")):
        axes.plot([], [], style, color="black", label=f"IoU {overlap:g}")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="threshold", ylabel="share of images localized", title=title)
    axes.grid(visible=True, alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


# ------------------------------------------------------------------------------------------------------------ the page


def worst_and_best(overlaps: npt.ArrayLike, each: int = EACH) -> tuple[list[int], list[int]]:
    """Choose the images with the smallest and the largest overlaps. No image is in both lists.

    Args:
        overlaps: (N,); negative for an image to leave out.
        each: The largest length of a list.

    Returns:
        The positions of the worst, the very worst first, and of the best, the very best first.
    """
    values = np.asarray(overlaps, np.float64)
    there = np.flatnonzero(values >= 0)
    order = there[np.argsort(values[there], kind="stable")].tolist()
    each = min(each, (len(order) + 1) // 2)
    return order[:each], order[each:][::-1][:each]


@dataclass(frozen=True, eq=False)
class Panel:
    """A picture of a card: the image, or a heatmap over it, with the true boxes and the boxes that were found.

    Attributes:
        label: The left part of the caption.
        note: The right part of the caption.
        heatmap: (S, S); None for the image alone.
        found: (M, 4) x, y, width, height of the boxes that were found, in the image's pixels; None for none.
    """

    label: str
    note: str = ""
    heatmap: NDArray[np.float32] | None = None
    found: NDArray[np.float64] | None = None


def card(
    heading: str, name: str, image: NDArray[np.uint8], truth: NDArray[np.float64], panels: Sequence[Panel], cell: int
) -> str:
    """Make the card of an image.

    Args:
        heading: Plain text.
        name: The name of the image, for readers who cannot see it.
        image: (H, W, 3) uint8 RGB.
        truth: (M, 4) x, y, width, height of the true boxes, in pixels; drawn in green.
        panels: The pictures; their boxes are drawn in white.
        cell: The least width of a picture in pixels.

    Returns:
        HTML of an ``<article>``.
    """
    ground = render.fit(image, SIDE, enlarge=True)
    scale = ground.shape[1] / image.shape[1]
    figures = []
    for panel in panels:
        drawn = ground
        if panel.heatmap is not None:
            drawn = render.overlay(ground, panel.heatmap)
        drawn = render.draw_boxes(drawn, np.rint(truth * scale), color=_TRUE)
        if panel.found is not None:
            drawn = render.draw_boxes(drawn, np.rint(panel.found * scale), color=_FOUND)
        figures.append(pages.Figure(drawn, f"{name}: {panel.label}", panel.label, panel.note))
    return pages.fill("card.html", heading=heading, figures=figures, cell=cell)


def _page(cards: Sequence[str], *, note: str, **values: Any) -> str:
    count = f"{len(cards):,} image{'' if len(cards) == 1 else 's'}"
    return pages.fill("evaluation.html", cards=cards, note=" · ".join(part for part in (count, note) if part), **values)


# ------------------------------------------------------------------------------------------------------ ILSVRC's cards


@dataclass(frozen=True)
class GuessedImage:
    """An image whose class is among the guesses.

    Attributes:
        position: The position of the image in the dataset, counted from 0.
        guess: The guess, counted from 0.
        overlap: The intersection over union of the guess with the best box of the class.
    """

    position: int
    guess: int
    overlap: float


def worst_and_best_guesses(
    errors: LocalizationErrors, dataset: Dataset, each: int = EACH, ranking: str = "bbox1"
) -> tuple[list[GuessedImage], list[GuessedImage]]:
    """Choose the images whose class is among the five guesses with the smallest and the largest overlaps.

    Images on the blacklist are left out.

    Args:
        errors: The guesses.
        dataset: The ground truth.
        each: The largest length of a list.
        ranking: The ranking of the guesses.

    Returns:
        The worst, the very worst first; and the best, the very best first.
    """
    overlaps = ilsvrc.overlaps(errors.predictions[ranking], dataset.truth, dataset.boxes)
    overlaps[np.array(dataset.blacklist, np.int64) - 1] = -1
    guess, overlap = overlaps.argmax(axis=1), overlaps.max(axis=1)
    worst, best = (
        [GuessedImage(position, int(guess[position]), float(overlap[position])) for position in positions]
        for positions in worst_and_best(overlap, each)
    )
    return worst, best


def error_page(
    errors: LocalizationErrors,
    dataset: Dataset,
    files: Mapping[str, Path | None],
    explain: Callable[[Path], Explanation],
    *,
    title: str = "Localization",
    note: str = "",
) -> str:
    """Make the page of the ILSVRC protocol: the errors, and the worst and the best images with their boxes.

    Args:
        errors: The errors.
        dataset: The ground truth.
        files: The image files by name.
        explain: Computes the maps of an image again, because maps are not kept.
        title: Plain text.
        note: Plain text: a line under the title.

    Returns:
        HTML.

    Raises:
        CamrtError: An image can no longer be read.
    """
    worst, best = worst_and_best_guesses(errors, dataset)
    cards = []
    for name, images in (("worst", worst), ("best", best)):
        for rank, each in enumerate(images, 1):
            path = files.get(dataset.names[each.position])
            if path is not None:
                cards.append(_guess_card(f"{name} {rank}", each, errors, dataset, explain(path)))
    return _page(
        cards,
        title=title,
        note=note,
        heading="Error (%) with 1 to 5 guesses",
        table=error_table(errors),
        legend=(
            "Green: the ground truth. White: the guess. The images below are those whose class is among the five "
            f"guesses of bbox1. A box is correct if its intersection over union is at least {IOU}."
        ),
        card_width=520,
    )


def _guess_card(
    heading: str, each: GuessedImage, errors: LocalizationErrors, dataset: Dataset, found: Explanation
) -> str:
    name, boxes = dataset.names[each.position], dataset.boxes[each.position]
    truth = _drawable(boxes[boxes[:, 0] == dataset.truth[each.position], 1:])
    guessed = _drawable(errors.predictions["bbox1"].reshape(-1, GUESSES, 5)[each.position, each.guess, None, 1:])
    verdict = "localized" if each.overlap >= IOU else "not localized"
    panels = [
        Panel(found.labels[each.guess], f"guess {each.guess + 1}", None, guessed),
        Panel("intersection / union", f"{each.overlap:.3f}", found.heatmaps[each.guess], guessed),
    ]
    return card(f"{heading} · {name} · {verdict}", name, found.image, truth, panels, cell=200)


def _drawable(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert x1, y1, x2, y2 that count from 1 and include the last pixel to x, y, width, height that count from 0."""
    return np.hstack([corners[:, :2] - 1, corners[:, 2:] - corners[:, :2] + 1])


# -------------------------------------------------------------------------------------------------------- WSOL's cards


@dataclass(frozen=True)
class ComparedImage:
    """An image of the page that compares methods.

    Attributes:
        annotated: The image's annotation.
        heading: Its place among the worst or the best.
        overlaps: Method -> the overlap of its box.
    """

    annotated: AnnotatedImage
    heading: str
    overlaps: Mapping[str, float]


def compared_images(
    images: Sequence[AnnotatedImage], overlaps: Mapping[str, Mapping[str, float]], each: int = EACH
) -> list[ComparedImage]:
    """Choose the images that the first method localized worst, then those that it localized best.

    Args:
        images: The dataset.
        overlaps: Method -> image -> the overlap of its box. Images without an overlap are left out.
        each: The largest number of the worst, and of the best.
    """
    first = next(iter(overlaps.values()))
    worst, best = worst_and_best([first.get(one.image, -1) for one in images], each)
    return [
        ComparedImage(one, f"{name} {rank}", {method: found.get(one.image, 0.0) for method, found in overlaps.items()})
        for name, positions in (("worst", worst), ("best", best))
        for rank, one in enumerate((images[position] for position in positions), 1)
    ]


def comparison_page(
    shown: Sequence[ComparedImage],
    explained: Mapping[str, Sequence[Explanation]],
    methods: Sequence[MethodMetrics],
    *,
    side: int = wsol.SIDE,
    title: str = "Localization",
    note: str = "",
) -> str:
    """Make the page of the WSOL protocol: the metrics, and images with the true boxes and the box of each method.

    Args:
        shown: The images.
        explained: Method -> the explanations of these images.
        methods: The metrics of the methods. The boxes are found at their thresholds.
        side: The side in pixels of the maps in which boxes are found.
        title: Plain text.
        note: Plain text: a line under the title.

    Returns:
        HTML.
    """
    thresholds = {each.method: each.numbers["threshold"] for each in methods}
    cards = [
        _comparison_card(one, {method: maps[position] for method, maps in explained.items()}, thresholds, side)
        for position, one in enumerate(shown)
    ]
    return _page(
        cards,
        title=title,
        note=note,
        heading="Methods side by side",
        table=metric_table(methods),
        legend=(
            "Green: the ground truth. White: the box of the largest contour at the method's threshold. The images are "
            f"those that {methods[0].method} localized worst and best."
        ),
        card_width=(len(explained) + 1) * (_CELL + _GAP) + 40,
    )


def _comparison_card(
    one: ComparedImage, found: Mapping[str, Explanation], thresholds: Mapping[str, float], side: int
) -> str:
    first = next(iter(found.values()))
    corners = np.array(one.annotated.boxes)
    truth = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2] + 1])
    size = first.image.shape[1], first.image.shape[0]
    panels = [Panel(first.labels[0])]
    for method, explanation in found.items():
        box = found_box(explanation.heatmaps[0], thresholds[method], size, side)
        panels.append(Panel(method, f"IoU {one.overlaps[method]:.3f}", explanation.heatmaps[0], box))
    name = one.annotated.image
    return card(f"{one.heading} · {name}", name, first.image, truth, panels, cell=_CELL)


def found_box(heatmap: NDArray[np.float32], threshold: float, size: tuple[int, int], side: int) -> NDArray[np.float64]:
    """Return the box of the largest contour of a map: (1, 4) x, y, width, height in the image's pixels.

    Args:
        heatmap: (S, S).
        threshold: 0 <= threshold < 1.
        size: The image's width and height.
        side: The side in pixels of the map in which the box is found.
    """
    gray = wsol.gray_levels(wsol.normalized(resize(heatmap, (side, side))))
    boxes, largest = wsol.boxes_above(gray, int(wsol.levels_of([threshold], int(gray.max()))[0]))
    x1, y1, x2, y2 = boxes[largest].tolist()
    across, down = size[0] / side, size[1] / side
    return np.array([[x1 * across, y1 * down, (x2 - x1) * across, (y2 - y1) * down]])
