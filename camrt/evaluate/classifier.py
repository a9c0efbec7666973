"""A classifier as such, beside its explainer: what it gets of an image, and what it says of it when that is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from camrt.errors import CamrtError
from camrt.graph.batch import with_free_batch
from camrt.graph.crops import crops_of
from camrt.graph.opening import open_model
from camrt.graph.scores import find_scores
from camrt.graph.view import labels_of, metadata_of
from camrt.preprocess import Preprocess, preprocess_of
from camrt.session import Session

if TYPE_CHECKING:
    import onnx

    from camrt.session import Provider

WHOLE = "whole"  # one pass over the whole image, squeezed to the network's input


class Classifier:
    """A score function for `camrt.evaluate.faithfulness`. May be used from several threads at once.

    It looks at an image once, without a mirror image: at all of it (``"whole"``, ``"full"``), or at the centre crop.

    Args:
        model: The network: one image input (N, 3, h, w) float32, scores (N, K).
        protocol: What the network sees of an image.
        preprocess: What the network wants of an image; by default the model's metadata say it.
        providers: Where it runs, as for `camrt.session.Session`.

    Raises:
        CamrtError: The model has no scores, or cannot be loaded; nothing says what it wants of an image.

    Attributes:
        classes: How many there are.
        labels: Their names, or None.
        size: The side in pixels of the square that images are resized to.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        protocol: str = WHOLE,
        *,
        preprocess: Preprocess | None = None,
        providers: str | Sequence[Provider] | None = None,
    ) -> None:
        metadata = metadata_of(model)
        if "camrt.explainer" in metadata:
            raise CamrtError("found an explainer graph, expected the classifier that it was made of: it is run alone")
        self._wants = seen_by(preprocess_of(preprocess, metadata), protocol)
        self.size = self._wants.size
        side = self.size if protocol == "full" else self._wants.crop
        view = open_model(model)
        scores = find_scores(view)
        self.classes, self.labels = scores.classes, labels_of(metadata)
        self._crop = crops_of("center", self.size, side)[0]
        self._input, self._output, self._activation = view.inputs[0].name, scores.output, scores.activation
        network = with_free_batch(view, self._input, (3, side, side), scores.output)
        self._session = Session(network, providers=providers)

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities.

        Args:
            images: (N, 3, h, w), as `seen` gives them.

        Returns:
            (N, K) float32.

        Raises:
            CamrtError: ONNX Runtime fails.
        """
        found = self._session.run({self._input: np.ascontiguousarray(images, np.float32)})
        scores: NDArray[Any] = found[self._output].reshape(len(images), -1).astype(np.float32)
        if self._activation == "LogSoftmax":
            scores = np.exp(scores)
        elif not self._activation:
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
        return scores

    def seen(self, square: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the network gets.

        Args:
            square: (S, S, 3) uint8 RGB.

        Returns:
            (3, h, w) float32, mean and scale applied.
        """
        wants = self._wants
        planes = square[:, :, :: -1 if wants.channels == "BGR" else 1].transpose(2, 0, 1).astype(np.float32)
        mean = np.reshape(wants.mean, (3, 1, 1)) if wants.mean_image is None else wants.mean_image
        planes = (planes - mean.astype(np.float32)) * np.reshape(wants.scale, (3, 1, 1)).astype(np.float32)
        return np.ascontiguousarray(self._cut(planes))

    def under(self, heatmap: NDArray[np.float32]) -> NDArray[np.float32]:
        """The part of a map that lies over what the network gets.

        Args:
            heatmap: (S, S).

        Returns:
            (h, w).
        """
        return self._cut(heatmap)

    def _cut(self, planes: NDArray[np.float32]) -> NDArray[np.float32]:
        crop = self._crop
        return planes[..., crop.y : crop.y + crop.side, crop.x : crop.x + crop.side]


def seen_by(preprocess: Preprocess, protocol: str | None) -> Preprocess:
    """What a network wants of an image, for a protocol: for ``"whole"``, a square that is all crop.

    A mean image that does not fit gives way to the mean pixel.
    """
    if protocol != WHOLE or preprocess.size == preprocess.crop:
        return preprocess
    return replace(preprocess, size=preprocess.crop, mean_image=None)


def load_classifier(name: str) -> onnx.ModelProto:
    """A classifier by name or path.

    Raises:
        CamrtError: There is no such file, or it is no ONNX model.
        ConversionError: There is no model of that name, or its weights cannot be had.
    """
    from camrt.loading import is_name, named_classifier

    if is_name(name):
        return named_classifier(name)
    import onnx

    if not Path(name).is_file():
        raise CamrtError("there is no such file, expected an ONNX model or the name of a named model", file=name)
    try:
        return onnx.load(name)
    except Exception as error:  # what protobuf and onnx raise at a broken file has no common base
        raise CamrtError(f"is no ONNX model that can be read ({error})", file=name) from error
