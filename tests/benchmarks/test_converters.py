"""benchmarks/converters.py: peers that crash, hang or eat memory stop nothing, and the page has the results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import converters as scoreboard
from benchmarks.converters import AGREES, CSV, DIFFERS, PAGE, REFUSES, STOPS, Network, counts, failures, verdict
from tests.caffe_cases import CASES, answers_of

# A peer that does what the name of the network says.
PEER = """
import os, sys, time
import numpy as np
from benchmarks import converter_peers

def answer(folder, inputs, case):
    if folder.name == "crash":
        os.kill(os.getpid(), 11)
    if folder.name == "hang":
        time.sleep(60)
    if folder.name == "greedy":
        return {"out": np.ones(1 << 34)}
    if folder.name == "exit":
        sys.exit(3)
    if folder.name == "wrong":
        return {"out": np.zeros(inputs["data"].shape)}
    return {"out": np.tanh(inputs["data"])}

converter_peers.PEERS["mnn"] = lambda: ("1.0", answer)
sys.argv[1:] = ["mnn", sys.argv[1], "--seconds", "2", "--megabytes", "4096"]
converter_peers.main()
"""


def test_one_network_never_stops_the_others(repository: Path, tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    names = ["crash", "exit", "greedy", "hang", "right", "wrong"]
    prototxt = tmp_path / "net.prototxt"
    prototxt.write_text(
        'layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 4 } } }\n'
        'layer { name: "l" type: "TanH" bottom: "data" top: "out" }\n'
    )
    folder = tmp_path / "all"
    for name in names:
        Network("bvlc", name, prototxt, None, {"data": data}, {"out": np.tanh(data)}).write(folder / name)
    done = subprocess.run(
        [sys.executable, "-c", PEER, folder], cwd=repository, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    words = {name: verdict({"out": np.tanh(data)}, folder / name, "mnn") for name in names}
    assert words == {
        "crash": f"{STOPS}: crash: SIGSEGV",
        "exit": f"{REFUSES}: SystemExit: 3",
        "greedy": words["greedy"],
        "hang": f"{STOPS}: more than 2 s",
        "right": AGREES,
        "wrong": f"{DIFFERS}: 1",
    }
    assert words["greedy"].startswith(REFUSES)
    assert "MemoryError" in words["greedy"]


def test_a_case_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the converter and by OpenCV 4, which have no ArgMax in common."""
    file = tmp_path / "results.csv"
    command = ["converters.py", "camrt", "opencv4", "--only", "bvlc/conv_basic", "bvlc/argmax", "--csv", str(file)]
    monkeypatch.setattr(sys, "argv", command)
    scoreboard.main()
    rows = scoreboard.read(file)
    assert (
        rows["bvlc/conv_basic"]["camrt"] == rows["bvlc/conv_basic"]["opencv4"] == rows["bvlc/argmax"]["camrt"] == AGREES
    )
    assert rows["bvlc/argmax"]["opencv4"].startswith(REFUSES)
    assert "OpenCV 4 4." in capsys.readouterr().out


def test_unknown_peer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["converters.py", "mmdnn"])
    with pytest.raises(SystemExit):
        scoreboard.main()
    assert "found the peers mmdnn, expected some of camrt" in capsys.readouterr().err


def test_peer_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scoreboard, "ENVIRONMENTS", tmp_path / "nowhere")
    assert scoreboard.run("mnn", tmp_path) == ""
    assert "MNN: not installed, left out (--install)" in capsys.readouterr().err


def test_page_has_the_results(repository: Path) -> None:
    rows, page = scoreboard.read(CSV), PAGE.read_text(encoding="utf-8")
    assert counts(rows) in page
    assert failures(rows) in page
    cases = {name for name, row in rows.items() if row["set"] in ("bvlc", "forks")}
    assert cases == {name for name, case in CASES.items() if answers_of(case)}
    assert sum(bool(row["plain"]) for row in rows.values()) == 74


def test_no_case_of_ours_differs() -> None:
    """A refusal is an error that the user sees; a wrong answer is not."""
    assert not [row["case"] for row in scoreboard.read(CSV).values() if row["camrt"].startswith((DIFFERS, STOPS))]
