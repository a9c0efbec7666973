"""Which axis the channels are on: found out, and compared with Grad-CAM of PyTorch's modules."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from camrt.errors import CamrtError
from camrt.graph import explain_graph
from camrt.graph.explain import MAPS
from camrt.graph.layers import feature_map_of, last_features
from camrt.graph.opening import open_model
from camrt.preprocess import Preprocess
from tests.camrt.classifiers import CHANNELS, SIDE, classifier
from tests.camrt.graph.explainers import PREPROCESS
from tests.camrt.graph.torch_networks import run

FAMILIES = (
    "convnext", "convnextv2", "convnext of torchvision", "poolformer", "edgenext", "tinyvit", "davit", "mambaout",
    "swin", "swin of torchvision",
)  # fmt: skip
DYNAMO = ("convnext of torchvision", "swin of torchvision", "mambaout")  # the others take this exporter 10 to 60 s
TOP = 3


@pytest.mark.parametrize("name", FAMILIES)
def test_gradcam_of_a_family(name: str) -> None:
    """The default layer is the module's output, and its map is that of PyTorch's own derivatives."""
    _compare(name, dynamo=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", DYNAMO)
def test_gradcam_of_a_family_from_the_dynamo_exporter(name: str) -> None:
    """With a free batch, its exports index whole tensors, by constants that onnx's shape inference does not follow."""
    _compare(name, dynamo=True)


def _compare(name: str, *, dynamo: bool) -> None:
    families = pytest.importorskip("tests.camrt.graph.torch_families")
    module = families.network(name)
    model = families.exported(module, dynamo=dynamo)
    side = families.SIDE
    wanted = Preprocess(side, side, (128.0, 128.0, 128.0), (1 / 64, 1 / 64, 1 / 64), "RGB")
    explainer = explain_graph(model, "gradcam", "center", top=TOP, preprocess=wanted)
    pixels = np.random.default_rng(1).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    _, classes, _, maps = run(explainer, pixels, MAPS)
    for rank in range(TOP):
        theirs = _gradcam(module, families.FAMILIES[name], pixels, classes[:, rank])
        assert theirs.max() > 0
        np.testing.assert_allclose(maps[:, 0, rank], theirs, atol=1e-4 * theirs.max(), err_msg=f"class {rank}")


def _gradcam(module: Any, family: Any, pixels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """ReLU(sum_k mean(dy/dA_k) A_k), of a module's output A (Selvaraju et al. 2017, equations 1 and 2)."""
    import torch

    kept: list[Any] = []
    handle = module.get_submodule(family.layer).register_forward_hook(lambda *given: kept.append(given[2]))
    scores = module(torch.from_numpy(((pixels.astype(np.float32) - 128) / 64).transpose(0, 3, 1, 2).copy()))
    handle.remove()
    (gradient,) = torch.autograd.grad(scores[range(len(scores)), classes.tolist()].sum(), kept[0])
    positions = [axis for axis in (1, 2, 3) if axis != family.channels_axis]
    weights = gradient.mean(positions, keepdim=True)
    return torch.relu((weights * kept[0]).sum(family.channels_axis)).detach().numpy()


# ------------------------------------------------------------------------------------------------ each kind of evidence


def between(*operators: tuple[str, dict[str, Any]], **weights: np.ndarray) -> onnx.ModelProto:
    """A classifier with operators in a row, behind its features: tensors t0, t1, ..., and then its head."""
    model, last = classifier("gemm"), "features"
    for number, (text, attributes) in enumerate(operators):
        kind, *more = text.split()
        node = helper.make_node(kind, [last, *more], [f"t{number}"], f"n{number}", **attributes)
        model.graph.node.insert(2 + number, node)
        last = f"t{number}"
    model.graph.node[2 + len(operators)].input[0] = last
    for name, value in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model


LAST, FIRST = ("Transpose", {"perm": [0, 2, 3, 1]}), ("Transpose", {"perm": [0, 3, 1, 2]})
SQUARE = np.eye(CHANNELS, dtype=np.float32)
ROOM = SIDE // 2  # rows and columns of the features


@pytest.mark.parametrize(
    ("operators", "axes"),
    [
        ([], {"features": 1}),
        ([LAST, FIRST], {"t0": 3, "t1": 1}),
        ([LAST, ("Erf", {}), ("Mul scale", {}), FIRST], {"t0": 3, "t1": 3, "t2": 3, "t3": 1}),
        ([LAST, ("MatMul square", {}), FIRST], {"t0": 3, "t1": 3}),
        ([LAST, ("LayerNormalization scale", {"axis": -1}), FIRST], {"t1": 3}),
        ([("Transpose", {"perm": [0, 1, 3, 2]})], {"t0": 1}),
        ([("Transpose", {"perm": [0, 2, 1, 3]}), ("Transpose", {"perm": [0, 2, 1, 3]})], {"t0": 2, "t1": 1}),
        ([("Reshape tokens", {}), ("Tanh", {}), ("Reshape grid", {})], {"t0": 1, "t1": 1, "t2": 1}),
        (
            [LAST, ("Reshape tokens_last", {}), ("MatMul square", {}), ("Reshape grid_last", {}), FIRST],
            {"t0": 3, "t1": 2, "t2": 2, "t3": 3, "t4": 1},
        ),
    ],
)
def test_axes_are_followed(operators: list[Any], axes: dict[str, int]) -> None:
    model = between(
        *operators, square=SQUARE, scale=np.ones(CHANNELS, np.float32),
        tokens=np.array([0, CHANNELS, ROOM * ROOM]), grid=np.array([0, CHANNELS, ROOM, ROOM]),
        tokens_last=np.array([0, ROOM * ROOM, CHANNELS]), grid_last=np.array([0, ROOM, ROOM, CHANNELS]),
    )  # fmt: skip
    view = open_model(model)
    for tensor, axis in axes.items():
        found = feature_map_of(view, tensor)
        assert (found.channels_axis, found.channels, found.height, found.width) == (axis, CHANNELS, ROOM, ROOM), tensor


@pytest.mark.parametrize("opset", [13, 17])
def test_the_same_map_wherever_the_channels_are(opset: int) -> None:
    """Grad-CAM of a transposed layer is the map of the layer."""
    model = between(LAST, ("MatMul square", {}), FIRST, square=SQUARE)
    pixels = np.random.default_rng(2).integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)
    maps = []
    for layer in ("features", "t0", "t1", "t2"):
        explainer = explain_graph(model, "gradcam", layer=layer, preprocess=PREPROCESS, protocol="ten-crop")
        maps.append(run(explainer, pixels, MAPS)[-1])
    for one in maps[1:]:
        np.testing.assert_allclose(one, maps[0], atol=1e-6 * np.abs(maps[0]).max())


def test_a_layer_normalization_in_single_operators() -> None:
    """As exporters wrote it before opset 17: the mean that is subtracted is taken over the channels."""
    model = between(LAST, ("ReduceMean", {"axes": [-1]}), FIRST)
    graph = model.graph
    graph.node.insert(4, helper.make_node("Sub", ["t0", "t1"], ["centered"]))
    graph.node[5].input[0] = "centered"
    assert last_features(open_model(model), "data", "logits").channels_axis == 1
    assert feature_map_of(open_model(model), "centered").channels_axis == 3


def own(name: str, shape: list[int | str]) -> onnx.ModelProto:
    """A classifier whose features are made by, and read by, an operator that nobody knows."""
    model = between((name, {"domain": "own"}), (name, {"domain": "own"}))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.value_info.append(helper.make_tensor_value_info("t0", TensorProto.FLOAT, shape))
    model.graph.value_info.append(helper.make_tensor_value_info("t1", TensorProto.FLOAT, ["n", CHANNELS, 4, 4]))
    return model


def test_what_cannot_be_told() -> None:
    """No operator says what the axes are: that is an error, not a guess."""
    with pytest.raises(
        CamrtError,
        match=r"the axis of the channels of 't0' of shape n x 5 x 6 x 7 cannot be told: it may be axis 1, of 5 or "
        r"axis 3, of 7\. Name another layer \(--layer\)",
    ):
        feature_map_of(open_model(own("Fold", ["n", 5, 6, 7])), "t0")


def test_layers_are_offered_where_an_axis_cannot_be_told() -> None:
    """Each is one that works when it is named."""
    model = own("Fold", ["n", 5, 6, 7])
    place, pooling = next((n, node) for n, node in enumerate(model.graph.node) if node.op_type == "GlobalAveragePool")
    model.graph.node[place].CopyFrom(helper.make_node("Fold", ["t0"], pooling.output, "last", domain="own"))
    model.graph.value_info.append(helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["n", CHANNELS, 1, 1]))
    with pytest.raises(CamrtError, match=r"cannot be told: .* Name a layer yourself: --layer \S+ \(") as found:
        last_features(open_model(model), "data", "logits")
    offered = re.findall(r"--layer (\S+)", str(found.value))
    assert offered
    for layer in offered:
        assert feature_map_of(open_model(model), layer).channels == CHANNELS


def test_a_contradiction() -> None:
    """A convolution's output goes into a linear layer over its columns."""
    model = between(("MatMul columns", {}), columns=np.eye(ROOM, dtype=np.float32))
    model.graph.node[1].op_type = "Conv"
    model.graph.node[1].input.append("kernel")
    kernel = np.ones((CHANNELS, CHANNELS, 1, 1), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(kernel, "kernel"))
    with pytest.raises(
        CamrtError, match=rf"axis 1, of {CHANNELS}, by 'relu' \(Conv\) or axis 3, of {ROOM}, by 'n0' \(MatMul\)"
    ):
        explain_graph(model, "gradcam", layer="features", preprocess=PREPROCESS)
