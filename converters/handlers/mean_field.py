"""Mean field inference in a conditional random field, as in CRF-RNN (Zheng et al. 2015)."""

from __future__ import annotations

import numpy as np

from converters.graph import Graph
from converters.layer import Layer
from converters.registry import handles
from converters.shape import Dim, show

MAX_PAIRED = 4096  # pixels; an affinity of all pairs takes 64 MiB
MAX_ITERATIONS = 1000  # CRF-RNN has ten


@handles(
    "MultiStageMeanfield",
    operators="Reshape Slice Mul Sub Add Exp ReduceSum Div Softmax MatMul",
    restrictions="at most 4,096 pixels, because it compares all pairs of them: exact Gaussians, which the original "
    "approximates on a permutohedral lattice; for larger images, end the network before it with `--outputs`; no "
    "detection or superpixel potentials",
    origin="CRF-RNN",
)
def multi_stage_meanfield(layer: Layer, graph: Graph) -> None:
    """Mean field iterations of a dense conditional random field (Zheng et al. 2015, algorithm 1)."""
    layer.expect(bottoms=range(3, 5), tops=range(1, 3))
    param = layer.params.multi_stage_meanfield_param
    unary, scores, image = layer.bottoms[:3]
    batch, classes, height, width = _mean_field_shape(layer, graph)
    pixels = height * width
    flat = (batch, classes, pixels)
    learned = layer.weights(*_mean_field_weights(layer, classes))[:3]
    spatial, bilateral, compatibility = (
        graph.weight(name, blob.reshape(classes, classes))
        for name, blob in zip(("spatial", "bilateral", "compatibility"), learned, strict=True)
    )
    y, x = np.divmod(np.arange(pixels, dtype=np.float32), np.float32(width))
    positions = [graph.constant(axis[None]) for axis in (x, y)]
    colors = graph.reshape(image, (batch, 3, pixels))
    channels = [graph.reshape(graph.slice(colors, 1, index, index + 1), (batch, pixels)) for index in range(3)]
    near = _affinities(graph, [(position, param.theta_gamma) for position in positions])
    alike = _affinities(
        graph,
        [
            *((position, param.theta_alpha) for position in positions),
            *((channel, param.theta_beta) for channel in channels),
        ],
    )
    before, current = graph.reshape(unary, flat), graph.reshape(scores, flat)
    for _ in range(param.num_iterations):
        belief = graph.node("Softmax", [current], shape=flat, axis=1)
        messages = [
            graph.node("MatMul", [weights, graph.node("MatMul", [belief, affinity], shape=flat)], shape=flat)
            for weights, affinity in ((spatial, near), (bilateral, alike))
        ]
        passed = graph.node("Add", messages)
        current = graph.node("Sub", [before, graph.node("MatMul", [compatibility, passed], shape=flat)])
    graph.reshape(current, graph.shape(unary), layer.tops[:1])


def _mean_field_shape(layer: Layer, graph: Graph) -> tuple[Dim, int, int, int]:
    """Check the bottoms and parameters. Returns N, classes, height and width."""
    param = layer.params.multi_stage_meanfield_param
    unary, image = layer.bottoms[0], layer.bottoms[2]
    shape = graph.same_shape(layer.bottoms[:2])
    seen = graph.shape(image)
    if len(shape) != 4 or len(seen) != 4 or not all(map(graph.same, seen, (shape[0], 3, *shape[2:]))):
        raise layer.error(
            f"found scores of {show(shape)} and an image of {show(seen)}, expected N x classes x H x W and "
            "N x 3 x H x W"
        )
    classes, height, width = graph.fixed_shape(unary, 1, "the number of classes and the image's size")
    if height * width > MAX_PAIRED:
        raise layer.error(
            f"found an image of {height} x {width}, expected at most {MAX_PAIRED:,} pixels: the graph compares all "
            f"pairs of them. To convert the network up to this layer, use --outputs {layer.params.bottom[0]}"
        )
    if len(layer.tops) > 1 or min(param.theta_alpha, param.theta_beta, param.theta_gamma) <= 0:
        raise layer.error(
            f"found {len(layer.tops)} top(s), theta_alpha {param.theta_alpha:g}, theta_beta {param.theta_beta:g} and "
            f"theta_gamma {param.theta_gamma:g}, expected one top and positive thetas"
        )
    if not 1 <= param.num_iterations <= MAX_ITERATIONS:
        raise layer.error(f"found num_iterations {param.num_iterations}, expected 1 to {MAX_ITERATIONS}")
    return shape[0], classes, height, width


def _mean_field_weights(layer: Layer, classes: int) -> list[tuple[int, ...]]:
    """The shapes of both kernels' weights and of the compatibilities. Later versions store four more, unused."""
    unused = layer.blobs[3:] if len(layer.blobs) == 7 else ()
    return [(classes, classes)] * 3 + [tuple(blob.shape) for blob in unused]


def _affinities(graph: Graph, features: list[tuple[str, float]]) -> str:
    """Gaussian affinities of all pairs of pixels, each column normalized to sum 1: (N, pixels, pixels).

    Args:
        graph: The graph.
        features: Tensors (N, pixels) with their standard deviations.
    """
    total = ""
    for values, deviation in features:
        batch, pixels = graph.shape(values)
        scaled = graph.node("Mul", [values, graph.constant(1 / (deviation * 2**0.5))])
        away = graph.node("Sub", [graph.reshape(scaled, (batch, pixels, 1)), graph.reshape(scaled, (batch, 1, pixels))])
        square = graph.node("Mul", [away, away])
        total = graph.node("Add", [total, square]) if total else square
    kernel = graph.node("Exp", [graph.node("Sub", [graph.constant(0.0), total])])
    return graph.node("Div", [kernel, graph.reduce("Sum", kernel, [1])])
