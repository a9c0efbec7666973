"""tinyCAM: OpenCV's own importer says what the network computes, the drawing where its maps must lie."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest

from camrt import explain_graph, matlab
from tests import tiny_cam as tiny
from tests.tiny_cam import opencv


@pytest.fixture(scope="module")
def explained() -> dict[str, np.ndarray]:
    """The explainer's answers on the sample image."""
    session = onnxruntime.InferenceSession(explain_graph(tiny.convert(), protocol="ten-crop").SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"image": tiny.sample_image()[None]}), strict=True))


def test_the_files_are_a_network_that_opencv_reads_alike(tmp_path: Path) -> None:
    crops = matlab.prepare_image(tiny.sample_image(), np.full(3, tiny.GREY))
    features, scores = opencv(tmp_path, crops)
    session = onnxruntime.InferenceSession(tiny.convert().SerializeToString())
    ours = session.run([tiny.FEATURES, "prob"], {"data": crops})
    assert ours[0].shape == (10, 6, 14, 14)
    np.testing.assert_allclose(ours[0], features, atol=1e-4)
    np.testing.assert_allclose(ours[1], scores, atol=1e-5)


def test_the_explainer_gives_the_maps_of_the_original(tmp_path: Path, explained: dict[str, np.ndarray]) -> None:
    """OpenCV's features, then the MATLAB code in NumPy."""
    features, scores = opencv(tmp_path, matlab.prepare_image(tiny.sample_image(), np.full(3, tiny.GREY)))
    classes, best = matlab.top_classes(scores)
    maps = matlab.demo_maps(matlab.return_cam_map(features, tiny.weights()["CAM_fc"][0][classes]))
    assert explained["classes"][0].tolist() == classes.tolist()
    np.testing.assert_allclose(explained["scores"][0][classes], best, atol=1e-5)
    np.testing.assert_allclose(explained["heatmaps"][0], maps, atol=1e-4 * maps.max())


# What of the picture has which colour, told by its pixels.
WHERE = {
    "red": lambda r, g, b: (r > 150) & (g < 100),
    "green": lambda r, g, b: (g > 140) & (r < 100),
    "blue": lambda r, g, b: (b > 180) & (r < 100),
    "yellow": lambda r, g, b: (r > 200) & (g > 180) & (b < 100),
    "upright stripes": lambda r, g, b: ((r > 220) & (b > 220)) | ((r < 40) & (g < 40) & (b < 40)),
}


@pytest.mark.parametrize("label", WHERE)
def test_each_map_lies_on_its_shape(label: str, explained: dict[str, np.ndarray]) -> None:
    shape = WHERE[label](*tiny.sample_image().astype(int).transpose(2, 0, 1))
    assert shape.sum() > 1000
    classes = [tiny.LABELS[number] for number in explained["classes"][0]]
    heatmap = explained["heatmaps"][0][classes.index(label)]
    near = cv2.dilate(shape.astype(np.uint8), np.ones((33, 33))) > 0
    hot = heatmap > heatmap.max() / 2
    assert near[hot].all(), "what is red in the picture lies on the shape, or a cell of the features beside it"
    assert hot[shape].mean() > 0.35
    others = np.any(
        [WHERE[other](*tiny.sample_image().astype(int).transpose(2, 0, 1)) for other in WHERE if other != label], 0
    )
    assert heatmap[others & ~near].max(initial=0) < 0.1 * heatmap.max()


@pytest.mark.parametrize(
    ("color", "label"),
    [((200, 30, 30), "red"), ((40, 190, 60), "green"), ((30, 60, 220), "blue"), ((230, 220, 40), "yellow")],
)
def test_plain_surfaces_have_their_colour(color: tuple[int, int, int], label: str) -> None:
    assert best(np.full((256, 256, 3), color, np.uint8)) == label


def test_stripes_have_their_direction() -> None:
    lines = np.where(np.arange(256) // 4 % 2, 230, 20).astype(np.uint8)
    upright = np.broadcast_to(lines[None, :, None], (256, 256, 3))
    assert best(upright) == "upright stripes"
    assert best(upright.transpose(1, 0, 2)) == "lying stripes"


def best(image: np.ndarray) -> str:
    session = onnxruntime.InferenceSession(tiny.convert().SerializeToString())
    (scores,) = session.run(
        ["prob"], {"data": matlab.prepare_image(np.ascontiguousarray(image), np.full(3, tiny.GREY))}
    )
    mean = scores.mean(axis=0)
    assert mean.max() > 0.5
    return tiny.LABELS[int(mean.argmax())]


def test_it_sees_nothing_in_grey() -> None:
    session = onnxruntime.InferenceSession(tiny.convert().SerializeToString())
    crops = matlab.prepare_image(np.full((256, 256, 3), 150, np.uint8), np.full(3, tiny.GREY))
    assert not session.run([tiny.FEATURES], {"data": crops})[0].any()


def test_the_picture_is_the_same_every_time() -> None:
    image = tiny.sample_image()
    assert image.shape == (256, 256, 3)
    assert image.dtype == np.uint8
    assert (image == tiny.sample_image()).all()
