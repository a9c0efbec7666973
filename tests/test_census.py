"""scripts/census.py: every network of a folder converted, counted, and compared with OpenCV."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from converters import Net, read_net
from converters.reader import parse_prototxt
from tests.caffe_files import input_layer, layer, written

DATA = input_layer("data", 1, 4, 9, 9)
CONV = layer("conv", "Convolution", "data", params="convolution_param { num_output: 6 kernel_size: 3 }")
POOL = layer("pool", "Pooling", "conv", params="pooling_param { pool: MAX kernel_size: 2 stride: 2 ceil_mode: false }")
GOOD = DATA + CONV + POOL + layer("fc", "InnerProduct", "pool", params="inner_product_param { num_output: 3 }")
NETWORKS = {
    "good.prototxt": GOOD,
    "again.prototxt": GOOD,  # the same once more
    "faster.pt": DATA + layer("p", "Unheard", "data") + layer("q", "Unheard", "p"),
    "odd.prototxt": DATA + layer("r", "ReLU", "data", params="relu_param { curve: 2 }"),
    "template.prototxt": DATA + CONV.replace("num_output: 6", "num_output: cls"),
    "open.prototxt": layer("data", "Data", tops="data label") + CONV,
    "solver.prototxt": 'net: "good.prototxt"',
}


SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def census(folder: Path, *options: str) -> tuple[str, dict[str, dict[str, str]]]:
    table = folder.parent / "table.csv"
    command = [sys.executable, str(SCRIPTS / "census.py"), str(folder), "--csv", str(table), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    with table.open() as stream:
        return done.stdout, {Path(row["path"]).name: row for row in csv.DictReader(stream)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in NETWORKS.items():
        place = tmp_path / "checkouts" / name.partition(".")[0]
        place.mkdir(parents=True)
        written(place / name, text)
    return tmp_path / "checkouts"


def test_the_census_counts(folder: Path) -> None:
    text, rows = census(folder)
    assert text.startswith("5 networks, 1 of them not for inference\n2 of 4 for inference convert (50.0%)")
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "again.prototxt": "converted", "open.prototxt": "converted", "faster.pt": "refused", "odd.prototxt": "refused",
        "template.prototxt": "not for inference",
    }  # fmt: skip
    assert rows["faster.pt"]["reason"] == "no handler for Unheard"
    assert rows["odd.prototxt"]["reason"] == "unknown relu_param.curve"
    assert "       2  Convolution\n" in text


def test_the_census_compares(folder: Path) -> None:
    """OpenCV reads `ceil_mode`: agreement here is agreement on its windows."""
    _, rows = census(folder, "--compare")
    assert rows["again.prototxt"]["comparison"] == "agrees"


def test_one_bad_network_never_stops_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs is killed, one that crashes and one that fails are told; each in a process of its own."""
    module = script("census")

    def convert(path: Path, *, compare: bool) -> object:
        if path.name == "hangs":
            time.sleep(60)
        elif path.name == "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif path.name == "fails":
            raise ValueError("no")
        return module.Result(str(path), "converted")

    monkeypatch.setattr(module, "convert", convert)
    limits = argparse.Namespace(jobs=2, seconds=2, megabytes=4096, compare=False)
    paths = [Path(name) for name in ("hangs", "crashes", "fails", "good")]
    results = {one.path: one.reason or one.verdict for one in module.census(paths, limits)}
    assert results == {
        "hangs": "more than 2 s",
        "crashes": "its process ended with SIGSEGV",
        "fails": "ValueError: no",
        "good": "converted",
    }


def test_formulas_are_caffes() -> None:
    """The referee of --compare, on numbers worked out by hand."""
    formulas = script("formulas")

    def only(text: str) -> Net:
        return read_net(parse_prototxt(input_layer("x", 1, 1, 1, 5) + text, "net.prototxt"))

    x = np.array([[[[1, 2, 3, 4, 8]]]], np.float32)
    window = "pooling_param {{ pool: AVE kernel_h: 1 kernel_w: 2 stride_h: 1 stride_w: 2 {} }}"
    up = only(layer("p", "Pooling", "x", params=window.format(""))).layers[0]
    down = only(layer("p", "Pooling", "x", params=window.format("ceil_mode: false"))).layers[0]
    assert formulas.pooling(up, [x]).tolist() == [[[[1.5, 3.5, 8]]]]
    assert formulas.pooling(down, [x]).tolist() == [[[[1.5, 3.5]]]]
    assert formulas.axpy(up, [np.array([[3.0]]), x, x]).tolist() == (4 * x).tolist()
