"""The windows of convolution and pooling along each axis of an image, as a node's attributes give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from camrt.graph.step import Step


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
    def of(cls, step: Step, kernel: Sequence[int], image: str) -> Windows:
        """Of a node that slides windows over ``image`` (N, C, spatial axes)."""
        axes = len(kernel)
        strides = step.attributes.get("strides") or [1] * axes
        dilations = step.attributes.get("dilations") or [1] * axes
        pads = step.attributes.get("pads") or [0] * 2 * axes
        auto = step.attributes.get("auto_pad", "NOTSET")
        if auto == "VALID":
            pads = [0] * 2 * axes
        elif auto.startswith("SAME"):
            sizes = step.fixed(image, range(2, 2 + axes))
            totals = [
                max((-(-size // stride) - 1) * stride + (taps - 1) * dilation + 1 - size, 0)
                for size, taps, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)
            ]
            pads = same(totals, upper=auto == "SAME_UPPER")
        return cls(tuple(kernel), tuple(strides), tuple(dilations), tuple(pads[:axes]), tuple(pads[axes:]))

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

    def taps(self, axis: int, size: int, out: int) -> np.ndarray:
        """How often each pixel stands in each window along an axis: (out, size), 0 or 1."""
        starts = np.arange(out) * self.strides[axis] - self.begins[axis]
        places = starts[:, None] + np.arange(self.kernel[axis]) * self.dilations[axis]
        rows, columns = np.nonzero((places >= 0) & (places < size))
        matrix = np.zeros((out, size))
        matrix[rows, places[rows, columns]] = 1
        return matrix

    def lengths(self, axis: int, size: int, out: int) -> np.ndarray:
        """How many taps of each window lie within the padded image: (out,)."""
        starts = np.arange(out) * self.strides[axis] - self.begins[axis]
        places = starts[:, None] + np.arange(self.kernel[axis]) * self.dilations[axis]
        return np.asarray((places < size + self.ends[axis]).sum(axis=1))


def same(totals: Sequence[int], *, upper: bool) -> list[int]:
    """Padding shared out to both sides; an odd pixel goes behind (upper) or before the image."""
    less = [total // 2 for total in totals]
    more = [total - half for total, half in zip(totals, less, strict=True)]
    return [*less, *more] if upper else [*more, *less]
