"""Smoothing against pytorch-grad-cam's, and against its definition, by explainers of each variant of the image."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from camrt import Explainer
from camrt.errors import CamrtError
from camrt.graph import explain_graph
from camrt.graph.explain import MAPS
from camrt.graph.methods import METHODS, find
from camrt.preprocess import Preprocess
from tests.camrt.classifiers import SIDE as SMALL
from tests.camrt.classifiers import classifier, suited
from tests.camrt.graph import peers
from tests.camrt.graph.explainers import PREPROCESS, SIZE, run
from tests.camrt.graph.explainers import images as plain_images
from tests.camrt.graph.torch_networks import CLASSES, SIDE, explained, exported, images, network, tensor_of, transformer

TOP = 3
TOLERANCE = 1e-4
THEIRS = {
    "gradcam": "GradCAM", "hirescam": "HiResCAM", "xgradcam": "XGradCAM", "layercam": "LayerCAM",
}  # fmt: skip
WEIGHTED = (  # what sums feature maps
    "cam", "gradcam", "gradcam++", "hirescam", "xgradcam", "layercam", "shapleycam", "finercam", "refinecam", "fem",
    "scorecam", "ablation-cam", "guided-gradcam",
)  # fmt: skip


def of_library(name: str, module: Any, chosen: list[int], layers: list[Any], **options: Any) -> np.ndarray:
    """pytorch-grad-cam's maps of the images, smoothed by itself."""
    library = peers.grad_cam()
    reshape = {"reshape_transform": options.pop("reshape")} if "reshape" in options else {}
    target = [library.utils.model_targets.ClassifierOutputTarget(each) for each in chosen]
    with getattr(library, THEIRS[name])(module, layers, **reshape) as method:
        found: np.ndarray = method(tensor_of(images()), target, **options)
    return found


def shown(maps: np.ndarray) -> np.ndarray:
    """Maps (N, h, w) scaled and enlarged as pytorch-grad-cam does it, twice."""
    scale = peers.grad_cam().utils.image.scale_cam_image
    return np.asarray(scale(scale(maps, (SIDE, SIDE))))


def averaged(maps: np.ndarray) -> np.ndarray:
    """The mean of the maps of all variants (N, 6, h, w), of which every other one is mirrored."""
    parts = [shown(maps[:, number])[..., :: -1 if number % 2 else 1] for number in range(maps.shape[1])]
    assert len(parts) == 6
    return np.asarray(np.mean(parts, 0))


@pytest.fixture
def signs(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytorch-grad-cam's projections, with the sign that agrees with the sum: theirs is arbitrary."""
    library = peers.grad_cam()
    project = library.utils.svd_on_activations.get_2d_projection

    def signed(activations: np.ndarray) -> np.ndarray:
        sums = activations.sum(1)
        products = (project(activations) * (sums - sums.mean((1, 2), keepdims=True))).sum((1, 2), keepdims=True)
        return np.asarray(np.sign(products) * project(activations))

    for name in ("base_cam", "hirescam", "layer_cam"):
        monkeypatch.setattr(getattr(library, name), "get_2d_projection", signed)


@pytest.mark.parametrize("name", ["gradcam", "hirescam", "xgradcam", "layercam"])
@pytest.mark.parametrize("kind", ["gap", "vgg", "residual"])
def test_augmentation_of_pytorch_grad_cam(kind: str, name: str) -> None:
    module = network(kind)
    _, classes, _, maps = explained(exported(module), images(), MAPS, method=name, top=TOP, smooth="augment")
    for rank in range(TOP):
        theirs = of_library(name, module, classes[:, rank].tolist(), [module.features[-1]], aug_smooth=True)
        np.testing.assert_allclose(averaged(maps[:, :, rank]), theirs, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["gradcam", "hirescam", "xgradcam", "layercam", "ablation-cam"])
@pytest.mark.parametrize("kind", ["gap", "vgg", "residual"])
@pytest.mark.usefixtures("signs")
def test_eigen_smoothing_of_pytorch_grad_cam(kind: str, name: str) -> None:
    """To 1e-3 of the largest value, as for all principal components."""
    module = network(kind)
    _, classes, _, maps = explained(exported(module), images(), MAPS, method=name, target=[0, 4], smooth="eigen")
    for rank, chosen in enumerate((0, 4)):
        if name == "ablation-cam":
            wanted = _ablated(module, chosen)
        else:
            wanted = of_library(name, module, [chosen] * 2, [module.features[-1]], eigen_smooth=True)
        np.testing.assert_allclose(shown(maps[:, 0, rank]), wanted, atol=1e-3)
    assert classes.tolist() == [[0, 4]] * 2


def _ablated(module: Any, chosen: int) -> np.ndarray:
    """Ablation-CAM's weights from PyTorch, pytorch-grad-cam's projection: its ablation differs (docs/methods.md)."""
    import torch

    library = peers.grad_cam()
    with torch.no_grad():
        features = module.features(tensor_of(images()))
        whole = module.head(features)[:, chosen]
        weights = []
        for channel in range(features.shape[1]):
            less = features.clone()
            less[:, channel] = 0
            weights.append((whole - module.head(less)[:, chosen]) / whole)
    products = torch.stack(weights, 1)[..., None, None] * features
    return shown(np.maximum(library.base_cam.get_2d_projection(products.numpy()), 0))


@pytest.mark.usefixtures("signs")
def test_both_at_once_on_a_vision_transformer() -> None:
    module = transformer()
    model = exported(module)

    def as_map(tokens: Any) -> Any:
        return tokens[:, 1:].reshape(len(tokens), 4, 4, -1).permute(0, 3, 1, 2)

    for smooth in (["augment"], ["augment", "eigen"]):
        _, classes, _, maps = explained(model, images(), MAPS, method="gradcam", top=TOP, smooth=smooth)
        theirs = of_library(
            "gradcam", module, classes[:, 1].tolist(), [module.blocks[-1].norm1], reshape=as_map,
            aug_smooth=True, eigen_smooth="eigen" in smooth,
        )  # fmt: skip
        np.testing.assert_allclose(averaged(maps[:, :, 1]), theirs, atol=1e-3)


@pytest.mark.usefixtures("signs")
@pytest.mark.parametrize("smooth", ["augment", "eigen", ("eigen", "augment")])
def test_heatmaps_are_those_of_pytorch_grad_cam(smooth: Any) -> None:
    """From image to heatmap, of two layers of the image's size, where nothing is enlarged."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: methods are not compared")
    nn = torch.nn
    torch.manual_seed(2)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            convolutions = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
            self.features = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU())
            self.head = nn.Sequential(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(8 * (SIDE // 4) ** 2, CLASSES))

        def forward(self, x: Any) -> Any:
            return self.head(self.features(x))

    module = Network().eval()
    model = exported(module)
    relus = [node.output[0] for node in model.graph.node if node.op_type == "Relu"]
    scores, classes, heatmaps = explained(model, images(), method="layercam", top=2, layer=relus, smooth=smooth)
    layers = [module.features[1], module.features[3]]
    for rank in range(2):
        theirs = of_library(
            "layercam", module, classes[:, rank].tolist(), layers,
            aug_smooth="augment" in smooth, eigen_smooth="eigen" in smooth,
        )  # fmt: skip
        ours = heatmaps[:, rank]
        if smooth == "eigen":
            ours = ours - ours.min((1, 2), keepdims=True)
            ours /= ours.max((1, 2), keepdims=True)
        np.testing.assert_allclose(ours, theirs, atol=1e-3 if "eigen" in smooth else TOLERANCE)
    plain = explained(model, images(), method="layercam", top=2, layer=relus)
    np.testing.assert_allclose(scores, plain[0], atol=1e-6)  # those of the image as it is
    np.testing.assert_array_equal(classes, plain[1])


# A mean of 0: black is then the same for all variants.
BLACK = Preprocess(size=SIZE, crop=SMALL, mean=(0.0, 0.0, 0.0), scale=(0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("name", "protocol"),
    [*((name, "center") for name in METHODS), ("cam", "ten-crop"), ("layercam", "ten-crop"), ("smoothgrad", "full")],
)
def test_augmentation_is_the_mean_of_the_variants(name: str, protocol: str) -> None:
    """Of each variant's own heatmaps, from explainers that are not smoothed."""
    model, batch = suited(name), plain_images(2)
    options: dict[str, Any] = {"method": name, "protocol": protocol, "target": [0, 3]}
    wanted = []
    for factor in (1.0, 0.9, 1.1):
        scaled = dataclasses.replace(BLACK, scale=(0.5 * factor,) * 3)
        variant = explain_graph(model, preprocess=scaled, **options)
        for step in (1, -1):
            heatmaps = run(variant, {"image": np.ascontiguousarray(batch[:, :, ::step])})[2][..., ::step]
            above = heatmaps - heatmaps.min((2, 3), keepdims=True)
            wanted.append(above / np.maximum(above.max((2, 3), keepdims=True), 1e-30))
    smoothed = explain_graph(model, preprocess=BLACK, smooth="augment", **options)
    scores, _, found = run(smoothed, {"image": batch})
    np.testing.assert_allclose(found, np.mean(wanted, 0), atol=2e-3 if "eigen" in name else 2e-4)
    plain = run(explain_graph(model, preprocess=BLACK, **options), {"image": batch})
    np.testing.assert_allclose(scores, plain[0], atol=1e-6)
    assert np.abs(found - wanted[0]).max() > 0.01 * (protocol == "center")  # the others have mirror images already
    assert found.max() > 0.5


def test_signed_maps_keep_their_sign() -> None:
    settings = {"values": "signed", "steps": 4}
    options: dict[str, Any] = {"method": "integrated-gradients", "protocol": "center", "settings": settings}
    plain = explain_graph(classifier("gemm"), preprocess=PREPROCESS, **options)
    smooth = explain_graph(classifier("gemm"), preprocess=PREPROCESS, smooth="augment", **options)
    before, found = (run(one, {"image": plain_images(2)})[2] for one in (plain, smooth))
    assert found.min() < 0 < found.max() <= 1
    assert np.corrcoef(before.ravel(), found.ravel())[0, 1] > 0.3


@pytest.mark.parametrize("name", METHODS)
def test_eigen_is_for_methods_that_sum_features(name: str) -> None:
    options: dict[str, Any] = {"method": name, "protocol": "center", "preprocess": PREPROCESS, "smooth": "eigen"}
    if name in WEIGHTED:
        found = run(explain_graph(suited(name), **options), {"image": plain_images(2)})[2]
        plain = run(explain_graph(suited(name), **{**options, "smooth": None}), {"image": plain_images(2)})[2]
        assert found.max() > 0
        assert np.abs(found / found.max() - plain / plain.max()).max() > 0.01
    else:
        with pytest.raises(CamrtError, match=rf"'eigen' with {name.replace('+', '.')}, which sums no feature maps"):
            explain_graph(suited(name), **options)


def test_cam_with_eigen_is_gradcam_with_eigen() -> None:
    """Their weights are the same up to a factor, where negative maps count in both."""
    options: dict[str, Any] = {"protocol": "center", "preprocess": PREPROCESS, "smooth": "eigen", "target": 1}
    cam, gradcam = (
        run(explain_graph(classifier("gemm"), name, **options), {"image": plain_images(2)})[2]
        for name in ("cam", "gradcam")
    )
    np.testing.assert_allclose(cam / cam.max(), gradcam / gradcam.max(), atol=2e-3)


def test_of_the_sum_of_scores() -> None:
    options: dict[str, Any] = {"protocol": "ten-crop", "preprocess": PREPROCESS, "target": "sum", "scores": "logits"}
    plain, smooth = (
        run(explain_graph(classifier("gemm"), "gradcam", smooth=smooth, **options), {"image": plain_images(2)})
        for smooth in (None, "augment")
    )
    np.testing.assert_allclose(smooth[0], plain[0], rtol=1e-5)
    assert smooth[2].shape == plain[2].shape


def test_metadata_and_what_an_explainer_graph_can_do(tmp_path: Path) -> None:
    model = classifier("gemm")
    explainer = explain_graph(model, "gradcam", preprocess=PREPROCESS, smooth=("eigen", "augment"))
    facts = json.loads({entry.key: entry.value for entry in explainer.metadata_props}["camrt.explainer"])
    assert facts["smooth"] == ["augment", "eigen"]
    plain = explain_graph(model, "gradcam", preprocess=PREPROCESS)
    assert "smooth" not in json.loads({entry.key: entry.value for entry in plain.metadata_props}["camrt.explainer"])
    assert Explainer(explainer, smooth=["eigen", "augment"]).method == "gradcam"
    with pytest.raises(CamrtError, match=r"with smooth \['augment', 'eigen'\], expected \['eigen'\]. Make it anew"):
        Explainer(explainer, smooth="eigen")
    with pytest.raises(CamrtError, match=r"with smooth \[\], expected \['augment'\]"):
        Explainer(plain, smooth="augment")


@pytest.mark.parametrize("smooth", ["mean", ["augment", ""], "Augment"])
def test_unknown(smooth: Any) -> None:
    with pytest.raises(CamrtError, match=r"found the smoothing .*, expected augment or eigen \(smooth=, --smooth\)"):
        explain_graph(classifier("gemm"), "gradcam", preprocess=PREPROCESS, smooth=smooth)


def test_methods_that_only_run_the_model_are_not_smoothed() -> None:
    with pytest.raises(CamrtError, match="found smooth='augment', expected none: rise is no part of a graph"):
        Explainer(classifier("gemm"), "rise", preprocess=PREPROCESS, smooth="augment")


def test_weighted_methods_are_known() -> None:
    assert set(WEIGHTED) <= set(METHODS)
    assert all(find(name).layered for name in WEIGHTED)
