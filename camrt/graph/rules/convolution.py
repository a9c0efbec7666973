"""Convolution and its transpose.

The gradient at the input of a convolution with stride 1 is a convolution with the kernels turned round and their
channels exchanged. A runtime folds that into a constant; it is faster on a CPU than ConvTranspose, except for images of
a few channels. With other strides it is ConvTranspose.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from camrt.graph.rules.registry import rule
from camrt.graph.step import Step
from camrt.graph.windows import Windows, same

_FEW = 8  # channels; measured on two cores: ConvTranspose is twice as fast at 3, half as fast at 64


@rule("Conv")
def conv(step: Step, gradient: str) -> Sequence[str | None]:
    """Convolution with the turned kernels, or ConvTranspose; of the weights a convolution of input and gradient."""
    x, weight = step.inputs[:2]
    group = int(step.attributes.get("group", 1))
    outputs, inputs, *kernel = step.fixed(weight, range(step.rank(weight)))
    windows = Windows.of(step, kernel, x)
    found: list[str | None] = [None, None, None]
    if step.wants(0):
        step.alone(weight)
        is_plain = all(stride == 1 for stride in windows.strides) and all(
            reach >= max(begin, end)
            for reach, begin, end in zip(windows.reach, windows.begins, windows.ends, strict=True)
        )
        if is_plain and (inputs >= _FEW or group > 1):
            found[0] = _turned(step, gradient, windows, group, (outputs, inputs, *kernel))
        else:
            found[0] = _transposed(step, gradient, windows, group)
    if step.wants(1):
        step.alone(x)
        found[1] = _of_kernels(step, x, gradient, windows, group, outputs)
    if step.wants(2):
        step.apart([0], step.output)
        found[2] = step.builder.reduce("Sum", gradient, [0, *range(2, step.rank(x))])
    return found


def _turned(step: Step, gradient: str, windows: Windows, group: int, shape: Sequence[int]) -> str:
    """Stride 1: a convolution with the kernels turned round, from output to input channels."""
    outputs, inputs, *kernel = shape
    axes = len(kernel)
    weight = step.inputs[1]
    if group > 1:
        weight = step.builder.reshape(weight, group, outputs // group, inputs, *kernel)
        weight = step.builder.node("Transpose", [weight], perm=[0, 2, 1, *range(3, 3 + axes)])
        weight = step.builder.reshape(weight, group * inputs, outputs // group, *kernel)
    else:
        weight = step.builder.node("Transpose", [weight], perm=[1, 0, *range(2, 2 + axes)])
    wide = [axis for axis, taps in enumerate(kernel) if taps > 1]
    if wide:
        least = np.iinfo(np.int64).min
        places = [[-1] * len(wide), [least] * len(wide), [axis + 2 for axis in wide], [-1] * len(wide)]
        weight = step.builder.node("Slice", [weight, *(step.builder.shape(*numbers) for numbers in places)])
    begins = [reach - pad for reach, pad in zip(windows.reach, windows.begins, strict=True)]
    ends = [reach - pad for reach, pad in zip(windows.reach, windows.ends, strict=True)]
    return step.builder.node(
        "Conv", [gradient, weight], kernel_shape=kernel, dilations=windows.dilations, group=group, pads=[*begins, *ends]
    )


def _transposed(step: Step, gradient: str, windows: Windows, group: int) -> str:
    """ConvTranspose. Uneven borders are cut off afterwards: not every provider takes them."""
    x = step.inputs[0]
    axes = len(windows.kernel)
    rest = [0] * axes
    if any(stride > 1 for stride in windows.strides):  # what the last window does not reach
        sizes = step.fixed(x, range(2, 2 + axes))
        rest = [
            (size + begin + end - reach - 1) % stride
            for size, begin, end, reach, stride in zip(
                sizes, windows.begins, windows.ends, windows.reach, windows.strides, strict=True
            )
        ]
    is_even = windows.begins == windows.ends
    found = step.builder.node(
        "ConvTranspose",
        [gradient, step.inputs[1]],
        kernel_shape=windows.kernel,
        strides=windows.strides,
        dilations=windows.dilations,
        group=group,
        pads=windows.pads if is_even else None,
        output_padding=rest if any(rest) else None,
    )
    if is_even:
        return found
    ends = [-end if end else np.iinfo(np.int64).max for end in windows.ends]
    return step.builder.slice(found, windows.begins, ends, range(2, 2 + axes))


def _of_kernels(step: Step, image: str, gradient: str, windows: Windows, group: int, outputs: int) -> str:
    """The gradient (outputs, C / group, ...) of kernels over ``image``: a convolution of the image with ``gradient``.

    Images take the place of channels, and what was the step from window to window is the step from tap to tap.
    """
    axes = len(windows.kernel)
    back = [*range(2, 2 + axes)]
    swapped = step.builder.node("Transpose", [image], perm=[1, 0, *back])  # (C, N, ...)
    kernels = step.builder.node("Transpose", [gradient], perm=[1, 0, *back])  # (outputs, N, ...)
    if group > 1:  # (C / group, group * N, ...): each group's images beside those of the next
        channels, *sizes = step.fixed(image if image == step.inputs[0] else step.output, range(1, 2 + axes))
        apart = step.builder.reshape(swapped, group, channels // group, -1, *sizes)
        apart = step.builder.node("Transpose", [apart], perm=[1, 0, 2, *range(3, 3 + axes)])
        swapped = step.builder.reshape(apart, channels // group, -1, *sizes)
    product = step.builder.node(
        "Conv", [swapped, kernels], strides=windows.dilations, dilations=windows.strides, pads=windows.pads, group=group
    )
    product = step.builder.slice(product, [0] * axes, windows.kernel, back)  # taps that the last window has left over
    return step.builder.node("Transpose", [product], perm=[1, 0, *back])


@rule("ConvTranspose")
def conv_transpose(step: Step, gradient: str) -> Sequence[str | None]:
    """Convolution; of the weights a convolution of gradient and input."""
    x, weight = step.inputs[:2]
    group = int(step.attributes.get("group", 1))
    kernel = step.fixed(weight, range(2, step.rank(weight)))
    windows = _windows(step, kernel)
    axes = len(kernel)
    rest = step.attributes.get("output_padding") or [0] * axes
    if any(more >= stride for more, stride in zip(rest, windows.strides, strict=True)):
        raise step.error(f"found output_padding {list(rest)}, expected less than the strides {list(windows.strides)}")
    found: list[str | None] = [None, None, None]
    if step.wants(0):
        step.alone(weight)
        found[0] = step.builder.node(
            "Conv",
            [gradient, weight],
            strides=windows.strides,
            dilations=windows.dilations,
            pads=windows.pads,
            group=group,
        )
    if step.wants(1):
        step.alone(x)
        (channels,) = step.fixed(weight, [0])
        found[1] = _of_kernels(step, gradient, x, windows, group, channels)
    if step.wants(2):
        step.apart([0], step.output)
        found[2] = step.builder.reduce("Sum", gradient, [0, *range(2, 2 + axes)])
    return found


def _windows(step: Step, kernel: Sequence[int]) -> Windows:
    """The windows of the convolution that a ConvTranspose turns round; ``output_shape`` gives their padding."""
    axes = len(kernel)
    plain = Windows.of(step, kernel, step.inputs[0]) if "auto_pad" not in step.attributes else None
    if plain is not None and "output_shape" not in step.attributes:
        return plain
    auto = step.attributes.get("auto_pad", "NOTSET")
    strides = tuple(step.attributes.get("strides") or [1] * axes)
    dilations = tuple(step.attributes.get("dilations") or [1] * axes)
    bare = Windows(tuple(kernel), strides, dilations, (0,) * axes, (0,) * axes)
    if auto == "VALID":
        return bare
    if auto == "NOTSET" and "output_shape" not in step.attributes:
        pads = step.attributes.get("pads") or [0] * 2 * axes
        return Windows(tuple(kernel), strides, dilations, tuple(pads[:axes]), tuple(pads[axes:]))
    sizes, outs = (step.fixed(name, range(2, 2 + axes)) for name in (step.inputs[0], step.output))
    rest = step.attributes.get("output_padding") or [0] * axes
    totals = [
        max(stride * (size - 1) + more + reach + 1 - out, 0)
        for stride, size, more, reach, out in zip(strides, sizes, rest, bare.reach, outs, strict=True)
    ]
    pads = same(totals, upper=auto == "SAME_UPPER")
    return Windows(tuple(kernel), strides, dilations, tuple(pads[:axes]), tuple(pads[axes:]))
