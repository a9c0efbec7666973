"""Memory maps of files: one map per file, however many read it.

A large caffemodel is read and hashed at the same time; with a map each, its pages would be counted twice.
"""

from __future__ import annotations

import mmap
import os
import threading
from typing import IO
from weakref import WeakValueDictionary

_maps: WeakValueDictionary[tuple[int, ...], mmap.mmap] = WeakValueDictionary()
_lock = threading.Lock()


def mapped(stream: IO[bytes]) -> mmap.mmap:
    """Map a whole open file read-only. The map lives as long as someone holds it.

    Raises:
        OSError: The file cannot be mapped.
        ValueError: It is empty.
    """
    status = os.fstat(stream.fileno())
    key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    with _lock:
        existing = _maps.get(key)
        if existing is None:
            existing = _maps[key] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return existing
