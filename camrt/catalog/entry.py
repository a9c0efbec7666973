"""What a source of networks says of one of them, and the registry of sources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from camrt.errors import CamrtError
from converters.registration import Registry

if TYPE_CHECKING:
    from camrt.preprocess import Preprocess

MODULES = ("modelzoo", "huggingface", "pytorch")
PREFIXES = ("zoo", "hf", "torchvision", "timm")  # said here too, so that a path is told from a name without the modules


@dataclass(frozen=True)
class Entry:
    """A network of a source.

    Attributes:
        name: What finds it, with its prefix: ``"zoo:resnet50_Opset18_timm"``.
        file: The ONNX file in the cache, whether or not it is there.
        source: The page that it comes from.
        fetch: Returns the ONNX file; downloads or exports it if need be. It takes the file of ``--weights``, or None.
        preprocess: Returns how the network wants its images; None where the source does not say it.
        labels: Returns the names of its classes; None where the source does not say them.
        note: What the user should know of it; "" for nothing.
    """

    name: str
    file: Path
    source: str
    fetch: Callable[[Path | None], Path]
    preprocess: Callable[[], Preprocess | None] = field(default=lambda: None)
    labels: Callable[[], list[str] | None] = field(default=lambda: None)
    note: str = ""

    @property
    def title(self) -> str:
        """Return the name as a part of a file name or URL."""
        return title_of(self.name)


Source = Callable[[str], Entry]
_F = TypeVar("_F", bound=Source)
SOURCES: Registry[str, Source] = Registry(
    "source of networks", [f"camrt.catalog.{name}" for name in MODULES], CamrtError
)


def source(prefix: str) -> Callable[[_F], _F]:
    """Register the function that finds the networks of a prefix: it takes what follows the colon."""

    def register(find: _F) -> _F:
        SOURCES.add([prefix], find, find)
        return find

    return register


def title_of(name: str) -> str:
    """Return a name without its prefix, owner and folders, of characters that file names and URLs may hold."""
    prefix, _, rest = name.rpartition(":")
    last = rest.split("/")[1 if prefix == "hf" else -1].removesuffix(".onnx").partition("@")[0]
    return "".join(each if each.isalnum() or each in "._-" else "-" for each in last)
