"""Streams of batches, one for each data layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from camrt.train.data.feed import Feed

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class LoadedBatch:
    """A batch on its way to the device.

    Attributes:
        arrays: Top -> its values. Images may be uint8 until `Stream.finish`.
        unusable: The names of images that cannot be used, with the reasons.
    """

    arrays: Mapping[str, NDArray[Any]]
    unusable: tuple[tuple[str, str], ...] = ()


class Stream(Protocol):
    """Batches of a data layer. A batch depends only on its position, not on earlier batches.

    Attributes:
        name: The name of the data, for messages.
        classes: The names of the classes; empty if unknown.
        count: The number of items; None if it is infinite.
        largest_label: The largest label; None if it is not known before loading.
        is_cheap: Whether loading an item takes less time than passing it between processes.
        batch_size: The batch size.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def count(self) -> int | None: ...  # noqa: D102
    @property
    def largest_label(self) -> int | None: ...  # noqa: D102
    @property
    def is_cheap(self) -> bool: ...  # noqa: D102
    @property
    def batch_size(self) -> int: ...  # noqa: D102

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tops, batch included.

        Raises:
            CamrtError: No item can be used.
        """

    def load(self, position: int) -> LoadedBatch:
        """Load a batch.

        Args:
            position: The number of its first item, counted from 0 over all epochs.

        Raises:
            CamrtError: An item cannot be read, and there is no replacement for it.
        """

    def finish(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Complete a batch on the device, with the steps that are faster there than on the CPU."""


@dataclass(frozen=True, eq=False)
class ImageStream:
    """Images and labels of a `Feed`.

    Attributes:
        image: The blob of the images.
        label: The blob of the labels; None if the network has none.
        feed: The images and labels.
        batch_size: The batch size.
    """

    image: str
    label: str | None
    feed: Feed
    batch_size: int

    @property
    def name(self) -> str:
        """See `Stream`."""
        return self.feed.source.name

    @property
    def classes(self) -> tuple[str, ...]:
        """See `Stream`."""
        return self.feed.source.classes

    @property
    def count(self) -> int | None:
        """See `Stream`."""
        return self.feed.source.count

    @property
    def largest_label(self) -> int | None:
        """See `Stream`."""
        return self.feed.source.largest_label

    @property
    def is_cheap(self) -> bool:
        """See `Stream`."""
        return self.feed.source.is_cheap

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Stream`."""
        shapes: dict[str, tuple[int, ...]] = {self.image: (self.batch_size, *self.feed.shape())}
        return shapes | ({self.label: (self.batch_size,)} if self.label else {})

    def load(self, position: int) -> LoadedBatch:
        """See `Stream`."""
        batch = self.feed.batch(position, self.batch_size)
        labels: dict[str, NDArray[Any]] = {self.label: batch.labels} if self.label else {}
        return LoadedBatch({self.image: batch.images} | labels, batch.unusable)

    def finish(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Stream`. Subtracts the mean of each channel, and scales the images."""
        return inputs | {self.image: self.feed.transform.finish(inputs[self.image].float())}


def random_generator(seed: int, position: int) -> np.random.Generator:
    """Return a random number generator that depends only on a seed and a position."""
    return np.random.Generator(np.random.Philox(key=seed, counter=position))


def derived_seed(*numbers: int) -> int:
    """Return a seed that is derived from several numbers, 0 to 2^63 - 1."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
