"""When a run ends and what it keeps: --keep, --patience, --metric, --dry-run, and TensorBoard's log."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from camrt.errors import CamrtError
from camrt.train.options import Best, duration, metric_of
from tests.camrt.train import toy

torch = pytest.importorskip("torch", reason="training needs PyTorch")

from camrt.train import run as running  # noqa: E402
from tests.camrt.train.test_run import _one_thread, assert_same, records, train  # noqa: E402, F401


@pytest.fixture
def scripted(monkeypatch):
    """Replace the accuracies of the tests by given ones, iteration -> accuracy."""

    def script(values: dict[int, float]) -> None:
        real = running._Training._mean_outputs

        def outputs(self, net, batches):
            return real(self, net, batches) | {"accuracy": values[self.iteration]}

        monkeypatch.setattr(running._Training, "_mean_outputs", outputs)

    return script


def iterations(folder: Path, ending: str = ".camrtstate") -> list[int]:
    return sorted(int(file.name.split("_")[-1].split(".")[0]) for file in (folder / "out").glob(f"toy_iter_*{ending}"))


def test_the_best_and_the_last_are_kept(tmp_path, scripted):
    scripted({0: 0.1, 5: 0.3, 10: 0.8, 15: 0.8, 20: 0.4})
    solver = toy.write(tmp_path, solver="max_iter: 20 test_interval: 5 snapshot: 4")
    outcome, _ = train(solver, keep=True)
    assert outcome.best == Best("accuracy", 10, 0.8, 20, stale=2)
    assert iterations(tmp_path) == iterations(tmp_path, ".caffemodel") == [10, 20]
    assert not outcome.stopped_early
    plain, _ = train(toy.write(tmp_path / "plain", solver="max_iter: 20 test_interval: 5 snapshot: 4"))
    assert iterations(tmp_path / "plain") == [4, 8, 12, 16, 20]
    assert_same(outcome.weights, plain.weights)  # further snapshots change nothing


def test_a_run_in_parts_keeps_the_same_snapshots(tmp_path, scripted):
    """Also where a part ends before the best test, or just after it, with a test of its own."""
    scripted({0: 0.1, 5: 0.3, 8: 0.2, 10: 0.8, 12: 0.5, 15: 0.7, 20: 0.4})
    fields = "test_interval: 5 snapshot: 4"
    whole, _ = train(toy.write(tmp_path / "whole", solver=f"max_iter: 20 {fields}"), keep=True)
    for end in (8, 12, 20):
        parts, _ = train(toy.write(tmp_path / "parts", solver=f"max_iter: {end} {fields}"), keep=True, resume=True)
    assert iterations(tmp_path / "parts") == iterations(tmp_path / "whole") == [10, 20]
    assert_same(parts.weights, whole.weights)
    best = "out/toy_iter_10.caffemodel"
    assert (tmp_path / "parts" / best).read_bytes() == (tmp_path / "whole" / best).read_bytes()


def test_weights_without_a_state_are_not_removed(tmp_path, scripted):
    scripted(dict.fromkeys(range(0, 40, 5), 0.5))
    (tmp_path / "out").mkdir()
    foreign = tmp_path / "out" / "toy_iter_3.caffemodel"
    foreign.write_bytes(b"of Caffe")
    train(toy.write(tmp_path, solver="max_iter: 10 test_interval: 5 snapshot: 4"), keep=True, solverstate=True)
    assert foreign.exists()
    assert iterations(tmp_path) == [10]
    assert iterations(tmp_path, ".solverstate") == [10]


@pytest.mark.parametrize("interrupted", [False, True])
def test_it_stops_when_tests_do_not_improve(tmp_path, scripted, interrupted):
    """A run that is resumed in between stops at the same iteration: no test counts twice."""
    scripted({0: 0.1, 5: 0.6, 10: 0.5, 15: 0.7, 20: 0.2, 25: 0.7, 30: 0.6, 35: 0.9})
    fields = "test_interval: 5 snapshot: 5"
    if interrupted:
        for end in (10, 25):
            train(toy.write(tmp_path, solver=f"max_iter: {end} {fields}"), resume=True, patience=3)
    outcome, reporter = train(toy.write(tmp_path, solver=f"max_iter: 40 {fields}"), resume=True, patience=3)
    assert (outcome.iteration, outcome.stopped_early, outcome.signal) == (30, True, 0)
    assert outcome.best is not None
    assert (outcome.best.iteration, outcome.best.value) == (15, 0.7)
    assert "accuracy has not improved in 3 tests" in reporter.text
    again, _ = train(toy.write(tmp_path, solver=f"max_iter: 40 {fields}"), resume=True, patience=3)
    assert again.iteration == 30
    more, _ = train(toy.write(tmp_path, solver=f"max_iter: 35 {fields}"), resume=True, patience=5)
    assert (more.iteration, more.stopped_early, more.best.value) == (35, False, 0.9)


def test_a_loss_should_fall():
    best = Best("loss", 0, 2.0, 0)
    assert best.after(5, 1.5).iteration == 5
    assert best.after(5, 2.5).stale == 1
    assert best.after(5, float("nan")).stale == 1
    assert Best("accuracy", 0, 0.5, 0).after(5, float("nan")).stale == 1
    assert best.after(0, 1.0) is best
    assert metric_of({"loss": 1.0, "top5_Accuracy": 0.1}, None) == "top5_Accuracy"
    assert metric_of({"l2_error": 1.0}, None) == "l2_error"
    with pytest.raises(CamrtError, match="found no output 'f1' of the test net, expected one of loss, accuracy"):
        metric_of({"loss": 1.0, "accuracy": 1.0}, "f1")


def test_patience_without_tests(tmp_path):
    solver = toy.write(tmp_path, solver="test_iter: none test_interval: none")
    with pytest.raises(CamrtError, match="found --patience without a test net"):
        train(solver, patience=3)


def test_a_dry_run_leaves_a_picture_only(tmp_path):
    solver = toy.write(tmp_path)
    outcome, reporter = train(solver, dry_run=True)
    assert [file.name for file in (tmp_path / "out").iterdir() if not file.name.startswith(".")] == ["toy_data.png"]
    assert "input data: 8 x 1 x 40 x 40" in reporter.text
    assert "conv1 (Convolution): conv1 8 x 8 x 18 x 18; 208 weights" in reporter.text
    # conv1 208, its BatchNorm's statistics 17 and Scale 16, conv2 1,168, fc 170: 4 bytes each
    assert f"weights {(208 + 17 + 16 + 1168 + 170) * 4 / 1000:.1f} kB" in reporter.text
    assert f"history {(208 + 16 + 1168 + 170) * 4 / 1000:.1f} kB" in reporter.text
    plain, _ = train(toy.write(tmp_path / "plain", solver="max_iter: 1 display: 1"))
    assert outcome.loss == pytest.approx(records(tmp_path / "plain" / "solver.prototxt")[1]["loss"], rel=1e-6)
    assert set(outcome.tests[0]) == set(plain.tests[0])
    sheet = cv2.imread(str(tmp_path / "out" / "toy_data.png"), cv2.IMREAD_GRAYSCALE)
    assert sheet.shape == (136, 8 * 132 + 4)
    from camrt.train.data.sources import open_source

    images, _ = open_source(toy.DATA, "TRAIN").read(np.arange(200))
    cell = cv2.resize(sheet[4:132, 4:132], (40, 40), interpolation=cv2.INTER_AREA).astype(float)
    likest = min(np.abs(cell - image[..., 0]).mean() for image in images)  # of the shuffled digits
    assert likest < 12


def test_a_dry_run_beside_snapshots_changes_nothing(tmp_path):
    solver = toy.write(tmp_path, solver="max_iter: 10")
    train(solver)
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").glob("toy*")}
    train(solver, dry_run=True)
    after = {file.name: file.read_bytes() for file in (tmp_path / "out").glob("toy*")}
    assert after.keys() - before.keys() == {"toy_data.png"}
    assert all(after[name] == content for name, content in before.items())


def test_progress_says_speed_and_time_left(tmp_path):
    solver = toy.write(tmp_path, solver="max_iter: 20 display: 5 snapshot: 0")
    _, reporter = train(solver)
    lines = [line for line in reporter.lines if "images/s" in line]
    assert len(lines) == 4
    assert "left)" in lines[0]
    shown = [one for one in records(solver) if one["phase"] == "train"]
    assert all(one["images_per_second"] > 0 for one in shown)
    # The images of all displays took no longer than the whole run.
    seconds = sum(5 * 8 / one["images_per_second"] for one in shown[1:])
    assert seconds <= shown[-1]["seconds"] + 0.1


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5400, "1.5 h"), (200_000, "2.3 days")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_tensorboard_reads_the_log(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    solver = toy.write(tmp_path, solver="max_iter: 20 display: 5 snapshot: 10")
    train(toy.write(tmp_path, solver="max_iter: 10 display: 5 snapshot: 10"), tensorboard=True)
    train(solver, tensorboard=True, resume=True)
    board = EventAccumulator(str(tmp_path / "out" / "toy_tensorboard"))
    board.Reload()
    logged = records(solver)
    losses = {one["iteration"]: one["loss"] for one in logged if one["phase"] == "train"}
    found = {one.step: one.value for one in board.Scalars("train/loss")}
    assert found == pytest.approx(losses)
    tests = {one["iteration"]: one["outputs"]["accuracy"] for one in logged if one["phase"] == "test"}
    assert {one.step: one.value for one in board.Scalars("test 0/accuracy")} == pytest.approx(tests)


def test_tensorboard_is_named_when_it_is_missing(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(CamrtError, match="--tensorboard needs the package tensorboard"):
        train(toy.write(tmp_path), tensorboard=True)


def test_the_best_test_is_in_the_state(tmp_path, scripted):
    scripted({0: 0.1, 10: 0.3})
    train(toy.write(tmp_path, solver="max_iter: 10 snapshot: 10"), keep=True)
    with np.load(tmp_path / "out" / "toy_iter_10.camrtstate") as archive:
        facts = json.loads(archive["facts"].tobytes())
    assert facts["best"]["metric"] == "accuracy"
