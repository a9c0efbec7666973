"""DummyData: constants, and random numbers that are drawn for each batch (dummy_data_layer.cpp)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from camrt.errors import CamrtError
from camrt.train.data.streams import LoadedBatch
from camrt.train.fillers import fill
from converters.deploy import dummy_shapes
from converters.errors import ConversionError
from converters.schema.caffe_pb2 import FillerParameter

if TYPE_CHECKING:
    from torch import Tensor

    from converters.layer import Layer


@dataclass(frozen=True, eq=False)
class DummyData:
    """The tops of a DummyData layer.

    Attributes:
        name: The name of the layer, for messages.
        tops: Top -> its shape and its filler.
        seed: The seed of random fillers.
    """

    name: str
    tops: dict[str, tuple[tuple[int, ...], FillerParameter]]
    seed: int
    classes = ()
    count = None
    largest_label = None
    is_cheap = True

    @classmethod
    def of(cls, layer: Layer, seed: int) -> DummyData:
        """Create the data of a layer.

        Raises:
            CamrtError: The shapes or fillers of the layer do not fit its tops.
        """
        fillers = list(layer.params.dummy_data_param.data_filler) or [FillerParameter()]
        if len(fillers) not in (1, len(layer.tops)):
            raise CamrtError(
                f"layer {layer.name} (DummyData): found {len(fillers)} data_filler for {len(layer.tops)} tops, "
                "expected one for all tops, or one for each"
            )
        fillers = fillers if len(fillers) == len(layer.tops) else fillers * len(layer.tops)
        try:
            shapes = dummy_shapes(layer)
        except ConversionError as error:
            raise CamrtError(str(error)) from None
        return cls(layer.name, dict(zip(layer.tops, zip(shapes, fillers, strict=True), strict=True)), seed)

    @property
    def batch_size(self) -> int:
        """See `Stream`."""
        shape, _ = next(iter(self.tops.values()))
        return shape[0] if shape else 1

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Stream`."""
        return {top: shape for top, (shape, _) in self.tops.items()}

    def load(self, position: int) -> LoadedBatch:
        """See `Stream`."""
        arrays: dict[str, NDArray[Any]] = {}
        for top, (shape, filler) in self.tops.items():
            blob = torch.empty(shape)
            try:
                fill(blob, filler, seed=self.seed, name=f"{self.name}/{top}/{position}")
            except ValueError as error:
                raise CamrtError(f"layer {self.name} (DummyData): {error}") from None
            arrays[top] = blob.numpy()
        return LoadedBatch(arrays)

    def finish(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Stream`. The batch is returned unchanged."""
        return inputs
