"""Writes docs/methods.md and its pictures from the registry: ``python -m camrt.docs docs``.

The pictures are of lenetCAM's sample image: small enough to be read, and always there. Photographs are drawn by
``scripts/pictures.py``; a section shows its method's, where there is one.
"""

from __future__ import annotations

import inspect
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from camrt.graph.methods import METHODS, Method, find

MODEL, SAMPLE = "lenetCAM", Path(__file__).resolve().parent.parent / "models" / "lenetCAM" / "sample.png"
SIDE = 200  # pixels of a picture
PICTURED = [name for name in METHODS if not find(name).tokens]  # lenetCAM has no attention
METHODS_FOLDER = Path(__file__).parent / "graph" / "methods"
FOLDER = "methods"  # of the pictures, beside the page


def methods(folder: Path) -> str:
    """The page, as Markdown.

    Args:
        folder: Of the page. A method's photograph is shown if it is there.
    """
    entries = [find(name) for name in METHODS]
    text = (METHODS_FOLDER / "methods.md").read_text(encoding="utf-8")
    return text.replace("{methods}\n", "\n".join([_table(entries), *(_section(entry, folder) for entry in entries)]))


def pictures() -> Iterator[tuple[str, bytes]]:
    """The names and contents (PNG) of the pictures: the sample's best class, by each method."""
    import cv2

    from camrt import Explainer, render

    for name in PICTURED:
        overlay = Explainer(MODEL, name, top=1)(SAMPLE).overlay(0)
        yield f"{name}.png", render.png(cv2.resize(overlay, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC))


def write(folder: Path) -> None:
    """Write the page and its pictures.

    Raises:
        CamrtError: The folder cannot be written to.
    """
    from camrt import results

    for name, content in pictures():
        results.write(folder / FOLDER / name, content)
    results.write(folder / "methods.md", methods(folder).encode())


def _table(entries: Iterable[Method]) -> str:
    rows = ["| method | needs | classes by default | settings |", "|---|---|---|---|"]
    seen: list[str] = []
    for entry in entries:
        anchor = _anchor(entry)
        repeats = f"-{seen.count(anchor)}" if anchor in seen else ""  # as Markdown numbers headings of one anchor
        seen.append(anchor)
        settings = ", ".join(f"`{name}={default}`" for name, default in entry.settings.items())
        top = f"the best {entry.top}" if entry.top > 1 else "the best"
        link = f"[`{entry.name}`](#{anchor}{repeats})"
        rows.append(f"| {link} | {_needs(entry)} | {top} | {settings} |")
    return "\n".join(rows) + "\n"


def _needs(entry: Method) -> str:
    if entry.kind == "head":
        return "global average pooling and one linear layer"
    if entry.again and entry.gradients:
        return "a pass back to the image, again and again"
    if entry.again:
        return "passes forward, again and again"
    if entry.tokens:
        return "a vision transformer" + (", a pass back to its attention" if entry.gradients else "")
    if entry.behind:
        return "passes forward from the features, many at once"
    if not entry.gradients:
        return "features"
    return "a pass back to the image" if entry.kind == "pixels" else "a pass back to the features"


@cache
def _formulas() -> tuple[dict[str, str], dict[str, list[str]]]:
    """TeX of the methods that are one formula; what their docstrings say of it in text, and what the page says."""
    tables = tomllib.loads((METHODS_FOLDER / "formulas.toml").read_text(encoding="utf-8"))
    return tables["tex"], tables["words"]


def _section(entry: Method, folder: Path) -> str:
    text = inspect.getdoc(entry.maps) or ""
    body = _without_formula(entry.name, re.split(r"\n(?:Source|Args|Example):\n", text)[0].strip())
    first, _, rest = body.partition("\n")
    settings = _described_settings(text)
    files = [file for file in (f"{FOLDER}/{entry.name}.jpg", f"{FOLDER}/{entry.name}.png") if (folder / file).is_file()]
    pictures = " ".join(f"![{entry.name}]({file})" for file in files)
    formula = _formulas()[0].get(entry.name)
    parts = [f"## {entry.title}", pictures, f"`{entry.name}`: {first}", formula and f"$${formula}$$", rest.strip()]
    return "\n\n".join([part for part in [*parts, settings, entry.source] if part]) + "\n"


def _without_formula(name: str, body: str) -> str:
    """The docstring without the formula in text, which the page shows set.

    Raises:
        ValueError: The docstring does not have the text of formulas.toml.
    """
    if name not in _formulas()[1]:
        return body
    text, instead = _formulas()[1][name]
    pattern = r"\s+".join(map(re.escape, text.split())) + ("" if instead else r"[ \n]?")
    replaced, count = re.subn(pattern, lambda _: instead, body)
    if count != 1:
        raise ValueError(f"the docstring of {name} has {count} times, expected once: {text}")
    return replaced.strip()


def _described_settings(text: str) -> str:
    """What the docstring says of the settings, as a list."""
    found = re.search(r"\nArgs:\n(.*?)(?:\n\n|$)", text, re.DOTALL)
    lines = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", found.group(1), re.MULTILINE) if found else []
    return "\n".join(
        f"- `{name}`: {' '.join(words.split())}" for name, words in lines if name not in ("layer", "context")
    )


def _anchor(entry: Method) -> str:
    """What a heading is linked by."""
    return re.sub(r"[^a-z0-9 -]", "", entry.title.lower()).replace(" ", "-")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
