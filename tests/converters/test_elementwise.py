"""Axpy, against its formula. Caffe's own answers are in test_layers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.converters.one_layer import OneLayer, assert_close, assert_error_names_layer, run


@pytest.mark.parametrize("rank", [2, 4])
def test_axpy(rank: int) -> None:
    trailing = (1,) * (rank - 2)
    model = OneLayer('type: "Axpy" top: "out"', {"a": (1, 3, *trailing), "x": (1, 3, 4, 5), "y": (1, 3, 4, 5)}).model()
    for batch in (1, 2, 3):
        a = np.random.default_rng(9).normal(size=(batch, 3, *trailing)).astype(np.float32)
        x, y = (np.random.default_rng(seed).normal(size=(batch, 3, 4, 5)).astype(np.float32) for seed in (1, 2))
        expected = np.zeros_like(x)
        for n, c in np.ndindex(batch, 3):
            expected[n, c] = a[n, c] * x[n, c] + y[n, c]
        assert_close(run(model, {"a": a, "x": x, "y": y})[0], expected)


TRIPLE = {"a": (2, 3), "x": (2, 3, 4, 5), "y": (2, 3, 4, 5)}
ERRORS = {
    "two blobs": ('type: "Axpy"', {"a": (2, 3), "x": (2, 3, 4, 5)}, "bottom"),
    "another y": ('type: "Axpy"', {**TRIPLE, "y": (2, 3, 4, 4)}, "for the blob 'y'"),
    "other factors": ('type: "Axpy"', {**TRIPLE, "a": (2, 4)}, "found factors"),
    "large factors": ('type: "Axpy"', {**TRIPLE, "a": (2, 3, 4, 1)}, "found factors"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_the_layer(name: str) -> None:
    layer, shapes, message = ERRORS[name]
    assert_error_names_layer(OneLayer(f'{layer} top: "out"', shapes), message)
