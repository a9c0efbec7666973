"""BN, Axpy, ShuffleChannel and ReLU6, against their formulas. Caffe's own answers are in test_layers."""

from __future__ import annotations

import numpy as np
import pytest

from converters import ConversionWarning, convert
from tests.converters.one_layer import OneLayer, assert_close, assert_error_names_layer, run

RNG = np.random.default_rng(0)
PER_CHANNEL = (1, 3, 1, 1)
SCALE, SHIFT, MEAN = (RNG.normal(size=PER_CHANNEL).astype(np.float32) for _ in range(3))
VARIANCE = RNG.uniform(0.5, 2, PER_CHANNEL).astype(np.float32)
IMAGE = {"x": (2, 3, 4, 5)}


def images(batch: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(batch).normal(size=(batch, channels, 4, 5)).astype(np.float32)


def test_segnets_bn_with_statistics_in_its_blobs() -> None:
    model = OneLayer('type: "BN" top: "y" bn_param { bn_mode: INFERENCE }', IMAGE, (SCALE, SHIFT)).model()
    for batch in (1, 2, 3):
        x = images(batch)
        assert_close(run(model, {"x": x})[0], x * SCALE + SHIFT)


def test_segnets_bn_with_the_statistics_of_the_batch() -> None:
    model = OneLayer('type: "BN" top: "y" top: "mean" top: "variance"', IMAGE, (SCALE, SHIFT)).model()
    for batch in (1, 2, 3):
        x = images(batch)
        mean, variance = np.zeros(PER_CHANNEL, np.float32), np.zeros(PER_CHANNEL, np.float32)
        expected = np.zeros_like(x)
        for channel in range(3):
            values = x[:, channel].astype(np.float64)
            mean[0, channel], variance[0, channel] = values.mean(), (values**2).mean() - values.mean() ** 2
            normalized = (values - values.mean()) / np.sqrt(values.var() + 1e-9)
            expected[:, channel] = normalized * SCALE[0, channel] + SHIFT[0, channel]
        for found, wanted in zip(run(model, {"x": x}), (expected, mean, variance), strict=True):
            assert_close(found, wanted)


@pytest.mark.parametrize(
    ("param", "eps"), [("", 1e-5), ("bn_param { eps: 0.1 }", 0.1), ("bn_param { frozen: true }", 1e-5)]
)
def test_pspnets_bn(param: str, eps: float) -> None:
    model = OneLayer(f'type: "BN" top: "y" {param}', IMAGE, (SCALE, SHIFT, MEAN, VARIANCE)).model()
    for batch in (1, 2, 3):
        x = images(batch)
        assert_close(run(model, {"x": x})[0], (x - MEAN) / np.sqrt(VARIANCE + np.float32(eps)) * SCALE + SHIFT)


@pytest.mark.parametrize("rank", [2, 4])
def test_axpy(rank: int) -> None:
    trailing = (1,) * (rank - 2)
    model = OneLayer('type: "Axpy" top: "out"', {"a": (1, 3, *trailing), "x": (1, 3, 4, 5), "y": (1, 3, 4, 5)}).model()
    for batch in (1, 2, 3):
        a = np.random.default_rng(9).normal(size=(batch, 3, *trailing)).astype(np.float32)
        x, y = images(batch), images(batch)[::-1].copy()
        expected = np.zeros_like(x)
        for n, c in np.ndindex(batch, 3):
            expected[n, c] = a[n, c] * x[n, c] + y[n, c]
        assert_close(run(model, {"a": a, "x": x, "y": y})[0], expected)


@pytest.mark.parametrize("group", [1, 2, 3, 6])
def test_shuffle_channel(group: int) -> None:
    one = OneLayer(f'type: "ShuffleChannel" top: "y" shuffle_channel_param {{ group: {group} }}', {"x": (1, 6, 4, 5)})
    model = one.model()
    order = [first + step * (6 // group) for first in range(6 // group) for step in range(group)]
    for batch in (1, 3):
        x = images(batch, 6)
        np.testing.assert_array_equal(run(model, {"x": x})[0], x[:, order])


def test_relu6() -> None:
    x = np.array([[-7, -0.5, 0, 0.5, 6, 6.5, 100]], np.float32)
    (found,) = OneLayer('type: "ReLU6" top: "y"', {"x": x.shape}).run({"x": x})
    np.testing.assert_array_equal(found, [[0, 0, 0, 0.5, 6, 6, 6]])


# -------------------------------------------------------------------------------------------------------------- CRF-RNN

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

TRIPLE = {"a": (2, 3), "x": (2, 3, 4, 5), "y": (2, 3, 4, 5)}
ERRORS = {
    "no blobs": ('type: "BN"', IMAGE, "found no weights"),
    "flat": ('type: "BN"', {"x": (2, 3)}, "expected N x C x H x W"),
    "statistics of none": ('type: "BN" top: "mean" bn_param { bn_mode: INFERENCE }', IMAGE, "found 2 tops"),
    "two blobs": ('type: "Axpy"', {"a": (2, 3), "x": (2, 3, 4, 5)}, "bottom"),
    "another y": ('type: "Axpy"', {**TRIPLE, "y": (2, 3, 4, 4)}, "for the blob 'y'"),
    "other factors": ('type: "Axpy"', {**TRIPLE, "a": (2, 4)}, "found factors"),
    "large factors": ('type: "Axpy"', {**TRIPLE, "a": (2, 3, 4, 1)}, "found factors"),
    "group": ('type: "ShuffleChannel" shuffle_channel_param { group: 2 }', IMAGE, "group 2 for 3 channels"),
    "group 0": ('type: "ShuffleChannel" shuffle_channel_param { group: 0 }', IMAGE, "group 0"),
    "gray": ('type: "MultiStageMeanfield"', {**SCENE, "image": (1, 1, 5, 6)}, "N x 3 x H x W"),
    "no theta": ('type: "MultiStageMeanfield"', SCENE, "theta_alpha 0"),
    "no iterations": (
        f'type: "MultiStageMeanfield" multi_stage_meanfield_param {{ num_iterations: 0 {THETAS} }}',
        SCENE,
        "num_iterations 0",
    ),
    "slope": ('type: "ReLU6" relu6_param { negative_slope: 0.1 }', IMAGE, "negative_slope 0.1"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_the_layer(name: str) -> None:
    layer, shapes, message = ERRORS[name]
    blobs = (SCALE, SHIFT) if name == "statistics of none" else ()
    assert_error_names_layer(OneLayer(f'{layer} top: "out"', shapes, blobs), message)


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 1, 1)])
def test_caffe_windows_normalize(shape: tuple[int, ...]) -> None:
    """SSD's layer of this name has learned factors; this one has none, and its own parameters."""
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    one = OneLayer('type: "Normalize" top: "y" normalize_param { normalize_type: "L2" }', {"x": shape})
    with pytest.warns(ConversionWarning, match="normalize_param"):
        net = one.net()
    expected = np.stack([item / np.sqrt((item.astype(np.float64) ** 2).sum()) for item in x])
    assert_close(run(convert(net), {"x": x})[0], expected.astype(np.float32))


@pytest.mark.filterwarnings("ignore::converters.ConversionWarning")
@pytest.mark.parametrize(("shape", "kind"), [((2, 5, 3, 3), "L2"), ((2, 5), "L1")])
def test_caffe_windows_normalize_of_two_meanings_is_refused(shape: tuple[int, ...], kind: str) -> None:
    one = OneLayer(f'type: "Normalize" top: "y" normalize_param {{ normalize_type: "{kind}" }}', {"x": shape})
    assert_error_names_layer(one, f"normalize_type '{kind}'")


def test_caffe_models_interp_takes_the_second_bottoms_size() -> None:
    """Align-corners interpolation, at positions that lie on the pixels: every other pixel is an old one."""
    x = images(2)
    one = OneLayer('type: "Interp" top: "y" interp_param { use_blob_size: true }', {"x": x.shape, "ref": (2, 7, 7, 9)})
    (found,) = one.run({"x": x, "ref": np.zeros((2, 7, 7, 9))})
    assert found.shape == (2, 3, 7, 9)
    assert_close(found[:, :, ::2, ::2], x)
    assert_close(found[:, :, 1::2, ::2], (x[:, :, 1:] + x[:, :, :-1]) / 2)
