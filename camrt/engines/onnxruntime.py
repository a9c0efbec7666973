"""ONNX Runtime, set up so that answers agree between machines, and so that it says where it runs."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from camrt.engines.engine import FP32, TF32, name_of, run_error, short
from camrt.errors import CamrtError
from converters.errors import RUNTIME_GPU, install

if TYPE_CHECKING:
    import onnx

    from camrt.engines.engine import Model, Providers, Shapes

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_MOST_WEIGHTS = 2**31 - 2**24  # bytes; Protocol Buffers' limit for a message, less what is not weights
_SMALL = 1024  # bytes; smaller tensors (shapes, axes) stay inside a message that is too large

# The default search tries every algorithm on every new batch size, which takes seconds and may choose another one each
# time; the heuristic does not. The arena grows by what is asked for, not by powers of two.
_OPTIONS: Mapping[str, Mapping[str, str]] = {
    CUDA: {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"},
}
# Precision -> a provider's options for it. TF32 keeps 10 bits of the mantissa: heatmaps would differ from the CPU's in
# the third digit, so it is off by default.
_PRECISIONS: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    CUDA: {FP32: {"use_tf32": "0"}, TF32: {"use_tf32": "1"}},
}
_FP32_ALONE: Mapping[str, Mapping[str, str]] = {FP32: {}}
_INSTALL_GPU = f"uninstall onnxruntime, then {install(RUNTIME_GPU)}"


class OnnxRuntime:
    """A model on ONNX Runtime: a `camrt.engines.engine.Engine`, with the arguments of `camrt.session.Session`.

    Options of a provider that are not given have this module's values.
    """

    def __init__(
        self,
        model: Model,
        *,
        providers: Providers | None = None,
        precision: str | None = None,
        threads: int | None = None,
    ) -> None:
        runtime = _runtime()
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors: its warnings are about single nodes
        options.intra_op_num_threads = threads or 0
        source, self._weights = _source(model, options, runtime)
        loading = _Loading(source, options, runtime, name_of(model), precision or FP32)
        if providers is None:
            self._session, aside = loading.by_default()
        else:
            self._session, aside = loading.on(providers), ""
        self.provider: str = self._session.get_providers()[0]
        found = self._session.get_provider_options().get(self.provider, {})
        # TF32 may also be asked for as the provider's own option.
        self.precision: str = TF32 if found.get("use_tf32") == "1" else precision or FP32
        self.inputs = _shapes(self._session.get_inputs())
        self.outputs = _shapes(self._session.get_outputs())
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata))
        self._device: tuple[str, int] | None = None  # where inputs and outputs are bound
        if self.provider == CUDA:
            self._device = "cuda", int(found.get("device_id", 0))
        at = "" if self.precision == FP32 else f" at {self.precision}"
        self.started = f"ONNX Runtime {runtime.__version__} runs {name_of(model)} on {self.provider}{at}{aside}"

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute all outputs, as `camrt.session.Session.run`.

        On CUDA inputs and outputs are bound on the device: the inputs go up once, the outputs come down once, and
        nothing else crosses the bus.
        """
        try:
            if self._device is not None:
                return self._run_bound(feeds, *self._device)
            return dict(zip(self.outputs, self._session.run(list(self.outputs), dict(feeds)), strict=True))
        except Exception as error:  # its exceptions have no common base
            raise run_error("ONNX Runtime", self.provider, feeds, error) from error

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


def has_cuda() -> bool:
    """Return whether this ONNX Runtime can run on NVIDIA GPUs, be there one or not."""
    return CUDA in _runtime().get_available_providers()


def _shapes(values: Sequence[Any]) -> Shapes:
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


@dataclass(frozen=True)
class _Loading:
    """A model on its way into a session.

    Attributes:
        source: What `InferenceSession` takes: a path, or the bytes of a model.
        options: The session's options.
        runtime: The module onnxruntime.
        name: What the model is called in messages.
        precision: What it computes in.
    """

    source: str | bytes
    options: Any
    runtime: ModuleType
    name: str
    precision: str

    def by_default(self) -> tuple[Any, str]:
        """A session on CUDA where that works, else on the CPU; and why not CUDA, where ONNX Runtime has it."""
        if CUDA not in self.runtime.get_available_providers():
            return self._created({CPU: {}}), ""
        try:
            session = self._created({CUDA: {}, CPU: {}})
            reason = "" if CUDA in session.get_providers() else "see ONNX Runtime's message"
        except CamrtError as error:
            session, reason = self._created({CPU: {}}), str(error)
        return session, f" ({CUDA} is there and did not start: {reason})" if reason else ""

    def on(self, providers: Providers) -> Any:
        """A session on the providers that were asked for: all of them, or an error."""
        available = self.runtime.get_available_providers()
        wanted: dict[str, Mapping[str, Any]] = {}
        for entry in [providers] if isinstance(providers, str) else providers:
            asked, given = (entry, {}) if isinstance(entry, str) else entry
            found = next((one for one in available if short(one) == short(asked)), None)
            if found is None:
                hint = f". For NVIDIA GPUs: {_INSTALL_GPU}" if short(asked) == short(CUDA) else ""
                raise CamrtError(
                    f"found the provider {asked!r}, expected one that ONNX Runtime {self.runtime.__version__} has "
                    f"here: {', '.join(available)}{hint}"
                )
            wanted[found] = given
        if not wanted:
            raise CamrtError(f"found no providers, expected at least one of {', '.join(available)}")
        session = self._created(wanted)
        missing = [one for one in wanted if one not in session.get_providers()]
        if missing:
            hint = f" Try nvidia-smi, and {_INSTALL_GPU}" if CUDA in missing else ""
            raise CamrtError(
                f"{', '.join(missing)} did not start, expected to run there: ONNX Runtime would run on "
                f"{', '.join(session.get_providers())}. Its message is on stderr.{hint}"
            )
        return session

    def _created(self, providers: Mapping[str, Mapping[str, Any]]) -> Any:
        best = next(iter(providers))
        if self.precision not in (known := _PRECISIONS.get(best, _FP32_ALONE)):
            raise CamrtError(
                f"found the precision {self.precision!r}, expected {' or '.join(known)}: ONNX Runtime computes "
                f"no other on {best}"
            )
        if CUDA in providers:
            _preload_cuda()
        chosen = [(one, self._complete(one, given)) for one, given in providers.items()]
        try:
            # Its own fallback prints and goes on with the CPU.
            return self.runtime.InferenceSession(self.source, self.options, providers=chosen, enable_fallback=0)
        except Exception as error:  # its exceptions have no common base
            where = ", ".join(providers)
            raise CamrtError(f"ONNX Runtime cannot load it on {where}: {error}", file=self.name) from error

    def _complete(self, provider: str, given: Mapping[str, Any]) -> dict[str, str]:
        """A provider's options: those given, this module's, and those of the precision."""
        precision = _PRECISIONS.get(provider, {}).get(self.precision, {})
        return {**_OPTIONS.get(provider, {}), **precision, **{key: str(value) for key, value in given.items()}}


# --------------------------------------------------------------------------------------------------------------- model


def _source(model: Model, options: Any, runtime: ModuleType) -> tuple[str | bytes, list[Any]]:
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
