"""Small Caffe files, written with the schema's messages: what tests read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from google.protobuf import text_format

from converters.encoding import length_delimited
from converters.schema import caffe_pb2

Blob = np.ndarray | bytes  # an array, or a BlobProto that is encoded already


def input_layer(name: str, *shape: int) -> str:
    """A V2 layer that declares an input."""
    sizes = " ".join(f"dim: {size}" for size in shape)
    return f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {sizes} }} }} }}\n'


def layer(name: str, type: str, bottoms: str = "", tops: str | None = None, params: str = "") -> str:
    """A V2 layer. Blobs are separated by blanks; without tops, the top has the layer's name."""
    blobs = [f'bottom: "{blob}"' for blob in bottoms.split()]
    blobs += [f'top: "{blob}"' for blob in (name if tops is None else tops).split()]
    return f'layer {{ name: "{name}" type: "{type}" {" ".join(blobs)} {params} }}\n'


def network(prototxt: str) -> caffe_pb2.NetParameter:
    """A prototxt as Protocol Buffers' own parser reads it."""
    return text_format.Parse(prototxt, caffe_pb2.NetParameter())


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field of any message."""
    return length_delimited(number, len(content)) + content


def blob(values: np.ndarray) -> bytes:
    """A BlobProto as today's Caffe writes it."""
    shape = caffe_pb2.BlobShape(dim=values.shape)
    return caffe_pb2.BlobProto(shape=shape, data=np.asarray(values, "<f4").tobytes()).SerializeToString()


def caffemodel(net: caffe_pb2.NetParameter, weights: Mapping[str, Sequence[Blob]]) -> bytes:
    """A network as Caffe saves it: its description, with each layer's blobs in the layer."""
    head = caffe_pb2.NetParameter()
    head.CopyFrom(net)
    head.ClearField("layers")
    head.ClearField("layer")
    parts = [head.SerializeToString()]
    for described, layer_field, blobs_field in ((net.layers, 2, 6), (net.layer, 100, 7)):
        for one in described:
            blobs = [each if isinstance(each, bytes) else blob(each) for each in weights.get(one.name, ())]
            encoded = one.SerializeToString() + b"".join(field(blobs_field, each) for each in blobs)
            parts.append(field(layer_field, encoded))
    return b"".join(parts)


def weights_alone(weights: Mapping[str, Sequence[Blob]]) -> bytes:
    """A caffemodel with names and blobs only."""
    names = caffe_pb2.NetParameter(layer=[caffe_pb2.LayerParameter(name=name) for name in weights])
    return caffemodel(names, weights)


def written(path: Path, content: str | bytes) -> Path:
    """The path, with the content in it."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
