"""Shapley-CAM against pytorch-grad-cam, and second derivatives against PyTorch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from camrt.errors import CamrtError
from camrt.graph import explain_graph
from camrt.graph.explain import MAPS
from tests.camrt.classifiers import classifier
from tests.camrt.graph import peers
from tests.camrt.graph.explainers import PREPROCESS
from tests.camrt.graph.torch_networks import SIDE, explained, exported, images, network, tensor_of, transformer

TOP = 3
TOLERANCE = 1e-4
TARGETS = {"rest": "ClassifierOutputReST", "score": "ClassifierOutputTarget"}


@pytest.mark.parametrize("utility", TARGETS)
@pytest.mark.parametrize("kind", ["gap", "vgg", "residual"])
def test_shapleycam_of_pytorch_grad_cam(kind: str, utility: str) -> None:
    module, library = network(kind), peers.grad_cam()
    model = exported(module)
    options: dict[str, Any] = {"method": "shapleycam", "settings": {"utility": utility}}
    _, classes, _, maps = explained(model, images(), MAPS, top=TOP, **options)
    scale = library.utils.image.scale_cam_image
    for rank in range(TOP):
        make = getattr(library.utils.model_targets, TARGETS[utility])
        method = library.ShapleyCAM(module, [module.features[-1]])
        theirs = method(tensor_of(images()), [make(int(each)) for each in classes[:, rank]])
        shown = scale(scale(maps[:, 0, rank], (SIDE, SIDE)))
        np.testing.assert_allclose(shown, theirs, atol=TOLERANCE)
    plain = explained(model, images(), MAPS, method="gradcam", top=TOP)[3]
    if utility == "score":
        np.testing.assert_allclose(maps, plain, atol=1e-5 * plain.max())  # ReLUs have no second derivative
    else:
        assert np.abs(maps / maps.max() - plain / plain.max()).max() > 0.05


@pytest.mark.parametrize("utility", TARGETS)
def test_of_a_transformer(utility: str) -> None:
    """Through attention, normalization and GELU, by PyTorch's second derivatives (the library takes no tokens)."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: second derivatives are not compared")
    module = transformer()
    _, classes, _, maps = explained(
        exported(module), images(), MAPS, method="shapleycam", top=TOP, settings={"utility": utility}
    )
    kept: list[Any] = []
    module.blocks[-1].norm1.register_forward_hook(lambda *given: kept.append(given[2]))
    scores = module(tensor_of(images()))
    (tokens,) = kept
    for rank in range(TOP):
        chosen = classes[:, rank].tolist()
        value = scores[range(2), chosen].sum()
        if utility == "rest":
            value = value + torch.log_softmax(scores, 1)[range(2), chosen].sum()
        (slope,) = torch.autograd.grad(value, tokens, create_graph=True)
        (curved,) = torch.autograd.grad((slope * tokens.detach()).sum(), tokens, retain_graph=True)
        weights = (slope - 0.5 * curved)[:, 1:].mean(1)
        wanted = torch.relu(tokens[:, 1:] @ weights[..., None]).reshape(2, 4, 4).detach().numpy()
        np.testing.assert_allclose(maps[:, 0, rank], wanted, atol=TOLERANCE * wanted.max())
        assert curved.abs().max() > 0.1 * slope.abs().max()


def test_ten_crops_and_a_sum() -> None:
    options: dict[str, Any] = {"preprocess": PREPROCESS, "protocol": "ten-crop"}
    assert explain_graph(classifier("two_layers"), "shapleycam", **options)
    model = explain_graph(classifier("two_layers"), "shapleycam", target="sum", scores="logits", **options)
    plain = explain_graph(classifier("two_layers"), "gradcam", target="sum", scores="logits", **options)
    from tests.camrt.graph.explainers import images as small
    from tests.camrt.graph.explainers import run

    found, wanted = (run(one, {"image": small(2)})[2] for one in (model, plain))
    np.testing.assert_allclose(found, wanted, atol=1e-5 * wanted.max())


def test_errors() -> None:
    with pytest.raises(CamrtError, match="shapleycam's utility 'logit', expected rest or score"):
        explain_graph(classifier("gemm"), "shapleycam", preprocess=PREPROCESS, settings={"utility": "logit"})
