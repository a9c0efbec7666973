"""The forks of Caffe that people's networks come from: how to tell one, and what of it is known to convert."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from converters.errors import ConversionError
from converters.schema import caffe_pb2
from converters.textformat import UnknownField


@dataclass(frozen=True)
class Fork:
    """A fork of Caffe.

    Attributes:
        name: What ``--fork`` takes.
        repository: Where it lives, or the networks that came with it.
        marks: What only its networks have: layer types, modules of Python layers, fields as ``"message.field"`` and
            values as ``"field=VALUE"``, separated by blanks.
        works: A network of it that is known to convert; the census (`scripts/census.py`) says so.
        has_ceil_mode: Whether field 13 of its pooling is `ceil_mode`, and not BVLC's `round_mode`.
    """

    name: str
    repository: str
    marks: str = ""
    works: str = ""
    has_ceil_mode: bool = False


FORKS = (
    Fork("bvlc", "BVLC/caffe"),
    Fork(
        "nvidia", "NVIDIA/caffe",
        "batch_norm_param.scale_bias layer.forward_type layer.backward_type DetectNetTransformation "
        "caffe.layers.detectnet default_forward_type default_backward_type TRT trt_param",
        "models/alexnet_owt/train_val_fp16.prototxt",
    ),
    Fork(
        "intel", "intel/caffe",
        "engine=MKL2017 engine=MKLDNN quantization_param convolution_param.conv_algorithm EvalDetection "
        "bn_stats_batch_size",
        "models/intel_optimized_models/benchmark/googlenet/deploy.prototxt",
    ),
    Fork(
        "ssd", "weiliu89/caffe",
        "AnnotatedData PriorBox DetectionOutput MultiBoxLoss DetectionEvaluate",
        "MobileNetSSD_deploy.prototxt of chuanqi305/MobileNet-SSD",
    ),
    Fork(
        "textboxes", "MhLiao/TextBoxes",
        "",
        "examples/TextBoxes/deploy.prototxt",
    ),
    Fork(
        "faster-rcnn", "rbgirshick/py-faster-rcnn",
        "rpn.proposal_layer rpn.anchor_target_layer rpn.proposal_target_layer roi_data_layer.layer "
        "dropout_param.scale_train",
        "models/pascal_voc/ZF/faster_rcnn_alt_opt/faster_rcnn_test.pt",
    ),
    Fork(
        "rfcn", "daijifeng001/R-FCN",
        "PSROIPooling BoxAnnotatorOHEM SmoothL1LossOHEM normalization=PRE_FIXED",
        "models/rfcn_prototxts/ResNet-50L_OHEM_res3a/test.prototxt",
    ),
    Fork("pvanet", "sanghoon/pva-faster-rcnn", "Proposal proposal_param", "models/pvanet_obsolete/comp/original.pt"),
    Fork(
        "caffe-model", "soeaver/caffe-model and its py-RFCN-priv, and shicai/DenseNet-Caffe",
        "pooling_param.ceil_mode interp_param.use_blob_size SegAccuracy SeLu SeLuDropout",
        "DenseNet_121.prototxt of shicai/DenseNet-Caffe",
        has_ceil_mode=True,
    ),
    Fork(
        "mobilenet-yolo", "eric612/MobileNet-YOLO",
        "Yolov3 Yolov3DetectionOutput YoloDetectionOutput RegionLoss YoloSeg LaneData SegmentationEvaluate",
        "benchmark/yolov3_lite_deploy_inference.prototxt",
    ),
    Fork(
        "c3d", "facebookarchive/C3D",
        "Convolution3D Pooling3D Deconvolution3D VideoWithVoxelTruthData VideoSegmentationData VoxelSoftmax",
        "C3D-v1.0/examples/c3d_feature_extraction/prototxt/c3d_fbvideo_feature_extractor_frm.prototxt",
    ),
    Fork(
        "segnet", "alexgkendall/caffe-segnet",
        "DenseImageData dropout_param.sample_weights_test loss_param.class_weighting loss_param.weight_by_label_freqs",
        "Example_Models/segnet_model_driving_webdemo.prototxt of alexgkendall/SegNet-Tutorial",
    ),
    Fork("pspnet", "hszhao/PSPNet", "bn_param.slope_filler", "evaluation/prototxt/pspnet50_ADE20K_473.prototxt"),
    Fork("fcn", "longjon/caffe of branch future, which HED and FCN were trained with", "ImageLabelmapData",
         "nyud-fcn32s-color-d/test.prototxt of shelhamer/fcn.berkeleyvision.org"),
    Fork("crfasrnn", "torrvision/crfasrnn", "MultiStageMeanfield"),
    Fork(
        "caffe-windows", "happynear/caffe-windows",
        "Insanity MultiLabelImageData normalize_param.normalize_type Flip",
        "caffe_proto/CASIA_deploy.prototxt of happynear/FaceVerification",
    ),
    Fork("sphereface", "wy1iu/sphereface", "MarginInnerProduct",
         "train/model_lib/Sphereface-64/sphereface_64_deploy.prototxt"),
    Fork("senet", "hujie-frank/SENet", "Axpy", "models/SE-ResNet-50.prototxt"),
    Fork("tsn", "yjxiong/caffe", "video_data_param.modality transform_param.more_fix_crop bn_param.engine",
         "models/hmdb51/tsn_bn_inception_rgb_deploy.prototxt of yjxiong/temporal-segment-networks"),
    Fork("shufflenet", "farmingyard/ShuffleNet", "ShuffleChannel", "ShuffleNet of wuyongchn/shufflenet-caffe"),
    Fork("flownet2", "lmb-freiburg/flownet2", "Correlation FlowWarp Resample Accum CustomData DataAugmentation"),
)  # fmt: skip
_BY_NAME = {fork.name: fork for fork in FORKS}


class Described(Protocol):
    """What a layer shows of its origin."""

    @property
    def type(self) -> str:
        """Its type."""

    @property
    def params(self) -> caffe_pb2.LayerParameter:
        """Its message."""

    @property
    def unknown(self) -> tuple[UnknownField, ...]:
        """Its fields that the schema does not know."""


def check(name: str) -> None:
    """Refuse a name that is no fork's; an empty one names none.

    Raises:
        ConversionError: There is no such fork.
    """
    if name and name not in _BY_NAME:
        near = difflib.get_close_matches(str(name), _BY_NAME, n=1)
        hint = f": did you mean {near[0]!r}?" if near else ""
        raise ConversionError(f"found the fork {name!r}, expected one of {', '.join(_BY_NAME)}{hint}")


def has_ceil_mode(name: str) -> bool:
    """Whether a fork's pooling has `ceil_mode` where BVLC's has `round_mode`."""
    return name in _BY_NAME and _BY_NAME[name].has_ceil_mode


def of_type(type: str) -> str:
    """The forks whose networks alone have a layer type, by their repositories; empty for none."""
    return ", ".join(fork.repository for fork in FORKS if type in fork.marks.split())


def seeming(layers: Iterable[Described], unknown: Iterable[UnknownField] = ()) -> tuple[Fork, list[str]] | None:
    """The fork that a network seems to be of, and by which marks.

    Args:
        layers: The network's layers.
        unknown: Unknown fields of the network itself.

    Returns:
        The fork with the most marks, or None for a network without any.
    """
    seen = dict.fromkeys(mark for layer in layers for mark in _marks_of(layer))
    seen |= dict.fromkeys(one.name for one in unknown if not one.path)
    best = max(((len(_shared(fork, seen)), -rank) for rank, fork in enumerate(FORKS)), default=(0, 0))
    if not best[0]:
        return None
    fork = FORKS[-best[1]]
    return fork, _shared(fork, seen)


def _shared(fork: Fork, seen: Iterable[str]) -> list[str]:
    marks = set(fork.marks.split())
    return [mark for mark in seen if mark in marks]


def _marks_of(layer: Described) -> Iterator[str]:
    yield layer.type
    if layer.type == "Python":
        module = layer.params.python_param.module
        yield from (module, module.rpartition(".")[0])
    for field, value in layer.params.ListFields():
        if field.message_type is not None and field.name.endswith("_param"):
            yield from (f"{field.name}.{inner.name}" for inner, _ in value.ListFields())
    for one in layer.unknown:
        yield one.name
        yield f"{one.path[-1][0] if one.path else 'layer'}.{one.name}"
        yield f"{one.name}={one.value}"


def hint(layers: Iterable[Described], unknown: Iterable[UnknownField] = ()) -> str:
    """One line on the fork that a refused network seems to be of; empty where nothing tells."""
    found = seeming(layers, unknown)
    if found is None:
        return ""
    fork, marks = found
    works = f"known to convert of it: {fork.works}" if fork.works else "no network of it is known to convert whole"
    listed = ", ".join(marks[:3]) + (", ..." if len(marks) > 3 else "")
    return f"The network seems to be of {fork.repository} ({listed}); {works}"
