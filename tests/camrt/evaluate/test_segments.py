from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from camrt import CamrtError
from camrt.evaluate.ilsvrc_protocol import boxes_of_segments


def test_regions_by_hand() -> None:
    heatmap = np.zeros((9, 12), np.uint8)
    heatmap[0, 0:3] = 255  # 3 pixels
    heatmap[3, 4] = heatmap[4, 5] = heatmap[5, 6] = heatmap[6, 7] = 100  # 4 that touch at corners
    heatmap[8, 11] = 52  # above a fifth
    heatmap[8, 0] = 51  # a fifth
    assert boxes_of_segments(heatmap).tolist() == [[4, 3, 4, 4], [0, 0, 3, 1], [11, 8, 1, 1]]
    assert boxes_of_segments(heatmap, 0.5).tolist() == [[0, 0, 3, 1]]
    assert boxes_of_segments(np.zeros((4, 5))).tolist() == []
    assert boxes_of_segments(-np.ones((4, 5))).tolist() == []
    assert boxes_of_segments(np.ones((4, 5))).tolist() == [[0, 0, 5, 4]]


@pytest.mark.parametrize("seed", range(5))
def test_as_scipy_finds_them(seed: int) -> None:
    heatmap = ndimage.gaussian_filter(np.random.default_rng(seed).random((60, 80)), 2)
    heatmap -= heatmap.min()
    labels, count = ndimage.label(heatmap > 0.7 * heatmap.max(), np.ones((3, 3)))
    regions = sorted(((labels == label).sum(), label) for label in range(1, count + 1))
    slices = ndimage.find_objects(labels)
    found = boxes_of_segments(heatmap, 0.7)
    assert len(found) == count > 3
    expected = {(x.start, y.start, x.stop - x.start, y.stop - y.start) for y, x in slices}
    assert {tuple(box) for box in found.tolist()} == expected
    y, x = slices[regions[-1][1] - 1]
    assert found[0].tolist() == [x.start, y.start, x.stop - x.start, y.stop - y.start]


def test_wrong_input() -> None:
    with pytest.raises(CamrtError, match=r"expected \(H, W\)"):
        boxes_of_segments(np.zeros((4, 5, 3)))
    with pytest.raises(CamrtError, match=r"expected \(H, W\)"):
        boxes_of_segments(np.zeros((0, 5)))
    with pytest.raises(CamrtError, match="fraction 1"):
        boxes_of_segments(np.zeros((4, 5)), 1)
