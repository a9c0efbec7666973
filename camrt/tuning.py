"""Choose where and in what precision a graph runs: by running it on this machine, on the images at hand."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from camrt.engines import onnxruntime, openvino
from camrt.engines.engine import BF16, FP16, FP32, TF32, short, with_options
from camrt.errors import CamrtError
from camrt.session import Session

if TYPE_CHECKING:
    from camrt.engines.engine import Model, Providers

AUTO = "auto"
LEAST_CORRELATION = 0.999  # of each map with its counterpart in float32
FIRST = 4  # images that a choice is made on, where as many are at hand
_TIE = 0.05
_RUNS = 3  # timed, of each
_log = logging.getLogger(__name__)

# What each provider computes in, its default first. What it does not have here is left out, or said (`missing`).
PROVIDERS: Mapping[str, Sequence[str]] = {
    "cpu": (FP32,),
    "openvino": (FP32, BF16, FP16),
    "cuda": (FP32, TF32, FP16),
    "tensorrt": (TF32, FP16, BF16),
}


@dataclass(frozen=True)
class Contender:
    """A way to run a graph: ``--provider`` and ``--precision``."""

    provider: str
    precision: str

    def __str__(self) -> str:
        return f"{self.provider} {self.precision}"


@dataclass(frozen=True)
class Agreement:
    """How alike the answers of two runs are.

    Attributes:
        correlation: The lowest correlation of a map with its counterpart, of the classes that both explain.
        classes: The share of the explained classes that are the same, 0..1.
        is_best_same: Whether the best class of each image is the same, or one whose score in the other run is within
            5 % of its best: between two that are as likely, rounding decides.
    """

    correlation: float
    classes: float
    is_best_same: bool

    @property
    def is_enough(self) -> bool:
        """Return whether one may stand for the other: maps at 0.999 or more, and the same best classes."""
        return self.is_best_same and self.correlation >= LEAST_CORRELATION


def agreement(found: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> Agreement:
    """Compare the outputs of an explainer graph with those of another run of it.

    Args:
        found: ``scores`` (N, K), ``classes`` (N, top) int64 and ``heatmaps`` (N, top, S, S). Of a graph without maps,
            the first output (N, K, ...) is compared, image by image.
        expected: The same of the other run.
    """
    if "heatmaps" not in expected:
        name = next(iter(expected))
        rows = [_correlation(*pair) for pair in zip(found[name], expected[name], strict=True)]
        flat = [each.reshape(len(each), -1) for each in (found[name], expected[name])]
        one, other = (each.argmax(axis=1) for each in flat)
        return Agreement(min(rows), float(np.mean(one == other)), _are_tied(one, other, flat[1]))
    correlations, shared = [], 0
    for n, classes in enumerate(expected["classes"].tolist()):
        places = {number: place for place, number in enumerate(found["classes"][n].tolist())}
        for place, number in enumerate(classes):
            if number in places:
                shared += 1
                correlations.append(_correlation(found["heatmaps"][n, places[number]], expected["heatmaps"][n, place]))
    best = found["classes"][:, 0], expected["classes"][:, 0]
    is_best_same = _are_tied(*best, expected["scores"])
    return Agreement(min(correlations, default=0.0), shared / expected["classes"].size, is_best_same)


def _are_tied(one: NDArray[Any], other: NDArray[Any], scores: NDArray[Any]) -> bool:
    """Return whether in each row the score of one class is within 5 % of the other's."""
    rows = np.arange(len(scores))
    low, high = scores[rows, one], scores[rows, other]
    return bool((low >= high - _TIE * np.abs(high)).all())


def _correlation(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Pearson's correlation; of a map that is constant or not finite 1 where the other is equal, else 0."""
    a, b = (each.ravel().astype(np.float64) for each in (one, other))
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    if not norm > 0 or not np.isfinite(norm):
        return float(np.array_equal(one, other, equal_nan=True))
    return float(a @ b) / norm


def contenders(providers: Providers | None = None) -> list[Contender]:
    """List what may be faster than what runs by default, be it there or not.

    Args:
        providers: What was asked for, as for `camrt.session.Session`; None for all.
    """
    if providers is None:
        names = ["cuda"] if onnxruntime.has_cuda() else ["openvino"]
    else:
        names = [short(with_options(each)[0]) for each in ([providers] if isinstance(providers, str) else providers)][
            :1
        ]
    found = [Contender(name, precision) for name in names for precision in PROVIDERS.get(name, ())]
    running = [
        Contender(name, PROVIDERS[name][0]) for name in names if name in PROVIDERS and (providers or name == "cuda")
    ]
    return [each for each in found if each not in running]


def missing(contender: Contender) -> str:
    """Return why this machine cannot run a contender; "" where nothing speaks against it."""
    if contender.provider == "openvino":
        try:
            openvino.check(contender.precision)
        except CamrtError as error:
            return error.message
    elif contender.provider != "cpu" and not onnxruntime.has(contender.provider):
        return f"ONNX Runtime has no {contender.provider} here"
    return ""


class AutoSession:
    """A session that chooses its engine and its precision when it runs first: it has the interface of `Session`.

    It begins with the default: float32. The first run tries `contenders` on its inputs, and keeps the fastest one that
    agrees with the default (`Agreement.is_enough`). Lines of this module's logger at level INFO say what each did. It
    is thread-safe.

    Args:
        model: As for `camrt.session.Session`; so are the other arguments.
        providers: Where it runs.
        threads: How many threads compute on the CPU.

    Raises:
        CamrtError: As for `camrt.session.Session`.
    """

    def __init__(self, model: Model, *, providers: Providers | None = None, threads: int | None = None) -> None:
        self._session = Session(model, providers=providers, threads=threads)
        self._threads, self._providers = threads, providers
        self._model: Model | None = model  # until the choice is made
        self._choosing = threading.Lock()
        self.inputs, self.outputs, self.metadata = self._session.inputs, self._session.outputs, self._session.metadata

    @property
    def provider(self) -> str:
        """Return the provider; before the first run, that of float32."""
        return self._session.provider

    @property
    def precision(self) -> str:
        """Return the precision; before the first run ``"fp32"``."""
        return self._session.precision

    @property
    def device(self) -> int | None:
        """Return the number of the GPU; None where no CUDA runs it."""
        return self._session.device

    @property
    def first_batch(self) -> int:
        """Return how many images the next run should have at least: a choice is better made on several."""
        return 1 if self._model is None else FIRST

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute all outputs, as `camrt.session.Session.run`."""
        if self._model is not None:
            with self._choosing:
                if self._model is not None:
                    return self._choose(self._model, feeds)
        return self._session.run(feeds)

    def _choose(self, model: Model, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        expected = self._session.run(feeds)  # an error here is one of the feeds: the next run chooses
        images = len(next(iter(feeds.values())))

        def seconds(session: Session) -> float:
            return min(_timed(session, feeds) for _ in range(_RUNS))

        best, outputs = self._session, expected
        exact = fastest = seconds(self._session)
        for contender in self._present():
            try:
                session = Session(
                    model, providers=self._providers or contender.provider, precision=contender.precision,
                    threads=self._threads,
                )  # fmt: skip
                found = session.run(feeds)
            except CamrtError as error:
                _log.info("precision auto: not %s: %s", contender, error)
                continue
            agrees, took = agreement(found, expected), seconds(session)
            _log.info(
                "precision auto: %s: %.1f ms an image, %.2f times as fast as %s %s; %d images, lowest correlation "
                "%.5f, %s best classes%s",
                contender, 1000 * took / images, exact / took, self._session.provider, self._session.precision, images,
                agrees.correlation, "the same" if agrees.is_best_same else "other",
                "" if agrees.is_enough else ": not taken",
            )  # fmt: skip
            if agrees.is_enough and took < fastest:
                best, outputs, fastest = session, found, took
        _log.info("precision auto: %s %s is taken", best.provider, best.precision)
        self._session, self._model = best, None
        return outputs

    def _present(self) -> list[Contender]:
        """The contenders that are there; why the others are not is said, each reason once."""
        reasons = {each: missing(each) for each in contenders(self._providers)}
        for reason in dict.fromkeys(filter(None, reasons.values())):
            left = ", ".join(str(each) for each in reasons if reasons[each] == reason)
            _log.info("precision auto: not %s: %s", left, reason)
        return [each for each, reason in reasons.items() if not reason]


def _timed(session: Session, feeds: Mapping[str, NDArray[Any]]) -> float:
    began = time.perf_counter()
    session.run(feeds)
    return time.perf_counter() - began


def session(
    model: Model, *, providers: Providers | None = None, precision: str | None = None, threads: int | None = None
) -> Session | AutoSession:
    """Start a session: `AutoSession` where the precision is ``"auto"``, else `camrt.session.Session`."""
    if precision == AUTO:
        return AutoSession(model, providers=providers, threads=threads)
    return Session(model, providers=providers, precision=precision, threads=threads)
