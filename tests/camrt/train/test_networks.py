"""Networks from prototxts: whole ones against ONNX Runtime and Caffe, sharing, losses, phases, errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from camrt import CamrtError
from converters import Net, convert, read_net, zoo
from converters.net import with_shapes
from converters.reader import parse_prototxt, read_prototxt
from tests.caffe_files import input_layer, layer
from tests.released import SEED, ten_crops
from tests.seeded import SeededModel

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing is trained")
from camrt import train  # noqa: E402

DATA = Path(__file__).resolve().parents[2] / "data" / "caffe"
REPOSITORY = Path(__file__).resolve().parents[3]
RNG = np.random.default_rng(0)


def filler(param: str, text: str) -> str:
    return f'{param} {{ {text} weight_filler {{ type: "msra" }} }}'


def conv(name: str, bottom: str, outputs: int, more: str = "") -> str:
    return layer(name, "Convolution", bottom, params=filler("convolution_param", f"num_output: {outputs} {more}"))


def fc(name: str, bottom: str, outputs: int, more: str = "") -> str:
    return layer(name, "InnerProduct", bottom, params=more + filler("inner_product_param", f"num_output: {outputs}"))


INPUTS = input_layer("data", 2, 3, 8, 8) + input_layer("label", 2)
LOSS = layer("loss", "SoftmaxWithLoss", "fc label")


def net_of(text: str, phase: str = "TRAIN") -> Net:
    return read_net(parse_prototxt(text, "net.prototxt"), phase=phase, training=True)


def network_of(text: str, phase: str = "TRAIN", **options: Any) -> Any:
    return train.network(net_of(text, phase), **{"seed": 1, **options})


def images(*shape: int) -> Any:
    return torch.from_numpy(RNG.normal(0, 1, shape).astype(np.float32))


def batch(count: int = 2) -> dict[str, Any]:
    return {"data": images(count, 3, 8, 8), "label": torch.from_numpy(RNG.integers(0, 5, count))}


# ------------------------------------------------------------------------------------------------------ whole networks


def normalized(name: str, bottom: str, relu: bool = True) -> str:
    text = layer(f"bn_{name}", "BatchNorm", bottom, bottom)
    text += layer(f"scale_{name}", "Scale", bottom, bottom, "scale_param { bias_term: true }")
    return text + (layer(f"relu_{name}", "ReLU", bottom, bottom) if relu else "")


def residual(name: str, bottom: str, channels: int, stride: int) -> str:
    """A block of ResNet, with a projection."""
    text = conv(f"{name}_a", bottom, channels, f"kernel_size: 3 pad: 1 stride: {stride} bias_term: false")
    text += normalized(f"{name}_a", f"{name}_a")
    text += conv(f"{name}_b", f"{name}_a", channels, "kernel_size: 3 pad: 1 bias_term: false")
    text += normalized(f"{name}_b", f"{name}_b", relu=False)
    text += conv(f"{name}_p", bottom, channels, f"kernel_size: 1 stride: {stride} bias_term: false")
    text += normalized(f"{name}_p", f"{name}_p", relu=False)
    return text + layer(name, "Eltwise", f"{name}_b {name}_p") + layer(f"{name}_relu", "ReLU", name, name)


LENET = (
    input_layer("data", 4, 1, 28, 28)
    + conv("conv1", "data", 20, "kernel_size: 5")
    + layer("pool1", "Pooling", "conv1", params="pooling_param { pool: MAX kernel_size: 2 stride: 2 }")
    + conv("conv2", "pool1", 50, "kernel_size: 5")
    + layer("pool2", "Pooling", "conv2", params="pooling_param { pool: MAX kernel_size: 2 stride: 2 }")
    + fc("ip1", "pool2", 500)
    + layer("relu1", "ReLU", "ip1", "ip1")
    + layer("drop", "Dropout", "ip1", "ip1")
    + fc("ip2", "ip1", 10)
    + layer("prob", "Softmax", "ip2")
)
RESNET = (
    input_layer("data", 2, 3, 37, 41)
    + conv("conv1", "data", 8, "kernel_size: 7 pad: 3 stride: 2 bias_term: false")
    + normalized("conv1", "conv1")
    + layer("pool1", "Pooling", "conv1", params="pooling_param { pool: MAX kernel_size: 3 stride: 2 }")
    + residual("res2", "pool1", 8, 1)
    + residual("res3", "res2", 16, 2)
    + layer("gap", "Pooling", "res3", params="pooling_param { pool: AVE global_pooling: true }")
    + fc("fc", "gap", 7)
)
INCEPTION = (
    input_layer("data", 2, 3, 33, 31)
    + conv("conv1", "data", 16, "kernel_size: 7 pad: 3 stride: 2")
    + layer("relu1", "ReLU", "conv1", "conv1")
    + layer("pool1", "Pooling", "conv1", params="pooling_param { pool: MAX kernel_size: 3 stride: 2 }")
    + layer("norm1", "LRN", "pool1", params="lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")
    + conv("a", "norm1", 8, "kernel_size: 1")
    + layer("relu_a", "ReLU", "a", "a")
    + conv("b", "norm1", 8, "kernel_size: 3 pad: 1 group: 2")
    + layer("pool", "Pooling", "norm1", params="pooling_param { pool: MAX kernel_size: 3 stride: 1 pad: 1 }")
    + layer("both", "Concat", "a b pool")
    + layer("cam_pool", "Pooling", "both", params="pooling_param { pool: AVE kernel_size: 8 stride: 8 }")
    + layer("drop", "Dropout", "cam_pool", "cam_pool", "dropout_param { dropout_ratio: 0.4 }")
    + fc("fc", "cam_pool", 9)
)


@pytest.mark.parametrize("text", [LENET, RESNET, INCEPTION], ids=["LeNet", "ResNet", "Inception"])
def test_whole_networks_as_converted(text: str, tmp_path: Path) -> None:
    """Trained for a few steps, saved, converted: ONNX Runtime's answers, at another batch too."""
    network = train.network(net_of(text), seed=3)
    for _ in range(3):  # statistics
        network({"data": images(*network.inputs["data"])})
    train.save_caffemodel(network, tmp_path / "net.caffemodel")
    model = convert(parse_prototxt(text), tmp_path / "net.caffemodel")
    session = onnxruntime.InferenceSession(model.SerializeToString())
    tested = train.network(net_of(text, "TEST"), share=network)
    for count in (2, 5):
        x = images(count, *network.inputs["data"][1:])
        (expected,) = session.run(None, {"data": x.numpy()})
        (found,) = tested({"data": x}).values()
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenetCAM", "bvlc_googlenet"])
def test_googlenet_as_caffe(name: str, tmp_path: Path) -> None:
    """Five blobs along the network at full size, as real Caffe gives them (tests/data/caffe/googlenet.npz)."""
    stored = np.load(DATA / "googlenet.npz")
    blobs = [key.removeprefix(f"{name}:") for key in stored.files if key.startswith(f"{name}:") and key.count(":") == 1]
    description = parse_prototxt(zoo.find(name).prototxt(), name)
    caffemodel = SeededModel.of_network(description.message, SEED).write(tmp_path / "net.caffemodel")
    network = train.network(read_net(description, caffemodel))
    x = np.random.default_rng(SEED).uniform(-120, 130, (2, 3, 224, 224)).astype(np.float32)
    with torch.no_grad():
        found = network({"data": torch.from_numpy(x)}, keep=blobs)
    for blob in blobs:
        key = f"{name}:{blob}"
        sampled = found[blob].numpy().reshape(-1)[stored[f"{key}:index"]]
        assert np.abs(sampled - stored[key]).max() < 1e-5 * stored[f"{key}:largest"], blob


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "prototxt", "ties"),
    [("alexnetplusCAM", "deploy_alexnetplusCAM_imagenet.prototxt", 0), ("vgg16CAM", "deploy_vgg16CAM.prototxt", 0.02)],
)
def test_gradient_at_full_size_as_caffe(name: str, prototxt: str, ties: float, reference: Path, tmp_path: Path) -> None:
    """The gradient of a logit at the image and at the last convolution, through all layers of V1 networks.

    In VGG16 some windows have two values that differ in their last bits only. Which one is the maximum, rounding
    decides: between single and double precision 1.2 % of the image's gradient differ.
    """
    folder = reference / "nets" / name
    stored = np.load(folder / "gradient.npz")
    seeded = SeededModel.of_table(json.loads((folder / "shapes.json").read_text()))
    description = read_prototxt(reference / "nets" / "prototxt" / prototxt)
    net = read_net(description, seeded.write(tmp_path / "net.caffemodel", v1=True))
    crop = zoo.find("vgg16CAM" if name == "vgg16CAM" else "alexnetplusCAM_imagenet").preprocessing.crop
    network = train.network(with_shapes(net, {"data": (1, 3, crop, crop)}))
    middle = {227: 14, 224: 16}[crop]  # where the crop of gradient.npz starts; see the reference's README
    data = torch.from_numpy(ten_crops(reference, crop, middle)[4:5].copy()).requires_grad_()
    logits, features = net.layers[-1].bottoms[0], str(stored["blob_name"])
    found = network({"data": data}, keep=[logits, features])
    found[features].retain_grad()
    found[logits].reshape(-1)[int(stored["class0"])].backward()
    # The blob is changed in place by a ReLU, and so is its gradient: Caffe's is that before the ReLU.
    before_relu = found[features].grad * (found[features] > 0)
    for what, gradient, other in (("data", data.grad, ties), ("blob", before_relu, 0)):
        sampled = gradient.numpy().reshape(-1)[stored[f"{what}_index"]]
        expected = stored[f"{what}_value"]
        off = np.abs(sampled - expected) > 1e-4 * np.abs(expected).max()
        assert off.mean() <= other, what


def test_the_originals_network_is_built(reference: Path) -> None:
    """train_val_googlenetCAM.prototxt, as it was released: 94 blobs with their rates."""
    net = read_net(reference / "nets" / "prototxt" / "train_val_googlenetCAM.prototxt", phase="TRAIN", training=True)
    network = train.network(net, seed=0)
    assert network.inputs == {"data": (64, 3, 224, 224), "label": (64,)}
    assert network.outputs == ("loss3/loss3",)
    assert len(network.blobs) == 94
    assert {(blob.index, blob.lr_mult, blob.decay_mult) for blob in network.blobs} == {(0, 1, 1), (1, 2, 0)}
    assert network.shapes["CAM_conv"] == (64, 1024, 14, 14)
    assert network.shapes["CAM_fc"] == (64, 1000)


# --------------------------------------------------------------------------------------------------------------- blobs


def test_what_forward_gives() -> None:
    text = INPUTS + conv("conv", "data", 4, "kernel_size: 3") + layer("relu", "ReLU", "conv", "conv")
    text += fc("fc", "conv", 5) + LOSS + layer("acc", "Accuracy", "fc label")
    network, fed = network_of(text), batch(3)
    assert list(network(fed)) == ["loss", "acc"]
    found = network(fed, keep=["conv", "data"])
    assert set(found) == {"loss", "acc", "conv", "data"}
    assert found["conv"].min() == 0  # the last version: behind the ReLU
    assert found["data"] is fed["data"]
    assert network.shapes["conv"] == (2, 4, 6, 6)
    assert "TRAIN" in repr(network)


def test_a_relu_in_place_leaves_the_input_alone() -> None:
    text = input_layer("data", 1, 4) + layer("relu", "ReLU", "data", "data") + fc("fc", "data", 2)
    values = torch.tensor([[-1.0, 2, -3, 4]])
    found = network_of(text)({"data": values}, keep=["data"])
    assert values.tolist() == [[-1, 2, -3, 4]]
    assert found["data"].tolist() == [[0, 2, 0, 4]]


def test_in_place_and_apart_have_the_same_gradients() -> None:
    """What is written over is not needed for a gradient."""
    gradients = []
    for second, third in (("conv", "conv"), ("bn", "relu")):
        text = INPUTS + conv("conv", "data", 4, "kernel_size: 3") + layer("bn", "BatchNorm", "conv", second)
        text += layer("scale", "Scale", second, second, "scale_param { bias_term: true }")
        text += layer("relu", "ReLU", second, third, "relu_param { negative_slope: 0.1 }")
        network = network_of(text + fc("fc", third, 5) + LOSS)
        torch.manual_seed(0)
        fed = {"data": torch.randn(4, 3, 8, 8), "label": torch.tensor([0, 1, 2, 3])}
        network.loss(network(fed)).backward()
        gradients.append([blob.parameter.grad for blob in network.blobs])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "before",
    ["Sigmoid", "TanH", "Exp", "ELU", "LRN", "Softmax", "Dropout", "BatchNorm", "Scale", "Bias", "Split", "MVN",
     "Swish", "Normalize", "PReLU"],
)  # fmt: skip
def test_whatever_is_before_a_relu_in_place(before: str) -> None:
    """The ReLU writes over its bottom only where nothing else needs that."""
    found = []
    for apart in (False, True):
        second = "relu" if apart else "x"
        text = INPUTS + layer("x", before, "data", "x") + layer("relu", "ReLU", "x", second)
        network = network_of(text + fc("fc", second, 5) + LOSS)
        torch.manual_seed(3)
        data = torch.randn(2, 3, 8, 8, requires_grad=True)
        network.loss(network({"data": data, "label": torch.tensor([1, 4])})).backward()
        found.append(data.grad)
    assert found[0].abs().sum() > 0
    torch.testing.assert_close(*found)


def test_loss_weights() -> None:
    """1 for a loss, 0 for other tops, and whatever `loss_weight` says, on any top, also one that others read."""
    text = INPUTS + fc("fc", "data", 5, "loss_weight: 0.25 ") + LOSS
    text += layer("aux", "SoftmaxWithLoss", "fc label", params="loss_weight: 0.3")
    text += layer("off", "EuclideanLoss", "fc fc", params="loss_weight: 0")
    network, fed = network_of(text), batch()
    assert network.loss_weights == pytest.approx({"fc": 0.25, "loss": 1, "aux": 0.3})
    found = network(fed)
    assert set(found) == {"fc", "loss", "aux", "off"}
    expected = 0.25 * found["fc"].sum() + found["loss"] + 0.3 * found["aux"]
    torch.testing.assert_close(network.loss(found), expected)


def test_two_tops_of_a_loss_layer() -> None:
    text = INPUTS + fc("fc", "data", 5) + layer("loss", "SoftmaxWithLoss", "fc label", "loss prob")
    network = network_of(text)
    assert network.loss_weights == {"loss": 1}
    torch.testing.assert_close(network(batch())["prob"].sum(1), torch.ones(2))


def test_propagate_down() -> None:
    text = INPUTS + conv("conv", "data", 4, "kernel_size: 8") + fc("fc", "conv", 5, "propagate_down: false ") + LOSS
    network = network_of(text)
    network.loss(network(batch())).backward()
    has_gradient = {(blob.layer, blob.index): blob.parameter.grad is not None for blob in network.blobs}
    assert has_gradient == {("conv", 0): False, ("conv", 1): False, ("fc", 0): True, ("fc", 1): True}


def test_shared_blobs() -> None:
    """`param { name }`: one parameter, both gradients."""
    named = 'param { name: "w" lr_mult: 2 } param { name: "b" } '
    text = input_layer("a", 2, 3) + input_layer("b", 2, 3) + fc("one", "a", 4, named) + fc("two", "b", 4, named)
    text += layer("loss", "EuclideanLoss", "one two")
    network = network_of(text)
    assert [(blob.layer, blob.index, blob.lr_mult) for blob in network.blobs] == [("one", 0, 2), ("one", 1, 1)]
    assert len(list(network.parameters())) == 2
    a, b = images(2, 3), images(2, 3)
    network.loss(network({"a": a, "b": b})).backward()
    weight = network.stored["one"][0]
    difference = (a - b).double()
    # sum of ((a - b) w^T)^2 over 2 N, by w
    expected = (difference @ weight.double().T).T @ difference / 2
    torch.testing.assert_close(network.blobs[0].parameter.grad.double(), expected, rtol=1e-5, atol=1e-6)


def test_any_layer_may_say_the_rate_of_a_shared_blob() -> None:
    text = input_layer("a", 2, 3) + fc("one", "a", 4, 'param { name: "w" }')
    network = network_of(text + fc("two", "a", 4, 'param { name: "w" lr_mult: 0 decay_mult: 5 }'))
    assert [(blob.layer, blob.index, blob.lr_mult, blob.decay_mult) for blob in network.blobs] == [
        ("one", 0, 0, 5), ("one", 1, 1, 1), ("two", 1, 1, 1),
    ]  # fmt: skip
    assert not network.blobs[0].parameter.requires_grad


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ('param { name: "w" }', r"layer two .*: found the shape 3 x 3 for the shared blob 'w', expected 4 x 3"),
        (
            'param { name: "w" lr_mult: 3 }',
            r"layer two .*: found lr_mult 3 for the shared blob 'w', expected 2 as in a",
        ),
    ],
)
def test_shared_blobs_that_do_not_fit(second: str, message: str) -> None:
    outputs = 4 if "lr_mult" in second else 3
    text = (
        input_layer("a", 2, 3) + fc("one", "a", 4, 'param { name: "w" lr_mult: 2 }') + fc("two", "a", outputs, second)
    )
    with pytest.raises(CamrtError, match=message):
        network_of(text)


def test_shared_blobs_of_another_shape() -> None:
    """share_mode PERMISSIVE: the same number of values, each layer with its own shape."""
    text = input_layer("a", 2, 3, 2, 2)
    text += layer(
        "one",
        "Convolution",
        "a",
        params='param { name: "w" } ' + filler("convolution_param", "num_output: 4 kernel_size: 2 bias_term: false"),
    )
    text += layer(
        "two",
        "InnerProduct",
        "a",
        params='param { name: "w" share_mode: PERMISSIVE } '
        + filler("inner_product_param", "num_output: 4 bias_term: false"),
    )
    network = network_of(text)
    assert [tuple(network.stored[name][0].shape) for name in ("one", "two")] == [(4, 3, 2, 2), (4, 12)]
    found = network({"a": images(2, 3, 2, 2)})
    torch.testing.assert_close(found["one"].flatten(1), found["two"])


# ------------------------------------------------------------------------------------- training and testing networks

BOTH = (
    INPUTS
    + conv("conv", "data", 4, "kernel_size: 3")
    + layer("bn", "BatchNorm", "conv", "conv")
    + fc("fc", "conv", 5)
    + LOSS
    + layer("acc", "Accuracy", "fc label", params="include { phase: TEST }")
)


def test_the_test_net_has_the_train_nets_blobs() -> None:
    network = network_of(BOTH)
    tested = network_of(BOTH, "TEST", share=network)
    assert tested.outputs == ("loss", "acc")
    assert [blob.parameter for blob in tested.blobs] == [blob.parameter for blob in network.blobs]
    fed = batch()
    before = tested(fed)["loss"].item()
    network(fed)  # statistics
    with torch.no_grad():
        network.stored["fc"][1].add_(torch.arange(5.0))
    assert tested(fed)["loss"].item() != before
    network.double()  # whatever is done to one
    assert all(blob.dtype == torch.float64 for blobs in tested.stored.values() for blob in blobs)


def test_layers_of_the_test_net_alone_are_filled() -> None:
    own = fc("more", "conv", 2, "include { phase: TEST } ")
    tested = network_of(BOTH + own, "TEST", share=network_of(BOTH + own))
    assert tested.stored["more"][0].abs().sum() > 0


def test_sharing_with_another_network_is_refused() -> None:
    with pytest.raises(
        CamrtError, match=r"layer fc .*found blobs of 5 x 144, 5 in the network to share with, expected 6 x"
    ):
        network_of(BOTH.replace("num_output: 5", "num_output: 6"), "TEST", share=network_of(BOTH))


def test_train_and_eval_change_nothing() -> None:
    text = input_layer("data", 1, 1000) + layer("drop", "Dropout", "data")
    ones = {"data": torch.ones(1, 1000)}
    assert (network_of(text).eval()(ones)["drop"] == 0).any()
    assert not (network_of(text, "TEST").train()(ones)["drop"] == 0).any()


def test_seeds() -> None:
    first, same, other = (network_of(BOTH, seed=seed).stored["fc"][0] for seed in (4, 4, 5))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    torch.manual_seed(1)
    one = network_of(BOTH, seed=None).stored["fc"][0]
    two = network_of(BOTH, seed=None).stored["fc"][0]
    torch.manual_seed(1)
    assert torch.equal(one, network_of(BOTH, seed=None).stored["fc"][0])
    assert not torch.equal(one, two)


def test_shapes_given_from_outside() -> None:
    text = layer("data", "Data", "", "data label", "data_param { batch_size: 7 }") + fc("fc", "data", 5) + LOSS
    with pytest.raises(CamrtError, match=r"does not say the shape of the input 'data'"):
        network_of(text)
    network = network_of(text, input_shapes={"data": (7, 2, 3, 4)})
    assert network.stored["fc"][0].shape == (5, 24)
    assert network.inputs == {"data": (7, 2, 3, 4), "label": (7,)}


def test_layers_of_one_name_and_names_that_modules_cannot_have() -> None:
    text = input_layer("data", 1, 3)
    for index, name in enumerate(["a.b", "a_b", "a_b", "keys", "type", "relu"]):
        text += layer(name, "InnerProduct", "data", f"t{index}", filler("inner_product_param", "num_output: 2"))
    network = network_of(text)
    assert len(network.blobs) == 12
    assert len(network.state_dict()) == 12


# ---------------------------------------------------------------------------------------------- precision, several GPUs


def test_autocast() -> None:
    """Half precision in the filters, single precision in losses and statistics."""
    text = INCEPTION.replace("kernel_size: 8 stride: 8", "global_pooling: true") + input_layer("label", 2)
    text += (
        normalized("bn", "both", relu=False)
        .replace('top: "both"', 'top: "bn"', 1)
        .replace('bottom: "both" top: "both"', 'bottom: "bn" top: "bn"')
    )
    text += LOSS + layer("acc", "Accuracy", "fc label")
    network = network_of(text)
    fed = {"data": images(2, 3, 33, 31), "label": torch.tensor([1, 2])}
    torch.manual_seed(0)
    expected = network.loss(network(fed))
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        blobs = network(fed, keep=["a"])
        loss = network.loss(blobs)
    assert blobs["a"].dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.05)
    loss.backward()
    assert all(blob.parameter.grad.dtype == torch.float32 for blob in network.blobs if blob.parameter.grad is not None)
    assert network.stored["bn_bn"][0].dtype == torch.float32


def test_channels_last() -> None:
    network, fed = network_of(BOTH), batch()
    expected = network(fed)["loss"]
    network = network_of(BOTH).to(memory_format=torch.channels_last)
    fed["data"] = fed["data"].contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network(fed)["loss"], expected)


@pytest.mark.slow
def test_distributed(tmp_path: Path) -> None:
    """In DistributedDataParallel the gradients are those of the whole batch, in every process."""
    script = tmp_path / "worker.py"
    script.write_text(f"""
import sys, torch
sys.path.insert(0, {str(REPOSITORY)!r})
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tests.camrt.train.test_networks import LOSS, INPUTS, fc, network_of
rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://{tmp_path}/meet", rank=rank, world_size=2)
network = network_of(INPUTS + fc("fc", "data", 5) + LOSS)
generator = torch.Generator().manual_seed(7)
data, label = torch.randn(4, 3, 8, 8, generator=generator), torch.tensor([0, 1, 2, 3])
half = slice(2 * rank, 2 * rank + 2)
parallel = DistributedDataParallel(network)
network.loss(parallel({{"data": data[half], "label": label[half]}})).backward()
alone = network_of(INPUTS + fc("fc", "data", 5) + LOSS)
alone.loss(alone({{"data": data, "label": label}})).backward()
for one, other in zip(network.blobs, alone.blobs, strict=True):
    torch.testing.assert_close(one.parameter.grad, other.parameter.grad)
dist.destroy_process_group()
""")
    workers = [
        subprocess.Popen([sys.executable, str(script), str(rank)], stderr=subprocess.PIPE, text=True) for rank in (0, 1)
    ]
    for worker in workers:
        _, said = worker.communicate(timeout=100)
        assert worker.returncode == 0, said


# -------------------------------------------------------------------------------------------------------------- errors


def test_all_unsupported_types_in_one_error() -> None:
    text = INPUTS + layer("p", "PriorBox", "data data") + layer("q", "Interp", "data") + layer("r", "Interp", "data")
    with pytest.raises(
        CamrtError, match=r"3 layer\(s\) of 2 type\(s\) cannot be trained:\n  PriorBox: p\n  Interp: q, r"
    ):
        network_of(text)


def test_inputs_that_do_not_fit() -> None:
    network, fed = network_of(BOTH), batch()
    with pytest.raises(CamrtError, match=r"found the inputs data, expected data, label: label missing"):
        network({"data": fed["data"]})
    with pytest.raises(CamrtError, match=r"found the inputs data, label, box, expected data, label"):
        network({**fed, "box": fed["data"]})
    with pytest.raises(
        CamrtError, match=r"found the shape 3 x 8 x 8 for the input 'data', expected as many axes as 2 x 3 x 8"
    ):
        network({**fed, "data": fed["data"][0]})
    with pytest.raises(CamrtError, match=r"layer fc \(InnerProduct\): .*bottoms: conv 2 x 4 x 7 x 6"):
        network({**fed, "data": images(2, 3, 9, 8)})
    with pytest.raises(CamrtError, match=r"layer loss \(SoftmaxWithLoss\): Target 9 is out of bounds"):
        network({**fed, "label": torch.tensor([9, 0])})
    with pytest.raises(CamrtError, match=r"found the blob 'cnov', expected one that a layer of '' writes"):
        network(fed, keep=["cnov"])


def test_an_input_that_no_layer_reads_may_be_left_out() -> None:
    network = network_of(INPUTS + fc("fc", "data", 5))
    assert set(network({"data": images(2, 3, 8, 8)})) == {"fc"}


def test_a_network_without_a_loss() -> None:
    network = network_of(INPUTS + fc("fc", "data", 5))
    with pytest.raises(
        CamrtError,
        match=r"the network '' has no loss, expected .*SoftmaxWithLoss: read it with phase='TRAIN' and training=True",
    ):
        network.loss(network(batch()))


def test_weights_that_do_not_fit_the_prototxt(tmp_path: Path) -> None:
    train.save_caffemodel(network_of(BOTH), tmp_path / "net.caffemodel")
    text = parse_prototxt(BOTH.replace("num_output: 5", "num_output: 6"), "net.prototxt")
    with pytest.raises(CamrtError, match=r"net\.prototxt: layer fc \(InnerProduct\): found shape 5 x 144 for blob 0"):
        train.network(read_net(text, tmp_path / "net.caffemodel", training=True))
