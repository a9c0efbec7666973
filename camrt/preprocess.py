"""How a network sees an image: what is subtracted and cut, in NumPy (`network_input`) and as nodes of a graph.

It begins with the square that `camrt.images.prepare` makes of an image. What a network wants is kept in the metadata of
its model (`converters.metadata`), so that one file says all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from camrt.errors import CamrtError
from converters import metadata

if TYPE_CHECKING:
    from camrt.builder import Builder

KEY = metadata.PREPROCESS
WHOLE = "whole"  # the default protocol
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
        """Return the same for a network of another input size."""
        size = self.size if crop <= self.size else crop
        return replace(self, crop=crop, size=size, mean_image=self.mean_image if size == self.size else None)

    def seeing(self, protocol: str) -> Preprocess:
        """Return the same for a protocol: for ``"whole"``, images are resized to the network's input at once.

        A mean image of another size is then replaced with the mean.
        """
        if protocol != WHOLE or self.size == self.crop:
            return self
        return replace(self, size=self.crop, mean_image=None)

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


def normalized(
    size: int,
    crop: int,
    mean: Sequence[float],
    deviation: Sequence[float],
    *,
    full_scale: float = 255.0,
    channels: str = "RGB",
) -> Preprocess:
    """Return the preprocessing of a network that takes images of mean 0 and deviation 1, as PyTorch's libraries do.

    Args:
        size: The side in pixels of the square that the image is resized to.
        crop: The side in pixels of the square cut from it.
        mean: Three numbers, in the order of ``channels``.
        deviation: Likewise; the standard deviation.
        full_scale: What a pixel of 255 is divided by before: ``mean`` and ``deviation`` are on the scale 0 to 255 /
            ``full_scale``.
        channels: The order of the channels.

    Raises:
        CamrtError: The numbers do not fit together.
    """
    if len(mean) != 3 or len(deviation) != 3 or not all(deviation):
        raise CamrtError(f"found the mean {mean} and the deviation {deviation}, expected three numbers each, not 0")
    first, second, third = (full_scale * each for each in mean)
    scale = tuple(1 / (full_scale * each) for each in deviation)
    return Preprocess(size, crop, (first, second, third), (scale[0], scale[1], scale[2]), channels)  # type: ignore[arg-type]


# As Caffe's networks were trained on ImageNet: BGR of 0 to 255, less the mean of the training images.
# As torchvision's are: RGB of 0 to 1, less the mean, over the standard deviation.
# As YOLO's are, and RT-DETR: RGB of 0 to 1.
PRESETS: Mapping[str, Preprocess] = {
    "caffe": Preprocess(size=256, crop=224, mean=(104.0, 117.0, 123.0)),
    "torchvision": normalized(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "yolo": normalized(640, 640, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
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


# ------------------------------------------------------------------------------------------------- the network's input


@dataclass(frozen=True)
class Crop:
    """A square of the image, perhaps mirrored.

    Attributes:
        y: Its first row.
        x: Its first column.
        side: Its height and width in pixels.
        mirrored: Whether left and right are exchanged.
    """

    y: int
    x: int
    side: int
    mirrored: bool


def crops_of(protocol: str, size: int, side: int) -> list[Crop]:
    """List the crops of a protocol.

    Args:
        protocol: ``"whole"``: the whole image; ``"ten-crop"``: corners and center, then the same mirrored, in the order
            of the original's prepare_image.m; ``"center"``: the center; ``"full"``: the whole image and its mirror
            image.
        size: The image's side in pixels.
        side: A crop's side in pixels; for ``"whole"`` and ``"full"`` the image's.

    Raises:
        CamrtError: No such protocol.
    """
    last = size - side
    # The original keeps images width first, so its outer loop runs over columns.
    corners = [(y, x) for x in (0, last) for y in (0, last)]
    center = ((last + 1) // 2, (last + 1) // 2)  # as floor(indices(2) / 2) + 1 gives it, which counts from one
    squares = {WHOLE: [(0, 0)], "ten-crop": [*corners, center], "center": [center], "full": [(0, 0)]}
    if protocol not in squares:
        raise CamrtError(f"found the protocol {protocol!r}, expected one of {', '.join(squares)}")
    mirrored = (False,) if protocol in (WHOLE, "center") else (False, True)
    return [Crop(y, x, side, mirror) for mirror in mirrored for y, x in squares[protocol]]


def network_input(images: NDArray[np.uint8], crops: Sequence[Crop], preprocess: Preprocess) -> NDArray[np.float32]:
    """Compute the network's input from images, with the bits of `add_network_input`.

    Args:
        images: (N, S, S, 3) uint8 RGB.
        crops: What to cut.
        preprocess: Mean, scale and order of the channels.

    Returns:
        (N * crops, 3, side, side) float32; the crops of an image follow each other.
    """
    planes = images.transpose(0, 3, 1, 2)[:, :: -1 if preprocess.channels == "BGR" else 1].astype(np.float32)
    mean = preprocess.mean_image
    if mean is None:
        mean = np.reshape(preprocess.mean, (3, 1, 1))
    planes -= mean.astype(np.float32)
    if preprocess.scale != (1.0, 1.0, 1.0):
        planes *= np.reshape(preprocess.scale, (3, 1, 1)).astype(np.float32)
    side = crops[0].side
    squares = [planes[:, :, c.y : c.y + side, c.x : c.x + side][..., :: -1 if c.mirrored else 1] for c in crops]
    return np.stack(squares, axis=1).reshape(-1, 3, side, side)


def add_network_input(builder: Builder, image: str, crops: Sequence[Crop], preprocess: Preprocess, output: str) -> None:
    """Add the nodes that compute `network_input`.

    Args:
        builder: Where the nodes go.
        image: (N, S, S, 3) uint8 RGB.
        crops: What to cut.
        preprocess: Mean, scale and order of the channels.
        output: The tensor that is written: (N * crops, 3, side, side) float32; the crops of an image follow each other.
    """
    planes = builder.node("Transpose", [builder.node("Cast", [image], to=1)], perm=[0, 3, 1, 2])
    if preprocess.channels == "BGR":
        planes = builder.flip(planes, 1)
    mean = preprocess.mean_image
    if mean is None:
        mean = np.reshape(preprocess.mean, (3, 1, 1))
    planes = builder.node("Sub", [planes, builder.constant(mean, "mean")])
    if preprocess.scale != (1.0, 1.0, 1.0):
        planes = builder.node("Mul", [planes, builder.constant(np.reshape(preprocess.scale, (3, 1, 1)), "scale")])
    side = crops[0].side
    upright = [crop for crop in crops if not crop.mirrored]
    squares = [
        builder.unsqueeze(builder.slice(planes, (c.y, c.x), (c.y + side, c.x + side), (2, 3)), 1) for c in upright
    ]
    stacked = squares[0] if len(squares) == 1 else builder.node("Concat", squares, axis=1)
    if len(upright) < len(crops):  # the mirror images are those of all squares, in the same order
        stacked = builder.node("Concat", [stacked, builder.flip(stacked, 4)], axis=1)
    builder.node("Reshape", [stacked, builder.shape(-1, 3, side, side)], output)
