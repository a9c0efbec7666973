from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from camrt.cli import app
from tests.camrt.train import toy

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="training needs PyTorch")
ROOT = str(Path(__file__).resolve().parents[3])
PROGRAM = "import sys; sys.path.insert(0, sys.argv.pop(1)); from camrt.cli import main; main()"
DATA = ["--data", toy.DATA, "--test-data", toy.TEST_DATA, "--threads", "1", "--workers", "0"]


def camrt(*arguments: object):
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def test_help_needs_no_pytorch():
    program = PROGRAM.replace("main()", "") + (
        "\nfor name in ('torch', 'numpy', 'onnx', 'cv2'): sys.modules[name] = None\nfrom camrt.cli import app\napp()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, ROOT, "train", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for text in ("--data", "--resume", "--two-stage", "torchrun", "tiny:DIR"):
        assert text in done.stdout


def test_without_pytorch_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    found = camrt(toy.write(tmp_path), *DATA)
    assert found.exit_code == 1
    assert f"PyTorch, which is not installed: {sys.executable} -m pip install torch matplotlib" in found.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--amp", "fp8"], "found 'fp8', expected one of bf16, fp16"),
        (["--resize", "0", "5"], "expected sizes of 1 or more"),
        (["--two-stage", "0"], "--two-stage"),
        (["--threads", "0"], "--threads"),
        (["--seed", "-1"], "--seed"),
        (["--resume=yes"], "--resume"),
    ],
)
def test_wrong_usage(tmp_path, arguments, message):
    found = camrt(toy.write(tmp_path), *arguments)
    assert found.exit_code == 2
    assert message in " ".join(found.stderr.replace("│", " ").split())


@needs_torch
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.prototxt"], "nowhere.prototxt: does not exist"),
        ([toy, "--data", "folder:nowhere"], "nowhere: there is no such folder"),
        ([toy, "--weights", "nowhere.caffemodel", *DATA], "nowhere.caffemodel: does not exist"),
        ([toy, "--restart", "--resume"], "found --restart together with --resume or --snapshot, expected only one"),
        ([toy, "--snapshot", "nowhere.camrtstate", *DATA], "nowhere.camrtstate: there is no such snapshot"),
    ],
)
def test_mistakes_are_a_line_and_a_status(tmp_path, arguments, message):
    solver = toy.write(tmp_path)
    found = camrt(*[solver if one is toy else one for one in arguments])
    assert found.exit_code == 1
    assert message in found.stderr
    assert "Traceback" not in found.output
    assert not list((tmp_path / "out").glob("toy*"))


@needs_torch
def test_it_trains_and_says_what_it_wrote(tmp_path):
    solver = toy.write(tmp_path, solver="max_iter: 6 snapshot: 4")
    found = camrt(solver, *DATA)
    assert found.exit_code == 0, found.stderr
    lines = found.stdout.splitlines()
    assert lines[:2] == [str(tmp_path / "out" / "toy_iter_6.caffemodel"), str(tmp_path / "out" / "toy_log.jsonl")]
    assert "iteration 0, test: accuracy = " in found.stderr
    assert "iteration 5: loss = " in found.stderr
    assert "snapshot " in found.stderr
    refused = camrt(solver, *DATA)
    assert refused.exit_code == 1
    assert "Resume from it with --resume" in refused.stderr


@needs_torch
def test_the_outcome_as_json(tmp_path):
    found = camrt(
        toy.write(tmp_path, solver="max_iter: 3"), *DATA, "--json", "--out", tmp_path / "new" / "net", "--seed", 3
    )
    assert found.exit_code == 0, found.stderr
    facts = json.loads(found.stdout)
    assert facts["iteration"] == 3
    assert facts["weights"] == str(tmp_path / "new" / "net_iter_3.caffemodel")
    assert 0 <= facts["tests"][0]["accuracy"] <= 1
    assert facts["signal"] == 0
    assert set(facts) == {
        "iteration",
        "weights",
        "loss",
        "tests",
        "log",
        "curves",
        "seconds",
        "signal",
        "best",
        "stopped_early",
    }


def started(solver: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, ROOT, "train", str(solver), *DATA[:-2], *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(file: Path, run: subprocess.Popen) -> None:
    for _ in range(1200):
        if file.exists():
            return
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{file} did not appear")


@needs_torch
@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_killed_and_started_again_at_once(tmp_path):
    """The whole program, with workers; then Ctrl-C; then to the end: the weights are those of an unbroken run."""
    longer = "max_iter: 100000 snapshot: 5"
    solver = toy.write(tmp_path / "a", solver=longer)
    with started(solver, "--workers", "1") as run:
        wait_for(tmp_path / "a" / "out" / "toy_iter_10.camrtstate", run)
        run.kill()
    with started(solver, "--workers", "1", "--resume") as run:
        wait_for(tmp_path / "a" / "out" / "toy_iter_30.camrtstate", run)
        run.send_signal(signal.SIGINT)
        out, errors = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGINT, errors
    assert "stopped by SIGINT after iteration" in errors
    assert "Traceback" not in errors
    last = int(Path(out.splitlines()[0]).stem.rpartition("_")[2])
    end = last + 4
    resumed = camrt(toy.write(tmp_path / "a", solver=f"max_iter: {end} snapshot: 5"), *DATA, "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    unbroken = camrt(toy.write(tmp_path / "b", solver=f"max_iter: {end} snapshot: 5"), *DATA)
    assert unbroken.exit_code == 0, unbroken.stderr
    name = f"toy_iter_{end}.caffemodel"
    assert (tmp_path / "a" / "out" / name).read_bytes() == (tmp_path / "b" / "out" / name).read_bytes()
