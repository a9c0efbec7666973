from __future__ import annotations

import pytest

from converters.registration import Registry


def one() -> None: ...


def two() -> None: ...


def registry() -> Registry[str, int]:
    return Registry("number for", [], ValueError)


def test_entries_are_found_by_each_of_their_keys() -> None:
    numbers = registry()
    numbers.add(["a", "b"], 1, one)
    numbers.add(["c"], 2, two)
    assert [numbers.find(key) for key in "abcd"] == [1, 1, 2, None]
    assert list(numbers.keys()) == ["a", "b", "c"]
    assert list(numbers.entries()) == [1, 2]


def test_a_key_is_registered_once() -> None:
    numbers = registry()
    numbers.add(["a"], 1, one)
    with pytest.raises(ValueError, match=r"found a second number for 'a', .*two beside .*one, expected one: try this"):
        numbers.add(["z", "a"], 2, two, hint="try this")
    assert numbers.find("z") is None  # all or nothing
    numbers.add(["a"], 2, two, replace=True)
    assert numbers.find("a") == 2


def test_a_snapshot_restores() -> None:
    numbers = registry()
    numbers.add(["a"], 1, one)
    restore = numbers.snapshot()
    numbers.add(["a"], 2, two, replace=True)
    numbers.add(["b"], 3, two)
    restore()
    assert list(numbers.entries()) == [1]


def test_modules_are_imported_when_an_entry_is_looked_up() -> None:
    numbers: Registry[str, int] = Registry("number for", ["no.such.module"], ValueError)
    with pytest.raises(ModuleNotFoundError):
        numbers.find("a")
    with pytest.raises(ModuleNotFoundError):  # before a function from elsewhere is registered, too
        numbers.add(["a"], 1, one)
