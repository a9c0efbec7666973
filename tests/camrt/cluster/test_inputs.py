from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from camrt import CamrtError
from camrt.cluster import inputs
from camrt.cluster.inputs import NOT_THERE, Selection
from tests.tiny_models import photo

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "b c%20.jpg", "more/ü#1?.png", ".hidden.png")):
        Image.fromarray(photo(30, 40, seed)).save(folder / name)
    (folder / "notes.md").write_text("no image")
    return folder


def names(table: pa.Table, folder: Path) -> list[str]:
    return [os.path.relpath(path, folder) for path in table["path"].to_pylist()]


def test_folders_globs_and_files_each_once(photos: Path) -> None:
    table, missing = inputs.find([str(photos), str(photos / "*.png"), str(photos / "none.png")])
    assert names(table, photos) == ["a.png", "b c%20.jpg", "more/ü#1?.png"]
    assert table["size"].to_pylist() == [(photos / name).stat().st_size for name in names(table, photos)]
    assert table["mtime_ns"].to_pylist() == [(photos / name).stat().st_mtime_ns for name in names(table, photos)]
    assert missing == [(str(photos / "none.png"), "there is no such file")]


def test_lists_begin_at_their_folder_or_the_root(photos: Path, tmp_path: Path) -> None:
    (photos / "all.txt").write_text("a.png\n\nmore/ü#1?.png\nlost.png\n", encoding="utf-8")
    table, missing = inputs.find([str(photos / "all.txt")])
    assert names(table, photos) == ["a.png", "more/ü#1?.png", "lost.png"]
    assert not missing
    assert table["size"].to_pylist()[-1] == NOT_THERE  # a row, so that its absence is on record

    (tmp_path / "all.lst").write_text("a.png\n")
    assert names(inputs.find([str(tmp_path / "all.lst")], Selection(root=str(photos)))[0], photos) == ["a.png"]


def test_tables_of_paths_with_classes(photos: Path) -> None:
    (photos / "boxes.csv").write_text("image,class,x1\na.png,3,0\na.png,3,9\nb c%20.jpg,5,1\n")
    table, _ = inputs.find([str(photos / "boxes.csv")], Selection(target_column="class"))
    assert (names(table, photos), table["target"].to_pylist()) == (["a.png", "b c%20.jpg"], ["3", "5"])

    parquet.write_table(pa.table({"where": ["a.png", "b c%20.jpg"]}), photos / "t.parquet")
    table, _ = inputs.find([str(photos / "t.parquet")], Selection(column="where"))
    assert (names(table, photos), table["target"].to_pylist()) == (["a.png", "b c%20.jpg"], [None, None])


def test_bytes_are_named_and_stay_in_their_file(tmp_path: Path) -> None:
    both = [{"bytes": b"1", "path": "cat.png"}, {"bytes": b"2", "path": None}]
    parquet.write_table(pa.table({"image": both, "label": [4, 2]}), tmp_path / "hub.parquet")
    parquet.write_table(pa.table({"bytes": [b"1", b"2"]}), tmp_path / "plain.parquet")
    table, _ = inputs.find([str(tmp_path / "hub.parquet")], Selection(target_column="label"))
    assert table["path"].to_pylist() == ["cat.png", f"{tmp_path}/hub.parquet#1"]
    assert table.select(["column", "row", "target"]).to_pydict() == {
        "column": ["image.bytes"] * 2, "row": [0, 1], "target": ["4", "2"],
    }  # fmt: skip
    table, _ = inputs.find([str(tmp_path / "plain.parquet")])
    assert table["path"].to_pylist() == [f"{tmp_path}/plain.parquet#{row}" for row in (0, 1)]


def test_urls_of_a_folder_lead_back_to_the_files(photos: Path) -> None:
    table, _ = inputs.find([photos.as_uri()])
    assert len(table) == 3
    for url, size, mtime_ns in zip(*(table[name].to_pylist() for name in ("path", "size", "mtime_ns")), strict=True):
        filesystem, path = inputs.open_url(url)
        assert filesystem.open_input_stream(path).read() == Path(path).read_bytes()
        assert (size, mtime_ns) == (Path(path).stat().st_size, Path(path).stat().st_mtime_ns)
    one, _ = inputs.find([table["path"][2].as_py()])
    assert one.equals(table.slice(2, 1))


def test_a_bucket(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that is not the local one: paths begin with the bucket, as in S3."""
    from pyarrow import fs

    bucket = fs.SubTreeFileSystem(str(photos.parent), fs.LocalFileSystem())
    monkeypatch.setattr(inputs, "_filesystem", lambda scheme, host, query: (bucket, f"{host}/"))
    (photos / "all.txt").write_text("a.png\nlost.png\nfile:///x.png\n")
    table, _ = inputs.find(["s3://photos?region=r", "s3://photos/all.txt?region=r"])
    found = table["path"].to_pylist()
    assert found[:3] == [
        f"s3://photos/{name}?region=r" for name in ("a.png", "b%20c%2520.jpg", "more/%C3%BC%231%3F.png")
    ]
    assert found[3:] == ["s3://photos/lost.png?region=r", "file:///x.png"]
    for url in found[:3]:
        filesystem, path = inputs.open_url(url)
        assert filesystem.open_input_stream(path).read() == (photos.parent / path).read_bytes()


@pytest.mark.parametrize(
    ("text", "selection", "said"),
    [
        ("name,x\na,1\n", Selection(), "found the columns name, x, expected one of path"),
        ("path,x\na,1\n", Selection(column="file"), "expected 'file'. Name one: --column"),
        ("path,x\na,1\n", Selection(target_column="y"), "expected 'y', as --target-column says"),
        ("path,x\na,1\na,2\n", Selection(target_column="x"), "found 1 images with several classes"),
        ("", Selection(), "cannot be read"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, selection: Selection, said: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(CamrtError) as caught:
        inputs.find([str(tmp_path / "t.csv")], selection)
    assert said in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    parquet.write_table(pa.table({"path": [1, 2]}), tmp_path / "numbers.parquet")
    for given, said in {
        str(tmp_path / "torn.parquet"): "cannot be read",
        str(tmp_path / "numbers.parquet"): "found int64 in the column 'path', expected paths or bytes",
        "nowhere://bucket/x": "cannot be read",
        (tmp_path / "none").as_uri(): "there is no such file or folder",
    }.items():
        with pytest.raises(CamrtError) as caught:
            inputs.find([given])
        assert said in str(caught.value)
        assert given in str(caught.value)
