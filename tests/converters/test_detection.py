"""SSD's and Fast R-CNN's layers, against their definitions written out in NumPy. Caffe's answers are in test_layers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from converters import ConversionError, convert
from tests.converters.detectors import roi_pooled
from tests.converters.one_layer import OneLayer, assert_close, assert_error_names_layer, run

# ----------------------------------------------------------------------------------------------------------- PriorBox

FOUR = "variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2"
PRIORS = {
    "one": "min_size: 20",
    "sizes": "min_size: 12 min_size: 30 max_size: 25 max_size: 41",
    "ratios": "min_size: 20 max_size: 45 aspect_ratio: 2 aspect_ratio: 3",
    "ratios apart": "min_size: 20 max_size: 45 aspect_ratio: 2 aspect_ratio: 0.3 flip: false",
    "clipped": "min_size: 50 max_size: 70 aspect_ratio: 2 clip: true",
    "steps": "min_size: 20 step_h: 14 step_w: 22 offset: 0.25",
    "step": "min_size: 20 step: 16",
    "image": "min_size: 20 img_h: 150 img_w: 210",
}
OPENCV = {"flip": "true", "clip": "false"}


def prior_boxes(
    grid: tuple[int, int], image: tuple[float, float], step: tuple[float, float], offset: float, sizes: list, clip: bool
) -> np.ndarray:
    """The boxes around each position: the sizes are (width, height) in pixels."""
    boxes = []
    for row in range(grid[0]):
        for column in range(grid[1]):
            y, x = (row + offset) * step[0], (column + offset) * step[1]
            for width, height in sizes:
                corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
                box = [corner / image[1 - index % 2] for index, corner in enumerate(corners)]
                boxes.append([min(max(value, 0), 1) for value in box] if clip else box)
    return np.array(boxes)


def expected_priors(name: str) -> np.ndarray:
    grid, image, step, offset = (3, 4), (60, 100), (20.0, 25.0), 0.5
    root = math.sqrt
    ratios = [2, 1 / 2, 3, 1 / 3] if name == "ratios" else [2, 0.3] if name == "ratios apart" else []
    sizes = [(20.0, 20.0)]
    if name == "sizes":
        sizes = [(12, 12), (root(12 * 25),) * 2, (30, 30), (root(30 * 41),) * 2]
    elif name == "clipped":
        sizes = [(50, 50), (root(50 * 70),) * 2, *((50 * root(r), 50 / root(r)) for r in (2, 0.5))]
    elif ratios:
        sizes += [(root(20 * 45),) * 2, *((20 * root(r), 20 / root(r)) for r in ratios)]
    if name == "steps":
        step, offset = (14, 22), 0.25
    elif name == "step":
        step = (16, 16)
    elif name == "image":
        image, step = (150, 210), (50, 52.5)
    return prior_boxes(grid, image, step, offset, sizes, clip=name == "clipped")


def prior_layer(param: str) -> OneLayer:
    return OneLayer(
        f'type: "PriorBox" top: "p" prior_box_param {{ {param} }}', {"x": (1, 2, 3, 4), "image": (1, 3, 60, 100)}
    )


@pytest.mark.parametrize("name", PRIORS)
def test_prior_box(name: str) -> None:
    boxes = expected_priors(name)
    for variances in ([0.1], [0.1, 0.1, 0.2, 0.2]):
        one = prior_layer(f"{PRIORS[name]} {FOUR if len(variances) == 4 else ''}")
        (found,) = one.run(one.zeros())
        expected = np.stack([boxes.ravel(), np.broadcast_to(variances, boxes.shape).ravel()])
        assert_close(found, expected[None].astype(np.float32))


@pytest.mark.parametrize("name", [name for name in PRIORS if name != "image"])  # OpenCV does not read img_h
def test_prior_box_as_opencv(name: str, tmp_path: Path) -> None:
    """Where a parameter is left out, OpenCV has defaults of its own."""
    defaults = " ".join(f"{key}: {value}" for key, value in OPENCV.items() if key not in PRIORS[name])
    one = prior_layer(f"{PRIORS[name]} {defaults} {FOUR}")
    assert_close(one.run(one.zeros())[0], one.opencv(one.zeros(), tmp_path).reshape(1, 2, -1))


def test_prior_box_keeps_whole_pixels() -> None:
    """Caffe cuts the fractions of sizes off; OpenCV keeps them."""
    layers = [prior_layer(param) for param in ("min_size: 20.7", "min_size: 20")]
    np.testing.assert_array_equal(*(one.run(one.zeros())[0] for one in layers))


# ---------------------------------------------------------------------------------------------------- DetectionOutput


def decode(code: str, prior: np.ndarray, variance: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """One box: xmin, ymin, xmax, ymax."""
    size = np.array([prior[2] - prior[0], prior[3] - prior[1]])
    delta = variance * delta
    if code == "CORNER":
        return prior + delta
    if code == "CORNER_SIZE":
        return prior + delta * np.tile(size, 2)
    center = (prior[:2] + prior[2:]) / 2 + delta[:2] * size
    half = np.exp(delta[2:]) * size / 2
    return np.concatenate([center - half, center + half])


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union; a box whose corners are the wrong way round meets nothing."""
    inner = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    if min(inner) <= 0:
        return 0.0
    both = np.prod(inner)
    return both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both)


def detections(
    deltas: np.ndarray, scores: np.ndarray, priors: np.ndarray, *, code: str = "CENTER_SIZE", background: int = 0,
    threshold: float = 0.01, nms: float = 0.45, top_k: int = -1, keep: int = -1,
) -> np.ndarray:  # fmt: skip
    """SSD's detections by plain loops.

    Args:
        deltas: (N, P, 1 or classes, 4).
        scores: (N, P, classes).
        priors: (2, P, 4): boxes and variances.
        code: How boxes are coded.
        background: The class that is no object.
        threshold: Scores must be above.
        nms: Overlaps must not be above.
        top_k: How many of a class are looked at.
        keep: How many of an image are kept.

    Returns:
        (1, 1, rows, 7).
    """
    rows = []
    for image, by_prior in enumerate(scores):
        found = []
        for label in range(by_prior.shape[1]):
            if label == background:
                continue
            order = [p for p in np.argsort(-by_prior[:, label], kind="stable") if by_prior[p, label] > threshold]
            kept: list[np.ndarray] = []
            for p in order[: top_k if top_k > 0 else None]:
                delta = deltas[image, p, label if deltas.shape[2] > 1 else 0]
                box = decode(code, priors[0, p], priors[1, p], delta)
                if all(overlap(box, other) <= nms for other in kept):
                    kept.append(box)
                    found.append([image, label, by_prior[p, label], *box])
        best = sorted(found, key=lambda row: -row[2])[: keep if keep > 0 else None]
        rows += [row for row in found if any(row is one for one in best)]
    return np.array(rows or [[image, *[-1] * 6] for image in range(len(scores))], np.float32)[None, None]


def arrays_for(batch: int, priors: int, classes: int, *, shared: bool, seed: int, spread: float = 0.8) -> tuple:
    """Deltas, scores without ties, and priors."""
    rng = np.random.default_rng(seed)
    deltas = rng.normal(size=(batch, priors, 1 if shared else classes, 4)) * spread
    scores = rng.permutation(batch * priors * classes).reshape(batch, priors, classes) / (batch * priors * classes)
    centers, sizes = rng.uniform(0.2, 0.8, (priors, 2)), rng.uniform(0.1, 0.5, (priors, 2))
    boxes = np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=1)
    stacked = np.stack([boxes, np.broadcast_to([0.1, 0.1, 0.2, 0.2], boxes.shape)])
    return tuple(array.astype(np.float32) for array in (deltas, scores**2, stacked))


def detector(priors: int, classes: int, param: str, *, shared: bool = True, batch: int = 1) -> OneLayer:
    sets = 1 if shared else classes
    text = f"num_classes: {classes} share_location: {str(shared).lower()} {param}"
    return OneLayer(
        f'type: "DetectionOutput" top: "d" detection_output_param {{ {text} }}',
        {"loc": (batch, priors * sets * 4), "conf": (batch, priors * classes), "prior": (1, 2, priors * 4)},
    )


def fed(deltas: np.ndarray, scores: np.ndarray, priors: np.ndarray) -> dict[str, np.ndarray]:
    batch = len(scores)
    return {"loc": deltas.reshape(batch, -1), "conf": scores.reshape(batch, -1), "prior": priors.reshape(1, 2, -1)}


OPTIONS = {
    "ssd": {"threshold": 0.01, "nms": 0.45, "top_k": 400, "keep": 200},
    "top_k": {"nms": 0.6, "top_k": 3},
    "keep": {"nms": 0.7, "keep": 5, "threshold": 0.3},
    "both": {"nms": 0.3, "top_k": 7, "keep": 4},
    "disjoint": {"nms": 0.0, "threshold": 0.2},
    "all": {"nms": 1.0, "threshold": 0.5},
    "background last": {"background": 3, "threshold": 0.4},
    "no background": {"background": -1, "threshold": 0.4},
    "corner": {"code": "CORNER", "threshold": 0.2},
    "corner size": {"code": "CORNER_SIZE", "threshold": 0.2, "keep": 9},
}


def param_of(options: dict) -> str:
    nms = f"nms_threshold: {options.get('nms', 0.45)}" + (f" top_k: {options['top_k']}" if "top_k" in options else "")
    return (
        f"nms_param {{ {nms} }} code_type: {options.get('code', 'CENTER_SIZE')} "
        f"background_label_id: {options.get('background', 0)} confidence_threshold: {options.get('threshold', 0.01)} "
        f"keep_top_k: {options.get('keep', -1)}"
    )


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
def test_detection_output(name: str, shared: bool) -> None:
    options = OPTIONS[name]
    model = detector(25, 4, param_of(options), shared=shared).model()
    for batch in (1, 2, 3):
        arrays = arrays_for(batch, 25, 4, shared=shared, seed=batch)
        assert_close(run(model, fed(*arrays))[0], detections(*arrays, **options))


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_detection_output_at_other_opsets(opset: int) -> None:
    options = OPTIONS["both"]
    arrays = arrays_for(2, 25, 4, shared=True, seed=0)
    assert_close(detector(25, 4, param_of(options)).run(fed(*arrays), opset)[0], detections(*arrays, **options))


@pytest.mark.parametrize("code", ["CORNER", "CORNER_SIZE"])
def test_boxes_the_wrong_way_round_overlap_nothing(code: str) -> None:
    options = {"code": code, "threshold": 0.05, "nms": 0.1}
    arrays = arrays_for(2, 40, 3, shared=True, seed=5, spread=4)
    rows = detections(*arrays, **options)
    assert (rows[..., 3] > rows[..., 5]).any()
    assert_close(detector(40, 3, param_of(options)).run(fed(*arrays))[0], rows)


@pytest.mark.parametrize("batch", [1, 3])
def test_nothing_found(batch: int) -> None:
    arrays = arrays_for(batch, 10, 3, shared=True, seed=0)
    (found,) = detector(10, 3, "confidence_threshold: 1.5").run(fed(*arrays))
    assert_close(found, np.array([[[[image, *[-1] * 6] for image in range(batch)]]], np.float32))


def test_image_without_detections_has_no_row() -> None:
    deltas, scores, priors = arrays_for(3, 10, 3, shared=True, seed=0)
    scores[1] = 0
    (found,) = detector(10, 3, param_of({"threshold": 0.3})).run(fed(deltas, scores, priors))
    assert set(found[0, 0, :, 0]) == {0, 2}
    assert_close(found, detections(deltas, scores, priors, threshold=0.3))


def test_without_threshold_every_score_counts() -> None:
    deltas, scores, priors = arrays_for(1, 6, 2, shared=True, seed=0)
    scores -= 10
    (found,) = detector(6, 2, "nms_param { nms_threshold: 1 } code_type: CENTER_SIZE").run(fed(deltas, scores, priors))
    assert_close(found, detections(deltas, scores, priors, threshold=-np.inf, nms=1))


def test_score_at_the_threshold_is_none() -> None:
    deltas, scores, priors = arrays_for(1, 4, 2, shared=True, seed=0)
    scores[0, :, 1] = [0.5, 0.25, 0.75, 0.5]
    param = "nms_param { nms_threshold: 1 } confidence_threshold: 0.5 code_type: CENTER_SIZE"
    (found,) = detector(4, 2, param).run(fed(deltas, scores, priors))
    assert_close(found, detections(deltas, scores, priors, threshold=0.5, nms=1))
    assert found.shape[2] == 1


def test_equal_scores_keep_the_order_of_the_priors() -> None:
    deltas, scores, priors = arrays_for(2, 30, 3, shared=True, seed=4)
    scores = np.round(scores, 1)
    options = {"threshold": 0.05, "top_k": 12}
    (found,) = detector(30, 3, param_of(options)).run(fed(deltas, scores, priors))
    assert_close(found, detections(deltas, scores, priors, **options))


def test_variance_in_target() -> None:
    deltas, scores, priors = arrays_for(2, 20, 3, shared=True, seed=0, spread=0.2)
    for code in ("CORNER", "CENTER_SIZE", "CORNER_SIZE"):
        options = {"code": code, "threshold": 0.2}
        (found,) = detector(20, 3, f"{param_of(options)} variance_encoded_in_target: true").run(
            fed(deltas, scores, priors)
        )
        ones = np.stack([priors[0], np.ones_like(priors[1])])
        assert_close(found, detections(deltas, scores, ones, **options))


def test_detection_output_as_opencv(tmp_path: Path) -> None:
    arrays = fed(*arrays_for(1, 30, 2, shared=True, seed=2))
    one = detector(30, 2, param_of(OPTIONS["ssd"]))
    theirs = one.opencv(arrays, tmp_path)
    theirs = theirs[:, :, theirs[0, 0, :, 2] > 0]  # some versions pad to keep_top_k rows
    assert_close(one.run(arrays)[0], theirs)


# --------------------------------------------------------------------------------------------------------- ROIPooling


@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize(("bins", "scale"), [((3, 3), 1.0), ((2, 4), 0.0625), ((7, 7), 0.5)])
def test_roi_pooling(bins: tuple[int, int], scale: float, rank: int) -> None:
    param = f"pooled_h: {bins[0]} pooled_w: {bins[1]} spatial_scale: {scale}"
    trailing = (1,) * (rank - 2)
    one = OneLayer(
        f'type: "ROIPooling" top: "y" roi_pooling_param {{ {param} }}', {"x": (1, 2, 9, 12), "rois": (1, 5, *trailing)}
    )
    model = one.model()
    for batch, count in ((1, 1), (1, 6), (3, 8)):
        rng = np.random.default_rng(count)
        x = rng.normal(size=(batch, 2, 9, 12)).astype(np.float32) - 1
        corners = np.round(rng.uniform(-2, 14, (count, 4)) * 2) / 2 / scale  # halves, and outside of the image
        rois = np.concatenate([rng.integers(0, batch, (count, 1)), corners], axis=1).astype(np.float32)
        found = run(model, {"x": x, "rois": rois.reshape(count, 5, *trailing)})[0]
        assert_close(found, roi_pooled(x, rois, bins, scale))


# ------------------------------------------------------------------------------------------------------------- errors

IMAGES = {"x": (1, 2, 3, 4), "image": (1, 3, 60, 100)}
SCORES = {"loc": (1, 40), "conf": (1, 30), "prior": (1, 2, 40)}
REGIONS = {"x": (1, 2, 9, 12), "rois": (1, 5)}
ERRORS = {
    "no min_size": ('type: "PriorBox"', IMAGES, "one min_size or more"),
    "size 0": ('type: "PriorBox" prior_box_param { min_size: 0 }', IMAGES, "all positive"),
    "sizes": ('type: "PriorBox" prior_box_param { min_size: 1 min_size: 2 max_size: 5 }', IMAGES, "as many max_size"),
    "max below": (
        'type: "PriorBox" prior_box_param { min_size: 5 max_size: 5 }',
        IMAGES,
        "each max_size to be the larger",
    ),
    "ratio": ('type: "PriorBox" prior_box_param { min_size: 5 aspect_ratio: 0 }', IMAGES, "aspect_ratio 0"),
    "variances": ('type: "PriorBox" prior_box_param { min_size: 5 variance: 1 variance: 1 }', IMAGES, "one or four"),
    "half a step": ('type: "PriorBox" prior_box_param { min_size: 5 step_h: 8 }', IMAGES, "step_h and step_w"),
    "two steps": ('type: "PriorBox" prior_box_param { min_size: 5 step: 8 step_h: 8 }', IMAGES, "either step"),
    "two images": ('type: "PriorBox" prior_box_param { min_size: 5 img_size: 8 img_w: 8 }', IMAGES, "either img_size"),
    "no image": ('type: "PriorBox" prior_box_param { min_size: 5 }', {"x": (1, 2, 3, 4)}, "bottom"),
    "flat map": (
        'type: "PriorBox" prior_box_param { min_size: 5 }',
        {"x": (1, 2), "image": (1, 3, 6, 6)},
        "expected N x C x H x W",
    ),
    "many boxes": (
        'type: "PriorBox" prior_box_param { min_size: 5 }',
        {"x": (1, 1, 2000, 2000), "image": (1, 3, 60, 100)},
        "found 4,000,000 prior boxes",
    ),
    "no classes": ('type: "DetectionOutput"', SCORES, "num_classes 0"),
    "background only": ('type: "DetectionOutput" detection_output_param { num_classes: 1 }', SCORES, "num_classes 1"),
    "other classes": ('type: "DetectionOutput" detection_output_param { num_classes: 4 }', SCORES, "40 for the prior"),
    "other boxes": (
        'type: "DetectionOutput" detection_output_param { num_classes: 3 share_location: false }',
        SCORES,
        "120 for the prior boxes",
    ),
    "falling threshold": (
        'type: "DetectionOutput" detection_output_param { num_classes: 3 nms_param { nms_threshold: 0.6 eta: 0.9 } }',
        SCORES,
        "a fixed threshold",
    ),
    "eta": ('type: "DetectionOutput" detection_output_param { num_classes: 3 nms_param { eta: 2 } }', SCORES, "eta 2"),
    "top_k": (
        'type: "DetectionOutput" detection_output_param { num_classes: 3 nms_param { top_k: 0 } }',
        SCORES,
        "0 finds nothing",
    ),
    "priors": (
        'type: "DetectionOutput" detection_output_param { num_classes: 3 }',
        {**SCORES, "prior": (1, 1, 40)},
        "for the prior boxes, expected 1 x 2",
    ),
    "no bins": ('type: "ROIPooling"', REGIONS, "pooled_h 0"),
    "four numbers": (
        'type: "ROIPooling" roi_pooling_param { pooled_h: 2 pooled_w: 2 }',
        {**REGIONS, "rois": (1, 4)},
        "5 numbers per region",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_the_layer(name: str) -> None:
    layer, shapes, message = ERRORS[name]
    assert_error_names_layer(OneLayer(f'{layer} top: "y"', shapes), message)


def test_eta_without_effect_is_taken() -> None:
    """Caffe lowers the threshold only while it is above 0.5."""
    arrays = arrays_for(1, 20, 3, shared=True, seed=0)
    param = "nms_param { nms_threshold: 0.4 eta: 0.5 } code_type: CENTER_SIZE confidence_threshold: 0.1"
    assert_close(detector(20, 3, param).run(fed(*arrays))[0], detections(*arrays, nms=0.4, threshold=0.1))


def test_roi_pooling_needs_an_opset_that_runs() -> None:
    one = OneLayer('type: "ROIPooling" top: "y" roi_pooling_param { pooled_h: 2 pooled_w: 2 }', REGIONS)
    with pytest.raises(ConversionError, match="found opset 22, expected at most 21"):
        one.model(22)


# ----------------------------------------------------------------------------------------------------------- TextBoxes


def text_boxes(loc: int, conf: int) -> OneLayer:
    """A PriorBox among the convolutions of its feature map; six boxes a position, two classes."""
    layer = (
        'type: "PriorBox" top: "p" prior_box_param { min_size: 30 aspect_ratio: 2 aspect_ratio: 3 aspect_ratio: 5 '
        "aspect_ratio: 7 aspect_ratio: 10 flip: false clip: true variance: 0.1 variance: 0.1 variance: 0.2 "
        "variance: 0.2 } }\n"
        + "".join(
            f'layer {{ name: "{name}" type: "Convolution" bottom: "x" top: "{name}" '
            f"convolution_param {{ num_output: {outputs} kernel_size: 1 }} }}\n"
            for name, outputs in (("loc", loc), ("conf", conf))
        )
        + 'layer { name: "loc_flat" type: "Flatten" bottom: "loc" top: "loc_flat" }\n'
        'layer { name: "conf_flat" type: "Flatten" bottom: "conf" top: "conf_flat" }\n'
        'layer { name: "found" type: "DetectionOutput" bottom: "loc_flat" bottom: "conf_flat" bottom: "p" top: "found" '
        "detection_output_param { num_classes: 2 }"
    )
    return OneLayer(layer, {"x": (1, 2, 3, 4), "image": (1, 3, 60, 100)})


def priors_of(loc: int, conf: int) -> np.ndarray:
    """The boxes, with nothing else among the model's outputs."""
    one = text_boxes(loc, conf)
    return run(convert(one.net(), outputs=["p"]), one.zeros())[0]


def test_textboxes_repeats_each_box_half_a_step_down() -> None:
    """Told by the convolutions: 48 numbers for places and 24 for classes are twelve boxes, of which SSD makes six."""
    boxes = []
    for row, column in np.ndindex(3, 4):
        for ratio in (1, 2, 3, 5, 7, 10):
            width, height = 30 * math.sqrt(ratio), 30 / math.sqrt(ratio)
            x = (column + 0.5) * 25
            for y in ((row + 0.5) * 20, (row + 1) * 20):
                boxes += [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    boxes = (np.array(boxes).reshape(-1, 4) / [100, 60, 100, 60]).clip(0, 1)
    expected = np.stack([boxes.ravel(), np.tile([0.1, 0.1, 0.2, 0.2], len(boxes))])[None]
    assert_close(priors_of(48, 24), expected.astype(np.float32))


def test_six_boxes_stay_ssds() -> None:
    """Also where each class has places of its own."""
    for loc, conf in ((24, 12), (48, 12)):
        assert priors_of(loc, conf).shape == (1, 2, 3 * 4 * 6 * 4)
