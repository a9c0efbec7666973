"""Inputs and outputs on a device: allocated once for each shape, and used again.

A run copies its inputs into memory that is there already, and its outputs out of it; nothing else crosses the bus, and
nothing is allocated. With fixed addresses CUDA can also capture all kernels of a run as a graph, and launch them at
once from then on.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

_Key: TypeAlias = tuple[tuple[str, tuple[int, ...], str], ...]  # of each input: name, shape, dtype
MOST_SHAPES = 8  # whose memory is kept: a batch size in use, and that of the rest at the end of a folder
_DTYPES = {"float": "float32", "double": "float64"}  # ONNX Runtime's names; the others are NumPy's
_NO_GRAPH = -1  # ONNX Runtime's number for a run that is not captured


@dataclass(eq=False)
class _Buffers:
    """Inputs and outputs of one shape, for one run at a time.

    Attributes:
        inputs: Input -> memory on the device.
        outputs: Output -> memory on the device; None where its shape is not known before, so that each run allocates.
        binding: They, as a run takes them.
        graph: The number of the CUDA graph that is captured with them.
    """

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    binding: Any
    graph: int = _NO_GRAPH


class Bound:
    """A session of ONNX Runtime whose inputs and outputs are on a device. It is thread-safe.

    Args:
        session: The session.
        runtime: The module onnxruntime.
        device: ONNX Runtime's name of the device, and its number.
        captures: Whether the session captures CUDA graphs: one for each of the first shapes. Their runs take turns.
    """

    def __init__(self, session: Any, runtime: ModuleType, device: tuple[str, int], *, captures: bool = False) -> None:
        self._session, self._runtime, self._device = session, runtime, device
        self._captures = captures
        self._inputs = {value.name: tuple(value.shape) for value in session.get_inputs()}
        self._outputs = {value.name: (tuple(value.shape), value.type) for value in session.get_outputs()}
        self._free: OrderedDict[_Key, list[_Buffers]] = OrderedDict()  # the shapes used last are at the end
        self._captured: set[_Key] = set()
        self._graphs = 0  # how many numbers were given away: one is never used again, for other memory
        self._lock, self._running = threading.Lock(), threading.Lock()

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute all outputs: output -> array, new at each call."""
        key = tuple(sorted((name, array.shape, array.dtype.str) for name, array in feeds.items()))
        with self._running if self._captures else contextlib.nullcontext(), self._buffers(key, feeds) as buffers:
            for name, array in feeds.items():
                buffers.inputs[name].update_inplace(np.ascontiguousarray(array))
            return self._run(buffers)

    def _run(self, buffers: _Buffers) -> dict[str, NDArray[Any]]:
        for name, value in buffers.outputs.items():
            if value is None:
                buffers.binding.bind_output(name, *self._device)
        options = None
        if self._captures:
            options = self._runtime.RunOptions()
            options.add_run_config_entry("gpu_graph_id", str(buffers.graph))
        self._session.run_with_iobinding(buffers.binding, options)
        found = dict(zip(buffers.outputs, buffers.binding.get_outputs(), strict=True))
        # Of the CPU's memory ONNX Runtime gives a view.
        return {
            name: value.numpy().copy() if self._device[0] == "cpu" else value.numpy() for name, value in found.items()
        }

    # ----------------------------------------------------------------------------------------------------------- memory

    @contextlib.contextmanager
    def _buffers(self, key: _Key, feeds: Mapping[str, NDArray[Any]]) -> Iterator[_Buffers]:
        """Memory for inputs of these shapes, which no other thread uses meanwhile. After an error it is not kept."""
        with self._lock:
            waiting = self._free.get(key)
            buffers = waiting.pop() if waiting else None
        buffers = buffers or self._allocated(key, feeds)
        yield buffers
        with self._lock:
            self._free.setdefault(key, []).append(buffers)
            self._free.move_to_end(key)
            for old in [one for one in self._free if one not in self._captured][:-MOST_SHAPES]:
                del self._free[old]  # what a CUDA graph was captured with stays: it knows the addresses

    def _allocated(self, key: _Key, feeds: Mapping[str, NDArray[Any]]) -> _Buffers:
        new = self._runtime.OrtValue.ortvalue_from_shape_and_type
        binding = self._session.io_binding()
        inputs = {name: new(array.shape, array.dtype.type, *self._device) for name, array in feeds.items()}
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        outputs = {}
        sizes = self.sizes(feeds)
        for name, (declared, kind) in self._outputs.items():
            shape = [sizes.get(size, size) if isinstance(size, str) else size for size in declared]
            is_known = kind.startswith("tensor(") and all(isinstance(size, int) for size in shape)
            outputs[name] = new(shape, _dtype(kind), *self._device) if is_known else None
            if is_known:
                binding.bind_ortvalue_output(name, outputs[name])
            else:
                binding.bind_output(name, *self._device)  # here and at each run: the outputs keep their order
        if not self._captures or None in outputs.values() or self._graphs == MOST_SHAPES:
            return _Buffers(inputs, outputs, binding)
        self._graphs += 1
        self._captured.add(key)
        return _Buffers(inputs, outputs, binding, self._graphs)

    def sizes(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, int]:
        """Name of a free size -> its value, as the inputs have it."""
        sizes: dict[str, int] = {}
        for name, array in feeds.items():
            declared: Sequence[int | str | None] = self._inputs.get(name, ())
            if len(declared) == array.ndim:
                pairs = zip(declared, array.shape, strict=True)
                sizes.update((size, found) for size, found in pairs if isinstance(size, str))
        return sizes


def _dtype(kind: str) -> type[Any]:
    """ONNX Runtime's ``tensor(float)`` as NumPy's type."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return np.dtype(_DTYPES.get(name, name)).type
