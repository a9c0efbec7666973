"""Captions: that text is whole, or said to be not."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import ImageFont

from camrt import captions

INK = np.array(captions.INK)


def ink(picture: np.ndarray) -> np.ndarray:
    """Where something is written."""
    return (picture < 200).any(axis=2)


@pytest.fixture(autouse=True)
def forget() -> None:
    for cached in (captions.drawable, captions.font_for, captions._font_name, captions._font):
        cached.cache_clear()


@pytest.mark.parametrize("side", [20, 100, 640, 2048, 9000])
def test_the_text_has_the_size_of_the_picture(side: int) -> None:
    drawn = captions.caption(side, "espresso", "96.3%", "gradcam", side=side)
    assert drawn.shape[1:] == (side, 3)
    assert drawn.dtype == np.uint8
    size = min(max(side / 32, 10), 64)
    assert 2 * size < len(drawn) < 5 * size
    written = ink(drawn)
    assert not written[:, 0].any()
    assert not written[:, -1].any()
    assert not written[[0, -1]].any()
    if side > 50:
        assert written[:, : side // 2].any()
        assert written[:, side * 3 // 4 :].any(), "the score stands on the right"


def test_a_long_label_is_shortened_and_the_score_stays() -> None:
    label = "a very long name of a class " * 20
    for width in (60, 200, 640):
        drawn = captions.caption(width, label, "96.3%", side=width)
        alone = captions.caption(width, "", "96.3%", side=width)
        score = ink(alone)
        start = int(np.flatnonzero(score.any(axis=0))[0])
        np.testing.assert_array_equal(drawn[:, start:], alone[:, start:])
        gap = ink(drawn)[:, start - 2 : start]
        assert not gap.any(), "they do not touch"
    font = ImageFont.load_default(20)
    short = captions.shortened(label, font, 200)
    assert short.endswith("…")
    assert 150 < font.getlength(short) <= 200
    assert captions.shortened("cup", font, 200) == "cup"
    assert captions.shortened("cup", font, 1) == ""
    assert captions.shortened("", font, 0) == ""
    assert captions.shortened("cup" * 1_000_000, font, 100).endswith("…")


def test_captions_without_and_with_a_note_that_is_empty() -> None:
    one = captions.caption(200, "cup", side=200)
    two = captions.caption(200, "cup", note="", side=200)
    assert len(one) < len(two) == len(captions.caption(200, "cup", "5%", "cam", side=200))


@pytest.mark.parametrize(
    ("score", "text"),
    [(0.963, "96.3%"), (0, "0.0%"), (1, "100.0%"), (12.34567, "12.35"), (-0.5, "-0.5"), (np.nan, "no number"),
     (-np.inf, "no number")],
)  # fmt: skip
def test_scores(score: float, text: str) -> None:
    assert captions.score_text(score) == text


def test_characters_that_pillows_font_lacks_are_drawn_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    font = captions.font_for("Hüte", 20)
    own = captions.font_for("hats", 20)
    assert own.getname()[0] == ImageFont.load_default(20).getname()[0]
    if captions.missing("ü", own):
        if font.getname() == own.getname():
            pytest.skip("no font of this machine has the letter ü")
        assert not captions.missing("Hüte", font)
        assert captions.drawable("Hüte", "class 3") == "Hüte"


def test_without_any_font_accents_are_dropped_and_other_scripts_say_the_class(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(captions, "FONTS", ())
    caplog.set_level(logging.INFO)
    for _ in range(2):
        assert captions.drawable("tabby cat", "class 281") == "tabby cat"
        assert captions.drawable("Crème brûlée", "class 9") == "Creme brulee"
        assert captions.drawable("猫", "class 281") == "class 281"
        assert captions.drawable("кошка", "class 282") == "class 282"
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "no font on this machine has the characters of '猫'",
        "no font on this machine has the characters of 'кошка'",
    ]
    assert "Install a font" in caplog.records[0].message
    assert "class 281" in caplog.records[0].message


def test_text_from_right_to_left_needs_a_layout_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import features

    monkeypatch.setattr(features, "check", lambda name: False)
    assert captions.drawable("قطة", "class 281") == "class 281"
    assert captions.drawable("cat", "class 281") == "cat"


def test_labels_that_are_not_text() -> None:
    for label in ("", " ", "a\nb", "\x1b[31mred", "\ud800", "\u202ecat", "x" * 100_000):
        drawn = captions.drawable(label, "class 1")
        assert drawn.isprintable()
        assert captions.caption(100, drawn, "1%", side=100).shape[1] == 100


def test_threads_draw_the_same() -> None:
    """Fonts are shared."""
    labels = [f"class {number} Hütte" for number in range(40)]
    expected = [captions.caption(300, label, "1%", "cam", side=300).tobytes() for label in labels]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(5):
            drawn = threads.map(lambda label: captions.caption(300, label, "1%", "cam", side=300).tobytes(), labels)
            assert list(drawn) == expected
