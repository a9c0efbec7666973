"""Images of any kind -> RGB uint8 (H, W, 3), and from there to the square that a network looks at.

What a pixel is:

* **Alpha is dropped**, in palettes too: the colors below it count, as in MATLAB's imread, OpenCV and torchvision, so
  that scores can be compared with theirs. To see an image on white, composite it and pass the result.
* **16 bits** become the upper 8. That is exact for what was 8 bits once, however it was widened (times 256 or 257).
* **CMYK** becomes RGB by the plain formula. Color profiles (ICC) are not applied.
* **EXIF orientation** is applied, and ignored where it cannot be read.
* **Of several frames** (an animation, pages) the first is taken, with a `camrt.CamrtWarning`.

Nothing here changes Pillow's global state, and everything is thread-safe. (Where other code
has set ``PIL.ImageFile.LOAD_TRUNCATED_IMAGES``, truncated images are decoded as far as they go.)
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from camrt.errors import CamrtError, CamrtWarning
from camrt.matlab import contributions

if TYPE_CHECKING:
    from PIL import Image
    from scipy.sparse import csr_matrix

    ImageLike: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[np.uint8]

MAX_PIXELS = 89_478_485  # Pillow's own limit, which stands at 256 MiB of RGB
# What photographs come in. Not EPS, which starts Ghostscript, nor what is told by no signature (TGA).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "MPO")

LARGER = "If you trust it, allow more with --max-pixels (in Python max_pixels)"
_WIDE = ("I;16", "I;16L", "I;16B", "I;16N")
_WITH_ALPHA = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}  # premultiplied, or in a palette: undo that first
_BLOCK = 1 << 17  # float64 numbers that are resized at a time: 1 MiB, which the second-level cache holds
_LARGE = 16_000_000  # pixels: larger images are decoded one at a time
_ORIENTATION = 0x0112  # the EXIF tag
_MARGIN = 8  # times the result: the least size of a JPEG that is reduced while it is decoded
_BELOW_HALF = np.nextafter(0.5, 0.0)
_one_large = threading.Lock()


def name_of(image: ImageLike) -> str:
    """Return what to call an image in messages and results: its path, or what it is.

    Args:
        image: As for `decode`.
    """
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return "<bytes>"
    if isinstance(image, np.ndarray):
        return "<array>"
    file = getattr(image, "filename", "")
    return file if isinstance(file, str) and file else "<image>"


def decode(image: ImageLike, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode an image of any kind; see the module's text for alpha, 16 bits, CMYK and orientation.

    Args:
        image: A path, the bytes of a file, a PIL image, or RGB uint8 (H, W, 3).
        max_pixels: The largest height times width that is decoded; the header is asked, before anything is decoded.
            Arrays are not limited. Files of more than 179 million pixels are refused by Pillow in any case, where
            PIL.Image.MAX_IMAGE_PIXELS is as it was.

    Returns:
        (H, W, 3) uint8 RGB, read-only; a copy.

    Raises:
        CamrtError: There is no such file; it is no image, or a broken, truncated or gigantic one; the array has another
            shape or type. The text names the file, what was found and what was expected.

    Warns:
        CamrtWarning: The file has several frames. The first is taken.
    """
    if isinstance(image, np.ndarray):
        return _checked(image)
    name = name_of(image)
    try:
        with _opened(image, max_pixels) as opened:
            return _pixels(opened, max_pixels, name)
    except CamrtError as error:
        raise error.in_file(name) from error.__cause__


def as_stored(image: str | os.PathLike[str] | bytes) -> ImageLike:
    """Open an image with its pixels as they are stored.

    MATLAB's imread does not apply the EXIF orientation, and annotated boxes do not either.

    Args:
        image: A path, or the bytes of a file.

    Returns:
        What `decode` reads that way; the path or the bytes, if there is nothing to ignore.
    """
    from PIL import Image

    given = image if isinstance(image, bytes) else os.fspath(image)
    try:
        opened = Image.open(io.BytesIO(given) if isinstance(given, bytes) else given, formats=("JPEG", "MPO"))
        exif = opened.getexif()
    except Exception:  # another format, or an error that decoding reports
        return given
    if exif.get(_ORIENTATION, 1) == 1:
        opened.close()
        return given
    del exif[_ORIENTATION]
    if isinstance(given, str):
        opened.filename = given
    return opened


def _decode_for(image: ImageLike, side: int, max_side: int | None, max_pixels: int) -> tuple[NDArray[np.uint8], int]:
    """Decode an image for `load`: a JPEG that is much larger than what is made of it at a reduced size.

    Returns:
        The image, and by how much its sides are divided: 1, 2, 4 or 8.
    """
    if max_side is None or not isinstance(image, (str, os.PathLike, bytes, bytearray, memoryview)):
        return decode(image, max_pixels=max_pixels), 1  # an open image is its owner's, and is not changed
    name = name_of(image)
    try:
        with _opened(image, max_pixels) as opened:
            _check_size(opened, max_pixels)
            reduction = _reduction(opened, side, max_side)
            if reduction > 1:
                opened.draft(None, (opened.width // reduction, opened.height // reduction))
            return _pixels(opened, max_pixels, name), reduction
    except CamrtError as error:
        raise error.in_file(name) from error.__cause__


def _reduction(image: Image.Image, side: int, max_side: int) -> int:
    """By how much a JPEG may be reduced while it is decoded.

    Reduced, it must still be `_MARGIN` times as large as the square and the picture. Resized from there, both keep
    within a gray level of what the whole image gives. Sides that cannot be divided would be stretched.
    """
    if image.format != "JPEG":
        return 1
    shorter, longer = sorted(image.size)
    for reduction in (8, 4, 2):
        is_even = shorter % reduction == longer % reduction == 0
        if is_even and shorter >= reduction * _MARGIN * side and longer >= reduction * _MARGIN * max_side:
            return reduction
    return 1


@dataclass(frozen=True)
class Loaded:
    """An image as `load` gives it.

    Attributes:
        image: (H, W, 3) uint8 RGB, read-only: the image, or a smaller one.
        square: (S, S, 3) uint8 RGB: what the network looks at.
        size: The height and width of the image as it was decoded.
    """

    image: NDArray[np.uint8]
    square: NDArray[np.uint8]
    size: tuple[int, int]


def load(image: ImageLike, side: int, *, max_side: int | None = None, max_pixels: int = MAX_PIXELS) -> Loaded:
    """Decode an image, make the network's square of it, and keep as much of it as is needed.

    A JPEG at least sixteen times as large as both is decoded at a half, a quarter or an eighth of its size, which takes
    less time and memory; both results are within a gray level of those of the whole image.

    Called from several threads, it decodes large images one after the other, so that the memory in use does not grow
    with the number of threads.

    Args:
        image: As for `decode`.
        side: The side in pixels of the square.
        max_side: The longer side in pixels of the image that is kept; None for the image as it is.
        max_pixels: As for `decode`.

    Raises:
        CamrtError: As for `decode`.
    """
    is_large = _pixel_count(image) > _LARGE
    with _one_large if is_large else contextlib.nullcontext():
        decoded, reduction = _decode_for(image, side, max_side, max_pixels)
        square = prepare(decoded, side)
        height, width = (reduction * length for length in decoded.shape[:2])
        kept = decoded if max_side is None else fit(decoded, max_side)
        kept.flags.writeable = False
        del decoded
        if is_large:
            _return_memory()
    return Loaded(kept, square, (height, width))


def prepare(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize an image to the square that a network looks at, whatever its proportions.

    It is ``imresize(img, [256 256])`` of `demo.m`.

    Args:
        image: (H, W, 3) uint8 RGB.
        size: The side of the square in pixels.

    Returns:
        (size, size, 3) uint8 RGB: the same pixels as `camrt.matlab.imresize` gives.
    """
    return resize(image, (size, size))


def fit(image: NDArray[np.uint8], side: int, *, enlarge: bool = False) -> NDArray[np.uint8]:
    """Resize an image so that its longer side has that many pixels.

    Args:
        image: (H, W, 3) uint8 RGB.
        side: In pixels.
        enlarge: Whether a smaller image is enlarged; else it stays as it is.
    """
    scale = side / max(image.shape[:2])
    if scale >= 1 and not enlarge:
        return image
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    return resize(image, (height, width))


def resize(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resize as `camrt.matlab.imresize` (bicubic), to the last bit, about ten times faster.

    Each axis is a product with a sparse matrix, whose rows hold the weights in the order in which they are added there.
    The matrices of the last 256 pairs of sizes are kept (some 50 kB each).

    Args:
        image: (H, W) or (H, W, C): uint8, float32 or float64.
        size: Height and width of the result in pixels.

    Returns:
        (height, width) or (height, width, C) of the image's dtype; the image itself if it has that size.

    Raises:
        ValueError: The image has no pixels or another number of axes, or the size is not positive.
        TypeError: The image has another dtype.
    """
    if image.ndim not in (2, 3) or not image.size or min(size) < 1:
        raise ValueError(f"found an image of shape {image.shape} for the size {size}, expected (H, W) or (H, W, C)")
    if image.dtype not in (np.uint8, np.float32, np.float64):
        raise TypeError(f"found an image of {image.dtype}, expected uint8, float32 or float64")
    resized = image if image.ndim == 3 else image[:, :, None]
    scales = [size[axis] / image.shape[axis] for axis in (0, 1)]
    for axis in np.argsort(scales, kind="stable"):
        if resized.shape[axis] != size[axis]:
            resized = _along_rows(resized, size[1]) if axis else _along_columns(resized, size[0])
    return resized if image.ndim == 3 else resized[:, :, 0]


# ------------------------------------------------------------------------------------------------------------ decoding


def _checked(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise CamrtError(f"found an array of shape {array.shape} and {array.dtype}, expected RGB (H, W, 3) uint8")
    copy = np.array(array)
    copy.flags.writeable = False
    return copy


@contextlib.contextmanager
def _opened(image: Any, max_pixels: int) -> Iterator[Image.Image]:
    """An image of which only the header is read."""
    if isinstance(image, (str, os.PathLike)):
        with _stream(Path(image)) as stream, _header(stream, max_pixels) as opened:
            yield opened
    elif isinstance(image, (bytes, bytearray, memoryview)):
        if not len(image):
            raise CamrtError("found no bytes, expected those of an image file")
        with _header(io.BytesIO(image), max_pixels) as opened:
            yield opened
    else:
        yield image


@contextlib.contextmanager
def _stream(path: Path) -> Iterator[IO[bytes]]:
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise CamrtError("found a folder, expected an image file")
        if not stat.S_ISREG(found.st_mode):
            raise CamrtError("found a device or a pipe, expected an image file")
        if not found.st_size:
            raise CamrtError("found an empty file, expected an image")
        stream = path.open("rb")
    except FileNotFoundError:
        raise CamrtError("there is no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise CamrtError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    with stream:
        yield stream


def _header(stream: IO[bytes], max_pixels: int) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(stream, formats=_formats())
    except UnidentifiedImageError:
        stream.seek(0)
        raise CamrtError(
            f"is no image that can be read: its first bytes are {stream.read(12)!r}, expected one of "
            f"{', '.join(FORMATS[:-1])}. Convert it to one of these"
        ) from None
    except Exception as error:
        raise _unreadable(error, max_pixels) from error


def _pixel_count(image: Any) -> int:
    """The height times width that a file's header says; 0 where it says nothing, or nothing is decoded."""
    if isinstance(image, np.ndarray):
        return 0
    try:
        with _opened(image, MAX_PIXELS) as opened:
            return opened.width * opened.height
    except CamrtError:
        return 0  # said when it is decoded


def _return_memory() -> None:
    """Give freed memory back to the system: of a large image, Pillow's blocks stay in a heap for each thread."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None  # of glibc
    if trim is not None:
        trim(0)


def _pixels(image: Image.Image, max_pixels: int, name: str) -> NDArray[np.uint8]:
    try:
        _check_size(image, max_pixels)
        # An MPO is a photograph with its depth or preview behind it.
        if image.format != "MPO" and getattr(image, "is_animated", False):
            found = f"{name}: found several frames or pages; the first is taken"
            warnings.warn(found, CamrtWarning, stacklevel=4)
        image.load()
        # Read behind the pixels, as PNG may hold it there; TIFF's has been applied by then.
        return _array(_upright(_rgb(image), _orientation(image)))
    except CamrtError:
        raise
    except Exception as error:
        raise _unreadable(error, max_pixels) from error


def _array(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels of an RGB image: (H, W, 3)."""
    width, height = image.size
    step = max(1, _LARGE // 4 // width)
    if height <= step:
        pixels = np.asarray(image, np.uint8)
    else:  # in parts, as Pillow holds what it hands over twice
        pixels = np.empty((height, width, 3), np.uint8)
        for y in range(0, height, step):
            pixels[y : y + step] = np.asarray(image.crop((0, y, width, min(y + step, height))))
    pixels.flags.writeable = False
    return pixels


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if not width or not height:
        raise CamrtError(f"found {width} x {height} pixels, expected an image")
    if width * height > max_pixels:
        raise CamrtError(
            f"is gigantic: found {width:,} x {height:,} = {width * height:,} pixels, expected at most {max_pixels:,}. "
            f"{LARGER}"
        )


def _unreadable(error: Exception, max_pixels: int) -> CamrtError:
    """Turn what Pillow's plugins raise at a broken file, which may be anything, into an error."""
    from PIL.Image import DecompressionBombError, DecompressionBombWarning

    if isinstance(error, (DecompressionBombError, DecompressionBombWarning)):
        # Pillow's own limits are 89 and 179 million pixels: only the one that counts here is named.
        found = re.search(r"\d+", str(error))
        pixels = int(found[0]) if found else 0
        if pixels > max_pixels:
            return CamrtError(f"is gigantic: found {pixels:,} pixels, expected at most {max_pixels:,}. {LARGER}")
        return CamrtError(f"is gigantic: found {pixels:,} pixels, which is more than Pillow decodes. Make it smaller")
    if isinstance(error, MemoryError):
        return CamrtError("there is not enough memory to decode it. Make the image smaller")
    return CamrtError(
        f"is broken or truncated ({type(error).__name__}: {str(error)[:200]}), expected a whole image. Fetch or export "
        "it again"
    )


def _rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    mode = image.mode
    if mode == "RGB":
        return image
    if mode in _WIDE or (mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if mode in ("I", "F", "LAB"):
        found = {"I": "32-bit integers", "F": "floating-point numbers", "LAB": "L*a*b* colors"}[mode]
        raise CamrtError(f"found {found}, expected 8 or 16 bits a channel: scale its values and save them so")
    if mode == "P" and "transparency" in image.info:
        mode = "PA"  # Pillow warns when it goes to RGB at once
    return image.convert(_WITH_ALPHA[mode]).convert("RGB") if mode in _WITH_ALPHA else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """The EXIF tag: 1 is upright."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken metadata do not make an image unreadable
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those that this Pillow was built with."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


# ------------------------------------------------------------------------------------------------------------ resizing


def _along_columns(image: NDArray[Any], height: int) -> NDArray[Any]:
    """Resize (H, W, C) to (height, W, C)."""
    matrix = _matrix(len(image), height)
    lines = image.reshape(len(image), -1)
    resized = np.empty((height, lines.shape[1]), image.dtype)
    step = max(16, _BLOCK // len(image))
    for start in range(0, lines.shape[1], step):
        block = slice(start, start + step)
        resized[:, block] = _rounded(matrix @ lines[:, block].astype(np.float64), image.dtype)
    return resized.reshape(height, *image.shape[1:])


def _along_rows(image: NDArray[Any], width: int) -> NDArray[Any]:
    """Resize (H, W, C) to (H, width, C)."""
    return _transposed(_along_columns(_transposed(image), width))


def _transposed(image: NDArray[Any]) -> NDArray[Any]:
    """(H, W, C) to (W, H, C)."""
    import cv2

    if image.shape[2] > 4:  # which OpenCV does not take
        return np.ascontiguousarray(image.transpose(1, 0, 2))
    return cv2.transpose(np.ascontiguousarray(image)).reshape(image.shape[1], image.shape[0], -1)  # ten times faster


def _rounded(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[np.float64]:
    """Prepare values so that a cast to uint8 rounds as MATLAB does, half away from zero; leave floats as they are."""
    if dtype.kind == "u":
        np.clip(values, 0, 255, out=values)
        values += _BELOW_HALF  # not 0.5, which would lift the number right below 0.5 to 1
    return values


@functools.lru_cache(maxsize=256)
def _matrix(size_in: int, size_out: int) -> csr_matrix:
    """The weights of `camrt.matlab.imresize` along an axis: (size_out, size_in) float64."""
    from scipy.sparse import csr_matrix

    sources, weights = contributions(size_in, size_out, size_out / size_in, "bicubic")
    # Neither sorted nor merged where the border mirrors: the sums are to be those of the oracle, bit by bit.
    ends = np.arange(0, sources.size + 1, sources.shape[1])
    return csr_matrix((weights.ravel(), sources.ravel(), ends), shape=(size_out, size_in))
