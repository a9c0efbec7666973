"""The original demo's data files: where they are, what is read from them, and what to do if they are missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from camrt.errors import CamrtError

ReferenceDir = Annotated[
    Path | None,
    typer.Option(help="The folder of the original demo's data files, if not the cache (camrt download --reference)."),
]


def reference_folder(given: Path | None) -> Path:
    """Return the folder that was named, else the cache's."""
    if given is not None:
        return given
    from converters import zoo

    return zoo.cache_folder() / "reference" / "matlab_demo"


@contextlib.contextmanager
def hint_of_download() -> Iterator[None]:
    """Add to errors in this block how to get the files."""
    try:
        yield
    except CamrtError as error:
        raise CamrtError(
            f"{error}. It is one of the original demo's data files: camrt download --reference brings them, or "
            "--reference-dir names their folder"
        ) from error


def categories(file: Path) -> list[str]:
    """Read the class names of a .mat file, with WordNet's numbers.

    Raises:
        CamrtError: The file is not there, or holds none.
    """
    from scipy.io import loadmat

    try:
        return [str(row[0][0]) for row in loadmat(file)["categories"]]
    except FileNotFoundError:
        raise CamrtError("there is no such file", file=str(file)) from None
    except Exception as error:  # scipy's reader raises what it comes across in a broken file
        raise CamrtError(f"no class names can be read from it ({error!r})", file=str(file)) from error
