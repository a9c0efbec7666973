"""What a failed run says."""

from __future__ import annotations


class CamrtError(Exception):
    """An input that cannot be explained, localized or evaluated.

    The text names the file, what was found, what was expected and what to do next, as far as each is known.

    Args:
        message: What was found and what was expected, in a sentence or two.
        file: The file at fault, with a position where there is one (``"boxes.txt:12"``).
    """

    def __init__(self, message: str, *, file: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.file = file

    def __str__(self) -> str:
        return f"{self.file}: {self.message}" if self.file else self.message

    def in_file(self, file: str) -> CamrtError:
        """The same error, with the file named if it was not."""
        return CamrtError(self.message, file=self.file or file)
