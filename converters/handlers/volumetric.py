"""The 3-D layers of C3D (Tran et al. 2015), for blobs of N x C x length x height x width.

C3D 1.0 describes them in `convolution_param` and `pooling_param`, C3D 1.1 in separate messages. Both give one size
for height and width and one for the length: `kernel_size` and `kernel_depth`, `stride` and `temporal_stride`, `pad` and
`temporal_pad`. Source: facebookarchive/C3D.
"""

from __future__ import annotations

from collections.abc import Sequence

from converters.graph import Graph
from converters.handlers.convolution import Kernel
from converters.handlers.pooling import Window, pool
from converters.layer import Layer
from converters.registry import handles
from converters.schema.caffe_pb2 import Convolution3DParameter, ConvolutionParameter, PoolingParameter
from converters.shape import show


@handles(
    "Convolution3D",
    operators="Conv",
    restrictions="`group` is ignored, as in C3D; `filter_group` only splits the work",
    origin="C3D",
)
def convolution3d(layer: Layer, graph: Graph) -> None:
    """3-D convolution over length, height and width."""
    _convolve(layer, graph, "Conv")


@handles("Deconvolution3D", operators="ConvTranspose", restrictions="`group` is ignored, as in C3D", origin="C3D")
def deconvolution3d(layer: Layer, graph: Graph) -> None:
    """Transposed 3-D convolution."""
    _convolve(layer, graph, "ConvTranspose")


def _convolve(layer: Layer, graph: Graph, op: str) -> None:
    bottom, top = layer.ends()
    channels, *size = _volume(layer, graph, bottom)
    param = _parameters(layer)
    kernel = _kernel(layer, param)
    outputs = param.num_output
    if not outputs:
        raise layer.error("found no num_output, expected at least 1")
    transposed = op == "ConvTranspose"
    filters = (channels, outputs) if transposed else (outputs, channels)
    weight, *bias = layer.weights((*filters, *kernel.size), *([(outputs,)] if param.bias_term else []))
    graph.node(
        op,
        [bottom, graph.weight("weight", weight), *(graph.weight("bias", values) for values in bias)],
        top,
        shape=(
            graph.shape(bottom)[0],
            outputs,
            *(kernel.deconvolved if transposed else kernel.convolved)(layer, size),
        ),
        **kernel.attributes(size, transposed=transposed),
    )


def _volume(layer: Layer, graph: Graph, bottom: str) -> tuple[int, ...]:
    """Channels, length, height and width."""
    if graph.rank(bottom) != 5:
        raise layer.error(
            f"found {show(graph.shape(bottom))} for the blob {bottom!r}, expected N x C x length x height x width"
        )
    return graph.fixed_shape(bottom, 1, "the number of channels and the volume's size")


def _parameters(layer: Layer) -> ConvolutionParameter | Convolution3DParameter:
    has_own = layer.params.HasField("convolution3d_param")
    return layer.params.convolution3d_param if has_own else layer.params.convolution_param


def _kernel(layer: Layer, param: ConvolutionParameter | Convolution3DParameter) -> Kernel:
    stride, pad = _one(layer, param, "stride", 1), _one(layer, param, "pad", 0)
    size = _one(layer, param, "kernel_size", 0)
    step = param.temporal_stride if param.HasField("temporal_stride") else 1
    kernel = Kernel(
        size=(param.kernel_depth, size, size),
        stride=(step, stride, stride),
        pad=(param.temporal_pad, pad, pad),
        dilation=(1, 1, 1),
    )
    if 0 in kernel.size or 0 in kernel.stride:
        raise layer.error(
            f"found kernel_depth {param.kernel_depth}, kernel_size {size}, temporal_stride {step} and stride {stride}, "
            "expected values of at least 1"
        )
    return kernel


def _one(layer: Layer, param: ConvolutionParameter | Convolution3DParameter, name: str, default: int) -> int:
    """One number for height and width; BVLC's ConvolutionParameter can hold one per axis."""
    value: int | Sequence[int] = getattr(param, name)
    if isinstance(value, int):
        return value
    if len(value) > 1:
        raise layer.error(f"found {len(value)} values for {name}, expected one, for height and width")
    return value[0] if value else default


@handles(
    "Pooling3D",
    operators="MaxPool AveragePool GlobalMaxPool GlobalAveragePool Pad Mul",
    restrictions="MAX and AVE; padding only with AVE, as in C3D",
    origin="C3D",
)
def pooling3d(layer: Layer, graph: Graph) -> None:
    """Max and average pooling over length, height and width, with Caffe's output size, which is rounded up."""
    bottom, top = layer.ends()
    _, *sizes = _volume(layer, graph, bottom)
    has_own = layer.params.HasField("pooling3d_param")
    param = layer.params.pooling3d_param if has_own else layer.params.pooling_param
    kernel = (param.kernel_depth, param.kernel_size, param.kernel_size)
    stride = (param.temporal_stride, param.stride, param.stride)
    pad = (0, param.pad, param.pad)
    if 0 in kernel or 0 in stride or param.pad >= param.kernel_size:
        raise layer.error(
            f"found kernel {kernel}, stride {stride} and pad {pad} for length, height and width, expected a kernel "
            "and stride of at least 1, and a pad below the kernel"
        )
    if param.pool == PoolingParameter.STOCHASTIC or (param.pad and param.pool != PoolingParameter.AVE):
        name = PoolingParameter.PoolMethod.Name(param.pool)
        raise layer.error(f"found pool {name} and pad {param.pad}, expected MAX without padding, or AVE")
    # Unlike in BVLC's Caffe, the last window may begin in the padding.
    windows = [
        Window(size, length, step, border, -((length - size - 2 * border) // step) + 1)
        for size, length, step, border in zip(sizes, kernel, stride, pad, strict=True)
    ]
    if any(window.out < 1 for window in windows):
        raise layer.error(f"found a volume of {show(sizes)}, expected one that a window of {show(kernel)} fits into")
    pool(layer, graph, param.pool, bottom, windows, top)


@handles("VoxelSoftmax", operators="Softmax", origin="C3D")
def voxel_softmax(layer: Layer, graph: Graph) -> None:
    """e^x / sum(e^x) over the channels of each voxel."""
    bottom, top = layer.ends()
    _volume(layer, graph, bottom)
    graph.node("Softmax", [bottom], top, axis=1)
