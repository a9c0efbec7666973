"""Convert training networks to their inference form.

Caffe keeps one prototxt for training and testing. For inference, layers of the other phase are dropped, data layers
become inputs, losses become the layer before the comparison, and layers that only feed the comparison are dropped too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from converters.errors import ConversionError
from converters.schema import caffe_pb2
from converters.textformat import UnknownField

Shape = tuple[int, ...]

# Losses and the layers that they become without the comparison. Their softmax_param is kept.
LOSS_LAYERS = {
    "SoftmaxWithLoss": "Softmax",
    "SoftmaxWithLossOHEM": "Softmax",
    "InfogainLoss": "Softmax",
    "SigmoidCrossEntropyLoss": "Sigmoid",
}
# Layers that only compare or store: type -> the bottoms that hold targets (labels, weights, other references).
COMPARISONS = {
    "Accuracy": slice(1, None),
    "ContrastiveLoss": slice(2, None),
    "DetectionEvaluate": slice(1, None),
    "EuclideanLoss": slice(1, None),
    "HDF5Output": slice(0, 0),
    "HingeLoss": slice(1, None),
    "MultiBoxLoss": slice(3, None),
    "MultinomialLogisticLoss": slice(1, None),
    "SmoothL1Loss": slice(1, None),
    "SmoothL1LossOHEM": slice(1, None),
}
SAMPLERS = (
    "ProposalTargetLayer",
)  # draw from their first bottom in training; in use, all of it goes to their first top
# Layers of forks that only train or measure. If the converter does not support one, the network ends before it.
MEASURING = re.compile(r"Loss|Accuracy|Evaluat|^Eval|OHEM$|^Yolov3$|^YoloSeg$|AnchorTarget")
# Layers whose bottoms and tops after the first are only for training: the label, and the weight of a loss.
MARGINS = ("MarginInnerProduct",)
SYMMETRIC = ("EuclideanLoss", "SmoothL1Loss")  # some networks have the label first
DATA_LAYERS = {
    "AnnotatedData": "annotated_data_param",
    "Data": "data_param",
    "HDF5Data": "hdf5_data_param",
    "ImageData": "image_data_param",
    "ImageSegData": "image_data_param",
    "MemoryData": "memory_data_param",
    "VideoData": "data_param",
    "WindowData": "window_data_param",
}


@dataclass(frozen=True)
class State:
    """The state that selects layers: Caffe's NetState."""

    phase: str = "TEST"
    level: int = 0
    stages: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.phase not in ("TEST", "TRAIN"):
            raise ConversionError(f"found the phase {self.phase!r}, expected 'TEST' or 'TRAIN'")

    def describe(self) -> str:
        """The state as text, for messages."""
        return f"phase {self.phase}, level {self.level}, stages {', '.join(sorted(self.stages)) or 'none'}"


@dataclass(frozen=True)
class Draft:
    """A layer as the prototxt describes it; blobs have their names in the file."""

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    params: caffe_pb2.LayerParameter
    extra: Mapping[str, Any] = field(default_factory=dict)
    unknown: tuple[UnknownField, ...] = ()

    def error(self, message: str) -> ConversionError:
        """A ConversionError that names the layer."""
        return ConversionError(message, layer=f"{self.name} ({self.type})")


class Described(Protocol):
    """The attributes that `Draft` and `Layer` share."""

    @property
    def tops(self) -> tuple[str, ...]:
        """The blobs that it writes."""

    @property
    def params(self) -> caffe_pb2.LayerParameter:
        """Its message."""

    def error(self, message: str) -> ConversionError:
        """A ConversionError that names the layer."""


@dataclass(frozen=True)
class DraftInput:
    """An input with its shape as far as the prototxt gives it (None: unknown)."""

    name: str
    shape: tuple[int | None, ...] | None
    length: int = 0  # the number of frames of a video, if given
    is_data: bool = False  # the first top of a data layer: its channels can be inferred from the weights
    is_label: bool = False  # another top of a data layer: dropped if nothing reads it


# ----------------------------------------------------------------------------------------------------- phase and stage


def keeps(layer: Draft, state: State) -> bool:
    """Whether a network in this state has the layer (Caffe's Net::FilterNet).

    Raises:
        ConversionError: Both include and exclude rules.
    """
    include, exclude = layer.params.include, layer.params.exclude
    if include and exclude:
        raise layer.error("found include and exclude rules, expected one kind: Caffe refuses both")
    if include:
        return any(_meets(state, rule) for rule in include)
    return not any(_meets(state, rule) for rule in exclude)


def _meets(state: State, rule: caffe_pb2.NetStateRule) -> bool:
    if rule.HasField("phase") and caffe_pb2.Phase.Name(rule.phase) != state.phase:
        return False
    if rule.HasField("min_level") and state.level < rule.min_level:
        return False
    if rule.HasField("max_level") and state.level > rule.max_level:
        return False
    return state.stages.issuperset(rule.stage) and state.stages.isdisjoint(rule.not_stage)


def was_filtered(layers: Iterable[Draft]) -> bool:
    """Whether Caffe filtered the network before it saved it.

    Caffe saves the filtered network with its rules; applying them for another phase would break it. It also stores the
    phase in every layer. In older files, all layers belong to one phase.
    """
    layers = list(layers)
    if any(layer.params.HasField("phase") for layer in layers):
        return True
    included = [{rule.phase for rule in layer.params.include if rule.HasField("phase")} for layer in layers]
    return any(all(not phases or phase in phases for phases in included) for phase in caffe_pb2.Phase.values())


# ---------------------------------------------------------------------------------------------------------- data layers


def inputs_of(layer: Draft) -> list[DraftInput] | None:
    """The inputs that replace a data layer; None for other layers."""
    if layer.type == "Input":
        return _declared_inputs(layer)
    if layer.type == "DummyData" and any(
        filler.type != "constant" for filler in layer.params.dummy_data_param.data_filler
    ):
        shapes = dummy_shapes(layer)
        return [DraftInput(top, shape) for top, shape in zip(layer.tops, shapes, strict=True)]
    return _from_data_layer(layer) if layer.type in DATA_LAYERS else None


def inputs_of_unknown(layer: Draft) -> list[DraftInput]:
    """The inputs that replace a layer of unknown type without bottoms, which must be a data layer."""
    return _from_data_layer(layer)


def _from_data_layer(layer: Draft) -> list[DraftInput]:
    stated = _stated(layer)
    batch = stated("batch_size") or 1
    is_known = layer.type in DATA_LAYERS and layer.type != "HDF5Data"
    rest = [DraftInput(top, (batch,) if is_known else None, is_label=True) for top in layer.tops[1:]]
    if not layer.tops:
        return []
    shape = _image_shape(layer, batch, stated)
    return [DraftInput(layer.tops[0], shape, length=stated("new_length"), is_data=True), *rest]


def _stated(layer: Draft) -> Callable[[str], int]:
    """A function that returns a numeric field of a data layer, 0 if it is not set.

    It also reads fields that are not in the schema, because the data layers of forks use the same names.
    """
    names = dict.fromkeys([DATA_LAYERS.get(layer.type, "data_param"), "data_param", "image_data_param"])
    messages = [getattr(layer.params, name) for name in names if layer.params.HasField(name)]
    strange = [value for value in layer.extra.values() if isinstance(value, dict)]

    def stated(field: str) -> int:
        values = [fields.get(field, 0) for fields in strange] + [getattr(message, field, 0) for message in messages]
        return next((value for value in values if isinstance(value, int) and value > 0), 0)

    return stated


def _declared_inputs(layer: Draft) -> list[DraftInput]:
    shapes: Sequence[caffe_pb2.BlobShape] = layer.params.input_param.shape
    if not shapes:
        return [DraftInput(top, None) for top in layer.tops]
    if len(shapes) not in (1, len(layer.tops)):
        raise layer.error(f"found {len(shapes)} shapes for {len(layer.tops)} tops, expected one, or one per top")
    each = shapes if len(shapes) == len(layer.tops) else [shapes[0]] * len(layer.tops)
    return [DraftInput(top, tuple(shape.dim)) for top, shape in zip(layer.tops, each, strict=True)]


def dummy_shapes(layer: Described) -> list[Shape]:
    """The shapes of a DummyData layer, one per top.

    Raises:
        ConversionError: There is neither one shape nor one per top.
    """
    param = layer.params.dummy_data_param
    if param.shape:
        shapes = [tuple(shape.dim) for shape in param.shape]
    else:
        count = max(len(param.num), len(param.channels), len(param.height), len(param.width))
        legacy = (param.num, param.channels, param.height, param.width)
        if any(len(sizes) not in (1, count) for sizes in legacy):
            raise layer.error(
                "found num, channels, height and width of different lengths, expected one, or one per top, of each"
            )
        shapes = [tuple(sizes[index if len(sizes) > 1 else 0] for sizes in legacy) for index in range(count)]
    if len(shapes) == 1:
        shapes *= len(layer.tops)
    if len(shapes) != len(layer.tops):
        raise layer.error(f"found {len(shapes)} shapes for {len(layer.tops)} tops, expected one, or one per top")
    return shapes


def _image_shape(layer: Draft, batch: int, stated: Callable[[str], int]) -> tuple[int | None, ...] | None:
    """(N, C, H, W) of a data layer's images; C is None if it must be inferred from the weights."""
    if layer.type == "HDF5Data":
        return None
    if layer.type == "MemoryData":
        memory = layer.params.memory_data_param
        return (batch, memory.channels, memory.height, memory.width)
    height, width = _image_size(layer, stated)
    if not height or not width:
        return None
    transform = layer.params.transform_param
    channels = None
    if transform.force_gray or (layer.type == "ImageData" and not layer.params.image_data_param.is_color):
        channels = 1
    elif transform.force_color or layer.type in ("ImageData", "WindowData", "DenseImageData"):
        channels = 3
    elif len(transform.mean_value) > 1:  # one per channel
        channels = len(transform.mean_value)
    return (batch, channels, height, width)


def _image_size(layer: Draft, stated: Callable[[str], int]) -> tuple[int, int]:
    transform = layer.params.transform_param
    candidates = (
        (transform.crop_size, transform.crop_size),
        (stated("crop_size"), stated("crop_size")),  # its location before transform_param
        (transform.crop_h, transform.crop_w),
        (transform.resize_param.height, transform.resize_param.width),
        (stated("new_height"), stated("new_width")),
    )
    return next((size for size in candidates if all(size)), (0, 0))


# --------------------------------------------------------------------------------------------------------------- losses


@dataclass(frozen=True)
class Deployed:
    """The remaining layers and inputs, the blobs that Silence layers read, and the unknown layers that were cut off."""

    layers: tuple[Draft, ...]
    inputs: tuple[DraftInput, ...]
    silenced: frozenset[str]
    cut: tuple[Draft, ...] = ()


def trainable(layers: Sequence[Draft], inputs: Sequence[DraftInput]) -> Deployed:
    """All layers, as the solver runs them. A loss without a top gets one with its name, as in Caffe."""
    kept = [replace(layer, tops=(layer.name,)) if _is_nameless_loss(layer) else layer for layer in layers]
    return Deployed(tuple(kept), tuple(inputs), frozenset())


def _is_nameless_loss(layer: Draft) -> bool:
    return not layer.tops and layer.type.endswith("Loss")


def deployable(
    layers: Sequence[Draft], inputs: Sequence[DraftInput], is_known: Callable[[Draft], bool] = lambda layer: True
) -> Deployed:
    """Convert losses to their inference form, and drop comparisons with the layers and inputs that only feed them.

    Args:
        layers: The layers that compute.
        inputs: The inputs, labels among them.
        is_known: Whether the converter supports a layer.
    """
    layers, cut = _cut(layers, inputs, is_known)
    kept: list[Draft] = []
    targets: set[str] = set()
    silenced: set[str] = set()
    for layer in layers:
        if layer.type in LOSS_LAYERS:
            kept.append(_without_comparison(layer))
            targets.update(layer.bottoms[1:])
        elif layer.type in MARGINS:
            kept.append(replace(layer, bottoms=layer.bottoms[:1], tops=layer.tops[:1]))
            targets.update(layer.bottoms[1:])
        elif layer.type in COMPARISONS:
            targets.update(_targets(layer, inputs))
        elif layer.type == "Silence":
            silenced.update(layer.bottoms)
        elif _class_of(layer) in SAMPLERS and layer.bottoms and layer.tops:
            kept.append(replace(layer, type="Split", bottoms=layer.bottoms[:1], tops=layer.tops[:1]))
        else:
            kept.append(layer)
    targets |= _from_labels(kept, inputs).intersection(blob for layer in cut for blob in layer.bottoms)
    unused = targets | {blob for blob in silenced if any(blob == data.name and data.is_data for data in inputs)}
    return replace(_prune(kept, inputs, unused, frozenset(silenced)), cut=cut)


def _from_labels(layers: Sequence[Draft], inputs: Sequence[DraftInput]) -> set[str]:
    """The labels, and the blobs that are computed from labels alone."""
    blobs = {data.name for data in inputs if data.is_label}
    for layer in layers:
        if layer.bottoms and blobs.issuperset(layer.bottoms):
            blobs.update(layer.tops)
    return blobs


def _class_of(layer: Draft) -> str:
    """The type of a layer, or the class of a Python layer."""
    return layer.params.python_param.layer if layer.type == "Python" else layer.type


def _cut(
    layers: Sequence[Draft], inputs: Sequence[DraftInput], is_known: Callable[[Draft], bool]
) -> tuple[list[Draft], tuple[Draft, ...]]:
    """Cut off layers of unknown type that measure: they read a label, or their type is in `MEASURING`."""
    labels = {data.name for data in inputs if data.is_label}
    kept: list[Draft] = []
    cut: list[Draft] = []
    read: set[str] = set()
    for layer in reversed(layers):
        is_read = not read.isdisjoint(layer.tops)
        if (
            not is_read
            and not is_known(layer)
            and (MEASURING.search(_class_of(layer)) or not labels.isdisjoint(layer.bottoms))
        ):
            cut.append(layer)
            continue
        if layer.type != "Silence" and layer.type not in COMPARISONS:
            read.update(layer.bottoms)
        kept.append(layer)
    gone = {top for layer in cut for top in layer.tops}
    left = [layer for layer in reversed(kept) if not (layer.type == "Silence" and gone.issuperset(layer.bottoms))]
    return left, tuple(reversed(cut))


def _targets(layer: Draft, inputs: Sequence[DraftInput]) -> Sequence[str]:
    """The bottoms of a comparison that hold targets."""
    given = {data.name for data in inputs}
    if layer.type in SYMMETRIC and [blob in given for blob in layer.bottoms[:2]] == [True, False]:
        return layer.bottoms[:1]
    return layer.bottoms[COMPARISONS[layer.type]]


def _without_comparison(layer: Draft) -> Draft:
    if not layer.bottoms:
        raise layer.error("found no bottom, expected the scores and the label")
    # A second top holds the probabilities; without tops, Caffe adds an unnamed one.
    top = layer.tops[1] if len(layer.tops) > 1 else layer.tops[0] if layer.tops else layer.name
    return replace(layer, type=LOSS_LAYERS[layer.type], bottoms=layer.bottoms[:1], tops=(top,))


def _prune(layers: list[Draft], inputs: Sequence[DraftInput], targets: set[str], silenced: frozenset[str]) -> Deployed:
    """Drop, from the end, the layers whose tops are all unused targets."""
    uses = Counter(bottom for layer in layers for bottom in layer.bottoms)
    kept: list[Draft] = []
    for layer in reversed(layers):
        if layer.tops and all(top in targets and uses[top] == layer.bottoms.count(top) for top in layer.tops):
            uses.subtract(layer.bottoms)
            targets.update(layer.bottoms)
        else:
            kept.append(layer)
    left = tuple(data for data in inputs if uses[data.name] or not (data.is_label or data.name in targets))
    return Deployed(tuple(reversed(kept)), left, silenced)
