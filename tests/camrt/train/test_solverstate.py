"""States of Caffe, there and back: the messages of caffe.proto, NumPy's solvers, and what Caffe did after step 5."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from camrt.errors import CamrtError
from camrt.train.policies import learning_rate
from camrt.train.solverstate import SolverState, current_step, read_solverstate, write_solverstate
from converters.reader import read_weights
from tests.camrt.train import toy

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing is trained")
from tests.camrt.train.test_run import train, weights  # noqa: E402
from tests.camrt.train.test_solver import BIAS, CASES, DIVIDING, MEAN, Replay, blob_of, error  # noqa: E402

# The learnable parameters of the network, BatchNorm's three among them, in the order of Caffe.
ORDER = ["c1/0", "c1/1", "bn/0", "bn/1", "bn/2", "sc/0", "sc/1", "fc/0", "fc/1"]
LEARNED = [key for key in ORDER if not key.startswith("bn/")]
RATES = {"c1/1": 2.0, "fc/0": 3.0, "fc/1": 6.0}
UNDECAYED = ("c1/1", "fc/1")
TWO = ("adadelta", "adam")


def message_type() -> Any:
    """SolverState, declared anew with the field numbers of BVLC's caffe.proto."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="state_test.proto", package="state_test", syntax="proto2")
    shape = file.message_type.add(name="BlobShape")
    shape.field.add(name="dim", number=1, type=field.TYPE_INT64, label=field.LABEL_REPEATED).options.packed = True
    blob = file.message_type.add(name="BlobProto")
    blob.field.add(name="shape", number=7, type=field.TYPE_MESSAGE, label=1, type_name=".state_test.BlobShape")
    blob.field.add(name="data", number=5, type=field.TYPE_FLOAT, label=field.LABEL_REPEATED).options.packed = True
    state = file.message_type.add(name="SolverState")
    state.field.add(name="iter", number=1, type=field.TYPE_INT32, label=1)
    state.field.add(name="learned_net", number=2, type=field.TYPE_STRING, label=1)
    state.field.add(name="history", number=3, type=field.TYPE_MESSAGE, label=3, type_name=".state_test.BlobProto")
    state.field.add(name="current_step", number=4, type=field.TYPE_INT32, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("state_test.SolverState"))


MESSAGE = message_type()


def history_in_numpy(case: str, steps: int) -> tuple[list[np.ndarray], Replay]:
    """The history by the formulas of Caffe's solvers, in float64, with the gradients of each step."""
    replay = Replay(case)
    param = replay.file.param
    slots = [{key: np.zeros(blob_of(replay.network, key).shape) for key in ORDER} for _ in range(1 + (case in TWO))]
    for step in range(steps):
        inputs = {name: torch.from_numpy(replay.stored[name][step]) for name in ("data", "label")}
        statistics = [buffer.clone() for buffer in replay.network.buffers()]
        for _ in range(param.iter_size):
            replay.network.loss(replay.network(inputs)).backward()
        gradients = {key: blob_of(replay.network, key).grad.double().numpy() for key in LEARNED}
        values = {key: blob_of(replay.network, key).detach().double().numpy() for key in LEARNED}
        with torch.no_grad():
            for buffer, before in zip(replay.network.buffers(), statistics, strict=True):
                buffer.copy_(before)
        replay.network.zero_grad()
        norm = math.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
        clip = min(1, param.clip_gradients / norm) if param.clip_gradients > 0 else 1
        for key in LEARNED:
            decay = 0 if key in UNDECAYED else param.weight_decay
            pull = np.sign(values[key]) if param.regularization_type == "L1" else values[key]
            g = gradients[key] * clip / param.iter_size + decay * pull
            first, second = slots[0], slots[-1]
            if case == "adam":
                first[key] = param.momentum * first[key] + (1 - param.momentum) * g
                second[key] = param.momentum2 * second[key] + (1 - param.momentum2) * g**2
            elif case == "adadelta":
                first[key] = param.momentum * first[key] + (1 - param.momentum) * g**2
                update = g * np.sqrt((second[key] + param.delta) / (first[key] + param.delta))
                second[key] = param.momentum * second[key] + (1 - param.momentum) * update**2
            elif case == "adagrad":
                first[key] += g**2
            elif case == "rmsprop":
                first[key] = param.rms_decay * first[key] + (1 - param.rms_decay) * g**2
            else:
                rate = learning_rate(param, step) * RATES.get(key, 1.0)
                first[key] = param.momentum * first[key] + rate * g
        replay.step()
    return [slot[key].astype(np.float32) for slot in slots for key in ORDER], replay


@pytest.fixture(scope="module")
def after_five() -> dict[str, tuple[list[np.ndarray], Replay]]:
    return {case: history_in_numpy(case, 5) for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_the_history_after_five_steps_as_caffe_lays_it_out(case, after_five, tmp_path):
    expected, replay = after_five[case]
    file = tmp_path / "x.solverstate"
    write_solverstate(file, replay.solver.caffe_state("x_iter_5.caffemodel"))
    found = MESSAGE.FromString(file.read_bytes())
    assert (found.iter, found.learned_net) == (5, "x_iter_5.caffemodel")
    # step: iteration 4 was the last, of stepsize 3 (adam: 4); multistep: of the values 2 and 6, one was passed
    steps = {"adam": 1, "sgd_multistep_itersize": 1, "sgd_step": 1}
    assert found.current_step == steps.get(case, 0)
    assert len(found.history) == len(ORDER) * (2 if case in TWO else 1)
    for index, (blob, wanted) in enumerate(zip(found.history, expected, strict=True)):
        assert tuple(blob.shape.dim) == wanted.shape
        key = ORDER[index % len(ORDER)]
        if key == BIAS:  # its gradient is rounding (see test_solver): a ten millionth of that of the filters
            continue
        scale = max(float(np.abs(wanted).max()), 1e-12)
        assert np.abs(np.array(blob.data).reshape(wanted.shape) - wanted).max() < 1e-4 * scale, key


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("sgd")])
def test_the_first_velocity_is_the_first_step_of_real_caffe(case):
    """From a velocity of 0, SGD's first step is its history: what Caffe's weights lost in it."""
    replay = Replay(case)
    replay.step()
    state = replay.solver.caffe_state()
    for key, blob in zip(ORDER, state.history, strict=True):
        if key in LEARNED and key != BIAS:
            lost = replay.stored[f"init:{key}"] - replay.stored[f"after1:{key}"]
            np.testing.assert_allclose(blob, lost, atol=2e-7 + 1e-4 * np.abs(lost).max(), err_msg=key)


@pytest.mark.parametrize("format", ["binary", "hdf5"])
@pytest.mark.parametrize("case", CASES)
def test_a_run_of_caffe_goes_on_here(case, format, after_five, tmp_path):
    """From Caffe's weights after step 5 and a state that this test writes, to Caffe's weights after step 10."""
    history, _ = after_five[case]
    file = tmp_path / ("x.solverstate" if format == "binary" else "x.solverstate.h5")
    if format == "binary":
        message = MESSAGE(iter=5, learned_net="x.caffemodel")
        for blob in history:
            message.history.add(data=blob.ravel()).shape.dim.extend(blob.shape)
        file.write_bytes(message.SerializeToString())
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(file, "w") as handle:
            handle["iter"], handle["current_step"] = np.array([5], np.int32), np.array([0], np.int32)
            handle["learned_net"] = np.bytes_("x.caffemodel")
            for index, blob in enumerate(history):
                handle[f"history/{index}"] = blob
    state = read_solverstate(file)
    assert (state.iteration, state.learned_net) == (5, "x.caffemodel")
    replay = Replay(case)
    with torch.no_grad():
        for key, values in replay.expected(5).items():
            blob_of(replay.network, key).copy_(torch.from_numpy(values))
    replay.solver.load_caffe_state(state)
    losses = [replay.step() for _ in range(5)]
    np.testing.assert_allclose(losses, replay.stored["loss"][5:], rtol=1e-4)
    found, expected = replay.found(), replay.expected(10)
    for key in expected:
        if not (case in DIVIDING and key in (BIAS, MEAN)):  # rounding decides these; see test_solver
            assert error(found[key], expected[key]) < 1e-4, key


@pytest.mark.parametrize("hdf5", [False, True])
def test_there_and_back_is_bit_identical(hdf5, tmp_path):
    """A run stops, and goes on from its .solverstate and .caffemodel alone, in another folder."""
    if hdf5:
        pytest.importorskip("h5py")
    more = ' snapshot_format: HDF5 type: "Adam"' if hdf5 else ""
    plain, _ = train(toy.write(tmp_path / "a", solver=f"max_iter: 14{more}"), solverstate=True)
    ending = ".solverstate.h5" if hdf5 else ".solverstate"
    stem = plain.weights.name.removesuffix(".h5").removesuffix("_iter_14.caffemodel") + "_iter_10"
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for suffix in (ending, ".caffemodel" + (".h5" if hdf5 else "")):
        plain.weights.with_name(stem + suffix).replace(folder / (stem + suffix))
    solver = toy.write(tmp_path / "b", solver=f"max_iter: 14{more}")
    resumed, reporter = train(solver, snapshot=folder / (stem + ending))
    assert "a state of Caffe" in reporter.text
    assert resumed.iteration == 14
    found, expected = weights(resumed.weights), weights(plain.weights)
    for name, blobs in expected.items():
        for one, other in zip(found[name], blobs, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)


def test_caffes_text_in_hdf5_ends_with_a_zero(tmp_path):
    """`hdf5_load_string` takes what H5LTread_dataset_string gives up to the first zero byte."""
    h5py = pytest.importorskip("h5py")
    file = tmp_path / "x.solverstate.h5"
    write_solverstate(file, SolverState(7, "out/net_iter_7.caffemodel", (np.ones((2, 3), np.float32),), 2))
    with h5py.File(file) as handle:
        kind = handle["learned_net"].id.get_type()
        assert kind.get_size() == len("out/net_iter_7.caffemodel") + 1
        assert kind.get_strpad() == h5py.h5t.STR_NULLTERM
        assert handle["learned_net"][()] == b"out/net_iter_7.caffemodel"
        assert handle["iter"][()].tolist() == [7]
        assert handle["iter"].dtype == np.int32
        assert handle["current_step"][()].tolist() == [2]
        np.testing.assert_array_equal(handle["history/0"][()], np.ones((2, 3)))
    assert read_solverstate(file).learned_net == "out/net_iter_7.caffemodel"


def test_restart_removes_its_own_states_and_leaves_those_of_caffe(tmp_path):
    solver = toy.write(tmp_path, solver="max_iter: 10")
    train(solver, solverstate=True)
    own, caffes = tmp_path / "out" / "toy_iter_10.solverstate", tmp_path / "out" / "toy_iter_4.solverstate"
    assert own.is_file()
    caffes.write_bytes(own.read_bytes())
    train(toy.write(tmp_path, solver="max_iter: 3"), restart=True)
    assert not own.exists()
    assert caffes.exists()


def test_states_that_do_not_fit(tmp_path):
    solver = toy.write(tmp_path, solver="max_iter: 10")
    outcome, _ = train(solver, solverstate=True)
    state = read_solverstate(tmp_path / "out" / "toy_iter_10.solverstate")
    assert Path(state.learned_net) == outcome.weights
    assert len(state.history) == len(
        [blob for blobs in read_weights(outcome.weights).layers.values() for blob in blobs]
    )

    def refused(match: str, **changed: Any) -> None:
        fields = {"iteration": 10, "learned_net": state.learned_net, "history": state.history} | changed
        write_solverstate(tmp_path / "bad.solverstate", SolverState(**fields))
        with pytest.raises(CamrtError, match=match) as caught:
            train(toy.write(tmp_path / "new"), snapshot=tmp_path / "bad.solverstate")
        assert "bad.solverstate" in str(caught.value)

    refused(r"found a history of 10 blobs, expected 11", history=state.history[:-1])
    refused(r"found a history of 22 blobs, expected 11", history=state.history * 2)
    refused(r"found a blob 0 of \(2, 2\)", history=(np.zeros((2, 2), np.float32), *state.history[1:]))
    refused("gone.caffemodel, which does not exist", learned_net="gone.caffemodel")
    refused("no weights file", learned_net="")


def test_damaged_files(tmp_path):
    file = tmp_path / "x.solverstate"
    state = SolverState(3, "x.caffemodel", (np.arange(100, dtype=np.float32),))
    write_solverstate(file, state)
    content = file.read_bytes()
    ends = [2, 2 + 2 + len("x.caffemodel"), len(content) - 2]  # between two fields, the message is whole
    for length in range(1, len(content)):
        file.write_bytes(content[:length])
        if length not in ends:
            with pytest.raises(CamrtError, match=r"not a \.solverstate of Caffe, or a truncated") as caught:
                read_solverstate(file)
            assert str(file) in str(caught.value)
    for text, match in ((b"", "is empty"), (b'net: "x"', "not a .solverstate"), (b"\x89HDF\r\n\x1a\n123", "HDF5|h5")):
        file.write_bytes(text)
        with pytest.raises(CamrtError, match=match):
            read_solverstate(file)
    with pytest.raises(CamrtError, match="does not exist"):
        read_solverstate(tmp_path / "none.solverstate")
    with pytest.raises(CamrtError, match="folder"):
        read_solverstate(tmp_path)


def test_files_of_an_hdf5_state_that_lead_elsewhere(tmp_path):
    h5py = pytest.importorskip("h5py")
    file = tmp_path / "x.solverstate.h5"
    write_solverstate(file, SolverState(3, "x.caffemodel", (np.zeros(3, np.float32),)))
    with h5py.File(file, "a") as handle:
        del handle["history/0"]
        handle["history"]["0"] = h5py.ExternalLink("/etc/passwd", "/x")
    with pytest.raises(CamrtError, match="link"):
        read_solverstate(file)


def test_current_step_of_no_iteration():
    assert current_step(Replay("sgd_step").file.param, 0) == 0
