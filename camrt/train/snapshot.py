"""Snapshots: the weights as a `.caffemodel`, and beside them what it takes to go on from there.

A snapshot at iteration N is two files, named as Caffe names its own:

* ``PREFIX_iter_N.caffemodel`` (``.caffemodel.h5`` with ``snapshot_format: HDF5``): the weights. The converter reads it,
  and so does Caffe.
* ``PREFIX_iter_N.camrtstate``: the solver's history and the facts of the run, and the size and SHA-256 of the weights.
  It is an .npz archive without pickled objects.

The state is written after the weights, and each file appears whole or not at all: where the state is, the weights that
it tells of are. Weights without a state are of a run that was killed between the two, and not counted.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camrt import results
from camrt.errors import CamrtError

WEIGHTS, WEIGHTS_HDF5, STATE = ".caffemodel", ".caffemodel.h5", ".camrtstate"
FORMAT = "camrt training state 1"
_FACTS, _ARRAY = "facts", "$array"
_CHUNK = 1 << 24


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that was read, and found whole.

    Attributes:
        file: The file of its state.
        weights: The file of its weights.
        iteration: After how many iterations it was taken.
        facts: What the run noted down: JSON.
        arrays: The solver's history.
    """

    file: Path
    weights: Path
    iteration: int
    facts: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]


class Snapshots:
    """The snapshots of a run.

    Args:
        prefix: What the files' names begin with, folder included.
        ending: The ending of new weights: `WEIGHTS` or `WEIGHTS_HDF5`.
    """

    def __init__(self, prefix: Path, ending: str = WEIGHTS) -> None:
        self.prefix, self.ending = prefix, ending

    def named(self, ending: str) -> Path:
        """A file under the prefix."""
        return self.prefix.with_name(f"{self.prefix.name}{ending}")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs from this prefix, where the system has locks. Makes the folder.

        Raises:
            CamrtError: Another run has it, or the folder cannot be written to.
        """
        from converters.encoding import sweep

        file = self.prefix.with_name(f".{self.prefix.name}.camrt-lock")
        try:
            self.prefix.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CamrtError(f"cannot be made: {error.strerror or error}", file=str(self.prefix.parent)) from error
        refusal = f"another camrt train writes to {self.prefix}. Wait for it, or give another prefix with --out"
        with results.hold(file, refusal) as stream:
            if hasattr(os, "register_at_fork"):  # a worker that outlives this process must not keep the lock
                os.register_at_fork(after_in_child=stream.close)
            sweep(self.prefix.parent)
            yield

    def paths(self, iteration: int) -> tuple[Path, Path]:
        """The files of the weights and of the state."""
        stem = f"{self.prefix.name}_iter_{iteration}"
        return self.prefix.with_name(stem + self.ending), self.prefix.with_name(stem + STATE)

    def states(self) -> list[Path]:
        """The files of states that are there, the earliest iteration first; they need not be whole."""
        return self._files(STATE)

    def remove(self) -> None:
        """Remove all snapshots, the states first.

        Raises:
            CamrtError: One cannot be removed.
        """
        for file in [*self._files(STATE), *self._files(WEIGHTS), *self._files(WEIGHTS_HDF5)]:
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                raise CamrtError(f"cannot be removed: {error.strerror or error}", file=str(file)) from error

    def write(
        self,
        iteration: int,
        write_weights: Callable[[Path], Any],
        arrays: Mapping[str, NDArray[Any]],
        facts: Mapping[str, Any],
    ) -> Path:
        """Take a snapshot.

        Args:
            iteration: After how many iterations.
            write_weights: Writes the .caffemodel, whole or not at all.
            arrays: The solver's history; names are those of arguments.
            facts: What else is to be known: JSON.

        Returns:
            The file of the weights.

        Raises:
            CamrtError: A file cannot be written. The snapshots before it are as they were.
        """
        weights, state = self.paths(iteration)
        state.unlink(missing_ok=True)  # of an earlier run, whose weights are replaced now
        try:
            write_weights(weights)
            size, digest = _fingerprint(weights)
        except OSError as error:
            raise CamrtError(f"cannot be written: {error.strerror or error}", file=str(weights)) from error
        known = {"format": FORMAT, "iteration": iteration, "weights": weights.name, "bytes": size, "sha256": digest}
        text = np.frombuffer(json.dumps({**facts, **known}).encode(), np.uint8)
        content = io.BytesIO()
        members: dict[str, Any] = {_FACTS: text, **arrays}
        np.savez(content, **members)
        results.write(state, content.getvalue())
        return weights

    def last(self) -> Snapshot | None:
        """The last snapshot; None where there is none.

        Raises:
            CamrtError: It is damaged. The text names the last one that is whole.
        """
        states = self.states()
        if not states:
            return None
        try:
            return read(states[-1])
        except CamrtError as error:
            whole = next((state for state in reversed(states[:-1]) if _is_whole(state)), None)
            advice = (
                f"The last snapshot that is whole is {whole}: go on from it with --snapshot {whole}"
                if whole
                else "No other snapshot is whole: begin anew with --restart"
            )
            raise CamrtError(f"{error.message}. {advice}", file=error.file) from None

    def _files(self, ending: str) -> list[Path]:
        pattern = re.compile(rf"{re.escape(self.prefix.name)}_iter_(\d{{1,12}}){re.escape(ending)}")
        found = self.prefix.parent.glob(f"{glob.escape(self.prefix.name)}_iter_*{ending}")
        matches = ((pattern.fullmatch(file.name), file) for file in found)
        return [file for _, file in sorted((int(match[1]), file) for match, file in matches if match)]


def read(file: Path) -> Snapshot:
    """Read a snapshot, and check that it is whole and its weights are its own.

    Args:
        file: The file of its state.

    Raises:
        CamrtError: It is not there, damaged, or no state of camrt; its weights are not there, or others.
    """
    stem = file.name.removesuffix(WEIGHTS_HDF5).removesuffix(WEIGHTS)
    if stem != file.name and file.with_name(stem + STATE).is_file():
        file = file.with_name(stem + STATE)
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        facts = json.loads(arrays.pop(_FACTS).tobytes())
        if facts["format"] != FORMAT:
            raise CamrtError(f"found the format {facts['format']!r}, expected {FORMAT!r}", file=str(file))
        iteration, named = int(facts["iteration"]), str(facts["weights"])
        expected = int(facts["bytes"]), str(facts["sha256"])
    except FileNotFoundError:
        raise CamrtError("there is no such snapshot", file=str(file)) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, NotImplementedError,
            zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
        found = f"is no state of camrt train, or a damaged one ({_reason(error)}){_hint(file)}"
        raise CamrtError(found, file=str(file)) from None
    weights = file.with_name(Path(named).name)
    if not weights.is_file():
        raise CamrtError(f"its weights are not there: {weights.name}", file=str(file))
    actual = _fingerprint(weights)
    if actual != expected:
        raise CamrtError(
            f"its weights {weights.name} are damaged, or others: found {actual[0]:,} bytes with the SHA-256 "
            f"{actual[1][:12]}..., expected {expected[0]:,} with {expected[1][:12]}...",
            file=str(file),
        )
    return Snapshot(file, weights, iteration, facts, arrays)


def packed(value: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    """A solver's state as JSON. Its tensors go into ``arrays``, and names for them stand in their places.

    Args:
        value: Dicts, lists, numbers, texts and PyTorch's tensors.
        arrays: What is added to.
    """
    if isinstance(value, Mapping):
        return {str(key): packed(each, arrays) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [packed(each, arrays) for each in value]
    if not hasattr(value, "detach"):
        return value
    name = f"array{len(arrays)}"
    arrays[name] = value.detach().cpu().numpy()
    return {_ARRAY: name}


def unpacked(value: Any, arrays: Mapping[str, NDArray[Any]], tensor: Callable[[NDArray[Any]], Any]) -> Any:
    """What `packed` was given.

    Args:
        value: What it gave.
        arrays: What it added to.
        tensor: Makes a tensor of an array.
    """
    if isinstance(value, Mapping):
        if _ARRAY in value:
            return tensor(arrays[value[_ARRAY]])
        return {key: unpacked(each, arrays, tensor) for key, each in value.items()}
    return [unpacked(each, arrays, tensor) for each in value] if isinstance(value, list) else value


def _is_whole(file: Path) -> bool:
    with contextlib.suppress(CamrtError):
        return read(file) is not None
    return False


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:100]


def _hint(file: Path) -> str:
    if file.suffix == ".solverstate":
        return ". Of Caffe's snapshots the weights can be taken: --weights with the .caffemodel"
    return ""


def _fingerprint(file: Path) -> tuple[int, str]:
    """Bytes and SHA-256."""
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()
