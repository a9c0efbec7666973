#!/usr/bin/env python3
"""Detectors at full size: their answers beside those of their layers in NumPy, and the time of each part.

usage: python benchmarks/detectors.py [--size 600x1000] [--runs 3] PROTOTXT...

Each network gets seeded weights and runs in ONNX Runtime. The layers that only forks of Caffe have (proposals, pooled
regions, detections) are then computed in NumPy, one from the other, and what follows them by ONNX Runtime from NumPy's
answers. The table says how far the network's own outputs are from that, and how long its parts take.

Random weights are scaled so that scores are spread and boxes stay near their anchors: saturated scores are equal, and
of equal scores any may come first.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx.utils
import onnxruntime
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from converters import ConversionWarning, Layer, Net, convert, read_net
from converters.handlers.proposal import parameters
from tests.converters.detectors import Proposals, psroi_pooled, roi_pooled, yolo_predictions, yolo_rows

PARTS = {"Python": "proposals", "Proposal": "proposals", "ROIPooling": "regions", "PSROIPooling": "regions"}
DETECTIONS = ("YoloDetectionOutput", "Yolov3DetectionOutput")
OURS = (*PARTS, *DETECTIONS)
SPREAD = {"scores": 2.0, "boxes": 0.3}  # standard deviations of the blobs that proposals and detections come from


# -------------------------------------------------------------------------------------------------------- the networks


def seeded(net: Net, factors: Mapping[str, float]) -> Net:
    """The network with weights that keep the variance from layer to layer (He et al. 2015), times a layer's factor."""

    def fill(layer: Layer, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        rng = np.random.default_rng(zlib.crc32(layer.name.encode()))
        if layer.type == "BatchNorm":
            return [np.full(shape, value, np.float32) for shape, value in zip(shapes, (0, 1, 1), strict=True)]
        if layer.type == "Scale":
            return [rng.uniform(0.5, 0.9, shape).astype(np.float32) for shape in shapes[:1]] + [
                (rng.normal(size=shape) * 0.1).astype(np.float32) for shape in shapes[1:]
            ]
        weights, *rest = shapes
        values = rng.standard_normal(weights, np.float32)
        values *= np.float32(np.sqrt(2 / np.prod(weights[1:])) * factors.get(layer.name, 1.0))
        return [values, *((rng.normal(size=shape) * 0.05).astype(np.float32) for shape in rest)]

    return replace(net, layers=tuple(replace(layer, filler=fill) for layer in net.layers))


def sized(net: Net, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """The shapes of its inputs with an image of this size, where the network takes any."""
    if not any(layer.type in PARTS for layer in net.layers):
        size = next(data.shape for data in net.inputs if data.shape)[2:4]
    shapes = {}
    for data in net.inputs:
        if data.name == "im_info":
            shapes[data.name] = data.shape or (1, 3)
        elif data.name == "rois":
            shapes[data.name] = (300, 5)
        else:
            shapes[data.name] = (1, 3, *size)
    return shapes


def inputs_of(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """A smooth random image, its size, and regions where the network is given them."""
    rng = np.random.default_rng(seed)
    inputs = {}
    height, width = next(shape[2:] for shape in shapes.values() if len(shape) == 4 and shape[1] == 3)
    for name, shape in shapes.items():
        if name == "im_info":
            inputs[name] = np.array([[height, width, 1.6, 1.6, 1, 1][: int(np.prod(shape))]], np.float32).reshape(shape)
        elif name == "rois":
            low = rng.uniform(0, [width - 64, height - 64], (shape[0], 2))
            high = np.minimum(low + rng.uniform(16, 400, low.shape), [width - 1, height - 1])
            inputs[name] = np.concatenate([np.zeros((shape[0], 1)), low, high], axis=1).astype(np.float32)
        else:
            coarse = rng.normal(size=(1, 3, height // 8 + 1, width // 8 + 1))
            image = coarse.repeat(8, axis=2).repeat(8, axis=3)[:, :, :height, :width]
            inputs[name] = (image + 0.3 * rng.normal(size=shape)).astype(np.float32)
    return inputs


def balanced(net: Net, inputs: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """Factors for the layers that proposals and detections are computed from, so that their answers are spread."""
    writers = {top: layer for layer in net.layers for top in layer.tops}
    wanted: dict[str, tuple[Layer, float]] = {}
    for layer in net.layers:
        if layer.type in DETECTIONS:
            targets = [(blob, 1.5) for blob in layer.bottoms]
        elif PARTS.get(layer.type) == "proposals":
            targets = [(layer.bottoms[0], SPREAD["scores"]), (layer.bottoms[1], SPREAD["boxes"])]
        else:
            continue
        for blob, spread in targets:
            writer = writers[blob]
            while writer.type not in ("Convolution", "InnerProduct"):
                writer = writers[writer.bottoms[0]]
            wanted[writer.tops[0]] = (writer, spread)
    if not wanted:
        return {}
    session = session_of(quietly_converted(seeded(net, {}), list(wanted), shapes).SerializeToString())
    answers = session.run(list(wanted), {one.name: inputs[one.name] for one in session.get_inputs()})
    return {
        writer.name: spread / float(answer.std())
        for answer, (writer, spread) in zip(answers, wanted.values(), strict=True)
    }


def quietly_converted(net: Net, outputs: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    needed = set(outputs)
    for layer in reversed(net.layers):
        if needed.intersection(layer.tops):
            needed.update(layer.bottoms)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        sizes = {name: shape for name, shape in shapes.items() if name in needed}
        return convert(net, outputs=outputs, input_shapes=sizes)


def session_of(model: Path | bytes, profile: str = "") -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


# ----------------------------------------------------------------------------------------------------- NumPy's answers


def in_numpy(layer: Layer, bottoms: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A layer's tops, from its bottoms."""
    if PARTS.get(layer.type) == "proposals":
        boxes, scores = options_of(layer).find(*bottoms)
        rois = np.concatenate([np.zeros((len(boxes), 1)), boxes], axis=1).astype(np.float32)
        column = scores[:, None] if layer.type == "Python" else scores
        return [rois, column.astype(np.float32)][: len(layer.tops)]
    if layer.type == "ROIPooling":
        pooling = layer.params.roi_pooling_param
        return [roi_pooled(*bottoms, (pooling.pooled_h, pooling.pooled_w), pooling.spatial_scale)]
    if layer.type == "PSROIPooling":
        param = layer.params.psroi_pooling_param
        return [psroi_pooled(*bottoms, param.spatial_scale, param.output_dim, param.group_size)]
    param = layer.params.yolov3_detection_output_param
    if layer.type == "YoloDetectionOutput":
        param = layer.params.yolo_detection_output_param
    anchors = np.array(param.biases).reshape(-1, 2)
    found = []
    for index, maps in enumerate(bottoms):
        size, chosen = maps.shape[:1:-1], anchors[: param.num_box]
        if layer.type == "Yolov3DetectionOutput":
            size = [side * param.anchors_scale[index] for side in size]
            step = len(param.mask) // len(bottoms)
            chosen = anchors[list(param.mask[index * step : index * step + param.num_box])]
        version = 2 if layer.type == "YoloDetectionOutput" else 3
        found.append(yolo_predictions(maps[0], chosen.tolist(), size, param.confidence_threshold, version))
    return [yolo_rows([np.concatenate(found)], param.nms_threshold)]


def options_of(layer: Layer) -> Proposals:
    """The parameters of a proposal layer; of the Python layer, with py-faster-rcnn's test configuration."""
    if layer.type == "Python":
        param = parameters(layer)
        given = {name: param[name] for name in ("ratios", "scales") if name in param}
        return Proposals(stride=param["feat_stride"][0], **given)
    param = layer.params.proposal_param
    return Proposals(
        param.feat_stride, param.base_size, [float(np.float32(one)) for one in param.ratio], list(param.scale),
        param.pre_nms_topn, param.post_nms_topn, param.nms_thresh, param.min_size, is_python=False,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- comparison


@dataclass
class Result:
    """What a network gave: the differences of its tops and outputs, and milliseconds of its parts."""

    found: str
    tops: dict[str, float]
    outputs: dict[str, float]
    milliseconds: dict[str, float]


def compare(prototxt: Path, size: tuple[int, int], runs: int) -> Result:
    """Run a network, and once more with its fork's layers in NumPy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        net = read_net(prototxt)
    shapes = sized(net, size)
    inputs = inputs_of(shapes)
    ours = [layer for layer in net.layers if layer.type in OURS]
    net = seeded(net, balanced(net, inputs, shapes))
    blobs = dict.fromkeys(blob for layer in ours for blob in (*layer.tops, *layer.bottoms) if blob not in shapes)
    outputs = [*net.outputs, *(blob for blob in blobs if blob not in net.outputs)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        onnx.save(quietly_converted(net, outputs, shapes), file)
        session = session_of(file, profile=str(Path(folder) / "profile"))
        fed = {one.name: inputs[one.name] for one in session.get_inputs()}
        for _ in range(runs):
            answers = dict(zip(outputs, session.run(outputs, fed), strict=True))
        milliseconds = times_of(Path(session.end_profiling()), ours, runs)
        del session
        known = with_numpy(ours, fed, answers)
        tops = {f"{one.name}.{top}": difference(answers[top], known[top]) for one in ours for top in one.tops}
        computed = heads(file, net, ours, known)
    found = f"{len(known[rois])} regions" if (rois := regions_of(ours)) else f"{known[ours[-1].tops[0]].shape[2]} boxes"
    different = {name: difference(answers[name], value) for name, value in computed.items()}
    return Result(found, tops, different, milliseconds)


def with_numpy(
    ours: Sequence[Layer], fed: Mapping[str, np.ndarray], answers: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The tops of the fork's layers, one computed from the other."""
    known = dict(fed)
    for layer in ours:
        bottoms = [known[blob] if blob in known else answers[blob] for blob in layer.bottoms]
        known |= zip(layer.tops, in_numpy(layer, bottoms), strict=True)
    return known


def regions_of(ours: Sequence[Layer]) -> str:
    """The blob of the proposed regions."""
    return next((layer.tops[0] for layer in ours if PARTS.get(layer.type) == "proposals"), "")


def heads(file: Path, net: Net, ours: Sequence[Layer], known: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The network's outputs from NumPy's tops: what follows them is a model of its own."""
    computed = {top for layer in ours for top in layer.tops}
    behind = set(computed)
    for layer in net.layers:
        if behind.intersection(layer.bottoms):
            behind.update(layer.tops)
    outputs = [name for name in net.outputs if name in behind - computed]
    found = {name: known[name] for name in net.outputs if name in computed}
    if outputs:
        read = {blob for layer in net.layers if layer.type not in OURS for blob in layer.bottoms}
        part = file.with_name("head.onnx")
        onnx.utils.extract_model(file, part, sorted(computed & read), outputs, check_model=False)
        session = session_of(part)
        fed = {one.name: known[one.name] for one in session.get_inputs()}
        found |= zip(outputs, session.run(outputs, fed), strict=True)
    return found


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest, relative to the largest number; infinite where the shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max())) if found.size else 0.0


def times_of(profile: Path, ours: Sequence[Layer], runs: int) -> dict[str, float]:
    """Milliseconds of a run by part, from ONNX Runtime's profile. The first run, which warms up, does not count."""
    totals: dict[str, list[float]] = defaultdict(list)
    for event in json.loads(profile.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            node = event["name"].removesuffix("_kernel_time")
            part = next(
                (
                    PARTS.get(one.type, "detections")
                    for one in ours
                    if node == one.name or node.startswith(f"{one.name}/")
                ),
                "network",
            )
            totals[part].append(event["dur"] / 1000)
            totals["all"].append(event["dur"] / 1000)
    kept = {}
    for part, durations in totals.items():
        each = len(durations) // runs  # the same nodes in every run
        kept[part] = float(
            np.median([sum(durations[run * each : (run + 1) * each]) for run in range(min(1, runs - 1), runs)])
        )
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prototxt", nargs="+", type=Path)
    parser.add_argument("--size", default="600x1000", help="height x width of the image for networks that take any")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    height, width = map(int, arguments.size.split("x"))
    table = Table(
        "network",
        "found",
        "largest difference of a layer",
        "of an output",
        "all, ms",
        "proposals",
        "regions",
        "detections",
    )
    for prototxt in arguments.prototxt:
        result = compare(prototxt, (height, width), arguments.runs)
        cells = [f"{max(values.values(), default=0):.1e}" for values in (result.tops, result.outputs)]
        shares = [share(result.milliseconds, part) for part in ("proposals", "regions", "detections")]
        name = "/".join(prototxt.parts[-3:])
        table.add_row(name, result.found, *cells, f"{result.milliseconds['all']:.0f}", *shares)
    Console(width=160).print(table)


def share(milliseconds: Mapping[str, float], part: str) -> str:
    return f"{milliseconds[part]:.1f} ({milliseconds[part] / milliseconds['all']:.1%})" if part in milliseconds else ""


if __name__ == "__main__":
    main()
