"""YOLO's layers against their definitions in NumPy, OpenCV's Darknet importer and ncnn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.converters.detectors import yolo_predictions, yolo_rows
from tests.converters.ncnn_layer import ncnn_layer
from tests.converters.one_layer import OneLayer, assert_emits_what_is_declared, assert_error_names_layer, darknet, run

# --------------------------------------------------------------------------------------------------------- detections

ANCHORS = [(1.08, 1.19), (3.42, 4.41), (6.63, 11.38)]  # of YOLO 2, in cells
PIXELS = [(10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319)]  # of YOLO 3


def version2(maps: Sequence[np.ndarray], threshold: float = 0.3, overlap: float = 0.45) -> np.ndarray:
    images = []
    for image in range(len(maps[0])):
        found = [yolo_predictions(one[image], ANCHORS, one.shape[:1:-1], threshold, 2) for one in maps]
        images.append(np.concatenate(found))
    return yolo_rows(images, overlap)


def version3(maps: Sequence[np.ndarray], threshold: float = 0.3, overlap: float = 0.45) -> np.ndarray:
    images = []
    for image in range(len(maps[0])):
        found = []
        for index, one in enumerate(maps):
            size = [side * 32 / 2**index for side in one.shape[:1:-1]]
            anchors = PIXELS[3:] if index == 0 else PIXELS[:3]
            found.append(yolo_predictions(one[image], anchors, size, threshold, 3))
        images.append(np.concatenate(found))
    return yolo_rows(images, overlap)


def layer2(shapes: Mapping[str, Sequence[int]], classes: int, param: str = "") -> OneLayer:
    biases = " ".join(f"biases: {value}" for pair in ANCHORS for value in pair)
    text = f"num_classes: {classes} num_box: 3 confidence_threshold: 0.3 {biases} {param}"
    return OneLayer(f'type: "YoloDetectionOutput" top: "y" yolo_detection_output_param {{ {text} }}', shapes)


def layer3(shapes: Mapping[str, Sequence[int]], classes: int, param: str = "confidence_threshold: 0.3") -> OneLayer:
    biases = " ".join(f"biases: {value}" for pair in PIXELS for value in pair)
    scales = " ".join(f"anchors_scale: {32 // 2**index}" for index in range(len(shapes)))
    masks = " ".join(f"mask: {mask}" for mask in (3, 4, 5, 0, 1, 2)[: 3 * len(shapes)])
    text = f"num_classes: {classes} {biases} {scales} {masks} mask_group_num: {len(shapes)} {param}"
    return OneLayer(f'type: "Yolov3DetectionOutput" top: "y" yolov3_detection_output_param {{ {text} }}', shapes)


def maps_for(sizes: Sequence[tuple[int, int]], classes: int, batch: int, seed: int) -> dict[str, np.ndarray]:
    """Predictions with a good share of scores above 0.3."""
    rng = np.random.default_rng(seed)
    return {
        f"x{index}": (rng.normal(size=(batch, 3 * (5 + classes), *size)) * 1.5).astype(np.float32)
        for index, size in enumerate(sizes)
    }


def assert_detections(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [[(6, 6)], [(4, 4), (8, 8)]])
def test_yolo_detection_output(sizes: list[tuple[int, int]]) -> None:
    model = layer2({f"x{i}": (1, 27, *size) for i, size in enumerate(sizes)}, 4).model()
    for batch in (1, 3):
        maps = maps_for(sizes, 4, batch, seed=batch)
        expected = version2(list(maps.values()))
        assert len(expected[0, 0]) > 5 * batch
        assert_detections(run(model, maps)[0], expected)


@pytest.mark.parametrize("sizes", [[(6, 9)], [(3, 5), (6, 10)]])
def test_yolov3_detection_output(sizes: list[tuple[int, int]]) -> None:
    model = layer3({f"x{i}": (1, 30, *size) for i, size in enumerate(sizes)}, 5).model()
    for batch in (1, 3):
        maps = maps_for(sizes, 5, batch, seed=batch)
        expected = version3(list(maps.values()))
        assert len(expected[0, 0]) > 5 * batch
        assert_detections(run(model, maps)[0], expected)


def test_no_detection_in_one_image_and_in_all() -> None:
    one = layer3({"x0": (1, 30, 4, 4)}, 5)
    maps = maps_for([(4, 4)], 5, 2, seed=0)["x0"]
    maps[0] -= 20
    assert_detections(one.run({"x0": maps})[0], version3([maps]))
    found = one.run({"x0": maps - 20})[0]
    np.testing.assert_array_equal(found, [[[[0, *[-1] * 6], [1, *[-1] * 6]]]])


@pytest.mark.parametrize("overlap", [0.05, 0.9])
def test_thresholds(overlap: float) -> None:
    maps = maps_for([(5, 5)], 3, 1, seed=4)
    one = layer3({"x0": (1, 24, 5, 5)}, 3, f"nms_threshold: {overlap} confidence_threshold: 0.1")
    assert_detections(one.run(maps)[0], version3(list(maps.values()), 0.1, overlap))


def test_a_score_at_the_threshold() -> None:
    """YOLO 2's layer keeps it, YOLO 3's does not."""
    counts = []
    for one, scores in ((layer2, [0.0]), (layer3, [50.0])):  # a softmax of one class is 1, a sigmoid of 50 too
        maps = np.zeros((1, 18, 1, 1), np.float32).reshape(1, 3, 6, 1, 1)
        maps[:, :, 4:] = -90
        maps[0, 0, 4:, 0, 0] = [0, *scores]  # a score of exactly 0.5
        text = one({"x0": (1, 18, 1, 1)}, 1)
        at = OneLayer(text.layer.replace("confidence_threshold: 0.3", "confidence_threshold: 0.5"), text.shapes)
        counts.append(float(at.run({"x0": maps.reshape(1, 18, 1, 1)})[0][0, 0, 0, 2]))
    assert counts == [0.5, -1]


def test_yolo_detection_output_as_ncnn(tmp_path: Path) -> None:
    maps = maps_for([(6, 6)], 4, 1, seed=7)
    biases = ",".join(f"{value}" for pair in ANCHORS for value in pair)
    params = f"0=4 1=3 2=0.3 3=0.45 -23304=6,{biases}"
    (expected,) = ncnn_layer("YoloDetectionOutput", params, {"x0": maps["x0"][0].copy()}, ("y",), tmp_path)
    (found,) = layer2({"x0": (1, 27, 6, 6)}, 4).run(maps)
    assert_detections(found[0, 0, :, 1:], expected)


def test_yolov3_detection_output_as_ncnn(tmp_path: Path) -> None:
    """ncnn's score is 1 / (1 + e^-o * (1 + e^-c)), a bracket away from the product of the sigmoids of o and c.

    So it gets another o, for which its score is the fork's.
    """
    maps = maps_for([(3, 5), (6, 10)], 5, 1, seed=7)
    biases = ",".join(f"{float(value)}" for pair in PIXELS for value in pair)
    params = f"0=5 1=3 2=0.3 3=0.45 -23304=12,{biases} -23305=6,3.0,4.0,5.0,0.0,1.0,2.0 -23306=2,32.0,16.0"
    adapted = {}
    for name, array in maps.items():
        split = array.astype(float).reshape(3, 10, *array.shape[2:])
        by_object, by_class = np.exp(-split[:, 4]), np.exp(-split[:, 5:].max(axis=1))
        split[:, 4] = -np.log(((1 + by_object) * (1 + by_class) - 1) / (1 + by_class))
        adapted[name] = split.reshape(array.shape[1:]).astype(np.float32)
    (expected,) = ncnn_layer("Yolov3DetectionOutput", params, adapted, ("y",), tmp_path)
    (found,) = layer3({name: array.shape for name, array in maps.items()}, 5).run(maps)
    assert_detections(found[0, 0, :, 1:], expected)


def test_boxes_and_scores_as_opencv() -> None:
    """OpenCV's Darknet importer decodes; its suppression is by class, so the best box alone is compared."""
    maps = maps_for([(6, 6)], 4, 1, seed=3)
    anchors = ",".join(f"{value}" for pair in ANCHORS for value in pair)
    decoded = darknet(f"[region]\nanchors={anchors}\nclasses=4\ncoords=4\nnum=3\nsoftmax=1\nthresh=0.001\n", maps["x0"])
    best = decoded[decoded[:, 5:].max(axis=1).argmax()]
    (found,) = layer2({"x0": (1, 27, 6, 6)}, 4).run(maps)
    x, y, width, height = best[:4]
    expected = [best[5:].argmax() + 1, best[5:].max(), x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    np.testing.assert_allclose(found[0, 0, 0, 1:], expected, rtol=1e-4, atol=1e-5)


ONE = {"x0": (1, 27, 4, 4)}
TWO = {**ONE, "x1": (1, 27, 8, 8)}


@pytest.mark.parametrize("one", [layer2(TWO, 4), layer3(TWO, 4)])
def test_operators(one: OneLayer) -> None:
    assert_emits_what_is_declared(one)


ERRORS = {
    "coords": (layer2(ONE, 4, "coords: 5"), "coords 5"),
    "channels": (layer2(ONE, 5), "expected N x 30 x H x W"),
    "not square": (layer2({"x0": (1, 27, 4, 5)}, 4), "square map"),
    "anchors": (layer2({"x0": (1, 36, 4, 4)}, 4, "num_box: 4").layer.replace("num_box: 3", ""), "found 6 biases"),
    "threshold": (layer2(ONE, 4, "nms_threshold: 1"), "nms_threshold 1"),
    "gaussian": (layer3(ONE, 4, "gaussian_box: true"), "gaussian_box"),
    "groups": (layer3(ONE, 4).layer.replace("mask_group_num: 1", "mask_group_num: 2"), "mask_group_num 2"),
    "masks": (layer3(ONE, 4).layer.replace("mask: 5", ""), "found 2 masks"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_the_layer(name: str) -> None:
    one, message = ERRORS[name]
    shapes = {"x0": (1, 36, 4, 4)} if name == "anchors" else ONE
    assert_error_names_layer(one if isinstance(one, OneLayer) else OneLayer(one, shapes), message)
