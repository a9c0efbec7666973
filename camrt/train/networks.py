"""A Caffe network as a PyTorch module that can be trained."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from camrt.errors import CamrtError
from camrt.train import registry
from camrt.train.fillers import fill
from camrt.train.layers.normalization import batch_norm_scale, can_fuse
from camrt.train.registry import LayerContext, Operation, Shape, Weight, upcast
from converters.errors import ConversionError
from converters.layer import Layer
from converters.net import Net, with_shapes
from converters.schema.caffe_pb2 import ParamSpec
from converters.shape import MAX_BLOB, show

# Layer types whose backward pass does not read their tops.
_TOPS_NOT_NEEDED = {
    "BatchNorm", "Bias", "Convolution", "ConvolutionDepthwise", "Deconvolution", "DepthwiseConvolution", "Eltwise",
    "InnerProduct", "Scale",
}  # fmt: skip


class Store(nn.Module):
    """The blobs of a layer: parameters, and buffers for blobs that are not learned.

    Args:
        layer: The layer's name.
        weights: The specifications of the blobs, in Caffe's order.
        blobs: The values. A blob shared with another layer may have another shape there.
    """

    def __init__(self, layer: str, weights: Sequence[Weight], blobs: Sequence[Tensor]) -> None:
        super().__init__()
        self.layer = layer
        self.weights = tuple(weights)
        for index, (weight, blob) in enumerate(zip(weights, blobs, strict=True)):
            if isinstance(blob, nn.Parameter):
                self.register_parameter(f"blob{index}", blob)
            else:
                self.register_buffer(f"blob{index}", blob, persistent=weight.saved)

    def held(self, index: int) -> Tensor:
        """Return a blob in the shape that its owner has."""
        return getattr(self, f"blob{index}")

    def tensors(self) -> list[Tensor]:
        """Return the blobs, in Caffe's order."""
        held = [self.held(index) for index in range(len(self.weights))]
        return [
            blob if blob.shape == weight.shape else blob.view(weight.shape)
            for blob, weight in zip(held, self.weights, strict=True)
        ]

    def saved(self) -> tuple[Tensor, ...]:
        """Return the blobs that are stored in a caffemodel."""
        return tuple(blob for blob, weight in zip(self.tensors(), self.weights, strict=True) if weight.saved)


@dataclass(frozen=True, eq=False)
class Blob:
    """A blob that a solver updates.

    Attributes:
        layer: The layer that owns the blob; the first one if several layers share it.
        index: The index among the layer's blobs.
        store: The module that holds the blob.
        lr_mult: The factor of the learning rate.
        decay_mult: The factor of the weight decay.
    """

    layer: str
    index: int
    store: Store
    lr_mult: float
    decay_mult: float

    @property
    def parameter(self) -> nn.Parameter:
        """The values of the blob."""
        return self.store.held(self.index)


@dataclass(frozen=True)
class CompiledLayer:
    """A layer, ready to run."""

    layer: Layer
    operation: Operation
    stores: tuple[Store, ...]
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    detached: frozenset[int]  # indices of bottoms that receive no gradient
    freed: tuple[str, ...] = ()  # tensors that no later layer reads


def network(
    net: Net,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    share: Network | None = None,
    seed: int | None = None,
) -> Network:
    """Build a network for training, or for testing during training.

    Args:
        net: The network, from ``converters.read_net``; with ``training=True`` it includes its losses. Weights in it
            are used, all others are initialized by their fillers.
        input_shapes: Input -> shape, batch included, for inputs without a declared shape, or to override it. The
            batch size may change from pass to pass.
        share: A network whose blobs this one uses, matched by layer names, as Caffe's test net uses those of its
            train net.
        seed: The seed of the fillers. By default it is drawn from PyTorch's generator.

    Returns:
        The network, on the CPU.

    Raises:
        CamrtError: The network has layers of types that cannot be trained (the message lists all of them), a layer
            that does not fit its bottoms, weights of a wrong shape, or an input without a shape.

    Example:
        >>> net = converters.read_net("train_val.prototxt", phase="TRAIN", training=True)  # doctest: +SKIP
        >>> blobs = network(net, seed=1)({"data": images, "label": labels})  # doctest: +SKIP
    """
    return Network(net, input_shapes=input_shapes, share=share, seed=seed)


class Network(nn.Module):
    """A network that computes as Caffe does, forward and backward.

    The phase is that of the description: ``train()`` and ``eval()`` have no effect.

    Attributes:
        name: The name of the network.
        phase: ``"TRAIN"`` or ``"TEST"``.
        inputs: Input blob -> its shape in the description.
        shapes: Blob, by its name in the file -> its shape at the batch size of the description.
        outputs: The blobs that no layer reads: losses, accuracies, scores.
        blobs: The blobs that a solver updates, in the order of the layers, without the statistics of BatchNorm.
        loss_weights: Blob -> its weight in the loss, for blobs that have one.
        net: The description that the network was built from.
    """

    def __init__(
        self,
        net: Net,
        *,
        input_shapes: Mapping[str, Sequence[int]] | None = None,
        share: Network | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        file = net.files[0] if net.files else None
        try:
            net = with_shapes(net, input_shapes)
            _check_supported(net)
            build = _Build(net, share, _seed(seed))
            steps = build.steps()
            loss_weights = _loss_weights(net)
        except (CamrtError, ConversionError) as error:
            if isinstance(error, ConversionError):
                raise CamrtError(str(error), file=file) from None
            raise CamrtError(error.message, file=file, details=error.details) from None
        self.net = net
        self.name = net.name
        self.phase = net.phase
        self.inputs: Mapping[str, Shape] = {one.name: one.shape for one in net.inputs if one.shape is not None}
        self.outputs = net.outputs
        self.loss_weights: Mapping[str, float] = loss_weights
        self.blobs: Sequence[Blob] = build.blobs
        self.shapes: Mapping[str, Shape] = {blob: build.shapes[tensor] for blob, tensor in net.tensors.items()}
        self._read = {bottom for layer in net.layers for bottom in layer.bottoms}
        self._steps = _with_freed_tensors(steps, {*self.outputs, *self.loss_weights})
        self.layers = nn.ModuleDict()
        self._stores: dict[str, Store] = {}
        for store in (store for step in steps for store in step.stores):
            self.layers[_free_key(store.layer.replace(".", "_"), self.layers)] = store
            self._stores.setdefault(store.layer, store)

    @property
    def stored(self) -> dict[str, tuple[Tensor, ...]]:
        """Layer -> its blobs in Caffe's order, including BatchNorm's statistics. Layers without blobs are left out."""
        stored = {layer: store.saved() for layer, store in self._stores.items()}
        return {layer: blobs for layer, blobs in stored.items() if blobs}

    @property
    def learnable(self) -> list[Tensor]:
        """The blobs in the order of Caffe's `Net::learnable_params`: those of all layers, each shared blob once.

        As in Caffe, the statistics of BatchNorm and blobs with ``lr_mult: 0`` are among them.
        """
        held = [
            store.held(index)
            for store in self._stores.values()
            for index, weight in enumerate(store.weights)
            if weight.saved
        ]
        return list({id(blob): blob for blob in held}.values())

    def forward(self, inputs: Mapping[str, Tensor], keep: Sequence[str] = ()) -> dict[str, Tensor]:
        """Run all layers.

        Args:
            inputs: Blob -> its values, float32; labels may have any integer type.
            keep: Further blobs to return, by their names in the description.

        Returns:
            Blob -> its values: the outputs, the blobs with a loss weight, and those of ``keep``.

        Raises:
            CamrtError: An input is missing or unknown, a blob to keep is unknown, or a layer fails.
        """
        kept = self._checked_keep(keep)
        tensors = self._checked_inputs(inputs)
        returned = {name: tensors[name] for name in kept.values() if name in tensors}
        wanted = {*self.outputs, *self.loss_weights, *kept.values()}
        for step in self._steps:
            tops = _run(step, [tensors[bottom] for bottom in step.bottoms])
            for name, top in zip(step.tops, tops, strict=True):
                tensors[name] = top
                if name in wanted:
                    returned[name] = top
            for name in step.freed:
                tensors.pop(name, None)
        returned.update({name: returned[tensor] for name, tensor in kept.items()})
        return returned

    def loss(self, blobs: Mapping[str, Tensor]) -> Tensor:
        """Compute the total loss, the weighted sum of the blobs that `forward` returned.

        Returns:
            A scalar tensor.

        Raises:
            CamrtError: The network has no loss.
        """
        if not self.loss_weights:
            raise CamrtError(
                f"the network {self.name!r} has no loss, expected a layer such as SoftmaxWithLoss: read it with "
                "phase='TRAIN' and training=True"
            )
        parts = [upcast(blobs[name]).sum() * weight for name, weight in self.loss_weights.items()]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum()

    def extra_repr(self) -> str:
        """Return the text inside ``repr``."""
        return f"{self.name!r}, {self.phase}, {len(self._steps)} layers, outputs {', '.join(self.outputs)}"

    def _checked_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        unknown = [name for name in inputs if name not in self.inputs]
        missing = [name for name in self.inputs if name in self._read and name not in inputs]
        if unknown or missing:
            raise CamrtError(
                f"found the inputs {', '.join(inputs) or 'none'}, expected {', '.join(self.inputs)}"
                + (f": {', '.join(missing)} missing" if missing else "")
            )
        for name, tensor in inputs.items():
            if tensor.dim() != len(self.inputs[name]) and name in self._read and tensor.is_floating_point():
                raise CamrtError(
                    f"found the shape {show(tuple(tensor.shape))} for the input {name!r}, expected as many axes as "
                    f"{show(self.inputs[name])}"
                )
        return dict(inputs)

    def _checked_keep(self, keep: Sequence[str]) -> dict[str, str]:
        kept = {name: self.net.tensors.get(name, name) for name in keep}
        known = {*self.inputs, *(top for step in self._steps for top in step.tops)}
        for name, tensor in kept.items():
            if tensor not in known:
                raise CamrtError(f"found the blob {name!r}, expected one that a layer of {self.name!r} writes")
        return kept


def _seed(seed: int | None) -> int:
    return int(torch.randint(2**31, ()).item()) if seed is None else seed


def _check_supported(net: Net) -> None:
    """Raise one error for all layers without a builder."""
    missing: dict[str, list[str]] = {}
    for layer in net.layers:
        if registry.find(layer.type) is None:
            missing.setdefault(layer.type, []).append(layer.name)
    if missing:
        lines = [f"  {type}: {', '.join(names)}" for type, names in missing.items()]
        raise CamrtError(
            f"{sum(map(len, missing.values()))} layer(s) of {len(missing)} type(s) cannot be trained:",
            details=[*lines, f"Expected layers of these types: {', '.join(sorted(registry.types()))}"],
        )


def _loss_weights(net: Net) -> dict[str, float]:
    """Return the weights of the blobs in the loss: `loss_weight`, by default 1 for the first top of a loss layer."""
    weights: dict[str, float] = {}
    for layer in net.layers:
        given = list(layer.params.loss_weight)
        if given and len(given) != len(layer.tops):
            raise CamrtError(
                f"layer {layer.name} ({layer.type}): found {len(given)} loss_weight for {len(layer.tops)} top(s), "
                "expected one each"
            )
        if not given and layer.type.endswith("Loss"):
            given = [1.0]
        weights.update({top: weight for top, weight in zip(layer.tops, given, strict=False) if weight})
    return weights


def _run(step: CompiledLayer, bottoms: list[Tensor]) -> Sequence[Tensor]:
    for index in step.detached:
        bottoms[index] = bottoms[index].detach()
    blobs = [blob for store in step.stores for blob in store.tensors()]
    try:
        return _as_tops(step.operation.forward(blobs, bottoms))
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError, ValueError) as error:
        shapes = ", ".join(f"{name} {show(tuple(b.shape))}" for name, b in zip(step.bottoms, bottoms, strict=True))
        raise CamrtError(f"layer {step.layer.name} ({step.layer.type}): {error} (bottoms: {shapes})") from error


def _as_tops(result: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return (result,) if isinstance(result, Tensor) else result


def _with_freed_tensors(steps: list[CompiledLayer], wanted: set[str]) -> list[CompiledLayer]:
    """Return the steps, each with the tensors that no later step reads."""
    last: dict[str, int] = {}
    for index, step in enumerate(steps):
        last.update(dict.fromkeys((*step.bottoms, *step.tops), index))
    freed: dict[int, list[str]] = {}
    for name, index in last.items():
        freed.setdefault(index, []).append(name)
    return [replace(step, freed=tuple(freed.get(index, ()))) for index, step in enumerate(steps)]


def _free_key(key: str, taken: Any) -> str:
    """Return a free name of a module: layers may share a name, and the names of ModuleDict's methods are reserved."""
    while key in taken or not key or hasattr(taken, key):
        key += "_"
    return key


class _Build:
    """Builds the layers in order, and infers the shapes of the blobs."""

    def __init__(self, net: Net, share: Network | None, seed: int) -> None:
        self.net = net
        self.share = share
        self.seed = seed
        self.shapes: dict[str, Shape] = {one.name: one.shape for one in net.inputs if one.shape is not None}
        self.reads = Counter(bottom for layer in net.layers for bottom in layer.bottoms)
        self.named: dict[str, tuple[str, Tensor]] = {}  # `param { name }` -> the layer that owns the blob, the blob
        self.multipliers = _shared_multipliers(net)
        self.blobs: list[Blob] = []
        self.last = set(net.tensors.values())
        self.writers: dict[str, Layer] = {top: layer for layer in net.layers for top in layer.tops}

    def steps(self) -> list[CompiledLayer]:
        """Return all layers, in order."""
        steps = []
        layers = deque(self.net.layers)
        while layers:
            layer = layers.popleft()
            operation, weights = self._operation(layer)
            stores = [self._store(layer, weights)] if weights else []
            tops = layer.tops
            if layers and self._merges(layer, layers[0]):
                after = layers.popleft()
                _, scale_weights = self._operation(after)
                stores.append(self._store(after, scale_weights))
                operation = batch_norm_scale(self._context(layer), bool(scale_weights[1:]))
                tops = after.tops
                layer = replace(layer, scale=after)
            steps.append(
                CompiledLayer(layer, operation, tuple(stores), layer.bottoms, tops, self._detached_bottoms(layer))
            )
        return steps

    def _detached_bottoms(self, layer: Layer) -> frozenset[int]:
        propagates = list(layer.params.propagate_down)
        if propagates and len(propagates) != len(layer.bottoms):
            raise self._context(layer).error(
                f"found {len(propagates)} propagate_down for {len(layer.bottoms)} bottom(s), expected one each"
            )
        return frozenset(index for index, does in enumerate(propagates) if not does)

    def _merges(self, layer: Layer, after: Layer) -> bool:
        """Return whether a BatchNorm and the Scale that follows in place become one step."""
        if layer.type != "BatchNorm" or after.type != "Scale" or after.bottoms != layer.tops:
            return False
        return self._is_private(layer.tops[0]) and not layer.params.loss_weight and can_fuse(after)

    def _context(self, layer: Layer) -> LayerContext:
        shapes = tuple(self.shapes[bottom] for bottom in layer.bottoms)
        return LayerContext(layer, shapes, self.net.phase, self._overwrites(layer))

    def _overwrites(self, layer: Layer) -> bool:
        """Return whether the layer may overwrite its bottom: only it reads the bottom, and no gradient needs it."""
        if len(layer.bottoms) != 1 or not self._is_private(layer.bottoms[0]):
            return False
        writer = self.writers[layer.bottoms[0]]
        return writer.type in _TOPS_NOT_NEEDED and not writer.params.loss_weight

    def _is_private(self, tensor: str) -> bool:
        """Return whether a tensor has one reader and is not the last version of a blob, which `keep` may name."""
        return self.reads[tensor] == 1 and tensor not in self.last and tensor in self.writers

    def _operation(self, layer: Layer) -> tuple[Operation, Sequence[Weight]]:
        """Return the layer's operation, and infer the shapes of its tops on PyTorch's meta device."""
        context = self._context(layer)
        builder = registry.find(layer.type)
        assert builder is not None
        operation = builder(context)
        try:
            blobs = [torch.empty(weight.shape, device="meta") for weight in operation.weights]
            bottoms = [torch.empty(shape, device="meta") for shape in context.shapes]
            with torch.no_grad():
                tops = _as_tops(operation.forward(blobs, bottoms))
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            found = ", ".join(
                f"{name} {show(shape)}" for name, shape in zip(layer.bottoms, context.shapes, strict=True)
            )
            raise context.error(f"does not fit its bottoms ({found}): {error}") from error
        if len(tops) != len(layer.tops):
            raise context.error(f"found {len(layer.tops)} top(s), expected {len(tops)}")
        for name, top in zip(layer.tops, tops, strict=True):
            if top.numel() > MAX_BLOB:
                raise context.error(f"found a top of {show(tuple(top.shape))}, expected at most {MAX_BLOB:,} numbers")
            self.shapes[name] = tuple(top.shape)
        if len(layer.params.param) > len(operation.weights):
            raise context.error(
                f"found {len(layer.params.param)} param, expected at most one for each of its "
                f"{len(operation.weights)} blob(s)"
            )
        return operation, operation.weights

    def _store(self, layer: Layer, weights: Sequence[Weight]) -> Store:
        specs = [*layer.params.param, *[ParamSpec()] * (len(weights) - len(layer.params.param))]
        shared = self.share._stores.get(layer.name) if self.share is not None else None
        if shared is not None:
            self._reuse_store(layer, shared, weights, specs)
            return shared
        given = layer.weights(*(weight.shape for weight in weights)) if layer.blobs else [None] * len(weights)
        own = [not spec.name or spec.name not in self.named for spec in specs]
        tensors = [
            self._filled(layer, index, weights[index], spec, given[index])
            if own[index]
            else self._shared(layer, weights[index], spec)
            for index, spec in enumerate(specs)
        ]
        store = Store(layer.name, weights, tensors)
        for index, spec in enumerate(specs):
            if own[index] and weights[index].learned:
                self.blobs.append(Blob(layer.name, index, store, *self._multipliers(spec)))
        return store

    def _reuse_store(self, layer: Layer, shared: Store, weights: Sequence[Weight], specs: Sequence[ParamSpec]) -> None:
        """Use the blobs of the other network's layer of the same name."""
        found = [weight.shape for weight in shared.weights]
        expected = [weight.shape for weight in weights]
        if found != expected:
            raise self._context(layer).error(
                f"found blobs of {', '.join(map(show, found))} in the network to share with, expected "
                f"{', '.join(map(show, expected))}"
            )
        self.blobs += [blob for blob in (self.share.blobs if self.share else ()) if blob.store is shared]
        self.named.update({spec.name: (layer.name, shared.held(i)) for i, spec in enumerate(specs) if spec.name})

    def _filled(self, layer: Layer, index: int, weight: Weight, spec: ParamSpec, given: np.ndarray | None) -> Tensor:
        """Return a blob of the layer itself, with the weights of the net or those of its filler."""
        if spec.lr_mult and spec.HasField("lr_mult") and not weight.learned:
            raise self._context(layer).error(
                f"found lr_mult {spec.lr_mult:g} for blob {index}, expected 0: it is not learned by gradients"
            )
        if math.prod(weight.shape) > MAX_BLOB:
            raise self._context(layer).error(
                f"found the shape {show(weight.shape)} for blob {index}, expected at most {MAX_BLOB:,} numbers"
            )
        tensor = torch.empty(weight.shape)
        if given is not None:
            tensor.copy_(torch.tensor(given))
        else:
            try:
                fill(tensor, weight.filler, seed=self.seed, name=f"{layer.name}/{index}")
            except ValueError as error:
                raise self._context(layer).error(f"blob {index}: {error}") from None
        if weight.learned:
            tensor = nn.Parameter(tensor, requires_grad=self._multipliers(spec)[0] != 0)
        if spec.name:
            self.named[spec.name] = layer.name, tensor
        return tensor

    def _shared(self, layer: Layer, weight: Weight, spec: ParamSpec) -> Tensor:
        """Return the blob of an earlier layer with the same `param { name }`."""
        owner, tensor = self.named[spec.name]
        is_permissive = spec.share_mode == ParamSpec.PERMISSIVE
        if tuple(tensor.shape) != weight.shape and not (is_permissive and tensor.numel() == math.prod(weight.shape)):
            raise self._context(layer).error(
                f"found the shape {show(weight.shape)} for the shared blob {spec.name!r}, expected "
                f"{show(tuple(tensor.shape))} as in the layer {owner!r}"
            )
        return tensor

    def _multipliers(self, spec: ParamSpec) -> tuple[float, float]:
        """Return lr_mult and decay_mult of a blob. Those of a shared blob may be set by any of its layers."""
        shared = self.multipliers.get(spec.name, {})
        return shared.get("lr_mult", spec.lr_mult), shared.get("decay_mult", spec.decay_mult)


def _shared_multipliers(net: Net) -> dict[str, dict[str, float]]:
    """Return the lr_mult and decay_mult of shared blobs, by the blobs' names."""
    found: dict[str, dict[str, float]] = {}
    for layer in net.layers:
        for spec in (one for one in layer.params.param if one.name):
            multipliers = found.setdefault(spec.name, {})
            for what in ("lr_mult", "decay_mult"):
                value = getattr(spec, what)
                if spec.HasField(what) and multipliers.setdefault(what, value) != value:
                    raise CamrtError(
                        f"layer {layer.name} ({layer.type}): found {what} {value:g} for the shared blob {spec.name!r}, "
                        f"expected {multipliers[what]:g} as in an earlier layer"
                    )
    return found
