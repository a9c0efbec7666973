"""A worker without Ray: what a shard says, and what goes wrong."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from camrt import Explainer
from camrt.cluster import inputs, shards
from camrt.cluster.inputs import Selection
from camrt.cluster.job import TOKEN
from camrt.cluster.worker import Worker
from camrt.loading import Request
from camrt.render import PLAIN, Style, encode
from tests.camrt.cluster.jobs import assert_explained, compute, job_of, rows_of, task_of, write_photos
from tests.tiny_models import tiny_classifier, tiny_explainer

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(tiny_explainer(top=2), tmp_path / "tiny.onnx")
    return tmp_path / "tiny.onnx"


def test_rows_say_what_an_explainer_says(tmp_path: Path, model: Path) -> None:
    paths = write_photos(tmp_path / "photos", 40)
    paths[7].write_bytes(b"no image")
    paths[39].write_bytes(b"")  # the last one
    job, graph = job_of(tmp_path / "out", model, style=PLAIN)
    images, _ = inputs.find([str(tmp_path / "photos")])
    summary = compute(job, graph, images)
    assert (summary["rows"], summary["failed"], summary["fatal"], summary["died"]) == (40, 2, None, False)
    rows = rows_of(job.folder)
    assert list(rows) == [path.name for path in paths]
    explainer = Explainer(model)
    for path in paths:
        row = rows[path.name]
        if path in (paths[7], paths[39]):
            assert row["error"].startswith("is no image" if path == paths[7] else "found an empty file")
            assert row["heatmap"] is None
        else:
            assert_explained(row, explainer)
            assert row["boxes"] is row["overlays"] is None
    settings = shards.Shards.of(job.folder).settings
    assert settings is not None
    assert settings["job"]["sha256"] == job.sha256
    assert settings["labels"] == list(explainer.labels or ())
    assert {"camrt", "onnxruntime", "numpy"} == set(settings["versions"])
    assert not list(job.folder.glob(".*.part"))
    assert len(parquet.read_table(job.folder)) == 40  # by the folder's name, beside the graph and the token


@pytest.mark.parametrize("style", [Style(), Style(boxes="all", thresholds=(30, 90, 120), caption=False)])
def test_boxes_overlays_and_smaller_maps(tmp_path: Path, model: Path, style: Style) -> None:
    paths = write_photos(tmp_path / "photos", 3)
    job, graph = job_of(tmp_path / "out", model, style=style, overlays=True, map_side=16)
    images, _ = inputs.find([str(path) for path in paths])
    assert compute(job, graph, images)["fatal"] is None
    explainer = Explainer(model)
    for path in paths:
        row, found = rows_of(job.folder)[path.name], explainer(path)
        boxes = [found.best_box(i) if style.boxes == "best" else found.boxes(i, style.thresholds) for i in range(2)]
        assert row["boxes"] == [each.tolist() for each in boxes]
        assert len(row["heatmap"]) == 2 * 2 * 16 * 16
        small = found.resized(1, (16, 16))
        kept = shards.unpacked(row["peaks"], row["heatmap"])[1]
        np.testing.assert_allclose(kept, small, rtol=0, atol=np.abs(small).max() * 2**-11)
        for i, name in enumerate(row["overlays"]):
            assert (job.folder / name).read_bytes() == encode(found.overlay(i, style), "jpeg")


def test_classes_and_bytes_come_from_tables(tmp_path: Path) -> None:
    onnx.save(tiny_classifier(), tmp_path / "classifier.onnx")
    paths = write_photos(tmp_path, 30)
    labels = [number % 9 for number in range(30)]  # 7 classes: some are wrong
    table = {"image": [{"bytes": path.read_bytes(), "path": str(path)} for path in paths], "label": labels}
    table["image"][4]["bytes"] = None
    parquet.write_table(pa.table(table), tmp_path / "hub.parquet", row_group_size=7)
    request = Request(target="input", top=1)
    job, graph = job_of(tmp_path / "out", tmp_path / "classifier.onnx", request)
    images, _ = inputs.find([str(tmp_path / "hub.parquet")], Selection(target_column="label"))
    images = images.slice(3).filter(pa.array([row != 20 for row in range(3, 30)]))  # from within a row group on
    summary = compute(job, graph, images)
    wrong = sum(label > 6 for row, label in enumerate(labels) if row > 3 and row not in (4, 20))
    assert (summary["fatal"], summary["rows"], summary["failed"]) == (None, 26, wrong + 1)
    explainer = Explainer(tmp_path / "classifier.onnx", target="input", top=1)
    for name, row in rows_of(job.folder).items():
        number = int(name[:3])
        if number == 4:
            assert row["error"] == "found null, expected the bytes of an image"
        elif labels[number] > 6:
            assert "class" in row["error"]
        else:
            assert_explained(row, explainer, labels[number])


def test_orientation_may_be_ignored(tmp_path: Path, model: Path) -> None:
    (path,) = write_photos(tmp_path / "photos", 1)
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(path.with_suffix(".jpg"), exif=exif)
    path.unlink()
    sizes = []
    for number, source in enumerate(
        (str(tmp_path / "photos"), str(tmp_path / "photos"), (tmp_path / "photos").as_uri())
    ):
        job, graph = job_of(tmp_path / f"out{number}", model, as_stored=number > 0)
        assert compute(job, graph, inputs.find([source])[0])["fatal"] is None
        sizes += [(row["width"], row["height"]) for row in rows_of(job.folder).values()]
    assert sizes == [(24, 30), (30, 24), (30, 24)]


def test_a_folder_that_is_not_shared_or_has_another_run(tmp_path: Path, model: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    job, graph = job_of(tmp_path / "out", model)
    images, _ = inputs.find([str(tmp_path / "photos")])
    compute(job, graph, images)
    before = {file.name: file.stat().st_mtime_ns for file in job.folder.glob("shard-*")}
    task = task_of(images)
    (job.folder / TOKEN).write_text('"another"')
    assert "another run has begun" in Worker(job)(task)["fatal"][0].as_py()
    (job.folder / TOKEN).unlink()
    assert "expected a folder that all machines share" in Worker(job)(task)["fatal"][0].as_py()
    assert {file.name: file.stat().st_mtime_ns for file in job.folder.glob("shard-*")} == before


def test_a_shard_is_explained_while_the_one_before_is_written(tmp_path: Path, model: Path) -> None:
    """And its images are read after those of the one before: a worker that dies is busy with few of them."""
    paths = write_photos(tmp_path / "photos", 12)
    job, graph = job_of(tmp_path / "out", model, engine={"threads": 2})
    images, _ = inputs.find([str(tmp_path / "photos")])
    compute(job, graph, images.slice(0, 0))
    has_begun, read = threading.Event(), list[str]()

    class Slow(Worker):
        def _image(self, source: Any, tables: Any) -> Any:
            read.append(Path(source["path"]).name)
            if source["path"] == str(paths[6]):
                has_begun.set()
            return super()._image(source, tables)

        def _row(self, name: str, source: Any, outcome: Any) -> Any:
            assert has_begun.wait(30)
            return super()._row(name, source, outcome)

    worker = Slow(job)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(worker, (task_of(images.slice(0, 6)), task_of(images.slice(6))))
    for summary in (first, second):
        assert (summary["rows"][0].as_py(), summary["fatal"][0].as_py()) == (6, None)
    assert read == [path.name for path in paths] or read == [path.name for path in (*paths[6:], *paths[:6])]
    assert len(list(job.folder.glob("shard-*"))) == 3  # one is empty
    explainer = Explainer(model)
    for row in rows_of(job.folder).values():
        assert_explained(row, explainer)


def test_a_shard_is_given_up_after_three_deaths(tmp_path: Path, model: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    job, graph = job_of(tmp_path / "out", model)
    images, _ = inputs.find([str(tmp_path / "photos")])

    class Dying(Worker):
        def _compute(self, name: str, found: Any, is_read: Any) -> Any:
            raise SystemExit  # as a process that ends: nothing is returned

    compute(job, graph, images.slice(0, 1))
    task = task_of(images)
    for _ in range(3):
        with pytest.raises(SystemExit):
            Dying(job)(task)
    assert Worker(job)(task).to_pylist()[0]["died"]
    assert len(list(job.folder.glob("shard-*"))) == 1


def test_a_model_that_does_not_run_ends_the_run(tmp_path: Path, model: Path) -> None:
    write_photos(tmp_path / "photos", 1)
    job, graph = job_of(tmp_path / "out", model, engine={"providers": "nonsense"})
    summary = compute(job, graph, inputs.find([str(tmp_path / "photos")])[0])
    assert "nonsense" in summary["fatal"]
