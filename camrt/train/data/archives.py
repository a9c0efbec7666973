"""MNIST, CIFAR-10 and Tiny ImageNet, from the archives as they were released to databases for Caffe's examples.

Each output is complete as soon as it has its name. A run that was killed continues with what is missing.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from camrt import results
from camrt.errors import CamrtError
from camrt.train.clutter import Digits
from camrt.train.data.conversion import Encoding, Record, image_records, mean_of, new_folder, write_lmdb, write_mean
from camrt.train.data.database import LMDB, Database
from camrt.train.data.sources import ImageFiles, open_source
from converters.schema.caffe_pb2 import Datum

_CHUNK = 1 << 20
_CIFAR_BYTES = 3 * 32 * 32
_MAX_MEMBER = 1 << 26  # bytes of a file in an archive
_MAX_ARCHIVE = 4 << 30  # bytes of all files in an archive

Progress = Callable[[str, int], AbstractContextManager[Callable[[float], Any]]]
Say = Callable[[str], Any]


@dataclass(frozen=True)
class Archive:
    """A file as it was released.

    Attributes:
        name: The name of the file.
        url: Where it can be downloaded.
        digest: The checksum: that of the uncompressed content for a `.gz`, which may have been compressed anew, else
            that of the file.
        algorithm: The algorithm of the checksum, by hashlib's name. It detects damage, not forgery.
    """

    name: str
    url: str
    digest: str
    algorithm: str


_MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist/"
MNIST = tuple(
    Archive(f"{name}.gz", f"{_MNIST}{name}.gz", digest, "md5")
    for name, digest in (
        ("train-images-idx3-ubyte", "6bbc9ace898e44ae57da46a324031adb"),
        ("train-labels-idx1-ubyte", "a25bea736e30d166cdddb491f175f624"),
        ("t10k-images-idx3-ubyte", "2646ac647ad5339dbf082846283269ea"),
        ("t10k-labels-idx1-ubyte", "27ae3e4e09519cfbb04c329615203637"),
    )
)
CIFAR10 = Archive(
    "cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    "sha256",
)
TINY = Archive(
    "tiny-imagenet-200.zip",
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    "90528d7ca1a48142e341f4ef8d21d0de",
    "md5",
)


@dataclass(frozen=True)
class Job:
    """A data set to prepare.

    Attributes:
        folder: The folder of the archives.
        out: The folder of the outputs.
        verified: Whether archives must have the released checksums.
        progress: A progress bar, by its title and total.
        say: Receives a line for each output.
    """

    folder: Path
    out: Path
    verified: bool
    progress: Progress
    say: Say

    def archive(self, archive: Archive) -> Path:
        """Return the path of an archive, after checking its checksum.

        Raises:
            CamrtError: The archive is missing, or is not the released one.
        """
        path = self.folder / archive.name
        if not path.is_file():
            raise CamrtError(
                f"does not exist, expected the archive as it was released. Download it with: curl -L -o '{path}' "
                f"{archive.url}",
                file=str(path),
            )
        if self.verified:
            found = _digest(path, archive.algorithm)
            if found != archive.digest:
                raise CamrtError(
                    f"found the {archive.algorithm.upper()} {found}, expected {archive.digest}: the download is "
                    "incomplete or another file. Download it again, or accept it with --unverified",
                    file=str(path),
                )
        return path

    def database(self, name: str, records: Callable[[], Iterator[Record]], total: int) -> Path:
        """Write a database if it does not exist yet."""
        path = self.out / name
        if path.exists():
            self.say(f"{path} exists already, and is kept")
            return path
        with self.progress(name, total) as advance:
            count = write_lmdb(path, _counted(records(), advance))
        self.say(f"{path}: {count:,} records")
        return path

    def mean(self, name: str, database: Path) -> None:
        """Write the mean image of a database if it does not exist yet."""
        path = self.out / name
        if path.exists():
            self.say(f"{path} exists already, and is kept")
            return
        opened = Database(database, LMDB)
        with self.progress(name, len(opened)) as advance:
            write_mean(path, mean_of(opened, advance))
        self.say(str(path))

    def labels(self, names: tuple[str, ...]) -> None:
        """Write the names of the classes, a line for each."""
        path = self.out / "labels.txt"
        results.write(path, "".join(f"{name}\n" for name in names).encode(errors="surrogateescape"))
        self.say(str(path))


def _counted(records: Iterator[Record], advance: Callable[[float], Any]) -> Iterator[Record]:
    for record in records:
        yield record
        advance(1)


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    try:
        with gzip.open(path) if path.suffix == ".gz" and ".tar" not in path.suffixes else path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except (OSError, EOFError, zlib.error) as error:
        raise CamrtError(f"cannot be read: {getattr(error, 'strerror', None) or error}", file=str(path)) from None
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------------------- MNIST


def prepare_mnist(job: Job) -> None:
    """Write mnist_train_lmdb and mnist_test_lmdb, as Caffe's create_mnist.sh does.

    Raises:
        CamrtError: An archive is missing, damaged or another one; or a database cannot be written.
    """
    train_images, train_labels, test_images, test_labels = (job.archive(archive) for archive in MNIST)
    for part, images, labels in (("train", train_images, train_labels), ("test", test_images, test_labels)):
        digits = Digits.from_idx(images, labels)
        job.database(f"mnist_{part}_lmdb", partial(_digit_records, digits), len(digits))
    job.labels(tuple("0123456789"))


def _digit_records(digits: Digits) -> Iterator[Record]:
    height, width = digits.images.shape[1:]
    for number, (image, label) in enumerate(zip(digits.images, digits.labels.tolist(), strict=True)):
        datum = Datum(channels=1, height=height, width=width, data=image.tobytes(), label=label)
        yield f"{number:08d}".encode(), datum.SerializeToString()


# ------------------------------------------------------------------------------------------------------------- CIFAR-10


def prepare_cifar10(job: Job) -> None:
    """Write cifar10_train_lmdb, cifar10_test_lmdb and mean.binaryproto, as Caffe's create_cifar10.sh does.

    Raises:
        CamrtError: The archive is missing, damaged or another one; or a database cannot be written.
    """
    path = job.archive(CIFAR10)
    files = _tar_members(path)
    train = [files.get(f"data_batch_{number}.bin", b"") for number in range(1, 6)]
    test = [files.get("test_batch.bin", b"")]
    for data in [*train, *test]:
        if not data or len(data) % (1 + _CIFAR_BYTES):
            raise CamrtError(
                f"found {len(data):,} bytes in a batch, expected data_batch_1.bin to data_batch_5.bin and "
                f"test_batch.bin with {1 + _CIFAR_BYTES:,} bytes for each image",
                file=str(path),
            )
    for part, batches in (("train", train), ("test", test)):
        rows = np.concatenate([np.frombuffer(data, np.uint8).reshape(-1, 1 + _CIFAR_BYTES) for data in batches])
        written = job.database(f"cifar10_{part}_lmdb", partial(_cifar_records, rows), len(rows))
        if part == "train":
            job.mean("mean.binaryproto", written)
    names = files.get("batches.meta.txt", b"").decode(errors="surrogateescape").split()
    job.labels(tuple(names) or tuple("0123456789"))


def _cifar_records(rows: np.ndarray[Any, Any]) -> Iterator[Record]:
    for number, row in enumerate(rows):
        datum = Datum(channels=3, height=32, width=32, data=row[1:].tobytes(), label=int(row[0]))
        yield f"{number:05d}".encode(), datum.SerializeToString()


def _tar_members(path: Path) -> dict[str, bytes]:
    """Return the files of a tar archive by their names without folders. Nothing is extracted."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if not member.isfile() or not member.name.endswith((".bin", ".txt")):
                    continue
                if member.size > _MAX_MEMBER:
                    raise CamrtError(f"found {member.size:,} bytes in {member.name}, expected fewer", file=str(path))
                stream = archive.extractfile(member)
                files[PurePosixPath(member.name).name] = stream.read() if stream is not None else b""
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise CamrtError(f"cannot be read as a tar archive: {error}", file=str(path)) from None
    return files


# -------------------------------------------------------------------------------------------------------- Tiny ImageNet


def prepare_tiny_imagenet(job: Job) -> None:
    """Extract Tiny ImageNet for ``tiny:DIR``, and write databases of its training and validation images.

    The images stay JPEG files. Those for training are in random order, since Caffe reads a database in its order.

    Raises:
        CamrtError: The archive is missing, damaged or another one; or an output cannot be written.
    """
    folder = job.out / "tiny-imagenet-200"
    if folder.exists():
        job.say(f"{folder} exists already, and is kept")
    else:
        path = job.archive(TINY)
        with new_folder(folder) as draft:
            _extract(path, draft, folder.name, job)
        job.say(str(folder))
    train, test = open_source(f"tiny:{folder}", "TRAIN"), open_source(f"tiny:{folder}", "TEST")
    for name, source, seed in (("train", train, 0), ("val", test, None)):
        assert isinstance(source, ImageFiles)

        def records(source: ImageFiles = source, seed: int | None = seed) -> Iterator[Record]:
            return image_records(source, str(folder), Encoding(type="same"), seed=seed, on_image=_skipping(job))

        written = job.database(f"tiny_imagenet_{name}_lmdb", records, len(source.paths))
        if name == "train":
            job.mean("tiny_imagenet_mean.binaryproto", written)
    job.labels(train.classes)


def _skipping(job: Job) -> Callable[[str | None, str], None]:
    def on_image(name: str | None, reason: str) -> None:
        if name is not None:
            job.say(f"warning: {name}: {reason}. The image was skipped")

    return on_image


def _extract(path: Path, draft: Path, name: str, job: Job) -> None:
    """Extract the files below the folder ``name`` of a zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if sum(member.file_size for member in members) > _MAX_ARCHIVE:
                raise CamrtError("would be too large when extracted, expected Tiny ImageNet", file=str(path))
            with job.progress("extracting", len(members)) as advance:
                for member in members:
                    parts = PurePosixPath(member.filename).parts
                    if parts[0] != name or ".." in parts or len(parts) < 2:
                        raise CamrtError(f"found {member.filename!r}, expected files in {name}/", file=str(path))
                    target = draft.joinpath(*parts[1:])
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(member) as source, target.open("wb") as stream:
                        _copy(source, stream)
                    advance(1)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise CamrtError(f"cannot be read as a zip archive: {error}", file=str(path)) from None


def _copy(source: IO[bytes], stream: io.BufferedWriter) -> None:
    while chunk := source.read(_CHUNK):
        stream.write(chunk)


PREPARE: dict[str, Callable[[Job], None]] = {
    "mnist": prepare_mnist,
    "cifar10": prepare_cifar10,
    "tiny-imagenet": prepare_tiny_imagenet,
}
