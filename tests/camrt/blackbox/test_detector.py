"""D-RISE on detectors, before and behind non-maximum suppression, against masks that are drawn and scored here."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from camrt import CamrtError, Explainer
from camrt.blackbox.rise import random_masks
from tests.camrt.graph.test_detections_caffe import PREPROCESS, SIDE, blob_of, image, model

ssd = model  # a fixture: a small SSD of Caffe
MASKS = 24
SETTINGS = {"masks": MASKS, "cells": 4}


def without_metadata(ssd: onnx.ModelProto) -> onnx.ModelProto:
    """The detections alone: rows (1, 1, n, 7)."""
    plain = onnx.ModelProto()
    plain.CopyFrom(ssd)
    del plain.metadata_props[:]
    return plain


def as_torchvision(ssd: onnx.ModelProto) -> onnx.ModelProto:
    """Boxes (n, 4) in pixels, labels (n,), scores (n,), of one image."""
    plain = without_metadata(ssd)
    arrays = {
        "flat": np.array([-1, 7]), "one": np.array([1]), "two": np.array([2]), "three": np.array([3]),
        "seven": np.array([7]), "axis": np.array([1]), "side": np.float32(SIDE), "line": np.array([-1]),
    }  # fmt: skip
    plain.graph.initializer.extend(numpy_helper.from_array(array, f"tv/{name}") for name, array in arrays.items())
    bounds = {"label": ("one", "two"), "score": ("two", "three"), "box": ("three", "seven")}
    plain.graph.node.append(helper.make_node("Reshape", ["found", "tv/flat"], ["tv/rows"]))
    for name, (start, end) in bounds.items():
        cut = ["tv/rows", f"tv/{start}", f"tv/{end}", "tv/axis"]
        plain.graph.node.append(helper.make_node("Slice", cut, [f"tv/{name}"]))
    plain.graph.node.append(helper.make_node("Mul", ["tv/box", "tv/side"], ["boxes"]))
    plain.graph.node.append(helper.make_node("Reshape", ["tv/label", "tv/line"], ["tv/labels"]))
    plain.graph.node.append(helper.make_node("Cast", ["tv/labels"], ["labels"], to=TensorProto.INT64))
    plain.graph.node.append(helper.make_node("Reshape", ["tv/score", "tv/line"], ["scores"]))
    del plain.graph.output[:]
    plain.graph.output.extend(
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("boxes", TensorProto.FLOAT, ["n", 4]), ("labels", TensorProto.INT64, ["n"]),
            ("scores", TensorProto.FLOAT, ["n"]),
        )
    )  # fmt: skip
    return plain


def run(net: onnx.ModelProto, data: np.ndarray, *names: str) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(net.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(list(names), {"data": data}))


def shared(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    low, high = np.maximum(one[:2], others[:, :2]), np.minimum(one[2:], others[:, 2:])
    both = np.maximum(high - low, 0).prod(1)
    return both / ((one[2:] - one[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - both)


def drise_by_hand(ssd: onnx.ModelProto, target: np.ndarray) -> np.ndarray:
    """Of a row of DetectionOutput: image, label, score, box. Classes are alike or not, as only the best is known."""
    total = np.zeros((SIDE, SIDE))
    for mask in random_masks(MASKS, (SIDE, SIDE), cells=4, keep=0.5, seed=0):
        rows = run(ssd, blob_of(image()) * mask, "found")[0].reshape(-1, 7)
        alike = rows[:, 1] == target[1]
        total += mask * (shared(target[3:], rows[:, 3:]) * rows[:, 2] * alike).max(initial=0)
    return total / MASKS / 0.5


@pytest.mark.parametrize("form", ["caffe", "torchvision"])
def test_detections_behind_suppression(ssd: onnx.ModelProto, form: str) -> None:
    net = without_metadata(ssd) if form == "caffe" else as_torchvision(ssd)
    explainer = Explainer(net, "drise", preprocess=PREPROCESS, settings=SETTINGS)
    assert (explainer.explained, explainer.target, explainer.top) == ("box", "box", 1)
    (rows,) = run(ssd, blob_of(image()), "found")
    rows = rows.reshape(-1, 7)
    for target, row in (
        ("box:best", rows[rows[:, 2].argmax()]),
        ("box:2:1", rows[rows[:, 1] == 1][1]),
        ("box:" + ",".join(map(str, (rows[3, 3:] * SIDE).tolist())) + f":{int(rows[3, 1])}", rows[3]),
    ):
        found = explainer(image(), target=target)
        assert found.detections is not None
        assert found.standard_errors is not None
        np.testing.assert_allclose(found.detections[0], row[3:] * SIDE, atol=1e-3)
        np.testing.assert_allclose(found.scores, row[2:3], rtol=1e-5)
        assert found.classes.tolist() == [int(row[1])]
        np.testing.assert_allclose(found.heatmaps[0], drise_by_hand(ssd, row), atol=1e-5)


def test_candidates_before_suppression(ssd: onnx.ModelProto) -> None:
    """The metadata tell; a candidate counts by its overlap, its classes' cosine, and its surest class."""
    explainer = Explainer(ssd, "drise", preprocess=PREPROCESS, settings=SETTINGS)
    graph = Explainer(ssd, "eigencam", preprocess=PREPROCESS)
    for target in ("box:best", "box:3", "box:best:2", "box:4,4,20,20"):
        found, same = explainer(image(), target=target), graph(image(), target=target)
        assert found.detections is not None
        assert same.detections is not None
        np.testing.assert_allclose(found.detections, same.detections, atol=1e-3)
        np.testing.assert_allclose(found.scores, same.scores, rtol=1e-5)
        assert found.labels == same.labels
    boxes_name = (
        next(one.value for one in ssd.metadata_props if one.key == "camrt.detections")
        .split('"boxes": "')[1]
        .split('"')[0]
    )
    extended = onnx.ModelProto()
    extended.CopyFrom(ssd)
    extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in (boxes_name, "soft"))

    def candidates(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        boxes, classes = run(extended, data, boxes_name, "soft")
        classes[..., 0] = 0  # the background
        return boxes.reshape(-1, 4), classes[0]

    found = explainer(image())
    boxes, classes = candidates(blob_of(image()))
    best = classes.max(1).argmax()
    total = np.zeros((SIDE, SIDE))
    for mask in random_masks(MASKS, (SIDE, SIDE), cells=4, keep=0.5, seed=0):
        others, rows = candidates(blob_of(image()) * mask)
        norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(classes[best])
        alike = shared(boxes[best], others) * (rows @ classes[best]) / norms * rows.max(1)
        total += mask * alike.max()
    np.testing.assert_allclose(found.heatmaps[0], total / MASKS / 0.5, atol=1e-4)


def test_several_detections_and_images(ssd: onnx.ModelProto) -> None:
    explainer = Explainer(ssd, "drise", preprocess=PREPROCESS, settings=SETTINGS, top=2)
    found = list(explainer.map([image(), image()[::-1]]))
    assert [len(one) for one in found] == [2, 2]
    alone = explainer(image(), target=["box:1", "box:2"])
    np.testing.assert_allclose(found[0].heatmaps, alone.heatmaps, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "1"}, "expected a box, as box:best"),
        ({"layer": "c1"}, "found layer='c1', expected none: drise only runs the detector"),
        ({"protocol": "ten-crop"}, "expected 'whole' for drise"),
        ({"settings": {"cells": 0}}, "found cells=0"),
        ({"settings": {"mask": 3}}, "found the setting 'mask' of drise"),
        ({"target": "box:900,900,950,950"}, "found no detection that overlaps the box"),
    ],
)
def test_wrong_arguments(ssd: onnx.ModelProto, options: dict[str, Any], words: str) -> None:
    with pytest.raises(CamrtError, match=words):
        Explainer(without_metadata(ssd), "drise", preprocess=PREPROCESS, **options)(image())


def test_a_classifier_is_no_detector() -> None:
    from tests.camrt.classifiers import classifier

    with pytest.raises(CamrtError, match="which are those of no known detector"):
        Explainer(classifier("gemm"), "drise", preprocess=PREPROCESS.cropped(16))
    with pytest.raises(CamrtError, match="use --method drise"):
        Explainer(classifier("gemm"), "rise", target="box:best", preprocess=PREPROCESS.cropped(16))


def test_a_batch_that_cannot_be_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network then gets as many masked images at once as it was exported for."""
    pytest.importorskip("torch", reason="PyTorch is not installed: it makes the detector")
    from camrt.blackbox import detector as module
    from tests.camrt.graph.detectors import PREPROCESS as WANTED
    from tests.camrt.graph.detectors import detector, exported

    frozen, pixels = exported(detector("yolov5"), batch=None), np.kron(image(), np.ones((2, 2, 1), np.uint8))
    free = Explainer(frozen, "drise", preprocess=WANTED, settings=SETTINGS)(pixels)

    def refuse(*_: Any) -> Any:
        raise CamrtError("it cannot take several images")

    monkeypatch.setattr(module, "with_free_batch", refuse)
    one_by_one = Explainer(frozen, "drise", preprocess=WANTED, settings=SETTINGS)(pixels)
    np.testing.assert_allclose(one_by_one.heatmaps, free.heatmaps, rtol=1e-4, atol=1e-6)
