"""The page of explanations in a browser: Chromium, driven by Playwright."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from camrt import Explanation, Style, colors, report
from tests.tiny_models import photo

playwright = pytest.importorskip("playwright.sync_api", reason="the page is tested with Playwright, which is not here")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the page is tested in Chromium, which is not here")

EVIL = '<img src=x onerror="document.title=1">'


def corner(row: int, column: int) -> np.ndarray:
    """A map that is hot in one of four quarters."""
    heatmap = np.zeros((64, 64), np.float32)
    heatmap[32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = 4
    return heatmap


def explanation(number: int = 0, score: float = 0.9, label: str = "cup") -> Explanation:
    return Explanation(
        image=np.full((120, 160, 3), 100, np.uint8),
        source=f"photos/{number:03}.jpg",
        classes=np.array([1, 0]),
        scores=np.array([score, 0.05], np.float32),
        labels=(label, EVIL),
        heatmaps=np.stack([corner(0, 0), corner(1, 1)]),
        all_scores=np.array([0.05, score], np.float32),
        method="gradcam",
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Open a page of explanations. What goes wrong on it, or is asked of the network, fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="dark")
    problems: list[str] = []

    def opened(content: str) -> Any:
        file = tmp_path / "page.html"
        file.write_text(content, encoding="utf-8")
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda one: problems.append(one.text) if one.type == "error" else None)
        page.on("request", lambda one: problems.append(one.url) if one.url.startswith("http") else None)
        page.goto(file.as_uri())
        return page

    yield opened
    context.close()
    assert problems == []


def pixel(page: Any, x: float, y: float, canvas: str = ".picture canvas") -> list[int]:
    """The color and the opacity of the map at a place, 0..1."""
    found: list[int] = page.locator(canvas).first.evaluate(
        "(c, [x, y]) => [...c.getContext('2d').getImageData(x * c.width, y * c.height, 1, 1).data]", [x, y]
    )
    return found


def painted(page: Any, x: float, y: float) -> list[int]:
    """As `pixel`, once something is there."""
    page.wait_for_function("() => document.querySelector('.picture canvas').width === 64")
    page.wait_for_function(
        "([x, y]) => { const c = document.querySelector('.picture canvas');"
        " return c.getContext('2d').getImageData(x * c.width, y * c.height, 1, 1).data[3] > 200 }",
        arg=[x, y],
    )
    return pixel(page, x, y)


def test_the_map_is_drawn_as_python_draws_it(show: Any) -> None:
    page = show(report.html_page([explanation()]))
    hot = painted(page, 0.2, 0.2)
    table = colors.color_table("turbo")
    np.testing.assert_allclose(hot[:3], table[255], atol=3)
    assert hot[3] == 255
    assert pixel(page, 0.8, 0.8)[3] == 0
    assert page.locator(".picture canvas").evaluate("c => getComputedStyle(c).opacity") == "0.7"
    page.locator("#colormap").select_option("viridis")
    np.testing.assert_allclose(pixel(page, 0.2, 0.2)[:3], colors.color_table("viridis")[255], atol=3)
    assert page.title() == "What the network sees"


def test_signed_maps_have_two_colors(show: Any) -> None:
    one = dataclasses.replace(explanation(), heatmaps=np.stack([corner(0, 0) - 2 * corner(1, 1), corner(0, 1)]))
    page = show(report.html_page([one], style=Style("bwr")))
    blue, red = painted(page, 0.8, 0.8), pixel(page, 0.2, 0.2)
    assert blue[2] > 240 > 60 > blue[0]
    assert red[0] > 240
    assert pixel(page, 0.8, 0.2)[3] == 0
    page.mouse.move(0, 0)
    box = page.locator(".picture").bounding_box()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.8 * box["height"])
    assert page.locator(".value").inner_text() == "-8.00 · -100%"


def test_classes_on_hover_the_value_and_the_opacity(show: Any) -> None:
    page = show(report.html_page([explanation()]))
    painted(page, 0.2, 0.2)
    assert page.locator(".classes button").all_inner_texts() == ["cup\n90.0%", f"{EVIL}\n5.0%"]
    page.locator(".classes button").nth(1).hover()
    assert painted(page, 0.8, 0.8)[3] == 255
    assert pixel(page, 0.2, 0.2)[3] == 0
    box = page.locator(".picture").bounding_box()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.75 * box["height"])
    assert page.locator(".value").inner_text() == "4.00 · 100%"
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.25 * box["height"])
    assert page.locator(".value").inner_text() == "0.00 · 0%"
    page.locator("#opacity").fill("30")
    assert page.locator(".picture canvas").evaluate("c => getComputedStyle(c).opacity") == "0.3"
    assert page.locator(".picture rect").count() == 2, "a box: a line and its edge"
    page.locator("#boxes").uncheck()
    assert not page.locator(".picture svg").is_visible()


def names(page: Any) -> list[str]:
    found: list[str] = page.locator("article:visible h2").all_inner_texts()
    return [name.removeprefix("photos/") for name in found]


def test_sort_and_filter(show: Any) -> None:
    images = [explanation(2, 0.3, "cup"), explanation(0, np.nan, "Tea pot"), explanation(1, 0.8, "bowl")]
    page = show(report.html_page(images))
    assert names(page) == ["002.jpg", "000.jpg", "001.jpg"]
    for order, expected in (("best", [1, 2, 0]), ("worst", [0, 2, 1]), ("name", [0, 1, 2]), ("given", [2, 0, 1])):
        page.locator("#sort").select_option(order)
        assert names(page) == [f"{number:03}.jpg" for number in expected], order
    for words, expected in (("tea", [0]), ("POT tea", [0]), ("02.jpg", [2]), ("onerror", [2, 0, 1]), ("kettle", [])):
        page.locator("#filter").fill(words)
        assert names(page) == [f"{number:03}.jpg" for number in expected], words
    assert page.locator("#none").is_visible()
    assert page.locator("#count").inner_text() == "0 of 3"
    page.locator("#filter").press("Enter")
    page.locator("#filter").fill("")
    assert len(names(page)) == 3


def test_enlarged(show: Any) -> None:
    page = show(report.html_page([explanation(number) for number in range(3)]))
    page.locator(".classes button").nth(1).hover()
    page.locator("article .picture").first.click()
    viewer = page.locator("#viewer")
    assert page.locator("#viewer-name").inner_text() == "photos/000.jpg (160 × 120)"
    assert viewer.locator("[aria-pressed=true]").inner_text().startswith("<img"), "the class that was looked at"
    before = page.locator("article .picture").first.bounding_box()["width"]
    assert viewer.locator(".picture").bounding_box()["width"] > 2 * before
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer-name").inner_text().startswith("photos/001.jpg")
    page.locator("#before").click()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#viewer-name").inner_text().startswith("photos/000.jpg")
    page.keyboard.press("Escape")
    assert not viewer.is_visible()


@pytest.mark.slow
def test_of_many_images_a_few_are_decoded(show: Any) -> None:
    card = report.html_card(explanation())
    page = show(report.html_document([card.replace("000.jpg", f"{number:04}.jpg") for number in range(2000)]))
    page.wait_for_selector(".picture canvas")
    assert 0 < page.locator(".picture").count() < 60
    height = page.evaluate("document.body.scrollHeight")
    page.evaluate("scrollTo(0, document.body.scrollHeight / 2)")
    page.wait_for_function("() => document.querySelectorAll('article')[0].querySelector('.picture') === null")
    page.wait_for_function("() => document.querySelectorAll('.picture').length > 4")
    assert page.locator(".picture").count() < 90
    assert height > 20_000


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(show: Any, width: int) -> None:
    wide = [dataclasses.replace(explanation(), image=photo(*shape), original_size=shape, source="x" * 300 + ".jpg")
            for shape in ((20, 300), (300, 20), (200, 200))]  # fmt: skip
    page = show(report.html_page(wide, note="y" * 400))
    page.set_viewport_size({"width": width, "height": 800})
    page.wait_for_selector(".picture canvas")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert max(box["height"] for box in (one.bounding_box() for one in page.locator(".picture").all())) < 500
    page.locator("article .picture").nth(2).click()
    assert page.locator("#viewer").bounding_box()["width"] <= width
