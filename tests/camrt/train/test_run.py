from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.camrt.train import toy

torch = pytest.importorskip("torch", reason="training needs PyTorch")

import converters  # noqa: E402
from camrt.errors import CamrtError  # noqa: E402
from camrt.train import load_caffemodel, network, read_solver  # noqa: E402
from camrt.train import run as running  # noqa: E402
from camrt.train.data import Feed, ImageFiles, Order, Transform  # noqa: E402
from camrt.train.data.loading import BatchLoader, DataLoaderSpec, data_loader_spec  # noqa: E402
from camrt.train.data.streams import ImageStream  # noqa: E402
from camrt.train.options import TrainingOptions  # noqa: E402
from converters.reader import read_weights  # noqa: E402

TINY = "clutter:drawn,count=400,size=32,distractors=0"


class Lines:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.advanced = 0

    def say(self, text: str) -> None:
        self.lines.append(text)

    def begin(self, done: int, total: int) -> None:
        self.bounds = done, total

    def advance(self) -> None:
        self.advanced += 1

    def show(self, loss: float, rate: float) -> None:
        self.shown = loss, rate

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    """Other tests run at the same time; and no time is spent on pictures."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr("camrt.train.log.curves", lambda records: None)
    yield
    torch.set_num_threads(threads)


def train(solver: Path, **options):
    options = {"data": toy.DATA, "test_data": toy.TEST_DATA, "workers": 0} | options
    reporter = Lines()
    return running.train(TrainingOptions(solver, **options), reporter=reporter), reporter


def weights(file: Path) -> dict[str, list[np.ndarray]]:
    return {name: [np.array(blob) for blob in blobs] for name, blobs in read_weights(file).layers.items()}


def assert_same(one: Path, other: Path, tolerance: float = 0) -> None:
    found, expected = weights(one), weights(other)
    assert found.keys() == expected.keys()
    assert list(found) == list(expected) or one.suffix == ".h5"  # HDF5 lists names in alphabetical order
    for name in expected:
        for blob, wanted in zip(found[name], expected[name], strict=True):
            if tolerance:
                np.testing.assert_allclose(blob, wanted, atol=tolerance, rtol=0, err_msg=name)
            else:
                np.testing.assert_array_equal(blob, wanted, err_msg=name)


def records(solver: Path) -> list[dict]:
    return [json.loads(line) for line in (solver.parent / "out" / "toy_log.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------------------- learning


def test_it_learns(tmp_path):
    solver = toy.write(
        tmp_path,
        batch=32,
        solver='max_iter: 120 test_interval: 60 snapshot: 0 type: "Adam" base_lr: 0.01 lr_policy: "fixed"',
    )
    (tmp_path / "net.prototxt").write_text((tmp_path / "net.prototxt").read_text().replace(": 40", ": 32"))
    outcome, _ = train(solver, data=TINY, test_data=f"{TINY},seed=1")
    chance = np.log(10)
    assert outcome.iteration == 120
    assert outcome.loss < chance - 0.25
    assert outcome.tests[0]["loss"] < chance - 0.25
    assert outcome.tests[0]["accuracy"] >= 0.25  # chance is 0.1
    assert outcome.weights == tmp_path / "out" / "toy_iter_120.caffemodel"


def test_what_was_trained_converts_and_answers_as_the_test_net(tmp_path):
    """The way of lenetCAM: train, convert, run by ONNX Runtime."""
    runtime = pytest.importorskip("onnxruntime")
    solver = toy.write(tmp_path)
    outcome, _ = train(solver)
    net = tmp_path / "net.prototxt"
    model = converters.convert(net, outcome.weights, input_shapes={"data": (25, 1, 40, 40)}, outputs=["scores"])
    tested = read_solver(solver).test_nets()[0]
    fed = data_loader_spec(tested, toy.TEST_DATA, seed=7)
    test_net = network(tested, seed=1)
    load_caffemodel(test_net, outcome.weights)
    inputs = next(iter(BatchLoader(fed, [0], workers=0, device=torch.device("cpu"))))
    with torch.no_grad():
        expected = test_net(inputs, keep=["scores"])["scores"].numpy()
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["scores"], {"data": inputs["data"].numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-5)
    labels = inputs["label"].numpy()
    accuracy = np.mean([(found.argmax(1) == labels).mean(), _second_accuracy(session, fed)])
    assert outcome.tests[0]["accuracy"] == pytest.approx(accuracy)


def _second_accuracy(session, fed) -> float:
    """Of the second test batch: test_iter is 2."""
    inputs = next(iter(BatchLoader(fed, [25], workers=0, device=torch.device("cpu"))))
    (found,) = session.run(["scores"], {"data": inputs["data"].numpy()})
    return float((found.argmax(1) == inputs["label"].numpy()).mean())


def test_the_log_says_what_happened(tmp_path):
    solver = toy.write(tmp_path, solver="max_iter: 20 gamma: 0.5 stepsize: 10")
    outcome, reporter = train(solver)
    found = records(solver)
    assert [(one["phase"], one["iteration"]) for one in found] == [
        ("test", 0), ("train", 0), ("train", 5), ("test", 10), ("train", 10), ("train", 15), ("test", 20),
    ]  # fmt: skip
    shown = [one for one in found if one["phase"] == "train"]
    assert [one["rate"] for one in shown] == pytest.approx([0.1, 0.1, 0.05, 0.05])
    assert found[-1]["outputs"] == outcome.tests[0]
    assert reporter.advanced == 20
    assert reporter.shown[0] == shown[-1]["smoothed_loss"]
    table = (tmp_path / "out" / "toy_log.csv").read_text().splitlines()
    assert table[0] == "iteration,seconds,rate,loss,smoothed_loss,test accuracy,test loss"
    assert len(table) == 8
    assert (tmp_path / "out" / "toy_labels.txt").read_text().split() == list("0123456789")


def test_the_smoothed_loss_is_the_mean_of_the_last(tmp_path):
    train(toy.write(tmp_path / "a", solver="max_iter: 8 display: 1 snapshot: 0 average_loss: 1"))
    losses = [one["loss"] for one in records(tmp_path / "a" / "solver.prototxt") if one["phase"] == "train"]
    train(toy.write(tmp_path / "b", solver="max_iter: 8 display: 7 snapshot: 0 average_loss: 3"))
    smoothed = [one for one in records(tmp_path / "b" / "solver.prototxt") if one["phase"] == "train"]
    assert smoothed[0]["smoothed_loss"] == losses[0]
    assert smoothed[1]["smoothed_loss"] == pytest.approx(np.mean(losses[5:8]), rel=1e-6)
    assert smoothed[1]["loss"] == losses[7]


def test_iter_size_sums_up_batches(tmp_path):
    """Two batches of 4 are one of 8, where nothing looks at a batch as a whole."""
    plain = {"norm": False, "dropout": False}
    whole, _ = train(toy.write(tmp_path / "a", batch=8, solver="max_iter: 6", **plain))
    parts, _ = train(toy.write(tmp_path / "b", batch=4, solver="max_iter: 6 iter_size: 2", **plain))
    assert_same(parts.weights, whole.weights, tolerance=1e-6)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)


def test_states_choose_layers_and_there_may_be_several_test_nets(tmp_path):
    solver = toy.write(tmp_path, solver="max_iter: 2 snapshot: 0")
    net = (tmp_path / "net.prototxt").read_text()
    more = 'include { phase: TEST stage: "five" } accuracy_param { top_k: 5 }'
    net += f'layer {{ name: "top5" type: "Accuracy" bottom: "scores" bottom: "label" top: "top5" {more} }}'
    (tmp_path / "net.prototxt").write_text(net)
    with solver.open("a") as stream:
        stream.write('test_iter: 1\ntest_state {}\ntest_state { stage: "five" }\n')
    outcome, reporter = train(solver)
    assert set(outcome.tests[0]) == {"accuracy", "loss"}
    assert set(outcome.tests[1]) == {"accuracy", "loss", "top5"}
    assert outcome.tests[1]["top5"] >= outcome.tests[1]["accuracy"]
    assert "test net 1: " in reporter.text


# ------------------------------------------------------------------------------------------------ stopping and going on


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills copies of a process")
def test_killed_anywhere_it_reaches_the_same_weights(tmp_path):
    """Dropout, BatchNorm, mirrored and shuffled files, one of them broken; killed before, between and after files."""
    rng = np.random.default_rng(0)
    for number in range(15):
        folder = tmp_path / "images" / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number}.png"), rng.integers(0, 256, (44, 50, 3), np.uint8))
    (tmp_path / "images" / "class1" / "4.png").write_bytes(b"broken")
    program = [
        sys.executable,
        str(Path(__file__).with_name("kills.py")),
        str(tmp_path),
        f"folder:{tmp_path / 'images'}",
    ]
    done = subprocess.run(program, capture_output=True, text=True, timeout=600, check=False)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 6, done.stderr
    for kind, number, *found in lines:
        assert found == ["1", "0", "True", "True"], (kind, number, "deaths, status, same weights, same log")


def test_a_signal_ends_it_with_a_snapshot_that_is_gone_on_from(tmp_path, monkeypatch):
    unbroken, _ = train(toy.write(tmp_path / "a"))
    solver = toy.write(tmp_path / "b")
    update = running._Training._update

    def interrupted(self):
        update(self)
        if self.iteration == 12:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(running._Training, "_update", interrupted)
    stopped, reporter = train(solver)
    monkeypatch.undo()
    assert stopped.signal == signal.SIGINT
    assert stopped.iteration == 13
    assert stopped.weights.name == "toy_iter_13.caffemodel"
    assert "stopping after iteration 13" in reporter.text
    monkeypatch.setattr("camrt.train.log.curves", lambda records: None)
    ended, reporter = train(solver, resume=True)
    assert reporter.bounds == (13, 30)
    assert ended.signal == 0
    assert_same(ended.weights, unbroken.weights)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="the system has no SIGHUP")
def test_a_hangup_takes_a_snapshot_and_the_training_goes_on(tmp_path, monkeypatch):
    unbroken, _ = train(toy.write(tmp_path / "a"))
    update = running._Training._update

    def interrupted(self):
        update(self)
        if self.iteration == 12:
            os.kill(os.getpid(), signal.SIGHUP)

    monkeypatch.setattr(running._Training, "_update", interrupted)
    solver = toy.write(tmp_path / "b")
    before = signal.getsignal(signal.SIGHUP)
    ended, _ = train(solver)
    assert signal.getsignal(signal.SIGHUP) is before
    assert (ended.iteration, ended.signal) == (30, 0)
    assert_same(ended.weights, unbroken.weights)
    monkeypatch.undo()
    resumed, reporter = train(solver, snapshot=tmp_path / "b" / "out" / "toy_iter_13.camrtstate")
    assert reporter.bounds == (13, 30)
    assert_same(resumed.weights, unbroken.weights)


def test_stopped_before_the_first_iteration_there_is_no_note_of_matplotlib(tmp_path, monkeypatch):
    begin = running._Training._set_stage

    def interrupted(self):
        begin(self)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(running._Training, "_set_stage", interrupted)
    stopped, reporter = train(toy.write(tmp_path))
    assert (stopped.iteration, stopped.signal) == (0, signal.SIGINT)
    assert "matplotlib" not in reporter.text


def test_a_second_signal_ends_it_at_once(tmp_path, monkeypatch):
    def interrupted(self):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # passed on by a parent: the same one
        time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(running, "_REPEAT_SECONDS", 0.01)
    monkeypatch.setattr(running._Training, "_update", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train(toy.write(tmp_path))
    assert signal.getsignal(signal.SIGTERM) is before
    assert not list((tmp_path / "out").glob("*.caffemodel"))


def test_a_run_that_is_there_is_not_overwritten_unasked(tmp_path):
    solver = toy.write(tmp_path, solver="max_iter: 20")
    first, _ = train(solver)
    before = first.weights.read_bytes()
    with pytest.raises(CamrtError, match=r"found 2 snapshot.*toy_iter_20\.camrtstate.*--resume.*--restart.*--out"):
        train(solver)
    assert first.weights.read_bytes() == before
    other, _ = train(solver, out=tmp_path / "other" / "toy")
    assert other.weights.read_bytes() == before
    shorter = toy.write(tmp_path, solver="max_iter: 5 snapshot: 0")
    train(shorter, restart=True)
    assert sorted(file.name for file in (tmp_path / "out").glob("*iter*")) == [
        "toy_iter_5.caffemodel", "toy_iter_5.camrtstate",
    ]  # fmt: skip


def test_a_restart_does_not_remove_the_weights_it_begins_from(tmp_path):
    solver = toy.write(tmp_path, solver="max_iter: 10")
    first, _ = train(solver)
    with pytest.raises(CamrtError, match=r"toy_iter_10\.caffemodel: belongs to a snapshot that --restart removes"):
        train(solver, restart=True, weights=(first.weights,))
    assert first.weights.exists()


def test_a_mistake_does_not_cost_the_snapshots(tmp_path):
    train(toy.write(tmp_path, solver="max_iter: 10"))
    with pytest.raises(CamrtError):
        train(toy.write(tmp_path, classes=5), restart=True)
    assert (tmp_path / "out" / "toy_iter_10.caffemodel").exists()


def test_resuming_what_never_began_begins_and_what_has_ended_tests(tmp_path):
    solver = toy.write(tmp_path, solver="max_iter: 10")
    began, reporter = train(solver, resume=True)
    assert "starting at iteration 0" in reporter.text
    before = began.weights.read_bytes(), began.weights.stat().st_mtime_ns
    again, _ = train(solver, resume=True)
    assert again.iteration == 10
    assert again.tests == began.tests
    assert (again.weights.read_bytes(), again.weights.stat().st_mtime_ns) == before


def test_one_can_go_on_from_an_earlier_snapshot(tmp_path):
    solver = toy.write(tmp_path)
    unbroken, _ = train(solver)
    before = weights(unbroken.weights)
    _, reporter = train(solver, snapshot=tmp_path / "out" / "toy_iter_10.camrtstate")
    assert reporter.bounds == (10, 30)
    after = weights(unbroken.weights)
    assert all(np.array_equal(a, b) for name in before for a, b in zip(before[name], after[name], strict=True))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"classes": 12}, {}, r"fc: found blob 0 of 10 x 16, expected 12 x 16"),
        ({"head": "other"}, {}, "found no weights for other: the snapshot belongs to another network"),
        ({"solver": 'type: "Adam"'}, {}, "found the state of a solver of type 'SGD', expected 'Adam'"),
        ({}, {"seed": 8}, "found --seed 8, expected 7, the seed of the run"),
        ({}, {"two_stage": 3}, "found --two-stage 3, expected none, the value of the run"),
    ],
)
def test_another_training_does_not_go_on_from_a_snapshot(tmp_path, change, options, message):
    train(toy.write(tmp_path, solver="max_iter: 10"))
    with pytest.raises(CamrtError, match=message):
        train(toy.write(tmp_path, **change), resume=True, **options)


def test_other_data_is_noted(tmp_path):
    solver = toy.write(tmp_path, solver="max_iter: 10")
    train(solver)
    _, reporter = train(toy.write(tmp_path, solver="max_iter: 11"), resume=True, data=toy.TEST_DATA)
    assert f"note: the data have changed from {toy.DATA}" in reporter.text


def test_two_runs_do_not_write_the_same_files(tmp_path, monkeypatch):
    solver = toy.write(tmp_path)
    solve, errors = running._Training._solve, []

    def meanwhile(self):
        monkeypatch.setattr(running._Training, "_solve", solve)

        def second():
            try:
                train(solver, resume=True)
            except CamrtError as error:
                errors.append(str(error))

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    monkeypatch.setattr(running._Training, "_solve", meanwhile)
    train(solver)
    assert len(errors) == 1
    assert "another camrt train writes to" in errors[0]


# ---------------------------------------------------------------------------------------------------- what is no number


def test_a_loss_that_is_no_number_stops_it_and_keeps_the_snapshot(tmp_path, monkeypatch):
    solver = toy.write(tmp_path, solver="snapshot: 5 display: 4")
    loss = running.Network.loss

    def bad(self, blobs):
        value = loss(self, blobs)
        bad.count += 1
        return value * float("nan") if bad.count == 13 else value

    bad.count = 0
    monkeypatch.setattr(running.Network, "loss", bad)
    with pytest.raises(CamrtError, match=r"the loss is nan at iteration 12\. The last snapshot is .*toy_iter_10\.caf"):
        train(solver)
    assert sorted(file.name for file in (tmp_path / "out").glob("*.caffemodel")) == [
        "toy_iter_10.caffemodel", "toy_iter_5.caffemodel",
    ]  # fmt: skip
    assert all(
        np.isfinite(blob).all()
        for blobs in weights(tmp_path / "out" / "toy_iter_10.caffemodel").values()
        for blob in blobs
    )
    assert (tmp_path / "out" / "toy_log.csv").exists()


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    """The step that spoils the weights follows a loss that is a number."""
    with pytest.raises(CamrtError, match=r"found NaN or infinite weights at iteration 1\. There is no snapshot"):
        train(toy.write(tmp_path, solver="base_lr: 1e38 weight_decay: 1e38 snapshot: 1"))
    assert not list((tmp_path / "out").glob("*.caffemodel"))


# ------------------------------------------------------------------------------------------------------- fine-tuning


def test_weights_are_taken_over_and_it_says_which(tmp_path):
    first, _ = train(toy.write(tmp_path / "a", solver="max_iter: 5"))
    solver = toy.write(tmp_path / "b", head="new", solver="max_iter: 1 base_lr: 0 snapshot: 0")
    second, reporter = train(solver, weights=(first.weights,))
    assert f"{first.weights}: loaded 4 layer(s); not in the file: new; not in the network: fc" in reporter.text
    before, after = weights(first.weights), weights(second.weights)
    for name in ("conv1", "scale1", "conv2"):
        for one, other in zip(before[name], after[name], strict=True):
            np.testing.assert_array_equal(one, other)


def test_weights_of_another_shape_are_refused(tmp_path):
    first, _ = train(toy.write(tmp_path / "a", solver="max_iter: 2"))
    with pytest.raises(CamrtError, match=r"layer fc: found blob 0 of 10 x 16, expected 12 x 16"):
        train(toy.write(tmp_path / "b", classes=12), weights=(first.weights,))


def test_in_the_first_of_two_stages_only_new_layers_learn(tmp_path):
    first, _ = train(toy.write(tmp_path / "a", solver="max_iter: 5"))
    solver = toy.write(tmp_path / "b", head="new", solver="snapshot: 10 max_iter: 20")
    _, reporter = train(solver, weights=(first.weights,), two_stage=10)
    before = weights(first.weights)
    halfway, ended = (weights(tmp_path / "b" / "out" / f"toy_iter_{n}.caffemodel") for n in (10, 20))
    for name in ("conv1", "scale1", "conv2"):
        for one, other, last in zip(before[name], halfway[name], ended[name], strict=True):
            np.testing.assert_array_equal(one, other)
            assert not np.array_equal(other, last)
    assert "iteration 0: training only new layers, up to iteration 10" in reporter.text
    assert "iteration 10: training all layers" in reporter.text


def test_two_stages_can_be_interrupted(tmp_path, monkeypatch):
    first, _ = train(toy.write(tmp_path / "a", solver="max_iter: 5"))
    fields = "snapshot: 5 max_iter: 15"
    train(toy.write(tmp_path / "b", head="new", solver=fields), weights=(first.weights,), two_stage=8)
    for number in (10, 15):
        for ending in ("caffemodel", "camrtstate"):
            (tmp_path / "b" / "out" / f"toy_iter_{number}.{ending}").rename(tmp_path / f"{number}.{ending}")
    resumed, _ = train(tmp_path / "b" / "solver.prototxt", resume=True, weights=(first.weights,), two_stage=8)
    assert_same(resumed.weights, tmp_path / "15.caffemodel")


@pytest.mark.parametrize(("head", "with_weights", "message"), [
    ("fc", True, "weights for all layers"),
    ("new", False, "no layers from --weights"),
])  # fmt: skip
def test_two_stages_need_old_and_new_layers(tmp_path, head, with_weights, message):
    first, _ = train(toy.write(tmp_path / "a", solver="max_iter: 2"))
    with pytest.raises(CamrtError, match=message):
        train(toy.write(tmp_path / "b", head=head), weights=(first.weights,) if with_weights else (), two_stage=5)


# ----------------------------------------------------------------------------------------------- devices and processes


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_learns_about_the_same(tmp_path, amp):
    full, _ = train(toy.write(tmp_path / "a", dropout=False))
    mixed, _ = train(toy.write(tmp_path / "b", dropout=False), amp=amp)
    assert mixed.loss == pytest.approx(full.loss, abs=0.1)
    assert mixed.loss != full.loss
    for blobs in weights(mixed.weights).values():
        assert all(np.isfinite(blob).all() for blob in blobs)


def test_mixed_precision_with_a_scaler_can_be_interrupted(tmp_path):
    unbroken, _ = train(toy.write(tmp_path / "a"), amp="fp16")
    solver = toy.write(tmp_path / "b", solver="max_iter: 10")
    train(solver, amp="fp16")
    resumed, _ = train(toy.write(tmp_path / "b"), amp="fp16", resume=True)
    assert_same(resumed.weights, unbroken.weights)


def test_gradients_that_overflow_cost_a_step_and_not_the_weights(tmp_path):
    """The scale begins at 65536: a loss weight makes the first gradients infinite in float16."""
    solver = toy.write(tmp_path, solver="max_iter: 20 base_lr: 0.0001")
    net = (tmp_path / "net.prototxt").read_text()
    (tmp_path / "net.prototxt").write_text(net.replace('top: "loss" }', 'top: "loss" loss_weight: 1000 }'))
    outcome, _ = train(solver, amp="fp16")
    assert outcome.iteration == 20
    assert np.isfinite(outcome.loss)


def test_workers_change_nothing(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(6):
        folder = tmp_path / "images" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number}.png"), rng.integers(0, 256, (44, 50, 3), np.uint8))
    (tmp_path / "images" / "1" / "1.png").write_bytes(b"broken")
    data = f"folder:{tmp_path / 'images'}"
    files = [
        train(
            toy.write(tmp_path / str(workers), solver="max_iter: 5 test_interval: 3"),
            workers=workers,
            data=data,
            test_data=data,
        )
        for workers in (0, 2)
    ]
    (alone, said), (helped, said_by_two) = files
    assert_same(helped.weights, alone.weights)
    assert helped.tests == alone.tests
    for reporter in (said, said_by_two):
        warnings = [line for line in reporter.lines if line.startswith("warning: ")]
        assert len(warnings) <= 3  # of the training, and of the test before and at the end
        assert all(str(tmp_path / "images" / "1" / "1.png") in line for line in warnings)


def test_more_than_half_of_the_images_unusable_is_an_error(tmp_path):
    paths = []
    for number in range(5):
        paths.append(tmp_path / f"{number}.png")
        cv2.imwrite(str(paths[-1]), np.full((4, 4, 3), number, np.uint8))
    for number in (0, 2, 4):
        paths[number].write_bytes(b"broken")
    feed = Feed(ImageFiles("files", list(map(str, paths)), range(5)), Transform(), Order(5))
    loading = BatchLoader(
        DataLoaderSpec((ImageStream("data", "label", feed, 1),)), range(5), workers=0, device=torch.device("cpu")
    )
    with pytest.raises(CamrtError, match="files: found 3 of 5 images that cannot be used, expected at most half"):
        list(loading)


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_twice_the_batch(tmp_path):
    plain = {"norm": False, "dropout": False, "mirror": True}
    fields = "max_iter: 12 test_interval: 6 snapshot: 6 test_iter: 3"
    solver = toy.write(tmp_path / "two", batch=4, solver=fields, **plain)
    program = "import sys; sys.path.insert(0, sys.argv.pop(1)); from camrt.cli import main; main()"
    root = str(Path(__file__).resolve().parents[3])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python", "--standalone"]
    train_it = [
        "train",
        str(solver),
        "--data",
        toy.DATA,
        "--test-data",
        toy.TEST_DATA,
        "--threads",
        "1",
        "--device",
        "cpu",
    ]
    done = subprocess.run(
        [*torchrun, sys.executable, "-c", program, root, *train_it],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    alone, _ = train(toy.write(tmp_path / "one", batch=8, solver=fields, **plain))
    assert_same(tmp_path / "two" / "out" / "toy_iter_12.caffemodel", alone.weights, tolerance=2e-6)
    found, expected = (records(tmp_path / name / "solver.prototxt") for name in ("two", "one"))
    assert [one["iteration"] for one in found] == [one["iteration"] for one in expected]
    for one, other in zip(found, expected, strict=True):
        for key in ("loss", "smoothed_loss"):
            assert one.get(key, 0) == pytest.approx(other.get(key, 0), rel=1e-5)
        assert one.get("outputs", {}) == pytest.approx(other.get("outputs", {}), rel=1e-5)
    assert done.stdout.count("toy_iter_12.caffemodel") == 1  # one of them says so


def test_a_device_without_memory_is_no_traceback(tmp_path, monkeypatch):
    def full(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(running._Training, "_update", full)
    with pytest.raises(CamrtError, match=r"the device is out of memory: lower batch_size and raise iter_size"):
        train(toy.write(tmp_path))


def test_a_device_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CamrtError, match="found the device 'cude', which PyTorch cannot use"):
        train(toy.write(tmp_path), device="cude")
    if not torch.cuda.is_available():
        with pytest.raises(CamrtError, match="found the device 'cuda', which PyTorch cannot use"):
            train(toy.write(tmp_path), device="cuda")


# ----------------------------------------------------------------------------------------------------------- mistakes


def test_labels_that_the_network_does_not_know_are_refused_at_the_start(tmp_path):
    with pytest.raises(
        CamrtError, match=r"found labels up to 9, expected 0 to 4: the layer 'loss' of 'toy' has 5 classes"
    ):
        train(toy.write(tmp_path, classes=5))
    assert not list((tmp_path / "out").glob("toy*"))


def test_a_database_asks_for_data(tmp_path):
    solver = toy.write(tmp_path)
    net = (tmp_path / "net.prototxt").read_text().replace('"MemoryData"', '"Data"')
    memory = "memory_data_param { batch_size: %d channels: 1 height: 40 width: 40 }"
    for batch in (8, 25):
        net = net.replace(memory % batch, f'data_param {{ source: "train_lmdb" batch_size: {batch} }}')
    (tmp_path / "net.prototxt").write_text(net)
    with pytest.raises(
        CamrtError,
        match=r"train_lmdb: does not exist, expected the database of the layer 'data' \(Data\).*--data folder:DIR",
    ):
        train(solver, data=None)
    with pytest.raises(CamrtError, match=r"train_lmdb: does not exist.*--test-data folder:DIR"):
        train(solver, test_data=None)


def with_layer(folder: Path, type: str, params: str, **fields: str) -> Path:
    """The toy network with another kind of data layer."""
    solver = toy.write(folder, **fields)
    net = (folder / "net.prototxt").read_text().replace('"MemoryData"', f'"{type}"')
    for batch in (8, 25):
        net = net.replace(f"memory_data_param {{ batch_size: {batch} channels: 1 height: 40 width: 40 }}",
                          params.replace("BATCH", str(batch)))  # fmt: skip
    (folder / "net.prototxt").write_text(net)
    return solver


PYTHON = (
    'python_param { module: "pascal" layer: "Multilabel" param_str: "{\'batch_size\': BATCH, \'im_shape\': [40]}" }'
)


def test_data_takes_the_place_of_a_python_layer(tmp_path):
    """The same run as with a MemoryData layer: its param_str gives the batch size."""
    expected, _ = train(toy.write(tmp_path / "a", solver="max_iter: 3"))
    found, _ = train(with_layer(tmp_path / "b", "Python", PYTHON, solver="max_iter: 3"))
    assert_same(found.weights, expected.weights)


def test_a_python_layer_is_named(tmp_path):
    solver = with_layer(tmp_path / "a", "Python", PYTHON)
    with pytest.raises(
        CamrtError, match=r"layer 'data' \(Python pascal.Multilabel\), which runs Python code.*--data folder:DIR"
    ):
        train(solver, data=None)
    for number, text in enumerate(("", "(", "[1]", "{'batch_size': -1}")):
        bare = with_layer(
            tmp_path / str(number), "Python", f'python_param {{ module: "m" layer: "L" param_str: "{text}" }}'
        )
        with pytest.raises(CamrtError, match=r"found no batch_size in the layer 'data' \(Python m.L\).*--batch"):
            train(bare)


def test_the_batch_can_be_given(tmp_path):
    expected, _ = train(toy.write(tmp_path / "a", solver="max_iter: 3", batch=4))
    solver = toy.write(tmp_path / "b", solver="max_iter: 3 test_iter: 2")
    found, _ = train(solver, batch=4)
    assert_same(found.weights, expected.weights)
    _, reporter = train(solver, batch=5, snapshot=found.weights.with_suffix(".camrtstate"))
    assert "note: the batch size has changed from 4 to 5: the results will differ" in reporter.text


def test_whole_images_in_place_of_windows_are_told(tmp_path):
    params = 'window_data_param { source: "windows.txt" batch_size: BATCH }'
    _, reporter = train(with_layer(tmp_path, "WindowData", params, solver="max_iter: 1"))
    assert reporter.text.count("note: the layer 'data' (WindowData) crops windows from its images") == 2
    assert "there are no windows" in reporter.text


def test_one_source_for_several_test_nets_is_told(tmp_path):
    solver = toy.write(tmp_path, solver="max_iter: 1")
    solver.write_text(solver.read_text().replace("test_iter: 2", "test_iter: 2 test_iter: 1"))
    _, reporter = train(solver)
    assert f"note: all 2 test nets read {toy.TEST_DATA}" in reporter.text
    _, reporter = train(toy.write(tmp_path / "one", solver="max_iter: 1"))
    assert "test nets" not in reporter.text


def test_weights_as_hdf5(tmp_path):
    pytest.importorskip("h5py", reason="HDF5 needs h5py")
    binary, _ = train(toy.write(tmp_path / "a"))
    solver = toy.write(tmp_path / "b", solver="snapshot_format: HDF5 max_iter: 20")
    stopped, _ = train(solver)
    assert stopped.weights.name == "toy_iter_20.caffemodel.h5"
    assert not list(stopped.weights.parent.glob("*.caffemodel"))
    solver.write_text(solver.read_text().replace("max_iter: 20", "max_iter: 30"))
    ended, _ = train(solver, resume=True)
    assert_same(ended.weights, binary.weights)
    with pytest.raises(CamrtError, match="belongs to a snapshot that --restart removes"):
        train(solver, restart=True, weights=(ended.weights,))
    train(toy.write(tmp_path / "b", solver="max_iter: 10"), restart=True)
    assert [file.name for file in ended.weights.parent.glob("*.caffemodel*")] == ["toy_iter_10.caffemodel"]


def test_hdf5_without_h5py_is_told_at_the_start(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "h5py" else find(name))
    with pytest.raises(CamrtError, match=r"solver.prototxt: found snapshot_format HDF5, which needs h5py"):
        train(toy.write(tmp_path, solver="snapshot_format: HDF5"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_of_pytorch_are_loaded_by_name(tmp_path, legacy):
    file = tmp_path / "net.pth"
    given = torch.arange(160, dtype=torch.float32).view(10, 16) / 100
    torch.save({"fc.weight": given, "body.weight": given}, file, _use_new_zipfile_serialization=not legacy)
    solver = toy.write(tmp_path, solver="max_iter: 1 snapshot: 0 base_lr: 0")
    outcome, reporter = train(solver, weights=(file,))
    np.testing.assert_array_equal(weights(outcome.weights)["fc"][0], given.numpy())
    assert "net.pth: loaded 1 layer(s); not in the file: conv1, bn1, scale1, conv2" in reporter.text
    assert "not in the network: body" in reporter.text


def test_weights_of_pytorch_with_another_ending_are_named(tmp_path):
    torch.save({"fc.weight": torch.zeros(10, 16)}, tmp_path / "net.caffemodel")
    with pytest.raises(CamrtError, match=r"is a PyTorch checkpoint.*give it the ending \.pth"):
        train(toy.write(tmp_path), weights=(tmp_path / "net.caffemodel",))


def test_a_source_may_stand_in_the_data_layer(tmp_path):
    """As in lenetCAM: the prototxt says that its images are drawn."""
    with_options, _ = train(toy.write(tmp_path / "a", solver="max_iter: 3"))
    solver = toy.write(tmp_path / "b", solver="max_iter: 3")
    net = (tmp_path / "b" / "net.prototxt").read_text().replace('"MemoryData"', '"ImageData"')
    for batch, text in ((8, toy.DATA), (25, toy.TEST_DATA)):
        net = net.replace(f"memory_data_param {{ batch_size: {batch} channels: 1 height: 40 width: 40 }}",
                          f'image_data_param {{ source: "{text}" batch_size: {batch} is_color: false }}')  # fmt: skip
    (tmp_path / "b" / "net.prototxt").write_text(net)
    in_layer, _ = train(solver, data=None, test_data=None)
    assert_same(in_layer.weights, with_options.weights)


def test_image_data_layers_are_read(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(4):
        cv2.imwrite(str(tmp_path / f"{number}.png"), rng.integers(0, 256, (50, 60, 3), np.uint8))
    (tmp_path / "list.txt").write_text("".join(f"{number}.png {number}\n" for number in range(4)))
    solver = toy.write(tmp_path, solver="max_iter: 2")
    net = (tmp_path / "net.prototxt").read_text().replace('"MemoryData"', '"ImageData"')
    for batch in (8, 25):
        net = net.replace(
            f"memory_data_param {{ batch_size: {batch} channels: 1 height: 40 width: 40 }}",
            f'image_data_param {{ source: "list.txt" root_folder: "{tmp_path}" batch_size: {batch} '
            "new_height: 42 new_width: 42 }",
        )
    (tmp_path / "net.prototxt").write_text(net.replace("scale: 0.00390625", "crop_size: 40 scale: 0.00390625"))
    outcome, _ = train(solver, data=None, test_data=None)
    assert weights(outcome.weights)["conv1"][0].shape == (8, 3, 5, 5)


def test_two_ways_to_begin_are_refused(tmp_path):
    with pytest.raises(CamrtError, match="found --restart together with --resume or --snapshot"):
        train(toy.write(tmp_path), restart=True, resume=True)
