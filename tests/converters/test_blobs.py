"""Every blob of a network as an output, as pycaffe's net.blobs: what real Caffe and OpenCV 4 have there."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from converters import Net, convert, read_net, zoo
from converters.reader import parse_prototxt
from tests.caffe_cases import CASES, DATA, answers_of, read, silent
from tests.caffe_files import input_layer, layer
from tests.converters.agreement import CONVERTED, compare, exact_tensors, session_of
from tests.seeded import SeededModel

SEVERAL = [name for name in CONVERTED if len(read(CASES[name]).layers) > 1]
PUBLISHED = ["cifar10-full-v1", "hyperlpr-CharacterRecognization", "lenet-v1", "ultraface-Slim-320"]
SEED = 20160627


def all_blobs(net: Net) -> onnx.ModelProto:
    with silent():
        return convert(net, outputs="all")


def blobs_of(net: Net) -> list[str]:
    """The tensors with the last version of each blob that a layer writes, in the order of the layers."""
    written = {data.name for data in net.inputs}
    return [top for layer in net.layers for top in layer.tops if top in {*net.tensors.values()} - written]


@pytest.mark.parametrize("name", SEVERAL)
def test_outputs_are_still_those_of_caffe(name: str) -> None:
    """Though BatchNorm and Scale are no longer merged, and every blob is kept."""
    case = CASES[name]
    net, answer = read(case), answers_of(case)[0]
    model = all_blobs(net)
    names = [output.name for output in model.graph.output]
    assert names == blobs_of(net)
    inputs = {one.name for one in model.graph.input}
    fed = {blob: values for blob, values in answer.inputs.items() if blob in inputs}
    found = dict(zip(names, session_of(model).run(names, fed), strict=True))
    for blob, values in answer.outputs.items():
        tensor = net.tensors[blob]
        if tensor in found:
            compare(found[tensor], values, f"{name}: {blob}", exact=tensor in exact_tensors(net))


@pytest.mark.parametrize("folder", PUBLISHED)
def test_every_blob_of_a_published_network_as_opencv(folder: str, reference: Path) -> None:
    files = reference / "caffemodels" / folder
    (prototxt,) = (file for file in files.glob("*.prototxt") if "train" not in file.name)
    (caffemodel,), (stored,) = files.glob("*.caffemodel"), files.glob("*.npz")
    image = np.load(stored)["input"]
    net = read_net(prototxt, caffemodel)
    model = all_blobs(net)
    names = [output.name for output in model.graph.output]
    found = dict(zip(names, session_of(model).run(names, {net.inputs[0].name: image}), strict=True))

    theirs = cv2.dnn.readNetFromCaffe(str(prototxt), str(caffemodel))
    theirs.enableFusion(False)
    theirs.setInput(image)
    known = set(theirs.getLayerNames())
    writers = {top: layer.name for layer in net.layers for top in layer.tops[:1] if layer.name in known}
    compared = [name for name in names if name in writers]
    assert len(compared) >= 0.8 * len(names) >= 4
    for name, values in zip(compared, theirs.forward([writers[name] for name in compared]), strict=True):
        np.testing.assert_allclose(
            found[name].reshape(-1), values.reshape(-1), rtol=1e-3, atol=1e-4 * np.abs(values).max(), err_msg=name
        )


@pytest.mark.slow
def test_blobs_along_googlenet_as_caffe(tmp_path: Path) -> None:
    """Real Caffe's samples of five blobs, all taken from one run."""
    stored, name = np.load(DATA / "googlenet.npz"), "bvlc_googlenet"
    description = parse_prototxt(zoo.find(name).prototxt(), f"{name}.prototxt")
    caffemodel = SeededModel.of_network(description.message, SEED).write(tmp_path / "net.caffemodel")
    model = all_blobs(read_net(description, caffemodel))
    names = [output.name for output in model.graph.output]
    images = np.random.default_rng(SEED).uniform(-120, 130, (2, 3, 224, 224)).astype(np.float32)
    found = dict(zip(names, session_of(model).run(names, {"data": images}), strict=True))
    blobs = [key.removeprefix(f"{name}:") for key in stored.files if key.startswith(f"{name}:") and key.count(":") == 1]
    assert len(blobs) == 5 < len(names)
    for blob in blobs:
        sampled = found[blob].reshape(-1)[stored[f"{name}:{blob}:index"]]
        assert np.abs(sampled - stored[f"{name}:{blob}"]).max() < 1e-5 * stored[f"{name}:{blob}:largest"], blob


def test_last_version_of_blobs_written_in_place() -> None:
    ends = (("ReLU", "data", "x"), ("TanH", "x", "x"), ("AbsVal", "x", "y"), ("AbsVal", "data", "data"))
    layers = [layer(f"l{number}", type, bottom, top) for number, (type, bottom, top) in enumerate(ends)]
    net = read_net(parse_prototxt(input_layer("data", 2, 3, 4, 5) + "".join(layers)))
    assert [output.name for output in all_blobs(net).graph.output] == ["x", "y", "l3"]


def test_unread_inputs_stay() -> None:
    net = read_net(parse_prototxt(input_layer("data", 2, 3) + input_layer("label", 2) + layer("l", "TanH", "data")))
    assert [data.name for data in all_blobs(net).graph.input] == ["data", "label"]
