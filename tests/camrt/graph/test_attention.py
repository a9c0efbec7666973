"""Maps of attention, against their formulas in PyTorch, on exports of both exporters."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from camrt.errors import CamrtError
from camrt.graph import differentiate, explain_graph
from camrt.graph.attention import attention_weights
from camrt.graph.explain import MAPS
from camrt.graph.opening import open_model
from tests import fitting_torchvision
from tests.camrt.classifiers import classifier
from tests.camrt.graph.explainers import PREPROCESS as PLAIN
from tests.camrt.graph.explainers import run
from tests.camrt.graph.torch_networks import CLASSES, SIDE, explained, exported, images, tensor_of, transformer

TOP = 3
TOLERANCE = 1e-5


class Watched:
    """A vision transformer of torchvision or timm, or our own, that keeps what its attention computes.

    Attributes:
        module: The network.
        pooled: Whether its head takes the mean of the tokens of the image.
    """

    def __init__(self, kind: str) -> None:
        import torch

        fitting_torchvision.install()
        torch.manual_seed(4)
        self.pooled = kind == "timm, pooled"
        self.module = self._make(kind).eval()
        for layer in self.module.modules():
            if isinstance(layer, torch.nn.Linear):
                torch.nn.init.normal_(layer.weight, std=2 / layer.in_features**0.5)
        for one in self.module.modules():
            if isinstance(one, torch.nn.MultiheadAttention):
                torch.nn.init.normal_(one.in_proj_weight, std=0.4)

    @staticmethod
    def _make(kind: str) -> Any:
        if kind == "own":
            return transformer()
        if kind == "torchvision":
            vision = pytest.importorskip("torchvision.models.vision_transformer")
            made = vision.VisionTransformer(SIDE, 8, 2, 3, 24, 48, num_classes=CLASSES)
            made.heads.head.weight.data.normal_()
            return made
        timm = pytest.importorskip("timm")
        options = {"class_token": False, "global_pool": "avg"} if kind == "timm, pooled" else {"reg_tokens": 4}
        return timm.create_model(
            "vit_tiny_patch16_224", img_size=SIDE, patch_size=8, embed_dim=24, depth=2, num_heads=3,
            num_classes=CLASSES, **options,
        )  # fmt: skip

    def run(self, pixels: np.ndarray) -> tuple[Any, list[Any]]:
        """The scores, and the attention of each block (N, heads, tokens, tokens), which have gradients."""
        import torch

        kept: list[Any] = []

        def attended(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
            kept.append(_softmax(query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5, -1))
            return kept[-1] @ value

        _softmax = torch.softmax
        patch = pytest.MonkeyPatch()
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", attended)
        if hasattr(self.module, "place"):  # our own writes it itself

            def seen(*given: Any) -> Any:
                kept.append(_softmax(*given))
                return kept[-1]

            patch.setattr(torch, "softmax", seen)
        scores = self.module(tensor_of(pixels))
        patch.undo()
        return scores, kept

    def of_image(self, rows: Any) -> np.ndarray:
        """Of rows (N, tokens, tokens), that of the class token, or the mean; of the tokens of the image."""
        row = rows.mean(1) if self.pooled else rows[:, 0]
        found: np.ndarray = row[:, -16:].reshape(-1, 4, 4).detach().numpy()
        return found


KINDS = ("own", "torchvision", "timm", "timm, pooled")


@pytest.fixture(scope="module", params=KINDS)
def net(request: pytest.FixtureRequest) -> tuple[Watched, onnx.ModelProto]:
    pytest.importorskip("torch", reason="PyTorch is not installed: attention is not compared")
    watched = Watched(request.param)
    return watched, exported(watched.module)


def rollout(weights: list[Any], join: Callable[[Any], Any] = lambda one: one.mean(1)) -> Any:
    """Abnar and Zuidema 2020, section 3, as their equations stand: whole matrices, the first block first."""
    import torch

    unit = torch.eye(weights[0].shape[-1])
    found = unit
    for one in weights:
        both = join(one) + unit
        found = both / both.sum(-1, keepdim=True) @ found
    return found


def relevance(scores: Any, weights: list[Any], chosen: list[int]) -> Any:
    """Chefer, Gur and Wolf 2021: R = R + mean over the heads of (dy/dA A)+ R, with PyTorch's derivatives."""
    import torch

    gradients = torch.autograd.grad(scores[range(len(scores)), chosen].sum(), weights, retain_graph=True)
    found = torch.eye(weights[0].shape[-1]).expand(len(scores), -1, -1)
    for gradient, one in zip(gradients, weights, strict=True):
        found = found + (gradient * one).clamp(min=0).mean(1) @ found
    return found


def compare_all(watched: Watched, model: onnx.ModelProto) -> None:
    scores, weights = watched.run(images())
    *_, maps = explained(model, images(), MAPS, method="attention-rollout")
    np.testing.assert_allclose(maps[:, 0, 0], watched.of_image(rollout(weights)), atol=TOLERANCE * maps.max())
    assert maps.shape[1:] == (1, 1, 4, 4)
    _, classes, _, maps = explained(model, images(), MAPS, method="chefer", top=TOP)
    for rank in range(TOP):
        wanted = watched.of_image(relevance(scores, weights, classes[:, rank].tolist()))
        np.testing.assert_allclose(maps[:, 0, rank], wanted, atol=10 * TOLERANCE * wanted.max())
        assert wanted.max() > 1.1 * wanted.min()


def test_exports_of_torchscript(net: tuple[Watched, onnx.ModelProto]) -> None:
    compare_all(*net)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("kind", ["torchvision", "timm"])
def test_exports_of_the_newer_exporter(kind: str, opset: int) -> None:
    """From opset 23 on it writes the operator Attention."""
    torch = pytest.importorskip("torch")
    watched = Watched(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.onnx.export(
            watched.module, (torch.zeros(2, 3, SIDE, SIDE),), dynamo=True, opset_version=opset, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("n", min=1)},), input_names=["data"], output_names=["logits"],
        ).model_proto  # fmt: skip
    assert any(node.op_type == "Attention" for node in model.graph.node) == (opset == 23)
    compare_all(watched, model)
    for method in ("recipro-cam", "ablation-cam", "attnlrp"):  # the rest of the network, and a pass back through it all
        found, wanted = (
            explained(each, images(), method=method, target=1)[2] for each in (model, exported(watched.module))
        )
        np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max(), err_msg=method)
        assert wanted.any()


@pytest.mark.parametrize("name", ["max", "min"])
def test_heads_joined_otherwise(net: tuple[Watched, onnx.ModelProto], name: str) -> None:
    watched, model = net
    _, weights = watched.run(images())
    *_, maps = explained(model, images(), MAPS, method="attention-rollout", settings={"heads": name})
    wanted = watched.of_image(rollout(weights, lambda one: getattr(one, f"a{name}")(1)))
    np.testing.assert_allclose(maps[:, 0, 0], wanted, atol=TOLERANCE * wanted.max())


@pytest.mark.parametrize(("block", "head"), [(-1, -1), (0, 2), (1, 0), (-2, -1)])
def test_attention_of_a_block_and_head(net: tuple[Watched, onnx.ModelProto], block: int, head: int) -> None:
    watched, model = net
    _, weights = watched.run(images())
    *_, maps = explained(model, images(), MAPS, method="attention", settings={"block": block, "head": head})
    one = weights[block].mean(1) if head < 0 else weights[block][:, head]
    np.testing.assert_allclose(maps[:, 0, 0], watched.of_image(one), atol=TOLERANCE * maps.max())


def test_the_mean_of_the_tokens_in_place_of_the_class_token() -> None:
    pytest.importorskip("torch")
    watched = Watched("timm")
    _, weights = watched.run(images())
    *_, maps = explained(
        exported(watched.module), images(), MAPS, method="attention-rollout", settings={"token": "mean"}
    )
    wanted = rollout(weights)[:, 5:, 5:].mean(1).reshape(-1, 4, 4).detach().numpy()
    np.testing.assert_allclose(maps[:, 0, 0], wanted, atol=TOLERANCE * wanted.max())


@pytest.mark.parametrize(
    ("method", "head", "settings", "words"),
    [
        (
            "chefer",
            "gemm",
            {},
            r"found 0 blocks of attention and the layer 'features' \(6 maps of 8 x 8\), expected a ",
        ),
        ("attention", "attention", {"block": 1}, "attention's block 1, expected one of the 1, from 0 or from the end"),
        ("attention", "attention", {"head": 2}, "attention's head 2, expected 0 to 1, or -1 for the mean"),
        ("attention", "attention", {"head": -2}, "attention's head -2, expected"),
        (
            "chefer",
            "attention",
            {"token": "class"},
            "'class', and no class token in the network, expected auto or mean",
        ),
        ("chefer", "attention", {"token": "first"}, "found the token 'first', expected auto, class or mean"),
        ("attention-rollout", "attention", {"heads": "sum"}, "heads 'sum', expected mean, max or min"),
    ],
)
def test_errors(method: str, head: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(CamrtError, match=words):
        explain_graph(classifier(head), method, "center", preprocess=PLAIN, settings=settings)


def test_attention_over_other_tokens() -> None:
    """Two windows of 32 tokens each."""
    model = classifier("attention")
    for tensor in model.graph.initializer:
        if tensor.name == "heads":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([-1, 32, 2, 3]), "heads"))
        if tensor.name == "joined":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([-1, 64, 6]), "joined"))
    with pytest.raises(
        CamrtError, match=r"\(\?, 2, 32, 32\), expected N x heads x 64 x 64, .* windows is not rolled out"
    ):
        explain_graph(model, "attention-rollout", "center", preprocess=PLAIN)


# ------------------------------------------------------------------------------------------------ the fused operator


def fused(mask: np.ndarray | None = None, **attributes: Any) -> onnx.ModelProto:
    """Attention of opset 23."""
    value = helper.make_tensor_value_info
    inputs = [value(name, TensorProto.FLOAT, ["n", 2, 5, 4]) for name in "qkv"]
    node = helper.make_node("Attention", [*"qkv", *(["mask"] if mask is not None else [])], ["y"], "it", **attributes)
    weights = [] if mask is None else [onnx.numpy_helper.from_array(mask, "mask")]
    graph = helper.make_graph([node], "g", inputs, [value("y", TensorProto.FLOAT, ["n", 2, 5, 4])], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


@pytest.mark.parametrize("attributes", [{}, {"scale": 0.3}])
@pytest.mark.parametrize("masked", [False, True])
def test_single_operators_give_what_onnx_runtime_gives(masked: bool, attributes: dict[str, Any]) -> None:
    chance = np.random.default_rng(0)
    model = fused(chance.normal(size=(5, 5)).astype(np.float32) if masked else None, **attributes)
    feeds = {name: chance.normal(size=(3, 2, 5, 4)).astype(np.float32) for name in "qkv"}
    view = open_model(model)
    assert attention_weights(view, "y") == ["y/weights"]
    np.testing.assert_allclose(run(view.model, feeds)[0], run(model, feeds)[0], atol=1e-6)
    gradient = run(differentiate(model, "y", "q"), feeds)[1]
    step = chance.normal(size=gradient.shape).astype(np.float32)
    ahead, back = (run(model, feeds | {"q": feeds["q"] + sign * 1e-2 * step})[0].sum(dtype=float) for sign in (1, -1))
    np.testing.assert_allclose((gradient * step).sum(dtype=float), (ahead - back) / 2e-2, rtol=2e-3)


@pytest.mark.parametrize("attributes", [{"is_causal": 1}, {"softcap": 2.0}])
def test_other_forms_stay_and_have_no_gradient(attributes: dict[str, Any]) -> None:
    model = fused(**attributes)
    assert [node.op_type for node in open_model(model).model.graph.node] == ["Attention"]
    with pytest.raises(CamrtError, match="operators without a rule: Attention"):
        differentiate(model, "y", "q")
