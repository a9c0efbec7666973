"""Upgrade V1 messages (2013 to 2014) to the current form, like Caffe's src/caffe/util/upgrade_proto.cpp."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import Message

from converters.errors import ConversionError
from converters.schema import caffe_pb2

_V1Type = caffe_pb2.V1LayerParameter.LayerType

# Current names of V1 types that are not the capitalized words.
_TYPE_NAMES = {
    "ABSVAL": "AbsVal",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "LRN": "LRN",
    "MVN": "MVN",
    "NONE": "",
    "PRELU": "PReLU",
    "RELU": "ReLU",
    "ROI_POOLING": "ROIPooling",
    "SMOOTH_L1_LOSS": "SmoothL1Loss",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "TANH": "TanH",
    # C3D's
    "CONVOLUTION3D": "Convolution3D",
    "DECONVOLUTION3D": "Deconvolution3D",
    "POOLING3D": "Pooling3D",
    "VOXEL_SOFTMAX": "Softmax",
    "VOXEL_SOFTMAX_LOSS": "SoftmaxWithLoss",
}
_OWN_FIELDS = {"layer", "type", "blobs", "param", "blob_share_mode", "blobs_lr", "weight_decay"}


def upgrade(net: caffe_pb2.NetParameter, file: str, words: Mapping[int, str] | None = None) -> caffe_pb2.NetParameter:
    """Upgrade a network to `layer` messages.

    Args:
        net: A network in V1 or V2 form. Not changed.
        file: The file name for errors.
        words: V1 layer -> its type, if a fork added it: ``"VIDEO_DATA"`` becomes ``"VideoData"``.

    Raises:
        ConversionError: The file mixes both forms, or has the V0 form of 2013.
    """
    if not net.layers:
        return net
    if net.layer:
        raise ConversionError("has both `layer` and `layers`, expected one of the two", file=file)
    upgraded = caffe_pb2.NetParameter()
    upgraded.CopyFrom(net)
    del upgraded.layers[:]
    for index, layer in enumerate(net.layers):
        _refuse_v0(layer, index, file)
        word = (words or {}).get(index) or _V1Type.Name(layer.type)
        _upgrade_layer(layer, word, upgraded.layer.add())
    return upgraded


def _refuse_v0(layer: caffe_pb2.V1LayerParameter, index: int, file: str) -> None:
    if layer.HasField("layer"):
        raise ConversionError(
            "is in the V0 form of 2013 (`layers { layer { ... } }`), which Caffe replaced in 2014. "
            "Expected `layers` (V1) or `layer` (V2): Caffe's tools/upgrade_net_proto_text or "
            "upgrade_net_proto_binary rewrites it",
            layer=f"{layer.layer.name or index} ({layer.layer.type})",
            file=file,
        )


def _upgrade_layer(old: caffe_pb2.V1LayerParameter, word: str, new: caffe_pb2.LayerParameter) -> None:
    for field, value in old.ListFields():
        if field.name in _OWN_FIELDS:
            continue
        if isinstance(value, Message):
            getattr(new, field.name).CopyFrom(value)
        elif hasattr(value, "extend"):
            getattr(new, field.name).extend(value)
        else:
            setattr(new, field.name, value)
    new.type = _type_name(word)
    count = max(len(old.param), len(old.blob_share_mode), len(old.blobs_lr), len(old.weight_decay))
    for index in range(count):
        spec = new.param.add()
        if index < len(old.param):
            spec.name = old.param[index]
        if index < len(old.blob_share_mode):
            mode = caffe_pb2.V1LayerParameter.DimCheckMode.Name(old.blob_share_mode[index])
            spec.MergeFrom(caffe_pb2.ParamSpec(share_mode=mode))
        if index < len(old.blobs_lr):
            spec.lr_mult = old.blobs_lr[index]
        if index < len(old.weight_decay):
            spec.decay_mult = old.weight_decay[index]


def _type_name(name: str) -> str:
    if name in _TYPE_NAMES:
        return _TYPE_NAMES[name]
    return "".join(word.capitalize() for word in name.split("_"))
