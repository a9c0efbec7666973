"""The cascading randomization test: maps of a trained network must change when its weights are randomized."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from camrt.blackbox.scorer import Scorer
from camrt.errors import CamrtError, CamrtWarning
from camrt.evaluate.network import load_classifier
from camrt.graph.opening import open_model
from camrt.graph.scores import FLOATS, find_scores
from camrt.graph.view import GraphView, array_of
from camrt.preprocess import WHOLE

if TYPE_CHECKING:
    from camrt.engines.engine import Providers
    from camrt.images import ImageLike
    from camrt.preprocess import Preprocess

LIMIT = 0.5  # of the rank correlation with the map of the trained network, once all weights are random
STAGES = 8
_SIDE = 1024  # pixels of the images that are read
_CELLS = 14  # of the histograms of gradients, in each direction

OnError = Literal["warn", "raise"] | Callable[[str, CamrtError], object]


@dataclass(frozen=True)
class Stage:
    """How alike maps are to those of the trained network, once some layers are random. Means over the images.

    Attributes:
        layers: The number of layers that are random.
        layer: The name of the lowest of them: its node's, or its output's.
        ssim: Structural similarity of the maps, each scaled to 0..1.
        rank: Spearman's rank correlation of the maps.
        hog: Pearson's correlation of their histograms of oriented gradients.
    """

    layers: int
    layer: str
    ssim: float
    rank: float
    hog: float


@dataclass(frozen=True, eq=False)
class Checked:
    """A method under the test.

    Attributes:
        method: The method.
        stages: From the top layer alone to all layers.
        limit: The rank correlation from which on a map counts as unchanged.
        maps: Of the first image: (1 + stages, S, S) float32, the trained network's first.
    """

    method: str
    stages: tuple[Stage, ...]
    limit: float = LIMIT
    maps: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32), repr=False)

    @property
    def changes(self) -> bool:
        """Whether the maps depend on the weights: whether they differ once all layers are random."""
        return abs(self.stages[-1].rank) < self.limit

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON, without the maps."""
        return {"method": self.method, "changes": self.changes, "stages": [vars(stage) for stage in self.stages]}


def sanity(
    model: str | os.PathLike[str] | onnx.ModelProto,
    images: Iterable[ImageLike],
    methods: Sequence[str],
    *,
    stages: int = STAGES,
    seed: int = 0,
    limit: float = LIMIT,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    protocol: str = WHOLE,
    preprocess: Preprocess | str | None = None,
    weights: str | os.PathLike[str] | None = None,
    providers: Providers | None = None,
    precision: str | None = None,
    on_error: OnError = "warn",
    progress: Callable[[int], object] = lambda count: None,
) -> list[Checked]:
    """Randomize a network from its top layer down, and compare the maps with those of the trained network.

    Adebayo et al.: Sanity Checks for Saliency Maps, NeurIPS 2018, section 3.1. A method whose maps stay as they are
    does not explain what the network has learned. The class that is explained is the trained network's best one.
    Weights of a layer are drawn from a normal distribution with their own mean and standard deviation; biases and other
    vectors are shuffled, so that variances stay positive.

    Args:
        model: A classifier: a name, a path, or a model.
        images: As for a call of `camrt.Explainer`.
        methods: The methods.
        stages: The number of networks that are compared, at most: the layers that become random are spread evenly.
        seed: The seed of the weights.
        limit: The rank correlation from which on a map counts as unchanged.
        settings: Method -> its settings.
        protocol: What the network sees of an image.
        preprocess: What the network expects of an image, where the model does not say it.
        weights: The weights of a named model, in place of the cache and the download.
        providers: Where it runs, as for `camrt.session.Session`.
        precision: What it computes in, likewise.
        on_error: What to do about an image that cannot be read, or a method that cannot explain the model, as for
            `camrt.Explainer.map`.
        progress: Called with 1 for each method and stage that is done, and for a method that is left out.

    Returns:
        What was found for each method.

    Raises:
        CamrtError: The network cannot be loaded, has no weights, no image can be read, or scikit-image is missing.
    """
    _check_scikit_image()
    if isinstance(methods, str) or not methods or stages < 1 or not 0 < limit <= 1:
        raise CamrtError(
            f"found methods={methods!r}, stages={stages}, limit={limit}, expected a list of names, at least 1, and a "
            "limit within 0 to 1"
        )
    trained = _loaded(model, weights)
    common: dict[str, Any] = {"preprocess": preprocess, "providers": providers, "precision": precision}
    scorer = Scorer(trained, protocol, **common)
    subjects = list(_subjects(images, scorer, on_error))
    if not subjects:
        raise CamrtError("found no image that can be read, expected at least one")
    networks = cascade(trained, stages, seed)
    names = list(dict.fromkeys(methods))
    maps: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    lowest: list[tuple[int, str]] = []
    for count, layer, network in networks:
        lowest.append((count, layer))
        for name in list(maps):
            try:
                maps[name].append(_maps(network, name, (settings or {}).get(name), protocol, common, subjects))
            except CamrtError as error:
                del maps[name]
                _report(name, error, on_error)
            progress(1)
    return [_checked(name, found, lowest[1:], limit) for name, found in maps.items()]


def unchanged(found: Iterable[Checked]) -> list[str]:
    """Return the methods whose maps do not change."""
    return [each.method for each in found if not each.changes]


def cascade(model: onnx.ModelProto, stages: int, seed: int) -> Iterator[tuple[int, str, onnx.ModelProto]]:
    """Randomize the layers of a network from the top down.

    Args:
        model: The network.
        stages: The number of networks after the first, at most.
        seed: The seed of the weights.

    Yields:
        How many layers are random, the name of the lowest of them, and the network: first the network as it is, last
        the one in which all layers are random. A network is made when it is asked for.

    Raises:
        CamrtError: No layer has weights.
    """
    view = open_model(model)
    layers = _layers(view)
    if not layers:
        raise CamrtError("found no layer with weights, expected some to randomize")
    yield 0, "", view.model
    draw = np.random.default_rng(seed)
    current = onnx.ModelProto()
    current.CopyFrom(view.model)
    steps = min(stages, len(layers))
    stops = {round(n * len(layers) / steps) for n in range(1, steps + 1)}
    tensors = _stored(current.graph)
    for position, (layer, names) in enumerate(layers, 1):
        for name in names:
            tensor = tensors[name]
            tensor.CopyFrom(numpy_helper.from_array(_random(array_of(tensor, name), draw), tensor.name))
        if position in stops:
            yield position, layer, current


def _layers(view: GraphView) -> list[tuple[str, list[str]]]:
    """The layers with weights, the top one first, with the tensors of each: a kernel, and what goes with it."""
    stored = _stored(view.model.graph)
    seen: set[str] = set()
    layers = []
    for node in reversed(view.needed_for([find_scores(view).output])):
        found = [
            name
            for name in dict.fromkeys(_sources(view, stored, node.input))
            if name not in seen and stored[name].data_type in FLOATS and np.prod(stored[name].dims) > 1
        ]
        computes = not all(not name or name in stored or view.is_constant(name) for name in node.input)
        if computes and found:
            seen.update(found)
            layers.append((node.name or node.output[0], found))
    # Vectors alone (a normalization's) go with the layer above.
    merged: list[tuple[str, list[str]]] = []
    for layer, names in layers:
        if merged and not any(len(stored[name].dims) > 1 for name in names):
            merged[-1][1].extend(names)
        else:
            merged.append((layer, names))
    return merged


def _stored(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """The initializers and Constants of a graph."""
    constants = [node for node in graph.node if node.op_type == "Constant"]
    values = [(node.output[0], each.t) for node in constants for each in node.attribute if each.name == "value"]
    return {**{tensor.name: tensor for tensor in graph.initializer}, **dict(values)}


def _sources(view: GraphView, stored: Mapping[str, Any], inputs: Iterable[str]) -> Iterator[str]:
    """The stored tensors that inputs are, or are computed from without the image."""
    for name in inputs:
        if name in stored:
            yield name
        elif name in view.producers and view.is_constant(name):
            yield from _sources(view, stored, view.producers[name].input)


def _random(values: NDArray[Any], draw: np.random.Generator) -> NDArray[Any]:
    """Random values of the same mean and standard deviation; of a vector the same values in another order."""
    if values.ndim < 2:
        return draw.permutation(values)
    return draw.normal(float(values.mean()), float(values.std()), values.shape).astype(values.dtype)


# -------------------------------------------------------------------------------------------------------- similarities


def similarities(found: NDArray[Any], expected: NDArray[Any]) -> tuple[float, float, float]:
    """Compare two maps as Adebayo et al. do.

    Args:
        found: (S, S).
        expected: (S, S).

    Returns:
        SSIM and Spearman's rank correlation, and Pearson's correlation of the histograms of gradients; 0 in place of a
        correlation with a map that is constant.
    """
    from scipy.stats import spearmanr
    from skimage.feature import hog
    from skimage.metrics import structural_similarity

    one, other = (_scaled(each) for each in (found, expected))
    cell = max(2, len(one) // _CELLS)
    histograms = [hog(each, pixels_per_cell=(cell, cell), cells_per_block=(1, 1)) for each in (one, other)]
    window = min(7, len(one) - (len(one) + 1) % 2)
    ssim = float(structural_similarity(one, other, data_range=1.0, win_size=window))
    is_flat = one.min() == one.max() or other.min() == other.max()
    rank = 0.0 if is_flat else float(spearmanr(one.ravel(), other.ravel()).statistic)
    gradients = 0.0 if any(each.std() == 0 for each in histograms) else float(np.corrcoef(*histograms)[0, 1])
    return ssim, rank, gradients


def _scaled(heatmap: NDArray[Any]) -> NDArray[np.float64]:
    values = np.nan_to_num(heatmap.astype(np.float64))
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _checked(
    method: str, maps: Sequence[NDArray[np.float32]], layers: Sequence[tuple[int, str]], limit: float
) -> Checked:
    stages = []
    for (count, layer), found in zip(layers, maps[1:], strict=True):
        means = np.mean([similarities(*pair) for pair in zip(found, maps[0], strict=True)], axis=0).tolist()
        stages.append(Stage(count, layer, *means))
    return Checked(method, tuple(stages), limit, np.stack([each[0] for each in maps]))


# ------------------------------------------------------------------------------------------------------------ the maps


def _subjects(images: Iterable[ImageLike], scorer: Scorer, on_error: OnError) -> Iterator[tuple[ImageLike, int]]:
    """Each image that can be read, and its best class."""
    from camrt import images as reading

    for image in images:
        name = reading.name_of(image)
        try:
            square = reading.load(image, scorer.size, max_side=_SIDE).square
            yield image, int(scorer(scorer.prepare(square)[None])[0].argmax())
        except CamrtError as error:
            _report(name, error.in_file(name), on_error)


def _maps(
    network: onnx.ModelProto, method: str, settings: Mapping[str, Any] | None, protocol: str, common: Mapping[str, Any],
    subjects: Sequence[tuple[ImageLike, int]],
) -> NDArray[np.float32]:  # fmt: skip
    """The map of each image: (images, S, S)."""
    from camrt.explainer import Explainer

    explainer = Explainer(network, method, protocol, 1, target="input", settings=settings, max_side=_SIDE, **common)
    return np.stack([explainer(image, target).heatmaps[0] for image, target in subjects])


def _loaded(model: str | os.PathLike[str] | onnx.ModelProto, weights: str | os.PathLike[str] | None) -> onnx.ModelProto:
    if isinstance(model, onnx.ModelProto):
        return model
    return load_classifier(os.fspath(model), None if weights is None else Path(weights))


def _check_scikit_image() -> None:
    try:
        import skimage  # noqa: F401
    except ImportError:
        raise CamrtError("the test needs scikit-image: pip install 'camrt[blackbox]'") from None


def _report(what: str, error: CamrtError, on_error: OnError) -> None:
    if on_error == "raise":
        raise error
    if on_error == "warn":
        warnings.warn(f"left out: {what}: {error}", CamrtWarning, stacklevel=4)
    elif callable(on_error):
        on_error(what, error)
