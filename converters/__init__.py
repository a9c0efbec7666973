"""Caffe networks -> ONNX models that answer as Caffe does.

Example:
    >>> import converters
    >>> model = converters.convert("deploy.prototxt", "net.caffemodel")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converters.conversion import convert
    from converters.errors import ConversionError, ConversionWarning
    from converters.layer import Layer
    from converters.net import Input, Net, read_net
    from converters.registry import handles, load_plugin

__version__ = "0.1.0"
__all__ = [
    "ConversionError",
    "ConversionWarning",
    "Input",
    "Layer",
    "Net",
    "convert",
    "handles",
    "load_plugin",
    "read_net",
]

# Loaded when first asked for: the command line says its first word before NumPy is there.
_HOMES = {
    "ConversionError": "errors",
    "ConversionWarning": "errors",
    "Input": "net",
    "Layer": "layer",
    "Net": "net",
    "convert": "conversion",
    "handles": "registry",
    "load_plugin": "registry",
    "read_net": "net",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
