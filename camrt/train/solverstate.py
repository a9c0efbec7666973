"""Caffe's `.solverstate`: the iteration and the history of a solver, as Protocol Buffers or as HDF5.

The layouts are those of `SolverState` in caffe.proto and of `SGDSolver::SnapshotSolverStateToHDF5`. The history has a
blob for each blob of the network, in the order of the layers, those that are not learned included. Adam and AdaDelta
have a second blob for each, after all the first ones.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camrt.errors import CamrtError
from converters import wire
from converters.encoding import length_delimited, replacing, varint
from converters.errors import ConversionError, install
from converters.reader import contents_of, refuse_foreign_storage, refuse_hdf5_link
from converters.schema.caffe_pb2 import SolverParameter
from converters.writer import blob_parts, total_size

ENDINGS = STATE, STATE_HDF5 = ".solverstate", ".solverstate.h5"
_ITERATION, _LEARNED_NET, _HISTORY, _CURRENT_STEP = 1, 2, 3, 4
_HDF5 = b"\x89HDF\r\n\x1a\n"
_MAX_ITERATION = 2**31


@dataclass(frozen=True, eq=False)
class SolverState:
    """The content of a `.solverstate`.

    Attributes:
        iteration: The number of iterations done.
        learned_net: The weights file, relative to the folder in which Caffe ran; empty if unknown.
        history: The blobs of the history, float32, in Caffe's order.
        current_step: The number of learning-rate steps of the policies step and multistep.
    """

    iteration: int
    learned_net: str
    history: tuple[NDArray[np.float32], ...]
    current_step: int = 0


def is_solverstate(file: Path) -> bool:
    """Return whether a file has the name of a `.solverstate`."""
    return file.name.endswith(ENDINGS)


def current_step(param: SolverParameter, iteration: int) -> int:
    """Return the field `current_step` after a number of iterations (`SGDSolver::GetLearningRate`)."""
    last = iteration - 1  # the iteration whose learning rate was computed last
    if last < 0:
        return 0
    if param.lr_policy == "step":
        return last // int(param.stepsize)
    return sum(value <= last for value in param.stepvalue) if param.lr_policy == "multistep" else 0


def weights_of(state: SolverState, file: Path) -> Path:
    """Return the weights file of a state: its path as written, or else the file of that name beside the state.

    Raises:
        CamrtError: There is no such file.
    """
    named = Path(state.learned_net)
    for path in (named, file.with_name(named.name)) if state.learned_net else ():
        if path.is_file():
            return path
    found = f"its weights file {state.learned_net}, which does not exist" if state.learned_net else "no weights file"
    raise CamrtError(f"found {found}, expected the .caffemodel of the same iteration beside it", file=str(file))


# ------------------------------------------------------------------------------------------------------------- reading


def read_solverstate(path: str | os.PathLike[str]) -> SolverState:
    """Read a state file of Caffe. The format is detected from the content.

    Raises:
        CamrtError: The file cannot be read, is damaged or no `.solverstate`, or h5py is not installed for HDF5.
    """
    file = os.fspath(path)
    try:
        data = contents_of(file)
        state = _read_hdf5(file) if data[:8] == _HDF5 else _read_binary(data)
    except ConversionError as error:
        raise CamrtError(str(error.in_file(file))) from None
    if not 0 <= state.iteration < _MAX_ITERATION:
        raise CamrtError(f"found the iteration {state.iteration}, expected 0 or more", file=file)
    return state


def _read_binary(data: memoryview) -> SolverState:
    walk = wire.Walk(data)
    numbers = {_ITERATION: 0, _CURRENT_STEP: 0}
    learned_net, history = "", []
    try:
        for field, kind, _, start, end in walk.fields(0, len(data)):
            if field in numbers and kind == wire.VARINT:
                numbers[field] = wire.signed(walk.varint(start, end)[0])
            elif field == _LEARNED_NET and kind == wire.BYTES:
                learned_net = bytes(data[start:end]).decode("utf-8", "surrogateescape")
            elif field == _HISTORY and kind == wire.BYTES:
                history.append(np.asarray(wire.blob(walk, start, end), np.float32))
            else:
                raise wire.Malformed(f"found the field {field}")
    except wire.Malformed as error:
        raise ConversionError(f"{error}: not a .solverstate of Caffe, or a truncated one") from None
    return SolverState(numbers[_ITERATION], learned_net, tuple(history), numbers[_CURRENT_STEP])


def _read_hdf5(file: str) -> SolverState:
    try:
        import h5py
    except ImportError:
        raise ConversionError(f"is an HDF5 file, which needs h5py: {install('h5py')}") from None
    try:
        with h5py.File(file, "r") as handle:
            for name in ("iter", "learned_net", "current_step", "history"):
                refuse_hdf5_link(handle.get(name, getlink=True), name, file)
            numbers = [int(np.ravel(handle[name][()])[0]) for name in ("iter", "current_step")]
            named = handle["learned_net"][()] if "learned_net" in handle else b""
            learned_net = os.fsdecode(bytes(named).split(b"\0")[0])
            history = tuple(_hdf5_blobs(handle["history"], file))
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, MemoryError) as error:
        raise ConversionError(f"cannot be read as a .solverstate.h5 of Caffe: {error}") from None
    return SolverState(numbers[0], learned_net, history, numbers[1])


def _hdf5_blobs(group: Any, file: str) -> list[NDArray[np.float32]]:
    blobs = []
    for index in range(len(group)):
        refuse_hdf5_link(group.get(str(index), getlink=True), str(index), file)
        dataset = group[str(index)]
        refuse_foreign_storage(dataset, f"history/{index}", file)
        blobs.append(np.asarray(dataset[()], np.float32))
    return blobs


# ------------------------------------------------------------------------------------------------------------- writing


def write_solverstate(path: Path, state: SolverState) -> None:
    """Write a state file that Caffe resumes from, as HDF5 if its name ends in `.h5`.

    Args:
        path: The file. An existing file is replaced once the new one is complete.
        state: The state.

    Raises:
        CamrtError: The file cannot be written, or h5py is not installed for HDF5.
    """
    try:
        if path.name.endswith(".h5"):
            _write_hdf5(path, state)
        else:
            _write_binary(path, state)
    except ConversionError as error:
        raise CamrtError(str(error)) from None
    except (OSError, ValueError, RuntimeError) as error:
        raise CamrtError(f"cannot be written: {getattr(error, 'strerror', None) or error}", file=str(path)) from error


def _write_binary(path: Path, state: SolverState) -> None:
    name = os.fsencode(state.learned_net)
    with replacing(path) as stream:
        stream.write(varint(_ITERATION << 3) + varint(state.iteration))
        stream.write(length_delimited(_LEARNED_NET, len(name)) + name)
        for blob in state.history:
            parts = blob_parts(blob)
            stream.write(length_delimited(_HISTORY, total_size(parts)))
            stream.writelines(parts)
        stream.write(varint(_CURRENT_STEP << 3) + varint(state.current_step))


def _write_hdf5(path: Path, state: SolverState) -> None:
    try:
        import h5py
    except ImportError:
        raise ConversionError(f"needs h5py to write HDF5: {install('h5py')}", file=str(path)) from None
    with replacing(path) as stream, h5py.File(stream, "w") as handle:
        for name, number in (("iter", state.iteration), ("current_step", state.current_step)):
            handle.create_dataset(name, data=np.array([number], np.int32))
        _write_text(handle, "learned_net", os.fsencode(state.learned_net))
        group = handle.create_group("history")
        for index, blob in enumerate(state.history):
            group.create_dataset(str(index), data=np.asarray(blob, np.float32))


def _write_text(handle: Any, name: str, text: bytes) -> None:
    """Write a string as `H5LTmake_dataset_string` does: with a final zero, where Caffe expects its end."""
    from h5py import h5d, h5s, h5t

    kind = h5t.C_S1.copy()
    kind.set_size(len(text) + 1)
    kind.set_strpad(h5t.STR_NULLTERM)
    dataset = h5d.create(handle.id, name.encode(), kind, h5s.create(h5s.SCALAR))
    dataset.write(h5s.create(h5s.SCALAR), h5s.create(h5s.SCALAR), np.array(text + b"\0", f"S{len(text) + 1}"), kind)


def matched(history: Sequence[NDArray[np.float32]], shapes: Sequence[tuple[int, ...]]) -> list[NDArray[np.float32]]:
    """Return the blobs of a history in the given shapes. Files from before 2015 have four axes.

    Raises:
        CamrtError: The number of blobs, or a shape, is another one.
    """
    if len(history) != len(shapes):
        raise CamrtError(
            f"found a history of {len(history)} blobs, expected {len(shapes)}: it belongs to another network or type "
            "of solver"
        )
    for index, (blob, shape) in enumerate(zip(history, shapes, strict=True)):
        if blob.shape not in (shape, (1,) * (4 - len(shape)) + shape):
            raise CamrtError(
                f"found a blob {index} of {blob.shape} in the history, expected {shape}: it belongs to another network"
            )
    return [blob.reshape(shape) for blob, shape in zip(history, shapes, strict=True)]
