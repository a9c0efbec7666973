"""What a failed conversion says."""

from __future__ import annotations


class ConversionError(Exception):
    """A network that cannot be read or converted.

    The text names the file, the layer, what was found, what was expected and what to do next, as far as each is known.

    Args:
        message: What was found and what was expected, in a sentence or two.
        layer: The layer at fault, as ``"conv1 (Convolution)"``.
        file: The file at fault, with a position where there is one (``"deploy.prototxt:12:7"``).
    """

    def __init__(self, message: str, *, layer: str | None = None, file: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.layer = layer
        self.file = file

    def __str__(self) -> str:
        layer = f"layer {self.layer}" if self.layer else None
        return ": ".join(part for part in (self.file, layer, self.message) if part)

    def with_hint(self, hint: str) -> ConversionError:
        """The same error, with a further line; an empty one changes nothing."""
        if not hint or hint in self.message:
            return self
        return ConversionError(f"{self.message}\n{hint}", layer=self.layer, file=self.file)

    def in_file(self, file: str) -> ConversionError:
        """The same error, with the file named if it was not."""
        return ConversionError(self.message, layer=self.layer, file=self.file or file)


class ConversionWarning(UserWarning):
    """Something that a conversion left aside and that its user should know of."""
