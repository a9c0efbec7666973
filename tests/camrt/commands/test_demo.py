"""`camrt demo`: against the picture that the original .m files drew, and against OpenCV's importer."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat
from typer.testing import CliRunner

from camrt import images, matlab, render
from camrt.cli import app
from converters import zoo
from tests import tiny_cam as tiny
from tests.tiny_cam import opencv


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAMRT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["demo", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_without_arguments_a_picture_lies_on_disk(tmp_path: Path) -> None:
    """What OpenCV computes from lenetCAM's files, drawn by hand."""
    status, out, err = run()
    assert status == 0, err
    line, path = out.splitlines()
    labels = re.findall(r" --top\d:(.*?)(?= --|$)", line)
    assert line == "".join(f" --top{rank}:{label}" for rank, label in enumerate(labels, 1))
    assert path == str(tmp_path / "result.png")
    folder = zoo.models_folder() / "lenetCAM"
    net = cv2.dnn.readNetFromCaffe(str(folder / "deploy.prototxt"), str(folder / "lenetCAM.caffemodel"))
    canvas = np.repeat(pixels(folder / "sample.png")[..., None], 3, axis=2)
    net.setInput(canvas.transpose(2, 0, 1)[None].astype(np.float32))
    features, scores = net.forward(["CAM_soft", "prob"])
    order = np.argsort(-scores[0], kind="stable")
    assert [int(label) for label in labels] == order[:5].tolist()
    weights = net.getLayer(net.getLayerId("CAM_fc")).blobs[0].reshape(10, -1)[order[0]]
    small = np.tensordot(weights, features[0], 1).astype(np.float64)
    heatmap = np.abs(matlab.imresize(small, (100, 100)))
    large = images.resize(canvas.astype(np.uint8), (400, 400))
    drawn = pixels(Path(path))
    assert drawn.shape[0] > 420, "with captions"
    assert (drawn[400:] < 128).any(axis=(0, 2))[[*range(5, 60), *range(413, 470)]].any(), "that are written"
    drawn = drawn[:400]
    assert drawn.shape == (400, 808, 3)
    notes = ("features", "ONNX Runtime", "the method is")
    done, seen, after = [line for line in err.splitlines() if not any(note in line for note in notes)]
    assert done.startswith("lenetCAM")
    assert f"sees a {labels[0]} (" in seen
    assert "camrt explain" in after
    assert (drawn[:, :400] == large).all()
    assert (drawn[:, 400:408] == 255).all()
    overlay = render.demo_overlay(large, images.resize(heatmap.astype(np.float32), (400, 400))).astype(int)
    difference = np.abs(drawn[:, 408:] - overlay)
    assert (difference <= 1).mean() > 0.9, "all but the lines of boxes"
    boxes = json.loads(run("--json")[1])["boxes"]
    assert boxes
    lines = np.zeros((400, 400), bool)
    for x, y, width, height in 4 * np.array(boxes):
        lines[max(0, y - 4) : y + height + 5, max(0, x - 4) : x + width + 5] = True
        lines[y + 4 : y + height - 4, x + 4 : x + width - 4] = False
        assert (drawn[y, 408 + x + 8 : 408 + x + width - 8] == 255).all(), "its upper side"
    # A value between two of the 256 colours may fall on either side: then they differ by a step of jet.
    assert difference[~lines].max() <= 4


def test_the_demo_of_a_large_network_is_the_originals_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten crops of 224 pixels: OpenCV's features and the MATLAB code in NumPy draw the same."""
    model = tiny.named(tmp_path)
    monkeypatch.setattr(zoo, "models", lambda: {model.name: model})
    image = tiny.sample_image()
    Image.fromarray(image).save("mine.png")
    status, out, err = run("tinyCAM", "mine.png")
    assert status == 0, err
    features, scores = opencv(tmp_path, matlab.prepare_image(image, np.full(3, tiny.GREY)))
    classes, _ = matlab.top_classes(scores)
    assert out.splitlines()[0] == "".join(f" --top{rank}:{number}" for rank, number in enumerate(classes, 1))
    maps = matlab.demo_maps(matlab.return_cam_map(features, tiny.weights()["CAM_fc"][0][classes]))
    difference = np.abs(pixels(tmp_path / "result.png") - matlab.demo_result(image, maps))
    assert difference.shape == (256, 1576, 3)
    # A value between two of the 256 colours may fall on either side: then they differ by a step of jet.
    assert (difference <= 1).mean() > 0.995
    assert difference.max() <= 4


def test_handwriting_is_read(tmp_path: Path) -> None:
    """The sample of lenetCAM_mnist is a 5."""
    status, out, err = run("lenetCAM_mnist")
    assert status == 0, err
    assert out.startswith(" --top1:5 ")
    assert (tmp_path / "result.png").is_file()


def test_a_scene_is_named_with_the_released_categories(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unified prediction of Places, on a small network: what it says, and the names of categories_places205.mat."""
    model = dataclasses.replace(tiny.named(tmp_path), labels="places205")
    monkeypatch.setattr(zoo, "models", lambda: {model.name: model})
    image = tiny.sample_image()
    Image.fromarray(image).save("mine.png")
    folder = reference / "matlab_demo"
    status, out, err = run("--model", "tinyCAM", "mine.png", "--reference-dir", folder)
    assert status == 0, err
    _, scores = opencv(tmp_path, matlab.prepare_image(image, np.full(3, tiny.GREY)))
    classes, _ = matlab.top_classes(scores)
    stored = [str(row[0][0]) for row in loadmat(folder / "categories_places205.mat")["categories"]]
    names = [stored[number].removeprefix(f"/{stored[number][1]}/").replace("_", " ") for number in classes]
    top, categories, attributes, shown, picture = out.splitlines()
    assert top == "".join(f" --top{rank}:{stored[number]}" for rank, number in enumerate(classes, 1))
    said = [part.partition(" -> ")[2].replace(", ", "/") for part in re.split(r", (?=\d)", categories)]
    assert said == names
    assert attributes.startswith("scene attributes: none")
    assert names[0].replace("/", ", ") in shown
    assert Path(picture).is_file()
    status, out, _ = run("--model", "tinyCAM", "mine.png", "--reference-dir", folder, "--json")
    assert json.loads(out)["scene"]["category"] == names[0].replace("/", ", ")
    assert run("--model", "tinyCAM", "googlenetCAM", "mine.png")[0] == 2


def test_a_photograph_is_shown_where_a_network_knows_photographs(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights in the cache and img1.jpg; without either, and with weights that are broken, the digit alone."""
    model = dataclasses.replace(tiny.named(tmp_path), labels="imagenet")
    named = {**zoo.models(), model.name: model}
    monkeypatch.setattr(zoo, "models", lambda: named)
    monkeypatch.setitem(sys.modules, "skimage", None)  # its photographs
    reference = tmp_path / "reference"
    reference.mkdir()
    assert run("--reference-dir", reference)[0] == 0
    alone = pixels(tmp_path / "result.png")
    Image.fromarray(tiny.sample_image()).save(reference / "img1.jpg")
    status, _, err = run("--reference-dir", reference)
    assert status == 0, err
    both = pixels(tmp_path / "result.png")
    np.testing.assert_array_equal(both[: len(alone)], alone)
    assert len(both) > len(alone) + 100
    assert "below it a photograph" in err
    zoo.weights_path(model).write_bytes(b"broken")
    assert run("--reference-dir", reference)[0] == 0
    np.testing.assert_array_equal(pixels(tmp_path / "result.png"), alone)


def test_it_runs_offline_in_an_environment_of_its_own(tmp_path: Path, repository: Path) -> None:
    """As `make demo` does: a process without a network."""
    block = "import socket\nsocket.socket.connect = socket.create_connection = None\n"
    code = f"{block}from camrt.cli import main; main()"
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", "-o", "deep/picture.png"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(repository), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - began < 30
    assert Path(done.stdout.splitlines()[-1]) == tmp_path / "deep" / "picture.png"
    assert pixels(tmp_path / "deep" / "picture.png").shape[1:] == (808, 3)


@pytest.mark.parametrize("place", ["cache", "option"])
def test_cached_features_give_the_originals_picture(place: str, reference: Path, home: Path, tmp_path: Path) -> None:
    data = reference / "matlab_demo"
    options: list[object] = ["--reference-dir", data]
    if place == "cache":
        (home / "reference").mkdir(parents=True)
        (home / "reference" / "matlab_demo").symlink_to(data)
        options = []
    status, out, err = run("--cached", 1, *options)
    assert status == 0, err
    names = loadmat(data / "categories1000.mat")["categories"]
    classes = np.load(data / "expected_img1.npz")["top5_index0"]
    assert out.splitlines()[0] == "".join(f" --top{j}:{names[k][0][0]}" for j, k in enumerate(classes, 1))
    assert out.startswith(" --top1:n07930864 cup --top2:")
    with Image.open(data / "result_img1.png") as original:
        difference = np.abs(pixels(tmp_path / "result.png") - np.asarray(original.convert("RGB")).astype(int))
    assert difference.shape == (256, 1576, 3)
    assert (difference <= 1).mean() >= 0.999


def test_cached_image_2_as_json(reference: Path) -> None:
    status, out, err = run("--cached", 2, "--reference-dir", reference / "matlab_demo", "--json")
    assert status == 0, err
    facts = json.loads(out)
    data = loadmat(reference / "matlab_demo" / "data_img2.mat")
    mean = data["scores"].mean(axis=1)
    assert [one["class"] for one in facts["top"]] == np.argsort(-mean)[:5].tolist()
    np.testing.assert_allclose([one["score"] for one in facts["top"]], np.sort(mean)[::-1][:5], rtol=1e-5)
    assert facts["line"].startswith(" --top1:n03877845 palace")
    assert Path(facts["picture"]).exists()


def test_missing_reference_files_say_how_to_get_them(reference: Path, tmp_path: Path) -> None:
    status, _, err = run("--cached", 1)
    assert status == 1
    assert "camrt download --reference" in err
    assert "--reference-dir" in err
    some = tmp_path / "some"
    some.mkdir()
    shutil.copy(reference / "matlab_demo" / "data_img1.mat", some)
    shutil.copy(reference / "matlab_demo" / "data_net.mat", some)
    (some / "data_net.mat").chmod(0o600)
    (some / "data_net.mat").write_bytes(b"broken")
    status, _, err = run("--cached", 1, "--reference-dir", some)
    assert status == 1
    assert "data_net.mat" in err
    assert "Traceback" not in err
    assert not (tmp_path / "result.png").exists()


def test_an_explainer_and_an_image_of_ones_own(tmp_path: Path) -> None:
    from camrt.cli import app as cli

    assert CliRunner().invoke(cli, ["export", "lenetCAM", "-o", "mine.onnx"]).exit_code == 0
    shutil.copy(zoo.models_folder() / "lenetCAM" / "sample.png", "mine.png")
    assert run("mine.onnx", "mine.png", "-o", "a.png")[0] == 0
    assert run("-o", "b.png")[0] == 0
    assert (pixels(tmp_path / "a.png") == pixels(tmp_path / "b.png")).all()


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["--cached", "3"], 2, "--cached"),
        (["lenetCAM", "a.png", "--cached", "1"], 2, "--cached"),
        (["--preprocess", "caffe", "--cached", "1"], 2, "--cached"),
        (["missing.onnx", "--weights", "a.caffemodel"], 2, "--weights"),
        (["no-such-model"], 2, "Known:"),
        (["googlenetCAMM"], 2, "Did you mean"),
        (["photo.jpg"], 2, "the model comes first"),
        (["--nonsense"], 2, "nonsense"),
        (["lenetCAM", "missing.jpg"], 1, "missing.jpg: there is no such file"),
        (["missing.onnx"], 1, "missing.onnx"),
        (["--provider", "nonsense"], 1, "nonsense"),
        (["--provider", "cpu", "--precision", "tf32"], 1, "expected fp32"),
    ],
)
def test_what_is_wrong_is_a_line_and_a_status(arguments: list[str], status: int, word: str, tmp_path: Path) -> None:
    found, out, err = run(*arguments)
    assert found == status
    assert word in err
    assert not out
    assert not (tmp_path / "result.png").exists()


def test_the_image_is_not_overwritten(tmp_path: Path) -> None:
    Image.fromarray(tiny.sample_image()).save("mine.png")
    before = (tmp_path / "mine.png").read_bytes()
    status, _, err = run("lenetCAM", "mine.png", "-o", "mine.png")
    assert status == 2
    assert "is the image" in err
    assert (tmp_path / "mine.png").read_bytes() == before
