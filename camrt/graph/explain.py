"""A classifier -> an explainer: one ONNX graph from image to scores and heatmaps."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

import onnx
from onnx import TensorProto, helper

from camrt.errors import CamrtError
from camrt.graph.batch import with_free_batch
from camrt.graph.builder import Builder
from camrt.graph.crops import crops_of, cut, merge
from camrt.graph.head import Head, find_head
from camrt.graph.rename import without_clashes
from camrt.graph.view import GraphView, metadata_of, opset_of, shape_of, skeleton
from camrt.preprocess import KEY, Preprocess, preprocess_of

OLDEST_OPSET = 13
METHODS = ("cam",)
IMAGE, SCORES, CLASSES, HEATMAPS = "image", "scores", "classes", "heatmaps"
MAPS = "camrt/maps"  # inside the graph: the map of each crop and class before enlarging, (N, crops, top, h, w)
_log = logging.getLogger(__name__)


def explain_graph(
    model: onnx.ModelProto,
    method: str = "cam",
    protocol: str = "ten-crop",
    top: int = 5,
    features: str | None = None,
    classifier: str | None = None,
    *,
    preprocess: Preprocess | str | None = None,
) -> onnx.ModelProto:
    """Make an explainer of a classifier: class activation maps (Zhou et al. 2016, equation 2) as part of the graph.

    Args:
        model: A classifier: one image input (N, 3, h, w) float32, scores (N, K). Not changed.
        method: ``"cam"``.
        protocol: ``"ten-crop"``, as the original: the scores of ten crops averaged, the magnitudes of their maps added;
            ``"center"``: one crop; ``"full"``: the whole image and its mirror image, two passes in place of ten, for
            networks that take images of any size.
        top: How many classes to explain, the best first.
        features: The tensor that the maps are made of; by default the model's metadata say it, or it is found.
        classifier: The linear layer behind it, likewise.
        preprocess: What the network wants of an image; by default the model's metadata say it.

    Returns:
        A model with the input ``image`` (N, S, S, 3) uint8 RGB and the outputs ``scores`` (N, K) float32 probabilities,
        ``classes`` (N, top) int64 and ``heatmaps`` (N, top, S, S) float32, not normalised. Standard operators only, N
        free.

    Raises:
        CamrtError: The model has no head of a known form, no metadata, a wrong argument; with what to do.
    """
    if method not in METHODS:
        raise CamrtError(f"found the method {method!r}, expected one of {', '.join(METHODS)}")
    metadata = metadata_of(model)
    if "camrt.explainer" in metadata:
        raise CamrtError("the model is an explainer already, expected a classifier")
    wanted = preprocess_of(preprocess, metadata)
    model, renamed = without_clashes(_upgraded(model), (IMAGE, SCORES, CLASSES, HEATMAPS, MAPS))
    view = GraphView(model)
    features = features or metadata.get("camrt.features")
    classifier = classifier or metadata.get("camrt.classifier")
    head = find_head(view, renamed.get(features or "", features), renamed.get(classifier or "", classifier))
    _log.info("class activation maps from %s", head.describe())
    classes = head.weights.shape[0]
    if not 1 <= top <= classes:
        raise CamrtError(f"found top {top}, expected 1 to {classes}, the number of classes")
    image, side = _image_input(view, wanted, protocol)
    crops = crops_of(protocol, wanted.size, side)
    network = with_free_batch(view, image, (3, side, side), head)
    grid = _feature_size(network, head)

    builder = Builder(opset_of(model), _names(model))
    cut(builder, IMAGE, crops, wanted, image)
    before, builder.nodes = builder.nodes, []
    scores = _merged_scores(builder, head, len(crops))
    best = _best(builder, scores, top)
    maps = _maps(builder, head, best, (len(crops), top, *grid))
    merge(builder, maps, crops, wanted.size, *grid, HEATMAPS)

    result = _assembled(network, head, before, builder)
    result.graph.input.append(_info(IMAGE, TensorProto.UINT8, "N", wanted.size, wanted.size, 3))
    result.graph.output.append(_info(SCORES, TensorProto.FLOAT, "N", classes))
    result.graph.output.append(_info(CLASSES, TensorProto.INT64, "N", top))
    result.graph.output.append(_info(HEATMAPS, TensorProto.FLOAT, "N", top, wanted.size, wanted.size))
    facts = {"method": method, "protocol": protocol, "top": top, "size": wanted.size, "resize": "square"}
    facts |= {"features": head.features, "classifier": head.classifier}
    helper.set_model_props(result, {**metadata, KEY: wanted.as_json(), "camrt.explainer": json.dumps(facts)})
    _check(result)
    return result


def _upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in an operator set that our nodes exist in."""
    if opset_of(model) >= OLDEST_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, 17)
    except Exception as error:  # its converter raises whatever its C++ does
        raise CamrtError(
            f"found opset {opset_of(model)}, expected {OLDEST_OPSET} or later, and onnx cannot upgrade it ({error}): "
            "export the model with opset_version=17"
        ) from error


def _image_input(view: GraphView, preprocess: Preprocess, protocol: str) -> tuple[str, int]:
    """The network's input, and the side of the images that it gets."""
    if len(view.inputs) != 1:
        names = ", ".join(value.name for value in view.inputs)
        raise CamrtError(f"found {len(view.inputs)} inputs ({names}), expected one, the image")
    value = view.inputs[0]
    shape = shape_of(value)
    if len(shape) != 4 or value.type.tensor_type.elem_type != TensorProto.FLOAT or shape[1] not in (3, None):
        raise CamrtError(f"found the input {value.name!r} of shape {shape}, expected N x 3 x height x width, float32")
    if protocol == "full":
        return value.name, preprocess.size
    for size in shape[2:]:
        if isinstance(size, int) and size != preprocess.crop:
            raise CamrtError(
                f"found the input {value.name!r} of {shape[2]} x {shape[3]} and a crop of {preprocess.crop}, "
                f"expected the same: give --crop {size}"
            )
    return value.name, preprocess.crop


def _feature_size(network: onnx.ModelProto, head: Head) -> tuple[int, int]:
    shape = GraphView(network).shapes.get(head.features)
    height, width = (shape[2], shape[3]) if shape is not None and len(shape) == 4 else (None, None)
    if not isinstance(height, int) or not isinstance(width, int):
        raise CamrtError(f"the size of the features {head.features!r} cannot be inferred, found {shape}")
    return height, width


def _merged_scores(builder: Builder, head: Head, crops: int) -> str:
    """Probabilities, averaged over the crops: (N, K)."""
    classes = head.weights.shape[0]
    flat = builder.reshape(head.scores, -1, classes)
    if head.activation == "LogSoftmax":
        flat = builder.node("Exp", [flat])
    elif not head.activation:
        flat = builder.node("Softmax", [flat], axis=1)
    mean = builder.reduce("Mean", builder.reshape(flat, -1, crops, classes), [1])
    return builder.node("Identity", [mean], SCORES)


def _best(builder: Builder, scores: str, top: int) -> str:
    """The classes with the highest scores: (N, top) int64."""
    _, classes = builder.nodes_of("TopK", [scores, builder.shape(top)], [builder.name("best"), CLASSES], axis=1)
    return classes


def _maps(builder: Builder, head: Head, classes: str, size: tuple[int, int, int, int]) -> str:
    """The features' sum, weighted by each class: (N, crops, top, h, w)."""
    crops, top, height, width = size
    weights = head.initializer or builder.constant(head.weights, "weights")
    chosen = builder.unsqueeze(builder.node("Gather", [weights, classes], axis=0), 1)
    flat = builder.reshape(head.features, -1, crops, head.weights.shape[1], height * width)
    maps = builder.node("MatMul", [chosen, flat])
    return builder.node("Reshape", [maps, builder.shape(-1, crops, top, height, width)], MAPS)


def _assembled(network: onnx.ModelProto, head: Head, before: list[onnx.NodeProto], builder: Builder) -> onnx.ModelProto:
    """The crops, what of the network is needed, and the maps, as one model without inputs and outputs yet."""
    nodes = [*before, *GraphView(network).needed_for([head.scores, head.features]), *builder.nodes]
    used = {name for node in nodes for name in node.input}
    graph = onnx.GraphProto(name=network.graph.name or "explainer")
    graph.node.extend(nodes)
    graph.initializer.extend(tensor for tensor in network.graph.initializer if tensor.name in used)
    graph.initializer.extend(builder.initializers)
    model = helper.make_model(graph, opset_imports=list(network.opset_import), producer_name="camrt")
    model.functions.extend(network.functions)
    model.ir_version = network.ir_version
    return model


def _names(model: onnx.ModelProto) -> set[str]:
    names = {name for node in model.graph.node for name in (node.name, *node.input, *node.output)}
    return names | {tensor.name for tensor in model.graph.initializer}


def _info(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def _check(model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(skeleton(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CamrtError(f"onnx's checker refuses the explainer: {error}") from error


def describe(model: onnx.ModelProto) -> Mapping[str, object]:
    """What an explainer graph says of itself.

    Raises:
        CamrtError: The model is no explainer.
    """
    text = metadata_of(model).get("camrt.explainer")
    if text is None:
        raise CamrtError("the model is no explainer graph (no metadata camrt.explainer), expected one of camrt export")
    facts = json.loads(text)
    return facts if isinstance(facts, dict) else {}
