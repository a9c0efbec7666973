"""Layers that reduce axes: Reduction, ArgMax."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from camrt.train.registry import LayerContext, Operation, builds
from converters.schema.caffe_pb2 import ReductionParameter

_REDUCTIONS: dict[int, Callable[[Tensor], Tensor]] = {
    ReductionParameter.SUM: lambda x: x.sum(-1),
    ReductionParameter.ASUM: lambda x: x.abs().sum(-1),
    ReductionParameter.SUMSQ: lambda x: x.square().sum(-1),
    ReductionParameter.MEAN: lambda x: x.mean(-1),
}


@builds("Reduction")
def reduction(context: LayerContext) -> Operation:
    """Sum, sum of absolute values, sum of squares, or mean of all values from an axis on."""
    context.layer.expect(bottoms=1, tops=1)
    param = context.layer.params.reduction_param
    axis, reduce, coeff = context.axis(param.axis), _REDUCTIONS[param.operation], param.coeff

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        reduced = reduce(bottoms[0].flatten(axis))
        return reduced * coeff if coeff != 1 else reduced

    return Operation(forward)


@builds("ArgMax")
def argmax(context: LayerContext) -> Operation:
    """Indices of the largest values along an axis or in the whole item; or the values, or both. No gradient.

    As in Caffe, of equal values the one with the larger index comes first.
    """
    context.layer.expect(bottoms=1, tops=1)
    param = context.layer.params.argmax_param
    whole = not param.HasField("axis")
    axis = 1 if whole else context.axis(param.axis)

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        x = bottoms[0].detach()
        rest = (1,) * (x.dim() - 3)
        x = x.flatten(1) if whole else x
        if not 1 <= param.top_k <= x.shape[axis]:
            raise ValueError(f"found top_k {param.top_k}, expected 1 to {x.shape[axis]}, the number of values")
        values, indices = torch.sort(x.flip(axis), stable=True, dim=axis, descending=True)
        values = values.narrow(axis, 0, param.top_k)
        found = (x.shape[axis] - 1 - indices.narrow(axis, 0, param.top_k)).to(x.dtype)
        if not whole:
            return values if param.out_max_val else found
        shape = (x.shape[0], 1, param.top_k, *rest)
        rows = [found.reshape(shape), *([values.reshape(shape)] if param.out_max_val else [])]
        return torch.cat(rows, 1)

    return Operation(forward)
