"""Models with gradients added, for tests, and running them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper, parser

from camrt.builder import Builder
from camrt.graph.gradient import backpropagate
from camrt.graph.rules import registry
from camrt.graph.sizes import Sizes
from camrt.graph.view import GraphView, opset_of


def run(model: onnx.ModelProto, feed: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
    """What ONNX Runtime gives."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    known = {value.name for value in session.get_inputs()}
    return session.run(list(outputs), {name: array for name, array in feed.items() if name in known})


def with_gradients(
    model: onnx.ModelProto,
    outputs: Sequence[str],
    wrt: Sequence[str],
    cotangents: int | None = None,
    relu: str | None = None,
) -> onnx.ModelProto:
    """The model with ``seed/<output>`` as inputs and ``gradient/<tensor>`` as outputs, of each (cotangents, ...)."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    view = GraphView(model)
    names = {name for node in model.graph.node for name in (*node.input, *node.output)}
    builder = Builder(opset_of(model), names | set(view.initializers))
    seeds = {name: f"seed/{name}" for name in outputs}
    found = backpropagate(builder, view, seeds, wrt, cotangents=cotangents, relu=relu)
    graph = result.graph
    graph.node.extend(builder.nodes)
    graph.initializer.extend(builder.initializers)
    for name in outputs:
        graph.input.append(described(view, name, f"seed/{name}", cotangents))
    for name, gradient in found.items():
        graph.node.append(helper.make_node("Identity", [gradient], [f"gradient/{name}"]))
        graph.output.append(described(view, name, f"gradient/{name}", cotangents))
    onnx.checker.check_model(result, full_check=True)
    return result


def described(view: GraphView, tensor: str, title: str, cotangents: int | None = None) -> onnx.ValueInfoProto:
    """A tensor of another's type and shape, behind the axis of cotangents."""
    sizes = Sizes(view)
    shape, lead = sizes.shape(tensor), [] if cotangents is None else [cotangents]
    assert shape is not None
    return helper.make_tensor_value_info(title, sizes.dtype(tensor), [*lead, *shape])


def graph(text: str, weights: dict[str, np.ndarray] | None = None, opset: int = 17) -> onnx.ModelProto:
    """A model from onnx's own text."""
    domains = f'["" : {opset}, "test" : 1, "com.example" : 1]'
    model = parser.parse_model(f"<ir_version: 8, opset_import: {domains}>\n{text}")
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in (weights or {}).items())
    return model


@contextlib.contextmanager
def kept_registry() -> Iterator[None]:
    """What is registered inside is forgotten afterwards."""
    registry._rules.load()
    restore = registry._rules.snapshot()
    try:
        yield
    finally:
        restore()
