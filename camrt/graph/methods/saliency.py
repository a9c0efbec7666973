"""Maps of pixels: the scores' derivatives by the image, plain, guided, averaged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from camrt.errors import CamrtError
from camrt.graph.crops import black, enlargement
from camrt.graph.methods import find, method
from camrt.graph.methods.scene import GRADIENT, Layer, Scene

_SEED = 2017  # of SmoothGrad's noise
_SHIFT = 7919  # numbers that a sample's noise is further on in the row of all; a prime: rows of pixels never line up


@method(
    "guided-backprop",
    kind="pixels",
    title="Guided backpropagation",
    rectified=False,
    layered=False,
    top=1,
    protocol="center",
)
def guided_backprop(scene: Scene) -> str:
    """The derivative by the image, where only what is positive comes back through a ReLU.

    At a ReLU the derivative R goes back as (f > 0) (R > 0) R, f what went in. The map is its largest magnitude over the
    three channels.

    Source:
        Springenberg, Dosovitskiy, Brox, Riedmiller: Striving for Simplicity: The All Convolutional Net. ICLR
        Workshops 2015, section 3.4 and figure 1.

    Example:
        >>> explainer = camrt.explain_graph(model, method="guided-backprop", target="cup")  # doctest: +SKIP
    """
    return scene.magnitude(scene.pixels(scene.first, "guided"))


@method("guided-gradcam", kind="pixels", title="Guided Grad-CAM", rectified=False, top=1, protocol="center")
def guided_gradcam(scene: Scene) -> str:
    """Guided backpropagation times Grad-CAM: the pixels of the first, where the second sees the class.

    Grad-CAM's map is enlarged to the crop (bicubic, what falls below 0 cut off), and multiplied place by place.

    Source:
        Selvaraju et al.: Grad-CAM. ICCV 2017, section 3.2.

    Example:
        >>> explainer = camrt.explain_graph(model, method="guided-gradcam")  # doctest: +SKIP
    """
    builder, maps = scene.builder, []
    for layer in scene.layers:
        maps.append(_enlarged(layer, builder.node("Relu", [find("gradcam").maps(layer)])))
    coarse = maps[0] if len(maps) == 1 else builder.node("Mean", maps)
    guided = scene.pixels(scene.first, "guided")
    return scene.magnitude(builder.node("Mul", [guided, builder.unsqueeze(coarse, 3)]))


@method("input-gradient", kind="pixels", title="Gradient", rectified=False, layered=False, top=1, protocol="center")
def input_gradient(scene: Scene) -> str:
    """The derivative by the image: M(i, j) = max over the channels of |dy_c/dX(i, j)|.

    Source:
        Simonyan, Vedaldi, Zisserman: Deep Inside Convolutional Networks: Visualising Image Classification
        Models and Saliency Maps. ICLR Workshops 2014, section 3.1.

    Example:
        >>> explainer = camrt.explain_graph(model, method="input-gradient")  # doctest: +SKIP
    """
    return scene.magnitude(scene.pixels(scene.first))


@method(
    "smoothgrad",
    kind="pixels",
    title="SmoothGrad",
    rectified=False,
    layered=False,
    again=True,
    top=1,
    protocol="center",
)
def smoothgrad(scene: Scene, *, samples: int = 25, sigma: float = 0.15) -> str:
    """The mean of the derivative over noisy images: M = 1/n sum of dy_c/dX(X + noise), noise of deviation sigma.

    sigma is a part of the range of what the network sees, largest less smallest value of the crop. The map is the
    largest magnitude of the mean over the three channels. The noise is part of the graph (one row of normal numbers,
    each sample further on in it), so that each run, each machine and each image of a batch gets the same.

    Source:
        Smilkov, Thorat, Kim, Viégas, Wattenberg: SmoothGrad: Removing Noise by Adding Noise. ICML Workshops
        2017, section 3.

    Args:
        scene: The image.
        samples: How many noisy images there are. One runs after the other.
        sigma: The noise's standard deviation, as a part of the range.

    Example:
        >>> explainer = camrt.explain_graph(model, method="smoothgrad", settings={"samples": 50})  # doctest: +SKIP
    """
    if samples < 1 or not 0 <= sigma < np.inf:
        raise CamrtError(f"found smoothgrad's samples {samples} and sigma {sigma}, expected at least 1, and 0 or more")
    builder, numbers = scene.builder, 3 * scene.side**2
    noise = np.random.default_rng(_SEED).standard_normal(numbers + _SHIFT * (samples - 1), np.float32)
    row = builder.constant(noise, "noise")
    image = scene.first.image
    largest, least = (builder.reduce(kind, image, [1, 2, 3], keepdims=True) for kind in ("Max", "Min"))
    deviation = builder.node("Mul", [builder.node("Sub", [largest, least]), builder.constant(sigma)])

    def sample(number: str) -> str:
        first = builder.reshape(builder.node("Mul", [number, builder.constant(_SHIFT, dtype=np.int64)]), 1)
        end = builder.node("Add", [first, builder.shape(numbers)])
        drawn = builder.node("Slice", [row, first, end, builder.shape(0)])
        planes = builder.reshape(drawn, 1, 3, scene.side, scene.side)
        return builder.node("Add", [image, builder.node("Mul", [planes, deviation])])

    return scene.magnitude(_mean_gradient(scene, samples, sample))


@method(
    "integrated-gradients",
    kind="pixels",
    title="Integrated gradients",
    rectified=False,
    layered=False,
    again=True,
    top=1,
    protocol="center",
)
def integrated_gradients(scene: Scene, *, steps: int = 32, baseline: str = "black") -> str:
    """The derivative along the line from a baseline B to the image, times the way: what each pixel adds to the score.

    IG = (X - B) * integral over t of dy_c/dX(B + t (X - B)), by the midpoint rule. Its sum is y_c(X) - y_c(B), the more
    exactly the more steps. The map is the magnitude of its sum over the three channels.

    Source:
        Sundararajan, Taly, Yan: Axiomatic Attribution for Deep Networks. ICML 2017, equations 1 and 3.

    Args:
        scene: The image.
        steps: How many points of the line are taken. One runs after the other.
        baseline: ``"black"``, or ``"mean"``: what the network's preprocessing makes 0.

    Example:
        >>> explainer = camrt.explain_graph(model, method="integrated-gradients")  # doctest: +SKIP
    """
    if steps < 1 or baseline not in ("black", "mean"):
        raise CamrtError(
            f"found integrated-gradients' steps {steps} and baseline {baseline!r}, expected at least 1, and black or "
            "mean"
        )
    builder, images = scene.builder, scene.images()
    empty = black(scene.preprocess, scene.crops) if baseline == "black" else np.zeros((1, 3, 1, 1), np.float32)
    begin = builder.constant(empty[None], "baseline")  # (1, crops or 1, 3, side or 1, side or 1)
    way = builder.node("Sub", [images, begin])

    def point(number: str) -> str:
        middle = builder.node("Add", [builder.node("Cast", [number], to=1), builder.constant(0.5)])
        part = builder.node("Mul", [middle, builder.constant(1 / steps)])
        reached = builder.node("Add", [begin, builder.node("Mul", [way, part])])
        return builder.reshape(reached, -1, 3, scene.side, scene.side)

    mean = _mean_gradient(scene, steps, point)
    added = builder.node("Mul", [mean, builder.unsqueeze(way, 2)])
    named = builder.node("Identity", [added], GRADIENT)
    return builder.node("Abs", [builder.reduce("Sum", named, [3])])


def _mean_gradient(scene: Scene, times: int, image: Callable[[str], str]) -> str:
    """The mean of the derivative over images: (N, crops, count, 3, side, side).

    Args:
        scene: The image that is explained.
        times: How many there are.
        image: Adds the nodes of one: its number (int64, from 0) -> (N * crops, 3, side, side).
    """
    builder = scene.builder
    each = [1, 1, scene.count, 1, 1, 1]
    zeros = builder.node("Mul", [builder.unsqueeze(scene.images(), 2), builder.constant(0.0)])
    start = builder.node("Expand", [zeros, builder.shape(*each)])
    total = scene.summed(times, lambda number: scene.pixels(scene.again(image(number))), start)
    return builder.node("Mul", [total, builder.constant(1 / times)])


def _enlarged(layer: Layer, maps: str) -> str:
    """Maps (N, crops, count, places) at the crops' size, nothing below 0: (N, crops, count, side, side)."""
    builder, grid, side = layer.builder, layer.grid, layer.scene.side
    planes = builder.reshape(maps, -1, len(layer.scene.crops), layer.scene.count, grid.height, grid.width)
    rows = builder.constant(enlargement(grid.height, side), "rows")
    columns = builder.constant(enlargement(grid.width, side).T, "columns")
    return builder.node("Relu", [builder.node("MatMul", [rows, builder.node("MatMul", [planes, columns])])])
