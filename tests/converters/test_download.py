"""Downloads: of a largest size, unencoded, checked, and never silent for long."""

from __future__ import annotations

import gzip
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from converters import download
from converters.download import Expected
from converters.errors import ConversionError
from tests.bounded import memory_below
from tests.web import Answer, Site, serve

CONTENT = bytes(range(256)) * 4000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
EXACTLY = Expected(len(CONTENT), len(CONTENT))


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE_S", 0)
    with serve(Answer(CONTENT)) as site:
        yield site


def get(site: Site, folder: Path, expected: Expected = EXACTLY, **options: bool) -> str:
    return download.download([site.url], folder / "file.bin", expected, **{"progress": False, **options})


def refusal(site: Site, folder: Path, expected: Expected = EXACTLY) -> str:
    with pytest.raises(ConversionError) as caught:
        get(site, folder, expected)
    assert list(folder.iterdir()) == [], "a failed download leaves nothing"
    return str(caught.value)


@pytest.mark.parametrize("length", ["abc", "-1", "1e6", "", "12 34", "\xb2"])
def test_a_content_length_that_is_no_number_does_not_matter(length: str, site: Site, tmp_path: Path) -> None:
    site.answers = [Answer(CONTENT, headers={"Content-Length": length, "Connection": "close"})]
    assert get(site, tmp_path) == DIGEST


def test_a_content_length_of_thirty_digits_is_a_line(site: Site, tmp_path: Path) -> None:
    site.answers = [Answer(CONTENT, headers={"Content-Length": "9" * 30, "Connection": "close"})]
    assert refusal(site, tmp_path).startswith(f"{site.url}: ")


@pytest.mark.parametrize("announced", [False, True])
def test_endless_body_is_cut_at_the_largest_size(announced: bool, site: Site, tmp_path: Path) -> None:
    headers = {"Content-Length": str(1 << 40)} if announced else {}
    site.answers = [Answer(CONTENT, headers=headers, endless=True)]
    with memory_below(8 << 20):
        said = refusal(site, tmp_path)
    assert "at most 1,024,000 were expected" in said or "more than 1,024,000 bytes came" in said
    assert site.asked == 1, "asking again does not help"
    assert site.sent < 32 << 20, "what was in the sockets, and no more"


@pytest.mark.parametrize("asked_for", [True, False])
def test_encoded_bodies_are_neither_asked_for_nor_decoded(asked_for: bool, site: Site, tmp_path: Path) -> None:
    """A gigabyte of zeros, as a gzip of a megabyte; with and without the header that says so."""
    bomb = gzip.compress(bytes(1 << 20)) * 1024
    headers = {"Content-Encoding": "gzip"} if asked_for else {}
    site.answers = [Answer(bomb, headers=headers)]
    with memory_below(16 << 20):
        if asked_for:
            assert "encoded (gzip)" in refusal(site, tmp_path, Expected(1, 1 << 30))
        else:
            get(site, tmp_path, Expected(1, 1 << 30))
            assert (tmp_path / "file.bin").read_bytes() == bomb
    assert site.requests[0]["Accept-Encoding"] == "identity"


def test_what_came_is_checked_before_it_is_kept(site: Site, tmp_path: Path) -> None:
    seen: list[bytes] = []

    def check(file: Path) -> None:
        seen.append(file.read_bytes())
        assert not (tmp_path / "file.bin").exists()
        raise ConversionError("is no such file", file=str(file))

    said = refusal(site, tmp_path, Expected(1, 1 << 30, check=check))
    assert said == f"{site.url}: not the file that was expected: is no such file"
    assert seen == [CONTENT]
    assert site.asked == 1


def test_a_mirror_stands_in_for_a_file_of_another_checksum(site: Site, tmp_path: Path) -> None:
    page = b"<!DOCTYPE html><html>log in</html>"
    site.answers = [Answer(page), Answer(CONTENT)]
    expected = Expected(1, 1 << 30, sha256=DIGEST)
    urls = [site.url, f"{site.url}?mirror"]
    assert download.download(urls, tmp_path / "file.bin", expected, progress=False) == DIGEST
    site.requests.clear()
    site.answers = [Answer(page)]
    (tmp_path / "file.bin").unlink()
    assert "(it is a web page)" in refusal(site, tmp_path, expected)


def test_a_silent_server_is_named(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert download.NOTICE_S < 10
    monkeypatch.setattr(download, "NOTICE_S", 0.05)
    site.answers = [Answer(CONTENT, silence_s=0.5)]
    assert get(site, tmp_path, progress=True) == DIGEST
    assert capsys.readouterr().err.startswith("waiting for 127.0.0.1 to answer")
    site.answers = [Answer(CONTENT)]
    assert get(site, tmp_path, progress=True) == DIGEST
    assert capsys.readouterr().err == ""
    site.answers = [Answer(CONTENT, silence_s=0.5)]
    assert get(site, tmp_path, progress=False) == DIGEST
    assert capsys.readouterr().err == ""


def test_no_thread_is_left_behind(site: Site, tmp_path: Path) -> None:
    before = threading.active_count()
    get(site, tmp_path, progress=True)
    end = time.monotonic() + 5
    while threading.active_count() > before + 1 and time.monotonic() < end:  # one of the site's may still close
        time.sleep(0.01)
    assert threading.active_count() <= before + 1


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "no url", "http://[::1", "http://127.0.0.1:9/x"]
)
def test_other_addresses_are_a_line(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSE_S", 0)
    monkeypatch.setitem(os.environ, "NO_PROXY", "127.0.0.1")
    with pytest.raises(ConversionError, match=r".+: \w+"):
        download.download([url], tmp_path / "file.bin", Expected(0, 100), progress=False)
