from __future__ import annotations

from pathlib import Path

import pytest

from camrt.graph import explain_graph
from camrt.graph.memory import bytes_per_image
from camrt.preprocess import Preprocess
from tests.camrt.classifiers import CHANNELS, SIDE, classifier
from tests.tiny_models import tiny_classifier


def test_by_hand() -> None:
    """The most is alive in the convolution, the image and features of 6 x 7 x 7 numbers, or in the ReLU behind it."""
    assert bytes_per_image(tiny_classifier()) == 4 * max(2 * 6 * 7 * 7, 3 * 28 * 28 + 6 * 7 * 7)
    network = classifier("gemm")
    assert bytes_per_image(network) == 4 * max(
        2 * CHANNELS * (SIDE // 2) ** 2, 3 * SIDE**2 + CHANNELS * (SIDE // 2) ** 2
    )


def test_more_crops_take_more(reference: Path) -> None:
    graphs = [
        explain_graph(reference / "squeezenet" / "squeezenet1_1.onnx", "gradcam", protocol, 1, preprocess="torchvision")
        for protocol in ("center", "ten-crop")
    ]
    one, ten = map(bytes_per_image, graphs)
    assert one is not None
    assert ten is not None
    # conv1 and its ReLU: 64 x 111 x 111 numbers each; beside them only the image may be alive
    assert 0 <= one - 2 * 4 * 64 * 111 * 111 <= 4 * 3 * 256 * 256
    assert 9 < ten / one < 11


def test_loops_are_not_followed() -> None:
    preprocess = Preprocess(SIDE + 4, SIDE, (104.0, 117.0, 123.0))
    assert bytes_per_image(explain_graph(classifier("gemm"), "scorecam", preprocess=preprocess)) is None


@pytest.mark.parametrize("batch", [1, "batch"])
def test_the_model_is_not_changed(batch: int | str) -> None:
    model = classifier("gemm", batch=batch)
    before = model.SerializeToString()
    assert bytes_per_image(model)
    assert model.SerializeToString() == before
