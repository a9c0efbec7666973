"""Maps of pixels: the scores' derivatives by the image, plain, guided, averaged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from camrt.errors import CamrtError
from camrt.graph.crops import black, enlargement
from camrt.graph.methods import find, method
from camrt.graph.methods.context import Layer, MethodContext
from camrt.graph.values import Value, total

_SEED = 2017  # of SmoothGrad's noise
_SHIFT = 7919  # numbers that a sample's noise is further on in the row of all; a prime: rows of pixels never line up


@method(
    "guided-backprop",
    kind="pixels",
    title="Guided backpropagation",
    rectified=False,
    layered=False,
    top=1,
)
def guided_backprop(context: MethodContext) -> Value:
    """The derivative with respect to the image, where only positive values pass back through a ReLU.

    At a ReLU with input f, the derivative R becomes (f > 0) (R > 0) R. The map is its largest magnitude over the
    three channels.

    Source:
        Springenberg, Dosovitskiy, Brox, Riedmiller: Striving for Simplicity: The All Convolutional Net. ICLR
        Workshops 2015, section 3.4 and figure 1.

    Example:
        >>> explainer = camrt.explain_graph(model, method="guided-backprop", target="cup")  # doctest: +SKIP
    """
    return context.magnitude(context.pixels(context.first, "guided"))


@method("guided-gradcam", kind="pixels", title="Guided Grad-CAM", rectified=False, top=1)
def guided_gradcam(context: MethodContext) -> Value:
    """Guided backpropagation times Grad-CAM.

    Grad-CAM's map is enlarged to the crop (bicubic, what falls below 0 cut off), and multiplied pixel by pixel.

    Source:
        Selvaraju et al.: Grad-CAM. ICCV 2017, section 3.2.

    Example:
        >>> explainer = camrt.explain_graph(model, method="guided-gradcam")  # doctest: +SKIP
    """
    maps = [_enlarged(layer, find("gradcam").maps(layer).relu()) for layer in context.layers]
    coarse = total(maps) / len(maps)
    return context.magnitude(context.pixels(context.first, "guided") * coarse.unsqueeze(2))


@method("input-gradient", kind="pixels", title="Gradient", rectified=False, layered=False, top=1)
def input_gradient(context: MethodContext) -> Value:
    """The derivative with respect to the image: M(i, j) = max over the channels of |dy_c/dX(i, j)|.

    Source:
        Simonyan, Vedaldi, Zisserman: Deep Inside Convolutional Networks: Visualising Image Classification
        Models and Saliency Maps. ICLR Workshops 2014, section 3.1.

    Example:
        >>> explainer = camrt.explain_graph(model, method="input-gradient")  # doctest: +SKIP
    """
    return context.magnitude(context.pixels(context.first))


@method(
    "smoothgrad",
    kind="pixels",
    title="SmoothGrad",
    rectified=False,
    layered=False,
    again=True,
    top=1,
)
def smoothgrad(context: MethodContext, *, samples: int = 25, sigma: float = 0.15) -> Value:
    """The mean of the derivative over noisy images: M = 1/n sum of dy_c/dX(X + noise), noise of deviation sigma.

    sigma is a fraction of the range of the crop, its largest minus its smallest value. The map is the largest magnitude
    of the mean over the three channels. The noise is part of the graph (one row of normal numbers, of which each sample
    reads another part), so that each run, each machine and each image of a batch gets the same.

    Source:
        Smilkov, Thorat, Kim, Viégas, Wattenberg: SmoothGrad: Removing Noise by Adding Noise. ICML Workshops
        2017, section 3.

    Args:
        context: The image.
        samples: The number of noisy images. One runs after the other.
        sigma: The noise's standard deviation, as a fraction of the range.

    Example:
        >>> explainer = camrt.explain_graph(model, method="smoothgrad", settings={"samples": 50})  # doctest: +SKIP
    """
    if samples < 1 or not 0 <= sigma < np.inf:
        raise CamrtError(f"found smoothgrad's samples {samples} and sigma {sigma}, expected at least 1, and 0 or more")
    numbers, side = 3 * context.side**2, context.side
    noise = np.random.default_rng(_SEED).standard_normal(numbers + _SHIFT * (samples - 1), np.float32)
    row = Value(context.builder, context.builder.constant(noise, "noise"), noise.shape)
    image = context.tensor(context.first.image)
    deviation = (image.max(1, 2, 3, keepdims=True) - image.min(1, 2, 3, keepdims=True)) * sigma

    def sample(number: Value) -> Value:
        first = (number * _SHIFT).reshape(1)
        drawn = row.op("Slice", first.name, (first + numbers).name, context.builder.shape(0), shape=(numbers,))
        return image + drawn.reshape(1, 3, side, side) * deviation

    return context.magnitude(_mean_gradient(context, samples, sample))


@method(
    "integrated-gradients",
    kind="pixels",
    title="Integrated gradients",
    rectified=False,
    layered=False,
    again=True,
    top=1,
)
def integrated_gradients(
    context: MethodContext, *, steps: int = 32, baseline: str = "black", values: str = "magnitude"
) -> Value:
    """The derivative along the line from a baseline B to the image X, times X - B: what each pixel adds to the score.

    IG = (X - B) * integral over t of dy_c/dX(B + t (X - B)), by the midpoint rule. With enough steps its
    sum is y_c(X) - y_c(B). The map is the magnitude of its sum over the three channels, or the sum with its sign.

    Source:
        Sundararajan, Taly, Yan: Axiomatic Attribution for Deep Networks. ICML 2017, equations 1 and 3.

    Args:
        context: The image.
        steps: The number of points on the line. One runs after the other.
        baseline: ``"black"``, or ``"mean"``: the mean of the network's preprocessing.
        values: ``"magnitude"``, or ``"signed"``: what counts against the class is negative.

    Example:
        >>> explainer = camrt.explain_graph(model, method="integrated-gradients")  # doctest: +SKIP
    """
    if values not in ("magnitude", "signed"):
        raise CamrtError(f"found integrated-gradients' values {values!r}, expected magnitude or signed")
    if steps < 1 or baseline not in ("black", "mean"):
        raise CamrtError(
            f"found integrated-gradients' steps {steps} and baseline {baseline!r}, expected at least 1, and black or "
            "mean"
        )
    images, side = context.images, context.side
    empty = black(context.preprocess, context.crops) if baseline == "black" else np.zeros((1, 3, 1, 1), np.float32)
    begin = empty[None]  # (1, crops or 1, 3, side or 1, side or 1)
    way = images - begin

    def point(number: Value) -> Value:
        part = (number.cast(TensorProto.FLOAT) + 0.5) * (1 / steps)
        return (begin + way * part).reshape(-1, 3, side, side)

    added = context.named(_mean_gradient(context, steps, point) * way)
    total = added.sum(2)
    return total if values == "signed" else abs(total)


@method("gradient-shap", kind="pixels", title="GradientSHAP", rectified=False, layered=False, again=True, top=1)
def gradient_shap(
    context: MethodContext,
    *,
    samples: int = 25,
    sigma: float = 0.09,
    baseline: str = "black",
    values: str = "magnitude",
) -> Value:
    """Integrated gradients at random points on the way, with noise on the image.

    M = 1/n sum of (X + e - B) dy_c/dX(B + t (X + e - B)), with t uniform in 0..1 and e normal noise of deviation sigma
    times the range of the crop. Both are drawn once and are part of the graph. With one baseline and no noise it is
    integrated gradients by random points. With many images as baselines, it is `expected-gradients`.

    Source:
        Lundberg, Lee: A Unified Approach to Interpreting Model Predictions. NeurIPS 2017; Erion, Janizek, Sturmfels,
        Lundberg, Lee: Improving Performance of Deep Learning Models with Axiomatic Attribution Priors and Expected
        Gradients. Nature Machine Intelligence 2021, equation 2.

    Args:
        context: The image.
        samples: The number of points. One runs after the other.
        sigma: The noise's standard deviation, as a fraction of the range.
        baseline: ``"black"``, or ``"mean"``: the mean of the network's preprocessing.
        values: ``"magnitude"``, or ``"signed"``: what counts against the class is negative.

    Example:
        >>> explainer = camrt.explain_graph(model, method="gradient-shap")  # doctest: +SKIP
    """
    if values not in ("magnitude", "signed") or baseline not in ("black", "mean"):
        raise CamrtError(
            f"found gradient-shap's values {values!r} and baseline {baseline!r}, expected magnitude or signed, and "
            "black or mean"
        )
    if samples < 1 or not 0 <= sigma < np.inf:
        raise CamrtError(
            f"found gradient-shap's samples {samples} and sigma {sigma}, expected at least 1, and 0 or more"
        )
    numbers, side, builder = 3 * context.side**2, context.side, context.builder
    chance = np.random.default_rng(_SEED)
    noise = chance.standard_normal(numbers + _SHIFT * (samples - 1), np.float32)
    parts = chance.random(samples, np.float32)
    row = Value(builder, builder.constant(noise, "noise"), noise.shape)
    part = Value(builder, builder.constant(parts, "parts"), parts.shape)
    images = context.images
    deviation = (images.max(2, 3, 4, keepdims=True) - images.min(2, 3, 4, keepdims=True)) * sigma
    begin = (black(context.preprocess, context.crops) if baseline == "black" else np.zeros((1, 3, 1, 1), np.float32))[
        None
    ]

    def sample(number: Value) -> Value:
        first = (number * _SHIFT).reshape(1)
        drawn = row.op("Slice", first.name, (first + numbers).name, builder.shape(0), shape=(numbers,))
        way = images + drawn.reshape(1, 1, 3, side, side) * deviation - begin
        point = begin + way * part.op("Gather", number, shape=(), axis=0)
        return context.pixels(context.again(point.reshape(-1, 3, side, side))) * way

    zeros = images.zeros(context.classes.lead)
    added = context.named(context.summed(samples, sample, zeros) * (1 / samples)).sum(2)
    return added if values == "signed" else abs(added)


@method(
    "expected-gradients", kind="pixels", title="Expected gradients", rectified=False, layered=False, again=True, top=1,
    background=True,
)  # fmt: skip
def expected_gradients(context: MethodContext, *, samples: int = 32, values: str = "magnitude") -> Value:
    """Integrated gradients from other images in place of one baseline: what sets the image apart from them.

    M = E over B and t of (X - B) dy_c/dX(B + t (X - B)), with t uniform in 0..1, and B one of the images of a
    background (background=, --background). They take turns, in an order that is drawn once; so is t. The background is
    part of the graph. By default it is 16 images of one color each.

    Source:
        Erion, Janizek, Sturmfels, Lundberg, Lee: Improving Performance of Deep Learning Models with Axiomatic
        Attribution Priors and Expected Gradients. Nature Machine Intelligence 2021, equation 2.

    Args:
        context: The image.
        samples: The number of points, one after the other; as many as there are images in the background, or more.
        values: ``"magnitude"``, or ``"signed"``: what counts against the class is negative.

    Example:
        >>> explainer = camrt.explain_graph(model, "expected-gradients", background=photographs)  # doctest: +SKIP
    """
    if values not in ("magnitude", "signed") or samples < 1:
        raise CamrtError(
            f"found expected-gradients' samples {samples} and values {values!r}, expected at least 1, and magnitude or "
            "signed"
        )
    builder, images, side, count = context.builder, context.images, context.side, context.background_count
    chance = np.random.default_rng(_SEED)
    turns, parts = np.resize(chance.permutation(count), samples), chance.random(samples, np.float32)
    turn = Value(builder, builder.constant(turns, "turns", np.int64), turns.shape, TensorProto.INT64)
    part = Value(builder, builder.constant(parts, "parts"), parts.shape)
    background = context.background

    def sample(number: Value) -> Value:
        begin = background.op("Gather", turn.op("Gather", number, shape=(), axis=0), shape=images.shape[1:], axis=0)
        way = images - begin
        point = begin + way * part.op("Gather", number, shape=(), axis=0)
        return context.pixels(context.again(point.reshape(-1, 3, side, side))) * way

    zeros = images.zeros(context.classes.lead)
    added = context.named(context.summed(samples, sample, zeros) * (1 / samples)).sum(2)
    return added if values == "signed" else abs(added)


def _mean_gradient(context: MethodContext, times: int, image: Callable[[Value], Value]) -> Value:
    """The mean of the derivative over images: (N, crops, 3, side, side).

    Args:
        context: The image that is explained.
        times: How many there are.
        image: Adds the nodes of one: its number (int64, from 0) -> (N * crops, 3, side, side).
    """
    zeros = context.images.zeros(context.classes.lead)
    return context.summed(times, lambda number: context.pixels(context.again(image(number))), zeros) * (1 / times)


def _enlarged(layer: Layer, maps: Value) -> Value:
    """Maps (N, crops, positions) at the crops' size, nothing below 0: (N, crops, side, side)."""
    grid, context = layer.grid, layer.context
    planes = maps.reshape(-1, len(context.crops), grid.height, grid.width)
    return (
        planes.along(3, enlargement(grid.width, context.side)).along(2, enlargement(grid.height, context.side)).relu()
    )
