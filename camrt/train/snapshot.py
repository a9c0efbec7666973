"""Snapshots: the weights as a `.caffemodel`, and a state file to resume from.

A snapshot at iteration N consists of these files, with names as in Caffe:

* ``PREFIX_iter_N.caffemodel`` (``.caffemodel.h5`` with ``snapshot_format: HDF5``): the weights, which Caffe and
  `camrt convert` read.
* ``PREFIX_iter_N.solverstate`` (``.solverstate.h5``), if wanted: the solver's history for Caffe.
* ``PREFIX_iter_N.camrtstate``: the solver's history, the metadata of the run, and the size and SHA-256 of the weights
  file. It is an .npz archive without pickled objects.

Files are written atomically, and the state after the weights. A state is therefore always complete. Weights without a
state belong to a run that was killed between the two writes, and are ignored.
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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camrt import results
from camrt.errors import CamrtError
from camrt.train.solverstate import ENDINGS, SolverState, is_solverstate, read_solverstate, weights_of

WEIGHTS, WEIGHTS_HDF5, STATE = ".caffemodel", ".caffemodel.h5", ".camrtstate"
FORMAT = "camrt training state 1"
_MEMBER, _ARRAY = "facts", "$array"
_CHUNK = 1 << 24


@dataclass(frozen=True)
class Snapshot:
    """A complete snapshot.

    Attributes:
        file: The state file.
        weights: The weights file.
        iteration: The number of iterations before the snapshot.
        metadata: The metadata of the run, of JSON types.
        arrays: The solver's history.
        caffe: The state of a `.solverstate` of Caffe, which has neither metadata nor arrays; None for others.
    """

    file: Path
    weights: Path
    iteration: int
    metadata: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]
    caffe: SolverState | None = None


class Snapshots:
    """The snapshots of a run.

    Args:
        prefix: The prefix of the file names, including the folder.
        ending: The ending of new weights files: `WEIGHTS` or `WEIGHTS_HDF5`.
    """

    def __init__(self, prefix: Path, ending: str = WEIGHTS) -> None:
        self.prefix, self.ending = prefix, ending

    def named(self, ending: str) -> Path:
        """Return the path of a file with the prefix and the given ending."""
        return self.prefix.with_name(f"{self.prefix.name}{ending}")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the prefix against other runs, and create its folder.

        Raises:
            CamrtError: Another run holds the lock, or the folder cannot be created or written to.
        """
        from converters.encoding import sweep

        file = self.prefix.with_name(f".{self.prefix.name}.camrt-lock")
        try:
            self.prefix.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CamrtError(f"cannot be made: {error.strerror or error}", file=str(self.prefix.parent)) from error
        refusal = f"another camrt train writes to {self.prefix}. Wait for it, or choose another prefix with --out"
        with results.hold(file, refusal) as stream:
            if hasattr(os, "register_at_fork"):  # a worker that outlives this process must not keep the lock
                os.register_at_fork(after_in_child=stream.close)
            sweep(self.prefix.parent)
            yield

    def paths(self, iteration: int) -> tuple[Path, Path]:
        """Return the weights file and the state file of a snapshot."""
        stem = f"{self.prefix.name}_iter_{iteration}"
        return self.prefix.with_name(stem + self.ending), self.prefix.with_name(stem + STATE)

    def states(self) -> list[Path]:
        """Return the existing state files in order of their iterations. They may be damaged."""
        return self._files(STATE)

    def remove(self) -> None:
        """Remove all snapshots, the states first.

        Raises:
            CamrtError: A file cannot be removed.
        """
        states = self._files(STATE)
        # Those of Caffe's own runs are kept.
        beside = [state.with_name(state.stem + ending) for state in states for ending in ENDINGS]
        _unlink([*states, *beside, *self._files(WEIGHTS), *self._files(WEIGHTS_HDF5)])

    def remove_others(self, kept: Collection[int]) -> None:
        """Remove the snapshots of all iterations but some, the states first. Weights without a state are kept.

        Raises:
            CamrtError: A file cannot be removed.
        """
        names = {self.paths(iteration)[1].name for iteration in kept}
        states = [state for state in self._files(STATE) if state.name not in names]
        endings = (*ENDINGS, WEIGHTS, WEIGHTS_HDF5)
        _unlink([*states, *(state.with_name(state.stem + ending) for state in states for ending in endings)])

    def write(
        self,
        iteration: int,
        write_weights: Callable[[Path], Any],
        arrays: Mapping[str, NDArray[Any]],
        metadata: Mapping[str, Any],
    ) -> Path:
        """Take a snapshot.

        Args:
            iteration: The number of iterations done.
            write_weights: Writes the weights file atomically.
            arrays: The solver's history, by names that are Python identifiers.
            metadata: The metadata of the run, of JSON types.

        Returns:
            The weights file.

        Raises:
            CamrtError: A file cannot be written. Earlier snapshots are unchanged.
        """
        weights, state = self.paths(iteration)
        state.unlink(missing_ok=True)  # the state of an earlier run, whose weights are now replaced
        try:
            write_weights(weights)
            size, digest = _fingerprint(weights)
        except OSError as error:
            raise CamrtError(f"cannot be written: {error.strerror or error}", file=str(weights)) from error
        known = {"format": FORMAT, "iteration": iteration, "weights": weights.name, "bytes": size, "sha256": digest}
        text = np.frombuffer(json.dumps({**metadata, **known}).encode(), np.uint8)
        content = io.BytesIO()
        members: dict[str, Any] = {_MEMBER: text, **arrays}
        np.savez(content, **members)
        results.write(state, content.getvalue())
        return weights

    def last(self) -> Snapshot | None:
        """Read the last snapshot.

        Returns:
            The snapshot; None if there is none.

        Raises:
            CamrtError: The snapshot is damaged. The message names the last complete one.
        """
        states = self.states()
        if not states:
            return None
        try:
            return read(states[-1])
        except CamrtError as error:
            whole = next((state for state in reversed(states[:-1]) if _is_whole(state)), None)
            advice = (
                f"The last complete snapshot is {whole}: resume from it with --snapshot {whole}"
                if whole
                else "There is no other complete snapshot: start over with --restart"
            )
            raise CamrtError(f"{error.message}. {advice}", file=error.file) from None

    def _files(self, ending: str) -> list[Path]:
        pattern = re.compile(rf"{re.escape(self.prefix.name)}_iter_(\d{{1,12}}){re.escape(ending)}")
        found = self.prefix.parent.glob(f"{glob.escape(self.prefix.name)}_iter_*{ending}")
        matches = ((pattern.fullmatch(file.name), file) for file in found)
        return [file for _, file in sorted((int(match[1]), file) for match, file in matches if match)]


def read(file: Path) -> Snapshot:
    """Read a snapshot, and check that it is complete and that its weights file is unchanged.

    Args:
        file: The state file, or the weights file beside it; or a `.solverstate` of Caffe.

    Raises:
        CamrtError: The state file is missing, damaged or neither one of camrt nor of Caffe; or the weights file is
            missing or has changed.
    """
    if is_solverstate(file):
        state = read_solverstate(file)
        return Snapshot(file, weights_of(state, file), state.iteration, {}, {}, state)
    stem = file.name.removesuffix(WEIGHTS_HDF5).removesuffix(WEIGHTS)
    if stem != file.name and file.with_name(stem + STATE).is_file():
        file = file.with_name(stem + STATE)
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        metadata = json.loads(arrays.pop(_MEMBER).tobytes())
        if metadata["format"] != FORMAT:
            raise CamrtError(f"found the format {metadata['format']!r}, expected {FORMAT!r}", file=str(file))
        iteration, named = int(metadata["iteration"]), str(metadata["weights"])
        expected = int(metadata["bytes"]), str(metadata["sha256"])
    except FileNotFoundError:
        raise CamrtError("there is no such snapshot", file=str(file)) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, NotImplementedError,
            zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
        found = f"is not a state file of camrt train, or is damaged ({_reason(error)})"
        raise CamrtError(found, file=str(file)) from None
    weights = file.with_name(Path(named).name)
    if not weights.is_file():
        raise CamrtError(f"its weights file {weights.name} does not exist", file=str(file))
    actual = _fingerprint(weights)
    if actual != expected:
        raise CamrtError(
            f"its weights file {weights.name} is damaged or was replaced: found {actual[0]:,} bytes with the SHA-256 "
            f"{actual[1][:12]}..., expected {expected[0]:,} with {expected[1][:12]}...",
            file=str(file),
        )
    return Snapshot(file, weights, iteration, metadata, arrays)


def packed(value: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    """Convert a solver's state to JSON types. Tensors are moved to ``arrays`` and replaced by their names there.

    Args:
        value: Dicts, lists, numbers, strings and PyTorch tensors.
        arrays: The arrays, to which the tensors are added.
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
    """Restore the argument of `packed`.

    Args:
        value: The result of `packed`.
        arrays: The arrays that `packed` added.
        tensor: Converts an array to a tensor.
    """
    if isinstance(value, Mapping):
        if _ARRAY in value:
            return tensor(arrays[value[_ARRAY]])
        return {key: unpacked(each, arrays, tensor) for key, each in value.items()}
    return [unpacked(each, arrays, tensor) for each in value] if isinstance(value, list) else value


def _unlink(files: Iterable[Path]) -> None:
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise CamrtError(f"cannot be removed: {error.strerror or error}", file=str(file)) from error


def _is_whole(file: Path) -> bool:
    with contextlib.suppress(CamrtError):
        return read(file) is not None
    return False


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:100]


def _fingerprint(file: Path) -> tuple[int, str]:
    """Return the size in bytes and the SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()
