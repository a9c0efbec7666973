"""LRP, AttnLRP and DeepLIFT against captum, lxt, and what must add up."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from camrt.errors import CamrtError
from camrt.graph import explain_graph
from camrt.graph.methods.context import GRADIENT
from tests.camrt.classifiers import classifier
from tests.camrt.graph import peers
from tests.camrt.graph.explainers import PREPROCESS
from tests.camrt.graph.torch_networks import explained, exported, images, network, tensor_of, transformer

TOP = 3
TOLERANCE = 1e-4


def sequential(kind: str) -> Any:
    """The network as captum wants it: modules in a row."""
    from torch import nn

    module = network(kind)
    return nn.Sequential(*module.features, *module.head)


@pytest.mark.parametrize("epsilon", [1e-6, 0.5])
@pytest.mark.parametrize("kind", ["gap", "vgg"])
def test_lrp_of_captum(kind: str, epsilon: float) -> None:
    attr = pytest.importorskip("captum.attr", reason="captum is not installed (pip install captum)")
    from captum.attr._utils.lrp_rules import EpsilonRule
    from torch import nn

    model = exported(network(kind))
    _, classes, heatmaps, found = explained(
        model, images(), GRADIENT, method="lrp", top=TOP, settings={"epsilon": epsilon}
    )
    for rank in range(TOP):
        module = sequential(kind)
        for layer in module:
            if isinstance(layer, (nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.AdaptiveAvgPool2d)):
                layer.rule = EpsilonRule(epsilon)
            if isinstance(layer, nn.Flatten):
                layer.rule = EpsilonRule()
        wanted = attr.LRP(module).attribute(tensor_of(images()), target=classes[:, rank].tolist()).detach().numpy()
        np.testing.assert_allclose(found[:, 0, rank], wanted, atol=TOLERANCE * np.abs(wanted).max())
        np.testing.assert_allclose(heatmaps[:, rank], np.abs(wanted.sum(1)), atol=TOLERANCE * np.abs(wanted).max())


@pytest.mark.filterwarnings("ignore")  # captum announces its hooks
@pytest.mark.parametrize("baseline", ["black", "mean"])
@pytest.mark.parametrize("kind", ["gap", "vgg"])
def test_deeplift_of_captum(kind: str, baseline: str) -> None:
    """With the mean in place of the maximum: behind max pooling, captum's maps do not add up."""
    attr = pytest.importorskip("captum.attr", reason="captum is not installed (pip install captum)")
    import torch

    layers = [torch.nn.AvgPool2d(2) if isinstance(one, torch.nn.MaxPool2d) else one for one in sequential(kind)]
    module, x = torch.nn.Sequential(*layers), tensor_of(images())
    begin = torch.full_like(x, -2.0 if baseline == "black" else 0.0)  # (0 - 128) / 64
    _, classes, _, found = explained(
        exported(module), images(), GRADIENT, method="deeplift", top=TOP, settings={"baseline": baseline}
    )
    for rank in range(TOP):
        wanted = attr.DeepLift(module).attribute(x, begin, target=classes[:, rank].tolist()).detach().numpy()
        np.testing.assert_allclose(found[:, 0, rank], wanted, atol=TOLERANCE * np.abs(wanted).max())


@pytest.mark.parametrize("baseline", ["black", "mean"])
def test_deeplift_of_max_pooling(baseline: str) -> None:
    """What the maximum rises goes to where it is in the image; what it falls, to where it was in the baseline."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    linear = torch.nn.Linear(3 * 8 * 8, 7)
    module = torch.nn.Sequential(torch.nn.MaxPool2d(4), torch.nn.Flatten(), linear).eval()
    _, classes, _, found = explained(
        exported(module), images(), GRADIENT, method="deeplift", settings={"baseline": baseline}
    )
    x = tensor_of(images()).numpy()
    start = -2.0 if baseline == "black" else 0.0
    wanted = np.zeros_like(x)
    for n, channel, row, column in np.ndindex(2, 3, 8, 8):
        window = np.s_[n, channel, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        weight = linear.weight.detach().numpy()[classes[n, 0]].reshape(3, 8, 8)[channel, row, column]
        highest = x[window].max()
        place = np.unravel_index(x[window].argmax(), (4, 4)) if highest > start else (0, 0)  # the baseline's first
        wanted[window][place] = weight * (highest - start)
    np.testing.assert_allclose(found[:, 0, 0], wanted, atol=TOLERANCE * np.abs(wanted).max())


@pytest.mark.parametrize("kind", ["gap", "vgg", "residual"])
def test_deeplift_adds_up(kind: str) -> None:
    """To the distance of the scores: Shrikumar et al. 2017, equation 1. SiLU, which captum does not have, too."""
    torch = pytest.importorskip("torch")
    module = network(kind)
    _, classes, _, found = explained(exported(module), images(), GRADIENT, method="deeplift", top=TOP)
    x = tensor_of(images())
    with torch.no_grad():
        gain = (module(x) - module(torch.full_like(x, -2.0))).numpy()
    wanted = np.take_along_axis(gain, classes, axis=1)
    np.testing.assert_allclose(found[:, 0].sum((2, 3, 4)), wanted, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("opset", ["LayerNormalization", "single operators"])
def test_attnlrp_of_lxt(opset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a transformer whose activations, normalizations and products are those that lxt has put in place."""
    torch = pytest.importorskip("torch")
    rules, patches = peers.lxt()
    module = transformer()
    if opset == "single operators":  # as it was written before opset 17
        for one in module.modules():
            if isinstance(one, torch.nn.LayerNorm):
                one.forward = _layer_norm.__get__(one)
    model = exported(module)
    kinds = {node.op_type for node in model.graph.node}
    assert ("LayerNormalization" in kinds) == (opset == "LayerNormalization")
    _, classes, _, found = explained(model, images(), GRADIENT, method="attnlrp", top=TOP)

    theirs = copy.deepcopy(transformer())
    for one in theirs.modules():
        if isinstance(one, torch.nn.LayerNorm):
            one.forward = patches.layer_norm_forward.__get__(one)
        elif isinstance(one, torch.nn.GELU):
            patches.patch_method(patches.non_linear_forward.__get__(one), one, keep_original=True)
        elif hasattr(one, "qkv"):
            one.forward = _block.__get__(one)
    monkeypatch.setattr(torch, "matmul", lambda a, b, product=torch.matmul: rules.divide_gradient(product(a, b), 2))
    x = tensor_of(images()).requires_grad_(True)
    scores = theirs(x)
    for rank in range(TOP):
        chosen = scores[range(2), classes[:, rank].tolist()].sum()
        wanted = (torch.autograd.grad(chosen, x, retain_graph=True)[0] * x).detach().numpy()
        np.testing.assert_allclose(found[:, 0, rank], wanted, atol=TOLERANCE * np.abs(wanted).max())
    plain = torch.autograd.grad(module(x)[range(2), classes[:, 0].tolist()].sum(), x)[0] * x
    assert np.abs(plain.detach().numpy() - found[:, 0, 0]).max() > 0.1 * np.abs(found[:, 0, 0]).max()


def _layer_norm(self: Any, x: Any) -> Any:
    centred = x - x.mean(-1, keepdim=True)
    return centred / ((centred * centred).mean(-1, keepdim=True) + self.eps).sqrt() * self.weight + self.bias


def _block(self: Any, x: Any) -> Any:
    """The transformer's block, with products that lxt sees."""
    import torch

    tokens, width = x.shape[1:]
    parts = self.qkv(self.norm1(x)).reshape(-1, tokens, 3, self.heads, width // self.heads)
    q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
    attention = torch.softmax(torch.matmul(q, k.transpose(-2, -1)) / (width // self.heads) ** 0.5, -1)
    x = x + self.out(torch.matmul(attention, v).transpose(1, 2).reshape(-1, tokens, width))
    return x + self.mlp(self.norm2(x))


def test_on_a_network_of_relus_both_are_the_derivative_times_the_input() -> None:
    pytest.importorskip("torch")
    model = exported(network("vgg"))
    _, _, _, gradient = explained(model, images(), GRADIENT, method="input-gradient", top=TOP)
    x = tensor_of(images()).numpy()[:, None, None]
    for name, settings in (("attnlrp", {}), ("lrp", {"epsilon": 0})):
        *_, found = explained(model, images(), GRADIENT, method=name, top=TOP, settings=settings)
        np.testing.assert_allclose(found, gradient * x, atol=1e-5 * np.abs(found).max())


def test_with_its_sign() -> None:
    pytest.importorskip("torch")
    model = exported(network("gap"))
    for name in ("lrp", "attnlrp", "deeplift"):
        _, _, heatmaps, found = explained(model, images(), GRADIENT, method=name, settings={"values": "signed"})
        np.testing.assert_allclose(heatmaps, found[:, 0].sum(2), atol=1e-5 * np.abs(heatmaps).max())
        assert heatmaps.min() < 0 < heatmaps.max()


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("lrp", {"epsilon": -1}, "lrp's epsilon -1.0, expected 0 or more"),
        ("lrp", {"epsilon": "nan"}, "lrp's epsilon nan, expected 0 or more"),
        ("lrp", {"values": "both"}, "lrp's values 'both', expected magnitude or signed"),
        ("attnlrp", {"values": "both"}, "attnlrp's values 'both', expected magnitude or signed"),
        ("deeplift", {"values": "both"}, "deeplift's values 'both', expected magnitude or signed"),
        ("deeplift", {"baseline": "white"}, "deeplift's baseline 'white', expected black or mean"),
    ],
)
def test_errors(method: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(CamrtError, match=words):
        explain_graph(classifier("gemm"), method, "center", preprocess=PREPROCESS, settings=settings)
