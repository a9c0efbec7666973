"""R-FCN's pooling of regions against its definition in NumPy, OpenCV and ncnn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.converters.detectors import psroi_pooled
from tests.converters.ncnn_layer import ncnn_layer
from tests.converters.one_layer import (
    OneLayer,
    assert_close,
    assert_emits_what_is_declared,
    assert_error_names_layer,
    run,
)

F = np.float32


def layer(outputs: int, group: int, scale: float, shape: tuple[int, ...], rois: tuple[int, ...]) -> OneLayer:
    param = f"psroi_pooling_param {{ spatial_scale: {scale} output_dim: {outputs} group_size: {group} }}"
    return OneLayer(f'type: "PSROIPooling" top: "y" {param}', {"x": shape, "rois": rois})


def regions(count: int, size: float, seed: int, images: int = 1) -> np.ndarray:
    """Regions of all sizes, some beyond the image, some with corners at halves."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(-0.1 * size, size, (count, 2))
    corners = np.concatenate([low, low + rng.uniform(0, size, (count, 2)) ** 1.1], axis=1)
    corners[::3] = np.floor(corners[::3]) + 0.5
    return np.concatenate([rng.integers(0, images, (count, 1)), corners], axis=1).astype(F)


@pytest.mark.parametrize(("outputs", "group", "scale"), [(3, 7, 0.0625), (4, 3, 0.125), (2, 1, 0.3), (1, 5, 1.0)])
def test_psroi_pooling(outputs: int, group: int, scale: float) -> None:
    one = layer(outputs, group, scale, (1, outputs * group**2, 11, 17), (4, 5))
    model = one.model()
    for images, count in ((1, 40), (3, 25), (2, 1)):
        rng = np.random.default_rng(images)
        maps = (rng.normal(size=(images, outputs * group**2, 11, 17)) + 3).astype(F)
        rois = regions(count, 11 / scale, seed=count, images=images)
        (found,) = run(model, {"x": maps, "rois": rois})
        assert_close(found, psroi_pooled(maps, rois, scale, outputs, group))


def test_regions_of_four_axes() -> None:
    maps = np.random.default_rng(0).normal(size=(1, 8, 6, 6)).astype(F)
    rois = regions(6, 96, seed=0)
    (found,) = layer(2, 2, 0.0625, maps.shape, (6, 5, 1, 1)).run({"x": maps, "rois": rois.reshape(6, 5, 1, 1)})
    assert_close(found, psroi_pooled(maps, rois, 0.0625, 2, 2))


def test_a_bin_beyond_the_map_is_zero() -> None:
    maps = np.ones((1, 4, 4, 4), F)
    rois = np.array([[0, 500, 500, 600, 600], [0, -90, -90, -40, -40], [0, 40, 0, 90, 63]], F)
    (found,) = layer(1, 2, 0.0625, maps.shape, (3, 5)).run({"x": maps, "rois": rois})
    np.testing.assert_array_equal(found[:, 0], [[[0, 0], [0, 0]], [[0, 0], [0, 0]], [[1, 0], [1, 0]]])


def test_small_averages_beside_large_sums_keep_their_precision() -> None:
    """An integral image in single precision would lose them."""
    maps = np.full((1, 1, 60, 100), 1e4, F)
    maps[0, 0, 50:, 90:] = np.random.default_rng(0).normal(size=(10, 10))
    rois = np.array([[0, 90, 50, 91, 51], [0, 95, 55, 98, 58]], F)
    (found,) = layer(1, 1, 1.0, maps.shape, (2, 5)).run({"x": maps, "rois": rois})
    np.testing.assert_allclose(found, psroi_pooled(maps, rois, 1.0, 1, 1), rtol=1e-6)


def test_as_opencv(tmp_path: Path) -> None:
    maps = np.random.default_rng(0).normal(size=(1, 3 * 49, 20, 30)).astype(F)
    rois = regions(50, 400, seed=1)
    one = layer(3, 7, 0.0625, maps.shape, rois.shape)
    inputs = {"x": maps, "rois": rois}
    assert_close(one.run(inputs)[0], one.opencv(inputs, tmp_path))


def test_as_ncnn(tmp_path: Path) -> None:
    """ncnn takes a region at a time, without the image."""
    maps = np.random.default_rng(0).normal(size=(1, 3 * 49, 20, 30)).astype(F)
    rois = regions(12, 300, seed=2)
    (found,) = layer(3, 7, 0.0625, maps.shape, rois.shape).run({"x": maps, "rois": rois})
    for roi, answer in zip(rois, found, strict=True):
        inputs = {"x": maps[0], "rois": roi[1:].reshape(1, 1, 4)}
        (expected,) = ncnn_layer("PSROIPooling", "0=7 1=7 2=0.0625 3=3", inputs, ("y",), tmp_path)
        assert_close(answer, expected)


def test_operators() -> None:
    assert_emits_what_is_declared(layer(2, 2, 0.0625, (1, 8, 6, 6), (1, 5)))


SHAPES = {"x": (1, 12, 6, 6), "rois": (2, 5)}
ERRORS = {
    "parameters": ("output_dim: 3 spatial_scale: 0.5", SHAPES, "group_size 0"),
    "scale": ("output_dim: 3 group_size: 2", SHAPES, "spatial_scale 0"),
    "channels": ("output_dim: 2 group_size: 2 spatial_scale: 0.5", SHAPES, "expected N x 8 x H x W"),
    "regions": ("output_dim: 3 group_size: 2 spatial_scale: 0.5", {**SHAPES, "rois": (2, 4)}, "5 numbers per region"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_the_layer(name: str) -> None:
    param, shapes, message = ERRORS[name]
    assert_error_names_layer(
        OneLayer(f'type: "PSROIPooling" top: "y" psroi_pooling_param {{ {param} }}', shapes), message
    )
