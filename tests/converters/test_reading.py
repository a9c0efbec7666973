"""Files -> networks: every form that Caffe ever wrote, and everything that is no such file."""

from __future__ import annotations

import gzip
import io
import os
import random
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from converters import ConversionError, ConversionWarning, Net, convert, read_net
from converters.reader import MAX_PROTOTXT, parse_prototxt, read_prototxt, read_weights
from converters.schema import caffe_pb2
from tests.bounded import memory_below, within
from tests.caffe_files import blob, caffemodel, field, input_layer, layer, network, weights_alone, written
from tests.converters.one_layer import run

# A network small enough to compute by hand: every form of it must give the same numbers.
LAYERS = (
    layer("conv", "Convolution", "data", params="convolution_param { num_output: 4 kernel_size: 1 }"),
    layer("relu", "ReLU", "conv", "conv"),
    layer("pool", "Pooling", "conv", params="pooling_param { pool: AVE global_pooling: true }"),
    layer("group/fc", "InnerProduct", "pool", "fc", "inner_product_param { num_output: 3 }"),
)
V2 = 'name: "small"\n' + input_layer("data", 2, 5, 6, 7) + "".join(LAYERS)
V1 = """name: "small"
input: "data" input_dim: 2 input_dim: 5 input_dim: 6 input_dim: 7
layers { name: "conv" type: CONVOLUTION bottom: "data" top: "conv" blobs_lr: [1, 2] weight_decay: 1 weight_decay: 0
  convolution_param { num_output: 4 kernel_size: 1 } }
layers { name: "relu" type: RELU bottom: "conv" top: "conv" }
layers { name: "pool" type: POOLING bottom: "conv" top: "pool" pooling_param { pool: AVE global_pooling: true } }
layers { name: "group/fc" type: INNER_PRODUCT bottom: "pool" top: "fc" inner_product_param { num_output: 3 } }
"""
RNG = np.random.default_rng(0)
WEIGHTS = {
    "conv": [RNG.standard_normal((4, 5, 1, 1), np.float32), RNG.standard_normal(4, np.float32)],
    "group/fc": [RNG.standard_normal((3, 4), np.float32), RNG.standard_normal(3, np.float32)],
}
DATA = RNG.standard_normal((2, 5, 6, 7), np.float32)
CONV = np.maximum(
    np.einsum("oi,nihw->nohw", WEIGHTS["conv"][0][..., 0, 0], DATA) + WEIGHTS["conv"][1][:, None, None], 0
)
ANSWER = CONV.mean((2, 3)) @ WEIGHTS["group/fc"][0].T + WEIGHTS["group/fc"][1]


@pytest.fixture
def prototxt(tmp_path: Path) -> Path:
    return written(tmp_path / "deploy.prototxt", V2)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return written(tmp_path / "net.caffemodel", weights_alone(WEIGHTS))


def answer(prototxt: Path, weights: Path | None = None) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConversionWarning)
        (found,) = run(convert(prototxt, weights), {"data": DATA})
    return found


def assert_answers(prototxt: Path, weights: Path | None = None) -> None:
    np.testing.assert_allclose(answer(prototxt, weights), ANSWER, rtol=1e-5, atol=1e-5)


def refusal(*files: Path | None, **options: object) -> str:
    """What the error says that the files must give; it names the last one, and it comes soon."""
    with within(10), pytest.raises(ConversionError) as caught:
        convert(*files, **options)
    return str(caught.value)


# ------------------------------------------------------------------------------------------ forms of the description


# The same network, described in each form.
TEXT_FORMS = {
    "V2, Input layer": V2,
    "V2, input_shape": V2.replace(input_layer("data", 2, 5, 6, 7), 'input: "data" input_shape { dim: [2, 5, 6, 7] }'),
    "V2, input_dim": V2.replace(input_layer("data", 2, 5, 6, 7), 'input: "data" input_dim: [2, 5, 6, 7]'),
    "V1, input_dim": V1,
    "V1, input_shape": V1.replace("input_dim: 2 input_dim: 5 input_dim: 6 input_dim: 7", "input_shape{dim:[2,5,6,7]}"),
    "Windows": "\ufeff" + V2.replace("\n", "\r\n"),
}


@pytest.mark.parametrize("case", TEXT_FORMS)
def test_text_forms(case: str, tmp_path: Path, weights: Path) -> None:
    assert_answers(written(tmp_path / "deploy.prototxt", TEXT_FORMS[case]), weights)


@pytest.mark.parametrize("text", [V1, V2], ids=["V1", "V2"])
@pytest.mark.parametrize("name", ["deploy.prototxt", "deploy.binaryproto", "deploy"])
def test_binary_description(text: str, name: str, tmp_path: Path, weights: Path) -> None:
    assert_answers(written(tmp_path / name, network(text).SerializeToString()), weights)


def test_binary_description_with_weights_that_are_not_wanted(tmp_path: Path, weights: Path) -> None:
    other = {name: [-array for array in arrays] for name, arrays in WEIGHTS.items()}
    assert_answers(written(tmp_path / "net.binary", caffemodel(network(V2), other)), weights)


@pytest.mark.parametrize("text", [V1, V2], ids=["V1", "V2"])
@pytest.mark.parametrize("name", ["net.caffemodel", "NET.CAFFEMODEL", "net_iter_100.caffemodel.bak", "net"])
def test_caffemodel_alone(text: str, name: str, tmp_path: Path) -> None:
    assert_answers(written(tmp_path / name, caffemodel(network(text), WEIGHTS)))


def test_v1_layers_are_todays() -> None:
    """Every V1 type has the name that Caffe's upgrade gives it (src/caffe/util/upgrade_proto.cpp)."""
    names = {
        "ABSVAL": "AbsVal", "ACCURACY": "Accuracy", "ARGMAX": "ArgMax", "BNLL": "BNLL", "CONCAT": "Concat",
        "CONTRASTIVE_LOSS": "ContrastiveLoss", "CONVOLUTION": "Convolution", "DATA": "Data",
        "DECONVOLUTION": "Deconvolution", "DROPOUT": "Dropout", "DUMMY_DATA": "DummyData",
        "ELTWISE": "Eltwise", "EUCLIDEAN_LOSS": "EuclideanLoss", "EXP": "Exp", "FLATTEN": "Flatten",
        "HDF5_DATA": "HDF5Data", "HDF5_OUTPUT": "HDF5Output", "HINGE_LOSS": "HingeLoss", "IM2COL": "Im2col",
        "IMAGE_DATA": "ImageData", "INFOGAIN_LOSS": "InfogainLoss", "INNER_PRODUCT": "InnerProduct", "LRN": "LRN",
        "MEMORY_DATA": "MemoryData", "MULTINOMIAL_LOGISTIC_LOSS": "MultinomialLogisticLoss", "MVN": "MVN",
        "POOLING": "Pooling", "POWER": "Power", "RELU": "ReLU", "SIGMOID": "Sigmoid",
        "SIGMOID_CROSS_ENTROPY_LOSS": "SigmoidCrossEntropyLoss", "SILENCE": "Silence", "SLICE": "Slice",
        "SOFTMAX": "Softmax", "SOFTMAX_LOSS": "SoftmaxWithLoss", "SPLIT": "Split", "TANH": "TanH",
        "THRESHOLD": "Threshold", "WINDOW_DATA": "WindowData",
    }  # fmt: skip
    assert set(names) == set(caffe_pb2.V1LayerParameter.LayerType.keys()) - {"NONE"}
    net = parse_prototxt("".join(f'layers {{ name: "{name}" type: {name} }}' for name in names))
    assert {layer.name: layer.type for layer in net.message.layer} == names


def test_v1_keeps_what_a_layer_says(tmp_path: Path) -> None:
    text = """input: "a" input_dim: [1, 2, 3, 4]
layers { name: "c" type: CONVOLUTION bottom: "a" top: "b" top: "d" loss_weight: 0.5 include { phase: TEST stage: "s" }
  exclude { min_level: 3 } param: "shared" param: "" blob_share_mode: PERMISSIVE blobs_lr: 1 blobs_lr: 2 weight_decay: 3
  convolution_param { num_output: 2 kernel_h: 1 kernel_w: 3 } }"""
    (found,) = read_prototxt(written(tmp_path / "p", text)).message.layer
    expected = """name: "c" type: "Convolution" bottom: "a" top: "b" top: "d" loss_weight: 0.5
      include { phase: TEST stage: "s" } exclude { min_level: 3 }
      param { name: "shared" share_mode: PERMISSIVE lr_mult: 1 decay_mult: 3 } param { name: "" lr_mult: 2 }
      convolution_param { num_output: 2 kernel_h: 1 kernel_w: 3 }"""
    assert found == network(f"layer {{ {expected} }}").layer[0]


def test_v0_is_named(tmp_path: Path) -> None:
    v0 = """name: "CaffeNet" input: "data" input_dim: [1, 3, 9, 9]
layers { layer { name: "conv1" type: "conv" num_output: 96 kernelsize: 11 stride: 4 } bottom: "data" top: "conv1" }"""
    said = refusal(written(tmp_path / "old.prototxt", v0))
    for part in ("old.prototxt", "conv1 (conv)", "V0 form of 2013", "upgrade_net_proto_text"):
        assert part in said


def test_both_versions_in_one_file(tmp_path: Path) -> None:
    both = 'input: "data" input_dim: [1, 1, 1, 1] layers { name: "a" type: RELU bottom: "data" top: "a" }' + LAYERS[0]
    assert "both `layer` and `layers`" in refusal(written(tmp_path / "p", both))


@pytest.mark.parametrize(
    ("head", "says"),
    [
        ('input: "a" input: "b" input_shape { dim: 1 }', "2 input(s) and 1 input_shape"),
        ('input: "a" input_dim: [1, 2, 3]', "1 input(s) and 3 input_dim"),
        ('input: "a" input: "a" input_shape { dim: 1 } input_shape { dim: 1 }', "the input 'a' 2 times"),
        ('input: "a"', "does not say the shape of the input 'a'"),
        (layer("in", "Input", tops="a"), "does not say the shape of the input 'a'"),
        (layer("in", "Input", tops="a b c", params="input_param { shape {} shape {} }"), "2 shapes for 3 tops"),
    ],
)
def test_input_declarations_that_do_not_add_up(head: str, says: str, tmp_path: Path) -> None:
    said = refusal(written(tmp_path / "deploy.prototxt", head + layer("r", "ReLU", "a")))
    assert says in said
    assert "deploy.prototxt" in said


# ---------------------------------------------------------------------------------------------- forms of the weights


def legacy(values: np.ndarray) -> bytes:
    """num, channels, height and width, as before 2015."""
    num, channels, height, width = (1,) * (4 - values.ndim) + values.shape
    sizes = caffe_pb2.BlobProto(num=num, channels=channels, height=height, width=width, data=values.tobytes())
    return sizes.SerializeToString()


def doubles(values: np.ndarray) -> bytes:
    shape = caffe_pb2.BlobShape(dim=values.shape)
    return caffe_pb2.BlobProto(shape=shape, double_data=values.astype("<f8").tobytes()).SerializeToString()


def unpacked(values: np.ndarray) -> bytes:
    """Each float with a tag of its own, as `repeated float` was before it was packed."""
    floats = b"".join(bytes([5 << 3 | 5]) + one.tobytes() for one in values.reshape(-1))
    return floats + caffe_pb2.BlobProto(shape=caffe_pb2.BlobShape(dim=values.shape)).SerializeToString()


def in_chunks(values: np.ndarray) -> bytes:
    """Packed floats in several pieces, some unpacked between them: Protocol Buffers joins them."""
    flat = values.reshape(-1)
    middle = b"".join(bytes([5 << 3 | 5]) + one.tobytes() for one in flat[1:2])
    shape = caffe_pb2.BlobProto(shape=caffe_pb2.BlobShape(dim=values.shape)).SerializeToString()
    return field(5, flat[:1].tobytes()) + middle + shape + field(5, b"") + field(5, flat[2:].tobytes())


def with_diff(values: np.ndarray) -> bytes:
    return blob(values) + caffe_pb2.BlobProto(diff=(values * 7).tobytes()).SerializeToString()


def unpacked_shape(values: np.ndarray) -> bytes:
    dims = b"".join(bytes([1 << 3, size]) for size in values.shape)
    return field(7, dims) + field(5, values.tobytes())


def double_diff(values: np.ndarray) -> bytes:
    return field(9, values.astype("<f8").tobytes()) + blob(values)


@pytest.mark.parametrize(
    "form",
    [blob, legacy, doubles, unpacked, in_chunks, with_diff, unpacked_shape, double_diff],
    ids=lambda form: form.__name__,
)
@pytest.mark.parametrize("text", [V1, V2], ids=["V1", "V2"])
def test_weights_forms(form: Callable[[np.ndarray], bytes], text: str, tmp_path: Path, prototxt: Path) -> None:
    encoded = {name: [form(array) for array in arrays] for name, arrays in WEIGHTS.items()}
    assert_answers(prototxt, written(tmp_path / "net.caffemodel", caffemodel(network(text), encoded)))


def hdf5(path: Path, weights: Mapping[str, Sequence[np.ndarray]], **options: object) -> Path:
    """Weights as Caffe's snapshot_format: HDF5 stores them."""
    with h5py.File(path, "w") as file:
        for name, arrays in weights.items():
            group = file.create_group(f"data/{name}")
            for index, array in enumerate(arrays):
                group.create_dataset(str(index), data=array, **options)
    return path


@pytest.mark.parametrize("options", [{}, {"dtype": "f8"}, {"compression": "gzip"}], ids=["float", "double", "gzip"])
@pytest.mark.parametrize("name", ["net.caffemodel.h5", "net.caffemodel"])
def test_hdf5_weights(name: str, options: dict[str, object], tmp_path: Path, prototxt: Path) -> None:
    """One layer's name has a slash, which HDF5 makes a group in a group."""
    assert_answers(prototxt, hdf5(tmp_path / name, WEIGHTS, **options))


def test_hdf5_layer_within_another(tmp_path: Path) -> None:
    weights = {"a": [np.ones(1)], "a/b": [np.ones(2), np.ones(3)], "a/b/c": [np.ones(4)]}
    found = read_weights(hdf5(tmp_path / "w.h5", weights)).layers
    assert {name: [array.size for array in arrays] for name, arrays in found.items()} == {
        name: [array.size for array in arrays] for name, arrays in weights.items()
    }


def test_a_number_without_shape_has_no_axes(tmp_path: Path) -> None:
    """Caffe writes no shape for a blob without axes (Scale with num_axes: 0)."""
    text = input_layer("data", 1, 2) + layer("s", "Scale", "data", params="scale_param { num_axes: 0 }")
    weights = weights_alone({"s": [caffe_pb2.BlobProto(data=np.float32(3).tobytes()).SerializeToString()]})
    model = convert(written(tmp_path / "p", text), written(tmp_path / "w", weights))
    (found,) = run(model, {"data": np.array([[1, 2]], np.float32)})
    assert found.tolist() == [[3, 6]]


def test_weights_stay_in_the_file(tmp_path: Path, prototxt: Path) -> None:
    large = {"conv": [np.ones((4, 1 << 20, 1, 1), np.float32), np.ones(4, np.float32)]}
    path = written(tmp_path / "large.caffemodel", weights_alone(large))
    with memory_below(1 << 20):
        found = read_weights(path).layers["conv"]
    assert [array.shape for array in found] == [(4, 1 << 20, 1, 1), (4,)]
    assert all(array.dtype == np.float32 and not array.flags.owndata and not array.flags.writeable for array in found)
    assert float(found[0].sum()) == 4 << 20


def test_weights_match_by_name_in_any_order(tmp_path: Path, prototxt: Path) -> None:
    backwards = dict(reversed(WEIGHTS.items()))
    assert_answers(prototxt, written(tmp_path / "w", weights_alone(backwards)))


def test_weights_of_other_layers_are_left_out_aloud(tmp_path: Path, prototxt: Path) -> None:
    more = {
        **WEIGHTS,
        "conv_conv_0_split": [],
        "fc1000": [np.ones((2, 2), np.float32)],
        "aux": [np.ones(1, np.float32)],
    }
    path = written(tmp_path / "more.caffemodel", weights_alone(more))
    with pytest.warns(ConversionWarning, match=r"more\.caffemodel: .* 2 layer\(s\) .*: fc1000, aux$"):
        net = read_net(prototxt, path)
    assert [layer.name for layer in net.layers] == ["conv", "relu", "pool", "group/fc"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        np.testing.assert_allclose(run(convert(prototxt, path), {"data": DATA})[0], ANSWER, rtol=1e-5, atol=1e-5)


def test_blobs_that_share_a_name_are_one(tmp_path: Path) -> None:
    """`param { name }`: the weight is shared, each layer has a bias of its own. Caffe fills in the file's order."""
    ip = 'param {{ name: "w" }} inner_product_param {{ num_output: 2 {} }}'
    text = (
        input_layer("data", 1, 2)
        + layer("a", "InnerProduct", "data", params=ip.format(""))
        + layer("b", "InnerProduct", "data", params=ip.format(""))
        + layer("c", "InnerProduct", "data", params=ip.format("bias_term: false"))
    )
    first, last = np.array([[1, 2], [3, 4]], np.float32), np.array([[5, 6], [7, 8]], np.float32)
    weights = {"a": [first, np.array([10, 20], np.float32)], "b": [last, np.array([30, 40], np.float32)]}
    model = convert(written(tmp_path / "p", text), written(tmp_path / "w", weights_alone(weights)))
    found = run(model, {"data": np.array([[1, 10]], np.float32)})
    assert [values.tolist() for values in found] == [[[75, 107]], [[95, 127]], [[65, 87]]]


# --------------------------------------------------------------------------------------------------- unknown fields

UNKNOWN = V2.replace("num_output: 4", "num_output: 4\n  sparse_ratio: 0.5").replace(
    'type: "ReLU"', 'type: "ReLU" fork_param { alpha: 2 mode: FAST inner { x: 1 x: 2 } }'
)


def test_unknown_fields_of_layers_that_compute_are_refused(tmp_path: Path, weights: Path) -> None:
    path = written(tmp_path / "fork.prototxt", UNKNOWN)
    with (
        pytest.warns(ConversionWarning) as caught,
        pytest.raises(ConversionError, match=r"2 unknown field\(s\) that may change") as raised,
    ):
        convert(path, weights)
    assert "fork.prototxt:4:3: convolution_param.sparse_ratio: 0.5, in layer conv (Convolution)" in str(raised.value)
    assert "--ignore-unknown convolution_param.sparse_ratio --ignore-unknown fork_param" in str(raised.value)
    said = [str(one.message) for one in caught]
    assert len(said) == 2
    assert re.search(r"fork\.prototxt:4:3: the field 'sparse_ratio' is not known and was left aside", said[0])
    assert re.search(r"fork\.prototxt:5:\d+: the field 'fork_param' is not known", said[1])


@pytest.mark.parametrize("ignored", [("convolution_param.sparse_ratio", "fork_param"), ("sparse_ratio", "fork_param")])
def test_unknown_fields_can_be_ignored(ignored: tuple[str, ...], tmp_path: Path, weights: Path) -> None:
    path = written(tmp_path / "fork.prototxt", UNKNOWN)
    with pytest.warns(ConversionWarning):
        model = convert(path, weights, ignore_unknown=ignored)
    np.testing.assert_allclose(run(model, {"data": DATA})[0], ANSWER, rtol=1e-5, atol=1e-5)
    with pytest.warns(ConversionWarning), pytest.raises(ConversionError, match=r"1 unknown field.*\n.*fork_param"):
        convert(path, weights, ignore_unknown=ignored[:1])


def test_unknown_fields_behind_the_outputs_do_not_matter(tmp_path: Path, weights: Path) -> None:
    text = UNKNOWN.replace("  sparse_ratio: 0.5", "")
    with pytest.warns(ConversionWarning):
        convert(written(tmp_path / "fork.prototxt", text), weights, outputs=["conv@conv"])


def test_many_unknown_fields_are_summed_up(tmp_path: Path, weights: Path) -> None:
    path = written(tmp_path / "fork.prototxt", "".join(f"own_{i}: {i}\n" for i in range(500)) + V2)
    with pytest.warns(ConversionWarning) as caught:
        read_net(path, weights)
    assert len(caught) == 21
    assert str(caught[-1].message).endswith("480 more fields are not known and were left aside")


@pytest.mark.parametrize("version", ["V1", "V2"])
def test_unknown_fields_reach_the_layer(version: str, tmp_path: Path, weights: Path) -> None:
    text = UNKNOWN
    if version == "V1":
        text = V1.replace("num_output: 4", "num_output: 4 sparse_ratio: 0.5").replace(
            "type: RELU", "type: RELU fork_param { alpha: 2 mode: FAST inner { x: 1 x: 2 } }"
        )
    with pytest.warns(ConversionWarning):
        net = read_net(written(tmp_path / "p", text), weights)
    extras = {layer.name: layer.extra for layer in net.layers if layer.extra}
    assert extras == {
        "conv": {"convolution_param": {"sparse_ratio": 0.5}},
        "relu": {"fork_param": {"alpha": 2, "mode": "FAST", "inner": {"x": [1, 2]}}},
    }


# --------------------------------------------------------------------------------------------- what is no such file


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("net.caffemodel", b"weights")
    return buffer.getvalue()


# What it is -> its bytes, and what the error says of it whatever the argument that it is given for.
FOREIGN = {
    "empty": (b"", "is empty"),
    "HTML": (b"\n<!DOCTYPE html><html><body>404</body></html>", "is an HTML or XML page"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "Git LFS pointer"),
    "zip": (zipped(), "is a zip archive"),
    "gzip": (gzip.compress(V2.encode()), "is a gzip archive"),
    "UTF-16": (V2.encode("utf-16"), "is UTF-16 text"),
    "PNG": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is a PNG image"),
    "text": (b"Dear sir or madam, your download has expired.", ""),
    "JSON": (b'{"message": "Not Found"}', ""),
    "ELF": (b"\x7fELF\x02\x01\x01" + bytes(57), ""),
    "zeros": (bytes(4096), ""),
    "ones": (b"\xff" * 4096, ""),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("place", ["description", "description with weights", "weights"])
def test_foreign_files(kind: str, place: str, tmp_path: Path, prototxt: Path, weights: Path) -> None:
    content, says = FOREIGN[kind]
    path = written(tmp_path / "foreign.bin", content)
    files = {"description": (path,), "description with weights": (path, weights), "weights": (prototxt, path)}[place]
    said = refusal(*files)
    assert "foreign.bin" in said
    assert says in said


@pytest.mark.parametrize("as_weights", [False, True])
def test_no_file(as_weights: bool, tmp_path: Path, prototxt: Path) -> None:
    def said(path: Path) -> str:
        return refusal(prototxt, path) if as_weights else refusal(path)

    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert re.search(r"folder: is a folder, expected a file", said(tmp_path / "folder"))
    assert re.search(r"missing: does not exist", said(tmp_path / "missing"))
    assert re.search(r"missing/file: ", said(tmp_path / "missing" / "file"))
    assert re.search(r"pipe: is no regular file", said(tmp_path / "pipe"))
    assert re.search(r"cannot be read", said(Path("a\0b")))
    assert re.search(r"cannot be read", said(Path("a" * 5000)))


def test_no_permission(tmp_path: Path) -> None:
    path = written(tmp_path / "secret.prototxt", V2)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert "secret.prototxt: cannot be read" in refusal(path)


def test_swapped_arguments(tmp_path: Path, prototxt: Path, weights: Path) -> None:
    assert re.search(
        r"deploy\.prototxt: is a text prototxt, expected weights \(did the .*places", refusal(weights, prototxt)
    )
    stored = hdf5(tmp_path / "net.h5", WEIGHTS)
    assert re.search(r"deploy\.prototxt: is a text prototxt, expected weights", refusal(stored, prototxt))
    assert re.search(r"net\.h5: .*weights", refusal(stored, stored))


@pytest.mark.parametrize("start", ["# a comment\n" * 50, "  \n\t", "force_backward: true ", "layers {} ", "state { } "])
def test_text_in_place_of_weights_is_known_by_its_start(start: str, tmp_path: Path, prototxt: Path) -> None:
    assert "is a text prototxt" in refusal(prototxt, written(tmp_path / "w", start + V2))


def test_weights_without_a_network(tmp_path: Path) -> None:
    assert re.search(r"net\.h5: carries no network, only weights", refusal(hdf5(tmp_path / "net.h5", WEIGHTS)))
    said = refusal(written(tmp_path / "net.caffemodel", weights_alone(WEIGHTS)))
    assert "net.caffemodel" in said
    assert "conv" in said


def test_description_too_large(tmp_path: Path) -> None:
    path = tmp_path / "large.prototxt"
    with path.open("wb") as file:
        file.write(V2.encode() + b"\n" * 8192)
        file.truncate(MAX_PROTOTXT + 1)  # NULs at the end: a sparse file
    assert re.search(r"large\.prototxt: has [\d,]+ bytes, expected a prototxt of at most", refusal(path))


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", 'name: "x"', 'net: "train_val.prototxt" base_lr: 0.01'])
def test_description_without_layers(text: str, tmp_path: Path) -> None:
    said = refusal(written(tmp_path / "solver.prototxt", text))
    assert re.search(r"solver\.prototxt: (describes no layers|is empty)", said)


# ------------------------------------------------------------------------------------------------------ cut or damaged


def cuts(size: int) -> list[int]:
    """After every fiftieth of a file, and at some random bytes."""
    chance = random.Random(size)
    return sorted({size * part // 50 for part in range(50)} | {chance.randrange(size) for _ in range(50)})


def outcome(action: Callable[[], object]) -> str | None:
    """What the error says that an action gives; None where it succeeds."""
    try:
        with warnings.catch_warnings(), within(10):
            warnings.simplefilter("ignore", ConversionWarning)
            action()
    except ConversionError as error:
        return str(error)
    return None


def test_truncated_weights(tmp_path: Path, prototxt: Path) -> None:
    for form in (blob, legacy, doubles, unpacked):
        encoded = {name: [form(array) for array in arrays] for name, arrays in WEIGHTS.items()}
        whole = caffemodel(network(V2), encoded)
        for cut in cuts(len(whole)):
            said = refusal(prototxt, written(tmp_path / "short.caffemodel", whole[:cut]))
            assert "short.caffemodel" in said, cut


def test_truncated_network_with_weights(tmp_path: Path) -> None:
    """Cut between two layers, a caffemodel alone is a smaller network; cut elsewhere, it is refused."""
    whole = caffemodel(network(V2), WEIGHTS)
    outcomes = set()
    for cut in cuts(len(whole)):
        path = written(tmp_path / "short.caffemodel", whole[:cut])
        said = outcome(lambda path=path: convert(path))
        assert said is None or "short.caffemodel" in said
        outcomes.add(said is None)
    assert False in outcomes


def test_truncated_hdf5(tmp_path: Path, prototxt: Path) -> None:
    whole = hdf5(tmp_path / "whole.h5", WEIGHTS).read_bytes()
    for cut in cuts(len(whole)):
        assert "short.h5" in refusal(prototxt, written(tmp_path / "short.h5", whole[:cut])), cut


def test_truncated_description(tmp_path: Path, weights: Path) -> None:
    """Every cut is an error with line and column, or leaves a network of fewer layers."""
    places = 0
    for cut in cuts(len(V2)):
        path = written(tmp_path / "short.prototxt", V2[:cut])
        said = outcome(lambda path=path: read_net(path, weights))
        assert said is None or "short.prototxt" in said
        places += bool(said and re.search(r"short\.prototxt:\d+:\d+: found", said))
    assert places > 50


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x0a\xff\xff\xff\xff\x0f", "were announced"),
        (b"\x0a" + b"\xff" * 10, "more than 10 bytes"),
        (b"\x0a\x80", "in the middle of a number"),
        (b"\x0b", "wire type 3"),
        (b"\x00\x00", "field number 0"),
        (b"\xa2\x06\x03\x0a\x04\x01", "were announced"),
        (b"\x28\x01" * 500_000, "fields"),
        (b"\xa2\x06\x00" * 500_000, "fields"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bytes_that_are_no_message(content: bytes, says: str, tmp_path: Path, prototxt: Path) -> None:
    said = refusal(prototxt, written(tmp_path / "w.bin", content))
    assert "w.bin" in said
    assert says in said


FLOATS = np.zeros(6, "<f4").tobytes()


# An encoded BlobProto, and a part of what the error says.
BAD_BLOBS = {
    "too few numbers": (
        field(7, b"\x0a\x02\x02\x04") + field(5, FLOATS),
        "6 numbers in a blob of shape 2 x 4, expected 8",
    ),
    "too many numbers": (
        field(7, b"\x0a\x01\x02") + field(5, FLOATS),
        "6 numbers in a blob of shape 2, expected 2",
    ),
    "no numbers": (field(7, b"\x0a\x02\x02\x03"), "0 numbers in a blob of shape 2 x 3"),
    "half a number": (field(7, b"\x0a\x01\x06") + field(5, FLOATS + b"\0"), "25 bytes of packed float32"),
    "half a double": (field(7, b"\x0a\x01\x03") + field(8, FLOATS + b"\0\0\0\0"), "28 bytes of packed float64"),
    "negative": (field(7, b"\x0a\x0a" + b"\xff" * 9 + b"\x01") + field(5, FLOATS), "shape -1"),
    "too large": (field(7, b"\x0a\x06" + b"\xff" * 5 + b"\x7f") + field(5, FLOATS), "sizes below 2**31"),
    "too many axes": (field(7, b"\x0a\x28" + b"\x01" * 40) + field(5, FLOATS[:4]), "at most 32 sizes"),
    "legacy": (
        b"\x08\x02\x10\x04\x18\x01\x20\x01" + field(5, FLOATS),
        "6 numbers in a blob of shape 2 x 4 x 1 x 1",
    ),
    "product beyond 64 bits": (field(7, b"\x0a\x14" + b"\xff\xff\xff\xff\x07" * 4) + field(5, FLOATS), "6 numbers"),
}


@pytest.mark.parametrize("case", BAD_BLOBS)
def test_blobs_that_do_not_add_up(case: str, tmp_path: Path, prototxt: Path) -> None:
    bad, says = BAD_BLOBS[case]
    said = refusal(prototxt, written(tmp_path / "w.caffemodel", weights_alone({"conv": [bad]})))
    for part in ("w.caffemodel", "conv", says):
        assert part in said


def test_many_short_runs_of_unpacked_floats(tmp_path: Path, prototxt: Path) -> None:
    """Floats between other fields, 1.4 MB of them: no pass over all the rest for each."""
    path = written(tmp_path / "w", weights_alone({"conv": [b"\x2d\0\0\0\0\x08\x01" * 180_000]}))
    assert "conv" in refusal(prototxt, path)


@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\x80"])
@pytest.mark.parametrize("name", ["conv", "pool"], ids=["layer and blob", "blob"])
def test_names_that_are_no_text(bad: bytes, name: str, tmp_path: Path) -> None:
    content = caffemodel(network(V2.replace(f'"{name}"', '"Q"')), WEIGHTS).replace(b"\x01Q", b"\x01" + bad)
    said = refusal(written(tmp_path / "net.caffemodel", content))
    assert "net.caffemodel" in said
    assert "UTF-8" in said


# What is done to an empty HDF5 file.
NOT_CAFFES: dict[str, Callable[[h5py.File], object]] = {
    "no /data": lambda file: file.create_group("model"),
    "data is no group": lambda file: file.create_dataset("data", data=np.zeros(3)),
    "strings": lambda file: file.create_dataset("data/conv/0", data="abc"),
    "nothing in it": lambda file: file.create_dataset("data/conv/0", data=h5py.Empty("f4")),
    "a blob is missing": lambda file: file.create_dataset("data/conv/1", data=np.zeros(3)),
    "a terabyte that was never written": lambda file: file.create_dataset("data/conv/0", (1 << 40,), "f4", chunks=(9,)),
    "a gigabyte of zeros": lambda file: file.create_dataset("data/conv/0", (1 << 28,), "f4", chunks=(1 << 16,)),
    "a link to nowhere": lambda file: file.update({"data": h5py.SoftLink("/nowhere")}),
    "a link into itself": lambda file: file.update({"data": h5py.SoftLink("/data")}),
}


@pytest.mark.parametrize("case", NOT_CAFFES)
def test_hdf5_that_is_not_caffes(case: str, tmp_path: Path, prototxt: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        NOT_CAFFES[case](file)
    with memory_below(64 << 20):
        said = refusal(prototxt, tmp_path / "w.h5")
    assert "w.h5" in said


def foreign_storage(file: h5py.File, secret: Path) -> None:
    file.create_dataset("data/conv/0", (4, 5, 1, 1), "f4", external=[(str(secret), 0, 80)])


def virtual_dataset(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout((4, 5, 1, 1), "f4")
    layout[:] = h5py.VirtualSource(f"{secret}.h5", "data/conv/0", (4, 5, 1, 1))
    file.create_virtual_dataset("data/conv/0", layout)


def link_to_a_file(file: h5py.File, secret: Path) -> None:
    file["data"] = h5py.ExternalLink(f"{secret}.h5", "/data")


def link_to_a_layer(file: h5py.File, secret: Path) -> None:
    file["data/conv"] = h5py.ExternalLink(f"{secret}.h5", "/data/conv")


def link_to_a_blob(file: h5py.File, secret: Path) -> None:
    file["data/conv/0"] = h5py.ExternalLink(f"{secret}.h5", "/data/conv/0")


def soft_link_over_an_external_one(file: h5py.File, secret: Path) -> None:
    file["outside"] = h5py.ExternalLink(f"{secret}.h5", "/data")
    file["data/conv"] = h5py.SoftLink("/outside/conv")


def references(file: h5py.File, secret: Path) -> None:
    file["outside"] = h5py.ExternalLink(f"{secret}.h5", "/data/conv/0")
    file.create_dataset("data/conv/0", data=[file.ref] * 4, dtype=h5py.ref_dtype)


@pytest.mark.parametrize(
    "reach",
    [
        foreign_storage, virtual_dataset, link_to_a_file, link_to_a_layer, link_to_a_blob,
        soft_link_over_an_external_one, references,
    ],
    ids=lambda reach: reach.__name__,
)  # fmt: skip
def test_hdf5_reads_no_other_file(reach: Callable[[h5py.File, Path], None], tmp_path: Path) -> None:
    """Weights that lie in other files are refused by name, and never left out without a word."""
    secret = written(tmp_path / "secret", b"never to be read " * 10)
    hdf5(tmp_path / "secret.h5", WEIGHTS)
    path = hdf5(tmp_path / "w.h5", {"group/fc": WEIGHTS["group/fc"]}) if reach is not link_to_a_file else None
    with h5py.File(path or tmp_path / "w.h5", "a") as file:
        reach(file, secret)
    with pytest.raises(
        ConversionError, match=r"w\.h5: .*(stored in other files|a link from|no group /data|found object)"
    ):
        read_weights(tmp_path / "w.h5")


def test_hdf5_layers_that_share_a_blob_by_a_hard_link(tmp_path: Path) -> None:
    with h5py.File(hdf5(tmp_path / "w.h5", {"a": [np.arange(3.0)]}), "a") as file:
        file.create_group("data/b")["0"] = file["data/a/0"]
    found = read_weights(tmp_path / "w.h5").layers
    assert sorted(found) == ["a", "b"]
    assert found["b"][0].tolist() == [0, 1, 2]


# ---------------------------------------------------------------------------- files that do not belong together


def test_another_networks_weights(tmp_path: Path, prototxt: Path) -> None:
    path = written(
        tmp_path / "other.caffemodel", weights_alone({"fc6": [np.ones(1, np.float32)], "fc7": [np.ones(1, np.float32)]})
    )
    said = refusal(prototxt, path)
    for part in (
        "deploy.prototxt",
        "other.caffemodel",
        "fc6, fc7",
        "conv, relu, pool, group/fc",
        "do not belong together",
    ):
        assert part in said


@pytest.mark.parametrize("missing", ["conv", "group/fc"])
def test_layer_without_weights(missing: str, tmp_path: Path, prototxt: Path) -> None:
    some = {name: arrays for name, arrays in WEIGHTS.items() if name != missing}
    said = refusal(prototxt, written(tmp_path / "some.caffemodel", weights_alone(some)))
    for part in (
        "deploy.prototxt",
        f"layer {missing} (",
        "found no weights in",
        "some.caffemodel",
        "expected 2 blob(s)",
    ):
        assert part in said


def test_no_weights_at_all(prototxt: Path) -> None:
    said = refusal(prototxt)
    for part in ("deploy.prototxt", "layer conv (Convolution)", "no .caffemodel was given", "4 x 5 x 1 x 1, 4"):
        assert part in said


@pytest.mark.parametrize(
    ("name", "blobs", "found", "expected"),
    [
        ("conv", [(4, 6, 1, 1), (4,)], "4 x 6 x 1 x 1", "4 x 5 x 1 x 1"),
        ("conv", [(5, 4, 1, 1), (4,)], "5 x 4 x 1 x 1", "4 x 5 x 1 x 1"),
        ("conv", [(4, 5), (4,)], "4 x 5", "4 x 5 x 1 x 1"),
        ("conv", [(4, 5, 1, 1), (5,)], "shape 5 for blob 1", "expected 4"),
        ("conv", [(4, 5, 1, 1), (4, 1)], "shape 4 x 1 for blob 1", "expected 4"),
        ("conv", [(4, 5, 1, 1)], "1 blob(s) of shape 4 x 5 x 1 x 1", "expected 2 of shape 4 x 5 x 1 x 1, 4"),
        ("conv", [(4, 5, 1, 1), (4,), (1,)], "3 blob(s) of shape 4 x 5 x 1 x 1, 4, 1", "expected 2"),
        ("group/fc", [(4, 3), (3,)], "4 x 3", "3 x 4"),
        ("group/fc", [(3, 168), (3,)], "3 x 168", "3 x 4"),
        ("group/fc", [(12,), (3,)], "shape 12 for blob 0", "3 x 4"),
    ],
)
def test_weights_of_another_shape(
    name: str, blobs: list[tuple[int, ...]], found: str, expected: str, tmp_path: Path, prototxt: Path
) -> None:
    wrong = {**WEIGHTS, name: [np.zeros(shape, np.float32) for shape in blobs]}
    said = refusal(prototxt, written(tmp_path / "wrong.caffemodel", weights_alone(wrong)))
    for part in ("deploy.prototxt", f"layer {name} (", "wrong.caffemodel", found, expected):
        assert part in said


def test_weights_twice(tmp_path: Path, prototxt: Path) -> None:
    twice = weights_alone(WEIGHTS) + weights_alone({"conv": WEIGHTS["conv"]})
    said = refusal(prototxt, written(tmp_path / "twice.caffemodel", twice))
    for part in ("twice.caffemodel", "layer conv", "twice"):
        assert part in said


def test_blob_of_another_size_shared(tmp_path: Path) -> None:
    ip = 'param {{ name: "w" }} inner_product_param {{ num_output: {} bias_term: false }}'
    text = input_layer("data", 1, 2) + layer("a", "InnerProduct", "data", params=ip.format(2))
    text += layer("b", "InnerProduct", "data", params=ip.format(3))
    weights = weights_alone({"a": [np.ones((2, 2), np.float32)], "b": [np.ones((3, 2), np.float32)]})
    said = refusal(written(tmp_path / "p", text), written(tmp_path / "w", weights))
    assert re.search(r"layer [ab] \(InnerProduct\): found [46] numbers in the shared blob 'w', expected [46]", said)


# --------------------------------------------------------------------------------------- networks that make no sense

INPUT = input_layer("data", 1, 3, 8, 8)


# A description, and parts of what the error says.
TORN = {
    "dangling": (
        INPUT + layer("pool5", "Pooling", "data") + layer("prob", "Softmax", "poll5"),
        ("layer prob (Softmax)", "reads the blob 'poll5', which no layer", "did you mean 'pool5'?"),
    ),
    "dangling, nothing near": (INPUT + layer("prob", "Softmax", "zzz"), ("layer prob (Softmax)", "'zzz'")),
    "twice": (
        INPUT + layer("a", "ReLU", "data", "x") + layer("b", "TanH", "data", "x"),
        ("layer b (TanH)", "writes the blob 'x', which the layer 'a' writes already", "expected one producer"),
    ),
    "an input again": (
        INPUT + layer("a", "DummyData", "", "data", "dummy_data_param { shape { dim: 1 } }"),
        ("layer a (DummyData)", "writes the blob 'data', which an input writes already"),
    ),
    "twice in one layer": (
        INPUT + layer("a", "Split", "data", "x x"),
        ("layer a (Split)", "'x'", "writes already"),
    ),
    "cycle": (
        INPUT + layer("a", "Eltwise", "data y", "x") + layer("b", "ReLU", "x", "y"),
        ("layer a (Eltwise)", "'y'", "layer 'b'", "a cycle, or layers in the wrong order"),
    ),
    "a cycle of one": (
        INPUT + layer("a", "Eltwise", "data x", "x"),
        ("layer a (Eltwise)", "'x'", "layer 'a'", "a cycle"),
    ),
    "wrong order": (
        INPUT + layer("b", "ReLU", "x", "y") + layer("a", "ReLU", "data", "x"),
        ("layer b (ReLU)", "'x'", "layer 'a'", "wrong order"),
    ),
    "no type": (INPUT + 'layer { name: "a" bottom: "data" top: "a" }', ("layer a", "no type")),
    "an empty name": (
        INPUT + 'layer { name: "a" type: "ReLU" bottom: "data" top: "" }',
        ("layer a (ReLU)", "without a name"),
    ),
    "no bottom": (INPUT + layer("a", "ReLU"), ("layer a (ReLU)", "found 0 bottom(s)", "expected")),
    "two bottoms": (INPUT + layer("a", "ReLU", "data data"), ("layer a (ReLU)", "found 2 bottom(s)", "expected")),
    "no top": (INPUT + layer("a", "ReLU", "data", ""), ("no outputs",)),
    "inputs only": (INPUT, ("no layers left",)),
    "rules": (
        INPUT + layer("a", "ReLU", "data", params="include { phase: TEST } exclude { phase: TRAIN }"),
        ("layer a (ReLU)", "include and exclude rules"),
    ),
}


@pytest.mark.parametrize("case", TORN)
def test_networks_that_hang_together_badly(case: str, tmp_path: Path) -> None:
    text, parts = TORN[case]
    said = refusal(written(tmp_path / "torn.prototxt", text))
    for part in ("torn.prototxt", *parts):
        assert part in said


def conv(params: str) -> str:
    return INPUT + layer("l", "Convolution", "data", params=f"convolution_param {{ {params} }}")


def pool(params: str, *shape: int) -> str:
    return input_layer("data", *(shape or (1, 3, 8, 8))) + layer(
        "l", "Pooling", "data", params=f"pooling_param {{ {params} }}"
    )


HUGE = "4000000000"


def of(type: str, params: str = "", *shape: int) -> str:
    return input_layer("data", *(shape or (1, 3, 8, 8))) + layer("l", type, "data", params=params)


# A description, and what the error says was found.
ABSURD = {
    "kernel of 2^31": (conv("num_output: 4 kernel_size: 2147483648"), "2147483648"),
    "kernel of 2^32 - 1": (conv("num_output: 4 kernel_size: 4294967295 pad: 4294967295"), "4294967295"),
    "kernel of 0": (conv("num_output: 4 kernel_size: 0"), "(0, 0)"),
    "no kernel": (conv("num_output: 4"), "found 0 value(s) for the kernel"),
    "stride of 0": (conv("num_output: 4 kernel_size: 1 stride: 0"), "(0, 0)"),
    "dilation of 0": (conv("num_output: 4 kernel_size: 1 dilation: 0"), "(0, 0)"),
    "dilation of 2^32 - 1": (
        of("Im2col", "convolution_param { kernel_size: 3 dilation: 4294967295 }"),
        "4294967295",
    ),
    "three kernels for two axes": (conv("num_output: 4 kernel_size: [1, 2, 3]"), "3 value(s)"),
    "4e9 outputs": (conv("num_output: 4000000000 kernel_size: 1"), "4000000000 x 3 x 1 x 1"),
    "no outputs": (conv("kernel_size: 1"), "num_output 0"),
    "no groups": (conv("num_output: 4 kernel_size: 1 group: 0"), "group 0"),
    "groups that do not divide": (conv("num_output: 4 kernel_size: 1 group: 2"), "group 2 for 3 channels"),
    "axis": (conv("num_output: 4 kernel_size: 1 axis: 7"), "axis 7"),
    "fc of 4e9": (of("InnerProduct", "inner_product_param { num_output: 4000000000 }"), "4000000000 x 192"),
    "fc of none": (of("InnerProduct"), "no num_output"),
    "pooling 2^31": (pool("kernel_size: 2147483648"), "2147483648"),
    "pooling of 1 x 1 to 4e8 x 4e8": (
        pool("pool: AVE kernel_size: 400000001 pad: 400000000", 1, 1, 1, 1),
        "400000001",
    ),
    "pooling pad": (pool("kernel_size: 2 pad: 2"), "pad (2, 2)"),
    "pooling stride of 0": (pool("kernel_size: 2 stride: 0"), "stride (0, 0)"),
    "pooling without kernel": (pool(""), "kernel (0, 0)"),
    "input of 1e9 x 1e9": (of("ReLU", "", 1, 3, 10**9, 10**9), "1 x 3 x 1000000000 x 1000000000"),
    "input of 2^63": (of("ReLU", "", 2**63 - 1), str(2**63 - 1)),
    "input of 0": (of("ReLU", "", 1, 0, 8), "1 x 0 x 8"),
    "input of -1": (of("ReLU", "", -1, 3), "-1 x 3"),
    "33 axes": (of("ReLU", "", *[1] * 33), "1 x 1 x 1"),
    "33 axes from 2": (of("Reshape", "reshape_param { shape { dim: [" + "1, " * 32 + "-1] } }", 1, 2), "33 axes"),
    "100,000 axes": (
        of("Reshape", "reshape_param { shape { dim: [" + "1, " * 99_999 + "-1] } }", 1, 2),
        "100,000 axes",
    ),
    "statistics of 5e8 channels": (of("BatchNorm", "", 1, 500_000_000, 1), "no weights"),
    "tiles": (of("Tile", "tile_param { tiles: 2000000000 }"), "6000000000"),
    "no tiles": (of("Tile"), "tiles 0"),
    "even LRN": (of("LRN", "lrn_param { local_size: 4 }"), "local_size 4"),
    "softmax axis": (of("Softmax", "softmax_param { axis: 4 }"), "axis 4"),
    "slice point": (of("Slice", "slice_param { slice_point: 3 } top: 'm'"), "[3]"),
    "reshape": (of("Reshape", "reshape_param { shape { dim: 7 dim: -1 } }"), "x 3 x 8 x 8"),
    "two holes": (of("Reshape", "reshape_param { shape { dim: -1 dim: -1 } }"), "[-1, -1]"),
    "top 4e9": (of("ArgMax", "argmax_param { top_k: 4000000000 }"), "4000000000"),
    "flatten": (of("Flatten", "flatten_param { axis: 3 end_axis: 1 }"), "axis 3"),
    "im2col": (of("Im2col", "convolution_param { kernel_size: 2000 pad: 2000 }"), "2000 x 2000"),
    "spp": (of("SPP", "spp_param { pyramid_height: 4000000000 }"), "4000000000"),
    "dummy": (
        of("ReLU") + layer("d", "DummyData", params="dummy_data_param { shape { dim: 50000 dim: 50000 } }"),
        "50000 x 50000",
    ),
    "parameter": (
        of("ReLU") + layer("d", "Parameter", params="parameter_param { shape { dim: 4000000000 } }"),
        "4000000000",
    ),
    "embed": (
        of("Embed", "embed_param { input_dim: 4000000000 num_output: 4000000000 }", 2),
        "4000000000 x 4000000000",
    ),
    "crop": (
        INPUT + input_layer("r", 1, 3, 9, 9) + layer("l", "Crop", "data r", params="crop_param { offset: 1 }"),
        "offset 1",
    ),
    "lstm over 1e9 steps": (
        input_layer("x", 10**9, 2, 3)
        + input_layer("c", 10**9, 2)
        + layer("l", "LSTM", "x c", params="recurrent_param { num_output: 1 }"),
        "1000000000",
    ),
    "lstm of 4e9": (
        input_layer("x", 1, 2, 3)
        + input_layer("c", 1, 2)
        + layer("l", "LSTM", "x c", params="recurrent_param { num_output: 4000000000 }"),
        "4000000000",
    ),
}


@pytest.mark.parametrize("case", ABSURD)
def test_absurd_dimensions(case: str, tmp_path: Path) -> None:
    text, found = ABSURD[case]
    with memory_below(64 << 20):
        said = refusal(written(tmp_path / "absurd.prototxt", text))
    assert len(said) < 2000
    for part in ("absurd.prototxt", found, "expected"):
        assert part in said
    if "input 'data'" not in said and "input 'x'" not in said:
        assert re.search(r"layer [ld] \(\w+\)", said)


def test_sizes_do_not_overflow(tmp_path: Path) -> None:
    """Each layer alone is harmless; together their sizes leave 64 bits."""
    text = input_layer("b0", 1, 2) + "".join(layer(f"b{i + 1}", "Concat", f"b{i} b{i}") for i in range(70))
    assert re.search(r"layer b3\d \(Concat\): .*2,147,483,647", refusal(written(tmp_path / "p", text)))


def test_many_inputs_that_keep_their_batch(tmp_path: Path) -> None:
    """Each makes the conversion start again."""
    count = 300
    shapes = "".join(f'input: "d{i}" input_shape {{ dim: 2 dim: 3 }}\n' for i in range(count))
    layers = (
        layer(f"r{i}", "Reshape", f"d{i}", params="reshape_param { shape { dim: 3 dim: 2 } }") for i in range(count)
    )
    path = written(tmp_path / "p", shapes + "".join(layers))
    with within(30), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        assert len(convert(path).graph.output) == count


# -------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"phase": "test"}, "phase 'test', expected 'TEST' or 'TRAIN'"),
        ({"stages": "deploy"}, "several strings"),
        ({"input_shapes": {"dta": (1, 5, 6, 7)}}, "a shape for 'dta', expected one of the inputs: data"),
        ({"input_shapes": {"data": (1, 5, 0, 7)}}, "1 x 5 x 0 x 7"),
        ({"input_shapes": {"data": (1, 5, 10**9, 10**9)}}, "1 x 5 x 1000000000 x 1000000000"),
        ({"opset": 12}, "opset 12, expected one from 13"),
        ({"opset": 10**6}, "opset 1000000, expected one from 13"),
        ({"outputs": "fc"}, "expected several names"),
        ({"outputs": []}, "no outputs"),
        ({"outputs": ["conf"]}, "did you mean conv"),
        ({"outputs": ["data"]}, "it is an input"),
    ],
)
def test_arguments(options: dict[str, object], says: str, prototxt: Path, weights: Path) -> None:
    assert says in refusal(prototxt, weights, **options)


def test_a_net_brings_its_weights(prototxt: Path, weights: Path) -> None:
    net = read_net(prototxt, weights)
    np.testing.assert_allclose(run(convert(net), {"data": DATA})[0], ANSWER, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConversionError, match="found a Net and a caffemodel"):
        convert(net, weights)


def names(net: Net) -> Iterable[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    return [(layer.name, layer.bottoms, layer.tops) for layer in net.layers]


def test_blobs_written_in_place_have_names_of_their_own(tmp_path: Path) -> None:
    text = (
        INPUT + layer("a", "ReLU", "data", "data") + layer("b", "TanH", "data", "x") + layer("c", "AbsVal", "data", "y")
    )
    text += layer("d", "ReLU", "x", "x") + layer("e", "ReLU", "x", "x") + layer("a", "ELU", "x", "z")
    net = read_net(written(tmp_path / "p", text))
    assert names(net) == [
        ("a", ("data",), ("a",)),
        ("b", ("a",), ("x@b",)),
        ("c", ("a",), ("y",)),
        ("d", ("x@b",), ("x@d",)),
        ("e", ("x@d",), ("x",)),
        ("a", ("x",), ("z",)),
    ]
    assert net.outputs == ("y", "z")
    assert (net.tensors["data"], net.tensors["x"]) == ("a", "x")
