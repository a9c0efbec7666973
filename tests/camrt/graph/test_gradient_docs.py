"""The page on gradients says what the registry holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from camrt.graph.gradient import differentiate
from camrt.graph.rules import registry, table
from tests.camrt.graph.gradients import graph, kept_registry


class Cube(OpRun):
    op_domain = "com.example"

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (x**3,)


@pytest.fixture
def _clean_registry() -> Iterator[None]:
    with kept_registry():
        yield


def test_page_is_fresh(repository: Path) -> None:
    assert (repository / "docs" / "gradients.md").read_text() == table.gradients(), "run `make docs`"


def test_the_table_beside_onnx_ad(repository: Path) -> None:
    pytest.importorskip("onnx_ad", reason="onnx-ad is not installed: the table of operators is not compared with it")
    from benchmarks import operators

    page = (repository / "docs" / "gradients.md").read_text()
    assert operators.section() in page, "put what `python benchmarks/operators.py` prints into gradients.md"


def test_every_rule_says_what_it_does() -> None:
    for entry in registry.entries():
        assert (entry.rule.__doc__ or "").strip(), entry.operators


@pytest.mark.usefixtures("_clean_registry")
def test_the_rule_of_the_page() -> None:
    code = re.search(r"## A rule of your own.*?```python\n(.*?)```", table.gradients(), re.DOTALL)
    assert code
    exec(code[1], {})
    model = graph("g (float[N,4] x) => (float[N,4] y) { y = com.example.Cube(x) }")
    x = np.random.default_rng(0).normal(0, 1, (2, 4)).astype(np.float32)
    (found,) = ReferenceEvaluator(differentiate(model, "y", "x"), new_ops=[Cube]).run(["gradient/x"], {"x": x})
    np.testing.assert_allclose(found, 3 * x**2, rtol=1e-5)
