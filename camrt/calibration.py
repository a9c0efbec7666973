"""Explainers in 8 bits: the network is quantized, with scales measured on images, and compared with what it was.

`onnxruntime.quantization`, a part of ONNX Runtime, writes the network in its QDQ form: each channel of the weights and
each tensor of activations has a scale, and activations have a zero point. Around it the explainer stays in 32 bits: the
preprocessing of the image, pooling, softmax and logits, the maps, their merging, and the arithmetic of gradients (which
reads the dequantized weights).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from camrt.errors import CamrtError
from camrt.explainer import Explainer
from camrt.graph.explain import IMAGE
from camrt.graph.view import needed_for
from camrt.loading import Request
from camrt.session import Session
from converters import metadata
from converters.model import MAX_MODEL, save

if TYPE_CHECKING:
    from camrt.explainer import Prepared
    from camrt.explanation import Explanation

COUNT = 100  # images to calibrate on
_HELD_OUT = 20  # images to compare on, at most, and at most a fifth of all
# What is quantized. Pooling over the whole image, softmax, sigmoid and normalizations stay in 32 bits: they take little
# time, and lose the most. Gemm and MatMul give 32 bits where what follows does not want 8: logits.
_OPERATORS = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Relu", "Clip", "LeakyRelu", "MaxPool", "AveragePool", "Concat",
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Resize", "Split", "Slice", "Pad",
)  # fmt: skip
_QUANTIZED = {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "QGemm"}
_FLOAT_OUTPUTS = ("Gemm", "MatMul")


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far an explainer in 8 bits agrees with the one in 32, on images that it was not calibrated on.

    Attributes:
        calibrated: How many images it was calibrated on.
        images: How many images were compared.
        correlation: The mean correlation of the maps of the same class of the same image; None where no class is
            explained by both.
        least_correlation: The least one.
        same_best_class: The share of images whose best class is the same.
        same_classes: The share of the explained classes that both explain.
        fp32_bytes: The size of the explainer in 32 bits.
    """

    calibrated: int
    images: int
    correlation: float | None
    least_correlation: float | None
    same_best_class: float
    same_classes: float
    fp32_bytes: int


def int8_explainer(
    classifier: onnx.ModelProto,
    request: Request,
    paths: Sequence[str],
    count: int = COUNT,
    *,
    on_error: Callable[[str, CamrtError], object],
) -> tuple[onnx.ModelProto, Agreement]:
    """Make an explainer of a classifier, whose network computes in 8 bits.

    Args:
        classifier: The network. Not changed.
        request: What the explainer is to do.
        paths: Images. Some are held out for the comparison: every fifth, at most 20, at least one.
        count: How many images at most the scales are measured on, evenly spread over ``paths``.
        on_error: Called with the path of an image that cannot be read, and why. It is left out.

    Returns:
        The explainer, and its agreement with the one in 32 bits.

    Raises:
        CamrtError: No explainer can be made; fewer than two images can be read; the network is quantized already; or
            onnxruntime.quantization is not there, or fails.
    """
    check_tools()
    if not _QUANTIZED.isdisjoint(node.op_type for node in classifier.graph.node):
        raise CamrtError("the network is quantized already: export it without --precision int8")
    is_given = request.target in ("input", "any")  # then the best classes are compared
    compared = dataclasses.replace(request, target=None) if is_given else request
    exact = compared.graph(classifier)
    before = Explainer(exact)
    calibrating, held_out = _chosen(before, paths, count, on_error)
    network = _quantized(classifier, _inputs(exact, classifier, calibrating))
    small = compared.graph(network)
    agreement = _agreement(before, Explainer(small), held_out, len(calibrating), exact.ByteSize())
    return request.graph(network) if is_given else small, agreement


def check_tools() -> None:
    """Check that onnxruntime.quantization can be imported.

    Raises:
        CamrtError: It cannot; the text says why.
    """
    try:
        import onnxruntime.quantization  # noqa: F401
    except ImportError as error:
        raise CamrtError(
            f"onnxruntime.quantization cannot be imported ({error}), which is a part of ONNX Runtime: install what is "
            "missing, or a build of ONNX Runtime that has it (pip install onnxruntime)"
        ) from error


def _chosen(
    explainer: Explainer, paths: Sequence[str], count: int, on_error: Callable[[str, CamrtError], object]
) -> tuple[list[Prepared], list[Prepared]]:
    """The images to calibrate on, and those to compare on, evenly spread."""
    held = max(1, min(_HELD_OUT, len(paths) // 5))
    wanted = min(len(paths), count + held)
    ready = []
    for index in np.linspace(0, len(paths) - 1, wanted).round().astype(int).tolist():
        try:
            ready.append(explainer.prepare(paths[index]))
        except CamrtError as error:
            on_error(paths[index], error)
    if len(ready) < 2:
        raise CamrtError(
            f"found {len(ready)} images that can be read, expected at least 2: one to calibrate on and one to compare"
            " on. A hundred or more, of what the network will see, are better"
        )
    held = max(1, min(held, len(ready) // 2))
    places = set(np.linspace(0, len(ready) - 1, held).round().astype(int).tolist())
    return (
        [one for place, one in enumerate(ready) if place not in places],
        [one for place, one in enumerate(ready) if place in places],
    )


def _inputs(
    explainer: onnx.ModelProto, classifier: onnx.ModelProto, images: Sequence[Prepared]
) -> Iterator[dict[str, Any]]:
    """What the network gets of each image: input -> (crops, 3, side, side) float32, by the explainer's own nodes."""
    weights = {tensor.name for tensor in classifier.graph.initializer}
    name = next(value.name for value in classifier.graph.input if value.name not in weights)
    nodes = needed_for(explainer.graph, [name])
    read = {each for node in nodes for each in node.input}
    graph = onnx.helper.make_graph(
        nodes,
        "preprocessing",
        [value for value in explainer.graph.input if value.name == IMAGE],
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, 3, None, None])],
        [tensor for tensor in explainer.graph.initializer if tensor.name in read],
    )
    model = onnx.helper.make_model(graph, opset_imports=explainer.opset_import, ir_version=explainer.ir_version)
    session = Session(model, providers="cpu")
    for one in images:
        yield session.run({IMAGE: one.loaded.square[None]})


class _Reader:
    """The network's inputs, as the tool asks for them."""

    def __init__(self, inputs: Iterator[dict[str, Any]]) -> None:
        self._inputs = inputs

    def get_next(self) -> dict[str, Any] | None:
        return next(self._inputs, None)


def _quantized(classifier: onnx.ModelProto, inputs: Iterator[dict[str, Any]]) -> onnx.ModelProto:
    """The network in QDQ form, with its metadata."""
    from onnxruntime import quantization
    from onnxruntime.quantization.registry import QDQRegistry
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="camrt-int8-") as folder, _quiet():
        source, ready, result = (Path(folder) / f"{name}.onnx" for name in ("network", "ready", "int8"))
        save(classifier, source, limit=MAX_MODEL)
        try:
            if any(node.op_type == "BatchNormalization" for node in classifier.graph.node):
                # Folded into the convolutions, whose outputs would be rounded otherwise before they are normalized.
                quant_pre_process(source, ready, skip_symbolic_shape=True)
                source = ready
            quantization.quantize_static(
                source,
                result,
                _Reader(inputs),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=[operator for operator in _OPERATORS if operator in QDQRegistry],
                per_channel=True,
                # ONNX Runtime makes integer convolutions of unsigned activations; of signed ones it mostly does not.
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                extra_options={"OpTypesToExcludeOutputQuantization": list(_FLOAT_OUTPUTS)},
            )
            model = onnx.load(result)
        except CamrtError:
            raise
        except Exception as error:  # the tool raises whatever ONNX Runtime and onnx do
            text = " ".join(str(error).split())[:600] or type(error).__name__
            raise CamrtError(f"onnxruntime.quantization cannot quantize the network ({text})") from error
    onnx.helper.set_model_props(model, metadata.of_model(classifier))
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tool's advice, which is taken already, out of the log: it would set the root logger up to print."""
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        root.removeHandler(silent)


def _agreement(
    before: Explainer, after: Explainer, images: Sequence[Prepared], calibrated: int, size: int
) -> Agreement:
    """Compare two explainers image by image, so that one explanation of each is held at a time."""
    correlations: list[float] = []
    best, shared = [], []
    for one in images:
        wanted, found = (_explained(explainer, one) for explainer in (before, after))
        best.append(bool(wanted.classes[0] == found.classes[0]))
        shared.append(len(set(wanted.classes.tolist()) & set(found.classes.tolist())) / len(wanted.classes))
        correlations += _correlations(wanted, found)
    return Agreement(
        calibrated=calibrated,
        images=len(images),
        correlation=float(np.mean(correlations)) if correlations else None,
        least_correlation=float(np.min(correlations)) if correlations else None,
        same_best_class=float(np.mean(best)),
        same_classes=float(np.mean(shared)),
        fp32_bytes=size,
    )


def _explained(explainer: Explainer, image: Prepared) -> Explanation:
    (found,) = explainer.explain_prepared([image])
    if isinstance(found, CamrtError):
        raise found
    return found


def _correlations(wanted: Explanation, found: Explanation) -> Iterator[float]:
    """The correlations of the maps of the classes that both explain; 1 for two constant maps, 0 for one."""
    places = {number: place for place, number in enumerate(found.classes.tolist())}
    for number, one in zip(wanted.classes.tolist(), wanted.heatmaps, strict=True):
        if number in places:
            pair = [each.ravel() - each.mean(dtype=np.float64) for each in (one, found.heatmaps[places[number]])]
            lengths = [float(np.linalg.norm(each)) for each in pair]
            if all(lengths):
                yield float(pair[0] @ pair[1]) / (lengths[0] * lengths[1])
            else:
                yield float(not any(lengths))
