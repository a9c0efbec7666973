"""tinyCAM: a network small enough to be written by hand, and a picture for it.

It has the shape of the CAM networks (convolutions, global average pooling, one linear layer, softmax) and 6 classes:
four colours and two kinds of stripes. Nothing of it is trained. Its weights are filters of which one can say what they
do, so its heatmaps can be checked: they must lie on what has that colour. It stands in for the large networks, which
cannot be had in a test: crops of 224 pixels in three channels, 14 x 14 features, ten crops.

How it sees: ``conv1`` smooths the image and takes the six differences of two colours (R - G, G - R, R - B, ...); beside
them stand eight Gabor filters of a period of 8 pixels, in four phases, for upright and for lying stripes (Daugman
1985). ``CAM_conv`` fires for red where R exceeds both others and these two do not differ, for yellow where R and G
exceed B and do not differ, and for stripes where all four phases are strong together, which no edge brings about.

Example:
    >>> model = convert()
    >>> [output.name for output in model.graph.output]
    ['CAM_conv', 'prob']
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

    from camrt.preprocess import Preprocess
    from converters.zoo import NamedModel

NAME = "tinyCAM"
LABELS = ("red", "green", "blue", "yellow", "upright stripes", "lying stripes")
FEATURES, CLASSIFIER = "CAM_conv", "CAM_fc"
GREY = 128  # the network's mean: it sees nothing in grey
SIDE = 256  # pixels of the sample image
PERIOD = 8  # pixels of the stripes that it knows

_KERNEL = 11  # pixels of conv1's window
_PHASES = 4
_BLUR = np.array([0.25, 0.5, 0.25])  # CAM_conv's window along an axis: soft maps, as those of the large networks
_RED, _GREEN, _BLUE = 2, 1, 0  # the order of Caffe's channels
# Where each difference of two colours stands among the outputs of conv1.
_DIFFERENCES = ((_RED, _GREEN), (_GREEN, _RED), (_RED, _BLUE), (_BLUE, _RED), (_GREEN, _BLUE), (_BLUE, _GREEN))

PROTOTXT = f"""name: "{NAME}"
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 10 dim: 3 dim: 224 dim: 224 }} }} }}
layer {{
  name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param {{
    num_output: {len(_DIFFERENCES) + 2 * _PHASES} kernel_size: {_KERNEL} pad: {_KERNEL // 2} stride: 2
  }}
}}
layer {{ name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }}
layer {{
  name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
  pooling_param {{ pool: AVE kernel_size: 8 stride: 8 }}
}}
layer {{
  name: "CAM_conv" type: "Convolution" bottom: "pool1" top: "CAM_conv"
  convolution_param {{ num_output: {len(LABELS)} kernel_size: 3 pad: 1 }}
}}
layer {{ name: "CAM_relu" type: "ReLU" bottom: "CAM_conv" top: "CAM_conv" }}
layer {{
  name: "CAM_pool" type: "Pooling" bottom: "CAM_conv" top: "CAM_pool"
  pooling_param {{ pool: AVE kernel_size: 14 stride: 14 }}
}}
layer {{
  name: "CAM_fc" type: "InnerProduct" bottom: "CAM_pool" top: "CAM_fc"
  inner_product_param {{ num_output: {len(LABELS)} }}
}}
layer {{ name: "prob" type: "Softmax" bottom: "CAM_fc" top: "prob" }}
"""


def weights() -> dict[str, list[NDArray[np.float32]]]:
    """The weights that were made by hand: layer -> its blobs, in Caffe's order and shapes."""
    conv1 = np.concatenate([_differences(), _gabors()])
    inputs = len(conv1)
    cam, bias = np.zeros((len(LABELS), inputs)), np.zeros(len(LABELS))
    # Of three colours the first is seen where it exceeds both others; the third is the one that must not differ.
    for label, (own, other, third) in enumerate(((_RED, _GREEN, _BLUE), (_GREEN, _RED, _BLUE), (_BLUE, _RED, _GREEN))):
        cam[label, [_at(own, other), _at(own, third)]] = 1
        cam[label, [_at(other, third), _at(third, other)]] = -2
    cam[3, [_at(_RED, _BLUE), _at(_GREEN, _BLUE)]] = 1
    cam[3, [_at(_RED, _GREEN), _at(_GREEN, _RED)]] = -2
    bias[:4] = -0.2  # colours are paler than that in the shadow of an edge
    for label, first in ((4, len(_DIFFERENCES)), (5, len(_DIFFERENCES) + _PHASES)):
        cam[label, first : first + _PHASES] = 1.2
        bias[label] = -1.1
    linear = 12 * np.eye(len(LABELS))
    blobs = {
        "conv1": [conv1, np.zeros(inputs)],
        "CAM_conv": [cam[:, :, None, None] * np.outer(_BLUR, _BLUR), bias],
        "CAM_fc": [linear, np.zeros(len(LABELS))],
    }
    return {name: [np.asarray(blob, np.float32) for blob in arrays] for name, arrays in blobs.items()}


def write(folder: Path) -> tuple[Path, Path]:
    """Write the network as Caffe's files.

    Args:
        folder: Where they go; it exists.

    Returns:
        The prototxt and the caffemodel.

    Raises:
        ConversionError: The caffemodel cannot be written.
    """
    from converters.writer import write_caffemodel

    prototxt, caffemodel = folder / f"{NAME}.prototxt", folder / f"{NAME}.caffemodel"
    prototxt.write_text(PROTOTXT, encoding="utf-8")
    write_caffemodel(caffemodel, weights(), name=NAME)
    return prototxt, caffemodel


def preprocess() -> Preprocess:
    """What it wants of an image: the crops of the original demo, minus grey."""
    from camrt.preprocess import Preprocess

    return Preprocess(size=256, crop=224, mean=(float(GREY), float(GREY), float(GREY)))


def convert() -> onnx.ModelProto:
    """The network as an ONNX classifier: written as Caffe's files, and converted from these."""
    import onnx

    import converters
    from camrt.preprocess import KEY

    with tempfile.TemporaryDirectory(prefix="camrt-tiny-", ignore_cleanup_errors=True) as folder:
        model = converters.convert(*write(Path(folder)), outputs=[FEATURES, "prob"])
    facts = {
        "camrt.name": NAME,
        "camrt.features": FEATURES,
        "camrt.classifier": CLASSIFIER,
        "camrt.labels": json.dumps(LABELS),
        KEY: preprocess().as_json(),
    }
    kept = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**kept, **facts})
    return model


def named(folder: Path) -> NamedModel:
    """The network as one that camrt knows by name: its files are written to the folder."""
    from converters import zoo

    prototxt, caffemodel = write(folder)
    grey = float(GREY)
    return zoo.NamedModel(
        name=NAME,
        network=str(prototxt),
        weights=zoo.WeightsFile((), caffemodel.stat().st_size // 2, bundled=str(caffemodel)),
        preprocessing=zoo.Preprocessing(256, 224, (grey, grey, grey)),
        labels="imagenet",
        trained_on="nothing",
        source="",
        paper="",
        licence="",
        features=FEATURES,
        classifier=CLASSIFIER,
        protocol="ten-crop",
    )


def sample_image() -> NDArray[np.uint8]:
    """A picture of what it knows, all but one: a red disc, a green triangle, a blue square, a yellow ring, and stripes.

    Returns:
        (256, 256, 3) uint8 RGB: always the same.
    """
    fine = 4  # samples a pixel and axis, against jagged edges
    y, x = np.mgrid[: SIDE * fine, : SIDE * fine] / fine
    canvas = np.empty((SIDE * fine, SIDE * fine, 3))
    canvas[:] = (GREY + 14 - 28 * y / SIDE)[..., None]  # light from above
    radius = np.hypot(y - 78, x - 180)
    stripes = (np.abs(x - 182) < 32) & (np.abs(y - 182) < 34)
    canvas[np.hypot(y - 80, x - 76) < 36] = 214, 44, 38
    canvas[(radius < 38) & (radius > 16)] = 236, 206, 44
    canvas[(np.abs(x - 128) < 19) & (np.abs(y - 132) < 19)] = 42, 84, 216
    canvas[(y > 154) & (y < 218) & (np.abs(x - 74) < (y - 154) * 0.6)] = 46, 168, 66
    canvas[stripes] = np.where((x // (PERIOD // 2)) % 2 > 0, 225, 30)[stripes][:, None]
    small: NDArray[np.float64] = canvas.reshape(SIDE, fine, SIDE, fine, 3).mean(axis=(1, 3))
    return (small + 0.5).astype(np.uint8)


def _differences() -> NDArray[np.float64]:
    """(6, 3, k, k): one colour minus another, smoothed; 1 for a difference of 100 grey levels."""
    line = np.exp(-(_offsets() ** 2) / (2 * 1.5**2))
    smooth = np.outer(line, line) / line.sum() ** 2 / 100
    kernels = np.zeros((len(_DIFFERENCES), 3, _KERNEL, _KERNEL))
    for output, (plus, minus) in enumerate(_DIFFERENCES):
        kernels[output, plus], kernels[output, minus] = smooth, -smooth
    return kernels


def _gabors() -> NDArray[np.float64]:
    """(8, 3, k, k): waves of `PERIOD` pixels under a bell, over all colours; upright ones, then lying."""
    offsets = _offsets()
    bell = np.exp(-(offsets**2) / (2 * 3.0**2))
    kernels = []
    for phase in range(_PHASES):
        wave = bell * np.cos(2 * np.pi * (offsets / PERIOD - phase / _PHASES))
        wave -= bell * wave.sum() / bell.sum()  # blind to plain surfaces
        kernels.append(np.outer(bell / bell.sum(), wave / np.abs(wave).sum()) / 100)
    upright = np.stack(kernels)
    both = np.concatenate([upright, upright.transpose(0, 2, 1)])
    return np.repeat(both[:, None], 3, axis=1)


def _offsets() -> NDArray[np.float64]:
    return np.arange(_KERNEL, dtype=np.float64) - _KERNEL // 2


def _at(plus: int, minus: int) -> int:
    return _DIFFERENCES.index((plus, minus))


def opencv(folder: Path, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features and scores by OpenCV, from the files that `write` writes."""
    prototxt, caffemodel = write(folder)
    net = cv2.dnn.readNetFromCaffe(str(prototxt), str(caffemodel))
    net.setInput(crops)
    features, scores = net.forward([FEATURES, "prob"])
    return np.maximum(features, 0), scores
