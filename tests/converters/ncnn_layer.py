"""A single layer in ncnn, as a second opinion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest


def ncnn_layer(
    layer: str, params: str, inputs: Mapping[str, np.ndarray], outputs: tuple[str, ...], folder: Path
) -> list[np.ndarray]:
    """What ncnn's layer answers in single precision.

    Args:
        layer: Its type in ncnn.
        params: Its parameters as ncnn writes them, such as ``"0=2 1=3"``.
        inputs: Name -> array without the batch, in the layer's order.
        outputs: The names of the tops.
        folder: Where the description is written.
    """
    ncnn = pytest.importorskip("ncnn")
    lines = [f"Input {name} 0 1 {name}" for name in inputs]
    lines.append(f"{layer} l {len(inputs)} {len(outputs)} {' '.join(inputs)} {' '.join(outputs)} {params}")
    counts = f"{len(lines)} {len(inputs) + len(outputs)}"
    (folder / "net.param").write_text("\n".join(["7767517", counts, *lines, ""]))
    (folder / "net.bin").write_bytes(b"")
    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    assert net.load_param(str(folder / "net.param")) == 0
    assert net.load_model(str(folder / "net.bin")) == 0
    extractor = net.create_extractor()
    for name, array in inputs.items():
        assert extractor.input(name, ncnn.Mat(np.ascontiguousarray(array, np.float32)).clone()) == 0
    answers = []
    for name in outputs:
        code, answer = extractor.extract(name)
        assert code == 0
        answers.append(np.array(answer, copy=True))
    return answers
