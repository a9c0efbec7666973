"""Registry of layer builders: layer type -> the function that builds its PyTorch operation.

A builder is a function of a layer and the shapes of its bottoms. It checks the layer, and returns its blobs and the
function that computes its tops. Register one with `builds`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from camrt.errors import CamrtError
from converters.layer import Layer
from converters.registration import Registry
from converters.schema.caffe_pb2 import FillerParameter

if TYPE_CHECKING:
    from torch import Tensor

FAMILIES = (
    "activation",
    "convolution",
    "elementwise",
    "linear",
    "loss",
    "normalization",
    "pooling",
    "recurrent",
    "reduction",
    "shaping",
)

Shape = tuple[int, ...]
Forward = Callable[[Sequence["Tensor"], Sequence["Tensor"]], "Tensor | Sequence[Tensor]"]
Builder = Callable[["LayerContext"], "Operation"]


@dataclass(frozen=True)
class Weight:
    """The specification of a blob that a layer stores.

    Attributes:
        shape: The shape of the blob.
        filler: The initial values. None for zeros.
        learned: Whether the solver updates the blob. False for the statistics of BatchNorm.
        saved: Whether the blob is stored in a caffemodel.
    """

    shape: Shape
    filler: FillerParameter | None = None
    learned: bool = True
    saved: bool = True


@dataclass(frozen=True)
class Operation:
    """The computation of a layer.

    Attributes:
        forward: A function of the layer's blobs and its bottoms that returns its top or its tops.
        weights: The layer's blobs, in Caffe's order.
    """

    forward: Forward
    weights: Sequence[Weight] = ()


@dataclass(frozen=True)
class LayerContext:
    """A layer, and what its builder needs to know about the network around it.

    Attributes:
        layer: The layer.
        shapes: The shapes of its bottoms.
        phase: ``"TRAIN"`` or ``"TEST"``.
        overwrites: Whether the layer may write its top over its bottom: no other layer and no gradient reads the
            bottom.
    """

    layer: Layer
    shapes: tuple[Shape, ...]
    phase: str
    overwrites: bool = False

    def error(self, message: str) -> CamrtError:
        """Return a CamrtError that names the layer."""
        return CamrtError(f"layer {self.layer.name} ({self.layer.type}): {message}")

    def axis(self, axis: int, bottom: int = 0, *, end: bool = False) -> int:
        """Return the index of an axis, counted from the front.

        Args:
            axis: The index; a negative one counts from the end.
            bottom: The index of the bottom.
            end: Whether the index one past the last axis is valid.

        Raises:
            CamrtError: The bottom has no such axis.
        """
        rank = len(self.shapes[bottom])
        if not -rank <= axis < rank + end:
            raise self.error(f"found axis {axis}, expected one of the {rank} axes of {self.layer.bottoms[bottom]!r}")
        return axis + rank if axis < 0 else axis


def upcast(values: Tensor) -> Tensor:
    """Convert half precision, which autocast produces, to float32. Return other tensors unchanged."""
    return values.float() if values.element_size() < 4 or not values.is_floating_point() else values


_builders: Registry[str, Builder] = Registry(
    "builder for", [f"camrt.train.layers.{family}" for family in FAMILIES], ValueError
)


def builds(*types: str) -> Callable[[Builder], Builder]:
    """Register the decorated function as the builder of layer types.

    Raises:
        ValueError: One of the types already has a builder.
    """

    def register(builder: Builder) -> Builder:
        _builders.add(types, builder, builder)
        return builder

    return register


def find(type: str) -> Builder | None:
    """Return the builder of a layer type, or None."""
    return _builders.find(type)


def types() -> Iterator[str]:
    """Iterate over all layer types that can be trained."""
    return _builders.keys()
