"""What fine-tuning leaves: an ONNX classifier, an explainer, a report with the worst mistakes, and a model card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from camrt import images, results
from camrt.errors import CamrtError
from camrt.explainer import Explainer
from camrt.graph import explain_graph
from camrt.report import Figure, fill
from camrt.train.finetune.backbone import CamNetwork
from camrt.train.finetune.options import FinetuneOptions, FinetuneResult
from camrt.train.finetune.photographs import Photographs
from converters import metadata

CLASSIFIER, EXPLAINER, REPORT, CARD, PREDICTIONS = ".onnx", "_explainer.onnx", "_report.html", "_card.md", "_test.jsonl"
_SIDE = 320  # pixels: the longer side of an image in the report
_TOP = 5  # the classes that the explainer explains
_MOST_NAMES = 60  # classes up to which the report shows the whole confusion matrix
_PAIRS = 30  # confused pairs in the report of more classes


class Prediction(NamedTuple):
    """What the network says of a test image.

    Attributes:
        label: The number of its class.
        best: The number of the best class.
        score: The probability of the best class.
    """

    label: int
    best: int
    score: float

    @property
    def is_right(self) -> bool:
        """Whether the best class is that of the image."""
        return self.label == self.best


def confusion(predictions: Sequence[Prediction], classes: int) -> NDArray[np.int64]:
    """Count the test images by their class (rows) and the best class of the network (columns).

    Args:
        predictions: The predictions.
        classes: The number of classes.

    Returns:
        (classes, classes) int64.
    """
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, ([one.label for one in predictions], [one.best for one in predictions]), 1)
    return counts


def worst_mistakes(predictions: Sequence[Prediction], count: int) -> list[int]:
    """Return the numbers of the wrong predictions with the highest scores, the highest first."""
    wrong = [number for number, one in enumerate(predictions) if not one.is_right]
    return sorted(wrong, key=lambda number: -predictions[number].score)[:count]


def write_outcome(
    model: CamNetwork,
    options: FinetuneOptions,
    classes: Sequence[str],
    photographs: Photographs,
    predictions: Sequence[Prediction],
    steps: int,
    seconds: float,
) -> FinetuneResult:
    """Write all files of a finished run.

    Args:
        model: The trained network.
        options: The options.
        classes: The names of the classes.
        photographs: The test images.
        predictions: The prediction for each test image.
        steps: The number of steps done.
        seconds: The training time.

    Raises:
        CamrtError: The network cannot be exported, or a file cannot be written.
    """
    classifier = model.cpu().to_onnx(options.out.name)
    described = {
        metadata.NAME: options.out.name,
        metadata.PREPROCESS: model.preprocess.as_json(),
        metadata.LABELS: metadata.labels_text(list(classes)),
    }
    kept = {one.key: one.value for one in classifier.metadata_props} | described
    onnx.helper.set_model_props(classifier, kept)
    explainer = explain_graph(classifier, "cam", "whole", min(_TOP, len(classes)), target="any")
    paths = {ending: options.named(ending) for ending in (CLASSIFIER, EXPLAINER, REPORT, CARD)}
    results.write(paths[CLASSIFIER], classifier.SerializeToString())
    results.write(paths[EXPLAINER], explainer.SerializeToString())
    lines = [
        {"image": path, "class": classes[one.label], "best": classes[one.best], "score": round(one.score, 6)}
        for path, one in zip(photographs.paths, predictions, strict=True)
    ]
    results.write(options.named(PREDICTIONS), "".join(f"{results.json_line(line)}\n" for line in lines).encode())
    counts = confusion(predictions, len(classes))
    page = report(Explainer(explainer), options, classes, photographs, predictions, counts)
    results.write(paths[REPORT], page.encode())
    results.write(paths[CARD], card(model, options, classes, counts, seconds).encode())
    totals = counts.sum(axis=1)
    per_class = {
        name: float(counts[number, number] / totals[number]) for number, name in enumerate(classes) if totals[number]
    }
    accuracy = float(np.trace(counts) / counts.sum())
    return FinetuneResult(
        paths[CLASSIFIER], paths[EXPLAINER], paths[REPORT], paths[CARD], steps, accuracy, per_class, seconds
    )


# ----------------------------------------------------------------------------------------------------------- the report


def report(
    explain: Explainer,
    options: FinetuneOptions,
    classes: Sequence[str],
    photographs: Photographs,
    predictions: Sequence[Prediction],
    counts: NDArray[np.int64],
) -> str:
    """Make the report: one HTML file with accuracy, confusion, and the worst mistakes with their maps.

    Args:
        explain: The explainer, of the target ``"any"``.
        options: The options.
        classes: The names of the classes.
        photographs: The test images.
        predictions: The prediction for each test image.
        counts: The confusion matrix, from `confusion`.
    """
    right, total = int(np.trace(counts)), int(counts.sum())
    cards = list(_cards(explain, classes, photographs, predictions, options.worst))
    return fill(
        "finetune.html",
        title=f"{options.out.name}: {right / total:.1%}",
        note=f"{options.backbone} · {right:,} of {total:,} test images right · {len(classes)} classes",
        classes=_per_class(classes, counts),
        matrix=_matrix(classes, counts) if len(classes) <= _MOST_NAMES else None,
        pairs=_pairs(classes, counts),
        cards=cards,
    )


def _per_class(classes: Sequence[str], counts: NDArray[np.int64]) -> list[dict[str, Any]]:
    """The accuracy of each class, the lowest first."""
    totals = counts.sum(axis=1).tolist()
    rows = [
        {"name": name, "right": right, "total": total, "share": right / total}
        for name, right, total in zip(classes, np.diag(counts).tolist(), totals, strict=True)
        if total
    ]
    return sorted(rows, key=lambda row: row["share"])


def _matrix(classes: Sequence[str], counts: NDArray[np.int64]) -> list[dict[str, Any]]:
    """The rows of the confusion matrix, each cell with its share of the row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return [
        {
            "name": name,
            "cells": [
                {"count": count, "share": round(share, 3), "name": classes[column], "right": row == column}
                for column, (count, share) in enumerate(zip(row_counts, row_shares, strict=True))
            ],
        }
        for row, (name, row_counts, row_shares) in enumerate(
            zip(classes, counts.tolist(), shares.tolist(), strict=True)
        )
    ]


def _pairs(classes: Sequence[str], counts: NDArray[np.int64]) -> list[dict[str, Any]]:
    """The pairs that are confused most."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
    rows, columns = np.unravel_index(order, wrong.shape)
    return [
        {"label": classes[row], "best": classes[column], "count": int(wrong[row, column])}
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        if wrong[row, column]
    ]


def _cards(
    explain: Explainer,
    classes: Sequence[str],
    photographs: Photographs,
    predictions: Sequence[Prediction],
    count: int,
) -> Iterator[str]:
    """Each of the worst mistakes: the image, the map of what the network says, and that of the image's class."""
    for number in worst_mistakes(predictions, count):
        path, one = photographs.paths[number], predictions[number]
        try:
            found = explain(path, [one.best, one.label]).fitted(_SIDE)
        except CamrtError:  # the file is gone or broken by now: the other mistakes are still worth a look
            continue
        said, true = classes[one.best], classes[one.label]
        figures = [
            Figure(images.fit(found.image, _SIDE), f"the image, {true}", true, "its class"),
            Figure(found.overlay(0), f"map of {said}", said, f"{one.score:.0%}"),
            Figure(found.overlay(1), f"map of {true}", true, "the map of its class"),
        ]
        heading = f"{true}, taken for {said}: {Path(path).name}"
        yield fill("card.html", heading=heading, figures=figures, cell=200)


# ------------------------------------------------------------------------------------------------------------- the card


def card(
    model: CamNetwork,
    options: FinetuneOptions,
    classes: Sequence[str],
    counts: NDArray[np.int64],
    seconds: float,
) -> str:
    """Write the model card, in Markdown: what the network is, how it was trained, and what was measured.

    Args:
        model: The trained network.
        options: The options.
        classes: The names of the classes.
        counts: The confusion matrix, from `confusion`.
        seconds: The training time.
    """
    right, total = int(np.trace(counts)), int(counts.sum())
    error = (right / total * (1 - right / total) / total) ** 0.5
    parameters = sum(one.numel() for one in model.parameters())
    wants = model.preprocess
    recipe = {key: value for key, value in options.recipe().items() if value not in (None, "", 0, 0.0)}
    tested = "the test images" if options.test_data else f"{options.holdout:.0%} of the images, held out by the seed"
    return "\n".join(
        [
            f"# {options.out.name}",
            "",
            f"A classifier of {len(classes)} classes, fine-tuned from `{options.backbone}` by camrt: its features,",
            "global average pooling and one linear layer, so that each class has a class activation map (Zhou et al.",
            "2016).",
            "",
            "| | |",
            "|---|---|",
            f"| classes | {', '.join(_escaped(name) for name in classes)} |",
            f"| parameters | {parameters:,} |",
            f"| input | N x 3 x {wants.crop} x {wants.crop}, {wants.channels}; the preprocessing is in the metadata |",
            f"| accuracy | {right / total:.2%} ± {100 * error:.2f} (standard error, percentage points), {right:,} of "
            f"{total:,} |",
            f"| tested on | {tested} |",
            f"| training time | {seconds:.0f} s |",
            "",
            "## Recipe",
            "| option | value |",
            "|---|---|",
            *(f"| {key} | {_escaped(str(value))} |" for key, value in recipe.items()),
            "",
            "## Accuracy by class",
            "| class | right | of |",
            "|---|---|---|",
            *(f"| {_escaped(row['name'])} | {row['right']} | {row['total']} |" for row in _per_class(classes, counts)),
            "",
            "## Limitations",
            "The network has no class for anything else: it assigns each image to one of its classes. Its accuracy on",
            "images of another origin is not known.",
            "",
        ]
    )


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def summary(result: FinetuneResult) -> Mapping[str, Any]:
    """Return the result for JSON."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(result).items()}
