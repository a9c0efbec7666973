"""What `camrt batch` says before Ray is started."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import pytest

from camrt import CamrtError
from tests.camrt.cluster.jobs import write_photos
from tests.camrt.commands.command_line import run
from tests.tiny_models import tiny_explainer


@pytest.fixture
def options(tmp_path: Path) -> list[object]:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    write_photos(tmp_path / "photos", 2)
    onnx.save(tiny_explainer(), tmp_path / "tiny.onnx")
    return [tmp_path / "photos", "--model", tmp_path / "tiny.onnx", "--out", tmp_path / "out"]


@pytest.mark.parametrize("module", ["ray", "pyarrow"])
def test_what_is_not_installed_is_named(
    module: str, options: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    code, _, stderr = run("batch", *options)
    assert (code, f"{module} is not installed" in stderr, "ray[data]" in stderr) == (1, True, True), stderr
    assert not list((tmp_path / "out").glob("shard-*"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--actors", "0"), "found '0', expected N or MIN:MAX"),
        (("--actors", "3:1"), "found '3:1'"),
        (("--actors", "x"), "found 'x'"),
        (("--target", "input"), "name the column of the classes"),
        (("--target", "3", "--target-column", "x"), "leave out --target"),
        (("--shard-size", "0"), "Invalid value for '--shard-size'"),
    ],
)
def test_options_that_do_not_go_together(more: tuple[str, ...], said: str, options: list[object]) -> None:
    code, _, stderr = run("batch", *options, *more)
    assert code == 2
    assert said in " ".join(stderr.replace("│", " ").split())


def test_nothing_to_explain(options: list[object], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, stderr = run("batch", tmp_path / "empty", tmp_path / "none", *options[1:])
    assert code == 1
    assert f"error: {tmp_path}/empty: the folder holds no images" in stderr
    assert f"error: {tmp_path}/none: there is no such file" in stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_results_is_left_alone(options: list[object], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "shard-0.parquet").write_bytes(b"torn")
    code, _, stderr = run("batch", *options)
    assert (code, "is no whole Parquet file" in stderr, "Remove it" in stderr) == (1, True, True)
    assert (tmp_path / "out" / "shard-0.parquet").read_bytes() == b"torn"


def test_a_copied_shard_is_told(options: list[object], tmp_path: Path) -> None:
    from camrt.cluster import inputs
    from camrt.cluster.run import Outcome, _left
    from camrt.cluster.shards import Shards
    from tests.camrt.cluster.jobs import compute, job_of

    job, graph = job_of(tmp_path / "out", tmp_path / "tiny.onnx")
    images, _ = inputs.find([str(tmp_path / "photos")])
    compute(job, graph, images)
    outcome = Outcome()
    assert len(_left(Shards.of(job.folder), images, outcome, retry_errors=False)) == 0
    assert (outcome.total, outcome.skipped) == (2, 2)
    (shard,) = job.folder.glob("shard-*")
    (job.folder / "shard-copy.parquet").write_bytes(shard.read_bytes())
    with pytest.raises(CamrtError, match="holds 2 images in several rows, such as"):
        _left(Shards.of(job.folder), images, Outcome(), retry_errors=False)
