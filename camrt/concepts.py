"""Deep feature factorization: the concepts that a network's features are made of, where they are, and what they say.

The features of all images at all positions, a matrix of channels x positions, are factorized without negative numbers
into a few concepts, each a vector of channels, and their strength at each position (Collins, Achanta, Süsstrunk: Deep
Feature Factorization for Concept Discovery, ECCV 2018). Concepts are shared: the same one is found in several images.
"""

from __future__ import annotations

import colorsys
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from camrt import captions, images, loading
from camrt.errors import CamrtError
from camrt.graph.layers import FeatureMap, feature_map_of
from camrt.graph.view import GraphView, labels_of
from camrt.session import Session
from converters import metadata

if TYPE_CHECKING:
    from camrt.engines.engine import Providers
    from camrt.images import ImageLike
    from camrt.preprocess import Preprocess

Floats = NDArray[np.float32]
_METHOD = "eigencam"  # of the graph that the features are taken from
_STEPS = 200  # of the factorization, at most
_IMAGE_WEIGHT = 0.3
_TEXT = 512  # pixels: the text of the legend is that of a picture of that size
_LEAST = 1e-7


@dataclass(frozen=True, eq=False)
class Concepts:
    """What a factorization found.

    Attributes:
        sources: What the images are called.
        images: Of each image the square that the network sees: (S, S, 3) uint8 RGB.
        maps: (B, count, h, w) float32: how strong each concept is at each position of each image, from 0.
        vectors: (count, channels) float32: the features of each concept.
        scores: (count, K) float32: the scores of the network where it sees the concept alone, everywhere.
        labels: The names of the classes, or None.
        layer: The tensor of the features.
        error: The Frobenius norm of what the concepts leave of the features, over that of the features: 0..1.
    """

    sources: tuple[str, ...]
    images: tuple[NDArray[np.uint8], ...]
    maps: Floats
    vectors: Floats
    scores: Floats
    labels: tuple[str, ...] | None
    layer: str
    error: float

    def best(self, concept: int, top: int = 2) -> list[tuple[str, float]]:
        """Return the classes that a concept speaks for, the best first, with their scores.

        Args:
            concept: Its number.
            top: How many.
        """
        chosen = np.argsort(-self.scores[concept], kind="stable")[:top].tolist()
        return [(str(k) if self.labels is None else self.labels[k], float(self.scores[concept, k])) for k in chosen]

    def picture(self, image: int = 0, *, top: int = 2) -> NDArray[np.uint8]:
        """Draw an image, its concepts in colors, and a legend of what they say.

        A pixel has the color of its strongest concept, each brought to 0..1 over the image, and is as bright as that is
        strong.

        Args:
            image: The number of the image.
            top: How many classes the legend names of each concept.

        Returns:
            (height, width, 3) uint8 RGB.
        """
        picture = self.images[image]
        size = len(picture)
        large = np.stack([images.resize(one, (size, size)) for one in self.maps[image]]).clip(0)
        large -= large.min((1, 2), keepdims=True)
        large /= large.max((1, 2), keepdims=True) + _LEAST
        strongest = large.argmax(0)
        colors = concept_colors(len(self.maps[0]))
        drawn = colors[strongest] * large.max(0)[..., None]
        mixed = np.rint(_IMAGE_WEIGHT * picture + (1 - _IMAGE_WEIGHT) * drawn).astype(np.uint8)
        above = np.hstack([picture, mixed])
        lines = [self._line(number, above.shape[1], top, colors[number]) for number in range(len(colors))]
        return np.vstack([above, *lines])

    def as_dict(self, top: int = 2) -> dict[str, Any]:
        """Return what was found, as JSON can hold it, without maps and vectors.

        Args:
            top: How many classes are listed of each concept.
        """
        share = self.maps.sum((0, 2, 3))
        share = share / max(float(share.sum()), _LEAST)
        return {
            "layer": self.layer,
            "error": self.error,
            "images": list(self.sources),
            "concepts": [
                {
                    "share": float(share[number]),
                    "classes": [{"label": a, "score": b} for a, b in self.best(number, top)],
                }
                for number in range(len(self.vectors))
            ],
        }

    def _line(self, number: int, width: int, top: int, color: NDArray[np.float64]) -> NDArray[np.uint8]:
        """A line of the legend."""
        words = ", ".join(f"{label} {score:.2f}" for label, score in self.best(number, top))
        height = len(captions.caption(width, words, side=_TEXT))
        border = height // 6
        patch = np.full((height, height, 3), 255, np.uint8)
        patch[border:-border, border:] = np.rint(color).astype(np.uint8)
        return np.hstack([patch, captions.caption(width - height, words, side=_TEXT)])


def concept_colors(count: int) -> NDArray[np.float64]:
    """The color of each concept: (count, 3), 0..255, evenly around the circle of hues."""
    return 255 * np.array([colorsys.hsv_to_rgb(number / count, 0.9, 1) for number in range(count)])


def find_concepts(
    model: str | os.PathLike[str] | onnx.ModelProto,
    photographs: Sequence[ImageLike],
    count: int = 5,
    *,
    layer: str | None = None,
    protocol: str | None = None,
    preprocess: Preprocess | str | None = None,
    labels: Sequence[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    providers: Providers | None = None,
    seed: int = 0,
) -> Concepts:
    """Factorize the features of images into concepts.

    Args:
        model: A classifier, as for `camrt.Explainer`.
        photographs: One image or more, as for `camrt.Explainer`.
        count: The number of concepts.
        layer: The features; by default the last with positions. What is least in a channel counts as 0.
        protocol: ``"whole"`` or ``"center"``: what the network sees of an image.
        preprocess: How the network wants its images, where the model does not say it.
        labels: The names of the classes, where the model does not say them.
        weights: The weights of a named model.
        providers: Where the network runs, as for `camrt.session.Session`.
        seed: Of the factorization's beginning.

    Raises:
        CamrtError: scikit-learn is not installed, an argument or an image is not what is expected, or the model cannot
            be explained.
        converters.ConversionError: There is no model of that name, or its weights cannot be had.

    Example:
        >>> concepts = find_concepts("resnet50", ["cat.jpg", "dog.jpg"])  # doctest: +SKIP
        >>> concepts.best(0)  # doctest: +SKIP
        [('tabby', 0.61), ('tiger cat', 0.22)]
    """
    if protocol not in (None, "whole", "center"):
        raise CamrtError(f"found the protocol {protocol!r}, expected whole or center: concepts are of one crop")
    if not photographs or count < 2:
        raise CamrtError(f"found {len(photographs)} images and {count} concepts, expected 1 or more, and 2 or more")
    request = loading.Request(
        _METHOD, protocol or "whole", layer=layer, preprocess=preprocess, labels=labels,
        weights=None if weights is None else Path(weights),
    )  # fmt: skip
    graph = loading.explainer_graph(model, request)
    explainer = graph if isinstance(graph, onnx.ModelProto) else onnx.load(graph)
    stated = metadata.explainer_of(metadata.of_model(explainer)) or {}
    if stated.get("method") != _METHOD:
        raise CamrtError("is an explainer already, expected the classifier that it was made of")
    grid = feature_map_of(GraphView(explainer), stated["layer"][0])
    squares = np.stack([images.load(one, stated["size"], max_side=stated["size"]).square for one in photographs])
    session = Session(explainer, providers=providers, outputs=[grid.tensor])
    features = np.concatenate([session.run({"image": one[None]})[grid.tensor] for one in squares])
    vectors, maps, error = factorized(_planes(grid, features.astype(np.float32)), count, seed)
    scores = _scores_of(explainer, grid, features[:1], squares[:1], vectors, providers)
    names = labels_of(metadata.of_model(explainer))
    return Concepts(
        tuple(images.name_of(one) for one in photographs), tuple(squares), maps, vectors, scores,
        None if names is None else tuple(names), grid.tensor, error,
    )  # fmt: skip


def factorized(features: Floats, count: int, seed: int = 0) -> tuple[Floats, Floats, float]:
    """Factorize features into concepts, as in pytorch-grad-cam: the least value of each channel is taken for 0.

    Args:
        features: (B, channels, h, w).
        count: The number of concepts.
        seed: Of where the factorization begins.

    Returns:
        The concepts (count, channels), their strengths (B, count, h, w), and the part of the features that is left.

    Raises:
        CamrtError: scikit-learn is not installed; there are more concepts than channels or positions, or the features
            are not finite.
    """
    try:
        from sklearn.decomposition import NMF
        from sklearn.exceptions import ConvergenceWarning
    except ImportError:
        raise CamrtError("concepts need scikit-learn: pip install 'camrt[concepts]'") from None
    number, channels, height, width = features.shape
    matrix = features.transpose(1, 0, 2, 3).reshape(channels, -1)
    if count > min(matrix.shape) or not np.isfinite(matrix).all():
        raise CamrtError(
            f"found {count} concepts of {channels} channels at {matrix.shape[1]} positions, expected no more concepts "
            "than either, and features that are finite"
        )
    least = matrix.min(1, keepdims=True)
    above = matrix - least
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the concepts of many steps are near enough
        found = NMF(count, init="random", random_state=seed, max_iter=_STEPS)
        columns = found.fit_transform(above)
    strengths = found.components_.reshape(count, number, height, width).transpose(1, 0, 2, 3)
    size = float(np.linalg.norm(above))
    error = float(np.linalg.norm(above - columns @ found.components_)) / max(size, _LEAST)
    return (columns + least).T.astype(np.float32), strengths.astype(np.float32), error


def _planes(grid: FeatureMap, features: Floats) -> Floats:
    """Features of any layout as (B, channels, h, w)."""
    if grid.num_prefix_tokens:
        axis = 3 - grid.channels_axis
        features = features.take(range(grid.num_prefix_tokens, features.shape[axis]), axis)
    return np.moveaxis(features, grid.channels_axis, 1).reshape(len(features), grid.channels, grid.height, grid.width)


def _scores_of(
    explainer: onnx.ModelProto, grid: FeatureMap, features: NDArray[Any], squares: NDArray[np.uint8], vectors: Floats,
    providers: Providers | None,
) -> Floats:  # fmt: skip
    """The scores where each concept is at all positions; tokens that are not of an image are those of the first one."""
    session = Session(_fed(explainer, grid.tensor, features.dtype), providers=providers)
    everywhere = np.ones((1, 1, grid.positions), np.float32)
    filled = []
    for vector in vectors:
        mask = grid.mask(vector[None, :, None] * everywhere)  # 1 for tokens that are not of the image
        if grid.num_prefix_tokens:
            axis = 3 - grid.channels_axis
            before = features.take(range(grid.num_prefix_tokens), axis)
            mask = np.concatenate([before, mask.take(range(grid.num_prefix_tokens, mask.shape[axis]), axis)], axis)
        filled.append(session.run({"image": squares, grid.tensor: mask.astype(features.dtype)})["scores"])
    return np.concatenate(filled)


def _fed(explainer: onnx.ModelProto, layer: str, dtype: np.dtype[Any]) -> onnx.ModelProto:
    """The classifier inside an explainer, where a layer is an input: what stands behind it reads that."""
    result = onnx.ModelProto()
    result.CopyFrom(explainer)
    graph = result.graph
    for node in graph.node:
        node.output[:] = [f"{name}/computed" if name == layer else name for name in node.output]
    graph.input.append(onnx.helper.make_tensor_value_info(layer, onnx.helper.np_dtype_to_tensor_dtype(dtype), None))
    kept = GraphView(result).needed_for(["scores"])
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(nodes)
    scores = [value for value in graph.output if value.name == "scores"]
    del graph.output[:]
    graph.output.extend(scores)
    del result.metadata_props[:]
    return result
