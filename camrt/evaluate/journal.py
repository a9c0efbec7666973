"""A record of results with one line of JSON per image, which a killed run can resume.

A folder holds one file per run, ``NAME.jsonl``, or one per shard, ``NAME.2-of-4.jsonl``. The first line holds the
settings that the results depend on. Each further line holds the result for one image, or the reason why there is none.
The following holds wherever a run is killed:

* A line counts once its line end is written. The next run cuts off whatever follows the last line end.
* All files of one name in a folder form one record: an image that is done in one of them is done, even if the number of
  shards changes. If an image has several lines, the newest one counts.
* Results of different settings are never mixed: that is an error. So is a line that is not JSON; the file is left as
  it is. A journal without results, as a failed start leaves it, may be continued with other settings.
* Only one process writes a file at a time. A second one is refused where the system supports locks.

Example:
    >>> with Journal("out", "maps", {"model": "lenetCAM"}, Shard.parse("1/2")) as journal:  # doctest: +SKIP
    ...     for image in journal.waiting({"a.png": None, "b.png": None}):
    ...         journal.add(image, {"score": 0.9})
    >>> dict(Records("out", "maps"))  # doctest: +SKIP
    {'a.png': {'score': 0.9}}
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self, TypeVar

from camrt import results
from camrt.errors import CamrtError

FORMAT = 1
_T = TypeVar("_T")


@dataclass(frozen=True)
class Shard:
    """One part of the work: every ``count``-th image, starting with the ``number``-th.

    Attributes:
        number: The part, counted from 1.
        count: The number of parts.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse a shard such as ``"2/4"``.

        Raises:
            CamrtError: The text has another form.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
        shard = cls(*map(int, found.groups())) if found else cls(0, 0)
        if not 1 <= shard.number <= shard.count:
            raise CamrtError(f"found the shard {text!r}, expected i/n with 1 <= i <= n, as 2/4")
        return shard

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, items: Sequence[_T]) -> Sequence[_T]:
        """Select the items of this shard."""
        return items[self.number - 1 :: self.count]


@dataclass(frozen=True)
class _Line:
    """The position of an image's line, and what is needed before the line is read again."""

    file: Path
    offset: int
    at: float
    fingerprint: Any
    reason: str | None
    ran: str


@dataclass
class Records:
    """The contents of all journals of one name in a folder, at the time they are read.

    Iterating yields each image that has a result, with the result. Results are read from the files one at a time, in no
    particular order.

    Args:
        folder: The folder of the journals.
        name: The journals' name.

    Raises:
        CamrtError: A line is not JSON or not part of a journal, the journals' settings differ, or a file cannot be
            read.

    Attributes:
        files: The journals.
        settings: The settings that the results depend on; None if there are no results.
    """

    folder: str | os.PathLike[str]
    name: str
    files: tuple[Path, ...] = field(init=False)
    settings: dict[str, Any] | None = field(init=False, default=None)
    _lines: dict[str, _Line] = field(init=False, default_factory=dict, repr=False)
    _used: set[Path] = field(init=False, default_factory=set, repr=False)  # the journals with a line of an image

    def __post_init__(self) -> None:
        pattern = re.compile(re.escape(self.name) + r"(\.\d+-of-\d+)?\.jsonl")
        folder = Path(self.folder)
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        self.files = tuple(file for file in files if pattern.fullmatch(file.name))
        for file in self.files:
            self._read(file)

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        done = [(line.file, line.offset, image) for image, line in self._lines.items() if line.reason is None]
        streams: dict[Path, IO[bytes]] = {}
        try:
            for file, offset, image in sorted(done):
                if file not in streams:
                    streams[file] = _opened(file)
                streams[file].seek(offset)
                yield image, json.loads(streams[file].readline())["found"]
        finally:
            for stream in streams.values():
                stream.close()

    @property
    def ran(self) -> dict[str, int]:
        """What computed the results: provider and precision -> the number of images."""
        return dict(Counter(line.ran for line in self._lines.values() if line.reason is None and line.ran))

    def __contains__(self, image: object) -> bool:
        """Return whether the image has a line, of success or of failure."""
        return image in self._lines

    def __len__(self) -> int:
        """Return the number of images that have a line, of success or of failure."""
        return len(self._lines)

    def is_done(self, image: str, fingerprint: Any = None) -> bool:
        """Return whether the image has a result and has not changed since."""
        line = self._lines.get(image)
        return line is not None and line.reason is None and line.fingerprint == fingerprint

    @property
    def failures(self) -> dict[str, str]:
        """The images that failed, with the reasons."""
        return {image: line.reason for image, line in self._lines.items() if line.reason is not None}

    def has_results(self, file: Path) -> bool:
        """Return whether a journal has a line of an image, of success or of failure."""
        return file in self._used

    def _read(self, file: Path) -> None:
        offset, settings = 0, None
        with _opened(file) as stream:
            for number, (line, facts) in enumerate(results.parse_lines(stream, file), 1):
                if not line.endswith(b"\n"):
                    return
                if number == 1:
                    settings = self._settings_of(file, facts)
                elif facts is not None:
                    if file not in self._used:
                        self._compare(file, settings)
                    self._note(file, number, offset, facts)
                offset += len(line)

    def _settings_of(self, file: Path, header: Any) -> Any:
        if not isinstance(header, dict) or header.get("journal") != self.name or "settings" not in header:
            raise CamrtError(
                f"found no journal of {self.name!r} (the first line is not its header). Move it away, or name another "
                "folder with --out",
                file=str(file),
            )
        if header.get("format") != FORMAT:
            raise CamrtError(
                f"found a journal of format {header.get('format')!r}, expected {FORMAT}: another version of camrt "
                "wrote it. Name another folder with --out",
                file=str(file),
            )
        return header["settings"]

    def _compare(self, file: Path, settings: Any) -> None:
        self._used.add(file)
        if self.settings is None:
            self.settings = settings
        else:
            _compare(file, found=settings, wanted=self.settings, of="the other journals in the folder")

    def _note(self, file: Path, number: int, offset: int, facts: Any) -> None:
        # The keys on disk are those of format 1: "stamp" for a fingerprint, "refused" for a failure.
        is_ours = isinstance(facts, dict) and isinstance(facts.get("image"), str)
        if not is_ours or not isinstance(facts.get("at"), (int, float)) or not {"found", "refused"} & facts.keys():
            raise CamrtError(
                "the line is not part of a journal. Remove it, or name another folder with --out",
                file=f"{file}:{number}",
            )
        line = _Line(file, offset, facts["at"], facts.get("stamp"), facts.get("refused"), str(facts.get("ran", "")))
        before = self._lines.get(facts["image"])
        if before is None or before.at <= line.at:
            self._lines[facts["image"]] = line


class Journal:
    """A writer that appends results to the record of a folder. It can be used from several threads at once.

    Use it in a ``with`` block, which holds the lock on its file.

    Args:
        folder: The folder; it is created if necessary.
        name: The name of the record: letters, digits, ``-`` and ``_``.
        settings: What the results depend on besides the images, as JSON can hold it.
        shard: The part of the work that this process does.

    Raises:
        CamrtError: On entering: the record has other settings, another process writes it, it is damaged, or it cannot
            be written.

    Attributes:
        file: The file that the lines go to.
        records: The results of all shards at the time the block was entered.
    """

    def __init__(
        self, folder: str | os.PathLike[str], name: str, settings: Mapping[str, Any], shard: Shard | None = None
    ) -> None:
        if not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"found the name {name!r}, expected letters, digits, - and _")
        self.folder, self.name, self.shard = Path(folder), name, shard or Shard()
        self.settings = json.loads(json.dumps(settings))  # tuples come back as lists
        part = "" if self.shard.count == 1 else f".{self.shard.number}-of-{self.shard.count}"
        self.file = self.folder / f"{name}{part}.jsonl"
        self.records: Records
        self._stream: IO[bytes] | None = None
        self._writing = threading.Lock()

    def __enter__(self) -> Self:
        if not self.folder.is_dir():
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CamrtError(f"cannot be written to: {error.strerror or error}", file=str(self.folder)) from error
        part = f" of the shard {self.shard}" if self.shard.count > 1 else ""
        stream = results.hold(
            self.file,
            f"another run{part} writes it. Wait for it, share the work with --shard i/n, or name another --out",
        )
        try:
            self.records = self._mended(stream)
            if stream.seek(0, os.SEEK_END) == 0:
                header = {"journal": self.name, "format": FORMAT, "settings": self.settings}
                self._write(stream, header)
        except BaseException:
            stream.close()
            raise
        self._stream = stream
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def waiting(self, images: Mapping[str, Any]) -> list[str]:
        """Return the images of this shard that are not done, neither in this run's file nor in another shard's.

        Args:
            images: All images of all shards in order, each with its fingerprint (`fingerprint_of`, for example) or
                None. An image whose fingerprint has changed since is not done.
        """
        return [
            image for image in self.shard.of(list(images)) if not self.records.is_done(image, _plain(images[image]))
        ]

    def add(self, image: str, found: Mapping[str, Any], fingerprint: Any = None, ran: str = "") -> None:
        """Add the result for an image, in one write.

        Args:
            image: The name of the image, the same in all runs.
            found: The result, as JSON can hold it.
            fingerprint: Of the image: if it changes, the result no longer counts.
            ran: The provider and the precision that computed the result (``"CPUExecutionProvider fp32"``).

        Raises:
            CamrtError: The file cannot be written.
        """
        known = {"ran": ran} if ran else {}
        self._append({"image": image, "stamp": fingerprint, **known, "found": found})

    def record_failure(self, image: str, reason: str, fingerprint: Any = None) -> None:
        """Add the reason why an image has no result. The next run tries the image again.

        Raises:
            CamrtError: The file cannot be written.
        """
        self._append({"image": image, "stamp": fingerprint, "refused": reason})

    def _append(self, facts: dict[str, Any]) -> None:
        if self._stream is None:
            raise RuntimeError("a Journal is used in a with block, which holds its file's lock")
        self._write(self._stream, {**facts, "at": time.time()})

    def _write(self, stream: IO[bytes], facts: dict[str, Any]) -> None:
        line = f"{results.json_line(facts)}\n".encode()
        try:
            with self._writing:
                written = stream.write(line)  # not buffered: in one piece, behind what is there
            if written != len(line):
                raise OSError(0, "the disk is full")
        except OSError as error:
            raise CamrtError(f"cannot be written: {error.strerror or error}", file=str(self.file)) from error

    def _mended(self, stream: IO[bytes]) -> Records:
        """Cut off the incomplete line of a killed run, and read all journals of the record."""
        records = Records(self.folder, self.name)
        if records.settings is not None:
            _compare(records.files[0], found=records.settings, wanted=self.settings, of="this run")
        end = _end_of_lines(self.file) if records.has_results(self.file) else 0  # a header alone is written anew
        if end != stream.seek(0, os.SEEK_END):
            stream.truncate(end)
        return records


def fingerprint_of(path: str | os.PathLike[str]) -> list[int] | None:
    """Return the size in bytes and the modification time in nanoseconds of a file; None if there is no such file."""
    try:
        facts = os.stat(path)  # noqa: PTH116 - half the time of Path.stat, for each of 50,000 images
    except OSError:
        return None
    return [facts.st_size, facts.st_mtime_ns]


def _plain(value: Any) -> Any:
    """Return the value as it comes back from JSON, for comparisons."""
    return json.loads(json.dumps(value))


def _opened(file: Path) -> IO[bytes]:
    try:
        return file.open("rb")
    except OSError as error:
        raise CamrtError(f"cannot be read: {error.strerror or error}", file=str(file)) from error


def _end_of_lines(file: Path) -> int:
    """Return the offset of the byte after the last line end."""
    with _opened(file) as stream:
        end = stream.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65536)
            stream.seek(start)
            last = stream.read(end - start).rfind(b"\n")
            if last >= 0:
                return start + last + 1
            end = start
    return 0


def _compare(file: Path, *, found: Any, wanted: Any, of: str) -> None:
    """Raise an error if the settings differ: their results are not comparable."""
    if found == wanted:
        return
    keys = sorted(found.keys() | wanted.keys()) if isinstance(found, dict) and isinstance(wanted, dict) else []
    differing = [key for key in keys if found.get(key) != wanted.get(key)]
    details = "; ".join(f"{key}: found {found.get(key)!r}, expected {wanted.get(key)!r}" for key in differing)
    raise CamrtError(
        f"its results were made with other settings than those of {of}: {details or 'unreadable'}. Name another folder "
        "with --out, or remove the file",
        file=str(file),
    )
