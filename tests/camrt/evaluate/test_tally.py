"""What journals add up to, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from camrt import CamrtError
from camrt.evaluate import wsol
from camrt.evaluate.datasets import AnnotatedImage, Dataset
from camrt.evaluate.journal import Journal
from camrt.evaluate.wsol_protocol import journal_name, overlaps_at, packed, tally, unpacked

DATA = Dataset("list", tuple(AnnotatedImage(f"{n}.png", n % 2, "list:1", ((0, 0, 9, 9),)) for n in range(4)))


def boxes(rank: int, largest: dict[int, float], every: dict[int, float]) -> dict[str, object]:
    """What is kept of an image: overlaps by the level from which on they hold."""
    ious = np.zeros((2, wsol.LEVELS), np.float32)
    for row, steps in zip(ious, (largest, every), strict=True):
        for level, overlap in steps.items():
            row[level:] = overlap
    return {"rank": rank, "ious": packed(ious)}


def write(folder: Path, group: str, found: list[dict[str, object] | str]) -> None:
    with Journal(folder, journal_name(group, "cam"), {}) as journal:
        for number, facts in enumerate(found):
            if isinstance(facts, str):
                journal.record_failure(f"{number}.png", facts)
            else:
                journal.add(f"{number}.png", facts)


def test_localization(tmp_path: Path) -> None:
    write(
        tmp_path,
        "boxes",
        [
            boxes(0, {0: 0.4, 51: 0.6}, {0: 0.8}),
            boxes(3, {0: 0.5, 102: 0.0}, {0: 0.5}),
            boxes(9, {51: 0.7, 204: 0.9}, {51: 0.7}),
            "broken",
        ],
    )
    found = tally(DATA, None, tmp_path, "cam", ["boxes"])
    numbers = found.numbers
    # Of the largest contour, all three overlap by half from level 51 to 101; it is that of the threshold 0.2.
    assert numbers["MaxBoxAcc"] == numbers["GT-known"] == 3 / 4
    assert numbers["threshold"] == pytest.approx(0.2)
    assert (numbers["top-1"], numbers["top-5"]) == (1 / 4, 2 / 4)
    assert (numbers["top-1 classification"], numbers["top-5 classification"]) == (1 / 4, 2 / 4)
    # Of all contours: three by 0.3 and by 0.5, two by 0.7.
    assert numbers["MaxBoxAccV2"] == pytest.approx((3 / 4 + 3 / 4 + 2 / 4) / 3)
    assert found.failures == {"3.png": "broken"}
    assert found.left == 0
    place = {threshold: round(1000 * threshold) for threshold in (0, 0.3, 0.9)}
    assert [found.sweep["largest 0.5"][place[t]] for t in place] == [1 / 4, 3 / 4, 2 / 4]
    assert [found.sweep["top-1"][place[t]] for t in place] == [0, 1 / 4, 1 / 4]
    assert [found.sweep["top-5"][place[t]] for t in place] == [1 / 4, 2 / 4, 1 / 4]
    assert [found.sweep["all 0.7"][place[t]] for t in place] == [1 / 4, 2 / 4, 2 / 4]
    assert overlaps_at(tmp_path, "cam", 0.9) == pytest.approx({"0.png": 0.6, "1.png": 0, "2.png": 0.9})


def test_a_threshold_that_is_given(tmp_path: Path) -> None:
    write(
        tmp_path, "boxes", [boxes(0, {0: 0.4, 51: 0.6}, {}), boxes(1, {0: 0.5}, {}), boxes(0, {0: 0.5}, {}), "broken"]
    )
    numbers = tally(DATA, None, tmp_path, "cam", ["boxes"], threshold=0.1).numbers
    assert (numbers["MaxBoxAcc"], numbers["GT-known"]) == (3 / 4, 2 / 4)
    assert (numbers["top-1"], numbers["top-5"], numbers["threshold"]) == (1 / 4, 2 / 4, 0.1)


def test_what_is_refused_misses_and_scores_go_without_it(tmp_path: Path) -> None:
    write(tmp_path, "pointing", [{"hit": True}, {"hit": True}, {"hit": False}, "broken"])
    write(
        tmp_path, "drop", [{"before": 0.5, "after": 0.25}, {"before": 0.5, "after": 0.75}, {"before": None, "after": 1}]
    )
    write(tmp_path, "deletion", [{"area": 0.5}, {"area": None}, {"area": 0.25}])
    found = tally(DATA, None, tmp_path, "cam", ["pointing", "drop", "deletion"])
    assert found.numbers == {"pointing": 0.5, "average drop": 0.25, "increase": 0.5, "deletion": 0.375}
    assert found.left == 1  # of the journals that say nothing of it


def test_counts_of_pixels_are_added(tmp_path: Path) -> None:
    counts = np.zeros((2, len(wsol.THRESHOLDS) + 1), np.int32)
    counts[1, 500], counts[0, 100] = 10, 30
    write(tmp_path, "masks", [{"pixels": packed(counts)}, {"pixels": packed(counts)}])
    found = tally(DATA, None, tmp_path, "cam", ["masks"])
    assert found.numbers == {"PxAP": 1}
    assert found.precision is not None
    assert found.precision[0] == 1 / 4
    assert found.precision[500] == 1


def test_no_images_no_numbers(tmp_path: Path) -> None:
    found = tally(DATA, None, tmp_path, "cam", ["boxes", "masks", "pointing"])
    assert (found.left, found.numbers, found.sweep) == (4, {}, {})


def test_images_of_another_data_set_do_not_count(tmp_path: Path) -> None:
    write(tmp_path, "boxes", [boxes(0, {0: 1.0}, {0: 1.0})] * 4 + ["broken"])
    found = tally(Dataset("list", DATA.images[:2]), None, tmp_path, "cam", ["boxes"])
    assert (found.images, found.numbers["MaxBoxAcc"], dict(found.failures)) == (2, 1, {})


@pytest.mark.parametrize(
    "facts",
    [{"rank": 0}, {"rank": 0, "ious": "AAAA"}, {"rank": 0, "ious": packed(np.zeros(3, "<f4"))}, {"ious": 5, "rank": 0}],
)
def test_a_damaged_line_is_named(tmp_path: Path, facts: dict[str, object]) -> None:
    write(tmp_path, "boxes", [facts])
    with pytest.raises(CamrtError, match=r"the line of '0\.png' in the journal 'boxes-cam' is damaged"):
        tally(DATA, None, tmp_path, "cam", ["boxes"])


def test_arrays_come_back() -> None:
    array = np.random.default_rng(0).random((2, 5)).astype("<f4")
    assert np.array_equal(unpacked(packed(array), "<f4", (2, 5)), array)
    with pytest.raises(ValueError, match="cannot reshape"):
        unpacked(packed(array), "<f4", (2, 6))
