"""What `Batch` promises beyond what `camrt explain` shows of it in test_cli.py."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from PIL import Image

from camrt import CamrtError, Explanation, Style, images, results
from camrt.batch import Batch, find_images
from camrt.engines import openvino
from camrt.render import PLAIN
from camrt.results import LINES
from camrt.session import Session
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
    found, missing = find_images([str(photos), str(tmp_path / "none.png")])
    assert [Path(image.path).name for image in found] == ["a.png", "b.jpg", "c.png"]
    assert missing == [(str(tmp_path / "none.png"), "there is no such file")]
    counts: list[int] = []

    @contextlib.contextmanager
    def progress(total: int) -> Iterator[Callable[[int], None]]:
        counts.append(total)
        yield counts.append

    for explained in (3, 0):
        with Batch(tmp_path / "out", model, maps="npz") as batch:
            assert batch.explain(found, batch=2, progress=progress) == []
            assert (batch.total, batch.explained, batch.skipped) == (3, explained, 3 - explained)
    assert counts == [3, 0, 1, 1, 1]
    lines = [json.loads(line) for line in (tmp_path / "out" / LINES).read_text().splitlines()]
    assert [line["path"] for line in lines] == [image.path for image in found]
    assert lines[0]["files"] == ["a_top1.jpg", "a_top2.jpg", "a_maps.npz"]


def test_the_precision_decides_which_results_count(photos: Path, model: str, tmp_path: Path) -> None:
    """Another provider at the same precision has nothing to do; another precision has everything."""
    pytest.importorskip("openvino", reason="needs the extra openvino")
    found = find_images([str(photos)])[0]
    half = "bf16" if openvino.can("bf16") else "auto"
    for providers, precision, explained in (
        ("cpu", None, 3),
        ("openvino", "fp32", 0),
        ("openvino", half, 3),
        ("openvino", half, 0),
        ("cpu", "fp32", 3),
    ):
        with Batch(tmp_path / "out", model, maps="npz", providers=providers, precision=precision) as batch:
            assert batch.explain(found) == []
            assert batch.explained == explained
            if explained:
                for line in batch.lines(found):
                    assert line["provider"] == {"cpu": "CPUExecutionProvider", "openvino": "OpenVINO"}[providers]
                    assert line["precision"] == (precision or "fp32") or precision == "auto"
                    assert line["settings"].get("precision") == (half if precision == half else None)


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
    assert (tmp_path / "out" / "..png_top1.jpg").exists()


def test_lenet_cam_by_name(tmp_path: Path) -> None:
    sample = zoo.models_folder() / "lenetCAM" / "sample.png"
    with Batch(tmp_path, "lenetCAM", top=1, cards=True) as batch:
        found, _ = find_images([str(sample)])
        assert batch.explain(found) == []
        assert "sample.png" in batch.page(found).read_text()
    (line,) = (json.loads(each) for each in (tmp_path / LINES).read_text().splitlines())
    assert [one["label"] for one in line["top"]] == ["3"]


# ------------------------------------------------------------------------------- one image does not stop the others


def test_whatever_happens_to_an_image_is_its_line(
    photos: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading, computing, drawing and writing, each of which fails for one of the images; and again at a restart."""
    for seed, name in enumerate(("d.png", "e.png", "f.png", "g.png"), 3):
        Image.fromarray(photo(30, 40, seed)).save(photos / name)
    run, overlay, resize, write = Session.run, Explanation.overlay, images.prepare, results.write

    def fail_to_run(session: Session, feeds: Any) -> Any:
        if any((square == resize(images.decode(photos / "c.png"), 32)).all() for square in feeds["image"]):
            raise CamrtError("ONNX Runtime failed")
        return run(session, feeds)

    def fail_to_draw(one: Explanation, i: int = 0, *style: Style) -> Any:
        if "d.png" in one.source:
            raise MemoryError
        return overlay(one, i, *style)

    def fail_to_prepare(image: Any, size: int) -> Any:
        if image.shape == (31, 41, 3):
            raise ValueError("no such size")
        return resize(image, size)

    def fail_to_write(path: Path, content: bytes) -> None:
        if path.name.startswith("f_"):
            raise CamrtError("cannot be written: File name too long", file=str(path))
        write(path, content)

    Image.fromarray(photo(31, 41)).save(photos / "e.png")
    monkeypatch.setattr(Session, "run", fail_to_run)
    monkeypatch.setattr(Explanation, "overlay", fail_to_draw)
    monkeypatch.setattr(images, "prepare", fail_to_prepare)
    monkeypatch.setattr(results, "write", fail_to_write)
    found, _ = find_images([str(photos)])
    for explained in (3, 0):
        with Batch(tmp_path / "out", model) as batch:
            failed = dict(batch.explain(found, batch=3))
            assert batch.explained == explained
        assert sorted(Path(name).name for name in failed) == ["c.png", "d.png", "e.png", "f.png"]
        reasons = {Path(name).name: reason for name, reason in failed.items()}
        assert all(str(photos / name) in reasons[name] for name in ("c.png", "d.png", "e.png"))
        assert "ONNX Runtime failed" in reasons["c.png"]
        assert "not enough memory" in reasons["d.png"]
        assert "ValueError: no such size" in reasons["e.png"]
        assert "File name too long" in reasons["f.png"]
    monkeypatch.undo()
    with Batch(tmp_path / "out", model) as batch:
        assert batch.explain(found) == []
        assert (batch.explained, batch.skipped) == (4, 3)


def test_a_full_disk_is_no_fault_of_an_image(
    photos: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise CamrtError("cannot be written: No space left on device", file=str(path)) from error

    monkeypatch.setattr(results, "write", full)
    with pytest.raises(CamrtError, match="No space left"), Batch(tmp_path / "out", model) as batch:
        batch.explain(find_images([str(photos)])[0])


@pytest.mark.parametrize("size", [(1_000_001, 1), (1, 1_000_001)])
def test_odd_images_and_names_are_explained(size: tuple[int, int], model: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", size).save(folder / "line.bmp")
    long = "x" * 245 + ".png"  # 249 bytes: no room for _top1.jpg
    for name in (long, long.replace("x.", "y."), "z.png"):
        Image.fromarray(photo(30, 40)).save(folder / name)
    found, _ = find_images([str(folder)])
    for explained in (4, 0):
        with Batch(tmp_path / "out", model, cards=True, maps="png", style=Style(boxes="all")) as batch:
            assert batch.explain(found) == []
            assert batch.explained == explained
        files = [name for line in batch.lines(found) for name in line["files"]]
        assert len(set(files)) == 16
        assert all((tmp_path / "out" / name).exists() for name in files)


@pytest.mark.parametrize("options", [{"layer": "nothing"}, {"method": "gradcam"}, {"top": 99}])
def test_a_run_that_explains_nothing_leaves_nothing(options: Any, photos: Path, model: str, tmp_path: Path) -> None:
    found, _ = find_images([str(photos)])
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    for out in (tmp_path / "new" / "deep", tmp_path / "there"):
        with pytest.raises(CamrtError), Batch(out, model, **options) as batch:
            batch.explain(found)
    assert not (tmp_path / "new").exists()
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine.txt"]
    with Batch(tmp_path / "there", model) as batch:
        batch.explain(found)
    before = sorted(path.name for path in (tmp_path / "there").iterdir())
    with pytest.raises(CamrtError), Batch(tmp_path / "there", model, **options) as batch:
        batch.explain(found)
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == before


def test_the_largest_side_is_an_option_that_counts(model: str, tmp_path: Path) -> None:
    Image.fromarray(photo(60, 80)).save(tmp_path / "a.png")
    found, _ = find_images([str(tmp_path / "a.png")])
    for side, size in ((40, (40, 30)), (None, (80, 60)), (40, (40, 30))):
        with Batch(tmp_path / "out", model, max_side=side, style=PLAIN, maps="png") as batch:
            batch.explain(found)
            assert batch.explained == 1
        assert Image.open(tmp_path / "out" / "a_top1.jpg").size == size
        assert Image.open(tmp_path / "out" / "a_map1.png").size == size
        (line,) = batch.lines(found)
        assert (line["width"], line["height"]) == (80, 60)
