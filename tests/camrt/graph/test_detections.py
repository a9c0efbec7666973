"""Detections as targets: chosen as NumPy chooses them, and differentiated as PyTorch differentiates the same score."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from camrt import Explainer, Preprocess
from camrt.errors import CamrtError
from camrt.graph import explain_graph
from camrt.graph.explain import MAPS
from camrt.graph.methods.context import GRADIENT
from tests.camrt.graph.detectors import CLASSES, KINDS, PREPROCESS, SIDE, STRIDES, detector, exported

torch = pytest.importorskip("torch", reason="PyTorch is not installed: detections are not compared with its gradients")
LAYOUTS = {"ssd": "boxes=boxes,scores=scores,unit=shares,background=0"}
TOP = 3


def images(count: int = 2) -> np.ndarray:
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 255, (count, 8, 8, 3))
    return np.clip(np.kron(coarse, np.ones((1, 8, 8, 1))) + rng.normal(0, 20, (count, SIDE, SIDE, 3)), 0, 255).astype(
        np.uint8
    )


@functools.cache
def model_of(kind: str) -> onnx.ModelProto:
    return exported(detector(kind), kind)


def tensor_of(pixels: np.ndarray) -> Any:
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255)


def candidates(kind: str, outputs: Any) -> tuple[Any, Any, Any]:
    """Boxes (N, P, 4) as corners in shares, probabilities and what is differentiated, (N, P, K), in PyTorch."""
    if kind == "ssd":
        return outputs[0], outputs[1], outputs[1].log()  # before the Softmax, up to what all classes have in common
    if kind == "detr":
        logits, boxes = outputs
        return corners(boxes), logits.softmax(2), logits
    if kind == "yolov8":
        outputs = outputs.transpose(1, 2)
    boxes, scores = outputs[..., :4], outputs[..., 4:]
    if kind == "yolov5":
        scores = scores[..., :1] * scores[..., 1:]
        return corners(boxes / SIDE), scores, scores
    return corners(boxes if kind == "rtdetr" else boxes / SIDE), scores, scores.logit()


def corners(boxes: Any) -> Any:
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)


def overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (n, 4) and (m, 4)."""
    low, high = np.maximum(one[:, None, :2], other[None, :, :2]), np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(2)
    areas = [np.maximum(each[:, 2:] - each[:, :2], 0).prod(1) for each in (one, other)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-12)


def suppressed(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> list[int]:
    """Greedy non-maximum suppression, each class on its own: the candidates that are left, the best first."""
    left, kept = list(np.argsort(-scores, kind="stable")), []
    while left:
        best = left.pop(0)
        kept.append(int(best))
        others = overlap(boxes[[best]], boxes[left])[0] if left else np.zeros(0)
        left = [
            one for one, shared in zip(left, others, strict=True) if shared <= 0.45 or classes[one] != classes[best]
        ]
    return kept


def run(explainer: onnx.ModelProto, boxes: Any = None, classes: Any = None, *tensors: str) -> dict[str, np.ndarray]:
    extended = onnx.ModelProto()
    extended.CopyFrom(explainer)
    extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(extended.SerializeToString(), options, providers=["CPUExecutionProvider"])
    count = session.get_inputs()[1].shape[1]
    feeds = {
        "image": images(),
        "box": np.zeros((2, count, 4), np.float32) if boxes is None else np.asarray(boxes, np.float32),
        "target": np.full((2, count), -1) if classes is None else np.asarray(classes),
    }
    return dict(zip([one.name for one in session.get_outputs()], session.run(None, feeds), strict=True))


def explainer_of(model: onnx.ModelProto, kind: str, **options: Any) -> onnx.ModelProto:
    given = {"top": TOP, "detections": LAYOUTS.get(kind), "preprocess": PREPROCESS, **options}
    return explain_graph(model, **given)


def chosen_by_numpy(boxes: np.ndarray, scores: np.ndarray, background: int | None = None) -> list[tuple[int, int]]:
    """The detections of an image, the best first: candidate and class."""
    ranked = scores.copy()
    if background is not None:
        ranked[:, background] = -1
    classes = ranked.argmax(1)
    return [(each, int(classes[each])) for each in suppressed(boxes, ranked.max(1), classes)]


BACKGROUND = {"ssd": 0, "detr": CLASSES}


@pytest.fixture(scope="module", params=KINDS)
def net(request: pytest.FixtureRequest) -> tuple[str, Any, onnx.ModelProto]:
    module = detector(request.param)
    return request.param, module, exported(module, request.param)


def found_by_torch(kind: str, module: Any) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        boxes, scores, _ = candidates(kind, module(tensor_of(images())))
    return boxes.numpy(), scores.numpy()


def test_the_best_detections(net: tuple[str, Any, onnx.ModelProto]) -> None:
    kind, module, model = net
    found = run(explainer_of(model, kind, method="eigencam"))
    boxes, scores = found_by_torch(kind, module)
    for n in range(2):
        wanted = chosen_by_numpy(boxes[n], scores[n], BACKGROUND.get(kind))[:TOP]
        assert found["classes"][n].tolist() == [number for _, number in wanted]
        np.testing.assert_allclose(found["scores"][n], [scores[n, each, number] for each, number in wanted], rtol=1e-4)
        np.testing.assert_allclose(found["detections"][n], [boxes[n, each] for each, _ in wanted], atol=1e-4)


def test_the_detection_that_overlaps_a_box_most(net: tuple[str, Any, onnx.ModelProto]) -> None:
    """Of all classes, of a given one, and by its rank in that class, in one graph."""
    kind, module, model = net
    explainer = explainer_of(model, kind, method="eigencam")
    boxes, scores = found_by_torch(kind, module)
    asked = np.array([[0.1, 0.2, 0.5, 0.6], [0.4, 0.3, 0.9, 0.8]])
    number = 2
    given = [[asked[n], asked[n], [2, 0, 0, 0]] for n in range(2)]
    found = run(explainer, given, [[-1, number, number]] * 2)
    for n in range(2):
        of_all = chosen_by_numpy(boxes[n], scores[n], BACKGROUND.get(kind))
        of_one = suppressed(boxes[n], scores[n, :, number], np.zeros(len(boxes[n])))
        nearest = overlap(asked[[n]], boxes[n][[each for each, _ in of_all]])[0].argmax()
        nearest_of_one = overlap(asked[[n]], boxes[n][of_one])[0].argmax()
        wanted = [of_all[nearest], (of_one[nearest_of_one], number), (of_one[1], number)]
        assert found["classes"][n].tolist() == [each for _, each in wanted]
        np.testing.assert_allclose(found["detections"][n], [boxes[n, each] for each, _ in wanted], atol=1e-4)
        np.testing.assert_allclose(found["scores"][n], [scores[n, each, k] for each, k in wanted], rtol=1e-4)


@pytest.mark.parametrize("name", ["gradcam", "hirescam", "layercam", "input-gradient"])
def test_gradients(net: tuple[str, Any, onnx.ModelProto], name: str) -> None:
    """Of the logit of the chosen candidate, by the deepest scale or the image; the place of the maximum has no part."""
    kind, module, model = net
    if kind == "ssd" and name != "input-gradient":
        pytest.skip("its logits are compared by the image: the logarithm of a probability has another derivative")
    explainer = explainer_of(model, kind, method=name, **({} if name == "input-gradient" else {"layer": middle(model)}))
    found = run(explainer, None, None, *([] if name == "input-gradient" else [MAPS]))
    boxes, scores = found_by_torch(kind, module)
    x = tensor_of(images()).requires_grad_()
    scales = module.scales(x)
    outputs = module.head(scales)
    logits = ssd_logits(module, scales) if kind == "ssd" else candidates(kind, outputs)[2]
    for n in range(2):
        for rank, (each, number) in enumerate(chosen_by_numpy(boxes[n], scores[n], BACKGROUND.get(kind))[:TOP]):
            by = x if name == "input-gradient" else scales[1]
            (gradient,) = torch.autograd.grad(logits[n, each, number], by, retain_graph=True)
            g, features = gradient[n], scales[1][n].detach()
            wanted = {
                "gradcam": lambda g=g, A=features: (g.mean((1, 2), keepdim=True) * A).sum(0).relu(),
                "hirescam": lambda g=g, A=features: (g * A).sum(0).relu(),
                "layercam": lambda g=g, A=features: (g.relu() * A).sum(0).relu(),
                "input-gradient": lambda g=g: g.abs().amax(0),
            }[name]().numpy()
            ours = found["heatmaps"][n, rank] if name == "input-gradient" else found[MAPS][n, 0, rank]
            np.testing.assert_allclose(ours, wanted, atol=1e-3 * max(1e-9, wanted.max()))


def ssd_logits(module: Any, scales: list[Any]) -> Any:
    rows = [module.cls[n](each).permute(0, 2, 3, 1).flatten(1, 2) for n, each in enumerate(scales)]
    return torch.cat(rows, 1)


def middle(model: onnx.ModelProto) -> str:
    """The output of the second scale: the product that SiLU ends in, of 16 x 4 x 4."""
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    products = [node.output[0] for node in model.graph.node if node.op_type == "Mul"]
    return next(name for name in products if shapes.get(name, [])[1:] == [16, 4, 4])


def test_the_default_layers_are_those_that_boxes_and_classes_share(net: tuple[str, Any, onnx.ModelProto]) -> None:
    kind, module, model = net
    explainer = explainer_of(model, kind)
    facts = json.loads({one.key: one.value for one in explainer.metadata_props}["camrt.explainer"])
    assert (facts["method"], facts["explained"], facts["target"]) == ("hirescam", "box", "box")
    found = run(explainer, None, None, *facts["layer"])
    with torch.no_grad():
        scales = module.scales(tensor_of(images()))
    if kind in ("detr", "rtdetr"):  # queries have no positions: the last that everything passes
        scales = scales[1:2]
    assert len(facts["layer"]) == len(scales)
    for name, wanted in zip(facts["layer"], scales, strict=True):
        np.testing.assert_allclose(found[name].reshape(wanted.shape), wanted.numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ["scorecam", "ablation-cam", "recipro-cam", "smoothgrad", "fullgrad", "eigengradcam"])
@pytest.mark.parametrize("kind", ["yolov5", "yolov8"])
def test_other_methods(kind: str, name: str) -> None:
    explainer = explainer_of(model_of(kind), kind, method=name, top=2)
    maps = run(explainer)["heatmaps"]
    assert np.isfinite(maps).all()
    assert maps.max((2, 3)).min() > 0


def test_a_frozen_batch_is_freed(net: tuple[str, Any, onnx.ModelProto]) -> None:
    kind, module, model = net
    frozen = exported(module, kind, batch=None)
    for mine, other in zip(
        run(explainer_of(frozen, kind)).values(), run(explainer_of(model, kind)).values(), strict=True
    ):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- Explainer


def photo() -> np.ndarray:
    return np.kron(images(1)[0], np.ones((2, 3, 1), np.uint8))  # 192 x 128: not square


def test_explainer() -> None:
    model = model_of("yolov8")
    labels = ["cat", "dog", "cup", "bus", "owl"]
    options: dict[str, Any] = {"preprocess": PREPROCESS, "labels": labels}
    explainer = Explainer(model, top=3, **options)
    assert (explainer.method, explainer.explained, explainer.target) == ("hirescam", "box", "box")
    found = explainer(photo())
    assert found.detections is not None
    assert found.detections.shape == (3, 4)
    assert sorted(found.scores.tolist(), reverse=True) == found.scores.tolist()
    second = found.detections[1]
    text = ",".join(f"{each:.1f}" for each in second)
    for target, name in ((f"box:{text}", ""), (f"box:{text}:{found.labels[1]}", found.labels[1]), ("box:2", "")):
        one = Explainer(model, target=target, **options)(photo())
        assert len(one) == 1
        assert one.detections is not None
        np.testing.assert_allclose(one.detections[0], second, atol=0.1)
        np.testing.assert_allclose(one.heatmaps[0], found.heatmaps[1], atol=1e-5)
        assert one.labels == (name or found.labels[1],)
        again = explainer(photo(), target=[target, "box:best"])  # the graph takes them with each image
        assert again.labels[:2] == (found.labels[1], found.labels[0])
    record = found.as_dict("best")
    for one, box in zip(record["top"], found.detections, strict=True):
        x, y, width, height = one["detection"]
        clipped = np.clip(box, 0, [192, 128, 192, 128])
        np.testing.assert_allclose([x, y, x + width, y + height], clipped, atol=0.51)
    drawn = found.overlay(0, style_of())
    assert (drawn != found.overlay(0)).any()
    assert list(explainer.map([photo(), photo()]))[1].labels == found.labels


def style_of() -> Any:
    from camrt.render import Style

    return Style(caption=False)


def test_a_saved_explainer_knows_its_box(tmp_path: Any) -> None:
    model = model_of("yolov5")
    graph = explain_graph(model, target=["box:10,20,90,100:3", "box:best"], preprocess=PREPROCESS)
    onnx.save(graph, tmp_path / "explainer.onnx")
    explainer = Explainer(tmp_path / "explainer.onnx")
    assert explainer.target == ["box:10,20,90,100:3", "box:best"]
    assert explainer(photo()).classes[0] == 3
    other = Explainer(tmp_path / "explainer.onnx", target="box:2")
    assert other(photo()).detections is not None
    assert len(other(photo())) == 2  # and the best that is left


def test_detections_whose_outputs_do_not_tell() -> None:
    model = model_of("ssd")
    with pytest.raises(CamrtError, match=r"'boxes' \? x 84 x 4, 'scores' \? x 84 x 5, .*no known.*--detections yolov5"):
        Explainer(model, target="box:best", preprocess=PREPROCESS)
    assert Explainer(model, preprocess=PREPROCESS, detections=LAYOUTS["ssd"])(photo()).classes[0] != 0
    stated = onnx.ModelProto()
    stated.CopyFrom(model)
    onnx.helper.set_model_props(
        stated,
        {"camrt.detections": json.dumps({"boxes": "boxes", "scores": "scores", "unit": "shares", "background": 0})},
    )
    ours, told = (
        Explainer(each, preprocess=PREPROCESS, detections=said)(photo())
        for each, said in ((stated, None), (model, LAYOUTS["ssd"]))
    )
    np.testing.assert_array_equal(ours.heatmaps, told.heatmaps)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "3", "[" * 100_000, '{"boxes": "boxes"}', '{"boxes": "boxes", "scores": ["scores"]}',
        '{"boxes": "boxes", "scores": "nothing"}', '{"boxes": "boxes", "scores": "scores", "form": "round"}',
        '{"boxes": "boxes", "scores": "scores", "background": 1e400}',
        '{"boxes": "boxes", "scores": "scores", "background": 99}',
        '{"boxes": "boxes", "scores": "scores", "background": "x"}', '{"boxes": "scores", "scores": "boxes"}',
    ],
)  # fmt: skip
def test_metadata_that_cannot_be_used(text: str) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(model_of("ssd"))
    onnx.helper.set_model_props(broken, {"camrt.detections": text})
    with pytest.raises(
        CamrtError, match=r"metadata camrt\.detections|expected a tensor|the background 99|expected N x"
    ):
        explain_graph(broken, preprocess=PREPROCESS)


def test_free_sizes_are_those_of_the_preprocessing() -> None:
    model = exported(detector("yolov5"))
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "side"
    for mine, other in zip(
        run(explainer_of(model, "yolov5")).values(),
        run(explainer_of(model_of("yolov5"), "yolov5")).values(),
        strict=True,
    ):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "box:1,2,3"}, "expected box, box:best, box:2 .* or box:LEFT,TOP,RIGHT,BOTTOM"),
        ({"target": "box:a,b,c,d"}, "expected box, box:best"),
        ({"target": "box:10,10,5,20"}, "expected left < right and top < bottom"),
        ({"target": "box:nan,1,2,3"}, "expected box, box:best"),
        ({"target": "box:0"}, "expected a rank of 1 to 100"),
        ({"target": "box:101"}, "expected a rank of 1 to 100"),
        ({"target": "box:best:"}, "expected box, box:best"),
        ({"target": "boxes:best"}, "the model has no output of scores"),
        ({"target": ["box:best", 3]}, "found the target 3, expected box"),
        ({"target": ["box:1", "box:2"], "top": 1}, "found 2 boxes, expected 1 to 1"),
        ({"target": "box", "top": 0}, "found top 0, expected 1 or more"),
        ({"target": 3, "detections": "yolov8"}, "expected a box, as box:best"),
        ({"target": "box", "scores": "output0"}, "expected one of both"),
        ({"target": "box", "method": "cam"}, "use --method hirescam"),
        ({"target": "box", "method": "finercam"}, "which finercam compares"),
        ({"target": "box", "protocol": "ten-crop"}, "found the protocol 'ten-crop', expected 'whole'"),
        ({"target": "box", "smooth": "augment"}, "its candidates are others"),
        ({"target": "box", "detections": "yolo8"}, "Did you mean 'yolov8'"),
        ({"target": "box", "detections": "boxes=output0"}, "expected boxes=TENSOR and scores=TENSOR"),
        ({"target": "box", "detections": "boxes=output0,scores=outpot0"}, "Did you mean 'output0'"),
        ({"target": "box", "detections": "boxes=output0,scores=output0,form=round"}, "with 'form=round'"),
        ({"target": "box", "detections": "boxes=output0,scores=output0,background=x"}, "the number of a class"),
        ({"target": "box", "detections": "boxes=output0,scores=output0,background=9"}, "found the background 9"),
        ({"target": "box", "detections": "boxes=/stem/stem.0/stem.0.1/Mul_output_0,scores=output0"}, "of shape"),
        ({"labels": ["a"]}, "found 1 names, expected one for each of the 5 classes"),
    ],
)  # fmt: skip
def test_wrong_arguments(options: dict[str, Any], words: str) -> None:
    with pytest.raises(CamrtError, match=words):
        explain_graph(model_of("yolov8"), **{"preprocess": PREPROCESS, **options})


def test_explainer_says_what_is_wrong() -> None:
    explainer = Explainer(model_of("yolov8"), preprocess=PREPROCESS)
    with pytest.raises(CamrtError, match="found no detection that overlaps the box"):
        explainer(photo(), target="box:5000,5000,5010,5010")
    with pytest.raises(CamrtError, match="the model does not know names"):
        explainer(photo(), target="box:best:dog")
    with pytest.raises(CamrtError, match="found the class 5, expected 0 to 4"):
        explainer(photo(), target="box:best:5")
    with pytest.raises(CamrtError, match="an explainer of detections, expected a box, as box:best"):
        explainer(photo(), target="dog")
    refused: list[str] = []
    asked = ["box:5000,5000,5010,5010", "box:best"]
    assert len(list(explainer.map([photo()] * 2, targets=asked, on_error=lambda _, e: refused.append(str(e))))) == 1
    assert "no detection" in refused[0]


def test_more_places_than_detections() -> None:
    """Those without one are left out; a rank that is asked for is missed."""
    explainer = Explainer(model_of("yolov8"), "eigencam", top=90, preprocess=PREPROCESS)
    square = images(1)[0]
    boxes, scores = found_by_torch("yolov8", detector("yolov8"))
    assert len(explainer(square)) == len(chosen_by_numpy(boxes[0], scores[0])) < 84
    for rank in (83, 100):
        with pytest.raises(CamrtError, match=f"found no detection of rank {rank}"):
            explainer(square, target=f"box:{rank}")


@pytest.mark.parametrize("wrong", [CLASSES, 1000])
def test_a_class_out_of_range_is_no_empty_map(wrong: int) -> None:
    """In plain ONNX Runtime too."""
    with pytest.raises(Exception, match=r"[Ii]ndex|indices|out of"):
        run(explainer_of(model_of("yolov8"), "yolov8", method="eigencam"), None, [[wrong] * TOP] * 2)


def test_a_classifier_has_no_boxes() -> None:
    from tests.camrt.classifiers import classifier

    with pytest.raises(CamrtError, match="which are those of no known detector"):
        explain_graph(classifier("gemm"), target="box:best", preprocess=PREPROCESS)
    preprocess = Preprocess(16, 16, (0.0, 0.0, 0.0))
    with pytest.raises(CamrtError, match="an explainer of classes, expected a class"):
        Explainer(classifier("gemm"), target="input", preprocess=preprocess)(photo(), target="box:best")


def test_outputs_of_no_form_at_all_have_an_eigencam() -> None:
    """Its map does not depend on what is explained."""
    module = torch.nn.Sequential(detector("yolov5").stem, torch.nn.Flatten(1), torch.nn.Unflatten(1, (2, 2, 16, 16)))
    model = exported(module)
    found = Explainer(model, "eigencam", preprocess=PREPROCESS)(photo())
    assert found.labels == ("sum of output0",)
    assert found.heatmaps.max() > 0
    with pytest.raises(CamrtError, match="the model has no output of scores"):
        Explainer(model, "gradcam", preprocess=PREPROCESS)


def test_gradient_is_of_the_candidate_alone() -> None:
    """Finite differences: the logit of one candidate, moved along the gradient that the graph gives."""
    kind, module = "yolov8", detector("yolov8")
    found = run(explainer_of(exported(module), kind, method="input-gradient", top=1), None, None, GRADIENT)
    gradient = found[GRADIENT][:, 0, 0]
    boxes, scores = found_by_torch(kind, module)
    x = tensor_of(images()).double()
    module = module.double()
    for n in range(2):
        each, number = chosen_by_numpy(boxes[n], scores[n])[0]
        step = torch.from_numpy(gradient[n] / np.linalg.norm(gradient[n])).double() * 1e-4

        def logit(point: Any, n: int = n, each: int = each, number: int = number) -> float:
            with torch.no_grad():
                return float(candidates(kind, module(point[None]))[2][0, each, number])

        slope = (logit(x[n] + step) - logit(x[n] - step)) / 2e-4
        np.testing.assert_allclose(slope, np.linalg.norm(gradient[n]), rtol=1e-3)


def test_strides_are_those_that_the_recognition_knows() -> None:
    assert sum((SIDE // stride) ** 2 for stride in STRIDES) == 84


def test_the_preset_of_yolo_has_the_size_of_the_network() -> None:
    """RGB from 0 to 1, whatever the side."""
    given, preset = (Explainer(model_of("yolov8"), preprocess=each)(photo()) for each in (PREPROCESS, "yolo"))
    np.testing.assert_allclose(preset.heatmaps, given.heatmaps, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(preset.scores, given.scores, rtol=1e-5)
