"""Pointing, dropping, inserting, deleting and imputing, by hand and against plain restatements."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from camrt import CamrtError
from camrt.evaluate import faithfulness

BOX = np.array([[10, 20, 30, 40]])


def mean_score(images: np.ndarray) -> np.ndarray:
    """Class 0 likes what is bright in the first channel, class 1 the opposite."""
    bright = images[:, 0].mean(axis=(1, 2))
    return np.stack([bright, 1 - bright], axis=1)


# ------------------------------------------------------------------------------------------------------- pointing game


@pytest.mark.parametrize(
    ("point", "tolerance", "hit"),
    [
        ((10.0, 20.0), 0, True),
        ((30.4, 40.4), 0, True),  # in the last pixel
        ((30.6, 40.0), 0, False),
        ((44.9, 30.0), 15, True),
        ((45.0, 30.0), 15, False),  # less than 15 pixels, not 15
        ((-1.0, 10.0), 15, True),  # 11 and 10 pixels from the corner: 14.9
        ((-1.5, 10.0), 15, False),  # 15.2
        (None, 1000, False),
    ],
)
def test_a_point_hits_a_box_or_comes_near(point: tuple[float, float] | None, tolerance: float, hit: bool) -> None:
    assert faithfulness.pointing_hit(point, BOX, tolerance) is hit
    far = np.array([[500, 500, 600, 600]])
    assert faithfulness.pointing_hit(point, np.concatenate([far, BOX]), tolerance) is hit


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), tolerance=st.integers(1, 20))
def test_near_is_what_a_disc_around_the_point_touches(seed: int, tolerance: int) -> None:
    """As TorchRay's pointing game says it: pixels at less than the tolerance from the point, and the object's mask."""
    rng = np.random.default_rng(seed)
    (x1, x2), (y1, y2) = np.sort(rng.integers(0, 60, (2, 2)), axis=1)
    x, y = rng.integers(0, 60, 2).tolist()
    mask = np.zeros((60, 60), bool)
    mask[y1 : y2 + 1, x1 : x2 + 1] = True
    rows, columns = np.mgrid[:60, :60]
    touched = bool((mask & ((columns - x) ** 2 + (rows - y) ** 2 < tolerance**2)).any())
    assert faithfulness.pointing_hit((x, y), np.array([[x1, y1, x2, y2]]), tolerance) is touched


def test_the_highest_point_in_the_image() -> None:
    heatmap = np.zeros((4, 4))
    heatmap[1, 2] = heatmap[3, 3] = 1
    assert faithfulness.highest_point(heatmap) == (2, 1)
    # A pixel of the map is 50 x 25 of the image's; the middle of columns 100 to 149 is 124.5.
    assert faithfulness.highest_point(heatmap, (200, 100)) == (124.5, 37)


@pytest.mark.parametrize("heatmap", [np.ones((3, 3)), np.array([[0, np.nan]]), np.array([[0, np.inf]])])
def test_a_map_that_says_nothing_points_nowhere(heatmap: np.ndarray) -> None:
    assert faithfulness.highest_point(heatmap) is None


def test_hits_are_averaged_over_classes() -> None:
    hits, classes = [True, True, True, False, False], ["cat", "cat", "cat", "cat", "dog"]
    assert faithfulness.pointing_accuracy(np.array(hits), np.array(classes)) == 0.375


# ----------------------------------------------------------------------------------------------- average drop, increase


def test_drop_and_increase_by_hand() -> None:
    before, after = np.array([0.8, 0.5, 0.2, 0.0]), np.array([0.6, 0.5, 0.4, 0.1])
    assert faithfulness.average_drop(before, after) == pytest.approx(0.25 / 4)
    assert faithfulness.increase_in_confidence(before, after) == 0.5


def test_an_image_is_shown_through_its_map() -> None:
    images = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)
    shown = faithfulness.shown_through(images, np.array([[[0, 1], [0.5, 0]]]))
    assert shown.tolist() == [[[[0, 1], [1, 0]], [[0, 5], [3, 0]], [[0, 9], [5, 0]]]]
    assert shown.dtype == np.float32


# -------------------------------------------------------------------------------------------------- insertion, deletion


def test_deletion_by_hand() -> None:
    image = np.full((1, 2, 2), 1, np.float32)
    heatmap = np.array([[0.1, 0.9], [0.5, 0.5]])
    seen: list[np.ndarray] = []

    def score(images: np.ndarray) -> np.ndarray:
        seen.extend(images)
        return mean_score(images)

    scores = faithfulness.deletion_scores(image, heatmap, 0, score, step=1, batch=2)
    assert scores.tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert [each[0].astype(int).tolist() for each in seen] == [
        [[1, 1], [1, 1]],
        [[1, 0], [1, 1]],
        [[1, 0], [0, 1]],  # of equal ones the first in reading order
        [[1, 0], [0, 0]],
        [[0, 0], [0, 0]],
    ]
    assert faithfulness.area_under(scores) == 0.5
    assert faithfulness.deletion_scores(image, heatmap, 0, score, step=3).tolist() == [1, 0.25, 0]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), step=st.integers(1, 40))
def test_insertion_is_algorithm_1_of_rise(seed: int, step: int) -> None:
    rng = np.random.default_rng(seed)
    image, heatmap = rng.random((3, 6, 5)).astype(np.float32), rng.random((6, 5))
    places = sorted(itertools.product(range(6), range(5)), key=lambda place: -heatmap[place])
    blurred = faithfulness.blurred(image)
    current, expected = blurred.copy(), []
    for begin in [*range(0, 30, step), None]:
        expected.append(mean_score(current[None])[0, 1])
        for y, x in places[begin : begin + step] if begin is not None else []:
            current[:, y, x] = image[:, y, x]
    found = faithfulness.insertion_scores(image, heatmap, 1, mean_score, step=step, batch=3)
    assert found == pytest.approx(expected, abs=1e-6)
    assert np.array_equal(current, image)


def test_a_row_at_a_time_if_nothing_is_said() -> None:
    image = np.zeros((3, 4, 7), np.float32)
    assert len(faithfulness.deletion_scores(image, np.zeros((4, 7)), 0, mean_score)) == 5
    assert len(faithfulness.insertion_scores(image, np.zeros((4, 7)), 0, mean_score)) == 5


def test_blurred_by_the_kernel_of_rise() -> None:
    """The kernel is a Gaussian filter's answer to an impulse in an 11 x 11 image; beyond the image there is 0."""
    image = np.random.default_rng(0).normal(0, 50, (3, 9, 14)).astype(np.float32)
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    kernel = gaussian_filter(impulse, 5)
    padded = np.pad(image.astype(np.float64), ((0, 0), (5, 5), (5, 5)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (11, 11), axis=(1, 2))
    assert faithfulness.blurred(image) == pytest.approx((windows * kernel).sum(axis=(3, 4)), abs=1e-4)


@pytest.mark.parametrize(("scores", "area"), [([1, 0], 0.5), ([0, 1, 1], 0.75), ([0.3], 0.0)])
def test_area(scores: list[float], area: float) -> None:
    assert faithfulness.area_under(np.array(scores)) == pytest.approx(area)


def test_a_step_of_nothing_is_an_error() -> None:
    with pytest.raises(CamrtError, match="found a step of -1 pixels"):
        faithfulness.deletion_scores(np.zeros((3, 4, 4), np.float32), np.zeros((4, 4)), 0, mean_score, step=-1)
    with pytest.raises(CamrtError, match="found a batch of 0"):
        faithfulness.deletion_scores(np.zeros((3, 4, 4), np.float32), np.zeros((4, 4)), 0, mean_score, batch=0)


# ----------------------------------------------------------------------------------------------------------------- ROAD


def dense(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Every removed pixel is the mean of its neighbours, weighted 2 beside it and 1 at the corners; solved at once."""
    height, width = removed.shape
    matrix, right = np.eye(height * width), np.array(image, np.float64).reshape(len(image), -1).T
    for y, x in zip(*np.nonzero(removed), strict=True):
        row = y * width + x
        around = [
            ((y + down) * width + x + across, 1 if down and across else 2)
            for down, across in itertools.product((-1, 0, 1), repeat=2)
            if (down or across) and 0 <= y + down < height and 0 <= x + across < width
        ]
        for place, weight in around:
            matrix[row, place] = -weight / sum(each for _, each in around)
        right[row] = 0
    return np.linalg.solve(matrix, right).T.reshape(image.shape)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 9), width=st.integers(2, 9), share=st.floats(0, 1))
def test_imputed_is_the_solution_of_the_dense_system(seed: int, height: int, width: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 1, (3, height, width)).astype(np.float32)
    removed = rng.random((height, width)) < share
    removed[rng.integers(height), rng.integers(width)] = False
    assert faithfulness.imputed(image, removed, noise=0) == pytest.approx(dense(image, removed), abs=1e-5)


def test_what_is_left_is_left_and_noise_is_the_same_again() -> None:
    rng = np.random.default_rng(4)
    image, removed = rng.normal(0, 1, (3, 40, 40)).astype(np.float32), rng.random((40, 40)) < 0.5
    quiet, noisy, again = (faithfulness.imputed(image, removed, noise=noise) for noise in (0, 0.01, 0.01))
    assert np.array_equal(noisy[:, ~removed], image[:, ~removed])
    assert np.array_equal(noisy, again)
    assert (noisy - quiet)[:, removed].std() == pytest.approx(0.01, rel=0.05)
    assert not np.array_equal(noisy, faithfulness.imputed(image, removed, seed=1))
    assert np.array_equal(faithfulness.imputed(image, np.zeros((40, 40), bool)), image)


def test_imputing_from_nothing_is_an_error() -> None:
    with pytest.raises(CamrtError, match="all pixels are removed"):
        faithfulness.imputed(np.zeros((3, 4, 4), np.float32), np.ones((4, 4), bool))
    with pytest.raises(CamrtError, match=r"a mask of \(4, 5\) for an image of \(3, 4, 4\)"):
        faithfulness.imputed(np.zeros((3, 4, 4), np.float32), np.ones((4, 5), bool))


def test_road_removes_the_most_or_the_least_relevant() -> None:
    rng = np.random.default_rng(8)
    image, heatmap = rng.normal(0, 1, (3, 10, 10)).astype(np.float32), rng.permutation(100).reshape(10, 10)
    for most_relevant in (True, False):
        images = faithfulness.road_images(image, heatmap, (0.2, 0.37), most_relevant=most_relevant)
        for found, count in zip(images, (20, 37), strict=True):
            went = heatmap >= 100 - count if most_relevant else heatmap < count
            assert np.array_equal((found != image).all(axis=0), went)
            assert np.array_equal((found != image).any(axis=0), went)


def test_road_by_hand() -> None:
    """The object is one bright pixel: where it goes, it is filled in from the dark around it."""
    image = np.zeros((1, 5, 5), np.float32)
    image[0, 2, 2] = 25
    heatmap = image[0] + np.arange(25).reshape(5, 5) / 100
    most = faithfulness.road_scores(image, heatmap, mean_score, (0.04, 0.2), noise=0)
    least = faithfulness.road_scores(image, heatmap, mean_score, (0.04, 0.2), most_relevant=False, noise=0)
    assert most == pytest.approx(np.array([[0, 1], [0, 1]]), abs=1e-6)
    assert least == pytest.approx(np.array([[1, 0], [1, 0]]), abs=1e-6)
    assert faithfulness.road(most[:, 0], least[:, 0]) == pytest.approx(0.5)


@pytest.mark.parametrize("fraction", [0, 1, -0.5, np.nan])
def test_fractions_lie_between(fraction: float) -> None:
    with pytest.raises(CamrtError, match="expected 0 < fraction < 1"):
        list(faithfulness.road_images(np.zeros((1, 4, 4), np.float32), np.zeros((4, 4)), (fraction,)))


# --------------------------------------------------------------------------------------------------- the published code


def test_pytorch_grad_cam_finds_the_same() -> None:
    """Its imputation, its ROAD and its change of confidence, where it is installed."""
    torch = pytest.importorskip("torch", reason="pytorch-grad-cam needs PyTorch")
    metrics = pytest.importorskip("pytorch_grad_cam.metrics.road", reason="pip install grad-cam")
    changes = pytest.importorskip("pytorch_grad_cam.metrics.cam_mult_image", reason="pip install grad-cam")
    rng = np.random.default_rng(5)
    images = rng.normal(0, 1, (2, 3, 20, 21)).astype(np.float32)
    heatmaps = np.stack([rng.permutation(420).reshape(20, 21) / 419 for _ in images]).astype(np.float32)
    weights = rng.normal(0, 0.1, (4, 3 * 420)).astype(np.float32)

    def score(some: np.ndarray) -> np.ndarray:
        logits = some.reshape(len(some), -1) @ weights.T
        return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    class Network(torch.nn.Module):
        def forward(self, some):
            return torch.from_numpy(score(some.numpy()))

    targets = [lambda output: output[1], lambda output: output[3]]
    given = torch.from_numpy(images), heatmaps, targets, Network()
    labels = [1, 3]
    before = score(images)[[0, 1], labels]
    after = score(faithfulness.shown_through(images, heatmaps))[[0, 1], labels]
    assert changes.CamMultImageConfidenceChange()(*given) == pytest.approx(after - before, abs=1e-6)
    left = torch.from_numpy((heatmaps[0] < 0.4).astype(np.float32))
    theirs = metrics.NoisyLinearImputer(0)(torch.from_numpy(images[0]), left).numpy()
    assert faithfulness.imputed(images[0], heatmaps[0] >= 0.4, noise=0) == pytest.approx(theirs, abs=1e-6)
    # Its percentiles split a multiple of ten values as camrt's fractions do.
    ours = [
        faithfulness.road(
            faithfulness.road_scores(image, heatmap, score, noise=0)[:, label],
            faithfulness.road_scores(image, heatmap, score, most_relevant=False, noise=0)[:, label],
        )
        for image, heatmap, label in zip(images, heatmaps, labels, strict=True)
    ]
    original = metrics.NoisyLinearImputer.__init__.__defaults__
    metrics.NoisyLinearImputer.__init__.__defaults__ = (0, *original[1:])
    try:
        assert ours == pytest.approx(metrics.ROADCombined()(*given).tolist(), abs=1e-6)
    finally:
        metrics.NoisyLinearImputer.__init__.__defaults__ = original
