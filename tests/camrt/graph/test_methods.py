"""Every method against its formula in NumPy, on networks whose derivatives can be written down."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from camrt import matlab
from camrt.errors import CamrtError
from camrt.graph import explain_graph
from camrt.graph.explain import MAPS
from camrt.graph.methods import FAMILIES, METHODS, find, method
from camrt.preprocess import Preprocess, crops_of
from tests.camrt.classifiers import CHANNELS, CLASSES, SIDE, classifier, suited
from tests.camrt.graph.explainers import PREPROCESS, SIZE, images, run, with_output

OF_FEATURES = [name for name in METHODS if find(name).kind == "features"]
OF_PIXELS = [name for name in METHODS if find(name).kind == "pixels"]
TOP = 3


def inside(model: onnx.ModelProto, batch: np.ndarray, *tensors: str, **options: Any) -> list[np.ndarray]:
    """What tensors of an explainer's graph hold, beside its outputs."""
    explainer = explain_graph(model, preprocess=PREPROCESS, **options)
    return run(with_output(explainer, *tensors), {"image": batch})


def weights_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in model.graph.initializer}


def derivative(head: str, model: onnx.ModelProto, places: int) -> np.ndarray:
    """dy_c/dA of a linear head: (classes, channels, places)."""
    matrix = weights_of(model)["fc.weight"]
    if head == "gemm":  # the mean over the places, and a matrix
        return np.repeat(matrix[:, :, None], places, axis=2) / places
    assert head == "flattened"  # every place has weights of its own
    return matrix.reshape(CLASSES, CHANNELS, places)


def formula(name: str, features: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """The map of one class, as its paper writes it.

    Args:
        name: The method.
        features: (channels, places) float64.
        gradient: dy/dA, likewise.
    """
    if name == "gradcam":
        return np.maximum(gradient.mean(1) @ features, 0)
    if name == "gradcam++":
        squared = gradient**2
        below = 2 * squared + features.sum(1, keepdims=True) * gradient**3
        alpha = np.divide(squared, below, out=np.zeros_like(below), where=gradient != 0)
        return np.maximum((alpha * np.maximum(gradient, 0)).sum(1) @ features, 0)
    if name == "hirescam":
        return np.maximum((gradient * features).sum(0), 0)
    if name == "xgradcam":
        total = features.sum(1, keepdims=True)
        share = np.divide(features, total, out=np.zeros_like(features), where=total != 0)
        return np.maximum((share * gradient).sum(1) @ features, 0)
    if name == "layercam":
        return np.maximum((np.maximum(gradient, 0) * features).sum(0), 0)
    assert name == "eigencam"
    centred = (features - features.mean(1, keepdims=True)).T
    found = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    return np.maximum(found * np.sign(found @ centred.sum(1)), 0)


# A head with weights for every place has one size, and none for the whole image.
@pytest.mark.parametrize(
    ("head", "protocol"),
    [("gemm", "center"), ("gemm", "full"), ("flattened", "center"), ("flattened", "ten-crop")],
)
@pytest.mark.parametrize("name", ["gradcam", "gradcam++", "hirescam", "xgradcam", "layercam", "eigencam"])
def test_maps_are_those_of_the_formula(name: str, head: str, protocol: str) -> None:
    model, batch = classifier(head), images(2)
    _, classes, _, maps, features = inside(model, batch, MAPS, "features", method=name, protocol=protocol, top=TOP)
    crops, places = maps.shape[1], maps.shape[3] * maps.shape[4]
    features = features.reshape(2, crops, CHANNELS, places).astype(np.float64)
    gradient = derivative(head, model, places)
    wanted = np.array(
        [[[formula(name, features[n, c], gradient[k]) for k in classes[n]] for c in range(crops)] for n in range(2)]
    )
    np.testing.assert_allclose(maps.reshape(wanted.shape), wanted, atol=2e-5 * wanted.max())
    assert wanted.max() > 0


@pytest.mark.parametrize("protocol", ["center", "ten-crop"])
@pytest.mark.parametrize("name", ["gradcam", "hirescam", "xgradcam"])
@pytest.mark.parametrize("head", ["gemm", "matmul"])
def test_with_global_average_pooling_it_is_cam(head: str, name: str, protocol: str) -> None:
    """Up to the number of places, and what is cut off below 0."""
    model, batch = classifier(head), images(2)
    cam = inside(model, batch, MAPS, method="cam", protocol=protocol, top=TOP)
    other = inside(model, batch, MAPS, method=name, protocol=protocol, top=TOP)
    np.testing.assert_array_equal(other[1], cam[1])
    places = cam[3].shape[3] * cam[3].shape[4]
    wanted = np.maximum(cam[3], 0) / places
    np.testing.assert_allclose(other[3], wanted, atol=1e-5 * wanted.max())
    assert (cam[3] < 0).any()


def test_hirescam_adds_up_to_the_score() -> None:
    """Draelos and Carin 2020: with one linear layer behind the features, the places add up to y_c less the bias."""
    model = classifier("flattened", softmax=False)
    explainer = explain_graph(model, "hirescam", "center", TOP, preprocess=PREPROCESS)
    relu = next(node for node in explainer.graph.node if node.op_type == "Relu" and MAPS in _readers(explainer, node))
    _, classes, _, before, logits = run(with_output(explainer, relu.input[0], "logits"), {"image": images(2)})
    gain = logits - weights_of(model)["fc.bias"].astype(np.float32)
    wanted = np.take_along_axis(gain, classes, axis=1)
    np.testing.assert_allclose(before.sum((1, 3)), wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def _readers(model: onnx.ModelProto, node: onnx.NodeProto) -> set[str]:
    """What the nodes make that read a node's output."""
    return {each.output[0] for each in model.graph.node if node.output[0] in each.input}


def test_a_dead_map_has_no_weight() -> None:
    """All features 0 in a channel, or in all: no number that is none comes out."""
    model = classifier("flattened")
    for tensor in model.graph.initializer:
        if tensor.name.startswith("conv"):
            values = numpy_helper.to_array(tensor).copy()
            values[:] = -1 if tensor.name == "conv.bias" else 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for name in METHODS[1:]:
        if find(name).tokens:
            continue
        *_, heatmaps = inside(model, images(1), method=name, protocol="center", top=1)
        assert np.isfinite(heatmaps).all(), name
        assert not heatmaps.any(), name


def test_eigencam_of_more_places_than_channels_and_of_fewer() -> None:
    """The smaller of the two products is squared; both must give what the singular value decomposition gives."""
    for side in (SIDE, 4):  # 64 places and 6 channels; 4 places
        model = classifier("gemm", side=side)
        preprocess = Preprocess(side, side, PREPROCESS.mean)
        explainer = with_output(explain_graph(model, "eigencam", "center", preprocess=preprocess), MAPS, "features")
        *_, maps, features = run(explainer, {"image": images(2, side)})
        for n in range(2):
            wanted = formula("eigencam", features[n].reshape(CHANNELS, -1).astype(np.float64), np.zeros(0))
            np.testing.assert_allclose(maps[n, 0, 0].ravel(), wanted, atol=2e-4 * wanted.max())


# ------------------------------------------------------------------------------------------------- what they share


@pytest.mark.parametrize("name", METHODS)
def test_any_number_of_images(name: str) -> None:
    """Each image of a batch is answered as it is alone."""
    explainer = explain_graph(suited(name, batch=1), name, "ten-crop", 2, preprocess=PREPROCESS)
    batch = images(3)
    together = run(explainer, {"image": batch})
    for index in range(3):
        for whole, one in zip(together, run(explainer, {"image": batch[index : index + 1]}), strict=True):
            np.testing.assert_allclose(whole[index], one[0], rtol=1e-4, atol=1e-4 * np.abs(whole).max())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("protocol", ["center", "ten-crop", "full"])
def test_maps_are_laid_where_the_crops_were(name: str, protocol: str) -> None:
    """Heatmaps, from the maps inside the graph: enlarged with the original's imresize, mirrored back, placed, added."""
    *_, heatmaps, maps = inside(suited(name), images(1), MAPS, method=name, protocol=protocol, top=2)
    side = SIZE if protocol == "full" else SIDE
    wanted = np.zeros((2, SIZE, SIZE))
    for index, crop in enumerate(crops_of(protocol, SIZE, side)):
        for rank in range(2):
            small = maps[0, index, rank].astype(np.float64)
            large = small if find(name).kind == "pixels" else matlab.imresize(small, (side, side), method="bicubic")
            large = np.maximum(large, 0) if find(name).rectified else np.abs(large)
            large = large[:, :: -1 if crop.mirrored else 1]
            wanted[rank, crop.y : crop.y + side, crop.x : crop.x + side] += large
    times = 3 if protocol == "ten-crop" and find(name).kind != "pixels" else 1
    np.testing.assert_allclose(heatmaps[0], wanted * times, atol=1e-5 * wanted.max())


@pytest.mark.parametrize("name", METHODS)
def test_all_classes_in_one_run_are_those_of_each_alone(name: str) -> None:
    model, batch = suited(name), images(2)
    _, classes, heatmaps = inside(model, batch, method=name, protocol="center", top=CLASSES)
    for chosen in range(CLASSES):
        _, named, alone = inside(model, batch, method=name, protocol="center", target=chosen)
        assert named.tolist() == [[chosen], [chosen]]
        for n in range(2):
            rank = classes[n].tolist().index(chosen)
            np.testing.assert_allclose(alone[n, 0], heatmaps[n, rank], atol=1e-5 * heatmaps.max())


@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize("name", METHODS)
def test_opsets(name: str, opset: int) -> None:
    explainer = explain_graph(suited(name, opset=opset), name, "center", 2, preprocess=PREPROCESS)
    older = explain_graph(suited(name), name, "center", 2, preprocess=PREPROCESS)
    assert {entry.domain for entry in explainer.opset_import} == {""}
    assert explainer.opset_import[0].version == opset
    for one, other in zip(run(explainer, {"image": images(1)}), run(older, {"image": images(1)}), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("name", METHODS)
def test_weights_are_there_once(name: str) -> None:
    """The backward pass, and a second run, read the weights of the first."""
    model = suited(name)
    explainer = explain_graph(model, name, "center", 2, preprocess=PREPROCESS)
    assert {tensor.name for tensor in model.graph.initializer} <= {
        tensor.name for tensor in explainer.graph.initializer
    }
    kernel = weights_of(model)["conv.weight"]
    same_size = [tensor.name for tensor in explainer.graph.initializer if np.prod(tensor.dims) == kernel.size]
    assert same_size == ["conv.weight"]


def test_plain_onnx_runtime_runs_it(tmp_path: Path) -> None:
    """In a process that imports ONNX Runtime and NumPy, and nothing of camrt."""
    for name in METHODS:
        onnx.save(explain_graph(suited(name), name, "center", 2, preprocess=PREPROCESS), tmp_path / f"{name}.onnx")
    np.save(tmp_path / "images.npy", images(2))
    code = (
        "import sys, numpy as np, onnxruntime\n"
        f"for name in {METHODS}:\n"
        "    session = onnxruntime.InferenceSession(f'{name}.onnx', providers=['CPUExecutionProvider'])\n"
        "    outputs = session.run(None, {'image': np.load('images.npy')})\n"
        "    print(*(output.shape for output in outputs), outputs[2].max() > 0)\n"
        "print(sorted({'camrt', 'converters', 'onnx', 'torch'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    *answers, modules = done.stdout.splitlines()
    assert answers == [f"(2, {CLASSES}) (2, 2) (2, 2, {SIZE}, {SIZE}) True"] * len(METHODS)
    assert modules == "[]"


@pytest.mark.parametrize("name", ["smoothgrad", "integrated-gradients", "gradient-shap", "scorecam"])
def test_every_run_answers_the_same(name: str) -> None:
    """Also where there is noise: it is part of the graph."""
    first, second = (explain_graph(classifier("gemm"), name, "center", 2, preprocess=PREPROCESS) for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()
    one = run(first, {"image": images(2)})[2]
    np.testing.assert_array_equal(one, run(second, {"image": images(2)})[2])


def test_metadata_say_method_layer_and_target() -> None:
    explainer = explain_graph(
        classifier("gemm"),
        "smoothgrad",
        preprocess=PREPROCESS,
        target=[2, 0],
        settings={"samples": "3"},
        protocol="center",
    )
    facts = json.loads({entry.key: entry.value for entry in explainer.metadata_props}["camrt.explainer"])
    assert facts == {
        "method": "smoothgrad", "protocol": "center", "top": 2, "size": SIZE, "resize": "square", "layer": [],
        "scores": "logits", "target": [2, 0], "settings": {"samples": 3, "sigma": 0.15},
    }  # fmt: skip
    explainer = explain_graph(classifier("flattened"), "layercam", preprocess=PREPROCESS)
    facts = json.loads({entry.key: entry.value for entry in explainer.metadata_props}["camrt.explainer"])
    assert (facts["layer"], facts["target"], facts["top"], facts["protocol"]) == (["features"], "top", 4, "whole")


# ------------------------------------------------------------------------------------------------------- the registry


def test_methods_are_those_of_the_registry() -> None:
    for name in METHODS:
        entry = find(name)
        assert entry.name == name
        assert entry.maps.__module__ == f"camrt.graph.methods.{FAMILIES[name]}"
        assert ">>> " in (entry.maps.__doc__ or ""), "an example"
        assert re.search(r"(19|20)\d\d", entry.source), "a paper"
        assert entry.title


def test_names_are_there_without_numpy(repository: Path) -> None:
    code = (
        "import sys; from camrt.graph.methods import METHODS; import camrt.graph\n"
        "print(len(METHODS), sorted({'numpy', 'onnx', 'onnxruntime', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout == f"{len(METHODS)} []\n"


def test_a_method_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from camrt.graph import methods

    monkeypatch.setattr(methods._methods, "_entries", dict(methods._methods._entries))

    @method("mean-activation", kind="features", title="Mean", gradients=False, top=1)
    def mean_activation(layer: Any, *, factor: float = 2.0) -> Any:
        return layer.features.mean(2) * factor

    *_, maps, features = inside(
        classifier("gemm"), images(2), MAPS, "features", method="mean-activation", protocol="center",
        settings={"factor": 3},
    )  # fmt: skip
    np.testing.assert_allclose(maps[:, 0, 0], 3 * features.mean(1), rtol=1e-5)
    with pytest.raises(CamrtError, match="second method 'mean-activation'"):
        method("mean-activation", kind="features", title="")(mean_activation)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "grad-cam"}, "found the method 'grad-cam', expected one of cam, gradcam, "),
        ({"method": "gradcam", "settings": {"samples": 3}}, "the setting 'samples' of gradcam, expected none"),
        ({"method": "smoothgrad", "settings": {"sample": 3}}, "expected one of samples=25, sigma=0.15"),
        ({"method": "smoothgrad", "settings": {"samples": "many"}}, "found smoothgrad's samples 'many', expected int"),
        ({"method": "smoothgrad", "settings": {"samples": 2.5}}, "expected int"),
        ({"method": "smoothgrad", "settings": {"samples": True}}, "expected int"),
        ({"method": "smoothgrad", "settings": {"samples": 0}}, "expected at least 1"),
        ({"method": "smoothgrad", "settings": {"sigma": -1}}, "0 or more"),
        ({"method": "smoothgrad", "settings": {"sigma": "nan"}}, "0 or more"),
        ({"method": "integrated-gradients", "settings": {"steps": 0}}, "expected at least 1"),
        ({"method": "integrated-gradients", "settings": {"baseline": "white"}}, "black or mean"),
        ({"method": "integrated-gradients", "settings": {"values": "both"}}, "magnitude or signed"),
        ({"method": "gradient-shap", "settings": {"samples": 0}}, "expected at least 1"),
        ({"method": "gradient-shap", "settings": {"values": "both"}}, "magnitude or signed"),
        ({"method": "gradient-shap", "settings": {"baseline": "white"}}, "black or mean"),
        ({"method": "finercam", "settings": {"others": 0}}, "expected 0 or more, and at least 1"),
        ({"method": "finercam", "target": "sum"}, "found one score to explain, .* use --method gradcam"),
        ({"method": "scorecam", "settings": {"channels": -1}}, "expected 0 .all. or more"),
    ],
)  # fmt: skip
def test_wrong_settings(options: dict[str, Any], words: str) -> None:
    with pytest.raises(CamrtError, match=words):
        explain_graph(classifier("gemm"), preprocess=PREPROCESS, **options)


def test_constants_are_not_copied_for_a_second_run() -> None:
    """Weights in Constant nodes, as some exporters write them."""
    model = classifier("gemm")
    plain = run(explain_graph(model, "smoothgrad", preprocess=PREPROCESS, protocol="center"), {"image": images(1)})[2]
    weights = list(model.graph.initializer)
    del model.graph.initializer[:]
    nodes = [onnx.helper.make_node("Constant", [], [tensor.name], tensor.name, value=tensor) for tensor in weights]
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    explainer = explain_graph(model, "smoothgrad", preprocess=PREPROCESS, protocol="center")
    assert explainer.SerializeToString().count(numpy_helper.to_array(weights[0]).tobytes()) == 1
    np.testing.assert_array_equal(run(explainer, {"image": images(1)})[2], plain)


def test_functions_of_the_model_are_looked_into() -> None:
    """Exporters may write a layer as a function of the model."""
    model = classifier("flattened")
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    body = [onnx.helper.make_node("Relu", ["x"], ["inner"]), onnx.helper.make_node("Identity", ["inner"], ["y"])]
    opsets = [onnx.helper.make_opsetid("", 17)]
    model.functions.append(onnx.helper.make_function("own", "Rectify", ["x"], ["y"], body, opsets))
    model.opset_import.append(onnx.helper.make_opsetid("own", 1))
    relu.op_type, relu.domain = "Rectify", "own"
    for name in ("gradcam", "guided-backprop"):
        options = {"layer": "conv"} if name == "gradcam" else {}
        found, wanted = (
            run(explain_graph(each, name, "center", 2, preprocess=PREPROCESS, **options), {"image": images(1)})
            for each in (model, classifier("flattened"))
        )
        np.testing.assert_allclose(found[2], wanted[2], rtol=1e-5)


@pytest.mark.parametrize("name", ["gradcam", "smoothgrad", "scorecam"])
def test_an_old_opset(name: str) -> None:
    old, new = (classifier("gemm", softmax=False, opset=opset) for opset in (11, 17))
    found, wanted = (
        run(explain_graph(each, name, preprocess=PREPROCESS, protocol="center"), {"image": images(1)})
        for each in (old, new)
    )
    np.testing.assert_allclose(found[2], wanted[2], rtol=1e-4, atol=1e-5 * wanted[2].max())
