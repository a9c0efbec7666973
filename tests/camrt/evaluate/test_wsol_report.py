"""The table, the sweep and the page of a comparison."""

from __future__ import annotations

import numpy as np
import pytest

from camrt import Explanation
from camrt.evaluate import wsol, wsol_report
from camrt.evaluate.annotated import Annotated
from camrt.evaluate.tally import Outcome
from camrt.evaluate.wsol_report import Shown

IMAGES = tuple(Annotated(f"{number}.png", 0, "list:1", ((10, 20, 29, 59),)) for number in range(5))


def outcome(method: str, **numbers: float) -> Outcome:
    curve = np.linspace(1, 0, 1000)
    names = [f"{mode} {overlap:g}" for mode in ("largest", "all") for overlap in wsol.OVERLAPS]
    return Outcome(method, 5, 0, {}, numbers, dict.fromkeys([*names, "top-1", "top-5"], curve))


def explanation(name: str = "0.png") -> Explanation:
    heatmap = np.zeros((1, 50, 50), np.float32)
    heatmap[0, 10:30, 5:15] = 1
    pixels = np.zeros((100, 100, 3), np.uint8)
    scores = np.full(1, 0.5, np.float32)
    return Explanation(pixels, name, np.array([0]), scores, ("<cat>",), heatmap, scores)


def test_what_is_missing_of_a_method_is_a_dash() -> None:
    heads, rows = wsol_report.table([outcome("cam", MaxBoxAcc=0.5, ROAD=-0.1234), outcome("gradcam", PxAP=1)])
    assert heads == ["method", "MaxBoxAcc", "PxAP", "ROAD"]
    assert rows == [["cam", "50.00", "–", "-0.123"], ["gradcam", "–", "100.00", "–"]]


def test_at_the_best_threshold_gt_known_is_maxboxacc() -> None:
    same = {"MaxBoxAcc": 0.5, "GT-known": 0.5, "threshold": 0.2}
    assert wsol_report.table([outcome("cam", **same)])[0] == ["method", "GT-known = MaxBoxAcc", "threshold"]
    other = outcome("cam", **{**same, "GT-known": 0.4})
    assert wsol_report.table([other])[0] == ["method", "MaxBoxAcc", "GT-known", "threshold"]


def test_the_sweep_has_a_row_for_each_method_and_threshold() -> None:
    lines = wsol_report.sweep_csv([outcome("cam"), outcome("gradcam++")]).splitlines()
    assert lines[0] == "method,threshold,largest 0.3,largest 0.5,largest 0.7,all 0.3,all 0.5,all 0.7,top-1,top-5"
    assert len(lines) == 1 + 2 * 1000
    assert lines[1].startswith("cam,0.000,1.000000,")
    assert lines[-1].startswith("gradcam++,0.999,0.000000,")


def test_worst_and_best() -> None:
    overlaps = {
        "cam": dict(zip([each.image for each in IMAGES], (0.5, 0.1, 0.9, 0.3, 0.7), strict=True)),
        "b": {"1.png": 0.4},
    }
    shown = wsol_report.worst_and_best(IMAGES, overlaps, each=2)
    assert [(one.heading, one.annotated.image) for one in shown] == [
        ("worst 1", "1.png"), ("worst 2", "3.png"), ("best 1", "2.png"), ("best 2", "4.png"),
    ]  # fmt: skip
    assert [dict(one.overlaps) for one in shown[:2]] == [{"cam": 0.1, "b": 0.4}, {"cam": 0.3, "b": 0.0}]
    few = wsol_report.worst_and_best(IMAGES, {"cam": {"0.png": 0.1, "4.png": 0.2, "2.png": 0.3}}, each=12)
    assert [one.heading for one in few] == ["worst 1", "worst 2", "best 1"]


def test_the_box_of_the_page_is_that_which_was_measured() -> None:
    heatmap = explanation().heatmaps[0]
    grey = wsol.grey_levels(wsol.normalized(heatmap))
    boxes, largest = wsol.boxes_above(grey, int(wsol.levels_of([0.5])[0]))
    assert boxes[largest].tolist() == [5, 10, 15, 30]
    assert wsol_report.found_box(heatmap, 0.5, (100, 200), 50).tolist() == [[10, 40, 20, 80]]
    assert wsol_report.found_box(heatmap * 0, 0.5, (100, 200), 50).tolist() == [[0, 0, 0, 0]]


def test_the_page_escapes_names_and_draws_both_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[list[float], tuple[int, ...]]] = []
    original = wsol_report.render.draw_boxes

    def note(image, boxes, *, color):  # type: ignore[no-untyped-def]
        drawn.append((np.asarray(boxes).ravel().tolist(), color))
        return original(image, boxes, color=color)

    monkeypatch.setattr(wsol_report.render, "draw_boxes", note)
    shown = [Shown(Annotated("<i>.png", 0, "list:1", ((10, 20, 29, 59),)), "worst 1", {"cam": 0.25})]
    numbers = {"MaxBoxAcc": 0.5, "threshold": 0.5}
    page = wsol_report.page(shown, {"cam": [explanation()]}, [outcome("cam", **numbers)], side=50, note="a & b")
    assert "worst 1 · &lt;i&gt;.png" in page
    assert "&lt;cat&gt;" in page
    assert "<i>" not in page
    assert "a &amp; b" in page
    assert "IoU 0.250" in page
    true, found = [32, 64, 64, 128], [32, 64, 64, 128]  # 3.2 pixels of the page are one of the image's
    assert drawn == [(true, (60, 220, 90)), (true, (60, 220, 90)), (found, (255, 255, 255))]
