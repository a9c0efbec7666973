"""CRF-RNN's mean field inference, against the same computed pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

from tests.converters.one_layer import OneLayer, assert_close, assert_error_names_layer, run

SCENE = {"unary": (1, 4, 5, 6), "scores": (1, 4, 5, 6), "image": (1, 3, 5, 6)}
THETAS = "theta_alpha: 4 theta_beta: 0.7 theta_gamma: 2"


def mean_field(param: str = f"num_iterations: 3 {THETAS}", further: int = 0, shapes: dict = SCENE) -> OneLayer:
    rng = np.random.default_rng(3)
    blobs = [rng.normal(size=(1, 1, 4, 4)).astype(np.float32) for _ in range(3)]
    blobs += [np.zeros((1, 1, 1, 4), np.float32) for _ in range(further)]
    layer = f'type: "MultiStageMeanfield" top: "y" multi_stage_meanfield_param {{ {param} }}'
    return OneLayer(layer, shapes, tuple(blobs))


def mean_field_of(
    unary: np.ndarray, scores: np.ndarray, image: np.ndarray, blobs: tuple[np.ndarray, ...]
) -> np.ndarray:
    """Pixel by pixel, with exact Gaussians where the original has the lattice."""
    classes, height, width = unary.shape
    pixels = list(np.ndindex(height, width))
    spatial, bilateral, compatibility = (blob.reshape(classes, classes).astype(np.float64) for blob in blobs[:3])

    def kernels(one: tuple[int, int], other: tuple[int, int]) -> np.ndarray:
        away = sum((a - b) ** 2 for a, b in zip(one, other, strict=True))
        color = ((image[:, *one] - image[:, *other]) ** 2).sum()
        return np.exp([-away / (2 * 2**2), -away / (2 * 4**2) - color / (2 * 0.7**2)])

    for _ in range(3):
        belief = np.exp(scores) / np.exp(scores).sum(axis=0)
        following = np.zeros_like(scores, dtype=np.float64)
        for one in pixels:
            weights = np.array([kernels(one, other) for other in pixels])
            beliefs = np.array([belief[:, *other] for other in pixels])
            filtered = weights.T @ beliefs / weights.sum(axis=0)[:, None]
            message = spatial @ filtered[0] + bilateral @ filtered[1]
            following[:, *one] = unary[:, *one] - compatibility @ message
        scores = following
    return scores


@pytest.mark.parametrize("further", [0, 4])
def test_mean_field(further: int) -> None:
    one = mean_field(further=further)
    model = one.model()
    for batch in (1, 2):
        rng = np.random.default_rng(batch)
        inputs = {name: rng.normal(size=(batch, *shape[1:])).astype(np.float32) for name, shape in one.shapes.items()}
        expected = [mean_field_of(*(inputs[name][n] for name in SCENE), one.blobs) for n in range(batch)]
        assert_close(run(model, inputs)[0], np.array(expected, np.float32))


def test_mean_field_of_a_large_image_says_how_far_the_network_converts() -> None:
    large = {name: (*shape[:2], 500, 500) for name, shape in SCENE.items()}
    assert_error_names_layer(mean_field(shapes=large), "500 x 500, expected at most 4,096 pixels.*--outputs unary")


CASES = {"mean field": mean_field()}


ERRORS = {
    "gray": ('type: "MultiStageMeanfield"', {**SCENE, "image": (1, 1, 5, 6)}, "N x 3 x H x W"),
    "no theta": ('type: "MultiStageMeanfield"', SCENE, "theta_alpha 0"),
    "no iterations": (
        f'type: "MultiStageMeanfield" multi_stage_meanfield_param {{ num_iterations: 0 {THETAS} }}',
        SCENE,
        "num_iterations 0",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_the_layer(name: str) -> None:
    layer, shapes, message = ERRORS[name]
    assert_error_names_layer(OneLayer(f'{layer} top: "out"', shapes), message)
