"""What tests of explainers share: images, how a network sees them, and one run of a model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime

from camrt.preprocess import Preprocess
from tests.camrt.classifiers import SIDE

SIZE = 20
PREPROCESS = Preprocess(size=SIZE, crop=SIDE, mean=(104.0, 117.0, 123.0))


def images(count: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], names: list[str] | None = None) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(names, dict(feeds)))


def with_output(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    for name in names:
        extended.graph.output.append(onnx.ValueInfoProto(name=name))
    return extended
