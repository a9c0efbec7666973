"""`camrt data`: databases read by lmdb and plyvel, with OpenCV and NumPy in the place of Caffe's tools."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from camrt.cli import app
from converters.schema.caffe_pb2 import BlobProto, Datum

lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed: no databases are written")
ROOT = str(Path(__file__).resolve().parents[3])
PROGRAM = "import sys; sys.path.insert(0, sys.argv.pop(1)); from camrt.cli import main; main()"


def camrt(*arguments: object):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def records(path: Path) -> dict[str, Datum]:
    with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return {key.decode(): Datum.FromString(value) for key, value in transaction.cursor()}


def raw(datum: Datum) -> np.ndarray:
    return np.frombuffer(datum.data, np.uint8).reshape(datum.channels, datum.height, datum.width)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Six images of two sizes and formats, one broken; and their list."""
    folder = tmp_path / "photos"
    (folder / "a b").mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = ["x.png", "a b/y.png", "z.jpg", "broken.png", "w.JPEG", "v.bmp"]
    for number, name in enumerate(names):
        image = rng.integers(0, 256, (20 + number % 2, 30, 3), np.uint8)
        cv2.imwrite(str(folder / name), cv2.GaussianBlur(image, (0, 0), 3))
    (folder / "broken.png").write_bytes((folder / "broken.png").read_bytes()[:60])
    (tmp_path / "list.txt").write_text("".join(f"{name} {10 * number}\n" for number, name in enumerate(names)))
    return folder


def test_raw_pixels_as_convert_imageset(photos, tmp_path):
    found = camrt("lmdb", photos, tmp_path / "list.txt", "-o", tmp_path / "db")
    assert found.exit_code == 1  # an image was skipped
    assert "broken.png" in found.stderr
    assert "The image was skipped" in found.stderr
    stored = records(tmp_path / "db")
    assert list(stored) == ["00000000_x.png", "00000001_a b/y.png", "00000002_z.jpg", "00000004_w.JPEG",
                            "00000005_v.bmp"]  # fmt: skip
    assert [datum.label for datum in stored.values()] == [0, 10, 20, 40, 50]
    for key, datum in stored.items():
        image = cv2.imread(str(photos / key[9:]))  # BGR
        assert not datum.encoded
        np.testing.assert_array_equal(raw(datum), image.transpose(2, 0, 1))
    assert not list(tmp_path.glob(".db*"))


def test_resized_and_gray(photos, tmp_path):
    camrt("lmdb", photos, tmp_path / "list.txt", "-o", tmp_path / "small", "--resize", 8, 12)
    for key, datum in records(tmp_path / "small").items():
        expected = cv2.resize(cv2.imread(str(photos / key[9:])), (12, 8))
        np.testing.assert_array_equal(raw(datum), expected.transpose(2, 0, 1))
    camrt("lmdb", photos, tmp_path / "list.txt", "-o", tmp_path / "gray", "--gray")
    for key, datum in records(tmp_path / "gray").items():
        expected = cv2.cvtColor(cv2.imread(str(photos / key[9:])), cv2.COLOR_BGR2GRAY)
        np.testing.assert_array_equal(raw(datum), expected[None])


def test_encoded_images_are_the_files(photos, tmp_path):
    camrt("lmdb", photos, tmp_path / "list.txt", "-o", tmp_path / "same", "--encoded")
    for key, datum in records(tmp_path / "same").items():
        assert datum.encoded
        assert datum.data == (photos / key[9:]).read_bytes()
    camrt("lmdb", photos, tmp_path / "list.txt", "-o", tmp_path / "png", "--encode-type", "png", "--resize", 9, 9)
    for key, datum in records(tmp_path / "png").items():
        decoded = cv2.imdecode(np.frombuffer(datum.data, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(decoded, cv2.resize(cv2.imread(str(photos / key[9:])), (9, 9)))
    jpg = camrt("lmdb", photos, tmp_path / "list.txt", "-o", tmp_path / "jpg", "--encode-type", "jpg")
    stored = records(tmp_path / "jpg")
    assert stored["00000004_w.JPEG"].data == (photos / "w.JPEG").read_bytes()  # already a JPEG
    assert stored["00000000_x.png"].data[:2] == b"\xff\xd8"
    assert jpg.exit_code == 1
    none = camrt("lmdb", photos, tmp_path / "list.txt", "-o", tmp_path / "no", "--encode-type", "tga2")
    assert "cannot be encoded as 'tga2'" in none.stderr
    assert "nothing was written" in none.stderr
    assert not (tmp_path / "no").exists()


def test_shuffling_depends_on_the_seed(photos, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        camrt("lmdb", photos, tmp_path / "list.txt", "-o", tmp_path / name, "--shuffle", "--seed", seed)
    labels = {name: [datum.label for datum in records(tmp_path / name).values()] for name in "abc"}
    assert labels["a"] == labels["b"] != labels["c"]
    assert sorted(labels["a"]) == [0, 10, 20, 40, 50]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lmdb", "{photos}", "{tmp}/none.txt", "-o", "{tmp}/db"], "none.txt: there is no such file"),
        (["lmdb", "{tmp}", "{tmp}/list.txt", "-o", "{tmp}/db"], "of 6 images missing: "),
        (["lmdb", "{photos}", "{tmp}/list.txt", "-o", "{photos}"], "exists already"),
        (["lmdb", "{photos}", "{tmp}/list.txt", "-o", "{tmp}/list.txt/db"], "cannot be written"),
        (["lmdb", "{photos}", "{tmp}/list.txt", "-o", "{tmp}/db", "--check-size"], "found 30 x 21 pixels, expected 30"),
        (["mean", "{tmp}/nothing"], "does not exist, expected a database"),
        (["show", "{photos}"], "is neither an LMDB database"),
        (["mnist", "{tmp}"], "curl -L -o"),
        (["cifar10", "{tmp}"], "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"),
        (["tiny-imagenet", "{tmp}"], "http://cs231n.stanford.edu/tiny-imagenet-200.zip"),
    ],
)
def test_mistakes(photos, tmp_path, arguments, message):
    found = camrt(*[one.format(photos=photos, tmp=tmp_path) for one in arguments])
    assert found.exit_code == 1
    assert message in found.stderr
    assert "Traceback" not in found.output
    assert not (tmp_path / "db").exists()
    assert not list(tmp_path.glob(".*.part"))


def test_a_database_that_outgrows_its_map(tmp_path, monkeypatch):
    from camrt.train.data import conversion

    monkeypatch.setattr(conversion, "_FIRST_SIZE", 1 << 16)
    values = [(f"{number:04d}".encode(), np.random.default_rng(number).bytes(5000)) for number in range(2500)]
    assert conversion.write_lmdb(tmp_path / "db", iter(values)) == 2500
    with lmdb.open(str(tmp_path / "db"), readonly=True, lock=False) as environment, environment.begin() as transaction:
        assert list(transaction.cursor()) == values


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_nothing_is_left_with_the_name(tmp_path, number):
    images = tmp_path / "images"
    images.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    cv2.imwrite(str(images / "x.png"), noise)
    (tmp_path / "list.txt").write_text("x.png 1\n" * 100_000)
    arguments = ["data", "lmdb", str(images), str(tmp_path / "list.txt"), "-o", str(tmp_path / "db")]
    with subprocess.Popen([sys.executable, "-c", PROGRAM, ROOT, *arguments], stderr=subprocess.PIPE, text=True) as run:
        for _ in range(1200):
            if list(tmp_path.glob(".db.*.part/data.mdb")):
                break
            assert run.poll() is None, run.communicate(timeout=60)
            time.sleep(0.05)
        run.send_signal(number)
        _, errors = run.communicate(timeout=60)
    assert run.returncode
    assert not (tmp_path / "db").exists()
    drafts = list(tmp_path.glob(".db.*.part"))
    assert len(drafts) == (number == signal.SIGKILL), errors
    for draft in drafts:
        os.utime(draft, (0, 0))
    (tmp_path / "list.txt").write_text("x.png 1\n")
    assert camrt(*arguments[1:]).exit_code == 0
    assert len(records(tmp_path / "db")) == 1
    assert not list(tmp_path.glob(".db.*.part"))  # the old draft is gone


# ----------------------------------------------------------------------------------------------------- means, contents


def written(path: Path, values: list[bytes]) -> Path:
    with lmdb.open(str(path), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for number, value in enumerate(values):
            transaction.put(f"{number:08d}".encode(), value)
    return path


def datum(image: np.ndarray, label: int = 0) -> bytes:
    channels, height, width = image.shape
    if image.dtype != np.uint8:
        return Datum(channels=channels, height=height, width=width, float_data=image.ravel(),
                     label=label).SerializeToString()  # fmt: skip
    return Datum(channels=channels, height=height, width=width, data=image.tobytes(), label=label).SerializeToString()


@pytest.mark.parametrize("kind", ["raw", "float", "encoded", "leveldb"])
def test_the_mean_is_that_of_numpy(kind, tmp_path):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (50, 3, 6, 9)).astype(np.float32 if kind == "float" else np.uint8)
    values = [datum(image) for image in images]
    if kind == "encoded":
        encoded = (cv2.imencode(".png", image.transpose(1, 2, 0))[1].tobytes() for image in images)
        values = [Datum(data=data, encoded=True).SerializeToString() for data in encoded]
    if kind == "leveldb":
        plyvel = pytest.importorskip("plyvel")
        base = plyvel.DB(str(tmp_path / "db"), create_if_missing=True)
        for number, value in enumerate(values):
            base.put(f"{number:08d}".encode(), value)
        base.close()
    else:
        written(tmp_path / "db", values)
    found = camrt("mean", tmp_path / "db", "-o", tmp_path / "mean.binaryproto")
    assert found.exit_code == 0, found.stderr
    blob = BlobProto.FromString((tmp_path / "mean.binaryproto").read_bytes())
    assert (blob.num, blob.channels, blob.height, blob.width) == (1, 3, 6, 9)
    expected = images.mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(np.frombuffer(blob.data, "<f4").reshape(3, 6, 9), expected, rtol=1e-6)
    means = [float(line.removeprefix("mean_value: ")) for line in found.stdout.splitlines()[:3]]
    np.testing.assert_allclose(means, expected.mean(axis=(1, 2)), rtol=1e-4)


def test_databases_need_no_pytorch(tmp_path):
    written(tmp_path / "db", [datum(np.full((3, 4, 4), 7, np.uint8))])
    program = PROGRAM.replace("; main()", "; sys.modules['torch'] = None; main()")
    done = subprocess.run(
        [sys.executable, "-c", program, ROOT, "data", "mean", str(tmp_path / "db")],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.stdout.split() == ["mean_value:", "7"] * 3, done.stderr


def test_a_mean_of_images_of_two_sizes_is_none(tmp_path):
    written(tmp_path / "db", [datum(np.zeros((3, 4, 4), np.uint8)), datum(np.zeros((3, 4, 5), np.uint8))])
    found = camrt("mean", tmp_path / "db", "-o", tmp_path / "mean.binaryproto")
    assert found.exit_code == 1
    assert "record 1: found 5 x 4 pixels and 3 channel(s), expected 4 x 4" in found.stderr
    assert not (tmp_path / "mean.binaryproto").exists()


def test_what_a_database_contains(tmp_path):
    values = [datum(np.full((1, 4, 5), number, np.uint8), number % 3) for number in range(30)]
    values[7] = b"\xff\xff"
    values[8] = Datum(channels=3, height=9, width=9, data=b"12").SerializeToString()
    written(tmp_path / "db", values)
    found = camrt("show", tmp_path / "db", "--json", "--picture", tmp_path / "sheet.png")
    assert found.exit_code == 1  # records that cannot be read
    facts = json.loads(found.stdout)
    assert facts["records"] == facts["inspected"] == 30
    assert facts["labels"] == {"0": 10, "1": 9, "2": 9}
    assert facts["shapes"] == {"1 x 4 x 5": 28}
    assert [line.partition(":")[0] for line in facts["unusable"]] == ["record 7", "record 8"]
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape == (4 * 132 + 4, 8 * 132 + 4, 3)
    few = camrt("show", tmp_path / "db", "--records", 3)
    assert "of 3 evenly spaced records" in few.stdout


# ------------------------------------------------------------------------------------------------------- released sets


def mnist_files(folder: Path, counts: tuple[int, int] = (30, 20)) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    folder.mkdir(exist_ok=True)
    rng, parts = np.random.default_rng(0), {}
    for name, count in zip(("train", "t10k"), counts, strict=True):
        images, labels = rng.integers(0, 256, (count, 28, 28), np.uint8), rng.integers(0, 10, count).astype(np.uint8)
        with gzip.open(folder / f"{name}-images-idx3-ubyte.gz", "wb") as stream:
            stream.write(struct.pack(">4I", 2051, count, 28, 28) + images.tobytes())
        with gzip.open(folder / f"{name}-labels-idx1-ubyte.gz", "wb") as stream:
            stream.write(struct.pack(">2I", 2049, count) + labels.tobytes())
        parts[name] = images, labels
    return parts


def test_mnist(tmp_path):
    parts = mnist_files(tmp_path / "raw")
    refused = camrt("mnist", tmp_path / "raw", "-o", tmp_path / "out")
    assert "expected 6bbc9ace898e44ae57da46a324031adb" in refused.stderr
    assert "--unverified" in refused.stderr
    assert not (tmp_path / "out").exists()
    assert camrt("mnist", tmp_path / "raw", "-o", tmp_path / "out", "--unverified").exit_code == 0
    for name, part in (("train", "train"), ("test", "t10k")):
        stored = records(tmp_path / "out" / f"mnist_{name}_lmdb")
        assert list(stored) == [f"{number:08d}" for number in range(len(parts[part][0]))]
        np.testing.assert_array_equal([raw(one)[0] for one in stored.values()], parts[part][0])
        assert [one.label for one in stored.values()] == parts[part][1].tolist()
    again = camrt("mnist", tmp_path / "raw", "-o", tmp_path / "out", "--unverified")
    assert again.exit_code == 0
    assert "mnist_train_lmdb exists already, and is kept" in again.stdout


def test_the_real_test_digits_have_the_released_checksums(reference, tmp_path):
    from camrt.train.data.archives import MNIST, _digest

    for archive in MNIST[2:]:
        assert _digest(reference / "mnist" / archive.name, archive.algorithm) == archive.digest


def test_checksums_and_damage(tmp_path, monkeypatch):
    import hashlib

    from camrt.train.data import archives

    mnist_files(tmp_path)
    content_of = {one.name: gzip.decompress((tmp_path / one.name).read_bytes()) for one in archives.MNIST}
    real = [
        archives.Archive(one.name, one.url, hashlib.sha256(content_of[one.name]).hexdigest(), "sha256")
        for one in archives.MNIST
    ]
    monkeypatch.setattr(archives, "MNIST", tuple(real))
    assert camrt("mnist", tmp_path, "-o", tmp_path / "good").exit_code == 0
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    content = file.read_bytes()
    for damaged in (content[:100], content[:-1], b"", b"<html>"):
        file.write_bytes(damaged)
        found = camrt("mnist", tmp_path, "-o", tmp_path / "bad")
        assert found.exit_code == 1
        assert "t10k-images-idx3-ubyte.gz: " in found.stderr
        assert not (tmp_path / "bad").exists()


def cifar_archive(file: Path, images: int = 7, **extra: bytes) -> np.ndarray:
    rows = np.random.default_rng(3).integers(0, 256, (6, images, 3073), np.uint8)
    rows[:, :, 0] %= 10
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
    members = {f"cifar-10-batches-bin/{name}": part.tobytes() for name, part in zip(names, rows, strict=True)}
    members["cifar-10-batches-bin/batches.meta.txt"] = b"airplane\nautomobile\nbird\n\n"
    with tarfile.open(file, "w:gz") as archive:
        for name, data in (members | extra).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return rows


def test_cifar10(tmp_path):
    rows = cifar_archive(tmp_path / "cifar-10-binary.tar.gz", **{"../../escape.txt": b"x"})
    found = camrt("cifar10", tmp_path, "-o", tmp_path / "out", "--unverified")
    assert found.exit_code == 0, found.stderr
    train, test = (records(tmp_path / "out" / f"cifar10_{part}_lmdb") for part in ("train", "test"))
    assert list(train) == [f"{number:05d}" for number in range(35)]
    assert [one.label for one in train.values()] == rows[:5, :, 0].ravel().tolist()
    images = rows[:5, :, 1:].reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal([raw(one) for one in train.values()], images)
    np.testing.assert_array_equal([raw(one) for one in test.values()], rows[5, :, 1:].reshape(-1, 3, 32, 32))
    blob = BlobProto.FromString((tmp_path / "out" / "mean.binaryproto").read_bytes())
    np.testing.assert_allclose(np.frombuffer(blob.data, "<f4").reshape(3, 32, 32), images.mean(axis=0), rtol=1e-6)
    assert (tmp_path / "out" / "labels.txt").read_text().split() == ["airplane", "automobile", "bird"]
    assert not list(tmp_path.parent.glob("**/escape.txt"))
    cifar_archive(tmp_path / "cifar-10-binary.tar.gz", **{"cifar-10-batches-bin/test_batch.bin": b"123"})
    bad = camrt("cifar10", tmp_path, "-o", tmp_path / "bad", "--unverified")
    assert "found 3 bytes in a batch" in bad.stderr
    assert not (tmp_path / "bad").exists()


def tiny_archive(file: Path, extra: dict[str, bytes] | None = None) -> None:
    rng, root = np.random.default_rng(5), "tiny-imagenet-200"
    wnids = ["n02", "n01"]
    members = {f"{root}/wnids.txt": b"n02\nn01\n", f"{root}/words.txt": b"n01\tcat\nn02\tdog\n"}

    def jpeg() -> bytes:
        image = cv2.GaussianBlur(rng.integers(0, 256, (64, 64, 3), np.uint8), (0, 0), 4)
        return cv2.imencode(".jpg", image)[1].tobytes()

    for wnid in wnids:
        for number in range(4):
            members[f"{root}/train/{wnid}/images/{wnid}_{number}.JPEG"] = jpeg()
    rows = []
    for number in range(4):
        members[f"{root}/val/images/val_{number}.JPEG"] = jpeg()
        rows.append(f"val_{number}.JPEG\t{wnids[number % 2]}\t0\t1\t30\t40\n")
    members[f"{root}/val/val_annotations.txt"] = "".join(rows).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in (members | (extra or {})).items():
            archive.writestr(name, data)


def test_tiny_imagenet(tmp_path):
    tiny_archive(tmp_path / "tiny-imagenet-200.zip")
    found = camrt("tiny-imagenet", tmp_path, "--unverified")
    assert found.exit_code == 0, found.stderr
    folder = tmp_path / "tiny-imagenet-200"
    train, val = (records(tmp_path / f"tiny_imagenet_{part}_lmdb") for part in ("train", "val"))
    assert sorted(one.label for one in train.values()) == [0] * 4 + [1] * 4
    for key, one in train.items():
        assert one.data == (folder / key[9:]).read_bytes()
        assert one.label == ["n02", "n01"].index(key.split("/")[1])
    assert [key[9:] for key in val] == [f"val/images/val_{number}.JPEG" for number in range(4)]
    assert [one.label for one in val.values()] == [0, 1, 0, 1]
    assert (tmp_path / "labels.txt").read_text().split() == ["dog", "cat"]
    assert (tmp_path / "tiny_imagenet_mean.binaryproto").is_file()
    again = camrt("tiny-imagenet", tmp_path, "--unverified")
    assert again.stdout.count("exists already") == 4


@pytest.mark.parametrize("name", ["../x.txt", "tiny-imagenet-200/../../x.txt", "other/x.txt", "/x.txt"])
def test_a_zip_that_leads_elsewhere(tmp_path, name):
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    tiny_archive(inside / "tiny-imagenet-200.zip", {name: b"x"})
    found = camrt("tiny-imagenet", inside, "--unverified")
    assert found.exit_code == 1
    assert "expected files in tiny-imagenet-200/" in found.stderr
    assert not list(tmp_path.glob("**/x.txt"))
    assert {entry.name for entry in inside.iterdir()} == {"tiny-imagenet-200.zip"}


def test_a_truncated_zip(tmp_path):
    tiny_archive(tmp_path / "tiny-imagenet-200.zip")
    content = (tmp_path / "tiny-imagenet-200.zip").read_bytes()
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(content[: len(content) // 2])
    found = camrt("tiny-imagenet", tmp_path, "--unverified")
    assert "cannot be read as a zip archive" in found.stderr
    assert not (tmp_path / "tiny-imagenet-200").exists()
