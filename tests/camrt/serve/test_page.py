"""The page of the server in a real browser."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.camrt.serve.serving import serving  # skips where the extra is not installed
from tests.tiny_models import photo

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.slow
def test_an_image_is_explained_and_a_wrong_file_is_told(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    Image.fromarray(photo(60, 80, 0)).save(tmp_path / "photo.png")
    (tmp_path / "text.png").write_text("no image")
    with serving() as server, playwright.sync_playwright() as browsers:
        expected = server.explainer(tmp_path / "photo.png")
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(server.url)
        page.set_input_files("#file", tmp_path / "photo.png")
        page.wait_for_selector("#picture:not([hidden])")
        assert page.locator("#classes .label").all_inner_texts() == list(expected.labels)
        size = page.evaluate("[document.images[0].naturalWidth, document.images[0].naturalHeight]")
        assert size == [80, 60]
        second = page.locator("#classes button").nth(1)
        second.click()
        page.wait_for_selector("#classes li:nth-child(2) button[aria-pressed=true]")
        assert problems == []
        page.set_input_files("#file", tmp_path / "text.png")
        page.wait_for_selector("#state.error")
        assert "text.png: is no image" in page.inner_text("#state")
        browser.close()
