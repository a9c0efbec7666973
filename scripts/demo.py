#!/usr/bin/env python3
"""What `make demo` shows: GoogLeNet-CAM, from Caffe's files to answers of ONNX Runtime, without a download.

The released weights cannot be shipped, so the network gets random ones: its answers mean nothing, but the way from a
prototxt and a caffemodel to scores is the whole way.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from converters import zoo
from converters.conversion import weight_shapes
from converters.net import read_net
from converters.writer import write_caffemodel

NAME = "googlenetCAM"
SEED = 2016


def random_weights(prototxt: Path, caffemodel: Path) -> None:
    """Write weights as Caffe's msra filler draws them."""
    generator = np.random.default_rng(SEED)
    layers = {
        layer: [
            generator.standard_normal(shape, np.float32)
            * np.sqrt(2 / max(1, np.prod(shape[1:])) if len(shape) > 1 else 0)
            for shape in shapes
        ]
        for layer, shapes in weight_shapes(read_net(prototxt)).items()
    }
    write_caffemodel(caffemodel, layers, name=NAME)


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="camrt-demo-"))
    prototxt, caffemodel, model = folder / "deploy.prototxt", folder / "random.caffemodel", folder / f"{NAME}.onnx"
    prototxt.write_text(zoo.find(NAME).prototxt())
    print(f"Drawing random weights for {NAME}; the released ones cannot be shipped.")
    random_weights(prototxt, caffemodel)

    command = [Path(__file__).with_name("convert.py"), prototxt, caffemodel, "-o", model, "--outputs", "CAM_conv,prob"]
    print("\n$ python", *(str(part) for part in command), flush=True)
    subprocess.run([sys.executable, *map(str, command)], check=True)

    session = onnxruntime.InferenceSession(model, providers=onnxruntime.get_available_providers())
    images = np.random.default_rng(SEED).uniform(-120, 130, (2, 3, 224, 224)).astype(np.float32)
    session.run(None, {"data": images})  # the first run allocates
    began = time.perf_counter()
    features, scores = session.run(["CAM_conv", "prob"], {"data": images})
    seconds = time.perf_counter() - began
    print(f"\nTwo images through ONNX Runtime ({session.get_providers()[0]}) in {seconds:.2f} s:")
    print(f"  CAM_conv  {features.shape}: the features that class activation maps are made of")
    print(f"  prob      {scores.shape}: sums {scores.sum(axis=1).round(6)}, best classes {scores.argmax(axis=1)}")
    print(f"\nThe model is {model}")


if __name__ == "__main__":
    main()
