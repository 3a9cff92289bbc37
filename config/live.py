"""``Live[T]``: one current value, replaced whole, and awaited for change.

There is one owner who calls ``set`` and any number of readers. ``generation`` counts the sets; a reader that
waits says which generation it has seen, so that a change between its look and its wait is never lost. Changes
are not queued: a slow reader sees the latest value and skips what was between.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Live(Generic[T]):
    """Belongs to one trio loop."""

    def __init__(self, value: T) -> None:
        self._value = value
        self._generation = 0
        self._changed = trio.Event()

    def __repr__(self) -> str:
        return f"<Live generation {self._generation}: {self._value!r}>"

    @property
    def value(self) -> T:
        return self._value

    @property
    def generation(self) -> int:
        """How often the value was set since the beginning."""
        return self._generation

    def set(self, value: T) -> int:
        """Replace the value and wake all who wait. Returns the new generation."""
        self._value = value
        self._generation += 1
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        return self._generation

    async def wait_change(self, seen: int) -> int:
        """Wait until the generation is not ``seen`` (at once when it is not), and return it."""
        if self._generation == seen:
            await self._changed.wait()
        else:
            await trio.lowlevel.checkpoint()
        return self._generation

    async def changes(self) -> AsyncGenerator[T, None]:
        """Each new value from now on; those that were replaced before they were asked for are skipped."""
        seen = self._generation
        while True:
            seen = await self.wait_change(seen)
            yield self._value
