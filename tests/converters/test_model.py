"""The ONNX that comes out: names, shapes, outputs, metadata, and how it is written."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from converters import ConversionError, ConversionWarning, Layer, convert, handles, read_net, registry
from converters import model as writing
from converters.conversion import build
from converters.encoding import replacing, sweep
from converters.graph import Graph
from converters.writer import write_caffemodel

NETWORK = """
name: "small"
input: "data" input_shape { dim: 10 dim: 3 dim: 8 dim: 9 }
layer {
  name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 16 kernel_size: 3 }
}
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "bn" }
layer { name: "scale" type: "Scale" bottom: "bn" top: "scale" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "scale" top: "scale" }
layer { name: "pool" type: "Pooling" bottom: "scale" top: "pool" pooling_param { pool: AVE global_pooling: true } }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param { num_output: 50 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""
Shapes = Mapping[str, list[tuple[int, ...]]]
SHAPES: Shapes = {
    "conv": [(16, 3, 3, 3), (16,)],
    "bn": [(16,), (16,), (1,)],
    "scale": [(16,), (16,)],
    "fc": [(50, 16), (50,)],
}


class Files:
    """A network and its weights on disk."""

    def __init__(self, folder: Path, network: str = NETWORK, shapes: Shapes = SHAPES) -> None:
        rng = np.random.default_rng(1)
        self.folder = folder
        self.prototxt, self.caffemodel = folder / "net.prototxt", folder / "net.caffemodel"
        self.prototxt.write_text(network)
        write_caffemodel(
            self.caffemodel, {name: [rng.uniform(0.5, 1.5, shape) for shape in each] for name, each in shapes.items()}
        )

    def convert(self, **options: object) -> onnx.ModelProto:
        return convert(self.prototxt, self.caffemodel, **options)

    def draft(self, **options: object) -> writing.Draft:
        return build(read_net(self.prototxt, self.caffemodel), **options).draft


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def converted(network: str, tmp_path: Path, **options: object) -> onnx.ModelProto:
    """A network without weights."""
    prototxt = tmp_path / "net.prototxt"
    prototxt.write_text(network)
    return convert(prototxt, **options)


def chain(*layers: str) -> str:
    """A network of layers given as ``ReLU bottom > top``; the first is named relu1."""
    text = ['input: "data" input_shape { dim: 2 dim: 3 dim: 4 dim: 5 }']
    for number, layer in enumerate(layers, start=1):
        type, bottom, _, top = layer.split()
        text.append(f'layer {{ name: "{type.lower()}{number}" type: "{type}" bottom: "{bottom}" top: "{top}" }}')
    return "\n".join(text)


def run(model: onnx.ModelProto | Path, *inputs: np.ndarray) -> dict[str, np.ndarray]:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    fed = {one.name: array for one, array in zip(session.get_inputs(), inputs, strict=True)}
    return dict(zip((one.name for one in session.get_outputs()), session.run(None, fed), strict=True))


def image(batch: int = 2) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, 3, 8, 9), dtype=np.float32)


def shape_of(info: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim]


def names(values: Iterable[Any]) -> list[str]:
    return [one.name for one in values]


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    (found,) = (one for one in model.graph.node if one.name == name)
    return found


# -------------------------------------------------------------------------------------------------------------- names


def test_blobs_are_tensors_and_layers_are_nodes(files: Files) -> None:
    graph = files.convert().graph
    assert graph.name == "small"
    assert names(graph.input) == ["data"]
    assert names(graph.output) == ["prob"]
    assert [(one.name, one.output[0]) for one in graph.node] == [
        ("conv", "conv"),
        ("bn", "scale@scale"),
        ("relu", "scale"),
        ("pool", "pool"),
        ("fc/Flatten", "fc/Flatten"),
        ("fc", "fc"),
        ("prob", "prob"),
    ]


def test_weights_are_initializers_of_their_layer(files: Files) -> None:
    model = files.convert()
    weights = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    blobs = {layer.name: layer.blobs for layer in read_net(files.prototxt, files.caffemodel).layers}
    for layer in ("conv", "scale", "fc"):
        np.testing.assert_array_equal(weights.pop(f"{layer}.weight"), blobs[layer][0])
        np.testing.assert_array_equal(weights.pop(f"{layer}.bias"), blobs[layer][1])
    np.testing.assert_allclose(weights.pop("bn.mean"), blobs["bn"][0] / blobs["bn"][2], rtol=1e-6)
    np.testing.assert_allclose(weights.pop("bn.variance"), blobs["bn"][1] / blobs["bn"][2], rtol=1e-6)
    assert not weights
    assert names(model.graph.input) == ["data"]


def test_shared_weights_are_one_initializer(tmp_path: Path) -> None:
    shared = 'param { name: "w" } param { name: "b" } inner_product_param { num_output: 60 }'
    network = f"""
    input: "data" input_shape {{ dim: 1 dim: 60 }}
    layer {{ name: "one" type: "InnerProduct" bottom: "data" top: "one" {shared} }}
    layer {{ name: "two" type: "InnerProduct" bottom: "one" top: "two" {shared} }}
    """
    model = Files(tmp_path, network, {"one": [(60, 60), (60,)]}).convert()
    assert names(model.graph.initializer) == ["one.bias", "one.weight"]
    assert list(node(model, "two").input) == ["one", "one.weight", "one.bias"]


@pytest.mark.parametrize(
    ("layers", "tensors"),
    [
        # The last writer keeps the blob's name, earlier ones are named after their layer too.
        (("AbsVal data > x", "ReLU x > x", "TanH x > x"), ["x@absval1", "x@relu2", "x"]),
        (("AbsVal data > x", "ReLU x > x", "TanH x > y"), ["x@absval1", "x", "y"]),
        # An input keeps its name, and the last writer is named after its layer.
        (("ReLU data > data",), ["relu1"]),
        (("ReLU data > data", "TanH data > data"), ["data@relu1", "tanh2"]),
        (("ReLU data > data", "TanH data > data", "AbsVal data > y"), ["data@relu1", "tanh2", "y"]),
        # Unless a blob has that name.
        (("ReLU data > data", "TanH data > relu1"), ["data@relu1", "relu1"]),
        (("AbsVal data > x", "ReLU x > x", "TanH x > x@absval1"), ["x@absval1.2", "x", "x@absval1"]),
    ],
)
def test_in_place_blobs_have_names_of_their_own(layers: tuple[str, ...], tensors: list[str], tmp_path: Path) -> None:
    model = converted(chain(*layers), tmp_path)
    assert [one.output[0] for one in model.graph.node] == tensors
    assert names(model.graph.output) == [tensors[-1]]
    assert names(model.graph.input) == ["data"]
    # Each reads what the one before it wrote.
    assert [one.input[0] for one in model.graph.node] == ["data", *tensors[:-1]]


def test_layers_of_one_name_are_nodes_of_two(tmp_path: Path) -> None:
    network = chain("ReLU data > x", "TanH x > y").replace("tanh2", "relu1")
    assert names(converted(network, tmp_path).graph.node) == ["relu1", "relu1.2"]


# ------------------------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("batch", [1, 10, 128])
def test_batch_is_free_whatever_the_prototxt_says(batch: int, tmp_path: Path) -> None:
    model = Files(tmp_path, NETWORK.replace("dim: 10", f"dim: {batch}")).convert()
    shapes = {one.name: shape_of(one) for one in (*model.graph.input, *model.graph.value_info, *model.graph.output)}
    assert shapes == {
        "data": ["N", 3, 8, 9],
        "conv": ["N", 16, 6, 7],
        "scale@scale": ["N", 16, 6, 7],
        "scale": ["N", 16, 6, 7],
        "pool": ["N", 16, 1, 1],
        "fc/Flatten": ["N", 16],
        "fc": ["N", 50],
        "prob": ["N", 50],
    }
    whole = run(model, image(7))["prob"]
    assert whole.shape == (7, 50)
    np.testing.assert_allclose(run(model, image(7)[2:3])["prob"], whole[2:3], rtol=1e-5)


def test_inputs_that_meet_have_one_batch(tmp_path: Path) -> None:
    network = """
    input: "a" input_shape { dim: 2 dim: 3 } input: "b" input_shape { dim: 2 dim: 3 } input: "c" input_shape { dim: 2 }
    layer { name: "sum" type: "Eltwise" bottom: "a" bottom: "b" top: "sum" }
    layer { name: "tanh" type: "TanH" bottom: "c" top: "tanh" }
    """
    graph = converted(network, tmp_path).graph
    assert [shape_of(one) for one in graph.input] == [["N", 3], ["N", 3], ["N_c"]]
    assert [shape_of(one) for one in graph.output] == [["N", 3], ["N_c"]]


def test_batch_that_a_layer_needs_is_kept_and_said(tmp_path: Path) -> None:
    network = """
    input: "data" input_shape { dim: 4 dim: 6 }
    layer { name: "shape" type: "Reshape" bottom: "data" top: "out" reshape_param { shape { dim: 3 dim: 8 } } }
    """
    with pytest.warns(
        ConversionWarning, match=r"the input 'data' of shape \(4, 6\) has no free batch.*the layer 'shape'"
    ):
        model = converted(network, tmp_path)
    assert shape_of(model.graph.input[0]) == [4, 6]


def test_input_shapes_change_the_size(files: Files) -> None:
    model = files.convert(input_shapes={"data": (1, 3, 20, 31)}, outputs=["conv", "prob"])
    assert shape_of(model.graph.input[0]) == ["N", 3, 20, 31]
    assert shape_of(model.graph.output[0]) == ["N", 16, 18, 29]
    assert run(model, np.ones((2, 3, 20, 31), np.float32))["prob"].shape == (2, 50)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"dat": (1, 3, 8, 9)}, "found a shape for 'dat', expected one of the inputs: data"),
        ({"data": (1, 3, 0, 9)}, "found the shape 1 x 3 x 0 x 9 for the input 'data', expected sizes from 1 on"),
        ({"data": (1, 3, -8, 9)}, "expected sizes from 1 on"),
        ({"data": (1, 3, 50_000, 50_000)}, "with a product of at most 2,147,483,647"),
        ({"data": (1, 3, 2, 2)}, "leaves an output of 0 x 0"),
        ({"data": (1, 4, 8, 9)}, "found shape 16 x 3 x 3 x 3 for blob 0"),
    ],
)
def test_input_shapes_that_do_not_fit(shapes: dict[str, tuple[int, ...]], message: str, files: Files) -> None:
    with pytest.raises(ConversionError, match=message):
        files.convert(input_shapes=shapes)


# ----------------------------------------------------------------------------------------------- BatchNorm and Scale


def test_batch_norm_and_scale_are_one_node(files: Files) -> None:
    model = files.convert()
    assert [one.op_type for one in model.graph.node].count("BatchNormalization") == 1
    assert not {"Mul", "Add"} & {one.op_type for one in model.graph.node}
    assert list(node(model, "bn").input) == ["conv", "scale.weight", "scale.bias", "bn.mean", "bn.variance"]


def test_batch_norm_alone_answers_the_same(files: Files) -> None:
    """When its blob is asked for, it stays apart from the Scale."""
    apart = files.convert(outputs=["bn", "prob"])
    assert "Mul" in {one.op_type for one in apart.graph.node}
    found = run(apart, image())
    np.testing.assert_allclose(found["prob"], run(files.convert(), image())["prob"], rtol=1e-4)
    mean, variance, factor = read_net(files.prototxt, files.caffemodel).layers[1].blobs
    conv = run(files.convert(outputs=["conv"]), image())["conv"]
    mean, variance = (one.reshape(-1, 1, 1) / factor for one in (mean, variance))
    expected = (conv - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(found["bn"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "shapes"),
    [
        # Someone else reads the blob between the two.
        (
            'layer { name: "relu"',
            'layer { name: "peek" type: "TanH" bottom: "bn" top: "peek" } layer { name: "relu"',
            [(16,), (16,)],
        ),
        # The Scale is not one factor a channel.
        ("scale_param { bias_term: true }", "scale_param { num_axes: 2 bias_term: true }", [(16, 6), (16, 6)]),
        ("scale_param { bias_term: true }", "scale_param { axis: 3 bias_term: true }", [(7,), (7,)]),
        # Its factor is another blob.
        (
            'bottom: "bn" top: "scale" scale_param { bias_term: true }',
            'bottom: "bn" bottom: "conv" top: "scale" scale_param { axis: 0 }',
            [],
        ),
    ],
)
def test_batch_norm_stays_apart_from_other_layers(
    old: str, new: str, shapes: list[tuple[int, ...]], tmp_path: Path
) -> None:
    assert old in NETWORK
    model = Files(tmp_path, NETWORK.replace(old, new), {**SHAPES, "scale": shapes}).convert()
    assert node(model, "bn").output[0] == "bn"
    assert "Mul" in {one.op_type for one in model.graph.node}


def test_batch_norm_and_scale_in_place(tmp_path: Path) -> None:
    network = NETWORK
    for layer in ("bn", "scale"):
        network = network.replace(f'bottom: "{layer}"', 'bottom: "conv"').replace(f'top: "{layer}"', 'top: "conv"')
    model = Files(tmp_path, network).convert()
    assert [one.output[0] for one in model.graph.node[:3]] == ["conv@conv", "conv@scale", "conv"]


# ------------------------------------------------------------------------------------------------------------ outputs


@pytest.mark.parametrize("blob", ["conv", "bn", "scale", "pool", "fc", "prob"])
def test_any_blob_is_an_output(blob: str, files: Files) -> None:
    everything = run(files.convert(outputs=["conv", "bn", "scale", "pool", "fc", "prob"]), image())
    model = files.convert(outputs=[blob])
    assert names(model.graph.output) == [blob]
    assert model.graph.node[-1].output[0] == blob  # what stands behind it is left out
    found = run(model, image())
    assert list(found) == [blob]
    np.testing.assert_allclose(found[blob], everything[blob], rtol=1e-4, atol=1e-6)


def test_outputs_come_as_asked_for(files: Files) -> None:
    assert names(files.convert(outputs=["prob", "conv", "prob"]).graph.output) == ["prob", "conv"]


def test_blob_in_place_is_its_last_version_and_the_earlier_have_their_names(files: Files) -> None:
    found = run(files.convert(outputs=["scale", "scale@scale"]), image())
    np.testing.assert_array_equal(found["scale"], np.maximum(found["scale@scale"], 0))


def test_output_in_place_on_the_input(tmp_path: Path) -> None:
    network = chain("ReLU data > data", "TanH data > y")
    model = converted(network, tmp_path, outputs=["data"])
    assert names(model.graph.output) == ["relu1"]
    assert names(model.graph.node) == ["relu1"]


def test_inputs_that_the_outputs_do_not_need_are_left_out(tmp_path: Path) -> None:
    network = """
    input: "a" input_shape { dim: 2 } input: "b" input_shape { dim: 2 }
    layer { name: "one" type: "TanH" bottom: "a" top: "one" }
    layer { name: "two" type: "TanH" bottom: "b" top: "two" }
    """
    assert names(converted(network, tmp_path).graph.input) == ["a", "b"]
    assert names(converted(network, tmp_path, outputs=["two"]).graph.input) == ["b"]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (["prop"], "found the output 'prop', expected a blob that a layer writes: did you mean prob"),
        (["data"], "found the output 'data', expected a blob that a layer writes: it is an input"),
        (["conv", "nonsense"], "found the output 'nonsense'"),
        ([], "found no outputs"),
        ("prob", r"found the outputs 'prob', expected several names, as \['prob'\]"),
    ],
)
def test_outputs_that_are_none(outputs: list[str] | str, message: str, files: Files) -> None:
    with pytest.raises(ConversionError, match=message):
        files.convert(outputs=outputs)


def test_default_outputs_are_what_no_layer_reads(tmp_path: Path) -> None:
    network = chain("ReLU data > x", "TanH x > y", "AbsVal x > z")
    assert names(converted(network, tmp_path).graph.output) == ["y", "z"]


# ----------------------------------------------------------------------------------------------------------- metadata


def test_metadata_say_where_it_came_from(files: Files) -> None:
    properties = {one.key: one.value for one in files.convert().metadata_props}
    assert properties == {
        "caffe.files": "net.prototxt, net.caffemodel",
        "caffe.sha256.net.prototxt": hashlib.sha256(files.prototxt.read_bytes()).hexdigest(),
        "caffe.sha256.net.caffemodel": hashlib.sha256(files.caffemodel.read_bytes()).hexdigest(),
    }


def test_model_is_plain_onnx(files: Files) -> None:
    model = files.convert()
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    assert model.producer_name == "camrt converters"
    assert not model.functions
    assert {one.domain for one in model.graph.node} == {""}


def test_converting_twice_gives_the_same_bytes(files: Files) -> None:
    first, second = files.convert(), files.convert()
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_what_the_checker_refuses_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.find("ReLU", None)  # so that the families are there before the registry is copied
    monkeypatch.setattr(registry._handlers, "_entries", dict(registry._handlers._entries))

    @handles("Wrong")
    def wrong(layer: Layer, graph: Graph) -> None:
        graph.node("Relu", layer.bottoms, layer.tops, shape=(1, 2, 3))

    with pytest.raises(ConversionError, match="onnx's checker refuses the converted model"):
        converted(chain("Wrong data > x"), tmp_path)


# ------------------------------------------------------------------------------------------------------------ writing


def metadata() -> dict[str, str]:
    return {"who": "a test"}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where a model is to be written, in a folder of its own."""
    folder = tmp_path / "models"
    folder.mkdir()
    return folder / "net.onnx"


def test_written_model_is_the_one_in_memory(files: Files, target: Path) -> None:
    draft = files.draft()
    size = writing.write(draft, target, metadata)
    assert size == target.stat().st_size
    assert list(target.parent.iterdir()) == [target]
    assert onnx.load(target) == writing.in_memory(draft, metadata())
    onnx.checker.check_model(target, full_check=True)
    np.testing.assert_array_equal(run(target, image())["prob"], run(files.convert(), image())["prob"])


def test_weights_beyond_the_limit_are_external(files: Files, target: Path) -> None:
    draft = files.draft()
    size = writing.write(draft, target, metadata, limit=1000)
    data = target.with_name("net.onnx.data")
    assert sorted(target.parent.iterdir()) == [target, data]
    assert size == target.stat().st_size + data.stat().st_size
    np.testing.assert_array_equal(run(target, image())["prob"], run(files.convert(), image())["prob"])
    onnx.checker.check_model(target, full_check=True)

    outside = onnx.load(target, load_external_data=False)
    entries = {
        one.name: {entry.key: entry.value for entry in one.external_data}
        for one in outside.graph.initializer
        if one.data_location == TensorProto.EXTERNAL
    }
    assert sorted(entries) == sorted(name for name, _ in draft.large()) == ["conv.weight", "fc.weight"]
    for entry in entries.values():
        assert entry["location"] == data.name  # beside the model, wherever they are moved together
        assert int(entry["offset"]) % 4096 == 0  # so that it can be mapped
    inside = onnx.load(target)
    for one in inside.graph.initializer:
        one.ClearField("data_location")
    whole = writing.in_memory(draft, metadata())
    assert {one.name: one for one in inside.graph.initializer} == {one.name: one for one in whole.graph.initializer}
    for model in (inside, whole):
        del model.graph.initializer[:]
    assert inside == whole


def test_limit_is_that_of_the_file(files: Files, target: Path) -> None:
    draft = files.draft()
    size = writing.write(draft, target, metadata)
    writing.write(draft, target, metadata, limit=size + 1000)
    assert list(target.parent.iterdir()) == [target]
    writing.write(draft, target, metadata, limit=size - 1000)
    assert len(list(target.parent.iterdir())) == 2


def test_size_is_that_of_what_was_written(files: Files, target: Path) -> None:
    """Not of the data of an earlier, larger model."""
    writing.write(files.draft(), target, metadata, limit=1000)
    assert writing.write(files.draft(), target, metadata) == target.stat().st_size


@pytest.mark.parametrize("limit", [writing.MAX_MODEL, 1000])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_failed_writing_leaves_everything_as_it_was(
    error: BaseException, limit: int, files: Files, target: Path
) -> None:
    target.write_bytes(b"what was there before")

    def advance(count: int) -> None:
        raise error

    with pytest.raises((ConversionError, KeyboardInterrupt)) as raised:
        writing.write(files.draft(), target, metadata, limit=limit, advance=advance)
    if isinstance(error, OSError):
        assert str(raised.value) == f"{target}: cannot be written: No space left on device"
    assert list(target.parent.iterdir()) == [target]
    assert target.read_bytes() == b"what was there before"


def test_failed_writing_leaves_no_file(files: Files, target: Path) -> None:
    def failing() -> dict[str, str]:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(ConversionError, match="cannot be written: Input/output error"):
        writing.write(files.draft(), target, failing)
    assert not list(target.parent.iterdir())
    with pytest.raises(ConversionError, match="cannot be written: Input/output error"):
        writing.write(files.draft(), target.parent / "new" / "folder" / "net.onnx", failing)
    assert not list(target.parent.iterdir()), "nor the folders that were made"


@pytest.mark.parametrize("place", ["net.prototxt/net.onnx", "net.prototxt/below/net.onnx", "."])
def test_place_that_cannot_be_written(place: str, files: Files) -> None:
    before = sorted(files.folder.iterdir())
    with pytest.raises(ConversionError):
        writing.write(files.draft(), files.folder / place, metadata)
    assert sorted(files.folder.iterdir()) == before


def test_killed_writing_leaves_the_old_model(files: Files, target: Path) -> None:
    """kill -9 cannot be caught: the draft then stays, hidden, but the model is whole."""
    writing.write(files.draft(), target, metadata)
    before = target.read_bytes()
    script = f"""
        import sys, time
        from pathlib import Path
        from converters import model, read_net
        from converters.conversion import build

        def advance(count):
            print("writing", flush=True)
            time.sleep(60)

        net = read_net({str(files.prototxt)!r}, {str(files.caffemodel)!r})
        model.write(build(net).draft, Path({str(target)!r}), dict, advance=advance)
    """
    with started(script) as process:
        assert process.stdout
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert target.read_bytes() == before
    left = [file.name for file in target.parent.iterdir() if file != target]
    assert all(name.startswith(".net.onnx.") for name in left)
    writing.write(files.draft(), target, metadata)
    assert target.read_bytes() == before


# ------------------------------------------------------------------------------------------------------------- memory


def test_weights_are_views_of_the_file(files: Files) -> None:
    net = read_net(files.prototxt, files.caffemodel)
    initializers = build(net).draft.graph.initializers
    for layer in net.layers:
        for blob in layer.blobs:
            assert isinstance(memory_of(blob), mmap.mmap)
            assert not blob.flags.writeable
        if layer.type in ("Convolution", "InnerProduct"):
            assert np.shares_memory(initializers[f"{layer.name}.weight"], layer.blobs[0])
            assert np.shares_memory(initializers[f"{layer.name}.bias"], layer.blobs[1])


def memory_of(array: np.ndarray) -> object:
    """What an array is, in the end, a view of."""
    base: object = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return base


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_of_memory_is_little_more_than_the_file(tmp_path: Path, target: Path) -> None:
    """The pages of the mapped file are counted too, so it cannot be less than the file."""
    side, count = 3000, 2
    layers = "".join(
        f'layer {{ name: "fc{i}" type: "InnerProduct" bottom: "{f"fc{i - 1}" if i else "data"}" top: "fc{i}" '
        f"inner_product_param {{ num_output: {side} bias_term: false }} }}\n"
        for i in range(count)
    )
    network = f'input: "data" input_shape {{ dim: 1 dim: {side} }}\n{layers}'
    files = Files(tmp_path, network, {f"fc{i}": [(side, side)] for i in range(count)})
    script = f"""
        from pathlib import Path
        from converters import convert, model, read_net
        from converters.conversion import build

        def peak():  # getrusage's would be the parent's, where that is larger
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) * 1024

        def write(folder):
            net = read_net(folder / "net.prototxt", folder / "net.caffemodel")
            return model.write(build(net).draft, Path({str(target)!r}), dict)

        before = peak()
        write(Path({str(files.folder)!r}))
        print(peak() - before)
    """
    with started(script) as process:
        assert process.stdout
        used = int(process.stdout.read())
    size = files.caffemodel.stat().st_size
    assert size < used < 1.25 * size + 40e6  # modules that are imported on the way


def started(script: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    """A draft of an hour ago goes; one that may still be written, and one of another file, stay."""
    target = tmp_path / "a[1].onnx"
    old, young, other = (tmp_path / f".{name}.part" for name in ("a[1].onnx.00", "a[1].onnx.01", "b.onnx.00"))
    for file in (old, young, other):
        file.write_bytes(b"half")
    for file in (old, other):
        os.utime(file, (0, 0))
    sweep(tmp_path, target.name)
    with replacing(target) as stream:
        stream.write(b"whole")
    assert target.read_bytes() == b"whole"
    assert [file.exists() for file in (old, young, other)] == [False, True, True]
