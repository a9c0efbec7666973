"""Caffe's formulas of some layers in plain NumPy: who is right where two runtimes differ. Short and slow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from converters.layer import Layer

Formula = Callable[[Layer, Sequence[np.ndarray]], np.ndarray]


def pooling(layer: Layer, bottoms: Sequence[np.ndarray]) -> np.ndarray:
    """Caffe's pooling_layer.cpp, window by window."""
    param, x = layer.params.pooling_param, bottoms[0].astype(np.float64)
    size = x.shape[2:]
    if param.global_pooling:
        kernel, stride, pad = size, (1, 1), (0, 0)
    else:
        kernel = (param.kernel_h or param.kernel_size, param.kernel_w or param.kernel_size)
        stride = (param.stride_h or param.stride, param.stride_w or param.stride)
        pad = (param.pad_h or param.pad, param.pad_w or param.pad)
    is_floor = param.round_mode == 1 or (param.HasField("ceil_mode") and not param.ceil_mode)
    out = []
    for axis in (0, 1):
        room = (size[axis] + 2 * pad[axis] - kernel[axis]) / stride[axis]
        count = (math.floor(room) if is_floor else math.ceil(room)) + 1
        if any(pad) and (count - 1) * stride[axis] >= size[axis] + pad[axis]:
            count -= 1
        out.append(count)
    y = np.empty((*x.shape[:2], *out))
    for i, j in np.ndindex(*out):
        begin = [i * stride[0] - pad[0], j * stride[1] - pad[1]]
        end = [min(b + k, s + p) for b, k, s, p in zip(begin, kernel, size, pad, strict=True)]
        window = x[:, :, max(begin[0], 0) : min(end[0], size[0]), max(begin[1], 0) : min(end[1], size[1])]
        if param.pool == 0:
            y[:, :, i, j] = window.max((2, 3))
        else:
            y[:, :, i, j] = window.sum((2, 3)) / ((end[0] - begin[0]) * (end[1] - begin[1]))
    return y


def axpy(layer: Layer, bottoms: Sequence[np.ndarray]) -> np.ndarray:
    """SENet's a * x + y, with one a for each channel."""
    a, x, y = bottoms
    return a.reshape(*a.shape[:2], 1, 1) * x + y


def eltwise(layer: Layer, bottoms: Sequence[np.ndarray]) -> np.ndarray:
    """Products, sums with coefficients, or maxima."""
    param = layer.params.eltwise_param
    if param.operation == 1:
        factors = list(param.coeff) or [1.0] * len(bottoms)
        return sum(np.asarray(factor * x) for factor, x in zip(factors, bottoms, strict=True))  # type: ignore[return-value]
    return np.asarray((np.multiply if param.operation == 0 else np.maximum).reduce(list(bottoms)))


def batch_norm(layer: Layer, bottoms: Sequence[np.ndarray]) -> np.ndarray:
    """By stored statistics, which the third blob divides."""
    mean, variance, factor = (blob.astype(np.float64) for blob in layer.blobs[:3])
    shape = (-1, *(1,) * (bottoms[0].ndim - 2))
    scale = 0 if factor[0] == 0 else 1 / factor[0]
    eps = layer.params.batch_norm_param.eps
    return (bottoms[0] - (mean * scale).reshape(shape)) / np.sqrt((variance * scale).reshape(shape) + eps)


def scale(layer: Layer, bottoms: Sequence[np.ndarray]) -> np.ndarray:
    """A factor, and an offset, for each channel."""
    shape = (-1, *(1,) * (bottoms[0].ndim - 2))
    factor = bottoms[1] if len(bottoms) == 2 else layer.blobs[0]
    y = bottoms[0] * (factor.reshape(*factor.shape, *(1,) * (bottoms[0].ndim - factor.ndim))
                      if len(bottoms) == 2 else factor.reshape(shape))  # fmt: skip
    return y + layer.blobs[-1].reshape(shape) if layer.params.scale_param.bias_term else y


def inner_product(layer: Layer, bottoms: Sequence[np.ndarray]) -> np.ndarray:
    """W x + b."""
    param = layer.params.inner_product_param
    x = bottoms[0].reshape(*bottoms[0].shape[: param.axis], -1).astype(np.float64)
    weights = layer.blobs[0].reshape(-1, x.shape[-1]) if not param.transpose else layer.blobs[0].T
    y = x @ weights.T
    return y + layer.blobs[1].reshape(-1) if param.bias_term else y


def softmax(layer: Layer, bottoms: Sequence[np.ndarray]) -> np.ndarray:
    """Along an axis."""
    axis = layer.params.softmax_param.axis
    raised = np.exp(bottoms[0] - bottoms[0].max(axis, keepdims=True))
    return np.asarray(raised / raised.sum(axis, keepdims=True))


FORMULAS: dict[str, Formula] = {
    "Axpy": axpy,
    "BatchNorm": batch_norm,
    "Concat": lambda layer, bottoms: np.concatenate(list(bottoms), layer.params.concat_param.axis),
    "Eltwise": eltwise,
    "InnerProduct": inner_product,
    "Pooling": pooling,
    "ReLU": lambda layer, bottoms: np.where(
        bottoms[0] > 0, bottoms[0], layer.params.relu_param.negative_slope * bottoms[0]
    ),
    "Scale": scale,
    "Sigmoid": lambda layer, bottoms: 1 / (1 + np.exp(-bottoms[0].astype(np.float64))),
    "Softmax": softmax,
}
