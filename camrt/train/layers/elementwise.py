"""Layers that combine blobs elementwise, and layers that hold or look up values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from camrt.train.registry import LayerContext, Operation, Weight, builds
from converters.deploy import dummy_shapes
from converters.layer import MANY
from converters.schema.caffe_pb2 import EltwiseParameter, FillerParameter


@builds("Eltwise")
def eltwise(context: LayerContext) -> Operation:
    """Sum (with coefficients), product or maximum of blobs of the same shape."""
    layer, param = context.layer, context.layer.params.eltwise_param
    layer.expect(bottoms=range(2, MANY), tops=1)
    if any(shape != context.shapes[0] for shape in context.shapes):
        raise context.error("found bottoms of different shapes, expected the same shape for all")
    if param.coeff and len(param.coeff) != len(layer.bottoms):
        raise context.error(
            f"found {len(param.coeff)} coefficients for {len(layer.bottoms)} bottoms, expected one each"
        )
    if param.operation == EltwiseParameter.PROD:
        if param.coeff:
            raise context.error("found coefficients for a product, expected them for a sum only")
        return _folded(torch.mul, range(len(layer.bottoms)))
    # Caffe clears the top first, and thereby a bottom that is the same blob.
    left = [index for index, blob in enumerate(layer.params.bottom) if blob not in layer.params.top]
    if not left:
        raise context.error(
            "found no bottom other than the top, expected at least one: Caffe clears the top before reading"
        )
    if param.operation == EltwiseParameter.MAX:
        return _folded(_maximum, left)
    coeffs = list(param.coeff) or [1.0] * len(layer.bottoms)

    def weighted_sum(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        first, *others = left
        total = bottoms[first] if coeffs[first] == 1 else bottoms[first] * coeffs[first]
        for index in others:
            total = torch.add(total, bottoms[index], alpha=coeffs[index])
        return total if others else total * 1  # never the bottom itself: the next layer may write over it

    return Operation(weighted_sum)


def _maximum(a: Tensor, b: Tensor) -> Tensor:
    """Return the maximum. Of equal values, the gradient goes to b; torch.maximum would divide it between both."""
    return torch.where(a > b, a, b)


def _folded(function: Callable[[Tensor, Tensor], Tensor], indices: Sequence[int]) -> Operation:
    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        result = bottoms[indices[0]] if len(indices) > 1 else bottoms[indices[0]] * 1
        for position, index in enumerate(indices[1:]):
            # In Caffe, the third and later bottoms replace the maximum so far only if they exceed it.
            result = function(result, bottoms[index]) if not position else function(bottoms[index], result)
        return result

    return Operation(forward)


@builds("Axpy")
def axpy(context: LayerContext) -> Operation:
    """a * x + y, with one factor a per channel of each item: the end of a squeeze-and-excitation block."""
    context.layer.expect(bottoms=3, tops=1)

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        factors, x, y = bottoms
        return torch.addcmul(y, factors.reshape(*x.shape[:2], *(1,) * (x.dim() - 2)), x)

    return Operation(forward)


@builds("BatchReindex")
def batch_reindex(context: LayerContext) -> Operation:
    """Items of the first bottom, indexed by the second bottom."""
    context.layer.expect(bottoms=2, tops=1)
    return Operation(lambda blobs, bottoms: bottoms[0][bottoms[1].long()])


@builds("Parameter")
def parameter(context: LayerContext) -> Operation:
    """A learned blob as the layer's output."""
    context.layer.expect(bottoms=0, tops=1)
    shape = tuple(context.layer.params.parameter_param.shape.dim)
    return Operation(lambda blobs, bottoms: blobs[0] * 1, [Weight(shape)])


@builds("DummyData")
def dummy_data(context: LayerContext) -> Operation:
    """Constants of a given shape."""
    layer = context.layer
    fillers = layer.params.dummy_data_param.data_filler
    if len(fillers) not in (0, 1, len(layer.tops)):
        raise context.error(f"found {len(fillers)} fillers for {len(layer.tops)} tops, expected none, one, or one each")
    values = [filler.value for filler in fillers] or [0.0]
    values = values * len(layer.tops) if len(values) == 1 else values
    shapes = dummy_shapes(layer)
    constants = [Weight((), FillerParameter(value=value), learned=False, saved=False) for value in values]
    return Operation(lambda blobs, bottoms: [blob.expand(s) for blob, s in zip(blobs, shapes, strict=True)], constants)
