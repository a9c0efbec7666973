"""Pooling and spatial pyramid pooling.

Caffe differs from ONNX in two ways: it rounds the number of windows up, and the divisor of an average counts the
padding but not the part of a window beyond the padded image. So the ONNX node has explicit pads, and averages with
unequal divisors are multiplied by explicit factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from converters import forks
from converters.graph import Graph
from converters.layer import Layer
from converters.registry import handles
from converters.schema.caffe_pb2 import PoolingParameter, SPPParameter

MAX_UNEVEN = 2**20  # windows along an axis whose averages have different divisors
_LOWEST = float(np.finfo(np.float32).min)  # Caffe's MAX starts from it, and returns it for an empty window
_MAX, _AVE, _STOCHASTIC = PoolingParameter.MAX, PoolingParameter.AVE, PoolingParameter.STOCHASTIC


@dataclass(frozen=True)
class Window:
    """The window along one axis of an image. Caffe: src/caffe/layers/pooling_layer.cpp.

    Attributes:
        size: The image's size.
        kernel: The window's size.
        stride: The stride.
        pad: The padding on each side.
        out: The number of windows.
    """

    size: int
    kernel: int
    stride: int
    pad: int
    out: int

    @property
    def covers_map(self) -> bool:
        """Whether the only window is exactly the image."""
        return self.out == 1 and not self.pad and self.kernel >= self.size

    @property
    def overhang(self) -> int:
        """How far the last window extends beyond the image; 0 if it does not."""
        return max(0, (self.out - 1) * self.stride + self.kernel - self.size - self.pad)

    @property
    def inside(self) -> Window:
        """Drop the last window if it begins beyond the image, as it can if the stride exceeds the kernel."""
        beyond = (self.out - 1) * self.stride - self.pad >= self.size
        return replace(self, out=self.out - 1) if beyond else self

    @property
    def is_even(self) -> bool:
        """Whether every window lies within the padded image, so that every average has the same divisor."""
        return self.overhang <= self.pad

    @property
    def factors(self) -> np.ndarray:
        """Factors that correct averages divided by the size of the whole window: (out,) float32.

        Caffe divides by the window's length within the padded image.
        """
        starts = np.arange(self.out) * self.stride - self.pad
        lengths = np.minimum(starts + self.kernel, self.size + self.pad) - starts
        with np.errstate(divide="ignore"):  # an empty window: 0 * inf is NaN, like Caffe's 0 / 0
            return (self.kernel / lengths).astype(np.float32)


def windows_of(
    sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], pad: Sequence[int], *, floor: bool = False
) -> list[Window]:
    """The windows over an image; their number is Caffe's."""
    out = []
    for size, length, step, border in zip(sizes, kernel, stride, pad, strict=True):
        room = size + 2 * border - length
        count = (room // step if floor else -(-room // step)) + 1
        # If any axis is padded, the last window must begin inside the image or its leading padding.
        if any(pad) and (count - 1) * step >= size + border:
            count -= 1
        out.append(Window(size, length, step, border, count))
    return out


@handles(
    "Pooling",
    operators="MaxPool AveragePool GlobalMaxPool GlobalAveragePool Pad Mul Div Max Mod Cast",
    restrictions="STOCHASTIC as in testing with Caffe's GPU code (its CPU code has none); the MAX mask (second top) "
    "only for windows that begin inside the image",
)
def pooling(layer: Layer, graph: Graph) -> None:
    """Max and average pooling with Caffe's output size, which is rounded up."""
    param = layer.params.pooling_param
    windows = _windows(layer, graph)
    if len(layer.tops) > 1 and param.pool != _MAX:
        raise layer.error(f"found {len(layer.tops)} tops, expected one: only MAX pooling has a mask")
    if param.pool == _MAX and len(layer.tops) > 1:
        _max_with_mask(layer, graph, windows)
    else:
        pool(layer, graph, param.pool, layer.bottoms[0], windows, layer.tops[:1])


def _windows(layer: Layer, graph: Graph) -> list[Window]:
    """The layer's windows over its bottom."""
    layer.expect(bottoms=1, tops=range(1, 3))
    return layer_windows(layer, graph.image_size(layer.bottoms[0]))


def layer_windows(layer: Layer, sizes: Sequence[int]) -> list[Window]:
    """The windows of a Pooling layer over an image of size (H, W).

    Raises:
        ConversionError: The window is invalid or does not fit into the image.
    """
    param = layer.params.pooling_param
    if param.global_pooling:
        if param.kernel_size or param.kernel_h or param.kernel_w:
            raise layer.error("found global_pooling and a kernel size, expected one of the two")
        return windows_of(sizes, sizes, (1, 1), (0, 0))
    kernel = _pair(layer, "kernel", param.kernel_size, param.kernel_h, param.kernel_w)
    stride = _pair(layer, "stride", param.stride, param.stride_h, param.stride_w)
    pad = _pair(layer, "pad", param.pad, param.pad_h, param.pad_w)
    if 0 in kernel or 0 in stride or any(p >= k for p, k in zip(pad, kernel, strict=True)):
        raise layer.error(
            f"found kernel {kernel}, stride {stride}, pad {pad}, expected a kernel and stride of at least 1, and a pad "
            "below the kernel"
        )
    windows = windows_of(sizes, kernel, stride, pad, floor=_rounds_down(layer))
    if layer.binary and param.HasField("round_mode") and not layer.fork:
        _refuse_ambiguity(layer, windows, windows_of(sizes, kernel, stride, pad, floor=not _rounds_down(layer)))
    if any(window.out < 1 for window in windows):
        raise layer.error(
            f"found an image of {sizes[0]} x {sizes[1]}, expected one that a window of {kernel} fits into"
        )
    return windows


def _rounds_down(layer: Layer) -> bool:
    """Whether the number of windows is rounded down: by `ceil_mode` (a bool) or `round_mode` (an enumeration).

    Both are field 13 of binary files. A fork that has `ceil_mode` writes true, 1, where others write FLOOR, 1.
    """
    param = layer.params.pooling_param
    is_floor = param.round_mode == PoolingParameter.FLOOR
    if layer.binary and param.HasField("round_mode") and forks.has_ceil_mode(layer.fork):
        return not is_floor
    if not param.HasField("ceil_mode"):
        return is_floor
    if param.HasField("round_mode") and is_floor == param.ceil_mode:
        raise layer.error("found ceil_mode and round_mode, which contradict each other, expected one of the two")
    return not param.ceil_mode


def _refuse_ambiguity(layer: Layer, ours: Sequence[Window], others: Sequence[Window]) -> None:
    """Refuse a binary file's field 13 where its two meanings give different sizes."""
    sizes, other_sizes = (" x ".join(str(window.out) for window in windows) for windows in (ours, others))
    if sizes != other_sizes:
        mode = PoolingParameter.RoundMode.Name(layer.params.pooling_param.round_mode)
        truth = str(bool(layer.params.pooling_param.round_mode)).lower()
        raise layer.error(
            f"found field 13 of pooling_param, which means `round_mode: {mode}` to BVLC's and NVIDIA's Caffe (a map of "
            f"{sizes}) and `ceil_mode: {truth}` to other forks (a map of {other_sizes}). A binary file does not hold "
            "the name: give the prototxt, or say which with --fork bvlc or --fork caffe-model"
        )


def _pair(layer: Layer, what: str, both: int, height: int, width: int) -> tuple[int, int]:
    """Read `stride: 2`, or `stride_h` and `stride_w`."""
    param = layer.params.pooling_param
    name = "kernel_size" if what == "kernel" else what
    given = [param.HasField(f"{what}_h"), param.HasField(f"{what}_w")]
    if param.HasField(name) and any(given):
        raise layer.error(f"found {name} and {what}_h or {what}_w, expected one form")
    if any(given) and not all(given):
        raise layer.error(f"found one of {what}_h and {what}_w, expected both")
    return (height, width) if all(given) else (both, both)


def pool(
    layer: Layer,
    graph: Graph,
    method: int,
    tensor: str,
    windows: Sequence[Window],
    outputs: Sequence[str] | None = None,
) -> str:
    """Pool ``tensor`` (N, C, ...) with one window per spatial axis. Returns the pooled tensor."""
    if method == _STOCHASTIC:
        return _stochastic(layer, graph, tensor, windows, outputs)
    if method == _MAX:
        return _pooled(graph, "MaxPool", tensor, windows, outputs)
    is_whole = all(window.covers_map for window in windows)
    uneven = [] if is_whole else [axis for axis, window in enumerate(windows) if not window.is_even]
    pooled = _pooled(graph, "AveragePool", tensor, windows, None if uneven else outputs)
    for axis in uneven:
        if windows[axis].out > MAX_UNEVEN:
            raise layer.error(f"found {windows[axis].out:,} windows along an axis, expected at most {MAX_UNEVEN:,}")
        factors = windows[axis].factors.reshape(-1, *(1,) * (len(windows) - axis - 1))
        pooled = graph.node("Mul", [pooled, graph.constant(factors)], outputs if axis == uneven[-1] else None)
    return pooled


def _pooled(graph: Graph, op: str, tensor: str, windows: Sequence[Window], outputs: Sequence[str] | None = None) -> str:
    """MaxPool or AveragePool with explicit pads; averages divide by the whole window."""
    image = graph.shape(tensor)[:2]
    if all(window.covers_map for window in windows):
        return graph.node(f"Global{op}", [tensor], outputs, shape=(*image, *(1,) * len(windows)))
    inside = [window.inside for window in windows]
    pooled = graph.node(
        op,
        [tensor],
        outputs if inside == list(windows) else None,
        shape=(*image, *(window.out for window in inside)),
        kernel_shape=[window.kernel for window in inside],
        strides=[window.stride for window in inside],
        pads=[*(window.pad for window in inside), *(window.overhang for window in inside)],
        count_include_pad=1 if op == "AveragePool" else None,
    )
    if inside == list(windows):
        return pooled
    missing = [0, 0, *(window.out - inner.out for window, inner in zip(windows, inside, strict=True))]
    return graph.pad(pooled, [0] * len(missing), missing, _LOWEST if op == "MaxPool" else 0.0, outputs)


def _max_with_mask(layer: Layer, graph: Graph, windows: Sequence[Window]) -> None:
    """MAX pooling with the index of each maximum: Caffe counts within a channel, ONNX within the whole tensor."""
    if any(window != window.inside for window in windows):
        raise layer.error("found a mask over windows that begin outside the image, expected a smaller stride")
    bottom, (top, mask) = layer.bottoms[0], layer.tops
    shape = (*graph.shape(bottom)[:2], *(window.out for window in windows))
    indices = graph.new_name("indices")
    graph.node(
        "MaxPool",
        [bottom],
        [top, indices],
        shapes=[shape, shape],
        kernel_shape=[window.kernel for window in windows],
        strides=[window.stride for window in windows],
        pads=[*(window.pad for window in windows), *(window.overhang for window in windows)],
    )
    graph.set_dtype(indices, np.int64)
    area = graph.constant(windows[0].size * windows[1].size, np.int64)
    graph.cast(graph.node("Mod", [indices, area]), np.float32, [mask])


def _stochastic(
    layer: Layer, graph: Graph, tensor: str, windows: Sequence[Window], outputs: Sequence[str] | None
) -> str:
    """The values of each window weighted by themselves: sum of squares / sum."""
    if any(window.pad for window in windows):
        raise layer.error("found STOCHASTIC pooling with padding, expected none: Caffe refuses it")
    squares = pool(layer, graph, _AVE, graph.node("Mul", [tensor, tensor]), windows)
    values = pool(layer, graph, _AVE, tensor, windows)
    least = graph.constant(np.finfo(np.float32).tiny)
    return graph.node("Div", [squares, graph.node("Max", [values, least])], outputs)


@handles(
    "SPP",
    operators="MaxPool AveragePool GlobalMaxPool GlobalAveragePool Mul Div Max Flatten Concat",
    restrictions="STOCHASTIC as in Pooling",
)
def spatial_pyramid_pooling(layer: Layer, graph: Graph) -> None:
    """Spatial pyramid pooling: levels of 1, 4, 16, ... bins, flattened and concatenated (He et al. 2014)."""
    bottom, top = layer.ends()
    sizes = graph.image_size(bottom)
    height = layer.params.spp_param.pyramid_height
    if not 1 <= height <= 16:
        raise layer.error(f"found pyramid_height {height}, expected 1 to 16")
    method = {SPPParameter.MAX: _MAX, SPPParameter.AVE: _AVE}.get(layer.params.spp_param.pool, _STOCHASTIC)
    if height == 1:  # Caffe then pools directly into the top, which keeps its four axes
        pool(layer, graph, method, bottom, layer_bins(layer, sizes, 1), top)
        return
    levels = [pool(layer, graph, method, bottom, layer_bins(layer, sizes, 2**level)) for level in range(height)]
    graph.concat([graph.flatten(level, 1) for level in levels], 1, top)


def layer_bins(layer: Layer, sizes: Sequence[int], bins: int) -> list[Window]:
    """The windows that divide an image into bins x bins. Caffe: src/caffe/layers/spp_layer.cpp."""
    kernel = [-(-size // bins) for size in sizes]
    pad = [(length * bins - size + 1) // 2 for length, size in zip(kernel, sizes, strict=True)]
    if any(border >= length for border, length in zip(pad, kernel, strict=True)):
        raise layer.error(
            f"found an image of {sizes[0]} x {sizes[1]}, expected one that {bins} x {bins} bins can divide"
        )
    return windows_of(sizes, kernel, kernel, pad)
