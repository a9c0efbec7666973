"""The network between reading and converting: layers in order, every blob with one producer, weights attached."""

from __future__ import annotations

import difflib
import math
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from converters import deploy, registry
from converters.deploy import Draft, DraftInput, State
from converters.errors import ConversionError, ConversionWarning
from converters.reader import Network, PathLike, Weights, holds_weights, read_prototxt, read_weights
from converters.schema import caffe_pb2
from converters.shape import MAX_AXES, show
from converters.textformat import UnknownField, add_unknown, shortened

MAX_BLOB = 2**31 - 1  # elements; Caffe counts them in an int
MANY = 2**31  # more blobs than any layer has
MAX_INPUTS = 1000


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of a network.

    Attributes:
        name: Its name in the file.
        type: Caffe's type, as ``"Convolution"``.
        bottoms: The tensors it reads. Names are the file's, but for blobs that were written in place (see ``Net``).
        tops: The tensors it writes.
        params: Its message, with ``pooling_param`` and the like; no weights.
        blobs: Its weights in Caffe's order and layout: float32, read-only, views of the file wherever possible.
        extra: The fields of its description that the schema does not know, as plain Python: what a plugin reads.
        source: The file that its weights come from, for errors.
        scale: With a BatchNorm: the Scale layer that follows it, where one node computes both.
        filler: Makes the weights of a layer that has none, from their shapes; None to refuse such a layer.
    """

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    params: caffe_pb2.LayerParameter
    blobs: tuple[np.ndarray, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    scale: Layer | None = None
    filler: Callable[[Layer, Sequence[tuple[int, ...]]], Sequence[np.ndarray]] | None = None

    def error(self, message: str) -> ConversionError:
        """A ConversionError that names the layer."""
        return ConversionError(message, layer=f"{self.name} ({self.type})")

    def expect(self, *, bottoms: int | range, tops: int | range) -> None:
        """Check how many blobs the layer reads and writes.

        Raises:
            ConversionError: Another number of them.
        """
        for what, found, expected in (("bottom", self.bottoms, bottoms), ("top", self.tops, tops)):
            allowed = range(expected, expected + 1) if isinstance(expected, int) else expected
            if len(found) not in allowed:
                least, most = allowed.start, allowed.stop - 1
                number = str(least) if least == most else f"{least} to {most}" if most < MANY else f"{least} or more"
                raise self.error(f"found {len(found)} {what}(s) ({', '.join(found) or 'none'}), expected {number}")

    def ends(self) -> tuple[str, tuple[str, ...]]:
        """The bottom, and the top as node outputs, of a layer that has one of each.

        Raises:
            ConversionError: It has not.
        """
        self.expect(bottoms=1, tops=1)
        return self.bottoms[0], self.tops

    def weights(self, *shapes: Sequence[int]) -> list[np.ndarray]:
        """The layer's weights, checked.

        Args:
            shapes: The shape of each blob that the layer must have. The four-dimensional shapes of files before 2015
                (a bias of 1 x 1 x 1 x n) are recognised.

        Returns:
            One float32 array of each shape: views.

        Raises:
            ConversionError: No weights, another number of blobs, or another shape.
        """
        if not self.blobs and self.filler is not None:
            return list(self.filler(self, [tuple(shape) for shape in shapes]))
        expected = ", ".join(show(shape) for shape in shapes)
        if not self.blobs and shapes:
            where = f"in {self.source}" if self.source else "because no .caffemodel was given"
            raise self.error(f"found no weights {where}, expected {len(shapes)} blob(s) of shape {expected}")
        if len(self.blobs) != len(shapes):
            found = ", ".join(show(blob.shape) for blob in self.blobs)
            raise self.error(
                f"found {len(self.blobs)} blob(s) of shape {found} in {self.source}, expected {len(shapes)} of shape "
                f"{expected}: the prototxt and the weights do not belong together"
            )
        return [self._shaped(index, tuple(shape)) for index, shape in enumerate(shapes)]

    def _shaped(self, index: int, shape: tuple[int, ...]) -> np.ndarray:
        blob = self.blobs[index]
        legacy = (1,) * (4 - len(shape)) + shape
        if blob.shape not in (shape, legacy):
            raise self.error(
                f"found shape {show(blob.shape)} for blob {index} in {self.source}, expected {show(shape)}: "
                "the prototxt and the weights do not belong together, or the input has another size"
            )
        return blob.reshape(shape)


@dataclass(frozen=True)
class Input:
    """An input of a network.

    Attributes:
        name: The blob.
        shape: Its declared shape, batch included; None where the description does not say it.
    """

    name: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True, eq=False)
class Net:
    """A network ready to convert.

    Where layers write a blob in place, each version has a name of its own: the last keeps the blob's name, earlier ones
    are ``<blob>@<layer>``. If the blob is an input, the input keeps the name and the last version is named after its
    layer.

    Attributes:
        name: The network's name.
        inputs: In the file's order.
        layers: In the file's order, which is that of execution.
        outputs: The tensors that no layer reads, in the order of their layers.
        tensors: Blob name in the file -> name of the tensor that holds its last version.
        files: The files it was read from.
        notes: What was left aside: unknown fields, weights of other layers.
        phase: ``"TRAIN"`` or ``"TEST"``: what it was read as.
        data: The layers that the inputs stand for (Data, ImageData, Input and their like), with their parameters.
    """

    name: str
    inputs: tuple[Input, ...]
    layers: tuple[Layer, ...]
    outputs: tuple[str, ...]
    tensors: Mapping[str, str]
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    phase: str = "TEST"
    data: tuple[Layer, ...] = ()


def read_net(
    prototxt: PathLike | Network,
    caffemodel: PathLike | None = None,
    *,
    phase: str = "TEST",
    level: int = 0,
    stages: Iterable[str] = (),
    training: bool = False,
) -> Net:
    """Read a Caffe network.

    Args:
        prototxt: Its description (`.prototxt`, text or binary), or a `.caffemodel` alone, which carries one.
        caffemodel: Its weights (`.caffemodel`, `.caffemodel.h5`). May be left out for a network without any.
        phase: ``"TEST"`` or ``"TRAIN"``: layers of the other phase are left out, as Caffe does.
        level: Caffe's NetState.level.
        stages: Caffe's NetState.stage.
        training: Read it as Caffe's solver runs it: labels, losses, Accuracy and Silence stay.

    Returns:
        The network; data layers are inputs. For inference (without ``training``) losses are what they compute, Accuracy
        and its like are gone.

    Raises:
        ConversionError: Whatever is wrong with the files; with file, layer, found and expected.

    Warns:
        ConversionWarning: Unknown fields in the prototxt; weights in the file that the network does not use.
    """
    if isinstance(stages, str):
        raise ConversionError(f"found the stages {stages!r}, expected several strings, as ({stages!r},)")
    network, weights, carried = _read_files(prototxt, caffemodel)
    state = State(phase, level, frozenset((*stages, *network.message.state.stage)))  # as Caffe adds them up
    unknown = _unknown_notes(network)
    for note in unknown:  # first: a misspelt field may be why the network cannot be built
        warnings.warn(note, ConversionWarning, stacklevel=2)
    try:
        net = _build(network, weights, state, carried=carried, training=training)
    except ConversionError as error:
        raise error.in_file(network.file) from None
    for note in net.notes[len(unknown) :]:
        warnings.warn(note, ConversionWarning, stacklevel=2)
    return net


def _read_files(prototxt: PathLike | Network, caffemodel: PathLike | None) -> tuple[Network, Weights | None, bool]:
    """The description, the weights, and whether the former comes with the latter."""
    weights = read_weights(caffemodel) if caffemodel is not None else None
    if isinstance(prototxt, Network):
        return prototxt, weights, False
    if weights is None and holds_weights(prototxt):  # a caffemodel alone, or a binary prototxt
        weights = read_weights(prototxt)
        return (weights.network(), weights, True) if weights.layers else (weights.network(), None, False)
    return read_prototxt(prototxt), weights, False


def _build(network: Network, weights: Weights | None, state: State, *, carried: bool, training: bool) -> Net:
    described = _drafts(network)
    drafts = described
    if not (carried and deploy.was_filtered(drafts)):
        drafts = [draft for draft in drafts if deploy.keeps(draft, state)]
    inputs = _declared_inputs(network)
    layers: list[Draft] = []
    data: list[Draft] = []
    for draft in drafts:
        given = _inputs_of(draft)
        if given is None:
            layers.append(draft)
        else:
            inputs += given
            data.append(draft)
    deployed = (deploy.trainable if training else deploy.deployable)(layers, inputs)
    if not deployed.layers:
        raise ConversionError(f"has no layers left in {state.describe()}, expected at least one that computes")
    blobs = _attached(deployed.layers, weights)
    notes = (*_unknown_notes(network), *_unused_notes(drafts, weights))
    named = _Naming(deployed, described, state)
    built = tuple(
        Layer(
            draft.name, draft.type, bottoms, tops, draft.params, blobs.get(index, ()), draft.extra,
            weights.file if weights else "",
        )
        for index, (draft, bottoms, tops) in enumerate(named.layers)
    )  # fmt: skip
    files = (network.file,) if weights is None or carried else (network.file, weights.file)
    return Net(
        name=network.message.name,
        inputs=tuple(Input(data.name, _input_shape(data, built)) for data in deployed.inputs),
        layers=built,
        outputs=named.outputs,
        tensors=named.tensors,
        files=files,
        notes=notes,
        phase=state.phase,
        data=tuple(Layer(draft.name, draft.type, (), draft.tops, draft.params, (), draft.extra) for draft in data),
    )


def _drafts(network: Network) -> list[Draft]:
    extras: dict[int, list[UnknownField]] = {}
    for unknown in network.unknown:
        if unknown.path and unknown.path[0][0] == "layer":
            extras.setdefault(unknown.path[0][1], []).append(unknown)
    drafts = []
    for index, params in enumerate(network.message.layer):
        name = params.name or f"layer{index}"
        extra = _nested(extras.get(index, []))
        drafts.append(Draft(name, params.type, tuple(params.bottom), tuple(params.top), params, extra))
        if not params.type:
            raise drafts[-1].error('found no type, expected one, as `type: "Convolution"`')
        if "" in (*params.bottom, *params.top):
            raise drafts[-1].error("found a bottom or top without a name, expected one")
    return drafts


def _nested(unknown: list[UnknownField]) -> dict[str, Any]:
    """Unknown fields of one layer, under the names of the messages that they stand in."""
    extra: dict[str, Any] = {}
    for one in unknown:
        holder = extra
        for name, _ in one.path[1:]:
            inner = holder.setdefault(name, {})
            holder = inner if isinstance(inner, dict) else {}
        add_unknown(holder, one.name, one.value)
    return extra


def _declared_inputs(network: Network) -> list[DraftInput]:
    """The `input:` fields of the network itself, with `input_shape` or four `input_dim` each."""
    net = network.message
    if not net.input:
        return []
    if net.input_shape:
        if len(net.input_shape) != len(net.input):
            raise ConversionError(
                f"found {len(net.input)} input(s) and {len(net.input_shape)} input_shape, expected one each"
            )
        return [DraftInput(name, tuple(s.dim)) for name, s in zip(net.input, net.input_shape, strict=True)]
    if len(net.input_dim) not in (0, 4 * len(net.input)):
        raise ConversionError(
            f"found {len(net.input)} input(s) and {len(net.input_dim)} input_dim, expected four for each input"
        )
    dims = list(net.input_dim)
    return [DraftInput(name, tuple(dims[4 * i : 4 * i + 4]) or None) for i, name in enumerate(net.input)]


def _inputs_of(draft: Draft) -> list[DraftInput] | None:
    """The inputs that a data layer stands for; also a Python layer that reads nothing and has no handler."""
    if draft.type == "Python" and not draft.bottoms and registry.find(draft.type, draft.params) is None:
        return [DraftInput(top, None, is_label=slot > 0) for slot, top in enumerate(draft.tops)]
    return deploy.inputs_of(draft)


# -------------------------------------------------------------------------------------------------------------- weights


def _attached(layers: Sequence[Draft], weights: Weights | None) -> dict[int, tuple[np.ndarray, ...]]:
    """Layer index -> blobs, matched by name; blobs that share a `param { name }` are one."""
    if weights is None:
        return {}
    names = {layer.name for layer in layers}
    if weights.layers and names.isdisjoint(weights.layers):
        raise ConversionError(
            f"found no layer of the prototxt in {weights.file}: the file has {_few(weights.layers)}, the prototxt has "
            f"{_few(layer.name for layer in layers)}. They do not belong together"
        )
    # Caffe fills the layers in the file's order, so the last writer of a shared blob wins.
    by_name = {layer.name: layer for layer in reversed(layers)}
    shared: dict[str, np.ndarray] = {}
    for name, blobs in weights.layers.items():
        if name in by_name:
            for spec, blob in zip(by_name[name].params.param, blobs, strict=False):
                if spec.name:
                    shared[spec.name] = blob
    first = {layer.name: index for index, layer in reversed(list(enumerate(layers)))}
    attached = {}
    for index, layer in enumerate(layers):
        own = weights.layers.get(layer.name, ()) if first[layer.name] == index else ()
        attached[index] = _with_shared(layer, own, shared)
    return attached


def _with_shared(layer: Draft, own: tuple[np.ndarray, ...], shared: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    names = [spec.name for spec in layer.params.param]
    if not own:  # all from the layers that it shares with, or nothing
        return tuple(shared[name] for name in names if name in shared)
    blobs = list(own)
    for index, name in enumerate(names[: len(own)]):
        if name in shared:
            blob = shared[name]
            if blob.size != own[index].size:
                raise layer.error(
                    f"found {blob.size:,} numbers in the shared blob {name!r}, expected {own[index].size:,}"
                )
            blobs[index] = blob.reshape(own[index].shape)
    return tuple(blobs)


def _input_shape(data: DraftInput, layers: Sequence[Layer]) -> tuple[int, ...] | None:
    """The declared shape, its channels from the first weights behind it where the description leaves them open."""
    if data.shape is None:
        return None
    if None not in data.shape:
        return tuple(size for size in data.shape if size is not None)
    channels = _channels(data, layers)
    return None if channels is None else tuple(channels if size is None else size for size in data.shape)


_KEEP_CHANNELS = {
    "AbsVal", "BNLL", "Bias", "Clip", "Dropout", "ELU", "Exp", "LRN", "Log", "MVN", "Pooling", "Power", "ReLU",
    "Sigmoid", "Split", "Swish", "TanH", "Threshold",
}  # fmt: skip


def _channels(data: DraftInput, layers: Sequence[Layer]) -> int | None:
    reached = {data.name}
    for layer in layers:
        if not reached.intersection(layer.bottoms):
            continue
        if layer.blobs:
            first = layer.blobs[0]
            if layer.type in registry.CONVOLUTIONS and first.ndim >= 2:
                group = layer.params.convolution_param.group
                return int(first.shape[1]) * group
            if layer.type in ("BatchNorm", "Scale", "PReLU", "Bias"):
                return int(first.size)
            if layer.type == "InnerProduct" and data.shape and not layer.params.inner_product_param.transpose:
                height, width = data.shape[2] or 1, data.shape[3] or 1
                outputs = max(1, layer.params.inner_product_param.num_output)
                return int(first.size) // (outputs * height * width) or None
        if layer.type in _KEEP_CHANNELS:
            reached.update(layer.tops)
    return None


# ---------------------------------------------------------------------------------------------------------------- names


class _Naming:
    """Gives each version of a blob a name of its own, and finds out what is read and what is left."""

    def __init__(self, deployed: deploy.Deployed, described: Sequence[Draft], state: State) -> None:
        self.silenced = deployed.silenced
        self.described = described
        self.state = state
        self.taken = Counter(data.name for data in deployed.inputs)
        for name, count in self.taken.items():
            if count > 1:
                raise ConversionError(f"found the input {name!r} {count} times, expected it once")
        self.taken.update(top for draft in deployed.layers for top in draft.tops)
        self.numbers: Counter[str] = Counter()
        # blob -> what wrote each version: None for an input, else the layer's index
        self.writers: dict[str, list[int | None]] = {data.name: [None] for data in deployed.inputs}
        read: set[tuple[str, int]] = set()
        reads: list[list[tuple[str, int]]] = []
        writes: list[list[tuple[str, int]]] = []
        for index, draft in enumerate(deployed.layers):
            reads.append([self._read(draft, index, blob, deployed.layers) for blob in draft.bottoms])
            read.update(reads[-1])
            writes.append([self._write(draft, index, slot, deployed.layers) for slot in range(len(draft.tops))])
        names = self._names(deployed.layers)
        self.layers = [
            (draft, tuple(names[version] for version in reads[i]), tuple(names[version] for version in writes[i]))
            for i, draft in enumerate(deployed.layers)
        ]
        last = {blob: (blob, len(writers) - 1) for blob, writers in self.writers.items()}
        self.tensors = {blob: names[version] for blob, version in last.items()}
        self.outputs = tuple(
            names[version]
            for written in writes
            for version in dict.fromkeys(written)
            if version == last[version[0]] and version not in read and version[0] not in self.silenced
        )

    def _read(self, draft: Draft, index: int, blob: str, layers: Sequence[Draft]) -> tuple[str, int]:
        if blob in self.writers:
            return blob, len(self.writers[blob]) - 1
        later = next((layer.name for layer in layers[index:] if blob in layer.tops), None)
        if later is not None:
            raise draft.error(
                f"reads the blob {shortened(blob)}, which only the layer {later!r} at or after it writes: a cycle, or "
                "layers in the wrong order"
            )
        elsewhere = next((layer.name for layer in self.described if blob in layer.tops), None)
        if elsewhere is not None:
            raise draft.error(
                f"reads the blob {blob!r} of the layer {elsewhere!r}, which {self.state.describe()} has not"
            )
        near = difflib.get_close_matches(blob, list(self.writers), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise draft.error(f"reads the blob {shortened(blob)}, which no layer writes{hint}")

    def _write(self, draft: Draft, index: int, slot: int, layers: Sequence[Draft]) -> tuple[str, int]:
        blob = draft.tops[slot]
        in_place = slot < len(draft.bottoms) and draft.bottoms[slot] == blob
        writers = self.writers.setdefault(blob, [])
        if writers and not in_place:
            first = "an input" if writers[0] is None else f"the layer {layers[writers[0]].name!r}"
            raise draft.error(f"writes the blob {blob!r}, which {first} writes already: expected one producer")
        writers.append(index)
        return blob, len(writers) - 1

    def _names(self, layers: Sequence[Draft]) -> dict[tuple[str, int], str]:
        names: dict[tuple[str, int], str] = {}
        for blob, writers in self.writers.items():
            for version, writer in enumerate(writers):
                is_last = version == len(writers) - 1
                if writer is None or (is_last and writers[0] is not None):
                    names[blob, version] = blob
                elif is_last:
                    names[blob, version] = self._free(layers[writer].name, f"{blob}@{layers[writer].name}")
                else:
                    names[blob, version] = self._free(f"{blob}@{layers[writer].name}")
        return names

    def _free(self, *candidates: str) -> str:
        """The first candidate that no blob has; the last one is numbered if need be."""
        name = next((candidate for candidate in candidates if not self.taken[candidate]), None)
        last = candidates[-1]
        while name is None:  # thousands of layers may share a name: go on from the number that came last
            self.numbers[last] += 1
            numbered = f"{last}.{self.numbers[last] + 1}"
            name = None if self.taken[numbered] else numbered
        self.taken[name] += 1
        return name


# ---------------------------------------------------------------------------------------------------------------- notes


def _unknown_notes(network: Network) -> list[str]:
    shown = [
        f"{network.file}:{unknown.line}:{unknown.column}: the field {unknown.name!r} is not known and was left aside"
        for unknown in network.unknown[:20]
    ]
    if len(network.unknown) > len(shown):
        shown.append(
            f"{network.file}: {len(network.unknown) - len(shown)} more fields are not known and were left aside"
        )
    return shown


def _unused_notes(drafts: Sequence[Draft], weights: Weights | None) -> list[str]:
    if weights is None:
        return []
    unused = [name for name in weights.layers if name not in {draft.name for draft in drafts}]
    if not unused:
        return []
    return [f"{weights.file}: the weights of {len(unused)} layer(s) not in the network were left out: {_few(unused)}"]


def _few(names: Iterable[str], most: int = 8) -> str:
    listed = [name if len(name) <= 80 else f"{name[:80]}..." for name in names]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def _sizes(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    try:
        return tuple(operator.index(size) for size in shape)
    except TypeError:
        raise ConversionError(f"found the shape {shape!r} for the input {name!r}, expected whole numbers") from None


def with_shapes(net: Net, input_shapes: Mapping[str, Sequence[int]] | None) -> Net:
    """The network with the inputs' shapes changed.

    Args:
        net: A network.
        input_shapes: Input name -> shape, batch included.

    Raises:
        ConversionError: A name that is no input, a shape that is no list of positive sizes, an input without a shape.
    """
    wanted = input_shapes or {}
    known = [data.name for data in net.inputs]
    if len(known) > MAX_INPUTS:
        raise ConversionError(f"found {len(known):,} inputs, expected at most {MAX_INPUTS:,}")
    for name in wanted:
        if name not in known:
            raise ConversionError(
                f"found a shape for {name!r}, expected one of the inputs: {', '.join(known) or 'none'}"
            )
    chosen = {name: _sizes(name, shape) for name, shape in wanted.items()}
    inputs = tuple(replace(data, shape=chosen.get(data.name, data.shape)) for data in net.inputs)
    for data in inputs:
        if data.shape is None:
            raise ConversionError(
                f"the description does not say the shape of the input {data.name!r}: give it, as "
                f"--input-shape {data.name}=1,3,224,224 (input_shapes={{{data.name!r}: (1, 3, 224, 224)}} in Python)"
            )
        is_sized = len(data.shape) <= MAX_AXES and all(size >= 1 for size in data.shape)
        if not is_sized or math.prod(data.shape) > MAX_BLOB:
            raise ConversionError(
                f"found the shape {show(data.shape)} for the input {data.name!r}, expected sizes from 1 on, "
                f"at most {MAX_AXES}, with a product of at most {MAX_BLOB:,}"
            )
    return replace(net, inputs=inputs)
