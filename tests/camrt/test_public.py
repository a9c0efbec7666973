"""What is public of camrt, and that importing it stays quick."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import camrt
import camrt.graph
import camrt.train
import converters

PUBLIC = {
    "CamrtError", "CamrtWarning", "Explainer", "Explanation", "METHODS", "Preprocess", "Session", "Style",
    "__version__", "compare", "differentiate", "evaluate", "explain_graph", "graph", "localize", "train",
}  # fmt: skip


def fresh(code: str) -> str:
    """What code prints in an interpreter of its own, where nothing is imported yet."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_dir_shows_what_is_public_and_nothing_else() -> None:
    names = fresh("import camrt; camrt.Explainer, camrt.graph, camrt.METHODS; print(*dir(camrt))").split()
    assert set(names) == PUBLIC == set(camrt.__all__)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_each_name_is_there_at_once(name: str) -> None:
    """``import camrt; camrt.graph`` was an AttributeError until something else had imported it."""
    assert fresh(f"import camrt; print(camrt.{name} is not None)") == "True\n"


def test_what_is_not_there() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        camrt.nothing  # noqa: B018
    with pytest.raises(AttributeError, match="nothing"):
        camrt.graph.nothing  # noqa: B018


def test_the_same_things_under_both_names() -> None:
    assert camrt.explain_graph is camrt.graph.explain_graph
    assert camrt.differentiate is camrt.graph.differentiate
    assert camrt.METHODS is camrt.graph.methods.METHODS


@pytest.mark.parametrize("module", [camrt, camrt.graph, camrt.train, converters])
def test_type_checkers_see_the_same_names(module: object) -> None:
    """The stubs name what the packages load."""
    file = Path(str(vars(module)["__file__"])).with_suffix(".pyi")
    statements = [each for each in ast.parse(file.read_text()).body if isinstance(each, ast.ImportFrom)]
    assert {name.asname for each in statements for name in each.names} == set(vars(module)["__all__"])


def test_nothing_large_is_imported() -> None:
    """``import camrt`` loads neither NumPy nor onnx; nor do the packages below."""
    modules = fresh("import sys, camrt, camrt.train, converters; print(*sys.modules)").split()
    assert not {"numpy", "onnx", "onnxruntime", "cv2", "scipy", "torch", "ast"} & set(modules)
