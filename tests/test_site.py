"""The site builds without a warning, and its links are those of the repository."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest


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


@pytest.mark.slow
def test_site_builds_without_a_warning(repository: Path, tmp_path: Path, site_pages: ModuleType) -> None:
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name, reason="the site needs pip install 'camrt[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    reference = (tmp_path / "site" / "reference" / "python.html").read_text(encoding="utf-8")
    assert "camrt.explainer.Explainer" in reference
    assert "The longer side in pixels of the image" in reference  # a docstring
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="?(https?:[^" >]+)', page.read_text(encoding="utf-8")
        )
        assert [one for one in loaded if one != site_pages.SHIM or (site_pages.NODE / "iframe-worker").is_dir()] == []
