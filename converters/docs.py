"""Writes docs/layers.md from the registry: `python -m converters.docs > docs/layers.md`, or `make docs`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from converters import registry
from converters.deploy import COMPARISONS, DATA_LAYERS, LOSS_LAYERS, SAMPLERS
from converters.registry import Entry


def layers() -> str:
    """The page, as Markdown."""
    sections: dict[str, list[Entry]] = {family: [] for family in registry.FAMILIES}
    for entry in registry.entries():
        if entry.handler.__module__.startswith("converters."):  # not a plugin's
            sections[entry.family].append(entry)
    parts = []
    for family, entries in sections.items():
        parts.append(f"## {family.replace('_', ' ').capitalize()}\n\n{_table(entries)}")
    text = (Path(__file__).parent / "handlers" / "layers.md").read_text(encoding="utf-8")
    return text.replace("{layers}\n", "\n".join([*parts, ""])).replace(
        "{inference}\n", "".join([*_training_rows(), "\n"])
    )


def _table(entries: Iterable[Entry]) -> str:
    rows = ["| type | what | ONNX operators | restrictions | from |\n|---|---|---|---|---|\n"]
    for entry in sorted(entries, key=lambda entry: entry.types):
        types = ", ".join(f"`{type}`" for type in entry.types)
        what = (entry.handler.__doc__ or "").strip().splitlines()[0].rstrip(".").replace("|", "\\|")
        restrictions = entry.restrictions.replace("|", "\\|")
        rows.append(f"| {types} | {what} | {' '.join(entry.operators)} | {restrictions} | {entry.origin} |\n")
    return "".join(rows)


def _training_rows() -> Iterable[str]:
    yield "| `Input`, `input:` | an input |\n"
    yield (
        f"| {_types(DATA_LAYERS)} | an input; its size from `crop_size` or `--input-shape`, its channels from the "
        "first weights; the label goes |\n"
    )
    yield "| `DummyData` with random fillers | an input |\n"
    yield "| any layer of unknown type without bottoms | an input; its size from its fields, or `--input-shape` |\n"
    yield f"| `Python` {_types(SAMPLERS)} | the identity: all regions go on |\n"
    yield "| unknown layers that read a label, or whose type says that they measure | the network ends before them |\n"
    for loss, layer in LOSS_LAYERS.items():
        yield f"| `{loss}` | `{layer}` |\n"
    yield f"| {_types(COMPARISONS)} | nothing: gone, with the layers that only feed it |\n"
    yield "| `Silence` | nothing: its blobs are no outputs |\n"


def _types(types: Iterable[str]) -> str:
    return ", ".join(f"`{type}`" for type in sorted(types))


if __name__ == "__main__":
    print(layers(), end="")
