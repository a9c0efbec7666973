"""Batches of images by position, independent of the processes and the order in which they are loaded."""

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
    """The order of the images of a source over all epochs.

    Attributes:
        count: The number of images; None if it is infinite.
        shuffle: Whether each epoch has its own random order.
        seed: The seed of the random orders.
        skip: The number of images to skip at the start (Caffe's rand_skip).
    """

    count: int | None
    shuffle: bool = False
    seed: int = 0
    skip: int = 0

    def numbers(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of the images at positions in training.

        Args:
            positions: (N,), counted from 0 over all epochs.

        Returns:
            (N,), from 0 to ``count`` - 1.
        """
        positions = positions + self.skip
        if self.count is None:
            return positions
        epochs, offsets = np.divmod(positions, self.count)
        if not self.shuffle:
            return offsets
        numbers = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            is_in_epoch = epochs == epoch
            numbers[is_in_epoch] = _permutation(self.count, self.seed, int(epoch))[offsets[is_in_epoch]]
        return numbers


@functools.lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(key=(seed, epoch))).permutation(count)


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """A batch of images and labels.

    Attributes:
        images: (N, C, H, W) from `Transform.batch`. `Transform.finish` converts them to the network's input.
        labels: (N,) int64.
        unusable: The names of images that cannot be used, with the reasons.
    """

    images: NDArray[Any]
    labels: NDArray[np.int64]
    unusable: tuple[tuple[str, str], ...] = ()


class Feed:
    """Batches of a source.

    An image that cannot be used is replaced by the next usable one in the order. The image at a position therefore does
    not depend on the batches that were loaded before.

    Args:
        source: The images.
        transform: The transformation of the images.
        order: The order of the images.
    """

    def __init__(self, source: Source, transform: Transform, order: Order) -> None:
        self.source, self.transform, self.order = source, transform, order
        self._unusable: dict[int, CamrtError] = {}

    def batch(self, position: int, size: int) -> ImageBatch:
        """Load a batch.

        Args:
            position: The position of the first image, counted from 0 over all epochs.
            size: The number of images.

        Raises:
            CamrtError: No image can be used, or the images differ in size.
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
        """Return (C, H, W) of the images of `batch`.

        Raises:
            CamrtError: No image can be used.
        """
        _, channels, height, width = self.batch(0, 1).images.shape
        return self.transform.channels or channels, height, width

    def _prepared(self, image: Any, number: int) -> Any:
        """Return the image, ready for the crop, or None if it cannot be used."""
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
        raise CamrtError(f"found no usable image. The first error is: {first}", file=self.source.name)
