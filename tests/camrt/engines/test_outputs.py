"""Tensors from within a model, as outputs of a session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import camrt
from camrt.engines.outputs import with_outputs


def chain() -> onnx.ModelProto:
    """y = relu(x w) + 1, with a sequence beside it."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Relu", ["product"], ["relu"]),
        helper.make_node("SequenceConstruct", ["relu", "product"], ["sequence"]),
        helper.make_node("SequenceAt", ["sequence", "first"], ["again"]),
        helper.make_node("Add", ["again", "one"], ["y"]),
    ]
    weights = {
        "w": np.arange(-6, 6, dtype=np.float32).reshape(3, 4),
        "one": np.ones((), np.float32),
        "first": np.zeros((), np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


X = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)


def expected(names: list[str]) -> dict[str, np.ndarray]:
    """By onnx's own evaluator."""
    return dict(zip(names, ReferenceEvaluator(chain()).run(names, {"x": X}), strict=True))


def test_all_tensors_in_order() -> None:
    session = camrt.Session(chain(), outputs="all", providers="cpu")
    found = session.run({"x": X})
    names = ["product", "relu", "again", "y"]
    assert list(found) == list(session.outputs) == names
    for name, values in expected(names).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5)
    assert session.outputs["product"] == ("N", 4)


def test_named_tensors_of_a_file(tmp_path: Path) -> None:
    onnx.save(chain(), tmp_path / "net.onnx", save_as_external_data=True, size_threshold=0, location="weights")
    found = camrt.Session(tmp_path / "net.onnx", outputs=["relu", "product", "relu"], providers="cpu").run({"x": X})
    assert list(found) == ["relu", "product"]
    for name, values in expected(["relu", "product"]).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5)


def test_openvino_gives_the_same() -> None:
    pytest.importorskip("openvino", reason="needs pip install 'camrt[openvino]'")
    model = with_outputs(chain(), ["product", "relu"])
    del model.graph.node[2:]  # it has no sequences
    found = camrt.Session(model, outputs="all", providers="openvino").run({"x": X})
    for name, values in expected(["product", "relu"]).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5)


def test_the_model_stays_as_it_is() -> None:
    model = chain()
    before = model.SerializeToString()
    assert [value.name for value in with_outputs(model, "all").graph.output] != ["y"]
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (["prduct"], "found the output 'prduct', expected a tensor that a node computes: did you mean product"),
        (["nonsense"], "found the output 'nonsense', .*: the last ones are product, relu, again, y"),
        (["x"], "found the output 'x', .*: it is an input"),
        (["w"], "found the output 'w', .*: it is a weight"),
        ([3], "found the output 3"),
        ([], "found no outputs"),
        ("relu", r"found the outputs 'relu', expected several names, as \['relu'\], or 'all'"),
    ],
)
def test_outputs_that_are_not_there(outputs: list[str] | str, message: str) -> None:
    with pytest.raises(camrt.CamrtError, match=message):
        camrt.Session(chain(), outputs=outputs)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"", b"no model", None])
def test_files_that_are_no_models(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(camrt.CamrtError, match=r"net\.onnx"):
        camrt.Session(file, outputs="all")
