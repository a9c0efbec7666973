"""A folder of results: files that appear whole or not at all, and a line for each image in ``explanations.jsonl``.

A line is added after the files that it names: where the line is, the files are.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from camrt.errors import CamrtError

LINES = "explanations.jsonl"
_appending = threading.Lock()


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; its folder is made if it is not there.

    Raises:
        CamrtError: It cannot be written.
    """
    from converters.encoding import replacing

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as stream:
            stream.write(content)
    except OSError as error:
        raise _unwritable(path, error) from error


def append(path: Path, facts: Any) -> None:
    """Add a line of JSON in one write. What a killed process left of one is ended first.

    Raises:
        CamrtError: The file cannot be written.
    """
    encoded = f"{json_line(facts)}\n".encode()
    try:
        with _appending, path.open("a+b") as stream:
            with contextlib.suppress(OSError):  # an empty file has no last byte
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    encoded = b"\n" + encoded
            stream.write(encoded)
    except OSError as error:
        raise _unwritable(path, error) from error


def json_line(facts: Any) -> str:
    """One line of JSON, readable where it can be: names of files need not be text."""
    text = json.dumps(facts, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(facts)
    return text


def _unwritable(path: Path, error: OSError) -> CamrtError:
    return CamrtError(f"cannot be written: {error.strerror or error}", file=str(path))
