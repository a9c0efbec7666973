"""`camrt show` and `camrt convert --dry-run`: tables and pictures of networks, with and without weights."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

from camrt.cli import app
from converters import convert, survey
from tests.caffe_files import caffemodel, input_layer, layer, network, written

RNG = np.random.default_rng(0)
TEXT = (
    'name: "tiny \\"net\\""\n'
    + input_layer("data", 2, 4, 9, 9)
    + layer("conv", "Convolution", "data", params="convolution_param { num_output: 6 kernel_size: 3 group: 2 }")
    + layer("relu", "ReLU", "conv", "conv")
    + layer("up", "Deconvolution", "conv", params="convolution_param { num_output: 5 kernel_size: 2 stride: 2 }")
    + layer("pool", "Pooling", "up", params="pooling_param { pool: AVE global_pooling: true }")
    + layer("fc", "InnerProduct", "pool", params="inner_product_param { num_output: 3 }")
)
SHAPES = {"conv": [(6, 2, 3, 3), (6,)], "up": [(6, 5, 2, 2), (5,)], "fc": [(3, 5), (3,)]}
WEIGHTS = {name: [RNG.normal(size=shape).astype(np.float32) for shape in shapes] for name, shapes in SHAPES.items()}


@pytest.fixture
def prototxt(tmp_path: Path) -> Path:
    return written(tmp_path / "net.prototxt", TEXT)


def camrt(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def rows_of(*arguments: object) -> dict[str, dict[str, object]]:
    result = camrt("show", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return {row["name"]: row for row in json.loads(result.stdout)["layers"]}


def counted_by_hand() -> dict[str, int]:
    """The multiplications of each layer, one loop a product."""
    conv = sum(2 * 3 * 3 for _ in np.ndindex(2, 6, 7, 7))  # two of the four channels each
    up = sum(5 * 2 * 2 for _ in np.ndindex(2, 6, 7, 7))
    return {"conv": conv, "relu": 0, "up": up, "pool": 0, "fc": 2 * 3 * 5}


def test_shapes_parameters_and_operations(prototxt: Path) -> None:
    rows = rows_of(prototxt)
    assert [row["shapes"] for row in rows.values()] == [
        ["2 x 6 x 7 x 7"], ["2 x 6 x 7 x 7"], ["2 x 5 x 14 x 14"], ["2 x 5 x 1 x 1"], ["2 x 3"],
    ]  # fmt: skip
    sizes = {name: sum(blob.size for blob in blobs) for name, blobs in WEIGHTS.items()}
    assert {name: row["parameters"] for name, row in rows.items()} == {"relu": 0, "pool": 0, **sizes}
    assert {name: row["operations"] for name, row in rows.items()} == counted_by_hand()


def test_with_weights_and_weights_alone(prototxt: Path, tmp_path: Path) -> None:
    weights = written(tmp_path / "net.caffemodel", caffemodel(network(TEXT), WEIGHTS))
    assert rows_of(prototxt) == rows_of(prototxt, weights) == rows_of(weights)


def test_onnx_counts_as_caffe_does(prototxt: Path, tmp_path: Path) -> None:
    weights = written(tmp_path / "net.caffemodel", caffemodel(network(TEXT), WEIGHTS))
    onnx.save(convert(prototxt, weights), tmp_path / "net.onnx")
    rows = rows_of(tmp_path / "net.onnx")
    by_hand = counted_by_hand()
    for name in ("conv", "up", "fc"):
        assert rows[name]["operations"] == by_hand[name] // 2  # of one image: the batch is free
        assert rows[name]["parameters"] == sum(blob.size for blob in WEIGHTS[name])
    assert rows["conv"]["shapes"] == ["N x 6 x 7 x 7"]
    assert camrt("show", tmp_path / "net.onnx").stdout.splitlines()[-1].split()[-2:] == [
        f"{sum(blob.size for blobs in WEIGHTS.values() for blob in blobs):,}",
        f"{sum(by_hand.values()) // 2:,}",
    ]


def test_the_table(prototxt: Path) -> None:
    lines = camrt("show", prototxt).stdout.splitlines()
    assert lines[0].split() == ["layer", "type", "output", "parameters", "multiply-adds"]
    assert lines[1].split() == ["conv", "Convolution", "2", "x", "6", "x", "7", "x", "7", "114", "10,584"]
    assert lines[-1].split() == ["total", "5", "layers", "257", "22,374"]


def test_a_named_model() -> None:
    """Literature's numbers: SqueezeNet-like counts are in the README; VGG16's convolutions have 14,714,688."""
    rows = rows_of("vgg16CAM")
    convolutions = [name for name in rows if re.fullmatch(r"conv\d_\d", name)]
    assert len(convolutions) == 13
    assert sum(int(str(rows[name]["parameters"])) for name in convolutions) == 14_714_688


def test_an_open_shape_is_told(tmp_path: Path) -> None:
    text = TEXT.replace("input_param { shape { dim: 2 dim: 4 dim: 9 dim: 9 } }", "")
    path = written(tmp_path / "open.prototxt", text)
    result = camrt("show", path)
    assert result.exit_code == 0
    assert "the shape of the input 'data' is not known" in result.stderr
    assert rows_of(path, "--input-shape", "data=2,4,9,9")["fc"]["shapes"] == ["2 x 3"]


@pytest.mark.parametrize("content", ["", "no network", "<html>"])
@pytest.mark.parametrize("name", ["net.prototxt", "net.onnx"])
def test_no_network(name: str, content: str, tmp_path: Path) -> None:
    result = camrt("show", written(tmp_path / name, content))
    assert (result.exit_code, result.exception.__class__) == (1, SystemExit)


# ------------------------------------------------------------------------------------------------------------- drawing


def test_the_picture_has_every_layer_and_blob(prototxt: Path, tmp_path: Path) -> None:
    assert camrt("show", prototxt, "--plot", tmp_path / "net.dot").exit_code == 0
    text = (tmp_path / "net.dot").read_text()
    assert text.startswith('digraph "tiny \\"net\\"" {')
    labels = dict(re.findall(r'^  (\w+) \[label="([^"]*)"', text, re.MULTILINE))
    names = {node: label.split("\\n")[0] for node, label in labels.items()}
    edges = {(names[one], names[other]) for one, other in re.findall(r"^  (\w+) -> (\w+);", text, re.MULTILINE)}
    assert {"conv", "relu", "up", "pool", "fc", "data"} <= set(names.values())
    assert {("data", "conv"), ("conv@conv", "relu"), ("relu", "conv"), ("conv", "up"), ("pool", "fc")} <= edges


def test_hostile_names_stay_in_quotes() -> None:
    row = survey.Row('a"];\\ b', "T", ("x",), ("y",), (), 0, 0)
    assert '[label="a\\"];\\\\ b\\n(T)"' in survey.dot("n", [row], ["x"])


def test_without_graphviz(prototxt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None)
    result = camrt("show", prototxt, "--plot", tmp_path / "net.svg")
    assert result.exit_code == 0
    assert "Graphviz is not installed" in result.stderr
    assert (tmp_path / "net.dot").read_text().endswith("}\n")
    assert not (tmp_path / "net.svg").exists()


def test_with_graphviz(prototxt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dot` gets the graph on its input and the format and file as arguments."""
    seen = {}

    def run(command: list[str], *, input: str, **options: object) -> subprocess.CompletedProcess[str]:
        seen.update(command=command, input=input)
        return subprocess.CompletedProcess(command, len(seen) > 2, "", "broken")

    monkeypatch.setattr(shutil, "which", lambda program: "/bin/dot")
    monkeypatch.setattr(subprocess, "run", run)
    assert camrt("show", prototxt, "--plot", tmp_path / "net.svg").exit_code == 0
    assert seen["command"] == ["/bin/dot", "-Tsvg", "-o", str(tmp_path / "net.svg")]
    assert str(seen["input"]).startswith("digraph")


# ------------------------------------------------------------------------------------------------------------- dry runs


def test_a_dry_run_needs_no_weights(prototxt: Path, tmp_path: Path) -> None:
    result = camrt("convert", prototxt, "--dry-run", "-o", tmp_path / "net.onnx")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["up", "Deconvolution", "BVLC", "ConvTranspose", "2", "x", "5", "x", "14", "x", "14"] in lines
    assert result.stdout.splitlines()[-1] == "5 of 5 layers can be converted: the network converts"
    assert not (tmp_path / "net.onnx").exists()


def test_a_dry_run_names_what_is_missing_and_the_forks(tmp_path: Path) -> None:
    text = TEXT + layer("odd", "BoxAnnotatorOHEM", "fc", "odd") + layer("axpy", "Axpy", "pool up up")
    text += layer("r", "ReLU", "odd") + layer("p", "Power", "fc", params="power_param { curve: 3 }")
    result = camrt("convert", written(tmp_path / "net.prototxt", text), "--dry-run")
    assert result.exit_code == 1
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "odd BoxAnnotatorOHEM daijifeng001/R-FCN MISSING ?" in lines
    assert "axpy Axpy SENet Mul Add 2 x 5 x 14 x 14" in lines
    problem = lines.index("p (Power): found 1 unknown field(s) that may change what a layer computes")
    assert "power_param.curve: 3, in layer p (Power)" in lines[problem + 1]
    assert any(line.startswith("The network seems to be of ") for line in lines)
    assert lines[-1] == "7 of 9 layers can be converted; nothing was written"
    told = json.loads(camrt("convert", tmp_path / "net.prototxt", "--dry-run", "--json").stdout)
    assert told["convertible"] is False
    assert [row["name"] for row in told["layers"] if row["problem"]] == ["odd", "p"]
    ignored = camrt("convert", tmp_path / "net.prototxt", "--dry-run", "--ignore-unknown", "curve")
    assert "8 of 9 layers" in ignored.stdout


def test_a_dry_run_of_a_named_model_downloads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from converters import zoo

    monkeypatch.setattr(zoo, "weights", lambda *_: pytest.fail("downloads"))
    result = camrt("convert", "googlenetCAM", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "the network converts" in result.stdout
