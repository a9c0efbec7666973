"""Batches by number: the same whatever loads them, and in whatever order."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camrt.errors import CamrtError
from camrt.train.data.sources import Source
from camrt.train.data.transform import Transform


@dataclass(frozen=True)
class Order:
    """In which order the images of a source come, epoch after epoch.

    Attributes:
        count: How many there are; None where they never end.
        shuffle: Whether each epoch has a random order of its own.
        seed: Of these orders.
        skip: How many are passed over at the start (Caffe's rand_skip).
    """

    count: int | None
    shuffle: bool = False
    seed: int = 0
    skip: int = 0

    def numbers(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """From positions in training, which count up for ever, to images of the source.

        Args:
            positions: (N,) from 0 on.
        """
        positions = positions + self.skip
        if self.count is None:
            return positions
        epochs, places = np.divmod(positions, self.count)
        if not self.shuffle:
            return places
        numbers = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            numbers[here] = _permutation(self.count, self.seed, int(epoch))[places[here]]
        return numbers


@functools.lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(key=(seed, epoch))).permutation(count)


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Images and labels, ready for the network.

    Attributes:
        images: (N, C, H, W): see `Transform.batch`; `Transform.finish` makes the network's input of it.
        labels: (N,) int64.
        unusable: The images that could not be used, with the reasons.
    """

    images: NDArray[Any]
    labels: NDArray[np.int64]
    unusable: tuple[tuple[str, str], ...] = ()


class Feed:
    """Batches of a source.

    An image that cannot be used is passed over, and the next in the order that can be used takes its place. So what is
    at a position is always the same, whatever was loaded before.

    Args:
        source: The images.
        transform: What becomes of them.
        order: In which order they come.
    """

    def __init__(self, source: Source, transform: Transform, order: Order) -> None:
        self.source, self.transform, self.order = source, transform, order
        self._unusable: dict[int, CamrtError] = {}

    def batch(self, position: int, size: int) -> ImageBatch:
        """The images from a position on.

        Args:
            position: From 0 on, over all epochs.
            size: How many.

        Raises:
            CamrtError: There are no usable images left; images differ in size.
        """
        numbers = self.order.numbers(np.arange(position, position + size, dtype=np.int64))
        found, labels = self.source.read(numbers)
        if isinstance(found, np.ndarray) and self.transform.passes(found[0]):
            return ImageBatch(self.transform.batch(found, position), labels)
        images: list[Any] = list(found)
        labels = labels.copy()
        before = set(self._unusable)
        for slot, number in enumerate(numbers.tolist()):
            images[slot] = self._prepared(images[slot], number)
            if images[slot] is None:
                images[slot], labels[slot] = self._next_usable(position + slot)
        new = [self._unusable[number] for number in self._unusable.keys() - before]
        unusable = tuple(sorted((error.file or self.source.name, error.message) for error in new))
        return ImageBatch(self.transform.batch(images, position), labels, unusable)

    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that `batch` gives.

        Raises:
            CamrtError: No image can be used.
        """
        _, channels, height, width = self.batch(0, 1).images.shape
        return self.transform.channels or channels, height, width

    def _prepared(self, image: Any, number: int) -> Any:
        """The image, or None if it cannot be used."""
        if number in self._unusable:
            return None
        try:
            if isinstance(image, CamrtError):
                raise image
            return self.transform.prepared(image)
        except CamrtError as error:
            name = getattr(self.source, "paths", {number: self.source.name.encode()})[number]
            self._unusable[number] = error.in_file(name.decode(errors="surrogateescape"))
            return None

    def _next_usable(self, position: int) -> tuple[Any, int]:
        for step in range(1, self.source.count or 2):
            numbers = self.order.numbers(np.array([position + step], np.int64))
            if int(numbers[0]) in self._unusable:
                continue
            found, labels = self.source.read(numbers)
            image = self._prepared(found[0], int(numbers[0]))
            if image is not None:
                return image, int(labels[0])
        first = next(iter(self._unusable.values()))
        raise CamrtError(f"found no image that can be used; the first: {first}", file=self.source.name)
