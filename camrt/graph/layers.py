"""Which features the maps are made of: the last ones with positions, or those that were named."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx

from camrt.classes import alike
from camrt.errors import CamrtError
from camrt.graph.layout import channels_of
from camrt.graph.scores import FLOATS, check_tensor, few, shown
from camrt.graph.sizes import Sizes
from camrt.graph.values import Value
from camrt.graph.view import QUANTIZING, GraphView, Shape, captured, control_flow, operator_of, quoted

# Methods take the features before the last pooling. They are finer, and "the last convolutional layer" of Selvaraju et
# al. (2017, section 3).
_POOLING = {"MaxPool", "AveragePool", "LpPool", "Dropout", "Identity"}
_LAYERS = {"Conv", "BatchNormalization", "LayerNormalization", "Relu", "Concat"}  # what people know as layers
_PARAMETRIC = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_ATTENTION = {"Softmax", "Attention"}
_TO_INTEGERS = ("QuantizeLinear", "DynamicQuantizeLinear")
# Tokens before those of the image: none, a class token, DeiT's two, DINOv2's with registers.
_PREFIX_TOKENS = (0, 1, 2, 5)


@dataclass(frozen=True)
class FeatureMap:
    """Features at positions of the image.

    Attributes:
        tensor: (N, channels, height, width), or (N, height, width, channels); or (N, tokens, channels), as
            transformers have them.
        channels: How many features a position has.
        height: Rows of positions.
        width: Columns of positions.
        channels_axis: The axis of the channels.
        num_prefix_tokens: How many tokens stand before those of the positions, such as a class token; None where the
            tensor has four axes.
    """

    tensor: str
    channels: int
    height: int
    width: int
    channels_axis: int = 1
    num_prefix_tokens: int | None = None

    @property
    def positions(self) -> int:
        """How many numbers a map has."""
        return self.height * self.width

    def describe(self) -> str:
        """The layer in a phrase."""
        tokens = "" if self.num_prefix_tokens is None else f", tokens without the first {self.num_prefix_tokens}"
        last = ", channels last" if self.num_prefix_tokens is None and self.channels_axis == 3 else ""
        return f"{self.tensor!r} ({self.channels} maps of {self.height} x {self.width}{tokens}{last})"

    def planes(self, value: Value, *outer: int) -> Value:
        """Bring a value of this form to one row of positions for each channel.

        Args:
            value: The features, or gradients of their shape.
            outer: What the first axis becomes.

        Returns:
            (*outer, channels, positions).
        """
        if self.num_prefix_tokens:
            value = value.slice(3 - self.channels_axis, self.num_prefix_tokens)
        if self.channels_axis != 1:
            others = [axis for axis in range(1, value.rank) if axis != self.channels_axis]
            value = value.transpose(0, self.channels_axis, *others)
        return value.reshape(*outer, self.channels, self.positions)

    def mask(self, masks: np.ndarray) -> np.ndarray:
        """Masks, in a shape that broadcasts to this form; 1 for tokens that are not of the image.

        Args:
            masks: (number, channels or 1, positions or 1).

        Returns:
            (number, ...): the axes of the tensor behind that of the images.
        """
        number, channels, positions = masks.shape
        if self.num_prefix_tokens and positions > 1:
            ones = np.ones((number, channels, self.num_prefix_tokens), masks.dtype)
            masks = np.concatenate([ones, masks], axis=2)
        elif self.num_prefix_tokens is None:
            masks = masks.reshape(number, channels, *((self.height, self.width) if positions > 1 else (1, 1)))
        return np.moveaxis(masks, 1, self.channels_axis)


class _AxisError(CamrtError):
    """The axis of a tensor's channels cannot be told."""


class _Shapes:
    """Shapes of tensors: as onnx infers them, or by `Sizes`, which takes longer, where that is not enough."""

    def __init__(self, view: GraphView) -> None:
        self._view = view

    @cached_property
    def _sizes(self) -> Sizes:
        return Sizes(self._view)

    def of(self, tensor: str) -> Shape | None:
        shape = self._view.shapes.get(tensor)
        if shape is not None and all(isinstance(size, int) for size in shape[1:]):
            return shape
        return self._sizes.shape(tensor) or shape


def named_tensor(view: GraphView, name: str, role: str = "layer") -> str:
    """Find a tensor by its name, or by the name of the node that makes it.

    Raises:
        CamrtError: There is none of that name, or it holds integers.
    """
    if name not in view.producers:
        outputs = {node.name: node.output[0] for node in view.model.graph.node if node.name and node.output}
        if name not in outputs:
            near = alike(name, [*view.producers, *outputs]) or f": {few(view.producers)}"
            raise CamrtError(f"found the {role} {quoted(name)}, expected a tensor of the model, or a node{near}")
        name = outputs[name]
    check_tensor(view, name, role)
    return name


def feature_map_of(view: GraphView, tensor: str) -> FeatureMap:
    """Find the channels and positions of a layer.

    Args:
        view: A model whose input has a fixed size but for the batch.
        tensor: The layer.

    Raises:
        CamrtError: It has no positions, as everything behind the pooling, or their number is not known; or the axis of
            its channels cannot be told.
    """
    shapes = _Shapes(view)
    shape = shapes.of(tensor)
    try:
        found = _feature_map(view, tensor, shapes)
    except _AxisError as error:
        raise CamrtError(
            f"{error.message}. Name another layer (--layer), such as the output of a convolution"
        ) from None
    if found is not None:
        return found
    if shape is None or (len(shape) == 4 and not all(isinstance(size, int) for size in shape[1:])):
        hidden = control_flow(view.needed_for([tensor]))
        advice = f": control flow hides it, {hidden}. Name a layer before it (--layer), with --method eigencam"
        raise CamrtError(
            f"the size of the features {tensor!r} cannot be inferred, found {shown(shape)}{advice if hidden else ''}"
        )
    raise CamrtError(
        f"found the layer {tensor!r} of shape {shown(shape)}, expected N x channels x height x width, N x height x "
        "width x channels, or N x tokens x channels with a square of tokens: a tensor behind the pooling has no "
        "positions left to map"
    )


def has_positions(view: GraphView, tensor: str) -> bool:
    """Whether features (N, channels, height, width) have more than one position, as far as their size is known.

    Some heads pool twice: what the second one reads has one position, and is no place to look at.
    """
    shape = _Shapes(view).of(tensor)
    return shape is None or len(shape) != 4 or shape[2:] != (1, 1)


def last_features(view: GraphView, image: str, logits: str) -> FeatureMap:
    """Find the last features with positions that everything passes on its way from the image to the scores.

    Pooling is skipped, so that the features before it are taken. In a transformer with a class token these are the
    features before the last attention: after it, the scores do not depend on the other tokens any more. If they are
    normalized first, the normalized features are taken: the score does not change with the scale of what is normalized,
    so its derivative is orthogonal to it, and their product, which HiResCAM and XGrad-CAM take, is 0.

    Args:
        view: A model whose input has a fixed size but for the batch.
        image: Its input.
        logits: Its scores.

    Raises:
        CamrtError: There are none.
    """
    shapes = _Shapes(view)
    try:
        found = _last_features(view, image, logits, shapes)
    except _AxisError as error:
        candidates = _candidates(view, image, logits, shapes)
        raise CamrtError(f"{error.message}. Name a layer yourself: {_choices(candidates)}") from None
    if found is not None:
        return found
    hidden = control_flow(view.needed_for([logits]))
    candidates = _candidates(view, image, logits, shapes)
    listed = ", ".join(one.describe() for one in candidates)
    listed = f"; the last that a part goes through are {listed}" if listed else ""
    example = "".join(f" --layer {one.tensor}" for one in candidates[-2:])
    raise CamrtError(
        f"the model has no features with positions that all of the image goes through on its way to {logits!r}"
        f"{f', past control flow ({hidden})' if hidden else ''}{listed}. Name one or more yourself"
        f" ({example.strip() or '--layer'}), or use a method of pixels, such as --method input-gradient"
    )


def _last_features(view: GraphView, image: str, logits: str, shapes: _Shapes) -> FeatureMap | None:
    for tensor, passed in _bottlenecks(view, image, logits):
        is_value = tensor not in (logits, image) and view.types.get(tensor) in FLOATS
        found = _feature_map(view, tensor, shapes) if is_value else None
        if found is None or (found.num_prefix_tokens and not passed & _ATTENTION):
            continue
        while found.num_prefix_tokens is None and (node := _before_quantizing(view, tensor)) is not None:
            if operator_of(node) not in _POOLING:
                break
            tensor = node.input[0]
            found = _feature_map(view, tensor, shapes) or found
        normalized = [node.output[0] for node in view.consumers[tensor] if operator_of(node) == "LayerNormalization"]
        if found.num_prefix_tokens is not None and passed & _ATTENTION and normalized:
            return _feature_map(view, normalized[0], shapes) or found
        return found
    return None


def _choices(candidates: Sequence[FeatureMap]) -> str:
    """The options that name candidates, the last one first."""
    listed = [f"--layer {one.tensor} ({one.channels} maps of {one.height} x {one.width})" for one in candidates[::-1]]
    return " or ".join(listed) or "--layer, such as the output of a convolution"


def deepest_features(view: GraphView, image: str, logits: str, *, tokens: bool = True) -> FeatureMap:
    """Find the features with the most channels that everything passes on its way to scores for each pixel or box.

    The last features of such a network are what its last convolution reads: their map would repeat the scores
    themselves. Where several have as many channels, the last ones are taken.

    Args:
        view: A model whose input has a fixed size but for the batch.
        image: Its input.
        logits: Its scores.
        tokens: Whether tokens without a class token may be such features. A detector's queries look like them.

    Raises:
        CamrtError: There are none.
    """
    shapes, found = _Shapes(view), list[FeatureMap]()
    for tensor, passed in _bottlenecks(view, image, logits):
        if tensor == image or not passed & _PARAMETRIC or view.types.get(tensor) not in FLOATS:
            continue
        with contextlib.suppress(CamrtError):  # the axis of its channels cannot be told: no candidate
            one = _feature_map(view, tensor, shapes)
            is_wanted = one is not None and one.num_prefix_tokens in (None, 0 if tokens else None)
            found += [one] if one is not None and is_wanted else []
    return max(found, key=lambda one: one.channels) if found else last_features(view, image, logits)


def detection_features(view: GraphView, image: str, logits: str, boxes: str) -> list[FeatureMap]:
    """Find the features that a detector's boxes and classes are both made of, of each of its scales one.

    From the scores, the way leads back past their last layer with weights to what the boxes are made of, too: the
    outputs of a feature pyramid, or the source layers of SSD. Where these have no positions, as the queries of a
    transformer, it is the deepest layer that everything passes.

    Args:
        view: A model whose input has a fixed size but for the batch.
        image: Its input.
        logits: (N, candidates, classes).
        boxes: (N, candidates, 4).

    Raises:
        CamrtError: There are none.
    """
    shapes, depends = _Shapes(view), dependents(view, image)
    shared = {name for node in view.needed_for([boxes]) for name in node.input}
    found, seen, waiting = list[str](), set[tuple[str, bool]](), [(logits, False)]
    while waiting:
        tensor, passed = waiting.pop()
        if (tensor, passed) in seen or tensor not in depends or not _carries(view, tensor) or tensor == image:
            continue
        seen.add((tensor, passed))
        if passed and tensor in shared:
            found.append(tensor)
            continue
        node = view.producers[tensor]
        passed = passed or operator_of(node) in _PARAMETRIC
        waiting += [(name, passed) for name in node.input if name]
    maps = [_feature_map(view, tensor, shapes) for tensor in dict.fromkeys(found)]
    grids = [one for one in maps if one is not None and one.num_prefix_tokens is None]
    if not grids:
        return [deepest_features(view, image, logits, tokens=False)]
    return sorted(grids, key=lambda one: -one.positions)


def later_features(view: GraphView, taken: FeatureMap, logits: str) -> list[FeatureMap]:
    """Find features of other sizes behind the last ones that everything passes.

    There are some where the way to the scores parts: CoaT goes on in three sizes at once, and EfficientViM adds the
    scores of all its stages. Each of them shows what a part of the network sees.

    Args:
        view: The model.
        taken: What `last_features` found.
        logits: The scores.

    Returns:
        Of each number of rows and columns the last ones, in the order of the network.
    """
    found = {(one.height, one.width): one for one in _candidates(view, taken.tensor, logits, _Shapes(view))}
    return [one for size, one in found.items() if size != (taken.height, taken.width)]


def _candidates(view: GraphView, start: str, logits: str, shapes: _Shapes, most: int = 4) -> list[FeatureMap]:
    """The last outputs of layers with positions on the way from a tensor to the scores, of each size one."""
    depends, found = dependents(view, start), dict[tuple[int, int, int], FeatureMap]()
    for node in reversed(view.needed_for([logits])):
        if operator_of(node) not in _LAYERS or node.output[0] not in depends or len(found) == most:
            continue
        try:
            one = _feature_map(view, node.output[0], shapes)
        except CamrtError:  # the axis of its channels cannot be told: no suggestion
            continue
        if one is not None:
            found.setdefault((one.channels, one.height, one.width), one)
    return list(found.values())[::-1]


def _feature_map(view: GraphView, tensor: str, shapes: _Shapes) -> FeatureMap | None:
    """The channels and positions of a tensor; None where it has none.

    Raises:
        CamrtError: The axis of the channels cannot be told.
    """
    shape = shapes.of(tensor)
    if shape is None or len(shape) not in (3, 4) or not all(isinstance(size, int) for size in shape[1:]):
        return None
    sizes = [size for size in shape[1:] if isinstance(size, int)]
    readings = {axis: _read(tensor, sizes, axis) for axis in range(1, len(shape))}
    if sum(size > 1 for size in sizes) < 2 or not any(readings.values()):
        return None
    told = channels_of(view, tensor, shapes.of)
    if len(told) == 1:
        return readings[told[0].axis]
    candidates = [one.axis for one in told] or [1, len(shape) - 1]
    if all(readings[axis] is None for axis in candidates):
        return None
    listed = [f"axis {axis}, of {sizes[axis - 1]}" for axis in candidates]
    if told:
        listed = [f"{text}, by {one.source}" for text, one in zip(listed, told, strict=True)]
    raise _AxisError(
        f"the axis of the channels of {tensor!r} of shape {shown(shape)} cannot be told: "
        f"it may be {' or '.join(listed)}"
    )


def _read(tensor: str, sizes: Sequence[int], axis: int) -> FeatureMap | None:
    """A tensor of these sizes behind the batch, read with the channels on an axis; None where it has one position."""
    channels, others = sizes[axis - 1], [size for number, size in enumerate(sizes, 1) if number != axis]
    if len(others) == 2:
        height, width = others
        return FeatureMap(tensor, channels, height, width, axis) if height * width > 1 else None
    for prefix in _PREFIX_TOKENS:
        side = math.isqrt(max(0, others[0] - prefix))
        if side > 1 and side * side == others[0] - prefix:
            return FeatureMap(tensor, channels, side, side, axis, prefix)
    return None


def _bottlenecks(view: GraphView, image: str, logits: str) -> Iterator[tuple[str, set[str]]]:
    """List the tensors that everything in the image passes, the last one first, with the operators behind each."""
    depends = dependents(view, image)
    live, passed = {logits}, set[str]()
    for node in reversed(view.needed_for([logits])):
        if not live.intersection(node.output):
            continue
        if len(live) == 1:
            yield next(iter(live)), set(passed)
        live.difference_update(node.output)
        passed.add(operator_of(node))
        read = (*node.input, *captured(node))
        live.update(name for name in read if name in depends and _carries(view, name))
    if len(live) == 1:
        yield next(iter(live)), passed


def as_read(view: GraphView, tensor: str) -> str:
    """The tensor itself; where it is only read to be quantized, what the network computes with: the dequantized tensor.

    Quantizers let the bounds of QuantizeLinear stand for a ReLU, so that the tensor before it has negative values.
    """
    readers = view.consumers.get(tensor, [])
    if len(readers) == 1 and operator_of(readers[0]) == "QuantizeLinear":
        readers = view.consumers.get(readers[0].output[0], [])
        if len(readers) == 1 and operator_of(readers[0]) == "DequantizeLinear":
            return str(readers[0].output[0])
    return tensor


def _before_quantizing(view: GraphView, tensor: str) -> onnx.NodeProto | None:
    """The node that makes a tensor; where it is quantized and dequantized, the node before that."""
    while (node := view.producers.get(tensor)) is not None and operator_of(node) in QUANTIZING:
        tensor = node.input[0]
    return node


def _carries(view: GraphView, tensor: str) -> bool:
    """Whether a tensor holds features: floating-point numbers, or such numbers quantized."""
    maker = view.producers.get(tensor)
    return view.types.get(tensor) in FLOATS or (maker is not None and operator_of(maker) in _TO_INTEGERS)


def dependents(view: GraphView, tensor: str) -> set[str]:
    """A tensor and all that depends on it."""
    reached = {tensor}
    for node in view.model.graph.node:
        if not reached.isdisjoint([*node.input, *captured(node)]):
            reached.update(node.output)
    return reached
