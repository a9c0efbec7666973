"""The commands of `camrt` beside demo and validate, as a user runs them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from camrt import Explainer, Preprocess, Style, catalog, colors, matlab
from camrt.commands.options import ColormapName
from camrt.render import STYLE
from camrt.results import LINES
from converters import zoo
from tests import tiny_cam as tiny
from tests.camrt.classifiers import CLASSES as CLASSIFIER_CLASSES
from tests.camrt.classifiers import SIDE, classifier
from tests.camrt.commands.command_line import command, lines, run
from tests.tiny_models import LABELS, photo, tiny_explainer


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the current folder is empty too."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("CAMRT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An explainer of a few numbers."""
    path = tmp_path / "tiny.onnx"
    onnx.save(tiny_explainer(top=2), path)
    return path


def environment(repository: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(repository)}


def save_photos(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for seed, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(40, 48, seed)).save(path)
    return paths


# ---------------------------------------------------------------------------------------------------------- the whole


def test_help_names_the_commands_and_ends_in_examples() -> None:
    commands = ("convert", "demo", "bbox", "explain", "models", "download", "export", "validate", "train", "surgery")
    _, listing, _ = run("--help")
    for name in (*commands, "evaluate"):
        assert name in listing
    for name in commands:
        status, out, _ = run(name, "--help")
        assert status == 0
        assert "Examples:" in out
        assert "Exit status:" in out
    for name in ("ilsvrc", "wsol"):
        status, out, _ = run("evaluate", name, "--help")
        assert status == 0
        assert "Examples:" in out
        assert "Exit status:" in out


def test_help_loads_no_library(repository: Path) -> None:
    code = (
        "import sys, camrt.cli\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'cv2', 'scipy', 'torch', 'PIL', 'rich.table'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(repository), capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["explain"],
        ["explain", "a.jpg", "--protocol", "twelve-crop"],
        ["explain", "a.jpg", "--method", "guess"],
        ["explain", "a.jpg", "--maps", "gif"],
        ["explain", "a.jpg", "--top", "0"],
        ["explain", "a.jpg", "--batch", "0"],
        ["explain", "a.jpg", "--model", "no-such-model"],
        ["bbox"],
        ["bbox", "a.png", "--thresholds", "1", "2"],
        ["export", "no-such-model"],
        ["export", "lenetCAM", "--preprocess", "tensorflow"],
        ["export", "lenetCAM", "--mean", "1,2"],
        ["export", "lenetCAM", "--scale", "one"],
        ["export", "lenetCAM", "--channels", "GRB"],
        ["export", "lenetCAM", "--protocol", "none"],
        ["download"],
        ["download", "no-such-model"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    status, out, err = run(*arguments)
    assert status == 2
    assert "Error" in err
    assert "Traceback" not in err
    assert not out


# --------------------------------------------------------------------------------------------------------------- bbox


def test_bbox_writes_the_originals_text(reference: Path) -> None:
    folder = reference / "bbox"
    expected = (folder / "heatmap_6.txt").read_text()
    status, out, _ = run("bbox", folder / "heatmap_6.jpg", "--thresholds", 20, 100, 110)
    assert (status, out) == (0, f"{expected}\n")
    assert run("bbox", folder / "heatmap_6.jpg", "out.txt")[0] == 0
    assert Path("out.txt").read_bytes() == expected.encode() == b"41 145 362 202 102 188 242 126 "
    status, out, _ = run("bbox", folder / "heatmap_6.jpg", "--json")
    assert json.loads(out)["boxes"] == [[41, 145, 362, 202], [102, 188, 242, 126]]


def test_bbox_draws_what_generate_bbox_shows(reference: Path) -> None:
    folder = reference / "bbox"
    status, _, err = run("bbox", folder / "heatmap_6.jpg", "--image", folder / "sample_6.jpg", "--picture", "b.png")
    assert status == 0
    assert "b.png" in err
    drawn = np.asarray(Image.open("b.png")).astype(int)
    image = np.asarray(Image.open(folder / "sample_6.jpg")).astype(int)
    height, width = image.shape[:2]
    assert drawn.shape == (height, 2 * width + 8, 3)
    for x, y, w, h in ((41, 145, 362, 202), (102, 188, 242, 126)):
        for row, column in ((y, x), (y, x + w - 1), (y + h - 1, x), (y + h - 1, x + w - 1), (y, x + w // 2)):
            assert drawn[row, column].tolist() == [255, 0, 0]
    changed = (drawn[:, :width] != image).any(axis=2)
    assert 0 < changed.mean() < 0.05
    assert (drawn[:, width : width + 8] == 255).all()
    heatmap = np.asarray(Image.open(folder / "heatmap_6.jpg").convert("L"))
    assert (drawn[:, width + 8 :] == matlab.im2uint8(matlab.map2jpg(heatmap))).all()


def test_bbox_of_nothing_is_an_empty_text() -> None:
    Image.fromarray(np.zeros((50, 60), np.uint8)).save("black.png")
    assert run("bbox", "black.png")[:2] == (0, "\n")
    assert run("bbox", "black.png", "out.txt")[0] == 0
    assert Path("out.txt").read_bytes() == b""


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["missing.png"], 1, "missing.png: there is no such file"),
        (["color.png"], 1, "color.png: found a heatmap"),
        (["grey.png", "--thresholds", "100", "20", "110"], 1, "thresholds"),
        (["grey.png", "--image", "color.png"], 1, "expected the same"),
        (["grey.png", "grey.png"], 2, "one of the images to read"),
        (["grey.png", "--image", "color.png", "--picture", "color.png"], 2, "one of the images to read"),
        (["grey.png", "grey.png/out.txt"], 1, "cannot be written"),
    ],
)
def test_bbox_says_what_is_wrong(arguments: list[str], status: int, word: str) -> None:
    Image.fromarray(photo(30, 40)).save("color.png")
    Image.fromarray(np.arange(2400, dtype=np.uint8).reshape(40, 60)).save("grey.png")
    before = Path("grey.png").read_bytes(), Path("color.png").read_bytes()
    found, _, err = run("bbox", *arguments)
    assert found == status
    assert word in err
    assert (Path("grey.png").read_bytes(), Path("color.png").read_bytes()) == before
    assert not Path("boxes.png").exists()


# ------------------------------------------------------------------------------------------------------------ explain


def test_explain_writes_overlays_maps_and_lines(model: Path) -> None:
    save_photos(Path("photos"), "b.png", "a.jpg", "deep/c.webp")
    Path("photos/notes.txt").write_text("no image")
    Path("photos/.hidden.png").write_text("no image")
    status, out, err = run("explain", "photos", "--model", model, "--out", "out", "--maps", "png", "--format", "png")
    assert status == 0, err
    assert "3 explained" in out
    assert "CPUExecutionProvider" in err
    found = lines(Path("out"))
    assert [one["source"] for one in found] == ["photos/a.jpg", "photos/b.png", "photos/deep/c.webp"]
    explainer = Explainer(str(model))
    for one in found:
        explanation = explainer(one["source"])
        assert [entry["class"] for entry in one["top"]] == explanation.classes.tolist()
        assert [entry["label"] for entry in one["top"]] == list(explanation.labels)
        assert [np.float32(entry["score"]) for entry in one["top"]] == explanation.scores.tolist()
        assert [entry["boxes"] for entry in one["top"]] == [explanation.best_box(i).tolist() for i in range(2)]
        assert one["size"] == Path(one["source"]).stat().st_size
        stem = Path(one["source"]).stem
        assert one["files"] == [f"{stem}_{kind}{rank}.png" for rank in (1, 2) for kind in ("top", "map")]
        for rank in (0, 1):
            overlay = np.asarray(Image.open(f"out/{stem}_top{rank + 1}.png"))
            assert (overlay == explanation.overlay(rank, STYLE)).all()
            grey = np.asarray(Image.open(f"out/{stem}_map{rank + 1}.png")).astype(np.float64) / 65535
            np.testing.assert_allclose(grey, explanation.heatmap(rank), atol=1 / 65535)


def test_explain_with_boxes_npz_and_page(model: Path) -> None:
    save_photos(Path(), "a <b>.png")
    status, out, err = run(
        "explain", "a <b>.png", "--model", model, "--out", "out", "--boxes", "all", "--maps", "npz", "--html", "--json"
    )
    assert status == 0, err
    facts = json.loads(out)
    assert (facts["explained"], facts["skipped"], facts["failed"]) == (1, 0, [])
    (line,) = lines(Path("out"))
    explanation = Explainer(str(model))("a <b>.png")
    assert [entry["boxes"] for entry in line["top"]] == [explanation.boxes(i).tolist() for i in range(2)]
    with np.load("out/a <b>_maps.npz") as archive:
        assert (archive["heatmaps"] == explanation.heatmaps.astype(np.float16)).all()
    page = Path(facts["page"]).read_text(encoding="utf-8")
    assert "a &lt;b&gt;.png" in page
    assert "<b>" not in page
    assert "<dt>method</dt><dd>cam</dd>" in page
    assert LABELS[explanation.classes[0]].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in page
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert page.count("data:image/jpeg") == 3


def test_explain_draws_as_it_is_told(model: Path) -> None:
    save_photos(Path(), "a.png")
    options = ["--colormap", "bwr", "--opacity", "0.4", "--boxes", "none", "--no-caption", "--format", "png"]
    assert run("explain", "a.png", "--model", model, *options)[0] == 0
    expected = Explainer(str(model))("a.png").overlay(0, Style("bwr", 0.4, None, caption=False))
    assert (np.asarray(Image.open("explained/a_top1.png")) == expected).all()
    assert "boxes" not in lines(Path("explained"))[0]["top"][0]
    for wrong in (["--colormap", "rainbow"], ["--opacity", "1.1"], ["--boxes"], ["--boxes", "some"]):
        assert run("explain", "a.png", "--model", model, *wrong)[0] == 2
    assert tuple(ColormapName) == colors.COLORMAPS


def test_explain_takes_globs_folders_and_files_once(model: Path) -> None:
    save_photos(Path("photos"), "a.png", "b.png", "deep/c.png", "deep/d.jpg")
    Path("odd[1].dat").write_bytes(Path("photos/a.png").read_bytes())
    status, _, err = run("explain", "photos/**/*.png", "photos/b.png", "photos/deep", "odd[1].dat", "--model", model)
    assert status == 0, err
    sources = [one["source"] for one in lines(Path("explained"))]
    assert sources == ["photos/a.png", "photos/b.png", "photos/deep/c.png", "photos/deep/d.jpg", "odd[1].dat"]


def test_images_of_one_name_do_not_overwrite_each_other(model: Path) -> None:
    one, other = save_photos(Path("photos"), "x/same.png", "y/Same.jpg")
    for _ in range(2):
        assert run("explain", "photos/x", "--model", model, "--out", "out", "--format", "png")[0] == 0
        assert run("explain", "photos/y", "--model", model, "--out", "out", "--format", "png")[0] == 0
    found = lines(Path("out"))
    assert [line["path"] for line in found] == [str(one.absolute()), str(other.absolute())]
    assert len({name.casefold() for line in found for name in line["files"]}) == 2 * len(found[0]["top"])
    overlay = np.asarray(Image.open(Path("out") / found[0]["files"][0]))
    assert (overlay == Explainer(str(model))(one).overlay(0, STYLE)).all()


def test_broken_images_are_reported_and_the_rest_is_done(model: Path) -> None:
    save_photos(Path("photos"), "a.png", "b.png", "c.png")
    whole = Path("photos/b.png").read_bytes()
    Path("photos/b.png").write_bytes(whole[: len(whole) // 2])
    Path("photos/d.gif").write_bytes(b"")
    status, out, err = run("explain", "photos", "missing.jpg", "--model", model, "--html")
    assert status == 1
    assert "2 explained" in out
    tail = err[err.index("error: 3 could not") :]
    for name in ("photos/b.png: ", "photos/d.gif: ", "missing.jpg: there is no such file"):
        assert tail.count(name) == 1
    assert "Traceback" not in err
    assert [one["source"] for one in lines(Path("explained"))] == ["photos/a.png", "photos/c.png"]
    Path("photos/b.png").write_bytes(whole)
    Path("photos/d.gif").unlink()
    status, out, _ = run("explain", "photos", "--model", model, "--html", "--json")
    assert status == 0
    facts = json.loads(out)
    assert (facts["explained"], facts["skipped"]) == (1, 2)
    page = Path(facts["page"]).read_text()
    assert [page.index(f">photos/{name}<") for name in ("a.png", "b.png", "c.png")] == sorted(
        page.index(f">photos/{name}<") for name in ("a.png", "b.png", "c.png")
    )


@pytest.mark.parametrize(
    ("what", "word"),
    [("empty", "holds no images"), ("*.png", "nothing matches"), ("missing.png", "there is no such file")],
)
def test_nothing_to_explain_is_said_before_a_model_is_loaded(what: str, word: str) -> None:
    Path("empty").mkdir()
    status, out, err = run("explain", what)  # resnet50 would be downloaded
    assert status == 1
    assert word in err
    assert not out
    assert not Path("explained").exists()


def test_what_changed_is_explained_again(model: Path, tmp_path: Path) -> None:
    a, _ = save_photos(Path("photos"), "a.png", "b.png")
    options = ["explain", "photos", "--model", model, "--out", "out", "--json"]
    assert json.loads(run(*options)[1])["explained"] == 2
    before = (Path("out") / LINES).read_bytes()
    assert json.loads(run(*options)[1])["skipped"] == 2
    assert (Path("out") / LINES).read_bytes() == before
    Image.fromarray(photo(33, 44, 7)).save(a)  # an image
    assert json.loads(run(*options)[1])["explained"] == 1
    (Path("out") / "b_top1.jpg").unlink()  # a result
    assert json.loads(run(*options)[1])["explained"] == 1
    assert json.loads(run(*options, "--boxes", "none")[1])["explained"] == 2  # an option
    onnx.save(tiny_explainer(top=1), model)  # the model
    assert json.loads(run(*options)[1])["explained"] == 2
    found = lines(Path("out"))
    assert sorted(line["source"] for line in found) == ["photos/a.png", "photos/b.png"]
    assert not (Path("out") / "a_top2.jpg").exists(), "what the new run does not write is gone"
    assert json.loads(run(*options, "--format", "png", "--maps", "npz")[1])["explained"] == 2  # other files
    found = lines(Path("out"))
    assert {path.name for path in Path("out").glob("*_*")} == {name for line in found for name in line["files"]}


def test_results_are_not_taken_for_images(model: Path) -> None:
    save_photos(Path(), "a.png")
    for _ in range(2):
        assert run("explain", ".", "--model", model, "--out", "./out")[0] == 0
        assert run("explain", "*.png", "out/*.jpg", "--model", model, "--out", "out")[0] in (0, 1)
    assert [one["source"] for one in lines(Path("out"))] == ["a.png"]
    status, _, err = run("explain", "out", "--model", model, "--out", "out")
    assert status == 2
    assert "one of the folders to explain" in err


def test_a_torn_line_is_mended_and_other_lines_stay(model: Path) -> None:
    a, _ = save_photos(Path("photos"), "a.png", "b.png")
    options = ["explain", "photos", "--model", model, "--out", "out", "--json"]
    assert run(*options)[0] == 0
    Explainer(str(model))(a).save("out", stem="saved")
    file = Path("out") / LINES
    whole = file.read_bytes()
    first, second, saved = whole.splitlines(keepends=True)
    file.write_bytes(saved + first + second[: len(second) // 2])
    facts = json.loads(run(*options)[1])
    assert (facts["explained"], facts["skipped"]) == (1, 1)
    assert sorted(file.read_bytes().splitlines()) == sorted(whole.splitlines())
    file.write_bytes(first[:-1])  # only the end of the line is missing
    assert json.loads(run(*options)[1])["skipped"] == 1
    assert len(lines(Path("out"))) == 2


def test_a_line_that_is_not_ours_to_mend(model: Path) -> None:
    save_photos(Path("photos"), "a.png")
    Path("out").mkdir()
    (Path("out") / LINES).write_bytes(b"precious\n{}\n")
    status, _, err = run("explain", "photos", "--model", model, "--out", "out")
    assert status == 1
    assert f"{Path('out') / LINES}:1: the line is not JSON" in err
    assert (Path("out") / LINES).read_bytes() == b"precious\n{}\n"


def test_a_line_cannot_lead_out_of_the_folder(model: Path) -> None:
    save_photos(Path("photos"), "a.png")
    Path("precious.png").write_text("precious")
    assert run("explain", "photos", "--model", model, "--out", "out")[0] == 0
    (line,) = lines(Path("out"))
    for change in ({"stem": "../precious"}, {"files": ["../precious.png"]}, {"files": 7}, {"stem": None}):
        (Path("out") / LINES).write_text(json.dumps({**line, "size": 0, **change}) + "\n")
        assert run("explain", "photos", "--model", model, "--out", "out", "--top", 2)[0] == 0
    assert Path("precious.png").read_text() == "precious"
    assert {path.name for path in Path().iterdir()} == {"photos", "out", "precious.png"}


def test_names_that_are_not_text(model: Path) -> None:
    (a,) = save_photos(Path("photos"), "a.png")
    try:
        a.rename(os.fsdecode(b"photos/\xff.png"))
    except OSError:
        pytest.skip("this file system takes only text")
    for _ in range(2):
        status, out, err = run("explain", "photos", "--model", model, "--html", "--json")
        assert status == 0, err
    assert json.loads(out)["skipped"] == 1


def started(repository: Path, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments), env=environment(repository), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_lines(process: subprocess.Popen[str], file: Path, count: int) -> None:
    until = time.monotonic() + 60
    while not file.exists() or file.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def many(tmp_path: Path) -> int:
    """Photos for a run that takes a while."""
    content = photo(200, 240)
    Path("photos").mkdir()
    first = Path("photos/000.png")
    Image.fromarray(content).save(first)
    for number in range(1, 120):
        os.link(first, f"photos/{number:03}.png")
    return 120


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_and_started_again_it_goes_on(ending: signal.Signals, many: int, model: Path, repository: Path) -> None:
    options = ["explain", "photos", "--model", model, "--out", "out", "--json"]
    process = started(repository, *options)
    file = Path("out") / LINES
    wait_for_lines(process, file, 4)
    process.send_signal(ending)
    _, err = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[ending], err
    if ending == signal.SIGINT:
        assert f"of {many} images are done; the same command goes on from there" in err
    assert "Traceback" not in err
    done = file.read_bytes().splitlines(keepends=True)
    kept = [line for line in done if line.endswith(b"\n")]
    assert 4 <= len(kept) < many
    digests = {
        name: hashlib.sha256((Path("out") / name).read_bytes()).digest() for name in json.loads(kept[0])["files"]
    }
    status, out, err = run(*options)
    assert status == 0, err
    facts = json.loads(out)
    assert (facts["explained"], facts["skipped"]) == (many - len(kept), len(kept))
    assert file.read_bytes().startswith(b"".join(kept))
    found = lines(Path("out"))
    assert len(found) == len({line["path"] for line in found}) == many
    assert all((Path("out") / name).exists() for line in found for name in line["files"])
    for name, digest in digests.items():
        assert hashlib.sha256((Path("out") / name).read_bytes()).digest() == digest


def test_of_two_at_once_one_is_refused(many: int, model: Path, repository: Path) -> None:
    options = ["explain", "photos", "--model", model, "--out", "out"]
    first = started(repository, *options)
    wait_for_lines(first, Path("out") / LINES, 1)
    status, out, err = run(*options)
    assert (status, out) == (1, "")
    assert "another camrt explain writes into this folder" in err
    assert first.wait(60) == 0
    assert len(lines(Path("out"))) == many


# ------------------------------------------------------------------------------------------------ what explain says


def test_explain_prints_the_classes_and_the_pictures(model: Path) -> None:
    """In a table for people, and in the JSON, of what was done now and of what was done before."""
    (one,) = save_photos(Path("photos"), "a.png")
    for _ in range(2):
        status, out, _ = run("explain", one, "--model", model, "--out", "out")
        assert status == 0
        rows = [line for line in out.splitlines() if "_top" in line]
        found = Explainer(str(model))(one)
        for rank, row in enumerate(rows):
            assert found.labels[rank] in row
            assert f"{found.scores[rank]:.1%}" in row
            assert row.rstrip().endswith(f"out/a_top{rank + 1}.jpg")
        assert len(rows) == 2
        assert rows[0].startswith("photos/a.png ")
        facts = json.loads(run("explain", one, "--model", model, "--out", "out", "--json")[1])
        (image,) = facts["images"]
        assert image["source"] == "photos/a.png"
        assert image["top"] == found.as_dict("best")["top"]
        assert image["files"][0] == "a_top1.jpg"


def test_of_many_images_the_first_and_a_count_are_printed(model: Path) -> None:
    save_photos(Path("photos"), *(f"{number:02}.png" for number in range(13)))
    status, out, _ = run("explain", "photos", "--model", model)
    assert status == 0
    rows = [line for line in out.splitlines() if "_top" in line]
    assert [row.split()[0] for row in rows] == [f"photos/{number:02}.png" for number in range(10)]
    assert "and 3 more" in out
    assert "13 explained: explained/explanations.jsonl" in out


def test_names_and_labels_do_not_reach_the_terminal_raw(model: Path) -> None:
    evil = "a\x1b[31m\nerror: forged\x9b\u202e.png"
    save_photos(Path("photos"), evil, "b.png")
    Path(f"photos/{evil}.gif").write_text("no image")
    status, out, err = run("explain", "photos", "--model", model)
    assert status == 1
    for text in (out, err):
        assert not {"\x1b", "\x9b", "\u202e"} & set(text)
        assert not [line for line in text.splitlines() if line.startswith("error: forged")]
        assert "a\\x1b[31m\\nerror: forged" in text
    out = run("explain", "photos", "--model", model, "--json")[1]
    assert not {"\x1b", "\x9b", "\u202e"} & set(out)
    assert {Path(one["source"]).name for one in json.loads(out)["images"]} == {evil, "b.png"}


def test_a_gigantic_image_names_an_option_that_helps(model: Path) -> None:
    save_photos(Path(), "a.png")
    status, _, err = run("explain", "a.png", "--model", model, "--max-pixels", 1919)
    assert status == 1
    assert "found 48 x 40 = 1,920 pixels, expected at most 1,919. If you trust it, allow more with --max-pixels" in err
    assert run("explain", "a.png", "--model", model, "--max-pixels", 1920)[0] == 0


def test_an_animation_is_explained_by_its_first_frame(model: Path) -> None:
    frames = [Image.fromarray(photo(40, 48, seed)) for seed in range(3)]
    frames[0].save("a.png", save_all=True, append_images=frames[1:])
    frames[0].save("b.png")
    status, _, err = run("explain", "a.png", "b.png", "--model", model)
    assert status == 0
    assert err.count("warning: a.png: found several frames") == 1
    one, other = lines(Path("explained"))
    assert one["top"] == other["top"]


@pytest.mark.parametrize(
    "options", [["--provider", "tpu"], ["--layer", "nothing"], ["--method", "gradcam"], ["--preprocess", "caffe"]]
)
def test_wrong_options_leave_no_folder(options: list[str], model: Path) -> None:
    save_photos(Path(), "a.png")
    status, _, err = run("explain", "a.png", "--model", model, *options)
    assert status == 1
    assert "error: " in err
    assert [path.name for path in Path().iterdir()] == ["a.png"]


def test_the_largest_side_of_pictures(model: Path) -> None:
    save_photos(Path(), "a.png")
    for side, size in ((24, (24, 20)), (0, (48, 40)), (2048, (48, 40))):
        assert run("explain", "a.png", "--model", model, "--max-side", side, "--no-caption")[0] == 0
        assert Image.open("explained/a_top1.jpg").size == size


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--crf", "--crf-bilateral", "1", "2", "a.png"], "'--crf-bilateral': found 'a.png' among its numbers"),
        (["a.png", "--crf-bilateral", "1", "2", "--crf"], "'--crf-bilateral': found '--crf' among its numbers"),
        (["a.png", "--crf", "--crf-gaussian", "x", "2"], "'--crf-gaussian': found 'x' among its numbers"),
        (["a.png", "--weights", "x.caffemodel", "--model", "net.onnx"], "net.onnx is a file with its own weights"),
    ],
)
def test_wrong_numbers_and_weights_are_blamed_on_their_option(arguments: list[str], words: str) -> None:
    status, _, err = run("explain", *arguments)
    assert status == 2
    assert words in " ".join(err.replace("│", " ").split())


# ------------------------------------------------------------------------------------------------- the whole program


def test_version(repository: Path) -> None:
    from converters import __version__

    assert run("--version") == (0, f"camrt {__version__}\n", "")
    done = subprocess.run(command("--version"), env=environment(repository), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"camrt {__version__}\n")


def test_what_an_error_advises_exists_on_the_command() -> None:
    """Where a model is named, its weights can be given; where it may not say its preprocessing, that too."""
    for name in ("explain", "demo", "export", "download", "validate", "convert"):
        assert "--weights" in run(name, "--help")[1], name
    for name in ("explain", "demo", "export"):
        assert "--preprocess" in run(name, "--help")[1], name
    for option in ("--layer", "--classifier", "--scores", "--max-pixels"):
        assert option in run("explain", "--help")[1]


def test_weights_of_a_named_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """As an option of each command; and copied into the cache once, so that none needs it any more."""
    weights = tmp_path / "mine.caffemodel"
    folder = tmp_path / "net"
    folder.mkdir()
    model = tiny.named(folder)
    Path(model.weights.bundled or "").rename(weights)
    released = zoo.WeightsFile(("http://nowhere/tinyCAM.caffemodel",), model.weights.least_bytes)
    monkeypatch.setattr(zoo, "models", lambda: {tiny.NAME: dataclasses.replace(model, weights=released)})
    monkeypatch.setattr(zoo, "download", lambda *_, **__: pytest.fail("asked the network"))
    Image.fromarray(tiny.sample_image()).save("a.png")
    options = ["--weights", weights, "--json"]
    facts = json.loads(run("explain", "a.png", "--model", tiny.NAME, *options)[1])
    assert facts["explained"] == 1
    assert json.loads(run("explain", "a.png", "--model", tiny.NAME, *options)[1])["skipped"] == 1
    assert run("export", tiny.NAME, *options)[0] == 0
    assert (
        json.loads(run("demo", tiny.NAME, "a.png", *options)[1])["top"][0]["class"]
        == facts["images"][0]["top"][0]["class"]
    )
    assert run("download", tiny.NAME, "--weights", weights)[:2] == (0, f"{home / 'weights' / 'tinyCAM.caffemodel'}\n")
    assert run("demo", tiny.NAME, "a.png")[0] == 0
    for wrong in (["--weights", weights], ["lenetCAM", "--weights", weights], [tiny.NAME, "lenetCAM", *options[:2]]):
        assert run("download", *wrong)[0] == 2
    (home / "weights" / "tinyCAM.caffemodel").unlink()
    status, _, err = run("download", tiny.NAME, "--weights", "missing.caffemodel")
    assert (status, "missing.caffemodel" in err) == (1, True)


def test_a_preset_for_a_model_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(classifier("gemm"), "plain.onnx")
    save_photos(Path(), "a.png")
    for name in (["explain", "a.png", "--model", "plain.onnx"], ["demo", "plain.onnx", "a.png"]):
        status, _, err = run(*name)
        assert status == 1
        assert "--preprocess caffe or torchvision" in err
    presets = {"caffe": Preprocess(SIDE, SIDE, (104.0, 117.0, 123.0)), "torchvision": Preprocess(SIDE, SIDE, (1, 2, 3))}
    monkeypatch.setattr("camrt.preprocess.PRESETS", presets)
    for preset, preprocess in presets.items():
        options = ["--preprocess", preset, "--top", 1, "--json"]
        facts = json.loads(run("explain", "a.png", "--model", "plain.onnx", *options)[1])
        expected = Explainer("plain.onnx", preprocess=preprocess, top=1)("a.png")
        assert facts["explained"] == 1
        assert facts["images"][0]["top"] == expected.as_dict("best")["top"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "-o", "x.xyz"],
        ["demo", "-o", "picture"],
        ["bbox", "map.png", "--image", "map.png", "--picture", "boxes.tiff"],
    ],
)
def test_a_picture_is_of_a_format_that_is_written(arguments: list[str]) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert "expected a name that ends in .png, .jpg, .jpeg" in " ".join(err.replace("│", " ").split())
    assert list(Path().iterdir()) == []


def test_a_picture_as_jpeg() -> None:
    assert run("demo", "-o", "new/picture.jpg")[0] == 0
    with Image.open("new/picture.jpg") as picture:
        assert (picture.format, picture.size[0]) == ("JPEG", 808)


# ------------------------------------------------------------------------------------------- models, downloads, export


def test_models_are_listed_for_people_and_programs(home: Path) -> None:
    facts = json.loads(run("models", "--json")[1])
    assert {one["name"] for one in facts} == {*zoo.models(), *catalog.plain_names()}
    assert {one["name"] for one in facts if one["cam"]} >= {"googlenetCAM", "vgg16CAM", "lenetCAM"}
    assert [one["name"] for one in facts if one["downloaded"]] == ["lenetCAM", "lenetCAM_mnist"]
    assert [one["name"] for one in facts if one["bundled"]] == ["lenetCAM", "lenetCAM_mnist"]
    path = zoo.weights_path(zoo.find("vgg16CAM"))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    status, out, _ = run("models")
    assert status == 0
    assert next(line for line in out.splitlines() if line.startswith("vgg16CAM")).rstrip().endswith("downloaded")
    for one in facts:
        assert one["name"] in out
    assert str(home) in out


def test_download_prints_paths_and_goes_on_after_a_failure(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    from converters import ConversionError

    def weights(model: zoo.NamedModel) -> Path:
        if model.name == "vgg16CAM":
            raise ConversionError("the weights of vgg16CAM cannot be downloaded")
        return zoo.weights_path(model)

    monkeypatch.setattr(zoo, "weights", weights)
    monkeypatch.setattr(zoo, "download_reference", lambda: home / "reference")
    status, out, err = run("download", "vgg16CAM", "googlenet", "--reference")
    assert status == 1
    assert out.splitlines() == [str(zoo.weights_path(zoo.find("bvlc_googlenet"))), str(home / "reference")]
    assert err == "error: the weights of vgg16CAM cannot be downloaded\n"
    assert run("download", "googlenet")[0] == 0


def answers(path: Path, image: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["scores", "classes", "heatmaps"], {"image": image[None]})


def test_an_exported_explainer_runs_on_plain_onnx_runtime() -> None:
    """Against the classifier alone and the MATLAB code in NumPy."""
    onnx.save(tiny.convert(), "tiny.onnx")
    status, out, err = run(
        "export", "tiny.onnx", "-o", "new/explainer.onnx", "--protocol", "ten-crop", "--top", 3, "--json"
    )
    assert status == 0, err
    assert "'CAM_conv' (6 maps)" in err, "the head that was chosen is said"
    facts = json.loads(out)
    assert (facts["features"], facts["top"], facts["protocol"]) == ("CAM_conv", 3, "ten-crop")
    assert facts["bytes"] == Path("new/explainer.onnx").stat().st_size
    assert [path.name for path in Path("new").iterdir()] == ["explainer.onnx"]
    onnx.checker.check_model("new/explainer.onnx", full_check=True)
    image = tiny.sample_image()
    scores, classes, heatmaps = answers(Path("new/explainer.onnx"), image)
    session = onnxruntime.InferenceSession("tiny.onnx")
    crops = matlab.prepare_image(image, np.full(3, tiny.GREY))
    features, expected = session.run([tiny.FEATURES, "prob"], {"data": crops})
    best, _ = matlab.top_classes(expected, 3)
    np.testing.assert_allclose(scores[0], expected.mean(axis=0), atol=1e-6)
    assert classes[0].tolist() == best.tolist()
    maps = matlab.demo_maps(matlab.return_cam_map(features, tiny.weights()["CAM_fc"][0][best]))
    np.testing.assert_allclose(heatmaps[0], maps, atol=1e-4 * maps.max())


def test_flags_say_what_a_foreign_model_wants() -> None:
    onnx.save(classifier("gemm"), "plain.onnx")
    status, out, err = run("export", "plain.onnx")
    assert (status, out) == (1, "")
    assert "--preprocess caffe or torchvision" in err
    assert not Path("explainer.onnx").exists()
    Path("names.txt").write_text("".join(f"name {k}\n" for k in range(CLASSIFIER_CLASSES)))
    flags = ["--size", SIDE + 4, "--crop", SIDE, "--mean", "10,20,30", "--scale", 0.5, "--channels", "RGB", "--top", 2]
    status, _, err = run("export", "plain.onnx", *flags, "--protocol", "center", "--labels", "names.txt")
    assert status == 0, err
    image = photo(SIDE + 4, SIDE + 4)
    scores, classes, _ = answers(Path("explainer.onnx"), image)
    data = ((image[2:-2, 2:-2].astype(np.float32) - [10, 20, 30]) * 0.5).transpose(2, 0, 1)[None].astype(np.float32)
    (expected,) = onnxruntime.InferenceSession("plain.onnx").run(None, {"data": data})
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert Explainer("explainer.onnx")(image).labels[0] == f"name {classes[0, 0]}"


def test_a_preset_and_what_differs_from_it() -> None:
    onnx.save(classifier("gemm"), "plain.onnx")
    status, _, err = run(
        "export", "plain.onnx", "--preprocess", "torchvision", "--crop", SIDE, "--size", SIDE, "--top", 2
    )
    assert status == 0, err
    image = photo(SIDE, SIDE)
    data = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    data = data.transpose(2, 0, 1)[None].astype(np.float32)
    (expected,) = onnxruntime.InferenceSession("plain.onnx").run(None, {"data": data})
    np.testing.assert_allclose(answers(Path("explainer.onnx"), image)[0], expected, atol=1e-5)


def test_a_large_model_has_its_weights_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from converters import model

    assert run("export", "lenetCAM", "-o", "small.onnx")[0] == 0
    monkeypatch.setattr(model, "MAX_MODEL", 1000)
    status, out, err = run("export", "lenetCAM", "-o", "large.onnx", "--json")
    assert status == 0, err
    assert sorted(path.name for path in Path().iterdir()) == ["large.onnx", "large.onnx.data", "small.onnx"]
    total = sum(Path(name).stat().st_size for name in ("large.onnx", "large.onnx.data"))
    assert json.loads(out)["bytes"] == total
    for large, small in zip(
        *(answers(Path(name), photo(100, 100)) for name in ("large.onnx", "small.onnx")), strict=True
    ):
        assert (large == small).all()


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["missing.onnx"], 1, "missing.onnx"),
        (["broken.onnx"], 1, "broken.onnx"),
        (["explainer.onnx", "-o", "other.onnx"], 1, "explainer already"),
        (["plain.onnx", "-o", "plain.onnx"], 2, "the model to export"),
        (["plain.onnx", "--crop", SIDE], 2, "--crop, --mean and --channels"),
        (["plain.onnx", "--preprocess", "caffe", "--crop", SIDE, "--size", SIDE - 1], 1, "expected a crop of"),
        (["plain.onnx", "--preprocess", "caffe", "--crop", SIDE, "--top", 99], 1, "top 99"),
        (
            ["plain.onnx", "--preprocess", "caffe", "--crop", SIDE, "--top", 2, "--labels", "names.txt"],
            1,
            "found 2 names",
        ),
        (["plain.onnx", "--preprocess", "caffe", "--crop", SIDE, "--top", 2, "--labels", "none.txt"], 1, "none.txt"),
        (["plain.onnx", "--preprocess", "caffe", "--crop", SIDE, "--features", "nothing"], 1, "nothing"),
        (["lenetCAM", "-o", "plain.onnx/x.onnx"], 1, "cannot be written"),
    ],
)
def test_export_says_what_is_wrong(arguments: list[object], status: int, word: str) -> None:
    onnx.save(classifier("gemm"), "plain.onnx")
    onnx.save(tiny_explainer(), "explainer.onnx")
    Path("broken.onnx").write_bytes(b"\xff broken")
    Path("names.txt").write_text("one\ntwo\n")
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    found, out, err = run("export", *arguments)
    assert found == status, err
    assert word in err
    assert not out
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before
