"""Images, a job and its results, for the tests of workers and runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from camrt import Explainer
from camrt.cluster import run, shards
from camrt.cluster.job import GRAPH, TOKEN, Job, graph_of
from camrt.cluster.shards import Shards, unpacked
from camrt.cluster.worker import Worker
from camrt.loading import Request
from tests.tiny_models import photo


def write_photos(folder: Path, count: int) -> list[Path]:
    """Write small images of several sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(photo(24 + number % 5, 30, number)).save(path)
    return paths


def job_of(folder: Path, model: Path | str, request: Request | None = None, **changes: Any) -> tuple[Job, bytes | Path]:
    """Return a job and its graph."""
    graph, sha256, stated = graph_of(str(model), request or Request())
    return Job(folder, folder / GRAPH, sha256, str(model), stated, **changes), graph


def task_of(images: Any) -> Any:
    """Return what a run hands to a worker."""
    import pyarrow as pa

    return pa.table({"name": [shards.name_of(images)], "images": [run._serialized(images)]})


def compute(job: Job, graph: bytes | Path, images: Any) -> dict[str, Any]:
    """Do what a run does for one shard."""
    job.folder.mkdir(exist_ok=True)
    (job.folder / TOKEN).write_text(json.dumps(job.token))
    assert isinstance(graph, bytes)
    job.graph.write_bytes(graph)
    (summary,) = Worker(job)(task_of(images)).to_pylist()
    return dict(summary)


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the rows by the images' names. An image with two rows is an error."""
    rows = list(Shards.of(folder).rows(["path", "target", "classes", "scores", "labels", "width", "height", "boxes",
                                        "peaks", "heatmap", "all_scores", "overlays", "error"]))  # fmt: skip
    found = {Path(row["path"]).name: row for row in rows}
    assert len(found) == len(rows)
    return found


def assert_explained(row: dict[str, Any], explainer: Explainer, target: Any = None) -> None:
    """Compare a row with the image explained here, alone."""
    found = explainer(row["path"], target)
    height, width = found.original_size
    assert row["error"] is None
    assert (row["width"], row["height"], row["classes"]) == (width, height, found.classes.tolist())
    assert row["labels"] == list(found.labels)
    np.testing.assert_allclose(row["scores"], found.scores, rtol=1e-5)
    np.testing.assert_allclose(row["all_scores"], found.all_scores, rtol=1e-5)
    highest = np.abs(found.heatmaps).max()
    np.testing.assert_allclose(unpacked(row["peaks"], row["heatmap"]), found.heatmaps, rtol=0, atol=highest * 2**-11)
