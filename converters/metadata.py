"""What a model file says of itself: the keys of its ONNX metadata, and how their values are written and read.

`converters` and `camrt` write and read metadata by this module alone. docs/metadata.md documents the format for other
programs.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.errors import ConversionError

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

NAME = "camrt.name"  # of the named model
SOURCE = "camrt.source"  # the page that it comes from
FEATURES = "camrt.features"  # the tensor that the global pooling reads
CLASSIFIER = "camrt.classifier"  # the linear layer behind the pooling
PREPROCESS = "camrt.preprocess"  # how the network wants its images
MEAN_IMAGE = "camrt.mean_image"  # what is subtracted in place of the mean
LABELS = "camrt.labels"  # the names of the classes
PROTOCOL = "camrt.protocol"  # what the network is to see of an image
DETECTIONS = "camrt.detections"  # how a detector says what it finds before non-maximum suppression
EXPLAINER = "camrt.explainer"  # what an explainer graph computes
KEYS = (NAME, SOURCE, FEATURES, CLASSIFIER, PREPROCESS, MEAN_IMAGE, LABELS, PROTOCOL, DETECTIONS, EXPLAINER)


# ------------------------------------------------------------------------------------------------------------- models


def of_model(model: onnx.ModelProto) -> dict[str, str]:
    """Return the metadata of a model."""
    return {entry.key: entry.value for entry in model.metadata_props}


def of_file(path: Path) -> dict[str, str]:
    """Return the metadata of an ONNX file, read without the graph.

    Args:
        path: The file. The graph with its weights is skipped.

    Raises:
        ValueError: It is no Protocol Buffers message.
        OSError: It cannot be read.
    """
    import onnx

    from converters.mapping import mapped
    from converters.wire import Walk

    with path.open("rb") as stream:
        data = memoryview(mapped(stream))
    fields = Walk(data).fields(0, len(data))
    wanted = onnx.ModelProto.METADATA_PROPS_FIELD_NUMBER
    kept = b"".join(data[begin:end] for number, _, begin, _, end in fields if number == wanted)
    return of_model(onnx.ModelProto.FromString(kept))


# ------------------------------------------------------------------------------------------------------------- values


def labels_text(labels: Sequence[str]) -> str:
    """Write the names of the classes."""
    return json.dumps([str(label) for label in labels], ensure_ascii=False)


def labels_of(metadata: Mapping[str, str]) -> list[str] | None:
    """Read the names of the classes; None where there are none.

    Raises:
        ValueError: They are no JSON list.
    """
    if LABELS not in metadata:
        return None
    labels = _json(metadata[LABELS])
    if not isinstance(labels, list):
        raise ValueError("no list")
    return [str(label) for label in labels]


def preprocess_text(
    *,
    size: int,
    crop: int,
    mean: Sequence[float],
    scale: Sequence[float],
    channels: str,
    has_mean_image: bool = False,
) -> str:
    """Write how the network wants its images.

    Args:
        size: The side in pixels of the square that the image is resized to.
        crop: The side in pixels of the square that is cut from it.
        mean: Subtracted from each channel, on the scale 0 to 255.
        scale: Multiplied, for each channel.
        channels: ``"BGR"`` or ``"RGB"``: the order of the channels.
        has_mean_image: Whether a mean image is subtracted in place of the mean.
    """
    fields: dict[str, Any] = {"size": size, "crop": crop, "mean": list(mean), "scale": list(scale)}
    fields |= {"channels": channels, "layout": "NCHW"}
    return json.dumps(fields | ({"mean_image": True} if has_mean_image else {}))


def preprocess_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Read how the network wants its images.

    Returns:
        ``size``, ``crop``, ``mean`` and ``scale`` (three numbers each), ``channels``, and ``mean_image``, which is (3,
        size, size) float32 or None.

    Raises:
        ValueError: It is missing or cannot be used.
    """
    fields = _json(metadata.get(PREPROCESS, ""))
    try:
        size = int(fields["size"])
        read = {
            "size": size,
            "crop": int(fields["crop"]),
            "mean": _three(fields["mean"]),
            "scale": _three(fields.get("scale", 1.0)),
            "channels": fields["channels"],
        }
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(repr(error)) from None
    has_mean_image = fields.get("mean_image") is True
    return {**read, "mean_image": _mean_image_of(metadata.get(MEAN_IMAGE), size) if has_mean_image else None}


def detections_text(
    *, boxes: str, scores: str, form: str = "corners", unit: str = "pixels", background: int = -1
) -> str:
    """Write how a detector says what it finds before non-maximum suppression.

    Args:
        boxes: The tensor of boxes, 4 numbers for each candidate.
        scores: The tensor of the probabilities of the classes of each candidate.
        form: ``"corners"``: left, top, right, bottom; ``"center"``: center, width, height.
        unit: ``"pixels"`` of the network's input, or ``"shares"`` of its sides.
        background: The number of the class that stands for nothing; -1 for none.
    """
    return json.dumps({"boxes": boxes, "scores": scores, "form": form, "unit": unit, "background": background})


def detections_of(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """Read how a detector says what it finds; None where nothing is said.

    Returns:
        ``boxes``, ``scores``, ``form``, ``unit``, ``activation``, ``objectness`` and ``background``.

    Raises:
        ValueError: It is no JSON object with boxes and scores, or a value is of another type.
    """
    if DETECTIONS not in metadata:
        return None
    fields = _json(metadata[DETECTIONS])
    try:
        read: dict[str, Any] = {name: str(fields[name]) for name in ("boxes", "scores")}
        read |= {"form": str(fields.get("form", "corners")), "unit": str(fields.get("unit", "pixels"))}
        read["activation"] = str(fields.get("activation", "none"))
        read["objectness"] = fields.get("objectness", False) is True
        return read | {"background": int(fields.get("background", -1))}
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(repr(error)) from None


def mean_image_text(mean: NDArray[np.float32]) -> str:
    """Write a mean image.

    Args:
        mean: (3, size, size), in the order of the network's channels.
    """
    import numpy as np

    return base64.b64encode(zlib.compress(np.ascontiguousarray(mean, "<f4").tobytes())).decode("ascii")


def explainer_text(fields: Mapping[str, Any]) -> str:
    """Write what an explainer graph computes."""
    return json.dumps(dict(fields))


def explainer_of(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """Read what an explainer graph computes; None where the model is none.

    Raises:
        ValueError: It is no JSON object with method, protocol, top and size.
    """
    if EXPLAINER not in metadata:
        return None
    fields = _json(metadata[EXPLAINER])
    try:
        fields = fields | {key: str(fields[key]) for key in ("method", "protocol")}
        return dict(fields | {key: int(fields[key]) for key in ("top", "size")})
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(repr(error)) from None


def read_mean_image(file: Path) -> NDArray[np.float32]:
    """Read the mean image of a .mat file, which has the width first.

    Returns:
        (3, S, S) float32 BGR.

    Raises:
        ConversionError: It cannot be read.
    """
    import numpy as np
    from scipy.io import loadmat

    try:
        mean: NDArray[np.float32] = loadmat(file)["mean_data"].transpose(2, 1, 0).astype(np.float32)
    except Exception as error:  # SciPy's reader raises what it comes across in a broken file
        raise ConversionError(f"no mean image can be read from it ({error!r})", file=str(file)) from error
    return mean


def _mean_image_of(text: str | None, size: int) -> NDArray[np.float32]:
    if text is None:
        raise ValueError(f"the mean image is missing ({MEAN_IMAGE})")
    import numpy as np

    expected = 3 * size * size * 4
    try:
        stream = zlib.decompressobj()
        data = stream.decompress(base64.b64decode(text, validate=True), expected + 1)  # no more, whatever it holds
    except (ValueError, zlib.error) as error:
        raise ValueError(f"the mean image ({MEAN_IMAGE}) is broken: {error}") from None
    if len(data) != expected:
        raise ValueError(f"the mean image ({MEAN_IMAGE}) has another size than 3 x {size} x {size}")
    return np.frombuffer(data, "<f4").reshape(3, size, size).astype(np.float32)


def _three(value: Any) -> tuple[float, float, float]:
    values = value if isinstance(value, (list, tuple)) else [value] * 3
    first, second, third = (float(each) for each in values)
    if not all(map(math.isfinite, (first, second, third))):
        raise ValueError(f"found {value}, expected numbers")
    return first, second, third


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
