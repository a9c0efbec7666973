"""Networks for any number of images of a given size."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from camrt.errors import CamrtError
from camrt.graph.view import GraphView, attributes_of, infer_shapes, shape_of, skeleton


def with_free_batch(view: GraphView, image: str, size: tuple[int, int, int], scores: str) -> onnx.ModelProto:
    """The model with a free first dimension of its input, and the image's size fixed.

    Exporters freeze a batch of 1 into the input and into the targets of Reshape nodes; both are freed. A pooling window
    that covered the map at the old size becomes a global pooling, so that it covers it at the new one.

    Args:
        view: The model. Not changed.
        image: Its input.
        size: The channels, height and width of what it will get.
        scores: Its scores.

    Raises:
        CamrtError: The network cannot take images of that size, or not several at once.
    """
    old = shape_of(view.inputs[0])
    model = onnx.ModelProto()
    model.CopyFrom(view.model)
    graph = model.graph
    del graph.value_info[:]  # they hold the old sizes
    del graph.input[:]
    graph.input.append(onnx.helper.make_tensor_value_info(image, onnx.TensorProto.FLOAT, ["batch", *size]))
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    if isinstance(old[0], int):
        _free_reshapes(view, graph, old[0])
    for node in graph.node:
        if node.op_type == "AveragePool" and _covers_map(view, node):
            node.op_type = "GlobalAveragePool"
            del node.attribute[:]
    _check(model, scores, size)
    return model


def with_fixed_resizes(model: onnx.ModelProto) -> None:
    """Give Resize nodes whose sizes are computed constant scales, where the sizes are known but for the batch.

    onnx's shape inference fails at computed sizes in the body of a Loop, in which methods run the network again.

    Args:
        model: A network for images of one size. Changed.
    """
    view = GraphView(model)
    for node in model.graph.node:
        if node.op_type != "Resize" or len(node.input) < 4 or not node.input[3] or view.is_constant(node.input[3]):
            continue
        before, behind = (view.shapes.get(tensor, ()) for tensor in (node.input[0], node.output[0]))
        pairs = [
            (a, b) for a, b in zip(before[1:], behind[1:], strict=False) if isinstance(a, int) and isinstance(b, int)
        ]
        if len(pairs) + 1 != len(before) or any(
            one.name in ("axes", "keep_aspect_ratio_policy") for one in node.attribute
        ):
            continue
        scales = np.array([1, *(_scale(*pair) for pair in pairs)], np.float32)
        name = f"{node.output[0]}/scales"
        model.graph.initializer.append(numpy_helper.from_array(scales, name))
        del node.input[2:]
        node.input.append(name)


def _scale(old: int, new: int) -> np.float32:
    """What a size is multiplied by; the runtime rounds the product down."""
    scale = np.float32(new / old)
    return scale if int(np.floor(np.float32(old) * scale)) == new else np.nextafter(scale, np.float32(np.inf))


def _covers_map(view: GraphView, node: onnx.NodeProto) -> bool:
    attributes, shape = attributes_of(node), view.shapes.get(node.input[0])
    window = tuple(attributes["kernel_shape"])
    return shape is not None and window == shape[2:] and not any(attributes.get("pads", ()))


def _free_reshapes(view: GraphView, graph: onnx.GraphProto, batch: int) -> None:
    """Where a Reshape keeps the frozen batch as its first size, let it copy that size instead (0)."""
    for node in graph.node:
        if node.op_type != "Reshape":
            continue
        target, shape = view.constant(node.input[1]), view.shapes.get(node.input[0])
        if (
            target is None
            or target.ndim != 1
            or not target.size
            or target[0] != batch
            or not shape
            or shape[0] != batch
        ):
            continue
        if 0 in target:
            continue  # an empty tensor, or a size that is copied already: not an exporter's frozen batch
        freed = np.concatenate([[0], target[1:]]).astype(np.int64)
        for attribute in [each for each in node.attribute if each.name == "allowzero"]:
            node.attribute.remove(attribute)  # with it, a 0 would not copy but be a size
        name = f"{node.output[0]}/free_shape"
        graph.initializer.append(numpy_helper.from_array(freed, name))
        node.input[1] = name


def _check(model: onnx.ModelProto, scores: str, size: tuple[int, int, int]) -> None:
    """Whether shapes can be inferred with the new input, and the scores are one row an image."""
    light = skeleton(model)
    if scores not in {output.name for output in light.graph.output}:
        light.graph.output.append(onnx.ValueInfoProto(name=scores))
    try:
        inferred = infer_shapes(light, strict=True)
    except onnx.shape_inference.InferenceError as error:
        raise CamrtError(
            f"the network cannot take several images of {size[1]} x {size[2]} at once: {error}. Export it with a free "
            "batch (dynamic axes), or use another --protocol"
        ) from error
    for output in inferred.graph.output:
        if output.name == scores:
            shape = shape_of(output)
            if shape and isinstance(shape[0], int):
                raise CamrtError(
                    f"found the scores {scores!r} of shape {shape}, whose first size does not follow the batch: "
                    "export the network with a free batch (dynamic axes)"
                )
