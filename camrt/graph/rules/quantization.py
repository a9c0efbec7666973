"""Quantization: rounding to multiples of a scale, between bounds.

Rounding has the slope 0 almost everywhere. In its place stands the straight-through estimator, which takes rounding for
the identity (Bengio, Leonard, Courville 2013, Estimating or Propagating Gradients Through Stochastic Neurons, section
4), and 0 for what is cut off at the bounds, as PyTorch's fake quantization does. So this is the derivative of the
network before rounding, at the rounded values: an estimate, and the only rule here that is no derivative.
"""

from __future__ import annotations

from onnx import TensorProto

from camrt.errors import CamrtError
from camrt.graph.rules.registry import Cotangents, rule, unsupported
from camrt.graph.values import Value

_BOUNDS: dict[int, tuple[int, int]] = {
    TensorProto.INT4: (-8, 7), TensorProto.UINT4: (0, 15), TensorProto.INT8: (-128, 127), TensorProto.UINT8: (0, 255),
    TensorProto.INT16: (-32768, 32767), TensorProto.UINT16: (0, 65535),
}  # fmt: skip
_OF_SCALES = "found that the output depends on a quantization's scale or zero point, expected constants"


@rule("QuantizeLinear", restrictions="straight-through estimator; of scale and zero point no gradient")
def quantize(
    g: Value, y: Value, x: Value, scale: Value, zero_point: Value | None = None,
    *, axis: int = 1, block_size: int = 0,
) -> Cotangents:  # fmt: skip
    """The slope is 1 / scale where nothing is cut off, else 0: rounding counts as the identity."""
    if y.kind not in _BOUNDS:
        name = TensorProto.DataType.Name(y.kind).lower()
        raise CamrtError(f"found quantization to {name}, whose gradient is not supported, expected integers to 16 bits")
    step = _spread(scale, x, axis, block_size)
    rounded = (x / step).op("Round")
    if zero_point is not None:
        rounded = rounded + _spread(zero_point, x, axis, block_size).cast(x.kind)
    least, most = _BOUNDS[y.kind]
    return g * ((rounded >= least) & (rounded <= most)) / step, unsupported(_OF_SCALES), unsupported(_OF_SCALES)


@rule("DequantizeLinear", restrictions="of scale and zero point no gradient")
def dequantize(
    g: Value, y: Value, x: Value, scale: Value, zero_point: Value | None = None,
    *, axis: int = 1, block_size: int = 0,
) -> Cotangents:  # fmt: skip
    """The slope is the scale."""
    return g * _spread(scale, x, axis, block_size), unsupported(_OF_SCALES), unsupported(_OF_SCALES)


def _spread(values: Value, x: Value, axis: int, block_size: int) -> Value:
    """Scales or zero points in a shape that broadcasts to that of ``x``: one, or one for each place on an axis."""
    if block_size:
        raise CamrtError(
            f"found scales of blocks of {block_size}, whose gradient is not supported, expected one a channel"
        )
    if values.rank == 0 or values.shape == (1,):
        return values
    return values.reshape(*(-1 if each == x.axis(axis) else 1 for each in range(x.rank)))
