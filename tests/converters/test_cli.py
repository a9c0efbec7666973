"""The command line: what a user types, reads and finds on disk."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from converters.net import read_net
from converters.reader import read_weights
from converters.writer import write_caffemodel
from tests.converters.small_net import NET, write_random


@pytest.fixture
def net(tmp_path: Path) -> tuple[Path, Path]:
    """A small network's prototxt and caffemodel."""
    prototxt, caffemodel = tmp_path / "small.prototxt", tmp_path / "small.caffemodel"
    prototxt.write_text(NET)
    write_random(prototxt, caffemodel)
    return prototxt, caffemodel


def convert(*arguments: object, home: Path, **options: object) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).resolve().parents[2] / "scripts" / "convert.py"
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        env={**os.environ, "CAMRT_HOME": str(home), "COLUMNS": "200"},
        capture_output=True, text=True, check=False, timeout=120, **options,
    )  # fmt: skip


def test_converts_two_files(net: tuple[Path, Path], tmp_path: Path) -> None:
    prototxt, caffemodel = net
    done = convert(prototxt, caffemodel, "-o", tmp_path / "out.onnx", home=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("layers", "parameters", "opset", "size", "time", "data (N x 3 x 16 x 16)", "prob (N x 5)"):
        assert word in done.stdout
    model = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(model, full_check=True)
    properties = {prop.key: prop.value for prop in model.metadata_props}
    assert properties["caffe.files"] == "small.prototxt, small.caffemodel"
    for path in net:
        assert properties[f"caffe.sha256.{path.name}"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_default_output_lies_in_the_current_folder(net: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    assert convert(*net, home=tmp_path, cwd=folder).returncode == 0
    assert [path.name for path in folder.iterdir()] == ["small.onnx"]


def test_a_snapshot_is_converted_alone(net: tuple[Path, Path], tmp_path: Path) -> None:
    """As Caffe writes one: the training network with its loss, in the file that holds the weights."""
    from converters.schema import caffe_pb2
    from converters.textformat import parse
    from tests.caffe_files import caffemodel

    loss = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" phase: TRAIN }'
    label = 'layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 4 } } }'
    message = caffe_pb2.NetParameter()
    parse(label + NET.replace(NET.splitlines()[-1], loss), message, "net")
    (tmp_path / "snapshot.caffemodel").write_bytes(caffemodel(message, read_weights(net[1]).layers))
    done = convert("snapshot.caffemodel", "--json", home=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outputs"] == ["loss (N x 5)"]
    image = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)
    assert convert(*net, "-o", tmp_path / "deploy.onnx", home=tmp_path).returncode == 0
    found, expected = (
        onnxruntime.InferenceSession(tmp_path / name).run(None, {"data": image})[0]
        for name in ("snapshot.onnx", "deploy.onnx")
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("options", [[], ["--outputs", "prob"]])
def test_weights_that_are_not_connected_ask_for_a_prototxt(
    options: list[str], net: tuple[Path, Path], tmp_path: Path
) -> None:
    """Layers with names, types and weights alone, as camrt's own training writes them."""
    write_caffemodel(
        tmp_path / "w.caffemodel", read_weights(net[1]).layers, types={"conv": "Convolution", "fc": "InnerProduct"}
    )
    done = convert("w.caffemodel", *options, home=tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert "w.caffemodel: holds the weights of 2 layers (conv, fc) but not how the layers are connected" in done.stderr
    assert "give its prototxt first" in done.stderr
    assert "--outputs" not in done.stderr


def test_an_unknown_output_names_blobs_that_there_are(net: tuple[Path, Path], tmp_path: Path) -> None:
    done = convert(*net, "--outputs", "zzz", home=tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert "conv, pool, fc, prob" in done.stderr


def test_missing_folders_of_the_output_are_made(net: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "some" / "new" / "folder" / "out.onnx"
    done = convert(*net, "-o", out, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in out.parent.iterdir()] == ["out.onnx"]


def test_options_reach_the_model(net: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    options = ["--outputs", "conv,prob", "--opset", "18", "--input-shape", "data=1,3,32,24", "--json"]
    done = convert(*net, "-o", out, *options, home=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["opset"] == 18
    assert facts["outputs"] == ["conv (N x 8 x 30 x 22)", "prob (N x 5)"]
    assert facts["bytes"] == out.stat().st_size
    assert facts["parameters"] == 8 * 27 + 8 + 5 * 8 + 5
    assert onnx.load(out).opset_import[0].version == 18


def test_verify_agrees_with_opencv(net: tuple[Path, Path], tmp_path: Path) -> None:
    done = convert(*net, "-o", tmp_path / "out.onnx", "--verify", "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    verified = json.loads(done.stdout)["verified"]
    assert not verified["reason"]
    assert [(row["output"], row["agrees"]) for row in verified["outputs"]] == [("prob", True)]


def test_verify_notices_a_difference(net: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of other weights than the ones that OpenCV reads."""
    from converters import conversion, model, verification

    prototxt, caffemodel = net
    converted = conversion.build(read_net(prototxt, caffemodel))
    out = tmp_path / "out.onnx"
    model.write(converted.draft, out, dict)
    good = verification.against_opencv(out, converted.net, prototxt, caffemodel)
    assert good.comparisons
    assert not good.disagrees
    altered = onnx.load(out)
    weight = next(tensor for tensor in altered.graph.initializer if tensor.name == "fc.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.05, "fc.weight"))
    onnx.save(altered, out)
    assert verification.against_opencv(out, converted.net, prototxt, caffemodel).disagrees


def test_verify_says_what_opencv_does_not_know(tmp_path: Path) -> None:
    prototxt, caffemodel = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    prototxt.write_text(NET.replace('type: "Softmax"', 'type: "Threshold"'))
    write_random(prototxt, caffemodel)
    done = convert(prototxt, caffemodel, "-o", tmp_path / "out.onnx", "--verify", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not verified: OpenCV's importer does not read this network" in done.stdout


def test_named_model_takes_weights_and_carries_metadata(tmp_path: Path) -> None:
    from converters import zoo

    prototxt, caffemodel = tmp_path / "deploy.prototxt", tmp_path / "random.caffemodel"
    prototxt.write_text(zoo.find("alexnetplusCAM").prototxt())
    write_random(prototxt, caffemodel)
    labels = tmp_path / "reference" / "matlab_demo" / "imagenet-simple-labels.json"
    labels.parent.mkdir(parents=True)
    labels.write_text(json.dumps([f"class {index}" for index in range(1000)]))
    done = convert("alexnetplusCAM", "--weights", caffemodel, home=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    model = onnx.load(tmp_path / "alexnetplusCAM_imagenet.onnx")
    properties = {prop.key: prop.value for prop in model.metadata_props}
    assert properties["camrt.features"] == "conv7"
    assert properties["camrt.classifier"] == "fc9"
    assert json.loads(properties["camrt.preprocess"])["crop"] == 227
    assert json.loads(properties["camrt.labels"])[7] == "class 7"
    tensors = {name for node in model.graph.node for name in node.output}
    assert properties["camrt.features"] in tensors
    assert f"{properties['camrt.classifier']}.weight" in {tensor.name for tensor in model.graph.initializer}


def test_truncated_weights_of_a_named_model(tmp_path: Path) -> None:
    short = tmp_path / "vgg16CAM_train_iter_90000.caffemodel"
    short.write_bytes(b"\0" * 3_750_000)
    done = convert("vgg16CAM", "--weights", short, home=tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert "truncated" in done.stderr
    assert "72,400,032" in done.stderr
    assert not list(tmp_path.glob("*.onnx*"))


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["no_such_model"], 2, "there is no model named"),
        (["vgg16cam"], 2, "Did you mean 'vgg16CAM'"),
        (["missing.prototxt"], 1, "does not exist"),
        (["--opset"], 2, "requires an argument"),
        ([], 2, "Missing argument"),
        (["PROTOTXT", "CAFFEMODEL", "--opset", "3"], 1, "found opset 3, expected one from 13"),
        (["PROTOTXT", "CAFFEMODEL", "--opset", "three"], 2, "valid integer"),
        (["PROTOTXT", "CAFFEMODEL", "--input-shape", "data"], 2, "expected it as data=1,3,224,224"),
        (["PROTOTXT", "CAFFEMODEL", "--input-shape", "image=1,3,8,8"], 1, "expected one of the inputs: data"),
        (["PROTOTXT", "CAFFEMODEL", "--outputs", "porb"], 1, "did you mean prob"),
        (["PROTOTXT", "CAFFEMODEL", "--phase", "test"], 1, "expected 'TEST' or 'TRAIN'"),
        (["PROTOTXT", "CAFFEMODEL", "--plugin", "none.py"], 1, "none.py"),
        (["CAFFEMODEL", "PROTOTXT"], 1, "did the arguments change places"),
        (["PROTOTXT"], 1, "no weights"),
        (["PROTOTXT", "CAFFEMODEL", "-o", "PROTOTXT/folder/out.onnx"], 1, "out.onnx: cannot be written"),
        (["PROTOTXT", "CAFFEMODEL", "-o", "no/such/folder/out.onnx", "--outputs", "porb"], 1, "did you mean prob"),
        (["PROTOTXT", "CAFFEMODEL", "-o", "."], 1, "is a folder"),
            (["PROTOTXT", "CAFFEMODEL", "-o", "CAFFEMODEL"], 2, "is one of the files to convert"),
    ],
)  # fmt: skip
def test_errors(net: tuple[Path, Path], tmp_path: Path, arguments: list[str], status: int, words: str) -> None:
    files = {"PROTOTXT": str(net[0]), "CAFFEMODEL": str(net[1])}
    folder = tmp_path / "work"
    folder.mkdir()
    given = (files[head] + argument[len(head) :] if (head := argument.partition("/")[0]) in files else argument
             for argument in arguments)  # fmt: skip
    done = convert(*given, home=tmp_path, cwd=folder)
    assert done.returncode == status, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(folder.iterdir()), "a failed conversion leaves nothing"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--input-shape", "data=1,3"],
         "small.prototxt: --input-shape data=1,3 does not fit the network, which takes data=4,3,16,16"),
        (["--input-shape", "data=1,4,16,16"], "--input-shape data=1,4,16,16 does not fit the network"),
        (["--input-shape", "data=1,3,2,2"], "--input-shape data=1,3,2,2 does not fit the network"),
        (["--input-shape", "data=1,3,32,32", "--outputs", "porb"], "did you mean prob, pool?"),
    ],
)  # fmt: skip
def test_a_shape_that_does_not_fit_is_blamed(
    options: list[str], words: str, net: tuple[Path, Path], tmp_path: Path
) -> None:
    done = convert(*net, *options, home=tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    if "--outputs" in options:
        assert "--input-shape" not in done.stderr
    else:
        assert "layer conv (Convolution): found" in done.stderr, "the reason is told too"


def test_a_shape_that_the_description_does_not_say_is_told(net: tuple[Path, Path], tmp_path: Path) -> None:
    lines = NET.strip().splitlines()
    net[0].write_text("\n".join([lines[0], 'input: "data"', *lines[2:]]))
    done = convert(*net, "--input-shape", "data=1,3", home=tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("it was --input-shape data=1,3")


def test_failed_conversion_keeps_the_old_file(net: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_bytes(b"old")
    data = net[1].read_bytes()
    net[1].write_bytes(data[: len(data) // 2])
    assert convert(*net, "-o", out, home=tmp_path).returncode == 1
    assert out.read_bytes() == b"old"
    assert not list(tmp_path.glob(".*.part"))


def test_digest_is_remembered_and_forgotten_when_the_file_changes(tmp_path: Path) -> None:
    from converters.provenance import Provenance

    file, memory = tmp_path / "large.bin", tmp_path / "digests.json"
    for content in (bytes(20 << 20), b"\1" * (20 << 20)):
        file.write_bytes(content)
        expected = hashlib.sha256(content).hexdigest()
        for _ in range(2):
            with Provenance([str(file)], memory) as provenance:
                assert provenance.properties()["caffe.sha256.large.bin"] == expected
        assert expected in memory.read_text()
    # What is remembered is used: an entry that lies is believed while size, inode and times are the same.
    memory.write_text(memory.read_text().replace(expected, "0" * 64))
    with Provenance([str(file)], memory) as provenance:
        assert provenance.properties()["caffe.sha256.large.bin"] == "0" * 64
    memory.write_text("{ damaged")
    with Provenance([str(file)], memory) as provenance:
        assert provenance.properties()["caffe.sha256.large.bin"] == expected


@pytest.mark.parametrize("home", ["a file", "a file/below", "/proc/self/none"])
def test_memory_that_cannot_be_written_stops_no_conversion(home: str, tmp_path: Path) -> None:
    """CAMRT_HOME is a file, lies below one, or where nothing can be written: a note, and the model with its digests."""
    prototxt, caffemodel = tmp_path / "big.prototxt", tmp_path / "big.caffemodel"
    prototxt.write_text(NET.replace("num_output: 5", "num_output: 600000"))
    write_random(prototxt, caffemodel)
    assert caffemodel.stat().st_size > 17 << 20
    (tmp_path / "a file").write_text("")
    done = convert(prototxt, caffemodel, "-o", tmp_path / "out.onnx", home=tmp_path / home)
    assert done.returncode == 0, done.stderr
    assert "note: " in done.stderr
    assert "digests.json cannot be written" in done.stderr
    properties = {prop.key: prop.value for prop in onnx.load(tmp_path / "out.onnx").metadata_props}
    assert properties["caffe.sha256.big.caffemodel"] == hashlib.sha256(caffemodel.read_bytes()).hexdigest()


def test_terminated_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    """A polite kill while a large model is converted."""
    prototxt, caffemodel = tmp_path / "big.prototxt", tmp_path / "big.caffemodel"
    prototxt.write_text(NET.replace("num_output: 5", "num_output: 2000000"))
    write_random(prototxt, caffemodel)
    out = tmp_path / "out" / "big.onnx"
    out.parent.mkdir()
    script = Path(__file__).resolve().parents[2] / "scripts" / "convert.py"
    command = [sys.executable, str(script), str(prototxt), str(caffemodel), "-o", str(out)]
    process = subprocess.Popen(
        command, env={**os.environ, "CAMRT_HOME": str(tmp_path)}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not any(out.parent.iterdir()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    left = [path.name for path in out.parent.iterdir()]
    assert left in ([], ["big.onnx"]), left
    if left:  # it was faster than the signal: then the model is whole
        onnx.checker.check_model(str(out))


def test_camrt_convert_is_the_same_command(net: tuple[Path, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from camrt.cli import main; main()", "convert", *map(str, net), "-o"]
    out = tmp_path / "out.onnx"
    done = subprocess.run([*command, str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    onnxruntime.InferenceSession(out)


@pytest.mark.parametrize("module", ["converters", "camrt"])
def test_import_is_light(module: str) -> None:
    """No network, no runtime, no PyTorch: only what reading needs, and that only when asked for."""
    code = f"import sys, {module}; print(*sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"onnxruntime", "torch", "cv2", "requests", "pooch", "scipy", "h5py", "matplotlib"}
    assert not heavy & set(done.stdout.split())
