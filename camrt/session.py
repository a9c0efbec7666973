"""ONNX Runtime, set up so that answers agree between machines, and so that it says where it runs."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from camrt.errors import CamrtError
from converters.errors import RUNTIME_GPU, install

if TYPE_CHECKING:
    import onnx

Provider: TypeAlias = str | tuple[str, Mapping[str, Any]]

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_MOST_WEIGHTS = 2**31 - 2**24  # bytes; Protocol Buffers' limit for a message, less what is not weights
_SMALL = 1024  # bytes; smaller tensors (shapes, axes) stay inside a message that is too large

# TF32 keeps 10 bits of the mantissa: heatmaps would differ from the CPU's in the third digit. The default search tries
# every algorithm on every new batch size, which takes seconds and may choose another one each time; the heuristic
# does not. The arena grows by what is asked for, not by powers of two.
_CUDA_OPTIONS = {
    "use_tf32": "0",
    "cudnn_conv_algo_search": "HEURISTIC",
    "arena_extend_strategy": "kSameAsRequested",
}
_INSTALL_GPU = f"uninstall onnxruntime, then {install(RUNTIME_GPU)}"
_log = logging.getLogger(__name__)


class Session:
    """A model on ONNX Runtime. It is thread-safe.

    Args:
        model: A model, or the path of one; of a path, weights in external data are found beside it. A model of more
            than 2 GB may be given either way.
        providers: Where it runs: ONNX Runtime's names, the best first, or short ones (``"cuda"``, ``"cpu"``), each
            alone or with its options as ``("cuda", {"device_id": 1})``. By default CUDA where ONNX Runtime has it and
            can start it, else the CPU. Options that are not given have this module's values on CUDA: no TF32.
        threads: How many threads compute on the CPU; by default one a physical core.

    Raises:
        CamrtError: ONNX Runtime is not installed; a provider that was asked for is not there or does not start; the
            model cannot be loaded.

    Attributes:
        provider: The provider that runs what it can, by ONNX Runtime's name. A line of this module's logger at level
            INFO says it too.
        inputs: Input -> shape; a free dimension is a name or None.
        outputs: Output -> shape.
        metadata: The model's metadata_props.
    """

    def __init__(
        self,
        model: onnx.ModelProto | str | os.PathLike[str],
        *,
        providers: str | Sequence[Provider] | None = None,
        threads: int | None = None,
    ) -> None:
        runtime = _runtime()
        if threads is not None and threads < 1:
            raise CamrtError(f"found {threads} threads, expected at least 1")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors: its warnings are about single nodes
        options.intra_op_num_threads = threads or 0
        source, self._weights = _source(model, options, runtime)
        name = os.fspath(model) if isinstance(model, (str, os.PathLike)) else "the model"
        if providers is None:
            self._session, aside = _default(source, options, runtime, name)
        else:
            self._session, aside = _asked(source, options, runtime, name, providers), ""
        self.provider: str = self._session.get_providers()[0]
        self.inputs = _shapes(self._session.get_inputs())
        self.outputs = _shapes(self._session.get_outputs())
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata))
        self._device: tuple[str, int] | None = None  # where inputs and outputs are bound
        if self.provider == CUDA:
            self._device = "cuda", int(self._session.get_provider_options()[CUDA].get("device_id", 0))
        _log.info("ONNX Runtime %s runs %s on %s%s", runtime.__version__, name, self.provider, aside)

    def __repr__(self) -> str:
        return f"Session(inputs={dict(self.inputs)}, outputs={dict(self.outputs)}, provider={self.provider!r})"

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute all outputs.

        On CUDA inputs and outputs are bound on the device: the inputs go up once, the outputs come down once, and
        nothing else crosses the bus.

        Args:
            feeds: Input -> array, each of the shape and dtype that the model declares.

        Returns:
            Output -> array, new at each call.

        Raises:
            CamrtError: ONNX Runtime fails: a wrong shape or dtype, not enough memory.
        """
        try:
            if self._device is not None:
                return self._run_bound(feeds, *self._device)
            return dict(zip(self.outputs, self._session.run(list(self.outputs), dict(feeds)), strict=True))
        except Exception as error:  # its exceptions have no common base
            shapes = ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in feeds.items())
            raise CamrtError(
                f"ONNX Runtime failed on {self.provider} with {shapes}: {error}. Where memory ran out, give fewer "
                "images at once (batch)"
            ) from error

    def _run_bound(self, feeds: Mapping[str, NDArray[Any]], device: str, number: int) -> dict[str, NDArray[Any]]:
        binding = self._session.io_binding()
        # Held until the outputs are down: the binding does not own its inputs.
        uploaded = {
            name: _runtime().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, number)
            for name, array in feeds.items()
        }
        for name, value in uploaded.items():
            binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            binding.bind_output(name, device, number)
        self._session.run_with_iobinding(binding)
        return dict(zip(self.outputs, binding.copy_outputs_to_cpu(), strict=True))


def _shapes(values: Sequence[Any]) -> Mapping[str, tuple[int | str | None, ...]]:
    return MappingProxyType({value.name: tuple(value.shape) for value in values})


@functools.cache
def _runtime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise CamrtError(
            f"ONNX Runtime cannot be imported ({error}): {install('onnxruntime')}, or for NVIDIA GPUs "
            f"{install(RUNTIME_GPU)}"
        ) from error
    module: ModuleType = onnxruntime
    return module


@functools.cache
def _preload_cuda() -> None:
    """Load CUDA's and cuDNN's libraries from the wheels that camrt[gpu] brings, where there are any."""
    preload = getattr(_runtime(), "preload_dlls", None)
    if preload is not None:
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it misses; stdout may be read by a program
            preload()


# ----------------------------------------------------------------------------------------------------------- providers


def _default(source: Any, options: Any, runtime: ModuleType, name: str) -> tuple[Any, str]:
    """A session on CUDA where that works, else on the CPU; and why not CUDA, where ONNX Runtime has it."""
    if CUDA not in runtime.get_available_providers():
        return _created(source, options, runtime, name, {CPU: {}}), ""
    try:
        session = _created(source, options, runtime, name, {CUDA: {}, CPU: {}})
        reason = "" if CUDA in session.get_providers() else "see ONNX Runtime's message"
    except CamrtError as error:
        session, reason = _created(source, options, runtime, name, {CPU: {}}), str(error)
    return session, f" ({CUDA} is there and did not start: {reason})" if reason else ""


def _asked(source: Any, options: Any, runtime: ModuleType, name: str, providers: str | Sequence[Provider]) -> Any:
    """A session on the providers that were asked for: all of them, or an error."""
    available = runtime.get_available_providers()
    wanted: dict[str, Mapping[str, Any]] = {}
    for entry in [providers] if isinstance(providers, str) else providers:
        asked, given = (entry, {}) if isinstance(entry, str) else entry
        found = next((one for one in available if _short(one) == _short(asked)), None)
        if found is None:
            hint = f". For NVIDIA GPUs: {_INSTALL_GPU}" if _short(asked) == _short(CUDA) else ""
            raise CamrtError(
                f"found the provider {asked!r}, expected one that ONNX Runtime {runtime.__version__} has here: "
                f"{', '.join(available)}{hint}"
            )
        wanted[found] = given
    if not wanted:
        raise CamrtError(f"found no providers, expected at least one of {', '.join(available)}")
    session = _created(source, options, runtime, name, wanted)
    missing = [one for one in wanted if one not in session.get_providers()]
    if missing:
        hint = f" Try nvidia-smi, and {_INSTALL_GPU}" if CUDA in missing else ""
        raise CamrtError(
            f"{', '.join(missing)} did not start, expected to run there: ONNX Runtime would run on "
            f"{', '.join(session.get_providers())}. Its message is on stderr.{hint}"
        )
    return session


def _short(provider: str) -> str:
    return provider.casefold().removesuffix("executionprovider")


def _created(
    source: Any, options: Any, runtime: ModuleType, name: str, providers: Mapping[str, Mapping[str, Any]]
) -> Any:
    if CUDA in providers:
        _preload_cuda()
    chosen = [
        (one, {**(_CUDA_OPTIONS if one == CUDA else {}), **{key: str(value) for key, value in given.items()}})
        for one, given in providers.items()
    ]
    try:
        # Its own fallback prints and goes on with the CPU.
        return runtime.InferenceSession(source, options, providers=chosen, enable_fallback=0)
    except Exception as error:  # its exceptions have no common base
        raise CamrtError(f"ONNX Runtime cannot load it on {', '.join(providers)}: {error}", file=name) from error


# --------------------------------------------------------------------------------------------------------------- model


def _source(
    model: onnx.ModelProto | str | os.PathLike[str], options: Any, runtime: ModuleType
) -> tuple[str | bytes, list[Any]]:
    """What `InferenceSession` takes: a path, or the bytes of a model; and what must live as long as the session."""
    if isinstance(model, (str, os.PathLike)):
        path = Path(model)
        if not path.is_file():
            raise CamrtError("there is no such file, expected an ONNX model", file=str(path))
        return str(path), []
    from converters.model import bytes_of

    if sum(map(bytes_of, model.graph.initializer)) > _MOST_WEIGHTS:
        return _detached(model, options, runtime)
    return model.SerializeToString(), []


def _detached(model: onnx.ModelProto, options: Any, runtime: ModuleType) -> tuple[bytes, list[Any]]:
    """The bytes of a model of more than 2 GB without its large weights, and those, which the options hand over.

    The model is not changed. ONNX Runtime reads the weights where they are and does not own them.
    """
    from onnx import TensorProto, numpy_helper

    from converters.model import split

    header, large = split(model, _SMALL)
    for tensor in large:
        outside = header.graph.initializer.add(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        outside.data_location = TensorProto.EXTERNAL
        outside.external_data.add(key="location", value="in memory")
    values = [runtime.OrtValue.ortvalue_from_numpy(numpy_helper.to_array(tensor)) for tensor in large]
    options.add_external_initializers([tensor.name for tensor in large], values)
    return header.SerializeToString(), values
