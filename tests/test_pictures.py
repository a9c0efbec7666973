"""The pictures of README and docs are there, small, and what camrt draws."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from camrt import images, render

PAGES = ("README.md", "docs/*.md")
FOLDERS = ("docs/pictures", "docs/methods")
WEIGHT = 1_750_000  # bytes, of all pictures: each method has two
FAST = ("first", "chelsea", "rocket", "astronaut", "any-class", "demo", "boxes", "crf", "colormaps")


@pytest.fixture(scope="module")
def pictures(repository: Path) -> ModuleType:
    sys.path.insert(0, str(repository / "scripts"))
    try:
        import pictures
    finally:
        sys.path.remove(str(repository / "scripts"))
    return pictures


def test_all_pictures_are_there_and_shown(repository: Path, pictures: ModuleType) -> None:
    shown = {
        (page.parent / target).resolve()
        for pattern in PAGES
        for page in repository.glob(pattern)
        for target in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text())
    }
    kept = {file.resolve() for folder in FOLDERS for file in (repository / folder).iterdir()}
    assert shown == kept
    assert {file.stem for file in kept if file.parent.name == "pictures"} == {
        *pictures.DRAWN,
        *pictures.SHOWN,
        *pictures.TRAINED,
    }
    assert sum(file.stat().st_size for file in kept) < WEIGHT


def test_pictures_are_what_camrt_draws(repository: Path, reference: Path, pictures: ModuleType) -> None:
    """As far as another processor's rounding goes."""
    pytest.importorskip("skimage", reason="needs scikit-image, which brings the photographs")
    studio = pictures.studio_of(reference / "squeezenet" / "squeezenet1_1.onnx")
    for name in FAST:
        drawn = images.decode(render.jpeg(pictures.DRAWN[name](studio), pictures.QUALITY))
        kept = images.decode(repository / "docs" / "pictures" / f"{name}.jpg")
        assert drawn.shape == kept.shape, name
        assert np.abs(drawn.astype(int) - kept).mean() < 1, name


def test_without_a_classifier_the_pictures_stay(
    tmp_path: Path, pictures: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures.main(["--classifier", str(tmp_path / "none.onnx"), "--docs", str(tmp_path / "docs")])
    assert not (tmp_path / "docs").exists()
    said = capsys.readouterr().err
    assert "stay as they are" in said
    assert "--classifier" in said
    (tmp_path / "none.onnx").touch()
    pictures.main(["--classifier", str(tmp_path / "none.onnx"), "--docs", str(tmp_path / "docs")])
    assert "labels.txt" in capsys.readouterr().err
