from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from camrt.errors import CamrtError
from camrt.train.snapshot import Snapshots, packed, read, unpacked

HISTORY = {"array0": np.arange(2000, dtype=np.float32), "array1": np.ones((3, 4), np.float32)}
FACTS = {"seed": 3, "losses": [1.5, 2.5]}


@pytest.fixture
def saved(tmp_path) -> Snapshots:
    """Snapshots at 10 and 20, and at 9, which comes before them as a number but not as a text."""
    saved = Snapshots(tmp_path / "net[1]")
    for iteration in (9, 10, 20):
        saved.write(iteration, lambda file: file.write_bytes(b"weights" * 100), HISTORY, FACTS)
    return saved


def test_what_is_written_is_read(saved, tmp_path):
    found = saved.last()
    assert found is not None
    assert (found.iteration, found.weights) == (20, tmp_path / "net[1]_iter_20.caffemodel")
    assert found.metadata["losses"] == [1.5, 2.5]
    for name, array in HISTORY.items():
        np.testing.assert_array_equal(found.arrays[name], array)
    assert [file.name for file in saved.states()] == [f"net[1]_iter_{n}.camrtstate" for n in (9, 10, 20)]


def test_the_weights_name_their_snapshot(saved):
    assert read(saved.paths(10)[0]).iteration == 10


def test_files_of_other_prefixes_are_left_alone(saved, tmp_path):
    other = Snapshots(tmp_path / "net")
    other.write(50, lambda file: file.write_bytes(b"w"), {}, {})
    (tmp_path / "net[1]_iter_x.camrtstate").write_bytes(b"")
    (tmp_path / "net[1]_iter_30.caffemodel").write_bytes(b"of a run that was killed before the state")
    found = saved.last()
    assert found is not None
    assert found.iteration == 20
    saved.remove()
    assert {file.name for file in tmp_path.iterdir()} == {
        "net_iter_50.camrtstate",
        "net_iter_50.caffemodel",
        "net[1]_iter_x.camrtstate",
    }


def test_without_snapshots_there_is_none(tmp_path):
    assert Snapshots(tmp_path / "nowhere" / "net").last() is None


def test_every_byte_of_a_state_is_watched(saved):
    """A flipped bit is an error or, in the archive's own book-keeping, changes nothing."""
    state = saved.paths(20)[1]
    content = bytearray(state.read_bytes())
    rng = np.random.default_rng(0)
    places = rng.choice(len(content), 300, replace=False)
    refused = 0
    for place in places.tolist():
        spoilt = content.copy()
        spoilt[place] ^= 1 << int(rng.integers(8))
        state.write_bytes(spoilt)
        try:
            found = read(state)
        except CamrtError as error:
            refused += str(state) in str(error)
        else:
            assert {k: found.metadata[k] for k in FACTS} == FACTS
            assert found.arrays.keys() == HISTORY.keys()
            for name, array in HISTORY.items():
                np.testing.assert_array_equal(found.arrays[name], array)
    assert refused > 250


@pytest.mark.parametrize("share", [0, 0.2, 0.5, 0.99])
def test_a_torn_state_is_refused_and_the_whole_one_before_it_named(saved, share):
    state = saved.paths(20)[1]
    state.write_bytes(state.read_bytes()[: int(share * state.stat().st_size)])
    saved.paths(10)[0].write_bytes(b"other weights")
    with pytest.raises(CamrtError) as caught:
        saved.last()
    assert f"{state}: is not a state file of camrt train, or is damaged" in str(caught.value)
    assert f"The last complete snapshot is {saved.paths(9)[1]}: resume from it with --snapshot" in str(caught.value)


def test_weights_that_do_not_belong_are_refused(saved):
    weights = saved.paths(20)[0]
    weights.write_bytes(weights.read_bytes()[:-1] + b"X")
    with pytest.raises(CamrtError, match=r"its weights .*iter_20\.caffemodel is damaged or was replaced"):
        saved.last()
    weights.unlink()
    with pytest.raises(CamrtError, match=r"its weights file net\[1\]_iter_20\.caffemodel does not exist"):
        saved.last()
    for iteration in (9, 10):
        saved.paths(iteration)[0].unlink()
    with pytest.raises(CamrtError, match="There is no other complete snapshot: start over with --restart"):
        saved.last()


def archive(**members: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.savez(content, **members)
    return content.getvalue()


def as_bytes(value: object) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def pickled() -> bytes:
    content = io.BytesIO()
    np.savez(content, facts=np.array([{"format": "evil"}], dtype=object))
    return content.getvalue()


def no_array() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("facts", "{}")
    return content.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"text",
        b"PK\x03\x04",
        archive(x=np.ones(3)),
        archive(facts=as_bytes([1])),
        archive(facts=as_bytes({"format": "camrt training state 1"})),
        archive(facts=as_bytes({"format": "camrt training state 2"})),
        archive(facts=np.ones(3)),
        archive(facts=as_bytes({"format": "camrt training state 1", "iteration": "x", "weights": "w", "bytes": 1})),
        pickled(),
        no_array(),
    ],
)
def test_foreign_files_are_refused(tmp_path, content):
    file = tmp_path / "x.camrtstate"
    file.write_bytes(content)
    with pytest.raises(CamrtError, match=r"x\.camrtstate: (is not a state file of camrt train|found the format)"):
        read(file)


def test_a_state_leads_to_no_other_folder(tmp_path):
    (tmp_path / "secret").write_bytes(b"")
    (tmp_path / "in").mkdir()
    facts = {"format": "camrt training state 1", "iteration": 1, "weights": "../secret", "bytes": 0, "sha256": ""}
    (tmp_path / "in" / "x.camrtstate").write_bytes(archive(facts=as_bytes(facts)))
    with pytest.raises(CamrtError, match="its weights file secret does not exist"):
        read(tmp_path / "in" / "x.camrtstate")


def test_caffes_own_state_is_told_apart(tmp_path):
    (tmp_path / "net_iter_10.solverstate").write_bytes(b"\x08\x0a\x12\x04file")
    with pytest.raises(CamrtError, match="found its weights file file, which does not exist"):
        read(tmp_path / "net_iter_10.solverstate")
    (tmp_path / "file").write_bytes(b"weights")
    found = read(tmp_path / "net_iter_10.solverstate")
    assert (found.iteration, found.weights) == (10, tmp_path / "file")
    assert found.caffe is not None
    with pytest.raises(CamrtError, match="there is no such snapshot"):
        read(tmp_path / "nowhere.camrtstate")


def test_a_failed_write_leaves_what_was_there(saved):
    def fails(file: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(CamrtError, match=r"iter_30\.caffemodel: cannot be written: No space left on device"):
        saved.write(30, fails, HISTORY, FACTS)
    found = saved.last()
    assert found is not None
    assert found.iteration == 20


def test_weights_are_never_beside_the_state_of_others(saved):
    """Written over an older snapshot of the same iteration, and killed in between: the older one no longer counts."""

    def killed(file: Path) -> None:
        file.write_bytes(b"new weights")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        saved.write(20, killed, HISTORY, FACTS)
    found = saved.last()
    assert found is not None
    assert found.iteration == 10


def test_a_prefix_is_one_runs(tmp_path):
    pytest.importorskip("fcntl", reason="there are no locks on this system")
    one = Snapshots(tmp_path / "new" / "net")
    with one.locked():
        with pytest.raises(CamrtError, match="another camrt train writes to"), Snapshots(one.prefix).locked():
            pass
        with Snapshots(tmp_path / "new" / "other").locked():
            pass
    with one.locked():
        pass


def test_a_worker_that_outlives_the_run_does_not_keep_the_lock(tmp_path):
    """What a run that was killed leaves behind for some seconds: its workers."""
    pytest.importorskip("fcntl", reason="there are no locks on this system")
    program = """
import os, signal, sys, time
from pathlib import Path
from camrt.train.snapshot import Snapshots
with Snapshots(Path(sys.argv[1])).locked():
    if os.fork() == 0:
        print("worker", flush=True)
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
"""
    root = str(Path(__file__).resolve().parents[3])
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "net")], stdout=subprocess.PIPE, cwd=root, start_new_session=True
    ) as run:
        try:
            assert run.stdout is not None
            assert run.stdout.readline() == b"worker\n"
            with pytest.raises(CamrtError), Snapshots(tmp_path / "net").locked():
                pass
            run.kill()
            run.wait()
            with Snapshots(tmp_path / "net").locked():
                pass
        finally:
            import os
            import signal

            os.killpg(run.pid, signal.SIGKILL)


def test_states_are_packed_and_unpacked():
    class Tensor:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def detach(self):
            return self

        cpu = detach

        def numpy(self) -> np.ndarray:
            return self.array

    arrays: dict[str, np.ndarray] = {}
    state = {"iteration": 3, "history": [[Tensor(np.ones(2)), Tensor(np.zeros(3))], []], "type": "SGD"}
    text = json.loads(json.dumps(packed(state, arrays)))
    back = unpacked(text, arrays, lambda array: array)
    assert back["iteration"] == 3
    assert back["type"] == "SGD"
    assert [[one.tolist() for one in slot] for slot in back["history"]] == [[[1, 1], [0, 0, 0]], []]
