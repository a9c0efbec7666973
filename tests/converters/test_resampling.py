"""Interp and Upsample, against their definitions written out in NumPy. Caffe's own answers are in test_layers."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.converters.one_layer import OneLayer, assert_close, assert_error_names_layer, run

# ------------------------------------------------------------------------------------------------------------- Interp

# Parameters -> the output of an image of 5 x 7.
SIZES = {
    "height: 9 width: 13": (9, 13),
    "height: 3 width: 20": (3, 20),
    "height: 1 width: 1": (1, 1),
    "height: 5 width: 7": (5, 7),
    "zoom_factor: 3": (13, 19),
    "shrink_factor: 2": (3, 4),
    "shrink_factor: 3": (2, 3),
    "shrink_factor: 2 zoom_factor: 4": (9, 13),
    "shrink_factor: 2 zoom_factor: 4 height: 6 width: 8": (6, 8),
    "zoom_factor: 2 height: 4 width: 4": (9, 13),
    "height: 8 width: 8 pad_beg: -1 pad_end: -2": (8, 8),
    "zoom_factor: 2 pad_beg: -1": (7, 11),
    "zoom_factor: 1 pad_end: -2": (3, 5),
}


def interpolated(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear; first and last pixels stay first and last."""
    y = np.zeros((*x.shape[:2], *size))
    steps = [(old - 1) / (new - 1) if new > 1 else 0 for old, new in zip(x.shape[2:], size, strict=True)]
    for h, w in np.ndindex(*size):
        (top, down), (left, across) = (divmod(at * step, 1) for at, step in zip((h, w), steps, strict=True))
        rows = [min(int(top) + one, x.shape[2] - 1) for one in (0, 1)]
        columns = [min(int(left) + one, x.shape[3] - 1) for one in (0, 1)]
        for row, column, weight in [
            (rows[0], columns[0], (1 - down) * (1 - across)),
            (rows[0], columns[1], (1 - down) * across),
            (rows[1], columns[0], down * (1 - across)),
            (rows[1], columns[1], down * across),
        ]:
            y[:, :, h, w] += weight * x[:, :, row, column]
    return y.astype(np.float32)


def interp(param: str, shape: tuple[int, ...] = (2, 3, 5, 7)) -> OneLayer:
    return OneLayer(f'type: "Interp" top: "y" interp_param {{ {param} }}', {"x": shape})


@pytest.mark.parametrize("opset", [13, 17, 18])
@pytest.mark.parametrize("param", SIZES)
def test_interp(param: str, opset: int) -> None:
    model = interp(param).model(opset)
    first, last = (1 if "pad_beg" in param else 0), (-2 if "pad_end" in param else None)
    for batch in (1, 2, 3):
        x = np.random.default_rng(batch).normal(size=(batch, 3, 5, 7)).astype(np.float32)
        assert_close(run(model, {"x": x})[0], interpolated(x[:, :, first:last, first:last], SIZES[param]))


def test_interp_enlarges_a_pixel() -> None:
    x = np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1)
    assert_close(interp("height: 4 width: 6", (1, 3, 1, 1)).run({"x": x})[0], np.broadcast_to(x, (1, 3, 4, 6)))


@pytest.mark.parametrize("param", ["height: 9 width: 13", "zoom_factor: 3", "height: 3 width: 20"])
def test_interp_as_opencv(param: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 7)).astype(np.float32)
    assert_close(interp(param).run({"x": x})[0], interp(param).opencv({"x": x}, tmp_path))


def test_interp_to_the_size_of_a_second_blob() -> None:
    one = OneLayer('type: "Interp" top: "y"', {"x": (1, 3, 5, 7), "like": (1, 9, 8, 4)})
    x = np.random.default_rng(0).normal(size=(1, 3, 5, 7)).astype(np.float32)
    assert_close(one.run({"x": x, "like": np.zeros((1, 9, 8, 4))})[0], interpolated(x, (8, 4)))


def test_caffe_models_interp_takes_the_second_bottoms_size() -> None:
    """Align-corners interpolation, at positions that lie on the pixels: every other pixel is an old one."""
    x = np.random.default_rng(2).normal(size=(2, 3, 4, 5)).astype(np.float32)
    one = OneLayer('type: "Interp" top: "y" interp_param { use_blob_size: true }', {"x": x.shape, "ref": (2, 7, 7, 9)})
    (found,) = one.run({"x": x, "ref": np.zeros((2, 7, 7, 9))})
    assert found.shape == (2, 3, 7, 9)
    assert_close(found[:, :, ::2, ::2], x)
    assert_close(found[:, :, 1::2, ::2], (x[:, :, 1:] + x[:, :, :-1]) / 2)


# ----------------------------------------------------------------------------------------------------------- Upsample

UNPOOLED = {
    "": (6, 8),
    "scale: 2": (6, 8),
    "scale: 3": (9, 12),
    "scale_h: 2 scale_w: 3": (6, 12),
    "scale: 2 pad_out_h: true": (5, 8),
    "pad_out_h: true pad_out_w: true": (5, 7),
    "upsample_h: 7 upsample_w: 9": (7, 9),
    "scale: 2 upsample_h: 5 upsample_w: 7": (5, 7),
}


@pytest.mark.parametrize("opset", [13, 17, 18])
@pytest.mark.parametrize("param", UNPOOLED)
def test_upsample_with_a_mask(param: str, opset: int) -> None:
    size = UNPOOLED[param]
    layer = f'type: "Upsample" top: "y" upsample_param {{ {param} }}'
    model = OneLayer(layer, {"x": (2, 3, 3, 4), "mask": (2, 3, 3, 4)}).model(opset)
    for batch in (1, 2, 3):
        rng = np.random.default_rng(batch)
        x = rng.normal(size=(batch, 3, 3, 4)).astype(np.float32)
        mask = np.stack([rng.permutation(size[0] * size[1])[:12] for _ in range(batch * 3)]).reshape(x.shape)
        expected = np.zeros((batch, 3, *size), np.float32)
        for n, c, h, w in np.ndindex(*x.shape):
            expected[n, c].flat[mask[n, c, h, w]] = x[n, c, h, w]
        np.testing.assert_array_equal(run(model, {"x": x, "mask": mask})[0], expected)


def test_upsample_undoes_max_pooling() -> None:
    """Every maximum goes back to its place: the mask of our own Pooling fits."""
    x = np.random.default_rng(0).permutation(2 * 3 * 6 * 8).reshape(2, 3, 6, 8).astype(np.float32)
    pool = OneLayer('type: "Pooling" top: "p" top: "m" pooling_param { kernel_size: 2 stride: 2 }', {"x": x.shape})
    values, mask = pool.run({"x": x})
    back = OneLayer('type: "Upsample" top: "y"', {"x": values.shape, "mask": mask.shape}).run(
        {"x": values, "mask": mask}
    )[0]
    kept = np.repeat(np.repeat(values, 2, axis=2), 2, axis=3) == x
    np.testing.assert_array_equal(back, np.where(kept, x, 0))


@pytest.mark.parametrize(
    ("param", "times"),
    [("scale: 2", (2, 2)), ("stride: 2", (2, 2)), ("stride: 1", (1, 1)), ("scale_h: 2 scale_w: 3", (2, 3))],
)
@pytest.mark.filterwarnings("ignore::converters.ConversionWarning")
def test_upsample_without_a_mask_repeats_pixels(param: str, times: tuple[int, int]) -> None:
    one = OneLayer(f'type: "Upsample" top: "y" upsample_param {{ {param} }}', {"x": (1, 3, 5, 7)})
    model = one.model()
    for batch in (1, 3):
        x = np.random.default_rng(batch).normal(size=(batch, 3, 5, 7)).astype(np.float32)
        expected = np.repeat(np.repeat(x, times[0], axis=2), times[1], axis=3)
        np.testing.assert_array_equal(run(model, {"x": x})[0], expected)
    large = cv2.resize(x[0, 0], None, fx=times[1], fy=times[0], interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(run(model, {"x": x})[0][0, 0], large)


# ------------------------------------------------------------------------------------------------------------- errors

IMAGE = {"x": (1, 3, 5, 7)}
MASKED = {"x": (1, 3, 5, 7), "mask": (1, 3, 5, 7)}
ERRORS = {
    "no size": ('type: "Interp"', IMAGE, "found no size"),
    "height only": ('type: "Interp" interp_param { height: 4 }', IMAGE, "found no size"),
    "height 0": ('type: "Interp" interp_param { height: 0 width: 4 }', IMAGE, "height 0"),
    "zoom 0": ('type: "Interp" interp_param { zoom_factor: 0 }', IMAGE, "zoom_factor 0"),
    "padding": ('type: "Interp" interp_param { zoom_factor: 2 pad_beg: 1 }', IMAGE, "pad_beg 1"),
    "all cropped": ('type: "Interp" interp_param { zoom_factor: 2 pad_beg: -5 }', IMAGE, "pad_beg -5"),
    "flat": ('type: "Interp" interp_param { zoom_factor: 2 }', {"x": (1, 3)}, "expected N x C x H x W"),
    "large": ('type: "Interp" interp_param { height: 100000 width: 100000 }', IMAGE, "expected at most"),
    "three bottoms": ('type: "Interp"', {**MASKED, "z": (1, 3, 5, 7)}, "bottom"),
    "no scale": ('type: "Upsample"', IMAGE, "found one bottom and no scale"),
    "scale 0": ('type: "Upsample" upsample_param { scale: 0 }', IMAGE, "at least 1"),
    "scale 1": ('type: "Upsample" upsample_param { scale: 1 }', MASKED, "scale 1 x 1"),
    "half a scale": ('type: "Upsample" upsample_param { scale_h: 2 }', MASKED, "one of a pair"),
    "half a size": ('type: "Upsample" upsample_param { upsample_w: 2 }', MASKED, "one of a pair"),
    "two scales": ('type: "Upsample" upsample_param { scale: 2 scale_h: 2 scale_w: 2 }', MASKED, "two forms"),
    "padding of 3": ('type: "Upsample" upsample_param { scale: 3 pad_out_h: true }', MASKED, "2 where pad_out"),
    "size 1": ('type: "Upsample" upsample_param { upsample_h: 1 upsample_w: 9 }', MASKED, "upsample 1 x 9"),
    "another mask": ('type: "Upsample"', {**MASKED, "mask": (1, 3, 5, 6)}, "for the blob 'mask'"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_the_layer(name: str) -> None:
    layer, shapes, message = ERRORS[name]
    assert_error_names_layer(OneLayer(f'{layer} top: "y"', shapes), message)
