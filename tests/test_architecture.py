"""docs/architecture.md names files that exist."""

from __future__ import annotations

import re
from pathlib import Path


def test_every_path_of_the_architecture_exists(repository: Path) -> None:
    text = (repository / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text[text.index("## I want to ...") : text.index("## Rules")]
    paths = re.findall(r"`([\w-]+/[\w./-]*)`", table)
    assert len(paths) > 50
    assert [path for path in paths if not (repository / path).exists()] == []


def test_a_layer_type_is_in_one_family_of_each_kind(repository: Path) -> None:
    """Families are named alike, so that who finds a layer's handler finds its rule and its training module."""
    folders = ("converters/handlers", "camrt/graph/rules", "camrt/train/layers")
    families = [{file.stem for file in (repository / folder).glob("*.py")} for folder in folders]
    assert {"activation", "convolution", "elementwise", "normalization", "pooling", "shaping"} <= set.intersection(
        *families
    )
