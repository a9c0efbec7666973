"""Pooling and spatial pyramid pooling, with Caffe's number of windows and Caffe's divisors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from camrt.train.registry import LayerContext, Operation, builds
from converters.handlers.pooling import Window, layer_bins, layer_windows
from converters.schema.caffe_pb2 import PoolingParameter, SPPParameter

_LOWEST = torch.finfo(torch.float32).min  # the result of Caffe's MAX for a window without pixels


@builds("Pooling")
def pooling(context: LayerContext) -> Operation:
    """Max and average pooling."""
    layer = context.layer
    layer.expect(bottoms=1, tops=range(1, 3))
    method = layer.params.pooling_param.pool
    windows = layer_windows(layer, _image_size(context))
    if method == PoolingParameter.STOCHASTIC:
        raise context.error("found STOCHASTIC pooling, expected MAX or AVE: it cannot be trained here")
    if len(layer.tops) > 1:
        if method != PoolingParameter.MAX:
            raise context.error("found 2 tops, expected 1: only MAX pooling has a mask")
        return Operation(lambda blobs, bottoms: _max_with_mask(bottoms[0], windows))
    pool = max_pool if method == PoolingParameter.MAX else average_pool
    return Operation(lambda blobs, bottoms: pool(bottoms[0], windows))


@builds("SPP")
def spatial_pyramid_pooling(context: LayerContext) -> Operation:
    """Concatenation of flattened pyramid levels of 1, 4, 16, ... bins (He et al. 2014)."""
    context.layer.expect(bottoms=1, tops=1)
    param = context.layer.params.spp_param
    if param.pool == SPPParameter.STOCHASTIC:
        raise context.error("found STOCHASTIC pooling, expected MAX or AVE: it cannot be trained here")
    if not 1 <= param.pyramid_height <= 16:
        raise context.error(f"found pyramid_height {param.pyramid_height}, expected 1 to 16")
    levels = [layer_bins(context.layer, _image_size(context), 2**level) for level in range(param.pyramid_height)]
    pool = max_pool if param.pool == SPPParameter.MAX else average_pool

    def forward(blobs: Sequence[Tensor], bottoms: Sequence[Tensor]) -> Tensor:
        pooled = [pool(bottoms[0], windows) for windows in levels]
        return pooled[0] if len(pooled) == 1 else torch.cat([level.flatten(1) for level in pooled], 1)

    return Operation(forward)


def max_pool(x: Tensor, windows: Sequence[Window]) -> Tensor:
    """Compute MAX pooling of (N, C, H, W). Of equal values the first receives the gradient, as in Caffe."""
    kernel, stride, pad, ceil = _torch_window(windows)
    if pad is not None:
        return functional.max_pool2d(x, kernel, stride, pad, ceil_mode=ceil)
    inside = [window.inside for window in windows]
    pooled = functional.max_pool2d(functional.pad(x, _borders(inside), value=-torch.inf), kernel, stride)
    return _pad_empty_windows(pooled, windows, _LOWEST)


def average_pool(x: Tensor, windows: Sequence[Window]) -> Tensor:
    """Compute AVE pooling of (N, C, H, W). The divisor counts padding, but not what exceeds the padded image."""
    if all(window.covers_map for window in windows):
        return x.mean((2, 3), keepdim=True)
    kernel, stride, pad, ceil = _torch_window(windows)
    if pad is not None:
        return functional.avg_pool2d(x, kernel, stride, pad, ceil_mode=ceil, count_include_pad=True)
    inside = [window.inside for window in windows]
    pooled = functional.avg_pool2d(functional.pad(x, _borders(inside)), kernel, stride)
    rows, columns = (torch.from_numpy(window.factors).to(x.device, x.dtype) for window in windows)
    return _pad_empty_windows(pooled, windows, 0) * (rows[:, None] * columns)


def _max_with_mask(x: Tensor, windows: Sequence[Window]) -> Sequence[Tensor]:
    """Compute MAX pooling, and the index of each maximum in its channel."""
    kernel, stride, pad, ceil = _torch_window(windows)
    if pad is None:
        raise ValueError("found a mask over windows with more padding than half a window, expected less")
    pooled, indices = functional.max_pool2d(x, kernel, stride, pad, ceil_mode=ceil, return_indices=True)
    return pooled, indices.to(x.dtype)


def _torch_window(
    windows: Sequence[Window],
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int] | None, bool]:
    """Return kernel, stride, pad and ceil_mode with which PyTorch's pooling has Caffe's windows.

    PyTorch supports neither padding of more than half a window nor windows without pixels. For those, pad is None.
    """
    down, across = windows
    kernel, stride, pad = (
        (down.kernel, across.kernel), (down.stride, across.stride), (down.pad, across.pad),
    )  # fmt: skip
    for ceil in (False, True):
        if all(2 * w.pad <= w.kernel and _torch_count(w, ceil) == w.out for w in windows):
            return kernel, stride, pad, ceil
    return kernel, stride, None, False


def _torch_count(window: Window, ceil: bool) -> int:
    room = window.size + 2 * window.pad - window.kernel
    count = (-(-room // window.stride) if ceil else room // window.stride) + 1
    return count - 1 if ceil and (count - 1) * window.stride >= window.size + window.pad else count


def _borders(windows: Sequence[Window]) -> list[int]:
    """Return the padding for functional.pad: left, right, top, bottom."""
    return [border for window in reversed(windows) for border in (window.pad, window.overhang)]


def _pad_empty_windows(pooled: Tensor, windows: Sequence[Window], value: float) -> Tensor:
    """Append the results of the windows that begin beyond the image."""
    down, across = (window.out - window.inside.out for window in windows)
    return functional.pad(pooled, [0, across, 0, down], value=value) if down or across else pooled


def _image_size(context: LayerContext) -> Sequence[int]:
    if len(context.shapes[0]) != 4:
        raise context.error(f"found a blob of {len(context.shapes[0])} axes, expected 4: N x C x H x W")
    return context.shapes[0][2:]
