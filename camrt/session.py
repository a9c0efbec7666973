"""A model, ready to run: one interface to all engines."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

from camrt.engines.engine import BF16, FP16, PRECISIONS
from camrt.errors import CamrtError

if TYPE_CHECKING:
    from camrt.engines.engine import Engine, Model, Providers

_log = logging.getLogger(__name__)


class Session:
    """A model on an engine. It is thread-safe.

    Args:
        model: A model, or the path of one; of a path, weights in external data are found beside it. A model of more
            than 2 GB may be given either way.
        providers: Where it runs: ONNX Runtime's names, the best first, or short ones (``"cuda"``, ``"cpu"``), each
            alone or with its options as ``("cuda", {"device_id": 1})``; or ``"openvino"``, for OpenVINO in place of
            ONNX Runtime. By default CUDA where ONNX Runtime has it and can start it, else the CPU; OpenVINO for a
            precision that only it has there.
        precision: What it computes in: one of `camrt.engines.engine.PRECISIONS`. By default ``"fp32"``, which is exact.
        threads: How many threads compute on the CPU; by default one a physical core.
        outputs: What a run returns in place of the model's outputs: the names of any tensors in the graph, such as the
            blobs of a Caffe network, or ``"all"`` for every tensor that a node computes, in the order of computation.
            An engine fuses fewer operators then, and keeps all of these tensors in memory.

    Raises:
        CamrtError: The engine is not installed; a provider or a precision that was asked for is not there or does not
            start; the model cannot be loaded; it has no tensor of that name.

    Example:
        >>> import camrt
        >>> session = camrt.Session("net.onnx", outputs=["conv1", "prob"])  # doctest: +SKIP
        >>> session.run({"data": images})["conv1"]  # doctest: +SKIP

    Attributes:
        provider: The provider that runs what it can, by the engine's name for it. A line of this module's logger at
            level INFO says it too.
        precision: What it computes in.
        inputs: Input -> shape; a free dimension is a name or None.
        outputs: Output -> shape.
        metadata: The model's metadata_props.
        device: The number of the GPU; None where no CUDA runs it.
    """

    first_batch = 1  # images that the first run should have; `camrt.tuning.AutoSession` has more

    def __init__(
        self,
        model: Model,
        *,
        providers: Providers | None = None,
        precision: str | None = None,
        threads: int | None = None,
        outputs: Sequence[str] | Literal["all"] | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise CamrtError(f"found {threads} threads, expected at least 1")
        if precision is not None and precision not in PRECISIONS:
            raise CamrtError(f"found the precision {precision!r}, expected one of {', '.join(PRECISIONS)}")
        if outputs is not None:
            from camrt.engines.outputs import with_outputs

            model = with_outputs(model, outputs)
        self._engine = _started(model, providers, precision, threads)
        self.provider, self.precision = self._engine.provider, self._engine.precision
        self.inputs, self.outputs, self.metadata = self._engine.inputs, self._engine.outputs, self._engine.metadata
        self.device: int | None = getattr(self._engine, "device", None)
        _log.info(self._engine.started)

    def __repr__(self) -> str:
        return (
            f"Session(inputs={dict(self.inputs)}, outputs={dict(self.outputs)}, provider={self.provider!r}, "
            f"precision={self.precision!r})"
        )

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute all outputs.

        Args:
            feeds: Input -> array, each of the shape and dtype that the model declares.

        Returns:
            Output -> array, new at each call.

        Raises:
            CamrtError: The engine fails: a wrong shape or dtype, not enough memory.
        """
        return self._engine.run(feeds)


def _started(model: Model, providers: Providers | None, precision: str | None, threads: int | None) -> Engine:
    from camrt.engines import openvino
    from camrt.engines.onnxruntime import OnnxRuntime, has_cuda

    only_openvino = precision == BF16 or (precision == FP16 and not has_cuda())
    if openvino.is_openvino(providers) or (providers is None and only_openvino):
        return openvino.OpenVino(model, providers=providers, precision=precision, threads=threads)
    return OnnxRuntime(model, providers=providers, precision=precision, threads=threads)
