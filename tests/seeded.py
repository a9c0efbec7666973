"""Caffemodels with seeded random weights: full-size networks for tests that no one has to download."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.schema import caffe_pb2
from converters.writer import write_caffemodel


@dataclass(frozen=True)
class SeededLayer:
    """A layer with weights: He-normal times ``gain``, biases N(0, 0.05)."""

    name: str
    type: str
    shapes: tuple[tuple[int, ...], ...]
    gain: float = 1.0

    def blobs(self, seed: int) -> Iterator[np.ndarray]:
        """The weights, always the same for a seed: float32 of each shape."""
        for index, shape in enumerate(self.shapes):
            rng = np.random.default_rng([seed, zlib.crc32(f"{self.name}/{index}".encode())])
            inputs = math.prod(shape[1:])
            spread = self.gain * (2 / inputs) ** 0.5 if len(shape) > 1 else 0.05
            yield rng.standard_normal(shape, dtype=np.float32) * np.float32(spread)


@dataclass(frozen=True)
class SeededModel:
    """The layers of a network, and the seed of its weights."""

    name: str
    seed: int
    layers: tuple[SeededLayer, ...]

    @classmethod
    def of_table(cls, table: dict[str, Any]) -> SeededModel:
        """From a shapes.json of the reference folder."""
        layers = (
            SeededLayer(one["name"], one["type"], tuple(map(tuple, one["blobs"])), one.get("gain", 1))
            for one in table["layers"]
        )
        return cls(table["name"], table["seed"], tuple(layers))

    @classmethod
    def of_network(cls, network: caffe_pb2.NetParameter, seed: int) -> SeededModel:
        """For convolutions, chained and concatenated, with one InnerProduct behind global pooling."""
        channels = {network.input[0]: network.input_shape[0].dim[1] if network.input_shape else network.input_dim[1]}
        layers = []
        for layer in network.layer:
            inputs = outputs = sum(channels[bottom] for bottom in layer.bottom)
            if layer.type == "Convolution":
                param = layer.convolution_param
                outputs, (kernel,) = param.num_output, param.kernel_size
                weight: tuple[int, ...] = (outputs, inputs // param.group, kernel, kernel)
                layers.append(SeededLayer(layer.name, layer.type, (weight, (outputs,))))
            elif layer.type == "InnerProduct":
                outputs = layer.inner_product_param.num_output
                layers.append(SeededLayer(layer.name, layer.type, ((outputs, inputs), (outputs,))))
            channels.update(dict.fromkeys(layer.top, outputs))
        return cls(network.name, seed, tuple(layers))

    def write(self, path: Path, *, v1: bool = False) -> Path:
        """Write a `.caffemodel`, with ``v1`` in the format before 2015."""
        blobs = {layer.name: layer.blobs(self.seed) for layer in self.layers}
        types = {layer.name: layer.type for layer in self.layers}
        write_caffemodel(path, blobs, types=types, name=self.name, v1=v1)
        return path
