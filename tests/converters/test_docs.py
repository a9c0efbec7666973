"""The documentation says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import converters
from converters import docs, registry, zoo


def test_table_of_layers_is_fresh(repository: Path) -> None:
    assert (repository / "docs" / "layers.md").read_text() == docs.layers(), "run `make docs`"


def test_every_handler_declares_operators_and_says_what_it_does() -> None:
    for entry in registry.entries():
        assert entry.operators, entry.types
        assert (entry.handler.__doc__ or "").strip(), entry.types


def test_layer_of_contributing_converts(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ten lines of CONTRIBUTING.md, as a plugin, on a network with such a layer."""
    text = (repository / "CONTRIBUTING.md").read_text()
    code = re.search(r"```python\n(.*?)```", text[text.index("## Add a layer") :], re.DOTALL)
    assert code
    plugin = tmp_path / "my_layers.py"
    plugin.write_text(code.group(1))
    assert len([line for line in code.group(1).splitlines() if line.strip()]) <= 10
    monkeypatch.setattr(registry._handlers, "_entries", dict(registry._handlers._entries))
    prototxt = tmp_path / "net.prototxt"
    prototxt.write_text(
        'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }\n'
        'layer { name: "m" type: "Softsign" bottom: "x" top: "y" softsign_param { scale: 0.5 } }\n'
    )
    with pytest.raises(converters.ConversionError, match="Softsign: m"), pytest.warns(converters.ConversionWarning):
        converters.convert(prototxt)
    converters.load_plugin(plugin)
    with pytest.warns(converters.ConversionWarning, match="softsign_param"):
        model = converters.convert(prototxt)
    x = np.linspace(-3, 3, 6, dtype=np.float32).reshape(2, 3)
    (y,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(y, 0.5 * x / (1 + np.abs(0.5 * x)), rtol=1e-5)


def test_docs_list_the_named_models(repository: Path) -> None:
    page = (repository / "docs" / "models.md").read_text()
    for model in zoo.models().values():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{model.name}`"))
        assert f"{model.preprocessing.crop} × {model.preprocessing.crop}" in row
        size = f"{model.weights.least_bytes / 1e6:.0f} MB"
        assert ("with camrt" if model.weights.bundled else size) in row
        for alias in model.aliases:
            assert f"`{alias}`" in row


PAGES = ("README.md", "CONTRIBUTING.md", "models/lenetCAM/README.md", "docs/*.md")


def test_links_lead_somewhere(repository: Path) -> None:
    pages = [path for pattern in PAGES for path in repository.glob(pattern)]
    assert len(pages) > 20
    broken = []
    for path in pages:
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        for target, anchor in re.findall(r"\]\(([^)#:\s]*)(#[^)]*)?\)", text):
            linked = path.parent / target if target else path
            if not linked.exists() or (anchor and anchor[1:] not in anchors(linked)):
                broken.append(f"{path.name}: {target}{anchor}")
    assert broken == []


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.*)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.append(f"{anchor}-{found.count(anchor)}" if anchor in found else anchor)
    return set(found)
