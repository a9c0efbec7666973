"""Compare a converted model with OpenCV 4's importer of Caffe networks, on random input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.errors import ConversionError, install, printable
from converters.net import Net

if TYPE_CHECKING:
    from rich.table import Table

TOLERANCE = 1e-3  # of the largest value of an output; OpenCV fuses and reorders sums
SEED = 0


@dataclass(frozen=True)
class Comparison:
    """The comparison of one output.

    Attributes:
        output: The tensor.
        largest: The largest magnitude in OpenCV's output.
        difference: The largest difference; infinite if the shapes differ or only one value is finite.
        remark: Why there is no comparison, or how the shapes differ.
    """

    output: str
    largest: float = 0.0
    difference: float = 0.0
    remark: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the difference is small against the largest value."""
        return self.difference <= TOLERANCE * max(self.largest, 1e-3)


@dataclass(frozen=True)
class Report:
    """The comparison of all outputs, or the reason why there is none.

    Attributes:
        comparisons: One per output.
        reason: Why no comparison was possible; empty otherwise.
    """

    comparisons: tuple[Comparison, ...] = ()
    reason: str = ""

    @property
    def disagrees(self) -> bool:
        """Whether an output differs."""
        return any(not comparison.agrees for comparison in self.comparisons)

    def as_dict(self) -> dict[str, Any]:
        """The report as an object for JSON."""
        rows = [{**asdict(one), "agrees": one.agrees and not one.remark} for one in self.comparisons]
        for row in rows:
            row["difference"] = row["difference"] if np.isfinite(row["difference"]) else None
        return {"with": "OpenCV", "reason": self.reason, "outputs": rows}

    def as_table(self) -> Table | str:
        """The report as a table for a terminal."""
        if self.reason:
            return f"not verified: {printable(self.reason)}"
        from rich.table import Table

        table = Table("output", "largest value", "largest difference", "verdict", box=None, pad_edge=False)
        for one in self.comparisons:
            verdict = one.remark or ("agrees" if one.agrees else "DIFFERS: one of the two is wrong")
            table.add_row(printable(one.output), f"{one.largest:.6g}", f"{one.difference:.3g}", printable(verdict))
        return table


def against_opencv(model: Path, net: Net, description: str | Path, weights: Path | None) -> Report:
    """Compare every output of a model with OpenCV's importer on the original files.

    Args:
        model: The converted model.
        net: The network that was converted, as far as its outputs need it.
        description: The prototxt: its path, or its text.
        weights: The caffemodel.

    Returns:
        The comparison, or why there is none: OpenCV or ONNX Runtime missing, OpenCV 5 (which dropped its importer),
        layers that OpenCV does not support.
    """
    try:
        import onnxruntime
    except ImportError:
        return Report(reason=f"ONNX Runtime is not installed ({install('onnxruntime')})")
    try:
        inputs = _random_inputs(net)
        theirs = _opencv(net, description, weights, inputs)
    except ConversionError as error:
        return Report(reason=str(error))
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    feeds = {node.name: inputs[node.name] for node in session.get_inputs()}
    ours = dict(zip(names, session.run(None, feeds), strict=True))
    return Report(tuple(_compared(name, ours[name], theirs.get(name)) for name in names))


def _random_inputs(net: Net) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(SEED)
    return {data.name: generator.standard_normal(data.shape or (), dtype=np.float32) for data in net.inputs}


def _opencv(
    net: Net, description: str | Path, weights: Path | None, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return OpenCV's outputs by tensor.

    Raises:
        ConversionError: OpenCV cannot compute them, for the reason in the message.
    """
    try:
        import cv2
    except ImportError:
        raise ConversionError(f"OpenCV is not installed ({install('cv2')})") from None
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        raise ConversionError(f"OpenCV {cv2.__version__} has no importer of Caffe networks; 4 has one")
    if weights is None:
        raise ConversionError("OpenCV's importer needs a prototxt and a caffemodel")
    try:
        text = description.encode() if isinstance(description, str) else description.read_bytes()
        theirs = cv2.dnn.readNetFromCaffe(np.frombuffer(text, np.uint8), np.fromfile(weights, np.uint8))
        for name, values in inputs.items():
            theirs.setInput(values, name)
        # OpenCV names an output after the layer that writes it.
        writers = {top: layer.name for layer in net.layers for top in layer.tops[:1]}
        wanted = {tensor: writers[tensor] for tensor in net.outputs if tensor in writers}
        return dict(zip(wanted, theirs.forward(list(wanted.values())), strict=True))
    except (cv2.error, SystemError) as error:
        detail = str(error).strip().splitlines()[-1] if str(error).strip() else "no reason given"
        raise ConversionError(f"OpenCV's importer does not read this network: {detail}") from None


def _compared(name: str, ours: np.ndarray, theirs: np.ndarray | None) -> Comparison:
    if theirs is None:
        return Comparison(name, remark="not compared: OpenCV does not give this output")
    largest = float(np.abs(theirs).max(initial=0.0))
    if ours.size != theirs.size:
        remark = f"DIFFERS: shape {ours.shape}, OpenCV {theirs.shape}"
        return Comparison(name, largest, float("inf"), remark)
    difference = np.abs(ours.reshape(-1) - theirs.reshape(-1))
    worst = float(difference.max(initial=0.0))
    return Comparison(name, largest, worst if np.isfinite(worst) else float("inf"))
