"""Layers that make fewer values of many: products with weights, sums, maxima, softmax."""

from __future__ import annotations

import numpy as np

from converters.graph import Graph
from converters.layer import Layer
from converters.registry import handles
from converters.schema.caffe_pb2 import ReductionParameter
from converters.shape import MAX_BLOB, Dim, product, show


@handles("InnerProduct", operators="Gemm Flatten Reshape")
def inner_product(layer: Layer, graph: Graph) -> None:
    """The fully connected layer: everything from an axis on, times a matrix, plus a bias."""
    bottom, top = layer.ends()
    param = layer.params.inner_product_param
    axis = graph.axis(bottom, param.axis)
    shape = graph.shape(bottom)
    inputs = _fixed_product(layer, graph, shape[axis:])
    outputs = param.num_output
    if not outputs:
        raise layer.error("found no num_output, expected one from 1 on")
    matrix = (inputs, outputs) if param.transpose else (outputs, inputs)
    weight, *bias = layer.weights(matrix, *([(outputs,)] if param.bias_term else []))
    rows = product(shape[:axis])
    if rows is None:
        raise layer.error(f"found {show(shape)} for the blob {bottom!r}, expected one free axis at most")
    is_matrix = axis == 1 and len(shape) == 2
    flat = bottom if is_matrix else graph.flatten(bottom, axis)
    result = graph.node(
        "Gemm",
        [flat, graph.weight("weight", weight), *(graph.weight("bias", values) for values in bias)],
        top if axis == 1 else None,
        shape=(rows, outputs),
        transB=0 if param.transpose else 1,
    )
    if axis != 1:
        graph.reshape(result, (*shape[:axis], outputs), top)


@handles(
    "MarginInnerProduct",
    operators="Gemm Flatten Reshape",
    restrictions="inference form: without the label there is no margin, and without a loss no lambda (second top)",
    origin="SphereFace",
)
def margin_inner_product(layer: Layer, graph: Graph) -> None:
    """|x| * cos(angle): the product with weights of length 1 (Liu et al. 2017). The margin is for the label's class."""
    bottom, top = layer.ends()
    param = layer.params.margin_inner_product_param
    axis = graph.axis(bottom, param.axis)
    shape = graph.shape(bottom)
    inputs, outputs = _fixed_product(layer, graph, shape[axis:]), param.num_output
    if not 1 <= outputs <= MAX_BLOB // inputs:
        raise layer.error(
            f"found num_output {outputs:,} for {inputs:,} inputs, expected 1 or more, with at most {MAX_BLOB:,} weights"
        )
    (weight,) = layer.weights((outputs, inputs))
    rows = product(shape[:axis])
    if rows is None:
        raise layer.error(f"found {show(shape)} for the blob {bottom!r}, expected one free axis at most")
    flat = bottom if axis == 1 and len(shape) == 2 else graph.flatten(bottom, axis)
    unit = weight / np.sqrt(np.square(weight).sum(axis=1, keepdims=True))
    result = graph.node(
        "Gemm", [flat, graph.weight("weight", unit)], top if axis == 1 else None, shape=(rows, outputs), transB=1
    )
    if axis != 1:
        graph.reshape(result, (*shape[:axis], outputs), top)


def _fixed_product(layer: Layer, graph: Graph, dims: tuple[Dim, ...]) -> int:
    size = 1
    for dim in dims:
        size *= graph.fixed(dim, "the number of its inputs")
    return size


@handles("Softmax", operators="Softmax")
def softmax(layer: Layer, graph: Graph) -> None:
    """e^x over the sum of e^x along an axis. Also what is left of SoftmaxWithLoss at inference."""
    bottom, top = layer.ends()
    axis = graph.axis(bottom, layer.params.softmax_param.axis)
    graph.node("Softmax", [bottom], top, axis=axis)


_REDUCTIONS = {
    ReductionParameter.SUM: "Sum",
    ReductionParameter.ASUM: "L1",
    ReductionParameter.SUMSQ: "SumSquare",
    ReductionParameter.MEAN: "Mean",
}


@handles("Reduction", operators="ReduceSum ReduceL1 ReduceSumSquare ReduceMean Mul")
def reduction(layer: Layer, graph: Graph) -> None:
    """Sum, sum of magnitudes, of squares, or mean, over everything from an axis on."""
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
    """Where the largest values are, along an axis or in the whole item; or the values, or both.

    Of equal values Caffe gives the one with the larger index first, ONNX's TopK the smaller: so TopK sees the axis
    backwards.
    """
    bottom, top = layer.ends()
    param = layer.params.argmax_param
    whole = not param.HasField("axis")
    axis = 1 if whole else graph.axis(bottom, param.axis)
    tensor = graph.flatten(bottom, 1) if whole else bottom
    size = graph.fixed(graph.shape(tensor)[axis], "the number of values that it compares")
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
    """The ``top_k`` largest values and their indices, larger indices first among equals."""
    shape = [*graph.shape(tensor)]
    shape[axis] = top_k
    backwards = graph.slice(tensor, axis, 0, None, step=-1)
    values, indices = graph.new_name("values"), graph.new_name("indices")
    graph.node(
        "TopK",
        [backwards, graph.constant([top_k], np.int64)],
        [values, indices],
        shapes=[shape, shape],
        axis=axis,
    )
    graph.set_dtype(indices, np.int64)
    return values, graph.node("Sub", [graph.constant(size - 1, np.int64), indices], shape=shape)
