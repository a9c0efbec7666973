"""The notebooks run, and what they show is what is committed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

NAMES = (
    "1-first-steps",
    "2-methods-compared",
    "3-pytorch-to-explainer",
    "4-refine-and-localize",
    "5-evaluate",
    "6-convert-from-caffe",
)
WEIGHT = 60_000  # bytes


def test_all_notebooks_are_small_and_have_run(repository: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="notebooks are read by nbformat")
    files = sorted((repository / "notebooks").glob("*.ipynb"))
    assert [file.stem for file in files] == list(NAMES)
    for file in files:
        assert file.stat().st_size < WEIGHT, file.name
        cells = [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), file.name
        assert not any(output.output_type == "error" for cell in cells for output in cell.outputs), file.name


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs(name: str, repository: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="notebooks are read by nbformat")
    nbclient = pytest.importorskip("nbclient", reason="notebooks are run by nbclient")
    pytest.importorskip("ipykernel", reason="notebooks run in ipykernel")
    if "pytorch" in name:
        pytest.importorskip("torch", reason="this notebook exports a network of PyTorch")
    folder = repository / "notebooks"
    kept = nbformat.read(folder / f"{name}.ipynb", as_version=4)
    again = nbformat.read(folder / f"{name}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(again, timeout=300, kernel_name="python3", resources=resources).execute()
    for old, new in zip(kept.cells, again.cells, strict=True):
        if old.cell_type == "code":
            assert _shown(new) == _shown(old), old.source


def _shown(cell: Any) -> list[Any]:
    """What a cell shows: text, and of pictures that they are there."""
    return [
        output.get("text") or ("picture" if "text/html" in output.data else output.data.get("text/plain"))
        for output in cell.outputs
        if output.get("name") != "stderr"
    ]
