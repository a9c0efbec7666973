"""Targets of segmentation: a class's logits, summed over its mask, against pytorch-grad-cam and PyTorch's gradients."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import pytest

from camrt import Explainer
from camrt.errors import CamrtError
from camrt.graph import explain_graph
from camrt.graph.explain import MAPS
from tests import fitting_torchvision
from tests.camrt.graph import peers
from tests.camrt.graph.torch_networks import CLASSES, PREPROCESS, SIDE, exported, images, run, tensor_of

torch = pytest.importorskip("torch", reason="PyTorch is not installed: segments are not compared with other libraries")
from tests.camrt.graph.test_peers import as_grad_cam_shows  # noqa: E402

NAMES = [f"class {number}" for number in range(CLASSES)]
GRAD_CAM = {"gradcam": "GradCAM", "hirescam": "HiResCAM", "layercam": "LayerCAM", "gradcam++": "GradCAMPlusPlus"}


def segmenter(classes: int = CLASSES) -> Any:
    """A trunk, a head, and logits enlarged to the image, as torchvision's FCN."""
    nn = torch.nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(
                nn.Conv2d(3, 12, 5, 2, 2), nn.ReLU(), nn.Conv2d(12, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, 1, 1)
            )
            self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(24, 10, 3, padding=1), nn.ReLU(), nn.Conv2d(10, classes, 1))

        def forward(self, x: Any) -> Any:
            small = self.head(self.trunk(x))
            return nn.functional.interpolate(small, size=x.shape[2:], mode="bilinear", align_corners=False)

    torch.manual_seed(4)
    module = Network().eval()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=(3 / layer.weight[0].numel()) ** 0.5)
            nn.init.normal_(layer.bias, std=0.1)
    return module


@pytest.fixture(scope="module")
def net() -> tuple[Any, onnx.ModelProto]:
    module = segmenter()
    return module, exported(module)


def logits_of(module: Any) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = module(tensor_of(images())).numpy()
    return found


def explainer_of(model: onnx.ModelProto, method: str | None = None, **options: Any) -> onnx.ModelProto:
    given = {"labels": NAMES, "target": "segment", "top": 2, **options}
    return explain_graph(model, method, "center", preprocess=PREPROCESS, **given)


def layer_of(explainer: onnx.ModelProto) -> str:
    facts = json.loads({one.key: one.value for one in explainer.metadata_props}["camrt.explainer"])
    (layer,) = facts["layer"]
    return str(layer)


@pytest.mark.parametrize("name", GRAD_CAM)
def test_pytorch_grad_cam(net: tuple[Any, onnx.ModelProto], name: str) -> None:
    """Its SemanticSegmentationTarget, image by image, with the mask of PyTorch's own logits."""
    module, model = net
    if name == "gradcam++":  # its denominator has 1e-6 more than the paper's: that must be little beside g^2
        module = segmenter()
        with torch.no_grad():
            module.head[-1].weight *= 1000
            module.head[-1].bias *= 1000
        model = exported(module)
    library = peers.grad_cam()
    scores, classes, _, maps = run(explainer_of(model, name), images(), MAPS)
    labels = logits_of(module).argmax(1)
    for n, rank in np.ndindex(2, 2):
        chosen = int(classes[n, rank])
        mask = (labels[n] == chosen).astype(np.float32)
        assert 0 < mask.mean() < 1
        np.testing.assert_allclose(scores[n, chosen], mask.mean(), rtol=1e-5)
        target = library.utils.model_targets.SemanticSegmentationTarget(chosen, mask)
        with getattr(library, GRAD_CAM[name])(module, [module.head[0]]) as method:
            theirs = method(tensor_of(images())[n : n + 1], [target])
        np.testing.assert_allclose(as_grad_cam_shows(maps[n : n + 1, 0, rank])[0], theirs[0], atol=1e-4)
    np.testing.assert_array_equal(classes, np.argsort(-scores, axis=1, kind="stable")[:, :2])


def test_the_default_layer_is_the_deepest_not_the_head(net: tuple[Any, onnx.ModelProto]) -> None:
    module, model = net
    explainer = explainer_of(model)
    (_, _, _, features) = run(explainer, images(), layer_of(explainer))
    with torch.no_grad():
        wanted = module.head[0](module.trunk(tensor_of(images()))).numpy()  # behind the ReLU: the last with 24 channels
    np.testing.assert_allclose(features, wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["input-gradient", "integrated-gradients"])
def test_gradients_by_the_image(net: tuple[Any, onnx.ModelProto], name: str) -> None:
    """The mask is a constant, and of the image itself on the whole way from black."""
    module, model = net
    settings = {"steps": 3, "baseline": "mean"} if name == "integrated-gradients" else {}
    _, classes, heatmaps = run(
        explainer_of(model, name, target="segment:class 3", top=None, settings=settings), images()
    )
    assert (classes == 3).all()
    x, labels = tensor_of(images()), torch.from_numpy(logits_of(module).argmax(1))
    total = torch.zeros_like(x)
    for part in (1 / 6, 3 / 6, 5 / 6) if settings else (1,):
        point = (x * part).requires_grad_()
        (module(point)[:, 3] * (labels == 3)).sum().backward()
        total += point.grad / (3 if settings else 1)
    wanted = ((total * x).sum(1) if settings else total.abs().amax(1)).abs()
    np.testing.assert_allclose(heatmaps[:, 0], wanted.numpy(), atol=1e-4 * float(wanted.max()))


@pytest.mark.parametrize("name", ["scorecam", "ablation-cam", "recipro-cam"])
def test_methods_that_run_the_network_again_keep_the_mask(net: tuple[Any, onnx.ModelProto], name: str) -> None:
    """The first weight of Ablation-CAM, and the least and largest score of Recipro-CAM, from PyTorch."""
    module, model = net
    explainer = explainer_of(model, name, settings={"masks": "point"} if name == "recipro-cam" else {})
    _, classes, heatmaps, maps = run(explainer, images(), MAPS)
    assert heatmaps.shape == (2, 2, SIDE, SIDE)
    labels = logits_of(module).argmax(1)
    for n, rank in np.ndindex(2, 2):
        chosen = int(classes[n, rank])
        mask = torch.from_numpy(labels[n] == chosen)

        def score(features: Any, chosen: int = chosen, mask: Any = mask) -> Any:
            logits = torch.nn.functional.interpolate(module.head[1:](features), size=(SIDE, SIDE), mode="bilinear")
            return (logits[:, chosen] * mask).sum((1, 2))

        with torch.no_grad():
            A = module.head[0](module.trunk(tensor_of(images())[n : n + 1]))
            if name == "ablation-cam":
                whole = score(A)
                keep = 1 - torch.eye(24)[:, :, None, None]
                wanted = torch.relu((((whole - score(A * keep)) / whole)[:, None, None] * A[0]).sum(0))
            elif name == "recipro-cam":
                found = score(A * torch.eye(64).reshape(64, 1, 8, 8)).reshape(8, 8)
                wanted = (found - found.min()) / (found.max() - found.min())
            else:
                large = torch.nn.functional.interpolate(A, scale_factor=4, mode="bilinear")[0]
                least = A[0].amin((1, 2), keepdim=True)
                masks = (large - least) / (A[0].amax((1, 2), keepdim=True) - least + 1e-8)
                x = tensor_of(images())[n : n + 1] * masks[:, None]
                found = score(module.head[0](module.trunk(x)))
                wanted = torch.relu((torch.softmax(found, 0)[:, None, None] * A[0]).sum(0))
        np.testing.assert_allclose(maps[n, 0, rank], wanted.numpy(), atol=2e-4 * max(1e-6, float(wanted.max())))


def test_a_mask_of_one_class() -> None:
    """Foreground against background with one logit: it is foreground where that is positive."""
    module = segmenter(1)
    with torch.no_grad():
        module.head[-1].bias -= float(module(tensor_of(images())).median())
    explainer = explainer_of(exported(module), target="segment:0", top=None, labels=["cell"])
    scores, _, _, maps = run(explainer, images(), MAPS)
    np.testing.assert_allclose(scores[:, 0], (logits_of(module)[:, 0] > 0).mean((1, 2)), rtol=1e-5)
    features = module.head[0](module.trunk(tensor_of(images()))).detach().requires_grad_()
    logits = torch.nn.functional.interpolate(module.head[1:](features), size=(SIDE, SIDE), mode="bilinear")
    (logits * (logits > 0)).sum().backward()
    wanted = torch.relu((features.grad.mean((2, 3), keepdim=True) * features).sum(1)).detach().numpy()
    np.testing.assert_allclose(maps[:, 0, 0], wanted, atol=1e-4 * wanted.max())


def test_behind_a_softmax_the_logits_are_explained(net: tuple[Any, onnx.ModelProto]) -> None:
    module, model = net
    soft = exported(torch.nn.Sequential(module, torch.nn.Softmax(1)))
    for mine, other in zip(run(explainer_of(soft), images()), run(explainer_of(model), images()), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5 * max(1, np.abs(other).max()))


def test_classes_that_come_with_each_image(net: tuple[Any, onnx.ModelProto]) -> None:
    best = run(explainer_of(net[1]), images())
    given = run(explainer_of(net[1], target="segment:input"), images(), target=best[1])
    for mine, other in zip(given, best, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)
    with pytest.raises(Exception, match=r"[Ii]ndex|indices|out of"):
        run(explainer_of(net[1], target="segment:input", top=1), images(), target=[[CLASSES]] * 2)


def test_explainer(net: tuple[Any, onnx.ModelProto]) -> None:
    graph = explainer_of(net[1], target=["segment:class 1", "segment:2"], top=None)
    for model in (graph, net[1]):
        options: dict[str, Any] = {} if model is graph else {"preprocess": PREPROCESS, "labels": NAMES}
        found = Explainer(model, "gradcam", target=["segment:1", "segment:class 2"], **options)(images()[0])
        assert found.labels == ("class 1", "class 2")
    with pytest.raises(CamrtError, match="found an explainer graph of the target"):
        Explainer(graph, target=["segment:3", "segment:2"])
    each = Explainer(net[1], "gradcam", target="segment:any", top=1, preprocess=PREPROCESS, labels=NAMES)
    assert each(images()[0], target="segment:class 5").labels == ("class 5",)
    assert each(images()[0], target="class 5").labels == ("class 5",)


def test_a_class_that_is_nowhere_has_an_empty_map(net: tuple[Any, onnx.ModelProto]) -> None:
    module = segmenter()
    with torch.no_grad():
        module.head[-1].bias[0] -= 100
    scores, _, heatmaps = run(explainer_of(exported(module), target="segment:0", top=None), images())
    assert not scores[:, 0].any()
    assert not heatmaps.any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "segment:dog"}, "found the class 'dog', which the model does not know"),
        ({"target": ["segment:1", 2]}, "expected all or none of the form segment:CLASS"),
        ({"method": "cam"}, "with the method cam, which explains the classes of a whole image: use --method gradcam"),
        ({"method": "finercam"}, "expected classes, which finercam compares"),
        ({"scores": "nothing"}, "expected a tensor of the model, or a node"),
    ],
)
def test_wrong_targets(net: tuple[Any, onnx.ModelProto], options: dict[str, Any], words: str) -> None:
    with pytest.raises(CamrtError, match=words):
        explainer_of(net[1], **{"top": None, **options})


def test_black_box_methods_refuse(net: tuple[Any, onnx.ModelProto]) -> None:
    with pytest.raises(CamrtError, match="use --method gradcam, layercam or recipro-cam"):
        Explainer(net[1], "rise", target="segment:1", preprocess=PREPROCESS)


def test_a_classifier_has_no_segments() -> None:
    from tests.camrt.classifiers import classifier

    with pytest.raises(CamrtError, match="expected scores for each pixel, N x classes x height x width"):
        explain_graph(classifier("gemm"), "gradcam", target="segment:1", preprocess=PREPROCESS)
    graph = explain_graph(classifier("gemm"), "gradcam", target="input", preprocess=PREPROCESS.cropped(16))
    with pytest.raises(CamrtError, match="an explainer of classes of whole images"):
        Explainer(graph)(images()[0], target="segment:1")


def torchvisions(name: str) -> tuple[Any, Any, Any]:
    """A network of torchvision with random weights, its features with the most channels, and what is behind them."""
    fitting_torchvision.install()
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    torch.manual_seed(0)
    segmentation = torchvision.models.segmentation
    trunk = torchvision.models._utils.IntermediateLayerGetter(torchvision.models.resnet18(), {"layer2": "out"})
    if name == "fcn":
        module = segmentation.FCN(trunk, segmentation.fcn.FCNHead(128, 21))
    else:
        module = segmentation.DeepLabV3(trunk, segmentation.deeplabv3.DeepLabHead(128, 21))
    module.train()
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        module(tensor_of(images()))  # statistics that fit the weights
    module.eval()
    if name == "fcn":
        return module, module.backbone(tensor_of(images()))["out"], module.classifier
    found: list[Any] = []
    hook = module.classifier[0].project.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    module(tensor_of(images()))
    hook.remove()
    return module, found[0], torch.nn.Sequential(module.classifier[0].project, *list(module.classifier)[1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn", "deeplabv3"])
def test_torchvision(name: str) -> None:
    """The default layer is the deepest, and the maps are autograd's."""
    module, features, head = torchvisions(name)
    explainer = explain_graph(exported(module), "hirescam", "center", target="segment", top=2, preprocess=PREPROCESS)
    _, classes, _, maps = run(explainer, images(), MAPS)
    features = features.detach().requires_grad_()
    logits = torch.nn.functional.interpolate(head(features), size=(SIDE, SIDE), mode="bilinear")
    labels = logits.argmax(1)
    for rank in range(2):
        chosen = torch.from_numpy(classes[:, rank])
        score = (logits[torch.arange(2), chosen] * (labels == chosen[:, None, None])).sum()
        (gradient,) = torch.autograd.grad(score, features, retain_graph=True)
        wanted = torch.relu((gradient * features).sum(1)).detach().numpy()
        assert wanted.max() > 0
        np.testing.assert_allclose(maps[:, 0, rank], wanted, atol=1e-3 * wanted.max())
