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
    param = layer.params.transform_param
    owns = {"ImageData": layer.params.image_data_param, "WindowData": layer.params.window_data_param}
    own: Any = owns.get(layer.type, layer.params.data_param)
    crop = param.crop_size or own.crop_size
    sizes = (
        (own.new_height, own.new_width) if layer.type == "ImageData" else (0, 0),
        (param.resize_param.height, param.resize_param.width),
    )
    is_gray = param.force_gray or (layer.type == "ImageData" and not own.is_color)
    is_color = param.force_color or layer.type in owns
    if (param.mean_file or own.mean_file) and param.mean_value:
        raise CamrtError(
            f"layer {layer.name} ({layer.type}): found mean_file and mean_value, expected only one of them"
        )
    file = param.mean_file or own.mean_file
    values = np.array(param.mean_value, np.float32).reshape(-1, 1, 1)
    path = find(file) if file else None
    return Transform(
        channels=1 if is_gray else 3 if is_color else None,
        resize=next((size for size in sizes if all(size)), None),
        crop=(crop, crop) if crop else (param.crop_h, param.crop_w) if param.crop_h and param.crop_w else None,
        mirror=param.mirror or own.mirror,
        is_random=is_random,
        mean=read_mean(path) if path else values if len(values) else None,
        scale=param.scale if param.HasField("scale") else own.scale,
        source=str(path or ""),
    )


def read_mean(file: Path) -> NDArray[np.float32]:
    """Read the mean image of a .binaryproto file, as Caffe's compute_image_mean writes it.

    Returns:
        (C, H, W) float32.

    Raises:
        CamrtError: The file cannot be read, or is not a mean image.
    """
    from google.protobuf.message import DecodeError

    from converters.schema import caffe_pb2

    try:
        blob = caffe_pb2.BlobProto.FromString(file.read_bytes())
    except OSError as error:
        raise CamrtError(f"cannot be read: {error.strerror or error}", file=str(file)) from error
    except DecodeError:
        raise CamrtError("is not a .binaryproto file, expected a mean image", file=str(file)) from None
    shape = tuple(blob.shape.dim) or (blob.num, blob.channels, blob.height, blob.width)
    data = blob.data if len(blob.data) % 4 == 0 else b""
    values = np.frombuffer(data, "<f4") if data else np.frombuffer(blob.double_data, "<f8")
    if len(shape) == 4 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 3 or min(shape) < 1 or int(np.prod(shape, dtype=object)) != values.size:
        raise CamrtError(
            f"found {values.size:,} numbers for the shape {tuple(shape)}, expected a mean image (1, C, H, W)",
            file=str(file),
        )
    return values.reshape(shape).astype(np.float32)
