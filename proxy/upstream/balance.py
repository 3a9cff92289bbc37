"""Which endpoint gets the next exchange. Pure; randomness is an argument."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol, TypeVar


class Loaded(Protocol):
    """An endpoint as a balancer sees it: ``active`` counts the exchanges open or waiting there."""

    active: int


E = TypeVar("E", bound=Loaded)


class RoundRobin:
    """Each endpoint in turn."""

    def __init__(self) -> None:
        self._next = 0

    def pick(self, endpoints: Sequence[E]) -> E:
        """``endpoints`` is not empty."""
        self._next = (self._next + 1) % len(endpoints)
        return endpoints[self._next]


class LeastRequest:
    """The better of two chosen at random ("power of two choices"): close to the least loaded, without the
    herd that follows a global minimum."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def pick(self, endpoints: Sequence[E]) -> E:
        """``endpoints`` is not empty."""
        count = len(endpoints)
        if count == 1:
            return endpoints[0]
        first = self._rng.randrange(count)
        second = self._rng.randrange(count - 1)
        second += second >= first
        one, two = endpoints[first], endpoints[second]
        return two if two.active < one.active else one
