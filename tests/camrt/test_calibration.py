"""Explainers in 8 bits: what is quantized, how far they agree, and what is said of bad input."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from camrt import Explainer
from camrt.calibration import Agreement, int8_explainer
from camrt.commands.export import EXAMPLES
from camrt.errors import CamrtError
from camrt.graph.explain import describe
from camrt.loading import Request, named_classifier
from tests.camrt.classifiers import classifier
from tests.camrt.commands.command_line import run
from tests.camrt.graph.explainers import PREPROCESS

pytest.importorskip("onnxruntime.quantization", reason="onnxruntime.quantization cannot be imported: nothing in 8 bits")
MODEL = "lenetCAM"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """Parts of lenetCAM's sample, brighter and darker; a file that is no image, and one that is hidden."""
    folder = tmp_path_factory.mktemp("photos")
    sample = cv2.imread(str(repository / "models" / MODEL / "sample.png"))
    generator = np.random.default_rng(0)
    height, width = sample.shape[:2]
    for number in range(20):
        y, x = (int(generator.uniform(0, 0.2) * length) for length in (height, width))
        part = sample[y : y + int(0.8 * height), x : x + int(0.8 * width)] * generator.uniform(0.7, 1.2)
        cv2.imwrite(str(folder / f"{number:02}.png"), part.clip(0, 255).astype(np.uint8))
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / ".hidden.png").write_bytes(b"nor this")
    return folder


def listed(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.glob("[0-9]*.png"))


def small(request: Request, folder: Path, model: onnx.ModelProto | None = None) -> tuple[onnx.ModelProto, Agreement]:
    def fail(image: str, error: CamrtError) -> None:
        raise error

    return int8_explainer(model or named_classifier(MODEL), request, listed(folder), on_error=fail)


@pytest.mark.parametrize("method", ["cam", "gradcam", "eigencam"])
def test_export_agrees_with_32_bits(method: str, photos: Path, tmp_path: Path) -> None:
    """The command, and its figures against ours: NumPy's correlations of what both files give."""
    file, exact = tmp_path / "int8.onnx", tmp_path / "exact.onnx"
    asked = ["export", MODEL, "--method", method, "--top", 2, "--protocol", "center"]
    status, out, err = run(*asked, "-o", file, "--precision", "int8", "--calibrate", photos, "--json")
    assert status == 0, err
    assert f"skipped: {photos}/broken.jpg: is no image" in err
    record = json.loads(out)
    found = record["agreement"]
    assert (record["precision"], record["bytes"]) == ("int8", file.stat().st_size)
    assert (found["images"], found["calibrated"]) == (4, 16)
    assert found["correlation"] > 0.99
    assert run(*asked, "-o", exact)[0] == 0
    assert file.stat().st_size < 0.6 * exact.stat().st_size == pytest.approx(0.6 * found["fp32_bytes"], rel=0.01)

    pairs = [[explainer(path) for explainer in (Explainer(exact), Explainer(file))] for path in listed(photos)]
    assert pairs[0][1].precision == "int8"
    assert np.mean([a.classes[0] == b.classes[0] for a, b in pairs]) > 0.9
    same = [np.corrcoef(a.heatmaps[0].ravel(), b.heatmaps[0].ravel())[0, 1] for a, b in pairs]
    assert found["least_correlation"] - 0.01 <= min(same)
    assert np.mean(same) == pytest.approx(found["correlation"], abs=0.01)


def test_what_is_quantized(photos: Path) -> None:
    """Convolutions and linear layers; not the preprocessing, the pooling over the image, logits and softmax."""
    explainer, _ = small(Request(protocol="center", top=2), photos)
    makers = {node.output[0]: node for node in explainer.graph.node}
    types = {tensor.name: tensor.data_type for tensor in explainer.graph.initializer}

    def inputs_of(*operators: str) -> set[str]:
        nodes = [node for node in explainer.graph.node if node.op_type in operators]
        assert nodes, operators
        return {makers[name].op_type for node in nodes for name in node.input[:2] if name in makers}

    assert inputs_of("Conv") == {"DequantizeLinear"}
    for node in explainer.graph.node:
        readers = {reader.op_type for reader in explainer.graph.node if node.output[0] in reader.input}
        assert node.op_type not in ("Softmax", "Gemm") or "QuantizeLinear" not in readers
    assert onnx.TensorProto.INT8 in types.values()
    kernels = [node for node in explainer.graph.node if node.op_type == "Conv"]
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in explainer.graph.initializer}
    for node in kernels:  # a scale for each channel
        weights = makers[node.input[1]]
        assert scales[weights.input[1]].shape == scales[weights.input[0]].shape[:1]
    assert describe(explainer)["precision"] == "int8"


def test_normalization_is_folded_before(photos: Path) -> None:
    """Batch normalization behind a convolution, whose output would be rounded before it is normalized."""
    model = classifier("gemm", softmax=False)
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    conv.output[0] = "raw"
    for name, low, high in (("scale", 1, 3), ("shift", -1, 1), ("mean", -1, 1), ("variance", 0.5, 2)):
        values = np.random.default_rng(3).uniform(low, high, 6).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    node = helper.make_node("BatchNormalization", ["raw", "scale", "shift", "mean", "variance"], ["conv"], "bn")
    model.graph.node.insert(1, node)
    helper.set_model_props(model, {"camrt.name": "its own"})
    request = Request(protocol="center", top=2, preprocess=PREPROCESS)
    explainer, agreement = small(request, photos, model)
    assert "BatchNormalization" not in {node.op_type for node in explainer.graph.node}
    assert agreement.correlation is not None
    assert agreement.correlation > 0.99
    assert {entry.key: entry.value for entry in explainer.metadata_props}["camrt.name"] == "its own"


@pytest.mark.parametrize("target", ["input", "any"])
def test_classes_that_come_with_the_images(target: str, photos: Path) -> None:
    explainer, agreement = small(Request(method="gradcam", protocol="center", top=2, target=target), photos)
    assert [value.name for value in explainer.graph.input] == ["image", "target"]
    assert agreement.correlation is not None
    assert agreement.correlation > 0.99


def test_agreement_notices_disagreement(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same network agrees wholly with itself; one with other weights does not."""
    from camrt import calibration

    monkeypatch.setattr(calibration, "_quantized", lambda network, inputs: network)
    agreement = small(Request(protocol="center", top=2), photos)[1]
    assert dataclasses.replace(agreement, fp32_bytes=0) == Agreement(16, 4, pytest.approx(1), pytest.approx(1), 1, 1, 0)

    def changed(network: onnx.ModelProto, inputs: Any) -> onnx.ModelProto:
        other = onnx.ModelProto()
        other.CopyFrom(network)
        for tensor in other.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.ndim > 1:
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[::-1]), tensor.name))
        return other

    monkeypatch.setattr(calibration, "_quantized", changed)
    agreement = small(Request(protocol="center", top=2), photos)[1]
    assert agreement.same_best_class < 1
    assert agreement.correlation is None or agreement.correlation < 0.9


def test_a_quantized_network_is_refused(photos: Path) -> None:
    node = helper.make_node("QuantizeLinear", ["data", "one"], ["q"])
    model = classifier("gemm")
    model.graph.node.append(node)
    with pytest.raises(CamrtError, match="quantized already"):
        small(Request(preprocess=PREPROCESS), photos, model)


def test_a_network_that_the_tool_refuses(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime import quantization

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel\nfor it")

    monkeypatch.setattr(quantization, "quantize_static", fail)
    with pytest.raises(CamrtError, match=r"cannot quantize the network \(no kernel for it\)"):
        small(Request(protocol="center"), photos)


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["--precision", "int8"], 2, "expected --calibrate DIR"),
        (["--calibrate", "photos"], 2, "expected --precision int8 beside it"),
        (["--calibrate-count", 3], 2, "expected --precision int8 beside it"),
        (
            ["--precision", "int8", "--calibrate", "nowhere"],
            1,
            "nowhere: cannot be calibrated on: there is no such file",
        ),
        (["--precision", "int8", "--calibrate", "empty"], 1, "the folder holds no images"),
        (["--precision", "int8", "--calibrate", "one"], 1, "found 1 images that can be read, expected at least 2"),
        (["--precision", "int8", "--calibrate", "bad"], 1, "found 0 images that can be read"),
        (["--precision", "int4"], 2, "int4"),
    ],
)
def test_export_says_what_is_wrong(
    arguments: list[object], status: int, word: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "one", "bad"):
        Path(name).mkdir()
    Path("one/0.png").write_bytes((photos / "00.png").read_bytes())
    for name in "ab":
        Path(f"bad/{name}.jpg").write_bytes(b"no image")
    found, _, err = run("export", MODEL, "--protocol", "center", "-o", "out.onnx", *arguments)
    assert (found, word in " ".join(err.split())) == (status, True), err
    assert not Path("out.onnx").exists()


def test_an_explainer_is_refused(photos: Path, tmp_path: Path) -> None:
    assert run("export", MODEL, "-o", tmp_path / "one.onnx")[0] == 0
    options = ["--precision", "int8", "--calibrate", photos, "-o", tmp_path / "two.onnx"]
    status, _, err = run("export", tmp_path / "one.onnx", *options)
    assert status == 1
    assert "is an explainer already" in err
    assert "--precision int8 --calibrate" in EXAMPLES
