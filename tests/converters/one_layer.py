"""A network of a single layer: converted, run on ONNX Runtime, or given to OpenCV 4's importer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest

from converters import ConversionError, ConversionWarning, Net, convert, read_net, registry
from converters.conversion import DEFAULT_OPSET, build
from converters.reader import parse_prototxt


@dataclass(frozen=True)
class OneLayer:
    """A layer and the inputs of its network.

    Attributes:
        layer: What stands in the prototxt's ``layer { ... }``, tops included; name and bottoms are added.
        shapes: Input -> shape; the layer reads them in this order.
        blobs: Its weights.
    """

    layer: str
    shapes: Mapping[str, Sequence[int]]
    blobs: tuple[np.ndarray, ...] = ()

    @property
    def prototxt(self) -> str:
        inputs = "".join(
            f'layer {{ name: "in_{name}" type: "Input" top: "{name}" '
            f"input_param {{ shape {{ {' '.join(f'dim: {size}' for size in shape)} }} }} }}\n"
            for name, shape in self.shapes.items()
        )
        bottoms = " ".join(f'bottom: "{name}"' for name in self.shapes)
        return f'name: "one"\n{inputs}layer {{ name: "l" {bottoms} {self.layer} }}\n'

    def net(self) -> Net:
        net = read_net(parse_prototxt(self.prototxt, "net.prototxt"))
        blobs = tuple(np.asarray(blob, np.float32) for blob in self.blobs)
        return replace(net, layers=tuple(replace(layer, blobs=blobs) for layer in net.layers))

    def model(self, opset: int = DEFAULT_OPSET) -> onnx.ModelProto:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConversionWarning)
            return convert(self.net(), opset=opset)

    def run(self, inputs: Mapping[str, np.ndarray], opset: int = DEFAULT_OPSET) -> list[np.ndarray]:
        """The tops for the inputs, whose batch may differ from that of ``shapes``."""
        return run(self.model(opset), inputs)

    def zeros(self) -> dict[str, np.ndarray]:
        """Inputs for a layer that reads only their sizes."""
        return {name: np.zeros(shape, np.float32) for name, shape in self.shapes.items()}

    def opencv(self, inputs: Mapping[str, np.ndarray], folder: Path) -> np.ndarray:
        """What OpenCV 4 answers to a layer without weights."""
        file = folder / "net.prototxt"
        file.write_text(self.prototxt)
        net = cv2.dnn.readNetFromCaffe(str(file))
        for name, array in inputs.items():
            net.setInput(array, name)
        return net.forward()


def run(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # threads take longer to start than these networks to run
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    read = {one.name for one in session.get_inputs()}
    fed = {name: np.asarray(array, np.float32) for name, array in inputs.items() if name in read}
    return session.run(None, fed)


def darknet(layers: str, x: np.ndarray) -> np.ndarray:
    """What OpenCV's Darknet importer makes of layers without weights."""
    _, channels, height, width = x.shape
    config = f"[net]\nwidth={width}\nheight={height}\nchannels={channels}\n\n{layers}"
    net = cv2.dnn.readNetFromDarknet(np.frombuffer(config.encode(), np.uint8))
    net.setInput(x)
    return net.forward()


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal shapes, and equal within the tolerance that the converter promises."""
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def assert_emits_what_is_declared(*layers: OneLayer) -> None:
    """The layers, all of one handler, emit together the operators that it declares, and no others."""
    nets = [one.net() for one in layers]
    (entry,) = {registry.find(net.layers[-1].type, net.layers[-1].params) for net in nets}
    emitted = {node.op for net in nets for opset in (13, 18) for node in build(net, opset=opset).draft.graph.nodes}
    assert entry
    assert emitted == set(entry.operators), sorted(emitted ^ set(entry.operators))


def assert_error_names_layer(layer: OneLayer, message: str) -> None:
    """The layer is refused with this text, and the error says which layer it was."""
    with pytest.raises(ConversionError, match=message) as raised:
        convert(layer.net())
    assert raised.value.layer
    assert raised.value.layer.startswith("l (")
