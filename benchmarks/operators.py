#!/usr/bin/env python3
"""Which operators camrt and onnx-ad differentiate: the table of docs/gradients.md, as Markdown.

usage: python benchmarks/operators.py

camrt's are those of its registry of rules. Each of them is tried with onnx-ad, on the cases of the tests; a case that
onnx-ad cannot build is listed. What onnx-ad has beside these is taken from its own tables of rules and lowerings.
Operators whose derivative is 0 everywhere count for neither.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from camrt.graph.rules import registry
from tests.camrt.graph.rule_cases import CASES, Case

ZERO = {"Floor", "Ceil", "Round", "Sign"}
EXPANDED = {"Swish"}  # of ONNX's newest operator set, without a case: onnx-ad expands what ONNX defines by others
HEADING = "## Beside onnx-ad"


def section() -> str:
    """The section of the page: a table, and what it is made of."""
    import onnx_ad
    from onnx_ad import lower, recurrent, rules

    ours = {name for entry in registry.entries() if not entry.domain for name in entry.operators} - ZERO
    theirs = set(rules.REVERSE) - set(rules.ZERO_DERIVATIVE) | set(lower.LOWERINGS) | set(recurrent.RECURRENT)
    tried = [(case, _is_built(case)) for case in CASES]
    refused = [str(case) for case, is_built in tried if not is_built]
    built = {case.op for case, is_built in tried if is_built}
    both = ours & (theirs | built | EXPANDED)
    rows = [
        (f"both ({len(both)})", _listed(both)),
        (f"camrt alone ({len(ours - both)})", _listed(ours - both)),
        (f"onnx-ad alone ({len(theirs - ours)})", _listed(theirs - ours)),
        (f"camrt, in forms that onnx-ad cannot build ({len(refused)})", "; ".join(sorted(refused))),
    ]
    table = "".join(f"| {who} | {which} |\n" for who, which in rows)
    return f"""{HEADING}
[onnx-ad](https://pypi.org/project/onnx-ad/) {onnx_ad.__version__} differentiates ONNX graphs as well, forward and
backward. `python benchmarks/operators.py` prints this table. onnx-ad gives `QuantizeLinear` the derivative 0, and
expands operators that ONNX defines by others. `benchmarks/gradients.py` compares the time and memory of both.

| differentiated by | operators |
|---|---|
{table}"""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _is_built(case: Case) -> bool:
    """Whether onnx-ad writes the gradient of a case."""
    import onnx_ad

    model, values = case.model(min(max(case.opsets[0], 17), case.opsets[1]), np.float32), case.values()
    for value in model.graph.input:  # it wants fixed sizes
        kind = value.type.tensor_type.elem_type
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, values[value.name].shape))
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        onnx_ad.reverse(onnx.shape_inference.infer_shapes(model, data_prop=True), layout="onnx")
    except Exception:  # UnsupportedOperator, and whatever its rules and onnx raise
        return False
    return True


if __name__ == "__main__":
    print(section(), end="")
