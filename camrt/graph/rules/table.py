"""Writes docs/gradients.md from gradients.md and the registry: `python -m camrt.graph.rules.table`, or `make docs`."""

from __future__ import annotations

from pathlib import Path

from camrt.graph.rules import registry
from camrt.graph.rules.registry import Entry


def gradients() -> str:
    """The page, as Markdown."""
    sections: dict[str, list[Entry]] = {family: [] for family in registry.FAMILIES}
    for entry in registry.entries():
        if entry.rule.__module__.startswith("camrt."):  # not a user's
            sections[entry.family].append(entry)
    parts = [f"### {family.capitalize()}\n\n{_table(entries)}" for family, entries in sections.items()]
    return Path(__file__).with_name("gradients.md").read_text().replace("{operators}\n", "\n".join([*parts, ""]))


def _table(entries: list[Entry]) -> str:
    rows = ["| operator | what the rule does | restrictions |\n|---|---|---|\n"]
    for entry in sorted(entries, key=lambda entry: entry.operators):
        operators = ", ".join(f"`{operator}`" for operator in entry.operators)
        what = (entry.rule.__doc__ or "").strip().splitlines()[0].rstrip(".")
        rows.append(f"| {operators} | {_escaped(what)} | {_escaped(entry.restrictions)} |\n")
    return "".join(rows)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


if __name__ == "__main__":
    print(gradients(), end="")
