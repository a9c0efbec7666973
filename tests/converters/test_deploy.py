"""Networks of forks as they were trained -> as they are used: their data, sampling and measuring layers go."""

from __future__ import annotations

import re

import numpy as np
import pytest

from converters import ConversionError, ConversionWarning, Net, convert, read_net
from converters.reader import parse_prototxt
from tests.caffe_files import input_layer, layer
from tests.converters.one_layer import run

SCORES = layer("scores", "Power", "data", params="power_param { scale: 2 }")


def net_of(text: str, **options: object) -> Net:
    return read_net(parse_prototxt(text, "train.prototxt"), **options)


def doubled(net: Net, shape: tuple[int, ...], **options: object) -> None:
    """The network's only layer doubles its only input."""
    assert [one.name for one in net.inputs] == ["data"]
    model = convert(net, **options)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert [one.name for one in model.graph.output] == ["scores"]
    np.testing.assert_array_equal(run(model, {"data": x})[0], 2 * x)


# ---------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize("type", ["DenseImageData", "ImageLabelmapData", "LaneData", "DataOfTomorrow"])
def test_a_layer_without_bottoms_is_an_input(type: str) -> None:
    text = layer("source", type, tops="data label") + SCORES
    doubled(net_of(text), (2, 3, 4, 5), input_shapes={"data": (1, 3, 4, 5)})
    with pytest.raises(ConversionError, match="--input-shape data="):
        convert(net_of(text))


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ("strange_data_param { batch_size: 2 new_height: 6 new_width: 7 }", (2, 3, 6, 7)),
        ("strange_data_param { batch_size: 2 crop_size: 5 new_height: 6 new_width: 7 }", (2, 3, 5, 5)),
        ("strange_data_param { batch_size: 2 } transform_param { crop_size: 8 }", (2, 3, 8, 8)),
        ("image_data_param { batch_size: 4 new_height: 6 new_width: 7 }", (4, 3, 6, 7)),
    ],
)
def test_sizes_are_taken_from_fields_of_forks(fields: str, size: tuple[int, ...]) -> None:
    text = layer("source", "StrangeData", tops="data label", params=f"{fields} transform_param {{ force_color: true }}")
    text = re.sub(r"transform_param \{ (crop_size: 8) \} transform_param \{", r"transform_param { \1", text)
    net = net_of_quietly(text + SCORES)
    assert net.inputs[0].shape == size
    doubled(net, size)


def net_of_quietly(text: str) -> Net:
    if "strange_data_param" not in text:
        return net_of(text)
    with pytest.warns(ConversionWarning, match="strange_data_param"):
        return net_of(text)


def test_a_type_of_a_fork_in_the_form_of_2014() -> None:
    """Its name becomes today's by the rule that Caffe's own names follow."""
    text = """
    layers { name: "source" type: MCWINDOW_DATA top: "data" top: "label" mcwindow_data_param { crop_size: 4 }
      transform_param { force_gray: true } }
    layers { name: "relu" type: RELU bottom: "data" top: "data" }
    layers { name: "crop" type: ROI_POOLING bottom: "data" top: "pooled" }
    layers { name: "loss" type: SIMILARITY_LOSS bottom: "data" bottom: "label" }
    """
    with pytest.warns(ConversionWarning) as caught:
        net = net_of(text)
    assert [one.type for one in net.data] == ["McwindowData"]
    assert [one.type for one in net.layers] == ["ReLU", "ROIPooling"]
    assert net.inputs[0].shape == (1, 1, 4, 4)
    assert any("cut off: loss (SimilarityLoss)" in str(one.message) for one in caught)


# ----------------------------------------------------------------------------------------------------------- measuring


@pytest.mark.parametrize("type", ["EvalDetection", "SegAccuracy", "SegmentationEvaluate", "RegionLoss", "Yolov3"])
def test_a_network_ends_before_an_unknown_layer_that_measures(type: str) -> None:
    text = layer("source", "Data", tops="data label", params="transform_param { crop_size: 4 force_color: true }")
    text += SCORES + layer("measure", type, "scores label", "a b")
    with pytest.warns(ConversionWarning, match=rf"1 layer\(s\) that measure or train were cut off: measure \({type}\)"):
        net = net_of(text)
    doubled(net, (1, 3, 4, 4))


def test_a_network_ends_before_an_unknown_layer_that_reads_a_label() -> None:
    text = layer("source", "Data", tops="data label", params="transform_param { crop_size: 4 force_color: true }")
    text += SCORES + layer("odd", "Unheard", "scores label", "odd") + layer("quiet", "Silence", "odd", "")
    with pytest.warns(ConversionWarning, match=r"cut off: odd \(Unheard\)"):
        net = net_of(text)
    doubled(net, (1, 3, 4, 4))


def test_what_is_computed_of_labels_alone_goes_with_them() -> None:
    text = layer("source", "Data", tops="data label", params="transform_param { crop_size: 4 force_color: true }")
    text += SCORES + layer("count", "Reduction", "label", params="reduction_param { axis: 3 }")
    with pytest.warns(ConversionWarning, match=r"cut off: measure \(YoloSeg\)"):
        net = net_of(text + layer("measure", "YoloSeg", "scores label count", "loss"))
    doubled(net, (1, 3, 4, 4))


def test_an_unknown_layer_that_computes_is_not_cut_off() -> None:
    text = input_layer("data", 1, 3, 4, 4) + SCORES
    for last in (layer("odd", "Unheard", "scores"), layer("l", "LossyCode", "scores") + layer("r", "ReLU", "l")):
        with pytest.raises(ConversionError, match=r"1 layer\(s\) of 1 type\(s\) have no handler"):
            convert(net_of(text + last))


def test_a_plugin_keeps_its_measuring_layer() -> None:
    """What has a handler is converted, whatever its name."""
    text = input_layer("data", 1, 3, 4, 4) + SCORES + layer("e", "EuclideanLoss", "scores data")
    text += layer("axpy", "Axpy", "f scores data", "out").replace('bottom: "f"', 'bottom: "f"')
    net = net_of(input_layer("f", 1, 3, 1, 1) + text)
    assert [one.type for one in net.layers] == ["Power", "Axpy"]


def test_blobs_that_are_all_silenced_are_the_outputs() -> None:
    """SSD's webcam networks end in a layer that shows the picture; Silence takes its top."""
    doubled(net_of(input_layer("data", 1, 3) + SCORES + layer("quiet", "Silence", "scores", "")), (2, 3))


# ------------------------------------------------------------------------------------------------------------ sampling

FASTER = (
    layer("input-data", "Python", tops="data rois gt_boxes", params="python_param { module: 'roi_data' layer: 'L' }")
    + layer("rpn", "Power", "data", "rpn_scores")
    + layer("rpn-data", "Python", "rpn_scores gt_boxes", "rpn_labels rpn_targets",
            "python_param { module: 'rpn.anchor_target_layer' layer: 'AnchorTargetLayer' }")
    + layer("rpn_loss", "SoftmaxWithLoss", "rpn_scores rpn_labels", "rpn_prob")
    + layer("rpn_box", "SmoothL1Loss", "rpn_scores rpn_targets", "rpn_loss_box")
    + layer("roi-data", "Python", "rois gt_boxes", "sampled labels targets inside outside",
            "python_param { module: 'rpn.proposal_target_layer' layer: 'ProposalTargetLayer' }")
    + layer("score", "Power", "sampled", "cls_score", "power_param { scale: 3 }")
    + layer("box", "Power", "sampled", "bbox_pred", "power_param { scale: 5 }")
    + layer("per_roi", "SoftmaxWithLossOHEM", "cls_score labels", "temp_loss temp_prob per_roi_loss")
    + layer("ohem", "BoxAnnotatorOHEM", "sampled per_roi_loss labels inside", "labels_ohem inside_ohem")
    + layer("quiet", "Silence", "temp_loss temp_prob", "")
    + layer("loss_cls", "SoftmaxWithLoss", "cls_score labels_ohem", "cls_prob")
    + layer("loss_bbox", "SmoothL1LossOHEM", "bbox_pred targets inside_ohem outside", "loss_bbox",
            "loss_param { normalization: PRE_FIXED pre_fixed_normalizer: 128 }")
)  # fmt: skip


def test_a_detector_as_it_was_trained() -> None:
    """Targets, samplers and losses go: regions pass the sampler whole, as in the authors' test networks."""
    with pytest.warns(ConversionWarning):
        net = net_of(FASTER)
    assert [one.name for one in net.inputs] == ["data", "rois"]
    model = convert(net, input_shapes={"data": (1, 2, 3, 4), "rois": (1, 5)})
    assert [one.name for one in model.graph.output] == ["rpn_prob", "bbox_pred", "cls_prob"]
    rois = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    _, boxes, scores = run(model, {"data": np.zeros((1, 2, 3, 4)), "rois": rois})
    np.testing.assert_array_equal(boxes, 5 * rois)
    raised = np.exp(3 * rois.astype(np.float64))
    np.testing.assert_allclose(scores, raised / raised.sum(1, keepdims=True), rtol=1e-5)


VIDEO = """
layers { name: "data" type: VIDEO_DATA top: "data" top: "label" image_data_param { batch_size: 2 crop_size: 6
  new_length: 5 } }
layers { name: "conv" type: CONVOLUTION3D bottom: "data" top: "conv" }
"""


def test_videos_have_five_axes() -> None:
    with pytest.warns(ConversionWarning, match="new_length"):
        net = net_of(VIDEO)
    assert net.inputs[0].hint == (2, None, 5, 6, 6)
    with pytest.raises(ConversionError, match=r"--input-shape data=2,3,5,6,6 "):
        convert(net)
    with pytest.warns(ConversionWarning, match="VIDEO_DATA|strange"):
        net = net_of(VIDEO.replace("crop_size: 6", "crop_size: 6 strange: 1").replace("new_length: 5", ""))
    assert net.inputs[0].hint == (2, None, None, 6, 6)


# -------------------------------------------------------------------------------------------------------------- phases


def test_a_data_layer_of_the_other_phase_gives_the_input() -> None:
    """Many networks were published as train.prototxt alone; where data come from does not matter in use."""
    data = layer("data", "Data", tops="data label", params="include { phase: TRAIN } transform_param { crop_size: 4 }")
    text = data + SCORES + layer("loss", "EuclideanLoss", "scores label")
    with pytest.warns(ConversionWarning, match="the data layer 'data' of another phase gives the inputs"):
        net = net_of(text)
    with pytest.raises(ConversionError, match="--input-shape data=1,3,4,4"):
        convert(net)
    doubled(net, (2, 3, 4, 4), input_shapes={"data": (1, 3, 4, 4)})


def test_a_layer_that_computes_in_the_other_phase_is_missed() -> None:
    text = input_layer("x", 1, 3) + layer("data", "ReLU", "x", params="include { phase: TRAIN }") + SCORES
    with pytest.raises(ConversionError, match="reads the blob 'data' of the layer 'data', which phase TEST"):
        net_of(text)
