"""Download files atomically, with a size limit and checks.

`pooch` does not fit: its downloader has no size limit, decodes content encodings, and fails on an invalid
Content-Length. Only its temporary file and checksum would be used.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from converters.errors import ConversionError, install

if TYPE_CHECKING:
    import requests

ATTEMPTS = 3
PAUSE_S = 2  # before the second attempt; twice that before the third
TIMEOUT_S = 30  # without a byte
NOTICE_S = 5  # without a byte, before a notice
FINAL_STATUS = (401, 403, 404, 410, 451)  # retrying does not help
STALE_S = 3600  # a running download writes far more often
CHUNK = 1 << 16  # bytes


@dataclass(frozen=True)
class Expected:
    """The expected properties of a downloaded file.

    Attributes:
        least: Its smallest size in bytes. A smaller file is truncated.
        most: Its largest size in bytes. Reading stops there.
        sha256: The checksum, if known.
        check: Raises a ConversionError if the content of the file is invalid.
    """

    least: int
    most: int
    sha256: str | None = None
    check: Callable[[Path], object] = lambda file: None


class _Failed(Exception):
    """A failed attempt; ``final`` if a retry would fail too."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


def download(
    urls: Sequence[str],
    path: Path,
    expected: Expected,
    *,
    headers: Mapping[str, str] | None = None,
    progress: bool = True,
) -> str:
    """Download a file from the first of several URLs that has it.

    The file is written to a temporary folder and moved once it is complete and checked, so concurrent processes do not
    interfere and a killed process leaves no partial file. Content encodings are refused, because a decoded file may
    have any size.

    Args:
        urls: The URLs, in the order in which they are tried, each several times.
        path: The file. Missing folders are created.
        expected: The expected properties.
        headers: Further headers of the requests. ``Authorization`` is not sent on to another host.
        progress: Whether to show a bar and notices on stderr.

    Returns:
        The file's SHA-256, in hex.

    Raises:
        ConversionError: Every URL failed, for the reasons in the message, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        with tempfile.TemporaryDirectory(
            prefix=f".{path.name}.", suffix=".part", dir=path.parent, ignore_cleanup_errors=True
        ) as folder:
            part = Path(folder) / path.name
            digest = _first(urls, part, expected, headers or {}, progress=progress)
            part.replace(path)
            return digest
    except OSError as error:
        raise ConversionError(
            f"{path.parent} cannot be written ({error.strerror or error}). Choose another cache folder with CAMRT_HOME"
        ) from error


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first(urls: Sequence[str], part: Path, expected: Expected, headers: Mapping[str, str], *, progress: bool) -> str:
    """Download from the first URL that gives the file. Returns its SHA-256."""
    reasons = []
    for url in urls:
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE_S * attempt)
            try:
                _fetch(url, part, expected, headers, progress=progress)
                return _checked(part, expected)
            except _Failed as failed:
                reason = str(failed)
                if failed.final:
                    break
        reasons.append(f"{url}: {reason}")
    raise ConversionError("; ".join(reasons))


def _checked(part: Path, expected: Expected) -> str:
    size = part.stat().st_size
    if size < expected.least:
        raise _Failed(f"the file there is truncated: {size:,} bytes came, at least {expected.least:,} were expected")
    digest = sha256_of(part)
    if expected.sha256 is not None and digest != expected.sha256:
        raise _Failed(
            f"not the file that was expected: its SHA-256 is {digest}, not {expected.sha256}{_kind(part)}", final=True
        )
    try:
        expected.check(part)
    except ConversionError as error:
        reason = str(error).removeprefix(f"{part}: ")
        raise _Failed(f"not the file that was expected: {reason}", final=True) from error
    return digest


def _kind(part: Path) -> str:
    """Say if a wrong file is a web page: mostly the login page of a network or a proxy."""
    with part.open("rb") as stream:
        head = stream.read(256).lstrip().lower()
    return " (it is a web page)" if head.startswith((b"<!doctype html", b"<html")) else ""


def _fetch(url: str, part: Path, expected: Expected, headers: Mapping[str, str], *, progress: bool) -> None:
    """Write the body of a response to a file.

    Raises:
        _Failed: No answer, an answer that is no file, or one that is too large.
        OSError: The file cannot be written.
    """
    try:
        import requests
        import urllib3
    except ImportError as error:
        raise ConversionError(f"downloading takes {error.name}: {install(error.name or 'requests')}") from error
    try:
        with (
            _waiting((urlsplit(url).hostname or url) if progress else None) as came,
            requests.get(
                url, stream=True, timeout=TIMEOUT_S, headers={**headers, "Accept-Encoding": "identity"}
            ) as response,
        ):
            total = _announced(response, expected)
            _write(response, part, expected, total if progress else 0, came)
    except (requests.Timeout, urllib3.exceptions.TimeoutError):
        raise _Failed(f"no answer within {TIMEOUT_S} s") from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:  # ValueError: a wrong URL
        raise _Failed(_innermost(error)) from None


def _announced(response: requests.Response, expected: Expected) -> int:
    """Return the size that a response announces, or 0.

    Raises:
        _Failed: The answer is no file, or announces another size than a file of this kind has.
    """
    if response.status_code != 200:
        reason = f"the server answers {response.status_code} {response.reason}"
        raise _Failed(reason, final=response.status_code in FINAL_STATUS)
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise _Failed(f"the server sends it encoded ({encoding}), which was not asked for", final=True)
    length = response.headers.get("Content-Length", "").strip()
    size = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else 0
    if size > expected.most:
        raise _Failed(f"the file there has {size:,} bytes, at most {expected.most:,} were expected", final=True)
    return size


def _write(response: requests.Response, part: Path, expected: Expected, total: int, came: threading.Event) -> None:
    from converters.terminal import bar

    size = 0
    with part.open("wb") as file, bar(part.name, total) as advance:
        for chunk in response.raw.stream(CHUNK, decode_content=False):
            came.set()
            size += len(chunk)
            if size > expected.most:
                raise _Failed(f"more than {expected.most:,} bytes came, which were the most expected", final=True)
            file.write(chunk)
            advance(len(chunk))


@contextlib.contextmanager
def _waiting(host: str | None) -> Iterator[threading.Event]:
    """Print a notice if the first byte takes long.

    Args:
        host: The server; None for no notice.

    Yields:
        An event to set when the first byte arrives.
    """
    came = threading.Event()

    def watch() -> None:
        from converters.terminal import say

        if not came.wait(NOTICE_S):
            say(f"waiting for {host} to answer (for at most {TIMEOUT_S} s, {ATTEMPTS} times)")

    if host is not None:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield came
    finally:
        came.set()


def _innermost(error: BaseException) -> str:
    """Return the root cause of a chain of network errors, whose outer messages repeat the URL."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return f"{type(error).__name__}: {error}"


def _sweep(folder: Path) -> None:
    """Remove the partial files of killed downloads."""
    for leftover in folder.glob(".*.part"):
        with contextlib.suppress(OSError):  # another process may remove it at the same time
            times = [entry.stat().st_mtime for entry in (leftover, *leftover.glob("*"))]
            if time.time() - max(times) > STALE_S:
                shutil.rmtree(leftover, ignore_errors=True)
