"""The explainer graph, against camrt.matlab on what plain ONNX Runtime gives of the same network."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from camrt import matlab
from camrt.errors import CamrtError
from camrt.graph import explain_graph
from camrt.graph.head import find_head
from camrt.graph.view import GraphView
from camrt.preprocess import PRESETS, Preprocess, crops_of
from tests.camrt.classifiers import CHANNELS, CLASSES, SIDE, WITH_HEAD, classifier
from tests.camrt.graph.explainers import PREPROCESS, SIZE, images, run, with_output


def expected(
    model: onnx.ModelProto, batch: np.ndarray, preprocess: Preprocess, protocol: str, top: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, classes and heatmaps by plain loops: cut, run, weigh, enlarge, mirror back, place, add."""
    weights = find_head(GraphView(model)).weights
    features = find_head(GraphView(model)).features
    output = model.graph.output[0].name
    size, scores, classes, heatmaps = preprocess.size, [], [], []
    for image in batch:
        planes = image[:, :, ::-1] if preprocess.channels == "BGR" else image
        planes = (planes.astype(np.float32) - preprocess.mean) * preprocess.scale
        side = size if protocol in ("full", "whole") else preprocess.crop
        last = size - side
        squares = {"ten-crop": [(0, 0), (last, 0), (0, last), (last, last), ((last + 1) // 2, (last + 1) // 2)]}
        places = squares.get(protocol, [((last + 1) // 2, (last + 1) // 2)])
        mirrored = (False,) if protocol in ("center", "whole") else (False, True)
        views = [(y, x, mirror) for mirror in mirrored for y, x in places]
        cuts = [planes[y : y + side, x : x + side][:, :: -1 if m else 1] for y, x, m in views]
        maps, logits = [], []
        for cut in cuts:
            found, raw = run(
                with_output(model, features),
                {"data": cut.transpose(2, 0, 1)[None].astype(np.float32)},
                [features, output],
            )
            logits.append(raw[0] if output == "prob" else np.exp(raw[0]) / np.exp(raw[0]).sum())
            maps.append(np.tensordot(weights, found[0], 1))
        scores.append(np.mean(logits, axis=0))
        classes.append(np.argsort(-scores[-1])[:top])
        merged = np.zeros((top, size, size))
        for (y, x, mirror), each in zip(views, maps, strict=True):
            for rank, chosen in enumerate(classes[-1]):
                large = np.abs(matlab.imresize(each[chosen].astype(np.float64), (side, side), method="bicubic"))
                merged[rank, y : y + side, x : x + side] += large[:, :: -1 if mirror else 1]
        heatmaps.append(merged * (3 if protocol == "ten-crop" else 1))
    return np.array(scores), np.array(classes), np.array(heatmaps)


@pytest.mark.parametrize("protocol", ["whole", "ten-crop", "center", "full"])
@pytest.mark.parametrize("head", WITH_HEAD)
def test_maps_of_every_head(head: str, protocol: str) -> None:
    model, batch, wants = classifier(head), images(2), PREPROCESS
    if protocol == "whole":
        batch, wants = batch[:, :SIDE, :SIDE], dataclasses.replace(PREPROCESS, size=SIDE)
    reference = classifier(head, side=SIZE) if protocol == "full" else model
    scores, classes, heatmaps = expected(reference, batch, wants, protocol, top=3)
    explainer = explain_graph(model, protocol=protocol, top=3, preprocess=PREPROCESS)
    found = run(explainer, {"image": batch})
    np.testing.assert_allclose(found[0], scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[1], classes)
    assert found[1].dtype == np.int64
    np.testing.assert_allclose(found[2], heatmaps, atol=1e-5 * heatmaps.max())


def test_merged_maps_are_those_of_the_original() -> None:
    """Ten crops of random features through the graph's own merging, against mergeTenCrop.m's oracle."""
    model, batch = classifier("gemm"), images(1, 256)
    preprocess = Preprocess(size=256, crop=SIDE, mean=(104.0, 117.0, 123.0))
    with pytest.raises(CamrtError, match="expected a crop"):
        Preprocess(size=8, crop=SIDE, mean=(0.0, 0.0, 0.0))
    explainer = with_output(explain_graph(model, top=2, preprocess=preprocess, protocol="ten-crop"), "features")
    _, classes, heatmaps, features = run(explainer, {"image": batch})
    cams = matlab.return_cam_map(features, find_head(GraphView(model)).weights[classes[0]])
    for rank in range(2):
        large = np.stack(
            [matlab.imresize(cam, (SIDE, SIDE), method="bicubic") for cam in cams[:, rank].astype(np.float64)]
        )
        merged = matlab.merge_ten_crops(large)
        np.testing.assert_allclose(heatmaps[0, rank], merged, atol=1e-5 * merged.max())


@pytest.mark.parametrize("head", WITH_HEAD)
def test_any_number_of_images(head: str) -> None:
    """Each image of a batch is answered as it is alone, also where the exporter froze a batch of 1."""
    model, batch = classifier(head, batch=1), images(3)
    explainer = explain_graph(model, top=2, preprocess=PREPROCESS, protocol="ten-crop")
    together = run(explainer, {"image": batch})
    for index in range(3):
        alone = run(explainer, {"image": batch[index : index + 1]})
        for whole, one in zip(together, alone, strict=True):
            np.testing.assert_allclose(whole[index], one[0], rtol=1e-4, atol=1e-4 * np.abs(whole).max())


def test_logits_become_probabilities() -> None:
    scores, *_ = run(
        explain_graph(classifier("gemm", softmax=False), top=2, preprocess=PREPROCESS, protocol="ten-crop"),
        {"image": images(2)},
    )
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_opsets(opset: int) -> None:
    model = classifier("gemm", opset=opset)
    older = run(
        explain_graph(classifier("gemm"), top=2, preprocess=PREPROCESS, protocol="ten-crop"), {"image": images(1)}
    )
    explainer = explain_graph(model, top=2, preprocess=PREPROCESS, protocol="ten-crop")
    assert explainer.opset_import[0].version == opset
    for one, other in zip(run(explainer, {"image": images(1)}), older, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_old_opset_is_upgraded() -> None:
    model, old = classifier("gemm", softmax=False), classifier("gemm", softmax=False, opset=11)
    found = run(explain_graph(old, top=2, preprocess=PREPROCESS, protocol="ten-crop"), {"image": images(1)})
    for one, other in zip(
        found,
        run(explain_graph(model, top=2, preprocess=PREPROCESS, protocol="ten-crop"), {"image": images(1)}),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_interface_and_metadata() -> None:
    model = classifier(
        "gemm", metadata={"camrt.labels": '["a", "b", "c", "d"]', "camrt.preprocess": PREPROCESS.as_json()}
    )
    before = model.SerializeToString()
    explainer = explain_graph(model, top=2, protocol="ten-crop")
    assert model.SerializeToString() == before, "the classifier is not changed"
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*explainer.graph.input, *explainer.graph.output)
    }
    assert shapes == {
        "image": ["N", SIZE, SIZE, 3],
        "scores": ["N", CLASSES],
        "classes": ["N", 2],
        "heatmaps": ["N", 2, SIZE, SIZE],
    }
    assert {entry.domain for entry in explainer.opset_import} == {""}
    properties = {entry.key: entry.value for entry in explainer.metadata_props}
    assert json.loads(properties["camrt.explainer"]) == {
        "method": "cam", "protocol": "ten-crop", "top": 2, "size": SIZE, "resize": "square",
        "features": "features", "classifier": "fc",
        "reason": "the network ends in global average pooling and one linear layer",
    }  # fmt: skip
    assert json.loads(properties["camrt.labels"]) == ["a", "b", "c", "d"]


def test_the_protocol_is_the_models_else_the_whole_image() -> None:
    def facts(method: str, stated: str | None) -> tuple[str, int]:
        model = classifier("gemm", metadata={} if stated is None else {"camrt.protocol": stated})
        explainer = explain_graph(model, method, top=1, preprocess=PREPROCESS)
        found = json.loads({entry.key: entry.value for entry in explainer.metadata_props}["camrt.explainer"])
        assert run(explainer, {"image": images(1, found["size"])})[2].shape == (1, 1, *[found["size"]] * 2)
        return found["protocol"], found["size"]

    for method in ("cam", "gradcam"):
        assert facts(method, None) == ("whole", SIDE)
        assert facts(method, "ten-crop") == ("ten-crop", SIZE)
    for method in ("scorecam", "input-gradient"):  # which would take ten times as long
        assert facts(method, "ten-crop") == ("whole", SIDE)
        assert facts(method, "center") == ("center", SIZE)


def test_names_of_the_network_step_aside() -> None:
    """A network that calls its own tensors image, scores, classes, heatmaps."""
    model = classifier("gemm")
    plain = run(explain_graph(model, top=2, preprocess=PREPROCESS, protocol="ten-crop"), {"image": images(2)})
    for old, new in (("data", "image"), ("prob", "scores"), ("features", "heatmaps"), ("flat", "classes")):
        for value in (*model.graph.input, *model.graph.output):
            value.name = new if value.name == old else value.name
        for node in model.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]
    for features in (None, "heatmaps"):
        explainer = explain_graph(model, top=2, preprocess=PREPROCESS, features=features, protocol="ten-crop")
        for one, other in zip(run(explainer, {"image": images(2)}), plain, strict=True):
            np.testing.assert_array_equal(one, other)


def test_mean_image_takes_the_place_of_the_mean() -> None:
    mean = np.broadcast_to(np.reshape(PREPROCESS.mean, (3, 1, 1)), (3, SIZE, SIZE)).astype(np.float32)
    model = classifier("gemm")
    flat = run(explain_graph(model, top=2, preprocess=PREPROCESS, protocol="ten-crop"), {"image": images(1)})
    same = Preprocess(SIZE, SIDE, (0.0, 0.0, 0.0), mean_image=mean)
    for one, other in zip(
        run(explain_graph(model, top=2, preprocess=same, protocol="ten-crop"), {"image": images(1)}), flat, strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())
    ramp = mean + np.linspace(0, 50, SIZE, dtype=np.float32)
    other = Preprocess(SIZE, SIDE, (0.0, 0.0, 0.0), mean_image=ramp)
    assert not np.allclose(
        run(explain_graph(model, top=2, preprocess=other, protocol="ten-crop"), {"image": images(1)})[2],
        flat[2],
        rtol=1e-3,
    )


def test_torchvision_preset_is_what_torchvision_does() -> None:
    """(x / 255 - mean) / std in RGB, cut out of the graph's own nodes."""
    preset = PRESETS["torchvision"].cropped(SIDE)
    explainer = explain_graph(classifier("gemm"), protocol="center", top=1, preprocess=preset)
    explainer = with_output(explainer, "data")
    explainer.graph.output[-1].CopyFrom(
        onnx.helper.make_tensor_value_info("data", onnx.TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
    )
    image = images(1, 256)
    data = run(explainer, {"image": image}, ["data"])[0]
    first = (257 - SIDE) // 2
    cut = image[0, first : first + SIDE, first : first + SIDE] / 255
    wanted = (cut - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(data[0], wanted.transpose(2, 0, 1), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "nonsense"}, "found the method 'nonsense'"),
        ({"protocol": "nine-crop"}, "expected one of whole, ten-crop, center, full"),
        ({"top": 0}, "expected 1 to 4"),
        ({"top": 5}, "expected 1 to 4"),
        ({"features": "missing"}, "found the layer 'missing', expected a tensor of the model"),
        ({"features": "flat"}, "expected N x channels x height x width"),
        ({"features": "flat", "method": "cam"}, "expected 4: N x channels x height x width"),
        ({"classifier": "conv"}, "not in 'conv'"),
        ({"preprocess": None}, "--preprocess caffe or torchvision"),
        ({"preprocess": "keras"}, "expected one of caffe, torchvision"),
        ({"preprocess": PRESETS["caffe"]}, "camrt export --crop 16"),
    ],
)  # fmt: skip
def test_wrong_arguments(change: dict[str, object], words: str) -> None:
    arguments: dict[str, object] = {"top": 2, "preprocess": PREPROCESS, **change}
    with pytest.raises(CamrtError, match=words):
        explain_graph(classifier("gemm"), **arguments)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ("{", "--preprocess"),
        ("[]", "--preprocess"),
        ('{"size": 20}', "'crop'"),
        ('{"size": 20, "crop": 16, "mean": [1, 2], "channels": "BGR"}', "--mean"),
        ('{"size": 20, "crop": 16, "mean": [1, 2, 3], "channels": "GRB"}', "GRB"),
    ],
)
def test_wrong_metadata(metadata: str, words: str) -> None:
    with pytest.raises(CamrtError, match=words):
        explain_graph(classifier("gemm", metadata={"camrt.preprocess": metadata}), top=2)


@pytest.mark.parametrize(
    ("head", "words"),
    [("two_layers", "before its linear layer 'fc2' .Gemm. is 'relu2' .Relu."),
     ("flattened", "before its linear layer 'fc' .Gemm. is 'relu' .Relu., expected a global average pooling")],
)  # fmt: skip
def test_classifier_without_head_is_refused_with_the_reason(head: str, words: str) -> None:
    with pytest.raises(CamrtError, match=words) as caught:
        explain_graph(classifier(head), "cam", top=2, preprocess=PREPROCESS)
    assert "--method gradcam" in str(caught.value)


def test_explainer_of_an_explainer_is_refused() -> None:
    explainer = explain_graph(classifier("gemm"), top=2, preprocess=PREPROCESS)
    with pytest.raises(CamrtError, match="explainer already"):
        explain_graph(explainer)


def test_metadata_name_the_head() -> None:
    model = classifier("gemm", metadata={"camrt.features": "features", "camrt.classifier": "fc"})
    head = find_head(GraphView(model), "features", "fc")
    assert (head.features, head.classifier, head.weights.shape) == ("features", "fc", (CLASSES, CHANNELS))


def test_ten_crops_cover_corners_and_centre() -> None:
    crops = crops_of("ten-crop", 256, 224)
    assert [(crop.y, crop.x) for crop in crops[:5]] == [(0, 0), (32, 0), (0, 32), (32, 32), (16, 16)]
    assert [crop.mirrored for crop in crops] == [False] * 5 + [True] * 5


def test_repository_has_no_custom_operators(tmp_path: Path) -> None:
    """A file of the explainer runs in plain ONNX Runtime."""
    path = tmp_path / "explainer.onnx"
    onnx.save(explain_graph(classifier("gemm"), top=2, preprocess=PREPROCESS, protocol="ten-crop"), path)
    outputs = onnxruntime.InferenceSession(path).run(None, {"image": images(1)})
    assert [output.shape for output in outputs] == [(1, CLASSES), (1, 2), (1, 2, SIZE, SIZE)]
