"""Whole detectors, small: their answers are those of their layers in NumPy, one computed from the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.detectors import compare

CONV = (
    'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" '
    "convolution_param {{ num_output: {outputs} kernel_size: {kernel} stride: {stride} pad: {pad} }} }}\n"
)
RELU = 'layer {{ name: "{name}_relu" type: "ReLU" bottom: "{name}" top: "{name}" }}\n'


def conv(name: str, bottom: str, outputs: int, kernel: int = 1, stride: int = 1, relu: bool = False) -> str:
    text = CONV.format(name=name, bottom=bottom, outputs=outputs, kernel=kernel, stride=stride, pad=kernel // 2)
    return text + RELU.format(name=name) if relu else text


IMAGE = 'input: "data" input_shape { dim: 1 dim: 3 dim: 96 dim: 128 }\n'
INFO = 'input: "im_info" input_shape { dim: 1 dim: 3 }\n'
TRUNK = "".join(conv(f"c{i}", f"c{i - 1}" if i else "data", 8, 3, 2, relu=True) for i in range(4))
PROPOSALS = (
    conv("rpn_cls_score", "c3", 12)
    + conv("rpn_bbox_pred", "c3", 24)
    + """
layer { name: "two" type: "Reshape" bottom: "rpn_cls_score" top: "two" reshape_param { shape { dim: 0 dim: 2 dim: -1 dim: 0 } } }
layer { name: "p" type: "Softmax" bottom: "two" top: "p" }
layer { name: "probs" type: "Reshape" bottom: "p" top: "probs" reshape_param { shape { dim: 0 dim: 12 dim: -1 dim: 0 } } }
layer { name: "proposal" type: "Python" bottom: "probs" bottom: "rpn_bbox_pred" bottom: "im_info" top: "rois"
  python_param { module: "rpn.proposal_layer" layer: "ProposalLayer" param_str: "{'feat_stride': 16, 'scales': [2, 4]}" } }
"""  # noqa: E501
)
FASTER_RCNN = """
layer { name: "pool" type: "ROIPooling" bottom: "c3" bottom: "rois" top: "pool"
  roi_pooling_param { pooled_h: 3 pooled_w: 3 spatial_scale: 0.0625 } }
layer { name: "score" type: "InnerProduct" bottom: "pool" top: "score" inner_product_param { num_output: 5 } }
layer { name: "prob" type: "Softmax" bottom: "score" top: "prob" }
"""
RFCN = (
    conv("maps", "c3", 4 * 9)
    + """
layer { name: "pool" type: "PSROIPooling" bottom: "maps" bottom: "rois" top: "pool"
  psroi_pooling_param { output_dim: 4 group_size: 3 spatial_scale: 0.0625 } }
layer { name: "vote" type: "Pooling" bottom: "pool" top: "vote" pooling_param { pool: AVE kernel_size: 3 stride: 3 } }
layer { name: "prob" type: "Softmax" bottom: "vote" top: "prob" }
layer { name: "rows" type: "Reshape" bottom: "prob" top: "rows" reshape_param { shape { dim: -1 dim: 4 } } }
"""
)
YOLO = (
    conv("coarse", "c3", 27)
    + conv("fine", "c2", 27)
    + """
layer { name: "detection_out" type: "Yolov3DetectionOutput" bottom: "coarse" bottom: "fine" top: "detection_out"
  yolov3_detection_output_param { num_classes: 4 confidence_threshold: 0.3 mask_group_num: 2
    biases: 10 biases: 14 biases: 23 biases: 27 biases: 37 biases: 58 biases: 81 biases: 82 biases: 35 biases: 69
    biases: 44 biases: 31 mask: 3 mask: 4 mask: 5 mask: 0 mask: 1 mask: 2 anchors_scale: 16 anchors_scale: 8 } }
"""
)
NETWORKS = {
    "faster-rcnn": IMAGE + INFO + TRUNK + PROPOSALS + FASTER_RCNN,
    "r-fcn": IMAGE + INFO + TRUNK + PROPOSALS + RFCN,
    "yolo 3": IMAGE + TRUNK + YOLO,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_detector_answers_as_the_composition_of_its_layers(name: str, tmp_path: Path) -> None:
    file = tmp_path / "test.prototxt"
    file.write_text(NETWORKS[name])
    result = compare(file, (96, 128), runs=1)
    assert int(result.found.split()[0]) > 5
    assert result.outputs
    for differences in (result.tops, result.outputs):
        assert max(differences.values()) < 1e-5, differences
