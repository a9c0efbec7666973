"""Layers that combine blobs elementwise, and layers that select or hold values."""

from __future__ import annotations

import numpy as np

from converters.deploy import dummy_shapes
from converters.graph import Graph
from converters.layer import MANY, Layer
from converters.registry import handles
from converters.schema.caffe_pb2 import EltwiseParameter
from converters.shape import MAX_BLOB, count, show


@handles("Eltwise", operators="Add Mul Max Sum Identity", restrictions="also with one bottom, as in FlowNet 2's fork")
def eltwise(layer: Layer, graph: Graph) -> None:
    """Sum (with coefficients), product or maximum of blobs of one shape."""
    layer.expect(bottoms=range(1, MANY), tops=1)
    param = layer.params.eltwise_param
    graph.same_shape(layer.bottoms)
    if param.coeff and len(param.coeff) != len(layer.bottoms):
        raise layer.error(
            f"found {len(param.coeff)} coefficients for {len(layer.bottoms)} bottoms, expected one per bottom"
        )
    bottoms = _left_in_place(layer) if param.operation != EltwiseParameter.PROD else list(layer.bottoms)
    if len(layer.bottoms) == 1 and not param.coeff:
        graph.node("Identity", bottoms, layer.tops)
        return
    if param.operation == EltwiseParameter.MAX:
        graph.node("Max", bottoms, layer.tops)
        return
    if param.operation == EltwiseParameter.PROD:
        if param.coeff:
            raise layer.error("found coefficients for a product, expected them for a sum only")
        _fold(graph, "Mul", list(layer.bottoms), layer)
        return
    weighted = [
        bottom if coeff == 1 else graph.node("Mul", [bottom, graph.constant(coeff)])
        for bottom, coeff in zip(layer.bottoms, param.coeff or [1.0] * len(layer.bottoms), strict=True)
        if bottom in bottoms
    ]
    graph.node("Add" if len(weighted) == 2 else "Sum", weighted, layer.tops)


def _left_in_place(layer: Layer) -> list[str]:
    """The bottoms that contribute. Caffe clears the top first, which also clears a bottom that is the same blob.

    So an in-place sum or maximum is that of the other bottoms alone. That is a mistake in a network, but its weights
    were trained with it.
    """
    cleared = {name for name, blob in zip(layer.bottoms, layer.params.bottom, strict=True) if blob in layer.params.top}
    left = [name for name in layer.bottoms if name not in cleared]
    if not left:
        raise layer.error(
            "found only bottoms that are the same blob as the top, expected another: Caffe clears the top first"
        )
    return left


def _fold(graph: Graph, op: str, tensors: list[str], layer: Layer) -> None:
    result = tensors[0]
    for index, other in enumerate(tensors[1:], start=2):
        result = graph.node(op, [result, other], layer.tops if index == len(tensors) else None)


@handles("Axpy", operators="Reshape Mul Add", origin="SENet")
def axpy(layer: Layer, graph: Graph) -> None:
    """a * x + y with one factor a per channel: the end of a squeeze-and-excitation block (Hu et al. 2018)."""
    layer.expect(bottoms=3, tops=1)
    factors, x, y = layer.bottoms
    shape = graph.same_shape([x, y])
    found = graph.shape(factors)
    ones = (1,) * (len(shape) - 2)
    fits = len(found) >= 2 and len(shape) >= 2 and all(map(graph.same, shape[:2], found[:2]))
    if not fits or any(dim != 1 for dim in found[2:]):
        raise layer.error(f"found factors of {show(found)}, expected {show((*shape[:2], *ones))}")
    if len(found) != len(shape):
        factors = graph.reshape(factors, (*shape[:2], *ones))
    graph.node("Add", [graph.node("Mul", [factors, x], shape=shape), y], layer.tops)


@handles("BatchReindex", operators="Cast Gather")
def batch_reindex(layer: Layer, graph: Graph) -> None:
    """Items of the first bottom, selected by the indices in the second bottom."""
    layer.expect(bottoms=2, tops=1)
    data, order = layer.bottoms
    if graph.rank(order) != 1:
        raise layer.error(f"found {show(graph.shape(order))} for the blob {order!r}, expected one axis of indices")
    shape = (graph.shape(order)[0], *graph.shape(data)[1:])
    graph.node("Gather", [data, graph.cast(order, np.int64)], layer.tops, shape=shape, axis=0)


@handles("Parameter", operators="Identity")
def parameter(layer: Layer, graph: Graph) -> None:
    """A learned blob as the output of a layer."""
    (values,) = layer.weights(tuple(layer.params.parameter_param.shape.dim))
    graph.node("Identity", [graph.weight("weight", values)], layer.tops)


@handles(
    "DummyData",
    operators="Expand",
    restrictions="constant fillers; a layer with random fillers becomes an input",
)
def dummy_data(layer: Layer, graph: Graph) -> None:
    """Constants of a given shape."""
    fillers = layer.params.dummy_data_param.data_filler
    if len(fillers) not in (0, 1, len(layer.tops)):
        raise layer.error(
            f"found {len(fillers)} fillers for {len(layer.tops)} tops, expected none, one, or one per top"
        )
    values = [filler.value for filler in fillers] or [0.0]
    if len(values) == 1:
        values *= len(layer.tops)
    for top, shape, value in zip(layer.tops, dummy_shapes(layer), values, strict=True):
        if any(size < 0 for size in shape) or count(shape) > MAX_BLOB:
            raise layer.error(f"found the shape {show(shape)}, expected sizes with a product of at most {MAX_BLOB:,}")
        graph.node("Expand", [graph.constant(value), graph.constant(shape, np.int64)], [top], shape=shape)
