"""ONNX classifiers -> ONNX explainers. So far only its command line, with `camrt convert`."""

from converters import __version__

__all__ = ["__version__"]
