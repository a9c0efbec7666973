"""Caffe's transformation: resize, crop, mirror, subtract the mean, scale (data_transformer.cpp)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from camrt.errors import CamrtError
from converters import transform
from converters.errors import ConversionError

if TYPE_CHECKING:
    from converters.layer import Layer

_TICK = 4  # random numbers per count of Philox


@dataclass(frozen=True, eq=False)
class Transform:
    """The transformation of images to a batch.

    Attributes:
        channels: 1 or 3 to convert images to grayscale or color; None to keep their channels.
        resize: Height and width to which images are resized first (OpenCV's bilinear interpolation, as in Caffe); None
            to keep their size.
        crop: Height and width of the crop; None for the whole image.
        mirror: Whether images are mirrored with probability 1/2, as in Caffe also in the TEST phase.
        is_random: Whether crops have random positions (TRAIN) or are centered (TEST).
        mean: The mean to subtract before scaling: (C, H, W) float32, of the image before the crop, or (C, 1, 1); None
            for none.
        scale: The factor to multiply with.
        seed: The seed of crops and mirroring.
        source: The file of the mean, for messages.
    """

    channels: int | None = None
    resize: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    mirror: bool = False
    is_random: bool = False
    mean: NDArray[np.float32] | None = None
    scale: float = 1.0
    seed: int = 0
    source: str = ""

    @property
    def has_mean_image(self) -> bool:
        """Whether the mean differs from pixel to pixel."""
        return self.mean is not None and self.mean.shape[1:] != (1, 1)

    def passes(self, image: NDArray[Any]) -> bool:
        """Return whether `prepared` returns images like this one unchanged."""
        return self.prepared(image) is image

    def prepared(self, image: NDArray[Any]) -> NDArray[Any]:
        """Resize an image, and convert it to grayscale if required.

        Args:
            image: (H, W, C).

        Returns:
            (H, W, C), ready for the crop. `finish` converts grayscale to color.

        Raises:
            CamrtError: The image is smaller than the crop, or does not fit the mean.
        """
        if self.channels == 1 and image.shape[2] == 3:
            image = np.asarray(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_BGR2GRAY), image.dtype)[:, :, None]
        if self.resize is not None and self.resize != image.shape[:2]:
            height, width = self.resize
            resized = cv2.resize(np.ascontiguousarray(image), (width, height))
            image = np.asarray(resized, image.dtype).reshape(height, width, -1)
        height, width, channels = image.shape
        if self.crop is not None and (height < self.crop[0] or width < self.crop[1]):
            raise CamrtError(
                f"found {width} x {height} pixels, expected at least the crop's {self.crop[1]} x {self.crop[0]}: "
                "resize images (--resize, or new_height and new_width)"
            )
        if self.mean is not None and self.mean.shape[0] not in (1, self.channels or channels):
            raise CamrtError(
                f"found {channels} channel(s) and a mean of {self.mean.shape[0]}, expected the same number"
            )
        if self.has_mean_image and self.mean is not None and self.mean.shape[1:] != (height, width):
            raise CamrtError(
                f"found {width} x {height} pixels, expected those of the mean image {self.source}, "
                f"{self.mean.shape[2]} x {self.mean.shape[1]}: resize images (--resize, or new_height and new_width)"
            )
        return image

    def batch(self, images: NDArray[Any] | Sequence[NDArray[Any]], position: int) -> NDArray[Any]:
        """Crop and mirror images, and subtract a mean image.

        Args:
            images: N images (H, W, C) from `prepared`.
            position: The position of the first image in training. Random numbers depend only on the seed and the
                position of an image.

        Returns:
            (N, C, h, w): float32 after subtracting a mean image, else of the images' dtype. `finish` completes it.

        Raises:
            CamrtError: The crops differ in size.
        """
        is_whole = isinstance(images, np.ndarray) and self.crop in (None, images.shape[1:3])
        if isinstance(images, np.ndarray) and is_whole and not self.mirror and not self.has_mean_image:
            return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        chance = np.random.Generator(np.random.Philox(key=self.seed, counter=position)).random((len(images), _TICK))
        height, width = self.crop or images[0].shape[:2]
        cuts = [self._cut(*each, (height, width)) for each in zip(images, chance, strict=True)]
        if len({cut.shape for cut in cuts}) > 1:
            sizes = " and ".join(sorted({f"{cut.shape[2]} x {cut.shape[1]}" for cut in cuts})[:2])
            raise CamrtError(
                f"found images of {sizes} pixels in one batch, expected one size: resize them (--resize, or new_height "
                "and new_width)"
            )
        return np.stack(cuts)

    def _cut(self, image: NDArray[Any], chance: NDArray[np.float64], size: tuple[int, int]) -> NDArray[Any]:
        """Return the crop of an image, (C, h, w)."""
        (height, width), (down, right, mirrored, _) = size if self.crop else image.shape[:2], chance
        spare_y, spare_x = image.shape[0] - height, image.shape[1] - width
        y, x = spare_y // 2, spare_x // 2
        if self.is_random:
            y, x = int(down * (spare_y + 1)), int(right * (spare_x + 1))
        cut: NDArray[Any] = image[y : y + height, x : x + width].transpose(2, 0, 1)
        if self.has_mean_image and self.mean is not None:
            cut = cut - self.mean[:, y : y + height, x : x + width]
        return cut[:, :, ::-1] if self.mirror and mirrored < 0.5 else cut

    def finish(self, batch: Any) -> Any:
        """Subtract the mean of each channel, scale, and convert grayscale to three channels if required.

        Args:
            batch: (N, C, h, w) float32, an array or a tensor. It may be modified in place.
        """
        if self.mean is not None and not self.has_mean_image:
            batch = batch - (self.mean if isinstance(batch, np.ndarray) else batch.new_tensor(self.mean))
        if self.scale != 1:
            batch *= self.scale
        if self.channels == 3 and batch.shape[1] == 1:
            batch = batch.repeat(3, 1) if isinstance(batch, np.ndarray) else batch.expand(-1, 3, -1, -1)
        return batch

    def with_seed(self, seed: int) -> Transform:
        """Return the same transformation with another seed."""
        return replace(self, seed=seed)


def of_layer(layer: Layer, find: Callable[[str], Path], *, is_random: bool) -> Transform:
    """Return the transformation of a data layer.

    Args:
        layer: A data layer of images, such as Data or ImageData.
        find: Resolves a path of the prototxt.
        is_random: Whether crops have random positions, as in training.

    Raises:
        CamrtError: The layer has both a mean file and mean values, or the file is not a mean image.
    """
    try:
        wants = transform.of_layer(layer)
    except ConversionError as error:
        raise CamrtError(f"layer {layer.name} ({layer.type}): {error.message}") from None
    path = find(wants.mean_file) if wants.mean_file else None
    values = np.array(wants.mean_values, np.float32).reshape(-1, 1, 1)
    return Transform(
        channels=1 if wants.is_gray else 3 if wants.is_color else None,
        resize=wants.resize,
        crop=wants.crop,
        mirror=wants.mirror,
        is_random=is_random,
        mean=read_mean(path) if path else values if len(values) else None,
        scale=wants.scale,
        source=str(path or ""),
    )


def read_mean(file: Path) -> NDArray[np.float32]:
    """Read the mean image of a .binaryproto file, as Caffe's compute_image_mean writes it.

    Returns:
        (C, H, W) float32.

    Raises:
        CamrtError: The file cannot be read, or is not a mean image.
    """
    try:
        return transform.read_mean(file)
    except ConversionError as error:
        raise CamrtError(error.message, file=error.file) from error.__cause__
