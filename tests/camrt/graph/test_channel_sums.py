"""The sums of a derivative over each map, taken behind the layer, against PyTorch's autograd at the layer itself."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import onnx
import pytest

from camrt.graph.channel_sums import summed_at
from camrt.graph.explain import MAPS
from camrt.graph.layers import FeatureMap
from camrt.graph.opening import open_model
from camrt.graph.sizes import Sizes
from tests.camrt.graph.torch_networks import CLASSES, explained, images, tensor_of

torch = pytest.importorskip("torch", reason="PyTorch is not installed: sums of derivatives are not compared with it")
nn = torch.nn
CHANNELS, PLACES = 6, 8

# Name -> what lies between the features (6 maps of 8 x 8) and the scores; and the operator whose output the derivative
# is taken at.
TAILS: dict[str, tuple[list[Any], str]] = {
    "a layer that is flattened": ([nn.Flatten(), nn.Linear(384, 9), nn.ReLU(), nn.Linear(9, CLASSES)], "Gemm"),
    "scores right behind the flattened features": ([nn.Flatten(), nn.Linear(384, CLASSES)], "Gemm"),
    "disjoint maxima": ([nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 9), nn.Tanh(), nn.Linear(9, CLASSES)], "Gemm"),
    "overlapping maxima with padding": (
        [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 1), nn.Flatten(), nn.Dropout(), nn.Linear(24, 9), nn.SiLU(),
         nn.Linear(9, CLASSES)], "Gemm",
    ),
    "maxima that hang over": ([nn.MaxPool2d(3, 2, ceil_mode=True), nn.Flatten(), nn.Linear(96, CLASSES)], "Gemm"),
    "averages": ([nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96, CLASSES)], "Gemm"),
    "averages without the padding": (
        [nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.Flatten(), nn.Linear(96, CLASSES)], "Gemm",
    ),
    "averages with the padding": ([nn.AvgPool2d(3, 2, 1), nn.Flatten(), nn.Linear(96, CLASSES)], "Relu"),
    "global averages": ([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, CLASSES)],
                        "Flatten"),
    "global maxima": ([nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES)], "Flatten"),
    "maxima before a convolution": (
        [nn.MaxPool2d(2), nn.Conv2d(6, 5, 3), nn.Flatten(), nn.Linear(20, CLASSES)], "MaxPool",
    ),
    "a convolution of 1 x 1": (
        [nn.Dropout(), nn.Conv2d(6, CLASSES, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()], "Conv",
    ),
    "maxima before a convolution of 1 x 1": (
        [nn.MaxPool2d(2), nn.Conv2d(6, 5, 1), nn.Tanh(), nn.Flatten(), nn.Linear(80, CLASSES)], "Conv",
    ),
    "a convolution of 1 x 1 with strides": (
        [nn.Conv2d(6, 5, 1, 2), nn.Flatten(), nn.Linear(80, CLASSES)], "Relu",
    ),
    "a convolution of 1 x 1 in groups": ([nn.Conv2d(6, 6, 1, groups=2), nn.Flatten(), nn.Linear(384, CLASSES)], "Relu"),
    "a convolution": ([nn.Conv2d(6, 5, 3), nn.Flatten(), nn.Linear(180, CLASSES)], "Relu"),
}  # fmt: skip


def network(tail: list[Any]) -> tuple[Any, onnx.ModelProto]:
    """A convolution and a rectifier in front of some layers, and the export of that."""
    torch.manual_seed(3)
    for layer in tail:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    module = nn.Sequential(nn.Conv2d(3, CHANNELS, 5, 4, 2), nn.ReLU(), *tail).eval()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (tensor_of(images()),), file, dynamo=False, input_names=["image"], output_names=["scores"],
            dynamic_axes={"image": {0: "N"}, "scores": {0: "N"}},
        )  # fmt: skip
    return module, onnx.load_from_string(file.getvalue())


def features_of(model: onnx.ModelProto) -> str:
    return next(node.output[0] for node in model.graph.node if node.op_type == "Relu")


@pytest.mark.parametrize(("tail", "operator"), TAILS.values(), ids=TAILS)
def test_sums_are_those_of_autograd(tail: list[Any], operator: str) -> None:
    """Maps of Grad-CAM, which is all means of derivatives; and where the derivative is taken."""
    module, model = network(tail)
    layer = features_of(model)
    view = open_model(model)
    place = summed_at(view, Sizes(view), FeatureMap(layer, CHANNELS, PLACES, PLACES), "scores")
    assert place is not None
    assert view.producers[place.tensor].op_type == operator
    assert (place.weights is not None, place.kernel is not None) == (operator == "Gemm", operator == "Conv")

    _, classes, _, maps = explained(model, images(), MAPS, method="gradcam", layer=layer, top=3)
    module.double()
    features = module[:2](tensor_of(images()).double()).detach().requires_grad_()
    scores = module[2:](features)
    for rank in range(3):
        chosen = scores[torch.arange(2), torch.from_numpy(classes[:, rank].copy())].sum()
        (gradient,) = torch.autograd.grad(chosen, features, retain_graph=True)
        wanted = torch.relu((gradient.mean((2, 3), keepdim=True) * features).sum(1)).detach().numpy()
        np.testing.assert_allclose(maps[:, 0, rank], wanted, atol=1e-5 * wanted.max())
        assert wanted.max() > 0
