"""How a data layer transforms its images (`transform_param`): read once, for training and for a model's metadata."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters import metadata
from converters.errors import ConversionError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from converters.layer import Layer
    from converters.net import Net

# Where a description says no size, images are this much larger than their crop: Caffe's 256 for 224.
IMAGE_PER_CROP = 8 / 7

_IMAGES = ("AnnotatedData", "Data", "ImageData", "MemoryData")
_OF_ONE_SIZE = ("clutter:", "mnist:")  # sources whose images are not resized


@dataclass(frozen=True)
class DataTransform:
    """What a data layer does to each image, in Caffe's order.

    Attributes:
        is_gray: Whether images become gray.
        is_color: Whether images become colored.
        resize: Height and width that each image is resized to first; None for as it is.
        crop: Height and width that are cut; None for the whole image.
        mirror: Whether images are mirrored at random.
        mean_file: The file of the mean image, as the layer names it; empty for none.
        mean_values: Subtracted from each channel; empty for none.
        scale: Multiplied last.
    """

    is_gray: bool
    is_color: bool
    resize: tuple[int, int] | None
    crop: tuple[int, int] | None
    mirror: bool
    mean_file: str
    mean_values: tuple[float, ...]
    scale: float


def of_layer(layer: Layer) -> DataTransform:
    """Read the transformation of a data layer, from its own parameters too, where Caffe once kept it.

    Args:
        layer: A layer of images: Data, ImageData, WindowData, MemoryData, Input.

    Raises:
        ConversionError: Both a mean file and mean values.
    """
    param = layer.params.transform_param
    owns = {"ImageData": layer.params.image_data_param, "WindowData": layer.params.window_data_param}
    own: Any = owns.get(layer.type, layer.params.data_param)
    crop = param.crop_size or own.crop_size
    sizes = (
        (own.new_height, own.new_width) if layer.type == "ImageData" else (0, 0),
        (param.resize_param.height, param.resize_param.width),
    )
    if (param.mean_file or own.mean_file) and param.mean_value:
        raise layer.error("found a mean_file and mean_value, expected one of them")
    return DataTransform(
        is_gray=param.force_gray or (layer.type == "ImageData" and not own.is_color),
        is_color=param.force_color or layer.type in owns,
        resize=next((size for size in sizes if all(size)), None),
        crop=(crop, crop) if crop else (param.crop_h, param.crop_w) if param.crop_h and param.crop_w else None,
        mirror=param.mirror or own.mirror,
        mean_file=param.mean_file or own.mean_file,
        mean_values=tuple(param.mean_value),
        scale=param.scale if param.HasField("scale") else own.scale,
    )


def finder(file: Path) -> Callable[[str], Path]:
    """Return a function that resolves the paths in a prototxt.

    A relative path is looked up in the current folder, as in Caffe, then in the prototxt's folder and those above it.

    Args:
        file: The prototxt.
    """
    beside = file.absolute().parent

    def find(path: str) -> Path:
        candidates = [Path(path), *(folder / path for folder in (beside, *beside.parents))]
        return next((candidate for candidate in candidates if candidate.exists()), Path(path))

    return find


def read_mean(file: Path) -> NDArray[np.float32]:
    """Read the mean image of a .binaryproto, as Caffe's compute_image_mean writes it.

    Returns:
        (C, H, W) float32.

    Raises:
        ConversionError: The file cannot be read, or is no mean image.
    """
    import numpy as np
    from google.protobuf.message import DecodeError

    from converters.schema import caffe_pb2

    try:
        blob = caffe_pb2.BlobProto.FromString(file.read_bytes())
    except OSError as error:
        raise ConversionError(f"cannot be read: {error.strerror or error}", file=str(file)) from error
    except DecodeError:
        raise ConversionError("is no .binaryproto, expected a mean image", file=str(file)) from None
    shape = tuple(blob.shape.dim) or (blob.num, blob.channels, blob.height, blob.width)
    data = blob.data if len(blob.data) % 4 == 0 else b""
    values = np.frombuffer(data, "<f4") if data else np.frombuffer(blob.double_data, "<f8")
    if len(shape) == 4 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 3 or min(shape) < 1 or int(np.prod(shape, dtype=object)) != values.size:
        raise ConversionError(
            f"found {values.size:,} numbers for the shape {tuple(shape)}, expected a mean image (1, C, H, W)",
            file=str(file),
        )
    return values.reshape(shape).astype(np.float32)


# ------------------------------------------------------------------------------------------------------- the metadata


def metadata_of(net: Net) -> tuple[dict[str, str], list[str]]:
    """Return how the data layer of a network prepares images, as metadata of the converted model.

    Images are resized to the size that the layer gives, else to that of the mean image, else to 8/7 of the crop. The
    network sees the center, as in Caffe's test phase.

    Args:
        net: The network, with the shapes of its inputs.

    Returns:
        The metadata (`converters.metadata`), empty if no data layer says how images are transformed; and notes on what
        the metadata cannot express.
    """
    names = {data.name for data in net.inputs}
    layer = next((one for one in net.data if one.type in _IMAGES and one.tops and one.tops[0] in names), None)
    if layer is None or (layer.type == "MemoryData" and not layer.params.HasField("transform_param")):
        return {}, []  # a program fills a MemoryData layer, and prepares the images too
    try:
        return _properties(net, layer), []
    except ConversionError as error:
        reason = f"{error.file}: {error.message}" if error.file else error.message
        return {}, [f"the model does not state how it wants its images, because of the layer {layer.name!r}: {reason}"]


def _properties(net: Net, layer: Layer) -> dict[str, str]:
    import numpy as np

    wants = of_layer(layer)
    if len(net.inputs) > 1:
        raise ConversionError(f"found {len(net.inputs)} inputs, expected one")
    shape = net.inputs[0].shape or ()
    if len(shape) != 4 or shape[1] != 3 or wants.is_gray:
        raise ConversionError("its images are gray or have no three channels, expected three (BGR)")
    crop = _side(shape[2:], "the network's input")
    if wants.crop is not None and wants.crop != shape[2:]:
        raise ConversionError(f"found a crop of {wants.crop[1]} x {wants.crop[0]} pixels and an input of {crop}")
    mean = read_mean(finder(Path(net.files[0] if net.files else "."))(wants.mean_file)) if wants.mean_file else None
    size = _size(layer, wants, mean, crop)
    if size < crop:
        raise ConversionError(f"found images of {size} pixels and a crop of {crop}, expected a smaller crop")
    values = wants.mean_values if mean is None else tuple(mean.mean(axis=(1, 2)).tolist())
    if len(values) not in (0, 1, 3):
        raise ConversionError(f"found a mean of {len(values)} channels, expected three (BGR)")
    properties = {
        metadata.PREPROCESS: metadata.preprocess_text(
            size=size,
            crop=crop,
            mean=values if len(values) == 3 else (values or (0.0,)) * 3,
            scale=(wants.scale,) * 3,
            channels="BGR",
            has_mean_image=mean is not None and mean.shape[1:] != (1, 1),
        ),
        metadata.PROTOCOL: "center",
    }
    if mean is not None and mean.shape[1:] != (1, 1):
        if mean.shape[1:] != (size, size):
            found = f"{mean.shape[2]} x {mean.shape[1]}"
            raise ConversionError(f"found a mean image of {found} pixels, expected {size} x {size}, as the images")
        properties[metadata.MEAN_IMAGE] = metadata.mean_image_text(np.broadcast_to(mean, (3, size, size)))
    return properties


def _size(layer: Layer, wants: DataTransform, mean: NDArray[np.float32] | None, crop: int) -> int:
    """The side of the square that images are resized to."""
    if layer.params.transform_param.HasField("resize_param") and wants.resize is None:
        raise ConversionError("its resize_param gives no height and width")
    if wants.resize is not None:
        return _side(wants.resize, "its images")
    if mean is not None and mean.shape[1:] != (1, 1):
        return _side(mean.shape[1:], "the mean image")
    is_of_one_size = layer.params.image_data_param.source.startswith(_OF_ONE_SIZE)
    return crop if wants.crop is None or is_of_one_size else round(crop * IMAGE_PER_CROP)


def _side(size: tuple[int, ...], what: str) -> int:
    if size[0] != size[1]:
        raise ConversionError(f"found {size[1]} x {size[0]} pixels for {what}, expected a square")
    return int(size[0])
