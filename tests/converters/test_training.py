"""Networks read as Caffe's solver runs them: labels, losses and comparisons stay, data layers are inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import ConversionError, Net, read_net
from converters.reader import parse_prototxt
from tests.caffe_files import caffemodel, input_layer, layer, network, written

BODY = layer("fc", "InnerProduct", "data", params="inner_product_param { num_output: 5 }")
LOSS = layer("loss", "SoftmaxWithLoss", "fc label")
IMAGES = 'image_data_param { source: "list.txt" batch_size: 4 new_height: 8 new_width: 9 }'


def data_layer(type: str = "ImageData", params: str = IMAGES) -> str:
    return layer("data", type, "", "data label", params)


def trained(text: str, **state: Any) -> Net:
    return read_net(parse_prototxt(text, "train_val.prototxt"), training=True, **state)


def told(net: Net) -> list[tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
    return [(one.name, one.type, one.bottoms, one.tops) for one in net.layers]


def test_losses_and_labels_stay() -> None:
    accuracy = layer("acc", "Accuracy", "fc label")
    net = trained(data_layer() + BODY + LOSS + accuracy + layer("quiet", "Silence", "label", ""), phase="TRAIN")
    assert told(net) == [
        ("fc", "InnerProduct", ("data",), ("fc",)),
        ("loss", "SoftmaxWithLoss", ("fc", "label"), ("loss",)),
        ("acc", "Accuracy", ("fc", "label"), ("acc",)),
        ("quiet", "Silence", ("label",), ()),
    ]
    assert [(data.name, data.shape) for data in net.inputs] == [("data", (4, 3, 8, 9)), ("label", (4,))]
    assert net.outputs == ("loss", "acc")
    assert net.phase == "TRAIN"


@pytest.mark.parametrize("training", [False, True])
def test_data_layers_are_told(training: bool) -> None:
    net = read_net(parse_prototxt(data_layer() + BODY + LOSS, "train_val.prototxt"), training=training)
    (data,) = net.data
    assert (data.name, data.type, data.tops) == ("data", "ImageData", ("data", "label"))
    assert data.params.image_data_param.source == "list.txt"
    assert net.phase == "TEST"


def test_an_input_that_nothing_reads_stays_an_input() -> None:
    net = trained(data_layer() + BODY)
    assert [data.name for data in net.inputs] == ["data", "label"]
    assert net.outputs == ("fc",)


def test_phases() -> None:
    text = (
        data_layer(params=IMAGES + " include { phase: TRAIN }")
        + data_layer(params=IMAGES.replace("batch_size: 4", "batch_size: 2") + " include { phase: TEST }")
        + BODY
        + LOSS
        + layer("acc", "Accuracy", "fc label", params="include { phase: TEST }")
    )
    train, test = trained(text, phase="TRAIN"), trained(text, phase="TEST")
    assert [one.name for one in train.layers] == ["fc", "loss"]
    assert [one.name for one in test.layers] == ["fc", "loss", "acc"]
    assert [net.inputs[0].shape for net in (train, test)] == [(4, 3, 8, 9), (2, 3, 8, 9)]


def test_a_loss_without_a_top_gets_its_own_name() -> None:
    net = trained(data_layer() + BODY + layer("loss", "SoftmaxWithLoss", "fc label", ""))
    assert told(net)[-1][-1] == ("loss",)
    assert net.outputs == ("loss",)


def test_blobs_in_place_have_names_of_their_own() -> None:
    net = trained(data_layer() + BODY + layer("relu", "ReLU", "fc", "fc") + LOSS)
    assert [one.tops for one in net.layers] == [("fc@fc",), ("fc",), ("loss",)]
    assert net.layers[-1].bottoms == ("fc", "label")


def test_mean_values_tell_the_channels() -> None:
    transform = "transform_param { crop_size: 7 mean_value: 104 mean_value: 117 mean_value: 123 }"
    net = trained(data_layer("Data", transform + " data_param { batch_size: 2 }") + BODY + LOSS)
    assert net.inputs[0].shape == (2, 3, 7, 7)
    unknown = trained(data_layer("Data", "transform_param { crop_size: 7 mean_value: 9 }") + BODY + LOSS)
    assert unknown.inputs[0].shape is None


def test_weights_are_attached(tmp_path: Path) -> None:
    text = input_layer("data", 1, 3) + input_layer("label", 1) + BODY + LOSS
    weights = [np.arange(15, dtype=np.float32).reshape(5, 3), np.zeros(5, np.float32)]
    file = written(tmp_path / "net.caffemodel", caffemodel(network(text), {"fc": weights}))
    net = read_net(written(tmp_path / "net.prototxt", text), file, training=True)
    np.testing.assert_array_equal(net.layers[0].blobs[0], weights[0])
    alone = read_net(file, training=True)
    assert told(alone) == told(net)


def test_the_same_layers_as_deployed() -> None:
    """Reading for training changes nothing of what is read for inference."""
    network = parse_prototxt(data_layer() + BODY + LOSS, "train_val.prototxt")
    before = read_net(network)
    read_net(network, training=True)
    after = read_net(network)
    assert told(before) == told(after) == [
        ("fc", "InnerProduct", ("data",), ("fc",)), ("loss", "Softmax", ("fc",), ("loss",)),
    ]  # fmt: skip


def test_googlenet_cam(reference: Path) -> None:
    """The original's own train_val: one loss, and two accuracies when tested."""
    file = reference / "nets" / "prototxt" / "train_val_googlenetCAM.prototxt"
    train = read_net(file, phase="TRAIN", training=True)
    test = read_net(file, phase="TEST", training=True)
    assert train.outputs == ("loss3/loss3",)
    assert test.outputs == ("loss3/loss3", "loss3/top-1", "loss3/top-5")
    assert [data.shape for data in train.inputs] == [(64, 3, 224, 224), (64,)]
    assert [data.shape for data in test.inputs] == [(50, 3, 224, 224), (50,)]
    assert train.data[0].params.transform_param.mirror
    assert not test.data[0].params.transform_param.mirror


def test_a_blob_of_the_other_phase_is_missed() -> None:
    text = data_layer(params=IMAGES + " include { phase: TRAIN }") + BODY + LOSS
    with pytest.raises(ConversionError, match=r"layer fc \(InnerProduct\): reads the blob 'data' of the layer 'data'"):
        trained(text, phase="TEST")
