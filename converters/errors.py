"""The exception and the warning of this package, and how text from files is shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

MAX_MESSAGE = 4000  # characters; a message of ours has a few hundred
MAX_NAME = 500  # of a layer
MAX_PATH = 4096  # of a file: what Linux takes
MAX_DETAILS, DETAILS_SIZE = 40, 10_000  # lines, and characters of all of them

RUNTIME_GPU = "onnxruntime-gpu[cuda,cudnn]"  # ONNX Runtime for NVIDIA GPUs, in place of onnxruntime

# Modules that have another name than the package that installs them.
_PACKAGES = {"PIL": "pillow", "cv2": "opencv-python-headless<5", "google": "protobuf", "yaml": "pyyaml"}


def printable(text: object, most: int = MAX_MESSAGE) -> str:
    r"""Make text safe and short enough for a terminal and a log.

    File names, and names out of files, may hold anything: sequences that a terminal obeys, newlines that forge another
    message, megabytes. What is printable in Python's sense (`str.isprintable`) stays, so applying this twice changes
    nothing more.

    Args:
        text: The text, or what `str` turns into one.
        most: The largest length in characters. A longer text loses its middle: what to do next is said at the end.

    Returns:
        One line. Control characters, newlines, bidirectional controls and undecodable bytes are escaped as in Python's
        literals (`\x1b`, `\n`).
    """
    line = str(text)
    if len(line) > most:
        line = _cut(line, most)
    if not line.isprintable():
        line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
        line = line if len(line) <= most else _cut(line, most)  # escapes are longer than what they stand for
    return line


def _cut(line: str, most: int) -> str:
    note = f" ... ({len(line):,} characters) ... "
    room = max(most - len(note), 0)
    head = room * 2 // 3
    return (line[:head] + note + line[len(line) - (room - head) :])[:most]


def install(*modules: str) -> str:
    """The command that installs packages for the Python that runs now, however camrt was installed.

    Args:
        modules: Requirements, or modules as an import names them.
    """
    packages = [_PACKAGES.get(module, module) for module in modules]
    command = [sys.executable or "python", "-m", "pip", "install", *packages]
    if os.name == "nt":
        import subprocess

        return subprocess.list2cmdline(command)
    import shlex

    return shlex.join(command)


class ConversionError(Exception):
    """A network that cannot be read or converted.

    The text names the file, the layer, what was found, what was expected and what to do next, as far as each is known.
    It is fit for a terminal: see `printable`.

    Args:
        message: What was found and what was expected, in a sentence or two.
        layer: The layer at fault, as ``"conv1 (Convolution)"``.
        file: The file at fault, with a position where there is one (``"deploy.prototxt:12:7"``).
        details: Further lines.
    """

    def __init__(
        self, message: str, *, layer: str | None = None, file: str | None = None, details: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.layer = layer
        self.file = file
        self.details = tuple(details)

    def __str__(self) -> str:
        file = printable(self.file, MAX_PATH) if self.file else None
        layer = f"layer {printable(self.layer, MAX_NAME)}" if self.layer else None
        first = ": ".join(part for part in (file, layer, printable(self.message)) if part)
        return "\n".join([first, *detail_lines(self.details)])

    def in_file(self, file: str) -> ConversionError:
        """The same error, with the file named if it was not."""
        return ConversionError(self.message, layer=self.layer, file=self.file or file, details=self.details)

    def with_hint(self, hint: str) -> ConversionError:
        """The same error, with a further line; an empty one changes nothing."""
        if not hint or hint in self.details:
            return self
        return ConversionError(self.message, layer=self.layer, file=self.file, details=(*self.details, hint))


def detail_lines(details: Sequence[str]) -> list[str]:
    """The further lines of an error, as they are shown: the last one always, and as many others as fit."""
    shown = list(details)
    if len(shown) > MAX_DETAILS:
        left = len(shown) - MAX_DETAILS
        shown[MAX_DETAILS - 1 : -1] = [f"  ... and {left:,} more"]
    return [printable(line, min(DETAILS_SIZE // len(shown), MAX_MESSAGE)) for line in shown]


class ConversionWarning(UserWarning):
    """Something that a conversion left aside and that its user should know of."""

    def __str__(self) -> str:
        return printable(super().__str__())
