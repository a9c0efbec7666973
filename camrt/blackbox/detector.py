"""A detector as a function from images to detections, whatever its outputs are."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from camrt import tuning
from camrt.blackbox.drise import Detections
from camrt.boxes import MOST, BoxTarget
from camrt.errors import CamrtError
from camrt.graph.batch import with_free_batch
from camrt.graph.detections import OVERLAP, layout_of, sized, with_candidates
from camrt.graph.explain import image_input
from camrt.graph.inputs import of_side, with_image_input
from camrt.graph.opening import open_model
from camrt.graph.view import GraphView, labels_of, shape_of
from camrt.preprocess import WHOLE, Preprocess, crops_of, network_input, preprocess_of
from converters import metadata

if TYPE_CHECKING:
    from camrt.engines.engine import Providers

_COMPARED = 300  # candidates of an image that are compared with a target: the surest
_MOST_CLASSES = 1000  # of detections behind suppression, whose outputs do not tell how many there are
_CAFFE, _TOP_DOWN, _TORCHVISION = "DetectionOutput", "rows", "lists"  # forms of detections behind suppression


class Detector:
    """Find objects in images by a network that ONNX Runtime runs: before non-maximum suppression, or behind it.

    Args:
        model: The network: one image input (N, 3, h, w) float32.
        layout: How it says what it finds, as for `camrt.graph.detections.layout_of`. Beside those forms, detections
            behind non-maximum suppression are known by their shapes: boxes (n, 4), labels and scores (n,), as of
            torchvision; (1, 1, n, 7), as of Caffe's DetectionOutput; (N, n, 6), as of Ultralytics.
        labels: The names of the classes, where the model does not say them.
        preprocess: What the network expects of an image; by default, what the model's metadata state.
        providers: Where the network runs, as for `camrt.session.Session`.
        precision: What it computes in, likewise.
        threads: How many threads compute on the CPU.

    Raises:
        CamrtError: The outputs are of no known form, the model cannot be loaded, or its preprocessing is unknown.

    Attributes:
        classes: The number of classes; None where the outputs do not tell.
        labels: The names of the classes, or None.
        size: The side in pixels of the images.
        wanted: What the network expects of an image.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        layout: str | None = None,
        *,
        labels: Sequence[str] | None = None,
        preprocess: Preprocess | str | None = None,
        providers: Providers | None = None,
        precision: str | None = None,
        threads: int | None = None,
    ) -> None:
        properties = metadata.of_model(model)
        if metadata.EXPLAINER in properties:
            raise CamrtError("found an explainer graph, expected the detector that it was made of: it is run alone")
        opened = open_model(model)
        self.wanted = of_side(preprocess_of(preprocess, properties), preprocess, opened).seeing(WHOLE)
        self.size = self.wanted.size
        view = with_image_input(opened, self.wanted)
        self._input, side = image_input(view, self.wanted, WHOLE)
        self._crop = crops_of("center", self.size, side)[0]
        self.labels = labels_of(properties) if labels is None else list(labels)
        self._form, self._outputs, network = self._read(sized(view, side), layout, side)
        frozen = shape_of(view.inputs[0])[0]
        self._batch = None if self._is_free else frozen if isinstance(frozen, int) else 1
        self.session = tuning.session(network, providers=providers, precision=precision, threads=threads)

    def _read(self, view: GraphView, layout: str | None, side: int) -> tuple[str, list[str], onnx.ModelProto]:
        """The form of the outputs, those that are read, and the network."""
        try:
            told = layout_of(view, layout, self.labels, side)
        except CamrtError:
            found = None if layout else _behind_suppression(view)
            if found is None:
                raise
            self.classes: int | None = None if self.labels is None else len(self.labels)
            self._is_free = False  # how many detections each image has is told for one image at a time
            return *found, view.model
        view, candidates = with_candidates(view, told, side)
        self.classes, self._background = candidates.classes, told.background
        outputs = [candidates.boxes, candidates.scores]
        network, self._is_free = view.model, False
        with contextlib.suppress(CamrtError):  # which cannot take several images at once: then as many as it takes
            network, self._is_free = with_free_batch(view, self._input, (3, side, side), candidates.scores), True
        result = onnx.ModelProto()
        result.CopyFrom(network)
        del result.graph.output[:]
        result.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        return "", outputs, result

    def __call__(self, images: NDArray[np.float32]) -> list[Detections]:
        """Find objects.

        Args:
            images: (N, 3, h, w), as returned by `prepare`.

        Returns:
            The detections or candidates in each image, the surest at most 300, in pixels of the network's input.

        Raises:
            CamrtError: The engine fails.
        """
        return [_surest(one) for one in self.all(images)]

    def all(self, images: NDArray[np.float32]) -> list[Detections]:
        """Find objects, and leave out none."""
        step = self._batch or len(images)
        return [one for begin in range(0, len(images), step) for one in self._run(images[begin : begin + step])]

    def target(self, image: NDArray[np.float32], asked: Sequence[BoxTarget], classes: Sequence[int],
               boxes: NDArray[np.float32]) -> tuple[Detections, NDArray[np.float32], NDArray[np.int64]]:  # fmt: skip
        """Choose what is explained, as `camrt.graph.detections.choose` does.

        Args:
            image: (3, h, w).
            asked: Which detections.
            classes: The classes that they must have; -1 for any.
            boxes: (count, 4): where they are, as shares of the image.

        Returns:
            The detections, their scores and their classes.

        Raises:
            CamrtError: There is no such detection.
        """
        (found,) = self.all(image[None])
        scores = np.asarray(found.classes, np.float64)
        if self._form:  # of each detection the class that it has
            scores = scores * np.asarray(found.objectness)[:, None]
        chosen, numbers = [], []
        for place, (one, number, box) in enumerate(zip(asked, classes, boxes, strict=True), 1):
            if number >= scores.shape[1]:
                raise CamrtError(f"found the class {number}, expected 0 to {scores.shape[1] - 1}")
            own = scores.argmax(1) if number < 0 else np.full(len(scores), number)
            rows = scores.max(1, initial=0) if number < 0 else scores[:, number]
            kept = _suppressed(found.boxes, rows, own, is_final=bool(self._form))
            shared = overlaps(box[None] * self.size, found.boxes[kept])[0] if one.corners is not None else None
            rank = (one.rank or place) - 1
            if (shared is not None and not (len(kept) and shared.max() > 0)) or (shared is None and rank >= len(kept)):
                wanted = f"of rank {rank + 1}" if shared is None else "that overlaps the box"
                raise CamrtError(f"found no detection {wanted}; the target box:best explains the best one")
            chosen.append(kept[rank if shared is None else int(shared.argmax())])
            numbers.append(int(own[chosen[-1]]))
        targets = Detections(found.boxes[chosen], found.classes[chosen])
        return targets, scores[chosen, numbers].astype(np.float32), np.array(numbers, np.int64)

    def prepare(self, square: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the network's input from a resized image, (S, S, 3) uint8 RGB: (3, S, S) float32."""
        planes: NDArray[np.float32] = network_input(square[None], [self._crop], self.wanted)[0]
        return planes

    def _run(self, images: NDArray[np.float32]) -> list[Detections]:
        count = len(images)
        if self._batch is not None and count < self._batch:
            images = np.concatenate([images, np.zeros((self._batch - count, *images.shape[1:]), np.float32)])
        found = self.session.run({self._input: np.ascontiguousarray(images, np.float32)})
        arrays = [np.asarray(found[name]) for name in self._outputs]
        if not self._form:
            boxes, classes = (one.astype(np.float64) for one in arrays)
            if self._background >= 0:
                classes[..., self._background] = 0  # two candidates for nothing are not alike
            return [
                Detections(box * self.size, rows, rows.max(1, initial=0))
                for box, rows in zip(boxes[:count], classes[:count], strict=True)
            ]
        if self._form == _TORCHVISION:
            boxes, labels, scores = arrays
            return [self._final(boxes.reshape(-1, 4), labels.reshape(-1), scores.reshape(-1))]
        if self._form == _CAFFE:
            rows = arrays[0].reshape(-1, 7)
            each = [rows[(rows[:, 0] == n) & (rows[:, 1] >= 0)] for n in range(count)]
            return [self._final(one[:, 3:] * self.size, one[:, 1], one[:, 2]) for one in each]
        each = [one[one[:, 4] > 0] for one in arrays[0][:count]]
        return [self._final(one[:, :4], one[:, 5], one[:, 4]) for one in each]

    def _final(self, boxes: Any, labels: Any, scores: Any) -> Detections:
        """Detections behind suppression: of their classes only the best is known."""
        numbers, width = labels.astype(np.int64), self.classes or _MOST_CLASSES
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < width:
            raise CamrtError(
                f"found the classes {numbers.min()} to {numbers.max()} in the output, expected 0 to {width - 1}: give "
                "the names of all classes (labels)"
            )
        classes = np.zeros((len(numbers), width))
        classes[np.arange(len(numbers)), numbers] = 1
        return Detections(boxes.astype(np.float64), classes, scores.astype(np.float64))


def overlaps(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """Compute intersection over union of boxes (n, 4) and (m, 4) by corners: (n, m)."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(axis=2)
    areas = [np.maximum(each[:, 2:] - each[:, :2], 0).prod(axis=1) for each in (one, other)]
    found: NDArray[np.float64] = shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-12)
    return found


def _surest(found: Detections) -> Detections:
    if found.objectness is None or len(found.boxes) <= _COMPARED:
        return found
    best = np.argpartition(-found.objectness, _COMPARED)[:_COMPARED]
    return Detections(found.boxes[best], found.classes[best], found.objectness[best])


def _suppressed(boxes: NDArray[Any], scores: NDArray[Any], classes: NDArray[Any], *, is_final: bool) -> list[int]:
    """The detections that are left, the best first; at most 10 times as many as can be asked for."""
    left, kept = np.argsort(-scores, kind="stable"), list[int]()
    left = left[scores[left] > 0]
    if is_final:
        return [int(one) for one in left]
    while len(left) and len(kept) < 10 * MOST:
        best, left = left[0], left[1:]
        kept.append(int(best))
        is_covered = (overlaps(boxes[[best]], boxes[left])[0] > OVERLAP) & (classes[left] == classes[best])
        left = left[~is_covered]
    return kept


def _behind_suppression(view: GraphView) -> tuple[str, list[str]] | None:
    """Outputs of detections behind non-maximum suppression, by their shapes and names; None for others."""
    shapes = {name: view.shapes.get(name) for name in view.outputs}
    for name, shape in shapes.items():
        if shape is not None and len(shape) == 4 and shape[3] == 7:
            return _CAFFE, [name]
        if shape is not None and len(shape) == 3 and shape[2] == 6:
            return _TOP_DOWN, [name]
    named = [next((name for name in shapes if role in name.lower()), "") for role in ("box", "label", "score")]
    return (_TORCHVISION, named) if all(named) else None
