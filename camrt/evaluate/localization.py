"""The original's localization experiment over a whole data set: killed anywhere, it goes on; processes share the work.

ILSVRC_generate_heatmap.m and ILSVRC_evaluate_bbox.m in one pass: what is guessed in each image goes to a
`camrt.evaluate.journal.Journal`, and is counted when all images have a line there. What is guessed depends on the model
and on how boxes are found, not on the ground truth.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from camrt import loading, results
from camrt.errors import CamrtError
from camrt.evaluate import devkit, ilsvrc
from camrt.evaluate.dataset import Dataset
from camrt.evaluate.guesses import BoxRule, Maps
from camrt.evaluate.ilsvrc import GUESSES, RANKINGS, Floats
from camrt.evaluate.journal import Journal, Records, Shard, stamp_of
from camrt.evaluate.processes import mapped

if TYPE_CHECKING:
    from camrt.explainer import Explainer
    from camrt.explanation import Explanation
    from camrt.images import ImageLike
    from camrt.session import Provider

JOURNAL, MODEL = "guesses", "model.json"
_ORIENTATION = 0x0112  # the EXIF tag

Progress = Callable[[int], AbstractContextManager[Callable[[int], Any]]]


@dataclass(frozen=True)
class Model:
    """The network whose maps are evaluated.

    Attributes:
        name: A named model, or the path of an ONNX model, as for `camrt.Explainer`.
        method: How the maps come about, likewise.
        protocol: What the network sees of an image, likewise.
        providers: Where it runs, likewise.
        batch: How many images the session gets at once.
    """

    name: str
    method: str | None = None
    protocol: str | None = None
    providers: str | Sequence[Provider] | None = None
    batch: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What the maps depend on."""
        return {"model": loading.identity(self.name), "method": self.method, "protocol": self.protocol}

    def load(self) -> Explainer:
        """The explainer.

        Raises:
            CamrtError: It cannot be loaded, or explains too few classes.
        """
        from camrt.explainer import Explainer

        explainer = Explainer(self.name, self.method, self.protocol, providers=self.providers)
        if explainer.top < GUESSES and explainer.top < _classes(explainer):  # some methods explain one class by default
            top = min(GUESSES, _classes(explainer))
            explainer = Explainer(self.name, self.method, self.protocol, top, self.providers)
        if explainer.target != "top":
            raise CamrtError(
                f"found an explainer of the classes {explainer.target}, expected one of the best ones", file=self.name
            )
        return explainer


@dataclass(frozen=True)
class Outcome:
    """The errors over a data set, and what they are made of.

    Attributes:
        predictions: Ranking -> (N, 25), as for `camrt.evaluate.ilsvrc.localization_error`.
        classification: Ranking -> (5,) the classification error with 1 to 5 guesses.
        localization: Ranking -> (5,) the localization error.
        refused: The images in which nothing could be guessed, with the reasons: they count as wrong.
        without_boxes: How many maps had no box: the whole image is guessed.
        with_one_box: How many had one: it is guessed in place of the second too.
    """

    predictions: Mapping[str, Floats]
    classification: Mapping[str, Floats]
    localization: Mapping[str, Floats]
    refused: Mapping[str, str]
    without_boxes: int = 0
    with_one_box: int = 0


def guess(
    images: Mapping[str, Path | None],
    folder: Path,
    model: Model,
    rule: BoxRule,
    *,
    synsets: Mapping[str, int] | None = None,
    shard: Shard | None = None,
    workers: int | None = None,
    progress: Progress = lambda total: nullcontext(lambda count: None),
) -> int:
    """Guesses boxes in a shard's images, as far as that is not done.

    Args:
        images: All images of all shards, in their order: name -> file, or None where there is none.
        folder: Where the journal is.
        model: The network.
        rule: How maps become boxes.
        synsets: Name -> number of the classes that the ground truth has. If given, a network of other classes is an
            error at the first image, and not after the last one.
        shard: Which of the images are this process's; all if left out.
        workers: How many processes find boxes, beside this one; 0 for none. By default up to 8 on CUDA, else 2.
        progress: Called with the number of images that are left; the block's value is called with how many more are
            done.

    Returns:
        How many images were left.

    Raises:
        CamrtError: The journal has other settings, another process writes it, the model cannot be loaded or run, its
            classes are not those of the data set, or the folder cannot be written to.
        ConversionError: There is no model of that name, or its weights cannot be had.
    """
    stamps = {name: path and stamp_of(path) for name, path in images.items()}
    with Journal(folder, JOURNAL, {**model.settings, **rule.settings}, shard) as journal:
        waiting = {name: images[name] for name in journal.waiting(stamps)}
        if not waiting:
            return 0
        with progress(len(waiting)) as advance:

            def refuse(name: str, reason: str) -> None:
                if journal.records.refused.get(name) != reason:  # said by an earlier run
                    journal.refuse(name, reason, stamps[name])
                advance(1)

            there = {name: path for name, path in waiting.items() if path is not None}
            for name, path in waiting.items():
                if path is None:
                    refuse(name, "there is no such image")
            if there:
                explainer = model.load()
                count = _workers(explainer) if workers is None else workers
                for name, found in mapped(rule, _maps(explainer, there, folder, refuse, model.batch, synsets), count):
                    journal.add(name, found, stamps[name])
                    advance(1)
        return len(waiting)


def missing(dataset: Dataset, folder: Path) -> int:
    """How many images have no line in the journals yet: those of other shards.

    Raises:
        CamrtError: The journals cannot be read.
    """
    records = Records(folder, JOURNAL)
    return sum(name not in records for name in dataset.names)


def count(dataset: Dataset, folder: Path) -> Outcome:
    """Counts the errors of what was guessed.

    Args:
        dataset: What to compare with.
        folder: Where the journals are.

    Raises:
        CamrtError: An image has no line there, a journal cannot be read, or the classes do not match.
    """
    records = Records(folder, JOURNAL)
    lacking = [name for name in dataset.names if name not in records]
    if lacking:
        raise CamrtError(
            f"says nothing of {len(lacking):,} of the {len(dataset):,} images, the first of which is {lacking[0]!r}. "
            "Let the shards that are not done go on, with the same command",
            file=str(folder),
        )
    places = {name: place for place, name in enumerate(dataset.names)}
    refused = {name: reason for name, reason in records.refused.items() if name in places}
    classes = np.zeros((len(dataset), GUESSES), np.int64)  # of the network, counted from 1; 0 for none
    boxes = np.zeros((len(dataset), GUESSES, 2, 4))
    boxes_found = np.full((len(dataset), GUESSES), 2, np.int64)
    for name, found in records:
        if (place := places.get(name)) is None:
            continue
        try:
            top = len(found["classes"])
            size, classes[place, :top], boxes[place, :top] = tuple(found["size"]), found["classes"], found["boxes"]
            boxes_found[place, :top] = found["found"]
        except (LookupError, TypeError, ValueError) as error:
            raise CamrtError(f"what the journal says of {name!r} is damaged ({error!r})", file=str(folder)) from error
        classes[place, :top] += 1
        if dataset.sizes[place] not in (None, size):
            refused[name] = (
                f"the image has {size[0]} x {size[1]} pixels, and its annotation is of one of {{}} x {{}}".format(
                    *dataset.sizes[place] or ()
                )
            )
            classes[place], boxes[place], boxes_found[place] = 0, 0, 2
    orders = ilsvrc.rankings(_devkit_classes(classes, dataset, folder), boxes)
    errors = {name: _errors(order, dataset) for name, order in orders.items()}
    return Outcome(
        predictions=orders,
        classification={name: found[0] for name, found in errors.items()},
        localization={name: found[1] for name, found in errors.items()},
        refused=refused,
        without_boxes=int((boxes_found == 0).sum()),
        with_one_box=int((boxes_found == 1).sum()),
    )


def count_submission(dataset: Dataset, file: Path) -> Outcome:
    """Counts the errors of a file in the devkit's format.

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
    return Outcome({name: predictions}, {name: classification}, {name: localization}, {})


def write_submissions(outcome: Outcome, folder: Path) -> dict[str, Path]:
    """Writes the guesses in the devkit's format, ``bbox1.txt``, ``bbox2.txt`` and ``bboxCombine.txt``.

    Raises:
        CamrtError: They cannot be written.
    """
    files = {name: folder / f"{name}.txt" for name in RANKINGS}
    for name, file in files.items():
        results.write(file, devkit.format_submission(outcome.predictions[name]).encode())
    return files


# ------------------------------------------------------------------------------------------------- the images


def _maps(
    explainer: Explainer,
    images: Mapping[str, Path],
    folder: Path,
    refuse: Callable[[str, str], None],
    batch: int | None,
    synsets: Mapping[str, int] | None,
) -> Iterator[Maps]:
    """The maps of the images that can be read."""
    names = {str(path): name for name, path in images.items()}
    explained = explainer.map(
        map(as_stored, images.values()),
        batch=batch,
        on_error=lambda source, error: refuse(names[source], error.message),
    )
    for number, found in enumerate(explained):
        if number == 0:
            facts = {"classes": len(found.all_scores), "labels": explainer.labels}
            if synsets is not None:
                devkit.class_ids(synsets, len(found.all_scores), explainer.labels)
            results.write(folder / MODEL, json.dumps(facts).encode())
        yield _maps_of(names[found.source], found)


def _maps_of(name: str, found: Explanation) -> Maps:
    facts = {
        "classes": found.classes[:GUESSES].tolist(),
        "scores": [float(f"{score:.6g}") if np.isfinite(score) else None for score in found.scores[:GUESSES].tolist()],
    }
    height, width = found.image.shape[:2]
    return Maps(name, found.heatmaps[:GUESSES], (height, width), facts)


def as_stored(path: Path) -> ImageLike:
    """The image as its pixels are stored: MATLAB's imread does not turn it as EXIF says, and the boxes are drawn so."""
    from PIL import Image

    try:
        image = Image.open(path, formats=("JPEG", "MPO"))
        exif = image.getexif()
    except Exception:  # another format, or what the explainer will complain of
        return str(path)
    if exif.get(_ORIENTATION, 1) == 1:
        image.close()
        return str(path)
    del exif[_ORIENTATION]
    image.filename = str(path)
    return image


def _classes(explainer: Explainer) -> int:
    """How many classes the network has."""
    if explainer.labels is not None:
        return len(explainer.labels)
    return len(explainer(np.zeros((8, 8, 3), np.uint8)).all_scores)


def _workers(explainer: Explainer) -> int:
    import os

    from camrt.session import CUDA

    return min(8 if explainer.provider == CUDA else 2, os.cpu_count() or 1)


# ------------------------------------------------------------------------------------------------- the numbers


def _errors(predictions: Floats, dataset: Dataset) -> tuple[Floats, Floats]:
    return ilsvrc.localization_error(predictions, dataset.truth, dataset.boxes, dataset.blacklist)


def _devkit_classes(classes: Any, dataset: Dataset, folder: Path) -> Any:
    """The devkit's numbers of the network's classes, both counted from 1; 0 stays 0."""
    if not classes.any():  # nothing could be read: there is no model either
        return classes
    if dataset.synsets is None:
        raise CamrtError(
            "nothing says which number a class of the network has in the ground truth. Give the devkit's "
            "meta_clsloc.mat, or a file with a name and a number a line: --meta"
        )
    file = folder / MODEL
    try:
        facts = json.loads(file.read_bytes())
        number, labels = int(facts["classes"]), facts["labels"]
        labels = None if labels is None else [str(label) for label in labels]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CamrtError(f"does not say which classes the network has ({error!r})", file=str(file)) from error
    if classes.max() > number or classes.min() < 0:
        raise CamrtError(
            f"found the class {classes.max() - 1} in the journal, expected 0 to {number - 1}", file=str(file)
        )
    ids = devkit.class_ids(dataset.synsets, number, labels)
    return np.concatenate([[0], ids])[classes]
