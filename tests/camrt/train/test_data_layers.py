"""Data layers as written in a prototxt, on databases and files that these tests make with the libraries themselves."""

from __future__ import annotations

import itertools
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.caffe_files import layer as text_of

torch = pytest.importorskip("torch", reason="training needs PyTorch")

from camrt.errors import CamrtError  # noqa: E402
from camrt.train.data.database import Database, DatumSource, pixels  # noqa: E402
from camrt.train.data.loading import BatchLoader, DataLoaderSpec, data_loader_spec  # noqa: E402
from camrt.train.data.windows import crop_window, read_windows  # noqa: E402
from camrt.train.options import TrainingOptions  # noqa: E402
from camrt.train.run import train  # noqa: E402
from converters import read_net  # noqa: E402
from converters.reader import parse_prototxt, read_weights  # noqa: E402
from converters.schema.caffe_pb2 import Datum  # noqa: E402

RNG = np.random.default_rng(0)
ROOT = Path(__file__).resolve().parents[3]


def datums(count: int, shape: tuple[int, int, int] = (3, 12, 10), classes: int = 5) -> list[Datum]:
    values = np.random.default_rng(1).integers(0, 256, (count, *shape), np.uint8)
    return [
        Datum(channels=shape[0], height=shape[1], width=shape[2], data=each.tobytes(), label=index % classes)
        for index, each in enumerate(values)
    ]


def lmdb_of(path: Path, records: list[bytes]) -> Path:
    lmdb = pytest.importorskip("lmdb", reason="LMDB needs lmdb")
    environment = lmdb.open(str(path), map_size=1 << 26)
    with environment.begin(write=True) as transaction:
        for index, record in enumerate(records):
            transaction.put(f"{index:08d}".encode(), record)
    environment.close()
    return path


def leveldb_of(path: Path, records: list[bytes]) -> Path:
    plyvel = pytest.importorskip("plyvel", reason="LevelDB needs plyvel")
    database = plyvel.DB(str(path), create_if_missing=True)
    for index, record in enumerate(records):
        database.put(f"{index:08d}".encode(), record)
    database.close()
    return path


MAKERS = {"LMDB": lmdb_of, "LEVELDB": leveldb_of}


def spec_of(text: str, phase: str = "TRAIN", **options) -> DataLoaderSpec:
    net = read_net(parse_prototxt(text), phase=phase, training=True)
    return data_loader_spec(net, None, **({"seed": 3} | options))


def batches(spec: DataLoaderSpec, count: int, workers: int = 0) -> list[dict[str, np.ndarray]]:
    size = spec.batch_size
    loader = BatchLoader(spec, range(0, count * size, size), workers=workers, device=torch.device("cpu"))
    found = [{top: values.numpy() for top, values in batch.items()} for batch in loader]
    loader.close()
    return found


def head(bottoms: str = "data") -> str:
    """A layer that reads the data, since a network without one is none."""
    return text_of("fc", "InnerProduct", bottoms, params="inner_product_param { num_output: 5 }")


def data_layer(source: Path, backend: str, params: str = "", *, size: int = 4) -> str:
    params = f'data_param {{ source: "{source}" backend: {backend} batch_size: {size} }} {params}'
    return text_of("data", "Data", "", "data label", params) + head()


# ---------------------------------------------------------------------------------------------------------------- Data


@pytest.mark.parametrize("backend", MAKERS)
def test_a_database_is_read_in_the_order_of_its_keys_over_and_over(tmp_path, backend):
    records = datums(6)
    path = MAKERS[backend](tmp_path / "db", [each.SerializeToString() for each in records])
    transform = "transform_param { scale: 0.5 mean_value: 10 mean_value: 20 mean_value: 30 }"
    spec = spec_of(data_layer(path, backend, transform))
    assert spec.shapes() == {"data": (4, 3, 12, 10), "label": (4,)}
    found = batches(spec, 3)
    raw = np.array([np.frombuffer(each.data, np.uint8).reshape(3, 12, 10) for each in records], np.float32)
    for index, batch in enumerate(found):
        rows = np.arange(4 * index, 4 * index + 4) % 6
        expected = (raw[rows] - np.array([10, 20, 30], np.float32).reshape(3, 1, 1)) * np.float32(0.5)
        np.testing.assert_array_equal(batch["data"], expected)
        np.testing.assert_array_equal(batch["label"], rows % 5)


def test_two_channels_as_the_siamese_example_has_them(tmp_path):
    """Pairs of digits are the two channels of a Datum; a Slice layer takes them apart."""
    records = datums(5, (2, 8, 8), classes=2)
    path = lmdb_of(tmp_path / "pairs", [each.SerializeToString() for each in records])
    params = f'data_param {{ source: "{path}" backend: LMDB batch_size: 5 }} transform_param {{ scale: 0.00390625 }}'
    text = text_of("pair_data", "Data", "", "pair_data sim", params)
    (batch,) = batches(spec_of(text + head("pair_data")), 1)
    raw = np.array([np.frombuffer(each.data, np.uint8).reshape(2, 8, 8) for each in records], np.float32)
    np.testing.assert_array_equal(batch["pair_data"], raw / 256)
    np.testing.assert_array_equal(batch["sim"], [0, 1, 0, 1, 0])


def test_floats_and_files_in_datums(tmp_path):
    floats = RNG.normal(0, 1, (2, 3, 4)).astype(np.float32)
    datum = Datum(channels=2, height=3, width=4, float_data=floats.ravel().tolist(), label=1)
    np.testing.assert_array_equal(pixels(datum), floats.transpose(1, 2, 0))
    bgr = RNG.integers(0, 256, (7, 9, 3), np.uint8)
    colored = Datum(encoded=True, data=cv2.imencode(".png", bgr)[1].tobytes())
    np.testing.assert_array_equal(pixels(colored), bgr)
    gray = Datum(encoded=True, data=cv2.imencode(".png", bgr[:, :, 0])[1].tobytes())
    np.testing.assert_array_equal(pixels(gray), bgr[:, :, :1])
    np.testing.assert_array_equal(pixels(gray, is_color=True), np.repeat(bgr[:, :, :1], 3, axis=2))


def test_encoded_images_are_decoded_by_workers_and_cropped(tmp_path):
    images = RNG.integers(0, 256, (6, 20, 24, 3), np.uint8)
    records = [
        Datum(encoded=True, label=index, data=cv2.imencode(".png", image)[1].tobytes()).SerializeToString()
        for index, image in enumerate(images)
    ]
    path = lmdb_of(tmp_path / "db", records)
    text = data_layer(path, "LMDB", "transform_param { crop_size: 16 }", size=3)
    for workers in (0, 2):
        found = batches(spec_of(text, "TEST"), 2, workers)
        middle = images[:, 2:18, 4:20].transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(np.concatenate([batch["data"] for batch in found]), middle)


def test_a_broken_record_is_skipped_and_named(tmp_path):
    records = [each.SerializeToString() for each in datums(6)]
    records[1] = b"\xff\xff no Datum"
    records[4] = Datum(channels=3, height=99, width=99, data=b"too short").SerializeToString()
    path = lmdb_of(tmp_path / "db", records)
    told: list[tuple[str, str]] = []
    spec = spec_of(data_layer(path, "LMDB", size=6))
    loader = BatchLoader(spec, [0], workers=0, device=torch.device("cpu"), on_unusable=lambda *each: told.append(each))
    (batch,) = loader
    np.testing.assert_array_equal(batch["label"], [0, 2, 2, 3, 0, 0])  # the next that can be read takes its place
    assert told == [
        (f"{path}, record 1", "is not a Datum message"),
        (f"{path}, record 4", "found 9 values, expected 3 x 99 x 99"),
    ]


def test_a_label_beyond_the_classes_is_named(tmp_path):
    path = lmdb_of(tmp_path / "db", [each.SerializeToString() for each in datums(6, classes=6)])
    solver = solver_of(tmp_path, data_layer(path, "LMDB", size=6) + loss())
    with pytest.raises(CamrtError, match=r"db: found the label 5, expected 0 to 4: the network has 5 classes"):
        train(TrainingOptions(solver, workers=0))


def loss(label: str = "label") -> str:
    return text_of("loss", "SoftmaxWithLoss", f"fc {label}")


def solver_of(folder: Path, net: str, fields: str = "max_iter: 3") -> Path:
    (folder / "net.prototxt").write_text(net)
    file = folder / "solver.prototxt"
    file.write_text(f'net: "net.prototxt" base_lr: 0.001 lr_policy: "fixed" random_seed: 1 snapshot_prefix: '
                    f'"{folder}/out/net" {fields}')  # fmt: skip
    return file


def test_what_is_no_database_is_told(tmp_path):
    records = [each.SerializeToString() for each in datums(2)]
    empty, text = tmp_path / "folder", tmp_path / "file"
    empty.mkdir()
    text.write_text("no database" * 1000)
    with pytest.raises(CamrtError, match=r"neither an LMDB database .* nor a LevelDB"):
        Database(empty)
    with pytest.raises(CamrtError, match="file: cannot be read as LMDB"):
        Database(text)
    with pytest.raises(CamrtError, match="found no records in the LMDB database"):
        Database(lmdb_of(tmp_path / "none", []))
    path = lmdb_of(tmp_path / "db", records)
    with pytest.raises(CamrtError, match="found the backend LMDB, expected LEVELDB as in the layer"):
        Database(path, "LEVELDB")
    (path / "data.mdb").write_bytes((path / "data.mdb").read_bytes()[:5000])
    with pytest.raises(CamrtError, match=r"data.mdb: is truncated: found 5,000 bytes"):
        Database(path)


def test_networks_share_a_database_and_workers_open_their_own(tmp_path):
    records = [each.SerializeToString() for each in datums(6)]
    for backend, make in MAKERS.items():
        path = make(tmp_path / backend, records)
        assert len(Database(path)) == len(Database(path, backend)) == 6
    text = data_layer(tmp_path / "LMDB", "LMDB")
    here, there = (batches(spec_of(text), 3, workers) for workers in (0, 2))
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one["data"], other["data"])
    with pytest.raises(CamrtError, match=r"found no usable image.*expected one, as LevelDB requires: use --workers 0"):
        batches(spec_of(data_layer(tmp_path / "LEVELDB", "LEVELDB")), 1, workers=2)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    path = lmdb_of(tmp_path / "db", [b""])
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(CamrtError, match=r"needs the package lmdb to read LMDB\. Install it with .*pip install lmdb"):
        Database(path)


def test_a_source_can_be_sent_to_another_process(tmp_path):
    source = DatumSource(Database(lmdb_of(tmp_path / "db", [each.SerializeToString() for each in datums(3)])))
    numbers = np.arange(3)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).read(numbers)[0], source.read(numbers)[0])


# ------------------------------------------------------------------------------------------------------------ HDF5Data


def hdf5_of(folder: Path, rows: tuple[int, ...]) -> tuple[Path, np.ndarray, np.ndarray]:
    h5py = pytest.importorskip("h5py", reason="HDF5 needs h5py")
    rng = np.random.default_rng(2)
    data, label = rng.normal(0, 1, (sum(rows), 4)), rng.integers(0, 5, sum(rows))
    names = []
    for index, _count in enumerate(rows):
        part = slice(sum(rows[:index]), sum(rows[: index + 1]))
        names.append(str(folder / f"{index}.h5"))
        with h5py.File(names[-1], "w") as handle:
            handle["data"], handle["label"] = data[part], label[part]
    (folder / "list.txt").write_text("\n".join(names) + "\n")
    return folder / "list.txt", data.astype(np.float32), label.astype(np.float32)


def hdf5_layer(source: Path, params: str = "", *, size: int = 4) -> str:
    param = f'hdf5_data_param {{ source: "{source}" batch_size: {size} {params} }}'
    return text_of("data", "HDF5Data", "", "data label", param) + head()


def test_hdf5_rows_come_file_by_file(tmp_path):
    source, data, label = hdf5_of(tmp_path, (3, 5, 2))
    spec = spec_of(hdf5_layer(source))
    assert spec.shapes() == {"data": (4, 4), "label": (4,)}
    found = batches(spec, 6)
    rows = np.arange(24) % 10
    np.testing.assert_array_equal(np.concatenate([batch["data"] for batch in found]), data[rows])
    np.testing.assert_array_equal(np.concatenate([batch["label"] for batch in found]), label[rows])


def test_shuffled_hdf5_has_each_row_once_an_epoch_and_files_in_turn(tmp_path):
    source, data, _ = hdf5_of(tmp_path, (3, 5, 2))
    found = np.concatenate(
        [batch["data"] for batch in batches(spec_of(hdf5_layer(source, "shuffle: true", size=5)), 4)]
    )
    rows = [int(np.flatnonzero((data == row).all(1))[0]) for row in found]
    epochs = rows[:10], rows[10:]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]
    files = [[0] * 3 + [1] * 5 + [2] * 2][0]
    for epoch in epochs:
        changes = sum(files[one] != files[other] for one, other in itertools.pairwise(epoch))
        assert changes == 2  # a file is read to its end before the next one


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.pop("label"), "found no numeric dataset 'label'"),
        (lambda h: (h.pop("label"), h.create_dataset("label", data=np.zeros(7))), "found .* the same number of rows"),
        (lambda h: (h.pop("data"), h.create_dataset("data", data=np.zeros((5, 9)))), r"found rows of shape \(9,\)"),
        (lambda h: (h.pop("label"), h.create_dataset("label", data=[b"x"] * 5)), "found no numeric dataset 'label'"),
    ],
)  # fmt: skip
def test_hdf5_files_that_do_not_fit_are_named(tmp_path, change, message):
    h5py = pytest.importorskip("h5py", reason="HDF5 needs h5py")
    source, _, _ = hdf5_of(tmp_path, (3, 5))
    with h5py.File(tmp_path / "1.h5", "a") as handle:
        change(handle)
    with pytest.raises(CamrtError, match=f"1.h5: {message}"):
        spec_of(hdf5_layer(source))


def test_hdf5_data_of_other_files_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py", reason="HDF5 needs h5py")
    source, _, _ = hdf5_of(tmp_path, (3,))
    (tmp_path / "secret").write_bytes(bytes(12))
    with h5py.File(tmp_path / "0.h5", "a") as handle:
        del handle["label"]
        handle.create_dataset("label", (3,), np.float32, external=[(str(tmp_path / "secret"), 0, 12)])
    with pytest.raises(CamrtError, match="found the dataset 'label' in external files"):
        spec_of(hdf5_layer(source))
    with h5py.File(tmp_path / "0.h5", "a") as handle:
        del handle["label"]
        handle["label"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "label")
    with pytest.raises(CamrtError, match="found no numeric dataset 'label'"):
        spec_of(hdf5_layer(source))


# ----------------------------------------------------------------------------------------------------------- DummyData


def test_dummy_data_is_drawn_anew_for_each_batch(tmp_path):
    params = ("dummy_data_param { shape { dim: 6 dim: 3 } shape { dim: 6 } data_filler { type: 'gaussian' std: 2 } "
              "data_filler { type: 'constant' value: 4 } }")  # fmt: skip
    spec = spec_of(text_of("data", "DummyData", "", "data label", params) + head())
    assert spec.shapes() == {"data": (6, 3), "label": (6,)}
    first, second = batches(spec, 2)
    assert not np.array_equal(first["data"], second["data"])
    assert 1 < np.std([first["data"], second["data"]]) < 3
    np.testing.assert_array_equal(first["label"], np.full(6, 4))
    np.testing.assert_array_equal(batches(spec, 2)[1]["data"], second["data"])  # by its position alone
    wrong = spec_of(text_of("data", "DummyData", "", "data", "dummy_data_param { shape { dim: 6 dim: 3 } "
                            "data_filler { type: 'cauchy' } }") + head())  # fmt: skip
    with pytest.raises(CamrtError, match=r"layer data \(DummyData\): found the filler 'cauchy', expected one of"):
        batches(wrong, 1)


# ---------------------------------------------------------------------------------------------------------- WindowData


def windows_of(folder: Path) -> Path:
    rng = np.random.default_rng(4)
    lines = []
    for index in range(3):
        height, width = 40 + 5 * index, 50 + 3 * index
        cv2.imwrite(str(folder / f"{index}.png"), rng.integers(0, 256, (height, width, 3), np.uint8))
        lines += [f"# {index}", f"{folder}/{index}.png", "3", str(height), str(width), "4"]
        lines += [f"{index + 1} 0.9 5 6 30 25", f"{index + 1} 0.6 0 0 49 39", "1 0.2 10 10 20 30", "2 0.45 1 1 9 9"]
    file = folder / "windows.txt"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_windows_are_told_apart_by_their_overlap(tmp_path):
    file = read_windows(windows_of(tmp_path), "", foreground=0.5, background=0.4)
    assert file.windows[file.foreground, 1].tolist() == [1, 1, 2, 2, 3, 3]
    assert file.background.tolist() == [2, 6, 10]  # an overlap of 0.45 is neither


def test_a_batch_of_windows(tmp_path):
    params = (
        f'window_data_param {{ source: "{windows_of(tmp_path)}" batch_size: 8 fg_fraction: 0.25 bg_threshold: 0.4 }} '
        "transform_param { crop_size: 17 mean_value: 100 scale: 0.5 }"
    )
    spec = spec_of(text_of("data", "WindowData", "", "data label", params) + head())
    assert spec.shapes() == {"data": (8, 3, 17, 17), "label": (8,)}
    found = batches(spec, 20)
    images = [cv2.imread(str(tmp_path / f"{index}.png")) for index in range(3)]
    backgrounds = [cv2.resize(np.ascontiguousarray(image[10:31, 10:21]), (17, 17)) for image in images]
    foregrounds = {
        index + 1: [cv2.resize(np.ascontiguousarray(image[y : y2 + 1, x : x2 + 1]), (17, 17))
                    for x, y, x2, y2 in ((5, 6, 30, 25), (0, 0, 49, 39))]
        for index, image in enumerate(images)
    }  # fmt: skip
    for batch in found:
        assert batch["label"][:6].tolist() == [0] * 6
        for label, values in zip(batch["label"], batch["data"], strict=True):
            candidates = foregrounds[label] if label else backgrounds
            expected = [(one.transpose(2, 0, 1).astype(np.float32) - 100) * 0.5 for one in candidates]
            assert any(np.array_equal(values, one) for one in expected)
    assert {int(label) for batch in found for label in batch["label"][6:]} == {1, 2, 3}


def reference_window(image, box, size, context, *, square, mirror):
    """The same, pixel by pixel: where each pixel of the result lies in the image, in the window's own coordinates."""
    x1, y1, x2, y2 = box
    half_h, half_w = (y2 - y1 + 1) / 2, (x2 - x1 + 1) / 2
    cx, cy = x1 + half_w, y1 + half_h
    if square:
        half_h = half_w = max(half_h, half_w)
    scale = size / (size - 2 * context)
    return cx - half_w * scale, cy - half_h * scale, cx + half_w * scale, cy + half_h * scale


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("mirror", [False, True])
def test_the_context_of_a_window_lies_where_it_should(square, mirror):
    """A bright square in the middle of the window stays there, and what lies beyond the image is left out."""
    image = np.zeros((60, 80, 3), np.uint8)
    box = np.array([0, 10, 39, 29])  # at the left edge: its context begins outside
    image[15:25, 10:30] = 255
    size, context = 64, 8
    part, top, left = crop_window(image, box, size, context=context, square=square, mirror=mirror)
    canvas = np.zeros((size, size), np.float32)
    canvas[top : top + part.shape[0], left : left + part.shape[1]] = part[:, :, 0]
    x1, y1, x2, y2 = reference_window(image, box, size, context, square=square, mirror=mirror)
    ys, xs = np.nonzero(canvas > 128)
    for found, low, high, first, last in ((ys, y1, y2, 15, 25), (xs, x1, x2, 10, 30)):
        ends = sorted((place - low) / (high - low) * size for place in (first, last))
        if found is xs and mirror:
            ends = sorted(size - end for end in ends)
        assert abs(found.min() - ends[0]) < 2.5
        assert abs(found.max() + 1 - ends[1]) < 2.5
    outside = round(-x1 / (x2 - x1) * size)
    assert outside > 4
    edge = left if not mirror else size - left - part.shape[1]
    assert abs(edge - outside) <= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found no windows"),
        ("a.png\n3\n", "found 'a.png', expected '# image_index'"),
        ("# 0\na.png\n3\n10\n10\n2\n1 0.9 0 0 5 5\n", "ends within the windows of an image"),
        ("# 0\na.png\n3\n10\n10\n1\n1 0.9 0 0 5\n", r"found '1 0.9 0 0 5', expected 6 number"),
        ("# 0\na.png\n3\n10\n10\n1\n0 0.9 0 0 5 5\n", "found a foreground window of class 0"),
        ("# 0\na.png\n3\n10\n10\n1e99\n", "found 1e.99 windows"),
    ],
)
def test_a_window_file_that_is_wrong_is_told(tmp_path, text, message):
    file = tmp_path / "windows.txt"
    file.write_text(text)
    with pytest.raises(CamrtError, match=message):
        read_windows(file, "", foreground=0.5, background=0.5)


# ------------------------------------------------------------------------------------------------ several layers, runs


def test_each_layer_has_its_own_batch_size(tmp_path):
    """As in networks with images in one database and targets in another."""
    one = lmdb_of(tmp_path / "one", [each.SerializeToString() for each in datums(6)])
    two = lmdb_of(tmp_path / "two", [each.SerializeToString() for each in datums(9, (1, 2, 2))])
    text = "".join(
        text_of(name, "Data", "", name, f'data_param {{ source: "{path}" backend: LMDB batch_size: {size} }}')
        for name, path, size in (("data", one, 2), ("target", two, 3))
    )
    spec = spec_of(text + head() + text_of("silence", "Silence", "target", ""))
    assert spec.shapes() == {"data": (2, 3, 12, 10), "target": (3, 1, 2, 2)}
    found = batches(spec, 3)
    raw = np.array([np.frombuffer(each.data, np.uint8).reshape(1, 2, 2) for each in datums(9, (1, 2, 2))])
    np.testing.assert_array_equal(np.concatenate([batch["target"] for batch in found]), raw)


KINDS = ("LMDB", "LEVELDB", "HDF5Data", "WindowData", "DummyData")


def network_on(kind: str, folder: Path) -> str:
    """A network on a kind of data, with all that is random."""
    if kind in MAKERS:
        path = MAKERS[kind](folder / "db", [each.SerializeToString() for each in datums(7)])
        return data_layer(path, kind, "transform_param { crop_size: 8 mirror: true }") + loss()
    if kind == "HDF5Data":
        return hdf5_layer(hdf5_of(folder, (3, 5, 2))[0], "shuffle: true") + loss()
    if kind == "WindowData":
        params = 'window_data_param { source: "%s" batch_size: 4 } transform_param { crop_size: 16 mirror: true }'
        return text_of("data", "WindowData", "", "data label", params % windows_of(folder)) + head() + loss()
    params = (
        "dummy_data_param { shape { dim: 6 dim: 3 } shape { dim: 6 } data_filler { type: 'gaussian' } data_filler {} }"
    )
    return text_of("data", "DummyData", "", "data label", params) + head() + loss()


KILLED = """
import os, signal, sys
from pathlib import Path
from camrt.train import run
from camrt.train.options import TrainingOptions
update = run._Training._update
def dying(self):
    update(self)
    if self.iteration == 5:
        os.kill(os.getpid(), signal.SIGKILL)
run._Training._update = dying
for solver in sys.argv[1:]:  # each in a process of its own, forked after the imports, which take most of the time
    child = os.fork()
    if not child:
        run.train(TrainingOptions(Path(solver), resume=True, threads=1, workers=0))
        os._exit(0)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
def test_killed_and_resumed_they_reach_the_same_weights(tmp_path):
    fields = "max_iter: 8 snapshot: 2 momentum: 0.9"
    expected, solvers = {}, {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for kind in KINDS:
            folders = [tmp_path / kind / name for name in ("unbroken", "killed")]
            for folder in folders:
                folder.mkdir(parents=True)
            net = network_on(kind, tmp_path / kind)
            expected[kind] = train(TrainingOptions(solver_of(folders[0], net, fields), workers=0)).weights
            solvers[kind] = solver_of(folders[1], net, fields)
        done = subprocess.run(
            [sys.executable, "-c", KILLED, *map(str, solvers.values())],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.stdout.split() == [str(int(signal.SIGKILL))] * len(KINDS), done.stderr
        for kind, solver in solvers.items():
            assert not (solver.parent / "out" / "net_iter_8.caffemodel").exists()
            found = train(TrainingOptions(solver, resume=True, workers=0))
            assert found.iteration == 8
            one, other = (read_weights(file).layers for file in (expected[kind], found.weights))
            for blob, wanted in zip(one["fc"], other["fc"], strict=True):
                np.testing.assert_array_equal(blob, wanted, err_msg=kind)
            assert np.abs(one["fc"][0]).max() > 0
    finally:
        torch.set_num_threads(threads)
