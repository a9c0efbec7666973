"""Net surgery: against the released CAM networks, and real Caffe's answer to one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from scipy.io import loadmat
from typer.testing import CliRunner

from camrt import CamrtError, matlab
from camrt.train.surgery import RECIPES, apply_recipe, surgery
from converters import ConversionError, convert, read_net, zoo
from converters.conversion import weight_shapes
from converters.net import Net
from converters.reader import Network, parse_prototxt, read_prototxt
from converters.schema import caffe_pb2
from converters.writer import write_caffemodel
from tests.seeded import SeededModel

VGG16 = "VGG_ILSVRC_16_layers.prototxt"


def written(text: str, tmp_path: Path, name: str = "made.prototxt") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def small(body: str) -> Network:
    """A network of 3 x 20 x 20, a convolution "one", what is given, and a linear layer."""
    return parse_prototxt(
        f"""name: "small"
        input: "data" input_dim: 1 input_dim: 3 input_dim: 20 input_dim: 20
        layer {{ name: "one" type: "Convolution" bottom: "data" top: "one"
                 convolution_param {{ num_output: 4 kernel_size: 3 }} }}
        {body}
        layer {{ name: "fc" type: "InnerProduct" bottom: "last" top: "fc" inner_product_param {{ num_output: 2 }} }}
        """,
        "small.prototxt",
    )


def conv(name: str, bottom: str, **more: Any) -> str:
    extra = " ".join(f"{key}: {value}" for key, value in more.items())
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" '
        f"convolution_param {{ num_output: 4 kernel_size: 3 pad: 1 {extra} }} }}"
    )


def structure(net: Net) -> list[Any]:
    """What computes: types, wiring and parameters, without names of layers, fillers and rates."""
    numbers = {name: number for number, name in enumerate([one.name for one in net.inputs])}
    found: list[Any] = []
    for layer in net.layers:
        if layer.type in ("Dropout", "Softmax"):
            numbers |= dict.fromkeys(layer.tops, numbers[layer.bottoms[0]])
            continue
        params = caffe_pb2.LayerParameter()
        params.CopyFrom(layer.params)
        for field in ("name", "bottom", "top", "param", "include", "loss_weight", "phase"):
            params.ClearField(field)
        if params.type == "Pooling" and params.pooling_param.kernel_size == 14:  # the whole map
            params.pooling_param.ClearField("kernel_size")
            params.pooling_param.ClearField("stride")
            params.pooling_param.global_pooling = True
        for param in (params.convolution_param, params.inner_product_param):
            param.ClearField("weight_filler")
            param.ClearField("bias_filler")
        found.append((params.SerializeToString(), [numbers[bottom] for bottom in layer.bottoms]))
        numbers |= {top: len(numbers) + len(found) for top in layer.tops}
    return found


# ----------------------------------------------------------------------------------------------- the released networks


def test_vgg16_becomes_the_released_vgg16cam(reference: Path, tmp_path: Path) -> None:
    made = surgery(zoo.models_folder() / VGG16, "conv5_3", classes=1000, dropout=0.5)
    assert made.after == "relu5_3"
    assert made.dropped[0] == "pool5"
    assert made.dropped[-1] == "prob"
    ours = read_net(written(made.text(), tmp_path))
    theirs = read_net(reference / "nets" / "prototxt" / "deploy_vgg16CAM.prototxt")
    assert structure(ours) == structure(theirs)
    assert [(one.name, one.shape[1:] if one.shape else None) for one in ours.inputs] == [("data", (3, 224, 224))]
    names = [layer.name for layer in theirs.layers]
    assert [layer.name for layer in ours.layers if layer.name != "loss"] == [name for name in names if name != "prob"]
    assert weight_shapes(ours) == weight_shapes(theirs)


@pytest.mark.slow
def test_cut_vgg16_answers_as_vgg16cam_in_real_caffe(reference: Path, tmp_path: Path) -> None:
    """At full size with seeded weights, which carry the released network's names."""
    expected = np.load(reference / "nets" / "vgg16CAM" / "expected.npz")
    table = json.loads((reference / "nets" / "vgg16CAM" / "shapes.json").read_text())
    weights = SeededModel.of_table(table).write(tmp_path / "net.caffemodel", v1=True)
    made = surgery(zoo.models_folder() / VGG16, "conv5_3", classes=1000)
    model = convert(read_net(written(made.text(), tmp_path), weights), outputs=["loss"])
    mean = loadmat(reference / "matlab_demo" / "ilsvrc_2012_mean.mat")["mean_data"].astype(np.float32)
    with Image.open(reference / "matlab_demo" / "img1.jpg") as photo:
        image = matlab.imresize(np.asarray(photo.convert("RGB")), (256, 256))
    crops = matlab.prepare_image(image, mean.transpose(1, 0, 2))
    (scores,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"data": crops[4:5]})
    np.testing.assert_allclose(scores, expected["scores"][4:5], rtol=1e-3, atol=1e-6)


def test_googlenet_becomes_the_released_googlenetcam(reference: Path, tmp_path: Path) -> None:
    """Cut after a Concat; the released file names train and test data, rates and fillers too."""
    googlenet = parse_prototxt(zoo.find("googlenet").prototxt(), "googlenet")
    made = surgery(googlenet, "inception_4e/output", classes=1000)
    theirs = read_prototxt(reference / "nets" / "prototxt" / "train_val_googlenetCAM.prototxt").message
    ours = {layer.name: layer for layer in made.message.layer}
    for name in ("CAM_conv", "CAM_relu", "CAM_fc"):
        (released,) = (layer for layer in theirs.layer if layer.name == name)
        if name == "CAM_conv":  # vgg16CAM has 0 here, and so have we
            released.convolution_param.bias_filler.value = 0
        assert ours[name] == released, name
    released_net = read_net(reference / "nets" / "prototxt" / "train_val_googlenetCAM.prototxt")
    assert structure(read_net(written(made.text(), tmp_path))) == structure(released_net)


def test_a_train_val_keeps_its_data_layers_and_rates(reference: Path, tmp_path: Path) -> None:
    """V2 with data layers, already a CAM network: its head goes, and comes anew for other classes."""
    file = reference / "nets" / "prototxt" / "train_val_googlenetCAM.prototxt"
    made = surgery(file, "inception_4e/output", classes=20)
    theirs = {(layer.name, str(layer.include)): layer for layer in read_prototxt(file).message.layer}
    for layer in made.message.layer:
        if not layer.name.startswith(("CAM_", "loss", "accuracy")):
            assert layer == theirs[layer.name, str(layer.include)]
    assert [layer.type for layer in made.message.layer][:2] == ["Data", "Data"]
    for phase in ("TRAIN", "TEST"):
        net = read_net(written(made.text(), tmp_path), phase=phase, training=True)
        assert [one.name for one in net.inputs] == ["data", "label"]
    assert set(net.outputs) == {"loss", "accuracy/top-1", "accuracy/top-5"}


@pytest.mark.parametrize("name", ["deploy_vgg16CAM.prototxt", "deploy_alexnetplusCAM_imagenet.prototxt"])
def test_v1_files(name: str, reference: Path, tmp_path: Path) -> None:
    after = "conv5_3" if "vgg" in name else "conv5"
    file = reference / "nets" / "prototxt" / name
    made = surgery(file, after, classes=7)
    old = {layer.name: layer for layer in read_prototxt(file).message.layer}
    kept = [layer for layer in made.message.layer if layer.name in made.kept]
    assert kept
    assert all(layer == old[layer.name] for layer in kept)
    assert "layers {" not in made.text()
    net = read_net(written(made.text(), tmp_path), phase="TEST", training=True)
    assert net.layers[-1].name == "accuracy/top-5"


# --------------------------------------------------------------------------------------------------------- the recipes


def alexnet(*, norm_first: bool) -> Network:
    """AlexNet as BVLC's deploy.prototxt describes it; or CaffeNet, which pools before it normalizes."""

    def block(number: int, bottom: str, window: str) -> str:
        first, second = ("norm", "pool") if norm_first else ("pool", "norm")
        what = {
            "norm": 'type: "LRN" lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }',
            "pool": 'type: "Pooling" pooling_param { pool: MAX kernel_size: 3 stride: 2 }',
        }
        return (
            f'layer {{ name: "conv{number}" type: "Convolution" bottom: "{bottom}" top: "conv{number}" '
            f"convolution_param {{ {window} }} }}"
            f'layer {{ name: "relu{number}" type: "ReLU" bottom: "conv{number}" top: "conv{number}" }}'
            f'layer {{ name: "{first}{number}" {what[first]} bottom: "conv{number}" top: "{first}{number}" }}'
            f'layer {{ name: "{second}{number}" {what[second]} bottom: "{first}{number}" top: "{second}{number}" }}'
        )

    def plain(number: int, bottom: str, window: str) -> str:
        return (
            f'layer {{ name: "conv{number}" type: "Convolution" bottom: "{bottom}" top: "conv{number}" '
            f"convolution_param {{ kernel_size: 3 pad: 1 {window} }} }}"
            f'layer {{ name: "relu{number}" type: "ReLU" bottom: "conv{number}" top: "conv{number}" }}'
        )

    last = "pool" if norm_first else "norm"
    linear = "".join(
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" '
        f"inner_product_param {{ num_output: {outputs} }} }}"
        for name, bottom, outputs in (("fc6", "pool5", 4096), ("fc7", "fc6", 4096), ("fc8", "fc7", 1000))
    )
    return parse_prototxt(
        'name: "AlexNet" input: "data" input_dim: 10 input_dim: 3 input_dim: 227 input_dim: 227 '
        + block(1, "data", "num_output: 96 kernel_size: 11 stride: 4")
        + block(2, f"{last}1", "num_output: 256 kernel_size: 5 pad: 2 group: 2")
        + plain(3, f"{last}2", "num_output: 384")
        + plain(4, "conv3", "num_output: 384 group: 2")
        + plain(5, "conv4", "num_output: 256 group: 2")
        + 'layer { name: "pool5" type: "Pooling" bottom: "conv5" top: "pool5" pooling_param '
        + "{ pool: MAX kernel_size: 3 stride: 2 } }"
        + linear
        + 'layer { name: "prob" type: "Softmax" bottom: "fc8" top: "prob" }',
        "alexnet.prototxt",
    )


@pytest.mark.parametrize("norm_first", [True, False], ids=["AlexNet", "CaffeNet"])
@pytest.mark.parametrize(("data", "classes"), [("imagenet", 1000), ("places205", 205)])
def test_alexnet_becomes_the_released_alexnetplus(
    norm_first: bool, data: str, classes: int, reference: Path, tmp_path: Path
) -> None:
    made = apply_recipe(alexnet(norm_first=norm_first), "alexnetplus", classes=classes)
    ours = read_net(written(made.text(), tmp_path))
    theirs = read_net(reference / "nets" / "prototxt" / f"deploy_alexnetplusCAM_{data}.prototxt")
    assert structure(ours) == structure(theirs)
    # conv5 has other channels than AlexNet's: under another name it is not initialized from that.
    names = [layer.name.removesuffix("_2") for layer in ours.layers if layer.type not in ("Dropout", "Softmax")]
    assert names == [layer.name for layer in theirs.layers if layer.type not in ("Dropout", "Softmax")]
    assert made.new == ("conv5_2", "conv6", "conv7", "fc9")
    shapes = {name.removesuffix("_2"): shape for name, shape in weight_shapes(ours).items()}
    assert shapes == weight_shapes(theirs)
    assert [layer.name for layer in made.message.layer if layer.type == "Dropout"] == ["drop8"]


@pytest.mark.parametrize(("recipe", "released"), [("vgg16", "deploy_vgg16CAM"), ("googlenet", "deploy_googlenetCAM")])
def test_recipes_of_the_other_released_networks(recipe: str, released: str, reference: Path, tmp_path: Path) -> None:
    classifier = parse_prototxt(zoo.find(recipe).prototxt(), recipe)
    ours = read_net(written(apply_recipe(classifier, recipe, classes=1000).text(), tmp_path))
    theirs = read_net(reference / "nets" / "prototxt" / f"{released}.prototxt")
    assert structure(ours) == structure(theirs)
    assert weight_shapes(ours) == weight_shapes(theirs)


def test_a_recipe_of_another_network() -> None:
    with pytest.raises(CamrtError, match=r"alexnet.prototxt: .*no layer named 'conv5_3', expected VGG-16.*--after"):
        apply_recipe(alexnet(norm_first=True), "vgg16", classes=2)
    with pytest.raises(CamrtError, match="no average pooling, expected a network that ends in one"):
        apply_recipe(alexnet(norm_first=True), "inception_v3", classes=2)
    with pytest.raises(CamrtError, match=f"'lenet', expected one of {', '.join(RECIPES)}"):
        apply_recipe(alexnet(norm_first=True), "lenet", classes=2)
    with pytest.raises(CamrtError, match=r"alexnet\.prototxt: found classes 0"):
        apply_recipe(alexnet(norm_first=True), "alexnetplus", classes=0)


# --------------------------------------------------------------------------------------------------------- what it does


@pytest.mark.filterwarnings("ignore:.*left out")  # one file holds the weights of both networks
def test_it_computes_what_the_classifier_did_up_to_the_cut(tmp_path: Path) -> None:
    network = small('layer { name: "r" type: "ReLU" bottom: "one" top: "one" }' + conv("last", "one"))
    old = read_net(network)
    generator = np.random.default_rng(2)
    weights = {
        name: [generator.standard_normal(shape, np.float32) for shape in shapes]
        for name, shapes in weight_shapes(old).items()
    }
    made = surgery(network, "one", classes=3, channels=6)
    new = read_net(written(made.text(), tmp_path))
    weights |= {
        name: [generator.standard_normal(shape, np.float32) for shape in shapes]
        for name, shapes in weight_shapes(new).items()
        if name not in weights
    }
    write_caffemodel(tmp_path / "w.caffemodel", weights)
    data = generator.standard_normal((1, 3, 20, 20), np.float32)
    before = convert(read_net(network, tmp_path / "w.caffemodel"), outputs=["one"])
    made_net = read_net(tmp_path / "made.prototxt", tmp_path / "w.caffemodel")
    after = convert(made_net, outputs=["one", "CAM_conv", "loss"])
    (expected,) = onnxruntime.InferenceSession(before.SerializeToString()).run(None, {"data": data})
    one, maps, scores = onnxruntime.InferenceSession(after.SerializeToString()).run(None, {"data": data})
    np.testing.assert_array_equal(one, expected)
    linear, bias = weights["CAM_fc"]
    logits = maps.mean(axis=(2, 3)) @ linear.T + bias
    np.testing.assert_allclose(scores, np.exp(logits) / np.exp(logits).sum(), rtol=1e-4, atol=1e-6)


def test_what_belongs_to_a_convolution_stays_with_it(tmp_path: Path) -> None:
    """In place or under a name of its own; not a pooling, and not where another layer reads it too."""
    body = (
        'layer { name: "bn" type: "BatchNorm" bottom: "one" top: "n" }'
        'layer { name: "s" type: "Scale" bottom: "n" top: "n" }'
        'layer { name: "r" type: "ReLU" bottom: "n" top: "r" }'
        'layer { name: "last" type: "Pooling" bottom: "r" top: "last" pooling_param { kernel_size: 2 } }'
    )
    made = surgery(small(body), "one", classes=2)
    assert (made.after, made.kept, made.dropped) == ("r", ("one", "bn", "s", "r"), ("last", "fc"))
    assert made.message.layer[6].bottom == ["r"]
    assert surgery(small(body), "last", classes=2).after == "last"
    two = (
        'layer { name: "r" type: "ReLU" bottom: "one" top: "r" }'
        'layer { name: "last" type: "Eltwise" bottom: "one" bottom: "r" top: "last" }'
    )
    with pytest.raises(CamrtError, match=r"one of several branches.*cut after 'last'"):
        surgery(small(two), "r", classes=2)
    assert surgery(small(two), "one", classes=2).after == "one"


def test_the_data_layers_of_a_deploy_prototxt(tmp_path: Path) -> None:
    made = surgery(small(conv("last", "one")), "last", classes=9, train="a.txt", test="b.txt", batch=5, group=1)
    train, test = made.message.layer[:2]
    assert [layer.image_data_param.source for layer in (train, test)] == ["a.txt", "b.txt"]
    assert (train.transform_param.mirror, test.transform_param.mirror) == (True, False)
    assert (train.image_data_param.shuffle, test.image_data_param.shuffle) == (True, False)
    for layer in (train, test):
        assert list(layer.transform_param.mean_value) == [104, 117, 123]
        assert (layer.transform_param.crop_size, layer.image_data_param.batch_size) == (20, 5)
        assert (layer.image_data_param.new_height, layer.image_data_param.new_width) == (23, 23)
    for phase in ("TRAIN", "TEST"):
        net = read_net(written(made.text(), tmp_path), phase=phase, training=True)
        assert [(one.name, one.shape) for one in net.inputs] == [("data", (5, 3, 20, 20)), ("label", (5,))]


@pytest.mark.parametrize(("crop", "side"), [(224, 256), (227, 256), (64, 73), (299, 342), (256, 256)])
def test_images_are_resized_to_a_little_more_than_the_crop(crop: int, side: int) -> None:
    network = small(conv("last", "one"))
    network.message.input_dim[2:] = [crop, crop]
    made = surgery(network, "last", classes=2)
    assert made.message.layer[0].image_data_param.new_height == side


def test_grey_and_oblong_inputs() -> None:
    network = small(conv("last", "one"))
    network.message.input_dim[1:] = [1, 20, 30]
    layer = surgery(network, "last", classes=2).message.layer[0]
    assert not layer.image_data_param.is_color
    assert not layer.transform_param.mean_value
    assert not layer.transform_param.HasField("crop_size")
    assert (layer.image_data_param.new_height, layer.image_data_param.new_width) == (20, 30)
    shaped = parse_prototxt(
        'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }'
        + conv("c", "x")
    )
    made = surgery(shaped, "c", classes=2)
    assert made.message.layer[0].top == ["x", "label"]
    assert made.message.layer[0].transform_param.crop_size == 8
    assert made.dropped == ()


def test_a_few_classes_have_no_top_5() -> None:
    names = [layer.name for layer in surgery(small(conv("last", "one")), "last", classes=5).message.layer]
    assert names[-1] == "accuracy/top-1"
    assert "CAM_dropout" not in names


def test_a_cam_network_gets_a_new_head_under_new_names(reference: Path) -> None:
    """The weights of the old head would not fit a layer of the same name and other classes."""
    file = reference / "nets" / "prototxt" / "train_val_googlenetCAM.prototxt"
    made = surgery(file, "inception_4e/output", classes=20)
    assert made.new == ("CAM_conv_2", "CAM_fc_2")
    assert {"CAM_conv", "CAM_fc"} <= set(made.dropped)
    new = [(layer.name, *layer.bottom, *layer.top) for layer in made.message.layer if layer.name.startswith("CAM_")]
    assert new == [
        ("CAM_conv_2", "inception_4e/output", "CAM_conv_2"),
        ("CAM_relu_2", "CAM_conv_2", "CAM_conv_2"),
        ("CAM_pool_2", "CAM_conv_2", "CAM_pool_2"),
        ("CAM_fc_2", "CAM_pool_2", "CAM_fc_2"),
    ]
    assert list(made.message.layer[-1].bottom) == ["CAM_fc_2", "label"]


def test_other_classes_on_the_same_maps(reference: Path, tmp_path: Path) -> None:
    """No new convolution: CAM_conv stays, with its weights, and only the linear layer is new."""
    file = reference / "nets" / "prototxt" / "deploy_vgg16CAM.prototxt"
    made = surgery(file, "CAM_conv", classes=20, channels=0)
    assert (made.after, made.new) == ("CAM_relu", ("CAM_fc_2",))
    net = read_net(written(made.text(), tmp_path))
    assert [layer.name for layer in net.layers][-4:] == ["CAM_relu", "CAM_pool_2", "CAM_fc_2", "loss"]
    assert weight_shapes(net)["CAM_fc_2"] == [(20, 1024), (20,)]
    assert weight_shapes(net)["CAM_conv"] == weight_shapes(read_net(file))["CAM_conv"]


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("after", "word"),
    [
        ("conv5_4", "no layer named 'conv5_4'. Did you mean 'conv5_3'.*conv5_1, conv5_2, conv5_3"),
        ("fc6", r"'fc6' \(InnerProduct\) does not output feature maps, expected a convolution:.*conv5_3$"),
        ("prob", r"comes after 'fc6' \(InnerProduct\)"),
        ("data", "no layer named 'data'"),
    ],
)
def test_a_layer_that_cannot_be_cut_behind(after: str, word: str) -> None:
    with pytest.raises(CamrtError, match=word) as found:
        surgery(zoo.models_folder() / VGG16, after, classes=2)
    assert str(found.value).startswith(str(zoo.models_folder() / VGG16))


def test_branches_name_the_place_where_they_meet() -> None:
    googlenet = parse_prototxt(zoo.find("googlenet").prototxt(), "googlenet")
    with pytest.raises(CamrtError, match=r"'inception_4e/3x3' is on one of several.*after 'inception_4e/output'"):
        surgery(googlenet, "inception_4e/3x3", classes=2)
    aside = (
        'layer { name: "loss1" type: "InnerProduct" bottom: "aside" top: "x" inner_product_param { num_output: 2 } }'
    )
    heads = conv("last", "one") + conv("aside", "one") + aside
    made = surgery(small(heads), "last", classes=2)  # a second head is no branch of this one
    assert made.dropped == ("aside", "loss1", "fc")


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"classes": 0}, "classes 0"),
        ({"classes": 1 << 20}, "classes"),
        ({"channels": -2}, "channels -2"),
        ({"channels": 5}, "found 5 channels, expected a multiple of the 2 groups"),
        ({"group": 3, "channels": 6}, "found 4 channels of 'last', expected a multiple of the 3 groups.*--group 1"),
        ({"group": 0}, "group 0"),
        ({"batch": -1}, "batch -1"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"dropout": float("nan")}, "dropout nan"),
    ],
)
def test_numbers_that_cannot_be(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(CamrtError, match=rf"small.prototxt: found.*{word.removeprefix('found ')}"):
        surgery(small(conv("last", "one")), "last", **{"classes": 2, **wrong})


def test_networks_that_it_cannot_be_done_to(tmp_path: Path) -> None:
    with pytest.raises(CamrtError, match="found the names loss in kept layers"):
        surgery(small(conv("loss", "one") + conv("last", "loss")), "last", classes=2)
    with pytest.raises(CamrtError, match=r"unknown field 'strange' .line 5. in a layer to keep"):
        surgery(small('layer { name: "r" type: "ReLU" bottom: "one" top: "last" strange: 1 }'), "r", classes=2)
    with pytest.raises(CamrtError, match="found 2 layers named 'last'"):
        surgery(small(conv("last", "one") + conv("last", "one")), "last", classes=2)
    network = small(conv("last", "one"))
    del network.message.input_dim[:]
    with pytest.raises(CamrtError, match="'data' of shape unknown"):
        surgery(network, "last", classes=2)
    network.message.input_dim.extend([1, 7, 20, 20])
    with pytest.raises(CamrtError, match="7 channels, expected images of 3 channels or 1"):
        surgery(network, "last", classes=2)
    before = parse_prototxt(
        'input: "data" input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 8 '
        'layer { name: "p" type: "Pooling" bottom: "data" top: "p" pooling_param { kernel_size: 2 } }' + conv("c", "p"),
    )
    with pytest.raises(
        CamrtError, match=r"'p' .Pooling. comes before the first convolution, expected a convolution: c"
    ):
        surgery(before, "p", classes=2)
    inputs = " ".join(f'input: "{name}" input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 8' for name in "ab")
    concat = 'layer { name: "j" type: "Concat" bottom: "a" bottom: "b" top: "j" }'
    joined = parse_prototxt(inputs + concat + conv("c", "j"))
    with pytest.raises(CamrtError, match=r"found 2 inputs before 'c' .a, b., expected one"):
        surgery(joined, "c", classes=2)
    unlabeled = parse_prototxt(
        'layer { name: "d" type: "Data" top: "data" transform_param { crop_size: 8 } } ' + conv("c", "data")
    )
    with pytest.raises(CamrtError, match="tops d: data, expected images and labels"):
        surgery(unlabeled, "c", classes=2)
    lost = parse_prototxt(conv("c", "nowhere"))
    with pytest.raises(CamrtError, match="reads 'nowhere', which no layer writes"):
        surgery(lost, "c", classes=2)
    for content in (b"", b"not { a prototxt", b"\x00\x01\x02"):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(ConversionError, match="x"):
            surgery(tmp_path / "x", "c", classes=2)


# ----------------------------------------------------------------------------------------------------- the command line


def run(*arguments: object) -> tuple[int, str, str]:
    import typer

    from camrt.commands import surgery as command

    app = typer.Typer()
    app.command()(command.surgery)
    done = CliRunner().invoke(app, [*map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def test_the_command_of_the_docs(tmp_path: Path) -> None:
    output = tmp_path / "new" / "cam_train_val.prototxt"
    vgg16 = zoo.models_folder() / VGG16
    status, out, err = run(vgg16, "--after", "conv5_3", "--classes", 200, "--channels", 512, "-o", output)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == str(output)
    assert "cut after relu5_3: kept 30 layers, removed pool5, fc6" in out
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    (conv,) = (layer for layer in read_net(output).layers if layer.name == "CAM_conv")
    assert conv.params.convolution_param.num_output == 512
    status, out, _ = run(vgg16, "--after", "conv5_3", "--classes", 200, "-o", output, "--json")
    assert json.loads(out)["after"] == "relu5_3"
    before = output.read_bytes()
    status, _, err = run(vgg16, "--after", "fc6", "--classes", 200, "-o", output)
    assert status == 1
    assert err.startswith("error: ")
    assert output.read_bytes() == before
    assert run(output, "--after", "conv5_3", "--classes", 2, "-o", output)[0] == 2
    assert run(vgg16, "--after", "conv5_3", "--classes", 2, "-o", vgg16 / "x")[0] == 1
    assert run(vgg16, "--classes", 2)[0] == 2
    status, out, _ = run(vgg16, "--recipe", "vgg16", "--classes", 200, "-o", output)
    assert (status, out.splitlines()[-1]) == (0, str(output))
    assert "CAM_dropout" in output.read_text()
    assert run(vgg16, "--recipe", "vgg16", "--after", "conv5_3", "--classes", 2)[0] == 2
    assert run(vgg16, "--recipe", "vgg16", "--channels", 8, "--classes", 2)[0] == 2
    assert run(vgg16, "--recipe", "vgg", "--classes", 2)[0] == 2


def test_the_result_trains(tmp_path: Path) -> None:
    """The new layers learn on a network of ours; what the cut kept is read from the classifier's weights."""
    torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'camrt[train]'")
    from camrt.train import Solver, load_caffemodel, network

    made = surgery(small(conv("last", "one")), "last", classes=3, channels=4, batch=6)
    old = read_net(small(conv("last", "one")))
    generator = np.random.default_rng(0)
    weights = {
        name: [generator.standard_normal(shape, np.float32) for shape in shapes]
        for name, shapes in weight_shapes(old).items()
    }
    write_caffemodel(tmp_path / "w.caffemodel", weights)
    net = network(read_net(written(made.text(), tmp_path), phase="TRAIN", training=True), seed=1)
    load_caffemodel(net, tmp_path / "w.caffemodel")
    np.testing.assert_array_equal(net.stored["last"][0].detach().numpy(), weights["last"][0])
    solver = Solver(caffe_pb2.SolverParameter(net="x", max_iter=40, base_lr=0.02, lr_policy="fixed", momentum=0.9), net)
    torch.manual_seed(0)
    images, labels = torch.randn(6, 3, 20, 20), torch.tensor([0, 1, 2, 0, 1, 2])
    losses = []
    for _ in range(40):
        loss = net({"data": images, "label": labels})["loss"]
        loss.backward()
        solver.update()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
