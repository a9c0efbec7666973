"""The windows of convolution and pooling along each axis of an image, as a node's attributes give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from camrt.errors import CamrtError
from camrt.graph.values import Value

MAX_MATRIX = 1 << 24  # numbers in the matrix of an axis: 4096 x 4096 pixels, 128 MiB


@dataclass(frozen=True)
class Windows:
    """Window, step and borders along each spatial axis.

    Attributes:
        kernel: The taps of a window.
        strides: From window to window.
        dilations: From tap to tap.
        begins: Padding before the image.
        ends: Padding behind it.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(
        cls,
        kernel: Sequence[int],
        image: Value,
        *,
        strides: Sequence[int] = (),
        dilations: Sequence[int] = (),
        pads: Sequence[int] = (),
        auto_pad: str = "NOTSET",
        **_: object,
    ) -> Windows:
        """Of a node with these attributes that slides windows over ``image`` (N, C, spatial axes)."""
        axes = len(kernel)
        strides, dilations = strides or [1] * axes, dilations or [1] * axes
        if auto_pad == "VALID" or not pads:
            pads = [0] * 2 * axes
        if auto_pad.startswith("SAME"):
            sizes = image.fixed(*range(2, 2 + axes))
            totals = [
                max((-(-size // stride) - 1) * stride + (taps - 1) * dilation + 1 - size, 0)
                for size, taps, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)
            ]
            pads = same(totals, upper=auto_pad == "SAME_UPPER")
        return cls(tuple(kernel), tuple(strides), tuple(dilations), tuple(pads[:axes]), tuple(pads[axes:]))

    @classmethod
    def of_transposed(
        cls, kernel: Sequence[int], x: Value, y: Value, output_padding: Sequence[int],
        *, auto_pad: str = "NOTSET", output_shape: Sequence[int] = (), **shape: Any,
    ) -> Windows:  # fmt: skip
        """Of the convolution that a ConvTranspose from ``x`` to ``y`` transposes."""
        if auto_pad in ("NOTSET", "VALID") and not output_shape:
            return cls.of(kernel, x, auto_pad=auto_pad, **shape)
        axes = len(kernel)
        bare = cls.of(kernel, x, **{**shape, "pads": ()})
        sizes, outs = (one.fixed(*range(2, 2 + axes)) for one in (x, y))
        steps = zip(bare.strides, sizes, output_padding or [0] * axes, bare.reach, outs, strict=True)
        totals = [max(stride * (size - 1) + more + reach + 1 - out, 0) for stride, size, more, reach, out in steps]
        return cls.of(kernel, x, **{**shape, "pads": same(totals, upper=auto_pad == "SAME_UPPER")})

    @property
    def reach(self) -> tuple[int, ...]:
        """From the first tap of a window to the last."""
        return tuple((taps - 1) * dilation for taps, dilation in zip(self.kernel, self.dilations, strict=True))

    @property
    def pads(self) -> list[int]:
        """As ONNX writes them."""
        return [*self.begins, *self.ends]

    @property
    def is_disjoint(self) -> bool:
        """Whether no two windows share a pixel."""
        return all(
            taps == 1 or (dilation == 1 and stride >= taps)
            for taps, stride, dilation in zip(self.kernel, self.strides, self.dilations, strict=True)
        )

    @property
    def is_dense(self) -> bool:
        """Whether windows start at every pixel, and none of them lies in the padding alone."""
        borders = zip(self.reach, self.begins, self.ends, strict=True)
        return all(stride == 1 for stride in self.strides) and all(reach >= max(both) for reach, *both in borders)

    def rest(self, sizes: Sequence[int]) -> list[int]:
        """How many pixels of an image of these sizes the last windows do not reach."""
        borders = zip(sizes, self.begins, self.ends, self.reach, self.strides, strict=True)
        return [(size + begin + end - reach - 1) % stride for size, begin, end, reach, stride in borders]

    def taps(self, axis: int, size: int, out: int) -> np.ndarray:
        """How often each pixel stands in each window along an axis: (out, size), 0 or 1.

        Raises:
            CamrtError: The windows or the image are too large for a matrix.
        """
        check_matrix(out, max(size, self.kernel[axis]), "windows")
        starts = np.arange(out) * self.strides[axis] - self.begins[axis]
        positions = starts[:, None] + np.arange(self.kernel[axis]) * self.dilations[axis]
        rows, columns = np.nonzero((positions >= 0) & (positions < size))
        matrix = np.zeros((out, size))
        matrix[rows, positions[rows, columns]] = 1
        return matrix

    def lengths(self, axis: int, size: int, out: int) -> np.ndarray:
        """How many taps of each window lie within the padded image: (out,)."""
        starts = np.arange(out) * self.strides[axis] - self.begins[axis]
        positions = starts[:, None] + np.arange(self.kernel[axis]) * self.dilations[axis]
        return np.asarray((positions < size + self.ends[axis]).sum(axis=1))


def check_matrix(rows: int, columns: int, what: str) -> None:
    """Check the size of the constant matrix that stands for a linear function of an axis.

    Raises:
        CamrtError: It has more than `MAX_MATRIX` numbers.
    """
    if rows * columns > MAX_MATRIX:
        raise CamrtError(
            f"found {rows:,} {what} of up to {columns:,} pixels along an axis, expected a product of at most "
            f"{MAX_MATRIX:,}: explain smaller images"
        )


def same(totals: Sequence[int], *, upper: bool) -> list[int]:
    """Padding shared out to both sides; an odd pixel goes behind (upper) or before the image."""
    less = [total // 2 for total in totals]
    more = [total - half for total, half in zip(totals, less, strict=True)]
    return [*less, *more] if upper else [*more, *less]
