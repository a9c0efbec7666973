"""Fillers: their distributions and values, after the comments in Caffe's filler.hpp."""

from __future__ import annotations

import math

import numpy as np
import pytest
from google.protobuf import text_format

from converters.schema.caffe_pb2 import FillerParameter

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing is trained")
from camrt.train.fillers import fill  # noqa: E402

SHAPE = (40, 30, 5, 7)  # fan in 1050, fan out 1400


def filled(text: str, shape: tuple[int, ...] = SHAPE, seed: int = 1, name: str = "conv/0") -> np.ndarray:
    blob = torch.full(shape, math.nan)
    fill(blob, text_format.Parse(text, FillerParameter()), seed=seed, name=name)
    return blob.numpy()


def test_constant_is_the_default() -> None:
    assert (filled("") == 0).all()
    assert (filled('type: "constant" value: 1.5') == 1.5).all()
    blob = torch.full((3,), math.nan)
    fill(blob, None, seed=0, name="x")
    assert blob.tolist() == [0, 0, 0]


# filler, the least and the largest value that it can give (None: any), mean, standard deviation
DISTRIBUTIONS = [
    ('type: "uniform"', (0, 1), 0.5, 1 / math.sqrt(12)),
    ('type: "uniform" min: -3 max: -1', (-3, -1), -2, 2 / math.sqrt(12)),
    ('type: "gaussian"', None, 0, 1),
    ('type: "gaussian" mean: 2 std: 0.01', None, 2, 0.01),
    ('type: "xavier"', (-math.sqrt(3 / 1050), math.sqrt(3 / 1050)), 0, math.sqrt(1 / 1050)),
    ('type: "xavier" variance_norm: FAN_IN', (-math.sqrt(3 / 1050), math.sqrt(3 / 1050)), 0, math.sqrt(1 / 1050)),
    ('type: "xavier" variance_norm: FAN_OUT', (-math.sqrt(3 / 1400), math.sqrt(3 / 1400)), 0, math.sqrt(1 / 1400)),
    ('type: "xavier" variance_norm: AVERAGE', (-math.sqrt(3 / 1225), math.sqrt(3 / 1225)), 0, math.sqrt(1 / 1225)),
    ('type: "msra"', None, 0, math.sqrt(2 / 1050)),
    ('type: "msra" variance_norm: FAN_OUT', None, 0, math.sqrt(2 / 1400)),
    ('type: "msra" variance_norm: AVERAGE', None, 0, math.sqrt(2 / 1225)),
]


@pytest.mark.parametrize(("filler", "bounds", "mean", "deviation"), DISTRIBUTIONS, ids=lambda value: str(value)[:50])
def test_distribution(filler: str, bounds: tuple[float, float] | None, mean: float, deviation: float) -> None:
    values = filled(filler).astype(np.float64)  # 42,000 of them: the bounds below are five standard errors
    assert abs(values.mean() - mean) < 5 * deviation / math.sqrt(values.size)
    assert abs(values.std() / deviation - 1) < 5 / math.sqrt(2 * values.size)
    if bounds:
        assert bounds[0] - 1e-7 <= values.min() < bounds[0] + 0.01 * (bounds[1] - bounds[0])
        assert bounds[1] + 1e-7 >= values.max() > bounds[1] - 0.01 * (bounds[1] - bounds[0])
    else:  # normal: 0.27 % lie beyond three deviations
        assert 0.001 < (np.abs(values - mean) > 3 * deviation).mean() < 0.005


def test_sparse_gaussian() -> None:
    """`sparse` is the number of inputs of an output that are not 0, on average."""
    values = filled('type: "gaussian" sparse: 10')
    assert 0.24 < (values != 0).mean() < 0.26
    assert abs(values[values != 0].std() - 1) < 0.05
    assert not filled('type: "gaussian" sparse: 0').any()


def test_bilinear() -> None:
    """Interpolation by 2 has the filter 1/4, 3/4, 3/4, 1/4 in each direction; one of odd size peaks in its middle."""
    line = np.array([0.25, 0.75, 0.75, 0.25])
    np.testing.assert_allclose(
        filled('type: "bilinear"', (3, 1, 4, 4)), np.broadcast_to(np.outer(line, line), (3, 1, 4, 4))
    )
    line = np.array([1, 2, 1]) / 2
    np.testing.assert_allclose(filled('type: "bilinear"', (1, 2, 3, 3))[0, 1], np.outer(line, line))


def test_bilinear_deconvolution_interpolates() -> None:
    """The layer of which the filler is made: the inside of an image enlarged twice is its bilinear interpolation."""
    kernel = torch.from_numpy(filled('type: "bilinear"', (1, 1, 4, 4)))
    image = torch.arange(30.0).reshape(1, 1, 5, 6) ** 1.5
    found = torch.nn.functional.conv_transpose2d(image, kernel, stride=2, padding=1)
    expected = torch.nn.functional.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])


def test_positive_unitball() -> None:
    values = filled('type: "positive_unitball"')
    assert values.min() >= 0
    np.testing.assert_allclose(values.sum((1, 2, 3)), 1, rtol=1e-5)


def test_seeds() -> None:
    """The numbers depend on seed and name, and on nothing else."""
    gaussian = 'type: "gaussian"'
    torch.manual_seed(5)
    first = filled(gaussian)
    torch.manual_seed(6)
    np.testing.assert_array_equal(first, filled(gaussian))
    assert (first != filled(gaussian, seed=2)).any()
    assert (first != filled(gaussian, name="conv/1")).any()
    assert (first != filled(gaussian, seed=2**31 - 1)).any()


@pytest.mark.parametrize(
    ("filler", "shape", "message"),
    [
        ('type: "he"', (1,), "found the filler 'he', expected one of bilinear, constant"),
        ('type: "bilinear"', (4, 4), "expected N x C x K x K"),
        ('type: "bilinear"', (1, 1, 3, 4), "expected N x C x K x K"),
        ('type: "uniform" min: 2', (3,), "found the filler's min 2 and max 1, expected"),
        ('type: "uniform" max: inf', (3,), "found the filler's min 0 and max inf"),
        ('type: "gaussian" std: nan', (3,), "found the filler's std nan"),
        ('type: "gaussian" std: -1', (3,), "found the filler's std -1"),
        ('type: "gaussian" sparse: 4', (3,), "found the filler's sparse 4"),
        ('type: "xavier"', (), "expected a blob with axes"),
        ('type: "positive_unitball"', (), "expected a blob with axes"),
    ],
)
def test_what_cannot_be_filled(filler: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        filled(filler, shape)
