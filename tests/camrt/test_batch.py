"""What `Batch` promises beyond what `camrt explain` shows of it in test_cli.py."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
from PIL import Image

from camrt import CamrtError
from camrt.batch import Batch, find_images
from camrt.results import LINES
from converters import zoo
from tests.tiny_models import photo, tiny_explainer


@pytest.fixture
def model(tmp_path: Path) -> str:
    onnx.save(tiny_explainer(top=2), tmp_path / "tiny.onnx")
    return str(tmp_path / "tiny.onnx")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate(("a.png", "b.jpg", "c.png")):
        Image.fromarray(photo(30, 40, seed)).save(folder / name)
    return folder


def test_a_second_run_has_nothing_to_do(photos: Path, model: str, tmp_path: Path) -> None:
    images, missing = find_images([str(photos), str(tmp_path / "none.png")])
    assert [Path(image.path).name for image in images] == ["a.png", "b.jpg", "c.png"]
    assert missing == [(str(tmp_path / "none.png"), "there is no such file")]
    counts: list[int] = []

    @contextlib.contextmanager
    def progress(total: int) -> Iterator[Callable[[int], None]]:
        counts.append(total)
        yield counts.append

    for explained in (3, 0):
        with Batch(tmp_path / "out", model, maps="npz") as batch:
            assert batch.explain(images, batch=2, progress=progress) == []
            assert (batch.total, batch.explained, batch.skipped) == (3, explained, 3 - explained)
    assert counts == [3, 0, 1, 1, 1]
    lines = [json.loads(line) for line in (tmp_path / "out" / LINES).read_text().splitlines()]
    assert [line["path"] for line in lines] == [image.path for image in images]
    assert lines[0]["files"] == ["a_top1.png", "a_top2.png", "a_maps.npz"]


def test_one_at_a_time(photos: Path, model: str, tmp_path: Path) -> None:
    with Batch(tmp_path / "out", model), pytest.raises(CamrtError, match="another camrt explain"):
        Batch(tmp_path / "out", model).__enter__()
    with Batch(tmp_path / "out", model) as batch:
        assert batch.explain(find_images([str(photos)])[0]) == []
    with pytest.raises(RuntimeError, match="with block"):
        batch.explain([])


def test_an_odd_name(photos: Path, model: str, tmp_path: Path) -> None:
    (photos / "a.png").rename(photos / "..png")
    for explained in (1, 0):
        with Batch(tmp_path / "out", model) as batch:
            assert batch.explain(find_images([str(photos / "..png")])[0]) == []
            assert batch.explained == explained
    assert (tmp_path / "out" / "..png_top1.png").exists()


def test_lenet_cam_by_name(tmp_path: Path) -> None:
    sample = zoo.models_folder() / "lenetCAM" / "sample.png"
    with Batch(tmp_path, "lenetCAM", top=1, cards=True) as batch:
        images, _ = find_images([str(sample)])
        assert batch.explain(images) == []
        assert "sample.png" in batch.page(images).read_text()
    (line,) = (json.loads(each) for each in (tmp_path / LINES).read_text().splitlines())
    assert [one["label"] for one in line["top"]] == ["3"]
