"""From a snapshot to heatmaps: the explainer prepares images as the training did."""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from typer.testing import CliRunner

import camrt
from camrt.cli import app
from converters import ConversionWarning, convert, metadata
from converters.schema import caffe_pb2

torch = pytest.importorskip("torch")

from camrt import train  # noqa: E402
from camrt.train.data.loading import BatchLoader, data_loader_spec  # noqa: E402
from converters.net import read_net  # noqa: E402
from tests.camrt.train import toy  # noqa: E402
from tests.camrt.train.test_run import train as run  # noqa: E402

RNG = np.random.default_rng(3)
SIDE = 48
TRANSFORMS = {
    "mean values": ("crop_size: 40 scale: 0.0125 mean_value: 90 mean_value: 110 mean_value: 130", SIDE),
    "one mean value": ("crop_size: 40 mean_value: 100", SIDE),
    "mean image": ('crop_size: 40 scale: 0.015625 mean_file: "mean.binaryproto"', SIDE),
    "whole images": ("scale: 0.00390625", 40),
}


def solver_of(folder: Path, transform: str, side: int, *, own: str = "") -> Path:
    """The toy network on images of its own, which have the size that the layer resizes to."""
    solver = toy.write(folder, solver="max_iter: 2 snapshot: 0 test_interval: 2")
    for number in range(8):
        colors = RNG.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), cv2.resize(colors, (side, side), interpolation=cv2.INTER_CUBIC))
    (folder / "list.txt").write_text("".join(f"{number}.png {number}\n" for number in range(8)))
    mean = RNG.normal(110, 25, (3, side, side)).astype("<f4")
    blob = caffe_pb2.BlobProto(num=1, channels=3, height=side, width=side, data=mean.tobytes())
    (folder / "mean.binaryproto").write_bytes(blob.SerializeToString())
    net = caffe_pb2.NetParameter()
    text_format.Parse((folder / "net.prototxt").read_text(), net)
    for layer in net.layer[:2]:
        layer.type = "ImageData"
        layer.ClearField("memory_data_param")
        layer.ClearField("transform_param")
        text_format.Parse(transform, layer.transform_param)
        sizes = f'source: "list.txt" root_folder: "{folder}" batch_size: 8 new_height: {side} new_width: {side} {own}'
        text_format.Parse(sizes, layer.image_data_param)
    (folder / "net.prototxt").write_text(text_format.MessageToString(net))
    return solver


def scores_of_test_net(folder: Path, snapshot: Path) -> np.ndarray:
    """What the network answers in the test phase, fed by its own data layer."""
    net = read_net(folder / "net.prototxt", snapshot, phase="TEST", training=True)
    spec = data_loader_spec(net, None, seed=0, find=lambda path: folder / path)
    (batch,) = BatchLoader(spec, [0], workers=0, device=torch.device("cpu"))
    with torch.no_grad():
        return torch.softmax(train.network(net)(batch, keep=["scores"])["scores"], 1).numpy()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_explainer_answers_as_the_test_net(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transform, side = TRANSFORMS[name]
    outcome, _ = run(solver_of(tmp_path, transform, side), data=None, test_data=None)
    expected = scores_of_test_net(tmp_path, outcome.weights)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["convert", "net.prototxt", str(outcome.weights), "-o", "net.onnx"])
    assert done.exit_code == 0, done.stderr
    in_python = metadata.of_model(convert("net.prototxt", outcome.weights))
    for key in (metadata.PREPROCESS, metadata.MEAN_IMAGE, metadata.PROTOCOL):
        assert metadata.of_file(Path("net.onnx")).get(key) == in_python.get(key)
    explainer = camrt.Explainer("net.onnx")
    found = [explainer(f"{number}.png").all_scores for number in range(8)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected - expected[0]).max() > 1e-3  # they tell the images apart
    # The preset of other networks gives other scores.
    other = camrt.Explainer("net.onnx", preprocess=camrt.Preprocess(size=side, crop=40, mean=(104.0, 117.0, 123.0)))
    assert np.abs(other("1.png").all_scores - expected[1]).max() > 1e-3


DATA = 'layer {{ name: "data" type: "{type}" top: "data" top: "label" {params} }}'
BODY = """
layer { name: "pool" type: "Pooling" bottom: "data" top: "pool" pooling_param { pool: AVE global_pooling: true } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "pool" bottom: "label" top: "loss" }
"""


def converted(folder: Path, params: str, type: str = "ImageData") -> tuple[onnx.ModelProto, list[str]]:
    (folder / "net.prototxt").write_text(DATA.format(type=type, params=params) + BODY)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConversionWarning)
        model = convert(folder / "net.prototxt")
    return model, [str(one.message) for one in caught if "images" in str(one.message)]


@pytest.mark.parametrize(
    ("type", "params", "size", "crop"),
    [
        ("Data", "transform_param { crop_size: 224 force_color: true }", 256, 224),
        ("ImageData", "transform_param { crop_size: 21 }", 24, 21),
        ("ImageData", 'transform_param { crop_size: 20 } image_data_param { source: "clutter:drawn" }', 20, 20),
        ("ImageData", 'transform_param { crop_size: 6 mean_file: "mean.binaryproto" }', 9, 6),
        ("MemoryData", "transform_param { scale: 2 } memory_data_param { channels: 3 height: 7 width: 7 }", 7, 7),
        ("AnnotatedData", "transform_param { force_color: true resize_param { height: 9 width: 9 } }", 9, 9),
    ],
)
def test_the_size_that_images_are_resized_to(type: str, params: str, size: int, crop: int, tmp_path: Path) -> None:
    blob = caffe_pb2.BlobProto(num=1, channels=3, height=9, width=9, data=bytes(4 * 243))
    (tmp_path / "mean.binaryproto").write_bytes(blob.SerializeToString())
    model, notes = converted(tmp_path, params, type)
    wants = metadata.preprocess_of(metadata.of_model(model))
    assert (wants["size"], wants["crop"], wants["channels"], notes) == (size, crop, "BGR", [])


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ("image_data_param { new_height: 8 new_width: 8 is_color: false }", "are gray"),
        ("image_data_param { new_height: 8 new_width: 9 }", "found 9 x 8 pixels for the network's input"),
        ("transform_param { crop_size: 6 } image_data_param { new_height: 8 new_width: 9 }", "9 x 8 pixels for its im"),
        ('transform_param { crop_size: 6 mean_file: "no" }', "no: cannot be read"),
        ("transform_param { crop_size: 6 mean_value: 1 mean_value: 2 }", "a mean of 2 channels"),
        ('transform_param { crop_size: 6 mean_file: "m" mean_value: 1 }', "a mean_file and mean_value"),
        ('transform_param { crop_size: 6 mean_file: "mean.binaryproto" } image_data_param { new_height: 8 '
         "new_width: 8 }", "mean image of 9 x 9 pixels, expected 8 x 8"),
    ],
)  # fmt: skip
def test_what_metadata_cannot_express_is_told(params: str, reason: str, tmp_path: Path) -> None:
    blob = caffe_pb2.BlobProto(num=1, channels=3, height=9, width=9, data=bytes(4 * 243))
    (tmp_path / "mean.binaryproto").write_bytes(blob.SerializeToString())
    model, notes = converted(tmp_path, params)
    assert metadata.PREPROCESS not in metadata.of_model(model)
    (note,) = notes
    assert "does not state how it wants its images, because of the layer 'data'" in note
    assert reason in note


def test_data_of_other_programs_say_nothing(tmp_path: Path) -> None:
    model, notes = converted(tmp_path, "memory_data_param { channels: 3 height: 7 width: 7 }", "MemoryData")
    assert (metadata.PREPROCESS in metadata.of_model(model), notes) == (False, [])


# ---------------------------------------------------------------------------------------------------------- in one step


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_snapshot_is_explained_in_one_step(name: str, tmp_path: Path) -> None:
    """From anywhere: the description beside the snapshot names the mean image by its absolute path."""
    transform, side = TRANSFORMS[name]
    outcome, _ = run(solver_of(tmp_path, transform, side), data=None, test_data=None)
    expected = scores_of_test_net(tmp_path, outcome.weights)
    explainer = camrt.Explainer(str(outcome.weights))
    found = [explainer(tmp_path / f"{number}.png").all_scores for number in range(8)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    done = CliRunner().invoke(
        app, ["explain", str(tmp_path / "1.png"), "--model", str(outcome.weights), "--out", str(tmp_path / "explained")]
    )
    assert done.exit_code == 0, done.stderr


def test_photographs_of_a_folder_with_the_names_of_its_classes(tmp_path: Path) -> None:
    """With --data and --resize: neither is in the prototxt of the training."""
    solver = solver_of(tmp_path, "crop_size: 40 mean_value: 90 mean_value: 110 mean_value: 130", SIDE)
    text = (tmp_path / "net.prototxt").read_text().replace("new_height: 48", "").replace("new_width: 48", "")
    (tmp_path / "net.prototxt").write_text(text)
    for number in range(10):
        folder = tmp_path / "photos" / f"class {number}"
        folder.mkdir(parents=True)
        colors = RNG.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), cv2.resize(colors, (44, 44), interpolation=cv2.INTER_CUBIC))
    data = f"folder:{tmp_path / 'photos'}"
    outcome, _ = run(solver, data=data, test_data=data, resize=(44, 44))
    assert outcome.weights is not None
    net = read_net(tmp_path / "net.prototxt", outcome.weights, phase="TEST", training=True)
    spec = data_loader_spec(net, data, seed=0, resize=(44, 44))
    inputs = next(iter(BatchLoader(spec, [0], workers=0, device=torch.device("cpu"))))
    with torch.no_grad():
        expected = torch.softmax(train.network(net, input_shapes=spec.shapes())(inputs, keep=["scores"])["scores"], 1)
    explainer = camrt.Explainer(str(outcome.weights))
    source = spec.streams[0].feed.source  # type: ignore[attr-defined]
    answers = [explainer(path.decode()) for path in source.paths[:8]]
    np.testing.assert_allclose([one.all_scores for one in answers], expected.numpy(), rtol=1e-4, atol=1e-5)
    assert all(
        label == f"class {index}" for one in answers for label, index in zip(one.labels, one.classes, strict=True)
    )


def test_a_database_of_larger_images(tmp_path: Path) -> None:
    """The size of the images is that of the records, not 8/7 of the crop."""
    pytest.importorskip("lmdb")
    from camrt.train.data.conversion import write_lmdb

    solver = solver_of(tmp_path, "crop_size: 40 mean_value: 100", 40)
    images = [RNG.integers(0, 256, (3, 60, 60)).astype(np.uint8) for _ in range(8)]
    datums = [
        caffe_pb2.Datum(channels=3, height=60, width=60, data=image.tobytes(), label=number).SerializeToString()
        for number, image in enumerate(images)
    ]
    write_lmdb(tmp_path / "db", [(f"{number:08d}".encode(), datum) for number, datum in enumerate(datums)])
    net = caffe_pb2.NetParameter()
    text_format.Parse((tmp_path / "net.prototxt").read_text(), net)
    for layer in net.layer[:2]:
        layer.type = "Data"
        layer.ClearField("image_data_param")
        text_format.Parse(f'source: "{tmp_path / "db"}" backend: LMDB batch_size: 8', layer.data_param)
    (tmp_path / "net.prototxt").write_text(text_format.MessageToString(net))
    outcome, _ = run(solver, data=None, test_data=None)
    expected = scores_of_test_net(tmp_path, outcome.weights)
    explainer = camrt.Explainer(str(outcome.weights))
    found = [explainer(np.ascontiguousarray(image.transpose(1, 2, 0)[:, :, ::-1])).all_scores for image in images]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_inputs_that_the_network_declares(tmp_path: Path) -> None:
    """The fields of a deploy prototxt from before 2015; the images are those of --data."""
    solver = solver_of(tmp_path, "", 40)
    net = caffe_pb2.NetParameter()
    text_format.Parse((tmp_path / "net.prototxt").read_text(), net)
    del net.layer[:2]
    net.input.extend(["data", "label"])
    net.input_shape.add(dim=[8, 3, 40, 40])
    net.input_shape.add(dim=[8])
    (tmp_path / "net.prototxt").write_text(text_format.MessageToString(net))
    data = f"list:{tmp_path / 'list.txt'}"
    outcome, _ = run(solver, data=data, test_data=data)
    assert outcome.weights is not None
    tested = read_net(tmp_path / "net.prototxt", outcome.weights, phase="TEST", training=True)
    inputs = next(iter(BatchLoader(data_loader_spec(tested, data, seed=0), [0], workers=0, device=torch.device("cpu"))))
    with torch.no_grad():
        expected = torch.softmax(train.network(tested)(inputs, keep=["scores"])["scores"], 1).numpy()
    explainer = camrt.Explainer(str(outcome.weights))
    found = [explainer(tmp_path / f"{number}.png").all_scores for number in range(8)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_weights_without_their_description(tmp_path: Path) -> None:
    (tmp_path / "net_iter_5.caffemodel").write_bytes(b"x")
    with pytest.raises(camrt.CamrtError, match=r"without net_net\.prototxt, which camrt train writes beside them"):
        camrt.Explainer(str(tmp_path / "net_iter_5.caffemodel"))
    with pytest.raises(camrt.CamrtError, match="there is no such file"):
        camrt.Explainer(str(tmp_path / "none_iter_5.caffemodel"))
