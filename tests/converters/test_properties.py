"""Random small networks: what ONNX Runtime answers to the converted one, and OpenCV 4's importer to the same files."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from converters import convert
from tests.caffe_files import input_layer, layer, weights_alone, written
from tests.converters.one_layer import run

Shape = tuple[int, ...]


@dataclass
class Drawn:
    """A network in the making.

    Attributes:
        text: Its layers.
        weights: Layer -> blobs.
        shapes: Blob -> shape.
        writers: Blob -> the layer that wrote it last: OpenCV knows outputs by their layers.
        read: Blobs that a layer reads; Caffe refuses to change them in place.
        seed: Of the weights and the data.
    """

    seed: int
    text: list[str] = field(default_factory=list)
    weights: dict[str, list[np.ndarray]] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    writers: dict[str, str] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)

    def add(
        self,
        type: str,
        bottoms: list[str],
        shape: Shape,
        params: str = "",
        blobs: tuple[Shape, ...] = (),
        *,
        in_place: bool = False,
    ) -> str:
        """Append a layer with weights of some shapes; returns its top."""
        name = f"l{len(self.text)}"
        top = bottoms[0] if in_place else name
        self.text.append(layer(name, type, " ".join(bottoms), top, params))
        if blobs:
            rng = np.random.default_rng([self.seed, len(self.text)])
            self.weights[name] = [
                rng.standard_normal(one, np.float32) / np.float32(math.prod(one[1:]) ** 0.5) for one in blobs
            ]
        self.shapes[top] = shape
        self.writers.pop(top, None)  # to the end: outputs come in the order of their layers
        self.writers[top] = name
        if not in_place:
            self.read.update(bottoms)
        return top

    @property
    def outputs(self) -> list[str]:
        return [blob for blob in self.writers if blob not in self.read]


def convolution(draw: st.DrawFn, net: Drawn, blob: str, _: bool) -> None:
    batch, channels, *size = net.shapes[blob]
    group = draw(st.sampled_from([one for one in (1, 2, 3, channels) if channels % one == 0]))
    outputs = group * draw(st.integers(1, 4))
    kernel, stride = (draw(st.tuples(st.integers(1, top), st.integers(1, top))) for top in (4, 3))
    pad, dilation = draw(st.tuples(st.integers(0, 2), st.integers(0, 2))), draw(st.integers(1, 2))
    room = [n + 2 * p - (dilation * (k - 1) + 1) for n, k, p in zip(size, kernel, pad, strict=True)]
    if min(room) < 0:
        return
    bias = draw(st.booleans())
    params = f"num_output: {outputs} group: {group} dilation: {dilation} {window(kernel, stride, pad)}"
    net.add(
        "Convolution",
        [blob],
        (batch, outputs, *(r // s + 1 for r, s in zip(room, stride, strict=True))),
        f"convolution_param {{ {params} {'' if bias else 'bias_term: false'} }}",
        ((outputs, channels // group, *kernel), *([(outputs,)] if bias else [])),
    )


def window(kernel: tuple[int, int], stride: tuple[int, int], pad: tuple[int, int]) -> str:
    """`kernel_size: 3`, or `kernel_h: 3 kernel_w: 2` where the two differ; so with stride and pad."""
    if all(height == width for height, width in (kernel, stride, pad)):
        return f"kernel_size: {kernel[0]} stride: {stride[0]} pad: {pad[0]}"
    named = (("kernel", kernel), ("stride", stride), ("pad", pad))
    return " ".join(f"{name}_h: {height} {name}_w: {width}" for name, (height, width) in named)


def pooling(draw: st.DrawFn, net: Drawn, blob: str, _: bool) -> None:
    *batch, height, width = net.shapes[blob]
    method = draw(st.sampled_from(["MAX", "AVE"]))
    if draw(st.integers(0, 4)) == 0:
        net.add("Pooling", [blob], (*batch, 1, 1), f"pooling_param {{ pool: {method} global_pooling: true }}")
        return
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    # OpenCV leaves out or invents windows where gaps are between them: no stride beyond the kernel.
    stride = (draw(st.integers(1, min(3, kernel[0]))), draw(st.integers(1, min(3, kernel[1]))))
    pad = (draw(st.integers(0, kernel[0] - 1)), draw(st.integers(0, kernel[1] - 1)))
    out = []
    for size, k, s, p in zip((height, width), kernel, stride, pad, strict=True):
        if size + 2 * p < k:
            return
        count = -(-(size + 2 * p - k) // s) + 1
        out.append(count - 1 if any(pad) and (count - 1) * s >= size + p else count)
    net.add("Pooling", [blob], (*batch, *out), f"pooling_param {{ pool: {method} {window(kernel, stride, pad)} }}")


def lrn(draw: st.DrawFn, net: Drawn, blob: str, _: bool) -> None:
    # OpenCV passes over k.
    size, alpha = draw(st.sampled_from([1, 3, 5])), draw(st.floats(0.01, 2))
    beta, region = draw(st.sampled_from([0.5, 0.75, 1])), draw(st.sampled_from(["ACROSS_CHANNELS", "WITHIN_CHANNEL"]))
    params = f"lrn_param {{ local_size: {size} alpha: {alpha:.3f} beta: {beta} norm_region: {region} }}"
    net.add("LRN", [blob], net.shapes[blob], params)


def batch_norm(draw: st.DrawFn, net: Drawn, blob: str, in_place: bool) -> None:
    shape = net.shapes[blob]
    channels = shape[1]
    eps = draw(st.sampled_from(["", "batch_norm_param { eps: 0.01 }"]))
    top = net.add("BatchNorm", [blob], shape, eps, ((channels,), (channels,), (1,)), in_place=in_place)
    mean, variance, _ = net.weights[net.writers[top]]
    net.weights[net.writers[top]] = [mean, np.abs(variance) + 0.1, np.array([draw(st.sampled_from([1, 2, 0.5]))])]
    if draw(st.integers(0, 3)):
        scale(draw, net, top, draw(st.booleans()))


def scale(draw: st.DrawFn, net: Drawn, blob: str, in_place: bool) -> None:
    shape, bias = net.shapes[blob], draw(st.booleans())
    params = "scale_param { bias_term: true }" if bias else ""
    net.add("Scale", [blob], shape, params, ((shape[1],),) * (1 + bias), in_place=in_place)


def concat(draw: st.DrawFn, net: Drawn, blob: str, _: bool) -> None:
    batch, _channels, *rest = net.shapes[blob]
    fitting = [one for one, shape in net.shapes.items() if (shape[0], *shape[2:]) == (batch, *rest)]
    # OpenCV takes the top of a Concat with one bottom for another blob.
    bottoms = draw(st.lists(st.sampled_from(fitting), min_size=2, max_size=3))
    net.add("Concat", bottoms, (batch, sum(net.shapes[one][1] for one in bottoms), *rest))


def eltwise(draw: st.DrawFn, net: Drawn, blob: str, _: bool) -> None:
    fitting = [one for one, shape in net.shapes.items() if shape == net.shapes[blob]]
    bottoms = draw(st.lists(st.sampled_from(fitting), min_size=2, max_size=3))
    operation, coefficients = draw(st.sampled_from(["SUM", "PROD", "MAX"])), ""
    if operation == "SUM" and draw(st.booleans()):
        coefficients = " ".join(f"coeff: {draw(st.floats(-2, 2)):.3f}" for _ in bottoms)
    params = f"eltwise_param {{ operation: {operation} {coefficients} }}"
    net.add("Eltwise", bottoms, net.shapes[blob], params)


ACTIVATIONS = (
    ("ReLU", ""),
    ("ReLU", "relu_param { negative_slope: 0.1 }"),
    ("Sigmoid", ""),
    ("TanH", ""),
    ("ELU", ""),
    ("Dropout", ""),
    ("Power", "power_param { scale: -0.5 shift: 0.25 }"),  # OpenCV puts a Scale that follows another power before it
)


def activation(draw: st.DrawFn, net: Drawn, blob: str, in_place: bool) -> None:
    type, params = draw(st.sampled_from(ACTIVATIONS))
    net.add(type, [blob], net.shapes[blob], params, in_place=in_place)


def prelu(draw: st.DrawFn, net: Drawn, blob: str, in_place: bool) -> None:
    # Of images only: behind a sum of vectors, OpenCV takes the first slope for all.
    shape = net.shapes[blob]
    net.add("PReLU", [blob], shape, "", ((shape[1],),), in_place=in_place)


def inner_product(draw: st.DrawFn, net: Drawn, blob: str, _: bool) -> None:
    batch, *rest = net.shapes[blob]
    outputs, bias = draw(st.integers(1, 6)), draw(st.booleans())
    params = f"inner_product_param {{ num_output: {outputs} {'' if bias else 'bias_term: false'} }}"
    blobs = ((outputs, math.prod(rest)), *([(outputs,)] if bias else []))
    net.add("InnerProduct", [blob], (batch, outputs), params, blobs)


def softmax(draw: st.DrawFn, net: Drawn, blob: str, _: bool) -> None:
    net.add("Softmax", [blob], net.shapes[blob])


ON_IMAGES: tuple[Callable[[st.DrawFn, Drawn, str, bool], None], ...] = (
    convolution, convolution, pooling, pooling, lrn, batch_norm, scale, prelu,
)  # fmt: skip
ON_ALL = (concat, eltwise, activation, activation, inner_product, softmax)


@st.composite
def networks(draw: st.DrawFn) -> Drawn:
    """One to eight layers. Each reads any blob before it, so that branches come and join."""
    net = Drawn(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 12), st.integers(1, 12)))
    net.text.append(input_layer("data", *shape))
    net.shapes["data"] = shape
    for _ in range(draw(st.integers(1, 8))):
        blob = draw(st.sampled_from(list(net.shapes)))
        add = draw(st.sampled_from(ON_IMAGES + ON_ALL if len(net.shapes[blob]) == 4 else ON_ALL))
        add(draw, net, blob, blob != "data" and blob not in net.read and draw(st.booleans()))
    return net


SETTINGS = settings(
    max_examples=300,
    phases=(Phase.generate, Phase.shrink),
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@SETTINGS
@given(networks(), st.integers(1, 3))
def test_random_networks_answer_as_opencv(net: Drawn, batch: int) -> None:
    if not net.outputs:
        return
    for text in net.text[1:]:
        event(text.split('type: "')[1].split('"')[0])
    data = np.random.default_rng(net.seed).standard_normal((batch, *net.shapes["data"][1:]), np.float32)
    with tempfile.TemporaryDirectory() as name:
        prototxt = written(Path(name) / "net.prototxt", "".join(net.text))
        files = [prototxt]
        if net.weights:
            files.append(written(Path(name) / "net.caffemodel", weights_alone(net.weights)))
        model = convert(*files)
        reader = cv2.dnn.readNetFromCaffe(*map(str, files))
    assert [value.name for value in model.graph.output] == net.outputs
    reader.setInput(data, "data")
    expected = reader.forward([net.writers[blob] for blob in net.outputs])
    for blob, ours, theirs in zip(net.outputs, run(model, {"data": data}), expected, strict=True):
        assert ours.shape == theirs.shape == (batch, *net.shapes[blob][1:])
        scale = max(1, np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * scale, err_msg="".join(net.text))
