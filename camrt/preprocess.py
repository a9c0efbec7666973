"""How a network wants its images: kept in the model's metadata, so that one file says all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from camrt.errors import CamrtError
from converters import metadata

KEY = metadata.PREPROCESS
_ADVICE = (
    "name a preset (--preprocess caffe or torchvision; in Python preprocess=), or set each value with camrt export "
    "--crop, --mean, --scale and --channels (camrt.Preprocess)"
)


@dataclass(frozen=True, eq=False)
class Preprocess:
    """Resize, subtract the mean, cut, scale, in this order.

    Attributes:
        size: The side in pixels of the square that the image is resized to.
        crop: The side in pixels of the square cut from it: the network's input.
        mean: What is subtracted from each channel, in the order of ``channels``, on the scale 0 to 255.
        scale: What the difference is multiplied with, for each channel in the order of ``channels``.
        channels: The order of the network's channels.
        mean_image: What is subtracted in place of ``mean``: (3, size, size) float32 in the order of ``channels``.
    """

    size: int
    crop: int
    mean: tuple[float, float, float]
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channels: Literal["BGR", "RGB"] = "BGR"
    mean_image: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.size:
            raise CamrtError(f"found crop {self.crop} and size {self.size}, expected a crop of 1 to size pixels")
        if len(self.mean) != 3 or len(self.scale) != 3:
            raise CamrtError(f"found mean {self.mean} and scale {self.scale}, expected three numbers each")
        if self.channels not in ("BGR", "RGB"):
            raise CamrtError(f"found the channels {self.channels!r}, expected 'BGR' or 'RGB'")
        expected = (3, self.size, self.size)
        if self.mean_image is not None and self.mean_image.shape != expected:
            raise CamrtError(f"found a mean image of shape {self.mean_image.shape}, expected {expected}")

    def cropped(self, crop: int) -> Preprocess:
        """The same for a network of another input size."""
        size = self.size if crop <= self.size else crop
        return replace(self, crop=crop, size=size, mean_image=self.mean_image if size == self.size else None)

    def as_json(self) -> str:
        """Return it as the metadata say it (`converters.metadata.PREPROCESS`), without the numbers of a mean image."""
        return metadata.preprocess_text(
            size=self.size,
            crop=self.crop,
            mean=self.mean,
            scale=self.scale,
            channels=self.channels,
            has_mean_image=self.mean_image is not None,
        )


# As Caffe's networks were trained on ImageNet: BGR of 0 to 255, less the mean of the training images.
# As torchvision's are: RGB of 0 to 1, less the mean, over the standard deviation.
_DEVIATION = (0.229, 0.224, 0.225)
PRESETS: Mapping[str, Preprocess] = {
    "caffe": Preprocess(size=256, crop=224, mean=(104.0, 117.0, 123.0)),
    "torchvision": Preprocess(
        size=256,
        crop=224,
        mean=(0.485 * 255, 0.456 * 255, 0.406 * 255),
        scale=(1 / (255 * _DEVIATION[0]), 1 / (255 * _DEVIATION[1]), 1 / (255 * _DEVIATION[2])),
        channels="RGB",
    ),
}


def preprocess_of(given: Preprocess | str | None, properties: Mapping[str, str]) -> Preprocess:
    """Return the preprocessing that was asked for, else the model's own.

    Args:
        given: A Preprocess, the name of a preset, or None.
        properties: The model's metadata.

    Raises:
        CamrtError: There is no such preset; the metadata are missing or wrong. The text says what to give.
    """
    if isinstance(given, Preprocess):
        return given
    if given is not None:
        if given not in PRESETS:
            raise CamrtError(f"found the preset {given!r}, expected one of {', '.join(PRESETS)}")
        return PRESETS[given]
    if KEY not in properties:
        raise CamrtError(f"the model does not say how it wants its images (no metadata {KEY}): {_ADVICE}")
    try:
        return Preprocess(**metadata.preprocess_of(properties))
    except ValueError as error:
        found = properties[KEY][:200]
        raise CamrtError(f"found the metadata {KEY} {found!r}, which cannot be used ({error}): {_ADVICE}") from None
