"""WindowData: windows of images, as R-CNN is trained on (window_data_layer.cpp)."""

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
_KEPT = 64  # decoded images that are kept: windows of one image come in random order


@dataclass(frozen=True, eq=False)
class WindowFile:
    """The images and windows of a window file.

    Attributes:
        paths: The images.
        windows: (W, 6) float64: the image's number, the class, and x1, y1, x2, y2 in pixels; x2 and y2 belong to the
            window. Windows of the background have the class 0.
        foreground: (F,) int64: the rows of ``windows`` that overlap an object.
        background: (B,) int64: the rows that do not.
    """

    paths: tuple[str, ...]
    windows: NDArray[np.float64]
    foreground: NDArray[np.int64]
    background: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class WindowData:
    """The tops of a WindowData layer.

    A batch has ``fg_fraction`` of windows that overlap an object by ``fg_threshold`` or more, behind windows that
    overlap one by less than ``bg_threshold``; all are drawn with replacement.

    Attributes:
        name: The window file, for messages.
        tops: The blobs of the windows and of the labels.
        batch_size: The windows of a batch.
        fraction: The share of foreground windows.
        context: The pixels around a window, after it was resized.
        square: Whether windows are widened to squares, in place of being warped.
        transform: The crop size, mirroring, mean and scale.
        file: The windows.
        seed: For the choice of windows, and mirroring.
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
        """Read a layer and its window file.

        Args:
            layer: The layer.
            find: Resolves a path of the prototxt.
            seed: For the choice of windows, and mirroring.
            batch: The windows of a batch, in place of what the layer says.

        Raises:
            CamrtError: The file cannot be read or has no windows; the layer says no crop size.
        """
        param, where = layer.params.window_data_param, f"layer {layer.name} (WindowData)"
        transform = of_layer(layer, find, is_random=True)
        size = batch or param.batch_size
        if transform.crop is None or not size:
            raise CamrtError(f"{where}: found no {'batch_size' if transform.crop else 'crop_size'}, expected one")
        if not 0 <= param.fg_fraction <= 1 or 2 * param.context_pad >= transform.crop[0]:
            raise CamrtError(
                f"{where}: found fg_fraction {param.fg_fraction:g} and context_pad {param.context_pad}, expected 0 to "
                f"1, and less than half of crop_size {transform.crop[0]}"
            )
        if param.crop_mode not in ("warp", "square"):
            raise CamrtError(f"{where}: found crop_mode {param.crop_mode!r}, expected 'warp' or 'square'")
        if len(layer.tops) != 2:
            raise CamrtError(f"{where}: found {len(layer.tops)} top(s), expected two: windows and labels")
        source = find(param.source)
        root = str(find(param.root_folder)) if param.root_folder else ""
        file = read_windows(source, root, foreground=param.fg_threshold, background=param.bg_threshold)
        wanted = int(size * param.fg_fraction)
        for kind, count in (("foreground", wanted), ("background", size - wanted)):
            if count and not len(getattr(file, kind)):
                raise CamrtError(f"found no {kind} windows, expected some for {count} of a batch", file=str(source))
        return cls(
            str(source), (layer.tops[0], layer.tops[1]), size, param.fg_fraction, param.context_pad,
            param.crop_mode == "square", transform, file, seed,
        )  # fmt: skip

    @property
    def count(self) -> int | None:
        """See `Stream`: windows are drawn without end."""
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
        """See `Stream`: nothing is left to do."""
        return inputs

    def _draw(self, target: NDArray[np.float32], window: NDArray[np.float64], *, mirror: bool) -> None:
        """Write a window into (3, crop, crop), less the mean, scaled; zeros beyond the image."""
        image = _image(self.file.paths[int(window[0])])
        if isinstance(image, CamrtError):
            raise image
        part, top, left = cut_window(
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


def cut_window(
    image: NDArray[np.uint8], box: NDArray[np.float64], size: int, *, context: int, square: bool, mirror: bool
) -> tuple[NDArray[np.uint8], int, int]:
    """Cut a window and resize it, with its surroundings, as Caffe's WindowData layer does.

    Args:
        image: (H, W, 3) uint8.
        box: x1, y1, x2, y2 in pixels; x2 and y2 belong to the window.
        size: The side of the result in pixels.
        context: The pixels around the window in the result.
        square: Whether the window is widened to a square.
        mirror: Whether the result is mirrored.

    Returns:
        The part that lies in the image, (h, w, 3), and where it goes in the result: top and left.
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
            f"found a window {[int(side) for side in box]} outside of its image of {image.shape[1]} x {image.shape[0]}"
        )
    resized = cv2.resize(np.ascontiguousarray(part), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized[:, ::-1] if mirror else resized, np.uint8), top, left


def _rounded(value: float) -> int:
    """C's round: halves away from zero."""
    return int(np.floor(abs(value) + 0.5) * np.sign(value))


def read_windows(file: Path, root: str, *, foreground: float, background: float) -> WindowFile:
    """Read a window file.

    For each image: ``# number``, its path, channels, height, width, the number of windows, and for each of these a line
    ``class overlap x1 y1 x2 y2``.

    Args:
        file: The file.
        root: A folder that the paths start from; empty for none.
        foreground: The least overlap of a foreground window.
        background: The overlap below which a window is background.

    Raises:
        CamrtError: The file cannot be read, or a line is wrong.
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
            raise CamrtError("ends within an image's windows", file=f"{file}:{number}" if number else str(file))
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


@functools.lru_cache(maxsize=_KEPT)
def _image(path: str) -> NDArray[np.uint8] | CamrtError:
    return decoded_image(path)
