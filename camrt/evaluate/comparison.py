"""Methods side by side on the same images: time, insertion, deletion and ROAD of each."""

from __future__ import annotations

import dataclasses
import os
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from camrt import images as reading
from camrt.blackbox.scorer import Scorer
from camrt.classes import class_number
from camrt.errors import CamrtError, CamrtWarning
from camrt.evaluate import faithfulness
from camrt.evaluate.network import Network
from camrt.preprocess import WHOLE

if TYPE_CHECKING:
    from camrt.engines.engine import Providers
    from camrt.explainer import Explainer, Prepared
    from camrt.explanation import Explanation
    from camrt.images import ImageLike
    from camrt.preprocess import Preprocess

DEFAULT_METHODS = ("gradcam", "gradcam++", "layercam", "eigencam", "baseline-center")
# Measure -> whether the highest is the best.
MEASURES: Mapping[str, bool] = {"seconds": False, "insertion": True, "deletion": False, "road": True}
_RUNS, _QUICK = 3, 1.0  # a run of less than a second is repeated: the first ones warm up
_SIDE = 1024  # pixels of the images that are kept

OnError = Literal["warn", "raise"] | Callable[[str, CamrtError], object]


@dataclass(frozen=True, eq=False)
class Row:
    """A method on an image.

    Attributes:
        image: The path, or what the image was.
        method: The method.
        target: The class that is explained, the same for all methods.
        label: Its name.
        score: Its score.
        seconds: The shortest run of the session, without reading and drawing.
        insertion: The area under the curve of `camrt.evaluate.faithfulness.insertion_scores`; higher is better.
        deletion: That of `camrt.evaluate.faithfulness.deletion_scores`; lower is better.
        road: `camrt.evaluate.faithfulness.road`; higher is better.
        explanation: The map.
    """

    image: str
    method: str
    target: int
    label: str
    score: float
    seconds: float
    insertion: float
    deletion: float
    road: float
    explanation: Explanation

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the explanation, for JSON or a table."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "explanation"}


def compare(
    images: ImageLike | Iterable[ImageLike],
    model: str | os.PathLike[str],
    methods: Sequence[str] = DEFAULT_METHODS,
    *,
    target: int | str | None = None,
    protocol: str = WHOLE,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    preprocess: Preprocess | str | None = None,
    weights: str | os.PathLike[str] | None = None,
    providers: Providers | None = None,
    precision: str | None = None,
    step: int | None = None,
    on_error: OnError = "warn",
    progress: Callable[[int], object] = lambda count: None,
) -> list[Row]:
    """Explain the same class of the same images by several methods, and measure each map.

    Which method is the best depends on the network and the images; this measures it. Insertion and deletion are those
    of Petsiuk et al. 2018, ROAD is that of Rong et al. 2022: see `camrt.evaluate.faithfulness`. A baseline
    (``"baseline-center"``, ...) among the methods says what a map is worth that knows nothing of the network.

    Args:
        images: As for a call of `camrt.Explainer`; one, or several.
        model: A classifier: a name or a path.
        methods: Of `camrt.METHODS` and `camrt.graph.methods.BLACK_BOX`.
        target: The class, by number or name; by default the best one of each image.
        protocol: What the network sees of an image: ``"whole"``, ``"center"`` or ``"full"``.
        settings: Method -> its settings.
        preprocess: What the network expects of an image, where the model does not say it.
        weights: The weights of a named model, in place of the cache and the download.
        providers: Where it runs, as for `camrt.session.Session`.
        precision: What it computes in, likewise.
        step: The number of pixels that insertion and deletion replace at a time; by default one row of the image.
        on_error: What to do about a method that cannot explain the model, or an image that cannot be read, as for
            `camrt.Explainer.map`: the others are measured.
        progress: Called with 1 for each method and image that is done, or left out.

    Returns:
        A row for each method and image, in the order of the methods, then of the images.

    Raises:
        CamrtError: The network cannot be loaded, or an argument is wrong.

    Example:
        >>> rows = camrt.compare("cat.jpg", "resnet50", ["gradcam", "layercam", "rise"])  # doctest: +SKIP
        >>> max(rows, key=lambda row: row.insertion).method  # doctest: +SKIP
    """
    names = list(dict.fromkeys(methods))
    if not names or isinstance(methods, str):
        raise CamrtError(f"found methods={methods!r}, expected several: a list of names")
    if unknown := set(settings or {}) - set(names):
        raise CamrtError(f"found settings of {', '.join(sorted(unknown))}, expected of {', '.join(names)}")
    several = [images] if isinstance(images, (str, bytes, os.PathLike, np.ndarray)) else list(_listed(images))
    network = Network(
        os.fspath(model), protocol, providers, preprocess=preprocess,
        weights=None if weights is None else Path(weights), precision=precision,
    )  # fmt: skip
    scorer = network.classifier()
    number = None if target is None else class_number(target, scorer.labels, scorer.classes)
    subjects = list(_subjects(several, scorer, number, on_error, lambda: progress(len(names))))
    rows = []
    for name in names:
        try:
            explainer = _explainer(network, name, (settings or {}).get(name))
        except CamrtError as error:
            _report(name, error, on_error)
            progress(len(subjects))
            continue
        for subject in subjects:
            try:
                rows.append(_row(explainer, scorer, subject, step))
            except CamrtError as error:
                _report(f"{name} of {subject.name}", error, on_error)
            progress(1)
        del explainer
    return rows


def means(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """Return the mean of each measure over the images of each method.

    Returns:
        Method -> measure -> mean, in the order of the rows. Only images that all methods explained count, so that the
        means can be compared; where there is none, all images.
    """
    by_method: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_method.setdefault(row.method, {})[row.image] = row
    shared = set.intersection(*(set(found) for found in by_method.values())) if by_method else set()
    return {
        method: {
            measure: float(
                np.mean([getattr(row, measure) for name, row in found.items() if name in shared or not shared])
            )
            for measure in MEASURES
        }
        for method, found in by_method.items()
    }


def best(values: Mapping[str, Mapping[str, float]]) -> dict[str, list[str]]:
    """Return the best methods by each measure: several where they are equal.

    Args:
        values: Method -> measure -> value.
    """
    found = {}
    for measure, is_high in MEASURES.items():
        column = [row[measure] for row in values.values()]
        wanted = (max if is_high else min)(column, default=None)
        found[measure] = [method for method, row in values.items() if row[measure] == wanted]
    return found


# ---------------------------------------------------------------------------------------------------------- one image


@dataclass(frozen=True, eq=False)
class _Subject:
    """An image, and the class that is explained."""

    name: str
    image: ImageLike
    planes: NDArray[np.float32]
    target: int
    score: float


def _listed(images: Any) -> Iterable[ImageLike]:
    return images if isinstance(images, Iterable) else [images]  # a PIL image is none


def _subjects(
    images: Iterable[ImageLike], scorer: Scorer, target: int | None, on_error: OnError, skipped: Callable[[], object]
) -> Iterator[_Subject]:
    seen: Counter[str] = Counter()
    for image in images:
        name = reading.name_of(image)
        seen[name] += 1
        if seen[name] > 1:  # arrays, for example, are all called alike
            name = f"{name} {seen[name]}"
        try:
            loaded = reading.load(image, scorer.size, max_side=_SIDE)
            planes = scorer.prepare(loaded.square)
            scores = scorer(planes[None])[0]
        except CamrtError as error:
            _report(name, error.in_file(name), on_error)
            skipped()
            continue
        chosen = int(scores.argmax()) if target is None else target
        yield _Subject(name, image, planes, chosen, float(scores[chosen]))


def _explainer(network: Network, method: str, settings: Mapping[str, Any] | None) -> Explainer:
    from camrt.explainer import Explainer

    return Explainer(
        network.name, method, network.protocol, 1, network.providers, target="input", settings=settings,
        preprocess=network.preprocess, weights=network.weights, precision=network.precision, max_side=_SIDE,
    )  # fmt: skip


def _row(explainer: Explainer, scorer: Scorer, subject: _Subject, step: int | None) -> Row:
    explanation, seconds = _timed(explainer, subject)
    heatmap = scorer.crop(explanation.heatmaps[0])
    if not np.isfinite(heatmap).all():
        raise CamrtError("the map is not finite", file=subject.name)
    target, planes = subject.target, subject.planes
    curves = {
        "insertion": faithfulness.insertion_scores(planes, heatmap, target, scorer, step=step),
        "deletion": faithfulness.deletion_scores(planes, heatmap, target, scorer, step=step),
    }
    seed = zlib.crc32(subject.name.encode(errors="surrogateescape"))  # the same noise for all methods
    removed = [
        faithfulness.road_scores(planes, heatmap, scorer, most_relevant=order, seed=seed)[:, target]
        for order in (True, False)
    ]
    return Row(
        subject.name, explainer.method, target, explanation.labels[0], subject.score, seconds,
        **{name: faithfulness.area_under(curve) for name, curve in curves.items()},
        road=faithfulness.road(*removed), explanation=explanation,
    )  # fmt: skip


def _timed(explainer: Explainer, subject: _Subject) -> tuple[Explanation, float]:
    """An explanation, and the seconds of the shortest run."""
    prepared = explainer.prepare(subject.image, subject.target)
    explanation, shortest = _once(explainer, prepared)
    for _ in range(_RUNS - 1):
        if shortest > _QUICK:
            break
        shortest = min(shortest, _once(explainer, prepared)[1])
    return explanation, shortest


def _once(explainer: Explainer, prepared: Prepared) -> tuple[Explanation, float]:
    began = time.perf_counter()
    (found,) = explainer.explain_prepared([prepared])
    seconds = time.perf_counter() - began
    if isinstance(found, CamrtError):
        raise found
    return found, seconds


def _report(what: str, error: CamrtError, on_error: OnError) -> None:
    if on_error == "raise":
        raise error
    if on_error == "warn":
        warnings.warn(f"left out: {what}: {error}", CamrtWarning, stacklevel=4)
    elif callable(on_error):
        on_error(what, error)
