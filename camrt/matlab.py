"""The original MATLAB code of 2016 in NumPy: the reference implementation against which the graphs are tested.

The functions correspond to the files of the CAM repository (metalbubble/CAM: `demo.m`, `returnCAMmap.m`,
`mergeTenCrop.m`, `map2jpg.m`, `prepare_image.m`), and to the toolbox functions of MATLAB R2015 that these call. Each
docstring names the file and the differences.

In MATLAB, the axes are in reverse order: Caffe's blob (N, C, H, W) is (W, H, C, N), so that the transpose ``.T`` of a
released array has the order of Python:

* ``activation_lastconv.T`` of data_img1.mat is (10, C, h, w), ``weights_LR.T`` of data_net.mat is (K, C), and
  ``scores.T.reshape(10, -1)`` of data_img1.mat is (10, K). Its crops are in another order than those of
  `prepare_image` (see `camrt.validate.crop_order`).
* ``mean_data`` of ilsvrc_2012_mean.mat is (W, H, 3), BGR; ``mean_data.transpose(1, 0, 2)`` is (H, W, 3).

In this module, images are (H, W, ...), and features and scores are (N, C, H, W) and (N, K).

Example:
    The demo on its cached features (`demo.m` with ``online = 0``):

    >>> classes, scores = top_classes(all_scores)  # doctest: +SKIP
    >>> cams = return_cam_map(features, weights[classes])  # doctest: +SKIP
    >>> picture = demo_result(image, demo_maps(cams))  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Method = Literal["bicubic", "bilinear"]

SIDE = 256  # pixels of the square that every image is resized to: IMAGE_DIM and squareSize of the .m files
BAR = 8  # width of the white bars in the demo's image, in pixels

_INTEGERS = (np.uint8, np.uint16, np.uint32, np.int8, np.int16, np.int32)
_FLOATS = (np.float32, np.float64)


# ------------------------------------------------------------------------------------------------------- imresize


def imresize(image: NDArray[Any], size: tuple[int, int], method: Method = "bicubic") -> NDArray[Any]:
    """Resize an image as MATLAB's `imresize(A, [height width], method)` of R2015.

    The axes are resized one after the other, first the one with the smaller scale (the rows if both are equal). Each
    output pixel is a weighted sum of the input pixels around it. The weights are a kernel centered at the pixel: cubic
    convolution with a = -0.5, or a triangle. If the axis shrinks, the kernel is stretched by the same factor, against
    aliasing. The weights are normalized to sum to 1. Beyond the border, the image is mirrored, including the border
    pixel. After each axis, the result is converted to the dtype of the image: integers are rounded, half away from
    zero, and clipped. Integer images are therefore rounded twice.

    Unlike in MATLAB, scale factors, other kernels and indexed images are not supported.

    Args:
        image: (H, W) or (H, W, ...): bool, an integer of 8 to 32 bits, float32 or float64. Further axes (channels,
            crops) are resized independently. A bool image is resized as uint8 0 and 255, and is True above 128.
        size: Height and width of the result in pixels.
        method: The kernel.

    Returns:
        (height, width, ...) in the dtype of the image. Bicubic interpolation of floats may exceed its range.

    Raises:
        ValueError: The image has no pixels or fewer than two axes, the size is not positive, or the method is unknown.
        TypeError: MATLAB does not support the dtype.

    Source:
        R. Keys, "Cubic convolution interpolation for digital image processing", IEEE Transactions on Acoustics, Speech,
        and Signal Processing 29 (1981), eq. 15; MATLAB's documentation of `imresize`.

    Example:
        The matrix that resizes 14 pixels to 224 is the resized identity matrix:

        >>> imresize(np.eye(14), (224, 14)).shape
        (224, 14)
    """
    if image.ndim < 2 or not image.size:
        raise ValueError(f"found an image of shape {image.shape}, expected (H, W) or (H, W, ...) with 1 or more pixels")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"found the size {size}, expected height and width in pixels, both positive")
    if method not in _KERNELS:
        raise ValueError(f"found the method {method!r}, expected one of {', '.join(map(repr, _KERNELS))}")
    if image.dtype == np.bool_:
        return np.asarray(imresize(image.astype(np.uint8) * np.uint8(255), size, method) > 128)
    if image.dtype not in (*_INTEGERS, *_FLOATS):
        raise TypeError(
            f"found an image of {image.dtype}, expected bool, an integer of 8 to 32 bits or float32, float64"
        )

    scales = [size[axis] / image.shape[axis] for axis in (0, 1)]
    for axis in np.argsort(scales, kind="stable"):
        image = _resize_axis(image, int(axis), size[axis], scales[axis], method)
    return image


def _resize_axis(image: NDArray[Any], axis: int, size: int, scale: float, method: Method) -> NDArray[Any]:
    """Resize an image to ``size`` pixels along one axis. The result has the dtype of the image."""
    sources, weights = contributions(image.shape[axis], size, scale, method)
    lines = np.moveaxis(image, axis, 0)
    resized = np.zeros((size, *lines.shape[1:]))
    for source, weight in zip(sources.T, weights.T, strict=True):
        resized += weight.reshape(-1, *(1,) * (lines.ndim - 1)) * lines[source]
    return np.moveaxis(_cast(resized, image.dtype), 0, axis)


def contributions(size_in: int, size_out: int, scale: float, method: Method) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the input pixels of each output pixel, and their weights: two arrays (size_out, pixels)."""
    kernel, support = _KERNELS[method]
    stretch = min(scale, 1.0)  # the kernel is stretched only if the axis shrinks
    support /= stretch
    # Pixels are counted from 1, so that the weights are identical to those of MATLAB. The left borders of both images,
    # half a pixel before the first one, coincide.
    center = np.arange(1, size_out + 1) / scale + 0.5 * (1 - 1 / scale)
    leftmost = np.floor(center - support / 2).astype(np.int64)
    positions = leftmost[:, None] + np.arange(int(np.ceil(support)) + 2)  # with a spare pixel at each end
    weights = stretch * kernel(stretch * (center[:, None] - positions))
    weights /= weights.sum(axis=1, keepdims=True)
    mirrored = np.concatenate([np.arange(size_in), np.arange(size_in)[::-1]])
    sources = mirrored[(positions - 1) % (2 * size_in)]
    used = weights.any(axis=0)
    return sources[:, used], weights[:, used]


def _cubic(x: NDArray[Any]) -> NDArray[Any]:
    """Return the cubic convolution kernel with a = -0.5 (Keys 1981, eq. 15)."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.select([x <= 1, x <= 2], [near, far], 0.0)


def _triangle(x: NDArray[Any]) -> NDArray[Any]:
    """Return the kernel of linear interpolation."""
    return np.where(np.abs(x) <= 1, 1 - np.abs(x), 0.0)


_KERNELS = {"bicubic": (_cubic, 4.0), "bilinear": (_triangle, 2.0)}


def _cast(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Convert doubles as MATLAB does: round half away from zero and clip for integers; NaN becomes 0."""
    if dtype.kind == "f":
        return values.astype(dtype)
    whole = np.trunc(values)
    rounded = whole + np.sign(values) * (np.abs(values - whole) >= 0.5)
    limits = np.iinfo(dtype)
    return np.where(np.isnan(values), 0, np.clip(rounded, limits.min, limits.max)).astype(dtype)


# --------------------------------------------------------------------------------------------- values and colors


def im2double(image: NDArray[Any]) -> NDArray[np.float64]:
    """Scale an image to 0..1 as MATLAB's `im2double`.

    Args:
        image: An array of any shape: uint8, uint16 or int16, which are scaled from the range of the dtype; or bool,
            float32 or float64, whose values are unchanged.

    Returns:
        float64 of the same shape.

    Raises:
        TypeError: MATLAB does not support the dtype.
    """
    low, high = _range(image.dtype)
    scaled: NDArray[np.float64] = (image.astype(np.float64) - low) / (high - low)
    return scaled


def im2uint8(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale an image to 0..255 as MATLAB's `im2uint8`, which `imwrite` also does for floats.

    Args:
        image: An array of any shape and of a dtype that `im2double` supports. Floats outside 0..1 are clipped. NaN
            becomes 0.

    Returns:
        uint8 of the same shape, rounded half up.

    Raises:
        TypeError: MATLAB does not support the dtype.
    """
    return _cast(im2double(image) * 255, np.dtype(np.uint8))


def mat2gray(values: NDArray[Any], limits: tuple[float, float] | None = None) -> NDArray[np.float64]:
    """Scale values linearly so that the limits become 0 and 1, and clip, as MATLAB's `mat2gray(A, [low high])`.

    Unlike in MATLAB, NaN stays NaN.

    Args:
        values: An array of any shape and any real dtype.
        limits: The values that become 0 and 1. By default, the smallest and the largest, ignoring NaN. If both are
            equal, values are only clipped to 0..1. If the first is larger, the result is inverted.

    Returns:
        float64 of the same shape, 0..1.
    """
    values = values.astype(np.float64)
    if limits is None:
        limits = np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)
    low, high = map(float, limits)
    if low != high:
        # MATLAB computes a linear combination, which rounds differently from (values - low) / (high - low).
        slope = 1 / (high - low)
        values = slope * values - low * slope
    return np.clip(values, 0, 1)


def gray2ind(image: NDArray[Any], levels: int = 64) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Convert a grayscale image to indices of a colormap, as MATLAB's `gray2ind(I, n)`.

    Unlike in MATLAB, the default for bool images is not 2 levels.

    Args:
        image: An array of any shape: float32 or float64 within 0..1; or bool, uint8, uint16 or int16. NaN becomes 0.
        levels: The number of rows of the colormap, 1 to 65536.

    Returns:
        Row indices, counted from 0 and rounded half up: uint8 for up to 256 levels, else uint16.

    Raises:
        ValueError: A float is outside 0..1, or the number of levels is out of range.
        TypeError: MATLAB does not support the dtype.
    """
    if not 1 <= levels <= 65536:
        raise ValueError(f"found {levels} levels, expected 1 to 65536")
    low, high = _range(image.dtype)
    if (image < low).any() or (image > high).any():
        raise ValueError(f"found values outside {low}..{high}, expected values within: scale them with mat2gray first")
    scaled = (image.astype(np.float64) - low) * ((levels - 1) / (high - low))
    return _cast(scaled, np.dtype(np.uint8 if levels <= 256 else np.uint16))


def ind2rgb(index: NDArray[Any], colormap: NDArray[Any]) -> NDArray[np.float64]:
    """Look up colors as MATLAB's `ind2rgb(X, map)`.

    Unlike in MATLAB, where floats are indices counted from 1, floats raise an error.

    Args:
        index: (...) integers: row indices of the colormap, counted from 0. They are clipped to its rows.
        colormap: (rows, 3), 0..1.

    Returns:
        (..., 3) float64.

    Raises:
        TypeError: The dtype of the index is not an integer.
    """
    if index.dtype.kind not in "iu":
        raise TypeError(f"found an index of {index.dtype}, expected integers: row indices counted from 0")
    colors: NDArray[np.float64] = colormap.astype(np.float64)[np.clip(index, 0, len(colormap) - 1)]
    return colors


def jet(rows: int) -> NDArray[np.float64]:
    """Return MATLAB's colormap `jet(rows)`: dark blue, blue, cyan, yellow, red, dark red.

    Each channel is the same trapezoid: it rises, stays at 1 and falls, each over a quarter of the rows. It is centered
    for green, a quarter later for red, and a quarter earlier for blue, and clipped to the map.

    Args:
        rows: The number of colors.

    Returns:
        (rows, 3) float64 RGB, 0..1.
    """
    quarter = -(-rows // 4)
    rise = np.arange(1, quarter + 1) / quarter
    trapezoid = np.concatenate([rise, np.ones(max(quarter - 1, 0)), rise[::-1]])
    middle = -(-quarter // 2) - (rows % 4 == 1)  # rows before green's
    colors = np.zeros((rows, 3))
    for channel, start in enumerate((middle + quarter, middle, middle - quarter)):
        place = start + np.arange(len(trapezoid))
        inside = (place >= 0) & (place < rows)
        colors[place[inside], channel] = trapezoid[inside]
    return colors


def _range(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Return the values of black and white for a dtype, as MATLAB's `getrangefromclass`."""
    if dtype == np.bool_ or dtype in _FLOATS:
        return 0, 1
    if dtype in (np.uint8, np.uint16, np.int16):
        limits = np.iinfo(dtype)
        return limits.min, limits.max
    raise TypeError(f"found an image of {dtype}, expected bool, uint8, uint16, int16, float32 or float64")


# ------------------------------------------------------------------------------------------------ the CAM functions


def prepare_image(image: NDArray[np.uint8], mean: NDArray[Any], crop: int = 224) -> NDArray[np.float32]:
    """Return the ten crops of an image as the input of the networks; `prepare_image.m`.

    The image is converted to single precision and BGR, resized to 256 x 256 (bilinear), and the mean is subtracted.
    Crops 0 to 3 are the corners in the order top left, bottom left, top right, bottom right; crop 4 is the center;
    crops 5 to 9 are the same, mirrored horizontally. If the margin is odd, the center crop is half a pixel too far down
    and to the right.

    It differs from the original in the order of axes (there (W, H, C, N), so that the first axis is x), and in the
    arguments ``mean`` and ``crop``, which are a file and a constant there.

    Args:
        image: (256, 256, 3) uint8 RGB. An image of another size is resized here; `demo.m` resizes it before (bicubic).
        mean: (256, 256, 3) BGR, 0..255, rows first (see the module docstring); or a single pixel (3,).
        crop: The side of the crops in pixels: 224 for GoogLeNet and VGG16, 227 for AlexNet+.

    Returns:
        (10, 3, crop, crop) float32, BGR, minus the mean.

    Raises:
        ValueError: The image does not have three channels, or the crop is larger than 256.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"found an image of shape {image.shape}, expected (256, 256, 3)")
    corners = _corners(crop)
    bgr = imresize(image[:, :, ::-1].astype(np.float32), (SIDE, SIDE), "bilinear") - mean.astype(np.float32)
    crops = np.stack([bgr[top : top + crop, left : left + crop] for top, left in corners])
    both: NDArray[np.float32] = np.concatenate([crops, crops[:, :, ::-1]])
    return np.ascontiguousarray(both.transpose(0, 3, 1, 2))


def return_cam_map(features: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
    """Compute class activation maps, feature maps weighted by the classifier's weights; `returnCAMmap.m`.

    Map k is the sum over the channels c of ``weights[k, c] * features[c]``, without the bias. As in the original, the
    product has the precision of its arguments, and is stored in double precision.

    It differs from the original in the order of axes (there (w, h, C, N) times (C, K)), and in the double precision of
    the result for a single image.

    Args:
        features: (N, C, h, w): the output of the last convolution.
        weights: (K, C): the weights of the linear layer after global pooling, or the rows of some classes.

    Returns:
        (N, K, h, w) float64.

    Source:
        B. Zhou et al., "Learning deep features for discriminative localization", CVPR 2016, eq. 2.
    """
    number, channels, height, width = features.shape
    maps: NDArray[Any] = weights @ features.reshape(number, channels, height * width)
    return maps.reshape(number, len(weights), height, width).astype(np.float64)


def merge_ten_crops(maps: NDArray[Any]) -> NDArray[np.float64]:
    """Paste the maps of ten crops at the positions of the crops, and add their absolute values; `mergeTenCrop.m`.

    Maps of mirrored crops are mirrored back. As in the original, each map is an image of three equal channels, which
    are added as well: where all crops overlap, the result is the sum of 30 values. All computations are in single
    precision.

    It differs from the original in the order of axes: there the maps are (x, y, crop), and are transposed.

    Args:
        maps: (10, c, c) in the order of `prepare_image`, resized to the crops.

    Returns:
        (256, 256) float64, with values of single precision.

    Raises:
        ValueError: The maps are not ten squares of at most 256 pixels.
    """
    if maps.ndim != 3 or len(maps) != 10 or maps.shape[1] != maps.shape[2]:
        raise ValueError(f"found maps of shape {maps.shape}, expected (10, c, c)")
    crop = maps.shape[1]
    aligned = np.zeros((10, SIDE, SIDE), np.float32)
    for number, (top, left) in enumerate(_corners(crop)):
        window = (slice(top, top + crop), slice(left, left + crop))
        aligned[number][window] = maps[number]
        aligned[number + 5][window] = maps[number + 5, :, ::-1]
    channel = np.abs(aligned)
    merged: NDArray[np.float32] = (channel + channel + channel).sum(axis=0)
    return merged.astype(np.float64)


def _corners(crop: int) -> tuple[tuple[int, int], ...]:
    """Return top and left of the first five crops, in the order of `prepare_image.m` and `mergeTenCrop.m`."""
    margin = SIDE - crop
    if margin < 0 or crop < 1:
        raise ValueError(f"found a crop of {crop} pixels, expected 1 to {SIDE}")
    middle = (margin + 1) // 2  # floor((margin + 1) / 2) + 1 when counted from 1
    return (0, 0), (margin, 0), (0, margin), (margin, margin), (middle, middle)


def map2jpg(
    heatmap: NDArray[Any], limits: tuple[float, float] | None = None, colormap: NDArray[Any] | None = None
) -> NDArray[np.float64]:
    """Apply a colormap to a heatmap; `map2jpg.m`.

    It differs from the original in the argument ``colormap``, which is the name of a MATLAB function there.

    Args:
        heatmap: (H, W). NaN gets the first color.
        limits: The values of the first and the last color. By default, the smallest and the largest value.
        colormap: (256, 3), 0..1. By default, `jet(256)`.

    Returns:
        (H, W, 3) float64 RGB, 0..1.
    """
    return ind2rgb(gray2ind(mat2gray(heatmap, limits), 256), jet(256) if colormap is None else colormap)


# --------------------------------------------------------------------------------------------------------- the demo


def top_classes(scores: NDArray[Any], top: int = 5) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Find the classes with the largest mean score; `demo.m`.

    It differs from `demo.m` for the released features (``online = 0``): there, the scores are 1 x 1 x 1000 x 10, and
    the mean along the second axis has no effect, so that the result is that of the first crop. Pass ``scores[:1]`` to
    get the same classes.

    Args:
        scores: (N, K): the scores of the crops.
        top: The number of classes.

    Returns:
        The classes (top,) int64, best first, with ties in order of the classes, and their mean scores (top,).
    """
    mean = scores.mean(axis=0)
    classes = np.argsort(-mean, kind="stable")[:top]
    return classes, mean[classes]


def demo_maps(cams: NDArray[Any], crop: int = 224) -> NDArray[np.float64]:
    """Resize the class activation maps of ten crops to the size of the crops (bicubic) and merge them; `demo.m`.

    Args:
        cams: (10, K, h, w) from `return_cam_map`.
        crop: The side of the crops in pixels. In `demo.m`, it is 224 for all networks.

    Returns:
        (K, 256, 256) float64.
    """
    large = imresize(cams.transpose(2, 3, 1, 0), (crop, crop)).transpose(2, 3, 0, 1)  # to (h, w, K, 10), and back
    return np.stack([merge_ten_crops(maps) for maps in large])


def demo_result(image: NDArray[np.uint8], maps: NDArray[Any]) -> NDArray[np.uint8]:
    """Draw the demo's image: the input, and for each map a white bar and the map over the input; `demo.m`.

    An overlay is the sum of 0.2 of the image and 0.7 of the colored map. The result differs from
    the original in that it is not compressed as JPEG: it has the pixels that `imwrite` compresses.

    Args:
        image: (256, 256, 3) uint8 RGB, resized by `imresize`.
        maps: (K, 256, 256), each of which is colored over its own range.

    Returns:
        (256, 256 + K * 264, 3) uint8 RGB: (256, 1576, 3) for five maps.

    Raises:
        ValueError: The image and the maps differ in size.
    """
    if image.shape != (*maps.shape[1:], 3):
        raise ValueError(f"found an image of shape {image.shape} for maps of {maps.shape[1:]}, expected the same size")
    photo = im2double(image)
    bar = np.ones((len(photo), BAR, 3))
    overlays = [photo * 0.2 + map2jpg(heatmap) * 0.7 for heatmap in maps]
    return im2uint8(np.hstack([photo, *(panel for overlay in overlays for panel in (bar, overlay))]))
