"""Cluttered digits: canvases with one digit at a random position, and pieces of other digits.

As in DeepMind's mnist-cluttered (https://github.com/deepmind/mnist-cluttered), the digit is placed at a random position
on an empty canvas, eight 8 x 8 patches of other digits are added at random positions, and the sum is clipped at white.
A network that classifies the digit must find it, and the bounding box of the digit shows whether it does.

The digits are those of MNIST, or drawn by OpenCV with its Hershey fonts in a random font, thickness, size, shear and
rotation. Drawn digits need no files. PyTorch is not imported.

Canvas ``i`` of a generator depends only on the seed and ``i``. It is the same in every batch, order, process and run,
and training never sees a canvas twice.

Example:
    >>> images, labels, boxes = Clutter(Digits.drawn(100)).batch(range(4))
    >>> images.shape, labels.shape, boxes.shape
    ((4, 100, 100), (4,), (4, 4))
"""

from __future__ import annotations

import functools
import gzip
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from camrt.errors import CamrtError

SIDE = 28  # pixels of a digit's image, as in MNIST
SCHEME = "clutter:"  # the prefix of a source's string
DRAWN = "drawn"
DRAWN_COUNT = 60_000  # as many as MNIST's training digits

Canvases = NDArray[np.uint8]
Integers = NDArray[np.int64]
Reals = NDArray[np.float64]
_Counters = NDArray[np.uint64]

_IMAGES_MAGIC, _LABELS_MAGIC = 0x803, 0x801  # idx: unsigned bytes with three axes, with one
_MAX_IDX_BYTES = 1 << 30  # of one file, unpacked: twenty times MNIST

# The uses of a seed. Each has an independent stream of random numbers.
_CANVAS, _DISTORTION, _DRAWING, _ELASTIC = 1, 2, 3, 4


# ------------------------------------------------------------------------------------------------------- the digits


@dataclass(frozen=True, eq=False)
class Digits:
    """Images of single digits.

    Attributes:
        images: (M, 28, 28) uint8, white on black.
        labels: (M,) int64, 0 to 9.
    """

    images: Canvases
    labels: Integers

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE) or images.dtype != np.uint8:
            raise CamrtError(f"found images of shape {images.shape} {images.dtype}, expected (M, {SIDE}, {SIDE}) uint8")
        if labels.shape != images.shape[:1] or labels.dtype != np.int64:
            raise CamrtError(f"found labels {labels.shape} {labels.dtype}, expected ({len(images)},) int64")
        if len(images) < 2:
            raise CamrtError(f"found {len(images)} digits, expected at least 2: clutter is cut from other digits")
        if labels.min() < 0 or labels.max() > 9:
            raise CamrtError(f"found labels from {labels.min()} to {labels.max()}, expected 0 to 9")
        if not (blank := images.any(axis=(1, 2))).all():
            raise CamrtError(f"found only black pixels in image {int(np.argmin(blank))}, expected a digit")

    def __len__(self) -> int:
        """Return the number of digits."""
        return len(self.images)

    def part(self, first: int = 0, count: int | None = None) -> Digits:
        """Return ``count`` digits from number ``first`` on, by default all that follow.

        Raises:
            CamrtError: There are too few digits.
        """
        last = len(self) if count is None else first + count
        if not 0 <= first < last <= len(self):
            raise CamrtError(f"found {len(self)} digits, expected at least {last}, to take those from {first} on")
        return Digits(self.images[first:last], self.labels[first:last])

    @classmethod
    def from_idx(cls, images: str | os.PathLike[str], labels: str | os.PathLike[str] | None = None) -> Digits:
        """Read the files of MNIST (format: http://yann.lecun.com/exdb/mnist/), compressed by gzip or not.

        Args:
            images: The file of the images, such as ``train-images-idx3-ubyte.gz``; or a folder with one such file.
            labels: The file of the labels. By default, the file beside ``images`` with ``labels-idx1`` instead of
                ``images-idx3`` in its name.

        Raises:
            CamrtError: A file does not exist, is not an idx file, or has a wrong size; or the numbers of images and
                labels differ.
        """
        file = Path(images)
        if file.is_dir():
            file = _images_file(file)
        beside = file.with_name(file.name.replace("images-idx3", "labels-idx1").replace("images.idx3", "labels.idx1"))
        if labels is None and beside == file:
            raise CamrtError("has no images-idx3 in its name: specify the file of the labels as well", file=str(file))
        labels_file = _packed_or_unpacked(beside) if labels is None else Path(labels)
        pixels = _idx(file, _IMAGES_MAGIC, 3)
        numbers = _idx(labels_file, _LABELS_MAGIC, 1)
        if len(pixels) != len(numbers):
            raise CamrtError(f"found {len(numbers)} labels, expected {len(pixels)} as in {file}", file=str(labels_file))
        try:
            return cls(pixels, numbers.astype(np.int64))
        except CamrtError as error:
            raise error.in_file(str(file)) from None

    @classmethod
    def drawn(cls, count: int, seed: int = 0) -> Digits:
        """Draw digits, each in a random font, thickness, size, shear and rotation.

        Args:
            count: The number of digits, 2 or more. Digit ``i`` does not depend on it.
            seed: The seed of the random numbers.

        Raises:
            CamrtError: ``count`` is less than 2.
        """
        if count < 2:
            raise CamrtError(f"found {count} digits to draw, expected at least 2")
        chance = _uniform(seed, _DRAWING, np.arange(count, dtype=np.uint64), 9)
        labels = (chance[:, 0] * 10).astype(np.int64)
        faces = (chance[:, 1] * len(_FACES)).astype(np.int64)
        thickness = _MIN_THICKNESS + (chance[:, 2] * (_MAX_THICKNESS + 1 - _MIN_THICKNESS)).astype(np.int64)
        glyphs = [_glyph(*each) for each in zip(labels.tolist(), faces.tolist(), thickness.tolist(), strict=True)]
        extents = np.array([glyph.shape for glyph in glyphs], np.float64) - 2 * _MARGIN
        matrices = _drawing_matrices(extents, chance[:, 3:])
        images = np.empty((count, SIDE, SIDE), np.uint8)
        for image, glyph, matrix in zip(images, glyphs, matrices, strict=True):
            large = cv2.warpAffine(glyph, matrix, (_FINE * SIDE, _FINE * SIDE), flags=_INVERSE)
            cv2.resize(large, (SIDE, SIDE), dst=image, interpolation=cv2.INTER_AREA)
        return cls(images, labels)


def _images_file(folder: Path) -> Path:
    found = sorted({*folder.glob("*images-idx3-ubyte"), *folder.glob("*images-idx3-ubyte.gz")})
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise CamrtError(
            f"found {names}, expected one file of images (*images-idx3-ubyte): specify it", file=str(folder)
        )
    return found[0]


def _packed_or_unpacked(file: Path) -> Path:
    """Return the file, or its compressed or uncompressed form if only that exists."""
    other = file.with_suffix("") if file.suffix == ".gz" else file.with_name(f"{file.name}.gz")
    return other if other.is_file() and not file.is_file() else file


def _idx(file: Path, magic: int, axes: int) -> NDArray[np.uint8]:
    """Read an idx file: a magic number and the sizes, as big-endian uint32, followed by the bytes of the array."""
    try:
        with file.open("rb") as stream:
            packed = stream.read(2) == b"\x1f\x8b"
        with gzip.open(file) if packed else file.open("rb") as stream:
            data = stream.read(_MAX_IDX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise CamrtError(f"cannot be read ({reason}), expected an idx file of MNIST", file=str(file)) from error
    header = 4 * (1 + axes)
    words = np.frombuffer(data[:header], ">u4") if len(data) >= header else np.zeros(1, ">u4")
    if words[0] != magic:
        raise CamrtError(
            f"found the magic number {int(words[0]):#x}, expected {magic:#x}: an idx file of unsigned bytes with "
            f"{axes} axes",
            file=str(file),
        )
    shape = tuple(int(word) for word in words[1:])
    if (expected := header + int(np.prod(shape, dtype=object))) != len(data):
        more = "more than " if len(data) > _MAX_IDX_BYTES else ""
        raise CamrtError(
            f"found {more}{len(data):,} bytes, expected {expected:,} for the shape {shape} in its header",
            file=str(file),
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


# ------------------------------------------------------------------------------------------------ drawing the digits

_FACES = tuple(
    face | slant
    for face in (
        cv2.FONT_HERSHEY_SIMPLEX,
        cv2.FONT_HERSHEY_PLAIN,
        cv2.FONT_HERSHEY_DUPLEX,
        cv2.FONT_HERSHEY_COMPLEX,
        cv2.FONT_HERSHEY_TRIPLEX,
        cv2.FONT_HERSHEY_COMPLEX_SMALL,
        cv2.FONT_HERSHEY_SCRIPT_SIMPLEX,
        cv2.FONT_HERSHEY_SCRIPT_COMPLEX,
    )
    for slant in (0, cv2.FONT_ITALIC)
)
_FINE = 2  # samples per pixel and axis when drawing, against aliasing
_HEIGHT = 48  # pixels of a glyph before it is transformed
_MIN_THICKNESS, _MAX_THICKNESS = 3, 9  # pixels of the glyph's strokes
_MARGIN = 2  # black pixels around the glyph
_INVERSE = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
_MAX_DIGIT = SIDE - 2  # largest width and height of a digit in pixels


@functools.cache
def _glyph(digit: int, face: int, thickness: int) -> NDArray[np.uint8]:
    """Draw a digit in a font, and crop it."""
    text, font = str(digit), _FACES[face]
    (_, unit), _ = cv2.getTextSize(text, font, 1.0, 1)
    canvas = np.zeros((4 * _HEIGHT, 4 * _HEIGHT), np.uint8)
    cv2.putText(canvas, text, (_HEIGHT, 3 * _HEIGHT), font, _HEIGHT / unit, 255, thickness, cv2.LINE_AA)
    x, y, width, height = cv2.boundingRect(canvas)
    return canvas[y - _MARGIN : y + height + _MARGIN, x - _MARGIN : x + width + _MARGIN].copy()


def _drawing_matrices(extents: Reals, chance: Reals) -> Reals:
    """Return matrices (M, 2, 3) from pixels of the drawing to the glyph, with random rotation, shear, size and aspect.

    Args:
        extents: (M, 2) height and width of the glyphs in pixels, without their margins.
        chance: (M, 6) uniform in [0, 1).
    """
    angle, shear, aspect, size, shift = (
        np.deg2rad(_between(chance[:, 0], -15, 15)),
        _between(chance[:, 1], -0.3, 0.3),
        _between(chance[:, 2], 0.8, 1.15),  # width over height
        _between(chance[:, 3], 17, 23),  # pixels of the longer side
        _between(chance[:, 4:6], -1, 1),  # pixels
    )
    bend = _linear_maps(angle, shear, aspect)
    corners = np.abs(bend) @ extents[:, ::-1, None] / 2  # half of the transformed width and height
    bend *= (size / (2 * corners.max(axis=(1, 2))))[:, None, None]
    center = (extents[:, ::-1] - 1) / 2 + _MARGIN
    room = (_MAX_DIGIT - 2 * (np.abs(bend) @ extents[:, ::-1, None] / 2)[..., 0]) / 2
    middle = (SIDE * _FINE - 1) / 2 + _FINE * np.clip(shift, -room, room)
    return _inverted(_FINE * bend, center, middle)


def _linear_maps(angle: Reals, shear: Reals, aspect: Reals) -> Reals:
    """Return matrices (M, 2, 2) that stretch along x, shear along x, and rotate, in this order."""
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.stack([cos, -sin, sin, cos], axis=-1).reshape(-1, 2, 2)
    sheared = np.zeros((len(angle), 2, 2))
    sheared[:, 0, 0], sheared[:, 0, 1], sheared[:, 1, 1] = aspect, shear, 1
    bends: Reals = rotation @ sheared
    return bends


def _inverted(linear: Reals, source: Reals, target: Reals) -> Reals:
    """Return the inverses (M, 2, 3) of the affine maps that have a linear part and map ``source`` to ``target``."""
    back = np.linalg.inv(linear)
    offset = source[..., None] - back @ target[..., None]
    return np.concatenate([back, offset], axis=2)


# ------------------------------------------------------------------------------------------------------- the canvases


@dataclass(frozen=True, eq=False)
class Clutter:
    """A generator of cluttered digits.

    Attributes:
        digits: The digits, from which the digit of a canvas and its clutter are drawn.
        seed: The seed of the random numbers.
        size: The side of a canvas in pixels.
        distractors: The number of patches of other digits.
        patch: The side of a patch in pixels.
        augment: Whether the digit is randomly rotated, scaled, sheared and stretched, for training on few digits.
        elastic: The strength of random elastic distortions of the digit, in pixels: the control points of a smooth
            displacement field move by up to this distance along each axis. 0 for none.
    """

    digits: Digits
    seed: int = 0
    size: int = 100
    distractors: int = 8
    patch: int = 8
    augment: bool = False
    elastic: int = 0

    def __post_init__(self) -> None:
        if not SIDE <= self.size <= 4096:
            raise CamrtError(f"found canvases of {self.size} pixels, expected {SIDE}, the size of a digit, to 4096")
        if not 1 <= self.patch <= SIDE:
            raise CamrtError(f"found patches of {self.patch} pixels, expected 1 to {SIDE}, the size of a digit")
        if not 0 <= self.distractors <= 1000:
            raise CamrtError(f"found {self.distractors} distractors, expected 0 to 1000")
        if not 0 <= self.elastic <= SIDE:
            raise CamrtError(f"found elastic distortions of {self.elastic} pixels, expected 0 to {SIDE}")

    def batch(self, indices: ArrayLike) -> tuple[Canvases, Integers, Integers]:
        """Generate canvases.

        Args:
            indices: (N,) integers, 0 to 2^63 - 1: the numbers of the canvases.

        Returns:
            The images (N, size, size) uint8, white on black; the labels (N,) int64; and the bounding boxes of the
            digits (N, 4) int64: x1, y1, x2, y2 in pixels, where x2 and y2 are exclusive. ``images[n, y1:y2, x1:x2]`` is
            the digit.

        Raises:
            CamrtError: The indices are invalid.
        """
        counters = _counters(indices)
        chance = _uniform(self.seed, _CANVAS, counters, 3 + 5 * self.distractors)
        chosen = (chance[:, 0] * len(self.digits)).astype(np.int64)
        digits = self._distorted(chosen, counters) if self.augment or self.elastic else self.digits.images[chosen]
        x, y = _positions(chance[:, 1:3], self.size - SIDE)
        canvases = np.zeros((len(chosen), self.size, self.size), np.uint8)
        canvases.reshape(-1)[_square_indices(np.arange(len(chosen)), y, x, SIDE, self.size)] = digits
        for each in np.split(chance[:, 3:], self.distractors or 1, axis=1) if self.distractors else ():
            self._add_distractor(canvases, chosen, each)
        boxes = _ink_boxes(digits) + np.stack([x, y, x, y], axis=1)
        return canvases, self.digits.labels[chosen], boxes

    def _add_distractor(self, canvases: Canvases, chosen: Integers, chance: Reals) -> None:
        """Add a patch to each canvas. ``chance`` (N, 5) selects the other digit, and both positions of the patch."""
        others = len(self.digits) - 1
        other = (chosen + 1 + (chance[:, 0] * others).astype(np.int64)) % len(self.digits)
        from_x, from_y = _positions(chance[:, 1:3], SIDE - self.patch)
        to_x, to_y = _positions(chance[:, 3:5], self.size - self.patch)
        cut = self.digits.images.reshape(-1)[_square_indices(other, from_y, from_x, self.patch, SIDE)]
        flat, places = canvases.reshape(-1), _square_indices(np.arange(len(chosen)), to_y, to_x, self.patch, self.size)
        total = flat[places] + cut
        total[total < cut] = 255  # uint8 overflowed
        flat[places] = total

    def _distorted(self, chosen: Integers, counters: _Counters) -> Canvases:
        matrices = self._distortion_matrices(counters)
        bent = np.empty((len(chosen), SIDE, SIDE), np.uint8)
        if not self.elastic:
            for image, number, matrix in zip(bent, chosen.tolist(), matrices, strict=True):
                cv2.warpAffine(self.digits.images[number], matrix, (SIDE, SIDE), dst=image, flags=_INVERSE)
            return bent
        pixels = np.mgrid[:SIDE, :SIDE][::-1].reshape(2, -1)  # x and y of each pixel
        sources = matrices[:, :, :2] @ pixels + matrices[:, :, 2:]
        sources = sources.reshape(-1, 2, SIDE, SIDE) + _displacements(self.seed, counters, self.elastic)
        for image, number, (x, y) in zip(bent, chosen.tolist(), sources.astype(np.float32), strict=True):
            cv2.remap(self.digits.images[number], x, y, cv2.INTER_LINEAR, dst=image)
        return bent

    def _distortion_matrices(self, counters: _Counters) -> Reals:
        """Return matrices (N, 2, 3) from pixels of the distorted digits to pixels of the digits."""
        if not self.augment:
            return np.tile(np.eye(2, 3), (len(counters), 1, 1))
        chance = _uniform(self.seed, _DISTORTION, counters, 4)
        scale = _between(chance[:, 2], 0.85, 1.15)
        bend = _linear_maps(
            np.deg2rad(_between(chance[:, 0], -15, 15)),
            _between(chance[:, 1], -0.25, 0.25),
            _between(chance[:, 3], 0.85, 1.15),
        )
        center = np.full((len(counters), 2), (SIDE - 1) / 2)
        return _inverted(scale[:, None, None] * bend, center, center)

    @classmethod
    def parse(cls, text: str) -> Clutter:
        """Create a generator from the string of a data source.

        The string is ``clutter:DIGITS`` or ``clutter:DIGITS,key=value,...``. ``DIGITS`` is ``drawn``, or the file of
        MNIST's images or its folder. The keys are ``first`` and ``count`` (which digits; there are 60,000 drawn ones),
        ``seed``, ``augment`` (0 or 1), ``elastic`` (pixels), ``size``, ``distractors`` and ``patch``.

        Raises:
            CamrtError: The string is invalid, or the digits cannot be read.

        Example:
            >>> clutter = Clutter.parse("clutter:drawn,count=500,seed=3")
            >>> len(clutter.digits), clutter.seed
            (500, 3)
        """
        expected = f"expected {SCHEME}DIGITS,key=value,... with DIGITS {DRAWN!r} or MNIST's file of images"
        if not text.startswith(SCHEME):
            raise CamrtError(f"found the source {text!r}, {expected}")
        name, *pairs = text[len(SCHEME) :].split(",")
        while pairs and "=" not in pairs[0]:  # the comma is part of the path
            name = f"{name},{pairs.pop(0)}"
        values = {key: _whole_number(key, value, text) for key, _, value in (pair.partition("=") for pair in pairs)}
        if not name or len(values) < len(pairs):
            raise CamrtError(f"found the source {text!r}, {expected}, and each key once")
        seed, first, count = values.get("seed", 0), values.pop("first", 0), values.pop("count", None)
        if name == DRAWN:
            digits = Digits.drawn(first + (DRAWN_COUNT if count is None else count), seed)
        else:
            digits = Digits.from_idx(name)
        values["augment"] = bool(values.get("augment", 0))
        return cls(digits.part(first, count), **values)


_KEYS = {"first", "count", "seed", "augment", "elastic", "size", "distractors", "patch"}


def _whole_number(key: str, value: str, text: str) -> Any:
    if key not in _KEYS:
        raise CamrtError(f"found the key {key!r} in the source {text!r}, expected one of {', '.join(sorted(_KEYS))}")
    if not (value.isascii() and value.isdigit()) or len(value) > 18 or (key == "augment" and int(value) > 1):
        raise CamrtError(f"found {key}={value} in the source {text!r}, expected an integer of 0 or more")
    return int(value)


_CELLS = 4  # of the control grid of a displacement field, along each axis of a digit


@functools.cache
def _spline_basis() -> Reals:
    """Return the values (28, _CELLS + 3) of the uniform cubic B-splines at the pixels of a digit."""
    place = (np.arange(SIDE) + 0.5) * (_CELLS / SIDE)
    distance = np.abs(place[:, None] - (np.arange(_CELLS + 3) - 1))
    near, far = 2 / 3 - distance**2 + distance**3 / 2, (2 - distance) ** 3 / 6
    basis: Reals = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    return basis


def _displacements(seed: int, counters: _Counters, size: float) -> Reals:
    """Return smooth random displacements (N, 2, 28, 28) in pixels: of x, then of y.

    They distort handwriting as Simard et al. (Best Practices for Convolutional Neural Networks, ICDAR 2003) do. The
    field is a cubic B-spline through random control points, in place of a smoothed field of one number per pixel.
    """
    knots = _CELLS + 3
    chance = _uniform(seed, _ELASTIC, counters, 2 * knots * knots).reshape(-1, 2, knots, knots)
    basis = _spline_basis()
    field: Reals = basis @ _between(chance, -size, size) @ basis.T
    return field


def _ink_boxes(digits: Canvases) -> Integers:
    """Return the bounding boxes (N, 4), x1, y1, x2, y2, of all pixels that are not black; without any, of the image."""
    ink = digits > 0
    sides = []
    for axis in (1, 2):  # columns with ink, then rows with ink
        has: NDArray[np.bool_] = np.any(ink, axis=axis)
        sides.append((has.argmax(axis=1), SIDE - has[:, ::-1].argmax(axis=1)))
    (x1, x2), (y1, y2) = sides
    return np.stack([x1, y1, x2, y2], axis=1).astype(np.int64)


def _positions(chance: Reals, last: int) -> tuple[Integers, Integers]:
    """Return random x and y, integers from 0 to ``last``."""
    numbers = (chance * (last + 1)).astype(np.int64)
    return numbers[:, 0], numbers[:, 1]


def _square_indices(images: Integers, y: Integers, x: Integers, side: int, size: int) -> Integers:
    """Return the flat indices (N, side, side) of squares in a stack of images with ``size`` x ``size`` pixels."""
    square = np.arange(side)[:, None] * size + np.arange(side)
    return ((images * size + y) * size + x)[:, None, None] + square


def _between(chance: Reals, low: float, high: float) -> Reals:
    return low + (high - low) * chance


# ---------------------------------------------------------------------------------------------------- random numbers

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, odd


def _counters(indices: ArrayLike) -> _Counters:
    array = np.asarray(indices)
    if array.ndim != 1 or (len(array) and not np.issubdtype(array.dtype, np.integer)):
        raise CamrtError(f"found indices {array.shape} {array.dtype}, expected (N,) integers")
    if len(array) and (array.min() < 0 or array.max() >= 1 << 63):
        raise CamrtError(f"found indices from {array.min()} to {array.max()}, expected 0 to 2^63 - 1")
    return array.astype(np.uint64)


def _uniform(seed: int, use: int, counters: _Counters, count: int) -> Reals:
    """Return random numbers (N, count), uniform in [0, 1), that depend only on the seed, the use and the counter.

    The finalizer of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014) is applied to
    the seed, then the counter, then the column. All columns are computed at once.
    """
    if not 0 <= seed < 1 << 63:
        raise CamrtError(f"found the seed {seed}, expected 0 to 2^63 - 1")
    key = _splitmix64(np.array([(seed * int(_GOLDEN) + use) % (1 << 64)], np.uint64))
    rows = _splitmix64(key + counters * _GOLDEN)
    columns = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    return (_splitmix64(rows[:, None] + columns) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _splitmix64(state: _Counters) -> _Counters:
    mixed = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
