"""The site builds without a warning, and its links are those of the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def site_pages(repository: Path) -> ModuleType:
    sys.path.insert(0, str(repository / "scripts"))
    try:
        import site_pages
    finally:
        sys.path.remove(str(repository / "scripts"))
    return site_pages


@pytest.mark.parametrize(
    ("text", "source", "page", "expected"),
    [
        ("[a](docs/wsol.md#x)", "README.md", "index.md", "[a](wsol.md#x)"),
        ("![a](docs/pictures/a.jpg)", "README.md", "index.md", "![a](pictures/a.jpg)"),
        ("[a](../CONTRIBUTING.md#add)", "docs/wsol.md", "wsol.md", "[a](contributing.md#add)"),
        ("[a](../models/registry.toml)", "docs/models.md", "models.md", "a"),
        ("[b](layers.md)", "docs/wsol.md", "wsol.md", "[b](layers.md)"),
        ("[a](../../docs/training.md)", "models/lenetCAM/README.md", "lenetcam.md", "[a](training.md)"),
        ("```\n[a](../x.md)\n```", "docs/wsol.md", "wsol.md", "```\n[a](../x.md)\n```"),
        ("[a](https://onnx.ai)", "README.md", "index.md", "[a](https://onnx.ai)"),
    ],
)
def test_links_are_turned(site_pages: ModuleType, text: str, source: str, page: str, expected: str) -> None:
    assert site_pages.turned(text, source, page) == expected


def test_all_commands_are_on_the_page(site_pages: ModuleType) -> None:
    page = "\n".join(site_pages.commands())
    for name in ("camrt explain", "camrt convert", "camrt evaluate wsol"):
        assert f"## {name}\n\n```text\nUsage: {name} " in page
    assert "Error" not in re.findall(r"```text\n(\w+)", page)


@pytest.fixture(scope="module")
def site(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built without a warning."""
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name, reason="the site needs pip install 'camrt[docs]'")
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_site_has_its_reference_and_loads_nothing_from_elsewhere(site: Path, site_pages: ModuleType) -> None:
    reference = (site / "reference" / "python.html").read_text(encoding="utf-8")
    assert "camrt.explainer.Explainer" in reference
    assert "The longer side in pixels of the image" in reference  # a docstring
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="?(https?:[^" >]+)', page.read_text(encoding="utf-8")
        )
        assert [one for one in loaded if one != site_pages.SHIM or (site_pages.NODE / "iframe-worker").is_dir()] == []


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_formulas_are_set_without_a_network(site: Path, site_pages: ModuleType) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="pages are opened by playwright")
    if not (site_pages.NODE / "katex").is_dir():
        pytest.skip("katex is not in build/node (npm install --prefix build/node katex)")
    problems: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda one: problems.append(one.url) if one.url.startswith("http") else None)
        page.on("requestfailed", lambda one: problems.append(one.url))
        count = "selector => document.querySelectorAll(selector).length"
        for name in ("methods", "exactness"):
            page.goto((site / f"{name}.html").as_uri())
            assert page.evaluate(count, ".arithmatex .katex") == page.evaluate(count, ".arithmatex") > 20
            assert page.evaluate(count, ".katex-error") == 0
        assert page.evaluate("document.fonts.ready.then(() => document.fonts.check('16px KaTeX_Math'))")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        browser.close()
    assert problems == []
