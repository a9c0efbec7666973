from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.special import expit, logit

from camrt.errors import CamrtError
from camrt.localize.crf import CRF, probability, refine
from tests.tiny_models import photo

GOLDEN = Path(__file__).resolve().parents[2] / "data" / "crf"
with np.load(GOLDEN / "answers.npz") as file:
    ANSWERS = dict(file)
CASES = sorted({name.rsplit("_", 1)[0] for name in ANSWERS})
SEED, GAUSS = CRF(), CRF((50, 13, 10), (3, 3), 10)


def settings(case: str) -> CRF:
    bilateral, gaussian = (tuple(ANSWERS[f"{case}_{kernel}"].tolist()) or None for kernel in ("bilateral", "gaussian"))
    return CRF(bilateral, gaussian, int(ANSWERS[f"{case}_iterations"]))


def bump(height: int, width: int, spread: float = 0.06) -> np.ndarray:
    y, x = np.mgrid[:height, :width] / max(height, width)
    return np.exp(-((y - 0.4) ** 2 + (x - 0.5) ** 2) / spread)


@pytest.fixture(scope="module")
def pydensecrf() -> ModuleType:
    """The module that made the stored answers, if what it needs is installed."""
    pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed (it is compiled)")
    spec = importlib.util.spec_from_file_location("make_crf_answers", GOLDEN / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ----------------------------------------------------------------------------------------------- pydensecrf2's answers


@pytest.mark.parametrize(("name", "crf"), [("marginal_seed", SEED), ("marginal_gauss", GAUSS)])
def test_the_demos_image(reference: Path, name: str, crf: CRF) -> None:
    with (
        np.load(reference / "crf" / "img1.npz") as stored,
        np.load(reference / "matlab_demo" / "expected_img1.npz") as demo,
    ):
        expected, found = stored[name], crf.refine(demo["image256"], stored["probability"])
        scaled = [probability(heatmap) for heatmap in demo["merged"][:2]]
        np.testing.assert_allclose(np.clip(scaled, 0.001, 0.999), stored["probability"], atol=1e-6)
    np.testing.assert_array_equal(found > 0.5, expected > 0.5)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert 0.001 < np.mean(expected > 0.5) < 0.5


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    found = settings(case).refine(ANSWERS[f"{case}_image"], ANSWERS[f"{case}_probability"])
    expected = ANSWERS[f"{case}_marginal"]
    if expected.size % 4 == 0:
        np.testing.assert_allclose(found, expected, atol=2e-5)  # float32, in another order
    else:  # pydensecrf2 counts black pixels in
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_golden_moves_pixels() -> None:
    assert len(CASES) == 9
    moved = {case: np.abs(ANSWERS[f"{case}_marginal"] - ANSWERS[f"{case}_probability"]).mean() for case in CASES}
    assert sum(share > 0.02 for share in moved.values()) >= 6, moved
    between = [np.mean(np.abs(ANSWERS[f"{case}_marginal"] - 0.5) < 0.4) for case in CASES]
    assert max(between) > 0.1  # not all of them are saturated


def test_pydensecrf_itself(pydensecrf: ModuleType) -> None:
    generator = np.random.default_rng(3)
    for seed, (height, width) in enumerate([(64, 64), (32, 57), (4, 91), (50, 50), (33, 57), (3, 91)]):
        image, map_ = photo(height, width, seed), pydensecrf.blob(height, width, generator)
        for crf in (SEED, GAUSS, CRF((3, 5, 4), (1.5, 0.5), 7), CRF((25, 60, 2), None, 3)):
            expected = pydensecrf.answer(image, map_, crf.bilateral, crf.gaussian, crf.iterations)
            counts_black_in = height * width % 4 != 0
            np.testing.assert_allclose(crf.refine(image, map_), expected, atol=2e-2 if counts_black_in else 2e-5)


def test_stored_answers_are_those_of_pydensecrf(pydensecrf: ModuleType) -> None:
    for case in CASES:
        crf = settings(case)
        arguments = crf.bilateral, crf.gaussian, crf.iterations
        again = pydensecrf.answer(ANSWERS[f"{case}_image"], ANSWERS[f"{case}_probability"], *arguments)
        np.testing.assert_allclose(again, ANSWERS[f"{case}_marginal"], atol=1e-6)


# -------------------------------------------------------------------------------------------------- the paper's formula


def exact(image: np.ndarray, map_: np.ndarray, crf: CRF) -> np.ndarray:
    """Algorithm 1 with all pairs of pixels and both labels, in float64."""
    height, width = map_.shape
    place = np.stack(np.mgrid[:height, :width], -1).reshape(-1, 2).astype(float)
    color = image.reshape(-1, 3).astype(float)

    def squared(points: np.ndarray) -> np.ndarray:
        return ((points[:, None] - points[None]) ** 2).sum(-1)

    kernels = []
    if crf.bilateral:
        sdims, schan, compat = crf.bilateral
        kernels.append((np.exp(-squared(place) / (2 * sdims**2) - squared(color) / (2 * schan**2)), compat))
    if crf.gaussian:
        sdims, compat = crf.gaussian
        kernels.append((np.exp(-squared(place) / (2 * sdims**2)), compat))
    kernels = [(k / np.sqrt(k.sum(0)[:, None] * k.sum(1)[None]), compat) for k, compat in kernels]
    clipped = np.clip(map_.ravel(), 0.001, 0.999)
    unary = -np.log(np.stack([1 - clipped, clipped], 1))
    q = np.exp(-unary)
    for _ in range(crf.iterations):
        energy = unary + sum(compat * (k @ (q.sum(1, keepdims=True) - q)) for k, compat in kernels)
        q = np.exp(-(energy - energy.min(1, keepdims=True)))
        q /= q.sum(1, keepdims=True)
    return q[:, 1].reshape(map_.shape)


@pytest.mark.parametrize("crf", [CRF((4, 30, 1.5), None, 5), CRF((6, 40, 1), (1.5, 0.7), 5), CRF(None, (2, 2), 5)])
def test_near_what_all_pairs_give(crf: CRF) -> None:
    image, map_ = photo(30, 34, 5), bump(30, 34)
    expected, found = exact(image, map_, crf), crf.refine(image, map_)
    assert np.abs(expected - map_).mean() > 0.02  # it does something
    assert np.abs(found - expected).mean() < 0.02
    assert np.mean((found > 0.5) == (expected > 0.5)) > 0.98


def test_the_mask_ends_where_the_colour_does() -> None:
    image = np.full((60, 60, 3), (40, 90, 40), np.uint8)
    disc = (np.mgrid[:60, :60][0] - 30) ** 2 + (np.mgrid[:60, :60][1] - 30) ** 2 < 15**2
    image[disc] = (210, 160, 30)
    map_ = 0.02 + 0.9 * bump(60, 60, 0.07)  # too high, and beside it
    assert np.mean((map_ > 0.5) != disc) > 0.03
    np.testing.assert_array_equal(refine(image, map_, bilateral=(20, 20, 10)) > 0.5, disc)


def test_the_labels_can_be_exchanged() -> None:
    image, map_ = photo(40, 50, 1), bump(40, 50)
    crf = CRF((8, 15, 3), (2, 1), 6)
    np.testing.assert_allclose(crf.refine(image, 1 - map_), 1 - crf.refine(image, map_), atol=1e-5)


def test_turned_off() -> None:
    image, map_ = photo(20, 30, 2), bump(20, 30)
    clipped = np.clip(map_, 0.001, 0.999)
    for crf in (CRF(iterations=0), CRF(None, None), CRF((10, 20, 0), (3, 0))):
        np.testing.assert_allclose(crf.refine(image, map_), clipped, atol=1e-6)


def test_one_colour_and_one_probability() -> None:
    # The rows of a normalised kernel need not sum up to 1 at the border; in a wide image's middle they do.
    image, map_ = np.full((80, 80, 3), 90, np.uint8), np.full((80, 80), 0.6)
    found = refine(image, map_, bilateral=None, gaussian=(2, 3), iterations=1)
    assert found[40, 40] == pytest.approx(expit(logit(0.6) + 3 * 0.2), abs=2e-3)


# ------------------------------------------------------------------------------------------------------- several, large


def test_maps_do_not_see_each_other() -> None:
    image = photo(30, 40, 4)
    maps = np.random.default_rng(1).random((2, 3, 30, 40)).astype(np.float32)
    crf = CRF((5, 20, 3), None, 4)
    together = crf.refine(image, maps)
    assert (together.shape, together.dtype) == (maps.shape, np.float32)
    np.testing.assert_array_equal(together[1, 2], crf.refine(image, maps[1, 2]))
    assert crf.refine(image, maps[:0]).shape == (0, 3, 30, 40)
    np.testing.assert_array_equal(refine(image, maps[0], bilateral=(5, 20, 3), iterations=4), together[0])


def test_what_is_given_is_left_alone() -> None:
    image, map_ = photo(20, 20, 0), bump(20, 20).astype(np.float32)
    copies = image.copy(), map_.copy()
    refine(image, map_)
    np.testing.assert_array_equal(image, copies[0])
    np.testing.assert_array_equal(map_, copies[1])
    image.flags.writeable = map_.flags.writeable = False
    refine(np.asfortranarray(image), map_[::-1, ::-1])


@pytest.mark.parametrize("crf", [CRF((1e9, 1e9, 1e9), (1e9, 1e9)), CRF((1e-2, 3, 1e9)), CRF((10, 20, 1e9), (3, 1e9))])
def test_nothing_overflows(crf: CRF) -> None:
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
        warnings.simplefilter("error")
        found = crf.refine(photo(24, 24, 0), bump(24, 24))
    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 1


def test_one_pixel() -> None:
    found = refine(np.zeros((1, 1, 3), np.uint8), np.full((1, 1), 0.7), bilateral=(10, 20, 2), iterations=1)
    assert found[0, 0] == pytest.approx(expit(logit(0.7) + 2 * 0.4), abs=1e-6)  # its kernel is 1


# ------------------------------------------------------------------------------------------------------------- refusals

IMAGE, MAP = np.zeros((8, 9, 3), np.uint8), np.full((8, 9), 0.5)


@pytest.mark.parametrize(
    ("image", "map_", "message"),
    [
        (IMAGE[:, :, 0], MAP, r"found an image \(8, 9\) uint8, expected RGB \(H, W, 3\) uint8"),
        (IMAGE.astype(np.float32), MAP, r"found an image \(8, 9, 3\) float32"),
        ([[0]], MAP, "found an image of type list"),
        (
            IMAGE,
            MAP[:7],
            r"found probabilities \(7, 9\) float64 for an image \(8, 9, 3\) uint8, expected the same height",
        ),
        (IMAGE, MAP.T, "expected the same height"),
        (IMAGE, MAP[0], "expected the same height"),
        (IMAGE[:0], MAP[:0], "expected the same height"),
        (IMAGE, MAP.astype(int), r"found probabilities \(8, 9\) int64, expected floats"),
        (IMAGE, MAP * np.nan, "found probabilities from nan to nan, expected 0 to 1"),
        (IMAGE, np.where(np.arange(9) == 3, np.nan, MAP), "expected 0 to 1"),
        (
            IMAGE,
            MAP * 3,
            r"found probabilities from 1\.5 to 1\.5, expected 0 to 1: .*convert a heatmap with .*probability",
        ),
        (IMAGE, MAP - 0.51, r"found probabilities from -0\.01"),
        (IMAGE, MAP * np.inf, "found probabilities from inf to inf"),
    ],
)
def test_refused_arrays(image: np.ndarray, map_: np.ndarray, message: str) -> None:
    with pytest.raises(CamrtError, match=message):
        refine(image, map_)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bilateral": (-10, 20, 10)}, "found sdims -10 of the bilateral kernel, expected more than 0"),
        ({"bilateral": (10, 0, 10)}, "found schan 0 of the bilateral kernel, expected more than 0"),
        ({"bilateral": (10, 20, -1)}, "found compat -1 of the bilateral kernel, expected 0 or more"),
        ({"bilateral": (10, 20, np.inf)}, "found compat inf"),
        ({"bilateral": (np.nan, 20, 1)}, "found sdims nan"),
        ({"bilateral": (10, 20)}, r"found bilateral=\(10, 20\), expected 3 numbers: sdims, schan, compat"),
        ({"bilateral": 10}, "expected 3 numbers"),
        ({"gaussian": ("a", 2)}, "expected 2 numbers: sdims, compat"),
        ({"gaussian": (3, 3, 3)}, "expected 2 numbers"),
        ({"iterations": -1}, "found iterations=-1, expected an integer, 0 or more"),
        ({"iterations": 2.5}, "found iterations=2.5"),
    ],
)
def test_refused_settings(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(CamrtError, match=message):
        refine(IMAGE, MAP, **arguments)


@pytest.mark.parametrize("bilateral", [(1e-9, 20, 10), (10, 1e-300, 10), (1e-4, 1e-3, 10)])
def test_more_than_can_be_numbered(bilateral: tuple[float, float, float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CamrtError, match=r"standard deviations apart, .* raise sdims or schan"):
            refine(photo(40, 40, 0), bump(40, 40), bilateral=bilateral)


# ------------------------------------------------------------------------------------------- heatmaps to probabilities


def test_probabilities_of_a_heatmap() -> None:
    np.testing.assert_allclose(probability(np.array([[2.0, 3.0], [4.0, 6.0]])), [[0, 0.25], [0.5, 1]])
    np.testing.assert_allclose(probability(np.array([[-4.0, 0.0], [1.0, 2.0]])), [[0, 0], [0.5, 1]])
    assert probability(np.ones((3, 4), np.float32)).tolist() == np.zeros((3, 4)).tolist()
    assert not probability(np.array([[-3.0, -1.0]])).any()
    assert probability(np.array([[0, 1e30]], np.float32)).tolist() == [[0, 1]]
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(CamrtError, match="expected finite values"):
            probability(np.array([[bad, 1.0]]))
