"""Convolution and its transpose.

The gradient at the input of a convolution with stride 1 is a convolution with flipped kernels and exchanged channels.
A runtime folds the flipping into a constant. On a CPU it is faster than ConvTranspose, except for images of a few
channels. With other strides it is ConvTranspose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from camrt.errors import CamrtError
from camrt.graph.rules.registry import Cotangents, rule
from camrt.graph.values import LAST, Value
from camrt.graph.windows import Windows

_FEW = 8  # channels; measured on two cores: ConvTranspose is twice as fast at 3, half as fast at 64


@rule("Conv")
def conv(
    g: Value, y: Value, x: Value, w: Value, bias: Value | None = None, *, group: int = 1, **shape: Any
) -> Cotangents:
    """Convolution with the flipped kernels, or ConvTranspose; of the weights a convolution of input and gradient."""
    _, channels, *kernel = w.fixed()
    windows = Windows.of(kernel, x, **shape)
    is_flipped = windows.is_dense and (channels >= _FEW or group > 1)
    to_x = _flipped if is_flipped else _transposed
    return (
        lambda: g.per_image(lambda g: to_x(g, x, w, windows, group)),
        lambda: _to_kernels(x, g, windows, group),
        g.sum(0, *range(2, g.rank)),
    )


def _flipped(g: Value, x: Value, w: Value, windows: Windows, group: int) -> Value:
    """Stride 1: a convolution with the flipped kernels, from output to input channels."""
    outputs, channels, *kernel = w.fixed()
    if group > 1:
        w = w.reshape(group, outputs // group, channels, *kernel).transpose(0, 2, 1, *range(3, w.rank + 1))
        w = w.reshape(group * channels, outputs // group, *kernel)
    else:
        w = w.transpose(1, 0, *range(2, w.rank))
    for axis in (axis for axis, taps in enumerate(kernel, 2) if taps > 1):
        w = w.slice(axis, -1, -LAST, -1)
    pads = [
        reach - pad for ends in (windows.begins, windows.ends) for reach, pad in zip(windows.reach, ends, strict=True)
    ]
    return g.op("Conv", w, shape=x.shape, kernel_shape=kernel, dilations=windows.dilations, group=group, pads=pads)


def _transposed(g: Value, x: Value, w: Value, windows: Windows, group: int) -> Value:
    """ConvTranspose. Uneven borders are cut off afterwards: not every provider takes them."""
    axes = len(windows.kernel)
    rest = windows.rest(x.fixed(*range(2, 2 + axes))) if any(stride > 1 for stride in windows.strides) else [0] * axes
    is_even = windows.begins == windows.ends
    found = g.op(
        "ConvTranspose", w,
        shape=x.shape if is_even else (*x.shape[:2], *[None] * axes),
        kernel_shape=windows.kernel, strides=windows.strides, dilations=windows.dilations, group=group,
        pads=windows.pads if is_even else None, output_padding=rest if any(rest) else None,
    )  # fmt: skip
    if is_even:
        return found
    ends = [-end if end else LAST for end in windows.ends]
    cut = found.builder.slice(found.name, windows.begins, ends, range(2, 2 + axes))
    return Value(found.builder, cut, x.shape, found.kind)


def _to_kernels(image: Value, g: Value, windows: Windows, group: int) -> Value:
    """The gradient (outputs, C / group, ...) of kernels over ``image``: a convolution of the image with ``g``.

    Images take the place of channels, and what was the step from window to window is the step from tap to tap. Of a
    ConvTranspose it is ``g`` that windows slide over.
    """
    back = range(2, image.rank)
    channels, outputs = image.fixed(1)[0], g.fixed(1)[0]
    data, kernels = image.transpose(1, 0, *back), g.transpose(1, 0, *back)  # (C, N, ...), (outputs, N, ...)
    if group > 1:  # (C / group, group * N, ...): each group's images beside those of the next
        sizes = image.fixed(*back)
        data = data.reshape(group, channels // group, None, *sizes).transpose(1, 0, 2, *range(3, image.rank + 1))
        data = data.reshape(channels // group, None, *sizes)
    number = kernels.lead
    if number is not None:  # the kernels of one group, of all cotangents, side by side
        sizes = kernels.fixed(*back)
        kernels = kernels.reshape(group, outputs // group, None, *sizes).lead_to(1)
        kernels = kernels.reshape(number * outputs, None, *sizes)

    def product(data: Value) -> Value:
        shape = (data.shape[0], kernels.shape[0], *[None] * len(windows.kernel))
        found = data.op(
            "Conv", kernels, shape=shape,
            strides=windows.dilations, dilations=windows.strides, pads=windows.pads, group=group,
        )  # fmt: skip
        cut = found.builder.slice(found.name, [0] * len(windows.kernel), windows.kernel, back)  # taps left over
        return Value(found.builder, cut, (*shape[:2], *windows.kernel), found.kind)

    found = data.per_image(product).transpose(1, 0, *back)
    if number is None:
        return found
    sizes = found.fixed(*range(1, found.rank))
    return found.reshape(group, number, outputs // group, *sizes).lead_from(1).reshape(outputs, *sizes)


@rule("ConvTranspose")
def conv_transpose(
    g: Value, y: Value, x: Value, w: Value, bias: Value | None = None,
    *, group: int = 1, output_padding: Sequence[int] = (), **shape: Any,
) -> Cotangents:  # fmt: skip
    """Convolution; of the weights a convolution of gradient and input."""
    kernel = w.fixed(*range(2, w.rank))
    windows = Windows.of_transposed(kernel, x, y, output_padding, **shape)
    if any(more >= stride for more, stride in zip(output_padding, windows.strides, strict=False)):
        raise CamrtError(
            f"found output_padding {list(output_padding)}, expected less than the strides {list(windows.strides)}"
        )
    steps: dict[str, Any] = {"strides": windows.strides, "dilations": windows.dilations, "pads": windows.pads}
    return (
        g.per_image(lambda g: g.op("Conv", w, shape=x.shape, group=group, **steps)),
        lambda: _to_kernels(g, x, windows, group),
        g.sum(0, *range(2, g.rank)),
    )
