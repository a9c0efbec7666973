"""A black-box method with the interface of a session over an explainer graph."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from camrt import loading
from camrt.blackbox.methods import BATCH, Problem, find
from camrt.blackbox.scorer import Scorer
from camrt.boxes import is_box
from camrt.errors import CamrtError
from camrt.graph.explain import CLASSES, HEATMAPS, IMAGE, SCORES, TARGET
from camrt.graph.scores import Scores
from camrt.graph.targets import SUM, of_segment, targets_of
from camrt.loading import Request
from camrt.preprocess import WHOLE
from converters import metadata

if TYPE_CHECKING:
    import onnx

    from camrt.engines.engine import Providers
    from camrt.session import Session
    from camrt.tuning import AutoSession

ERRORS = "standard_errors"  # an output of the methods that draw masks
_PROTOCOLS = (WHOLE, "center")


class NetworkSession:
    """What the sessions of black-box methods have in common: they tell where the network runs.

    Attributes:
        progress: Called with how many of an image's masks were scored, and how many there are; None for nothing.
        network: The session of the network, set by the class.
    """

    first_batch = 1
    progress: Callable[[int, int], object] | None = None
    network: Session | AutoSession

    @property
    def provider(self) -> str:
        """Return what runs the network."""
        return self.network.provider

    @property
    def precision(self) -> str:
        """Return what it computes in."""
        return self.network.precision

    @property
    def device(self) -> int | None:
        """Return the number of the GPU; None where no CUDA runs it."""
        return self.network.device


class BlackBox(NetworkSession):
    """Run a method over a network: images in; scores, classes and maps out, as from an explainer graph.

    It has the attributes of `camrt.session.Session`, and is as thread-safe.

    Args:
        model: A classifier: a name, a path, or a model.
        request: The method, its settings, and what is explained.
        providers: Where the network runs, as for `camrt.session.Session`.
        precision: What it computes in, as for `camrt.tuning.session`.
        threads: How many threads compute on the CPU.

    Raises:
        CamrtError: The model cannot be loaded, or an argument does not fit the method.
        ConversionError: There is no model of that name, or its weights cannot be had.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | onnx.ModelProto,
        request: Request,
        *,
        providers: Providers | None = None,
        precision: str | None = None,
        threads: int | None = None,
    ) -> None:
        self._method = find(request.method or "")
        self._settings = self._method.checked(request.settings or {})
        if is_box(request.target):
            raise CamrtError(
                f"found the target {request.target!r} with the method {request.method}, which explains scores of a "
                "whole image: use --method drise"
            )
        if of_segment(request.target)[0]:
            raise CamrtError(
                f"found the target {request.target!r} with the method {request.method}, which explains scores of a "
                "whole image: use --method gradcam, layercam or recipro-cam"
            )
        if request.smooth:
            raise CamrtError(
                f"found smooth={request.smooth!r}, expected none: {request.method} is no part of a graph. The "
                "methods of camrt.graph.methods.METHODS can be smoothed"
            )
        if request.background is not None:
            raise CamrtError(f"found a background, expected none: {request.method} compares with no images")
        for name in ("layer", "features", "classifier"):
            if getattr(request, name) is not None:
                raise CamrtError(
                    f"found {name}={getattr(request, name)!r}, expected none: {request.method} sees no layers"
                )
        classifier = _classifier(model, request.weights)
        properties = metadata.of_model(classifier)
        protocol = request.protocol or (properties.get(metadata.PROTOCOL) == "center" and "center") or WHOLE
        if protocol not in _PROTOCOLS:
            raise CamrtError(
                f"found the protocol {protocol!r}, expected one of {', '.join(_PROTOCOLS)} for {request.method}"
            )
        self._scorer = Scorer(
            classifier, protocol, scores=request.scores, is_sum=request.target == SUM, preprocess=request.preprocess,
            providers=providers, precision=precision, threads=threads,
        )  # fmt: skip
        self.network = self._scorer.session
        labels = self._labels(request)
        scores = Scores(self._scorer.scores, self._scorer.scores, "", self._scorer.classes)
        self._targets = targets_of(request.target, request.top, self._method.top, labels, scores)
        self.metadata = self._stated(properties, protocol, labels)
        size, count = self._scorer.size, self._targets.count
        takes_classes = self._targets.kind in ("input", "any")
        self.inputs: Mapping[str, Any] = {
            IMAGE: (None, size, size, 3), **({TARGET: (None, count)} if takes_classes else {})
        }  # fmt: skip
        self.outputs: Mapping[str, Any] = {
            SCORES: (None, self._scorer.classes), CLASSES: (None, count), HEATMAPS: (None, count, size, size)
        }  # fmt: skip

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Explain images.

        Args:
            feeds: ``image`` (N, S, S, 3) uint8, and ``target`` (N, top) int64 where there is that input.

        Returns:
            ``scores`` (N, K), ``classes`` (N, top) int64, ``heatmaps`` (N, top, S, S), and of a method that draws its
            masks ``standard_errors``, as many.

        Raises:
            CamrtError: The network fails, or there is no such class.
        """
        given = feeds.get(TARGET)
        results = [self._one(image, None if given is None else given[n]) for n, image in enumerate(feeds[IMAGE])]
        return {name: np.stack([result[name] for result in results]) for name in results[0]}

    def _one(self, image: NDArray[np.uint8], given: NDArray[np.int64] | None) -> dict[str, NDArray[Any]]:
        planes = self._scorer.prepare(image)
        scores = self._scorer(planes[None])[0]
        classes = self._chosen(scores, given)
        problem = Problem(
            planes,
            np.ascontiguousarray(self._scorer.crop(image.transpose(2, 0, 1)).transpose(1, 2, 0)),
            lambda images: self._scorer(images)[:, classes],
            len(classes),
            BATCH,
            self.progress or (lambda done, total: None),
        )
        found = self._method.explain(problem, **self._settings)
        result = {SCORES: scores, CLASSES: classes, HEATMAPS: self._pasted(found.maps)}
        if found.standard_errors is not None:
            result[ERRORS] = self._pasted(found.standard_errors)
        return result

    def _chosen(self, scores: NDArray[np.float32], given: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """The classes that are explained: (top,) int64."""
        best = np.argsort(-scores, kind="stable")[: self._targets.count]
        if self._targets.kind == "sum":
            return np.zeros(1, np.int64)
        if self._targets.kind == "fixed":
            return np.array(self._targets.classes, np.int64)
        if given is None:
            return best
        if (given >= len(scores)).any() or (self._targets.kind == "input" and (given < 0).any()):
            raise CamrtError(f"found the classes {given.tolist()}, expected 0 to {len(scores) - 1}")
        return np.where(given < 0, best, given)

    def _pasted(self, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """Maps of what the network sees over the whole square."""
        whole = np.zeros((len(maps), self._scorer.size, self._scorer.size), np.float32)
        self._scorer.crop(whole)[:] = maps
        return whole

    def _labels(self, request: Request) -> list[str] | None:
        labels = self._scorer.labels if request.labels is None else list(request.labels)
        if request.target == SUM:
            return [f"sum of {self._scorer.scores}"]
        if labels is not None and len(labels) != self._scorer.classes:
            if request.labels is not None:
                raise CamrtError(
                    f"found {len(labels)} names, expected one for each of the {self._scorer.classes} classes"
                )
            return None  # the model's own are those of another tensor
        return labels

    def _stated(self, properties: Mapping[str, str], protocol: str, labels: list[str] | None) -> dict[str, str]:
        """What an explainer graph says of itself in its metadata."""
        facts = {
            "method": self._method.name,
            "protocol": protocol,
            "top": self._targets.count,
            "size": self._scorer.size,
            "target": self._targets.fact,
            "scores": self._scorer.scores,
            "settings": self._settings,
        }
        stated = {key: value for key, value in properties.items() if key != metadata.LABELS}
        named = {} if labels is None else {metadata.LABELS: json.dumps(labels)}
        return {
            **stated,
            **named,
            metadata.PREPROCESS: self._scorer.wanted.as_json(),
            metadata.EXPLAINER: metadata.explainer_text(facts),
        }


def _classifier(model: str | os.PathLike[str] | onnx.ModelProto, weights: Path | None) -> onnx.ModelProto:
    if isinstance(model, (str, os.PathLike)):
        return loading.classifier_of(os.fspath(model), weights)
    return model
