"""Layers that multiply by a learned matrix, or look up its rows."""

from __future__ import annotations

import numpy as np

from converters.graph import Graph
from converters.layer import Layer
from converters.registry import handles
from converters.shape import MAX_BLOB, product, show


@handles("InnerProduct", operators="Gemm Flatten Reshape")
def inner_product(layer: Layer, graph: Graph) -> None:
    """Fully connected layer: the axes from ``axis`` on, flattened, times a matrix, plus a bias."""
    layer.ends()
    param = layer.params.inner_product_param
    inputs, outputs = _inputs(layer, graph, param.axis), param.num_output
    if not outputs:
        raise layer.error("found no num_output, expected 1 or more")
    matrix = (inputs, outputs) if param.transpose else (outputs, inputs)
    weight, *bias = layer.weights(matrix, *([(outputs,)] if param.bias_term else []))
    _product(layer, graph, param.axis, weight, bias, is_transposed=param.transpose)


@handles(
    "MarginInnerProduct",
    operators="Gemm Flatten Reshape",
    restrictions="inference form: no margin, which needs the label, and no lambda (second top), which needs the loss",
    origin="SphereFace",
)
def margin_inner_product(layer: Layer, graph: Graph) -> None:
    """|x| * cos(angle): product with weights of unit length (Liu et al. 2017). The margin needs the label's class."""
    layer.ends()
    param = layer.params.margin_inner_product_param
    inputs, outputs = _inputs(layer, graph, param.axis), param.num_output
    if not 1 <= outputs <= MAX_BLOB // inputs:
        raise layer.error(
            f"found num_output {outputs:,} for {inputs:,} inputs, expected 1 or more, with at most {MAX_BLOB:,} weights"
        )
    (weight,) = layer.weights((outputs, inputs))
    unit = weight / np.sqrt(np.square(weight).sum(axis=1, keepdims=True))
    _product(layer, graph, param.axis, unit)


def _inputs(layer: Layer, graph: Graph, axis: int) -> int:
    """The number of values from an axis on."""
    dims = graph.shape(layer.bottoms[0])[graph.axis(layer.bottoms[0], axis) :]
    size = 1
    for dim in dims:
        size *= graph.fixed(dim, "the number of its inputs")
    return size


def _product(
    layer: Layer,
    graph: Graph,
    axis: int,
    weight: np.ndarray,
    bias: list[np.ndarray] | None = None,
    *,
    is_transposed: bool = False,
) -> None:
    """Multiply the axes of the bottom from ``axis`` on by a matrix.

    Args:
        layer: The layer.
        graph: The graph.
        axis: The first axis that counts as input; the axes before it remain.
        weight: (outputs, inputs), or (inputs, outputs) if ``is_transposed``.
        bias: At most one offset, (outputs,).
        is_transposed: Which of its two shapes the weight has.
    """
    bottom, top = layer.ends()
    axis, shape = graph.axis(bottom, axis), graph.shape(bottom)
    outputs = weight.shape[1 if is_transposed else 0]
    rows = product(shape[:axis])
    if rows is None:
        raise layer.error(f"found {show(shape)} for the blob {bottom!r}, expected at most one free axis")
    is_matrix = axis == 1 and len(shape) == 2
    flat = bottom if is_matrix else graph.flatten(bottom, axis)
    result = graph.node(
        "Gemm",
        [flat, graph.weight("weight", weight), *(graph.weight("bias", values) for values in bias or [])],
        top if axis == 1 else None,
        shape=(rows, outputs),
        transB=0 if is_transposed else 1,
    )
    if axis != 1:
        graph.reshape(result, (*shape[:axis], outputs), top)


@handles("Embed", operators="Cast Gather Add", restrictions="an index outside the table is an error at run time")
def embed(layer: Layer, graph: Graph) -> None:
    """The row of a learned table for each index."""
    bottom, top = layer.ends()
    param = layer.params.embed_param
    shapes: list[tuple[int, ...]] = [(param.input_dim, param.num_output)]
    if param.bias_term:
        shapes.append((param.num_output,))
    table, *offset = layer.weights(*shapes)
    rows = graph.node(
        "Gather",
        [graph.weight("weight", table), graph.cast(bottom, np.int64)],
        None if offset else top,
        shape=(*graph.shape(bottom), param.num_output),
    )
    if offset:
        graph.node("Add", [rows, graph.weight("bias", offset[0])], top)
