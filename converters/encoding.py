"""Protocol Buffers encoding and atomic file writes."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

STALE_S = 3600  # files being written change far more often


def varint(value: int) -> bytes:
    """Encode a number as Protocol Buffers does: seven bits per byte, the lowest first."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def length_delimited(field: int, length: int) -> bytes:
    """Encode the tag and length that precede a field of ``length`` bytes."""
    return varint(field << 3 | 2) + varint(length)


def contents(array: np.ndarray) -> memoryview:
    """Return an array's bytes, without a copy if it is contiguous."""
    return np.ascontiguousarray(array).data.cast("B")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a new file that replaces ``path`` when the block ends, and is removed if the block raises.

    Missing folders are created, and removed again if the block raises. A killed process leaves its draft; see `sweep`.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    # Most folders are there: none of those above is looked at then.
    missing = []
    if not path.parent.is_dir():
        missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    is_whole = False
    try:
        if missing:
            path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("xb") as stream:
            yield stream
        os.replace(draft, path)  # noqa: PTH105 - atomic, and says so
        is_whole = True
    finally:
        if not is_whole:
            with contextlib.suppress(NotADirectoryError):  # a parent is a file
                draft.unlink(missing_ok=True)
            for folder in missing:  # the innermost first
                with contextlib.suppress(OSError):  # not created, or no longer empty
                    folder.rmdir()


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove the drafts of killed processes that are at least an hour old.

    It scans the whole folder, so call it once per run, not once per file.

    Args:
        folder: The folder.
        name: The file with the drafts; None for any file.
    """
    for leftover in folder.glob(f".{'*' if name is None else glob.escape(name)}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > STALE_S:
                leftover.unlink()
