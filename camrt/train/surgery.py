"""Net surgery: convert the prototxt of a classifier to that of a CAM network.

The network is modified as by Zhou et al. (2016, section 3): all layers after a convolution are replaced by ``CAM_conv``
(3 x 3, stride 1, pad 1), global average pooling, and a linear layer. The names and fillers are those of the released
``train_val_googlenetCAM.prototxt`` and ``deploy_vgg16CAM.prototxt``. The remaining layers keep their names, so that
they can be initialized from the classifier's ``.caffemodel``. If the network already has a CAM head, the new layers are
named ``CAM_conv_2`` and so on, so that they are not initialized from it.

A recipe makes one of the networks of the paper: it says where a known classifier is cut, and what follows.

Only the description is changed. Neither weights nor PyTorch are needed.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from camrt.errors import CamrtError
from converters import deploy, zoo
from converters.deploy import Draft, State
from converters.encoding import replacing, sweep
from converters.errors import ConversionError
from converters.reader import Network as Description
from converters.reader import read_prototxt
from converters.schema import caffe_pb2

CHANNELS, GROUP = 1024, 2  # of CAM_conv in the released networks
BATCH = 32
MEAN = (104.0, 117.0, 123.0)  # of ImageNet, BGR, as in the released train_val_googlenetCAM.prototxt

_HEAD = ("CAM_conv", "CAM_relu", "CAM_pool", "CAM_dropout", "CAM_fc")
_MEASURES = {"loss": "SoftmaxWithLoss", "accuracy/top-1": "Accuracy", "accuracy/top-5": "Accuracy"}
_CONVOLUTIONS = ("Convolution", "Deconvolution")
# Layer types that belong to the layer before them: the network is cut after them.
_FOLLOWERS = ("BatchNorm", "Scale", "Bias", "ReLU", "PReLU", "ELU", "Swish", "Clip")
# Layer types whose tops are not feature maps.
_FLAT = ("InnerProduct", "Flatten", "Reshape", "Softmax", "SPP", "ArgMax", "Reduction", "Embed", "LSTM", "RNN")
_KEEP_CHANNELS = (*_FOLLOWERS, "Pooling", "LRN", "Dropout", "Eltwise", "Power", "TanH", "Sigmoid", "AbsVal", "BNLL")

# A blob as written by one layer, since layers in place write several versions of a blob: the index of the layer, or -1
# for an input of the net, and the name of the blob.
_Version = tuple[int, str]


@dataclass(frozen=True)
class Surgery:
    """The result of net surgery.

    Attributes:
        message: The new network: data layers, kept layers, the new head, loss and accuracies.
        after: The last kept layer: the given layer, or the last of the layers that belong to it.
        kept: The names of the kept layers.
        dropped: The names of the removed layers.
        new: The names of the new layers that have weights.
        file: The original prototxt.
    """

    message: caffe_pb2.NetParameter
    after: str
    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    new: tuple[str, ...]
    file: str

    def text(self) -> str:
        """Return the prototxt of the new network."""
        head = f"# {Path(self.file).name}, cut after {self.after}, with the head of a CAM network: camrt surgery\n"
        return head + text_format.MessageToString(self.message)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the prototxt. An existing file is replaced once the new one is complete.

        Raises:
            CamrtError: The file cannot be written.
        """
        file = Path(path)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            sweep(file.parent, file.name)
            with replacing(file) as stream:
                stream.write(self.text().encode())
        except OSError as error:
            raise CamrtError(f"cannot be written: {error.strerror or error}", file=str(file)) from error


def surgery(
    prototxt: str | os.PathLike[str] | Description,
    after: str,
    *,
    classes: int,
    channels: int = CHANNELS,
    group: int = GROUP,
    dropout: float = 0.0,
    train: str = "train.txt",
    test: str = "val.txt",
    batch: int = BATCH,
) -> Surgery:
    """Replace all layers of a classifier after a convolution by the head of a CAM network.

    Args:
        prototxt: The classifier: a deploy or train_val prototxt, in V1 or V2 format.
        after: The layer after which the network is cut: a convolution, or another layer whose output is feature maps,
            such as the Concat of an inception module. BatchNorm, Scale, ReLU and similar layers that follow it are
            kept.
        classes: The number of classes.
        channels: The number of channels of ``CAM_conv``. If 0, this layer is omitted, and the feature maps of
            ``after`` are pooled.
        group: The groups of ``CAM_conv``; 2 in the released networks.
        dropout: The ratio of a Dropout layer before the linear layer; 0.5 in the released vgg16CAM. 0 for none.
        train: The list of training images, a line ``path label`` for each, if the prototxt has no data layers.
        test: The list of test images, if the prototxt has no data layers.
        batch: The batch size, if the prototxt has no data layers.

    Returns:
        The new network. Existing data layers are kept unchanged.

    Raises:
        CamrtError: The layer does not exist, has no feature maps or is on one of several parallel branches (the
            message suggests other layers), or an argument is invalid.
        ConversionError: The prototxt cannot be read.
    """
    network = prototxt if isinstance(prototxt, Description) else read_prototxt(prototxt)
    try:
        _check_numbers(classes=classes, group=group, batch=batch)
        if channels:
            _check_numbers(channels=channels)
        if not 0 <= dropout < 1:
            raise CamrtError(f"found dropout {dropout}, expected 0 or more, and less than 1")

        def add_head(message: caffe_pb2.NetParameter, plan: _Plan) -> _Head:
            names = _names(network)
            maps = plan.cut[1]
            if channels:
                _check_groups(channels, plan, group)
                maps = _add_convolution(message, maps, names, channels, group)
            scores = _add_classifier(message, maps, names, classes, dropout)
            learning = [names[name] for name in ("CAM_conv", "CAM_fc") if channels or name == "CAM_fc"]
            return _Head(scores, tuple(learning))

        return _operated(network, after, add_head, classes, _Lists(train, test, batch))
    except (CamrtError, ConversionError) as error:
        raise error.in_file(network.file) from None


@dataclass(frozen=True)
class _Head:
    """The new layers: the blob of the scores, and the names of those that have weights."""

    scores: str
    learning: tuple[str, ...]


@dataclass(frozen=True)
class _Lists:
    """The data layers of a network that has none."""

    train: str
    test: str
    batch: int


def _operated(
    network: Description,
    after: str,
    add_head: Callable[[caffe_pb2.NetParameter, _Plan], _Head],
    classes: int,
    lists: _Lists,
) -> Surgery:
    """Cut the network, and add data layers, a head and its measures."""
    plans = [_Plan.of(network, phase, after) for phase in ("TRAIN", "TEST")]
    kept = {index for plan in plans for index in plan.kept}
    _refuse_unknown(network, kept)
    message = caffe_pb2.NetParameter(name=f"{network.message.name or 'net'}_CAM")
    _add_data(message, network, plans, lists.train, lists.test, lists.batch)
    layers = [layer for index, layer in enumerate(network.message.layer) if index in kept]
    message.layer.extend(layers)
    head = add_head(message, plans[0])
    _add_measures(message, head.scores, _label(message), classes)
    return Surgery(
        message=message,
        after=plans[0].end,
        kept=tuple(layer.name for layer in layers),
        dropped=_dropped(network, kept),
        new=head.learning,
        file=network.file,
    )


# --------------------------------------------------------------------------------------------------------- the recipes


@dataclass(frozen=True)
class _Recipe:
    """How the paper makes a CAM network from a classifier.

    Attributes:
        after: Returns the layer to cut after.
        of: The classifier, for messages.
        channels: The channels of ``CAM_conv``, in two groups; 0 for none.
        dropout: The ratio of the Dropout layer before the linear layer.
    """

    after: Callable[[Description], str]
    of: str
    channels: int = CHANNELS
    dropout: float = 0.0


def before_global_pooling(network: Description) -> str:
    """Return the layer whose output the last average pooling of a network reads.

    Raises:
        CamrtError: The network has no average pooling.
    """
    layers = network.message.layer
    average = caffe_pb2.PoolingParameter.AVE
    pools = [layer for layer in layers if layer.type == "Pooling" and layer.pooling_param.pool == average]
    if pools:
        writers = [layer.name for layer in layers if pools[-1].bottom[0] in layer.top]
        if writers:
            return writers[-1]
    raise CamrtError(
        "found no average pooling, expected a network that ends in one. Use camrt surgery --after LAYER first",
        file=network.file,
    )


RECIPES = {
    "alexnetplus": _Recipe(lambda _: "conv4", "AlexNet or CaffeNet"),
    "vgg16": _Recipe(lambda _: "conv5_3", "VGG-16", dropout=0.5),
    "googlenet": _Recipe(lambda _: "inception_4e/output", "GoogLeNet"),
    "inception_v3": _Recipe(before_global_pooling, "Inception v3", channels=0),
}


def apply_recipe(
    prototxt: str | os.PathLike[str] | Description,
    recipe: str,
    *,
    classes: int,
    train: str = "train.txt",
    test: str = "val.txt",
    batch: int = BATCH,
) -> Surgery:
    """Make one of the CAM networks of Zhou et al. (2016, section 3) from the classifier that they started from.

    =================  =====================  ==========================================================================
    recipe             classifier             result
    =================  =====================  ==========================================================================
    ``alexnetplus``    AlexNet or CaffeNet    the released AlexNet+: pool5 with stride 1, conv5 of 384 channels, conv6
                                              and conv7 of 512
    ``vgg16``          VGG-16                 the released vgg16CAM
    ``googlenet``      GoogLeNet              the released googlenetCAM
    ``inception_v3``   Inception v3           its last feature maps, global average pooling and a linear layer
    =================  =====================  ==========================================================================

    The released AlexNet+ pools before it normalizes, as CaffeNet does. In AlexNet, which normalizes first, the two
    layers are exchanged. New layers that have the name of a layer with weights get a number: ``conv5_2``.

    Args:
        prototxt: The classifier: a deploy or train_val prototxt, in V1 or V2 format.
        recipe: A name of the table.
        classes: The number of classes.
        train: The list of training images, if the prototxt has no data layers.
        test: The list of test images, if the prototxt has no data layers.
        batch: The batch size, if the prototxt has no data layers.

    Returns:
        The new network.

    Raises:
        CamrtError: There is no such recipe, or the prototxt is another classifier.
        ConversionError: The prototxt cannot be read.
    """
    if recipe not in RECIPES:
        raise CamrtError(f"found the recipe {recipe!r}, expected one of {', '.join(RECIPES)}")
    network = prototxt if isinstance(prototxt, Description) else read_prototxt(prototxt)
    chosen = RECIPES[recipe]
    after = chosen.after(network)
    if not any(layer.name == after for layer in network.message.layer):
        raise CamrtError(
            f"there is no layer named {after!r}, expected {chosen.of}: the recipe {recipe} cuts after this layer. For "
            "another network, use --after",
            file=network.file,
        )
    if recipe == "alexnetplus":
        return _alexnetplus(network, after, classes, _Lists(train, test, batch))
    return surgery(
        network,
        after,
        classes=classes,
        channels=chosen.channels,
        dropout=chosen.dropout,
        train=train,
        test=test,
        batch=batch,
    )


def _alexnetplus(network: Description, after: str, classes: int, lists: _Lists) -> Surgery:
    """Replace what follows conv4 by the layers of the released AlexNet+."""
    released = read_prototxt(zoo.models_folder() / "alexnetplusCAM_imagenet.prototxt").message.layer
    names = [layer.name for layer in released]
    head = released[names.index("relu4") + 1 : names.index("prob")]
    learned = {layer.name for layer in network.message.layer if layer.type in (*_CONVOLUTIONS, "InnerProduct")}
    renamed = {layer.name: f"{layer.name}_2" for layer in head if layer.name in learned}

    def add_head(message: caffe_pb2.NetParameter, plan: _Plan) -> _Head:
        blobs = {"conv4": plan.cut[1], **renamed}
        learning = []
        for one in head:
            layer = message.layer.add()
            layer.CopyFrom(one)
            layer.name = renamed.get(one.name, one.name)
            layer.bottom[:] = [blobs.get(blob, blob) for blob in one.bottom]
            layer.top[:] = [blobs.get(blob, blob) for blob in one.top]
            if one.type == "Convolution":
                _fill(_learning(layer).convolution_param, type="gaussian", std=0.01)
            elif one.type == "InnerProduct":
                layer.inner_product_param.num_output = classes
                _fill(_learning(layer).inner_product_param, type="xavier")
            if layer.param:
                learning.append(layer.name)
        return _Head(message.layer[-1].top[0], tuple(learning))

    try:
        _check_numbers(classes=classes, batch=lists.batch)
        return _operated(_pooled_first(network), after, add_head, classes, lists)
    except (CamrtError, ConversionError) as error:
        raise error.in_file(network.file) from None


def _pooled_first(network: Description) -> Description:
    """Return AlexNet with the order of CaffeNet: pooling, then normalization."""
    message = caffe_pb2.NetParameter()
    message.CopyFrom(network.message)
    layers = {layer.name: layer for layer in message.layer}
    for norm, pool in ((layers.get(f"norm{each}"), layers.get(f"pool{each}")) for each in (1, 2)):
        if norm is None or pool is None or pool.bottom[:] != norm.top[:] or norm.top[:] == norm.bottom[:]:
            continue
        first, second = list(message.layer).index(norm), list(message.layer).index(pool)
        source, normed, pooled = norm.bottom[0], norm.top[0], pool.top[0]
        for layer in message.layer[second + 1 :]:
            layer.bottom[:] = [normed if blob == pooled else blob for blob in layer.bottom]
        norm.bottom[:], pool.bottom[:] = [pooled], [source]
        copies = [caffe_pb2.LayerParameter.FromString(one.SerializeToString()) for one in (pool, norm)]
        message.layer[first].CopyFrom(copies[0])
        message.layer[second].CopyFrom(copies[1])
        layers = {layer.name: layer for layer in message.layer}
    return replace(network, message=message)


def _check_numbers(**numbers: int) -> None:
    for name, number in numbers.items():
        if not 1 <= number < 1 << 20:
            raise CamrtError(f"found {name} {number}, expected 1 to {(1 << 20) - 1:,}")


def _check_groups(channels: int, plan: _Plan, group: int) -> None:
    for what, number in (("channels", channels), (f"channels of {plan.cut[1]!r}", _channels_at(plan))):
        if number is not None and number % group:
            raise CamrtError(f"found {number} {what}, expected a multiple of the {group} groups: use --group 1")


def _dropped(network: Description, kept: set[int]) -> tuple[str, ...]:
    names = dict.fromkeys(
        layer.name
        for index, layer in enumerate(network.message.layer)
        if index not in kept and not _is_data(layer) and layer.type != "Input"
    )
    return tuple(names)


def _refuse_unknown(network: Description, kept: set[int]) -> None:
    """Raise an error for unknown fields in kept layers, since they would be missing in the new prototxt."""
    for one in network.unknown:
        if one.path and one.path[0][0] == "layer" and one.path[0][1] in kept:
            raise CamrtError(
                f"found the unknown field {one.name!r} (line {one.line}) in a layer to keep, expected fields of "
                "LayerParameter: the field would be lost. Remove it first"
            )


# ------------------------------------------------------------------------------------------------------------ the cut


@dataclass(frozen=True)
class _Plan:
    """The cut of the network in one phase.

    Attributes:
        drafts: The layers of the phase, by their index in the file.
        cut: The blob that the new head reads.
        end: The layer that writes this blob.
        kept: The indices of the kept layers, without data layers.
        image: The blob of the images.
        data: The data layer that writes the images; None if they are an input.
        reads: The blobs that each layer reads.
    """

    drafts: dict[int, Draft]
    cut: _Version
    end: str
    kept: frozenset[int]
    image: str
    data: int | None
    reads: dict[int, tuple[_Version, ...]] = field(repr=False)

    @classmethod
    def of(cls, network: Description, phase: str, after: str) -> _Plan:
        drafts = {
            index: Draft(params.name, params.type, tuple(params.bottom), tuple(params.top), params)
            for index, params in enumerate(network.message.layer)
        }
        state = State(phase, stages=frozenset(network.message.state.stage))
        drafts = {index: draft for index, draft in drafts.items() if deploy.keeps(draft, state)}
        reads = _reads(drafts)
        named = _named(drafts, after)
        _refuse_flat(drafts, reads, named)
        end = _last_follower(drafts, reads, named)
        cut = (end, drafts[end].tops[0])
        ancestors = _ancestors(reads, end)
        roots = _roots(drafts, reads, ancestors)
        if len(roots) != 1:
            names = ", ".join(sorted(blob for _, blob in roots)) or "none"
            raise CamrtError(f"found {len(roots)} inputs before {after!r} ({names}), expected one: the images")
        ((source, image),) = roots
        if source < 0 and image not in network.message.input:
            raise CamrtError(
                f"found a layer that reads {image!r}, which no layer writes, expected an input or the top of a layer"
            )
        _refuse_branch(drafts, reads, (source, image), end, after)
        kept = frozenset(index for index in ancestors if index != source)
        return cls(drafts, cut, drafts[end].name, kept, image, None if source < 0 else source, reads)


def _is_data(layer: caffe_pb2.LayerParameter) -> bool:
    return layer.type in (*deploy.DATA_LAYERS, "DummyData", "Python") and not layer.bottom


def _reads(drafts: dict[int, Draft]) -> dict[int, tuple[_Version, ...]]:
    """Return the versions of blobs that each layer reads. A layer in place writes a new version of its bottom."""
    written: dict[str, int] = {}
    reads = {}
    for index, draft in drafts.items():
        reads[index] = tuple((written.get(blob, -1), blob) for blob in draft.bottoms)
        written.update(dict.fromkeys(draft.tops, index))
    return reads


def _named(drafts: dict[int, Draft], after: str) -> int:
    found = [index for index, draft in drafts.items() if draft.name == after]
    if len(found) == 1:
        return found[0]
    if found:
        raise CamrtError(f"found {len(found)} layers named {after!r}, expected one")
    convolutions = [draft.name for draft in drafts.values() if draft.type in _CONVOLUTIONS]
    close = difflib.get_close_matches(after, [draft.name for draft in drafts.values()], n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise CamrtError(f"there is no layer named {after!r}.{hint} Its convolutions: {_listed(convolutions) or 'none'}")


def _refuse_flat(drafts: dict[int, Draft], reads: dict[int, tuple[_Version, ...]], named: int) -> None:
    before = _ancestors(reads, named)
    flat = next((index for index in sorted(before) if drafts[index].type in _FLAT or _pools_all(drafts[index])), None)
    convolved = [index for index in before if drafts[index].type in _CONVOLUTIONS]
    draft = drafts[named]
    if flat is None and convolved and len(draft.tops) == 1:
        return
    if len(draft.tops) != 1:
        why = f"has {len(draft.tops)} tops"
    elif flat is None:
        why = "comes before the first convolution"
    elif flat == named:
        why = "does not output feature maps"
    else:
        why = f"comes after {drafts[flat].name!r} ({drafts[flat].type}), which does not output feature maps"
    convolutions = [
        each.name
        for index, each in drafts.items()
        if each.type in _CONVOLUTIONS and not any(drafts[i].type in _FLAT for i in _ancestors(reads, index))
    ]
    listed = _listed(convolutions) or "the network has none"
    raise CamrtError(f"the layer {draft.name!r} ({draft.type}) {why}, expected a convolution: {listed}")


def _pools_all(draft: Draft) -> bool:
    return draft.type == "Pooling" and draft.params.pooling_param.global_pooling


def _last_follower(drafts: dict[int, Draft], reads: dict[int, tuple[_Version, ...]], index: int) -> int:
    """Return the last layer of the chain of followers that begins at a layer."""
    while True:
        version = (index, drafts[index].tops[0])
        readers = [other for other, read in reads.items() if version in read]
        if len(readers) != 1 or drafts[readers[0]].type not in _FOLLOWERS or len(drafts[readers[0]].bottoms) != 1:
            return index
        index = readers[0]


def _ancestors(reads: dict[int, tuple[_Version, ...]], index: int) -> set[int]:
    """Return the layer and all layers that it depends on."""
    found: set[int] = set()
    pending = [index]
    while pending:
        one = pending.pop()
        if one >= 0 and one not in found:
            found.add(one)
            pending += [writer for writer, _ in reads[one]]
    return found


def _roots(drafts: dict[int, Draft], reads: dict[int, tuple[_Version, ...]], ancestors: set[int]) -> set[_Version]:
    """Return the blobs that are inputs or tops of data layers."""
    return {
        version for index in ancestors for version in reads[index] if version[0] < 0 or not drafts[version[0]].bottoms
    }


def _refuse_branch(
    drafts: dict[int, Draft], reads: dict[int, tuple[_Version, ...]], image: _Version, end: int, after: str
) -> None:
    """Raise an error if a later layer depends on the image other than through the cut."""
    if not _bypasses(reads, image, end):
        return
    after_cut = _descendants(reads, {(end, drafts[end].tops[0])})
    joins = (
        drafts[index].name
        for index in sorted(after_cut)
        if not any(drafts[i].type in _FLAT or _pools_all(drafts[i]) for i in _ancestors(reads, index))
        and not _bypasses(reads, image, index)
    )
    join = next(joins, None)
    hint = f": cut after {join!r}, where they meet" if join is not None else ""
    raise CamrtError(f"the layer {after!r} is on one of several branches, expected a layer on all paths{hint}")


def _bypasses(reads: dict[int, tuple[_Version, ...]], image: _Version, cut: int) -> bool:
    """Return whether a layer after the cut also depends on the image through another path."""
    after_cut = _descendants(reads, {version for read in reads.values() for version in read if version[0] == cut})
    past = _descendants(reads, {image}, but=cut)
    return not after_cut.isdisjoint(past)


def _descendants(reads: dict[int, tuple[_Version, ...]], start: set[_Version], but: int | None = None) -> set[int]:
    """Return the layers that depend on some blobs on a path without the layer ``but``."""
    found: set[int] = set()
    for index, read in reads.items():
        if index != but and any(version in start or version[0] in found for version in read):
            found.add(index)
    return found


def _channels_at(plan: _Plan) -> int | None:
    """Return the number of channels at the cut; None if it cannot be inferred."""
    channels: dict[_Version, int | None] = {}
    for index, draft in plan.drafts.items():
        below = [channels.get(version) for version in plan.reads[index]]
        known = [number for number in below if number is not None]
        found = None
        if draft.type in _CONVOLUTIONS:
            found = draft.params.convolution_param.num_output or None
        elif draft.type == "Concat" and len(known) == len(below):
            found = sum(known)
        elif draft.type in _KEEP_CHANNELS and known:
            found = known[0]
        channels.update(((index, top), found) for top in draft.tops)
    return channels[plan.cut]


def _listed(names: Sequence[str], most: int = 12) -> str:
    """Join names, and shorten long lists to the last ones, since networks are cut near their end."""
    return ("..., " if len(names) > most else "") + ", ".join(names[-most:])


# ------------------------------------------------------------------------------------------------------- what is added


def _add_data(
    message: caffe_pb2.NetParameter, network: Description, plans: Sequence[_Plan], train: str, test: str, batch: int
) -> None:
    """Add the data layers of the prototxt, or ImageData layers if the images are an input."""
    given = dict.fromkeys(plan.data for plan in plans)
    if None not in given and all(network.message.layer[i or 0].type != "Input" for i in given):
        message.layer.extend(network.message.layer[index] for index in given if index is not None)
        return
    image = plans[0].image
    channels, height, width = _input_shape(network, image)
    if channels not in (1, 3):
        raise CamrtError(f"found the input {image!r} with {channels} channels, expected images of 3 channels or 1")
    for phase, source in (("TRAIN", train), ("TEST", test)):
        layer = message.layer.add(name="data", type="ImageData", top=[image, "label"])
        layer.include.add().MergeFrom(caffe_pb2.NetStateRule(phase=phase))
        transform, images = layer.transform_param, layer.image_data_param
        transform.mirror = phase == "TRAIN"
        if channels == 3:
            transform.mean_value.extend(MEAN)
        images.source, images.batch_size, images.shuffle = source, batch, phase == "TRAIN"
        images.is_color = channels == 3
        images.new_height, images.new_width = height, width
        if height == width:
            transform.crop_size = height
            images.new_height = images.new_width = _side(height)


def _side(crop: int) -> int:
    """Return the size to which images are resized before a square crop: 256 for 224 and 227, 342 for 299."""
    side = round(crop * 8 / 7)
    return min(side, 256) if crop <= 256 else side


def _input_shape(network: Description, image: str) -> tuple[int, int, int]:
    """Return channels, height and width of an input, from `input_param`, `input_shape` or `input_dim`."""
    net = network.message
    shapes: list[Sequence[int]] = []
    for layer in net.layer:
        if layer.type == "Input" and image in layer.top:
            declared = layer.input_param.shape
            index = list(layer.top).index(image) if len(declared) > 1 else 0
            shapes += [shape.dim for shape in declared[index : index + 1]]
    if image in net.input:
        index = list(net.input).index(image)
        shapes += [shape.dim for shape in net.input_shape[index : index + 1]]
        shapes += [net.input_dim[4 * index : 4 * index + 4]]
    shape = next((tuple(shape) for shape in shapes if len(shape)), ())
    if len(shape) != 4 or min(shape[1:]) < 1:
        shown = " x ".join(map(str, shape)) or "unknown"
        raise CamrtError(f"found the input {image!r} of shape {shown}, expected batch, channels, height and width")
    return shape[1], shape[2], shape[3]


def _label(message: caffe_pb2.NetParameter) -> str:
    """Return the blob of the labels: the second top of the data layers."""
    labels = {tuple(layer.top[1:]) for layer in message.layer if _is_data(layer)}
    if len(labels) != 1 or len(label := labels.pop()) != 1:
        found = "; ".join(f"{layer.name}: {', '.join(layer.top)}" for layer in message.layer if _is_data(layer))
        raise CamrtError(
            f"found data layers with the tops {found}, expected images and labels, the same in both phases"
        )
    return label[0]


def _names(network: Description) -> dict[str, str]:
    """Return the names of the new layers, with a number appended if layers or blobs of these names exist."""
    taken = {name for layer in network.message.layer for name in (layer.name, *layer.top)}
    endings = ("", *(f"_{number}" for number in range(2, len(taken) + 3)))
    ending = next(each for each in endings if taken.isdisjoint(f"{name}{each}" for name in _HEAD))
    return {name: f"{name}{ending}" for name in _HEAD}


def _add_convolution(
    message: caffe_pb2.NetParameter, bottom: str, names: dict[str, str], channels: int, group: int
) -> str:
    """Add CAM_conv and its ReLU. Return their blob."""
    name = names["CAM_conv"]
    layer = _learning(message.layer.add(name=name, type="Convolution", bottom=[bottom], top=[name]))
    window = caffe_pb2.ConvolutionParameter(num_output=channels, pad=[1], kernel_size=[3], group=group)
    layer.convolution_param.MergeFrom(window)
    _fill(layer.convolution_param, type="gaussian", std=0.01)
    message.layer.add(name=names["CAM_relu"], type="ReLU", bottom=[name], top=[name])
    return name


def _add_classifier(
    message: caffe_pb2.NetParameter, bottom: str, names: dict[str, str], classes: int, dropout: float
) -> str:
    """Add CAM_pool, CAM_dropout and CAM_fc. Return the blob of the scores."""
    pooled, scores = names["CAM_pool"], names["CAM_fc"]
    pool = message.layer.add(name=pooled, type="Pooling", bottom=[bottom], top=[pooled])
    pool.pooling_param.MergeFrom(caffe_pb2.PoolingParameter(pool="AVE", global_pooling=True))
    if dropout:
        drop = message.layer.add(name=names["CAM_dropout"], type="Dropout", bottom=[pooled], top=[pooled])
        drop.dropout_param.dropout_ratio = dropout
    linear = _learning(message.layer.add(name=scores, type="InnerProduct", bottom=[pooled], top=[scores]))
    linear.inner_product_param.num_output = classes
    _fill(linear.inner_product_param, type="xavier")
    return scores


def _add_measures(message: caffe_pb2.NetParameter, scores: str, label: str, classes: int) -> None:
    """Add the loss, and the accuracies of the TEST phase."""
    taken = {name for layer in message.layer for name in (layer.name, *layer.top)}
    if clashes := taken & _MEASURES.keys():
        raise CamrtError(
            f"found the names {', '.join(sorted(clashes))} in kept layers, expected other names: the new layers have "
            "these. Rename the layers"
        )
    for name, kind in _MEASURES.items():
        if name == "accuracy/top-5" and classes <= 5:
            continue
        layer = message.layer.add(name=name, type=kind, bottom=[scores, label], top=[name])
        if kind == "Accuracy":
            layer.include.add().MergeFrom(caffe_pb2.NetStateRule(phase="TEST"))
            layer.accuracy_param.top_k = 5 if name == "accuracy/top-5" else 1
        else:
            layer.loss_weight.append(1)


def _learning(layer: caffe_pb2.LayerParameter) -> caffe_pb2.LayerParameter:
    """Set the multipliers of the released networks: the bias has twice the learning rate and no weight decay."""
    layer.param.add(lr_mult=1, decay_mult=1)
    layer.param.add(lr_mult=2, decay_mult=0)
    return layer


def _fill(param: Any, **weights: Any) -> None:
    param.weight_filler.MergeFrom(caffe_pb2.FillerParameter(**weights))
    param.bias_filler.MergeFrom(caffe_pb2.FillerParameter(type="constant", value=0))
