"""A small network, and random weights for any network."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from converters.conversion import weight_shapes
from converters.net import read_net
from converters.writer import write_caffemodel

NET = """
name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 3 dim: 16 dim: 16 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 8 kernel_size: 3 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: AVE global_pooling: true } }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param { num_output: 5 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""


def write_random(prototxt: Path, caffemodel: Path) -> None:
    generator = np.random.default_rng(7)
    shapes = weight_shapes(read_net(prototxt))
    write_caffemodel(caffemodel, {n: [generator.normal(0, 0.2, s) for s in each] for n, each in shapes.items()})
