"""docs/methods.md says what the methods do."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camrt import docs
from camrt.graph import explain_graph, methods
from camrt.graph.methods import METHODS
from tests.camrt.classifiers import SIDE, classifier
from tests.camrt.graph.explainers import PREPROCESS, images, run


def test_formulas_are_of_methods_that_exist() -> None:
    formulas, words = docs._formulas()
    assert words.keys() <= formulas.keys() <= set(METHODS)
    for name, formula in formulas.items():
        assert formula.count("{") == formula.count("}"), name
        assert "$" not in formula, name


def test_a_formula_in_text_that_the_docstring_no_longer_has_is_an_error() -> None:
    with pytest.raises(ValueError, match="docstring of layercam has 0 times"):
        docs._without_formula("layercam", "Something else.")
    body = "One line.\n\nL_c = ReLU(sum_k ReLU(dy_c/dA_k) *\nA_k), position by position. And more."
    assert docs._without_formula("layercam", body) == "One line.\n\nAnd more."


def test_page_of_methods_is_fresh(repository: Path) -> None:
    assert (repository / "docs" / "methods.md").read_text() == docs.methods(repository / "docs"), (
        "run python -m camrt.docs docs"
    )


def test_links_lead_somewhere(repository: Path) -> None:
    page = repository / "docs" / "methods.md"
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target
    headings = [re.sub(r"[^a-z0-9 -]", "", line[3:].lower()).replace(" ", "-") for line in re.findall("## .*", text)]
    anchors = [f"{one}-{headings[:i].count(one)}" if one in headings[:i] else one for i, one in enumerate(headings)]
    linked = re.findall(r"\]\(#([^)]+)\)", text)
    assert len(set(linked)) == len(METHODS)
    assert set(linked) <= set(anchors)


@pytest.mark.slow
def test_pictures_are_what_the_methods_show(repository: Path) -> None:
    """As far as another processor's rounding goes."""
    shown = dict(docs.pictures())
    assert set(shown) == {f"{name}.png" for name in docs.PICTURED}
    for name, content in shown.items():
        kept = np.asarray(Image.open(repository / "docs" / docs.FOLDER / name)).astype(int)
        found = np.asarray(Image.open(io.BytesIO(content))).astype(int)
        assert found.shape == kept.shape == (docs.SIDE, docs.SIDE, 3)
        assert np.abs(found - kept).mean() < 2, name


def test_example_of_a_method_runs(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    monkeypatch.setattr(methods._methods, "_entries", dict(methods._methods._entries))
    code = re.search(r"## A method of your own\n```python\n(.*?)```", docs.methods(repository / "docs"), re.DOTALL)
    assert code
    exec(code.group(1), {})
    explainer = explain_graph(classifier("gemm"), "mean-activation", preprocess=PREPROCESS)
    assert run(explainer, {"image": images(1, SIDE)})[2].max() > 0
