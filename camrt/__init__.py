"""ONNX classifiers -> ONNX explainers: what a network sees in an image, and where.

Example:
    >>> import camrt
    >>> explainer = camrt.Explainer("googlenetCAM")  # doctest: +SKIP
    >>> explainer("img1.jpg").save("out")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from camrt.errors import CamrtError
    from camrt.explainer import CamrtWarning, Explainer
    from camrt.explanation import Explanation
    from camrt.graph import explain_graph
    from camrt.preprocess import Preprocess
    from converters import __version__

__all__ = [
    "CamrtError",
    "CamrtWarning",
    "Explainer",
    "Explanation",
    "Preprocess",
    "__version__",
    "explain_graph",
]

# Loaded when first asked for, as in converters.
_HOMES = {
    "CamrtError": "camrt.errors",
    "CamrtWarning": "camrt.explainer",
    "Explainer": "camrt.explainer",
    "Explanation": "camrt.explanation",
    "Preprocess": "camrt.preprocess",
    "__version__": "converters",
    "explain_graph": "camrt.graph",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
