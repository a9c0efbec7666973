"""DetectNet's clustering against OpenCV's groupRectangles, which is what the fork calls."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from tests.converters.one_layer import OneLayer, assert_emits_what_is_declared, assert_error_names_layer, run

GRID, STRIDE = (9, 14), 16


def clustered(
    coverage: np.ndarray, boxes: np.ndarray, threshold: float, least: int, eps: float, high: int
) -> np.ndarray:
    """One class's detections: (N, 50, 5)."""
    answer = np.zeros((len(coverage), 50, 5), np.float32)
    for image, cells in enumerate(coverage):
        rects = []
        for row, column in zip(*np.nonzero(cells[: GRID[0], : GRID[1]] >= threshold), strict=True):
            x1, y1, x2, y2 = boxes[image, :, row, column].astype(float)
            x1, y1, x2, y2 = x1 + column * STRIDE, y1 + row * STRIDE, x2 + column * STRIDE, y2 + row * STRIDE
            rects.append([int(x1), int(y1), int(x2 - x1), int(y2 - y1)])
        found, weights = cv2.groupRectangles(rects, least, eps) if rects else ((), ())
        kept = [(rect, weight) for rect, weight in zip(found, weights, strict=True) if rect[3] >= high]
        for index, ((x, y, width, height), weight) in enumerate(kept):
            answer[image, index] = np.float16([x, y, x + width, y + height, math.log(weight)])
    return answer


def layer(param: str, classes: int = 1, extra: int = 0) -> OneLayer:
    size = (GRID[0] + extra, GRID[1] + extra)
    tops = " ".join(f'top: "y{index}"' for index in range(classes))
    python = f'module: "caffe.layers.detectnet.clustering" layer: "ClusterDetections" param_str: "{param}"'
    return OneLayer(
        f'type: "Python" {tops} python_param {{ {python} }}', {"c": (1, classes, *size), "b": (1, 4, *size)}
    )


def objects(batch: int, classes: int, seed: int, extra: int = 0) -> dict[str, np.ndarray]:
    """A grid that sees some objects: the cells in each predict its box, not quite alike; others predict anything."""
    rng = np.random.default_rng(seed)
    size = (GRID[0] + extra, GRID[1] + extra)
    coverage = rng.uniform(0, 0.62, (batch, classes, *size))
    boxes = rng.uniform(-40, 60, (batch, 4, *size))
    for image in range(batch):
        for _ in range(5):
            x1, y1 = rng.uniform(0, [160, 90])
            x2, y2 = x1 + rng.uniform(20, 90), y1 + rng.uniform(15, 70)
            for row, column in np.ndindex(*GRID):
                if x1 <= column * STRIDE <= x2 and y1 <= row * STRIDE <= y2:
                    jitter = rng.normal(size=4) * 1.5
                    box = [x1 - column * STRIDE, y1 - row * STRIDE, x2 - column * STRIDE, y2 - row * STRIDE]
                    boxes[image, :, row, column] = np.array(box) + jitter
                    coverage[image, rng.integers(classes), row, column] = rng.uniform(0.5, 1)
    return {"c": coverage.astype(np.float32), "b": boxes.astype(np.float32)}


@pytest.mark.parametrize(("least", "eps", "high"), [(3, 0.02, 22), (1, 0.1, 22), (2, 0.3, 1), (1, 0.6, 5)])
@pytest.mark.parametrize("classes", [1, 2])
def test_cluster_detections(least: int, eps: float, high: int, classes: int) -> None:
    one = layer(f"{GRID[1] * STRIDE}, {GRID[0] * STRIDE}, {STRIDE}, 0.6, {least}, {eps}, {high}, {classes}", classes)
    model = one.model()
    detections = 0
    for batch, seed in ((1, 0), (3, 1), (2, 2)):
        inputs = objects(batch, classes, seed)
        for index, found in enumerate(run(model, inputs)):
            expected = clustered(inputs["c"][:, index], inputs["b"], np.float32(0.6), least, eps, high)
            np.testing.assert_allclose(found, expected, rtol=1e-3)
            detections += np.count_nonzero(expected.any(axis=2))
    assert detections >= (1 if least == 3 else 4)


def test_a_small_cluster_in_a_large_one_goes() -> None:
    coverage, boxes = np.zeros((1, 1, *GRID), np.float32), np.zeros((1, 4, *GRID), np.float32)
    x, y = np.meshgrid(np.arange(GRID[1]) * STRIDE, np.arange(GRID[0]) * STRIDE)
    for columns, box in (
        (slice(0, 8), (10, 10, 120, 130)),
        (slice(8, 10), (40, 40, 90, 90)),
        (slice(10, 12), (150, 40, 200, 90)),
    ):
        coverage[0, 0, 3, columns] = 1
        boxes[0, :, 3, columns] = np.array(box)[:, None] - np.stack([x, y, x, y])[:, 3, columns]
    (found,) = layer("224,144,16,0.6,1,0.2,22").run({"c": coverage, "b": boxes})
    np.testing.assert_array_equal(found, clustered(coverage[:, 0], boxes, 0.6, 1, 0.2, 22))
    np.testing.assert_array_equal(found[0, :3, :4], [[10, 10, 120, 130], [150, 40, 200, 90], [0, 0, 0, 0]])


def test_no_box() -> None:
    inputs = {name: array * 0 for name, array in objects(2, 1, 0).items()}
    (found,) = layer("224,144,16,0.6,3,0.02,22").run(inputs)
    np.testing.assert_array_equal(found, np.zeros((2, 50, 5)))


def test_a_map_larger_than_the_image() -> None:
    inputs = objects(1, 1, 3, extra=2)
    (found,) = layer("224,144,16,0.6,1,0.2,22", extra=2).run(inputs)
    np.testing.assert_allclose(found, clustered(inputs["c"][:, 0], inputs["b"], np.float32(0.6), 1, 0.2, 22), rtol=1e-3)


def test_operators() -> None:
    assert_emits_what_is_declared(layer("224,144,16,0.6,3,0.02,22", extra=1))


ERRORS = {
    "few numbers": (layer("224,144,16"), "param_str '224,144,16', expected width"),
    "a word": (layer("224,144,16,a,3,0.02,22"), "expected width"),
    "a size": (layer("224,144,16,0.6,0,0.02,22"), "positive"),
    "classes": (layer("224,144,16,0.6,3,0.02,22,2", classes=2).layer, "expected N x 2 x 9 x 14"),
    "grid": (layer("480,144,16,0.6,3,0.02,22"), "expected N x 1 x 9 x 30"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_the_layer(name: str) -> None:
    one, message = ERRORS[name]
    shapes = layer("").shapes
    assert_error_names_layer(one if isinstance(one, OneLayer) else OneLayer(one, shapes), message)
