"""Which function trains which layer type.

A builder is a function of a layer and its bottoms' shapes. It checks the layer and says which blobs it learns and how
it computes its tops; `builds` registers it.
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

FAMILIES = ("activation", "convolution", "elementwise", "loss", "normalization", "pooling", "recurrent", "shaping")

Shape = tuple[int, ...]
Forward = Callable[[Sequence["Tensor"], Sequence["Tensor"]], "Tensor | Sequence[Tensor]"]
Builder = Callable[["Place"], "Operation"]


@dataclass(frozen=True)
class Weight:
    """A blob that a layer stores.

    Attributes:
        shape: Its shape.
        filler: What it holds before training; None for zeros.
        learned: Whether the solver changes it. BatchNorm's statistics it does not.
        saved: Whether it belongs to the layer's blobs in a caffemodel.
    """

    shape: Shape
    filler: FillerParameter | None = None
    learned: bool = True
    saved: bool = True


@dataclass(frozen=True)
class Operation:
    """How a layer computes.

    Attributes:
        forward: A function of the layer's blobs and its bottoms that gives its top, or its tops.
        weights: The layer's blobs, in Caffe's order.
    """

    forward: Forward
    weights: Sequence[Weight] = ()


@dataclass(frozen=True)
class Place:
    """A layer at its place in a network.

    Attributes:
        layer: The layer.
        shapes: The shapes of its bottoms.
        phase: ``"TRAIN"`` or ``"TEST"``.
        overwrites: Whether it may write its top over its bottom: nobody else reads it, not even for a gradient.
    """

    layer: Layer
    shapes: tuple[Shape, ...]
    phase: str
    overwrites: bool = False

    def error(self, message: str) -> CamrtError:
        """A CamrtError that names the layer."""
        return CamrtError(f"layer {self.layer.name} ({self.layer.type}): {message}")

    def axis(self, axis: int, bottom: int = 0, *, end: bool = False) -> int:
        """An axis of a bottom, counted from the front.

        Raises:
            CamrtError: The bottom has no such axis.
        """
        rank = len(self.shapes[bottom])
        if not -rank <= axis < rank + end:
            raise self.error(f"found axis {axis}, expected one of the {rank} axes of {self.layer.bottoms[bottom]!r}")
        return axis + rank if axis < 0 else axis


def in_full(values: Tensor) -> Tensor:
    """The values in single precision at least: under autocast they can be of half precision."""
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
    """The builder of a layer type, or None."""
    return _builders.find(type)


def types() -> Iterator[str]:
    """All layer types that can be trained."""
    return _builders.keys()
