"""camrt.matlab against values worked out by hand, Pillow, Octave (tests/data/matlab) and the demo's own answers."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import scipy.io
from onnx import numpy_helper

from camrt import matlab
from camrt.preprocess import crops_of
from converters import convert, zoo
from tests.seeded import SeededModel

METHODS: tuple[matlab.Method, ...] = ("bicubic", "bilinear")
# For an image of 6 x 7: both axes grow, both shrink, one of each, one stays.
SIZES = [(12, 14), (7, 8), (9, 25), (4, 5), (1, 1), (2, 14), (20, 3), (31, 7), (6, 20), (5, 7), (6, 7)]


@pytest.fixture(scope="module")
def octave(repository: Path) -> Mapping[str, np.ndarray]:
    with np.load(repository / "tests" / "data" / "matlab" / "octave.npz") as answers:
        return dict(answers)


@pytest.fixture(scope="module")
def demo(reference: Path) -> Mapping[str, np.ndarray]:
    """The released data in Python's order of axes, and what the original made of them."""
    folder = reference / "matlab_demo"
    files = [scipy.io.loadmat(folder / name) for name in ("data_net.mat", "data_img1.mat", "ilsvrc_2012_mean.mat")]
    with np.load(folder / "expected_img1.npz") as expected:
        return {
            **expected,
            "weights": files[0]["weights_LR"].T,
            "features": files[1]["activation_lastconv"].T,
            "scores": files[1]["scores"].T.reshape(10, -1),
            "mean": files[2]["mean_data"].transpose(1, 0, 2),
            "image": cv2.imread(str(folder / "img1.jpg"))[:, :, ::-1],
            "png": cv2.imread(str(folder / "result_img1.png"))[:, :, ::-1],
        }


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, shape).astype(dtype)


def largest_error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest expected value."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_module_needs_numpy_alone(repository: Path) -> None:
    tree = ast.parse((repository / "camrt" / "matlab.py").read_text())
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"__future__", "typing", "numpy", "numpy.typing"}


# --------------------------------------------------------------------------------------------- imresize, by hand


@pytest.mark.parametrize(
    ("method", "values", "expected"),
    [
        # Two pixels to three. The first stands at 5/6: 1/6, 5/6, 7/6, 11/6 from its neighbours, where cubic convolution
        # is 0.9375, 0.131944, -0.064815 and -0.004630.
        ("bicubic", [10, 6], [10 + 5 / 18, 8, 6 - 5 / 18]),
        ("bilinear", [10, 6], [10, 8, 6]),
        # Twice as wide: 1/4, 3/4, 5/4, 7/4 away, where cubic convolution is 111, 29, -9, -3 of 128.
        ("bicubic", [0, 0, 128, 0, 0], [0, -3, -9, 29, 111, 111, 29, -9, -3, 0]),
        ("bilinear", [0, 4, 8], [0, 1, 3, 5, 7, 8]),
        # The border is a mirror: the first pixel counts again as the one before it.
        ("bicubic", [128, 0, 0, 0], [111 + 29, 111 - 9, 29 - 3, -9, -3, 0, 0, 0]),
        # Half as wide: the kernel is twice as wide and half as high.
        ("bicubic", [0, 0, 0, 256, 0, 0, 0, 0], [-9, 111, 29, -3]),
        ("bilinear", [0, 8, 16, 24], [5, 19]),
        # A third: the triangle is 3, 2, 1, 0 ninths high.
        ("bilinear", [0, 0, 0, 9, 0, 0, 0, 0, 0], [1, 2, 0]),
        # Mirrored more than once: one pixel, and a kernel wider than the image.
        ("bicubic", [42], [42, 42, 42, 42, 42]),
        ("bicubic", [3, 7], [5]),
    ],
)
def test_imresize_by_hand(method: matlab.Method, values: list[float], expected: list[float]) -> None:
    image = np.array([values], np.float64)
    wanted = np.array([expected])
    assert matlab.imresize(image, wanted.shape, method) == pytest.approx(wanted, abs=1e-12)
    assert matlab.imresize(image.T, wanted.T.shape, method) == pytest.approx(wanted.T, abs=1e-12)


def test_imresize_is_bicubic_if_not_told() -> None:
    image = noise(6, 7)
    assert np.array_equal(matlab.imresize(image, (9, 9)), matlab.imresize(image, (9, 9), "bicubic"))


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (np.uint8, [0, 2], [0, 1, 2, 2]),  # 0, 0.5, 1.5, 2: half away from zero, not to even
        (np.int16, [0, -2], [0, -1, -2, -2]),
        (np.uint16, [0, 65534], [0, 16384, 49151, 65534]),  # 16383.5 and 49150.5
        (np.float32, [0, 2], [0, 0.5, 1.5, 2]),
    ],
)
def test_imresize_rounds_half_away_from_zero(dtype: type, values: list[int], expected: list[float]) -> None:
    resized = matlab.imresize(np.array([values], dtype), (1, 4), "bilinear")
    assert resized.dtype == dtype
    assert resized.tolist() == [expected]


def test_imresize_clips_integers_and_not_floats() -> None:
    edge = [0, 0, 255, 255]
    rise = np.array([0, -3, -9, 29 - 3, 111 - 9, 128 + 9, 128 + 3, 128]) * 255 / 128
    assert matlab.imresize(np.array([edge], np.float64), (1, 8)) == pytest.approx(rise[None], abs=1e-12)
    assert matlab.imresize(np.array([edge], np.uint8), (1, 8)).tolist() == [[0, 0, 0, 52, 203, 255, 255, 255]]


def test_imresize_rounds_after_each_axis() -> None:
    # The rows come first: the second column becomes 0, 0.5, 1.5, 2 and is rounded to 0, 1, 2, 2. Rounded once, the
    # third pixel of the second row would be 0.375 and not 0.75.
    resized = matlab.imresize(np.array([[0, 0], [0, 2]], np.uint8), (4, 4), "bilinear")
    assert resized.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 2, 2], [0, 1, 2, 2]]


@pytest.mark.parametrize(
    ("size", "rows_first"),
    [((18, 14), False), ((12, 21), True), ((3, 5), True), ((5, 3), False), ((3, 14), True), ((12, 14), True)],
)
def test_imresize_begins_with_the_smaller_scale(size: tuple[int, int], rows_first: bool) -> None:
    image = noise(6, 7)
    orders = {
        True: matlab.imresize(matlab.imresize(image, (size[0], 7)), size),
        False: matlab.imresize(matlab.imresize(image, (6, size[1])), size),
    }
    assert not np.array_equal(orders[True], orders[False])  # uint8: the order shows
    assert np.array_equal(matlab.imresize(image, size), orders[rows_first])


def test_imresize_of_bool() -> None:
    # As uint8: 0, 63.75, 191.25, 255; and in the middle of three pixels 127.5, rounded to 128, which is not above 128.
    assert matlab.imresize(np.array([[False, True]]), (1, 4), "bilinear").tolist() == [[False, False, True, True]]
    assert matlab.imresize(np.array([[False, True]]), (1, 3), "bilinear").tolist() == [[False, False, True]]
    assert matlab.imresize(np.array([[False, True]]), (1, 2)).dtype == np.bool_


# ------------------------------------------------------------------------------------ imresize, what must always hold


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", SIZES)
class TestImresize:
    def test_weights_sum_to_one(self, size: tuple[int, int], method: matlab.Method) -> None:
        for before, after in zip((6, 7), size, strict=True):
            matrix = matlab.imresize(np.eye(before), (after, before), method)
            assert matrix.sum(axis=1) == pytest.approx(np.ones(after), abs=1e-14)

    def test_is_a_matrix_on_each_side(self, size: tuple[int, int], method: matlab.Method) -> None:
        image = noise(6, 7, dtype=np.float64)
        left, right = (matlab.imresize(np.eye(n), (m, n), method) for n, m in zip((6, 7), size, strict=True))
        assert matlab.imresize(image, size, method) == pytest.approx(left @ image @ right.T, abs=1e-10)

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
    def test_constant_stays(self, size: tuple[int, int], method: matlab.Method, dtype: type) -> None:
        resized = matlab.imresize(np.full((6, 7), 77, dtype), size, method)
        assert resized.shape == size
        assert resized.dtype == dtype
        assert resized == pytest.approx(np.full(size, 77), abs=1e-5 if dtype == np.float32 else 1e-12)

    def test_mirror_image(self, size: tuple[int, int], method: matlab.Method) -> None:
        image = noise(6, 7, dtype=np.float64)
        mirrored = matlab.imresize(image[::-1, ::-1], size, method)[::-1, ::-1]
        assert mirrored == pytest.approx(matlab.imresize(image, size, method), abs=1e-10)

    def test_border_is_mirrored(self, size: tuple[int, int], method: matlab.Method) -> None:
        image = noise(6, 7, dtype=np.float64)
        framed = np.pad(image, [(12, 12), (14, 14)], mode="symmetric")  # two images on each side
        large = matlab.imresize(framed, (5 * size[0], 5 * size[1]), method)
        inner = large[2 * size[0] : 3 * size[0], 2 * size[1] : 3 * size[1]]
        assert inner == pytest.approx(matlab.imresize(image, size, method), abs=1e-10)

    @pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.bool_])
    def test_channels_one_by_one(self, size: tuple[int, int], method: matlab.Method, dtype: type) -> None:
        image = noise(6, 7, 3, 2, dtype=np.float64) > 100 if dtype == np.bool_ else noise(6, 7, 3, 2, dtype=dtype)
        resized = matlab.imresize(image, size, method)
        assert resized.shape == (*size, 3, 2)
        assert resized.dtype == dtype
        for channel in np.ndindex(3, 2):
            assert np.array_equal(resized[..., *channel], matlab.imresize(image[..., *channel], size, method))

    def test_single_precision_is_close(self, size: tuple[int, int], method: matlab.Method) -> None:
        image = noise(6, 7, dtype=np.float32)
        exact = matlab.imresize(image.astype(np.float64), size, method)
        assert matlab.imresize(image, size, method) == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_imresize_to_the_same_size_changes_nothing(method: matlab.Method) -> None:
    image = np.random.default_rng(3).standard_normal((6, 7))
    image[2, 3] = np.nan
    assert np.array_equal(matlab.imresize(image, (6, 7), method), image, equal_nan=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(80, 100), (61, 47), (37, 29), (20, 25), (16, 90), (90, 13)])
def test_imresize_inside_as_pillow(size: tuple[int, int], method: matlab.Method) -> None:
    image_module = pytest.importorskip("PIL.Image")
    filters = {"bicubic": image_module.Resampling.BICUBIC, "bilinear": image_module.Resampling.BILINEAR}
    image = np.random.default_rng(11).standard_normal((40, 50)).astype(np.float32)
    theirs = np.asarray(image_module.fromarray(image).resize(size[::-1], filters[method]))
    ours = matlab.imresize(image.astype(np.float64), size, method)
    # Pillow cuts the kernel off at the border: leave out the pixels whose kernel reaches beyond it.
    margins = [int(np.ceil((2 * max(after / before, 1)) + 1)) for before, after in zip((40, 50), size, strict=True)]
    inside = tuple(slice(margin, -margin) for margin in margins)
    assert ours[inside].size > 20
    assert np.abs(ours[inside] - theirs[inside]).max() < 1e-5


def test_imresize_as_octave(octave: Mapping[str, np.ndarray]) -> None:
    names = [name for name in octave if name.startswith("imresize_")]
    assert len(names) == 24
    for name in names:
        _, method, _ = name.split("_")
        resized = matlab.imresize(octave["image"].astype(np.float64), octave[name].shape, method)
        assert resized == pytest.approx(octave[name], abs=1e-11), name


@pytest.mark.parametrize(
    ("image", "size", "method", "error", "says"),
    [
        (np.zeros(5), (1, 1), "bicubic", ValueError, r"shape \(5,\)"),
        (np.zeros((0, 5)), (1, 1), "bicubic", ValueError, r"shape \(0, 5\)"),
        (np.zeros((5, 5)), (0, 5), "bicubic", ValueError, r"size \(0, 5\)"),
        (np.zeros((5, 5)), (5, 5), "nearest", ValueError, "'nearest', expected one of 'bicubic', 'bilinear'"),
        (np.zeros((5, 5), np.complex64), (5, 5), "bicubic", TypeError, "complex64"),
        (np.zeros((5, 5), np.float16), (5, 5), "bicubic", TypeError, "float16"),
    ],
)
def test_imresize_refuses(image: np.ndarray, size: tuple[int, int], method: str, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        matlab.imresize(image, size, method)


# --------------------------------------------------------------------------------------------- values and colours


def test_jet_rows() -> None:
    colors = matlab.jet(256)
    assert colors.shape == (256, 3)
    known = {
        0: (0, 0, 0.515625),
        31: (0, 0, 1),
        32: (0, 0.015625, 1),
        95: (0, 1, 1),
        96: (0.015625, 1, 0.984375),
        127: (0.5, 1, 0.5),
        159: (1, 1, 0),
        160: (1, 0.984375, 0),
        223: (1, 0, 0),
        255: (0.5, 0, 0),
    }
    assert {index: tuple(colors[index]) for index in known} == known


def test_jet_of_eight_rows() -> None:
    expected = [[0, 0, 1], [0, 0.5, 1], [0, 1, 1], [0.5, 1, 0.5], [1, 1, 0], [1, 0.5, 0], [1, 0, 0], [0.5, 0, 0]]
    assert matlab.jet(8).tolist() == expected


def test_jet_as_octave(octave: Mapping[str, np.ndarray]) -> None:
    names = [name for name in octave if name.startswith("jet_")]
    assert len(names) == 11
    for name in names:
        assert np.array_equal(matlab.jet(int(name.removeprefix("jet_"))), octave[name]), name
    assert matlab.jet(0).shape == (0, 3)


@pytest.mark.parametrize(
    ("values", "limits", "expected"),
    [
        ([1, 2, 3], None, [0, 0.5, 1]),
        ([1, 2, 3], (2, 4), [0, 0, 0.5]),
        ([1, 2, 3], (3, 1), [1, 0.5, 0]),
        ([-2, 0, 0.5, 0.9, 5], (2, 2), [0, 0, 0.5, 0.9, 1]),  # equal limits: clipped, and that is all
        ([4, 4, 4], None, [1, 1, 1]),
        ([0.5, 0.5], None, [0.5, 0.5]),
        ([1, np.nan, 3], None, [0, np.nan, 1]),
        ([np.nan, np.nan], None, [np.nan, np.nan]),
    ],
)
def test_mat2gray(values: list[float], limits: tuple[float, float] | None, expected: list[float]) -> None:
    assert matlab.mat2gray(np.array(values), limits) == pytest.approx(np.array(expected), abs=1e-15, nan_ok=True)


def test_mat2gray_takes_integers() -> None:
    assert matlab.mat2gray(np.array([[0, 51], [102, 255]], np.uint8)).tolist() == [[0, 0.2], [0.4, 1]]


def test_gray2ind_rounds_half_up() -> None:
    grey = np.array([0, 0.4, 0.5, 0.6, 1.5, 2.5, 254.4, 254.5, 255]) / 255
    assert matlab.gray2ind(grey, 256).tolist() == [0, 0, 1, 1, 2, 3, 254, 255, 255]
    assert matlab.gray2ind(np.array([0, 0.25, 0.5, 1])).tolist() == [0, 16, 32, 63]
    assert matlab.gray2ind(np.array([True, False]), 2).tolist() == [1, 0]
    assert matlab.gray2ind(np.array([0.5, np.nan]), 256).tolist() == [128, 0]


@pytest.mark.parametrize(("levels", "dtype"), [(1, np.uint8), (256, np.uint8), (257, np.uint16), (65536, np.uint16)])
def test_gray2ind_dtype(levels: int, dtype: type) -> None:
    index = matlab.gray2ind(np.array([0.0, 1.0]), levels)
    assert index.dtype == dtype
    assert index.tolist() == [0, levels - 1]


@pytest.mark.parametrize(
    ("image", "levels", "error"),
    [
        (np.array([-0.1]), 64, ValueError),
        (np.array([1.1]), 64, ValueError),
        (np.array([0.5]), 0, ValueError),
        (np.array([0.5]), 65537, ValueError),
        (np.array([5], np.int64), 64, TypeError),
    ],
)
def test_gray2ind_refuses(image: np.ndarray, levels: int, error: type) -> None:
    with pytest.raises(error):
        matlab.gray2ind(image, levels)


def test_ind2rgb() -> None:
    colormap = np.array([[0, 0, 0], [1, 0.5, 0], [1, 1, 1]])
    index = np.array([[0, 1], [2, 200]], np.uint8)  # beyond the last row: the last row
    assert matlab.ind2rgb(index, colormap).tolist() == [[[0, 0, 0], [1, 0.5, 0]], [[1, 1, 1], [1, 1, 1]]]
    with pytest.raises(TypeError, match="float64"):
        matlab.ind2rgb(np.array([1.0]), colormap)


def test_im2double() -> None:
    assert matlab.im2double(np.array([0, 51, 255], np.uint8)).tolist() == [0, 0.2, 1]
    assert matlab.im2double(np.array([0, 13107, 65535], np.uint16)).tolist() == [0, 0.2, 1]
    assert matlab.im2double(np.array([-32768, 32767], np.int16)).tolist() == [0, 1]
    assert matlab.im2double(np.array([False, True])).tolist() == [0, 1]
    assert matlab.im2double(np.array([-3, 0.25], np.float32)).tolist() == [-3, 0.25]
    assert matlab.im2double(np.array([1], np.uint8)).dtype == np.float64
    with pytest.raises(TypeError, match="int64"):
        matlab.im2double(np.array([1], np.int64))


def test_im2uint8() -> None:
    floats = np.array([-1, 0, 0.5 / 255, 2.5 / 255, 0.5, 1, 7, np.nan])
    assert matlab.im2uint8(floats).tolist() == [0, 0, 1, 3, 128, 255, 255, 0]
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(matlab.im2uint8(every), every)
    assert np.array_equal(matlab.im2uint8(matlab.im2double(every)), every)


def test_values_as_octave(octave: Mapping[str, np.ndarray]) -> None:
    ramp, values = np.arange(2041) / 2040, octave["values"]
    found = {
        "mat2gray": matlab.mat2gray(values),
        "mat2gray_limits": matlab.mat2gray(values, (-1, 4)),
        "mat2gray_inverted": matlab.mat2gray(values, (4, -1)),
        "mat2gray_equal": matlab.mat2gray(values, (2, 2)),
        "gray2ind_256": matlab.gray2ind(ramp, 256),
        "gray2ind_64": matlab.gray2ind(ramp, 64),
        "gray2ind_1000": matlab.gray2ind(ramp, 1000),
        "gray2ind_uint8": matlab.gray2ind(np.arange(256, dtype=np.uint8), 64),
        "gray2ind_int16": matlab.gray2ind(np.arange(-32768, 32768, 1000).astype(np.int16), 300),
        "ind2rgb": matlab.ind2rgb(np.array([[0, 1, 2], [63, 64, 255]]), matlab.jet(64)),
        "im2uint8": matlab.im2uint8(ramp * 1.2 - 0.1),
        "im2double_uint8": matlab.im2double(np.arange(256, dtype=np.uint8)),
        "im2double_uint16": matlab.im2double(np.arange(0, 65536, 257).astype(np.uint16)),
        "im2double_int16": matlab.im2double(np.array([-32768, -1, 0, 1, 32767], np.int16)),
    }
    for name, answer in found.items():
        expected = octave[name].reshape(answer.shape)
        assert answer.dtype == expected.dtype, name
        if name.startswith("mat2gray"):
            assert answer == pytest.approx(expected, abs=1e-15), name
        else:
            assert np.array_equal(answer, expected), name


# ------------------------------------------------------------------------------------------------ the CAM functions


@pytest.mark.parametrize(("crop", "margin", "middle"), [(224, 32, 16), (227, 29, 15), (256, 0, 0), (1, 255, 128)])
def test_prepare_image_cuts_in_the_order_of_matcaffe(crop: int, margin: int, middle: int) -> None:
    y, x = np.mgrid[:256, :256]
    image = np.stack([x, y, 255 - x], axis=2).astype(np.uint8)
    crops = matlab.prepare_image(image, np.array([100.0, 20.0, 3.0]), crop)
    assert crops.shape == (10, 3, crop, crop)
    assert crops.dtype == np.float32
    blue, green, red = crops.transpose(1, 0, 2, 3)
    tops = [0, margin, 0, margin, middle]
    lefts = [0, 0, margin, margin, middle]
    assert (green[:, 0, 0] + 20).tolist() == tops * 2
    assert (green[:, -1, -1] + 20).tolist() == [top + crop - 1 for top in tops * 2]
    assert (red[:5, 0, 0] + 3).tolist() == lefts
    assert (red[5:, 0, -1] + 3).tolist() == lefts
    assert np.array_equal(blue + 100, 255 - (red + 3))
    assert np.array_equal(crops[5:], crops[:5, :, :, ::-1])


def test_prepare_image_subtracts_the_mean_image() -> None:
    image, mean = noise(256, 256, 3), noise(256, 256, 3, dtype=np.float32) / 2
    crops = matlab.prepare_image(image, mean)
    expected = image[32:, :224, ::-1].astype(np.float32) - mean[32:, :224]
    assert np.array_equal(crops[1].transpose(1, 2, 0), expected)


def test_prepare_image_resizes_what_is_not_256() -> None:
    image = noise(64, 128, 3)
    large = matlab.imresize(image.astype(np.float64), (256, 256), "bilinear")
    crops = matlab.prepare_image(image, np.zeros(3), 256)
    assert crops[0] == pytest.approx(large[:, :, ::-1].transpose(2, 0, 1), abs=1e-4)


def test_prepare_image_refuses() -> None:
    with pytest.raises(ValueError, match=r"\(256, 256\), expected \(256, 256, 3\)"):
        matlab.prepare_image(noise(256, 256), np.zeros(3))
    with pytest.raises(ValueError, match="crop of 257"):
        matlab.prepare_image(noise(256, 256, 3), np.zeros(3), 257)


@pytest.mark.parametrize("crop", [224, 227])
def test_prepare_image_as_octave(crop: int, octave: Mapping[str, np.ndarray]) -> None:
    y, x = np.mgrid[:256, :256]
    image = np.stack([x, y, 255 - x], axis=2).astype(np.uint8)
    mean = np.stack([x / 2, y / 4, 100 + 0 * x], axis=2)
    corners = matlab.prepare_image(image, mean, crop)[:, :, :: crop - 1, :: crop - 1]
    assert np.array_equal(corners, octave[f"prepare_image_{crop}"].T)  # stored as (x, y, channel, crop)


@pytest.mark.parametrize("crop", [224, 227])
def test_graphs_cut_where_octave_does(crop: int, octave: Mapping[str, np.ndarray]) -> None:
    """In the image of `test_prepare_image_as_octave` the green channel gives the row and red the column."""
    _, green, red = octave[f"prepare_image_{crop}"].T.transpose(1, 0, 2, 3)  # (10, 2, 2) each: the crops' corners
    rows, columns = green[:, 0, 0] / 0.75, red + 100
    found = crops_of("ten-crop", 256, crop)
    assert [(one.y, one.x) for one in found] == list(zip(rows, columns.min(axis=(1, 2)), strict=True))
    assert [one.mirrored for one in found] == (columns[:, 0, 0] > columns[:, 0, 1]).tolist()
    (center,) = crops_of("center", 256, crop)
    assert center == found[4]


def test_return_cam_map_is_the_weighted_sum(octave: Mapping[str, np.ndarray]) -> None:
    features, weights = octave["features"].T, octave["weights"].T  # (2, 5, 4, 3) and (3, 5)
    cams = matlab.return_cam_map(features, weights)
    assert cams.shape == (2, 3, 4, 3)
    assert cams.dtype == np.float64
    for image, label in np.ndindex(2, 3):
        by_hand = sum(weights[label, channel] * features[image, channel] for channel in range(5))
        assert cams[image, label] == pytest.approx(by_hand, abs=1e-6)
    assert cams == pytest.approx(octave["returnCAMmap"].T, abs=1e-6)
    assert matlab.return_cam_map(features[:1], weights) == pytest.approx(cams[:1], abs=1e-6)


@pytest.mark.parametrize("crop", [224, 227, 128, 3])
def test_merge_puts_crops_back_where_they_were_cut(crop: int) -> None:
    scene = noise(256, 256, 3, dtype=np.float64).astype(np.uint8)
    crops = matlab.prepare_image(scene, np.zeros(3), crop)[:, 0]
    covered = np.zeros((256, 256))
    margin, middle = 256 - crop, (257 - crop) // 2
    for top, left in [(0, 0), (0, margin), (margin, 0), (margin, margin), (middle, middle)]:
        covered[top : top + crop, left : left + crop] += 1
    merged = matlab.merge_ten_crops(-crops)  # the absolute value counts
    assert merged.dtype == np.float64
    assert np.array_equal(merged, 3 * 2 * covered * scene[:, :, 2])


def test_merge_tells_the_ten_maps_apart() -> None:
    maps = np.zeros((10, 2, 2))
    maps[:, 0, 0] = 1 << np.arange(10)  # one bit a crop, in its top left pixel
    merged = matlab.merge_ten_crops(maps) / 3
    at = {(0, 0): 0, (254, 0): 1, (0, 254): 2, (254, 254): 3, (127, 127): 4}
    mirrored = {(y, x + 1): number + 5 for (y, x), number in at.items()}
    found = {(int(y), int(x)): int(np.log2(merged[y, x])) for y, x in np.argwhere(merged)}
    assert found == {**at, **mirrored}


@pytest.mark.parametrize("shape", [(9, 224, 224), (10, 224, 227), (10, 257, 257), (10, 14)])
def test_merge_refuses(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="found"):
        matlab.merge_ten_crops(np.zeros(shape))


@pytest.mark.parametrize("crop", [224, 227])
def test_merge_as_octave(crop: int, octave: Mapping[str, np.ndarray]) -> None:
    maps = octave[f"maps_{crop}"].T  # stored as (x, y, crop)
    assert np.array_equal(matlab.merge_ten_crops(maps), octave[f"mergeTenCrop_{crop}"])


def test_map2jpg_by_hand() -> None:
    colors = matlab.jet(256)
    heatmap = np.array([[-1.0, 1.0], [0.0, np.nan]])
    assert np.array_equal(matlab.map2jpg(heatmap), [[colors[0], colors[255]], [colors[128], colors[0]]])
    assert np.array_equal(matlab.map2jpg(heatmap, (0, 10)), [[colors[0], colors[26]], [colors[0], colors[0]]])
    grey = np.repeat(np.arange(256)[:, None] / 255, 3, axis=1)
    assert matlab.map2jpg(heatmap, colormap=grey)[..., 0].tolist() == [[0, 1], [128 / 255, 0]]


def test_map2jpg_as_octave(octave: Mapping[str, np.ndarray]) -> None:
    assert np.array_equal(matlab.map2jpg(octave["holed"]), octave["map2jpg"])
    assert np.array_equal(matlab.map2jpg(octave["holed"], (2, 6), octave["hsv"]), octave["map2jpg_range"])


# --------------------------------------------------------------------------------------------------------- the demo


def test_top_classes() -> None:
    scores = np.array([[0.5, 0.25, 0.25, 0], [0, 0.25, 0.25, 0.5]])
    classes, means = matlab.top_classes(scores, 3)
    assert classes.tolist() == [0, 1, 2]  # all equal: in the order of the classes
    assert means.tolist() == [0.25, 0.25, 0.25]
    assert matlab.top_classes(scores[1:], 1)[0].tolist() == [3]


def test_demo_maps_of_flat_crops() -> None:
    maps = matlab.demo_maps(np.full((10, 2, 14, 14), -2.0), crop=224)
    assert maps.shape == (2, 256, 256)
    assert maps[0, 128, 128] == 10 * 3 * 2  # all ten crops
    assert maps[0, 0, 0] == 2 * 3 * 2  # one corner and its mirror image


def test_demo_maps_are_enlarged_and_merged_class_by_class() -> None:
    cams = np.random.default_rng(5).standard_normal((10, 2, 5, 5))
    maps = matlab.demo_maps(cams, crop=227)
    for label in range(2):
        crops = np.stack([matlab.imresize(cam, (227, 227), "bicubic") for cam in cams[:, label]])
        assert np.array_equal(maps[label], matlab.merge_ten_crops(crops))


def test_demo_result() -> None:
    image = np.full((4, 5, 3), 100, np.uint8)
    maps = np.zeros((2, 4, 5))
    maps[:, 0, 0] = 1
    result = matlab.demo_result(image, maps)
    assert result.shape == (4, 5 + 2 * (8 + 5), 3)
    assert result.dtype == np.uint8
    assert (result[:, :5] == 100).all()
    for start in (5, 18):
        assert (result[:, start : start + 8] == 255).all()
        overlay = result[:, start + 8 : start + 13]
        assert overlay[0, 0].tolist() == [109, 20, 20]  # 20 + 0.7 * 255 * 0.5 = 109.25
        assert overlay[1, 1].tolist() == [20, 20, 112]  # 20 + 0.7 * 255 * 0.515625 = 112.04
    with pytest.raises(ValueError, match="same size"):
        matlab.demo_result(image, np.zeros((1, 5, 5)))


def test_released_scores_follow_from_features_and_weights(demo: Mapping[str, np.ndarray]) -> None:
    logits = demo["features"].mean(axis=(2, 3)) @ demo["weights"].T
    bias = np.log(demo["scores"]) - logits
    bias -= bias.mean(axis=1, keepdims=True)
    assert np.abs(bias - bias.mean(axis=0)).max() < 1e-4  # one constant a class, whatever the crop


def test_demo_classes(demo: Mapping[str, np.ndarray]) -> None:
    classes, scores = matlab.top_classes(demo["scores"])
    assert classes.tolist() == demo["top5_index0"].tolist()
    assert scores == pytest.approx(demo["top5_score"], rel=1e-6)
    # demo.m itself, run by Octave on the cached scores, takes the first crop's.
    assert matlab.top_classes(demo["scores"][:1])[0].tolist() == [968, 967, 809, 969, 441]


def test_demo_picture(demo: Mapping[str, np.ndarray]) -> None:
    cams = matlab.return_cam_map(demo["features"], demo["weights"][demo["top5_index0"]])
    assert largest_error(cams, demo["cams"]) < 1e-5
    maps = matlab.demo_maps(cams)
    assert largest_error(maps, demo["merged"]) < 1e-5

    image = matlab.imresize(demo["image"], (256, 256))
    assert np.array_equal(image, demo["image256"])
    result = matlab.demo_result(image, maps)
    for expected in (demo["result"], demo["png"]):
        assert result.shape == expected.shape == (256, 1576, 3)
        difference = np.abs(result.astype(int) - expected).max(axis=2)
        assert (difference <= 1).mean() >= 0.999
        # What differs are halves: these files round them to even, imwrite away from zero.
        assert (result.astype(int) >= expected).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "prototxt", "folder"),
    [
        ("vgg16CAM", "deploy_vgg16CAM.prototxt", "vgg16CAM"),
        ("alexnetplusCAM_imagenet", "deploy_alexnetplusCAM_imagenet.prototxt", "alexnetplusCAM"),
    ],
)
def test_crops_give_caffes_answers(
    name: str, prototxt: str, folder: str, demo: Mapping[str, np.ndarray], reference: Path, tmp_path: Path
) -> None:
    facts, files = zoo.find(name), reference / "nets"
    seeded = SeededModel.of_table(json.loads((files / folder / "shapes.json").read_text()))
    caffemodel = seeded.write(tmp_path / "net.caffemodel", v1=True)
    model = convert(files / "prototxt" / prototxt, caffemodel, outputs=[facts.features, "prob"])
    weights = next(one for one in model.graph.initializer if one.name == f"{facts.classifier}.weight")
    expected = np.load(files / folder / "expected.npz")

    crops = matlab.prepare_image(demo["image"], demo["mean"], facts.preprocessing.crop)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    features, scores = session.run(None, {session.get_inputs()[0].name: crops})
    assert largest_error(scores, expected["scores"]) < 1e-3
    top, _ = matlab.top_classes(scores)
    assert top.tolist() == expected["top5"].tolist()
    cams = matlab.return_cam_map(features, numpy_helper.to_array(weights)[top])
    assert largest_error(cams, expected["cams"]) < 1e-4
