"""SphereFace's product with unit weights, against its formula. Caffe's own answers are in test_layers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.converters.one_layer import OneLayer, assert_close, assert_error_names_layer, run

IMAGE = {"x": (2, 3, 4, 5)}
WEIGHT = np.random.default_rng(0).normal(size=(4, 60)).astype(np.float32)


def margin(param: str = "", axis: int = 1) -> OneLayer:
    weight = WEIGHT if axis == 1 else WEIGHT[:, :5]
    return OneLayer(
        'type: "MarginInnerProduct" top: "y" top: "lambda" margin_inner_product_param '
        f"{{ num_output: 4 type: QUADRUPLE base: 1000 gamma: 0.12 power: 1 lambda_min: 5 axis: {axis} {param} }}",
        {**IMAGE, "label": (2,)},
        (weight,),
    )


@pytest.mark.parametrize("axis", [1, 3])
def test_margin_inner_product_is_the_cosine_times_the_length(axis: int) -> None:
    """For classes other than the label's, margin_inner_product_layer.cpp gives just that; inference has no label."""
    one = margin(axis=axis)
    model = one.model()
    assert [data.name for data in model.graph.input] == ["x"]
    assert [data.name for data in model.graph.output] == ["y"]
    for batch in (1, 3):
        x = np.random.default_rng(batch).normal(size=(batch, 3, 4, 5)).astype(np.float32)
        expected = np.zeros((*x.shape[:axis], 4), np.float32)
        for place in np.ndindex(*x.shape[:axis]):
            vector = x[place].ravel().astype(np.float64)
            for output, row in enumerate(one.blobs[0].astype(np.float64)):
                cosine = vector @ row / np.linalg.norm(vector) / np.linalg.norm(row)
                expected[(*place, output)] = np.linalg.norm(vector) * cosine
        assert_close(run(model, {"x": x})[0], expected)


def test_margin_without_outputs_is_refused() -> None:
    assert_error_names_layer(OneLayer('type: "MarginInnerProduct" top: "y"', {**IMAGE, "label": (2,)}), "num_output 0")


CASES = {
    "margin": margin(),
    "margin axis": margin(axis=3),
    "margin of vectors": OneLayer(
        'type: "MarginInnerProduct" top: "y" margin_inner_product_param { num_output: 4 }',
        {"x": (2, 60), "label": (2,)},
        (WEIGHT,),
    ),
}
