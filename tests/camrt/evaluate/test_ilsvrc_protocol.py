"""`camrt evaluate ilsvrc` from images to the table, and what happens when it is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from camrt import CamrtError, Explainer
from camrt.commands.evaluate import progress
from camrt.evaluate import ilsvrc_protocol
from camrt.evaluate.datasets import find_images, read_ilsvrc
from camrt.evaluate.devkit import read_submission
from camrt.evaluate.ilsvrc import rankings
from camrt.evaluate.ilsvrc_protocol import BoxRule
from camrt.evaluate.journal import Journal, Shard
from camrt.evaluate.network import Network
from tests import tiny_cam
from tests.camrt.evaluate.shapes import NUMBERS, Shapes, evaluate, journal_lines, write_shapes
from tests.tiny_models import LABELS, tiny_classifier, tiny_explainer

SHAPES = 8


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An explainer of a few numbers, which takes a millisecond."""
    path = tmp_path_factory.mktemp("models") / "fast.onnx"
    onnx.save(tiny_explainer(), path)
    return path


@pytest.fixture
def shapes(tmp_path: Path) -> Shapes:
    return write_shapes(tmp_path / "shapes", SHAPES)


@pytest.fixture
def numbered(tmp_path: Path) -> Shapes:
    """Shapes whose classes are called as those of the fast explainer."""
    return write_shapes(tmp_path / "numbered", 12, labels=LABELS)


def run(*arguments: object) -> tuple[int, str, str]:
    return evaluate("ilsvrc", *arguments)


# ------------------------------------------------------------------------------------------ from images to a table


def test_from_images_to_the_table(shapes: Shapes, tiny: Path, tmp_path: Path) -> None:
    out, kept = tmp_path / "out", tmp_path / "maps"
    options = [*shapes.options, "--model", tiny, "--out", out, "--workers", 0, "--heatmaps", kept]
    code, stdout, _ = run(*options, "--json")
    assert code == 0
    facts = json.loads(stdout)
    assert (facts["images"], facts["blacklisted"], facts["failed"]) == (SHAPES, 0, [])
    # The network is certain of each; its boxes are too large (bbox1) or fit (bbox2).
    assert facts["rankings"]["bbox1"]["classification"] == [0] * 5
    assert facts["rankings"]["bbox2"]["localization"] == [0] * 5
    assert facts["maps"]["without_boxes"] > 0

    # The same, step by step, from maps that are computed one by one.
    explainer, rule = Explainer(tiny), BoxRule()
    classes, boxes = np.zeros((SHAPES, 5), int), np.zeros((SHAPES, 5, 2, 4))
    for place, name in enumerate(shapes.names):
        found = explainer(shapes.images / f"{name}.jpg")
        height, width = found.image.shape[:2]
        for rank in range(5):
            with Image.open(kept / f"top{rank + 1}" / f"{name}.jpg") as image:
                levels = np.asarray(image)
            assert np.abs(levels / 255 - found.heatmap(rank)).max() < 0.08  # JPEG
            corners = rule.corners(levels)
            whole = [[1, 1, width, height]] * 2
            boxes[place, rank] = [*corners, *corners][:2] if len(corners) == 1 else [*corners, *whole][:2]
        classes[place] = [NUMBERS[label] for label in found.labels]
    for name, expected in rankings(classes, boxes).items():
        np.testing.assert_array_equal(read_submission(out / f"{name}.txt"), expected)

    # A second run has nothing to do; the submission counts as the run does; and the table says the same.
    before = (out / "guesses.jsonl").read_bytes()
    code, stdout, stderr = run(*options)
    assert code == 0
    assert "all 8 images were done before" in stderr
    assert (out / "guesses.jsonl").read_bytes() == before
    assert f"{100 * facts['rankings']['bbox1']['localization'][0]:.2f}" in stdout
    files = ["--annotations", shapes.xml, "--ground-truth", shapes.truth]
    for name, found in facts["rankings"].items():
        code, stdout, _ = run(*files, "--submission", out / f"{name}.txt", "--json")
        assert json.loads(stdout)["rankings"]["submission"] == found


def test_the_paper_s_boxes_and_no_loss(shapes: Shapes, tiny: Path, tmp_path: Path) -> None:
    options = [
        *shapes.options,
        "--model",
        tiny,
        "--protocol",
        "center",
        "--out",
        tmp_path / "out",
        "--workers",
        0,
        "--json",
    ]
    code, stdout, _ = run(*options, "--boxes", "threshold", "--fraction", 0.5, "--encoding", "png")
    facts = json.loads(stdout)
    assert (code, facts["rankings"]["bbox1"]["localization"]) == (0, [0] * 5)
    assert facts["maps"]["with_one_box"] == SHAPES
    code, _, stderr = run(*options)
    assert code == 1
    assert "boxes: found 'threshold', expected 'dt'" in stderr


def test_blacklist_and_first(shapes: Shapes, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "blacklist.txt").write_text("2\n7\n")
    options = [
        *shapes.options,
        "--model",
        tiny,
        "--protocol",
        "center",
        "--out",
        tmp_path / "out",
        "--workers",
        0,
        "--json",
    ]
    code, stdout, _ = run(*options, "--first", 5, "--blacklist", tmp_path / "blacklist.txt")
    facts = json.loads(stdout)
    assert (code, facts["images"], facts["blacklisted"], len(journal_lines(tmp_path / "out"))) == (0, 5, 1, 5)
    code, stdout, _ = run(*options)
    assert (code, json.loads(stdout)["images"], len(journal_lines(tmp_path / "out"))) == (0, 8, 8)


def test_preprocessing_of_a_model_that_does_not_state_it(shapes: Shapes, tmp_path: Path) -> None:
    model = tiny_cam.convert()
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key != "camrt.preprocess"}
    onnx.helper.set_model_props(model, kept)
    onnx.save(model, tmp_path / "bare.onnx")
    out = tmp_path / "out"
    options = [*shapes.options, "--model", tmp_path / "bare.onnx", "--protocol", "center", "--out", out, "--workers", 0]
    code, _, stderr = run(*options)
    assert code == 1
    assert "--preprocess caffe or torchvision" in stderr
    code, _, stderr = run(*options, "--preprocess", "caffe")
    assert code == 0, stderr
    explainer = Explainer(tmp_path / "bare.onnx", protocol="center", preprocess="caffe")
    for line in journal_lines(out):
        found = explainer(shapes.images / f"{line['image']}.jpg")
        assert line["found"]["classes"] == found.classes.tolist()
        assert line["found"]["scores"] == pytest.approx(found.scores.tolist(), rel=1e-5)
    code, _, stderr = run(*options, "--preprocess", "torchvision")
    assert code == 1
    assert "preprocess: found 'caffe', expected 'torchvision'" in stderr


def test_a_class_has_the_number_of_its_name(shapes: Shapes, tiny: Path, tmp_path: Path) -> None:
    """Without --meta the annotations' names and the ground truth say it, as far as all classes are there."""
    options = [*shapes.options[:-2], "--model", tiny, "--out", tmp_path / "out", "--workers", 0]
    code, _, stderr = run(*options)
    assert code == 1
    assert "the network has 6 classes, and 4 have a number" in stderr
    assert journal_lines(tmp_path / "out") == []  # before the first image is paid for


# ------------------------------------------------------------------------------------------ what is not there


def test_missing_and_broken_images_count_as_wrong(shapes: Shapes, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = [*shapes.options, "--model", tiny, "--protocol", "center", "--out", out, "--workers", 0, "--json"]
    whole = (shapes.images / "shape_00002.jpg").read_bytes()
    (shapes.images / "shape_00002.jpg").write_bytes(whole[:300])
    third = shapes.images / "shape_00003.jpg"
    third.rename(tmp_path / "aside.jpg")
    Image.new("RGB", (50, 60)).save(shapes.images / "shape_00004.jpg")
    for _ in range(2):  # the second run tries again, and says the same
        code, stdout, stderr = run(*options)
        facts = json.loads(stdout)
        assert code == 1
        assert "3 of 8 images could not be read; they count as wrong" in stderr
        failed = {entry["image"]: entry["reason"] for entry in facts["failed"]}
        assert set(failed) == {"shape_00002", "shape_00003", "shape_00004"}
        assert "truncated" in failed["shape_00002"]
        assert "there is no such image" in failed["shape_00003"]
        assert "the image has 50 x 60 pixels, and its annotation is of one of" in failed["shape_00004"]
        assert facts["rankings"]["bbox2"]["classification"] == [3 / 8] * 5
        assert facts["rankings"]["bbox2"]["localization"] == [3 / 8] * 5
        assert not read_submission(out / "bbox1.txt")[1:4].any()
        assert len(journal_lines(out)) == 8
    (shapes.images / "shape_00002.jpg").write_bytes(whole)
    (tmp_path / "aside.jpg").rename(third)
    code, stdout, _ = run(*options)
    assert [entry["image"] for entry in json.loads(stdout)["failed"]] == ["shape_00004"]
    assert json.loads(stdout)["rankings"]["bbox2"]["localization"] == [1 / 8] * 5


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_measured_does_not_stop_the_others(fast: Path, tmp_path: Path, workers: int) -> None:
    """A map wider than a JPEG can be is found out in the process of the boxes."""
    numbered = write_shapes(tmp_path / "numbered", 3, labels=LABELS)
    (numbered.images / "shape_00002.jpg").unlink()
    Image.new("RGB", (70_000, 3)).save(numbered.images / "shape_00002.png")
    code, stdout, _ = run(
        *numbered.options, "--model", fast, "--out", tmp_path / "out", "--workers", workers, "--json"
    )  # fmt: skip
    failed = json.loads(stdout)["failed"]
    assert (code, [each["image"] for each in failed]) == (1, ["shape_00002"])
    assert "cannot be written as JPEG" in failed[0]["reason"]
    assert len([line for line in journal_lines(tmp_path / "out") if "found" in line]) == 2


def test_a_folder_for_maps_that_cannot_be_made_stops_the_run(shapes: Shapes, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, stderr = run(
        *shapes.options, "--model", tiny, "--out", tmp_path / "out", "--heatmaps", tmp_path / "file" / "maps"
    )  # fmt: skip
    assert code == 1
    assert "maps: cannot be written to" in stderr
    assert journal_lines(tmp_path / "out") == []


def test_nothing_can_be_read(shapes: Shapes, tiny: Path, tmp_path: Path) -> None:
    for file in shapes.images.iterdir():
        file.write_bytes(b"no image")
    code, stdout, _ = run(
        *shapes.options, "--model", tiny, "--protocol", "center", "--out", tmp_path / "out", "--workers", 0, "--json"
    )
    facts = json.loads(stdout)
    assert (code, len(facts["failed"])) == (1, 8)
    assert facts["rankings"]["bbox1"] == {"localization": [1] * 5, "classification": [1] * 5}


def test_pixels_are_taken_as_they_are_stored(shapes: Shapes, tiny: Path, tmp_path: Path) -> None:
    """MATLAB's imread does not turn an image, and the boxes belong to what is stored."""
    path = shapes.images / "shape_00001.jpg"
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.load()
        size = image.size
        image.save(path, exif=exif, quality=95)
    assert size[0] != size[1]
    code, stdout, _ = run(
        *shapes.options, "--model", tiny, "--protocol", "center", "--out", tmp_path / "out", "--workers", 0, "--json"
    )
    assert (code, json.loads(stdout)["rankings"]["bbox2"]["localization"]) == (0, [0] * 5)


# ------------------------------------------------------------------------------------------ stopped, shared, merged


def expected_of(numbered: Shapes, fast: Path, out: Path) -> dict[str, str]:
    """The submissions of a run that nobody stopped."""
    code, _, _ = run(*numbered.options, "--model", fast, "--out", out, "--workers", 0)
    assert code == 0
    return submissions(out)


def submissions(out: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in out.glob("*.txt")}


@pytest.mark.slow
def test_killed_and_started_again(fast: Path, tmp_path: Path, repository: Path) -> None:
    many = write_shapes(tmp_path / "many", 120, labels=LABELS)
    wanted = expected_of(many, fast, tmp_path / "whole")
    out = tmp_path / "killed"
    options = [*many.options, "--model", fast, "--out", out, "--workers", 1]
    code = "from camrt.cli import main\nif __name__ == '__main__':\n    main()\n"
    script = tmp_path / "camrt.py.run"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    command = [sys.executable, str(script), "evaluate", "ilsvrc", *map(str, options)]
    done = 0
    for how in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and (lines_of(out) < done + 12) and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(how)
        process.wait(60)
        assert done < lines_of(out) < len(many.names)
        done = lines_of(out)
    code_of_exit, _, _ = run(*options)
    assert code_of_exit == 0
    images = [str(line["image"]) for line in journal_lines(out)]
    assert sorted(images) == sorted(many.names)  # none is lost, none is there twice
    assert submissions(out) == wanted


def lines_of(out: Path) -> int:
    """How many whole lines the journal has, without its head."""
    file = out / "guesses.jsonl"
    return max(file.read_bytes().count(b"\n") - 1, 0) if file.exists() else 0


def test_shards_and_merge(numbered: Shapes, fast: Path, tmp_path: Path) -> None:
    wanted = expected_of(numbered, fast, tmp_path / "whole")
    out = tmp_path / "out"
    options = [*numbered.options, "--model", fast, "--out", out, "--workers", 0]
    merge = [*numbered.options[2:], "--out", out, "--merge"]
    code, stdout, _ = run(*options, "--shard", "2/2")
    assert (code, stdout.strip()) == (
        0,
        "shard 2/2 is done; 6 images of other shards are left. When they are done: --merge",
    )
    code, stdout, _ = run(*options, "--shard", "2/2", "--json")
    assert json.loads(stdout) == {"shard": "2/2", "left": 6, "out": str(out)}
    code, _, stderr = run(*merge)
    assert code == 1
    assert "has no result for 6 of the 12 images, the first of which is 'shape_00001'" in stderr
    code, stdout, _ = run(*options, "--shard", "1/2")  # the last one counts
    assert (code, submissions(out)) == (0, wanted)
    for file in out.glob("*.txt"):
        file.unlink()
    code, stdout, _ = run(*merge)
    assert (code, submissions(out)) == (0, wanted)
    assert "bbox1, localization" in stdout
    assert len(journal_lines(out)) == 12


def test_from_python(numbered: Shapes, fast: Path, tmp_path: Path) -> None:
    data = read_ilsvrc(numbered.xml, numbered.truth, meta=numbered.mapping)
    files = find_images(numbered.images, data.names)
    model = Network(str(fast))
    for number in (1, 2, 3):
        images = {name: files.get(name) for name in data.names}
        assert ilsvrc_protocol.guess(images, tmp_path, model, BoxRule(), shard=Shard(number, 3), workers=0) == 4
        assert ilsvrc_protocol.missing(data, tmp_path) == 12 - 4 * number
    errors = ilsvrc_protocol.count(data, tmp_path)
    assert errors.predictions["bbox1"].shape == (12, 25)
    assert errors.ran == {"CPUExecutionProvider fp32": 12}
    assert 0 < errors.localization["bbox1"][4] <= errors.localization["bbox1"][0] <= 1


def test_a_damaged_record(numbered: Shapes, fast: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    expected_of(numbered, fast, out)
    merge = [*numbered.options[2:], "--out", out, "--merge"]
    text = (out / "guesses.jsonl").read_text()
    for before, after, message in (
        ('"classes": [', '"classes": [1, 2, ', "the journal's line of 'shape_00001' is damaged"),
        ('"boxes": [', '"boxes": [[], ', "the journal's line of 'shape_00001' is damaged"),
        ('"found": {', '"found": {"no": 1}, "x": {', "the journal's line of 'shape_00001' is damaged"),
        ('"classes": [', '"classes": [700, ', "damaged"),
    ):
        head, rest = text.split("\n", 1)
        (out / "guesses.jsonl").write_text(head + "\n" + rest.replace(before, after, 1))
        code, _, stderr = run(*merge)
        assert (code, message in stderr) == (1, True), stderr
    (out / "guesses.jsonl").write_text(text)
    for content in (None, "{}", "[", '{"classes": 7, "labels": ["a"]}'):
        (out / "model.json").unlink(missing_ok=True)
        if content is not None:
            (out / "model.json").write_text(content)
        code, _, stderr = run(*merge)
        assert code == 1
        assert "error: " in stderr


def test_started_twice(numbered: Shapes, fast: Path, tmp_path: Path) -> None:
    options = [*numbered.options, "--model", fast, "--out", tmp_path / "out", "--workers", 0]
    model = Network(str(fast))
    with Journal(tmp_path / "out", ilsvrc_protocol.JOURNAL, {**model.settings(None), **BoxRule().settings}):
        code, _, stderr = run(*options)
        assert (code, "guesses.jsonl: another run writes it" in stderr) == (1, True), stderr
        code, stdout, _ = run(*options, "--shard", "1/2")  # which has a file of its own
        assert (code, "6 images of other shards are left" in stdout) == (0, True)
    assert run(*options)[0] == 0
    assert len(journal_lines(tmp_path / "out")) == 12


def test_time_that_is_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter(range(0, 10**6, 40))  # seconds
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with progress(100) as advance:
        for _ in range(5):
            advance(4)
    # After 80 s 8 images are done: 920 s for 92. After 160 s it is 16.
    assert capsys.readouterr().err == "8 of 100 images, 16 min left\n16 of 100 images, 14 min left\n"


# ------------------------------------------------------------------------------------------ what is wrong input


def test_wrong_files(shapes: Shapes, tiny: Path, tmp_path: Path) -> None:
    def fails(text: str, *more: object) -> None:
        code, _, stderr = run(*shapes.options, "--model", tiny, "--out", tmp_path / "out", *more)
        assert code == 1, stderr
        assert text in stderr

    truth = shapes.truth.read_text()
    shapes.truth.write_text(truth + "3\n")
    fails("found annotations of 8 images, and 9 classes in")
    shapes.truth.write_text(truth.replace("3\n", "7\n", 1))
    fails("truth.txt:1: found the class 7, expected 1 to 6")
    shapes.truth.write_text(truth.replace("3\n", "5\n", 1))
    fails(
        "found no box of class 5, its ground truth, in shape_00001 (image 1): its boxes are of [3]; so it is in 1 of 8"
    )
    (tmp_path / "blacklist.txt").write_text("1\n9\n")
    fails("found image 9, expected 1 to 8", "--blacklist", tmp_path / "blacklist.txt")
    shapes.truth.write_text(truth)
    other = (shapes.xml / "shape_00002.xml").read_text()
    good = (shapes.xml / "shape_00001.xml").read_text()
    (shapes.xml / "shape_00001.xml").write_text(other)
    fails("found the annotation of the image 'shape_00002', expected that of 'shape_00001'")
    (shapes.xml / "shape_00001.xml").write_text(good.replace(">red<", ">pink<"))
    fails("found a box of 'pink' in shape_00001, expected one of the 6 classes")
    (shapes.xml / "shape_00001.xml").write_text(good)
    shapes.mapping.write_text("red 3\ngreen 1\nblue 6\nyellow 2\n")
    fails("the network has 6 classes, and 4 have a number")
    assert not (tmp_path / "out" / "bbox1.txt").exists()


def test_wrong_folders(shapes: Shapes, tiny: Path, tmp_path: Path) -> None:
    files = ["--annotations", shapes.xml, "--ground-truth", shapes.truth, "--model", tiny, "--out", tmp_path / "out"]
    for images, text in (
        (tmp_path / "none", "there is no such folder"),
        (shapes.xml, "holds none of the 8 images, the first of which is 'shape_00001'"),
    ):
        code, _, stderr = run(*files, "--images", images)
        assert (code, text in stderr) == (1, True), stderr
    (shapes.images / "more").mkdir()
    (shapes.images / "more" / "shape_00001.png").write_bytes(b"x")
    code, _, stderr = run(*files, "--images", shapes.images)
    assert (code, "found the image 'shape_00001' twice" in stderr) == (1, True), stderr


def test_usage(shapes: Shapes, tiny: Path) -> None:
    files = ["--annotations", shapes.xml, "--ground-truth", shapes.truth]
    for options, text in (
        ([], "name the folder with the images"),
        (["--merge", "--html"], "name the folder with the images"),
        (["--merge", "--shard", "1/2"], "leave out --shard"),
        (["--submission", "a.txt", "--merge"], "counts a file alone"),
        (["--images", "a", "--boxes", "round"], "'round' is not one of 'dt', 'threshold'"),
        (["--images", "a", "--encoding", "gif"], "'gif' is not one of 'jpeg', 'png'"),
        (["--images", "a", "--heatmaps", "a/b/../c"], "maps would mix with images"),
        (["--images", "a", "--protocol", "eleven-crop"], "'eleven-crop' is not one of 'whole'"),
        (["--images", "a", "--model", "nonsense"], "nonsense"),
    ):
        code, _, stderr = run(*files, *options)
        assert (code, text in " ".join(stderr.replace("│", " ").split())) == (2, True), stderr
    code, _, stderr = run(*shapes.options, "--model", tiny, "--shard", "3/2")
    assert (code, "expected i/n" in stderr) == (1, True)


def test_submissions_of_another_length(shapes: Shapes, tmp_path: Path) -> None:
    files = ["--annotations", shapes.xml, "--ground-truth", shapes.truth, "--meta", shapes.mapping]
    (tmp_path / "pred.txt").write_text("3 1 1 9 9\n" * 7)
    code, _, stderr = run(*files, "--submission", tmp_path / "pred.txt")
    assert (code, "found predictions for 7 images, expected 8" in stderr) == (1, True), stderr
    (tmp_path / "pred.txt").write_text("3 1 1 9 9\n" * 7 + "7 1 1 9 9\n")
    code, _, stderr = run(*files, "--submission", tmp_path / "pred.txt")
    assert (code, "pred.txt:8: found the class 7, expected 1 to 6" in stderr) == (1, True), stderr


def test_the_devkit_s_files(reference: Path, repository: Path) -> None:
    """The 1,500 predictions by the command, from the devkit's own formats."""
    folder = repository / "tests" / "data" / "ilsvrc"
    files = [
        "--annotations",
        reference / "ilsvrc" / "cache_groundtruth.mat",
        "--ground-truth",
        folder / "visible_gt.txt",
    ]
    blacklist = ["--blacklist", folder / "visible_blacklist.txt"]
    code, stdout, _ = run(*files, *blacklist, "--submission", folder / "visible_pred.txt", "--first", 1500, "--json")
    found = json.loads(stdout)["rankings"]["submission"]
    expected = np.loadtxt(folder / "visible_blacklist_expected.txt").T
    np.testing.assert_allclose([found["classification"], found["localization"]], expected, rtol=0, atol=1e-9)
    assert (code, json.loads(stdout)["blacklisted"]) == (0, 60)


def test_number_of_classes(tmp_path: Path) -> None:
    """A method that explains one class is asked for five; an explainer of fewer cannot be."""
    onnx.save(tiny_explainer(top=2), tmp_path / "two.onnx")
    with pytest.raises(CamrtError, match=r"found an explainer graph with top 2, expected 5"):
        Network(str(tmp_path / "two.onnx")).explainer_of_best(None, 5)
    onnx.save(tiny_classifier(labels=False), tmp_path / "classifier.onnx")
    assert Network(str(tmp_path / "classifier.onnx"), "center").explainer_of_best(None, 5).top == 5
    explainer = Network(str(tmp_path / "classifier.onnx"), "center").explainer_of_best("eigencam", 5)
    assert (explainer.method, explainer.top) == ("eigencam", 5)
