"""The little languages that policy values are written in, each compiled once to a test of one string.

Istio's string language, tried in this order:

    *       presence        hosts and methods: the field is there; principals and paths: it is not empty
    *x      suffix          the rest is literal, further stars included
    x*      prefix
    x       exact

There is no escape, no regular expression and no notion of segments: ``/admin*`` matches ``/administrator``.
``namespaces`` has a language of its own: any number of stars, anywhere. Every test here is linear in the text,
whatever the policy says, and none can raise on a string.

``keys`` tells by which values of the fact a pattern can be found (``PatternIndex``): every text that matches
is found under at least one of the keys, and texts that do not match may be found as well. So an index only
ever saves work; the verdict is always that of ``matches``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

EXACT, PREFIX, SUFFIX = "exact", "prefix", "suffix"
Key = tuple[str, str]  # kind, text

T = TypeVar("T")


class Strings:
    """A list of values in Istio's string language, ORed."""

    __slots__ = ("_exact", "_filled", "_prefixes", "_suffixes")

    def __init__(self, values: Iterable[str], *, presence_is_filled: bool) -> None:
        exact, prefixes, suffixes = set(), [], []
        self._filled = False
        for value in values:
            if value == "*":
                if presence_is_filled:
                    self._filled = True
                else:
                    prefixes.append("")
            elif value.startswith("*"):
                suffixes.append(value[1:])
            elif value.endswith("*"):
                prefixes.append(value[:-1])
            else:
                exact.add(value)
        self._exact = frozenset(exact)
        self._prefixes = tuple(prefixes)
        self._suffixes = tuple(suffixes)

    def matches(self, text: str) -> bool:
        return (
            text in self._exact
            or text.startswith(self._prefixes)
            or text.endswith(self._suffixes)
            or (self._filled and text != "")
        )

    def keys(self) -> list[Key] | None:
        found = [(EXACT, text) for text in self._exact]
        found += [(PREFIX, text) for text in self._prefixes]
        found += [(SUFFIX, text) for text in self._suffixes]
        if self._filled:
            found.append((PREFIX, ""))
        return found


class Globs:
    """A list of namespaces, ORed: stars stand for any text, also for none."""

    __slots__ = ("_exact", "_globs")

    def __init__(self, values: Iterable[str]) -> None:
        written = list(values)
        self._exact = frozenset(value for value in written if "*" not in value)
        self._globs = tuple(tuple(value.split("*")) for value in written if "*" in value)

    def matches(self, text: str) -> bool:
        return text in self._exact or any(_fits(parts, text) for parts in self._globs)

    def keys(self) -> list[Key] | None:
        if self._globs:
            return None
        return [(EXACT, text) for text in self._exact]


class Ports:
    """A list of ports, ORed. Decimal, leading zeros allowed (AUTHZ 6.3)."""

    __slots__ = ("_ports",)

    def __init__(self, values: Iterable[str]) -> None:
        self._ports = frozenset(map(parse_port, values))

    def matches(self, port: int) -> bool:
        return port in self._ports

    def keys(self) -> list[Key] | None:
        return None  # a workload has a handful of ports: an index would save nothing


def parse_port(text: str) -> int:
    """A port of 0 to 65535. Raises ValueError."""
    if not (text.isascii() and text.isdigit()) or len(text) > 32 or int(text) > 65535:
        raise ValueError(f"{text!r} is not a port")
    return int(text)


def _fits(parts: tuple[str, ...], text: str) -> bool:
    """Whether ``text`` is the parts in order with anything between them. Leftmost finds suffice, as in fnmatch:
    taking a middle part as early as possible leaves the most room for what follows."""
    first, last = parts[0], parts[-1]
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    position, end = len(first), len(text) - len(last)
    for part in parts[1:-1]:
        position = text.find(part, position, end)
        if position < 0:
            return False
        position += len(part)
    return True


class PatternIndex(Generic[T]):
    """Things found by a text: under the text itself, under its beginnings and under its ends.

    Beginnings and ends are tried once for each length that occurs, so a look-up costs as much as there are
    different lengths, not as there are patterns."""

    __slots__ = ("_exact", "_prefixes", "_suffixes")

    def __init__(self) -> None:
        self._exact: dict[str, T] = {}
        self._prefixes: dict[int, dict[str, T]] = {}
        self._suffixes: dict[int, dict[str, T]] = {}

    def put(self, key: Key, thing: T) -> None:
        kind, text = key
        if kind == EXACT:
            self._exact[text] = thing
            return
        tables = self._prefixes if kind == PREFIX else self._suffixes
        tables.setdefault(len(text), {})[text] = thing

    def find(self, text: str) -> list[T]:
        found = []
        if (thing := self._exact.get(text)) is not None:
            found.append(thing)
        size = len(text)
        for length, table in self._prefixes.items():
            if length <= size and (thing := table.get(text[:length])) is not None:
                found.append(thing)
        for length, table in self._suffixes.items():
            if length <= size and (thing := table.get(text[size - length :])) is not None:
                found.append(thing)
        return found
