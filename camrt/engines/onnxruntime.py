"""ONNX Runtime, set up so that answers agree between machines, and so that it says where it runs."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from camrt.engines.binding import MOST_SHAPES, Bound
from camrt.engines.engine import (
    BF16,
    FP16,
    FP32,
    TF32,
    check_is_file,
    name_of,
    read_model,
    run_error,
    short,
    with_options,
)
from camrt.errors import CamrtError, CamrtWarning
from converters.errors import RUNTIME_GPU, install

if TYPE_CHECKING:
    import onnx

    from camrt.engines.engine import Model, Providers, Shapes

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
GPU = (CUDA, TENSORRT)  # providers whose inputs and outputs are in CUDA's memory
_MOST_WEIGHTS = 2**31 - 2**24  # bytes; Protocol Buffers' limit for a message, less what is not weights
_SMALL = 1024  # bytes; smaller tensors (shapes, axes) stay inside a message that is too large

# The default search tries every algorithm on every new batch size, which takes seconds and may choose another one each
# time; the heuristic does not. The arena grows by what is asked for, not by powers of two.
_OPTIONS: Mapping[str, Mapping[str, str]] = {
    CUDA: {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"},
}
# Precision -> a provider's options for it, the default first. TF32 keeps 10 bits of the mantissa: heatmaps would differ
# from the CPU's in the third digit, so it is off by default. TensorRT uses it where the GPU has it, and ONNX Runtime
# has no option against that.
_PRECISIONS: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    CUDA: {FP32: {"use_tf32": "0"}, TF32: {"use_tf32": "1"}, FP16: {"use_tf32": "0"}},
    TENSORRT: {TF32: {}, FP16: {"trt_fp16_enable": "1"}, BF16: {"trt_bf16_enable": "1"}},
}
_FP32_ALONE: Mapping[str, Mapping[str, str]] = {FP32: {}}
_CAPTURES = ("enable_cuda_graph", "trt_cuda_graph_enable")  # options for CUDA graphs
_INSTALL_GPU = f"uninstall onnxruntime, then {install(RUNTIME_GPU)}"
_TENSORRT = f". TensorRT is a package of its own: {install('tensorrt-cu13>=10.13,<11')}"


class OnnxRuntime:
    """A model on ONNX Runtime: a `camrt.engines.engine.Engine`, with the arguments of `camrt.session.Session`.

    Options of a provider that are not given have this module's values. At ``"fp16"`` on CUDA the model is
    `camrt.engines.half.halved` first.
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
        loading = _Loading(model, runtime, precision, threads)
        if providers is None:
            self._session, aside = loading.by_default()
        else:
            self._session, aside = loading.on(providers), ""
        self._weights = loading.weights
        self.provider: str = self._session.get_providers()[0]
        found = self._session.get_provider_options().get(self.provider, {})
        # TF32 may also be asked for as the provider's own option.
        self.precision: str = TF32 if found.get("use_tf32") == "1" else precision or _default_precision(self.provider)
        self.inputs = _shapes(self._session.get_inputs())
        self.outputs = _shapes(self._session.get_outputs())
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata))
        self._bound: Bound | CudaGraphs | None = None
        self.device: int | None = None
        if self.provider in GPU:
            self.device = int(found.get("device_id", 0))
            device = "cuda", self.device
            self._bound = Bound(self._session, runtime, device)
            if loading.captures:
                self._bound = CudaGraphs(loading, self._bound, runtime, device)
        at = "" if self.precision == FP32 else f" at {self.precision}"
        self.started = f"ONNX Runtime {runtime.__version__} runs {name_of(model)} on {self.provider}{at}{aside}"

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute all outputs, as `camrt.session.Session.run`.

        On a GPU inputs and outputs have memory on the device that is used again (`camrt.engines.binding.Bound`).

        Raises:
            CamrtError: Also where float16 does not reach: an output is not finite.
        """
        try:
            if self._bound is not None:
                found = self._bound.run(feeds)
            else:
                found = dict(zip(self.outputs, self._session.run(list(self.outputs), dict(feeds)), strict=True))
        except Exception as error:  # its exceptions have no common base
            raise run_error("ONNX Runtime", self.provider, feeds, error) from error
        if self.precision == FP16:
            _check_finite(found)
        return found


class CudaGraphs:
    """CUDA graphs: a session of fixed sizes for each of the first batch sizes. It is thread-safe.

    A graph is captured with fixed sizes anyway, and a session that knows them computes shapes, and what follows from
    them, when it is made: what is left runs on the GPU, as capturing asks for.

    Args:
        loading: Makes the sessions.
        free: The session of free sizes, for more batch sizes, and for a model that cannot be captured.
        runtime: The module onnxruntime.
        device: Where inputs and outputs are.
    """

    def __init__(self, loading: _Loading, free: Bound, runtime: ModuleType, device: tuple[str, int]) -> None:
        self._loading, self._free, self._runtime, self._device = loading, free, runtime, device
        self._bound: dict[tuple[tuple[str, int], ...], Bound] = {}
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute all outputs: output -> array, new at each call."""
        return self._fixed(self._free.sizes(feeds)).run(feeds)

    def _fixed(self, sizes: Mapping[str, int]) -> Bound:
        key = tuple(sorted(sizes.items()))
        with self._lock:
            if self._loading.captures and key not in self._bound and len(self._bound) < MOST_SHAPES:
                session = self._loading.fixed(sizes)
                if session is not None:
                    self._bound[key] = Bound(session, self._runtime, self._device, captures=True)
            return self._bound.get(key, self._free)


def _check_finite(outputs: Mapping[str, NDArray[Any]]) -> None:
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CamrtError(
                f"found values in {name!r} that are not finite: the network's activations are beyond the range of "
                f"{FP16}. Run it at another precision (--precision {FP32} or {TF32})"
            )


def _default_precision(provider: str) -> str:
    return next(iter(_PRECISIONS.get(provider, _FP32_ALONE)))


def has(provider: str) -> bool:
    """Return whether this ONNX Runtime was built with a provider, whether or not there is a device for it."""
    return any(short(provider) == short(one) for one in _runtime().get_available_providers())


def has_cuda() -> bool:
    """Return whether this ONNX Runtime can run on NVIDIA GPUs, be there one or not."""
    return has(CUDA)


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


class _Loading:
    """A model on its way into a session.

    Args:
        model: The model.
        runtime: The module onnxruntime.
        precision: What it is to compute in; None for the provider's default.
        threads: How many threads compute on the CPU.

    Attributes:
        weights: What must live as long as the sessions.
        captures: Whether CUDA graphs are asked for, and nothing spoke against them yet.
    """

    def __init__(self, model: Model, runtime: ModuleType, precision: str | None, threads: int | None) -> None:
        self._model, self._runtime, self._precision, self._threads = model, runtime, precision, threads
        self._name = name_of(model)
        self._is_half = False
        self._capturing: Mapping[str, Mapping[str, str]] = {}
        self.weights: list[Any] = []
        self.captures = False

    def by_default(self) -> tuple[Any, str]:
        """A session on CUDA where that works, else on the CPU; and why not CUDA, where ONNX Runtime has it."""
        if CUDA not in self._runtime.get_available_providers():
            return self._created({CPU: {}}), ""
        try:
            session = self._created({CUDA: {}, CPU: {}})
            reason = "" if CUDA in session.get_providers() else "see ONNX Runtime's message"
        except CamrtError as error:
            try:
                session, reason = self._created({CPU: {}}), str(error)
            except CamrtError:  # a precision that neither of them has
                raise error from None
        return session, f" ({CUDA} is there and did not start: {reason})" if reason else ""

    def on(self, providers: Providers) -> Any:
        """A session on the providers that were asked for: all of them, or an error."""
        available = self._runtime.get_available_providers()
        wanted: dict[str, Mapping[str, str]] = {}
        for entry in [providers] if isinstance(providers, str) else providers:
            asked, given = with_options(entry)
            found = next((one for one in available if short(one) == short(asked)), None)
            if found is None:
                hint = f". For NVIDIA GPUs: {_INSTALL_GPU}" if short(asked) in map(short, GPU) else ""
                raise CamrtError(
                    f"found the provider {asked!r}, expected one that ONNX Runtime {self._runtime.__version__} has "
                    f"here: {', '.join(available)}{hint}"
                )
            wanted[found] = given
        if not wanted:
            raise CamrtError(f"found no providers, expected at least one of {', '.join(available)}")
        if list(wanted) == [TENSORRT]:
            # For the nodes that TensorRT leaves.
            wanted[CUDA] = {key: value for key, value in wanted[TENSORRT].items() if key == "device_id"}
        session = self._created(wanted)
        missing = [one for one in wanted if one not in session.get_providers()]
        if missing:
            hint = f" Try nvidia-smi, and {_INSTALL_GPU}" if CUDA in missing else ""
            hint += _TENSORRT if TENSORRT in missing else ""
            raise CamrtError(
                f"{', '.join(missing)} did not start, expected to run there: ONNX Runtime would run on "
                f"{', '.join(session.get_providers())}. Its message is on stderr.{hint}"
            )
        return session

    def _created(self, providers: Mapping[str, Mapping[str, str]]) -> Any:
        best = next(iter(providers))
        precision = self._precision or _default_precision(best)
        if precision not in (known := _PRECISIONS.get(best, _FP32_ALONE)):
            hint = ". OpenVINO may have it: --provider openvino" if best == CPU and precision != TF32 else ""
            raise CamrtError(
                f"found the precision {precision!r}, expected {' or '.join(known)}: ONNX Runtime computes "
                f"no other on {best}{hint}"
            )
        if not {CUDA, TENSORRT}.isdisjoint(providers):
            _preload_cuda()
        if TENSORRT in providers:
            with contextlib.suppress(ImportError):
                importlib.import_module("tensorrt")  # it loads the libraries of its wheel, which nothing else finds
        chosen = {one: _complete(one, given, precision) for one, given in providers.items()}
        self._capturing, self.captures = chosen, any(_is_on(chosen[best], option) for option in _CAPTURES)
        without = {key: value for key, value in chosen[best].items() if key not in _CAPTURES}
        try:
            return self._session({**chosen, best: without}, precision)
        except Exception as error:  # its exceptions have no common base
            where = ", ".join(providers)
            hint = _TENSORRT if TENSORRT in providers else ""
            raise CamrtError(f"ONNX Runtime cannot load it on {where}: {error}{hint}", file=self._name) from error

    def fixed(self, sizes: Mapping[str, int]) -> Any:
        """A session that captures CUDA graphs, for inputs of these sizes; None, aloud, where it cannot.

        Args:
            sizes: Name of a free size -> its value.
        """
        precision = self._precision or _default_precision(next(iter(self._capturing)))
        try:
            return self._session(self._capturing, precision, sizes)
        except Exception as error:  # its exceptions have no common base
            self.captures = False
            warn(f"CUDA graphs are not used: {error}")
            return None

    def _session(
        self, providers: Mapping[str, Mapping[str, str]], precision: str, sizes: Mapping[str, int] | None = None
    ) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3  # errors: its warnings are about single nodes
        options.intra_op_num_threads = self._threads or 0
        # Between two runs its threads would wait by spinning, on the cores that decode and draw: a fifth of the time.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        for name, size in (sizes or {}).items():
            options.add_free_dimension_override_by_name(name, size)
        if precision == FP16 and next(iter(providers)) == CUDA and not self._is_half:
            from camrt.engines.half import halved

            self._model, self._is_half = halved(read_model(self._model)), True
        source, weights = _source(self._model, options, self._runtime)
        self.weights += weights
        # Its own fallback prints and goes on with the CPU.
        return self._runtime.InferenceSession(source, options, providers=[*providers.items()], enable_fallback=0)


def _complete(provider: str, given: Mapping[str, str], precision: str) -> dict[str, str]:
    """A provider's options: those given, this module's, and those of the precision."""
    ours = {**_OPTIONS.get(provider, {}), **_PRECISIONS.get(provider, {}).get(precision, {})}
    if provider == TENSORRT:
        from converters.zoo import cache_folder

        folder = cache_folder() / "tensorrt"  # an engine takes minutes to build
        folder.mkdir(parents=True, exist_ok=True)
        for kind in ("engine", "timing"):
            ours |= {f"trt_{kind}_cache_enable": "1", f"trt_{kind}_cache_path": str(folder)}
    return {**ours, **given}


def _is_on(options: Mapping[str, str], name: str) -> bool:
    return options.get(name, "0").casefold() in ("1", "true")


def warn(message: str) -> None:
    """Say aloud that something asked for is not used."""
    warnings.warn(message, CamrtWarning, stacklevel=2)


# --------------------------------------------------------------------------------------------------------------- model


def _source(model: Model, options: Any, runtime: ModuleType) -> tuple[str | bytes, list[Any]]:
    """What `InferenceSession` takes: a path, or the bytes of a model; and what must live as long as the session."""
    if isinstance(model, (str, os.PathLike)):
        check_is_file(model)
        return os.fspath(model), []
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
