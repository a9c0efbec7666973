"""Methods compared on a data set: each image is explained for its own class, measured, and written down.

What is measured of an image by a method goes to a `camrt.evaluate.journal.Journal`, one for each method and group of
metrics: killed anywhere, a run goes on, and a metric that is asked for later is measured alone. Boxes and masks are
looked at in other processes, while the network runs in this one.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from camrt import images as pixels
from camrt import loading
from camrt.errors import CamrtError
from camrt.evaluate import faithfulness, wsol
from camrt.evaluate.annotated import Annotated, DataSet
from camrt.evaluate.classifier import WHOLE, Classifier, load_classifier, seen_by
from camrt.evaluate.journal import Journal, Shard, stamp_of
from camrt.evaluate.localization import as_stored
from camrt.evaluate.placing import BOXES, MASKS, POINTING, Job, Placing, Seen
from camrt.evaluate.processes import mapped

if TYPE_CHECKING:
    from camrt.explainer import Explainer
    from camrt.explanation import Explanation
    from camrt.session import Provider

DROP, INSERTION, DELETION, ROAD = "drop", "insertion", "deletion", "road"
GROUPS = (BOXES, MASKS, POINTING, DROP, INSERTION, DELETION, ROAD)
_OF_THE_NETWORK = (DROP, INSERTION, DELETION, ROAD)
_CHUNK = 16  # images whose scores are asked for together

Progress = Callable[[int], AbstractContextManager[Callable[[int], Any]]]


@dataclass(frozen=True)
class Network:
    """The network whose maps are compared.

    Attributes:
        name: A named model, or the path of an ONNX model, as for `camrt.Explainer`.
        protocol: What the network sees of an image: as for `camrt.explain_graph`, or ``"whole"``: the image squeezed to
            the network's input, once, as wsolevaluation does. None for an explainer graph, which has its own.
        providers: Where it runs.
        batch: How many images the explainer's session gets at once.
    """

    name: str
    protocol: str | None = WHOLE
    providers: str | Sequence[Provider] | None = None
    batch: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What the maps depend on, beside the method."""
        return {"model": loading.identity(self.name), "protocol": self.protocol}

    def explainer(self, method: str) -> Explainer:
        """An explainer of the class that comes with each image.

        Raises:
            CamrtError: It cannot be made or loaded.
            ConversionError: There is no model of that name, or its weights cannot be had.
        """
        from camrt.explainer import Explainer

        if self.protocol != WHOLE or self._is_explainer():
            protocol = None if self.protocol == WHOLE else self.protocol
            found = Explainer(self.name, method, protocol, 1, self.providers, target="input")
        else:
            wants = loading.known_preprocess(self.name)
            squeezed = None if wants is None else seen_by(wants, WHOLE)
            found = Explainer(
                self.name, method, "center", 1, self.providers, target="input", preprocess=squeezed
            )  # fmt: skip
        if found.target != "input":
            raise CamrtError(
                f"found an explainer graph of the target {found.target!r}, expected one of the class that comes with "
                "each image. Name the classifier that it was made of, or make it anew with the target 'input'",
                file=self.name,
            )
        return found

    def classifier(self) -> Classifier:
        """The network alone.

        Raises:
            CamrtError: It cannot be loaded.
            ConversionError: There is no model of that name, or its weights cannot be had.
        """
        protocol = self.protocol or "center"
        model = load_classifier(self.name)
        try:
            wants = loading.known_preprocess(self.name)
            return Classifier(model, protocol, preprocess=wants, providers=self.providers)
        except CamrtError as error:
            raise error.in_file(self.name) from error.__cause__

    def _is_explainer(self) -> bool:
        path = Path(self.name)
        return not loading.is_name(self.name) and path.is_file() and loading.EXPLAINER in _metadata(path)


@dataclass(frozen=True)
class Measures:
    """What is measured.

    Attributes:
        groups: Of `GROUPS`.
        side: The side in pixels of the maps that boxes and masks are compared with.
        tolerance: Of the pointing game, in pixels of the image.
        step: How many pixels are inserted or deleted at a time; None for a row.
        masks: The folder of the masks.
    """

    groups: tuple[str, ...]
    side: int = wsol.SIDE
    tolerance: float = faithfulness.TOLERANCE
    step: int | None = None
    masks: Path | None = None

    def settings(self, group: str) -> dict[str, Any]:
        """What a group's results depend on, beside the maps."""
        known: dict[str, dict[str, Any]] = {
            BOXES: {"side": self.side},
            MASKS: {"side": self.side},
            POINTING: {"tolerance": self.tolerance},
            INSERTION: {"step": self.step},
            DELETION: {"step": self.step},
            ROAD: {"noise": faithfulness.NOISE, "fractions": list(faithfulness.FRACTIONS)},
        }
        return {"metric": group, **known.get(group, {})}


def check(dataset: DataSet, measures: Measures) -> None:
    """Whether the data set has what the metrics need.

    Raises:
        CamrtError: It has not, or a mask is not there.
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
    dataset: DataSet,
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
    """Measures a method on a shard's images, as far as that is not done.

    Args:
        dataset: All images of all shards.
        images: Their folder.
        folder: Where the journals are.
        network: The network.
        method: How the maps come about.
        measures: What is measured.
        shard: Which of the images are this process's; all if left out.
        workers: How many processes look at boxes and masks, beside this one; 0 for none. By default up to 8 on CUDA,
            else 1.
        progress: Called with the number of images that are left; the block's value is called with how many more are
            done.

    Returns:
        How many images were left.

    Raises:
        CamrtError: A journal has other settings, another process writes it, a model cannot be loaded or run, a class is
            none of the network's, a mask cannot be used, or the folder cannot be written to.
        ConversionError: There is no model of that name, or its weights cannot be had.
    """
    stamps = stamps_of(dataset, Path(images))
    with ExitStack() as stack:
        journals = {
            group: stack.enter_context(
                Journal(folder, journal_name(group, method), _settings(network, method, measures, group), shard)
            )
            for group in measures.groups
        }
        waiting = {group: set(journal.waiting(stamps)) for group, journal in journals.items()}
        left = [each for each in dataset.images if any(each.image in some for some in waiting.values())]
        if not left:
            return 0
        advance = stack.enter_context(progress(len(left)))
        run = _Run(Path(images), network, measures, dataset, waiting)

        def refuse(image: str, reason: str) -> None:
            for group, journal in journals.items():
                if image in waiting[group] and journal.records.refused.get(image) != reason:
                    journal.refuse(image, reason, stamps[image])
            advance(1)

        for image, found in run(left, method, refuse, workers):
            for group, facts in found.items():
                journals[group].add(image, facts, stamps[image])
            advance(1)
        return len(left)


def stamps_of(dataset: DataSet, images: Path) -> dict[str, Any]:
    """What must not have changed of an image and its annotation: image -> stamp."""
    return {each.image: [stamp_of(images / each.image), each.digest] for each in dataset.images}


def journal_name(group: str, method: str) -> str:
    """What the journal of a group and a method is called: ``gradcam++`` may not be part of it."""
    return f"{group}-{re.sub('[^0-9A-Za-z_-]', 'p', method)}"


def _settings(network: Network, method: str, measures: Measures, group: str) -> dict[str, Any]:
    return {**network.settings, "method": method, **measures.settings(group)}


def _metadata(path: Path) -> Mapping[str, str]:
    try:
        return loading.metadata_of_file(path)
    except ValueError:
        return {}  # which is said when it is loaded


def explained_again(
    network: Network,
    method: str,
    images: str | Path,
    wanted: Sequence[Annotated],
    labels: Mapping[str, int] | None = None,
) -> list[Explanation]:
    """Maps of a few images, made anew, for pictures.

    Args:
        network: The network.
        method: How the maps come about.
        images: The folder.
        wanted: The images.
        labels: The number of each image's class, where it is known.

    Raises:
        CamrtError: An image cannot be read any more.
    """
    explainer = network.explainer(method)
    known = labels or DataSet("", tuple(wanted)).numbered(_classes(explainer), explainer.labels)
    return [explainer(as_stored(Path(images) / each.image), known[each.image]) for each in wanted]


# ------------------------------------------------------------------------------------------------------------- the run


@dataclass
class _Run:
    """The images of a run, through the explainer, the network, and the processes that look at boxes."""

    images: Path
    network: Network
    measures: Measures
    dataset: DataSet
    waiting: Mapping[str, set[str]]

    def __call__(
        self, left: Sequence[Annotated], method: str, refuse: Callable[[str, str], None], workers: int | None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        there = []
        for each in left:
            if (self.images / each.image).is_file():
                there.append(each)
            else:
                refuse(each.image, f"there is no such image in {self.images}")
        if not there:
            return
        explainer = self.network.explainer(method)
        asked = any(group in _OF_THE_NETWORK for group in self.measures.groups)
        classifier = self.network.classifier() if asked else None
        count = _classes(explainer) if classifier is None else classifier.classes
        labels = self.dataset.numbered(count, explainer.labels)
        seen = self._seen(explainer, there, labels, refuse, keep_square=asked)
        placing = Placing(self.measures.side, self.measures.tolerance, self.measures.masks)
        processes = _workers(explainer, self.measures) if workers is None else workers
        yield from mapped(placing, self._jobs(seen, classifier), processes)

    def _seen(
        self,
        explainer: Explainer,
        there: Sequence[Annotated],
        labels: Mapping[str, int],
        refuse: Callable[[str, str], None],
        *,
        keep_square: bool,
    ) -> Iterator[Seen]:
        by_path = {str(self.images / each.image): each for each in there}
        explained = explainer.map(
            map(as_stored, map(Path, by_path)),
            targets=(labels[each.image] for each in there),
            batch=self.network.batch,
            on_error=lambda source, error: refuse(by_path[source].image, error.message),
        )
        for found in explained:
            annotated, size = by_path[found.source], (found.image.shape[1], found.image.shape[0])
            if (reason := _misfit(annotated, size)) is not None:
                refuse(annotated.image, reason)
                continue
            label = labels[annotated.image]
            rank = wsol.rank_of(found.all_scores, label)
            square = pixels.prepare(found.image, explainer.size) if keep_square else None
            yield Seen(annotated, label, found.heatmaps[0], size, rank, square)

    def _jobs(self, seen: Iterator[Seen], classifier: Classifier | None) -> Iterator[Job]:
        """What is asked of the network is asked here; the rest is left to other processes."""
        with ThreadPoolExecutor(2, "camrt-impute") as threads:
            for chunk in _chunks(seen, 1 if classifier is None else _CHUNK):
                jobs = [
                    Job(each, tuple(group for group, some in self.waiting.items() if each.annotated.image in some))
                    for each in chunk
                ]
                yield from jobs if classifier is None else self._asked(jobs, classifier, threads)

    def _asked(self, jobs: Sequence[Job], classifier: Classifier, threads: ThreadPoolExecutor) -> Iterator[Job]:
        """Hides and shows parts of the images, and looks at the scores. Each job is given on as soon as it is done."""
        seen = [job.seen for job in jobs]
        inputs = np.stack([classifier.seen(each.square) for each in seen if each.square is not None])
        maps = np.stack([wsol.normalized(classifier.under(each.heatmap)) for each in seen]).astype(np.float32)
        self._ask_drop(jobs, classifier, inputs, maps)
        for job, image, heatmap in zip(jobs, inputs, maps, strict=True):
            step, target = self.measures.step, job.seen.label
            if INSERTION in job.groups:
                curve = faithfulness.insertion_scores(image, heatmap, target, classifier, step=step)
                job.found[INSERTION] = {"area": _number(faithfulness.area_under(curve))}
            if DELETION in job.groups:
                curve = faithfulness.deletion_scores(image, heatmap, target, classifier, step=step)
                job.found[DELETION] = {"area": _number(faithfulness.area_under(curve))}
            if ROAD in job.groups:
                job.found[ROAD] = _road(job.seen, image, heatmap, classifier, threads)
            job.seen.square = None  # other processes do not need it
            yield job

    def _ask_drop(
        self, jobs: Sequence[Job], classifier: Classifier, inputs: NDArray[np.float32], maps: NDArray[np.float32]
    ) -> None:
        """One pass for the images and what their maps show of them, as it takes but two an image."""
        asked = [place for place, job in enumerate(jobs) if DROP in job.groups]
        if not asked:
            return
        shown = faithfulness.shown_through(inputs[asked], maps[asked])
        scores = classifier(np.concatenate([inputs[asked], shown])).reshape(2, len(asked), -1)
        for place, before, after in zip(asked, *scores, strict=True):
            label = jobs[place].seen.label
            jobs[place].found[DROP] = {"before": _number(before[label]), "after": _number(after[label])}


def _road(
    seen: Seen,
    image: NDArray[np.float32],
    heatmap: NDArray[np.float32],
    classifier: Classifier,
    threads: ThreadPoolExecutor,
) -> dict[str, Any]:
    """The scores of the class, and whether it is the best one, as pixels go in both orders."""
    seed = zlib.crc32(seen.annotated.image.encode(errors="surrogateescape"))  # the same in any order of the images

    def removed(most_relevant: bool) -> list[NDArray[np.float32]]:
        return list(faithfulness.road_images(image, heatmap, most_relevant=most_relevant, seed=seed))

    both = [threads.submit(removed, order) for order in (True, False)]
    found: dict[str, Any] = {}
    for name, images in zip(("most", "least"), both, strict=True):
        scores = classifier(np.stack(images.result()))
        found[name] = [_number(score) for score in scores[:, seen.label]]
        found[f"{name}_right"] = (scores.argmax(axis=1) == seen.label).tolist()
    return found


def _misfit(annotated: Annotated, size: tuple[int, int]) -> str | None:
    """Why an annotation cannot be one of an image of that size."""
    if annotated.size not in (None, size):
        assert annotated.size is not None
        return (
            f"the image has {size[0]} x {size[1]} pixels, and its annotation is of one of "
            f"{annotated.size[0]} x {annotated.size[1]}"
        )
    for box in annotated.boxes:
        if box[2] > size[0] or box[3] > size[1]:
            corners = ",".join(f"{each:g}" for each in box)
            return f"the image has {size[0]} x {size[1]} pixels, which do not hold its box {corners}"
    return None


def _number(value: Any) -> float | None:
    """With seven digits; None for what is no number."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _chunks(seen: Iterator[Seen], size: int) -> Iterator[list[Seen]]:
    chunk: list[Seen] = []
    for each in seen:
        chunk.append(each)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _classes(explainer: Explainer) -> int:
    """How many classes the network has."""
    if explainer.labels is not None:
        return len(explainer.labels)
    return len(explainer(np.zeros((8, 8, 3), np.uint8), 0).all_scores)


def _workers(explainer: Explainer, measures: Measures) -> int:
    import os

    from camrt.session import CUDA

    if not {BOXES, MASKS} & set(measures.groups):
        return 0
    return min(8 if explainer.provider == CUDA else 1, os.cpu_count() or 1)
