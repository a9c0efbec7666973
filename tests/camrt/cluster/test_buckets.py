"""Images in a bucket, read from a server that speaks S3's protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import onnx
import pytest

from camrt import CamrtError, Explainer
from camrt.cluster import inputs
from tests.camrt.cluster.jobs import assert_explained, compute, job_of, rows_of, write_photos
from tests.tiny_models import tiny_explainer

pytest.importorskip("pyarrow", reason="pyarrow is not installed")
server = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket with four images, a broken one, and a list; the part of its URLs behind the question mark."""
    from pyarrow import fs

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    query = f"scheme=http&region=us-east-1&allow_bucket_creation=true&endpoint_override={quote(f'{host}:{port}')}"
    try:
        filesystem, _ = fs.FileSystem.from_uri(f"s3://photos/?{query}")
        filesystem.create_dir("photos")
        contents = {f"in/a %20b/{path.name}": path.read_bytes() for path in write_photos(tmp_path / "photos", 4)}
        contents |= {"in/bad.png": b"no image", "in/.hidden.png": b"", "all.txt": b"in/a %20b/001.png\nlost.png\n"}
        for name, content in contents.items():
            with filesystem.open_output_stream(f"photos/{name}") as stream:
                stream.write(content)
        yield query
    finally:
        running.stop()
        inputs._filesystem.cache_clear()


def test_a_bucket_is_explained(bucket: str, tmp_path: Path) -> None:
    images, missing = inputs.find([f"s3://photos/in?{bucket}", f"s3://photos/all.txt?{bucket}"])
    assert not missing
    assert [path.partition("?")[0] for path in images["path"].to_pylist()] == [
        *(f"s3://photos/in/a%20%2520b/{number:03}.png" for number in range(4)),
        "s3://photos/in/bad.png",
        "s3://photos/lost.png",
    ]
    onnx.save(tiny_explainer(top=2), tmp_path / "tiny.onnx")
    job, graph = job_of(tmp_path / "out", tmp_path / "tiny.onnx")
    summary = compute(job, graph, images)
    assert (summary["fatal"], summary["rows"], summary["failed"]) == (None, 6, 2)
    rows = {name.partition("?")[0]: row for name, row in rows_of(job.folder).items()}
    explainer = Explainer(tmp_path / "tiny.onnx")
    for number in range(4):
        row = rows[f"{number:03}.png"]
        assert_explained({**row, "path": str(tmp_path / "photos" / f"{number:03}.png")}, explainer)
    assert rows["bad.png"]["error"].startswith("is no image")
    assert rows["lost.png"]["error"] == "there is no such file"


def test_what_cannot_be_read(bucket: str) -> None:
    for given, said in {
        f"s3://photos/none?{bucket}": "there is no such file or folder",
        f"s3://nobody/in?{bucket}": "there is no such file or folder",
        f"s3://key:secret@photos/in?{bucket}": "found a password in the URL",
    }.items():
        with pytest.raises(CamrtError) as caught:
            inputs.find([given])
        assert said in str(caught.value)
        assert "secret" not in str(caught.value).lower().replace("aws_secret_access_key", "")
