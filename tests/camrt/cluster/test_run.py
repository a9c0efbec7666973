"""`camrt batch` on Ray: what a run writes, and what is left of it when processes are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from camrt import Explainer
from camrt.cluster import inputs, run, worker
from camrt.cluster.job import TOKEN
from camrt.cluster.run import DIED, Outcome, Resources
from camrt.cluster.shards import Shards
from tests.camrt.cluster.jobs import assert_explained, job_of, rows_of, write_photos
from tests.camrt.commands.command_line import run as camrt
from tests.tiny_models import tiny_explainer

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[data]'")
pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install 'ray[data]'")
pytestmark = pytest.mark.slow

COUNT = 40
# A client of Ray that outlives ray.shutdown() ends its process, without a word, once it has asked in vain for so long:
# by default a minute, in the middle of the tests of another module.
PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PATIENCE, "1800")
        yield


@pytest.fixture(scope="module")
def local(patience: None) -> Iterator[None]:
    """One Ray for the tests of this module, as a start takes some seconds."""
    with run._ray(Resources(cpus=1)):
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.onnx"
    onnx.save(tiny_explainer(top=2), path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos", COUNT)
    return tmp_path / "photos"


def summary(*arguments: object) -> dict[str, Any]:
    code, stdout, stderr = camrt("batch", *arguments, "--json")
    assert stdout, stderr
    return {**json.loads(stdout), "code": code}


def check_all(out: Path, photos: Path, model: Path, but: tuple[str, ...] = ()) -> None:
    """Each image has one row, and every row says what the explainer says."""
    rows, explainer = rows_of(out), Explainer(model)
    assert sorted(rows) == sorted(path.name for path in photos.iterdir())
    for name in sorted(set(rows) - set(but)):
        assert_explained(rows[name], explainer)


@pytest.mark.usefixtures("local")
def test_a_run_and_the_runs_after_it(photos: Path, model: Path, tmp_path: Path) -> None:
    bad, out = photos / "013.png", tmp_path / "out"
    good = bad.read_bytes()
    bad.write_bytes(good[:-40])
    options = (photos, "--model", model, "--out", out, "--shard-size", 16, "--actors", "1:2", "--cpus-per-actor", 1)

    first = summary(*options)
    assert (first["explained"], first["skipped"], first["failed"], first["code"]) == (COUNT, 0, 1, 1)
    assert [failure["image"] for failure in first["failures"]] == [str(bad)]
    check_all(out, photos, model, but=(bad.name,))
    assert rows_of(out)[bad.name]["error"].startswith("is broken or truncated")
    files = {file.name: file.stat().st_mtime_ns for file in out.glob("shard-*")}
    assert len(files) == 3

    second = summary(*options)  # nothing to do: the row has the reason
    assert (second["explained"], second["skipped"], second["failed"], second["code"]) == (0, COUNT, 1, 1)
    assert second["failures"] == first["failures"]
    assert {file.name: file.stat().st_mtime_ns for file in out.glob("shard-*")} == files

    third = summary(*options, "--retry-errors")
    assert (third["explained"], third["skipped"], third["failed"]) == (1, COUNT - 1, 1)

    bad.write_bytes(good)  # mended, and another one is new: their rows are made anew
    write_photos(photos / "later", 1)
    shutil.move(photos / "later" / "000.png", photos / "new.png")
    (photos / "later").rmdir()
    fourth = summary(*options)
    assert (fourth["explained"], fourth["skipped"], fourth["failed"], fourth["code"]) == (2, COUNT - 1, 0, 0)
    check_all(out, photos, model)

    code, _, stderr = camrt("batch", *options, "--map-side", 8)
    assert code == 1
    assert "holds results with map_side 32, expected 8. Name another folder with --out" in stderr
    check_all(out, photos, model)


@pytest.mark.usefixtures("local")
def test_an_image_that_kills_its_worker_stops_no_other(
    photos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying(worker.Worker):
        def _image(self, source: Any, tables: Any) -> Any:
            if source["path"].endswith("/021.png"):
                os.kill(os.getpid(), signal.SIGKILL)
            return super()._image(source, tables)

    monkeypatch.setattr(run, "Worker", Dying)
    job, graph = job_of(tmp_path / "out", model)
    outcome = Outcome()
    images, _ = inputs.find([str(photos)])
    run.run(job, graph, images, Resources(cpus=1), outcome, shard_size=4)
    assert (outcome.explained, outcome.failed) == (COUNT, 1)
    check_all(job.folder, photos, model, but=("021.png",))
    assert rows_of(job.folder)["021.png"]["error"] == DIED
    assert not list(job.folder.glob(".*.part"))


@pytest.mark.usefixtures("local")
def test_a_worker_that_is_killed_once(
    photos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shard is computed again by another worker, and in no smaller parts."""
    killed = tmp_path / "killed"

    class Killed(worker.Worker):
        def _image(self, source: Any, tables: Any) -> Any:
            if source["path"].endswith("/009.png") and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super()._image(source, tables)

    monkeypatch.setattr(run, "Worker", Killed)
    job, graph = job_of(tmp_path / "out", model)
    outcome = Outcome()
    images, _ = inputs.find([str(photos)])
    run.run(job, graph, images, Resources(cpus=1), outcome, shard_size=4)
    assert killed.exists()
    assert (outcome.explained, outcome.failed, len(Shards.of(job.folder).files)) == (COUNT, 0, 10)
    check_all(job.folder, photos, model)


@pytest.mark.usefixtures("local")
def test_what_ends_a_run(photos: Path, model: Path, tmp_path: Path) -> None:
    options = (photos, "--model", model, "--out", tmp_path / "out")
    for more, said in {
        ("--provider", "nonsense"): "nonsense",
        ("--cpus-per-actor", "999"): "expected one with 999 CPUs and 0 GPUs for a worker",
        ("--gpus-per-actor", "1"): "Ask for less: --cpus-per-actor, --gpus-per-actor",
    }.items():
        code, _, stderr = camrt("batch", *options, *more)
        assert (code, said in stderr) == (1, True), stderr
    assert not list((tmp_path / "out").glob("shard-*"))


# ----------------------------------------------------------------------------------------------- processes of their own


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "camrt", "batch", *map(str, arguments)]
    own = {
        name: value for name, value in os.environ.items() if name != PATIENCE
    }  # a Ray whose driver is killed ends soon
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_driver_that_is_killed_and_a_second_one(model: Path, tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    write_photos(photos, 400)
    options = (photos, "--model", model, "--out", out, "--shard-size", 4)
    first = start(*options)
    try:
        wait_for(lambda: (out / TOKEN).exists(), first)
        second = start(*options)
        _, stderr = second.communicate(timeout=100)
        assert (second.returncode, "another camrt batch writes into this folder" in stderr) == (1, True), stderr
        wait_for(lambda: len(list(out.glob("shard-*"))) >= 3, first)
    finally:
        first.kill()
        first.communicate()
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("shard-*")}
    assert 3 <= len(before) < 100

    again = start(*options, "--json")
    stdout, stderr = again.communicate(timeout=200)
    assert again.returncode == 0, stderr
    counts = json.loads(stdout)
    assert counts["explained"] + counts["skipped"] == 400
    assert counts["skipped"] >= 4 * len(before)
    after = {file.name: file.stat().st_mtime_ns for file in out.glob("shard-*")}
    assert before.items() <= after.items()  # what was done was not done again
    paths = Counter(row["path"] for row in Shards.of(out).rows(["path"]))
    assert (len(paths), set(paths.values())) == (400, {1})
    assert not list(out.glob(".*.part"))


def test_two_machines_give_the_rows_of_one(photos: Path, model: Path, tmp_path: Path) -> None:
    """Each machine of the cluster has room for one worker, and both are asked for."""
    for name, value in run._QUIET.items():
        os.environ.setdefault(name, value)
    from ray.cluster_utils import Cluster

    if ray.is_initialized():
        ray.shutdown()
    node = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
        options = ("--model", model, "--shard-size", 4, "--actors", "2", "--address", cluster.address)
        done = summary(photos, *options, "--out", tmp_path / "out")
        assert (done["explained"], done["code"]) == (COUNT, 0)
    finally:
        if ray.is_initialized():
            ray.shutdown()
        cluster.shutdown()
    check_all(tmp_path / "out", photos, model)
