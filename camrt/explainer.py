"""Images in, explanations out: a session over an explainer graph."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from camrt import images, tuning
from camrt.boxes import BOX, BoxTarget, box_targets, is_box
from camrt.classes import class_number
from camrt.errors import CamrtError, CamrtWarning
from camrt.explanation import Explanation
from camrt.graph.methods import BLACK_BOX, OF_DETECTORS
from camrt.graph.targets import SEGMENT, of_segment
from camrt.loading import Request, explainer_graph
from converters import metadata

if TYPE_CHECKING:
    import onnx

    from camrt.blackbox.detector_session import DetectorBlackBox
    from camrt.blackbox.session import BlackBox
    from camrt.engines.engine import Providers
    from camrt.images import ImageLike, Loaded
    from camrt.preprocess import Preprocess
    from camrt.session import Session
    from camrt.tuning import AutoSession

    AnySession: TypeAlias = Session | AutoSession | BlackBox | DetectorBlackBox

_INPUT, _TARGET, _OUTPUTS = "image", "target", ("scores", "classes", "heatmaps")
_DETECTIONS = "detections"  # an output of detectors' explainers, which have the input BOX as well
_ERRORS = "standard_errors"  # an output of methods that draw random masks
_GIVEN, _ANY = "input", "any"  # what the metadata of graphs say that take classes with each image
_MANY = 1 << 16  # classes that a detector may have, where its outputs do not tell how many there are
BEST = -1  # in place of a class, for a graph of the target "any"
_LATER = "<image>"  # an image that a function could not return
STREAMS = min(4, os.cpu_count() or 1)  # runs at once on a CPU, for many images; with more, activations take memory
_STREAM_BYTES = 1 << 28  # of the activations of an image: what takes more has work enough for all threads
_WAITING_BYTES = 1 << 28  # of decoded images that wait for their turn
_BATCH, _MOST = 4, 64  # images at once on a GPU: where its memory is not known, and at most

OnError = Literal["warn", "raise"] | Callable[[str, CamrtError], object]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A decoded and resized image, as `Explainer.prepare` returns it.

    Attributes:
        source: Its path, or what it was.
        loaded: The image, and the square that the network looks at.
        target: (top,) int64: the classes to explain, where the graph takes them with each image.
        box: (top, 4) float32: where the detections to explain are, of a detector.
    """

    source: str
    loaded: Loaded
    target: NDArray[np.int64] | None = None
    box: NDArray[np.float32] | None = None

    @property
    def nbytes(self) -> int:
        """Return the memory that it holds, in bytes."""
        return self.loaded.image.nbytes + self.loaded.square.nbytes


@dataclass(frozen=True)
class _Failure:
    """An image that cannot be explained, and why."""

    source: str
    error: CamrtError


class Explainer:
    """Explain images: which classes a network sees in them, and where. It is thread-safe.

    Args:
        model: A name, as ``"resnet50"``, ``"zoo:NAME"``, ``"hf:OWNER/REPO"``, ``"torchvision:NAME"`` or ``"timm:NAME"``
            (docs/models.md), which is downloaded or exported if need be; the path of an ONNX model, or a ModelProto: a
            classifier, or an explainer graph, which is told by its metadata.
        method: How the maps are computed, for `camrt.explain_graph`, or a method that only runs the model
            (`camrt.blackbox`: ``"rise"``, ...). If left out, ``"cam"`` where the network ends in global average pooling
            and one linear layer, else ``"gradcam"``. An explainer graph has its own: an argument that says something
            else is an error. The same goes for the arguments below that are `camrt.explain_graph`'s.
        protocol: What the network sees of an image; if left out, what the model says itself (``camrt.protocol`` in its
            metadata), or what suits the method.
        top: How many classes are explained, the best first; if left out, what suits the method (5 of cam), or as many
            as there are.
        providers: Where it runs, as for `camrt.session.Session`: CUDA where ONNX Runtime has it, else the CPU. What is
            asked for and not there is an error.
        features: The tensor that the maps are made of, where it is to be another than the one that is found.
        classifier: The linear layer behind it, likewise.
        target: What is explained in place of the best classes: a class, by number or name, or several; ``"input"``:
            those that come with each image; ``"any"``: those, or else the best; ``"sum"``. Of a network for
            segmentation ``"segment:CLASS"``, or ``"segment"`` for the largest ones. Of a detector ``"box:best"``,
            ``"box:2"`` (the second best), ``"box:LEFT,TOP,RIGHT,BOTTOM"`` in pixels of the image, each also with
            ``":CLASS"``; or several of them.
        layer: The features that the maps are made of; one, or several.
        scores: The tensor that is explained, where it is not the last output.
        settings: The settings of the method.
        smooth: How the maps are smoothed: ``"augment"``, the mean over mirrored and scaled variants of the image;
            ``"eigen"``, the first principal component; or both.
        background: Of ``"expected-gradients"``, the images that each image is compared with, as for a call.
        preprocess: How the network wants its images, where the model does not say it.
        labels: The names of the classes, where the model does not say them.
        weights: The weights of a named model, in place of the cache and the download.
        threads: How many threads compute on the CPU.
        streams: How many runs `map` has under way at once on ONNX Runtime's CPU provider, each with its share of the
            threads. With a small network two runs of one thread are faster than one of two, and a single image takes
            longer. Elsewhere there is one.
        max_side: The longer side in pixels of the image that an explanation keeps: overlays, maps and pictures are made
            at that size, and memory follows it. None for the image as it is. Boxes are in its pixels either way.
        max_pixels: The largest height times width of an image file that is decoded.
        precision: What it computes in, as for `camrt.session.Session`; by default ``"fp32"``, which is exact. Or
            ``"auto"``: the fastest way whose maps correlate with fp32 at 0.999 or more on the first images
            (`camrt.tuning.AutoSession`).
        detections: How a detector says what it finds, where the model does not tell (docs/detectors.md).

    Raises:
        CamrtError: The model, or an argument, is not what is expected; ONNX Runtime or the provider is not there.
        converters.ConversionError: There is no model of that name, or its weights cannot be had.

    Attributes:
        name: What the model calls itself; "" if it does not.
        method: How the maps are computed.
        protocol: What the network sees of an image.
        top: How many classes are explained.
        target: What is explained: ``"top"``, ``"input"``, ``"any"``, ``"sum"``, or the numbers of classes; of a
            detector the boxes, where an image comes without one.
        explained: ``"segment"``, ``"box"``, or ``""`` for classes of whole images.
        size: The side in pixels of the square that images are resized to; the heatmaps' too.
        labels: The names of all classes, or None.
        batch: How many images `map` gives the session at once by default: 1 on a CPU; on a GPU as many as half of its
            free memory holds, at most 64.
        streams: How many runs `map` has under way at once.

    Example:
        >>> explainer = camrt.Explainer("googlenetCAM")  # doctest: +SKIP
        >>> explainer("img1.jpg").labels[0]  # doctest: +SKIP
        'cup'
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | onnx.ModelProto,
        method: str | None = None,
        protocol: str | None = None,
        top: int | None = None,
        providers: Providers | None = None,
        *,
        features: str | None = None,
        classifier: str | None = None,
        target: int | str | Sequence[int | str] | None = None,
        layer: str | Sequence[str] | None = None,
        scores: str | None = None,
        settings: Mapping[str, Any] | None = None,
        smooth: str | Sequence[str] | None = None,
        background: Sequence[ImageLike] | None = None,
        preprocess: Preprocess | str | None = None,
        labels: Sequence[str] | None = None,
        weights: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        streams: int = 1,
        max_side: int | None = None,
        max_pixels: int = images.MAX_PIXELS,
        precision: str | None = None,
        detections: str | None = None,
    ) -> None:
        if streams < 1:
            raise CamrtError(f"found {streams} streams, expected at least 1")
        request = Request(
            method, protocol, top, features, classifier, preprocess, target, layer, scores, settings, labels,
            None if weights is None else Path(weights), smooth, background, detections,
        )  # fmt: skip
        self._session, self.batch, self.streams = _started(model, request, providers, precision, threads, streams)
        file = os.fspath(model) if isinstance(model, (str, os.PathLike)) else None
        try:
            properties = _properties(self._session)
            if method not in (*BLACK_BOX, *OF_DETECTORS):  # which were made as requested
                request.compare(properties)
            self.method: str = properties["method"]
            self.protocol: str = properties["protocol"]
            self.top: int = properties["top"]
            self.size: int = properties["size"]
            self._stated_precision: str | None = properties.get("precision")
            self._classes: int | None = _class_count(self._session, properties)
            self.labels = _labels(self._session, labels, self._classes)
            self.target: str | list[int] | list[str] = properties.get("target", "top")
            self.explained: str = properties.get("explained", "")
            self._box_target: Any = self.target  # of a detector: what is explained where an image comes without a box
            self._target = self._default_target(target)
        except CamrtError as error:
            raise (error.in_file(file) if file else error) from error.__cause__
        self.name = self._session.metadata.get(metadata.NAME, "")
        self._max_side, self._max_pixels = max_side, max_pixels

    @property
    def provider(self) -> str:
        """Return the provider that runs the graph, by the engine's name for it."""
        return self._session.provider

    @property
    def precision(self) -> str:
        """Return what the graph is computed in.

        ``"int8"`` of a graph whose network is quantized; of ``"auto"``, what was chosen once an image was explained.
        """
        return self._stated_precision or self._session.precision

    @property
    def session(self) -> AnySession:
        """Return the session that runs the graph, for arrays that are the graph's inputs already."""
        return self._session

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        return f"Explainer({name}{self.method}, {self.protocol}, top {self.top}, on {self.provider}, {self.precision})"

    def __call__(self, image: ImageLike, target: int | str | Sequence[int | str] | None = None) -> Explanation:
        """Explain one image.

        Args:
            image: A path, the bytes of a file, a PIL image, or RGB uint8 (H, W, 3). See `camrt.images` for what becomes
                of gray, palettes, alpha, 16 bits, CMYK and orientation.
            target: What is explained: a class by number or name, or as many as ``top`` says. For an explainer that was
                made with ``target="input"``, or with ``"any"``, where the best classes take the places that are left.

        Raises:
            CamrtError: The image cannot be read, there is no such class, or ONNX Runtime fails.
        """
        return self._explain([self.prepare(image, target)])[0]

    def prepare(self, image: ImageLike, target: int | str | Sequence[int | str] | None = None) -> Prepared:
        """Decode an image and resize it for the network: what comes before the session, in any thread.

        `explain_prepared` does the rest. A server, for example, prepares each image in the thread of its request, and
        explains those that wait in one batch. `map` does both.

        Args:
            image: As for a call.
            target: As for a call.

        Raises:
            CamrtError: The image cannot be read, or there is no such class.
        """
        boxes = self._boxes(target) if self.explained == BOX else None
        asked = self._asked(target) if boxes is None else self._classes_of(boxes)
        loaded = images.load(image, self.size, max_side=self._max_side, max_pixels=self._max_pixels)
        given = None if boxes is None else np.stack([one.shares(loaded.size) for one in boxes])
        return Prepared(images.name_of(image), loaded, asked, given)

    def explain_prepared(self, prepared: Sequence[Prepared]) -> list[Explanation | CamrtError]:
        """Explain a batch of prepared images in one run of the session.

        If the run fails, the images are explained one by one, so that one bad image does not stop the others.

        Args:
            prepared: Images that this explainer prepared.

        Returns:
            For each image, in order, its explanation or the error that names it.
        """
        try:
            return [*self._explain(prepared)]
        except CamrtError as error:
            if len(prepared) == 1:
                return [error]
        return [result for one in prepared for result in self.explain_prepared([one])]

    def map(
        self,
        images: Iterable[ImageLike | Callable[[], ImageLike]],
        *,
        targets: Iterable[int | str | Sequence[int | str]] | None = None,
        batch: int | None = None,
        workers: int | None = None,
        on_error: OnError = "warn",
    ) -> Iterator[Explanation]:
        """Explain many images, in their order, one at a time.

        Images are decoded in threads, a few ahead; the session computes while the caller looks at the results before.
        What waits is bounded: a batch more than there are streams, and 256 MiB of decoded images.

        Args:
            images: As for a call, or functions that return one, which are called in the threads that decode: to read
                from a network, for example. Asked for in the caller's thread, a few ahead of the results.
            targets: What is explained of each, as for a call.
            batch: How many images the session gets at once: as many as `batch` says, if left out.
            workers: How many threads decode: as many as there are processors, at most 8, if left out.
            on_error: What to do about an image that cannot be explained. ``"warn"``: leave it out, with a CamrtWarning.
                ``"raise"``: raise its CamrtError. A function: leave it out, and call the function with its name and its
                CamrtError (in the caller's thread, when its turn comes).

        Returns:
            An iterator of an `Explanation` for each image that can be explained.

        Raises:
            CamrtError: At once, for an argument; when its turn comes, for an image (``on_error="raise"``).
        """
        batch = self.batch if batch is None else batch
        workers = min(8, os.cpu_count() or 1) if workers is None else workers
        if batch < 1 or workers < 1:
            raise CamrtError(f"found batch {batch} and workers {workers}, expected at least 1 of each")
        if on_error not in ("warn", "raise") and not callable(on_error):
            raise CamrtError(f"found on_error={on_error!r}, expected 'warn', 'raise' or a function")
        if isinstance(images, (str, bytes, os.PathLike)):
            raise CamrtError(f"found {str(images)[:80]!r} as images, expected several: a list of paths")
        if targets is None and self.explained != BOX:
            self._asked(None)
        return self._mapped(_paired(images, targets), batch, workers, on_error)

    # ------------------------------------------------------------------------------------------------------ the images

    def _default_target(self, target: Any) -> NDArray[np.int64] | None:
        """Return the classes that were asked for all images, where the graph takes classes with each image."""
        target = self._of_graph(target)
        if self.explained == BOX:
            self._box_target = self.target if target is None else target
            self._classes_of(self._boxes(None))
            return None
        if target is None or target == self.target:
            return None
        if self.target in (_GIVEN, _ANY) and target not in (_GIVEN, _ANY, "sum"):
            return self._numbers(target)
        if target in (_GIVEN, _ANY, "sum") or self._numbers(target).tolist() != self.target:
            raise CamrtError(
                f"found an explainer graph of the target {self.target!r}, expected {target!r}. Make it anew from the "
                "classifier: camrt export"
            )
        return None

    def _of_graph(self, target: Any) -> Any:
        """Return a target without what the graph does anyway: of ``"segment:dog"``, the class."""
        if (self.explained == BOX) != is_box(target) and target is not None:
            raise CamrtError(
                f"found the target {target!r} and an explainer of {'detections' if self.explained else 'classes'}, "
                f"expected {'a box, as box:best' if self.explained else 'a class'}. Make it anew from the network: "
                "camrt export"
            )
        is_segment, inner = of_segment(target)
        if is_segment and self.explained != SEGMENT:
            raise CamrtError(
                f"found the target {target!r} and an explainer of classes of whole images, expected one that was made "
                "with it. Make it anew from the network: camrt export --target segment:CLASS"
            )
        return inner

    def _boxes(self, target: Any) -> list[BoxTarget]:
        """Return the detections that an image is explained for."""
        asked = self._of_graph(target)
        return box_targets(self._box_target if asked is None else asked, self.top)

    def _classes_of(self, boxes: Sequence[BoxTarget]) -> NDArray[np.int64]:
        """Return the classes that detections must have: -1 for any."""
        numbers = [class_number(one.label, self.labels, self._classes or _MANY) if one.label else -1 for one in boxes]
        return np.array(numbers, np.int64)

    def _asked(self, target: Any) -> NDArray[np.int64] | None:
        """Return the classes that an image is explained for, where the graph takes them."""
        target = self._of_graph(target)
        if self.target in (_GIVEN, _ANY):
            if target is None and self._target is None:
                if self.target == _ANY:
                    return np.full(self.top, BEST, np.int64)
                raise CamrtError("found no target, expected a class: the explainer takes one with each image (target=)")
            return self._target if target is None else self._numbers(target)
        if target is not None:
            raise CamrtError(
                f"found the target {target!r}, expected none: the explainer was made for {self.target!r}. Make one "
                "with target='input'"
            )
        return None

    def _numbers(self, target: Any) -> NDArray[np.int64]:
        classes = self._session.outputs["scores"][1]
        asked = [target] if isinstance(target, str) or np.ndim(target) == 0 else list(target)
        numbers = [class_number(each, self.labels, classes if isinstance(classes, int) else 1) for each in asked]
        if self.target == _ANY:  # the best classes in the places that are left
            numbers += [BEST] * (self.top - len(numbers))
        if len(numbers) != self.top:
            raise CamrtError(f"found {len(numbers)} targets, expected {self.top}: the explainer explains as many")
        return np.array(numbers, np.int64)

    def _attempt(self, image: ImageLike | Callable[[], ImageLike], target: Any) -> Prepared | _Failure:
        name = _LATER if callable(image) else images.name_of(image)
        try:
            return self.prepare(image() if callable(image) else image, target)
        except Exception as error:  # whatever it is, it is about this image
            return _Failure(name, of_image(error, name))

    def _explain(self, prepared: Sequence[Prepared]) -> list[Explanation]:
        if not prepared:
            return []
        try:
            feeds: dict[str, NDArray[Any]] = {_INPUT: np.stack([one.loaded.square for one in prepared])}
            if self.target in (_GIVEN, _ANY) or self.explained == BOX:
                feeds[_TARGET] = np.stack([one.target for one in prepared if one.target is not None])
            if self.explained == BOX:
                feeds[BOX] = np.stack([one.box for one in prepared if one.box is not None])
            found = self._session.run(feeds)
        except CamrtError as error:
            raise (error.in_file(prepared[0].source) if len(prepared) == 1 else error) from error.__cause__
        if self.explained == BOX:
            return [self._detected(one, {name: found[name][n] for name in found}) for n, one in enumerate(prepared)]
        scores, classes, heatmaps = (found[name] for name in _OUTPUTS)
        # Copies, so that a result that is kept does not hold on to the rest of its batch.
        own = np.asarray if len(prepared) == 1 else np.copy
        return [
            Explanation(
                image=one.loaded.image,
                source=one.source,
                original_size=one.loaded.size,
                classes=own(classes[n]),
                scores=scores[n, classes[n]],  # of a sum there is one, and it is class 0
                labels=tuple(str(k) if self.labels is None else self.labels[k] for k in classes[n].tolist()),
                heatmaps=own(heatmaps[n]),
                standard_errors=own(found[_ERRORS][n]) if _ERRORS in found else None,
                all_scores=own(scores[n]),
                model=self.name,
                method=self.method,
                protocol=self.protocol,
                provider=self.provider,
                precision=self.precision,
            )
            for n, one in enumerate(prepared)
        ]

    def _detected(self, one: Prepared, found: Mapping[str, NDArray[Any]]) -> Explanation:
        """Return the explanation of an image's detections; ranks without one are left out."""
        boxes, scores = found[_DETECTIONS], found["scores"]
        height, width = one.loaded.size
        assert one.box is not None
        there = np.flatnonzero(scores > 0)
        for place, asked in enumerate(one.box):
            has_area = (asked[2:] > asked[:2]).all()
            corners = np.minimum(asked[2:], boxes[place][2:]) - np.maximum(asked[:2], boxes[place][:2])
            if (has_area and not (corners > 0).all()) or (asked[0] > 0 and not has_area and place not in there):
                wanted = "that overlaps the box" if has_area else f"of rank {asked[0]:.0f}"
                raise CamrtError(
                    f"found no detection {wanted}; the target box:best explains the best one", file=one.source
                )
        if not len(there):
            raise CamrtError("found no detection in it, expected one at least", file=one.source)
        numbers = found["classes"][there]
        return Explanation(
            image=one.loaded.image,
            source=one.source,
            original_size=one.loaded.size,
            classes=numbers,
            scores=scores[there],
            labels=tuple(str(k) if self.labels is None else self.labels[k] for k in numbers.tolist()),
            heatmaps=found["heatmaps"][there],
            standard_errors=found[_ERRORS][there] if _ERRORS in found else None,
            all_scores=scores[there],
            detections=boxes[there] * np.array([width, height, width, height], np.float32),
            model=self.name,
            method=self.method,
            protocol=self.protocol,
            provider=self.provider,
            precision=self.precision,
        )

    def _mapped(
        self, source: Iterator[tuple[Any, Any]], batch: int, workers: int, on_error: OnError
    ) -> Iterator[Explanation]:
        with _pool(workers, "camrt-decode") as decoding, _pool(self.streams, "camrt-session") as computing:
            decoded = self._ahead(source, decoding, depth=batch + workers)
            under_way: deque[tuple[list[Prepared | _Failure], Future[list[Explanation | CamrtError]]]] = deque()
            is_over = False
            while under_way or not is_over:
                while not is_over and len(under_way) <= self.streams:
                    entries = _next_batch(decoded, max(batch, self._session.first_batch))
                    is_over = not entries
                    if entries:
                        good = [entry for entry in entries if isinstance(entry, Prepared)]
                        under_way.append((entries, computing.submit(self.explain_prepared, good)))
                if under_way:
                    entries, result = under_way.popleft()
                    explained = iter(result.result())
                    for entry in entries:
                        outcome = next(explained) if isinstance(entry, Prepared) else entry.error
                        if isinstance(outcome, CamrtError):
                            _report(entry.source, outcome, on_error)
                        else:
                            yield outcome

    def _ahead(
        self, source: Iterator[tuple[Any, Any]], pool: ThreadPoolExecutor, depth: int
    ) -> Iterator[Prepared | _Failure]:
        """Prepare images in threads, in order, at most ``depth`` and some bytes ahead."""
        waiting: deque[Future[Prepared | _Failure]] = deque()
        is_over = False
        while waiting or not is_over:
            while not is_over and (not waiting or (len(waiting) < depth and _bytes(waiting) < _WAITING_BYTES)):
                try:
                    waiting.append(pool.submit(self._attempt, *next(source)))
                except StopIteration:
                    is_over = True
            if waiting:
                yield waiting.popleft().result()


def _paired(
    images: Iterable[Any], targets: Iterable[int | str | Sequence[int | str]] | None
) -> Iterator[tuple[Any, Any]]:
    """Each image with what is asked of it."""
    if targets is None:
        yield from ((image, None) for image in images)
        return
    wanted = iter(targets)
    over = object()
    for image in images:
        target = next(wanted, over)
        if target is over:
            raise CamrtError("found fewer targets than images, expected one for each")
        yield image, target
    if next(wanted, over) is not over:
        raise CamrtError("found more targets than images, expected one for each")


def of_image(error: Exception, source: str) -> CamrtError:
    """Return what happened to an image as an error that names it.

    Args:
        error: What was raised while the image was read, explained, drawn or written.
        source: What the image is called.
    """
    if isinstance(error, CamrtError):
        return error.in_file(source)
    if isinstance(error, MemoryError):
        return CamrtError("there is not enough memory for it", file=source)
    if isinstance(error, OSError):
        return CamrtError(f"cannot be explained: {error.strerror or error}", file=source)
    return CamrtError(f"cannot be explained ({type(error).__name__}: {error})", file=source)


@contextlib.contextmanager
def _pool(workers: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Threads that are gone when the block is left, with what they had not begun."""
    pool = ThreadPoolExecutor(workers, name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _started(
    model: str | os.PathLike[str] | onnx.ModelProto, request: Request, providers: Providers | None,
    precision: str | None, threads: int | None, streams: int,
) -> tuple[AnySession, int, int]:  # fmt: skip
    """Start the session of a method; tell how many images it gets at once, and how many runs are under way at once."""
    if request.method in BLACK_BOX:  # which give the session many masks at once
        from camrt.blackbox.session import BlackBox

        return BlackBox(model, request, providers=providers, precision=precision, threads=threads), 1, 1
    if request.method in OF_DETECTORS:
        from camrt.blackbox.detector_session import DetectorBlackBox

        return DetectorBlackBox(model, request, providers=providers, precision=precision, threads=threads), 1, 1
    graph = explainer_graph(model, request)
    if streams > 1 and not (_is_cpu(providers, precision) and _bytes_per_image(graph) <= _STREAM_BYTES):
        streams = 1
    share = threads if streams == 1 else max(1, (threads or os.cpu_count() or 1) // streams)
    session = tuning.session(graph, providers=providers, precision=precision, threads=share)
    return session, _default_batch(graph, session), streams


def _is_cpu(providers: Providers | None, precision: str | None) -> bool:
    """Return whether it is ONNX Runtime's CPU provider that will run the model."""
    from camrt.engines.engine import FP32
    from camrt.engines.onnxruntime import CPU, has_cuda

    wanted = not has_cuda() if providers is None else providers in ("cpu", CPU, ["cpu"], [CPU])
    return wanted and precision in (None, FP32)


def _default_batch(graph: onnx.ModelProto | Path, session: AnySession) -> int:
    """Return how many images the session gets at once: on a GPU, what half of its free memory holds."""
    if session.device is None:
        return 1
    from camrt.engines.cuda import free_memory

    free, each = free_memory(session.device), _bytes_per_image(graph)
    if not free or not math.isfinite(each):
        return _BATCH
    fitting = max(1, min(_MOST, int(free // 2 // each)))
    return int(2 ** (fitting.bit_length() - 1))  # a power of two: kernels like them


def _bytes_per_image(graph: onnx.ModelProto | Path) -> float:
    """Return the memory of the activations of an image; infinity where it is not known."""
    import onnx

    from camrt.graph.memory import bytes_per_image

    model = graph if isinstance(graph, onnx.ModelProto) else onnx.load(graph, load_external_data=False)
    return bytes_per_image(model) or math.inf


def _next_batch(decoded: Iterator[Prepared | _Failure], batch: int) -> list[Prepared | _Failure]:
    """Return the next images: ``batch`` good ones, with the bad ones between them."""
    entries: list[Prepared | _Failure] = []
    good = 0
    for entry in decoded:
        entries.append(entry)
        good += isinstance(entry, Prepared)
        # Many bad ones in a row are reported before a good one turns up.
        if good == batch or len(entries) >= 16 * batch:
            break
    return entries


def _bytes(waiting: Iterable[Future[Prepared | _Failure]]) -> int:
    """Of the images that are decoded already."""
    results = (one.result() for one in waiting if one.done() and one.exception() is None)
    return sum(one.nbytes for one in results if isinstance(one, Prepared))


def _report(source: str, error: CamrtError, on_error: OnError) -> None:
    if on_error == "raise":
        raise error
    if on_error == "warn":
        warnings.warn(f"left out: {error}", CamrtWarning, stacklevel=3)
    elif callable(on_error):
        on_error(source, error)


# ----------------------------------------------------------------------------------------------------------- the model


def _properties(session: AnySession) -> dict[str, Any]:
    """Read and check the metadata of an explainer graph."""
    anew = "Make the explainer anew: camrt export"
    if set(session.inputs) - {_TARGET, BOX} != {_INPUT} or not set(_OUTPUTS) <= set(session.outputs):
        raise CamrtError(
            f"found the inputs {list(session.inputs)} and outputs {list(session.outputs)}, expected ['{_INPUT}'] and "
            f"{list(_OUTPUTS)}. {anew}"
        )
    try:
        properties = metadata.explainer_of(session.metadata)
        if properties is None:
            raise ValueError("it is missing")
    except ValueError as error:
        text = session.metadata.get(metadata.EXPLAINER, "")
        raise CamrtError(
            f"found the metadata {metadata.EXPLAINER} {text[:200]!r}, which cannot be used ({error}). {anew}"
        ) from None
    shape, size = session.inputs[_INPUT], properties["size"]
    if shape[1:] != (size, size, 3):
        raise CamrtError(
            f"found the input of shape {shape}, expected (N, {size}, {size}, 3) as its metadata say. {anew}"
        )
    return properties


def _class_count(session: AnySession, properties: Mapping[str, Any]) -> int | None:
    """Return the number of classes; None where a detector does not tell."""
    found = properties.get("classes") if properties.get("explained") == BOX else session.outputs["scores"][1]
    return found if isinstance(found, int) else None


def _labels(session: AnySession, given: Sequence[str] | None, classes: int | None) -> tuple[str, ...] | None:
    """Return the names of all classes: those that were given, else the model's."""
    if given is not None:
        labels, found = tuple(given), "labels"
    else:
        try:
            named = metadata.labels_of(session.metadata)
        except ValueError as error:
            text = session.metadata[metadata.LABELS]
            raise CamrtError(
                f"found the metadata {metadata.LABELS} {text[:80]!r}, expected a JSON list of names"
            ) from error
        if named is None:
            return None
        labels, found = tuple(named), f"names in the metadata {metadata.LABELS}"
    if isinstance(classes, int) and len(labels) != classes:
        raise CamrtError(f"found {len(labels)} {found}, expected one for each of the {classes} classes")
    return labels
