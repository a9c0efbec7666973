"""The network under evaluation: its explainers, and the classifier alone, for metrics that query its scores."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from camrt import loading
from camrt.blackbox.scorer import Scorer
from camrt.engines.engine import FP32
from camrt.errors import CamrtError
from camrt.preprocess import WHOLE, Preprocess, preprocess_of
from converters import metadata

if TYPE_CHECKING:
    import onnx

    from camrt.engines.engine import Providers
    from camrt.explainer import Explainer


@dataclass(frozen=True)
class Network:
    """The network whose maps are evaluated.

    Attributes:
        name: A named model, or the path of an ONNX model, as for `camrt.Explainer`.
        protocol: What the network sees of an image, as for `camrt.explain_graph`; ``"whole"`` is as in wsolevaluation.
            None for what suits the model; an explainer graph has its own protocol.
        providers: Where the network runs.
        batch: The number of images per run of the session; None for the explainer's default.
        preprocess: What the network expects of an image: a `Preprocess` or the name of a preset; None for what the
            model states.
        weights: The weights of a named model, if they are not to come from the cache or a download.
        precision: What the network computes in, as for `camrt.session.Session`; None for fp32.
    """

    name: str
    protocol: str | None = None
    providers: Providers | None = None
    batch: int | None = None
    preprocess: Preprocess | str | None = None
    weights: Path | None = None
    precision: str | None = None

    def settings(self, method: str | None) -> dict[str, Any]:
        """Return what the maps of a method depend on, as JSON can hold it."""
        preprocess = self.preprocess.as_json() if isinstance(self.preprocess, Preprocess) else self.preprocess
        precision = None if self.precision == FP32 else self.precision
        chosen = {"preprocess": preprocess, "precision": precision}
        given = {name: value for name, value in chosen.items() if value is not None}
        model = loading.identity(self.name, self.weights)
        return {"model": model, "method": method, "protocol": self.protocol, **given}

    def explainer_of_best(self, method: str | None, top: int) -> Explainer:
        """Load an explainer of the best classes of each image.

        Args:
            method: How the maps are computed; None for the default.
            top: The least number of classes, if the network has as many. Some methods explain one class by default.

        Raises:
            CamrtError: The explainer cannot be made or loaded, or explains other classes.
            ConversionError: There is no model of that name, or its weights are not available.
        """
        explainer = self._explainer(method, self.protocol, None, self.preprocess)
        if explainer.top < top and explainer.top < class_count(explainer):
            explainer = self._explainer(method, self.protocol, min(top, class_count(explainer)), self.preprocess)
        if explainer.target != "top":
            raise CamrtError(
                f"found an explainer of the classes {explainer.target}, expected one of the best ones", file=self.name
            )
        return explainer

    def explainer_of_label(self, method: str | None) -> Explainer:
        """Load an explainer of the class that comes with each image.

        Args:
            method: How the maps are computed; None for the default.

        Raises:
            CamrtError: The explainer cannot be made or loaded, or takes no class with an image.
            ConversionError: There is no model of that name, or its weights are not available.
        """
        # The default of `camrt evaluate wsol` is no demand on an explainer graph, which has its own protocol.
        protocol = None if self.protocol == WHOLE and self._is_explainer() else self.protocol
        found = self._explainer(method, protocol, 1, self.preprocess, target="input")
        if found.target != "input":
            raise CamrtError(
                f"found an explainer graph of the target {found.target!r}, expected one of the class that comes with "
                "each image. Name the classifier that it was made from, or export it again with --target input",
                file=self.name,
            )
        return found

    def classifier(self) -> Scorer:
        """Load the network without an explainer.

        Raises:
            CamrtError: The network cannot be loaded.
            ConversionError: There is no model of that name, or its weights are not available.
        """
        model = load_classifier(self.name, self.weights)
        try:
            # By default what the model states: names were given it when they were resolved.
            known = None if self.preprocess is None else preprocess_of(self.preprocess, {})
            return Scorer(
                model, self.protocol or WHOLE, preprocess=known, providers=self.providers, precision=self.precision
            )
        except CamrtError as error:
            raise error.in_file(self.name) from error.__cause__

    def _explainer(
        self, method: str | None, protocol: str | None, top: int | None, preprocess: Preprocess | str | None,
        target: str | None = None,
    ) -> Explainer:  # fmt: skip
        from camrt.explainer import STREAMS, Explainer

        return Explainer(
            self.name, method, protocol, top, self.providers,
            target=target, preprocess=preprocess, weights=self.weights, precision=self.precision, streams=STREAMS,
        )  # fmt: skip

    def _is_explainer(self) -> bool:
        path = Path(self.name)
        return not loading.is_name(self.name) and path.is_file() and metadata.EXPLAINER in _metadata(path)


def class_count(explainer: Explainer) -> int:
    """Return the number of classes of an explainer's network."""
    if explainer.labels is not None:
        return len(explainer.labels)
    target = 0 if explainer.target == "input" else None
    return len(explainer(np.zeros((8, 8, 3), np.uint8), target).all_scores)


def worker_count(explainer: Explainer, on_cpu: int) -> int:
    """Return the default number of worker processes beside an explainer: up to 8 on a GPU, else ``on_cpu``."""
    from camrt.engines.onnxruntime import GPU

    return min(8 if explainer.provider in GPU else on_cpu, os.cpu_count() or 1)


def _metadata(path: Path) -> Mapping[str, str]:
    try:
        return metadata.of_file(path)
    except ValueError:
        return {}  # loading the file reports the error


def load_classifier(name: str, weights: Path | None = None) -> onnx.ModelProto:
    """Load a classifier by name or path.

    Args:
        name: A named model, or the path of an ONNX model.
        weights: The weights of a named model, if they are not to come from the cache or a download.

    Raises:
        CamrtError: There is no such file, or it is not an ONNX model.
        ConversionError: There is no model of that name, or its weights are not available.
    """
    if loading.is_name(name):
        return loading.named_classifier(name, weights)
    import onnx

    if not Path(name).is_file():
        raise CamrtError("there is no such file, expected an ONNX model or the name of a named model", file=name)
    try:
        return onnx.load(name)
    except Exception as error:  # the errors of protobuf and onnx for a broken file have no common base
        raise CamrtError(f"is not a readable ONNX model ({error})", file=name) from error
