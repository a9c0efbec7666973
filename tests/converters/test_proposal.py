"""Region proposals against their definition in NumPy, OpenCV's Proposal and ncnn's."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from converters import ConversionWarning, convert, read_net
from converters.reader import parse_prototxt
from tests.converters.detectors import Proposals
from tests.converters.ncnn_layer import ncnn_layer
from tests.converters.one_layer import OneLayer, assert_emits_what_is_declared, assert_error_names_layer, run

# What generate_anchors.py of py-faster-rcnn lists as the answer of the paper's own MATLAB code.
PUBLISHED = [
    [-83, -39, 100, 56], [-175, -87, 192, 104], [-359, -183, 376, 200],
    [-55, -55, 72, 72], [-119, -119, 136, 136], [-247, -247, 264, 264],
    [-35, -79, 52, 96], [-79, -167, 96, 184], [-167, -343, 184, 360],
]  # fmt: skip


@dataclass(frozen=True)
class Options(Proposals):
    """Parameters of a small layer."""

    scales: Sequence[float] = (2, 4)
    candidates: int = 300
    keep: int = 40

    def layer(self, height: int, width: int, numbers: int = 3) -> OneLayer:
        shapes = {"c": (1, 2 * self.anchors, height, width), "d": (1, 4 * self.anchors, height, width)}
        if self.is_python:
            pairs = {
                "feat_stride": self.stride, "base_size": self.base, "ratios": list(self.ratios),
                "scales": list(self.scales), "pre_nms_topn": self.candidates, "post_nms_topn": self.keep,
                "nms_thresh": self.threshold, "min_size": self.least,
            }  # fmt: skip
            text = python_layer(str(pairs))
        else:
            lists = " ".join(f"ratio: {one}" for one in self.ratios) + " ".join(f" scale: {one}" for one in self.scales)
            text = (
                f'type: "Proposal" top: "rois" top: "scores" proposal_param {{ {lists} base_size: {self.base} '
                f"feat_stride: {self.stride} pre_nms_topn: {self.candidates} post_nms_topn: {self.keep} "
                f"nms_thresh: {self.threshold} min_size: {self.least} }}"
            )
        return OneLayer(text, {**shapes, "info": (1, numbers)})


def python_layer(param: str, module: str = "rpn.proposal_layer", name: str = "param_str") -> str:
    python = f'module: "{module}" layer: "ProposalLayer" {name}: "{param}"'
    return f'type: "Python" top: "rois" top: "scores" python_param {{ {python} }}'


def arrays_for(options: Options, height: int, width: int, seed: int, numbers: int = 3) -> dict[str, np.ndarray]:
    """Scores without ties; boxes some of which leave the image, and some of which are small."""
    rng = np.random.default_rng(seed)
    count = 2 * options.anchors * height * width
    info = [[height * options.stride - 5, width * options.stride - 9, 1.5, 1.25, 1, 1][:numbers]]
    return {
        "c": (rng.permutation(count).reshape(1, -1, height, width) + 1).astype(np.float32) / (count + 1),
        "d": (rng.normal(size=(1, 4 * options.anchors, height, width)) * 0.3).astype(np.float32),
        "info": np.array(info, np.float32),
    }


CASES = {
    "python": Options(),
    "defaults": Options(candidates=6000, keep=300),
    "all": Options(candidates=0, keep=0, threshold=0.5),
    "ratios": Options(ratios=(0.333, 0.5, 0.667, 1, 1.5, 2, 3), scales=(2, 3, 5)),
    "stride 8": Options(stride=8, base=8, scales=(4, 8.5), least=8),
    "nothing overlaps": Options(threshold=1),
    "nothing is small": Options(least=0),
    "pvanet": Options(ratios=(0.5, 0.667, 1, 1.5, 2), scales=(3, 6, 9), is_python=False),
    # Boxes of score 0 are ties, which the fork's sort leaves in an order of its own: they stay behind the candidates.
    "pvanet's small": Options(least=24, candidates=200, is_python=False),
    "halves": Options(base=10, ratios=(1.5, 2.5), is_python=False),
}


@pytest.mark.parametrize("numbers", [3, 6])
@pytest.mark.parametrize("name", CASES)
def test_proposals(name: str, numbers: int) -> None:
    options = CASES[name]
    inputs = arrays_for(options, 7, 9, seed=len(name), numbers=numbers)
    boxes, scores = options.find(*inputs.values())
    rois, values = options.layer(7, 9, numbers).run(inputs)
    assert len(boxes) > 3
    assert rois.shape == (len(boxes), 5)
    assert values.shape == ((len(boxes), 1) if options.is_python else (len(boxes),))
    np.testing.assert_array_equal(rois[:, 0], 0)
    np.testing.assert_allclose(rois[:, 1:], boxes, rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(values.ravel(), scores.astype(np.float32))


def test_small_boxes_of_pvanet_stay_with_the_score_zero() -> None:
    """Where too few are large, the small ones fill up; py-faster-rcnn's are gone."""
    inputs = arrays_for(Options(), 4, 4, seed=1)
    counts = []
    for is_python in (True, False):
        options = Options(least=30, keep=0, threshold=1, is_python=is_python)
        rois, scores = options.layer(4, 4).run(inputs)
        boxes, expected = options.find(*inputs.values())
        np.testing.assert_array_equal(scores.ravel(), expected.astype(np.float32))
        assert len(rois) == len(boxes)
        counts.append(len(rois))
    assert 0 < counts[0] < counts[1] == 4 * 4 * 6


def test_no_proposal_is_large_enough() -> None:
    options = Options(least=500)
    rois, scores = options.layer(4, 4).run(arrays_for(options, 4, 4, seed=1))
    assert rois.shape == (0, 5)
    assert scores.shape == (0, 1)


def test_anchors_are_the_published_ones() -> None:
    """Without deltas, suppression or a border nearby the proposals are the anchors."""
    options = Options(scales=(8, 16, 32), candidates=0, keep=0, threshold=1, least=0)
    grid, cell = 51, 25  # far enough from the border for the largest
    scores = np.zeros((1, 18, grid, grid), np.float32)
    scores[0, 9:, cell, cell] = np.arange(9, 0, -1)
    inputs = {
        "c": scores,
        "d": np.zeros((1, 36, grid, grid), np.float32),
        "info": np.array([[816, 816, 1]], np.float32),
    }
    rois, _ = options.layer(grid, grid).run(inputs)
    # MATLAB counts pixels from 1, and the layer's x2 and y2 are one pixel beyond the anchor's.
    np.testing.assert_array_equal(rois[:9, 1:] - cell * 16, np.array(PUBLISHED) - [1, 1, 0, 0])


@pytest.mark.parametrize("seed", range(3))
def test_proposal_as_opencv(seed: int, tmp_path: Path) -> None:
    """OpenCV knows no least size."""
    options = Options(least=0, is_python=False, keep=60)
    inputs = arrays_for(options, 10, 14, seed)
    one = options.layer(10, 14)
    rois, _ = one.run(inputs)
    expected = one.opencv(inputs, tmp_path)
    assert len(rois) == 60
    np.testing.assert_allclose(rois, expected.reshape(-1, 5), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_proposals_as_ncnn(seed: int, tmp_path: Path) -> None:
    """ncnn measures overlaps without the last pixel: compared where that decides nothing."""
    options = Options(scales=(8, 16, 32), keep=25)
    inputs = arrays_for(options, 12, 16, seed)
    with_last, without = options.find(*inputs.values()), options.find(*inputs.values(), extra=0)
    np.testing.assert_array_equal(with_last[1], without[1])
    params = f"0=16 1=16 2={options.candidates} 3={options.keep} 4={options.threshold} 5={options.least}"
    one_image = {name: array[0] for name, array in inputs.items()}
    boxes, scores = ncnn_layer("Proposal", params, one_image, ("rois", "scores"), tmp_path)
    rois, values = options.layer(12, 16).run(inputs)
    np.testing.assert_allclose(rois[:, 1:], boxes.reshape(-1, 4), rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(values.ravel(), scores.ravel())


# ---------------------------------------------------------------------------------------------------------- param_str

SAME = [
    "'feat_stride': 16 \\n'scales': !!python/tuple [2, 4]",
    "{'feat_stride': 16, 'scales': [2, 4], 'ratios': [0.5, 1, 2]}",
    "{'scales': (2, 4), 'num_classes': 21, 'feat_stride': 16.0}",
    "feat_stride: 16\\nscales: [2, 4]\\n",
    "feat_stride: 16\\nscales:\\n  - 2\\n  - 4\\n",
    "\\'feat_stride\\': 16, \\'scales\\': [2,4], \\'base_size\\': 16",
]


@pytest.mark.parametrize("param", SAME)
@pytest.mark.parametrize(
    ("module", "name"), [("rpn.proposal_layer", "param_str"), ("lib.rpn.proposal_layer", "param_str_")]
)
def test_ways_to_write_the_parameters(param: str, module: str, name: str) -> None:
    """They come as YAML or as a Python dictionary; py-faster-rcnn's configuration gives the rest."""
    options = Options(candidates=6000, keep=300)
    inputs = arrays_for(options, 7, 9, seed=3)
    one = OneLayer(python_layer(param, module, name), options.layer(7, 9).shapes)
    for found, expected in zip(one.run(inputs), options.layer(7, 9).run(inputs), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_configuration_that_is_taken_is_told() -> None:
    one = OneLayer(python_layer("'feat_stride': 16, 'min_size': 8"), Options(scales=(8, 16, 32)).layer(7, 9).shapes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        convert(one.net())
    assert any("pre_nms_topn 6000, post_nms_topn 300, nms_thresh 0.7 from" in str(one.message) for one in caught)


def test_a_region_pooled() -> None:
    """What follows takes a number of regions that only the network's run tells."""
    options = Options()
    features = {"features": (1, 2, 7, 9)}
    pooling = (
        'layer { name: "pool" type: "ROIPooling" bottom: "features" bottom: "rois" top: "pool" '
        "roi_pooling_param { pooled_h: 2 pooled_w: 2 spatial_scale: 0.0625 } } "
        'layer { name: "rows" type: "Reshape" bottom: "pool" top: "rows" reshape_param { shape { dim: -1 dim: 8 } } }'
    )
    one = options.layer(7, 9)
    inputs = arrays_for(options, 7, 9, seed=0)
    rois, scores = one.run(inputs)
    text = OneLayer("", features).prototxt.partition('layer { name: "l"')[0] + one.prototxt + pooling
    maps = np.random.default_rng(0).normal(size=features["features"]).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        model = convert(read_net(parse_prototxt(text.replace('name: "one"', "", 1), "net.prototxt")))
    by_rank, rows = run(model, {**inputs, "features": maps})
    np.testing.assert_array_equal(by_rank, scores)
    assert rows.shape == (len(rois), 8)
    # The first of a region's four bins begins at its rounded corner.
    for roi, row in zip(rois, rows, strict=True):
        x, y = (int(np.floor(value * 0.0625 + 0.5)) for value in roi[1:3])
        assert row[0] >= maps[0, 0, y, x]


@pytest.mark.parametrize("is_python", [True, False])
def test_operators(is_python: bool) -> None:
    assert_emits_what_is_declared(Options(is_python=is_python).layer(4, 4))


# --------------------------------------------------------------------------------------------------------------- errors

GOOD = Options().layer(7, 9).shapes
ERRORS = {
    "no stride": (python_layer("'scales': [2, 4]"), GOOD, "no feat_stride"),
    "no yaml": (python_layer("16,3"), GOOD, "param_str '16,3', expected numbers and lists"),
    "no number": (python_layer("'feat_stride': a"), GOOD, "expected numbers and lists"),
    "another key": (python_layer("'feat_stride': 16, 'ratio': [1]"), GOOD, "found the key 'ratio'"),
    "channels": (python_layer("'feat_stride': 16"), GOOD, "expected 1 x 18 x H x W for 9 anchors"),
    "no anchors": ('type: "Proposal" top: "rois"', GOOD, "at least one of each, all positive"),
    "no ratio": (python_layer("'feat_stride': 16, 'ratios': [0]"), GOOD, "all positive"),
    "threshold": (python_layer("'feat_stride': 16, 'nms_thresh': 2"), GOOD, "nms_thresh 2"),
    "two images": (
        python_layer("'feat_stride': 16, 'scales': [2, 4]"),
        {name: (2, *shape[1:]) for name, shape in GOOD.items()},
        "found 2 images",
    ),
    "two sizes": (
        python_layer("'feat_stride': 16, 'scales': [2, 4]"),
        {**GOOD, "d": (1, 24, 7, 8)},
        "expected one H x W",
    ),
    "image": (python_layer("'feat_stride': 16, 'scales': [2, 4]"), {**GOOD, "info": (1, 2)}, "height, width, scale"),
    "bottoms": (python_layer("'feat_stride': 16"), {"c": GOOD["c"], "d": GOOD["d"]}, r"found 2 bottom"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_the_layer(name: str) -> None:
    layer, shapes, message = ERRORS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)
        assert_error_names_layer(OneLayer(layer, shapes), message)
