"""The registry of black-box methods: functions of a `Problem`, which return an `Attribution`."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from camrt.errors import CamrtError
from camrt.graph.methods import BLACK_BOX, OF_DETECTORS, check_settings
from converters.registration import Registry

Floats = NDArray[np.float32]
Score = Callable[[Floats], NDArray[Any]]
BATCH = 16  # masked images at once


@dataclass(frozen=True, eq=False)
class Problem:
    """An image, and a function to be explained.

    Attributes:
        image: (C, h, w) float32: the network's input, where 0 is the mean image.
        pixels: (h, w, 3) uint8 RGB: the same part of the image, as people see it.
        score: Images (n, C, h, w) -> (n, count): what is explained, a column for each map. For a detector, it may be
            how well the detections match one of them (D-RISE).
        count: The number of maps.
        batch: How many images the function gets at once.
        progress: Called with how many images were scored, and of how many.
    """

    image: Floats
    pixels: NDArray[np.uint8]
    score: Score
    count: int = 1
    batch: int = BATCH
    progress: Callable[[int, int], object] = field(default=lambda done, total: None)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image and of the maps."""
        height, width = self.image.shape[1:]
        return height, width

    def scored(self, masks: Iterable[Floats], total: int) -> Iterator[tuple[Floats, NDArray[np.float64]]]:
        """Score the image times masks, a batch at a time. No more than a batch of masks is in memory.

        Args:
            masks: (h, w) float32 each: 1 keeps a pixel, 0 sets it to the mean image.
            total: How many there are.

        Yields:
            Masks (n, h, w), and the scores under them (n, count).

        Raises:
            CamrtError: A score is not finite.
        """
        remaining, done = iter(masks), 0
        while some := list(itertools.islice(remaining, self.batch)):
            stack = np.stack(some)
            scores = np.asarray(self.score(self.image * stack[:, None]), np.float64)
            if not np.isfinite(scores).all():
                raise CamrtError(
                    "found scores that are not finite, expected numbers: the model overflows on this image"
                )
            done += len(some)
            self.progress(done, total)
            yield stack, scores


@dataclass(frozen=True, eq=False)
class Attribution:
    """What a method found.

    Attributes:
        maps: (count, h, w) float32.
        standard_errors: Of the same shape: the standard error of each value over the choice of the random masks; None
            where nothing is random.
    """

    maps: Floats
    standard_errors: Floats | None = None


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        name: Its name.
        explain: The function.
        title: Its name in the papers.
        top: How many classes it explains by default.
        sampled: Whether it gives a standard error.
    """

    name: str
    explain: Callable[..., Attribution]
    title: str
    top: int
    sampled: bool

    @property
    def settings(self) -> Mapping[str, Any]:
        """Its settings, with their defaults."""
        parameters = list(inspect.signature(self.explain).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}

    def checked(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Check settings, and fill in the defaults, as `camrt.graph.methods.Method.checked`.

        Raises:
            CamrtError: There is no such setting, or its value is of another type.
        """
        return check_settings(self.name, self.settings, settings)


_methods: Registry[str, Method] = Registry(
    "black-box method",
    [f"camrt.blackbox.{module}" for module in dict.fromkeys([*BLACK_BOX.values(), *OF_DETECTORS.values()])],
    CamrtError,
)
_Explain = TypeVar("_Explain", bound=Callable[..., Attribution])


def black_box(name: str, *, title: str, top: int = 5, sampled: bool = False) -> Callable[[_Explain], _Explain]:
    """Register the decorated function as a method; see `Method` for the arguments.

    It takes a `Problem`, and keyword arguments with defaults (int, float or str), which are what users may set.

    Raises:
        CamrtError: There is one of that name.
    """

    def register(explain: _Explain) -> _Explain:
        _methods.add([name], Method(name, explain, title, top, sampled), explain)
        return explain

    return register


def find(name: str) -> Method:
    """Find a method by its name.

    Raises:
        CamrtError: There is none.
    """
    found = _methods.find(name)
    if found is None:
        raise CamrtError(f"found the method {name!r}, expected one of {', '.join((*BLACK_BOX, *OF_DETECTORS))}")
    return found


def check_range(name: str, value: float, low: float, high: float = np.inf) -> None:
    """Check a setting.

    Raises:
        CamrtError: It is not in low..high.
    """
    if not low <= value <= high:
        expected = f"at least {low}" if high == np.inf else f"{low} to {high}"
        raise CamrtError(f"found {name}={value}, expected {expected}")
