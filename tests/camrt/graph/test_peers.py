"""Methods on networks from PyTorch, against pytorch-grad-cam, torch-cam, and PyTorch's own derivatives.

Maps agree to 1e-4 after the library's own normalization. Where they cannot, because we differ on purpose, a test shows
that this is the whole difference; docs/methods.md says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from camrt.graph.explain import MAPS
from camrt.graph.methods import find
from camrt.graph.methods.context import GRADIENT
from tests.camrt.graph import peers
from tests.camrt.graph.torch_networks import CLASSES, SIDE, explained, exported, images, network, tensor_of, transformer

torch = pytest.importorskip("torch", reason="PyTorch is not installed: methods are not compared with other libraries")

KINDS = ("gap", "vgg", "residual")
TOP = 3
TOLERANCE = 1e-4
GRAD_CAM = {
    "gradcam": "GradCAM", "gradcam++": "GradCAMPlusPlus", "hirescam": "HiResCAM", "xgradcam": "XGradCAM",
    "layercam": "LayerCAM",
}  # fmt: skip
TORCH_CAM = {"gradcam": "GradCAM", "xgradcam": "XGradCAM", "layercam": "LayerCAM", "scorecam": "ScoreCAM"}


@pytest.fixture(scope="module", params=KINDS)
def net(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A network as a module, and exported."""
    module = network(request.param)
    return module, exported(module)


@pytest.fixture(scope="module", params=[*KINDS, "transformer"])
def any_net(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A network, or a vision transformer, for methods that ask nothing of its layers."""
    module = transformer() if request.param == "transformer" else network(request.param)
    return module, exported(module)


def targets(classes: np.ndarray, rank: int) -> list[int]:
    return [int(one) for one in classes[:, rank]]


def normalized(maps: np.ndarray) -> np.ndarray:
    above = maps - maps.min((1, 2), keepdims=True)
    return above / above.max((1, 2), keepdims=True)


def of_grad_cam(name: str, module: Any, x: Any, chosen: list[int], layers: list[Any] | None = None) -> np.ndarray:
    """pytorch-grad-cam's maps of a batch, normalized and enlarged by itself."""
    library = peers.grad_cam()
    target = [library.utils.model_targets.ClassifierOutputTarget(each) for each in chosen]
    with getattr(library, name)(module, layers or [module.features[-1]]) as method:
        return method(x, target)


def as_grad_cam_shows(maps: np.ndarray) -> np.ndarray:
    """Normalization and enlarging as pytorch-grad-cam does them, twice."""
    scale = peers.grad_cam().utils.image.scale_cam_image
    return scale(scale(maps, (SIDE, SIDE)))


@pytest.mark.parametrize("name", GRAD_CAM)
def test_pytorch_grad_cam(net: tuple[Any, Any], name: str) -> None:
    module, model = net
    if name == "gradcam++":  # its denominator has 1e-6 more than the paper's: that must be little beside g^2
        module, model = _steep(module)
    _, classes, _, maps = explained(model, images(), MAPS, method=name, top=TOP)
    for rank in range(TOP):
        theirs = of_grad_cam(GRAD_CAM[name], module, tensor_of(images()), targets(classes, rank))
        np.testing.assert_allclose(as_grad_cam_shows(maps[:, 0, rank]), theirs, atol=TOLERANCE)


def test_pytorch_grad_cam_eigencam(net: tuple[Any, Any]) -> None:
    """Up to the sign, which its singular value decomposition leaves open."""
    _, model = net
    _, _, _, maps, features = explained(model, images(), MAPS, _features(model), method="eigencam")
    project = peers.grad_cam().utils.svd_on_activations.get_2d_projection
    for ours, theirs, activation in zip(maps[:, 0, 0], project(features), features, strict=True):
        sign = np.sign((theirs * activation.sum(0)).sum())
        np.testing.assert_allclose(
            normalized(ours[None])[0], normalized(np.maximum(sign * theirs, 0)[None])[0], atol=TOLERANCE
        )


@pytest.mark.parametrize("name", TORCH_CAM)
def test_torch_cam(net: tuple[Any, Any], name: str) -> None:
    module, model = net
    library, x = peers.torch_cam(), tensor_of(images())
    _, classes, _, maps = explained(model, images(), MAPS, method=name, top=TOP)
    for rank in range(TOP):
        with getattr(library, TORCH_CAM[name])(module, "features") as extractor:
            (theirs,) = extractor(targets(classes, rank), module(x))
        np.testing.assert_allclose(normalized(maps[:, 0, rank]), theirs.detach().numpy(), atol=TOLERANCE)


def test_torch_cam_leaves_out_the_division_of_gradcam_plus_plus(net: tuple[Any, Any]) -> None:
    """It divides a copy: its alpha is g^2, where the paper has g^2 / (2 g^2 + S g^3)."""
    module, _ = _steep(net[0])
    library, x = peers.torch_cam(), tensor_of(images())
    activation, gradient = _by_features(module, x, [0, 1])
    weights = (gradient**2 * gradient.clamp(min=0)).sum((2, 3), keepdim=True)
    wanted = torch.relu((weights * activation).sum(1)).numpy()
    with library.GradCAMpp(module, "features") as extractor:
        (theirs,) = extractor([0, 1], module(x))
    np.testing.assert_allclose(theirs.detach().numpy(), normalized(wanted), atol=TOLERANCE)


def _of_full_size() -> Any:
    """A network with two layers of the image's size, where no map is enlarged."""
    nn = torch.nn
    torch.manual_seed(2)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(
                nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()
            )
            self.head = nn.Sequential(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(8 * (SIDE // 4) ** 2, CLASSES))

        def forward(self, x: Any) -> Any:
            return self.head(self.features(x))

    return Network().eval()


def _fused(module: Any, model: Any, method: str) -> Iterator[tuple[np.ndarray, list[int], list[Any]]]:
    """For each rank the fused map of both layers, brought to 0..1, its classes, and the layers in PyTorch."""
    relus = [node.output[0] for node in model.graph.node if node.op_type == "Relu"]
    _, classes, heatmaps = explained(model, images(), method=method, top=TOP, layer=relus)
    for rank in range(TOP):
        yield normalized(heatmaps[:, rank]), targets(classes, rank), [module.features[1], module.features[3]]


def test_several_layers_are_fused_as_pytorch_grad_cam_does() -> None:
    """Each map brought to 0..1, and the mean of them: on layers of the image's size, where nothing is enlarged."""
    module = _of_full_size()
    for ours, chosen, layers in _fused(module, exported(module), "layercam"):
        theirs = of_grad_cam("LayerCAM", module, tensor_of(images()), chosen, layers)
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


def test_refinecam_multiplies_layers() -> None:
    """On layers of the image's size, where nothing is enlarged; steep, as for Grad-CAM++ in test_pytorch_grad_cam."""
    module, model = _steep(_of_full_size())
    library = peers.grad_cam()
    for ours, chosen, layers in _fused(module, model, "refinecam"):
        target = [library.utils.model_targets.ClassifierOutputTarget(each) for each in chosen]
        theirs = library.refine_cam.RefineCAM(module, layers)(tensor_of(images()), target)
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


@pytest.mark.parametrize(("alpha", "others"), [(1.0, 3), (0.5, 1), (1.0, 50)])
def test_finercam(net: tuple[Any, Any], alpha: float, others: int) -> None:
    """Its weighted target, of the classes whose scores are nearest."""
    module, model = net
    settings = {"alpha": alpha, "others": others}
    _, classes, _, maps = explained(model, images(), MAPS, method="finercam", top=TOP, settings=settings)
    library, x = peers.grad_cam(), tensor_of(images())
    logits = module(x).detach().numpy()
    for rank in range(TOP):
        chosen = targets(classes, rank)
        nearest = [
            np.abs(row - row[one]).argsort()[1 : 1 + others].tolist() for row, one in zip(logits, chosen, strict=True)
        ]
        make = library.utils.model_targets.FinerWeightedTarget
        target = [make(one, others, alpha) for one, others in zip(chosen, nearest, strict=True)]
        with library.GradCAM(module, [module.features[-1]]) as method:
            theirs = method(x, target)
        np.testing.assert_allclose(as_grad_cam_shows(maps[:, 0, rank]), theirs, atol=TOLERANCE)


def test_finercam_without_the_others_is_gradcam(net: tuple[Any, Any]) -> None:
    _, model = net
    plain = explained(model, images(), MAPS, method="gradcam", top=TOP)[3]
    found = explained(model, images(), MAPS, method="finercam", top=TOP, settings={"alpha": 0})[3]
    np.testing.assert_allclose(found, plain, atol=1e-6 * plain.max())


@pytest.mark.parametrize("kind", ["gap", "vgg"])
def test_fullgrad_of_pytorch_grad_cam(kind: str) -> None:
    module = network(kind)
    _, classes, heatmaps = explained(exported(module), images(), method="fullgrad", top=TOP)
    library = peers.grad_cam()
    for n in range(2):
        for rank in range(TOP):
            target = [library.utils.model_targets.ClassifierOutputTarget(int(classes[n, rank]))]
            with library.FullGrad(network(kind), [None]) as method:
                theirs = method(tensor_of(images())[n : n + 1], target)
            np.testing.assert_allclose(normalized(heatmaps[n, rank][None]), theirs, atol=TOLERANCE)


def test_scorecam_of_pytorch_grad_cam_enlarges_otherwise(net: tuple[Any, Any]) -> None:
    """It aligns the corners of map and image; the maps of both are alike, not the same."""
    module, model = net
    _, classes, _, maps = explained(model, images(), MAPS, method="scorecam", top=1)
    theirs = of_grad_cam("ScoreCAM", module, tensor_of(images()), targets(classes, 0))
    ours = as_grad_cam_shows(maps[:, 0, 0])
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.95


def test_scorecam_of_the_liveliest_channels(net: tuple[Any, Any]) -> None:
    """Those of the largest variance, and the softmax over them alone."""
    module, model = net
    _, classes, _, maps, features = explained(
        model, images(), MAPS, _features(model), method="scorecam", top=TOP, settings={"channels": 5}
    )
    x = tensor_of(images())
    for n in range(len(x)):
        activation = torch.from_numpy(features[n])
        chosen = activation.flatten(1).var(1).argsort(descending=True)[:5]
        some = activation[chosen]
        low, high = some.amin((1, 2), keepdim=True), some.amax((1, 2), keepdim=True)
        masks = torch.nn.functional.interpolate(
            ((some - low) / (high - low + 1e-8))[:, None], (SIDE, SIDE), mode="bilinear"
        )
        with torch.no_grad():
            logits = module(x[n : n + 1] * masks)
        for rank in range(TOP):
            weights = torch.softmax(logits[:, classes[n, rank]], 0)
            wanted = torch.relu((weights[:, None, None] * some).sum(0)).numpy()
            np.testing.assert_allclose(maps[n, 0, rank], wanted, atol=TOLERANCE * wanted.max())


# ------------------------------------------------------------------------------------------------------------ pixels


def test_gradient_of_the_image(any_net: tuple[Any, Any]) -> None:
    module, model = any_net
    _, classes, heatmaps, gradient = explained(model, images(), GRADIENT, method="input-gradient", top=TOP)
    for rank in range(TOP):
        wanted = _by_image(module, tensor_of(images()), targets(classes, rank)).numpy()
        np.testing.assert_allclose(gradient[:, 0, rank], wanted, atol=TOLERANCE * np.abs(wanted).max())
        np.testing.assert_allclose(heatmaps[:, rank], np.abs(wanted).max(1), atol=TOLERANCE * np.abs(wanted).max())


@pytest.mark.parametrize("kind", ["gap", "vgg"])
def test_guided_backpropagation_of_pytorch_grad_cam(kind: str) -> None:
    module = network(kind)
    model = exported(module)
    _, classes, heatmaps, gradient = explained(model, images(), GRADIENT, method="guided-backprop", top=TOP)
    library, x = peers.grad_cam(), tensor_of(images())
    for n in range(len(x)):
        for rank in range(TOP):
            guided = library.GuidedBackpropReLUModel(network(kind), "cpu")
            wanted = guided(x[n : n + 1].clone(), int(classes[n, rank])).transpose(2, 0, 1)
            np.testing.assert_allclose(gradient[n, 0, rank], wanted, atol=TOLERANCE * np.abs(wanted).max())
            np.testing.assert_allclose(heatmaps[n, rank], np.abs(wanted).max(0), atol=TOLERANCE * np.abs(wanted).max())
    plain = _by_image(module, x, targets(classes, 0)).numpy()
    assert np.abs(plain - gradient[:, 0, 0]).max() > 0.1 * np.abs(plain).max(), "it is another derivative"


def test_guided_gradcam_is_their_product() -> None:
    from camrt import matlab

    model = exported(network("vgg"))
    _, _, heatmaps, guided = explained(model, images(), GRADIENT, method="guided-backprop", top=TOP)
    *_, coarse = explained(model, images(), MAPS, method="gradcam", top=TOP)
    _, _, found, product = explained(model, images(), GRADIENT, method="guided-gradcam", top=TOP)
    for n in range(2):
        for rank in range(TOP):
            large = matlab.imresize(coarse[n, 0, rank].astype(np.float64), (SIDE, SIDE), method="bicubic")
            wanted = guided[n, 0, rank] * np.maximum(large, 0)
            np.testing.assert_allclose(product[n, 0, rank], wanted, atol=TOLERANCE * np.abs(wanted).max())
            np.testing.assert_allclose(found[n, rank], np.abs(wanted).max(0), atol=TOLERANCE * np.abs(wanted).max())
    assert heatmaps.shape == found.shape


def test_smoothgrad(any_net: tuple[Any, Any]) -> None:
    """The mean of PyTorch's derivatives at the same noisy images."""
    from onnx import numpy_helper

    from camrt.graph import explain_graph
    from tests.camrt.graph.torch_networks import PREPROCESS, run

    module, model = any_net
    settings = {"samples": 4, "sigma": 0.1}
    explainer = explain_graph(model, "smoothgrad", top=TOP, preprocess=PREPROCESS, settings=settings)
    _, classes, heatmaps, gradient = run(explainer, images(), GRADIENT)
    row = next(numpy_helper.to_array(one) for one in explainer.graph.initializer if one.name == "camrt/noise")
    numbers = 3 * SIDE * SIDE
    step = (len(row) - numbers) // 3
    assert abs(row.mean()) < 0.05
    assert abs(row.std() - 1) < 0.05
    x = tensor_of(images())
    deviation = 0.1 * (x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True))
    for rank in range(TOP):
        total = torch.zeros_like(x)
        for sample in range(4):
            noise = torch.from_numpy(row[sample * step : sample * step + numbers].reshape(1, 3, SIDE, SIDE).copy())
            total += _by_image(module, x + deviation * noise, targets(classes, rank))
        wanted = (total / 4).numpy()
        np.testing.assert_allclose(gradient[:, 0, rank], wanted, atol=2 * TOLERANCE * np.abs(wanted).max())
        np.testing.assert_allclose(heatmaps[:, rank], np.abs(wanted).max(1), atol=2 * TOLERANCE * np.abs(wanted).max())


def test_smoothgrad_without_noise_is_the_gradient(any_net: tuple[Any, Any]) -> None:
    _, model = any_net
    plain = explained(model, images(), method="input-gradient", top=TOP)[2]
    smooth = explained(model, images(), method="smoothgrad", top=TOP, settings={"samples": 2, "sigma": 0})[2]
    np.testing.assert_allclose(smooth, plain, atol=TOLERANCE * plain.max())


@pytest.mark.parametrize("baseline", ["black", "mean"])
def test_integrated_gradients(any_net: tuple[Any, Any], baseline: str) -> None:
    """The midpoint rule over PyTorch's derivatives; and the axiom of completeness (Sundararajan et al. 2017)."""
    module, model = any_net
    x = tensor_of(images())
    begin = torch.full_like(x, -2.0 if baseline == "black" else 0.0)  # (0 - 128) / 64
    _, classes, heatmaps, added = explained(
        model, images(), GRADIENT, method="integrated-gradients", top=TOP, settings={"steps": 8, "baseline": baseline}
    )
    for rank in range(TOP):
        chosen = targets(classes, rank)
        total = sum(_by_image(module, begin + (step + 0.5) / 8 * (x - begin), chosen) for step in range(8))
        wanted = (total / 8 * (x - begin)).numpy()
        np.testing.assert_allclose(added[:, 0, rank], wanted, atol=2 * TOLERANCE * np.abs(wanted).max())
        np.testing.assert_allclose(heatmaps[:, rank], np.abs(wanted.sum(1)), atol=2 * TOLERANCE * np.abs(wanted).max())
    signed = {"steps": 8, "baseline": baseline, "values": "signed"}
    sums = explained(model, images(), method="integrated-gradients", top=TOP, settings=signed)[2]
    assert sums.min() < 0 < sums.max()
    np.testing.assert_allclose(sums, added[:, 0].sum(2), atol=TOLERANCE * np.abs(sums).max())
    _, classes, _, added = explained(
        model, images(), GRADIENT, method="integrated-gradients", top=TOP, settings={"steps": 300, "baseline": baseline}
    )
    with torch.no_grad():
        gain = (module(x) - module(begin)).numpy()
    for n in range(2):
        sums = added[n, 0].sum((1, 2, 3))
        np.testing.assert_allclose(sums, gain[n, classes[n]], atol=5e-3 * np.abs(gain).max())


@pytest.mark.parametrize("baseline", ["black", "mean"])
def test_gradient_shap(any_net: tuple[Any, Any], baseline: str) -> None:
    """PyTorch's derivatives at the points that the graph holds."""
    from onnx import numpy_helper

    from camrt.graph import explain_graph
    from tests.camrt.graph.torch_networks import PREPROCESS, run

    module, model = any_net
    settings = {"samples": 4, "sigma": 0.1, "baseline": baseline}
    explainer = explain_graph(model, "gradient-shap", top=TOP, preprocess=PREPROCESS, settings=settings)
    _, classes, heatmaps, added = run(explainer, images(), GRADIENT)
    held = {
        one.name: numpy_helper.to_array(one) for one in explainer.graph.initializer if one.name.startswith("camrt/")
    }
    row, parts = held["camrt/noise"], held["camrt/parts"]
    step = (len(row) - 3 * SIDE * SIDE) // 3
    x = tensor_of(images())
    begin = -2.0 if baseline == "black" else 0.0  # (0 - 128) / 64
    deviation = 0.1 * (x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True))
    assert ((parts > 0) & (parts < 1)).all()
    assert len(set(parts.tolist())) == 4
    for rank in range(TOP):
        wanted = torch.zeros_like(x)
        for sample, part in enumerate(parts.tolist()):
            drawn = row[sample * step :][: 3 * SIDE * SIDE].reshape(1, 3, SIDE, SIDE).copy()
            way = x + deviation * torch.from_numpy(drawn) - begin
            wanted += way * _by_image(module, begin + part * way, targets(classes, rank)) / 4
        largest = wanted.abs().max()
        np.testing.assert_allclose(added[:, 0, rank], wanted, atol=2 * TOLERANCE * largest)
        np.testing.assert_allclose(heatmaps[:, rank], wanted.sum(1).abs(), atol=2 * TOLERANCE * largest)


# ------------------------------------------------------------------------------------------------------ transformers


def test_visiontransformer() -> None:
    """Of a transformer: the tokens that the last attention gets, less the class token, against pytorch-grad-cam."""
    module = transformer()
    model = exported(module)
    for name, theirs_name in GRAD_CAM.items():
        if name == "gradcam++":
            continue  # see test_pytorch_grad_cam
        _, classes, _, maps = explained(model, images(), MAPS, method=name, top=TOP)
        assert maps.shape[3:] == (4, 4)
        library = peers.grad_cam()
        target = [library.utils.model_targets.ClassifierOutputTarget(each) for each in targets(classes, 0)]

        def as_map(tokens: Any) -> Any:
            return tokens[:, 1:].reshape(len(tokens), 4, 4, -1).permute(0, 3, 1, 2)

        with getattr(library, theirs_name)(module, [module.blocks[-1].norm1], reshape_transform=as_map) as method:
            theirs = method(tensor_of(images()), target)
        np.testing.assert_allclose(as_grad_cam_shows(maps[:, 0, 0]), theirs, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("name", ["finercam", "eigencam", "eigengradcam", "fem"])
def test_visiontransformer_by_other_methods(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Principal components with the sign that agrees with their sum, which the library leaves open."""
    module, library = transformer(), peers.grad_cam()
    project = library.utils.svd_on_activations.get_2d_projection

    def signed(activations: np.ndarray) -> np.ndarray:
        sums = activations.sum(1)
        products = (project(activations) * (sums - sums.mean((1, 2), keepdims=True))).sum((1, 2), keepdims=True)
        return np.asarray(np.sign(products) * project(activations))

    monkeypatch.setattr(library.eigen_grad_cam, "get_2d_projection", signed)
    _, classes, _, maps = explained(exported(module), images(), MAPS, method=name, top=1)
    chosen = targets(classes, 0)
    target = [library.utils.model_targets.ClassifierOutputTarget(each) for each in chosen]
    their_name = {"eigencam": "EigenCAM", "eigengradcam": "EigenGradCAM", "fem": "FEM", "finercam": "GradCAM"}[name]
    if name == "finercam":
        logits = module(tensor_of(images())).detach().numpy()
        nearest = [np.abs(row - row[one]).argsort()[1:4].tolist() for row, one in zip(logits, chosen, strict=True)]
        make = library.utils.model_targets.FinerWeightedTarget
        target = [make(one, others, 1.0) for one, others in zip(chosen, nearest, strict=True)]

    def as_map(tokens: Any) -> Any:
        return tokens[:, 1:].reshape(len(tokens), 4, 4, -1).permute(0, 3, 1, 2)

    def shown(sign: float) -> np.ndarray:
        monkeypatch.setattr(library.eigen_cam, "get_2d_projection", lambda given: sign * signed(given))
        with getattr(library, their_name)(module, [module.blocks[-1].norm1], reshape_transform=as_map) as method:
            return np.asarray(method(tensor_of(images()), target))

    ours = as_grad_cam_shows(maps[:, 0, 0])
    if name != "eigencam":
        np.testing.assert_allclose(ours, shown(1), atol=1e-3)
        return
    both = np.stack([shown(1), shown(-1)])  # normalized tokens have a sum of 0, to which no sign agrees
    assert (np.abs(both - ours).max((2, 3)).min(0) < 1e-3).all()


def _steep(module: Any) -> tuple[Any, Any]:
    """The network with logits a thousand times as large."""
    import copy

    steep = copy.deepcopy(module)
    steep.head[-1].weight.data *= 1000
    return steep, exported(steep)


def _features(model: Any) -> str:
    """The layer that is explained, in the exported model."""
    from camrt.graph.layers import last_features
    from camrt.graph.view import GraphView

    return last_features(GraphView(model), "data", "logits").tensor


def _by_image(module: Any, x: Any, chosen: list[int]) -> Any:
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(module(x)[range(len(x)), chosen].sum(), x)[0]


def _by_features(module: Any, x: Any, chosen: list[int]) -> tuple[Any, Any]:
    activation = module.features(x)
    scores = module.head(activation)
    (gradient,) = torch.autograd.grad(scores[range(len(x)), chosen].sum(), activation)
    return activation.detach(), gradient


def test_every_method_is_compared() -> None:
    compared = {
        *GRAD_CAM, *TORCH_CAM, "eigencam", "input-gradient", "guided-backprop", "guided-gradcam", "smoothgrad",
        "finercam", "refinecam", "fullgrad", "gradient-shap",
    }  # fmt: skip
    from camrt.graph.methods import METHODS

    elsewhere = {"recipro-cam", "ablation-cam"}  # test_masking
    elsewhere |= {"attention", "attention-rollout", "chefer"}  # test_attention
    elsewhere |= {"transformer-attribution"}  # test_transformer_attribution
    elsewhere |= {"shapleycam"}  # test_shapleycam
    elsewhere |= {"occlusion"}  # test_occlusion
    elsewhere |= {"expected-gradients"}  # test_background
    elsewhere |= {"lrp", "attnlrp", "deeplift"}  # test_relevance
    elsewhere |= {"eigengradcam", "segeigencam", "kpca-cam", "fem"}  # test_components
    assert set(METHODS) == compared | elsewhere | {"integrated-gradients", "cam"}
    assert find("cam").kind == "head"
