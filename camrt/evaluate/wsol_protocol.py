"""The WSOL protocol: methods are compared by how well their maps localize and how faithful they are to the network.

Each image is explained for its own class. The results of a method go to one journal per group of metrics
(`camrt.evaluate.experiment`), so that a metric that is added later is measured alone. Boxes and masks are evaluated in
worker processes while the network runs in this one. `tally` computes the metrics from the journals.
"""

from __future__ import annotations

import base64
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from camrt import images as pixels
from camrt.blackbox.scorer import Scorer
from camrt.errors import CamrtError
from camrt.evaluate import experiment, faithfulness, wsol
from camrt.evaluate.datasets import AnnotatedImage, Dataset, image_files
from camrt.evaluate.experiment import Found, Pending, Progress, Work
from camrt.evaluate.journal import Records, Shard, fingerprint_of
from camrt.evaluate.network import Network, class_count, worker_count
from camrt.evaluate.predictions import Predictions

if TYPE_CHECKING:
    from camrt.explainer import Explainer
    from camrt.explanation import Explanation

BOXES, MASKS, POINTING = "boxes", "masks", "pointing"
DROP, INSERTION, DELETION, ROAD = "drop", "insertion", "deletion", "road"
GROUPS = (BOXES, MASKS, POINTING, DROP, INSERTION, DELETION, ROAD)
_OF_SCORES = (DROP, INSERTION, DELETION, ROAD)
_CHUNK = 16  # images whose scores are computed together


@dataclass(frozen=True)
class Measures:
    """What is measured.

    Attributes:
        groups: Some of `GROUPS`.
        side: The side in pixels of the maps that are compared with boxes and masks.
        tolerance: The tolerance of the pointing game, in pixels of the image.
        step: The number of pixels that are inserted or deleted at a time; None for one row.
        masks: The mask folder.
    """

    groups: tuple[str, ...]
    side: int = wsol.SIDE
    tolerance: float = faithfulness.TOLERANCE
    step: int | None = None
    masks: Path | None = None

    def settings(self, group: str) -> dict[str, Any]:
        """Return what the results of a group depend on, besides the maps."""
        known: dict[str, dict[str, Any]] = {
            BOXES: {"side": self.side},
            MASKS: {"side": self.side},
            POINTING: {"tolerance": self.tolerance},
            INSERTION: {"step": self.step},
            DELETION: {"step": self.step},
            ROAD: {"noise": faithfulness.NOISE, "fractions": list(faithfulness.FRACTIONS)},
        }
        return {"metric": group, **known.get(group, {})}


def check(dataset: Dataset, measures: Measures) -> None:
    """Check that the dataset has the boxes and masks that the metrics need.

    Raises:
        CamrtError: It does not, or a mask file is missing.
    """
    for group, has in ((BOXES, dataset.has_boxes), (POINTING, dataset.has_boxes), (MASKS, dataset.has_masks)):
        if group in measures.groups and not has:
            lacking = next(each for each in dataset.images if not (each.masks if group == MASKS else each.boxes))
            what = "mask" if group == MASKS else "box"
            raise CamrtError(
                f"found no {what} of {lacking.image!r}, which the metric {group!r} needs", file=lacking.place
            )
    if MASKS not in measures.groups:
        return
    if measures.masks is None:
        raise CamrtError("found no folder of the masks, expected one: --masks", file=dataset.source)
    for each in dataset.images:
        for name in (*each.masks, *([each.ignored] if each.ignored else [])):
            if not (measures.masks / name).is_file():
                raise CamrtError(f"there is no mask {measures.masks / name} of {each.image!r}", file=each.place)


def measure(
    dataset: Dataset,
    images: str | Path,
    folder: str | Path,
    network: Network,
    method: str,
    measures: Measures,
    *,
    shard: Shard | None = None,
    workers: int | None = None,
    progress: Progress = lambda total: nullcontext(lambda count: None),
) -> int:
    """Measure a method on the images of a shard, unless that is done already.

    Args:
        dataset: The images of all shards.
        images: The image folder.
        folder: The folder of the journals.
        network: The network.
        method: How the maps are computed.
        measures: What is measured.
        shard: As for `camrt.evaluate.experiment.run`, like the arguments below.
        workers: The number of processes that evaluate boxes and masks; by default up to 8 on CUDA, else 1.
        progress: Reports the progress.

    Returns:
        The number of images that were left.

    Raises:
        CamrtError: A journal has other settings, another process writes it, a model cannot be loaded or run, the
            network does not have one of the classes, a mask is invalid, or the folder cannot be written to.
        ConversionError: There is no model of that name, or its weights are not available.
    """
    return experiment.run(
        WsolProtocol(dataset, network, method, measures), image_files(Path(images), dataset),
        fingerprints_of(dataset, Path(images)), folder, shard=shard, workers=workers, progress=progress,
    )  # fmt: skip


def measure_predicted(
    dataset: Dataset,
    predictions: Predictions,
    folder: str | Path,
    measures: Measures,
    *,
    shard: Shard | None = None,
    workers: int | None = None,
    progress: Progress = lambda total: nullcontext(lambda count: None),
) -> int:
    """Measure the maps that `camrt batch` computed, unless that is done already.

    Args:
        dataset: The images of all shards.
        predictions: The results of `camrt batch`. They must have a map of each image's own class.
        folder: The folder of the journals.
        measures: What is measured: boxes, masks and pointing. The other metrics need the network.
        shard: As for `camrt.evaluate.experiment.run`, like the arguments below.
        workers: The number of processes that evaluate boxes and masks; by default up to 8.
        progress: Reports the progress.

    Returns:
        The number of images that were left.

    Raises:
        CamrtError: As for `measure`; or a metric needs the network, or a file of the results cannot be read.
    """
    if needing := [group for group in measures.groups if group in _OF_SCORES]:
        raise CamrtError(
            f"found the metric {needing[0]!r}, which queries the network, expected boxes, masks or pointing. "
            "Measure it with --images and --model"
        )
    digests = {each.image: each.digest for each in dataset.images}
    fingerprints = {name: [found, digests[name]] for name, found in predictions.fingerprints.items()}
    return experiment.run(
        PredictedProtocol(dataset, predictions, measures), predictions.files, fingerprints, folder,
        shard=shard, workers=workers, progress=progress,
    )  # fmt: skip


def fingerprints_of(dataset: Dataset, images: Path) -> dict[str, Any]:
    """Return the fingerprints of each image and its annotation, by image."""
    return {each.image: [fingerprint_of(images / each.image), each.digest] for each in dataset.images}


def journal_name(group: str, method: str) -> str:
    """Return the name of the journal of a group and a method. The ``+`` of ``gradcam++`` may not be part of it."""
    return f"{group}-{re.sub('[^0-9A-Za-z_-]', 'p', method)}"


def explained_again(
    network: Network, method: str, images: str | Path, wanted: Sequence[AnnotatedImage]
) -> list[Explanation]:
    """Compute the maps of a few images again, for pictures.

    Args:
        network: The network.
        method: How the maps are computed.
        images: The image folder.
        wanted: The images.

    Raises:
        CamrtError: An image can no longer be read.
    """
    explainer = network.explainer_of_label(method)
    labels = Dataset("", tuple(wanted)).numbered(class_count(explainer), explainer.labels)
    return [explainer(pixels.as_stored(Path(images) / each.image), labels[each.image]) for each in wanted]


# ------------------------------------------------------------------------------------------------------------- the run


@dataclass
class Explained:
    """An explained image, and what is known of its metrics so far.

    Attributes:
        annotated: The image's annotation.
        label: The number of its class.
        heatmap: (S, S) float32.
        size: Its width and height in pixels.
        rank: The rank of its class among the scores, counted from 0.
        groups: The groups of metrics to measure.
        square: (S, S, 3) uint8, if the network is queried again.
        found: The results so far, by group.
    """

    annotated: AnnotatedImage
    label: int
    heatmap: NDArray[np.float32]
    size: tuple[int, int]
    rank: int
    groups: tuple[str, ...]
    square: NDArray[np.uint8] | None = None
    found: Found = field(default_factory=dict)


@dataclass(frozen=True)
class WsolProtocol:
    """The metrics of a method.

    Attributes:
        dataset: All images.
        network: The network.
        method: How the maps are computed.
        measures: What is measured.
    """

    dataset: Dataset
    network: Network
    method: str
    measures: Measures

    @property
    def journals(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Group -> the name of its journal, and the settings that its results depend on."""
        maps = self.network.settings(self.method)
        return {
            group: (journal_name(group, self.method), {**maps, **self.measures.settings(group)})
            for group in self.measures.groups
        }

    def start(self, pending: Pending) -> Work:
        """Load the explainer and, if scores are measured, the classifier."""
        explainer = self.network.explainer_of_label(self.method)
        has_scores = any(group in _OF_SCORES for group in self.measures.groups)
        classifier = self.network.classifier() if has_scores else None
        count = class_count(explainer) if classifier is None else classifier.classes
        labels = self.dataset.numbered(count, explainer.labels)
        explained = self._explained(explainer, pending, labels, keep_square=has_scores)
        tasks = explained if classifier is None else self._with_scores(explained, classifier)
        has_regions = bool({BOXES, MASKS} & set(self.measures.groups))
        metrics = MapMetrics(self.measures.side, self.measures.tolerance, self.measures.masks)
        return Work(tasks, metrics, worker_count(explainer, on_cpu=1) if has_regions else 0)

    def _explained(
        self, explainer: Explainer, pending: Pending, labels: Mapping[str, int], *, keep_square: bool
    ) -> Iterator[tuple[str, Explained]]:
        by_name = {each.image: each for each in self.dataset.images}
        for name, found in pending.explained(explainer, labels, self.network.batch):
            annotated, size = by_name[name], (found.image.shape[1], found.image.shape[0])
            if (reason := annotated.misfit(size) or annotated.box_outside(size)) is not None:
                pending.record_failure(name, reason)
                continue
            rank = wsol.rank_of(found.all_scores, labels[name])
            square = pixels.prepare(found.image, explainer.size) if keep_square else None
            groups = pending.journals_of(name)
            yield name, Explained(annotated, labels[name], found.heatmaps[0], size, rank, groups, square)

    def _with_scores(
        self, explained: Iterator[tuple[str, Explained]], classifier: Scorer
    ) -> Iterator[tuple[str, Explained]]:
        """Measure what needs the scores of changed images. Each image is passed on as soon as it is done."""
        with ThreadPoolExecutor(2, "camrt-impute") as threads:
            for named in faithfulness.batched(explained, _CHUNK):
                chunk = [each for _, each in named]
                inputs = np.stack([classifier.prepare(each.square) for each in chunk if each.square is not None])
                maps = np.stack([wsol.normalized(classifier.crop(each.heatmap)) for each in chunk]).astype(np.float32)
                _measure_drop(chunk, classifier, inputs, maps)
                for each, image, heatmap in zip(chunk, inputs, maps, strict=True):
                    self._measure_curves(each, classifier, image, heatmap)
                    if ROAD in each.groups:
                        each.found[ROAD] = _road(each, image, heatmap, classifier, threads)
                    each.square = None  # other processes do not need it
                    yield each.annotated.image, each

    def _measure_curves(
        self, each: Explained, classifier: Scorer, image: NDArray[np.float32], heatmap: NDArray[np.float32]
    ) -> None:
        for group, scores_of in (
            (INSERTION, faithfulness.insertion_scores),
            (DELETION, faithfulness.deletion_scores),
        ):
            if group in each.groups:
                curve = scores_of(image, heatmap, each.label, classifier, step=self.measures.step)
                each.found[group] = {"area": _number(faithfulness.area_under(curve))}


@dataclass(frozen=True)
class PredictedProtocol:
    """The metrics of results of `camrt batch`.

    Attributes:
        dataset: All images.
        predictions: The results.
        measures: What is measured.
    """

    dataset: Dataset
    predictions: Predictions
    measures: Measures

    @property
    def journals(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Group -> the name of its journal, and the settings that its results depend on."""
        maps, method = self.predictions.settings, self.predictions.method
        return {
            group: (journal_name(group, method), {**maps, **self.measures.settings(group)})
            for group in self.measures.groups
        }

    def start(self, pending: Pending) -> Work:
        """Read the maps."""
        metrics = MapMetrics(self.measures.side, self.measures.tolerance, self.measures.masks)
        return Work(self._explained(pending), metrics, min(8, os.cpu_count() or 1))

    def _explained(self, pending: Pending) -> Iterator[tuple[str, Explained]]:
        by_name = {each.image: each for each in self.dataset.images}
        labels: Mapping[str, int] = {}
        for name, found in self.predictions.pending(pending):
            labels = labels or self.dataset.numbered(len(found.all_scores), self.predictions.labels)
            annotated, label = by_name[name], labels[name]
            reason = annotated.misfit(found.size) or annotated.box_outside(found.size)
            if reason is None and label not in found.classes:
                reason = f"its class {label} has no map: give camrt batch the classes with --target-column"
            if reason is not None:
                pending.record_failure(name, reason)
                continue
            heatmap, rank = found.heatmaps[found.classes.index(label)], wsol.rank_of(found.all_scores, label)
            yield name, Explained(annotated, label, heatmap, found.size, rank, pending.journals_of(name))


def _measure_drop(
    chunk: Sequence[Explained], classifier: Scorer, inputs: NDArray[np.float32], maps: NDArray[np.float32]
) -> None:
    """Score the images and the parts that their maps show, in one pass: it takes only two inputs per image."""
    measured = [position for position, each in enumerate(chunk) if DROP in each.groups]
    if not measured:
        return
    shown = faithfulness.shown_through(inputs[measured], maps[measured])
    scores = classifier(np.concatenate([inputs[measured], shown])).reshape(2, len(measured), -1)
    for position, before, after in zip(measured, *scores, strict=True):
        each = chunk[position]
        each.found[DROP] = {"before": _number(before[each.label]), "after": _number(after[each.label])}


def _road(
    each: Explained,
    image: NDArray[np.float32],
    heatmap: NDArray[np.float32],
    classifier: Scorer,
    threads: ThreadPoolExecutor,
) -> dict[str, Any]:
    """Compute the class's scores, and whether it is the best class, as pixels are removed in both orders."""
    seed = zlib.crc32(each.annotated.image.encode(errors="surrogateescape"))  # independent of the images' order

    def removed(most_relevant: bool) -> list[NDArray[np.float32]]:
        return list(faithfulness.road_images(image, heatmap, most_relevant=most_relevant, seed=seed))

    both = [threads.submit(removed, order) for order in (True, False)]
    found: dict[str, Any] = {}
    for name, images in zip(("most", "least"), both, strict=True):
        scores = classifier(np.stack(images.result()))
        found[name] = [_number(score) for score in scores[:, each.label]]
        found[f"{name}_right"] = (scores.argmax(axis=1) == each.label).tolist()
    return found


def _number(value: Any) -> float | None:
    """Round to seven digits; None for NaN and infinity."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


@dataclass(frozen=True)
class MapMetrics:
    """How well a map localizes. Called with an explained image, possibly in another process.

    Attributes:
        side: The side in pixels of the maps that are compared with boxes and masks.
        tolerance: The tolerance of the pointing game, in pixels of the image.
        masks: The mask folder.
    """

    side: int
    tolerance: float
    masks: Path | None

    def __call__(self, each: Explained) -> Found:
        """Return the results by group.

        Raises:
            CamrtError: A mask is invalid.
        """
        annotated, found = each.annotated, dict(each.found)
        if {BOXES, MASKS} & set(each.groups):
            heatmap = wsol.normalized(pixels.resize(each.heatmap, (self.side, self.side)))
        if BOXES in each.groups:
            truth = wsol.resized_boxes(np.array(annotated.boxes), annotated.size or each.size, self.side)
            ious = wsol.overlaps_of_levels(wsol.gray_levels(heatmap), truth)
            found[BOXES] = {"rank": each.rank, "ious": packed(ious.astype("<f4"))}
        if MASKS in each.groups:
            on, ignored = self._masks(annotated, each.size)
            found[MASKS] = {"pixels": packed(wsol.pixel_counts(heatmap, on, ignored).astype("<i4"))}
        if POINTING in each.groups:
            point = faithfulness.highest_point(each.heatmap, each.size)
            hit = faithfulness.pointing_hit(point, np.array(annotated.boxes), self.tolerance)
            found[POINTING] = {"hit": hit}
        return found

    def _masks(self, annotated: AnnotatedImage, size: tuple[int, int]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        assert self.masks is not None
        masks = [_mask(self.masks / name, size, annotated) for name in annotated.masks]
        ignored = _mask(self.masks / annotated.ignored, size, annotated) if annotated.ignored else None
        return wsol.merged_masks(masks, ignored, self.side)


def _mask(path: Path, size: tuple[int, int], annotated: AnnotatedImage) -> NDArray[np.uint8]:
    """Read a mask. It may differ from the image in size, as in OpenImages, but not in aspect ratio."""
    mask: NDArray[np.uint8] = pixels.decode(path).max(axis=2)
    height, width = mask.shape
    if abs(width * size[1] - height * size[0]) > 0.02 * width * size[1] + max(width, size[1]):
        raise CamrtError(
            f"found a mask of {width} x {height} pixels for {annotated.image!r} of {size[0]} x {size[1]} "
            f"({annotated.place}), expected one of its shape",
            file=str(path),
        )
    return mask


def packed(array: NDArray[Any]) -> str:
    """Encode an array as text for a journal."""
    return base64.b64encode(zlib.compress(array.tobytes(), 6)).decode("ascii")


def unpacked(text: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Decode an array that was encoded by `packed`.

    Raises:
        ValueError: The text is not such an array.
    """
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), dtype).reshape(shape)
    except zlib.error as error:
        raise ValueError(str(error)) from error


# --------------------------------------------------------------------------------------------------------- the metrics


@dataclass(frozen=True, eq=False)
class MethodMetrics:
    """The metrics of a method.

    Attributes:
        method: How the maps are computed.
        images: The number of images of the dataset.
        left: The number of images that are not measured yet: those of other shards.
        failures: The images without results, with the reasons. They count as wrong for boxes, localization and
            pointing; metrics of scores and PxAP leave them out.
        numbers: Metric -> value: shares of 0 to 1, and the best threshold.
        sweep: Name -> (1000,) the accuracy at each of `wsol.THRESHOLDS`.
        precision: (1001,) pixel precision; None without masks.
        recall: (1001,) pixel recall; None without masks.
        road: Name -> (9,) the mean score and the accuracy as pixels are removed; empty without ROAD.
        ran: Provider and precision -> the number of images whose maps they computed, of the group that has most.
    """

    method: str
    images: int
    left: int
    failures: Mapping[str, str]
    numbers: Mapping[str, float]
    sweep: Mapping[str, NDArray[np.float64]]
    precision: NDArray[np.float64] | None = None
    recall: NDArray[np.float64] | None = None
    road: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    ran: Mapping[str, int] = field(default_factory=dict)


def tally(
    dataset: Dataset,
    images: str | Path | None,
    folder: str | Path,
    method: str,
    groups: Sequence[str],
    *,
    threshold: float | None = None,
) -> MethodMetrics:
    """Compute the metrics of a method from its journals.

    Args:
        dataset: The images.
        images: The image folder; None if it is not available: then results count even if the image has changed.
        folder: The folder of the journals.
        method: The method.
        groups: The groups of metrics that were measured.
        threshold: The threshold of GT-known, top-1 and top-5 localization; None for the best one.

    Raises:
        CamrtError: A journal cannot be read, or is damaged.
    """
    fingerprints = None if images is None else fingerprints_of(dataset, Path(images))
    counts = _Counts(threshold, {each.image: each.label for each in dataset.images})
    failures: dict[str, str] = {}
    missing: set[str] = set()
    ran: dict[str, int] = {}
    for group in groups:
        records = Records(folder, journal_name(group, method))
        ran = ran | {each: max(ran.get(each, 0), number) for each, number in records.ran.items()}
        missing |= {name for name in counts.labels if name not in records}
        failed = {name: reason for name, reason in records.failures.items() if name in counts.labels}
        failures |= failed
        counts.groups.add(group)
        if group == POINTING:
            for name in failed:
                counts.point(name, hit=False)
        for name, found in records:
            if name not in counts.labels:
                continue
            if fingerprints is not None and not records.is_done(name, fingerprints[name]):
                continue
            try:
                counts.add(group, name, found)
            except (LookupError, TypeError, ValueError) as error:
                raise CamrtError(
                    f"the line of {name!r} in the journal {journal_name(group, method)!r} is damaged ({error!r})",
                    file=str(folder),
                ) from error
    counted = len(counts.labels) - len(missing)
    return MethodMetrics(
        method=method,
        images=len(counts.labels),
        left=len(missing),
        failures=failures,
        numbers=counts.numbers(counted),
        sweep=counts.sweep(counted),
        **counts.precision_recall(),
        road=counts.road(),
        ran=ran,
    )


@dataclass
class _Counts:
    """Sums and lists over the images."""

    threshold: float | None
    labels: Mapping[str, int | str]
    right: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, len(wsol.OVERLAPS), wsol.LEVELS), np.int64))
    ranked: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, wsol.LEVELS), np.int64))
    classified: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2, np.int64))
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, len(wsol.THRESHOLDS) + 1), np.int64))
    lists: dict[str, list[Any]] = field(default_factory=dict)
    groups: set[str] = field(default_factory=set)

    def add(self, group: str, image: str, found: Mapping[str, Any]) -> None:
        """Add the results for an image."""
        if group == BOXES:
            ious = unpacked(found["ious"], "<f4", (2, wsol.LEVELS))
            localized = ious[:, None] >= np.array(wsol.OVERLAPS, np.float32)[:, None]
            self.right += localized
            for row, best in enumerate((1, 5)):
                if int(found["rank"]) < best:
                    self.classified[row] += 1
                    self.ranked[row] += localized[0, wsol.OVERLAPS.index(0.5)]
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
        """Compute the metrics."""
        found: dict[str, float] = {}
        if BOXES in self.groups and counted:
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
        """Compute the accuracy at every threshold."""
        if BOXES not in self.groups or not counted:
            return {}
        level = wsol.levels_of(wsol.THRESHOLDS)
        curves = {
            f"{name} {overlap:g}": self.right[mode, row][level] / counted
            for mode, name in enumerate(("largest", "all"))
            for row, overlap in enumerate(wsol.OVERLAPS)
        }
        return {**curves, **{f"top-{best}": self.ranked[row][level] / counted for row, best in enumerate((1, 5))}}

    def precision_recall(self) -> dict[str, NDArray[np.float64]]:
        """Compute precision and recall of the pixels."""
        found = wsol.precision_recall(self.pixels) if self.pixels.any() else ()
        return dict(zip(("precision", "recall"), found, strict=False))

    def road(self) -> dict[str, NDArray[np.float64]]:
        """Compute the means of ROAD's scores and answers."""
        names = {
            "most relevant first": "most",
            "least relevant first": "least",
            "accuracy, most relevant first": "most_right",
            "accuracy, least relevant first": "least_right",
        }
        return {name: np.mean(self.lists[key], axis=0) for name, key in names.items() if key in self.lists}


def overlaps_at(folder: str | Path, method: str, threshold: float) -> dict[str, float]:
    """Return the overlap of the box of each image's largest contour at a threshold: image -> 0..1.

    Raises:
        CamrtError: The journal cannot be read.
    """
    level = int(wsol.levels_of([threshold])[0])
    records = Records(folder, journal_name(BOXES, method))
    return {name: float(unpacked(found["ious"], "<f4", (2, wsol.LEVELS))[0, level]) for name, found in records}
