"""Networks with other inputs than N x 3 x height x width in single precision are given one in front.

Gray images, images with an opacity, channels last, half precision: a few nodes before the network make its input from
an image of three channels. Everything behind sees one kind of network, and derivatives are those by that image.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from camrt.builder import PREFIX, Builder
from camrt.errors import CamrtError
from camrt.graph.rewrite import rename_tensors, tensor_names
from camrt.graph.scores import shown
from camrt.graph.view import GraphView, bodies, shape_of
from camrt.preprocess import Preprocess

# The brightness of red, green and blue (ITU-R BT.601, as in Pillow's mode L).
_LUMA = (0.299, 0.587, 0.114)
_CHANNELS = (1, 3, 4)
_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_TYPES = (TensorProto.FLOAT, *_HALF)
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


def with_image_input(view: GraphView, preprocess: Preprocess) -> GraphView:
    """Give a network an input of N x 3 x height x width, float32, where it has another one.

    A network of one channel gets the brightness; as the mean and the scale come before, they are best equal for the
    three channels. A network of four channels gets the image and an opacity of 255, which goes through the average of
    the mean and the scale. A network in half precision is computed in single precision: its weights are converted, also
    where only its input and output are in single precision.

    Args:
        view: A network. Not changed.
        preprocess: How it wants its images.

    Returns:
        The network itself where its input is such a one already.

    Raises:
        CamrtError: It has several inputs, or one that is no image.
    """
    if len(view.inputs) != 1:
        names = ", ".join(value.name for value in view.inputs)
        raise CamrtError(f"found {len(view.inputs)} inputs ({names}), expected one, the image")
    value = view.inputs[0]
    shape, kind = shape_of(value), value.type.tensor_type.elem_type
    axis = _channels_axis(shape)
    if axis is None or kind not in _TYPES:
        raise CamrtError(
            f"found the input {value.name!r} of shape {shown(shape)} and type {TensorProto.DataType.Name(kind)}, "
            "expected an image, N x channels x height x width or N x height x width x channels, of 1, 3 or 4 channels, "
            "float32, float16 or bfloat16"
        )
    is_half, is_usual = _has_half(view.model.graph), axis == 1 and shape[1] not in (1, 4)
    if is_usual and not is_half:
        return view
    model = onnx.ModelProto()
    model.CopyFrom(view.model)
    if is_half:
        _to_single(model.graph)
    if is_usual:
        return GraphView(model, view.renamed)
    sizes = [shape[axis], shape[0], *(shape[one] for one in (1, 2, 3) if one != axis)]
    _put_in_front(model, value.name, sizes, axis, preprocess)
    return GraphView(model, view.renamed)


def of_side(preprocess: Preprocess, given: Preprocess | str | None, view: GraphView) -> Preprocess:
    """YOLO's preprocessing at the size of the network's input, where that is fixed: it has no other sizes in it.

    Args:
        preprocess: How images are prepared.
        given: What was asked for: the preset ``"yolo"``, or anything else, which stays as it is.
        view: The network.
    """
    sides = shape_of(view.inputs[0])[2:] if given == "yolo" and view.inputs else ()
    side = sides[0] if len(set(sides)) == 1 else None
    return replace(preprocess, size=side, crop=side) if isinstance(side, int) else preprocess


def _channels_axis(shape: tuple[int | str | None, ...]) -> int | None:
    """The axis of an image's channels; None where a shape is that of no image."""
    if len(shape) != 4:
        return None
    if shape[1] in _CHANNELS or not (isinstance(shape[1], int) or shape[3] in _CHANNELS):
        return 1
    return 3 if shape[3] in _CHANNELS else None


def _put_in_front(
    model: onnx.ModelProto, image: str, sizes: list[int | str | None], axis: int, preprocess: Preprocess
) -> None:
    """Make the network's input from a new one of three channels.

    Args:
        model: The network, which is changed.
        image: Its input.
        sizes: The channels, the images, the height and the width of that.
        axis: The axis of the channels.
        preprocess: How it wants its images.
    """
    graph = model.graph
    channels, batch, height, width = sizes
    builder = Builder(GraphView(model).opset, tensor_names(graph))
    planes, inner = image, f"network/{image}"
    while not builder.claim(inner):
        inner += "_"
    rename_tensors(graph, {image: inner})
    if channels == 1:
        luma = _LUMA if preprocess.channels == "RGB" else _LUMA[::-1]
        kernel = builder.constant(np.reshape(luma, (1, 3, 1, 1)), "luma")
        planes = builder.node("Conv", [planes, kernel], kernel_shape=[1, 1])
    elif channels == 4:
        opaque = (255 - np.mean(preprocess.mean)) * np.mean(preprocess.scale)
        first = builder.slice(planes, (0,), (1,), (1,))
        alpha = builder.node("Add", [builder.node("Mul", [first, builder.constant(0.0)]), builder.constant(opaque)])
        planes = builder.node("Concat", [planes, alpha], axis=1)
    if axis == 3:
        planes = builder.node("Transpose", [planes], perm=[0, 2, 3, 1])
    builder.node("Identity", [planes], inner)
    for number, node in enumerate(builder.nodes):
        node.name = f"network/input/{number}"
    new = {one.name: f"network/input/{one.name.removeprefix(PREFIX)}" for one in builder.initializers}
    new |= {name: f"network/input/{name}" for node in builder.nodes for name in node.output if name != inner}
    for node in builder.nodes:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    for one in builder.initializers:
        one.name = new[one.name]
    nodes = [*builder.nodes, *(onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node)]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(builder.initializers)
    kept = [value for value in graph.input if value.name != inner]
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(image, TensorProto.FLOAT, [batch, 3, height, width]))
    graph.input.extend(kept)


# ------------------------------------------------------------------------------------------------------ half precision


def _has_half(graph: onnx.GraphProto) -> bool:
    """Whether a graph computes in half precision, or a part of it: by its input, its constants and its casts."""
    if any(value.type.tensor_type.elem_type in _HALF for value in graph.input):
        return True
    if any(tensor.data_type in _HALF for tensor in graph.initializer):
        return True
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.t.data_type in _HALF or (attribute.name in _TYPE_ATTRIBUTES and attribute.i in _HALF):
                return True
        if any(_has_half(body) for body in bodies(node)):
            return True
    return False


def _to_single(graph: onnx.GraphProto) -> None:
    """Compute a graph of half precision, and the bodies in it, in single precision."""
    for tensor in graph.initializer:
        _widen(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in _HALF:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen(attribute.t)
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i in _HALF:
                attribute.i = TensorProto.FLOAT
        for body in bodies(node):
            _to_single(body)


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type in _HALF:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
