"""Layers that combine blobs of one shape, and those that hold or look up values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from camrt.train.registry import Operation, Place, Weight, builds
from converters.deploy import dummy_shapes
from converters.layer import MANY
from converters.schema.caffe_pb2 import EltwiseParameter, FillerParameter


@builds("Eltwise")
def eltwise(place: Place) -> Operation:
    """Sum (with coefficients), product or maximum of blobs of one shape."""
    layer, param = place.layer, place.layer.params.eltwise_param
    layer.expect(bottoms=range(2, MANY), tops=1)
    if any(shape != place.shapes[0] for shape in place.shapes):
        raise place.error("found bottoms of different shapes, expected one for all")
    if param.coeff and len(param.coeff) != len(layer.bottoms):
        raise place.error(f"found {len(param.coeff)} coefficients for {len(layer.bottoms)} bottoms, expected one each")
    if param.operation == EltwiseParameter.PROD:
        if param.coeff:
            raise place.error("found coefficients for a product, expected them for a sum only")
        return _folded(torch.mul, range(len(layer.bottoms)))
    # Caffe clears the top first, and with it a bottom that is the same blob.
    left = [index for index, blob in enumerate(layer.params.bottom) if blob not in layer.params.top]
    if not left:
        raise place.error("found all bottoms the same blob as the top, expected another: Caffe clears it first")
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
    """The larger; of equal values b takes the gradient, where torch.maximum halves it."""
    return torch.where(a > b, a, b)


def _folded(function: Callable[[Tensor, Tensor], Tensor], indices: Sequence[int]) -> Operation:
    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        result = bottoms[indices[0]] if len(indices) > 1 else bottoms[indices[0]] * 1
        for place, index in enumerate(indices[1:]):
            # Caffe's third and later bottoms must exceed what is there already to take its place.
            result = function(result, bottoms[index]) if not place else function(bottoms[index], result)
        return result

    return Operation(forward)


@builds("Axpy")
def axpy(place: Place) -> Operation:
    """Factors for each channel of each item, times x, plus y: the end of a squeeze-and-excitation block."""
    place.layer.expect(bottoms=3, tops=1)

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        factors, x, y = bottoms
        return torch.addcmul(y, factors.reshape(*x.shape[:2], *(1,) * (x.dim() - 2)), x)

    return Operation(forward)


@builds("BatchReindex")
def batch_reindex(place: Place) -> Operation:
    """Items of the first bottom in the order that the second bottom gives."""
    place.layer.expect(bottoms=2, tops=1)
    return Operation(lambda blobs, bottoms: bottoms[0][bottoms[1].long()])


@builds("Parameter")
def parameter(place: Place) -> Operation:
    """A learned blob as a layer's output."""
    place.layer.expect(bottoms=0, tops=1)
    shape = tuple(place.layer.params.parameter_param.shape.dim)
    return Operation(lambda blobs, bottoms: blobs[0] * 1, [Weight(shape)])


@builds("DummyData")
def dummy_data(place: Place) -> Operation:
    """Constants of a given shape."""
    layer = place.layer
    fillers = layer.params.dummy_data_param.data_filler
    if len(fillers) not in (0, 1, len(layer.tops)):
        raise place.error(f"found {len(fillers)} fillers for {len(layer.tops)} tops, expected none, one, or one each")
    values = [filler.value for filler in fillers] or [0.0]
    values = values * len(layer.tops) if len(values) == 1 else values
    shapes = dummy_shapes(layer)
    constants = [Weight((), FillerParameter(value=value), learned=False, saved=False) for value in values]
    return Operation(lambda blobs, bottoms: [blob.expand(s) for blob, s in zip(blobs, shapes, strict=True)], constants)
