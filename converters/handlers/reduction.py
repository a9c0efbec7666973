"""Layers that reduce axes: sums, means, indices of maxima."""

from __future__ import annotations

import numpy as np

from converters.graph import Graph
from converters.layer import Layer
from converters.registry import handles
from converters.schema.caffe_pb2 import ReductionParameter

_REDUCTIONS = {
    ReductionParameter.SUM: "Sum",
    ReductionParameter.ASUM: "L1",
    ReductionParameter.SUMSQ: "SumSquare",
    ReductionParameter.MEAN: "Mean",
}


@handles("Reduction", operators="ReduceSum ReduceL1 ReduceSumSquare ReduceMean Mul")
def reduction(layer: Layer, graph: Graph) -> None:
    """Sum, sum of absolute values, sum of squares, or mean, over all axes from a given one on."""
    bottom, top = layer.ends()
    param = layer.params.reduction_param
    axis = graph.axis(bottom, param.axis)
    axes = range(axis, graph.rank(bottom))
    scaled = param.coeff != 1
    reduced = graph.reduce(_REDUCTIONS[param.operation], bottom, axes, None if scaled else top, keepdims=False)
    if scaled:
        graph.node("Mul", [reduced, graph.constant(param.coeff)], top)


@handles("ArgMax", operators="TopK Slice Sub Cast Flatten Concat Reshape Identity")
def argmax(layer: Layer, graph: Graph) -> None:
    """Indices of the largest values along an axis or in the whole item; or the values, or both.

    Among equal values, Caffe returns the larger index first, ONNX's TopK the smaller one. So TopK gets the axis
    reversed.
    """
    bottom, top = layer.ends()
    param = layer.params.argmax_param
    whole = not param.HasField("axis")
    axis = 1 if whole else graph.axis(bottom, param.axis)
    tensor = graph.flatten(bottom, 1) if whole else bottom
    size = graph.fixed(graph.shape(tensor)[axis], "the number of values to compare")
    if not 1 <= param.top_k <= size:
        raise layer.error(f"found top_k {param.top_k}, expected 1 to {size}, the number of values")
    values, indices = _top(graph, tensor, axis, param.top_k, size)
    if not whole:
        if param.out_max_val:
            graph.node("Identity", [values], top)
        else:
            graph.cast(indices, np.float32, top)
        return
    batch, rest = graph.shape(bottom)[0], (1,) * (graph.rank(bottom) - 3)
    found = graph.cast(indices, np.float32)
    if not param.out_max_val:
        graph.reshape(found, (batch, 1, param.top_k, *rest), top)
        return
    rows = [graph.reshape(part, (batch, 1, param.top_k, *rest)) for part in (found, values)]
    graph.concat(rows, 1, top)


def _top(graph: Graph, tensor: str, axis: int, top_k: int, size: int) -> tuple[str, str]:
    """The ``top_k`` largest values and their indices; among equal values, larger indices first."""
    shape = [*graph.shape(tensor)]
    shape[axis] = top_k
    reversed_ = graph.slice(tensor, axis, 0, None, step=-1)
    values, indices = graph.new_name("values"), graph.new_name("indices")
    graph.node(
        "TopK",
        [reversed_, graph.constant([top_k], np.int64)],
        [values, indices],
        shapes=[shape, shape],
        axis=axis,
    )
    graph.set_dtype(indices, np.int64)
    return values, graph.node("Sub", [graph.constant(size - 1, np.int64), indices], shape=shape)
