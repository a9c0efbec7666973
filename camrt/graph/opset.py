"""Bringing a model to an operator set that our nodes exist in."""

from __future__ import annotations

import onnx
from onnx import version_converter

from camrt.errors import CamrtError
from camrt.graph.view import opset_of

OLDEST_OPSET = 13


def upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself from opset 13 on, else one of opset 17.

    Raises:
        CamrtError: onnx cannot upgrade it.
    """
    if opset_of(model) >= OLDEST_OPSET:
        return model
    try:
        return version_converter.convert_version(model, 17)
    except Exception as error:  # its converter raises whatever its C++ does
        raise CamrtError(
            f"found opset {opset_of(model)}, expected {OLDEST_OPSET} or later, and onnx cannot upgrade it ({error}): "
            "export the model with opset_version=17"
        ) from error
