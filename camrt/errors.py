"""The exception and the warning of this package."""

from __future__ import annotations

from collections.abc import Sequence

from converters.errors import MAX_PATH, detail_lines, printable


class CamrtError(Exception):
    """An input that cannot be explained, localized or evaluated.

    The text names the file, what was found, what was expected and what to do next, as far as each is known. It is fit
    for a terminal: see `converters.errors.printable`.

    Args:
        message: What was found and what was expected, in a sentence or two.
        file: The file at fault, with a position where there is one (``"boxes.txt:12"``).
        details: Further lines.
    """

    def __init__(self, message: str, *, file: str | None = None, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.file = file
        self.details = tuple(details)

    def __str__(self) -> str:
        file = f"{printable(self.file, MAX_PATH)}: " if self.file else ""
        return "\n".join([f"{file}{printable(self.message)}", *detail_lines(self.details)])

    def in_file(self, file: str) -> CamrtError:
        """The same error, with the file named if it was not."""
        return CamrtError(self.message, file=self.file or file, details=self.details)


class CamrtWarning(UserWarning):
    """Something that was left out or left aside, and that the user should know of."""

    def __str__(self) -> str:
        return printable(super().__str__())
