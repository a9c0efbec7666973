"""Color maps, levels and opacities: against matplotlib's tables, and the formulas in float64."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from camrt import CamrtError, colors


@pytest.mark.parametrize("name", ["turbo", "inferno", "viridis"])
def test_sequential_tables_are_those_that_were_published(name: str) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    published = np.rint(matplotlib.colormaps[name](np.arange(256))[:, :3] * 255)
    np.testing.assert_array_equal(colors.color_table(name), published)


def test_the_diverging_table_is_matplotlibs_around_its_zero() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    published = np.rint(matplotlib.colormaps["bwr"].resampled(255)(np.arange(255))[:, :3] * 255)
    table = colors.color_table("bwr")
    assert np.abs(table[1:].astype(int) - published).max() <= 1
    assert table[colors.ZERO].tolist() == [255, 255, 255]


def test_tables_are_read_only_and_names_are_checked() -> None:
    for name in colors.COLORMAPS:
        table = colors.color_table(name)
        assert (table.shape, table.dtype) == ((256, 3), np.uint8)
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 0
    with pytest.raises(CamrtError, match=r"colormap='rainbow', expected one of turbo, inferno, viridis, jet, bwr"):
        colors.color_table("rainbow")
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(CamrtError, match="from 0 to 1"):
            colors.opacity_table("turbo", wrong)


@pytest.mark.parametrize("name", colors.COLORMAPS)
def test_opacity_rises_from_nothing_to_its_full_value(name: str) -> None:
    table = colors.opacity_table(name, 0.8)
    rising = table[colors.ZERO :] if colors.is_diverging(name) else table
    assert rising[0] == 0
    assert rising[-1] == pytest.approx(0.8)
    assert (np.diff(rising) >= 0).all()
    assert np.diff(rising).max() < 0.03, "no edge is visible"
    if colors.is_diverging(name):
        np.testing.assert_allclose(table[1:128], table[:128:-1])


@pytest.mark.parametrize(
    ("values", "name", "expected"),
    [
        ([0.0, 1.0, 2.0], "turbo", [0, 128, 255]),
        ([2.0, 3.0, 4.0], "turbo", [0, 128, 255]),  # above its own floor
        ([-4.0, 0.0, 2.0], "turbo", [0, 0, 255]),
        ([-4.0, 0.0, 2.0], "bwr", [1, 128, 192]),  # round half to even: 191.5
        ([1.0, 2.0, 4.0], "bwr", [160, 192, 255]),
        ([-1.0, -2.0, -3.0], "turbo", [0, 0, 0]),
        ([0.0, 0.0, 0.0], "bwr", [128, 128, 128]),
        ([0.3, 0.3, 0.3], "turbo", [0, 0, 0]),
        ([np.nan, 1.0, 2.0], "turbo", [0, 0, 255]),
        ([np.nan, -1.0, 2.0], "bwr", [128, 64, 255]),
        ([-np.inf, np.inf, 2.0], "turbo", [0, 0, 0]),
        ([-np.inf, np.inf, 2.0, 1.0], "turbo", [0, 255, 255, 0]),
        ([np.nan, np.nan, np.nan], "bwr", [128, 128, 128]),
        ([-1e308, 0.0, 1e308], "bwr", [1, 128, 255]),
        ([0.0, 5e-324, 5e-324], "turbo", [0, 0, 0]),
    ],
)
def test_levels(values: list[float], name: str, expected: list[int]) -> None:
    found = colors.levels(np.array([values]), name)
    assert found.dtype == np.uint8
    assert found[0].tolist() == expected


def test_a_few_outliers_do_not_hide_the_rest() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((100, 100)).astype(np.float32)
    values[:2, :10] = 1000
    low, high = colors.limits(values)
    assert high == pytest.approx(2 * np.percentile(values, 99.5), rel=0.01)
    assert low == values.min()
    assert colors.limits(-values, "bwr") == (-high, high)
    assert (colors.levels(values)[:2, :10] == 255).all()
    spot = np.zeros((100, 100))
    spot[:2, :10] = 7
    assert colors.limits(spot) == (0, 7), "a small spot on nothing is no outlier"
    rows, columns = np.mgrid[:100, :100]
    smooth = np.exp(-((rows - 50) ** 2 + (columns - 50) ** 2) / 200)
    assert colors.limits(smooth)[1] == smooth.max()


def test_the_tables_can_be_had_as_json() -> None:
    printed = subprocess.run([sys.executable, "-m", "camrt.colors"], capture_output=True, check=True, text=True).stdout
    data = json.loads(printed)
    assert data == json.loads(json.dumps(colors.as_dict()))
    assert data["default"] in data["colormaps"]
    assert [len(one["colors"]) for one in data["colormaps"].values()] == [256] * len(colors.COLORMAPS)
