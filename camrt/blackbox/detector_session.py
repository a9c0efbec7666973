"""D-RISE with the interface of a session over an explainer graph of a detector."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from camrt import loading
from camrt.blackbox.detector import Detector
from camrt.blackbox.drise import likeness
from camrt.blackbox.methods import BATCH, Problem, find
from camrt.blackbox.session import ERRORS, NetworkSession
from camrt.boxes import BOX, BoxTarget, is_box
from camrt.errors import CamrtError
from camrt.graph.explain import CLASSES, DETECTIONS, HEATMAPS, IMAGE, SCORES, TARGET
from camrt.graph.targets import of_boxes
from camrt.loading import Request
from camrt.preprocess import WHOLE
from converters import metadata

if TYPE_CHECKING:
    import onnx

    from camrt.engines.engine import Providers

_NONE = ("layer", "features", "classifier", "scores", "smooth", "background")


class DetectorBlackBox(NetworkSession):
    """Run a method over a detector: images and boxes in; scores, classes, detections and maps out.

    It has the attributes of `camrt.session.Session`, and is as thread-safe.

    Args:
        model: A detector: a name, a path, or a model.
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
        for name in _NONE:
            if getattr(request, name) is not None:
                raise CamrtError(
                    f"found {name}={getattr(request, name)!r}, expected none: {request.method} only runs the detector"
                )
        if request.target is not None and not is_box(request.target):
            raise CamrtError(
                f"found the target {request.target!r} with the method {request.method}, expected a box, as box:best"
            )
        if request.protocol not in (None, WHOLE):
            raise CamrtError(f"found the protocol {request.protocol!r}, expected {WHOLE!r} for {request.method}")
        self._targets = of_boxes(request.target, request.top)
        if isinstance(model, (str, os.PathLike)):
            model = loading.classifier_of(os.fspath(model), request.weights)
        self._detector = Detector(
            model, request.detections, labels=request.labels, preprocess=request.preprocess, providers=providers,
            precision=precision, threads=threads,
        )  # fmt: skip
        self.network = self._detector.session
        size, count = self._detector.size, self._targets.count
        self.metadata = self._stated(metadata.of_model(model), size)
        self.inputs: Mapping[str, Any] = {IMAGE: (None, size, size, 3), BOX: (None, count, 4), TARGET: (None, count)}
        self.outputs: Mapping[str, Any] = {
            SCORES: (None, count), CLASSES: (None, count), DETECTIONS: (None, count, 4),
            HEATMAPS: (None, count, size, size),
        }  # fmt: skip

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Explain images.

        Args:
            feeds: ``image`` (N, S, S, 3) uint8, ``box`` (N, top, 4) float32 and ``target`` (N, top) int64, as an
                explainer graph of a detector takes them.

        Returns:
            ``scores`` (N, top), ``classes`` (N, top) int64, ``detections`` (N, top, 4), ``heatmaps`` (N, top, S, S),
            and ``standard_errors``, as many.

        Raises:
            CamrtError: The network fails, or there is no such detection or class.
        """
        results = [self._one(*each) for each in zip(feeds[IMAGE], feeds[BOX], feeds[TARGET], strict=True)]
        return {name: np.stack([result[name] for result in results]) for name in results[0]}

    def _one(
        self, image: NDArray[np.uint8], boxes: NDArray[np.float32], classes: NDArray[np.int64]
    ) -> dict[str, NDArray[Any]]:
        planes = self._detector.prepare(image)
        asked = [BoxTarget((0, 0, 0, 0)) if (box[2:] > box[:2]).all() else BoxTarget(rank=int(box[0])) for box in boxes]
        targets, scores, numbers = self._detector.target(planes, asked, classes.tolist(), boxes)
        problem = Problem(
            planes, image, likeness(self._detector, targets), len(targets.boxes), BATCH,
            self.progress or (lambda done, total: None),
        )  # fmt: skip
        found = self._method.explain(problem, **self._settings)
        result: dict[str, NDArray[Any]] = {
            SCORES: scores,
            CLASSES: numbers,
            DETECTIONS: (targets.boxes / self._detector.size).astype(np.float32),
            HEATMAPS: found.maps,
        }
        return result if found.standard_errors is None else {**result, ERRORS: found.standard_errors}

    def _stated(self, properties: Mapping[str, str], size: int) -> dict[str, str]:
        """What an explainer graph says of itself in its metadata."""
        labels = self._detector.labels
        facts = {
            "method": self._method.name,
            "protocol": WHOLE,
            "top": self._targets.count,
            "size": size,
            "target": self._targets.fact,
            "explained": BOX,
            "settings": self._settings,
            **({} if self._detector.classes is None else {"classes": self._detector.classes}),
        }
        named = {} if labels is None else {metadata.LABELS: json.dumps(labels)}
        return {
            **properties,
            **named,
            metadata.PREPROCESS: self._detector.wanted.as_json(),
            metadata.EXPLAINER: metadata.explainer_text(facts),
        }
