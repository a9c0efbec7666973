"""Classes by number and by name."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Sequence
from typing import Any

from camrt.errors import CamrtError


def class_number(given: Any, labels: Sequence[str] | None, classes: int) -> int:
    """The number of a class.

    Args:
        given: A number from 0; or a name, which goes before a number in letters.
        labels: The names of all classes, where they are known.
        classes: How many there are.

    Raises:
        CamrtError: There is no such class, or several have that name; the text names those that are called alike.
    """
    if isinstance(given, str) and not (given not in (labels or ()) and given.removeprefix("-").isdecimal()):
        return _named(given, labels)
    try:
        number = int(given) if isinstance(given, str) else operator.index(given)
    except TypeError:
        raise CamrtError(f"found the class {given!r}, expected its number or name") from None
    if not 0 <= number < classes:
        raise CamrtError(f"found the class {number}, expected 0 to {classes - 1}")
    return number


def alike(name: str, names: Iterable[str]) -> str:
    """``". Did you mean ...?"`` with names that are nearly this one, else ``""``."""
    folded = {each.casefold(): each for each in names}
    close = difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.6)
    return f". Did you mean {' or '.join(repr(folded[each]) for each in close)}?" if close else ""


def _named(name: str, labels: Sequence[str] | None) -> int:
    if not labels:
        raise CamrtError(
            f"found the class {name!r}, and the model does not know names (no metadata camrt.labels): give its number, "
            "or the names of all classes (labels)"
        )
    found = [number for number, label in enumerate(labels) if label == name]
    if not found:
        raise CamrtError(f"found the class {name!r}, which the model does not know{alike(name, labels)}")
    if len(found) > 1:
        raise CamrtError(f"found the class {name!r}, which {len(found)} classes are called: give one of {found}")
    return found[0]
