"""`camrt evaluate wsol` from images to the table, and what happens when it is stopped."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from PIL import Image

from camrt import CamrtError, Explainer, explain_graph
from camrt.blackbox.scorer import Scorer
from camrt.evaluate import faithfulness, wsol, wsol_protocol
from camrt.evaluate.datasets import read_csv
from camrt.evaluate.network import Network
from camrt.evaluate.wsol_protocol import Measures, tally
from camrt.graph.view import metadata_of
from camrt.images import prepare, resize
from camrt.preprocess import PRESETS, preprocess_of
from converters import zoo
from tests import tiny_cam
from tests.camrt.evaluate.shapes import COLORS, evaluate, journal_lines, write_table
from tests.tiny_models import tiny_classifier

SHAPES = 8


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of a few numbers, which takes a millisecond."""
    path = tmp_path_factory.mktemp("models") / "fast.onnx"
    onnx.save(tiny_classifier(), path)
    return path


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """A folder of images of a coloured rectangle, masks, and boxes.csv."""
    return write_table(tmp_path / "shapes", SHAPES)


def options(shapes: Path, model: Path, out: Path) -> list[object]:
    files = ["--images", shapes / "images", "--csv", shapes / "boxes.csv", "--masks", shapes / "masks"]
    return [*files, "--model", model, "--out", out, "--workers", 0]


def run(*arguments: object) -> tuple[int, str, str]:
    return evaluate("wsol", *arguments)


# ---------------------------------------------------------------------------------------------- from images to a table


def test_from_images_to_the_table(shapes: Path, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extras = ["--methods", "cam,gradcam,layercam", "--threshold-sweep", "--html"]
    code, stdout, stderr = run(*options(shapes, tiny, out), *extras)
    assert code == 0, stderr
    assert [method in stdout for method in ("cam", "gradcam", "layercam")] == [True] * 3
    facts = json.loads((out / "results.json").read_text())
    assert facts["images"] == SHAPES
    for numbers in facts["methods"].values():  # tinyCAM knows colours
        assert numbers["MaxBoxAcc"] == numbers["GT-known"] == numbers["top-1"] == numbers["pointing"] == 1
        assert numbers["MaxBoxAccV2"] > 0.9
        assert numbers["PxAP"] > 0.9
    with (out / "sweep.csv").open() as stream:
        sweep = list(csv.DictReader(stream))
    assert len(sweep) == 3 * 1000
    best = max(float(row["largest 0.5"]) for row in sweep if row["method"] == "cam")
    assert best == facts["methods"]["cam"]["MaxBoxAcc"]
    if importlib.util.find_spec("matplotlib"):
        assert cv2.imread(str(out / "sweep.png")).shape == (560, 900, 3)
    page = (out / "index.html").read_text()
    assert page.count("<article>") == 1 + SHAPES
    assert page.count("<img loading") == 4 * SHAPES
    assert "worst 1 · shape_0000" in page
    assert "http" not in page.replace("http-equiv", "")


def test_numbers_are_those_of_the_parts(tiny: Path, tmp_path: Path) -> None:
    """The same by hand: explainer, classifier and metrics, an image at a time."""
    shapes = write_table(tmp_path / "shapes", 4)
    network = Network(str(tiny), "whole")
    data = read_csv(shapes / "boxes.csv")
    groups = tuple(group for group in wsol_protocol.GROUPS if group != wsol_protocol.ROAD)
    measures = Measures(groups, side=100, tolerance=3, step=9000, masks=shapes / "masks")
    wsol_protocol.measure(data, shapes / "images", tmp_path, network, "layercam", measures, workers=0)
    found = tally(data, shapes / "images", tmp_path, "layercam", groups)
    wants = tiny_cam.preprocess()
    squeezed = type(wants)(224, 224, wants.mean)
    explainer = Explainer(tiny_cam.convert(), "layercam", "center", 1, target="input", preprocess=squeezed)
    alone = Scorer(tiny_cam.convert(), "whole", preprocess=wants)
    ious, counts, hits, scores, areas = [], 0, [], [], []
    for each in data.images:
        label = tiny_cam.LABELS.index(str(each.label))
        explained = explainer(shapes / "images" / each.image, label)
        heatmap = wsol.normalized(resize(explained.heatmaps[0], (100, 100)))
        height, width = explained.image.shape[:2]
        ious.append(wsol.threshold_overlaps(heatmap, wsol.resized_boxes(np.array(each.boxes), (width, height), 100)))
        mask = cv2.imread(str(shapes / "masks" / each.masks[0]), cv2.IMREAD_GRAYSCALE)
        counts += wsol.pixel_counts(heatmap, *wsol.merged_masks([mask], side=100))
        point = faithfulness.highest_point(explained.heatmaps[0], (width, height))
        hits.append(faithfulness.pointing_hit(point, np.array(each.boxes), 3))
        seen = alone.prepare(prepare(explained.image, 224))
        shown = wsol.normalized(explained.heatmaps[0]).astype(np.float32)
        both = alone(np.stack([seen, faithfulness.shown_through(seen[None], shown[None])[0]]))[:, label]
        scores.append(both)
        areas.append(
            [
                faithfulness.area_under(curve(seen, shown, label, alone, step=9000))
                for curve in (faithfulness.insertion_scores, faithfulness.deletion_scores)
            ]
        )
    both = np.stack(ious)
    assert found.numbers["MaxBoxAcc"] == wsol.max_box_acc(both[:, 0])
    assert found.numbers["MaxBoxAccV2"] == wsol.max_box_acc_v2(both[:, 1])
    assert np.array_equal(found.sweep["all 0.7"], wsol.box_accuracy(both[:, 1], 0.7))
    assert found.numbers["PxAP"] == wsol.pxap(counts)
    assert found.numbers["pointing"] == np.mean(hits)
    before, after = np.array(scores).T
    assert found.numbers["average drop"] == pytest.approx(faithfulness.average_drop(before, after), abs=1e-5)
    assert found.numbers["increase"] == faithfulness.increase_in_confidence(before, after)
    assert found.numbers["insertion"] == pytest.approx(np.mean(areas, axis=0)[0], abs=1e-5)
    assert found.numbers["deletion"] == pytest.approx(np.mean(areas, axis=0)[1], abs=1e-5)


def test_road_is_that_of_the_parts(fast: Path, shapes: Path, tmp_path: Path) -> None:
    number_classes([], shapes)
    data = read_csv(shapes / "boxes.csv")
    wsol_protocol.measure(
        data, shapes / "images", tmp_path, Network(str(fast), "whole"), "gradcam", Measures(("road",)), workers=0
    )  # fmt: skip
    found = tally(data, shapes / "images", tmp_path, "gradcam", ("road",))
    wants = dataclasses.replace(preprocess_of(None, metadata_of(tiny_classifier())), size=28)
    explainer = Explainer(tiny_classifier(), "gradcam", "center", 1, target="input", preprocess=wants)
    alone = Scorer(tiny_classifier(), "whole")
    scores: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for each in data.images:
        explained = explainer(shapes / "images" / each.image, each.label)
        seen = alone.prepare(prepare(explained.image, 28))
        shown = wsol.normalized(explained.heatmaps[0]).astype(np.float32)
        seed = zlib.crc32(each.image.encode())
        for order, some in scores.items():
            some.append(faithfulness.road_scores(seen, shown, alone, most_relevant=order, seed=seed))
    labels = [each.label for each in data.images]
    most, least = (
        np.stack([one[:, label] for one, label in zip(scores[o], labels, strict=True)]) for o in (True, False)
    )
    assert found.numbers["ROAD"] == pytest.approx(faithfulness.road(most, least), abs=1e-6)
    assert found.road["most relevant first"] == pytest.approx(most.mean(axis=0), abs=1e-6)
    right = np.mean([one.argmax(axis=1) == label for one, label in zip(scores[False], labels, strict=True)], axis=0)
    assert found.road["accuracy, least relevant first"] == pytest.approx(right)


def test_without_matplotlib_there_is_no_picture(
    shapes: Path, fast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    given = number_classes(options(shapes, fast, tmp_path / "out"), shapes)
    code, stdout, stderr = run(*given, "--threshold-sweep", "--json")
    assert code == 0, stderr
    assert "sweep.png was not drawn: that takes matplotlib (pip install matplotlib)" in stderr
    assert "picture" not in json.loads(stdout)["files"]
    assert (tmp_path / "out" / "sweep.csv").is_file()
    assert not (tmp_path / "out" / "sweep.png").exists()


def test_metadata_give_what_the_table_gives(shapes: Path, fast: Path, tmp_path: Path) -> None:
    data = read_csv(shapes / "boxes.csv")
    folder = tmp_path / "metadata"
    folder.mkdir()
    sizes = {each.image: Image.open(shapes / "images" / each.image).size for each in data.images}
    texts = {
        "image_ids": [each.image for each in data.images],
        "class_labels": [f"{each.image},{list(COLORS).index(str(each.label))}" for each in data.images],
        "image_sizes": [f"{name},{width},{height}" for name, (width, height) in sizes.items()],
        "localization": [f"{each.image},{','.join(f'{c:g}' for c in each.boxes[0])}" for each in data.images],
    }
    for name, rows in texts.items():
        (folder / f"{name}.txt").write_text("\n".join(rows))
    text = (shapes / "boxes.csv").read_text()
    for number, color in enumerate(COLORS):
        text = text.replace(f"jpg,{color},", f"jpg,{number},")
    (shapes / "boxes.csv").write_text(text)
    common = ["--images", shapes / "images", "--model", fast, "--workers", 0, "--json"]
    found = [
        json.loads(run(*common, *source, "--out", tmp_path / f"out{number}")[1])["methods"]
        for number, source in enumerate((["--metadata", folder], ["--csv", shapes / "boxes.csv"]))
    ]
    assert found[0] == found[1]
    assert "PxAP" not in found[0]["cam"]


def test_a_threshold_may_be_given(shapes: Path, fast: Path, tmp_path: Path) -> None:
    fast_options = number_classes(options(shapes, fast, tmp_path / "out"), shapes)
    best = json.loads(run(*fast_options, "--json")[1])["methods"]["cam"]
    given = json.loads(run(*fast_options, "--json", "--threshold", 0.9)[1])["methods"]["cam"]
    assert given["threshold"] == 0.9
    assert given["MaxBoxAcc"] == best["MaxBoxAcc"] == best["GT-known"] >= given["GT-known"]


def number_classes(given: list[object], shapes: Path) -> list[object]:
    """For the fast classifier, which does not know colours."""
    text = (shapes / "boxes.csv").read_text()
    for number, color in enumerate(COLORS):
        text = text.replace(f"jpg,{color},", f"jpg,{number},")
    (shapes / "boxes.csv").write_text(text)
    return given


def test_weights_of_a_named_model(tmp_path: Path, repository: Path) -> None:
    """A copy of the weights that come with lenetCAM gives its numbers; the journal names the copy."""
    shapes = write_table(tmp_path / "shapes", 4)
    given = number_classes(options(shapes, Path("lenetCAM"), tmp_path / "out"), shapes)
    weights = tmp_path / "copy.caffemodel"
    named = zoo.find("lenetCAM")
    weights.write_bytes(zoo.weights(named).read_bytes())
    code, stdout, stderr = run(*given, "--weights", weights, "--json")
    assert code == 0, stderr
    own = json.loads(run(*given[:-4], "--out", tmp_path / "own", "--workers", 0, "--json")[1])
    assert json.loads(stdout)["methods"] == own["methods"]
    head = json.loads((tmp_path / "out" / "boxes-cam.jsonl").read_text().splitlines()[0])
    assert head["settings"]["model"]["weights"] == str(weights)
    code, _, stderr = run(*given)
    assert code == 1
    assert "made with other settings" in stderr
    weights.write_bytes(b"no weights")
    assert run(*given[:-4], "--out", tmp_path / "broken", "--weights", weights)[0] == 1
    code, _, stderr = run(*given[:-6], "--model", shapes / "net.onnx", "--weights", weights)
    assert code == 2
    assert "goes with a named model" in " ".join(stderr.split())


def test_preprocessing_of_a_model_that_does_not_state_it(shapes: Path, tmp_path: Path) -> None:
    model = tiny_cam.convert()
    bare = tmp_path / "bare.onnx"
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key != "camrt.preprocess"}
    onnx.helper.set_model_props(model, kept)
    onnx.save(model, bare)
    given = options(shapes, bare, tmp_path / "out")
    code, _, stderr = run(*given)
    assert code == 1
    assert "--preprocess caffe or torchvision" in stderr
    code, stdout, stderr = run(*given, "--preprocess", "caffe", "--metrics", "boxes,drop", "--json")
    assert code == 0, stderr
    found = json.loads(stdout)["methods"]["cam"]
    labels, wants = read_csv(shapes / "boxes.csv"), PRESETS["caffe"]
    alone = Scorer(model, "whole", preprocess=wants)
    explainer = Explainer(model, "cam", "center", 1, target="input", preprocess=dataclasses.replace(wants, size=224))
    before, after = [], []
    for each in labels.images:
        label = tiny_cam.LABELS.index(str(each.label))
        explained = explainer(shapes / "images" / each.image, label)
        seen = alone.prepare(prepare(explained.image, 224))
        shown = wsol.normalized(explained.heatmaps[0]).astype(np.float32)
        both = alone(np.stack([seen, faithfulness.shown_through(seen[None], shown[None])[0]]))[:, label]
        before.append(both[0])
        after.append(both[1])
    expected = faithfulness.average_drop(np.array(before), np.array(after))
    assert found["average drop"] == pytest.approx(expected, abs=1e-5)
    code, _, stderr = run(*given)  # the journal was made with the preset
    assert code == 1


# ----------------------------------------------------------------------------------------------------- stopped, shared


def test_what_is_done_is_not_done_again(shapes: Path, fast: Path, tmp_path: Path) -> None:
    given = number_classes(options(shapes, fast, tmp_path / "out"), shapes)
    first = json.loads(run(*given, "--json")[1])
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").glob("*.jsonl")}
    code, stdout, stderr = run(*given, "--json", "--metrics", "boxes,masks,pointing,drop")
    assert code == 0
    again = json.loads(stdout)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in before} == before  # only what is new was measured
    assert len(journal_lines(tmp_path / "out", "drop-cam")) == SHAPES
    numbers = again["methods"]["cam"]
    assert {name: numbers[name] for name in first["methods"]["cam"]} == first["methods"]["cam"]
    assert "average drop" in numbers
    assert f"{SHAPES} of {SHAPES} images were done before" not in stderr
    assert f"{SHAPES} of {SHAPES} images were done before" in run(*given)[2]


def test_a_changed_annotation_is_measured_again(shapes: Path, fast: Path, tmp_path: Path) -> None:
    given = number_classes(options(shapes, fast, tmp_path / "out"), shapes)
    run(*given)
    rows = (shapes / "boxes.csv").read_text().splitlines()
    values = rows[3].split(",")
    rows[3] = ",".join([*values[:2], "0", "0", "9", "9", values[6]])
    (shapes / "boxes.csv").write_text("\n".join(rows))
    assert f"{SHAPES - 1} of {SHAPES} images were done before" in run(*given)[2]
    fresh = json.loads(run(*options(shapes, fast, tmp_path / "fresh"), "--json")[1])
    assert json.loads(run(*given, "--json")[1])["methods"] == fresh["methods"]


def test_other_settings_are_refused(shapes: Path, fast: Path, tmp_path: Path) -> None:
    given = number_classes(options(shapes, fast, tmp_path / "out"), shapes)
    run(*given)
    code, _, stderr = run(*given, "--resolution", 100)
    assert code == 1
    assert "side: found 224, expected 100" in stderr
    code, _, stderr = run(*given, "--protocol", "center")
    assert "protocol: found 'whole', expected 'center'" in stderr


def test_shards_share_the_images(shapes: Path, fast: Path, tmp_path: Path) -> None:
    given = number_classes(options(shapes, fast, tmp_path / "out"), shapes)
    code, stdout, _ = run(*given, "--shard", "1/3")
    assert code == 0
    assert "shard 1/3 is done; 5 images of other shards are left" in stdout
    code, _, stderr = run(*given, "--merge")
    assert code == 1
    assert "has no result for 5 images" in stderr
    assert json.loads(run(*given, "--shard", "2/3", "--json")[1])["left"] == 2
    last = json.loads(run(*given, "--shard", "3/3", "--json")[1])
    alone = json.loads(run(*options(shapes, fast, tmp_path / "alone"), "--json")[1])
    merged = json.loads(run(*given, "--merge", "--json")[1])
    assert last["methods"] == alone["methods"] == merged["methods"]


@pytest.mark.slow
def test_killed_it_goes_on(fast: Path, tmp_path: Path) -> None:
    shapes = write_table(tmp_path / "many", 40)
    given = number_classes(options(shapes, fast, tmp_path / "out"), shapes)
    text = (shapes / "boxes.csv").read_text()
    command = [sys.executable, "-c", "from camrt.cli import main; main()", "evaluate", "wsol", *map(str, given[:-2])]
    for least in (6, 18):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        deadline = time.monotonic() + 60
        while len(lines_whole(tmp_path / "out" / "pointing-cam.jsonl")) < least and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert least <= len(lines_whole(tmp_path / "out" / "pointing-cam.jsonl")) < 41
    code, stdout, _ = run(*given, "--json")
    assert code == 0
    assert (shapes / "boxes.csv").read_text() == text
    alone = json.loads(run(*options(shapes, fast, tmp_path / "alone"), "--json")[1])
    assert json.loads(stdout)["methods"] == alone["methods"]
    measured = [line["image"] for line in journal_lines(tmp_path / "out", "boxes-cam")]
    assert len(measured) == len(set(measured)) == 40


def lines_whole(file: Path) -> list[bytes]:
    return file.read_bytes().split(b"\n")[:-1] if file.exists() else []


# ------------------------------------------------------------------------------------------------------- what is wrong


def test_images_that_cannot_be_read_count_as_wrong(shapes: Path, tiny: Path, tmp_path: Path) -> None:
    images = sorted((shapes / "images").iterdir())
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:500])
    Image.new("RGB", (20, 20)).save(images[2])
    code, stdout, stderr = run(*options(shapes, tiny, tmp_path / "out"), "--json", "--metrics", "boxes,pointing,drop")
    assert code == 1
    facts = json.loads(stdout)["methods"]["cam"]
    assert facts["MaxBoxAcc"] == facts["top-5"] == (SHAPES - 3) / SHAPES
    assert facts["pointing"] == pytest.approx(np.mean([1 / 2, 1 / 2, 1 / 2, 1]))  # by class: each lost one of two
    reasons = {each["image"]: each["reason"] for each in facts["failed"]}
    assert list(reasons) == [image.name for image in images[:3]]
    assert "there is no such image" in reasons[images[0].name]
    assert "broken or truncated" in reasons[images[1].name]
    assert "20 x 20 pixels, which do not hold its box" in reasons[images[2].name]
    assert f"error: 3 of {SHAPES} images could not be measured" in stderr
    Image.new("RGB", (300, 300), COLORS["red"]).save(images[0])
    again = json.loads(run(*options(shapes, tiny, tmp_path / "out"), "--json", "--metrics", "boxes")[1])
    assert len(again["methods"]["cam"]["failed"]) == 2


def test_sizes_that_do_not_fit(shapes: Path, fast: Path, tmp_path: Path) -> None:
    for name, text in {
        "image_ids": "shape_00001.jpg",
        "class_labels": "shape_00001.jpg,0",
        "image_sizes": "shape_00001.jpg,9,9",
        "localization": "shape_00001.jpg,0,0,5,5",
    }.items():
        (tmp_path / f"{name}.txt").write_text(text)
    given = ["--images", shapes / "images", "--metadata", tmp_path, "--model", fast, "--out", tmp_path / "out"]
    code, stdout, _ = run(*given, "--workers", 0, "--json")
    assert code == 1
    assert "its annotation is of one of 9 x 9" in json.loads(stdout)["methods"]["cam"]["failed"][0]["reason"]


def test_a_class_out_of_range_stops_at_once(shapes: Path, fast: Path, tmp_path: Path) -> None:
    text = (shapes / "boxes.csv").read_text()
    (shapes / "boxes.csv").write_text(text.replace("jpg,red,", "jpg,7,").replace("jpg,green,", "jpg,0,"))
    code, _, stderr = run(*options(shapes, fast, tmp_path / "out"))
    assert code == 1
    assert "boxes.csv:2: found the class 7, expected 0 to 6" in stderr
    (shapes / "boxes.csv").write_text(text)
    code, _, stderr = run(*options(shapes, fast, tmp_path / "out"))
    assert "boxes.csv:2: found the class 'red', which the model does not know" in stderr


def test_masks_of_another_shape_or_none(shapes: Path, tiny: Path, tmp_path: Path) -> None:
    mask = shapes / "masks" / "shape_00002.png"
    Image.new("L", (30, 90)).save(mask)
    code, _, stderr = run(*options(shapes, tiny, tmp_path / "out"))
    assert code == 1
    assert f"{mask}: found a mask of 30 x 90 pixels for 'shape_00002.jpg'" in stderr
    measured = journal_lines(tmp_path / "out", "masks-cam")
    assert [line["image"] for line in measured if "found" not in line] == ["shape_00002.jpg"]
    assert len(measured) == SHAPES  # the others are measured
    mask.unlink()
    code, _, stderr = run(*options(shapes, tiny, tmp_path / "out"))
    assert f"boxes.csv:3: there is no mask {mask}" in stderr
    code, _, stderr = run(*options(shapes, tiny, tmp_path / "out")[:4], "--metrics", "masks", "--model", tiny)
    assert "found no folder of the masks, expected one: --masks" in stderr


def test_metrics_that_the_data_set_does_not_allow(shapes: Path, tiny: Path, tmp_path: Path) -> None:
    (shapes / "boxes.csv").write_text("image,class,x1,y1,x2,y2,mask\nshape_00001.jpg,red,,,,,shape_00001.png\n")
    code, _, stderr = run(*options(shapes, tiny, tmp_path / "out"), "--metrics", "boxes")
    assert code == 1
    assert "boxes.csv:2: found no box of 'shape_00001.jpg', which the metric 'boxes' needs" in stderr
    code, stdout, _ = run(*options(shapes, tiny, tmp_path / "out"), "--json")
    assert code == 0
    assert json.loads(stdout)["methods"]["cam"]["PxAP"] > 0.5
    code, _, stderr = run(*options(shapes, tiny, tmp_path / "out"), "--threshold-sweep")
    assert "no boxes to sweep thresholds over" in stderr
    code, _, stderr = run(*options(shapes, tiny, tmp_path / "out"), "--html")
    assert "no boxes for the page" in stderr


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--methods", "cam,scam"], "found 'scam', expected one of cam, gradcam"),
        (["--methods", ","], "found nothing"),
        (["--metrics", "boxes,luck"], "found 'luck'"),
        (["--protocol", "half"], "'half' is not one of 'whole', 'ten-crop'"),
        (["--threshold", "1"], "0 <= threshold < 1"),
        (["--metadata", "."], "name one of them"),
        (["--shard", "1/2", "--merge"], "leave out --shard"),
        (["--model", "lenetCAN"], "lenetCAN"),
    ],
)
def test_wrong_usage(shapes: Path, fast: Path, tmp_path: Path, extra: list[str], message: str) -> None:
    code, _, stderr = run(*options(shapes, fast, tmp_path / "out"), *extra)
    assert code == 2
    assert message in " ".join(stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_no_folder_of_images(shapes: Path, fast: Path, tmp_path: Path) -> None:
    code, _, stderr = run("--images", tmp_path / "none", "--csv", shapes / "boxes.csv", "--model", fast)
    assert code == 1
    assert "there is no such folder, expected one with the images" in stderr


def test_an_explainer_takes_the_class_with_each_image(shapes: Path, tmp_path: Path) -> None:
    given = number_classes(options(shapes, tmp_path / "explainer.onnx", tmp_path / "out"), shapes)
    onnx.save(explain_graph(tiny_classifier(), "gradcam", "center", 1, target="input"), tmp_path / "explainer.onnx")
    code, stdout, stderr = run(*given, "--methods", "gradcam", "--json")
    assert code == 0, stderr
    assert "MaxBoxAcc" in json.loads(stdout)["methods"]["gradcam"]
    code, stdout, stderr = run(*given, "--json")  # the method is its own where none is named
    assert code == 0, stderr
    assert list(json.loads(stdout)["methods"]) == ["gradcam"]
    code, _, stderr = run(*given, "--methods", "gradcam", "--metrics", "drop")
    assert code == 1
    assert "found an explainer graph, expected the classifier" in stderr
    code, _, stderr = run(*given, "--methods", "cam")
    assert "found an explainer graph with method 'gradcam', expected 'cam'" in stderr
    onnx.save(explain_graph(tiny_classifier(), "cam", "center", 5), tmp_path / "explainer.onnx")
    code, _, stderr = run(*given, "--out", tmp_path / "other")
    assert code == 1
    assert "explainer" in stderr


def test_a_damaged_journal_is_an_error(shapes: Path, fast: Path, tmp_path: Path) -> None:
    given = number_classes(options(shapes, fast, tmp_path / "out"), shapes)
    run(*given)
    file = tmp_path / "out" / "boxes-cam.jsonl"
    file.write_text(file.read_text().replace('"ious": "', '"ious": "!', 1))
    code, _, stderr = run(*given)
    assert code == 1
    assert "the line of 'shape_00001.jpg' in the journal 'boxes-cam' is damaged" in stderr


def test_journals_of_methods_have_names() -> None:
    assert wsol_protocol.journal_name("boxes", "gradcam++") == "boxes-gradcampp"
    names = [
        wsol_protocol.journal_name(group, method)
        for group in wsol_protocol.GROUPS
        for method in ("gradcam", "gradcam++")
    ]
    assert len(set(names)) == len(names)


def test_checks_before_anything_is_loaded(shapes: Path) -> None:
    data = read_csv(shapes / "boxes.csv")
    wsol_protocol.check(data, Measures(wsol_protocol.GROUPS, masks=shapes / "masks"))
    with pytest.raises(CamrtError, match="there is no mask"):
        wsol_protocol.check(data, Measures(wsol_protocol.GROUPS, masks=shapes / "images"))
