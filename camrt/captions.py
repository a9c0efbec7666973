"""Captions under pictures, in a font that has the characters of the text."""

from __future__ import annotations

import functools
import logging
import math
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from converters.errors import printable

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont


# Looked for in the system's folders of fonts, for characters that Pillow's own font lacks.
FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "arial.ttf", "Arial.ttf", "segoeui.ttf",
    "NotoSansCJK-Regular.ttc", "DroidSansFallbackFull.ttf", "wqy-microhei.ttc", "Arial Unicode.ttf", "PingFang.ttc",
    "Hiragino Sans GB.ttc", "msyh.ttc", "YuGothM.ttc", "malgun.ttf", "NotoSansArabic-Regular.ttf",
    "NotoSansHebrew-Regular.ttf", "NotoSansDevanagari-Regular.ttf", "NotoSansThai-Regular.ttf", "Nirmala.ttf",
    "FreeSans.ttf", "unifont.otf",
)  # fmt: skip

INK, FAINT, GROUND = (27, 31, 36), (102, 102, 119), (255, 255, 255)
_LOG = logging.getLogger(__name__)
_ABSENT = "\U0010ffff"  # no font has it: what is drawn for it stands for a missing character


def caption(width: int, left: str, right: str = "", note: str | None = None, *, side: int) -> NDArray[np.uint8]:
    """Draw a caption: a line with text on the left and the right, and a smaller line below.

    Args:
        width: Of the caption in pixels.
        left: Shortened with an ellipsis where it is too long.
        right: Not shortened; left out where there is no room for it.
        note: The smaller line, which is there when it is empty; None for none.
        side: The longer side in pixels of the picture above. The text has a height of about a 32nd of it.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw

    size = min(max(side / 32, 10), 64)
    pad = max(2, round(0.4 * size))
    first = round(1.5 * size)
    below = _note(width, note, size, pad)
    drawn = np.empty((first + len(below), width, 3), np.uint8)
    drawn[first:] = below
    canvas = Pillow.new("RGB", (width, first), GROUND)
    draw = ImageDraw.Draw(canvas)
    right_font = font_for(right, size)
    room = width - 2 * pad
    taken = right_font.getlength(right)
    if taken > room:
        right, taken = "", 0
    middle = pad / 2 + first / 2
    draw.text((width - pad, middle), right, FAINT, right_font, anchor="rm")
    left_font = font_for(left, size)
    draw.text((pad, middle), shortened(left, left_font, room - taken - pad * bool(right)), INK, left_font, anchor="lm")
    drawn[:first] = np.asarray(canvas)
    return drawn


@functools.lru_cache(maxsize=64)
def _note(width: int, note: str | None, size: float, pad: int) -> NDArray[np.uint8]:
    """The smaller line with the space below it, (height, width, 3) uint8 RGB: the same for all classes of an image."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    height = 0 if note is None else round(1.2 * size)
    canvas = Pillow.new("RGB", (width, height + pad), GROUND)
    if note:
        font = font_for(note, 0.8 * size)
        text = shortened(note, font, width - 2 * pad)
        ImageDraw.Draw(canvas).text((pad, pad / 2 + height / 2), text, FAINT, font, anchor="lm")
    return np.asarray(canvas)


def shortened(text: str, font: FreeTypeFont, room: float) -> str:
    """Shorten a text with an ellipsis, so that it takes at most so many pixels; "" where nothing fits."""
    most = max(0, round(room))  # a character takes a pixel at least; and Pillow refuses megabytes
    if len(text) <= most and font.getlength(text) <= room:
        return text
    low, high = 0, min(len(text), most)
    while low < high:  # the longest beginning that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(f"{text[:middle].rstrip()}…") <= room else (low, middle - 1)
    return f"{text[:low].rstrip()}…" if low else ""


def score_text(score: float) -> str:
    """Return a score as it is shown: a percentage where it is a probability."""
    if not math.isfinite(score):
        return "no number"
    return f"{score:.1%}" if 0 <= score <= 1 else f"{score:.4g}"


@functools.lru_cache(maxsize=4096)
def drawable(label: str, otherwise: str) -> str:
    """Return a label as it can be drawn with the fonts of this machine.

    Args:
        label: Plain text in any script. Control characters are escaped.
        otherwise: What is drawn in place of a label that no font has the characters of.

    Returns:
        The label; or the label without its accents; or ``otherwise``, which is said once for each label.
    """
    text = printable(label)
    if _font_name(text) is not None:
        return text
    plain = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    if plain.strip() and _font_name(plain) is not None:
        return plain
    _LOG.info(
        "no font on this machine has the characters of %r: pictures say %r. Install a font that has them, such as "
        "Noto Sans CJK", text, otherwise,
    )  # fmt: skip
    return otherwise


@functools.lru_cache(maxsize=1024)
def font_for(text: str, size: float) -> FreeTypeFont:
    """Return the first font that has all characters of a text; Pillow's own if there is none.

    Args:
        text: Plain text.
        size: In pixels.
    """
    return _font(_font_name(text) or "", size)


def missing(text: str, font: FreeTypeFont) -> Sequence[str]:
    """Return the characters of a text that a font lacks."""
    return [char for char in dict.fromkeys(text) if not char.isspace() and _lacks(font, char)]


@functools.lru_cache(maxsize=4096)
def _font_name(text: str) -> str | None:
    """The name of the first font that has all characters of a text; "" for Pillow's own."""
    if not _can_be_laid_out(text):
        return None
    for name in ("", *FONTS):
        try:
            font = _font(name, 16)
        except OSError:  # it is not installed
            continue
        if not missing(text, font):
            return name
    return None


@functools.lru_cache(maxsize=256)
def _font(name: str, size: float) -> FreeTypeFont:
    from PIL import ImageFont

    # What Pillow gives without FreeType is a font that has no sizes; its wheels have FreeType.
    return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)  # type: ignore[return-value]


@functools.lru_cache(maxsize=4096)
def _lacks(font: FreeTypeFont, char: str) -> bool:
    return _drawn(char, font) == _drawn(_ABSENT, font)


def _drawn(char: str, font: FreeTypeFont) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(char)
    return mask.size, bytes(mask)


def _can_be_laid_out(text: str) -> bool:
    """Return whether text that runs from right to left, or whose letters join, is drawn as it is written."""
    from PIL import features

    plain = all(
        unicodedata.bidirectional(char) not in ("R", "AL") and unicodedata.category(char) != "Mc" for char in text
    )
    return plain or bool(features.check("raqm"))
