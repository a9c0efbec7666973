"""A real browser: the system's Chromium, driven by Playwright. Tests skip where one of them is missing."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from camrt.loading import LENET, Request
from camrt.web.server import serving, url_of
from camrt.web.site import ANY, SiteModel, build, site_model

READY = "body[data-ready=true]"
SAMPLE = "sample.png"


@pytest.fixture(scope="session")
def package(repository: Path) -> Path:
    """onnxruntime-web from npm."""
    folder = repository / "build" / "node" / "node_modules" / "onnxruntime-web"
    if not folder.is_dir():
        pytest.skip("onnxruntime-web is not in build/node (npm install --prefix build/node onnxruntime-web@1.30.0)")
    return folder


@pytest.fixture(scope="module")
def launch() -> Iterator[Callable[..., Any]]:
    """Start Chromium with more flags.

    Not for longer than a module: while Playwright runs, its event loop does, and other tests start loops of their own.
    """
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium is installed")
    flags = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--no-sandbox"]
    with api.sync_playwright() as playwright:
        yield lambda *more: playwright.chromium.launch(executable_path=chromium, args=[*flags, *more])


@pytest.fixture(scope="module")
def browser(launch: Callable[..., Any]) -> Iterator[Any]:
    launched = launch("--disable-gpu")
    yield launched
    launched.close()


@pytest.fixture(scope="session")
def lenet() -> list[SiteModel]:
    return [site_model(LENET, Request(method, target=ANY)) for method in ("cam", "gradcam")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, lenet: list[SiteModel], package: Path) -> Iterator[Site]:
    """lenetCAM by two methods."""
    folder = tmp_path_factory.mktemp("web") / "site"
    build(lenet, folder, title="Digits", package=package)
    with served(folder) as url:
        yield Site(folder, url)


class Site:
    """A site that is served."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    with serving(folder, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield url_of(server)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def page(browser: Any, site: Site) -> Iterator[Any]:
    """The page, with its first model loaded. What it should not say on the console fails the test."""
    with opened(browser, f"{site.url}?backend=wasm") as found:
        yield found


@pytest.fixture(scope="module")
def kept(browser: Any, site: Site) -> Iterator[Any]:
    """One page for the tests that only call the functions of its module, as loading a page takes seconds."""
    with opened(browser, f"{site.url}?backend=wasm") as found:
        yield found


@pytest.fixture(scope="module")
def explained(browser: Any, site: Site, canvas: Path) -> Iterator[Any]:
    """One page that has explained the digit, for the tests that change nothing on it."""
    with opened(browser, f"{site.url}?backend=wasm") as found:
        explain(found, canvas)
        yield found


@contextlib.contextmanager
def opened(browser: Any, url: str, *, expected: tuple[str, ...] = (), **options: Any) -> Iterator[Any]:
    context = browser.new_context(**options)
    found = context.new_page()
    found.set_default_timeout(60_000)
    said: list[str] = []
    found.on("pageerror", lambda error: said.append(str(error)))
    found.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    try:
        found.goto(url)
        found.wait_for_selector(f"{READY}, #problems li", state="attached")
        yield found
    finally:
        context.close()
    assert [line for line in said if not any(each in line for each in expected)] == []


@pytest.fixture(scope="session")
def canvas(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A PNG with a digit, of a size that has to be resized along both axes."""
    with Image.open(repository / "models" / LENET / SAMPLE) as opened_image:
        large = opened_image.convert("RGB").resize((320, 230), Image.Resampling.BILINEAR)
    path = tmp_path_factory.mktemp("digit") / "digit.png"
    large.save(path)
    return path


def result_of(page: Any, panel: int = 0) -> dict[str, np.ndarray]:
    """What a panel of the page found: scores, classes, heatmaps (top, size, size)."""
    found = page.evaluate(
        """(place) => {
            const panel = [...camrt.panels.values()][place];
            const { scores, classes, heatmaps, index, box } = panel.result;
            return { scores: [...scores], classes, heatmaps: [...heatmaps], index, box, size: panel.model.size };
        }""",
        panel,
    )
    size = found["size"]
    return {
        "scores": np.array(found["scores"]),
        "classes": np.array(found["classes"]),
        "heatmaps": np.array(found["heatmaps"]).reshape(-1, size, size),
        "index": np.array(found["index"]),
        "box": np.array(found["box"]),
    }


def explain(page: Any, *files: Path) -> None:
    """Choose files, and wait for what the page says about the last one that is shown."""
    before = page.inner_text("#status")
    page.set_input_files("#files", [str(file) for file in files])
    page.wait_for_selector(f'#status:not(:text-is("{before}"))')
