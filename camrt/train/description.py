"""The network beside its snapshots: a prototxt from which `camrt convert` and `camrt explain` know all they need.

It is the network of the TEST phase, with the transformation that the images really had: that of the data layer, of
``--resize``, or the default for the photographs of ``--data``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from google.protobuf import text_format

from camrt.errors import CamrtError
from camrt.train.data.database import DatumSource
from camrt.train.data.loading import DataLoaderSpec
from camrt.train.data.streams import ImageStream
from converters.net import Net
from converters.schema.caffe_pb2 import LayerParameter, NetParameter

NET = "_net.prototxt"


def description(net: Net, spec: DataLoaderSpec) -> str:
    """Return the prototxt of a network.

    Args:
        net: The network, read for the TEST phase and with its losses; or the one that is trained.
        spec: Its data.
    """
    message = NetParameter(name=net.name)
    streams = {stream.image: stream for stream in spec.streams if isinstance(stream, ImageStream)}
    for data in net.data:
        stream = streams.get(data.tops[0])
        message.layer.append(data.params if stream is None else _data_layer(data.params, stream))
    given = {top for layer in net.data for top in layer.tops}
    for declared in net.inputs:  # by the fields input and input_dim of the network
        if declared.name not in given:
            layer = LayerParameter(name=declared.name, type="Input", top=[declared.name])
            layer.input_param.shape.add(dim=declared.shape or ())
            stream = streams.get(declared.name)
            message.layer.append(layer if stream is None else _data_layer(layer, stream))
    message.layer.extend(layer.params for layer in net.layers)
    for param in message.layer:
        param.ClearField("include")  # nothing is left out any more
        param.ClearField("exclude")
        param.ClearField("phase")
    return text_format.MessageToString(message)


def _data_layer(param: LayerParameter, stream: ImageStream) -> LayerParameter:
    """Return an ImageData layer for the images of a stream. Its list is only named: nobody reads it."""
    source, transform = stream.feed.source, stream.feed.transform
    layer = LayerParameter(name=param.name, type="ImageData", top=param.top)
    data, changed = layer.image_data_param, layer.transform_param
    data.source, data.batch_size = source.name, stream.batch_size
    channels, height, width = stream.feed.shape()
    size = transform.resize
    if size is None and transform.crop is None:
        size = height, width
    elif size is None:
        size = _size_in_database(stream)
    if size is not None:
        data.new_height, data.new_width = size
    data.is_color = channels == 3
    changed.scale = transform.scale
    if transform.crop is not None:
        changed.crop_h, changed.crop_w = transform.crop
        if transform.crop[0] == transform.crop[1]:
            changed.crop_size = transform.crop[0]
            changed.ClearField("crop_h")
            changed.ClearField("crop_w")
    if transform.has_mean_image:
        changed.mean_file = str(Path(transform.source).absolute())
    elif transform.mean is not None:
        changed.mean_value.extend(float(value) for value in transform.mean.reshape(-1))
    return layer


def _size_in_database(stream: ImageStream) -> tuple[int, int] | None:
    """Return the height and width of the first image of a database, before the crop; None for other sources."""
    if not isinstance(stream.feed.source, DatumSource):
        return None
    found, _ = stream.feed.source.read(np.zeros(1, np.int64))
    if isinstance(found[0], CamrtError):
        return None
    height, width = found[0].shape[:2]
    return int(height), int(width)
