from __future__ import annotations

import csv
import io
import json
import sys

import numpy as np
import pytest

from camrt.errors import CamrtError
from camrt.train.log import Log, curves


def shown(iteration: int, loss: float = 1.0) -> dict:
    return {"iteration": iteration, "phase": "train", "seconds": 0.5, "rate": 0.1, "loss": loss, "smoothed_loss": loss}


def after_test(iteration: int, net: int = 0, **outputs: float) -> dict:
    return {"iteration": iteration, "phase": "test", "seconds": 0.7, "net": net, "outputs": outputs}


@pytest.fixture
def log(tmp_path) -> Log:
    """Tests at 0, 10 and 20; losses at 0, 5, 10 and 15."""
    log = Log(tmp_path / "net")
    for record in (after_test(0, accuracy=0.1), shown(0), shown(5, 0.5), after_test(10, accuracy=0.5), shown(10)):
        log.add(record)
    for record in (shown(15), after_test(20, accuracy=0.9)):
        log.add(record)
    return log


def test_lines_are_json(log):
    lines = [json.loads(line) for line in log.lines.read_text().splitlines()]
    assert lines == log.records
    assert lines[2] == shown(5, 0.5)


def test_a_new_log_replaces_the_old(log, tmp_path):
    again = Log(tmp_path / "net")
    assert again.records == []
    assert log.lines.read_text() == ""


def test_going_on_drops_what_is_to_come_again(log, tmp_path):
    """At the snapshot of iteration 10, the test and the loss of iteration 10 were not yet there."""
    again = Log(tmp_path / "net", 10)
    assert [(one["phase"], one["iteration"]) for one in again.records] == [("test", 0), ("train", 0), ("train", 5)]
    again.add(after_test(10, accuracy=0.6))
    assert len(log.lines.read_text().splitlines()) == 4


@pytest.mark.parametrize("torn", [b'{"iteration": 15, "pha', b"{", b'{"iteration": "x"}', b"\xff\xfe"])
def test_a_torn_last_line_is_dropped(log, tmp_path, torn):
    whole = log.lines.read_bytes()
    log.lines.write_bytes(whole + torn)
    assert Log(tmp_path / "net", 100).records == log.records
    assert log.lines.read_bytes() == whole


@pytest.mark.parametrize("foreign", [b"text", b"[1]", b'{"iteration": null}', b"1e999"])
def test_a_foreign_line_is_named(log, tmp_path, foreign):
    before = foreign + b"\n" + log.lines.read_bytes()
    log.lines.write_bytes(before)
    with pytest.raises(CamrtError, match=r"net_log\.jsonl:1: is not a line of a training log"):
        Log(tmp_path / "net", 10)
    assert log.lines.read_bytes() == before


def test_a_log_that_is_gone_does_not_matter(tmp_path):
    assert Log(tmp_path / "net", 10).records == []


def test_numbers_that_are_none_are_null(log):
    log.add(shown(25, float("nan")))
    assert json.loads(log.lines.read_text().splitlines()[-1])["loss"] is None


def test_the_table_has_a_row_for_each_line(log):
    log.add(after_test(20, 1, top5=0.95))
    log.write_table()
    rows = list(csv.DictReader(io.StringIO(log.table.read_text())))
    assert list(rows[0]) == ["iteration", "seconds", "rate", "loss", "smoothed_loss", "test accuracy", "test1 top5"]
    assert len(rows) == 8
    assert [row["loss"] for row in rows] == ["", "1.0", "0.5", "", "1.0", "1.0", "", ""]
    assert [row["test accuracy"] for row in rows if row["test accuracy"]] == ["0.1", "0.5", "0.9"]
    assert rows[-1]["test1 top5"] == "0.95"


def test_the_curves_are_drawn(log):
    pytest.importorskip("matplotlib", reason="the extra train brings it")
    import cv2

    path = log.draw()
    assert path == log.curves
    picture = cv2.imread(str(path))
    assert picture.shape[1] == 900
    assert picture.shape[0] == 900  # three panels
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10
    assert curves([]) is None
    assert curves([shown(0, 1.0) | {"loss": None, "smoothed_loss": None, "rate": None}]) is None
    assert curves([after_test(0, loss=-1.0, top5=0.3)]) is not None


def test_without_matplotlib_there_are_no_curves(log, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError):
        log.draw()


def test_without_anything_to_draw_matplotlib_is_not_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert Log(tmp_path / "net").draw() is None
