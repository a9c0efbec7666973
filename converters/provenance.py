"""Record which files a model comes from, with their SHA-256.

Hashing 500 MB takes longer than converting them, so it runs in a separate thread, which the command line starts
before the other imports. Checksums are cached: a file of the same size, inode and times is not hashed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from converters.errors import printable
from converters.mapping import mapped

_CHUNK = 64 << 20  # bytes hashed at a time, so that it stops soon and rarely waits for the interpreter
_LARGE = 16 << 20  # bytes; below, hashing takes no time worth saving
_MOST_REMEMBERED = 500


class _Hashing:
    """The SHA-256 of a file, being computed in a thread."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.identity = _identity(file)
        self.digest: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def result(self) -> str | None:
        """Wait for the digest; None if the file cannot be read or the hashing was stopped."""
        self._thread.join()
        return self.digest

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        digest = hashlib.sha256()
        with contextlib.suppress(OSError), open(self.file, "rb") as stream:  # noqa: PTH123 - a file named as text
            if os.fstat(stream.fileno()).st_size:  # an empty file cannot be mapped
                data = memoryview(mapped(stream))
                for offset in range(0, len(data), _CHUNK):
                    if self._stop.is_set():
                        return
                    digest.update(data[offset : offset + _CHUNK])
            self.digest = digest.hexdigest()


_begun: dict[str, _Hashing] = {}


def begin(files: Iterable[str]) -> None:
    """Start hashing the large files among the names; `Provenance` picks up the results."""
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            if os.path.isfile(file) and os.path.getsize(file) >= _LARGE and file not in _begun:  # noqa: PTH113, PTH202
                _begun[file] = _Hashing(file)


class Provenance:
    """The metadata of a conversion's files. Hashing starts at once, in threads; leaving the block stops it.

    Args:
        files: The files, the description first. Unreadable files are listed without a digest.
        memory: A file that caches digests between runs; None for no cache.
    """

    def __init__(self, files: Sequence[str], memory: Path | None = None) -> None:
        self._files = list(dict.fromkeys(files))
        self._memory = memory
        self._known = _recall(memory)
        self._hashing: dict[str, _Hashing] = {}
        for file in self._files:
            begun = _begun.pop(file, None)
            if self._remembered(file) is None:
                self._hashing[file] = begun or _Hashing(file)
            elif begun is not None:
                begun.stop()

    def __enter__(self) -> Provenance:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hashing in self._hashing.values():
            hashing.stop()

    def properties(self) -> dict[str, str]:
        """``caffe.files``, and ``caffe.sha256.<name>`` for each; waits for the hashing."""
        properties = {"caffe.files": ", ".join(Path(file).name for file in self._files)}
        learned: dict[str, list[int | str]] = {}
        for file in self._files:
            digest = self._remembered(file)
            if digest is None:
                hashing = self._hashing[file]
                digest = hashing.result()
                if digest and hashing.identity and hashing.identity == _identity(file):
                    learned[str(Path(file).resolve())] = [*hashing.identity, digest]
            if digest:
                properties[f"caffe.sha256.{Path(file).name}"] = digest
        if learned and self._memory is not None:
            _remember(self._memory, learned)
        return properties

    def _remembered(self, file: str) -> str | None:
        entry = self._known.get(str(Path(file).resolve()))
        identity = _identity(file)
        return str(entry[-1]) if entry and identity and entry[:-1] == identity else None


def _identity(file: str) -> list[int] | None:
    """Return attributes that change with a file, as in git's index. None for small and missing files."""
    try:
        status = os.stat(file)  # noqa: PTH116
    except OSError:
        return None
    if status.st_size < _LARGE:
        return None
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _recall(memory: Path | None) -> dict[str, list[int | str]]:
    if memory is None:
        return {}
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        return {file: list(entry) for file, entry in known.items() if len(entry) == 5}
    except (OSError, ValueError, AttributeError, TypeError):  # none yet, or damaged: hash again
        return {}


def _remember(memory: Path, learned: dict[str, list[int | str]]) -> None:
    """Add to the cached digests, atomically. A failure only costs time at the next run."""
    known = _recall(memory)
    for file in learned:
        known.pop(file, None)
    known |= learned
    draft = memory.with_name(f".{memory.name}.{secrets.token_hex(4)}")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(dict(list(known.items())[-_MOST_REMEMBERED:])), encoding="utf-8")
        draft.replace(memory)
    except OSError as error:
        with contextlib.suppress(OSError):  # there may be no folder, or a file in its place
            draft.unlink(missing_ok=True)
        note = (
            f"note: {memory} cannot be written ({error.strerror or error}), so large files are hashed again next time"
        )
        print(printable(note), file=sys.stderr)
