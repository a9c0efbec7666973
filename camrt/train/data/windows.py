"""WindowData: windows of images, as for the training of R-CNN (window_data_layer.cpp)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from camrt.errors import CamrtError
from camrt.train.data.sources import decoded_image
from camrt.train.data.streams import LoadedBatch, random_generator
from camrt.train.data.transform import Transform, of_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor

    from converters.layer import Layer

_FIELDS = 6  # of a window: class, overlap, x1, y1, x2, y2
_CACHE_SIZE = 64  # decoded images, since the windows of an image come in random order


@dataclass(frozen=True, eq=False)
class WindowFile:
    """The images and windows of a window file.

    Attributes:
        paths: The images.
        windows: (W, 6) float64: the index of the image, the class, and x1, y1, x2, y2 in pixels, where x2 and y2 are
            inclusive. Background windows have the class 0.
        foreground: (F,) int64: the rows of ``windows`` that overlap an object.
        background: (B,) int64: the rows of ``windows`` that do not overlap an object.
    """

    paths: tuple[str, ...]
    windows: NDArray[np.float64]
    foreground: NDArray[np.int64]
    background: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class WindowData:
    """The tops of a WindowData layer.

    A batch consists of background windows, which overlap objects by less than ``bg_threshold``, followed by a fraction
    ``fg_fraction`` of foreground windows, which overlap an object by ``fg_threshold`` or more. All are drawn with
    replacement.

    Attributes:
        name: The window file, for messages.
        tops: The blobs of the windows and of the labels.
        batch_size: The number of windows in a batch.
        fraction: The fraction of foreground windows.
        context: The padding around a window, in pixels of the resized window.
        square: Whether windows are extended to squares instead of being warped.
        transform: The crop size, mirroring, mean and scale.
        file: The windows.
        seed: The seed of sampling and mirroring.
    """

    name: str
    tops: tuple[str, str]
    batch_size: int
    fraction: float
    context: int
    square: bool
    transform: Transform
    file: WindowFile
    seed: int
    classes = ()
    is_cheap = False

    @classmethod
    def of(cls, layer: Layer, find: Callable[[str], Path], *, seed: int, batch: int | None = None) -> WindowData:
        """Create the data of a layer, and read its window file.

        Args:
            layer: The layer.
            find: Resolves a path of the prototxt.
            seed: The seed of sampling and mirroring.
            batch: The batch size. By default, that of the layer.

        Raises:
            CamrtError: The file cannot be read or has no windows, or a parameter of the layer is missing or invalid.
        """
        param, where = layer.params.window_data_param, f"layer {layer.name} (WindowData)"
        transform = of_layer(layer, find, is_random=True)
        size = batch or param.batch_size
        if transform.crop is None or not size:
            raise CamrtError(f"{where}: found no {'batch_size' if transform.crop else 'crop_size'}, expected 1 or more")
        if not 0 <= param.fg_fraction <= 1 or 2 * param.context_pad >= transform.crop[0]:
            raise CamrtError(
                f"{where}: found fg_fraction {param.fg_fraction:g} and context_pad {param.context_pad}, expected 0 to "
                f"1, and less than half of crop_size {transform.crop[0]}"
            )
        if param.crop_mode not in ("warp", "square"):
            raise CamrtError(f"{where}: found crop_mode {param.crop_mode!r}, expected 'warp' or 'square'")
        if len(layer.tops) != 2:
            raise CamrtError(f"{where}: found {len(layer.tops)} top(s), expected 2: windows and labels")
        source = find(param.source)
        root = str(find(param.root_folder)) if param.root_folder else ""
        file = read_windows(source, root, foreground=param.fg_threshold, background=param.bg_threshold)
        wanted = int(size * param.fg_fraction)
        for kind, count in (("foreground", wanted), ("background", size - wanted)):
            if count and not len(getattr(file, kind)):
                raise CamrtError(
                    f"found no {kind} windows, expected at least one, since each batch has {count} of them",
                    file=str(source),
                )
        return cls(
            str(source), (layer.tops[0], layer.tops[1]), size, param.fg_fraction, param.context_pad,
            param.crop_mode == "square", transform, file, seed,
        )  # fmt: skip

    @property
    def count(self) -> int | None:
        """See `Stream`. The number of windows is infinite, since they are drawn with replacement."""
        return None

    @property
    def largest_label(self) -> int | None:
        """See `Stream`."""
        return int(self.file.windows[:, 1].max())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Stream`."""
        assert self.transform.crop is not None
        return {self.tops[0]: (self.batch_size, 3, *self.transform.crop), self.tops[1]: (self.batch_size,)}

    def load(self, position: int) -> LoadedBatch:
        """See `Stream`. The background comes first, as in Caffe."""
        chance = random_generator(self.seed, position)
        foreground = int(self.batch_size * self.fraction)
        rows = [
            int(row)
            for kind, count in (
                (self.file.background, self.batch_size - foreground), (self.file.foreground, foreground),
            )
            for row in (kind[chance.integers(len(kind), size=count)] if count else ())
        ]  # fmt: skip
        mirrored = chance.random(self.batch_size) < 0.5 if self.transform.mirror else np.zeros(self.batch_size, bool)
        images = np.zeros(self.shapes()[self.tops[0]], np.float32)
        for slot, (row, mirror) in enumerate(zip(rows, mirrored, strict=True)):
            self._draw(images[slot], self.file.windows[row], mirror=bool(mirror))
        labels = self.file.windows[rows, 1].astype(np.int64)
        labels[: self.batch_size - foreground] = 0
        return LoadedBatch({self.tops[0]: images, self.tops[1]: labels})

    def finish(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Stream`. The batch is returned unchanged."""
        return inputs

    def _draw(self, target: NDArray[np.float32], window: NDArray[np.float64], *, mirror: bool) -> None:
        """Write a window, minus the mean and scaled, to (3, crop, crop). Pixels outside the image stay 0."""
        image = _image(self.file.paths[int(window[0])])
        if isinstance(image, CamrtError):
            raise image
        part, top, left = crop_window(
            image, window[2:], target.shape[1], context=self.context, square=self.square, mirror=mirror
        )
        height, width = part.shape[:2]
        values = part.transpose(2, 0, 1).astype(np.float32)
        mean = self.transform.mean
        if mean is not None and self.transform.has_mean_image:
            offset = (mean.shape[2] - target.shape[1]) // 2
            if offset < 0 or offset + target.shape[1] > mean.shape[1]:
                raise CamrtError(
                    f"found a mean image of {mean.shape[2]} x {mean.shape[1]} pixels, expected at least the crop's "
                    f"{target.shape[1]}",
                    file=self.transform.source,
                )
            values -= mean[:, offset + top : offset + top + height, offset + left : offset + left + width]
        elif mean is not None:
            values -= mean
        target[:, top : top + height, left : left + width] = values * self.transform.scale


def crop_window(
    image: NDArray[np.uint8], box: NDArray[np.float64], size: int, *, context: int, square: bool, mirror: bool
) -> tuple[NDArray[np.uint8], int, int]:
    """Crop a window with its context, and resize it, as Caffe's WindowData layer does.

    Args:
        image: (H, W, 3) uint8.
        box: x1, y1, x2, y2 in pixels, where x2 and y2 are inclusive.
        size: The side of the result in pixels.
        context: The padding around the window, in pixels of the result.
        square: Whether the window is extended to a square.
        mirror: Whether the result is mirrored.

    Returns:
        The part of the result that is inside the image, (h, w, 3), and its top and left in the result.

    Raises:
        CamrtError: The window is outside the image.
    """
    x1, y1, x2, y2 = (int(side) for side in box)
    height = width = size
    top = left = 0
    if context or square:
        scale = size / (size - 2 * context)
        half_height, half_width = (y2 - y1 + 1) / 2, (x2 - x1 + 1) / 2
        center_x, center_y = x1 + half_width, y1 + half_height
        if square:
            half_height = half_width = max(half_height, half_width)
        x1, x2 = (_rounded(center_x + sign * half_width * scale) for sign in (-1, 1))
        y1, y2 = (_rounded(center_y + sign * half_height * scale) for sign in (-1, 1))
        factor_x, factor_y = size / (x2 - x1 + 1), size / (y2 - y1 + 1)
        before_x, before_y = max(0, -x1), max(0, -y1)
        after_x, after_y = max(0, x2 - image.shape[1] + 1), max(0, y2 - image.shape[0] + 1)
        x1, y1, x2, y2 = x1 + before_x, y1 + before_y, x2 - after_x, y2 - after_y
        top, left = _rounded(before_y * factor_y), _rounded((after_x if mirror else before_x) * factor_x)
        height = min(_rounded((y2 - y1 + 1) * factor_y), size - top)
        width = min(_rounded((x2 - x1 + 1) * factor_x), size - left)
    part = image[max(0, y1) : y2 + 1, max(0, x1) : x2 + 1]
    if not part.size or height < 1 or width < 1:
        raise CamrtError(
            f"found the window {[int(side) for side in box]}, expected one inside the image of {image.shape[1]} x "
            f"{image.shape[0]} pixels"
        )
    resized = cv2.resize(np.ascontiguousarray(part), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized[:, ::-1] if mirror else resized, np.uint8), top, left


def _rounded(value: float) -> int:
    """Round as C's round does: half away from zero."""
    return int(np.floor(abs(value) + 0.5) * np.sign(value))


def read_windows(file: Path, root: str, *, foreground: float, background: float) -> WindowFile:
    """Read a window file.

    For each image, the file has the lines ``# number``, path, channels, height, width and number of windows, and for
    each window a line ``class overlap x1 y1 x2 y2``.

    Args:
        file: The file.
        root: The folder of relative paths; empty for none.
        foreground: The smallest overlap of a foreground window.
        background: The overlap below which a window is background.

    Raises:
        CamrtError: The file cannot be read, or has an invalid line.
    """
    paths, rows, overlaps = [], [], []
    try:
        lines = enumerate(file.read_text(encoding="utf-8", errors="surrogateescape").split("\n"), 1)
    except (OSError, ValueError) as error:
        raise CamrtError(f"cannot be read: {getattr(error, 'strerror', None) or error}", file=str(file)) from None
    for number, line in lines:
        if not line.strip():
            continue
        if not line.startswith("#"):
            raise CamrtError(f"found {line.strip()[:80]!r}, expected '# image_index'", file=f"{file}:{number}")
        path = _next(lines, file, 1)[0]
        paths.append(f"{root.rstrip('/')}/{path.lstrip('/')}" if root else path)
        *_, count = (_numbers(text, file, 1)[0] for text in _next(lines, file, 4))
        if not 0 <= count < 2**31:
            raise CamrtError(f"found {count:g} windows, expected 0 or more", file=f"{file}:{number}")
        for text in _next(lines, file, int(count)):
            label, overlap, *box = _numbers(text, file, _FIELDS)
            rows.append((len(paths) - 1, label, *box))
            overlaps.append(overlap)
    if not rows:
        raise CamrtError("found no windows, expected at least one", file=str(file))
    windows, shares = np.array(rows, np.float64), np.array(overlaps)
    is_foreground = shares >= foreground
    wrong = np.flatnonzero(is_foreground & (windows[:, 1] < 1))
    if len(wrong):
        raise CamrtError(
            f"found a foreground window of class {windows[wrong[0], 1]:g}, expected 1 or more", file=str(file)
        )
    is_background = ~is_foreground & (shares < background)
    return WindowFile(tuple(paths), windows, np.flatnonzero(is_foreground), np.flatnonzero(is_background))


def _next(lines: Iterator[tuple[int, str]], file: Path, count: int) -> list[str]:
    found = []
    for _ in range(count):
        number, line = next(lines, (0, ""))
        if not line.strip():
            raise CamrtError(
                "ends within the windows of an image, expected further lines",
                file=f"{file}:{number}" if number else str(file),
            )
        found.append(line.strip())
    return found


def _numbers(text: str, file: Path, count: int) -> list[float]:
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        values = []
    if len(values) != count or not np.isfinite(values).all():
        raise CamrtError(f"found {text[:80]!r}, expected {count} number(s)", file=str(file))
    return values


@functools.lru_cache(maxsize=_CACHE_SIZE)
def _image(path: str) -> NDArray[np.uint8] | CamrtError:
    return decoded_image(path)
