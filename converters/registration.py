"""Registries: functions found by key, registered by decorators in the modules of a package."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
E = TypeVar("E")


class Registry(Generic[K, E]):
    """Entries by key. The modules that register them are imported when an entry is first looked up.

    Args:
        what: What an entry is, for messages, before the key: ``"handler for"``.
        modules: The modules that register entries, in this order.
        error: Makes the exception for a key that is registered twice.
        named: What a key is called in messages.
    """

    def __init__(
        self,
        what: str,
        modules: Sequence[str],
        error: Callable[[str], Exception],
        *,
        named: Callable[[K], object] = lambda key: key,
    ) -> None:
        self.what, self.modules, self._error, self._named = what, tuple(modules), error, named
        self._entries: dict[K, E] = {}
        self._functions: dict[K, Callable[..., Any]] = {}

    def add(
        self, keys: Sequence[K], entry: E, function: Callable[..., Any], *, replace: bool = False, hint: str = ""
    ) -> None:
        """Register an entry. Nothing is registered if one of the keys is taken.

        Args:
            keys: The keys that find it.
            entry: The entry.
            function: The decorated function. If it comes from elsewhere, all modules are imported first, so that it
                meets the entries that it may clash with.
            replace: Replace existing entries.
            hint: How to replace an entry, for the message.

        Raises:
            Exception: The ``error`` of the registry; another function is registered under one of the keys.
        """
        if function.__module__ not in self.modules:
            self.load()
        for key in keys:
            if key in self._entries and not replace:
                other = self._functions[key]
                raise self._error(
                    f"found a second {self.what} {self._named(key)!r}, {function.__module__}.{function.__qualname__} "
                    f"beside {other.__module__}.{other.__qualname__}, expected one{hint and f': {hint}'}"
                )
        self._entries.update(dict.fromkeys(keys, entry))
        self._functions.update(dict.fromkeys(keys, function))

    def find(self, key: K) -> E | None:
        """The entry of a key, or None."""
        self.load()
        return self._entries.get(key)

    def keys(self) -> Iterator[K]:
        """All keys, in the order of registration."""
        self.load()
        yield from self._entries

    def entries(self) -> Iterator[E]:
        """All entries, each once, in the order of registration."""
        self.load()
        yield from dict.fromkeys(self._entries.values())

    def load(self) -> None:
        """Import the modules that register entries."""
        for module in self.modules:
            importlib.import_module(module)

    def snapshot(self) -> Callable[[], None]:
        """Remember the entries; the returned function restores them."""
        entries, functions = dict(self._entries), dict(self._functions)

        def restore() -> None:
            self._entries.clear()
            self._entries.update(entries)
            self._functions.clear()
            self._functions.update(functions)

        return restore
