from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from camrt import CamrtError
from camrt.cluster import shards
from camrt.cluster.shards import Shards

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

SHAPE = (2, 3, 3)
SETTINGS: dict[str, Any] = {"format": 1, "job": {"model": "tiny"}, "labels": None}


def write(file: Path, paths: list[str], settings: dict[str, Any] = SETTINGS) -> Path:
    with file.open("wb") as stream, shards.Writer(stream, SHAPE, settings) as writer:
        for path in paths:
            row = {"path": path, "size": 1, "mtime_ns": 2}
            writer.add({**row, "error": "broken"} if "bad" in path else {**row, "heatmap": bytes(36), "peaks": [1, 1]})
    return file


@pytest.mark.parametrize("scale", [1.0, 3e38, 1e-40, 0.0])
def test_maps_keep_eleven_bits_whatever_their_range(scale: float) -> None:
    maps = np.random.default_rng(0).normal(size=SHAPE).clip(-1, 1).astype(np.float32) * np.float32(scale)
    peaks, halves = shards.packed(maps)
    assert len(halves) == 2 * maps.size
    found = shards.unpacked(peaks.tolist(), halves)
    highest = np.abs(maps).max(axis=(1, 2), keepdims=True)
    assert (np.abs(found - maps) <= highest * 2.0**-11 + 1e-45).all()
    if scale:
        assert halves == (maps / highest).astype("<f2").tobytes()
    # An independent reader: the divisor times the half-precision number.
    by_hand = np.frombuffer(halves, "<f2").reshape(SHAPE).astype(np.float64) * peaks[:, None, None]
    np.testing.assert_allclose(found, by_hand, rtol=1e-6, atol=1e-45)


def test_maps_with_nan_stay_nan() -> None:
    maps = np.ones(SHAPE, np.float32)
    maps[0, 1, 1] = np.nan
    assert np.isnan(shards.unpacked(*shards.packed(maps))).sum() == 1


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_maps_are_those_that_were_added_in_several_row_groups(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_GROUP_BYTES", 3 * 36)
    rng, file, memory = np.random.default_rng(0), tmp_path / "shard-1.parquet", io.BytesIO()
    maps = [None if number in (0, 4, 5, 10) else rng.bytes(36) for number in range(11)]
    with file.open("wb") if kind == "file" else memory as stream:
        with shards.Writer(stream, SHAPE, SETTINGS) as writer:
            for number, each in enumerate(maps):
                writer.add({"path": str(number), "heatmap": each})
        if kind == "memory":
            file.write_bytes(memory.getvalue())
    found = parquet.ParquetFile(file)
    assert found.num_row_groups == 4
    assert found.read()["heatmap"].to_pylist() == maps


def test_a_full_disk_is_an_error_of_the_system() -> None:
    with Path("/dev/full").open("wb") as stream, pytest.raises(OSError, match="No space left"):  # noqa: SIM117
        with shards.Writer(stream, SHAPE, SETTINGS) as writer:
            writer.add({"path": "a", "heatmap": bytes(36)})


def test_rows_are_removed_and_the_rest_stays(tmp_path: Path) -> None:
    write(tmp_path / "shard-1.parquet", ["a", "bad", "c"])
    write(tmp_path / "shard-2.parquet", ["d"])
    found = Shards.of(tmp_path)
    found.without({0: {"bad"}, 1: {"d"}})
    again = Shards.of(tmp_path)
    assert [file.name for file in again.files] == ["shard-1.parquet"]
    assert again.settings == SETTINGS
    assert [row["path"] for row in again.rows(["path"])] == ["a", "c"]
    assert parquet.read_table(again.files[0])["heatmap"].to_pylist() == [bytes(36)] * 2


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "shard-1.parquet", ["a"])
    torn = tmp_path / "shard-2.parquet"
    for content, said in {
        whole.read_bytes()[:-9]: "is no whole Parquet file",
        b"": "is no whole Parquet file",
    }.items():
        torn.write_bytes(content)
        with pytest.raises(CamrtError, match=said) as caught:
            Shards.of(tmp_path)
        assert "Remove it: the same command" in str(caught.value)
    parquet.write_table(pa.table({"x": [1]}), torn)
    with pytest.raises(CamrtError, match=r"does not state its settings in the metadata camrt\.batch"):
        Shards.of(tmp_path)
    write(torn, ["b"], {**SETTINGS, "job": {"model": "other"}})
    with pytest.raises(CamrtError, match=r"has other settings than shard-1\.parquet"):
        Shards.of(tmp_path)


def test_names_depend_on_what_identifies_the_images() -> None:
    def name(**changes: Any) -> str:
        row = {"path": "a", "size": 1, "mtime_ns": 2, "target": None, "row": None, **changes}
        return shards.name_of(pa.table({key: [value] for key, value in row.items()}))

    assert name() == name(row=3)
    assert len({name(), name(path="b"), name(size=2), name(mtime_ns=3), name(target="7")}) == 5


def test_the_metadata_are_json_that_others_read(tmp_path: Path) -> None:
    file = write(tmp_path / "shard-1.parquet", ["a"])
    assert json.loads(parquet.read_metadata(file).metadata[b"camrt.batch"]) == SETTINGS
