"""ONNX -> ONNX: a classifier becomes an explainer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from camrt.graph.explain import explain_graph
    from camrt.graph.gradient import differentiate

__all__ = ["differentiate", "explain_graph"]

# Loaded when first asked for, as in camrt: the command line asks camrt.graph.methods for names, and nothing else.
_HOMES = {"differentiate": "camrt.graph.gradient", "explain_graph": "camrt.graph.explain"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
