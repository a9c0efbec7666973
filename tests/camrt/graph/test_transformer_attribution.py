"""Transformer attribution (Chefer et al., CVPR 2021) against the paper's equations in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from camrt.errors import CamrtError
from camrt.graph import explain_graph
from camrt.graph.explain import MAPS
from tests.camrt.classifiers import classifier
from tests.camrt.graph.explainers import PREPROCESS
from tests.camrt.graph.torch_networks import explained, exported, images, tensor_of, transformer

torch = pytest.importorskip("torch", reason="PyTorch is not installed: attention is not compared")
TOP = 3
TOLERANCE = 2e-3  # of the largest value: relevances are ratios, of numbers that come near to 0


def over(a: Any, b: Any) -> Any:
    return torch.where(b == 0, 0, a / torch.where(b == 0, 1, b))


def of_linear(layer: Any, x: Any, relevance: Any) -> Any:
    """Equation 4: among the terms of x W that are above 0."""
    weight = layer.weight.T
    terms = (x[..., :, None] * weight).clamp(min=0)  # (..., in, out)
    return (terms * over(relevance, terms.sum(-2))[..., None, :]).sum(-1)


def of_product(a: Any, b: Any, relevance: Any) -> tuple[Any, Any]:
    """Equation 5, of which each factor gets half."""
    share = over(relevance, a @ b)
    return a * (share @ b.transpose(-2, -1)) / 2, b * (a.transpose(-2, -1) @ share) / 2


def of_sum(a: Any, b: Any, relevance: Any) -> tuple[Any, Any]:
    """Equations 8 and 9: shares normalized by the magnitudes of their sums."""
    share = over(relevance, a + b)
    first, second = (a * share), (b * share)
    whole, sums = relevance.sum(), (first.sum(), second.sum())
    magnitude = sums[0].abs() + sums[1].abs()
    return first * sums[0].abs() / magnitude * whole / sums[0], second * sums[1].abs() / magnitude * whole / sums[1]


def attribution(module: Any, x: Any, chosen: int) -> np.ndarray:
    """The map of one image and class, in double precision."""
    module = module.double()
    x = module.patches(x.double()).flatten(2).transpose(1, 2)
    x = torch.cat([module.token, x], 1) + module.place
    tokens, width = x.shape[1:]
    kept = []
    for block in module.blocks:
        before, x1 = x, block.norm1(x)
        parts = block.qkv(x1).reshape(1, tokens, 3, block.heads, width // block.heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        attention = torch.softmax(query @ key.transpose(-2, -1) / (width // block.heads) ** 0.5, -1)
        attention.retain_grad()
        seen = (attention @ value).transpose(1, 2).reshape(1, tokens, width)
        added = block.out(seen)
        middle = before + added
        x2 = block.norm2(middle)
        hidden = block.mlp[1](block.mlp[0](x2))
        more = block.mlp[2](hidden)
        x = middle + more
        kept.append((block, before, x1, query, key, value, attention, seen, added, middle, x2, hidden, more))
    last = module.norm(x)
    scores = module.head(last[:, 0])
    scores[0, chosen].backward()
    with torch.no_grad():
        relevance = torch.zeros_like(last)
        relevance[:, 0] = of_linear(module.head, last[:, 0], torch.eye(scores.shape[1], dtype=x.dtype)[None, chosen])
        found = torch.eye(tokens, dtype=x.dtype)
        for block, before, x1, query, key, value, attention, seen, added, middle, x2, hidden, more in reversed(kept):
            passed, through = of_sum(middle, more, relevance)
            relevance = passed + of_linear(block.mlp[0], x2, of_linear(block.mlp[2], hidden, through))
            passed, through = of_sum(before, added, relevance)
            through = of_linear(block.out, seen, through)
            of_heads = through.reshape(1, tokens, block.heads, width // block.heads).transpose(1, 2)
            of_attention, of_value = of_product(attention, value, of_heads)
            of_query, of_key = of_product(query, key.transpose(-2, -1), of_attention)
            together = torch.stack([of_query, of_key.transpose(-2, -1), of_value]).permute(1, 3, 0, 2, 4)
            relevance = passed + of_linear(block.qkv, x1, together.reshape(1, tokens, 3 * width))
            found = found @ (torch.eye(tokens) + (attention.grad * of_attention).clamp(min=0).mean(1)[0])
    module.float()
    return found[0, 1:].reshape(4, 4).numpy()


def test_it_is_the_papers() -> None:
    module = transformer()
    model = exported(module)
    _, classes, _, maps = explained(model, images(), MAPS, method="transformer-attribution", top=TOP)
    for n, rank in np.ndindex(2, TOP):
        wanted = attribution(module, tensor_of(images())[n : n + 1], int(classes[n, rank]))
        np.testing.assert_allclose(maps[n, 0, rank], wanted, atol=TOLERANCE * wanted.max())
    generic = explained(model, images(), MAPS, method="chefer", top=TOP)[3]
    assert np.abs(generic / generic.max() - maps / maps.max()).max() > 0.1  # it is another method


def test_errors() -> None:
    with pytest.raises(CamrtError, match=r"found 0 blocks of attention .*use --method gradcam, layercam or attnlrp"):
        explain_graph(classifier("gemm"), "transformer-attribution", preprocess=PREPROCESS)
    with pytest.raises(CamrtError, match="found the token 'first', expected auto, class or mean"):
        explain_graph(
            classifier("attention"), "transformer-attribution", preprocess=PREPROCESS, settings={"token": "first"}
        )
