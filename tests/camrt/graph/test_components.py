"""Principal components of features, and what stands out of them, against pytorch-grad-cam and scikit-learn."""

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
from tests.camrt.graph.torch_networks import explained, exported, images, network, tensor_of, transformer

KINDS = ("gap", "vgg", "residual", "transformer")
TOP = 3
TOLERANCE = 1e-3


def by_features(kind: str, classes: np.ndarray) -> tuple[Any, Any]:
    """A and dy/dA of the class of each image: (N, channels, height, width), with PyTorch's derivatives."""
    import torch

    module = transformer() if kind == "transformer" else network(kind)
    layer = module.blocks[-1].norm1 if kind == "transformer" else module.features
    kept: list[Any] = []
    handle = layer.register_forward_hook(lambda *given: kept.append(given[2]))
    scores = module(tensor_of(images()))
    handle.remove()
    (gradient,) = torch.autograd.grad(scores[range(2), classes.tolist()].sum(), kept[0])
    both = [kept[0].detach(), gradient]
    if kind == "transformer":
        both = [one[:, 1:].reshape(2, 4, 4, -1).permute(0, 3, 1, 2) for one in both]
    return both[0].numpy(), both[1].numpy()


def model_of(kind: str) -> Any:
    pytest.importorskip("torch")
    return exported(transformer() if kind == "transformer" else network(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_eigengradcam(kind: str) -> None:
    """Up to the sign, which a singular value decomposition leaves open: ours is that of the sum of the features."""
    project = peers.grad_cam().utils.svd_on_activations.get_2d_projection
    _, classes, _, maps = explained(model_of(kind), images(), MAPS, method="eigengradcam", top=TOP)
    for rank in range(TOP):
        activation, gradient = by_features(kind, classes[:, rank])
        for n, theirs in enumerate(project(gradient * activation)):
            wanted = np.maximum(theirs * np.sign((theirs * (gradient * activation)[n].sum(0)).sum()), 0)
            np.testing.assert_allclose(maps[n, 0, rank], wanted, atol=TOLERANCE * wanted.max())


@pytest.mark.parametrize("kind", KINDS)
def test_segeigencam(kind: str) -> None:
    project = peers.grad_cam().utils.svd_on_activations.get_2d_projection_with_sign_correction
    _, classes, _, maps = explained(model_of(kind), images(), MAPS, method="segeigencam", top=TOP)
    for rank in range(TOP):
        activation, gradient = by_features(kind, classes[:, rank])
        wanted = np.maximum(project(np.abs(gradient) * activation), 0)
        np.testing.assert_allclose(maps[:, 0, rank], wanted, atol=TOLERANCE * wanted.max())


@pytest.mark.parametrize("kind", KINDS)
def test_kpca_cam(kind: str) -> None:
    """scikit-learn's KernelPCA leaves the sign open."""
    decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn is not installed")
    *_, maps = explained(model_of(kind), images(), MAPS, method="kpca-cam")
    activation, _ = by_features(kind, np.zeros(2, int))
    for n in range(2):
        rows = activation[n].reshape(len(activation[n]), -1).T
        found = decomposition.KernelPCA(1, kernel="sigmoid").fit_transform((rows - rows.mean(0)).astype(np.float64))
        wanted = np.maximum(found * (-1 if -found.min() > found.max() else 1), 0)
        np.testing.assert_allclose(maps[n, 0, 0].ravel(), wanted.ravel(), atol=TOLERANCE * wanted.max())


@pytest.mark.parametrize("k", [2.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_fem(kind: str, k: float) -> None:
    library = peers.grad_cam()
    *_, maps = explained(model_of(kind), images(), MAPS, method="fem", settings={"k": k})
    activation, _ = by_features(kind, np.zeros(2, int))
    theirs = library.FEM.get_cam_image(type("Given", (), {"k": k})(), None, None, None, activation, None, False)
    wanted = np.maximum(theirs, 0)
    np.testing.assert_allclose(maps[:, 0, 0], wanted, atol=1e-5 * wanted.max())


def test_errors() -> None:
    with pytest.raises(CamrtError, match=r"found fem's k -1.0, expected 0 or more"):
        explain_graph(classifier("gemm"), "fem", preprocess=PREPROCESS, settings={"k": -1})
    large = PREPROCESS.__class__(80, 80, PREPROCESS.mean)
    with pytest.raises(CamrtError, match=r"40 x 40\), expected 1024 positions at most: kpca-cam .*--layer"):
        explain_graph(classifier("gemm", side=80), "kpca-cam", preprocess=large)
