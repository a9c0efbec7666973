"""Recipro-CAM and Ablation-CAM: the rest of a network on masked features, against PyTorch and pytorch-grad-cam."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from camrt.errors import CamrtError
from camrt.graph import explain_graph
from camrt.graph.explain import MAPS
from camrt.graph.methods.context import BEHIND
from tests.camrt.classifiers import CHANNELS, classifier
from tests.camrt.graph import peers
from tests.camrt.graph.explainers import PREPROCESS, run
from tests.camrt.graph.explainers import images as plain_images
from tests.camrt.graph.torch_networks import explained, exported, images, network, tensor_of, transformer

KINDS = ("gap", "vgg", "residual")
TOP = 3
TOLERANCE = 1e-4


@pytest.mark.parametrize("masks", ["gaussian", "point"])
@pytest.mark.parametrize("kind", KINDS)
def test_recipro_cam(kind: str, masks: str) -> None:
    torch = pytest.importorskip("torch")
    module = network(kind)
    _, classes, _, maps = explained(
        exported(module), images(), MAPS, method="recipro-cam", top=TOP, settings={"masks": masks}
    )
    with torch.no_grad():
        features = module.features(tensor_of(images()))
        for n in range(len(features)):
            masked = torch.stack([features[n] * mask for mask in _masks(*features.shape[2:], masks)])
            scores = module.head(masked)
            for rank in range(TOP):
                wanted = _scaled(scores[:, classes[n, rank]].numpy()).reshape(features.shape[2:])
                np.testing.assert_allclose(maps[n, 0, rank], wanted, atol=TOLERANCE)


def test_recipro_cam_of_a_transformer_keeps_the_class_token() -> None:
    """ViT-Recipro-CAM: from the normalized tokens that the last attention gets."""
    torch = pytest.importorskip("torch")
    module = transformer()
    _, classes, _, maps = explained(exported(module), images(), MAPS, method="recipro-cam", top=TOP)
    kept: list[Any] = []
    masks = torch.cat([torch.ones(16, 1), _masks(4, 4, "gaussian").reshape(16, 16)], 1)[..., None]

    def masked(*given: Any) -> Any:
        return given[2] * masks

    for n in range(2):
        handle = module.blocks[-1].norm1.register_forward_hook(masked)
        with torch.no_grad():
            kept.append(module(tensor_of(images())[n : n + 1].expand(16, -1, -1, -1)))
        handle.remove()
    for n, scores in enumerate(kept):
        for rank in range(TOP):
            wanted = _scaled(scores[:, classes[n, rank]].numpy()).reshape(4, 4)
            np.testing.assert_allclose(maps[n, 0, rank], wanted, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["gap", "vgg"])
def test_ablation_cam_of_pytorch_grad_cam(kind: str) -> None:
    """Behind a ReLU it sets a map to 0, as the paper does."""
    library = peers.grad_cam()
    module = network(kind)
    _, classes, _, maps = explained(exported(module), images(), MAPS, method="ablation-cam", top=TOP)
    for rank in range(TOP):
        target = [library.utils.model_targets.ClassifierOutputTarget(int(one)) for one in classes[:, rank]]
        with library.AblationCAM(module, [module.features[-1]]) as method:
            theirs = method(tensor_of(images()), target)
        scale = library.utils.image.scale_cam_image
        np.testing.assert_allclose(scale(scale(maps[:, 0, rank], (32, 32))), theirs, atol=TOLERANCE)


# ------------------------------------------------------------------------------------------------ the rest of a network


@pytest.mark.parametrize("method", ["recipro-cam", "ablation-cam"])
def test_the_image_does_not_run_again(method: str) -> None:
    """Only what stands behind the layer is copied."""
    graph = explain_graph(classifier("two_layers"), method, preprocess=PREPROCESS).graph
    operators = [node.op_type for node in graph.node if node.name.startswith(BEHIND)]
    assert operators == ["GlobalAveragePool", "Flatten", "Gemm", "Relu", "Gemm"]


def test_more_positions_than_run_at_once() -> None:
    """18 x 18 positions: six runs of 54."""
    model = classifier("gemm", side=36)
    wanted = PREPROCESS.__class__(36, 36, PREPROCESS.mean)
    explainer = explain_graph(model, "recipro-cam", "center", 2, preprocess=wanted, settings={"masks": "point"})
    explainer.graph.output.extend(onnx.ValueInfoProto(name=name) for name in (MAPS, "features"))
    _, classes, _, maps, features = run(explainer, {"image": plain_images(2, 36)})
    matrix = next(numpy_helper.to_array(one) for one in model.graph.initializer if one.name == "fc.weight")
    for n in range(2):
        for rank in range(2):  # the mean of one position alone, times the weights
            scores = np.tensordot(matrix[classes[n, rank]], features[n], 1)
            np.testing.assert_allclose(maps[n, 0, rank], _scaled(scores), atol=TOLERANCE)
    assert [node.op_type for node in explainer.graph.node].count("Loop") == 1


def test_masks_of_channels_are_made_in_the_graph() -> None:
    """A network of 2048 channels would carry 16 MB of them."""
    explainer = explain_graph(classifier("gemm"), "ablation-cam", "center", preprocess=PREPROCESS)
    held = [one for one in explainer.graph.initializer if one.name.startswith("camrt/masks")]
    assert [list(one.dims) for one in held] == [[CHANNELS, 1, 1, 1]]


def test_sizes_of_the_image_follow_the_number_of_masks() -> None:
    """As newer exporters write it: the batch is read off the image, before the layer."""
    plain, model = classifier("gemm"), classifier("gemm")
    nodes = model.graph.node
    nodes.insert(0, helper.make_node("Shape", ["data"], ["batch"], "shape", start=0, end=1))
    nodes.insert(1, helper.make_node("Concat", ["batch", "width"], ["sizes"], "concat", axis=0))
    flatten = next(node for node in nodes if node.op_type == "Flatten")
    flatten.op_type = "Reshape"
    flatten.input.append("sizes")
    del flatten.attribute[:]
    model.graph.initializer.append(numpy_helper.from_array(np.array([CHANNELS]), "width"))
    for method in ("recipro-cam", "ablation-cam"):
        found, wanted = (
            run(explain_graph(each, method, "ten-crop", preprocess=PREPROCESS), {"image": plain_images(2)})
            for each in (model, plain)
        )
        np.testing.assert_allclose(found[2], wanted[2], atol=1e-5)


@pytest.mark.parametrize("protocol", ["center", "ten-crop"])
def test_what_passes_the_layer_stays(protocol: str) -> None:
    """A gate beside a convolution, which is added: the scores are those of the gate at one position, and of it all."""
    model = classifier("gemm")
    model.graph.node.insert(2, helper.make_node("Sigmoid", ["features"], ["gate"], "gate"))
    model.graph.node.insert(3, helper.make_node("Add", ["gate", "conv"], ["sum"], "sum"))
    model.graph.node[4].input[0] = "sum"
    matrix, bias = (
        next(numpy_helper.to_array(one) for one in model.graph.initializer if one.name == name)
        for name in ("fc.weight", "fc.bias")
    )
    explainer = explain_graph(model, "ablation-cam", protocol, target=1, layer="gate", preprocess=PREPROCESS)
    explainer.graph.output.extend(onnx.ValueInfoProto(name=name) for name in (MAPS, "gate", "conv"))
    *_, maps, gate, conv = run(explainer, {"image": plain_images(2)})
    share = matrix[1] * gate.mean((2, 3))  # what each channel of the gate adds to the score
    whole = (matrix[1] * (gate + conv).mean((2, 3))).sum(1, keepdims=True) + bias[1]
    wanted = np.maximum(np.einsum("nk,nkyx->nyx", share / whole, gate), 0)
    np.testing.assert_allclose(maps.reshape(wanted.shape), wanted, atol=TOLERANCE * wanted.max())


def test_errors() -> None:
    with pytest.raises(CamrtError, match="found recipro-cam's masks 'round', expected gaussian or point"):
        explain_graph(classifier("gemm"), "recipro-cam", preprocess=PREPROCESS, settings={"masks": "round"})
    large = PREPROCESS.__class__(80, 80, PREPROCESS.mean)
    with pytest.raises(CamrtError, match=r"40 x 40\), expected 1024 positions at most.*--layer"):
        explain_graph(classifier("gemm", side=80), "recipro-cam", preprocess=large)


def test_control_flow_behind_the_layer() -> None:
    model = classifier("gemm")
    inside = [helper.make_node("Identity", ["features"], ["inside"])]
    body = helper.make_graph(inside, "body", [], [onnx.ValueInfoProto(name="inside")])
    largest = helper.make_node("ReduceMax", ["features"], ["largest"], "largest", keepdims=0)
    asked = helper.make_node("Cast", ["largest"], ["is_any"], "is_any", to=TensorProto.BOOL)
    node = helper.make_node("If", ["is_any"], ["passed"], "if", then_branch=body, else_branch=body)
    for number, one in enumerate((largest, asked, node), 2):
        model.graph.node.insert(number, one)
    model.graph.node[5].input[0] = "passed"
    with pytest.raises(CamrtError, match="control flow"):
        explain_graph(model, "ablation-cam", layer="features", preprocess=PREPROCESS)


def _masks(height: int, width: int, kind: str) -> Any:
    """(positions, height, width), position by position, as the reference implementation fills them."""
    import torch

    masks = torch.zeros(height * width, height, width)
    kernel = {(dy, dx): 4.0 / 2 ** (abs(dy) + abs(dx)) / 16 for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    for y in range(height):
        for x in range(width):
            for (dy, dx), value in (kernel if kind == "gaussian" else {(0, 0): 1.0}).items():
                if 0 <= y + dy < height and 0 <= x + dx < width:
                    masks[y * width + x, y + dy, x + dx] = value
    return masks


def _scaled(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.min()) / (scores.max() - scores.min())
