"""A small SSD from Caffe: its detections are those of its own DetectionOutput layer, and have gradients."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest

from camrt import Explainer, Preprocess
from camrt.graph import explain_graph
from camrt.graph.methods.context import GRADIENT
from converters import convert
from tests.converters.small_net import write_random

SIDE, CLASSES = 32, 4
CONV = (
    'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" '
    "convolution_param {{ num_output: {outputs} kernel_size: 3 stride: {stride} pad: 1 }} }}\n"
)
BRANCH = (
    'layer {{ name: "{name}_perm" type: "Permute" bottom: "{name}" top: "{name}_perm" '
    "permute_param {{ order: 0 order: 2 order: 3 order: 1 }} }}\n"
    'layer {{ name: "{name}_flat" type: "Flatten" bottom: "{name}_perm" top: "{name}_flat" }}\n'
)
PRIOR = (
    'layer {{ name: "prior{n}" type: "PriorBox" bottom: "{bottom}" bottom: "data" top: "prior{n}" '
    "prior_box_param {{ min_size: {size} aspect_ratio: 2 flip: true variance: 0.1 variance: 0.1 variance: 0.2 "
    "variance: 0.2 }} }}\n"
)


def concat(name: str, bottoms: list[str], axis: int) -> str:
    given = " ".join(f'bottom: "{bottom}"' for bottom in bottoms)
    return f'layer {{ name: "{name}" type: "Concat" {given} top: "{name}" concat_param {{ axis: {axis} }} }}\n'


DETECTIONS = f"""
layer {{ name: "rows" type: "Reshape" bottom: "mbox_conf" top: "rows"
  reshape_param {{ shape {{ dim: 0 dim: -1 dim: {CLASSES} }} }} }}
layer {{ name: "soft" type: "Softmax" bottom: "rows" top: "soft" softmax_param {{ axis: 2 }} }}
layer {{ name: "flat" type: "Flatten" bottom: "soft" top: "flat" flatten_param {{ axis: 1 }} }}
layer {{ name: "found" type: "DetectionOutput" bottom: "mbox_loc" bottom: "flat" bottom: "mbox_prior" top: "found"
  detection_output_param {{ num_classes: {CLASSES} share_location: true background_label_id: 0 code_type: CENTER_SIZE
    nms_param {{ nms_threshold: 0.45 top_k: 400 }} keep_top_k: 400 confidence_threshold: 0.01 }} }}
"""
PREPROCESS = Preprocess(SIDE, SIDE, (128.0, 128.0, 128.0), (1 / 64,) * 3)


def ssd() -> str:
    text = f'name: "ssd" input: "data" input_shape {{ dim: 1 dim: 3 dim: {SIDE} dim: {SIDE} }}\n'
    for n in range(3):
        text += CONV.format(name=f"c{n}", bottom=f"c{n - 1}" if n else "data", outputs=8, stride=2)
        text += f'layer {{ name: "r{n}" type: "ReLU" bottom: "c{n}" top: "c{n}" }}\n'
    for n in (1, 2):
        for role, outputs in (("loc", 12), ("conf", 3 * CLASSES)):
            text += CONV.format(name=f"{role}{n}", bottom=f"c{n}", outputs=outputs, stride=1)
            text += BRANCH.format(name=f"{role}{n}")
        text += PRIOR.format(n=n, bottom=f"c{n}", size=6 * n)
    for name, axis in (("loc", 1), ("conf", 1)):
        text += concat(f"mbox_{name}", [f"{name}1_flat", f"{name}2_flat"], axis)
    return text + concat("mbox_prior", ["prior1", "prior2"], 2) + DETECTIONS


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    folder = tmp_path_factory.mktemp("ssd")
    (folder / "ssd.prototxt").write_text(ssd())
    write_random(folder / "ssd.prototxt", folder / "ssd.caffemodel")
    return convert(folder / "ssd.prototxt", folder / "ssd.caffemodel")


def image() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)


def blob_of(pixels: np.ndarray) -> np.ndarray:
    """BGR, as Caffe's networks take it."""
    return np.ascontiguousarray(((pixels[..., ::-1].astype(np.float32) - 128) / 64).transpose(2, 0, 1)[None])


def blobs(model: onnx.ModelProto, data: np.ndarray, *names: str) -> list[np.ndarray]:
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(extended.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(list(names), {"data": data}))


def test_the_metadata_say_what_the_layer_reads(model: onnx.ModelProto) -> None:
    stated = json.loads({one.key: one.value for one in model.metadata_props}["camrt.detections"])
    assert {name: stated[name] for name in ("scores", "form", "unit", "background")} == {
        "scores": "flat", "form": "corners", "unit": "shares", "background": 0,
    }  # fmt: skip


def test_detections_are_those_of_detection_output(model: onnx.ModelProto) -> None:
    """Each class on its own, in its order; and the best of all."""
    (rows,) = blobs(model, blob_of(image()), "found")
    rows = rows.reshape(-1, 7)
    explainer = Explainer(model, "eigencam", preprocess=PREPROCESS, top=3)
    assert (explainer.explained, explainer.target) == ("box", "box")
    best = rows[rows[:, 2].argmax()]
    found = explainer(image())
    np.testing.assert_allclose(found.scores[0], best[2], rtol=1e-5)
    compared = 0
    for label in range(1, CLASSES):
        wanted = rows[rows[:, 1] == label][:3]
        found = explainer(image(), target=[f"box:{rank}:{label}" for rank in range(1, len(wanted) + 1)])
        count = len(wanted)
        assert found.classes[:count].tolist() == [label] * count
        assert found.detections is not None
        np.testing.assert_allclose(found.scores[:count], wanted[:, 2], rtol=1e-5)
        np.testing.assert_allclose(found.detections[:count], wanted[:, 3:] * SIDE, atol=1e-3)
        compared += count
    assert compared > 6


def test_the_gradient_is_that_of_the_score_before_the_softmax(model: onnx.ModelProto) -> None:
    """By finite differences of Caffe's blob, along the gradient of the graph."""
    explainer = explain_graph(model, "input-gradient", target="box:best", preprocess=PREPROCESS)
    explainer.graph.output.extend([onnx.ValueInfoProto(name=GRADIENT)])
    session = onnxruntime.InferenceSession(explainer.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"image": image()[None], "box": np.zeros((1, 1, 4), np.float32), "target": np.full((1, 1), -1)}
    gradient, classes, scores = session.run([GRADIENT, "classes", "scores"], feeds)
    data, (soft,) = blob_of(image()), blobs(model, blob_of(image()), "soft")
    prior = int(abs(soft[0, :, int(classes[0, 0])] - scores[0, 0]).argmin())
    step = gradient.reshape(data.shape) / np.linalg.norm(gradient) * 0.05
    (above,), (below,) = (blobs(model, data + sign * step, "rows") for sign in (1, -1))
    slope = (above - below)[0, prior, int(classes[0, 0])] / 0.1
    np.testing.assert_allclose(slope, np.linalg.norm(gradient), rtol=0.02)  # ReLUs on the way


def test_the_default_layers_are_the_sources_of_the_boxes(model: onnx.ModelProto) -> None:
    explainer = explain_graph(model, preprocess=PREPROCESS)
    facts = json.loads({one.key: one.value for one in explainer.metadata_props}["camrt.explainer"])
    assert facts["method"] == "hirescam"
    assert [name.split(".")[0] for name in facts["layer"]] == ["c1", "c2"]
    assert "camrt.detections" not in {one.key for one in explainer.metadata_props}
