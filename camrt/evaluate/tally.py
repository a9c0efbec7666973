"""What the journals of a method add up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camrt.errors import CamrtError
from camrt.evaluate import faithfulness, wsol
from camrt.evaluate.annotated import DataSet
from camrt.evaluate.comparison import DELETION, DROP, INSERTION, ROAD, journal_name, stamps_of
from camrt.evaluate.journal import Records
from camrt.evaluate.placing import BOXES, MASKS, POINTING, unpacked


@dataclass(frozen=True, eq=False)
class Outcome:
    """What was measured of a method.

    Attributes:
        method: How the maps came about.
        images: How many images the data set has.
        left: How many of them are not measured yet: those of other shards.
        refused: The images in which nothing could be measured, with the reasons. In boxes, localization and pointing
            they count as wrong; the metrics that look at scores are without them, and so is PxAP.
        numbers: Metric -> value: shares of 0 to 1, and the thresholds that were best.
        sweep: Name -> (1000,) the accuracy at each of `wsol.THRESHOLDS`.
        precision: (1001,) of the pixels, and ``recall``; None without masks.
        recall: See there.
        road: Name -> (9,) the mean score and the accuracy as pixels go; empty without ROAD.
    """

    method: str
    images: int
    left: int
    refused: Mapping[str, str]
    numbers: Mapping[str, float]
    sweep: Mapping[str, NDArray[np.float64]]
    precision: NDArray[np.float64] | None = None
    recall: NDArray[np.float64] | None = None
    road: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


def tally(
    dataset: DataSet,
    images: str | Path | None,
    folder: str | Path,
    method: str,
    groups: Sequence[str],
    *,
    threshold: float | None = None,
) -> Outcome:
    """Counts what the journals of a method say.

    Args:
        dataset: The images.
        images: Their folder; None where they are not at hand: then what the journals say is taken as it is.
        folder: Where the journals are.
        method: The method.
        groups: What was measured.
        threshold: The threshold of GT-known, top-1 and top-5 localization; None for the best one.

    Raises:
        CamrtError: A journal cannot be read, or is damaged.
    """
    stamps = None if images is None else stamps_of(dataset, Path(images))
    counts = _Counts(threshold, {each.image: each.label for each in dataset.images})
    refused: dict[str, str] = {}
    missing: set[str] = set()
    names = counts.labels
    for group in groups:
        records = Records(folder, journal_name(group, method))
        missing |= {name for name in names if name not in records}
        failed = {name: reason for name, reason in records.refused.items() if name in names}
        counts.seen.add(group)
        if group == POINTING:
            for name in failed:
                counts.point(name, hit=False)
        refused |= failed
        for name, found in records:
            if name not in names or (stamps is not None and not records.is_done(name, stamps[name])):
                continue
            try:
                counts.add(group, name, found)
            except (LookupError, TypeError, ValueError) as error:
                raise CamrtError(
                    f"what the journal {journal_name(group, method)!r} says of {name!r} is damaged ({error!r})",
                    file=str(folder),
                ) from error
    counted = len(names) - len(missing)
    return Outcome(
        method=method,
        images=len(names),
        left=len(missing),
        refused=refused,
        numbers=counts.numbers(counted),
        sweep=counts.sweep(counted),
        **counts.curve(),
        road=counts.road(),
    )


@dataclass
class _Counts:
    """What is added up over the images."""

    threshold: float | None
    labels: Mapping[str, int | str]
    right: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, len(wsol.OVERLAPS), wsol.LEVELS), np.int64))
    ranked: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, wsol.LEVELS), np.int64))
    classified: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2, np.int64))
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, len(wsol.THRESHOLDS) + 1), np.int64))
    lists: dict[str, list[Any]] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def add(self, group: str, image: str, found: Mapping[str, Any]) -> None:
        """Add what was measured of an image."""
        if group == BOXES:
            ious = unpacked(found["ious"], "<f4", (2, wsol.LEVELS))
            placed = ious[:, None] >= np.array(wsol.OVERLAPS, np.float32)[:, None]
            self.right += placed
            for place, best in enumerate((1, 5)):
                if int(found["rank"]) < best:
                    self.classified[place] += 1
                    self.ranked[place] += placed[0, wsol.OVERLAPS.index(0.5)]
        elif group == MASKS:
            self.pixels += unpacked(found["pixels"], "<i4", self.pixels.shape)
        elif group == POINTING:
            self.point(image, hit=bool(found["hit"]))
        elif group == DROP:
            if found["before"] is not None and found["after"] is not None:
                self._keep("before", float(found["before"]))
                self._keep("after", float(found["after"]))
        elif group == ROAD:
            if None not in (*found["most"], *found["least"]):
                for key in ("most", "least", "most_right", "least_right"):
                    self._keep(key, [float(value) for value in found[key]])
        elif found["area"] is not None:
            self._keep(group, float(found["area"]))

    def point(self, image: str, *, hit: bool) -> None:
        """Add a hit or miss of the pointing game."""
        self._keep("hit", hit)
        self._keep("class", str(self.labels[image]))

    def _keep(self, key: str, value: Any) -> None:
        self.lists.setdefault(key, []).append(value)

    def numbers(self, counted: int) -> dict[str, float]:
        """The metrics."""
        found: dict[str, float] = {}
        if BOXES in self.seen and counted:
            found |= self._localization(counted)
        if self.pixels.any():
            found["PxAP"] = wsol.pxap(self.pixels)
        lists = {key: np.array(values) for key, values in self.lists.items()}
        if "hit" in lists:
            found["pointing"] = faithfulness.pointing_accuracy(lists["hit"], lists["class"])
        if "before" in lists:
            found["average drop"] = faithfulness.average_drop(lists["before"], lists["after"])
            found["increase"] = faithfulness.increase_in_confidence(lists["before"], lists["after"])
        found |= {group: float(lists[group].mean()) for group in (INSERTION, DELETION) if group in lists}
        if "most" in lists:
            found["ROAD"] = faithfulness.road(lists["most"], lists["least"])
        return found

    def _localization(self, counted: int) -> dict[str, float]:
        shares, half = self.right / counted, wsol.OVERLAPS.index(0.5)
        best = int(shares[0, half].argmax())
        used = best if self.threshold is None else int(wsol.levels_of([self.threshold])[0])
        level = wsol.levels_of(wsol.THRESHOLDS)
        first = float(wsol.THRESHOLDS[np.flatnonzero(level == best)[0]])
        return {
            "MaxBoxAcc": float(shares[0, half, best]),
            "MaxBoxAccV2": float(shares[1].max(axis=1).mean()),
            "GT-known": float(shares[0, half, used]),
            "top-1": float(self.ranked[0, used] / counted),
            "top-5": float(self.ranked[1, used] / counted),
            "threshold": first if self.threshold is None else self.threshold,
            "top-1 classification": float(self.classified[0] / counted),
            "top-5 classification": float(self.classified[1] / counted),
        }

    def sweep(self, counted: int) -> dict[str, NDArray[np.float64]]:
        """The accuracies at all thresholds."""
        if BOXES not in self.seen or not counted:
            return {}
        level = wsol.levels_of(wsol.THRESHOLDS)
        curves = {
            f"{name} {overlap:g}": self.right[mode, place][level] / counted
            for mode, name in enumerate(("largest", "all"))
            for place, overlap in enumerate(wsol.OVERLAPS)
        }
        return {**curves, **{f"top-{best}": self.ranked[place][level] / counted for place, best in enumerate((1, 5))}}

    def curve(self) -> dict[str, NDArray[np.float64]]:
        """Precision and recall."""
        found = wsol.precision_recall(self.pixels) if self.pixels.any() else ()
        return dict(zip(("precision", "recall"), found, strict=False))

    def road(self) -> dict[str, NDArray[np.float64]]:
        """The means of ROAD's scores and answers."""
        names = {
            "most relevant first": "most",
            "least relevant first": "least",
            "accuracy, most relevant first": "most_right",
            "accuracy, least relevant first": "least_right",
        }
        return {name: np.mean(self.lists[key], axis=0) for name, key in names.items() if key in self.lists}


def overlaps_at(folder: str | Path, method: str, threshold: float) -> dict[str, float]:
    """The overlap of the largest contour's box of each image, at a threshold: image -> 0..1.

    Raises:
        CamrtError: The journal cannot be read.
    """
    level = int(wsol.levels_of([threshold])[0])
    records = Records(folder, journal_name(BOXES, method))
    return {name: float(unpacked(found["ious"], "<f4", (2, wsol.LEVELS))[0, level]) for name, found in records}
