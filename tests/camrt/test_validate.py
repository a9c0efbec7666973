"""`camrt validate`: with seeded weights, of which real Caffe's answers are known, and with the released features."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat
from typer.testing import CliRunner

from camrt import CamrtError, matlab
from camrt import validate as validation
from camrt.cli import app
from converters import zoo
from tests import tiny_cam as tiny
from tests.seeded import SeededModel
from tests.tiny_cam import opencv


@pytest.fixture(scope="module")
def released(reference: Path) -> validation.Answers:
    return validation.released(reference / "matlab_demo")


def verdicts(report: validation.Report) -> dict[str, str]:
    return {check.name: check.verdict for check in report.checks}


# ------------------------------------------------------------------------------------------------------- references


def test_released_data_come_in_pythons_order(reference: Path, released: validation.Answers) -> None:
    folder = reference / "matlab_demo"
    image, net = loadmat(folder / "data_img1.mat"), loadmat(folder / "data_net.mat")
    x, y, channel, crop, k = 3, 11, 700, 6, 123
    assert released.features[crop, channel, y, x] == image["activation_lastconv"][x, y, channel, crop]
    assert released.weights[k, channel] == net["weights_LR"][channel, k]
    assert released.scores[crop, k] == image["scores"][0, 0, k, crop]
    expected = np.load(folder / "expected_img1.npz")
    assert matlab.top_classes(released.scores)[0].tolist() == expected["top5_index0"].tolist()


def test_scores_of_a_linear_layer_have_two_axes(reference: Path) -> None:
    second = validation.released(reference / "matlab_demo", 2)
    assert second.scores.shape == (10, 1000)
    np.testing.assert_allclose(second.scores.sum(axis=1), 1, atol=1e-4)


def test_released_scores_follow_from_features_and_weights(released: validation.Answers) -> None:
    """As the reference's note says: up to a constant for each class, the bias. So the data are of one run."""
    logits = released.features.mean(axis=(2, 3)) @ released.weights.T
    rest = np.log(released.scores) - logits
    rest -= rest.mean(axis=1, keepdims=True)
    assert np.abs(rest - rest.mean(axis=0)).max() < 2e-3


def test_reference_files_of_both_kinds(tmp_path: Path) -> None:
    scores, features = np.eye(10, 7, dtype=np.float32), np.ones((10, 4, 3, 2), np.float32)
    np.savez(tmp_path / "a.npz", scores=scores, features=features, other=np.array(["text"]))
    savemat(tmp_path / "a.mat", {"scores": scores.T, "activation_lastconv": features.T, "other": "text"})
    for name in ("a.npz", "a.mat"):
        found = validation.read_reference(tmp_path / name)
        assert (found.scores == scores).all()
        assert (found.features == features).all()
        assert found.weights is None


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("missing.npz", None, "there is no such file"),
        ("broken.npz", b"PK\3\4 not a zip", "cannot be read"),
        ("broken.mat", b"nothing", "cannot be read"),
        ("empty.npz", b"", "cannot be read"),
    ],
)
def test_broken_reference_files(tmp_path: Path, name: str, content: bytes | None, expected: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CamrtError, match=expected) as caught:
        validation.read_reference(tmp_path / name)
    assert name in str(caught.value)


def test_a_reference_without_answers_or_without_numbers(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", something=np.ones(3))
    with pytest.raises(CamrtError, match="expected any of features"):
        validation.read_reference(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", scores=np.array(["one"]))
    with pytest.raises(CamrtError, match="expected numbers"):
        validation.read_reference(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", scores=np.array([{}], object))  # a pickle is not opened
    with pytest.raises(CamrtError, match="cannot be read"):
        validation.read_reference(tmp_path / "c.npz")


# -------------------------------------------------------------------------------------------------------- comparing


ORDER = [0, 2, 1, 3, 4, 5, 7, 6, 8, 9]


def perfect(answers: validation.Answers) -> validation.Answers:
    """What a network gives that agrees with image 1's released answers, on crops as prepare_image.m cuts them."""
    return dataclasses.replace(answers, source="ours", features=answers.features[ORDER], scores=answers.scores[ORDER])


def test_a_perfect_network_passes_against_the_released_image_1(released: validation.Answers) -> None:
    report = validation.compare(perfect(released), released)
    assert verdicts(report) == dict.fromkeys(("features", "weights", "scores"), "same")
    assert report.passed
    assert report.order == report.as_dict()["crop_order"] == "exchanged"
    assert "1 and 2" in report.note
    assert report.note == report.as_table().caption
    other = validation.compare(released, released)  # a network whose crops are in the file's order cuts them wrongly
    assert verdicts(other) == {"features": "DIFFERS", "weights": "same", "scores": "DIFFERS"}


def test_image_2_has_the_order_of_prepare_image(reference: Path) -> None:
    second = validation.released(reference / "matlab_demo", 2)
    report = validation.compare(second, second)
    assert (report.passed, report.order, report.note) == (True, "prepare_image", "")
    assert not validation.compare(perfect(second), second).passed


@pytest.mark.parametrize(("crop", "cells"), [(224, 14), (227, 11), (224, 7)])
def test_crop_order_of_a_photograph(crop: int, cells: int, reference: Path) -> None:
    """Block means of the crops themselves stand for features: what they show moves with them."""
    from camrt import images

    for photo in ("img1.jpg", "img2.jpg", "test.jpg"):
        cut = validation.crops_of(images.decode(reference / "matlab_demo" / photo), np.full(3, 120.0), crop)
        side = crop // cells
        blocks = cut[:, :, : side * cells, : side * cells].reshape(10, 3, cells, side, cells, side).mean(axis=(3, 5))
        assert validation.crop_order(blocks) == "prepare_image", photo
        assert validation.crop_order(blocks[ORDER]) == "exchanged", photo


@pytest.mark.parametrize(
    "features",
    [
        np.random.default_rng(0).normal(size=(10, 64, 14, 14)),  # nothing moves
        np.ones((10, 3, 14, 14)),
        np.full((10, 3, 14, 14), np.nan),
        np.random.default_rng(0).normal(size=(10, 64, 3, 3)),
        np.ones((4, 3, 14, 14)),
        np.ones((10, 3)),
    ],
    ids=["noise", "constant", "no-numbers", "small", "four", "flat"],
)
def test_order_that_cannot_be_told(features: np.ndarray) -> None:
    assert validation.crop_order(features) == "unknown"
    answers = validation.Answers("", features=features)
    assert "cannot be told" in validation.compare(answers, answers).note


def test_samples_and_maps_follow_the_order(reference: Path, released: validation.Answers) -> None:
    """The maps are Octave's, made of the released features; the places of a sample count in the reference."""
    expected = np.load(reference / "matlab_demo" / "expected_img1.npz")
    places = np.random.default_rng(0).integers(0, released.features.size, 4096)
    answers = dataclasses.replace(
        released, cams=expected["cams"], top=expected["top5_index0"],
        sample_index=places, sample_value=released.features.ravel()[places],
    )  # fmt: skip
    report = validation.compare(perfect(released), answers)
    names = ("features", "features, a sample", "weights", "scores", "maps")
    assert verdicts(report) == dict.fromkeys(names, "same")
    maps = report.checks[-1]
    assert 0 < maps.difference < 1e-4 * maps.largest


@pytest.mark.parametrize(("noise", "verdict"), [(1e-6, "same"), (1e-3, "close"), (1e-1, "DIFFERS")])
def test_verdicts_follow_the_size_of_the_difference(noise: float, verdict: str) -> None:
    generator = np.random.default_rng(0)
    reference = generator.uniform(-1, 1, (10, 50))
    reference.flat[0] = 1
    report = validation.check("x", reference + generator.uniform(-noise, noise, reference.shape), reference)
    assert report.verdict == verdict
    assert report.difference == pytest.approx(noise, rel=0.05)


def test_a_difference_of_scale_alone_differs() -> None:
    """The cosine does not see it, the largest difference does."""
    reference = np.arange(1, 50.0)
    check = validation.check("x", 1.2 * reference, reference)
    assert check.cosine == pytest.approx(1)
    assert check.verdict == "DIFFERS"


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (np.ones((2, 3)), np.ones((3, 2))),
        (np.array([1, np.nan]), np.ones(2)),
        (np.ones(2), np.array([1, np.inf])),
        (np.zeros(3), np.ones(3)),
    ],
)
def test_what_cannot_agree_differs(ours: np.ndarray, reference: np.ndarray) -> None:
    check = validation.check("x", ours, reference)
    assert check.verdict == "DIFFERS"
    json.dumps(check.as_dict(), allow_nan=bool(np.isinf(reference).any()))


def test_other_best_classes_are_not_close() -> None:
    scores = np.full((10, 8), 0.1)
    scores[:, 0] = 0.9
    close = scores.copy()
    close[:, 1:4] += 1e-6
    close[:, 5:] += 2e-6
    report = validation.compare(validation.Answers("", scores=close), validation.Answers("", scores=scores))
    (check,) = report.checks
    assert check.common == (4, 5) or check.common < (4, 5)
    assert check.verdict == ("same" if check.difference < 1e-4 else "DIFFERS")
    swapped = validation.check("scores", scores * (1 + 1e-3), scores, common=(2, 5))
    assert swapped.verdict == "DIFFERS"


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(CamrtError, match="holds nothing to compare with"):
        validation.compare(validation.Answers(""), validation.Answers("file"))


def test_a_report_without_a_comparison_does_not_pass() -> None:
    maps = validation.Answers("", cams=np.ones((10, 5, 2, 2)))
    ours = validation.Answers("", features=np.ones((10, 3, 2, 2)), weights=np.ones((5, 3)))
    report = validation.compare(ours, maps)
    assert verdicts(report) == {"maps": "not compared"}
    assert not report.passed


# ----------------------------------------------------------------------------------------------------- the command


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["validate", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def tiny_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """What OpenCV says of tinyCAM, which gets a name here, and the image."""
    from PIL import Image

    model = tiny.named(tmp_path)
    monkeypatch.setattr(zoo, "models", lambda: {model.name: model})

    image = tmp_path / "sample.png"
    Image.fromarray(tiny.sample_image()).save(image)
    features, scores = opencv(tmp_path, matlab.prepare_image(tiny.sample_image(), np.full(3, tiny.GREY)))
    np.savez(tmp_path / "answers.npz", features=features, scores=scores, weights=tiny.weights()["CAM_fc"][0])
    return tmp_path / "answers.npz", image


def test_a_reference_of_ones_own(tiny_reference: tuple[Path, Path]) -> None:
    file, image = tiny_reference
    status, out, err = run("tinyCAM", "--reference", file, "--image", image, "--json")
    assert status == 0, err
    report = json.loads(out)
    assert report["passed"]
    assert [(one["name"], one["verdict"]) for one in report["checks"]] == [
        ("features", "same"),
        ("weights", "same"),
        ("scores", "same"),
    ]
    assert report["checks"][2]["common"] == [5, 5]


def test_other_answers_differ(tiny_reference: tuple[Path, Path], tmp_path: Path) -> None:
    file, image = tiny_reference
    with np.load(file) as archive:
        np.savez(tmp_path / "other.npz", scores=archive["scores"][:, ::-1], weights=archive["weights"])
    status, out, _ = run("tinyCAM", "--reference", tmp_path / "other.npz", "--image", image)
    assert status == 1
    assert "DIFFERS" in out
    assert "same" in out


def test_usage_and_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMRT_HOME", str(tmp_path))
    assert run("nonsense")[0] == 2
    (tmp_path / "weights.caffemodel").write_bytes(bytes(40_000_000))
    status, _, err = run("googlenetCAM", "--weights", tmp_path / "weights.caffemodel")
    assert status == 1
    assert "camrt download --reference" in err
    status, _, err = run("googlenetCAM", "--weights", tmp_path / "nothing")
    assert status == 1
    assert "there is no such file" in err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16CAM", "alexnetplusCAM"])
def test_seeded_weights_give_real_caffes_answers(name: str, reference: Path, tmp_path: Path) -> None:
    """Weights drawn by a seed: Caffe's scores, maps and a sample of its features on img1."""
    folder = reference / "nets" / name
    seeded = SeededModel.of_table(json.loads((folder / "shapes.json").read_text()))
    weights = seeded.write(tmp_path / "seeded.caffemodel", v1=True)
    status, out, err = run(
        name, "--weights", weights, "--reference", folder / "expected.npz",
        "--reference-dir", reference / "matlab_demo", "--json",
    )  # fmt: skip
    assert status == 0, out + err
    report = json.loads(out)
    assert {one["name"]: one["verdict"] for one in report["checks"]} == dict.fromkeys(
        ("features, a sample", "scores", "maps"), "same"
    )


@pytest.mark.slow
def test_googlenet_with_other_weights_is_found_out(reference: Path, tmp_path: Path) -> None:
    """The released features, and a googlenetCAM of random weights: all of it differs, and the status says so."""
    from converters.reader import parse_prototxt

    model = zoo.find("googlenetCAM")
    network = parse_prototxt(model.prototxt(), "googlenetCAM.prototxt").message
    weights = SeededModel.of_network(network, 1).write(tmp_path / "seeded.caffemodel")
    status, out, err = run("googlenetCAM", "--weights", weights, "--reference-dir", reference / "matlab_demo", "--json")
    assert status == 1, out + err
    report = json.loads(out)
    assert {one["name"]: one["verdict"] for one in report["checks"]} == dict.fromkeys(
        ("features", "weights", "scores"), "DIFFERS"
    )
    assert [tuple(one["shape"]) for one in report["checks"]] == [(10, 1024, 14, 14), (1000, 1024), (10, 1000)]


@pytest.mark.slow
def test_without_a_reference_opencv_is_asked(tmp_path: Path) -> None:
    from converters.reader import parse_prototxt

    model = zoo.find("alexnetplusCAM_places205")
    network = parse_prototxt(model.prototxt(), "net.prototxt").message
    weights = SeededModel.of_network(network, 2).write(tmp_path / "seeded.caffemodel")
    status, out, err = run("alexnetplusCAM_places205", "--weights", weights)
    assert status == 0, out + err
    assert "OpenCV 4" in out
    assert "same" in out
