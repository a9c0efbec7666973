"""A folder of results: files that appear whole or not at all, lines of JSON that outlive a killed run, and a lock.

A line is added after the files that it names: where the line is, the files are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from camrt.errors import CamrtError

if TYPE_CHECKING:
    from filelock import FileLock

LINES = "explanations.jsonl"
_LONGEST_STEM = 200  # bytes
_appending = threading.Lock()


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; its folder is made if it is not there.

    Raises:
        CamrtError: It cannot be written.
    """
    from converters.encoding import replacing

    try:
        with replacing(path) as stream:
            stream.write(content)
    except OSError as error:
        raise _unwritable(path, error) from error


def append(path: Path, record: Any) -> None:
    """Add a line of JSON in one write. What a killed process left of one is ended first.

    Raises:
        CamrtError: The file cannot be written.
    """
    encoded = f"{json_line(record)}\n".encode()
    try:
        with _appending, path.open("a+b") as stream:
            with contextlib.suppress(OSError):  # an empty file has no last byte
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    encoded = b"\n" + encoded
            stream.write(encoded)
    except OSError as error:
        raise _unwritable(path, error) from error


def parse_lines(lines: Iterable[bytes], file: Path) -> Iterator[tuple[bytes, Any]]:
    """Read lines of JSON as they were appended.

    Args:
        lines: With their ends, as an open file gives them.
        file: What it is called in errors.

    Returns:
        Each line, and what it says; None for an empty one. A last line without an end that is not JSON was torn by a
        kill, and is left out.

    Raises:
        CamrtError: Another line is not JSON.
    """
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            if not line.endswith(b"\n"):
                return
            raise CamrtError(
                "the line is not JSON. Mend or remove it, or name another folder with --out", file=f"{file}:{number}"
            ) from None
        yield line, record


def lock(path: Path, refusal: str) -> FileLock:
    """Hold a lock file until it is released, or the process ends.

    Args:
        path: Made if it is not there; its folder is there.
        refusal: What is said if another process holds it.

    Returns:
        The lock. It holds nothing on a file system that has no locks.

    Raises:
        CamrtError: Another process holds it, or it cannot be written; the folder is named.
    """
    from filelock import FileLock, Timeout

    held = FileLock(path, timeout=0, is_singleton=False, thread_local=False)
    try:
        held.acquire()
    except Timeout:
        raise CamrtError(refusal, file=str(path.parent)) from None
    except NotImplementedError:  # a file system without locks
        return held
    except OSError as error:
        raise _unwritable(path, error) from error
    return held


def hold(path: Path, refusal: str) -> IO[bytes]:
    """Open a file to append to, and lock it for as long as it is open: on POSIX, where the file system has locks.

    `lock` works on Windows too, with a file of its own.

    Args:
        path: Made if it is not there; its folder is.
        refusal: What is said if another process holds it.

    Returns:
        The file, without a buffer.

    Raises:
        CamrtError: Another process holds it, or it cannot be written.
    """
    try:
        stream = path.open("ab", buffering=0)
    except OSError as error:
        raise _unwritable(path, error) from error
    if not _locked(stream):
        stream.close()
        raise CamrtError(refusal, file=str(path))
    return stream


def json_line(record: Any) -> str:
    """One line of JSON, readable where it can be: names of files need not be text, and may hold what terminals obey."""
    text = json.dumps(record, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(record)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def _unwritable(path: Path, error: OSError) -> CamrtError:
    return CamrtError(f"cannot be written: {error.strerror or error}", file=str(path))


def _locked(stream: IO[bytes]) -> bool:
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems
        return True
    return True


def shortened(stem: str) -> str:
    """Shorten what file names begin with, so that the names fit: file systems take 255 bytes.

    Args:
        stem: Of any length.

    Returns:
        It, or its beginning and a part of its hash, in at most 200 bytes. That leaves room for endings
        (``_map10.png``) and for the name of the draft while a file is written.
    """
    encoded = os.fsencode(stem)
    if len(encoded) <= _LONGEST_STEM:
        return stem
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    while len(os.fsencode(stem)) > _LONGEST_STEM - len(digest) - 1:
        stem = stem[:-1]
    return f"{stem}-{digest}"
