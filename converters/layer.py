"""A layer of a network, as its handler sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from converters.errors import ConversionError
from converters.schema import caffe_pb2
from converters.shape import show
from converters.textformat import UnknownField

MANY = 2**31  # more blobs than any layer has


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of a network.

    Attributes:
        name: The name in the file.
        type: Caffe's type, such as ``"Convolution"``.
        bottoms: The tensors it reads, named as in the file except for blobs written in place (see ``Net``).
        tops: The tensors it writes.
        params: The message with ``pooling_param`` and so on, without weights.
        blobs: The weights in Caffe's order and layout: float32, read-only, views of the file if possible.
        extra: The fields that are not in the schema, as plain Python objects for plugins.
        unknown: The same fields with their positions, and fields with values that are not in the schema.
        fork: The fork named when the network was read; empty by default.
        binary: Whether the network was read from a binary file, which stores field numbers and no names.
        source: The file of the weights, for errors.
        scale: For a BatchNorm: the following Scale layer, if one node computes both.
        filler: Creates missing weights from their shapes; None to raise an error.
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
    unknown: tuple[UnknownField, ...] = ()
    fork: str = ""
    binary: bool = False
    filler: Callable[[Layer, Sequence[tuple[int, ...]]], Sequence[np.ndarray]] | None = None

    def error(self, message: str) -> ConversionError:
        """Return a ConversionError that names the layer."""
        return ConversionError(message, layer=f"{self.name} ({self.type})")

    def expect(self, *, bottoms: int | range, tops: int | range) -> None:
        """Check the numbers of bottoms and tops.

        Raises:
            ConversionError: A number differs.
        """
        for what, found, expected in (("bottom", self.bottoms, bottoms), ("top", self.tops, tops)):
            allowed = range(expected, expected + 1) if isinstance(expected, int) else expected
            if len(found) not in allowed:
                least, most = allowed.start, allowed.stop - 1
                number = str(least) if least == most else f"{least} to {most}" if most < MANY else f"{least} or more"
                raise self.error(f"found {len(found)} {what}(s) ({', '.join(found) or 'none'}), expected {number}")

    def ends(self) -> tuple[str, tuple[str, ...]]:
        """Return the bottom, and the top as node outputs, of a layer with one of each.

        Raises:
            ConversionError: The layer has other numbers of them.
        """
        self.expect(bottoms=1, tops=1)
        return self.bottoms[0], self.tops

    def weights(self, *shapes: Sequence[int]) -> list[np.ndarray]:
        """Return the weights after checking their shapes.

        Args:
            shapes: The expected shape of each blob. The four-dimensional shapes of files before 2015 (a bias of
                1 x 1 x 1 x n) and C3D's five-dimensional shapes are accepted too.

        Returns:
            One float32 array per shape, as views.

        Raises:
            ConversionError: There are no weights, or their number or a shape differs.
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
        legacy = [(1,) * (axes - len(shape)) + shape for axes in (4, 5)]  # 5 in C3D's files
        if blob.shape not in (shape, *legacy):
            raise self.error(
                f"found shape {show(blob.shape)} for blob {index} in {self.source}, expected {show(shape)}: "
                "the prototxt and the weights do not belong together, or the input has another size"
            )
        return blob.reshape(shape)
