"""Real Caffe's answers to small networks (tests/data/caffe): two files for each family of layers.

``<family>.prototxts`` holds the networks, each after a line ``#### case: NAME``. ``<family>.npz`` holds the arrays,
named ``NAME/<array>``; ``NAME/net.caffemodel`` is the weights file as bytes. The README beside them describes the
arrays. To change the cases, unpack them into folders and pack them again::

    python -m tests.caffe_cases unpack tests/data/caffe/bvlc FOLDER
    python -m tests.caffe_cases pack FOLDER tests/data/caffe/bvlc
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import functools
import shutil
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters import ConversionWarning, Net, read_net

DATA = Path(__file__).resolve().parent / "data" / "caffe"
MARK = b"#### case: "
MODEL, INPUTS, GRADIENTS = "net.caffemodel", "io.npz", "grad.npz"


@dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
        name: Its name.
        source: The ``.npz`` file of its family, or a folder with net.prototxt, io.npz and perhaps net.caffemodel.
    """

    name: str
    source: Path

    @property
    def origin(self) -> str:
        """``"bvlc"`` or ``"forks"``."""
        return self.source.parent.name

    @property
    def prototxt(self) -> Path:
        return self._folder / "net.prototxt"

    @property
    def caffemodel(self) -> Path | None:
        file = self._folder / MODEL
        return file if file.exists() else None

    @property
    def has_gradients(self) -> bool:
        return any(key.startswith(("diff:", "grad:")) for key in self._members)

    def arrays(self) -> dict[str, np.ndarray]:
        """``in:<blob>`` and ``out:<blob>``."""
        return self._read(("in:", "in@", "out:", "out@"))

    def gradients(self) -> dict[str, np.ndarray]:
        """``diff:<blob>`` and ``grad:<blob>``; empty where Caffe's backward pass was not recorded."""
        return self._read(("diff:", "grad:"))

    @property
    def _members(self) -> Mapping[str, str]:
        """Array -> its name in the archive."""
        return _members(self.source).get(self.name, {}) if self.source.suffix == ".npz" else {}

    def _read(self, kinds: tuple[str, ...]) -> dict[str, np.ndarray]:
        if self.source.is_dir():
            with np.load(self.source / INPUTS) as stored:
                return {key: stored[key] for key in stored.files if key.startswith(kinds)}
        stored = _archive(self.source)
        return {key: stored[member] for key, member in self._members.items() if key.startswith(kinds)}

    @property
    def _folder(self) -> Path:
        return self.source if self.source.is_dir() else _unpacked(self)


def read_cases(folder: Path) -> dict[str, Case]:
    """Case name -> case, for all families of a folder."""
    return {name: Case(name, file) for file in sorted(folder.glob("*.npz")) for name in _networks(file)}


@functools.cache
def _archive(file: Path) -> Mapping[str, np.ndarray]:
    return np.load(file)


@functools.cache
def _members(file: Path) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for member in _archive(file):
        name, _, key = member.partition("/")
        found[name][key] = member
    return found


@functools.cache
def _networks(file: Path) -> dict[str, bytes]:
    """Case name -> its prototxt."""
    parts = (b"\n" + file.with_suffix(".prototxts").read_bytes()).split(b"\n" + MARK)[1:]
    split = [part.partition(b"\n") for part in parts]
    return {
        name.decode(): text + (b"\n" if number < len(split) - 1 else b"")
        for number, (name, _, text) in enumerate(split)
    }


@functools.cache
def _scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="camrt-cases-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def _unpacked(case: Case) -> Path:
    folder = _scratch() / case.origin / case.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.prototxt").write_bytes(_networks(case.source)[case.name])
    if MODEL in case._members:
        (folder / MODEL).write_bytes(_archive(case.source)[case._members[MODEL]].tobytes())
    return folder


CASES = {
    f"{origin}/{name}": case for origin in ("bvlc", "forks") for name, case in sorted(read_cases(DATA / origin).items())
}


@dataclass(frozen=True)
class Answer:
    """What Caffe gave for some inputs; ``batch`` is None for the case's own."""

    batch: int | None
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


@functools.cache
def answers_of(case: Case) -> tuple[Answer, ...]:
    """At the case's batch, and at 1 and 3 where there is one."""
    arrays, answers = case.arrays(), []
    for batch in (None, 1, 3):
        mark = f"@{batch}" if batch else ""
        inputs, outputs = (
            {key.removeprefix(start): array for key, array in arrays.items() if key.startswith(start)}
            for start in (f"in{mark}:", f"out{mark}:")
        )
        if outputs:
            answers.append(Answer(batch, inputs, outputs))
    return tuple(answers)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        yield


@functools.cache
def read(case: Case) -> Net:
    with silent():
        return read_net(case.prototxt, case.caffemodel)


def unpack(packed: Path, folder: Path) -> None:
    """Write each case as ``folder/<family>/<case>/``."""
    for name, case in read_cases(packed).items():
        target = folder / case.source.stem / name
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(case.prototxt, target)
        if case.caffemodel:
            shutil.copy(case.caffemodel, target)
        np.savez_compressed(target / INPUTS, **case.arrays())
        if case.has_gradients:
            np.savez_compressed(target / GRADIENTS, **case.gradients())


def pack(folder: Path, packed: Path) -> None:
    """The inverse of `unpack`."""
    for family in sorted(each for each in folder.iterdir() if each.is_dir()):
        arrays, texts = {}, []
        for case in sorted(family.iterdir()):
            text = (case / "net.prototxt").read_bytes()
            texts.append(MARK + case.name.encode() + b"\n" + text.rstrip(b"\n") + b"\n")
            for file in (INPUTS, GRADIENTS):
                if (case / file).exists():
                    with np.load(case / file) as stored:
                        arrays |= {f"{case.name}/{key}": stored[key] for key in stored.files}
            if (case / MODEL).exists():
                arrays[f"{case.name}/{MODEL}"] = np.frombuffer((case / MODEL).read_bytes(), np.uint8)
        (packed / f"{family.name}.prototxts").write_bytes(b"".join(texts))
        np.savez_compressed(packed / f"{family.name}.npz", **arrays)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["pack", "unpack"])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    given = parser.parse_args()
    given.target.mkdir(parents=True, exist_ok=True)
    {"pack": pack, "unpack": unpack}[given.action](given.source, given.target)
