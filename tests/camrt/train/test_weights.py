"""Weights into a network and out of it again: the converter and Protocol Buffers read what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from camrt import CamrtError
from converters import convert, read_net
from converters.reader import parse_prototxt, read_weights
from converters.schema import caffe_pb2
from converters.writer import write_caffemodel
from tests.caffe_cases import CASES, answers_of, silent
from tests.caffe_files import input_layer, layer, written

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing is trained")
from camrt import train  # noqa: E402

RNG = np.random.default_rng(0)
XAVIER = 'weight_filler { type: "xavier" }'
TEXT = (
    input_layer("data", 2, 3, 6, 6)
    + layer("conv/1.a", "Convolution", "data", "conv", f"convolution_param {{ num_output: 4 kernel_size: 3 {XAVIER} }}")
    + layer("bn", "BatchNorm", "conv", "conv")
    + layer("scale", "Scale", "conv", "conv", "scale_param { bias_term: true }")
    + layer("prelu", "PReLU", "conv", "conv", "prelu_param { channel_shared: true }")
    + layer("fc", "InnerProduct", "conv", params=f"inner_product_param {{ num_output: 5 {XAVIER} }}")
)  # fmt: skip
LAYERS = ["conv/1.a", "bn", "scale", "prelu", "fc"]


def network_of(text: str = TEXT, phase: str = "TRAIN", seed: int = 1) -> Any:
    return train.network(read_net(parse_prototxt(text), phase=phase, training=True), seed=seed)


def trained(seed: int = 1) -> Any:
    """A network whose blobs all hold something, statistics too."""
    network = network_of(seed=seed)
    for _ in range(3):
        network({"data": torch.from_numpy(RNG.normal(1, 2, (2, 3, 6, 6)).astype(np.float32))})
    with torch.no_grad():
        for blob in network.blobs:
            blob.parameter.add_(torch.from_numpy(RNG.normal(0, 0.1, blob.parameter.shape).astype(np.float32)))
    return network


def arrays(network: Any) -> dict[str, list[np.ndarray]]:
    return {layer: [blob.detach().numpy().copy() for blob in blobs] for layer, blobs in network.stored.items()}


def assert_same(found: dict[str, list[np.ndarray]], expected: dict[str, list[np.ndarray]]) -> None:
    assert list(found) == list(expected)
    for name, blobs in expected.items():
        for one, other in zip(found[name], blobs, strict=True):
            np.testing.assert_array_equal(one, other)


def test_there_and_back(tmp_path: Path) -> None:
    network, file = trained(), tmp_path / "net.caffemodel"
    train.save_caffemodel(network, file)
    other = network_of(seed=2)
    assert train.load_caffemodel(other, file) == train.Report(tuple(LAYERS), (), ())
    assert_same(arrays(other), arrays(network))
    train.save_caffemodel(other, tmp_path / "again.caffemodel")
    assert (tmp_path / "again.caffemodel").read_bytes() == file.read_bytes()


def test_protocol_buffers_read_it(tmp_path: Path) -> None:
    network, file = trained(), tmp_path / "net.caffemodel"
    train.save_caffemodel(network, file)
    message = caffe_pb2.NetParameter.FromString(file.read_bytes())
    assert [(one.name, one.type) for one in message.layer] == [
        ("conv/1.a", "Convolution"), ("bn", "BatchNorm"), ("scale", "Scale"), ("prelu", "PReLU"),
        ("fc", "InnerProduct"),
    ]  # fmt: skip
    for one in message.layer:
        for blob, values in zip(one.blobs, network.stored[one.name], strict=True):
            assert tuple(blob.shape.dim) == tuple(values.shape)
            np.testing.assert_array_equal(np.frombuffer(blob.data, "<f4"), values.detach().numpy().ravel())


def test_the_converter_reads_it(tmp_path: Path) -> None:
    """The network as trained, tested, saved and converted gives the same answers."""
    network, file = trained(), tmp_path / "net.caffemodel"
    train.save_caffemodel(network, file)
    x = RNG.normal(0, 1, (2, 3, 6, 6)).astype(np.float32)
    tested = train.network(read_net(parse_prototxt(TEXT), training=True), share=network)
    expected = tested({"data": torch.from_numpy(x)})["fc"].detach().numpy()
    prototxt = written(tmp_path / "net.prototxt", TEXT)
    session = onnxruntime.InferenceSession(convert(prototxt, file).SerializeToString())
    np.testing.assert_allclose(session.run(None, {"data": x})[0], expected, rtol=1e-5, atol=1e-5)
    read = train.network(read_net(prototxt, file))
    torch.testing.assert_close(read({"data": torch.from_numpy(x)})["fc"].detach().numpy(), expected)


SMALL = [name for name, case in CASES.items() if case.caffemodel and case.origin == "bvlc"]
UNTRAINED = ("v0_net", "model_missing_default_fillers", "model_missing_layer", "no_model_bilinear")


@pytest.mark.parametrize("name", [name for name in SMALL if name.split("/")[1] not in UNTRAINED][::7])
def test_caffes_own_files_survive(name: str, tmp_path: Path) -> None:
    """Loaded into a filled network, saved, read by the converter, run: Caffe's answers. V1 files among them."""
    case = CASES[name]
    network = train.network(read_net(case.prototxt), seed=5)
    train.load_caffemodel(network, case.caffemodel)
    train.save_caffemodel(network, tmp_path / "net.caffemodel")
    with silent():
        model = convert(case.prototxt, tmp_path / "net.caffemodel")
    session = onnxruntime.InferenceSession(model.SerializeToString())
    answer = answers_of(case)[0]
    outputs = [value.name for value in session.get_outputs()]
    fed = {one.name: answer.inputs[one.name] for one in session.get_inputs()}
    for output, found in zip(outputs, session.run(None, fed), strict=True):
        if output in answer.outputs:
            np.testing.assert_allclose(found, answer.outputs[output], rtol=1e-4, atol=1e-5)


def test_old_files(tmp_path: Path) -> None:
    """V1: blobs of four axes."""
    network, file = trained(), tmp_path / "net.caffemodel"
    write_caffemodel(file, arrays(network), v1=True)
    assert read_weights(file).layers["fc"][0].shape == (1, 1, 5, 64)
    other = network_of(seed=2)
    train.load_caffemodel(other, file)
    assert_same(arrays(other), arrays(network))


def test_hdf5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    network, file = trained(), tmp_path / "net.caffemodel.h5"
    with h5py.File(file, "w") as handle:
        for name, blobs in arrays(network).items():
            for index, blob in enumerate(blobs):
                handle[f"data/{name}/{index}"] = blob
    other = network_of(seed=2)
    assert set(train.load_caffemodel(other, file).loaded) == set(LAYERS)
    assert_same(arrays(other), arrays(network))


def test_what_is_left(tmp_path: Path) -> None:
    """A classifier of another name keeps its fillers: how networks are fine-tuned."""
    network, file = trained(), tmp_path / "net.caffemodel"
    train.save_caffemodel(network, file)
    other = network_of(TEXT.replace('name: "fc"', 'name: "fc_new"'), seed=2)
    before = arrays(other)
    report = train.load_caffemodel(other, file)
    assert report == train.Report(tuple(LAYERS[:-1]), ("fc_new",), ("fc",))
    after = arrays(other)
    np.testing.assert_array_equal(after["fc_new"][0], before["fc_new"][0])
    assert_same({"bn": after["bn"]}, {"bn": arrays(network)["bn"]})


WRONG = {
    "shape": (
        TEXT.replace("num_output: 5", "num_output: 6"),
        r"layer fc: found blob 0 of 5 x 64, expected 6 x 64\. To train the layer from scratch, rename it",
    ),
    "transposed": (
        TEXT.replace("num_output: 5", "num_output: 5 transpose: true"),
        r"layer fc: found blob 0 of 5 x 64, expected 64 x 5",
    ),
    "blobs": (
        TEXT.replace("num_output: 5", "num_output: 5 bias_term: false"),
        r"layer fc: found 2 blob\(s\), expected 1 of 5 x 64",
    ),
    "names": (
        input_layer("data", 2, 3)
        + layer("other", "InnerProduct", "data", params="inner_product_param { num_output: 5 }"),
        r"found none of the layers of the network '' among the 5 of the file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_changes_nothing(what: str, tmp_path: Path) -> None:
    text, message = WRONG[what]
    file = tmp_path / "net.caffemodel"
    train.save_caffemodel(trained(), file)
    other = network_of(text, seed=2)
    before = arrays(other)
    with pytest.raises(CamrtError, match=message) as raised:
        train.load_caffemodel(other, file)
    assert str(raised.value).startswith(str(file))
    assert_same(arrays(other), before)


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_truncated_file_changes_nothing(length: int, tmp_path: Path) -> None:
    file = tmp_path / "net.caffemodel"
    train.save_caffemodel(trained(), file)
    file.write_bytes(file.read_bytes()[:length])
    other = network_of(seed=2)
    before = arrays(other)
    with pytest.raises(CamrtError, match=r"net\.caffemodel"):
        train.load_caffemodel(other, file)
    assert_same(arrays(other), before)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(CamrtError, match="does not exist"):
        train.load_caffemodel(network_of(), tmp_path / "nothing")
    with pytest.raises(CamrtError, match="is a text prototxt"):
        train.load_caffemodel(network_of(), written(tmp_path / "net.prototxt", TEXT))


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, file = trained(), tmp_path / "net.caffemodel"
    train.save_caffemodel(network, file)
    before = file.read_bytes()

    def broken(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(CamrtError, match=r"net\.caffemodel: cannot be written: No space left"):
        train.save_caffemodel(trained(seed=2), file)
    assert file.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["net.caffemodel"]


def test_half_precision_and_channels_last_are_saved_as_caffe_has_them(tmp_path: Path) -> None:
    network = trained()
    expected = arrays(network)
    train.save_caffemodel(network.to(memory_format=torch.channels_last), tmp_path / "net.caffemodel")
    other = network_of(seed=2)
    train.load_caffemodel(other, tmp_path / "net.caffemodel")
    assert_same(arrays(other), expected)
    train.save_caffemodel(network.bfloat16(), tmp_path / "net.caffemodel")
    train.load_caffemodel(other, tmp_path / "net.caffemodel")
    np.testing.assert_allclose(arrays(other)["fc"][0], expected["fc"][0], rtol=0.01)
