"""What was read from the store a moment ago, so that each call of a busy node does not read it again.

An answer counts until the authority's change counter moves (at once for writes of this process, within a second
for those of others), and for ``life`` seconds at most. Nothing is issued on its word alone: the transaction looks
again at bans, revocations and the entry. What it spares is threads and queries: half the work of a call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

import trio

from proxy.ca.work import Work

LIFE: Final = 1.0  # seconds
_KEPT: Final = 20_000

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Answers by key. ``version``: the change counter as it is known here."""

    def __init__(self, work: Work, version: Callable[[], int], life: float = LIFE) -> None:
        self._work = work
        self._version = version
        self._life = life
        self._kept: dict[K, tuple[int, float, V]] = {}

    async def get(self, key: K, read: Callable[[], V]) -> V:
        """The answer for ``key``, read in a thread when there is none. Raises RpcError."""
        now, version = trio.current_time(), self._version()
        found = self._kept.get(key)
        if found is not None and found[0] == version and now - found[1] < self._life:
            return found[2]
        value = await self._work.ask(read)
        if len(self._kept) >= _KEPT:
            self._kept.clear()
        self._kept[key] = (version, now, value)  # as of before the question: a change meanwhile ends it
        return value

    def forget(self) -> None:
        """We have just changed something ourselves."""
        self._kept.clear()
