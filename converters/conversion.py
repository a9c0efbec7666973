"""Convert a Caffe network to ONNX, layer by layer."""

from __future__ import annotations

import difflib
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from converters import registry, transform, unknown
from converters.errors import ConversionError, ConversionWarning
from converters.graph import Graph
from converters.layer import Layer
from converters.net import Net, read_net, with_shapes
from converters.provenance import Provenance
from converters.reader import Network, PathLike
from converters.shape import FixedDim, Shape, SymbolicDim

if TYPE_CHECKING:
    import onnx

    from converters.model import Draft

OLDEST_OPSET = 13
DEFAULT_OPSET = 17
ALL = "all"  # outputs: every blob


@dataclass(frozen=True)
class Converted:
    """A converted network, before it is written.

    Attributes:
        draft: The graph and its outputs.
        net: The network, as far as the outputs need it.
        notes: Warnings for the user, such as sizes that had to be fixed and preprocessing that has no metadata.
        metadata: The preprocessing that the description specifies, and what handlers know of the model.
    """

    draft: Draft
    net: Net
    notes: tuple[str, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


def convert(
    prototxt: PathLike | Network | Net,
    caffemodel: PathLike | None = None,
    *,
    outputs: Sequence[str] | Literal["all"] | None = None,
    opset: int = DEFAULT_OPSET,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    phase: str = "TEST",
    level: int = 0,
    stages: Iterable[str] = (),
    fork: str = "",
    ignore_unknown: Collection[str] = (),
) -> onnx.ModelProto:
    """Convert a Caffe network to an ONNX model with the same outputs.

    Args:
        prototxt: A `.prototxt`, a `.caffemodel` that contains the network, or a `Net`.
        caffemodel: The weights. Optional for a network without weights, and not used with a `Net`.
        outputs: The blobs that the model returns; by default, those that no layer reads. ``"all"`` for every blob of
            the network, as in pycaffe's ``net.blobs``, in the order of the layers.
        opset: The version of ONNX's operator set, from 13 to the newest that the installed onnx knows.
        input_shapes: Input -> shape, including the batch, to override or add to the shapes in the prototxt.
        phase: ``"TEST"`` or ``"TRAIN"``, which selects the layers.
        level: Caffe's NetState.level.
        stages: Caffe's NetState.stage.
        fork: The fork of Caffe that the network is for, if it gives a layer or field another meaning.
        ignore_unknown: Unknown fields to ignore although they may change what a layer computes, such as
            ``["pooling_param.mode"]``.

    Returns:
        The model, checked by onnx's checker with strict shape inference. Tensors are named after blobs, nodes
        after layers, and the batch size is free. The transformation of the data layer is in the metadata
        ``camrt.preprocess``. A model of more than 2 GB must be saved with external data.

    Raises:
        ConversionError: The network cannot be converted. The message names the file, the layer and what was expected.

    Warns:
        ConversionWarning: Parts of the network were ignored.
    """
    from converters import model

    if isinstance(prototxt, Net):
        if caffemodel is not None:
            raise ConversionError("found a Net and a caffemodel, expected the weights in the Net: read_net takes both")
        net = prototxt
    else:
        net = read_net(prototxt, caffemodel, phase=phase, level=level, stages=stages, fork=fork)
    with Provenance(net.files) as provenance:
        converted = build(net, outputs=outputs, opset=opset, input_shapes=input_shapes, ignore_unknown=ignore_unknown)
        for note in converted.notes:
            warnings.warn(note, ConversionWarning, stacklevel=2)
        try:
            return model.in_memory(converted.draft, {**provenance.properties(), **converted.metadata})
        except ConversionError as error:
            raise (error.in_file(net.files[0]) if net.files else error) from error.__cause__


def build(
    net: Net,
    *,
    outputs: Sequence[str] | Literal["all"] | None = None,
    opset: int = DEFAULT_OPSET,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    ignore_unknown: Collection[str] = (),
) -> Converted:
    """Build the graph of a network. The arguments are those of `convert`.

    Raises:
        ConversionError: The network cannot be converted. The message names the layer and what was expected.
    """
    try:
        _check_opset(opset)
        wanted, described = _wanted(net, outputs), net.layers
        net = with_shapes(_needed(net, wanted, only=outputs not in (None, ALL)), input_shapes)
        converted = _graph_of(net, wanted, opset, described, ignore_unknown)
    except ConversionError as error:
        raise (error.in_file(net.files[0]) if net.files else error) from error.__cause__
    properties, notes = transform.metadata_of(converted.net)
    properties = {**converted.draft.graph.metadata, **properties}
    return replace(converted, metadata=properties, notes=(*converted.notes, *notes))


def _graph_of(
    net: Net, wanted: tuple[str, ...], opset: int, described: tuple[Layer, ...], ignore_unknown: Collection[str]
) -> Converted:
    try:
        _check_supported(net)
        _check_unknown(net, ignore_unknown)
        return _with_free_axes(_merged(net, wanted), wanted, opset, described)
    except ConversionError as error:
        raise error.with_hint(net.origin) from error.__cause__


def weight_shapes(
    net: Net, *, input_shapes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, list[tuple[int, ...]]]:
    """Return the shapes of the weights that a network needs.

    Args:
        net: A network, usually read from a prototxt alone.
        input_shapes: As for `convert`.

    Returns:
        Layer name -> the shape of each blob, in Caffe's order, for layers with weights.

    Raises:
        ConversionError: The network cannot be converted.
    """
    wanted: dict[str, list[tuple[int, ...]]] = {}

    def note(layer: Layer, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        wanted[layer.name] = list(shapes)
        return [np.broadcast_to(np.float32(0), shape) for shape in shapes]  # takes four bytes for any shape

    build(
        replace(net, layers=tuple(replace(layer, blobs=(), filler=note) for layer in net.layers)),
        input_shapes=input_shapes,
    )
    return {name: shapes for name, shapes in wanted.items() if shapes}


def _check_opset(opset: int) -> None:
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not isinstance(opset, int) or not OLDEST_OPSET <= opset <= newest:
        raise ConversionError(f"found opset {opset!r}, expected one from {OLDEST_OPSET} to {newest}")


def _wanted(net: Net, outputs: Sequence[str] | None) -> tuple[str, ...]:
    """The tensors that the model returns."""
    if outputs == ALL:
        last_versions = set(net.tensors.values())
        outputs = [top for layer in net.layers for top in layer.tops if top in last_versions]
    if outputs is None:
        if not net.outputs:
            raise ConversionError("has no outputs: every blob is read or silenced by a layer. Name some with --outputs")
        return net.outputs
    if isinstance(outputs, str) or not all(isinstance(name, str) for name in outputs):
        raise ConversionError(f"found the outputs {outputs!r}, expected several names, as ['prob'], or {ALL!r}")
    written = {top for layer in net.layers for top in layer.tops}
    tensors = []
    for name in dict.fromkeys(outputs):
        tensor = name if name in written else net.tensors.get(name, name)
        if tensor not in written:
            near = difflib.get_close_matches(name, written, n=3, cutoff=0.5)
            last = list(dict.fromkeys(top for layer in net.layers[-8:] for top in layer.tops))[-8:]
            hint = f"did you mean {', '.join(near)}?" if near else f"the last ones are {', '.join(last)}"
            if any(tensor == data.name for data in net.inputs):
                hint = "it is an input"
            raise ConversionError(f"found the output {name!r}, expected a blob that a layer writes: {hint}")
        tensors.append(tensor)
    if not tensors:
        raise ConversionError("found no outputs, expected the name of at least one blob")
    return tuple(dict.fromkeys(tensors))  # two names may refer to one tensor


def _needed(net: Net, wanted: Sequence[str], *, only: bool) -> Net:
    """Keep the layers that the outputs depend on; with ``only``, drop unused inputs as well."""
    needed = set(wanted)
    layers = []
    for layer in reversed(net.layers):
        if needed.intersection(layer.tops):
            needed.update(layer.bottoms)
            layers.append(layer)
    inputs = tuple(data for data in net.inputs if data.name in needed or not only)
    return replace(net, layers=tuple(reversed(layers)), inputs=inputs)


def _check_supported(net: Net) -> None:
    """Report all layers without a handler in one error."""
    missing: dict[str, list[str]] = {}
    for layer in net.layers:
        if registry.find(layer.type, layer.params, net.fork) is None:
            missing.setdefault(registry.describe(layer.type, layer.params), []).append(layer.name)
    if not missing:
        return
    known = {type.lower(): type for entry in registry.entries() for type in entry.types}
    lines = []
    for type, names in missing.items():
        near = difflib.get_close_matches(type.lower(), known, n=1, cutoff=0.75)
        lines.append(f"  {type}: {', '.join(names)}" + (f" (did you mean {known[near[0]]}?)" if near else ""))
    example = next(iter(missing))
    how = f'handles("{example}")'
    if example.startswith("Python "):
        module, _, name = example.removeprefix("Python ").rpartition(".")
        how = f'handles("Python", module="{module}", layer="{name}")'
    raise ConversionError(
        f"{sum(map(len, missing.values()))} layer(s) of {len(missing)} type(s) have no handler:",
        details=[
            *lines,
            f"To add one, write a function decorated with @converters.{how} in a file, say my_layers.py, and load it "
            "with --plugin my_layers.py (converters.load_plugin in Python); CONTRIBUTING.md shows one in ten lines",
        ],
    )


def _check_unknown(net: Net, ignored: Collection[str]) -> None:
    """Refuse unknown fields that may change what a layer computes."""
    if isinstance(ignored, str):
        raise ConversionError(f"found the unknown fields {ignored!r}, expected several names, as [{ignored!r}]")
    pairs = [(layer, registry.find(layer.type, layer.params, net.fork)) for layer in net.layers if layer.unknown]
    file = net.files[0] if net.files else "the network"
    unknown.refuse_unknown([(layer, entry) for layer, entry in pairs if entry is not None], ignored, file)


def _merged(net: Net, wanted: Sequence[str]) -> Net:
    """Merge the Scale layer after each BatchNorm into it: together they are one BatchNormalization."""
    reads = Counter(bottom for layer in net.layers for bottom in layer.bottoms)
    readers = {bottom: layer for layer in net.layers for bottom in layer.bottoms}
    scales: dict[Layer, Layer] = {}
    for layer in net.layers:
        if layer.type != "BatchNorm" or len(layer.tops) != 1:
            continue
        top = layer.tops[0]
        scale = readers.get(top)
        if scale is not None and reads[top] == 1 and top not in wanted and _is_channel_scale(scale):
            scales[layer] = scale
    taken = set(scales.values())
    layers = tuple(
        replace(layer, tops=scales[layer].tops, scale=scales[layer]) if layer in scales else layer
        for layer in net.layers
        if layer not in taken
    )
    return replace(net, layers=layers)


def _is_channel_scale(layer: Layer) -> bool:
    param = layer.params.scale_param
    return layer.type == "Scale" and len(layer.bottoms) == 1 and param.axis == 1 and param.num_axes == 1


def _with_free_axes(net: Net, wanted: tuple[str, ...], opset: int, described: tuple[Layer, ...]) -> Converted:
    """Build with the first axis of every input free, and fix the axes whose sizes a layer needs."""
    from converters.model import Draft

    free: dict[str, int | None] = {data.name: 0 for data in net.inputs}
    notes: dict[str, str] = {}
    while True:
        try:
            graph = _build_once(net, free, opset, described)
        except FixedDim as fixed:
            if fixed.input not in free:
                raise ConversionError(f"{fixed.reason}, which is known only at run time") from None
            free[fixed.input] = None if fixed.free_axis == free[fixed.input] else fixed.free_axis
            shape = next(data.shape for data in net.inputs if data.name == fixed.input)
            what = "has no free batch" if free[fixed.input] is None else f"has its batch at axis {free[fixed.input]}"
            notes[fixed.input] = f"the input {fixed.input!r} of shape {shape} {what}: {fixed.reason}"
            continue
        return Converted(Draft(graph, wanted), net, (*notes.values(), *graph.notes))


def _build_once(net: Net, free: Mapping[str, int | None], opset: int, described: tuple[Layer, ...]) -> Graph:
    from converters.model import node_proto

    graph = Graph(net.name, opset, described)
    graph.reserve(top for layer in net.layers for top in layer.tops)
    for data in net.inputs:
        assert data.shape is not None  # ensured by with_shapes
        graph.input(data.name, _freed(data.name, data.shape, free[data.name]))
    for layer in net.layers:
        entry = registry.find(layer.type, layer.params, net.fork)
        assert entry is not None  # ensured by _check_supported
        graph.begin_layer(layer)
        first = len(graph.nodes)
        try:
            entry.handler(layer, graph)
            for node in graph.nodes[first:]:
                node_proto(node)  # detects invalid attributes while the layer is known
        except (ConversionError, FixedDim):
            raise
        except Exception as error:  # a bug in a handler: name the layer
            raise layer.error(f"its handler failed with {error.__class__.__name__}: {error}") from error
        for top in layer.tops:
            if top not in graph.tensors:
                raise layer.error(f"its handler wrote no tensor {top!r}, expected one for each top")
    return graph


def _freed(name: str, shape: Sequence[int], axis: int | None) -> Shape:
    return tuple(SymbolicDim(name, size) if i == axis else size for i, size in enumerate(shape))
