"""How a network sees an image: the NumPy form against the graph form, and against the MATLAB code."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from camrt import matlab
from camrt.builder import Builder
from camrt.preprocess import PRESETS, Crop, Preprocess, add_network_input, crops_of, network_input
from tests.tiny_models import photo

SIZE, SIDE = 40, 27
MEAN_IMAGE = np.random.default_rng(0).normal(110, 20, (3, SIZE, SIZE)).astype(np.float32)
WANTS = {
    "caffe": dataclasses.replace(PRESETS["caffe"], size=SIZE, crop=SIDE),
    "torchvision": dataclasses.replace(PRESETS["torchvision"], size=SIZE, crop=SIDE),
    "mean image": Preprocess(SIZE, SIDE, (0.0, 0.0, 0.0), mean_image=MEAN_IMAGE),
    "mean image, RGB and scale": Preprocess(SIZE, SIDE, (0.0, 0.0, 0.0), (0.1, 0.2, 0.3), "RGB", MEAN_IMAGE),
}


@pytest.mark.parametrize("protocol", ["whole", "ten-crop", "center", "full"])
@pytest.mark.parametrize("name", WANTS)
def test_both_forms_give_the_same_bits(name: str, protocol: str) -> None:
    images = np.stack([photo(SIZE, SIZE, seed) for seed in (1, 2)])
    crops = crops_of(protocol, SIZE, SIZE if protocol in ("full", "whole") else SIDE)
    builder = Builder(17, set())
    add_network_input(builder, "image", crops, WANTS[name], "data")
    graph = helper.make_graph(
        builder.nodes,
        "input",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["M", 3, crops[0].side, crops[0].side])],
        builder.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(["data"], {"image": images})
    found = network_input(images, crops, WANTS[name])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("crop", [224, 227])
def test_ten_crops_are_those_of_matlab(crop: int) -> None:
    image = photo(256, 256)
    wants = Preprocess(256, crop, (104.0, 117.0, 123.0))
    found = network_input(image[None], crops_of("ten-crop", 256, crop), wants)
    np.testing.assert_allclose(found, matlab.prepare_image(image, np.array(wants.mean), crop), atol=1e-4)


def test_whole_resizes_to_the_networks_input_at_once() -> None:
    squeezed = Preprocess(256, 224, (1.0, 2.0, 3.0), mean_image=np.zeros((3, 256, 256), np.float32)).seeing("whole")
    assert (squeezed.size, squeezed.crop, squeezed.mean, squeezed.mean_image) == (224, 224, (1, 2, 3), None)
    assert crops_of("whole", 224, 224) == [Crop(0, 0, 224, mirrored=False)]
    assert PRESETS["caffe"].seeing("center") is PRESETS["caffe"]
    fitting = WANTS["mean image"].cropped(SIZE)
    assert fitting.seeing("whole") is fitting  # and keeps its mean image
