"""Weights of torchvision and timm in Caffe's networks: both give the same scores for the same images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import converters
from camrt.errors import CamrtError
from tests.camrt.train import toy

torch = pytest.importorskip("torch", reason="training needs PyTorch")
models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")

from camrt.train import load_weights, network, save_caffemodel  # noqa: E402

IMAGENET = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
HALVES = np.full(3, 0.5), np.full(3, 0.5)
SCALE = 0.02


class Caffe:
    """A prototxt, layer by layer, by the names that Caffe's release of an architecture has."""

    def __init__(self, side: int, mean: np.ndarray) -> None:
        values = " ".join(f"mean_value: {255 * value}" for value in mean[::-1])
        self.text = (
            f'layer {{ name: "data" type: "MemoryData" top: "data" top: "label" transform_param {{ scale: {SCALE} '
            f"{values} }} memory_data_param {{ batch_size: 2 channels: 3 height: {side} width: {side} }} }}\n"
        )
        self.top = "data"

    def layer(self, name: str, type: str, params: str = "", bottoms: list[str] | None = None, top: str = "") -> str:
        bottoms = bottoms or [self.top]
        lines = " ".join(f'bottom: "{bottom}"' for bottom in bottoms)
        self.text += f'layer {{ name: "{name}" type: "{type}" {lines} top: "{top or name}" {params} }}\n'
        self.top = top or name
        return self.top

    def conv(self, name: str, outputs: int, kernel: int, stride: int = 1, pad: int = 0, bias: bool = True) -> str:
        params = (
            f"num_output: {outputs} kernel_size: {kernel} stride: {stride} pad: {pad} bias_term: {str(bias).lower()}"
        )
        return self.layer(name, "Convolution", f"convolution_param {{ {params} }}")

    def norm(self, name: str, scale: str, *, relu: bool = True, eps: float = 1e-5, top: str = "") -> str:
        use = "use_global_stats: true"
        self.layer(name, "BatchNorm", f"batch_norm_param {{ {use} eps: {eps} }}", top=top or self.top)
        self.layer(scale, "Scale", "scale_param { bias_term: true }", top=self.top)
        return self.layer(f"{name}/relu", "ReLU", top=self.top) if relu else self.top

    def relu(self) -> str:
        return self.layer(f"{self.top}_relu", "ReLU", top=self.top)

    def pool(self, name: str, kernel: int = 0, stride: int = 1, pad: int = 0, kind: str = "MAX") -> str:
        sizes = f"kernel_size: {kernel} stride: {stride} pad: {pad}" if kernel else "global_pooling: true"
        return self.layer(name, "Pooling", f"pooling_param {{ pool: {kind} {sizes} }}")

    def fc(self, name: str, outputs: int) -> str:
        return self.layer(name, "InnerProduct", f"inner_product_param {{ num_output: {outputs} }}")

    def network(self, folder: Path) -> Any:
        (folder / "net.prototxt").write_text(self.text)
        return network(converters.read_net(folder / "net.prototxt", phase="TRAIN", training=True), seed=0)


def images(side: int, norm: tuple[np.ndarray, np.ndarray]) -> tuple[Any, Any]:
    """The same images as torchvision normalizes them, and as Caffe's data layer does."""
    rgb = np.random.default_rng(0).integers(0, 256, (2, side, side, 3)).astype(np.float64)
    ours = SCALE * (rgb[..., ::-1] - 255 * norm[0][::-1])
    theirs = (rgb / 255 - norm[0]) / norm[1]
    return tuple(
        torch.from_numpy(np.ascontiguousarray(each.transpose(0, 3, 1, 2), np.float32)) for each in (theirs, ours)
    )


def seeded(model: Any) -> Any:
    """Weights and statistics that nothing maps onto itself."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.7, 1.3, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                for tensor in (module.bias, module.running_mean):
                    tensor.uniform_(-0.2, 0.2, generator=generator)
            elif isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
                fan = module.weight[0].numel()
                module.weight.uniform_(-((3 / fan) ** 0.5), (3 / fan) ** 0.5, generator=generator)
                if module.bias is not None:
                    module.bias.uniform_(-0.1, 0.1, generator=generator)
    return model.eval()


def resnet(side: int) -> tuple[Any, Caffe]:
    model = models.ResNet(models.resnet.Bottleneck, [2, 1, 1, 1], num_classes=7, width_per_group=8)
    net = Caffe(side, IMAGENET[0])
    net.conv("conv1", 64, 7, 2, 3, bias=False)
    net.norm("bn_conv1", "scale_conv1")
    net.pool("pool1", 3, 2, 1)
    for stage, blocks in enumerate((2, 1, 1, 1)):
        for number in range(blocks):
            bottom, name = net.top, f"{stage + 2}{'ab'[number]}"
            planes, stride = 8 * 2**stage, 2 if stage and not number else 1
            shortcut = bottom
            if not number:
                net.conv(f"res{name}_branch1", 256 * 2**stage, 1, stride, bias=False)
                shortcut = net.norm(f"bn{name}_branch1", f"scale{name}_branch1", relu=False)
            net.top = bottom
            for part, outputs, kernel, step in (
                ("a", planes, 1, 1),
                ("b", planes, 3, stride),
                ("c", 256 * 2**stage, 1, 1),
            ):
                net.conv(f"res{name}_branch2{part}", outputs, kernel, step, kernel // 2, bias=False)
                net.norm(f"bn{name}_branch2{part}", f"scale{name}_branch2{part}", relu=part != "c")
            net.layer(f"res{name}", "Eltwise", bottoms=[shortcut, net.top])
            net.relu()
    net.pool("pool5", kind="AVE")
    net.fc("fc1000", 7)
    return model, net


def vgg_net(side: int) -> Caffe:
    net = Caffe(side, IMAGENET[0])
    for block, channels in enumerate(([4], [6], [8, 8], [8, 8], [10, 10]), 1):
        for number, outputs in enumerate(channels, 1):
            net.conv(f"conv{block}_{number}", outputs, 3, 1, 1)
            net.relu()
        net.pool(f"pool{block}", 2, 2)
    for name, outputs in (("fc6", 20), ("fc7", 30)):
        net.fc(name, outputs)
        net.relu()
    net.fc("fc8", 7)
    return net


CONFIGURATION = [4, "M", 6, "M", 8, 8, "M", 8, 8, "M", 10, 10, "M"]


def vgg(side: int) -> tuple[Any, Caffe]:
    model = models.VGG(models.vgg.make_layers(CONFIGURATION), init_weights=False, num_classes=7)
    linear, relu = torch.nn.Linear, torch.nn.ReLU()
    model.classifier = torch.nn.Sequential(linear(490, 20), relu, torch.nn.Dropout(), linear(20, 30), relu,
                                           torch.nn.Dropout(), linear(30, 7))  # fmt: skip
    return model, vgg_net(side)


def timm_vgg(side: int) -> tuple[Any, Caffe]:
    """timm's first linear layers are convolutions over 7 x 7."""
    layers = pytest.importorskip("timm.models.vgg")
    model = layers.VGG(tuple(CONFIGURATION), num_classes=7)
    model.pre_logits.fc1, model.pre_logits.fc2 = torch.nn.Conv2d(10, 20, 7), torch.nn.Conv2d(20, 30, 1)
    model.head.fc = torch.nn.Linear(30, 7)
    return model, vgg_net(side)


def squeezenet(side: int) -> tuple[Any, Caffe]:
    net = Caffe(side, IMAGENET[0])
    net.conv("conv1", 64, 3, 2)
    net.relu()
    net.pool("pool1", 3, 2)
    for number, (squeeze, expand) in enumerate(
        [(16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256)], 2
    ):
        net.conv(f"fire{number}/squeeze1x1", squeeze, 1)
        middle = net.relu()
        tops = []
        for kernel in (1, 3):
            net.top = middle
            net.conv(f"fire{number}/expand{kernel}x{kernel}", expand, kernel, 1, kernel // 2)
            tops.append(net.relu())
        net.layer(f"fire{number}/concat", "Concat", bottoms=tops)
        if number in (3, 5):
            net.pool(f"pool{number}", 3, 2)
    net.conv("conv10", 1000, 1)
    net.relu()
    net.pool("pool10", kind="AVE")
    net.layer("flat", "Flatten")
    return models.squeezenet1_1(weights=None), net


def densenet(side: int) -> tuple[Any, Caffe]:
    model = models.DenseNet(4, (2, 2, 1, 1), num_init_features=8, bn_size=2, num_classes=7)
    net = Caffe(side, IMAGENET[0])
    net.conv("conv1", 8, 7, 2, 3, bias=False)
    net.norm("conv1/bn", "conv1/scale")
    net.pool("pool1", 3, 2, 1)
    channels = 8
    for block, layers in enumerate((2, 2, 1, 1), 2):
        for number in range(1, layers + 1):
            bottom, name = net.top, f"conv{block}_{number}"
            net.norm(f"{name}/x1/bn", f"{name}/x1/scale", top=f"{name}/x1/bn")
            net.conv(f"{name}/x1", 8, 1, bias=False)
            net.norm(f"{name}/x2/bn", f"{name}/x2/scale", top=f"{name}/x2/bn")
            net.conv(f"{name}/x2", 4, 3, 1, 1, bias=False)
            net.layer(f"concat_{block}_{number}", "Concat", bottoms=[bottom, net.top])
            channels += 4
        net.norm(f"conv{block}_blk/bn", f"conv{block}_blk/scale", top=f"conv{block}_blk/bn")
        if block < 5:
            channels //= 2
            net.conv(f"conv{block}_blk", channels, 1, bias=False)
            net.pool(f"pool{block}", 2, 2, kind="AVE")
    net.pool("pool5", kind="AVE")
    net.fc("fc6", 7)
    return model, net


def inception_start(side: int) -> tuple[Any, Caffe]:
    """Layers with the names of the modules, slashes for dots; weights for images from -1 to 1."""
    basic = models.inception.BasicConv2d

    class Start(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.Conv2d_1a_3x3 = basic(3, 8, kernel_size=3, stride=2)
            self.Conv2d_2a_3x3 = basic(8, 12, kernel_size=3)
            self.fc = torch.nn.Linear(12, 7)

        def forward(self, x: Any) -> Any:
            return self.fc(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)).mean((2, 3)))

    net = Caffe(side, HALVES[0])
    for name, outputs, stride in (("Conv2d_1a_3x3", 8, 2), ("Conv2d_2a_3x3", 12, 1)):
        net.conv(f"{name}/conv", outputs, 3, stride, bias=False)
        net.norm(f"{name}/bn", f"{name}/scale", eps=0.001)
    net.pool("pool", kind="AVE")
    net.fc("fc", 7)
    return Start(), net


CASES: dict[str, tuple[Callable[[int], tuple[Any, Caffe]], int, str]] = {
    "resnet": (resnet, 65, "ResNet"),
    "vgg": (vgg, 224, "VGG"),
    "timm_vgg": (timm_vgg, 224, "VGG"),
    "squeezenet": (squeezenet, 67, "SqueezeNet"),
    "densenet": (densenet, 61, "DenseNet"),
    "inception_start": (inception_start, 33, "Inception v3"),
}


def save(model: Any, file: Path) -> None:
    if file.suffix == ".safetensors":
        pytest.importorskip("safetensors.torch").save_file(model.state_dict(), file)
    else:
        torch.save({"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, file)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("case", CASES)
def test_the_scores_are_those_of_pytorch(case, ending, tmp_path):
    make, side, family = CASES[case]
    model, net = make(side)
    model = seeded(model)
    built = net.network(tmp_path)
    save(model, tmp_path / f"weights{ending}")
    report = load_weights(built, tmp_path / f"weights{ending}")
    assert set(report.loaded) == set(built.stored)
    assert report.filled == report.unused == ()
    assert report.notes[0] == f"found the names of {family}"
    assert any("converted from normalized RGB" in note for note in report.notes)
    assert not any("another mean" in note for note in report.notes)
    theirs, ours = images(side, HALVES if case == "inception_start" else IMAGENET)
    with torch.no_grad():
        expected = model(theirs).numpy()
        found = built({"data": ours, "label": torch.zeros(2)})[net.top].numpy()
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def test_what_was_left_out_is_said(tmp_path):
    """A new head, as for other classes; a mean that is not the network's; and a file with more than the network."""
    model, net = squeezenet(67)
    text = net.text.replace('"conv10"', '"conv10_new"').replace("num_output: 1000", "num_output: 4")
    text = text.replace("mean_value", "#mean_value").replace("} memory", "\n} memory")
    (tmp_path / "net.prototxt").write_text(text)
    built = network(converters.read_net(tmp_path / "net.prototxt", phase="TRAIN", training=True), seed=0)
    before = built.stored["conv10_new"][0].detach().clone()
    save(seeded(model), tmp_path / "weights.pth")
    report = load_weights(built, tmp_path / "weights.pth")
    assert report.filled == ("conv10_new",)
    assert report.unused == ("classifier.1",)
    assert any("another mean: expected mean_value: 103.530 mean_value: 116.280" in note for note in report.notes)
    assert torch.equal(before, built.stored["conv10_new"][0])


def test_a_layer_of_another_shape_is_refused_and_nothing_changes(tmp_path):
    model, net = squeezenet(67)
    net.text = net.text.replace("num_output: 1000", "num_output: 4")
    built = net.network(tmp_path)
    before = [blob.detach().clone() for blobs in built.stored.values() for blob in blobs]
    save(model, tmp_path / "weights.pth")
    with pytest.raises(CamrtError, match=r"layer conv10: found blob 0 of 1000 x 512 x 1 x 1, expected 4 x 512"):
        load_weights(built, tmp_path / "weights.pth")
    after = [blob for blobs in built.stored.values() for blob in blobs]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_onnx_of_pytorch(tmp_path):
    model, net = squeezenet(67)
    model = seeded(model)
    theirs, ours = images(67, IMAGENET)
    torch.onnx.export(model, (theirs,), tmp_path / "net.onnx", dynamo=False)
    built = net.network(tmp_path)
    report = load_weights(built, tmp_path / "net.onnx")
    assert report.filled == report.unused == ()
    with torch.no_grad():
        found = built({"data": ours, "label": torch.zeros(2)})[net.top].numpy()
        expected = model(theirs).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def test_onnx_without_its_batchnorms_is_refused_and_with_them_is_loaded(tmp_path):
    """The exporter merges BatchNorm into convolutions, unless it preserves the layers of the training."""
    model, net = inception_start(33)
    model = seeded(model)
    theirs, ours = images(33, HALVES)
    torch.onnx.export(model, (theirs,), tmp_path / "merged.onnx", dynamo=False)
    built = net.network(tmp_path)
    before = [blob.detach().clone() for blobs in built.stored.values() for blob in blobs]
    with pytest.raises(CamrtError) as caught:
        load_weights(built, tmp_path / "merged.onnx")
    assert str(caught.value).startswith(
        f"{tmp_path / 'merged.onnx'}: layer Conv2d_1a_3x3/bn (BatchNorm): found no statistics for it (and 1 more"
    )
    after = [blob for blobs in built.stored.values() for blob in blobs]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    # What the message recommends.
    kept = tmp_path / "kept.onnx"
    torch.onnx.export(model, (theirs,), kept, dynamo=False, training=torch.onnx.TrainingMode.PRESERVE)
    report = load_weights(built, kept)
    assert report.filled == report.unused == ()
    with torch.no_grad():
        found = built({"data": ours, "label": torch.zeros(2)})[net.top].numpy()
        expected = model(theirs).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


def test_onnx_of_other_convolutions_leaves_a_new_batchnorm(tmp_path):
    """A BatchNorm of a new convolution is trained from scratch, as the convolution is."""
    model, net = inception_start(33)
    net.text = net.text.replace("Conv2d_2a", "Conv2d_2a_new")
    theirs, _ = images(33, HALVES)
    model = seeded(model)
    torch.onnx.export(model, (theirs,), tmp_path / "net.onnx", dynamo=False, training=torch.onnx.TrainingMode.PRESERVE)
    report = load_weights(net.network(tmp_path), tmp_path / "net.onnx")
    assert set(report.filled) == {f"Conv2d_2a_new_3x3/{name}" for name in ("conv", "bn", "scale")}


def test_onnx_of_this_project(tmp_path):
    """A converted network gives back its weights; its images are gray, so that no convolution is changed."""
    solver = toy.write(tmp_path, norm=False)
    net = converters.read_net(tmp_path / "net.prototxt", phase="TRAIN", training=True)
    shapes = {"data": (8, 1, 40, 40), "label": (8,)}
    first = network(net, input_shapes=shapes, seed=1)
    save_caffemodel(first, tmp_path / "net.caffemodel")
    model = converters.convert(
        tmp_path / "net.prototxt", tmp_path / "net.caffemodel", input_shapes={"data": (8, 1, 40, 40)}
    )
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    second = network(net, input_shapes=shapes, seed=2)
    report = load_weights(second, tmp_path / "net.onnx")
    assert report.filled == ()
    for layer, blobs in first.stored.items():
        for one, other in zip(blobs, second.stored[layer], strict=True):
            assert torch.equal(one, other), layer
    assert solver.is_file()


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("none.pth", None, "does not exist"),
        ("text.pth", b"hello", "cannot be read as a state dict of PyTorch"),
        ("empty.pth", b"", "cannot be read as a state dict of PyTorch"),
        ("x.safetensors", b"\xff" * 40, "cannot be read as safetensors"),
        ("x.onnx", b"\xff" * 40, "cannot be read as ONNX"),
        ("empty.onnx", b"", "found no convolutions"),
    ],
)
def test_files_that_hold_no_weights(tmp_path, name, content, match):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    built = vgg_net(64).network(tmp_path)
    with pytest.raises(CamrtError, match=match) as caught:
        load_weights(built, tmp_path / name)
    assert name in str(caught.value)


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"x.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(CamrtError, match="cannot be read as a state dict"):
        load_weights(vgg_net(64).network(tmp_path), tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def test_no_name_in_common(tmp_path):
    torch.save({"body.weight": torch.zeros(3), "step": 4}, tmp_path / "x.pth")
    with pytest.raises(CamrtError, match="found the modules body, and no name in common with the layers conv1_1"):
        load_weights(vgg_net(64).network(tmp_path), tmp_path / "x.pth")
    torch.save([1, 2], tmp_path / "y.pth")
    with pytest.raises(CamrtError, match="found list, expected a state dict"):
        load_weights(vgg_net(64).network(tmp_path), tmp_path / "y.pth")
