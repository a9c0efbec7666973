"""OpenVINO, which reads the ONNX model itself. It computes in bf16 and fp16 where the processor can."""

from __future__ import annotations

import functools
import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from camrt.engines.engine import BF16, FP16, FP32, name_of, run_error, with_options
from camrt.errors import CamrtError
from converters import metadata
from converters.errors import install

if TYPE_CHECKING:
    import onnx

    from camrt.engines.engine import Model, Provider, Providers, Shapes

OPENVINO = "OpenVINO"
_MOST_BYTES = 2**31 - 2**24  # Protocol Buffers' limit for a message, less what is not weights
_TYPES = {FP32: "f32", BF16: "bf16", FP16: "f16"}  # OpenVINO's names
_PRECISION, _THREADS, _HINT = "INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "PERFORMANCE_HINT"
_END = "/sink_port_0"  # of the name of a result in a graph that was read from ONNX


class OpenVino:
    """A model on OpenVINO: a `camrt.engines.engine.Engine`, with the arguments of `camrt.session.Session`.

    A provider's options are OpenVINO's properties, and ``"device"``: by default ``"CPU"``. Without a precision,
    OpenVINO would take bf16 where the processor has it; here fp32 is the default, as everywhere.

    The batch stays free: a size that was not seen yet costs one run that is slower (docs/speed.md). Calls from several
    threads take turns: each uses all processors.
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
        device, options = _asked(providers)
        self.precision: str = precision or FP32
        self.provider: str = OPENVINO if device == "CPU" else f"{OPENVINO} {device}"
        core = runtime.Core()
        _check_precision(core, device, self.precision)
        name = name_of(model)
        proto = _proto(model, name)
        _check_operators(proto, name)
        self.metadata: Mapping[str, str] = MappingProxyType(metadata.of_model(proto))
        weights = {tensor.name for tensor in proto.graph.initializer}
        inputs = [value.name for value in proto.graph.input if value.name not in weights]
        is_quantized = any(node.op_type == "QuantizeLinear" for node in proto.graph.node)
        del proto
        read = _read(core, model, name)
        _separate_transposed(runtime, read)
        if is_quantized:
            _keep_sums_in_float(runtime, read)
        hint = ""
        if is_quantized and self.precision != FP32:
            hint = f". It is quantized, and OpenVINO may run it in {FP32} alone: leave the precision out"
        compiled = _compiled(core, read, device, name, {**_own(self.precision, threads), **options}, hint)
        self._check(compiled, runtime, threads)
        parameters = _named_parameters(read, inputs)
        self.inputs: Shapes = MappingProxyType({each: _shape(one.output(0)) for each, one in parameters.items()})
        self.outputs: Shapes = MappingProxyType(
            {_name_of_result(one): _shape(one.output(0)) for one in read.get_results()}
        )
        self._dtypes = {each: np.dtype(one.get_element_type().to_dtype()) for each, one in parameters.items()}
        self._request = compiled.create_infer_request()
        self._turn = threading.Lock()
        version = runtime.__version__.partition("-")[0]
        at = "" if self.precision == FP32 else f" at {self.precision}"
        self.started = f"OpenVINO {version} runs {name} on {core.get_property(device, 'FULL_DEVICE_NAME')}{at}"

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute all outputs, as `camrt.session.Session.run`."""
        try:
            self._check_feeds(feeds)
            with self._turn:
                found = self._request.infer([feeds[name] for name in self.inputs], share_inputs=True)
                return {name: found[number] for number, name in enumerate(self.outputs)}
        except Exception as error:  # a RuntimeError, whatever it is about
            raise run_error("OpenVINO", self.provider, feeds, _reason(error)) from error

    def _check_feeds(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Check names, shapes and dtypes: OpenVINO would convert, and take an input that is missing from the last call.

        Raises:
            ValueError: They are not the model's.
        """
        if feeds.keys() != self.inputs.keys():
            raise ValueError(f"found the inputs {sorted(feeds)}, expected {sorted(self.inputs)}")
        for name, array in feeds.items():
            wanted = self.inputs[name]
            fits = array.ndim == len(wanted) and all(
                size == given for size, given in zip(wanted, array.shape, strict=True) if isinstance(size, int)
            )
            if not fits or not array.size or array.dtype != self._dtypes[name]:
                shape = ", ".join("N" if size is None else str(size) for size in wanted)
                raise ValueError(
                    f"found {name} {array.shape} {array.dtype}, expected ({shape}) {self._dtypes[name]}, not empty"
                )

    def _check(self, compiled: Any, runtime: ModuleType, threads: int | None) -> None:
        """Check that OpenVINO does what it was told.

        Raises:
            CamrtError: It does something else.
        """
        found = compiled.get_property(_PRECISION)
        if found != getattr(runtime.Type, _TYPES[self.precision]):
            raise CamrtError(f"found the precision {found} after {self.precision} was asked for. Leave it out")
        if threads is not None and (taken := compiled.get_property(_THREADS)) != threads:
            raise CamrtError(f"found {threads} threads, expected at most {taken}: OpenVINO takes no more here")


def is_openvino(providers: Providers | None) -> bool:
    """Return whether OpenVINO is among the providers. ONNX Runtime's own provider for it has a longer name."""
    return any(with_options(entry)[0].casefold() == "openvino" for entry in _listed(providers))


def check(precision: str) -> None:
    """Check that OpenVINO is installed and the CPU computes in a precision by itself.

    Raises:
        CamrtError: It is not, or it does not.
    """
    _check_precision(_runtime().Core(), "CPU", precision)


def can(precision: str) -> bool:
    """Return whether `check` finds nothing."""
    try:
        check(precision)
    except CamrtError:
        return False
    return True


@functools.cache
def _runtime() -> ModuleType:
    try:
        import openvino
    except ImportError as error:
        raise CamrtError(f"OpenVINO cannot be imported ({error}): {install('openvino')}") from error
    module: ModuleType = openvino
    return module


def _listed(providers: Providers | None) -> list[Provider]:
    if providers is None:
        return []
    return [providers] if isinstance(providers, str) else list(providers)


def _asked(providers: Providers | None) -> tuple[str, dict[str, Any]]:
    """The device and the properties that were asked for.

    Raises:
        CamrtError: There are other providers, or a property that has an argument of its own.
    """
    listed = _listed(providers)
    if len(listed) > 1:
        names = ", ".join(with_options(entry)[0] for entry in listed)
        raise CamrtError(f"found the providers {names}, expected openvino alone: it has none to fall back to")
    options: dict[str, Any] = with_options(listed[0])[1] if listed else {}
    for name, argument in {_PRECISION: "precision", _THREADS: "threads"}.items():
        if name in options:
            raise CamrtError(f"found the property {name}, expected the argument {argument}")
    return str(options.pop("device", "CPU")), options


def _own(precision: str, threads: int | None) -> dict[str, Any]:
    own = {_PRECISION: _TYPES[precision], _HINT: "LATENCY"}
    return own if threads is None else {**own, _THREADS: threads}


def _check_precision(core: Any, device: str, precision: str) -> None:
    """Check that a device computes in a precision by itself. OpenVINO would emulate it, or compute in another one.

    Raises:
        CamrtError: It does not, or there is no such device.
    """
    if device not in core.available_devices:
        raise CamrtError(
            f"found the device {device!r}, expected one of OpenVINO's: {', '.join(core.available_devices)}"
        )
    if precision not in _TYPES:
        raise CamrtError(f"found the precision {precision!r}, expected one of OpenVINO's: {', '.join(_TYPES)}")
    if not _has(core, device, precision):
        needs = {BF16: " (it needs AVX512-BF16 or AMX)", FP16: " (it needs AVX512-FP16 or AMX-FP16)"}
        raise CamrtError(
            f"found the precision {precision!r}, and {core.get_property(device, 'FULL_DEVICE_NAME')} does not compute "
            f"in it{needs.get(precision, '')}: it would be emulated, slowly. Leave the precision out, or give auto"
        )


def _has(core: Any, device: str, precision: str) -> bool:
    return precision.upper() in core.get_property(device, "OPTIMIZATION_CAPABILITIES")


# --------------------------------------------------------------------------------------------------------------- model


def _proto(model: Model, name: str) -> onnx.ModelProto:
    """The model as ONNX has it; weights in external data are not read."""
    if not isinstance(model, (str, os.PathLike)):
        return model
    if not Path(model).is_file():
        raise CamrtError("there is no such file, expected an ONNX model", file=name)
    import onnx

    try:
        return onnx.load(model, load_external_data=False)
    except Exception as error:  # protobuf's and onnx's have no common base
        raise CamrtError(f"OpenVINO cannot read it: {error}", file=name) from error


def _check_operators(model: onnx.ModelProto, name: str) -> None:
    """Refuse forms of operators that OpenVINO (2026.4) reads without an error and computes wrongly.

    Raises:
        CamrtError: The model has one.
    """
    import onnx

    opset = max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=0)
    for node in model.graph.node:
        given = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        if found := _miscomputed(node.op_type, given, opset):
            raise CamrtError(
                f"found the node {node.name or node.output[0]!r}, {node.op_type} with {found}, which OpenVINO computes "
                "wrongly. Leave the provider and the precision out",
                file=name,
            )


def _miscomputed(operator: str, given: Mapping[str, Any], opset: int) -> str:
    """Return what OpenVINO computes wrongly of a node; "" where nothing is known."""
    if operator == "ConvTranspose" and (given.get("output_shape") or given.get("auto_pad", b"").startswith(b"SAME")):
        return "output_shape or auto_pad"
    if operator == "AveragePool" and given.get("ceil_mode") and given.get("count_include_pad"):
        return "ceil_mode and count_include_pad"
    if operator == "Resize":
        wrong = ("antialias", "exclude_outside")
        policy = given.get("keep_aspect_ratio_policy", b"stretch") != b"stretch"
        return ", ".join([*(each for each in wrong if given.get(each)), *(["keep_aspect_ratio_policy"] * policy)])
    if operator in ("ReduceL1", "ReduceLogSum", "ReduceLogSumExp") and opset < 18 and "axes" in given:
        return f"the attribute axes (opset {opset})"
    return ""


def _read(core: Any, model: Model, name: str) -> Any:
    """OpenVINO's form of a model."""
    from converters.model import bytes_of, save

    try:
        if isinstance(model, (str, os.PathLike)):
            return core.read_model(Path(model))
        if sum(map(bytes_of, model.graph.initializer)) <= _MOST_BYTES:
            return core.read_model(model.SerializeToString())
        with tempfile.TemporaryDirectory(prefix="camrt-") as folder:
            save(model, Path(folder) / "model.onnx", limit=0)
            return core.read_model(Path(folder) / "model.onnx")  # it maps the weights: they stay until it is gone
    except RuntimeError as error:
        raise CamrtError(f"OpenVINO cannot read it: {_reason(error)}", file=name) from error


def _separate_transposed(runtime: ModuleType, read: Any) -> None:
    """Give a square matrix that is multiplied both as it is and transposed a copy for the second.

    The CPU plugin (2026.4) keeps the weights that it has packed by their address and layout. A square matrix and its
    transpose have both in common, so that one is taken for the other, without an error: gradients through a linear
    layer were wrong.
    """
    for constant in read.get_ops():
        if constant.get_type_name() != "Constant" or not _is_square(constant):
            continue
        copies: dict[bool, Any] = {}
        for user in constant.output(0).get_target_inputs():
            node = user.get_node()
            if node.get_type_name() != "MatMul":
                continue
            attributes = node.get_attributes()
            is_transposed = bool(attributes["transpose_b" if user.get_index() == 1 else "transpose_a"])
            if copies and is_transposed not in copies:
                copies[is_transposed] = runtime.op.Constant(constant.data.copy())
            source = copies.setdefault(is_transposed, constant)
            if source is not constant:
                user.replace_source_output(source.output(0))


def _keep_sums_in_float(runtime: ModuleType, read: Any) -> None:
    """Keep a node between quantized tensors and their sums and means, which changes nothing.

    The CPU plugin (2026.4) takes sums and means of 8 bits itself. Of three axes along the second one, only those of the
    first image were right, without an error: among them the scores of a network that quantizes them. It does not take
    integers through a maximum, so that behind one it sums in float32.
    """
    least = runtime.op.Constant(np.array(-np.inf, np.float32))
    for node in read.get_ops():
        if node.get_type_name() in ("ReduceMean", "ReduceSum"):
            source = node.input_value(0)
            if source.get_element_type() == runtime.Type.f32:
                node.input(0).replace_source_output(runtime.opset13.maximum(source, least).output(0))


def _is_square(constant: Any) -> bool:
    shape = constant.get_output_shape(0)
    return len(shape) == 2 and shape[0] == shape[1]


def _compiled(core: Any, read: Any, device: str, name: str, options: Mapping[str, Any], hint: str) -> Any:
    try:
        return core.compile_model(read, device, dict(options))
    except RuntimeError as error:
        raise CamrtError(f"OpenVINO cannot load it on {device}: {_reason(error)}{hint}", file=name) from error


def _named_parameters(read: Any, inputs: Sequence[str]) -> dict[str, Any]:
    """The parameters by the names that the inputs have in ONNX.

    An input that a node passes on unchanged may have lost its own name; one that nothing needs may be gone.
    """
    parameters = read.get_parameters()
    if len(parameters) == len(inputs):
        return dict(zip(inputs, parameters, strict=True))
    return {min(one.output(0).get_names()): one for one in parameters}


def _name_of_result(result: Any) -> str:
    """A tensor that is an output may have other names beside it; the result has the output's."""
    names = result.output(0).get_names()
    own: str = result.get_friendly_name().removesuffix(_END)
    return own if own in names else min(names)


def _shape(port: Any) -> tuple[int | None, ...]:
    return tuple(size.get_length() if size.is_static else None for size in port.get_partial_shape())


def _reason(error: Exception) -> str:
    """What a message of OpenVINO says, without the places in its sources."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("Exception from"))
