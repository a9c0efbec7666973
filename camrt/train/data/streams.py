"""What one data layer gives, batch after batch, as the network's inputs."""

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
        arrays: Top -> its values. Images may still be uint8: `Stream.finish` completes them.
        unusable: The images that could not be used, with the reasons.
    """

    arrays: Mapping[str, NDArray[Any]]
    unusable: tuple[tuple[str, str], ...] = ()


class Stream(Protocol):
    """Batches of a data layer. A batch depends on its position alone, whatever was loaded before.

    Attributes:
        name: The data, for messages.
        classes: The names of the classes; empty if unknown.
        count: The number of items; None if they never end.
        largest_label: The largest label; None if only loading tells.
        is_cheap: Whether loading an item costs less than passing it from one process to another.
        batch_size: The items of a batch.
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
        """Top -> its shape, batch included.

        Raises:
            CamrtError: No item can be used.
        """

    def load(self, position: int) -> LoadedBatch:
        """The batch that begins at a position.

        Args:
            position: The number of its first item, from 0 on, over all epochs.

        Raises:
            CamrtError: An item cannot be read, and none can take its place.
        """

    def finish(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Complete a batch on the device: what is cheaper there than before the copy."""


@dataclass(frozen=True, eq=False)
class ImageStream:
    """Images and labels of a `Feed`.

    Attributes:
        image: The blob of the images.
        label: The blob of the labels; None if the network has none.
        feed: The images and labels.
        batch_size: The images of a batch.
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
        """See `Stream`: subtract the mean of each channel, and scale."""
        return inputs | {self.image: self.feed.transform.finish(inputs[self.image].float())}


def random_generator(seed: int, position: int) -> np.random.Generator:
    """Random numbers that depend on a seed and a position alone."""
    return np.random.Generator(np.random.Philox(key=seed, counter=position))
