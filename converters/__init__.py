"""Caffe networks -> ONNX models that answer as Caffe does.

Example:
    >>> import converters
    >>> model = converters.convert("deploy.prototxt", "net.caffemodel")  # doctest: +SKIP
"""

import lazy_loader

__version__ = "0.2.0"

# Everything is imported on first use: the command line prints its first line before NumPy is loaded. __init__.pyi has
# the same names for type checkers.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "conversion": ["convert"],
        "errors": ["ConversionError", "ConversionWarning"],
        "layer": ["Layer"],
        "net": ["Input", "Net", "read_net"],
        "registry": ["handles", "load_plugin"],
    },
)
