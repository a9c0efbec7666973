"""A classifier -> an explainer: one ONNX graph from image to scores and heatmaps."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from camrt.boxes import BOX, is_box
from camrt.builder import PREFIX, Builder
from camrt.errors import CamrtError
from camrt.graph.batch import with_fixed_resizes, with_free_batch
from camrt.graph.choice import Choice, default_method
from camrt.graph.crops import merge, paste
from camrt.graph.detections import Candidates, Layout, choose, layout_of, sized, with_candidates
from camrt.graph.gradient import MissingRuleError
from camrt.graph.head import Head, find_head
from camrt.graph.inputs import of_side, with_image_input
from camrt.graph.layers import (
    FeatureMap,
    as_read,
    deepest_features,
    dependents,
    detection_features,
    feature_map_of,
    has_positions,
    last_features,
    later_features,
    named_tensor,
)
from camrt.graph.methods import BLACK_BOX, METHODS, Method, find
from camrt.graph.methods.context import Layer, MethodContext, Pass
from camrt.graph.opening import ModelLike, check_model, naming, open_model
from camrt.graph.quantized import is_int8
from camrt.graph.rewrite import repeated, tensor_names
from camrt.graph.scores import FLOATS, Scores, find_scores, find_segments
from camrt.graph.smoothing import AUGMENT, EIGEN, VARIANTS, add_mean, add_variants, smoothing_of, variants_of
from camrt.graph.targets import SEGMENT, SUM, Target, Targets, label_map, of_boxes, of_segment, targets_of
from camrt.graph.unrolling import unrolled
from camrt.graph.values import Value
from camrt.graph.view import GraphView, captured, control_flow, labels_of, metadata_of, needed_for, shape_of
from camrt.preprocess import WHOLE, Crop, Preprocess, add_network_input, crops_of, preprocess_of
from converters import metadata as keys

IMAGE, TARGET, SCORES, CLASSES, HEATMAPS = "image", "target", "scores", "classes", "heatmaps"
DETECTIONS = "detections"  # an output of detectors' explainers: the boxes of what is explained
MAPS = "camrt/maps"  # inside the graph: the map of each crop and class before enlarging, (N, crops, top, h, w)
AGAIN = "camrt/again"  # what the names of the network's second run begin with
RESERVED = (
    IMAGE,
    TARGET,
    SCORES,
    CLASSES,
    HEATMAPS,
    BOX,
    DETECTIONS,
    f"{PREFIX}/",
)  # names that the network's own tensors must not have
Background: TypeAlias = NDArray[np.uint8] | Callable[[int], NDArray[np.uint8]]
_SEED, _COLORS = 2021, 16  # of the background where none is given
_MOST_OTHERS = 256  # images of a background, which the file holds
_log = logging.getLogger(__name__)


def explain_graph(
    model: ModelLike,
    method: str | None = None,
    protocol: str | None = None,
    top: int | None = None,
    features: str | None = None,
    classifier: str | None = None,
    *,
    target: Target | None = None,
    layer: str | Sequence[str] | None = None,
    scores: str | None = None,
    settings: Mapping[str, Any] | None = None,
    smooth: str | Sequence[str] | None = None,
    background: Background | None = None,
    labels: Sequence[str] | None = None,
    preprocess: Preprocess | str | None = None,
    detections: str | None = None,
) -> onnx.ModelProto:
    """Turn a classifier into an explainer: one graph from the image to scores and heatmaps.

    Args:
        model: A classifier or the path of one: one image input (N, 3, h, w) float32, scores (N, K). Not changed.
        method: One of `camrt.graph.methods.METHODS`; ``"cam"`` needs global average pooling and one linear layer at the
            end, the others any classifier. By default ``"cam"`` where the network ends so, else ``"gradcam"``: which
            one, and why, is logged and stands in the metadata.
        protocol: What the network sees of an image. ``"whole"``: the image, resized to the network's input, in one
            pass; ``"ten-crop"``, as the original: the scores of ten crops are averaged, and their maps added;
            ``"center"``: one crop; ``"full"``: the whole image and its mirror image at ``preprocess.size``, for
            networks that take images of any size. By default, what the model's metadata state, else ``"whole"``.
            Methods that take many passes see the whole image where the metadata state ten crops.
        top: How many classes to explain, the best first. By default 5; 1 for eigencam and for the methods of pixels,
            which run back through the whole network for each class.
        features: Another name for ``layer``.
        classifier: The linear layer behind the features, for ``"cam"``; by default, the one in the model's metadata, or
            the one that is found.
        target: What is explained in place of the best classes: a class, by number or name, or several; ``"input"``: the
            classes come with the images, as the graph's input ``target`` (N, top) int64; ``"any"``: likewise, but a
            negative number stands for the best class of that place: -1 everywhere explains the best classes; ``"sum"``:
            the sum of all values of ``scores`` for an image. Of a network for segmentation ``"segment:CLASS"``: the sum
            of the class's logits over its mask, where they are the largest; ``"segment"``: the classes with the largest
            masks. The graph's scores are then the parts of the image that the classes cover. Of a detector the score
            of a detection: ``"box"`` comes with the images, as the graph's inputs ``box`` (N, top, 4) and ``target``
            (docs/detectors.md); ``"box:best"``, ``"box:2:dog"``, ``"box:LEFT,TOP,RIGHT,BOTTOM"`` are likewise inputs,
            and what is explained where nothing comes. The best detections are a detector's default.
        layer: The features that the maps are made of: a tensor or a node; by default, the last ones with positions,
            which are logged. With several layers, each map is scaled to 0..1, and the mean of the maps is taken, as in
            pytorch-grad-cam.
        scores: The tensor that is explained; by default, the last output with one row of scores for each image. The
            derivative is taken before a Softmax, Sigmoid or LogSoftmax at its end. A tensor that is named here becomes
            the output ``scores`` as it is; by default, logits go through a Softmax.
        settings: The settings of the method: see its function in `camrt.graph.methods`.
        smooth: ``"augment"``, ``"eigen"`` or both: how maps are smoothed (`camrt.graph.smoothing`).
        background: Of expected-gradients, the images that each image is compared with: (B, S, S, 3) uint8 RGB, or a
            function of S that gives them.
        labels: The names of the classes, written into the metadata; by default, those of the model's metadata.
        preprocess: How images are prepared for the network; by default, as the model's metadata say.
        detections: How a detector says what it finds, where its metadata and outputs do not tell:
            `camrt.graph.detections.layout_of`.

    Returns:
        A model with the input ``image`` (N, S, S, 3) uint8 RGB (S is ``preprocess.size``; of ``"whole"``,
        ``preprocess.crop``) and the outputs ``scores`` (N, K) float32 probabilities,
        ``classes`` (N, top) int64 and ``heatmaps`` (N, top, S, S) float32, not normalized. It has standard operators
        only, and N is free.

    Raises:
        CamrtError: The model is not valid; it has no scores, features or head of a known form, no preprocessing in its
            metadata, or an operator that cannot be differentiated; or an argument is wrong. The text says what to do.

    Example:
        >>> explainer = camrt.explain_graph(onnx.load("resnet50.onnx"), "gradcam", "center", top=3,
        ...                                 preprocess="torchvision")  # doctest: +SKIP
    """
    entry, smoothing = None if method is None else find(method), smoothing_of(smooth)
    if entry is not None:
        entry.checked(settings or {})  # before the model is read
    if background is not None and (entry is None or not entry.background):
        takers = ", ".join(name for name in METHODS if find(name).background)
        raise CamrtError(f"found a background with the method {method}, which compares with no images: {takers} does")
    is_segment, target = of_segment(target)
    with naming(model):
        opened = open_model(model, RESERVED)
        renamed, metadata = opened.renamed, opened.metadata
        if keys.EXPLAINER in metadata:
            raise CamrtError("the model is an explainer already, expected a classifier")
        # Both methods that may be the default see what they see of an image in the same way.
        protocol = protocol or _default_protocol(metadata.get(keys.PROTOCOL), entry or find("cam"))
        wanted = of_side(preprocess_of(preprocess, metadata), preprocess, opened).seeing(protocol)
        side = wanted.size if protocol == "full" else wanted.crop
        network = with_image_input(opened, wanted)
        opened = unrolled(network, (side, side), recurrent=entry is not None and entry.gradients)
        layout = None
        if not is_segment:
            target, scores, layout = _question(opened, entry, target, scores, detections, labels, side)
        elif detections is not None:
            raise CamrtError(f"found the detections {detections!r} and a segment, expected a box, as box:best")
        asked = _Asked(
            layers=tuple(
                as_read(opened, named_tensor(opened, renamed.get(each, each))) for each in _names_of(layer, features)
            ),
            features=_still_there(opened, renamed.get(metadata.get(keys.FEATURES, ""), metadata.get(keys.FEATURES))),
            classifier=renamed.get(classifier or "", classifier or metadata.get(keys.CLASSIFIER)),
            scores=renamed.get(scores or "", scores),
            is_sum=target == SUM,
            is_segment=is_segment,
            is_box=layout is not None,
        )
        choice = None
        if entry is None:
            choice = _chosen(opened, asked, is_named=classifier is not None)
            entry = find(choice.method)
            if entry.gradients:
                opened = unrolled(network, (side, side))
        chosen = entry.checked(settings or {})
        if layout is not None:
            _check_view(protocol, wanted, smoothing)
            opened, candidates = with_candidates(sized(opened, side), layout, side)
            seen = _look_at(candidates, entry)
            metadata = _labelled(metadata, labels, seen.scores, candidates.classes, asked)
            targets = of_boxes(target, top)
        else:
            seen = _look(opened, entry, asked)
            metadata = _labelled(metadata, labels, seen.scores, seen.scores.classes, asked)
            targets = targets_of(target, top, entry.top, labels_of(metadata), None if target == SUM else seen.scores)
            targets = replace(targets, is_segment=is_segment)
        properties = {
            "method": entry.name,
            "protocol": protocol,
            "top": targets.count,
            "size": wanted.size,
            "resize": "square",
        }
        others = _background(entry, background, wanted.size)
        result, found = _explainer(opened, entry, chosen, asked, seen, targets, wanted, protocol, smoothing, others)
        properties |= {"smooth": list(smoothing)} if smoothing else {}
        properties |= {"background": len(others)} if background is not None and others is not None else {}
        properties |= _properties(entry, seen, targets, found, chosen)
        if choice is not None:
            properties["reason"] = choice.reason
        if is_int8(opened.model.graph):
            properties["precision"] = "int8"
        for key in (keys.MEAN_IMAGE, keys.DETECTIONS):  # which are in the graph now
            metadata.pop(key, None)
        metadata |= {keys.PREPROCESS: wanted.as_json(), keys.EXPLAINER: keys.explainer_text(properties)}
        helper.set_model_props(result, metadata)
        check_model(result, "the explainer")
        return result


def _explainer(
    opened: GraphView,
    entry: Method,
    settings: Mapping[str, Any],
    asked: _Asked,
    seen: _Seen,
    targets: Targets,
    preprocess: Preprocess,
    protocol: str,
    smoothing: Sequence[str],
    others: NDArray[np.uint8] | None,
) -> tuple[onnx.ModelProto, list[FeatureMap]]:
    """The explainer without metadata, and the features that its maps are made of."""
    scores = seen.scores
    image, side = image_input(opened, preprocess, protocol)
    crops = crops_of(protocol, preprocess.size, side)
    network = with_free_batch(opened, image, (3, side, side), scores.output)
    view = GraphView(network)
    if scores.logits not in dependents(view, image):
        raise CamrtError(f"found the scores {scores.logits!r}, which do not depend on the input {image!r}")
    feature_maps = _feature_maps(view, entry, asked, seen, image)
    starts = [one.tensor for one in feature_maps if (entry.gradients or entry.behind) and entry.kind == "features"]
    if entry.again or entry.kind == "pixels":
        starts.append(image)
    for start in starts:
        _check_control_flow(view, start, scores.logits, has_head=seen.head is not None)

    second = None
    if entry.again:
        second = _second_run(network, image, side, scores.logits)
        view = GraphView(network)
    builder = Builder(view.opset, tensor_names(network.graph))
    for name in RESERVED:
        builder.claim(name)
    seen_others = _add_background(builder, others, crops, preprocess, smoothing)
    crops = _add_input(builder, IMAGE, image, crops, preprocess, smoothing)
    before, builder.nodes = builder.nodes, []
    is_sum, add_softmax = targets.kind == "sum", asked.scores is None
    variants = VARIANTS if AUGMENT in smoothing else 1
    if seen.candidates is not None:
        classes = _chosen_boxes(builder, seen.candidates, targets.count)
    else:
        if targets.is_segment:
            merged = _covered(builder, view, scores, len(crops), variants)
        else:
            merged = _merged_scores(builder, scores, len(crops), variants, is_sum=is_sum, add_softmax=add_softmax)
        classes = targets.tensor(builder, merged, TARGET, CLASSES)
    context = MethodContext(
        builder, view, Pass(image, scores.logits), second, crops, side, preprocess, scores, targets, classes,
        feature_maps, seen.head, eigen=EIGEN in smoothing, others=seen_others,
        background_count=0 if others is None else len(others),
    )  # fmt: skip
    try:
        _heatmaps(context, entry, settings, preprocess.size, variants)
    except MissingRuleError as error:
        methods = _without_gradient(has_head=seen.head is not None)
        raise CamrtError(f"{error.message}. Methods that need no gradient work: --method {methods}") from error
    boxes = [] if seen.candidates is None else [seen.candidates.boxes]
    needed = view.needed_for([scores.output, scores.logits, *boxes, *(one.tensor for one in feature_maps)])
    result = _assembled(network, [*before, *needed, *builder.nodes], builder)
    _declare(result.graph, preprocess.size, targets, 1 if is_sum else _row(targets, scores))
    return result, feature_maps


# ------------------------------------------------------------------------------------------------ what is looked at


@dataclass(frozen=True)
class _Asked:
    """What was asked for by name, in the names of the renamed model.

    Attributes:
        layers: The features.
        features: Those that the metadata name.
        classifier: The linear layer.
        scores: The tensor that is explained.
        is_sum: Whether that is its sum.
        is_segment: Whether there are scores for each pixel.
        is_box: Whether detections are explained.
    """

    layers: tuple[str, ...]
    features: str | None
    classifier: str | None
    scores: str | None
    is_sum: bool
    is_segment: bool
    is_box: bool


@dataclass(frozen=True)
class _Seen:
    """What was found in a model.

    Attributes:
        scores: The scores.
        head: The head, where there is one.
        candidates: Of a detector, what it finds.
    """

    scores: Scores
    head: Head | None = field(default=None)
    candidates: Candidates | None = field(default=None)


def _question(
    view: GraphView,
    entry: Method | None,
    target: Target | None,
    scores: str | None,
    detections: str | None,
    labels: Sequence[str] | None,
    side: int,
) -> tuple[Target | None, str | None, Layout | None]:
    """What is explained where little is said: the target, the scores, and of a detector its layout."""
    known = labels if labels is not None else labels_of(view.metadata)
    is_stated = detections is not None or keys.DETECTIONS in view.metadata
    if is_box(target) or (is_stated and target is None and scores is None):
        if scores is not None:
            raise CamrtError(
                f"found the target {target!r} and the scores {scores!r}, expected one of both: --detections says what "
                "the outputs of a detector are"
            )
        return target, None, layout_of(sized(view, side), detections, known, side)
    if detections is not None:
        raise CamrtError(f"found the detections {detections!r} and the target {target!r}, expected a box, as box:best")
    if target is not None or scores is not None:
        return target, scores, None
    try:
        find_scores(view)
    except CamrtError:
        with contextlib.suppress(CamrtError):
            return None, None, layout_of(sized(view, side), None, known, side)
        is_plain = (
            entry is not None and entry.kind == "features" and not (entry.gradients or entry.again or entry.behind)
        )
        outputs = [name for name in view.outputs if name in view.producers and view.types.get(name) in FLOATS]
        if not (is_plain and outputs):
            raise
        _log.info(
            "the outputs have no classes; the maps do not depend on them, and the sum of %r is shown", outputs[-1]
        )
        return SUM, outputs[-1], None
    return None, None, None


def _check_view(protocol: str, preprocess: Preprocess, smoothing: Sequence[str]) -> None:
    """A detector must see the whole image, as it is: its boxes are those of the image."""
    if AUGMENT in smoothing:
        raise CamrtError(
            f"found the smoothing {AUGMENT!r} with a detector, expected none or {EIGEN!r}: in mirrored and scaled "
            "images its candidates are others"
        )
    if protocol != WHOLE and not (protocol == "center" and preprocess.size == preprocess.crop):
        raise CamrtError(f"found the protocol {protocol!r}, expected {WHOLE!r}: boxes are those of the whole image")


def _look_at(candidates: Candidates, entry: Method) -> _Seen:
    """What is found of a detector."""
    if entry.kind == "head":
        raise CamrtError(
            f"found a detector and the method {entry.name}, which explains the classes of a whole image: use --method "
            "hirescam"
        )
    _log.info("detections of %s: %d candidates", candidates.layout.describe(), candidates.count)
    scores = Scores(candidates.scores, candidates.logits, "", candidates.count * candidates.classes)
    return _Seen(scores, None, candidates)


def _labelled(
    metadata: dict[str, str], labels: Sequence[str] | None, scores: Scores, classes: int, asked: _Asked
) -> dict[str, str]:
    """The metadata with the names of what is explained."""
    if labels is not None and len(labels) != classes:
        raise CamrtError(f"found {len(labels)} names, expected one for each of the {classes} classes")
    known = labels if labels is not None else labels_of(metadata)
    if asked.is_sum:
        known = [f"sum of {scores.logits}"]
    elif known is None:
        return metadata
    elif len(known) != classes:  # those of another output
        return {key: value for key, value in metadata.items() if key != keys.LABELS}
    return {**metadata, keys.LABELS: keys.labels_text(known)}


def _still_there(view: GraphView, features: str | None) -> str | None:
    """The features that the metadata name; None where a quantizer, say, has left the metadata but not the features."""
    if features is None or features in view.producers:
        return features and as_read(view, features)
    _log.info("the metadata name the features %r, which the model does not have: they are looked for", features)
    return None


def _default_protocol(stated: str | None, entry: Method) -> str:
    """The protocol where none is asked for: what the metadata state, if one image does not take too long that way."""
    return stated if stated and (entry.takes_crops or stated == "center") else WHOLE


def _names_of(layer: str | Sequence[str] | None, features: str | None) -> tuple[str, ...]:
    layers = () if layer is None else (layer,) if isinstance(layer, str) else tuple(layer)
    if features is not None and layers not in ((), (features,)):
        raise CamrtError(f"found the features {features!r} and the layer {', '.join(layers)!r}, expected one of both")
    return layers or (() if features is None else (features,))


def _chosen(view: GraphView, asked: _Asked, *, is_named: bool) -> Choice:
    """The method where none is asked for, and says so."""
    if asked.is_box:
        choice = Choice("hirescam", "a detection is explained, whose place the mean gradient of Grad-CAM would lose")
    elif asked.is_segment:
        choice = Choice("gradcam", "a segment is explained, and class activation maps explain classes")
    elif is_named:
        choice = Choice("cam", "the linear layer of class activation maps was named")
    else:
        choice = default_method(
            view, asked.features, asked.classifier, layers=asked.layers, scores=asked.scores, is_sum=asked.is_sum
        )
    _log.info("the method is %s: %s", choice.method, choice.reason)
    return choice


def _look(view: GraphView, entry: Method, asked: _Asked) -> _Seen:
    """The scores, and the head where the method needs it or its features are a good choice."""
    if asked.is_segment:
        if entry.kind == "head":
            raise CamrtError(
                f"found the target {SEGMENT!r} with the method {entry.name}, which explains the classes of a whole "
                "image: use --method gradcam"
            )
        return _Seen(find_segments(view, None if asked.scores is None else named_tensor(view, asked.scores, "scores")))
    if entry.kind == "head":
        if len(asked.layers) > 1:
            raise CamrtError(f"found {len(asked.layers)} layers, expected one: the weights of {entry.name} fit one")
        head = find_head(view, asked.layers[0] if asked.layers else asked.features, asked.classifier)
        _log.info("%s from %s", entry.title, head.describe())
        found = find_scores(view, head.scores)
        if asked.scores not in (None, head.scores):
            raise CamrtError(
                f"found the scores {asked.scores!r} and a head that gives {head.scores!r}, expected the same: "
                f"{entry.name} explains what its head gives; gradcam explains any tensor"
            )
        return _Seen(found, head)
    if asked.is_sum and asked.scores is not None:
        tensor = named_tensor(view, asked.scores, "scores")
        return _Seen(Scores(tensor, tensor, "", 1))
    found = find_scores(view, None if asked.scores is None else named_tensor(view, asked.scores, "scores"))
    try:
        head = find_head(view, None, None)
    except CamrtError:
        return _Seen(found)
    return _Seen(found, head if head.scores == found.output else None)


def _feature_maps(view: GraphView, entry: Method, asked: _Asked, seen: _Seen, image: str) -> list[FeatureMap]:
    """The layers that the method looks at, and says so."""
    if not entry.layered:
        if asked.layers:
            raise CamrtError(f"found the layer {asked.layers[0]!r}, expected none: {entry.name} is about pixels")
        _log.info("%s of %s by the image", entry.title, seen.scores.describe())
        return []
    if asked.layers:
        feature_maps = [feature_map_of(view, tensor) for tensor in asked.layers]
    elif entry.kind == "head" and seen.head is not None:
        feature_maps = [feature_map_of(view, seen.head.features)]
    elif asked.features in view.producers:
        feature_maps = [feature_map_of(view, asked.features or "")]
    elif seen.head is not None and has_positions(view, seen.head.features):
        feature_maps = [feature_map_of(view, seen.head.features)]
    elif seen.candidates is not None:
        feature_maps = detection_features(view, image, seen.scores.logits, seen.candidates.boxes)
    elif asked.is_segment:
        feature_maps = [deepest_features(view, image, seen.scores.logits)]
    else:
        feature_maps = [last_features(view, image, seen.scores.logits)]
        if later := later_features(view, feature_maps[0], seen.scores.logits):
            listed = ", ".join(one.describe() for one in later)
            options = "".join(f" --layer {one.tensor}" for one in later)
            _log.info("behind %r the way parts: parts of it go through %s. To see them:%s",
                      feature_maps[0].tensor, listed, options)  # fmt: skip
    if entry.kind != "head":
        which = "last with positions is"
        if seen.candidates is not None:
            which = "last that boxes and classes share are"
        elif asked.is_segment:
            which = "deepest that everything passes is"
        chosen = "" if asked.layers else f"no layer was named; the {which} taken: "
        listed = ", ".join(one.describe() for one in feature_maps)
        _log.info("%s of %s; %slayer %s", entry.title, seen.scores.describe(), chosen, listed)
    return feature_maps


def _properties(
    entry: Method, seen: _Seen, targets: Targets, feature_maps: Sequence[FeatureMap], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What the metadata say of the method."""
    properties: dict[str, Any] = {}
    if entry.kind == "head" and seen.head is not None:
        properties |= {"features": seen.head.features, "classifier": seen.head.classifier}
    else:
        properties |= {"layer": [one.tensor for one in feature_maps], "scores": seen.scores.logits}
    if entry.kind != "head" or targets.kind != "top":
        properties["target"] = targets.fact
    if targets.is_segment:
        properties["explained"] = SEGMENT
    if seen.candidates is not None:
        properties |= {"explained": BOX, "classes": seen.candidates.classes}
    return properties | ({"settings": dict(settings)} if settings else {})


def image_input(view: GraphView, preprocess: Preprocess, protocol: str) -> tuple[str, int]:
    """The network's input, and the side of the images that it gets.

    Raises:
        CamrtError: It has several inputs, or its input is no image of that size.
    """
    value = view.inputs[0]
    shape = shape_of(value)
    if protocol == "full":
        return value.name, preprocess.size
    for size in shape[2:]:
        if isinstance(size, int) and size != preprocess.crop:
            raise CamrtError(
                f"found the input {value.name!r} of {shape[2]} x {shape[3]} and a crop of {preprocess.crop}, "
                f"expected the same: camrt export --crop {size} (camrt.Preprocess)"
            )
    return value.name, preprocess.crop


# ------------------------------------------------------------------------------------------------- what is computed


def _add_input(
    builder: Builder, source: str, image: str, crops: list[Crop], preprocess: Preprocess, smoothing: Sequence[str]
) -> list[Crop]:
    """Add the network's input, and list the crops that it is made of: with smoothing, those of all variants."""
    if AUGMENT not in smoothing:
        add_network_input(builder, source, crops, preprocess, image)
        return crops
    plain = builder.name("plain")
    add_network_input(builder, source, crops, preprocess, plain)
    add_variants(builder, plain, len(crops), crops[0].side, image)
    return variants_of(crops)


def _background(entry: Method, given: Background | None, size: int) -> NDArray[np.uint8] | None:
    """The images that a method compares with: (B, size, size, 3); by default (B, 1, 1, 3), of one color each.

    Raises:
        CamrtError: They have another form, or are too many.
    """
    if not entry.background:
        return None
    if given is None:
        return np.random.default_rng(_SEED).integers(0, 256, (_COLORS, 1, 1, 3), np.uint8)
    found = np.asarray(given(size) if callable(given) else given)
    if found.dtype != np.uint8 or found.shape[1:] != (size, size, 3) or not 1 <= len(found) <= _MOST_OTHERS:
        raise CamrtError(
            f"found a background of shape {found.shape} and type {found.dtype}, expected 1 to {_MOST_OTHERS} images: "
            f"(B, {size}, {size}, 3) uint8, RGB"
        )
    return found


def _add_background(
    builder: Builder, others: NDArray[np.uint8] | None, crops: list[Crop], preprocess: Preprocess,
    smoothing: Sequence[str],
) -> str | None:  # fmt: skip
    """Add the images that a method compares with, and what the network sees of them."""
    if others is None:
        return None
    size = preprocess.size
    images = builder.constant(others, "background", np.uint8)
    if others.shape[1:3] != (size, size):
        images = builder.node("Expand", [images, builder.shape(1, size, size, 1)])
    seen = builder.name("background/seen")
    _add_input(builder, images, seen, crops, preprocess, smoothing)
    return seen


def _check_control_flow(view: GraphView, start: str, logits: str, *, has_head: bool) -> None:
    """Refuse control flow where the network is differentiated or run again."""
    behind = dependents(view, start)
    way = [node for node in view.needed_for([logits]) if not behind.isdisjoint([*node.input, *captured(node)])]
    if found := control_flow(way):
        behind_it = "" if start in {value.name for value in view.inputs} else "name a layer behind it (--layer), "
        methods = _without_gradient(has_head=has_head)
        raise CamrtError(
            f"found control flow between {start!r} and the scores {logits!r}: {found}. It has no gradient here and "
            f"cannot be run again. Use --method {methods}, which need neither, explain scores before it (--scores), "
            f"{behind_it}or export the model without it"
        )


def _without_gradient(*, has_head: bool) -> str:
    """The methods that neither differentiate a network nor run a part of it again, for people."""
    entries = [find(name) for name in METHODS]
    plain = [one.name for one in entries if not (one.gradients or one.again) and (has_head or one.kind != "head")]
    plain += [name for name in BLACK_BOX if not name.startswith("baseline-")]
    return f"{', '.join(plain[:-1])} or {plain[-1]}"


def _second_run(network: onnx.ModelProto, image: str, side: int, logits: str) -> Pass:
    """Add the network's nodes once more, for other images; they read the same weights."""
    with_fixed_resizes(network)
    nodes, names = repeated(needed_for(network.graph, [logits]), AGAIN, [image])
    network.graph.input.append(_info(names[image], TensorProto.FLOAT, "batch", 3, side, side))
    network.graph.node.extend(nodes)
    return Pass(names[image], names[logits], nodes)


def _merged_scores(
    builder: Builder, scores: Scores, crops: int, variants: int, *, is_sum: bool, add_softmax: bool
) -> str:
    """Probabilities, averaged over the crops of the first variant: (N, K); of a sum (N, 1)."""

    def mean(rows: str, width: int) -> str:
        apart = builder.reshape(rows, -1, crops, width)
        plain = apart if variants == 1 else builder.slice(apart, [0], [crops // variants], [1])
        return builder.node("Identity", [builder.reduce("Mean", plain, [1])], SCORES)

    if is_sum:
        rows = builder.node("Flatten", [scores.logits], axis=1)
        return mean(builder.reduce("Sum", rows, [1]), 1)
    flat = builder.reshape(scores.output, -1, scores.classes)
    if scores.activation == "LogSoftmax":
        flat = builder.node("Exp", [flat])
    elif not scores.activation and add_softmax:
        flat = builder.node("Softmax", [flat], axis=1)
    return mean(flat, scores.classes)


def _chosen_boxes(builder: Builder, candidates: Candidates, count: int) -> str:
    """Choose the detections; what is explained among the candidates' scores: (N, count) int64."""
    given = Value(builder, BOX, (None, count, 4))
    wanted = Value(builder, TARGET, (None, count), TensorProto.INT64)
    chosen = choose(builder, candidates, given, wanted)
    for value, output in ((chosen.scores, SCORES), (chosen.classes, CLASSES), (chosen.boxes, DETECTIONS)):
        builder.node("Identity", [value.name], output)
    return chosen.places.name


def _covered(builder: Builder, view: GraphView, scores: Scores, crops: int, variants: int) -> str:
    """The part of the image that each class covers, averaged over the crops of the first variant: (N, K)."""
    logits = Value(builder, scores.logits, (None, scores.classes, None, None), view.types[scores.logits])
    labels = label_map(logits).unsqueeze(1)
    numbers = np.arange(scores.classes).reshape(1, -1, 1, 1)
    masks = labels.equals(numbers).cast(TensorProto.FLOAT)
    parts = masks.mean(2, 3).reshape(-1, crops, scores.classes).slice(1, 0, crops // variants).mean(1)
    return builder.node("Identity", [parts.name], SCORES)


def _heatmaps(context: MethodContext, entry: Method, settings: Mapping[str, Any], size: int, variants: int) -> None:
    """The method's maps, and what becomes of them: enlarged, pasted where their crops were, added."""
    maps = _maps(context, entry, settings)
    if context.eigen and not (context.layers and all(layer.is_summed for layer in context.layers)):
        raise CamrtError(
            f"found the smoothing {EIGEN!r} with {entry.name}, which sums no feature maps: its principal component is "
            "not defined. gradcam, layercam and others that weigh features take it; --smooth augment takes any method"
        )
    if variants == 1:
        _merged_maps(context, entry, maps, context.crops, size, HEATMAPS)
        return
    count = len(context.crops) // variants
    merged = []
    for first in range(0, len(context.crops), count):
        some = [context.builder.slice(one, [first], [first + count], [1]) for one in maps]
        merged.append(_merged_maps(context, entry, some, context.crops[first : first + count], size))
    add_mean(context.builder, merged, HEATMAPS, signed=settings.get("values") == "signed")


def _maps(context: MethodContext, entry: Method, settings: Mapping[str, Any]) -> list[str]:
    """The map of each layer (N, crops, count, h, w), or that of the pixels."""
    if entry.kind == "pixels":
        found = context.per_class(entry.maps(context, **settings))
        return [context.builder.node("Identity", [found.name], MAPS)]
    return [_map(layer, entry, settings, named=len(context.layers) == 1) for layer in context.layers]


def _merged_maps(
    context: MethodContext, entry: Method, maps: Sequence[str], crops: Sequence[Crop], size: int,
    output: str | None = None,
) -> str:  # fmt: skip
    """The heatmaps of crops: (N, count, size, size)."""
    builder = context.builder
    if entry.kind == "pixels":
        return paste(builder, maps[0], crops, size, output)
    rectified = entry.rectified or context.eigen  # a component has a mean of 0
    merged = [
        merge(
            builder, one, crops, size, layer.grid.height, layer.grid.width,
            output if len(maps) == 1 else None, rectified=rectified,
        )
        for one, layer in zip(maps, context.layers, strict=True)
    ]  # fmt: skip
    if len(merged) == 1:
        return merged[0]
    if entry.multiplied:
        product = functools.reduce(lambda one, other: builder.node("Mul", [one, other]), merged)
        return builder.node("Identity", [product], output)
    # Mean has no kernel on CUDA.
    return builder.node("Mul", [builder.node("Sum", merged), builder.constant(1 / len(merged))], output)


def _map(layer: Layer, entry: Method, settings: Mapping[str, Any], *, named: bool) -> str:
    """The map of a layer: (N, crops, count, h, w). One of several is brought to 0..1, so that each counts as much."""
    context = layer.context
    found = context.per_class(entry.maps(layer, **settings))
    if entry.rectified or context.eigen:
        found = found.relu()
    if not named:
        found = found - found.min(-1, keepdims=True)
        found = found / found.max(-1, keepdims=True).maximum(1e-30)
    shape = context.builder.shape(-1, len(context.crops), context.count, layer.grid.height, layer.grid.width)
    return context.builder.node("Reshape", [found.name, shape], MAPS if named else None)


def _assembled(network: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], builder: Builder) -> onnx.ModelProto:
    """The network with these nodes in place of its own, and without inputs and outputs yet. Its weights stay put."""
    graph = network.graph
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    used = {name for node in kept for name in (*node.input, *captured(node))}
    for part in (graph.node, graph.input, graph.output, graph.value_info):
        del part[:]
    for index in reversed([i for i, tensor in enumerate(graph.initializer) if tensor.name not in used]):
        del graph.initializer[index]
    graph.node.extend(kept)
    graph.initializer.extend(tensor for tensor in builder.initializers if tensor.name in used)
    graph.name = graph.name or "explainer"
    network.producer_name, network.producer_version, network.doc_string = "camrt", "", ""
    del network.metadata_props[:]
    return network


def _row(targets: Targets, scores: Scores) -> int:
    """How many scores an image has: of a detector those of what is explained."""
    return targets.count if targets.kind == "box" else scores.classes


def _declare(graph: onnx.GraphProto, size: int, targets: Targets, scores: int) -> None:
    """The inputs and outputs of an explainer."""
    graph.input.append(_info(IMAGE, TensorProto.UINT8, "N", size, size, 3))
    if targets.kind == "box":
        graph.input.append(_info(BOX, TensorProto.FLOAT, "N", targets.count, 4))
    if targets.kind in ("input", "any", "box"):
        graph.input.append(_info(TARGET, TensorProto.INT64, "N", targets.count))
    graph.output.append(_info(SCORES, TensorProto.FLOAT, "N", scores))
    graph.output.append(_info(CLASSES, TensorProto.INT64, "N", targets.count))
    if targets.kind == "box":
        graph.output.append(_info(DETECTIONS, TensorProto.FLOAT, "N", targets.count, 4))
    graph.output.append(_info(HEATMAPS, TensorProto.FLOAT, "N", targets.count, size, size))


def _info(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def describe(model: onnx.ModelProto) -> Mapping[str, object]:
    """What an explainer graph says of itself.

    Raises:
        CamrtError: The model is no explainer.
    """
    try:
        properties = keys.explainer_of(metadata_of(model))
    except ValueError as error:
        raise CamrtError(f"found the metadata {keys.EXPLAINER}, which cannot be used ({error})") from None
    if properties is None:
        raise CamrtError(
            f"the model is no explainer graph (no metadata {keys.EXPLAINER}), expected one of camrt export"
        )
    return properties


__all__ = ["METHODS", "describe", "explain_graph"]
