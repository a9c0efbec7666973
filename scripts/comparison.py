"""A converted network in ONNX Runtime and in OpenCV 4, with the same seeded weights and input: census.py --compare."""

from __future__ import annotations

import multiprocessing
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import formulas
import numpy as np

from converters import ConversionError, Net, conversion, model
from converters.writer import write_caffemodel

TOLERANCE = 1e-4  # of the largest value of an output
MAX_WEIGHTS = 70_000_000  # numbers; both runtimes hold copies
Arrays = dict[str, np.ndarray]


def compared(path: Path, net: Net, shapes: Mapping[str, Sequence[int]]) -> str:
    """One line on a network: ``agrees``, ``differs: ...``, ``not compared: ...``.

    OpenCV runs in a process of its own: it ends the process on some networks that it does not know.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, path, net, dict(shapes)))
    process.start()
    sender.close()
    try:
        return str(receiver.recv())
    except EOFError:
        return "not compared: OpenCV crashed"
    finally:
        process.join()


def _send(sender: Connection, path: Path, net: Net, shapes: Mapping[str, Sequence[int]]) -> None:
    try:
        sender.send(_compared(path, net, shapes))
    except MemoryError:
        sender.send("not compared: too large")


def _compared(path: Path, net: Net, shapes: Mapping[str, Sequence[int]]) -> str:
    wanted = conversion.weight_shapes(replace(net, layers=tuple(replace(one, filler=None) for one in net.layers)),
                                      input_shapes=shapes)  # fmt: skip
    if sum(int(np.prod(shape)) for blobs in wanted.values() for shape in blobs) > MAX_WEIGHTS:
        return "not compared: too large"
    types = {layer.name: layer.type for layer in net.layers}
    weights = {name: seeded(name, types[name], blobs) for name, blobs in wanted.items()}
    filled = tuple(replace(layer, blobs=tuple(weights.get(layer.name, ())), filler=None) for layer in net.layers)
    net = replace(net, layers=filled)
    inputs = {data.name: seeded_input(data.name, shapes.get(data.name) or data.shape or ()) for data in net.inputs}
    try:
        theirs = OpenCV(path, weights, net, inputs)
        outputs = theirs.run([name for name in net.outputs if name in theirs.writers])
    except RuntimeError as error:
        return f"not compared: {error}"
    ours = run(net, shapes, inputs, list(outputs))
    worst = {name: difference(ours[name], outputs[name]) for name in outputs}
    if not worst:
        return "not compared: OpenCV gives none of the outputs"
    if max(worst.values()) <= TOLERANCE:
        return "agrees"
    name = max(worst, key=lambda one: worst[one])
    return f"differs: {name} by {worst[name]:.2g}; {_blamed(net, shapes, inputs, theirs)}"


def _blamed(net: Net, shapes: Mapping[str, Sequence[int]], inputs: Arrays, theirs: OpenCV) -> str:
    """The first layer whose answers differ though its bottoms agree, and who is right by its formula."""
    tensors = [top for layer in net.layers for top in layer.tops[:1] if top in theirs.writers]
    ours = {**inputs, **run(net, shapes, inputs, tensors)}
    try:
        others = theirs.run(tensors)
    except RuntimeError as error:
        return f"OpenCV does not give what is between: {error}"
    for layer in net.layers:
        top = layer.tops[0] if layer.tops else ""
        if top not in others or difference(ours[top], others[top]) <= TOLERANCE:
            continue
        if any(bottom not in ours for bottom in layer.bottoms):
            continue
        formula = formulas.FORMULAS.get(layer.type)
        where = f"first at {layer.name} ({layer.type})"
        if formula is None:
            return f"{where}, for which there is no formula here"
        expected = formula(layer, [ours[bottom] for bottom in layer.bottoms])
        right = [who for who, found in (("ours", ours[top]), ("OpenCV", others[top]))
                 if difference(found, expected) <= TOLERANCE]  # fmt: skip
        return f"{where}: right by its formula: {' and '.join(right) or 'neither'}"
    return "no single layer differs: rounding adds up"


class OpenCV:
    """OpenCV's importer on the original prototxt and the seeded weights."""

    def __init__(self, path: Path, weights: Mapping[str, Sequence[np.ndarray]], net: Net, inputs: Arrays) -> None:
        """Raises RuntimeError, with OpenCV's reason, if it cannot read the network."""
        import cv2

        self.error = (cv2.error, SystemError)
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "seeded.caffemodel"
            write_caffemodel(file, weights, types={layer.name: layer.type for layer in net.layers})
            try:
                self.net = cv2.dnn.readNetFromCaffe(str(path), str(file))
                self.net.enableFusion(False)
                for name, values in inputs.items():
                    self.net.setInput(values, name)
            except self.error as error:
                raise RuntimeError(_reason(error)) from None
        known = set(self.net.getLayerNames())
        self.writers = {top: layer.name for layer in net.layers for top in layer.tops[:1] if layer.name in known}

    def run(self, tensors: Sequence[str]) -> Arrays:
        """Tensors by name."""
        try:
            found = self.net.forward([self.writers[name] for name in tensors]) if tensors else []
            return {name: np.array(values) for name, values in zip(tensors, found, strict=True)}
        except self.error as error:
            raise RuntimeError(_reason(error)) from None


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"OpenCV refuses: {lines[-1][-150:].strip() if lines else error.__class__.__name__}"


def run(net: Net, shapes: Mapping[str, Sequence[int]], inputs: Arrays, outputs: Sequence[str]) -> Arrays:
    """The converted network's tensors in ONNX Runtime."""
    import onnxruntime

    if not outputs:
        return {}
    try:
        converted = conversion.build(net, outputs=outputs, input_shapes=shapes)
    except ConversionError as error:
        raise RuntimeError(str(error)) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    data = model.in_memory(converted.draft, {}).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    fed = {one.name: inputs[one.name] for one in session.get_inputs()}
    return dict(zip(names, session.run(None, fed), strict=True))


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, as a share of the largest value; infinite for other sizes or no numbers."""
    if one.size != other.size:
        return float("inf")
    apart = np.abs(one.reshape(-1).astype(np.float64) - other.reshape(-1))
    share = float(apart.max(initial=0) / max(float(np.abs(other).max(initial=0)), 1e-6))
    return share if np.isfinite(share) else float("inf")


def seeded(name: str, type: str, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Weights under which signals neither die nor blow up, always the same for a layer's name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if type == "BatchNorm":
        mean, variance, *rest = (rng.uniform(0.5, 1.5, shape).astype(np.float32) for shape in shapes)
        return [mean - 1, variance, np.ones_like(rest[0]), *rest[1:]]
    blobs = []
    for shape in shapes:
        spread = (2 / max(1, int(np.prod(shape[1:])))) ** 0.5 if len(shape) > 1 else 0.05
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(spread)
        blobs.append(values + 1 if type in ("Scale", "BN") and not blobs else values)
    return blobs


def seeded_input(name: str, shape: Sequence[int]) -> np.ndarray:
    """A seeded input; of Faster R-CNN's im_info, the size of an image."""
    if name == "im_info":
        return np.array([[shape[0] and 224, 224, 1]], np.float32)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
