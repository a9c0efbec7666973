"""Pages made from the templates."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import re
import weakref
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import jinja2
import numpy as np
import pytest
from PIL import Image

from camrt import Explanation, Style, colors, render, report
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

    VOID = ("meta", "img", "br", "input")

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
        if data.strip() and self.open[-1] not in ("style", "script"):
            self.text.append(data.strip())


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    parser.close()
    assert not parser.open
    return parser


def data_of(page: str) -> list[dict[str, Any]]:
    """What the cards hold."""
    return [json.loads(text) for text in re.findall(r"<script type=.application/json.>(.*?)</script>", page)]


def test_page_stands_alone() -> None:
    page = report.html_page([explanation("a.jpg"), explanation("b.jpg")], title="Cups", note="by us")
    found = outline(page)
    assert found.tags.count("article") == 2
    assert not {"link", "iframe", "a"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name in ("src", "href")]
    assert "url(" not in page
    assert "2 images · by us" in found.text
    assert {"a.jpg", "b.jpg"} <= set(found.text)
    policy = next(value for name, value in found.attributes if name == "content" and value and "default-src" in value)
    assert "default-src 'none'; img-src data:;" in policy
    for one in data_of(page):
        assert one["image"].startswith("data:image/jpeg;base64,")
        assert [entry["text"] for entry in one["classes"]] == ["75.0%", "no number"]
        assert (one["width"], one["height"]) == (400, 300)


def test_only_the_pages_own_script_runs() -> None:
    page = report.html_page([explanation("a.jpg")])
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page


def test_text_is_escaped() -> None:
    evil = '"></script><script>alert(1)</script><!--'
    page = report.html_page([explanation(evil, evil)], title=evil, note=evil)
    assert evil not in page
    assert page.count("<script") == 3, "the card's data, the tables, and the page's own"
    found = outline(page)
    assert found.text.count(evil) >= 3
    assert ("data-name", evil) in found.attributes
    (one,) = data_of(page)
    assert (one["name"], one["classes"][0]["label"]) == (evil, evil)


def decoded(source: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,")))))


def test_images_and_maps_are_layers_of_bounded_size() -> None:
    one = explanation("a.jpg", image=photo(900, 1200))
    card = report.html_card(one, side=160)
    (data,) = data_of(card)
    image = decoded(data["image"])
    assert image.shape == (120, 160, 3)
    assert np.abs(image.astype(int) - render.fit(photo(900, 1200), 160)).mean() < 8
    for rank, entry in enumerate(data["classes"]):
        level = colors.levels(one.heatmaps[rank])
        assert np.abs(decoded(entry["map"]).astype(int) - level).mean() < 5
        assert (entry["low"], entry["high"]) == colors.limits(one.heatmaps[rank])
        (box,) = entry["boxes"]
        np.testing.assert_allclose(np.array(box) * (1200, 900, 1200, 900), one.best_box(rank)[0], atol=0.2)
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3)).astype(np.uint8)
    assert len(report.html_card(explanation("noise.png", image=noise))) < 100_000
    large = dataclasses.replace(one, heatmaps=np.random.default_rng(0).random((2, 900, 900)).astype(np.float32))
    assert decoded(data_of(report.html_card(large))[0]["classes"][0]["map"]).shape == (128, 128)


def test_cards_follow_the_style() -> None:
    one = explanation("a.jpg")
    plain = data_of(report.html_card(one, style=render.PLAIN))[0]
    assert [entry["boxes"] for entry in plain["classes"]] == [[], []]
    assert not plain["signed"]
    signed = data_of(report.html_card(one, style=Style("bwr", boxes="all")))[0]
    assert signed["signed"]
    assert [len(entry["boxes"]) for entry in signed["classes"]] == [len(one.boxes(i)) for i in range(2)]
    assert all(entry["low"] == -entry["high"] for entry in signed["classes"])
    page = report.html_page([one], style=Style("inferno", 0.4))
    assert "<option selected>inferno</option>" in page
    assert 'value="40"' in page


def test_maps_that_are_no_numbers_make_a_page() -> None:
    for value in (np.nan, np.inf, 0, -3):
        one = dataclasses.replace(explanation("a.jpg"), heatmaps=np.full((2, 32, 32), value, np.float32))
        (data,) = data_of(report.html_card(one))
        assert not decoded(data["classes"][0]["map"]).any()
        assert data["classes"][0]["boxes"] == []
    tiny = data_of(report.html_card(explanation("a.jpg", image=photo(1, 300))))[0]
    assert decoded(tiny["image"]).shape == (1, 300, 3)


def test_the_head_says_how_it_was_made() -> None:
    one = dataclasses.replace(
        explanation("a.jpg"), model="net <1>", method="smoothgrad", protocol="center", provider="CPU", precision="bf16"
    )
    text = outline(report.html_page([one])).text
    for name, value in (("model", "net <1>"), ("method", "smoothgrad"), ("protocol", "center"), ("precision", "bf16")):
        assert text[text.index(name) + 1] == value
    record = {
        **one.as_dict(),
        "settings": {"set": {"samples": 50}, "preprocess": "caffe", "target": ["cup", 4], "layer": "conv"},
        "crf": {"bilateral": [10, 20, 10], "gaussian": None, "iterations": 50, "width": 1, "height": 1},
    }
    assert report.facts_of(record, model="x") == {
        "model": "x", "method": "smoothgrad", "protocol": "center", "settings": "samples=50", "preprocessing": "caffe",
        "target": "cup, 4", "layer": "conv", "provider": "CPU", "precision": "bf16",
        "refinement": "CRF, bilateral 10 20 10, 50 iterations",
    }  # fmt: skip
    assert report.facts_of({}) == {}


def test_page_of_cards_and_of_nothing() -> None:
    """Cards that were kept as text make the same page."""
    both = [explanation("a.jpg"), explanation("b.jpg")]
    assert report.html_document([report.html_card(one) for one in both]) == report.html_page(both)  # facts: none known
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
