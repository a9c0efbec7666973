"""A network as a function from images to scores, whatever it is made of."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from camrt import tuning
from camrt.errors import CamrtError
from camrt.graph.batch import with_free_batch
from camrt.graph.explain import image_input
from camrt.graph.inputs import with_image_input
from camrt.graph.opening import open_model
from camrt.graph.scores import FLOATS, Scores, find_scores, scores_at
from camrt.graph.view import GraphView, control_flow, labels_of, shape_of
from camrt.preprocess import WHOLE, Preprocess, crops_of, network_input, preprocess_of
from converters import metadata

if TYPE_CHECKING:
    from camrt.engines.engine import Providers


class Scorer:
    """Score images by a network that ONNX Runtime runs: with control flow, recurrent, of a fixed batch.

    It sees an image once, without a mirror image: all of it (``"whole"``, ``"full"``), or the center crop. It can be
    called from several threads at once.

    Args:
        model: The network: one image input (N, 3, h, w) float32, scores (N, K).
        protocol: What the network sees of an image.
        scores: The tensor of scores, which is returned as it is; by default the last output with a row of scores for
            each image, after a Softmax where it has none.
        is_sum: Whether the scores are the sum of the tensor's values; it may then have any shape (N, ...).
        preprocess: What the network expects of an image; by default, what the model's metadata state.
        providers: Where the network runs, as for `camrt.session.Session`.
        precision: What it computes in, likewise.
        threads: How many threads compute on the CPU.

    Raises:
        CamrtError: The model has no scores or cannot be loaded, or its preprocessing is unknown.

    Attributes:
        classes: The number of scores of an image.
        labels: The names of the classes, or None.
        size: The side in pixels of the square that images are resized to.
        wanted: What the network expects of an image.
        scores: The tensor that is explained.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        protocol: str = WHOLE,
        *,
        scores: str | None = None,
        is_sum: bool = False,
        preprocess: Preprocess | str | None = None,
        providers: Providers | None = None,
        precision: str | None = None,
        threads: int | None = None,
    ) -> None:
        properties = metadata.of_model(model)
        if metadata.EXPLAINER in properties:
            raise CamrtError("found an explainer graph, expected the classifier that it was made of: it is run alone")
        self.wanted = preprocess_of(preprocess, properties).seeing(protocol)
        self.size = self.wanted.size
        view = with_image_input(open_model(model), self.wanted)
        self._input, side = image_input(view, self.wanted, protocol)
        self._crop = crops_of("center", self.size, side)[0]
        self._is_sum, self._is_named = is_sum, scores is not None
        found = _scores(view, scores, is_sum=is_sum)
        self._output, self._activation = found.output, found.activation
        network, self._batch = _runnable(view, self._input, (3, side, side), found)
        self.session = tuning.session(network, providers=providers, precision=precision, threads=threads)
        self.labels, self.classes, self.scores = labels_of(properties), found.classes, found.output
        if not self.classes or self._batch is not None:
            self._try()

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the scores: class probabilities, where no tensor was named.

        Args:
            images: (N, 3, h, w), as returned by `prepare`.

        Returns:
            (N, K) float32.

        Raises:
            CamrtError: The engine fails.
        """
        rows: NDArray[np.float32] = np.concatenate([self._run(some) for some in self._batches(images)])
        if self._is_sum:
            rows = rows.sum(axis=1, keepdims=True)
        elif self._is_named:
            pass
        elif self._activation == "LogSoftmax":
            rows = np.exp(rows)
        elif not self._activation:
            rows = np.exp(rows - rows.max(axis=1, keepdims=True))
            rows /= rows.sum(axis=1, keepdims=True)
        return rows

    def prepare(self, square: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the network's input from a resized image.

        Args:
            square: (S, S, 3) uint8 RGB.

        Returns:
            (3, h, w) float32, with mean and scale applied.
        """
        planes: NDArray[np.float32] = network_input(square[None], [self._crop], self.wanted)[0]
        return planes

    def crop(self, planes: NDArray[Any]) -> NDArray[Any]:
        """Cut out the part of an image or map that the network sees.

        Args:
            planes: (..., S, S).

        Returns:
            (..., h, w), a view.
        """
        crop = self._crop
        return planes[..., crop.y : crop.y + crop.side, crop.x : crop.x + crop.side]

    def _batches(self, images: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        if self._batch is None:
            yield images
            return
        for begin in range(0, len(images), self._batch):
            yield images[begin : begin + self._batch]

    def _run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The tensor of scores, a row for each image. A fixed batch is filled with zeros."""
        count = len(images)
        if self._batch is not None and count < self._batch:
            images = np.concatenate([images, np.zeros((self._batch - count, *images.shape[1:]), np.float32)])
        found = self.session.run({self._input: np.ascontiguousarray(images, np.float32)})[self._output]
        if found.shape[:1] != (len(images),):
            raise CamrtError(
                f"found the scores {self._output!r} of shape {found.shape} for {len(images)} images, expected a row "
                "for each image. Name another tensor: --scores"
            )
        rows: NDArray[np.float32] = found[:count].reshape(count, -1).astype(np.float32)
        return rows

    def _try(self) -> None:
        """Run the network once, for what its graph does not tell: how many scores an image has."""
        side = self._crop.side
        rows = self._run(np.zeros((self._batch or 1, 3, side, side), np.float32))
        self.classes = 1 if self._is_sum else rows.shape[1]
        if not self._is_sum and self.classes < 2:
            raise CamrtError(
                f"found one score an image in {self._output!r}, expected several classes. To explain the number "
                "itself, ask for the target 'sum'"
            )


def _scores(view: GraphView, tensor: str | None, *, is_sum: bool) -> Scores:
    """The scores; where control flow hides their shape, of 0 classes."""
    if is_sum and tensor is None:
        raise CamrtError("found the target 'sum' without a tensor, expected one to sum: --scores")
    name = view.outputs[-1] if tensor is None else tensor
    if is_sum and name in view.producers and view.types.get(name, onnx.TensorProto.FLOAT) in FLOATS:
        return Scores(name, name, "", 1)
    try:
        return find_scores(view, tensor)
    except CamrtError:
        shape = view.shapes.get(name)
        is_hidden = shape is None or len(shape) < 2 or None in shape[1:] or any(isinstance(n, str) for n in shape[1:])
        if name not in view.producers or not is_hidden or view.types.get(name) not in (*FLOATS, None):
            raise
        return scores_at(view, name, 0)


def _runnable(
    view: GraphView, image: str, size: tuple[int, int, int], scores: Scores
) -> tuple[onnx.ModelProto, int | None]:
    """The network with its scores as its only output, and how many images it takes at once; None for any number."""
    # With control flow, a branch may be chosen for all images of a batch together: each image then runs alone.
    if scores.classes and not control_flow(view.needed_for([scores.output])):
        with contextlib.suppress(CamrtError):
            return _with_output(with_free_batch(view, image, size, scores.output), scores.output), None
    frozen = shape_of(view.inputs[0])[0]
    return _with_output(view.model, scores.output), frozen if isinstance(frozen, int) and frozen > 0 else 1


def _with_output(model: onnx.ModelProto, tensor: str) -> onnx.ModelProto:
    stated = [output for output in model.graph.output if output.name == tensor]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.output[:]
    result.graph.output.extend(stated or [onnx.ValueInfoProto(name=tensor)])
    return result
