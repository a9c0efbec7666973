"""The original MATLAB code of 2016 in NumPy: the plain, slow reference that the graphs are tested against.

The functions follow the files of the CAM repository (metalbubble/CAM: `demo.m`, `returnCAMmap.m`, `mergeTenCrop.m`,
`map2jpg.m`, `prepare_image.m`) and what MATLAB R2015 does in the toolbox functions that they call. Each says which file
it follows and where it differs.

MATLAB's arrays count from the other end: Caffe's blob (N, C, H, W) is there (W, H, C, N), so that the transpose ``.T``
of a released array has Python's order:

* ``activation_lastconv.T`` of data_img1.mat is (10, C, h, w), ``weights_LR.T`` of data_net.mat is (K, C), and
  ``scores.T.reshape(10, -1)`` of data_img1.mat is (10, K), with the crops in another order than `prepare_image` gives
  them (see `camrt.validate.crop_order`);
* ``mean_data`` of ilsvrc_2012_mean.mat is (W, H, 3), BGR; ``mean_data.transpose(1, 0, 2)`` is (H, W, 3).

Here everything is (H, W, ...) for images and (N, C, H, W) for what comes from a network.

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
BAR = 8  # pixels of the white bars in the demo's picture

_INTEGERS = (np.uint8, np.uint16, np.uint32, np.int8, np.int16, np.int32)
_FLOATS = (np.float32, np.float64)


# ------------------------------------------------------------------------------------------------------- imresize


def imresize(image: NDArray[Any], size: tuple[int, int], method: Method = "bicubic") -> NDArray[Any]:
    """Resize an image as MATLAB's `imresize(A, [height width], method)` of R2015.

    One axis is resized after the other, beginning with the one that shrinks more (the rows where both scales are the
    same). Along an axis every output pixel is a weighted sum of the input pixels around it. The weights are a kernel
    centerd there: cubic convolution with a = -0.5, or the triangle. Where the axis shrinks, the kernel is stretched by
    as much, against aliasing. The weights of a pixel are divided by their sum. Beyond its border the image is mirrored,
    the last pixel included. The result of each axis has the image's dtype again: integers are rounded, half away from
    zero, and clipped, so an integer image is rounded twice.

    It differs from MATLAB's in having neither scale factors, other kernels, nor indexed images.

    Args:
        image: (H, W) or (H, W, ...): bool, an integer of 8 to 32 bits, float32 or float64. Further axes (channels,
            crops) are resized one by one. A bool image is resized as uint8 0 and 255, and is True above 128.
        size: Height and width of the result in pixels.
        method: The kernel.

    Returns:
        (height, width, ...) in the image's dtype. Floats may go beyond the image's range by bicubic overshoot.

    Raises:
        ValueError: The image has no pixels or fewer than two axes, the size is not positive, or the method is unknown.
        TypeError: MATLAB does not resize that dtype.

    Source:
        R. Keys, "Cubic convolution interpolation for digital image processing", IEEE Transactions on Acoustics, Speech,
        and Signal Processing 29 (1981), eq. 15; MATLAB's documentation of `imresize`.

    Example:
        The matrix that enlarges 14 pixels to 224 along an axis is what becomes of the unit matrix:

        >>> imresize(np.eye(14), (224, 14)).shape
        (224, 14)
    """
    if image.ndim < 2 or not image.size:
        raise ValueError(f"found an image of shape {image.shape}, expected (H, W) or (H, W, ...) with at least a pixel")
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
    """Resize the image to ``size`` pixels along one axis; the result has its dtype."""
    sources, weights = contributions(image.shape[axis], size, scale, method)
    lines = np.moveaxis(image, axis, 0)
    resized = np.zeros((size, *lines.shape[1:]))
    for source, weight in zip(sources.T, weights.T, strict=True):
        resized += weight.reshape(-1, *(1,) * (lines.ndim - 1)) * lines[source]
    return np.moveaxis(_cast(resized, image.dtype), 0, axis)


def contributions(size_in: int, size_out: int, scale: float, method: Method) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the input pixels of each output pixel, and their weights: two arrays (size_out, pixels)."""
    kernel, support = _KERNELS[method]
    stretch = min(scale, 1.0)  # the kernel is made wider only where the axis shrinks
    support /= stretch
    # Pixels count from 1, as in MATLAB, so that the last bit of the weights is MATLAB's too. Half a pixel before the
    # first one is half a pixel before the first one in both images.
    center = np.arange(1, size_out + 1) / scale + 0.5 * (1 - 1 / scale)
    leftmost = np.floor(center - support / 2).astype(np.int64)
    positions = leftmost[:, None] + np.arange(int(np.ceil(support)) + 2)  # one to spare at each end
    weights = stretch * kernel(stretch * (center[:, None] - positions))
    weights /= weights.sum(axis=1, keepdims=True)
    mirrored = np.concatenate([np.arange(size_in), np.arange(size_in)[::-1]])
    sources = mirrored[(positions - 1) % (2 * size_in)]
    used = weights.any(axis=0)
    return sources[:, used], weights[:, used]


def _cubic(x: NDArray[Any]) -> NDArray[Any]:
    """Cubic convolution with a = -0.5; Keys 1981, eq. 15."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.select([x <= 1, x <= 2], [near, far], 0.0)


def _triangle(x: NDArray[Any]) -> NDArray[Any]:
    """Linear interpolation."""
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
        image: Any shape: uint8, uint16 or int16, which are scaled from their whole range; bool, float32 or float64,
            which keep their values.

    Returns:
        float64 of the same shape.

    Raises:
        TypeError: MATLAB does not convert that dtype.
    """
    low, high = _range(image.dtype)
    scaled: NDArray[np.float64] = (image.astype(np.float64) - low) / (high - low)
    return scaled


def im2uint8(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale an image to 0..255 as MATLAB's `im2uint8`, and as `imwrite` before it writes floats.

    Args:
        image: Any shape and dtype that `im2double` takes. Floats beyond 0..1 are clipped; NaN becomes 0.

    Returns:
        uint8 of the same shape, rounded half up.

    Raises:
        TypeError: MATLAB does not convert that dtype.
    """
    return _cast(im2double(image) * 255, np.dtype(np.uint8))


def mat2gray(values: NDArray[Any], limits: tuple[float, float] | None = None) -> NDArray[np.float64]:
    """Scale values linearly so that the limits become 0 and 1, and clip, as MATLAB's `mat2gray(A, [low high])`.

    It differs in NaN, which stays NaN here.

    Args:
        values: Any shape, any real dtype.
        limits: The values that become 0 and 1. If left out, the smallest and the largest; NaN does not count. Where
            both are the same, values are only clipped to 0..1. Where the first is larger, the result is inverted.

    Returns:
        float64 of the same shape, 0..1.
    """
    values = values.astype(np.float64)
    if limits is None:
        limits = np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)
    low, high = map(float, limits)
    if low != high:
        # Not (values - low) / (high - low): MATLAB makes one linear combination of it.
        slope = 1 / (high - low)
        values = slope * values - low * slope
    return np.clip(values, 0, 1)


def gray2ind(image: NDArray[Any], levels: int = 64) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Give each value of a gray image its row of a colormap, as MATLAB's `gray2ind(I, n)`.

    It differs in bool images, which have 2 levels in MATLAB if none are given; name them here.

    Args:
        image: Any shape: float32 or float64 within 0..1; or bool, uint8, uint16 or int16. NaN becomes 0.
        levels: Rows of the colormap, 1 to 65536.

    Returns:
        Rows counted from 0, rounded half up: uint8 up to 256 levels, else uint16.

    Raises:
        ValueError: A float is beyond 0..1, or the number of levels is.
        TypeError: MATLAB does not convert that dtype.
    """
    if not 1 <= levels <= 65536:
        raise ValueError(f"found {levels} levels, expected 1 to 65536")
    low, high = _range(image.dtype)
    if (image < low).any() or (image > high).any():
        raise ValueError(f"found values beyond {low}..{high}; scale them with mat2gray first")
    scaled = (image.astype(np.float64) - low) * ((levels - 1) / (high - low))
    return _cast(scaled, np.dtype(np.uint8 if levels <= 256 else np.uint16))


def ind2rgb(index: NDArray[Any], colormap: NDArray[Any]) -> NDArray[np.float64]:
    """Look up colors as MATLAB's `ind2rgb(X, map)`.

    It differs in floats, which MATLAB takes as rows counted from 1, and which are an error here.

    Args:
        index: (...) integers: rows of the colormap counted from 0. Those beyond it are its last row.
        colormap: (rows, 3), 0..1.

    Returns:
        (..., 3) float64.

    Raises:
        TypeError: The index is not of integers.
    """
    if index.dtype.kind not in "iu":
        raise TypeError(f"found an index of {index.dtype}, expected integers: rows counted from 0")
    colors: NDArray[np.float64] = colormap.astype(np.float64)[np.clip(index, 0, len(colormap) - 1)]
    return colors


def jet(rows: int) -> NDArray[np.float64]:
    """MATLAB's colormap `jet(rows)`: dark blue, blue, cyan, yellow, red, dark red.

    Each color is the same trapezoid: a rise of a quarter of the rows, a plateau as long, and a fall. Green's stands in
    the middle, red's a quarter later, blue's a quarter before; what reaches beyond the map is cut off.

    Args:
        rows: How many colors.

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
    """Return the values of black and white in an image of that dtype; MATLAB's `getrangefromclass`."""
    if dtype == np.bool_ or dtype in _FLOATS:
        return 0, 1
    if dtype in (np.uint8, np.uint16, np.int16):
        limits = np.iinfo(dtype)
        return limits.min, limits.max
    raise TypeError(f"found an image of {dtype}, expected bool, uint8, uint16, int16, float32 or float64")


# ------------------------------------------------------------------------------------------------ the CAM functions


def prepare_image(image: NDArray[np.uint8], mean: NDArray[Any], crop: int = 224) -> NDArray[np.float32]:
    """Cut the ten crops of an image that the networks are given; `prepare_image.m`.

    The image becomes single precision and BGR, is resized to 256 x 256 (bilinear), and has the mean subtracted. Crops 0
    to 3 are the corners in the order top left, bottom left, top right, bottom right; crop 4 is the middle; 5 to 9 are
    the same five, mirrored left to right. The middle of an odd margin is half a pixel too far down and to the right.

    It differs in the order of axes (there (W, H, C, N), so that its first axis is x), and in taking the mean and the
    crop's size as arguments; there they are a file beside it and a constant to be edited.

    Args:
        image: (256, 256, 3) uint8 RGB. Of another size, it is resized; `demo.m` has done that before (bicubic).
        mean: (256, 256, 3) BGR, 0..255, rows first (see the top of this file); or a single pixel (3,).
        crop: The side of the crops in pixels: 224 for GoogLeNet and VGG16, 227 for AlexNet+.

    Returns:
        (10, 3, crop, crop) float32, BGR, minus the mean.

    Raises:
        ValueError: The image has not three channels, or the crop is larger than 256.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"found an image of shape {image.shape}, expected (256, 256, 3)")
    corners = _corners(crop)
    bgr = imresize(image[:, :, ::-1].astype(np.float32), (SIDE, SIDE), "bilinear") - mean.astype(np.float32)
    crops = np.stack([bgr[top : top + crop, left : left + crop] for top, left in corners])
    both: NDArray[np.float32] = np.concatenate([crops, crops[:, :, ::-1]])
    return np.ascontiguousarray(both.transpose(0, 3, 1, 2))


def return_cam_map(features: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
    """Weigh feature maps by the classifier's weights: the class activation maps; `returnCAMmap.m`.

    Map k is the sum over the channels c of ``weights[k, c] * features[c]``; the bias is left out. The product has the
    precision of its arguments and is stored in double precision, as there.

    It differs in the order of axes (there (w, h, C, N) times (C, K)), and in giving double precision for a single image
    too.

    Args:
        features: (N, C, h, w) of the last convolution.
        weights: (K, C) of the linear layer behind the global pooling, or the rows of the classes that are wanted.

    Returns:
        (N, K, h, w) float64.

    Source:
        B. Zhou et al., "Learning deep features for discriminative localization", CVPR 2016, eq. 2.
    """
    number, channels, height, width = features.shape
    maps: NDArray[Any] = weights @ features.reshape(number, channels, height * width)
    return maps.reshape(number, len(weights), height, width).astype(np.float64)


def merge_ten_crops(maps: NDArray[Any]) -> NDArray[np.float64]:
    """Put the maps of the ten crops where the crops were cut, and add their absolute values; `mergeTenCrop.m`.

    The mirrored ones are mirrored back. As there, each map is a picture of three equal channels, which are added up
    too: where all crops overlap, the result is the sum of 30 values. All of it is in single precision.

    It differs in the order of axes: there the maps are (x, y, crop) and are transposed on the way.

    Args:
        maps: (10, c, c) in the order of `prepare_image`, already as large as the crops.

    Returns:
        (256, 256) float64 that hold single precision.

    Raises:
        ValueError: The maps are not ten squares of at most 256 pixels.
    """
    if maps.ndim != 3 or len(maps) != 10 or maps.shape[1] != maps.shape[2]:
        raise ValueError(f"found maps of shape {maps.shape}, expected (10, c, c)")
    crop = maps.shape[1]
    aligned = np.zeros((10, SIDE, SIDE), np.float32)
    for number, (top, left) in enumerate(_corners(crop)):
        place = (slice(top, top + crop), slice(left, left + crop))
        aligned[number][place] = maps[number]
        aligned[number + 5][place] = maps[number + 5, :, ::-1]
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
    """Color a map; `map2jpg.m`.

    It differs in taking the colormap itself, not the name of a MATLAB function.

    Args:
        heatmap: (H, W). NaN gets the colormap's first color.
        limits: The values of the first and the last color; the map's smallest and largest if left out.
        colormap: (256, 3), 0..1; `jet(256)` if left out.

    Returns:
        (H, W, 3) float64 RGB, 0..1.
    """
    return ind2rgb(gray2ind(mat2gray(heatmap, limits), 256), jet(256) if colormap is None else colormap)


# --------------------------------------------------------------------------------------------------------- the demo


def top_classes(scores: NDArray[Any], top: int = 5) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Find the classes with the largest mean score; `demo.m`.

    It differs where `demo.m` runs on the released features (``online = 0``): their scores are 1 x 1 x 1000 x 10, along
    whose second axis there is nothing to average, so that it shows the classes of the first crop alone. Give
    ``scores[:1]`` for those.

    Args:
        scores: (N, K) of the crops.
        top: How many classes.

    Returns:
        The classes (top,) int64, best first and the first of equals first, and their mean scores (top,).
    """
    mean = scores.mean(axis=0)
    classes = np.argsort(-mean, kind="stable")[:top]
    return classes, mean[classes]


def demo_maps(cams: NDArray[Any], crop: int = 224) -> NDArray[np.float64]:
    """Enlarge the class activation maps of ten crops to the crops (bicubic) and merge them; the loop of `demo.m`.

    Args:
        cams: (10, K, h, w) of `return_cam_map`.
        crop: The side of the crops in pixels; 224 in `demo.m`, also for networks with another.

    Returns:
        (K, 256, 256) float64.
    """
    large = imresize(cams.transpose(2, 3, 1, 0), (crop, crop)).transpose(2, 3, 0, 1)  # to (h, w, K, 10), and back
    return np.stack([merge_ten_crops(maps) for maps in large])


def demo_result(image: NDArray[np.uint8], maps: NDArray[Any]) -> NDArray[np.uint8]:
    """Draw the demo's picture: the image, and for each map a white bar and the map over the image; `demo.m`.

    The overlay is 0.2 of the image and 0.7 of the map's colors. It differs in giving the pixels that `imwrite` makes
    of the picture, without its JPEG.

    Args:
        image: (256, 256, 3) uint8 RGB; `imresize` it first.
        maps: (K, 256, 256), each colored over its own range.

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
