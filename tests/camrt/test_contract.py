"""A named model, the converted file and the exported explainer give the same answers, bit by bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from scipy.io import savemat
from typer.testing import CliRunner

from camrt import Explainer, Explanation, matlab
from camrt.cli import app
from converters import metadata, zoo
from tests import tiny_cam as tiny


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """tinyCAM, as a named model that subtracts a mean image where that is in the cache."""
    home = tmp_path / "home"
    monkeypatch.setenv("CAMRT_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net").mkdir()
    model = tiny.named(tmp_path / "net")
    wants = dataclasses.replace(model.preprocessing, mean_image="data/mean.mat")
    model = dataclasses.replace(model, preprocessing=wants, protocol="center")
    monkeypatch.setattr(zoo, "models", lambda: {tiny.NAME: model})
    return tiny.NAME


def save_mean(home: Path) -> np.ndarray:
    """A mean image of MATLAB: (width, height, BGR)."""
    y, x = np.mgrid[:256, :256]
    mean = np.stack([90 + x / 4, 100 + y / 5, 140 - (x + y) / 8], axis=2).astype(np.float32)
    (home / "reference" / "data").mkdir(parents=True)
    savemat(home / "reference" / "data" / "mean.mat", {"mean_data": mean.transpose(1, 0, 2)})
    return mean


def run(*arguments: str) -> None:
    done = CliRunner().invoke(app, [*arguments])
    assert done.exit_code == 0, done.stderr


def same(one: Explanation, other: Explanation) -> None:
    for field in ("classes", "scores", "heatmaps", "all_scores"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    assert one.labels == other.labels


@pytest.mark.parametrize("with_image", [True, False])
def test_one_network_gives_one_answer(with_image: bool, name: str, tmp_path: Path) -> None:
    image = tiny.sample_image()
    mean = save_mean(tmp_path / "home") if with_image else np.full((256, 256, 3), float(tiny.GREY), np.float32)
    named = Explainer(name)
    expected = named(image)
    run("convert", name, "-o", "converted.onnx")
    run("export", name, "-o", "exported.onnx")
    run("export", "converted.onnx", "-o", "twice.onnx")
    if with_image:
        (tmp_path / "home" / "reference" / "data" / "mean.mat").unlink()  # the files carry it
    for file in ("converted.onnx", "exported.onnx", "twice.onnx"):
        explainer = Explainer(file)
        assert (explainer.name, explainer.protocol, explainer.size) == (name, "center", 256)
        same(explainer(image), expected)
    assert (metadata.MEAN_IMAGE in metadata.of_file(Path("converted.onnx"))) is with_image
    assert metadata.MEAN_IMAGE not in metadata.of_file(Path("exported.onnx"))
    # And it is the answer: that of the network on the crop that the MATLAB code makes.
    crop = matlab.prepare_image(image, mean)[4]
    import onnxruntime

    session = onnxruntime.InferenceSession("converted.onnx", providers=["CPUExecutionProvider"])
    (scores,) = session.run(["prob"], {"data": np.repeat(crop[None], 1, axis=0)})
    np.testing.assert_allclose(expected.all_scores, scores[0], atol=1e-6)


def test_the_mean_image_and_the_mean_pixel_are_not_the_same(name: str, tmp_path: Path) -> None:
    without = Explainer(name)(tiny.sample_image())
    save_mean(tmp_path / "home")
    assert np.abs(Explainer(name)(tiny.sample_image()).all_scores - without.all_scores).max() > 1e-3


def test_the_bundled_network_gives_one_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its labels and its own protocol."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAMRT_HOME", str(tmp_path / "home"))
    image = zoo.models_folder() / "lenetCAM" / "sample.png"
    run("convert", "lenetCAM", "-o", "converted.onnx")
    run("export", "lenetCAM", "-o", "exported.onnx")
    expected = Explainer("lenetCAM")(image)
    for file in ("converted.onnx", "exported.onnx"):
        same(Explainer(file)(image), expected)
    converted, exported = metadata.of_file(Path("converted.onnx")), metadata.of_file(Path("exported.onnx"))
    for key in metadata.KEYS:
        if key != metadata.EXPLAINER:
            assert converted.get(key) == exported.get(key), key
    assert metadata.explainer_of(exported) == metadata.explainer_of(metadata.of_model(onnx.load("exported.onnx")))
