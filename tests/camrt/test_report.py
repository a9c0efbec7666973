"""Pages made from the templates."""

from __future__ import annotations

import base64
import io
import re
import weakref
from collections.abc import Iterator
from html.parser import HTMLParser

import jinja2
import numpy as np
import pytest
from PIL import Image

from camrt import Explanation, render, report
from tests.tiny_models import photo


def heatmap(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (photo(height, width, seed).mean(axis=2) + rng.normal(0, 1, (height, width))).astype(np.float32)


def explanation(source: str, label: str = "cup", image: np.ndarray | None = None) -> Explanation:
    return Explanation(
        image=photo(300, 400) if image is None else image,
        source=source,
        classes=np.array([1, 0]),
        scores=np.array([0.75, np.nan], np.float32),
        labels=(label, "tea & <b>biscuits</b>"),
        heatmaps=np.stack([heatmap(32, 32, seed) for seed in (1, 2)]),
        all_scores=np.array([0.25, 0.75], np.float32),
    )


class Outline(HTMLParser):
    """Open tags, pictures, and text; complains where tags do not match."""

    VOID = ("meta", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] != "style":
            self.text.append(data.strip())


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    parser.close()
    assert not parser.open
    return parser


def test_page_stands_alone() -> None:
    page = report.html_page([explanation("a.jpg"), explanation("b.jpg")], title="Cups", note="by us")
    found = outline(page)
    assert found.tags.count("article") == 2
    assert found.tags.count("img") == 2 * 3 + 1
    assert not {"script", "link", "iframe", "a"} & set(found.tags)
    sources = [value for name, value in found.attributes if name in ("src", "href")]
    assert all(value is not None and value.startswith("data:image/") for value in sources)
    assert "url(" not in page
    assert "2 images · by us" in found.text
    assert {"a.jpg", "b.jpg", "400 × 300", "cup", "75.0%"} <= set(found.text)


def test_text_is_escaped() -> None:
    evil = '"><script>alert(1)</script>'
    page = report.html_page([explanation(evil, evil)], title=evil, note=evil)
    found = outline(page)
    assert "script" not in found.tags
    assert found.text.count(evil) >= 3
    assert "tea & <b>biscuits</b>" in found.text
    assert ("alt", evil) in found.attributes


def test_pictures_of_the_page_are_small() -> None:
    page = report.html_page([explanation("a.jpg", image=photo(900, 1200))], side=160)
    pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"jpeg;base64,([^\"]+)", page)]
    assert [picture.size for picture in pictures] == [(160, 120)] * 3
    assert "width=160 height=120" in page
    expected = render.fit(photo(900, 1200), 160)
    assert np.abs(np.asarray(pictures[0]).astype(int) - expected).mean() < 6
    small = report.html_page([explanation("a.jpg", image=photo(9, 12))], side=160)
    assert "width=160 height=120" in small, "small images are enlarged: boxes keep their lines"
    assert report.html_page([explanation("a.jpg")], style=render.PLAIN) != report.html_page([explanation("a.jpg")])


def test_page_of_cards_and_of_nothing() -> None:
    """Cards that were kept as text make the same page."""
    both = [explanation("a.jpg"), explanation("b.jpg")]
    assert report.html_document([report.html_card(one) for one in both]) == report.html_page(both)
    assert "There is nothing to show." in outline(report.html_page([])).text
    assert "1 image" in outline(report.html_page(both[:1])).text


def test_page_holds_one_explanation_at_a_time() -> None:
    alive: weakref.WeakSet[Explanation] = weakref.WeakSet()
    most = 0

    def source() -> Iterator[Explanation]:
        nonlocal most
        for number in range(6):
            one = explanation(f"{number}.jpg")
            alive.add(one)
            most = max(most, len(alive))
            yield one
            del one

    page = report.html_page(source())
    assert page.index("0.jpg") < page.index("5.jpg")
    assert most <= 2


def test_a_name_that_a_template_needs_is_not_left_out_in_silence() -> None:
    with pytest.raises(jinja2.UndefinedError, match="heading"):
        report.fill("card.html", figures=[], cell=1)


def test_a_caption_is_escaped_and_may_be_empty() -> None:
    figures = [report.Figure(photo(4, 4), 'a"b', "<i>", "1 < 2", share=0.25), report.Figure(photo(4, 4), "plain")]
    found = outline(report.fill("card.html", heading="<h>", figures=figures, cell=100))
    assert found.text == ["<h>", "<i>", "1 < 2"]
    assert ("style", "width:25.0%") in found.attributes
    assert found.tags.count("figcaption") == 2
