"""D-RISE: the similarity against counted pixels and SciPy, and a detector whose evidence is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cosine

from camrt.blackbox.drise import Detections, drise, similarity
from camrt.errors import CamrtError


def overlap(one: Any, other: Any) -> float:
    """IoU of boxes of whole numbers, by counting pixels."""
    grids = [np.zeros((30, 30), bool) for _ in range(2)]
    for grid, (left, top, right, bottom) in zip(grids, (one, other), strict=True):
        grid[top:bottom, left:right] = True
    return float((grids[0] & grids[1]).sum() / (grids[0] | grids[1]).sum())


def test_similarity() -> None:
    draw = np.random.default_rng(0)
    corners = draw.integers(0, 14, (2, 5, 2))
    boxes = [np.concatenate([each, each + draw.integers(1, 15, (5, 2))], axis=1) for each in corners]
    classes, sure = draw.random((2, 5, 4)), draw.random(5)
    found = similarity(Detections(boxes[0], classes[0]), Detections(boxes[1], classes[1], sure))
    for i in range(5):
        for j in range(5):
            expected = overlap(boxes[0][i], boxes[1][j]) * (1 - cosine(classes[0][i], classes[1][j])) * sure[j]
            np.testing.assert_allclose(found[i, j], expected, atol=1e-12)


def test_boxes_and_classes_of_nothing() -> None:
    empty = Detections(np.zeros((1, 4)), np.zeros((1, 3)))
    assert not similarity(empty, empty).any()


def test_the_map_is_where_the_evidence_is() -> None:
    """A detector whose box is sure as far as one square of the image is seen, and never sure of another one."""
    box, elsewhere = [[4.0, 4.0, 12.0, 12.0]], [[20.0, 20.0, 30.0, 30.0]]

    def detect(images: Any) -> Any:
        seen = images[:, 0, 4:12, 4:12].mean(axis=(1, 2))
        return [Detections(np.array(box), np.array([[1.0, 0.0]]), np.array([each])) for each in seen]

    targets = Detections(np.array(box + elsewhere), np.array([[1.0, 0.0], [1.0, 0.0]]))
    found = drise(np.ones((3, 32, 32), np.float32), detect, targets, masks=600, cells=4)
    assert found.maps.shape == (2, 32, 32)
    y, x = np.unravel_index(found.maps[0].argmax(), (32, 32))
    assert 3 <= y < 13
    assert 3 <= x < 13
    assert not found.maps[1].any()


def test_an_image_without_detections_counts_nothing() -> None:
    nothing = Detections(np.zeros((0, 4)), np.zeros((0, 2)))
    target = Detections(np.array([[0.0, 0.0, 5.0, 5.0]]), np.array([[1.0, 0.0]]))
    found = drise(np.ones((3, 8, 8), np.float32), lambda images: [nothing] * len(images), target, masks=4, cells=2)
    assert not found.maps.any()


def test_wrong_shapes() -> None:
    with pytest.raises(CamrtError, match=r"expected \(n, 4\)"):
        Detections(np.zeros((2, 4)), np.zeros((3, 2)))
    with pytest.raises(CamrtError, match="of 3 classes, expected 2"):
        similarity(Detections(np.zeros((1, 4)), np.zeros((1, 2))), Detections(np.zeros((1, 4)), np.zeros((1, 3))))
