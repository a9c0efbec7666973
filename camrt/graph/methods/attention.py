"""Maps of the attention in vision transformers: which tokens the class token has looked at."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from camrt.errors import CamrtError
from camrt.graph.attention import attention_weights
from camrt.graph.layers import dependents
from camrt.graph.methods import method
from camrt.graph.methods.context import Layer
from camrt.graph.rules.relevance import PositiveRelevance
from camrt.graph.values import Value, shown


@method("attention", kind="features", title="Attention", gradients=False, tokens=True, top=1)
def attention(layer: Layer, *, block: int = -1, head: int = -1, token: str = "auto") -> Value:
    """How much the class token attends to each token of the image, in one block. All classes get the same map.

    L = A_bh(class token, image tokens), where A = Softmax(Q K^T / sqrt(d)) of the block b and the head h, or its mean
    over the heads. Without a class token it is the mean over the tokens of the image.

    Source:
        Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin: Attention Is All You Need. NeurIPS 2017,
        equation 1. Caron et al.: Emerging Properties in Self-Supervised Vision Transformers. ICCV 2021, figure 1.

    Args:
        layer: The tokens.
        block: The number of the block, from 0; negative numbers count from the last one.
        head: The number of the head, from 0; -1 for the mean of all.
        token: ``"class"``, or ``"mean"`` of the tokens of the image; by default the class token where there is one.

    Example:
        >>> explainer = camrt.explain_graph(vit, method="attention", settings={"head": 2})  # doctest: +SKIP
    """
    blocks = _weights(layer)
    if not -len(blocks) <= block < len(blocks):
        raise CamrtError(f"found attention's block {block}, expected one of the {len(blocks)}, from 0 or from the end")
    weights = blocks[block]
    heads = weights.fixed(1)[0]
    if not -1 <= head < heads:
        raise CamrtError(f"found attention's head {head}, expected 0 to {heads - 1}, or -1 for the mean")
    chosen = weights.mean(1) if head < 0 else weights.slice(1, head, head + 1).squeeze(1)
    return _of_image(layer, _row(layer, token) @ chosen)


@method("attention-rollout", kind="features", title="Attention rollout", gradients=False, tokens=True, top=1)
def attention_rollout(layer: Layer, *, heads: str = "mean", token: str = "auto") -> Value:
    """The attention of all blocks, multiplied: how tokens reach the class token. All classes get the same map.

    R = B_L ... B_2 B_1 with B = (A + I) / 2 and A the mean attention of the heads of a block; I stands for the residual
    connection. Where another way to join the heads is set, the rows of B are divided by their sums. The map is the row
    of the class token; without one, the mean over the tokens of the image.

    Source:
        Abnar, Zuidema: Quantifying Attention Flow in Transformers. ACL 2020, section 3.

    Args:
        layer: The tokens.
        heads: ``"mean"``, ``"max"`` or ``"min"`` of the heads.
        token: As for `attention`: ``"class"`` or ``"mean"``.

    Example:
        >>> explainer = camrt.explain_graph(vit, method="attention-rollout")  # doctest: +SKIP
    """
    if heads not in ("mean", "max", "min"):
        raise CamrtError(f"found attention-rollout's heads {heads!r}, expected mean, max or min")
    blocks = _weights(layer)
    row = _row(layer, token)
    for weights in reversed(blocks):
        joined = {"mean": weights.mean, "max": weights.max, "min": weights.min}[heads](1)
        both = joined + np.eye(joined.fixed(-1)[0], dtype=np.float32)
        row = row @ (both / both.sum(-1, keepdims=True))
    return _of_image(layer, row)


@method("chefer", kind="features", title="Chefer et al.: attention and its gradient", tokens=True)
def chefer(layer: Layer, *, token: str = "auto") -> Value:
    """Attention times its gradient, carried from block to block: a rollout for a class.

    R starts as I; each block adds B R to it, with B the mean over the heads of ReLU(dy_c/dA * A). The map is the row of
    the class token; without one, the mean over the tokens of the image.

    Source:
        Chefer, Gur, Wolf: Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
        Transformers. ICCV 2021, equations 5 and 6.

    Args:
        layer: The tokens.
        token: As for `attention`: ``"class"`` or ``"mean"``.

    Example:
        >>> explainer = camrt.explain_graph(vit, method="chefer", target="cup")  # doctest: +SKIP
    """
    weights = _weights(layer)
    gradients = layer.context.backward(layer.context.first, [one.name for one in weights])
    row = _row(layer, token)
    for one in reversed(weights):
        row = row + row @ (gradients[one.name] * one).relu().mean(1)
    return _of_image(layer, row)


@method("transformer-attribution", kind="features", title="Transformer attribution", tokens=True)
def transformer_attribution(layer: Layer, *, token: str = "auto") -> Value:
    """The relevance of attention times its gradient, carried from block to block.

    C = A_1 A_2 ... A_B with A_b = I + mean over the heads of ReLU(dy_c/dA * R), where R is the relevance of the
    attention of a block: that of the class is 1, and goes back by rules for transformers, in which only terms above 0
    count. The map is the row of the class token; without one, the mean over the tokens of the image. `chefer` takes the
    attention itself in place of its relevance.

    Source:
        Chefer, Gur, Wolf: Transformer Interpretability Beyond Attention Visualization. CVPR 2021, section 3.

    Args:
        layer: The tokens.
        token: As for `attention`: ``"class"`` or ``"mean"``.

    Example:
        >>> explainer = camrt.explain_graph(vit, method="transformer-attribution", target="cup")  # doctest: +SKIP
    """
    weights, context = _weights(layer), layer.context
    names, logits = [one.name for one in weights], context.logits(context.first)
    seeds = context.seeds(context.first)
    computed = dependents(context.view, context.first.image)
    is_zero = logits.equals(0)
    one_each = is_zero.where(0, seeds / is_zero.where(1, logits))  # a relevance of 1, over the score
    gradients = context.backward(context.first, names)
    relevances = context.backward(context.first, names, modifier=PositiveRelevance(computed), seeds=one_each)
    row = _row(layer, token)
    for one in reversed(weights):
        relevance = relevances[one.name] * one
        row = row + row @ (gradients[one.name] * relevance).relu().mean(1)
    return _of_image(layer, row)


def _weights(layer: Layer) -> list[Value]:
    """The attention of each block over all tokens: (N * crops, heads, tokens, tokens).

    Raises:
        CamrtError: There is none, or not over all tokens.
    """
    context, grid = layer.context, layer.grid
    found = [context.tensor(name) for name in attention_weights(context.view, context.first.logits)]
    tokens = grid.positions + (grid.num_prefix_tokens or 0)
    others = "use --method gradcam, layercam or attnlrp, which need none"
    if not found or grid.num_prefix_tokens is None:
        raise CamrtError(
            f"found {len(found)} blocks of attention and the layer {grid.describe()}, expected a vision transformer, "
            f"with attention (MatMul, Softmax, MatMul or Attention) and a layer of tokens (--layer): {others}"
        )
    for one in found:
        if one.rank != 4 or one.shape[1] is None or one.shape[2:] != (tokens, tokens):
            raise CamrtError(
                f"found the attention {one.name!r} of shape {shown(one.shape)}, expected N x heads x {tokens} x "
                f"{tokens}, all tokens of the layer {grid.tensor!r}: attention in windows is not rolled out; {others}"
            )
    return [one.cast(TensorProto.FLOAT) if one.kind != TensorProto.FLOAT else one for one in found]


def _row(layer: Layer, token: str) -> Value:
    """Where the rows of maps begin: 1 for the class token, or the same for all tokens of the image: (1, 1, tokens)."""
    if token not in ("auto", "class", "mean"):
        raise CamrtError(f"found the token {token!r}, expected auto, class or mean")
    prefix, positions = layer.grid.num_prefix_tokens or 0, layer.positions
    if token == "class" and not prefix:
        raise CamrtError("found the token 'class', and no class token in the network, expected auto or mean")
    row = np.zeros((1, 1, prefix + positions), np.float32)
    if token == "mean" or not prefix:
        row[..., prefix:] = 1 / positions
    else:
        row[..., 0] = 1
    return Value(layer.context.builder, layer.context.builder.constant(row, "row"), row.shape)


def _of_image(layer: Layer, row: Value) -> Value:
    """The tokens of the image in a row (N * crops, 1, tokens): (N, crops, positions)."""
    prefix = layer.grid.num_prefix_tokens or 0
    return row.slice(-1, prefix).reshape(-1, len(layer.context.crops), layer.positions)
