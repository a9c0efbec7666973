from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from camrt import CamrtError, Explainer, triton
from camrt.graph import explain_graph
from tests.tiny_models import LABELS, photo, tiny_classifier


@pytest.fixture(scope="module")
def explainer() -> onnx.ModelProto:
    return explain_graph(tiny_classifier())


def config_of(model: onnx.ModelProto, name: str = "tiny", **changes: Any) -> triton.Config:
    inputs, outputs = triton.tensors_of(model.graph.input), triton.tensors_of(model.graph.output)
    return triton.Config(name, inputs, outputs, True, **changes)


def parsed_by_triton(text: str) -> Any:
    """The configuration as Triton's own messages read it: an unknown field or a wrong value is an error."""
    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        pytest.skip("tritonclient is not installed: Triton's messages cannot be asked")
    from google.protobuf import text_format

    # Its package wants gRPC; the messages alone do not.
    file = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("triton_model_config", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return text_format.Parse(text, module.ModelConfig()), module


def test_the_configuration_is_what_triton_reads(explainer: onnx.ModelProto) -> None:
    config = config_of(explainer, max_batch=16, max_delay=0.0025, instances=2, device=triton.Device.GPU)
    found, messages = parsed_by_triton(config.text())
    assert (found.name, found.backend, found.max_batch_size) == ("tiny", "onnxruntime", 16)
    size = int(found.input[0].dims[0])
    assert [(one.name, one.data_type, list(one.dims)) for one in found.input] == [
        ("image", messages.TYPE_UINT8, [size, size, 3])
    ]
    assert [(one.name, one.data_type, list(one.dims)) for one in found.output] == [
        ("scores", messages.TYPE_FP32, [7]),
        ("classes", messages.TYPE_INT64, [5]),
        ("heatmaps", messages.TYPE_FP32, [5, size, size]),
    ]
    assert found.output[0].label_filename == triton.LABELS
    assert found.default_model_filename == triton.MODEL
    assert list(found.dynamic_batching.preferred_batch_size) == [16]
    assert found.dynamic_batching.max_queue_delay_microseconds == 2500
    (group,) = found.instance_group
    assert (group.count, group.kind) == (2, messages.ModelInstanceGroup.KIND_GPU)
    assert not found.optimization.execution_accelerators.gpu_execution_accelerator


def test_accelerators_are_what_triton_reads(explainer: onnx.ModelProto) -> None:
    found, _ = parsed_by_triton(config_of(explainer, accelerator=triton.Accelerator.TENSORRT, precision="fp16").text())
    (chosen,) = found.optimization.execution_accelerators.gpu_execution_accelerator
    assert (chosen.name, chosen.parameters["precision_mode"]) == ("tensorrt", "FP16")
    assert [(one.batch_size, one.inputs["image"].zero_data) for one in found.model_warmup] == [(1, True), (8, True)]
    found, _ = parsed_by_triton(config_of(explainer, accelerator=triton.Accelerator.OPENVINO).text())
    (chosen,) = found.optimization.execution_accelerators.cpu_execution_accelerator
    assert chosen.name == "openvino"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../up"}, "letters, digits"),
        ({"name": ""}, "letters, digits"),
        ({"accelerator": triton.Accelerator.TENSORRT, "device": triton.Device.CPU}, "on the other device"),
        ({"accelerator": triton.Accelerator.OPENVINO, "device": triton.Device.GPU}, "on the other device"),
        ({"precision": "fp16"}, "only TensorRT"),
    ],
)
def test_configurations_that_cannot_be(explainer: onnx.ModelProto, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CamrtError, match=message):
        config_of(explainer, **changes)


def test_a_repository_is_written_and_read_again(explainer: onnx.ModelProto, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    first, is_new = triton.add(repository, config_of(explainer, max_delay=0.002), explainer)
    assert (first, is_new) == (repository / "tiny" / "1", True)
    assert sorted(str(file.relative_to(repository)) for file in repository.rglob("*") if file.is_file()) == [
        "tiny/1/model.onnx", "tiny/config.pbtxt", "tiny/labels.txt"
    ]  # fmt: skip
    (entry,) = triton.read(repository)
    assert (entry.name, entry.version, entry.max_batch, entry.max_delay) == ("tiny", "1", 8, 0.002)
    assert entry.labels == LABELS
    loaded = Explainer(entry.file, labels=entry.labels, providers="cpu")
    entry.check(loaded.session.inputs, loaded.session.outputs)
    image = photo(40, 50, 0)
    np.testing.assert_array_equal(loaded(image).heatmaps, Explainer(explainer, providers="cpu")(image).heatmaps)


def test_a_second_version_leaves_the_configuration(explainer: onnx.ModelProto, tmp_path: Path) -> None:
    triton.add(tmp_path, config_of(explainer), explainer)
    file = tmp_path / "tiny" / triton.CONFIG
    tuned = file.read_text() + "\nversion_policy { all { } }\n"
    file.write_text(tuned)
    second, is_new = triton.add(tmp_path, config_of(explainer, max_batch=32), explainer)
    assert (second.name, is_new, file.read_text()) == ("2", False, tuned)
    assert [entry.version for entry in triton.read(tmp_path)] == ["1", "2"]
    with pytest.raises(CamrtError, match="expected a new one: --triton-version"):
        triton.add(tmp_path, config_of(explainer), explainer, 2)
    other = explain_graph(tiny_classifier(), top=2)
    with pytest.raises(CamrtError, match="classes INT64"):
        triton.add(tmp_path, config_of(other), other)
    assert sorted(entry.name for entry in (tmp_path / "tiny").iterdir()) == ["1", "2", triton.CONFIG, triton.LABELS]


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ("", ["10"]),
        ("version_policy { latest { num_versions: 2 } }", ["9", "10"]),
        ("version_policy: { all: {} }", ["1", "9", "10"]),
        ("version_policy { specific { versions: [1, 9] } }", ["1", "9"]),
        ("version_policy { specific { versions: 9 } }", ["9"]),
    ],
)
def test_policies_of_versions(tmp_path: Path, policy: str, versions: list[str]) -> None:
    for name in ("1", "9", "10", "old", "07", ".11-3.part"):
        (tmp_path / "m" / name).mkdir(parents=True)
    (tmp_path / "m" / triton.CONFIG).write_text(policy)
    assert [entry.version for entry in triton.read(tmp_path)] == versions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: 'other'", "expected that of its folder"),
        ("max_batch_size: -1", "expected a whole number"),
        ("max_batch_size: 'x'", "expected a whole number"),
        ("dynamic_batching { max_queue_delay_microseconds: 0.5 }", "expected a whole number"),
        ("version_policy { specific { versions: 3 } }", "found no version 3"),
        ("version_policy: 3", "expected latest, all or specific"),
        ("version_policy { latest: 3 }", "expected latest, all or specific"),
        ("default_model_filename: '../../x.onnx'", "expected the name of a file"),
        ("output { name: 'scores' data_type: TYPE_FP32 dims: 3 label_filename: '/etc/passwd' }", "the name of a file"),
        ("output { name: 'scores' data_type: TYPE_FP32 dims: 3 label_filename: 'none' }", "no class names"),
        ("input { name: 'image' }", "without name, data_type or dims"),
        ("input { name: 'image'", r"config\.pbtxt:1"),
        ("{" * 1000, r"config\.pbtxt:1"),
        ("\x00", r"config\.pbtxt"),
    ],
)
def test_configurations_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / triton.CONFIG).write_text(text)
    with pytest.raises(CamrtError, match=message) as raised:
        triton.read(tmp_path)
    assert "config.pbtxt" in str(raised.value) or "none" in str(raised.value)


def test_folders_that_are_no_repository(tmp_path: Path) -> None:
    with pytest.raises(CamrtError, match="No such file"):
        triton.read(tmp_path / "no")
    with pytest.raises(CamrtError, match="found no model"):
        triton.read(tmp_path)
    (tmp_path / "m").mkdir()
    with pytest.raises(CamrtError, match="found no version"):
        triton.read(tmp_path)


def test_tensors_that_the_graph_does_not_have(explainer: onnx.ModelProto, tmp_path: Path) -> None:
    triton.add(tmp_path, config_of(explainer), explainer)
    file = tmp_path / "tiny" / triton.CONFIG
    file.write_text(file.read_text().replace("dims: [ 5 ]", "dims: [ 4 ]"))
    (entry,) = triton.read(tmp_path)
    loaded = Explainer(entry.file, providers="cpu")
    with pytest.raises(CamrtError, match=r"found classes \[4\], expected one of the graph"):
        entry.check(loaded.session.inputs, loaded.session.outputs)
