"""Networks as they were trained -> as they are used: phases, stages, levels, data layers, losses."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import Message

from converters import ConversionError, ConversionWarning, Net, convert, read_net
from converters.reader import parse_prototxt
from converters.schema import caffe_pb2
from tests.caffe_files import caffemodel, input_layer, layer, network, weights_alone, written
from tests.converters.one_layer import run

RNG = np.random.default_rng(0)


def net_of(text: str, **state: object) -> Net:
    return read_net(parse_prototxt(text, "train_val.prototxt"), **state)


def error_of(text: str, **options: object) -> str:
    with pytest.raises(ConversionError) as caught:
        convert(net_of(text), **options)
    return str(caught.value)


def layers(net: Net) -> list[str]:
    return [layer.name for layer in net.layers]


# ------------------------------------------------------------------------------------------------------------- rules

# Rules, state (phase, level, stages), and whether Caffe has the layer. After the comments at NetStateRule in Caffe's
# schema and Net::StateMeetsRule: a rule is met where all that it names holds; one rule of several is enough.
PLAIN = ("TEST", 0, ())
RULES = [
    ("", PLAIN, True),
    ("", ("TRAIN", 7, ("a",)), True),
    # phase
    ("include { phase: TEST }", PLAIN, True),
    ("include { phase: TRAIN }", PLAIN, False),
    ("include { phase: TRAIN }", ("TRAIN", 0, ()), True),
    ("exclude { phase: TEST }", PLAIN, False),
    ("exclude { phase: TRAIN }", PLAIN, True),
    # an empty rule is always met
    ("include {}", PLAIN, True),
    ("exclude {}", PLAIN, False),
    # several rules: any of them
    ("include { phase: TRAIN } include { phase: TEST }", PLAIN, True),
    ("include { phase: TRAIN } include { stage: 'a' }", PLAIN, False),
    ("include { phase: TRAIN } include { stage: 'a' }", ("TEST", 0, ("a",)), True),
    ("exclude { phase: TRAIN } exclude { phase: TEST }", PLAIN, False),
    ("exclude { phase: TRAIN } exclude { stage: 'a' }", PLAIN, True),
    # levels: both ends belong to the range, and a network has level 0 unless told otherwise
    ("include { min_level: 0 }", PLAIN, True),
    ("include { min_level: 1 }", PLAIN, False),
    ("include { min_level: 1 }", ("TEST", 1, ()), True),
    ("include { min_level: 1 }", ("TEST", 2, ()), True),
    ("include { max_level: 0 }", PLAIN, True),
    ("include { max_level: -1 }", PLAIN, False),
    ("include { max_level: -1 }", ("TEST", -1, ()), True),
    ("include { min_level: 1 max_level: 2 }", ("TEST", 2, ()), True),
    ("include { min_level: 1 max_level: 2 }", ("TEST", 3, ()), False),
    ("exclude { min_level: 1 }", PLAIN, True),
    ("exclude { min_level: 1 }", ("TEST", 1, ()), False),
    # stages: all of `stage`, none of `not_stage`
    ("include { stage: 'a' }", PLAIN, False),
    ("include { stage: 'a' }", ("TEST", 0, ("a",)), True),
    ("include { stage: 'a' }", ("TEST", 0, ("b",)), False),
    ("include { stage: 'a' }", ("TEST", 0, ("b", "a")), True),
    ("include { stage: 'a' stage: 'b' }", ("TEST", 0, ("a",)), False),
    ("include { stage: 'a' stage: 'b' }", ("TEST", 0, ("b", "a")), True),
    ("include { stage: 'a' } include { stage: 'b' }", ("TEST", 0, ("b",)), True),
    ("include { not_stage: 'a' }", PLAIN, True),
    ("include { not_stage: 'a' }", ("TEST", 0, ("a",)), False),
    ("include { not_stage: 'a' not_stage: 'b' }", ("TEST", 0, ("b",)), False),
    ("include { stage: 'a' not_stage: 'b' }", ("TEST", 0, ("a",)), True),
    ("include { stage: 'a' not_stage: 'b' }", ("TEST", 0, ("a", "b")), False),
    ("exclude { stage: 'a' }", ("TEST", 0, ("a",)), False),
    ("exclude { not_stage: 'a' }", PLAIN, False),
    ("exclude { not_stage: 'a' }", ("TEST", 0, ("a",)), True),
    # all that one rule names must hold
    ("include { phase: TEST stage: 'a' min_level: 1 }", ("TEST", 1, ("a",)), True),
    ("include { phase: TEST stage: 'a' min_level: 1 }", ("TRAIN", 1, ("a",)), False),
    ("include { phase: TEST stage: 'a' min_level: 1 }", ("TEST", 0, ("a",)), False),
    ("include { phase: TEST stage: 'a' min_level: 1 }", ("TEST", 1, ()), False),
    ("exclude { phase: TEST stage: 'a' }", ("TEST", 0, ("b",)), True),
]


@pytest.mark.parametrize(("rules", "state", "is_there"), RULES)
@pytest.mark.parametrize("version", ["V1", "V2"])
def test_rules(rules: str, state: tuple[str, int, tuple[str, ...]], is_there: bool, version: str) -> None:
    text = input_layer("data", 1, 2) + layer("always", "ReLU", "data") + layer("maybe", "TanH", "data", params=rules)
    if version == "V1":
        text = text.replace("layer {", "layers {").replace('"ReLU"', "RELU").replace('"TanH"', "TANH")
        text = 'input: "data" input_shape { dim: 1 dim: 2 }' + text.partition("\n")[2]
    phase, level, stages = state
    net = net_of(text, phase=phase, level=level, stages=stages)
    assert layers(net) == (["always", "maybe"] if is_there else ["always"])


def test_include_and_exclude_are_refused() -> None:
    text = input_layer("data", 1, 2) + layer(
        "r", "ReLU", "data", params="include { phase: TEST } exclude { stage: 'a' }"
    )
    assert re.search(r"train_val\.prototxt: layer r \(ReLU\): found include and exclude rules", error_of(text))


def test_stages_of_the_file_are_added() -> None:
    """Caffe's Net(file, phase, level, stages) merges its arguments into the file's `state`; phase and level win."""
    text = (
        "state { phase: TRAIN level: 5 stage: 'deploy' }"
        + input_layer("data", 1, 2)
        + layer("file", "ReLU", "data", params="include { stage: 'deploy' }")
        + layer("argument", "ReLU", "data", params="include { stage: 'more' stage: 'deploy' }")
        + layer("phase", "ReLU", "data", params="include { phase: TRAIN }")
        + layer("level", "ReLU", "data", params="include { min_level: 5 }")
    )
    assert layers(net_of(text)) == ["file"]
    assert layers(net_of(text, stages=["more"])) == ["file", "argument"]
    assert layers(net_of(text, phase="TRAIN", level=5)) == ["file", "phase", "level"]


def test_one_blob_of_two_phases() -> None:
    text = input_layer("data", 1, 2) + layer("a", "ReLU", "data", "x", "include { phase: TRAIN }")
    text += layer("b", "TanH", "data", "x", "include { phase: TEST }") + layer("c", "AbsVal", "x")
    assert layers(net_of(text)) == ["b", "c"]
    assert layers(net_of(text, phase="TRAIN")) == ["a", "c"]


def test_blob_of_the_other_phase() -> None:
    text = input_layer("data", 1, 2) + layer("a", "ReLU", "data", params="include { phase: TRAIN }")
    said = error_of(text + layer("b", "TanH", "a"))
    for part in ("train_val.prototxt", "layer b (TanH)", "'a'", "phase"):
        assert part in said


def test_no_layer_of_the_phase() -> None:
    text = input_layer("data", 1, 2) + layer("a", "ReLU", "data", params="include { phase: TRAIN }")
    assert re.search(r"train_val\.prototxt: has no layers left in phase TEST", error_of(text))


def test_no_layer_of_the_phase_with_weights(tmp_path: Path) -> None:
    """That is not the weights' fault."""
    text = input_layer("data", 1, 2) + layer("a", "InnerProduct", "data", params="include { phase: TRAIN }")
    with pytest.raises(ConversionError, match=r"has no layers left in phase TEST"):
        convert(written(tmp_path / "p", text), written(tmp_path / "w", weights_alone({"a": [np.ones((1, 2))]})))


# -------------------------------------------------------------------------------------------------------- data layers

WEIGHTS = {
    "conv": [RNG.standard_normal((4, 3, 3, 3), np.float32), RNG.standard_normal(4, np.float32)],
    "fc": [RNG.standard_normal((5, 4), np.float32), RNG.standard_normal(5, np.float32)],
}
CONV = layer("conv", "Convolution", "data", params="convolution_param { num_output: 4 kernel_size: 3 }")
POOL = layer("pool", "Pooling", "conv", params="pooling_param { pool: AVE global_pooling: true }")
FC = layer("fc", "InnerProduct", "pool", params="inner_product_param { num_output: 5 }")
BODY = CONV + POOL + FC
LOSS = layer("loss", "SoftmaxWithLoss", "fc label")


def data_layer(type: str = "Data", params: str = "transform_param { crop_size: 9 }", tops: str = "data label") -> str:
    return layer("source", type, "", tops, params)


def trained(folder: Path, text: str, **options: object) -> Net:
    """The text as a network with WEIGHTS; what was left aside is no matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        weights = written(folder / "net.caffemodel", weights_alone(WEIGHTS))
        return read_net(written(folder / "train_val.prototxt", text), weights, **options)


@pytest.mark.parametrize(
    ("source", "shape"),
    [
        (data_layer(params="transform_param { crop_size: 9 } data_param { batch_size: 32 }"), (32, 3, 9, 9)),
        (data_layer(params="data_param { crop_size: 9 batch_size: 4 }"), (4, 3, 9, 9)),  # where it stood in 2013
        (data_layer(params="transform_param { crop_h: 8 crop_w: 9 }"), (1, 3, 8, 9)),  # SSD
        (data_layer("AnnotatedData", "transform_param { resize_param { height: 8 width: 9 } }"), (1, 3, 8, 9)),
        (data_layer("ImageData", "image_data_param { new_height: 8 new_width: 9 batch_size: 2 }"), (2, 3, 8, 9)),
        (data_layer("ImageData", "transform_param { crop_size: 9 } image_data_param { new_height: 99 new_width: 99 }"),
         (1, 3, 9, 9)),
        (data_layer("WindowData", "window_data_param { crop_size: 9 batch_size: 8 }"), (8, 3, 9, 9)),
        (data_layer("MemoryData", "memory_data_param { batch_size: 6 channels: 3 height: 8 width: 9 }"), (6, 3, 8, 9)),
        (layer("source", "DummyData", "", "data", "dummy_data_param { shape { dim: [2, 3, 8, 9] } "
               "data_filler { type: 'gaussian' } }"), (2, 3, 8, 9)),
    ],
)  # fmt: skip
def test_data_layers_become_inputs(source: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    net = trained(tmp_path, source + BODY)
    assert [(data.name, data.shape) for data in net.inputs if data.name == "data"] == [("data", shape)]
    model = convert(net)
    assert [value.name for value in model.graph.output] == ["fc"]
    first, *rest = model.graph.input[0].type.tensor_type.shape.dim
    assert first.dim_param == "N"
    assert [dim.dim_value for dim in rest] == list(shape[1:])


def test_v1_data_layer(tmp_path: Path) -> None:
    source = 'layers { name: "d" type: DATA top: "data" top: "label" data_param { batch_size: 4 crop_size: 9 } }\n'
    conv = CONV.replace("layer {", "layers {").replace('"Convolution"', "CONVOLUTION")
    assert trained(tmp_path, source + conv).inputs[0].shape == (4, 3, 9, 9)


IP = "inner_product_param { num_output: 5 }"
# Layers that read the data, the shape of the first weights, and the channels that the data must have.
CHANNELS = {
    "grouped convolution": (
        layer("l", "Convolution", "data", params="convolution_param { group: 2 }"),
        (8, 3, 1, 1),
        6,
    ),
    "depthwise": (layer("l", "DepthwiseConvolution", "data", params="convolution_param { group: 6 }"), (6, 1, 1, 1), 6),
    "behind ReLU": (layer("r", "ReLU", "data", "data") + layer("l", "Convolution", "data"), (8, 6, 1, 1), 6),
    "behind pooling": (layer("p", "Pooling", "data", "p") + layer("l", "Convolution", "p"), (8, 6, 1, 1), 6),
    "behind Split": (layer("s", "Split", "data", "a b") + layer("l", "Convolution", "b"), (8, 6, 1, 1), 6),
    "BatchNorm": (layer("l", "BatchNorm", "data"), (6,), 6),
    "Scale": (layer("l", "Scale", "data"), (6,), 6),
    "InnerProduct": (layer("l", "InnerProduct", "data", params=IP), (5, 6 * 81), 6),
    "InnerProduct before 2015": (layer("l", "InnerProduct", "data", params=IP), (1, 1, 5, 6 * 81), 6),
    "InnerProduct of another size": (layer("l", "InnerProduct", "data", params=IP), (5, 6), None),
    "a number": (layer("l", "InnerProduct", "data"), (), None),
    "behind what changes them": (
        layer("c", "Concat", "data data", "c") + layer("l", "Convolution", "c"),
        (8, 6, 1, 1),
        None,
    ),
}


@pytest.mark.parametrize("case", CHANNELS)
def test_channels_come_from_the_first_weights(case: str, tmp_path: Path) -> None:
    text, shape, channels = CHANNELS[case]
    weights = written(tmp_path / "w", weights_alone({"l": [np.zeros(shape, np.float32)]}))
    (data,) = read_net(written(tmp_path / "p", data_layer(tops="data") + text), weights).inputs
    assert data.shape == (None if channels is None else (1, channels, 9, 9))


@pytest.mark.parametrize(
    "source",
    [
        data_layer(params=""),
        data_layer("HDF5Data", "hdf5_data_param { batch_size: 4 }"),
        data_layer("ImageData", ""),
        layer("source", "Python", "", "data label", "python_param { module: 'm' layer: 'L' }"),
        layer("source", "Input", "", "data"),
    ],
    ids=["Data", "HDF5Data", "ImageData", "Python", "Input"],
)
def test_unknown_shapes_are_asked_for(source: str, tmp_path: Path) -> None:
    net = trained(tmp_path, source + BODY)
    with pytest.raises(ConversionError) as caught:
        convert(net)
    for part in ("train_val.prototxt", "the input 'data'", "--input-shape data=1,3,224,224"):
        assert part in str(caught.value)
    model = convert(net, input_shapes={"data": (1, 3, 9, 9)}, outputs=["fc"])
    assert run(model, {"data": np.zeros((2, 3, 9, 9))})[0].shape == (2, 5)


def test_a_shape_that_is_given_wins(tmp_path: Path) -> None:
    model = convert(trained(tmp_path, data_layer() + BODY + LOSS), input_shapes={"data": (7, 3, 12, 5)})
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value or dim.dim_param for dim in dims] == ["N", 3, 12, 5]


def test_other_tops_of_a_data_layer_are_inputs_where_they_are_read(tmp_path: Path) -> None:
    text = data_layer() + BODY + layer("both", "Concat", "fc label", params="concat_param { axis: 1 }")
    net = trained(tmp_path, text)
    assert [data.name for data in net.inputs] == ["data", "label"]
    model = convert(net, input_shapes={"label": (1, 2)})
    found = run(model, {"data": np.zeros((1, 3, 9, 9)), "label": np.array([[7, 8]])})
    assert found[0][0, -2:].tolist() == [7, 8]


@pytest.mark.parametrize(
    "rest",
    ["", layer("quiet", "Silence", "label", ""), LOSS.replace("layer {", "layer { include { phase: TRAIN }")],
    ids=["unread", "silenced", "read in training"],
)
def test_label_that_nothing_reads_goes(rest: str, tmp_path: Path) -> None:
    net = trained(tmp_path, data_layer() + BODY + rest)
    assert [data.name for data in net.inputs] == ["data"]
    assert net.outputs == ("fc",)


# -------------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize(
    ("loss", "inference"),
    [
        ("SoftmaxWithLoss", "Softmax"),
        ("InfogainLoss", "Softmax"),
        ("SigmoidCrossEntropyLoss", "Sigmoid"),
    ],
)
@pytest.mark.parametrize(
    ("tops", "top"), [("", "the_loss"), ("one", "one"), ("one two", "two")], ids=["no top", "one top", "two tops"]
)
def test_losses_take_their_inference_form(loss: str, inference: str, tops: str, top: str, tmp_path: Path) -> None:
    """With two tops the second one is the probabilities; without any, Caffe makes one up."""
    net = trained(tmp_path, data_layer() + BODY + layer("the_loss", loss, "fc label", tops, "loss_weight: 1"))
    last = net.layers[-1]
    assert (last.name, last.type, last.bottoms, last.tops) == ("the_loss", inference, ("fc",), (top,))
    assert net.outputs == (top,)
    assert [data.name for data in net.inputs] == ["data"]


def test_softmax_loss_answers_as_softmax(tmp_path: Path) -> None:
    data = RNG.standard_normal((2, 3, 9, 9), np.float32)
    found = run(convert(trained(tmp_path, data_layer() + BODY + LOSS)), {"data": data})[0]
    (scores,) = run(convert(trained(tmp_path, data_layer() + BODY)), {"data": data})
    exponents = np.exp(scores - scores.max(1, keepdims=True))
    np.testing.assert_allclose(found, exponents / exponents.sum(1, keepdims=True), rtol=1e-5)


def test_axis_of_a_loss_is_kept() -> None:
    text = input_layer("x", 1, 2, 3) + input_layer("label", 1, 2)
    text += layer("loss", "SoftmaxWithLoss", "x label", params="softmax_param { axis: 2 }")
    (found,) = run(convert(net_of(text)), {"x": np.zeros((1, 2, 3))})
    np.testing.assert_allclose(found, np.full((1, 2, 3), 1 / 3), rtol=1e-6)


COMPARED = layer("wide", "InnerProduct", "pool", params="inner_product_param { num_output: 5 }")


@pytest.mark.parametrize(
    "comparison",
    [
        layer("acc", "Accuracy", "fc label"),
        layer("acc", "Accuracy", "fc label", "acc per_class"),
        layer("l", "EuclideanLoss", "fc label"),
        layer("l", "EuclideanLoss", "label fc"),
        layer("l", "HingeLoss", "fc label"),
        layer("l", "SmoothL1Loss", "fc label"),
        layer("l", "MultinomialLogisticLoss", "fc label"),
        layer("out", "HDF5Output", "fc label", ""),
        layer("quiet", "Silence", "label", ""),
        layer("l", "HingeLoss", "fc label") + layer("acc", "Accuracy", "fc label") + layer("q", "Silence", "l", ""),
    ],
)
def test_comparisons_go_with_what_only_they_read(comparison: str, tmp_path: Path) -> None:
    net = trained(tmp_path, data_layer() + BODY + comparison)
    assert layers(net) == ["conv", "pool", "fc"]
    assert net.outputs == ("fc",)
    assert [data.name for data in net.inputs] == ["data"]


@pytest.mark.parametrize(
    "feeding",
    [
        layer("flat", "Flatten", "label", "target"),
        layer("flat", "Reshape", "label", "mid", "reshape_param { shape { dim: -1 } }")
        + layer("scaled", "Power", "mid", "target", "power_param { scale: 2 }"),
        layer("half", "Power", "label", "target") + layer("again", "Power", "target", "target"),
        layer("cut", "Slice", "label", "target other") + layer("also", "EuclideanLoss", "fc other"),
    ],
    ids=["one", "two", "in place", "slice"],
)
def test_layers_that_only_feed_labels_go(feeding: str, tmp_path: Path) -> None:
    net = trained(tmp_path, data_layer() + feeding + BODY + layer("loss", "SoftmaxWithLoss", "fc target"))
    assert layers(net) == ["conv", "pool", "fc", "loss"]
    assert [data.name for data in net.inputs] == ["data"]
    assert net.outputs == ("loss",)


def test_a_layer_that_also_feeds_an_output_stays(tmp_path: Path) -> None:
    """An autoencoder: its target is its input."""
    text = data_layer(tops="data") + layer("flat", "Flatten", "data") + BODY
    text += layer("more", "TanH", "flat") + layer("l", "EuclideanLoss", "fc flat")
    net = trained(tmp_path, text)
    assert layers(net) == ["flat", "conv", "pool", "fc", "more"]
    assert net.outputs == ("fc", "more")


def test_silence_hides_an_output(tmp_path: Path) -> None:
    text = data_layer() + BODY + layer("side", "TanH", "conv") + layer("quiet", "Silence", "side", "") + LOSS
    net = trained(tmp_path, text)
    assert net.outputs == ("loss",)
    assert [value.name for value in convert(net).graph.output] == ["loss"]
    assert len(convert(net, outputs=["side"]).graph.output) == 1


def test_auxiliary_losses_stay_as_outputs(tmp_path: Path) -> None:
    text = data_layer() + BODY + layer("aux", "SoftmaxWithLoss", "pool label", params="loss_weight: 0.3")
    text += layer("aux_top1", "Accuracy", "pool label", params="include { phase: TEST }") + LOSS
    net = trained(tmp_path, text)
    assert net.outputs == ("aux", "loss")
    assert [value.name for value in convert(net).graph.output] == ["aux", "loss"]


def test_blob_that_only_a_comparison_wrote() -> None:
    text = (
        input_layer("x", 1, 2)
        + input_layer("label", 1)
        + layer("acc", "Accuracy", "x label")
        + layer("r", "ReLU", "acc")
    )
    said = error_of(text)
    for part in ("layer r (ReLU)", "'acc'"):
        assert part in said


# ------------------------------------------------------------------------------------------------------ whole networks

# What says how to train and nothing of what is computed.
TRAINING_ONLY = (
    "param",
    "loss_weight",
    "include",
    "exclude",
    "propagate_down",
    "phase",
    "name",
    "type",
    "bottom",
    "top",
)


def computed(layer: caffe_pb2.LayerParameter) -> Message:
    left = caffe_pb2.LayerParameter()
    left.CopyFrom(layer)
    for name in TRAINING_ONLY:
        left.ClearField(name)
    for filler in ("weight_filler", "bias_filler"):
        left.convolution_param.ClearField(filler)
        left.inner_product_param.ClearField(filler)
    return left


def test_googlenet_cam_as_trained_is_googlenet_cam_as_deployed(reference: Path) -> None:
    folder = reference / "nets" / "prototxt"
    as_trained = read_net(folder / "train_val_googlenetCAM.prototxt")
    as_deployed = read_net(folder / "deploy_googlenetCAM.prototxt")
    assert [data.name for data in as_trained.inputs] == ["data"]
    assert as_trained.outputs == ("loss3/loss3",)
    assert as_deployed.outputs == ("prob",)

    def told(net: Net) -> list[tuple[object, ...]]:
        last = {net.outputs[0]: "the last blob"}
        return [
            (
                last.get(layer.name, layer.name), layer.type, layer.bottoms,
                tuple(last.get(top, top) for top in layer.tops), computed(layer.params),
            )
            for layer in net.layers
        ]  # fmt: skip

    assert told(as_trained) == told(as_deployed)


TRAIN_VAL = (
    layer("data", "Data", "", "data label", "include { phase: TRAIN } transform_param { crop_size: 9 }")
    + layer("data", "Data", "", "data label", "include { phase: TEST } transform_param { crop_size: 9 }")
    + CONV
    + layer("relu", "ReLU", "conv", "conv")
    + POOL
    + layer("aux", "InnerProduct", "pool", "aux", "inner_product_param { num_output: 5 } include { phase: TRAIN }")
    + layer("aux/loss", "SoftmaxWithLoss", "aux label", "aux/loss", "loss_weight: 0.3 include { phase: TRAIN }")
    + layer("drop", "Dropout", "pool", "pool")
    + FC
    + LOSS
    + layer("acc", "Accuracy", "fc label", params="include { phase: TEST }")
)
# The same as Caffe's solver saves it: filtered, its phase in every layer, a Split where a blob has several readers.
SNAPSHOT = (
    layer("data", "Data", "", "data label", "include { phase: TRAIN } phase: TRAIN transform_param { crop_size: 9 }")
    + layer("label_data_1_split", "Split", "label", "label_data_1_split_0 label_data_1_split_1", "phase: TRAIN")
    + CONV.replace("layer {", "layer { phase: TRAIN")
    + layer("relu", "ReLU", "conv", "conv", "phase: TRAIN")
    + POOL.replace("layer {", "layer { phase: TRAIN")
    + layer("pool_pool_0_split", "Split", "pool", "pool_pool_0_split_0 pool_pool_0_split_1", "phase: TRAIN")
    + layer("aux", "InnerProduct", "pool_pool_0_split_0", "aux",
            "inner_product_param { num_output: 5 } include { phase: TRAIN } phase: TRAIN")
    + layer("aux/loss", "SoftmaxWithLoss", "aux label_data_1_split_0", "aux/loss",
            "loss_weight: 0.3 include { phase: TRAIN } phase: TRAIN")
    + layer("drop", "Dropout", "pool_pool_0_split_1", "pool_pool_0_split_1", "phase: TRAIN")
    + layer("fc", "InnerProduct", "pool_pool_0_split_1", "fc", "inner_product_param { num_output: 5 } phase: TRAIN")
    + layer("loss", "SoftmaxWithLoss", "fc label_data_1_split_1", "loss", "loss_weight: 1 phase: TRAIN")
)  # fmt: skip
SNAPSHOT_WEIGHTS = {**WEIGHTS, "aux": [RNG.standard_normal((5, 4), np.float32), RNG.standard_normal(5, np.float32)]}


def test_a_training_caffemodel_alone(tmp_path: Path) -> None:
    """It is converted from the network that it carries, auxiliary classifier and all."""
    alone = written(tmp_path / "net_iter_100.caffemodel", caffemodel(network(SNAPSHOT), SNAPSHOT_WEIGHTS))
    net = read_net(alone)
    assert [(data.name, data.shape) for data in net.inputs] == [("data", (1, 3, 9, 9))]
    assert net.outputs == ("aux/loss", "loss")
    data = RNG.standard_normal((3, 3, 9, 9), np.float32)
    with pytest.warns(ConversionWarning, match=r"1 layer\(s\) .*: aux$"):
        model = convert(written(tmp_path / "train_val.prototxt", TRAIN_VAL), alone)
    assert [value.name for value in model.graph.output] == ["loss"]
    (expected,) = run(model, {"data": data})
    np.testing.assert_allclose(run(convert(net, outputs=["loss"]), {"data": data})[0], expected, rtol=1e-6)
    assert read_net(tmp_path / "train_val.prototxt", alone, phase="TRAIN").outputs == ("aux/loss", "loss")


def test_a_caffemodel_of_both_phases_is_filtered(tmp_path: Path) -> None:
    """Tools other than Caffe save networks as they were described."""
    both = written(tmp_path / "net.caffemodel", caffemodel(network(TRAIN_VAL), SNAPSHOT_WEIGHTS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        net = read_net(both)
    assert layers(net) == ["conv", "relu", "pool", "drop", "fc", "loss"]
    assert net.outputs == ("loss",)


def test_a_snapshot_with_a_layer_of_both_phases(tmp_path: Path) -> None:
    """A rule for each phase: `include { phase: TRAIN } include { phase: TEST }`."""
    text = SNAPSHOT.replace(
        "layer { phase: TRAIN", "layer { include { phase: TRAIN } include { phase: TEST } phase: TRAIN", 1
    )
    net = read_net(written(tmp_path / "net.caffemodel", caffemodel(network(text), SNAPSHOT_WEIGHTS)))
    assert net.outputs == ("aux/loss", "loss")
