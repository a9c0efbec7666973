"""The ILSVRC protocol of the original: five guesses per image, each a class and a box, counted as by the devkit.

It does the work of ILSVRC_generate_heatmap.m and ILSVRC_evaluate_bbox.m in one pass. The guesses for each image go to a
journal (`camrt.evaluate.experiment`) and are counted when all images have a line in it. They depend on the model and on
how boxes are found, not on the ground truth.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from camrt import images, results
from camrt.errors import CamrtError
from camrt.evaluate import devkit, experiment, ilsvrc
from camrt.evaluate.datasets import Dataset
from camrt.evaluate.experiment import Found, Pending, Progress, Work
from camrt.evaluate.ilsvrc import GUESSES, RANKINGS, Floats
from camrt.evaluate.journal import Records, Shard, fingerprint_of
from camrt.evaluate.network import Network, worker_count
from camrt.evaluate.predictions import Predictions
from camrt.localize import THRESHOLDS, boxes_from_heatmap

if TYPE_CHECKING:
    from camrt.explainer import Explainer

JOURNAL, MODEL = "guesses", "model.json"
FRACTION = 0.2  # of the maximum, in the paper
QUALITY = 75  # of the JPEG that MATLAB's imwrite writes

Boxes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LocalizationErrors:
    """The errors on a dataset, and the guesses that they result from.

    Attributes:
        predictions: Ranking -> (N, 25), as for `camrt.evaluate.ilsvrc.localization_error`.
        classification: Ranking -> (5,) the classification error with 1 to 5 guesses.
        localization: Ranking -> (5,) the localization error.
        failures: The images without guesses, with the reasons: they count as wrong.
        without_boxes: The number of maps without a box, for which the whole image is guessed.
        with_one_box: The number of maps with one box, which is also guessed as the second.
        ran: Provider and precision -> the number of images whose maps they computed.
    """

    predictions: Mapping[str, Floats]
    classification: Mapping[str, Floats]
    localization: Mapping[str, Floats]
    failures: Mapping[str, str]
    without_boxes: int = 0
    with_one_box: int = 0
    ran: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class IlsvrcProtocol:
    """The guesses of a network.

    Attributes:
        network: The network.
        method: How the maps are computed; None for the default.
        rule: How boxes are found in the maps.
        folder: The folder of the journal, which gets the classes of the network too.
        synsets: Name -> number of the classes of the ground truth. If given, a network with other classes is an error
            at the first image rather than after the last one.
    """

    network: Network
    method: str | None
    rule: BoxRule
    folder: Path
    synsets: Mapping[str, int] | None = None

    @property
    def journals(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """The journal of the guesses, and the settings that they depend on."""
        return {JOURNAL: (JOURNAL, {**self.network.settings(self.method), **self.rule.settings})}

    def start(self, pending: Pending) -> Work:
        """Load the explainer."""
        if self.rule.folder is not None:
            _make_folder(self.rule.folder)
        explainer = self.network.explainer_of_best(self.method, GUESSES)
        return Work(self._maps(explainer, pending), _Guess(self.rule), worker_count(explainer, on_cpu=2))

    def _maps(self, explainer: Explainer, pending: Pending) -> Iterator[tuple[str, Maps]]:
        for number, (name, found) in enumerate(pending.explained(explainer, batch=self.network.batch)):
            if number == 0:
                _write_classes(self.folder, self.synsets, len(found.all_scores), explainer.labels)
            size = found.image.shape[:2]
            yield name, _maps_of(name, found.classes.tolist(), found.scores.tolist(), found.heatmaps, size)


@dataclass(frozen=True)
class PredictedProtocol:
    """The guesses in results of `camrt batch`.

    Attributes:
        predictions: The results.
        rule: How boxes are found in the maps.
        folder: As for `IlsvrcProtocol`.
        synsets: As for `IlsvrcProtocol`.
    """

    predictions: Predictions
    rule: BoxRule
    folder: Path
    synsets: Mapping[str, int] | None = None

    @property
    def journals(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """The journal of the guesses, and the settings that they depend on."""
        return {JOURNAL: (JOURNAL, {**self.predictions.settings, **self.rule.settings})}

    def start(self, pending: Pending) -> Work:
        """Read the maps."""
        if self.rule.folder is not None:
            _make_folder(self.rule.folder)
        return Work(self._maps(pending), _Guess(self.rule), min(8, os.cpu_count() or 1))

    def _maps(self, pending: Pending) -> Iterator[tuple[str, Maps]]:
        for number, (name, found) in enumerate(self.predictions.pending(pending)):
            if number == 0:
                _write_classes(self.folder, self.synsets, len(found.all_scores), self.predictions.labels)
            width, height = found.size
            yield name, _maps_of(name, found.classes, found.scores, found.heatmaps, (height, width))


def _write_classes(folder: Path, synsets: Mapping[str, int] | None, classes: int, labels: Sequence[str] | None) -> None:
    """Write the network's classes beside the journal, after a check that the ground truth has them."""
    if synsets is not None:
        devkit.class_ids(synsets, classes, labels)
    results.write(folder / MODEL, json.dumps({"classes": classes, "labels": labels}).encode())


@dataclass(frozen=True)
class _Guess:
    """A box rule whose results go to the journal of the guesses."""

    rule: BoxRule

    def __call__(self, maps: Maps) -> Found:
        return {JOURNAL: self.rule(maps)[1]}


def _make_folder(folder: Path) -> None:
    """Create the folder of the maps, so that a folder that cannot be written to stops the run and not each image."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CamrtError(f"cannot be written to: {error.strerror or error}", file=str(folder)) from error


def guess(
    files: Mapping[str, Path | None],
    folder: Path,
    network: Network,
    rule: BoxRule,
    *,
    method: str | None = None,
    synsets: Mapping[str, int] | None = None,
    shard: Shard | None = None,
    workers: int | None = None,
    progress: Progress = lambda total: nullcontext(lambda count: None),
) -> int:
    """Guess boxes in the images of a shard, unless that is done already.

    Args:
        files: The images of all shards in order, by name; None for an image without a file.
        folder: The folder of the journal.
        network: The network.
        rule: How boxes are found in the maps.
        method: How the maps are computed; None for the default.
        synsets: As for `IlsvrcProtocol`.
        shard: As for `camrt.evaluate.experiment.run`, like the arguments below.
        workers: The number of processes that find boxes; by default up to 8 on CUDA, else 2.
        progress: Reports the progress.

    Returns:
        The number of images that were left.

    Raises:
        CamrtError: The journal has other settings, another process writes it, the model cannot be loaded or run, its
            classes are not those of the dataset, or the folder cannot be written to.
        ConversionError: There is no model of that name, or its weights are not available.
    """
    protocol = IlsvrcProtocol(network, method, rule, folder, synsets)
    fingerprints = {name: path and fingerprint_of(path) for name, path in files.items()}
    return experiment.run(
        protocol, files, fingerprints, folder, shard=shard, workers=workers, progress=progress
    )  # fmt: skip


def guess_predicted(
    predictions: Predictions,
    folder: Path,
    rule: BoxRule,
    *,
    synsets: Mapping[str, int] | None = None,
    shard: Shard | None = None,
    workers: int | None = None,
    progress: Progress = lambda total: nullcontext(lambda count: None),
) -> int:
    """Guess boxes in the maps that `camrt batch` computed, unless that is done already.

    Args:
        predictions: The results of `camrt batch`.
        folder: The folder of the journal.
        rule: How boxes are found in the maps.
        synsets: As for `IlsvrcProtocol`.
        shard: As for `camrt.evaluate.experiment.run`, like the arguments below.
        workers: The number of processes that find boxes; by default up to 8.
        progress: Reports the progress.

    Returns:
        The number of images that were left.

    Raises:
        CamrtError: As for `guess`; or a file of the results cannot be read.
    """
    protocol = PredictedProtocol(predictions, rule, folder, synsets)
    return experiment.run(
        protocol, predictions.files, predictions.fingerprints, folder, shard=shard, workers=workers, progress=progress
    )


# ------------------------------------------------------------------------------------------------------------ counting


def missing(dataset: Dataset, folder: Path) -> int:
    """Return the number of images without a line in the journals: those of other shards.

    Raises:
        CamrtError: The journals cannot be read.
    """
    records = Records(folder, JOURNAL)
    return sum(name not in records for name in dataset.names)


def count(dataset: Dataset, folder: Path) -> LocalizationErrors:
    """Count the errors of the guesses.

    Args:
        dataset: The ground truth.
        folder: The folder of the journals.

    Raises:
        CamrtError: An image has no line in the journals, a journal cannot be read, or the classes do not match.
    """
    records = Records(folder, JOURNAL)
    lacking = [name for name in dataset.names if name not in records]
    if lacking:
        raise CamrtError(
            f"has no result for {len(lacking):,} of the {len(dataset):,} images, the first of which is {lacking[0]!r}. "
            "Finish their shards with the same command",
            file=str(folder),
        )
    table = _GuessTable(dataset, folder)
    for name, found in records:
        table.add(name, found)
    orders = ilsvrc.rankings(_devkit_classes(table.classes, dataset, folder), table.boxes)
    errors = {name: _errors(order, dataset) for name, order in orders.items()}
    return LocalizationErrors(
        predictions=orders,
        classification={name: found[0] for name, found in errors.items()},
        localization={name: found[1] for name, found in errors.items()},
        failures={name: why for name, why in records.failures.items() if name in table.positions} | table.misfits,
        without_boxes=int((table.box_counts == 0).sum()),
        with_one_box=int((table.box_counts == 1).sum()),
        ran=records.ran,
    )


class _GuessTable:
    """The guesses of a journal as arrays, in the order of the dataset."""

    def __init__(self, dataset: Dataset, folder: Path) -> None:
        self.dataset, self.folder = dataset, folder
        self.positions = {name: position for position, name in enumerate(dataset.names)}
        self.classes = np.zeros((len(dataset), GUESSES), np.int64)  # of the network, counted from 1; 0 for none
        self.boxes = np.zeros((len(dataset), GUESSES, 2, 4))
        self.box_counts = np.full((len(dataset), GUESSES), 2, np.int64)
        self.misfits: dict[str, str] = {}

    def add(self, name: str, found: Mapping[str, Any]) -> None:
        """Add the guesses for an image. Images of other datasets are ignored."""
        if (position := self.positions.get(name)) is None:
            return
        try:
            top = len(found["classes"])
            width, height = found["size"]
            self.classes[position, :top], self.boxes[position, :top] = found["classes"], found["boxes"]
            self.box_counts[position, :top] = found["found"]
        except (LookupError, TypeError, ValueError) as error:
            raise CamrtError(f"the journal's line of {name!r} is damaged ({error!r})", file=str(self.folder)) from error
        self.classes[position, :top] += 1
        if (reason := self.dataset.images[position].misfit((width, height))) is not None:
            self.misfits[name] = reason
            self.classes[position], self.boxes[position], self.box_counts[position] = 0, 0, 2


def count_submission(dataset: Dataset, file: Path) -> LocalizationErrors:
    """Count the errors of a file in the devkit's format.

    Raises:
        CamrtError: The file cannot be read, or has another number of images.
    """
    predictions = devkit.read_submission(file, None if dataset.synsets is None else max(dataset.synsets.values()))
    if len(predictions) != len(dataset):
        raise CamrtError(
            f"found predictions for {len(predictions):,} images, expected {len(dataset):,}", file=str(file)
        )
    classification, localization = _errors(predictions, dataset)
    name = "submission"
    return LocalizationErrors({name: predictions}, {name: classification}, {name: localization}, {})


def write_submissions(errors: LocalizationErrors, folder: Path) -> dict[str, Path]:
    """Write the guesses in the devkit's format, ``bbox1.txt``, ``bbox2.txt`` and ``bboxCombine.txt``.

    Raises:
        CamrtError: A file cannot be written.
    """
    files = {name: folder / f"{name}.txt" for name in RANKINGS}
    for name, file in files.items():
        results.write(file, devkit.format_submission(errors.predictions[name]).encode())
    return files


def _errors(predictions: Floats, dataset: Dataset) -> tuple[Floats, Floats]:
    return ilsvrc.localization_error(predictions, dataset.truth, dataset.boxes, dataset.blacklist)


def _devkit_classes(classes: npt.NDArray[np.int64], dataset: Dataset, folder: Path) -> npt.NDArray[np.int64]:
    """Convert the network's classes to the devkit's numbers. Both count from 1; 0 stays 0."""
    if not classes.any():  # no image could be read: there is no model file either
        return classes
    if dataset.synsets is None:
        raise CamrtError(
            "the number of each network class in the ground truth is unknown. Give the devkit's "
            "meta_clsloc.mat, or a file with a name and a number per line: --meta"
        )
    file = folder / MODEL
    try:
        facts = json.loads(file.read_bytes())
        number, labels = int(facts["classes"]), facts["labels"]
        labels = None if labels is None else [str(label) for label in labels]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CamrtError(f"does not state the network's classes ({error!r})", file=str(file)) from error
    if classes.max() > number or classes.min() < 0:
        raise CamrtError(
            f"found the class {classes.max() - 1} in the journal, expected 0 to {number - 1}", file=str(file)
        )
    return np.concatenate([[0], devkit.class_ids(dataset.synsets, number, labels)])[classes]


# -------------------------------------------------------------------------------------------------- from maps to boxes


def _maps_of(
    name: str,
    classes: Sequence[int],
    scores: Sequence[float],
    heatmaps: npt.NDArray[np.float32],
    size: tuple[int, ...],
) -> Maps:
    facts = {
        "classes": list(classes[:GUESSES]),
        "scores": [float(f"{score:.6g}") if np.isfinite(score) else None for score in scores[:GUESSES]],
    }
    height, width = size[:2]
    return Maps(name, heatmaps[:GUESSES], (height, width), facts)


@dataclass(frozen=True)
class Maps:
    """The heatmaps of an image, and what is recorded with its boxes.

    Attributes:
        image: The name of the image.
        heatmaps: (top, S, S) float32, not normalized.
        size: Height and width of the image in pixels.
        facts: What else to record for the image.
    """

    image: str
    heatmaps: npt.NDArray[np.float32]
    size: tuple[int, int]
    facts: dict[str, Any]


@dataclass(frozen=True)
class BoxRule:
    """How boxes are found in maps. Called with `Maps`, possibly in another process.

    Attributes:
        boxes: ``"dt"`` for the original's generator, or ``"threshold"`` for the rule in the paper.
        thresholds: Three gray levels, for ``"dt"``.
        fraction: A fraction of the maximum, for ``"threshold"``.
        encoding: ``"jpeg"``: the boxes are found in the map after JPEG compression, as in the original; ``"png"``: in
            the uncompressed map.
        folder: The folder to keep the maps in, as ``top1/IMAGE.jpg``, ...; None to discard them.

    Raises:
        CamrtError: The thresholds do not increase from 1 to 254, or the fraction is not 0 <= fraction < 1.
    """

    boxes: Literal["dt", "threshold"] = "dt"
    thresholds: tuple[int, int, int] = THRESHOLDS
    fraction: float = FRACTION
    encoding: Literal["jpeg", "png"] = "jpeg"
    folder: Path | None = None

    def __post_init__(self) -> None:
        self.corners(np.zeros((1, 1), np.uint8))  # raises the errors of wrong arguments now

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the boxes depend on."""
        unused = {"folder", "fraction" if self.boxes == "dt" else "thresholds"}
        return {key: value for key, value in asdict(self).items() if key not in unused}

    def __call__(self, maps: Maps) -> tuple[str, dict[str, Any]]:
        """Return the name of the image, and its size, the two largest boxes of each class, and the number of boxes.

        Raises:
            CamrtError: A map cannot be written.
        """
        chosen, counts = [], []
        for rank, heatmap in enumerate(maps.heatmaps, 1):
            levels, encoded = self._encoded(gray_levels(heatmap, maps.size))
            if self.folder is not None:
                ending = "jpg" if self.encoding == "jpeg" else "png"
                results.write(self.folder / f"top{rank}" / f"{maps.image}.{ending}", encoded)
            found = self.corners(levels)
            chosen.append(two_largest(found, maps.size).tolist())
            counts.append(len(found))
        height, width = maps.size
        return maps.image, {"size": [width, height], **maps.facts, "boxes": chosen, "found": counts}

    def corners(self, levels: npt.NDArray[np.uint8]) -> Boxes:
        """Find the boxes in a map.

        Args:
            levels: (H, W) uint8.

        Returns:
            (M, 4) int64 of x1, y1, x2, y2 in pixels, largest first. For ``"threshold"``, coordinates count from 1 and
            include the last pixel, as in the devkit. For ``"dt"``, they are x, y, x + width, y + height as in
            ILSVRC_evaluate_bbox.m: they count from 0 and exclude the last pixel, although the devkit reads them
            otherwise.
        """
        if self.boxes == "threshold":
            x, y, width, height = boxes_of_segments(levels, self.fraction).T
            return np.stack([x + 1, y + 1, x + width, y + height], axis=1)
        x, y, width, height = boxes_from_heatmap(levels, self.thresholds).T
        begin, end = np.stack([x, y], axis=1), np.stack([x + width, y + height], axis=1)
        return np.hstack([np.minimum(begin, end), np.maximum(begin, end)])

    def _encoded(self, levels: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], bytes]:
        """Return the map as it is read back from the file, and the content of the file."""
        if self.encoding == "png":
            from camrt.render import png

            return levels, png(levels) if self.folder is not None else b""
        return _as_jpeg(levels)


def gray_levels(heatmap: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Convert a map to gray levels as ILSVRC_generate_heatmap.m does: resized, over its maximum, rounded as by imwrite.

    Args:
        heatmap: (S, S) float32, not normalized.
        size: Height and width of the image in pixels.

    Returns:
        (H, W) uint8; zeros for a map without positive values or with values that are not finite.
    """
    resized = images.resize(heatmap, size)
    highest = float(resized.max())
    if not 0 < highest < np.inf:
        return np.zeros(size, np.uint8)
    scaled = np.clip(resized / np.float32(highest), 0, 1) * np.float32(255)
    return np.floor(scaled + np.float32(0.5)).astype(np.uint8)


def two_largest(boxes: Boxes, size: tuple[int, int]) -> Boxes:
    """Return the first two boxes. A single box is repeated; without boxes, the whole image is returned twice.

    ILSVRC_evaluate_bbox.m stops with an error at a map with fewer than two boxes.

    Args:
        boxes: (M, 4) x1, y1, x2, y2 in pixels.
        size: Height and width of the image in pixels.

    Returns:
        (2, 4).
    """
    if not len(boxes):
        boxes = np.array([[1, 1, size[1], size[0]]], np.int64)
    return np.stack([boxes[0], boxes[min(1, len(boxes) - 1)]])


def _as_jpeg(levels: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], bytes]:
    """Return a map after JPEG compression at imwrite's quality, and the content of the file."""
    from PIL import Image

    stream = io.BytesIO()
    try:
        Image.fromarray(levels).save(stream, "JPEG", quality=QUALITY)
        with Image.open(stream, formats=("JPEG",)) as image:
            return np.asarray(image), stream.getvalue()
    except OSError as error:  # more than 65,500 pixels wide
        raise CamrtError(f"a map of {levels.shape} cannot be written as JPEG ({error}). Use --encoding png") from error


def boxes_of_segments(heatmap: npt.ArrayLike, fraction: float = FRACTION) -> npt.NDArray[np.int64]:
    """Return boxes around the connected regions above a fraction of the maximum, the largest region first.

    This is the rule of Zhou et al., CVPR 2016, section 3.2: "we first segment the regions of which the value is above
    20% of the max value of the CAM. Then we take the bounding box that covers the largest connected component". The
    released code uses `camrt.localize.boxes` instead. Pixels that touch at a corner are connected. Among regions of
    equal size, the topmost comes first.

    Args:
        heatmap: (H, W) real numbers.
        fraction: The threshold as a fraction of the heatmap's maximum, 0 <= fraction < 1; a pixel must exceed it.

    Returns:
        (M, 4) int64 of x, y, width, height in pixels; no boxes if nothing is above 0.

    Raises:
        CamrtError: The heatmap has another shape, or the fraction is out of range.

    Example:
        >>> heatmap = np.zeros((6, 8))
        >>> heatmap[1:3, 2:6] = 1
        >>> boxes_of_segments(heatmap).tolist()
        [[2, 1, 4, 2]]
    """
    import cv2

    values = np.asarray(heatmap)
    if values.ndim != 2 or not values.size:
        raise CamrtError(f"found a heatmap of shape {values.shape}, expected (H, W)")
    if not 0 <= fraction < 1:
        raise CamrtError(f"found the fraction {fraction}, expected 0 <= fraction < 1")
    mask = (values > max(fraction * float(values.max()), 0)).view(np.uint8)
    _, _, found, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    found = found[1:]  # the first is the background
    largest = np.argsort(-found[:, cv2.CC_STAT_AREA], kind="stable")
    return found[largest, :4].astype(np.int64)
