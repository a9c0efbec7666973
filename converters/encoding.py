"""What both kinds of files are written with: Protocol Buffers' framing, and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np


def varint(value: int) -> bytes:
    """A number as Protocol Buffers writes it: seven bits a byte, the lowest first."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def length_delimited(field: int, length: int) -> bytes:
    """The tag and length that stand before a field of ``length`` bytes."""
    return varint(field << 3 | 2) + varint(length)


def contents(array: np.ndarray) -> memoryview:
    """An array's bytes, without a copy where it is contiguous."""
    return np.ascontiguousarray(array).data.cast("B")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of ``path`` when the block ends without an exception, and vanishes otherwise."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with draft.open("xb") as stream:
            yield stream
        os.replace(draft, path)  # noqa: PTH105 - atomic, and says so
    finally:
        draft.unlink(missing_ok=True)
