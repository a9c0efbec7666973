"""One line a case: an operator, its inputs, its attributes, and what PyTorch calls the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

NEWEST = 22  # the newest opset that the oldest supported runtimes know well enough
F = Any  # torch.nn.functional


@dataclass(frozen=True)
class Data:
    """An input with a row for each image.

    Attributes:
        shape: Of one batch; the first size is the batch.
        low: The least value.
        high: The largest.
        batch: The axis of the free batch; None where all axes are fixed.
    """

    shape: tuple[int, ...]
    low: float = -2.0
    high: float = 2.0
    batch: int | None = 0


@dataclass(frozen=True)
class Weight:
    """An initializer that has a gradient."""

    shape: tuple[int, ...]
    low: float = -1.0
    high: float = 1.0


Input = Data | Weight | np.ndarray | None


@dataclass(frozen=True)
class Case:
    """An operator with its inputs.

    Attributes:
        op: The operator.
        inputs: Data, weights, constants (arrays, without a gradient), None for an optional one left out.
        attributes: Its attributes.
        torch: The same in PyTorch: (torch, functional, *inputs) -> output; None where it has none.
        outputs: How many outputs; all with a gradient.
        opsets: The first and the last that the case holds for.
        without: Inputs whose gradient is not asked for.
        linear: Whether it is a linear function, so that differences of ONNX Runtime's own answers, however large, are
            exact. For those whose reference evaluator rounds coordinates in its own way.
        note: What tells it from others of the operator.
    """

    op: str
    inputs: Sequence[Input]
    attributes: dict[str, Any] = field(default_factory=dict)
    torch: Callable[..., Any] | None = None
    outputs: int = 1
    opsets: tuple[int, int] = (13, NEWEST)
    without: tuple[int, ...] = ()
    linear: bool = False
    note: str = ""

    def __str__(self) -> str:
        return f"{self.op} {self.note}".strip()

    @property
    def names(self) -> list[str]:
        return ["" if one is None else f"in{index}" for index, one in enumerate(self.inputs)]

    @property
    def results(self) -> list[str]:
        return [f"out{index}" for index in range(self.outputs)]

    @property
    def wanted(self) -> list[str]:
        """Inputs that have a gradient."""
        kinds = enumerate(self.inputs)
        return [f"in{index}" for index, one in kinds if isinstance(one, (Data, Weight)) and index not in self.without]

    @property
    def data(self) -> list[str]:
        """Those of them with a free batch."""
        inputs = dict(zip(self.names, self.inputs, strict=True))
        return [name for name in self.wanted if isinstance(one := inputs[name], Data) and one.batch is not None]

    def values(self, seed: int = 0, dtype: Any = np.float64) -> dict[str, np.ndarray]:
        """Random values of data and weights."""
        generator = np.random.default_rng([seed, *map(ord, str(self))])
        return {
            name: generator.uniform(one.low, one.high, one.shape).astype(np.float32).astype(dtype)
            for name, one in zip(self.names, self.inputs, strict=True)
            if isinstance(one, (Data, Weight))
        }

    def model(self, opset: int, dtype: Any = np.float64) -> onnx.ModelProto:
        """The operator alone; weights are initializers, the batch is free."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        values = self.values(dtype=dtype)
        inputs, weights = [], []
        for name, one in zip(self.names, self.inputs, strict=True):
            if isinstance(one, Data):
                shape = ["N" if axis == one.batch else size for axis, size in enumerate(one.shape)]
                inputs.append(helper.make_tensor_value_info(name, kind, shape))
            elif isinstance(one, Weight):
                weights.append(numpy_helper.from_array(values[name], name))
            elif one is not None:
                array = one.astype(dtype) if one.dtype == np.float64 else one
                weights.append(numpy_helper.from_array(array, name))
        node = helper.make_node(self.op, self.names, self.results, "node", **self.attributes)
        outputs = [onnx.ValueInfoProto(name=name) for name in self.results]
        graph = helper.make_graph([node], "case", inputs, outputs, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        model.ir_version = min(10, helper.find_min_ir_version_for(model.opset_import))
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        for value in inferred.graph.output:
            if not value.type.tensor_type.HasField("shape"):  # GroupNormalization, which onnx does not know
                value.CopyFrom(helper.make_tensor_value_info(value.name, kind, ["N", *self.inputs[0].shape[1:]]))
        del model.graph.output[:]
        model.graph.output.extend(inferred.graph.output)
        return model


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def floats(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float64)


def scales(*numbers: float) -> np.ndarray:
    """They are float32 whatever is scaled."""
    return np.array(numbers, np.float32)


X = Data((3, 4, 6, 5))
ROW = Data((3, 7))
UP = Data((3, 4, 6, 5), 0.3, 2.0)
NUMBER = Data((), 0.3, 2.0, batch=None)  # without axes


def _unary(op: str, torch: Callable[..., Any] | None, data: Data = X, **attributes: Any) -> Case:
    note = " ".join(f"{key}={value}" for key, value in attributes.items())
    return Case(op, [data], attributes, torch, note=note)


def _activations() -> list[Case]:
    return [
        _unary("Relu", lambda t, F, x: F.relu(x)),
        _unary("LeakyRelu", lambda t, F, x: F.leaky_relu(x, 0.01)),
        _unary("LeakyRelu", lambda t, F, x: F.leaky_relu(x, 0.3), alpha=0.3),
        _unary("LeakyRelu", lambda t, F, x: F.leaky_relu(x, -0.5), alpha=-0.5),
        Case("PRelu", [X, Weight((4, 1, 1))], torch=lambda t, F, x, w: F.prelu(x, w.reshape(-1)), note="a channel"),
        Case("PRelu", [X, Weight((1,))], torch=lambda t, F, x, w: F.prelu(x, w), note="shared"),
        _unary("ThresholdedRelu", lambda t, F, x: F.threshold(x, 0.5, 0), alpha=0.5),
        _unary("Elu", lambda t, F, x: F.elu(x)),
        _unary("Elu", lambda t, F, x: F.elu(x, 0.3), alpha=0.3),
        _unary("Selu", lambda t, F, x: F.selu(x)),
        _unary("Celu", None, alpha=1.7),
        _unary("Sigmoid", lambda t, F, x: t.sigmoid(x)),
        _unary("Tanh", lambda t, F, x: t.tanh(x)),
        _unary("HardSigmoid", lambda t, F, x: F.hardsigmoid(x), Data((3, 40), -5, 5), alpha=1 / 6),
        _unary("HardSigmoid", None, Data((3, 40), -5, 5), alpha=0.25, beta=0.3),
        Case("HardSwish", [Data((3, 40), -5, 5)], {}, lambda t, F, x: F.hardswish(x), opsets=(14, NEWEST)),
        Case(
            "Clip", [X, floats(-0.7).reshape(()), floats(1.2).reshape(())], torch=lambda t, F, x, a, b: t.clamp(x, a, b)
        ),
        Case("Clip", [X, None, floats(0.5).reshape(())], torch=lambda t, F, x, _, b: t.clamp(x, max=b), note="above"),
        Case("Clip", [X, floats(0).reshape(())], torch=lambda t, F, x, a: t.clamp(x, a), note="below"),
        Case("Clip", [X], note="not at all"),
        _unary("Softplus", lambda t, F, x: F.softplus(x)),
        _unary("Softsign", lambda t, F, x: F.softsign(x)),
        Case("Mish", [X], {}, lambda t, F, x: F.mish(x), opsets=(18, NEWEST)),
        Case("Gelu", [X], {}, lambda t, F, x: F.gelu(x), opsets=(20, NEWEST)),
        Case(
            "Gelu",
            [X],
            {"approximate": "tanh"},
            lambda t, F, x: F.gelu(x, approximate="tanh"),
            opsets=(20, NEWEST),
            note="tanh",
        ),
        _unary("Erf", lambda t, F, x: t.erf(x)),
        _unary("Softmax", lambda t, F, x: t.softmax(x, -1)),
        _unary("Softmax", lambda t, F, x: t.softmax(x, 1), axis=1),
        _unary("LogSoftmax", lambda t, F, x: t.log_softmax(x, -1)),
        _unary("LogSoftmax", lambda t, F, x: t.log_softmax(x, 2), axis=-2),
    ]


def _trigonometric() -> list[Case]:
    inside, above = Data((3, 4, 6, 5), -0.9, 0.9), Data((3, 4, 6, 5), 1.1, 3.0)
    return [
        _unary("Tan", lambda t, F, x: t.tan(x), inside),
        _unary("Asin", lambda t, F, x: t.asin(x), inside),
        _unary("Acos", lambda t, F, x: t.acos(x), inside),
        _unary("Sinh", lambda t, F, x: t.sinh(x)),
        _unary("Cosh", lambda t, F, x: t.cosh(x)),
        _unary("Asinh", lambda t, F, x: t.asinh(x)),
        _unary("Acosh", lambda t, F, x: t.acosh(x), above),
        _unary("Atanh", lambda t, F, x: t.atanh(x), inside),
        _unary("Shrink", lambda t, F, x: F.hardshrink(x, 0.7), lambd=0.7),
        _unary("Shrink", lambda t, F, x: F.softshrink(x, 0.7), lambd=0.7, bias=0.7),
    ]


def _elementwise() -> list[Case]:
    channel, corner, column = Weight((4, 1, 1)), Weight((1, 4, 1, 5)), Weight((6, 1))
    gate, whole = Data((3, 4, 1, 1)), Data((3, 4, 6, 5), 0.5, 2.0)
    positive = Weight((4, 1, 1), 0.5, 2.0)
    condition = np.random.default_rng(1).integers(0, 2, (4, 6, 1)).astype(bool)
    table = []
    for op, symbol in (("Add", "add"), ("Sub", "sub"), ("Mul", "mul"), ("Div", "div")):
        apply = lambda t, F, a, b, symbol=symbol: getattr(t, symbol)(a, b)  # noqa: E731
        table += [
            Case(op, [X, whole], torch=apply, note="of one shape"),
            Case(op, [X, positive], torch=apply, note="by a channel's weight"),
            Case(op, [positive, whole], torch=apply, note="of a channel's weight"),
            Case(op, [X, Data((3, 4, 1, 1), 0.5, 2)], torch=apply, note="by an image's gate"),
            Case(op, [gate, whole], torch=apply, note="of an image's gate"),
            Case(op, [X, Weight((), 0.5, 2)], torch=apply, note="by a number"),
            Case(op, [Data((3, 1, 6, 1)), Data((3, 4, 1, 5), 0.5, 2)], torch=apply, note="that broadcasts both"),
        ]
    numbers = lambda t, F, x, p: t.pow(x, p)  # noqa: E731
    return [
        *table,
        Case("Sum", [X, channel, gate], torch=lambda t, F, a, b, c: a + b + c),
        Case("Sum", [X], note="of one"),
        Case("Mean", [X, corner, whole], torch=lambda t, F, a, b, c: (a + b + c) / 3),
        Case("Max", [X, column, gate], torch=lambda t, F, a, b, c: t.maximum(t.maximum(a, b), c)),
        Case("Max", [X, floats(0.0)], torch=lambda t, F, a, b: t.maximum(a, b), note="with a number"),
        Case("Min", [X, whole], torch=lambda t, F, a, b: t.minimum(a, b)),
        Case("Min", [corner, X], torch=lambda t, F, a, b: t.minimum(a, b), note="that broadcasts"),
        Case("Pow", [X, floats(2.0)], torch=numbers, note="2"),
        Case("Pow", [X, floats(3.0).reshape(())], torch=numbers, note="3"),
        Case("Pow", [X, ints(3)], torch=numbers, note="an integer", opsets=(13, NEWEST)),
        Case("Pow", [UP, floats(-0.75)], torch=numbers, note="-0.75"),
        Case("Pow", [UP, np.array([[[0.5]], [[2.0]], [[0.0]], [[-1.0]]])], torch=numbers, note="several"),
        Case("Pow", [UP, Weight((4, 1, 1))], torch=numbers, note="a weight"),
        Case("Pow", [UP, gate], torch=numbers, note="a gate"),
        Case("Pow", [Weight((5,), 0.5, 2), X], torch=numbers, note="of a weight"),
        Case("Where", [condition, X, channel], torch=lambda t, F, c, a, b: t.where(c, a, b)),
        Case("Where", [condition, gate, whole], torch=lambda t, F, c, a, b: t.where(c, a, b), note="that broadcasts"),
        _unary("Neg", lambda t, F, x: -x),
        _unary("Abs", lambda t, F, x: x.abs()),
        _unary("Sqrt", lambda t, F, x: x.sqrt(), UP),
        _unary("Exp", lambda t, F, x: x.exp()),
        _unary("Log", lambda t, F, x: x.log(), UP),
        _unary("Reciprocal", lambda t, F, x: 1 / x, UP),
        _unary("Sin", lambda t, F, x: x.sin()),
        _unary("Cos", lambda t, F, x: x.cos()),
        _unary("Atan", lambda t, F, x: x.atan()),
        Case("CumSum", [X, np.array(2)], {}, lambda t, F, x, _: x.cumsum(2)),
        Case("CumSum", [X, np.array(-1)], {"exclusive": 1, "reverse": 1}, note="exclusive, from the end"),
    ]


def _conv(note: str, data: tuple[int, ...], weight: tuple[int, ...], bias: bool = True, **attributes: Any) -> Case:
    """A convolution; PyTorch's with explicit pads, which it has no uneven ones of."""
    axes = len(data) - 2
    pads = attributes.get("pads", [0] * 2 * axes)
    spread = {"stride": attributes.get("strides", 1), "dilation": attributes.get("dilations", 1)}

    def torch(t: Any, F: Any, x: Any, w: Any, b: Any = None) -> Any:
        around = [size for axis in reversed(range(axes)) for size in (pads[axis], pads[axis + axes])]
        return getattr(F, f"conv{axes}d")(F.pad(x, around), w, b, groups=attributes.get("group", 1), **spread)

    inputs = [Data(data), Weight(weight), *([Weight((weight[0],))] if bias else [])]
    return Case("Conv", inputs, attributes, None if "auto_pad" in attributes else torch, note=note)


def _deconv(note: str, data: tuple[int, ...], weight: tuple[int, ...], bias: bool = True, **attributes: Any) -> Case:
    axes, group = len(data) - 2, attributes.get("group", 1)
    pads = attributes.get("pads", [0] * 2 * axes)

    def torch(t: Any, F: Any, x: Any, w: Any, b: Any = None) -> Any:
        return getattr(F, f"conv_transpose{axes}d")(
            x,
            w,
            b,
            stride=attributes.get("strides", 1),
            padding=pads[:axes],
            output_padding=attributes.get("output_padding", 0),
            groups=group,
            dilation=attributes.get("dilations", 1),
        )

    inputs = [Data(data), Weight(weight), *([Weight((weight[1] * group,))] if bias else [])]
    plain = pads[:axes] == pads[axes:] and not {"auto_pad", "output_shape"} & set(attributes)
    return Case("ConvTranspose", inputs, attributes, torch if plain else None, note=note)


def _convolutions() -> list[Case]:
    wide = (3, 8, 9, 10)
    return [
        _conv("1x1", (3, 8, 5, 6), (4, 8, 1, 1)),
        _conv("3x3", wide, (6, 8, 3, 3), pads=[1, 1, 1, 1]),
        _conv("of few channels", (3, 3, 9, 10), (6, 3, 3, 3), pads=[1, 1, 1, 1]),
        _conv("without bias", wide, (6, 8, 3, 2), bias=False),
        _conv("stride 2", wide, (6, 8, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2]),
        _conv("stride 2 of 1x1", wide, (6, 8, 1, 1), strides=[2, 2]),
        _conv("7x7 stride 2", (2, 3, 15, 14), (4, 3, 7, 7), pads=[3, 3, 3, 3], strides=[2, 2]),
        _conv("11x11 stride 4", (2, 3, 27, 29), (4, 3, 11, 11), strides=[4, 4]),
        _conv("stride 3 and 1", wide, (6, 8, 2, 3), strides=[3, 1]),
        _conv("dilated", wide, (6, 8, 3, 3), pads=[2, 2, 2, 2], dilations=[2, 2]),
        _conv("dilated, stride 2", wide, (6, 8, 3, 3), pads=[2, 3, 2, 3], dilations=[2, 3], strides=[2, 2]),
        _conv("grouped", wide, (6, 4, 3, 3), pads=[1, 1, 1, 1], group=2),
        _conv("grouped, stride 2", wide, (6, 4, 3, 3), pads=[1, 1, 1, 1], group=2, strides=[2, 2]),
        _conv("depthwise", wide, (8, 1, 3, 3), pads=[1, 1, 1, 1], group=8),
        _conv("depthwise, stride 2", wide, (8, 1, 5, 5), pads=[2, 2, 2, 2], group=8, strides=[2, 2]),
        _conv("depthwise, two maps a channel", wide, (16, 1, 3, 3), pads=[1, 1, 1, 1], group=8),
        _conv("uneven pads", wide, (6, 8, 3, 3), pads=[0, 1, 2, 1]),
        _conv("uneven pads, stride 2", wide, (6, 8, 3, 3), pads=[0, 0, 1, 1], strides=[2, 2]),
        _conv("pads wider than the kernel", wide, (6, 8, 2, 2), pads=[3, 2, 3, 2]),
        _conv("uneven pads wider than the kernel", wide, (6, 8, 2, 2), pads=[3, 2, 1, 2]),
        _conv("SAME_UPPER", wide, (6, 8, 4, 3), auto_pad="SAME_UPPER", strides=[2, 3]),
        _conv("SAME_LOWER", wide, (6, 8, 4, 3), auto_pad="SAME_LOWER", strides=[2, 1]),
        _conv("VALID", wide, (6, 8, 4, 3), auto_pad="VALID", strides=[2, 1]),
        _conv("1-D", (3, 8, 11), (6, 8, 3), pads=[1, 1]),
        _conv("1-D, stride 2, grouped", (3, 8, 11), (6, 4, 4), pads=[1, 2], strides=[2], group=2),
        _conv("3-D", (2, 8, 5, 6, 4), (6, 8, 3, 2, 3), pads=[1, 0, 1, 1, 0, 1]),
        _conv("3-D, stride 2", (2, 4, 5, 6, 7), (6, 4, 3, 2, 3), pads=[1, 0, 1, 1, 0, 1], strides=[2, 2, 1]),
        _deconv("1x1", (3, 8, 5, 6), (8, 4, 1, 1)),
        _deconv("stride 2", (3, 8, 5, 6), (8, 4, 4, 4), pads=[1, 1, 1, 1], strides=[2, 2]),
        _deconv("dilated", (3, 8, 5, 6), (8, 4, 3, 2), dilations=[2, 3], bias=False),
        _deconv("grouped", (3, 8, 5, 6), (8, 2, 3, 3), group=2, strides=[2, 1], pads=[1, 1, 1, 1]),
        _deconv("depthwise", (3, 8, 5, 6), (8, 1, 4, 4), group=8, strides=[2, 2], pads=[1, 1, 1, 1]),
        _deconv(
            "more at the end", (3, 8, 5, 6), (8, 4, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]
        ),
        _deconv("uneven pads", (3, 8, 5, 6), (8, 4, 3, 3), strides=[2, 2], pads=[0, 1, 1, 0]),
        _deconv("output_shape", (3, 8, 5, 6), (8, 4, 3, 3), strides=[2, 2], output_shape=[10, 12]),
        _deconv("SAME_UPPER", (3, 8, 5, 6), (8, 4, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
        _deconv("1-D", (3, 8, 5), (8, 4, 3), strides=[2]),
        _deconv("3-D", (2, 4, 3, 4, 3), (4, 3, 2, 3, 2), strides=[2, 1, 2]),
    ]


def _max(note: str, shape: tuple[int, ...], kernel: list[int], **attributes: Any) -> Case:
    axes, pads = len(kernel), attributes.get("pads", [0] * 2 * len(kernel))

    def torch(t: Any, F: Any, x: Any) -> Any:
        return getattr(F, f"max_pool{axes}d")(
            x,
            kernel,
            attributes.get("strides", [1] * axes),
            pads[:axes],
            attributes.get("dilations", 1),
            bool(attributes.get("ceil_mode", 0)),
        )

    even = pads[:axes] == pads[axes:] and "auto_pad" not in attributes
    return Case("MaxPool", [Data(shape)], {"kernel_shape": kernel, **attributes}, torch if even else None, note=note)


def _average(
    note: str, shape: tuple[int, ...], kernel: list[int], opsets: tuple[int, int] = (13, NEWEST), **attributes: Any
) -> Case:
    axes, pads = len(kernel), attributes.get("pads", [0] * 2 * len(kernel))

    def torch(t: Any, F: Any, x: Any) -> Any:
        return getattr(F, f"avg_pool{axes}d")(
            x,
            kernel,
            attributes.get("strides", [1] * axes),
            pads[:axes],
            bool(attributes.get("ceil_mode", 0)),
            bool(attributes.get("count_include_pad", 0)),
        )

    even = pads[:axes] == pads[axes:] and "auto_pad" not in attributes and "dilations" not in attributes
    return Case(
        "AveragePool",
        [Data(shape)],
        {"kernel_shape": kernel, **attributes},
        torch if even else None,
        note=note,
        opsets=opsets,
    )


def _pools() -> list[Case]:
    image = (3, 4, 9, 10)
    border = {"pads": [1, 1, 1, 1], "strides": [2, 2]}
    return [
        _max("2x2", (3, 4, 8, 10), [2, 2], strides=[2, 2]),
        _max("with a rest", image, [2, 3], strides=[2, 3]),
        _max("overlapping", image, [3, 3], strides=[2, 2]),
        _max("padded", image, [3, 3], **border),
        _max("stride 1", image, [3, 3], pads=[1, 1, 1, 1]),
        _max("ceil", image, [3, 3], strides=[2, 2], ceil_mode=1),
        _max("ceil and padded", (3, 4, 8, 10), [3, 3], ceil_mode=1, **border),
        _max("with gaps", image, [2, 2], strides=[3, 4]),
        _max("dilated", image, [3, 2], dilations=[2, 3], strides=[2, 1]),
        _max("uneven pads", image, [3, 3], strides=[2, 2], pads=[0, 1, 1, 0]),
        _max("SAME_UPPER", image, [3, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
        _max("1-D", (3, 4, 11), [3], strides=[2]),
        _max("3-D", (2, 3, 6, 5, 4), [2, 3, 2], strides=[2, 1, 2]),
        _average("2x2", (3, 4, 8, 10), [2, 2], strides=[2, 2]),
        _average("overlapping", image, [3, 3], strides=[2, 2]),
        _average("padded", image, [3, 3], **border),
        _average("padding counted", image, [3, 3], count_include_pad=1, **border),
        _average("ceil", (3, 4, 8, 10), [3, 3], strides=[2, 2], ceil_mode=1),
        _average("ceil and padded", (3, 4, 8, 10), [3, 3], ceil_mode=1, opsets=(19, NEWEST), **border),
        _average(
            "ceil and padding counted",
            (3, 4, 8, 10),
            [3, 3],
            ceil_mode=1,
            count_include_pad=1,
            opsets=(19, NEWEST),
            **border,
        ),
        _average("uneven pads", image, [3, 3], strides=[2, 2], pads=[0, 1, 1, 0]),
        _average("SAME_LOWER", image, [3, 2], strides=[2, 2], auto_pad="SAME_LOWER"),
        _average("dilated", image, [3, 2], dilations=[2, 3], opsets=(19, NEWEST)),
        _average("1-D", (3, 4, 11), [3], strides=[2]),
        _average("3-D", (2, 3, 6, 5, 4), [2, 3, 2], strides=[2, 1, 2]),
        Case("GlobalAveragePool", [X], torch=lambda t, F, x: F.adaptive_avg_pool2d(x, 1)),
        Case("GlobalAveragePool", [Data((3, 4, 7))], torch=lambda t, F, x: F.adaptive_avg_pool1d(x, 1), note="1-D"),
        Case("GlobalMaxPool", [X], torch=lambda t, F, x: F.adaptive_max_pool2d(x, 1)),
        Case("GlobalMaxPool", [Data((2, 3, 4, 3, 5))], torch=lambda t, F, x: F.adaptive_max_pool3d(x, 1), note="3-D"),
        Case("LpPool", [UP], {"kernel_shape": [3, 2], "strides": [2, 2]}, lambda t, F, x: F.lp_pool2d(x, 2, (3, 2), 2)),
        Case("LpPool", [UP], {"kernel_shape": [2, 2], "p": 3}, lambda t, F, x: F.lp_pool2d(x, 3, 2, 1), note="3"),
        Case(
            "GlobalLpPool", [X], {"p": 2}, lambda t, F, x: x.square().sum((2, 3), keepdim=True).sqrt(), opsets=(13, 17)
        ),
    ]


def _products() -> list[Case]:
    gemm = lambda t, F, a, b, c=0: a @ b + c  # noqa: E731
    product = lambda t, F, a, b: a @ b  # noqa: E731
    scaled = {"alpha": 0.5, "beta": 2.0}
    return [
        Case("Gemm", [ROW, Weight((7, 4)), Weight((4,))], torch=gemm),
        Case(
            "Gemm", [ROW, Weight((4, 7)), Weight((1, 4))], {"transB": 1}, lambda t, F, a, b, c: a @ b.T + c, note="B^T"
        ),
        Case("Gemm", [ROW, Weight((7, 4))], {"alpha": 3.0}, lambda t, F, a, b: 3 * a @ b, note="without C"),
        Case(
            "Gemm",
            [ROW, Weight((7, 4)), Data((3, 4))],
            scaled,
            lambda t, F, a, b, c: 0.5 * a @ b + 2 * c,
            note="scaled",
        ),
        Case(
            "Gemm",
            [ROW, Weight((7, 4)), Data((3, 1))],
            scaled,
            lambda t, F, a, b, c: 0.5 * a @ b + 2 * c,
            note="a column",
        ),
        Case(
            "Gemm",
            [Weight((7, 3)), Weight((7, 4)), Weight(())],
            {"transA": 1},
            lambda t, F, a, b, c: a.T @ b + c,
            note="A^T",
        ),
        Case(
            "Gemm",
            [Weight((7, 3)), Weight((4, 7))],
            {"transA": 1, "transB": 1},
            lambda t, F, a, b: a.T @ b.T,
            note="A^T B^T",
        ),
        Case("MatMul", [ROW, Weight((7, 4))], torch=product, note="matrices"),
        Case("MatMul", [Data((3, 5, 7)), Weight((7, 4))], torch=product, note="stack by weights"),
        Case("MatMul", [Data((3, 2, 5, 7)), Weight((7, 4))], torch=product, note="stacks by weights"),
        Case("MatMul", [Data((3, 2, 5, 7)), Data((3, 2, 7, 4))], torch=product, note="stacks"),
        Case("MatMul", [Data((3, 2, 5, 7)), Data((3, 1, 7, 4))], torch=product, note="that broadcasts"),
        Case("MatMul", [Data((3, 2, 5, 7)), Weight((2, 7, 4))], torch=product, note="stacks by a stack of weights"),
        Case("MatMul", [Weight((5, 7)), Data((3, 2, 7, 4))], torch=product, note="weights by stacks"),
        Case("MatMul", [Data((3, 5, 7)), Weight((7,))], torch=product, note="by a vector"),
        Case("MatMul", [Weight((7,)), Data((3, 7, 4))], torch=product, note="vector by"),
        Case("MatMul", [Weight((7,)), Weight((7,))], torch=product, note="vectors"),
        Case("MatMul", [Weight((7,)), Weight((7, 4))], torch=product, note="vector by matrix"),
        Case(
            "Einsum",
            [Data((3, 5, 7)), Weight((4, 7))],
            {"equation": "nij,kj->nik"},
            lambda t, F, a, b: t.einsum("nij,kj->nik", a, b),
        ),
        Case(
            "Einsum",
            [Data((3, 2, 5, 7)), Data((3, 2, 4, 7))],
            {"equation": "bhid,bhjd->bhij"},
            lambda t, F, a, b: t.einsum("bhid,bhjd->bhij", a, b),
            note="of images",
        ),
    ]


def _batch_norm(x: Any, w: Any, b: Any, m: Any, v: Any) -> Any:
    """Written out: PyTorch's own has no gradient at mean and variance."""
    wide = [one.reshape(-1, *[1] * (x.ndim - 2)) for one in (w, b, m, v)]
    return (x - wide[2]) / (wide[3] + 1e-5).sqrt() * wide[0] + wide[1]


def _normalizations() -> list[Case]:
    channel = [Weight((4,), 0.5, 2), Weight((4,))]
    statistics = [Weight((4,)), Weight((4,), 0.5, 2)]
    odd, other = {"size": 5, "alpha": 0.9}, {"size": 3, "alpha": 2.0, "beta": 0.6, "bias": 2.0}
    lrn = lambda t, F, x: F.local_response_norm(x, 5, 0.9, 0.75, 1)  # noqa: E731
    batch = lambda t, F, *x: _batch_norm(*x)  # noqa: E731
    return [
        Case("BatchNormalization", [X, *channel, *statistics], torch=batch),
        Case("BatchNormalization", [Data((3, 4)), *channel, *statistics], torch=batch, note="of rows"),
        Case("BatchNormalization", [X, *channel, *statistics], {"epsilon": 0.1}, note="epsilon 0.1"),
        Case("InstanceNormalization", [X, *channel], torch=lambda t, F, x, w, b: F.instance_norm(x, weight=w, bias=b)),
        Case(
            "LayerNormalization",
            [X, Weight((5,), 0.5, 2), Weight((5,))],
            {},
            lambda t, F, x, w, b: F.layer_norm(x, (5,), w, b),
            opsets=(17, NEWEST),
        ),
        Case(
            "LayerNormalization",
            [X, Weight((6, 5), 0.5, 2)],
            {"axis": 2, "epsilon": 0.01},
            lambda t, F, x, w: F.layer_norm(x, (6, 5), w, eps=0.01),
            opsets=(17, NEWEST),
            note="of two axes",
        ),
        Case(
            "RMSNormalization",
            [X, Weight((5,), 0.5, 2)],
            {},
            lambda t, F, x, w: F.rms_norm(x, (5,), w, 1e-5),
            opsets=(23, 23),
        ),
        Case(
            "GroupNormalization",
            [X, *channel],
            {"num_groups": 2},
            lambda t, F, x, w, b: F.group_norm(x, 2, w, b),
            opsets=(21, NEWEST),
        ),
        Case("MeanVarianceNormalization", [X], {"axes": [2, 3]}),
        Case("LRN", [Data((3, 9, 4, 5))], odd, lrn),
        Case("LRN", [Data((3, 9, 4, 5))], other, note="bias 2"),
        Case("LRN", [Data((3, 2, 4, 5))], odd, note="wider than the channels"),
    ]


def _places() -> np.ndarray:
    """Different ones for each row: (3, 4, 6, 2) of 5."""
    return np.random.default_rng(0).permuted(np.tile(np.arange(5), (3, 4, 6, 1)), axis=3)[..., :2]


def _shapes() -> list[Case]:
    cut = lambda *index: lambda t, F, x, *_: x[index]  # noqa: E731
    rest = slice(None)
    ends = np.iinfo(np.int64)
    some = ints(0, 2, 1)
    return [
        Case("Identity", [X]),
        Case("Dropout", [X]),
        Case("Flatten", [X], {"axis": 1}, lambda t, F, x: x.flatten(1)),
        Case("Flatten", [X], {"axis": 3}, lambda t, F, x: x.flatten(0, 2), note="behind the channels"),
        Case("Reshape", [X, ints(-1, 20, 6)], torch=lambda t, F, x, _: x.reshape(-1, 20, 6)),
        Case("Reshape", [X, ints(0, 2, -1, 5)], torch=lambda t, F, x, _: x.reshape(3, 2, 12, 5), note="with 0"),
        Case(
            "Reshape", [X, ints(-1, 30)], torch=lambda t, F, x, _: x.reshape(-1, 30), note="images and channels in one"
        ),
        Case("Squeeze", [Data((3, 1, 4, 1)), ints(1, 3)], torch=lambda t, F, x, _: x.squeeze(3).squeeze(1)),
        Case("Unsqueeze", [ROW, ints(1, -1)], torch=lambda t, F, x, _: x[:, None, :, None]),
        Case("Transpose", [X], {"perm": [0, 2, 3, 1]}, lambda t, F, x: x.permute(0, 2, 3, 1)),
        Case("Transpose", [X], {"perm": [2, 0, 3, 1]}, lambda t, F, x: x.permute(2, 0, 3, 1), note="of the images"),
        Case("Transpose", [X], {}, lambda t, F, x: x.permute(3, 2, 1, 0), note="of all"),
        Case("Concat", [X, Data((3, 2, 6, 5)), Data((3, 1, 6, 5))], {"axis": 1}, lambda t, F, *x: t.cat(x, 1)),
        Case("Concat", [X, Data((3, 4, 6, 1))], {"axis": -1}, lambda t, F, *x: t.cat(x, -1), note="of columns"),
        Case(
            "Concat",
            [X, Data((3, 2, 6, 5))],
            {"axis": 1},
            lambda t, F, *x: t.cat(x, 1),
            without=(0,),
            note="of one asked for",
        ),
        Case("Split", [X, ints(1, 3)], {"axis": 1}, lambda t, F, x, _: t.split(x, [1, 3], 1), outputs=2),
        Case(
            "Split", [X, ints(2, 2, 2)], {"axis": -2}, lambda t, F, x, _: t.split(x, 2, -2), outputs=3, note="in three"
        ),
        Case("Slice", [X, ints(1), ints(3), ints(1)], torch=cut(rest, slice(1, 3))),
        Case(
            "Slice",
            [X, ints(-3, 0), ints(ends.max, -1), ints(2, 3)],
            torch=cut(rest, rest, slice(-3, None), slice(0, -1)),
            note="from the end",
        ),
        Case(
            "Slice",
            [X, ints(0, 1), ints(6, 5), ints(2, 3), ints(2, 3)],
            torch=cut(rest, rest, slice(0, 6, 2), slice(1, 5, 3)),
            note="with steps",
        ),
        Case(
            "Slice",
            [X, ints(-1), ints(ends.min), ints(3), ints(-1)],
            torch=lambda t, F, x, *_: x.flip(3),
            note="turned round",
        ),
        Case("Slice", [X, ints(-2, 10), ints(0, -10), ints(2, 3), ints(-2, -1)], note="backwards with steps"),
        Case("Slice", [X, ints(-100, 100), ints(4, ends.min), ints(2, 3), ints(1, -1)], note="from beyond"),
        Case("Slice", [X, ints(0, 0), ints(100, 100)], note="of all"),
        Case(
            "Slice",
            [X, ints(0, 1, 2, 1), ints(ends.max, 3, 5, 4)],
            torch=cut(rest, slice(1, 3), slice(2, 5), slice(1, 4)),
            note="without axes",
        ),
        Case("Gather", [X, some], {"axis": 1}, cut(rest, [0, 2, 1])),
        Case("Gather", [X, np.array(2)], {"axis": 1}, cut(rest, 2), note="of one"),
        Case(
            "Gather",
            [X, np.array([[0, -1], [2, 2]])],
            {"axis": 2},
            cut(rest, rest, [[0, -1], [2, 2]]),
            note="twice the same",
        ),
        Case("Gather", [X, np.array([[3, 0], [1, 2]])], {"axis": 3}, note="of a table"),
        Case("Gather", [Weight((6, 4)), ints(5, 0, 0)], {"axis": 0}, cut([5, 0, 0]), note="of weights"),
        Case(
            "GatherElements",
            [X, np.random.default_rng(0).integers(-5, 5, (3, 4, 6, 2))],
            {"axis": 3},
            opsets=(16, NEWEST),
        ),
        Case("GatherND", [X, np.array([[0, 1], [2, 3], [0, 1]])], opsets=(16, NEWEST)),
        Case("ScatterElements", [X, _places(), Data((3, 4, 6, 2))], {"axis": 3}),
        Case(
            "ScatterElements",
            [X, _places(), Data((3, 4, 6, 2))],
            {"axis": 3, "reduction": "add"},
            lambda t, F, x, i, u: x.scatter_add(3, i, u),
            opsets=(16, NEWEST),
            note="that adds",
        ),
        Case("ScatterND", [X, np.array([[0, 1], [2, 3]]), Data((2, 6, 5), batch=None)]),
        Case(
            "ScatterND",
            [X, np.array([[0, 1], [0, 1]]), Data((2, 6, 5), batch=None)],
            {"reduction": "add"},
            opsets=(16, NEWEST),
            note="that adds",
        ),
        Case("Expand", [Data((3, 4, 1, 1)), ints(1, 1, 6, 5)], torch=lambda t, F, x, _: x.expand(-1, -1, 6, 5)),
        Case(
            "Expand",
            [Weight((4, 1)), ints(3, 4, 5)],
            torch=lambda t, F, x, _: x.expand(3, 4, 5),
            note="of weights",
        ),
        Case("Tile", [X, ints(1, 3, 1, 2)], torch=lambda t, F, x, _: x.repeat(1, 3, 1, 2)),
        Case("Pad", [X, ints(0, 0, 1, 2, 0, 1, 0, 2)], torch=lambda t, F, x, _: F.pad(x, (2, 2, 1, 0, 0, 1))),
        Case(
            "Pad",
            [X, ints(0, 0, -1, 2, 0, 0, 1, -3)],
            torch=lambda t, F, x, _: F.pad(x, (2, -3, -1, 1)),
            note="that cuts",
        ),
        Case(
            "Pad",
            [X, ints(0, 0, 2, 1, 0, 0, 1, 3)],
            {"mode": "reflect"},
            lambda t, F, x, _: F.pad(x, (1, 3, 2, 1), "reflect"),
            note="reflect",
        ),
        Case(
            "Pad",
            [X, ints(0, 0, 2, 1, 0, 0, 1, 3)],
            {"mode": "edge"},
            lambda t, F, x, _: F.pad(x, (1, 3, 2, 1), "replicate"),
            note="edge",
        ),
        Case("Pad", [X, ints(2, 1), floats(0.5).reshape(()), ints(-1)], opsets=(18, NEWEST), note="of one axis"),
        Case("Pad", [X, ints(2, 1), None, ints(1)], {"mode": "wrap"}, opsets=(19, NEWEST), note="wrap"),
        Case("DepthToSpace", [Data((3, 8, 2, 3))], {"blocksize": 2}),
        Case(
            "DepthToSpace",
            [Data((3, 8, 2, 3))],
            {"blocksize": 2, "mode": "CRD"},
            lambda t, F, x: F.pixel_shuffle(x, 2),
            note="CRD",
        ),
        Case("SpaceToDepth", [Data((3, 2, 4, 6))], {"blocksize": 2}),
        Case("Trilu", [Data((3, 5, 6))], {"upper": 0}, lambda t, F, x: x.tril(), opsets=(14, NEWEST)),
        Case(
            "Trilu", [Data((3, 5, 6)), np.array(1)], {}, lambda t, F, x, _: x.triu(1), opsets=(14, NEWEST), note="upper"
        ),
    ]


def _resizes() -> list[Case]:
    double = scales(1, 1, 2, 2)
    odd = scales(1, 1, 1.7, 0.7)
    table = [
        Case(
            "Resize",
            [X, None, double],
            {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
            lambda t, F, x, *_: F.interpolate(x, scale_factor=2),
            note="nearest by 2",
        ),
        Case(
            "Resize",
            [X, None, double],
            {"mode": "linear"},
            lambda t, F, x, *_: F.interpolate(x, scale_factor=2, mode="bilinear"),
            note="linear by 2",
        ),
        Case(
            "Resize",
            [X, None, double],
            {"mode": "cubic"},
            lambda t, F, x, *_: F.interpolate(x, scale_factor=2, mode="bicubic"),
            note="cubic by 2",
        ),
        Case(
            "Resize",
            [X, None, scales(1, 1, 2, 2.4)],
            {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
            lambda t, F, x, *_: F.interpolate(x, (12, 12), mode="bilinear", align_corners=True),
            note="linear, corners",
        ),
        Case(
            "Resize",
            [X, None, scales(1, 1, 2, 2.4)],
            {"mode": "cubic", "coordinate_transformation_mode": "align_corners"},
            lambda t, F, x, *_: F.interpolate(x, (12, 12), mode="bicubic", align_corners=True),
            note="cubic, corners",
        ),
        Case(
            "Resize",
            [X, None, odd],
            {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5},
            note="cubic without the outside",
        ),
        Case(
            "Resize",
            [X, None, scales(1, 1, 0.5, 0.6)],
            {"mode": "linear", "antialias": 1},
            opsets=(18, NEWEST),
            note="linear, antialias",
        ),
        Case(
            "Resize",
            [X, floats(0, 0, 0.2, 0.1, 1, 1, 0.7, 1.3), scales(1, 1, 1.5, 2)],
            {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"},
            note="linear, of a region",
        ),
        Case(
            "Resize",
            [X, None, None, ints(3, 8)],
            {"mode": "linear", "axes": [2, 3]},
            lambda t, F, x, *_: F.interpolate(x, (3, 8), mode="bilinear"),
            opsets=(18, NEWEST),
            note="linear, to a size",
        ),
        Case(
            "Resize",
            [X, None, None, ints(9, 9)],
            {"mode": "linear", "axes": [2, 3], "keep_aspect_ratio_policy": "not_larger"},
            opsets=(18, NEWEST),
            note="linear, not larger",
        ),
        Case(
            "Resize",
            [Data((3, 4, 6)), None, scales(1, 1, 2)],
            {"mode": "linear"},
            lambda t, F, x, *_: F.interpolate(x, scale_factor=2, mode="linear"),
            note="1-D",
        ),
    ]
    for coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"):
        first = 19 if coordinates == "half_pixel_symmetric" else 13
        attributes: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": coordinates}
        table.append(Case("Resize", [X, None, odd], attributes, opsets=(first, NEWEST), note=f"linear, {coordinates}"))
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
            attributes = {"coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
            note = f"nearest, {coordinates}, {rounding}"
            table.append(Case("Resize", [X, None, odd], attributes, opsets=(first, NEWEST), note=note))
    return [replace(case, linear=True) for case in table]


def _reductions() -> list[Case]:
    table = [
        Case("ReduceSum", [X, ints(2, 3)], {"keepdims": 0}, lambda t, F, x, _: x.sum((2, 3))),
        Case("ReduceSum", [X, ints(-3)], torch=lambda t, F, x, _: x.sum(1, keepdim=True), note="of channels"),
        Case("ReduceSum", [X], torch=lambda t, F, x: x.sum(), attributes={"keepdims": 0}, note="of all"),
        Case("ReduceSum", [X], {"noop_with_empty_axes": 1}, lambda t, F, x: x, note="of nothing"),
    ]
    torch: dict[str, Callable[..., Any]] = {
        "ReduceMean": lambda t, F, x, *_: x.mean((2, 3)),
        "ReduceMax": lambda t, F, x, *_: x.amax((2, 3)),
        "ReduceMin": lambda t, F, x, *_: x.amin((2, 3)),
        "ReduceSumSquare": lambda t, F, x, *_: x.square().sum((2, 3)),
        "ReduceL1": lambda t, F, x, *_: x.abs().sum((2, 3)),
        "ReduceL2": lambda t, F, x, *_: x.square().sum((2, 3)).sqrt(),
        "ReduceProd": lambda t, F, x, *_: x.flatten(2).prod(2),
        "ReduceLogSum": lambda t, F, x, *_: x.sum((2, 3)).log(),
        "ReduceLogSumExp": lambda t, F, x, *_: x.logsumexp((2, 3)),
    }
    for op, apply in torch.items():
        data = Data((3, 4, 3, 2), 0.3, 2.0) if op in ("ReduceProd", "ReduceLogSum") else X
        table += [
            Case(op, [data], {"axes": [2, 3], "keepdims": 0}, apply, opsets=(13, 17), note="before opset 18"),
            Case(op, [data, ints(2, -1)], {"keepdims": 0}, apply, opsets=(18, NEWEST)),
            Case(op, [data, ints(1)], {}, opsets=(18, NEWEST), note="of channels"),
            Case(op, [data], {}, opsets=(13, NEWEST), note="of all"),
        ]
    return table


def _scalars() -> list[Case]:
    unary: dict[str, Callable[..., Any]] = {
        "Sqrt": lambda t, F, x: x.sqrt(),
        "Sigmoid": lambda t, F, x: x.sigmoid(),
        "Tanh": lambda t, F, x: x.tanh(),
        "Exp": lambda t, F, x: x.exp(),
        "Log": lambda t, F, x: x.log(),
        "Relu": lambda t, F, x: x.relu(),
        "LeakyRelu": lambda t, F, x: F.leaky_relu(x),
        "Softplus": lambda t, F, x: F.softplus(x),
        "Identity": lambda t, F, x: x,
    }
    return [
        *(Case(op, [NUMBER], torch=torch, note="of a scalar") for op, torch in unary.items()),
        Case("Clip", [NUMBER, floats(0.1).reshape(())], torch=lambda t, F, x, a: t.clamp(x, a), note="of a scalar"),
        Case("Pow", [NUMBER, floats(1.5).reshape(())], torch=lambda t, F, x, p: x**p, note="of a scalar"),
        Case("Pow", [NUMBER, NUMBER], torch=lambda t, F, x, p: x**p, note="of a scalar, a scalar"),
        Case("Mul", [NUMBER, NUMBER], torch=lambda t, F, a, b: a * b, note="of scalars"),
        Case("Div", [NUMBER, NUMBER], torch=lambda t, F, a, b: a / b, note="of scalars"),
        Case("Sub", [X, NUMBER], torch=lambda t, F, a, b: a - b, note="of a scalar"),
        Case("Max", [NUMBER, floats(0.0).reshape(())], torch=lambda t, F, a, b: t.maximum(a, b), note="of scalars"),
        Case("Unsqueeze", [NUMBER, ints(0)], torch=lambda t, F, x, _: x[None], note="of a scalar"),
        Case("Reshape", [NUMBER, ints(1, -1)], torch=lambda t, F, x, _: x.reshape(1, 1), note="of a scalar"),
        Case("Expand", [NUMBER, ints(2, 3)], torch=lambda t, F, x, _: x.expand(2, 3), note="of a scalar"),
        Case("Squeeze", [Data((1, 1), batch=None)], torch=lambda t, F, x: x.squeeze(), note="to a scalar"),
        Case("ReduceSum", [NUMBER], {"keepdims": 0}, lambda t, F, x: x.sum(), note="of a scalar"),
        Case("ReduceMean", [UP], {"keepdims": 0}, lambda t, F, x: x.mean(), note="to a scalar"),
        Case("ReduceMax", [UP], {"keepdims": 0}, lambda t, F, x: x.max(), note="to a scalar"),
        Case("ReduceL2", [UP], {"keepdims": 0}, lambda t, F, x: x.norm(), note="to a scalar"),
        Case("ReduceLogSumExp", [UP], {"keepdims": 0}, lambda t, F, x: x.flatten().logsumexp(0), note="to a scalar"),
    ]


CASES = [
    *_activations(),
    *_trigonometric(),
    *_elementwise(),
    *_convolutions(),
    *_pools(),
    *_products(),
    *_normalizations(),
    *_shapes(),
    *_resizes(),
    *_reductions(),
    *_scalars(),
]
