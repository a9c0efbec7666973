from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from camrt.errors import CamrtError
from camrt.localize import boxes_from_mask


def test_largest_part_first() -> None:
    mask = np.zeros((30, 40), bool)
    mask[0, :] = True  # a large box around few pixels comes behind
    mask[:, 39] = True
    mask[10:20, 5:15] = True
    assert boxes_from_mask(mask).tolist() == [[5, 10, 10, 10], [0, 0, 40, 30]]


def test_corners_touch() -> None:
    mask = np.eye(6, dtype=bool)
    assert boxes_from_mask(mask).tolist() == [[0, 0, 6, 6]]


def test_holes_and_borders() -> None:
    mask = np.ones((5, 9), bool)
    mask[2, 2:5] = False
    assert boxes_from_mask(mask).tolist() == [[0, 0, 9, 5]]
    assert boxes_from_mask(~mask).tolist() == [[2, 2, 3, 1]]
    assert boxes_from_mask(np.zeros((5, 9), bool)).shape == (0, 4)
    assert boxes_from_mask(np.ones((1, 1), bool)).tolist() == [[0, 0, 1, 1]]


def test_specks() -> None:
    mask = np.zeros((40, 40), bool)
    mask[:20, :20] = mask[30, 30:34] = mask[38, 2:5] = True  # 400, 4 and 3 pixels
    assert boxes_from_mask(mask).tolist() == [[0, 0, 20, 20], [30, 30, 4, 1]]
    assert len(boxes_from_mask(mask, least=0)) == 3
    assert len(boxes_from_mask(mask, least=1)) == 1


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14))))
def test_the_parts_are_scipys(mask: np.ndarray) -> None:
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    expected = [
        [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        for rows, columns in ndimage.find_objects(labels)
    ]
    found = boxes_from_mask(mask, least=0)
    assert found.dtype == np.int64
    assert sorted(found.tolist()) == sorted(expected)
    assert boxes_from_mask(np.asfortranarray(mask), least=0).tolist() == found.tolist()


@pytest.mark.parametrize("mask", [np.zeros((3, 4), np.uint8), np.zeros((3, 4, 1), bool), np.zeros((0, 4), bool), 3])
def test_no_masks(mask: np.ndarray) -> None:
    with pytest.raises(CamrtError, match=r"found a mask of shape .*, expected \(H, W\) bool"):
        boxes_from_mask(mask)


@pytest.mark.parametrize("least", [-0.1, 1.1, np.nan])
def test_no_share(least: float) -> None:
    with pytest.raises(CamrtError, match="expected a fraction from 0 to 1"):
        boxes_from_mask(np.zeros((3, 4), bool), least=least)
