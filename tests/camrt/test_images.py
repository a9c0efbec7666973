from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from camrt import CamrtError, CamrtWarning, images
from camrt.matlab import imresize
from tests.tiny_models import photo

RGB = photo(12, 17)
GREY = RGB[:, :, 1]


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def merged(mode: str, *bands: np.ndarray) -> Image.Image:
    return Image.merge(mode, [Image.fromarray(np.ascontiguousarray(band)) for band in bands])


def oriented(number: int, format: str = "JPEG", **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = number
    return encoded(Image.fromarray(RGB), format, exif=exif, **options)


# ------------------------------------------------------------------------------------------------------------ decoding


def test_every_kind_of_input_gives_the_same_pixels(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(RGB))
    path = tmp_path / "größe 1.png"
    path.write_bytes(data)
    for given in (path, str(path), data, bytearray(data), memoryview(data), Image.open(path), RGB):
        decoded = images.decode(given)
        np.testing.assert_array_equal(decoded, RGB)
        assert decoded.dtype == np.uint8
        assert not decoded.flags.writeable


def test_the_result_is_a_copy() -> None:
    mine = RGB.copy()
    decoded = images.decode(mine)
    mine[:] = 0
    np.testing.assert_array_equal(decoded, RGB)
    assert mine.flags.writeable


def test_names() -> None:
    assert images.name_of(Path("a") / "b.jpg") == os.path.join("a", "b.jpg")  # noqa: PTH118
    assert images.name_of(b"x") == "<bytes>"
    assert images.name_of(RGB) == "<array>"
    assert images.name_of(Image.fromarray(RGB)) == "<image>"


def palette() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    return image


PALETTE = [[[10, 20, 30], [200, 100, 50]]]
ALPHA = np.dstack([RGB, np.tile(np.arange(17, dtype=np.uint8) * 15, (12, 1))])
WIDE = GREY.astype(np.uint16) * 257

# What is decoded, and the pixels that are expected.
MODES: dict[str, tuple[Callable[[], bytes], object]] = {
    "grey": (lambda: encoded(Image.fromarray(GREY)), np.dstack([GREY] * 3)),
    "grey with alpha": (lambda: encoded(merged("LA", GREY, ALPHA[:, :, 3])), np.dstack([GREY] * 3)),
    "one bit": (lambda: encoded(Image.fromarray(GREY > 128)), np.dstack([(GREY > 128) * np.uint8(255)] * 3)),
    "palette": (lambda: encoded(palette()), PALETTE),
    "palette with a transparent colour": (lambda: encoded(palette(), transparency=0), PALETTE),
    "palette with alpha": (lambda: encoded(palette(), transparency=bytes([0, 128])), PALETTE),
    "gif with a transparent colour": (lambda: encoded(palette(), "GIF", transparency=1), PALETTE),
    "alpha": (lambda: encoded(Image.fromarray(ALPHA)), RGB),
    "alpha in WebP": (lambda: encoded(Image.fromarray(ALPHA), "WEBP", lossless=True, exact=True), RGB),
    "RGB with a transparent colour": (lambda: encoded(Image.fromarray(RGB), transparency=(1, 2, 3)), RGB),
    "16 bits": (lambda: encoded(Image.fromarray(WIDE)), np.dstack([GREY] * 3)),
    "16 bits, times 256": (lambda: encoded(Image.fromarray(WIDE & 0xFF00)), np.dstack([GREY] * 3)),
    "16 bits in TIFF": (lambda: encoded(Image.fromarray(WIDE), "TIFF"), np.dstack([GREY] * 3)),
    "16 bits in PGM": (
        lambda: b"P5 17 12 65535\n" + WIDE.astype(">u2").tobytes(),
        np.dstack([GREY] * 3),
    ),
    "16 bits a colour": (lambda: png_of_48_bits(RGB.astype(np.uint16) * 257), RGB),
    "TIFF, compressed": (lambda: encoded(Image.fromarray(RGB), "TIFF", compression="tiff_lzw"), RGB),
    "BMP": (lambda: encoded(Image.fromarray(RGB), "BMP"), RGB),
    "a GIF of one frame": (lambda: encoded(Image.fromarray(GREY), "GIF"), np.dstack([GREY] * 3)),
    "CMYK in TIFF": (
        lambda: encoded(merged("CMYK", *(255 - RGB).transpose(2, 0, 1), np.zeros_like(GREY)), "TIFF"),
        RGB,
    ),
}


def png_of_48_bits(colors: np.ndarray) -> bytes:
    """Pillow does not write it."""
    height, width = colors.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colors)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", MODES)
@pytest.mark.filterwarnings("error")
def test_modes(name: str) -> None:
    make, expected = MODES[name]
    np.testing.assert_array_equal(images.decode(make()), expected)


@pytest.mark.filterwarnings("error")
def test_pil_images_of_every_mode() -> None:
    """Also those that no file has: premultiplied alpha, other colour spaces."""
    for mode in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"):
        source = Image.fromarray(RGB)
        between = {"La": "LA", "PA": "P", "RGBa": "RGBA"}.get(mode)
        image = (source.convert(between) if between else source).convert(mode)
        decoded = images.decode(image)
        assert decoded.shape == RGB.shape
        if mode not in ("1", "L", "LA", "La", "P", "PA"):
            assert np.abs(decoded.astype(int) - RGB).max() <= 8, mode


def test_cmyk_of_photoshop_is_not_inverted() -> None:
    """Adobe's CMYK JPEGs are stored inverted, and say so in a marker."""
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    decoded = images.decode(encoded(cyan, "JPEG", quality=95))
    assert np.abs(decoded.astype(int) - (0, 255, 255)).max() <= 6


@pytest.mark.parametrize("number", range(1, 9))
def test_orientation(number: int) -> None:
    upright = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: RGB.transpose(1, 0, 2)[:, ::-1],
        7: RGB.transpose(1, 0, 2)[::-1, ::-1],
        8: RGB.transpose(1, 0, 2)[::-1],
    }[number]
    np.testing.assert_array_equal(images.decode(oriented(number, "PNG")), upright)
    np.testing.assert_array_equal(images.decode(oriented(number, "TIFF")), upright)
    np.testing.assert_array_equal(images.decode(oriented(number, "WEBP", lossless=True)), upright)
    np.testing.assert_array_equal(images.decode(Image.open(io.BytesIO(oriented(number, "PNG")))), upright)
    photo = images.decode(oriented(number, quality=95, subsampling=0))
    assert np.abs(photo.astype(int) - upright).mean() < 4


@pytest.mark.parametrize("number", [0, 9, 700])
def test_an_orientation_that_does_not_exist_is_upright(number: int) -> None:
    np.testing.assert_array_equal(images.decode(oriented(number, "PNG")), RGB)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_is_no_broken_image() -> None:
    data = encoded(Image.fromarray(RGB), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xffnothing")
    assert images.decode(data).shape == RGB.shape


def test_a_photograph_with_its_depth_is_a_photograph() -> None:
    """MPO: what phones write, a JPEG with more pictures behind it."""
    data = encoded(Image.fromarray(RGB), "MPO", save_all=True, append_images=[Image.fromarray(RGB[::-1])])
    decoded = images.decode(data)
    assert np.abs(decoded.astype(int) - RGB).mean() < 12


# --------------------------------------------------------------------------------------------------------------- errors


def frames(format: str, **options: object) -> bytes:
    more = [Image.fromarray(photo(12, 17, seed)) for seed in (1, 2)]
    return encoded(Image.fromarray(RGB), format, save_all=True, append_images=more, **options)


def huge_png(width: int, height: int) -> bytes:
    data = bytearray(encoded(Image.fromarray(RGB)))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


LARGE = encoded(Image.fromarray(photo(200, 200)), "JPEG")
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty file"),
    "text": (b"<html><body>404</body></html>", r"is no image.*b'<html><body>'.*expected one of JPEG, PNG"),
    "no pixels left": (LARGE[:200], "is no image|broken or truncated"),
    "half of a JPEG": (LARGE[: len(LARGE) // 2], "broken or truncated"),
    "half of a PNG": (encoded(Image.fromarray(photo(200, 200)))[:60_000], "broken or truncated"),
    "half of a GIF": (encoded(Image.fromarray(photo(99, 99)[:, :, 0]), "GIF")[:5000], "broken or truncated"),
    "half of a WebP": (encoded(Image.fromarray(photo(99, 99)), "WEBP")[:900], "broken or truncated|is no image"),
    "half of a BMP": (encoded(Image.fromarray(RGB), "BMP")[:300], "broken or truncated"),
    "half of a TIFF": (encoded(Image.fromarray(photo(99, 99)), "TIFF")[:9000], "broken or truncated|is no image"),
    "damaged PNG": (
        encoded(Image.fromarray(RGB)).replace(b"IDAT", b"IDAT\x00\x00\x00", 1),
        "broken or truncated",
    ),
    "gigantic": (huge_png(9_000, 9_950), "is gigantic: found 9,000 x 9,950 = 89,550,000 pixels, expected at most 89,"),
    "a bomb": (huge_png(60_000, 60_000), "is gigantic"),
    "a bomb of the largest kind": (huge_png(2**31 - 1, 2**31 - 1), "is gigantic|broken"),
    "floats": (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "floating-point numbers.*8 or 16 bits"),
    "long integers": (encoded(Image.fromarray(np.ones((4, 4), np.int32)), "TIFF"), "32-bit integers"),
    "lab": (encoded(Image.new("LAB", (4, 4)), "TIFF"), "L\\*a\\*b\\* colors"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_with_what_was_found(name: str, tmp_path: Path) -> None:
    data, message = BAD[name]
    path = tmp_path / "bad one.jpg"
    path.write_bytes(data)
    with pytest.raises(CamrtError, match=message) as caught:
        images.decode(path)
    assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(CamrtError, match=r"^<bytes>: "):
        images.decode(data)


def test_a_bomb_is_not_decoded(tmp_path: Path) -> None:
    """A PNG of 14 kB that holds 40 million pixels, with a limit below."""
    path = tmp_path / "bomb.png"
    Image.new("1", (8000, 5000)).save(path)
    assert path.stat().st_size < 20_000
    with pytest.raises(CamrtError, match=r"found 8,000 x 5,000 = 40,000,000 pixels, expected at most 1,000,000"):
        images.decode(path, max_pixels=1_000_000)
    with pytest.raises(CamrtError, match=r"bomb\.png: is gigantic"):
        images.decode(Image.open(path), max_pixels=1_000_000)


def test_an_image_of_exactly_the_limit_is_decoded() -> None:
    assert images.decode(encoded(Image.fromarray(RGB)), max_pixels=12 * 17).shape == RGB.shape


@pytest.mark.filterwarnings("error")
def test_a_warning_turned_into_an_error_is_ours() -> None:
    with pytest.raises(CamrtError, match="is gigantic"):
        images.decode(huge_png(9_500, 9_500))


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none.jpg", "there is no such file"),
        (tmp_path, "found a folder"),
        ("a\0b", "cannot be read"),
        ("/dev/zero", "found a device or a pipe"),
    ):
        if str(path) == "/dev/zero" and not Path(path).exists():
            continue
        with pytest.raises(CamrtError, match=message):
            images.decode(path)


@pytest.mark.parametrize(
    "array",
    [RGB[:, :, 0], RGB.astype(np.float32), np.dstack([RGB, GREY]), RGB[:0], RGB[None]],
    ids=["grey", "float", "four channels", "empty", "batch"],
)
def test_arrays_of_another_kind(array: np.ndarray) -> None:
    with pytest.raises(CamrtError, match=r"found an array of shape .* expected RGB \(H, W, 3\) uint8"):
        images.decode(array)


def test_pil_images_that_cannot_be_decoded(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    path.write_bytes(LARGE[: len(LARGE) // 2])
    with pytest.raises(CamrtError, match="broken or truncated"):
        images.decode(Image.open(path))
    closed = Image.open(io.BytesIO(LARGE))
    closed.close()
    with pytest.raises(CamrtError, match="broken or truncated"):
        images.decode(closed)


def test_nothing_of_pillow_is_changed() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, warnings.filters[:])
    images.decode(LARGE, max_pixels=10**9)
    with pytest.raises(CamrtError):
        images.decode(LARGE, max_pixels=10)
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, warnings.filters[:]) == before


def test_threads() -> None:
    sources = [encoded(Image.fromarray(photo(30 + n, 40, n)), "PNG") for n in range(12)]
    alone = [images.prepare(images.decode(data), 20) for data in sources]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            together = list(pool.map(lambda data: images.prepare(images.decode(data), 20), sources))
            for one, other in zip(alone, together, strict=True):
                np.testing.assert_array_equal(one, other)


# ------------------------------------------------------------------------------------------------------------- resizing

SIZES = [
    ((37, 50), (32, 32)),
    ((50, 37), (32, 32)),
    ((32, 32), (32, 32)),
    ((64, 64), (32, 32)),  # halved: every weight is a dyadic fraction, and ties are common
    ((96, 32), (32, 32)),
    ((20, 10), (32, 32)),
    ((1, 1), (32, 32)),
    ((2, 300), (32, 32)),
    ((33, 31), (32, 32)),
    ((32, 32), (51, 77)),
    ((32, 32), (51, 7)),
]


@pytest.mark.parametrize(("shape", "size"), SIZES, ids=str)
def test_resize_is_matlabs_bit_by_bit(shape: tuple[int, int], size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for image in (
        photo(*shape),
        rng.integers(0, 256, (*shape, 3), dtype=np.uint8),
        rng.choice(np.array([0, 255], np.uint8), (*shape, 3)),  # edges: overshoot is clipped, and ties
        rng.normal(0, 3, shape).astype(np.float32),
        rng.normal(0, 3, (*shape, 2)),
    ):
        resized = images.resize(image, size)
        np.testing.assert_array_equal(resized, imresize(image, size))
        assert resized.dtype == image.dtype


def test_prepare_is_the_demos_imresize() -> None:
    """Sizes of ImageNet."""
    for shape in ((375, 500), (500, 333), (256, 256), (224, 180)):
        image = photo(*shape)
        np.testing.assert_array_equal(images.prepare(image, 256), imresize(image, (256, 256)))


def test_large_images_are_resized_in_blocks() -> None:
    image = photo(1100, 1700)
    np.testing.assert_array_equal(images.prepare(image, 64), imresize(image, (64, 64)))


def test_resize_refuses() -> None:
    for image, size in ((RGB[:0], (4, 4)), (RGB, (0, 4)), (RGB[0, 0], (4, 4))):
        with pytest.raises(ValueError, match="expected"):
            images.resize(image, size)
    with pytest.raises(TypeError, match="uint16"):
        images.resize(WIDE, (4, 4))


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_taken_with_a_warning(format: str, tmp_path: Path) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    path = tmp_path / f"frames.{format}"
    path.write_bytes(frames(format, **options))
    with pytest.warns(CamrtWarning, match=rf"frames\.{format}: found several frames or pages; the first is taken"):
        decoded = images.decode(path)
    if format == "GIF":  # 256 colors
        assert np.abs(decoded.astype(int) - RGB).mean() < np.abs(photo(12, 17, 1).astype(int) - RGB).mean() / 4
    else:
        np.testing.assert_array_equal(decoded, RGB)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(9_000, 9_950), (12_000, 10_000), (60_000, 60_000)])
def test_one_limit_is_named_and_how_to_raise_it(size: tuple[int, int]) -> None:
    """Pillow has two limits of its own, at 89 and 179 million pixels."""
    with pytest.raises(CamrtError) as caught:
        images.decode(huge_png(*size))
    text = str(caught.value)
    assert f"{size[0] * size[1]:,} pixels, expected at most 89,478,485. " in text
    assert "178,956,970" not in text
    assert "--max-pixels" in text
    assert "PIL" not in text


def test_a_limit_above_pillows_own_says_so() -> None:
    with pytest.raises(CamrtError, match="3,600,000,000 pixels, which is more than Pillow decodes"):
        images.decode(huge_png(60_000, 60_000), max_pixels=10**12)


def test_loading_is_decoding_and_resizing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against decode, prepare and imresize, also where an image counts as large and is converted in parts."""
    image = photo(300, 200)
    data = encoded(Image.fromarray(image))
    for large in (images._LARGE, 4000):
        monkeypatch.setattr(images, "_LARGE", large)
        np.testing.assert_array_equal(images.decode(data), image)
        whole = images.load(data, 32)
        np.testing.assert_array_equal(whole.image, image)
        np.testing.assert_array_equal(whole.square, imresize(image, (32, 32)))
        small = images.load(data, 32, max_side=30)
        np.testing.assert_array_equal(small.image, imresize(image, (30, 20)))
        np.testing.assert_array_equal(small.square, whole.square)
        assert (small.size, whole.size) == ((300, 200), (300, 200))
        assert not small.image.flags.writeable


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the memory in use")
def test_memory_follows_the_limit_and_not_the_threads(repository: Path, tmp_path: Path) -> None:
    """Three images of 17 megapixels from three threads: each takes 120 MB while it is decoded."""
    path = tmp_path / "large.jpg"
    Image.new("RGB", (5000, 3400), (90, 120, 30)).save(path)
    code = (
        "import resource, sys\nfrom concurrent.futures import ThreadPoolExecutor\nfrom camrt import images\n"
        "images.load(sys.argv[2], 32, max_side=100)\n"  # what is imported on the way
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with ThreadPoolExecutor(3) as pool:\n"
        "    kept = list(pool.map(lambda n: images.load(sys.argv[1], 32, max_side=50), range(3)))\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)"
    )
    small = tmp_path / "small.png"
    Image.fromarray(RGB).save(small)
    arguments = [sys.executable, "-c", code, str(path), str(small)]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 200


# ----------------------------------------------------------------------------------------------------- reduced decoding


def stripes(height: int, width: int) -> np.ndarray:
    """Stripes in all directions and at all scales, up to what pixels hold."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    radius = np.hypot(x - width / 2, y - height / 2)
    gray = 128 + 120 * np.cos(np.pi * radius**2 / (2 * radius.max()))
    return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


def real_photo(height: int, width: int) -> np.ndarray:
    data = pytest.importorskip("skimage.data", reason="needs the photographs of scikit-image")
    return images.resize(data.astronaut(), (height, width))


def texture(height: int, width: int) -> np.ndarray:
    data = pytest.importorskip("skimage.data", reason="needs the photographs of scikit-image")
    return np.repeat(np.tile(data.gravel(), (3, 4))[:height, :width, None], 3, axis=2)


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize(
    ("make", "share"),
    [(photo, 1.0), (real_photo, 1.0), (texture, 1.0), (stripes, 0.98), (noise, 0.95)],
    ids=["photo", "real photo", "texture", "stripes", "noise"],
)
def test_a_reduced_jpeg_gives_the_same_within_a_gray_level(make: Any, share: float, subsampling: int) -> None:
    """Against libjpeg at full size. Only stripes and noise as fine as pixels differ by more, here and there."""
    data = encoded(Image.fromarray(make(1536, 2048)), "JPEG", quality=92, subsampling=subsampling)
    decoded = images.decode(data)
    for side, max_side, reduction in ((48, 64, 4), (96, 128, 2), (24, 32, 8)):
        found = images.load(data, side, max_side=max_side)
        assert images._decode_for(data, side, max_side, images.MAX_PIXELS)[1] == reduction
        assert found.size == (1536, 2048)
        for one, size in ((found.square, (side, side)), (found.image, (max_side * 3 // 4, max_side))):
            difference = np.abs(one.astype(int) - images.resize(decoded, size))
            assert (difference <= 1).mean() >= share
            assert difference.max() <= 3


def test_only_large_jpegs_are_reduced(tmp_path: Path) -> None:
    def reduction(data: Any, side: int = 24, max_side: int | None = 40) -> int:
        return images._decode_for(data, side, max_side, images.MAX_PIXELS)[1]

    image = Image.fromarray(photo(960, 1280))
    data = encoded(image, "JPEG")
    assert reduction(data) == 4
    assert reduction(data, side=96) == 1
    assert reduction(data, max_side=400) == 1
    assert reduction(data, max_side=None) == 1
    assert reduction(encoded(image, "PNG")) == 1
    assert reduction(encoded(Image.fromarray(photo(961, 1281)), "JPEG")) == 1, "its sides cannot be divided"
    with Image.open(io.BytesIO(data)) as opened:
        assert reduction(opened) == 1
        assert opened.size == (1280, 960), "the image of the caller stays as it is"
    with pytest.raises(CamrtError, match="is gigantic"):
        images.load(data, 24, max_side=40, max_pixels=1000)
    with pytest.raises(CamrtError, match="broken or truncated"):
        images.load(data[: len(data) // 2], 24, max_side=40)


def test_a_reduced_jpeg_is_upright() -> None:
    image = Image.fromarray(photo(960, 1280))
    exif = image.getexif()
    exif[0x0112] = 6
    data = encoded(image, "JPEG", exif=exif, quality=95)
    found = images.load(data, 24, max_side=40)
    assert found.size == (1280, 960)
    assert np.abs(found.image.astype(int) - images.resize(images.decode(data), (40, 30))).max() <= 1
