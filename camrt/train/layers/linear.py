"""Linear layers: InnerProduct, and Embed, which is an InnerProduct of one-hot vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from camrt.train.registry import LayerContext, Operation, Weight, builds


@builds("InnerProduct")
def inner_product(context: LayerContext) -> Operation:
    """Weighted sums of all values from an axis on."""
    context.layer.expect(bottoms=1, tops=1)
    param = context.layer.params.inner_product_param
    axis = context.axis(param.axis)
    inputs = math.prod(context.shapes[0][axis:])
    if not param.num_output:
        raise context.error("found no num_output, expected 1 or more")
    shape = (inputs, param.num_output) if param.transpose else (param.num_output, inputs)
    weights = [Weight(shape, param.weight_filler)]
    if param.bias_term:
        weights.append(Weight((param.num_output,), param.bias_filler))

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        weight, *bias = blobs
        rows = bottoms[0].reshape(*bottoms[0].shape[:axis], inputs)
        return functional.linear(rows, weight.t() if param.transpose else weight, *bias)

    return Operation(forward, weights)


@builds("Embed")
def embed(context: LayerContext) -> Operation:
    """The row of the weights at each index."""
    context.layer.expect(bottoms=1, tops=1)
    param = context.layer.params.embed_param
    if not param.num_output or not param.input_dim:
        raise context.error("found no num_output or no input_dim, expected 1 or more for both")
    weights = [Weight((param.input_dim, param.num_output), param.weight_filler)]
    if param.bias_term:
        weights.append(Weight((param.num_output,), param.bias_filler))

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        weight, *bias = blobs
        rows = functional.embedding(bottoms[0].long(), weight)
        return rows + bias[0] if bias else rows

    return Operation(forward, weights)
