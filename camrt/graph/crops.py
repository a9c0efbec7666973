"""The way back from crops: pasting their maps where the crops were, as nodes. `camrt.preprocess` cuts them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from camrt.builder import Builder
from camrt.errors import CamrtError
from camrt.matlab import imresize
from camrt.preprocess import Crop, Preprocess

_LONGEST = 4096  # rows or columns of a map that is enlarged


def black(preprocess: Preprocess, crops: Sequence[Crop]) -> np.ndarray:
    """Compute what the network gets for a black image.

    Returns:
        (1, 3, 1, 1) float32; with a mean image (crops, 3, side, side).
    """
    scale = np.reshape(preprocess.scale, (3, 1, 1)).astype(np.float32)
    if preprocess.mean_image is None:
        mean: np.ndarray = np.reshape(preprocess.mean, (1, 3, 1, 1)).astype(np.float32)
        return -mean * scale
    whole = -preprocess.mean_image.astype(np.float32) * scale
    parts = [whole[:, c.y : c.y + c.side, c.x : c.x + c.side][..., :: -1 if c.mirrored else 1] for c in crops]
    return np.stack(parts)


def merge(
    builder: Builder,
    maps: str,
    crops: Sequence[Crop],
    size: int,
    height: int,
    width: int,
    output: str | None = None,
    *,
    rectified: bool = False,
) -> str:
    """Add nodes that enlarge the maps of crops, paste each where its crop was, and add their magnitudes.

    This follows the original's mergeTenCrop.m, which adds the three equal channels of an enlarged map, so each map
    counts three times. Enlarging (bicubic), mirroring and pasting are linear along each axis, so each crop takes two
    matrices.

    Args:
        builder: Where the nodes go.
        maps: (N, crops, top, height, width) float32.
        crops: What they are maps of.
        size: The image's side in pixels.
        height: The maps' height.
        width: The maps' width.
        output: The tensor that is written: (N, top, size, size) float32.
        rectified: Whether the maps have no negative values. Those that the bicubic enlarging makes are then clipped.
    """
    rows = np.stack([_pasted(enlargement(height, c.side), c.y, size) for c in crops])
    columns = np.stack([_pasted(enlargement(width, c.side)[:: -1 if c.mirrored else 1], c.x, size) for c in crops])
    times = 3 if len(crops) > 2 else 1
    # (size, h) x (h, w) x (w, size) for each crop and class
    wide = builder.node("MatMul", [maps, builder.constant(columns.transpose(0, 2, 1)[:, None], "columns")])
    large = builder.node("MatMul", [builder.constant(times * rows[:, None], "rows"), wide])
    magnitude = builder.node("Relu" if rectified else "Abs", [large])
    if len(crops) == 1:
        return builder.node("Squeeze", [magnitude, builder.shape(1)], output)
    return builder.node("ReduceSum", [magnitude, builder.shape(1)], output, keepdims=0)


def paste(builder: Builder, maps: str, crops: Sequence[Crop], size: int, output: str | None = None) -> str:
    """Add nodes that paste maps of the crops' size where their crops were, and add them.

    Args:
        builder: Where the nodes go.
        maps: (N, crops, top, side, side) float32.
        crops: What they are maps of.
        size: The image's side in pixels.
        output: The tensor that is written: (N, top, size, size) float32.

    Returns:
        The tensor that is written.
    """
    pasted = []
    for number, crop in enumerate(crops):
        one = builder.node("Squeeze", [builder.slice(maps, [number], [number + 1], [1]), builder.shape(1)])
        one = builder.flip(one, 3) if crop.mirrored else one
        below, right = size - crop.y - crop.side, size - crop.x - crop.side
        pasted.append(builder.node("Pad", [one, builder.shape(0, 0, crop.y, crop.x, 0, 0, below, right)]))
    return builder.node("Sum", pasted, output)


def _pasted(matrix: np.ndarray, start: int, size: int) -> np.ndarray:
    """The rows of a matrix from row ``start`` on among ``size`` rows, zeros elsewhere."""
    pasted = np.zeros((size, matrix.shape[1]))
    pasted[start : start + matrix.shape[0]] = matrix
    return pasted


def enlargement(size: int, larger: int) -> np.ndarray:
    """The matrix that resizes a column as MATLAB's imresize does: ``enlargement(h, H) @ column``.

    Args:
        size: The column's length.
        larger: The length that it is resized to.

    Returns:
        (larger, size) float64.

    Raises:
        CamrtError: ``size`` is beyond that of any features.
    """
    if size > _LONGEST:
        raise CamrtError(f"found maps of {size} rows or columns, expected at most {_LONGEST}: name a later layer")
    # imresize is linear: applied to the columns of the identity, it gives its matrix.
    return np.asarray(imresize(np.eye(size), (larger, size), method="bicubic"))
